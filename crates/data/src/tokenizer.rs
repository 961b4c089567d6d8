//! Owns [`Tokenizer`]: a checkpoint's `tokenizer.json` (or `tokenizer.model`, see [`crate::sentencepiece`]) with the special tokens of its configuration files.
//! It refuses templates and media: it turns text into ids with byte ranges, and ids into text.
//!
//! Source: `transformers` 5.23 `tokenization_utils_tokenizers.py` (`TokenizersBackend`, which LLaVA checkpoints use):
//! `tokenizer.json` decides (`add_bos_token` and `add_eos_token` have no effect beside it), and tokens that only
//! `tokenizer_config.json` knows are added.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::AddedToken;

use crate::error::DataError;
use crate::sentencepiece;

/// Tokens that end a turn in the families we know, by their text; those that the vocabulary has end an answer.
const END_OF_TURN: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|return|>",
    "<end_of_utterance>",
];

/// The named special tokens of Hugging Face.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token with the bytes of the text it stands for; both ends 0 for a token added by the post-processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub id: u32,
    pub bytes: Range<usize>,
}

/// A tokenizer with its special tokens.
pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    specials: BTreeMap<String, String>,
    eos_ids: Vec<u32>,
    end_ids: Vec<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("specials", &self.specials).field("eos_ids", &self.eos_ids).finish()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `generation_config.json`.
    ///
    /// # Errors
    /// A file is missing or broken, or a declared token has another id than the one it gets.
    pub fn load(dir: &Path, model_config: &Value) -> Result<Self, DataError> {
        let config_path = dir.join("tokenizer_config.json");
        let config = read_optional(&config_path)?;
        let (path, mut inner) = read_vocabulary(dir, &config)?;
        // Over-long text is refused, never cut, and nothing is padded.
        inner.with_truncation(None).map_err(|e| DataError::checkpoint(&path, e.to_string(), "copy the file again"))?;
        inner.with_padding(None);
        let map = read_optional(&dir.join("special_tokens_map.json"))?;
        let mut specials = BTreeMap::new();
        for name in NAMED {
            if let Some(text) = token_text(&config[name]).or_else(|| token_text(&map[name])) {
                specials.insert(name.to_owned(), text);
            }
        }
        // Extra named tokens such as `image_token` are visible to templates too.
        for source in [&config["extra_special_tokens"], &config["model_specific_special_tokens"]] {
            for (name, value) in source.as_object().into_iter().flatten() {
                if let Some(text) = token_text(value) {
                    specials.entry(name.clone()).or_insert(text);
                }
            }
        }
        if let Some(text) = token_text(&config["image_token"]) {
            specials.entry("image_token".into()).or_insert(text);
        }
        add_tokens(&mut inner, &config, &specials, &config_path)?;
        let generation = read_optional(&dir.join("generation_config.json"))?;
        let mut tokenizer = Self { inner, specials, eos_ids: Vec::new(), end_ids: Vec::new() };
        tokenizer.find_ends(&generation, model_config);
        Ok(tokenizer)
    }

    /// Makes texts tokens of their own, where they are none: with the ids behind those of the vocabulary.
    ///
    /// # Errors
    /// The tokenizer refuses one.
    pub fn add_marks(&mut self, marks: &[&str]) -> Result<(), DataError> {
        for mark in marks {
            if self.id_of(mark).is_none_or(|id| !self.is_added(id)) {
                self.inner.add_special_tokens([AddedToken::from(*mark, true)]).map_err(|e| {
                    DataError::checkpoint(
                        Path::new("tokenizer.json"),
                        format!("`{mark}` cannot be added: {e}"),
                        "copy the file again",
                    )
                })?;
            }
        }
        Ok(())
    }

    fn find_ends(&mut self, generation: &Value, model_config: &Value) {
        let own = self.special("eos_token").and_then(|t| self.id_of(t));
        let configured = [&generation["eos_token_id"], &model_config["eos_token_id"]]
            .into_iter()
            .chain([&model_config["text_config"]["eos_token_id"]])
            .map(ids_of)
            .find(|ids| !ids.is_empty())
            .unwrap_or_else(|| own.into_iter().collect());
        // The reference stops where `generation_config.json` says, and nowhere if it says nothing.
        self.eos_ids = if generation.is_null() { configured.clone() } else { ids_of(&generation["eos_token_id"]) };
        let by_text = END_OF_TURN.iter().filter_map(|t| self.id_of(t));
        let mut ends: Vec<u32> = configured.into_iter().chain(own).chain(by_text).collect();
        ends.sort_unstable();
        ends.dedup();
        self.end_ids = ends;
    }

    /// The ids of a text with the bytes they stand for. Special tokens of the post-processor (begin of sequence) are
    /// added unless the text already begins with the begin token.
    pub fn encode(&self, text: &str) -> Result<Vec<Piece>, DataError> {
        let has_bos = self.special("bos_token").is_some_and(|bos| !bos.is_empty() && text.starts_with(bos));
        let encoding = self.inner.encode(text, !has_bos).map_err(untokenisable)?;
        let pieces = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(pieces.map(|(&id, &(start, end))| Piece { id, bytes: start..end }).collect())
    }

    /// As [`Tokenizer::encode`] for a text with marks that are no tokens: it is tokenised piece by piece between them, with
    /// special tokens at the first piece alone, and each mark becomes the id that is given with it.
    ///
    /// Source: `tokenizer_image_token` of the published `mm_utils.py` of LLaVA.
    pub fn encode_between(&self, text: &str, marks: &[(&str, u32)]) -> Result<Vec<Piece>, DataError> {
        let next = |from: usize| {
            let found = marks.iter().filter_map(|&(mark, id)| Some((from + text[from..].find(mark)?, mark.len(), id)));
            found.min_by_key(|(at, ..)| *at)
        };
        let mut pieces = Vec::new();
        let mut at = 0;
        loop {
            let found = next(at);
            let end = found.map_or(text.len(), |(place, ..)| place);
            let words = &text[at..end];
            if at == 0 {
                pieces.extend(self.encode(words)?);
            } else {
                let encoding = self.inner.encode(words, false).map_err(untokenisable)?;
                let spans = encoding.get_ids().iter().zip(encoding.get_offsets());
                pieces.extend(spans.map(|(&id, &(from, to))| Piece { id, bytes: at + from..at + to }));
            }
            let Some((place, length, id)) = found else { return Ok(pieces) };
            at = place + length;
            pieces.push(Piece { id, bytes: place..at });
        }
    }

    /// Adds special tokens; those that are known stay what they are. Returns how many are new.
    pub fn add_special(&mut self, tokens: &[&str], path: &Path) -> Result<usize, DataError> {
        let before = self.inner.get_vocab_size(true);
        for token in tokens {
            self.inner.add_special_tokens([AddedToken::from((*token).to_owned(), true)]).map_err(|e| {
                DataError::checkpoint(path, format!("`{token}` cannot be added: {e}"), "copy the file again")
            })?;
        }
        Ok(self.inner.get_vocab_size(true) - before)
    }

    /// Rows that a table needs for every token: one more than the highest id.
    pub fn num_rows(&self) -> usize {
        let highest = self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        highest.max(self.inner.get_vocab_size(true))
    }

    /// The text of a `tokenizer.json`.
    pub fn to_json(&self, path: &Path) -> Result<String, DataError> {
        self.inner
            .to_string(true)
            .map_err(|e| DataError::checkpoint(path, format!("cannot be written: {e}"), "copy the tokenizer again"))
    }

    /// The ids of a text without any token that a post-processor would add.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode(text, false).map_err(untokenisable)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Added tokens that look like languages, `eng_Latn` or `__en__`, in the order of their ids.
    pub fn languages(&self) -> Vec<String> {
        let is_script = |text: &str| text.len() == 4 && text.starts_with(|c: char| c.is_ascii_uppercase());
        let is_language = |text: &str| match text.strip_prefix("__").and_then(|rest| rest.strip_suffix("__")) {
            Some(name) => !name.is_empty(),
            None => text.split_once('_').is_some_and(|(name, script)| name.len() == 3 && is_script(script)),
        };
        let mut found: Vec<(u32, &str)> = (self.inner.get_added_vocabulary().get_added_tokens_decoder().iter())
            .filter(|(_, token)| is_language(&token.content))
            .map(|(id, token)| (*id, token.content.as_str()))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, name)| name.trim_matches('_').to_owned()).collect()
    }

    /// The text of ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, DataError> {
        self.inner.decode(ids, skip_special).map_err(|e| DataError::Template {
            origin: "tokenizer".into(),
            what: format!("the ids cannot be decoded: {e}"),
            hint: "check that the ids come from this checkpoint".into(),
        })
    }

    /// The id of a token's text.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a special token by its Hugging Face name.
    pub fn special(&self, name: &str) -> Option<&str> {
        self.specials.get(name).map(String::as_str)
    }

    /// All special tokens by name, as templates see them.
    pub fn specials(&self) -> &BTreeMap<String, String> {
        &self.specials
    }

    /// Ids that end a generation.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Whether the token ends a turn.
    pub fn ends_turn(&self, id: u32) -> bool {
        self.end_ids.binary_search(&id).is_ok()
    }

    /// Whether a token of this text is always taken whole, wherever it stands.
    pub fn is_added(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id)
    }
}

