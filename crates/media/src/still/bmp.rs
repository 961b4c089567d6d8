//! Owns Windows bitmaps: 1, 4, 8, 16, 24 and 32 bits a pixel, run lengths, bit fields.
//! It refuses bitmaps that hold a JPEG or PNG.

use super::{Bounds, Fault};
use crate::RgbImage;

/// Compression values of the header.
const PLAIN: u32 = 0;
const RLE8: u32 = 1;
const RLE4: u32 = 2;
const BIT_FIELDS: u32 = 3;

/// What the headers say.
struct Header {
    width: usize,
    height: usize,
    is_top_down: bool,
    bits: u16,
    compression: u32,
    palette: Vec<[u8; 3]>,
    masks: [u32; 3],
    pixels: usize,
}

/// The picture as stored.
pub(super) fn decode(bytes: &[u8], bounds: &Bounds) -> Result<RgbImage, Fault> {
    let header = read_header(bytes, bounds)?;
    let pixels = bytes.get(header.pixels..).unwrap_or(&[]);
    let (width, height) = (header.width, header.height);
    let mut image = RgbImage::filled(width as u32, height as u32, [0; 3]);
    let row_of = |y: usize| if header.is_top_down { y } else { height - 1 - y };
    if matches!(header.compression, RLE8 | RLE4) {
        let indices = run_lengths(pixels, &header)?;
        for (y, row) in indices.chunks_exact(width).enumerate() {
            for (x, &index) in row.iter().enumerate() {
                image.set_pixel(x as u32, row_of(y) as u32, header.color(index));
            }
        }
        return Ok(image);
    }
    let row_bytes = (width * usize::from(header.bits)).div_ceil(32) * 4;
    if pixels.len() < row_bytes * (height - 1) + (width * usize::from(header.bits)).div_ceil(8) {
        return Err(Fault::Truncated("the picture data ends too soon".into()));
    }
    for (y, row) in pixels.chunks(row_bytes).take(height).enumerate() {
        for x in 0..width {
            image.set_pixel(x as u32, row_of(y) as u32, header.pixel(row, x));
        }
    }
    Ok(image)
}

impl Header {
    fn color(&self, index: u8) -> [u8; 3] {
        self.palette.get(usize::from(index)).copied().unwrap_or([0; 3])
    }

    fn pixel(&self, row: &[u8], x: usize) -> [u8; 3] {
        match self.bits {
            1 => self.color(row[x / 8] >> (7 - x % 8) & 1),
            4 => self.color(row[x / 2] >> (4 - x % 2 * 4) & 15),
            8 => self.color(row[x]),
            16 => self.masked(u32::from(u16::from_le_bytes([row[x * 2], row[x * 2 + 1]]))),
            24 => [row[x * 3 + 2], row[x * 3 + 1], row[x * 3]],
            _ => {
                let at = x * 4;
                self.masked(u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]))
            }
        }
    }

    /// Colours picked out by bit masks and widened to 8 bits.
    fn masked(&self, value: u32) -> [u8; 3] {
        self.masks.map(|mask| {
            if mask == 0 {
                return 0;
            }
            let largest = mask >> mask.trailing_zeros();
            let sample = (value & mask) >> mask.trailing_zeros();
            (u64::from(sample) * 255 / u64::from(largest)) as u8
        })
    }
}

