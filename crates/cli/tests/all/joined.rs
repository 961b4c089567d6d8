//! A language model and two towers that were never one checkpoint: projectors trained on images and clips, an adapter from
//! these, scores and answers of both, in the program as a user runs it. And the way of an original checkpoint to `transformers`.

use std::path::Path;

use serde_json::{Value, json};

use crate::{clip, dataset, fixture, line, model, record, text_of, vidtune};

fn image_record(id: &str, answer: &str) -> Value {
    let image = text_of(&fixture("models/encoders_llama/images/3.png"));
    json!({"id": id, "image": image, "conversations": [
        {"from": "human", "value": "<image>\nWhat moves?"}, {"from": "gpt", "value": answer}]})
}

fn write_plan(dir: &Path, name: &str, plan: &Value) -> String {
    let path = dir.join(name);
    std::fs::write(&path, plan.to_string()).unwrap();
    text_of(&path)
}

#[test]
fn projectors_then_an_adapter_then_answers() {
    let dir = tempfile::tempdir().unwrap();
    let records = [
        record("a", &clip("h264_small.mp4"), "A red circle."),
        image_record("b", "Two triangles."),
        record("c", &clip("vp9.webm"), "The square comes first."),
        image_record("d", "Nothing."),
    ];
    let data = dataset(dir.path(), &records);
    let part = |name: &str| model(&format!("encoders_llama/parts/{name}"));
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let mut joined = json!({"language": part("language"), "image_tower": part("image_tower"), "video_tower": part("video_tower"),
        "projector": "mlp2x_gelu", "version": "plain"});
    let train = |out: &Path| json!({"output_dir": text_of(out), "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3});
    let plan = json!({"model": joined, "method": {"kind": "projector"}, "data": {"train": [{"path": data}], "num_frames": 3},
        "train": train(&first)});
    let plan = write_plan(dir.path(), "first.yaml", &plan);
    let report = vidtune(&["plan", &plan, "--json"]).expect(0).json();
    assert_eq!(report["parts"][1]["trainable_tensors"], 8);
    assert!(!first.exists());
    vidtune(&["train", &plan]).expect(0);
    let metrics = std::fs::read_to_string(first.join("metrics.jsonl")).unwrap();
    let losses: Vec<f64> =
        metrics.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64().unwrap()).collect();
    assert!(losses.len() == 4 && losses[3] < losses[0], "{losses:?}");

    joined["version"] = "v1".into();
    joined["pretrained_projector"] = text_of(&first.join("final_model")).into();
    let plan = json!({"model": joined, "method": {"kind": "lora", "lora": {"r": 4}, "also_train": ["projector"]},
        "data": {"train": [{"path": data}], "num_frames": 3}, "train": train(&second)});
    let plan = write_plan(dir.path(), "second.yaml", &plan);
    vidtune(&["train", &plan]).expect(0);

    let (base, adapter) = (text_of(&second.join("base_model")), text_of(&second.join("final_model")));
    let score = |model: &str, more: &[&str]| -> Vec<f64> {
        let run = line(&format!("score --model {model} --data {data}"), more).expect(0);
        run.stdout.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64().unwrap()).collect()
    };
    // Three segments without saying so: they are the model's. One batch or four give the same.
    let with = score(&base, &["--adapter", &adapter]);
    let together = score(&base, &["--adapter", &adapter, "--batch-size", "4"]);
    assert_eq!(with.len(), 4);
    for (a, b) in with.iter().zip(&together) {
        assert!((a - b).abs() < 1e-5 * a, "{with:?} {together:?}");
    }
    let without = score(&base, &[]);
    assert!(with.iter().sum::<f64>() < without.iter().sum::<f64>(), "{with:?} {without:?}");
    assert_ne!(score(&base, &["--num-frames", "2"])[0], without[0]);
    // The first run's model stands alone; its template takes the media of a question and none of its words.
    assert_eq!(score(&text_of(&first.join("final_model")), &[]).len(), 4);

    let ask = |media: &[&str]| {
        let mut args =
            vec!["generate", "--model", &adapter, "--prompt", "What moves?", "--max-new-tokens", "5", "--json"];
        args.extend(media);
        vidtune(&args).expect(0).json()["token_ids"].as_array().unwrap().len()
    };
    let image = text_of(&fixture("models/encoders_llama/images/3.png"));
    for media in [vec!["--video", &clip("h264_small.mp4")], vec!["--image", &image], vec![]] {
        assert!((1..=5).contains(&ask(&media)));
    }
    // Evaluation finds plan, base and adapter.
    let results = dir.path().join("results.json");
    line(&format!("eval {plan} --data {data} --task loss --out {}", text_of(&results)), &[]).expect(0);
}

