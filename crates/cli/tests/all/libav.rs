//! When the binary opens libav, as the dynamic linker tells it, and what a user reads where there is none.
//! The variables that ask the linker are those of the GNU C library.

use std::path::Path;

use serde_json::Value;

use crate::{Run, clip, dataset, record, text_of, vidtune_with};

/// Runs a command with the linker writing every library that it opens to stderr.
fn traced(args: &[&str]) -> Run {
    let run = vidtune_with(args, &[("LD_DEBUG", "files")]).expect(0);
    assert!(run.stderr.contains("calling init: "), "the linker tells nothing: {}", run.stderr);
    run
}

#[test]
fn only_commands_that_need_it_open_libav() {
    for args in [&["--help"][..], &["--version"], &["train", "--help"], &["doctor", "--print-script"]] {
        let run = traced(args);
        let opened: Vec<&str> = run.stderr.lines().filter(|line| line.contains("calling init: ")).collect();
        assert!(!run.stderr.contains("libavutil.so.") && opened.len() < 10, "{args:?}: {opened:?}");
    }
    let frames = tempfile::tempdir().unwrap();
    let out = text_of(frames.path());
    let decodes = ["data", "frames", "--video", &clip("av1.mp4"), "--num-frames", "1", "--out", &out];
    for args in [&["doctor"][..], &decodes] {
        assert!(traced(args).stderr.contains("libavcodec.so."), "{args:?}");
    }
}

#[test]
fn without_libav_the_fix_is_told_and_no_record_is_blamed() {
    let report = vidtune_with(&["doctor", "--json"], &[]).expect(0).json();
    assert_eq!(report["libav_error"], Value::Null);
    let libraries = report["libav"].as_array().unwrap();
    assert_eq!(libraries[0]["name"], "libavutil");

    // The linker takes the first file of the right name, and this one is no library.
    let name = Path::new(libraries[0]["file"].as_str().unwrap()).file_name().unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(name), "").unwrap();
    let place = text_of(folder.path());
    let without = [("LD_LIBRARY_PATH", place.as_str())];

    let run = vidtune_with(&["bench", "decode", "--video", &clip("av1.mp4")], &without).expect(1);
    let lines: Vec<&str> = run.stderr.lines().collect();
    let looked_for = format!("; looked for `{}`, and the dynamic linker says: ", name.display());
    assert!(
        lines[0].starts_with("error: libav cannot be used: FFmpeg ") && lines[0].contains(&looked_for),
        "{lines:?}"
    );
    assert!(lines[1].starts_with("hint: `apt-get install libavutil"), "{lines:?}");

    let data = dataset(folder.path(), &[record("good", &clip("av1.mp4"), "A circle.")]);
    let run = vidtune_with(&["data", "check", "--data", &data], &without).expect(1);
    assert!(run.stderr.contains(", record `good`: libav cannot be used: "), "{}", run.stderr);
    let report = vidtune_with(&["doctor", "--json"], &without).expect(0).json();
    assert_eq!(report["libav"], Value::Null);
    assert!(report["libav_error"].as_str().unwrap().contains(&looked_for), "{report}");
}
