//! Reading of safetensors files through a memory map, with a header that is checked whole before a byte of data is handed
//! out. Owns the format; knows neither shards nor model names.
//!
//! Format: 8 bytes little-endian header length, a JSON header, the data. Offsets in the header count from the start of the
//! data; they must tile the data section exactly, in any order of names. <https://github.com/huggingface/safetensors>

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::Mmap;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use crate::dtype::Dtype;
use crate::error::{HeaderFault, HubError, Result};

/// Greatest header that is accepted, the reference's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The header's one key that is not a tensor.
pub(crate) const METADATA_KEY: &str = "__metadata__";

/// One stored tensor: a window into the mapped file.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// Element type.
    pub dtype: Dtype,
    /// Row-major shape; empty for a scalar.
    pub shape: &'a [usize],
    /// Little-endian elements; no alignment is promised.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.data.len() / self.dtype.size_bytes()
    }
}

/// A checked safetensors file.
pub struct SafeTensors {
    path: PathBuf,
    map: Mmap,
    data_start: usize,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    metadata: Vec<(String, String)>,
    /// The tensor that `get` gave last, counted from 1; 0 before the first.
    given: AtomicUsize,
}

#[derive(Debug, PartialEq)]
struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

impl SafeTensors {
    /// Maps `path` and checks its header: lengths, UTF-8, JSON, names, dtypes, shapes, offsets.
    ///
    /// # Errors
    /// [`HubError::Io`] when the file cannot be opened, [`HubError::Safetensors`] when it breaks the format.
    pub fn open(path: impl AsRef<Path>) -> Result<SafeTensors> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| HubError::io("open", path, e))?;
        let length = file.metadata().map_err(|e| HubError::io("read the size of", path, e))?.len();
        let bad = |fault| HubError::Safetensors { path: path.to_path_buf(), fault };
        if length < 8 {
            return Err(bad(HeaderFault::TooShort { found: length }));
        }
        // SAFETY: the map is private and read-only, and its bytes are only ever read as plain `u8`. Another process that
        // truncates the file while it is mapped can still fault this process; checkpoints are written by rename, so a
        // file that this program wrote is never shortened in place.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| HubError::io("map", path, e))?;
        let (entries, metadata, data_start) = parse(&map).map_err(bad)?;
        let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        let given = AtomicUsize::new(0);
        Ok(SafeTensors { path: path.to_path_buf(), map, data_start, entries, by_name, metadata, given })
    }

    /// The file this was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tensor names, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.entries.iter().map(|e| e.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// The tensor of this name. The memory that the one asked for before took is given back, so that whoever copies a file
    /// tensor by tensor never holds it twice; a view of it stays good, its bytes are then read from the file again.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let index = *self.by_name.get(name)?;
        let before = self.given.swap(index + 1, Ordering::Relaxed);
        if before != 0 && before != index + 1 {
            self.release(&self.entries[before - 1]);
        }
        Some(self.view(&self.entries[index]))
    }

    /// All tensors in the order of their data in the file.
    pub fn iter(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.entries.iter().map(|e| self.view(e))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the file holds no tensor.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The `__metadata__` table, in file order.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    /// Bytes of the data section.
    pub fn data_bytes(&self) -> u64 {
        (self.map.len() - self.data_start) as u64
    }

    /// Takes the pages of a tensor out of this process's memory. They stay in the system's cache of files.
    #[cfg(unix)]
    fn release(&self, entry: &Entry) {
        let (start, length) = (self.data_start + entry.start, entry.end - entry.start);
        if length > 0 {
            // SAFETY: nobody writes to this map, so that a page that is read again holds the file's bytes as before.
            // A system that refuses keeps the pages, which costs memory alone.
            let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, length) };
        }
    }

    #[cfg(not(unix))]
    fn release(&self, _: &Entry) {}

    fn view<'a>(&'a self, entry: &'a Entry) -> TensorView<'a> {
        TensorView {
            name: &entry.name,
            dtype: entry.dtype,
            shape: &entry.shape,
            data: &self.map[self.data_start + entry.start..self.data_start + entry.end],
        }
    }
}

