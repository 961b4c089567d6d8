//! Owns the picture while its scans are read: where each block lies, and the samples that come of it.
//! It refuses to upsample.

use super::super::{Bounds, Fault};
use super::entropy::{self, Band, Bits, Block, no_table};
use super::header::{Coding, Frame, Header};
use super::idct;
use super::planes::{self, Plane};
use crate::RgbImage;

/// A picture being read.
pub(super) struct Picture {
    frame: Frame,
    /// Coded units across and down.
    units: (usize, usize),
    parts: Vec<Part>,
}

/// What is known of one component.
struct Part {
    /// Blocks across and down, filled up to whole units.
    blocks: (usize, usize),
    /// Blocks across and down that hold any of the picture.
    used: (usize, usize),
    /// Coefficients of progressive pictures, block by block.
    coefficients: Vec<Block>,
    /// Samples.
    plane: Plane,
    /// Whether any scan gave its first coefficients.
    is_seen: bool,
}

/// A component's place in a scan.
struct Member {
    part: usize,
    dc: usize,
    ac: usize,
    prediction: i32,
}

impl Picture {
    /// An empty picture.
    pub fn new(frame: Frame, bounds: &Bounds) -> Result<Self, Fault> {
        let (max_h, max_v) = frame.max_sampling();
        let units = (frame.width.div_ceil(8 * max_h), frame.height.div_ceil(8 * max_v));
        let is_progressive = frame.coding == Coding::Progressive;
        let mut num_bytes = 0;
        for component in &frame.components {
            let blocks = units.0 * component.h * units.1 * component.v;
            num_bytes += blocks * if is_progressive { 192 } else { 64 };
        }
        if num_bytes > bounds.max_alloc_bytes {
            return Err(Fault::Memory(num_bytes));
        }
        let parts = frame
            .components
            .iter()
            .map(|component| {
                let blocks = (units.0 * component.h, units.1 * component.v);
                let size = ((frame.width * component.h).div_ceil(max_h), (frame.height * component.v).div_ceil(max_v));
                Part {
                    blocks,
                    used: (size.0.div_ceil(8), size.1.div_ceil(8)),
                    coefficients: vec![[0; 64]; if is_progressive { blocks.0 * blocks.1 } else { 0 }],
                    plane: Plane::new(size, blocks),
                    is_seen: false,
                }
            })
            .collect();
        Ok(Self { frame, units, parts })
    }

    /// Reads one scan: `data` is its header, `coded` what follows. Returns the length of the coded data.
    pub fn read_scan(&mut self, header: &Header, data: &[u8], coded: &[u8], bounds: &Bounds) -> Result<usize, Fault> {
        let (mut members, band) = self.scan_header(data)?;
        let mut bits = Bits::new(coded);
        let is_single = members.len() == 1;
        // A scan of one component codes just the blocks that hold any of the picture.
        let (across, down) = if is_single { self.parts[members[0].part].used } else { self.units };
        let mut skip = 0;
        for unit in 0..across * down {
            if unit % across == 0 {
                bounds.check_time()?;
            }
            if header.restart_interval > 0 && unit > 0 && unit % header.restart_interval == 0 {
                bits.restart(unit / header.restart_interval - 1)?;
                skip = 0;
                for member in &mut members {
                    member.prediction = 0;
                }
            }
            let (x, y) = (unit % across, unit / across);
            for member in &mut members {
                let component = &self.frame.components[member.part];
                let (h, v) = if is_single { (1, 1) } else { (component.h, component.v) };
                for i in 0..h * v {
                    let place = (x * h + i % h, y * v + i / h);
                    self.read_block(header, &mut bits, member, band, &mut skip, place)?;
                }
            }
            bits.check_end()?;
        }
        Ok(bits.length())
    }

