//! Reads the fixture folders and packs their samples as the loader would. Owns no comparison.

use hub::SafeTensors;
use models::ModelInput;
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
pub struct Sample {
    pub ids: Vec<u32>,
    pub labels: Vec<i32>,
    pub pixels: Vec<f32>,
    /// Images, channels, height, width.
    pub pixels_shape: [usize; 4],
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

    /// The id that takes image features; a decoder alone has none.
    pub fn image_token(&self) -> u32 {
        json(&self.dir.join("config.json"))["image_token_index"].as_u64().map_or(u32::MAX, |id| id as u32)
    }

    /// The samples in order.
    pub fn samples(&self) -> Vec<Sample> {
        let mut out = Vec::new();
        while let Some(view) = self.tensors.get(&format!("sample{}.input_ids", out.len())) {
            let labels = self.tensors.get(&format!("sample{}.labels", out.len())).unwrap();
            let pixels = self.tensors.get(&format!("sample{}.pixel_values", out.len()));
            out.push(Sample {
                ids: i64s(view.data).map(|v| v as u32).collect(),
                labels: i64s(labels.data).map(|v| v as i32).collect(),
                pixels_shape: pixels.as_ref().map_or([0; 4], |p| p.shape.try_into().unwrap()),
                pixels: pixels.map_or_else(Vec::new, |p| floats(p.data).collect()),
            });
        }
        out
    }
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
pub fn pack(samples: &[&Sample], image_token: u32) -> (ModelInput, Vec<i32>) {
    let (mut ids, mut positions, mut labels, mut cu) = (Vec::new(), Vec::new(), Vec::new(), vec![0]);
    let (mut pixels, mut images, mut side) = (Vec::new(), 0, [0; 3]);
    for sample in samples {
        positions.extend(0..sample.ids.len() as u32);
        ids.extend(&sample.ids);
        labels.extend(&sample.labels);
        cu.push(ids.len());
        pixels.extend(&sample.pixels);
        let [n, c, h, w] = sample.pixels_shape;
        if n > 0 {
            (images, side) = (images + n, [c, h, w]);
        }
    }
    let image_rows = (0..ids.len() as u32).filter(|&i| ids[i as usize] == image_token).collect();
    let [c, h, w] = side;
    let pixels = (images > 0).then(|| Tensor::from_f32(&pixels, &[images, c, h, w]).unwrap());
    (ModelInput { ids, positions, cu_seqlens: cu.into(), pixels, image_rows, ..ModelInput::default() }, labels)
}

/// What the file of an adapter calls a tensor: matrices keep their names, modules trained whole have the base's.
pub fn adapter_key(name: &str) -> String {
    match name.strip_prefix("language_model.lm_head") {
        _ if name.starts_with("base_model.") => name.to_owned(),
        Some(rest) => format!("base_model.model.lm_head{rest}"),
        None => {
            let inner = name.replace("vision_tower.vision_model.", "vision_tower.");
            format!("base_model.model.model.{}", inner.replace("language_model.model.", "language_model."))
        }
    }
}
