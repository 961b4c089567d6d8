//! Tests of the crate through its public face, one file for each concern.

#![allow(clippy::unwrap_used)]

mod audio;
mod clips;
mod common;
mod frames;
mod hostile;
mod images;
mod resize;
mod roundtrip;
mod rules;
