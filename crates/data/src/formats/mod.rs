//! Owns the reading of one JSON record into a [`Sample`], and what all formats share: media fields, order of roles,
//! empty answers. It refuses to open media files or to know any model.

mod asked;
mod conversation;
mod llava;
mod mcq;
mod media_fields;
mod messages;
mod pairs;
mod seq2seq;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{DataError, RecordError};
use crate::record::{Format, Origin, Part, Role, Sample, Turn};

/// A JSON object.
pub(crate) type Object = Map<String, Value>;

/// Where a record stands while it is read: everything that a message about it needs.
pub(crate) struct Context<'a> {
    origin: &'a Origin,
    id: String,
    media_dir: &'a Path,
    audio_dir: &'a Path,
}

impl Context<'_> {
    /// An error about this record.
    fn error(&self, reason: &'static str, what: impl Into<String>) -> RecordError {
        RecordError::new(reason, self.origin, Some(&self.id), what)
    }

    /// The path as written, taken from a folder when it is relative.
    fn resolve(&self, written: &str, dir: &Path) -> PathBuf {
        let address = written.get(..7).filter(|start| start.eq_ignore_ascii_case("file://"));
        let path = match address.and_then(|_| written.get(7..)) {
            Some(rest) => PathBuf::from(percent_decoded(rest.strip_prefix("localhost").unwrap_or(rest))),
            None => PathBuf::from(written),
        };
        if path.is_absolute() { path } else { dir.join(path) }
    }
}

/// The text of an address with `%20` and its like replaced; as it stands where that gives no text.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let code = after.get(..2).and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        match code.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

/// What tells a format, for messages.
pub(crate) const KNOWN_KEYS: &str = "`conversations`, `messages` or `conversation`; `question` with `options`, `answer` or `caption`; or `caption` with a picture or clip";

/// Tells the format of a record by its keys.
pub(crate) fn detect(record: &Value) -> Option<Format> {
    let record = record.as_object()?;
    let dialogues =
        [("conversations", Format::Llava), ("messages", Format::Messages), ("conversation", Format::Conversation)];
    let found = dialogues.into_iter().find_map(|(key, format)| record.contains_key(key).then_some(format));
    found.or_else(|| match record.contains_key("question") {
        true if mcq::has_options(record) => Some(Format::Mcq),
        true if record.contains_key("caption") => Some(Format::Seq2seq),
        true => record.contains_key("answer").then_some(Format::Qa),
        false => pairs::is_caption(record).then_some(Format::Caption),
    })
}

/// The record's id: its own, its key in the file's top-level object, or its position.
pub(crate) fn id_of(record: &Value, key: Option<&str>, index: u64) -> String {
    let own = ["id", "sample_id", "question_id", "uid"].iter().find_map(|k| match record.get(k) {
        Some(Value::String(s)) if !s.is_empty() => Some(s.clone()),
        Some(Value::Number(n)) => Some(n.to_string()),
        _ => None,
    });
    own.or_else(|| key.map(str::to_owned)).unwrap_or_else(|| index.to_string())
}

/// Reads a record of a known format.
pub(crate) fn parse(
    text: &str,
    key: Option<&str>,
    format: Format,
    origin: &Origin,
    [media_dir, audio_dir]: [&Path; 2],
) -> Result<Sample, DataError> {
    let value: Value = serde_json::from_str(text).map_err(|e| broken_json(&e, text, key, origin))?;
    let id = id_of(&value, key, origin.index);
    let context = Context { origin, id, media_dir, audio_dir };
    let Value::Object(record) = &value else {
        return Err(context
            .error("bad_record", "a record must be an object")
            .expected("`{...}`", kind_of(&value))
            .hint("remove the entry")
            .into());
    };
    let format = match format {
        Format::Auto => detect(&value).ok_or_else(|| {
            context
                .error("unknown_format", "the record's format cannot be told")
                .expected(KNOWN_KEYS, list_keys(record))
                .hint("name the format with `data.train.format`, or convert the file")
        })?,
        named => named,
    };
    let conversation = match format {
        Format::Conversation => conversation::parse(&context, record)?,
        Format::Messages => messages::parse(&context, record)?,
        Format::Seq2seq => seq2seq::parse(&context, record)?,
        Format::Mcq => mcq::parse(&context, record)?,
        Format::Qa => pairs::parse_qa(&context, record)?,
        Format::Caption => pairs::parse_caption(&context, record)?,
        Format::Llava | Format::Ego4d | Format::Auto => llava::parse(&context, record)?,
    };
    check_turns(&context, &conversation)?;
    let src_lang = seq2seq::language(&context, record, "src_lang")?;
    let tgt_lang = seq2seq::language(&context, record, "tgt_lang")?;
    Ok(Sample { id: context.id, conversation, format, origin: origin.clone(), src_lang, tgt_lang })
}

