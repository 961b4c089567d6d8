//! What a plan would do, without doing it: trainable tensors, records, steps, tokens, memory, time. Owns the estimates and says
//! which numbers are estimates; printing is the command line's.

use std::path::PathBuf;
use std::time::Instant;

use data::{Batch, Encoded, PackEstimate, collate, estimate_packing};
use models::{LossWeights, Model, ModelConfig};
use serde::Serialize;
use serde_json::Value as Json;
use tensor::{DType, Gradients, LinearWeights, Param, Tape, Tensor, memory};

use crate::error::Result;
use crate::plan::Plan;
use crate::selection::{PartCount, Selection, check_adapter, select};
use crate::setup::{DataSide, load_model, open_data, resolve_model_dir};

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
    /// Memory, estimated.
    pub memory: MemoryEstimate,
    /// Time, estimated.
    pub time: TimeEstimate,
    /// One real forward and backward pass, where it was asked for.
    pub measured: Option<Measured>,
}

/// What else to find out.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReportOptions {
    /// Run one forward and backward pass over a micro-batch of the longest sampled records, without an update.
    pub measure: bool,
}

/// One real forward and backward pass over a micro-batch of the longest sampled records; no weight changes.
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

/// Bytes at the peak of a step with the longest sampled records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// Weights as they are kept; exact.
    pub weights: u64,
    /// Gradients in f32; exact once every tensor has one.
    pub gradients: u64,
    /// Moments, and f32 master copies of 16-bit weights; exact once every tensor has had a gradient.
    pub optimizer: u64,
    /// Activations that wait for the backward pass, and the working set of the largest operator; an estimate.
    pub activations: u64,
    /// The sum.
    pub total: u64,
    /// Memory of this machine, where it can be told.
    pub machine: Option<u64>,
}

