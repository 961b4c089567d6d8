//! Short answers: normalisation, exact match, token F1. Owns the SQuAD rules; no choice letters, no labels.

use std::collections::HashMap;

/// An answer reduced to what counts: lower case, no ASCII punctuation, no English article, single spaces.
///
/// Source: the SQuAD evaluation script (Rajpurkar et al. 2016).
pub fn normalize_answer(text: &str) -> String {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let without_articles = remove_articles(&plain);
    without_articles.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether the answer equals one of the references after [`normalize_answer`].
pub fn exact_match<R: AsRef<str>>(references: &[R], answer: &str) -> bool {
    let answer = normalize_answer(answer);
    references.iter().any(|reference| normalize_answer(reference.as_ref()) == answer)
}

/// The best F1 of the answer's words against one of the references, after [`normalize_answer`]; 0 without references.
///
/// An answer or reference without any word scores 1 when both are so, else 0, as in SQuAD 2.
pub fn token_f1<R: AsRef<str>>(references: &[R], answer: &str) -> f64 {
    references.iter().map(|reference| f1_of(reference.as_ref(), answer)).fold(0.0, f64::max)
}

fn f1_of(reference: &str, answer: &str) -> f64 {
    let (reference, answer) = (normalize_answer(reference), normalize_answer(answer));
    let (gold, found): (Vec<&str>, Vec<&str>) = (reference.split(' ').collect(), answer.split(' ').collect());
    if reference.is_empty() || answer.is_empty() {
        return f64::from(u8::from(reference == answer));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in &gold {
        *left.entry(word).or_default() += 1;
    }
    let mut common = 0;
    for word in &found {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    let (precision, recall) = (common as f64 / found.len() as f64, common as f64 / gold.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

/// Replaces the whole words `a`, `an` and `the` by spaces; a word is a run of letters, digits and underscores.
fn remove_articles(text: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        out.push_str(if matches!(word, "a" | "an" | "the") { " " } else { word });
        let gap = tail.find(is_word).unwrap_or(tail.len());
        out.push_str(&tail[..gap]);
        rest = &tail[gap..];
    }
    out
}
