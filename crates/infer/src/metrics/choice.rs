//! Reading a choice out of a free answer: the letter of a multiple-choice question, or one label of a list. Owns no scores.
//! An answer that names two choices, or none, names none: it is counted as wrong, never guessed.

use super::answer::normalize_answer;

/// Words after which a letter is the answer. Compared in lower case.
const CUES: [&str; 10] = [
    "answer is",
    "answer is option",
    "answer:",
    "option is",
    "option:",
    "choice is",
    "choice:",
    "option",
    "choice",
    "answer",
];

/// The letter chosen by `answer` among `options` (the first option is `A`), or `None` when no single one is.
///
/// In this order: an answer that is a letter alone (`B`, `b`, `(B)`, `B.`, `**B**`); a letter at the start followed by a
/// closing mark (`B. the red square`); a letter after a cue (`The answer is B`); one letter in parentheses; an option's
/// text that is the whole answer; one capital letter standing alone that is not an English word; the text of exactly one
/// option inside the answer. Letters behind the last option are never taken.
pub fn choice_letter<O: AsRef<str>>(answer: &str, options: &[O]) -> Option<char> {
    let letter = |c: char| {
        let upper = c.to_ascii_uppercase();
        let index = (upper as u32).checked_sub('A' as u32)? as usize;
        (index < options.len().min(26)).then_some(upper)
    };
    let text = answer.trim();
    let bare: Vec<char> = text.chars().filter(|c| !" \t\n.:;,()[]{}*_`'\"".contains(*c)).collect();
    if let [only] = bare[..] {
        return letter(only);
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    if let Some(found) = words.first().and_then(|word| marked_letter(word)).and_then(letter) {
        return Some(found);
    }
    if let Some(found) = only_one(after_cues(text).into_iter().filter_map(letter)) {
        return Some(found);
    }
    let in_parentheses = words.iter().filter_map(|word| {
        let mut chars = word.trim_end_matches(['.', ',', ';', ':', '!', '?']).chars();
        let found = (chars.next()?, chars.next()?, chars.next()?, chars.next());
        if let ('(', c, ')', None) = found { letter(c) } else { None }
    });
    if let Some(found) = only_one(in_parentheses) {
        return Some(found);
    }
    if let Some(index) = match_label(answer, options) {
        let whole = normalize_answer(answer) == normalize_answer(options[index].as_ref());
        let capital = only_one(standing_capitals(&words).filter_map(letter));
        let own = letter(char::from(b'A' + index as u8));
        return if whole || capital.is_none() { own } else { capital.filter(|c| Some(*c) == own) };
    }
    only_one(standing_capitals(&words).filter_map(letter))
}

/// The position of the one label that `answer` names: the label that equals the whole answer after normalisation, else
/// the only one that occurs in it as whole words (a label inside another label that occurs does not count).
pub fn match_label<L: AsRef<str>>(answer: &str, labels: &[L]) -> Option<usize> {
    let answer = normalize_answer(answer);
    let labels: Vec<String> = labels.iter().map(|label| normalize_answer(label.as_ref())).collect();
    let equal = || labels.iter().enumerate().filter(|(_, label)| **label == answer).map(|(i, _)| i);
    if !answer.is_empty() && equal().next().is_some() {
        return only_one(equal());
    }
    let contains = |text: &str, part: &str| !part.is_empty() && format!(" {text} ").contains(&format!(" {part} "));
    let inside: Vec<usize> = (0..labels.len()).filter(|&i| contains(&answer, &labels[i])).collect();
    only_one(inside.iter().copied().filter(|&i| {
        !inside.iter().any(|&other| labels[other].len() > labels[i].len() && contains(&labels[other], &labels[i]))
    }))
}

/// The letter of a first word such as `B.`, `(B)`, `B)`, `**B**:`; a word without a closing mark has none.
fn marked_letter(word: &str) -> Option<char> {
    let inner = word.trim_start_matches(['(', '[', '*', '_', '`', '"', '\'']);
    let mut chars = inner.chars();
    let letter = chars.next().filter(char::is_ascii_alphabetic)?;
    let rest: Vec<char> = chars.collect();
    let marks = |c: &char| ".:)],*_`\"'".contains(*c);
    (!rest.is_empty() && rest.iter().all(marks)).then_some(letter)
}

/// Letters that stand alone right after a cue, with those that a following `or`, `and` or `/` adds.
fn after_cues(text: &str) -> Vec<char> {
    const MARKS: [char; 9] = [' ', '\n', ':', '(', '[', '*', '_', '"', '\''];
    let lower = text.to_ascii_lowercase();
    let mut found = Vec::new();
    for cue in CUES {
        for (at, _) in lower.match_indices(cue) {
            let mut rest = &text[at + cue.len()..];
            if !rest.starts_with(MARKS) {
                continue;
            }
            loop {
                rest = rest.trim_start_matches(MARKS);
                let mut chars = rest.chars();
                let (Some(letter), next) = (chars.next().filter(char::is_ascii_alphabetic), chars.next()) else {
                    break;
                };
                let alone = !next.is_some_and(|c| c.is_alphanumeric() || c == '\'' || c == '-');
                // A small `a` before another word is the article (`the answer is a dog`).
                if !alone || (letter == 'a' && next == Some(' ')) {
                    break;
                }
                found.push(letter);
                let tail = rest[1..].trim_start_matches([')', ']', '*', '_', ' ', '"', '\'']);
                let Some(more) = ["or ", "and ", "/"].iter().find_map(|word| tail.strip_prefix(word)) else { break };
                rest = more;
            }
        }
    }
    found
}

/// Capital letters that stand alone as a word, except the words `A` and `I` before another word.
fn standing_capitals(words: &[&str]) -> impl Iterator<Item = char> {
    words.iter().enumerate().filter_map(|(i, word)| {
        let core = word.trim_matches(|c: char| !c.is_alphanumeric());
        let mut chars = core.chars();
        let (Some(letter), None) = (chars.next(), chars.next()) else { return None };
        let english = matches!(letter, 'A' | 'I') && core.len() == word.len() && i + 1 < words.len();
        (letter.is_ascii_uppercase() && !english).then_some(letter)
    })
}

/// The one value that all items share; `None` when there is none or they differ.
fn only_one<T: PartialEq>(mut items: impl Iterator<Item = T>) -> Option<T> {
    let first = items.next()?;
    items.all(|item| item == first).then_some(first)
}
