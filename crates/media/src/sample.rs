//! Owns the rules that choose frames: which frame numbers of a clip a model sees.
//! It refuses to read files; it works on counts and presentation times alone.

use crate::MediaError;

/// Most frames that one request may ask for: some rules repeat frames, so the clip alone is no bound.
const MAX_WANTED: usize = 1 << 20;

/// The rules, each named after the program whose choice it repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameRule {
    /// `transformers` default: `i * T / N`, whole numbers.
    Transformers,
    /// Qwen2-VL class: `arange(0, T, T / N)` floored, N rounded to the temporal patch.
    Qwen2Vl,
    /// Qwen3-VL: `linspace(0, T - 1, N)` rounded half to even.
    Qwen3Vl,
    /// qwen-vl-utils: `linspace(start, end, N)` rounded, 2 frames a second, an even count from 4 to 768.
    QwenVlUtils,
    /// Every `int(fps_of_file / fps)`-th frame; over the maximum a linspace over the clip.
    Stride,
    /// The middle of N equal segments, or a random place in each when a jitter seed is given.
    Segments,
}

/// How many frames are wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FrameCount {
    /// This many.
    Num(usize),
    /// This many a second.
    Fps(f64),
    /// Every frame.
    All,
}

/// A request for frames.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleSpec {
    /// The rule.
    pub rule: FrameRule,
    /// How many.
    pub count: FrameCount,
    /// At least this many; `None` for the rule's own.
    pub min_frames: Option<usize>,
    /// At most this many; `None` for the rule's own.
    pub max_frames: Option<usize>,
    /// Counts are rounded to a multiple of this by the rules that do so (Qwen: 2).
    pub temporal_patch: usize,
    /// Seed for the `segments` rule in training; `None` takes the middles.
    pub jitter: Option<u64>,
    /// Start of the part of the clip that counts, in seconds.
    pub start: Option<f64>,
    /// End of that part, in seconds.
    pub end: Option<f64>,
}

impl SampleSpec {
    /// A request with the rule's own bounds, over the whole clip.
    pub fn new(rule: FrameRule, count: FrameCount) -> Self {
        Self {
            rule,
            count,
            min_frames: None,
            max_frames: None,
            temporal_patch: 2,
            jitter: None,
            start: None,
            end: None,
        }
    }
}

impl std::str::FromStr for FrameRule {
    type Err = MediaError;

    fn from_str(name: &str) -> Result<Self, MediaError> {
        Ok(match name {
            "transformers" => Self::Transformers,
            "qwen2_vl" => Self::Qwen2Vl,
            "qwen3_vl" => Self::Qwen3Vl,
            "qwen_vl_utils" => Self::QwenVlUtils,
            "stride" => Self::Stride,
            "segments" => Self::Segments,
            _ => {
                return Err(MediaError::BadRequest {
                    detail: format!(
                        "frame rule `{name}` is not known; hint: one of transformers, qwen2_vl, qwen3_vl, qwen_vl_utils, stride, segments"
                    ),
                });
            }
        })
    }
}

impl std::fmt::Display for FrameRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Transformers => "transformers",
            Self::Qwen2Vl => "qwen2_vl",
            Self::Qwen3Vl => "qwen3_vl",
            Self::QwenVlUtils => "qwen_vl_utils",
            Self::Stride => "stride",
            Self::Segments => "segments",
        })
    }
}

