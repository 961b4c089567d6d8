//! Owns the index of a video: one scan of its packets gives every frame's presentation time and the places where
//! decoding can start. It refuses to decode, and to believe what a container claims about its frames.

use std::path::{Path, PathBuf};

use crate::av::{AvError, Input, Library, Packet, StreamInfo};
use crate::limits::Clock;
use crate::sniff::{self, Kind};
use crate::timeline::{KeyFrame, Scanned, Timeline};
use crate::turn::Turn;
use crate::{Limits, MediaError, container};

/// Codecs whose decoders may meet strangers' files; the many others of libav are seldom used and seldom tested.
const CODECS: [&str; 23] = [
    "av1",
    "dnxhd",
    "dvvideo",
    "ffv1",
    "flv1",
    "gif",
    "h263",
    "h264",
    "hevc",
    "huffyuv",
    "mjpeg",
    "mpeg1video",
    "mpeg2video",
    "mpeg4",
    "msmpeg4v2",
    "msmpeg4v3",
    "png",
    "prores",
    "rawvideo",
    "theora",
    "vp8",
    "vp9",
    "wmv3",
];

/// Something about a file that a user should know, although the file can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// A short word for counting: `truncated`, `leading_frames`, `read_error`, `no_times`, `joined`.
    pub reason: &'static str,
    /// One line, lower case.
    pub message: String,
}

/// What is known of a video before decoding.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoIndex {
    /// The file.
    pub path: PathBuf,
    /// Width in pixels as shown (rotation applied).
    pub width: u32,
    /// Height in pixels as shown (rotation applied).
    pub height: u32,
    /// Codec name, as libav spells it: `h264`, `hevc`, `vp9`, `av1`, `gif`, ...
    pub codec: String,
    /// Container: `mp4`, `matroska`, `avi`, `gif`, `mpegts`, `ogg`.
    pub container: String,
    /// Average frames a second: the container's own rate where its frames agree with it, else frames over duration.
    pub fps: f64,
    /// Seconds from the first frame's start to the last frame's end.
    pub duration: f64,
    /// Presentation time of every frame in seconds, ascending, on the container's clock; a transport stream's clock
    /// begins anywhere, so there the first frame is 0.
    pub seconds: Vec<f64>,
    /// Clockwise turn that the display matrix asks for, in degrees: 0, 90, 180 or 270.
    pub rotation: u32,
    /// What a user should know.
    pub warnings: Vec<Warning>,
    pub(crate) plan: Plan,
}

impl VideoIndex {
    /// Frames that are presented.
    pub fn num_frames(&self) -> usize {
        self.seconds.len()
    }
}

/// What decoding needs to know of the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    pub kind: Kind,
    pub stream: usize,
    /// Presentation time of every frame in ticks, ascending; empty if the container has no presentation times, in
    /// which case the n-th picture that comes out is frame n.
    pub ticks: Vec<i64>,
    /// Places where decoding can start, ascending by presentation time.
    pub keys: Vec<KeyFrame>,
    pub turn: Turn,
    pub file_size: u64,
}

/// An opened container with its video stream chosen.
pub(crate) struct Opened {
    pub input: Input,
    pub kind: Kind,
    pub size: u64,
    pub stream: StreamInfo,
    /// How the end of the file is missing, if something shows it.
    pub missing_end: Option<String>,
}

/// Reads the packets of a video once. Nothing is decoded.
///
/// # Errors
/// Every cause of [`MediaError`] that concerns reading; a file cut short is no error as long as frames are left (see
/// [`VideoIndex::warnings`]).
pub fn index_video(path: &Path, limits: &Limits) -> Result<VideoIndex, MediaError> {
    let clock = Clock::start(limits);
    let mut opened = open_video(path, limits, clock)?;
    let mut warnings = Vec::new();
    let scanned = scan(path, &mut opened, limits, clock, &mut warnings)?;
    let Opened { kind, size, stream, missing_end, .. } = opened;

    if let Some(end) = missing_end {
        let num_listed = usize::try_from(stream.num_frames).unwrap_or(0);
        let message = if num_listed > scanned.len() {
            format!("the container lists {num_listed} frames, the file holds {}", scanned.len())
        } else {
            end
        };
        warnings.push(Warning { reason: "truncated", message });
    }

    let (width, height) = (stream.width.max(0) as u32, stream.height.max(0) as u32);
    let turn = stream.display_matrix.map_or(Turn::default(), |matrix| Turn::from_matrix(&matrix));
    let (width, height) = if turn.swaps_sides() { (height, width) } else { (width, height) };

    let Some(timeline) = Timeline::build(&scanned, &stream, kind, &mut warnings) else {
        return Err(MediaError::Broken {
            path: path.to_path_buf(),
            format: kind.name().into(),
            detail: "packets have neither times nor durations, and the stream states no rate".into(),
        });
    };
    if timeline.seconds.is_empty() {
        return Err(MediaError::NoFrames {
            path: path.to_path_buf(),
            detail: format!("{} video packets were found and none gives a picture", scanned.len()),
        });
    }
    if timeline.seconds.len() > limits.max_frames {
        return Err(too_large(path, "max_frames", timeline.seconds.len(), limits.max_frames));
    }
    if timeline.duration > limits.max_duration_s {
        return Err(too_large(path, "max_duration_s", timeline.duration, limits.max_duration_s));
    }
    Ok(VideoIndex {
        path: path.to_path_buf(),
        width,
        height,
        codec: stream.codec,
        container: kind.name().to_string(),
        fps: timeline.fps,
        duration: timeline.duration,
        seconds: timeline.seconds,
        rotation: turn.degrees,
        warnings,
        plan: Plan { kind, stream: stream.index, ticks: timeline.ticks, keys: timeline.keys, turn, file_size: size },
    })
}