/// `tokenizer.json`, or what a model of SentencePiece stands for where there is none.
fn read_vocabulary(dir: &Path, config: &Value) -> Result<(PathBuf, tokenizers::Tokenizer), DataError> {
    let path = dir.join("tokenizer.json");
    let not_one = |path: &Path, e: tokenizers::Error| {
        DataError::checkpoint(path, format!("not a tokenizer: {e}"), "copy the file again")
    };
    if path.is_file() {
        let inner = tokenizers::Tokenizer::from_file(&path).map_err(|e| not_one(&path, e))?;
        return Ok((path, inner));
    }
    let model = dir.join(sentencepiece::MODEL_FILE);
    if model.is_file() {
        let text = sentencepiece::tokenizer_json(&model, config)?;
        let inner = tokenizers::Tokenizer::from_bytes(&text).map_err(|e| not_one(&model, e))?;
        return Ok((model, inner));
    }
    let hint = match dir.join("vocab.json").is_file() {
        true => {
            "`vocab.json` alone cannot be read; write the fast tokenizer with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`"
        }
        false => "copy the tokenizer files of the checkpoint into the folder",
    };
    Err(DataError::checkpoint(&path, "no such file", hint))
}

fn untokenisable(error: tokenizers::Error) -> DataError {
    DataError::Template {
        origin: "tokenizer".into(),
        what: format!("the text cannot be tokenised: {error}"),
        hint: "check `tokenizer.json`".into(),
    }
}

