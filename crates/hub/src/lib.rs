//! Hugging Face layouts on disk and on the network: safetensors and `torch.save` files, sharded checkpoints, the hub cache, downloads,
//! atomic writing, JSON with comments, folders of cached entries. Owns no tensors, no model names and no media: it hands out bytes and paths.
//!
//! Everything read here may come from a stranger, so every length, offset and name is checked before it is used, and
//! everything written appears under its final name only when it is whole and on disk.

mod atomic;
mod cache;
mod checkpoint;
mod download;
mod dtype;
mod env;
mod error;
mod http;
pub mod json;
mod pickle;
mod safetensors;
pub mod store;
mod write;

pub use atomic::{atomic_dir, atomic_file, atomic_write, remove_leftovers, replace_dir};
pub use cache::{Progress, resolve_beside, resolve_model, resolve_model_with};
pub use checkpoint::{Checkpoint, INDEX_FILE, SINGLE_FILE};
pub use download::{DownloadOptions, download};
pub use dtype::Dtype;
pub use env::HubEnv;
pub use error::{HeaderFault, HubError, PickleFault, Result};
pub use pickle::PickleFile;
pub use safetensors::{SafeTensors, TensorView};
pub use write::{OutData, OutTensor, shard_file_name, write_checkpoint, write_safetensors};
