//! `profile.json` and `profile.csv`. Owns names and layout; the figures are the profiler's.

use std::fmt::Write;
use std::path::Path;

use serde::Serializer;
use serde::ser::SerializeMap;

use super::{Profile, Row};
use crate::checkpoint::write_json;
use crate::error::Result;

/// Every figure of a profile.
pub const PROFILE_JSON: &str = "profile.json";
/// Its phases and rates as a table.
pub const PROFILE_CSV: &str = "profile.csv";
/// Spans of the traced steps.
pub const TRACE_JSON: &str = "trace.json";

const COLUMNS: &str = "name,unit,count,mean,median,p95,min,max,total,share\n";

impl Profile {
    /// Writes both files into a folder, each whole or not at all.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_json(&dir.join(PROFILE_JSON), self)?;
        Ok(hub::atomic_write(dir.join(PROFILE_CSV), self.csv().as_bytes())?)
    }

    /// The text of `profile.csv`: one line a phase or rate, empty cells where a column has no meaning.
    pub fn csv(&self) -> String {
        let mut text = COLUMNS.to_owned();
        for row in self.phases.iter().chain(&self.rates) {
            let s = &row.summary;
            let cell = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
            let _ = writeln!(
                text,
                "{},{},{},{},{},{},{},{},{},{}",
                row.name,
                row.unit,
                s.count,
                s.mean,
                s.median,
                s.p95,
                s.min,
                s.max,
                cell(row.total),
                cell(row.share)
            );
        }
        text
    }
}

/// Rows as an object from names to figures.
pub(super) fn by_name<S: Serializer>(rows: &[Row], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(rows.len()))?;
    for row in rows {
        map.serialize_entry(row.name, row)?;
    }
    map.end()
}
