//! Owns folders of cached entries: bytes under a budget, found by a key, checked when they are read. It refuses to know what
//! is in an entry and what its key stands for, and it never touches a file that does not bear the name of an entry.
//!
//! ```text
//! DIR/MARK                  marks the folder; locked while it is changed; holds the bytes of all entries
//! DIR/ab/cdef….SUFFIX       an entry: ab cdef… is its key; its time of modification is that of its last use
//! DIR/ab/.cdef….SUFFIX.part an entry that is being written, by whoever holds the lock
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

/// The BLAKE3 hash of some bytes.
pub type Hash = [u8; 32];

/// What a folder holds: the names by which its files are told from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreKind {
    /// The file that marks a folder as one of this kind.
    pub mark: &'static str,
    /// What stands in it; another text means that nothing is known of the folder's size.
    pub format: &'static str,
    /// How the names of entries end, the dot included.
    pub suffix: &'static str,
    /// How entries begin.
    pub magic: &'static [u8; 8],
}

const PARTIAL: &str = ".part";
/// Magic, key, length of the content, checksum of all others and of the content.
const HEADER: usize = 8 + 32 + 8 + 32;
/// Eviction makes room for this part of the budget at once, so that the folder is not listed for every entry.
const SLACK: u64 = 16;
/// Entries turned away in a full folder until it is listed again.
const PATIENCE: u64 = 64;

/// What is written into [`StoreKind::mark`].
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    format: String,
    bytes: u64,
}

/// What a look-up found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// The content, and the size of the file.
    Entry(Vec<u8>, u64),
    /// There is no such entry.
    Nothing,
    /// A file that does not hold what it should, and why.
    Damaged(String),
}

/// What became of an entry.
#[derive(Debug, PartialEq, Eq)]
pub enum Kept {
    /// It stands, in this many bytes.
    Stored(u64),
    /// The budget is filled by entries that this process uses itself.
    NoRoom,
}

/// A folder of entries.
#[derive(Debug)]
pub struct Store {
    kind: StoreKind,
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
    pub fn open(kind: StoreKind, dir: &Path, budget: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let store = Self { kind, dir: dir.to_path_buf(), budget, state: Mutex::default() };
        let mut ledger = Ledger::lock(kind, dir)?;
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
        match check_entry(self.kind, &bytes, key) {
            Ok(()) => {
                // Without the right to do so the entry looks older than it is, and no more than that.
                let _ = file.set_modified(SystemTime::now());
                self.state.lock().used.insert(start_of(key));
                let num_bytes = bytes.len() as u64;
                let mut content = bytes;
                content.drain(..HEADER);
                Found::Entry(content, num_bytes)
            }
            Err(what) => Found::Damaged(format!("`{}`: {what}", path.display())),
        }
    }

