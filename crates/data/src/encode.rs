//! Owns the way of one record: frames chosen, text rendered and tokenised once, placeholders expanded, labels set,
//! pictures normalised. It refuses to cut a record: what is too long gets fewer frames or is refused.

use std::ops::Range;

use media::RgbImage;
use serde_json::{Value, json};

use crate::batch::{Encoded, IGNORE, Prepared, RecordSize};
use crate::cache::FrameCache;
use crate::clips::Clips;
use crate::error::{DataError, RecordError};
use crate::options::{EncodeOptions, OnLong};
use crate::processor::Processor;
use crate::record::{Format, Part, Role, Sample};
use crate::template::ContentShape;
use crate::template::spans::{self, Rendered};
use crate::tokenizer::Piece;

impl Processor {
    /// One record as the model sees it: media decoded, text rendered and tokenised, labels set.
    ///
    /// # Errors
    /// The record, its media, or its length.
    pub fn encode(&self, sample: &Sample, options: &EncodeOptions) -> Result<Encoded, DataError> {
        Ok(self.normalise(self.prepare(sample, options)?))
    }

    /// Tokens and patches that the record will have, without decoding its videos. A record that is refused here would be
    /// refused by [`Processor::encode`]; not the other way round.
    ///
    /// # Errors
    /// As [`Processor::encode`].
    pub fn measure(&self, sample: &Sample, options: &EncodeOptions) -> Result<RecordSize, DataError> {
        if let Some(pair) = &self.pair {
            return pair.measure(&self.tokenizer, sample, options);
        }
        let (clips, text) = self.plan(sample, options)?;
        let Some((settings, tokens)) = &self.image else {
            return Ok(RecordSize { tokens: text.pieces.len() as u32, patches: 0 });
        };
        let sizes = match settings.fixed_size() {
            Some(size) => vec![size; text.num_pictures],
            None => {
                let sizes = clips.source_sizes(sample, options)?;
                sizes.into_iter().map(|(height, width)| settings.output_size(height, width)).collect()
            }
        };
        let in_pictures: usize = sizes.iter().map(|&(height, width)| tokens.count(height, width)).sum();
        let patches: usize =
            sizes.iter().map(|&(height, width)| (height / tokens.patch) * (width / tokens.patch)).sum();
        let length = text.pieces.len() - text.num_pictures + in_pictures;
        if let Some(limit) = options.max_length.filter(|&limit| length > limit) {
            return Err(too_long(sample, length, limit, 0));
        }
        Ok(RecordSize { tokens: length as u32, patches: patches as u32 })
    }

    /// The frames chosen and the text tokenised: all that is known of a record before its media are decoded.
    fn plan(&self, sample: &Sample, options: &EncodeOptions) -> Result<(Clips, Tokenised), DataError> {
        if self.image.is_none() && sample.media().next().is_some() {
            return Err(record_error(
                sample,
                "no_image_processor",
                "the record has media, and the checkpoint takes none",
            )
            .hint("use a checkpoint with `preprocessor_config.json`, or text-only records")
            .into());
        }
        let mut clips = Clips::open(sample, options, &self.video, self.cache_for(options))?;
        let mut text = self.render(sample, &clips, options)?;
        // Where the size of a picture follows from its file, the length is only known once it is read.
        if let (Some(limit), Some(each)) = (options.max_length, self.tokens_per_image()) {
            text = self.fit(sample, &mut clips, options, text, limit, each)?;
        }
        Ok((clips, text))
    }

    fn cache_for(&self, options: &EncodeOptions) -> Option<&FrameCache> {
        self.cache.as_deref().filter(|_| !options.skip_frame_cache)
    }

