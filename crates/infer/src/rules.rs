//! The rules of a checkpoint's `generation_config.json` that change logits before a token is chosen. Owns the list of
//! what is carried out and what is only named; temperature, top-k and top-p are the caller's, never the file's.
//!
//! Source: `transformers/generation/logits_process.py`, in the order of `_get_logits_processor`.

use crate::error::{InferError, Result};
use serde_json::Value;

/// Settings that would change a continuation, are not carried out, and the value with which they do nothing.
const NOT_CARRIED_OUT: [(&str, f64); 15] = [
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("penalty_alpha", 0.0),
    ("dola_layers", 0.0),
    ("guidance_scale", 1.0),
    ("sequence_bias", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("diversity_penalty", 0.0),
    ("forced_bos_token_id", -1.0),
    ("forced_eos_token_id", -1.0),
    ("exponential_decay_length_penalty", 0.0),
    ("stop_strings", 0.0),
    ("watermarking_config", 0.0),
    ("constraints", 0.0),
];

/// What changes the logits of the next token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules {
    /// Divides positive and multiplies negative logits of tokens that the sequence holds, prompt included.
    pub repetition_penalty: Option<f32>,
    /// No run of this many tokens comes twice, prompt included.
    pub no_repeat_ngram_size: Option<usize>,
    /// Runs of tokens that never come.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// Length of the sequence, prompt included, before which no end token comes.
    pub min_length: usize,
    /// Generated tokens before which no end token comes.
    pub min_new_tokens: usize,
    /// Tokens that never come.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that do not come first.
    pub begin_suppress_tokens: Vec<u32>,
}

impl Rules {
    /// Reads the rules of a parsed file, none of a null, and a note on each setting that is not carried out; `place`
    /// names the file in messages.
    ///
    /// # Errors
    /// A value has a type or a range that it cannot have.
    pub fn read(config: &Value, place: &str) -> Result<(Rules, Vec<String>)> {
        Rules::read_beside(config, place, &[])
    }

