//! The binary as a user meets it: commands, their output, their errors, their exit codes.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

mod data;
mod families;
mod joined;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod libav;
mod model;
mod run;
mod seq2seq;
mod sound;
mod usage;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// What a command left behind.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    /// The standard output as JSON.
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.stdout, self.stderr))
    }

    /// The run, which must have ended with this code.
    #[track_caller]
    fn expect(self, code: i32) -> Run {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }
}

/// Runs the binary with these arguments, without any variable of the caller that could change it.
fn vidtune<A: AsRef<str>>(args: &[A]) -> Run {
    vidtune_with(args, &[])
}

/// The same with variables of the test's own.
fn vidtune_with<A: AsRef<str>>(args: &[A], variables: &[(&str, &str)]) -> Run {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vidtune"));
    command.args(args.iter().map(AsRef::as_ref)).stdin(Stdio::null());
    for name in ["HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "XDG_CACHE_HOME"] {
        command.env_remove(name);
    }
    command.env("HOME", home.path()).env("HF_HUB_OFFLINE", "1").envs(variables.iter().copied());
    let output = command.output().unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Splits a line at its spaces; arguments with spaces are appended.
fn line(text: &str, more: &[&str]) -> Run {
    let mut args: Vec<&str> = text.split(' ').collect();
    args.extend(more);
    vidtune(&args)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn clip(name: &str) -> String {
    text_of(&fixture("media/clips").join(name))
}

fn model(name: &str) -> String {
    text_of(&fixture("models").join(name))
}

/// A record in the `llava` shape.
fn record(id: &str, video: &str, answer: &str) -> Value {
    json!({"id": id, "video": video, "conversations": [
        {"from": "human", "value": "<video>\nWhat moves?"}, {"from": "gpt", "value": answer}]})
}

/// Writes records as JSON lines and gives the path.
fn dataset(dir: &Path, records: &[Value]) -> String {
    let path = dir.join("data.jsonl");
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    std::fs::write(&path, lines).unwrap();
    text_of(&path)
}
