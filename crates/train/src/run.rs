//! A whole run: from a checked plan to `final_model/`, with metrics, evaluations, checkpoints and exact resumption. Owns the
//! order of these; each of them lives in its own file.
//!
//! What survives a kill at any instant: checkpoints appear whole or not at all, `metrics.jsonl` is cut back to the checkpoint
//! that a resumption starts from, and everything between is computed again with the same bits.

mod course;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use data::{Ledger, LedgerSummary, Loader};
use tensor::profile;

use crate::checkpoint::{self, Progress, RunState};
use crate::error::{ExitClass, Result, TrainError};
use crate::event::{DataReport, Event};
use crate::export::{self, CardFacts, FINAL_MODEL, NextSteps, next_steps};
use crate::metrics::MetricsFile;
use crate::plan::Plan;
use crate::profile::{Phase, Profiler};
use crate::setup::{Job, prepare};
use crate::step::Trainer;

/// Where a run starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Resume {
    /// At the beginning, in a folder without an earlier run.
    #[default]
    Never,
    /// At the newest checkpoint of the output folder, or at the beginning where there is neither a checkpoint nor a
    /// finished run.
    Auto,
    /// At a given checkpoint folder.
    From(PathBuf),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOutcome {
    /// Whether a signal stopped it before its last step.
    pub preempted: bool,
    /// Optimizer steps done.
    pub steps: u64,
    /// The exported folder, unless the run was stopped.
    pub final_model: Option<PathBuf>,
    /// The checkpoint to resume from, where one was written.
    pub checkpoint: Option<PathBuf>,
    /// Loss of the last step of this process.
    pub last_loss: Option<f64>,
    /// Best evaluation.
    pub best_eval_loss: Option<f64>,
    /// What became of the records.
    pub ledger: LedgerSummary,
    /// What to do with the model.
    pub next_steps: Option<NextSteps>,
}

impl RunOutcome {
    /// The class that decides the exit code; `None` for a finished run.
    pub fn class(&self) -> Option<ExitClass> {
        self.preempted.then_some(ExitClass::Preempted)
    }
}

/// Runs a plan to its end, or until `stop` becomes true, which ends the run after the present step with a checkpoint.
///
/// # Errors
/// Everything in [`TrainError`]. Checkpoints and metrics written so far stay, and `ledger.jsonl` says what became of each record.
pub fn run(
    plan: &Plan,
    resume: &Resume,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(&Event<'_>),
) -> Result<RunOutcome> {
    plan.check()?;
    let output_dir = plan.output_dir();
    let start = starting_point(plan, resume)?;
    fs::create_dir_all(&output_dir).map_err(|source| TrainError::io("create", &output_dir, source))?;
    let _lock = lock(&output_dir)?;
    checkpoint::sweep(&output_dir)?;
    let profiler = plan.train.profile.then(|| Profiler::new(&plan.train, &output_dir));
    let (job, trainer) = prepare(plan, on_event)?;
    checkpoint::write_json(&output_dir.join("plan.json"), &plan.to_json())?;
    if let Some(file) = &plan.parallel.deepspeed {
        let bytes = fs::read(file).map_err(|source| TrainError::io("read", file, source))?;
        hub::atomic_write(output_dir.join("ds_config.json"), &bytes)?;
    }
    let mut run = Run::new(plan, job, trainer, stop, on_event, start)?;
    run.preflight()?;
    run.measure_with(profiler)?;
    let result = run.train();
    // Also after a failure: the ledger says which records were used before it.
    let ledger = run.write_ledger();
    let preempted = result?;
    ledger?;
    run.finish(preempted)
}

/// The checkpoint to start from, after checking that it belongs to this plan.
fn starting_point(plan: &Plan, resume: &Resume) -> Result<Option<(PathBuf, RunState)>> {
    let output_dir = plan.output_dir();
    let dir = match resume {
        Resume::Never => {
            return match earlier_run(&output_dir)? {
                None => Ok(None),
                Some(found) => Err(TrainError::OutputInUse { path: output_dir, found }),
            };
        }
        Resume::Auto => match checkpoint::steps(&output_dir)?.last() {
            None if output_dir.join(FINAL_MODEL).exists() => return Err(TrainError::Finished { path: output_dir }),
            None => return Ok(None),
            Some(step) => checkpoint::folder(&output_dir, *step),
        },
        Resume::From(dir) => dir.clone(),
    };
    let state = checkpoint::read_state(&dir)?;
    let changed = plan.changed_keys(&state.plan);
    if !changed.is_empty() {
        return Err(TrainError::PlanChanged { checkpoint: dir, changed });
    }
    Ok(Some((dir, state)))
}

/// What shows that a folder holds a run already.
fn earlier_run(output_dir: &Path) -> Result<Option<String>> {
    let steps = checkpoint::steps(output_dir)?;
    if let Some(step) = steps.last() {
        return Ok(Some(format!("checkpoint-{step}")));
    }
    let found = [FINAL_MODEL, "metrics.jsonl"]
        .into_iter()
        .find(|name| fs::metadata(output_dir.join(name)).is_ok_and(|meta| meta.is_dir() || meta.len() > 0));
    Ok(found.map(str::to_owned))
}

/// Keeps a second process out of the folder; the system gives the lock back however this one ends.
fn lock(output_dir: &Path) -> Result<File> {
    let path = output_dir.join(".lock");
    let file = File::create(&path).map_err(|source| TrainError::io("create", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            let found = "another process is running in it".to_owned();
            Err(TrainError::OutputInUse { path: output_dir.to_owned(), found })
        }
        Err(fs::TryLockError::Error(source)) => Err(TrainError::io("lock", &path, source)),
    }
}

struct Run<'a> {
    plan: &'a Plan,
    output_dir: PathBuf,
    job: Job,
    trainer: Trainer,
    loader: Loader,
    ledger: Ledger,
    progress: Progress,
    metrics: MetricsFile,
    stop: &'a AtomicBool,
    on_event: &'a mut dyn FnMut(&Event<'_>),
    last_loss: Option<f64>,
    last_checkpoint: Option<PathBuf>,
    /// Records whose notes were told.
    num_noted: u64,
    has_told_eval_notes: bool,
    profiler: Option<Profiler>,
    started: Instant,
    seconds_before: f64,
    steps_before: u64,
    tokens_before: u64,
    data_report: DataReport,
}

