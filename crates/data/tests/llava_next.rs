//! Checkpoints of `fixtures/data/llava_next`: text, ids, labels, tiles and frames against `transformers`.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::{
    EncodeOptions, Encoded, Format, FrameCache, ImageBackend, MediaRef, OnLong, Part, Processor, Role, Sample, Turn,
    VisualKind, collate, open_dataset,
};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn folder(case: &str) -> PathBuf {
    fixtures().join("data/llava_next").join(case)
}

fn processor(case: &str) -> Processor {
    let backend = if case.ends_with("pillow") { ImageBackend::Pillow } else { ImageBackend::Torchvision };
    Processor::load(&folder(case)).unwrap_or_else(|e| panic!("{case}: {e}")).with_image_backend(backend)
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

/// Sizes and checksums of the media of one kind, in order.
fn media_of(encoded: &Encoded, kind: VisualKind) -> Vec<Value> {
    let row: usize = encoded.pixel_shape.iter().product();
    let mut rest = encoded.pixels.as_slice();
    let mut found = Vec::new();
    for visual in &encoded.visuals {
        let (own, behind) = rest.split_at(visual.grid[0] * row);
        rest = behind;
        if visual.kind == kind {
            let shape: Vec<usize> = [&[visual.grid[0]], encoded.pixel_shape.as_slice()].concat();
            found.push(json!({"size": visual.source_size, "shape": shape, "checksum": checksum(own)}));
        }
    }
    assert!(rest.is_empty());
    found
}

fn check(case: &str) {
    let processor = processor(case);
    let dir = tempfile::tempdir().unwrap();
    let cache = Arc::new(FrameCache::open(dir.path(), 1 << 30).unwrap());
    let cached = self::processor(case).with_frame_cache(Some(cache));
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
        // The pictures come back as they were normalised, and can be put in their own order again.
        let pictures = processor.pictures(&encoded);
        assert_eq!(pictures.len(), encoded.num_images, "{place}");
        let mut again = encoded.clone();
        processor.reorder_pictures(&mut again, &(0..pictures.len()).collect::<Vec<_>>());
        assert_eq!(again, encoded, "{place}");
        let mut prompt = sample.clone();
        prompt.conversation.pop();
        let prompt =
            processor.encode(&prompt, &EncodeOptions { add_generation_prompt: true, ..options.clone() }).unwrap();
        assert_eq!(prompt.text, want["prompt"].as_str().unwrap(), "prompt of {place}");
    }
}

#[test]
fn next_video_with_files_of_the_hub() {
    check("next_video_hub");
}

#[test]
fn next_video_nested_with_sampled_clips() {
    check("next_video_nested");
}

#[test]
fn onevision_with_files_of_the_hub() {
    check("onevision_hub");
}

#[test]
fn onevision_nested_with_crops_and_a_class_token() {
    check("onevision_nested");
}

#[test]
fn next_takes_frames_one_by_one() {
    check("next_hub");
}

#[test]
fn pictures_scaled_by_pillow() {
    check("onevision_pillow");
    check("next_pillow");
}

fn png(number: usize) -> Part {
    Part::Media(MediaRef::image(fixtures().join(format!("data/images/{number}.png"))))
}

fn clip(name: &str) -> Part {
    Part::Media(MediaRef::video(fixtures().join("media/clips").join(name)))
}

fn question(parts: Vec<Part>) -> Sample {
    Sample::new("x", vec![Turn { role: Role::User, parts }, Turn::text(Role::Assistant, "yes")])
}

/// The folder of a case with some files changed: a pointer into the JSON, and what stands there then.
fn changed(case: &str, changes: &[(&str, &str, Value)]) -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder(case)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, temp.path().join(path.file_name().unwrap())).unwrap();
    }
    for (file, key, value) in changes {
        let path = temp.path().join(file);
        let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        json[*key] = value.clone();
        std::fs::write(&path, json.to_string()).unwrap();
    }
    temp
}

