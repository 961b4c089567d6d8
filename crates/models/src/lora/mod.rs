//! Adapters: building LoRA matrices on the projections that a plan names, reading and writing PEFT folders, merging.
//! The arithmetic itself is a variant of the engine's linear operator.

pub mod config;

use crate::error::{ModelError, Result};
use crate::linear::Linear;
use crate::model::Model;
use crate::names;
use crate::weights::{NamedParam, Part, to_tensor};
pub use config::{LoraConfig, TargetModules, match_targets};
use hub::{OutTensor, SafeTensors};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tensor::{DType, LinearWeights, LoraWeights, Param, Tape, Tensor};

/// File of the adapter's configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// File of the adapter's weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const KEY_PREFIX: &str = "base_model.model.";

/// The adapter that a model carries.
pub struct ActiveAdapter {
    /// How it was configured.
    pub config: LoraConfig,
    /// `target_modules` as it is written for PEFT.
    targets: Value,
    /// A and B of every adapted module, under their PEFT keys.
    pub params: Vec<NamedParam>,
    /// Canonical names of the base tensors that are trained and saved whole.
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
        let mut params = Vec::new();
        for linear in self.linears_mut() {
            if !matched.contains(&linear.path) {
                continue;
            }
            let rank = config.rank_of(&linear.path)?;
            let shape = linear.weights.weight.shape();
            let bound = 1.0 / (shape[1] as f32).sqrt();
            let a: Vec<f32> = (0..rank * shape[1]).map(|_| rng.random_range(-bound..bound)).collect();
            let a = Tensor::from_f32(&a, &[rank, shape[1]])?;
            let b = Tensor::zeros(&[shape[0], rank], DType::F32)?;
            attach(linear, config, a, b, &mut params)?;
        }
        let targets = portable_targets(&config.target_modules, &matched);
        self.activate(ActiveAdapter { config: config.clone(), targets, params, saved })?;
        Ok(matched)
    }

    /// Loads a PEFT adapter folder. Its tensors say which modules are adapted; every one of them must find its place.
    pub fn load_adapter(&mut self, dir: &Path) -> Result<LoraConfig> {
        self.refuse_second_adapter()?;
        let config_path = dir.join(CONFIG_FILE);
        let raw: Value = hub::json::read_json(&config_path)?;
        let config = LoraConfig::from_json(&config_path.display().to_string(), &raw)?;
        let weights_path = dir.join(WEIGHTS_FILE);
        let file = SafeTensors::open(&weights_path)?;
        let text_only = self.config.llava.is_none();
        let fail = |message: String| ModelError::Weights { path: weights_path.clone(), message };
        let mut matrices: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
        let mut whole: BTreeMap<String, (String, Tensor)> = BTreeMap::new();
        for view in file.iter() {
            let tensor = to_tensor(&weights_path, &view, view.shape)?.cast(DType::F32)?;
            let key = view
                .name
                .strip_prefix(KEY_PREFIX)
                .unwrap_or(view.name)
                .replace(".default.", ".")
                .replace(".modules_to_save.", ".");
            let canonical = |name: &str| names::canonical_tensor(name, text_only);
            if let Some(module) = key.strip_suffix(".lora_A.weight") {
                matrices.entry(canonical(module)).or_default()[0] = Some(tensor);
            } else if let Some(module) = key.strip_suffix(".lora_B.weight") {
                matrices.entry(canonical(module)).or_default()[1] = Some(tensor);
            } else {
                whole.insert(canonical(&key), (view.name.to_owned(), tensor));
            }
        }
        let mut params = Vec::new();
        for linear in self.linears_mut() {
            let Some(pair) = matrices.remove(&linear.path) else { continue };
            let [Some(a), Some(b)] = pair else {
                return Err(fail(format!("module `{}` has only one of lora_A and lora_B", linear.path)));
            };
            let (shape, rank) = (linear.weights.weight.shape(), config.rank_of(&linear.path)?);
            if a.shape() != [rank, shape[1]] || b.shape() != [shape[0], rank] {
                return Err(fail(format!(
                    "module `{}` has lora_A {:?} and lora_B {:?}, expected [{rank}, {}] and [{}, {rank}]",
                    linear.path,
                    a.shape(),
                    b.shape(),
                    shape[1],
                    shape[0]
                )));
            }
            attach(linear, &config, a, b, &mut params)?;
        }
        if let Some(module) = matrices.keys().next() {
            return Err(fail(format!("{} adapted module(s) are not in the model: `{module}` …", matrices.len())));
        }
        if params.is_empty() {
            return Err(fail("holds no LoRA matrices".into()));
        }
        let saved = self.modules_to_save(&config.modules_to_save)?;
        for name in &saved {
            let Some((_, tensor)) = whole.remove(name) else {
                return Err(fail(format!("`modules_to_save` names `{name}`, which the file does not hold")));
            };
            let param = self.base_param(name)?;
            let disk = param.disk_shape.clone();
            if tensor.shape() != disk {
                return Err(fail(format!("tensor `{name}` has shape {:?}, expected {disk:?}", tensor.shape())));
            }
            let shape = param.param.shape();
            param.param.set_value(tensor.reshape(&shape)?)?;
        }
        if let Some((name, _)) = whole.values().next() {
            return Err(fail(format!("{} tensor(s) have no place in the model: `{name}` …", whole.len())));
        }
        let targets = raw.get("target_modules").cloned().unwrap_or(Value::Null);
        self.activate(ActiveAdapter { config: config.clone(), targets, params, saved })?;
        Ok(config)
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
        let config = adapter.config.to_json(base_model, &adapter.targets);
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

    /// Makes whole modules trainable without an adapter (`method.kind: projector`, `also_train`); returns the canonical
    /// names of their tensors.
    pub fn modules_to_save(&self, modules: &[String]) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for module in modules {
            let before = names.len();
            for p in self.params.iter().filter(|p| p.reached && contains_module(&p.name, module)) {
                if !names.contains(&p.name) {
                    names.push(p.name.clone());
                }
            }
            let tied = self.config.text.tie_word_embeddings
                && (module.ends_with("lm_head") || module.ends_with("embed_tokens"));
            if tied {
                return Err(ModelError::Adapter(format!(
                    "modules_to_save: `{module}` is tied to its counterpart; saving one alone would untie them, which is not supported"
                )));
            }
            if names.len() == before && !names.iter().any(|n| contains_module(n, module)) {
                return Err(ModelError::Adapter(format!("modules_to_save: `{module}` names no module of the model")));
            }
        }
        Ok(names)
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
            let param = &self.base_param(name)?.param;
            param.set_value(param.value().cast(DType::F32)?)?;
            param.set_trainable(true);
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

/// Puts A and B on a projection and registers them under PEFT's keys.
fn attach(linear: &mut Linear, config: &LoraConfig, a: Tensor, b: Tensor, params: &mut Vec<NamedParam>) -> Result<()> {
    if linear.path.ends_with("lm_head") && linear.weights.weight.name().ends_with("embed_tokens.weight") {
        return Err(ModelError::Adapter("`lm_head` is tied to the embedding table and cannot carry an adapter".into()));
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
        });
        param
    };
    let (a, b) = (register("A", a), register("B", b));
    let scale = config.scale_of(&linear.path, rank)?;
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

/// `target_modules` such that PEFT adapts exactly the modules matched here: bare names would reach into the tower.
fn portable_targets(targets: &TargetModules, matched: &[String]) -> Value {
    match targets {
        TargetModules::Regex(pattern) => json!(pattern),
        _ => {
            let mut list: Vec<String> = matched.iter().map(|p| names::in_memory(p)).collect();
            list.sort();
            json!(list)
        }
    }
}

fn f32_tensor<'a>(name: &str, p: &NamedParam, shape: &[usize]) -> OutTensor<'a> {
    let param = p.param.clone();
    OutTensor::lazy(name, hub::Dtype::F32, shape, move || {
        let value = param.value().cast(DType::F32).map_err(std::io::Error::other)?;
        Ok(value.to_bytes().into())
    })
}
