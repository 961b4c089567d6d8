//! A run that is stopped or killed at any moment and goes on gives the same bits as one that never stopped.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::run::{Place, course, final_weights, run, run_until};
use train::{Event, ExitClass, Resume};

const FIXTURE: &str = "llava_siglip_qwen2";
const STEPS: &str = "max_steps: 9, per_device_train_batch_size: 2, gradient_accumulation_steps: 2, learning_rate: 2e-3, \
                     warmup_steps: 2, lr_scheduler_type: cosine, weight_decay: 0.1, logging_steps: 2, save_steps: 4, eval_steps: 3";

/// Stops after each of `stops` steps and resumes with another number of loader workers each time.
fn check(method: &str, overrides: &[&str], stops: &[u64]) {
    let place = Place::new(FIXTURE);
    let whole = place.plan("whole", method, STEPS, overrides);
    let outcome = run(&whole, &Resume::Never).unwrap_or_else(|error| panic!("{method}: {error}"));
    assert_eq!((outcome.steps, outcome.preempted), (9, false));
    for (i, step) in stops.iter().enumerate() {
        let workers = format!("data.num_workers={}", 1 + i % 3);
        let plan = place.plan("parts", method, STEPS, &[overrides, &[&workers]].concat());
        let outcome = run_until(&plan, &Resume::Auto, *step);
        assert_eq!((outcome.steps, outcome.class().map(ExitClass::code)), (*step, Some(75)));
    }
    let parts = place.plan("parts", method, STEPS, &[overrides, &["data.num_workers=4"]].concat());
    run(&parts, &Resume::Auto).unwrap_or_else(|error| panic!("{method}: {error}"));
    assert_eq!(course(&place.path("whole")), course(&place.path("parts")), "{method}");
    assert!(final_weights(&place.path("whole")) == final_weights(&place.path("parts")), "{method}");
}

#[test]
fn full_training() {
    check("kind: full", &[], &[1, 2, 5, 8]);
}

#[test]
fn full_training_in_sixteen_bits_with_frozen_tower() {
    check("kind: full, freeze: [vision]", &["model.dtype=bf16"], &[3, 4]);
}

/// Activations are bf16 here where the processor multiplies such numbers.
#[test]
fn all_of_it_in_sixteen_bits() {
    check("kind: full", &["model.dtype=bf16"], &[2, 5]);
    let adapters = "kind: lora, also_train: [projector], lora: {r: 4, lora_dropout: 0.2, target_modules: all-linear}";
    check(adapters, &["model.dtype=bf16"], &[1, 7]);
}

#[test]
fn adapters_with_dropout_and_a_projector() {
    check(
        "kind: lora, also_train: [projector], lora: {r: 4, lora_dropout: 0.2, target_modules: all-linear}",
        &[],
        &[2, 6, 7],
    );
}

#[test]
fn the_projector_alone_in_file_order() {
    check("kind: projector", &["data.shuffle=false"], &[4]);
}

/// In file order, in small windows that the stops fall into, and in one that is larger than the dataset.
#[test]
fn batches_filled_by_tokens() {
    let place = Place::new(FIXTURE);
    let train = "max_steps: 6, learning_rate: 1e-3, save_steps: 100";
    for window in [1, 5, 256] {
        let names = [format!("whole-{window}"), format!("parts-{window}")];
        let window = format!("data.pack_window={window}");
        let plan = |output: &str, workers: &str| {
            place.plan(
                output,
                "kind: projector",
                train,
                &["data.pack_tokens=90", "data.pack_patches=40", &window, workers],
            )
        };
        run(&plan(&names[0], "data.num_workers=2"), &Resume::Never).unwrap_or_else(|error| panic!("{error}"));
        for (step, workers) in [(1, 1), (3, 4), (4, 2)] {
            run_until(&plan(&names[1], &format!("data.num_workers={workers}")), &Resume::Auto, step);
        }
        run(&plan(&names[1], "data.num_workers=3"), &Resume::Auto).unwrap();
        assert_eq!(course(&place.path(&names[0])), course(&place.path(&names[1])), "{window}");
    }
    let course = |window: usize| course(&place.path(&format!("whole-{window}")));
    assert_ne!(course(1), course(256), "other batches");
}

#[test]
fn records_grouped_by_length() {
    check("kind: projector", &["data.group_by_length=true"], &[1, 4, 7]);
}

/// The bits of a run do not depend on the cache of frames, cold or warm, nor do the notes in the ledger.
#[test]
fn frames_from_the_cache() {
    let place = Place::new(FIXTURE);
    place.use_clips();
    let method = "kind: lora, lora: {r: 2, lora_dropout: 0.1}, also_train: [projector]";
    let cache = format!("data.frame_cache={}", place.path("cache").display());
    let frames = "data.num_frames=30";
    run(&place.plan("plain", method, STEPS, &[frames]), &Resume::Never).unwrap_or_else(|error| panic!("{error}"));
    let ledger = |name: &str| std::fs::read_to_string(place.path(name).join("ledger.jsonl")).unwrap();
    assert!(ledger("plain").contains("cut.mp4`"), "{}", ledger("plain"));
    let check = |name: &str, overrides: &[&str]| {
        let mut report = None;
        let mut watch = |event: &Event<'_>| {
            if let Event::Data(data) = event {
                report = data.frame_cache;
            }
        };
        let plan = place.plan(name, method, STEPS, overrides);
        train::run(&plan, &Resume::Never, &AtomicBool::new(false), &mut watch)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(course(&place.path("plain")), course(&place.path(name)), "{name}");
        assert!(final_weights(&place.path("plain")) == final_weights(&place.path(name)), "{name}");
        assert_eq!(ledger("plain"), ledger(name));
        report.unwrap()
    };
    let cold = check("cold", &[frames, &cache]);
    assert!(cold.hits > cold.misses && cold.stored == 7 && cold.damaged == 0, "{cold:?}");
    let warm = check("warm", &[frames, &cache]);
    assert!(warm.hits > 0 && (warm.misses, warm.stored) == (0, 0), "{warm:?}");
    let bytes = data::FrameCache::survey(&place.path("cache")).unwrap().bytes;
    data::FrameCache::clear(&place.path("cache")).unwrap();
    let tight = check("tight", &[frames, &cache, &format!("data.frame_cache_size={}", bytes * 2 / 3)]);
    assert!(tight.hits > 0 && tight.no_room > 0, "{tight:?}");
}

