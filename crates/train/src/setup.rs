//! From a plan to everything that a run needs in memory: model, selection, processor, datasets, schedule. Owns the order in
//! which these are opened (cheapest first, so that a mistake costs seconds), and the checks that need two of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::{Batch, Dataset, FrameCache, Loader, LoaderOptions, LoaderState, Processor, collate};
use models::seq2seq::config::Seq2SeqConfig;
use models::{LoadOptions, Model};
use tensor::DType;

use crate::checkpoint;
use crate::error::{Result, TrainError};
use crate::evaluate::EvalSet;
use crate::event::Event;
use crate::export::ModelKind;
use crate::features::FeatureCache;
use crate::join::BaseModel;
use crate::plan::{Plan, Strategy, WeightDtype};
use crate::report::check_memory;
use crate::schedule::{Schedule, StepCount};
use crate::selection::{Selection, check_adapter, select};
use crate::step::Trainer;

/// What a run needs beside the trainer.
pub(crate) struct Job {
    pub(crate) model_dir: PathBuf,
    pub(crate) processor: Arc<Processor>,
    pub(crate) dataset: Arc<Dataset>,
    pub(crate) options: LoaderOptions,
    pub(crate) cache: Option<Arc<FrameCache>>,
    pub(crate) eval: Option<EvalSet>,
    pub(crate) count: StepCount,
    pub(crate) selection: Selection,
    pub(crate) kind: ModelKind,
    /// What people should know of the model: what it drops in training, and in which numbers it computes.
    pub(crate) model_notices: Vec<String>,
    pub(crate) base_files: BTreeMap<String, u64>,
    /// Bytes at the peak of a step with the largest micro-batch, as planned.
    pub(crate) planned_peak: u64,
    /// With `train.preflight`: that micro-batch.
    pub(crate) largest: Option<Batch>,
}

/// Opens the data of a plan.
pub(crate) struct DataSide {
    pub(crate) processor: Arc<Processor>,
    pub(crate) dataset: Arc<Dataset>,
    pub(crate) options: LoaderOptions,
    pub(crate) eval: Option<EvalSet>,
    pub(crate) count: StepCount,
    pub(crate) schedule: Schedule,
}

