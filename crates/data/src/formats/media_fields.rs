//! Owns the fields by which records name media: paths, addresses, lists of frames, counts, rates, time ranges.
//! It refuses to look at the files.

use std::path::Path;

use serde_json::Value;

use super::{Context, Object, kind_of, list_keys};
use crate::error::RecordError;
use crate::record::{MediaKind, MediaRef, MediaSource, Part};

/// What a record or part says about the frames of its clips.
#[derive(Debug, Clone, Default)]
pub(super) struct FrameWishes {
    pub nframes: Option<usize>,
    pub fps: Option<f64>,
    pub min_frames: Option<usize>,
    pub max_frames: Option<usize>,
    pub start: Option<f64>,
    pub end: Option<f64>,
}

/// Keys of [`FrameWishes`] with their other spellings.
const WISH_KEYS: [&str; 7] = ["nframes", "num_frames", "fps", "min_frames", "max_frames", "video_start", "video_end"];

/// Fields that other tools know and that have no effect here yet: refused by name, never passed over.
const NOT_BUILT: [&str; 6] =
    ["min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width", "sample_fps"];

impl FrameWishes {
    /// Reads the wishes out of a record or part.
    pub fn read(context: &Context<'_>, object: &Object) -> Result<Self, RecordError> {
        for key in NOT_BUILT {
            if object.get(key).is_some_and(|v| !v.is_null()) {
                return Err(context
                    .error("not_built", format!("`{key}` is not built yet"))
                    .hint("remove the field; pictures take the size of the checkpoint's processor"));
            }
        }
        let nframes = match (count(context, object, "nframes")?, count(context, object, "num_frames")?) {
            (Some(a), Some(b)) if a != b => {
                return Err(context
                    .error("contradiction", "`nframes` and `num_frames` disagree")
                    .expected(a.to_string(), b.to_string())
                    .hint("keep one of them"));
            }
            (a, b) => a.or(b),
        };
        let wishes = Self {
            nframes,
            fps: number(context, object, "fps")?,
            min_frames: count(context, object, "min_frames")?,
            max_frames: count(context, object, "max_frames")?,
            start: number(context, object, "video_start")?,
            end: number(context, object, "video_end")?,
        };
        if let (Some(wanted), Some(most)) = (wishes.nframes, wishes.max_frames)
            && wanted > most
        {
            return Err(context
                .error("contradiction", "`nframes` is above `max_frames`")
                .expected(format!("at most {most}"), wanted.to_string())
                .hint("keep one of them"));
        }
        if wishes.fps == Some(0.0) {
            return Err(context.error("bad_number", "`fps` is 0").hint("give a rate above 0"));
        }
        if let (Some(start), Some(end)) = (wishes.start, wishes.end)
            && end <= start
        {
            return Err(context
                .error("bad_number", "the time range is empty")
                .expected(format!("`video_end` above `video_start` = {start}"), end.to_string()));
        }
        Ok(wishes)
    }

    fn apply(&self, mut media: MediaRef) -> MediaRef {
        if media.kind != MediaKind::Image {
            media.nframes = media.nframes.or(self.nframes);
            media.fps = media.fps.or(self.fps);
            media.min_frames = media.min_frames.or(self.min_frames);
            media.max_frames = media.max_frames.or(self.max_frames);
            media.start = media.start.or(self.start);
            media.end = media.end.or(self.end);
        }
        media
    }
}

/// A picture, from a path or an address.
pub(super) fn image(context: &Context<'_>, field: &str, value: &Value) -> Result<MediaRef, RecordError> {
    Ok(MediaRef::new(MediaKind::Image, one_source(context, field, value)?))
}

/// A clip, from a path, an address, or a list of frames.
pub(super) fn video(
    context: &Context<'_>,
    field: &str,
    value: &Value,
    wishes: &FrameWishes,
) -> Result<MediaRef, RecordError> {
    let source = match value {
        Value::Array(files) if files.is_empty() => {
            return Err(context.error("missing_media", format!("`{field}` is an empty list of frames")));
        }
        Value::Array(files) => MediaSource::Files(
            files
                .iter()
                .map(|file| match one_source(context, field, file)? {
                    MediaSource::Path(path) => Ok(path),
                    _ => Err(context
                        .error("bad_media", format!("`{field}` lists an address"))
                        .hint("a list of frames must name local files")),
                })
                .collect::<Result<_, _>>()?,
        ),
        other => one_source(context, field, other)?,
    };
    Ok(wishes.apply(MediaRef::new(MediaKind::Video, source)))
}

/// Sound, from a path or an address.
pub(super) fn audio(context: &Context<'_>, field: &str, value: &Value) -> Result<MediaRef, RecordError> {
    Ok(MediaRef::new(MediaKind::Audio, source_in(context, context.audio_dir, field, value)?))
}

