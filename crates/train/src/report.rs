//! What a plan would do, without doing it: trainable tensors, records, steps, tokens, memory, time. Owns the estimates and says
//! which numbers are estimates; printing is the command line's.

use std::path::{Path, PathBuf};
use std::time::Instant;

use data::{EncodeOptions, Encoded, PackEstimate, collate, estimate_packing};
use models::LossWeights;
use serde::Serialize;
use serde_json::Value as Json;
use tensor::{DType, Gradients, Tape, memory};

use crate::error::Result;
use crate::forecast::{Forecast, MemoryEstimate, changes, forecast, too_large};
use crate::join::BaseModel;
use crate::largest::largest_micro_batches;
use crate::plan::Plan;
use crate::profile::machine_peak;
use crate::selection::{PartCount, check_adapter, select};
use crate::setup::{DataSide, load_model, open_data};

/// Records that are encoded to estimate tokens, spread evenly over the training set.
const SAMPLED_RECORDS: u64 = 16;

/// What a plan would do.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// The resolved plan.
    pub plan: Json,
    /// Folder of the base model.
    pub model_dir: PathBuf,
    /// Counts by part of the model.
    pub parts: Vec<PartCount>,
    /// Every tensor that trains.
    pub trainable: Vec<TrainableRow>,
    /// Modules that carry an adapter.
    pub adapted_modules: Vec<String>,
    /// Tensors that are selected and take no part in the forward pass.
    pub unreached: Vec<String>,
    /// Records of the training set.
    pub records: u64,
    /// Records of the evaluation set, where one is used.
    pub eval_records: Option<u64>,
    /// Steps in a pass over the data, where that is known in advance.
    pub steps_per_epoch: Option<u64>,
    /// Steps of the run.
    pub num_steps: u64,
    /// Steps of warm-up.
    pub num_warmup_steps: u64,
    /// Tokens, estimated from a sample of the records.
    pub tokens: TokenEstimate,
    /// How full batches are, estimated, where they are filled by tokens.
    pub packing: Option<PackEstimate>,
    /// Memory of a step with the largest micro-batch, planned from its shapes: the largest of all with `train.preflight`, else
    /// one of the longest of a sample.
    pub memory: MemoryEstimate,
    /// Time, estimated.
    pub time: TimeEstimate,
    /// One real forward and backward pass, where it was asked for.
    pub measured: Option<Measured>,
}

/// What else to find out.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReportOptions {
    /// Run one forward and backward pass over the largest micro-batch, without an update.
    pub measure: bool,
}

/// One real forward and backward pass over the largest micro-batch; no weight changes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Input tokens of the micro-batch.
    pub input_tokens: u64,
    /// Its loss before any training.
    pub loss: f64,
    /// Seconds of the forward pass.
    pub forward_time: f64,
    /// Seconds of the backward pass.
    pub backward_time: f64,
    /// Largest number of bytes that the engine's buffers held; the optimizer's state comes on top.
    pub peak_memory_bytes: u64,
}

/// One tensor that trains.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainableRow {
    /// Name on disk, or PEFT key.
    pub name: String,
    /// Part of the model.
    pub part: &'static str,
    /// Shape on disk.
    pub shape: Vec<usize>,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

/// Tokens of the training set, from a sample of its records.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TokenEstimate {
    /// Records that were encoded for this.
    pub sampled_records: u64,
    /// Mean input tokens of a record.
    pub mean_input_tokens: f64,
    /// Most input tokens of a sampled record.
    pub max_input_tokens: u64,
    /// Mean supervised tokens of a record.
    pub mean_supervised_tokens: f64,
    /// Mean pictures of a record.
    pub mean_images: f64,
    /// Most pictures of a sampled record.
    pub max_images: u64,
    /// Input tokens of the whole run.
    pub total_input_tokens: f64,
}

/// Time on this machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TimeEstimate {
    /// Floating-point operations of a mean step, planned from its shapes.
    pub flops_per_step: f64,
    /// Rate of a matrix product measured just now, in operations a second.
    pub measured_flops_per_second: f64,
    /// Seconds of a mean step, data not counted.
    pub seconds_per_step: f64,
    /// Seconds of the run, data not counted.
    pub seconds: f64,
}

