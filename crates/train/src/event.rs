//! What a run tells while it goes on. Owns the events; drawing them is the command line's.

use std::path::Path;

use data::CacheStats;
use serde::Serialize;

use crate::metrics::StepMetrics;
use crate::profile::Profile;
use crate::selection::PartCount;
use crate::step::Rehearsal;

/// How the data kept up, over the steps of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct DataReport {
    /// Seconds spent waiting for batches.
    pub data_time: f64,
    /// Seconds of all steps, waiting included.
    pub step_time: f64,
    /// Mean tokens of a batch over `data.pack_tokens`, where batches are filled by tokens.
    pub fill: Option<f64>,
    /// What the frame cache did, where there is one.
    pub frame_cache: Option<CacheStats>,
}

/// News of a run, in the order of happening.
#[derive(Debug)]
pub enum Event<'a> {
    /// A sentence that people should read once.
    Notice(&'a str),
    /// The records of the training set are measured, to group them by length or to find the largest batch.
    Measuring {
        /// Records in the training set.
        records: u64,
    },
    /// Everything is loaded and the first step is next.
    Ready {
        /// What trains, by part.
        parts: &'a [PartCount],
        /// Records in the training set.
        records: u64,
        /// Steps of the run.
        num_steps: u64,
        /// Steps done before, by an earlier process.
        steps_done: u64,
        /// Bytes at the peak of a step with the largest micro-batch, as planned from its shapes.
        planned_peak_bytes: u64,
    },
    /// The largest batch of the run went forward and backward without an update (`train.preflight`).
    Preflight(&'a Rehearsal),
    /// A step is done.
    Step {
        /// What it measured.
        metrics: &'a StepMetrics,
        /// Steps of the run.
        num_steps: u64,
        /// Input tokens a second since this process began.
        tokens_per_second: f64,
        /// Seconds until the last step at this pace.
        seconds_left: f64,
        /// Whether a report is due (`train.logging_steps`), for outputs that cannot redraw a line.
        report: bool,
    },
    /// An evaluation begins.
    EvaluationStarted {
        /// Step.
        step: u64,
        /// Records in the evaluation set.
        records: u64,
    },
    /// An evaluation is done.
    Evaluated {
        /// Step.
        step: u64,
        /// Mean negative log-likelihood of the supervised tokens.
        eval_loss: f64,
        /// Seconds it took.
        seconds: f64,
    },
    /// The last step of this process is done.
    Data(&'a DataReport),
    /// A checkpoint stands under its name.
    CheckpointWritten {
        /// Its folder.
        path: &'a Path,
    },
    /// An old checkpoint was removed (`train.save_total_limit`).
    CheckpointRemoved {
        /// Its former folder.
        path: &'a Path,
    },
    /// The final model stands under its name.
    Exported {
        /// Its folder.
        path: &'a Path,
    },
    /// The trace of the steps that were asked for stands under its name (`train.trace_steps`).
    TraceWritten {
        /// The file.
        path: &'a Path,
    },
    /// The profile of this process stands in the output folder (`train.profile`).
    Profiled {
        /// Its figures.
        profile: &'a Profile,
        /// The output folder.
        path: &'a Path,
    },
}
