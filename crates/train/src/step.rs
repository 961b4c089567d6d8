//! One optimizer step: micro-batches forward and backward, the global loss, clipping, the update. Owns the order of these and
//! their times; where batches come from and what is written is the run's business.
//!
//! The loss is the sum over all supervised tokens of the window divided by their number, whatever the division into
//! micro-batches; a token weighs the same wherever it stands.

use std::time::Instant;

use data::Batch;
use models::{LossWeights, Model};
use serde::Serialize;
use tensor::{Gradients, Tape, memory, profile};

use crate::error::{Result, TrainError, first_few};
use crate::features::FeatureCache;
use crate::optimizer::{Optimizer, clip_factor};
use crate::plan::Plan;
use crate::presence::Presence;
use crate::profile::resident_bytes;
use crate::schedule::Schedule;
use crate::selection::{Selection, TrainedTensor};

/// A model in training: weights, optimizer, schedule and the step it is at.
pub struct Trainer {
    /// The model.
    pub model: Model,
    pub(crate) optimizer: Optimizer,
    pub(crate) presence: Presence,
    pub(crate) features: Option<FeatureCache>,
    schedule: Schedule,
    gradients: Gradients,
    settings: Settings,
    /// Optimizer steps done.
    pub(crate) step: u64,
}

#[derive(Debug, Clone, Copy)]
struct Settings {
    seed: u64,
    clip_norm: Option<f64>,
    recompute: bool,
    learning_rate: f64,
}

/// What the passes over a window measured.
#[derive(Debug, Default)]
struct Pass {
    /// Sum over the supervised tokens.
    loss_sum: f64,
    forward_time: f64,
    backward_time: f64,
}

/// What a step without an update measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rehearsal {
    /// Records.
    pub samples: u64,
    /// Input tokens.
    pub input_tokens: u64,
    /// Pictures.
    pub frames: u64,
    /// Mean negative log-likelihood of the supervised tokens.
    pub loss: f64,
    /// Seconds, forward and backward.
    pub seconds: f64,
    /// Largest number of bytes that the engine's buffers held, the optimizer's state included.
    pub peak_memory_bytes: u64,
    /// Resident bytes of the process, where the system says.
    pub resident_memory_bytes: Option<u64>,
}

/// What one step measured.
#[derive(Debug, Clone, PartialEq)]
pub struct StepOutcome {
    /// Step, from 1.
    pub step: u64,
    /// Mean negative log-likelihood of the supervised tokens, before the update.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of `train.learning_rate` in this step.
    pub learning_rate: f64,
    /// Supervised tokens.
    pub supervised_tokens: u64,
    /// Input tokens, without any padding.
    pub input_tokens: u64,
    /// Records.
    pub samples: u64,
    /// Input tokens that stand for pictures.
    pub visual_tokens: u64,
    /// Pictures: frames of videos, and still images.
    pub frames: u64,
    /// Operations of matrix products, recomputation included.
    pub flops: u64,
    /// Those that computed a block a second time.
    pub recomputed_flops: u64,
    /// Seconds in forward passes, upload included.
    pub forward_time: f64,
    /// Seconds in backward passes, recomputation included.
    pub backward_time: f64,
    /// Seconds in norm, clipping and update.
    pub optimizer_time: f64,
    /// Trainable tensors that none of the first batches reached; given once, at the end of the watch.
    pub never_reached: Option<Vec<String>>,
}

impl Trainer {
    /// A trainer at step 0 of a model that [`crate::selection::select`] has prepared.
    pub fn new(plan: &Plan, model: Model, selection: &Selection, schedule: Schedule) -> Trainer {
        let optimizer = Optimizer::new(&plan.train, selection.tensors.clone());
        let settings = Settings {
            seed: plan.train.seed,
            clip_norm: plan.train.clip_norm(),
            recompute: plan.train.gradient_checkpointing,
            learning_rate: plan.train.learning_rate,
        };
        let presence = Presence::new(&selection.tensors);
        Trainer { model, optimizer, presence, features: None, schedule, gradients: Gradients::new(), settings, step: 0 }
    }

    /// The same trainer with features of pictures from a cache that was opened for its model.
    pub fn with_feature_cache(mut self, cache: Option<FeatureCache>) -> Trainer {
        self.features = cache;
        self
    }

    /// The cache of features, where there is one.
    pub fn feature_cache(&self) -> Option<&FeatureCache> {
        self.features.as_ref()
    }

    /// Optimizer steps done.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// The tensors that train.
    pub fn tensors(&self) -> &[TrainedTensor] {
        self.optimizer.tensors()
    }

    /// The schedule of the run.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Trains on one window of micro-batches. On an error nothing has been updated.
    ///
    /// # Errors
    /// A window without a supervised token, a loss or gradient that is not finite, a trainable tensor without gradient at the
    /// end of the watched steps, or an input that the model refuses.
    pub fn train_step(&mut self, window: &[Batch]) -> Result<StepOutcome> {
        let supervised: usize = window.iter().map(Batch::num_supervised).sum();
        let step = self.step + 1;
        if supervised == 0 {
            return Err(TrainError::NothingSupervised { step, records: record_ids(window) });
        }
        let (flops, recomputed) = (profile::flops(), profile::recomputed_flops());
        let Pass { loss_sum, forward_time, backward_time } = self.pass(window, supervised, true)?;
        let start = Instant::now();
        let loss = loss_sum / supervised as f64;
        let span = profile::span("norm");
        let grad_norm = self.gradients.global_norm();
        drop(span);
        self.check_finite(step, loss, grad_norm, window)?;
        let never_reached =
            match !memory::is_planning() && self.presence.watch(self.optimizer.tensors(), &self.gradients) {
                true => Some(self.presence.verdict()?),
                false => None,
            };
        let factor = clip_factor(grad_norm, self.settings.clip_norm);
        let span = profile::span("optimizer");
        self.optimizer.step(&self.gradients, &self.schedule, self.step, factor)?;
        self.gradients.clear();
        drop(span);
        let learning_rate = self.schedule.learning_rate(self.settings.learning_rate, self.step);
        self.step = step;
        Ok(StepOutcome {
            step,
            loss,
            grad_norm,
            learning_rate,
            supervised_tokens: supervised as u64,
            input_tokens: window.iter().map(|batch| batch.num_tokens() as u64).sum(),
            samples: window.iter().map(|batch| batch.num_samples() as u64).sum(),
            visual_tokens: window.iter().map(|batch| batch.image_rows.len() as u64).sum(),
            frames: window.iter().map(|batch| batch.num_images as u64).sum(),
            flops: profile::flops() - flops,
            recomputed_flops: profile::recomputed_flops() - recomputed,
            forward_time,
            backward_time,
            optimizer_time: start.elapsed().as_secs_f64(),
            never_reached,
        })
    }

