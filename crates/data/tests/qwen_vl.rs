//! Checkpoints of `fixtures/data/qwen_vl`: text, ids, labels, grids, times and patches against `transformers`.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::{
    EncodeOptions, Encoded, Format, FrameCache, MediaRef, MediaSource, OnLong, Part, Processor, Role, Sample,
    TemplateChoice, Turn, VisualKind, collate, open_dataset,
};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn folder(case: &str) -> PathBuf {
    fixtures().join("data/qwen_vl").join(case)
}

fn clip(name: &str) -> PathBuf {
    fixtures().join("media/clips").join(name)
}

fn processor(case: &str) -> Processor {
    Processor::load(&folder(case)).unwrap()
}

/// The records of a case with what is asked of each.
fn records(case: &str) -> Vec<(Sample, EncodeOptions)> {
    let path = folder(case).join("records.json");
    let dataset = open_dataset(&path, Format::Auto, Some(&fixtures())).unwrap();
    let raw: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(dataset.len(), raw.len() as u64);
    let of = |(index, record): (usize, &Value)| {
        let options = EncodeOptions {
            num_frames: record["options"]["num_frames"].as_u64().map(|n| n as usize),
            fps: record["options"]["fps"].as_f64(),
            ..EncodeOptions::default()
        };
        (dataset.get(index as u64).unwrap(), options)
    };
    raw.iter().enumerate().map(of).collect()
}

fn expected(case: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder(case).join("expected.json")).unwrap();
    text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The checksum of the generator.
fn checksum(values: &[f32]) -> String {
    let term = |(i, value): (usize, &f32)| u64::from(value.to_bits()).wrapping_mul(2 * i as u64 + 1);
    values.iter().enumerate().map(term).fold(0, u64::wrapping_add).to_string()
}

/// Grids and checksums of the media of one kind, in order.
fn media_of(encoded: &Encoded, kind: VisualKind) -> Vec<Value> {
    let row: usize = encoded.pixel_shape.iter().product();
    let mut rest = encoded.pixels.as_slice();
    let mut found = Vec::new();
    for visual in &encoded.visuals {
        let (own, behind) = rest.split_at(visual.num_patches() * row);
        rest = behind;
        if visual.kind == kind {
            found.push(json!({"grid": visual.grid, "row": row, "checksum": checksum(own)}));
        }
    }
    assert!(rest.is_empty());
    found
}

fn check(case: &str) {
    let processor = processor(case);
    let dir = tempfile::tempdir().unwrap();
    let cache = Arc::new(FrameCache::open(dir.path(), 1 << 30).unwrap());
    let cached = Processor::load(&folder(case)).unwrap().with_frame_cache(Some(cache));
    for (number, ((sample, options), want)) in records(case).iter().zip(expected(case)).enumerate() {
        let place = format!("{case}, record {number}");
        let encoded = processor.encode(sample, options).unwrap_or_else(|e| panic!("{place}: {e}"));
        assert_eq!(encoded.text, want["text"].as_str().unwrap(), "text of {place}");
        assert_eq!(json!(encoded.ids), want["ids"], "ids of {place}");
        assert_eq!(json!(encoded.labels), want["labels"], "labels of {place}");
        for (key, kind) in [("images", VisualKind::Image), ("videos", VisualKind::Video)] {
            let mut wanted = want[key].clone();
            for medium in wanted.as_array_mut().unwrap() {
                medium.as_object_mut().unwrap().remove("first");
            }
            assert_eq!(json!(media_of(&encoded, kind)), wanted, "{key} of {place}");
        }
        let rates: Vec<f64> =
            want["seconds_per_grid"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
        let clips = encoded.visuals.iter().filter(|v| v.kind == VisualKind::Video);
        for (visual, rate) in clips.zip(&rates) {
            // The reference keeps them in f32.
            assert_eq!(visual.seconds_per_grid as f32, *rate as f32, "seconds per grid of {place}");
        }
        // What is planned is what is made, with the frame cache and without.
        assert_eq!(processor.measure(sample, options).unwrap(), encoded.size(), "measured size of {place}");
        for _ in 0..2 {
            assert_eq!(cached.encode(sample, options).unwrap(), encoded, "with a frame cache: {place}");
        }
        let rows: Vec<u32> = (0..encoded.ids.len() as u32)
            .filter(|&row| {
                let id = Some(encoded.ids[row as usize]);
                id == processor.image_token_id() || id == processor.video_token_id()
            })
            .collect();
        assert_eq!(encoded.image_rows, rows, "rows of {place}");
        let tokens: usize = encoded.visuals.iter().map(|visual| visual.num_tokens).sum();
        assert_eq!((tokens, encoded.frames.len()), (rows.len(), encoded.num_images), "{place}");
        let seconds: Vec<f64> = encoded.visuals.iter().flat_map(|visual| visual.seconds.clone()).collect();
        assert_eq!(seconds, encoded.frames.iter().map(|frame| frame.seconds).collect::<Vec<_>>(), "times of {place}");
        let mut prompt = sample.clone();
        prompt.conversation.pop();
        let prompt =
            processor.encode(&prompt, &EncodeOptions { add_generation_prompt: true, ..options.clone() }).unwrap();
        let prompt_text = want["prompt"].as_str().unwrap();
        assert!(
            prompt.text.ends_with(&prompt_text[prompt_text.len() - 20..]) && prompt.num_supervised() == 0,
            "{place}"
        );
    }
}

#[test]
fn qwen2_5_vl_with_one_file_for_pictures_and_clips() {
    check("qwen2_5_one_file");
}

#[test]
fn qwen2_vl_with_samples_and_a_cap() {
    check("qwen2_two_files");
}

#[test]
fn qwen2_5_vl_nested_with_three_frames_a_patch() {
    check("qwen2_5_nested");
}

#[test]
fn the_classes_own_settings() {
    check("qwen2_5_defaults");
}

#[test]
fn qwen3_vl_writes_times() {
    check("qwen3");
    check("qwen3_capped");
}

#[test]
fn onevision_1_5_takes_frames_one_by_one() {
    check("onevision1_5");
}
