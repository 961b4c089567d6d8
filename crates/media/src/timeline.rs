//! Owns the order of frames in time: what the scanned packets of a stream say of its frames, keyframes and rate.
//! It refuses to read files.

use crate::Warning;
use crate::av::StreamInfo;
use crate::sniff::Kind;

/// A place where decoding can start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyFrame {
    pub pts: i64,
    pub dts: Option<i64>,
    /// Number of its packet in the file's order.
    pub order: usize,
}

/// What the scan keeps of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scanned {
    pub pts: Option<i64>,
    pub dts: Option<i64>,
    /// In ticks, 0 if unknown.
    pub duration: i64,
    pub is_key: bool,
    /// Whether a frame to show comes of it.
    pub is_shown: bool,
}

/// A frame to show: when, and for how long, in ticks.
#[derive(Debug, Clone, Copy)]
struct Shown {
    tick: i64,
    duration: i64,
}

/// The frames in presentation order.
pub(crate) struct Timeline {
    /// Presentation times in ticks; empty if the container has none.
    pub ticks: Vec<i64>,
    pub keys: Vec<KeyFrame>,
    pub seconds: Vec<f64>,
    pub fps: f64,
    pub duration: f64,
}

impl Timeline {
    /// Sorts the frames; adds a warning if some cannot be decoded, or if times had to be counted. `None` if nothing
    /// tells when the frames are shown.
    pub fn build(scanned: &[Scanned], stream: &StreamInfo, kind: Kind, warnings: &mut Vec<Warning>) -> Option<Self> {
        let mut has_pts = scanned.iter().all(|packet| packet.pts.is_some());
        let joined = if kind == Kind::MpegTs && has_pts { shown_in_parts(scanned) } else { None };
        let mut shown = if let Some((shown, num_parts)) = joined {
            let message = format!("{num_parts} recordings with clocks of their own are joined: one follows the other");
            warnings.push(Warning { reason: "joined", message });
            // Times may stand twice in the file, so pictures are told by their number alone.
            has_pts = false;
            shown
        } else if has_pts {
            shown_by_pts(scanned, warnings)
        } else if scanned.iter().all(|packet| packet.dts.is_some()) {
            shown_in_order(scanned)
        } else {
            let shown = shown_at_a_rate(scanned, stream)?;
            let missing = scanned.iter().filter(|packet| packet.pts.is_none() && packet.dts.is_none()).count();
            let message =
                format!("{missing} of {} packets have no time: frames are timed by their rate alone", scanned.len());
            warnings.push(Warning { reason: "no_times", message });
            shown
        };
        shown.sort_by_key(|frame| frame.tick);

        let in_seconds = |ticks: i128| {
            // One rounding, so that equal times of two containers are equal numbers.
            (ticks * i128::from(stream.time_base.0)) as f64 / stream.time_base.1.max(1) as f64
        };
        // The clock of a transport stream begins anywhere.
        let origin = if kind == Kind::MpegTs { shown.first().map_or(0, |frame| frame.tick) } else { 0 };
        let seconds = shown.iter().map(|frame| in_seconds(i128::from(frame.tick) - i128::from(origin))).collect();
        let duration = in_seconds(span(&shown));

        let mut keys: Vec<KeyFrame> = scanned
            .iter()
            .enumerate()
            .filter(|(_, packet)| packet.is_key)
            .filter_map(|(order, packet)| Some(KeyFrame { pts: packet.pts?, dts: packet.dts, order }))
            .collect();
        keys.sort_by_key(|key| (key.pts, key.order));
        Some(Self {
            fps: rate(shown.len(), duration, stream.frame_rate),
            ticks: if has_pts { shown.iter().map(|frame| frame.tick).collect() } else { Vec::new() },
            keys,
            seconds,
            duration,
        })
    }
}

