//! Owns the `messages` format: the OpenAI shape, content as text or as a list of parts.
//! It refuses tools by name.

use serde_json::Value;

use super::llava::{MEDIA_FIELDS, Placeholders};
use super::media_fields::{check_fields, part};
use super::{Context, Object, kind_of, required_list, role_of};
use crate::error::RecordError;
use crate::record::{Part, Role, Turn};

/// Reads the turns of a record.
pub(super) fn parse(context: &Context<'_>, record: &Object) -> Result<Vec<Turn>, RecordError> {
    check_fields(context, record, &MEDIA_FIELDS)?;
    let list = required_list(context, record, "messages")?;
    let mut turns = Vec::with_capacity(list.len());
    let texts = list.iter().map(|m| m.get("content").and_then(Value::as_str).unwrap_or_default());
    // Some tools write plain text with placeholders, and the media beside the turns.
    let mut beside = Placeholders::read(context, record, &mut texts.into_iter())?;
    if let Some(Value::String(system)) = record.get("system").filter(|v| v.as_str() != Some("")) {
        turns.push(Turn::text(Role::System, system.as_str()));
    }
    for (position, message) in list.iter().enumerate() {
        let Some(name) = message.get("role").and_then(Value::as_str) else {
            return Err(context
                .error("bad_turn", format!("turn {position} has no `role`"))
                .expected("`{\"role\": ..., \"content\": ...}`", kind_of(message)));
        };
        let role = role_of(context, position, name)?;
        if message.get("tool_calls").is_some_and(|v| v.as_array().is_some_and(|a| !a.is_empty())) {
            return Err(context.error("not_built", format!("turn {position} has `tool_calls`, which is not built yet")));
        }
        if message.get("weight").is_some_and(|v| !v.is_null() && v.as_f64() != Some(1.0)) {
            return Err(context
                .error("not_built", format!("`weight` of turn {position} is not 1, which is not built yet"))
                .hint("remove the field to learn from the turn, or remove the record"));
        }
        let parts = match message.get("content") {
            Some(Value::String(text)) if !beside.is_empty() => beside.split(context, text)?,
            Some(Value::String(text)) => vec![Part::Text(text.clone())],
            Some(Value::Array(parts)) => {
                let mut bare = |kind: &str| {
                    Err(context
                        .error("missing_media", format!("a `{kind}` part of turn {position} names no media"))
                        .hint(format!("add a key `{kind}` with a path or an https address")))
                };
                parts.iter().map(|p| part(context, position, p, &mut bare)).collect::<Result<_, _>>()?
            }
            // An assistant's turn without content is an empty answer, which is refused as such.
            Some(Value::Null) | None if role == Role::Assistant => Vec::new(),
            Some(Value::Null) | None => {
                return Err(context
                    .error("bad_turn", format!("turn {position} has no `content`"))
                    .expected("a text or a list of parts", "none")
                    .hint("write what is said, or remove the record"));
            }
            Some(other) => {
                return Err(context
                    .error("bad_turn", format!("`content` of turn {position} has the wrong type"))
                    .expected("a text or a list of parts", kind_of(other)));
            }
        };
        turns.push(Turn { role, parts });
    }
    beside.finish(context)?;
    Ok(turns)
}
