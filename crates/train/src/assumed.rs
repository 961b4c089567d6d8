//! What training needs with records of assumed sizes, for who has a configuration and neither weights nor data yet. Owns the
//! records that stand in for a dataset. It refuses to look for either.

use std::path::{Path, PathBuf};

use data::{Encoded, Visual, VisualKind, collate};
use models::{Model, ModelConfig, VisionKind};
use serde::Serialize;
use tensor::{DType, memory};

use crate::error::{Result, TrainError};
use crate::forecast::{MemoryEstimate, forecast};
use crate::join::BaseModel;
use crate::plan::{Plan, WeightDtype};
use crate::selection::{PartCount, select};
use crate::setup::load_model;

/// Side in pixels of the pictures of families that take any size.
const SIDE: usize = 448;

/// A record that is assumed in place of a dataset's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assumed {
    /// Its tokens, those of pictures included; all others are supervised. Of a sequence-to-sequence model those of the
    /// source, and of the target as well.
    pub tokens: usize,
    /// Its pictures: of the tower's own size, or of 448 x 448 pixels where the family takes any.
    pub pictures: usize,
}

/// What a step over such records needs.
#[derive(Debug, Clone, Serialize)]
pub struct AssumedReport {
    /// Folder of the base model.
    pub model_dir: PathBuf,
    /// Whether the folder holds no weights, so that the sizes are those of its configuration.
    pub without_weights: bool,
    /// Elements of all weights; tied ones count once.
    pub parameters: u64,
    /// Elements that train.
    pub trainable_parameters: u64,
    /// Counts by part of the model.
    pub parts: Vec<PartCount>,
    /// Tokens of a record.
    pub tokens: usize,
    /// Pictures of a record.
    pub pictures: usize,
    /// Records of a micro-batch.
    pub records: usize,
    /// Memory of a step.
    pub memory: MemoryEstimate,
    /// Floating-point operations of a micro-batch, recomputation included.
    pub flops_per_micro_batch: u64,
}

/// Plans a step over records of an assumed size. No dataset, tokenizer or processor is opened, and a folder that holds
/// `config.json` and no weights will do.
///
/// # Errors
/// A plan that is wrong in itself, pictures of a family that cannot be assumed, more pictures than tokens hold.
pub fn assumed_report(plan: &Plan, assumed: Assumed) -> Result<AssumedReport> {
    plan.check()?;
    let base = BaseModel::for_report(plan)?;
    let without_weights = matches!(hub::Checkpoint::open(&base.dir), Err(hub::HubError::NoWeights { .. }));
    let build = || match without_weights {
        true => shapes(plan, &base.dir),
        false => load_model(plan, &base.dir),
    };
    let (selection, record) = memory::plan(|| {
        let mut model = build()?;
        let record = record(model.config(), assumed)?;
        Ok::<_, TrainError>((select(plan, &mut model)?, record))
    })
    .value?;
    let records = match plan.data.pack_tokens {
        None => plan.train.per_device_train_batch_size,
        Some(tokens) => (tokens / assumed.tokens).max(1),
    };
    let batch = collate(&vec![record; records])?;
    let window = vec![batch; plan.train.gradient_accumulation_steps.min(2)];
    let planned = forecast(plan, build, &window)?;
    Ok(AssumedReport {
        model_dir: base.dir.clone(),
        without_weights,
        parameters: selection.parts.iter().map(|part| part.parameters).sum(),
        trainable_parameters: selection.num_trainable(),
        parts: selection.parts,
        tokens: assumed.tokens,
        pictures: assumed.pictures,
        records,
        memory: planned.memory.with_host(plan, &window)?,
        flops_per_micro_batch: planned.flops / window.len() as u64,
    })
}

/// The model that a configuration describes; in a plan nothing is drawn.
fn shapes(plan: &Plan, dir: &Path) -> Result<Model> {
    let config = ModelConfig::load(dir)?;
    let own = ["dtype", "torch_dtype"].into_iter().find_map(|key| {
        let text = config.raw.get("text_config").and_then(|text| text.get(key));
        config.raw.get(key).or(text).and_then(|value| value.as_str())
    });
    let dtype = match (plan.model.dtype, own) {
        (WeightDtype::F32, _) => DType::F32,
        (WeightDtype::Bf16, _) | (WeightDtype::Auto, Some("bfloat16")) => DType::BF16,
        (WeightDtype::F16, _) | (WeightDtype::Auto, Some("float16")) => DType::F16,
        (WeightDtype::Auto, _) => DType::F32,
    };
    Ok(models::random(config, plan.train.seed, dtype)?)
}

/// A record of the assumed size.
fn record(config: &ModelConfig, assumed: Assumed) -> Result<Encoded> {
    let refuse = |what: String, fix: &str| Err(TrainError::mismatch(what, fix));
    let Assumed { tokens, pictures } = assumed;
    if tokens < 2 {
        return refuse(format!("records of {tokens} tokens leave nothing to learn"), "assume at least 2");
    }
    let mut record = Encoded { id: "assumed".to_owned(), num_images: pictures, ..Encoded::default() };
    let (mut each, mut placeholder) = (0, 0);
    if pictures > 0 {
        let (visual, shape) = match config.vision() {
            Some(VisionKind::Llava(llava)) if llava.anyres.is_none() => {
                (each, placeholder) = (llava.tokens_per_image(), llava.image_token_id);
                let (grid, side) = (llava.vision.grid(), llava.vision.image_size);
                (picture([1, grid, grid], each), vec![3, side, side])
            }
            Some(VisionKind::QwenVl(qwen)) => {
                let vision = &qwen.vision;
                let side = SIDE / vision.patch_size / vision.merge_size * vision.merge_size;
                (each, placeholder) = ((side / vision.merge_size).pow(2), qwen.image_token_id);
                (picture([1, side, side], each), vec![vision.patch_values()])
            }
            _ => {
                let what = format!("pictures of a `{}` model cannot be assumed", config.model_type);
                return refuse(what, "assume its tokens alone, or plan with a dataset");
            }
        };
        let rows = if shape.len() == 3 { 1 } else { visual.num_patches() };
        record.pixels = vec![0.0; pictures * rows * shape.iter().product::<usize>()];
        record.pixel_shape = shape;
        record.visuals = vec![visual; pictures];
    }
    if pictures * each >= tokens {
        let what = format!("{pictures} pictures take {} of {tokens} tokens", pictures * each);
        return refuse(what, "assume more tokens, or fewer pictures");
    }
    let seen = pictures * each;
    record.image_rows = (0..seen as u32).collect();
    record.ids = (0..tokens).map(|i| if i < seen { placeholder } else { 0 }).collect();
    record.labels = (0..tokens).map(|i| if i < seen { data::IGNORE } else { 0 }).collect();
    if config.seq2seq().is_some() {
        record.target = Some(vec![0; tokens]);
    }
    Ok(record)
}

fn picture(grid: [usize; 3], num_tokens: usize) -> Visual {
    Visual {
        kind: VisualKind::Image,
        grid,
        num_tokens,
        source_size: [SIDE, SIDE],
        seconds: vec![0.0],
        seconds_per_grid: 0.0,
    }
}
