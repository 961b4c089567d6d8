//! Owns the byte-offset index of `.json` and `.jsonl` files: where each record starts and ends, found in one buffered
//! pass that keeps nothing of the content. It refuses to interpret records.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// Where one record lies in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u32,
    /// Line on which it starts, counted from 1.
    pub line: u32,
}

impl Entry {
    /// What lies from `start` up to `end`, beginning on `line`.
    pub fn new(path: &Path, start: u64, end: u64, line: u64) -> Result<Self, DataError> {
        let len = u32::try_from(end - start).map_err(|_| {
            let what = "a record is larger than 4 GB";
            dataset_error(path, "bad_json", what, "store media as files, not in the record")
        })?;
        Ok(Self { start, len, line: u32::try_from(line).unwrap_or(u32::MAX) })
    }
}

/// Where the records of a file lie.
#[derive(Debug)]
pub(crate) struct JsonIndex {
    path: PathBuf,
    entries: Vec<Entry>,
    /// One for each entry when the top level is an object; empty otherwise.
    keys: Vec<String>,
    fingerprint: Fingerprint,
}

/// What tells one content of a file from another: its length and a hash that no library's next release changes. It is
/// made on the way through the file that finds the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Length in bytes.
    pub num_bytes: u64,
    /// FNV-1a, 64 bits.
    pub hash: u64,
}

impl Fingerprint {
    pub(crate) const EMPTY: Fingerprint = Fingerprint { num_bytes: 0, hash: 0xcbf2_9ce4_8422_2325 };

    /// That of a whole file at hand.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut print = Self::EMPTY;
        print.add(bytes);
        print
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.num_bytes += bytes.len() as u64;
        self.hash = bytes.iter().fold(self.hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    }
}

/// A reader that keeps a [`Fingerprint`] of what went through it.
pub(crate) struct Fingerprinted<'a> {
    pub file: File,
    pub fingerprint: &'a mut Fingerprint,
}

impl Read for Fingerprinted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.fingerprint.add(&buffer[..count]);
        Ok(count)
    }
}

/// Bytes read from a file at once.
pub(crate) const CHUNK: usize = 1 << 18;

/// Keys that tell a single record from an object of records.
const RECORD_KEYS: [&str; 3] = ["conversations", "conversation", "messages"];

