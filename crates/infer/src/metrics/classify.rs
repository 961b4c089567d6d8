//! Accuracy and per-class scores of predicted labels. Owns no matching of texts to labels.

use serde::Serialize;

use super::MetricError;

/// Scores of one class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassScore {
    /// The label.
    pub label: String,
    /// Records whose true label this is.
    pub support: usize,
    /// Records that were given this label.
    pub predicted: usize,
    /// Records that were given this label rightly.
    pub correct: usize,
    /// `correct / predicted`; 0 when never predicted.
    pub precision: f64,
    /// `correct / support`; 0 when the label never occurs.
    pub recall: f64,
    /// Harmonic mean of the two; 0 when both are.
    pub f1: f64,
}

/// Scores of a classification.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Classification {
    /// Records with the right label over all records.
    pub accuracy: f64,
    /// Mean F1 over the classes that occur as truth or as prediction.
    pub macro_f1: f64,
    /// Records.
    pub num_records: usize,
    /// Records whose answer named no label; they count as wrong.
    pub num_unmatched: usize,
    /// Every class that occurs as truth or as prediction, sorted by label.
    pub classes: Vec<ClassScore>,
}

/// Scores predictions against true labels; `None` is an answer that named no label.
///
/// Definitions as in scikit-learn's `precision_recall_fscore_support` with `zero_division=0`.
///
/// # Errors
/// [`MetricError::Lengths`] and [`MetricError::Empty`].
pub fn classification<T: AsRef<str>, P: AsRef<str>>(
    truth: &[T],
    predicted: &[Option<P>],
) -> Result<Classification, MetricError> {
    if truth.len() != predicted.len() {
        return Err(MetricError::Lengths { references: truth.len(), answers: predicted.len() });
    }
    if truth.is_empty() {
        return Err(MetricError::Empty);
    }
    let mut labels: Vec<&str> = truth.iter().map(AsRef::as_ref).collect();
    labels.extend(predicted.iter().flatten().map(AsRef::as_ref));
    labels.sort_unstable();
    labels.dedup();
    let pairs = || truth.iter().zip(predicted).map(|(t, p)| (t.as_ref(), p.as_ref().map(AsRef::as_ref)));
    let classes: Vec<ClassScore> = labels
        .iter()
        .map(|&label| {
            let support = pairs().filter(|(t, _)| *t == label).count();
            let predicted = pairs().filter(|(_, p)| *p == Some(label)).count();
            let correct = pairs().filter(|(t, p)| *t == label && *p == Some(label)).count();
            let precision = ratio(correct, predicted);
            let recall = ratio(correct, support);
            let f1 = ratio(2 * correct, predicted + support);
            ClassScore { label: label.to_owned(), support, predicted, correct, precision, recall, f1 }
        })
        .collect();
    let num_records = truth.len();
    Ok(Classification {
        accuracy: ratio(pairs().filter(|(t, p)| *p == Some(*t)).count(), num_records),
        macro_f1: classes.iter().map(|c| c.f1).sum::<f64>() / classes.len() as f64,
        num_records,
        num_unmatched: predicted.iter().filter(|p| p.is_none()).count(),
        classes,
    })
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
