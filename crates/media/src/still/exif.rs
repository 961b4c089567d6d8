//! Owns one EXIF tag: orientation. It refuses the rest of EXIF.

use crate::turn::Turn;

/// The orientation tag's number.
const ORIENTATION: u16 = 0x0112;

/// Orientation (1 to 8) from a TIFF structure, with or without the `Exif\0\0` in front; `None` if it has none.
pub(super) fn orientation(bytes: &[u8]) -> Option<u8> {
    let tiff = bytes.strip_prefix(b"Exif\0\0").unwrap_or(bytes);
    let is_little = match tiff.get(..4)? {
        b"II\x2a\0" => true,
        b"MM\0\x2a" => false,
        _ => return None,
    };
    let u16_at = |at: usize| -> Option<u16> {
        let bytes: [u8; 2] = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let u32_at = |at: usize| -> Option<u32> {
        let bytes: [u8; 4] = tiff.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if is_little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    };
    let directory = u32_at(4)? as usize;
    let num_entries = usize::from(u16_at(directory)?);
    (0..num_entries).map(|i| directory + 2 + i * 12).find_map(|at| {
        if u16_at(at)? != ORIENTATION {
            return None;
        }
        // SHORT or LONG; the value stands in the entry.
        let value = match u16_at(at + 2)? {
            3 => u32::from(u16_at(at + 8)?),
            4 => u32_at(at + 8)?,
            _ => return None,
        };
        u8::try_from(value).ok().filter(|value| (1..=8).contains(value))
    })
}

/// Orientation from an XMP packet, where EXIF has none: `tiff:Orientation="6"` or `<tiff:Orientation>6<`.
pub(super) fn xmp_orientation(xmp: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    let at = xmp.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
    let rest = xmp.get(at..)?;
    let digit = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?.first()?;
    Some(digit.wrapping_sub(b'0')).filter(|value| (1..=8).contains(value))
}

/// What brings a picture of that orientation upright.
pub(super) fn turn_of(orientation: u8) -> Turn {
    let (degrees, is_mirrored) = match orientation {
        2 => (0, true),
        3 => (180, false),
        4 => (180, true),
        5 => (270, true),
        6 => (90, false),
        7 => (90, true),
        8 => (270, false),
        _ => (0, false),
    };
    Turn { degrees, is_mirrored }
}
