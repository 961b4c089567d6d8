//! Owns [`Processor`]: a checkpoint's tokenizer, chat template and picture settings, read from its files and written
//! back unchanged. The way from a record to ids is in `encode`. It refuses to order or batch records.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use media::RgbImage;
use serde_json::Value;

use crate::batch::{Encoded, VisualKind};
use crate::cache::FrameCache;
use crate::clips::VideoDefaults;
use crate::error::DataError;
use crate::template::{ChatTemplate, ContentShape, builtin};
use crate::text_pair::TextPair;
use crate::tokenizer::{Tokenizer, read_optional};
use crate::vision::{Files, ImageBackend, Vision, add_marks};

/// Files of a checkpoint folder that belong to the processor, copied as they are.
pub(crate) const FILES: [&str; 18] = [
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
    /// One of the built-in ones: `plain`, `v0`, `v1`, `v0.5`, `chatml`, `phi`, `llava-1.5`.
    BuiltIn(String),
    /// The text of a Jinja template.
    Text(String),
}

/// A checkpoint's tokenizer, chat template and picture settings.
#[derive(Debug)]
pub struct Processor {
    dir: PathBuf,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: ChatTemplate,
    /// Whether the user's words are left out (template `plain`).
    pub(crate) media_only_user: bool,
    /// What is made of pictures and clips, where the checkpoint takes them.
    pub(crate) vision: Option<Vision>,
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
        let mut tokenizer = Tokenizer::load(dir, &config)?;
        add_marks(&mut tokenizer, &config)?;
        let processor = read_optional(&dir.join("processor_config.json"))?;
        let files = Files { dir, processor: &processor, config: &config, tokenizer: &tokenizer };
        let (vision, video) = Vision::read(&files)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        let (template, media_only_user) = match config["conversation_version"].as_str() {
            Some(name) => compile_builtin(name, &tokenizer, now)?,
            None => find_template(dir, &processor, &tokenizer, image_token(vision.as_ref()), now)?,
        };
        let pair = TextPair::load(dir, &config, &tokenizer)?;
        let dir = dir.to_path_buf();
        Ok(Self { dir, tokenizer, template, media_only_user, vision, video, pair, cache: None, now })
    }

    /// Uses another chat template than the checkpoint's.
    ///
    /// # Errors
    /// The name is not known, or the template does not compile.
    pub fn with_template(mut self, choice: &TemplateChoice) -> Result<Self, DataError> {
        let image_token = image_token(self.vision.as_ref());
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
        self.vision = self.vision.map(|vision| vision.with_backend(backend));
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
        self.token_id(VisualKind::Image)
    }

    /// Id of the placeholder of clips, where the checkpoint takes the frames of a clip together.
    pub fn video_token_id(&self) -> Option<u32> {
        self.token_id(VisualKind::Video)
    }

    fn token_id(&self, kind: VisualKind) -> Option<u32> {
        Some(self.vision.as_ref()?.placeholder(kind)?.id)
    }

    /// Id of the placeholder of sound, where the checkpoint takes sound.
    pub fn audio_token_id(&self) -> Option<u32> {
        self.token_id(VisualKind::Audio)
    }

    /// Tokens of one picture, where it does not depend on the picture's own size.
    pub fn tokens_per_image(&self) -> Option<usize> {
        self.vision.as_ref()?.tokens_per_image()
    }

    /// Where the chat template came from.
    pub fn template_origin(&self) -> &str {
        self.template.origin()
    }

    /// Whether the chat template takes the parts of a turn and places pictures itself, rather than a ready text.
    pub fn template_takes_parts(&self) -> bool {
        self.template.shape() == ContentShape::Parts
    }

    /// The pictures of an encoded record with the normalisation undone: exactly the bytes that were normalised. Frames
    /// that only fill a patch in time are left out.
    pub fn pictures(&self, encoded: &Encoded) -> Vec<RgbImage> {
        self.vision.as_ref().map(|vision| vision.undo(encoded)).unwrap_or_default()
    }

    /// Puts the pictures of an encoded record into another order: `order[i]` is the number of the one that takes place
    /// `i`. Pictures that change places must have one size, as those of one clip have. Text and times stay.
    pub fn reorder_pictures(&self, encoded: &mut Encoded, order: &[usize]) {
        let Some(vision) = &self.vision else { return };
        let pictures = vision.undo(encoded);
        let reordered: Vec<RgbImage> = order.iter().map(|&picture| pictures[picture].clone()).collect();
        encoded.pixels.clear();
        vision.write_values(&encoded.visuals, &reordered, &mut encoded.pixels);
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
        let own = self.vision.as_ref().map(Vision::own_files).unwrap_or_default();
        let own = own.iter().map(|(name, from)| (name.as_str(), from.clone()));
        for (name, from) in FILES.iter().map(|name| (*name, self.dir.join(name))).chain(own) {
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

/// The text of the picture placeholder.
fn image_token(vision: Option<&Vision>) -> Option<&str> {
    // Where placeholders are no tokens, they stand in the text that a template is given.
    let vision = vision.filter(|vision| vision.marks().is_empty());
    Some(vision?.placeholder(VisualKind::Image)?.text.as_str())
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
            "name a built-in one with `model.version`: plain, v0, v0.5, v1, chatml, phi or llava-1.5",
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
