//! Reading of `pytorch_model.bin`: tensors out of a file of `torch.save`, in its zip format and the one before it, through a
//! memory map. Owns which bytes belong to which tensor; executes nothing, and refuses whatever is not a dict of tensors.
//!
//! Source: `torch/serialization.py` (`_save`, `_legacy_save`).

mod machine;
#[cfg(test)]
mod tests;
mod zip;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use memmap2::Mmap;

use crate::dtype::Dtype;
use crate::error::{HubError, PickleFault, Result};
use crate::safetensors::TensorView;
use machine::{MAX_BYTES, StorageRef, Unpickled, Value};

/// First integer of a file in the older format.
const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const LEGACY_PROTOCOL: i128 = 1001;

/// A checked file of `torch.save`.
pub struct PickleFile {
    path: PathBuf,
    map: Mmap,
    entries: BTreeMap<String, Entry>,
}

/// One tensor of a file.
#[derive(Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Its elements in order.
    Whole(Range<usize>),
    /// Its elements by strides from the first byte on; put in order when they are first asked for.
    Strided { start: usize, strides: Vec<usize>, ordered: OnceLock<Vec<u8>> },
}

impl PickleFile {
    /// Maps `path` and checks all of it that describes tensors.
    ///
    /// # Errors
    /// [`HubError::Io`] when the file cannot be opened, [`HubError::Pickle`] when it is damaged, cut, or holds anything
    /// but a dict of tensors.
    pub fn open(path: impl AsRef<Path>) -> Result<PickleFile> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| HubError::io("open", path, e))?;
        let bad = |fault| HubError::Pickle { path: path.to_path_buf(), fault };
        if file.metadata().map_err(|e| HubError::io("read the size of", path, e))?.len() == 0 {
            return Err(bad(PickleFault::Cut { at: 0 }));
        }
        // SAFETY: as for safetensors, the map is private and read-only, and its bytes are only read as plain `u8`.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| HubError::io("map", path, e))?;
        let entries = parse(&map).map_err(bad)?;
        Ok(PickleFile { path: path.to_path_buf(), map, entries })
    }

    /// The file this was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tensor names, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.entries.keys().map(String::as_str).collect()
    }

    /// The tensor of this name. One whose elements do not stand in order is put in order when it is first asked for.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.entries.get_key_value(name).map(|(name, entry)| TensorView {
            name,
            dtype: entry.dtype,
            shape: &entry.shape,
            data: entry.data(&self.map),
        })
    }

    /// Bytes of all tensors.
    pub fn data_bytes(&self) -> u64 {
        self.entries.values().map(|entry| entry.num_bytes() as u64).sum()
    }
}

impl fmt::Debug for PickleFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PickleFile").field("path", &self.path).field("tensors", &self.entries.len()).finish()
    }
}

impl Entry {
    fn num_bytes(&self) -> usize {
        match &self.place {
            Place::Whole(range) => range.len(),
            // Checked when the entry was made.
            Place::Strided { .. } => self.shape.iter().product::<usize>() * self.dtype.size_bytes(),
        }
    }

    fn data<'a>(&'a self, file: &'a [u8]) -> &'a [u8] {
        match &self.place {
            Place::Whole(range) => &file[range.clone()],
            Place::Strided { start, strides, ordered } => ordered.get_or_init(|| {
                let size = self.dtype.size_bytes();
                let mut out = Vec::with_capacity(self.num_bytes());
                let mut index = vec![0; self.shape.len()];
                loop {
                    let at = start + index.iter().zip(strides).map(|(i, stride)| i * stride).sum::<usize>() * size;
                    out.extend_from_slice(&file[at..at + size]);
                    // The last dimension runs fastest.
                    let Some(dim) = (0..index.len()).rev().find(|&d| index[d] + 1 < self.shape[d]) else { return out };
                    index[dim] += 1;
                    index[dim + 1..].fill(0);
                }
            }),
        }
    }
}

