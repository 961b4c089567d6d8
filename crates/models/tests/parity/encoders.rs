//! Checkpoints in LLaVA's original layout as they lie on the hub: pickled, without the tower that they name; and folders
//! that hold a part of the model and name the others. Logits are those of the whole folder.

use crate::base::{LOGITS, expected, kept_rows, logits};
use crate::compare::{check_elements, demand};
use crate::fixture::{Fixture, json, root};
use hub::{Checkpoint, OutTensor};
use models::LoadOptions;
use serde_json::{Value, json};
use std::path::Path;
use tensor::DType;

fn f32_options() -> LoadOptions {
    LoadOptions { dtype: Some(DType::F32) }
}

fn check(fixture: &Fixture, dir: &Path) {
    let (model, report) = models::load(dir, &f32_options()).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    assert!(report.untied_heads.is_empty());
    demand(
        &dir.display().to_string(),
        fixture.samples().iter().enumerate().map(|(i, sample)| {
            let ours = kept_rows(fixture, logits(&model, &[sample], &fixture.placeholders()), sample.ids.len());
            check_elements(&format!("sample {i}"), &ours, &expected(fixture, &format!("sample{i}.logits")), LOGITS)
        }),
    );
}

fn error_of(dir: &Path) -> String {
    models::load(dir, &f32_options()).err().unwrap().to_string()
}

#[test]
fn a_pickled_checkpoint_takes_the_tower_that_it_names() {
    for name in ["original_llama", "original_qwen"] {
        let fixture = Fixture::open(root().join(name));
        let dir = fixture.dir.join("parts/original");
        check(&fixture, &dir);
        // Saved, it stands alone.
        let out = tempfile::tempdir().unwrap();
        models::load(&dir, &LoadOptions::default()).unwrap().0.save(out.path(), u64::MAX).unwrap();
        check(&fixture, out.path());
        let names = |dir: &Path| -> Vec<String> {
            Checkpoint::open(dir).unwrap().names().into_iter().map(str::to_owned).collect()
        };
        assert_eq!(names(out.path()), names(&fixture.dir));
        assert!(json(&out.path().join("config.json"))["vision_config"].is_object());
    }
}

/// The oldest checkpoints of LLaVA-1.5 say `llava`, as those of `transformers` do now.
#[test]
fn the_oldest_spelling_is_told_from_that_of_transformers() {
    let fixture = Fixture::open(root().join("original_llama"));
    let mut config = json(&fixture.dir.join("config.json"));
    config["model_type"] = "llava".into();
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture.dir.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    check(&fixture, dir.path());
}

/// A folder with projectors, which names decoder and towers: what joining parts writes.
fn thin(fixture: &Fixture, dir: &Path, change: impl FnOnce(&mut Value)) {
    let mut config = json(&fixture.dir.join("config.json"));
    let parts = fixture.dir.join("parts");
    config["mm_language_model"] = json!(parts.join("language"));
    for kind in ["image", "video"] {
        let encoder = config[format!("{kind}_encoder")].as_object_mut().unwrap();
        encoder.remove("vision_config");
        encoder.insert("mm_vision_tower".into(), json!(parts.join(format!("{kind}_tower"))));
    }
    change(&mut config);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let whole = Checkpoint::open(&fixture.dir).unwrap();
    let own: Vec<OutTensor<'_>> = whole
        .names()
        .into_iter()
        .filter(|name| name.contains("mm_projector"))
        .map(|name| {
            let view = whole.get(name).unwrap();
            OutTensor::new(name, view.dtype, view.shape, view.data.to_vec())
        })
        .collect();
    hub::write_checkpoint(dir, &own, u64::MAX).unwrap();
}