impl<'a> Run<'a> {
    fn new(
        plan: &'a Plan,
        job: Job,
        mut trainer: Trainer,
        stop: &'a AtomicBool,
        on_event: &'a mut dyn FnMut(&Event<'_>),
        start: Option<(PathBuf, RunState)>,
    ) -> Result<Run<'a>> {
        let output_dir = plan.output_dir();
        if job.options.group_by_length.is_some() {
            on_event(&Event::Measuring { records: job.num_records() });
        }
        let loader = job.loader(start.as_ref().map(|(_, state)| state.loader.clone()))?;
        let (mut ledger, mut progress) = (Ledger::new(job.num_records()), Progress::default());
        let last_checkpoint = start.as_ref().map(|(dir, _)| dir.clone());
        if let Some((dir, state)) = start {
            state.check_dataset(&job)?;
            if state.base_files != job.base_files {
                let message = "the base model's files are not those that the run began with";
                return Err(TrainError::checkpoint(&dir, message));
            }
            if state.num_training_steps != trainer.schedule().num_training_steps {
                let (then, now) = (state.num_training_steps, trainer.schedule().num_training_steps);
                return Err(TrainError::checkpoint(
                    &dir,
                    format!("the run had {then} steps and has {now} now: the dataset changed"),
                ));
            }
            checkpoint::restore(&dir, plan, &mut trainer, &state)?;
            (ledger, progress) = (state.ledger, state.progress);
        }
        if plan.train.load_best_model_at_end {
            // Resumed from another folder: its best checkpoint is not among ours.
            progress.best = progress.best.filter(|best| checkpoint::folder(&output_dir, best.step).is_dir());
        }
        let num_complete = trainer.step_count() - u64::from(progress.pending.is_some());
        let metrics = MetricsFile::open_at(&output_dir.join("metrics.jsonl"), num_complete)?;
        for notice in job.notices(plan) {
            on_event(&Event::Notice(&notice));
        }
        on_event(&Event::Ready {
            parts: &job.selection.parts,
            records: job.num_records(),
            num_steps: trainer.schedule().num_training_steps,
            steps_done: trainer.step_count(),
            planned_peak_bytes: job.planned_peak,
        });
        let (seconds_before, tokens_before, steps_before) =
            (progress.seconds, progress.input_tokens, trainer.step_count());
        let started = Instant::now();
        let last_loss = None;
        let num_noted = ledger.summary().noted;
        Ok(Run {
            plan,
            output_dir,
            job,
            trainer,
            loader,
            ledger,
            progress,
            metrics,
            stop,
            on_event,
            last_loss,
            last_checkpoint,
            num_noted,
            has_told_eval_notes: false,
            profiler: None,
            started,
            seconds_before,
            steps_before,
            tokens_before,
            data_report: DataReport::default(),
        })
    }

    /// The largest batch forward and backward once, where the plan asks for it; nothing changes by it.
    fn preflight(&mut self) -> Result<()> {
        if let Some(batch) = self.job.largest.take().filter(|batch| batch.num_supervised() > 0) {
            // A second micro-batch has the gradients of the first beside it; a third needs no more.
            let rehearsal = self.trainer.rehearse(&batch, self.plan.train.gradient_accumulation_steps.min(2))?;
            (self.on_event)(&Event::Preflight(&rehearsal));
            self.started = Instant::now();
        }
        Ok(())
    }

    /// Everything is loaded: measurements begin where the plan asks for them.
    fn measure_with(&mut self, profiler: Option<Profiler>) -> Result<()> {
        self.profiler = profiler;
        let epoch = self.epoch();
        if let Some(profiler) = &mut self.profiler {
            profiler.loaded(self.trainer.model.compute(), self.trainer.step_count(), epoch)?;
            self.started = Instant::now();
        }
        Ok(())
    }

    fn write_ledger(&self) -> Result<()> {
        Ok(self.ledger.write_jsonl(&self.output_dir.join("ledger.jsonl"), |index| self.job.record_id(index))?)
    }

    fn finish(mut self, preempted: bool) -> Result<RunOutcome> {
        self.metrics.sync()?;
        if let Some(profiler) = &mut self.profiler {
            profiler.end_of_steps();
        }
        self.tell_data();
        self.tell_features();
        if let Some(cache) = &self.trainer.features {
            (self.on_event)(&Event::Notice(&cache.summary()));
        }
        if !preempted {
            let never_reached = self.trainer.end_watch()?;
            self.tell_never_reached(never_reached);
        }
        let steps = self.trainer.step_count();
        let mut outcome = RunOutcome {
            preempted,
            steps,
            final_model: None,
            checkpoint: self.last_checkpoint.clone(),
            last_loss: self.last_loss,
            best_eval_loss: self.progress.best.map(|best| best.eval_loss),
            ledger: self.ledger.summary(),
            next_steps: None,
        };
        if preempted {
            self.write_profile()?;
            return Ok(outcome);
        }
        checkpoint::write_json(&self.output_dir.join("trainer_state.json"), &self.trainer_state())?;
        if let Some(best) =
            self.progress.best.filter(|best| self.plan.train.load_best_model_at_end && best.step != steps)
        {
            checkpoint::restore_weights(&checkpoint::folder(&self.output_dir, best.step), self.plan, &self.trainer)?;
            let notice =
                format!("the final model is that of step {} (evaluation loss {:.4})", best.step, best.eval_loss);
            (self.on_event)(&Event::Notice(&notice));
        }
        let facts = CardFacts {
            steps,
            loss: self.last_loss.or_else(|| self.progress.log_history.iter().rev().find_map(|entry| entry.loss)),
            eval_loss: outcome.best_eval_loss,
            records: self.job.num_records(),
            kind: self.job.kind,
        };
        let start = Instant::now();
        let span = profile::span("export");
        let path = export::export(self.plan, &self.trainer.model, &self.job.processor, &self.job.model_dir, &facts)?;
        drop(span);
        self.note(Phase::Export, start);
        (self.on_event)(&Event::Exported { path: &path });
        self.write_profile()?;
        outcome.next_steps = Some(next_steps(self.plan, &path, self.job.kind));
        outcome.final_model = Some(path);
        Ok(outcome)
    }

    /// Adds the time since `start` to the profile, where one is made.
    fn note(&mut self, phase: Phase, start: Instant) {
        if let Some(profiler) = &mut self.profiler {
            profiler.add(phase, start.elapsed().as_secs_f64());
        }
    }

    fn write_profile(&mut self) -> Result<()> {
        let Some(profiler) = &mut self.profiler else {
            return Ok(());
        };
        let (profile, news) = profiler.finish(self.trainer.optimizer.num_bytes())?;
        self.tell_trace(news);
        match &profile {
            Some(profile) => (self.on_event)(&Event::Profiled { profile, path: &self.output_dir }),
            None => (self.on_event)(&Event::Notice("this process made no step: there is no profile of it")),
        }
        Ok(())
    }
}
