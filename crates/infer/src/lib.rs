//! Answering and judging: generation with a key/value cache, sampling, beams, scoring, metrics, evaluation tasks. Owns no
//! training and no decoding of media.

pub mod beams;
pub mod bench;
pub mod error;
pub mod generate;
pub mod input;
pub mod metrics;
pub mod rules;
pub mod sample;
pub mod score;
pub mod tasks;

pub use beams::{Beams, EarlyStopping};
pub use bench::{GenerateBench, GenerateBenchResult, bench_generate};
pub use error::{InferError, Result};
pub use generate::{GenerateOptions, generate, generate_with};
pub use input::{upload, upload_encoded, upload_with_states};
pub use rules::Rules;
pub use sample::{Sampler, Sampling};
pub use score::{Score, score_batch};
pub use tasks::{EvalOptions, Evaluation, Prediction, Task, evaluate};
