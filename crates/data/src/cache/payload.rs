//! Owns the bytes inside of an entry: pictures, and what is known of a video before decoding.
//! It refuses to touch files.

use std::io;

use media::RgbImage;

/// zstd's fastest ordinary level: of frames of films at 336x336, as differences between neighbours, it makes 2.3 to 4.9
/// times less and is undone at 1.1 to 1.9 GB/s (2 ms for 8 frames); lz4 makes 1.3 to 2.7 times less at 1.6 to 2.2 GB/s,
/// and level 3 of zstd no less than level 1.
const LEVEL: i32 = 1;

/// Bytes without what they repeat: their length, and what zstd makes of them.
pub(super) fn packed(content: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = (content.len() as u64).to_le_bytes().to_vec();
    bytes.extend(zstd::bulk::compress(content, LEVEL)?);
    Ok(bytes)
}

/// The bytes again; `None` for anything that [`packed`] does not write.
pub(super) fn unpacked(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut rest = Reader(bytes);
    let length = usize::try_from(rest.u64()?).ok()?;
    zstd::bulk::decompress(rest.0, length).ok().filter(|content| content.len() == length)
}

/// What the choice of frames needs to know of a video.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VideoFacts {
    pub width: u32,
    pub height: u32,
    pub fps: f64,
    /// Presentation time of every frame.
    pub seconds: Vec<f64>,
    /// What the reader warned of.
    pub warnings: Vec<String>,
}

impl VideoFacts {
    pub fn of(index: &media::VideoIndex) -> Self {
        Self {
            width: index.width,
            height: index.height,
            fps: index.fps,
            seconds: index.seconds.clone(),
            warnings: index.warnings.iter().map(|warning| warning.message.clone()).collect(),
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + self.seconds.len() * 8);
        out.extend_from_slice(&self.width.to_le_bytes());
        out.extend_from_slice(&self.height.to_le_bytes());
        out.extend_from_slice(&self.fps.to_bits().to_le_bytes());
        out.extend_from_slice(&(self.seconds.len() as u64).to_le_bytes());
        self.seconds.iter().for_each(|s| out.extend_from_slice(&s.to_bits().to_le_bytes()));
        out.extend_from_slice(&(self.warnings.len() as u64).to_le_bytes());
        for warning in &self.warnings {
            out.extend_from_slice(&(warning.len() as u64).to_le_bytes());
            out.extend_from_slice(warning.as_bytes());
        }
        out
    }

    /// `None` for anything that [`VideoFacts::to_bytes`] does not write.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        let (width, height, fps) = (rest.u32()?, rest.u32()?, f64::from_bits(rest.u64()?));
        let seconds = rest.list(8)?;
        let seconds = seconds.as_chunks::<8>().0.iter().map(|s| f64::from_bits(u64::from_le_bytes(*s))).collect();
        let mut warnings = Vec::new();
        for _ in 0..rest.u64()? {
            let text = rest.list(1)?;
            warnings.push(std::str::from_utf8(text).ok()?.to_owned());
        }
        rest.0.is_empty().then_some(Self { width, height, fps, seconds, warnings })
    }
}

/// A frame as the model takes it, in bytes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shot {
    pub image: RgbImage,
    /// Whether the decoder concealed errors in it.
    pub damaged: bool,
}

/// Bytes of the pictures; each pixel as its difference from the one before, red and blue after the green is taken off
/// them, which a packer makes far less of than of the colours themselves.
pub(super) fn shots_to_bytes(shots: &[Shot]) -> Vec<u8> {
    let total: usize = shots.iter().map(|shot| 9 + shot.image.data.len()).sum();
    let mut out = Vec::with_capacity(8 + total);
    out.extend_from_slice(&(shots.len() as u64).to_le_bytes());
    for Shot { image, damaged } in shots {
        out.extend_from_slice(&image.width.to_le_bytes());
        out.extend_from_slice(&image.height.to_le_bytes());
        out.push(u8::from(*damaged));
        let mut before = [0u8; 3];
        for pixel in image.data.as_chunks::<3>().0 {
            let [r, g, b] = [0, 1, 2].map(|c| pixel[c].wrapping_sub(before[c]));
            out.extend_from_slice(&[r.wrapping_sub(g), g, b.wrapping_sub(g)]);
            before = *pixel;
        }
    }
    out
}

