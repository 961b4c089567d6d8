//! Saving and loading back: the same bits, the reference's names and element types, shards, other spellings, and
//! folders with a tensor too few or too many.

use crate::base::{fixtures, load, logits};
use crate::fixture::{Fixture, json, root};
use hub::{Checkpoint, Dtype, OutTensor};
use models::{LoadOptions, names};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A folder to save into, gone with the guard. With `VIDTUNE_KEEP_SAVED` set it is a subfolder of that one and stays, for
/// `tools/oracle/check_saved.py`.
pub fn out_dir(name: &str) -> (PathBuf, Option<tempfile::TempDir>) {
    match std::env::var_os("VIDTUNE_KEEP_SAVED") {
        Some(kept) => (Path::new(&kept).join(name), None),
        None => {
            let dir = tempfile::tempdir().unwrap();
            (dir.path().to_owned(), Some(dir))
        }
    }
}

/// Bytes of every tensor of a folder by name.
fn content(dir: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let names: Vec<String> = checkpoint.names().into_iter().map(str::to_owned).collect();
    names
        .into_iter()
        .map(|n| {
            let view = checkpoint.get(&n).unwrap();
            (n, (view.dtype, view.shape.to_vec(), view.data.to_vec()))
        })
        .collect()
}

/// Copies a checkpoint folder, each tensor under the name that `rename` gives it, or left out.
pub fn rewrite(from: &Path, to: &Path, rename: impl Fn(&str) -> Option<String>) {
    let tensors = content(from);
    let out: Vec<OutTensor<'_>> = tensors
        .iter()
        .filter_map(|(n, (dtype, shape, data))| Some(OutTensor::new(rename(n)?, *dtype, shape, data.clone())))
        .collect();
    hub::write_checkpoint(to, &out, u64::MAX).unwrap();
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
}

/// Names of the tensors in hub files: those of the folder where it has this spelling, else those of the parameters.
fn hub_spelling(fixture: &Fixture) -> Vec<String> {
    let key = if fixture.info["spelling"] == "hub" { "tensors_on_disk" } else { "parameters" };
    let names: BTreeSet<String> = fixture.info[key].as_object().unwrap().keys().cloned().collect();
    names.into_iter().collect()
}

#[test]
fn saved_folders_hold_the_same_bytes_under_the_hub_names() {
    for fixture in fixtures() {
        let (model, _) = models::load(&fixture.dir, &LoadOptions::default()).unwrap();
        let hub_spelling = hub_spelling(&fixture);
        for shard in [u64::MAX, 100_000] {
            let kind = if shard == u64::MAX { "whole" } else { "shards" };
            let (dir, _guard) = out_dir(&format!("{}-{kind}", fixture.name()));
            model.save(&dir, shard).unwrap();
            let written = content(&dir);
            assert_eq!(written.keys().cloned().collect::<Vec<_>>(), hub_spelling, "{}", fixture.name());
            assert_eq!(dir.join("model.safetensors.index.json").exists(), shard == 100_000);
            // The same bytes, whatever the spelling of the source; a folder in the hub spelling by name.
            let source = content(&fixture.dir);
            if fixture.info["spelling"] == "hub" || fixture.name().starts_with("text_") {
                assert_eq!(written, source, "{}", fixture.name());
            } else {
                let bytes = |c: &BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>| {
                    let mut all: Vec<Vec<u8>> = c.values().map(|v| v.2.clone()).collect();
                    all.sort();
                    all
                };
                assert_eq!(bytes(&written), bytes(&source), "{}", fixture.name());
            }
            assert_eq!(json(&dir.join("config.json")), json(&fixture.dir.join("config.json")));
        }
    }
}

#[test]
fn a_saved_folder_gives_the_same_logits() {
    for fixture in fixtures() {
        let samples = fixture.samples();
        let dir = tempfile::tempdir().unwrap();
        let (model, _) = models::load(&fixture.dir, &LoadOptions::default()).unwrap();
        model.save(dir.path(), u64::MAX).unwrap();
        let options = LoadOptions { dtype: Some(tensor::DType::F32) };
        let (again, _) = models::load(dir.path(), &options).unwrap();
        let token = &fixture.placeholders();
        assert_eq!(
            logits(&load(&fixture), &[&samples[1]], token),
            logits(&again, &[&samples[1]], token),
            "{}",
            fixture.name()
        );
    }
}

/// A checkpoint as older exporters left it: `pytorch_model.bin` of the format before zip, rotary buffers in it.
#[test]
fn a_checkpoint_of_torch_is_the_same() {
    let from = root().join("text_llama");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("config.json"), dir.path().join("config.json")).unwrap();
    std::fs::copy(root().join("../hub/pickle/text_llama.bin"), dir.path().join("pytorch_model.bin")).unwrap();
    let (model, report) = models::load(dir.path(), &LoadOptions::default()).unwrap();
    let buffer = |layer: usize| format!("model.layers.{layer}.self_attn.rotary_emb.inv_freq");
    assert_eq!(report.recomputed, [buffer(0), buffer(1)]);
    // Written as safetensors, without the buffers.
    let out = tempfile::tempdir().unwrap();
    model.save(out.path(), u64::MAX).unwrap();
    assert_eq!(content(out.path()), content(&from));
}

