//! Writing that is all or nothing: a temporary name beside the target, fsync, rename, fsync of the folder. Owns temporary
//! names and their removal; never touches a path that this program did not name itself.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{HubError, Result};

/// Part of every temporary name; nothing without it is ever removed.
const MARK: &str = ".vidtune-tmp-";

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Writes `bytes` to `path`; a reader sees the old file or the new one, never a part.
///
/// # Errors
/// [`HubError::Io`] with the path; the target is then untouched.
pub fn atomic_write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    atomic_file(path, |file| file.write_all(bytes).map_err(|e| HubError::io("write", path, e)))
}

/// As [`atomic_write`], with the content produced by `fill` (streaming). An error of `fill` leaves the target untouched.
/// A link stays, and what it points to is written; a device or a pipe is written to as it stands.
///
/// # Errors
/// Those of `fill`, [`HubError::IsFolder`] and [`HubError::Io`].
pub fn atomic_file(path: impl AsRef<Path>, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let path = &match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => return Err(HubError::IsFolder { path: path.to_path_buf() }),
        Ok(meta) if !meta.is_file() => {
            let mut file = OpenOptions::new().write(true).open(path).map_err(|e| HubError::io("open", path, e))?;
            return fill(&mut file);
        }
        _ => behind_links(path)?,
    };
    let temporary = temporary_beside(path)?;
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|e| HubError::io("create", &temporary, e))?;
        fill(&mut file)?;
        file.sync_all().map_err(|e| HubError::io("flush", &temporary, e))?;
        drop(file);
        fs::rename(&temporary, path).map_err(|e| HubError::io("rename to", path, e))
    })();
    if let Err(error) = written {
        // The reason of the failure matters more than a leftover that could not be removed.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_dir(parent_of(path))
}

/// Where a link points to, by way of other links; a path that is no link is itself, and the end need not exist.
fn behind_links(path: &Path) -> Result<PathBuf> {
    // As many as Linux follows.
    const MOST: usize = 40;
    let mut path = path.to_path_buf();
    for _ in 0..MOST {
        if !path.symlink_metadata().is_ok_and(|meta| meta.is_symlink()) {
            break;
        }
        let link = fs::read_link(&path).map_err(|e| HubError::io("follow", &path, e))?;
        path = parent_of(&path).join(link);
    }
    Ok(path)
}

/// Makes the folder `target` at once: `fill` writes into a temporary folder beside it, everything is flushed, then it is
/// renamed.
///
/// # Errors
/// [`HubError::Exists`] when `target` is there already, the errors of `fill`, and [`HubError::Io`].
pub fn atomic_dir<E: From<HubError>>(
    target: impl AsRef<Path>,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let target = target.as_ref();
    if target.symlink_metadata().is_ok() {
        return Err(HubError::Exists { path: target.to_path_buf() }.into());
    }
    let temporary = fill_temporary(target, fill)?;
    rename_dir(&temporary, target)?;
    Ok(sync_dir(parent_of(target))?)
}

/// As [`atomic_dir`], but an existing folder is replaced: it is moved aside, the new one takes its name, and the old one is
/// removed last. After a crash between the two renames the old folder still lies beside the target, and
/// [`remove_leftovers`] puts it back.
///
/// # Errors
/// The errors of `fill`, and [`HubError::Io`]; the old folder is then in place.
pub fn replace_dir<E: From<HubError>>(
    target: impl AsRef<Path>,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let target = target.as_ref();
    if target.symlink_metadata().is_err() {
        return atomic_dir(target, fill);
    }
    let temporary = fill_temporary(target, fill)?;
    let aside = beside(target, "old-")?;
    rename_dir(target, &aside)?;
    if let Err(error) = rename_dir(&temporary, target) {
        // Put the old folder back; the first reason is the one to report.
        let _ = fs::rename(&aside, target);
        return Err(error.into());
    }
    sync_dir(parent_of(target))?;
    fs::remove_dir_all(&aside).map_err(|e| HubError::io("remove", &aside, e))?;
    Ok(())
}

/// Removes what a killed run left of `target` (temporary files and folders of this program, for this name only), and puts
/// back a folder that [`replace_dir`] had moved aside. Returns what was removed. The caller must be the only writer.
///
/// # Errors
/// [`HubError::Io`].
pub fn remove_leftovers(target: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let target = target.as_ref();
    let parent = parent_of(target);
    let Some(name) = target.file_name() else {
        return Err(HubError::NoFileName { path: target.to_path_buf() });
    };
    let prefix = format!(".{}{MARK}", name.to_string_lossy());
    let mut removed = Vec::new();
    if !parent.is_dir() {
        return Ok(removed);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(parent).map_err(|e| HubError::io("list", parent, e))? {
        let entry = entry.map_err(|e| HubError::io("list", parent, e))?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            found.push(entry.path());
        }
    }
    found.sort();
    for path in found {
        let aside = path.file_name().is_some_and(|n| n.to_string_lossy()[prefix.len()..].starts_with("old-"));
        if aside && target.symlink_metadata().is_err() {
            rename_dir(&path, target)?;
            continue;
        }
        let is_dir = path.symlink_metadata().map_err(|e| HubError::io("inspect", &path, e))?.is_dir();
        let result = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        result.map_err(|e| HubError::io("remove", &path, e))?;
        removed.push(path);
    }
    Ok(removed)
}

fn fill_temporary<E: From<HubError>>(target: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<PathBuf, E> {
    let temporary = temporary_beside(target)?;
    fs::create_dir(&temporary).map_err(|e| HubError::io("create", &temporary, e))?;
    let filled = fill(&temporary).and_then(|()| Ok(sync_tree(&temporary)?));
    if let Err(error) = filled {
        // As above: a leftover that cannot be removed must not hide the reason.
        let _ = fs::remove_dir_all(&temporary);
        return Err(error);
    }
    Ok(temporary)
}

fn temporary_beside(target: &Path) -> Result<PathBuf> {
    beside(target, "")
}

fn beside(target: &Path, kind: &str) -> Result<PathBuf> {
    let Some(name) = target.file_name() else {
        return Err(HubError::NoFileName { path: target.to_path_buf() });
    };
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!("{MARK}{kind}{}-{count}", std::process::id()));
    Ok(target.with_file_name(temporary))
}

fn rename_dir(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| HubError::io("rename to", to, e))
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Flushes every file and folder below `dir`, and `dir` itself.
fn sync_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| HubError::io("list", dir, e))? {
        let path = entry.map_err(|e| HubError::io("list", dir, e))?.path();
        let kind = path.symlink_metadata().map_err(|e| HubError::io("inspect", &path, e))?.file_type();
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            let file = File::open(&path).map_err(|e| HubError::io("open", &path, e))?;
            file.sync_all().map_err(|e| HubError::io("flush", &path, e))?;
        }
    }
    sync_dir(dir)
}

/// Makes renames inside `dir` durable. Only Unix lets a folder be flushed; elsewhere the rename itself has to do.
fn sync_dir(dir: &Path) -> Result<()> {
    if cfg!(unix) {
        let file = File::open(dir).map_err(|e| HubError::io("open", dir, e))?;
        file.sync_all().map_err(|e| HubError::io("flush", dir, e))?;
    }
    Ok(())
}
