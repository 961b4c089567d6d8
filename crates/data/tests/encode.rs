//! From a record with media to ids and pictures: frames, placeholders, length, built-in templates.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};

use data::{
    DataError, EncodeOptions, Encoded, Format, IGNORE, MediaKind, MediaRef, MediaSource, OnLong, Part, Processor, Role,
    Sample, TemplateChoice, Turn, collate, open_dataset,
};
use media::FrameRule;
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn clip() -> PathBuf {
    fixtures().join("media/clips/h264_long_gop.mp4")
}

fn picture(number: usize) -> PathBuf {
    fixtures().join(format!("data/images/{number}.png"))
}

fn processor(case: &str) -> Processor {
    Processor::load(&fixtures().join("data/text").join(case)).unwrap()
}

fn question(parts: Vec<Part>) -> Sample {
    Sample::new("x", vec![Turn { role: Role::User, parts }, Turn::text(Role::Assistant, "yes")])
}

fn video(nframes: Option<usize>) -> Part {
    Part::Media(MediaRef { nframes, ..MediaRef::video(clip()) })
}

fn frames(encoded: &Encoded) -> Vec<usize> {
    encoded.frames.iter().map(|f| f.index).collect()
}

fn num_frames(n: usize) -> EncodeOptions {
    EncodeOptions { num_frames: Some(n), ..EncodeOptions::default() }
}

/// The record of a `llava` file with one dialogue.
fn llava(record: Value) -> Sample {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    std::fs::write(&path, json!([record]).to_string()).unwrap();
    open_dataset(&path, Format::Auto, None).unwrap().get(0).unwrap()
}

fn dialogue(question: &str, answer: &str) -> Value {
    json!([{"from": "human", "value": question}, {"from": "gpt", "value": answer}])
}

