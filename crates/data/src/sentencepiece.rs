//! Owns SentencePiece models (`tokenizer.model`) of the Llama kind, which older checkpoints have in place of `tokenizer.json`:
//! read as `transformers` 5.23 reads them, and handed on as the text of a `tokenizer.json`. It refuses models of other kinds,
//! and to tokenise.
//!
//! Source: `sentencepiece_model.proto` of SentencePiece; `LlamaTokenizer`, `SentencePieceExtractor` and `generate_merges` of
//! `transformers`. Pieces that join to a piece are merged in the order of that piece's id.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::DataError;

/// The name of the file.
pub(crate) const MODEL_FILE: &str = "tokenizer.model";
/// `ModelProto.SentencePiece.Type`.
const NORMAL: u64 = 1;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
/// `TrainerSpec.ModelType`.
const UNIGRAM: u64 = 1;
const BPE: u64 = 2;
/// Pieces that a vocabulary may have; published ones have up to a quarter of a million.
const MAX_PIECES: usize = 4_000_000;

/// What of a model file counts.
#[derive(Debug, Default, PartialEq)]
struct Model {
    /// Text and type by id.
    pieces: Vec<(String, u64)>,
    kind: u64,
    byte_fallback: bool,
    has_normalizer_map: bool,
}

/// The text of the `tokenizer.json` that a model stands for, with the settings of `tokenizer_config.json`.
///
/// # Errors
/// The file cannot be read, is no such model, or one of another kind.
pub(crate) fn tokenizer_json(path: &Path, config: &Value) -> Result<String, DataError> {
    let bytes = std::fs::read(path)
        .map_err(|e| DataError::checkpoint(path, format!("cannot be read: {e}"), "copy the file again"))?;
    let broken = |what: String| DataError::checkpoint(path, what, "copy the file again");
    let model = read(&bytes).map_err(|what| broken(format!("not a SentencePiece model: {what}")))?;
    let other = |what: &str| {
        Err(DataError::checkpoint(
            path,
            what,
            "write the fast tokenizer with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`",
        ))
    };
    match model.kind {
        BPE => {}
        UNIGRAM => return other("a SentencePiece model of the unigram kind; only those of pairs (Llama's) are read"),
        _ => return other("a SentencePiece model of words or characters; only those of pairs (Llama's) are read"),
    }
    if !model.byte_fallback {
        return other("a SentencePiece model without bytes for unknown characters; only those of Llama are read");
    }
    if model.has_normalizer_map {
        return other("a SentencePiece model that rewrites characters first; only those of Llama are read");
    }
    Ok(json_of(&model, config).to_string())
}

fn json_of(model: &Model, config: &Value) -> Value {
    let ids: HashMap<&str, usize> =
        model.pieces.iter().enumerate().map(|(id, (text, _))| (text.as_str(), id)).collect();
    let merges = merges(model, &ids);
    let named = |key: &str, usual: &str| {
        config[key].as_str().or_else(|| config[key]["content"].as_str()).unwrap_or(usual).to_owned()
    };
    let (unk, bos, eos) = (named("unk_token", "<unk>"), named("bos_token", "<s>"), named("eos_token", "</s>"));
    let mut added: Vec<Value> = Vec::new();
    for (id, (text, kind)) in model.pieces.iter().enumerate() {
        let is_named = [&unk, &bos, &eos].contains(&text);
        if is_named || [CONTROL, USER_DEFINED].contains(kind) {
            added.push(json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": is_named || *kind == CONTROL}));
        }
    }
    let flag = |key: &str, usual: bool| config[key].as_bool().unwrap_or(usual);
    let has_prefix = flag("add_prefix_space", true);
    let scheme = match (has_prefix, flag("legacy", false)) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let mut decoders =
        vec![json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}), json!({"type": "ByteFallback"})];
    decoders.push(json!({"type": "Fuse"}));
    if has_prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let vocab: serde_json::Map<String, Value> =
        model.pieces.iter().enumerate().map(|(id, (text, _))| (text.clone(), Value::from(id))).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false},
        "post_processor": post_processor(&ids, config, &bos, &eos),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges},
    })
}

