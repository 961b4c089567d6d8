//! `bench step`: full training steps on random weights of any configuration. Owns the fixed setting that is timed; it measures
//! the same `Trainer` that trains.
//!
//! Sequences of an encoder-decoder are sources, each with a target as long. The setting is that of the PyTorch script it is compared with: AdamW with weight decay 0.01, rate 1e-3 under `lora`
//! (rank 16, alpha 32 on q, k, v and o of the decoder) and 1e-4 under `full`, constant, no clipping, every token supervised.

use std::path::{Path, PathBuf};
use std::time::Instant;

use data::{Batch, TargetRows, Visual, VisualKind};
use models::{LoadOptions, Model, ModelConfig};
use serde::Serialize;
use tensor::{DType, memory};

use crate::error::{Result, TrainError};
use crate::plan::{MethodKind, Plan, SchedulerKind, TargetModules};
use crate::profile::{Summary, machine_peak, rate, resident_peak_bytes};
use crate::schedule::Schedule;
use crate::selection::select;
use crate::step::Trainer;

/// What to time.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// A `config.json`, or a checkpoint folder whose weights are then used.
    pub config: PathBuf,
    /// Tokens of each sequence, image tokens among them.
    pub seq: usize,
    /// Sequences in a step.
    pub batch: usize,
    /// `full`, `lora` or `projector`.
    pub method: MethodKind,
    /// Number format of the weights.
    pub dtype: DType,
    /// Steps to run; the median leaves out the first third.
    pub steps: usize,
    /// Whether blocks are computed again in the backward pass.
    pub recompute: bool,
    /// Token ids to train on, `seq` for each sequence; random ones where absent.
    pub tokens: Option<Vec<u32>>,
}

/// What was timed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchResult {
    /// Median seconds of a step.
    pub step_s: f64,
    /// Input tokens a second at the median.
    pub tokens_per_s: f64,
    /// Largest number of bytes that the engine's buffers held, weights included.
    pub peak_memory_bytes: u64,
    /// Loss of every step.
    pub losses: Vec<f64>,
    /// Seconds of every step.
    pub step_times: Vec<f64>,
    /// Median seconds in forward passes.
    pub forward_s: f64,
    /// Median seconds in backward passes.
    pub backward_s: f64,
    /// Median seconds in the optimizer.
    pub optimizer_s: f64,
    /// Elements of the model.
    pub parameters: u64,
    /// Elements that train.
    pub trainable_parameters: u64,
    /// Pictures in a step.
    pub images: usize,
    /// Floating-point operations of a step's matrix products, recomputation included.
    pub flops: u64,
    /// Those that computed a block a second time.
    pub recomputed_flops: u64,
    /// Operations a second at the median, in units of 10^9.
    pub gflops_per_s: f64,
    /// Rate of a large matrix product, measured after the steps, in units of 10^9 operations a second.
    pub peak_gflops_per_s: f64,
    /// Operations without recomputation as a part of that rate, at the median.
    pub mfu: f64,
    /// Largest resident size of the process until the end of the steps, where the system tells it.
    pub process_peak_bytes: Option<u64>,
}

const SEED: u64 = 0;

/// Times training steps.
///
/// # Errors
/// A configuration that cannot be read, a shape without a token to predict, or ids that the vocabulary does not have.
pub fn bench_step(options: &BenchOptions) -> Result<BenchResult> {
    if options.seq < 2 || options.batch == 0 || options.steps == 0 {
        let message =
            format!("a step of {} x {} tokens, {} times, trains nothing", options.batch, options.seq, options.steps);
        return Err(TrainError::mismatch(message, "`--seq` must be at least 2, `--batch` and `--steps` at least 1"));
    }
    memory::reset_peak();
    let mut model = build(&options.config, options.dtype)?;
    let mut plan = bench_plan(options);
    if model.config().seq2seq().is_some() {
        // The same projections, as encoder-decoders name them.
        let names = ["q_proj", "k_proj", "v_proj", "out_proj"];
        plan.method.lora.target_modules = TargetModules::Names(names.map(str::to_owned).to_vec());
    }
    let selection = select(&plan, &mut model)?;
    let batch = random_batch(&model, options)?;
    let schedule = Schedule::new(&plan, options.steps as u64)?;
    let mut trainer = Trainer::new(&plan, model, &selection, schedule);
    let window = [batch];
    let (mut losses, mut times) = (Vec::new(), Vec::new());
    let (mut flops, mut recomputed_flops) = (0, 0);
    for _ in 0..options.steps {
        let start = Instant::now();
        let outcome = trainer.train_step(&window)?;
        times.push([
            start.elapsed().as_secs_f64(),
            outcome.forward_time,
            outcome.backward_time,
            outcome.optimizer_time,
        ]);
        losses.push(outcome.loss);
        (flops, recomputed_flops) = (outcome.flops, outcome.recomputed_flops);
    }
    let [step_s, forward_s, backward_s, optimizer_s] =
        std::array::from_fn(|i| median(times[options.steps / 3..].iter().map(|t| t[i]).collect()));
    let peak_memory_bytes = memory::stats().peak_bytes as u64;
    let process_peak_bytes = resident_peak_bytes();
    let peak = machine_peak(trainer.model.compute())?;
    Ok(BenchResult {
        step_s,
        tokens_per_s: (options.seq * options.batch) as f64 / step_s,
        peak_memory_bytes,
        losses,
        step_times: times.iter().map(|t| t[0]).collect(),
        forward_s,
        backward_s,
        optimizer_s,
        parameters: selection.parts.iter().map(|part| part.parameters).sum(),
        trainable_parameters: selection.num_trainable(),
        images: window[0].num_images,
        flops,
        recomputed_flops,
        gflops_per_s: rate(flops, step_s) / 1e9,
        peak_gflops_per_s: peak / 1e9,
        mfu: rate(flops - recomputed_flops, step_s) / peak,
        process_peak_bytes,
    })
}