/// Loads everything; the trainer stands at step 0.
pub(crate) fn prepare(plan: &Plan, on_event: &mut dyn FnMut(&Event<'_>)) -> Result<(Job, Trainer)> {
    let base = BaseModel::for_run(plan)?;
    let model_dir = base.dir.clone();
    let cache = plan.data.open_frame_cache()?;
    let side = open_data(plan, &model_dir, cache.clone())?;
    if plan.train.preflight {
        on_event(&Event::Measuring { records: side.dataset.len() });
    }
    let (forecast, largest) = check_memory(plan, &model_dir, &side)?;
    let largest = if plan.train.preflight { Some(collate(&largest)?) } else { None };
    let DataSide { processor, dataset, options, eval, count, schedule } = side;
    let mut base_dirs: Vec<&Path> = vec![&model_dir];
    base_dirs.extend(plan.model.adapter.as_deref());
    let mut base_files = checkpoint::fingerprint(&base_dirs)?;
    for (part, dir) in &base.parts {
        let files = checkpoint::fingerprint(&[dir])?;
        base_files.extend(files.into_iter().map(|(name, length)| (format!("{part}/{name}"), length)));
    }
    check_adapter(plan)?;
    let mut model = load_model(plan, &model_dir)?;
    let selection = select(plan, &mut model)?;
    let kind = match model.config() {
        config if config.seq2seq().is_some() => ModelKind::Seq2Seq,
        config if config.encoders().is_some() => ModelKind::Original,
        config if config.vision().is_some() => ModelKind::Vision,
        _ => ModelKind::Text,
    };
    let dropout = model.config().seq2seq().and_then(dropout_notice);
    let model_notices = dropout.into_iter().chain(arithmetic_notice(plan, &model)).collect();
    let features = match &plan.train.feature_cache {
        Some(dir) => Some(FeatureCache::open(dir, plan.train.feature_cache_size.0, &model, &selection.tensors)?),
        None => None,
    };
    let trainer = Trainer::new(plan, model, &selection, schedule).with_feature_cache(features);
    let planned_peak = forecast.total;
    let job = Job {
        model_dir,
        processor,
        dataset,
        options,
        cache,
        eval,
        count,
        selection,
        kind,
        model_notices,
        base_files,
        planned_peak,
        largest,
    };
    Ok((job, trainer))
}

/// Where nobody chose the numbers that the model computes with, and others would be faster or are not those of its weights.
fn arithmetic_notice(plan: &Plan, model: &Model) -> Option<String> {
    let stored = model.params().first()?.param.value().dtype();
    match (plan.model.dtype, stored, model.compute()) {
        (WeightDtype::Auto, DType::F32, DType::F32) if tensor::has_bf16() => Some(
            "the checkpoint's weights are f32 and so is the arithmetic; `model.dtype: bf16` is faster on this processor, \
             and what is frozen takes half the memory"
                .to_owned(),
        ),
        (WeightDtype::Auto, DType::F16, DType::BF16) => Some(
            "the checkpoint's weights are float16; they are kept as they are and multiplied in bf16 on this processor, \
             `model.dtype: f32` multiplies in f32"
                .to_owned(),
        ),
        _ => None,
    }
}

/// What a configuration drops in training; evaluation drops nothing.
fn dropout_notice(config: &Seq2SeqConfig) -> Option<String> {
    let fields = [
        ("dropout", config.dropout.residual),
        ("attention_dropout", config.dropout.attention),
        ("activation_dropout", config.dropout.activation),
        ("encoder_layerdrop", config.encoder.layerdrop),
        ("decoder_layerdrop", config.decoder.layerdrop),
    ];
    let given: Vec<String> =
        fields.iter().filter(|(_, p)| *p > 0.0).map(|(name, p)| format!("`{name}: {p}`")).collect();
    (!given.is_empty())
        .then(|| format!("the model's own {} are applied in training, drawn by `train.seed`", given.join(", ")))
}

/// Loads the base model in the plan's number format.
pub(crate) fn load_model(plan: &Plan, dir: &Path) -> Result<Model> {
    let dtype = match plan.model.dtype {
        WeightDtype::Auto => None,
        WeightDtype::F32 => Some(DType::F32),
        WeightDtype::Bf16 => Some(DType::BF16),
        WeightDtype::F16 => Some(DType::F16),
    };
    let (model, _report) = models::load(dir, &LoadOptions { dtype })?;
    Ok(model)
}

/// Opens processor and datasets and lays out the run's steps. Who only looks gives no cache: nothing is written then.
pub(crate) fn open_data(plan: &Plan, model_dir: &Path, cache: Option<Arc<FrameCache>>) -> Result<DataSide> {
    let (train, data) = (&plan.train, &plan.data);
    let processor = Processor::load(model_dir)?.with_image_backend(data.image_backend).with_frame_cache(cache);
    let languages = [("src_lang", &data.src_lang), ("tgt_lang", &data.tgt_lang)];
    if let Some((name, _)) = languages.iter().find(|(_, value)| value.is_some() && !processor.is_seq2seq()) {
        let message = format!("`data.{name}` is given, but the model writes no targets from sources");
        return Err(TrainError::mismatch(message, format!("remove `data.{name}`")));
    }
    let processor = Arc::new(processor);
    let dataset = Arc::new(data.open_train()?);
    let options =
        data.train_options(train.per_device_train_batch_size, train.gradient_accumulation_steps, train.order_seed())?;
    let eval = match train.evaluation() {
        Strategy::No => None,
        Strategy::Steps | Strategy::Epoch => {
            let options = data.eval_options(train.per_device_eval_batch_size)?;
            Some(EvalSet { dataset: Arc::new(data.open_eval()?), processor: processor.clone(), options })
        }
    };
    let num_batches = options.pack_tokens.is_none().then(|| dataset.epoch_len().div_ceil(options.batch_size as u64));
    let Some(count) = StepCount::new(plan, num_batches) else {
        return Err(TrainError::mismatch("the training set holds no record", "look at `data.train`"));
    };
    let schedule = Schedule::new(plan, count.num_training_steps)?;
    if let Some(every) = train.eval_steps.filter(|every| eval.is_some() && *every > count.num_training_steps) {
        return Err(TrainError::mismatch(
            format!(
                "`train.eval_steps: {every}` is beyond the run of {} steps: it would never evaluate",
                count.num_training_steps
            ),
            "lower it",
        ));
    }
    Ok(DataSide { processor, dataset, options, eval, count, schedule })
}

impl Job {
    /// A loader at the beginning, or where another stood.
    pub(crate) fn loader(&self, state: Option<LoaderState>) -> Result<Loader> {
        let (dataset, processor, options) = (self.dataset.clone(), self.processor.clone(), self.options.clone());
        Ok(match state {
            None => Loader::new(dataset, processor, options)?,
            Some(state) => Loader::from_state(dataset, processor, options, state)?,
        })
    }

    /// What people should read once before the first step.
    pub(crate) fn notices(&self, plan: &Plan) -> Vec<String> {
        let mut notices: Vec<String> = self.selection.unreached_notice().into_iter().collect();
        notices.extend(self.model_notices.iter().cloned());
        if let Some(file) = &plan.parallel.deepspeed {
            notices.push(format!(
                "`{}`: one device trains, so that ZeRO and offload have nothing to divide and change nothing; each step takes {} micro-batches of {}",
                file.display(),
                plan.train.gradient_accumulation_steps,
                plan.train.per_device_train_batch_size
            ));
        }
        if self.eval.is_none() && plan.data.has_eval() {
            let key = if plan.data.eval.is_empty() { "split" } else { "eval" };
            notices.push(format!(
                "`data.{key}` is not used: neither `train.eval_steps` nor `train.eval_strategy` asks for evaluation"
            ));
        }
        let evaluated = self.eval.iter().flat_map(|set| set.dataset.selected());
        notices.extend(self.dataset.selected().chain(evaluated).map(ToString::to_string));
        let share = |(path, take, len): (&Path, u64, u64)| {
            format!("`{}`: an epoch takes {take} of its {len} records", path.display())
        };
        notices.extend(self.dataset.shares().map(share));
        notices
    }

    /// Records in the training set.
    pub(crate) fn num_records(&self) -> u64 {
        self.dataset.len()
    }

    /// The id of a record.
    pub(crate) fn record_id(&self, index: u64) -> String {
        self.dataset.id(index)
    }
}
