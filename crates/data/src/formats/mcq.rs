//! Owns the `mcq` format: a question, its options, and which of them is right. It refuses to guess: an answer that can be
//! read in two ways, or in none, is an error.
//!
//! The words are the prompt that Video-MME publishes (github.com/BradyFU/Video-MME, "Evaluation Pipeline", without
//! subtitles), with as many letters as there are options; what is learned is the letter.

use serde_json::Value;

use super::asked::{Asked, required_words, words};
use super::{Context, Object, kind_of, list_keys};
use crate::error::RecordError;
use crate::record::Turn;

/// Fields that hold all options.
const LISTS: [&str; 3] = ["options", "choices", "candidates"];

/// What columns of single options begin with; a letter or a number follows.
const COLUMNS: [&str; 6] = ["option", "option_", "option ", "choice", "choice_", ""];

/// Fields that hold the answer. A record may have several that agree.
const ANSWERS: [&str; 6] = ["answer", "correct_answer", "correct_choice", "answer_idx", "answer_index", "answer_id"];

const MOST_OPTIONS: usize = 26;

/// The options of a record, without their letters.
struct Options {
    texts: Vec<String>,
    /// The number that names the first option.
    base: usize,
}

/// Reads the question, with its options, and the letter of the answer.
pub(super) fn parse(context: &Context<'_>, record: &Object) -> Result<Vec<Turn>, RecordError> {
    if record.get("questions").is_some_and(Value::is_array) && !record.contains_key("question") {
        return Err(context
            .error("bad_record", "`questions` holds several questions")
            .expected("one `question` a record", "a list")
            .hint("write a record for each, as the benchmark asks them"));
    }
    let asked = Asked::read(context, record)?;
    let question = required_words(context, record, "question")?;
    let options = Options::read(context, record)?;
    let answer = options.answer(context, record)?;
    if question.lines().any(|line| lettered(line, 0).is_some()) && question.lines().any(|l| lettered(l, 1).is_some()) {
        return Err(context
            .error("contradiction", "`question` lists options, which the record names as well")
            .hint("take them out of `question`"));
    }
    let letters: Vec<String> = (0..options.texts.len()).map(|place| letter(place).to_string()).collect();
    let letters = match letters.as_slice() {
        [one, other] => format!("{one} or {other}"),
        [first @ .., last] => format!("{}, or {last}", first.join(", ")),
        [] => String::new(),
    };
    let lines: String =
        options.texts.iter().enumerate().map(|(place, text)| format!("{}. {text}\n", letter(place))).collect();
    let words = format!(
        "Select the best answer to the following multiple-choice question{}. Respond with only the letter ({letters}) of the correct option.\n{question}\n{lines}The best answer is:",
        asked.basis()
    );
    asked.turns(context, &words, &letter(answer).to_string())
}

/// Whether a record with a question names options.
pub(super) fn has_options(record: &Object) -> bool {
    LISTS.iter().any(|name| record.get(*name).is_some_and(|value| !value.is_null())) || !families(record).is_empty()
}

fn letter(place: usize) -> char {
    char::from(b'A' + place.min(MOST_OPTIONS - 1) as u8)
}

/// What stands behind the letter of an option: `A. text`, `A) text`, `A: text` or `(A) text`.
fn lettered(text: &str, place: usize) -> Option<&str> {
    // `a.m.` and `B:1` are words of their own.
    let rest = loosely_lettered(text, place)?;
    rest.starts_with(char::is_whitespace).then(|| rest.trim())
}

/// The same where the text may follow at once, as in `A.text`.
fn loosely_lettered(text: &str, place: usize) -> Option<&str> {
    let text = text.trim();
    let (inner, marks): (&str, &[char]) = match text.strip_prefix('(') {
        Some(inner) => (inner, &[')']),
        None => (text, &['.', ')', ':']),
    };
    let rest = inner.strip_prefix([letter(place), letter(place).to_ascii_lowercase()])?.strip_prefix(marks)?;
    (!rest.is_empty()).then_some(rest)
}

/// Columns of single options that a record has: the names of all that a family might have, in order.
fn families(record: &Object) -> Vec<(Vec<String>, usize)> {
    let has = |name: &String| record.contains_key(name);
    let mut found = Vec::new();
    for prefix in COLUMNS {
        let upper: Vec<String> = (0..MOST_OPTIONS).map(|place| format!("{prefix}{}", letter(place))).collect();
        let lower = upper.iter().map(|name| format!("{prefix}{}", name[prefix.len()..].to_ascii_lowercase())).collect();
        found.extend([(upper, 0), (lower, 0)]);
        // NExT-QA's columns are `a0` to `a4`.
        let prefix = if prefix.is_empty() { "a" } else { prefix };
        let from = |base: usize| (base..base + MOST_OPTIONS).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>();
        let base = usize::from(!has(&format!("{prefix}0")));
        found.push((from(base), base));
    }
    found.retain(|(names, _)| names[..2].iter().all(has));
    found
}

