//! Owns what we read of containers ourselves, before or beside libav: declared sizes that would cost memory, missing
//! parts, missing ends, and frames that are never shown. It refuses to demux.

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use crate::sniff::{Kind, OpenFile};
use crate::{Limits, MediaError, MediaFile};

/// Most boxes in one MP4 file. Two hours in fragments of a second have some 60 000.
const MAX_BOXES: usize = 400_000;

/// Refuses a file whose header declares more than the limits allow, or that lacks what every reader needs. Gives, in
/// words, how the end of the file is missing, if something shows it. Leaves the file at its start.
pub(crate) fn check(path: &Path, file: &OpenFile, kind: Kind, limits: &Limits) -> Result<Option<String>, MediaError> {
    let mut scan = Scan { path, reader: BufReader::new(&file.file), position: 0, size: file.size };
    let result = match kind {
        Kind::Mp4 => check_mp4(&mut scan, limits),
        Kind::Matroska => Ok(missing_segment(&file.head, file.size)),
        Kind::Avi => Ok(missing_riff(&file.head, file.size)),
        Kind::Gif => {
            if let Some(&[w0, w1, h0, h1]) = file.head.get(6..10).and_then(|sides| sides.first_chunk()) {
                limits.check_size(path, u16::from_le_bytes([w0, w1]).into(), u16::from_le_bytes([h0, h1]).into())?;
            }
            let last = scan.bytes::<1>(file.size - 1)?;
            Ok((last != Some([0x3b])).then(|| "the file has no end mark".to_string()))
        }
        _ => Ok(None),
    };
    (&file.file).seek(SeekFrom::Start(0)).map_err(|error| MediaError::io(path, error))?;
    result
}

/// A file looked into here and there, mostly forwards.
struct Scan<'a> {
    path: &'a Path,
    reader: BufReader<&'a MediaFile>,
    position: u64,
    size: u64,
}

impl Scan<'_> {
    /// `N` bytes at an offset; `None` past the end.
    fn bytes<const N: usize>(&mut self, at: u64) -> Result<Option<[u8; N]>, MediaError> {
        if at.checked_add(N as u64).is_none_or(|end| end > self.size) {
            return Ok(None);
        }
        let mut bytes = [0; N];
        // A short way inside the buffer costs no system call.
        self.reader
            .seek_relative(at as i64 - self.position as i64)
            .and_then(|()| self.reader.read_exact(&mut bytes))
            .map_err(|error| MediaError::io(self.path, error))?;
        self.position = at + N as u64;
        Ok(Some(bytes))
    }

    fn broken(&self, detail: String) -> MediaError {
        MediaError::Broken { path: self.path.to_path_buf(), format: "mp4".into(), detail }
    }

    fn u32(&mut self, at: u64) -> Result<Option<u32>, MediaError> {
        Ok(self.bytes(at)?.map(u32::from_be_bytes))
    }

    /// The box at an offset, inside `end`; `None` if none fits there.
    fn mp4_box(&mut self, at: u64, end: u64) -> Result<Option<Mp4Box>, MediaError> {
        let Some(head) = self.bytes::<8>(at)? else { return Ok(None) };
        let name = [head[4], head[5], head[6], head[7]];
        let (header, size) = match u32::from_be_bytes([head[0], head[1], head[2], head[3]]) {
            0 => (8, end - at),
            1 => match self.bytes(at + 8)? {
                Some(size) => (16, u64::from_be_bytes(size)),
                None => return Ok(None),
            },
            size => (8, u64::from(size)),
        };
        if size < header {
            return Ok(None);
        }
        Ok(Some(Mp4Box { name, data: at + header, end: at.saturating_add(size) }))
    }
}

/// A box of an MP4 file.
struct Mp4Box {
    name: [u8; 4],
    data: u64,
    end: u64,
}

fn check_mp4(scan: &mut Scan<'_>, limits: &Limits) -> Result<Option<String>, MediaError> {
    let mut at = 0;
    let mut counts = Counts::default();
    let (mut has_moov, mut missing) = (false, None);
    while at < scan.size {
        let Some(found) = scan.mp4_box(at, scan.size)? else { break };
        if found.end > scan.size {
            if &found.name == b"moov" {
                let detail = format!("the `moov` box ends at byte {}, the file at {}", found.end, scan.size);
                return Err(MediaError::Truncated { path: scan.path.to_path_buf(), detail });
            }
            let name = String::from_utf8_lossy(&found.name).into_owned();
            missing = Some(format!("the `{name}` box ends at byte {}, the file at {}", found.end, scan.size));
        }
        has_moov |= &found.name == b"moov";
        counts.add(scan, &found, 0)?;
        if counts.samples > limits.max_packets as u64 {
            return Err(MediaError::TooLarge {
                path: scan.path.to_path_buf(),
                what: "max_packets",
                found: format!("{} (declared)", counts.samples),
                limit: limits.max_packets.to_string(),
            });
        }
        at = found.end;
    }
    if !has_moov {
        return Err(scan.broken("it has no `moov` box, so the recording was not finished or its end is missing".into()));
    }
    Ok(missing)
}

/// What the boxes of an MP4 file declare.
#[derive(Default)]
struct Counts {
    boxes: usize,
    /// Samples of all tracks and fragments: what a reader would make room for.
    samples: u64,
}

