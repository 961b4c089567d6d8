//! `data frames`, `data check`, `data preview`, `bench decode`, `init`.

use serde_json::{Value, json};

use crate::{clip, dataset, fixture, line, model, record, text_of};

#[test]
fn frames_are_written_with_their_times() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/frames");
    let out_text = text_of(&out);
    let args = ["--video", &clip("h264_long_gop.mp4"), "--num-frames", "4", "--size", "20x10", "--out", &out_text];
    let run = line("data frames", &args).expect(0);
    assert!(run.stdout.is_empty(), "{}", run.stdout);
    let frames: Value = serde_json::from_str(&std::fs::read_to_string(out.join("frames.json")).unwrap()).unwrap();
    let total = frames["total_frames"].as_u64().unwrap();
    // The rule of transformers: `i * T / N`, whole numbers.
    let expected: Vec<u64> = (0..4).map(|i| i * total / 4).collect();
    assert_eq!(frames["indices"], json!(expected));
    assert_eq!(frames["seconds"].as_array().unwrap().len(), 4);
    assert_eq!((&frames["width"], &frames["height"]), (&json!(20), &json!(10)));
    for file in frames["files"].as_array().unwrap() {
        let png = std::fs::read(out.join(file.as_str().unwrap())).unwrap();
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
        // Width and height in the header chunk, big-endian.
        assert_eq!(&png[16..24], [0, 0, 0, 20, 0, 0, 0, 10]);
    }
    let other = text_of(&dir.path().join("other"));
    for (count, part) in [
        ("--num-frames 9999", "9999 frames are wanted and the clip has 40"),
        ("--num-frames 99999999999 --rule segments", "at most 1048576"),
        ("--num-frames 4 --max-frames 3", "`--num-frames 4` is above `--max-frames 3`"),
        ("--all --max-frames 3", "contradict each other"),
        ("--all --start nan", "the start NaN"),
    ] {
        let run = line(&format!("data frames {count}"), &["--video", &clip("av1.mp4"), "--out", &other]).expect(2);
        assert!(run.stderr.contains(part), "{count}: {}", run.stderr);
    }
    // A second clip's frames do not mix with the first's.
    let run = line("data frames --num-frames 2", &["--video", &clip("av1.mp4"), "--out", &out_text]).expect(2);
    assert!(run.stderr.contains("holds frames already (`frame_000.png`)"), "{}", run.stderr);
}

#[test]
fn a_folder_of_frames_is_looked_at_and_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| text_of(&dir.path().join(name));
    let data = dataset(dir.path(), &[record("a", &clip("h264_small.mp4"), "x"), record("b", &clip("av1.mp4"), "y")]);
    let plan = format!(
        "model: {{path: {}}}\nmethod: {{kind: projector}}\ndata: {{train: [{{path: {data}}}], num_frames: 2, frame_cache: {}}}\n\
         train: {{output_dir: {}, max_steps: 3, per_device_train_batch_size: 2, save_strategy: \"no\"}}\n",
        model("llava_siglip_qwen2"),
        at("cache"),
        at("out"),
    );
    std::fs::write(at("plan.yaml"), plan).unwrap();
    let run = line("train", &[&at("plan.yaml")]).expect(0);
    assert!(
        run.stderr.contains("frame cache: 4 clips read (") && run.stderr.contains(", 2 decoded, 2 of them stored (")
    );
    std::fs::write(at("cache/mine.txt"), "mine").unwrap();
    let held = line("data cache --json", &[&at("cache")]).expect(0).json();
    assert_eq!((&held["entries"], &held["removed"]), (&json!(4), &json!(false)));
    let text = line("data cache", &[&at("cache")]).expect(0).stdout;
    assert!(text.starts_with("4 entries, ") && text.ends_with(&format!(" in `{}`\n", at("cache"))), "{text}");
    let text = line("data cache --clear", &[&at("cache")]).expect(0).stdout;
    assert!(text.starts_with("4 entries, ") && text.contains(" removed from `"), "{text}");
    assert_eq!(line("data cache --json", &[&at("cache")]).expect(0).json()["bytes"], json!(0));
    assert_eq!(std::fs::read(at("cache/mine.txt")).unwrap(), b"mine");
    let run = line("data cache --clear", &[&at("out")]).expect(2);
    assert!(run.stderr.contains("is no frame cache: it holds no `vidtune-frames.json`"), "{}", run.stderr);
    assert!(run.stderr.contains("hint: name the folder of `data.frame_cache`"), "{}", run.stderr);
}

