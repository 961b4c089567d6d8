//! Owns [`FilePart`], a file that lies inside of another one as a member of an archive does, and [`MediaFile`], which
//! reads whole files and parts alike. It refuses to know archives: whoever names a part found where it lies.

use std::borrow::Cow;
use std::cell::Cell;
use std::ffi::OsString;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A range of bytes of a file that is a file of its own.
///
/// Everything in this crate that takes a path takes that of a part as well ([`FilePart::to_path`]): archive, range and
/// name with zero bytes between them, which no file of the system can have in its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePart {
    /// The file that holds it.
    pub archive: PathBuf,
    /// Its first byte in the archive.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Its name in the archive, for messages.
    pub name: String,
}

impl FilePart {
    /// The path by which this crate opens the part.
    pub fn to_path(&self) -> PathBuf {
        let mut bytes = self.archive.as_os_str().as_bytes().to_vec();
        bytes.extend_from_slice(format!("\0{}+{}\0{}", self.start, self.len, self.name).as_bytes());
        PathBuf::from(OsString::from_vec(bytes))
    }

    /// The part that a path means; `None` for a file of the system.
    pub fn of_path(path: &Path) -> Option<Self> {
        let mut pieces = path.as_os_str().as_bytes().splitn(3, |&byte| byte == 0);
        let (archive, range, name) = (pieces.next()?, pieces.next()?, pieces.next()?);
        let (start, len) = std::str::from_utf8(range).ok()?.split_once('+')?;
        Some(Self {
            archive: PathBuf::from(OsString::from_vec(archive.to_vec())),
            start: start.parse().ok()?,
            len: len.parse().ok()?,
            name: String::from_utf8_lossy(name).into_owned(),
        })
    }
}

/// The file of the system behind a path: the archive of a part.
pub fn file_of(path: &Path) -> Cow<'_, Path> {
    FilePart::of_path(path).map_or(Cow::Borrowed(path), |part| Cow::Owned(part.archive))
}

/// A path for messages: `shard.tar!00012.mp4` for a part.
pub fn shown(path: &Path) -> impl fmt::Display + '_ {
    Shown(path)
}

struct Shown<'a>(&'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match FilePart::of_path(self.0) {
            Some(part) => write!(f, "{}!{}", part.archive.display(), part.name),
            None => self.0.display().fmt(f),
        }
    }
}

/// A whole file or a part of one, opened for reading. Nothing outside of the part can be read.
#[derive(Debug)]
pub struct MediaFile {
    file: File,
    start: u64,
    len: u64,
    at: Cell<u64>,
}

impl MediaFile {
    /// Opens the file, or the part of one, behind a path.
    ///
    /// # Errors
    /// Those of the system; `UnexpectedEof` where the archive ends before the part does.
    pub fn open(path: &Path) -> io::Result<Self> {
        let part = FilePart::of_path(path);
        let file = File::open(part.as_ref().map_or(path, |part| &part.archive))?;
        let size = file.metadata()?.len();
        let (start, len) = part.map_or((0, size), |part| (part.start, part.len));
        if start.checked_add(len).is_none_or(|end| end > size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self { file, start, len, at: Cell::new(0) })
    }

    /// Bytes of the file or part.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// What the system knows of the file, or of the archive that the part lies in.
    ///
    /// # Errors
    /// Those of the system.
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }
}

impl Read for &MediaFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.len.saturating_sub(self.at.get());
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.start + self.at.get())?;
        self.at.set(self.at.get() + count as u64);
        Ok(count)
    }
}

impl Seek for &MediaFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.get().checked_add_signed(by),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
        };
        // Far behind the end there is nothing to read, and the sum with `start` must not wrap.
        let target = target.filter(|&at| at <= i64::MAX as u64).ok_or(io::ErrorKind::InvalidInput)?;
        self.at.set(target);
        Ok(target)
    }
}

impl Read for MediaFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Seek for MediaFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        (&*self).seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_reads_its_own_bytes_alone() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("a.tar");
        std::fs::write(&archive, b"0123456789").unwrap();
        let part = FilePart { archive: archive.clone(), start: 2, len: 4, name: "x/y.mp4".into() };
        let path = part.to_path();
        assert_eq!(FilePart::of_path(&path), Some(part.clone()));
        assert_eq!(shown(&path).to_string(), format!("{}!x/y.mp4", archive.display()));
        assert_eq!((file_of(&path).as_ref(), file_of(&archive).as_ref()), (archive.as_path(), archive.as_path()));
        assert_eq!(path.extension().and_then(|ending| ending.to_str()), Some("mp4"));
        let mut file = MediaFile::open(&path).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), file.size()), ("2345", 4));
        let mut tail = String::new();
        assert_eq!(file.seek(SeekFrom::End(-1)).unwrap(), 3);
        file.read_to_string(&mut tail).unwrap();
        assert_eq!(tail, "5");
        assert_eq!((file.seek(SeekFrom::Start(90)).unwrap(), file.read(&mut [0; 4]).unwrap()), (90, 0));
        assert!(file.seek(SeekFrom::Current(-91)).is_err() && file.seek(SeekFrom::Start(u64::MAX)).is_err());
        // The system itself never opens such a path.
        assert!(File::open(&path).is_err());
        let beyond = FilePart { len: 9, ..part };
        assert_eq!(MediaFile::open(&beyond.to_path()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
