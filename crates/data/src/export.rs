//! Owns the tokenizer and processor files of a checkpoint in LLaVA's original layout as `LlavaProcessor` of `transformers` reads
//! them. It refuses to know weights.

use std::path::Path;

use serde_json::{Value, json};

use crate::batch::VisualKind;
use crate::error::DataError;
use crate::join::{join_tokenizer, write};
use crate::processor::Processor;
use crate::template::builtin;
use crate::tokenizer::{Tokenizer, read_optional};

const IMAGE: &str = "<image>";
const PAD: &str = "<pad>";

/// What the files say that the model's configuration must say as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportedTokens {
    /// The token that stands for a row of a picture.
    pub image: u32,
    /// The token that fills batches.
    pub pad: Option<u32>,
}

/// Content of a turn as `transformers` gives it, as the text that our templates take.
const AS_TEXT: &str = "{%- macro text(m) -%}{%- if m.content is string -%}{{ m.content }}{%- else -%}\
{%- for p in m.content -%}{%- if p.type == 'image' -%}{{ '<image>' }}{%- elif p.type == 'text' -%}\
{%- if not loop.first and m.content[loop.index0 - 1].type == 'image' and p.text and p.text[0] != '\\n' -%}{{ '\\n' }}{%- endif -%}\
{{ p.text }}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endmacro -%}";

impl Processor {
    /// Writes tokenizer, template and processor files for `LlavaProcessor`: a token for pictures, one for padding where there
    /// is none, settings of pictures, and the built-in template where the checkpoint brings none of its own. `strategy` is the
    /// model's choice of tokens, as `transformers` spells it.
    ///
    /// # Errors
    /// The checkpoint takes no images in the original layout; a file cannot be read or written.
    pub fn export_llava(&self, dir: &Path, strategy: &str) -> Result<ExportedTokens, DataError> {
        let place = self.dir().join("config.json");
        let settings = self.vision.as_ref().and_then(|vision| {
            let (name, path) = vision.own_files().first()?;
            Some((path.clone(), name.clone(), vision.class_tokens(VisualKind::Image)?))
        });
        let Some((settings_path, _, (patch, num_additional))) = settings else {
            let hint = "only checkpoints in LLaVA's original layout are exported";
            return Err(DataError::checkpoint(&place, "there are no picture settings to export", hint));
        };
        let config = read_optional(&self.dir().join("tokenizer_config.json"))?;
        let has_pad = self.tokenizer.special("pad_token").is_some();
        let new: Vec<&str> = if has_pad { vec![IMAGE] } else { vec![IMAGE, PAD] };
        join_tokenizer(self.dir(), dir, &new)?;
        let written = dir.join("tokenizer_config.json");
        let mut own = read_optional(&written)?;
        if !own.is_object() {
            own = json!({});
        }
        own["processor_class"] = "LlavaProcessor".into();
        if !has_pad {
            own["pad_token"] = PAD.into();
            let map = dir.join("special_tokens_map.json");
            let mut specials = read_optional(&map)?;
            if specials.is_object() {
                specials["pad_token"] = PAD.into();
                write(&map, format!("{specials:#}\n").as_bytes())?;
            }
        }
        write(&written, format!("{own:#}\n").as_bytes())?;
        let mut pictures = read_optional(&settings_path)?;
        pictures["processor_class"] = "LlavaProcessor".into();
        if let Some(class) = crate::vision::image_class(&pictures) {
            pictures["image_processor_type"] = class.into();
        }
        if self.vision.as_ref().is_some_and(|vision| vision.pads_square(VisualKind::Image)) {
            // The class that pads to a square with the mean colour, as the original does.
            pictures["image_processor_type"] = "LlavaImageProcessor".into();
            pictures["do_pad"] = true.into();
        }
        if let Some(map) = pictures.as_object_mut() {
            map.remove("image_aspect_ratio");
            map.remove("feature_extractor_type");
        }
        write(&dir.join("preprocessor_config.json"), format!("{pictures:#}\n").as_bytes())?;
        let processor = json!({
            "processor_class": "LlavaProcessor", "image_token": IMAGE, "patch_size": patch,
            "num_additional_image_tokens": num_additional, "vision_feature_select_strategy": strategy,
        });
        write(&dir.join("processor_config.json"), format!("{processor:#}\n").as_bytes())?;
        if config["chat_template"].is_null()
            && let Some(found) = self.template_origin().strip_prefix("built-in ").and_then(builtin::find)
            && !found.media_only_user
        {
            let source = format!("{AS_TEXT}{}", found.source.replace("m.content", "text(m)"));
            write(&dir.join("chat_template.jinja"), source.as_bytes())?;
        }
        let exported = Tokenizer::load(dir, &Value::Null)?;
        let id = |text: &str| {
            exported.id_of(text).ok_or_else(|| {
                DataError::checkpoint(dir, format!("the token `{text}` was not added"), "copy the tokenizer again")
            })
        };
        let pad = exported.special("pad_token").map(str::to_owned);
        Ok(ExportedTokens { image: id(IMAGE)?, pad: pad.as_deref().map(id).transpose()? })
    }
}
