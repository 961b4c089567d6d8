//! Owns [`Vision`]: what a family of checkpoints makes of pictures and clips, planned from their sizes alone, shaped frame
//! by frame, written as values, and undone for people to look at. It refuses to read media files and to touch tokens.
//!
//! A family is a variant: [`Pictures`] gives every picture one treatment, [`Tiles`] cuts images into pictures of one size,
//! [`Patches`] keeps a picture's own shape. What a
//! record will take is known before anything is decoded ([`Vision::layout`]), so that lengths are measured and frames
//! are dropped without it.

mod budget;
mod ego;
mod encoders;
mod fields;
mod llava_next;
mod patches;
mod pictures;
mod qwen;
mod settings;
mod source;
mod tiles;
mod values;

use std::ops::Range;
use std::path::PathBuf;

use media::{FrameRule, RgbImage};

use crate::batch::{Encoded, Visual, VisualKind};
use crate::clips::{Clips, Place, name_of};
use crate::error::{DataError, RecordError};
use crate::options::EncodeOptions;
use crate::record::{Format, Sample};
use budget::{ClipBudget, MAX_RATIO};
use ego::Ego;
pub(crate) use ego::{Speech, add_marks};
use encoders::Encoders;
use patches::{ClipStyle, Patches, Unfit};
use pictures::Pictures;
pub use settings::ImageBackend;
pub(crate) use settings::image_class;
pub(crate) use source::Files;
use tiles::Tiles;

/// A token that stands for a medium.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placeholder {
    pub text: String,
    pub id: u32,
}

/// What a family makes of pictures and clips.
#[derive(Debug, Clone)]
pub(crate) enum Vision {
    /// Every picture and every frame the same way, one placeholder each.
    Pictures(Pictures),
    /// Images as tiles of one size, clips as frames of that size.
    Tiles(Tiles),
    /// Patches at native resolution.
    Patches(Patches),
    /// Every picture of one of two kinds the same way; a clip may be taken as a whole.
    Encoders(Encoders),
    /// Pictures the same way, clips averaged, and sound.
    Ego(Ego),
}

/// One image or clip of a record before it is decoded.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub visual: Visual,
    /// Height and width of each of its pictures after scaling.
    pub size: (usize, usize),
    /// What stands in the text in place of its placeholder, where that is not the placeholder itself.
    pub text: Option<String>,
    /// Tokens behind each of the placeholders of its text.
    pub slots: Vec<usize>,
}

/// What is done to the frames of a clip before their values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Each by its own size.
    Own,
    /// All the same; frames of another size than `from` stay as they are.
    To { from: (usize, usize), size: (usize, usize) },
    /// As a frame of a clip, where tiles are cut of images.
    Frame,
    /// Made square and not cut into tiles.
    Square,
    /// As the encoder of clips wants each of them.
    Clip,
}

/// All images and clips of a record in the order of the text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layout {
    pub visuals: Vec<Planned>,
    /// For every media reference its images and clips.
    pub of_reference: Vec<Range<usize>>,
    /// For every clip what is done to its frames.
    pub targets: Vec<Target>,
    /// For every one of `visuals` where it stands in the record, once a template has put them into the order of the text.
    pub order: Vec<usize>,
}

impl Layout {
    /// Placeholders of the text once its times are written.
    pub fn num_slots(&self) -> usize {
        self.visuals.iter().map(|planned| planned.slots.len()).sum()
    }

    /// Tokens of all images and clips.
    pub fn num_tokens(&self) -> usize {
        self.visuals.iter().map(|planned| planned.visual.num_tokens).sum()
    }

    /// Puts the pictures of all images and clips, given in the order of the record, into that of the text.
    pub fn in_order_of_text<T>(&self, pictures: Vec<T>) -> Vec<T> {
        if self.order.is_sorted() {
            return pictures;
        }
        let num_pictures = |planned: &Planned| match planned.visual.kind {
            VisualKind::Audio => 0,
            _ => planned.visual.seconds.len(),
        };
        let mut in_record: Vec<(usize, usize)> =
            self.order.iter().zip(&self.visuals).map(|(at, planned)| (*at, num_pictures(planned))).collect();
        in_record.sort_unstable();
        let mut pictures = pictures.into_iter();
        let mut parts: Vec<Vec<T>> =
            in_record.iter().map(|&(_, count)| pictures.by_ref().take(count).collect()).collect();
        self.order.iter().flat_map(|&at| std::mem::take(&mut parts[at])).collect()
    }
}

