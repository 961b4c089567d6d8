//! Owns one thing: passing on which libav version the bindings were made for, as `cfg(libav_6_1)` and `cfg(libav_7_0)`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for version in ["6_1", "7_0"] {
        println!("cargo::rustc-check-cfg=cfg(libav_{version})");
        if std::env::var_os(format!("DEP_FFMPEG_FFMPEG_{version}")).is_some() {
            println!("cargo::rustc-cfg=libav_{version}");
        }
    }
}
