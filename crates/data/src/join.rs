//! Owns the tokenizer files of a model that is joined of parts: those of the language model, with the tokens that stand around
//! media. It refuses to know what the tokens are for.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::DataError;
use crate::processor::FILES;
use crate::tokenizer::{Tokenizer, read_optional};

/// Copies the tokenizer, template and generation files of `language` into `to`, with `tokens` added. Returns the rows that the
/// embedding table needs, and how many of them are new.
///
/// # Errors
/// A file cannot be read or written, or the folder holds no tokenizer.
pub fn join_tokenizer(language: &Path, to: &Path, tokens: &[&str]) -> Result<(usize, usize), DataError> {
    for name in FILES.iter().filter(|name| !name.contains("processor_config") && !name.contains("feature_extractor")) {
        let from = language.join(name);
        if from.is_file() {
            let bytes = std::fs::read(&from).map_err(|e| DataError::io(&from, e))?;
            write(&to.join(name), &bytes)?;
        }
    }
    let config = read_optional(&language.join("config.json"))?;
    let path = language.join("tokenizer.json");
    let mut tokenizer = Tokenizer::load(language, &config)?;
    let added = tokenizer.add_special(tokens, &path)?;
    if added > 0 {
        write(&to.join("tokenizer.json"), tokenizer.to_json(&path)?.as_bytes())?;
        let place = to.join("tokenizer_config.json");
        let mut settings = read_optional(&place)?;
        if let Some(known) = settings.get_mut("added_tokens_decoder").and_then(Value::as_object_mut) {
            for token in tokens {
                let id = tokenizer.id_of(token).map(|id| id.to_string()).unwrap_or_default();
                let entry = json!({"content": token, "lstrip": false, "normalized": false, "rstrip": false,
                    "single_word": false, "special": true});
                known.insert(id, entry);
            }
            write(&place, format!("{settings:#}\n").as_bytes())?;
        }
    }
    Ok((tokenizer.num_rows(), added))
}

pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| DataError::io(parent, e))?;
    }
    hub::atomic_write(path, bytes).map_err(|e| DataError::io(path, std::io::Error::other(e.to_string())))
}