impl Vision {
    /// Scales still pictures as another library does. Clips are always scaled by torchvision, as in the reference.
    pub fn with_backend(self, backend: ImageBackend) -> Self {
        match self {
            Self::Pictures(own) => Self::Pictures(Pictures { settings: own.settings.with_backend(backend), ..own }),
            Self::Tiles(own) => Self::Tiles(own.with_backend(backend)),
            Self::Patches(mut own) => {
                own.image.backend = backend;
                own.image.values = own.image.values.with_backend(backend);
                Self::Patches(own)
            }
            Self::Encoders(own) => Self::Encoders(own.with_backend(backend)),
            Self::Ego(mut own) => {
                own.pictures.settings = own.pictures.settings.with_backend(backend);
                Self::Ego(own)
            }
        }
    }

    /// The token that stands for a medium of this kind; `None` where there is none.
    pub fn placeholder(&self, kind: VisualKind) -> Option<&Placeholder> {
        match (self, kind) {
            (Self::Pictures(own), VisualKind::Image) => Some(&own.token),
            (Self::Tiles(own), VisualKind::Image) => Some(&own.token),
            (Self::Tiles(own), VisualKind::Video) => own.clips.as_ref().map(|clips| &clips.token),
            (Self::Patches(own), VisualKind::Image) => Some(&own.token),
            (Self::Ego(own), VisualKind::Image | VisualKind::Video) => Some(&own.pictures.token),
            (Self::Ego(own), VisualKind::Audio) => own.speech.as_ref().map(|speech| &speech.token),
            (Self::Patches(Patches { clips: ClipStyle::Whole(clips), .. }), VisualKind::Video) => Some(&clips.token),
            (Self::Encoders(own), kind) => own.placeholder(kind),
            _ => None,
        }
    }

    /// What stands for a medium in a text that no template writes.
    pub fn in_text(&self, kind: VisualKind) -> String {
        let token = self.placeholder(kind).map_or("", |token| token.text.as_str());
        match self {
            Self::Pictures(_) | Self::Tiles(_) | Self::Ego(_) => token.to_owned(),
            Self::Patches(Patches { around: (start, end), .. }) => format!("{start}{token}{end}"),
            Self::Encoders(own) => own.in_text(kind),
        }
    }

    /// Whether a newline parts media from the words after them in a text that no template writes.
    pub fn has_newline_after(&self, format: Format) -> bool {
        match self {
            Self::Pictures(_) | Self::Tiles(_) | Self::Encoders(_) => true,
            // Its published code takes texts with placeholders as they are.
            Self::Ego(_) => format != Format::Llava,
            Self::Patches(_) => false,
        }
    }

    /// What becomes of sound, where the family hears.
    pub fn speech(&self) -> Option<&Speech> {
        match self {
            Self::Ego(own) => own.speech.as_ref(),
            Self::Pictures(_) | Self::Tiles(_) | Self::Patches(_) | Self::Encoders(_) => None,
        }
    }

    /// Texts that stand for media and are no tokens, with the ids that take their places; the text is tokenised between them.
    pub fn marks(&self) -> Vec<(&str, u32)> {
        match self {
            Self::Encoders(own) => own.marks(),
            Self::Pictures(_) | Self::Tiles(_) | Self::Patches(_) | Self::Ego(_) => Vec::new(),
        }
    }

    /// Side of a patch and number of class tokens of a picture, where the tower of a kind of medium is one of its own.
    pub fn class_tokens(&self, kind: VisualKind) -> Option<(usize, usize)> {
        match self {
            Self::Encoders(own) => own.class_tokens(kind),
            Self::Pictures(_) | Self::Tiles(_) | Self::Patches(_) | Self::Ego(_) => None,
        }
    }

