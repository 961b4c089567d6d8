//! The course of a run: windows of batches, steps, evaluations, checkpoints, in their order. Owns what happens between two steps
//! and where a signal may stop it; beginning and end are the parent's.

use std::cmp::Ordering;
use std::sync::atomic;
use std::time::Instant;

use data::{Batch, LedgerEvent, Status};
use tensor::{memory, profile};

use super::Run;
use crate::checkpoint::{self, Best, Contents, Pending, RunState};
use crate::error::{Result, TrainError, first_few};
use crate::evaluate::eval_loss;
use crate::event::Event;
use crate::features::FeatureCache;
use crate::metrics::{LogEntry, StepMetrics, TrainerState};
use crate::plan::Strategy;
use crate::profile::{Phase, TraceNews, rate, resident_bytes};
use crate::step::StepOutcome;

/// Records whose notes are told while a run goes on.
const MAX_NOTICES: u64 = 10;

/// The batches of one step and the news about their records.
struct Window {
    batches: Vec<Batch>,
    news: Vec<LedgerEvent>,
    data_time: f64,
}

/// What a step cost besides what the trainer measures.
struct Cost {
    step_time: f64,
    data_time: f64,
    peak_memory_bytes: u64,
}

impl Run<'_> {
    /// Steps until the end; returns whether a signal stopped it.
    pub(super) fn train(&mut self) -> Result<bool> {
        let num_steps = self.trainer.schedule().num_training_steps;
        if let Some(pending) = self.progress.pending.take() {
            // Its checkpoint says that the step is not complete.
            self.last_checkpoint = None;
            if self.complete_step(pending)? {
                return Ok(true);
            }
        }
        while self.trainer.step_count() < num_steps {
            if self.stop.load(atomic::Ordering::SeqCst) {
                self.checkpoint_now()?;
                return Ok(true);
            }
            if let Some(profiler) = &mut self.profiler {
                let news = profiler.before_step()?;
                self.tell_trace(news);
            }
            let (start, span) = (Instant::now(), profile::span_at("step", self.trainer.step_count() + 1));
            let Some(window) = self.next_window()? else {
                span.discard();
                break;
            };
            memory::reset_peak();
            let outcome = self.trainer.train_step(&window.batches)?;
            drop(span);
            let cost = Cost {
                step_time: start.elapsed().as_secs_f64(),
                data_time: window.data_time,
                peak_memory_bytes: memory::stats().peak_bytes as u64,
            };
            for event in &window.news {
                self.tell_notes(event);
                self.ledger.record(event);
            }
            if self.after_step(outcome, cost)? {
                return Ok(true);
            }
        }
        // Skipped records can end the data before the counted last step.
        let steps = self.trainer.step_count();
        if steps == 0 {
            return Err(self.nothing_trained());
        }
        if steps < num_steps {
            let notice = format!(
                "{steps} of {num_steps} steps were made: skipped records shortened the run, and the learning rate did not come to the end of its schedule"
            );
            (self.on_event)(&Event::Notice(&notice));
        }
        if self.plan.train.save_strategy != Strategy::No {
            self.checkpoint_now()?;
        }
        Ok(false)
    }

    /// What the frame cache has to say.
    fn tell_cache(&mut self) {
        let notices = self.job.cache.as_ref().map(|cache| cache.take_notices()).unwrap_or_default();
        for notice in notices {
            (self.on_event)(&Event::Notice(&notice));
        }
    }

    /// How the data kept up, at the end.
    pub(super) fn tell_data(&mut self) {
        self.tell_cache();
        self.data_report.fill = self.job.options.pack_tokens.and_then(|tokens| self.loader.stats().fill(tokens));
        self.data_report.frame_cache = self.job.cache.as_ref().map(|cache| cache.stats());
        (self.on_event)(&Event::Data(&self.data_report));
    }

    /// The micro-batches of the next step; fewer at the end of an epoch, none at the end of the data.
    fn next_window(&mut self) -> Result<Option<Window>> {
        let window = self.collect_window();
        if window.is_err() {
            self.loader.failed().iter().for_each(|event| self.ledger.record(event));
        }
        window
    }

    fn collect_window(&mut self) -> Result<Option<Window>> {
        let (start, _span) = (Instant::now(), profile::span("data"));
        let wanted = self.plan.train.gradient_accumulation_steps;
        let num_epochs = self.plan.train.num_train_epochs.ceil() as u64;
        let (mut batches, mut news) = (Vec::new(), Vec::new());
        let mut num_taken = 0;
        let is_over = |epoch: u64| self.plan.train.max_steps.is_none() && epoch >= num_epochs;
        // A run that was resumed behind the end of its data.
        if self.loader.state().cursor == 0 && is_over(self.loader.state().epoch) {
            return Ok(None);
        }
        let mut epoch_was_empty = self.loader.state().cursor == 0;
        while num_taken < wanted || batches.is_empty() {
            match self.loader.next_batch()? {
                Some((batch, events)) => {
                    num_taken += 1;
                    // What is skipped is skipped; what is handed out counts as trained once its step is done.
                    let (trained, skipped): (Vec<_>, Vec<_>) =
                        events.into_iter().partition(|event| event.status == Status::Trained);
                    skipped.iter().for_each(|event| self.ledger.record(event));
                    news.extend(trained);
                    // A batch is empty when each of its records was skipped.
                    if batch.num_supervised() > 0 {
                        batches.push(batch);
                    }
                    epoch_was_empty &= batches.is_empty();
                }
                None if !batches.is_empty() => break,
                // Before the end of the run is looked for: a run of empty passes trained nothing.
                None if epoch_was_empty => return Err(self.nothing_trained()),
                None if is_over(self.loader.state().epoch) => return Ok(None),
                None => {
                    num_taken = 0;
                    epoch_was_empty = true;
                }
            }
        }
        Ok(Some(Window { batches, news, data_time: start.elapsed().as_secs_f64() }))
    }

    /// Tells once a record what was not as asked; the ledger holds the notes of all.
    fn tell_notes(&mut self, event: &LedgerEvent) {
        if event.notes.is_empty() || self.ledger.is_noted(event.index) {
            return;
        }
        let notice = match self.num_noted.cmp(&MAX_NOTICES) {
            Ordering::Less => format!("record `{}`: {}", event.id, event.notes.join("; ")),
            Ordering::Equal => "the notes of further records are in `ledger.jsonl`".to_owned(),
            Ordering::Greater => return,
        };
        self.num_noted += 1;
        (self.on_event)(&Event::Notice(&notice));
    }

    fn nothing_trained(&self) -> TrainError {
        let reasons = self.ledger.summary().reasons;
        let reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        TrainError::NothingTrained { reasons: reasons.join(", ") }
    }

    /// Notes what a step measured and completes it; returns whether a signal came in between.
    fn after_step(&mut self, outcome: StepOutcome, cost: Cost) -> Result<bool> {
        let loader = self.loader.state();
        // The loader says that an epoch is over either on its last batch or one call later.
        let is_epoch_end = loader.cursor == 0 || loader.cursor >= loader.num_records;
        let epoch = self.epoch();
        let Cost { step_time, data_time, peak_memory_bytes } = cost;
        let model_flops = outcome.flops - outcome.recomputed_flops;
        let metrics = StepMetrics {
            step: outcome.step,
            epoch,
            loss: outcome.loss,
            grad_norm: outcome.grad_norm,
            learning_rate: outcome.learning_rate,
            supervised_tokens: outcome.supervised_tokens,
            input_tokens: outcome.input_tokens,
            samples: outcome.samples,
            text_tokens: outcome.input_tokens - outcome.visual_tokens,
            visual_tokens: outcome.visual_tokens,
            frames: outcome.frames,
            step_time,
            data_time,
            forward_time: outcome.forward_time,
            backward_time: outcome.backward_time,
            optimizer_time: outcome.optimizer_time,
            peak_memory_bytes,
            resident_memory_bytes: resident_bytes(),
            tokens_per_second: rate(outcome.input_tokens, step_time),
            samples_per_second: rate(outcome.samples, step_time),
            frames_per_second: rate(outcome.frames, step_time),
            flops: outcome.flops,
            recomputed_flops: outcome.recomputed_flops,
            mfu: self.profiler.as_ref().map(|profiler| profiler.mfu(model_flops, step_time)),
            eval_loss: None,
            eval_time: None,
        };
        if let Some(profiler) = &mut self.profiler {
            profiler.add_step(&metrics);
        }
        self.data_report.data_time += data_time;
        self.data_report.step_time += step_time;
        self.tell_cache();
        self.last_loss = Some(outcome.loss);
        self.progress.loss_sum += outcome.loss;
        self.progress.num_losses += 1;
        self.progress.input_tokens += outcome.input_tokens;
        self.tell_never_reached(outcome.never_reached);
        if self.report_is_due(metrics.step) {
            self.log_step(&metrics);
        }
        self.complete_step(Pending { metrics, is_epoch_end })
    }

    fn report_is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.plan.train.logging_steps) || step == self.trainer.schedule().num_training_steps
    }

    /// Evaluates, writes the step's line and its checkpoint. A signal during the evaluation ends the run with a checkpoint that
    /// remembers the step as pending, so that the evaluation is made by the resumption.
    fn complete_step(&mut self, pending: Pending) -> Result<bool> {
        let Pending { mut metrics, is_epoch_end } = pending.clone();
        let (train, step) = (&self.plan.train, metrics.step);
        let num_steps = self.trainer.schedule().num_training_steps;
        let is_last = step == num_steps;
        let due = |strategy: Strategy, every: Option<u64>| match strategy {
            Strategy::No => false,
            Strategy::Epoch => is_epoch_end || is_last,
            Strategy::Steps => every.is_some_and(|every| step.is_multiple_of(every)),
        };
        let save = due(train.save_strategy, Some(train.save_steps)) || (is_last && train.save_strategy != Strategy::No);
        if due(train.evaluation(), train.eval_steps) && !self.evaluate(&mut metrics, save)? {
            self.progress.pending = Some(pending);
            self.checkpoint_now()?;
            return Ok(true);
        }
        self.metrics.add(&metrics)?;
        self.tell_features();
        self.tell_step(&metrics, num_steps, self.report_is_due(step));
        if save {
            self.checkpoint_now()?;
        }
        Ok(false)
    }

    /// What the feature cache has to say.
    pub(super) fn tell_features(&mut self) {
        let notices = self.trainer.features.as_mut().map(FeatureCache::take_notices).unwrap_or_default();
        for notice in notices {
            (self.on_event)(&Event::Notice(&notice));
        }
    }

    pub(super) fn tell_never_reached(&mut self, names: Option<Vec<String>>) {
        if let Some(names) = names.filter(|names| !names.is_empty()) {
            let shown = first_few(names.iter().map(String::as_str));
            let notice = format!(
                "{} trainable tensor(s) were not reached by any batch of the first steps: {shown}",
                names.len()
            );
            (self.on_event)(&Event::Notice(&notice));
        }
    }

    /// Tells what became of the trace.
    pub(super) fn tell_trace(&mut self, news: Option<TraceNews>) {
        let Some(TraceNews { path, notice }) = news else { return };
        if let Some(path) = path {
            (self.on_event)(&Event::TraceWritten { path: &path });
        }
        if let Some(notice) = notice {
            (self.on_event)(&Event::Notice(&notice));
        }
    }

    /// Passes over the data so far, with the part of the present one.
    pub(super) fn epoch(&self) -> f64 {
        let loader = self.loader.state();
        loader.epoch as f64 + loader.cursor as f64 / loader.num_records.max(1) as f64
    }

    fn log_step(&mut self, metrics: &StepMetrics) {
        let mean = self.progress.loss_sum / self.progress.num_losses.max(1) as f64;
        (self.progress.loss_sum, self.progress.num_losses) = (0.0, 0);
        self.progress.log_history.push(LogEntry {
            epoch: metrics.epoch,
            step: metrics.step,
            loss: Some(mean),
            grad_norm: Some(metrics.grad_norm),
            learning_rate: Some(metrics.learning_rate),
            eval_loss: None,
            eval_runtime: None,
        });
    }

    /// Evaluates after a step; false when a signal came before the end.
    fn evaluate(&mut self, metrics: &mut StepMetrics, is_saved: bool) -> Result<bool> {
        let Some(set) = &self.job.eval else {
            return Ok(true);
        };
        let step = metrics.step;
        (self.on_event)(&Event::EvaluationStarted { step, records: set.dataset.len() });
        let (start, span) = (Instant::now(), profile::span("evaluation"));
        let mut noted = Vec::new();
        let Some(loss) = eval_loss(&self.trainer.model, &mut self.trainer.features, set, self.stop, &mut noted)? else {
            return Ok(false);
        };
        drop(span);
        self.note(Phase::Evaluation, start);
        // They are the same at every evaluation.
        if !std::mem::replace(&mut self.has_told_eval_notes, true) {
            let more = noted.len().saturating_sub(MAX_NOTICES as usize);
            for event in noted.iter().take(MAX_NOTICES as usize) {
                let notice = format!("evaluation record `{}`: {}", event.id, event.notes.join("; "));
                (self.on_event)(&Event::Notice(&notice));
            }
            if more > 0 {
                (self.on_event)(&Event::Notice(&format!("{more} more evaluation records have notes")));
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        (metrics.eval_loss, metrics.eval_time) = (Some(loss), Some(seconds));
        // Only a step with a checkpoint can be gone back to.
        let counts = is_saved || !self.plan.train.load_best_model_at_end;
        if counts && self.progress.best.is_none_or(|best| loss < best.eval_loss) {
            self.progress.best = Some(Best { step, eval_loss: loss });
        }
        self.progress.log_history.push(LogEntry {
            epoch: metrics.epoch,
            step,
            loss: None,
            grad_norm: None,
            learning_rate: None,
            eval_loss: Some(loss),
            eval_runtime: Some(seconds),
        });
        (self.on_event)(&Event::Evaluated { step, eval_loss: loss, seconds });
        Ok(true)
    }

    fn tell_step(&mut self, metrics: &StepMetrics, num_steps: u64, report: bool) {
        let seconds = self.started.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        self.progress.seconds = self.seconds_before + seconds;
        let steps_here = (metrics.step - self.steps_before).max(1) as f64;
        let tokens_per_second = (self.progress.input_tokens - self.tokens_before) as f64 / seconds;
        let seconds_left = seconds / steps_here * (num_steps - metrics.step) as f64;
        (self.on_event)(&Event::Step { metrics, num_steps, tokens_per_second, seconds_left, report });
    }

    /// Writes a checkpoint of the present step unless it stands already, and removes those beyond the limit.
    fn checkpoint_now(&mut self) -> Result<()> {
        let step = self.trainer.step_count();
        let target = checkpoint::folder(&self.output_dir, step);
        if step == 0 || self.last_checkpoint.as_ref() == Some(&target) {
            return Ok(());
        }
        let (start, span) = (Instant::now(), profile::span("checkpoint"));
        // A checkpoint of step N promises the metrics up to step N.
        self.metrics.sync()?;
        let state = RunState::new(
            &self.trainer,
            self.plan,
            self.loader.state(),
            self.ledger.clone(),
            self.progress.clone(),
            &self.job,
        );
        let contents =
            Contents { plan: self.plan, processor: &self.job.processor, state, trainer_state: self.trainer_state() };
        let path = checkpoint::save(&self.output_dir, &self.trainer, &contents)?;
        drop(span);
        self.note(Phase::Checkpoint, start);
        (self.on_event)(&Event::CheckpointWritten { path: &path });
        self.last_checkpoint = Some(path);
        let best = self.progress.best.map(|best| best.step);
        for path in checkpoint::prune(&self.output_dir, self.plan.train.save_total_limit, best)? {
            (self.on_event)(&Event::CheckpointRemoved { path: &path });
        }
        Ok(())
    }

    pub(super) fn trainer_state(&self) -> TrainerState {
        let train = &self.plan.train;
        let best = self.progress.best;
        let best_folder = best.map(|best| checkpoint::folder(&self.output_dir, best.step));
        let num_steps = self.trainer.schedule().num_training_steps;
        TrainerState {
            best_metric: best.map(|best| best.eval_loss),
            best_model_checkpoint: best_folder.map(|path| path.display().to_string()),
            best_global_step: best.map(|best| best.step),
            epoch: self.epoch(),
            eval_steps: train.eval_steps,
            global_step: self.trainer.step_count(),
            is_local_process_zero: true,
            is_world_process_zero: true,
            log_history: self.progress.log_history.clone(),
            logging_steps: train.logging_steps,
            max_steps: num_steps,
            num_input_tokens_seen: self.progress.input_tokens,
            num_train_epochs: self.job.count.num_epochs(),
            save_steps: train.save_steps,
            train_batch_size: train.per_device_train_batch_size,
        }
    }
}
