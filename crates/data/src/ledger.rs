//! Owns the ledger: what became of every record of a run, and why.
//! It refuses to decide what is skipped: the loader says so, the ledger remembers.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "status")]
pub enum Status {
    /// Part of at least one batch that was handed out.
    Trained,
    /// Left out under `on_bad_media: skip`.
    Skipped {
        /// Short word, see [`DataError::reason`].
        reason: String,
        /// The whole message.
        message: String,
    },
    /// The record that stopped the run.
    Failed {
        /// Short word, see [`DataError::reason`].
        reason: String,
        /// The whole message.
        message: String,
    },
}

/// News about one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEvent {
    /// Position in the dataset.
    pub index: u64,
    /// The record's id.
    pub id: String,
    /// What became of it.
    #[serde(flatten)]
    pub status: Status,
    /// What was not as asked, although the record was used: a clip cut short, damaged frames, fewer frames.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Counts of a ledger.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LedgerSummary {
    /// Records in the dataset.
    pub total: u64,
    /// Records trained at least once.
    pub trained: u64,
    /// Records skipped.
    pub skipped: u64,
    /// Records that stopped the run.
    pub failed: u64,
    /// Records that the run did not come to.
    pub not_reached: u64,
    /// Trained records with notes.
    #[serde(default)]
    pub noted: u64,
    /// Skipped and failed records by reason.
    pub reasons: BTreeMap<String, u64>,
}

/// What became of every record of one dataset. A bit a record, and the text of those that were not trained or not as
/// asked.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Ledger {
    total: u64,
    trained: Vec<u64>,
    bad: BTreeMap<u64, LedgerEvent>,
    /// Notes of trained records.
    #[serde(default)]
    notes: BTreeMap<u64, Vec<String>>,
}

impl Ledger {
    /// An empty ledger for `total` records.
    pub fn new(total: u64) -> Self {
        Self { total, trained: vec![0; total.div_ceil(64) as usize], bad: BTreeMap::new(), notes: BTreeMap::new() }
    }

    /// Remembers news. Later news about a record replaces earlier news, except that what was trained stays trained.
    pub fn record(&mut self, event: &LedgerEvent) {
        match event.status {
            Status::Trained => {
                if let Some(word) = self.trained.get_mut((event.index / 64) as usize) {
                    *word |= 1 << (event.index % 64);
                }
                self.bad.remove(&event.index);
                if !event.notes.is_empty() {
                    self.notes.insert(event.index, event.notes.clone());
                }
            }
            _ if self.is_trained(event.index) => {}
            _ => {
                self.bad.insert(event.index, event.clone());
            }
        }
    }

    /// Whether the record was part of a batch.
    pub fn is_trained(&self, index: u64) -> bool {
        self.trained.get((index / 64) as usize).is_some_and(|w| w >> (index % 64) & 1 == 1)
    }

    /// Whether a trained record has notes.
    pub fn is_noted(&self, index: u64) -> bool {
        self.notes.contains_key(&index)
    }

    /// The counts.
    pub fn summary(&self) -> LedgerSummary {
        let trained = self.trained.iter().map(|w| u64::from(w.count_ones())).sum();
        let mut s =
            LedgerSummary { total: self.total, trained, noted: self.notes.len() as u64, ..LedgerSummary::default() };
        for event in self.bad.values() {
            let reason = match &event.status {
                Status::Skipped { reason, .. } => {
                    s.skipped += 1;
                    reason
                }
                Status::Failed { reason, .. } => {
                    s.failed += 1;
                    reason
                }
                Status::Trained => continue,
            };
            *s.reasons.entry(reason.clone()).or_default() += 1;
        }
        s.not_reached = s.total.saturating_sub(s.trained + s.skipped + s.failed);
        s
    }

    /// Writes one JSON object a line for every record, in dataset order; `id_of` gives the ids of records that have
    /// no event of their own. The file appears whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_jsonl(&self, path: &Path, id_of: impl Fn(u64) -> String) -> Result<(), DataError> {
        let mut text = String::new();
        for index in 0..self.total {
            let line = if self.is_trained(index) {
                let mut line = serde_json::json!({"index": index, "id": id_of(index), "status": "trained"});
                if let Some(notes) = self.notes.get(&index) {
                    line["notes"] = notes.as_slice().into();
                }
                line.to_string()
            } else if let Some(event) = self.bad.get(&index) {
                serde_json::to_string(event).map_err(|e| DataError::io(path, std::io::Error::other(e)))?
            } else {
                serde_json::json!({"index": index, "id": id_of(index), "status": "not_reached"}).to_string()
            };
            text.push_str(&line);
            text.push('\n');
        }
        hub::atomic_write(path, text.as_bytes()).map_err(|e| DataError::io(path, std::io::Error::other(e.to_string())))
    }
}
