//! Owns the decoding strategy: which packets go to the decoder so that the wanted frames come out exactly and soon.
//! It refuses to choose frames.
//!
//! Seek only when a keyframe lies between here and the next wanted frame; give every packet that is not wanted to the
//! decoder with the order to skip it if nothing refers to it; stop as soon as the last wanted picture is out. Wherever
//! this loses a wanted picture (a seek that lands wrong, an unusual stream), and wherever the picture that a seek led
//! to is no keyframe for the decoder (containers flag too many), the clip is decoded from its start without tricks
//! before anything is called undecodable.

use crate::av::{Converter, Decoder, Effort, Packet, Picture};
use crate::index::{self, Opened, Plan};
use crate::limits::Clock;
use crate::sniff::Kind;
use crate::timeline::KeyFrame;
use crate::{Frame, Limits, MediaError, VideoIndex};

/// Decodes the frames of the given numbers, in the order given; a number may repeat.
///
/// # Errors
/// [`MediaError::FrameOutOfRange`], [`MediaError::Undecodable`] for a frame that the decoder does not give,
/// [`MediaError::Changed`] if the file is not the one that was indexed, and those of reading.
pub fn decode_frames(index: &VideoIndex, indices: &[usize], limits: &Limits) -> Result<Vec<Frame>, MediaError> {
    let num_frames = index.num_frames();
    if let Some(&wrong) = indices.iter().find(|&&i| i >= num_frames) {
        return Err(MediaError::FrameOutOfRange { path: index.path.clone(), index: wrong, num_frames });
    }
    let mut wanted = indices.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }

    // What the header says, before the file is opened again; the pictures are counted once more as they come out.
    let picture_bytes = u64::from(index.width) * u64::from(index.height) * 3;
    check_bytes(index, picture_bytes.saturating_mul(indices.len() as u64), indices.len(), limits)?;
    let mut session = Session::open(index, limits, Clock::start(limits))?;
    let mut found: Vec<Option<Frame>> = vec![None; wanted.len()];
    if !index.plan.ticks.is_empty() {
        session.decode_selected(&wanted, &mut found)?;
    }
    if found.iter().any(Option::is_none) {
        session.restart()?;
        session.decode_all(&wanted, &mut found)?;
    }
    for (frame, &number) in found.iter().zip(&wanted) {
        if frame.is_none() {
            let detail = session.last_error.unwrap_or_else(|| "the decoder gives no picture for it".into());
            let seconds = index.seconds[number];
            return Err(MediaError::Undecodable { path: index.path.clone(), index: number, seconds, detail });
        }
    }
    let found: Vec<Frame> = found.into_iter().flatten().collect();
    if found.len() == indices.len() && indices == wanted {
        return Ok(found);
    }
    // Repeats and other orders are served from the frames decoded once.
    let places: Vec<usize> = indices.iter().map(|i| wanted.partition_point(|w| w < i)).collect();
    let num_bytes = places.iter().map(|&at| found[at].image.data.len() as u64).sum();
    check_bytes(index, num_bytes, indices.len(), limits)?;
    Ok(places.into_iter().map(|at| found[at].clone()).collect())
}

/// Refuses more bytes of pixels than one call may give out.
fn check_bytes(index: &VideoIndex, num_bytes: u64, num_frames: usize, limits: &Limits) -> Result<(), MediaError> {
    if num_bytes > limits.max_decoded_bytes {
        return Err(MediaError::TooLarge {
            path: index.path.clone(),
            what: "max_decoded_bytes",
            found: format!("{num_bytes} ({num_frames} frames, {}x{} by the header)", index.width, index.height),
            limit: limits.max_decoded_bytes.to_string(),
        });
    }
    Ok(())
}

/// One pass over the file.
struct Session<'a> {
    index: &'a VideoIndex,
    limits: &'a Limits,
    clock: Clock,
    opened: Opened,
    decoder: Decoder,
    converter: Converter,
    packet: Packet,
    picture: Picture,
    last_error: Option<String>,
    /// Frames converted so far and the bytes of their pixels.
    num_frames: usize,
    num_bytes: u64,
}

