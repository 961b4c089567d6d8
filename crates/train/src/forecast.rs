//! What training on a batch needs, known before it: memory and operations, found by planning the very steps that would run
//! ([`tensor::memory::plan`]), from shapes alone. Owns the forecast, the comparison with the machine and the search for a
//! change that fits; which batch is the largest is the caller's to say.

use data::Batch;
use models::Model;
use serde::Serialize;
use tensor::memory::{self, Mark};

use crate::error::{Result, TrainError};
use crate::plan::Plan;
use crate::schedule::Schedule;
use crate::selection::select;
use crate::step::Trainer;

/// Bytes at the peak of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// Weights as they are kept: f32 where they train, else in the model's number format.
    pub weights: u64,
    /// Gradients of everything that trains, f32.
    pub gradients: u64,
    /// The optimizer's state.
    pub optimizer: u64,
    /// What waits for the backward pass at the end of the forward pass.
    pub activations: u64,
    /// Whatever else is held at the peak: packed operands, logits, the gradients on their way. The parts above are not all at
    /// their largest at the same time, so that this may be 0 and the total less than the sum.
    pub workspace: u64,
    /// Largest number of bytes that the engine's buffers hold; comparable with `peak_memory_bytes` of a run.
    pub total: u64,
    /// Host memory of records encoded ahead and of decoding, estimated from the largest sampled record.
    pub data: u64,
    /// The whole process, estimated: `total`, `data`, and what the program itself takes.
    pub resident: u64,
    /// Memory that this machine has free for it, where that can be told.
    pub available: Option<u64>,
    /// What each block keeps for the backward pass.
    pub blocks: Vec<BlockMemory>,
}

/// Bytes that a block keeps for the backward pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlockMemory {
    /// `vision.layers`, `llm.layers`, `encoder.layers` or `decoder.layers`.
    pub name: &'static str,
    /// Number of the block.
    pub index: usize,
    /// Bytes.
    pub bytes: u64,
}

/// What one optimizer step over a window of micro-batches needs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Forecast {
    /// Bytes at its peak; `data`, `resident` and `available` are still to be filled in.
    pub memory: MemoryEstimate,
    /// Floating-point operations, recomputation included.
    pub flops: u64,
}

/// Plans two steps over `window`, the second of which has the optimizer's state beside its activations.
///
/// `build` makes the model; it runs in a plan, where loading a checkpoint reads no weight.
///
/// # Errors
/// As building the model, selecting what trains and the first step of a run.
pub fn forecast(plan: &Plan, build: impl FnOnce() -> Result<Model>, window: &[Batch]) -> Result<Forecast> {
    let planned = memory::plan(|| -> Result<Levels> {
        let before = memory::stats().current_bytes;
        let live = |before: usize| memory::stats().current_bytes - before;
        let mut model = build()?;
        let selection = select(plan, &mut model)?;
        let weights = live(before);
        let trainable = selection.tensors.iter().map(|t| 4 * t.named.param.value().num_elements());
        let gradients = trainable.map(memory::rounded_bytes).sum();
        let mut trainer = Trainer::new(plan, model, &selection, Schedule::new(plan, 2)?);
        trainer.train_step(window)?;
        memory::mark("second step", 0);
        let state = live(before);
        memory::reset_peak();
        trainer.train_step(window)?;
        let peak = memory::stats().peak_bytes - before;
        Ok(Levels { before, weights, gradients, optimizer: state - weights, state, peak })
    });
    let levels = planned.value?;
    let second = planned.marks.iter().position(|mark| mark.name == "second step").unwrap_or(0);
    let marks = &planned.marks[second..];
    let held = |mark: &Mark| mark.live_bytes.saturating_sub(levels.before + levels.state);
    // With accumulation the gradients of the first micro-batch are there too.
    let first_forward = marks.iter().find(|mark| mark.name == "forward");
    let activations = first_forward.map_or(0, held);
    let known = levels.state + levels.gradients + activations;
    let memory = MemoryEstimate {
        weights: levels.weights as u64,
        gradients: levels.gradients as u64,
        optimizer: levels.optimizer as u64,
        activations: activations as u64,
        workspace: levels.peak.saturating_sub(known) as u64,
        total: levels.peak as u64,
        blocks: blocks(marks),
        ..MemoryEstimate::default()
    };
    Ok(Forecast { memory, flops: planned.flops / 2 })
}

/// Bytes of live buffers at the stations of a plan.
struct Levels {
    before: usize,
    weights: usize,
    gradients: usize,
    optimizer: usize,
    /// Weights and the optimizer's state.
    state: usize,
    peak: usize,
}

