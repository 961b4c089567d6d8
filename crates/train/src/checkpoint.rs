//! `checkpoint-N/`: everything that an exact resumption needs. Owns the folder's layout, finding the newest, retention and the
//! sweep of what a kill left behind; how a folder appears whole or not at all is `hub`'s.
//!
//! ```text
//! checkpoint-N/
//!   adapter_config.json, adapter_model.safetensors   under `lora`: a PEFT adapter
//!   model*.safetensors, config.json, tokenizer …     under `full`: a Hugging Face folder
//!   trainable.safetensors                            under `projector`: what trains, under its names on disk
//!   optimizer.safetensors                            moments, and f32 master copies of 16-bit weights
//!   run_state.json                                   step, loader, ledger, counters, the resolved plan
//!   trainer_state.json                               as `transformers` writes it
//! ```
//! Dropout needs no state: its masks are a function of seed, step and micro-batch.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use data::{Ledger, LoaderState, Processor};
use hub::{Checkpoint, OutTensor, SafeTensors, TensorView};
use models::names::in_memory;
use models::weights::to_tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::error::{Result, TrainError};
use crate::metrics::{LogEntry, StepMetrics, TrainerState};
use crate::plan::{MethodKind, Plan};
use crate::presence::Presence;
use crate::setup::Job;
use crate::step::Trainer;

const FORMAT: u32 = 2;
const STATE_FILE: &str = "run_state.json";
const TRAINER_STATE_FILE: &str = "trainer_state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const TRAINABLE_FILE: &str = "trainable.safetensors";
const ADAPTER_FILE: &str = "adapter_model.safetensors";
const PREFIX: &str = "checkpoint-";
/// In the name of a checkpoint on its way out; such a folder is never read.
const GONE: &str = ".vidtune-gone-";
const TEMPORARY: &str = ".vidtune-tmp-";

/// What a resumption needs besides tensors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunState {
    pub(crate) format: u32,
    pub(crate) step: u64,
    pub(crate) num_training_steps: u64,
    pub(crate) loader: LoaderState,
    pub(crate) ledger: Ledger,
    pub(crate) presence: Presence,
    pub(crate) update_counts: BTreeMap<String, u64>,
    pub(crate) progress: Progress,
    /// The resolved plan.
    pub(crate) plan: Json,
    /// Names and sizes of the base model's files.
    pub(crate) base_files: BTreeMap<String, u64>,
    /// The training set's files as they were when the run began.
    pub(crate) dataset_files: Vec<(PathBuf, data::Fingerprint)>,
}

/// Running numbers that belong to no tensor.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Sum of the losses since the last report.
    pub(crate) loss_sum: f64,
    /// Steps since the last report.
    pub(crate) num_losses: u64,
    /// Input tokens so far.
    pub(crate) input_tokens: u64,
    /// Best evaluation so far.
    pub(crate) best: Option<Best>,
    /// Reports so far.
    pub(crate) log_history: Vec<LogEntry>,
    /// Seconds of training so far, over all resumptions.
    pub(crate) seconds: f64,
    /// The last step, where a signal came before its evaluation was done.
    pub(crate) pending: Option<Pending>,
}

/// A step whose evaluation and line of metrics are still to be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) metrics: StepMetrics,
    pub(crate) is_epoch_end: bool,
}

/// The best evaluation so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    pub(crate) step: u64,
    pub(crate) eval_loss: f64,
}

/// What to write besides the trainer's own state.
pub(crate) struct Contents<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) processor: &'a Processor,
    pub(crate) state: RunState,
    pub(crate) trainer_state: TrainerState,
}

/// The folder of step `step`.
pub(crate) fn folder(output_dir: &Path, step: u64) -> PathBuf {
    output_dir.join(format!("{PREFIX}{step}"))
}

