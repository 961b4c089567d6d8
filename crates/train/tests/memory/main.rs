//! The planned memory against the engine's counted peak, and the planned operations against the counted ones. One test in a
//! process of its own, because the pool is shared by everything in a process.

#![allow(clippy::unwrap_used)] // Helpers of tests are outside `#[test]` functions.

use data::{Batch, Visual, VisualKind};
use models::{ModelConfig, random};
use serde_json::{Value, json};
use tensor::{DType, memory};
use train::forecast::forecast;
use train::plan::{MethodKind, Plan, TargetModules};
use train::schedule::Schedule;
use train::{Trainer, select};

const TEXT: usize = 256;
const IMAGES: usize = 3;

/// A LLaVA large enough that activations, weights and optimizer state each matter.
fn config(changes: &[(&str, Value)]) -> ModelConfig {
    let mut value = json!({
        "model_type": "llava", "image_token_index": 1, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4,
            "num_attention_heads": 4, "image_size": 112, "patch_size": 14, "vision_use_head": false},
        "text_config": {"model_type": "qwen2", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6,
            "num_key_value_heads": 2, "vocab_size": 4096, "tie_word_embeddings": false}
    });
    for (key, change) in changes {
        value[*key] = change.clone();
    }
    ModelConfig::from_json("config.json", value).unwrap()
}

/// An EgoGPT of like size, whose speech encoder has most to keep.
fn hearing() -> ModelConfig {
    let value = json!({
        "model_type": "egogpt_qwen", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6,
        "num_key_value_heads": 2, "vocab_size": 4096, "tie_word_embeddings": false, "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "spatial_unpad", "speech_encoder": "tiny", "speech_encoder_hidden_size": 96, "speech_projector_hidden_size": 128,
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": 112, "patch_size": 14, "vision_use_head": false},
        "speech_config": {"d_model": 96, "encoder_ffn_dim": 384, "encoder_layers": 4, "encoder_attention_heads": 4, "num_mel_bins": 40,
            "max_source_positions": 250}
    });
    ModelConfig::from_json("config.json", value).unwrap()
}

/// A clip of three frames and two windows of sound before the text.
fn heard(text: usize) -> Batch {
    let (num_seen, num_heard) = (IMAGES as u32 * 16 + 1, 2 * 50);
    let total = (num_seen + num_heard) as usize + text;
    let is_medium = |i: usize| i < (num_seen + num_heard) as usize;
    let ids: Vec<u32> = (0..total).map(|i| if is_medium(i) { 1 } else { 2 + (i * 37 % 4000) as u32 }).collect();
    let visual = Visual { kind: VisualKind::Video, grid: [IMAGES, 8, 8], ..Visual::default() };
    Batch {
        labels: ids.iter().map(|id| if *id == 1 { data::IGNORE } else { *id as i32 }).collect(),
        ids,
        positions: (0..total as u32).collect(),
        cu_seqlens: vec![0, total],
        pixels: (0..IMAGES * 3 * 112 * 112).map(|i| (i % 255) as f32 / 127.5 - 1.0).collect(),
        num_images: IMAGES,
        pixel_shape: vec![3, 112, 112],
        image_rows: (0..num_seen).collect(),
        visuals: vec![visual],
        mel: (0..2 * 40 * 500).map(|i| (i % 201) as f32 / 100.0 - 1.0).collect(),
        mel_shape: vec![40, 500],
        speech_rows: (num_seen..num_seen + num_heard).collect(),
        sample_ids: vec!["0".to_owned()],
        sample_index: vec![0],
        ..Batch::default()
    }
}