/// Begin and end tokens around a text, as the configuration wants them.
fn post_processor(ids: &HashMap<&str, usize>, config: &Value, bos: &str, eos: &str) -> Value {
    let flag = |key: &str, usual: bool| config[key].as_bool().unwrap_or(usual);
    let around = [(flag("add_bos_token", false), bos), (flag("add_eos_token", false), eos)];
    let token = |text: &str, type_id: usize| json!({"SpecialToken": {"id": text, "type_id": type_id}});
    let part = |name: &str, type_id: usize| {
        let mut parts = Vec::new();
        if around[0].0 {
            parts.push(token(bos, type_id));
        }
        parts.push(json!({"Sequence": {"id": name, "type_id": type_id}}));
        if around[1].0 {
            parts.push(token(eos, type_id));
        }
        parts
    };
    let mut special = serde_json::Map::new();
    for (_, text) in around.iter().filter(|(is_on, _)| *is_on) {
        if let Some(id) = ids.get(text) {
            special.insert((*text).to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}));
        }
    }
    let (single, second) = (part("A", 0), part("B", 1));
    let pair: Vec<Value> = single.iter().cloned().chain(second).collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special})
}

/// Every pair of pieces that joins to a piece: by the id of what they join to, then by the length of the left one, of the
/// right one, in characters; equal ones by the ids of the two.
fn merges(model: &Model, ids: &HashMap<&str, usize>) -> Vec<[String; 2]> {
    let mut all = Vec::new();
    for (id, (text, _)) in model.pieces.iter().enumerate() {
        // Of a text that is there twice the last id counts, as in a dictionary.
        if ids.get(text.as_str()) != Some(&id) {
            continue;
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                all.push((id, left.chars().count(), right.chars().count(), l, r, left, right));
            }
        }
    }
    all.sort_unstable();
    all.into_iter().map(|(.., left, right)| [left.to_owned(), right.to_owned()]).collect()
}

/// Reads the fields that count. The error says what is wrong.
fn read(bytes: &[u8]) -> Result<Model, String> {
    let mut model = Model { kind: UNIGRAM, ..Model::default() };
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(piece)) => {
                if model.pieces.len() == MAX_PIECES {
                    return Err(format!("more than {MAX_PIECES} pieces"));
                }
                model.pieces.push(read_piece(piece)?);
            }
            (2, Field::Bytes(trainer)) => {
                for field in Fields(trainer) {
                    match field? {
                        (3, Field::Number(kind)) => model.kind = kind,
                        (35, Field::Number(flag)) => model.byte_fallback = flag != 0,
                        _ => {}
                    }
                }
            }
            (3, Field::Bytes(normalizer)) => {
                for field in Fields(normalizer) {
                    if let (2, Field::Bytes(map)) = field? {
                        model.has_normalizer_map = !map.is_empty();
                    }
                }
            }
            _ => {}
        }
    }
    match model.pieces.is_empty() {
        true => Err("it holds no piece".to_owned()),
        false => Ok(model),
    }
}

fn read_piece(bytes: &[u8]) -> Result<(String, u64), String> {
    let (mut text, mut kind) = (String::new(), NORMAL);
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(bytes)) => {
                text = std::str::from_utf8(bytes).map_err(|_| "a piece is not UTF-8".to_owned())?.to_owned();
            }
            (3, Field::Number(number)) => kind = number,
            _ => {}
        }
    }
    Ok((text, kind))
}

/// A value of a message on the wire (protocol buffers, wire format).
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a fixed size, which nothing here needs.
    Fixed,
}