/// Finds which frame a picture is, from its presentation time.
struct Matcher {
    last: Option<(i64, usize)>,
}

impl Matcher {
    /// The frame number of a picture shown at `pts`. Frames that share a time are told apart by their order.
    fn number(&mut self, plan: &Plan, pts: i64) -> Option<usize> {
        let repeat = match self.last {
            Some((last, count)) if last == pts => count + 1,
            _ => 0,
        };
        self.last = Some((pts, repeat));
        let number = plan.ticks.partition_point(|&tick| tick < pts) + repeat;
        (plan.ticks.get(number) == Some(&pts)).then_some(number)
    }
}

impl<'a> Session<'a> {
    fn open(index: &'a VideoIndex, limits: &'a Limits, clock: Clock) -> Result<Self, MediaError> {
        let path = &index.path;
        let opened = index::open_video(path, limits, clock)?;
        if opened.size != index.plan.file_size
            || opened.kind != index.plan.kind
            || opened.stream.index != index.plan.stream
        {
            return Err(MediaError::Changed { path: path.clone() });
        }
        let av = opened.input.library();
        let memory = |_| MediaError::TooLarge {
            path: path.clone(),
            what: "max_alloc_bytes",
            found: "more (decoder)".into(),
            limit: limits.max_alloc_bytes.to_string(),
        };
        let decoder = Decoder::open(&opened.input, opened.stream.index, limits.max_pixels)
            .map_err(|error| MediaError::Broken {
                path: path.clone(),
                format: index.codec.clone(),
                detail: format!("the decoder does not open: {error}"),
            })?
            .ok_or_else(|| MediaError::UnsupportedCodec { path: path.clone(), codec: index.codec.clone() })?;
        Ok(Self {
            index,
            limits,
            clock,
            opened,
            decoder,
            converter: Converter::new(av),
            packet: Packet::new(av).map_err(memory)?,
            picture: Picture::new(av).map_err(memory)?,
            last_error: None,
            num_frames: 0,
            num_bytes: 0,
        })
    }

    /// Opens the file anew, from its start; the clock and the count of bytes run on.
    fn restart(&mut self) -> Result<(), MediaError> {
        let (last_error, num_frames, num_bytes) = (self.last_error.take(), self.num_frames, self.num_bytes);
        *self = Self { last_error, num_frames, num_bytes, ..Self::open(self.index, self.limits, self.clock)? };
        Ok(())
    }

    /// The fast way, from keyframe to keyframe. It may leave frames unfound.
    fn decode_selected(&mut self, wanted: &[usize], found: &mut [Option<Frame>]) -> Result<(), MediaError> {
        let plan = &self.index.plan;
        let key_of = |number: usize| {
            let pts = plan.ticks[number];
            plan.keys.partition_point(|key| key.pts <= pts).checked_sub(1)
        };
        let (mut wanted, mut found) = (wanted, found);
        let mut is_at_start = true;
        while let Some(&first) = wanted.first() {
            let key = key_of(first);
            let len = wanted.iter().take_while(|&&number| key_of(number) == key).count();
            let Some(key) = key.map(|at| plan.keys[at]) else { return Ok(()) };
            let has_sought = !(is_at_start && key.order == 0);
            if has_sought && !self.seek(key)? {
                return Ok(());
            }
            is_at_start = false;
            let (group, rest) = found.split_at_mut(len);
            // Where one keyframe of the container is none, no other is worth a seek.
            if !self.decode_group(key, has_sought, &wanted[..len], group)? {
                return Ok(());
            }
            (wanted, found) = (&wanted[len..], rest);
        }
        Ok(())
    }

    /// Moves the reader to a keyframe or before it; `false` if the container cannot.
    fn seek(&mut self, key: KeyFrame) -> Result<bool, MediaError> {
        // QuickTime's sample table and the search in transport streams go by decoding time, the others by presentation.
        let by_dts = matches!(self.index.plan.kind, Kind::Mp4 | Kind::MpegTs);
        let timestamp = key.dts.filter(|_| by_dts).unwrap_or(key.pts);
        self.decoder.flush();
        Ok(self.opened.input.seek(self.opened.stream.index, timestamp).is_ok())
    }

