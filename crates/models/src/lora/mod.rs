//! Adapters: building LoRA matrices on the projections that a plan names, reading and writing PEFT folders, merging.
//! The arithmetic itself is a variant of the engine's linear operator.

pub mod config;
mod portable;

use crate::error::{ModelError, Result};
use crate::linear::Linear;
use crate::model::Model;
use crate::names;
use crate::weights::{NamedParam, Part, to_tensor};
pub use config::{LoraConfig, TargetModules, match_targets};
use hub::{OutTensor, PickleFile, SafeTensors, TensorView};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tensor::{DType, LinearWeights, LoraWeights, Param, Tape, Tensor};

/// File of the adapter's configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// File of the adapter's weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The file of older versions, read where there is no other.
const PICKLE_FILE: &str = "adapter_model.bin";
const KEY_PREFIX: &str = "base_model.model.";

/// The adapter that a model carries.
pub struct ActiveAdapter {
    /// How it was configured, every module named by the path that PEFT knows it by.
    pub config: LoraConfig,
    /// A and B of every adapted module, under their PEFT keys.
    pub params: Vec<NamedParam>,
    /// Canonical names of the base tensors that are trained and saved whole, unreached ones of their modules included.
    pub saved: Vec<String>,
}

impl Model {
    /// Whether an adapter is active.
    pub fn adapter(&self) -> Option<&ActiveAdapter> {
        self.adapter.as_ref()
    }

