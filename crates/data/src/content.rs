//! Owns how media stand in a dialogue: the content of turns as templates take it, and what a family writes in the place of
//! a placeholder. It refuses to render and to tokenise.

use serde_json::{Value, json};

use crate::batch::VisualKind;
use crate::encode::record_error;
use crate::error::DataError;
use crate::processor::Processor;
use crate::record::{Format, Part, Role, Sample};
use crate::template::ContentShape;
use crate::template::spans::Rendered;
use crate::vision::{Layout, Planned, Vision};

impl Processor {
    /// The dialogue as the template takes it.
    pub(crate) fn messages(&self, sample: &Sample, layout: &Layout) -> Result<Value, DataError> {
        let in_text = |kind| self.vision.as_ref().map_or_else(String::new, |vision| vision.in_text(kind));
        let has_newline = self.vision.as_ref().is_none_or(|vision| vision.has_newline_after(sample.format));
        let mut media = 0;
        let mut messages = Vec::with_capacity(sample.conversation.len());
        for turn in &sample.conversation {
            let mut pieces = Vec::new();
            for part in &turn.parts {
                match part {
                    Part::Text(text) => pieces.push(ContentPiece::Text(text)),
                    Part::Media(_) => {
                        let visuals = layout.of_reference.get(media).cloned().unwrap_or_default();
                        let kinds = layout.visuals[visuals].iter().map(|planned| planned.visual.kind);
                        pieces.push(ContentPiece::Media(kinds.collect()));
                        media += 1;
                    }
                }
            }
            let content = match self.template.shape() {
                ContentShape::Parts => parts_content(&pieces, sample.format),
                ContentShape::Text if self.media_only_user && turn.role == Role::User => {
                    Value::String(media_only(sample, &pieces, in_text)?)
                }
                ContentShape::Text => Value::String(text_content(&pieces, in_text, has_newline)),
            };
            messages.push(json!({"role": turn.role.name(), "content": content}));
        }
        Ok(Value::Array(messages))
    }
}

/// Checks that the placeholders of a text are those of the media, and puts what a family writes beside them in their place.
/// The media of each kind stand in their own order; images and clips may change places, and do so in `layout` as well.
pub(crate) fn placed(
    vision: &Vision,
    layout: &mut Layout,
    rendered: Rendered,
    sample: &Sample,
) -> Result<Rendered, DataError> {
    let Rendered { text, spans } = rendered;
    let kinds = [(VisualKind::Image, "picture"), (VisualKind::Video, "clip"), (VisualKind::Audio, "piece of sound")];
    for (kind, medium) in kinds {
        let Some(token) = vision.placeholder(kind) else { continue };
        let found = text.matches(&token.text).count();
        // A family may have one placeholder for pictures and clips.
        let is_meant = |planned: &&Planned| vision.placeholder(planned.visual.kind) == Some(token);
        let wanted = layout.visuals.iter().filter(is_meant).count();
        if found != wanted {
            let what =
                format!("the number of `{}` placeholders in the text is not the number of {medium}s", token.text);
            let hint = if found > wanted {
                format!("write `{}` nowhere but where a {medium} stands", token.text)
            } else {
                format!("the chat template places no {medium} there; choose another one with `model.version`")
            };
            return Err(record_error(sample, "placeholder_count", what)
                .expected(wanted.to_string(), found.to_string())
                .hint(hint)
                .into());
        }
    }
    let mut out = String::with_capacity(text.len());
    // Where a byte of the text stands afterwards: after each replacement everything moves by so much.
    let mut moves = vec![(0, 0)];
    let mut at = 0;
    let mut own: Vec<Option<Planned>> = std::mem::take(&mut layout.visuals).into_iter().map(Some).collect();
    layout.order.clear();
    for _ in 0..own.len() {
        let placeholders = kinds.into_iter().filter_map(|(kind, _)| vision.placeholder(kind));
        let found = placeholders.filter_map(|token| Some((text[at..].find(&token.text)?, token)));
        let Some((found, token)) = found.min_by_key(|(found, _)| *found) else { break };
        // The number of each placeholder was checked.
        let meant = |planned: &Planned| vision.placeholder(planned.visual.kind) == Some(token);
        let Some(number) = own.iter().position(|planned| planned.as_ref().is_some_and(meant)) else { break };
        let Some(planned) = own[number].take() else { break };
        let (start, end) = (at + found, at + found + token.text.len());
        out.push_str(&text[at..start]);
        out.push_str(planned.text.as_ref().unwrap_or(&token.text));
        moves.push((end, out.len() as i64 - end as i64));
        at = end;
        layout.order.push(number);
        layout.visuals.push(planned);
    }
    out.push_str(&text[at..]);
    let moved = |byte: usize| {
        let (_, by) = moves[moves.partition_point(|(from, _)| *from <= byte) - 1];
        (byte as i64 + by) as usize
    };
    let spans = spans.into_iter().map(|span| moved(span.start)..moved(span.end)).collect();
    Ok(Rendered { text: out, spans })
}

