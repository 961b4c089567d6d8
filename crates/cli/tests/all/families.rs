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
