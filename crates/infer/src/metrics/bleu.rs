//! Corpus BLEU as caption evaluation computes it. Owns no tokenisation.

use serde::Serialize;

use super::ngrams::{MAX_ORDER, Ngrams};
use super::{MetricError, check};

/// Keeps a precision without any n-gram at 0 instead of 0/0, as the reference does.
const SMALL: f64 = 1e-9;
/// Keeps a product of precisions from being exactly zero, as the reference does.
const TINY: f64 = 1e-15;

/// BLEU of one corpus, each value between 0 and 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bleu {
    /// Precision of single words.
    pub bleu1: f64,
    /// Geometric mean of orders 1 and 2.
    pub bleu2: f64,
    /// Geometric mean of orders 1 to 3.
    pub bleu3: f64,
    /// Geometric mean of orders 1 to 4.
    pub bleu4: f64,
    /// The four values of each record alone.
    #[serde(skip)]
    pub records: Vec<[f64; MAX_ORDER]>,
}

#[derive(Default)]
struct Counts {
    correct: [usize; MAX_ORDER],
    guessed: [usize; MAX_ORDER],
    answer_words: usize,
    reference_words: usize,
}

/// Corpus BLEU of white-space separated tokens: clipped n-gram counts and lengths summed over the corpus, geometric mean,
/// brevity penalty against the closest reference length (the shorter one on a tie).
///
/// Source: Papineni et al. 2002, in the form of `pycocoevalcap.bleu` (Microsoft COCO caption evaluation).
///
/// # Errors
/// See [`MetricError`].
pub fn bleu<R: AsRef<str>, A: AsRef<str>>(references: &[Vec<R>], answers: &[A]) -> Result<Bleu, MetricError> {
    check(references, answers)?;
    let mut total = Counts::default();
    let mut records = Vec::with_capacity(answers.len());
    for (set, answer) in references.iter().zip(answers) {
        let counts = count(set, answer.as_ref());
        records.push(value_of(&counts));
        for order in 0..MAX_ORDER {
            total.correct[order] += counts.correct[order];
            total.guessed[order] += counts.guessed[order];
        }
        total.answer_words += counts.answer_words;
        total.reference_words += counts.reference_words;
    }
    let [bleu1, bleu2, bleu3, bleu4] = value_of(&total);
    Ok(Bleu { bleu1, bleu2, bleu3, bleu4, records })
}

fn count<R: AsRef<str>>(references: &[R], answer: &str) -> Counts {
    let answer = Ngrams::of(answer);
    let references: Vec<Ngrams<'_>> = references.iter().map(|text| Ngrams::of(text.as_ref())).collect();
    let mut counts = Counts { answer_words: answer.num_words, ..Counts::default() };
    for (gram, found) in &answer.counts {
        let allowed = references.iter().map(|r| r.count(gram)).max().unwrap_or(0);
        counts.correct[gram.len() - 1] += allowed.min(*found);
    }
    for order in 0..MAX_ORDER {
        counts.guessed[order] = answer.num_words.saturating_sub(order);
    }
    let closest = references.iter().map(|r| (r.num_words.abs_diff(answer.num_words), r.num_words)).min();
    counts.reference_words = closest.map_or(0, |(_, words)| words);
    counts
}

fn value_of(counts: &Counts) -> [f64; MAX_ORDER] {
    let ratio = (counts.answer_words as f64 + TINY) / (counts.reference_words as f64 + SMALL);
    let penalty = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
    let mut product = 1.0;
    std::array::from_fn(|order| {
        product *= (counts.correct[order] as f64 + TINY) / (counts.guessed[order] as f64 + SMALL);
        product.powf(1.0 / (order + 1) as f64) * penalty
    })
}