#[test]
fn decoding_is_timed() {
    let run =
        line("bench decode --num-frames 4 --repeats 3 --json", &["--video", &clip("h264_long_gop.mp4")]).expect(0);
    let found = run.json();
    assert_eq!((&found["num_frames"], found["seconds"].as_array().unwrap().len()), (&json!(4), 3));
    assert!(found["median_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_check_names_every_bad_record_by_cause() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| text_of(&dir.path().join(name));
    let whole = std::fs::read(clip("h264_long_gop.mp4")).unwrap();
    std::fs::write(at("cut.mp4"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(at("playlist.mp4"), "#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1/a.ts\n").unwrap();
    std::fs::write(at("empty.mp4"), "").unwrap();
    let mut order = record("order", &clip("av1.mp4"), "x");
    order["conversations"].as_array_mut().unwrap().reverse();
    let mut many = record("many", &clip("av1.mp4"), "x");
    many["conversations"][0]["value"] = json!("<video>\n<video>\nWhat moves?");
    let records = [
        record("good", &clip("av1.mp4"), "a circle"),
        record("missing", &at("none.mp4"), "x"),
        record("cut", &at("cut.mp4"), "x"),
        record("playlist", &at("playlist.mp4"), "x"),
        record("empty", &at("empty.mp4"), "x"),
        order,
        many,
        record("silent", &clip("av1.mp4"), ""),
    ];
    let data = dataset(dir.path(), &records);
    let run = line("data check", &["--data", &data]).expect(3);
    let report = run.json();
    assert_eq!((&report["records"], &report["accepted"]), (&json!(8), &json!(1)), "{report:#}");
    let refused: Vec<(&str, &str)> = report["refused"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (r["id"].as_str().unwrap(), r["reason"].as_str().unwrap()))
        .collect();
    let reason = |id: &str| refused.iter().find(|(found, _)| *found == id).map(|(_, reason)| *reason);
    assert_eq!(reason("good"), None);
    assert_eq!(reason("missing"), Some("missing_file"));
    assert_eq!(reason("playlist"), Some("not_allowed_container"));
    assert_eq!(reason("empty"), Some("empty_file"));
    for id in ["cut", "order", "many", "silent"] {
        assert!(reason(id).is_some(), "{id} was accepted: {refused:?}");
    }
    assert!(run.stderr.contains("1 of 8 records accepted"), "{}", run.stderr);
    let good = dataset(dir.path(), &records[..1]);
    line("data check", &["--data", &good, "--model", &model("llava_siglip_qwen2"), "--num-frames", "2"]).expect(0);
}

/// A check without a model opens media as training would: by what the record calls them, not by what they are.
#[test]
fn a_check_opens_media_as_training_does() {
    let dir = tempfile::tempdir().unwrap();
    let picture = text_of(&fixture("data/images/0.png"));
    let mut as_image = record("as_image", &clip("av1.mp4"), "x");
    as_image["image"] = as_image.as_object_mut().unwrap().remove("video").unwrap();
    as_image["conversations"][0]["value"] = json!("<image>\nWhat?");
    let data =
        dataset(dir.path(), &[record("as_video", &picture, "x"), as_image, record("gif", &clip("gif.gif"), "x")]);
    let refused = |more: &[&str]| {
        let run = line("data check --num-frames 2", &[&["--data", &data][..], more].concat()).expect(3);
        let report = run.json();
        let list = report["refused"].as_array().unwrap().clone();
        list.iter().map(|r| format!("{} {}", r["id"].as_str().unwrap(), r["reason"].as_str().unwrap())).collect()
    };
    let expected: Vec<String> =
        ["as_video not_allowed_container", "as_image not_allowed_container"].map(str::to_owned).into();
    assert_eq!((refused(&[]), refused(&["--model", &model("llava_siglip_qwen2")])), (expected.clone(), expected));
}

/// `--out` writes where it is told to, and replaces nothing but a file.
#[cfg(unix)]
#[test]
fn an_output_file_may_be_a_link_and_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| text_of(&dir.path().join(name));
    let data = dataset(dir.path(), &[record("good", &clip("av1.mp4"), "x")]);
    std::fs::write(at("real.json"), "").unwrap();
    std::os::unix::fs::symlink("real.json", at("link.json")).unwrap();
    line("data check", &["--data", &data, "--out", &at("link.json")]).expect(0);
    assert!(dir.path().join("link.json").symlink_metadata().unwrap().is_symlink());
    assert!(std::fs::read_to_string(at("real.json")).unwrap().contains("\"accepted\": 1"));
    std::fs::create_dir(at("folder")).unwrap();
    let run = line("data check", &["--data", &data, "--out", &at("folder")]).expect(2);
    assert!(
        run.stderr.contains("folder` is a folder") && run.stderr.contains("hint: name a file in it"),
        "{}",
        run.stderr
    );
}

#[cfg(unix)]
#[test]
fn a_pipe_is_no_dataset() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = text_of(&dir.path().join("pipe.jsonl"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let run = line("data check", &["--data", &pipe]).expect(3);
    assert!(run.stderr.contains("pipe.jsonl`: this is not a regular file"), "{}", run.stderr);
}

#[test]
fn broken_json_names_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), &[record("good", &clip("av1.mp4"), "x")]);
    let text = std::fs::read_to_string(&data).unwrap() + "{\"id\": \"b\", oops}\n";
    std::fs::write(&data, text).unwrap();
    let run = line("data check", &["--data", &data]).expect(3);
    assert!(format!("{}{}", run.stdout, run.stderr).contains("line 2"), "{}{}", run.stdout, run.stderr);
}

#[test]
fn a_preview_shows_what_is_supervised() {
    let dir = tempfile::tempdir().unwrap();
    let data =
        dataset(dir.path(), &[record("a", &clip("av1.mp4"), "x"), record("b", &clip("av1.mp4"), "A red circle.")]);
    let sheet = text_of(&dir.path().join("sheet.png"));
    let common = ["--data", &data, "--model", &model("llava_siglip_qwen2"), "--num-frames", "3", "--record", "b"];
    let run = line("data preview", &[&common[..], &["--out", &sheet]].concat()).expect(0);
    assert!(run.stdout.contains("A red circle.<|im_end|>⟧"), "{}", run.stdout);
    assert!(run.stdout.contains("3 pictures of 28x28"), "{}", run.stdout);
    assert_eq!(&std::fs::read(&sheet).unwrap()[..4], b"\x89PNG");
    let found = line("data preview --json", &common).expect(0).json();
    assert_eq!(found["frames"].as_array().unwrap().len(), 3);
    let labels = found["labels"].as_array().unwrap().iter().filter(|label| **label != json!(-100)).count();
    assert_eq!(found["supervised_tokens"], json!(labels));
    let run = line("data preview --index 7", &common[..6]).expect(2);
    assert!(run.stderr.contains("has no record number 7 among its 2"), "{}", run.stderr);
}

#[test]
fn a_preview_shows_patches_as_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), &[record("a", &clip("av1.mp4"), "A red circle.")]);
    let sheet = text_of(&dir.path().join("sheet.png"));
    let model = text_of(&fixture("data/qwen_vl/qwen2_5_one_file"));
    let common = ["--data", &data, "--model", &model, "--frame-rule", "qwen2_vl", "--num-frames", "6"];
    let run = line("data preview", &[&common[..], &["--out", &sheet]].concat()).expect(0);
    assert!(run.stdout.contains("clip of 3x4x6 patches, 18 tokens"), "{}", run.stdout);
    assert!(run.stdout.contains("<|vision_start|><|video_pad|><|vision_end|>"), "{}", run.stdout);
    let sheet = media::load_image(sheet.as_ref(), &media::Limits::default()).unwrap();
    // Six cells of the least width, 112, with their gaps.
    assert_eq!(sheet.width, 6 * 116 + 4);
    let found = line("data preview --json", &common).expect(0).json();
    assert_eq!(found["visuals"][0]["grid"], json!([3, 4, 6]));
    let run = line("data preview --frame-rule middle", &common[..4]).expect(2);
    assert!(run.stderr.contains("frame rule `middle` is not known"), "{}", run.stderr);
}

