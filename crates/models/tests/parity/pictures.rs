//! What the tower makes of a picture does not depend on the pictures beside it, bit for bit, whatever their number: features
//! that were kept once can stand in any other batch.

use crate::base::fixtures;
use crate::fixture::{Fixture, pack};
use models::{LoadOptions, Model, ModelConfig};
use serde_json::json;
use tensor::{DType, Tape, Tensor};

/// The tower's states of pictures, as bytes, and the bytes of one of them.
fn states(model: &Model, pixels: &[f32], shape: [usize; 3]) -> (Vec<u8>, usize) {
    let [c, h, w] = shape;
    let num_images = pixels.len() / (c * h * w);
    let pixels = Tensor::from_f32(pixels, &[num_images, c, h, w]).unwrap();
    let bytes = model.tower_states(&Tape::inference(), &pixels).unwrap().value().to_bytes();
    let each = bytes.len() / num_images;
    (bytes, each)
}

/// Every picture alone against batches of several sizes.
fn check(what: &str, model: &Model, pixels: &[f32], shape: [usize; 3], sizes: &[usize]) {
    let size: usize = shape.iter().product();
    let alone: Vec<Vec<u8>> = pixels.chunks(size).map(|picture| states(model, picture, shape).0).collect();
    for &count in sizes {
        let (bytes, each) = states(model, &pixels[..count * size], shape);
        for (i, (ours, alone)) in bytes.chunks(each).zip(&alone).enumerate() {
            assert!(ours == alone, "{what}: picture {i} of {count} differs from itself alone");
        }
    }
    assert!(alone[0] != alone[1], "{what}: two pictures give the same states");
}

fn dtypes() -> Vec<DType> {
    if tensor::has_bf16() { vec![DType::F32, DType::BF16] } else { vec![DType::F32] }
}

/// Pictures of one size have states to keep; not EgoGPT's, whose clips are averaged behind the projector.
fn keeps_states(fixture: &Fixture, pixels: &Tensor) -> bool {
    pixels.shape().len() == 4 && !fixture.name().starts_with("egogpt_")
}

#[test]
fn of_every_fixture() {
    let mut num_towers = 0;
    for fixture in fixtures() {
        let samples = fixture.samples();
        let (input, _) = pack(&samples.iter().collect::<Vec<_>>(), &fixture.placeholders());
        let Some(pixels) = input.pixels.filter(|pixels| keeps_states(&fixture, pixels)) else { continue };
        let shape = [pixels.shape()[1], pixels.shape()[2], pixels.shape()[3]];
        let pixels = pixels.to_vec_f32().unwrap();
        let count = pixels.len() / shape.iter().product::<usize>();
        if count < 2 {
            continue;
        }
        num_towers += 1;
        for dtype in dtypes() {
            let (model, _) = models::load(&fixture.dir, &LoadOptions { dtype: Some(dtype) }).unwrap();
            check(&format!("{} {dtype:?}", fixture.name()), &model, &pixels, shape, &[2, count]);
        }
    }
    assert!(num_towers >= 5, "only {num_towers} folders with several pictures");
}

/// What the tower gave stands in for the pixels: the same logits to the last bit, tiles, frames and newlines in their places.
#[test]
fn states_in_place_of_pixels() {
    let mut num_tiled = 0;
    for fixture in fixtures() {
        let samples = fixture.samples();
        let (mut input, _) = pack(&samples.iter().collect::<Vec<_>>(), &fixture.placeholders());
        let Some(pixels) = input.pixels.clone().filter(|pixels| keeps_states(&fixture, pixels)) else { continue };
        let (model, _) = models::load(&fixture.dir, &LoadOptions { dtype: Some(DType::F32) }).unwrap();
        let t = Tape::inference();
        let logits = |input: &models::ModelInput| model.logits(&t, input).unwrap().value().to_bytes();
        let plain = logits(&input);
        input.tower_states = Some(model.tower_states(&t, &pixels).unwrap().into_value());
        input.pixels = None;
        assert!(logits(&input) == plain, "{}", fixture.name());
        num_tiled += usize::from(model.config().llava().is_some_and(|llava| llava.anyres.is_some()));
        // Visuals that do not fit the pictures are refused.
        if input.visuals.pop().is_some() {
            assert!(model.logits(&t, &input).is_err(), "{}", fixture.name());
        }
    }
    assert!(num_tiled >= 6);
}

/// Sums as long as those of real towers (4304 in SigLIP so400m), on both sides of 1024 rows.
#[test]
fn of_long_sums_and_many_rows() {
    for (family, tokens, image_size) in [("siglip_vision_model", 256, 112), ("clip_vision_model", 257, 112)] {
        let mut value = json!({
            "model_type": "llava", "image_token_index": 1, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
            "vision_config": {"model_type": family, "hidden_size": 72, "intermediate_size": 4304, "num_hidden_layers": 2,
                "num_attention_heads": 4, "image_size": image_size, "patch_size": 7},
            "text_config": {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
                "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": false}
        });
        if family.starts_with("siglip") {
            value["vision_config"]["vision_use_head"] = false.into();
        }
        for dtype in dtypes() {
            let config = ModelConfig::from_json("config.json", value.clone()).unwrap();
            let model = models::random(config, 3, dtype).unwrap();
            let shape = [3, image_size, image_size];
            let pixel = |i: usize| (i as u32).wrapping_mul(0x9E37_79B9) as i32 as f32 / 2f32.powi(31);
            let pixels: Vec<f32> = (0..5 * 3 * image_size * image_size).map(pixel).collect();
            check(&format!("{family} of {tokens} tokens, {dtype:?}"), &model, &pixels, shape, &[2, 3, 5]);
        }
    }
}