/// The tensors of a whole file given as bytes.
fn parse(file: &[u8]) -> Result<BTreeMap<String, Entry>, PickleFault> {
    if file.starts_with(b"PK\x03\x04") { parse_zip(file) } else { parse_legacy(file) }
}

fn parse_zip(file: &[u8]) -> Result<BTreeMap<String, Entry>, PickleFault> {
    let records: HashMap<String, Range<usize>> = zip::entries(file)?.into_iter().map(|e| (e.name, e.data)).collect();
    let broken = |message: &str| PickleFault::Archive { message: message.into() };
    let mut folders = records.keys().filter_map(|name| name.strip_suffix("/data.pkl"));
    let (Some(folder), None) = (folders.next(), folders.next()) else {
        return Err(broken("it does not hold one `data.pkl`: it was not written by `torch.save`"));
    };
    if let Some(order) = records.get(&format!("{folder}/byteorder"))
        && &file[order.clone()] != b"little"
    {
        return Err(broken("its numbers are big-endian"));
    }
    let pickle = &file[records[&format!("{folder}/data.pkl")].clone()];
    if pickle.len() > MAX_BYTES {
        return Err(PickleFault::Limit { what: "bytes of pickle", limit: MAX_BYTES as u64 });
    }
    let found = machine::run(pickle)?;
    let record = |key: &str| records.get(&format!("{folder}/data/{key}")).cloned();
    entries(&found, file.len(), &record)
}

/// Five pickles one after the other (a magic number, the protocol, the machine, the object, the keys of its storages), then
/// each storage with its number of elements before it.
fn parse_legacy(file: &[u8]) -> Result<BTreeMap<String, Entry>, PickleFault> {
    let magic = machine::run(file).ok().filter(|found| found.value == Value::Int(LEGACY_MAGIC));
    let Some(magic) = magic else { return Err(PickleFault::NotTorch) };
    let mut at = magic.used;
    let mut next = || -> Result<Unpickled<'_>, PickleFault> {
        let found = machine::run(&file[at..]).map_err(|fault| fault.moved(at as u64))?;
        at += found.used;
        Ok(found)
    };
    if next()?.value != Value::Int(LEGACY_PROTOCOL) {
        return Err(PickleFault::NotTorch);
    }
    let machine = next()?;
    let little = machine.pairs(machine.value).and_then(|pairs| {
        pairs.iter().find(|(key, _)| machine.text(*key) == Some("little_endian")).map(|(_, value)| *value)
    });
    if little != Some(Value::Bool(true)) {
        return Err(PickleFault::Archive { message: "its numbers are not little-endian".into() });
    }
    let (found, keys) = (next()?, next()?);
    let sizes: HashMap<&str, &StorageRef> = found.storages.iter().map(|s| (s.key.as_str(), s)).collect();
    let mut records = HashMap::new();
    for key in keys.list(keys.value).ok_or(PickleFault::NotTorch)? {
        let key = keys.text(*key).ok_or(PickleFault::NotTorch)?;
        let Some(storage) = sizes.get(key) else {
            return Err(PickleFault::Storage { key: key.into(), reason: "belongs to no tensor".into() });
        };
        let cut = || PickleFault::Cut { at: file.len() as u64 };
        let (count, rest) = file[at..].split_first_chunk::<8>().ok_or_else(cut)?;
        let count = u64::from_le_bytes(*count);
        if count != storage.num_elements {
            let reason = format!("holds {count} elements, its tensors speak of {}", storage.num_elements);
            return Err(PickleFault::Storage { key: key.into(), reason });
        }
        let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(storage.dtype.size_bytes()));
        let len = bytes.filter(|len| *len <= rest.len()).ok_or_else(cut)?;
        records.insert(key.to_owned(), at + 8..at + 8 + len);
        at += 8 + len;
    }
    entries(&found, file.len(), &|key| records.get(key).cloned())
}