#[test]
fn frames_of_a_video_stand_at_its_place_with_their_times() {
    let processor = processor("generation_blocks");
    let total = media::index_video(&clip(), &media::Limits::default()).unwrap().num_frames();
    let sample = question(vec![video(None), Part::Text("What?".into())]);
    let encoded = processor.encode(&sample, &num_frames(4)).unwrap();
    assert_eq!(frames(&encoded), (0..4).map(|i| i * total / 4).collect::<Vec<_>>());
    assert_eq!((encoded.num_images, encoded.pixel_shape.clone()), (4, vec![3, 16, 16]));
    assert_eq!(encoded.text.matches("<image>").count(), 4);
    assert_eq!(encoded.image_rows.len(), 4 * 4);
    assert_eq!(encoded.visuals.iter().map(|v| (v.grid, v.num_tokens)).collect::<Vec<_>>(), [([1, 2, 2], 4); 4]);
    let times: Vec<f64> = encoded.visuals.iter().flat_map(|v| v.seconds.clone()).collect();
    assert!((times[1] - frames(&encoded)[1] as f64 / 30.0).abs() < 1e-6, "{times:?}");
    // The pictures are the frames: each equals the picture made from a decoded frame alone.
    let index = media::index_video(&clip(), &media::Limits::default()).unwrap();
    let decoded = media::decode_frames(&index, &frames(&encoded), &media::Limits::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (number, frame) in decoded.iter().enumerate() {
        let path = dir.path().join("frame.png");
        media::write_png(&path, &frame.image).unwrap();
        let alone = processor.encode(&question(vec![Part::Media(MediaRef::image(&path))]), &num_frames(1)).unwrap();
        let size = alone.pixels.len();
        assert_eq!(alone.pixels, encoded.pixels[number * size..(number + 1) * size], "frame {number}");
        let resized = media::resize::torchvision(&frame.image, 16, 16, media::resize::Filter::Bicubic);
        assert_eq!(processor.pictures(&encoded)[number], resized, "bytes of frame {number}");
    }
}

#[test]
fn a_number_of_frames_beside_a_rate_is_refused() {
    let both = MediaRef { nframes: Some(3), fps: Some(1.0), ..MediaRef::video(clip()) };
    let error = processor("generation_blocks").encode(&question(vec![Part::Media(both)]), &num_frames(8)).unwrap_err();
    assert_eq!(error.reason(), "contradiction");
    let text = error.to_string();
    assert!(text.ends_with("has both a number of frames and `fps`; hint: keep one of them"), "{text}");
}

#[test]
fn the_records_own_count_wins() {
    let processor = processor("generation_blocks");
    let own = processor.encode(&question(vec![video(Some(3))]), &num_frames(8)).unwrap();
    assert_eq!(own.num_images, 3);
    let mut rate = MediaRef::video(clip());
    rate.fps = Some(1.0);
    let by_rate = processor.encode(&question(vec![Part::Media(rate)]), &num_frames(8)).unwrap();
    let index = media::index_video(&clip(), &media::Limits::default()).unwrap();
    assert_eq!(by_rate.num_images, (index.num_frames() as f64 / index.fps) as usize);
    let mut range = MediaRef::video(clip());
    (range.nframes, range.start, range.end) = (Some(2), Some(0.2), Some(0.5));
    let part = processor.encode(&question(vec![Part::Media(range)]), &num_frames(8)).unwrap();
    assert!(part.frames.iter().all(|f| (0.2..=0.5).contains(&f.seconds)), "{:?}", part.frames);
    let rule = EncodeOptions { rule: Some(FrameRule::Segments), ..num_frames(2) };
    let middles = processor.encode(&question(vec![video(None)]), &rule).unwrap();
    let total = media::index_video(&clip(), &media::Limits::default()).unwrap().num_frames();
    assert_eq!(frames(&middles), [total / 4, 3 * total / 4]);
}

#[test]
fn frames_spread_over_several_places() {
    let processor = processor("qwen_default_system");
    let of = |position| {
        let kind = MediaKind::FrameOf { position, total: 3 };
        Part::Media(MediaRef { kind, nframes: Some(3), ..MediaRef::video(clip()) })
    };
    let sample = Sample::new(
        "x",
        vec![
            Turn { role: Role::User, parts: vec![of(0), of(1), Part::Text("first".into())] },
            Turn::text(Role::Assistant, "yes"),
            Turn { role: Role::User, parts: vec![of(2), Part::Text("last".into())] },
            Turn::text(Role::Assistant, "no"),
        ],
    );
    let spread = processor.encode(&sample, &EncodeOptions::default()).unwrap();
    let whole = processor.encode(&question(vec![video(Some(3))]), &EncodeOptions::default()).unwrap();
    assert_eq!(frames(&spread), frames(&whole));
    assert_eq!(spread.pixels, whole.pixels);
}

#[test]
fn media_stand_in_the_order_of_the_text() {
    let processor = processor("parts_metaspace");
    let image = |n| Part::Media(MediaRef::image(picture(n)));
    let mixed = question(vec![image(1), video(Some(2)), image(2), Part::Text("x".into())]);
    let encoded = processor.encode(&mixed, &EncodeOptions::default()).unwrap();
    let media: Vec<usize> = encoded.frames.iter().map(|f| f.media).collect();
    assert_eq!(media, [0, 1, 1, 2]);
    let size = encoded.pixels.len() / 4;
    let last = processor.encode(&question(vec![image(2)]), &EncodeOptions::default()).unwrap();
    assert_eq!(last.pixels, encoded.pixels[3 * size..]);
}

#[test]
fn lists_and_folders_of_frames() {
    let processor = processor("generation_blocks");
    let files: Vec<PathBuf> = (0..5).map(picture).collect();
    let list = MediaRef { fps: Some(2.0), ..MediaRef::new(MediaKind::Video, MediaSource::Files(files.clone())) };
    let all = processor.encode(&question(vec![Part::Media(list.clone())]), &EncodeOptions::default()).unwrap();
    assert_eq!(frames(&all), [0, 1, 2, 3, 4]);
    assert_eq!(all.visuals.iter().flat_map(|v| v.seconds.clone()).collect::<Vec<_>>(), [0.0, 0.5, 1.0, 1.5, 2.0]);
    let fewer = processor.encode(&question(vec![Part::Media(list)]), &num_frames(2)).unwrap();
    assert_eq!(frames(&fewer), [0, 2]);
    let dir = tempfile::tempdir().unwrap();
    for (number, file) in files.iter().enumerate() {
        std::fs::copy(file, dir.path().join(format!("{number}.png"))).unwrap();
    }
    let folder =
        processor.encode(&question(vec![Part::Media(MediaRef::video(dir.path()))]), &EncodeOptions::default()).unwrap();
    assert_eq!(folder.pixels, all.pixels);
}

#[test]
fn a_newline_after_a_placeholder() {
    let record = json!({"image": picture(0), "conversations": dialogue("<image>\n\nWhat?", "yes")});
    let own = processor("generation_blocks").encode(&llava(record.clone()), &EncodeOptions::default()).unwrap();
    // The template writes its own newline after the placeholder: one of the record's two is the placeholder's.
    assert!(own.text.contains("<image>\n\nWhat?<|im_end|>"), "{}", own.text);
    let v1 = processor("generation_blocks").with_template(&TemplateChoice::BuiltIn("v0".into())).unwrap();
    let kept = v1.encode(&llava(record), &EncodeOptions::default()).unwrap();
    assert!(kept.text.contains("Human: <image>\n\nWhat?\n###"), "{}", kept.text);
}

/// Checks the text of a built-in template, with what is learned between braces.
fn check_builtin(name: &str, case: &str, sample: &Sample, expected: &str) {
    let processor = processor(case).with_template(&TemplateChoice::BuiltIn(name.into())).unwrap();
    let encoded = processor.encode(sample, &EncodeOptions::default()).unwrap();
    let mut text = String::new();
    let mut at = 0;
    for span in &encoded.spans {
        text.push_str(&encoded.text[at..span.start]);
        text.push_str(&format!("{{{}}}", &encoded.text[span.clone()]));
        at = span.end;
    }
    text.push_str(&encoded.text[at..]);
    assert_eq!(text, expected, "{name}");
}

#[test]
fn built_in_templates() {
    let two = llava(json!({"image": picture(0), "conversations": [
        {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dot."},
        {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."},
    ]}));
    let one = llava(json!({"image": picture(0), "conversations": dialogue("<image>\nDescribe it.", "A dot.")}));
    check_builtin("plain", "parts_metaspace", &one, "<image>\n{A dot.\n}");
    check_builtin(
        "v0",
        "parts_metaspace",
        &two,
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the human's questions.\n\n### Human: <image>\nWhat?\n### Assistant:{ A dot.\n###} Human: Sure?\n### Assistant:{ Yes.\n###}",
    );
    check_builtin(
        "v1",
        "parts_metaspace",
        &two,
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. USER: <image>\nWhat? ASSISTANT:{ A dot.</s>}USER: Sure? ASSISTANT:{ Yes.</s>}",
    );
    check_builtin(
        "v0.5",
        "parts_metaspace",
        &two,
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. USER: <image>\nWhat? ASSISTANT:{ A dot.</s>}USER: Sure? ASSISTANT:{ Yes.</s>}",
    );
    check_builtin(
        "phi",
        "parts_metaspace",
        &two,
        "<|user|><image>\nWhat?<|end|><|assistant|>{A dot.<|end|>}<|user|>Sure?<|end|><|assistant|>{Yes.<|end|>}",
    );
    check_builtin(
        "llava-1.5",
        "parts_metaspace",
        &two,
        "USER: <image>\nWhat? ASSISTANT:{ A dot.</s>}USER: Sure? ASSISTANT:{ Yes.</s>}",
    );
    check_builtin(
        "chatml",
        "generation_blocks",
        &two,
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n{A dot.<|im_end|>}\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n{Yes.<|im_end|>}\n",
    );
    let wrong = processor("parts_metaspace").with_template(&TemplateChoice::BuiltIn("v2".into())).unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "`model.version`: `v2` is not a built-in chat template; hint: one of plain, v0, v1, v0.5, chatml, phi, llava-1.5"
    );
}

#[test]
fn a_checkpoint_without_a_template_gets_the_one_its_tokens_call_for() {
    for (case, expected) in [("generation_blocks", "built-in chatml"), ("parts_metaspace", "built-in v1")] {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixtures().join("data/text").join(case)).unwrap() {
            let path = entry.unwrap().path();
            if !path.file_name().unwrap().to_str().unwrap().starts_with("chat_template") {
                std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        assert_eq!(Processor::load(dir.path()).unwrap().template_origin(), expected);
    }
}

/// A copy of a checkpoint without its chat template.
fn without_template(case: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixtures().join("data/text").join(case)).unwrap() {
        let path = entry.unwrap().path();
        if !path.file_name().unwrap().to_str().unwrap().starts_with("chat_template") {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

#[test]
fn named_templates_need_one_that_is_the_default() {
    let dir = without_template("generation_blocks");
    let own = std::fs::read(fixtures().join("data/text/generation_blocks/chat_template.json")).unwrap();
    let own: Value = serde_json::from_slice(&own).unwrap();
    let own = own["chat_template"].as_str().unwrap();
    let write = |templates: Value| {
        let text = json!({"chat_template": templates}).to_string();
        std::fs::write(dir.path().join("chat_template.json"), text).unwrap();
        Processor::load(dir.path())
    };
    let error = write(json!({"rag": own, "tool_use": own})).unwrap_err().to_string();
    assert!(error.contains("none of the chat templates `rag`, `tool_use` is named `default`"), "{error}");
    let list = json!([{"name": "rag", "template": own}, {"name": "tool_use", "template": own}]);
    assert!(write(list).unwrap_err().to_string().contains("`rag`, `tool_use`"));
    let two = write(json!({"rag": "x", "default": own})).unwrap();
    assert!(two.template_origin().ends_with("chat_template.json"));

    std::fs::remove_file(dir.path().join("chat_template.json")).unwrap();
    let place = "additional_chat_templates/default.jinja";
    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    std::fs::write(dir.path().join(place), own).unwrap();
    let processor = Processor::load(dir.path()).unwrap();
    assert!(processor.template_origin().ends_with(place));
    let copy = tempfile::tempdir().unwrap();
    processor.save_to(copy.path()).unwrap();
    assert!(Processor::load(copy.path()).unwrap().template_origin().ends_with(place));
}

#[test]
fn empty_parts_reach_the_template() {
    let source = "{% for m in messages %}{{ m.role }}{% for p in m.content %}[{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}]{% endfor %}{% endfor %}";
    let choice = TemplateChoice::Text(source.into());
    let processor = processor("generation_blocks").with_template(&choice).unwrap();
    let check = |content: Value, expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("records.json");
        let answer = json!({"role": "assistant", "content": [{"type": "text", "text": "yes"}]});
        let record = json!([{"messages": [{"role": "user", "content": content}, answer]}]);
        std::fs::write(&file, record.to_string()).unwrap();
        let sample = open_dataset(&file, Format::Auto, None).unwrap().get(0).unwrap();
        assert_eq!(processor.encode(&sample, &EncodeOptions::default()).unwrap().text, expected);
    };
    let text = |t: &str| json!({"type": "text", "text": t});
    check(json!([text(""), text("x")]), "user[][x]assistant[yes]");
    check(json!(""), "user[]assistant[yes]");
}

/// `generate` of the reference takes end tokens from `generation_config.json` alone where there is one.
#[test]
fn a_generation_file_without_an_end_token_has_none() {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixtures().join("data/text/qwen_default_system")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let ends = |file: Option<&str>| {
        let path = dir.path().join("generation_config.json");
        match file {
            Some(text) => std::fs::write(path, text).unwrap(),
            None => drop(std::fs::remove_file(path)),
        }
        std::fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 7}"#).unwrap();
        Processor::load(dir.path()).unwrap().eos_ids().to_vec()
    };
    assert_eq!(ends(Some(r#"{"eos_token_id": [5, 6]}"#)), [5, 6]);
    assert_eq!(ends(Some(r#"{"do_sample": false}"#)), Vec::<u32>::new());
    assert_eq!(ends(None), [7]);
}

#[test]
fn records_over_the_limit_get_fewer_frames_or_are_refused() {
    let processor = processor("generation_blocks");
    let sample = question(vec![video(None), Part::Text("What?".into())]);
    let full = processor.encode(&sample, &num_frames(8)).unwrap();
    let limit = |max_length, on_long| EncodeOptions { max_length: Some(max_length), on_long, ..num_frames(8) };
    let same = processor.encode(&sample, &limit(full.ids.len(), OnLong::Refuse)).unwrap();
    assert_eq!((same.ids, same.notes.len()), (full.ids.clone(), 0));
    let tight = full.ids.len() - 1;
    let fewer = processor.encode(&sample, &limit(tight, OnLong::FewerFrames)).unwrap();
    assert_eq!(fewer.num_images, 7);
    assert!(fewer.ids.len() <= tight);
    assert_eq!(fewer.image_rows.len(), 7 * 4);
    assert!(fewer.notes[0].ends_with("gives 7 of 8 frames, so that the record fits `max_length`"), "{:?}", fewer.notes);
    let refused = processor.encode(&sample, &limit(tight, OnLong::Refuse)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!(
            "record `x`: the record is too long: expected at most {tight} tokens (`max_length`), found {}; hint: raise `data.max_length`, lower `data.num_frames`, or remove the record",
            full.ids.len()
        )
    );
    let hopeless = processor.encode(&sample, &limit(5, OnLong::FewerFrames)).unwrap_err().to_string();
    assert!(hopeless.starts_with("record `x`: the record is too long, with one frame a clip as well: "), "{hopeless}");
    let text = Sample::new("t", vec![Turn::text(Role::User, "word ".repeat(50)), Turn::text(Role::Assistant, "yes")]);
    assert_eq!(processor.encode(&text, &limit(20, OnLong::FewerFrames)).unwrap_err().reason(), "too_long");
}

#[test]
fn clips_that_are_too_short() {
    let processor = processor("generation_blocks");
    let total = media::index_video(&clip(), &media::Limits::default()).unwrap().num_frames();
    let own = processor.encode(&question(vec![video(Some(total + 1))]), &EncodeOptions::default()).unwrap_err();
    assert!(own.to_string().contains(&format!("is too short: expected at least {} frames, found {total}", total + 1)));
    let plan = processor.encode(&question(vec![video(None)]), &num_frames(total + 1)).unwrap();
    assert_eq!(plan.num_images, total);
    assert!(plan.notes[0].ends_with(&format!("has {total} frames, {} were wanted", total + 1)));
}

/// The reason and the message of a question that is refused.
fn refused(parts: Vec<Part>) -> (&'static str, String) {
    let error: DataError = processor("generation_blocks").encode(&question(parts), &num_frames(2)).unwrap_err();
    assert!(error.is_one_record());
    (error.reason(), error.to_string())
}

#[test]
fn bad_media_name_the_record_and_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        vec![Part::Media(MediaRef::video(path))]
    };
    let (reason, text) = refused(vec![Part::Media(MediaRef::video(dir.path().join("gone.mp4")))]);
    assert_eq!(reason, "missing_file");
    assert!(text.starts_with("record `x`: `") && text.contains("gone.mp4`: no such file; hint: "), "{text}");
    assert_eq!(refused(vec![Part::Media(MediaRef::image(dir.path().join("gone.png")))]).0, "missing_file");
    let whole = std::fs::read(clip()).unwrap();
    let (reason, text) = refused(file("cut.mp4", &whole[..whole.len() / 2]));
    assert!(["truncated", "broken", "no_frames"].contains(&reason), "{reason}: {text}");
    let (reason, text) = refused(file("list.mp4", b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\n/etc/passwd\n"));
    assert_eq!(reason, "not_allowed_container", "{text}");
    assert_eq!(refused(file("empty.mp4", b"")).0, "empty_file");
    // A GIF of 35 bytes that claims 16000 x 16000 pixels.
    let mut bomb = b"GIF89a".to_vec();
    bomb.extend(16000u16.to_le_bytes());
    bomb.extend(16000u16.to_le_bytes());
    bomb.extend([0x80, 0, 0, 0, 0, 0, 255, 255, 255, 0x2C, 0, 0, 0, 0]);
    bomb.extend(16000u16.to_le_bytes());
    bomb.extend(16000u16.to_le_bytes());
    bomb.extend([0, 2, 2, 0x44, 1, 0, 0x3B]);
    assert_eq!(refused(file("bomb.gif", &bomb)).0, "too_large");
}

#[test]
fn a_placeholder_in_the_text_is_refused() {
    let (reason, text) = refused(vec![Part::Media(MediaRef::image(picture(0))), Part::Text("an <image> more".into())]);
    assert_eq!(reason, "placeholder_count");
    assert_eq!(
        text,
        "record `x`: the number of `<image>` placeholders in the text is not the number of pictures: expected 1, found 2; hint: write `<image>` nowhere but where a picture stands"
    );
}

#[test]
fn a_clip_without_a_count_is_refused() {
    let error = processor("generation_blocks").encode(&question(vec![video(None)]), &EncodeOptions::default());
    let text = error.unwrap_err().to_string();
    assert!(text.ends_with(
        "is not said; hint: set `data.num_frames` or `data.fps` (`--num-frames`, `--fps`), or `nframes` in the record"
    ));
}

#[test]
fn packing_keeps_every_record_as_it_is_alone() {
    let processor = processor("generation_blocks");
    let records: Vec<Encoded> = [
        question(vec![video(Some(2)), Part::Text("a".into())]),
        question(vec![Part::Text("longer question".into())]),
        question(vec![Part::Media(MediaRef::image(picture(1)))]),
    ]
    .iter()
    .map(|s| processor.encode(s, &EncodeOptions::default()).unwrap())
    .collect();
    let batch = collate(&records).unwrap();
    assert_eq!((batch.num_samples(), batch.num_images), (3, 3));
    assert_eq!(batch.num_supervised(), records.iter().map(Encoded::num_supervised).sum::<usize>());
    let mut pictures = 0;
    for (number, record) in records.iter().enumerate() {
        let rows = batch.cu_seqlens[number]..batch.cu_seqlens[number + 1];
        assert_eq!(batch.ids[rows.clone()], record.ids);
        assert_eq!(batch.labels[rows.clone()], record.labels);
        assert_eq!(batch.positions[rows.clone()], (0..record.ids.len() as u32).collect::<Vec<_>>());
        let per = record.image_rows.len();
        let own: Vec<u32> = batch.image_rows[pictures..pictures + per].iter().map(|r| r - rows.start as u32).collect();
        assert_eq!(own, record.image_rows);
        pictures += per;
    }
    assert!(batch.labels.iter().any(|&l| l != IGNORE));
    let empty = collate(&[]).unwrap();
    assert_eq!((empty.cu_seqlens.as_slice(), empty.num_supervised()), ([0].as_slice(), 0));
}

#[test]
fn files_are_saved_unchanged() {
    let processor = processor("generation_blocks");
    let dir = tempfile::tempdir().unwrap();
    processor.save_to(dir.path()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.json", "preprocessor_config.json"] {
        let before = std::fs::read(processor.dir().join(name)).unwrap();
        assert_eq!(before, std::fs::read(dir.path().join(name)).unwrap(), "{name}");
    }
}