impl JsonIndex {
    /// Indexes a file: one record a line when its name ends in `.jsonl` or `.ndjson` or when its first line is a whole
    /// object followed by another line with one; otherwise a list or object of records.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = open_file(path)?;
        let mut fingerprint = Fingerprint::EMPTY;
        let mut index = Self { path: path.to_path_buf(), entries: Vec::new(), keys: Vec::new(), fingerprint };
        let file = Fingerprinted { file, fingerprint: &mut fingerprint };
        if is_lines(path) {
            index.scan_lines(BufReader::with_capacity(CHUNK, file))?;
        } else {
            index.scan_document(file)?;
        }
        index.fingerprint = fingerprint;
        index.entries.shrink_to_fit();
        if index.entries.is_empty() {
            return Err(dataset_error(path, "empty_dataset", "the file holds no record", "check the file's content"));
        }
        Ok(index)
    }

    /// What the file held when it was opened.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Number of records.
    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The record's bytes, comments blanked out. They need not be text.
    pub fn read(&self, index: u64) -> Result<Vec<u8>, DataError> {
        let Some(entry) = self.entries.get(index as usize) else {
            return Err(DataError::NoRecord { index, total: self.len() });
        };
        let mut file = File::open(&self.path).map_err(|e| DataError::io(&self.path, e))?;
        file.seek(SeekFrom::Start(entry.start)).map_err(|e| DataError::io(&self.path, e))?;
        let mut bytes = vec![0; entry.len as usize];
        file.read_exact(&mut bytes).map_err(|_| {
            dataset_error(&self.path, "changed", "the file changed while it was used", "keep dataset files unchanged")
        })?;
        blank_comments(&mut bytes);
        Ok(bytes)
    }

    /// The record's key when the top level is an object.
    pub fn key(&self, index: u64) -> Option<&str> {
        self.keys.get(index as usize).map(String::as_str)
    }

    /// The line, counted from 1, at which the record starts.
    pub fn line_of(&self, index: u64) -> u64 {
        self.entries.get(index as usize).map_or(0, |entry| entry.line.into())
    }

    fn push(&mut self, start: u64, end: u64, line: u64) -> Result<(), DataError> {
        self.entries.push(Entry::new(&self.path, start, end, line)?);
        Ok(())
    }

    /// One record a line; blank lines and lines that begin with `//` are passed over.
    fn scan_lines(&mut self, mut reader: impl BufRead) -> Result<(), DataError> {
        let (mut at, mut start, mut line) = (0u64, 0u64, 1u64);
        // The first two bytes that are not blank tell a comment; `head` counts how many were seen.
        let (mut head, mut first, mut comment) = (0u8, 0u8, false);
        loop {
            let chunk = reader.fill_buf().map_err(|e| DataError::io(&self.path, e))?;
            if chunk.is_empty() {
                break;
            }
            let read = chunk.len();
            let mut found = Vec::new();
            for &b in chunk {
                at += 1;
                if b == b'\n' {
                    if head > 0 && !comment {
                        found.push((start, at - 1, line));
                    }
                    (start, head, comment) = (at, 0, false);
                    line += 1;
                } else if head < 2 && !(head == 0 && (b.is_ascii_whitespace() || is_bom_byte(b, at))) {
                    comment = comment || (head == 1 && first == b'/' && b == b'/');
                    first = b;
                    head += 1;
                } else if head == 0 && is_bom_byte(b, at) {
                    start = at;
                }
            }
            reader.consume(read);
            for (s, e, line) in found {
                self.push(s, e, line)?;
            }
        }
        if head > 0 && !comment {
            self.push(start, at, line)?;
        }
        Ok(())
    }

    /// A list of records, an object whose values are records, or a single record.
    fn scan_document(&mut self, reader: impl Read) -> Result<(), DataError> {
        let mut scan = Scanner::new(reader);
        let path = self.path.clone();
        let bad = |scan: &Scanner<_>, what: String| {
            let hint = format!("repair the JSON near line {}, column {}", scan.line, scan.column());
            dataset_error(&path, "bad_json", format!("line {}, column {}: {what}", scan.line, scan.column()), hint)
        };
        let open = scan.next_token().map_err(|e| bad(&scan, e))?;
        let (close, is_object) = match open {
            Some(b'[') => (b']', false),
            Some(b'{') => (b'}', true),
            Some(other) => {
                let what = format!("expected `[` or `{{`, found `{}`", char::from(other));
                return Err(bad(&scan, what));
            }
            None => return Ok(()),
        };
        let (document_start, document_line) = (scan.at - 1, scan.line);
        let mut is_single_record = false;
        loop {
            let Some(mut token) = scan.next_token().map_err(|e| bad(&scan, e))? else {
                let what = format!("the file ends inside the top-level {}", if is_object { "object" } else { "list" });
                return Err(bad(&scan, format!("{what}, number of whole records before: {}", self.entries.len())));
            };
            if token == close {
                break;
            }
            if token == b',' && !self.entries.is_empty() {
                token = match scan.next_token().map_err(|e| bad(&scan, e))? {
                    Some(b) if b == close => break,
                    Some(b) => b,
                    None => return Err(bad(&scan, "the file ends after a comma".into())),
                };
            } else if !self.entries.is_empty() {
                let what =
                    format!("expected `,` after record {}, found `{}`", self.entries.len() - 1, char::from(token));
                return Err(bad(&scan, what));
            }
            if is_object {
                if token != b'"' {
                    return Err(bad(&scan, format!("expected a key in quotes, found `{}`", char::from(token))));
                }
                let name = scan.key().map_err(|e| bad(&scan, e))?;
                is_single_record |= RECORD_KEYS.contains(&name.as_str());
                match scan.next_token().map_err(|e| bad(&scan, e))? {
                    Some(b':') => {}
                    _ => return Err(bad(&scan, format!("expected `:` after the key `{name}`"))),
                }
                self.keys.push(name);
                token = match scan.next_token().map_err(|e| bad(&scan, e))? {
                    Some(b) => b,
                    None => return Err(bad(&scan, "the file ends after a key".into())),
                };
            }
            let (start, line) = (scan.at - 1, scan.line);
            scan.skip_value(token).map_err(|e| bad(&scan, format!("in record {}: {e}", self.entries.len())))?;
            self.push(start, scan.at, line)?;
        }
        let end = scan.at;
        if let Some(extra) = scan.next_token().map_err(|e| bad(&scan, e))? {
            let what = format!("expected the end of the file, found `{}`", char::from(extra));
            let hint = "one record a line needs a file name that ends in `.jsonl`";
            return Err(dataset_error(&path, "bad_json", format!("line {}: {what}", scan.line), hint));
        }
        if is_single_record {
            self.entries.clear();
            self.keys.clear();
            self.push(document_start, end, document_line)?;
        }
        Ok(())
    }
}

