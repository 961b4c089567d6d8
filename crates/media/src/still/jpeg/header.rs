//! Owns the marker segments of a JPEG: tables, frame and scan headers, application data.
//! It refuses to read coded data.

use super::super::{Fault, exif};
use super::entropy::HuffmanTable;

/// Order in which the 64 coefficients of a block are coded: place in the block, row by row.
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// How the coefficients of a frame are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// Each block whole.
    Sequential,
    /// Each block in several scans.
    Progressive,
}

/// A component of the picture.
#[derive(Debug, Clone)]
pub(super) struct Component {
    pub id: u8,
    /// Horizontal sampling factor, 1 to 4.
    pub h: usize,
    /// Vertical sampling factor, 1 to 4.
    pub v: usize,
    /// Number of its quantisation table.
    pub table: usize,
}

/// The frame header.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub coding: Coding,
    pub width: usize,
    pub height: usize,
    pub components: Vec<Component>,
}

impl Frame {
    /// Reads the header behind the marker `0xFF, kind`.
    pub fn parse(kind: u8, data: &[u8]) -> Result<Self, Fault> {
        let coding = match kind {
            0xc0 | 0xc1 => Coding::Sequential,
            0xc2 => Coding::Progressive,
            0xc3 | 0xc5..=0xc7 => return Err(Fault::Unsupported("lossless or hierarchical coding".into())),
            _ => return Err(Fault::Unsupported("arithmetic coding".into())),
        };
        let [bits, h1, h0, w1, w0, count, list @ ..] = data else { return Err(short("frame header")) };
        if *bits != 8 {
            return Err(Fault::Unsupported(format!("{bits} bits a sample")));
        }
        let (height, width) =
            (usize::from(u16::from_be_bytes([*h1, *h0])), usize::from(u16::from_be_bytes([*w1, *w0])));
        if height == 0 {
            return Err(Fault::Unsupported("a height given after the picture".into()));
        }
        if !matches!(count, 1 | 3 | 4) || list.len() < usize::from(*count) * 3 {
            return Err(Fault::Broken(format!("the frame header lists {count} components")));
        }
        let components: Vec<Component> = list
            .chunks_exact(3)
            .take(usize::from(*count))
            .map(|c| Component {
                id: c[0],
                h: usize::from(c[1] >> 4),
                v: usize::from(c[1] & 15),
                table: usize::from(c[2]),
            })
            .collect();
        if components.iter().any(|c| !(1..=4).contains(&c.h) || !(1..=4).contains(&c.v) || c.table > 3) {
            return Err(Fault::Broken("a component's sampling or table is impossible".into()));
        }
        Ok(Self { coding, width, height, components })
    }

    /// Largest sampling factors: horizontal, vertical.
    pub fn max_sampling(&self) -> (usize, usize) {
        let max = |factor: fn(&Component) -> usize| self.components.iter().map(factor).max().unwrap_or(1);
        (max(|c| c.h), max(|c| c.v))
    }
}

/// Tables and application data, as of the last segment read.
#[derive(Default)]
pub(super) struct Header {
    /// Quantisation tables, row by row.
    pub quantisation: [Option<[u16; 64]>; 4],
    pub dc_tables: [Option<HuffmanTable>; 4],
    pub ac_tables: [Option<HuffmanTable>; 4],
    /// Coded units between restart markers, 0 for none.
    pub restart_interval: usize,
    pub has_jfif: bool,
    /// The colour transform that an Adobe segment names.
    pub adobe_transform: Option<u8>,
    exif_orientation: Option<u8>,
    xmp_orientation: Option<u8>,
}

impl Header {
    /// Reads a segment that is neither a frame nor a scan header.
    pub fn read(&mut self, marker: u8, data: &[u8]) -> Result<(), Fault> {
        match marker {
            0xc4 => self.read_huffman(data)?,
            0xdb => self.read_quantisation(data)?,
            0xdd => {
                let [high, low, ..] = data else { return Err(short("restart interval")) };
                self.restart_interval = usize::from(u16::from_be_bytes([*high, *low]));
            }
            0xe0 => self.has_jfif |= data.starts_with(b"JFIF\0"),
            0xe1 if data.starts_with(b"Exif\0\0") => {
                self.exif_orientation = self.exif_orientation.or_else(|| exif::orientation(data));
            }
            0xe1 if data.starts_with(b"http://ns.adobe.com/xap/1.0/\0") => {
                self.xmp_orientation = self.xmp_orientation.or_else(|| exif::xmp_orientation(data));
            }
            0xee if data.starts_with(b"Adobe") && data.len() >= 12 => self.adobe_transform = Some(data[11]),
            _ => {}
        }
        Ok(())
    }

