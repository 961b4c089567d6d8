//! Sequence-to-sequence models through the program: preset, plan with a DeepSpeed file, training, evaluation, scores, answers.

use std::path::Path;

use serde_json::{Value, json};

use crate::{dataset, fixture, line, text_of, vidtune};

fn checkpoint(name: &str) -> String {
    text_of(&fixture("seq2seq").join(name))
}

fn records(dir: &Path) -> String {
    let pairs =
        [("What is moving?", "Ein roter Kreis."), ("How many?", "two"), ("Which shape?", "the square"), ("Yes?", "no")];
    let record = |(i, (question, caption)): (usize, &(&str, &str))| json!({"id": format!("r{i}"), "video": "https://example.com/x.mp4", "question": question, "caption": caption});
    dataset(dir, &pairs.iter().enumerate().map(record).collect::<Vec<_>>())
}

#[test]
fn a_plan_with_a_deepspeed_file_trains_to_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (data, ds, plan) = (records(dir.path()), dir.path().join("ds_config.json"), dir.path().join("plan.yaml"));
    let config = json!({
        "train_batch_size": 4, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": 1e-3, "warmup_num_steps": 2}},
        "zero_optimization": {"stage": 2, "overlap_comm": true}
    });
    std::fs::write(&ds, config.to_string()).unwrap();
    let output = dir.path().join("run");
    let text = json!({
        "model": {"path": checkpoint("nllb_hub")}, "method": {"kind": "full"},
        "data": {"train": [{"path": data}], "eval": [{"path": data}], "tgt_lang": "fra_Latn"},
        "train": {"output_dir": text_of(&output), "max_steps": 3, "eval_steps": 3},
        "parallel": {"deepspeed": text_of(&ds)}
    });
    std::fs::write(&plan, text.to_string()).unwrap();
    let plan = text_of(&plan);
    let report = vidtune(&["plan", &plan, "--json"]).expect(0).json();
    assert_eq!(report["plan"]["train"]["gradient_accumulation_steps"], 4);
    assert_eq!(report["plan"]["train"]["lr_scheduler_type"], "constant_with_log_warmup");
    let run = vidtune(&["train", &plan, "train.gradient_accumulation_steps=2"]).expect(2);
    assert!(run.stderr.contains("asks for 4 records a step on 4 ranks"), "{}", run.stderr);
    let run = vidtune(&["train", &plan]).expect(0);
    assert!(run.stderr.contains("ZeRO and offload have nothing to divide"), "{}", run.stderr);
    assert!(run.stderr.contains("`dropout: 0.1`, `attention_dropout: 0.1` are applied in training"), "{}", run.stderr);
    assert!(output.join("ds_config.json").exists());
    let metrics = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let first: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert_eq!((&first["samples"], first["learning_rate"].as_f64()), (&json!(4), Some(0.0)));

    // The run's target language is the exported model's own from now on.
    let model = text_of(&output.join("final_model"));
    let ask = |more: &[&str]| {
        let mut args = vec!["generate", "--model", &model, "--prompt", "How many?", "--max-new-tokens", "6", "--json"];
        args.extend(more);
        vidtune(&args).expect(0).json()
    };
    let (own, named) = (ask(&[]), ask(&["--tgt-lang", "fra_Latn"]));
    assert_eq!(own, named);
    assert_ne!(ask(&["--tgt-lang", "jpn_Jpan"])["token_ids"][0], own["token_ids"][0]);
    let beams = ask(&["--num-beams", "3", "--length-penalty", "-0.5", "--early-stopping", "true"]);
    assert_eq!(beams["token_ids"][0], own["token_ids"][0]);

    let results = line("eval --task loss", &["--model", &model, "--data", &data]).expect(0).json();
    let logged: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert!(logged["step"] == 3 && results["metrics"]["loss"].as_f64().unwrap().is_finite());
    let results = line("eval --task qa --num-beams 2", &["--model", &model, "--data", &data]).expect(0).json();
    assert_eq!((&results["num_answers"], results["metrics"]["exact_match"].is_number()), (&json!(4), true));
    let scores = line("score", &["--model", &model, "--data", &data]).expect(0);
    let score: Value = serde_json::from_str(scores.stdout.lines().next().unwrap()).unwrap();
    let preview = line("data preview --json", &["--model", &model, "--data", &data]).expect(0).json();
    assert_eq!(score["input_tokens"], preview["ids"].as_array().unwrap().len());
    assert_eq!(score["num_tokens"], preview["target"].as_array().unwrap().len());
    assert!(preview["supervised"][0].as_str().unwrap().starts_with("fra_Latn"));
}

#[test]
fn an_adapter_keeps_the_languages_of_its_run() {
    let dir = tempfile::tempdir().unwrap();
    let (data, plan, output) = (records(dir.path()), dir.path().join("plan.yaml"), dir.path().join("run"));
    let text = json!({
        "model": {"path": checkpoint("m2m_defaults")}, "method": {"kind": "lora", "lora": {"r": 2}},
        "data": {"train": [{"path": data, "format": "seq2seq"}], "src_lang": "deu_Latn", "tgt_lang": "zho_Hans"},
        "train": {"output_dir": text_of(&output), "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
    });
    std::fs::write(&plan, text.to_string()).unwrap();
    vidtune(&["train", &text_of(&plan)]).expect(0);
    let adapter = text_of(&output.join("final_model"));
    let ask = |more: &[&str]| {
        let mut args = vec!["generate", "--adapter", &adapter, "--prompt", "Yes?", "--max-new-tokens", "3", "--json"];
        let base = checkpoint("m2m_defaults");
        args.extend(["--model", &base]);
        args.extend(more);
        vidtune(&args).expect(0).json()
    };
    assert_eq!(ask(&[]), ask(&["--src-lang", "deu_Latn", "--tgt-lang", "zho_Hans"]));
}

#[test]
fn languages_and_beams_are_for_models_that_have_them() {
    let decoder = text_of(&fixture("models").join("text_llama"));
    let refused = |more: &[&str]| {
        let mut args = vec!["generate", "--model", &decoder, "--prompt", "x", "--max-new-tokens", "2"];
        args.extend(more);
        vidtune(&args).expect(2).stderr
    };
    assert!(refused(&["--src-lang", "eng_Latn"]).contains("`--src-lang`: the model writes no targets"));
    assert!(refused(&["--num-beams", "2"]).contains("`--num-beams` is built for sequence-to-sequence models only"));
    let model = checkpoint("nllb_hub");
    let run = vidtune(&["generate", "--model", &model, "--prompt", "x", "--tgt-lang", "xxx_Xxxx"]).expect(3);
    assert!(run.stderr.contains("`xxx_Xxxx` is not a language of this tokenizer"), "{}", run.stderr);
}
