//! Owns video writing, for the demo and for tests.
//! It refuses to be a transcoder: RGB frames in, one video stream out.

use std::path::{Path, PathBuf};

use crate::av::{AvError, Library, Output, OutputOptions};
use crate::{MediaError, RgbImage};

/// Codecs that can be written; the container follows from the file name's ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// H.264 where the installed libav has libx264 or another encoder for it, MPEG-4 part 2 otherwise.
    H264,
    /// MPEG-4 part 2.
    Mpeg4,
    /// VP8 (webm, mkv).
    Vp8,
    /// VP9 (webm, mkv).
    Vp9,
    /// GIF, 256 fixed colours, dithered.
    Gif,
}

/// Choices of the encoder; `Default` is a keyframe every 12 frames and two B-frames, near to lossless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Most frames from keyframe to keyframe; GIF has none.
    pub gop: u32,
    /// Most B-frames between two others (H.264 and MPEG-4 only).
    pub b_frames: u32,
    /// Quality from 0 (best) to 51, on x264's scale.
    pub quality: u32,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { gop: 12, b_frames: 2, quality: 18 }
    }
}

/// Ticks a second of the clock for frames with times of their own.
const TICKS: i32 = 90_000;

/// Writes one video file.
pub struct VideoWriter {
    path: PathBuf,
    width: u32,
    height: u32,
    is_variable: bool,
    next: i64,
    output: Output,
}

impl VideoWriter {
    /// Opens `path` for frames of `width` x `height` at a constant `fps` (numerator, denominator).
    ///
    /// # Errors
    /// [`MediaError::Encode`] if no encoder is there, the size does not suit it, or the file cannot be made.
    pub fn new(path: &Path, width: u32, height: u32, fps: (i32, i32), codec: Codec) -> Result<Self, MediaError> {
        Self::with_options(path, width, height, fps, codec, &EncodeOptions::default())
    }

    /// As [`VideoWriter::new`], with the encoder's choices.
    pub fn with_options(
        path: &Path,
        width: u32,
        height: u32,
        fps: (i32, i32),
        codec: Codec,
        options: &EncodeOptions,
    ) -> Result<Self, MediaError> {
        Self::open(path, width, height, fps, codec, options, false)
    }

    /// A file whose frames come with their own times, through [`VideoWriter::push_at`]; `fps` is only nominal.
    pub fn variable(
        path: &Path,
        width: u32,
        height: u32,
        fps: (i32, i32),
        codec: Codec,
        options: &EncodeOptions,
    ) -> Result<Self, MediaError> {
        Self::open(path, width, height, fps, codec, options, true)
    }

    fn open(
        path: &Path,
        width: u32,
        height: u32,
        fps: (i32, i32),
        codec: Codec,
        options: &EncodeOptions,
        is_variable: bool,
    ) -> Result<Self, MediaError> {
        let refuse = |detail: String| MediaError::Encode { path: path.to_path_buf(), detail };
        if fps.0 <= 0 || fps.1 <= 0 || width == 0 || height == 0 {
            return Err(refuse(format!("{width}x{height} at {}/{} frames a second is not possible", fps.0, fps.1)));
        }
        let av = Library::get()?;
        let names = encoders(codec);
        let name = Output::find_encoder(av, names)
            .ok_or_else(|| refuse(format!("the installed libav has none of the encoders {}", names.join(", "))))?;
        if codec != Codec::Gif && !(width.is_multiple_of(2) && height.is_multiple_of(2)) {
            return Err(refuse(format!("{width}x{height}: the encoder `{name}` needs even sides")));
        }
        let has_b_frames = matches!(codec, Codec::H264 | Codec::Mpeg4);
        let settings = OutputOptions {
            width,
            height,
            fps,
            time_base: if is_variable { (1, TICKS) } else { (fps.1, fps.0) },
            encoders: names,
            pixel_format: if codec == Codec::Gif { "rgb8" } else { "yuv420p" },
            gop: (codec != Codec::Gif).then_some(options.gop),
            b_frames: has_b_frames.then_some(options.b_frames),
            options: &encoder_options(name, options),
        };
        let output = Output::open(av, path, &settings).map_err(|error| refuse(error.to_string()))?;
        Ok(Self { path: path.to_path_buf(), width, height, is_variable, next: 0, output })
    }

    /// Adds a frame at the next time of the constant rate.
    pub fn push(&mut self, image: &RgbImage) -> Result<(), MediaError> {
        if self.is_variable {
            return Err(MediaError::BadRequest { detail: "this file's frames need times: use `push_at`".into() });
        }
        self.write(image, self.next)
    }

    /// Adds a frame at `seconds`, which must grow from frame to frame.
    pub fn push_at(&mut self, image: &RgbImage, seconds: f64) -> Result<(), MediaError> {
        let tick = (seconds * f64::from(TICKS)).round();
        if !self.is_variable || !tick.is_finite() || tick < self.next as f64 {
            return Err(MediaError::BadRequest {
                detail: format!("a frame at {seconds} s: times must grow, in a file opened with `variable`"),
            });
        }
        self.write(image, tick as i64)
    }

    fn write(&mut self, image: &RgbImage, tick: i64) -> Result<(), MediaError> {
        if image.width != self.width || image.height != self.height {
            return Err(MediaError::BadRequest {
                detail: format!("a {}x{} frame for a {}x{} video", image.width, image.height, self.width, self.height),
            });
        }
        self.output.write(image, tick).map_err(|error| failed(&self.path, error))?;
        self.next = tick + 1;
        Ok(())
    }

    /// Writes what is left and closes the file.
    pub fn finish(self) -> Result<(), MediaError> {
        let path = self.path;
        self.output.finish().map_err(|error| failed(&path, error))
    }
}

/// Encoders for a codec, best first.
fn encoders(codec: Codec) -> &'static [&'static str] {
    match codec {
        Codec::H264 => &["libx264", "libopenh264", "mpeg4"],
        Codec::Mpeg4 => &["mpeg4"],
        Codec::Vp8 => &["libvpx"],
        Codec::Vp9 => &["libvpx-vp9"],
        Codec::Gif => &["gif"],
    }
}

fn encoder_options(encoder: &str, options: &EncodeOptions) -> Vec<(&'static str, String)> {
    match encoder {
        "libx264" => vec![("preset", "veryfast".into()), ("crf", options.quality.to_string())],
        // Quantisers from 1 to 31, where x264's doubling every 6 steps is a doubling of the quantiser.
        "mpeg4" => {
            let quantiser = 2f64.powf((f64::from(options.quality) - 12.0) / 6.0).round().clamp(1.0, 31.0);
            vec![("qmin", quantiser.to_string()), ("qmax", quantiser.to_string())]
        }
        "libvpx" | "libvpx-vp9" => vec![
            ("crf", (options.quality + 10).min(63).to_string()),
            ("b", "2000000".into()),
            ("deadline", "realtime".into()),
            ("cpu-used", "5".into()),
        ],
        _ => Vec::new(),
    }
}

fn failed(path: &Path, error: AvError) -> MediaError {
    MediaError::Encode { path: path.to_path_buf(), detail: error.to_string() }
}
