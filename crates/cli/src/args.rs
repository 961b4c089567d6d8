//! The command line's definition: every command, flag and its documentation, which `--help` prints. Owns what the flags
//! mean together; a command's own work is in `commands`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::failure::CliError;
use crate::text_args::{BeamArgs, LanguageArgs, MoreMedia};

/// Fine-tunes video-language models: trains, evaluates and asks checkpoints in the Hugging Face layout.
#[derive(Debug, Parser)]
#[command(name = "vidtune", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Data goes to stdout, everything else to stderr.\n\
    Exit codes: 0 done, 1 failed, 2 bad usage or plan, 3 data refused, 75 preempted and checkpointed.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, global = true, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Number format of the weights; the checkpoint's (or the plan's) own when not given. 16-bit ones are computed in
    /// bf16 where the processor multiplies such numbers
    #[arg(long, global = true, value_name = "DTYPE")]
    pub dtype: Option<DtypeChoice>,
    /// Threads of computation and decoding; results do not depend on it
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,
    /// Form of messages on stderr
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Fewer messages (-q: warnings and errors, -qq: errors)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub quiet: u8,
    /// More messages
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best that this build has.
    Auto,
    /// The processor.
    Cpu,
    /// A CUDA device.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
}

/// Number format of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeChoice {
    /// 32-bit.
    F32,
    /// bfloat16.
    Bf16,
}

impl DtypeChoice {
    /// The engine's type.
    pub fn dtype(self) -> tensor::DType {
        match self {
            DtypeChoice::F32 => tensor::DType::F32,
            DtypeChoice::Bf16 => tensor::DType::BF16,
        }
    }

    /// The plan's word.
    pub fn word(self) -> &'static str {
        match self {
            DtypeChoice::F32 => "f32",
            DtypeChoice::Bf16 => "bf16",
        }
    }
}

/// Form of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Common {
    /// Sets what is process-wide: the number of threads. Refuses a device that this build does not have.
    ///
    /// # Errors
    /// Bad usage.
    pub fn apply(&self) -> Result<()> {
        if let DeviceChoice::Cuda(_) = self.device {
            let hint = "leave `--device` out or pass `--device cpu`";
            return Err(CliError::usage("`--device cuda`: this build computes on the processor only", hint).into());
        }
        if let Some(threads) = self.threads {
            if threads == 0 {
                return Err(CliError::usage("`--threads 0`: expected at least 1", "leave it out for all cores").into());
            }
            if threads > MAX_THREADS {
                let message = format!("`--threads {threads}`: expected at most {MAX_THREADS}");
                return Err(CliError::usage(message, "leave it out for all cores").into());
            }
            tensor::set_num_threads(threads);
            rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
        }
        Ok(())
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train and judge a tiny model on generated videos, from nothing to a report
    Demo(DemoArgs),
    /// Train a model as a plan file says
    Train(TrainArgs),
    /// Show what a plan would run, and refuse what cannot work
    Plan(PlanArgs),
    /// Judge a model on a dataset
    Eval(EvalArgs),
    /// Write the loss of every record, one JSON line each
    Score(ScoreArgs),
    /// Ask a model about videos, images or sound
    Generate(GenerateArgs),
    /// Look at datasets and media as a model sees them
    #[command(subcommand)]
    Data(DataCommand),
    /// Measure this machine
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Write a checkpoint in LLaVA's original layout as transformers loads it
    Export(crate::commands::export::ExportArgs),
    /// Write a plan file to start from
    Init(InitArgs),
    /// Report the environment, or compare a checkpoint with the reference implementation
    Doctor(crate::commands::doctor::DoctorArgs),
}

/// `vidtune demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Folder for clips, models and the report; must not hold anything yet
    #[arg(long, value_name = "DIR", default_value = "vidtune-demo")]
    pub out: PathBuf,
}

/// `vidtune train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The plan file (YAML)
    #[arg(value_name = "PLAN.yaml")]
    pub plan: PathBuf,
    /// Changes to the plan, such as train.learning_rate=2e-4
    #[arg(value_name = "key=value")]
    pub overrides: Vec<String>,
    /// Print the resolved plan and what would train, then stop
    #[arg(long)]
    pub dry_run: bool,
    /// Go on with an earlier run: its newest checkpoint (auto) or a given one
    #[arg(long, value_name = "auto|DIR")]
    pub resume: Option<String>,
    /// Measure the run: profile.json, profile.csv and trace.json in its folder, and a table at the end (train.profile)
    #[arg(long)]
    pub profile: bool,
    /// Steps of this process that trace.json shows (train.trace_steps)
    #[arg(long, value_name = "FIRST-LAST")]
    pub trace_steps: Option<String>,
}

