//! Collects what a process measures and makes a [`Profile`] of it. Owns the traced steps' recording; it takes no time of a
//! step itself, the run hands them over.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tensor::profile::{Recording, start};
use tensor::{DType, memory};

use super::files::TRACE_JSON;
use super::stats::Summary;
use super::{Profile, Row, StepsCovered, chrome_trace, left_out, machine_peak, rate, resident_peak_bytes};
use crate::error::Result;
use crate::metrics::StepMetrics;
use crate::plan::{StepWindow, TrainPlan};

/// Most spans of a trace: about 20 MB while it is recorded.
const MAX_SPANS: usize = 1 << 18;

/// What happens beside steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Until the first step: model, data, state of a resumption, and the measurement of the machine's peak.
    Load,
    /// One evaluation.
    Evaluation,
    /// One checkpoint.
    Checkpoint,
    /// The final model.
    Export,
}

const PHASES: [(Phase, &str); 4] = [
    (Phase::Load, "load"),
    (Phase::Evaluation, "evaluation"),
    (Phase::Checkpoint, "checkpoint"),
    (Phase::Export, "export"),
];

/// Collects one process's measurements.
pub(crate) struct Profiler {
    output_dir: PathBuf,
    started: Instant,
    peak_flops: f64,
    /// Where the data stood when this process began.
    epoch_before: f64,
    steps_before: u64,
    /// When the first step began, and the seconds from there to the end of the last.
    loop_started: Instant,
    loop_seconds: f64,
    steps: Vec<Sample>,
    last_step: u64,
    epoch: f64,
    others: Vec<(Phase, f64)>,
    peak_bytes: usize,
    window: Option<StepWindow>,
    recording: Option<Recording>,
}

/// What became of the trace.
pub(crate) struct TraceNews {
    /// The file, where there is one.
    pub(crate) path: Option<PathBuf>,
    /// What people should know about it.
    pub(crate) notice: Option<String>,
}

/// What one step contributes: 96 bytes, so that long runs can be profiled too.
#[derive(Debug, Clone, Copy)]
struct Sample {
    step: f64,
    data: f64,
    forward: f64,
    backward: f64,
    optimizer: f64,
    tokens: u64,
    visual: u64,
    supervised: u64,
    samples: u64,
    frames: u64,
    flops: u64,
    recomputed: u64,
}

impl Sample {
    fn of(m: &StepMetrics) -> Sample {
        Sample {
            step: m.step_time,
            data: m.data_time,
            forward: m.forward_time,
            backward: m.backward_time,
            optimizer: m.optimizer_time,
            tokens: m.input_tokens,
            visual: m.visual_tokens,
            supervised: m.supervised_tokens,
            samples: m.samples,
            frames: m.frames,
            flops: m.flops,
            recomputed: m.recomputed_flops,
        }
    }

    /// Time of the step outside of its four parts.
    fn other(&self) -> f64 {
        (self.step - self.data - self.forward - self.backward - self.optimizer).max(0.0)
    }
}

/// A phase of a step.
type Seconds = fn(&Sample) -> f64;
/// Something counted in a step.
type Count = fn(&Sample) -> u64;

const PARTS: [(&str, Seconds); 6] = [
    ("step", |s| s.step),
    ("data", |s| s.data),
    ("forward", |s| s.forward),
    ("backward", |s| s.backward),
    ("optimizer", |s| s.optimizer),
    ("other", Sample::other),
];

const RATES: [(&str, Count); 7] = [
    ("tokens_per_second", |s| s.tokens),
    ("text_tokens_per_second", |s| s.tokens - s.visual),
    ("visual_tokens_per_second", |s| s.visual),
    ("supervised_tokens_per_second", |s| s.supervised),
    ("samples_per_second", |s| s.samples),
    ("frames_per_second", |s| s.frames),
    ("flops_per_second", |s| s.flops),
];

const UTILISATIONS: [(&str, Count); 2] = [("mfu", |s| s.flops - s.recomputed), ("hfu", |s| s.flops)];

