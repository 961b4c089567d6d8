//! Owns JPEG: baseline, extended and progressive, 8 bits, Huffman, with the inverse transform, the upsampling and the
//! colour arithmetic of libjpeg-turbo, so that every pixel equals Pillow's.
//! It refuses arithmetic coding, lossless and 12-bit pictures, and gives no part of a picture whose data is damaged.
//!
//! Sources: ITU-T T.81 for the format; the transform is Loeffler, Ligtenberg and Moschytz (1989) in 13-bit integers.

mod entropy;
mod header;
mod idct;
mod planes;
mod scan;

use super::{Bounds, Fault};
use crate::RgbImage;

/// The picture as stored, and its EXIF orientation.
pub(super) fn decode(bytes: &[u8], bounds: &Bounds) -> Result<(RgbImage, u8), Fault> {
    let mut header = header::Header::default();
    let mut reader = header::Reader::new(bytes);
    let mut picture: Option<scan::Picture> = None;
    while let Some(segment) = reader.next()? {
        match segment {
            header::Segment::Frame(kind, data) => {
                if picture.is_some() {
                    return Err(Fault::Broken("it has two frame headers".into()));
                }
                let frame = header::Frame::parse(kind, data)?;
                bounds.check(frame.width as u64, frame.height as u64)?;
                picture = Some(scan::Picture::new(frame, bounds)?);
            }
            header::Segment::Scan(data) => {
                let picture =
                    picture.as_mut().ok_or_else(|| Fault::Broken("a scan stands before the frame header".into()))?;
                let length = picture.read_scan(&header, data, reader.rest(), bounds)?;
                reader.skip(length);
            }
            header::Segment::Other(marker, data) => header.read(marker, data)?,
        }
    }
    let picture = picture.ok_or_else(|| Fault::Broken("it has no frame header".into()))?;
    let orientation = header.orientation();
    Ok((picture.finish(&header, bounds)?, orientation))
}
