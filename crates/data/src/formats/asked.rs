//! Owns records that ask once and are answered once, without placeholders: which field names their media, and where
//! these stand (before the words, unless the words have placeholders). It refuses to know what is asked.

use serde_json::Value;

use super::llava::Placeholders;
use super::media_fields::check_fields;
use super::{Context, Object, kind_of, list_keys};
use crate::error::RecordError;
use crate::record::{Role, Turn};

/// Fields that name media, with the name that `llava` records have for each.
const FIELDS: [(&str, &str); 8] = [
    ("video", "video"),
    ("videos", "videos"),
    ("video_path", "video"),
    ("video_url", "video"),
    ("image", "image"),
    ("images", "images"),
    ("image_path", "image"),
    ("image_url", "image"),
];

/// Fields that name a clip by its id where no other field names media: the file is `ID.mp4`. `videoID` is Video-MME's,
/// whose `video_id` only counts the clips; `video_id` is PE-Video's.
const IDS: [&str; 2] = ["videoID", "video_id"];

/// Endings that an id may already have.
const ENDINGS: [&str; 6] = ["mp4", "mov", "mkv", "webm", "avi", "gif"];

/// Placeholders that the words of a record may have of their own.
const MARKS: [&str; 2] = ["<image>", "<video>"];

/// A question with its media, read from a record.
pub(super) struct Asked {
    /// The record with its media under the names of `llava` records.
    renamed: Object,
    images: usize,
    videos: usize,
}

impl Asked {
    /// Finds the media of a record.
    pub fn read(context: &Context<'_>, record: &Object) -> Result<Self, RecordError> {
        check_fields(context, record, &FIELDS.map(|(name, _)| name))?;
        let mut named = FIELDS.iter().filter(|(name, _)| is_given(record, name));
        let mut renamed = record.clone();
        let field = match (named.next(), named.next()) {
            (Some((first, _)), Some((second, _))) => {
                return Err(context
                    .error("contradiction", format!("the record has both `{first}` and `{second}`"))
                    .hint("keep one of them; records with pictures and clips need the `llava` format, which says their order"));
            }
            (Some(&(name, meant)), None) => {
                if let Some(value) = renamed.remove(name) {
                    renamed.insert(meant.to_owned(), value);
                }
                Some(meant)
            }
            (None, _) => match clip_by_id(record) {
                Some(file) => {
                    renamed.insert("video".to_owned(), file.into());
                    Some("video")
                }
                None => None,
            },
        };
        let count = |name: &str| match renamed.get(name) {
            Some(Value::Array(list)) if name != "video" => list.len(),
            _ => 1,
        };
        let (mut images, mut videos) = (0, 0);
        match field {
            Some(name) if name.starts_with("image") => images = count(name),
            Some(name) => videos = count(name),
            None => {}
        }
        Ok(Self { renamed, images, videos })
    }

    /// What the words speak of: ` based on the video`, ` based on the image`, or nothing.
    pub fn basis(&self) -> &'static str {
        match (self.images, self.videos) {
            (0, 0) => "",
            (0, 1) => " based on the video",
            (0, _) => " based on the videos",
            (1, _) => " based on the image",
            (_, _) => " based on the images",
        }
    }

    /// Whether the record has a clip, a picture, or neither.
    pub fn medium(&self) -> Option<&'static str> {
        match (self.images, self.videos) {
            (0, 0) => None,
            (0, _) => Some("video"),
            (_, _) => Some("image"),
        }
    }

    /// The question and its answer as turns. Media stand on lines of their own before the words.
    pub fn turns(self, context: &Context<'_>, words: &str, answer: &str) -> Result<Vec<Turn>, RecordError> {
        let text = match MARKS.iter().any(|mark| words.contains(mark)) {
            true => words.to_owned(),
            false => format!("{}{}{words}", "<image>\n".repeat(self.images), "<video>\n".repeat(self.videos)),
        };
        let mut media = Placeholders::read(context, &self.renamed, &mut std::iter::once(text.as_str()))?;
        let parts = media.split(context, &text)?;
        media.finish(context)?;
        Ok(vec![Turn { role: Role::User, parts }, Turn::text(Role::Assistant, answer)])
    }
}

/// Whether a record of its own format would find media.
pub(super) fn names_media(record: &Object) -> bool {
    FIELDS.iter().any(|(name, _)| is_given(record, name)) || clip_by_id(record).is_some()
}

fn is_given(record: &Object, name: &str) -> bool {
    record.get(name).is_some_and(|value| !value.is_null() && value.as_str() != Some(""))
}

fn clip_by_id(record: &Object) -> Option<String> {
    let id = IDS.iter().find_map(|name| words(record.get(*name)?))?;
    let has_ending = id.rsplit_once('.').is_some_and(|(_, end)| ENDINGS.contains(&end.to_ascii_lowercase().as_str()));
    Some(if has_ending { id } else { format!("{id}.mp4") })
}

/// A text that is not empty; a number as it is written.
pub(super) fn words(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The words under a key that must be there.
pub(super) fn required_words(context: &Context<'_>, record: &Object, key: &str) -> Result<String, RecordError> {
    match record.get(key) {
        None => Err(context
            .error("bad_record", format!("`{key}` is missing"))
            .expected(format!("a text `{key}`"), list_keys(record))
            .hint("add it, remove the record, or check `data.train.format`")),
        Some(value) => words(value).ok_or_else(|| match value {
            Value::Null | Value::String(_) => {
                context.error(empty_reason(key), format!("`{key}` is empty")).hint("write it, or remove the record")
            }
            _ => context.error("bad_record", format!("`{key}` has the wrong type")).expected("a text", kind_of(value)),
        }),
    }
}

fn empty_reason(key: &str) -> &'static str {
    if key == "question" { "empty_question" } else { "empty_answer" }
}
