//! Models that hear, through the binary: asked, scored, trained, saved and asked again, on a clip with a track of its own.
//! Expectations: `tools/oracle/chat_egogpt.py`.

use hub::SafeTensors;
use serde_json::{Value, json};

use crate::{dataset, fixture, line, model, text_of};

fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("models/egogpt_chat/expected.json")).unwrap()).unwrap()
}

fn sound(name: &str) -> String {
    text_of(&fixture("media/sounds").join(name))
}

#[test]
fn a_question_about_what_is_seen_and_heard() {
    let (reference, clip) = (expected(), sound("clip_aac.mp4"));
    let ask = |audio: &[&str]| {
        let (model, prompt) = (model("egogpt_chat"), reference["asked"]["prompt"].as_str().unwrap());
        let mut args = vec!["--model", model.as_str(), "--video", clip.as_str(), "--prompt", prompt];
        args.extend(audio.iter().flat_map(|file| ["--audio", file]));
        let run = line("generate --num-frames 2 --temperature 0 --max-new-tokens 12 --json", &args).expect(0);
        run.json()["token_ids"].clone()
    };
    assert_eq!(ask(&[&clip]), reference["asked"]["new_ids"]);
    // What is heard is not what stands in the text alone.
    assert_ne!(ask(&[&sound("clip_mp3.mkv")]), reference["asked"]["new_ids"]);
    assert_eq!(ask(&[]), reference["asked_without_sound"]);
    let silent = text_of(&fixture("media/clips/h264_small.mp4"));
    let model = model("egogpt_chat");
    let run = line("generate --prompt x", &["--model", &model, "--audio", &silent]).expect(3);
    assert!(run.stderr.contains("no audio track"), "{}", run.stderr);
}

#[test]
fn scores_are_those_of_the_reference() {
    let reference = expected();
    let (model, data) = (model("egogpt_chat"), text_of(&fixture("models/egogpt_chat/records.json")));
    let root = text_of(&fixture(""));
    for batch in ["1", "3"] {
        let args = ["--model", &model, "--data", &data, "--media-dir", &root, "--batch-size", batch];
        let run = line("score --num-frames 2", &args).expect(0);
        let lines: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let samples = reference["samples"].as_array().unwrap();
        assert_eq!(lines.len(), samples.len());
        for (found, sample) in lines.iter().zip(samples) {
            assert_eq!((&found["id"], &found["input_tokens"]), (&sample["id"], &sample["num_tokens"]));
            assert_eq!(found["num_tokens"], sample["num_supervised"]);
            let (ours, theirs) = (found["loss_sum"].as_f64().unwrap(), sample["loss_sum"].as_f64().unwrap());
            assert!((ours / theirs - 1.0).abs() < 1e-4, "{}: {ours} {theirs}", sample["id"]);
        }
    }
}

