//! Commands that run a model: `score`, `generate`, `eval`, `doctor`, `bench step`, `bench generate`.

use std::borrow::Cow;

use hub::{OutTensor, SafeTensors, write_safetensors};
use serde_json::{Value, json};

use crate::{clip, dataset, fixture, line, model, record, text_of};

#[test]
fn checkpoints_agree_with_the_reference_script() {
    for name in ["llava_siglip_qwen2", "clip_full_llama_bias", "text_qwen2_transformers5"] {
        let reference = text_of(&fixture("hub/doctor").join(format!("{name}.safetensors")));
        let run = line("doctor --json", &["--model", &model(name), "--reference", &reference]).expect(0);
        let found = run.json();
        assert_eq!(found["agrees"], json!(true));
        assert_eq!(found["same_choice"], found["tokens"]);
        // f32 on both sides; DESIGN's bound for logits.
        assert!(found["relative_to_scale"].as_f64().unwrap() < 1e-4, "{found}");
    }
}

#[test]
fn a_checkpoint_that_differs_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = SafeTensors::open(fixture("hub/doctor/llava_siglip_qwen2.safetensors")).unwrap();
    let tensors: Vec<OutTensor<'_>> = file
        .iter()
        .map(|view| {
            let mut bytes = view.data.to_vec();
            if view.name == "logits" {
                // One value far off.
                bytes[40..44].copy_from_slice(&100f32.to_le_bytes());
            }
            OutTensor::new(view.name, view.dtype, view.shape, Cow::from(bytes))
        })
        .collect();
    let path = dir.path().join("off.safetensors");
    write_safetensors(&path, &tensors, &[]).unwrap();
    let model = model("llava_siglip_qwen2");
    let run = line("doctor", &["--model", &model, "--reference", &text_of(&path)]).expect(1);
    assert!(
        run.stdout.contains("DIFFERS from its reference") && run.stdout.contains("at position 0"),
        "{}",
        run.stdout
    );
    let path = dir.path().join("reference.json");
    std::fs::write(&path, r#"{"input_ids": [[1, 2]]}"#).unwrap();
    let run = line("doctor", &["--model", &model, "--reference", &text_of(&path)]).expect(2);
    assert!(run.stderr.contains("there is no `logits`"), "{}", run.stderr);
}

#[test]
fn scores_do_not_depend_on_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    let records = [
        record("a", &clip("av1.mp4"), "A red circle moves to the left."),
        record("b", &clip("h264_long_gop.mp4"), "x"),
        record("c", &clip("av1.mp4"), "two"),
    ];
    let data = dataset(dir.path(), &records);
    let mut all: Vec<Vec<Value>> = Vec::new();
    for (batch, threads) in [("1", "1"), ("3", "2"), ("2", "1")] {
        let out = text_of(&dir.path().join(format!("scores{batch}.jsonl")));
        let args = [
            "--model",
            &model("llava_siglip_qwen2"),
            "--data",
            &data,
            "--batch-size",
            batch,
            "--threads",
            threads,
            "--out",
            &out,
        ];
        let run = line("score --num-frames 2", &args).expect(0);
        assert!(run.stdout.is_empty());
        let text = std::fs::read_to_string(&out).unwrap();
        all.push(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect());
    }
    for (i, expected) in all[0].iter().enumerate() {
        assert_eq!(expected["id"], records[i]["id"]);
        let tokens = expected["num_tokens"].as_f64().unwrap();
        let (loss, sum) = (expected["loss"].as_f64().unwrap(), expected["loss_sum"].as_f64().unwrap());
        assert!((loss - sum / tokens).abs() < 1e-12 && expected["input_tokens"].as_u64().unwrap() > 40);
        for other in &all[1..] {
            assert_eq!(other[i]["num_tokens"], expected["num_tokens"]);
            // Packing changes the shapes of products and with them the order of f32 sums, nothing else.
            assert!((other[i]["loss"].as_f64().unwrap() - loss).abs() < 1e-4 * loss, "{} {expected}", other[i]);
        }
    }
    // The media decide the score: other frames, another loss.
    let args = ["--model", &model("llava_siglip_qwen2"), "--data", &data, "--num-frames", "3"];
    let run = line("score --max-samples 1", &args).expect(0);
    assert_ne!(run.json()["loss"], all[0][0]["loss"]);
    assert!(run.stderr.starts_with("1 scores: "), "{}", run.stderr);
    // What the run read and how long that took, for programs.
    let run = line("score --log-format json -q", &args).expect(0);
    assert!(!run.stderr.contains("scored"), "{}", run.stderr);
    let run = line("score --log-format json", &args).expect(0);
    let told: Value = serde_json::from_str(run.stderr.lines().last().unwrap()).unwrap();
    let tokens: u64 = run
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["input_tokens"].as_u64().unwrap())
        .sum();
    assert_eq!(
        (&told["event"], &told["records"], &told["input_tokens"]),
        (&json!("scored"), &json!(3), &json!(tokens))
    );
    let (time, forward) = (told["time"].as_f64().unwrap(), told["forward_time"].as_f64().unwrap());
    assert!(forward > 0.0 && forward <= time, "{told}");
}