impl Options {
    fn read(context: &Context<'_>, record: &Object) -> Result<Self, RecordError> {
        let lists: Vec<&str> =
            LISTS.into_iter().filter(|name| record.get(*name).is_some_and(|v| !v.is_null())).collect();
        let families = families(record);
        let (field, texts, base) = match (lists.as_slice(), families.as_slice()) {
            ([field], []) => (*field, listed(context, field, &record[*field])?, 0),
            ([], [(names, base)]) => (names[0].as_str(), in_columns(context, record, names)?, *base),
            ([], []) => {
                return Err(context
                    .error("missing_options", "the record names no options")
                    .expected("a list `options`, or columns such as `option_a`, `option_b`", list_keys(record))
                    .hint("add them, or remove the record"));
            }
            _ => {
                let columns = families.iter().map(|(names, _)| names[0].as_str());
                let names: Vec<&str> = lists.iter().copied().chain(columns).collect();
                return Err(context
                    .error(
                        "contradiction",
                        format!("the record names its options more than once: `{}`", names.join("`, `")),
                    )
                    .hint("keep one of them"));
            }
        };
        if !(2..=MOST_OPTIONS).contains(&texts.len()) {
            return Err(context
                .error("bad_options", format!("`{field}` has the wrong number of options"))
                .expected(format!("2 to {MOST_OPTIONS}"), texts.len().to_string()));
        }
        Ok(Self { texts: without_letters(context, field, texts)?, base })
    }

    /// The place of the right option, counted from 0.
    fn answer(&self, context: &Context<'_>, record: &Object) -> Result<usize, RecordError> {
        let mut found: Option<(&str, usize)> = None;
        for field in ANSWERS {
            let Some(value) =
                record.get(field).filter(|v| !v.is_null() && v.as_str().is_none_or(|t| !t.trim().is_empty()))
            else {
                continue;
            };
            let place = self.place(context, field, value)?;
            if let Some((other, there)) = found.filter(|&(_, there)| there != place) {
                return Err(context
                    .error("contradiction", format!("`{other}` and `{field}` name two options"))
                    .expected(format!("`{}`", letter(there)), format!("`{}`", letter(place)))
                    .hint("keep the right one"));
            }
            found = Some((field, place));
        }
        let present = ANSWERS.into_iter().find(|field| record.contains_key(*field));
        found.map(|(_, place)| place).ok_or_else(|| match present {
            Some(field) => context
                .error("missing_answer", format!("`{field}` is empty"))
                .hint("write the letter of the right option, or remove the record"),
            None => context
                .error("missing_answer", "`answer` is missing")
                .expected("the letter, the text or the number of an option", list_keys(record))
                .hint("add it, or remove the record"),
        })
    }

    /// The option that one field names, in whatever way.
    fn place(&self, context: &Context<'_>, field: &str, value: &Value) -> Result<usize, RecordError> {
        let Some(text) = words(value) else {
            let error = context.error("bad_answer", format!("`{field}` has the wrong type"));
            let error = error.expected("the letter, the text or the number of one option", kind_of(value));
            return Err(match value {
                Value::Array(_) => error.hint("questions with several right options are not built"),
                _ => error,
            });
        };
        let count = self.texts.len();
        let bare = text.trim_matches(['(', ')', '[', ']', '.', ':', ' ']);
        let as_number = || text.parse::<usize>().ok()?.checked_sub(self.base);
        let readings: Vec<usize> = (0..count)
            .filter(|&place| {
                let own = &self.texts[place];
                bare.eq_ignore_ascii_case(&letter(place).to_string())
                    || is_same(&text, own)
                    || loosely_lettered(&text, place).is_some_and(|rest| is_same(rest, own))
                    || as_number() == Some(place)
            })
            .collect();
        let last = letter(count - 1);
        let numbers = format!("a number from {} to {}", self.base, self.base + count - 1);
        match readings[..] {
            [place] => Ok(place),
            [] => Err(context
                .error("bad_answer", format!("`{field}` names none of the {count} options"))
                .expected(format!("a letter from `A` to `{last}`, an option's text, or {numbers}"), kind_of(value))
                .hint("repair the record, or remove it")),
            [first, second, ..] => Err(context
                .error("ambiguous_answer", format!("`{field}` can be read as two options"))
                .expected(
                    "one option",
                    format!("{}, which is `{}` and `{}`", kind_of(value), letter(first), letter(second)),
                )
                .hint("write letter and text, as in `A. text`")),
        }
    }
}

/// Whether two texts are the same words: upper case, spaces around and a final period do not count.
fn is_same(one: &str, other: &str) -> bool {
    let plain = |text: &str| text.trim().trim_end_matches('.').trim_end().to_lowercase();
    !plain(one).is_empty() && plain(one) == plain(other)
}

