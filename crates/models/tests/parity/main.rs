//! Every checkpoint folder of `fixtures/models` against what `transformers` and `peft` computed with it. Owns no golden
//! data: the generators are in `tools/oracle`, the layout is described in `fixtures/models/README.md`.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

mod adapters;
mod base;
mod bf16;
mod compare;
mod fixture;
mod pictures;
mod saved;
