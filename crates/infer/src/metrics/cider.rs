//! CIDEr-D over a corpus of captions. Owns no tokenisation.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::ngrams::{MAX_ORDER, Ngrams};
use super::{MetricError, check};

/// Width of the length penalty, in words.
const SIGMA: f64 = 6.0;

/// CIDEr-D of one corpus, between 0 and 10.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cider {
    /// Mean over the records. A corpus of one record has no document frequencies and scores 0.
    pub mean: f64,
    /// The value of each record.
    #[serde(skip)]
    pub records: Vec<f64>,
}

/// A sentence as tf-idf weights of its n-grams.
struct Weighted<'a> {
    ngrams: Ngrams<'a>,
    weights: Vec<f64>,
    norms: [f64; MAX_ORDER],
    /// Number of bigrams: the reference measures length so.
    length: usize,
}

/// CIDEr-D of white-space separated tokens: tf-idf vectors of 1 to 4-grams with document frequencies over the corpus'
/// reference sets, clipped cosine similarity, a Gaussian penalty of the length difference (sigma 6), mean over orders and
/// references, times 10.
///
/// Source: Vedantam et al. 2015, in the form of `pycocoevalcap.cider`.
///
/// # Errors
/// See [`MetricError`].
pub fn cider<R: AsRef<str>, A: AsRef<str>>(references: &[Vec<R>], answers: &[A]) -> Result<Cider, MetricError> {
    check(references, answers)?;
    let sets: Vec<Vec<Ngrams<'_>>> =
        references.iter().map(|set| set.iter().map(|text| Ngrams::of(text.as_ref())).collect()).collect();
    let mut frequency: HashMap<Vec<&str>, f64> = HashMap::new();
    for set in &sets {
        let grams: HashSet<&Vec<&str>> = set.iter().flat_map(|r| r.counts.iter().map(|(gram, _)| gram)).collect();
        for gram in grams {
            match frequency.get_mut(gram) {
                Some(count) => *count += 1.0,
                None => {
                    frequency.insert(gram.clone(), 1.0);
                }
            }
        }
    }
    let log_corpus = (references.len() as f64).ln();
    let weigh = |ngrams| weigh(ngrams, &frequency, log_corpus);
    let records: Vec<f64> = sets
        .into_iter()
        .zip(answers)
        .map(|(set, answer)| {
            let answer = weigh(Ngrams::of(answer.as_ref()));
            let count = set.len() as f64;
            let mut sum = [0.0; MAX_ORDER];
            for reference in set {
                let similarity = similarity(&answer, &weigh(reference));
                sum.iter_mut().zip(similarity).for_each(|(total, value)| *total += value);
            }
            sum.iter().sum::<f64>() / MAX_ORDER as f64 / count * 10.0
        })
        .collect();
    Ok(Cider { mean: records.iter().sum::<f64>() / records.len() as f64, records })
}

fn weigh<'a>(ngrams: Ngrams<'a>, frequency: &HashMap<Vec<&str>, f64>, log_corpus: f64) -> Weighted<'a> {
    let mut weights = Vec::with_capacity(ngrams.counts.len());
    let mut norms = [0.0; MAX_ORDER];
    let mut length = 0;
    for (gram, count) in &ngrams.counts {
        let frequency = frequency.get(gram).copied().unwrap_or(0.0).max(1.0);
        let weight = *count as f64 * (log_corpus - frequency.ln());
        norms[gram.len() - 1] += weight * weight;
        weights.push(weight);
        if gram.len() == 2 {
            length += count;
        }
    }
    Weighted { ngrams, weights, norms: norms.map(f64::sqrt), length }
}

fn similarity(answer: &Weighted<'_>, reference: &Weighted<'_>) -> [f64; MAX_ORDER] {
    let mut values = [0.0; MAX_ORDER];
    for ((gram, _), weight) in answer.ngrams.counts.iter().zip(&answer.weights) {
        if let Some(other) = reference.ngrams.place(gram).map(|at| reference.weights[at]) {
            values[gram.len() - 1] += weight.min(other) * other;
        }
    }
    let delta = answer.length as f64 - reference.length as f64;
    let penalty = (-delta * delta / (2.0 * SIGMA * SIGMA)).exp();
    for (order, value) in values.iter_mut().enumerate() {
        let norm = answer.norms[order] * reference.norms[order];
        if norm != 0.0 {
            *value /= norm;
        }
        *value *= penalty;
    }
    values
}
