//! Reads the encoder-decoder folders of `fixtures/seq2seq` and packs their samples. Owns no comparison.

use crate::fixture::{Fixture, json};
use models::{LoadOptions, Model, ModelInput, TargetInput};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tensor::DType;

/// Source and target of a record.
pub struct Pair {
    pub ids: Vec<u32>,
    pub labels: Vec<u32>,
}

/// `fixtures/seq2seq`.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/seq2seq")
}

pub fn pairs(fixture: &Fixture) -> Vec<Pair> {
    let ids = |v: &Value| v.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect();
    let samples = fixture.info["samples"].as_array().unwrap();
    samples.iter().map(|s| Pair { ids: ids(&s["ids"]), labels: ids(&s["labels"]) }).collect()
}

/// Samples one after the other, and their labels.
pub fn pack_pairs(pairs: &[&Pair]) -> (ModelInput, Vec<i32>) {
    let (mut ids, mut positions, mut cu) = (Vec::new(), Vec::new(), vec![0]);
    let (mut target, mut target_cu) = (Vec::new(), vec![0]);
    for pair in pairs {
        positions.extend(0..pair.ids.len() as u32);
        ids.extend(&pair.ids);
        cu.push(ids.len());
        target.extend(&pair.labels);
        target_cu.push(target.len());
    }
    let labels = target.iter().map(|&id: &u32| id as i32).collect();
    let target = Some(TargetInput { ids: target, cu_seqlens: target_cu.into() });
    (ModelInput { ids, positions, cu_seqlens: cu.into(), target, ..ModelInput::default() }, labels)
}

/// The checkpoint in f32 without any dropout, which a recording tape would apply; the reference computed without it.
pub fn load_quiet(fixture: &Fixture) -> Model {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&fixture.dir).unwrap().map(|e| e.unwrap().path()) {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("model") {
            std::fs::copy(&entry, dir.path().join(name)).unwrap();
        }
    }
    let mut config = json(&fixture.dir.join("config.json"));
    for field in ["dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"] {
        config[field] = 0.into();
    }
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    models::load(dir.path(), &LoadOptions { dtype: Some(DType::F32) }).unwrap().0
}
