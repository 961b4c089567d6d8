//! The checkpoints that one model is read from: its own folder, and where that holds a part of it alone, the folders that its
//! configuration names for the decoder and for towers. Owns which of them a tensor is taken from; its own folder wins.

use crate::config::ModelConfig;
use crate::config::encoders::{ENCODER_KEYS, LANGUAGE_KEY, tower_folder};
use crate::error::{ModelError, Result};
use crate::names::{self, EncoderPaths};
use crate::weights::Stored;
use hub::Checkpoint;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Opened checkpoints.
pub(crate) struct Parts {
    own: Checkpoint,
    /// The decoder's, where its tensors are not in the own folder.
    language: Option<Checkpoint>,
    /// Those of towers that are not in the own folder.
    towers: Vec<(EncoderPaths, Checkpoint)>,
}

impl Parts {
    /// Opens everything that the model in `dir` is made of.
    ///
    /// # Errors
    /// A folder that is named and not there, or holds no weights.
    pub(crate) fn open(dir: &Path, config: &ModelConfig) -> Result<Parts> {
        let own = Checkpoint::open(dir)?;
        let mut parts = Parts { own, language: None, towers: Vec::new() };
        let Some(encoders) = config.encoders() else { return Ok(parts) };
        let path = dir.join("config.json");
        let place = path.display().to_string();
        let raw: Value = hub::json::read_json(&path)?;
        if let Some(name) = raw[LANGUAGE_KEY].as_str() {
            let folder = hub::resolve_beside(dir, name).map_err(|error| ModelError::Config {
                file: place.clone(),
                field: LANGUAGE_KEY.to_owned(),
                reason: format!("the decoder `{name}` is not to be had ({error})"),
            })?;
            parts.language = Some(Checkpoint::open(folder)?);
        }
        let objects = if encoders.video.is_none() && raw["mm_vision_tower"].is_string() {
            vec![&raw]
        } else {
            ENCODER_KEYS.iter().map(|key| &raw[*key]).filter(|object| !object.is_null()).collect()
        };
        for (encoder, object) in encoders.all().zip(objects) {
            let is_within = parts.own.names().iter().any(|name| name.starts_with(encoder.paths.tower));
            if let Some(name) = object["mm_vision_tower"].as_str().filter(|_| !is_within) {
                parts.towers.push((encoder.paths, Checkpoint::open(tower_folder(dir, &place, name)?)?));
            }
        }
        Ok(parts)
    }

    /// Every tensor by its canonical name.
    ///
    /// # Errors
    /// Two spellings of one tensor in one folder.
    pub(crate) fn tensors(&self, config: &ModelConfig) -> Result<BTreeMap<String, Stored<'_>>> {
        let is_alone = config.names_decoder_alone();
        let mut all = read(&self.own, |name| Some(names::canonical_tensor(name, is_alone)))?;
        let language = self.language.iter().map(|part| read(part, |name| Some(name.to_owned())));
        let towers = self.towers.iter().map(|(paths, part)| {
            read(part, |name| names::tower_tensor(name).map(|inner| format!("{}{inner}", paths.tower)))
        });
        for part in language.chain(towers) {
            for (name, stored) in part? {
                all.entry(name).or_insert(stored);
            }
        }
        Ok(all)
    }
}

fn read(checkpoint: &Checkpoint, canonical: impl Fn(&str) -> Option<String>) -> Result<BTreeMap<String, Stored<'_>>> {
    let mut found: BTreeMap<String, Stored<'_>> = BTreeMap::new();
    for name in checkpoint.names() {
        let Some(canonical) = canonical(name) else { continue };
        if let Some(other) = found.insert(canonical, Stored { checkpoint, name: name.to_owned() }) {
            return Err(ModelError::Weights {
                path: checkpoint.dir().to_path_buf(),
                message: format!(
                    "tensors `{}` and `{name}` are two spellings of the same weight; keep one",
                    other.name
                ),
            });
        }
    }
    Ok(found)
}