/// Opens a container of an allowed kind and chooses its video stream: the first that is marked default, else the
/// first. Attached pictures do not count.
pub(crate) fn open_video(path: &Path, limits: &Limits, clock: Clock) -> Result<Opened, MediaError> {
    let file = sniff::open(path)?;
    let Some((kind, demuxer)) = file.kind.and_then(|kind| Some((kind, kind.demuxer()?))) else {
        let found = file.kind.map_or_else(|| sniff::describe(&file.head), |kind| format!("a {} picture", kind.name()));
        return Err(MediaError::NotAllowedContainer {
            path: path.to_path_buf(),
            found,
            wanted: "video container",
            suggestion: "mp4 or webm",
        });
    };
    let missing_end = container::check(path, &file, kind, limits)?;
    let size = file.size;
    let mut input = Input::open(Library::get()?, file.file, size, demuxer, limits, clock).map_err(|mut refused| {
        let source = refused.source_error(path);
        source.unwrap_or_else(|| broken(path, kind, "its header cannot be read", refused.error, limits))
    })?;
    if input.num_streams() > limits.max_streams {
        return Err(too_large(path, "max_streams", input.num_streams(), limits.max_streams));
    }
    let mut chosen = choose_stream(path, &input.streams())?;
    let needs_stream_info = matches!(kind, Kind::MpegTs | Kind::Avi | Kind::Ogg) || chosen.width <= 0;
    if needs_stream_info {
        if let Err(error) = input.find_stream_info() {
            return Err(failure(path, &mut input, kind, "its streams cannot be told", error, limits));
        }
        chosen = choose_stream(path, &input.streams())?;
    }
    if !CODECS.contains(&chosen.codec.as_str()) {
        return Err(MediaError::UnsupportedCodec { path: path.to_path_buf(), codec: chosen.codec });
    }
    limits.check_size(path, chosen.width.max(0) as u64, chosen.height.max(0) as u64)?;
    input.select(chosen.index);
    Ok(Opened { input, kind, size, stream: chosen, missing_end })
}

fn choose_stream(path: &Path, streams: &[StreamInfo]) -> Result<StreamInfo, MediaError> {
    let videos = || streams.iter().filter(|stream| stream.is_video);
    videos()
        .find(|stream| stream.is_default)
        .or_else(|| videos().next())
        .cloned()
        .ok_or_else(|| MediaError::NoVideoTrack { path: path.to_path_buf() })
}

fn scan(
    path: &Path,
    opened: &mut Opened,
    limits: &Limits,
    clock: Clock,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Scanned>, MediaError> {
    let kind = opened.kind;
    let mut packet =
        Packet::new(opened.input.library()).map_err(|error| broken(path, kind, "a packet", error, limits))?;
    let mut scanned = Vec::new();
    let mut num_packets = 0usize;
    loop {
        match opened.input.read(&mut packet) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                if let Some(error) = opened.input.source_error(path) {
                    return Err(error);
                }
                if error.is_out_of_memory() {
                    return Err(broken(path, kind, "a packet", error, limits));
                }
                warnings.push(Warning {
                    reason: "read_error",
                    message: format!("reading stopped after {num_packets} packets: {error}"),
                });
                break;
            }
        }
        num_packets += 1;
        if num_packets > limits.max_packets {
            return Err(too_large(path, "max_packets", num_packets, limits.max_packets));
        }
        if num_packets.is_multiple_of(256) {
            clock.check(path)?;
        }
        if packet.stream() != opened.stream.index || packet.data().is_empty() {
            continue;
        }
        // A transport stream flags a packet after any gap, and its decoder copes; elsewhere the data is cut.
        let is_cut = packet.is_corrupt() && kind != Kind::MpegTs;
        if is_cut && !warnings.iter().any(|warning| warning.reason == "truncated") {
            warnings.push(Warning { reason: "truncated", message: "the data of the last frame is cut".into() });
        }
        scanned.push(Scanned {
            pts: packet.pts(),
            dts: packet.dts(),
            duration: packet.duration(),
            is_key: packet.is_key(),
            is_shown: !packet.is_discard() && !is_cut && container::is_shown(&opened.stream.codec, packet.data()),
        });
    }
    if let Some(error) = opened.input.source_error(path) {
        return Err(error);
    }
    Ok(scanned)
}

/// An error of libav while a container was read, told by its cause.
pub(crate) fn failure(
    path: &Path,
    input: &mut Input,
    kind: Kind,
    what: &str,
    error: AvError,
    limits: &Limits,
) -> MediaError {
    input.source_error(path).unwrap_or_else(|| broken(path, kind, what, error, limits))
}

fn broken(path: &Path, kind: Kind, what: &str, error: AvError, limits: &Limits) -> MediaError {
    if error.is_out_of_memory() {
        return too_large(path, "max_alloc_bytes", format!("more ({what})"), limits.max_alloc_bytes);
    }
    MediaError::Broken { path: path.to_path_buf(), format: kind.name().into(), detail: format!("{what}: {error}") }
}

fn too_large(path: &Path, what: &'static str, found: impl ToString, limit: impl ToString) -> MediaError {
    MediaError::TooLarge { path: path.to_path_buf(), what, found: found.to_string(), limit: limit.to_string() }
}
