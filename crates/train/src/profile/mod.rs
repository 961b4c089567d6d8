//! What a run says about its own speed: `profile.json`, `profile.csv`, `trace.json`. Owns what the figures mean and how they
//! are put together; times are taken where the work is done, spans and operations counted by `tensor::profile`.
//!
//! Only the steps of this process count, so a resumed run has the profile of its last part. The first steps of a process are
//! slower than the others (buffers are made, files are read for the first time): they are left out of every statistic and
//! rate, at most [`WARMUP_STEPS`] of them and at most a third. Totals and shares count everything, so that they add up.
//!
//! Operations are those of matrix products, counted from their shapes as they run: two for each multiplication with its
//! addition. The head's gradient is computed chunk by chunk in the forward pass and counts in its time.

mod files;
mod process;
mod profiler;
mod stats;
mod trace;

use std::time::{Duration, Instant};

use serde::Serialize;
use tensor::DType;
use tensor::bench::{GemmBench, Product};

use crate::error::Result;

pub use files::{PROFILE_CSV, PROFILE_JSON, TRACE_JSON};
pub use process::{resident_bytes, resident_peak_bytes};
pub(crate) use profiler::{Phase, Profiler, TraceNews};
pub use stats::{Summary, percentile};
pub use trace::chrome_trace;

/// Most steps at the beginning of a process that statistics leave out.
pub const WARMUP_STEPS: usize = 2;

/// How long the machine's peak is measured.
const PEAK_TIME: Duration = Duration::from_millis(300);

/// What a process measured over its part of a run. The flat names are those that users of other profilers read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    /// Seconds of this process's run, loading and export included.
    pub wall_clock_time_total: f64,
    /// Seconds of a pass over the data, evaluations and checkpoints included; parts of a pass count as parts.
    pub epoch_time_mean: f64,
    /// Seconds from the first step to the end of the last, evaluations and checkpoints included.
    pub epoch_time_total: f64,
    /// Seconds of a step.
    pub step_time_mean: f64,
    /// The same, median.
    pub step_time_median: f64,
    /// The same, 95th percentile.
    pub step_time_p95: f64,
    /// Seconds of a step spent waiting for batches.
    pub data_time_mean: f64,
    /// Seconds of a step in forward passes.
    pub forward_time_mean: f64,
    /// Seconds of a step in backward passes, recomputation included.
    pub backward_time_mean: f64,
    /// Seconds of a step in norm, clipping and update.
    pub optimizer_time_mean: f64,
    /// Seconds of an evaluation; `null` where there was none.
    pub evaluation_time_mean: Option<f64>,
    /// Input tokens of every step of this process.
    pub tokens_processed: u64,
    /// Input tokens a second of the measured steps' time.
    pub tokens_per_second: f64,
    /// Tokens of text among them.
    pub text_tokens_processed: u64,
    /// Tokens of text a second.
    pub text_tokens_per_second: f64,
    /// Tokens that stand for pictures among them.
    pub visual_tokens_processed: u64,
    /// Tokens that stand for pictures a second.
    pub visual_tokens_per_second: f64,
    /// Supervised tokens among them.
    pub supervised_tokens_processed: u64,
    /// Supervised tokens a second.
    pub supervised_tokens_per_second: f64,
    /// Records.
    pub samples_processed: u64,
    /// Records a second.
    pub samples_per_second: f64,
    /// Pictures: frames of videos, and still images.
    pub frames_processed: u64,
    /// Pictures a second.
    pub frames_per_second: f64,
    /// Operations of every step of this process, recomputation included.
    pub flops_total: u64,
    /// Those that computed a block a second time.
    pub recomputed_flops_total: u64,
    /// Operations a second of the measured steps' time.
    pub flops_per_second: f64,
    /// Rate of a large matrix product on this machine, measured before the first step.
    pub peak_flops_per_second: f64,
    /// Operations without recomputation, as a part of what the peak would have done in the measured steps' time.
    pub mfu: f64,
    /// The same with recomputation.
    pub hfu: f64,
    /// Most bytes that the engine's buffers held, in units of 10^9.
    pub peak_memory_gb: f64,
    /// The optimizer's state at the end, in units of 10^9.
    pub optimizer_memory_gb: f64,
    /// Largest resident size of the process, in units of 10^9; `null` where the system does not tell it.
    pub resident_peak_gb: Option<f64>,
    /// Which steps these are.
    pub steps: StepsCovered,
    /// Where the time went. `data`, `forward`, `backward`, `optimizer` and `other` are the parts of `step`.
    #[serde(serialize_with = "files::by_name")]
    pub phases: Vec<Row>,
    /// Rates of single steps.
    #[serde(serialize_with = "files::by_name")]
    pub rates: Vec<Row>,
}

/// Which steps a profile is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StepsCovered {
    /// Steps that earlier processes of the run made; nothing here counts them.
    pub before: u64,
    /// First step of this process, counted in the whole run.
    pub first: u64,
    /// Last step of this process.
    pub last: u64,
    /// Steps of this process.
    pub count: u64,
    /// How many of them, from the first on, no statistic and no rate counts.
    pub left_out: u64,
}

/// A phase or a rate over the measured steps, or over all evaluations, checkpoints and so on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Such as `forward`.
    #[serde(skip)]
    pub name: &'static str,
    /// `s`, `1/s` or `ratio`.
    pub unit: &'static str,
    /// Statistics without the steps left out.
    #[serde(flatten)]
    pub summary: Summary,
    /// Seconds of all steps of this process; `null` for a rate.
    pub total: Option<f64>,
    /// That as a part of `wall_clock_time_total`.
    pub share: Option<f64>,
}

/// How many of `count` steps are left out of statistics.
pub fn left_out(count: usize) -> usize {
    WARMUP_STEPS.min(count / 3)
}

/// The rate of a large matrix product on all threads in the format that the model computes in, in operations a second: the
/// one place that says what utilisation is a part of. The best of at least two runs, and of as many more as begin within
/// [`PEAK_TIME`].
pub(crate) fn machine_peak(dtype: DType) -> Result<f64> {
    let mut bench = GemmBench::new(Product::Forward, dtype, 1536, 1536, 1536)?;
    let started = Instant::now();
    let mut best = f64::INFINITY;
    for run in 0..8 {
        if run >= 2 && started.elapsed() > PEAK_TIME {
            break;
        }
        let start = Instant::now();
        bench.run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let peak = bench.flops() / best;
    drop(bench);
    tensor::memory::release_free();
    Ok(peak)
}

/// `count` a second; 0 where no time passed.
pub(crate) fn rate(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}
