//! The loss over the evaluation set during training. Owns the mean over supervised tokens; the tasks with answers are `infer`'s.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use data::{Dataset, LedgerEvent, Loader, LoaderOptions, Processor};
use models::{LossWeights, Model};
use tensor::Tape;

use crate::error::{Result, TrainError};
use crate::features::FeatureCache;

/// The evaluation set of a run.
pub(crate) struct EvalSet {
    pub(crate) dataset: Arc<Dataset>,
    pub(crate) processor: Arc<Processor>,
    /// File order, the plan's evaluation batch size.
    pub(crate) options: LoaderOptions,
}

/// Mean negative log-likelihood of the supervised tokens of the whole set: every token weighs the same, so that batch size and
/// order do not matter. Dropout is off. `None` when `stop` became true before the end. `noted` takes the records with notes.
pub(crate) fn eval_loss(
    model: &Model,
    features: &mut Option<FeatureCache>,
    set: &EvalSet,
    stop: &AtomicBool,
    noted: &mut Vec<LedgerEvent>,
) -> Result<Option<f64>> {
    let mut loader = Loader::new(set.dataset.clone(), set.processor.clone(), set.options.clone())?;
    let (mut sum, mut num_tokens) = (0.0, 0u64);
    while let Some((batch, news)) = loader.next_batch()? {
        noted.extend(news.into_iter().filter(|event| !event.notes.is_empty()));
        if stop.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let supervised = batch.num_supervised();
        if supervised == 0 {
            continue;
        }
        let input = match features {
            Some(cache) => cache.upload(model, &batch)?,
            None => infer::upload(&batch)?,
        };
        let out = model.loss(&Tape::inference(), &input, &batch.labels, &LossWeights::Uniform(1.0), false)?;
        sum += out.nll.iter().map(|nll| f64::from(*nll)).sum::<f64>();
        num_tokens += supervised as u64;
    }
    if num_tokens == 0 {
        return Err(TrainError::mismatch(
            "the evaluation set holds no supervised token",
            "look at it with `vidtune data preview`",
        ));
    }
    Ok(Some(sum / num_tokens as f64))
}