fn build(config: &Path, dtype: DType) -> Result<Model> {
    if config.is_dir() {
        return Ok(models::load(config, &LoadOptions { dtype: Some(dtype) })?.0);
    }
    let value = hub::json::read_json(config)?;
    let config = ModelConfig::from_json(&config.display().to_string(), value)?;
    Ok(models::random(config, SEED, dtype)?)
}

fn bench_plan(options: &BenchOptions) -> Plan {
    let mut plan = Plan::default();
    plan.method.kind = Some(options.method);
    plan.method.lora.r = 16;
    plan.method.lora.lora_alpha = 32.0;
    plan.method.lora.target_modules =
        TargetModules::Names(["q_proj", "k_proj", "v_proj", "o_proj"].map(str::to_owned).to_vec());
    plan.train.learning_rate = if options.method == MethodKind::Lora { 1e-3 } else { 1e-4 };
    plan.train.weight_decay = 0.01;
    plan.train.max_grad_norm = None;
    plan.train.lr_scheduler_type = SchedulerKind::Constant;
    plan.train.gradient_checkpointing = options.recompute;
    plan
}

/// A batch of sequences whose every token is supervised. With a tower, each sequence begins with as many whole pictures as
/// leave it at least an eighth of text.
fn random_batch(model: &Model, options: &BenchOptions) -> Result<Batch> {
    let config = model.config();
    let mut random = SplitMix(SEED);
    let num_tokens = options.seq * options.batch;
    let mut ids = match &options.tokens {
        Some(tokens) if tokens.len() != num_tokens => {
            let message =
                format!("{} token ids are given for {} x {} tokens", tokens.len(), options.batch, options.seq);
            return Err(TrainError::mismatch(message, "give one id for each token"));
        }
        Some(tokens) => tokens.clone(),
        None => (0..num_tokens).map(|_| (random.next() % config.vocab_size() as u64) as u32).collect(),
    };
    let mut batch = Batch {
        labels: ids.iter().map(|id| *id as i32).collect(),
        positions: (0..options.batch).flat_map(|_| 0..options.seq as u32).collect(),
        cu_seqlens: (0..=options.batch).map(|i| i * options.seq).collect(),
        sample_ids: (0..options.batch).map(|i| i.to_string()).collect(),
        sample_index: (0..options.batch as u64).collect(),
        ..Batch::default()
    };
    if let Some(llava) = config.llava() {
        // One clip a sequence where the family takes clips, else pictures, the newline of its own behind each where it has one.
        let clips = llava.anyres.as_ref().and_then(|anyres| anyres.clips.as_ref());
        let grid = llava.vision.grid();
        let tokens_per_image = llava.tokens_per_image() + usize::from(llava.anyres.is_some());
        let tokens_of = |images: usize| clips.map_or(images * tokens_per_image, |clips| clips.tokens(images, grid));
        let room = options.seq - options.seq.div_ceil(8);
        let images_each = (1..=room).take_while(|&images| tokens_of(images) <= room).last().unwrap_or(0);
        if images_each == 0 {
            let message =
                format!("a picture takes {} tokens, which {} tokens a sequence do not hold", tokens_of(1), options.seq);
            return Err(TrainError::mismatch(message, "raise `--seq`"));
        }
        for start in (0..options.batch).map(|i| i * options.seq) {
            let rows = start..start + tokens_of(images_each);
            ids[rows.clone()].fill(clips.map_or(llava.image_token_id, |clips| clips.token_id));
            batch.labels[rows.clone()].fill(data::IGNORE);
            batch.image_rows.extend(rows.map(|row| row as u32));
            let visual = |kind, pictures| Visual { kind, grid: [pictures, grid, grid], ..Visual::default() };
            match clips {
                Some(_) => batch.visuals.push(visual(VisualKind::Video, images_each)),
                None => batch.visuals.extend((0..images_each).map(|_| visual(VisualKind::Image, 1))),
            }
        }
        batch.num_images = images_each * options.batch;
        batch.pixel_shape = vec![llava.vision.num_channels, llava.vision.image_size, llava.vision.image_size];
        let num_values = batch.num_images * batch.pixel_shape.iter().product::<usize>();
        batch.pixels = (0..num_values).map(|_| random.next() as f32 / u64::MAX as f32 * 2.0 - 1.0).collect();
    }
    if config.seq2seq().is_some() {
        // Targets as long as their sources, and the labels are theirs.
        let target: Vec<u32> = (0..num_tokens).map(|_| (random.next() % config.vocab_size() as u64) as u32).collect();
        batch.labels = target.iter().map(|id| *id as i32).collect();
        batch.target = Some(TargetRows { ids: target, cu_seqlens: batch.cu_seqlens.clone() });
    }
    batch.ids = ids;
    Ok(batch)
}

fn median(values: Vec<f64>) -> f64 {
    Summary::of(values).map_or(0.0, |summary| summary.median)
}

/// SplitMix64 (Steele et al. 2014): the same numbers on every machine.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
