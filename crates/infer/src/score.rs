//! Scoring: the mean negative log-likelihood of each record's supervised tokens.

use crate::error::Result;
use crate::input::upload;
use data::Batch;
use models::{LossWeights, Model};
use serde::Serialize;
use tensor::Tape;

/// The score of one record.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// The record's id.
    pub id: String,
    /// Mean negative log-likelihood of the supervised tokens in nats; absent when none is supervised.
    pub loss: Option<f64>,
    /// Sum of the negative log-likelihoods in nats.
    pub loss_sum: f64,
    /// Supervised tokens.
    pub num_tokens: usize,
    /// Tokens of the expanded input, or of the source.
    pub input_tokens: usize,
}

/// Scores every record of a packed batch, in its order.
pub fn score_batch(model: &Model, batch: &Batch) -> Result<Vec<Score>> {
    let tape = Tape::inference();
    let out = model.loss(&tape, &upload(batch)?, &batch.labels, &LossWeights::Uniform(1.0), false)?;
    let (targets, cu_targets) = match &batch.target {
        Some(target) => (batch.labels.clone(), &target.cu_seqlens),
        None => (models::shift_targets(&batch.labels, &batch.cu_seqlens), &batch.cu_seqlens),
    };
    let bounds = batch.cu_seqlens.windows(2).zip(cu_targets.windows(2));
    let scores = bounds.zip(&batch.sample_ids).map(|((inputs, bounds), id)| {
        let range = bounds[0]..bounds[1];
        let num_tokens = targets[range.clone()].iter().filter(|&&t| t != models::IGNORE).count();
        let loss_sum: f64 = out.nll[range.clone()].iter().map(|&n| f64::from(n)).sum();
        let loss = (num_tokens > 0).then(|| loss_sum / num_tokens as f64);
        Score { id: id.clone(), loss, loss_sum, num_tokens, input_tokens: inputs[1] - inputs[0] }
    });
    Ok(scores.collect())
}
