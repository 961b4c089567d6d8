//! Owns the way from a file to its sound: mono samples at 16 kHz, from audio files and from the tracks of videos.
//! It refuses to make features of them, and to fill gaps: samples come as the decoder gives them, end to end.
//!
//! Resampling is libswresample's with its own settings, as the `ffmpeg` program does it (OpenAI's Whisper loads sound
//! through that program); channels are resampled one by one and then averaged.

use std::path::{Path, PathBuf};

use crate::av::{AvError, Decoder, Effort, Input, Library, Packet, Picture, Resampler, StreamInfo};
use crate::limits::Clock;
use crate::sniff::{self, Kind};
use crate::{Limits, MediaError, Warning, container};

/// Samples a second of everything that this crate gives out.
pub const AUDIO_RATE: u32 = 16_000;

/// Codecs whose decoders may meet strangers' files.
const CODECS: [&str; 22] = [
    "aac",
    "ac3",
    "adpcm_ima_wav",
    "adpcm_ms",
    "alac",
    "eac3",
    "flac",
    "mp2",
    "mp3",
    "opus",
    "pcm_alaw",
    "pcm_f32le",
    "pcm_f64le",
    "pcm_mulaw",
    "pcm_s16be",
    "pcm_s16le",
    "pcm_s24be",
    "pcm_s24le",
    "pcm_s32be",
    "pcm_s32le",
    "pcm_u8",
    "vorbis",
];

/// Seconds that no packet of these codecs takes; libav's parser of Vorbis counts the last one of a stream wrongly.
const MAX_PACKET_S: f64 = 20.0;

/// What is known of a file's sound before decoding.
#[derive(Debug, Clone, PartialEq)]
pub struct AudioIndex {
    /// The file.
    pub path: PathBuf,
    /// Codec name, as libav spells it: `mp3`, `aac`, `opus`, ...
    pub codec: String,
    /// Container: `mp3`, `wav`, `flac`, `aac`, or one of those of videos.
    pub container: String,
    /// Seconds that its packets take together, to within what an encoder puts before and after the sound (less than a
    /// tenth of a second); `None` where packets do not say how long they are, or contradict their
    /// times.
    pub duration: Option<f64>,
    stream: usize,
    file_size: u64,
}

/// The sound of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct AudioTrack {
    /// Samples of one channel, [`AUDIO_RATE`] a second, in -1 to 1 where the file keeps to that.
    pub samples: Vec<f32>,
    /// What a user should know.
    pub warnings: Vec<Warning>,
}

/// An opened container with its stream of sound chosen.
struct Opened {
    input: Input,
    container: &'static str,
    size: u64,
    stream: StreamInfo,
    missing_end: Option<String>,
}

/// Reads the packets of a file's sound once. Nothing is decoded.
///
/// # Errors
/// [`MediaError::NoAudioTrack`] for a file without sound, and every cause that concerns reading.
pub fn index_audio(path: &Path, limits: &Limits) -> Result<AudioIndex, MediaError> {
    let clock = Clock::start(limits);
    let mut opened = open(path, limits, clock)?;
    let mut packet = new_packet(path, &opened, limits)?;
    let (num, den) = opened.stream.time_base;
    let seconds = |ticks: i64| ticks as f64 * num as f64 / den.max(1) as f64;
    let (mut ticks, mut is_known, mut num_packets) = (0i64, true, 0usize);
    let mut span: Option<(i64, i64)> = None;
    // An error ends the reading, as the end does; decoding tells it.
    while matches!(opened.read(path, &mut packet, &mut num_packets, limits, clock)?, Read::Packet) {
        is_known &= packet.duration() > 0 && seconds(packet.duration()) < MAX_PACKET_S;
        ticks = ticks.saturating_add(packet.duration());
        if let Some(pts) = packet.pts() {
            span = Some((span.map_or(pts, |(first, _)| first), pts.saturating_add(packet.duration())));
        }
    }
    let duration = seconds(ticks);
    // Some demuxers guess durations; those that the times of the packets bear out are believed.
    let is_known = is_known
        && ticks > 0
        && span.is_none_or(|(first, last)| (seconds(last.saturating_sub(first)) - duration).abs() < 0.05);
    if is_known {
        check_duration(path, duration, limits)?;
    }
    Ok(AudioIndex {
        path: path.to_path_buf(),
        codec: opened.stream.codec,
        container: opened.container.to_owned(),
        duration: is_known.then_some(duration),
        stream: opened.stream.index,
        file_size: opened.size,
    })
}

