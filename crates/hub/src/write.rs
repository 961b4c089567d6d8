//! Writing of safetensors files and (sharded) checkpoints in the layout that transformers writes and reads. Owns names,
//! order and sizes; tensors are produced one at a time, so that a model is never held twice.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::atomic::{atomic_file, atomic_write};
use crate::checkpoint::{INDEX_FILE, SINGLE_FILE};
use crate::dtype::Dtype;
use crate::error::{HubError, Result};
use crate::safetensors::METADATA_KEY;

/// The bytes of a tensor to be written, little-endian and row-major.
pub enum OutData<'a> {
    /// Bytes that are there already.
    Bytes(Cow<'a, [u8]>),
    /// Bytes made when their turn comes and dropped right after.
    Lazy(Box<dyn Fn() -> io::Result<Cow<'a, [u8]>> + 'a>),
}

/// A tensor to be written.
pub struct OutTensor<'a> {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Its bytes, or how to make them.
    pub data: OutData<'a>,
}

impl<'a> OutTensor<'a> {
    /// A tensor whose bytes are at hand.
    pub fn new(
        name: impl Into<String>,
        dtype: Dtype,
        shape: &[usize],
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> OutTensor<'a> {
        OutTensor { name: name.into(), dtype, shape: shape.to_vec(), data: OutData::Bytes(bytes.into()) }
    }

    /// A tensor whose bytes are made when they are written.
    pub fn lazy(
        name: impl Into<String>,
        dtype: Dtype,
        shape: &[usize],
        make: impl Fn() -> io::Result<Cow<'a, [u8]>> + 'a,
    ) -> OutTensor<'a> {
        OutTensor { name: name.into(), dtype, shape: shape.to_vec(), data: OutData::Lazy(Box::new(make)) }
    }

    /// Bytes that shape and dtype ask for.
    ///
    /// # Errors
    /// [`HubError::OutName`] when the size overflows.
    pub fn num_bytes(&self) -> Result<u64> {
        self.shape
            .iter()
            .try_fold(self.dtype.size_bytes() as u64, |size, &dim| size.checked_mul(dim as u64))
            .ok_or_else(|| HubError::OutName { name: self.name.clone(), reason: "its size overflows" })
    }

    fn num_elements(&self) -> Result<u64> {
        Ok(self.num_bytes()? / self.dtype.size_bytes() as u64)
    }

    fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        let bytes = match &self.data {
            OutData::Bytes(bytes) => Cow::Borrowed(bytes.as_ref()),
            OutData::Lazy(make) => make().map_err(|source| HubError::OutData { name: self.name.clone(), source })?,
        };
        let expected = self.num_bytes()?;
        if bytes.len() as u64 != expected {
            return Err(HubError::OutLength {
                name: self.name.clone(),
                shape: self.shape.clone(),
                dtype: self.dtype.name(),
                expected,
                found: bytes.len() as u64,
            });
        }
        Ok(bytes)
    }
}

