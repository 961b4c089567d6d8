//! Joining parts that were never one checkpoint: a decoder, a tower for images, a tower for clips. Writes a folder that names
//! them, with what belongs to none of them: projectors, and tables that grew by the tokens that stand around media. Also
//! reads and writes projectors alone. Owns no tokenizer and no training.
//!
//! Source: `initialize_vision_modules`, `initialize_vision_tokenizer` of the published `llava_arch.py`: `nn.Linear`'s own start for
//! projectors, the mean of the rows before for new tokens. (There the second of two additions of tokens hides the first; here
//! every new row starts at the mean.)

use crate::config::ModelConfig;
use crate::config::encoders::{ENCODER_KEYS, LANGUAGE_KEY, ProjectorKind, VERSION_KEY, joined_type, tower_config};
use crate::config::vision::VisionConfig;
use crate::error::{ModelError, Result};
use crate::model::Model;
use crate::names::{EncoderPaths, IMAGE_ENCODER, VIDEO_ENCODER};
use crate::save::hub_dtype;
use crate::weights::{Part, to_tensor};
use hub::{Checkpoint, Dtype, OutTensor, PickleFile, SafeTensors, TensorView};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tensor::{DType, Tensor};

const TABLE: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// Projectors as files and tensors name them; the last is that of a single encoder.
const KEYS: [&str; 3] = ["image_mm_projector", "video_mm_projector", "mm_projector"];
/// Endings of a file of projectors, the safe one first.
const ENDINGS: [&str; 2] = ["safetensors", "bin"];

/// A tower to join.
#[derive(Debug, Clone)]
pub struct TowerPart {
    /// What the configuration calls it: a folder or a hub id.
    pub name: String,
    /// Where it lies.
    pub dir: PathBuf,
    /// What lies between it and the decoder.
    pub projector: ProjectorKind,
    /// `projector` as configurations spell it.
    pub projector_type: String,
}

/// What is joined, and how.
#[derive(Debug, Clone)]
pub struct JoinSpec {
    /// What the configuration calls the decoder.
    pub language_name: String,
    /// The decoder's folder.
    pub language: PathBuf,
    /// The tower for images.
    pub image: Option<TowerPart>,
    /// The tower for clips.
    pub video: Option<TowerPart>,
    /// Frames of a clip where nobody says how many.
    pub num_segment: usize,
    /// The hidden state that is projected.
    pub select_layer: i64,
    /// `patch` or `cls_patch`.
    pub select_feature: String,
    /// Tokens around media.
    pub use_start_end: bool,
    /// The token that the original adds and never uses.
    pub use_patch_token: bool,
    /// `square` or `pad`.
    pub image_aspect_ratio: String,
    /// Name of the conversation template; none leaves it to the decoder's own.
    pub version: Option<String>,
    /// Files or folders of projectors trained before.
    pub pretrained: Vec<PathBuf>,
    /// Seed of projectors that start fresh.
    pub seed: u64,
}

impl JoinSpec {
    /// The tokens that the tokenizer needs beside its own.
    pub fn new_tokens(&self) -> Vec<&'static str> {
        let mut tokens = Vec::new();
        if self.use_patch_token {
            tokens.push("<im_patch>");
        }
        if self.use_start_end {
            tokens.extend(["<im_start>", "<im_end>", "<vi_start>", "<vi_end>"]);
        }
        tokens
    }

    fn towers(&self) -> impl Iterator<Item = (usize, &TowerPart)> {
        [&self.image, &self.video].into_iter().enumerate().filter_map(|(which, part)| Some((which, part.as_ref()?)))
    }
}

const PATHS: [EncoderPaths; 2] = [IMAGE_ENCODER, VIDEO_ENCODER];

