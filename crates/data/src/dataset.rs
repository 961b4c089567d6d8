//! Owns [`Dataset`]: the records of files, found by position without a file being read whole.
//! It refuses to interpret a record: that is `formats`.

use std::path::{Path, PathBuf};

use crate::error::{DataError, RecordError};
use crate::formats;
use crate::json_index::{Fingerprint, JsonIndex, dataset_error};
use crate::record::{Format, Origin, Sample};

/// How many records are looked at to tell the format.
const DETECT_RECORDS: u64 = 16;

/// The records of one or several files, read one at a time.
#[derive(Debug)]
pub struct Dataset {
    files: Vec<SourceFile>,
    /// Records before each file, and in all: one more entry than files.
    starts: Vec<u64>,
}

/// One file of a dataset.
#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    media_dir: PathBuf,
    audio_dir: PathBuf,
    format: Format,
    index: JsonIndex,
}

impl Dataset {
    /// Takes relative paths of sound from another folder than those of other media; `None` changes nothing.
    #[must_use]
    pub fn with_audio_dir(mut self, dir: Option<&Path>) -> Self {
        if let Some(dir) = dir {
            self.files.iter_mut().for_each(|file| file.audio_dir = dir.to_path_buf());
        }
        self
    }

    /// Several datasets as one, their records one after the other.
    pub fn concat(sets: Vec<Self>) -> Self {
        let files: Vec<SourceFile> = sets.into_iter().flat_map(|s| s.files).collect();
        let mut starts = vec![0];
        for file in &files {
            starts.push(starts.last().copied().unwrap_or(0) + file.index.len());
        }
        Self { files, starts }
    }

    /// Number of records.
    pub fn len(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Whether there is no record; never true for a dataset that could be opened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The format that was given or detected, of the first file.
    pub fn format(&self) -> Format {
        self.files.first().map_or(Format::Auto, |f| f.format)
    }

    /// The first file.
    pub fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), |f| &f.path)
    }

    /// What each file held when it was opened, in order.
    pub fn fingerprints(&self) -> Vec<(PathBuf, Fingerprint)> {
        self.files.iter().map(|file| (file.path.clone(), file.index.fingerprint())).collect()
    }

    /// The file of a record, and the record's place in it.
    fn locate(&self, index: u64) -> Result<(&SourceFile, u64), DataError> {
        let file = self.starts.partition_point(|&start| start <= index);
        match file.checked_sub(1).and_then(|f| Some((self.files.get(f)?, index - self.starts[f]))) {
            Some(found) => Ok(found),
            None => Err(DataError::NoRecord { index, total: self.len() }),
        }
    }

    /// Reads and validates one record.
    ///
    /// # Errors
    /// What is wrong with the record, with file and line.
    pub fn get(&self, index: u64) -> Result<Sample, DataError> {
        let (file, place) = self.locate(index)?;
        let (bytes, key) = (file.index.read(place)?, file.index.key(place));
        let origin = Origin { file: file.path.clone(), line: file.index.line_of(place), index };
        match std::str::from_utf8(&bytes) {
            Ok(text) => formats::parse(text, key, file.format, &origin, [&file.media_dir, &file.audio_dir]),
            Err(error) => {
                let before = &bytes[..error.valid_up_to()];
                let lines = before.iter().filter(|&&b| b == b'\n').count() as u64;
                let column = before.len() - before.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1) + 1;
                let (place, id) = (Origin { line: origin.line + lines, ..origin }, self.id(index));
                let what = format!("column {column}: the text is not UTF-8");
                Err(RecordError::new("bad_json", &place, Some(&id), what)
                    .hint("save the file in UTF-8, or set `data.on_bad_media: skip`")
                    .into())
            }
        }
    }

    /// The record's id; its position as text when it has none or cannot be read.
    pub fn id(&self, index: u64) -> String {
        let Ok((file, place)) = self.locate(index) else { return index.to_string() };
        match file.index.read(place) {
            Ok(bytes) => {
                let value = serde_json::from_str(&String::from_utf8_lossy(&bytes));
                formats::id_of(&value.unwrap_or(serde_json::Value::Null), file.index.key(place), index)
            }
            Err(_) => index.to_string(),
        }
    }
}

/// Opens a `.json` (list, or object whose values are records; `//` comments) or `.jsonl` file.
/// Relative media paths are taken from `media_dir`, or from the file's own folder.
///
/// # Errors
/// The file cannot be read, holds no record, or its format cannot be told.
pub fn open_dataset(path: &Path, format: Format, media_dir: Option<&Path>) -> Result<Dataset, DataError> {
    let index = JsonIndex::open(path)?;
    let format = if format == Format::Auto { detect(path, &index)? } else { format };
    let own_dir = path.parent().unwrap_or(Path::new("."));
    let media_dir = media_dir.unwrap_or(own_dir).to_path_buf();
    let starts = vec![0, index.len()];
    let (path, audio_dir) = (path.to_path_buf(), media_dir.clone());
    Ok(Dataset { files: vec![SourceFile { path, media_dir, audio_dir, format, index }], starts })
}

/// The format of the first record that can be read and has a known key.
fn detect(path: &Path, index: &JsonIndex) -> Result<Format, DataError> {
    let mut seen = None;
    for i in 0..index.len().min(DETECT_RECORDS) {
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(&index.read(i)?) else { continue };
        if let Some(format) = formats::detect(&value) {
            return Ok(format);
        }
        seen = seen.or_else(|| value.as_object().map(|o| o.keys().take(8).cloned().collect::<Vec<_>>().join("`, `")));
    }
    let what = match seen {
        Some(keys) => format!(
            "the format cannot be told: expected records with `conversations`, `messages` or `conversation`, or with `question` and `caption`, found `{keys}`"
        ),
        None => "the format cannot be told: none of the first records is a readable object".to_owned(),
    };
    Err(dataset_error(path, "unknown_format", what, "name the format with `data.train.format`, or convert the file"))
}