impl fmt::Debug for SafeTensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SafeTensors").field("path", &self.path).field("tensors", &self.entries.len()).finish()
    }
}

type Parsed = (Vec<Entry>, Vec<(String, String)>, usize);

/// Checks a whole file given as bytes; returns the entries by data order, the metadata and where the data starts.
fn parse(bytes: &[u8]) -> Result<Parsed, HeaderFault> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(HeaderFault::TooShort { found: bytes.len() as u64 });
    };
    let header_len = u64::from_le_bytes(*length);
    if header_len > MAX_HEADER_BYTES {
        return Err(HeaderFault::HeaderTooLarge { found: header_len, limit: MAX_HEADER_BYTES });
    }
    if header_len > rest.len() as u64 {
        return Err(HeaderFault::HeaderCut { header: header_len, available: rest.len() as u64 });
    }
    let (header, data) = rest.split_at(header_len as usize);
    let text = std::str::from_utf8(header).map_err(|e| HeaderFault::NotUtf8 { at: e.valid_up_to() })?;
    if !text.starts_with('{') {
        return Err(HeaderFault::BadJson { message: "it does not start with `{`".to_owned() });
    }
    let header: Header = serde_json::from_str(text).map_err(|e| HeaderFault::BadJson { message: e.to_string() })?;
    if let Some(name) = header.duplicate {
        return Err(HeaderFault::Duplicate { name });
    }
    let mut entries = Vec::with_capacity(header.tensors.len());
    for (name, info) in header.tensors {
        entries.push(check_entry(name, info)?);
    }
    entries.sort_by(|a, b| (a.start, a.end, &a.name).cmp(&(b.start, b.end, &b.name)));
    let mut expected = 0;
    for entry in &entries {
        if entry.start != expected {
            return Err(HeaderFault::BadOffsets {
                name: entry.name.clone(),
                start: entry.start as u64,
                end: entry.end as u64,
                expected: expected as u64,
            });
        }
        expected = entry.end;
    }
    if expected != data.len() {
        return Err(HeaderFault::DataLength { expected: expected as u64, found: data.len() as u64 });
    }
    Ok((entries, header.metadata, 8 + header_len as usize))
}

fn check_entry(name: String, info: Info) -> Result<Entry, HeaderFault> {
    let Some(dtype) = Dtype::from_name(&info.dtype) else {
        return Err(HeaderFault::UnknownDtype { name, dtype: info.dtype });
    };
    let size = info.shape.iter().try_fold(dtype.size_bytes() as u64, |size, &dim| size.checked_mul(dim));
    let shape: Result<Vec<usize>, _> = info.shape.iter().map(|&dim| usize::try_from(dim)).collect();
    let (Some(size), Ok(shape)) = (size, shape) else {
        let shape = info.shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(usize::MAX)).collect();
        return Err(HeaderFault::Overflow { name, shape });
    };
    let [start, end] = info.data_offsets;
    let Some(found) = end.checked_sub(start) else {
        return Err(HeaderFault::BadOffsets { name, start, end, expected: start });
    };
    if found != size {
        return Err(HeaderFault::WrongLength { name, shape, dtype: dtype.name(), expected: size, found });
    }
    let (Ok(start), Ok(end)) = (usize::try_from(start), usize::try_from(end)) else {
        return Err(HeaderFault::Overflow { name, shape });
    };
    Ok(Entry { name, dtype, shape, start, end })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header as it stands, names in file order; a map type would swallow a repeated name.
#[derive(Default)]
struct Header {
    tensors: Vec<(String, Info)>,
    metadata: Vec<(String, String)>,
    duplicate: Option<String>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        let mut seen = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                header.duplicate.get_or_insert_with(|| name.clone());
            }
            if name == METADATA_KEY {
                header.metadata = map.next_value::<Pairs>()?.0;
            } else {
                let info = map.next_value().map_err(|e| de::Error::custom(format_args!("tensor `{name}`: {e}")))?;
                header.tensors.push((name, info));
            }
        }
        Ok(header)
    }
}

/// A JSON object of strings in its own order.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pairs, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}

#[cfg(test)]
mod tests;
