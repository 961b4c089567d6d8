//! Owns the choice of frames: from the media references of a record to opened files and frame numbers, and later to
//! pictures as the model takes them. It refuses to choose by its own rule: `media::sample_indices` repeats the
//! reference's.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use media::{FrameCount, FrameRule, MediaError, RgbImage, SampleSpec, VideoIndex, sample_indices};
use parking_lot::Mutex;

use crate::batch::FrameInfo;
use crate::cache::{Content, FrameCache, Shot, VideoFacts, Wanted};
use crate::error::{DataError, RecordError};
use crate::options::EncodeOptions;
use crate::record::{MediaKind, MediaRef, MediaSource, Sample};
use crate::vision::{Target, Vision};

/// Rate of the program qwen-vl-utils, for clips about which nobody says anything.
const UTILS_FPS: f64 = 2.0;

/// What a checkpoint takes of clips about which neither record nor plan says anything.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VideoDefaults {
    /// How many frames; `None` where nobody says.
    pub count: Option<FrameCount>,
    /// Whether that means every frame of the file, by no rule.
    pub takes_all: bool,
    pub rule: FrameRule,
    pub min_frames: Option<usize>,
    pub max_frames: Option<usize>,
    /// Frames that make one step in time.
    pub temporal: usize,
    /// Rate of a list of frames that has none.
    pub list_fps: f64,
}

impl Default for VideoDefaults {
    fn default() -> Self {
        Self {
            count: None,
            takes_all: false,
            rule: FrameRule::Transformers,
            min_frames: None,
            max_frames: None,
            temporal: 1,
            // It only shows in times.
            list_fps: 1.0,
        }
    }
}

/// An opened file of a record.
#[derive(Debug, Clone)]
enum Opened {
    Picture(Arc<Still>),
    Video(Arc<Video>),
    Frames(Arc<FrameList>),
}

/// A still picture. Where its size was asked for, it is kept until it is taken.
#[derive(Debug)]
struct Still {
    path: PathBuf,
    image: Mutex<Option<RgbImage>>,
}

