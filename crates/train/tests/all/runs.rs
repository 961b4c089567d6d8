//! Whole runs: what they write, when they refuse, which checkpoint they keep.

use std::collections::BTreeSet;

use crate::support::run::{NUM_RECORDS, Place, run, run_until};
use train::{Event, ExitClass, Resume, TrainError, TrainerState, read_metrics};

const FIXTURE: &str = "llava_siglip_qwen2";

fn names(dir: &std::path::Path) -> BTreeSet<String> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn one_epoch_from_plan_to_final_model() {
    let place = Place::new(FIXTURE);
    let train = "num_train_epochs: 2, per_device_train_batch_size: 2, gradient_accumulation_steps: 4, learning_rate: 1e-3, save_strategy: epoch, eval_strategy: epoch, logging_steps: 1";
    let plan = place.plan("out", "kind: lora, lora: {r: 4}", train, &["model.dtype=f32"]);
    let mut events = Vec::new();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let outcome = train::run(&plan, &Resume::Never, &stop, &mut |event: &Event<'_>| {
        events.push(format!("{event:?}").split([' ', '(']).next().unwrap_or_default().to_owned());
    })
    .unwrap_or_else(|error| panic!("{error}"));
    let out = place.path("out");

    // 11 records in batches of 2 are 6 micro-batches: two steps an epoch, the second of 2 micro-batches.
    assert_eq!((outcome.steps, outcome.preempted), (4, false));
    let metrics = read_metrics(&out.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.iter().map(|m| m.samples).collect::<Vec<_>>(), [8, 3, 8, 3]);
    assert_eq!(metrics.iter().map(|m| m.epoch).collect::<Vec<_>>(), [8.0 / 11.0, 1.0, 1.0 + 8.0 / 11.0, 2.0]);
    assert_eq!(metrics.iter().map(|m| m.eval_loss.is_some()).collect::<Vec<_>>(), [false, true, false, true]);
    for m in &metrics {
        assert!(m.forward_time > 0.0 && m.backward_time > 0.0 && m.optimizer_time > 0.0 && m.data_time > 0.0);
        assert!(m.step_time >= m.forward_time + m.backward_time + m.optimizer_time);
        assert!(m.peak_memory_bytes > 100_000 && m.supervised_tokens > 0 && m.input_tokens > m.supervised_tokens);
    }
    assert!(metrics[3].loss < metrics[0].loss);

    assert_eq!(outcome.ledger.trained, NUM_RECORDS as u64);
    let ledger = std::fs::read_to_string(out.join("ledger.jsonl")).unwrap();
    assert_eq!(ledger.lines().filter(|line| line.contains("\"trained\"")).count(), NUM_RECORDS);
    let stored: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("plan.json")).unwrap()).unwrap();
    assert_eq!(stored, plan.to_json());
    let state: TrainerState = serde_json::from_slice(&std::fs::read(out.join("trainer_state.json")).unwrap()).unwrap();
    assert_eq!((state.global_step, state.max_steps, state.num_train_epochs, state.log_history.len()), (4, 4, 2, 6));

    let expected: BTreeSet<String> = [
        "checkpoint-2",
        "checkpoint-4",
        "final_model",
        "ledger.jsonl",
        "metrics.jsonl",
        "plan.json",
        "trainer_state.json",
        ".lock",
    ]
    .map(str::to_owned)
    .into();
    assert_eq!(names(&out), expected);
    let adapter = names(&out.join("final_model"));
    for name in
        ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "preprocessor_config.json", "README.md"]
    {
        assert!(adapter.contains(name), "{name} is missing in {adapter:?}");
    }
    assert!(!adapter.contains("model.safetensors"));
    let steps = outcome.next_steps.unwrap();
    assert!(steps.generate.contains("--adapter") && steps.python.contains("PeftModel"));
    let order: Vec<&str> = events.iter().map(String::as_str).collect();
    assert_eq!(
        order,
        [
            "Ready",
            "Step",
            "EvaluationStarted",
            "Evaluated",
            "Step",
            "CheckpointWritten",
            "Step",
            "EvaluationStarted",
            "Evaluated",
            "Step",
            "CheckpointWritten",
            "Data",
            "Exported"
        ]
    );
}

