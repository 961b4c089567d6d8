//! The sections of the plan that the trainer owns: model, method, train, parallel, tracking, hub. Owns their keys, defaults
//! and documentation; what contradicts what is `validate`'s, other tools' names are `alias`'s, and `data` belongs to the data
//! crate.
//!
//! Names and defaults are those of Hugging Face `TrainingArguments` and PEFT's `LoraConfig`; a difference says so.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value as Json;

use super::field::{PlanValue, choice, section};
use super::node::{Node, Value};

choice! {
    /// Number format in which weights are kept while training.
    WeightDtype {
        /// As the checkpoint stores them; 16-bit ones are computed in bf16 where the processor multiplies such numbers.
        Auto = "auto";
        /// 32-bit.
        F32 = "f32" | "float32" | "fp32";
        /// bfloat16, computed in bf16 where the processor multiplies such numbers; what trains is kept in f32.
        Bf16 = "bf16" | "bfloat16";
        /// float16, computed as bf16 is; what trains is kept in f32.
        F16 = "f16" | "float16" | "fp16";
    }
}

choice! {
    /// What is trained.
    MethodKind {
        /// Only the projector between the towers and the language model.
        Projector = "projector";
        /// Low-rank adapters on the language model or on named modules; the base is frozen.
        Lora = "lora";
        /// As `lora`, over 4-bit weights.
        Qlora = "qlora";
        /// Every tensor that `freeze` does not name.
        Full = "full";
    }
}

choice! {
    /// How the learning rate moves.
    SchedulerKind {
        /// No warm-up, no decay.
        Constant = "constant";
        /// Linear warm-up, then constant.
        ConstantWithWarmup = "constant_with_warmup";
        /// Warm-up by `ln(step + 1) / ln(warm-up)`, then constant: DeepSpeed's `WarmupLR`.
        ConstantWithLogWarmup = "constant_with_log_warmup";
        /// Linear warm-up, then linear to 0.
        Linear = "linear";
        /// Linear warm-up, then a cosine to 0.
        Cosine = "cosine";
        /// Linear warm-up, then `(1 - t)^power` down to `lr_end`.
        Polynomial = "polynomial";
    }
}

choice! {
    /// The optimizer.
    OptimizerKind {
        /// Adam with decoupled weight decay, as `torch.optim.AdamW`.
        Adamw = "adamw" | "adamw_torch" | "adamw_torch_fused";
    }
}

choice! {
    /// When something periodic happens.
    Strategy {
        /// Never.
        No = "no";
        /// Every so many optimizer steps.
        Steps = "steps";
        /// At the end of each epoch.
        Epoch = "epoch";
    }
}

choice! {
    /// Where ZeRO keeps what does not fit.
    Offload {
        /// On the device.
        None = "none";
        /// Optimizer state in host memory.
        Optimizer = "optimizer";
        /// Optimizer state and weights in host memory.
        All = "all";
    }
}

section! {
    /// Which model is trained.
    ModelPlan {
        /// Folder of a Hugging Face checkpoint, or a hub id that the cache holds or that can be downloaded. Required, unless parts are joined.
        path: Option<String> = None;
        /// Number format of the weights. `auto` keeps the checkpoint's own. Where the processor multiplies bf16 numbers, models of
        /// 16-bit weights compute in them.
        dtype: WeightDtype = WeightDtype::Auto;
        /// Folder of a PEFT adapter to continue from; its `adapter_config.json` decides rank, alpha and target modules.
        adapter: Option<PathBuf> = None;
        /// Where to compute: `auto`, `cpu`, `cuda` or `cuda:N`.
        device: String = "auto".to_owned() => free;
        /// To join parts that were never one checkpoint, instead of `path`: the language model, a folder or a hub id. The joined model is
        /// written to `base_model/` in `train.output_dir`, by reference to its parts, and is what an adapter needs as its base.
        language: Option<String> = None;
        /// To join parts: the tower for images, CLIP or SigLIP. Without one, records with images are refused.
        image_tower: Option<String> = None;
        /// To join parts: the tower for clips, through which their frames pass one by one. Without one, records with clips are refused.
        /// The frames of a clip are the middles of `data.num_frames` segments (16 where it is not given), which is saved with the model.
        video_tower: Option<String> = None;
        /// To join parts: what lies between a tower and the language model, `linear` or `mlpNx_gelu`; `mlp2x_gelu` where it is not given.
        projector: Option<String> = None;
        /// To join parts: the same for the video tower, where it differs.
        video_projector: Option<String> = None;
        /// To join parts: projectors trained before, as files (safetensors, or `.bin` of `torch.save`) or folders that hold them, such as
        /// the `final_model` of a run with `method.kind: projector`. What they do not hold starts at random.
        pretrained_projector: Vec<PathBuf> = Vec::new();
        /// To join parts: the conversation template (`plain`, `v0`, `v0.5`, `v1`, `chatml`, `phi`, `llava-1.5`), saved with the model;
        /// `auto` takes the language model's own.
        version: Option<String> = None;
        /// To join parts: the hidden state of the towers that is projected, -2 where it is not given (-1 is the last layer's).
        mm_vision_select_layer: Option<i64> = None;
        /// To join parts: `patch` drops the class token of a tower, `cls_patch` keeps it; `patch` where it is not given.
        mm_vision_select_feature: Option<String> = None;
        /// To join parts: tokens stand around media (`<im_start>`, `<im_end>`, `<vi_start>`, `<vi_end>`). They are added to the tokenizer, their
        /// rows start at the mean of the others, and `method.kind: projector` trains the embedding table with the projectors.
        mm_use_start_end: bool = false;
        /// To join parts: add the token `<im_patch>`, which no text uses, as some checkpoints have it.
        mm_use_patch_token: bool = false;
        /// To join parts: `pad` makes pictures square with the mean colour before they are scaled; `square` crops as the towers' files say.
        image_aspect_ratio: Option<String> = None;
    }
}