/// A signal in the middle of an evaluation does not wait for its end; the resumption makes it.
#[test]
fn stopped_during_an_evaluation() {
    let place = Place::new(FIXTURE);
    let method = "kind: projector";
    run(&place.plan("whole", method, STEPS, &[]), &Resume::Never).unwrap_or_else(|error| panic!("{error}"));
    let parts = place.plan("parts", method, STEPS, &[]);
    let stop = AtomicBool::new(false);
    let mut interrupt = |event: &Event<'_>| {
        if matches!(event, Event::EvaluationStarted { step: 6, .. }) {
            stop.store(true, Ordering::SeqCst);
        }
    };
    let outcome = train::run(&parts, &Resume::Never, &stop, &mut interrupt).unwrap();
    assert_eq!((outcome.preempted, outcome.steps), (true, 6));
    assert_eq!(course(&place.path("parts")).len(), 5, "the line of step 6 waits for its evaluation");
    // Asked to stop again at once, it only writes the same checkpoint again.
    let outcome = train::run(&parts, &Resume::Auto, &AtomicBool::new(true), &mut |_| {}).unwrap();
    assert_eq!((outcome.preempted, outcome.steps), (true, 6));
    // Stopped after the evaluation and before the next checkpoint, it makes the evaluation a second time.
    run_until(&parts, &Resume::Auto, 7);
    std::fs::remove_dir_all(place.path("parts").join("checkpoint-7")).unwrap();
    run(&parts, &Resume::Auto).unwrap();
    assert_eq!(course(&place.path("whole")), course(&place.path("parts")));
    assert!(final_weights(&place.path("whole")) == final_weights(&place.path("parts")));
}

/// The child of the next test: runs its plan with `--resume auto`, as a supervisor would start it again and again.
#[test]
fn child() {
    let Some(plan) = std::env::var_os("VIDTUNE_TEST_CHILD_PLAN") else {
        return;
    };
    let workers = std::env::var("VIDTUNE_TEST_CHILD_WORKERS").unwrap();
    let plan = train::plan::Plan::load(plan.as_ref(), &[format!("data.num_workers={workers}")]).unwrap();
    run(&plan, &Resume::Auto).unwrap_or_else(|error| panic!("{error}"));
}

/// SIGKILL at moments all over the run, checkpoints being written among them: steps of milliseconds with a checkpoint each.
#[test]
fn killed_at_any_moment() {
    let place = Place::new(FIXTURE);
    let train = "max_steps: 30, per_device_train_batch_size: 1, gradient_accumulation_steps: 2, learning_rate: 2e-3, save_steps: 1, save_total_limit: 2, eval_steps: 10";
    let method = "kind: lora, lora: {r: 2, lora_dropout: 0.1}";
    run(&place.plan("whole", method, train, &[]), &Resume::Never).unwrap_or_else(|error| panic!("{error}"));
    let plan_file = place.path("plan.yaml");
    std::fs::write(&plan_file, place.plan_text("parts", method, train)).unwrap();
    let start = |workers: usize| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "resume::child", "--nocapture"])
            .env("VIDTUNE_TEST_CHILD_PLAN", &plan_file)
            .env("VIDTUNE_TEST_CHILD_WORKERS", workers.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut num_kills = 0;
    // The moment is counted from the first sign of life of the child, so that a slow machine kills inside the run as well.
    for (attempt, milliseconds) in [5u64, 40, 75, 130, 18, 210, 97, 55, 161, 30].into_iter().enumerate() {
        let mut child = start(1 + attempt % 3);
        let metrics = place.path("parts").join("metrics.jsonl");
        let before = std::fs::metadata(&metrics).map(|m| m.len()).unwrap_or(0);
        let has_moved = || std::fs::metadata(&metrics).map(|m| m.len()).unwrap_or(0) != before;
        while child.try_wait().unwrap().is_none() && !has_moved() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(milliseconds));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            num_kills += 1;
        }
        child.wait().unwrap();
        if place.path("parts").join("final_model").exists() {
            break;
        }
    }
    assert!(start(2).wait().unwrap().success());
    assert!(num_kills >= 1, "no attempt hit the run: it has become too fast for these moments");
    assert_eq!(course(&place.path("whole")), course(&place.path("parts")), "after {num_kills} kills");
    assert!(final_weights(&place.path("whole")) == final_weights(&place.path("parts")));
    let leftovers: Vec<String> = std::fs::read_dir(place.path("parts"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(".vidtune-"))
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}
