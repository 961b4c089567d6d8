//! Owns [`Processor`]: a checkpoint's tokenizer, chat template and picture settings, read from its files and written
//! back unchanged. The way from a record to ids is in `encode`. It refuses to order or batch records.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use media::RgbImage;
use serde_json::Value;

use crate::batch::Encoded;
use crate::cache::FrameCache;
use crate::clips::VideoDefaults;
use crate::error::DataError;
use crate::image::{ImageBackend, ImageSettings};
use crate::template::{ChatTemplate, ContentShape, builtin};
use crate::text_pair::TextPair;
use crate::tokenizer::{Tokenizer, read_optional};

/// Files of a checkpoint folder that belong to the processor, copied as they are.
const FILES: [&str; 18] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/default.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
    "feature_extractor_config.json",
];

/// A choice of chat template that wins over the checkpoint's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateChoice {
    /// One of the built-in ones: `plain`, `v0`, `v1`, `chatml`, `llava-1.5`.
    BuiltIn(String),
    /// The text of a Jinja template.
    Text(String),
}

/// How pictures stand in the text and how many tokens each takes.
#[derive(Debug, Clone)]
pub(crate) struct ImageTokens {
    pub text: String,
    pub id: u32,
    pub patch: usize,
    /// Tokens beside the patches (a class token), less the one that the `default` strategy drops.
    pub extra: i64,
}

impl ImageTokens {
    /// Tokens of a picture of this size.
    pub fn count(&self, height: usize, width: usize) -> usize {
        let patches = (height / self.patch) * (width / self.patch);
        usize::try_from(patches as i64 + self.extra).unwrap_or(0)
    }
}

/// A checkpoint's tokenizer, chat template and picture settings.
#[derive(Debug)]
pub struct Processor {
    dir: PathBuf,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: ChatTemplate,
    /// Whether the user's words are left out (template `plain`).
    pub(crate) media_only_user: bool,
    /// Picture settings and placeholder, where the checkpoint takes pictures.
    pub(crate) image: Option<(ImageSettings, ImageTokens)>,
    pub(crate) video: VideoDefaults,
    /// Languages and ends of a sequence-to-sequence checkpoint.
    pub(crate) pair: Option<TextPair>,
    pub(crate) cache: Option<Arc<FrameCache>>,
    now: i64,
}

impl Processor {
    /// Reads the tokenizer, template and processor files of a checkpoint folder.
    ///
    /// # Errors
    /// A file is missing, broken, or asks for something that is not supported.
    pub fn load(dir: &Path) -> Result<Self, DataError> {
        if !dir.is_dir() {
            return Err(DataError::checkpoint(dir, "no such folder", "give the folder of a checkpoint"));
        }
        let config = read_optional(&dir.join("config.json"))?;
        let tokenizer = Tokenizer::load(dir, &config)?;
        let processor_path = dir.join("processor_config.json");
        let processor = read_optional(&processor_path)?;
        let image = match image_settings(dir, &processor)? {
            Some(settings) => {
                let tokens = image_tokens(&processor_path, &processor, &config, &tokenizer)?;
                Some((settings, tokens))
            }
            None => None,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        let image_token = image.as_ref().map(|(_, t)| t.text.clone());
        let (template, media_only_user) = find_template(dir, &processor, &tokenizer, image_token.as_deref(), now)?;
        let video = video_defaults(dir, &processor)?;
        let pair = TextPair::load(dir, &config, &tokenizer)?;
        let dir = dir.to_path_buf();
        Ok(Self { dir, tokenizer, template, media_only_user, image, video, pair, cache: None, now })
    }

    /// Uses another chat template than the checkpoint's.
    ///
    /// # Errors
    /// The name is not known, or the template does not compile.
    pub fn with_template(mut self, choice: &TemplateChoice) -> Result<Self, DataError> {
        let image_token = self.image.as_ref().map(|(_, t)| t.text.as_str());
        (self.template, self.media_only_user) = match choice {
            TemplateChoice::BuiltIn(name) => compile_builtin(name, &self.tokenizer, self.now)?,
            TemplateChoice::Text(source) => {
                let specials = self.tokenizer.specials().clone();
                (ChatTemplate::compile(source, "the plan", specials, image_token, self.now)?, false)
            }
        };
        Ok(self)
    }

    /// Scales pictures as another library does (see [`ImageBackend`]).
    #[must_use]
    pub fn with_image_backend(mut self, backend: ImageBackend) -> Self {
        self.image = self.image.map(|(settings, tokens)| (settings.with_backend(backend), tokens));
        self
    }

    /// Takes frames of clips from a cache, and adds those that it lacks. What is encoded is the same with and without.
    #[must_use]
    pub fn with_frame_cache(mut self, cache: Option<Arc<FrameCache>>) -> Self {
        self.cache = cache;
        self
    }

    /// Takes the languages that the tokenizer's files in another folder name, such as that of an adapter.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn with_languages_of(mut self, dir: &Path) -> Result<Self, DataError> {
        self.pair = self.pair.map(|pair| pair.with_languages_of(dir)).transpose()?;
        Ok(self)
    }

