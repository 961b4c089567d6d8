//! Owns the recognition of files by their first bytes, and the opening of files for reading.
//! It refuses to trust names: a playlist called `.mp4` is a text file.

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use crate::{MediaError, MediaFile, file_of};

/// What a file is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// MP4, QuickTime and their relatives.
    Mp4,
    /// Matroska and WebM.
    Matroska,
    /// AVI.
    Avi,
    /// MPEG transport stream.
    MpegTs,
    /// Ogg.
    Ogg,
    /// GIF, a video or a picture.
    Gif,
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// WebP.
    Webp,
    /// Windows bitmap.
    Bmp,
}

impl Kind {
    /// libav's demuxer for a video container.
    pub fn demuxer(self) -> Option<&'static str> {
        Some(match self {
            Self::Mp4 => "mov",
            Self::Matroska => "matroska",
            Self::Avi => "avi",
            Self::MpegTs => "mpegts",
            Self::Ogg => "ogg",
            Self::Gif => "gif",
            Self::Jpeg | Self::Png | Self::Webp | Self::Bmp => return None,
        })
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mp4 => "mp4",
            Self::Matroska => "matroska",
            Self::Avi => "avi",
            Self::MpegTs => "mpegts",
            Self::Ogg => "ogg",
            Self::Gif => "gif",
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::Webp => "webp",
            Self::Bmp => "bmp",
        }
    }

    /// Whether it can be read as a still picture.
    pub fn is_image(self) -> bool {
        matches!(self, Self::Gif | Self::Jpeg | Self::Png | Self::Webp | Self::Bmp)
    }
}

/// Bytes looked at: enough for three packets of a transport stream.
const HEAD: usize = 192 * 3;

/// What the first bytes say; `None` if this crate does not open such files.
pub(crate) fn kind_of(head: &[u8]) -> Option<Kind> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    if at(0, b"GIF87a") || at(0, b"GIF89a") {
        return Some(Kind::Gif);
    }
    if at(0, b"\xff\xd8\xff") {
        return Some(Kind::Jpeg);
    }
    if at(0, b"\x89PNG\r\n\x1a\n") {
        return Some(Kind::Png);
    }
    if at(0, b"RIFF") && at(8, b"WEBP") {
        return Some(Kind::Webp);
    }
    if at(0, b"RIFF") && at(8, b"AVI ") {
        return Some(Kind::Avi);
    }
    if at(0, b"\x1a\x45\xdf\xa3") {
        return Some(Kind::Matroska);
    }
    if at(0, b"OggS") {
        return Some(Kind::Ogg);
    }
    if picture_brand(head).is_some() {
        return None;
    }
    const BOXES: [&[u8]; 7] = [b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"];
    if BOXES.iter().any(|name| at(4, name)) {
        return Some(Kind::Mp4);
    }
    // A transport stream has its sync byte every 188 bytes (every 192 with time codes in front).
    let has_sync = |first: usize, step: usize| (0..3).all(|n| head.get(first + n * step) == Some(&0x47));
    if has_sync(0, 188) || has_sync(4, 192) {
        return Some(Kind::MpegTs);
    }
    if at(0, b"BM") && head.len() >= 18 && matches!(head[14], 12 | 40 | 52 | 56 | 64 | 108 | 124) && head[15] == 0 {
        return Some(Kind::Bmp);
    }
    None
}

/// The name and libav's demuxer of a file of sound alone; `None` if this crate opens no such file.
pub(crate) fn sound_of(head: &[u8]) -> Option<(&'static str, &'static str)> {
    if head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WAVE") {
        return Some(("wav", "wav"));
    }
    if head.starts_with(b"fLaC") {
        return Some(("flac", "flac"));
    }
    if head.starts_with(b"ID3") {
        return Some(("mp3", "mp3"));
    }
    let &[first, second, third, ..] = head else { return None };
    if first != 0xff || second & 0xe0 != 0xe0 {
        return None;
    }
    // Eleven set bits, the version, the layer: 0 is AAC's (which has twelve set bits), 1 is MP3's.
    match second >> 1 & 3 {
        0 if second & 0x10 != 0 && third >> 2 & 15 < 13 => Some(("aac", "aac")),
        1 if second >> 3 & 3 != 1 && third >> 4 != 15 && third >> 2 & 3 != 3 => Some(("mp3", "mp3")),
        _ => None,
    }
}

/// The name of a picture format that hides in an MP4 container.
fn picture_brand(head: &[u8]) -> Option<&'static str> {
    if head.get(4..8) != Some(b"ftyp") {
        return None;
    }
    match head.get(8..12)? {
        b"avif" | b"avis" => Some("an AVIF picture"),
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => Some("a HEIF picture"),
        _ => None,
    }
}

/// A file or a part of one opened for reading, with its kind.
pub(crate) struct OpenFile {
    /// The handle, at its start.
    pub file: MediaFile,
    /// Bytes in it.
    pub size: u64,
    /// What it is, if known.
    pub kind: Option<Kind>,
    /// Its first bytes.
    pub head: Vec<u8>,
}