/// Says what a plan would do; refuses what cannot work with the errors that the run would give.
///
/// # Errors
/// As [`crate::run`] before its first step.
pub fn plan_report(plan: &Plan, options: &ReportOptions) -> Result<PlanReport> {
    plan.check()?;
    let base = BaseModel::for_report(plan)?;
    let model_dir = base.dir.clone();
    let data = open_data(plan, &model_dir, None)?;
    check_adapter(plan)?;
    // Shapes are enough to say what trains: no weight is read.
    let selection = memory::plan(|| select(plan, &mut load_model(plan, &model_dir)?)).value?;
    let sample = sample_for_report(&data)?;
    let packing = estimate_packing(&data.dataset, &data.processor, &data.options);
    let tokens = estimate_tokens(plan, &data, &sample, packing.as_ref());
    let (memory, largest) = check_memory(plan, &model_dir, &data)?;
    let measured = match options.measure {
        true => Some(measure(plan, &model_dir, &largest)?),
        false => None,
    };
    let mean = plan_step(plan, &model_dir, &mean_window(plan, &sample))?;
    let time = estimate_time(plan, &mean, selection.num_trainable(), data.count.num_training_steps)?;
    let rows = selection.tensors.iter().map(|t| TrainableRow {
        name: t.named.name.clone(),
        part: t.named.part.name(),
        shape: t.named.disk_shape.clone(),
        learning_rate: t.learning_rate,
        weight_decay: t.weight_decay,
    });
    Ok(PlanReport {
        plan: plan.to_json(),
        // What is joined for a report goes with it.
        model_dir: if plan.model.joins_parts() { PathBuf::from(plan.base_model()) } else { model_dir },
        trainable: rows.collect(),
        parts: selection.parts,
        adapted_modules: selection.adapted_modules,
        unreached: selection.unreached,
        records: data.dataset.len(),
        eval_records: data.eval.as_ref().map(|set| set.dataset.len()),
        steps_per_epoch: data.count.steps_per_epoch,
        num_steps: data.count.num_training_steps,
        num_warmup_steps: data.schedule.num_warmup_steps,
        tokens,
        packing,
        memory,
        time,
        measured,
    })
}

/// Sizes of one encoded record.
#[derive(Debug, Clone, Copy, Default)]
struct RecordSize {
    input_tokens: u64,
    supervised: u64,
    images: u64,
}

impl RecordSize {
    fn of(record: &Encoded) -> RecordSize {
        RecordSize {
            input_tokens: record.ids.len() as u64,
            supervised: record.num_supervised() as u64,
            images: record.num_images as u64,
        }
    }
}

/// Records spread evenly over the training set, encoded.
fn sample_records(data: &DataSide, most: u64) -> impl Iterator<Item = std::result::Result<Encoded, data::DataError>> {
    let num_records = data.dataset.len();
    let num_sampled = most.min(num_records);
    let options = EncodeOptions { skip_frame_cache: true, ..data.options.encode.clone() };
    (0..num_sampled).map(move |i| {
        let sample = data.dataset.get(i * num_records / num_sampled)?;
        data.processor.encode(&sample, &options)
    })
}

