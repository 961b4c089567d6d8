//! `cargo xtask dist`: a folder with the release binary and every shared library it needs beyond the C library.
//! The binary finds them by a path relative to itself, so the folder can be copied anywhere. Linux only.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

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
    setup::say_build_cost("release", "3 to 8 minutes on 2 cores and 2 GB of disk");
    // RPATH, not RUNPATH: it also serves what the binary opens later, and the libraries that our libraries need.
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
    for (name, path) in needed(&built)? {
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

/// Every library that the binary is linked with or opens later, and all that those need.
fn needed(binary: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = closure(binary)?;
    for path in libav(binary)? {
        found.extend(closure(&path)?);
        if let Some(name) = path.file_name() {
            found.insert(name.to_string_lossy().into_owned(), path);
        }
    }
    Ok(found)
}

/// The files of libav that the binary opens. It is not linked with them, so that only the binary can tell.
fn libav(binary: &Path) -> Result<Vec<PathBuf>> {
    parse_doctor(&process::capture(Command::new(binary).args(["doctor", "--json"]))?)
}

fn parse_doctor(text: &str) -> Result<Vec<PathBuf>> {
    let facts: Value = serde_json::from_str(text).map_err(|error| {
        Failure::new(format!("`vidtune doctor --json` printed something that is not JSON: {error}"))
    })?;
    if let Some(error) = facts["libav_error"].as_str() {
        return Err(Failure::new(error));
    }
    let files = facts["libav"].as_array().into_iter().flatten();
    let files: Vec<PathBuf> = files.filter_map(|library| library["file"].as_str()).map(PathBuf::from).collect();
    match files.iter().find(|file| !file.is_absolute()) {
        Some(file) => Err(Failure::new(format!("the dynamic linker does not tell where `{}` lies", file.display()))),
        None if files.is_empty() => Err(Failure::new("`vidtune doctor --json` names no library of libav")),
        None => Ok(files),
    }
}

/// File name and place of every library that `ldd` resolves, the C library's own left out.
fn closure(binary: &Path) -> Result<BTreeMap<String, PathBuf>> {
    parse_ldd(&process::capture(Command::new("ldd").arg(binary))?)
}

fn parse_ldd(text: &str) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        let Some((name, rest)) = line.split_once(" => ") else { continue };
        if is_system(name) {
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

/// The copy must decode a clip in an empty environment, and open every library on the way from its own folder.
fn verify(folder: &Path) -> Result<()> {
    let binary = folder.join("vidtune");
    let libraries = folder.join("lib");
    // AV1: its decoder is not libav's own, so that more than libav's libraries must work.
    let clip = process::root().join("fixtures/media/clips/av1.mp4");
    let mut command = Command::new(&binary);
    command.args(["bench", "decode", "--num-frames", "2", "--repeats", "1", "--video"]).arg(clip);
    // The GNU C library's linker writes what it opens to stderr.
    command.env_clear().env("LD_DEBUG", "libs").current_dir("/");
    let output =
        command.output().map_err(|error| Failure::new(format!("`{}` did not start: {error}", binary.display())))?;
    let trace = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let said: Vec<&str> = trace.lines().filter(|line| traced(line).is_none()).collect();
        return Err(Failure::new(format!("`{}` does not run alone:\n{}", binary.display(), said.join("\n"))));
    }
    let opened = parse_trace(&trace);
    for (name, path) in &opened {
        // A place that was tried in vain opened nothing.
        if !path.starts_with(&libraries) && !is_system(name) && path.exists() {
            return Err(Failure::new(format!("`{name}` is still opened from `{}`", path.display())));
        }
    }
    for path in libav(&binary)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !opened.contains_key(&*name) {
            return Err(Failure::new(format!("the dynamic linker does not tell that it opened `{name}`")));
        }
    }
    let own = opened.values().filter(|path| path.starts_with(&libraries)).count();
    eprintln!(
        "decoded a clip with {own} libraries opened from {}, and only the C library's from elsewhere",
        libraries.display()
    );
    Ok(())
}

/// Name and place of every library that the dynamic linker's trace says was searched and opened.
fn parse_trace(text: &str) -> BTreeMap<String, PathBuf> {
    let mut opened = BTreeMap::new();
    let mut name = None;
    for line in text.lines() {
        let Some(line) = traced(line) else { continue };
        if let Some(rest) = line.strip_prefix("find library=") {
            name = rest.split_once(" [").map(|(name, _)| name.to_owned());
        } else if let (Some(path), Some(name)) = (line.strip_prefix("trying file="), &name) {
            // Of the places that are tried for a library, the last is where it was.
            opened.insert(name.clone(), PathBuf::from(path));
        }
    }
    opened
}

/// What the linker says on a line; `None` for a line that is not the linker's. Its lines begin with the process's number.
fn traced(line: &str) -> Option<&str> {
    let (number, said) = line.split_once(":\t")?;
    number.trim_start().bytes().all(|byte| byte.is_ascii_digit()).then(|| said.trim_start())
}

fn is_system(name: &str) -> bool {
    SYSTEM.iter().any(|system| name.starts_with(system))
}

/// Names each library with the Debian package it came from, because its licence is that package's.
fn write_library_list(folder: &Path) -> Result<()> {
    let mut text = String::from(
        "The folder lib/ holds unmodified shared libraries of the system this was built on.\n\
         FFmpeg's libraries and x264 are under the GNU (L)GPL; their sources are the named packages' sources.\n\n",
    );
    let libraries = folder.join("lib");
    let cannot_list = |error| cannot("list", &libraries, &error);
    let entries = fs::read_dir(&libraries).map_err(cannot_list)?;
    let mut names =
        entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>().map_err(cannot_list)?;
    names.sort();
    for name in &names {
        let (path, name) = (libraries.join(name), name.to_string_lossy());
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

    #[test]
    fn the_binary_tells_where_its_libav_is() {
        let text = r#"{"libav": [{"name": "libavutil", "file": "/lib/libavutil.so.57"}], "libav_error": null}"#;
        assert_eq!(parse_doctor(text).unwrap(), [Path::new("/lib/libavutil.so.57")]);
        let check = |text: &str, expected: &str| assert_eq!(parse_doctor(text).unwrap_err().message, expected);
        check(r#"{"libav": null, "libav_error": "none here"}"#, "none here");
        check(r#"{"libav": []}"#, "`vidtune doctor --json` names no library of libav");
        let relative = r#"{"libav": [{"file": "libavutil.so.57"}]}"#;
        check(relative, "the dynamic linker does not tell where `libavutil.so.57` lies");
    }

    #[test]
    fn the_linkers_trace_tells_what_was_opened() {
        let text = "     7:\tfind library=libavutil.so.57 [0]; searching\n     7:\t search path=/d/lib\t\t(RPATH)\n\
                         7:\t  trying file=/d/lib/glibc-hwcaps/libavutil.so.57\n     7:\t  trying file=/d/lib/libavutil.so.57\n\
                         7:\t\n     7:\tfind library=libm.so.6 [0]; searching\n     7:\t search cache=/etc/ld.so.cache\n\
                         7:\t  trying file=/lib/libm.so.6\n2 of 40 frames: 3 frames/s\n";
        let found: Vec<(String, PathBuf)> = parse_trace(text).into_iter().collect();
        let expected = [("libavutil.so.57", "/d/lib/libavutil.so.57"), ("libm.so.6", "/lib/libm.so.6")];
        assert_eq!(found, expected.map(|(name, path)| (name.to_owned(), PathBuf::from(path))));
    }
}