/// Files that are the frames of a clip.
#[derive(Debug)]
struct FrameList {
    files: Vec<PathBuf>,
    fps: f64,
    /// Height and width of those that were asked for.
    sizes: Mutex<BTreeMap<usize, (usize, usize)>>,
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
pub(crate) struct Clip {
    /// Position of its first reference in the record.
    media: usize,
    reference: MediaRef,
    opened: Opened,
    indices: Vec<usize>,
    /// Frames of the part of the file from which they were chosen.
    available: usize,
    /// Whether the number of frames may be lowered to make a record fit.
    may_shrink: bool,
}

/// What a media reference puts into the text: frames of a clip.
pub(crate) struct Place<'a> {
    pub clip: &'a Clip,
    /// Number of the clip in its record.
    pub number: usize,
    /// Which of the chosen frames.
    pub frames: Range<usize>,
    /// Whether they are all frames of a clip, standing at one place.
    pub is_clip: bool,
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
                    let opened = open(sample, reference, options, defaults, cache)?;
                    let clip = Clip {
                        media: number,
                        reference: reference.clone(),
                        opened,
                        indices: vec![0],
                        available: 1,
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
            Opened::Frames(list) => (list.files.len(), list.fps, &[], true),
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
        let mut rule = options.rule.unwrap_or(defaults.rule);
        let is_qwen = matches!(rule, FrameRule::Qwen2Vl | FrameRule::Qwen3Vl | FrameRule::QwenVlUtils);
        if is_qwen && wish.count == FrameCount::All && (is_list || wish.takes_all) {
            rule = FrameRule::Transformers;
        }
        let mut spec = SampleSpec::new(rule, wish.count);
        // The checkpoint's bounds are those of the checkpoint's rule.
        let (least, most) =
            if rule == defaults.rule { (defaults.min_frames, defaults.max_frames) } else { (None, None) };
        spec.max_frames = reference.max_frames.or(options.max_frames).or(most);
        let least = least.map(|least| least.min(spec.max_frames.unwrap_or(least)));
        spec.min_frames = reference.min_frames.or(options.min_frames).or(least);
        spec.temporal_patch = defaults.temporal;
        spec.jitter = options.jitter.map(|seed| seed ^ sample.origin.index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        spec.start = reference.start;
        spec.end = reference.end;
        let available = media::frames_in_part(total, fps, seconds, &spec).map_err(media_error)?;
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
        if wish.takes_all
            && !is_list
            && let Some(most) = defaults.max_frames.filter(|&most| available > most)
        {
            let what = format!(
                "`{}` has {available} frames, and the checkpoint's processor takes them all",
                name_of(reference)
            );
            return Err(RecordError::new("no_frame_count", &sample.origin, Some(&sample.id), what)
                .expected(format!("at most {most} frames (`max_frames`) where nobody says how many"), available.to_string())
                .hint("set `data.fps` (2 is usual) or `data.num_frames` (`--fps`, `--num-frames`), or `fps` in the record")
                .into());
        }
        within_patches(&mut spec, available);
        clip.available = available;
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

    /// Number of clips and pictures.
    pub fn len(&self) -> usize {
        self.clips.len()
    }

    /// For every media reference what it puts into the text, in order.
    pub fn places(&self) -> impl Iterator<Item = Place<'_>> {
        self.references.iter().map(|&(number, frame)| {
            let clip = &self.clips[number];
            let frames = frame.map_or(0..clip.indices.len(), |position| position..position + 1);
            let is_clip = frame.is_none() && !matches!(clip.opened, Opened::Picture(_));
            Place { clip, number, frames, is_clip }
        })
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

    /// Reads the chosen frames, in the order in which they stand in the text, each shaped as its clip's target says.
    ///
    /// # Errors
    /// A file that cannot be decoded.
    pub fn load(
        &mut self,
        sample: &Sample,
        options: &EncodeOptions,
        vision: &Vision,
        targets: &[Target],
        cache: Option<&FrameCache>,
    ) -> Result<Vec<(RgbImage, FrameInfo)>, DataError> {
        // Other frames in every epoch would only drive out those of other runs.
        let cache = cache.filter(|_| options.jitter.is_none());
        let mut loaded = Vec::with_capacity(self.clips.len());
        for (clip, &target) in self.clips.iter().zip(targets) {
            let shots = clip.load(options, vision, target, cache).map_err(|error| DataError::media(sample, error))?;
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
}

impl Clip {
    /// What the record says of it.
    pub fn reference(&self) -> &MediaRef {
        &self.reference
    }

    /// Height and width of a chosen frame before anything is done to it. Videos need not be decoded for that; still
    /// pictures are read.
    ///
    /// # Errors
    /// A still picture that cannot be read.
    pub fn source_size(
        &self,
        frame: usize,
        sample: &Sample,
        options: &EncodeOptions,
    ) -> Result<(usize, usize), DataError> {
        let read = |path| media::load_image(path, &options.limits).map_err(|error| DataError::media(sample, error));
        let size = |image: &RgbImage| (image.height as usize, image.width as usize);
        match &self.opened {
            Opened::Video(video) => Ok((video.facts.height as usize, video.facts.width as usize)),
            Opened::Picture(still) => {
                let mut image = still.image.lock();
                if let Some(image) = &*image {
                    return Ok(size(image));
                }
                let read = read(&still.path)?;
                Ok(size(image.insert(read)))
            }
            Opened::Frames(list) => {
                let index = self.indices[frame];
                if let Some(size) = list.sizes.lock().get(&index) {
                    return Ok(*size);
                }
                let size = size(&read(&list.files[index])?);
                list.sizes.lock().insert(index, size);
                Ok(size)
            }
        }
    }

    /// Presentation time of a chosen frame.
    pub fn seconds(&self, frame: usize) -> f64 {
        self.indices.get(frame).map_or(0.0, |&index| self.seconds_of(index))
    }

    /// When a chosen frame is seen, counted from the clip's first one. Where the frames stand as their rate says (to half
    /// a frame), it is number over rate, as the reference computes it; elsewhere it is the presentation time.
    pub fn clock(&self, frame: usize) -> f64 {
        let Some(&index) = self.indices.get(frame) else { return 0.0 };
        let nominal = index as f64 / self.fps();
        let real = self.seconds_of(index) - self.seconds_of(0);
        if (real - nominal).abs() < 0.5 / self.fps() { nominal } else { real }
    }

    /// Frames a second that were chosen, as the reference's metadata count them: a share of the clip's mean rate.
    pub fn sampled_fps(&self) -> f64 {
        self.indices.len() as f64 / self.available as f64 * self.fps()
    }

    fn fps(&self) -> f64 {
        match &self.opened {
            Opened::Picture(_) => 1.0,
            Opened::Video(video) => video.facts.fps,
            Opened::Frames(list) => list.fps,
        }
    }

    /// The chosen frames, shaped; of a clip from the cache where that knows them.
    fn load(
        &self,
        options: &EncodeOptions,
        vision: &Vision,
        target: Target,
        cache: Option<&FrameCache>,
    ) -> Result<Vec<Shot>, MediaError> {
        let limits = &options.limits;
        let content = match &self.opened {
            Opened::Picture(still) => {
                let known = still.image.lock().take();
                let image = known.map_or_else(|| media::load_image(&still.path, limits), Ok)?;
                return Ok(vec![Shot { image: vision.shape(image, target), damaged: false }]);
            }
            Opened::Video(video) => video.content.clone(),
            Opened::Frames(list) => cache.and_then(|cache| {
                let files: Option<Vec<&Path>> =
                    self.indices.iter().map(|&index| list.files.get(index).map(PathBuf::as_path)).collect();
                cache.content(&files?)
            }),
        };
        let cached = cache.zip(content.as_ref());
        let shape = vision.shape_key(target);
        let is_video = matches!(self.opened, Opened::Video(_));
        let wanted = Wanted { indices: &self.indices, shape: &shape, limits, is_video };
        if let Some(shots) = cached.and_then(|(cache, content)| cache.shots(content, &wanted)) {
            return Ok(shots);
        }
        let frames = match &self.opened {
            Opened::Video(video) => media::decode_frames(&*video.index(options)?, &self.indices, limits)?,
            Opened::Frames(list) => media::load_frame_files(&list.files, &self.indices, list.fps, limits)?,
            Opened::Picture(_) => unreachable!("pictures were read above"),
        };
        let shaped = |frame: media::Frame| Shot { image: vision.shape(frame.image, target), damaged: frame.damaged };
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
            Opened::Frames(list) => index as f64 / list.fps,
        }
    }
}

/// Where a rule would round a number of frames to whole patches that are none or more than there are, and its own
/// program fails, the frames are taken as they are; the last one is repeated to fill its patch.
fn within_patches(spec: &mut SampleSpec, available: usize) {
    let patch = match spec.rule {
        FrameRule::Qwen2Vl => spec.temporal_patch,
        FrameRule::QwenVlUtils => 2,
        _ => return,
    };
    match spec.count {
        FrameCount::Num(wanted) => {
            let rounded = (wanted as f64 / patch as f64).round_ties_even() as usize * patch;
            if rounded == 0 || rounded > available {
                spec.rule = FrameRule::Transformers;
            }
        }
        _ if available < patch => {
            (spec.rule, spec.count) = (FrameRule::Transformers, FrameCount::All);
        }
        _ => {}
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

/// How many frames are wanted, and who says so.
struct Wish {
    count: FrameCount,
    from_record: bool,
    /// Whether the checkpoint's processor takes every frame of a file.
    takes_all: bool,
}

impl Wish {
    /// The record's wish, else the plan's, else the checkpoint's; all frames of a list that nobody asks to thin out.
    fn of(reference: &MediaRef, is_list: bool, options: &EncodeOptions, defaults: &VideoDefaults) -> Option<Self> {
        let most = |n: usize| n.min(options.max_frames.unwrap_or(usize::MAX));
        let says = |count, from_record| Some(Self { count, from_record, takes_all: false });
        if let Some(n) = reference.nframes {
            return says(FrameCount::Num(n), true);
        }
        // For a list of frames, `fps` says how they were taken, not how many are wanted.
        if let Some(fps) = reference.fps.filter(|_| !is_list) {
            return says(FrameCount::Fps(fps), true);
        }
        match (options.num_frames, options.fps) {
            (Some(n), _) => says(FrameCount::Num(most(n)), false),
            (None, Some(fps)) if !is_list || reference.fps.is_some() => says(FrameCount::Fps(fps), false),
            _ if is_list => says(FrameCount::All, false),
            _ if options.rule == Some(FrameRule::QwenVlUtils) => says(FrameCount::Fps(UTILS_FPS), false),
            _ => match defaults.count? {
                FrameCount::Num(n) => says(FrameCount::Num(most(n)), false),
                count => Some(Self { count, from_record: false, takes_all: defaults.takes_all }),
            },
        }
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
    defaults: &VideoDefaults,
    cache: Option<&FrameCache>,
) -> Result<Opened, DataError> {
    let media_error = |e| DataError::media(sample, e);
    let list = |files: Vec<PathBuf>| {
        let fps = reference.fps.unwrap_or(defaults.list_fps);
        Opened::Frames(Arc::new(FrameList { files, fps, sizes: Mutex::default() }))
    };
    let is_image = reference.kind == MediaKind::Image;
    let path = match &reference.source {
        MediaSource::Files(files) => {
            return Ok(list(files.clone()));
        }
        MediaSource::Path(path) => path.clone(),
        MediaSource::Url(url) => fetch(sample, url, options)?,
    };
    if is_image {
        if !path.exists() {
            return Err(media_error(MediaError::MissingFile { path }));
        }
        return Ok(Opened::Picture(Arc::new(Still { path, image: Mutex::default() })));
    }
    if path.is_dir() {
        let files = media::list_frame_folder(&path).map_err(media_error)?;
        return Ok(list(files));
    }
    Ok(Opened::Video(Arc::new(Video::open(path, options, cache).map_err(media_error)?)))
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
