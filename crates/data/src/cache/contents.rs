//! Owns the identity of media files by what they hold: a hash of their bytes, computed once while a file stays as it is.
//! It refuses to know what is decoded from them.

use std::collections::HashMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use hub::store::Hash;
use media::{MediaFile, file_of};
use parking_lot::Mutex;

/// A file that was written less than this before it was looked at may be written again under the same times: such a hash
/// is not remembered.
const SETTLED: Duration = Duration::from_secs(2);

/// What changes whenever a file does: identity, size, and the times of its content and of its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([u64; 7]);

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()].map(|part| part as u64);
        Self([meta.dev(), meta.ino(), meta.size(), times[0], times[1], times[2], times[3]])
    }

    /// Whether the last change lies far enough back for the next one to show in the times.
    fn is_settled(&self) -> bool {
        let last = self.0[3].max(self.0[5]);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        now.as_secs() > last.saturating_add(SETTLED.as_secs())
    }
}

/// What one or several files hold, and how they looked when it was found out.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(super) hash: Hash,
    files: Vec<(PathBuf, Stamp)>,
}

impl Content {
    /// Whether the files still look as they did when they were hashed: only then did a reader read that content.
    pub fn is_unchanged(&self) -> bool {
        self.files
            .iter()
            .all(|(path, stamp)| std::fs::metadata(file_of(path)).is_ok_and(|meta| Stamp::of(&meta) == *stamp))
    }
}

/// The hashes of the files met so far.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// By path and stamp, both in one short hash: the table grows with the files of a dataset.
    known: Mutex<HashMap<[u8; 16], Hash>>,
    hashed: AtomicU64,
}

impl Contents {
    /// The content of files in this order.
    ///
    /// # Errors
    /// A file cannot be read, is no regular file, or changes meanwhile.
    pub fn of(&self, paths: &[&Path]) -> io::Result<Content> {
        let mut files = Vec::with_capacity(paths.len());
        let mut all = blake3::Hasher::new();
        for path in paths {
            let (hash, stamp) = self.of_one(path)?;
            all.update(&hash);
            files.push((path.to_path_buf(), stamp));
        }
        Ok(Content { hash: *all.finalize().as_bytes(), files })
    }

    /// Files that were read to be hashed.
    pub fn num_hashed(&self) -> u64 {
        self.hashed.load(Ordering::Relaxed)
    }

    fn of_one(&self, path: &Path) -> io::Result<(Hash, Stamp)> {
        let meta = std::fs::metadata(file_of(path))?;
        if !meta.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        // The path of a part of an archive names its range as well.
        let stamp = Stamp::of(&meta);
        let name = name_of(path, &stamp);
        if let Some(hash) = self.known.lock().get(&name) {
            return Ok((*hash, stamp));
        }
        let file = MediaFile::open(path)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&file)?;
        if Stamp::of(&file.metadata()?) != stamp {
            return Err(io::Error::other("the file changed while it was read"));
        }
        self.hashed.fetch_add(1, Ordering::Relaxed);
        let hash = *hasher.finalize().as_bytes();
        if stamp.is_settled() {
            self.known.lock().insert(name, hash);
        }
        Ok((hash, stamp))
    }
}

fn name_of(path: &Path, stamp: &Stamp) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for part in stamp.0 {
        hasher.update(&part.to_le_bytes());
    }
    hasher.update(path.as_os_str().as_bytes());
    let mut name = [0; 16];
    hasher.finalize_xof().fill(&mut name);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_counts_and_not_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("a"), "one").unwrap();
        std::fs::write(at("b"), "one").unwrap();
        std::fs::write(at("c"), "two").unwrap();
        let contents = Contents::default();
        let of = |names: &[&str]| {
            let paths: Vec<PathBuf> = names.iter().map(|name| at(name)).collect();
            contents.of(&paths.iter().map(PathBuf::as_path).collect::<Vec<_>>())
        };
        assert_eq!(of(&["a"]).unwrap().hash, of(&["b"]).unwrap().hash);
        assert_ne!(of(&["a"]).unwrap().hash, of(&["c"]).unwrap().hash);
        assert_ne!(of(&["a", "c"]).unwrap().hash, of(&["c", "a"]).unwrap().hash);
        // The same path, size and name with other bytes.
        let before = of(&["a"]).unwrap();
        assert!(before.is_unchanged());
        std::fs::write(at("a"), "six").unwrap();
        assert_ne!(of(&["a"]).unwrap().hash, before.hash);
        assert!(of(&["none"]).is_err() && contents.of(&[dir.path()]).is_err());
    }

    #[test]
    fn a_file_that_stays_is_hashed_once() {
        // A file of the repository, which nobody has written in the last two seconds.
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/media/clips/h264_small.mp4");
        let contents = Contents::default();
        let first = contents.of(&[&path]).unwrap();
        assert_eq!(contents.of(&[&path]).unwrap().hash, first.hash);
        assert_eq!(contents.num_hashed(), 1);
        assert_eq!(first.hash, *blake3::hash(blake3::hash(&std::fs::read(&path).unwrap()).as_bytes()).as_bytes());
    }
}
