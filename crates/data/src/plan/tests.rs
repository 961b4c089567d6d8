//! Sections of plans that are right and wrong.

use serde_json::json;

use super::*;

fn check(section: Value, expected: &str) {
    assert_eq!(DataPlan::from_json(&section).unwrap_err().to_string(), expected);
}

#[test]
fn unknown_keys_are_errors_with_a_suggestion() {
    check(json!({"num_frame": 8}), "`data.num_frame`: is not a key; hint: did you mean `data.num_frames`?");
    check(
        json!({"train": [{"path": "a.json", "media_dirs": "m"}]}),
        "`data.train[].media_dirs`: is not a key; hint: did you mean `data.train[].media_dir`?",
    );
    check(
        json!({"colour_jitter_strength": 1}),
        "`data.colour_jitter_strength`: is not a key; hint: see the reference page of the plan's `data` section",
    );
}

#[test]
fn contradictions_are_errors() {
    check(
        json!({"num_frames": 8, "fps": 1}),
        "`data.fps`: 1 stands beside `data.num_frames: 8`; hint: keep one of them",
    );
    check(
        json!({"train": [{"path": "a.json", "weight": 0}]}),
        "`data.train`: `weight: 0`: must be above 0 and at most 1000; hint: how many times an epoch takes the dataset, such as 0.5 or 2",
    );
    check(
        json!({"eval": [{"path": "a.json", "weight": 2}]}),
        "`data.eval`: `weight: 2`: an evaluation takes every record once; hint: remove it, or write `max_samples`",
    );
    check(
        json!({"train": [{"path": "a.json", "weight": 2}], "group_by_length": true}),
        "`data.group_by_length`: orders all records once an epoch, beside a `weight` that is not 1; hint: keep one of them",
    );
    check(json!({"pack_window": 4}), "`data.pack_window`: needs `data.pack_tokens`; hint: add it, or remove this key");
    check(
        json!({"pack_patches": 400}),
        "`data.pack_patches`: needs `data.pack_tokens`; hint: add it, or remove this key",
    );
    check(
        json!({"pack_tokens": 9, "pack_window": 0}),
        "`data.pack_window`: must be at least 1, found 0; hint: leave it out for the default",
    );
    check(
        json!({"pack_tokens": 9, "pack_window": 100_000}),
        "`data.pack_window`: must be at most 65536: all records of a window are measured before its first batch; hint: a usual value is 256",
    );
    check(
        json!({"group_by_length": true, "shuffle": false}),
        "`data.group_by_length`: puts records into an order of its own, beside `data.shuffle: false`; hint: keep one of them",
    );
    check(
        json!({"group_by_length": true, "pack_tokens": 9}),
        "`data.group_by_length`: stands beside `data.pack_tokens`, which fills batches better from lengths that differ; hint: keep one of them",
    );
    check(
        json!({"frame_jitter": true}),
        "`data.frame_jitter`: needs `data.frame_rule: segments`; hint: add the rule, or remove it",
    );
}

#[test]
fn splits_that_cannot_be() {
    check(
        json!({"split": {"ratio": 1.0}}),
        "`data.split.ratio`: must lie between 0 and 1, found 1; hint: the share of the records to hold out, such as 0.05",
    );
    check(
        json!({"split": {"seed": 3}}),
        "`data.split.seed`: needs `data.split.ratio`; hint: add it, or remove this key",
    );
    check(
        json!({"split": {"ratio": 0.1}, "eval": "e.json"}),
        "`data.split.ratio`: holds out records for evaluation, beside the datasets of `data.eval`; hint: keep one of them",
    );
    check(
        json!({"split": {"ration": 0.1}}),
        "`data.split.ration`: is not a key; hint: did you mean `data.split.ratio`?",
    );
    check(
        json!({"train": [{"path": "a.json", "max_samples": 0}]}),
        "`data.train`: a dataset has `max_samples: 0`; hint: leave it out for all records, or remove the dataset",
    );
}

#[test]
fn the_table_holds_every_key_with_its_default() {
    let plan = DataPlan { train: vec![serde_json::from_value(json!({"path": "x"})).unwrap()], ..DataPlan::default() };
    let written = serde_json::to_value(&plan).unwrap();
    let mut names: Vec<String> = Vec::new();
    for (key, value) in written.as_object().unwrap() {
        match key.as_str() {
            "limits" | "split" => names.extend(value.as_object().unwrap().keys().map(|k| format!("{key}.{k}"))),
            "train" => {
                names.push(key.clone());
                names.extend(value[0].as_object().unwrap().keys().map(|k| format!("train[].{k}")));
            }
            _ => names.push(key.clone()),
        }
    }
    names.sort();
    let mut known: Vec<String> = FIELDS.iter().map(|f| f.name.to_owned()).collect();
    known.sort();
    assert_eq!(names, known);
    let defaults = serde_json::to_value(DataPlan::default()).unwrap();
    for f in FIELDS.iter().filter(|f| !f.name.contains(['[', '.'])) {
        let default: Value = serde_json::from_str(f.default).unwrap();
        assert_eq!(default, defaults[f.name], "default of `{}`", f.name);
    }
}

#[test]
fn the_window_follows_the_order() {
    let window = |section: Value| DataPlan::from_json(&section).unwrap().train_options(1, 1, 0).unwrap().pack_window;
    assert_eq!(window(json!({"pack_tokens": 9})), 256);
    assert_eq!(window(json!({"pack_tokens": 9, "shuffle": false})), 1);
    assert_eq!(window(json!({"pack_tokens": 9, "shuffle": false, "pack_window": 8})), 8);
    let grouped = DataPlan::from_json(&json!({"group_by_length": true})).unwrap();
    assert_eq!(grouped.train_options(3, 4, 0).unwrap().group_by_length, Some(12));
    assert_eq!(grouped.eval_options(3).unwrap().group_by_length, None);
}

#[test]
fn one_dataset_may_stand_alone() {
    let plan = DataPlan::from_json(&json!({"train": "a.json", "eval": {"path": "b.json"}})).unwrap();
    assert_eq!(plan.train[0].path, Path::new("a.json"));
    assert_eq!(plan.eval[0].path, Path::new("b.json"));
}

#[test]
fn a_list_of_paths_is_so_many_datasets() {
    let plan = DataPlan::from_json(&json!({"train": [{"path": ["a.json", "b.json"], "media_dir": "m"}, "c"]})).unwrap();
    let sets: Vec<_> = plan.train.iter().map(|set| (set.path.to_str().unwrap(), set.media_dir.is_some())).collect();
    assert_eq!(sets, [("a.json", true), ("b.json", true), ("c", false)]);
    assert!(DataPlan::from_json(&json!({"train": {"path": []}})).is_err());
}
