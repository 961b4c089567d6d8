//! Every checkpoint folder of `fixtures/models` and `fixtures/seq2seq` against what `transformers` and `peft` computed with it. Owns no golden
//! data: the generators are in `tools/oracle`, the layouts are described in their `README.md`.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

mod adapters;
mod base;
mod bf16;
mod compare;
mod encoders;
mod fixture;
mod full_size;
mod pictures;
mod saved;
mod seq2seq;
mod text_pairs;
