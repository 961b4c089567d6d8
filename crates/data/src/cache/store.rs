//! Owns the files of the cache: entries under a budget of bytes, found by a key, checked when they are read.
//! It refuses to know what is in an entry, and it never touches a file that does not bear the name of an entry.
//!
//! ```text
//! DIR/vidtune-frames.json     marks the folder; locked while it is changed; holds the bytes of all entries
//! DIR/ab/cdef….frames         an entry: ab cdef… is its key; its time of modification is that of its last use
//! DIR/ab/.cdef….frames.part   an entry that is being written, by whoever holds the lock
//! ```
//! Readers need no lock: an entry appears by a rename, holds its own key and a checksum, and is not flushed to the disk,
//! because an entry that a power cut leaves half-written is a miss. All writers of all processes stand in one line.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::contents::Hash;

/// The file that marks a folder as a cache.
pub(super) const MARK: &str = "vidtune-frames.json";
const FORMAT: &str = "vidtune frame cache 1";
const SUFFIX: &str = ".frames";
const PARTIAL: &str = ".part";
const MAGIC: &[u8; 8] = b"VTFRAME1";
/// Magic, key, length before packing, length packed, checksum of all others and of what follows.
const HEADER: usize = 8 + 32 + 8 + 8 + 32;
/// zstd's fastest ordinary level: of frames of films at 336x336, as differences between neighbours, it makes 2.3 to 4.9
/// times less and is undone at 1.1 to 1.9 GB/s (2 ms for 8 frames); lz4 makes 1.3 to 2.7 times less at 1.6 to 2.2 GB/s,
/// and level 3 of zstd no less than level 1.
const LEVEL: i32 = 1;
/// Eviction makes room for this part of the budget at once, so that the folder is not listed for every entry.
const SLACK: u64 = 16;
/// Entries turned away in a full folder until it is listed again.
const PATIENCE: u64 = 64;

/// What is written into [`MARK`].
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    format: String,
    bytes: u64,
}

/// What a look-up found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The content, and the size of the file.
    Entry(Vec<u8>, u64),
    /// There is no such entry.
    Nothing,
    /// A file that does not hold what it should, and why.
    Damaged(String),
}

/// What became of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// It stands, in this many bytes.
    Stored(u64),
    /// The budget is filled by entries that this process uses itself.
    NoRoom,
}

/// A folder of entries.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    budget: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Starts of the keys of the entries that this process read or wrote. They are not evicted: a pass over more clips
    /// than fit would otherwise throw each of them away shortly before its next use.
    used: HashSet<u64>,
    /// Entries turned away since the folder was last listed.
    turned_away: u64,
}

impl Store {
    /// Opens or makes a folder. Entries beyond the budget are removed, the least recently used first.
    ///
    /// # Errors
    /// The folder cannot be made, listed or written to.
    pub fn open(dir: &Path, budget: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let store = Self { dir: dir.to_path_buf(), budget, state: Mutex::default() };
        let mut ledger = Ledger::lock(dir)?;
        let total = store.evict(&HashSet::new(), 0)?;
        ledger.write(total)?;
        Ok(store)
    }