    /// Whether pictures are made square with the mean colour first.
    pub fn pads_square(&self, kind: VisualKind) -> bool {
        match self {
            Self::Encoders(own) => own.pads_square(kind),
            Self::Pictures(own) => own.settings.pad_square,
            Self::Ego(own) => own.pictures.settings.pad_square,
            Self::Tiles(_) | Self::Patches(_) => false,
        }
    }

    /// Files that belong to the checkpoint's processor wherever they were found: name within the checkpoint, and place.
    pub fn own_files(&self) -> &[(String, PathBuf)] {
        match self {
            Self::Encoders(own) => &own.files,
            Self::Pictures(_) | Self::Tiles(_) | Self::Patches(_) | Self::Ego(_) => &[],
        }
    }

    /// Frames of a clip that belong together: a number of frames is lowered by so many at a time.
    pub fn frames_a_step(&self) -> usize {
        match self {
            Self::Patches(own @ Patches { clips: ClipStyle::Whole(_), .. }) => own.temporal,
            _ => 1,
        }
    }

    /// Tokens of one picture, where they do not depend on the picture.
    pub fn tokens_per_image(&self) -> Option<usize> {
        match self {
            Self::Pictures(own) => own.settings.fixed_size().map(|(height, width)| own.count(height, width)),
            Self::Ego(own) if own.no_stills.is_none() => {
                own.pictures.settings.fixed_size().map(|(height, width)| own.count_still(height, width))
            }
            Self::Tiles(_) | Self::Patches(_) | Self::Encoders(_) | Self::Ego(_) => None,
        }
    }

    /// Plans all media of a record from their sizes.
    ///
    /// # Errors
    /// A medium that the family cannot take, or a still picture that cannot be read.
    pub fn layout(&self, clips: &Clips, sample: &Sample, options: &EncodeOptions) -> Result<Layout, DataError> {
        let mut layout = Layout { targets: vec![Target::Own; clips.len()], ..Layout::default() };
        let is_image = |place: &Place<'_>| !place.is_clip || self.placeholder(VisualKind::Video).is_none();
        let num_images: usize = clips.places().filter(is_image).map(|place| place.frames.len()).sum();
        for place in clips.places() {
            let first = layout.visuals.len();
            if let Some(sound) = place.clip.sound() {
                let Some(speech) = self.speech() else {
                    return Err(RecordError::new(
                        "no_speech_side",
                        &sample.origin,
                        Some(&sample.id),
                        "the record has sound, and the checkpoint takes none",
                    )
                    .hint("use a checkpoint with a speech encoder, or remove the sound from the record")
                    .into());
                };
                let num_windows = sound
                    .num_windows(speech.mel.window_samples(), &options.limits)
                    .map_err(|error| DataError::media(sample, error))?;
                let visual = speech.visual(num_windows);
                let slots = vec![visual.num_tokens];
                layout.visuals.push(Planned { visual, size: (0, 0), text: None, slots });
                layout.of_reference.push(first..layout.visuals.len());
                continue;
            }
            match self {
                Self::Ego(own) if place.is_clip => {
                    layout.visuals.push(own.plan_clip(&place, sample, options)?);
                }
                Self::Patches(own) if own.takes_whole(&place) => {
                    let (planned, target) = own.plan_clip(&place, sample, options)?;
                    layout.targets[place.number] = target;
                    layout.visuals.push(planned);
                }
                Self::Tiles(own) => {
                    let target = own.target(place.is_clip, num_images);
                    layout.targets[place.number] = target;
                    match &own.clips {
                        Some(clips) if target == Target::Frame => layout.visuals.push(own.plan_clip(&place, clips)),
                        _ => {
                            for frame in place.frames.clone() {
                                layout.visuals.push(own.plan_image(&place, frame, target, sample, options)?);
                            }
                        }
                    }
                }
                Self::Encoders(own) => {
                    let (planned, target) = own.plan(&place, sample)?;
                    layout.targets[place.number] = target;
                    layout.visuals.extend(planned);
                }
                _ => {
                    for frame in place.frames.clone() {
                        layout.visuals.push(self.plan_picture(&place, frame, sample, options)?);
                    }
                }
            }
            layout.of_reference.push(first..layout.visuals.len());
        }
        layout.order = (0..layout.visuals.len()).collect();
        Ok(layout)
    }

