//! Writing a model in the layout it was read from: safetensors under hub names, and the configuration unchanged.

use crate::error::{ModelError, Result};
use crate::model::Model;
use crate::names;
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
    fn saved_config(&self) -> Value {
        let mut config = self.config.raw.clone();
        let Some(first) = self.params.first() else { return config };
        let name = match first.disk_dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        };
        let mut set = |object: &mut Value| {
            for key in ["torch_dtype", "dtype"] {
                if let Some(value) = object.get_mut(key).filter(|v| v.is_string()) {
                    *value = name.into();
                }
            }
        };
        set(&mut config);
        for part in ["text_config", "vision_config"] {
            config.get_mut(part).map(&mut set);
        }
        config
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
