//! Owns the walk over the members of a tar archive: ustar, GNU and pax headers, where each member's bytes lie, and the
//! refusal of archives that lie about it. It refuses to unpack anything, and to know records.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::error::DataError;
use crate::json_index::dataset_error;

/// Unit of a tar archive.
const BLOCK: u64 = 512;

/// Bytes read ahead: headers of small members lie close to each other.
const BUFFER: usize = 16 << 10;

/// Largest header of GNU or pax, whose content is a name and little else.
const MAX_EXTENSION: u64 = 1 << 20;

/// A regular file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// First byte of its first header.
    pub at: u64,
    /// Name as written, `/` between folders.
    pub name: String,
    /// First byte of its content.
    pub start: u64,
    /// Bytes of its content.
    pub len: u64,
}

impl Member {
    /// The key that it shares with the other members of its record, and its ending in small letters, as WebDataset parts
    /// them: at the first dot after the last `/`. `None` for names without one of both, as hidden files.
    pub fn key(&self) -> Option<(&str, String)> {
        let base = self.name.rfind('/').map_or(0, |at| at + 1);
        let dot = base + self.name[base..].find('.')?;
        (dot > base).then(|| (&self.name[..dot], self.name[dot + 1..].to_ascii_lowercase()))
    }
}

/// An archive that is walked through from one of its headers on.
pub(crate) struct Walk<'a> {
    path: &'a Path,
    file: BufReader<File>,
    /// Bytes of the archive.
    size: u64,
    /// Where the reader stands.
    position: u64,
    /// The next header.
    next: u64,
}

/// What headers before a member's own say of it.
#[derive(Default)]
struct Extension {
    name: Option<String>,
    size: Option<u64>,
}

impl<'a> Walk<'a> {
    /// Opens an archive at the header that begins at byte `from`.
    pub fn open(path: &'a Path, from: u64) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|error| DataError::io(path, error))?;
        let size = file.metadata().map_err(|error| DataError::io(path, error))?.len();
        Ok(Self { path, file: BufReader::with_capacity(BUFFER, file), size, position: 0, next: from })
    }

    /// Bytes of the archive.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The next regular file; `None` at the archive's end mark.
    ///
    /// # Errors
    /// The archive is cut or broken, or holds what no data set needs: links, devices, names that lead out of it.
    pub fn next(&mut self) -> Result<Option<Member>, DataError> {
        let mut first = self.next;
        let mut extension = Extension::default();
        let mut is_extended = false;
        loop {
            let at = self.next;
            if at == self.size {
                let what = format!("the archive ends at byte {at} without its end mark");
                return Err(self.truncated(what));
            }
            if self.size - at < BLOCK {
                return Err(self.truncated(format!("the archive ends inside a header, at byte {}", self.size)));
            }
            let block: [u8; BLOCK as usize] = self.bytes(at)?;
            if block.iter().all(|&byte| byte == 0) {
                return match is_extended {
                    false => Ok(None),
                    true => Err(self.bad(at, "an extended header is not followed by its member")),
                };
            }
            self.check_sum(at, &block)?;
            let kind = block[156];
            let is_extension = matches!(kind, b'L' | b'K' | b'x' | b'g');
            let name = match extension.name.take_if(|_| !is_extension) {
                Some(name) => name,
                None => self.name_of(at, &block)?,
            };
            let declared = self.number(at, &block[124..136])?;
            // Old archives tell folders by the slash alone.
            let kind = if matches!(kind, 0 | b'7') { b'0' } else { kind };
            let kind = if kind == b'0' && name.ends_with('/') { b'5' } else { kind };
            let len = match kind {
                b'0' => extension.size.take().unwrap_or(declared),
                b'5' => 0,
                b'L' | b'K' | b'x' | b'g' => declared,
                b'1' | b'2' => return Err(self.refused(at, &name, "a link", "store the file itself in its place")),
                b'S' => return Err(self.refused(at, &name, "a sparse file", "write the archive without `--sparse`")),
                b'3' | b'4' | b'6' => return Err(self.refused(at, &name, "a device or a pipe", "leave it out")),
                other => {
                    let what = format!("a member of the unknown type `{}`", char::from(other).escape_default());
                    return Err(self.refused(at, &name, &what, "write the archive as ustar, GNU or pax"));
                }
            };
            let start = at + BLOCK;
            if len > self.size - start {
                let end = self.size;
                let what =
                    format!("`{name}` at byte {at} has {len} bytes by its header, and the archive ends at {end}");
                return Err(self.truncated(what));
            }
            self.next = (start + len.next_multiple_of(BLOCK)).min(self.size);
            match kind {
                b'0' => {
                    self.check_name(at, &name)?;
                    return Ok(Some(Member { at: first, name, start, len }));
                }
                b'5' => {
                    (first, extension, is_extended) = (self.next, Extension::default(), false);
                    continue;
                }
                b'L' => {
                    let bytes = self.extension(at, start, len)?;
                    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
                    extension.name = Some(self.text(at, &bytes[..end])?);
                }
                b'x' | b'g' => {
                    let bytes = self.extension(at, start, len)?;
                    self.read_pax(at, &bytes, kind == b'g', &mut extension)?;
                }
                _ => {}
            }
            is_extended |= kind != b'g';
        }
    }

