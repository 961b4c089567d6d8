//! Errors of model configuration, loading, adapters and saving. Rendering belongs to the command line.

use std::path::PathBuf;

/// Everything that can go wrong between a checkpoint folder and a running model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A configuration field has a value or a type that this program does not implement, or is unknown.
    #[error("`{file}`: field `{field}`: {reason}")]
    Config {
        /// The configuration the field stands in (`config.json`, `config.json/text_config` …).
        file: String,
        /// Name of the field.
        field: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// The family named by `model_type` is not registered.
    #[error("`{file}`: model_type `{found}` is not known; known are {known}")]
    UnknownFamily {
        /// The configuration file.
        file: String,
        /// The value found.
        found: String,
        /// Comma separated list of registered families.
        known: String,
    },
    /// Tensors of the model that the checkpoint does not hold, or tensors of the checkpoint the model has no place for.
    #[error("`{}`: {message}", path.display())]
    Weights {
        /// The checkpoint folder.
        path: PathBuf,
        /// Which tensors, and what was expected.
        message: String,
    },
    /// An adapter cannot be built, read or applied.
    #[error("adapter: {0}")]
    Adapter(String),
    /// The caller's input does not fit the model.
    #[error("model input: {0}")]
    Input(String),
    /// An operator refused its inputs.
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
    /// Reading or writing a checkpoint failed.
    #[error(transparent)]
    Hub(#[from] hub::HubError),
}

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, ModelError>;