section! {
    /// What is trained, and how fast each part learns.
    MethodPlan {
        /// What is trained. Required.
        kind: Option<MethodKind> = None;
        /// Under `lora`: parts, tensor names or regular expressions trained whole beside the adapter (PEFT `modules_to_save`).
        also_train: Vec<String> = Vec::new();
        /// Parts (`vision`, `projector`, `llm`; `speech`, `speech_projector` where the model hears), tensor names or regular expressions that do not train.
        freeze: Vec<String> = Vec::new();
        sections {
            /// The adapter of `lora`.
            lora: LoraPlan;
            /// Learning rates of single parts, where they differ from `train.learning_rate`.
            learning_rates: LearningRates;
        }
    }
}

section! {
    /// The adapter. Names and defaults are those of PEFT's `LoraConfig`.
    LoraPlan {
        /// Rank.
        r: usize = 8;
        /// The update is scaled by `lora_alpha / r` (by `lora_alpha / sqrt(r)` with `use_rslora`).
        lora_alpha: f64 = 8.0;
        /// Dropout on the input of the adapter.
        lora_dropout: f64 = 0.0;
        /// Module names (a bare name means the language model only), one regular expression over full names, or `all-linear`.
        target_modules: TargetModules = TargetModules::default();
        /// Scale by `lora_alpha / sqrt(r)`.
        use_rslora: bool = false;
        /// Rank of single modules, by name or regular expression.
        rank_pattern: BTreeMap<String, usize> = BTreeMap::new();
        /// Alpha of single modules, by name or regular expression.
        alpha_pattern: BTreeMap<String, f64> = BTreeMap::new();
        /// A from Kaiming uniform and B zero, so that the run starts at the base model; only `true` is built.
        init_lora_weights: bool = true;
        /// Weight-decomposed adapters. Not built yet.
        use_dora: bool = false;
        /// Which biases train; only `none` is built.
        bias: String = "none".to_owned();
    }
}

section! {
    /// Learning rates of single parts; a part without one learns at `train.learning_rate`.
    LearningRates {
        /// The vision tower.
        vision: Option<f64> = None;
        /// The projector.
        projector: Option<f64> = None;
        /// The language model.
        llm: Option<f64> = None;
        /// The speech encoder.
        speech: Option<f64> = None;
        /// The projector of speech.
        speech_projector: Option<f64> = None;
    }
}

