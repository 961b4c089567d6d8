//! One module per command: from its arguments to calls of the crates below and to output. A command owns no algorithm.

pub mod bench_decode;
pub mod bench_generate;
pub mod bench_step;
pub mod data_cache;
pub mod data_check;
pub mod data_convert;
pub mod data_frames;
pub mod data_preview;
pub mod demo;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod generate;
pub mod init;
pub mod plan;
pub mod profile_table;
pub mod score;
pub mod train;
