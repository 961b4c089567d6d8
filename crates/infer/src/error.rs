//! Errors of generation, scoring and evaluation.

/// What can go wrong while a model answers or is judged.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The model refused its input.
    #[error(transparent)]
    Model(#[from] models::ModelError),
    /// An operator refused its input.
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
    /// A record or a checkpoint's processor is at fault.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// A metric is not defined on these answers.
    #[error(transparent)]
    Metric(#[from] crate::metrics::MetricError),
    /// An option is out of its range.
    #[error("`{option}`: expected {expected}, found `{found}`")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// What it accepts.
        expected: &'static str,
        /// What it was given.
        found: String,
    },
    /// A data set does not fit the task asked for.
    #[error("task `{task}`: record `{id}`: {reason}")]
    Task {
        /// Name of the task.
        task: &'static str,
        /// The record.
        id: String,
        /// What is missing or wrong.
        reason: String,
    },
}

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, InferError>;