/// The frame numbers to decode, ascending, for a clip of `num_frames` frames whose average rate is `fps` and whose
/// presentation times are `seconds` (one for each frame, ascending; may be empty if no `start` or `end` is given).
///
/// Numbers repeat only where the rule's own program repeats them (Qwen3-VL and `segments`, more frames wanted than
/// there are).
///
/// # Errors
/// [`MediaError::BadRequest`] where the rule's own program refuses: more frames wanted than there are, none wanted, an
/// impossible rate or range.
pub fn sample_indices(
    num_frames: usize,
    fps: f64,
    seconds: &[f64],
    spec: &SampleSpec,
) -> Result<Vec<usize>, MediaError> {
    if num_frames == 0 {
        return refuse("the clip has no frames".into());
    }
    if spec.temporal_patch == 0 {
        return refuse("the temporal patch is 0; hint: 1 for none".into());
    }
    match spec.count {
        FrameCount::Num(0) => return refuse("0 frames are wanted".into()),
        FrameCount::Num(wanted) => check_count(wanted)?,
        FrameCount::Fps(wanted) if !(wanted > 0.0 && wanted.is_finite()) => {
            return refuse(format!("{wanted} frames a second are wanted"));
        }
        FrameCount::Fps(_) if !(fps > 0.0 && fps.is_finite()) => {
            return refuse(format!("the clip's rate is {fps}; hint: ask for a number of frames instead"));
        }
        _ => {}
    }
    if let (Some(min), Some(max)) = (spec.min_frames, spec.max_frames)
        && min > max
    {
        return refuse(format!("at least {min} and at most {max} frames are wanted"));
    }
    spec.min_frames.map_or(Ok(()), check_count)?;
    check_part(spec)?;
    let (first, count) = range(num_frames, fps, seconds, spec)?;
    let mut indices = match spec.rule {
        FrameRule::Transformers => transformers(count, fps, spec),
        FrameRule::Qwen2Vl => qwen2_vl(count, fps, spec),
        FrameRule::Qwen3Vl => qwen3_vl(count, fps, spec),
        FrameRule::QwenVlUtils => return qwen_vl_utils(first, count, fps, spec),
        FrameRule::Stride => stride(count, fps, spec),
        FrameRule::Segments => segments(count, fps, spec),
    }?;
    for index in &mut indices {
        *index += first;
    }
    Ok(indices)
}

/// The number of frames in the wanted part of a clip, as the rule of the request delimits it; its count does not matter.
///
/// # Errors
/// [`MediaError::BadRequest`] where the part is empty, or its ends are no times.
pub fn frames_in_part(num_frames: usize, fps: f64, seconds: &[f64], spec: &SampleSpec) -> Result<usize, MediaError> {
    if num_frames == 0 {
        return refuse("the clip has no frames".into());
    }
    check_part(spec)?;
    Ok(range(num_frames, fps, seconds, spec)?.1)
}

/// The first frame of the wanted part of the clip, and the number of its frames.
fn range(num_frames: usize, fps: f64, seconds: &[f64], spec: &SampleSpec) -> Result<(usize, usize), MediaError> {
    if spec.start.is_none() && spec.end.is_none() {
        return Ok((0, num_frames));
    }
    let empty = || {
        refuse(format!(
            "no frames from {} s to {}: the clip has {num_frames} frames at {fps} a second",
            spec.start.unwrap_or(0.0),
            spec.end.map_or("its end".into(), |end| format!("{end} s"))
        ))
    };
    let (first, end) = if spec.rule == FrameRule::QwenVlUtils {
        // That program works on nominal times, and wants two frames at least.
        let longest = num_frames as f64 / fps;
        let clamp = |time: f64| time.min(longest).max(0.0) * fps;
        let first = spec.start.map_or(0, |start| clamp(start).ceil() as usize);
        let last = spec.end.map_or(num_frames - 1, |end| (clamp(end).floor() as usize).min(num_frames - 1));
        if first >= last {
            return empty();
        }
        (first, last + 1)
    } else {
        if seconds.len() != num_frames {
            return refuse(format!("{} presentation times for {num_frames} frames", seconds.len()));
        }
        let first = spec.start.map_or(0, |start| seconds.partition_point(|&time| time < start));
        let end = spec.end.map_or(num_frames, |end| seconds.partition_point(|&time| time <= end));
        if first >= end {
            return empty();
        }
        (first, end)
    };
    Ok((first, end - first))
}

