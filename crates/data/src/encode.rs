//! Owns the way of one record: frames chosen, text rendered and tokenised once, placeholders expanded, labels set,
//! pictures normalised. It refuses to cut a record: what is too long gets fewer frames or is refused.

use std::ops::Range;

use media::RgbImage;

use crate::batch::{Encoded, IGNORE, Prepared, RecordSize, Visual, VisualKind};
use crate::cache::FrameCache;
use crate::clips::Clips;
use crate::content::placed;
use crate::error::{DataError, RecordError};
use crate::options::{EncodeOptions, OnLong};
use crate::processor::Processor;
use crate::record::Sample;
use crate::sound::hear;
use crate::template::spans::{self, Rendered};
use crate::tokenizer::Piece;
use crate::vision::{Layout, Vision};

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
        let (_, text) = self.plan(sample, options)?;
        let length = text.len();
        if let Some(limit) = options.max_length.filter(|&limit| length > limit) {
            return Err(too_long(sample, length, limit, 0));
        }
        let patches: usize = text.layout.visuals.iter().map(|planned| planned.visual.num_patches()).sum();
        Ok(RecordSize { tokens: length as u32, patches: patches as u32 })
    }

    /// The frames chosen and the text tokenised: all that is known of a record before its media are decoded.
    fn plan(&self, sample: &Sample, options: &EncodeOptions) -> Result<(Clips, Tokenised), DataError> {
        if self.vision.is_none() && sample.media().next().is_some() {
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
        if let Some(limit) = options.max_length {
            text = self.fit(sample, &mut clips, options, text, limit)?;
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
        let mut pictures = Vec::new();
        if let Some(vision) = &self.vision {
            let layout = &text.layout;
            let loaded = clips.load(sample, options, vision, &layout.targets, self.cache_for(options))?;
            let mut loaded = layout.in_order_of_text(loaded).into_iter();
            for planned in layout.visuals.iter().filter(|planned| planned.visual.kind != VisualKind::Audio) {
                let shape = vision.row_shape(planned.size);
                if encoded.num_images > 0 && encoded.pixel_shape != shape {
                    return Err(record_error(sample, "picture_shapes", "the pictures have different shapes")
                        .expected(format!("{:?}", encoded.pixel_shape), format!("{shape:?}"))
                        .hint("set `do_center_crop` or a fixed `size` in `preprocessor_config.json`")
                        .into());
                }
                encoded.pixel_shape = shape;
                for (picture, info) in loaded.by_ref().take(planned.visual.seconds.len()) {
                    let (height, width) = (picture.height as usize, picture.width as usize);
                    if (height, width) != planned.size {
                        let (wanted_height, wanted_width) = planned.size;
                        return Err(record_error(
                            sample,
                            "picture_shapes",
                            "the frames of a clip have different sizes",
                        )
                        .expected(
                            format!("{wanted_width}x{wanted_height} as the first one gives"),
                            format!("{width}x{height} of frame {}", info.index),
                        )
                        .hint("scale the frames to one size, or remove the record")
                        .into());
                    }
                    encoded.num_images += 1;
                    encoded.frames.push(info);
                    pictures.push(picture);
                }
                encoded.visuals.push(planned.visual.clone());
            }
            drop(loaded);
            if let Some(speech) = vision.speech() {
                hear(sample, &mut clips, &text.layout, speech, options, &mut encoded)?;
            }
        }
        self.expand(sample, &text, options, &mut encoded)?;
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
        self.write_values(&encoded.visuals, &pictures, &mut encoded.pixels);
        encoded
    }

    /// Writes the values of media, given with their pictures, at the end of `values`.
    pub(crate) fn write_values(&self, visuals: &[Visual], pictures: &[RgbImage], values: &mut Vec<f32>) {
        if let Some(vision) = &self.vision {
            vision.write_values(visuals, pictures, values);
        }
    }

    /// Renders and tokenises a record with the frames chosen so far.
    fn render(&self, sample: &Sample, clips: &Clips, options: &EncodeOptions) -> Result<Tokenised, DataError> {
        let mut layout = match &self.vision {
            Some(vision) => vision.layout(clips, sample, options)?,
            None => Layout::default(),
        };
        let messages = self.messages(sample, &layout)?;
        let rendered = if options.add_generation_prompt {
            self.template.render(&messages, true).map(|text| Rendered { text, spans: Vec::new() })
        } else {
            spans::render(&self.template, &messages)
        };
        let mut rendered = rendered.map_err(|error| refused_by_template(sample, error))?;
        if let Some(vision) = &self.vision {
            rendered = placed(vision, &mut layout, rendered, sample)?;
        }
        let marks = self.vision.as_ref().map(Vision::marks).unwrap_or_default();
        let pieces = match marks.is_empty() {
            true => self.tokenizer.encode(&rendered.text)?,
            false => self.tokenizer.encode_between(&rendered.text, &marks)?,
        };
        Ok(Tokenised { rendered, pieces, layout })
    }

    /// Lowers the number of frames until the record fits, or refuses it.
    fn fit(
        &self,
        sample: &Sample,
        clips: &mut Clips,
        options: &EncodeOptions,
        text: Tokenised,
        limit: usize,
    ) -> Result<Tokenised, DataError> {
        let full = text.len();
        if full <= limit {
            return Ok(text);
        }
        let most = clips.most_frames();
        let step = self.vision.as_ref().map_or(1, Vision::frames_a_step);
        if options.on_long == OnLong::Refuse || most <= step {
            return Err(too_long(sample, full, limit, 0));
        }
        // The length grows with the number of frames: the largest number that fits is found by halving. (Where frames
        // share a budget of pixels it may stand still for a while; what is found fits, if anything does.)
        let (mut fits, mut too_many) = (0, most.div_ceil(step));
        let mut best = None;
        while too_many - fits > 1 {
            let middle = usize::midpoint(fits, too_many);
            let mut trial = clips.clone();
            trial.shrink(middle * step);
            let shorter = self.render(sample, &trial, options)?;
            if shorter.len() <= limit {
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
        options: &EncodeOptions,
        out: &mut Encoded,
    ) -> Result<(), DataError> {
        let supervised = self.supervised(&text.pieces, &text.rendered.spans);
        let id_of = |kind| Some(self.vision.as_ref()?.placeholder(kind)?.id);
        let ids = [id_of(VisualKind::Image), id_of(VisualKind::Video), id_of(VisualKind::Audio)];
        let visuals = text.layout.visuals.iter();
        let mut slots = visuals.flat_map(|planned| planned.slots.iter().map(|&slot| (planned.visual.kind, slot)));
        for (piece, &learn) in text.pieces.iter().zip(&supervised) {
            if ids.contains(&Some(piece.id)) {
                let Some((kind, count)) = slots.next().filter(|(kind, _)| id_of(*kind) == Some(piece.id)) else {
                    let what = "the placeholders among the tokens are not those of the media";
                    return Err(record_error(sample, "placeholder_count", what).into());
                };
                let first = out.ids.len();
                let rows = if kind == VisualKind::Audio { &mut out.speech_rows } else { &mut out.image_rows };
                rows.extend((first..first + count).map(|row| row as u32));
                out.ids.resize(first + count, piece.id);
                out.labels.resize(first + count, IGNORE);
            } else {
                out.ids.push(piece.id);
                out.labels.push(if learn && !options.add_generation_prompt { piece.id as i32 } else { IGNORE });
            }
        }
        if slots.next().is_some() {
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
}

/// A rendered record with its tokens, placeholders not yet expanded.
struct Tokenised {
    rendered: Rendered,
    pieces: Vec<Piece>,
    layout: Layout,
}

impl Tokenised {
    /// Tokens after expansion.
    fn len(&self) -> usize {
        self.pieces.len() - self.layout.num_slots() + self.layout.num_tokens()
    }
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

pub(crate) fn record_error(sample: &Sample, reason: &'static str, what: impl Into<String>) -> RecordError {
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
