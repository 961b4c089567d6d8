//! Owns [`DataError`], the one error type of this crate, with a short machine word for each cause.
//! It refuses to decide whether a bad record stops a run: that is the loader's policy.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::record::{Origin, Sample};

/// What is wrong with one record, where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordError(Box<RecordFault>);

/// The facts of a [`RecordError`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordFault {
    /// Stable short word: `bad_json`, `wrong_role_order`, `placeholder_count`, ...
    pub reason: &'static str,
    /// File, line and position.
    pub origin: Origin,
    /// The record's own id where it has one that could be read.
    pub id: Option<String>,
    /// What is wrong, with the field's name.
    pub what: String,
    /// What would be right; empty when `what` says it.
    pub expected: String,
    /// What stands there; empty when `what` says it.
    pub found: String,
    /// What the user can do; empty when nothing but repair helps.
    pub hint: String,
}

impl std::ops::Deref for RecordError {
    type Target = RecordFault;

    fn deref(&self) -> &RecordFault {
        &self.0
    }
}

impl RecordError {
    /// An error at `origin` that so far says only what is wrong.
    pub fn new(reason: &'static str, origin: &Origin, id: Option<&str>, what: impl Into<String>) -> Self {
        Self(Box::new(RecordFault {
            reason,
            origin: origin.clone(),
            id: id.map(str::to_owned),
            what: what.into(),
            expected: String::new(),
            found: String::new(),
            hint: String::new(),
        }))
    }

    /// Adds what was expected and what was found.
    pub fn expected(mut self, expected: impl Into<String>, found: impl Into<String>) -> Self {
        self.0.expected = expected.into();
        self.0.found = found.into();
        self
    }

    /// Adds the fix.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = hint.into();
        self
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.origin, self.id.as_deref())?;
        write!(f, "{}", self.what)?;
        if !self.expected.is_empty() {
            write!(f, ": expected {}, found {}", self.expected, self.found)?;
        }
        if !self.hint.is_empty() {
            write!(f, "; hint: {}", self.hint)?;
        }
        Ok(())
    }
}

/// The place of an error that concerns a record, and no more than that.
struct Place<'a>(&'a Origin, &'a str);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, self.0, Some(self.1))
    }
}

/// Writes "`file` line 3, record `id`: ", leaving out what is unknown.
fn write_place(f: &mut fmt::Formatter<'_>, origin: &Origin, id: Option<&str>) -> fmt::Result {
    let has_file = !origin.file.as_os_str().is_empty();
    if has_file {
        write!(f, "`{}`", origin.file.display())?;
        if origin.line > 0 {
            write!(f, " line {}", origin.line)?;
        }
    }
    match id {
        Some(id) => write!(f, "{}record `{id}`: ", if has_file { ", " } else { "" }),
        None if has_file => write!(f, ", record {}: ", origin.index),
        None => Ok(()),
    }
}

