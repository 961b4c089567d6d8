//! A run from a folder of videos to an answer: `init`, `plan`, `train`, `eval`, `generate`, and a signal on the way.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Run, clip, line, model, text_of, vidtune};

/// A folder with three clips, their captions, and the plan that `init` writes for them.
fn folder() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    for (name, source) in [("a.mp4", "av1.mp4"), ("b.mp4", "h264_long_gop.mp4"), ("c.gif", "gif.gif")] {
        std::fs::copy(clip(source), dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("captions.json"), r#"{"a.mp4": "a red circle", "b": "blue", "c.gif": "green"}"#)
        .unwrap();
    let args = ["--data", &text_of(dir.path()), "--model", &model("llava_siglip_qwen2")];
    let plan = line("init --eval-ratio 0.34", &args).expect(0).stdout.trim().to_owned();
    (dir, plan)
}

fn with(command: &str, plan: &str, more: &[&str]) -> Run {
    let mut args: Vec<&str> = vec![command, plan, "data.num_frames=2"];
    args.extend(more);
    vidtune(&args)
}

#[test]
fn a_folder_of_videos_trains_to_an_answer() {
    let (dir, plan) = folder();
    let run = with("plan", &plan, &[]).expect(0);
    assert!(
        run.stdout.contains("2 records, 1 for evaluation") && run.stdout.contains("adapters on 8 modules"),
        "{}",
        run.stdout
    );
    let report = with("plan", &plan, &["--json", "--measure"]).expect(0).json();
    assert_eq!((&report["num_steps"], &report["records"]), (&json!(2), &json!(2)));
    assert!(report["measured"]["peak_memory_bytes"].as_u64().unwrap() > 0);
    let report = with("train", &plan, &["--dry-run", "train.learning_rate=3e-4"]).expect(0).json();
    assert_eq!(report["plan"]["train"]["learning_rate"], json!(3e-4));
    assert_eq!(report["trainable"].as_array().unwrap().len(), 16);
    let output = dir.path().join("run");
    assert!(!output.exists(), "looking at a plan wrote something");

    let run = with("train", &plan, &["--log-format", "json", "train.num_train_epochs=2"]).expect(0);
    assert_eq!(run.stdout.trim(), text_of(&output.join("final_model")));
    let events: Vec<Value> = run.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!((count("ready"), count("evaluated"), count("exported")), (1, 2, 1), "{}", run.stderr);
    let metrics = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 4);
    let run = with("train", &plan, &["train.num_train_epochs=2", "--resume", "nope"]).expect(2);
    assert!(run.stderr.contains("`--resume nope`: there is no such folder"), "{}", run.stderr);
    let run = with("train", &plan, &["train.num_train_epochs=2"]).expect(2);
    assert!(run.stderr.contains("hint: pass `--resume auto`"), "{}", run.stderr);

    // What the run said about its evaluation set is what the exported model says.
    let last = events.iter().rev().find(|event| event["event"] == "evaluated").unwrap();
    let found = line("eval --num-frames 2", &[&plan]).expect(0).json();
    let (then, now) = (last["eval_loss"].as_f64().unwrap(), found["metrics"]["loss"].as_f64().unwrap());
    assert!((then - now).abs() < 1e-6 * then, "{then} against {now}");
    let final_model = text_of(&output.join("final_model"));
    let args = ["--model", &final_model, "--video", &clip("av1.mp4"), "--prompt", "Describe this video.", "--json"];
    line("generate --num-frames 2 --max-new-tokens 4", &args).expect(0);
}