/// A part of a turn with its media counted.
enum ContentPiece<'a> {
    Text(&'a str),
    Media(Vec<VisualKind>),
}

/// Content for a template that places pictures itself. In `llava` records the newline after a placeholder is part of
/// the placeholder.
fn parts_content(pieces: &[ContentPiece<'_>], format: Format) -> Value {
    let mut parts = Vec::new();
    let mut after_picture = false;
    for piece in pieces {
        match piece {
            ContentPiece::Media(kinds) => {
                parts.extend(kinds.iter().map(|kind| json!({"type": kind})));
                after_picture = true;
            }
            ContentPiece::Text(text) => {
                let text = if after_picture && format.has_placeholder_lines() { without_newline(text) } else { text };
                // An empty part is the record's own, save where the placeholder was all of the text.
                if !text.is_empty() || !format.has_placeholder_lines() {
                    parts.push(json!({"type": "text", "text": text}));
                }
                after_picture = false;
            }
        }
    }
    Value::Array(parts)
}

fn without_newline(text: &str) -> &str {
    text.strip_prefix("\r\n").or_else(|| text.strip_prefix('\n')).unwrap_or(text)
}

/// Content for a template that takes text: placeholders where the media stand, and where the family has it a newline
/// between the last of them and the words unless one is there.
fn text_content(pieces: &[ContentPiece<'_>], in_text: impl Fn(VisualKind) -> String, has_newline: bool) -> String {
    let mut out = String::new();
    let mut after_picture = false;
    for piece in pieces {
        match piece {
            ContentPiece::Media(kinds) => {
                out.extend(kinds.iter().map(|&kind| in_text(kind)));
                after_picture = true;
            }
            ContentPiece::Text(text) => {
                if has_newline && after_picture && !text.starts_with(['\n', '\r']) && !text.trim().is_empty() {
                    out.push('\n');
                }
                out.push_str(text);
                after_picture = false;
            }
        }
    }
    out
}

/// The user's pictures without the user's words; the newline after a placeholder stays.
fn media_only(
    sample: &Sample,
    pieces: &[ContentPiece<'_>],
    in_text: impl Fn(VisualKind) -> String,
) -> Result<String, DataError> {
    let mut out = String::new();
    let mut after_picture = false;
    for piece in pieces {
        match piece {
            ContentPiece::Media(kinds) => {
                out.extend(kinds.iter().map(|&kind| in_text(kind)));
                after_picture = true;
            }
            ContentPiece::Text(text) => {
                if after_picture && text.starts_with('\n') {
                    out.push('\n');
                }
                after_picture = false;
            }
        }
    }
    if out.is_empty() {
        return Err(record_error(sample, "no_media", "the chat template `plain` needs a picture in every question")
            .hint("choose another template with `model.version`, or remove the record")
            .into());
    }
    Ok(out)
}