/// Writes `checkpoint-N/` under `output_dir`; it appears whole or not at all.
pub(crate) fn save(output_dir: &Path, trainer: &Trainer, contents: &Contents<'_>) -> Result<PathBuf> {
    let target = folder(output_dir, contents.state.step);
    hub::replace_dir(&target, |dir| {
        save_weights(dir, trainer, contents)?;
        let optimizer = trainer.optimizer.to_tensors(with_masters(contents.plan));
        hub::write_safetensors(dir.join(OPTIMIZER_FILE), &optimizer, &[("format", "pt")])?;
        write_json(&dir.join(TRAINER_STATE_FILE), &contents.trainer_state)?;
        write_json(&dir.join(STATE_FILE), &contents.state)
    })?;
    Ok(target)
}

/// Whether the weights of a checkpoint stand in the types of the base model, so that 16-bit ones need an f32 copy beside.
fn with_masters(plan: &Plan) -> bool {
    matches!(plan.method.kind, Some(MethodKind::Full) | None)
}

fn save_weights(dir: &Path, trainer: &Trainer, contents: &Contents<'_>) -> Result<()> {
    let plan = contents.plan;
    match plan.method.kind {
        Some(MethodKind::Lora | MethodKind::Qlora) => {
            trainer.model.save_adapter(dir, &plan.base_model())?;
        }
        Some(MethodKind::Projector) => {
            let tensors: Vec<OutTensor<'_>> =
                trainer.tensors().iter().map(|t| whole_tensor(&t.named)).collect::<Result<_>>()?;
            hub::write_safetensors(dir.join(TRAINABLE_FILE), &tensors, &[("format", "pt")])?;
        }
        Some(MethodKind::Full) | None => {
            trainer.model.save(dir, plan.train.max_shard_size.0)?;
            contents.processor.save_to(dir)?;
        }
    }
    Ok(())
}

fn whole_tensor(named: &models::NamedParam) -> Result<OutTensor<'static>> {
    let value = named.param.value();
    let dtype = match value.dtype() {
        tensor::DType::BF16 => hub::Dtype::BF16,
        tensor::DType::F16 => hub::Dtype::F16,
        tensor::DType::F32 => hub::Dtype::F32,
        other => unreachable!("weights are kept in floating point, found {other:?}"),
    };
    Ok(OutTensor::lazy(&named.name, dtype, &named.disk_shape, move || Ok(value.to_bytes().into())))
}

/// Reads the state of a checkpoint folder, without its tensors.
pub(crate) fn read_state(dir: &Path) -> Result<RunState> {
    let path = dir.join(STATE_FILE);
    if !path.is_file() {
        let message = format!("`{STATE_FILE}` is missing: this is no checkpoint to resume from");
        return Err(TrainError::checkpoint(dir, message));
    }
    let state: RunState = hub::json::read_json(&path)?;
    if state.format != FORMAT {
        let message = format!("its format is {}, this program reads {FORMAT}", state.format);
        return Err(TrainError::checkpoint(dir, message));
    }
    Ok(state)
}

/// Puts weights, optimizer state and counters of a checkpoint into a trainer that stands at step 0 of the same plan.
pub(crate) fn restore(dir: &Path, plan: &Plan, trainer: &mut Trainer, state: &RunState) -> Result<()> {
    restore_weights(dir, plan, trainer)?;
    let optimizer = SafeTensors::open(dir.join(OPTIMIZER_FILE))?;
    trainer.optimizer.restore(&optimizer, &state.update_counts, with_masters(plan))?;
    trainer.presence = state.presence.clone();
    trainer.step = state.step;
    Ok(())
}

/// Puts the weights of a checkpoint into the tensors that train.
pub(crate) fn restore_weights(dir: &Path, plan: &Plan, trainer: &Trainer) -> Result<()> {
    match plan.method.kind {
        Some(MethodKind::Lora | MethodKind::Qlora) => {
            let file = SafeTensors::open(dir.join(ADAPTER_FILE))?;
            put_weights(dir, trainer, |name| file.get(&adapter_key(name)))
        }
        Some(MethodKind::Projector) => {
            let file = SafeTensors::open(dir.join(TRAINABLE_FILE))?;
            put_weights(dir, trainer, |name| file.get(name))
        }
        Some(MethodKind::Full) | None => {
            let checkpoint = Checkpoint::open(dir)?;
            put_weights(dir, trainer, |name| checkpoint.get(name))
        }
    }
}