/// `vidtune plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The plan file (YAML)
    #[arg(value_name = "PLAN.yaml")]
    pub plan: PathBuf,
    /// Changes to the plan, such as train.learning_rate=2e-4
    #[arg(value_name = "key=value")]
    pub overrides: Vec<String>,
    /// Also run one forward and backward pass over the longest records, and measure memory and time
    #[arg(long)]
    pub measure: bool,
    /// Assume records of so many tokens: no dataset is opened, and a folder with config.json and no weights will do
    #[arg(long, value_name = "N", conflicts_with = "measure")]
    pub tokens: Option<usize>,
    /// Assume so many pictures among these tokens
    #[arg(long, value_name = "N", requires = "tokens", default_value_t = 0)]
    pub pictures: usize,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// The model of a command that uses one.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Checkpoint folder or hub id
    #[arg(long, value_name = "DIR")]
    pub model: Option<String>,
    /// PEFT adapter folder to apply
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}

/// How many frames of a clip.
#[derive(Debug, Clone, Args)]
pub struct FrameArgs {
    /// Frames of each clip
    #[arg(long, value_name = "N", conflicts_with = "fps")]
    pub num_frames: Option<usize>,
    /// Frames a second
    #[arg(long, value_name = "F")]
    pub fps: Option<f64>,
    /// At most this many frames of each clip
    #[arg(long, value_name = "N")]
    pub max_frames: Option<usize>,
    /// Which frames: transformers, qwen2_vl, qwen3_vl, qwen_vl_utils, stride or segments; the model's own when not given
    #[arg(long, value_name = "RULE")]
    pub frame_rule: Option<String>,
}

/// A dataset.
#[derive(Debug, Clone, Args)]
pub struct SetArgs {
    /// Format of the records; auto looks at the first ones
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub format: FormatChoice,
    /// Folder that relative media paths start from; the dataset's own when not given
    #[arg(long, value_name = "DIR")]
    pub media_dir: Option<PathBuf>,
    /// Only the first N records
    #[arg(long, value_name = "N", value_parser = at_least_one::<u64>)]
    pub max_samples: Option<u64>,
}

/// Names of dataset formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatChoice {
    /// By content.
    Auto,
    /// Role and content parts, `num_frames`.
    Conversation,
    /// `conversations` with `from` and `value`.
    #[value(alias = "sharegpt")]
    Llava,
    /// The OpenAI shape.
    #[value(alias = "openai")]
    Messages,
    /// `question` and `caption`.
    Seq2seq,
    /// As `llava`, with `audio`.
    Ego4d,
    /// `question`, `options` and `answer`.
    Mcq,
    /// `question` and `answer`.
    Qa,
    /// `caption`.
    Caption,
}

impl From<FormatChoice> for data::Format {
    fn from(choice: FormatChoice) -> data::Format {
        match choice {
            FormatChoice::Auto => data::Format::Auto,
            FormatChoice::Conversation => data::Format::Conversation,
            FormatChoice::Llava => data::Format::Llava,
            FormatChoice::Messages => data::Format::Messages,
            FormatChoice::Seq2seq => data::Format::Seq2seq,
            FormatChoice::Ego4d => data::Format::Ego4d,
            FormatChoice::Mcq => data::Format::Mcq,
            FormatChoice::Qa => data::Format::Qa,
            FormatChoice::Caption => data::Format::Caption,
        }
    }
}

