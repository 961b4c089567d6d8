//! Owns the conversion of Something-Something v2 to `llava` records: its published annotations (`id`, `template`,
//! `placeholders`), or lines `path label` with a file that says what the labels mean. It refuses to look at clips, and a
//! clip without a label.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{DataError, RecordError};
use crate::formats::{Object, kind_of};
use crate::json_index::{JsonIndex, dataset_error};
use crate::record::Origin;

/// What every record asks when nothing else is wanted.
pub const SSV2_PROMPT: &str = "Describe this video.";

/// How [`convert_ssv2`] writes records.
#[derive(Debug, Clone, Default)]
pub struct Ssv2Options {
    /// The question; [`SSV2_PROMPT`] when not given.
    pub prompt: Option<String>,
    /// Ending of the clips' names in place of their own, such as `mp4` after a conversion.
    pub suffix: Option<String>,
}

/// Reads annotations (`.json`: the published list; otherwise lines `path label`) and gives each clip's record to `write`.
/// Labels are needed for lines: `{"0": "Holding something", ..}` or `{"Holding something": "0", ..}`.
/// Gives the number of records.
///
/// # Errors
/// A file that cannot be read; a clip without a label; a template whose brackets are not as many as its placeholders; what
/// `write` says.
pub fn convert_ssv2(
    annotations: &Path,
    labels: Option<&Path>,
    options: &Ssv2Options,
    write: &mut dyn FnMut(Value) -> Result<(), DataError>,
) -> Result<u64, DataError> {
    let record = |id: &str, video: &str, answer: &str| {
        let video = match &options.suffix {
            Some(suffix) => format!("{}.{}", stem(video), suffix.trim_start_matches('.')),
            None => video.to_owned(),
        };
        let prompt = options.prompt.as_deref().unwrap_or(SSV2_PROMPT);
        json!({"id": id, "video": video, "conversations": [
            {"from": "human", "value": format!("<video>\n{prompt}")},
            {"from": "gpt", "value": answer},
        ]})
    };
    let is_json = annotations.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"));
    match (is_json, labels) {
        (true, _) => {
            let index = JsonIndex::open(annotations)?;
            for place in 0..index.len() {
                let origin = Origin { file: annotations.to_path_buf(), line: index.line_of(place), index: place };
                let (id, answer) = annotation(&index.read(place)?, &origin)?;
                write(record(&id, &format!("{id}.webm"), &answer))?;
            }
            Ok(index.len())
        }
        (false, Some(labels)) => {
            let labels = read_labels(labels)?;
            let text = std::fs::read_to_string(annotations).map_err(|e| DataError::io(annotations, e))?;
            let mut count = 0;
            for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                let origin = Origin { file: annotations.to_path_buf(), line: number as u64 + 1, index: count };
                let Some((path, label)) = split_line(line) else {
                    return Err(RecordError::new("bad_line", &origin, None, "the line is not a path and a label")
                        .expected("`path label`", format!("`{}`", line.trim()))
                        .into());
                };
                let Some(answer) = labels.get(label) else {
                    return Err(RecordError::new(
                        "unknown_label",
                        &origin,
                        None,
                        format!("the label `{label}` has no meaning"),
                    )
                    .expected(format!("one of the {} labels of the labels file", labels.len()), format!("`{label}`"))
                    .hint("clips of the test part have no label and cannot be learned from; is it the right file?")
                    .into());
                };
                let name = path.rsplit('/').next().unwrap_or(path);
                write(record(stem(name), name, answer))?;
                count += 1;
            }
            if count == 0 {
                return Err(dataset_error(
                    annotations,
                    "empty_dataset",
                    "the file holds no line",
                    "check the file's content",
                ));
            }
            Ok(count)
        }
        (false, None) => {
            let what = "lines `path label` need a file that says what the labels mean";
            Err(dataset_error(annotations, "missing_labels", what, "name it with `--labels FILE`"))
        }
    }
}