/// Writes configuration and own weights of the joined model into `dir`, which holds the tokenizer already: tables get
/// `num_rows` rows where `num_new` tokens were added. Returns the paths of projectors that start fresh.
///
/// # Errors
/// Parts of unknown families, or that do not fit together; projectors of another size; a file that cannot be read or written.
pub fn write_joined(spec: &JoinSpec, dir: &Path, num_rows: usize, num_new: usize) -> Result<Vec<String>> {
    let place = spec.language.join("config.json");
    let language: Value = hub::json::read_json(&place)?;
    let decoder = language["model_type"].as_str().unwrap_or_default();
    let Some(model_type) = joined_type(decoder) else {
        return Err(ModelError::UnknownFamily {
            file: place.display().to_string(),
            found: decoder.to_owned(),
            known: "llama, mistral, qwen2, qwen3, phi3 as language models".to_owned(),
        });
    };
    let dropped = ["architectures", "model_type", "auto_map", "_name_or_path"];
    let mut config: Map<String, Value> = language.as_object().cloned().unwrap_or_default();
    config.retain(|key, _| !dropped.contains(&key.as_str()));
    let class = match model_type {
        "llava_phi3" => "LlavaPhiForCausalLM",
        "llava_mistral" => "LlavaMistralForCausalLM",
        "llava_qwen2" => "LlavaQwen2ForCausalLM",
        "llava_qwen3" => "LlavaQwen3ForCausalLM",
        _ => "LlavaLlamaForCausalLM",
    };
    config.insert("architectures".into(), json!([class]));
    config.insert("model_type".into(), model_type.into());
    config.insert(LANGUAGE_KEY.into(), spec.language_name.clone().into());
    config.insert("mm_use_start_end".into(), spec.use_start_end.into());
    config.insert("mm_use_patch_token".into(), spec.use_patch_token.into());
    config.insert("image_aspect_ratio".into(), spec.image_aspect_ratio.clone().into());
    if let Some(version) = &spec.version {
        config.insert(VERSION_KEY.into(), version.clone().into());
    }
    if num_new > 0 {
        config.insert("vocab_size".into(), num_rows.into());
    }
    let weights = Checkpoint::open(&spec.language)?;
    let hidden = table_of(&weights, TABLE).or(table_of(&weights, HEAD)).map_or(0, |view| view.shape[1]);
    let mut own = Vec::new();
    let mut given = Projectors::read(&spec.pretrained)?;
    if num_new > 0 {
        for name in [TABLE, HEAD] {
            if let Some(view) = table_of(&weights, name) {
                let rows = given.table.take().filter(|_| name == TABLE);
                own.push(grown(weights.dir(), &view, num_rows, num_new, rows)?);
            }
        }
    }
    if given.table.is_some() {
        return Err(given.fault(format!(
            "it holds `{TABLE}` of tokens around media, and none are added; set `model.mm_use_start_end`"
        )));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(spec.seed);
    let mut fresh = Vec::new();
    for (which, part) in spec.towers() {
        let vision = tower_config(&part.dir)?;
        let width = VisionConfig::read(&part.dir.join("config.json").display().to_string(), &vision)?.hidden_size;
        let mut encoder = json!({
            "mm_vision_tower": part.name, "use_mm_proj": true, "mm_projector_type": part.projector_type, "mm_hidden_size": width,
            "mm_vision_select_layer": spec.select_layer, "mm_vision_select_feature": spec.select_feature,
            "mm_patch_merge_type": "flat", "hidden_size": hidden, "vision_config": vision,
        });
        if which == 1 {
            encoder["num_segment"] = spec.num_segment.into();
        }
        config.insert(ENCODER_KEYS[which].into(), encoder);
        let path = PATHS[which].projector;
        let shapes = shapes_of(part.projector, path, width, hidden);
        // Drawn whether it is needed or not, so that the second projector does not depend on the first one's file.
        let start = random_projector(&mut rng, &shapes);
        match given.take(path, which, spec)? {
            Some(found) => own.extend(check_projector(&given.place, path, &part.projector_type, &shapes, found)?),
            None => {
                fresh.push(path.to_owned());
                own.extend(start);
            }
        }
    }
    if let Some(name) = given.tensors.keys().next() {
        return Err(given.fault(format!("its `{name}` belongs to no projector of the model")));
    }
    ModelConfig::from_json("the joined model", Value::Object(config.clone()))?;
    hub::write_checkpoint(dir, &own, u64::MAX)?;
    hub::atomic_write(dir.join("config.json"), format!("{:#}\n", Value::Object(config)).as_bytes())?;
    Ok(fresh)
}

fn table_of<'a>(weights: &'a Checkpoint, name: &str) -> Option<TensorView<'a>> {
    weights.get(name).filter(|view| view.shape.len() == 2)
}

/// Weights and biases of a projector's maps: name and shape.
fn shapes_of(kind: ProjectorKind, path: &str, width: usize, hidden: usize) -> Vec<(String, Vec<usize>)> {
    let mut input = width;
    let mut shapes = Vec::new();
    for layer in kind.layers() {
        shapes.push((format!("{path}{layer}.weight"), vec![hidden, input]));
        shapes.push((format!("{path}{layer}.bias"), vec![hidden]));
        input = hidden;
    }
    shapes
}

