//! Writing a model in the layout it was read from: safetensors under hub names, and the configuration unchanged.

use crate::config::encoders::ENCODER_KEYS;
use crate::error::{ModelError, Result};
use crate::model::Model;
use crate::names;
use crate::weights::{NamedParam, Part};
use hub::OutTensor;
use serde_json::Value;
use std::path::Path;
use tensor::DType;

impl Model {
    /// Writes `config.json` and the weights (shards of at most `max_shard_size` bytes) into `dir`, every tensor in the
    /// element type it had on disk. An active adapter must be merged or saved by itself first.
    pub fn save(&self, dir: &Path, max_shard_size: u64) -> Result<()> {
        if self.adapter.is_some() {
            return Err(ModelError::Adapter(
                "merge the adapter before saving a whole model, or save the adapter".into(),
            ));
        }
        let tensors: Vec<OutTensor<'_>> = self
            .params
            .iter()
            .map(|p| {
                let (param, dtype) = (p.param.clone(), p.disk_dtype);
                let name = names::on_disk(&p.name, self.config.vision());
                OutTensor::lazy(name, hub_dtype(dtype), &p.disk_shape, move || {
                    let value = param.value().cast(dtype).map_err(std::io::Error::other)?;
                    Ok(value.to_bytes().into())
                })
            })
            .collect();
        std::fs::create_dir_all(dir).map_err(|e| ModelError::Weights { path: dir.into(), message: e.to_string() })?;
        hub::write_checkpoint(dir, &tensors, max_shard_size)?;
        hub::atomic_write(dir.join("config.json"), format!("{:#}\n", self.saved_config()).as_bytes())?;
        Ok(())
    }

    /// The configuration as it was read, except that the element type it names is the one that is written: the
    /// reference casts to it on loading.
    pub(crate) fn saved_config(&self) -> Value {
        let mut config = self.config.raw.clone();
        // Parts that were joined may differ; the decoder's type is the model's.
        let of = |part| self.params.iter().find(|p| p.part == part).or(self.params.first());
        let Some(model) = of(Part::Llm) else { return config };
        let name = type_name(model);
        let set = |object: &mut Value, name: &str| {
            for key in ["torch_dtype", "dtype"] {
                if let Some(value) = object.get_mut(key).filter(|v| v.is_string()) {
                    *value = name.into();
                }
            }
        };
        set(&mut config, name);
        for part in ["text_config", "vision_config"] {
            if let Some(object) = config.get_mut(part) {
                set(object, name);
            }
        }
        if let Some(encoders) = self.config.encoders() {
            let objects = ENCODER_KEYS.map(|key| format!("/{key}/vision_config")).into_iter();
            let objects: Vec<String> = objects.filter(|object| config.pointer(object).is_some()).collect();
            let objects = if objects.is_empty() { vec!["/vision_config".to_owned()] } else { objects };
            for (encoder, object) in encoders.all().zip(objects) {
                let own = self.params.iter().find(|p| p.name.starts_with(encoder.paths.tower));
                if let (Some(own), Some(object)) = (own, config.pointer_mut(&object)) {
                    set(object, type_name(own));
                }
            }
        }
        config
    }
}

/// The element type on disk as `torch_dtype` spells it.
fn type_name(named: &NamedParam) -> &'static str {
    match named.disk_dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    }
}

/// The element type's name in safetensors.
pub(crate) fn hub_dtype(dtype: DType) -> hub::Dtype {
    match dtype {
        DType::F32 => hub::Dtype::F32,
        DType::BF16 => hub::Dtype::BF16,
        DType::F16 => hub::Dtype::F16,
        DType::U8 => hub::Dtype::U8,
        DType::I32 => hub::Dtype::I32,
        DType::I64 => hub::Dtype::I64,
    }
}

#[cfg(test)]
mod tests {
    use crate::{LoadOptions, load};
    use std::path::Path;
    use tensor::DType;

    #[test]
    fn the_saved_configuration_names_the_written_type() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/siglip_odd_qwen2_tied");
        for (dtype, name) in [(None, "bfloat16"), (Some(DType::F32), "float32")] {
            let (model, _) = load(&root, &LoadOptions { dtype }).unwrap();
            let saved = tempfile::tempdir().unwrap();
            model.save(saved.path(), u64::MAX).unwrap();
            let config: serde_json::Value = hub::json::read_json(saved.path().join("config.json")).unwrap();
            let found = config.get("torch_dtype").or(config.get("dtype")).unwrap();
            assert_eq!(found, name);
        }
    }
}