#[test]
fn a_profiled_run_ends_with_a_table() {
    let (dir, plan) = folder();
    let run = with("train", &plan, &["--profile", "--trace-steps", "1-2", "train.num_train_epochs=1"]).expect(0);
    for part in ["profile of steps 1 to 2\n", "\n  forward ", "tokens/s (", "; MFU ", "profile.json`"] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
    let output = dir.path().join("run");
    let read = |name: &str| serde_json::from_slice::<Value>(&std::fs::read(output.join(name)).unwrap()).unwrap();
    assert_eq!(read("profile.json")["steps"]["count"], json!(2));
    assert_eq!(read("plan.json")["train"]["trace_steps"], json!("1-2"));
    let steps = read("trace.json")["traceEvents"].as_array().unwrap().iter().filter(|e| e["cat"] == "step").count();
    assert_eq!(steps, 2);
    let run = with("train", &plan, &["--trace-steps", "1-2", "--dry-run"]).expect(2);
    assert!(run.stderr.contains("`train.trace_steps` has no effect without `train.profile`"), "{}", run.stderr);
}

/// Waits until the run has written this many steps.
fn wait_for_steps(metrics: &Path, count: usize, child: &mut Child) {
    let start = Instant::now();
    while std::fs::read_to_string(metrics).unwrap_or_default().lines().count() < count {
        assert_eq!(child.try_wait().unwrap(), None, "the run ended by itself");
        assert!(start.elapsed() < Duration::from_secs(60), "no step within a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(unix)]
#[test]
fn a_signal_ends_a_run_with_a_checkpoint() {
    let (dir, plan) = folder();
    let output = dir.path().join("run");
    let args = ["train", &plan, "data.num_frames=2", "train.num_train_epochs=150", "train.eval_strategy=no"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_vidtune"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_steps(&output.join("metrics.jsonl"), 3, &mut child);
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let status = child.wait().unwrap();
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
    assert_eq!(status.code(), Some(75), "{stderr}");
    assert!(stderr.contains("stopped by a signal after") && stderr.contains("--resume auto"), "{stderr}");
    let steps = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap().lines().count();
    let run = vidtune(&[&args[..], &["--resume", "auto", "--log-format", "json"]].concat()).expect(0);
    assert!(run.stderr.contains(&format!("\"steps_done\":{steps}")), "{}", run.stderr);
    let metrics = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 300);
}

/// Step, loss, gradient norm and learning rate of every line: what must not depend on where a run was interrupted.
fn course(output: &Path) -> Vec<[Value; 4]> {
    let text = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| ["step", "loss", "grad_norm", "learning_rate"].map(|key| line[key].clone())).collect()
}

#[test]
fn a_run_killed_at_random_moments_ends_with_the_same_bits() {
    let (dir, plan) = folder();
    let start = |output: &Path, workers: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vidtune"));
        command.args(["train", &plan, "data.num_frames=2", "train.num_train_epochs=60", "train.eval_strategy=no"]);
        command.args(["train.save_strategy=steps", "train.save_steps=7", "method.lora.lora_dropout=0.1"]);
        command.arg(format!("train.output_dir={}", output.display()));
        command.arg(format!("data.num_workers={workers}"));
        command.args(["--resume", "auto"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let finish = |child: Child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let whole = dir.path().join("whole");
    finish(start(&whole, 2));

    // The moments are really random, as the folder's name is: a failure names them.
    let name = text_of(dir.path());
    let mut state = name.bytes().fold(0_u64, |state, byte| state.wrapping_mul(257).wrapping_add(u64::from(byte)));
    let killed = dir.path().join("killed");
    let mut moments = Vec::new();
    for round in 0..6 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = Duration::from_millis(40 + (state >> 33) % 400);
        moments.push(moment);
        let mut child = start(&killed, 1 + round % 3);
        std::thread::sleep(moment);
        // SIGKILL: nothing of the process runs after it. It may have ended before.
        child.kill().unwrap();
        child.wait().unwrap();
        if killed.join("final_model").exists() {
            break;
        }
    }
    if !killed.join("final_model").exists() {
        finish(start(&killed, 3));
    }
    assert_eq!(course(&killed), course(&whole), "killed after {moments:?}");
    assert_eq!(course(&whole).len(), 120);
    let weights = |output: &Path| std::fs::read(output.join("final_model/adapter_model.safetensors")).unwrap();
    assert!(weights(&killed) == weights(&whole), "killed after {moments:?}: other weights");
}