impl Profiler {
    /// Begins to measure a process.
    pub(crate) fn new(train: &TrainPlan, output_dir: &Path) -> Profiler {
        memory::reset_peak();
        let now = Instant::now();
        Profiler {
            output_dir: output_dir.to_owned(),
            started: now,
            peak_flops: 0.0,
            epoch_before: 0.0,
            steps_before: 0,
            loop_started: now,
            loop_seconds: 0.0,
            steps: Vec::new(),
            last_step: 0,
            epoch: 0.0,
            others: Vec::new(),
            peak_bytes: 0,
            window: train.trace_steps,
            recording: None,
        }
    }

    /// Everything is loaded; measures the machine's peak and lets the first step begin.
    pub(crate) fn loaded(&mut self, compute: DType, steps_before: u64, epoch_before: f64) -> Result<()> {
        self.note_peak();
        self.peak_flops = machine_peak(compute)?;
        memory::reset_peak();
        (self.steps_before, self.epoch_before, self.epoch) = (steps_before, epoch_before, epoch_before);
        self.loop_started = Instant::now();
        self.add(Phase::Load, (self.loop_started - self.started).as_secs_f64());
        Ok(())
    }

    /// Before each step, and before whatever resets the engine's peak: starts and ends the recording of the traced steps.
    pub(crate) fn before_step(&mut self) -> Result<Option<TraceNews>> {
        self.note_peak();
        let Some(window) = self.window else {
            return Ok(None);
        };
        let step = self.steps.len() as u64 + 1;
        if step > window.last {
            return self.end_trace();
        }
        if step != window.first {
            return Ok(None);
        }
        self.recording = start(MAX_SPANS);
        let notice = "no `trace.json`: another run of this process is being traced";
        Ok(self.recording.is_none().then(|| TraceNews { path: None, notice: Some(notice.to_owned()) }))
    }

    /// Writes what was recorded, if anything was.
    fn end_trace(&mut self) -> Result<Option<TraceNews>> {
        let Some(recording) = self.recording.take() else {
            return Ok(None);
        };
        self.window = None;
        let trace = recording.finish();
        let path = self.output_dir.join(TRACE_JSON);
        hub::atomic_write(&path, chrome_trace(&trace, std::process::id()).as_bytes())?;
        let notice = (trace.num_dropped > 0).then(|| {
            let (kept, dropped) = (trace.spans.len(), trace.num_dropped);
            format!(
                "`{TRACE_JSON}` holds {kept} spans and had no place for {dropped} more: shorten `train.trace_steps`"
            )
        });
        Ok(Some(TraceNews { path: Some(path), notice }))
    }

    /// The part of the machine's peak that a step used, without recomputation.
    pub(crate) fn mfu(&self, flops: u64, seconds: f64) -> f64 {
        rate(flops, seconds) / self.peak_flops
    }

    /// Adds a step of this process.
    pub(crate) fn add_step(&mut self, metrics: &StepMetrics) {
        self.steps.push(Sample::of(metrics));
        (self.last_step, self.epoch) = (metrics.step, metrics.epoch);
    }

    /// Adds something that happened beside the steps.
    pub(crate) fn add(&mut self, phase: Phase, seconds: f64) {
        self.others.push((phase, seconds));
    }

    /// The last step and what belongs to it are done.
    pub(crate) fn end_of_steps(&mut self) {
        self.loop_seconds = self.loop_started.elapsed().as_secs_f64();
        self.note_peak();
    }

    fn note_peak(&mut self) {
        self.peak_bytes = self.peak_bytes.max(memory::stats().peak_bytes);
    }

    /// The profile, written to its files; none where this process made no step.
    pub(crate) fn finish(&mut self, optimizer_bytes: u64) -> Result<(Option<Profile>, Option<TraceNews>)> {
        let news = self.end_trace()?;
        self.note_peak();
        let wall = self.started.elapsed().as_secs_f64();
        let profile = self.profile(wall, optimizer_bytes);
        if let Some(profile) = &profile {
            profile.write(&self.output_dir)?;
        }
        Ok((profile, news))
    }

