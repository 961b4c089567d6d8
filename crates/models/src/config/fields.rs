//! Reading a Hugging Face configuration object so that every field is either used, known to be inert, or refused by
//! name. Owns the list of inert fields; knows no family.

use crate::error::{ModelError, Result};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Fields of `PreTrainedConfig` and its descendants that change nothing in a forward or backward pass of a causal or
/// vision transformer: bookkeeping, generation defaults (read elsewhere from `generation_config.json`), initialisation
/// scales and options of heads that are not part of these models.
const INERT: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "_commit_hash",
    "add_cross_attention",
    "architectures",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "hidden_dropout",
    "id2label",
    "ignore_index",
    "image_seq_length",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "length_penalty",
    "logit_scale_init_value",
    "max_length",
    "max_position_embeddings",
    "max_window_layers",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "projection_dim",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "sliding_window",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// A configuration object under reading; remembers which fields were asked for.
pub struct Fields<'a> {
    place: String,
    map: &'a Map<String, Value>,
    seen: RefCell<BTreeSet<String>>,
}

impl<'a> Fields<'a> {
    /// Starts reading `value`, which must be an object; `place` names it in errors.
    pub fn new(place: impl Into<String>, value: &'a Value) -> Result<Fields<'a>> {
        let place = place.into();
        match value.as_object() {
            Some(map) => Ok(Fields { place, map, seen: RefCell::default() }),
            None => {
                Err(ModelError::Config { file: place, field: "(root)".into(), reason: "expected a JSON object".into() })
            }
        }
    }

    /// The place named in errors.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The raw value of a field; JSON `null` counts as absent.
    pub fn raw(&self, name: &str) -> Option<&'a Value> {
        self.seen.borrow_mut().insert(name.to_owned());
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// Whether a field is there and says null, where a class default is something else.
    pub fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    /// An error about one field of this object.
    pub fn error(&self, field: &str, reason: impl Into<String>) -> ModelError {
        ModelError::Config { file: self.place.clone(), field: field.into(), reason: reason.into() }
    }

    /// A non-negative integer, or the default of the reference class.
    pub fn usize_or(&self, name: &str, default: usize) -> Result<usize> {
        Ok(self.usize_opt(name)?.unwrap_or(default))
    }

    /// A non-negative integer that may be absent.
    pub fn usize_opt(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.raw(name) else { return Ok(None) };
        match value.as_u64() {
            Some(v) => Ok(Some(v as usize)),
            None => Err(self.error(name, format!("expected a non-negative integer, found `{value}`"))),
        }
    }

    /// A size that must be at least one.
    pub fn size_or(&self, name: &str, default: usize) -> Result<usize> {
        match self.usize_or(name, default)? {
            0 => Err(self.error(name, "expected at least 1, found `0`")),
            v => Ok(v),
        }
    }

    /// A number, or the default of the reference class.
    pub fn f64_or(&self, name: &str, default: f64) -> Result<f64> {
        let Some(value) = self.raw(name) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.error(name, format!("expected a number, found `{value}`")))
    }

    /// A truth value, or the default of the reference class.
    pub fn bool_or(&self, name: &str, default: bool) -> Result<bool> {
        let Some(value) = self.raw(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.error(name, format!("expected true or false, found `{value}`")))
    }

    /// A string, or the default of the reference class.
    pub fn str_or(&self, name: &str, default: &str) -> Result<String> {
        let Some(value) = self.raw(name) else { return Ok(default.to_owned()) };
        match value.as_str() {
            Some(s) => Ok(s.to_owned()),
            None => Err(self.error(name, format!("expected a string, found `{value}`"))),
        }
    }

    /// Refuses a dropout that the reference applies during training and this program does not.
    pub fn refuse_dropout(&self, name: &str) -> Result<()> {
        match self.f64_or(name, 0.0)? {
            0.0 => Ok(()),
            v => {
                Err(self
                    .error(name, format!("a dropout inside the model is not supported, found `{v}`; set it to 0.0")))
            }
        }
    }

    /// Ends the reading: a field that was neither asked for nor is known to be inert is refused by name.
    pub fn finish(self) -> Result<()> {
        let seen = self.seen.into_inner();
        for (name, value) in self.map {
            if seen.contains(name) || value.is_null() || INERT.contains(&name.as_str()) {
                continue;
            }
            return Err(ModelError::Config {
                file: self.place,
                field: name.clone(),
                reason: format!("is not supported (found `{value}`); remove it only if it does not change the model"),
            });
        }
        Ok(())
    }
}
