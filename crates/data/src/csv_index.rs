//! Owns `.csv` and `.tsv` files (RFC 4180, with a header line): where each row lies, found in one buffered pass that keeps
//! nothing of the content, and a row as the JSON object that the formats read. It refuses to interpret records.
//!
//! A column becomes the field of its name, an empty cell no field. Columns of numbers and of lists are those of the
//! formats; every other cell is text.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use serde_json::{Number, Value};

use crate::error::{DataError, RecordError};
use crate::formats::Object;
use crate::json_index::{CHUNK, Entry, Fingerprint, Fingerprinted, dataset_error, open_file};
use crate::record::Origin;

/// Columns whose cells are numbers.
const NUMBERS: [&str; 7] = ["nframes", "num_frames", "fps", "min_frames", "max_frames", "video_start", "video_end"];

/// Columns whose cells are JSON where they begin with a bracket.
const LISTS: [&str; 12] = [
    "conversations",
    "conversation",
    "messages",
    "options",
    "choices",
    "candidates",
    "image",
    "images",
    "video",
    "videos",
    "audio",
    "audios",
];

/// Where the rows of a file lie.
#[derive(Debug)]
pub(crate) struct CsvIndex {
    path: PathBuf,
    delimiter: u8,
    columns: Vec<String>,
    entries: Vec<Entry>,
    fingerprint: Fingerprint,
}

/// Whether the name of a file is that of a table.
pub(crate) fn is_table(path: &Path) -> bool {
    delimiter_of(path).is_some()
}

fn delimiter_of(path: &Path) -> Option<u8> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "csv" => Some(b','),
        "tsv" => Some(b'\t'),
        _ => None,
    }
}

fn reader(delimiter: u8) -> Reader {
    ReaderBuilder::new().delimiter(delimiter).build()
}

