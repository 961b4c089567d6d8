//! Checkpoints of `fixtures/data/qwen_vl`: text, ids, labels, grids, times and patches against `transformers`.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::{
    EncodeOptions, Encoded, Format, FrameCache, ImageBackend, MediaKind, MediaRef, MediaSource, OnLong, Part,
    Processor, Role, Sample, TemplateChoice, Turn, VisualKind, collate, open_dataset,
};
use media::FrameRule;
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
    let backend = if case.ends_with("pillow") { ImageBackend::Pillow } else { ImageBackend::Torchvision };
    Processor::load(&folder(case)).unwrap().with_image_backend(backend)
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
fn pictures_scaled_by_pillow() {
    check("qwen2_pillow");
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

fn question(parts: Vec<Part>) -> Sample {
    Sample::new("x", vec![Turn { role: Role::User, parts }, Turn::text(Role::Assistant, "yes")])
}

fn video(name: &str) -> Part {
    Part::Media(MediaRef::video(clip(name)))
}

fn num_frames(n: usize) -> EncodeOptions {
    EncodeOptions { num_frames: Some(n), ..EncodeOptions::default() }
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

fn reason_of(processor: &Processor, sample: &Sample, options: &EncodeOptions) -> (&'static str, String) {
    let error = processor.encode(sample, options).unwrap_err();
    assert!(processor.measure(sample, options).is_err(), "{error}");
    (error.reason(), error.to_string())
}

#[test]
fn media_that_cannot_be_cut_into_patches_are_refused() {
    let own = processor("qwen2_5_one_file");
    let oblong = question(vec![Part::Media(MediaRef::image(folder("oblong.png")))]);
    let (reason, text) = reason_of(&own, &oblong, &EncodeOptions::default());
    assert_eq!(reason, "too_oblong");
    assert!(
        text.ends_with(
            "oblong.png` is 401x2: expected a longer side of at most 200 times the shorter one, found 200.5 times; hint: crop the file, or remove the record"
        ),
        "{text}"
    );
    let file = "preprocessor_config.json";
    let unscaled = changed("qwen2_5_one_file", &[(file, "do_resize", json!(false))]);
    let unscaled = Processor::load(unscaled.path()).unwrap();
    let (reason, text) = reason_of(&unscaled, &question(vec![video("h264_gop12.mp4")]), &num_frames(2));
    assert_eq!(reason, "picture_shapes");
    assert!(text.contains("is 96x64: expected multiples of 28, for `do_resize` is false, found 96x64"), "{text}");
    // Frames of one clip must have one size.
    let files = [folder("frame0.png"), folder("edge.png")];
    let list = MediaRef::new(MediaKind::Video, MediaSource::Files(files.to_vec()));
    let error = own.encode(&question(vec![Part::Media(list)]), &EncodeOptions::default()).unwrap_err();
    assert_eq!(error.reason(), "picture_shapes");
    assert!(error.to_string().contains("the frames of a clip have different sizes"), "{error}");
}

#[test]
fn without_scaling_pictures_are_taken_as_they_are() {
    let dir = changed(
        "qwen2_two_files",
        &[
            ("preprocessor_config.json", "do_resize", json!(false)),
            ("video_preprocessor_config.json", "do_resize", json!(false)),
        ],
    );
    let processor = Processor::load(dir.path()).unwrap();
    let picture = fixtures().join("data/images/5.png");
    let sample = question(vec![Part::Media(MediaRef::image(&picture)), video("h264_small.mp4")]);
    let encoded = processor.encode(&sample, &num_frames(2)).unwrap();
    assert_eq!(encoded.visuals.iter().map(|v| v.grid).collect::<Vec<_>>(), [[1, 2, 2], [1, 2, 2]]);
    let pictures = processor.pictures(&encoded);
    assert_eq!(pictures[0], media::load_image(&picture, &media::Limits::default()).unwrap());
    let index = media::index_video(&clip("h264_small.mp4"), &media::Limits::default()).unwrap();
    let decoded = media::decode_frames(&index, &[0, 10], &media::Limits::default()).unwrap();
    assert_eq!(pictures[1..], [decoded[0].image.clone(), decoded[1].image.clone()]);
}

#[test]
fn frames_come_back_from_their_patches_and_change_places() {
    let processor = processor("qwen2_5_nested");
    let picture = Part::Media(MediaRef::image(fixtures().join("data/images/1.png")));
    let sample = question(vec![video("h264_gop12.mp4"), picture]);
    let encoded = processor.encode(&sample, &num_frames(6)).unwrap();
    let pictures = processor.pictures(&encoded);
    assert_eq!((pictures.len(), encoded.num_images), (7, 7));
    let index = media::index_video(&clip("h264_gop12.mp4"), &media::Limits::default()).unwrap();
    let chosen: Vec<usize> = encoded.frames[..6].iter().map(|frame| frame.index).collect();
    let decoded = media::decode_frames(&index, &chosen, &media::Limits::default()).unwrap();
    for (picture, frame) in pictures.iter().zip(&decoded) {
        let (width, height) = (picture.width, picture.height);
        let scaled = media::resize::torchvision(&frame.image, width, height, media::resize::Filter::Bicubic);
        assert_eq!(*picture, scaled, "frame {}", frame.index);
    }
    let mut same = encoded.clone();
    processor.reorder_pictures(&mut same, &[0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(same, encoded);
    let mut other = encoded.clone();
    processor.reorder_pictures(&mut other, &[5, 4, 3, 2, 1, 0, 6]);
    let reordered: Vec<_> = [5, 4, 3, 2, 1, 0, 6].map(|i| pictures[i].clone()).to_vec();
    assert_eq!(processor.pictures(&other), reordered);
    assert!((other.ids.clone(), other.frames.clone()) == (encoded.ids.clone(), encoded.frames.clone()));
    // The last frame of a clip fills its patch, whichever it is.
    let whole = self::processor("qwen2_5_one_file");
    let start = MediaRef { end: Some(0.09), ..MediaRef::video(clip("h264_gop12.mp4")) };
    let mut odd = whole.encode(&question(vec![Part::Media(start)]), &EncodeOptions::default()).unwrap();
    assert_eq!((odd.num_images, odd.visuals[0].grid[0]), (3, 2));
    whole.reorder_pictures(&mut odd, &[2, 1, 0]);
    let (row, area) = (odd.pixel_shape[0], 14 * 14);
    for row in odd.pixels[odd.pixels.len() / 2..].chunks_exact(row) {
        for channel in row.chunks_exact(2 * area) {
            assert_eq!(channel[..area], channel[area..], "both halves are the last frame");
        }
    }
}

#[test]
fn times_in_the_text_are_true() {
    let processor = processor("qwen3");
    // Frames of uneven distances: number over mean rate would be wrong by up to 0.4 s.
    let index = media::index_video(&clip("h264_vfr.mp4"), &media::Limits::default()).unwrap();
    let encoded = processor.encode(&question(vec![video("h264_vfr.mp4")]), &num_frames(8)).unwrap();
    let at: Vec<f64> = encoded.frames.iter().map(|frame| index.seconds[frame.index]).collect();
    assert_eq!(encoded.visuals[0].seconds, at);
    let times: String = at
        .chunks(2)
        .map(|t| format!("<{:.1} seconds><|vision_start|><|video_pad|><|vision_end|>", (t[0] + t[1]) / 2.0))
        .collect();
    assert!(encoded.text.contains(&times), "{}", encoded.text);
    let nominal = encoded.frames[2].index as f64 / index.fps;
    assert!((at[2] - nominal).abs() > 0.2, "{} and {nominal}", at[2]);
    let rate = 8.0 / index.num_frames() as f64 * index.fps;
    assert_eq!(encoded.visuals[0].seconds_per_grid, 2.0 / rate);
    // A container that starts its clock late shows its first frame at 0, as the reference counts.
    let late = processor.encode(&question(vec![video("late_start.mp4")]), &num_frames(2)).unwrap();
    assert!(late.visuals[0].seconds[0] == 0.5 && late.text.contains("<0.8 seconds>"), "{}", late.text);
    // A part of a clip keeps the clip's times.
    let part = MediaRef { start: Some(1.0), nframes: Some(2), ..MediaRef::video(clip("h264_gop12.mp4")) };
    let part = processor.encode(&question(vec![Part::Media(part)]), &EncodeOptions::default()).unwrap();
    assert!(part.text.contains("<1.7 seconds>"), "{}", part.text);
    // Halves go to the even digit, as in Python.
    let halves = [0.25, 0.35, 0.75, 1.25].map(|t: f64| format!("{t:.1}"));
    assert_eq!(halves, ["0.2", "0.3", "0.8", "1.2"]);
}

#[test]
fn records_over_the_limit_lose_whole_steps() {
    for case in ["qwen2_5_one_file", "qwen2_5_nested", "qwen3", "onevision1_5"] {
        let processor = processor(case);
        let sample = question(vec![video("h264_gop12.mp4"), Part::Text("What happens?".into())]);
        let whole = processor.encode(&sample, &num_frames(12)).unwrap();
        let limit = |max_length| EncodeOptions { max_length: Some(max_length), ..num_frames(12) };
        assert_eq!(processor.encode(&sample, &limit(whole.ids.len())).unwrap(), whole, "{case}");
        let shorter = processor.encode(&sample, &limit(whole.ids.len() - 1)).unwrap();
        assert!(shorter.ids.len() < whole.ids.len() && shorter.num_images < 12, "{case}");
        assert!(shorter.notes.iter().any(|note| note.contains("of 12 frames")), "{case}: {:?}", shorter.notes);
        if case == "qwen2_5_nested" {
            assert_eq!(shorter.num_images, 9);
        }
        assert_eq!(processor.measure(&sample, &limit(whole.ids.len() - 1)).unwrap(), shorter.size(), "{case}");
        let (reason, _) = reason_of(&processor, &sample, &limit(20));
        assert_eq!(reason, "too_long", "{case}");
        let refuse = EncodeOptions { on_long: OnLong::Refuse, ..limit(whole.ids.len() - 1) };
        assert_eq!(reason_of(&processor, &sample, &refuse).0, "too_long", "{case}");
    }
}

#[test]
fn templates_that_take_texts_get_the_tokens_around_media() {
    let processor = processor("qwen3").with_template(&TemplateChoice::BuiltIn("chatml".into())).unwrap();
    let picture = Part::Media(MediaRef::image(fixtures().join("data/images/0.png")));
    let sample = question(vec![picture, Part::Text("and".into()), video("h264_gop12.mp4"), Part::Text("?".into())]);
    let encoded = processor.encode(&sample, &num_frames(3)).unwrap();
    // 25 frames a second: 0, 30 and 59; the last one fills its step.
    assert_eq!(encoded.frames[1..].iter().map(|frame| frame.index).collect::<Vec<_>>(), [0, 30, 59]);
    assert_eq!(
        encoded.text,
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>and<|vision_start|><0.6 seconds><|vision_start|><|video_pad|><|vision_end|><2.4 seconds><|vision_start|><|video_pad|><|vision_end|><|vision_end|>?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    );
    let supervised: Vec<&str> = encoded.spans.iter().map(|span| &encoded.text[span.clone()]).collect();
    assert_eq!(supervised, ["yes<|im_end|>"]);
}

#[test]
fn a_template_without_clips_is_named() {
    let template = "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{% if p.type == 'image' %}<|image_pad|>{% elif p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}";
    let processor = processor("qwen2_5_one_file").with_template(&TemplateChoice::Text(template.into())).unwrap();
    let (reason, text) = reason_of(&processor, &question(vec![video("gif.gif")]), &num_frames(2));
    assert_eq!(reason, "placeholder_count");
    assert!(
        text.ends_with(
            "the number of `<|video_pad|>` placeholders in the text is not the number of clips: expected 1, found 0; hint: the chat template places no clip there; choose another one with `model.version`"
        ),
        "{text}"
    );
}

#[test]
fn the_rule_of_qwen_vl_utils() {
    let processor = processor("qwen2_5_one_file");
    let options = EncodeOptions { rule: Some(FrameRule::QwenVlUtils), ..EncodeOptions::default() };
    // 60 frames at 25 a second are 4.8 at 2 a second: 4 of them, over the whole clip. A frame of 96x64 is scaled up to 128
    // tokens: sqrt(100352 / 6144) makes 258.7 x 388, rounded up to tokens of 28 x 28.
    let encoded = processor.encode(&question(vec![video("h264_gop12.mp4")]), &options).unwrap();
    assert_eq!(encoded.frames.iter().map(|frame| frame.index).collect::<Vec<_>>(), [0, 20, 39, 59]);
    assert_eq!((encoded.visuals[0].grid, encoded.visuals[0].num_tokens), ([2, 20, 28], 280));
    assert_eq!(encoded.visuals[0].seconds_per_grid, 2.0 / (4.0 / 60.0 * 25.0));
    assert_eq!(processor.measure(&question(vec![video("h264_gop12.mp4")]), &options).unwrap(), encoded.size());
    // A list of frames is timed at 2 a second there.
    let list = || {
        MediaRef::new(MediaKind::Video, MediaSource::Files((0..3).map(|i| folder(&format!("frame{i}.png"))).collect()))
    };
    let listed = processor.encode(&question(vec![Part::Media(list())]), &options).unwrap();
    assert_eq!((listed.visuals[0].seconds_per_grid, listed.num_images), (1.0, 3));
    assert!(
        listed.notes[0].ends_with("has no `fps`: its frames are timed at 2 a second, as the model's own programs do")
    );
}

#[test]
fn how_many_frames_where_nobody_says() {
    // A part of one frame is one step; the count may be too small for a patch.
    let own = processor("qwen2_5_one_file");
    let one = MediaRef { end: Some(0.01), ..MediaRef::video(clip("h264_gop12.mp4")) };
    let two_a_second = EncodeOptions { fps: Some(2.0), ..EncodeOptions::default() };
    for options in [EncodeOptions::default(), num_frames(1), two_a_second.clone()] {
        let encoded = own.encode(&question(vec![Part::Media(one.clone())]), &options).unwrap();
        assert_eq!((encoded.num_images, encoded.visuals[0].grid[0]), (1, 1));
    }
    let single = own.encode(&question(vec![video("h264_gop12.mp4")]), &num_frames(1)).unwrap();
    assert_eq!((single.num_images, single.visuals[0].kind), (1, VisualKind::Video));
    // Qwen2-VL takes every frame, up to a bound, unless its file asks for samples.
    let every = own.encode(&question(vec![video("h264_gop12.mp4")]), &EncodeOptions::default()).unwrap();
    assert_eq!(every.num_images, 60);
    let file = "preprocessor_config.json";
    let bounded = changed("qwen2_5_one_file", &[(file, "max_frames", json!(50))]);
    let bounded = Processor::load(bounded.path()).unwrap();
    let (reason, text) = reason_of(&bounded, &question(vec![video("h264_gop12.mp4")]), &EncodeOptions::default());
    assert_eq!(reason, "no_frame_count");
    assert!(text.contains("expected at most 50 frames (`max_frames`) where nobody says how many, found 60"), "{text}");
    let some = bounded.encode(&question(vec![video("h264_gop12.mp4")]), &two_a_second).unwrap();
    assert_eq!(some.num_images, 4);
    // What the plan bounds, it may bound below the checkpoint's own least.
    let few = EncodeOptions { max_frames: Some(3), ..two_a_second };
    assert_eq!(own.encode(&question(vec![video("h264_gop12.mp4")]), &few).unwrap().num_images, 2);
}

#[test]
fn frames_at_several_places_are_images() {
    let processor = processor("qwen2_5_one_file");
    let of = |position| {
        let kind = MediaKind::FrameOf { position, total: 2 };
        Part::Media(MediaRef { kind, nframes: Some(2), ..MediaRef::video(clip("h264_gop12.mp4")) })
    };
    let encoded = processor.encode(&question(vec![of(0), Part::Text("then".into()), of(1)]), &EncodeOptions::default());
    let encoded = encoded.unwrap();
    assert_eq!(encoded.text.matches("<|image_pad|>").count(), 2);
    assert!(encoded.visuals.iter().all(|visual| visual.kind == VisualKind::Image && visual.grid[0] == 1));
    assert_eq!(encoded.visuals[1].seconds, [1.2]);
}

#[test]
fn batches_hold_what_records_hold() {
    let processor = Arc::new(processor("qwen3"));
    let dataset =
        Arc::new(open_dataset(&folder("qwen3").join("records.json"), Format::Auto, Some(&fixtures())).unwrap());
    let plan =
        data::DataPlan { num_frames: Some(3), shuffle: false, num_workers: Some(2), ..data::DataPlan::default() };
    let options = plan.train_options(4, 1, 0).unwrap();
    let alone: Vec<Encoded> = (0..dataset.len())
        .map(|index| processor.encode(&dataset.get(index).unwrap(), &options.encode).unwrap())
        .collect();
    let mut loader = data::Loader::new(dataset, processor, options).unwrap();
    for records in alone.chunks(4) {
        let (batch, _) = loader.next_batch().unwrap().unwrap();
        assert_eq!(batch, collate(records).unwrap());
    }
}

#[test]
fn files_that_contradict_each_other_or_are_not_known_are_refused_by_name() {
    let refused = |case: &str, changes: &[(&str, &str, Value)]| {
        let dir = changed(case, changes);
        let text = Processor::load(dir.path()).unwrap_err().to_string();
        text.replace(&format!("{}/", dir.path().display()), "")
    };
    let (picture, clip) = ("preprocessor_config.json", "video_preprocessor_config.json");
    let one = |file, key, value| refused("qwen2_two_files", &[(file, key, value)]);
    for (file, key, value, expected) in [
        (
            picture,
            "patch_size",
            json!(16),
            "`preprocessor_config.json`: `patch_size` is 16, and `config.json` says 8; hint",
        ),
        (
            clip,
            "merge_size",
            json!(3),
            "`merge_size: 2`, `temporal_patch_size: 2`, and clips by `patch_size: 8`, `merge_size: 3`",
        ),
        (
            clip,
            "num_frames",
            json!(4),
            "`video_preprocessor_config.json`: `num_frames: 4` stands beside `fps: 2`; hint: keep one of them",
        ),
        (
            clip,
            "video_processor_type",
            json!("InternVLVideoProcessor"),
            "video processor `InternVLVideoProcessor` is not supported",
        ),
        (picture, "processor_class", json!("GotOcr2Processor"), "processor `GotOcr2Processor` is not supported beside"),
        (picture, "size", json!({"height": 16, "width": 16}), "`size` {\"height\":16,\"width\":16} is not supported"),
        (picture, "min_pixels", json!(9000), "at least 9000 and at most 2600 pixels are wanted"),
        (clip, "window_size", json!(3), "`Qwen2VLVideoProcessor`: setting `window_size` is not supported"),
        (clip, "max_frames", json!(0), "`max_frames` must be a whole number above 0, found `0`"),
        (clip, "fps", json!("two"), "`fps` must be a number above 0, found `\"two\"`"),
        (
            "config.json",
            "video_token_id",
            json!(3),
            "the placeholder `<|video_pad|>` has id 336, and `config.json` says 3",
        ),
    ] {
        let text = one(file, key, value);
        assert!(text.contains(expected), "{key}: {text}");
    }
    let dir = changed("qwen2_5_nested", &[("processor_config.json", "video_processor", Value::Null)]);
    let text = Processor::load(dir.path()).unwrap_err().to_string();
    assert!(text.contains("video_preprocessor_config.json`: no such file"), "{text}");
}
