//! Owns the `llava` (sharegpt) format: turns of text with `<image>`, `<video>` and `<speech>` placeholders, media beside them.
//! It refuses to guess: placeholders and media must agree in number and order.

use serde_json::Value;

use super::media_fields::{FrameWishes, audio, check_fields, image, video};
use super::{Context, Object, kind_of, required_list, role_of};
use crate::error::RecordError;
use crate::record::{MediaKind, MediaRef, Part, Role, Turn};

/// The fields of a record that name media. Shared with `messages` records.
pub(super) const MEDIA_FIELDS: [&str; 6] = ["image", "images", "video", "videos", "audio", "audios"];

/// Reads the turns of a record.
pub(super) fn parse(context: &Context<'_>, record: &Object) -> Result<Vec<Turn>, RecordError> {
    check_fields(context, record, &MEDIA_FIELDS)?;
    let list = required_list(context, record, "conversations")?;
    let mut turns = Vec::with_capacity(list.len());
    let mut media = Placeholders::read(context, record, &mut list.iter().map(|t| text_of(t).unwrap_or_default()))?;
    if let Some(Value::String(system)) = record.get("system").filter(|v| v.as_str() != Some("")) {
        turns.push(Turn::text(Role::System, system.as_str()));
    }
    for (position, item) in list.iter().enumerate() {
        let (Some(name), Some(text)) = (role_name(item), text_of(item)) else {
            return Err(context
                .error("bad_turn", format!("turn {position} is not a turn"))
                .expected("`{\"from\": ..., \"value\": text}`", kind_of(item)));
        };
        let role = role_of(context, position, name)?;
        turns.push(Turn { role, parts: media.split(context, text)? });
    }
    media.finish(context)?;
    Ok(turns)
}

fn role_name(item: &Value) -> Option<&str> {
    item.get("from").or_else(|| item.get("role"))?.as_str()
}

fn text_of(item: &Value) -> Option<&str> {
    item.get("value").or_else(|| item.get("content"))?.as_str()
}

/// The media of a record, handed out as their placeholders are met. Shared with `messages` records whose turns are
/// plain text beside lists of media.
pub(super) struct Placeholders {
    images: Vec<MediaRef>,
    videos: Vec<MediaRef>,
    /// Sound; where a record names none, that of its videos.
    audios: Vec<MediaRef>,
    next_image: usize,
    next_video: usize,
    next_audio: usize,
    /// Whether `audios` must all be asked for.
    names_audio: bool,
    /// What `<image>` stands for.
    image_means: ImageMeans,
    found: [usize; 3],
}

/// What the placeholder `<image>` stands for in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ImageMeans {
    /// The next picture.
    Image,
    /// The next clip: the record has clips and no picture, and one `<image>` for each clip.
    Video,
    /// The next frame of the only clip: the record has one clip, no picture, and several `<image>`.
    FrameOf(usize),
}

impl Placeholders {
    /// Reads the media fields; `texts` are all the turns' texts, from which the meaning of `<image>` follows.
    pub fn read(
        context: &Context<'_>,
        record: &Object,
        texts: &mut dyn Iterator<Item = &str>,
    ) -> Result<Self, RecordError> {
        let wishes = FrameWishes::read(context, record)?;
        let images = match one_of(context, record, "image", "images")? {
            None => Vec::new(),
            Some((field, Value::Array(list))) => {
                list.iter().map(|v| image(context, field, v)).collect::<Result<_, _>>()?
            }
            Some((field, value)) => vec![image(context, field, value)?],
        };
        let videos: Vec<MediaRef> = match one_of(context, record, "video", "videos")? {
            None => Vec::new(),
            Some(("videos", Value::Array(list))) => {
                list.iter().map(|v| video(context, "videos", v, &wishes)).collect::<Result<_, _>>()?
            }
            Some((field, value)) => vec![video(context, field, value, &wishes)?],
        };
        let named: Option<Vec<MediaRef>> = match one_of(context, record, "audio", "audios")? {
            None => None,
            Some((field, Value::Array(list))) => {
                Some(list.iter().map(|v| audio(context, field, v)).collect::<Result<_, _>>()?)
            }
            Some((field, value)) => Some(vec![audio(context, field, value)?]),
        };
        let names_audio = named.is_some();
        let audios = named.unwrap_or_else(|| videos.iter().map(own_track).collect());
        let (mut num_image, mut num_video) = (0, 0);
        for text in texts {
            num_image += text.matches("<image>").count();
            num_video += text.matches("<video>").count();
        }
        let image_means = match (images.len(), videos.len(), num_image, num_video) {
            (0, clips, marks, 0) if clips > 0 && marks == clips => ImageMeans::Video,
            (0, 1, marks, 0) if marks > 1 => ImageMeans::FrameOf(marks),
            _ => ImageMeans::Image,
        };
        if let (ImageMeans::FrameOf(marks), Some(wanted)) = (image_means, wishes.nframes)
            && marks != wanted
        {
            return Err(context
                .error("placeholder_count", "the number of `<image>` placeholders is not the number of frames")
                .expected(format!("{wanted} (`num_frames`)"), marks.to_string())
                .hint("write one `<video>`, or one `<image>` for each frame"));
        }
        Ok(Self {
            images,
            videos,
            audios,
            next_image: 0,
            next_video: 0,
            next_audio: 0,
            names_audio,
            image_means,
            found: [0, 0, 0],
        })
    }

