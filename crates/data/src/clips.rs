//! Owns the choice of frames: from the media references of a record to opened files and frame numbers, and later to
//! pictures. It refuses to choose by its own rule: `media::sample_indices` repeats the reference's.

use std::path::{Path, PathBuf};

use media::{FrameCount, FrameRule, RgbImage, SampleSpec, VideoIndex, sample_indices};

use crate::batch::FrameInfo;
use crate::error::{DataError, RecordError};
use crate::options::EncodeOptions;
use crate::record::{MediaKind, MediaRef, MediaSource, Sample};

/// Frame settings of a checkpoint's video processor, for clips about which neither record nor plan says anything.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct VideoDefaults {
    pub num_frames: Option<usize>,
    pub fps: Option<f64>,
    pub rule: Option<FrameRule>,
}

/// An opened file of a record.
#[derive(Debug)]
enum Opened {
    Picture(PathBuf),
    Video(Box<VideoIndex>),
    Frames { files: Vec<PathBuf>, fps: f64 },
}

/// One clip or picture of a record with the frames that were chosen.
#[derive(Debug)]
struct Clip {
    /// Position of its first reference in the record.
    media: usize,
    reference: MediaRef,
    opened: Opened,
    indices: Vec<usize>,
    /// Whether the number of frames may be lowered to make a record fit.
    may_shrink: bool,
}