fn option_text(context: &Context<'_>, field: &str, place: usize, value: &Value) -> Result<String, RecordError> {
    // On one line, as the prompt has them.
    words(value).map(|text| text.split_whitespace().collect::<Vec<_>>().join(" ")).ok_or_else(|| {
        context
            .error("bad_options", format!("option {} of `{field}` is no text", letter(place)))
            .expected("a text or a number", kind_of(value))
            .hint("repair the record, or remove it")
    })
}

fn in_columns(context: &Context<'_>, record: &Object, names: &[String]) -> Result<Vec<String>, RecordError> {
    let value =
        |name: &String| record.get(name).filter(|v| !v.is_null() && v.as_str().is_none_or(|t| !t.trim().is_empty()));
    let count = names.iter().take_while(|name| value(name).is_some()).count();
    if let Some(later) = names[count..].iter().find(|name| value(name).is_some()) {
        return Err(context
            .error("bad_options", format!("`{}` is empty and `{later}` is not", names[count]))
            .hint("repair the record, or remove it"));
    }
    names[..count]
        .iter()
        .enumerate()
        .filter_map(|(place, name)| Some(option_text(context, name, place, value(name)?)))
        .collect()
}

/// The options of one field: a list, an object of letters, or one text.
fn listed(context: &Context<'_>, field: &str, value: &Value) -> Result<Vec<String>, RecordError> {
    match value {
        Value::Array(items) => {
            items.iter().enumerate().map(|(place, item)| option_text(context, field, place, item)).collect()
        }
        Value::Object(items) => {
            let mut texts = Vec::new();
            for place in 0..items.len() {
                let name = letter(place);
                let Some(item) =
                    items.get(&name.to_string()).or_else(|| items.get(&name.to_ascii_lowercase().to_string()))
                else {
                    return Err(context
                        .error("bad_options", format!("`{field}` is not a list of letters"))
                        .expected(format!("a key `{name}`"), list_keys(items))
                        .hint("name the options by letters from A, or write a list"));
                };
                texts.push(option_text(context, field, place, item)?);
            }
            Ok(texts)
        }
        Value::String(text) => in_one_text(context, field, text),
        other => Err(context
            .error("bad_options", format!("`{field}` has the wrong type"))
            .expected("a list of texts", kind_of(other))),
    }
}

/// Options in one text: a JSON list, or each behind its letter.
fn in_one_text(context: &Context<'_>, field: &str, text: &str) -> Result<Vec<String>, RecordError> {
    let text = text.trim();
    if text.starts_with('[') {
        return match serde_json::from_str::<Vec<Value>>(text) {
            Ok(items) => items.iter().enumerate().map(|(n, item)| option_text(context, field, n, item)).collect(),
            Err(_) => Err(context
                .error("bad_options", format!("`{field}` begins like a list and is not one in JSON"))
                .hint("write it with double quotes and commas, as `json.dumps` of Python does")),
        };
    }
    let mut starts: Vec<usize> = Vec::new();
    while starts.len() < MOST_OPTIONS {
        // A letter counts at the start of the text and after white space.
        let mut places = text.char_indices().map(|(at, _)| at).filter(|&at| {
            (at == 0 || text[..at].ends_with(char::is_whitespace)) && lettered(&text[at..], starts.len()).is_some()
        });
        let Some(at) = places.next() else { break };
        if places.next().is_some() || starts.last().is_some_and(|&last| at < last) {
            return Err(context
                .error("bad_options", format!("`{field}` does not say where option {} begins", letter(starts.len())))
                .hint("write a list"));
        }
        starts.push(at);
    }
    if starts.first() != Some(&0) {
        return Err(context
            .error("bad_options", format!("`{field}` is no list of options"))
            .expected("a list, or a text such as `A. one B. two`", kind_of(&Value::from(text))));
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let pieces = starts.iter().zip(ends).map(|(&start, end)| Value::from(text[start..end].trim()));
    pieces.enumerate().map(|(place, piece)| option_text(context, field, place, &piece)).collect()
}

/// Takes the letters off, where all options have theirs.
fn without_letters(context: &Context<'_>, field: &str, texts: Vec<String>) -> Result<Vec<String>, RecordError> {
    let with = |read: fn(&str, usize) -> Option<&str>| -> Vec<Option<&str>> {
        texts.iter().enumerate().map(|(place, text)| read(text, place)).collect()
    };
    let own = with(loosely_lettered);
    if own.iter().all(Option::is_some) {
        return Ok(own.into_iter().flatten().map(|text| text.trim().to_owned()).collect());
    }
    let is_any = |text: &String| (0..texts.len()).any(|place| lettered(text, place).is_some());
    if with(lettered).iter().any(Option::is_some) || texts.iter().all(is_any) {
        return Err(context
            .error("bad_options", format!("the options of `{field}` have letters, and not those of their places"))
            .expected("`A. ..`, `B. ..` in order, or no letters", format!("`{}`", texts.join("`, `")))
            .hint("repair the record, or remove it"));
    }
    Ok(texts)
}
