//! Owns [`Sound`]: a file's sound as a record names it, its length known before it is decoded. It refuses to make features.

use std::path::Path;

use media::{AUDIO_RATE, AudioIndex, AudioTrack, Limits, MediaError};
use parking_lot::Mutex;

/// Samples to which the planned length is believed: more than any encoder puts before and after the sound.
const MARGIN: usize = AUDIO_RATE as usize / 4;

/// The sound of a file.
#[derive(Debug)]
pub(crate) struct Sound {
    index: AudioIndex,
    /// The part that is wanted, in seconds.
    range: (Option<f64>, Option<f64>),
    /// Kept from the moment on at which its length had to be counted until it is taken.
    track: Mutex<Option<AudioTrack>>,
}

impl Sound {
    /// Reads the packets of a file's sound.
    pub fn open(path: &Path, range: (Option<f64>, Option<f64>), limits: &Limits) -> Result<Self, MediaError> {
        Ok(Self { index: media::index_audio(path, limits)?, range, track: Mutex::default() })
    }

    /// The windows of `size` samples that it fills, the last one in part. It is decoded only where its packets leave that
    /// open.
    pub fn num_windows(&self, size: usize, limits: &Limits) -> Result<usize, MediaError> {
        let mut track = self.track.lock();
        let length = match (&*track, self.index.duration, self.range) {
            (Some(track), ..) => track.samples.len(),
            (None, Some(seconds), (None, None)) if is_clear(samples_of(seconds), size) => samples_of(seconds),
            _ => track.insert(media::decode_audio(&self.index, self.range, limits)?).samples.len(),
        };
        Ok(length.div_ceil(size).max(1))
    }

    /// The samples.
    pub fn take(&self, limits: &Limits) -> Result<AudioTrack, MediaError> {
        let known = self.track.lock().take();
        known.map_or_else(|| media::decode_audio(&self.index, self.range, limits), Ok)
    }
}

fn samples_of(seconds: f64) -> usize {
    (seconds * f64::from(AUDIO_RATE)).round() as usize
}

/// Whether a length is so far from every whole number of windows that the margin does not matter.
fn is_clear(length: usize, size: usize) -> bool {
    let over = length % size;
    over > MARGIN && size - over > MARGIN
}

#[cfg(test)]
mod tests {
    use super::is_clear;

    #[test]
    fn lengths_near_a_window_are_counted() {
        let size = 480_000;
        assert!(is_clear(100_000, size) && is_clear(size + 10_000, size) && is_clear(size - 10_000, size));
        assert!(
            !is_clear(size, size) && !is_clear(size + 100, size) && !is_clear(size - 100, size) && !is_clear(10, size)
        );
        assert!(!is_clear(3_000, 6_000));
    }
}