    /// As [`Rules::read`] where others carry out some of the settings.
    ///
    /// # Errors
    /// As [`Rules::read`].
    pub fn read_beside(config: &Value, place: &str, others: &[&str]) -> Result<(Rules, Vec<String>)> {
        let bad = |name: &'static str, expected: &'static str| InferError::Option {
            option: name,
            expected,
            found: format!("{}` in `{place}", config[name]),
        };
        let given = |name: &str| config.get(name).filter(|v| !v.is_null());
        let count = |name: &'static str| match given(name) {
            None => Ok(0),
            Some(v) => v.as_u64().map(|n| n as usize).ok_or_else(|| bad(name, "a count")),
        };
        let ids = |name: &'static str, value: &Value| -> Result<Vec<u32>> {
            let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
            let list = value.as_array().and_then(|list| list.iter().map(one).collect::<Option<Vec<_>>>());
            list.ok_or_else(|| bad(name, "token ids"))
        };
        let list = |name: &'static str| given(name).map_or(Ok(Vec::new()), |v| ids(name, v));
        let repetition_penalty = match given("repetition_penalty") {
            None => None,
            Some(v) => match v.as_f64() {
                Some(p) if p > 0.0 => Some(p as f32).filter(|&p| p != 1.0),
                _ => return Err(bad("repetition_penalty", "a number above 0")),
            },
        };
        let bad_words_ids = match given("bad_words_ids") {
            None => Vec::new(),
            Some(v) => v
                .as_array()
                .ok_or_else(|| bad("bad_words_ids", "a list of lists of token ids"))?
                .iter()
                .map(|run| ids("bad_words_ids", run))
                .collect::<Result<_>>()?,
        };
        let rules = Rules {
            repetition_penalty,
            no_repeat_ngram_size: Some(count("no_repeat_ngram_size")?).filter(|&n| n > 0),
            bad_words_ids,
            min_length: count("min_length")?,
            min_new_tokens: count("min_new_tokens")?,
            suppress_tokens: list("suppress_tokens")?,
            begin_suppress_tokens: list("begin_suppress_tokens")?,
        };
        let acts = |value: &Value, neutral: f64| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(a) => !a.is_empty(),
            Value::Object(o) => !o.is_empty(),
            other => other.as_f64() != Some(neutral),
        };
        let notes = NOT_CARRIED_OUT
            .iter()
            .filter(|(name, neutral)| !others.contains(name) && acts(&config[*name], *neutral))
            .map(|(name, _)| format!("`{name}: {}` in `{place}` is not carried out", config[*name]))
            .collect();
        Ok((rules, notes))
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Rules::default()
    }

    /// Changes the logits that follow `prompt` and the `done` tokens generated after it, of which the first `given` were given.
    pub fn apply(&self, prompt: &[u32], done: &[u32], given: usize, eos_ids: &[u32], logits: &mut [f32]) {
        let sequence: Vec<u32> = prompt.iter().chain(done).copied().collect();
        if let Some(penalty) = self.repetition_penalty {
            let mut seen = sequence.clone();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
                }
            }
        }
        let mut ban = |id: u32| {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        };
        if let Some(size) = self.no_repeat_ngram_size
            && sequence.len() + 1 >= size
        {
            let last = &sequence[sequence.len() + 1 - size..];
            sequence.windows(size).filter(|run| run[..size - 1] == *last).for_each(|run| ban(run[size - 1]));
        }
        for run in &self.bad_words_ids {
            let Some((&word, before)) = run.split_last() else { continue };
            // A run that is an end token alone stays allowed.
            if !(before.is_empty() && eos_ids.contains(&word)) && sequence.ends_with(before) {
                ban(word);
            }
        }
        if sequence.len() < self.min_length || done.len() < self.min_new_tokens {
            eos_ids.iter().for_each(|&id| ban(id));
        }
        self.suppress_tokens.iter().for_each(|&id| ban(id));
        if done.len() == given {
            self.begin_suppress_tokens.iter().for_each(|&id| ban(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GenerateOptions, generate};
    use models::{LoadOptions, ModelInput};
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn continuations_are_those_of_the_reference() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        let fixture: Value = serde_json::from_slice(&std::fs::read(root.join("infer/rules.json")).unwrap()).unwrap();
        let folder = root.join("models").join(fixture["folder"].as_str().unwrap());
        let options = LoadOptions { dtype: Some(tensor::DType::F32) };
        let (model, _) = models::load(&folder, &options).unwrap();
        let ids =
            |v: &Value| -> Vec<u32> { v.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect() };
        let prompt = ids(&fixture["prompt"]);
        let input = ModelInput {
            positions: (0..prompt.len() as u32).collect(),
            cu_seqlens: [0, prompt.len()].as_slice().into(),
            ids: prompt,
            ..ModelInput::default()
        };
        for case in fixture["cases"].as_array().unwrap() {
            let config = &case["generation_config"];
            let (rules, notes) = Rules::read(config, "here").unwrap();
            assert!(notes.is_empty(), "{notes:?}");
            let eos_ids = match &config["eos_token_id"] {
                Value::Null => Vec::new(),
                Value::Array(_) => ids(&config["eos_token_id"]),
                one => vec![one.as_u64().unwrap() as u32],
            };
            let max_new_tokens = fixture["count"].as_u64().unwrap() as usize;
            let options = GenerateOptions { max_new_tokens, eos_ids, rules, ..GenerateOptions::default() };
            assert_eq!(generate(&model, &input, &options).unwrap(), [ids(&case["new_ids"])], "{config}");
        }
    }

    #[test]
    fn what_is_not_carried_out_is_named_and_what_is_wrong_refused() {
        let inert = json!({"num_beams": 1, "forced_eos_token_id": null, "sequence_bias": {}, "temperature": 0.2});
        assert_eq!(Rules::read(&inert, "f").unwrap(), (Rules::default(), Vec::new()));
        let (_, notes) = Rules::read(&json!({"num_beams": 3, "forced_eos_token_id": 7}), "f").unwrap();
        assert_eq!(
            notes,
            ["`num_beams: 3` in `f` is not carried out", "`forced_eos_token_id: 7` in `f` is not carried out"]
        );
        let refused = |config: Value| Rules::read(&config, "f").unwrap_err().to_string();
        assert_eq!(
            refused(json!({"repetition_penalty": 0})),
            "`repetition_penalty`: expected a number above 0, found `0` in `f`"
        );
        assert_eq!(
            refused(json!({"suppress_tokens": [-1]})),
            "`suppress_tokens`: expected token ids, found `[-1]` in `f`"
        );
    }
}
