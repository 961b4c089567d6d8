//! Metrics over texts: BLEU, ROUGE-L, CIDEr-D, exact match, token F1, chosen letters, classification. Pure functions of
//! strings with typed results; owns no model, no file and no prompt.
//!
//! Definitions are those of the public Python implementations that papers quote (named at each function), so that a figure
//! printed here can stand beside a published one. Corpus scores need the texts tokenised: [`ptb::tokenize`] does what
//! caption evaluation usually does before BLEU, ROUGE-L and CIDEr.

pub mod answer;
pub mod bleu;
pub mod choice;
pub mod cider;
pub mod classify;
mod ngrams;
pub mod ptb;
pub mod rouge;

pub use answer::{exact_match, normalize_answer, token_f1};
pub use bleu::{Bleu, bleu};
pub use choice::{choice_letter, match_label};
pub use cider::{Cider, cider};
pub use classify::{ClassScore, Classification, classification};
pub use rouge::{Rouge, rouge_l, rouge_l_f1};

use serde::Serialize;

/// Why a metric cannot be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetricError {
    /// There is nothing to judge.
    #[error("no records to judge")]
    Empty,
    /// References and answers do not pair up.
    #[error("{references} reference sets for {answers} answers")]
    Lengths {
        /// Number of reference sets.
        references: usize,
        /// Number of answers.
        answers: usize,
    },
    /// A record without a reference.
    #[error("record number {index} has no reference")]
    NoReference {
        /// Position of the record, from 0.
        index: usize,
    },
}

/// Caption metrics of one corpus.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CaptionScores {
    /// BLEU of orders 1 to 4.
    pub bleu: Bleu,
    /// ROUGE-L.
    pub rouge_l: Rouge,
    /// CIDEr-D.
    pub cider: Cider,
}

/// BLEU, ROUGE-L and CIDEr-D after [`ptb::tokenize`], as `pycocoevalcap`'s evaluation does it.
///
/// `references[i]` are the accepted captions of record `i`, `answers[i]` is what the model said.
///
/// # Errors
/// See [`MetricError`].
pub fn caption_scores<R: AsRef<str>, A: AsRef<str>>(
    references: &[Vec<R>],
    answers: &[A],
) -> Result<CaptionScores, MetricError> {
    let join = |text: &str| ptb::tokenize(text).join(" ");
    let references: Vec<Vec<String>> =
        references.iter().map(|set| set.iter().map(|text| join(text.as_ref())).collect()).collect();
    let answers: Vec<String> = answers.iter().map(|text| join(text.as_ref())).collect();
    Ok(CaptionScores {
        bleu: bleu(&references, &answers)?,
        rouge_l: rouge_l(&references, &answers)?,
        cider: cider(&references, &answers)?,
    })
}

/// Refuses a corpus that no corpus metric is defined on.
fn check<R, A>(references: &[Vec<R>], answers: &[A]) -> Result<(), MetricError> {
    if references.len() != answers.len() {
        return Err(MetricError::Lengths { references: references.len(), answers: answers.len() });
    }
    if answers.is_empty() {
        return Err(MetricError::Empty);
    }
    match references.iter().position(Vec::is_empty) {
        Some(index) => Err(MetricError::NoReference { index }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
