//! What several test files need: the fixtures' places and their checksums.

use std::path::{Path, PathBuf};

use media::RgbImage;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A path below `fixtures/media`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/media").join(name)
}

/// A JSON file below `fixtures/media`.
pub fn json(name: &str) -> Value {
    let path = fixture(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// SHA-256 of a picture's bytes, as the generators write it.
pub fn sha256(image: &RgbImage) -> String {
    Sha256::digest(&image.data).iter().map(|byte| format!("{byte:02x}")).collect()
}
