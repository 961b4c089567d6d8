//! What every registered family must have: a fixture of the reference, a row in the README, and a preset that makes a plan.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{line, text_of};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The `model_type` of every checkpoint in `fixtures/models` and `fixtures/seq2seq`.
fn families_of_fixtures() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in ["fixtures/models", "fixtures/seq2seq"] {
        for entry in std::fs::read_dir(repository().join(folder)).unwrap() {
            let path = entry.unwrap().path().join("config.json");
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let config: Value = serde_json::from_str(&text).unwrap();
            found.insert(config["model_type"].as_str().unwrap().to_owned());
        }
    }
    found
}

#[test]
fn every_family_has_a_fixture_a_readme_row_and_a_preset() {
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let rows: Vec<&str> = readme.lines().filter(|line| line.starts_with("| ")).collect();
    let fixtures = families_of_fixtures();
    for family in models::FAMILIES {
        assert!(fixtures.contains(*family), "no fixture of `{family}`");
        let name = format!("`{family}`");
        assert!(rows.iter().any(|row| row.contains(&name)), "no row of README.md names {name}");
        let dir = tempfile::tempdir().unwrap();
        line(&format!("init --preset {family}"), &["--out", &text_of(dir.path())]).expect(0);
        let plan = std::fs::read_to_string(dir.path().join("plan.yaml")).unwrap();
        train::plan::Plan::from_yaml(&plan, &[]).unwrap();
    }
}

#[test]
fn a_preset_that_is_not_there_is_a_usage_error() {
    let run = line("init --preset gpt2", &[]).expect(2);
    assert!(run.stderr.contains("there is no preset `gpt2`") && run.stderr.contains("`qwen2_5_vl`"), "{}", run.stderr);
}

/// `vidtune plan` on the published configuration of some size, without weights, tokenizer or data.
fn planned(config: &Value, method: &str, flags: &str) -> crate::Run {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let model = text_of(dir.path());
    let plan = dir.path().join("plan.yaml");
    let text = format!(
        "model: {{path: {model}}}\nmethod: {{{method}}}\ndata: {{train: [{{path: none.jsonl}}]}}\n\
         train: {{output_dir: {model}/out, per_device_train_batch_size: 1, gradient_checkpointing: true}}\n"
    );
    std::fs::write(&plan, text).unwrap();
    line(format!("plan --json {flags}").trim_end(), &[&text_of(&plan)])
}

#[test]
fn a_configuration_alone_is_planned() {
    let path = repository().join("fixtures/models/full_size.json");
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let entry = |name: &str| file["models"][name].clone();
    for (name, pictures) in
        [("qwen2.5-vl-72b", 4), ("llava-1.5-13b", 1), ("nllb-200-distilled-600m", 0), ("phi-4-mini", 0)]
    {
        let flags = format!("--tokens 2048 --pictures {pictures}");
        let report = planned(&entry(name)["config"], "kind: full", &flags).expect(0).json();
        let total = entry(name)["parameters"]["total"].as_u64().unwrap();
        assert_eq!(report["parameters"].as_u64(), Some(total), "{name}");
        assert_eq!(report["without_weights"], true);
        // What trains is kept in f32, with a gradient and two moments of the same size.
        let memory = |key: &str| report["memory"][key].as_u64().unwrap();
        let trained = 4 * report["trainable_parameters"].as_u64().unwrap();
        assert!(memory("gradients") >= trained && memory("optimizer") >= 2 * trained, "{name}: {report}");
        assert!(memory("total") > memory("weights") + memory("optimizer"), "{name}");
    }
    // Adapters leave the weights as the configuration says they are stored.
    let entry = entry("qwen2.5-vl-7b");
    let lora = "kind: lora, lora: {r: 16, target_modules: [q_proj, v_proj]}";
    let report = planned(&entry["config"], lora, "--tokens 4096 --pictures 8").expect(0).json();
    let (weights, total) =
        (report["memory"]["weights"].as_u64().unwrap(), entry["parameters"]["total"].as_u64().unwrap());
    assert!((2 * total..2 * total + total / 50).contains(&weights), "{weights} bytes of {total} weights");
    assert!(report["memory"]["total"].as_u64().unwrap() < weights + weights / 2, "{report}");
}

#[test]
fn what_cannot_be_assumed_is_said() {
    let path = repository().join("fixtures/models/full_size.json");
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let run = |name: &str, flags: &str| planned(&file["models"][name]["config"], "kind: full", flags);
    let run_out = run("llava-1.5-7b", "--tokens 576 --pictures 1");
    assert!(run_out.stderr.contains("1 pictures take 576 of 576 tokens"), "{}", run_out.stderr);
    let run_out = run("llama-3.1-8b", "--tokens 576 --pictures 1");
    assert!(run_out.stderr.contains("pictures of a `llama` model cannot be assumed"), "{}", run_out.stderr);
    // Without assumptions weights are looked for.
    let run_out = run("llama-3.1-8b", "");
    assert_ne!(run_out.code, 0);
}
