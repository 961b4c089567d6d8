//! Reads the fixture folders and packs their samples as the loader would. Owns no comparison.

use hub::SafeTensors;
use models::{ModelInput, Visual};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tensor::Tensor;

/// An expectation file and the JSON beside it.
pub struct Fixture {
    pub dir: PathBuf,
    pub tensors: SafeTensors,
    pub info: Value,
}

/// One encoded conversation.
#[derive(Default)]
pub struct Sample {
    pub ids: Vec<u32>,
    pub labels: Vec<i32>,
    pub pixels: Vec<f32>,
    /// Images, channels, height, width; or patches and their values.
    pub pixels_shape: Vec<usize>,
    /// Images and clips, where pictures have no common size.
    pub visuals: Vec<Visual>,
    /// Log-mel spectrograms of sound.
    pub mel: Vec<f32>,
    /// Windows, mels, frames.
    pub mel_shape: Vec<usize>,
    /// The id whose rows take features of sound.
    pub speech_token: Option<u32>,
}

/// `fixtures/models`.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models")
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

impl Fixture {
    /// A checkpoint folder with its `expected.safetensors` and `expected.json`.
    pub fn open(dir: PathBuf) -> Fixture {
        let tensors = SafeTensors::open(dir.join("expected.safetensors")).unwrap();
        Fixture { info: json(&dir.join("expected.json")), tensors, dir }
    }

    pub fn name(&self) -> String {
        self.dir.file_name().unwrap().to_string_lossy().into_owned()
    }

    /// The ids that take features of images and clips; a decoder alone has none.
    pub fn placeholders(&self) -> Vec<u32> {
        let config = json(&self.dir.join("config.json"));
        let is_original = config["model_type"] != "egogpt_qwen";
        if is_original
            && ["mm_vision_tower", "image_encoder", "video_encoder"].iter().any(|key| !config[*key].is_null())
        {
            return [-200i32, -300].map(|id| id as u32).to_vec();
        }
        let keys = ["image_token_index", "image_token_id", "video_token_id", "video_token_index"];
        keys.iter().filter_map(|key| config[*key].as_u64()).map(|id| id as u32).collect()
    }

    /// The samples in order.
    pub fn samples(&self) -> Vec<Sample> {
        let speech_token = json(&self.dir.join("config.json"))["speech_token_index"].as_u64().map(|id| id as u32);
        let mut out = Vec::new();
        while let Some(view) = self.tensors.get(&format!("sample{}.input_ids", out.len())) {
            let labels = self.tensors.get(&format!("sample{}.labels", out.len())).unwrap();
            let pixels = self.tensors.get(&format!("sample{}.pixel_values", out.len()));
            let mel = self.tensors.get(&format!("sample{}.mel", out.len()));
            out.push(Sample {
                mel_shape: mel.as_ref().map_or_else(Vec::new, |m| m.shape.to_vec()),
                mel: mel.map_or_else(Vec::new, |m| floats(m.data).collect()),
                speech_token,
                ids: i64s(view.data).map(|v| v as u32).collect(),
                labels: i64s(labels.data).map(|v| v as i32).collect(),
                pixels_shape: pixels.as_ref().map_or_else(Vec::new, |p| p.shape.to_vec()),
                visuals: visuals(&self.info["samples"][out.len()]["visuals"]),
                pixels: pixels.map_or_else(Vec::new, |p| floats(p.data).collect()),
            });
        }
        out
    }
}

fn visuals(list: &Value) -> Vec<Visual> {
    let number = |v: &Value| v.as_u64().unwrap() as usize;
    let visual = |v: &Value| Visual {
        is_video: v["is_video"].as_bool().unwrap(),
        grid: [0, 1, 2].map(|axis| number(&v["grid"][axis])),
        source_size: [0, 1].map(|axis| v["source_size"][axis].as_u64().unwrap_or_default() as usize),
        seconds_per_grid: v["seconds_per_grid"].as_f64().unwrap(),
    };
    list.as_array().into_iter().flatten().map(visual).collect()
}

fn i64s(bytes: &[u8]) -> impl Iterator<Item = i64> + '_ {
    bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()))
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()))
}

/// A stored f32 tensor.
pub fn f32s(file: &SafeTensors, name: &str) -> Option<Vec<f32>> {
    let view = file.get(name)?;
    assert_eq!(view.dtype, hub::Dtype::F32, "{name}");
    Some(floats(view.data).collect())
}

/// A stored f64 tensor.
pub fn f64s(file: &SafeTensors, name: &str) -> Option<Vec<f64>> {
    let view = file.get(name)?;
    assert_eq!(view.dtype, hub::Dtype::F64, "{name}");
    Some(view.data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect())
}

/// Samples one after the other in one packed input, and their labels.
pub fn pack(samples: &[&Sample], placeholders: &[u32]) -> (ModelInput, Vec<i32>) {
    let (mut ids, mut positions, mut labels, mut cu) = (Vec::new(), Vec::new(), Vec::new(), vec![0]);
    let (mut pixels, mut shape, mut visuals) = (Vec::new(), Vec::new(), Vec::new());
    let (mut mel, mut mel_shape, mut speech_rows) = (Vec::new(), Vec::new(), Vec::new());
    for sample in samples {
        let first = ids.len() as u32;
        let heard = (0..).zip(&sample.ids).filter(|(_, id)| Some(**id) == sample.speech_token);
        speech_rows.extend(heard.map(|(row, _): (u32, _)| first + row));
        mel.extend(&sample.mel);
        join(&mut mel_shape, &sample.mel_shape);
        positions.extend(0..sample.ids.len() as u32);
        ids.extend(&sample.ids);
        labels.extend(&sample.labels);
        cu.push(ids.len());
        pixels.extend(&sample.pixels);
        visuals.extend(&sample.visuals);
        join(&mut shape, &sample.pixels_shape);
    }
    let image_rows = (0..ids.len() as u32).filter(|&i| placeholders.contains(&ids[i as usize])).collect();
    let pixels = (!shape.is_empty() && shape[0] > 0).then(|| Tensor::from_f32(&pixels, &shape).unwrap());
    let mel = (!mel.is_empty()).then(|| Tensor::from_f32(&mel, &mel_shape).unwrap());
    let cu_seqlens = cu.into();
    let input = ModelInput {
        ids,
        positions,
        cu_seqlens,
        pixels,
        image_rows,
        visuals,
        mel,
        speech_rows,
        ..ModelInput::default()
    };
    (input, labels)
}

/// The shape of rows with more rows behind them.
fn join(shape: &mut Vec<usize>, more: &[usize]) {
    match (shape.first_mut(), more.first()) {
        (Some(rows), Some(more)) => *rows += more,
        (None, Some(_)) => *shape = more.to_vec(),
        (_, None) => {}
    }
}

/// What the file of an adapter calls a tensor: matrices keep their names, modules trained whole have the base's.
pub fn adapter_key(name: &str) -> String {
    match name.strip_prefix("language_model.lm_head") {
        _ if name.starts_with("base_model.") => name.to_owned(),
        Some(rest) => format!("base_model.model.lm_head{rest}"),
        // A decoder alone has the same names everywhere.
        None if name.starts_with("model.") || name.starts_with("lm_head.") => format!("base_model.model.{name}"),
        None => {
            let inner = name.replace("vision_tower.vision_model.", "vision_tower.");
            format!("base_model.model.model.{}", inner.replace("language_model.model.", "language_model."))
        }
    }
}
