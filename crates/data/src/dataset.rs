//! Owns [`Dataset`]: the records of files, found by position without a file being read whole.
//! It refuses to interpret a record: that is `formats`.

use std::path::{Path, PathBuf};

use crate::csv_index::CsvIndex;
use crate::error::{DataError, RecordError};
use crate::formats;
use crate::json_index::{Fingerprint, JsonIndex, dataset_error};
use crate::order::Mixture;
use crate::record::{Format, Origin, Sample};
use crate::select::{Chosen, Selected, Selection};
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
    /// What an epoch takes of each file, where that is not all of it once.
    mixture: Option<Mixture>,
}

/// One file of a dataset.
#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    media_dir: PathBuf,
    audio_dir: PathBuf,
    format: Format,
    rows: Rows,
    /// The records that are used, where not all are.
    chosen: Option<Chosen>,
    /// Share of the file in an epoch.
    weight: f64,
}

impl SourceFile {
    fn len(&self) -> u64 {
        self.chosen.as_ref().map_or(self.rows.len(), |chosen| chosen.places.len() as u64)
    }
}

/// Where the records of a file lie.
#[derive(Debug)]
pub(crate) enum Rows {
    Json(JsonIndex),
    Csv(CsvIndex),
    Tar(TarIndex),
}

impl Rows {
    fn open(path: &Path, kind: Kind) -> Result<Self, DataError> {
        match kind {
            Kind::Tar => TarIndex::open(path).map(Self::Tar),
            Kind::Csv => CsvIndex::open(path).map(Self::Csv),
            Kind::Json => JsonIndex::open(path).map(Self::Json),
        }
    }

    /// Number of records.
    pub fn len(&self) -> u64 {
        match self {
            Self::Json(index) => index.len(),
            Self::Csv(index) => index.len(),
            Self::Tar(index) => index.len(),
        }
    }

    /// A record's JSON. `origin` is where it stands, for messages.
    pub fn read(&self, place: u64, origin: &Origin) -> Result<Vec<u8>, DataError> {
        match self {
            Self::Json(index) => index.read(place),
            Self::Csv(index) => index.read(place, origin),
            Self::Tar(index) => Ok(index.value(place)?.to_string().into_bytes()),
        }
    }

    /// The record's key when the top level of the file is an object.
    pub fn key(&self, place: u64) -> Option<&str> {
        match self {
            Self::Json(index) => index.key(place),
            Self::Csv(_) | Self::Tar(_) => None,
        }
    }

