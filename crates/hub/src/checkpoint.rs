//! A checkpoint folder: one file of weights, or shards joined by an index, as safetensors or else as `torch.save` wrote them.
//! Owns which file holds which tensor; knows nothing of what the tensors mean.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{HubError, Result};
use crate::json;
use crate::pickle::PickleFile;
use crate::safetensors::{SafeTensors, TensorView};

/// File name of an unsharded checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";
/// File name of a sharded checkpoint's index.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// File name of an unsharded checkpoint of `torch.save`.
pub(crate) const PICKLE_FILE: &str = "pytorch_model.bin";
/// File name of the index of a sharded one.
pub(crate) const PICKLE_INDEX_FILE: &str = "pytorch_model.bin.index.json";

/// One file of weights.
#[derive(Debug)]
enum WeightFile {
    Safe(SafeTensors),
    Pickle(PickleFile),
}

impl WeightFile {
    fn open(path: PathBuf) -> Result<WeightFile> {
        match path.extension().is_some_and(|end| end == "bin") {
            true => PickleFile::open(path).map(WeightFile::Pickle),
            false => SafeTensors::open(path).map(WeightFile::Safe),
        }
    }

    fn names(&self) -> Vec<&str> {
        match self {
            WeightFile::Safe(file) => file.names(),
            WeightFile::Pickle(file) => file.names(),
        }
    }

    fn get(&self, name: &str) -> Option<TensorView<'_>> {
        match self {
            WeightFile::Safe(file) => file.get(name),
            WeightFile::Pickle(file) => file.get(name),
        }
    }

    fn path(&self) -> &Path {
        match self {
            WeightFile::Safe(file) => file.path(),
            WeightFile::Pickle(file) => file.path(),
        }
    }

    fn data_bytes(&self) -> u64 {
        match self {
            WeightFile::Safe(file) => file.data_bytes(),
            WeightFile::Pickle(file) => file.data_bytes(),
        }
    }
}

/// An opened checkpoint: every tensor under its name on disk.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<WeightFile>,
    owner: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Checkpoint {
    /// Opens a folder as transformers does: `model.safetensors` first, else the index and every shard it names, else
    /// `pytorch_model.bin`, else its index.
    ///
    /// A tensor that lies in a shard without standing in the index counts as well (transformers loads it too), unless two
    /// shards hold it.
    ///
    /// # Errors
    /// No weights, pickles of another name only, a missing or badly named shard, a tensor that is not in its shard, a damaged file.
    pub fn open(dir: impl AsRef<Path>) -> Result<Checkpoint> {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            return Err(HubError::NoSuchFolder { path: dir.to_path_buf() });
        }
        for (single, index) in [(SINGLE_FILE, INDEX_FILE), (PICKLE_FILE, PICKLE_INDEX_FILE)] {
            let (single, index) = (dir.join(single), dir.join(index));
            if single.is_file() {
                let file = WeightFile::open(single)?;
                let owner = file.names().into_iter().map(|name| (name.to_owned(), 0)).collect();
                return Ok(Checkpoint { dir: dir.to_path_buf(), files: vec![file], owner });
            }
            if index.is_file() {
                return Checkpoint::open_sharded(dir, &index);
            }
        }
        match find_pickle(dir)? {
            Some(file) => Err(HubError::PickleOnly { dir: dir.to_path_buf(), file }),
            None => Err(HubError::NoWeights { dir: dir.to_path_buf() }),
        }
    }

    fn open_sharded(dir: &Path, index: &Path) -> Result<Checkpoint> {
        let map = shard_map(index)?;
        let shards: Vec<&String> = map.values().collect::<BTreeSet<_>>().into_iter().collect();
        let mut files = Vec::with_capacity(shards.len());
        for shard in &shards {
            let path = dir.join(shard);
            if !path.is_file() {
                return Err(HubError::MissingShard { index: index.to_path_buf(), shard: (*shard).clone() });
            }
            files.push(WeightFile::open(path)?);
        }
        let mut owner = BTreeMap::new();
        for (tensor, shard) in &map {
            let Ok(file) = shards.binary_search(&shard) else {
                unreachable!("every shard of the map was collected");
            };
            if files[file].get(tensor).is_none() {
                return Err(HubError::NotInShard {
                    index: index.to_path_buf(),
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                });
            }
            owner.insert(tensor.clone(), file);
        }
        for (number, file) in files.iter().enumerate() {
            for name in file.names() {
                if map.contains_key(name) {
                    continue;
                }
                if let Some(first) = owner.insert(name.to_owned(), number) {
                    return Err(HubError::AmbiguousTensor {
                        index: index.to_path_buf(),
                        tensor: name.to_owned(),
                        first: shards[first].clone(),
                        second: shards[number].clone(),
                    });
                }
            }
        }
        Ok(Checkpoint { dir: dir.to_path_buf(), files, owner })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Tensor names, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.owner.keys().map(String::as_str).collect()
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.owner.get(name).and_then(|&file| self.files[file].get(name))
    }

    /// The file that holds this tensor.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.owner.get(name).map(|&file| self.files[file].path())
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.owner.len()
    }

    /// Whether the checkpoint holds no tensor.
    pub fn is_empty(&self) -> bool {
        self.owner.is_empty()
    }

    /// Bytes of all data sections.
    pub fn data_bytes(&self) -> u64 {
        self.files.iter().map(WeightFile::data_bytes).sum()
    }
}

/// Tensor to shard, every shard name checked to be a plain file name.
pub(crate) fn shard_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let parsed: Index = json::read_json(index)?;
    let mut map = BTreeMap::new();
    let end = if index.ends_with(PICKLE_INDEX_FILE) { ".bin" } else { ".safetensors" };
    for (tensor, shard) in parsed.weight_map {
        if !is_plain_shard_name(&shard, end) {
            return Err(HubError::BadShardName { index: index.to_path_buf(), shard });
        }
        map.insert(tensor, shard);
    }
    Ok(map)
}

fn is_plain_shard_name(name: &str, end: &str) -> bool {
    name.ends_with(end)
        && !name.starts_with('.')
        && !name.contains(['/', '\\', ':', '\0'])
        && name.chars().all(|c| !c.is_control())
}

/// The first pickle weight file of a folder, by name.
fn find_pickle(dir: &Path) -> Result<Option<String>> {
    let mut found: Option<String> = None;
    for entry in fs::read_dir(dir).map_err(|e| HubError::io("list", dir, e))? {
        let entry = entry.map_err(|e| HubError::io("list", dir, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let pickle = [".bin", ".pt", ".pth", ".ckpt", ".bin.index.json"].iter().any(|end| name.ends_with(end));
        let weights = !name.starts_with("training_args") && !name.starts_with("optimizer") && !name.starts_with("rng_");
        if pickle && weights && found.as_ref().is_none_or(|first| name < *first) {
            found = Some(name);
        }
    }
    Ok(found)
}
