//! Owns [`Limits`], the bounds put on every file, and the clock of the deadline.
//! It refuses to enforce the other bounds itself: each reader checks the ones it meets.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::MediaError;

/// Bounds on what one file may cost. The defaults let ordinary 4K clips of hours through.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Largest width times height of a picture.
    pub max_pixels: u64,
    /// Most frames that one file may present.
    pub max_frames: usize,
    /// Most packets (all streams) that are read from one file, and most samples that a container may declare.
    pub max_packets: usize,
    /// Longest presentation, in seconds.
    pub max_duration_s: f64,
    /// Most streams in one container.
    pub max_streams: usize,
    /// Largest single allocation inside libav, in bytes. libav keeps one value for the whole process: the last file
    /// opened sets it.
    pub max_alloc_bytes: usize,
    /// Most bytes of pixels that one call may give out.
    pub max_decoded_bytes: u64,
    /// Most bytes read to find out what a stream holds.
    pub probe_bytes: usize,
    /// Longest time for one call on one file (index, decode or image load).
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_pixels: 64 << 20,
            max_frames: 2_000_000,
            max_packets: 4_000_000,
            max_duration_s: 24.0 * 3600.0,
            max_streams: 64,
            max_alloc_bytes: 256 << 20,
            max_decoded_bytes: 4 << 30,
            probe_bytes: 5 << 20,
            deadline: Duration::from_secs(120),
        }
    }
}

impl Limits {
    /// Refuses a picture of more than `max_pixels`, and a side of zero.
    pub(crate) fn check_size(&self, path: &Path, width: u64, height: u64) -> Result<(), MediaError> {
        if width == 0 || height == 0 {
            return Err(MediaError::Broken {
                path: path.to_path_buf(),
                format: "media".into(),
                detail: format!("the picture is {width}x{height}"),
            });
        }
        if width.saturating_mul(height) > self.max_pixels {
            return Err(MediaError::TooLarge {
                path: path.to_path_buf(),
                what: "max_pixels",
                found: format!("{width}x{height}"),
                limit: self.max_pixels.to_string(),
            });
        }
        Ok(())
    }
}

/// The moment at which work on one file must end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    end: Option<Instant>,
    allowed: Duration,
}

impl Clock {
    /// Starts the clock of `limits.deadline`.
    pub fn start(limits: &Limits) -> Self {
        Self { end: Instant::now().checked_add(limits.deadline), allowed: limits.deadline }
    }

    /// Whether the time is over.
    pub fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// An error once the time is over.
    pub fn check(&self, path: &Path) -> Result<(), MediaError> {
        if self.is_over() {
            return Err(MediaError::Deadline { path: path.to_path_buf(), seconds: self.allowed.as_secs_f64() });
        }
        Ok(())
    }
}
