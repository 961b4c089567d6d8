//! Owns the choice of frames: from the media references of a record to opened files and frame numbers, and later to
//! pictures as the model takes them. It refuses to choose by its own rule: `media::sample_indices` repeats the
//! reference's.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use media::{FrameCount, FrameRule, MediaError, RgbImage, SampleSpec, VideoIndex, sample_indices};

use crate::batch::FrameInfo;
use crate::cache::{Content, FrameCache, Shot, VideoFacts, Wanted};
use crate::error::{DataError, RecordError};
use crate::image::ImageSettings;
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
#[derive(Debug, Clone)]
enum Opened {
    Picture(PathBuf),
    Video(Arc<Video>),
    Frames { files: Arc<[PathBuf]>, fps: f64 },
}

/// A video of which the frames can be chosen.
#[derive(Debug)]
struct Video {
    path: PathBuf,
    facts: VideoFacts,
    /// What the file holds, where a cache is used.
    content: Option<Content>,
    /// The index behind the facts, unless they came from the cache.
    index: Option<VideoIndex>,
}

/// One clip or picture of a record with the frames that were chosen.
#[derive(Debug, Clone)]
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
#[derive(Debug, Clone)]
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
    pub fn open(
        sample: &Sample,
        options: &EncodeOptions,
        defaults: &VideoDefaults,
        cache: Option<&FrameCache>,
    ) -> Result<Self, DataError> {
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
                    let opened = open(sample, reference, options, cache)?;
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
            Opened::Video(video) => {
                for warning in &video.facts.warnings {
                    self.notes.push(format!("`{}`: {warning}", video.path.display()));
                }
                (video.facts.seconds.len(), video.facts.fps, &video.facts.seconds, false)
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

    /// Reads the chosen frames, in the order in which they stand in the text, each as `settings` shape it.
    ///
    /// # Errors
    /// A file that cannot be decoded.
    pub fn load(
        &mut self,
        sample: &Sample,
        options: &EncodeOptions,
        settings: &ImageSettings,
        cache: Option<&FrameCache>,
    ) -> Result<Vec<(RgbImage, FrameInfo)>, DataError> {
        // Other frames in every epoch would only drive out those of other runs.
        let cache = cache.filter(|_| options.jitter.is_none());
        let mut loaded = Vec::with_capacity(self.clips.len());
        for clip in &self.clips {
            let shots = clip.load(options, settings, cache).map_err(|error| DataError::media(sample, error))?;
            let damaged = shots.iter().filter(|shot| shot.damaged).count();
            if let Opened::Video(video) = &clip.opened
                && damaged > 0
            {
                let (path, total) = (video.path.display(), shots.len());
                self.notes.push(format!("`{path}`: {damaged} of {total} frames are damaged in the file"));
            }
            let infos = clip.indices.iter().map(|&index| FrameInfo {
                media: clip.media,
                index,
                seconds: clip.seconds_of(index),
            });
            loaded.push(shots.into_iter().map(|shot| shot.image).zip(infos).collect::<Vec<_>>());
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

    /// Height and width of every picture in the order in which they stand in the text, before anything is done to them.
    /// Videos need not be decoded for that; still pictures are read.
    ///
    /// # Errors
    /// A still picture that cannot be read.
    pub fn source_sizes(&self, sample: &Sample, options: &EncodeOptions) -> Result<Vec<(usize, usize)>, DataError> {
        let of = |path: &Path| {
            let image = media::load_image(path, &options.limits).map_err(|error| DataError::media(sample, error))?;
            Ok((image.height as usize, image.width as usize))
        };
        let mut sizes = Vec::with_capacity(self.clips.len());
        for clip in &self.clips {
            sizes.push(match &clip.opened {
                Opened::Picture(path) => vec![of(path)?],
                Opened::Video(video) => {
                    vec![(video.facts.height as usize, video.facts.width as usize); clip.indices.len()]
                }
                Opened::Frames { files, .. } => {
                    clip.indices.iter().map(|&index| of(&files[index])).collect::<Result<_, DataError>>()?
                }
            });
        }
        let of_reference = |&(clip, frame): &(usize, Option<usize>)| match frame {
            None => sizes[clip].clone(),
            Some(position) => vec![sizes[clip][position]],
        };
        Ok(self.references.iter().flat_map(of_reference).collect())
    }
}

impl Clip {
    /// The chosen frames, shaped; of a clip from the cache where that knows them.
    fn load(
        &self,
        options: &EncodeOptions,
        settings: &ImageSettings,
        cache: Option<&FrameCache>,
    ) -> Result<Vec<Shot>, MediaError> {
        let limits = &options.limits;
        let content = match &self.opened {
            Opened::Picture(path) => {
                let image = settings.shape(media::load_image(path, limits)?);
                return Ok(vec![Shot { image, damaged: false }]);
            }
            Opened::Video(video) => video.content.clone(),
            Opened::Frames { files, .. } => cache.and_then(|cache| {
                let files: Option<Vec<&Path>> =
                    self.indices.iter().map(|&index| files.get(index).map(PathBuf::as_path)).collect();
                cache.content(&files?)
            }),
        };
        let cached = cache.zip(content.as_ref());
        let shape = settings.shape_key();
        let is_video = matches!(self.opened, Opened::Video(_));
        let wanted = Wanted { indices: &self.indices, shape: &shape, limits, is_video };
        if let Some(shots) = cached.and_then(|(cache, content)| cache.shots(content, &wanted)) {
            return Ok(shots);
        }
        let frames = match &self.opened {
            Opened::Video(video) => media::decode_frames(&*video.index(options)?, &self.indices, limits)?,
            Opened::Frames { files, fps } => media::load_frame_files(files, &self.indices, *fps, limits)?,
            Opened::Picture(_) => unreachable!("pictures were read above"),
        };
        let shaped = |frame: media::Frame| Shot { image: settings.shape(frame.image), damaged: frame.damaged };
        let shots: Vec<Shot> = frames.into_iter().map(shaped).collect();
        if let Some((cache, content)) = cached {
            cache.keep_shots(content, &wanted, &shots);
        }
        Ok(shots)
    }

    /// Presentation time of a frame.
    fn seconds_of(&self, index: usize) -> f64 {
        match &self.opened {
            Opened::Picture(_) => 0.0,
            Opened::Video(video) => video.facts.seconds.get(index).copied().unwrap_or_default(),
            Opened::Frames { fps, .. } => index as f64 / fps,
        }
    }
}

impl Video {
    /// Reads what is needed for the choice of frames, from the cache where that knows it.
    fn open(path: PathBuf, options: &EncodeOptions, cache: Option<&FrameCache>) -> Result<Self, MediaError> {
        let content = cache.and_then(|cache| cache.content(&[&path]));
        let cached = cache.zip(content.as_ref());
        if let Some(facts) = cached.and_then(|(cache, content)| cache.facts(content, &options.limits)) {
            return Ok(Self { path, facts, content, index: None });
        }
        let index = media::index_video(&path, &options.limits)?;
        let facts = VideoFacts::of(&index);
        if let Some((cache, content)) = cached {
            cache.keep_facts(content, &options.limits, &facts);
        }
        Ok(Self { path, facts, content, index: Some(index) })
    }

    fn index(&self, options: &EncodeOptions) -> Result<Cow<'_, VideoIndex>, MediaError> {
        match &self.index {
            Some(index) => Ok(Cow::Borrowed(index)),
            None => media::index_video(&self.path, &options.limits).map(Cow::Owned),
        }
    }
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

fn open(
    sample: &Sample,
    reference: &MediaRef,
    options: &EncodeOptions,
    cache: Option<&FrameCache>,
) -> Result<Opened, DataError> {
    let media_error = |e| DataError::media(sample, e);
    let is_image = reference.kind == MediaKind::Image;
    let path = match &reference.source {
        MediaSource::Files(files) => {
            return Ok(Opened::Frames { files: files.as_slice().into(), fps: list_rate(reference) });
        }
        MediaSource::Path(path) => path.clone(),
        MediaSource::Url(url) => fetch(sample, url, options)?,
    };
    if is_image {
        if !path.exists() {
            return Err(media_error(MediaError::MissingFile { path }));
        }
        return Ok(Opened::Picture(path));
    }
    if path.is_dir() {
        let files = media::list_frame_folder(&path).map_err(media_error)?;
        return Ok(Opened::Frames { files: files.into(), fps: list_rate(reference) });
    }
    Ok(Opened::Video(Arc::new(Video::open(path, options, cache).map_err(media_error)?)))
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