#[test]
fn full_training_exports_a_folder_that_loads() {
    let place = Place::new(FIXTURE);
    let plan = place.plan(
        "out",
        "kind: full",
        "max_steps: 2, per_device_train_batch_size: 2, learning_rate: 1e-3, max_shard_size: 100KB",
        &[],
    );
    let outcome = run(&plan, &Resume::Never).unwrap_or_else(|error| panic!("{error}"));
    let folder = outcome.final_model.unwrap();
    let files = names(&folder);
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "chat_template.json",
        "preprocessor_config.json",
        "README.md",
    ] {
        assert!(files.contains(name), "{name} is missing in {files:?}");
    }
    let (model, report) = models::load(&folder, &models::LoadOptions::default()).unwrap();
    assert_eq!(report.num_loaded, model.params().len());
    let checkpoint = outcome.checkpoint.unwrap();
    assert!(
        models::load(&checkpoint, &models::LoadOptions::default()).is_ok(),
        "a checkpoint of full training is a model folder too"
    );
}

#[test]
fn the_best_checkpoint_is_kept_and_exported() {
    let place = Place::new(FIXTURE);
    // An answer of words that the training set never uses becomes less likely with every step.
    let line = serde_json::json!({"id": "other", "messages": [
        {"role": "user", "content": "What is moving?"}, {"role": "assistant", "content": "zzz qqq vvv kkk xxx"}
    ]});
    std::fs::write(place.path("eval.jsonl"), line.to_string() + "\n").unwrap();
    let train = "max_steps: 8, per_device_train_batch_size: 4, learning_rate: 0.02, lr_scheduler_type: constant, max_grad_norm: null, eval_steps: 1, save_steps: 1, save_total_limit: 2, load_best_model_at_end: true";
    let plan = place.plan("out", "kind: full", train, &[]);
    let outcome = run(&plan, &Resume::Never).unwrap_or_else(|error| panic!("{error}"));
    let out = place.path("out");
    let evals: Vec<f64> =
        read_metrics(&out.join("metrics.jsonl")).unwrap().iter().map(|m| m.eval_loss.unwrap()).collect();
    let best = (0..evals.len()).min_by(|a, b| evals[*a].total_cmp(&evals[*b])).unwrap() + 1;
    assert!(best < 8, "the run was meant to get worse: {evals:?}");
    assert_eq!(outcome.best_eval_loss, Some(evals[best - 1]));
    let kept: BTreeSet<String> = names(&out).into_iter().filter(|n| n.starts_with("checkpoint-")).collect();
    assert_eq!(kept, [format!("checkpoint-{best}"), "checkpoint-8".to_owned()].into());
    let weights = |folder: &str| std::fs::read(out.join(folder).join("model.safetensors")).unwrap();
    assert!(weights("final_model") == weights(&format!("checkpoint-{best}")));
    assert!(weights("final_model") != weights("checkpoint-8"));
}

#[test]
fn evaluation_does_not_depend_on_its_batches_and_changes_nothing() {
    let place = Place::new(FIXTURE);
    let train = "max_steps: 3, per_device_train_batch_size: 2, learning_rate: 1e-3, save_strategy: no";
    let losses = |output: &str, extra: &[&str]| {
        run(&place.plan(output, "kind: lora, lora: {lora_dropout: 0.3}", train, extra), &Resume::Never)
            .unwrap_or_else(|error| panic!("{error}"));
        read_metrics(&place.path(output).join("metrics.jsonl")).unwrap()
    };
    let without = losses("a", &[]);
    let with = losses("b", &["train.eval_steps=1", "train.per_device_eval_batch_size=1"]);
    let wide = losses("c", &["train.eval_steps=1", "train.per_device_eval_batch_size=3"]);
    for ((a, b), c) in without.iter().zip(&with).zip(&wide) {
        assert_eq!((a.loss, a.grad_norm), (b.loss, b.grad_norm));
        let (b, c) = (b.eval_loss.unwrap(), c.eval_loss.unwrap());
        assert!((b - c).abs() < 1e-6 * b, "{b} and {c}");
    }
    assert!(!names(&place.path("a")).iter().any(|name| name.starts_with("checkpoint")));
}

