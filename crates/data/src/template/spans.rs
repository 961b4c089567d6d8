//! Owns the search for the assistant's words in a rendered dialogue. It refuses to guess: where no method gives a
//! certain answer, the record is an error.
//!
//! Three methods, each verified on the record itself. (1) `{% generation %}` blocks, where the template has them.
//! (2) Marks: the answers are rendered once more with two private-use characters around them; without the marks the
//! text must equal the plain rendering, which proves that they changed nothing. (3) Search: where a template trims
//! answers, or takes reasoning out of them, a single mark moves through the answer; the first and the last place at
//! which it shows are the ends of what the template keeps. User text that repeats an answer cannot mislead any of them.

use std::ops::Range;

use serde_json::Value;

use super::ChatTemplate;
use crate::error::DataError;

/// A rendered dialogue with the byte ranges of the assistant's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub text: String,
    pub spans: Vec<Range<usize>>,
}

/// Renders a dialogue whose assistant turns are to be supervised.
///
/// # Errors
/// The template refuses the dialogue, or no method finds the answers.
pub(crate) fn render(template: &ChatTemplate, messages: &Value) -> Result<Rendered, DataError> {
    let text = template.render(messages, false)?;
    let answers = assistant_turns(messages);
    if answers.is_empty() {
        return Ok(Rendered { text, spans: Vec::new() });
    }
    let marks = unused_marks(messages, &text);
    if template.has_generation {
        let marked = template.render_marked(messages, false, marks)?;
        if let Some(spans) = read_marks(&marked, &text, marks) {
            return Ok(Rendered { text, spans });
        }
    }
    if let Ok(marked) = template.render(&with_marks(messages, &answers, marks), false)
        && let Some(spans) = read_marks(&marked, &text, marks)
        && spans.len() == answers.len()
    {
        return Ok(Rendered { text, spans });
    }
    let spans = by_search(template, messages, &answers, &text, marks.0)?;
    Ok(Rendered { text, spans })
}

fn assistant_turns(messages: &Value) -> Vec<usize> {
    let turns = messages.as_array().map(Vec::as_slice).unwrap_or_default();
    (0..turns.len()).filter(|&i| turns[i]["role"] == "assistant").collect()
}

/// Two private-use characters that neither the dialogue nor its rendering uses.
fn unused_marks(messages: &Value, text: &str) -> (char, char) {
    let dialogue = messages.to_string();
    let mut free = ('\u{E000}'..='\u{F8FF}').filter(|&c| !text.contains(c) && !dialogue.contains(c));
    (free.next().unwrap_or('\u{E000}'), free.next().unwrap_or('\u{E001}'))
}

/// The ranges between marks, if the text without marks is the plain rendering and the marks come in pairs.
fn read_marks(marked: &str, text: &str, (open, close): (char, char)) -> Option<Vec<Range<usize>>> {
    let mut plain = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut start = None;
    for c in marked.chars() {
        if c == open {
            if start.is_some() {
                return None;
            }
            start = Some(plain.len());
        } else if c == close {
            spans.push(start.take()?..plain.len());
        } else {
            plain.push(c);
        }
    }
    (plain == text && start.is_none()).then_some(spans)
}

/// The messages with marks around every answer.
fn with_marks(messages: &Value, answers: &[usize], (open, close): (char, char)) -> Value {
    let mut messages = messages.clone();
    for &turn in answers {
        match &mut messages[turn]["content"] {
            Value::String(text) => *text = format!("{open}{text}{close}"),
            Value::Array(parts) => {
                let is_text = |p: &&mut Value| p["text"].is_string();
                if let Some(Value::String(text)) = parts.iter_mut().find(is_text).and_then(|p| p.get_mut("text")) {
                    text.insert(0, open);
                }
                if let Some(Value::String(text)) = parts.iter_mut().rfind(is_text).and_then(|p| p.get_mut("text")) {
                    text.push(close);
                }
            }
            _ => {}
        }
    }
    messages
}

/// Searches the part of every answer that the template keeps.
fn by_search(
    template: &ChatTemplate,
    messages: &Value,
    answers: &[usize],
    text: &str,
    mark: char,
) -> Result<Vec<Range<usize>>, DataError> {
    let mut spans = Vec::with_capacity(answers.len());
    for &turn in answers {
        let span = answer_text(&messages[turn]).and_then(|answer| {
            // Where a mark before the byte `at` of the answer shows in the text, if it changes nothing else.
            let shows = |at: usize| {
                let mut marked = messages.clone();
                let content = answer_text_mut(&mut marked[turn])?;
                content.insert(at, mark);
                let rendered = template.render(&marked, false).ok()?;
                let mut places = rendered.match_indices(mark).map(|(place, _)| place);
                let place = places.next().filter(|_| places.next().is_none())?;
                let rest = &rendered[place + mark.len_utf8()..];
                (rendered[..place] == text[..place.min(text.len())] && text.get(place..) == Some(rest)).then_some(place)
            };
            let places: Vec<usize> = answer.char_indices().map(|(at, _)| at).chain([answer.len()]).collect();
            let anchor = places.iter().rposition(|&at| answer[..at].trim_end().len() < answer.trim_end().len())?;
            shows(places[anchor])?;
            // Mostly nothing or white space goes; otherwise words go at the ends, so the places that show are
            // neighbours and their first and last are found by halving.
            let start = shows(0).or_else(|| shows(answer.len() - answer.trim_start().len())).or_else(|| {
                let first = places[..anchor].partition_point(|&at| shows(at).is_none());
                shows(places[first])
            })?;
            let end = shows(answer.len()).or_else(|| shows(answer.trim_end().len())).or_else(|| {
                let last = anchor + places[anchor..].partition_point(|&at| shows(at).is_some()) - 1;
                shows(places[last])
            })?;
            Some(start..end)
        });
        match span {
            Some(span) => spans.push(span),
            None => {
                return Err(DataError::Template {
                    origin: template.origin.clone(),
                    what: format!("the words of assistant turn {turn} cannot be told from the rest of the text"),
                    hint:
                        "add `{% generation %}` blocks to the template, or choose a built-in one with `model.version`"
                            .into(),
                });
            }
        }
    }
    Ok(spans)
}

/// The only text of a turn.
fn answer_text(turn: &Value) -> Option<&str> {
    match &turn["content"] {
        Value::String(text) => Some(text),
        Value::Array(parts) => match parts.as_slice() {
            [part] => part["text"].as_str(),
            _ => None,
        },
        _ => None,
    }
}

fn answer_text_mut(turn: &mut Value) -> Option<&mut String> {
    let text = match &mut turn["content"] {
        Value::Array(parts) => parts.first_mut()?.get_mut("text")?,
        other => other,
    };
    match text {
        Value::String(text) => Some(text),
        _ => None,
    }
}
