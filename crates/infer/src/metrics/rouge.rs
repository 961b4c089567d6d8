//! ROUGE-L, in the caption form and in the plain F form. Owns no tokenisation but the plain form's own.

use serde::Serialize;

use super::{MetricError, check};

/// Weight of recall against precision in the caption form.
const BETA: f64 = 1.2;

/// ROUGE-L of one corpus.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rouge {
    /// Mean over the records, between 0 and 1.
    pub mean: f64,
    /// The value of each record.
    #[serde(skip)]
    pub records: Vec<f64>,
}

/// ROUGE-L of tokens separated by single spaces: for each record the best precision and the best recall over its
/// references, joined with beta = 1.2; then the mean.
///
/// Source: Lin and Och 2004, in the form of `pycocoevalcap.rouge`.
///
/// # Errors
/// See [`MetricError`].
pub fn rouge_l<R: AsRef<str>, A: AsRef<str>>(references: &[Vec<R>], answers: &[A]) -> Result<Rouge, MetricError> {
    check(references, answers)?;
    let value = |set: &Vec<R>, answer: &A| {
        let answer: Vec<&str> = answer.as_ref().split(' ').collect();
        let (mut precision, mut recall) = (0f64, 0f64);
        for reference in set {
            let reference: Vec<&str> = reference.as_ref().split(' ').collect();
            let common = common_subsequence(&reference, &answer) as f64;
            precision = precision.max(common / answer.len() as f64);
            recall = recall.max(common / reference.len() as f64);
        }
        if precision == 0.0 || recall == 0.0 {
            return 0.0;
        }
        (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
    };
    Ok(mean_of(references.iter().zip(answers).map(|(set, answer)| value(set, answer)).collect()))
}

/// ROUGE-L as an F1 of plain English words (lower case, everything but letters and digits of ASCII separates), the best
/// reference of each record, no stemming; then the mean.
///
/// Source: `rouge_score.rouge_scorer` with `rougeL`.
///
/// # Errors
/// See [`MetricError`].
pub fn rouge_l_f1<R: AsRef<str>, A: AsRef<str>>(references: &[Vec<R>], answers: &[A]) -> Result<Rouge, MetricError> {
    check(references, answers)?;
    let value = |set: &Vec<R>, answer: &A| {
        let answer = plain_words(answer.as_ref());
        let mut best = 0f64;
        for reference in set {
            let reference = plain_words(reference.as_ref());
            if answer.is_empty() || reference.is_empty() {
                continue;
            }
            let common = common_subsequence(&reference, &answer) as f64;
            let (precision, recall) = (common / answer.len() as f64, common / reference.len() as f64);
            if common > 0.0 {
                best = best.max(2.0 * precision * recall / (precision + recall));
            }
        }
        best
    };
    Ok(mean_of(references.iter().zip(answers).map(|(set, answer)| value(set, answer)).collect()))
}

fn plain_words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

fn mean_of(records: Vec<f64>) -> Rouge {
    Rouge { mean: records.iter().sum::<f64>() / records.len() as f64, records }
}

/// Length of the longest common subsequence, with one row of memory.
fn common_subsequence<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}
