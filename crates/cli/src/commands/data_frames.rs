//! `vidtune data frames`: chosen frames of a video as PNG files, with their numbers and times in `frames.json`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use media::resize::{self, Filter};
use media::{FrameCount, FrameRule, Limits, SampleSpec};
use serde::Serialize;

use crate::args::FramesArgs;
use crate::console::Console;
use crate::failure::CliError;
use crate::output;

/// What `frames.json` holds.
#[derive(Debug, Serialize)]
struct Manifest {
    video: String,
    container: String,
    codec: String,
    /// Size of the frames written.
    width: u32,
    height: u32,
    /// Average rate of the file.
    fps: f64,
    /// Seconds.
    duration: f64,
    /// Frames in the file.
    total_frames: usize,
    rule: String,
    /// Numbers of the chosen frames in presentation order, from 0.
    indices: Vec<usize>,
    /// Presentation time of each.
    seconds: Vec<f64>,
    /// File of each.
    files: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// The video is refused, the rule cannot give the frames asked for, or a file cannot be written.
pub fn run(args: &FramesArgs, console: &Console) -> Result<ExitCode> {
    let limits = Limits::default();
    let rule: FrameRule = args.rule.parse()?;
    let count = match (args.num_frames, args.fps) {
        (Some(count), _) => FrameCount::Num(count),
        (_, Some(fps)) => FrameCount::Fps(fps),
        _ => FrameCount::All,
    };
    if let (Some(wanted), Some(most)) = (args.num_frames, args.max_frames)
        && wanted > most
    {
        let message = format!("`--num-frames {wanted}` is above `--max-frames {most}`");
        return Err(CliError::usage(message, "keep one of them").into());
    }
    if args.all && args.max_frames.is_some() && rule != FrameRule::Stride {
        let message = "`--all` and `--max-frames` contradict each other";
        return Err(CliError::usage(message, "give `--num-frames` instead, or `--rule stride`").into());
    }
    refuse_old_frames(&args.out)?;
    let index = media::index_video(&args.video, &limits)?;
    for warning in &index.warnings {
        console.warning(&format!("`{}`: {}", args.video.display(), warning.message));
    }
    let spec =
        SampleSpec { max_frames: args.max_frames, start: args.start, end: args.end, ..SampleSpec::new(rule, count) };
    let indices = media::sample_indices(index.num_frames(), index.fps, &index.seconds, &spec)?;
    let frames = media::decode_frames(&index, &indices, &limits)?;
    for frame in frames.iter().filter(|frame| frame.damaged) {
        let place = format!("frame {} at {:.3} s", frame.index, frame.seconds);
        console.warning(&format!("`{}`: {place} is damaged in the file", args.video.display()));
    }
    std::fs::create_dir_all(&args.out).map_err(|e| CliError::io("create", &args.out, &e))?;
    let digits = frames.len().to_string().len().max(3);
    let mut manifest = Manifest {
        video: args.video.to_string_lossy().into_owned(),
        container: index.container.clone(),
        codec: index.codec.clone(),
        width: 0,
        height: 0,
        fps: index.fps,
        duration: index.duration,
        total_frames: index.num_frames(),
        rule: rule.to_string(),
        indices: frames.iter().map(|f| f.index).collect(),
        seconds: frames.iter().map(|f| f.seconds).collect(),
        files: Vec::with_capacity(frames.len()),
    };
    for (number, frame) in frames.into_iter().enumerate() {
        let image = match args.size {
            Some(size) => resize::pillow(&frame.image, size.width, size.height, Filter::Bicubic),
            None => frame.image,
        };
        let name = format!("frame_{number:0digits$}.png");
        media::write_png(&args.out.join(&name), &image)?;
        (manifest.width, manifest.height) = (image.width, image.height);
        manifest.files.push(name);
    }
    output::write_json(Some(&args.out.join("frames.json")), &manifest)?;
    console.info(&format!("{} frames in `{}`", manifest.files.len(), args.out.display()));
    Ok(ExitCode::SUCCESS)
}

/// Frames of two videos in one folder would be taken for one.
fn refuse_old_frames(out: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(out) else { return Ok(()) };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    match names.filter(|name| name.starts_with("frame_") && name.ends_with(".png")).min() {
        None => Ok(()),
        Some(name) => {
            let message = format!("`{}` holds frames already (`{name}`)", out.display());
            Err(CliError::usage(message, "name another folder, or remove them").into())
        }
    }
}