fn check_part(spec: &SampleSpec) -> Result<(), MediaError> {
    for (name, time) in [("start", spec.start), ("end", spec.end)] {
        if let Some(time) = time.filter(|time| !time.is_finite()) {
            return refuse(format!("the part of the clip has the {name} {time}; hint: give it in seconds"));
        }
    }
    Ok(())
}

fn refuse<T>(detail: String) -> Result<T, MediaError> {
    Err(MediaError::BadRequest { detail })
}

/// Refuses counts that no rule needs and that would cost memory before a frame is read.
fn check_count(wanted: usize) -> Result<(), MediaError> {
    if wanted > MAX_WANTED {
        return refuse(format!("{wanted} frames are wanted and at most {MAX_WANTED} are given; hint: ask for fewer"));
    }
    Ok(())
}

fn too_many<T>(wanted: impl std::fmt::Display, total: usize) -> Result<T, MediaError> {
    refuse(format!("{wanted} frames are wanted and the clip has {total}; hint: lower `num_frames` or `fps`"))
}

fn transformers(total: usize, fps: f64, spec: &SampleSpec) -> Result<Vec<usize>, MediaError> {
    let wanted = match spec.count {
        FrameCount::All => total,
        FrameCount::Num(wanted) => wanted,
        FrameCount::Fps(rate) => bounded(((total as f64 / fps * rate) as usize).max(1), spec),
    };
    if wanted > total {
        return too_many(wanted, total);
    }
    Ok((0..wanted).map(|i| i * total / wanted).collect())
}

/// torch computes these numbers in f32 and is off by one in places on clips of more than about 19 000 frames, differently
/// from processor to processor; here they are exact.
fn qwen2_vl(total: usize, fps: f64, spec: &SampleSpec) -> Result<Vec<usize>, MediaError> {
    let patch = spec.temporal_patch;
    let wanted = match spec.count {
        FrameCount::All => total,
        FrameCount::Num(wanted) => round_half_even_div(wanted, patch) * patch,
        FrameCount::Fps(rate) => {
            let max = spec.max_frames.unwrap_or(768).min(total) / patch * patch;
            let wanted = total as f64 / fps * rate;
            let wanted = wanted.max(spec.min_frames.unwrap_or(4) as f64).min(max as f64).min(total as f64);
            (wanted / patch as f64).floor() as usize * patch
        }
    };
    if wanted == 0 {
        return refuse(format!("no {patch} frames can be taken from a clip of {total}"));
    }
    if wanted > total {
        return too_many(wanted, total);
    }
    Ok((0..wanted).map(|i| i * total / wanted).collect())
}

fn qwen3_vl(total: usize, fps: f64, spec: &SampleSpec) -> Result<Vec<usize>, MediaError> {
    let (min, max) = (spec.min_frames.unwrap_or(4), spec.max_frames.unwrap_or(768));
    let wanted = match spec.count {
        FrameCount::All => total.max(min).min(max),
        FrameCount::Num(wanted) => wanted,
        FrameCount::Fps(rate) => ((total as f64 / fps * rate) as usize).max(min).min(max).min(total),
    };
    if wanted > total {
        check_count(wanted)?;
    }
    Ok(numpy_linspace(total - 1, wanted).map(|x| x.round_ties_even() as usize).collect())
}

/// Unlike the others it gives the clip's own numbers, because the roundings of its f32 depend on where the part begins.
fn qwen_vl_utils(first: usize, total: usize, fps: f64, spec: &SampleSpec) -> Result<Vec<usize>, MediaError> {
    const FACTOR: usize = 2;
    let wanted = match spec.count {
        FrameCount::All => total / FACTOR * FACTOR,
        FrameCount::Num(wanted) => round_half_even_div(wanted, FACTOR) * FACTOR,
        FrameCount::Fps(rate) => {
            let min = spec.min_frames.unwrap_or(4).div_ceil(FACTOR) * FACTOR;
            let max = spec.max_frames.unwrap_or(768.min(total)) / FACTOR * FACTOR;
            let wanted = total as f64 / fps * rate;
            let wanted = wanted.max(min as f64).min(max as f64).min(total as f64);
            (wanted / FACTOR as f64).floor() as usize * FACTOR
        }
    };
    if wanted < FACTOR || wanted > total {
        return too_many(format!("{wanted} (from {FACTOR} to {total})"), total);
    }
    let last = first + total - 1;
    Ok(torch_linspace(first, last, wanted).map(|x| x.round_ties_even() as usize).collect())
}