/// Everything that this crate refuses. `Display` is one line, lower case, with a hint after `; hint:`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A record that contradicts its format, or that cannot be taught to this model.
    #[error("{0}")]
    Record(RecordError),
    /// A media file of a record that cannot be used.
    #[error("{place}{source}", place = Place(origin, id))]
    Media {
        /// File and line of the record.
        origin: Box<Origin>,
        /// The record.
        id: String,
        /// What is wrong with the file.
        source: Box<media::MediaError>,
    },
    /// Media that had to be fetched and could not.
    #[error("{place}`{url}`: {detail}; hint: check the address and the network, or give a local file", place = Place(origin, id))]
    Download {
        /// File and line of the record.
        origin: Box<Origin>,
        /// The record.
        id: String,
        /// The address.
        url: String,
        /// What the download said.
        detail: String,
    },
    /// A dataset file as a whole: missing, empty, not a list of records.
    #[error("`{path}`: {what}; hint: {hint}", path = path.display())]
    Dataset {
        /// The file.
        path: PathBuf,
        /// Stable short word.
        reason: &'static str,
        /// What is wrong.
        what: String,
        /// The fix.
        hint: String,
    },
    /// A tokenizer, processor or template file of a checkpoint.
    #[error("`{path}`: {what}; hint: {hint}", path = path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// The fix.
        hint: String,
    },
    /// A chat template that does not compile, refuses a dialogue, or hides which words are the assistant's.
    #[error("chat template of `{origin}`: {what}; hint: {hint}")]
    Template {
        /// Where the template came from.
        origin: String,
        /// What is wrong, with the template's line where it is known.
        what: String,
        /// The fix.
        hint: String,
    },
    /// A plan's `data` section.
    #[error("`{key}`: {what}; hint: {hint}")]
    Plan {
        /// The key with its path, as `data.num_frames`.
        key: String,
        /// What is wrong.
        what: String,
        /// The fix.
        hint: String,
    },
    /// More records were skipped than the plan allows.
    #[error(
        "{skipped} records were skipped, the limit is {limit}: {causes}; hint: repair the data, or raise `data.max_skips`"
    )]
    TooManySkips {
        /// Records skipped so far.
        skipped: u64,
        /// The limit.
        limit: u64,
        /// Counts by cause.
        causes: String,
    },
    /// A saved loader position that does not belong to this dataset.
    #[error("the saved position does not fit the data: {what}; hint: resume with the dataset and settings of the run")]
    State {
        /// The contradiction.
        what: String,
    },
    /// A record beyond the end of the dataset.
    #[error("record {index} does not exist: the dataset has {total}; hint: records are counted from 0")]
    NoRecord {
        /// The position asked for.
        index: u64,
        /// Records in the dataset.
        total: u64,
    },
    /// Pictures of different shapes in one batch.
    #[error(
        "record `{id}`: its pictures have the shape {found:?}, the batch has {expected:?}; hint: set `do_center_crop` or a fixed `size` in `preprocessor_config.json`"
    )]
    PictureShapes {
        /// The record.
        id: String,
        /// `pixel_shape` of the batch.
        expected: Vec<usize>,
        /// `pixel_shape` of the record.
        found: Vec<usize>,
    },
    /// Something that must not happen, met while a record was made.
    #[error("{what}; hint: this is a fault of the program, please report it with the record")]
    Fault {
        /// What was met.
        what: String,
    },
    /// The operating system refused.
    #[error("`{path}`: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl DataError {
    /// A short word for counting and for ledgers; stable across releases.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Record(e) => e.reason,
            Self::Media { source, .. } => source.reason(),
            Self::Download { .. } => "download",
            Self::Dataset { reason, .. } => reason,
            Self::Checkpoint { .. } => "checkpoint",
            Self::Template { .. } => "template",
            Self::Plan { .. } => "plan",
            Self::TooManySkips { .. } => "too_many_skips",
            Self::State { .. } => "state",
            Self::NoRecord { .. } => "no_record",
            Self::PictureShapes { .. } => "picture_shapes",
            Self::Fault { .. } => "fault",
            Self::Io { .. } => "io",
        }
    }

    /// Whether the cause is one record or its media, so that a run may go on without it under `on_bad_media: skip`.
    pub fn is_one_record(&self) -> bool {
        match self {
            // Without libav no record with a video could be read: nothing is wrong with this one.
            Self::Media { source, .. } => !matches!(**source, media::MediaError::NoLibav { .. }),
            Self::Record(_) | Self::Download { .. } => true,
            _ => false,
        }
    }

    /// A [`DataError::Media`] of a record.
    pub fn media(sample: &Sample, source: media::MediaError) -> Self {
        Self::Media { origin: Box::new(sample.origin.clone()), id: sample.id.clone(), source: Box::new(source) }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn checkpoint(path: &Path, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.to_path_buf(), what: what.into(), hint: hint.into() }
    }
}

impl From<RecordError> for DataError {
    fn from(e: RecordError) -> Self {
        Self::Record(e)
    }
}