/// Opens a dataset file, which must be one.
pub(crate) fn open_file(path: &Path) -> Result<File, DataError> {
    // Looked at before it is opened: opening a pipe would wait for whoever writes to it.
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => dataset_error(path, "missing_file", "no such file", "check `data.train.path`"),
        _ => DataError::io(path, e),
    })?;
    if meta.is_dir() {
        let hint = "give the `.json`, `.jsonl`, `.csv` or `.tsv` file";
        return Err(dataset_error(path, "not_a_file", "this is a folder", hint));
    }
    if !meta.is_file() {
        let hint = "records are read in any order and more than once: write them to a file first";
        return Err(dataset_error(path, "not_a_file", "this is not a regular file", hint));
    }
    File::open(path).map_err(|e| DataError::io(path, e))
}

fn is_lines(path: &Path) -> bool {
    path.extension()
        .and_then(|e| e.to_str())
        .is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("ndjson"))
}

/// A byte of the UTF-8 mark that some editors put at the start of a file.
fn is_bom_byte(byte: u8, at: u64) -> bool {
    matches!((at, byte), (1, 0xEF) | (2, 0xBB) | (3, 0xBF))
}

pub(crate) fn dataset_error(
    path: &Path,
    reason: &'static str,
    what: impl Into<String>,
    hint: impl Into<String>,
) -> DataError {
    DataError::Dataset { path: path.to_path_buf(), reason, what: what.into(), hint: hint.into() }
}

/// Overwrites `//` and `/* */` comments outside strings with spaces, so that offsets stay true.
fn blank_comments(bytes: &mut [u8]) {
    let (mut i, mut in_string) = (0, false);
    while i < bytes.len() {
        match (bytes[i], bytes.get(i + 1)) {
            (b'\\', _) if in_string => i += 1,
            (b'"', _) => in_string = !in_string,
            (b'/', Some(b'/')) if !in_string => {
                while i < bytes.len() && bytes[i] != b'\n' {
                    bytes[i] = b' ';
                    i += 1;
                }
            }
            (b'/', Some(b'*')) if !in_string => {
                while i < bytes.len() && !(bytes[i] == b'*' && bytes.get(i + 1) == Some(&b'/')) {
                    if bytes[i] != b'\n' {
                        bytes[i] = b' ';
                    }
                    i += 1;
                }
                for b in bytes.iter_mut().skip(i).take(2) {
                    *b = b' ';
                }
            }
            _ => {}
        }
        i += 1;
    }
}

/// Finds where JSON values end, without building them.
struct Scanner<R> {
    reader: R,
    chunk: Vec<u8>,
    /// First byte of the chunk that was not read yet.
    next: usize,
    /// Bytes read so far.
    at: u64,
    line: u64,
    /// Value of `at` at the start of the line.
    line_start: u64,
}

impl<R: Read> Scanner<R> {
    fn new(reader: R) -> Self {
        Self { reader, chunk: Vec::new(), next: 0, at: 0, line: 1, line_start: 0 }
    }

    fn column(&self) -> u64 {
        self.at - self.line_start
    }

    /// The next byte, left unread.
    fn peek(&mut self) -> Result<Option<u8>, String> {
        if self.next == self.chunk.len() {
            self.chunk.resize(CHUNK, 0);
            let length = self.reader.read(&mut self.chunk).map_err(|e| e.to_string())?;
            self.chunk.truncate(length);
            self.next = 0;
        }
        Ok(self.chunk.get(self.next).copied())
    }

    fn next_byte(&mut self) -> Result<Option<u8>, String> {
        let byte = self.peek()?;
        if let Some(b) = byte {
            self.next += 1;
            self.at += 1;
            if b == b'\n' {
                (self.line, self.line_start) = (self.line + 1, self.at);
            }
        }
        Ok(byte)
    }