    /// As [`Processor::encode`], with the pictures still in bytes.
    pub(crate) fn prepare(&self, sample: &Sample, options: &EncodeOptions) -> Result<Prepared, DataError> {
        if let Some(pair) = &self.pair {
            let encoded = pair.encode(&self.tokenizer, sample, options)?;
            return Ok(Prepared { encoded, pictures: Vec::new() });
        }
        let (mut clips, text) = self.plan(sample, options)?;
        let mut encoded = Encoded { id: sample.id.clone(), index: sample.origin.index, ..Encoded::default() };
        let (mut counts, mut pictures) = (Vec::new(), Vec::new());
        if let Some((settings, tokens)) = &self.image {
            for (picture, info) in clips.load(sample, options, settings, self.cache_for(options))? {
                let (height, width) = (picture.height as usize, picture.width as usize);
                let shape = [3, height, width];
                if encoded.num_images > 0 && encoded.image_shape != shape {
                    return Err(record_error(sample, "picture_shapes", "the pictures have different shapes")
                        .expected(format!("{:?}", encoded.image_shape), format!("{shape:?}"))
                        .hint("set `do_center_crop` or a fixed `size` in `preprocessor_config.json`")
                        .into());
                }
                encoded.image_shape = shape;
                encoded.num_images += 1;
                encoded.grids.push([1, height / tokens.patch, width / tokens.patch]);
                encoded.frame_seconds.push(vec![info.seconds]);
                encoded.frames.push(info);
                counts.push(tokens.count(height, width));
                pictures.push(picture);
            }
        }
        self.expand(sample, &text, &counts, options, &mut encoded)?;
        if let Some(limit) = options.max_length.filter(|&l| encoded.ids.len() > l) {
            return Err(too_long(sample, encoded.ids.len(), limit, 0));
        }
        if !options.add_generation_prompt && encoded.num_supervised() == 0 {
            return Err(record_error(sample, "nothing_supervised", "no token of the answers is left to learn from")
                .hint("check the chat template with `vidtune data preview`")
                .into());
        }
        encoded.text = text.rendered.text;
        encoded.notes = clips.notes;
        Ok(Prepared { encoded, pictures })
    }

    /// Makes values of the pictures' bytes.
    fn normalise(&self, prepared: Prepared) -> Encoded {
        let Prepared { mut encoded, pictures } = prepared;
        self.write_values(&pictures, &mut encoded.pixels);
        encoded
    }

    /// Writes the values of pictures at the end of `values`.
    pub(crate) fn write_values(&self, pictures: &[RgbImage], values: &mut Vec<f32>) {
        let Some((settings, _)) = &self.image else { return };
        for picture in pictures {
            let start = values.len();
            values.resize(start + picture.data.len(), 0.0);
            settings.write_values(picture, &mut values[start..]);
        }
    }

    /// Renders and tokenises a record with the frames chosen so far.
    fn render(&self, sample: &Sample, clips: &Clips, options: &EncodeOptions) -> Result<Tokenised, DataError> {
        let messages = self.messages(sample, clips)?;
        let rendered = if options.add_generation_prompt {
            self.template.render(&messages, true).map(|text| Rendered { text, spans: Vec::new() })
        } else {
            spans::render(&self.template, &messages)
        };
        let rendered = rendered.map_err(|error| refused_by_template(sample, error))?;
        let num_pictures: usize = (0..sample.media().count()).map(|m| clips.num_pictures(m)).sum();
        if let Some((_, tokens)) = &self.image {
            let found = rendered.text.matches(&tokens.text).count();
            if found != num_pictures {
                return Err(record_error(
                    sample,
                    "placeholder_count",
                    format!("the number of `{}` placeholders in the text is not the number of pictures", tokens.text),
                )
                .expected(num_pictures.to_string(), found.to_string())
                .hint(format!("write `{}` nowhere but where a picture stands", tokens.text))
                .into());
            }
        }
        let pieces = self.tokenizer.encode(&rendered.text)?;
        Ok(Tokenised { rendered, pieces, num_pictures })
    }

    /// Lowers the number of frames until the record fits, or refuses it.
    fn fit(
        &self,
        sample: &Sample,
        clips: &mut Clips,
        options: &EncodeOptions,
        text: Tokenised,
        limit: usize,
        each: usize,
    ) -> Result<Tokenised, DataError> {
        let full = text.len(each);
        if full <= limit {
            return Ok(text);
        }
        let most = clips.most_frames();
        if options.on_long == OnLong::Refuse || most < 2 {
            return Err(too_long(sample, full, limit, 0));
        }
        // The length grows with the number of frames: the largest number that fits is found by halving.
        let (mut fits, mut too_many) = (0, most);
        let mut best = None;
        while too_many - fits > 1 {
            let middle = usize::midpoint(fits, too_many);
            let mut trial = clips.clone();
            trial.shrink(middle);
            let shorter = self.render(sample, &trial, options)?;
            if shorter.len(each) <= limit {
                fits = middle;
                best = Some((trial, shorter));
            } else {
                too_many = middle;
            }
        }
        match best {
            Some((shrunk, shorter)) => {
                *clips = shrunk;
                Ok(shorter)
            }
            None => Err(too_long(sample, full, limit, most)),
        }
    }