    /// Whether the checkpoint writes targets from sources.
    pub fn is_seq2seq(&self) -> bool {
        self.pair.is_some()
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// An id that the tokenizer does not know.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, DataError> {
        self.tokenizer.decode(ids, skip_special)
    }

    /// Ids that end a generation.
    pub fn eos_ids(&self) -> &[u32] {
        self.tokenizer.eos_ids()
    }

    /// The checkpoint's `generation_config.json`, null where it has none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn generation_config(&self) -> Result<Value, DataError> {
        read_optional(&self.dir.join("generation_config.json"))
    }

    /// Id of the picture placeholder, where the checkpoint takes pictures.
    pub fn image_token_id(&self) -> Option<u32> {
        self.image.as_ref().map(|(_, tokens)| tokens.id)
    }

    /// Tokens of one picture, where it does not depend on the picture's own size.
    pub fn tokens_per_image(&self) -> Option<usize> {
        let (settings, tokens) = self.image.as_ref()?;
        settings.fixed_size().map(|(height, width)| tokens.count(height, width))
    }

    /// Where the chat template came from.
    pub fn template_origin(&self) -> &str {
        self.template.origin()
    }

    /// Whether the chat template takes the parts of a turn and places pictures itself, rather than a ready text.
    pub fn template_takes_parts(&self) -> bool {
        self.template.shape() == ContentShape::Parts
    }

    /// The pictures of an encoded record with the normalisation undone: exactly the bytes that were normalised.
    pub fn pictures(&self, encoded: &Encoded) -> Vec<RgbImage> {
        let [_, height, width] = encoded.image_shape;
        let size = 3 * height * width;
        match &self.image {
            Some((settings, _)) if size > 0 => {
                encoded.pixels.chunks_exact(size).map(|values| settings.undo(values, height, width)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The checkpoint folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes the languages of a run into the files that [`Processor::save_to`] has written, as the checkpoint's own from now
    /// on: the tokenizer's, and the first token of targets where the generation settings are there.
    ///
    /// # Errors
    /// A language that the tokenizer does not know; a file that cannot be read or written.
    pub fn save_languages(&self, dir: &Path, src_lang: Option<&str>, tgt_lang: Option<&str>) -> Result<(), DataError> {
        let Some(pair) = &self.pair else { return Ok(()) };
        let set = |file: &str, entries: &[(&str, Value)]| -> Result<(), DataError> {
            let path = dir.join(file);
            let mut config = read_optional(&path)?;
            let Some(object) = config.as_object_mut().filter(|_| !entries.is_empty()) else { return Ok(()) };
            object.extend(entries.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
            let text = format!("{config:#}\n");
            hub::atomic_write(&path, text.as_bytes())
                .map_err(|e| DataError::io(&path, std::io::Error::other(e.to_string())))
        };
        let named = [("src_lang", src_lang), ("tgt_lang", tgt_lang)];
        let languages: Vec<(&str, Value)> =
            named.into_iter().filter_map(|(name, language)| Some((name, Value::from(language?)))).collect();
        set("tokenizer_config.json", &languages)?;
        let forced = tgt_lang.map(|language| pair.language(&self.tokenizer, language)).transpose()?;
        let forced: Vec<(&str, Value)> = forced.into_iter().map(|id| ("forced_bos_token_id", id.into())).collect();
        set("generation_config.json", &forced)
    }

    /// Copies the tokenizer, processor and template files into `dir`, unchanged.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn save_to(&self, dir: &Path) -> Result<(), DataError> {
        for name in FILES {
            let from = self.dir.join(name);
            if !from.is_file() {
                continue;
            }
            let bytes = std::fs::read(&from).map_err(|e| DataError::io(&from, e))?;
            let to = dir.join(name);
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent).map_err(|e| DataError::io(parent, e))?;
            }
            hub::atomic_write(&to, &bytes).map_err(|e| DataError::io(&to, std::io::Error::other(e.to_string())))?;
        }
        Ok(())
    }
}

/// The picture settings: nested in `processor_config.json`, else `preprocessor_config.json`; none for a text model.
fn image_settings(dir: &Path, processor: &Value) -> Result<Option<ImageSettings>, DataError> {
    let path = dir.join("preprocessor_config.json");
    let (config, path) = match &processor["image_processor"] {
        Value::Null => (read_optional(&path)?, path),
        nested => (nested.clone(), dir.join("processor_config.json")),
    };
    if config.is_null() {
        return Ok(None);
    }
    ImageSettings::read(&config, &path, ImageBackend::default()).map(Some)
}

/// Placeholder and tokens of a picture: from `processor_config.json`, else from the model's own configuration.
fn image_tokens(
    path: &Path,
    processor: &Value,
    config: &Value,
    tokenizer: &Tokenizer,
) -> Result<ImageTokens, DataError> {
    let bad = |what: String, hint: &str| DataError::checkpoint(path, what, hint);
    let text =
        tokenizer.special("image_token").or_else(|| processor["image_token"].as_str()).unwrap_or("<image>").to_owned();
    let Some(id) = tokenizer.id_of(&text).filter(|&id| tokenizer.is_added(id)) else {
        return Err(bad(
            format!("the placeholder `{text}` is not a token of its own"),
            "add it to the tokenizer, as the checkpoint's own `added_tokens_decoder` does",
        ));
    };
    let declared = [&config["image_token_id"], &config["image_token_index"]].into_iter().find_map(Value::as_u64);
    if let Some(declared) = declared.filter(|&d| d != u64::from(id)) {
        return Err(bad(
            format!("the placeholder `{text}` has id {id}, and `config.json` says {declared}"),
            "tokenizer and model belong to different checkpoints; copy both again",
        ));
    }
    let patch = [&processor["patch_size"], &config["vision_config"]["patch_size"]]
        .into_iter()
        .find_map(Value::as_u64)
        .filter(|&p| p > 0)
        .ok_or_else(|| bad("`patch_size` is missing".into(), "add it to `processor_config.json`"))?;
    let is_clip = config["vision_config"]["model_type"].as_str().unwrap_or("clip_vision_model").starts_with("clip");
    let additional = match processor["num_additional_image_tokens"].as_i64() {
        Some(n) => n,
        // Files from before that setting: a CLIP tower has one class token, a SigLIP tower none.
        None if processor["patch_size"].is_null() => i64::from(is_clip),
        None => 0,
    };
    let strategy = [&processor["vision_feature_select_strategy"], &config["vision_feature_select_strategy"]]
        .into_iter()
        .find_map(Value::as_str)
        .unwrap_or("default");
    let dropped = match strategy {
        "default" => 1,
        "full" => 0,
        other => {
            return Err(bad(
                format!("`vision_feature_select_strategy: {other}` is not supported"),
                "supported are `default` and `full`",
            ));
        }
    };
    Ok(ImageTokens { text, id, patch: patch as usize, extra: additional - dropped })
}

/// Frame settings of a checkpoint's video processor file.
fn video_defaults(dir: &Path, processor: &Value) -> Result<VideoDefaults, DataError> {
    let config = match &processor["video_processor"] {
        Value::Null => read_optional(&dir.join("video_preprocessor_config.json"))?,
        nested => nested.clone(),
    };
    let positive = |v: &Value| v.as_f64().filter(|&n| n > 0.0);
    Ok(VideoDefaults {
        num_frames: positive(&config["num_frames"]).map(|n| n as usize),
        fps: positive(&config["fps"]),
        rule: None,
    })
}

/// The checkpoint's chat template, or a built-in one that its special tokens call for.
///
/// Order of the reference: `chat_template` in `processor_config.json`, `chat_template.json`, `chat_template.jinja`,
/// `additional_chat_templates/default.jinja`, and for a tokenizer alone `chat_template` in `tokenizer_config.json` (a text, or a list of named ones).
fn find_template(
    dir: &Path,
    processor: &Value,
    tokenizer: &Tokenizer,
    image_token: Option<&str>,
    now: i64,
) -> Result<(ChatTemplate, bool), DataError> {
    let compile = |source: &str, file: &str| {
        let origin = dir.join(file).display().to_string();
        ChatTemplate::compile(source, &origin, tokenizer.specials().clone(), image_token, now).map(|t| (t, false))
    };
    let pick = |value: &Value, file: &str| {
        default_of(value).map_err(|names| {
            DataError::checkpoint(
                &dir.join(file),
                format!("none of the chat templates `{}` is named `default`", names.join("`, `")),
                "name the one to use `default`, or choose a built-in one with `model.version`",
            )
        })
    };
    if let Some(source) = pick(&processor["chat_template"], "processor_config.json")? {
        return compile(&source, "processor_config.json");
    }
    let legacy = read_optional(&dir.join("chat_template.json"))?;
    if let Some(source) = pick(&legacy["chat_template"], "chat_template.json")? {
        return compile(&source, "chat_template.json");
    }
    for file in ["chat_template.jinja", "additional_chat_templates/default.jinja"] {
        let jinja = dir.join(file);
        if jinja.is_file() {
            let source = std::fs::read_to_string(&jinja).map_err(|e| DataError::io(&jinja, e))?;
            return compile(&source, file);
        }
    }
    let config = read_optional(&dir.join("tokenizer_config.json"))?;
    if let Some(source) = pick(&config["chat_template"], "tokenizer_config.json")? {
        return compile(&source, "tokenizer_config.json");
    }
    let has = |token: &str| tokenizer.id_of(token).is_some();
    let name = if has("<|im_start|>") && has("<|im_end|>") {
        "chatml"
    } else if tokenizer.special("eos_token") == Some("</s>") {
        "v1"
    } else {
        return Err(DataError::checkpoint(
            dir,
            "the checkpoint has no chat template",
            "name a built-in one with `model.version`: plain, v0, v1, chatml or llava-1.5",
        ));
    };
    compile_builtin(name, tokenizer, now)
}

/// A template written as text, or the one named `default` (or the only one) of a list or object; where there are several
/// and none has that name, the error holds their names.
fn default_of(value: &Value) -> Result<Option<String>, Vec<String>> {
    let named: Vec<(&str, &str)> = match value {
        Value::String(text) => return Ok(Some(text.clone())),
        Value::Array(list) => {
            list.iter().filter_map(|t| Some((t["name"].as_str()?, t["template"].as_str()?))).collect()
        }
        Value::Object(map) => map.iter().filter_map(|(name, t)| Some((name.as_str(), t.as_str()?))).collect(),
        _ => Vec::new(),
    };
    match named.iter().find(|(name, _)| *name == "default").or(named.first().filter(|_| named.len() == 1)) {
        Some((_, template)) => Ok(Some((*template).to_owned())),
        None if named.is_empty() => Ok(None),
        None => Err(named.iter().map(|(name, _)| (*name).to_owned()).collect()),
    }
}

fn compile_builtin(name: &str, tokenizer: &Tokenizer, now: i64) -> Result<(ChatTemplate, bool), DataError> {
    let Some(found) = builtin::find(name) else {
        let names: Vec<&str> = builtin::ALL.iter().map(|b| b.name).collect();
        return Err(DataError::Plan {
            key: "model.version".into(),
            what: format!("`{name}` is not a built-in chat template"),
            hint: format!("one of {}", names.join(", ")),
        });
    };
    let origin = format!("built-in {name}");
    let template = ChatTemplate::compile_text(found.source, &origin, tokenizer.specials().clone(), now)?;
    Ok((template, found.media_only_user))
}