/// The tensors of the dict that a pickle holds, each checked against the bytes of its storage.
fn entries(
    found: &Unpickled<'_>,
    file_len: usize,
    record: &dyn Fn(&str) -> Option<Range<usize>>,
) -> Result<BTreeMap<String, Entry>, PickleFault> {
    let Some(pairs) = found.pairs(found.value) else { return Err(PickleFault::NotDict { found: found.value.kind() }) };
    let mut entries = BTreeMap::new();
    let mut strided = 0usize;
    for (key, value) in pairs {
        let Some(name) = found.text(*key) else { return Err(PickleFault::NotDict { found: key.kind() }) };
        let Value::Tensor(number) = value else {
            return Err(PickleFault::NotTensor { name: name.into(), found: value.kind() });
        };
        let tensor = &found.tensors[*number as usize];
        let storage = &found.storages[tensor.storage as usize];
        let entry =
            entry(storage, tensor, record).map_err(|reason| PickleFault::Tensor { name: name.into(), reason })?;
        if let Place::Strided { .. } = entry.place {
            strided = strided.saturating_add(entry.num_bytes());
        }
        // As in Python, the last of two values of one key counts.
        entries.insert(name.to_owned(), entry);
    }
    if strided > file_len {
        return Err(PickleFault::Limit { what: "bytes of tensors that are views", limit: file_len as u64 });
    }
    Ok(entries)
}

fn entry(
    storage: &StorageRef,
    tensor: &machine::TensorRef,
    record: &dyn Fn(&str) -> Option<Range<usize>>,
) -> std::result::Result<Entry, String> {
    let key = &storage.key;
    let bytes = record(key).ok_or_else(|| format!("its storage `{key}` is not in the file"))?;
    let size = storage.dtype.size_bytes();
    let wanted = usize::try_from(storage.num_elements).ok().and_then(|n| n.checked_mul(size));
    if wanted != Some(bytes.len()) {
        let (count, found) = (storage.num_elements, bytes.len());
        return Err(format!("its storage `{key}` of {count} elements has {found} bytes, expected {size} for each"));
    }
    let narrow = |list: &[u64]| list.iter().map(|n| usize::try_from(*n).ok()).collect::<Option<Vec<_>>>();
    let (Some(shape), Some(strides), Some(offset)) =
        (narrow(&tensor.size), narrow(&tensor.stride), usize::try_from(tensor.offset).ok())
    else {
        return Err("its size is beyond the address space".into());
    };
    if shape.len() != strides.len() {
        return Err(format!("it has {} dimensions and {} strides", shape.len(), strides.len()));
    }
    let dtype = storage.dtype;
    if shape.contains(&0) {
        return Ok(Entry { dtype, shape, place: Place::Whole(bytes.start..bytes.start) });
    }
    let count = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    let last = shape
        .iter()
        .zip(&strides)
        .try_fold(offset, |last, (dim, stride)| last.checked_add((dim - 1).checked_mul(*stride)?));
    let num_elements = bytes.len() / size;
    let (Some(count), Some(last)) = (count, last) else { return Err(format!("its shape {shape:?} overflows")) };
    if last >= num_elements {
        return Err(format!("it reaches element {last} of its storage `{key}` of {num_elements}"));
    }
    if count > num_elements {
        return Err(format!("its shape {shape:?} has more elements than its storage `{key}` of {num_elements}"));
    }
    let start = bytes.start + offset * size;
    let mut expected = 1;
    let in_order = shape.iter().zip(&strides).rev().all(|(&dim, &stride)| {
        let fits = dim == 1 || stride == expected;
        expected *= dim;
        fits
    });
    let place = match in_order {
        true => Place::Whole(start..start + count * size),
        false => Place::Strided { start, strides, ordered: OnceLock::new() },
    };
    Ok(Entry { dtype, shape, place })
}
