//! What a run writes about itself: `metrics.jsonl`, one object a step, and `trainer_state.json` under the field names of
//! `transformers`. Owns both formats and the truncation on resume; nothing here measures.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Step, from 1.
    pub step: u64,
    /// Passes over the data so far, with the part of the present one.
    pub epoch: f64,
    /// Mean negative log-likelihood of the supervised tokens of the step.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of `train.learning_rate` in this step.
    pub learning_rate: f64,
    /// Supervised tokens of the step.
    pub supervised_tokens: u64,
    /// Input tokens of the step, without padding.
    pub input_tokens: u64,
    /// Records of the step.
    pub samples: u64,
    /// Input tokens that are text.
    #[serde(default)]
    pub text_tokens: u64,
    /// Input tokens that stand for pictures.
    #[serde(default)]
    pub visual_tokens: u64,
    /// Pictures of the step: frames of videos, and still images.
    #[serde(default)]
    pub frames: u64,
    /// Seconds from the request for the first batch to the end of the update.
    pub step_time: f64,
    /// Seconds spent waiting for batches.
    pub data_time: f64,
    /// Seconds in forward passes, upload included; the head's gradient is computed there as well.
    pub forward_time: f64,
    /// Seconds in backward passes, recomputation included.
    pub backward_time: f64,
    /// Seconds in norm, clipping and update.
    pub optimizer_time: f64,
    /// Largest number of bytes that the engine's buffers held during the step.
    pub peak_memory_bytes: u64,
    /// Resident bytes of the process after the step, where the system tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_memory_bytes: Option<u64>,
    /// Input tokens for each second of `step_time`.
    #[serde(default)]
    pub tokens_per_second: f64,
    /// Records for each second of `step_time`.
    #[serde(default)]
    pub samples_per_second: f64,
    /// Pictures for each second of `step_time`.
    #[serde(default)]
    pub frames_per_second: f64,
    /// Floating-point operations of the step's matrix products, recomputation included.
    #[serde(default)]
    pub flops: u64,
    /// Those that computed a block a second time (`train.gradient_checkpointing`).
    #[serde(default)]
    pub recomputed_flops: u64,
    /// Operations without recomputation as a part of what the machine's measured peak does in `step_time`; under
    /// `train.profile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Mean negative log-likelihood over the evaluation set, where the step ended with an evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// Seconds of that evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_time: Option<f64>,
}

/// The open `metrics.jsonl` of a run.
pub(crate) struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens the file and keeps the lines of steps up to `step`; later ones, and a line that a kill cut short, go.
    pub(crate) fn open_at(path: &Path, step: u64) -> Result<MetricsFile> {
        if path.exists() {
            let lines = read_lines(path)?;
            let kept: String =
                lines.into_iter().filter(|(metrics, _)| metrics.step <= step).map(|(_, text)| text).collect();
            hub::atomic_write(path, kept.as_bytes())?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|source| TrainError::io("open", path, source))?;
        Ok(MetricsFile { path: path.to_owned(), file })
    }

    /// Adds one step in a single write, so that a reader never sees half a line of a living run.
    pub(crate) fn add(&mut self, metrics: &StepMetrics) -> Result<()> {
        let line = line(metrics, &self.path)?;
        self.file.write_all(line.as_bytes()).map_err(|source| TrainError::io("write", &self.path, source))
    }

    /// Brings every line to the disk; called before a checkpoint that relies on them.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|source| TrainError::io("flush", &self.path, source))
    }
}

fn line(metrics: &StepMetrics, path: &Path) -> Result<String> {
    let text = serde_json::to_string(metrics).map_err(|error| TrainError::io("write", path, error.into()))?;
    Ok(text + "\n")
}

/// Reads `metrics.jsonl`; a last line without its end is left out, because a kill can cut it.
///
/// # Errors
/// The file cannot be read, or a whole line is not of this format.
pub fn read_metrics(path: &Path) -> Result<Vec<StepMetrics>> {
    Ok(read_lines(path)?.into_iter().map(|(metrics, _)| metrics).collect())
}