    /// The content of a member.
    ///
    /// # Errors
    /// It is above `most` bytes, or the archive changed.
    pub fn read(&mut self, member: &Member, most: u64) -> Result<Vec<u8>, DataError> {
        if member.len > most {
            let what = format!("`{}` has {} bytes, the limit for text is {most}", member.name, member.len);
            return Err(self.bad(member.at, &what));
        }
        let mut bytes = vec![0; member.len as usize];
        self.read_at(member.start, &mut bytes)?;
        Ok(bytes)
    }

    fn bytes<const N: usize>(&mut self, at: u64) -> Result<[u8; N], DataError> {
        let mut bytes = [0; N];
        self.read_at(at, &mut bytes)?;
        Ok(bytes)
    }

    fn read_at(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), DataError> {
        // A short way inside the buffer costs no system call.
        let way = at as i64 - self.position as i64;
        let read = self.file.seek_relative(way).and_then(|()| self.file.read_exact(bytes));
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                let what = "the archive changed while it was used";
                dataset_error(self.path, "changed", what, "keep dataset files unchanged")
            }
            _ => DataError::io(self.path, error),
        })?;
        self.position = at + bytes.len() as u64;
        Ok(())
    }

    /// The content of an extended header.
    fn extension(&mut self, at: u64, start: u64, len: u64) -> Result<Vec<u8>, DataError> {
        if len > MAX_EXTENSION {
            return Err(self.bad(at, &format!("an extended header of {len} bytes, the limit is {MAX_EXTENSION}")));
        }
        let mut bytes = vec![0; len as usize];
        self.read_at(start, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads the records `LENGTH KEY=VALUE\n` of a pax header. One for all members may not say what differs among them.
    fn read_pax(&self, at: u64, bytes: &[u8], is_global: bool, extension: &mut Extension) -> Result<(), DataError> {
        let broken = || self.bad(at, "a pax header that cannot be read");
        let mut rest = bytes;
        while rest.first().is_some_and(|&byte| byte != 0) {
            let space = rest.iter().take(20).position(|&byte| byte == b' ').ok_or_else(broken)?;
            let len = std::str::from_utf8(&rest[..space]).ok().and_then(|text| text.parse::<usize>().ok());
            let len = len.filter(|&len| len > space + 1 && len <= rest.len()).ok_or_else(broken)?;
            let record = rest[space + 1..len].strip_suffix(b"\n").ok_or_else(broken)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(broken)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            rest = &rest[len..];
            if key.starts_with(b"GNU.sparse.") {
                return Err(self.bad(at, "a sparse file, which is not supported"));
            }
            if is_global && matches!(key, b"path" | b"size") {
                return Err(self.bad(at, "a pax header that names all members alike"));
            }
            match key {
                b"path" => extension.name = Some(self.text(at, value)?),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    extension.size = Some(size.ok_or_else(broken)?);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Byte 148 to 155 hold the sum of all others, those eight counted as spaces; some writers summed signed bytes.
    fn check_sum(&self, at: u64, block: &[u8]) -> Result<(), DataError> {
        let is_sum = |index: &usize| (148..156).contains(index);
        let others = || block.iter().enumerate().filter(|(index, _)| !is_sum(index)).map(|(_, &byte)| byte);
        let sum: i64 = others().map(i64::from).sum::<i64>() + 8 * 32;
        let signed: i64 = others().map(|byte| i64::from(byte as i8)).sum::<i64>() + 8 * 32;
        let written = octal(&block[148..156]).and_then(|sum| i64::try_from(sum).ok());
        if written.is_some_and(|written| written == sum || written == signed) {
            return Ok(());
        }
        if at > 0 {
            return Err(self.bad(at, "a header whose checksum is wrong"));
        }
        let packed = [(&b"\x1f\x8b"[..], "gzip"), (&b"\x28\xb5\x2f\xfd"[..], "zstd"), (&b"BZh"[..], "bzip2")];
        let packed = packed.into_iter().find(|(magic, _)| block.starts_with(magic));
        Err(match packed {
            Some((_, by)) => {
                let what =
                    format!("the archive is compressed with {by}, so no record of it can be found by its number");
                dataset_error(self.path, "bad_tar", what, "unpack it to a `.tar`; media do not get smaller by it")
            }
            None => dataset_error(self.path, "bad_tar", "this is not a tar archive", "check the file"),
        })
    }

    /// The name in a member's own header; `ustar` has a field for what stands before it.
    fn name_of(&self, at: u64, block: &[u8]) -> Result<String, DataError> {
        let field = |range: std::ops::Range<usize>| {
            let bytes = &block[range];
            let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
            self.text(at, &bytes[..end])
        };
        let name = field(0..100)?;
        let prefix = if &block[257..263] == b"ustar\0" { field(345..500)? } else { String::new() };
        Ok(if prefix.is_empty() { name } else { format!("{prefix}/{name}") })
    }

    /// A size: octal digits, or with the first bit set the bytes of the number itself.
    fn number(&self, at: u64, field: &[u8]) -> Result<u64, DataError> {
        let number = if field[0] & 0x80 == 0 {
            octal(field)
        } else {
            let (head, tail) = field.split_at(field.len() - 8);
            // What does not fit into 63 bits, and negative numbers, are no sizes.
            let is_small = head[0] == 0x80 && head[1..].iter().all(|&byte| byte == 0) && tail[0] & 0x80 == 0;
            is_small.then(|| tail.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
        };
        number.ok_or_else(|| self.bad(at, "a header whose size is no number"))
    }

    fn text(&self, at: u64, bytes: &[u8]) -> Result<String, DataError> {
        let text = String::from_utf8(bytes.to_vec()).ok().filter(|text| !text.contains('\0'));
        text.ok_or_else(|| self.bad(at, "a name that is not UTF-8"))
    }

    /// Names are never used as paths of the system; one that leads out of the archive is still a sign of an attack.
    fn check_name(&self, at: u64, name: &str) -> Result<(), DataError> {
        if name.is_empty() {
            return Err(self.bad(at, "a member without a name"));
        }
        if name.starts_with('/') || name.split('/').any(|part| part == "..") {
            return Err(self.refused(at, name, "a name that leads out of the archive", "write the archive again"));
        }
        Ok(())
    }

    fn bad(&self, at: u64, what: &str) -> DataError {
        dataset_error(self.path, "bad_tar", format!("byte {at}: {what}"), "fetch the archive again, or write it again")
    }

    fn refused(&self, at: u64, name: &str, what: &str, hint: &str) -> DataError {
        dataset_error(self.path, "bad_tar", format!("byte {at}: `{name}` is {what}"), hint)
    }

    fn truncated(&self, what: String) -> DataError {
        dataset_error(self.path, "truncated", what, "the file is incomplete, fetch it again")
    }
}

/// Octal digits between spaces and zero bytes; nothing at all is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let is_blank = |byte: &u8| matches!(byte, 0 | b' ');
    let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(is_blank).unwrap_or(digits.len());
    if !digits[end..].iter().all(is_blank) {
        return None;
    }
    digits[..end].iter().try_fold(0u64, |sum, &byte| {
        matches!(byte, b'0'..=b'7').then(|| sum.checked_mul(8)?.checked_add(u64::from(byte - b'0'))).flatten()
    })
}