    /// Looks an entry up and marks it as used now.
    pub fn get(&self, key: &Hash) -> Found {
        let path = self.path_of(key);
        let (file, bytes) = match read(&path) {
            Ok(read) => read,
            // A file may stand where the folder of the entry would be: then there is no entry either.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Found::Nothing;
            }
            Err(error) => return Found::Damaged(format!("`{}`: {error}", path.display())),
        };
        match unpack(&bytes, key) {
            Ok(content) => {
                // Without the right to do so the entry looks older than it is, and no more than that.
                let _ = file.set_modified(SystemTime::now());
                self.state.lock().used.insert(start_of(key));
                Found::Entry(content, bytes.len() as u64)
            }
            Err(what) => Found::Damaged(format!("`{}`: {what}", path.display())),
        }
    }

    /// Writes an entry, in place of one of the same key, and evicts others where the budget asks for it.
    ///
    /// # Errors
    /// The folder cannot be written to. Nothing half-written stands under an entry's name then.
    pub fn put(&self, key: &Hash, content: &[u8]) -> io::Result<Kept> {
        let bytes = pack(content, key)?;
        let (path, num_bytes) = (self.path_of(key), bytes.len() as u64);
        let mut state = self.state.lock();
        let mut ledger = Ledger::lock(&self.dir)?;
        let mut total = match ledger.total {
            Some(total) => total,
            None => Listing::of(&self.dir)?.num_bytes(),
        };
        let replaced = fs::symlink_metadata(&path).map_or(0, |meta| meta.len());
        if total.saturating_sub(replaced) + num_bytes > self.budget {
            let is_hopeless = !state.turned_away.is_multiple_of(PATIENCE);
            if !is_hopeless {
                total = self.evict(&state.used, num_bytes)?;
                ledger.write(total)?;
            }
            // What is replaced may be gone by now.
            let replaced = fs::symlink_metadata(&path).map_or(0, |meta| meta.len());
            if is_hopeless || total.saturating_sub(replaced) + num_bytes > self.budget {
                state.turned_away += 1;
                return Ok(Kept::NoRoom);
            }
            state.turned_away = 0;
        }
        let replaced = fs::symlink_metadata(&path).map_or(0, |meta| meta.len());
        // Counted before it stands: a kill in between leaves a sum that is too large, and the next listing corrects it.
        ledger.write(total.saturating_sub(replaced) + num_bytes)?;
        if let Err(error) = write(&path, &bytes) {
            ledger.write(total)?;
            return Err(io::Error::new(error.kind(), format!("`{}`: {error}", path.display())));
        }
        state.used.insert(start_of(key));
        Ok(Kept::Stored(num_bytes))
    }

    fn path_of(&self, key: &Hash) -> PathBuf {
        let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        self.dir.join(&name[..2]).join(format!("{}{SUFFIX}", &name[2..]))
    }

    /// Removes entries until `needed` bytes more fit, and some beyond that; returns the bytes that are left. What a killed
    /// writer left goes as well: the caller holds the lock, so nobody is writing.
    fn evict(&self, used: &HashSet<u64>, needed: u64) -> io::Result<u64> {
        let listing = Listing::of(&self.dir)?;
        listing.partial.iter().try_for_each(|path| remove(path))?;
        let mut total = listing.num_bytes();
        let mut entries = listing.entries;
        if total + needed <= self.budget {
            return Ok(total);
        }
        let wanted = self.budget.saturating_sub(needed.max(self.budget / SLACK));
        entries.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
        for entry in entries.iter().filter(|entry| !used.contains(&entry.start)) {
            if total <= wanted {
                break;
            }
            remove(&entry.path)?;
            total -= entry.num_bytes;
        }
        Ok(total)
    }
}

/// Number and bytes of the entries of a folder; `None` where it is no cache.
///
/// # Errors
/// The folder cannot be listed.
pub(super) fn survey(dir: &Path) -> io::Result<Option<(u64, u64)>> {
    if !dir.join(MARK).is_file() {
        return Ok(None);
    }
    let listing = Listing::of(dir)?;
    Ok(Some((listing.entries.len() as u64, listing.num_bytes())))
}

/// Removes every entry of a folder that is a cache; returns their number and bytes.
///
/// # Errors
/// The folder cannot be listed or written to.
pub(super) fn clear(dir: &Path) -> io::Result<(u64, u64)> {
    let mut ledger = Ledger::lock(dir)?;
    let listing = Listing::of(dir)?;
    for path in listing.entries.iter().map(|entry| &entry.path).chain(&listing.partial) {
        remove(path)?;
        // A folder that holds anything else stays.
        let _ = path.parent().map(fs::remove_dir);
    }
    ledger.write(0)?;
    Ok((listing.entries.len() as u64, listing.num_bytes()))
}

