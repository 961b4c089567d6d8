//! Owns the captions of a folder of videos: tables and JSON in the shapes that people have, and the file that a caption names.
//! Refuses to write anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use crate::failure::CliError;

/// Columns and keys that may name the file, the first found counts.
const FILE_KEYS: [&str; 8] = ["video", "path", "file", "filename", "file_name", "video_path", "clip", "name"];
/// Columns and keys that may hold the caption.
const CAPTION_KEYS: [&str; 8] = ["caption", "text", "description", "label", "answer", "title", "sentence", "value"];

/// One caption with its video's name and where it stands.
#[derive(Debug, PartialEq)]
pub(super) struct Pair {
    pub(super) file: String,
    pub(super) caption: String,
    pub(super) place: String,
}

/// The one captions file of a folder.
pub(super) fn find_captions(dir: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| CliError::io("list", dir, &e))? {
        let path = entry.map_err(|e| CliError::io("list", dir, &e))?.path();
        let end = path.extension().map(|end| end.to_string_lossy().to_lowercase()).unwrap_or_default();
        if path.is_file() && ["csv", "tsv", "json", "jsonl"].contains(&end.as_str()) {
            found.push(path);
        }
    }
    found.sort();
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(CliError::usage(
            format!("`{}` holds no captions file (.csv, .tsv, .json or .jsonl)", dir.display()),
            "write one with the columns `video,caption`, or name it with `--captions FILE`",
        )
        .into()),
        many => {
            let names: Vec<String> = many.iter().map(|path| format!("`{}`", path.display())).collect();
            let message = format!("several files may hold the captions: {}", names.join(", "));
            Err(CliError::usage(message, "name one with `--captions FILE`").into())
        }
    }
}

pub(super) fn read_captions(path: &Path) -> Result<Vec<Pair>> {
    let end = path.extension().map(|end| end.to_string_lossy().to_lowercase()).unwrap_or_default();
    let text = std::fs::read_to_string(path).map_err(|e| CliError::io("read", path, &e))?;
    let pairs = match end.as_str() {
        "json" => from_json(path, &hub::json::parse_json_with_comments(&text, path)?)?,
        "jsonl" => {
            let mut pairs = Vec::new();
            for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                let place = format!("line {}", number + 1);
                let value: Value = serde_json::from_str(line).map_err(|e| {
                    CliError::data(format!("`{}`, {place}: {e}", path.display()), "one JSON object a line")
                })?;
                pairs.push(pair_of(path, &value, place)?);
            }
            pairs
        }
        "tsv" => from_table(path, &text, '\t')?,
        _ => from_table(path, &text, ',')?,
    };
    if pairs.is_empty() {
        return Err(CliError::data(format!("`{}` holds no caption", path.display()), "add lines to it").into());
    }
    Ok(pairs)
}

/// A list of objects, or an object from file names to captions (or to objects with a caption).
fn from_json(path: &Path, value: &Value) -> Result<Vec<Pair>> {
    match value {
        Value::Array(items) => {
            items.iter().enumerate().map(|(number, item)| pair_of(path, item, format!("record {number}"))).collect()
        }
        Value::Object(map) => map
            .iter()
            .map(|(file, value)| {
                let place = format!("key `{file}`");
                let caption = match value {
                    Value::String(text) => Some(text.clone()),
                    Value::Object(_) => text_at(value, &CAPTION_KEYS),
                    _ => None,
                };
                let caption = caption.ok_or_else(|| no_key(path, &place, "caption", &CAPTION_KEYS))?;
                Ok(Pair { file: file.clone(), caption, place })
            })
            .collect(),
        _ => Err(CliError::data(
            format!("`{}` is neither a list nor an object", path.display()),
            "write a list of {\"video\", \"caption\"}",
        )
        .into()),
    }
}

fn pair_of(path: &Path, value: &Value, place: String) -> Result<Pair> {
    let file = text_at(value, &FILE_KEYS).ok_or_else(|| no_key(path, &place, "video", &FILE_KEYS))?;
    let caption = text_at(value, &CAPTION_KEYS).ok_or_else(|| no_key(path, &place, "caption", &CAPTION_KEYS))?;
    Ok(Pair { file, caption, place })
}

fn text_at(value: &Value, keys: &[&str]) -> Option<String> {
    keys.iter().find_map(|key| value.get(key)?.as_str()).map(str::to_owned)
}

fn no_key(path: &Path, place: &str, what: &str, keys: &[&str]) -> anyhow::Error {
    let message = format!("`{}`, {place}: no {what}; expected one of the keys `{}`", path.display(), keys.join("`, `"));
    CliError::data(message, "rename the key or column").into()
}