    /// Token ids, labels and picture rows from the tokenised text.
    fn expand(
        &self,
        sample: &Sample,
        text: &Tokenised,
        counts: &[usize],
        options: &EncodeOptions,
        out: &mut Encoded,
    ) -> Result<(), DataError> {
        let supervised = self.supervised(&text.pieces, &text.rendered.spans);
        let image_id = self.image.as_ref().map(|(_, tokens)| tokens.id);
        let mut counts = counts.iter();
        for (piece, &learn) in text.pieces.iter().zip(&supervised) {
            if Some(piece.id) == image_id {
                let Some(&count) = counts.next() else {
                    return Err(
                        record_error(sample, "placeholder_count", "there are more placeholders than pictures").into()
                    );
                };
                let first = out.ids.len();
                out.image_rows.extend((first..first + count).map(|row| row as u32));
                out.ids.resize(first + count, piece.id);
                out.labels.resize(first + count, IGNORE);
            } else {
                out.ids.push(piece.id);
                out.labels.push(if learn && !options.add_generation_prompt { piece.id as i32 } else { IGNORE });
            }
        }
        if counts.next().is_some() {
            return Err(record_error(sample, "placeholder_count", "there are more pictures than placeholders").into());
        }
        out.spans = supervised_bytes(&text.pieces, &supervised);
        Ok(())
    }

    /// Which tokens are learned: those that overlap a span, and the end-of-turn token directly after it.
    fn supervised(&self, pieces: &[Piece], spans: &[Range<usize>]) -> Vec<bool> {
        let mut supervised = vec![false; pieces.len()];
        for span in spans {
            let overlaps = |p: &Piece| p.bytes.start < span.end && p.bytes.end > span.start;
            let Some(last) = pieces.iter().rposition(overlaps) else { continue };
            for (piece, learn) in pieces.iter().zip(&mut supervised) {
                *learn |= overlaps(piece);
            }
            if !self.tokenizer.ends_turn(pieces[last].id)
                && pieces.get(last + 1).is_some_and(|next| self.tokenizer.ends_turn(next.id))
            {
                supervised[last + 1] = true;
            }
        }
        supervised
    }

    /// The dialogue as the template takes it.
    fn messages(&self, sample: &Sample, clips: &Clips) -> Result<Value, DataError> {
        let placeholder = self.image.as_ref().map_or("", |(_, tokens)| tokens.text.as_str());
        let mut media = 0;
        let mut messages = Vec::with_capacity(sample.conversation.len());
        for turn in &sample.conversation {
            let mut pieces = Vec::new();
            for part in &turn.parts {
                match part {
                    Part::Text(text) => pieces.push(ContentPiece::Text(text)),
                    Part::Media(_) => {
                        pieces.push(ContentPiece::Pictures(clips.num_pictures(media)));
                        media += 1;
                    }
                }
            }
            let content = match self.template.shape() {
                ContentShape::Parts => parts_content(&pieces, sample.format),
                ContentShape::Text if self.media_only_user && turn.role == Role::User => {
                    Value::String(media_only(sample, &pieces, placeholder)?)
                }
                ContentShape::Text => Value::String(text_content(&pieces, placeholder)),
            };
            messages.push(json!({"role": turn.role.name(), "content": content}));
        }
        Ok(Value::Array(messages))
    }
}

/// A rendered record with its tokens, placeholders not yet expanded.
struct Tokenised {
    rendered: Rendered,
    pieces: Vec<Piece>,
    num_pictures: usize,
}

impl Tokenised {
    /// Tokens after expansion, when every picture takes `each`.
    fn len(&self, each: usize) -> usize {
        self.pieces.len() - self.num_pictures + self.num_pictures * each
    }
}