/// What lies in a folder and is ours.
#[derive(Default)]
struct Listing {
    entries: Vec<Listed>,
    /// What is being written, or was when its writer was killed.
    partial: Vec<PathBuf>,
}

/// An entry as it lies in the folder.
struct Listed {
    path: PathBuf,
    used: SystemTime,
    num_bytes: u64,
    start: u64,
}

impl Listing {
    fn of(dir: &Path) -> io::Result<Self> {
        let mut listing = Self::default();
        for shelf in fs::read_dir(dir)? {
            let shelf = shelf?;
            let name = shelf.file_name();
            let Some(first) = name.to_str().filter(|name| is_hex(name, 2)) else { continue };
            if !shelf.file_type()?.is_dir() {
                continue;
            }
            for file in fs::read_dir(shelf.path())? {
                let path = file?.path();
                // Another process may have removed it since it was listed.
                let Ok(meta) = path.symlink_metadata() else { continue };
                let name = path.file_name().and_then(OsStr::to_str).filter(|_| meta.is_file()).unwrap_or_default();
                if let Some(rest) = key_part(name) {
                    let start = u64::from_str_radix(&format!("{first}{}", &rest[..14]), 16).unwrap_or_default();
                    let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    listing.entries.push(Listed { path, used, num_bytes: meta.len(), start });
                } else if name.strip_prefix('.').and_then(|n| n.strip_suffix(PARTIAL)).and_then(key_part).is_some() {
                    listing.partial.push(path);
                }
            }
        }
        Ok(listing)
    }

    fn num_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.num_bytes).sum()
    }
}

/// The part of the key in an entry's name.
fn key_part(name: &str) -> Option<&str> {
    name.strip_suffix(SUFFIX).filter(|rest| is_hex(rest, 62))
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn start_of(key: &Hash) -> u64 {
    key.iter().take(8).fold(0, |start, byte| start << 8 | u64::from(*byte))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> io::Result<(File, Vec<u8>)> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::with_capacity(file.metadata()?.len() as usize);
    file.read_to_end(&mut bytes)?;
    Ok((file, bytes))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(shelf) = path.parent() {
        fs::create_dir_all(shelf)?;
    }
    // Its name is that of the entry: the next writer of it writes over what a kill left.
    let name = format!(".{}{PARTIAL}", path.file_name().unwrap_or_default().to_string_lossy());
    let partial = path.with_file_name(name);
    let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // The reason of the failure matters more than a leftover.
        let _ = fs::remove_file(&partial);
    }
    written
}

fn pack(content: &[u8], key: &Hash) -> io::Result<Vec<u8>> {
    let packed = zstd::bulk::compress(content, LEVEL)?;
    let mut bytes = Vec::with_capacity(HEADER + packed.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&(packed.len() as u64).to_le_bytes());
    let checksum = checksum(&bytes, &packed);
    bytes.extend_from_slice(&checksum);
    bytes.extend_from_slice(&packed);
    Ok(bytes)
}

fn unpack(bytes: &[u8], key: &Hash) -> Result<Vec<u8>, String> {
    let Some((head, packed)) = bytes.split_at_checked(HEADER) else {
        return Err(format!("it ends after {} bytes", bytes.len()));
    };
    let (head, sum) = head.split_at(HEADER - 32);
    let number = |at: usize| head[at..at + 8].iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
    if &head[..8] != MAGIC {
        return Err("it does not begin as an entry does".to_owned());
    }
    if head[8..40] != key[..] {
        return Err("it belongs to another key".to_owned());
    }
    if packed.len() as u64 != number(48) {
        return Err(format!("expected {} bytes after its head, found {}", number(48), packed.len()));
    }
    if checksum(head, packed)[..] != *sum {
        return Err("its checksum is wrong".to_owned());
    }
    let length = usize::try_from(number(40)).map_err(|_| "it is too large for this machine".to_owned())?;
    let content = zstd::bulk::decompress(packed, length).map_err(|error| error.to_string())?;
    if content.len() != length { Err("it is shorter than it says".to_owned()) } else { Ok(content) }
}