    /// The next byte that is neither white space nor part of a comment.
    fn next_token(&mut self) -> Result<Option<u8>, String> {
        while let Some(b) = self.next_byte()? {
            match b {
                b' ' | b'\t' | b'\n' | b'\r' => {}
                _ if is_bom_byte(b, self.at) => {}
                b'/' => self.skip_comment()?,
                _ => return Ok(Some(b)),
            }
        }
        Ok(None)
    }

    fn skip_comment(&mut self) -> Result<(), String> {
        match self.next_byte()? {
            Some(b'/') => {
                while let Some(b) = self.next_byte()? {
                    if b == b'\n' {
                        break;
                    }
                }
                Ok(())
            }
            Some(b'*') => {
                let mut star = false;
                while let Some(b) = self.next_byte()? {
                    if star && b == b'/' {
                        return Ok(());
                    }
                    star = b == b'*';
                }
                Err("a comment is not closed".into())
            }
            _ => Err("found `/` outside a string".into()),
        }
    }

    /// Skips a string whose opening quote was read.
    fn skip_string(&mut self, mut keep: impl FnMut(&[u8])) -> Result<(), String> {
        let line = self.line;
        while self.peek()?.is_some() {
            let rest = &self.chunk[self.next..];
            let plain = rest.iter().position(|b| matches!(b, b'"' | b'\\' | b'\n')).unwrap_or(rest.len());
            keep(&rest[..plain]);
            self.next += plain;
            self.at += plain as u64;
            if self.next == self.chunk.len() {
                continue;
            }
            match self.next_byte()? {
                Some(b'"') => return Ok(()),
                Some(b'\\') => {
                    if let Some(escaped) = self.next_byte()? {
                        keep(&[b'\\', escaped]);
                    }
                }
                _ => return Err(format!("the string that starts on line {line} is not closed on its line")),
            }
        }
        Err(format!("the string that starts on line {line} is not closed"))
    }

    /// The key whose opening quote was read.
    fn key(&mut self) -> Result<String, String> {
        let mut raw = vec![b'"'];
        self.skip_string(|bytes| raw.extend_from_slice(bytes))?;
        raw.push(b'"');
        serde_json::from_slice(&raw).map_err(|e| e.to_string())
    }

    /// Skips the value whose first byte was read; afterwards `at` is the value's end.
    fn skip_value(&mut self, first: u8) -> Result<(), String> {
        let mut open: Vec<u8> = Vec::new();
        let mut byte = first;
        loop {
            match byte {
                b'"' => self.skip_string(|_| {})?,
                b'{' => open.push(b'}'),
                b'[' => open.push(b']'),
                b'}' | b']' => match open.pop() {
                    Some(wanted) if wanted == byte => {}
                    Some(wanted) => {
                        return Err(format!("expected `{}`, found `{}`", char::from(wanted), char::from(byte)));
                    }
                    None => return Err(format!("found `{}` where a value was expected", char::from(byte))),
                },
                b',' | b':' if open.is_empty() => return Err("a value is missing".into()),
                b',' | b':' => {}
                _ => {
                    // A number or a word ends before the next separator, which is left unread.
                    while let Some(b) = self.peek()? {
                        if matches!(b, b',' | b']' | b'}' | b':' | b'"' | b'/') || b.is_ascii_whitespace() {
                            break;
                        }
                        self.next_byte()?;
                    }
                }
            }
            if open.is_empty() {
                return Ok(());
            }
            byte = self.next_token()?.ok_or("the file ends inside a record")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_costs_sixteen_bytes_a_record() {
        const NUM_RECORDS: usize = 300_000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.jsonl");
        let line = format!("{{\"messages\": \"{}\"}}\n", "x".repeat(80));
        std::fs::write(&path, line.repeat(NUM_RECORDS)).unwrap();
        let index = JsonIndex::open(&path).unwrap();
        assert_eq!(index.len(), NUM_RECORDS as u64);
        assert_eq!(index.entries.capacity() * size_of::<Entry>() + index.keys.capacity(), NUM_RECORDS * 16);
        assert_eq!(index.read(299_999).unwrap(), line.trim_end().as_bytes());
        assert_eq!(index.line_of(299_999), 300_000);
    }
}