fn read_header(bytes: &[u8], bounds: &Bounds) -> Result<Header, Fault> {
    let short = || Fault::Truncated("the header ends too soon".into());
    let u16_at = |at: usize| -> Result<u16, Fault> {
        let bytes: [u8; 2] = bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).ok_or_else(short)?;
        Ok(u16::from_le_bytes(bytes))
    };
    let u32_at = |at: usize| -> Result<u32, Fault> {
        let bytes: [u8; 4] = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or_else(short)?;
        Ok(u32::from_le_bytes(bytes))
    };
    let pixels = u32_at(10)? as usize;
    let size = u32_at(14)? as usize;
    let is_old = size == 12;
    let (width, height, bits) = if is_old {
        (i64::from(u16_at(18)?), i64::from(u16_at(20)?), u16_at(24)?)
    } else {
        (i64::from(u32_at(18)? as i32), i64::from(u32_at(22)? as i32), u16_at(28)?)
    };
    if width <= 0 || height == 0 {
        return Err(Fault::Broken(format!("the picture is {width}x{height}")));
    }
    bounds.check(width as u64, height.unsigned_abs())?;
    let compression = if is_old { PLAIN } else { u32_at(30)? };
    let is_known = match bits {
        1 => compression == PLAIN,
        4 => matches!(compression, PLAIN | RLE4),
        8 => matches!(compression, PLAIN | RLE8),
        24 => compression == PLAIN,
        16 | 32 => matches!(compression, PLAIN | BIT_FIELDS),
        _ => false,
    };
    if !is_known {
        return Err(Fault::Unsupported(format!("{bits} bits a pixel with compression {compression}")));
    }
    let mut masks = if bits == 16 { [0x7c00, 0x3e0, 0x1f] } else { [0xff_0000, 0xff00, 0xff] };
    if compression == BIT_FIELDS {
        // The masks follow a 40-byte header, and are part of longer ones, at the same place.
        masks = [u32_at(54)?, u32_at(58)?, u32_at(62)?];
    }
    let mut palette = Vec::new();
    if bits <= 8 {
        let entry = if is_old { 3 } else { 4 };
        let listed = if is_old { 0 } else { u32_at(46)? as usize };
        let count = if listed == 0 { 1 << bits } else { listed.min(256) };
        let first = 14 + size + if compression == BIT_FIELDS && size == 40 { 12 } else { 0 };
        for i in 0..count {
            let at = first + i * entry;
            let bgr = bytes.get(at..at + 3).ok_or_else(short)?;
            palette.push([bgr[2], bgr[1], bgr[0]]);
        }
    }
    Ok(Header {
        width: width as usize,
        height: height.unsigned_abs() as usize,
        is_top_down: height < 0,
        bits,
        compression,
        palette,
        masks,
        pixels,
    })
}

/// Palette indices from run lengths, the first row first. What the runs leave out is 0.
fn run_lengths(data: &[u8], header: &Header) -> Result<Vec<u8>, Fault> {
    let (width, height) = (header.width, header.height);
    let mut out = vec![0u8; width * height];
    let (mut x, mut y) = (0usize, 0usize);
    let mut put = |x: &mut usize, y: usize, index: u8| {
        if *x < width && y < height {
            out[y * width + *x] = index;
        }
        *x += 1;
    };
    let mut input = data.iter().copied();
    let mut next = || input.next().ok_or_else(|| Fault::Truncated("the picture data ends too soon".into()));
    let nibble = |byte: u8, i: usize| if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
    while y < height {
        let (count, value) = (next()?, next()?);
        match (count, value) {
            (0, 0) => (x, y) = (0, y + 1),
            (0, 1) => break,
            (0, 2) => {
                x += usize::from(next()?);
                y += usize::from(next()?);
            }
            (0, count) => {
                let count = usize::from(count);
                let num_bytes = if header.compression == RLE8 { count } else { count.div_ceil(2) };
                let mut left = count;
                for _ in 0..num_bytes {
                    let byte = next()?;
                    if header.compression == RLE8 {
                        put(&mut x, y, byte);
                    } else {
                        for i in 0..left.min(2) {
                            put(&mut x, y, nibble(byte, i));
                        }
                        left = left.saturating_sub(2);
                    }
                }
                if num_bytes % 2 == 1 {
                    next()?;
                }
            }
            (count, value) => {
                for i in 0..usize::from(count) {
                    put(&mut x, y, if header.compression == RLE8 { value } else { nibble(value, i) });
                }
            }
        }
    }
    Ok(out)
}
