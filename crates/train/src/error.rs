//! What can go wrong between a plan and trained weights, and the class that decides the process's exit code. Rendering is the
//! command line's.

use std::io;
use std::path::{Path, PathBuf};

use crate::plan::{ChangedKey, PlanError};
use crate::schedule::ScheduleError;

/// Result of this crate's functions.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

/// The class of an outcome; [`ExitClass::code`] is the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitClass {
    /// Something failed.
    Failed,
    /// The plan, its files or an argument are at fault.
    BadPlan,
    /// A record or its media are at fault.
    DataRefused,
    /// Stopped by a signal after writing a checkpoint.
    Preempted,
}

impl ExitClass {
    /// The exit code.
    pub fn code(self) -> i32 {
        match self {
            ExitClass::Failed => 1,
            ExitClass::BadPlan => 2,
            ExitClass::DataRefused => 3,
            ExitClass::Preempted => 75,
        }
    }
}

/// Everything that a run can die of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The plan is at fault.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The schedule does not fit the run.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The plan does not fit the model, the adapter or the data.
    #[error("{message}\n  hint: {hint}")]
    Mismatch {
        /// What does not fit what.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The base model of the plan cannot be found.
    #[error("`model.path`: {source}")]
    ModelPath {
        /// What the search said.
        source: hub::HubError,
    },
    /// A record, its media, a dataset or a processor.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// A checkpoint's configuration or weights.
    #[error(transparent)]
    Model(#[from] models::ModelError),
    /// Moving a batch to the model.
    #[error(transparent)]
    Infer(#[from] infer::InferError),
    /// An operator.
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
    /// Reading or writing a checkpoint.
    #[error(transparent)]
    Hub(#[from] hub::HubError),
    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The loss or a gradient is not a number.
    #[error(
        "step {step}: {what} is not finite{detail}; records: {records}\n  hint: lower the learning rate or warm up longer; look at these records with `vidtune data preview`"
    )]
    NotFinite {
        /// Step, from 1.
        step: u64,
        /// `the loss` or `the gradient`.
        what: &'static str,
        /// Which tensors.
        detail: String,
        /// Ids of the records of the step.
        records: String,
    },
    /// A trainable tensor that the batches reach gets no gradient.
    #[error(
        "in the first {steps} step(s) {count} trainable tensor(s) had no gradient other than zero: {names}\n  hint: take them out with `method.freeze`, or report this as a fault of the program"
    )]
    NoGradient {
        /// Steps looked at.
        steps: u64,
        /// How many.
        count: usize,
        /// The first few names.
        names: String,
    },
    /// The batches of the first steps take no part of what trains.
    #[error(
        "in the first {steps} step(s) no batch reached any tensor that trains\n  hint: records without pictures cannot train a projector or a tower; look at them with `vidtune data preview`"
    )]
    NothingReached {
        /// Steps looked at.
        steps: u64,
    },
    /// A step without a supervised token.
    #[error(
        "step {step} holds no supervised token; records: {records}\n  hint: look at these records with `vidtune data preview`"
    )]
    NothingSupervised {
        /// Step, from 1.
        step: u64,
        /// Ids of the records.
        records: String,
    },
    /// A pass over the training set in which every record was skipped.
    #[error(
        "a whole pass over the training set gave no record to train on (skipped: {reasons})\n  hint: look at the reasons in `ledger.jsonl`, or at the records with `vidtune data check`"
    )]
    NothingTrained {
        /// Counts by cause.
        reasons: String,
    },
    /// The output folder holds a finished run, and nothing to go on from.
    #[error("`{}` holds a finished run (final_model) and no checkpoint to go on from\n  hint: write another `train.output_dir`, or move the folder away", path.display())]
    Finished {
        /// The folder.
        path: PathBuf,
    },
    /// The output folder holds an earlier run.
    #[error("`{}` holds an earlier run ({found})\n  hint: pass `--resume auto` to go on with it, or write another `train.output_dir`", path.display())]
    OutputInUse {
        /// The folder.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// The plan of a run to resume is another one.
    #[error("the plan differs from the one of `{}` in {}\n  hint: give these keys their old values, or start a new run in another `train.output_dir`", checkpoint.display(), list_changes(changed))]
    PlanChanged {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The keys that differ.
        changed: Vec<ChangedKey>,
    },
    /// A checkpoint that cannot be resumed from.
    #[error("checkpoint `{}`: {message}", path.display())]
    Checkpoint {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

impl TrainError {
    /// The class that decides the exit code.
    pub fn class(&self) -> ExitClass {
        match self {
            TrainError::Plan(_)
            | TrainError::Schedule(_)
            | TrainError::Mismatch { .. }
            | TrainError::ModelPath { .. }
            | TrainError::OutputInUse { .. }
            | TrainError::Finished { .. }
            | TrainError::PlanChanged { .. } => ExitClass::BadPlan,
            TrainError::Data(error) if error.is_one_record() => ExitClass::DataRefused,
            TrainError::Data(data::DataError::Dataset { .. } | data::DataError::TooManySkips { .. }) => {
                ExitClass::DataRefused
            }
            TrainError::Data(data::DataError::Plan { .. }) => ExitClass::BadPlan,
            TrainError::NothingSupervised { .. }
            | TrainError::NothingReached { .. }
            | TrainError::NothingTrained { .. } => ExitClass::DataRefused,
            _ => ExitClass::Failed,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> TrainError {
        TrainError::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn mismatch(message: impl Into<String>, hint: impl Into<String>) -> TrainError {
        TrainError::Mismatch { message: message.into(), hint: hint.into() }
    }

    pub(crate) fn checkpoint(path: &Path, message: impl Into<String>) -> TrainError {
        TrainError::Checkpoint { path: path.to_owned(), message: message.into() }
    }
}

fn list_changes(changed: &[ChangedKey]) -> String {
    let list: Vec<String> =
        changed.iter().map(|c| format!("`{}` ({} then, {} now)", c.path, c.before, c.after)).collect();
    list.join(", ")
}

/// The first few of a list in backticks, with the number of those left out.
pub(crate) fn first_few<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 8;
    let left_out = names.len().saturating_sub(SHOWN);
    let shown: Vec<String> = names.take(SHOWN).map(|name| format!("`{name}`")).collect();
    let more = if left_out > 0 { format!(" and {left_out} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}