    fn line_of(&self, place: u64) -> u64 {
        match self {
            Self::Json(index) => index.line_of(place),
            Self::Csv(index) => index.line_of(place),
            Self::Tar(_) => 0,
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        match self {
            Self::Json(index) => index.fingerprint(),
            Self::Csv(index) => index.fingerprint(),
            Self::Tar(index) => index.fingerprint(),
        }
    }
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
            starts.push(starts.last().copied().unwrap_or(0) + file.len());
        }
        let is_plain = files.iter().all(|file| file.weight == 1.0);
        let mixture = (!is_plain).then(|| {
            let mut mixture = Mixture::default();
            files.iter().for_each(|file| mixture.add(file.len(), file.weight));
            mixture
        });
        Self { files, starts, mixture }
    }

    /// The same dataset, of which an epoch of training takes `weight` times as many records as there are: the next ones of
    /// an endless walk through it, so that all come equally often.
    #[must_use]
    pub fn weighted(self, weight: f64) -> Self {
        let files = self.files.into_iter().map(|file| SourceFile { weight: file.weight * weight, ..file }).collect();
        Self::concat(vec![Self { files, starts: Vec::new(), mixture: None }])
    }

    /// Records that one epoch of training takes: each one once, or what the weights ask for.
    pub fn epoch_len(&self) -> u64 {
        self.mixture.as_ref().map_or(self.len(), Mixture::epoch_len)
    }

    pub(crate) fn mixture(&self) -> Option<&Mixture> {
        self.mixture.as_ref()
    }

    /// Where weights are not 1: for each file what an epoch takes of it, and its records.
    pub fn shares(&self) -> impl Iterator<Item = (&Path, u64, u64)> {
        let takes = self.mixture.iter().flat_map(Mixture::takes);
        self.files.iter().zip(takes).map(|(file, (take, len))| (file.path.as_path(), take, len))
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

    /// What each file held when it was opened, in order, a list of ids behind the file that it was applied to.
    pub fn fingerprints(&self) -> Vec<(PathBuf, Fingerprint)> {
        let list = |file: &SourceFile| file.chosen.as_ref().and_then(|chosen| chosen.list.clone());
        let prints = |file: &SourceFile| [Some((file.path.clone(), file.rows.fingerprint())), list(file)];
        self.files.iter().flat_map(prints).flatten().collect()
    }

    /// The same dataset with a part of its records.
    ///
    /// # Errors
    /// Nothing is left, or the records cannot be read.
    pub(crate) fn select(self, selection: &Selection<'_>) -> Result<Self, DataError> {
        if selection.takes_all() {
            return Ok(self);
        }
        let mut files = self.files;
        for file in &mut files {
            file.chosen = Some(selection.of(&file.path, &file.rows)?);
        }
        Ok(Self::concat(vec![Self { files, starts: Vec::new(), mixture: None }]))
    }

    /// What each file of which a part is used gives to it. What is left out is no record of this dataset.
    pub fn selected(&self) -> impl Iterator<Item = &Selected> {
        self.files.iter().filter_map(|file| file.chosen.as_ref().map(|chosen| &chosen.selected))
    }

    /// The file of a record, and the record's place in it.
    fn locate(&self, index: u64) -> Result<(&SourceFile, u64), DataError> {
        let file = self.starts.partition_point(|&start| start <= index);
        match file.checked_sub(1).and_then(|f| self.file_and_place(f, index - self.starts[f])) {
            Some(found) => Ok(found),
            None => Err(DataError::NoRecord { index, total: self.len() }),
        }
    }

    fn file_and_place(&self, file: usize, position: u64) -> Option<(&SourceFile, u64)> {
        let file = self.files.get(file)?;
        let place = match &file.chosen {
            None => position,
            Some(chosen) => *chosen.places.get(position as usize)?,
        };
        Some((file, place))
    }

    /// Reads and validates one record.
    ///
    /// # Errors
    /// What is wrong with the record, with file and line.
    pub fn get(&self, index: u64) -> Result<Sample, DataError> {
        let (file, place) = self.locate(index)?;
        if let Rows::Tar(records) = &file.rows {
            return records.sample(place, index, file.format, [&file.media_dir, &file.audio_dir]);
        }
        let origin = Origin { file: file.path.clone(), line: file.rows.line_of(place), index };
        let (bytes, key) = (file.rows.read(place, &origin)?, file.rows.key(place));
        match std::str::from_utf8(&bytes) {
            Ok(text) => formats::parse(text, key, file.format, &origin, [&file.media_dir, &file.audio_dir]),
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

    /// The record's id; its position as text when it has none or cannot be read.
    pub fn id(&self, index: u64) -> String {
        let Ok((file, place)) = self.locate(index) else { return index.to_string() };
        if let Rows::Tar(records) = &file.rows {
            return records.id(place, index);
        }
        match file.rows.read(place, &Origin::default()) {
            Ok(bytes) => {
                let value = serde_json::from_str(&String::from_utf8_lossy(&bytes));
                formats::id_of(&value.unwrap_or(serde_json::Value::Null), file.rows.key(place), index)
            }
            Err(_) => index.to_string(),
        }
    }
}

impl SourceFile {
    /// Opens a file of records and tells their format if that was not given.
    fn open(path: &Path, kind: Kind, format: Format, media_dir: Option<&Path>) -> Result<Self, DataError> {
        let rows = Rows::open(path, kind)?;
        let format = if format == Format::Auto { detect(path, &rows)? } else { format };
        let own_dir = path.parent().unwrap_or(Path::new("."));
        let media_dir = media_dir.unwrap_or(own_dir).to_path_buf();
        let (path, audio_dir) = (path.to_path_buf(), media_dir.clone());
        Ok(Self { path, media_dir, audio_dir, format, rows, chosen: None, weight: 1.0 })
    }
}

/// Opens the records that a path names, as one dataset: a `.json` (list, or object whose values are records; `//`
/// comments), `.jsonl` or WebDataset `.tar` file, or a table (`.csv` or `.tsv`, whose header names the fields); a folder of
/// such files; or a pattern for them, with `*`, `?`, `[a-z]`, `{000..011}` and `{a,b}`. Several files stand in the order of
/// their names, or of the braces; all are of one kind and one format. Relative media paths are taken from `media_dir`, or
/// from each file's own folder.
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
    Ok(Dataset::concat(vec![Dataset { files, starts: Vec::new(), mixture: None }]))
}

/// The format of the first record that can be read and has a known key.
fn detect(path: &Path, rows: &Rows) -> Result<Format, DataError> {
    let (mut seen, mut refused) = (None, None);
    for i in 0..rows.len().min(DETECT_RECORDS) {
        let bytes = match rows.read(i, &Origin::default()) {
            Err(error) if error.is_one_record() => {
                refused = refused.or(Some(error));
                continue;
            }
            read => read?,
        };
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(&bytes) else { continue };
        if let Some(format) = formats::detect(&value) {
            return Ok(format);
        }
        seen = seen.or_else(|| value.as_object().map(|o| o.keys().take(8).cloned().collect::<Vec<_>>().join("`, `")));
    }
    let what = match (seen, refused) {
        (Some(keys), _) => {
            format!("the format cannot be told: expected records with {}, found `{keys}`", formats::KNOWN_KEYS)
        }
        (None, Some(refused)) if matches!(rows, Rows::Tar(_)) => return Err(refused),
        (None, _) => "the format cannot be told: none of the first records is a readable object".to_owned(),
    };
    Err(dataset_error(path, "unknown_format", what, "name the format with `data.train.format`, or convert the file"))
}