/// Path and label of a line; the path may hold blanks.
fn split_line(line: &str) -> Option<(&str, &str)> {
    let (path, label) = line.trim().rsplit_once([' ', ',', '\t'])?;
    let path = path.trim_end_matches([' ', ',', '\t']);
    (!path.is_empty()).then_some((path, label))
}

fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// The meanings of labels, without brackets.
fn read_labels(path: &Path) -> Result<HashMap<String, String>, DataError> {
    let text = std::fs::read_to_string(path).map_err(|e| DataError::io(path, e))?;
    let refuse = |what: String| {
        dataset_error(path, "bad_labels", what, "give the published `labels.json` or an `id2label.json`")
    };
    let value: Value = serde_json::from_str(&text).map_err(|e| refuse(format!("this is not JSON: {e}")))?;
    let Value::Object(pairs) = value else {
        return Err(refuse(format!("expected an object of labels, found {}", kind_of(&value))));
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let mut labels = HashMap::new();
    for (key, value) in pairs {
        let value = match value {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            other => return Err(refuse(format!("`{key}`: expected a text or a number, found {}", kind_of(&other)))),
        };
        let (id, meaning) = match (is_number(&key), is_number(&value)) {
            (true, false) => (key, value),
            (false, true) => (value, key),
            _ => return Err(refuse(format!("expected a number and its meaning, found `{key}` and `{value}`"))),
        };
        if labels.insert(id.clone(), meaning.replace(['[', ']'], "")).is_some() {
            return Err(refuse(format!("the label `{id}` stands there twice")));
        }
    }
    Ok(labels)
}

/// Id and description of a published annotation.
fn annotation(bytes: &[u8], origin: &Origin) -> Result<(String, String), DataError> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|e| RecordError::new("bad_json", origin, None, format!("this is not JSON: {e}")))?;
    let none = Object::new();
    let record = value.as_object().unwrap_or(&none);
    let id = match record.get("id") {
        Some(Value::String(id)) if !id.is_empty() => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        _ => {
            return Err(RecordError::new("bad_record", origin, None, "`id` is missing")
                .expected("an annotation with `id`", kind_of(&value))
                .into());
        }
    };
    let error = |reason, what: String| RecordError::new(reason, origin, Some(&id), what);
    let text = |name: &str| record.get(name).and_then(Value::as_str).filter(|text| !text.trim().is_empty());
    let answer = match (text("template"), record.get("placeholders")) {
        (Some(template), Some(Value::Array(names))) => filled(template, names).map_err(|(expected, found)| {
            error("placeholder_count", "the brackets of `template` are not the placeholders".into())
                .expected(expected, found)
                .hint("repair the annotation, or remove it")
        })?,
        (Some(other), None) => other.replace(['[', ']'], ""),
        (None, _) => match text("label") {
            Some(label) => label.replace(['[', ']'], ""),
            None => {
                return Err(error("missing_label", "the clip has neither `template` nor `label`".into())
                    .hint("annotations of the test part have none and cannot be learned from")
                    .into());
            }
        },
        (Some(_), Some(other)) => {
            return Err(error("bad_record", "`placeholders` has the wrong type".into())
                .expected("a list of texts", kind_of(other))
                .into());
        }
    };
    Ok((id, answer))
}

/// A template with each bracket replaced by its placeholder; else what was expected and found.
fn filled(template: &str, names: &[Value]) -> Result<String, (String, String)> {
    let num_brackets = template.matches('[').count();
    if num_brackets != names.len() || template.matches(']').count() != num_brackets {
        return Err((format!("{num_brackets} in `{template}`"), names.len().to_string()));
    }
    let mut text = String::new();
    let mut rest = template;
    for name in names {
        let name = name.as_str().ok_or_else(|| ("a list of texts".to_owned(), kind_of(name)))?;
        let unbalanced = || ("brackets in pairs".to_owned(), format!("`{template}`"));
        let (before, after) = rest.split_once('[').ok_or_else(unbalanced)?;
        let (_, after) = after.split_once(']').ok_or_else(unbalanced)?;
        text.push_str(before);
        text.push_str(name);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}
