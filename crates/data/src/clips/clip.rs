//! Owns [`Clip`]: an opened file of a record with the frames that were chosen, their times, and the way to their pictures.
//! It refuses to choose frames.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use media::{MediaError, RgbImage, VideoIndex};
use parking_lot::Mutex;

use super::choice::usual_rate;
use super::{Sound, VideoDefaults};
use crate::cache::{Content, FrameCache, Shot, VideoFacts, Wanted};
use crate::encode::record_error;
use crate::error::DataError;
use crate::options::EncodeOptions;
use crate::record::{MediaKind, MediaRef, MediaSource, Sample};
use crate::vision::{Target, Vision};

/// An opened file of a record.
#[derive(Debug, Clone)]
pub(super) enum Opened {
    Picture(Arc<Still>),
    Video(Arc<Video>),
    Frames(Arc<FrameList>),
    Sound(Arc<Sound>),
}

/// A still picture. Where its size was asked for, it is kept until it is taken.
#[derive(Debug)]
pub(super) struct Still {
    pub(super) path: PathBuf,
    pub(super) image: Mutex<Option<RgbImage>>,
}

/// Files that are the frames of a clip.
#[derive(Debug)]
pub(super) struct FrameList {
    pub(super) files: Vec<PathBuf>,
    pub(super) fps: f64,
    /// Height and width of those that were asked for.
    pub(super) sizes: Mutex<BTreeMap<usize, (usize, usize)>>,
}

/// A video of which the frames can be chosen.
#[derive(Debug)]
pub(super) struct Video {
    pub(super) path: PathBuf,
    pub(super) facts: VideoFacts,
    /// What the file holds, where a cache is used.
    pub(super) content: Option<Content>,
    /// The index behind the facts, unless they came from the cache.
    pub(super) index: Option<VideoIndex>,
}

/// One clip or picture of a record with the frames that were chosen.
#[derive(Debug, Clone)]
pub(crate) struct Clip {
    /// Position of its first reference in the record.
    pub(super) media: usize,
    pub(super) reference: MediaRef,
    pub(super) opened: Opened,
    pub(super) indices: Vec<usize>,
    /// Frames of the part of the file from which they were chosen.
    pub(super) available: usize,
    /// Whether the number of frames may be lowered to make a record fit.
    pub(super) may_shrink: bool,
}

impl Clip {
    /// What the record says of it.
    pub fn reference(&self) -> &MediaRef {
        &self.reference
    }

    /// Its sound, where that is what the record wants of it.
    pub fn sound(&self) -> Option<&Sound> {
        match &self.opened {
            Opened::Sound(sound) => Some(sound),
            _ => None,
        }
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
            Opened::Sound(_) => unreachable!("sound has no frame that could be chosen"),
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
            Opened::Picture(_) | Opened::Sound(_) => 1.0,
            Opened::Video(video) => video.facts.fps,
            Opened::Frames(list) => list.fps,
        }
    }

    /// The chosen frames, shaped; of a clip from the cache where that knows them.
    ///
    /// # Errors
    /// A file that cannot be decoded.
    pub(super) fn load(
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
            Opened::Sound(_) => return Ok(Vec::new()),
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
            Opened::Picture(_) | Opened::Sound(_) => unreachable!("pictures were read above, and sound has none"),
        };
        let shaped = |frame: media::Frame| Shot { image: vision.shape(frame.image, target), damaged: frame.damaged };
        let shots: Vec<Shot> = frames.into_iter().map(shaped).collect();
        if let Some((cache, content)) = cached {
            cache.keep_shots(content, &wanted, &shots);
        }
        Ok(shots)
    }

    /// Presentation time of a frame.
    pub(super) fn seconds_of(&self, index: usize) -> f64 {
        match &self.opened {
            Opened::Picture(_) | Opened::Sound(_) => 0.0,
            Opened::Video(video) => video.facts.seconds.get(index).copied().unwrap_or_default(),
            Opened::Frames(list) => index as f64 / list.fps,
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

/// Opens the file, folder or list of a reference.
///
/// # Errors
/// It is not there, or cannot be read.
pub(super) fn open(
    sample: &Sample,
    reference: &MediaRef,
    options: &EncodeOptions,
    defaults: &VideoDefaults,
    cache: Option<&FrameCache>,
) -> Result<Opened, DataError> {
    let media_error = |e| DataError::media(sample, e);
    let list = |files: Vec<PathBuf>| {
        let fps = reference.fps.unwrap_or_else(|| usual_rate(options, defaults));
        Opened::Frames(Arc::new(FrameList { files, fps, sizes: Mutex::default() }))
    };
    let is_image = reference.kind == MediaKind::Image;
    let path = match &reference.source {
        MediaSource::Files(_) if reference.kind == MediaKind::Audio => {
            return Err(record_error(sample, "no_audio_track", "a list of frames has no sound")
                .hint("name the sound in `audio`, or remove its placeholder")
                .into());
        }
        MediaSource::Files(files) => {
            return Ok(list(files.clone()));
        }
        MediaSource::Path(path) => path.clone(),
        MediaSource::Url(url) => fetch(sample, url, options)?,
    };
    if reference.kind == MediaKind::Audio {
        let range = (reference.start, reference.end);
        return Ok(Opened::Sound(Arc::new(Sound::open(&path, range, &options.limits).map_err(media_error)?)));
    }
    if is_image {
        if !media::file_of(&path).exists() {
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