fn put_weights<'a>(dir: &Path, trainer: &Trainer, find: impl Fn(&str) -> Option<TensorView<'a>>) -> Result<()> {
    for trained in trainer.tensors() {
        let (name, param) = (&trained.named.name, &trained.named.param);
        let Some(view) = find(name) else {
            return Err(TrainError::checkpoint(dir, format!("tensor `{name}` is missing")));
        };
        let value = to_tensor(dir, &view, &param.shape())?;
        if ![param.dtype(), trained.named.disk_dtype].contains(&value.dtype()) {
            let disk = trained.named.disk_dtype;
            let message = format!("tensor `{name}` is {:?}, the run writes it in {disk:?}", value.dtype());
            return Err(TrainError::checkpoint(dir, message));
        }
        param.set_value(value.cast(param.dtype())?)?;
    }
    Ok(())
}

/// The key of a tensor in `adapter_model.safetensors`: adapter matrices go by it already, tensors saved whole do not.
fn adapter_key(name: &str) -> String {
    if name.starts_with("base_model.model.") {
        name.to_owned()
    } else {
        format!("base_model.model.{}", in_memory(name))
    }
}

/// The steps of the whole checkpoints in a folder, ascending.
pub(crate) fn steps(output_dir: &Path) -> Result<Vec<u64>> {
    let mut steps: Vec<u64> = names_in(output_dir)?
        .iter()
        .filter_map(|name| name.strip_prefix(PREFIX)?.parse().ok())
        .filter(|step| folder(output_dir, *step).join(STATE_FILE).is_file())
        .collect();
    steps.sort_unstable();
    Ok(steps)
}

/// Removes checkpoints beyond `limit` and returns their folders. The newest always stays, and so does the best, which takes
/// one of the places unless there is only one (as the `Trainer` of `transformers` counts).
pub(crate) fn prune(output_dir: &Path, limit: Option<usize>, best: Option<u64>) -> Result<Vec<PathBuf>> {
    let steps = steps(output_dir)?;
    let (Some(limit), Some(newest)) = (limit, steps.last()) else {
        return Ok(Vec::new());
    };
    let best = best.filter(|step| steps.contains(step) && step != newest);
    let num_recent = limit.saturating_sub(usize::from(best.is_some())).max(1);
    let mut removed = Vec::new();
    for step in &steps[..steps.len().saturating_sub(num_recent)] {
        if Some(*step) != best {
            let path = folder(output_dir, *step);
            remove(&path)?;
            removed.push(path);
        }
    }
    Ok(removed)
}

/// Renames a folder out of sight first, so that a kill never leaves half a checkpoint under a readable name.
fn remove(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let gone = path.with_file_name(format!(".{name}{GONE}{}", std::process::id()));
    fs::rename(path, &gone).map_err(|source| TrainError::io("rename", path, source))?;
    fs::remove_dir_all(&gone).map_err(|source| TrainError::io("remove", &gone, source))
}

/// Removes what a killed run of this program left half-done in its own output folder.
pub(crate) fn sweep(output_dir: &Path) -> Result<()> {
    for name in names_in(output_dir)? {
        let Some(rest) = name.strip_prefix('.') else { continue };
        if let Some((target, _)) = rest.split_once(TEMPORARY) {
            hub::remove_leftovers(output_dir.join(target))?;
        } else if rest.starts_with(PREFIX) && rest.contains(GONE) {
            let path = output_dir.join(&name);
            fs::remove_dir_all(&path).map_err(|source| TrainError::io("remove", &path, source))?;
        }
    }
    Ok(())
}

