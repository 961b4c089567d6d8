//! Owns the reading of still pictures: JPEG, PNG, WebP, BMP, GIF, as Pillow reads them.
//! It refuses formats that it does not name, and to give part of a picture.

mod bmp;
mod exif;
mod gif;
mod jpeg;
mod png;
mod webp;

use std::io::Read;
use std::path::Path;

use crate::limits::Clock;
use crate::sniff::{self, Kind};
use crate::{Limits, MediaError, RgbImage};

/// Why a decoder gave up; [`load_image`] adds the path.
#[derive(Debug)]
enum Fault {
    /// The data ends too soon.
    Truncated(String),
    /// The data contradicts itself.
    Broken(String),
    /// A lawful variant that is not read.
    Unsupported(String),
    /// The picture is larger than the limits allow, or has a side of zero.
    Size(u64, u64),
    /// It needs this many bytes at once, more than the limits allow; 0 if that is not known.
    Memory(usize),
    /// The time is over.
    Deadline,
}

/// What a decoder is given besides the bytes.
struct Bounds {
    max_pixels: u64,
    max_alloc_bytes: usize,
    clock: Clock,
}

impl Bounds {
    /// Refuses a picture that is too large before anything is allocated for it.
    fn check(&self, width: u64, height: u64) -> Result<(), Fault> {
        if width == 0 || height == 0 || width.saturating_mul(height) > self.max_pixels {
            return Err(Fault::Size(width, height));
        }
        Ok(())
    }

    /// Refuses to go on once the time is over.
    fn check_time(&self) -> Result<(), Fault> {
        if self.clock.is_over() { Err(Fault::Deadline) } else { Ok(()) }
    }
}

/// Reads a picture as `PIL.ImageOps.exif_transpose(PIL.Image.open(path)).convert("RGB")` does: of an animation the
/// first frame, transparency dropped, upright by its EXIF orientation.
///
/// # Errors
/// [`MediaError::NotAllowedContainer`] for other formats, [`MediaError::TooLarge`], [`MediaError::Truncated`],
/// [`MediaError::Broken`], and those of reading.
pub fn load_image(path: &Path, limits: &Limits) -> Result<RgbImage, MediaError> {
    let file = sniff::open(path)?;
    let Some(kind) = file.kind.filter(|kind| kind.is_image()) else {
        let found = file.kind.map_or_else(|| sniff::describe(&file.head), |kind| format!("{} video", kind.name()));
        return Err(MediaError::NotAllowedContainer {
            path: path.to_path_buf(),
            found,
            wanted: "image format",
            suggestion: "jpeg or png",
        });
    };
    if file.size > limits.max_alloc_bytes as u64 {
        return Err(MediaError::TooLarge {
            path: path.to_path_buf(),
            what: "max_alloc_bytes",
            found: format!("{} bytes of file", file.size),
            limit: limits.max_alloc_bytes.to_string(),
        });
    }
    let mut bytes = Vec::with_capacity(file.size as usize);
    file.file.take(file.size).read_to_end(&mut bytes).map_err(|error| MediaError::io(path, error))?;
    let bounds =
        Bounds { max_pixels: limits.max_pixels, max_alloc_bytes: limits.max_alloc_bytes, clock: Clock::start(limits) };
    let (image, orientation) = decode(kind, &bytes, &bounds).map_err(|fault| told(path, kind, fault, limits))?;
    Ok(exif::turn_of(orientation).apply(image))
}

/// The picture as stored, and its EXIF orientation (1 to 8).
fn decode(kind: Kind, bytes: &[u8], bounds: &Bounds) -> Result<(RgbImage, u8), Fault> {
    match kind {
        Kind::Jpeg => jpeg::decode(bytes, bounds),
        Kind::Png => png::decode(bytes, bounds),
        Kind::Webp => webp::decode(bytes, bounds),
        Kind::Bmp => Ok((bmp::decode(bytes, bounds)?, 1)),
        Kind::Gif => Ok((gif::decode(bytes, bounds)?, 1)),
        _ => Err(Fault::Unsupported(format!("{} is not a picture format", kind.name()))),
    }
}

fn told(path: &Path, kind: Kind, fault: Fault, limits: &Limits) -> MediaError {
    let path = path.to_path_buf();
    match fault {
        Fault::Truncated(detail) => MediaError::Truncated { path, detail },
        Fault::Broken(detail) => MediaError::Broken { path, format: kind.name().into(), detail },
        Fault::Unsupported(detail) => {
            MediaError::Broken { path, format: kind.name().into(), detail: format!("{detail} is not supported") }
        }
        Fault::Size(width, height) => match limits.check_size(&path, width, height) {
            Err(error) => error,
            Ok(()) => MediaError::Broken { path, format: kind.name().into(), detail: format!("{width}x{height}") },
        },
        Fault::Memory(bytes) => MediaError::TooLarge {
            path,
            what: "max_alloc_bytes",
            found: if bytes == 0 { "more".into() } else { format!("{bytes} bytes for the pixels") },
            limit: limits.max_alloc_bytes.to_string(),
        },
        Fault::Deadline => MediaError::Deadline { path, seconds: limits.deadline.as_secs_f64() },
    }
}