/// Values as `nn.Linear` starts: uniform within one over the root of the inputs, bias included.
fn random_projector(rng: &mut ChaCha8Rng, shapes: &[(String, Vec<usize>)]) -> Vec<OutTensor<'static>> {
    let mut bound = 0.0f32;
    let mut out = Vec::new();
    for (name, shape) in shapes {
        if let &[_, input] = shape.as_slice() {
            bound = 1.0 / (input as f32).sqrt();
        }
        let count: usize = shape.iter().product();
        let bytes: Vec<u8> = (0..count).flat_map(|_| rng.random_range(-bound..bound).to_le_bytes()).collect();
        out.push(OutTensor::new(name.clone(), Dtype::F32, shape, bytes));
    }
    out
}

/// A table of `num_rows` rows: the old ones as far as there is room, `num_new` at the end that are the mean of those before
/// or, of a table trained before, its own.
fn grown(
    dir: &Path,
    view: &TensorView<'_>,
    num_rows: usize,
    num_new: usize,
    given: Option<Tensor>,
) -> Result<OutTensor<'static>> {
    let width = view.shape[1];
    let table = to_tensor(dir, view, view.shape)?;
    let dtype = table.dtype();
    let old = table.cast(DType::F32)?.to_vec_f32()?;
    let kept = num_rows - num_new;
    if kept > view.shape[0] {
        return Err(ModelError::Weights {
            path: dir.to_path_buf(),
            message: format!("`{}` has {} rows, fewer than the tokenizer's {kept} tokens", view.name, view.shape[0]),
        });
    }
    let mut rows = old[..kept * width].to_vec();
    let new = match given {
        Some(table) => {
            let found = table.shape().to_vec();
            let values = table.cast(DType::F32)?.to_vec_f32()?;
            match found.as_slice() {
                &[rows, columns] if columns == width && (rows == num_new || rows == num_rows) => {
                    values[(rows - num_new) * width..].to_vec()
                }
                _ => {
                    let message = format!(
                        "the pretrained `{TABLE}` has shape {found:?}, expected [{num_new}, {width}] or [{num_rows}, {width}]"
                    );
                    return Err(ModelError::Weights { path: dir.to_path_buf(), message });
                }
            }
        }
        None => {
            let mut sums = vec![0f64; width];
            for row in rows.chunks_exact(width) {
                sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
            }
            let mean: Vec<f32> = sums.iter().map(|sum| (sum / kept.max(1) as f64) as f32).collect();
            mean.repeat(num_new)
        }
    };
    rows.extend(new);
    let bytes = Tensor::from_f32(&rows, &[num_rows, width])?.cast(dtype)?.to_bytes();
    Ok(OutTensor::new(view.name.to_owned(), hub_dtype(dtype), &[num_rows, width], bytes))
}

/// Projectors that were trained before.
#[derive(Default)]
struct Projectors {
    place: PathBuf,
    /// By the name from `image_mm_projector`, `video_mm_projector` or `mm_projector` on.
    tensors: BTreeMap<String, Tensor>,
    /// The embedding table, where the file holds it.
    table: Option<Tensor>,
}

impl Projectors {
    /// Reads files, and of folders the files of projectors that they hold.
    fn read(paths: &[PathBuf]) -> Result<Projectors> {
        let mut found = Projectors::default();
        for path in paths {
            found.place.clone_from(path);
            for file in projector_files(path)? {
                if file.extension().is_some_and(|end| end == "bin") {
                    let pickle = PickleFile::open(&file)?;
                    found.add(&file, pickle.names().into_iter().filter_map(|name| pickle.get(name)))?;
                } else {
                    let safe = SafeTensors::open(&file)?;
                    found.add(&file, safe.names().into_iter().filter_map(|name| safe.get(name)))?;
                }
            }
        }
        Ok(found)
    }

