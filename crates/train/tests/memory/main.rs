//! The planned memory against the engine's counted peak, and the planned operations against the counted ones. One test in a
//! process of its own, because the pool is shared by everything in a process.

#![allow(clippy::unwrap_used)] // Helpers of tests are outside `#[test]` functions.

use data::Batch;
use models::{ModelConfig, random};
use serde_json::json;
use tensor::{DType, memory};
use train::forecast::forecast;
use train::plan::{MethodKind, Plan, TargetModules};
use train::schedule::Schedule;
use train::{Trainer, select};

const TEXT: usize = 256;
const IMAGES: usize = 3;

/// A LLaVA large enough that activations, weights and optimizer state each matter.
fn config() -> ModelConfig {
    let value = json!({
        "model_type": "llava", "image_token_index": 1, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4,
            "num_attention_heads": 4, "image_size": 112, "patch_size": 14, "vision_use_head": false},
        "text_config": {"model_type": "qwen2", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6,
            "num_key_value_heads": 2, "vocab_size": 4096, "tie_word_embeddings": false}
    });
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
    let visual = data::Visual { kind: data::VisualKind::Video, grid: [IMAGES, 8, 8], ..data::Visual::default() };
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

fn batch(config: &ModelConfig, text: usize) -> Batch {
    if config.egogpt().is_some() {
        return heard(text);
    }
    let llava = config.llava().unwrap();
    let image_rows: Vec<u32> = (0..(IMAGES * llava.tokens_per_image()) as u32).collect();
    let total = image_rows.len() + text;
    let ids: Vec<u32> = (0..total).map(|i| if i < image_rows.len() { 1 } else { 2 + (i * 37 % 4000) as u32 }).collect();
    let labels = ids.iter().map(|id| if *id == 1 { data::IGNORE } else { *id as i32 }).collect();
    let side = llava.vision.image_size;
    let pixels = (0..IMAGES * 3 * side * side).map(|i| (i % 255) as f32 / 127.5 - 1.0).collect();
    Batch {
        ids,
        labels,
        positions: (0..total as u32).collect(),
        cu_seqlens: vec![0, total],
        pixels,
        num_images: IMAGES,
        pixel_shape: vec![3, side, side],
        image_rows,
        sample_ids: vec!["0".to_owned()],
        sample_index: vec![0],
        ..Batch::default()
    }
}

#[test]
fn planned_peaks_are_within_five_percent_of_counted_ones() {
    let config = config();
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
    let case = format!("{} {dtype:?} recompute {recompute} freeze {freeze} text {text}", kind.word());
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