#[test]
fn wrong_combinations_of_parts_are_named() {
    let check = |argument: &str, expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        let out = format!("train.output_dir={}", text_of(&dir.path().join("o")));
        let plan = write_plan(
            dir.path(),
            "p.yaml",
            &json!({"method": {"kind": "projector"}, "data": {"train": [{"path": "d.json"}]}}),
        );
        let mut args = vec!["train", &plan, &out];
        args.extend(argument.split(' '));
        let run = vidtune(&args).expect(2);
        assert!(run.stderr.contains(expected), "{}", run.stderr);
    };
    let language = format!("model.language={}", model("encoders_llama/parts/language"));
    check(&language, "there is no tower to join: `model.image_tower` and `model.video_tower` are both missing");
    check("model.image_tower=x", "`model.image_tower` joins parts, and `model.language` is missing");
    check(
        "model.path=x model.language=y model.image_tower=z",
        "`model.language` joins parts, and `model.path` names a whole checkpoint",
    );
    check(&format!("{language} model.image_tower=./gone"), "`model.image_tower`: ");
    check(&format!("{language} model.image_tower=x model.projector=identity"), "expected `linear` or `mlpNx_gelu`");
    check(
        &format!("{language} model.image_tower=x model.version=v2"),
        "`model.version` must be one of auto, plain, v0, v0.5, v1",
    );
    check(
        &format!("{language} model.image_tower=x model.video_projector=linear"),
        "`model.video_projector` has no effect without `model.video_tower`",
    );
}

/// Logits of an exported folder are those of the original: the loss of every record, by way of ids, pixels and weights. Rows of
/// the table that came in are in the sum of the softmax, so the losses differ by these alone.
#[test]
fn an_original_checkpoint_becomes_one_of_transformers() {
    for name in ["original_llama", "original_qwen"] {
        let dir = tempfile::tempdir().unwrap();
        let data = text_of(&fixture("models").join(name).join("samples.json"));
        let source = model(&format!("{name}/parts/original"));
        let out = text_of(&dir.path().join("hf"));
        line(&format!("export --model {source} --to-hf {out}"), &[]).expect(0);
        line(&format!("export --model {source} --to-hf {out}"), &[]).expect(2);
        let config: Value =
            serde_json::from_str(&std::fs::read_to_string(dir.path().join("hf/config.json")).unwrap()).unwrap();
        assert_eq!(config["architectures"], json!(["LlavaForConditionalGeneration"]));
        let score = |model: &str| -> Vec<Value> {
            let run = line(&format!("score --model {model} --data {data}"), &[]).expect(0);
            run.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
        };
        for (ours, theirs) in score(&source).iter().zip(score(&out)) {
            for key in ["num_tokens", "input_tokens"] {
                assert_eq!(ours[key], theirs[key], "{name}");
            }
            let (ours, theirs) = (ours["loss"].as_f64().unwrap(), theirs["loss"].as_f64().unwrap());
            let allowed = if name == "original_qwen" { 1e-5 } else { 0.05 };
            assert!((ours - theirs).abs() <= allowed * ours, "{name}: {ours} and {theirs}");
        }
    }
    let refused = |name: &str, expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        let out = text_of(&dir.path().join("hf"));
        let run = line(&format!("export --model {} --to-hf {out}", model(name)), &[]);
        assert!(run.code != 0 && run.stderr.contains(expected), "{}", run.stderr);
    };
    refused("original_mistral", "that class has a projector of two maps (`mlp2x_gelu`), found Linear");
    refused("encoders_llama", "no place for one for clips");
    refused("llava_clip_llama", "a `llava` model is not in LLaVA's original layout");
}