/// All media of a record, opened, with the frames that were chosen.
#[derive(Debug)]
pub(crate) struct Clips {
    clips: Vec<Clip>,
    /// For every media reference in order: its clip, and the frame of it for a [`MediaKind::FrameOf`].
    references: Vec<(usize, Option<usize>)>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Clips {
    /// Opens the media of a record and chooses frames.
    ///
    /// # Errors
    /// A file that cannot be used, or a wish that its clip cannot grant.
    pub fn open(sample: &Sample, options: &EncodeOptions, defaults: &VideoDefaults) -> Result<Self, DataError> {
        let mut all = Self { clips: Vec::new(), references: Vec::new(), notes: Vec::new() };
        for (number, reference) in sample.media().enumerate() {
            let frame = match reference.kind {
                MediaKind::FrameOf { position, .. } => Some(position),
                _ => None,
            };
            let known = frame.and_then(|_| all.clips.iter().position(|c| same_clip(&c.reference, reference)));
            let clip = match known {
                Some(clip) => clip,
                None => {
                    let opened = open(sample, reference, options)?;
                    let clip = Clip {
                        media: number,
                        reference: reference.clone(),
                        opened,
                        indices: vec![0],
                        may_shrink: false,
                    };
                    all.clips.push(clip);
                    all.choose(sample, options, defaults)?;
                    all.clips.len() - 1
                }
            };
            all.references.push((clip, frame));
        }
        Ok(all)
    }

    /// Chooses the frames of the clip opened last.
    fn choose(&mut self, sample: &Sample, options: &EncodeOptions, defaults: &VideoDefaults) -> Result<(), DataError> {
        let Some(clip) = self.clips.last_mut() else { return Ok(()) };
        let media_error = |e| DataError::media(sample, e);
        let reference = &clip.reference;
        let (total, fps, seconds, is_list): (usize, f64, &[f64], bool) = match &clip.opened {
            Opened::Picture(_) => return Ok(()),
            Opened::Video(index) => {
                for warning in &index.warnings {
                    self.notes.push(format!("`{}`: {}", index.path.display(), warning.message));
                }
                (index.num_frames(), index.fps, &index.seconds, false)
            }
            Opened::Frames { files, fps } => (files.len(), *fps, &[], true),
        };
        let list_seconds: Vec<f64>;
        let seconds = if is_list {
            list_seconds = (0..total).map(|i| i as f64 / fps).collect();
            &list_seconds
        } else {
            seconds
        };
        if !is_list && reference.nframes.is_some() && reference.fps.is_some() {
            return Err(RecordError::new(
                "contradiction",
                &sample.origin,
                Some(&sample.id),
                format!("`{}` has both a number of frames and `fps`", name_of(reference)),
            )
            .hint("keep one of them")
            .into());
        }
        let wish = Wish::of(reference, is_list, options, defaults);
        let Some(wish) = wish else {
            return Err(no_count(sample, reference));
        };
        let rule = options.rule.or(defaults.rule).unwrap_or(FrameRule::Transformers);
        let mut spec = SampleSpec::new(rule, wish.count);
        spec.min_frames = reference.min_frames.or(options.min_frames);
        spec.max_frames = reference.max_frames.or(options.max_frames);
        spec.temporal_patch = 1;
        spec.jitter = options.jitter.map(|seed| seed ^ sample.origin.index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        spec.start = reference.start;
        spec.end = reference.end;
        let all = SampleSpec { rule: FrameRule::Stride, count: FrameCount::All, max_frames: None, ..spec.clone() };
        let available = sample_indices(total, fps, seconds, &all).map_err(media_error)?.len();
        if let FrameCount::Num(wanted) = wish.count
            && wanted > available
        {
            if wish.from_record {
                return Err(RecordError::new(
                    "too_few_frames",
                    &sample.origin,
                    Some(&sample.id),
                    format!("`{}` is too short", name_of(reference)),
                )
                .expected(format!("at least {wanted} frames"), format!("{available} in the wanted range"))
                .hint("lower the record's number of frames, or remove the record")
                .into());
            }
            self.notes.push(format!("`{}` has {available} frames, {wanted} were wanted", name_of(reference)));
            spec.count = FrameCount::Num(available);
        }
        clip.indices = sample_indices(total, fps, seconds, &spec).map_err(media_error)?;
        if let MediaKind::FrameOf { total: places, .. } = reference.kind
            && clip.indices.len() != places
        {
            return Err(RecordError::new(
                "placeholder_count",
                &sample.origin,
                Some(&sample.id),
                format!(
                    "the frame rule `{rule}` does not give one frame of `{}` for each placeholder",
                    name_of(reference)
                ),
            )
            .expected(format!("{places} frames"), clip.indices.len().to_string())
            .hint("write one `video` part in place of the frames, or choose another `data.frame_rule`")
            .into());
        }
        clip.may_shrink = matches!(reference.kind, MediaKind::Video);
        Ok(())
    }

    /// Pictures that a media reference puts into the text.
    pub fn num_pictures(&self, reference: usize) -> usize {
        match self.references.get(reference) {
            Some((_, Some(_))) => 1,
            Some((clip, None)) => self.clips[*clip].indices.len(),
            None => 0,
        }
    }

    /// The most frames that any clip has whose number may be lowered.
    pub fn most_frames(&self) -> usize {
        self.clips.iter().filter(|c| c.may_shrink).map(|c| c.indices.len()).max().unwrap_or(0)
    }

    /// Lowers the number of frames of every clip to at most `most`, spread over the frames that were chosen.
    pub fn shrink(&mut self, most: usize) {
        for clip in self.clips.iter_mut().filter(|c| c.may_shrink && c.indices.len() > most) {
            let had = clip.indices.len();
            clip.indices = (0..most).map(|i| clip.indices[i * had / most]).collect();
            self.notes.push(format!(
                "`{}` gives {most} of {had} frames, so that the record fits `max_length`",
                name_of(&clip.reference)
            ));
        }
    }

    /// Reads the chosen frames, in the order in which they stand in the text.
    ///
    /// # Errors
    /// A file that cannot be decoded.
    pub fn load(&mut self, sample: &Sample, options: &EncodeOptions) -> Result<Vec<(RgbImage, FrameInfo)>, DataError> {
        let error = |e| DataError::media(sample, e);
        let mut loaded = Vec::with_capacity(self.clips.len());
        for clip in &self.clips {
            let frames: Vec<(RgbImage, FrameInfo)> = match &clip.opened {
                Opened::Picture(path) => {
                    let image = media::load_image(path, &options.limits).map_err(error)?;
                    vec![(image, FrameInfo { media: clip.media, index: 0, seconds: 0.0 })]
                }
                Opened::Video(index) => {
                    let frames = media::decode_frames(index, &clip.indices, &options.limits).map_err(error)?;
                    let damaged = frames.iter().filter(|f| f.damaged).count();
                    if damaged > 0 {
                        self.notes.push(format!(
                            "`{}`: {damaged} of {} frames are damaged in the file",
                            index.path.display(),
                            frames.len()
                        ));
                    }
                    frames.into_iter().map(|f| with_info(f, clip.media)).collect()
                }
                Opened::Frames { files, fps } => {
                    let frames = media::load_frame_files(files, &clip.indices, *fps, &options.limits).map_err(error)?;
                    frames.into_iter().map(|f| with_info(f, clip.media)).collect()
                }
            };
            loaded.push(frames);
        }
        let mut pictures = Vec::new();
        for &(clip, frame) in &self.references {
            match frame {
                None => pictures.append(&mut loaded[clip]),
                Some(position) => match loaded[clip].get(position) {
                    Some(picture) => pictures.push(picture.clone()),
                    None => unreachable!("`choose` checked the number of frames"),
                },
            }
        }
        Ok(pictures)
    }
}

fn with_info(frame: media::Frame, media: usize) -> (RgbImage, FrameInfo) {
    let info = FrameInfo { media, index: frame.index, seconds: frame.seconds };
    (frame.image, info)
}

/// How many frames are wanted, and whether the record itself says so.
struct Wish {
    count: FrameCount,
    from_record: bool,
}

impl Wish {
    /// The record's wish, else the plan's, else the checkpoint's; all frames of a list that nobody asks to thin out.
    fn of(reference: &MediaRef, is_list: bool, options: &EncodeOptions, defaults: &VideoDefaults) -> Option<Self> {
        let most = |n: usize| n.min(options.max_frames.unwrap_or(usize::MAX));
        if let Some(n) = reference.nframes {
            return Some(Self { count: FrameCount::Num(n), from_record: true });
        }
        // For a list of frames, `fps` says how they were taken, not how many are wanted.
        if let Some(fps) = reference.fps.filter(|_| !is_list) {
            return Some(Self { count: FrameCount::Fps(fps), from_record: true });
        }
        let count = match (options.num_frames, options.fps) {
            (Some(n), _) => FrameCount::Num(most(n)),
            (None, Some(fps)) if !is_list || reference.fps.is_some() => FrameCount::Fps(fps),
            _ if is_list => FrameCount::All,
            _ => match (defaults.num_frames, defaults.fps) {
                (Some(n), _) => FrameCount::Num(most(n)),
                (None, Some(fps)) => FrameCount::Fps(fps),
                (None, None) => return None,
            },
        };
        Some(Self { count, from_record: false })
    }
}

fn no_count(sample: &Sample, reference: &MediaRef) -> DataError {
    RecordError::new(
        "no_frame_count",
        &sample.origin,
        Some(&sample.id),
        format!("how many frames of `{}` to take is not said", name_of(reference)),
    )
    .hint("set `data.num_frames` or `data.fps` (`--num-frames`, `--fps`), or `nframes` in the record")
    .into()
}

/// Whether two references to frames of a clip mean the same clip.
fn same_clip(a: &MediaRef, b: &MediaRef) -> bool {
    let total = |m: &MediaRef| match m.kind {
        MediaKind::FrameOf { total, .. } => Some(total),
        _ => None,
    };
    total(a) == total(b) && MediaRef { kind: b.kind, ..a.clone() } == *b
}

/// The file, list or address of a reference, for messages.
pub(crate) fn name_of(reference: &MediaRef) -> String {
    match &reference.source {
        MediaSource::Path(path) => path.display().to_string(),
        MediaSource::Url(url) => url.clone(),
        MediaSource::Files(files) => {
            format!("{} and {} more", files.first().map_or(Path::new(""), |p| p).display(), files.len().max(1) - 1)
        }
    }
}

fn open(sample: &Sample, reference: &MediaRef, options: &EncodeOptions) -> Result<Opened, DataError> {
    let media_error = |e| DataError::media(sample, e);
    let is_image = reference.kind == MediaKind::Image;
    let path = match &reference.source {
        MediaSource::Files(files) => return Ok(Opened::Frames { files: files.clone(), fps: list_rate(reference) }),
        MediaSource::Path(path) => path.clone(),
        MediaSource::Url(url) => fetch(sample, url, options)?,
    };
    if is_image {
        if !path.exists() {
            return Err(media_error(media::MediaError::MissingFile { path }));
        }
        return Ok(Opened::Picture(path));
    }
    if path.is_dir() {
        let files = media::list_frame_folder(&path).map_err(media_error)?;
        return Ok(Opened::Frames { files, fps: list_rate(reference) });
    }
    let index = media::index_video(&path, &options.limits).map_err(media_error)?;
    Ok(Opened::Video(Box::new(index)))
}

/// The rate of a list of frames; one a second where nobody says, which only shows in times.
fn list_rate(reference: &MediaRef) -> f64 {
    reference.fps.unwrap_or(1.0)
}

fn fetch(sample: &Sample, url: &str, options: &EncodeOptions) -> Result<PathBuf, DataError> {
    let error = |e: hub::HubError| DataError::Download {
        origin: Box::new(sample.origin.clone()),
        id: sample.id.clone(),
        url: url.to_owned(),
        detail: e.to_string(),
    };
    let mut download = hub::DownloadOptions::new(&hub::HubEnv::from_env().map_err(error)?);
    if let Some(dir) = &options.cache_dir {
        download.cache_dir = dir.clone();
    }
    hub::download(url, &download).map_err(error)
}
