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

fn batch(config: &ModelConfig, text: usize) -> Batch {
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
        image_shape: [3, side, side],
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
    assert_eq!(planned.flops, outcome.flops, "{case}");
    let trains_decoder = kind != MethodKind::Projector;
    let kept: Vec<u64> = estimate.blocks.iter().filter(|b| b.name == "llm.layers").map(|b| b.bytes).collect();
    assert_eq!(kept.len(), 6, "{case}: {:?}", estimate.blocks);
    assert!(kept.iter().all(|&bytes| bytes > 0) || !trains_decoder, "{case}: {kept:?}");
    let parts = estimate.weights + estimate.optimizer + estimate.gradients + estimate.activations + estimate.workspace;
    assert!(parts >= estimate.total, "{case}: {estimate:?}");
}
