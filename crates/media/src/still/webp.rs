//! Owns WebP, through the `image-webp` crate. It refuses later frames of an animation.

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};

use super::{Bounds, Fault, exif};
use crate::RgbImage;

/// The picture as stored (of an animation the first frame), and its EXIF orientation.
pub(super) fn decode(bytes: &[u8], bounds: &Bounds) -> Result<(RgbImage, u8), Fault> {
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(fault)?;
    let (width, height) = decoder.dimensions();
    bounds.check(width.into(), height.into())?;
    decoder.set_memory_limit(bounds.max_alloc_bytes);
    let size = decoder.output_buffer_size().ok_or(Fault::Size(width.into(), height.into()))?;
    let mut data = vec![0; size];
    if decoder.is_animated() {
        decoder.read_frame(&mut data).map_err(fault)?;
    } else {
        decoder.read_image(&mut data).map_err(fault)?;
    }
    if decoder.has_alpha() {
        data = data.chunks_exact(4).flat_map(|rgba| [rgba[0], rgba[1], rgba[2]]).collect();
    }
    let exif = decoder.exif_metadata().ok().flatten();
    let orientation = exif.as_deref().and_then(exif::orientation).or_else(|| {
        let xmp = decoder.xmp_metadata().ok().flatten()?;
        exif::xmp_orientation(&xmp)
    });
    Ok((RgbImage { width, height, data }, orientation.unwrap_or(1)))
}

fn fault(error: DecodingError) -> Fault {
    match error {
        DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Fault::Truncated("the picture data ends too soon".into())
        }
        error => Fault::Broken(error.to_string().to_lowercase()),
    }
}