#[test]
fn a_record_that_cannot_be_read_stops_scoring() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), &[record("a", "none.mp4", "x")]);
    let out = dir.path().join("scores.jsonl");
    let args = ["--model", &model("llava_siglip_qwen2"), "--data", &data, "--out", &text_of(&out)];
    let run = line("score --num-frames 2", &args).expect(3);
    let place = format!("error: `{data}` line 1, record `a`: `");
    assert!(run.stderr.starts_with(&place), "{}", run.stderr);
    assert!(!out.exists());
}

/// A clip that is not whole is used with what it holds, and whoever reads the numbers is told.
#[test]
fn clips_that_are_not_whole_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut cut = std::fs::read(clip("h264_gop12.mp4")).unwrap();
    cut.truncate(cut.len() * 2 / 3);
    let path = text_of(&dir.path().join("cut.mp4"));
    std::fs::write(&path, cut).unwrap();
    let data = dataset(dir.path(), &[record("whole", &clip("av1.mp4"), "a"), record("cut", &path, "a circle")]);
    let model = model("llava_siglip_qwen2");
    let args = ["--model", &model, "--data", &data, "--num-frames", "2"];
    let told = |stderr: &str| {
        let found: Vec<&str> = stderr.lines().filter(|line| line.contains("record `cut`: ")).collect();
        assert_eq!(found.len(), 1, "{stderr}");
        assert!(found[0].contains("the container lists 60 frames, the file holds "), "{stderr}");
        assert!(!stderr.contains("`whole`"), "{stderr}");
    };
    told(&line("score", &args).expect(0).stderr);
    for task in ["loss", "caption"] {
        let run = line("eval --max-new-tokens 2 --task", &[&[task][..], &args].concat()).expect(0);
        told(&run.stderr);
        assert_eq!(run.json()["noted"][0]["id"], json!("cut"));
    }
    for with in [&args[..], &args[2..4]] {
        let run = line("data check", with).expect(0);
        told(&run.stderr);
        assert!(run.stderr.contains("2 of 2 records accepted, 1 of them with notes"), "{}", run.stderr);
        let noted = &run.json()["noted"];
        assert_eq!(
            (&noted[0]["id"], &noted[0]["index"], noted.as_array().unwrap().len()),
            (&json!("cut"), &json!(1), 1)
        );
    }
}

#[test]
fn answers_repeat() {
    let model = model("llava_siglip_qwen2");
    let clip = clip("av1.mp4");
    let args = ["--model", &model, "--video", &clip, "--prompt", "What moves?", "--max-new-tokens", "6", "--json"];
    let first = line("generate --num-frames 2", &args).expect(0).json();
    assert!((1..=6).contains(&first["token_ids"].as_array().unwrap().len()));
    assert!(first["text"].is_string() && first.as_object().unwrap().len() == 2);
    assert_eq!(line("generate --num-frames 2 --threads 1", &args).expect(0).json(), first);
    let drawn = |seed: &str| {
        line("generate --num-frames 2 --temperature 2", &[&args[..], &["--seed", seed]].concat()).expect(0).json()
    };
    assert_eq!(drawn("1"), drawn("1"));
    assert!((2..8).any(|seed| drawn(&seed.to_string()) != drawn("1")));
    let run = line("generate --num-frames 2 --fps 1", &args).expect(2);
    assert!(run.stderr.contains("contradict each other"), "{}", run.stderr);
}