    fn profile(&self, wall: f64, optimizer_bytes: u64) -> Option<Profile> {
        let left_out = left_out(self.steps.len());
        let measured = &self.steps[left_out..];
        let phases = self.phases(measured, wall);
        let step = phases.iter().find(|row| row.name == "step")?.summary;
        let mean = |name| phases.iter().find(|row| row.name == name).map(|row| row.summary.mean);
        let seconds: f64 = measured.iter().map(|s| s.step).sum();
        let total = |count: Count| self.steps.iter().map(count).sum::<u64>();
        let per_second = |count: Count| rate(measured.iter().map(count).sum(), seconds);
        let [tokens, text, visual, supervised, samples, frames, flops] = RATES.map(|(_, count)| count);
        let [model_flops, all_flops] = UTILISATIONS.map(|(_, count)| per_second(count));
        let epochs = self.epoch - self.epoch_before;
        let gb = |bytes: u64| bytes as f64 / 1e9;
        Some(Profile {
            wall_clock_time_total: wall,
            epoch_time_mean: if epochs > 0.0 { self.loop_seconds / epochs } else { self.loop_seconds },
            epoch_time_total: self.loop_seconds,
            step_time_mean: step.mean,
            step_time_median: step.median,
            step_time_p95: step.p95,
            data_time_mean: mean("data")?,
            forward_time_mean: mean("forward")?,
            backward_time_mean: mean("backward")?,
            optimizer_time_mean: mean("optimizer")?,
            evaluation_time_mean: mean("evaluation"),
            tokens_processed: total(tokens),
            tokens_per_second: per_second(tokens),
            text_tokens_processed: total(text),
            text_tokens_per_second: per_second(text),
            visual_tokens_processed: total(visual),
            visual_tokens_per_second: per_second(visual),
            supervised_tokens_processed: total(supervised),
            supervised_tokens_per_second: per_second(supervised),
            samples_processed: total(samples),
            samples_per_second: per_second(samples),
            frames_processed: total(frames),
            frames_per_second: per_second(frames),
            flops_total: total(flops),
            recomputed_flops_total: total(|s| s.recomputed),
            flops_per_second: per_second(flops),
            peak_flops_per_second: self.peak_flops,
            mfu: model_flops / self.peak_flops,
            hfu: all_flops / self.peak_flops,
            peak_memory_gb: gb(self.peak_bytes as u64),
            optimizer_memory_gb: gb(optimizer_bytes),
            resident_peak_gb: resident_peak_bytes().map(gb),
            steps: StepsCovered {
                before: self.steps_before,
                first: self.last_step + 1 - self.steps.len() as u64,
                last: self.last_step,
                count: self.steps.len() as u64,
                left_out: left_out as u64,
            },
            rates: self.rates(measured),
            phases,
        })
    }

    fn phases(&self, measured: &[Sample], wall: f64) -> Vec<Row> {
        let row = |name, values: Vec<f64>, total: f64| {
            let summary = Summary::of(values)?;
            Some(Row { name, unit: "s", summary, total: Some(total), share: Some(total / wall) })
        };
        let parts = PARTS.iter().filter_map(|(name, seconds)| {
            row(name, measured.iter().map(seconds).collect(), self.steps.iter().map(seconds).sum())
        });
        let others = PHASES.iter().filter_map(|(phase, name)| {
            let values = self.others.iter().filter(|(other, _)| other == phase).map(|(_, seconds)| *seconds);
            row(name, values.clone().collect(), values.sum())
        });
        parts.chain(others).collect()
    }

    fn rates(&self, measured: &[Sample]) -> Vec<Row> {
        let row = |name, unit, values: Vec<f64>| {
            Some(Row { name, unit, summary: Summary::of(values)?, total: None, share: None })
        };
        let rates = RATES
            .iter()
            .filter_map(|(name, count)| row(name, "1/s", measured.iter().map(|s| rate(count(s), s.step)).collect()));
        let utilisations = UTILISATIONS.iter().filter_map(|(name, count)| {
            row(name, "ratio", measured.iter().map(|s| self.mfu(count(s), s.step)).collect())
        });
        rates.chain(utilisations).collect()
    }
}
