//! Owns how a record becomes source and target of a sequence-to-sequence model: language tags, ends, the first token that
//! is given. It refuses records that are more than one question and one answer, and media.
//!
//! Source: `NllbTokenizer` and `M2M100Tokenizer` of `transformers`: `[language] tokens </s>` on both sides, or, with
//! `legacy_behaviour`, `tokens </s> [language]`.

use std::path::Path;

use serde_json::Value;

use crate::batch::{Encoded, RecordSize};
use crate::error::{DataError, RecordError};
use crate::options::EncodeOptions;
use crate::record::{Role, Sample};
use crate::tokenizer::{Tokenizer, read_optional};

/// Families that write a target from a source, by `model_type`.
const FAMILIES: [&str; 1] = ["m2m_100"];
/// The languages that the classes take where nothing names one.
const USUAL_SOURCES: [&str; 2] = ["eng_Latn", "en"];

/// The languages of a checkpoint and how they stand in the text.
#[derive(Debug, Clone)]
pub(crate) struct TextPair {
    src_lang: Option<String>,
    tgt_lang: Option<String>,
    /// The first token of every target, where the checkpoint's generation settings name one.
    forced_bos: Option<u32>,
    legacy: bool,
    eos: u32,
}

/// Source and target of a record in tokens.
struct Sides {
    source: Vec<u32>,
    target: Vec<u32>,
    is_prompt: bool,
}

impl TextPair {
    /// The settings of a checkpoint folder; none for a family that has no targets of its own.
    pub fn load(dir: &Path, config: &Value, tokenizer: &Tokenizer) -> Result<Option<Self>, DataError> {
        if !config["model_type"].as_str().is_some_and(|name| FAMILIES.contains(&name)) {
            return Ok(None);
        }
        let path = dir.join("tokenizer_config.json");
        let own = read_optional(&path)?;
        let Some(eos) = tokenizer.special("eos_token").and_then(|token| tokenizer.id_of(token)) else {
            return Err(DataError::checkpoint(&path, "names no `eos_token`, which ends sources and targets", "add it"));
        };
        let generation = read_optional(&dir.join("generation_config.json"))?;
        let forced = [&generation["forced_bos_token_id"], &config["forced_bos_token_id"]];
        let forced_bos = forced.into_iter().find_map(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        let language = |name: &str| own[name].as_str().map(str::to_owned);
        let legacy = own["legacy_behaviour"].as_bool().unwrap_or(false);
        Ok(Some(Self { src_lang: language("src_lang"), tgt_lang: language("tgt_lang"), forced_bos, legacy, eos }))
    }

    /// The same with the languages that another folder's tokenizer names, such as that of an adapter.
    pub fn with_languages_of(mut self, dir: &Path) -> Result<Self, DataError> {
        let own = read_optional(&dir.join("tokenizer_config.json"))?;
        for (name, slot) in [("src_lang", &mut self.src_lang), ("tgt_lang", &mut self.tgt_lang)] {
            if let Some(language) = own[name].as_str() {
                *slot = Some(language.to_owned());
                if name == "tgt_lang" {
                    // What this folder names wins over the generation settings of the other.
                    self.forced_bos = None;
                }
            }
        }
        Ok(self)
    }

    /// The token of a language.
    pub fn language(&self, tokenizer: &Tokenizer, name: &str) -> Result<u32, DataError> {
        known(tokenizer, &Sample::new(name, Vec::new()), name)
    }

    /// The record as the model sees it: source ids, target ids as labels.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        sample: &Sample,
        options: &EncodeOptions,
    ) -> Result<Encoded, DataError> {
        let Sides { source, target, is_prompt } = self.sides(tokenizer, sample, options)?;
        let text = format!("{}\n{}", tokenizer.decode(&source, false)?, tokenizer.decode(&target, false)?);
        let start = text.find('\n').map_or(0, |end| end + 1);
        let labels = if is_prompt { Vec::new() } else { target.iter().map(|&id| id as i32).collect() };
        Ok(Encoded {
            id: sample.id.clone(),
            index: sample.origin.index,
            spans: (!is_prompt).then_some(start..text.len()).into_iter().collect(),
            ids: source,
            labels,
            target: Some(target),
            text,
            ..Encoded::default()
        })
    }

    /// What the record takes of a batch.
    pub fn measure(
        &self,
        tokenizer: &Tokenizer,
        sample: &Sample,
        options: &EncodeOptions,
    ) -> Result<RecordSize, DataError> {
        let Sides { source, target, .. } = self.sides(tokenizer, sample, options)?;
        Ok(RecordSize { tokens: (source.len() + target.len()) as u32, patches: 0 })
    }