    /// Adds a fresh adapter: A uniform in ±1/sqrt(in) as PEFT's default, B zero. Returns the adapted modules' paths.
    /// The matrices and the modules to save become trainable; the rest keeps its state.
    pub fn add_lora(&mut self, config: &LoraConfig, seed: u64) -> Result<Vec<String>> {
        self.refuse_second_adapter()?;
        config.check("method.lora")?;
        let saved = self.modules_to_save(&config.modules_to_save)?;
        let is_saved = |path: &str| saved.iter().any(|name| name.starts_with(&format!("{path}.")));
        let modules: Vec<(String, Part)> = self.linears_mut().iter().map(|l| (l.path.clone(), l.part)).collect();
        let matched: Vec<String> =
            match_targets(&config.target_modules, &modules)?.into_iter().filter(|path| !is_saved(path)).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut params, mut adapted) = (Vec::new(), Vec::new());
        for linear in self.linears_mut() {
            if !matched.contains(&linear.path) {
                continue;
            }
            let memory = names::in_memory(&linear.path);
            let paths = [linear.path.as_str(), &memory];
            let (rank, alpha) = (config.rank_of(&paths)?, config.alpha_of(&paths)?);
            let shape = linear.weights.weight.shape();
            let bound = 1.0 / (shape[1] as f32).sqrt();
            let a: Vec<f32> = (0..rank * shape[1]).map(|_| rng.random_range(-bound..bound)).collect();
            let a = Tensor::from_f32(&a, &[rank, shape[1]])?;
            let b = Tensor::zeros(&[shape[0], rank], DType::F32)?;
            adapted.push((linear.path.clone(), rank, alpha));
            attach(linear, config, a, b, alpha, &mut params)?;
        }
        let mut resolved = portable::resolved(config, &adapted, self.outermost_modules(&saved))?;
        if let TargetModules::Regex(pattern) = &config.target_modules {
            let paths: Vec<String> = modules.iter().map(|(path, _)| path.clone()).collect();
            if portable::is_portable(pattern, &paths, &matched)? {
                resolved.target_modules = config.target_modules.clone();
            }
        }
        self.activate(ActiveAdapter { config: resolved, params, saved })?;
        Ok(matched)
    }

    /// Loads a PEFT adapter folder. Its tensors say which modules are adapted and which are replaced whole; every one
    /// of them must find its place. Patterns are matched with the paths as the file spells them, as PEFT does.
    pub fn load_adapter(&mut self, dir: &Path) -> Result<LoraConfig> {
        self.refuse_second_adapter()?;
        let config_path = dir.join(CONFIG_FILE);
        let raw: Value = hub::json::read_json(&config_path)?;
        let config = LoraConfig::from_json(&config_path.display().to_string(), &raw)?;
        let is_old = !dir.join(WEIGHTS_FILE).exists() && dir.join(PICKLE_FILE).exists();
        let weights_path = dir.join(if is_old { PICKLE_FILE } else { WEIGHTS_FILE });
        let fail = |message: String| ModelError::Weights { path: weights_path.clone(), message };
        let file = AdapterFile::read(&weights_path, self.config.has_plain_names())?;
        let AdapterFile { mut matrices, mut whole } = file;
        let (mut params, mut adapted) = (Vec::new(), Vec::new());
        for linear in self.linears_mut() {
            let Some(found) = matrices.remove(&linear.path) else { continue };
            let [Some(a), Some(b)] = found.matrices else {
                return Err(fail(format!("module `{}` has only one of lora_A and lora_B", found.path)));
            };
            let shape = linear.weights.weight.shape();
            let (rank, alpha) = (config.rank_of(&[&found.path])?, config.alpha_of(&[&found.path])?);
            if a.shape() != [rank, shape[1]] || b.shape() != [shape[0], rank] {
                return Err(fail(format!(
                    "module `{}` has lora_A {:?} and lora_B {:?}, expected [{rank}, {}] and [{}, {rank}]",
                    found.path,
                    a.shape(),
                    b.shape(),
                    shape[1],
                    shape[0]
                )));
            }
            adapted.push((linear.path.clone(), rank, alpha));
            attach(linear, &config, a, b, alpha, &mut params)?;
        }
        matrices.retain(|module, _| !self.is_absent(module));
        if let Some(module) = matrices.keys().next() {
            return Err(fail(format!("{} adapted module(s) are not in the model: `{module}` …", matrices.len())));
        }
        if params.is_empty() {
            return Err(fail("holds no LoRA matrices".into()));
        }
        let saved = self.take_saved(&config, &mut whole).map_err(fail)?;
        for (name, found) in &whole {
            self.check_copy(&config, name, found).map_err(fail)?;
        }
        let config = portable::resolved(&config, &adapted, self.outermost_modules(&saved))?;
        self.activate(ActiveAdapter { config: config.clone(), params, saved })?;
        Ok(config)
    }

    /// Puts the tensors of modules saved whole into the model and takes them out of `whole`. Names of `modules_to_save`
    /// mean every module whose path ends so, as in PEFT, and all of its tensors.
    fn take_saved(
        &mut self,
        config: &LoraConfig,
        whole: &mut BTreeMap<String, WholeTensor>,
    ) -> std::result::Result<Vec<String>, String> {
        let mut saved = Vec::new();
        for p in &self.params {
            let found = whole.get(&p.name).filter(|found| !found.is_base);
            let memory = names::in_memory(&p.name);
            let is_named = |path: &str| {
                let mut modules = path.match_indices('.').map(|(end, _)| &path[..end]);
                modules.any(|module| config.modules_to_save.iter().any(|name| module.ends_with(name)))
            };
            if !is_named(&memory) && !found.is_some_and(|found| is_named(&found.key)) {
                continue;
            }
            match found {
                None if p.reached => {
                    return Err(format!("`modules_to_save` names `{memory}`, which the file does not hold"));
                }
                // The base's own value stands for a tensor that no forward pass reaches.
                None => {}
                Some(found) if found.tensor.shape() != p.disk_shape => {
                    return Err(format!(
                        "tensor `{}` has shape {:?}, expected {:?}",
                        found.key,
                        found.tensor.shape(),
                        p.disk_shape
                    ));
                }
                Some(found) => {
                    let value = found.tensor.reshape(&p.param.shape()).map_err(|e| e.to_string())?;
                    p.param.set_value(value).map_err(|e| e.to_string())?;
                    whole.remove(&p.name);
                }
            }
            saved.push(p.name.clone());
        }
        self.refuse_tied(&saved).map_err(|e| e.to_string())?;
        Ok(saved)
    }

    /// A tensor of the file that is neither a matrix nor of a module saved whole: PEFT writes copies of embeddings and
    /// of adapted heads, which must be those of this base model.
    fn check_copy(&self, config: &LoraConfig, name: &str, found: &WholeTensor) -> std::result::Result<(), String> {
        // A plan knows no values.
        if self.is_absent(name) || tensor::memory::is_planning() {
            return Ok(());
        }
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let table = self.tied().filter(|(_, sharing)| sharing.iter().any(|path| path == module));
        let memory = names::in_memory(module);
        if table.is_some() && config.modules_to_save.iter().any(|saved| memory.ends_with(saved)) {
            return Err(tied_error(&memory).to_string());
        }
        let name = table.as_ref().map_or(name, |(table, _)| table.name());
        let Some(p) = self.params.iter().find(|p| p.name == name) else {
            return Err(format!("tensor `{}` has no place in the model", found.key));
        };
        let base = p.param.value();
        let same = found.tensor.shape() == p.disk_shape
            && found.tensor.cast(base.dtype()).map_err(|e| e.to_string())?.to_bytes() == base.to_bytes();
        if same {
            return Ok(());
        }
        Err(format!(
            "tensor `{}` is not named by `modules_to_save` and differs from the base model's; give the base model that the adapter was made for, or name the module in `modules_to_save` of `{CONFIG_FILE}`",
            found.key
        ))
    }

    /// Whether a module or tensor belongs to what the checkpoint lawfully lacks.
    fn is_absent(&self, name: &str) -> bool {
        self.absent.iter().any(|module| name == module || name.starts_with(&format!("{module}.")))
    }

    fn outermost_modules(&self, saved: &[String]) -> Vec<String> {
        portable::outermost_modules(saved, &self.tensor_names(), &self.absent)
    }

    fn tensor_names(&self) -> Vec<String> {
        self.params.iter().map(|p| p.name.clone()).collect()
    }

    /// Writes the adapter as PEFT does: configuration, matrices and the modules saved whole, f32.
    pub fn save_adapter(&self, dir: &Path, base_model: &str) -> Result<()> {
        let Some(adapter) = &self.adapter else {
            return Err(ModelError::Adapter("the model has no adapter to save".into()));
        };
        let mut out = Vec::new();
        for p in &adapter.params {
            out.push(f32_tensor(&p.name, p, &p.param.shape()));
        }
        for name in &adapter.saved {
            let p = self.base_param(name)?;
            out.push(f32_tensor(&format!("{KEY_PREFIX}{}", names::in_memory(name)), p, &p.disk_shape));
        }
        std::fs::create_dir_all(dir).map_err(|e| ModelError::Adapter(format!("`{}`: {e}", dir.display())))?;
        hub::write_safetensors(dir.join(WEIGHTS_FILE), &out, &[("format", "pt")])?;
        let task = if self.config.seq2seq().is_some() { "SEQ_2_SEQ_LM" } else { "CAUSAL_LM" };
        let config = adapter.config.to_json(base_model, task);
        hub::atomic_write(dir.join(CONFIG_FILE), format!("{config:#}\n").as_bytes())?;
        Ok(())
    }

    /// Folds the adapter into the base weights (`W += scale B A`, in f32, stored in the weight's own type) and drops it.
    pub fn merge_lora(&mut self) -> Result<()> {
        if self.adapter.is_none() {
            return Err(ModelError::Adapter("the model has no adapter to merge".into()));
        }
        for linear in self.linears_mut() {
            let Some(lora) = linear.weights.lora.take() else { continue };
            let weight = &linear.weights.weight;
            let (a, rank) = (lora.a.value(), lora.a.shape()[0]);
            let input = a.shape()[1];
            let values = a.f32s()?;
            let transposed: Vec<f32> = (0..input).flat_map(|i| (0..rank).map(move |r| values[r * input + i])).collect();
            let t = Tape::inference();
            let thin = LinearWeights {
                weight: Param::new("lora_A^T", Tensor::from_f32(&transposed, &[input, rank])?),
                bias: None,
                lora: None,
            };
            let delta = t.linear(&t.constant(lora.b.value()), &thin)?;
            let delta = t.scale(&delta, lora.scale)?;
            let merged = t.add(&t.constant(weight.value().cast(DType::F32)?), &delta)?;
            weight.set_value(merged.value().cast(weight.dtype())?)?;
        }
        self.adapter = None;
        Ok(())
    }

    /// The outermost modules (paths in memory) that hold the tensors of a part and no others; none where the model lacks it.
    pub fn modules_of(&self, part: Part) -> Vec<String> {
        let names: Vec<String> = self.params.iter().filter(|p| p.part == part).map(|p| p.name.clone()).collect();
        self.outermost_modules(&names)
    }

    /// Canonical names of the tensors in modules named by their path, the end of it, or a plan's part. Those that no
    /// forward pass reaches belong to them: PEFT wants every tensor of a module.
    pub fn modules_to_save(&self, modules: &[String]) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for module in modules {
            let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
            let is_tied = self.tied().is_some_and(|(table, sharing)| {
                let table = table.name().trim_end_matches(".weight").to_owned();
                sharing.iter().chain([&table]).any(|path| last(path) == last(module))
            });
            if is_tied {
                return Err(tied_error(module));
            }
            let mut found = false;
            for p in self.params.iter().filter(|p| contains_module(&p.name, module)) {
                found = true;
                if !names.contains(&p.name) {
                    names.push(p.name.clone());
                }
            }
            if !found {
                return Err(ModelError::Adapter(format!("modules_to_save: `{module}` names no module of the model")));
            }
        }
        self.refuse_tied(&names)?;
        Ok(names)
    }

    fn refuse_tied(&self, saved: &[String]) -> Result<()> {
        match self.tied().filter(|(table, _)| saved.iter().any(|name| name == table.name())) {
            Some((table, _)) => Err(tied_error(table.name())),
            None => Ok(()),
        }
    }

    fn refuse_second_adapter(&self) -> Result<()> {
        match self.adapter {
            Some(_) => Err(ModelError::Adapter("the model already has an adapter; merge it first".into())),
            None => Ok(()),
        }
    }

    fn activate(&mut self, adapter: ActiveAdapter) -> Result<()> {
        for p in &adapter.params {
            p.param.set_trainable(true);
        }
        for name in &adapter.saved {
            let p = self.base_param(name)?;
            // What never learns keeps its storage.
            if p.reached {
                p.param.set_value(p.param.value().cast(DType::F32)?)?;
            }
            p.param.set_trainable(true);
        }
        self.adapter = Some(adapter);
        Ok(())
    }

    fn base_param(&self, name: &str) -> Result<&NamedParam> {
        self.params
            .iter()
            .find(|p| p.name == name)
            .ok_or_else(|| ModelError::Adapter(format!("the model has no tensor `{name}`")))
    }
}