#[test]
fn an_earlier_run_is_not_overwritten() {
    let place = Place::new(FIXTURE);
    let plan = place.plan("out", "kind: projector", "max_steps: 2, per_device_train_batch_size: 1", &[]);
    run(&plan, &Resume::Never).unwrap_or_else(|error| panic!("{error}"));
    let error = run(&plan, &Resume::Never).unwrap_err();
    let out = place.path("out");
    assert_eq!(
        error.to_string(),
        format!(
            "`{}` holds an earlier run (checkpoint-2)\n  hint: pass `--resume auto` to go on with it, or write another `train.output_dir`",
            out.display()
        )
    );
    assert_eq!(error.class(), ExitClass::BadPlan);
    // Resuming a finished run only writes its final model again.
    let before = crate::support::run::final_weights(&out);
    let outcome = run(&plan, &Resume::Auto).unwrap();
    assert_eq!(outcome.steps, 2);
    assert!(before == crate::support::run::final_weights(&out));
    // Without a checkpoint there is nothing to go on from, and the final model is not trained over.
    std::fs::remove_dir_all(out.join("checkpoint-2")).unwrap();
    let error = run(&plan, &Resume::Auto).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "`{}` holds a finished run (final_model) and no checkpoint to go on from\n  hint: write another `train.output_dir`, or move the folder away",
            out.display()
        )
    );
    assert_eq!(error.class(), ExitClass::BadPlan);
    assert!(before == crate::support::run::final_weights(&out));
}

#[test]
fn a_changed_plan_is_not_resumed() {
    let place = Place::new(FIXTURE);
    let train = "max_steps: 4, per_device_train_batch_size: 1";
    let plan = place.plan("out", "kind: projector", train, &[]);
    let checkpoint = run_until(&plan, &Resume::Never, 2).checkpoint.unwrap();
    let changed = place.plan(
        "out",
        "kind: projector",
        train,
        &["train.learning_rate=1e-3", "train.logging_steps=1", "data.shuffle=false"],
    );
    let error = run(&changed, &Resume::Auto).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the plan differs from the one of `{}` in `data.shuffle` (true then, false now), `train.learning_rate` (0.00005 then, 0.001 now)\n  hint: give these keys their old values, or start a new run in another `train.output_dir`",
            checkpoint.display()
        )
    );
    assert_eq!(error.class(), ExitClass::BadPlan);
    // From another folder by name, and with keys that may change.
    let elsewhere = place.plan("other", "kind: projector", train, &["train.logging_steps=1", "data.num_workers=1"]);
    let outcome = run(&elsewhere, &Resume::From(checkpoint)).unwrap();
    assert_eq!(outcome.steps, 4);
}

