//! Owns the first picture of a GIF, through the `gif` crate. It refuses later frames: as a video a GIF goes through
//! the video reader.

use ::gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

use super::{Bounds, Fault};
use crate::RgbImage;

/// The first frame on its canvas. As in Pillow, what it leaves open has the transparent colour's palette entry, or
/// entry 0.
pub(super) fn decode(bytes: &[u8], bounds: &Bounds) -> Result<RgbImage, Fault> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    if let Some(limit) = std::num::NonZeroU64::new(bounds.max_alloc_bytes as u64) {
        options.set_memory_limit(MemoryLimit::Bytes(limit));
    }
    let mut decoder = options.read_info(bytes).map_err(fault)?;
    let (width, height) = (usize::from(decoder.width()), usize::from(decoder.height()));
    bounds.check(width as u64, height as u64)?;
    let global = decoder.global_palette().map(<[u8]>::to_vec);
    let frame = decoder.read_next_frame().map_err(fault)?;
    let frame = frame.ok_or_else(|| Fault::Truncated("it has no picture".into()))?;
    let palette = frame.palette.as_deref().or(global.as_deref());
    let color = |index: u8| match palette {
        Some(palette) => {
            let at = usize::from(index) * 3;
            palette.get(at..at + 3).map_or([0; 3], |rgb| [rgb[0], rgb[1], rgb[2]])
        }
        None => [index; 3],
    };
    let mut image = RgbImage::filled(width as u32, height as u32, color(frame.transparent.unwrap_or(0)));
    let (left, top, columns) = (usize::from(frame.left), usize::from(frame.top), usize::from(frame.width));
    for (y, row) in frame.buffer.chunks_exact(columns.max(1)).enumerate() {
        for (x, &index) in row.iter().enumerate() {
            image.set_pixel((left + x) as u32, (top + y) as u32, color(index));
        }
    }
    Ok(image)
}

fn fault(error: DecodingError) -> Fault {
    match error {
        DecodingError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Fault::Truncated("the picture data ends too soon".into())
        }
        error => Fault::Broken(error.to_string().to_lowercase()),
    }
}