/// A path or address; an object `{"url": ...}` as OpenAI writes it.
fn one_source(context: &Context<'_>, field: &str, value: &Value) -> Result<MediaSource, RecordError> {
    source_in(context, context.media_dir, field, value)
}

/// The same with relative paths taken from a folder.
fn source_in(context: &Context<'_>, dir: &Path, field: &str, value: &Value) -> Result<MediaSource, RecordError> {
    let text = match value {
        Value::String(text) => text,
        Value::Object(object) => match object.get("url") {
            Some(Value::String(text)) => {
                if let Some((key, _)) =
                    object.iter().find(|(k, v)| *k != "url" && !(*k == "detail" && v.as_str() == Some("auto")))
                {
                    return Err(context
                        .error("unknown_key", format!("`{field}` has an unknown key `{key}`"))
                        .hint("only `url` (and `detail: auto`) is known"));
                }
                text
            }
            _ => {
                return Err(context
                    .error("bad_media", format!("`{field}` names no media"))
                    .expected("a key `url`", list_keys(object)));
            }
        },
        other => {
            return Err(context
                .error("bad_media", format!("`{field}` has the wrong type"))
                .expected("a path or an address", kind_of(other)));
        }
    };
    if text.trim().is_empty() {
        return Err(context.error("missing_media", format!("`{field}` is empty")).hint("name the file, or remove it"));
    }
    let lower = text.get(..8).unwrap_or(text).to_ascii_lowercase();
    if lower.starts_with("https://") {
        Ok(MediaSource::Url(text.clone()))
    } else if lower.starts_with("http://") {
        Err(context
            .error("bad_media", format!("`{field}` is `{text}`, an address without encryption"))
            .hint("use https, or download the file"))
    } else if lower.starts_with("data:") {
        Err(context
            .error("not_built", format!("`{field}` holds the media itself, which is not built yet"))
            .hint("write it to a file and name the file"))
    } else if let Some(scheme) = scheme_of(text).filter(|scheme| !scheme.eq_ignore_ascii_case("file")) {
        Err(context
            .error("bad_media", format!("`{field}` is `{text}`, and addresses with `{scheme}:` are not supported"))
            .hint("download the file and name it, or give an https address"))
    } else {
        Ok(MediaSource::Path(context.resolve(text, dir)))
    }
}

/// What stands before `://`, or before the `:` of libav's own protocols that name several files.
fn scheme_of(text: &str) -> Option<&str> {
    let (scheme, rest) = text.split_once(':')?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    let is_libav = ["concat", "concatf", "subfile"].contains(&scheme.to_ascii_lowercase().as_str());
    (is_scheme && (rest.starts_with("//") || is_libav)).then_some(scheme)
}

/// A part of a turn as OpenAI and `transformers` write it. `bare` decides what a picture or clip without a source is.
pub(super) fn part(
    context: &Context<'_>,
    turn: usize,
    value: &Value,
    bare: &mut dyn FnMut(&str) -> Result<MediaRef, RecordError>,
) -> Result<Part, RecordError> {
    let object = match value {
        Value::String(text) => return Ok(Part::Text(text.clone())),
        Value::Object(object) => object,
        other => {
            return Err(context
                .error("bad_part", format!("a part of turn {turn} has the wrong type"))
                .expected("an object with `type`", kind_of(other)));
        }
    };
    let Some(kind) = object.get("type").and_then(Value::as_str) else {
        return Err(context
            .error("bad_part", format!("a part of turn {turn} has no `type`"))
            .expected("a key `type`", list_keys(object)));
    };
    let sources: &[&str] = match kind {
        "text" => {
            check_keys(context, turn, kind, object, &["text"])?;
            return match object.get("text") {
                Some(Value::String(text)) => Ok(Part::Text(text.clone())),
                other => Err(context
                    .error("bad_part", format!("a text part of turn {turn} has no text"))
                    .expected("a key `text` with a text", other.map_or("none".into(), kind_of))),
            };
        }
        "image" => &["image", "path", "url"],
        "image_url" => &["image_url"],
        "video" => &["video", "path", "url"],
        "video_url" => &["video_url"],
        "audio" => &["audio", "path", "url"],
        "audio_url" => &["audio_url"],
        "input_audio" | "speech" => {
            return Err(context
                .error("not_built", format!("a part of turn {turn} is of type `{kind}`, which is not built yet"))
                .hint("name a file or an address in a part of type `audio`"));
        }
        other => {
            return Err(context.error("unknown_part", format!("a part of turn {turn} has an unknown type")).expected(
                "one of `text`, `image`, `image_url`, `video`, `video_url`, `audio`, `audio_url`",
                format!("`{other}`"),
            ));
        }
    };
    let is_video = kind.starts_with("video");
    let mut known = sources.to_vec();
    if is_video {
        known.extend(WISH_KEYS);
    }
    // Fields that are not built yet are refused by name before unknown ones.
    let wishes = FrameWishes::read(context, object)?;
    check_keys(context, turn, kind, object, &known)?;
    let mut named = sources.iter().filter_map(|&s| object.get(s).filter(|v| !v.is_null()).map(|v| (s, v)));
    let media = match (named.next(), named.next()) {
        (Some((first, _)), Some((second, _))) => {
            return Err(context
                .error("contradiction", format!("a part of turn {turn} has both `{first}` and `{second}`"))
                .hint("keep one of them"));
        }
        (Some((field, value)), None) if kind.starts_with("audio") => audio(context, field, value)?,
        (Some((field, value)), None) if is_video => video(context, field, value, &wishes)?,
        (Some((field, value)), None) => image(context, field, value)?,
        (None, _) => wishes.apply(bare(kind)?),
    };
    Ok(Part::Media(media))
}