    /// The EXIF orientation, 1 to 8.
    pub fn orientation(&self) -> u8 {
        self.exif_orientation.or(self.xmp_orientation).unwrap_or(1)
    }

    fn read_huffman(&mut self, mut data: &[u8]) -> Result<(), Fault> {
        while let [class_and_number, rest @ ..] = data {
            let (class, number) = (class_and_number >> 4, usize::from(class_and_number & 15));
            let counts: &[u8; 16] = rest.first_chunk().ok_or_else(|| short("Huffman table"))?;
            let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
            let symbols = rest.get(16..16 + total).ok_or_else(|| short("Huffman table"))?;
            if class > 1 || number > 3 {
                return Err(Fault::Broken("a Huffman table's number is impossible".into()));
            }
            let table = HuffmanTable::new(counts, symbols)?;
            let tables = if class == 0 { &mut self.dc_tables } else { &mut self.ac_tables };
            tables[number] = Some(table);
            data = &rest[16 + total..];
        }
        Ok(())
    }

    fn read_quantisation(&mut self, mut data: &[u8]) -> Result<(), Fault> {
        while let [precision_and_number, rest @ ..] = data {
            let (is_wide, number) = (precision_and_number >> 4 != 0, usize::from(precision_and_number & 15));
            let size = if is_wide { 128 } else { 64 };
            let values = rest.get(..size).ok_or_else(|| short("quantisation table"))?;
            let table = self.quantisation.get_mut(number);
            let table = table.ok_or_else(|| Fault::Broken("a quantisation table's number is impossible".into()))?;
            let mut natural = [0u16; 64];
            for (i, &place) in ZIGZAG.iter().enumerate() {
                natural[usize::from(place)] =
                    if is_wide { u16::from_be_bytes([values[2 * i], values[2 * i + 1]]) } else { values[i].into() };
            }
            *table = Some(natural);
            data = &rest[size..];
        }
        Ok(())
    }
}

/// One segment of the file.
pub(super) enum Segment<'a> {
    /// A frame header: the marker's second byte, and the data.
    Frame(u8, &'a [u8]),
    /// A scan header; coded data follows.
    Scan(&'a [u8]),
    /// Another segment.
    Other(u8, &'a [u8]),
}

/// Walks from marker to marker.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the beginning of a file.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes.get(2..).unwrap_or(&[]) }
    }

    /// What follows the last segment.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Leaves out coded data.
    pub fn skip(&mut self, length: usize) {
        self.rest = self.rest.get(length..).unwrap_or(&[]);
    }

    /// The next segment; `None` at the end-of-image marker, or at the end of a file that lacks it.
    pub fn next(&mut self) -> Result<Option<Segment<'a>>, Fault> {
        loop {
            // Bytes between segments are passed over, as libjpeg does.
            let Some(at) = self.rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff)) else {
                return Ok(None);
            };
            let marker = self.rest[at + 1];
            self.rest = &self.rest[at + 2..];
            match marker {
                0xd9 => return Ok(None),
                // Markers without data: restarts, start of image, TEM.
                0xd0..=0xd8 | 0x01 => continue,
                _ => {}
            }
            let [high, low, ..] = self.rest else { return Err(short("segment")) };
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let data = self.rest.get(2..length).ok_or_else(|| short("segment"))?;
            self.rest = &self.rest[length..];
            return Ok(Some(match marker {
                0xc4 | 0xc8 | 0xcc => Segment::Other(marker, data),
                0xc0..=0xcf => Segment::Frame(marker, data),
                0xda => Segment::Scan(data),
                _ => Segment::Other(marker, data),
            }));
        }
    }
}

fn short(what: &str) -> Fault {
    Fault::Truncated(format!("a {what} ends too soon"))
}