/// A part of a turn with its pictures counted.
enum ContentPiece<'a> {
    Text(&'a str),
    Pictures(usize),
}

/// Content for a template that places pictures itself. In `llava` records the newline after a placeholder is part of
/// the placeholder.
fn parts_content(pieces: &[ContentPiece<'_>], format: Format) -> Value {
    let mut parts = Vec::new();
    let mut after_picture = false;
    for piece in pieces {
        match piece {
            ContentPiece::Pictures(count) => {
                parts.extend((0..*count).map(|_| json!({"type": "image"})));
                after_picture = true;
            }
            ContentPiece::Text(text) => {
                let text = if after_picture && format == Format::Llava { without_newline(text) } else { text };
                // An empty part is the record's own, save where the placeholder was all of the text.
                if !text.is_empty() || format != Format::Llava {
                    parts.push(json!({"type": "text", "text": text}));
                }
                after_picture = false;
            }
        }
    }
    Value::Array(parts)
}

fn without_newline(text: &str) -> &str {
    text.strip_prefix("\r\n").or_else(|| text.strip_prefix('\n')).unwrap_or(text)
}

/// Content for a template that takes text: placeholders where the pictures stand, and a newline between the last
/// picture and the words unless one is there.
fn text_content(pieces: &[ContentPiece<'_>], placeholder: &str) -> String {
    let mut out = String::new();
    let mut after_picture = false;
    for piece in pieces {
        match piece {
            ContentPiece::Pictures(count) => {
                out.push_str(&placeholder.repeat(*count));
                after_picture = true;
            }
            ContentPiece::Text(text) => {
                if after_picture && !text.starts_with(['\n', '\r']) && !text.trim().is_empty() {
                    out.push('\n');
                }
                out.push_str(text);
                after_picture = false;
            }
        }
    }
    out
}

/// The user's pictures without the user's words; the newline after a placeholder stays.
fn media_only(sample: &Sample, pieces: &[ContentPiece<'_>], placeholder: &str) -> Result<String, DataError> {
    let mut out = String::new();
    let mut after_picture = false;
    for piece in pieces {
        match piece {
            ContentPiece::Pictures(count) => {
                out.push_str(&placeholder.repeat(*count));
                after_picture = true;
            }
            ContentPiece::Text(text) => {
                if after_picture && text.starts_with('\n') {
                    out.push('\n');
                }
                after_picture = false;
            }
        }
    }
    if out.is_empty() {
        return Err(record_error(sample, "no_media", "the chat template `plain` needs a picture in every question")
            .hint("choose another template with `model.version`, or remove the record")
            .into());
    }
    Ok(out)
}

/// Byte ranges of the supervised tokens, neighbours joined.
fn supervised_bytes(pieces: &[Piece], supervised: &[bool]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut joined = false;
    for (piece, &learn) in pieces.iter().zip(supervised) {
        if learn && !piece.bytes.is_empty() {
            match ranges.last_mut() {
                Some(last) if joined && piece.bytes.start <= last.end => last.end = last.end.max(piece.bytes.end),
                _ => ranges.push(piece.bytes.clone()),
            }
        }
        joined = learn;
    }
    ranges
}

/// A template that took a dialogue when it was loaded and refuses this one: the fault of the record.
fn refused_by_template(sample: &Sample, error: DataError) -> DataError {
    match error {
        DataError::Template { origin, what, hint } => {
            record_error(sample, "template", format!("the chat template of `{origin}` refuses the dialogue: {what}"))
                .hint(hint)
                .into()
        }
        other => other,
    }
}

fn record_error(sample: &Sample, reason: &'static str, what: impl Into<String>) -> RecordError {
    RecordError::new(reason, &sample.origin, Some(&sample.id), what)
}

fn too_long(sample: &Sample, found: usize, limit: usize, frames: usize) -> DataError {
    let what =
        if frames > 0 { "the record is too long, with one frame a clip as well" } else { "the record is too long" };
    record_error(sample, "too_long", what)
        .expected(format!("at most {limit} tokens (`max_length`)"), found.to_string())
        .hint("raise `data.max_length`, lower `data.num_frames`, or remove the record")
        .into()
}