    /// Writes an entry, in place of one of the same key, and evicts others where the budget asks for it.
    ///
    /// # Errors
    /// The folder cannot be written to. Nothing half-written stands under an entry's name then.
    pub fn put(&self, key: &Hash, content: &[u8]) -> io::Result<Kept> {
        let head = head_of(self.kind, content, key);
        let (path, num_bytes) = (self.path_of(key), (HEADER + content.len()) as u64);
        let mut state = self.state.lock();
        let mut ledger = Ledger::lock(self.kind, &self.dir)?;
        let mut total = match ledger.total {
            Some(total) => total,
            None => Listing::of(self.kind, &self.dir)?.num_bytes(),
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
        if let Err(error) = write(&path, &head, content) {
            ledger.write(total)?;
            return Err(io::Error::new(error.kind(), format!("`{}`: {error}", path.display())));
        }
        state.used.insert(start_of(key));
        Ok(Kept::Stored(num_bytes))
    }

    fn path_of(&self, key: &Hash) -> PathBuf {
        let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        self.dir.join(&name[..2]).join(format!("{}{}", &name[2..], self.kind.suffix))
    }

    /// Removes entries until `needed` bytes more fit, and some beyond that; returns the bytes that are left. What a killed
    /// writer left goes as well: the caller holds the lock, so nobody is writing.
    fn evict(&self, used: &HashSet<u64>, needed: u64) -> io::Result<u64> {
        let listing = Listing::of(self.kind, &self.dir)?;
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
pub fn survey(kind: StoreKind, dir: &Path) -> io::Result<Option<(u64, u64)>> {
    if !dir.join(kind.mark).is_file() {
        return Ok(None);
    }
    let listing = Listing::of(kind, dir)?;
    Ok(Some((listing.entries.len() as u64, listing.num_bytes())))
}

/// Removes every entry of a folder that is a cache; returns their number and bytes.
///
/// # Errors
/// The folder cannot be listed or written to.
pub fn clear(kind: StoreKind, dir: &Path) -> io::Result<(u64, u64)> {
    let mut ledger = Ledger::lock(kind, dir)?;
    let listing = Listing::of(kind, dir)?;
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
    fn of(kind: StoreKind, dir: &Path) -> io::Result<Self> {
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
                if let Some(rest) = key_part(kind, name) {
                    let start = u64::from_str_radix(&format!("{first}{}", &rest[..14]), 16).unwrap_or_default();
                    let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    listing.entries.push(Listed { path, used, num_bytes: meta.len(), start });
                } else if name
                    .strip_prefix('.')
                    .and_then(|n| n.strip_suffix(PARTIAL))
                    .is_some_and(|n| key_part(kind, n).is_some())
                {
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
fn key_part(kind: StoreKind, name: &str) -> Option<&str> {
    name.strip_suffix(kind.suffix).filter(|rest| is_hex(rest, 62))
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

fn write(path: &Path, head: &[u8], content: &[u8]) -> io::Result<()> {
    if let Some(shelf) = path.parent() {
        fs::create_dir_all(shelf)?;
    }
    // Its name is that of the entry: the next writer of it writes over what a kill left.
    let name = format!(".{}{PARTIAL}", path.file_name().unwrap_or_default().to_string_lossy());
    let partial = path.with_file_name(name);
    let written = File::create(&partial)
        .and_then(|mut file| file.write_all(head).and_then(|()| file.write_all(content)))
        .and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // The reason of the failure matters more than a leftover.
        let _ = fs::remove_file(&partial);
    }
    written
}

fn head_of(kind: StoreKind, content: &[u8], key: &Hash) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEADER);
    head.extend_from_slice(kind.magic);
    head.extend_from_slice(key);
    head.extend_from_slice(&(content.len() as u64).to_le_bytes());
    let checksum = checksum(&head, content);
    head.extend_from_slice(&checksum);
    head
}

/// Whether a file holds the entry of a key behind its head, and why not.
fn check_entry(kind: StoreKind, bytes: &[u8], key: &Hash) -> Result<(), String> {
    let Some((head, content)) = bytes.split_at_checked(HEADER) else {
        return Err(format!("it ends after {} bytes", bytes.len()));
    };
    let (head, sum) = head.split_at(HEADER - 32);
    let length = head[40..48].iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
    if &head[..8] != kind.magic {
        return Err("it does not begin as an entry does".to_owned());
    }
    if head[8..40] != key[..] {
        return Err("it belongs to another key".to_owned());
    }
    if content.len() as u64 != length {
        return Err(format!("expected {length} bytes after its head, found {}", content.len()));
    }
    if checksum(head, content)[..] != *sum { Err("its checksum is wrong".to_owned()) } else { Ok(()) }
}

fn checksum(head: &[u8], content: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    *hasher.update(head).update(content).finalize().as_bytes()
}

/// The folder's mark, locked until it is dropped.
struct Ledger {
    kind: StoreKind,
    file: File,
    /// Bytes of all entries; `None` where the file does not say.
    total: Option<u64>,
}

impl Ledger {
    fn lock(kind: StoreKind, dir: &Path) -> io::Result<Self> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join(kind.mark))?;
        file.lock()?;
        let mut text = String::new();
        // A text that a kill cut short says nothing; the folder itself does.
        let _ = file.read_to_string(&mut text);
        let mark: Option<Mark> = serde_json::from_str(&text).ok();
        Ok(Self { kind, file, total: mark.filter(|mark| mark.format == kind.format).map(|mark| mark.bytes) })
    }

    fn write(&mut self, total: u64) -> io::Result<()> {
        let text = serde_json::to_string(&Mark { format: self.kind.format.to_owned(), bytes: total })?;
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())?;
        self.total = Some(total);
        Ok(())
    }
}

/// The key of an entry: a hash of everything that its content depends on, each part after its length.
#[derive(Debug, Clone)]
pub struct KeyHasher(blake3::Hasher);

impl KeyHasher {
    /// Begins with what the content is.
    pub fn new(what: &str) -> Self {
        Self(blake3::Hasher::new()).text(what)
    }

    /// One more part.
    pub fn bytes(mut self, part: &[u8]) -> Self {
        self.0.update(&(part.len() as u64).to_le_bytes()).update(part);
        self
    }

    /// One more part.
    pub fn text(self, part: &str) -> Self {
        self.bytes(part.as_bytes())
    }

    /// The key.
    pub fn finish(self) -> Hash {
        *self.0.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests;
