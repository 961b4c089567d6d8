//! `cargo xtask dist`: a folder with the release binary and every shared library it needs beyond the C library.
//! The binary finds them by a path relative to itself, so the folder can be copied anywhere. Linux only.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{self, Failure, Result};
use crate::{setup, workspace};

/// Libraries that belong to the C library: they must be the target machine's own.
const SYSTEM: [&str; 11] = [
    "linux-vdso.so",
    "ld-linux",
    "libc.so",
    "libm.so",
    "libdl.so",
    "libpthread.so",
    "librt.so",
    "libresolv.so",
    "libutil.so",
    "libmvec.so",
    "libanl.so",
];

/// Builds, copies, writes the list of libraries, and proves that the copy stands alone.
pub fn run(args: &[String]) -> Result<()> {
    let (mode, rest) = setup::mode(args);
    process::refuse_arguments("dist", &rest)?;
    if !cfg!(target_os = "linux") {
        return Err(Failure::new("`dist` collects ELF libraries and runs on Linux only"));
    }
    setup::run(mode, &setup::NEEDED)?;
    setup::say_build_cost("release", "about 8 minutes on 2 cores and 2 GB of disk");
    // RPATH, not RUNPATH: it also serves the libraries that our libraries need.
    let rpath = "link-args=-Wl,--disable-new-dtags,-rpath,$ORIGIN/lib";
    process::cargo(&["rustc", "--release", "--package", "cli", "--bin", "vidtune", "--", "-C", rpath])?;
    let built = workspace::target_dir()?.join("release").join("vidtune");
    let folder =
        process::root().join("dist").join(format!("vidtune-{}-{}", env!("CARGO_PKG_VERSION"), workspace::host()?));
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| cannot("remove", &folder, &error))?;
    }
    let libraries = folder.join("lib");
    fs::create_dir_all(&libraries).map_err(|error| cannot("create", &libraries, &error))?;
    copy(&built, &folder.join("vidtune"))?;
    for (name, path) in closure(&built)? {
        copy(&path, &libraries.join(name))?;
    }
    for file in ["LICENSE-APACHE", "LICENSE-MIT", "README.md"] {
        copy(&process::root().join(file), &folder.join(file))?;
    }
    write_library_list(&folder)?;
    verify(&folder)?;
    println!("{}", folder.display());
    Ok(())
}

/// File name and place of every library that `ldd` resolves, the C library's own left out.
fn closure(binary: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let text = process::capture(Command::new("ldd").arg(binary))?;
    parse_ldd(&text)
}

fn parse_ldd(text: &str) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        let Some((name, rest)) = line.split_once(" => ") else { continue };
        if SYSTEM.iter().any(|system| name.starts_with(system)) {
            continue;
        }
        let path = rest.split(" (").next().unwrap_or_default().trim();
        if !path.starts_with('/') {
            return Err(Failure::new(format!("`{name}` was not found by the dynamic linker")));
        }
        found.insert(name.to_owned(), PathBuf::from(path));
    }
    Ok(found)
}

/// The copy must load every library from its own folder and start with an empty environment.
fn verify(folder: &Path) -> Result<()> {
    let binary = folder.join("vidtune");
    let libraries = folder.join("lib");
    for (name, path) in closure(&binary)? {
        if !path.starts_with(&libraries) {
            return Err(Failure::new(format!("`{name}` would still be loaded from `{}`", path.display())));
        }
    }
    let mut command = Command::new(&binary);
    command.arg("--version").env_clear().env("LD_LIBRARY_PATH", "").current_dir("/");
    let text = process::capture(&mut command)?;
    eprintln!("{} runs from {} alone", text.trim(), folder.display());
    Ok(())
}

/// Names each library with the Debian package it came from, because its licence is that package's.
fn write_library_list(folder: &Path) -> Result<()> {
    let mut text = String::from(
        "The folder lib/ holds unmodified shared libraries of the system this was built on.\n\
         FFmpeg's libraries and x264 are under the GNU (L)GPL; their sources are the named packages' sources.\n\n",
    );
    for (name, path) in closure(&folder.join("vidtune"))? {
        let original = Command::new("dpkg-query").args(["--search", &format!("*/{name}")]).output();
        let owner = original.ok().and_then(|output| String::from_utf8(output.stdout).ok());
        let owner = owner.as_deref().and_then(|lines| lines.split(':').next()).unwrap_or("unknown").trim().to_owned();
        let size = fs::metadata(&path).map(|metadata| metadata.len()).unwrap_or_default();
        text.push_str(&format!("{name}  {size} bytes  package {owner}\n"));
    }
    let target = folder.join("LIBRARIES.txt");
    fs::write(&target, text).map_err(|error| cannot("write", &target, &error))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(|_| ()).map_err(|error| cannot("copy", from, &error))
}

fn cannot(verb: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot {verb} `{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_output_becomes_the_closure_without_the_c_library() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibavcodec.so.59 => /usr/lib/libavcodec.so.59 (0x00007f)\n\
                    \tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = parse_ldd(text).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["libavcodec.so.59"]);
        assert_eq!(found["libavcodec.so.59"], Path::new("/usr/lib/libavcodec.so.59"));
    }

    #[test]
    fn a_library_that_is_not_found_stops_the_build() {
        let failure = parse_ldd("\tlibavcodec.so.59 => not found\n").unwrap_err();
        assert_eq!(failure.message, "`libavcodec.so.59` was not found by the dynamic linker");
    }
}