    fn add<'a>(&mut self, file: &Path, views: impl Iterator<Item = TensorView<'a>>) -> Result<()> {
        for view in views {
            let tensor = to_tensor(file, &view, view.shape)?;
            if let Some(at) = KEYS.iter().find_map(|key| view.name.find(&format!("{key}."))) {
                self.tensors.insert(view.name[at..].to_owned(), tensor);
            } else if view.name.ends_with("embed_tokens.weight") {
                self.table = Some(tensor);
            } else {
                return Err(self.fault(format!("its `{}` is no tensor of a projector", view.name)));
            }
        }
        Ok(())
    }

    /// The tensors for a projector, by the rest of their name; those of a single encoder are for the only one, or for images.
    fn take(&mut self, path: &str, which: usize, spec: &JoinSpec) -> Result<Option<BTreeMap<String, Tensor>>> {
        let own = path.trim_start_matches("model.");
        let is_first = which == 0 || spec.image.is_none();
        let mut found = BTreeMap::new();
        for key in [own, "mm_projector"] {
            if !found.is_empty() || (key != own && !is_first) {
                continue;
            }
            let names: Vec<String> =
                self.tensors.keys().filter(|n| n.starts_with(&format!("{key}."))).cloned().collect();
            for name in names {
                if let Some(tensor) = self.tensors.remove(&name) {
                    found.insert(name[key.len()..].to_owned(), tensor);
                }
            }
        }
        Ok(if found.is_empty() { None } else { Some(found) })
    }

    fn fault(&self, message: String) -> ModelError {
        ModelError::Weights { path: self.place.clone(), message: format!("as `model.pretrained_projector`: {message}") }
    }
}

/// The files of projectors that a path means: itself, or those that a folder holds.
///
/// # Errors
/// There is no such file, or the folder holds none.
pub fn projector_files(path: &Path) -> Result<Vec<PathBuf>> {
    let fault = |what: &str| ModelError::Weights {
        path: path.to_path_buf(),
        message: format!("as `model.pretrained_projector`: {what}"),
    };
    if !path.is_dir() {
        return if path.is_file() { Ok(vec![path.to_path_buf()]) } else { Err(fault("no such file or folder")) };
    }
    let first = |name: &&str| ENDINGS.iter().map(|end| path.join(format!("{name}.{end}"))).find(|file| file.is_file());
    let files: Vec<PathBuf> = KEYS.iter().filter_map(first).collect();
    match files.is_empty() {
        true => Err(fault("it holds no file of a projector, such as `mm_projector.safetensors` or `mm_projector.bin`")),
        false => Ok(files),
    }
}

/// Pretrained tensors against the shapes of the model's projector.
fn check_projector(
    place: &Path,
    path: &str,
    kind: &str,
    shapes: &[(String, Vec<usize>)],
    mut found: BTreeMap<String, Tensor>,
) -> Result<Vec<OutTensor<'static>>> {
    let fault = |message: String| ModelError::Weights {
        path: place.to_path_buf(),
        message: format!("as `model.pretrained_projector`: {message}"),
    };
    let mut out = Vec::new();
    for (name, shape) in shapes {
        let Some(tensor) = found.remove(&name[path.len()..]) else {
            return Err(fault(format!("it lacks `{name}` of a projector of kind `{kind}`")));
        };
        if tensor.shape() != shape.as_slice() {
            return Err(fault(format!(
                "its `{name}` has shape {:?}, the tower and the decoder need {shape:?}",
                tensor.shape()
            )));
        }
        out.push(OutTensor::new(name.clone(), hub_dtype(tensor.dtype()), shape, tensor.to_bytes()));
    }
    match found.keys().next() {
        Some(rest) => Err(fault(format!("its `{path}{rest}` has no place in a projector of kind `{kind}`"))),
        None => Ok(out),
    }
}

impl Model {
    /// Writes the projectors alone, under the original's names and in files named as the original's `mm_projector.bin`:
    /// `mm_projector.safetensors`, or one for each encoder. Where tokens stand around media the table of embeddings goes with
    /// them. Nothing for models of another layout.
    pub fn save_projectors(&self, dir: &Path) -> Result<()> {
        let Some(encoders) = self.config.encoders() else { return Ok(()) };
        for encoder in encoders.all() {
            let path = encoder.paths.projector;
            let is_own = |name: &str| name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
            let goes = |p: &&crate::weights::NamedParam| {
                p.part == Part::Projector && is_own(&p.name) || encoders.has_start_end && p.name == TABLE
            };
            let tensors: Vec<OutTensor<'_>> = self
                .params
                .iter()
                .filter(goes)
                .map(|p| {
                    let param = p.param.clone();
                    // What was trained is f32, and nothing of it is rounded away here.
                    OutTensor::lazy(&p.name, hub_dtype(param.dtype()), &p.disk_shape, move || {
                        Ok(param.value().to_bytes().into())
                    })
                })
                .collect();
            let file = dir.join(format!("{}.safetensors", path.trim_start_matches("model.")));
            hub::write_safetensors(file, &tensors, &[("format", "pt")])?;
        }
        Ok(())
    }
}