fn read_lines(path: &Path) -> Result<Vec<(StepMetrics, String)>> {
    let file = File::open(path).map_err(|source| TrainError::io("open", path, source))?;
    let mut reader = BufReader::new(file);
    let mut all = Vec::new();
    loop {
        let mut text = String::new();
        let length = reader.read_line(&mut text).map_err(|source| TrainError::io("read", path, source))?;
        if length == 0 || !text.ends_with('\n') {
            return Ok(all);
        }
        let metrics = serde_json::from_str(&text).map_err(|error| {
            TrainError::checkpoint(path, format!("line {} is not a line of metrics: {error}", all.len() + 1))
        })?;
        all.push((metrics, text));
    }
}

/// `trainer_state.json`: the fields of `transformers.TrainerState` that have a meaning here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Best `eval_loss` so far.
    pub best_metric: Option<f64>,
    /// Checkpoint folder with the best evaluation.
    pub best_model_checkpoint: Option<String>,
    /// Step of the best evaluation.
    pub best_global_step: Option<u64>,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Steps between evaluations.
    pub eval_steps: Option<u64>,
    /// Optimizer steps done.
    pub global_step: u64,
    /// Always true here: one process.
    pub is_local_process_zero: bool,
    /// Always true here: one process.
    pub is_world_process_zero: bool,
    /// What was reported, one object a report.
    pub log_history: Vec<LogEntry>,
    /// Steps between reports.
    pub logging_steps: u64,
    /// Steps of the run.
    pub max_steps: u64,
    /// Input tokens so far.
    pub num_input_tokens_seen: u64,
    /// Passes that the run makes, rounded up.
    pub num_train_epochs: u64,
    /// Steps between checkpoints.
    pub save_steps: u64,
    /// Records in a micro-batch.
    pub train_batch_size: usize,
}

/// One report in `log_history`: either of training or of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Passes over the data so far.
    pub epoch: f64,
    /// Step.
    pub step: u64,
    /// Mean of the steps' losses since the last report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Of the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Of the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Of an evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// Seconds of an evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_runtime: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            epoch: step as f64 / 3.0,
            loss: 1.0 / step as f64,
            grad_norm: 0.1,
            learning_rate: 1e-4,
            supervised_tokens: 7,
            input_tokens: 9,
            samples: 1,
            text_tokens: 5,
            visual_tokens: 4,
            frames: 2,
            step_time: 0.5,
            data_time: 0.0,
            forward_time: 0.2,
            backward_time: 0.2,
            optimizer_time: 0.1,
            peak_memory_bytes: 1000,
            eval_loss: (step == 2).then_some(0.25),
            mfu: (step == 3).then_some(0.5),
            ..StepMetrics::default()
        }
    }

    #[test]
    fn resuming_drops_later_lines_and_a_cut_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut file = MetricsFile::open_at(&path, 0).unwrap();
        for step in 1..=4 {
            file.add(&metrics(step)).unwrap();
        }
        file.file.write_all(b"{\"step\": 5, \"ep").unwrap();
        assert_eq!(read_metrics(&path).unwrap().len(), 4);
        let mut file = MetricsFile::open_at(&path, 2).unwrap();
        file.add(&metrics(3)).unwrap();
        let expected: Vec<StepMetrics> = (1..=3).map(metrics).collect();
        assert_eq!(read_metrics(&path).unwrap(), expected);
    }

    #[test]
    fn numbers_survive_bit_for_bit() {
        let written = serde_json::to_string(&metrics(3)).unwrap();
        let back: StepMetrics = serde_json::from_str(&written).unwrap();
        assert_eq!(back.loss.to_bits(), (1.0f64 / 3.0).to_bits());
        assert!(!written.contains("eval_loss"));
    }

    /// A run that an earlier version began is gone on with.
    #[test]
    fn lines_without_the_newer_keys_are_read() {
        let line = r#"{"step":1,"epoch":0.5,"loss":2.0,"grad_norm":1.0,"learning_rate":0.1,"supervised_tokens":3,"input_tokens":9,"samples":1,"step_time":0.5,"data_time":0.1,"forward_time":0.1,"backward_time":0.2,"optimizer_time":0.1,"peak_memory_bytes":7}"#;
        let read: StepMetrics = serde_json::from_str(line).unwrap();
        assert_eq!((read.peak_memory_bytes, read.flops, read.mfu), (7, 0, None));
    }

    #[test]
    fn a_foreign_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, "hello\n").unwrap();
        let error = read_metrics(&path).unwrap_err().to_string();
        assert!(error.contains("line 1 is not a line of metrics"), "{error}");
    }
}