/// Pictures of any size before a decoder of as many layers: with mergers behind some blocks, or with class tokens.
fn native(kind: &str) -> ModelConfig {
    let text = json!({"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 32, "vocab_size": 4096});
    let vision = match kind {
        "qwen3_vl" => {
            json!({"depth": 4, "deepstack_visual_indexes": [0, 2], "hidden_size": 96, "intermediate_size": 256, "num_heads": 4,
            "num_position_embeddings": 100, "out_hidden_size": 192, "patch_size": 14, "temporal_patch_size": 1})
        }
        _ => json!({"depth": 4, "hidden_size": 96, "intermediate_size": 256, "num_heads": 4, "text_hidden_size": 192}),
    };
    let value = json!({"model_type": kind, "image_token_id": 1, "video_token_id": 0, "text_config": text, "vision_config": vision});
    ModelConfig::from_json("config.json", value).unwrap()
}

/// Those with tiles, whose frames get smaller in three ways.
fn tiled() -> Vec<ModelConfig> {
    let common = [("image_grid_pinpoints", json!([[112, 224]])), ("video_token_index", json!(0))];
    let of = |more: [(&str, Value); 2]| config(&[&common[..], &more[..]].concat());
    vec![
        of([("model_type", json!("llava_onevision")), ("vision_aspect_ratio", json!("anyres_max_1"))]),
        of([("model_type", json!("llava_next_video")), ("spatial_pool_mode", json!("max"))]),
        of([("model_type", json!("llava_next_video")), ("spatial_pool_mode", json!("conv"))]),
    ]
}

/// An image of two tiles and a clip of two frames, where the model has tiles.
fn visuals(config: &ModelConfig) -> (Vec<Visual>, usize) {
    let llava = config.llava().unwrap();
    let Some(anyres) = &llava.anyres else { return (Vec::new(), IMAGES * llava.tokens_per_image()) };
    let grid = llava.vision.grid();
    let image = Visual { grid: [3, grid, grid], source_size: [112, 224], ..Visual::default() };
    let clip = Visual { kind: VisualKind::Video, grid: [2, grid, grid], ..Visual::default() };
    // Two tiles side by side with a newline behind every row, shrunk to one where that is the most.
    let lines = if anyres.max_tiles.is_some() { 5 * (11 + 1) } else { grid * (2 * grid + 1) };
    (vec![image, clip], grid * grid + lines + anyres.clips.as_ref().unwrap().tokens(2, grid))
}

fn batch(config: &ModelConfig, text: usize) -> Batch {
    if config.egogpt().is_some() {
        return heard(text);
    }
    let Some(llava) = config.llava() else { return native_batch(text) };
    let (visuals, num_rows) = visuals(config);
    let num_pictures = if visuals.is_empty() { IMAGES } else { 5 };
    let image_rows: Vec<u32> = (0..num_rows as u32).collect();
    let total = image_rows.len() + text;
    let ids: Vec<u32> = (0..total).map(|i| if i < image_rows.len() { 1 } else { 2 + (i * 37 % 4000) as u32 }).collect();
    let labels = ids.iter().map(|id| if *id == 1 { data::IGNORE } else { *id as i32 }).collect();
    let side = llava.vision.image_size;
    let pixels = (0..num_pictures * 3 * side * side).map(|i| (i % 255) as f32 / 127.5 - 1.0).collect();
    Batch {
        ids,
        labels,
        positions: (0..total as u32).collect(),
        cu_seqlens: vec![0, total],
        pixels,
        num_images: IMAGES,
        pixel_shape: vec![3, side, side],
        image_rows,
        visuals,
        sample_ids: vec!["0".to_owned()],
        sample_index: vec![0],
        ..Batch::default()
    }
}

/// The same with pictures of three sizes.
fn native_batch(text: usize) -> Batch {
    let grids = [[1, 8, 12], [1, 10, 6], [1, 16, 8]];
    let patches: usize = grids.iter().map(|grid| grid.iter().product::<usize>()).sum();
    let total = patches / 4 + text;
    let ids: Vec<u32> = (0..total).map(|i| if i < patches / 4 { 1 } else { 2 + (i * 37 % 4000) as u32 }).collect();
    let row = 3 * 14 * 14;
    Batch {
        labels: ids.iter().map(|id| if *id == 1 { data::IGNORE } else { *id as i32 }).collect(),
        ids,
        positions: (0..total as u32).collect(),
        cu_seqlens: vec![0, total],
        pixels: (0..patches * row).map(|i| (i % 255) as f32 / 127.5 - 1.0).collect(),
        num_images: patches,
        pixel_shape: vec![row],
        image_rows: (0..patches as u32 / 4).collect(),
        visuals: grids.into_iter().map(|grid| Visual { grid, ..Visual::default() }).collect(),
        sample_ids: vec!["0".to_owned()],
        sample_index: vec![0],
        ..Batch::default()
    }
}

#[test]
fn planned_peaks_are_within_five_percent_of_counted_ones() {
    for kind in ["qwen3_vl", "llavaonevision1_5"] {
        for (method, recompute) in [(MethodKind::Full, false), (MethodKind::Full, true), (MethodKind::Lora, true)] {
            check(&native(kind), method, DType::F32, recompute, false, TEXT);
        }
    }
    let config = config(&[]);
    let mut cases = Vec::new();
    for kind in [MethodKind::Full, MethodKind::Lora, MethodKind::Projector] {
        for dtype in [DType::F32, DType::BF16] {
            for recompute in [false, true] {
                for freeze in [false, true] {
                    if !freeze || kind == MethodKind::Full {
                        cases.push((kind, dtype, recompute, freeze));
                    }
                }
            }
        }
    }
    for (kind, dtype, recompute, freeze) in cases {
        for text in [TEXT, 4 * TEXT] {
            check(&config, kind, dtype, recompute, freeze, text);
        }
    }
    let hearing = hearing();
    for (kind, freeze) in [(MethodKind::Full, false), (MethodKind::Full, true), (MethodKind::Projector, false)] {
        for dtype in [DType::F32, DType::BF16] {
            for recompute in [false, true] {
                check(&hearing, kind, dtype, recompute, freeze, TEXT);
            }
        }
    }
    for config in tiled() {
        for (kind, dtype) in [(MethodKind::Full, DType::F32), (MethodKind::Lora, DType::BF16)] {
            check(&config, kind, dtype, false, false, TEXT);
        }
    }
}

fn check(config: &ModelConfig, kind: MethodKind, dtype: DType, recompute: bool, freeze: bool, text: usize) {
    let window = [batch(config, text)];
    let mut plan = Plan::default();
    plan.method.kind = Some(kind);
    plan.method.lora.target_modules = TargetModules::Text("all-linear".to_owned());
    plan.method.freeze = if freeze { vec!["vision".to_owned()] } else { Vec::new() };
    plan.train.gradient_checkpointing = recompute;
    let planned = forecast(&plan, || Ok(random(config.clone(), 1, dtype)?), &window).unwrap();
    let before = memory::stats().current_bytes;
    let mut model = random(config.clone(), 1, dtype).unwrap();
    let selection = select(&plan, &mut model).unwrap();
    let mut trainer = Trainer::new(&plan, model, &selection, Schedule::new(&plan, 3).unwrap());
    // Before the first step: it holds what the second will, and leaves nothing.
    let weights = memory::stats().current_bytes;
    let rehearsal = trainer.rehearse(&window[0], 1).unwrap();
    assert_eq!(memory::stats().current_bytes, weights);
    trainer.train_step(&window).unwrap();
    // The first step makes the optimizer's state; the second one has all of it beside its activations.
    memory::reset_peak();
    let outcome = trainer.train_step(&window).unwrap();
    let counted = (memory::stats().peak_bytes - before) as f64;
    let estimate = &planned.memory;
    let ratio = estimate.total as f64 / counted;
    let case =
        format!("{} {} {dtype:?} recompute {recompute} freeze {freeze} text {text}", config.model_type, kind.word());
    println!(
        "{case}: planned {:.2} MB, counted {:.2} MB, ratio {ratio:.4}",
        estimate.total as f64 / 1e6,
        counted / 1e6
    );
    assert!((0.95..1.05).contains(&ratio), "{case}: planned {estimate:?}, counted {counted}, ratio {ratio:.3}");
    let rehearsed = (rehearsal.peak_memory_bytes as f64 - before as f64) / counted;
    assert!((0.95..1.05).contains(&rehearsed), "{case}: the rehearsal took {rehearsed:.3} of a step's peak");
    assert_eq!(planned.flops, outcome.flops, "{case}");
    let trains_decoder = kind != MethodKind::Projector;
    let kept: Vec<u64> = estimate.blocks.iter().filter(|b| b.name == "llm.layers").map(|b| b.bytes).collect();
    assert_eq!(kept.len(), 6, "{case}: {:?}", estimate.blocks);
    assert!(kept.iter().all(|&bytes| bytes > 0) || !trains_decoder, "{case}: {kept:?}");
    let parts = estimate.weights + estimate.optimizer + estimate.gradients + estimate.activations + estimate.workspace;
    assert!(parts >= estimate.total, "{case}: {estimate:?}");
}