/// `vidtune eval`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["plan", "model"]).required(true))]
pub struct EvalArgs {
    /// A plan file: judges what its run exported, on its evaluation set
    #[arg(value_name = "PLAN.yaml")]
    pub plan: Option<PathBuf>,
    /// The model, where no plan is given.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Dataset: a file, a folder of shards, or a pattern for them; the plan's evaluation set when not given
    #[arg(long, value_name = "FILE", required_unless_present = "plan")]
    pub data: Option<PathBuf>,
    /// What is judged: loss, caption, qa, mcq, classify, summary or story
    #[arg(long, value_name = "TASK", default_value = "loss")]
    pub task: String,
    /// Results file (JSON); stdout when not given
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The dataset.
    #[command(flatten)]
    pub set: SetArgs,
    /// Frames.
    #[command(flatten)]
    pub frames: FrameArgs,
    /// Languages.
    #[command(flatten)]
    pub languages: LanguageArgs,
    /// Beams.
    #[command(flatten)]
    pub beams: BeamArgs,
    /// Longest answer, in tokens; 64 when not given, 256 for summary and story
    #[arg(long, value_name = "N", value_parser = at_least_one::<usize>)]
    pub max_new_tokens: Option<usize>,
    /// Records in one batch
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub batch_size: usize,
    /// Leave out records that cannot be read, and list them, instead of stopping
    #[arg(long)]
    pub skip_bad_media: bool,
    /// Put the frames of every clip in a random order: a control for the use of time
    #[arg(long)]
    pub shuffle_frames: bool,
    /// Seed of --shuffle-frames
    #[arg(long, value_name = "S", default_value_t = 42)]
    pub seed: u64,
}

/// `vidtune score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// Checkpoint folder or hub id
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// PEFT adapter folder to apply
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Dataset: a file, a folder of shards, or a pattern for them
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Scores file (JSON lines); stdout when not given
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The dataset.
    #[command(flatten)]
    pub set: SetArgs,
    /// Frames.
    #[command(flatten)]
    pub frames: FrameArgs,
    /// Languages.
    #[command(flatten)]
    pub languages: LanguageArgs,
    /// Records in one batch; scores do not depend on it
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch_size: usize,
}

/// `vidtune generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Checkpoint folder or hub id
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// PEFT adapter folder to apply
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// A video file; may be given several times
    #[arg(long, value_name = "FILE")]
    pub video: Vec<PathBuf>,
    /// An image file; may be given several times
    #[arg(long, value_name = "FILE")]
    pub image: Vec<PathBuf>,
    #[command(flatten)]
    pub more: MoreMedia,
    /// The question
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// Frames of each video
    #[arg(long, value_name = "N")]
    pub num_frames: Option<usize>,
    /// Frames a second of a video file; beside --frames the rate of its images
    #[arg(long, value_name = "F")]
    pub fps: Option<f64>,
    /// At most this many frames of each video
    #[arg(long, value_name = "N")]
    pub max_frames: Option<usize>,
    /// Which frames: transformers, qwen2_vl, qwen3_vl, qwen_vl_utils, stride or segments; the model's own when not given
    #[arg(long, value_name = "RULE")]
    pub frame_rule: Option<String>,
    /// Longest answer, in tokens
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_one::<usize>)]
    pub max_new_tokens: usize,
    /// 0 takes the most likely token, whatever `generation_config.json` says; higher varies more
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Sample from the smallest set of tokens with this much probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Sample from this many most likely tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Seed of the sampling
    #[arg(long, value_name = "S", default_value_t = 42)]
    pub seed: u64,
    /// Languages.
    #[command(flatten)]
    pub languages: LanguageArgs,
    /// Beams.
    #[command(flatten)]
    pub beams: BeamArgs,
    /// Print {"text", "token_ids"}
    #[arg(long)]
    pub json: bool,
}

/// `vidtune data`.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Decode chosen frames of a video to PNG files
    Frames(FramesArgs),
    /// Read every record and its media, and report what would be refused
    Check(CheckArgs),
    /// Show a record as the model sees it
    Preview(PreviewArgs),
    /// Look at a folder of cached frames (`data.frame_cache`), or empty it
    Cache(CacheArgs),
    /// Write published annotations as records that training reads
    #[command(subcommand)]
    Convert(crate::commands::data_convert::ConvertCommand),
}

/// `vidtune data cache`.
#[derive(Debug, Args)]
pub struct CacheArgs {
    /// The folder
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Remove every cached frame; nothing else in the folder is touched
    #[arg(long)]
    pub clear: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `vidtune data frames`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("count").args(["num_frames", "fps", "all"]).required(true))]