#[test]
fn parts_in_several_folders_are_one_model() {
    let fixture = Fixture::open(root().join("encoders_qwen2_tied"));
    let dir = tempfile::tempdir().unwrap();
    thin(&fixture, dir.path(), |_| {});
    check(&fixture, dir.path());
    let out = tempfile::tempdir().unwrap();
    models::load(dir.path(), &LoadOptions::default()).unwrap().0.save(out.path(), u64::MAX).unwrap();
    check(&fixture, out.path());
    assert!(json(&out.path().join("config.json")).get("mm_language_model").is_none());
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let fixture = Fixture::open(root().join("encoders_qwen2_tied"));
    let error = |change: fn(&mut Value)| {
        let dir = tempfile::tempdir().unwrap();
        thin(&fixture, dir.path(), change);
        error_of(dir.path()).replace(&dir.path().display().to_string(), "DIR")
    };
    let check = |change: fn(&mut Value), expected: &str| {
        let found = error(change);
        assert!(found.contains(expected), "{found}");
    };
    check(
        |c| c["mm_language_model"] = "./gone".into(),
        "field `mm_language_model`: the decoder `./gone` is not to be had",
    );
    check(
        |c| c["image_encoder"]["mm_vision_tower"] = "./gone".into(),
        "`DIR/config.json`: field `mm_vision_tower`: the tower `./gone` is not to be had",
    );
    check(
        |c| c["image_encoder"]["mm_hidden_size"] = 33.into(),
        "field `mm_hidden_size`: expected the 32 of the tower, found `33`",
    );
    check(
        |c| c["video_encoder"]["hidden_size"] = 40.into(),
        "field `hidden_size`: expected the 48 of the decoder, found `40`",
    );
    check(
        |c| c["image_encoder"]["mm_projector_type"] = "identity".into(),
        "field `mm_projector_type`: expected `linear` or `mlpNx_gelu` with N from 1 to 16, found `identity`",
    );
    check(|c| c["image_encoder"]["mm_projector_type"] = "mlp2x_gelu".into(), "in the checkpoint but not in the model");
    check(
        |c| c["image_encoder"]["mm_vision_select_layer"] = 9.into(),
        "expected an index within 3 hidden states, found `9`",
    );
    check(|c| c["image_encoder"]["mm_patch_merge_type"] = "spatial_unpad".into(), "only `flat` is supported");
    check(|c| c["image_aspect_ratio"] = "anyres".into(), "expected `square` or `pad`, found `anyres`");
    check(|c| c["mm_vision_tower"] = c["image_encoder"]["mm_vision_tower"].clone(), "keep one of the two layouts");
    check(|c| c["image_encoder"]["mm_tower_lens"] = 1.into(), "field `mm_tower_lens`: is not supported (found `1`)");
    check(|c| c["mm_lens"] = 1.into(), "field `mm_lens`: is not supported (found `1`)");
}

#[test]
fn clips_need_an_encoder_for_them() {
    let fixture = Fixture::open(root().join("encoders_qwen3_clips"));
    let (model, _) = models::load(&fixture.dir, &f32_options()).unwrap();
    let mut samples = fixture.samples();
    samples[0].visuals[0].is_video = false;
    let (input, _) = crate::fixture::pack(&[&samples[0]], &fixture.placeholders());
    let error = model.logits(&tensor::Tape::inference(), &input).err().unwrap().to_string();
    assert_eq!(error, "model input: images for a model without an encoder for them");
}

/// Every key that the published checkpoints of LLaVA-1.5 write is known.
#[test]
fn the_keys_of_published_checkpoints_are_known() {
    let config = r#"{
        "_name_or_path": "llava-v1.5-13b", "architectures": ["LlavaLlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "freeze_mm_mlp_adapter": false, "freeze_mm_vision_resampler": false, "hidden_act": "silu", "hidden_size": 5120,
        "image_aspect_ratio": "pad", "image_grid_pinpoints": null, "initializer_range": 0.02, "intermediate_size": 13824,
        "max_length": 4096, "max_position_embeddings": 4096, "mm_hidden_size": 1024, "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": null, "mm_use_im_patch_token": false, "mm_use_im_start_end": false,
        "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "model_type": "llava", "num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 40, "pad_token_id": 0,
        "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16",
        "transformers_version": "4.31.0", "tune_mm_mlp_adapter": false, "tune_mm_vision_resampler": false,
        "unfreeze_mm_vision_tower": false, "use_cache": true, "use_mm_proj": true, "vocab_size": 32000,
        "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768}
    }"#;
    let config = serde_json::from_str(config).unwrap();
    let config = models::ModelConfig::from_json("config.json", config).unwrap();
    let encoders = config.encoders().unwrap();
    let image = encoders.image.as_ref().unwrap();
    assert_eq!((image.tokens_per_image(), image.feature_layer, encoders.has_start_end), (576, 23, false));
    assert_eq!(config.causal().unwrap().text.hidden_size, 5120);
}