#[test]
fn a_folder_of_videos_becomes_a_plan() {
    let dir = tempfile::tempdir().unwrap();
    let folder = text_of(dir.path());
    let run = line("init", &["--data", &folder]).expect(2);
    assert!(run.stderr.contains("holds no captions file"), "{}", run.stderr);
    std::fs::copy(clip("av1.mp4"), dir.path().join("one.mp4")).unwrap();
    std::fs::copy(clip("h264_long_gop.mp4"), dir.path().join("two.mp4")).unwrap();
    let captions = dir.path().join("captions.csv");
    std::fs::write(&captions, "video,caption\none.mp4,\"a circle, red\"\nnone.mp4,x\n").unwrap();
    let run = line("init", &["--data", &folder]).expect(3);
    assert!(run.stderr.contains("line 3: there is no video `none.mp4`"), "{}", run.stderr);
    std::fs::write(&captions, "video,caption\none.mp4,\"a circle, red\"\ntwo,\"x\"\n").unwrap();
    let model = model("llava_siglip_qwen2");
    let run = line("init --eval-ratio 0.5", &["--data", &folder, "--model", &model]).expect(0);
    assert_eq!(run.stdout.trim(), text_of(&dir.path().join("plan.yaml")));
    let train = std::fs::read_to_string(dir.path().join("train.jsonl")).unwrap();
    assert!(train.contains("a circle, red") && train.contains("one.mp4"), "{train}");
    assert!(std::fs::read_to_string(dir.path().join("eval.jsonl")).unwrap().contains("two.mp4"));
    for file in ["train.jsonl", "eval.jsonl"] {
        let data = text_of(&dir.path().join(file));
        line("data check --num-frames 2", &["--data", &data, "--model", &model]).expect(0);
    }
    let run = line("init", &["--data", &folder, "--captions", &text_of(&captions)]).expect(2);
    assert!(run.stderr.contains("exists already"), "{}", run.stderr);
}