#[test]
fn lora_with_the_projector_of_speech_is_trained_saved_and_asked() {
    let dir = tempfile::tempdir().unwrap();
    let clip = sound("clip_aac.mp4");
    let record = |id: &str, answer: &str| {
        json!({"id": id, "video": clip, "audio": sound("clip_mp3.mkv"), "conversations": [
            {"from": "human", "value": "<speech>\n<image>\nWhat is moving?"}, {"from": "gpt", "value": answer}]})
    };
    let data =
        dataset(dir.path(), &[record("a", "A red circle."), record("b", "A blue square."), record("c", "Nothing.")]);
    let out = dir.path().join("run");
    let plan = dir.path().join("plan.yaml");
    let text = format!(
        "model: {{path: {}}}\nmethod: {{kind: lora, lora: {{r: 2, target_modules: [q_proj, v_proj]}}, also_train: [speech_projector]}}\n\
         data: {{train: [{{path: {data}}}], num_frames: 2}}\n\
         train: {{output_dir: {}, max_steps: 6, per_device_train_batch_size: 2, learning_rate: 1e-2, preflight: true}}\n",
        model("egogpt_chat"),
        out.display()
    );
    std::fs::write(&plan, text).unwrap();
    let plan = text_of(&plan);
    let told = line("plan", &[&plan]).expect(0);
    assert!(told.stdout.contains("speech_projector"), "{}", told.stdout);
    line("train -q", &[&plan]).expect(0);
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let losses: Vec<f64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter_map(|line| line["loss"].as_f64())
        .collect();
    assert_eq!(losses.len(), 6);
    assert!(losses[5] < losses[0], "{losses:?}");

    let adapter = out.join("final_model");
    let config: Value = serde_json::from_slice(&std::fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap();
    assert!(config["modules_to_save"].to_string().contains("speech_projector"), "{config}");
    let file = SafeTensors::open(adapter.join("adapter_model.safetensors")).unwrap();
    let base = SafeTensors::open(fixture("models/egogpt_chat/model.safetensors")).unwrap();
    let name = "model.speech_projector.linear1.weight";
    let trained = file.get(&format!("base_model.model.{name}")).unwrap();
    assert_ne!(trained.data, base.get(name).unwrap().data, "the projector of speech stayed as it was");
    assert!(file.get("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight").is_some());

    let (model, adapter) = (model("egogpt_chat"), text_of(&adapter));
    let args =
        ["--model", &model, "--adapter", &adapter, "--video", &clip, "--audio", &clip, "--prompt", "What is moving?"];
    let run = line("generate --num-frames 2 --max-new-tokens 4 --json", &args).expect(0);
    assert_ne!(run.json()["token_ids"], expected()["asked"]["new_ids"]);
}

#[test]
fn a_tensor_outside_of_every_module_is_no_module() {
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("plan.yaml");
    let text = format!(
        "model: {{path: {}}}\nmethod: {{kind: lora, lora: {{r: 2, target_modules: [q_proj]}}, also_train: [model.image_newline]}}\n\
         data: {{train: [{{path: {}, media_dir: {}}}], num_frames: 2}}\ntrain: {{output_dir: {}, max_steps: 1}}\n",
        model("egogpt_chat"),
        text_of(&fixture("models/egogpt_chat/records.json")),
        text_of(&fixture("")),
        dir.path().join("run").display()
    );
    std::fs::write(&plan, text).unwrap();
    let run = line("plan", &[&text_of(&plan)]).expect(2);
    assert!(run.stderr.contains("names a part of the module `model`, without its"), "{}", run.stderr);
}

#[test]
fn a_whole_model_is_trained_saved_and_scored() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let plan = dir.path().join("plan.yaml");
    let text = format!(
        "model: {{path: {}}}\nmethod: {{kind: full, freeze: [vision], learning_rates: {{speech: 1e-4, speech_projector: 1e-3}}}}\n\
         data: {{train: [{{path: {}, media_dir: {}}}], num_frames: 2, pack_tokens: 220}}\n\
         train: {{output_dir: {}, max_steps: 3, learning_rate: 1e-3}}\n",
        model("egogpt_chat"),
        text_of(&fixture("models/egogpt_chat/records.json")),
        text_of(&fixture("")),
        out.display()
    );
    std::fs::write(&plan, text).unwrap();
    line("train -q", &[&text_of(&plan)]).expect(0);
    let (saved, base) = (out.join("final_model"), fixture("models/egogpt_chat"));
    let names = |dir: &std::path::Path| -> Vec<String> {
        let file = SafeTensors::open(dir.join("model.safetensors")).unwrap();
        file.iter().map(|view| view.name.to_owned()).collect()
    };
    assert_eq!(names(&saved), names(&base));
    let args = [
        "--model",
        &text_of(&saved),
        "--data",
        &text_of(&base.join("records.json")),
        "--media-dir",
        &text_of(&fixture("")),
    ];
    let run = line("score --num-frames 2", &args).expect(0);
    assert_eq!(run.stdout.lines().count(), 4);
}
