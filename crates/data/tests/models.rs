//! Whole checkpoints of `fixtures/models`: text, ids, labels and pixel values against `transformers`.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};

use data::{EncodeOptions, Format, Processor, collate, open_dataset};
use hub::SafeTensors;

/// Folders of `fixtures/models` with a processor.
const FOLDERS: [&str; 12] = [
    "llava_siglip_qwen2",
    "llava_clip_llama",
    "siglip_odd_qwen2_tied",
    "clip_full_llama_bias",
    "siglip_llama3_transformers5",
    "clip_llama_defaults",
    "siglip_qwen2_defaults",
    "siglip_head_qwen2",
    "siglip_qwen3_windows",
    "clip_mistral_window",
    "siglip_phi3_longrope",
    "clip_phi3_window",
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

fn i64s(file: &SafeTensors, name: &str) -> Vec<i64> {
    let view = file.get(name).unwrap();
    view.data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

fn f32s(file: &SafeTensors, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
    let view = file.get(name)?;
    let values = view.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    Some((view.shape.to_vec(), values))
}

/// Compares every sample of a folder; pixel values must be the same bits.
fn check(name: &str) {
    let dir = folder(name);
    let processor = Processor::load(&dir).unwrap();
    let dataset = open_dataset(&dir.join("samples.json"), Format::Auto, None).unwrap();
    assert_eq!(dataset.format(), Format::Messages);
    let expected = SafeTensors::open(dir.join("expected.safetensors")).unwrap();
    let texts: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("expected.json")).unwrap()).unwrap();
    for index in 0..dataset.len() {
        let place = format!("{name}, sample {index}");
        let sample = dataset.get(index).unwrap();
        let encoded = processor.encode(&sample, &EncodeOptions::default()).unwrap();
        assert_eq!(encoded.text, texts["samples"][index as usize]["text"].as_str().unwrap(), "text of {place}");
        let ids: Vec<i64> = encoded.ids.iter().map(|&i| i64::from(i)).collect();
        assert_eq!(ids, i64s(&expected, &format!("sample{index}.input_ids")), "ids of {place}");
        let labels: Vec<i64> = encoded.labels.iter().map(|&l| i64::from(l)).collect();
        assert_eq!(labels, i64s(&expected, &format!("sample{index}.labels")), "labels of {place}");
        match f32s(&expected, &format!("sample{index}.pixel_values")) {
            None => assert_eq!(encoded.num_images, 0, "pictures of {place}"),
            Some((shape, values)) => {
                let &[c, h, w] = encoded.pixel_shape.as_slice() else { panic!("{:?}", encoded.pixel_shape) };
                assert_eq!(shape, [encoded.num_images, c, h, w], "shape of {place}");
                let differing = values.iter().zip(&encoded.pixels).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                assert_eq!(differing, 0, "pixel values of {place}");
            }
        }
        let image_id = processor.image_token_id().unwrap();
        let rows: Vec<u32> = (0..encoded.ids.len() as u32).filter(|&r| encoded.ids[r as usize] == image_id).collect();
        assert_eq!(encoded.image_rows, rows, "picture rows of {place}");
        let batch = collate(std::slice::from_ref(&encoded)).unwrap();
        let supervised = texts["samples"][index as usize]["num_supervised"].as_u64().unwrap();
        assert_eq!(batch.num_supervised() as u64, supervised, "supervised tokens of {place}");
    }
}

#[test]
fn siglip_with_qwen2_and_generation_blocks() {
    check(FOLDERS[0]);
}

#[test]
fn clip_with_llama_and_a_sentencepiece_tokenizer() {
    check(FOLDERS[1]);
}

#[test]
fn a_chatml_template_in_the_tokenizer_configuration() {
    check(FOLDERS[2]);
}

#[test]
fn generation_blocks_that_hold_the_end_token() {
    check(FOLDERS[3]);
}

#[test]
fn files_as_transformers_5_saves_them() {
    check(FOLDERS[4]);
}

#[test]
fn files_with_class_defaults() {
    check(FOLDERS[5]);
    check(FOLDERS[6]);
}

#[test]
fn a_tower_with_a_head() {
    check(FOLDERS[7]);
}

#[test]
fn other_decoders() {
    check(FOLDERS[8]);
    check(FOLDERS[9]);
}

#[test]
fn a_template_of_marks_without_newlines() {
    check(FOLDERS[10]);
    check(FOLDERS[11]);
}

#[test]
fn every_folder_is_tested() {
    let mut found: Vec<String> = std::fs::read_dir(folder(""))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("processor_config.json").is_file())
        .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    let mut known = FOLDERS.to_vec();
    known.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn a_prompt_ends_where_the_answer_begins() {
    for name in FOLDERS {
        let dir = folder(name);
        let processor = Processor::load(&dir).unwrap();
        let dataset = open_dataset(&dir.join("samples.json"), Format::Auto, None).unwrap();
        let text = std::fs::read_to_string(dir.join("expected.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
        for case in expected["greedy"].as_array().unwrap() {
            let mut sample = dataset.get(case["sample"].as_u64().unwrap()).unwrap();
            let first = sample.conversation.iter().position(|t| t.role == data::Role::Assistant).unwrap();
            sample.conversation.truncate(first);
            let options = EncodeOptions { add_generation_prompt: true, ..EncodeOptions::default() };
            let encoded = processor.encode(&sample, &options).unwrap();
            let ids: Vec<u64> = case["input_ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
            assert_eq!(encoded.ids.iter().map(|&i| u64::from(i)).collect::<Vec<_>>(), ids, "{name}");
            assert_eq!(encoded.num_supervised(), 0);
        }
    }
}
