//! Owns the coded data of a JPEG: bits, Huffman codes, and the coefficients of one block.
//! It refuses to know where a block lies in the picture.

use super::super::Fault;
use super::header::ZIGZAG;

/// Bits that the quick table looks at; longer codes take the slow way.
const QUICK_BITS: u32 = 10;

/// A Huffman table made for decoding.
#[derive(Clone)]
pub(super) struct HuffmanTable {
    /// For each start of `QUICK_BITS` bits: symbol and length, length 0 for longer codes.
    quick: Vec<(u8, u8)>,
    /// For each length the largest code, shifted to 16 bits, plus one.
    limits: [u32; 17],
    /// For each length what to subtract from a code to find its symbol.
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

impl HuffmanTable {
    /// From the number of codes of each length and the symbols in order.
    pub fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Self, Fault> {
        let mut quick = vec![(0, 0); 1 << QUICK_BITS];
        let mut limits = [0; 17];
        let mut offsets = [0; 17];
        let (mut code, mut at) = (0u32, 0usize);
        for length in 1..=16u32 {
            offsets[length as usize] = at as i32 - code as i32;
            for _ in 0..counts[length as usize - 1] {
                if code >= 1 << length {
                    return Err(Fault::Broken("a Huffman table has too many codes".into()));
                }
                if length <= QUICK_BITS {
                    let first = (code << (QUICK_BITS - length)) as usize;
                    quick[first..first + (1 << (QUICK_BITS - length))].fill((symbols[at], length as u8));
                }
                code += 1;
                at += 1;
            }
            limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(Self { quick, limits, offsets, symbols: symbols.to_vec() })
    }
}

/// Reads bits from coded data, taking out the zero bytes stuffed behind `0xFF`.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// The next bits, the first in the highest place.
    buffer: u64,
    /// Bits in the buffer.
    count: u32,
    /// Zero bits put in behind the end of the data.
    padding: u32,
}

impl<'a> Bits<'a> {
    /// Starts at the beginning of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0, buffer: 0, count: 0, padding: 0 }
    }

    /// Fills the buffer with at least 32 bits.
    #[inline]
    fn refill(&mut self) {
        if self.count >= 32 {
            return;
        }
        if let Some(next) = self.data.get(self.at..self.at + 4) {
            let word = u32::from_be_bytes([next[0], next[1], next[2], next[3]]);
            // No byte is 0xFF: its complement has no zero byte.
            let complement = !word;
            if complement.wrapping_sub(0x0101_0101) & !complement & 0x8080_8080 == 0 {
                self.buffer |= u64::from(word) << (32 - self.count);
                self.count += 32;
                self.at += 4;
                return;
            }
        }
        while self.count <= 56 {
            let byte = match (self.data.get(self.at), self.data.get(self.at + 1)) {
                (Some(0xff), Some(0)) => {
                    self.at += 2;
                    0xff
                }
                // A marker, or half of one at the end of the file.
                (Some(0xff), _) | (None, _) => {
                    self.padding += 8;
                    0
                }
                (Some(&byte), _) => {
                    self.at += 1;
                    byte
                }
            };
            self.buffer |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    /// Takes `count` bits, at most 16. The buffer must hold them.
    #[inline]
    fn take(&mut self, count: u32) -> i32 {
        if count == 0 {
            return 0;
        }
        let value = (self.buffer >> (64 - count)) as i32;
        self.buffer <<= count;
        self.count -= count;
        value
    }

    /// Takes one bit.
    #[inline]
    fn bit(&mut self) -> bool {
        self.refill();
        self.take(1) != 0
    }

    /// Takes a signed value of `size` bits (T.81, figure F.12). The buffer must hold them.
    #[inline]
    fn signed(&mut self, size: u32) -> i32 {
        let value = self.take(size);
        if size > 0 && value < 1 << (size - 1) { value - (1 << size) + 1 } else { value }
    }

    /// Takes a symbol; at least 16 bits are left in the buffer for its value.
    #[inline]
    fn symbol(&mut self, table: &HuffmanTable) -> Result<u8, Fault> {
        self.refill();
        let (symbol, length) = table.quick[(self.buffer >> (64 - QUICK_BITS)) as usize];
        if length > 0 {
            self.buffer <<= length;
            self.count -= u32::from(length);
            return Ok(symbol);
        }
        let code = (self.buffer >> 48) as u32;
        for length in QUICK_BITS + 1..=16 {
            if code < table.limits[length as usize] {
                let at = (code >> (16 - length)) as i32 + table.offsets[length as usize];
                self.buffer <<= length;
                self.count -= length;
                let symbol = usize::try_from(at).ok().and_then(|at| table.symbols.get(at));
                return symbol.copied().ok_or_else(damaged);
            }
        }
        if self.is_past_end() { Err(ends()) } else { Err(damaged()) }
    }

    /// Whether more bits were taken than there are.
    fn is_past_end(&self) -> bool {
        self.count < self.padding
    }

    /// An error if more bits were taken than there are.
    pub fn check_end(&self) -> Result<(), Fault> {
        if self.is_past_end() { Err(ends()) } else { Ok(()) }
    }

    /// Passes over a restart marker; the bits before it are dropped.
    pub fn restart(&mut self, number: usize) -> Result<(), Fault> {
        self.check_end()?;
        // Whole bytes still in the buffer would be coded data that no block took.
        if self.count.saturating_sub(self.padding) >= 8 {
            return Err(damaged());
        }
        match self.data.get(self.at..self.at + 2) {
            Some(&[0xff, marker]) if marker == 0xd0 + (number % 8) as u8 => {
                *self = Self { data: self.data, at: self.at + 2, buffer: 0, count: 0, padding: 0 };
                Ok(())
            }
            Some(_) => Err(damaged()),
            None => Err(ends()),
        }
    }

    /// Bytes of coded data, up to the marker behind it.
    pub fn length(&self) -> usize {
        let rest = self.data.get(self.at..).unwrap_or(&[]);
        let is_marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff | 0xd0..=0xd7);
        self.at + rest.windows(2).position(is_marker).unwrap_or(rest.len())
    }
}

fn damaged() -> Fault {
    Fault::Broken("the coded data is damaged".into())
}

fn ends() -> Fault {
    Fault::Truncated("the picture data ends too soon".into())
}

/// What one scan codes of each block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Band {
    /// First coefficient in zigzag order.
    pub first: usize,
    /// Last coefficient.
    pub last: usize,
    /// Whether an earlier scan gave the higher bits.
    pub is_refinement: bool,
    /// Bits to be given by later scans.
    pub low: u32,
}

