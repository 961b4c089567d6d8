//! JSON files read with errors that name file, line and column, and with `//` and `/* */` comments where asked. Owns no
//! schema.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{HubError, Result};

/// Reads strict JSON (a leading byte order mark is accepted).
///
/// # Errors
/// [`HubError::Io`], or [`HubError::Json`] with line and column.
pub fn read_json<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    let text = read_text(path)?;
    parse(without_mark(&text), path)
}

/// Reads JSON in which `//` and `/* */` comments may stand anywhere outside strings.
///
/// # Errors
/// [`HubError::Io`], or [`HubError::Json`] with the line and column of the file as it stands, comments included.
pub fn read_json_with_comments<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    let text = read_text(path)?;
    parse_json_with_comments(&text, path)
}

/// As [`read_json_with_comments`] for text that is already here; `path` only names it in errors.
///
/// # Errors
/// [`HubError::Json`].
pub fn parse_json_with_comments<T: DeserializeOwned>(text: &str, path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    let text = strip_comments(without_mark(text)).map_err(|at| HubError::Json {
        path: path.to_path_buf(),
        line: at.line,
        column: at.column,
        message: "the comment that starts here is never closed".to_owned(),
    })?;
    parse(&text, path)
}

/// A place in a text: line and byte column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in bytes, from 1.
    pub column: usize,
}

/// Replaces comments by spaces, so that every other byte keeps its line and column. Text without comments is returned as it
/// is.
///
/// # Errors
/// The place of a `/*` that is never closed.
pub fn strip_comments(text: &str) -> Result<Cow<'_, str>, Place> {
    if !text.contains("//") && !text.contains("/*") {
        return Ok(Cow::Borrowed(text));
    }
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                let end = bytes[at..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |n| at + n);
                blank(&mut out[at..end]);
                at = end;
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let Some(length) = bytes[at + 2..].windows(2).position(|pair| pair == b"*/") else {
                    return Err(place(bytes, at));
                };
                let end = at + 2 + length + 2;
                blank(&mut out[at..end]);
                at = end;
            }
            _ => at += 1,
        }
    }
    // Whole characters were replaced by ASCII spaces, so the text is still UTF-8.
    Ok(Cow::Owned(String::from_utf8_lossy(&out).into_owned()))
}

/// Index behind the string that starts at `start`; an unclosed one runs to the end and is the JSON reader's to report.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().filter(|b| !matches!(b, b'\n' | b'\r')) {
        *byte = b' ';
    }
}

fn place(bytes: &[u8], at: usize) -> Place {
    let before = &bytes[..at];
    let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
    let column = at - before.iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1) + 1;
    Place { line, column }
}

fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|e| HubError::io("read", path, e))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let Place { line, column } = place(e.as_bytes(), at);
        HubError::Json { path: path.to_path_buf(), line, column, message: "the text is not UTF-8".to_owned() }
    })
}

fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    serde_json::from_str(text).map_err(|e| HubError::Json {
        path: path.to_path_buf(),
        line: e.line(),
        column: e.column(),
        message: message_of(&e),
    })
}

/// The reader's message without its own `at line .. column ..`.
fn message_of(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(text: &str, expected: Value) {
        let found: Value = parse_json_with_comments(text, "x.json").unwrap();
        assert_eq!(found, expected);
    }

    fn fails(text: &str, line: usize, column: usize, part: &str) {
        match parse_json_with_comments::<Value>(text, "x.json") {
            Err(HubError::Json { line: l, column: c, message, .. }) => {
                assert_eq!((l, c), (line, column), "{message}");
                assert!(message.contains(part), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn comments_vanish_outside_strings() {
        check("{\"a\": 1 // one\n, /* two\n lines */ \"b\": [2]}", json!({"a": 1, "b": [2]}));
        check("// ä\n[1] // end", json!([1]));
        check("[1]/**/", json!([1]));
        check("/*/ still inside */ [1]", json!([1]));
    }

    #[test]
    fn strings_keep_their_slashes() {
        check(
            r#"{"u": "https://x/*y*/", "q": "\"// no", "b": "\\"} // c"#,
            json!({"u": "https://x/*y*/", "q": "\"// no", "b": "\\"}),
        );
    }

    #[test]
    fn errors_keep_the_place() {
        fails("// one\n{\"a\": 1 /* x */ oops}", 2, 17, "expected");
        fails("[1,\n  /* open", 2, 3, "never closed");
        fails("[\"// open", 1, 9, "EOF");
    }

    #[test]
    fn a_byte_order_mark_is_no_error() {
        check("\u{feff}[1]", json!([1]));
    }
}