#[test]
fn a_folder_of_frames_is_a_video() {
    let dir = tempfile::tempdir().unwrap();
    let frames = text_of(&dir.path().join("frames"));
    line("data frames --num-frames 2", &["--video", &clip("av1.mp4"), "--out", &frames]).expect(0);
    std::fs::remove_file(dir.path().join("frames/frames.json")).unwrap();
    let model = model("llava_siglip_qwen2");
    let ask = |media: &[&str]| {
        let args = ["--model", &model, "--prompt", "What moves?", "--max-new-tokens", "6", "--json"];
        line("generate", &[&args[..], media].concat()).expect(0).json()
    };
    let clip = clip("av1.mp4");
    assert_eq!(ask(&["--frames", &frames]), ask(&["--video", &clip, "--num-frames", "2"]));
}

#[test]
fn every_task_writes_its_results() {
    let dir = tempfile::tempdir().unwrap();
    let mut choice = record("b", &clip("av1.mp4"), "A");
    choice["conversations"][0]["value"] = json!("<video>\nWhat moves?\nA. a circle\nB. a square");
    let sets = [
        ("loss", record("a", &clip("av1.mp4"), "a circle"), "loss"),
        ("qa", record("a", &clip("av1.mp4"), "a circle"), "exact_match"),
        ("classify", record("a", &clip("av1.mp4"), "circle"), "accuracy"),
        ("caption", record("a", &clip("av1.mp4"), "a red circle moves"), "cider"),
        ("mcq", choice, "accuracy"),
    ];
    for (task, record, metric) in sets {
        let data = dataset(dir.path(), &[record]);
        let out = text_of(&dir.path().join(format!("{task}.json")));
        let args = ["--model", &model("llava_siglip_qwen2"), "--data", &data, "--task", task, "--out", &out];
        let run = line("eval --num-frames 2 --max-new-tokens 4", &args).expect(0);
        assert!(run.stderr.contains(task), "{}", run.stderr);
        let found: Value = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
        assert!(found["metrics"][metric].is_number(), "{found:#}");
        assert_eq!((&found["task"], &found["num_records"]), (&json!(task), &json!(1)));
    }
}

#[test]
fn steps_are_timed_on_any_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let config = text_of(&fixture("models/text_qwen2_transformers5/config.json"));
    for method in ["full", "lora"] {
        let run = line("bench step --seq 32 --batch 2 --steps 4 --json", &["--config", &config, "--method", method]);
        let found = run.expect(0).json();
        assert_eq!(found["losses"].as_array().unwrap().len(), 4);
        for key in ["step_s", "tokens_per_s", "peak_memory_bytes", "flops", "mfu", "gflops_per_s", "peak_gflops_per_s"]
        {
            assert!(found[key].as_f64().unwrap() > 0.0, "{key}: {found}");
        }
    }
    let tokens: Vec<u8> = (0..32i64).flat_map(|id| (id + 3).to_le_bytes()).collect();
    let path = dir.path().join("tokens.safetensors");
    write_safetensors(&path, &[OutTensor::new("tokens", hub::Dtype::I64, &[32], tokens)], &[]).unwrap();
    let args = ["--config", &config, "--tokens", &text_of(&path)];
    line("bench step --seq 32 --steps 2 --json", &args).expect(0);
    let run = line("bench step --seq 33 --steps 2", &args).expect(2);
    assert!(run.stderr.contains("32 tokens, `--seq` times `--batch` is 33"), "{}", run.stderr);
}

#[test]
fn generation_is_timed_on_any_configuration() {
    let config = text_of(&fixture("models/text_qwen2_transformers5/config.json"));
    for dtype in ["f32", "bf16"] {
        let args = ["--config", &config, "--dtype", dtype];
        let found = line("bench generate --prompt-tokens 5 --new-tokens 4 --batch 3 --json", &args).expect(0).json();
        assert_eq!(found["token_ids"].as_array().unwrap().len(), 4);
        for key in ["prefill_s", "step_s", "tokens_per_s", "weight_bytes_per_token", "weight_gb_per_s", "read_gb_per_s"]
        {
            assert!(found[key].as_f64().unwrap() > 0.0, "{key}: {found}");
        }
        let bytes = ["weight_bytes_per_step", "weight_bytes_per_token"].map(|key| found[key].as_u64().unwrap());
        assert_eq!(bytes[0] / 3, bytes[1]);
    }
    let run = line("bench generate --new-tokens 1", &["--config", &config]).expect(2);
    assert!(run.stderr.contains("`new-tokens`: expected at least 2, found `1`"), "{}", run.stderr);
}
