//! Where weights come from while a model is built (a checkpoint or a random generator), and the register of named
//! parameters that results. Owns the load report; knows no family.

use crate::error::{ModelError, Result};
use crate::names;
use hub::{Checkpoint, TensorView};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tensor::{DType, Param, Tensor};

/// The part of a model a parameter belongs to; plans freeze and set learning rates by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Vision tower.
    Vision,
    /// Multi-modal projector.
    Projector,
    /// Decoder, embeddings and head.
    Llm,
    /// Speech encoder.
    Speech,
    /// Projector of speech.
    SpeechProjector,
}

impl Part {
    /// All parts that models have.
    pub const ALL: [Part; 5] = [Part::Vision, Part::Projector, Part::Speech, Part::SpeechProjector, Part::Llm];

    /// The name used in plans.
    pub fn name(self) -> &'static str {
        match self {
            Part::Vision => "vision",
            Part::Projector => "projector",
            Part::Llm => "llm",
            Part::Speech => "speech",
            Part::SpeechProjector => "speech_projector",
        }
    }
}

/// A parameter and how it stands on disk.
#[derive(Debug, Clone)]
pub struct NamedParam {
    /// Canonical on-disk name (hub spelling), or the PEFT key for adapter matrices.
    pub name: String,
    /// The weight as operators see it.
    pub param: Param,
    /// Part of the model.
    pub part: Part,
    /// Shape on disk; same elements as the operator's shape.
    pub disk_shape: Vec<usize>,
    /// Element type on disk, kept when the model is saved.
    pub disk_dtype: DType,
    /// Whether a forward pass with an image can reach it (`post_layernorm` of a LLaVA tower cannot).
    pub reached: bool,
    /// Whether it belongs to a LayerNorm, of which optimizers of `transformers` decay nothing whatever its name.
    pub is_layer_norm: bool,
}

/// How a parameter starts when there is no checkpoint.
#[derive(Debug, Clone, Copy)]
pub enum Init {
    /// Normal with mean 0 and the given deviation.
    Normal(f32),
    /// One constant.
    Constant(f32),
}

/// What was found in a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// Tensors loaded.
    pub num_loaded: usize,
    /// Elements loaded.
    pub num_elements: u64,
    /// Tensors of the checkpoint that the model recomputes (rotary tables, position ids).
    pub recomputed: Vec<String>,
    /// Modules (canonical paths) that no forward pass reaches and that the checkpoint leaves out.
    pub absent_unreached: Vec<String>,
    /// Tied tensors that stood in the checkpoint beside the embedding table, with the same values.
    pub tied_duplicates: Vec<String>,
    /// Tensors that the configuration ties and that stood in the checkpoint with values of their own: they are kept apart.
    pub untied_heads: Vec<String>,
}

/// A tensor in a checkpoint.
#[derive(Clone)]
pub struct Stored<'a> {
    /// The checkpoint.
    pub checkpoint: &'a Checkpoint,
    /// Name on disk.
    pub name: String,
}

impl<'a> Stored<'a> {
    fn view(&self) -> Option<TensorView<'a>> {
        self.checkpoint.get(&self.name)
    }
}

/// A source of weights.
pub enum Source<'a> {
    /// Tensors of opened checkpoints.
    Checkpoint {
        /// The folder that was named.
        dir: PathBuf,
        /// Canonical name -> where it stands.
        on_disk: BTreeMap<String, Stored<'a>>,
    },
    /// Random weights from a seed.
    Random(Box<ChaCha8Rng>),
}

/// Builds parameters by name and remembers each.
pub struct Builder<'a> {
    source: Source<'a>,
    dtype: Option<DType>,
    compute: DType,
    /// Canonical names that were taken.
    used: BTreeSet<String>,
    missing: Vec<String>,
    report: LoadReport,
    reached: bool,
    /// Every parameter built so far, in building order.
    pub params: Vec<NamedParam>,
}

impl<'a> Builder<'a> {
    /// Builds from the tensors of the model in `dir`; `dtype` converts the storage, none keeps the checkpoint's.
    pub fn from_tensors(dir: &Path, on_disk: BTreeMap<String, Stored<'a>>, dtype: Option<DType>) -> Builder<'a> {
        let storage = dtype.unwrap_or_else(|| dominant_dtype(&on_disk));
        Builder::new(Source::Checkpoint { dir: dir.to_path_buf(), on_disk }, dtype, storage)
    }

    /// Builds random weights, stored in `dtype`.
    pub fn random(seed: u64, dtype: DType) -> Builder<'static> {
        Builder::new(Source::Random(Box::new(ChaCha8Rng::seed_from_u64(seed))), Some(dtype), dtype)
    }

