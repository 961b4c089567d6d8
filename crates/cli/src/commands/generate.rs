//! `vidtune generate`: one question about videos, images and sound.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use data::{EncodeOptions, MediaRef, Part, Role, Sample, Turn};
use infer::{GenerateOptions, Sampling};
use serde_json::json;

use crate::args::{Common, FrameArgs, GenerateArgs};
use crate::console::Console;
use crate::failure::CliError;
use crate::model_args::{beams, check_languages, encode_options, generation_rules, load, with_languages};
use crate::output;

/// Runs the command.
///
/// # Errors
/// A medium is refused, or the model cannot be loaded or asked.
pub fn run(args: &GenerateArgs, common: &Common, console: &Console) -> Result<ExitCode> {
    if !args.video.is_empty() && args.fps.is_some() && args.num_frames.is_some() {
        let hint = "give one of them; beside `--frames` alone `--fps` is the rate of its images";
        return Err(CliError::usage("`--num-frames` and `--fps` contradict each other for a video file", hint).into());
    }
    let frames = FrameArgs {
        num_frames: args.num_frames,
        // Beside frame folders alone the rate belongs to them; a count may then stand beside it.
        fps: if args.video.is_empty() { None } else { args.fps },
        max_frames: args.max_frames,
        frame_rule: args.frame_rule.clone(),
    };
    let encode = EncodeOptions { add_generation_prompt: true, ..encode_options(&frames)? };
    let encode = with_languages(encode, &args.languages);
    let sampling = Sampling { temperature: args.temperature, top_p: args.top_p, top_k: args.top_k, seed: args.seed };
    sampling.check()?;
    let loaded = load(&args.model, args.adapter.as_deref(), common, console)?;
    check_languages(&loaded.processor, &args.languages)?;
    let encoded = loaded.processor.encode(&question(args), &encode)?;
    for note in &encoded.notes {
        console.warning(note);
    }
    console.debug(&format!("{} input tokens, {} pictures", encoded.ids.len(), encoded.num_images));
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        sampling,
        eos_ids: loaded.processor.eos_ids().to_vec(),
        rules: generation_rules(&loaded, console)?,
        beams: beams(&args.beams, &loaded, console)?,
    };
    let answers = infer::generate(&loaded.model, &infer::upload_encoded(&[encoded])?, &options)?;
    let token_ids = answers.into_iter().next().unwrap_or_default();
    let text = loaded.processor.decode(&token_ids, true)?;
    if args.json {
        output::print_json(&json!({"text": text, "token_ids": token_ids}))?;
    } else {
        output::write(None, format!("{}\n", text.trim_end()).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The media in the order video, image, frames, audio, then the text.
fn question(args: &GenerateArgs) -> Sample {
    let medium = |reference: MediaRef| Part::Media(reference);
    let mut parts: Vec<Part> = args.video.iter().map(|path| medium(MediaRef::video(path))).collect();
    parts.extend(args.image.iter().map(|path| medium(MediaRef::image(path))));
    parts.extend(args.more.frames.iter().map(|path: &PathBuf| {
        let mut reference = MediaRef::video(path);
        reference.fps = args.fps;
        medium(reference)
    }));
    parts.extend(args.more.audio.iter().map(|path| medium(MediaRef::audio(path))));
    parts.push(Part::Text(args.prompt.clone()));
    Sample::new("prompt", vec![Turn { role: Role::User, parts }])
}
