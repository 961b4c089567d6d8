//! A model in LLaVA's original layout as `LlavaForConditionalGeneration` of `transformers` has it. Owns the translation of names
//! and configuration; tokenizer and processor files are the data side's.
//!
//! Source: the published conversion of LLaVA-1.5 (`convert_llava_weights_to_hf.py`): a token for pictures is added, and a table
//! that is too small for it grows to a multiple of 64. There new rows are drawn around the mean of the others; here they are
//! the mean, so that an export is always the same.

use crate::config::FeatureSelect;
use crate::config::encoders::{Encoder, ProjectorKind, decoder_fields, decoder_type};
use crate::error::{ModelError, Result};
use crate::model::Model;
use crate::names::{self, PROJECTOR_PREFIX, TEXT_PREFIX, VISION_PREFIX};
use crate::save::hub_dtype;
use crate::weights::{NamedParam, Part};
use hub::OutTensor;
use serde_json::{Value, json};
use std::path::Path;
use tensor::{DType, Tensor};

/// Tables grow to a multiple of this, as in the conversion.
const ROWS: usize = 64;

/// Tokens of the exported tokenizer that the configuration names.
#[derive(Debug, Clone, Copy)]
pub struct ExportTokens {
    /// Stands for a row of a picture.
    pub image: u32,
    /// Fills batches, where the tokenizer has such a token.
    pub pad: Option<u32>,
}

impl Model {
    /// Writes weights and `config.json` as `LlavaForConditionalGeneration` reads them.
    ///
    /// # Errors
    /// What that class has no place for, by name: an encoder for clips, another projector than two maps, tokens around media,
    /// and models of any other layout.
    pub fn save_as_llava(&self, dir: &Path, tokens: ExportTokens, max_shard_size: u64) -> Result<()> {
        let encoder = self.exported_encoder()?;
        if self.adapter.is_some() {
            return Err(ModelError::Adapter("merge the adapter before the model is exported".into()));
        }
        let old_rows = self.config.vocab_size();
        let needed = tokens.pad.map_or(tokens.image, |pad| pad.max(tokens.image)) as usize + 1;
        let num_rows = if needed > old_rows { needed.next_multiple_of(ROWS) } else { old_rows };
        let mut out = Vec::new();
        for p in &self.params {
            let name = llava_name(&p.name, encoder);
            let is_table = p.name.ends_with("embed_tokens.weight") || p.name == "lm_head.weight";
            out.push(match is_table && num_rows > old_rows {
                true => grown(name, p, num_rows)?,
                false => {
                    let (param, dtype) = (p.param.clone(), p.disk_dtype);
                    OutTensor::lazy(name, hub_dtype(dtype), &p.disk_shape, move || {
                        Ok(param.value().cast(dtype).map_err(std::io::Error::other)?.to_bytes().into())
                    })
                }
            });
        }
        std::fs::create_dir_all(dir).map_err(|e| ModelError::Weights { path: dir.into(), message: e.to_string() })?;
        hub::write_checkpoint(dir, &out, max_shard_size)?;
        let config = self.llava_config(encoder, tokens, num_rows);
        hub::atomic_write(dir.join("config.json"), format!("{config:#}\n").as_bytes())?;
        Ok(())
    }

    /// The encoder of a model that can be exported.
    ///
    /// # Errors
    /// As [`Model::save_as_llava`].
    pub fn exported_encoder(&self) -> Result<&Encoder> {
        let refuse =
            |what: String| Err(ModelError::Input(format!("export to `LlavaForConditionalGeneration`: {what}")));
        let Some(encoders) = self.config.encoders() else {
            return refuse(format!("a `{}` model is not in LLaVA's original layout", self.config.model_type));
        };
        let (Some(encoder), None) = (&encoders.image, &encoders.video) else {
            return refuse("that class has one encoder, for images, and no place for one for clips".to_owned());
        };
        if encoder.projector != ProjectorKind::Mlp(2) {
            return refuse(format!(
                "that class has a projector of two maps (`mlp2x_gelu`), found {:?}",
                encoder.projector
            ));
        }
        if encoders.has_start_end {
            return refuse(
                "its processor writes no tokens around pictures, and `mm_use_start_end` asks for them".to_owned(),
            );
        }
        Ok(encoder)
    }

    fn llava_config(&self, encoder: &Encoder, tokens: ExportTokens, num_rows: usize) -> Value {
        let raw = self.saved_config();
        let mut text = decoder_fields(&raw);
        for dropped in ["architectures", "transformers_version", "_name_or_path", "auto_map"] {
            text.remove(dropped);
        }
        text.insert("model_type".into(), decoder_type(&self.config.model_type).unwrap_or("llama").into());
        text.insert("vocab_size".into(), num_rows.into());
        let object = if raw["mm_vision_tower"].is_null() { &raw["image_encoder"] } else { &raw };
        let is_tied = self.tied().is_some();
        text.insert("tie_word_embeddings".into(), is_tied.into());
        let mut config = json!({
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": tokens.image,
            "image_seq_length": encoder.tokens_per_image(),
            "projector_hidden_act": "gelu",
            "multimodal_projector_bias": true,
            "vision_feature_layer": object.get("mm_vision_select_layer").filter(|layer| layer.is_i64()).unwrap_or(&json!(-2)),
            "vision_feature_select_strategy": strategy(encoder),
            "tie_word_embeddings": is_tied,
            "text_config": text,
            "vision_config": object["vision_config"],
        });
        if let Some(pad) = tokens.pad {
            config["pad_token_id"] = pad.into();
        }
        for key in ["torch_dtype", "dtype"] {
            if let Some(value) = raw.get(key) {
                config[key] = value.clone();
            }
        }
        config
    }
}

/// How `transformers` names the choice of tokens.
pub fn strategy(encoder: &Encoder) -> &'static str {
    match encoder.select {
        FeatureSelect::DropFirst => "default",
        FeatureSelect::Full => "full",
    }
}

/// Name in the files of `LlavaForConditionalGeneration`.
fn llava_name(name: &str, encoder: &Encoder) -> String {
    if let Some(rest) = name.strip_prefix(encoder.paths.tower) {
        return format!("{VISION_PREFIX}{rest}");
    }
    match names::projector_layer(name, encoder.paths) {
        Some((layer, rest)) => format!("{PROJECTOR_PREFIX}linear_{}.{rest}", layer / 2 + 1),
        None => format!("{TEXT_PREFIX}{name}"),
    }
}

/// A table with rows added that are the mean of those that there are.
fn grown(name: String, p: &NamedParam, num_rows: usize) -> Result<OutTensor<'static>> {
    debug_assert_eq!(p.part, Part::Llm);
    let (rows, width) = (p.disk_shape[0], p.disk_shape[1]);
    let mut values = p.param.value().cast(DType::F32)?.to_vec_f32()?;
    let mut sums = vec![0f64; width];
    for row in values.chunks_exact(width) {
        sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    let mean: Vec<f32> = sums.iter().map(|sum| (sum / rows.max(1) as f64) as f32).collect();
    values.extend(mean.repeat(num_rows - rows));
    let bytes = Tensor::from_f32(&values, &[num_rows, width])?.cast(p.disk_dtype)?.to_bytes();
    Ok(OutTensor::new(name, hub_dtype(p.disk_dtype), &[num_rows, width], bytes))
}