    /// Whether the record names any media beside its turns.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty() && self.videos.is_empty() && self.audios.is_empty()
    }

    /// Splits a text at its placeholders. A newline after a placeholder stays at the start of the text behind it.
    pub fn split(&mut self, context: &Context<'_>, text: &str) -> Result<Vec<Part>, RecordError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('<') {
            let (before, mark) = rest.split_at(at);
            let name = ["<image>", "<video>", "<speech>", "<audio>"].into_iter().find(|n| mark.starts_with(n));
            let Some(name) = name else {
                push_text(&mut parts, &rest[..at + 1]);
                rest = &rest[at + 1..];
                continue;
            };
            push_text(&mut parts, before);
            rest = &mark[name.len()..];
            let media = match name {
                "<image>" => self.image(context)?,
                "<video>" => self.video(context)?,
                _ => self.audio(context)?,
            };
            parts.push(Part::Media(media));
        }
        push_text(&mut parts, rest);
        Ok(parts)
    }

    fn image(&mut self, context: &Context<'_>) -> Result<MediaRef, RecordError> {
        match self.image_means {
            ImageMeans::Video => return self.video(context),
            ImageMeans::FrameOf(total) => {
                let position = self.found[0];
                self.found[0] += 1;
                self.next_video = 1;
                let mut frame = self.videos[0].clone();
                (frame.kind, frame.nframes) = (MediaKind::FrameOf { position, total }, Some(total));
                return Ok(frame);
            }
            ImageMeans::Image => {}
        }
        self.found[0] += 1;
        let media = self.images.get(self.next_image).cloned();
        self.next_image += 1;
        media.ok_or_else(|| self.mismatch(context))
    }

    fn video(&mut self, context: &Context<'_>) -> Result<MediaRef, RecordError> {
        self.found[1] += 1;
        let media = self.videos.get(self.next_video).cloned();
        self.next_video += 1;
        media.ok_or_else(|| self.mismatch(context))
    }

    fn audio(&mut self, context: &Context<'_>) -> Result<MediaRef, RecordError> {
        self.found[2] += 1;
        let media = self.audios.get(self.next_audio).cloned();
        self.next_audio += 1;
        media.ok_or_else(|| self.mismatch(context))
    }

    /// Refuses media that no placeholder stands for.
    pub fn finish(&self, context: &Context<'_>) -> Result<(), RecordError> {
        let has_unheard = self.names_audio && self.next_audio < self.audios.len();
        if self.next_image < self.images.len() || self.next_video < self.videos.len() || has_unheard {
            return Err(self.mismatch(context));
        }
        Ok(())
    }

    fn mismatch(&self, context: &Context<'_>) -> RecordError {
        let too_many = self.next_audio > self.audios.len();
        let too_few = self.names_audio && self.next_audio < self.audios.len();
        let (kind, media, found) =
            if too_many || too_few && self.next_image >= self.images.len() && self.next_video >= self.videos.len() {
                ("speech", self.audios.len(), self.found[2])
            } else if self.next_image != self.images.len() && self.image_means == ImageMeans::Image && self.found[0] > 0
                || self.next_image < self.images.len()
            {
                ("image", self.images.len(), self.found[0])
            } else {
                ("video", self.videos.len(), self.found[1])
            };
        let found = if found > media { format!("at least {found}") } else { found.to_string() };
        context
            .error(
                "placeholder_count",
                format!("the number of `<{kind}>` placeholders is not the number of {}", plural(kind)),
            )
            .expected(format!("{media} (the {} of the record)", plural(kind)), found)
            .hint(format!("write one `<{kind}>` for each {}", if kind == "speech" { "piece of sound" } else { kind }))
    }
}

/// The sound of a video, of the same part of it.
fn own_track(video: &MediaRef) -> MediaRef {
    let sound = MediaRef::new(MediaKind::Audio, video.source.clone());
    MediaRef { start: video.start, end: video.end, ..sound }
}

fn plural(kind: &str) -> String {
    if kind == "speech" { "pieces of sound".to_owned() } else { format!("{kind}s") }
}

/// One of two spellings of a field, where present and not null.
fn one_of<'a>(
    context: &Context<'_>,
    record: &'a Object,
    one: &'static str,
    many: &'static str,
) -> Result<Option<(&'static str, &'a Value)>, RecordError> {
    let get = |key| record.get(key).filter(|v: &&Value| !v.is_null());
    match (get(one), get(many)) {
        (Some(_), Some(_)) => Err(context
            .error("contradiction", format!("the record has both `{one}` and `{many}`"))
            .hint("keep one of them")),
        (Some(v), None) => Ok(Some((one, v))),
        (None, Some(v)) => Ok(Some((many, v))),
        (None, None) => Ok(None),
    }
}

fn push_text(parts: &mut Vec<Part>, text: &str) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Text(last)) => last.push_str(text),
        _ => parts.push(Part::Text(text.to_owned())),
    }
}