/// Time on this machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TimeEstimate {
    /// Floating-point operations of a mean step, counted from the model's matrices.
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
    let model_dir = resolve_model_dir(plan)?;
    let data = open_data(plan, &model_dir, None)?;
    check_adapter(plan)?;
    let mut model = load_model(plan, &model_dir)?;
    let selection = select(plan, &mut model)?;
    let sample = sample_records(&data)?;
    let packing = estimate_packing(&data.dataset, &data.processor, &data.options);
    let tokens = estimate_tokens(plan, &data, &sample, packing.as_ref());
    let window = longest_window(plan, &sample);
    let memory = estimate_memory(
        plan,
        &model,
        &selection,
        &window.iter().fold(RecordSize::default(), |sum, record| sum.plus(record)),
    );
    let measured = if options.measure { Some(measure(plan, &model, &window)?) } else { None };
    let time = estimate_time(plan, &model, &selection, &tokens, data.count.num_training_steps)?;
    let rows = selection.tensors.iter().map(|t| TrainableRow {
        name: t.named.name.clone(),
        part: t.named.part.name(),
        shape: t.named.disk_shape.clone(),
        learning_rate: t.learning_rate,
        weight_decay: t.weight_decay,
    });
    Ok(PlanReport {
        plan: plan.to_json(),
        model_dir,
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

    fn plus(self, record: &Encoded) -> RecordSize {
        let other = RecordSize::of(record);
        RecordSize {
            input_tokens: self.input_tokens + other.input_tokens,
            supervised: self.supervised + other.supervised,
            images: self.images + other.images,
        }
    }
}

fn sample_records(data: &DataSide) -> Result<Vec<Encoded>> {
    let num_records = data.dataset.len();
    let num_sampled = SAMPLED_RECORDS.min(num_records);
    let mut records = Vec::new();
    for i in 0..num_sampled {
        let record = data
            .dataset
            .get(i * num_records / num_sampled)
            .and_then(|sample| data.processor.encode(&sample, &data.options.encode));
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
            data.count.num_training_steps as f64 / steps as f64 * data.dataset.len() as f64 * mean_input_tokens
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

/// A micro-batch made of the longest sampled records, repeated where the sample is smaller than the batch.
fn longest_window<'a>(plan: &Plan, sample: &'a [Encoded]) -> Vec<&'a Encoded> {
    let mut longest: Vec<&Encoded> = sample.iter().collect();
    longest.sort_by_key(|record| std::cmp::Reverse(record.ids.len()));
    let num_records = match plan.data.pack_tokens {
        None => plan.train.per_device_train_batch_size,
        Some(tokens) => longest.first().map_or(0, |record| (tokens / record.ids.len().max(1)).max(1)),
    };
    longest.into_iter().cycle().take(if sample.is_empty() { 0 } else { num_records }).collect()
}

/// One forward and backward pass, without an update.
fn measure(plan: &Plan, model: &Model, window: &[&Encoded]) -> Result<Measured> {
    let batch = collate(&window.iter().map(|record| (*record).clone()).collect::<Vec<_>>())?;
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

fn estimate_memory(plan: &Plan, model: &Model, selection: &Selection, window: &RecordSize) -> MemoryEstimate {
    let weights = model.params().iter().map(|p| p.param.value().num_bytes() as u64).sum();
    let trained = selection.num_trainable();
    let gradients = 4 * trained;
    let is_wide = |dtype: DType| dtype == DType::F32;
    let masters: u64 = selection
        .tensors
        .iter()
        .filter(|t| !is_wide(t.named.param.dtype()))
        .map(|t| 4 * t.named.param.value().num_elements() as u64)
        .sum();
    let optimizer = 8 * trained + masters;
    let activations = 4 * activation_elements(model.config(), selection, window, plan.train.gradient_checkpointing);
    MemoryEstimate {
        weights,
        gradients,
        optimizer,
        activations,
        total: weights + gradients + optimizer + activations,
        machine: machine_memory(),
    }
}

/// Bytes of memory of this machine.
fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// f32 elements that a forward pass keeps for the backward pass, and the working set of the head.
///
/// A block keeps its input, the rotated queries and keys, values, attention's output, the middle residual and both halves of
/// the gated product; where a weight of the block trains, the inputs of its products as well. With recomputation each block
/// keeps its input only, and one block at a time is whole.
fn activation_elements(config: &ModelConfig, selection: &Selection, window: &RecordSize, recompute: bool) -> u64 {
    let trains = |part: &str| selection.parts.iter().any(|p| p.part == part && p.trainable_tensors > 0);
    let text = &config.text;
    let tokens = window.input_tokens;
    let (q, kv) = ((text.num_heads * text.head_dim) as u64, (text.num_kv_heads * text.head_dim) as u64);
    let (hidden, inner) = (text.hidden_size as u64, text.intermediate_size as u64);
    let base_trains = selection.adapted_modules.is_empty() && trains("llm");
    let learns = |names: &[&str]| {
        let is_adapted =
            |module: &String| module.contains("language_model") && names.iter().any(|name| module.ends_with(name));
        base_trains || selection.adapted_modules.iter().any(is_adapted)
    };
    let kept = |names: &[&str], width: u64| if learns(names) { width } else { 0 };
    let products = kept(&["q_proj", "k_proj", "v_proj"], hidden)
        + kept(&["gate_proj", "up_proj"], hidden)
        + kept(&["down_proj"], inner);
    let block = 2 * hidden + 2 * q + 2 * kv + 2 * inner + products;
    let stack = |layers: u64, input: u64, block: u64| if recompute { layers * input + block } else { layers * block };
    let mut elements = tokens * stack(text.num_layers as u64, hidden, block);
    // Chunks of 256 rows of logits, and the gradient of the final states.
    elements += 256.min(window.supervised) * text.vocab_size as u64 + 2 * tokens * hidden;
    if let Some(llava) = &config.llava {
        let vision = &llava.vision;
        let rows = window.images * vision.num_positions() as u64;
        let (width, inner) = (vision.hidden_size as u64, vision.intermediate_size as u64);
        // A frozen tower runs off the tape and keeps only what its present block works on.
        let block = 6 * width + 2 * inner;
        elements += if trains("vision") { rows * stack(vision.num_layers as u64, width, block) } else { rows * block };
        let pixels = window.images * (vision.num_channels * vision.image_size * vision.image_size) as u64;
        elements += pixels + window.images * llava.tokens_per_image() as u64 * 3 * hidden;
    }
    elements
}

/// Floating-point operations of a mean step: two for each weight a token meets in the forward pass, twice that in the backward
/// pass where the weight trains, once where only its input's gradient is needed, and attention's products.
fn flops_per_step(plan: &Plan, model: &Model, selection: &Selection, tokens: &TokenEstimate) -> f64 {
    let config = model.config();
    let records = (plan.train.per_device_train_batch_size * plan.train.gradient_accumulation_steps) as f64;
    let trains = |part: &str| selection.parts.iter().any(|p| p.part == part && p.trainable_tensors > 0);
    let base_trains = |part: &str| selection.adapted_modules.is_empty() && trains(part);
    let recompute = if plan.train.gradient_checkpointing { 2.0 } else { 0.0 };
    let (mut llm, mut projector, mut vision) = (0.0, 0.0, 0.0);
    for p in model.params().iter().filter(|p| p.disk_shape.len() > 1 && !p.name.contains("embed")) {
        let elements = p.disk_shape.iter().product::<usize>() as f64;
        match p.part {
            models::Part::Llm if p.name.contains("lm_head") => {
                llm += elements * tokens.mean_supervised_tokens / tokens.mean_input_tokens.max(1.0)
            }
            models::Part::Llm => llm += elements,
            models::Part::Projector => projector += elements,
            models::Part::Vision => vision += elements,
        }
    }
    let below =
        |own: bool, input_gradient: bool| 2.0 + if own { 2.0 } else { 0.0 } + if input_gradient { 2.0 } else { 0.0 };
    let tower_learns = trains("vision");
    let needs_input = trains("vision") || trains("projector") || trains("llm");
    let mut flops = records * tokens.mean_input_tokens * llm * (below(base_trains("llm"), needs_input) + recompute);
    let causal_pairs = tokens.mean_input_tokens * tokens.mean_input_tokens / 2.0;
    let attention = (config.text.num_layers * config.text.num_heads * config.text.head_dim) as f64 * 4.0 * causal_pairs;
    flops += records * attention * (3.5 + recompute / 2.0);
    if let Some(llava) = &config.llava {
        let rows = tokens.mean_images * llava.vision.num_positions() as f64;
        let learning = if tower_learns { below(base_trains("vision"), true) + recompute } else { 2.0 };
        flops += records * rows * vision * learning;
        flops += records * rows * projector * below(base_trains("projector"), tower_learns);
        let pairs = (llava.vision.num_positions() * llava.vision.num_positions()) as f64;
        let attention = (llava.vision.num_layers * llava.vision.hidden_size) as f64 * 4.0 * pairs;
        flops += records * tokens.mean_images * attention * if tower_learns { 3.5 } else { 1.0 };
    }
    flops
}

fn estimate_time(
    plan: &Plan,
    model: &Model,
    selection: &Selection,
    tokens: &TokenEstimate,
    num_steps: u64,
) -> Result<TimeEstimate> {
    let flops_per_step = flops_per_step(plan, model, selection, tokens);
    let measured_flops_per_second = measure_flops()?;
    // Memory traffic of the update: weight, gradient and both moments are read, three of them written.
    let update = selection.num_trainable() as f64 * 28.0 / 10e9;
    let seconds_per_step = flops_per_step / measured_flops_per_second + update;
    Ok(TimeEstimate {
        flops_per_step,
        measured_flops_per_second,
        seconds_per_step,
        seconds: seconds_per_step * num_steps as f64,
    })
}

/// The rate of one middling matrix product, the best of a few.
fn measure_flops() -> Result<f64> {
    const ROWS: usize = 512;
    const WIDTH: usize = 1024;
    let ones = |shape: &[usize]| Tensor::from_f32(&vec![0.5; shape.iter().product()], shape);
    let weights = LinearWeights { weight: Param::new("probe", ones(&[WIDTH, WIDTH])?), bias: None, lora: None };
    let tape = Tape::inference();
    let x = tape.constant(ones(&[ROWS, WIDTH])?);
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let start = Instant::now();
        tape.linear(&x, &weights)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * (ROWS * WIDTH * WIDTH) as f64 / best.max(1e-9))
}

/// Bytes that training on a batch would hold at its peak, by the same estimate; for tests against the counted peak.
pub fn estimate_batch(plan: &Plan, model: &Model, selection: &Selection, batch: &Batch) -> MemoryEstimate {
    let size = RecordSize {
        input_tokens: batch.num_tokens() as u64,
        supervised: batch.num_supervised() as u64,
        images: batch.num_images as u64,
    };
    estimate_memory(plan, model, selection, &size)
}