section! {
    /// The run: length, batch, optimizer, schedule, what is written when.
    TrainPlan {
        /// Folder for everything that the run writes. Required.
        output_dir: Option<PathBuf> = None => free;
        /// Passes over the training set; a part of one is accepted.
        num_train_epochs: f64 = 3.0;
        /// Optimizer steps, instead of `num_train_epochs`.
        max_steps: Option<u64> = None;
        /// Records in one micro-batch, packed or not.
        per_device_train_batch_size: usize = 8;
        /// Records in one batch of the evaluation.
        per_device_eval_batch_size: usize = 8 => free;
        /// Micro-batches in one optimizer step.
        gradient_accumulation_steps: usize = 1;
        /// Peak learning rate.
        learning_rate: f64 = 5e-5;
        /// How the learning rate moves.
        lr_scheduler_type: SchedulerKind = SchedulerKind::Linear;
        /// Steps of linear warm-up from 0.
        warmup_steps: Option<u64> = None;
        /// Warm-up as a part of all steps, rounded up, instead of `warmup_steps`.
        warmup_ratio: Option<f64> = None;
        /// Weight decay; norms and biases take none.
        weight_decay: f64 = 0.0;
        /// The optimizer.
        optim: OptimizerKind = OptimizerKind::Adamw;
        /// Decay of the first moment.
        adam_beta1: f64 = 0.9;
        /// Decay of the second moment.
        adam_beta2: f64 = 0.999;
        /// Added to the root of the second moment.
        adam_epsilon: f64 = 1e-8;
        /// Largest global norm of the gradient; `null` (or 0) for no clipping.
        max_grad_norm: Option<f64> = Some(1.0);
        /// Keep only the input of each block and compute the block again in the backward pass: less memory, more time, the same bits.
        gradient_checkpointing: bool = false => free;
        /// Memory that the run may take, such as `16GB`; otherwise what the machine has free. A plan that needs more is refused.
        memory_limit: Option<ByteSize> = None => free;
        /// Measure all records first, without decoding, and run the largest batch of the run forward and backward once before the first
        /// step, without an update: what does not fit fails at once. `vidtune plan` then plans that batch instead of a sampled one.
        preflight: bool = false => free;
        /// Steps between two reports (the reference's default is 500; `metrics.jsonl` holds every step regardless).
        logging_steps: u64 = 10 => free;
        /// When a checkpoint is written besides the last step's; `save_steps` given means `steps`.
        save_strategy: Strategy = Strategy::Steps => free;
        /// Steps between two checkpoints.
        save_steps: u64 = 500 => free;
        /// Checkpoints kept, the best and the last always among them; `null` keeps all.
        save_total_limit: Option<usize> = None => free;
        /// When the evaluation set is evaluated; `eval_steps` given means `steps`.
        eval_strategy: Strategy = Strategy::No => free;
        /// Steps between two evaluations.
        eval_steps: Option<u64> = None => free;
        /// Export the checkpoint with the best evaluation instead of the last.
        load_best_model_at_end: bool = false => free;
        /// What is best; only `eval_loss`, where less is better.
        metric_for_best_model: String = "eval_loss".to_owned() => free;
        /// Seed of dropout, adapters and the order of records.
        seed: u64 = 42;
        /// Seed of the order of records where it shall differ from `seed`.
        data_seed: Option<u64> = None;
        /// Largest file of exported weights.
        max_shard_size: ByteSize = ByteSize(5_000_000_000) => free;
        /// Folder in which features of pictures are kept, so that a picture passes a frozen tower once and not in every epoch; the numbers
        /// stay the same bit for bit. It may be shared by any number of runs. `null` for none.
        feature_cache: Option<PathBuf> = None => free;
        /// With `feature_cache`: the bytes that the folder may hold; the least recently used go first.
        feature_cache_size: ByteSize = ByteSize(20_000_000_000) => free;
        /// Write `profile.json`, `profile.csv` and `trace.json`: where time, tokens and arithmetic went.
        profile: bool = false => free;
        /// With `profile`: the steps that `trace.json` shows, counted from 1 in each process of the run; `null` for no trace.
        trace_steps: Option<StepWindow> = Some(StepWindow { first: 3, last: 8 }) => free;
        sections {
            /// Settings of single schedules.
            lr_scheduler_kwargs: SchedulerSettings;
        }
    }
}

section! {
    /// Settings of single schedules.
    SchedulerSettings {
        /// `cosine`: waves until the end; 0.5 falls to 0.
        num_cycles: f64 = 0.5;
        /// `polynomial`: the learning rate at the end.
        lr_end: f64 = 1e-7;
        /// `polynomial`: the exponent.
        power: f64 = 1.0;
    }
}

section! {
    /// Training on several devices. Not built yet: one device only.
    ParallelPlan {
        /// ZeRO stage; only 0 is built.
        zero_stage: u64 = 0;
        /// What is kept in host memory; only `none` is built.
        offload: Offload = Offload::None;
        /// A DeepSpeed configuration (`ds_config.json`): what the plan leaves open is taken from it, what contradicts it is refused.
        /// One device has nothing for ZeRO to divide; ranks that the file counts on become accumulation.
        deepspeed: Option<PathBuf> = None;
    }
}

section! {
    /// Experiment trackers. `metrics.jsonl` is always written.
    TrackingPlan {
        /// Trackers to report to; none is built yet.
        report_to: Vec<String> = Vec::new() => free;
        /// Name of the run, for the model card.
        run_name: Option<String> = None => free;
    }
}