pub struct FramesArgs {
    /// The video file
    #[arg(long, value_name = "FILE")]
    pub video: PathBuf,
    /// This many frames
    #[arg(long, value_name = "N")]
    pub num_frames: Option<usize>,
    /// This many frames a second
    #[arg(long, value_name = "F")]
    pub fps: Option<f64>,
    /// Every frame
    #[arg(long)]
    pub all: bool,
    /// Which frames: transformers, qwen2_vl, qwen3_vl, qwen_vl_utils, stride or segments
    #[arg(long, value_name = "RULE", default_value = "transformers")]
    pub rule: String,
    /// At most this many frames
    #[arg(long, value_name = "N")]
    pub max_frames: Option<usize>,
    /// Start of the part to use, in seconds
    #[arg(long, value_name = "S")]
    pub start: Option<f64>,
    /// End of the part to use, in seconds
    #[arg(long, value_name = "S")]
    pub end: Option<f64>,
    /// Resize the frames (bicubic, the bytes of Pillow 11 and 12); the video's own size when not given
    #[arg(long, value_name = "WxH")]
    pub size: Option<Size>,
    /// Folder for the PNG files and frames.json
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Threads beyond which only memory grows.
const MAX_THREADS: usize = 1024;

/// A count that makes no sense at 0.
pub(crate) fn at_least_one<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    match text.parse() {
        Ok(count) if count >= T::from(1) => Ok(count),
        _ => Err("expected a whole number of at least 1".to_owned()),
    }
}

/// A size in pixels, written `WxH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let parts = text.split_once(['x', 'X']).and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
        match parts {
            Some((width @ 1..=16384, height @ 1..=16384)) => Ok(Size { width, height }),
            _ => Err("expected a size such as 336x336, at most 16384 each".to_owned()),
        }
    }
}