    /// All micro-batches forward and backward; the gradients are left for whoever called.
    fn pass(&mut self, window: &[Batch], supervised: usize, with_features: bool) -> Result<Pass> {
        self.gradients.clear();
        let weights = LossWeights::Uniform((1.0 / supervised as f64) as f32);
        let mut pass = Pass::default();
        for (micro, batch) in window.iter().enumerate().filter(|(_, batch)| batch.num_supervised() > 0) {
            let start = Instant::now();
            let tape = Tape::record().with_rng(micro_seed(self.settings.seed, micro as u64), self.step);
            let span = profile::span("upload");
            let input = match &mut self.features {
                Some(cache) if with_features => cache.upload(&self.model, batch)?,
                _ => infer::upload(batch)?,
            };
            drop(span);
            let span = profile::span("forward");
            let out = self.model.loss(&tape, &input, &batch.labels, &weights, self.settings.recompute)?;
            pass.loss_sum += out.nll.iter().map(|nll| f64::from(*nll)).sum::<f64>();
            drop(span);
            let forward_end = Instant::now();
            memory::mark("forward", micro);
            // A micro-batch that no trainable tensor takes part in, such as text alone under `projector`, counts in the loss.
            if out.loss.requires_grad() {
                let _span = profile::span("backward");
                tape.backward(&out.loss, &mut self.gradients)?;
            }
            pass.forward_time += (forward_end - start).as_secs_f64();
            pass.backward_time += forward_end.elapsed().as_secs_f64();
        }
        Ok(pass)
    }

    /// Goes over a batch as a step does, `num_micro` times as gradients are accumulated, with the memory that the optimizer's state
    /// takes, and changes nothing.
    ///
    /// # Errors
    /// As [`Trainer::train_step`], the watch apart.
    pub fn rehearse(&mut self, batch: &Batch, num_micro: usize) -> Result<Rehearsal> {
        let window = &vec![batch.clone(); num_micro];
        let supervised = num_micro * batch.num_supervised();
        if supervised == 0 {
            return Err(TrainError::NothingSupervised { step: self.step + 1, records: record_ids(window) });
        }
        memory::reset_peak();
        let start = Instant::now();
        let room = self.optimizer.room()?;
        let pass = self.pass(window, supervised, false)?;
        let grad_norm = self.gradients.global_norm();
        let loss = pass.loss_sum / supervised as f64;
        let rehearsal = Rehearsal {
            samples: batch.num_samples() as u64,
            input_tokens: batch.num_tokens() as u64,
            frames: batch.num_images as u64,
            loss,
            seconds: start.elapsed().as_secs_f64(),
            peak_memory_bytes: memory::stats().peak_bytes as u64,
            resident_memory_bytes: resident_bytes(),
        };
        self.check_finite(self.step + 1, loss, grad_norm, window)?;
        self.gradients.clear();
        drop(room);
        Ok(rehearsal)
    }

    /// The verdict of the watch for a run that ended before its last watched step; `None` where it was given already.
    ///
    /// # Errors
    /// As [`Trainer::train_step`] at the end of the watch.
    pub fn end_watch(&self) -> Result<Option<Vec<String>>> {
        if self.presence.is_open() { self.presence.verdict().map(Some) } else { Ok(None) }
    }

    fn check_finite(&self, step: u64, loss: f64, grad_norm: f64, window: &[Batch]) -> Result<()> {
        let records = || record_ids(window);
        if !loss.is_finite() {
            return Err(TrainError::NotFinite { step, what: "the loss", detail: String::new(), records: records() });
        }
        if grad_norm.is_finite() {
            return Ok(());
        }
        let is_bad = |t: &&TrainedTensor| {
            let gradient = self.gradients.get(&t.named.param);
            gradient.and_then(|g| g.f32s().ok()).is_some_and(|values| values.iter().any(|x| !x.is_finite()))
        };
        let bad: Vec<&str> = self.tensors().iter().filter(is_bad).map(|t| t.named.name.as_str()).collect();
        let detail = format!(" in {}", first_few(bad.into_iter()));
        Err(TrainError::NotFinite { step, what: "the gradient", detail, records: records() })
    }
}

/// The seed of one micro-batch's dropout; the tape adds the step and the operator's ordinal.
fn micro_seed(seed: u64, micro: u64) -> u64 {
    // SplitMix64's increment keeps the seeds of neighbouring micro-batches far apart.
    seed.wrapping_add(micro.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn record_ids(window: &[Batch]) -> String {
    let ids: Vec<&str> = window.iter().flat_map(|batch| batch.sample_ids.iter().map(String::as_str)).collect();
    first_few(ids.into_iter())
}