/// Lines of `file<separator>caption`, with a header line when its names are known.
fn from_table(path: &Path, text: &str, separator: char) -> Result<Vec<Pair>> {
    let rows = parse_table(text.trim_start_matches('\u{feff}'), separator).map_err(|line| {
        CliError::data(
            format!("`{}`, line {line}: a quote is never closed", path.display()),
            "close it, or double it inside quotes",
        )
    })?;
    let Some((_, first)) = rows.first() else { return Ok(Vec::new()) };
    let names: Vec<String> = first.iter().map(|name| name.trim().to_lowercase()).collect();
    let column = |keys: &[&str]| keys.iter().find_map(|key| names.iter().position(|name| name == key));
    let (file, caption, skip) = match (column(&FILE_KEYS), column(&CAPTION_KEYS)) {
        (Some(file), Some(caption)) => (file, caption, 1),
        _ if first.len() == 2 => (0, 1, 0),
        _ => return Err(no_key(path, "line 1", "video and caption column", &FILE_KEYS)),
    };
    rows.iter()
        .skip(skip)
        .map(|(line, cells)| {
            let cell = |column: usize| cells.get(column).map(|cell| cell.trim().to_owned());
            match (cell(file), cell(caption)) {
                (Some(file), Some(caption)) => Ok(Pair { file, caption, place: format!("line {line}") }),
                _ => {
                    let message =
                        format!("`{}`, line {line}: {} columns, expected {}", path.display(), cells.len(), first.len());
                    Err(CliError::data(message, "quote captions that hold the separator").into())
                }
            }
        })
        .collect()
}

/// Rows of cells with the line each begins on; quotes as in RFC 4180. The error is the line of an open quote.
fn parse_table(text: &str, separator: char) -> Result<Vec<(usize, Vec<String>)>, usize> {
    let mut rows = Vec::new();
    let (mut cells, mut cell) = (Vec::new(), String::new());
    let (mut line, mut begins, mut quote) = (1, 1, None);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        match c {
            '"' if quote.is_some() && chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            '"' if quote.is_some() => quote = None,
            '"' if cell.trim().is_empty() => {
                cell.clear();
                quote = Some(line);
            }
            _ if quote.is_some() => cell.push(c),
            '\r' if chars.peek() == Some(&'\n') => {}
            '\n' => {
                cells.push(std::mem::take(&mut cell));
                let row = std::mem::take(&mut cells);
                if row.iter().any(|cell| !cell.trim().is_empty()) {
                    rows.push((begins, row));
                }
                begins = line;
            }
            c if c == separator => cells.push(std::mem::take(&mut cell)),
            c => cell.push(c),
        }
    }
    if let Some(line) = quote {
        return Err(line);
    }
    cells.push(cell);
    if cells.iter().any(|cell| !cell.trim().is_empty()) {
        rows.push((begins, cells));
    }
    Ok(rows)
}

/// The name of a caption's video inside the folder: as it stands, or the one file whose name without extension it is.
pub(super) fn find_video(dir: &Path, name: &str) -> Option<String> {
    if dir.join(name).exists() {
        return Some(name.to_owned());
    }
    let mut by_stem: BTreeMap<String, String> = BTreeMap::new();
    for entry in std::fs::read_dir(dir).ok()? {
        let path = entry.ok()?.path();
        let (Some(stem), Some(file)) = (path.file_stem(), path.file_name()) else { continue };
        if stem.to_string_lossy() == name && media::is_video(&path) {
            by_stem.insert(stem.to_string_lossy().into_owned(), file.to_string_lossy().into_owned());
        }
    }
    by_stem.remove(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Vec<(String, String)> {
        let pairs = from_table(Path::new("c.csv"), text, ',').unwrap();
        pairs.into_iter().map(|pair| (pair.file, pair.caption)).collect()
    }

    #[test]
    fn tables_are_read_with_and_without_a_header() {
        let expected =
            [("a.mp4".to_owned(), "a dog, running".to_owned()), ("b.mp4".to_owned(), "x \"y\"\nz".to_owned())];
        assert_eq!(table("video,caption\na.mp4,\"a dog, running\"\r\nb.mp4,\"x \"\"y\"\"\nz\"\n"), expected);
        assert_eq!(table("a.mp4, \"a dog, running\"\n\nb.mp4,\"x \"\"y\"\"\nz\""), expected);
        assert_eq!(table("id,Caption,Path\n1,hi,c.mp4\n"), [("c.mp4".to_owned(), "hi".to_owned())]);
        assert_eq!(table(""), []);
        let fails = |text: &str| from_table(Path::new("c.csv"), text, ',').unwrap_err().to_string();
        assert_eq!(fails("a.mp4,\"open\n"), "`c.csv`, line 1: a quote is never closed");
        assert_eq!(fails("video,caption\na.mp4\n"), "`c.csv`, line 2: 1 columns, expected 2");
        assert!(fails("a,b,c\n").contains("no video and caption column"));
    }

    #[test]
    fn json_captions_are_read_in_both_shapes() {
        let read = |text: &str| from_json(Path::new("c.json"), &serde_json::from_str(text).unwrap());
        let pairs =
            read(r#"[{"video": "a.mp4", "caption": "x"}, {"file_name": "b.mp4", "text": "y", "id": 3}]"#).unwrap();
        assert_eq!(pairs.iter().map(|p| (&*p.file, &*p.caption)).collect::<Vec<_>>(), [("a.mp4", "x"), ("b.mp4", "y")]);
        let pairs = read(r#"{"a.mp4": "x", "b": {"caption": "y"}}"#).unwrap();
        assert_eq!(pairs.iter().map(|p| (&*p.file, &*p.caption)).collect::<Vec<_>>(), [("a.mp4", "x"), ("b", "y")]);
        let error = read(r#"[{"video": "a.mp4"}]"#).unwrap_err().to_string();
        assert!(error.starts_with("`c.json`, record 0: no caption; expected one of"), "{error}");
    }
}