    fn plan_picture(
        &self,
        place: &Place<'_>,
        frame: usize,
        sample: &Sample,
        options: &EncodeOptions,
    ) -> Result<Planned, DataError> {
        let source = || place.clip.source_size(frame, sample, options);
        let (size, grid, num_tokens) = match self {
            Self::Pictures(own) => {
                let (height, width) = match own.settings.fixed_size() {
                    Some(size) => size,
                    None => source().map(|(height, width)| own.settings.output_size(height, width))?,
                };
                ((height, width), own.grid(height, width), own.count(height, width))
            }
            Self::Tiles(own) => return own.plan_image(place, frame, Target::Own, sample, options),
            Self::Ego(own) => {
                own.check_still(place, sample)?;
                let (height, width) = own.size_of(place, frame, sample, options)?;
                ((height, width), own.pictures.grid(height, width), own.count_still(height, width))
            }
            Self::Patches(own) => {
                let (height, width) = source()?;
                let (height, width) =
                    own.image_size(height, width).map_err(|unfit| unfit.of(place, sample, (height, width)))?;
                let grid = own.grid(1, height, width);
                ((height, width), grid, own.tokens_a_step(grid))
            }
            Self::Encoders(_) => unreachable!("encoders plan their pictures themselves"),
        };
        let visual = Visual { grid, num_tokens, seconds: vec![place.clip.seconds(frame)], ..Visual::default() };
        Ok(Planned { visual, size, text: None, slots: vec![num_tokens] })
    }

    /// A picture or frame as the model takes it, still in bytes.
    pub fn shape(&self, image: RgbImage, target: Target) -> RgbImage {
        let own_size = (image.height as usize, image.width as usize);
        match (self, target) {
            (Self::Pictures(own), _) => own.settings.shape(image),
            (Self::Tiles(own), _) => own.shape(image, target),
            (Self::Ego(own), _) => own.pictures.settings.shape(image),
            // A medium without a size was refused when it was planned.
            (Self::Patches(own), Target::Own | Target::Frame | Target::Square) => {
                match own.image_size(own_size.0, own_size.1) {
                    Ok(size) => own.image.scaled(image, size),
                    Err(_) => image,
                }
            }
            (Self::Patches(own), Target::To { from, size }) => match &own.clips {
                ClipStyle::Whole(clips) if from == own_size => clips.side.scaled(image, size),
                _ => image,
            },
            (Self::Patches(_), Target::Clip) => image,
            (Self::Encoders(own), target) => own.shape(image, target),
        }
    }

    /// Everything that [`Vision::shape`] depends on, as a text: equal texts make equal bytes.
    pub fn shape_key(&self, target: Target) -> String {
        match (self, target) {
            (Self::Pictures(own), _) => own.settings.shape_key(),
            (Self::Tiles(own), _) => own.shape_key(target),
            (Self::Ego(own), _) => own.pictures.settings.shape_key(),
            (Self::Patches(own), Target::Own | Target::Frame | Target::Square) => {
                let Patches { image, patch, merge, .. } = own;
                format!("{:?} {:?}, native, {:?} by {}", image.backend, image.filter, image.budget, patch * merge)
            }
            (Self::Patches(own), Target::To { size: (height, width), .. }) => match &own.clips {
                ClipStyle::Whole(clips) => {
                    format!("{:?} {:?}, to {height}x{width}", clips.side.backend, clips.side.filter)
                }
                ClipStyle::Frames => "as it is".to_owned(),
            },
            (Self::Patches(_), Target::Clip) => "as it is".to_owned(),
            (Self::Encoders(own), target) => own.shape_key(target),
        }
    }

    /// Shape of a row of values, where the pictures of a record have one.
    pub fn row_shape(&self, (height, width): (usize, usize)) -> Vec<usize> {
        match self {
            Self::Pictures(_) | Self::Ego(_) => vec![3, height, width],
            Self::Tiles(own) => vec![3, own.side, own.side],
            Self::Patches(own) => vec![own.row_len()],
            // Pictures of two sizes may stand in one record; their values follow one another.
            Self::Encoders(_) => vec![1],
        }
    }

