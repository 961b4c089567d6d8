//! Owns the decode benchmark: the time from a path to frames in RGB.
//! It refuses to choose clips, and to compare: other readers are timed beside it by `tools/oracle/media_bench.py`.

use std::path::Path;
use std::time::Instant;

use crate::{
    FrameCount, FrameRule, Limits, MediaError, SampleSpec, decode_frames, index_video, libav_libraries, sample_indices,
};

/// Times of one benchmark, on one thread.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodeBench {
    /// Frames decoded in each repeat.
    pub num_frames: usize,
    /// Frames in the clip.
    pub total_frames: usize,
    /// Width shown.
    pub width: u32,
    /// Height shown.
    pub height: u32,
    /// libav's name of the codec.
    pub codec: String,
    /// Wall seconds of each repeat: opening, index, decoding and colour together.
    pub seconds: Vec<f64>,
    /// Median of `seconds`.
    pub median_s: f64,
    /// Median of the processor seconds of each repeat, which other programs on the machine do not change.
    pub cpu_s: f64,
    /// Median of the wall seconds that the index alone takes.
    pub index_s: f64,
}

/// Decodes `num_frames` evenly spread frames (`i * T / N`) `repeats` times, from opening the file each time.
///
/// # Errors
/// Those of [`index_video`], [`sample_indices`] and [`decode_frames`]; 0 repeats are refused.
pub fn bench_decode(path: &Path, num_frames: usize, repeats: usize) -> Result<DecodeBench, MediaError> {
    if repeats == 0 {
        return Err(MediaError::BadRequest { detail: "0 repeats are wanted".into() });
    }
    // libav is opened once in a process: that is no clip's time.
    libav_libraries()?;
    let limits = Limits::default();
    let spec = SampleSpec::new(FrameRule::Transformers, FrameCount::Num(num_frames));
    let (mut seconds, mut cpu_seconds, mut index_seconds) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    for _ in 0..repeats {
        let (start, cpu_start) = (Instant::now(), thread_cpu_seconds());
        let index = index_video(path, &limits)?;
        index_seconds.push(start.elapsed().as_secs_f64());
        let indices = sample_indices(index.num_frames(), index.fps, &index.seconds, &spec)?;
        let frames = decode_frames(&index, &indices, &limits)?;
        seconds.push(start.elapsed().as_secs_f64());
        cpu_seconds.push(thread_cpu_seconds() - cpu_start);
        last = Some((index, frames.len()));
    }
    let (index, num_frames) = last.unwrap_or_else(|| unreachable!("there was at least one repeat"));
    Ok(DecodeBench {
        num_frames,
        total_frames: index.num_frames(),
        width: index.width,
        height: index.height,
        codec: index.codec,
        median_s: median(&seconds),
        cpu_s: median(&cpu_seconds),
        index_s: median(&index_seconds),
        seconds,
    })
}

/// Processor seconds that this thread has used.
fn thread_cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the struct that it is given, and every system that this crate builds on knows the
    // clock; if it fails the struct stays zero.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The middle value, of an even number the lower of the two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len().max(1) - 1) / 2).copied().unwrap_or(0.0)
}
