//! The directory of a zip archive whose entries are stored as they are, which is how `torch.save` writes one. Owns where each
//! entry's bytes lie; refuses compression, encryption, and entries that overlap or leave the file.
//!
//! Source: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3 (zip64).

use std::collections::HashSet;
use std::ops::Range;

use crate::error::PickleFault;

/// Longest end record with its comment.
const MAX_END: usize = 22 + 65_535;

/// Where an entry's bytes lie in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ZipEntry {
    pub(super) name: String,
    pub(super) data: Range<usize>,
}

fn broken(message: impl Into<String>) -> PickleFault {
    PickleFault::Archive { message: message.into() }
}

/// Little-endian numbers at checked places.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn slice(&self, at: usize, len: usize) -> Result<&'a [u8], PickleFault> {
        let end = at.checked_add(len).filter(|end| *end <= self.0.len());
        end.map(|end| &self.0[at..end])
            .ok_or_else(|| broken(format!("it ends before byte {at} + {len} of its directory")))
    }

    fn number(&self, at: usize, len: usize) -> Result<u64, PickleFault> {
        Ok(self.slice(at, len)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn place(&self, at: usize, len: usize) -> Result<usize, PickleFault> {
        usize::try_from(self.number(at, len)?).map_err(|_| broken("a place in it is beyond the address space"))
    }
}

/// The entries of an archive, in the order of its directory.
pub(super) fn entries(file: &[u8]) -> Result<Vec<ZipEntry>, PickleFault> {
    let bytes = Bytes(file);
    let (start, size, count) = directory(bytes)?;
    let end = start.checked_add(size).filter(|end| *end <= file.len());
    let Some(end) = end else { return Err(broken("its directory is not inside of the file")) };
    if count > size / 46 {
        return Err(broken(format!("its directory of {size} bytes cannot hold {count} entries")));
    }
    let mut found = Vec::with_capacity(count);
    let (mut spans, mut names) = (Vec::with_capacity(count), HashSet::with_capacity(count));
    let mut at = start;
    for _ in 0..count {
        let (entry, local, next) = entry(bytes, at, start)?;
        if next > end {
            return Err(broken("an entry of its directory is cut"));
        }
        at = next;
        if !names.insert(entry.name.clone()) {
            return Err(broken(format!("entry `{}` appears twice", entry.name)));
        }
        spans.push((local, entry.data.end));
        found.push(entry);
    }
    spans.sort_unstable();
    if spans.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err(broken("two of its entries overlap"));
    }
    Ok(found)
}

/// Start, size and number of entries of the central directory.
fn directory(bytes: Bytes<'_>) -> Result<(usize, usize, usize), PickleFault> {
    let file = bytes.0;
    let lowest = file.len().saturating_sub(MAX_END);
    let is_end = |&at: &usize| {
        file[at..].starts_with(b"PK\x05\x06")
            && bytes.number(at + 20, 2).is_ok_and(|comment| at + 22 + comment as usize == file.len())
    };
    let Some(end) = (lowest..file.len().saturating_sub(21)).rev().find(is_end) else {
        return Err(broken("it has no end record: the copy is incomplete"));
    };
    if let Some(locator) = end.checked_sub(20)
        && file[locator..].starts_with(b"PK\x06\x07")
    {
        let wide = bytes.place(locator + 8, 8)?;
        if bytes.slice(wide, 56)?.starts_with(b"PK\x06\x06") {
            return Ok((bytes.place(wide + 48, 8)?, bytes.place(wide + 40, 8)?, bytes.place(wide + 32, 8)?));
        }
        return Err(broken("its zip64 record is not where its locator says"));
    }
    Ok((bytes.place(end + 16, 4)?, bytes.place(end + 12, 4)?, bytes.place(end + 10, 2)?))
}

/// The entry at a place of the directory, where its local header starts, and the place of the next one.
fn entry(bytes: Bytes<'_>, at: usize, directory: usize) -> Result<(ZipEntry, usize, usize), PickleFault> {
    if !bytes.slice(at, 46)?.starts_with(b"PK\x01\x02") {
        return Err(broken(format!("its directory holds no entry at byte {at}")));
    }
    let [name_len, extra_len, comment_len] = [28, 30, 32].map(|field| bytes.number(at + field, 2).map(|n| n as usize));
    let (name_len, extra_len, comment_len) = (name_len?, extra_len?, comment_len?);
    let raw_name = bytes.slice(at + 46, name_len)?;
    let name = std::str::from_utf8(raw_name).map_err(|_| broken("the name of an entry is not UTF-8"))?.to_owned();
    let extra = Bytes(bytes.slice(at + 46 + name_len, extra_len)?);
    let (flags, method) = (bytes.number(at + 8, 2)?, bytes.number(at + 10, 2)?);
    if flags & 1 != 0 || method != 0 {
        return Err(broken(format!("entry `{name}` is compressed or encrypted, torch stores entries as they are")));
    }
    let mut sizes = [bytes.number(at + 24, 4)?, bytes.number(at + 20, 4)?, bytes.number(at + 42, 4)?];
    widen(extra, &mut sizes)?;
    let [size, packed, local] = sizes.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    if size != packed {
        return Err(broken(format!("entry `{name}` is stored and has two sizes, {packed} and {size}")));
    }
    let header = bytes.slice(local, 30)?;
    let local_name = bytes.place(local + 26, 2)?;
    if !header.starts_with(b"PK\x03\x04") || bytes.slice(local + 30, local_name)? != raw_name {
        return Err(broken(format!("entry `{name}` has no header at byte {local}")));
    }
    let data = local + 30 + local_name + bytes.place(local + 28, 2)?;
    let end = data.checked_add(size).filter(|end| *end <= directory);
    let Some(end) = end else { return Err(broken(format!("entry `{name}` of {size} bytes leaves the file"))) };
    Ok((ZipEntry { name, data: data..end }, local, at + 46 + name_len + extra_len + comment_len))
}

/// Replaces numbers that do not fit 32 bits by those of the zip64 field.
fn widen(extra: Bytes<'_>, sizes: &mut [u64; 3]) -> Result<(), PickleFault> {
    let mut at = 0;
    while at + 4 <= extra.0.len() {
        let (id, len) = (extra.number(at, 2)?, extra.place(at + 2, 2)?);
        let field = Bytes(extra.slice(at + 4, len)?);
        if id == 1 {
            let mut place = 0;
            for size in sizes.iter_mut().filter(|size| **size == u64::from(u32::MAX)) {
                *size = field.number(place, 8)?;
                place += 8;
            }
        }
        at += 4 + len;
    }
    Ok(())
}