/// Opens a regular, non-empty file and looks at its first bytes.
pub(crate) fn open(path: &Path) -> Result<OpenFile, MediaError> {
    let io = |error| MediaError::io(path, error);
    // The kind of file is asked before opening, because opening a named pipe would wait for a writer.
    if !std::fs::metadata(file_of(path)).map_err(io)?.is_file() {
        return Err(MediaError::NotAFile { path: path.to_path_buf() });
    }
    let mut file = MediaFile::open(path).map_err(|error| match error.kind() {
        // Whoever named the part found it whole.
        std::io::ErrorKind::UnexpectedEof => MediaError::Changed { path: path.to_path_buf() },
        _ => io(error),
    })?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(MediaError::NotAFile { path: path.to_path_buf() });
    }
    if file.size() == 0 {
        return Err(MediaError::EmptyFile { path: path.to_path_buf() });
    }
    let mut head = Vec::with_capacity(HEAD);
    Read::by_ref(&mut file).take(HEAD as u64).read_to_end(&mut head).map_err(io)?;
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    Ok(OpenFile { size: file.size(), file, kind: kind_of(&head), head })
}

/// In words, what a file that is not opened looks like.
pub(crate) fn describe(head: &[u8]) -> String {
    let starts = |magic: &[u8]| head.starts_with(magic);
    if let Some(name) = picture_brand(head) {
        return name.into();
    }
    if starts(b"#EXTM3U") {
        return "an HLS playlist".into();
    }
    if starts(b"ffconcat") {
        return "an ffconcat script".into();
    }
    if starts(b"<?xml") || starts(b"<MPD") {
        return "an XML file".into();
    }
    if starts(b"<!DOCTYPE") || starts(b"<html") || starts(b"<!doctype") {
        return "an HTML page".into();
    }
    if sound_of(head).is_some() {
        return "an audio file".into();
    }
    if starts(b"PK\x03\x04") {
        return "a zip archive".into();
    }
    // The head may end inside a character.
    let is_text = match std::str::from_utf8(head) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    if is_text && !head.contains(&0) {
        return "a text file".into();
    }
    "a file of unknown format".into()
}

/// Whether the file is in a video container that this crate opens (GIF included). A file that cannot be read is not.
pub fn is_video(path: &Path) -> bool {
    open(path).is_ok_and(|file| file.kind.is_some_and(|kind| kind.demuxer().is_some()))
}

/// Whether the file is a still picture that this crate opens (GIF included). A file that cannot be read is not.
pub fn is_image(path: &Path) -> bool {
    open(path).is_ok_and(|file| file.kind.is_some_and(Kind::is_image))
}

/// Whether the file is a picture format that holds more than one frame: an animated GIF, PNG or WebP. A file that cannot
/// be read is not.
pub fn is_animated(path: &Path) -> bool {
    let Ok(file) = open(path) else { return false };
    let kind = file.kind;
    let mut reader = BufReader::new(file.file);
    let found = match kind {
        Some(Kind::Gif) => has_two_gif_frames(&mut reader),
        Some(Kind::Png) => has_png_animation(&mut reader),
        // RIFF header, then a `VP8X` chunk whose flags say it.
        Some(Kind::Webp) => {
            Some(file.head.get(12..16) == Some(b"VP8X") && file.head.get(20).is_some_and(|f| f & 2 != 0))
        }
        _ => None,
    };
    found.unwrap_or(false)
}

/// Walks the blocks of a GIF to its second picture. `None` if it ends before.
fn has_two_gif_frames(reader: &mut (impl Read + Seek)) -> Option<bool> {
    fn byte(reader: &mut impl Read) -> Option<u8> {
        let mut byte = [0];
        reader.read_exact(&mut byte).ok()?;
        Some(byte[0])
    }
    fn palette_bytes(flags: u8) -> i64 {
        if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
    }
    reader.seek_relative(10).ok()?;
    let flags = byte(reader)?;
    reader.seek_relative(2 + palette_bytes(flags)).ok()?;
    let mut num_pictures = 0;
    loop {
        match byte(reader)? {
            0x21 => reader.seek_relative(1).ok()?,
            0x2c => {
                num_pictures += 1;
                if num_pictures == 2 {
                    return Some(true);
                }
                reader.seek_relative(8).ok()?;
                let flags = byte(reader)?;
                reader.seek_relative(palette_bytes(flags) + 1).ok()?;
            }
            _ => return Some(false),
        }
        // Sub-blocks of the extension or the picture.
        loop {
            match byte(reader)? {
                0 => break,
                length => reader.seek_relative(length.into()).ok()?,
            }
        }
    }
}

/// Looks for an animation control chunk of more than one frame before a PNG's picture data.
fn has_png_animation(reader: &mut (impl Read + Seek)) -> Option<bool> {
    reader.seek_relative(8).ok()?;
    loop {
        let mut head = [0; 12];
        reader.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes(*head.first_chunk()?);
        match &head[4..8] {
            b"acTL" => return Some(u32::from_be_bytes(*head[8..].first_chunk()?) > 1),
            b"IDAT" | b"IEND" => return Some(false),
            // Four bytes of the data are read already, four of the checksum follow it.
            _ => reader.seek_relative(i64::from(length)).ok()?,
        }
    }
}
