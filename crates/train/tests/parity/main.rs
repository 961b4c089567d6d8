//! Training against the `Trainer` of `transformers` and against `peft`: ten steps and the weights after them. Owns no golden
//! data: `tools/oracle/train_ref.py` makes it (fixtures/models/README.md). Schedules, step counts and decay groups are in
//! `tests/reference.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

// The fixture folders belong to the models; their reader and the projections are the same.
#[path = "../../../models/tests/parity/compare.rs"]
mod compare;
#[path = "../../../models/tests/parity/fixture.rs"]
mod fixture;
mod seq2seq;
mod steps;
#[path = "../../../models/tests/parity/text_pairs.rs"]
mod text_pairs;
