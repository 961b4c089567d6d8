//! Atomic writing: a failure leaves the target as it was, and leftovers of a killed run go without touching anything else.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::fs;
use std::path::Path;

use hub::{HubError, Result, atomic_dir, atomic_write, remove_leftovers, replace_dir};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn fail(dir: &Path) -> Result<()> {
    fs::write(dir.join("half"), b"half").unwrap();
    Err(HubError::NoCacheDir)
}

#[test]
fn a_file_is_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    atomic_write(&path, b"one").unwrap();
    atomic_write(&path, b"two").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    let failed = hub::atomic_file(&path, |_| Err(HubError::NoCacheDir));
    assert!(failed.is_err());
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(names(dir.path()), ["a.json"]);
    let error = atomic_write(dir.path().join("none/a.json"), b"").unwrap_err();
    assert!(error.to_string().starts_with("cannot create `"), "{error}");
    assert!(matches!(atomic_write("/", b""), Err(HubError::IsFolder { .. })));
}

/// What stands at the target and is no file of its own keeps its nature.
#[cfg(unix)]
#[test]
fn links_pipes_and_folders_are_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("real")).unwrap();
    fs::write(at("real/a"), "old").unwrap();
    std::os::unix::fs::symlink("real/a", at("link")).unwrap();
    std::os::unix::fs::symlink("link", at("link_to_link")).unwrap();
    std::os::unix::fs::symlink("real/b", at("dangling")).unwrap();
    for (name, file) in [("link", "real/a"), ("link_to_link", "real/a"), ("dangling", "real/b")] {
        atomic_write(at(name), name.as_bytes()).unwrap();
        assert!(at(name).symlink_metadata().unwrap().is_symlink(), "{name}");
        assert_eq!(fs::read(at(file)).unwrap(), name.as_bytes());
    }
    assert_eq!(names(&at("real")), ["a", "b"]);

    assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    let pipe = at("pipe");
    let reader = std::thread::spawn(move || fs::read(pipe).unwrap());
    atomic_write(at("pipe"), b"through").unwrap();
    assert!(!at("pipe").symlink_metadata().unwrap().is_file());
    assert_eq!(reader.join().unwrap(), b"through");

    let error = atomic_write(at("real"), b"").unwrap_err();
    assert!(matches!(error, HubError::IsFolder { .. }), "{error}");
    assert_eq!(names(&at("real")), ["a", "b"]);
}

#[test]
fn a_folder_appears_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("checkpoint-1");
    assert!(atomic_dir(&target, fail).is_err());
    assert_eq!(names(dir.path()), [""; 0]);
    atomic_dir::<HubError>(&target, |tmp| {
        assert!(!target.exists());
        fs::create_dir(tmp.join("sub")).unwrap();
        fs::write(tmp.join("sub/x"), b"x").unwrap();
        Ok(())
    })
    .unwrap();
    assert_eq!(names(dir.path()), ["checkpoint-1"]);
    assert_eq!(fs::read(target.join("sub/x")).unwrap(), b"x");
    assert!(matches!(atomic_dir::<HubError>(&target, |_| Ok(())), Err(HubError::Exists { .. })));
}

#[test]
fn a_folder_is_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("final_model");
    for content in ["one", "two"] {
        replace_dir::<HubError>(&target, |tmp| {
            fs::write(tmp.join(content), content).unwrap();
            Ok(())
        })
        .unwrap();
        assert_eq!(names(&target), [content]);
    }
    assert!(replace_dir(&target, fail).is_err());
    assert_eq!(names(&target), ["two"]);
    assert_eq!(names(dir.path()), ["final_model"]);
}

#[test]
fn leftovers_of_a_killed_run_are_removed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at(".final.vidtune-tmp-99-0")).unwrap();
    fs::write(at(".final.vidtune-tmp-99-0/x"), b"").unwrap();
    fs::write(at(".final.vidtune-tmp-99-1"), b"").unwrap();
    fs::write(at(".final-other.vidtune-tmp-99-1"), b"").unwrap();
    fs::write(at(".final.mine"), b"").unwrap();
    // The state after a kill between the two renames of a replacement.
    fs::create_dir(at(".final.vidtune-tmp-old-99-2")).unwrap();
    fs::write(at(".final.vidtune-tmp-old-99-2/kept"), b"").unwrap();
    let removed = remove_leftovers(at("final")).unwrap();
    assert_eq!(removed.len(), 2);
    assert_eq!(names(dir.path()), [".final-other.vidtune-tmp-99-1", ".final.mine", "final"]);
    assert_eq!(names(&at("final")), ["kept"]);
    assert!(remove_leftovers(at("none/final")).unwrap().is_empty());
}
