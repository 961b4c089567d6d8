//! Owns [`TarRecord`]: what the members of one record say together. A `json` member is the record, in any of the formats;
//! a `txt` or `cls` member beside media is the answer to them. It refuses members that nothing would take.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use media::FilePart;
use serde_json::{Map, Value, json};

use super::members::Member;
use crate::error::{DataError, RecordError};
use crate::formats;
use crate::record::{Format, MediaKind, MediaSource, Origin, Part, Sample};

/// Whether members with this ending are read with the record.
pub(super) fn is_text(ending: &str) -> bool {
    is_json(ending) || is_answer(ending)
}

fn is_json(ending: &str) -> bool {
    matches!(ending, "json" | "jsn")
}

fn is_answer(ending: &str) -> bool {
    matches!(ending, "txt" | "text" | "transcript" | "cls")
}

/// What a member holds besides text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Medium {
    Image,
    Video,
    Audio,
}

impl Medium {
    /// By the last piece of an ending, so that `0.jpg` and `left.jpg` are pictures.
    fn of(ending: &str, part: &FilePart) -> Option<Self> {
        Some(match ending.rsplit('.').next().unwrap_or(ending) {
            "jpg" | "jpeg" | "png" | "webp" | "bmp" => Self::Image,
            "gif" if media::is_animated(&part.to_path()) => Self::Video,
            "gif" => Self::Image,
            "mp4" | "m4v" | "mov" | "mkv" | "webm" | "avi" | "ts" | "ogv" => Self::Video,
            "mp3" | "wav" | "flac" | "ogg" | "aac" | "m4a" | "opus" => Self::Audio,
            _ => return None,
        })
    }

    /// Its field in a record, for one and for several.
    fn fields(self) -> (&'static str, &'static str) {
        match self {
            Self::Image => ("image", "images"),
            Self::Video => ("video", "videos"),
            Self::Audio => ("audio", "audios"),
        }
    }
}

/// The members of a record, texts read, media as parts of the shard.
pub(super) struct TarRecord {
    archive: PathBuf,
    key: String,
    json: Vec<(String, Vec<u8>)>,
    answers: Vec<(String, Vec<u8>)>,
    media: Vec<(Medium, FilePart)>,
    /// Members that are none of these.
    unknown: Vec<String>,
}

impl TarRecord {
    /// Sorts the members of a record, with their endings.
    ///
    /// # Errors
    /// Those of `read`, which gives the content of a text.
    pub fn read(
        archive: &Path,
        key: String,
        members: Vec<(String, Member)>,
        mut read: impl FnMut(&Member) -> Result<Vec<u8>, DataError>,
    ) -> Result<Self, DataError> {
        let archive = archive.to_path_buf();
        let mut record =
            Self { archive, key, json: Vec::new(), answers: Vec::new(), media: Vec::new(), unknown: Vec::new() };
        for (ending, member) in members {
            if is_json(&ending) {
                record.json.push((member.name.clone(), read(&member)?));
            } else if is_answer(&ending) {
                record.answers.push((member.name.clone(), read(&member)?));
            } else {
                let archive = record.archive.clone();
                let part = FilePart { archive, start: member.start, len: member.len, name: member.name };
                match Medium::of(&ending, &part) {
                    Some(medium) => record.media.push((medium, part)),
                    None => record.unknown.push(part.name),
                }
            }
        }
        Ok(record)
    }

    /// What its members have in common.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The record with its media at their places.
    ///
    /// # Errors
    /// What is wrong with it, with the member that says so.
    pub fn sample(&self, index: u64, format: Format, dirs: [&Path; 2]) -> Result<Sample, DataError> {
        let origin = self.origin(index);
        let (text, format) = self.compose(&origin, format)?;
        let mut sample = formats::parse(&text, Some(&self.key), format, &origin, dirs)?;
        self.place(&mut sample, dirs[0])?;
        Ok(sample)
    }

    /// The record as JSON.
    ///
    /// # Errors
    /// Members that make no record; text that is no JSON.
    pub fn value(&self, index: u64) -> Result<Value, DataError> {
        let origin = self.origin(index);
        let (text, _) = self.compose(&origin, Format::Auto)?;
        match serde_json::from_str(&text) {
            Ok(value) => Ok(value),
            Err(_) => {
                formats::parse(&text, Some(&self.key), Format::Auto, &origin, [Path::new(""); 2]).map(|_| Value::Null)
            }
        }
    }

    /// The member that errors are about.
    fn origin(&self, index: u64) -> Origin {
        let text = self.json.first().or(self.answers.first()).map(|(name, _)| name);
        let name = text.or(self.media.first().map(|(_, part)| &part.name)).unwrap_or(&self.key);
        let line = u64::from(!self.json.is_empty());
        Origin { file: PathBuf::from(format!("{}!{name}", self.archive.display())), line, index }
    }

    fn error(&self, origin: &Origin, reason: &'static str, what: String) -> RecordError {
        RecordError::new(reason, origin, Some(&self.key), what)
    }

