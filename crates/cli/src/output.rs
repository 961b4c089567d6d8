//! Data on its way out: to stdout or, atomically, to a file. Owns no format, and the notes that go with data.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::DtypeChoice;
use crate::console::Console;

/// Writes `bytes` to `path`, whole or not at all, or to stdout. Missing folders of `path` are made.
///
/// # Errors
/// The file cannot be written, or stdout is closed.
pub fn write(path: Option<&Path>, bytes: &[u8]) -> Result<()> {
    let Some(path) = path else {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        return Ok(out.flush()?);
    };
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|e| crate::failure::CliError::io("create", parent, &e))?;
    }
    Ok(hub::atomic_write(path, bytes)?)
}

/// As [`write()`], with a value as indented JSON and a final line end.
///
/// # Errors
/// As [`write()`].
pub fn write_json(path: Option<&Path>, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    write(path, &bytes)
}

/// Warns of records that were not used as they were asked for; beyond the first few it only counts them. `place` holds
/// them all.
pub fn tell_notes<'a>(noted: impl ExactSizeIterator<Item = (&'a str, &'a [String])>, place: &str, console: &Console) {
    const SHOWN: usize = 10;
    let more = noted.len().saturating_sub(SHOWN);
    for (id, notes) in noted.take(SHOWN) {
        console.warning(&format!("record `{id}`: {}", notes.join("; ")));
    }
    if more > 0 {
        console.warning(&format!("{more} more records have notes: see {place}"));
    }
}

/// A value as one line of JSON on stdout.
///
/// # Errors
/// Stdout is closed.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    write(None, &bytes)
}

/// Measured figures as one line of JSON on stdout, with the threads and the number format that they hold for.
///
/// # Errors
/// Stdout is closed.
pub fn print_figures(figures: &impl Serialize, dtype: DtypeChoice) -> Result<()> {
    let mut line = serde_json::to_value(figures)?;
    if let Value::Object(fields) = &mut line {
        fields.insert("threads".to_owned(), json!(tensor::num_threads()));
        fields.insert("dtype".to_owned(), json!(dtype.word()));
    }
    print_json(&line)
}
