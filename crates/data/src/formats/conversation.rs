//! Owns the `conversation` format: content as parts, one video beside them, N bare image parts for N of its frames.
//! It refuses a count that contradicts the parts.

use serde_json::Value;

use super::media_fields::{FrameWishes, check_fields, part, video};
use super::{Context, Object, kind_of, required_list, role_of};
use crate::error::RecordError;
use crate::record::{MediaKind, MediaRef, Part, Turn};

/// Reads the turns of a record.
pub(super) fn parse(context: &Context<'_>, record: &Object) -> Result<Vec<Turn>, RecordError> {
    check_fields(context, record, &["video", "video_url", "video_path"])?;
    let list = required_list(context, record, "conversation")?;
    let wishes = FrameWishes::read(context, record)?;
    let clip = clip_of(context, record, &wishes)?;
    let total = list.iter().filter_map(|t| t.get("content")?.as_array()).flatten().filter(|p| is_bare_image(p)).count();
    let mut position = 0;
    let mut whole_clips = 0;
    let mut turns = Vec::with_capacity(list.len());
    for (number, item) in list.iter().enumerate() {
        let Some(name) = item.get("role").and_then(Value::as_str) else {
            return Err(context
                .error("bad_turn", format!("turn {number} has no `role`"))
                .expected("`{\"role\": ..., \"content\": [...]}`", kind_of(item)));
        };
        let role = role_of(context, number, name)?;
        let mut bare = |kind: &str| -> Result<MediaRef, RecordError> {
            let Some((_, clip)) = &clip else {
                return Err(context
                    .error("missing_media", format!("turn {number} has a bare `{kind}` part and the record no video"))
                    .hint("add `video` or `video_url` to the record, or name the media in the part"));
            };
            let mut media = clip.clone();
            if kind.starts_with("audio") {
                media =
                    MediaRef { start: media.start, end: media.end, ..MediaRef::new(MediaKind::Audio, media.source) };
            } else if kind.starts_with("image") {
                (media.kind, media.nframes) = (MediaKind::FrameOf { position, total }, Some(total));
                position += 1;
            } else {
                whole_clips += 1;
            }
            Ok(media)
        };
        let parts = match item.get("content") {
            Some(Value::String(text)) => vec![Part::Text(text.clone())],
            Some(Value::Array(parts)) => {
                parts.iter().map(|p| part(context, number, p, &mut bare)).collect::<Result<_, _>>()?
            }
            other => {
                return Err(context
                    .error("bad_turn", format!("`content` of turn {number} has the wrong type"))
                    .expected("a text or a list of parts", other.map_or("none".into(), kind_of)));
            }
        };
        turns.push(Turn { role, parts });
    }
    check_count(context, clip.as_ref(), &wishes, position, whole_clips)?;
    Ok(turns)
}

/// The record's video, with the name of its field.
fn clip_of<'a>(
    context: &Context<'_>,
    record: &'a Object,
    wishes: &FrameWishes,
) -> Result<Option<(&'a str, MediaRef)>, RecordError> {
    let mut named = ["video", "video_url", "video_path"]
        .into_iter()
        .filter_map(|key| record.get_key_value(key).filter(|(_, v)| !v.is_null() && v.as_str() != Some("")));
    match (named.next(), named.next()) {
        (Some((first, _)), Some((second, _))) => Err(context
            .error("contradiction", format!("the record has both `{first}` and `{second}`"))
            .hint("keep one of them")),
        (Some((key, value)), None) => Ok(Some((key, video(context, key, value, wishes)?))),
        (None, _) => Ok(None),
    }
}

fn is_bare_image(part: &Value) -> bool {
    part.get("type").and_then(Value::as_str) == Some("image")
        && ["image", "path", "url"].iter().all(|k| part.get(k).is_none_or(Value::is_null))
}

fn check_count(
    context: &Context<'_>,
    clip: Option<&(&str, MediaRef)>,
    wishes: &FrameWishes,
    frames: usize,
    whole_clips: usize,
) -> Result<(), RecordError> {
    let Some((field, _)) = clip else { return Ok(()) };
    if frames == 0 && whole_clips == 0 {
        return Err(context
            .error("placeholder_count", format!("the record has `{field}` and no part that stands for it"))
            .expected("`image` parts for its frames, or one `video` part", "none")
            .hint("add the parts, or remove the video"));
    }
    if let Some(wanted) = wishes.nframes.filter(|&n| frames > 0 && n != frames) {
        return Err(context
            .error("placeholder_count", "the number of `image` parts is not the number of frames")
            .expected(format!("{wanted} (`num_frames`)"), frames.to_string())
            .hint("write one bare `image` part for each frame, or remove `num_frames`"));
    }
    Ok(())
}