    /// The text of the record, and the format that it is in.
    fn compose(&self, origin: &Origin, format: Format) -> Result<(String, Format), RecordError> {
        if let Some(name) = self.unknown.first() {
            return Err(self
                .error(origin, "unknown_member", format!("nothing is known of members such as `{name}`"))
                .hint("known are `json`, `txt`, `cls`, and pictures, clips and sounds by their endings; leave others out of the shard"));
        }
        if let [(first, _), (second, _), ..] = self.json.as_slice() {
            return Err(self.twice(origin, first, second));
        }
        if let [(first, _), (second, _), ..] = self.answers.as_slice() {
            return Err(self.twice(origin, first, second));
        }
        let answer = self.answers.first().map(|(name, bytes)| self.text(origin, name, bytes)).transpose()?;
        let dialogue = self.json.first().map(|(name, bytes)| self.text(origin, name, bytes)).transpose()?;
        let value = match dialogue.map(|text| (text, serde_json::from_str::<Value>(text))) {
            // Whoever parses it next says what is wrong with it.
            Some((text, Err(_))) => return Ok((text.to_owned(), format)),
            Some((_, Ok(value))) => Some(value),
            None => None,
        };
        match (value, answer) {
            (Some(value), None) => Ok((self.with_media(value).to_string(), format)),
            (Some(value), Some(_)) if formats::detect(&value).is_some() => {
                let (json, text) = (&self.json[0].0, &self.answers[0].0);
                Err(self.twice(origin, json, text))
            }
            // What else stands in `json` are facts about the media, as crawlers write them.
            (_, Some(answer)) if !self.media.is_empty() => Ok((self.caption(answer), Format::Llava)),
            (_, Some(_)) => Err(self
                .error(origin, "no_media", "a text answers a picture or a clip, and none stands beside it".into())
                .hint("write the dialogue as a `json` member")),
            (None, None) => Err(self
                .error(origin, "no_text", "the record has media and no text".into())
                .hint("add a `json` member with the dialogue, or a `txt` member with the answer")),
        }
    }

    fn twice(&self, origin: &Origin, first: &str, second: &str) -> RecordError {
        self.error(origin, "contradiction", format!("both `{first}` and `{second}` say what is answered"))
            .hint("leave one of them out of the shard")
    }

    fn text<'a>(&self, origin: &Origin, name: &str, bytes: &'a [u8]) -> Result<&'a str, RecordError> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
            Err(error) => Err(self
                .error(origin, "bad_json", format!("`{name}`, byte {}: the text is not UTF-8", error.valid_up_to()))
                .hint("save the text in UTF-8, or set `data.on_bad_media: skip`")),
        }
    }

    /// A record that shows all media and answers with a text.
    fn caption(&self, answer: &str) -> String {
        let marks: String = [Medium::Image, Medium::Video, Medium::Audio]
            .into_iter()
            .map(|medium| format!("<{}>", medium.fields().0).repeat(self.names(medium).len()))
            .collect();
        let turns = json!([{"from": "human", "value": marks}, {"from": "gpt", "value": answer.trim()}]);
        self.with_media(json!({"conversations": turns})).to_string()
    }

    /// The members of a medium in the order of the shard.
    fn names(&self, medium: Medium) -> Vec<&str> {
        self.media.iter().filter(|(own, _)| *own == medium).map(|(_, part)| part.name.as_str()).collect()
    }

    /// The record with the names of its media where it has none of a kind: in parts without a source, else in its fields.
    fn with_media(&self, mut value: Value) -> Value {
        let Value::Object(record) = &mut value else { return value };
        let clip = ["video", "video_url", "video_path"];
        let is_frames = record.contains_key("conversation") && !self.names(Medium::Video).is_empty();
        let mentioned = mentions(record);
        let mut has_parts = false;
        for medium in [Medium::Image, Medium::Video, Medium::Audio] {
            let (one, many) = medium.fields();
            let mut names = self.names(medium).into_iter().filter(|name| !is_mentioned(name, &mentioned));
            for part in parts_of(record) {
                has_parts = true;
                // The bare pictures of a `conversation` are the frames of its clip.
                let sources = [one, &format!("{one}_url"), "path", "url"];
                if part.get("type").and_then(Value::as_str) == Some(one)
                    && !is_frames
                    && sources.iter().all(|key| is_absent(part.get(*key)))
                    && let Some(name) = names.next()
                {
                    part.insert(one.to_owned(), name.into());
                }
            }
            let is_beside = if record.contains_key("conversation") { medium == Medium::Video } else { !has_parts };
            let is_named = [one, many].iter().any(|key| !is_absent(record.get(*key)))
                || (medium == Medium::Video && clip.iter().any(|key| !is_absent(record.get(*key))));
            let names: Vec<&str> = names.collect();
            if is_beside && !is_named {
                match names.as_slice() {
                    [] => continue,
                    [name] => record.insert(one.to_owned(), (*name).into()),
                    names => record.insert(many.to_owned(), json!(names)),
                };
            }
        }
        value
    }

    /// Turns the names of members into the parts of the shard that they are.
    fn place(&self, sample: &mut Sample, media_dir: &Path) -> Result<(), RecordError> {
        let mut is_used = vec![false; self.media.len()];
        for (_, path) in paths_of(sample) {
            if let Some(number) = self.member(path, media_dir) {
                is_used[number] = true;
                *path = self.media[number].1.to_path();
            }
        }
        // A record may call its only picture or clip by the name that it had before it came into the shard.
        for medium in [Medium::Image, Medium::Video] {
            let is_left = |number: &usize| !is_used[*number] && self.media[*number].0 == medium;
            let left: Vec<usize> = (0..self.media.len()).filter(is_left).collect();
            let is_own = |kind: MediaKind, path: &Path| {
                (kind == MediaKind::Image) == (medium == Medium::Image) && FilePart::of_path(path).is_none()
            };
            let named: BTreeSet<PathBuf> =
                paths_of(sample).filter(|(kind, path)| is_own(*kind, path)).map(|(_, path)| path.clone()).collect();
            if let ([number], 1) = (left.as_slice(), named.len()) {
                is_used[*number] = true;
                let part = self.media[*number].1.to_path();
                paths_of(sample)
                    .filter(|(kind, path)| is_own(*kind, path))
                    .for_each(|(_, path)| path.clone_from(&part));
            }
        }
        match is_used.iter().position(|is_used| !is_used) {
            None => Ok(()),
            Some(number) => Err(self
                .error(
                    &sample.origin,
                    "unused_member",
                    format!("nothing in the record takes `{}`", self.media[number].1.name),
                )
                .hint("name it in the record, or leave it out of the shard")),
        }
    }

    /// The member that a path names: as written in the shard, or without the folders there.
    fn member(&self, path: &Path, media_dir: &Path) -> Option<usize> {
        let name = path.strip_prefix(media_dir).ok()?;
        let written = |part: &FilePart| part.name.trim_start_matches("./").to_owned();
        let is_base = |part: &FilePart| Path::new(&written(part)).file_name() == Some(name.as_os_str());
        let whole = self.media.iter().position(|(_, part)| Path::new(&written(part)) == name);
        whole.or_else(|| self.media.iter().position(|(_, part)| is_base(part)))
    }
}