fn broken_json(error: &serde_json::Error, text: &str, key: Option<&str>, origin: &Origin) -> DataError {
    let line = origin.line + (error.line() as u64).saturating_sub(1);
    let mut place = origin.clone();
    place.line = line;
    // The library's message ends with a place relative to the record, which would contradict the file's own.
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    let near: String = text
        .lines()
        .nth(error.line().saturating_sub(1))
        .map(|l| l.chars().skip(error.column().saturating_sub(12)).take(24).collect())
        .unwrap_or_default();
    RecordError::new("bad_json", &place, key, format!("column {}: {message}, near `{near}`", error.column()))
        .hint("repair the JSON, or set `data.on_bad_media: skip`")
        .into()
}

/// Checks what every format promises: roles in order, an answer in every assistant turn, media only in questions.
fn check_turns(context: &Context<'_>, turns: &[Turn]) -> Result<(), RecordError> {
    if turns.is_empty() {
        return Err(context.error("empty_conversation", "the record has no turn").hint("remove the record"));
    }
    let mut wanted = Role::User;
    for (position, turn) in turns.iter().enumerate() {
        if turn.role == Role::System {
            if position > 0 {
                return Err(context
                    .error("wrong_role_order", format!("turn {position} is a `system` turn"))
                    .expected("`system` as the first turn only", format!("it in place {position}"))
                    .hint("move it to the front"));
            }
            continue;
        }
        if turn.role != wanted {
            return Err(context
                .error("wrong_role_order", format!("turn {position} has the wrong role"))
                .expected(format!("`{}`", wanted.name()), format!("`{}`", turn.role.name()))
                .hint("user and assistant must take turns, the user first"));
        }
        if turn.role == Role::Assistant {
            check_answer(context, position, turn)?;
        }
        wanted = if turn.role == Role::User { Role::Assistant } else { Role::User };
    }
    if wanted == Role::Assistant || turns.iter().all(|t| t.role == Role::System) {
        return Err(context
            .error("no_answer", "the last turn is not the assistant's, so nothing can be learned from it")
            .hint("add the answer, or remove the record"));
    }
    Ok(())
}

fn check_answer(context: &Context<'_>, position: usize, turn: &Turn) -> Result<(), RecordError> {
    if turn.parts.iter().any(|p| matches!(p, Part::Media(_))) {
        return Err(context
            .error("media_in_answer", format!("turn {position} of the assistant holds a picture or a clip"))
            .hint("media belong to the user's turns; remove the placeholder from the answer"));
    }
    if turn.joined_text().trim().is_empty() {
        return Err(context
            .error("empty_answer", format!("turn {position} of the assistant is empty"))
            .hint("write the answer, or remove the record"));
    }
    Ok(())
}

/// A list under a key that must be there.
fn required_list<'a>(context: &Context<'_>, record: &'a Object, key: &str) -> Result<&'a Vec<Value>, RecordError> {
    match record.get(key) {
        Some(Value::Array(list)) => Ok(list),
        Some(other) => {
            Err(context.error("bad_record", format!("`{key}` has the wrong type")).expected("a list", kind_of(other)))
        }
        None => Err(context
            .error("bad_record", format!("`{key}` is missing"))
            .expected(format!("a list `{key}`"), list_keys(record))
            .hint("check `data.train.format`")),
    }
}

/// The role of a name as the formats spell it.
fn role_of(context: &Context<'_>, position: usize, name: &str) -> Result<Role, RecordError> {
    match name {
        "system" | "developer" => Ok(Role::System),
        "human" | "user" => Ok(Role::User),
        "gpt" | "assistant" | "model" => Ok(Role::Assistant),
        other => Err(context
            .error("unknown_role", format!("turn {position} has an unknown role"))
            .expected("one of `system`, `user`, `human`, `assistant`, `gpt`", format!("`{other}`"))),
    }
}

/// What a JSON value is, for messages.
pub(crate) fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => format!("`{b}`"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) if s.chars().count() <= 40 => format!("the text `{s}`"),
        Value::String(_) => "a text".into(),
        Value::Array(a) => format!("a list of {}", a.len()),
        Value::Object(o) => format!("an object with {}", list_keys(o)),
    }
}

fn list_keys(record: &Object) -> String {
    if record.is_empty() {
        return "no key".into();
    }
    let keys: Vec<String> = record.keys().take(8).map(|k| format!("`{k}`")).collect();
    format!("{}{}", keys.join(", "), if record.len() > 8 { ", ..." } else { "" })
}