/// A JSON file as a value, null when it does not exist.
pub(crate) fn read_optional(path: &Path) -> Result<Value, DataError> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    hub::json::read_json(path)
        .map_err(|e| DataError::checkpoint(path, format!("cannot be read: {e}"), "copy the file again"))
}

/// A token written as text or as an object with `content`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

fn ids_of(value: &Value) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    }
}

/// Adds tokens that only the configuration knows, and makes the named special tokens indivisible.
fn add_tokens(
    inner: &mut tokenizers::Tokenizer,
    config: &Value,
    specials: &BTreeMap<String, String>,
    path: &Path,
) -> Result<(), DataError> {
    let known = |inner: &tokenizers::Tokenizer, text: &str| {
        inner
            .token_to_id(text)
            .is_some_and(|id| inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id))
    };
    let failed = |e: tokenizers::Error| {
        DataError::checkpoint(path, format!("a token cannot be added: {e}"), "copy the file again")
    };
    let mut declared: Vec<(u32, &Value)> = config["added_tokens_decoder"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((id.parse().ok()?, token)))
        .collect();
    declared.sort_by_key(|(id, _)| *id);
    for (id, token) in declared {
        let Some(text) = token_text(token) else { continue };
        if known(inner, &text) {
            continue;
        }
        let flag = |name: &str, default: bool| token[name].as_bool().unwrap_or(default);
        let added = AddedToken {
            content: text.clone(),
            single_word: flag("single_word", false),
            lstrip: flag("lstrip", false),
            rstrip: flag("rstrip", false),
            normalized: flag("normalized", !flag("special", false)),
            special: flag("special", false),
        };
        if added.special {
            inner.add_special_tokens([added]).map_err(failed)?;
        } else {
            inner.add_tokens([added]).map_err(failed)?;
        }
        if inner.token_to_id(&text) != Some(id) {
            return Err(DataError::checkpoint(
                path,
                format!("token `{text}` is declared with id {id} and gets id {:?}", inner.token_to_id(&text)),
                "`tokenizer.json` and `tokenizer_config.json` belong to different checkpoints; copy both again",
            ));
        }
    }
    for text in specials.values() {
        if !known(inner, text) {
            inner.add_special_tokens([AddedToken::from(text.clone(), true)]).map_err(failed)?;
        }
    }
    Ok(())
}