fn names_in(dir: &Path) -> Result<Vec<String>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(dir).map_err(|source| TrainError::io("list", dir, source))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| TrainError::io("list", dir, source))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Writes pretty JSON atomically.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| TrainError::io("write", path, error.into()))?;
    Ok(hub::atomic_write(path, (text + "\n").as_bytes())?)
}

/// Names and sizes of the files that make a model or an adapter, to notice another one under the same path.
pub(crate) fn fingerprint(dirs: &[&Path]) -> Result<BTreeMap<String, u64>> {
    let mut files = BTreeMap::new();
    for dir in dirs {
        for name in names_in(dir)? {
            if name.ends_with(".safetensors") || name == "config.json" || name == "adapter_config.json" {
                let path = dir.join(&name);
                let length = fs::metadata(&path).map_err(|source| TrainError::io("inspect", &path, source))?.len();
                files.insert(name, length);
            }
        }
    }
    Ok(files)
}

impl RunState {
    /// A state in the present format.
    pub(crate) fn new(
        trainer: &Trainer,
        plan: &Plan,
        loader: LoaderState,
        ledger: Ledger,
        progress: Progress,
        job: &Job,
    ) -> RunState {
        RunState {
            format: FORMAT,
            step: trainer.step,
            num_training_steps: trainer.schedule().num_training_steps,
            loader,
            ledger,
            presence: trainer.presence.clone(),
            update_counts: trainer.optimizer.update_counts(),
            progress,
            plan: plan.to_json(),
            base_files: job.base_files.clone(),
            dataset_files: job.dataset.fingerprints(),
        }
    }

    /// Refuses to go on with a training set that was edited: the order of its records would name others.
    pub(crate) fn check_dataset(&self, job: &Job) -> Result<()> {
        for ((path, then), (_, now)) in self.dataset_files.iter().zip(job.dataset.fingerprints()) {
            if *then != now {
                let how = if then.num_bytes == now.num_bytes {
                    "its content is another".to_owned()
                } else {
                    format!("{} bytes then, {} now", then.num_bytes, now.num_bytes)
                };
                return Err(TrainError::mismatch(
                    format!("`{}` is not the file that the run began with: {how}", path.display()),
                    "put the file back as it was, or start a new run in another `train.output_dir`",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(dir: &Path, step: u64) {
        let path = folder(dir, step);
        fs::create_dir(&path).unwrap();
        fs::write(path.join(STATE_FILE), "{}").unwrap();
    }

    #[test]
    fn retention_keeps_the_newest_and_the_best() {
        for (limit, best, left) in [
            (None, None, vec![10, 20, 30, 40]),
            (Some(2), None, vec![30, 40]),
            (Some(2), Some(10), vec![10, 40]),
            (Some(1), Some(10), vec![10, 40]),
            (Some(3), Some(40), vec![20, 30, 40]),
            (Some(9), Some(10), vec![10, 20, 30, 40]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            [10, 20, 30, 40].iter().for_each(|step| make(dir.path(), *step));
            prune(dir.path(), limit, best).unwrap();
            assert_eq!(steps(dir.path()).unwrap(), left, "limit {limit:?}, best {best:?}");
        }
    }

    #[test]
    fn the_sweep_removes_only_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), 10);
        for name in
            [".checkpoint-20.vidtune-tmp-123-0", ".checkpoint-5.vidtune-gone-123", "checkpoint-notes", ".hidden"]
        {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("file"), "x").unwrap();
        }
        sweep(dir.path()).unwrap();
        assert_eq!(names_in(dir.path()).unwrap(), [".hidden", "checkpoint-10", "checkpoint-notes"]);
        assert_eq!(steps(dir.path()).unwrap(), [10]);
    }

    #[test]
    fn a_folder_without_state_is_no_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_state(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("`run_state.json` is missing: this is no checkpoint to resume from"), "{error}");
        make(dir.path(), 1);
        fs::write(folder(dir.path(), 1).join(STATE_FILE), "{\"format\": 2}").unwrap();
        assert!(read_state(&folder(dir.path(), 1)).is_err());
    }
}
