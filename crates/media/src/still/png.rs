//! Owns PNG, through the `png` crate. It refuses colour management: samples are taken as they stand.

use std::io::Cursor;

use ::png::{BitDepth, ColorType, Decoder, DecodingError, Limits, Transformations};

use super::{Bounds, Fault, exif};
use crate::RgbImage;

/// The picture as stored, and its EXIF orientation.
pub(super) fn decode(bytes: &[u8], bounds: &Bounds) -> Result<(RgbImage, u8), Fault> {
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: bounds.max_alloc_bytes });
    decoder.set_transformations(Transformations::IDENTITY);
    let header = decoder.read_header_info().map_err(fault)?;
    let (width, height) = (header.width, header.height);
    bounds.check(width.into(), height.into())?;
    let mut reader = decoder.read_info().map_err(fault)?;
    let size = reader.output_buffer_size().ok_or(Fault::Size(width.into(), height.into()))?;
    if size > bounds.max_alloc_bytes {
        return Err(Fault::Memory(size));
    }
    let mut raw = vec![0; size];
    reader.next_frame(&mut raw).map_err(fault)?;
    let info = reader.info();
    let image = RgbImage { width, height, data: to_rgb(&raw, info)? };
    // EXIF may stand behind the picture data.
    let _ = reader.finish();
    let info = reader.info();
    let orientation = info.exif_metadata.as_deref().and_then(exif::orientation);
    let orientation = orientation.or_else(|| {
        let xmp = info.utf8_text.iter().find(|chunk| chunk.keyword == "XML:com.adobe.xmp")?;
        exif::xmp_orientation(xmp.get_text().ok()?.as_bytes())
    });
    Ok((image, orientation.unwrap_or(1)))
}

fn fault(error: DecodingError) -> Fault {
    match error {
        DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Fault::Truncated("the picture data ends too soon".into())
        }
        DecodingError::LimitsExceeded => Fault::Memory(0),
        error => Fault::Broken(error.to_string().to_lowercase()),
    }
}

/// Unpacks rows of samples. As in Pillow, 16-bit colour keeps its high byte, while 16-bit grey is clipped at 255.
fn to_rgb(raw: &[u8], info: &::png::Info<'_>) -> Result<Vec<u8>, Fault> {
    let (width, height) = (info.width as usize, info.height as usize);
    let mut out = Vec::with_capacity(width * height * 3);
    let row_bytes = info.raw_row_length() - 1;
    let bits = info.bit_depth as usize;
    for row in raw.chunks_exact(row_bytes).take(height) {
        match (info.color_type, info.bit_depth) {
            (ColorType::Grayscale, BitDepth::Sixteen) => {
                out.extend(row.chunks_exact(2).flat_map(|s| [if s[0] > 0 { 255 } else { s[1] }; 3]));
            }
            (ColorType::Grayscale, BitDepth::Eight) => out.extend(row.iter().flat_map(|&grey| [grey; 3])),
            (ColorType::Grayscale, _) => {
                let step = 255 / ((1u16 << bits) - 1) as u8;
                out.extend(packed(row, bits, width).flat_map(|sample| [sample * step; 3]));
            }
            (ColorType::Indexed, depth) => {
                let palette = info.palette.as_deref().ok_or_else(|| Fault::Broken("it has no palette".into()))?;
                let color = |index: u8| {
                    let at = usize::from(index) * 3;
                    palette.get(at..at + 3).map_or([0; 3], |rgb| [rgb[0], rgb[1], rgb[2]])
                };
                if depth == BitDepth::Eight {
                    out.extend(row.iter().flat_map(|&index| color(index)));
                } else {
                    out.extend(packed(row, bits, width).flat_map(color));
                }
            }
            (ColorType::GrayscaleAlpha, depth) => {
                let step = depth as usize / 8;
                out.extend(row.chunks_exact(2 * step).flat_map(|s| [s[0]; 3]));
            }
            (ColorType::Rgb, depth) => {
                let step = depth as usize / 8;
                out.extend(row.chunks_exact(3 * step).flat_map(|s| [s[0], s[step], s[2 * step]]));
            }
            (ColorType::Rgba, depth) => {
                let step = depth as usize / 8;
                out.extend(row.chunks_exact(4 * step).flat_map(|s| [s[0], s[step], s[2 * step]]));
            }
        }
    }
    Ok(out)
}

/// Samples of 1, 2 or 4 bits, the first in the high bits.
fn packed(row: &[u8], bits: usize, width: usize) -> impl Iterator<Item = u8> + '_ {
    let mask = ((1u16 << bits) - 1) as u8;
    (0..width).map(move |x| {
        let at = x * bits;
        row[at / 8] >> (8 - bits - at % 8) & mask
    })
}
