//! `vidtune data preview`: one record as the model sees it: its frames with their times, the text with the supervised part
//! marked, token counts.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Result;
use data::{EncodeOptions, Encoded, Processor, VisualKind};
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
        let frames = frames(&encoded, processor.pictures(&encoded));
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
    let visuals: Vec<_> = encoded
        .visuals
        .iter()
        .map(|visual| {
            json!({
                "kind": visual.kind,
                "grid": visual.grid,
                "tokens": visual.num_tokens,
                "seconds": visual.seconds,
                "seconds_per_grid": visual.seconds_per_grid,
            })
        })
        .collect();
    let heard: Vec<_> = encoded
        .heard
        .iter()
        .map(|heard| json!({"seconds": heard.seconds, "windows": heard.num_windows, "tokens": heard.num_tokens}))
        .collect();
    json!({
        "id": encoded.id,
        "text": encoded.text,
        "supervised": spans,
        "input_tokens": encoded.ids.len(),
        "supervised_tokens": encoded.num_supervised(),
        "pictures": encoded.num_images,
        "pixel_shape": encoded.pixel_shape,
        "frames": frames,
        "visuals": visuals,
        "heard": heard,
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
        if encoded.pixel_shape.len() == 1 {
            for visual in &encoded.visuals {
                let [steps, rows, columns] = visual.grid;
                let _ = match visual.kind {
                    VisualKind::Image => {
                        writeln!(text, "  image of {rows}x{columns} patches, {} tokens", visual.num_tokens)
                    }
                    VisualKind::Video | VisualKind::Audio => writeln!(
                        text,
                        "  clip of {steps}x{rows}x{columns} patches, {} tokens, {:.3} s a step",
                        visual.num_tokens, visual.seconds_per_grid
                    ),
                };
            }
        }
        for clip in encoded.frames.chunk_by(|a, b| a.media == b.media) {
            let times: Vec<String> = clip.iter().map(|f| format!("{} ({:.2} s)", f.index, f.seconds)).collect();
            let _ = writeln!(text, "  medium {}: frames {}", clip[0].media, times.join(", "));
        }
        if let Some(out) = &args.out {
            let _ = writeln!(text, "  contact sheet: `{}`", out.display());
        }
    }
    for heard in &encoded.heard {
        let _ = writeln!(
            text,
            "sound of {:.2} s: {} windows, {} tokens",
            heard.seconds, heard.num_windows, heard.num_tokens
        );
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

/// The pictures of a record with their numbers and times.
fn frames(encoded: &Encoded, pictures: Vec<RgbImage>) -> Vec<Frame> {
    let of = |(image, info): (RgbImage, &data::FrameInfo)| Frame {
        image,
        index: info.index,
        seconds: info.seconds,
        damaged: false,
    };
    pictures.into_iter().zip(&encoded.frames).map(of).collect()
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
}