#[test]
fn the_spelling_inside_recent_transformers_is_read_as_well() {
    // The original layout has one spelling, and so has EgoGPT's.
    let ones = ["text_", "encoders_", "original_", "egogpt_"];
    let has_two = |f: &Fixture| !ones.iter().any(|start| f.name().starts_with(start));
    for fixture in fixtures().into_iter().filter(has_two) {
        let dir = tempfile::tempdir().unwrap();
        rewrite(&fixture.dir, dir.path(), |name| {
            let name = names::canonical_tensor(name, false).replace("vision_tower.vision_model.", "vision_tower.");
            Some(match name.strip_prefix("language_model.") {
                Some("lm_head.weight") => "lm_head.weight".to_owned(),
                Some(rest) => format!("model.language_model.{}", rest.strip_prefix("model.").unwrap()),
                None => format!("model.{name}"),
            })
        });
        let (model, _) = models::load(dir.path(), &LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"));
        let out = tempfile::tempdir().unwrap();
        model.save(out.path(), u64::MAX).unwrap();
        assert_eq!(content(out.path()).into_keys().collect::<Vec<_>>(), hub_spelling(&fixture), "{}", fixture.name());
    }
}

/// `transformers` ties what the configuration ties only where the file holds one of the two tensors or both with the same
/// values, and reads the one that is there for both.
#[test]
fn a_tied_head_is_what_the_file_says() {
    for (folder, table, head) in [
        ("text_qwen2_transformers5", "model.embed_tokens.weight", "lm_head.weight"),
        ("siglip_odd_qwen2_tied", "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
    ] {
        let fixture = Fixture::open(root().join(folder));
        let (samples, token) = (fixture.samples(), &fixture.placeholders());
        let options = LoadOptions { dtype: Some(tensor::DType::F32) };
        let of = |dir: &Path| logits(&models::load(dir, &options).unwrap().0, &[&samples[1]], token);
        let plain = of(&fixture.dir);

        // Only the head: it is the table as well.
        let dir = tempfile::tempdir().unwrap();
        rewrite(&fixture.dir, dir.path(), |n| Some(if n == table { head.to_owned() } else { n.to_owned() }));
        assert_eq!(of(dir.path()), plain, "{folder}: the head alone");
        let out = tempfile::tempdir().unwrap();
        models::load(dir.path(), &LoadOptions::default()).unwrap().0.save(out.path(), u64::MAX).unwrap();
        assert_eq!(content(out.path()), content(&fixture.dir), "{folder}: the head alone, saved");

        // Both, the head the same or with its rows in another order.
        for different in [false, true] {
            let mut tensors = content(&fixture.dir);
            let (dtype, shape, mut data) = tensors[table].clone();
            if different {
                let width = data.len() / shape[0];
                data.rotate_left(width);
            }
            tensors.insert(head.to_owned(), (dtype, shape, data));
            let write = |dir: &Path, tie: bool| {
                let out: Vec<OutTensor<'_>> =
                    tensors.iter().map(|(n, (t, shape, data))| OutTensor::new(n, *t, shape, data.clone())).collect();
                hub::write_checkpoint(dir, &out, u64::MAX).unwrap();
                let mut config = json(&fixture.dir.join("config.json"));
                for place in ["/tie_word_embeddings", "/text_config/tie_word_embeddings"] {
                    if let Some(value) = config.pointer_mut(place) {
                        *value = tie.into();
                    }
                }
                std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
            };
            let (tied, untied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            write(tied.path(), true);
            write(untied.path(), false);
            assert_eq!(of(tied.path()), of(untied.path()), "{folder}: different: {different}");
            assert_eq!(of(tied.path()) == plain, !different, "{folder}");
            let (model, report) = models::load(tied.path(), &LoadOptions::default()).unwrap();
            assert_eq!(report.untied_heads.len(), usize::from(different), "{folder}");
            let out = tempfile::tempdir().unwrap();
            model.save(out.path(), u64::MAX).unwrap();
            assert_eq!(content(out.path()).contains_key(head), different, "{folder}");
            assert_eq!(of(out.path()), of(tied.path()), "{folder}: saved");
        }
    }
}

#[test]
fn a_missing_and_an_unknown_tensor_are_named() {
    let fixture = Fixture::open(root().join("llava_clip_llama"));
    let lost = "language_model.model.layers.1.mlp.up_proj.weight";
    let dir = tempfile::tempdir().unwrap();
    rewrite(&fixture.dir, dir.path(), |n| (n != lost).then(|| n.to_owned()));
    let error = models::load(dir.path(), &LoadOptions::default()).err().unwrap().to_string();
    assert!(error.contains(lost), "{error}");

    let dir = tempfile::tempdir().unwrap();
    rewrite(&fixture.dir, dir.path(), |n| {
        Some(if n == lost { "language_model.model.layers.1.mlp.side_proj.weight".to_owned() } else { n.to_owned() })
    });
    let error = models::load(dir.path(), &LoadOptions::default()).err().unwrap().to_string();
    assert!(error.contains("up_proj") && error.contains("side_proj"), "{error}");
}
