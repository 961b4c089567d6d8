//! Owns one thing: passing on which libav version the bindings were made for, as `cfg(libav_6_1)`.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(libav_6_1)");
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("DEP_FFMPEG_FFMPEG_6_1").is_some() {
        println!("cargo::rustc-cfg=libav_6_1");
    }
}