#[test]
fn a_dataset_that_changed_is_noticed() {
    let place = Place::new(FIXTURE);
    let plan = place.plan("out", "kind: projector", "num_train_epochs: 1, per_device_train_batch_size: 2", &[]);
    run_until(&plan, &Resume::Never, 2);
    let text = std::fs::read_to_string(place.path("train.jsonl")).unwrap();
    std::fs::write(place.path("train.jsonl"), text.lines().skip(4).collect::<Vec<_>>().join("\n")).unwrap();
    let error = run(&plan, &Resume::Auto).unwrap_err();
    assert!(error.to_string().contains("it belongs to 11 records, the dataset has 7"), "{error}");
    // As many records, and one of them another.
    let path = place.path("train.jsonl");
    for (edited, how) in [(text.replacen("moves", "rests", 1), "its content is another".to_owned()), {
        let longer = text.replacen("moves", "moves away", 1);
        let how = format!("{} bytes then, {} now", text.len(), longer.len());
        (longer, how)
    }] {
        std::fs::write(&path, edited).unwrap();
        let error = run(&plan, &Resume::Auto).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "`{}` is not the file that the run began with: {how}\n  hint: put the file back as it was, or start a new run in another `train.output_dir`",
                path.display()
            )
        );
        assert_eq!(error.class(), ExitClass::BadPlan);
    }
    std::fs::write(&path, text).unwrap();
    run(&plan, &Resume::Auto).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_bad_record_stops_the_run_or_is_skipped() {
    let place = Place::new(FIXTURE);
    let text = std::fs::read_to_string(place.path("train.jsonl")).unwrap();
    std::fs::write(place.path("train.jsonl"), text.replace("images/2.png", "images/none.png")).unwrap();
    let train = "num_train_epochs: 1, per_device_train_batch_size: 2, learning_rate: 1e-3";
    let error = run(&place.plan("stop", "kind: projector", train, &[]), &Resume::Never).unwrap_err();
    assert_eq!(error.class(), ExitClass::DataRefused);
    assert!(error.to_string().contains("none.png"), "{error}");
    let ledger = std::fs::read_to_string(place.path("stop").join("ledger.jsonl")).unwrap();
    assert_eq!(ledger.lines().filter(|line| line.contains("\"failed\"")).count(), 1, "{ledger}");

    let outcome =
        run(&place.plan("skip", "kind: projector", train, &["data.on_bad_media=skip"]), &Resume::Never).unwrap();
    assert_eq!((outcome.ledger.skipped, outcome.ledger.trained, outcome.ledger.not_reached), (3, 8, 0));
    // The order of seed 42 puts two bad records into one batch, which leaves five steps of the six.
    assert_eq!(outcome.steps, 5);
    assert!(outcome.checkpoint.is_some());
}

#[test]
fn a_run_without_a_record_is_no_run() {
    let place = Place::new(FIXTURE);
    let text = std::fs::read_to_string(place.path("train.jsonl")).unwrap();
    let gone: Vec<String> = text.lines().take(4).map(|line| line.replace("images/", "gone/")).collect();
    std::fs::write(place.path("train.jsonl"), gone.join("\n")).unwrap();
    for length in ["num_train_epochs: 1", "num_train_epochs: 3", "max_steps: 2"] {
        let output = length.replace(": ", "-");
        let train = format!("{length}, per_device_train_batch_size: 2, learning_rate: 1e-3");
        let plan = place.plan(&output, "kind: projector", &train, &["data.on_bad_media=skip"]);
        let error = run(&plan, &Resume::Never).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a whole pass over the training set gave no record to train on (skipped: missing_file 4)\n  hint: look at the reasons in `ledger.jsonl`, or at the records with `vidtune data check`"
        );
        assert_eq!(error.class(), ExitClass::DataRefused);
        let out = place.path(&output);
        assert!(!out.join("final_model").exists());
        let ledger = std::fs::read_to_string(out.join("ledger.jsonl")).unwrap();
        assert_eq!(ledger.lines().filter(|line| line.contains("\"skipped\"")).count(), 4, "{ledger}");
    }
}

/// Skipped records end the data before the schedule's last step: said once, and a resumption adds no further pass.
#[test]
fn a_run_that_skips_shortened_is_told() {
    let place = Place::new(FIXTURE);
    let text = std::fs::read_to_string(place.path("train.jsonl")).unwrap();
    std::fs::write(place.path("train.jsonl"), text.replace("images/2.png", "images/none.png")).unwrap();
    let train =
        "num_train_epochs: 1, per_device_train_batch_size: 1, gradient_accumulation_steps: 2, learning_rate: 1e-3";
    let plan = place.plan("out", "kind: projector", train, &["data.on_bad_media=skip", "data.shuffle=false"]);
    let notices = |resume| {
        let mut notices = Vec::new();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let outcome = train::run(&plan, &resume, &stop, &mut |event: &Event<'_>| {
            if let Event::Notice(text) = event {
                notices.push((*text).to_owned());
            }
        });
        (outcome.unwrap_or_else(|error| panic!("{error}")).steps, notices)
    };
    let (steps, told) = notices(Resume::Never);
    assert!(steps < 6, "{steps}");
    let expected = format!(
        "{steps} of 6 steps were made: skipped records shortened the run, and the learning rate did not come to the end of its schedule"
    );
    assert_eq!(told.iter().filter(|text| **text == expected).count(), 1, "{told:?}");
    assert_eq!(notices(Resume::Auto).0, steps);
}

