//! Everything about training but the ten steps of the reference, which stand in `parity`.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

mod bf16;
mod features;
mod joined;
mod plan;
mod reference;
mod report;
mod resume;
mod runs;
mod steps;
mod support;