/// A block's coefficients, row by row.
pub(super) type Block = [i16; 64];

/// Reads a whole block; the coefficients must be zero before. Returns whether any but the first is set.
pub(super) fn sequential(
    bits: &mut Bits<'_>,
    dc: &HuffmanTable,
    ac: &HuffmanTable,
    prediction: &mut i32,
    block: &mut Block,
) -> Result<bool, Fault> {
    *prediction = first_difference(bits, dc, *prediction)?;
    block[0] = *prediction as i16;
    let mut k = 1;
    while k < 64 {
        let symbol = bits.symbol(ac)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            if run != 15 {
                break;
            }
            k += 16;
            continue;
        }
        k += run;
        if k > 63 {
            return Err(damaged());
        }
        block[usize::from(ZIGZAG[k])] = bits.signed(size) as i16;
        k += 1;
    }
    Ok(k > 1)
}

/// The next first coefficient, from its difference to the last one.
fn first_difference(bits: &mut Bits<'_>, table: &HuffmanTable, prediction: i32) -> Result<i32, Fault> {
    let size = u32::from(bits.symbol(table)?);
    if size > 15 {
        return Err(damaged());
    }
    Ok(prediction.wrapping_add(bits.signed(size)))
}

/// Reads what a progressive scan says of the first coefficient.
pub(super) fn progressive_dc(
    bits: &mut Bits<'_>,
    table: Option<&HuffmanTable>,
    band: Band,
    prediction: &mut i32,
    block: &mut Block,
) -> Result<(), Fault> {
    if band.is_refinement {
        if bits.bit() {
            block[0] |= 1 << band.low;
        }
        return Ok(());
    }
    *prediction = first_difference(bits, table.ok_or_else(no_table)?, *prediction)?;
    block[0] = (*prediction << band.low) as i16;
    Ok(())
}

/// Reads what a progressive scan says of the other coefficients; `skip` counts the blocks left of a run of empty ones.
pub(super) fn progressive_ac(
    bits: &mut Bits<'_>,
    table: &HuffmanTable,
    band: Band,
    skip: &mut u32,
    block: &mut Block,
) -> Result<(), Fault> {
    if band.is_refinement {
        return refine_ac(bits, table, band, skip, block);
    }
    if *skip > 0 {
        *skip -= 1;
        return Ok(());
    }
    let mut k = band.first;
    while k <= band.last {
        let symbol = bits.symbol(table)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            if run < 15 {
                *skip = (1 << run) - 1 + bits.take(run as u32) as u32;
                break;
            }
            k += 16;
            continue;
        }
        k += run;
        if k > 63 {
            return Err(damaged());
        }
        block[usize::from(ZIGZAG[k])] = (bits.signed(size) << band.low) as i16;
        k += 1;
    }
    Ok(())
}

/// Adds one bit to the coefficients of a band (T.81, G.1.2.3).
fn refine_ac(
    bits: &mut Bits<'_>,
    table: &HuffmanTable,
    band: Band,
    skip: &mut u32,
    block: &mut Block,
) -> Result<(), Fault> {
    let step = 1i16 << band.low;
    let refine = |bits: &mut Bits<'_>, value: &mut i16| {
        if bits.bit() && *value & step == 0 {
            *value += if *value > 0 { step } else { -step };
        }
    };
    let mut k = band.first;
    if *skip == 0 {
        while k <= band.last {
            let symbol = bits.symbol(table)?;
            let (mut run, size) = (u32::from(symbol >> 4), symbol & 15);
            let mut new = 0;
            match size {
                0 if run < 15 => {
                    *skip = (1 << run) + bits.take(run) as u32;
                    break;
                }
                0 => {}
                1 => new = if bits.bit() { step } else { -step },
                _ => return Err(damaged()),
            }
            // The new coefficient goes behind `run` zero ones; those that are set get their bit on the way.
            while k <= band.last {
                let value = &mut block[usize::from(ZIGZAG[k])];
                if *value != 0 {
                    refine(bits, value);
                } else if run == 0 {
                    *value = new;
                    k += 1;
                    break;
                } else {
                    run -= 1;
                }
                k += 1;
            }
        }
    }
    if *skip > 0 {
        *skip -= 1;
        for &place in &ZIGZAG[k..=band.last] {
            let value = &mut block[usize::from(place)];
            if *value != 0 {
                refine(bits, value);
            }
        }
    }
    Ok(())
}

/// A scan that names a table which was never given.
pub(super) fn no_table() -> Fault {
    Fault::Broken("a scan uses a table that is not there".into())
}