/// A clip that ends before its container says trains with what it has, and the run says so.
#[test]
fn a_clip_cut_short_is_told_and_written_down() {
    let place = Place::new(FIXTURE);
    let clips = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/media/clips");
    let mut cut = std::fs::read(clips.join("h264_gop12.mp4")).unwrap();
    cut.truncate(cut.len() * 2 / 3);
    std::fs::write(place.path("cut.mp4"), cut).unwrap();
    let text = std::fs::read_to_string(place.path("train.jsonl")).unwrap();
    let record = serde_json::json!({"id": "cut", "messages": [
        {"role": "user", "content": [{"type": "video", "video": place.path("cut.mp4"), "nframes": 2}]},
        {"role": "assistant", "content": "x"},
    ]});
    std::fs::write(place.path("train.jsonl"), format!("{text}{record}\n")).unwrap();
    std::fs::write(place.path("eval.jsonl"), format!("{record}\n")).unwrap();
    let train = "num_train_epochs: 2, per_device_train_batch_size: 2, learning_rate: 1e-3, eval_strategy: epoch";
    let plan = place.plan("out", "kind: projector", train, &[]);
    let mut notices = Vec::new();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let outcome = train::run(&plan, &Resume::Never, &stop, &mut |event: &Event<'_>| {
        if let Event::Notice(text) = event {
            notices.push((*text).to_owned());
        }
    })
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(outcome.ledger.noted, 1);
    for start in ["record `cut`: `", "evaluation record `cut`: `"] {
        let told: Vec<&String> = notices.iter().filter(|text| text.starts_with(start)).collect();
        assert_eq!(told.len(), 1, "{notices:?}");
        assert!(told[0].contains("the container lists 60 frames, the file holds "), "{told:?}");
    }
    let ledger = std::fs::read_to_string(place.path("out").join("ledger.jsonl")).unwrap();
    let noted: Vec<&str> = ledger.lines().filter(|line| line.contains("\"notes\"")).collect();
    assert!(noted.len() == 1 && noted[0].contains("\"trained\"") && noted[0].contains("lists 60 frames"), "{noted:?}");
}

#[test]
fn text_alone_trains_no_projector() {
    let place = Place::new(FIXTURE);
    let text = std::fs::read_to_string(place.path("train.jsonl")).unwrap();
    let text_only: Vec<&str> = text.lines().filter(|line| !line.contains(".png")).collect();
    std::fs::write(place.path("train.jsonl"), text_only.join("\n")).unwrap();
    let error =
        run(&place.plan("out", "kind: projector", "max_steps: 2, per_device_train_batch_size: 1", &[]), &Resume::Never)
            .unwrap_err();
    assert!(matches!(error, TrainError::NothingReached { steps: 2 }), "{error}");
    assert!(!place.path("out").join("final_model").exists());
}

#[test]
fn a_run_asked_to_stop_at_once_writes_nothing_to_resume_and_starts_again() {
    let place = Place::new(FIXTURE);
    let plan = place.plan("out", "kind: projector", "max_steps: 1, per_device_train_batch_size: 4", &[]);
    let outcome = train::run(&plan, &Resume::Auto, &std::sync::atomic::AtomicBool::new(true), &mut |_| {}).unwrap();
    assert_eq!((outcome.preempted, outcome.steps, outcome.checkpoint), (true, 0, None));
    assert_eq!(run(&plan, &Resume::Auto).unwrap().steps, 1);
}