/// Decodes a file's sound, all of it or from `start` to `end` seconds on the container's clock.
///
/// # Errors
/// [`MediaError::UndecodableAudio`] for sound that breaks off anywhere but at its end, or where none is left;
/// [`MediaError::Changed`] if the file is not the one that was indexed; and those of reading.
pub fn decode_audio(
    index: &AudioIndex,
    (start, end): (Option<f64>, Option<f64>),
    limits: &Limits,
) -> Result<AudioTrack, MediaError> {
    let path = index.path.as_path();
    let clock = Clock::start(limits);
    let mut opened = open(path, limits, clock)?;
    if opened.size != index.file_size || opened.stream.index != index.stream {
        return Err(MediaError::Changed { path: path.to_path_buf() });
    }
    let mut warnings = Vec::new();
    if let Some(message) = opened.missing_end.take() {
        warnings.push(Warning { reason: "truncated", message });
    }
    let decoder = Decoder::open(&opened.input, opened.stream.index, limits.max_pixels)
        .map_err(|error| opened.broken(path, "the decoder does not open", error, limits))?
        .ok_or_else(|| MediaError::UnsupportedCodec { path: path.to_path_buf(), codec: index.codec.clone() })?;
    let mut session = Session {
        path,
        limits,
        decoder,
        frame: Picture::new(opened.input.library()).map_err(|error| opened.broken(path, "a frame", error, limits))?,
        resampler: None,
        samples: Vec::new(),
        first: None,
        failed: None,
    };
    let mut packet = new_packet(path, &opened, limits)?;
    let mut num_packets = 0;
    // A transport stream's clock begins anywhere.
    let (num, den) = opened.stream.time_base;
    let second = if opened.container == Kind::MpegTs.name() { 0.0 } else { num as f64 / den.max(1) as f64 };
    loop {
        match opened.read(path, &mut packet, &mut num_packets, limits, clock)? {
            Read::Packet if packet.is_corrupt() && opened.container != Kind::MpegTs.name() => {
                warnings.push(Warning { reason: "truncated", message: "the data of the last packet is cut".into() });
                break;
            }
            Read::Packet => session.decode(Some(&packet), opened.input.library())?,
            Read::End => break,
            Read::Error(error) => {
                let message = format!("reading stopped after {num_packets} packets: {error}");
                warnings.push(Warning { reason: "read_error", message });
                break;
            }
        }
        let begin = session.first.map_or(0.0, |tick| tick as f64 * second);
        let known = begin + session.samples.len() as f64 / f64::from(AUDIO_RATE);
        if end.is_some_and(|end| known > end + 1.0) {
            break;
        }
    }
    session.decode(None, opened.input.library())?;
    if let Some(detail) = session.failed.take() {
        warnings.push(Warning { reason: "truncated", message: format!("the end of the sound is lost: {detail}") });
    }
    let begin = session.first.map_or(0.0, |tick| tick as f64 * second);
    let mut samples = session.samples;
    let at = |seconds: f64| (((seconds - begin) * f64::from(AUDIO_RATE)).round().max(0.0) as usize).min(samples.len());
    let (from, to) = (start.map_or(0, at), end.map_or(samples.len(), at));
    samples.truncate(to);
    samples.drain(..from.min(to));
    if samples.is_empty() {
        let detail = match (start, end) {
            (None, None) => "no sample comes out of it".to_owned(),
            _ => format!("no sample lies between {} s and the end asked for", start.unwrap_or(0.0)),
        };
        return Err(MediaError::UndecodableAudio { path: path.to_path_buf(), detail });
    }
    Ok(AudioTrack { samples, warnings })
}