/// The frames of a stream with presentation times. Those before the first keyframe, whether they precede it in the file
/// or in time, cannot be decoded and do not count.
fn shown_by_pts(scanned: &[Scanned], warnings: &mut Vec<Warning>) -> Vec<Shown> {
    let first = scanned.iter().position(|packet| packet.is_key).unwrap_or(0);
    let first_pts = scanned.get(first).and_then(|packet| packet.pts).unwrap_or(i64::MIN);
    let has_key = scanned.get(first).is_some_and(|packet| packet.is_key);
    let mut num_leading = 0;
    let mut shown = Vec::with_capacity(scanned.len());
    for (order, packet) in scanned.iter().enumerate().filter(|(_, packet)| packet.is_shown) {
        let Some(tick) = packet.pts else { continue };
        if has_key && (order < first || tick < first_pts) {
            num_leading += 1;
        } else {
            shown.push(Shown { tick, duration: packet.duration });
        }
    }
    if num_leading > 0 {
        let message = format!("{num_leading} frames before the first keyframe cannot be decoded");
        warnings.push(Warning { reason: "leading_frames", message });
    }
    shown
}

/// The frames of a stream without presentation times: decoding times are as many and as far apart.
fn shown_in_order(scanned: &[Scanned]) -> Vec<Shown> {
    let shown = scanned.iter().filter(|packet| packet.is_shown);
    shown.filter_map(|packet| Some(Shown { tick: packet.dts?, duration: packet.duration })).collect()
}

/// The frames of recordings joined in one transport stream, with their number: wherever the clock jumps back at a
/// keyframe another recording begins, and its frames follow those before. `None` if the clock never does.
fn shown_in_parts(scanned: &[Scanned]) -> Option<(Vec<Shown>, usize)> {
    let jumps = (1..scanned.len()).filter(|&at| {
        let (before, here) = (&scanned[at - 1], &scanned[at]);
        here.is_key && before.dts.zip(here.dts).is_some_and(|(before, here)| here < before)
    });
    let starts: Vec<usize> = std::iter::once(0).chain(jumps).collect();
    // Frames before the first keyframe give no picture, and would be counted as one here.
    if starts.len() < 2 || !scanned[0].is_key {
        return None;
    }
    let ends = starts.iter().skip(1).copied().chain([scanned.len()]);
    let (mut all, mut end) = (Vec::with_capacity(scanned.len()), None::<i64>);
    for (&start, stop) in starts.iter().zip(ends) {
        let part = scanned[start..stop].iter().filter(|packet| packet.is_shown);
        let part: Vec<Shown> =
            part.filter_map(|packet| Some(Shown { tick: packet.pts?, duration: packet.duration })).collect();
        let Some(first) = part.iter().map(|frame| frame.tick).min() else { continue };
        let offset = match end {
            Some(end) => end.checked_sub(first)?,
            None => 0,
        };
        for frame in part {
            let tick = frame.tick.checked_add(offset)?;
            end = end.max(Some(tick.checked_add(frame.duration)?));
            all.push(Shown { tick, ..frame });
        }
    }
    Some((all, starts.len()))
}

/// The frames of a stream some of whose packets have no time at all: one after the other, each as long as every packet
/// says it is, else at the stream's rate.
fn shown_at_a_rate(scanned: &[Scanned], stream: &StreamInfo) -> Option<Vec<Shown>> {
    let each = scanned.first().map_or(0, |packet| packet.duration);
    let is_even = each > 0 && scanned.iter().all(|packet| packet.duration == each);
    // Ticks of a frame as a fraction.
    let (numerator, denominator) = if is_even {
        (i128::from(each), 1)
    } else {
        let (rate, base) = (stream.frame_rate, stream.time_base);
        (i128::from(rate.1) * i128::from(base.1), i128::from(rate.0) * i128::from(base.0))
    };
    if numerator <= 0 || denominator <= 0 {
        return None;
    }
    let tick = |order: usize| i64::try_from(order as i128 * numerator / denominator).ok();
    let shown = scanned.iter().filter(|packet| packet.is_shown).enumerate();
    shown.map(|(order, _)| Some(Shown { tick: tick(order)?, duration: tick(order + 1)? - tick(order)? })).collect()
}

/// Ticks from the first frame's start to the last frame's end; where the last one's duration is not known, the mean
/// distance of the others takes its place.
fn span(shown: &[Shown]) -> i128 {
    let (Some(first), Some(last)) = (shown.first(), shown.last()) else { return 0 };
    let between = i128::from(last.tick) - i128::from(first.tick);
    let mean = if shown.len() > 1 { between / (shown.len() as i128 - 1) } else { 0 };
    between + if last.duration > 0 { i128::from(last.duration) } else { mean }
}