impl CsvIndex {
    /// Indexes a file whose first row names the columns.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = open_file(path)?;
        let delimiter = delimiter_of(path).unwrap_or(b',');
        let mut fingerprint = Fingerprint::EMPTY;
        let file = BufReader::with_capacity(CHUNK, Fingerprinted { file, fingerprint: &mut fingerprint });
        let mut entries = scan(path, delimiter, file)?;
        if entries.is_empty() {
            return Err(dataset_error(path, "empty_dataset", "the file is empty", "check the file's content"));
        }
        let header = entries.remove(0);
        let mut index = Self { path: path.to_path_buf(), delimiter, columns: Vec::new(), entries, fingerprint };
        index.columns = index.header(&header)?;
        index.check_end()?;
        if index.entries.is_empty() {
            let what = format!("the file holds no row below its header `{}`", index.columns.join("`, `"));
            return Err(dataset_error(path, "empty_dataset", what, "check the file's content"));
        }
        Ok(index)
    }

    /// What the file held when it was opened.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Number of rows below the header.
    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The line, counted from 1, at which the row starts.
    pub fn line_of(&self, index: u64) -> u64 {
        self.entries.get(index as usize).map_or(0, |entry| entry.line.into())
    }

    /// The names of the columns; the first one is checked not to be a second one's.
    fn header(&self, entry: &Entry) -> Result<Vec<String>, DataError> {
        let refuse = |what: String, hint: &str| dataset_error(&self.path, "bad_csv", what, hint);
        let bytes = self.bytes(entry)?;
        let hint = "the first line must name the columns";
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| refuse("the header is not UTF-8".into(), "save the file in UTF-8"))?;
        let cells = cells(text.trim_start_matches('\u{feff}'), self.delimiter)
            .map_err(|(_, what)| refuse(format!("in the header, {what}"), hint))?;
        let columns: Vec<String> = cells.iter().map(|cell| cell.trim().to_owned()).collect();
        for (place, name) in columns.iter().enumerate() {
            // Tables that pandas writes begin with a column of row numbers that has no name.
            if name.is_empty() && place > 0 {
                return Err(refuse(format!("column {} has no name", place + 1), hint));
            }
            if let Some(first) = columns[..place].iter().position(|other| other == name) {
                let what = format!("columns {} and {} have the same name `{name}`", first + 1, place + 1);
                return Err(refuse(what, "rename one of them"));
            }
        }
        Ok(columns)
    }

    /// Refuses a quote that is never closed: all rows below it would be the one cell.
    fn check_end(&self) -> Result<(), DataError> {
        let Some(last) = self.entries.last() else { return Ok(()) };
        let bytes = self.bytes(last)?;
        match check_quotes(&bytes, self.delimiter) {
            Err((lines, Fault::NotClosed)) => {
                let line = u64::from(last.line) + lines;
                let what = format!(
                    "line {line}: {}, number of whole rows before: {}",
                    Fault::NotClosed.text(),
                    self.len() - 1
                );
                Err(dataset_error(
                    &self.path,
                    "bad_csv",
                    what,
                    format!("repair the row that starts on line {}", last.line),
                ))
            }
            _ => Ok(()),
        }
    }

    fn bytes(&self, entry: &Entry) -> Result<Vec<u8>, DataError> {
        let mut file = File::open(&self.path).map_err(|e| DataError::io(&self.path, e))?;
        file.seek(SeekFrom::Start(entry.start)).map_err(|e| DataError::io(&self.path, e))?;
        let mut bytes = vec![0; entry.len as usize];
        file.read_exact(&mut bytes).map_err(|_| {
            dataset_error(&self.path, "changed", "the file changed while it was used", "keep dataset files unchanged")
        })?;
        Ok(bytes)
    }

    /// The row as a JSON object.
    ///
    /// # Errors
    /// The file cannot be read; a quote is not closed; more or fewer cells than columns; a cell that is not what its
    /// column holds.
    pub fn read(&self, index: u64, origin: &Origin) -> Result<Vec<u8>, DataError> {
        let Some(entry) = self.entries.get(index as usize) else {
            return Err(DataError::NoRecord { index, total: self.len() });
        };
        let bytes = self.bytes(entry)?;
        let error = |lines: u64, what: String| {
            let place = Origin { line: origin.line + lines, ..origin.clone() };
            RecordError::new("bad_csv", &place, None, what)
        };
        let text = std::str::from_utf8(&bytes).map_err(|fault| {
            let lines = bytes[..fault.valid_up_to()].iter().filter(|&&b| b == b'\n').count() as u64;
            error(lines, "the text is not UTF-8".into())
                .hint("save the file in UTF-8, or set `data.on_bad_media: skip`")
        })?;
        let cells = cells(text, self.delimiter).map_err(|(lines, what)| {
            error(lines, what)
                .hint("double the quotes inside of a quoted cell, and close it; or set `data.on_bad_media: skip`")
        })?;
        if cells.len() != self.columns.len() {
            let (expected, found) = (self.columns.len(), cells.len());
            return Err(error(0, "the row has the wrong number of cells".into())
                .expected(format!("{expected} as in the header"), found.to_string())
                .hint("put cells that hold the delimiter into quotes, or set `data.on_bad_media: skip`")
                .into());
        }
        let mut record = Object::new();
        for (name, cell) in self.columns.iter().zip(cells) {
            if name.is_empty() || cell.is_empty() {
                continue;
            }
            let value = value_of(name, cell).map_err(|(expected, cell)| {
                let found = if cell.chars().count() > 40 { "a longer text".into() } else { format!("`{cell}`") };
                error(0, format!("column `{name}` has a cell that cannot be read"))
                    .expected(expected, found)
                    .hint("repair the row, or set `data.on_bad_media: skip`")
            })?;
            record.insert(name.clone(), value);
        }
        serde_json::to_vec(&record).map_err(|e| DataError::Fault { what: format!("a row cannot be written: {e}") })
    }
}