/// What each block of the first micro-batch's forward pass left behind.
fn blocks(marks: &[Mark]) -> Vec<BlockMemory> {
    let end = marks.iter().position(|mark| mark.name == "forward").unwrap_or(marks.len());
    let pairs = marks[..end].windows(2).filter(|pair| pair[0].name == pair[1].name);
    pairs
        .filter(|pair| pair[0].name.ends_with(".layers"))
        .map(|pair| BlockMemory {
            name: pair[0].name,
            index: pair[0].index,
            bytes: pair[1].live_bytes.saturating_sub(pair[0].live_bytes) as u64,
        })
        .collect()
}

impl MemoryEstimate {
    /// Adds the host's side: records held ahead by the loader, and this process as it is now.
    pub(crate) fn with_host(mut self, plan: &Plan, window: &[Batch]) -> Result<MemoryEstimate> {
        let loader = plan.data.train_options(
            plan.train.per_device_train_batch_size,
            plan.train.gradient_accumulation_steps,
            plan.train.order_seed(),
        )?;
        let batch = window.iter().map(|batch| batch.num_bytes() as u64).max().unwrap_or(0);
        // The batch in use, one put together for each thread and one waiting, within the loader's budget.
        let ahead = (loader.workers as u64 + 1) * batch;
        self.data = batch + ahead.min(loader.byte_budget as u64) + loader.workers as u64 * DECODER;
        self.resident = self.total + self.data + PROGRAM;
        self.available = plan.train.memory_limit.map(|limit| limit.0).or_else(available_memory);
        Ok(self)
    }

    /// Whether the machine has room for it; true where that cannot be told.
    pub fn fits(&self) -> bool {
        self.available.is_none_or(|available| self.resident <= available)
    }
}

/// What a decoding thread takes beside the record that it makes: reference frames, and frames before they are resized.
const DECODER: u64 = 32 << 20;
/// The program itself, its tables and its tokenizer.
const PROGRAM: u64 = 48 << 20;

/// Bytes that a new process can use: what the system says is available, within the limit of its control group.
pub(crate) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let system = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
    let number = |file: &str| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .map(|limit| limit.saturating_sub(number("/sys/fs/cgroup/memory.current").unwrap_or(0)));
    Some(group.map_or(system, |group| group.min(system)))
}

/// A change of the plan that needs less memory.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    /// What to write, as overrides of the plan.
    pub(crate) overrides: String,
    /// What it costs.
    pub(crate) cost: &'static str,
    pub(crate) plan: Plan,
}

/// Changes of a plan from the cheapest to the dearest, each with those before it that go along with it.
pub(crate) fn changes(plan: &Plan) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut push = |plan: &Plan, overrides: &str, cost| {
        changes.push(Change { overrides: overrides.to_owned(), cost, plan: plan.clone() });
    };
    let mut current = plan.clone();
    let mut written = String::new();
    let batch = plan.train.per_device_train_batch_size;
    if batch > 1 && plan.data.pack_tokens.is_none() {
        let steps = plan.train.gradient_accumulation_steps * batch;
        current.train.per_device_train_batch_size = 1;
        current.train.gradient_accumulation_steps = steps;
        written = format!("train.per_device_train_batch_size=1 train.gradient_accumulation_steps={steps}");
        push(&current, &written, "the same steps in smaller parts");
    }
    if !plan.train.gradient_checkpointing {
        current.train.gradient_checkpointing = true;
        written = format!("{written} train.gradient_checkpointing=true");
        push(&current, written.trim(), "about a third more time");
    }
    if let Some(frames) = plan.data.num_frames {
        let mut fewer = frames / 2;
        while fewer >= 1 {
            let mut smaller = current.clone();
            smaller.data.num_frames = Some(fewer);
            push(&smaller, format!("{written} data.num_frames={fewer}").trim(), "fewer frames of each video");
            fewer /= 2;
        }
    }
    if plan.method.kind == Some(crate::plan::MethodKind::Full) {
        current.method.kind = Some(crate::plan::MethodKind::Lora);
        current.method.freeze.clear();
        push(&current, format!("{written} method.kind=lora").trim(), "adapters instead of all weights");
    }
    changes
}

/// The error for a plan that the machine has no room for.
pub(crate) fn too_large(memory: &MemoryEstimate, change: Option<(&Change, u64)>) -> TrainError {
    let gb = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
    let message = format!(
        "this plan needs about {} (weights {}, gradients {}, optimizer {}, activations {}, data {}), {} are available",
        gb(memory.resident),
        gb(memory.weights),
        gb(memory.gradients),
        gb(memory.optimizer),
        gb(memory.activations),
        gb(memory.data),
        gb(memory.available.unwrap_or(0))
    );
    let hint = match change {
        Some((change, resident)) => {
            format!("add `{}` (about {}; {})", change.overrides, gb(resident), change.cost)
        }
        None => "no smaller batch, recomputation, fewer frames or adapters would fit: take a smaller model or a larger machine; `train.memory_limit` overrides what is available".to_owned(),
    };
    TrainError::mismatch(message, hint)
}