/// Writes one safetensors file atomically, byte for byte as `safetensors.torch.save_file` does: tensors by descending
/// dtype, then by name, the header padded with spaces to a multiple of 8.
///
/// # Errors
/// A repeated or reserved name, bytes that do not fit their shape, and [`HubError::Io`].
pub fn write_safetensors(path: impl AsRef<Path>, tensors: &[OutTensor<'_>], metadata: &[(&str, &str)]) -> Result<()> {
    let all: Vec<&OutTensor<'_>> = tensors.iter().collect();
    write_file(path.as_ref(), &all, metadata)
}

/// Writes `model.safetensors`, or shards of at most `max_shard_size` bytes and their index, with metadata `format: pt`.
///
/// Shards are filled in the order given and named as transformers names them; a tensor larger than the limit gets a shard of
/// its own. The index comes last.
///
/// # Errors
/// [`HubError::Exists`] when the folder holds weights already (nothing of the user's is removed or mixed), and those of
/// [`write_safetensors`].
pub fn write_checkpoint(dir: impl AsRef<Path>, tensors: &[OutTensor<'_>], max_shard_size: u64) -> Result<()> {
    let dir = dir.as_ref();
    std::fs::create_dir_all(dir).map_err(|e| HubError::io("create", dir, e))?;
    refuse_old_weights(dir)?;
    check_names(&tensors.iter().collect::<Vec<_>>())?;
    let shards = split(tensors, max_shard_size)?;
    let metadata = [("format", "pt")];
    if let [only] = shards.as_slice() {
        return write_file(&dir.join(SINGLE_FILE), only, &metadata);
    }
    let mut weight_map = BTreeMap::new();
    let mut total_size = 0;
    let mut total_parameters = 0;
    for (number, shard) in shards.iter().enumerate() {
        let name = shard_file_name(number, shards.len());
        write_file(&dir.join(&name), shard, &metadata)?;
        for tensor in shard {
            weight_map.insert(tensor.name.as_str(), name.clone());
            total_size += tensor.num_bytes()?;
            total_parameters += tensor.num_elements()?;
        }
    }
    let index = json!({
        "metadata": {"total_parameters": total_parameters, "total_size": total_size},
        "weight_map": weight_map,
    });
    let mut text = format!("{index:#}");
    text.push('\n');
    atomic_write(dir.join(INDEX_FILE), text.as_bytes())
}

/// The name of shard `number` (from 0) of `count`, such as `model-00001-of-00002.safetensors`.
pub fn shard_file_name(number: usize, count: usize) -> String {
    format!("model-{:05}-of-{count:05}.safetensors", number + 1)
}

/// Greedy split in the given order; at least one shard, even of nothing.
fn split<'t, 'a>(tensors: &'t [OutTensor<'a>], max_shard_size: u64) -> Result<Vec<Vec<&'t OutTensor<'a>>>> {
    let mut shards = Vec::new();
    let mut current = Vec::new();
    let mut current_size = 0;
    for tensor in tensors {
        let size = tensor.num_bytes()?;
        if size > max_shard_size {
            shards.push(vec![tensor]);
            continue;
        }
        if current_size + size > max_shard_size {
            shards.push(std::mem::take(&mut current));
            current_size = 0;
        }
        current.push(tensor);
        current_size += size;
    }
    if !current.is_empty() || shards.is_empty() {
        shards.push(current);
    }
    Ok(shards)
}

fn refuse_old_weights(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(|e| HubError::io("list", dir, e))? {
        let entry = entry.map_err(|e| HubError::io("list", dir, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == INDEX_FILE || (name.starts_with("model") && name.ends_with(".safetensors")) {
            return Err(HubError::Exists { path: entry.path() });
        }
    }
    Ok(())
}

fn check_names(tensors: &[&OutTensor<'_>]) -> Result<()> {
    let mut seen = HashSet::new();
    for tensor in tensors {
        if tensor.name == METADATA_KEY {
            return Err(HubError::OutName { name: tensor.name.clone(), reason: "the format reserves this name" });
        }
        if !seen.insert(tensor.name.as_str()) {
            return Err(HubError::OutName { name: tensor.name.clone(), reason: "another tensor has the same name" });
        }
    }
    Ok(())
}

fn write_file(path: &Path, tensors: &[&OutTensor<'_>], metadata: &[(&str, &str)]) -> Result<()> {
    check_names(tensors)?;
    let mut sorted = tensors.to_vec();
    sorted.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    let header = header_of(&sorted, metadata)?;
    atomic_file(path, |file| {
        let mut out = BufWriter::with_capacity(1 << 20, &mut *file);
        write_all(&mut out, &(header.len() as u64).to_le_bytes(), path)?;
        write_all(&mut out, &header, path)?;
        for tensor in &sorted {
            write_all(&mut out, &tensor.bytes()?, path)?;
        }
        out.flush().map_err(|e| HubError::io("write", path, e))
    })
}

fn write_all(out: &mut BufWriter<&mut File>, bytes: &[u8], path: &Path) -> Result<()> {
    out.write_all(bytes).map_err(|e| HubError::io("write", path, e))
}

fn header_of(sorted: &[&OutTensor<'_>], metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        let table: Map<String, Value> = metadata.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        header.insert(METADATA_KEY.to_owned(), Value::Object(table));
    }
    let mut start = 0;
    for tensor in sorted {
        let end = start + tensor.num_bytes()?;
        header.insert(
            tensor.name.clone(),
            json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [start, end]}),
        );
        start = end;
    }
    let mut bytes = Value::Object(header).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Ok(bytes)
}