/// Where the rows lie, the header among them; blank lines are passed over.
fn scan(path: &Path, delimiter: u8, mut file: impl BufRead) -> Result<Vec<Entry>, DataError> {
    let mut core = reader(delimiter);
    let (mut output, mut ends) = (vec![0; CHUNK], vec![0; 1024]);
    let mut entries = Vec::new();
    let (mut at, mut line) = (0u64, 1u64);
    // Where the present row starts, once its first byte was met.
    let mut start: Option<(u64, u64)> = None;
    loop {
        let chunk = file.fill_buf().map_err(|e| DataError::io(path, e))?;
        let blank = if start.is_none() { chunk.iter().take_while(|b| matches!(b, b'\n' | b'\r')).count() } else { 0 };
        if blank > 0 {
            line += newlines(&chunk[..blank]);
            at += blank as u64;
            file.consume(blank);
            continue;
        }
        if chunk.is_empty() && start.is_none() {
            return Ok(entries);
        }
        let (first, first_line) = *start.get_or_insert((at, line));
        let (result, read, _, _) = core.read_record(chunk, &mut output, &mut ends);
        line += newlines(&chunk[..read]);
        at += read as u64;
        file.consume(read);
        match result {
            ReadRecordResult::Record => {
                entries.push(Entry::new(path, first, at, first_line)?);
                start = None;
            }
            ReadRecordResult::End => return Ok(entries),
            // What was copied is not needed: the row is read again when it is asked for.
            ReadRecordResult::InputEmpty | ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {}
        }
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&b| b == b'\n').count() as u64
}

/// What can be wrong with quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    NotClosed,
    TextBehind,
}

impl Fault {
    fn text(self) -> &'static str {
        match self {
            Self::NotClosed => "a quoted cell is not closed",
            Self::TextBehind => "text stands behind the quote that closes a cell",
        }
    }
}

/// The cells of one row; else what is wrong with its quotes, and how many lines below its start.
fn cells(row: &str, delimiter: u8) -> Result<Vec<String>, (u64, String)> {
    check_quotes(row.as_bytes(), delimiter).map_err(|(lines, fault)| (lines, fault.text().to_owned()))?;
    let mut core = reader(delimiter);
    let (mut output, mut ends) = (vec![0; row.len() + 1], vec![0; row.len() + 1]);
    let (mut read, mut written, mut num_ends) = (0, 0, 0);
    loop {
        let (result, more_read, more_written, more_ends) =
            core.read_record(&row.as_bytes()[read..], &mut output[written..], &mut ends[num_ends..]);
        (read, written, num_ends) = (read + more_read, written + more_written, num_ends + more_ends);
        if matches!(result, ReadRecordResult::Record | ReadRecordResult::End) {
            break;
        }
    }
    let mut start = 0;
    let cell = |end: &usize| {
        let bytes = output.get(start..*end).unwrap_or_default().to_vec();
        start = *end;
        String::from_utf8(bytes).map_err(|_| (0, "a cell is not UTF-8".to_owned()))
    };
    ends[..num_ends].iter().map(cell).collect()
}

/// Refuses what other readers repair in silence: a quoted cell that swallows the rest of the file, and text behind the
/// quote that closes a cell.
fn check_quotes(bytes: &[u8], delimiter: u8) -> Result<(), (u64, Fault)> {
    let lines_to = |at: usize| newlines(&bytes[..at]);
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'"' {
            at += bytes[at..].iter().position(|b| *b == delimiter).map_or(bytes.len() - at, |n| n + 1);
            continue;
        }
        let opened = at;
        at += 1;
        loop {
            match (bytes.get(at), bytes.get(at + 1)) {
                (None, _) => return Err((lines_to(opened), Fault::NotClosed)),
                (Some(b'"'), Some(b'"')) => at += 2,
                (Some(b'"'), _) => break,
                _ => at += 1,
            }
        }
        at += 1;
        match bytes.get(at) {
            Some(b) if *b == delimiter => at += 1,
            None | Some(b'\r' | b'\n') => return Ok(()),
            Some(_) => return Err((lines_to(at), Fault::TextBehind)),
        }
    }
    Ok(())
}

/// The value of a cell; else what was expected, and the cell.
fn value_of(name: &str, cell: String) -> Result<Value, (&'static str, String)> {
    if NUMBERS.contains(&name) {
        let text = cell.trim();
        // Tables write counts as `8.0` where another row has none.
        let whole = text.strip_suffix(".0").unwrap_or(text).parse::<u64>().ok().map(Number::from);
        let number = whole.or_else(|| Number::from_f64(text.parse().ok()?));
        return number.map(Value::Number).ok_or(("a number", cell));
    }
    if LISTS.contains(&name) && cell.trim_start().starts_with(['[', '{']) {
        return serde_json::from_str(&cell)
            .map_err(|_| ("JSON with double quotes, as `json.dumps` of Python writes it", cell));
    }
    Ok(Value::String(cell))
}
