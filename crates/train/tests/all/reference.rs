//! Schedules, step counts and weight-decay groups against `transformers` (fixtures/models/training, written by
//! tools/oracle/train_ref.py).

use std::path::PathBuf;

use crate::support::fixture_dir;
use models::{LoadOptions, NamedParam};
use serde_json::Value as Json;
use train::plan::Plan;
use train::schedule::{Schedule, StepCount};
use train::takes_decay;

fn fixture(name: &str) -> Json {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/training").join(name);
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn plan(train: &str) -> Plan {
    let text = format!(
        "model: {{path: m}}\nmethod: {{kind: full}}\ndata: {{train: [{{path: d.json}}]}}\ntrain: {{output_dir: o, {train}}}\n"
    );
    Plan::from_yaml(&text, &[]).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

/// Rates come from the same f64 formulas; `cos` and `powf` may differ in the last place between libraries.
fn check_rate(found: f64, expected: f64, case: &Json, step: usize) {
    let tolerance = 1e-14 * case["learning_rate"].as_f64().unwrap();
    assert!((found - expected).abs() <= tolerance, "step {step}: {found} instead of {expected} in {case}");
}

#[test]
fn every_schedule_gives_the_rates_of_the_reference() {
    let schedules = fixture("schedules.json");
    let cases = schedules["schedules"].as_array().unwrap();
    assert!(cases.len() >= 80);
    for case in cases {
        let kind = case["lr_scheduler_type"].as_str().unwrap();
        let rate = case["learning_rate"].as_f64().unwrap();
        // A warm-up beside `constant` is refused here; the reference ignores it.
        let warmup = match (case.get("warmup_steps"), case.get("warmup_ratio")) {
            _ if kind == "constant" => String::new(),
            (Some(steps), _) => format!(", warmup_steps: {steps}"),
            (None, Some(ratio)) => format!(", warmup_ratio: {ratio}"),
            (None, None) => String::new(),
        };
        let total = case["total_steps"].as_u64().unwrap();
        let plan = plan(&format!("lr_scheduler_type: {kind}, learning_rate: {rate}{warmup}"));
        let schedule = match Schedule::new(&plan, total) {
            Ok(schedule) => schedule,
            // The reference lets a warm-up run past the end.
            Err(_) => {
                assert!(case["resolved_warmup_steps"].as_u64().unwrap() > total);
                continue;
            }
        };
        if kind != "constant" {
            assert_eq!(schedule.num_warmup_steps, case["resolved_warmup_steps"].as_u64().unwrap(), "{case}");
        }
        for (step, expected) in case["rates"].as_array().unwrap().iter().enumerate() {
            check_rate(schedule.learning_rate(rate, step as u64), expected.as_f64().unwrap(), case, step);
        }
    }
}

#[test]
fn steps_are_counted_as_the_reference_counts() {
    for case in fixture("schedules.json")["step_counts"].as_array().unwrap() {
        let number = |key: &str| case[key].as_u64().unwrap();
        let length = match case["max_steps"].as_i64().unwrap() {
            -1 => format!("num_train_epochs: {}", case["num_train_epochs"]),
            steps => format!("max_steps: {steps}"),
        };
        let plan = plan(&format!("{length}, gradient_accumulation_steps: {}", number("gradient_accumulation_steps")));
        let num_batches = number("records").div_ceil(number("per_device_train_batch_size"));
        let count = StepCount::new(&plan, Some(num_batches)).unwrap();
        assert_eq!(count.steps_per_epoch, Some(number("steps_per_epoch")), "{case}");
        assert_eq!(count.num_training_steps, number("total_steps"), "{case}");
        assert_eq!(count.num_epochs(), number("epochs"), "{case}");
    }
}

#[test]
fn weight_decay_groups_are_those_of_the_reference() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/training");
    let mut counts = [0, 0];
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.ends_with(".json") || name == "schedules.json" {
            continue;
        }
        let run = fixture(&name);
        let groups = &run["groups"];
        let (model, _) = models::load(&fixture_dir(run["folder"].as_str().unwrap()), &LoadOptions::default()).unwrap();
        let params = model.params();
        // The tensor of the model, or what stands for a matrix of an adapter.
        let named = |name: &str| {
            let inner = name.strip_prefix("base_model.model.").unwrap_or(name);
            let canonical = models::names::canonical_tensor(inner, model.config().has_plain_names());
            let found = params.iter().find(|p| p.name == canonical).cloned();
            found.unwrap_or_else(|| {
                assert!(name.contains(".lora_"), "{name}");
                NamedParam { name: name.to_owned(), is_layer_norm: false, ..params[0].clone() }
            })
        };
        for (group, expected) in [("decay", true), ("no_decay", false)] {
            for tensor in groups[group].as_array().unwrap() {
                assert_eq!(takes_decay(&named(tensor.as_str().unwrap())), expected, "{tensor} of {name}");
                counts[usize::from(expected)] += 1;
            }
        }
    }
    assert!(counts[0] > 50 && counts[1] > 50, "{counts:?}");
}