    /// Decodes from `key` until the wanted frames, which all follow it in time and precede the next keyframe in time,
    /// have come out. After a seek the decoder has to agree that the first picture is a keyframe: a picture that refers
    /// to what was never decoded comes out without an error and with wrong pixels. `false` if it does not agree; then
    /// nothing is found.
    fn decode_group(
        &mut self,
        key: KeyFrame,
        has_sought: bool,
        wanted: &[usize],
        found: &mut [Option<Frame>],
    ) -> Result<bool, MediaError> {
        let plan = &self.index.plan;
        let ticks: Vec<i64> = wanted.iter().map(|&number| plan.ticks[number]).collect();
        // Frames may share a time; all packets of a wanted time are sent.
        let mut num_to_send: usize = {
            let mut distinct = ticks.clone();
            distinct.dedup();
            let count = |tick| plan.ticks.partition_point(|&t| t <= tick) - plan.ticks.partition_point(|&t| t < tick);
            distinct.into_iter().map(count).sum()
        };
        let mut matcher = Matcher { last: None };
        let mut is_trusted = !has_sought;
        let mut number = |plan: &Plan, picture: &Picture| {
            let pts = picture.pts()?;
            is_trusted |= pts == key.pts && picture.is_key();
            matcher.number(plan, pts).filter(|_| is_trusted)
        };
        let mut has_begun = false;
        while num_to_send > 0 && self.read()? {
            let pts = self.packet.pts();
            if !has_begun {
                // A seek may land early, never late: a later keyframe first means that it did.
                if self.packet.is_key() && pts.is_some_and(|pts| pts > key.pts) {
                    return Ok(true);
                }
                has_begun = self.packet.is_key() && pts == Some(key.pts);
                if !has_begun {
                    continue;
                }
            }
            let is_wanted = pts.is_none_or(|pts| ticks.binary_search(&pts).is_ok());
            num_to_send -= usize::from(is_wanted && pts.is_some() && !self.packet.is_discard());
            self.send(if is_wanted { Effort::Full } else { Effort::ReferencesOnly });
            self.receive(&mut number, wanted, found)?;
        }
        self.drain();
        self.receive(&mut number, wanted, found)?;
        Ok(is_trusted)
    }

    /// The plain way: everything from the start to the last wanted frame.
    fn decode_all(&mut self, wanted: &[usize], found: &mut [Option<Frame>]) -> Result<(), MediaError> {
        let ticks = &self.index.plan.ticks;
        let has_ticks = !ticks.is_empty();
        let last_tick = wanted.last().and_then(|&number| ticks.get(number)).copied();
        // Without presentation times nobody knows which packet is the last that is needed.
        let mut num_to_send = last_tick.map_or(usize::MAX, |last| ticks.partition_point(|&tick| tick <= last));
        let mut matcher = Matcher { last: None };
        let mut num_out = 0;
        let mut number = move |plan: &Plan, picture: &Picture| {
            num_out += 1;
            if has_ticks { matcher.number(plan, picture.pts()?) } else { Some(num_out - 1) }
        };
        while num_to_send > 0 && found.iter().any(Option::is_none) && self.read()? {
            let pts = self.packet.pts().filter(|_| !self.packet.is_discard());
            let is_needed = pts.is_some_and(|pts| Some(pts) <= last_tick && ticks.binary_search(&pts).is_ok());
            num_to_send -= usize::from(has_ticks && is_needed);
            self.send(Effort::Full);
            self.receive(&mut number, wanted, found)?;
        }
        self.drain();
        self.receive(&mut number, wanted, found)
    }