/// `vidtune data check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Dataset: a file, a folder of shards, or a pattern for them
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Checkpoint folder or hub id: also renders and counts tokens as this model would
    #[arg(long, value_name = "DIR")]
    pub model: Option<String>,
    /// The dataset.
    #[command(flatten)]
    pub set: SetArgs,
    /// Frames.
    #[command(flatten)]
    pub frames: FrameArgs,
    /// Languages.
    #[command(flatten)]
    pub languages: LanguageArgs,
    /// Refuse records of more tokens than this (with --model)
    #[arg(long, value_name = "N", requires = "model")]
    pub max_length: Option<usize>,
    /// Do not open media files (without --model)
    #[arg(long, conflicts_with = "model")]
    pub no_media: bool,
    /// Report file (JSON); stdout when not given
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `vidtune data preview`.
#[derive(Debug, Args)]
pub struct PreviewArgs {
    /// Dataset: a file, a folder of shards, or a pattern for them
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Checkpoint folder or hub id whose template and tokenizer are used
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// Id of the record
    #[arg(long, value_name = "ID", conflicts_with = "index")]
    pub record: Option<String>,
    /// Position of the record, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub index: u64,
    /// The dataset.
    #[command(flatten)]
    pub set: SetArgs,
    /// Frames.
    #[command(flatten)]
    pub frames: FrameArgs,
    /// Languages.
    #[command(flatten)]
    pub languages: LanguageArgs,
    /// Most tokens of a record
    #[arg(long, value_name = "N")]
    pub max_length: Option<usize>,
    /// PNG file for a contact sheet of the frames
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `vidtune bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Time training steps of a model with random weights
    Step(BenchStepArgs),
    /// Time the decoding of a video's frames
    Decode(BenchDecodeArgs),
    /// Time greedy generation of a model with random weights, beside the rate at which this machine reads memory
    Generate(BenchGenerateArgs),
}

/// `vidtune bench step`.
#[derive(Debug, Args)]
pub struct BenchStepArgs {
    /// A Hugging Face config.json, or a checkpoint folder whose weights are then used
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Tokens of each sequence
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub seq: usize,
    /// Sequences in a batch
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: usize,
    /// What trains: full, lora (rank 16 on q, k, v and o) or projector
    #[arg(long, value_name = "METHOD", default_value = "full")]
    pub method: BenchMethod,
    /// Steps; the first third is not counted in the median
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub steps: usize,
    /// Compute blocks again in the backward pass
    #[arg(long)]
    pub recompute: bool,
    /// Safetensors file whose `tokens` (I64) are trained on instead of random ids
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What `bench step` trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchMethod {
    /// Every tensor.
    Full,
    /// Adapters on q, k, v and o.
    Lora,
    /// The projector.
    Projector,
}

/// `vidtune bench decode`.
#[derive(Debug, Args)]
pub struct BenchDecodeArgs {
    /// The video file
    #[arg(long, value_name = "FILE")]
    pub video: PathBuf,
    /// Frames to decode, evenly spread
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub num_frames: usize,
    /// Times the clip is decoded
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub repeats: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `vidtune bench generate`.
#[derive(Debug, Args)]
pub struct BenchGenerateArgs {
    /// A Hugging Face config.json, or a checkpoint folder whose weights are then used
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub prompt_tokens: usize,
    /// Tokens generated for each prompt
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub new_tokens: usize,
    /// Prompts continued together
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `vidtune init`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("from").args(["preset", "data"]).required(true))]
pub struct InitArgs {
    /// A recipe (lora, full, projector, seq2seq), or a family by its model_type
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// A folder of videos with a captions file (CSV or JSON): writes a dataset and a plan that runs
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Captions file; the folder's only .csv, .json or .jsonl when not given
    #[arg(long, value_name = "FILE", requires = "data")]
    pub captions: Option<PathBuf>,
    /// Question put before every caption
    #[arg(long, value_name = "TEXT", default_value = "Describe this video.")]
    pub prompt: String,
    /// Checkpoint folder or hub id to write into the plan
    #[arg(long, value_name = "DIR")]
    pub model: Option<String>,
    /// Part of the records to keep for evaluation
    #[arg(long, value_name = "R", default_value_t = 0.1)]
    pub eval_ratio: f64,
    /// Folder for the files written; the data folder, or the present one, when not given
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn lines_of_the_contract_are_understood() {
        for line in [
            "vidtune train p.yaml train.max_steps=3 --dry-run",
            "vidtune demo",
            "vidtune demo --out d",
            "vidtune train p.yaml --resume auto",
            "vidtune plan p.yaml model.path=x",
            "vidtune eval p.yaml --out r.json",
            "vidtune eval --model m --adapter a --data d.json --task qa --out r.json",
            "vidtune score --model m --adapter a --data d.json --media-dir v --num-frames 8 --out s.jsonl",
            "vidtune score --model m --data d.json --fps 2 --out s.jsonl",
            "vidtune generate --model m --video a.mp4 --video b.mp4 --prompt x --max-new-tokens 3 --temperature 0 --seed 1 --json",
            "vidtune generate --model m --frames dir --fps 2 --prompt x",
            "vidtune data frames --video v --num-frames 8 --rule qwen2_vl --size 336x336 --out d",
            "vidtune data frames --video v --fps 1.5 --out d",
            "vidtune data check --data d.json",
            "vidtune data preview --data d.json --model m",
            "vidtune data cache d",
            "vidtune data cache d --clear --json",
            "vidtune bench step --config c.json --seq 1024 --batch 1 --method lora --dtype f32 --steps 8 --json",
            "vidtune bench decode --video v --num-frames 8 --json",
            "vidtune bench generate --config c.json --prompt-tokens 9 --new-tokens 9 --batch 2 --dtype bf16 --json",
            "vidtune init --preset lora",
            "vidtune init --preset seq2seq",
            "vidtune generate --model m --prompt x --src-lang eng_Latn --tgt-lang fra_Latn --num-beams 4 --length-penalty -1 --early-stopping never",
            "vidtune eval --model m --data d.jsonl --format seq2seq --task qa --tgt-lang fra_Latn --num-beams 2",
            "vidtune score --model m --data d.jsonl --src-lang eng_Latn",
            "vidtune init --data d",
            "vidtune export --model m --adapter a --to-hf d",
            "vidtune doctor",
            "vidtune doctor --print-script",
            "vidtune doctor --model m --reference r.safetensors",
            "vidtune --threads 2 --log-format json -q doctor",
            "vidtune doctor --threads 2 --device cpu -vv",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "vidtune score --model m --data d.json --num-frames 8 --fps 2",
            "vidtune eval --data d.json",
            "vidtune eval --model m",
            "vidtune data frames --video v --out d",
            "vidtune data frames --video v --num-frames 3 --size 3 --out d",
            "vidtune init",
            "vidtune generate --model m --prompt x --length-penalty 2",
            "vidtune doctor --model m",
            "vidtune bench step --config c --dtype f64",
            "vidtune generate --model m --prompt x --device tpu",
            "vidtune",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