    fn new(source: Source<'_>, dtype: Option<DType>, storage: DType) -> Builder<'_> {
        let compute = match storage {
            DType::BF16 | DType::F16 if tensor::has_bf16() => DType::BF16,
            _ => DType::F32,
        };
        Builder {
            source,
            dtype,
            compute,
            used: BTreeSet::new(),
            missing: Vec::new(),
            report: LoadReport::default(),
            reached: true,
            params: Vec::new(),
        }
    }

    /// The dtype of the model's activations.
    pub fn compute(&self) -> DType {
        self.compute
    }

    /// A weight with the same shape on disk as in the operator.
    pub fn weight(&mut self, name: &str, shape: &[usize], init: Init, part: Part) -> Result<Param> {
        self.weight_as(name, shape, shape, init, part)
    }

    /// A weight whose operator shape differs from its disk shape.
    pub fn weight_as(&mut self, name: &str, disk: &[usize], shape: &[usize], init: Init, part: Part) -> Result<Param> {
        debug_assert_eq!(disk.iter().product::<usize>(), shape.iter().product::<usize>());
        let (tensor, disk_dtype) = match &mut self.source {
            Source::Random(rng) => {
                let dtype = self.dtype.unwrap_or(DType::F32);
                (random_tensor(rng, shape, init)?.cast(dtype)?, dtype)
            }
            Source::Checkpoint { on_disk, .. } => {
                let stored = on_disk.get(name);
                let Some((checkpoint, view)) = stored.and_then(|stored| Some((stored.checkpoint, stored.view()?)))
                else {
                    self.missing.push(name.to_owned());
                    // A placeholder keeps the walk going, so that every missing tensor is reported at once.
                    return Ok(Param::new(name, Tensor::zeros(&[0], DType::F32)?));
                };
                self.used.insert(name.to_owned());
                if view.shape != disk {
                    return Err(ModelError::Weights {
                        path: checkpoint.dir().to_path_buf(),
                        message: format!(
                            "tensor `{}` has shape {:?}, the configuration expects {disk:?}",
                            view.name, view.shape
                        ),
                    });
                }
                let stored = engine_dtype(checkpoint.dir(), &view)?;
                let disk_dtype = self.dtype.unwrap_or(stored);
                (Tensor::from_bytes_as(view.data, stored, disk_dtype, shape)?, disk_dtype)
            }
        };
        self.report.num_loaded += 1;
        self.report.num_elements += tensor.num_elements() as u64;
        let param = Param::new(name, tensor);
        self.params.push(NamedParam {
            name: name.into(),
            param: param.clone(),
            part,
            disk_shape: disk.to_vec(),
            disk_dtype,
            reached: self.reached,
            is_layer_norm: false,
        });
        Ok(param)
    }

    /// Weight and bias of a LayerNorm.
    pub fn layer_norm(&mut self, path: &str, width: usize, part: Part) -> Result<[Param; 2]> {
        let first = self.params.len();
        let weight = self.weight(&format!("{path}.weight"), &[width], Init::Constant(1.0), part)?;
        let bias = self.weight(&format!("{path}.bias"), &[width], Init::Constant(0.0), part)?;
        self.params[first..].iter_mut().for_each(|named| named.is_layer_norm = true);
        Ok([weight, bias])
    }

    /// Builds a module that no forward pass reaches: kept for saving and for adapters that cover it, lawfully absent
    /// from a checkpoint that does not hold its tensor `sign`, which stands for all of it.
    pub fn unreached<T>(
        &mut self,
        module: &str,
        sign: &str,
        build: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<Option<T>> {
        if let Source::Checkpoint { on_disk, .. } = &self.source
            && !on_disk.contains_key(&format!("{module}.{sign}"))
        {
            self.report.absent_unreached.push(module.to_owned());
            return Ok(None);
        }
        self.reached = false;
        let built = build(self);
        self.reached = true;
        built.map(Some)
    }

    /// Whether what is built now can be reached by a forward pass.
    pub fn reached(&self) -> bool {
        self.reached
    }

    /// Whether a tensor can be built: it stands in the checkpoint, or weights are random.
    pub fn holds(&self, name: &str) -> bool {
        match &self.source {
            Source::Checkpoint { on_disk, .. } => on_disk.contains_key(name),
            Source::Random(_) => true,
        }
    }

    /// Of two tied tensors a checkpoint may hold only `target`: it then stands for `source`.
    pub fn swap_tied(&mut self, source: &str, target: &str) {
        if let Source::Checkpoint { on_disk, .. } = &mut self.source
            && !on_disk.contains_key(source)
            && let Some(disk) = on_disk.remove(target)
        {
            on_disk.insert(source.to_owned(), disk);
        }
    }

    /// Whether the tensor `target` may share `source`, as the configuration says. One that stands in the checkpoint
    /// with other values may not: the reference then believes the file.
    pub fn ties(&mut self, target: &str, source: &Param) -> Result<bool> {
        let Source::Checkpoint { on_disk, .. } = &self.source else { return Ok(true) };
        let Some(view) = on_disk.get(target).and_then(Stored::view) else { return Ok(true) };
        // As they stand in the file: both are converted in the same way.
        let other = on_disk.get(source.name()).and_then(Stored::view);
        let same =
            other.is_some_and(|other| (view.shape, view.dtype, view.data) == (other.shape, other.dtype, other.data));
        let name = view.name.to_owned();
        if same {
            self.used.insert(target.to_owned());
            self.report.tied_duplicates.push(name);
        } else {
            self.report.untied_heads.push(name);
        }
        Ok(same)
    }

    /// Ends the building: a missing tensor, or one the model has no place for, is an error that names all of them.
    pub fn finish(mut self) -> Result<(Vec<NamedParam>, LoadReport)> {
        if let Source::Checkpoint { dir, on_disk } = &self.source {
            let mut unused = Vec::new();
            for (_, stored) in on_disk.iter().filter(|(canonical, _)| !self.used.contains(*canonical)) {
                if names::is_recomputed(&stored.name) {
                    self.report.recomputed.push(stored.name.clone());
                } else {
                    unused.push(stored.name.clone());
                }
            }
            // In the order of the files, whatever the names are here.
            self.report.recomputed.sort();
            unused.sort();
            let mut problems = Vec::new();
            for (list, what) in
                [(&self.missing, "missing from the checkpoint"), (&unused, "in the checkpoint but not in the model")]
            {
                if !list.is_empty() {
                    let shown: Vec<&str> = list.iter().take(8).map(String::as_str).collect();
                    let more = if list.len() > 8 { format!(" and {} more", list.len() - 8) } else { String::new() };
                    problems.push(format!("{} tensor(s) {what}: `{}`{more}", list.len(), shown.join("`, `")));
                }
            }
            if !problems.is_empty() {
                return Err(ModelError::Weights { path: dir.clone(), message: problems.join("; ") });
            }
        }
        Ok((self.params, self.report))
    }
}

/// The element type of most of a checkpoint's bytes.
fn dominant_dtype(on_disk: &BTreeMap<String, Stored<'_>>) -> DType {
    let mut bytes = [(DType::F32, 0), (DType::BF16, 0), (DType::F16, 0)];
    for view in on_disk.values().filter_map(Stored::view) {
        let of = |dtype: DType| crate::save::hub_dtype(dtype) == view.dtype;
        if let Some((_, sum)) = bytes.iter_mut().find(|(dtype, _)| of(*dtype)) {
            *sum += view.data.len();
        }
    }
    bytes.into_iter().max_by_key(|&(_, sum)| sum).map_or(DType::F32, |(dtype, _)| dtype)
}

/// Copies a checkpoint tensor into the engine with the operator's shape.
pub fn to_tensor(file: &Path, view: &TensorView<'_>, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_bytes(view.data, engine_dtype(file, view)?, shape)?)
}

/// The element type of a checkpoint's tensor.
fn engine_dtype(file: &Path, view: &TensorView<'_>) -> Result<DType> {
    match view.dtype {
        hub::Dtype::F32 => Ok(DType::F32),
        hub::Dtype::F16 => Ok(DType::F16),
        hub::Dtype::BF16 => Ok(DType::BF16),
        other => Err(ModelError::Weights {
            path: file.to_path_buf(),
            message: format!("tensor `{}` has element type {other:?}, expected F32, F16 or BF16", view.name),
        }),
    }
}

/// Random values of the given shape; the sequence depends on the generator's state alone.
pub fn random_tensor(rng: &mut ChaCha8Rng, shape: &[usize], init: Init) -> Result<Tensor> {
    use rand::Rng;
    if tensor::memory::is_planning() {
        return Ok(Tensor::zeros(shape, DType::F32)?);
    }
    let n: usize = shape.iter().product();
    let mut values = vec![0f32; n];
    match init {
        Init::Constant(c) => values.fill(c),
        Init::Normal(std) => {
            // Box-Muller: two uniforms give two independent normals.
            for pair in values.chunks_mut(2) {
                let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt() * std;
                let (sin, cos) = (std::f32::consts::TAU * rng.random::<f32>()).sin_cos();
                pair[0] = radius * cos;
                if let Some(second) = pair.get_mut(1) {
                    *second = radius * sin;
                }
            }
        }
    }
    Ok(Tensor::from_f32(&values, shape)?)
}