    /// Writes the values of media at the end of `values`; `pictures` are the shaped frames of all of them.
    pub fn write_values(&self, visuals: &[Visual], pictures: &[RgbImage], values: &mut Vec<f32>) {
        match self {
            Self::Pictures(own) => own.write(pictures, values),
            Self::Tiles(own) => own.write(visuals, pictures, values),
            Self::Ego(own) => own.pictures.write(pictures, values),
            Self::Patches(own) => own.write(visuals, pictures, values),
            Self::Encoders(own) => own.write(visuals, pictures, values),
        }
    }

    /// The pictures of an encoded record with the normalisation undone: exactly the bytes that were normalised.
    pub fn undo(&self, encoded: &Encoded) -> Vec<RgbImage> {
        match (self, encoded.pixel_shape.as_slice()) {
            (Self::Pictures(own), &[_, height, width]) => own.undo(&encoded.pixels, height, width),
            (Self::Tiles(own), &[_, _, _]) => own.undo(&encoded.visuals, &encoded.pixels),
            (Self::Ego(own), &[_, height, width]) => own.pictures.undo(&encoded.pixels, height, width),
            (Self::Patches(own), &[_]) => own.undo(&encoded.visuals, &encoded.pixels),
            (Self::Encoders(own), _) => own.undo(encoded),
            _ => Vec::new(),
        }
    }
}

impl Patches {
    /// Whether the frames of a reference are taken together.
    fn takes_whole(&self, place: &Place<'_>) -> bool {
        place.is_clip && matches!(self.clips, ClipStyle::Whole(_))
    }

    /// Plans a clip whose frames are taken together.
    fn plan_clip(
        &self,
        place: &Place<'_>,
        sample: &Sample,
        options: &EncodeOptions,
    ) -> Result<(Planned, Target), DataError> {
        let ClipStyle::Whole(clips) = &self.clips else { unreachable!("`takes_whole` was asked") };
        let num_frames = place.frames.len();
        let from = place.clip.source_size(place.frames.start, sample, options)?;
        // That program's frames come with that program's budget.
        let shared = (options.rule == Some(FrameRule::QwenVlUtils)).then_some(ClipBudget::QwenVlUtils);
        let size = self.clip_size(clips, num_frames, from, shared).map_err(|unfit| unfit.of(place, sample, from))?;
        let grid = self.grid(num_frames, size.0, size.1);
        let each = self.tokens_a_step(grid);
        let slots = if clips.has_times { vec![each; grid[0]] } else { vec![each * grid[0]] };
        let text = clips.has_times.then(|| {
            let times: Vec<f64> = place.frames.clone().map(|frame| place.clip.clock(frame)).collect();
            let (start, end) = &self.around;
            let step = |times: &[f64]| {
                // The last frame is repeated where frames are missing, and with it its time.
                let (first, last) = (times[0], times[times.len() - 1]);
                format!("<{:.1} seconds>{start}{}{end}", f64::midpoint(first, last), clips.token.text)
            };
            times.chunks(self.temporal).map(step).collect()
        });
        let visual = Visual {
            kind: VisualKind::Video,
            grid,
            num_tokens: each * grid[0],
            seconds: place.frames.clone().map(|frame| place.clip.seconds(frame)).collect(),
            seconds_per_grid: self.temporal as f64 / place.clip.sampled_fps(),
            ..Visual::default()
        };
        Ok((Planned { visual, size, text, slots }, Target::To { from, size }))
    }
}

impl Unfit {
    fn of(self, place: &Place<'_>, sample: &Sample, (height, width): (usize, usize)) -> DataError {
        let name = name_of(place.clip.reference());
        let error = |reason, what| RecordError::new(reason, &sample.origin, Some(&sample.id), what);
        match self {
            Self::TooOblong(ratio) => error("too_oblong", format!("`{name}` is {width}x{height}"))
                .expected(
                    format!("a longer side of at most {MAX_RATIO} times the shorter one"),
                    format!("{ratio:.1} times"),
                )
                .hint("crop the file, or remove the record"),
            Self::Uneven { factor } => error("picture_shapes", format!("`{name}` is {width}x{height}"))
                .expected(format!("multiples of {factor}, for `do_resize` is false"), format!("{width}x{height}"))
                .hint("set `do_resize: true` in the processor's file, or scale the file"),
        }
        .into()
    }
}
