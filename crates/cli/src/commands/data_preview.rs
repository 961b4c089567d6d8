//! `vidtune data preview`: one record as the model sees it: its frames with their times, the text with the supervised part
//! marked, token counts.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use data::{EncodeOptions, Encoded, Processor};
use media::{Frame, RgbImage};
use serde_json::{Value, json};

use crate::args::PreviewArgs;
use crate::console::Console;
use crate::failure::CliError;
use crate::model_args::{check_languages, encode_options, num_records, open_set, resolve, with_languages};
use crate::output;

/// Marks of the supervised part.
const OPEN: &str = "⟦";
const CLOSE: &str = "⟧";

/// Pictures in a row of the contact sheet.
const COLUMNS: u32 = 8;

/// Runs the command.
///
/// # Errors
/// The record is not there, or is refused.
pub fn run(args: &PreviewArgs, console: &Console) -> Result<ExitCode> {
    let options = EncodeOptions { max_length: args.max_length, ..encode_options(&args.frames)? };
    let options = with_languages(options, &args.languages);
    let dataset = open_set(&args.data, &args.set)?;
    let total = num_records(&dataset, &args.set);
    let index = match &args.record {
        Some(id) => (0..total).find(|&i| dataset.id(i) == *id),
        None => (args.index < total).then_some(args.index),
    };
    let Some(index) = index else {
        let wanted = args.record.clone().map_or_else(|| format!("number {}", args.index), |id| format!("`{id}`"));
        let message = format!("`{}` has no record {wanted} among its {total}", args.data.display());
        return Err(CliError::usage(message, "records are counted from 0; `--record` takes an id").into());
    };
    let processor = Processor::load(&resolve(&args.model, console)?)?;
    check_languages(&processor, &args.languages)?;
    let sample = dataset.get(index)?;
    let encoded = processor.encode(&sample, &options)?;
    if let Some(out) = &args.out {
        let frames = frames(&encoded, &read_scale(processor.dir())?);
        let width = (frames.first().map_or(112, |frame| frame.image.width)).clamp(112, 336);
        match media::contact_sheet(&frames, COLUMNS.min(frames.len() as u32), width) {
            Some(sheet) => output::write(Some(out), &media::encode_png(&sheet)?)?,
            None => console.warning("the record has no picture: no contact sheet was written"),
        }
    }
    if args.json {
        output::print_json(&facts(&encoded))?;
    } else {
        output::write(None, text_of(&encoded, processor.template_origin(), args).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn facts(encoded: &Encoded) -> Value {
    let frames: Vec<_> = encoded
        .frames
        .iter()
        .map(|frame| json!({"media": frame.media, "index": frame.index, "seconds": frame.seconds}))
        .collect();
    let spans: Vec<_> = encoded.spans.iter().map(|span| &encoded.text[span.clone()]).collect();
    json!({
        "id": encoded.id,
        "text": encoded.text,
        "supervised": spans,
        "input_tokens": encoded.ids.len(),
        "supervised_tokens": encoded.num_supervised(),
        "pictures": encoded.num_images,
        "pixel_shape": encoded.pixel_shape,
        "frames": frames,
        "ids": encoded.ids,
        "labels": encoded.labels,
        "target": encoded.target,
        "notes": encoded.notes,
    })
}

fn text_of(encoded: &Encoded, template: &str, args: &PreviewArgs) -> String {
    let mut text = format!("record `{}` with the template of `{template}`\n", encoded.id);
    for note in &encoded.notes {
        let _ = writeln!(text, "note: {note}");
    }
    if encoded.num_images > 0 {
        let size = match encoded.pixel_shape.as_slice() {
            [_, height, width] => format!(" of {width}x{height}"),
            _ => String::new(),
        };
        let _ = writeln!(text, "{} pictures{size}:", encoded.num_images);
        for clip in encoded.frames.chunk_by(|a, b| a.media == b.media) {
            let times: Vec<String> = clip.iter().map(|f| format!("{} ({:.2} s)", f.index, f.seconds)).collect();
            let _ = writeln!(text, "  medium {}: frames {}", clip[0].media, times.join(", "));
        }
        if let Some(out) = &args.out {
            let _ = writeln!(text, "  contact sheet: `{}`", out.display());
        }
    }
    let _ = writeln!(
        text,
        "{} input tokens, {} supervised; supervised text stands in {OPEN}{CLOSE}:\n",
        encoded.ids.len(),
        encoded.num_supervised()
    );
    text.push_str(&marked(encoded));
    text.push('\n');
    text
}

/// The rendered text with marks around its supervised spans.
fn marked(encoded: &Encoded) -> String {
    let mut text = String::with_capacity(encoded.text.len());
    let mut at = 0;
    for span in &encoded.spans {
        text.push_str(&encoded.text[at..span.start]);
        text.push_str(OPEN);
        text.push_str(&encoded.text[span.clone()]);
        text.push_str(CLOSE);
        at = span.end;
    }
    text.push_str(&encoded.text[at..]);
    text
}

/// Mean and deviation of each channel, by which pictures were normalised.
struct Scale {
    mean: [f32; 3],
    std: [f32; 3],
}

/// The normalisation that a checkpoint's picture settings name.
fn read_scale(dir: &Path) -> Result<Scale> {
    for (name, key) in [("processor_config.json", Some("image_processor")), ("preprocessor_config.json", None)] {
        let path = dir.join(name);
        if !path.is_file() {
            continue;
        }
        let file: Value = hub::json::read_json(&path)?;
        let settings = key.map_or(&file, |key| &file[key]);
        let three = |key: &str| -> Option<[f32; 3]> {
            let list: Vec<f32> = settings[key].as_array()?.iter().filter_map(|x| Some(x.as_f64()? as f32)).collect();
            list.try_into().ok()
        };
        if settings["do_normalize"] == Value::Bool(false) {
            return Ok(Scale { mean: [0.0; 3], std: [1.0; 3] });
        }
        if let (Some(mean), Some(std)) = (three("image_mean"), three("image_std")) {
            return Ok(Scale { mean, std });
        }
    }
    let message = format!("`{}` does not say how pictures are normalised (`image_mean`, `image_std`)", dir.display());
    Err(CliError::usage(message, "leave `--out` out").into())
}

/// The pictures of a record with the normalisation undone, with their numbers and times.
fn frames(encoded: &Encoded, scale: &Scale) -> Vec<Frame> {
    let &[3, height, width] = encoded.pixel_shape.as_slice() else {
        return Vec::new();
    };
    let plane = height * width;
    let picture = |values: &[f32]| {
        let byte = |pixel: usize, channel: usize| {
            let value = values[channel * plane + pixel] * scale.std[channel] + scale.mean[channel];
            (value * 255.0).round().clamp(0.0, 255.0) as u8
        };
        let data = (0..plane).flat_map(|pixel| (0..3).map(move |channel| byte(pixel, channel))).collect();
        RgbImage { width: width as u32, height: height as u32, data }
    };
    let pictures = encoded.pixels.chunks_exact(3 * plane).map(picture).zip(&encoded.frames);
    pictures.map(|(image, info)| Frame { image, index: info.index, seconds: info.seconds, damaged: false }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervised_part_is_marked() {
        let encoded =
            Encoded { text: "ask x: yes</s> y: no".to_owned(), spans: vec![7..14, 18..20], ..Encoded::default() };
        assert_eq!(marked(&encoded), "ask x: ⟦yes</s>⟧ y: ⟦no⟧");
        assert_eq!(marked(&Encoded { spans: vec![], ..encoded }), "ask x: yes</s> y: no");
    }

    #[test]
    fn pictures_come_back_from_their_values() {
        let scale = Scale { mean: [0.48, 0.45, 0.40], std: [0.26, 0.25, 0.27] };
        let bytes: Vec<u8> = (0..=255).collect();
        let value = |byte: u8, channel: usize| (f32::from(byte) / 255.0 - scale.mean[channel]) / scale.std[channel];
        let pixels = (0..3).flat_map(|channel| bytes.iter().map(move |b| (channel, *b))).map(|(c, b)| value(b, c));
        let encoded = Encoded {
            pixels: pixels.collect(),
            pixel_shape: vec![3, 16, 16],
            num_images: 1,
            frames: vec![data::FrameInfo { media: 0, index: 7, seconds: 0.5 }],
            ..Encoded::default()
        };
        let found = frames(&encoded, &scale);
        assert_eq!((found.len(), found[0].index, found[0].seconds), (1, 7, 0.5));
        assert_eq!(found[0].image.data, bytes.iter().flat_map(|b| [*b; 3]).collect::<Vec<_>>());
    }
}
