//! Help, bad usage, the two lines of an error, and its JSON form.

use crate::{line, vidtune};

#[test]
fn help_and_version_go_to_stdout() {
    let help = line("--help", &[]).expect(0);
    for command in ["demo", "train", "plan", "eval", "score", "generate", "data", "bench", "init", "doctor"] {
        assert!(help.stdout.contains(&format!("\n  {command} ")), "{}", help.stdout);
    }
    assert!(help.stderr.is_empty());
    assert_eq!(line("--version", &[]).expect(0).stdout, format!("vidtune {}\n", env!("CARGO_PKG_VERSION")));
    assert!(line("data frames --help", &[]).expect(0).stdout.contains("--num-frames"));
}

#[test]
fn bad_usage_is_told_from_failure() {
    for (text, part) in [
        ("trian p.yaml", "a similar subcommand exists: 'train'"),
        ("score --modle m --data d", "a similar argument exists: '--model'"),
        ("generate --model m", "--prompt <TEXT>"),
        ("bench step --config c --dtype f64", "possible values: f32, bf16"),
        ("doctor --threads 0", "error: `--threads 0`: expected at least 1\nhint: leave it out for all cores\n"),
        ("doctor --threads 100000", "error: `--threads 100000`: expected at most 1024\n"),
        ("generate --model m --prompt x --max-new-tokens 0", "expected a whole number of at least 1"),
        ("score --model m --data d --max-samples 0", "expected a whole number of at least 1"),
        ("data check --data d --max-length 9", "--model <"),
        ("doctor --device cuda", "this build computes on the processor only"),
        ("eval --model m --data d --task nothing", "expected loss, caption, qa, mcq, classify, summary or story"),
        ("generate --model m --prompt x --temperature=-1", "`temperature`"),
        ("score --model ./none --data d.json --fps 0", "error: `--fps 0`: expected more than 0"),
        ("plan none.yaml", "error: `none.yaml`, "),
    ] {
        let run = line(text, &[]).expect(2);
        assert!(run.stderr.contains(part), "{text}: {}", run.stderr);
        assert!(run.stdout.is_empty(), "{text}: {}", run.stdout);
    }
    assert_eq!(vidtune::<&str>(&[]).code, 2);
}

#[test]
fn an_error_has_a_hint_in_both_forms() {
    let text = "data frames --video none.mp4 --num-frames 2 --out none";
    let run = line(text, &[]).expect(3);
    assert_eq!(run.stderr, "error: `none.mp4`: no such file\nhint: check the path and the media folder\n");
    let run = line(text, &["--log-format", "json"]).expect(3);
    let found: serde_json::Value = serde_json::from_str(&run.stderr).unwrap();
    let expected = serde_json::json!({"level": "error", "message": "`none.mp4`: no such file",
        "hint": "check the path and the media folder"});
    assert_eq!(found, expected);
}

#[test]
fn every_mistake_of_a_plan_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("p.yaml");
    std::fs::write(&plan, "model: {pth: m}\nmethod: {kind: lora}\ntrain: {learning_rate: fast}\n").unwrap();
    let run = line("plan", &[&plan.to_string_lossy()]).expect(2);
    let errors: Vec<&str> = run.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() >= 2, "{}", run.stderr);
    assert!(run.stderr.contains("line 1") && run.stderr.contains("`model.pth`"), "{}", run.stderr);
    assert!(run.stderr.contains("line 3") && run.stderr.contains("learning_rate"), "{}", run.stderr);
}

#[test]
fn the_environment_is_reported() {
    let report = line("doctor --json", &[]).expect(0).json();
    assert_eq!((&report["hub_offline"], &report["hub_token"]), (&true.into(), &false.into()));
    assert!(report["cores"].as_u64().unwrap() >= 1);
    assert!(line("doctor --print-script", &[]).expect(0).stdout.contains("save_file({\"input_ids\": ids"));
}
