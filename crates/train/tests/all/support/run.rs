//! Whole runs on a small dataset in a temporary folder.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use train::plan::Plan;
use train::{Event, Result, Resume, RunOutcome, read_metrics};

/// Records of one run's training set.
pub const NUM_RECORDS: usize = 11;

/// A temporary folder with a dataset over the pictures of a fixture folder.
pub struct Place {
    pub dir: tempfile::TempDir,
    model: PathBuf,
}

impl Place {
    pub fn new(folder: &str) -> Place {
        let place =
            Place { dir: tempfile::tempdir().unwrap(), model: super::fixture_dir(folder).canonicalize().unwrap() };
        place.write_records("train.jsonl", NUM_RECORDS, 0);
        place.write_records("eval.jsonl", 3, 100);
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Records with one picture each, and every fifth without any.
    fn write_records(&self, name: &str, count: usize, offset: usize) {
        let words = ["red", "blue", "green", "circle", "square", "triangle", "left", "right", "up"];
        let record = |i: usize| {
            let n = i + offset;
            let answer = format!("A {} {} moves {}.", words[n % 3], words[3 + n / 2 % 3], words[6 + n / 3 % 3])
                .repeat(1 + n % 3);
            let mut question = vec![serde_json::json!({"type": "text", "text": "What is moving?"})];
            if n % 5 != 4 {
                question.insert(0, serde_json::json!({"type": "image", "image": format!("images/{}.png", n % 4)}));
            }
            serde_json::json!({"id": format!("r{n}"), "messages": [
                {"role": "user", "content": question}, {"role": "assistant", "content": answer}
            ]})
            .to_string()
        };
        let lines: Vec<String> = (0..count).map(record).collect();
        std::fs::write(self.path(name), lines.join("\n") + "\n").unwrap();
    }

    /// Puts a dataset of clips in place of the pictures; one of them is cut short.
    pub fn use_clips(&self) {
        let clips = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/media/clips").canonicalize().unwrap();
        let whole = std::fs::read(clips.join("h264_fragmented.mp4")).unwrap();
        std::fs::write(self.path("cut.mp4"), &whole[..whole.len() * 3 / 4]).unwrap();
        let names =
            ["h264_small.mp4", "h264_vfr.mp4", "vp9.webm", "rotate90.mp4", "h264_no_b.mov", "cut.mp4", "av1.mp4"];
        let record = |(i, name): (usize, &&str)| {
            let video = if *name == "cut.mp4" { self.path(name) } else { clips.join(name) };
            serde_json::json!({"id": name, "video": video, "conversations": [
                {"from": "human", "value": "<video>\nWhat is moving?"},
                {"from": "gpt", "value": "Something moves. ".repeat(1 + i % 3)},
            ]})
            .to_string()
        };
        let lines: Vec<String> = names.iter().enumerate().map(record).collect();
        std::fs::write(self.path("train.jsonl"), lines.join("\n") + "\n").unwrap();
        std::fs::write(self.path("eval.jsonl"), lines[..2].join("\n") + "\n").unwrap();
    }

    /// The text of a plan; `method` and `train` are the insides of their sections.
    pub fn plan_text(&self, output: &str, method: &str, train: &str) -> String {
        format!(
            "model: {{path: {model}}}\nmethod: {{{method}}}\ndata:\n  train: [{{path: {data}, media_dir: {model}}}]\n  eval: [{{path: {eval}, media_dir: {model}}}]\n\
             train: {{output_dir: {output}, {train}}}\n",
            model = self.model.display(),
            data = self.path("train.jsonl").display(),
            eval = self.path("eval.jsonl").display(),
            output = self.path(output).display(),
        )
    }

    pub fn plan(&self, output: &str, method: &str, train: &str, overrides: &[&str]) -> Plan {
        let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
        let text = self.plan_text(output, method, train);
        Plan::from_yaml(&text, &overrides).unwrap_or_else(|error| panic!("{text}\n{error}"))
    }
}

/// Runs a plan to its end.
pub fn run(plan: &Plan, resume: &Resume) -> Result<RunOutcome> {
    train::run(plan, resume, &AtomicBool::new(false), &mut |_| {})
}

/// Runs a plan and asks it to stop when step `step` is done.
pub fn run_until(plan: &Plan, resume: &Resume, step: u64) -> RunOutcome {
    let stop = AtomicBool::new(false);
    let mut watch = |event: &Event<'_>| {
        if let Event::Step { metrics, .. } = event
            && metrics.step == step
        {
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    };
    train::run(plan, resume, &stop, &mut watch).unwrap_or_else(|error| panic!("{error}"))
}

/// What must be equal between a run and its interrupted twin: per step the bits of loss, norm, rate and evaluation.
pub fn course(output: &Path) -> Vec<(u64, u64, u64, u64, u64, Option<u64>)> {
    let metrics = read_metrics(&output.join("metrics.jsonl")).unwrap();
    let bits = |m: &train::StepMetrics| {
        (
            m.step,
            m.loss.to_bits(),
            m.grad_norm.to_bits(),
            m.learning_rate.to_bits(),
            m.epoch.to_bits(),
            m.eval_loss.map(f64::to_bits),
        )
    };
    metrics.iter().map(bits).collect()
}

/// The bytes of every weight file of the final model.
pub fn final_weights(output: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(output.join("final_model"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}