#[test]
fn files_that_contradict_each_other_are_refused() {
    let check = |case: &str, file: &str, key: &str, value: Value, expected: &str| {
        let temp = changed(case, &[(file, key, value)]);
        let error = Processor::load(temp.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let (image, video) = ("preprocessor_config.json", "video_preprocessor_config.json");
    check("onevision_hub", "processor_config.json", "num_image_tokens", json!(16), "`num_image_tokens` is 16");
    check(
        "onevision_hub",
        "processor_config.json",
        "vision_aspect_ratio",
        json!("anyres_max_4"),
        "`vision_aspect_ratio` is",
    );
    check("onevision_hub", "config.json", "model_type", json!("llava"), "is not supported beside a `llava` model");
    check(
        "onevision_hub",
        image,
        "image_processor_type",
        json!("CLIPImageProcessor"),
        "supported is LlavaOnevisionImageProcessor",
    );
    check("onevision_hub", image, "image_grid_pinpoints", json!([[15]]), "`image_grid_pinpoints` must be");
    check("onevision_hub", image, "tile_size", json!(4), "setting `tile_size` is not supported");
    check(
        "onevision_hub",
        video,
        "video_processor_type",
        json!("OtherVideoProcessor"),
        "video processor `OtherVideoProcessor`",
    );
    check("onevision_hub", video, "size", json!({"height": 30, "width": 30}), "frames are of 30x30");
    check("onevision_hub", video, "size", json!({"shortest_edge": 15}), "frames are of their own shape");
    check("next_video_hub", image, "crop_size", json!({"height": 24, "width": 12}), "tiles of 24 become 12x24");
}

#[test]
fn an_image_that_model_and_processor_would_cut_differently_is_refused() {
    let other = json!([[24, 24], [48, 48]]);
    let temp = changed("next_video_hub", &[("config.json", "image_grid_pinpoints", other.clone())]);
    let processor = Processor::load(temp.path()).unwrap();
    let options = EncodeOptions { num_frames: Some(2), ..EncodeOptions::default() };
    let tall = question(vec![Part::Media(MediaRef::image(fixtures().join("data/qwen_vl/tall.png")))]);
    let error = processor.encode(&tall, &options).unwrap_err();
    assert_eq!(error.reason(), "picture_shapes");
    assert!(error.to_string().contains("the model expects"), "{error}");
    // Clips are not cut.
    processor.encode(&question(vec![clip("h264_small.mp4")]), &options).unwrap();
    let uneven = json!([[25, 50]]);
    let changes = [
        ("config.json", "image_grid_pinpoints", uneven.clone()),
        ("preprocessor_config.json", "image_grid_pinpoints", uneven),
    ];
    let processor = Processor::load(changed("next_video_hub", &changes).path()).unwrap();
    let error = processor.measure(&tall, &options).unwrap_err().to_string();
    assert!(error.contains("is not made of whole tiles of 24"), "{error}");
}

#[test]
fn long_records_get_fewer_frames() {
    let processor = processor("next_video_hub");
    let sample = question(vec![clip("h264_gop12.mp4"), Part::Text("What?".into())]);
    let whole = processor.encode(&sample, &EncodeOptions { num_frames: Some(9), ..EncodeOptions::default() }).unwrap();
    let shorter = EncodeOptions {
        num_frames: Some(9),
        max_length: Some(whole.ids.len() - 5),
        on_long: OnLong::FewerFrames,
        ..EncodeOptions::default()
    };
    let fewer = processor.encode(&sample, &shorter).unwrap();
    // Four tokens a frame.
    assert_eq!((fewer.num_images, whole.ids.len() - fewer.ids.len()), (7, 8));
    assert_eq!(fewer.visuals[0].grid, [7, 4, 4]);
}

#[test]
fn a_clip_about_which_nobody_says_anything_is_taken_whole() {
    let processor = processor("onevision_hub");
    let sample = question(vec![clip("h264_gop12.mp4")]);
    let whole = processor.encode(&sample, &EncodeOptions::default()).unwrap();
    assert_eq!((whole.num_images, whole.visuals[0].num_tokens), (whole.frames.len(), whole.num_images * 4 + 1));
    assert!(whole.num_images > 20);
}

#[test]
fn records_of_images_and_clips_are_packed() {
    let processor = processor("onevision_hub");
    let options = EncodeOptions { num_frames: Some(2), ..EncodeOptions::default() };
    let encode = |parts: Vec<Part>| processor.encode(&question(parts), &options).unwrap();
    let records = [encode(vec![png(1)]), encode(vec![clip("h264_small.mp4"), png(2)]), encode(vec![png(2), png(3)])];
    let batch = collate(&records).unwrap();
    let rows: usize = batch.visuals.iter().map(|visual| visual.grid[0]).sum();
    assert_eq!((batch.num_images, batch.pixels.len()), (6, rows * 3 * 15 * 15));
    // An image alone is cut, several are not.
    let tiles: Vec<usize> = batch.visuals.iter().map(|visual| visual.grid[0]).collect();
    assert!(tiles[0] > 1, "{tiles:?}");
    assert_eq!(tiles[3..], [1, 1]);
}