/// What came of one read.
enum Read {
    Packet,
    End,
    Error(AvError),
}

impl Opened {
    /// Reads the next packet of the sound that holds anything.
    fn read(
        &mut self,
        path: &Path,
        packet: &mut Packet,
        num_packets: &mut usize,
        limits: &Limits,
        clock: Clock,
    ) -> Result<Read, MediaError> {
        loop {
            let is_there = match self.input.read(packet) {
                Ok(is_there) => is_there,
                Err(error) => {
                    if let Some(error) = self.input.source_error(path) {
                        return Err(error);
                    }
                    if error.is_out_of_memory() {
                        return Err(self.broken(path, "a packet", error, limits));
                    }
                    return Ok(Read::Error(error));
                }
            };
            if !is_there {
                return self.input.source_error(path).map_or(Ok(Read::End), Err);
            }
            *num_packets += 1;
            if *num_packets > limits.max_packets {
                return Err(too_large(path, "max_packets", *num_packets, limits.max_packets));
            }
            if num_packets.is_multiple_of(256) {
                clock.check(path)?;
            }
            if packet.stream() == self.stream.index && !packet.data().is_empty() {
                return Ok(Read::Packet);
            }
        }
    }

    fn broken(&self, path: &Path, what: &str, error: AvError, limits: &Limits) -> MediaError {
        broken(path, self.container, what, error, limits)
    }
}

/// Decoding and resampling, packet by packet.
struct Session<'a> {
    path: &'a Path,
    limits: &'a Limits,
    decoder: Decoder,
    frame: Picture,
    resampler: Option<Resampler>,
    samples: Vec<f32>,
    /// Presentation time of the first frame in ticks.
    first: Option<i64>,
    /// What the decoder said of a packet after which nothing came out so far.
    failed: Option<String>,
}

impl Session<'_> {
    /// Decodes a packet; `None` takes out what decoder and resampler still hold.
    fn decode(&mut self, packet: Option<&Packet>, av: &'static Library) -> Result<(), MediaError> {
        let sent = match packet {
            Some(packet) => self.decoder.send(packet, Effort::Full),
            None => self.decoder.drain(),
        };
        if let Err(error) = sent {
            self.fail(error)?;
        }
        loop {
            match self.decoder.receive(&mut self.frame) {
                Ok(true) => self.take(av)?,
                Ok(false) => break,
                Err(error) => {
                    self.fail(error)?;
                    break;
                }
            }
        }
        if packet.is_none() {
            self.flush()?;
        }
        self.check()
    }

    /// Takes note of a packet that does not decode: lawful at the end of a file alone.
    fn fail(&mut self, error: AvError) -> Result<(), MediaError> {
        if error.is_out_of_memory() {
            return Err(too_large(self.path, "max_alloc_bytes", "more (decoder)", self.limits.max_alloc_bytes));
        }
        let seconds = self.samples.len() as f64 / f64::from(AUDIO_RATE);
        self.failed.get_or_insert_with(|| format!("after {seconds:.3} s: {error}"));
        Ok(())
    }

    fn take(&mut self, av: &'static Library) -> Result<(), MediaError> {
        if let Some(detail) = self.failed.take() {
            return Err(self.undecodable(detail));
        }
        if self.first.is_none() {
            self.first = self.frame.pts();
        }
        if self.resampler.as_ref().is_some_and(|resampler| !resampler.suits(&self.frame)) {
            self.flush()?;
        }
        let resampler = match &mut self.resampler {
            Some(resampler) => resampler,
            none => none.insert(Resampler::open(av, &self.frame, AUDIO_RATE).map_err(|error| {
                MediaError::UndecodableAudio { path: self.path.to_path_buf(), detail: format!("resampling: {error}") }
            })?),
        };
        let pushed = resampler.push(Some(&self.frame), &mut self.samples);
        pushed.map_err(|error| self.undecodable(format!("resampling: {error}")))
    }

    fn flush(&mut self) -> Result<(), MediaError> {
        match self.resampler.take().map(|mut resampler| resampler.push(None, &mut self.samples)) {
            Some(Err(error)) => Err(self.undecodable(format!("resampling: {error}"))),
            _ => Ok(()),
        }
    }

    fn check(&self) -> Result<(), MediaError> {
        let num_bytes = self.samples.len() as u64 * 4;
        if num_bytes > self.limits.max_decoded_bytes {
            return Err(too_large(self.path, "max_decoded_bytes", num_bytes, self.limits.max_decoded_bytes));
        }
        check_duration(self.path, self.samples.len() as f64 / f64::from(AUDIO_RATE), self.limits)
    }

    fn undecodable(&self, detail: String) -> MediaError {
        MediaError::UndecodableAudio { path: self.path.to_path_buf(), detail }
    }
}