/// Frames a second: the container's own rate where the frames bear it out to half a percent, else the frames counted.
fn rate(num_frames: usize, duration: f64, (numerator, denominator): (i64, i64)) -> f64 {
    let counted = if duration > 0.0 { num_frames as f64 / duration } else { 0.0 };
    let listed = if denominator > 0 { numerator as f64 / denominator as f64 } else { 0.0 };
    let is_borne_out = counted == 0.0 || (listed / counted - 1.0).abs() < 0.005;
    if listed > 0.0 && is_borne_out { listed } else { counted }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(frame_rate: (i64, i64)) -> StreamInfo {
        StreamInfo {
            index: 0,
            is_video: true,
            is_audio: false,
            is_default: true,
            codec: "h264".into(),
            width: 2,
            height: 2,
            time_base: (1, 100),
            frame_rate,
            num_frames: 0,
            display_matrix: None,
        }
    }

    fn packet(pts: i64, is_key: bool) -> Scanned {
        Scanned { pts: Some(pts), dts: None, duration: 4, is_key, is_shown: true }
    }

    #[test]
    fn frames_before_the_first_keyframe_do_not_count() {
        // A packet before the keyframe, and two that follow it and are shown before it.
        let scanned = [packet(0, false), packet(16, true), packet(8, false), packet(12, false), packet(20, false)];
        let mut warnings = Vec::new();
        let timeline = Timeline::build(&scanned, &stream((25, 1)), Kind::Mp4, &mut warnings).unwrap();
        assert_eq!(timeline.ticks, [16, 20]);
        assert_eq!(warnings[0].message, "3 frames before the first keyframe cannot be decoded");
        assert_eq!((timeline.fps, timeline.duration), (25.0, 0.08));
        assert_eq!(timeline.keys, [KeyFrame { pts: 16, dts: None, order: 1 }]);
    }

    #[test]
    fn impossible_times_do_not_overflow() {
        let scanned = [packet(i64::MIN + 1, true), packet(i64::MAX, false)];
        for kind in [Kind::Mp4, Kind::MpegTs] {
            let timeline = Timeline::build(&scanned, &stream((0, 0)), kind, &mut Vec::new()).unwrap();
            assert!(timeline.duration > 1e17 && timeline.fps < 1e-16);
        }
        assert_eq!(Timeline::build(&[], &stream((25, 1)), Kind::Mp4, &mut Vec::new()).unwrap().seconds.len(), 0);
    }

    /// Packets cut off in front of a Matroska file's first time have none: never one tick each.
    #[test]
    fn packets_without_times_are_timed_by_their_rate() {
        let timeline = |duration: i64, rate| {
            let packet = |n: i64| Scanned {
                pts: (n >= 3).then_some(n * duration),
                dts: None,
                duration,
                is_key: n == 0,
                is_shown: true,
            };
            let scanned: Vec<Scanned> = (0..6).map(packet).collect();
            let mut warnings = Vec::new();
            let built = Timeline::build(&scanned, &stream(rate), Kind::Matroska, &mut warnings);
            (built, warnings)
        };
        let (built, warnings) = timeline(4, (0, 0));
        let built = built.unwrap();
        assert_eq!(built.seconds, [0.0, 0.04, 0.08, 0.12, 0.16, 0.2]);
        assert_eq!((built.fps, built.duration), (25.0, 0.24));
        assert_eq!((warnings.len(), warnings[0].reason), (1, "no_times"));
        assert_eq!(warnings[0].message, "3 of 6 packets have no time: frames are timed by their rate alone");
        let (built, _) = timeline(0, (25, 2));
        assert_eq!(built.unwrap().seconds, [0.0, 0.08, 0.16, 0.24, 0.32, 0.4]);
        assert!(timeline(0, (0, 0)).0.is_none());
    }

    #[test]
    fn a_stated_rate_must_be_borne_out() {
        let scanned: Vec<Scanned> = (0..10).map(|i| packet(i * 4, i == 0)).collect();
        let fps = |rate| Timeline::build(&scanned, &stream(rate), Kind::Mp4, &mut Vec::new()).unwrap().fps;
        assert_eq!(fps((25, 1)), 25.0);
        assert_eq!(fps((2501, 100)), 25.01);
        assert_eq!(fps((30, 1)), 25.0);
        assert_eq!(fps((0, 0)), 25.0);
    }
}
