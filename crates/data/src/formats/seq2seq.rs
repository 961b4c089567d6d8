//! Owns the `seq2seq` format: a question, a caption that answers it, and a video that both are about, which is not opened.

use serde_json::Value;

use super::media_fields::check_fields;
use super::{Context, Object, kind_of, list_keys};
use crate::error::RecordError;
use crate::record::{Role, Turn};

/// Reads the two turns of a record.
pub(super) fn parse(context: &Context<'_>, record: &Object) -> Result<Vec<Turn>, RecordError> {
    check_fields(context, record, &["video", "video_url", "video_path"])?;
    let text = |key: &str| match record.get(key) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => {
            Err(context.error("bad_record", format!("`{key}` has the wrong type")).expected("a text", kind_of(other)))
        }
        None => Err(context
            .error("bad_record", format!("`{key}` is missing"))
            .expected("`question` and `caption`", list_keys(record))
            .hint("check `data.train.format`")),
    };
    let (question, caption) = (text("question")?, text("caption")?);
    if question.trim().is_empty() {
        return Err(context.error("empty_question", "`question` is empty").hint("write it, or remove the record"));
    }
    Ok(vec![Turn::text(Role::User, question), Turn::text(Role::Assistant, caption)])
}

/// An optional language of a record.
pub(super) fn language(context: &Context<'_>, record: &Object, key: &str) -> Result<Option<String>, RecordError> {
    match record.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) if !name.is_empty() => Ok(Some(name.clone())),
        Some(other) => Err(context
            .error("bad_record", format!("`{key}` has the wrong type"))
            .expected("a language of the tokenizer, such as `eng_Latn`", kind_of(other))),
    }
}
