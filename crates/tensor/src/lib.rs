//! The engine: storage, tape, fused differentiable operators, CPU kernels. It refuses to know models, files and plans.
//!
//! Invariants of the crate:
//! - tensors are contiguous and row-major; nothing writes to a shared buffer;
//! - activations are f32 or bf16, and an operator computes in the type of its input: bf16 operands are multiplied as they
//!   are (weights of other types are rounded on the way), everything else is f32 arithmetic, and all sums are f32 (f64
//!   where it is said); f16 is storage, widened inside an operator and never kept wide;
//! - the gradient of a value has the value's dtype, the gradient of a weight is f32;
//! - every buffer comes from the counted pool in [`memory`];
//! - results have the same bits whatever the number of threads;
//! - bad input gives an [`Error`]; no operator casts, copies to another device, or drops a gradient in silence.

pub mod bench;
mod dtype;
mod element;
mod error;
mod gemm;
mod gradients;
pub mod memory;
mod ops;
mod param;
pub mod profile;
mod rng;
mod row_buffer;
mod simd;
mod tape;
mod team;
mod tensor;
mod threads;
mod wide;

pub use dtype::{DType, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
pub use error::{Error, Result};
pub use gradients::Gradients;
pub use ops::activation::Activation;
pub use ops::adamw::{AdamW, adamw_step};
pub use ops::attention::{AttentionSpec, Mask};
pub use ops::blend::Taps;
pub use ops::cached_attention::{CachedRows, attention_cached};
pub use ops::cross_entropy::LossOutput;
pub use ops::linear::{LinearWeights, LoraWeights};
pub use ops::rope::{LearnedAngles, RopeTable};
pub use ops::unfold::Window;
pub use param::Param;
pub use row_buffer::RowBuffer;
pub use simd::has_bf16;
pub use tape::{Tape, Var};
pub use tensor::{Device, Tensor};
pub use threads::{num_threads, set_num_threads};