impl Counts {
    /// Counts a box and what is inside it.
    fn add(&mut self, scan: &mut Scan<'_>, found: &Mp4Box, depth: usize) -> Result<(), MediaError> {
        self.boxes += 1;
        if self.boxes > MAX_BOXES {
            return Err(scan.broken(format!("it has more than {MAX_BOXES} boxes")));
        }
        match &found.name {
            b"moov" | b"trak" | b"mdia" | b"minf" | b"stbl" | b"moof" | b"traf" if depth < 6 => {
                let mut at = found.data;
                while at < found.end {
                    let Some(inside) = scan.mp4_box(at, found.end)? else { break };
                    self.add(scan, &inside, depth + 1)?;
                    at = inside.end;
                }
            }
            // Version and flags, the size of all samples (or 0, or field widths), their number.
            b"stsz" | b"stz2" => self.samples += u64::from(scan.u32(found.data + 8)?.unwrap_or(0)),
            // Version and flags, the number of samples.
            b"trun" => self.samples += u64::from(scan.u32(found.data + 4)?.unwrap_or(0)),
            _ => {}
        }
        Ok(())
    }
}

/// The missing end of a Matroska file whose segment states its size.
fn missing_segment(head: &[u8], size: u64) -> Option<String> {
    let (header_size, at) = ebml_size(head, 4)?;
    let segment = at + usize::try_from(header_size?).ok()?;
    if head.get(segment..segment + 4)? != b"\x18\x53\x80\x67" {
        return None;
    }
    let (segment_size, data) = ebml_size(head, segment + 4)?;
    let end = segment_size?.checked_add(data as u64)?;
    (end > size).then(|| format!("the segment ends at byte {end}, the file at {size}"))
}

/// The size at an offset in an EBML header (inner `None`: unknown) and the offset behind it.
fn ebml_size(bytes: &[u8], at: usize) -> Option<(Option<u64>, usize)> {
    let first = *bytes.get(at)?;
    let length = first.leading_zeros() as usize + 1;
    let rest = bytes.get(at + 1..at + length)?;
    let mask = if length < 8 { 0xff_u8 >> length } else { 0 };
    let value = rest.iter().fold(u64::from(first & mask), |value, &byte| value << 8 | u64::from(byte));
    let is_unknown = value == (1 << (7 * length)) - 1;
    Some(((!is_unknown).then_some(value), at + length))
}

/// The missing end of an AVI file, whose first chunk states its size. Files over 1 GB have more chunks behind it.
fn missing_riff(head: &[u8], size: u64) -> Option<String> {
    let stated = u32::from_le_bytes(*head.get(4..8)?.first_chunk()?);
    let end = u64::from(stated) + 8;
    (stated != 0 && end > size).then(|| format!("the first chunk ends at byte {end}, the file at {size}"))
}

/// Whether the packet of a codec gives a picture to show. VP8 and VP9 have packets that only others refer to.
pub(crate) fn is_shown(codec: &str, data: &[u8]) -> bool {
    match codec {
        // RFC 6386, 9.1: bit 4 of the first byte is `show_frame`.
        "vp8" => data.first().is_some_and(|byte| byte & 0x10 != 0),
        "vp9" => is_vp9_shown(data),
        _ => true,
    }
}

/// VP9 bitstream, 6.1 and 7.2: the last byte tells a superframe, which holds a shown frame; otherwise `show_frame`
/// stands behind the frame marker, the profile, `show_existing_frame` and the frame type.
fn is_vp9_shown(data: &[u8]) -> bool {
    let (Some(&first), Some(&last)) = (data.first(), data.last()) else { return false };
    if last & 0xe0 == 0xc0 {
        return true;
    }
    let is_profile_3 = first & 0x30 == 0x30;
    let flags = if is_profile_3 { first << 5 } else { first << 4 };
    let shows_existing = flags & 0x80 != 0;
    shows_existing || flags & 0x20 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_packets_are_told() {
        assert!(is_shown("vp8", &[0x10]) && !is_shown("vp8", &[0x01]) && !is_shown("vp8", &[]));
        // Marker 10, profile 00, show_existing 0, type 1, show 1, resilient 0.
        assert!(is_shown("vp9", &[0b1000_0110, 0]));
        assert!(!is_shown("vp9", &[0b1000_0100, 0]));
        assert!(is_shown("vp9", &[0b1000_1000, 0]));
        // Profile 3 has one more bit: marker 10, 11, 0, existing 0, type 1, show 1.
        assert!(is_shown("vp9", &[0b1011_0011, 0]) && !is_shown("vp9", &[0b1011_0010, 0]));
        assert!(is_shown("vp9", &[0b1000_0100, 0b1100_0001]));
        assert!(is_shown("h264", &[]));
    }

    #[test]
    fn ebml_sizes_are_read() {
        assert_eq!(ebml_size(&[0x81], 0), Some((Some(1), 1)));
        assert_eq!(ebml_size(&[0x40, 0x02], 0), Some((Some(2), 2)));
        assert_eq!(ebml_size(&[0x01, 0, 0, 0, 0, 0, 1, 0], 0), Some((Some(256), 8)));
        assert_eq!(ebml_size(&[0xff], 0), Some((None, 1)));
        assert_eq!(ebml_size(&[0x40], 0), None);
        assert_eq!(ebml_size(&[0], 0), None);
    }
}