    fn sides(&self, tokenizer: &Tokenizer, sample: &Sample, options: &EncodeOptions) -> Result<Sides, DataError> {
        let is_prompt = options.add_generation_prompt;
        let (question, answer) = texts(sample, is_prompt)?;
        let usual = || USUAL_SOURCES.into_iter().find(|name| language_id(tokenizer, name).is_some());
        let source_lang = sample.src_lang.as_deref().or(options.src_lang.as_deref()).or(self.src_lang.as_deref());
        let Some(source_lang) = source_lang.or_else(usual) else {
            return Err(fault(sample, "no_language", "nothing names the source's language")
                .hint("give `data.src_lang`, or `src_lang` in the record")
                .into());
        };
        let named = sample.tgt_lang.as_deref().or(options.tgt_lang.as_deref());
        let source = self.tagged(tokenizer, sample, &question, source_lang)?;
        let target = match answer {
            // As the tokenizer's class does: without a target language the source's is taken.
            Some(answer) => {
                let language = named.or(self.tgt_lang.as_deref()).unwrap_or(source_lang);
                self.tagged(tokenizer, sample, &answer, language)?
            }
            None => match (named, self.forced_bos, self.tgt_lang.as_deref()) {
                (Some(language), _, _) | (None, None, Some(language)) => vec![known(tokenizer, sample, language)?],
                (None, Some(id), _) => vec![id],
                (None, None, None) => Vec::new(),
            },
        };
        for (side, ids) in [("source", &source), ("target", &target)] {
            if let Some(limit) = options.max_length.filter(|&limit| ids.len() > limit) {
                return Err(fault(sample, "too_long", format!("the {side} is too long"))
                    .expected(format!("at most {limit} tokens (`max_length`)"), ids.len().to_string())
                    .hint("raise `data.max_length`, shorten the text, or remove the record")
                    .into());
            }
        }
        Ok(Sides { source, target, is_prompt })
    }

    fn tagged(
        &self,
        tokenizer: &Tokenizer,
        sample: &Sample,
        text: &str,
        language: &str,
    ) -> Result<Vec<u32>, DataError> {
        let language = known(tokenizer, sample, language)?;
        let tokens = tokenizer.encode_plain(text)?;
        let (before, after) = match self.legacy {
            false => (vec![language], vec![self.eos]),
            true => (Vec::new(), vec![self.eos, language]),
        };
        Ok([before, tokens, after].concat())
    }
}

/// The one question and, unless it is to be written, the one answer.
fn texts(sample: &Sample, is_prompt: bool) -> Result<(String, Option<String>), DataError> {
    if sample.media().next().is_some() {
        return Err(fault(sample, "no_image_processor", "the record has media, and the model reads text alone")
            .hint("use a model that sees, or the `seq2seq` format, where `video` is a reference only")
            .into());
    }
    let (question, answer) = match sample.conversation.as_slice() {
        [question] if is_prompt => (question, None),
        [question, answer] if !is_prompt => (question, Some(answer)),
        turns => {
            let wanted = if is_prompt { "one question" } else { "one question and one answer" };
            return Err(fault(sample, "not_a_pair", "a sequence-to-sequence model has no dialogues")
                .expected(wanted, format!("{} turns", turns.len()))
                .hint("split the record")
                .into());
        }
    };
    if question.role != Role::User || answer.is_some_and(|answer| answer.role != Role::Assistant) {
        return Err(fault(sample, "not_a_pair", "a sequence-to-sequence model has no system text")
            .expected("a question, then an answer", "another order")
            .hint("remove the system turn")
            .into());
    }
    Ok((question.joined_text(), answer.map(|answer| answer.joined_text())))
}

/// The token of a language: its name, or the name as M2M100 writes it.
fn language_id(tokenizer: &Tokenizer, name: &str) -> Option<u32> {
    let names = [name.to_owned(), format!("__{name}__")];
    names.iter().find_map(|name| tokenizer.id_of(name).filter(|id| tokenizer.is_added(*id)))
}

fn known(tokenizer: &Tokenizer, sample: &Sample, name: &str) -> Result<u32, DataError> {
    if let Some(id) = language_id(tokenizer, name) {
        return Ok(id);
    }
    let languages = tokenizer.languages();
    let start = |other: &&String| name.get(..2).is_some_and(|start| other.starts_with(start));
    let mut near: Vec<&String> = languages.iter().filter(start).chain(&languages).collect();
    near.dedup();
    let few: Vec<String> = near.iter().take(5).map(|name| format!("`{name}`")).collect();
    Err(fault(sample, "unknown_language", format!("`{name}` is not a language of this tokenizer"))
        .expected(format!("one of its {} languages, such as {}", languages.len(), few.join(", ")), format!("`{name}`"))
        .hint("look at `src_lang` and `tgt_lang` of the record, of `data`, or of the command line")
        .into())
}

fn fault(sample: &Sample, reason: &'static str, what: impl Into<String>) -> RecordError {
    RecordError::new(reason, &sample.origin, Some(&sample.id), what)
}