fn checksum(head: &[u8], packed: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    *hasher.update(head).update(packed).finalize().as_bytes()
}

/// The folder's mark, locked until it is dropped.
struct Ledger {
    file: File,
    /// Bytes of all entries; `None` where the file does not say.
    total: Option<u64>,
}

impl Ledger {
    fn lock(dir: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join(MARK))?;
        file.lock()?;
        let mut text = String::new();
        // A text that a kill cut short says nothing; the folder itself does.
        let _ = file.read_to_string(&mut text);
        let mark: Option<Mark> = serde_json::from_str(&text).ok();
        Ok(Self { file, total: mark.filter(|mark| mark.format == FORMAT).map(|mark| mark.bytes) })
    }

    fn write(&mut self, total: u64) -> io::Result<()> {
        let text = serde_json::to_string(&Mark { format: FORMAT.to_owned(), bytes: total })?;
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())?;
        self.total = Some(total);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(first: u8) -> Hash {
        let mut key = [7; 32];
        key[0] = first;
        key
    }

    /// Content that cannot be packed: an entry of it has a size that can be told.
    fn noise(seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..1000).map(|_| next()).collect()
    }

    /// Bytes of an entry of [`noise`], on the safe side.
    const EACH: u64 = 1100;

    /// Says when an entry was used last, in seconds since 1970.
    fn use_at(store: &Store, key: &Hash, seconds: u64) {
        let file = File::open(store.path_of(key)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    }

    fn has(store: &Store, first: u8) -> bool {
        store.path_of(&key(first)).is_file()
    }

    fn fill(dir: &Path, firsts: &[u8]) -> Store {
        let store = Store::open(dir, u64::MAX).unwrap();
        for first in firsts {
            assert!(matches!(store.put(&key(*first), &noise(u64::from(*first))).unwrap(), Kept::Stored(_)));
        }
        store
    }

    #[test]
    fn what_is_put_is_got() {
        let dir = tempfile::tempdir().unwrap();
        let store = fill(dir.path(), &[1, 2]);
        for first in [1, 2] {
            assert!(matches!(store.get(&key(first)), Found::Entry(content, _) if content == noise(u64::from(first))));
        }
        assert_eq!(store.get(&key(3)), Found::Nothing);
        let Kept::Stored(size) = store.put(&key(1), b"other").unwrap() else { panic!("no room") };
        assert_eq!(store.get(&key(1)), Found::Entry(b"other".to_vec(), size));
        let on_disk: u64 = [1, 2].map(|first| fs::metadata(store.path_of(&key(first))).unwrap().len()).iter().sum();
        assert_eq!(survey(dir.path()).unwrap(), Some((2, on_disk)));
        assert_eq!(Ledger::lock(dir.path()).unwrap().total, Some(on_disk));
    }

    #[test]
    fn the_least_recently_used_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = fill(dir.path(), &[1, 2, 3, 4]);
        for (first, seconds) in [(1, 300), (2, 100), (3, 400), (4, 200)] {
            use_at(&store, &key(first), seconds);
        }
        // Another run, with room for four.
        let store = Store::open(dir.path(), 4 * EACH).unwrap();
        assert!((1..=4).all(|first| has(&store, first)));
        assert!(matches!(store.put(&key(5), &noise(5)).unwrap(), Kept::Stored(_)));
        assert_eq!([1, 2, 3, 4, 5].map(|first| has(&store, first)), [true, false, true, true, true]);
        // What it reads is used now, by the clock and for this run.
        assert!(matches!(store.get(&key(4)), Found::Entry(..)));
        assert!(matches!(store.put(&key(6), &noise(6)).unwrap(), Kept::Stored(_)));
        assert_eq!([1, 3, 4, 5, 6].map(|first| has(&store, first)), [false, true, true, true, true]);
        assert!(matches!(store.put(&key(7), &noise(7)).unwrap(), Kept::Stored(_)));
        assert_eq!(store.put(&key(8), &noise(8)).unwrap(), Kept::NoRoom, "the four are this run's own");
        assert_eq!([4, 5, 6, 7, 8].map(|first| has(&store, first)), [true, true, true, true, false]);
        // A smaller budget is kept from the start, and what is larger than all of it never fits.
        let store = Store::open(dir.path(), 2 * EACH).unwrap();
        assert_eq!(survey(dir.path()).unwrap().unwrap().0, 1, "a part of the budget is left free");
        assert_eq!(Store::open(dir.path(), 500).unwrap().put(&key(9), &noise(9)).unwrap(), Kept::NoRoom);
        assert_eq!(survey(dir.path()).unwrap(), Some((0, 0)));
        assert!(matches!(store.put(&key(9), &noise(9)).unwrap(), Kept::Stored(_)), "the folder was emptied meanwhile");
    }

    #[test]
    fn only_its_own_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = fill(dir.path(), &[1, 2]);
        let shelf = store.path_of(&key(1)).parent().unwrap().to_path_buf();
        let foreign = ["notes.txt", "short.frames", ".hidden.frames.part", &"A".repeat(62)];
        let mut kept = vec![dir.path().join("video.mp4"), dir.path().join("zz"), dir.path().join("ab.frames")];
        kept.extend(foreign.iter().map(|name| shelf.join(name)));
        kept.iter().for_each(|path| fs::write(path, "mine").unwrap());
        let link = shelf.join(format!("{}.frames", "b".repeat(62)));
        std::os::unix::fs::symlink(&kept[0], &link).unwrap();
        let name = store.path_of(&key(3)).file_name().unwrap().to_string_lossy().into_owned();
        let partial = shelf.join(format!(".{name}.part"));
        fs::write(&partial, "half").unwrap();
        Store::open(dir.path(), 1).unwrap();
        assert!(!partial.exists() && !has(&store, 1) && !has(&store, 2), "half-written ones go as well");
        fill(dir.path(), &[1, 2]);
        fs::write(&partial, "half").unwrap();
        assert_eq!(clear(dir.path()).unwrap().0, 2);
        assert!(!partial.exists() && !has(&store, 1));
        assert!(kept.iter().all(|path| fs::read(path).unwrap() == b"mine"));
        assert!(link.symlink_metadata().is_ok() && dir.path().join(MARK).is_file());
        assert!(!store.path_of(&key(2)).parent().unwrap().exists(), "an empty folder of its own goes");
        assert_eq!(survey(&shelf).unwrap(), None);
    }

    /// A mark that is lost or wrong is made anew from the folder.
    #[test]
    fn the_sum_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = fill(dir.path(), &[1, 2]);
        for text in ["", "{\"format\":\"vidtune frame cache 1\",\"by", "{\"format\":\"other\",\"bytes\":0}"] {
            fs::write(dir.path().join(MARK), text).unwrap();
            store.put(&key(2), &noise(2)).unwrap();
            assert_eq!(Ledger::lock(dir.path()).unwrap().total, Some(survey(dir.path()).unwrap().unwrap().1));
        }
        // A sum that is too large costs a listing and no entry.
        let text = serde_json::to_string(&Mark { format: FORMAT.to_owned(), bytes: u64::MAX / 2 }).unwrap();
        fs::write(dir.path().join(MARK), text).unwrap();
        let store = Store { budget: 10 * EACH, ..store };
        assert!(matches!(store.put(&key(3), &noise(3)).unwrap(), Kept::Stored(_)));
        assert_eq!(survey(dir.path()).unwrap().unwrap().0, 3);
    }
}
