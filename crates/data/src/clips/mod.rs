//! Owns the way from the media references of a record to opened files with chosen frames, and later to pictures as the
//! model takes them. It refuses to choose by its own rule: `media::sample_indices` repeats the reference's.

mod choice;
mod clip;
mod sound;

use std::ops::Range;
use std::path::Path;

use media::RgbImage;

use crate::batch::FrameInfo;
use crate::cache::FrameCache;
use crate::error::DataError;
use crate::options::EncodeOptions;
use crate::record::{MediaKind, MediaRef, MediaSource, Sample};
use crate::vision::{Target, Vision};
pub(crate) use choice::VideoDefaults;
pub(crate) use clip::Clip;
use clip::{Opened, open};
pub(crate) use sound::Sound;

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

    /// Number of clips and pictures.
    pub fn len(&self) -> usize {
        self.clips.len()
    }

    /// For every media reference what it puts into the text, in order.
    pub fn places(&self) -> impl Iterator<Item = Place<'_>> {
        self.references.iter().map(|&(number, frame)| {
            let clip = &self.clips[number];
            let frames = frame.map_or(0..clip.indices.len(), |position| position..position + 1);
            let is_clip = frame.is_none() && !matches!(clip.opened, Opened::Picture(_) | Opened::Sound(_));
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
                let (path, total) = (media::shown(&video.path), shots.len());
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
        MediaSource::Path(path) => media::shown(path).to_string(),
        MediaSource::Url(url) => url.clone(),
        MediaSource::Files(files) => {
            format!("{} and {} more", media::shown(files.first().map_or(Path::new(""), |p| p)), files.len().max(1) - 1)
        }
    }
}