/// The fields of a message, with their numbers.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, Field<'a>), String> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Fixed
            }
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => {
                self.take(4)?;
                Field::Fixed
            }
            other => return Err(format!("wire type {other} is not known")),
        };
        Ok((tag >> 3, value))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (head, rest) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| format!("a field of {count} bytes goes beyond the end, {} bytes away", self.0.len()))?;
        self.0 = rest;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for (i, &byte) in self.0.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f).checked_shl(7 * i as u32).unwrap_or(0);
            if byte < 0x80 {
                self.0 = &self.0[i + 1..];
                return Ok(value);
            }
        }
        Err("a number has no end".to_owned())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // Helpers of tests are outside `#[test]` functions.
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;

    fn field(number: u8, wire: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let tag = u64::from(number) << 3 | u64::from(wire);
        for value in std::iter::once(tag).chain((wire == 2).then_some(bytes.len() as u64)) {
            let mut rest = value;
            while rest >= 0x80 {
                out.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            out.push(rest as u8);
        }
        out.extend(bytes);
        out
    }

    fn model(pieces: &[(&str, u8)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (text, kind) in pieces {
            let piece = [field(1, 2, text.as_bytes()), field(2, 5, &[0; 4]), field(3, 0, &[*kind])].concat();
            out.extend(field(1, 2, &piece));
        }
        out.extend(field(2, 2, &[field(3, 0, &[2]), field(35, 0, &[1])].concat()));
        out
    }

    #[test]
    fn pairs_are_merged_in_the_order_of_what_they_join_to() {
        let bytes = model(&[("<unk>", 2), ("<s>", 3), ("ab", 1), ("abc", 1), ("a", 1), ("b", 1), ("bc", 1), ("c", 1)]);
        let model = read(&bytes).unwrap();
        assert!(model.byte_fallback && model.kind == BPE && !model.has_normalizer_map);
        let ids: HashMap<&str, usize> = model.pieces.iter().enumerate().map(|(id, p)| (p.0.as_str(), id)).collect();
        let found: Vec<String> = merges(&model, &ids).iter().map(|pair| pair.join("+")).collect();
        assert_eq!(found, ["a+b", "a+bc", "ab+c", "b+c"]);
    }

    fn fixtures() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/data/sentencepiece")
    }

    #[test]
    fn ids_and_texts_are_those_of_transformers() {
        let mut num_folders = 0;
        for entry in std::fs::read_dir(fixtures()).unwrap() {
            let dir = entry.unwrap().path();
            let name = dir.file_name().unwrap().to_string_lossy().into_owned();
            let tokenizer = Tokenizer::load(&dir, &Value::Null).unwrap();
            let expected: Value = serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
            for case in expected["cases"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                let ids = |key: &str| -> Vec<u32> {
                    case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
                };
                assert_eq!(tokenizer.encode_plain(text).unwrap(), ids("plain"), "{name}: {text:?}");
                // A text that begins with the begin token gets no second one here.
                if !text.starts_with("<s>") {
                    let found: Vec<u32> = tokenizer.encode(text).unwrap().into_iter().map(|piece| piece.id).collect();
                    assert_eq!(found, ids("ids"), "{name}: {text:?}");
                }
                for (key, skip) in [("decoded", false), ("skipped", true)] {
                    assert_eq!(
                        tokenizer.decode(&ids("ids"), skip).unwrap(),
                        case[key].as_str().unwrap(),
                        "{name}: {text:?}"
                    );
                }
            }
            num_folders += 1;
        }
        assert_eq!(num_folders, 4);
    }

    #[test]
    fn models_of_other_kinds_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |trainer: &[u8], normalizer: &[u8]| {
            let mut bytes = field(1, 2, &field(1, 2, b"a"));
            bytes.extend(field(2, 2, trainer));
            bytes.extend(field(3, 2, normalizer));
            let path = dir.path().join(MODEL_FILE);
            std::fs::write(&path, bytes).unwrap();
            tokenizer_json(&path, &Value::Null).unwrap_err().to_string()
        };
        assert!(refused(&field(3, 0, &[1]), &[]).contains("of the unigram kind"));
        assert!(refused(&field(3, 0, &[4]), &[]).contains("of words or characters"));
        assert!(refused(&field(3, 0, &[2]), &[]).contains("without bytes for unknown characters"));
        let pairs = [field(3, 0, &[2]), field(35, 0, &[1])].concat();
        assert!(refused(&pairs, &field(2, 2, b"map")).contains("rewrites characters"));
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_read_or_refused() {
        let bytes = model(&[("<unk>", 2), ("<s>", 3), ("</s>", 3), ("▁a", 1), ("a", 1)]);
        for end in 0..bytes.len() {
            let _ = read(&bytes[..end]);
        }
        assert_eq!(read(&[]), Err("it holds no piece".to_owned()));
        assert_eq!(
            read(&bytes[..7]).unwrap_err(),
            "a field of 14 bytes goes beyond the end, 5 bytes away",
            "the first piece is cut"
        );
        for at in 0..bytes.len() {
            for change in [1, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] ^= change;
                let _ = read(&bytes);
            }
        }
    }
}