/// A module's matrices, A then B, as a file holds them.
#[derive(Default)]
struct FoundMatrices {
    /// The module's path as the file spells it.
    path: String,
    matrices: [Option<Tensor>; 2],
}

/// A tensor of a file that is not a matrix.
struct WholeTensor {
    /// Its name as the file spells it, without PEFT's prefix.
    key: String,
    tensor: Tensor,
    /// Whether it says to be the weight below an adapter.
    is_base: bool,
}

/// The tensors of an adapter's file by the canonical names of modules and tensors.
struct AdapterFile {
    matrices: BTreeMap<String, FoundMatrices>,
    whole: BTreeMap<String, WholeTensor>,
}

impl AdapterFile {
    fn read(path: &Path, text_only: bool) -> Result<AdapterFile> {
        let mut read = AdapterFile { matrices: BTreeMap::new(), whole: BTreeMap::new() };
        if path.ends_with(PICKLE_FILE) {
            let file = PickleFile::open(path)?;
            let views = file.names().into_iter().filter_map(|name| file.get(name));
            read.add(path, views, text_only)?;
        } else {
            read.add(path, SafeTensors::open(path)?.iter(), text_only)?;
        }
        Ok(read)
    }

    fn add<'a>(&mut self, path: &Path, views: impl Iterator<Item = TensorView<'a>>, text_only: bool) -> Result<()> {
        for view in views {
            let tensor = to_tensor(path, &view, view.shape)?.cast(DType::F32)?;
            let key = view
                .name
                .strip_prefix(KEY_PREFIX)
                .unwrap_or(view.name)
                .replace(".default.", ".")
                .replace(".modules_to_save.", ".");
            let canonical = |name: &str| names::canonical_tensor(name, text_only);
            let matrix = [".lora_A.weight", ".lora_B.weight"]
                .iter()
                .enumerate()
                .find_map(|(index, end)| Some((index, key.strip_suffix(end)?)));
            if let Some((index, module)) = matrix {
                let found = self.matrices.entry(canonical(module)).or_default();
                found.path = module.to_owned();
                found.matrices[index] = Some(tensor);
            } else {
                let is_base = key.contains(".base_layer.");
                let name = canonical(&key.replace(".base_layer.", "."));
                self.whole.insert(name, WholeTensor { key, tensor, is_base });
            }
        }
        Ok(())
    }
}