/// The sample of a report: what the run would skip is left out, what it would stop at is an error.
fn sample_for_report(data: &DataSide) -> Result<Vec<Encoded>> {
    let mut records = Vec::new();
    for record in sample_records(data, SAMPLED_RECORDS) {
        match record {
            Ok(encoded) => records.push(encoded),
            Err(error) if error.is_one_record() && data.options.on_bad_media == data::OnBadMedia::Skip => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(records)
}

fn estimate_tokens(plan: &Plan, data: &DataSide, sample: &[Encoded], packing: Option<&PackEstimate>) -> TokenEstimate {
    let sizes: Vec<RecordSize> = sample.iter().map(RecordSize::of).collect();
    let count = sizes.len().max(1) as f64;
    let mean = |size: fn(&RecordSize) -> u64| sizes.iter().map(size).sum::<u64>() as f64 / count;
    let mean_input_tokens = mean(|s| s.input_tokens);
    let records_per_step = plan.train.gradient_accumulation_steps as f64 * data.options.batch_size as f64;
    let total_input_tokens = match (data.options.pack_tokens, data.count.steps_per_epoch) {
        (Some(tokens), _) => {
            let fill = packing.map_or(1.0, |packing| packing.fill);
            (tokens * plan.train.gradient_accumulation_steps) as f64 * data.count.num_training_steps as f64 * fill
        }
        (None, Some(steps)) => {
            // The last step of an epoch may be smaller, so whole epochs count by records.
            data.count.num_training_steps as f64 / steps as f64 * data.dataset.epoch_len() as f64 * mean_input_tokens
        }
        (None, None) => records_per_step * mean_input_tokens * data.count.num_training_steps as f64,
    };
    TokenEstimate {
        sampled_records: sizes.len() as u64,
        mean_input_tokens,
        max_input_tokens: sizes.iter().map(|s| s.input_tokens).max().unwrap_or(0),
        mean_supervised_tokens: mean(|s| s.supervised),
        mean_images: mean(|s| s.images),
        max_images: sizes.iter().map(|s| s.images).max().unwrap_or(0),
        total_input_tokens,
    }
}

/// A micro-batch of records near the mean length.
fn mean_window(plan: &Plan, sample: &[Encoded]) -> Vec<Encoded> {
    let mut nearest: Vec<&Encoded> = sample.iter().filter(|record| record.num_supervised() > 0).collect();
    let length = |record: &Encoded| record.size().tokens as usize;
    let mean = sample.iter().map(length).sum::<usize>() / sample.len().max(1);
    nearest.sort_by_key(|record| length(record).abs_diff(mean));
    let num_records = match plan.data.pack_tokens {
        None => plan.train.per_device_train_batch_size,
        Some(tokens) => (tokens / mean.max(1)).max(1),
    };
    nearest.into_iter().take(1).cycle().take(if sample.is_empty() { 0 } else { num_records }).cloned().collect()
}

/// One forward and backward pass, without an update.
fn measure(plan: &Plan, model_dir: &Path, records: &[Encoded]) -> Result<Measured> {
    let mut model = load_model(plan, model_dir)?;
    select(plan, &mut model)?;
    let batch = collate(records)?;
    let supervised = batch.num_supervised().max(1) as f32;
    memory::reset_peak();
    let start = Instant::now();
    let tape = Tape::record().with_rng(plan.train.seed, 0);
    let input = infer::upload(&batch)?;
    let out = model.loss(
        &tape,
        &input,
        &batch.labels,
        &LossWeights::Uniform(1.0 / supervised),
        plan.train.gradient_checkpointing,
    )?;
    let forward_time = start.elapsed().as_secs_f64();
    let mut gradients = Gradients::new();
    tape.backward(&out.loss, &mut gradients)?;
    Ok(Measured {
        input_tokens: batch.num_tokens() as u64,
        loss: out.nll.iter().map(|nll| f64::from(*nll)).sum::<f64>() / f64::from(supervised),
        forward_time,
        backward_time: start.elapsed().as_secs_f64() - forward_time,
        peak_memory_bytes: memory::stats().peak_bytes as u64,
    })
}

/// The planned operations of a mean step against the rate of a large product of the model's number format.
fn estimate_time(plan: &Plan, mean: &Planned, num_trainable: u64, num_steps: u64) -> Result<TimeEstimate> {
    let flops_per_step = mean.forecast.flops as f64 * plan.train.gradient_accumulation_steps as f64;
    let measured_flops_per_second = machine_peak(mean.compute)?;
    // Memory traffic of the update: weight, gradient and both moments are read, three of them written.
    let update = num_trainable as f64 * 28.0 / 10e9;
    let seconds_per_step = flops_per_step / measured_flops_per_second + update;
    Ok(TimeEstimate {
        flops_per_step,
        measured_flops_per_second,
        seconds_per_step,
        seconds: seconds_per_step * num_steps as f64,
    })
}

/// A forecast for some records, and the number format that the model computes in.
struct Planned {
    forecast: Forecast,
    compute: DType,
}

/// Plans a step over as many micro-batches of these records as change its peak: with accumulation, two.
fn plan_step(plan: &Plan, model_dir: &Path, records: &[Encoded]) -> Result<Planned> {
    if records.iter().all(|record| record.num_supervised() == 0) {
        // Nothing could be encoded; the run will say why.
        return Ok(Planned { forecast: Forecast::default(), compute: DType::F32 });
    }
    let batch = collate(records)?;
    let window = vec![batch; plan.train.gradient_accumulation_steps.min(2)];
    let mut compute = DType::F32;
    let build = || {
        let model = load_model(plan, model_dir)?;
        compute = model.compute();
        Ok(model)
    };
    let mut forecast = forecast(plan, build, &window)?;
    forecast.flops /= window.len() as u64;
    forecast.memory = forecast.memory.with_host(plan, &window)?;
    Ok(Planned { forecast, compute })
}

/// What the largest micro-batch needs ([`largest_micro_batches`]), and its records; an error with the cheapest change of the
/// plan that fits, where the machine has no room for it.
///
/// # Errors
/// As [`plan_report`].
pub(crate) fn check_memory(plan: &Plan, model_dir: &Path, data: &DataSide) -> Result<(MemoryEstimate, Vec<Encoded>)> {
    let (memory, records) = plan_largest(plan, model_dir, data)?;
    if memory.fits() {
        return Ok((memory, records));
    }
    for change in changes(plan) {
        let data = open_data(&change.plan, model_dir, None)?;
        let (smaller, _) = plan_largest(&change.plan, model_dir, &data)?;
        if smaller.fits() {
            return Err(too_large(&memory, Some((&change, smaller.resident))));
        }
    }
    Err(too_large(&memory, None))
}

/// Plans the largest micro-batch; of several candidates the one that needs most.
fn plan_largest(plan: &Plan, model_dir: &Path, data: &DataSide) -> Result<(MemoryEstimate, Vec<Encoded>)> {
    let mut largest: Option<(MemoryEstimate, Vec<Encoded>)> = None;
    for records in largest_micro_batches(plan, data)? {
        let memory = plan_step(plan, model_dir, &records)?.forecast.memory;
        if largest.as_ref().is_none_or(|(other, _)| memory.resident > other.resident) {
            largest = Some((memory, records));
        }
    }
    Ok(largest.unwrap_or_default())
}