/// `None` for anything that [`shots_to_bytes`] does not write.
pub(super) fn shots_from_bytes(bytes: &[u8]) -> Option<Vec<Shot>> {
    let mut rest = Reader(bytes);
    let mut shots = Vec::new();
    for _ in 0..rest.u64()? {
        let (width, height) = (rest.u32()?, rest.u32()?);
        let damaged = match rest.take(1)? {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        let length = (width as usize).checked_mul(height as usize)?.checked_mul(3)?;
        let mut data = rest.take(length)?.to_vec();
        let mut before = [0u8; 3];
        for pixel in data.as_chunks_mut::<3>().0 {
            let [r, g, b] = *pixel;
            before = [
                before[0].wrapping_add(r).wrapping_add(g),
                before[1].wrapping_add(g),
                before[2].wrapping_add(b).wrapping_add(g),
            ];
            *pixel = before;
        }
        shots.push(Shot { image: RgbImage::from_rgb(width, height, data).ok()?, damaged });
    }
    rest.0.is_empty().then_some(shots)
}

/// Bytes not yet read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    /// The bytes of a list of items of `size` bytes, whose number stands before them.
    fn list(&mut self, size: usize) -> Option<&'a [u8]> {
        let num_bytes = usize::try_from(self.u64()?).ok()?.checked_mul(size)?;
        self.take(num_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_come_back_as_they_were() {
        let noise = |seed: u32, len: usize| {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            };
            (0..len).map(|_| next()).collect::<Vec<u8>>()
        };
        let shots = vec![
            Shot { image: RgbImage::from_rgb(5, 3, noise(1, 45)).unwrap(), damaged: false },
            Shot { image: RgbImage::from_rgb(1, 1, vec![255, 0, 128]).unwrap(), damaged: true },
        ];
        let bytes = shots_to_bytes(&shots);
        assert_eq!(shots_from_bytes(&bytes), Some(shots));
        assert_eq!(shots_from_bytes(&shots_to_bytes(&[])), Some(Vec::new()));
        for cut in 0..bytes.len() {
            assert_eq!(shots_from_bytes(&bytes[..cut]), None, "{cut}");
        }
        assert_eq!(shots_from_bytes(&[bytes, vec![0]].concat()), None);
        assert_eq!(shots_from_bytes(&[0xff; 64]), None);
    }

    #[test]
    fn what_is_packed_comes_back() {
        let content: Vec<u8> = (0..5000u32).map(|i| (i / 7) as u8).collect();
        let bytes = packed(&content).unwrap();
        assert!(bytes.len() < content.len() / 2);
        assert_eq!(unpacked(&bytes), Some(content));
        assert_eq!(unpacked(&packed(&[]).unwrap()), Some(Vec::new()));
        for cut in [0, 7, 8, bytes.len() - 1] {
            assert_eq!(unpacked(&bytes[..cut]), None, "{cut}");
        }
        let mut other = bytes;
        other[0] ^= 1;
        assert_eq!(unpacked(&other), None, "another length");
    }

    #[test]
    fn facts_come_back_as_they_were() {
        let facts = VideoFacts {
            width: 3,
            height: 4,
            fps: 29.97,
            seconds: vec![0.0, -0.0, 1.0 / 3.0],
            warnings: vec!["cut".to_owned(), String::new()],
        };
        let bytes = facts.to_bytes();
        let back = VideoFacts::from_bytes(&bytes).unwrap();
        assert_eq!((back.seconds[1].to_bits(), &back), ((-0.0f64).to_bits(), &facts));
        for cut in 0..bytes.len() {
            assert_eq!(VideoFacts::from_bytes(&bytes[..cut]), None, "{cut}");
        }
        assert_eq!(VideoFacts::from_bytes(&[0xff; 64]), None);
    }
}