    /// Reads the next packet of the stream that holds data; `false` at the end, or where reading fails.
    fn read(&mut self) -> Result<bool, MediaError> {
        let path = &self.index.path;
        loop {
            self.clock.check(path)?;
            match self.opened.input.read(&mut self.packet) {
                Ok(true) if self.packet.stream() != self.opened.stream.index || self.packet.data().is_empty() => {}
                Ok(more) => return Ok(more),
                Err(error) => {
                    if let Some(error) = self.opened.input.source_error(path) {
                        return Err(error);
                    }
                    self.last_error = Some(error.to_string());
                    return Ok(false);
                }
            }
        }
    }

    /// Gives the packet to the decoder. A refusal costs this picture at most, and shows when a wanted one is missing.
    fn send(&mut self, effort: Effort) {
        if let Err(error) = self.decoder.send(&self.packet, effort) {
            self.last_error = Some(error.to_string());
        }
    }

    fn drain(&mut self) {
        if let Err(error) = self.decoder.drain() {
            self.last_error = Some(error.to_string());
        }
    }

    /// Takes every picture that the decoder has ready and keeps the wanted ones.
    fn receive(
        &mut self,
        mut number: impl FnMut(&Plan, &Picture) -> Option<usize>,
        wanted: &[usize],
        found: &mut [Option<Frame>],
    ) -> Result<(), MediaError> {
        loop {
            self.clock.check(&self.index.path)?;
            match self.decoder.receive(&mut self.picture) {
                Ok(false) => return Ok(()),
                Ok(true) => {
                    let Some(number) = number(&self.index.plan, &self.picture) else { continue };
                    let Ok(at) = wanted.binary_search(&number) else { continue };
                    if found[at].is_none() {
                        found[at] = Some(self.frame(number)?);
                    }
                }
                // A picture that cannot be given is missed by whoever wanted it; the next may be whole.
                Err(error) => self.last_error = Some(error.to_string()),
            }
        }
    }

    /// The current picture as a frame: checked, in RGB, upright.
    fn frame(&mut self, number: usize) -> Result<Frame, MediaError> {
        let index = self.index;
        let (width, height) = self.picture.size();
        self.limits.check_size(&index.path, width.into(), height.into())?;
        self.num_frames += 1;
        self.num_bytes = self.num_bytes.saturating_add(u64::from(width) * u64::from(height) * 3);
        check_bytes(index, self.num_bytes, self.num_frames, self.limits)?;
        let seconds = index.seconds[number];
        let image = self.converter.convert(&self.picture).map_err(|error| MediaError::Undecodable {
            path: index.path.clone(),
            index: number,
            seconds,
            detail: format!("its colours cannot be converted: {error}"),
        })?;
        let image = index.plan.turn.apply(image);
        Ok(Frame { image, index: number, seconds, damaged: self.picture.is_damaged() })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The fast way alone finds the frames, without the plain way to fall back on.
    #[test]
    fn selected_frames_are_found_without_falling_back() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/media/clips");
        let limits = Limits::default();
        let mut without_ticks = Vec::new();
        let mut lost: Vec<String> = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if ["no_video.mp4", "cinepak.avi"].contains(&name.as_str()) {
                continue;
            }
            let index = index::index_video(&path, &limits).unwrap();
            if index.plan.ticks.is_empty() {
                without_ticks.push(name);
                continue;
            }
            let total = index.num_frames();
            for wanted in [vec![total - 1], vec![total / 2], (0..total).step_by(7).collect(), (0..total).collect()] {
                let mut found = vec![None; wanted.len()];
                let mut session = Session::open(&index, &limits, Clock::start(&limits)).unwrap();
                session.decode_selected(&wanted, &mut found).unwrap();
                if found.iter().any(Option::is_none) && !lost.contains(&name) {
                    lost.push(name.clone());
                }
            }
        }
        without_ticks.sort();
        assert_eq!(without_ticks, ["h264.avi", "mpeg4_b.avi"]);
        lost.sort();
        // The containers of three flag every frame as a keyframe, where H.264's own parser knows better; the keyframes
        // of the last begin a refresh that takes many frames.
        assert_eq!(lost, ["h263.avi", "h264_intra_refresh.mp4", "hevc_no_stss.mp4", "mpeg4_b_no_stss.mp4"]);
    }
}