fn tied_error(module: &str) -> ModelError {
    ModelError::Adapter(format!(
        "modules_to_save: `{module}` is tied to its counterpart; saving one alone would untie them, which is not supported"
    ))
}

/// Puts A and B on a projection and registers them under PEFT's keys.
fn attach(
    linear: &mut Linear,
    config: &LoraConfig,
    a: Tensor,
    b: Tensor,
    alpha: f64,
    params: &mut Vec<NamedParam>,
) -> Result<()> {
    if linear.weights.weight.name() != format!("{}.weight", linear.path) {
        let name = names::in_memory(&linear.path);
        return Err(ModelError::Adapter(format!(
            "`{name}` is tied to the embedding table and cannot carry an adapter"
        )));
    }
    let rank = a.shape()[0];
    let mut register = |letter: &str, value: Tensor| {
        let name = format!("{KEY_PREFIX}{}.lora_{letter}.weight", names::in_memory(&linear.path));
        let disk_shape = value.shape().to_vec();
        let param = Param::new(&name, value);
        params.push(NamedParam {
            name,
            param: param.clone(),
            part: linear.part,
            disk_shape,
            disk_dtype: DType::F32,
            reached: linear.reached,
            is_layer_norm: false,
        });
        param
    };
    let (a, b) = (register("A", a), register("B", b));
    let scale = config.scale(alpha, rank);
    linear.weights.lora = Some(LoraWeights { a, b, scale, dropout: config.lora_dropout });
    Ok(())
}

/// Whether a tensor (canonical name) stands in a module named by its path, the end of its path, or a plan's part name.
fn contains_module(tensor: &str, module: &str) -> bool {
    let hit = |name: &str| {
        name.match_indices('.').any(|(end, _)| {
            let path = &name[..end];
            path == module || path.strip_suffix(module).is_some_and(|head| head.ends_with('.'))
        })
    };
    hit(tensor) || hit(&names::in_memory(tensor))
}

fn f32_tensor<'a>(name: &str, p: &NamedParam, shape: &[usize]) -> OutTensor<'a> {
    let param = p.param.clone();
    OutTensor::lazy(name, hub::Dtype::F32, shape, move || {
        let value = param.value().cast(DType::F32).map_err(std::io::Error::other)?;
        Ok(value.to_bytes().into())
    })
}
