//! Owns [`MediaError`], the one error type of this crate, with a short machine word for each cause.
//! It refuses to decide what a caller does about a bad file: stop or skip is the caller's policy.

use std::path::{Path, PathBuf};

use crate::shown;

/// Why a media file (or a request about one) was refused.
///
/// `Display` gives one line, lower case, with the path and a hint after `; hint:`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// Nothing exists at the path.
    #[error("`{path}`: no such file; hint: check the path and the media folder", path = shown(path))]
    MissingFile {
        /// The path as it was asked for.
        path: PathBuf,
    },
    /// The path is a folder, a socket or another thing that is not a regular file.
    #[error("`{path}`: not a regular file; hint: a folder of frames must be given as frames", path = shown(path))]
    NotAFile {
        /// The path as it was asked for.
        path: PathBuf,
    },
    /// The file has no bytes.
    #[error("`{path}`: the file is empty; hint: download or copy it again", path = shown(path))]
    EmptyFile {
        /// The path as it was asked for.
        path: PathBuf,
    },
    /// The first bytes are not those of a container or image format that this crate opens.
    #[error(
        "`{path}`: {found} is not an allowed {wanted}; hint: convert it to {suggestion}, or remove the record",
        path = shown(path)
    )]
    NotAllowedContainer {
        /// The path as it was asked for.
        path: PathBuf,
        /// What the first bytes look like.
        found: String,
        /// `video container` or `image format`.
        wanted: &'static str,
        /// A format that would be accepted.
        suggestion: &'static str,
    },
    /// The container or image data contradicts itself, or lacks a part without which nothing can be read.
    #[error("`{path}`: broken {format} file: {detail}; hint: the file is damaged or incomplete, get it again", path = shown(path))]
    Broken {
        /// The path as it was asked for.
        path: PathBuf,
        /// Container or image format.
        format: String,
        /// What was found.
        detail: String,
    },
    /// The file ends before the data that was asked for.
    #[error("`{path}`: truncated: {detail}; hint: the file is incomplete, get it again", path = shown(path))]
    Truncated {
        /// The path as it was asked for.
        path: PathBuf,
        /// What is missing.
        detail: String,
    },
    /// The container holds no video stream (attached pictures do not count).
    #[error("`{path}`: no video track; hint: remove the record, or use it as audio", path = shown(path))]
    NoVideoTrack {
        /// The path as it was asked for.
        path: PathBuf,
    },
    /// The container holds no sound.
    #[error("`{path}`: no audio track; hint: remove the record, or name a file with sound", path = path.display())]
    NoAudioTrack {
        /// The path as it was asked for.
        path: PathBuf,
    },
    /// There is a stream of sound, and it cannot be read to its end, or holds nothing.
    #[error("`{path}`: the sound cannot be decoded: {detail}; hint: the file is damaged, get it again", path = path.display())]
    UndecodableAudio {
        /// The path as it was asked for.
        path: PathBuf,
        /// What the decoder said, and where.
        detail: String,
    },
    /// There is a video stream, and not one frame of it can be read.
    #[error("`{path}`: no frames: {detail}; hint: remove the record", path = shown(path))]
    NoFrames {
        /// The path as it was asked for.
        path: PathBuf,
        /// What was found instead.
        detail: String,
    },
    /// No decoder for the codec, or one that this crate does not allow.
    #[error("`{path}`: codec `{codec}` is not supported; hint: convert the file to h264, hevc, vp9 or av1", path = shown(path))]
    UnsupportedCodec {
        /// The path as it was asked for.
        path: PathBuf,
        /// The codec's name.
        codec: String,
    },
    /// A limit of [`crate::Limits`] would be passed.
    #[error("`{path}`: too large: {what} is {found}, the limit is {limit}; hint: {hint}", path = shown(path), hint = limit_hint(what))]
    TooLarge {
        /// The path as it was asked for.
        path: PathBuf,
        /// The limit's field name.
        what: &'static str,
        /// The value in the file.
        found: String,
        /// The limit's value.
        limit: String,
    },
    /// The work on this file took longer than [`crate::Limits::deadline`].
    #[error("`{path}`: not read within the deadline of {seconds} s; hint: the file may be hostile or the disk slow: remove the record, or raise `data.limits.deadline_s` in the plan", path = shown(path))]
    Deadline {
        /// The path as it was asked for.
        path: PathBuf,
        /// The deadline in seconds.
        seconds: f64,
    },
    /// The decoder gave no picture for a frame that the container lists.
    #[error("`{path}`: frame {index} at {seconds:.3} s cannot be decoded: {detail}; hint: the file is damaged, get it again", path = shown(path))]
    Undecodable {
        /// The path as it was asked for.
        path: PathBuf,
        /// Frame number in presentation order.
        index: usize,
        /// Its presentation time.
        seconds: f64,
        /// What the decoder said.
        detail: String,
    },
    /// A frame number past the end.
    #[error("`{path}`: frame {index} does not exist: the file has {num_frames} frames", path = shown(path))]
    FrameOutOfRange {
        /// The path as it was asked for.
        path: PathBuf,
        /// The frame number asked for.
        index: usize,
        /// Frames in the file.
        num_frames: usize,
    },
    /// The file changed between indexing and decoding.
    #[error("`{path}`: the file changed while it was being used; hint: keep media files unchanged during a run", path = shown(path))]
    Changed {
        /// The path as it was asked for.
        path: PathBuf,
    },
    /// This machine has no libav that suits the program, so no video can be read or written: a fault of no file.
    #[error("libav cannot be used: {detail}; hint: {hint}")]
    NoLibav {
        /// What was looked for and what was found instead.
        detail: String,
        /// How to install it.
        hint: String,
    },
    /// A request that no file could satisfy (frame rule, size, count).
    #[error("bad request: {detail}")]
    BadRequest {
        /// What was asked and what is allowed.
        detail: String,
    },
    /// Writing a video or an image failed.
    #[error("`{path}`: cannot write: {detail}", path = shown(path))]
    Encode {
        /// The path being written.
        path: PathBuf,
        /// What the encoder or muxer said.
        detail: String,
    },
    /// The operating system refused.
    #[error("`{path}`: {source}", path = shown(path))]
    Io {
        /// The path as it was asked for.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

/// What to do about a limit: some can be raised in a plan, the others hold for everyone.
fn limit_hint(what: &str) -> String {
    match what {
        "max_pixels" | "max_frames" | "max_duration_s" => {
            format!("remove the record, or raise `data.limits.{what}` in the plan")
        }
        _ => "make the file smaller or shorter, or remove the record".to_owned(),
    }
}

impl MediaError {
    /// A short word for counting and for ledgers; stable across releases.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::MissingFile { .. } => "missing_file",
            Self::NotAFile { .. } => "not_a_file",
            Self::EmptyFile { .. } => "empty_file",
            Self::NotAllowedContainer { .. } => "not_allowed_container",
            Self::Broken { .. } => "broken",
            Self::Truncated { .. } => "truncated",
            Self::NoVideoTrack { .. } => "no_video_track",
            Self::NoAudioTrack { .. } => "no_audio_track",
            Self::UndecodableAudio { .. } => "undecodable_audio",
            Self::NoFrames { .. } => "no_frames",
            Self::UnsupportedCodec { .. } => "unsupported_codec",
            Self::TooLarge { .. } => "too_large",
            Self::Deadline { .. } => "deadline",
            Self::Undecodable { .. } => "undecodable",
            Self::FrameOutOfRange { .. } => "frame_out_of_range",
            Self::Changed { .. } => "changed",
            Self::NoLibav { .. } => "no_libav",
            Self::BadRequest { .. } => "bad_request",
            Self::Encode { .. } => "encode",
            Self::Io { .. } => "io",
        }
    }

    /// The file the error is about, where it is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::MissingFile { path }
            | Self::NotAFile { path }
            | Self::EmptyFile { path }
            | Self::NotAllowedContainer { path, .. }
            | Self::Broken { path, .. }
            | Self::Truncated { path, .. }
            | Self::NoVideoTrack { path }
            | Self::NoAudioTrack { path }
            | Self::UndecodableAudio { path, .. }
            | Self::NoFrames { path, .. }
            | Self::UnsupportedCodec { path, .. }
            | Self::TooLarge { path, .. }
            | Self::Deadline { path, .. }
            | Self::Undecodable { path, .. }
            | Self::FrameOutOfRange { path, .. }
            | Self::Changed { path }
            | Self::Encode { path, .. }
            | Self::Io { path, .. } => Some(path),
            Self::NoLibav { .. } | Self::BadRequest { .. } => None,
        }
    }

    /// An [`MediaError::Io`], with "not found" told apart.
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            std::io::ErrorKind::NotFound => Self::MissingFile { path },
            _ => Self::Io { path, source },
        }
    }
}