#[test]
fn two_processes_do_not_share_a_folder() {
    let place = Place::new(FIXTURE);
    let plan = place.plan("out", "kind: projector", "max_steps: 1, per_device_train_batch_size: 1", &[]);
    std::fs::create_dir_all(place.path("out")).unwrap();
    let lock = std::fs::File::create(place.path("out").join(".lock")).unwrap();
    lock.lock().unwrap();
    let error = run(&plan, &Resume::Never).unwrap_err();
    assert!(
        matches!(&error, TrainError::OutputInUse { found, .. } if found == "another process is running in it"),
        "{error}"
    );
}

/// Expected: the batches that the run without a preflight takes, and its bits.
#[test]
fn a_preflight_goes_over_the_largest_batch_and_changes_nothing() {
    let place = Place::new(FIXTURE);
    for (name, extra) in
        [("batches", "data.shuffle=true"), ("grouped", "data.group_by_length=true"), ("packed", "data.pack_tokens=120")]
    {
        let run = |name: &str, preflight: bool| {
            let train = format!(
                "max_steps: 6, learning_rate: 1e-3, preflight: {preflight}, logging_steps: 1{}",
                if extra.contains("pack_tokens") { "" } else { ", per_device_train_batch_size: 3" }
            );
            let overrides = [extra];
            let plan = place.plan(name, "kind: lora, lora: {r: 4, lora_dropout: 0.1}", &train, &overrides);
            let mut rehearsals = Vec::new();
            let stop = std::sync::atomic::AtomicBool::new(false);
            train::run(&plan, &Resume::Never, &stop, &mut |event: &Event<'_>| {
                if let Event::Preflight(rehearsal) = event {
                    rehearsals.push((*rehearsal).clone());
                }
            })
            .unwrap_or_else(|error| panic!("{error}"));
            let metrics = read_metrics(&place.path(name).join("metrics.jsonl")).unwrap();
            let weights = std::fs::read(place.path(name).join("final_model/adapter_model.safetensors")).unwrap();
            (rehearsals, metrics, weights)
        };
        let (none, plain, weights) = run(&format!("{name}-plain"), false);
        let (rehearsals, metrics, same_weights) = run(&format!("{name}-preflight"), true);
        assert!(none.is_empty() && rehearsals.len() == 1, "{name}");
        assert!(weights == same_weights, "{name}: the preflight changed the weights");
        assert_eq!(
            plain.iter().map(|m| m.loss).collect::<Vec<_>>(),
            metrics.iter().map(|m| m.loss).collect::<Vec<_>>()
        );
        // Six steps are at least one pass over the records.
        let largest = plain.iter().map(|m| m.input_tokens).max().unwrap();
        let first_epoch = plain.iter().take_while(|m| m.epoch <= 1.0).map(|m| m.input_tokens).max().unwrap();
        let found = rehearsals[0].input_tokens;
        assert!((first_epoch..=largest.max(first_epoch)).contains(&found), "{name}: {found} of {largest}");
        assert!(rehearsals[0].loss > 1.0 && rehearsals[0].peak_memory_bytes > 0 && rehearsals[0].frames > 0, "{name}");
    }
}

#[test]
fn numbers_that_nobody_chose_are_told() {
    let place = Place::new(FIXTURE);
    let notices = |output: &str, dtype: &[&str]| {
        let plan = place.plan(output, "kind: lora, lora: {r: 4}", "max_steps: 1, learning_rate: 1e-3", dtype);
        let mut told = Vec::new();
        let stop = std::sync::atomic::AtomicBool::new(false);
        train::run(&plan, &Resume::Never, &stop, &mut |event: &Event<'_>| {
            if let Event::Notice(text) = event
                && text.contains("dtype")
            {
                told.push((*text).to_owned());
            }
        })
        .unwrap_or_else(|error| panic!("{error}"));
        told
    };
    let told = notices("own", &[]);
    assert_eq!(told.iter().any(|text| text.contains("`model.dtype: bf16` is faster")), tensor::has_bf16(), "{told:?}");
    assert_eq!(notices("f32", &["model.dtype=f32"]), Vec::<String>::new());
    assert_eq!(notices("bf16", &["model.dtype=bf16"]), Vec::<String>::new());
}