/// Opens a container of an allowed kind and chooses its sound: the first stream that is marked default, else the first.
fn open(path: &Path, limits: &Limits, clock: Clock) -> Result<Opened, MediaError> {
    let file = sniff::open(path)?;
    let of_video = file.kind.filter(|kind| *kind != Kind::Gif).and_then(|kind| Some((kind.name(), kind.demuxer()?)));
    let Some((container, demuxer)) = of_video.or_else(|| sniff::sound_of(&file.head)) else {
        let found = file.kind.map_or_else(|| sniff::describe(&file.head), |kind| format!("a {} picture", kind.name()));
        return Err(MediaError::NotAllowedContainer {
            path: path.to_path_buf(),
            found,
            wanted: "container of sound",
            suggestion: "mp3, wav or flac",
        });
    };
    let missing_end = match file.kind.filter(|_| of_video.is_some()) {
        Some(kind) => container::check(path, &file, kind, limits)?,
        None => None,
    };
    let size = file.size;
    let mut input = Input::open(Library::get()?, file.file, size, demuxer, limits, clock).map_err(|mut refused| {
        let source = refused.source_error(path);
        source.unwrap_or_else(|| broken(path, container, "its header cannot be read", refused.error, limits))
    })?;
    if input.num_streams() > limits.max_streams {
        return Err(too_large(path, "max_streams", input.num_streams(), limits.max_streams));
    }
    if let Err(error) = input.find_stream_info() {
        let source = input.source_error(path);
        return Err(source.unwrap_or_else(|| broken(path, container, "its streams cannot be told", error, limits)));
    }
    let streams = input.streams();
    let sounds = || streams.iter().filter(|stream| stream.is_audio);
    let chosen = sounds().find(|stream| stream.is_default).or_else(|| sounds().next()).cloned();
    let Some(stream) = chosen else {
        return Err(MediaError::NoAudioTrack { path: path.to_path_buf() });
    };
    if !CODECS.contains(&stream.codec.as_str()) {
        return Err(MediaError::UnsupportedCodec { path: path.to_path_buf(), codec: stream.codec });
    }
    input.select(stream.index);
    Ok(Opened { input, container, size, stream, missing_end })
}

fn new_packet(path: &Path, opened: &Opened, limits: &Limits) -> Result<Packet, MediaError> {
    Packet::new(opened.input.library()).map_err(|error| opened.broken(path, "a packet", error, limits))
}

fn check_duration(path: &Path, seconds: f64, limits: &Limits) -> Result<(), MediaError> {
    if seconds > limits.max_duration_s {
        return Err(too_large(path, "max_duration_s", format!("{seconds:.0}"), limits.max_duration_s));
    }
    Ok(())
}

fn broken(path: &Path, container: &str, what: &str, error: AvError, limits: &Limits) -> MediaError {
    if error.is_out_of_memory() {
        return too_large(path, "max_alloc_bytes", format!("more ({what})"), limits.max_alloc_bytes);
    }
    MediaError::Broken { path: path.to_path_buf(), format: container.into(), detail: format!("{what}: {error}") }
}

fn too_large(path: &Path, what: &'static str, found: impl ToString, limit: impl ToString) -> MediaError {
    MediaError::TooLarge { path: path.to_path_buf(), what, found: found.to_string(), limit: limit.to_string() }
}