fn stride(total: usize, fps: f64, spec: &SampleSpec) -> Result<Vec<usize>, MediaError> {
    let over_the_clip = |wanted: usize| {
        if wanted > total {
            return too_many(wanted, total);
        }
        Ok(numpy_linspace(total - 1, wanted).map(|x| x as usize).collect())
    };
    let indices: Vec<usize> = match spec.count {
        FrameCount::All => (0..total).collect(),
        FrameCount::Num(wanted) => return over_the_clip(wanted),
        // A rate above the file's own gives every frame: there are no more.
        FrameCount::Fps(rate) => (0..total).step_by(((fps / rate) as usize).max(1)).collect(),
    };
    match spec.max_frames {
        Some(0) => refuse("at most 0 frames are wanted".into()),
        Some(max) if indices.len() > max => over_the_clip(max),
        _ => Ok(indices),
    }
}

fn segments(total: usize, fps: f64, spec: &SampleSpec) -> Result<Vec<usize>, MediaError> {
    let wanted = match spec.count {
        FrameCount::All => total,
        FrameCount::Num(wanted) => wanted,
        FrameCount::Fps(rate) => bounded(((total as f64 / fps * rate) as usize).max(1), spec),
    };
    if wanted > total {
        check_count(wanted)?;
    }
    let middle = |i: usize| (2 * i + 1) * total / (2 * wanted);
    Ok((0..wanted)
        .map(|i| {
            let (first, end) = (i * total / wanted, (i + 1) * total / wanted);
            match spec.jitter {
                Some(seed) if end > first + 1 => first + (random(seed, i as u64) % (end - first) as u64) as usize,
                _ => middle(i),
            }
        })
        .collect())
}

/// A count that follows from a rate, inside the asked bounds.
fn bounded(count: usize, spec: &SampleSpec) -> usize {
    let count = count.max(spec.min_frames.unwrap_or(0));
    count.min(spec.max_frames.unwrap_or(usize::MAX))
}

/// `numerator / denominator` rounded to the nearest whole number, halves to the even one.
fn round_half_even_div(numerator: usize, denominator: usize) -> usize {
    let (quotient, rest) = (numerator / denominator, numerator % denominator);
    match (2 * rest).cmp(&denominator) {
        std::cmp::Ordering::Less => quotient,
        std::cmp::Ordering::Equal => quotient + quotient % 2,
        std::cmp::Ordering::Greater => quotient + 1,
    }
}

/// `numpy.linspace(0, last, count)`, with numpy's own roundings: the step is rounded before it is multiplied.
fn numpy_linspace(last: usize, count: usize) -> impl Iterator<Item = f64> {
    let step = last as f64 / (count.max(2) - 1) as f64;
    (0..count).map(move |i| if i > 0 && i + 1 == count { last as f64 } else { i as f64 * step })
}

/// `torch.linspace(first, last, count)` in f32, with torch's own roundings: the step is rounded, the first half counts
/// from the start and the second from the end, and each value is rounded once (a fused multiply-add, here in f64).
fn torch_linspace(first: usize, last: usize, count: usize) -> impl Iterator<Item = f32> {
    let step = f64::from((last as f32 - first as f32) / (count.max(2) - 1) as f32);
    (0..count).map(move |i| {
        let value =
            if i < count / 2 { first as f64 + step * i as f64 } else { last as f64 - step * (count - 1 - i) as f64 };
        value as f32
    })
}

/// A number that depends on the seed and the position alone (the finaliser of SplitMix64).
fn random(seed: u64, position: u64) -> u64 {
    let mut z = seed.wrapping_add((position + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