section! {
    /// Upload to the hub. Not built yet.
    HubPlan {
        /// Upload the final model. Not built yet.
        push_to_hub: bool = false => free;
        /// Repository to upload to. Not built yet.
        hub_model_id: Option<String> = None => free;
        /// Whether the repository is private.
        private: bool = true => free;
    }
}

/// Kind of projector where a plan does not say.
pub const DEFAULT_PROJECTOR: &str = "mlp2x_gelu";

impl ModelPlan {
    /// Whether the model is joined of parts.
    pub fn joins_parts(&self) -> bool {
        self.language.is_some() || self.image_tower.is_some() || self.video_tower.is_some()
    }
}

/// `method.lora.target_modules`: a list of names, or one text.
#[derive(Debug, Clone, PartialEq)]
pub enum TargetModules {
    /// Names; a bare one matches the last segment of a module of the language model.
    Names(Vec<String>),
    /// A regular expression over full module names, or the word `all-linear`.
    Text(String),
}

impl Default for TargetModules {
    /// What PEFT takes for Llama and Qwen2.
    fn default() -> Self {
        TargetModules::Names(vec!["q_proj".to_owned(), "v_proj".to_owned()])
    }
}

impl PlanValue for TargetModules {
    fn type_name() -> String {
        "list of text | regular expression | all-linear".to_owned()
    }
    fn read(node: &Node) -> Result<Self, String> {
        let expected = || "a list of module names, a regular expression or `all-linear`".to_owned();
        match &node.value {
            Value::List(_) => Vec::read(node).map(TargetModules::Names).map_err(|_| expected()),
            _ => String::read(node).map(TargetModules::Text).map_err(|_| expected()),
        }
    }
    fn write(&self) -> Json {
        match self {
            TargetModules::Names(names) => names.write(),
            TargetModules::Text(text) => text.write(),
        }
    }
}

/// A number of bytes, written as a number or as `500MB`, `2GB`, `1GiB` (decimal and binary units).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

const BYTE_UNITS: [(&str, u64); 7] = [
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

impl PlanValue for ByteSize {
    fn type_name() -> String {
        "bytes, such as 5GB".to_owned()
    }
    fn read(node: &Node) -> Result<Self, String> {
        let expected = || "a size such as `5GB` or `500MB`".to_owned();
        let text = node.text().ok_or_else(expected)?.to_ascii_uppercase();
        let (number, factor) = BYTE_UNITS
            .iter()
            .find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number, *factor)))
            .unwrap_or((&text, 1));
        let number: u64 = number.trim().parse().map_err(|_| expected())?;
        number.checked_mul(factor).filter(|bytes| *bytes > 0).map(ByteSize).ok_or_else(expected)
    }
    fn write(&self) -> Json {
        let decimal =
            [("GB", 1_000_000_000), ("MB", 1_000_000)].into_iter().find(|(_, factor)| self.0.is_multiple_of(*factor));
        decimal.map_or(Json::from(self.0), |(unit, factor)| Json::from(format!("{}{unit}", self.0 / factor)))
    }
}

/// Steps from one to another, both among them: `3-8`, or `5` for one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepWindow {
    /// The first step, from 1.
    pub first: u64,
    /// The last step.
    pub last: u64,
}

impl PlanValue for StepWindow {
    fn type_name() -> String {
        "steps, such as 3-8".to_owned()
    }
    fn read(node: &Node) -> Result<Self, String> {
        let expected = || "a step or a range of steps from 1, such as `3-8`".to_owned();
        let text = node.text().ok_or_else(expected)?;
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| expected());
        let window = StepWindow { first: number(first)?, last: number(last)? };
        if window.first == 0 || window.last < window.first { Err(expected()) } else { Ok(window) }
    }
    fn write(&self) -> Json {
        Json::from(format!("{}-{}", self.first, self.last))
    }
}

impl TrainPlan {
    /// When evaluations happen: `eval_steps` given means `steps`.
    pub fn evaluation(&self) -> Strategy {
        if self.eval_strategy == Strategy::No && self.eval_steps.is_some() {
            Strategy::Steps
        } else {
            self.eval_strategy
        }
    }

    /// The seed of the order of records.
    pub fn order_seed(&self) -> u64 {
        self.data_seed.unwrap_or(self.seed)
    }

    /// The largest gradient norm; `None` for no clipping.
    pub fn clip_norm(&self) -> Option<f64> {
        self.max_grad_norm.filter(|norm| *norm > 0.0)
    }
}
