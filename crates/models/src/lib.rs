//! Model families: configurations, towers, decoders, encoder-decoders and the models that join them; loading, adapters, saving
//! and incremental decoding. Owns no data pipeline and no optimizer.

pub mod config;
pub mod decoder;
pub mod error;
pub mod export;
pub mod generate;
pub mod join;
pub mod linear;
pub mod lora;
pub mod model;
mod mrope;
pub mod names;
mod needed;
mod parts;
pub mod save;
pub mod seq2seq;
pub mod speech;
pub mod vision;
pub mod weights;

pub use config::{
    CausalConfig, EgoGptConfig, EncodersConfig, FAMILIES, FamilyConfig, LlavaConfig, ModelConfig, QwenVlConfig,
    VisionKind,
};
pub use error::{ModelError, Result};
pub use generate::KvCache;
pub use lora::{LoraConfig, TargetModules};
pub use model::{
    IGNORE, LoadOptions, LossWeights, Model, ModelInput, TargetInput, Visual, load, random, shift_targets,
};
pub use weights::{LoadReport, NamedParam, Part};