    fn scan_header(&mut self, data: &[u8]) -> Result<(Vec<Member>, Band), Fault> {
        let broken = || Fault::Broken("a scan header is impossible".into());
        let (&count, rest) = data.split_first().ok_or_else(broken)?;
        let count = usize::from(count);
        let [first, last, bits, ..] = *rest.get(count * 2..).ok_or_else(broken)? else { return Err(broken()) };
        let mut members = Vec::new();
        for entry in rest[..count * 2].chunks_exact(2) {
            let part = self.frame.components.iter().position(|component| component.id == entry[0]);
            let part = part.filter(|&part| members.iter().all(|m: &Member| m.part != part)).ok_or_else(broken)?;
            let (dc, ac) = (usize::from(entry[1] >> 4), usize::from(entry[1] & 15));
            if dc > 3 || ac > 3 {
                return Err(broken());
            }
            members.push(Member { part, dc, ac, prediction: 0 });
        }
        if members.is_empty() {
            return Err(broken());
        }
        let band = match self.frame.coding {
            Coding::Sequential => Band { first: 0, last: 63, is_refinement: false, low: 0 },
            Coding::Progressive => Band {
                first: first.into(),
                last: last.into(),
                is_refinement: bits >> 4 != 0,
                low: u32::from(bits & 15),
            },
        };
        let is_lawful = band.first <= band.last
            && band.last < 64
            && band.low <= 13
            && (self.frame.coding == Coding::Sequential
                || (band.first == 0 && band.last == 0)
                || (band.first > 0 && members.len() == 1));
        if !is_lawful {
            return Err(broken());
        }
        if band.first == 0 {
            for member in &members {
                self.parts[member.part].is_seen = true;
            }
        }
        Ok((members, band))
    }

    fn read_block(
        &mut self,
        header: &Header,
        bits: &mut Bits<'_>,
        member: &mut Member,
        band: Band,
        skip: &mut u32,
        (x, y): (usize, usize),
    ) -> Result<(), Fault> {
        let part = &mut self.parts[member.part];
        let dc = header.dc_tables[member.dc].as_ref();
        let ac = header.ac_tables[member.ac].as_ref();
        if self.frame.coding == Coding::Progressive {
            let block = &mut part.coefficients[y * part.blocks.0 + x];
            return if band.first == 0 {
                entropy::progressive_dc(bits, dc, band, &mut member.prediction, block)
            } else {
                entropy::progressive_ac(bits, ac.ok_or_else(no_table)?, band, skip, block)
            };
        }
        let mut block = [0; 64];
        let (dc, ac) = (dc.ok_or_else(no_table)?, ac.ok_or_else(no_table)?);
        let has_more = entropy::sequential(bits, dc, ac, &mut member.prediction, &mut block)?;
        let table = self.frame.components[member.part].table;
        let table = header.quantisation[table].as_ref().ok_or_else(no_table)?;
        let (out, stride) = part.plane.block_mut(x, y);
        if has_more {
            idct::block(&block, table, out, stride);
        } else {
            idct::flat(block[0], table, out, stride);
        }
        Ok(())
    }

    /// The picture in RGB.
    pub fn finish(mut self, header: &Header, bounds: &Bounds) -> Result<RgbImage, Fault> {
        if self.parts.iter().any(|part| !part.is_seen) {
            return Err(Fault::Truncated("a component has no picture data".into()));
        }
        if self.frame.coding == Coding::Progressive {
            for (part, component) in self.parts.iter_mut().zip(&self.frame.components) {
                let table = header.quantisation[component.table].as_ref().ok_or_else(no_table)?;
                for (i, block) in part.coefficients.iter().enumerate() {
                    if i % part.blocks.0 == 0 {
                        bounds.check_time()?;
                    }
                    let (out, stride) = part.plane.block_mut(i % part.blocks.0, i / part.blocks.0);
                    idct::block(block, table, out, stride);
                }
                part.coefficients = Vec::new();
            }
        }
        let planes: Vec<Plane> = self.parts.into_iter().map(|part| part.plane).collect();
        planes::to_rgb(&self.frame, header, &planes)
    }
}