#[test]
fn a_recipe_is_written_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let out = text_of(dir.path());
    line("init --preset full", &["--out", &out]).expect(0);
    let plan = std::fs::read_to_string(dir.path().join("plan.yaml")).unwrap();
    assert!(plan.contains("kind: full"), "{plan}");
    line("init --preset lora", &["--out", &out]).expect(2);
    assert_eq!(std::fs::read_to_string(dir.path().join("plan.yaml")).unwrap(), plan);
}

#[test]
fn something_something_becomes_records_that_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| text_of(&dir.path().join(name));
    std::fs::write(at("train.csv"), "videos/3.webm 0\nvideos/8.webm 1\n").unwrap();
    std::fs::write(at("id2label.json"), r#"{"0": "Closing [something]", "1": "Holding something"}"#).unwrap();
    for out in ["records.jsonl", "records.json"] {
        let args = ["--annotations", &at("train.csv"), "--labels", &at("id2label.json"), "--suffix", "mp4"];
        let run = line("data convert ssv2", &[&args[..], &["--out", &at(out)]].concat()).expect(0);
        assert!(run.stdout.is_empty() && run.stderr.contains("2 records in `"), "{}", run.stderr);
        let report = line("data check --no-media", &["--data", &at(out)]).expect(0).json();
        assert_eq!((&report["format"], &report["accepted"]), (&json!("llava"), &json!(2)));
    }
    let first = std::fs::read_to_string(at("records.jsonl")).unwrap();
    let first: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert_eq!((&first["id"], &first["video"]), (&json!("3"), &json!("3.mp4")));
    assert_eq!(first["conversations"][1]["value"], json!("Closing something"));
    let run = line("data convert ssv2", &["--annotations", &at("train.csv"), "--out", &at("x.json")]).expect(3);
    assert!(run.stderr.contains("need a file that says what the labels mean"), "{}", run.stderr);
}