fn check_keys(
    context: &Context<'_>,
    turn: usize,
    kind: &str,
    object: &Object,
    known: &[&str],
) -> Result<(), RecordError> {
    match object.iter().find(|(k, v)| *k != "type" && !v.is_null() && !known.contains(&k.as_str())) {
        None => Ok(()),
        Some((key, _)) => Err(context
            .error("unknown_key", format!("a `{kind}` part of turn {turn} has an unknown key `{key}`"))
            .hint(format!("known are {}", known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")))),
    }
}

/// Whether two words are equal, or become so by one letter more, less, changed, or swapped with its neighbour.
fn is_one_slip(found: &str, wanted: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (found.chars().collect(), wanted.chars().collect());
    let start = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[start..], &b[start..]);
    match (a, b) {
        ([], []) => true,
        ([x, y, a @ ..], [v, w, b @ ..]) if (x, y) == (w, v) && a == b => true,
        _ => {
            let after = |rest: &[char]| rest.get(1..).unwrap_or_default().to_vec();
            (a.len() == b.len() && after(a) == after(b))
                || (a.len() == b.len() + 1 && after(a) == b)
                || (a.len() + 1 == b.len() && a == after(b))
        }
    }
}

fn number(context: &Context<'_>, object: &Object, key: &str) -> Result<Option<f64>, RecordError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(n) if n.is_finite() && n >= 0.0 => Ok(Some(n)),
            _ => Err(context
                .error("bad_number", format!("`{key}` is not a usable number"))
                .expected("a number of at least 0", kind_of(value))),
        },
    }
}

fn count(context: &Context<'_>, object: &Object, key: &str) -> Result<Option<usize>, RecordError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(n) if n > 0 => Ok(Some(n as usize)),
            _ => Err(context
                .error("bad_number", format!("`{key}` is not a usable count"))
                .expected("a whole number of at least 1", kind_of(value))),
        },
    }
}

/// Keys by which other tools name media; read under another name here.
const OTHER_NAMES: [(&str, &str); 15] = [
    ("img", "image"),
    ("imgs", "images"),
    ("image_file", "image"),
    ("image_path", "image"),
    ("image_paths", "images"),
    ("image_url", "image"),
    ("video_file", "video"),
    ("video_path", "video"),
    ("video_paths", "videos"),
    ("video_url", "video"),
    ("audio_file", "audio"),
    ("audio_path", "audio"),
    ("audio_url", "audio"),
    ("clip", "video"),
    ("clips", "videos"),
];

/// Refuses record fields that carry content which is not built yet, and fields that seem to name media and would be
/// passed over. `known` are the format's own media fields.
pub(super) fn check_fields(context: &Context<'_>, record: &Object, known: &[&str]) -> Result<(), RecordError> {
    for (key, value) in record.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
        let holds_names = match value {
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            _ => false,
        };
        let lower = key.to_ascii_lowercase();
        let other = OTHER_NAMES.iter().find(|(name, _)| *name == lower).map(|&(_, meant)| meant);
        let near = || ["image", "images", "video", "videos"].into_iter().find(|name| is_one_slip(&lower, name));
        if let Some(meant) = other.or_else(near).filter(|_| holds_names) {
            let hint = if known.contains(&meant) {
                format!("did you mean `{meant}`? rename it, or remove it")
            } else {
                format!("name the media in a part of type `{}`, or remove it", meant.trim_end_matches('s'))
            };
            return Err(context
                .error("unknown_key", format!("`{key}` seems to name media, and no such field is read"))
                .hint(hint));
        }
    }
    for key in ["audio", "audios", "speech", "tools"].into_iter().filter(|key| !known.contains(key)) {
        let empty = match record.get(key) {
            None | Some(Value::Null) => true,
            Some(Value::String(s)) => s.is_empty(),
            Some(Value::Array(a)) => a.is_empty(),
            Some(_) => false,
        };
        if !empty {
            return Err(context
                .error("not_built", format!("`{key}` is not built yet"))
                .hint(format!("remove `{key}` from the record")));
        }
    }
    Ok(())
}
