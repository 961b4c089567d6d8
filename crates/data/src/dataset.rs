//! Owns [`Dataset`]: the records of files, found by position without a file being read whole.
//! It refuses to interpret a record: that is `formats`.

use std::path::{Path, PathBuf};

use crate::error::{DataError, RecordError};
use crate::formats;
use crate::json_index::{Fingerprint, JsonIndex, dataset_error};
use crate::record::{Format, Origin, Sample};
use crate::shards::{self, Kind};
use crate::tar::TarIndex;

/// How many records are looked at to tell the format.
const DETECT_RECORDS: u64 = 16;

/// The records of one or several files, read one at a time.
#[derive(Debug)]
pub struct Dataset {
    files: Vec<SourceFile>,
    /// Records before each file, and in all: one more entry than files.
    starts: Vec<u64>,
}

/// Where the records of a file lie.
#[derive(Debug)]
enum Records {
    Json(JsonIndex),
    Tar(TarIndex),
}

/// One file of a dataset.
#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    media_dir: PathBuf,
    format: Format,
    records: Records,
}

impl Dataset {
    /// Several datasets as one, their records one after the other.
    pub fn concat(sets: Vec<Self>) -> Self {
        let files: Vec<SourceFile> = sets.into_iter().flat_map(|s| s.files).collect();
        let mut starts = vec![0];
        for file in &files {
            starts.push(starts.last().copied().unwrap_or(0) + file.records.len());
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
        self.files.iter().map(|file| (file.path.clone(), file.records.fingerprint())).collect()
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
        match &file.records {
            Records::Json(records) => file.parse(records, place, index),
            Records::Tar(records) => records.sample(place, index, file.format, &file.media_dir),
        }
    }

    /// The record's id; its position as text when it has none or cannot be read.
    pub fn id(&self, index: u64) -> String {
        let Ok((file, place)) = self.locate(index) else { return index.to_string() };
        match &file.records {
            Records::Json(records) => match records.read(place) {
                Ok(bytes) => {
                    let value = serde_json::from_str(&String::from_utf8_lossy(&bytes));
                    formats::id_of(&value.unwrap_or(serde_json::Value::Null), records.key(place), index)
                }
                Err(_) => index.to_string(),
            },
            Records::Tar(records) => records.id(place, index),
        }
    }
}

impl SourceFile {
    /// Opens a file of records and tells their format if that was not given.
    fn open(path: &Path, kind: Kind, format: Format, media_dir: Option<&Path>) -> Result<Self, DataError> {
        let records = match kind {
            Kind::Json => Records::Json(JsonIndex::open(path)?),
            Kind::Tar => Records::Tar(TarIndex::open(path)?),
        };
        let format = if format == Format::Auto { detect(path, &records)? } else { format };
        let own_dir = path.parent().unwrap_or(Path::new("."));
        let media_dir = media_dir.unwrap_or(own_dir).to_path_buf();
        Ok(Self { path: path.to_path_buf(), media_dir, format, records })
    }

    fn parse(&self, records: &JsonIndex, place: u64, index: u64) -> Result<Sample, DataError> {
        let (bytes, key) = (records.read(place)?, records.key(place));
        let origin = Origin { file: self.path.clone(), line: records.line_of(place), index };
        match std::str::from_utf8(&bytes) {
            Ok(text) => formats::parse(text, key, self.format, &origin, &self.media_dir),
            Err(error) => {
                let before = &bytes[..error.valid_up_to()];
                let lines = before.iter().filter(|&&b| b == b'\n').count() as u64;
                let column = before.len() - before.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1) + 1;
                let value = serde_json::from_str(&String::from_utf8_lossy(&bytes)).unwrap_or(serde_json::Value::Null);
                let (place, id) = (Origin { line: origin.line + lines, ..origin }, formats::id_of(&value, key, index));
                let what = format!("column {column}: the text is not UTF-8");
                Err(RecordError::new("bad_json", &place, Some(&id), what)
                    .hint("save the file in UTF-8, or set `data.on_bad_media: skip`")
                    .into())
            }
        }
    }
}

impl Records {
    /// Number of records.
    fn len(&self) -> u64 {
        match self {
            Self::Json(records) => records.len(),
            Self::Tar(records) => records.len(),
        }
    }

    /// What the file held when it was opened.
    fn fingerprint(&self) -> Fingerprint {
        match self {
            Self::Json(records) => records.fingerprint(),
            Self::Tar(records) => records.fingerprint(),
        }
    }
}

/// Opens the records that a path names, as one dataset: a `.json` (list, or object whose values are records; `//`
/// comments), `.jsonl` or WebDataset `.tar` file; a folder of such files; or a pattern for them, with `*`, `?`, `[a-z]`,
/// `{000..011}` and `{a,b}`. Several files stand in the order of their names, or of the braces; all are of one kind and
/// one format. Relative media paths are taken from `media_dir`, or from each file's own folder.
///
/// # Errors
/// Nothing is there, a file cannot be read or holds no record, the format cannot be told, or the files differ in it.
pub fn open_dataset(path: &Path, format: Format, media_dir: Option<&Path>) -> Result<Dataset, DataError> {
    let (kind, paths) = shards::expand(path)?;
    let mut files: Vec<SourceFile> = Vec::with_capacity(paths.len());
    for path in &paths {
        let file = SourceFile::open(path, kind, format, media_dir)?;
        if let Some(first) = files.first().filter(|first| first.format != file.format) {
            let (own, other) = (file.format.name(), first.format.name());
            let what =
                format!("its records are of the format `{own}`, those of `{}` of `{other}`", first.path.display());
            let hint = "name files of one format in a dataset, and the others in one of their own";
            return Err(dataset_error(path, "mixed_shards", what, hint));
        }
        files.push(file);
    }
    Ok(Dataset::concat(vec![Dataset { files, starts: Vec::new() }]))
}

/// The format of the first record that can be read and has a known key.
fn detect(path: &Path, records: &Records) -> Result<Format, DataError> {
    let (mut seen, mut refused) = (None, None);
    for i in 0..records.len().min(DETECT_RECORDS) {
        let value = match records {
            Records::Json(records) => serde_json::from_slice(&records.read(i)?).ok(),
            Records::Tar(records) => match records.value(i) {
                Ok(value) => Some(value),
                Err(error) if error.is_one_record() => {
                    refused = refused.or(Some(error));
                    None
                }
                Err(error) => return Err(error),
            },
        };
        let Some(value) = value else { continue };
        if let Some(format) = formats::detect(&value) {
            return Ok(format);
        }
        seen = seen.or_else(|| value.as_object().map(|o| o.keys().take(8).cloned().collect::<Vec<_>>().join("`, `")));
    }
    let what = match (seen, refused) {
        (Some(keys), _) => format!(
            "the format cannot be told: expected records with `conversations`, `messages` or `conversation`, or with `question` and `caption`, found `{keys}`"
        ),
        (None, Some(refused)) => return Err(refused),
        (None, None) => "the format cannot be told: none of the first records is a readable object".to_owned(),
    };
    Err(dataset_error(path, "unknown_format", what, "name the format with `data.train.format`, or convert the file"))
}
