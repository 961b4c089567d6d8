//! `vidtune bench decode`: how fast this machine decodes the frames of a video.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use crate::args::BenchDecodeArgs;
use crate::console::Console;
use crate::failure::CliError;
use crate::output;

/// Runs the command.
///
/// # Errors
/// The video is refused, or it has fewer frames than asked for.
pub fn run(args: &BenchDecodeArgs, _console: &Console) -> Result<ExitCode> {
    if args.repeats == 0 || args.num_frames == 0 {
        return Err(CliError::usage("`--repeats` and `--num-frames` must be at least 1", "give larger numbers").into());
    }
    let bench = media::bench_decode(&args.video, args.num_frames, args.repeats)?;
    let rate = bench.num_frames as f64 / bench.median_s;
    if args.json {
        output::print_json(&json!({
            "video": args.video,
            "num_frames": bench.num_frames,
            "total_frames": bench.total_frames,
            "width": bench.width,
            "height": bench.height,
            "seconds": bench.seconds,
            "median_s": bench.median_s,
            "frames_per_s": rate,
        }))?;
    } else {
        let text = format!(
            "{} of {} frames, {}x{}: median {:.1} ms a clip, {rate:.0} frames/s\n",
            bench.num_frames,
            bench.total_frames,
            bench.width,
            bench.height,
            bench.median_s * 1e3
        );
        output::write(None, text.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}