/// Fields by which records and parts name media.
const MEDIA_FIELDS: [&str; 9] =
    ["image", "images", "image_url", "video", "videos", "video_url", "video_path", "audio", "audios"];

/// What stands in the media fields of a record and of its parts.
fn mentions(record: &mut Map<String, Value>) -> BTreeSet<String> {
    fn collect(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::String(text) => drop(found.insert(text.clone())),
            Value::Array(list) => list.iter().for_each(|value| collect(value, found)),
            Value::Object(object) => object.values().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    let fields = |object: &Map<String, Value>, found: &mut BTreeSet<String>| {
        let named =
            object.iter().filter(|(key, _)| MEDIA_FIELDS.contains(&key.as_str()) || *key == "path" || *key == "url");
        named.for_each(|(_, value)| collect(value, found));
    };
    fields(record, &mut found);
    parts_of(record).into_iter().for_each(|part| fields(part, &mut found));
    found
}

/// Whether a record names a member, as written in the shard or without the folders there.
fn is_mentioned(name: &str, mentioned: &BTreeSet<String>) -> bool {
    let name = name.trim_start_matches("./");
    mentioned.contains(name) || name.rsplit('/').next().is_some_and(|base| mentioned.contains(base))
}

fn is_absent(value: Option<&Value>) -> bool {
    value.is_none_or(|value| value.is_null() || value.as_str() == Some(""))
}

/// The parts of all turns whose content is a list.
fn parts_of(record: &mut Map<String, Value>) -> Vec<&mut Map<String, Value>> {
    let turns = record.iter_mut().filter(|(key, _)| matches!(key.as_str(), "messages" | "conversation"));
    let turns = turns.filter_map(|(_, turns)| turns.as_array_mut()).flatten();
    let parts = turns.filter_map(|turn| turn.get_mut("content")?.as_array_mut()).flatten();
    parts.filter_map(Value::as_object_mut).collect()
}

/// The paths of all media of a record with what they are.
fn paths_of(sample: &mut Sample) -> impl Iterator<Item = (MediaKind, &mut PathBuf)> {
    let parts = sample.conversation.iter_mut().flat_map(|turn| &mut turn.parts);
    parts.flat_map(|part| {
        let Part::Media(reference) = part else { return Vec::new() };
        let kind = reference.kind;
        match &mut reference.source {
            MediaSource::Path(path) => vec![(kind, path)],
            MediaSource::Files(files) => files.iter_mut().map(|path| (kind, path)).collect(),
            MediaSource::Url(_) => Vec::new(),
        }
    })
}
