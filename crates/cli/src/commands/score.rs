//! `vidtune score`: the loss of every record, one JSON line each, in the order of the file.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use data::collate;
use rayon::prelude::*;
use serde_json::json;

use crate::args::{Common, ScoreArgs};
use crate::console::{Console, Counter, duration};
use crate::failure::CliError;
use crate::model_args::{check_languages, encode_options, load, num_records, open_set, with_languages};
use crate::output;

/// Runs the command.
///
/// # Errors
/// A record that cannot be read stops it: a score file with holes would be read as complete.
pub fn run(args: &ScoreArgs, common: &Common, console: &Console) -> Result<ExitCode> {
    if args.batch_size == 0 {
        return Err(CliError::usage("`--batch-size 0`: expected at least 1", "leave it out for 1").into());
    }
    let options = with_languages(encode_options(&args.frames)?, &args.languages);
    let dataset = open_set(&args.data, &args.set)?;
    let total = num_records(&dataset, &args.set);
    let loaded = load(&args.model, args.adapter.as_deref(), common, console)?;
    check_languages(&loaded.processor, &args.languages)?;
    let mut counter = Counter::new(console, "records");
    let mut lines = Vec::new();
    let (mut input_tokens, mut forward_s, started) = (0, 0.0, Instant::now());
    let mut noted: Vec<(String, Vec<String>)> = Vec::new();
    // Records are read ahead in groups, so that the processor's cores decode while one of them would wait.
    let group = (args.batch_size.max(8).next_multiple_of(args.batch_size)) as u64;
    for start in (0..total).step_by(group as usize) {
        let end = (start + group).min(total);
        let encode = |i| loaded.processor.encode(&dataset.get(i)?, &options);
        let encoded = (start..end).into_par_iter().map(encode).collect::<Vec<Result<_, data::DataError>>>();
        let encoded = encoded.into_iter().collect::<Result<Vec<_>, _>>()?;
        let with_notes = encoded.iter().filter(|record| !record.notes.is_empty());
        noted.extend(with_notes.map(|record| (record.id.clone(), record.notes.clone())));
        for batch in encoded.chunks(args.batch_size) {
            let batch = collate(batch)?;
            let forward = Instant::now();
            let scores = infer::score_batch(&loaded.model, &batch)?;
            forward_s += forward.elapsed().as_secs_f64();
            for score in scores {
                input_tokens += score.input_tokens;
                serde_json::to_writer(&mut lines, &score)?;
                lines.push(b'\n');
            }
        }
        counter.at(end, total);
    }
    output::write(args.out.as_deref(), &lines)?;
    let noted = noted.iter().map(|(id, notes)| (id.as_str(), notes.as_slice()));
    output::tell_notes(noted, "`vidtune data check --model`", console);
    let seconds = started.elapsed().as_secs_f64();
    // `time` is that of reading and scoring, `forward_time` the model's part of it; loading the model is in neither.
    let fields = json!({"records": total, "input_tokens": input_tokens, "time": seconds, "forward_time": forward_s});
    console.event("scored", fields, || {
        let place = args.out.as_ref().map(|out| format!(" in `{}`", out.display())).unwrap_or_default();
        Some(format!(
            "{total} scores{place}: {input_tokens} tokens in {}, {} of it in the model ({:.0} tokens/s)",
            duration(seconds),
            duration(forward_s),
            input_tokens as f64 / forward_s.max(f64::MIN_POSITIVE),
        ))
    });
    Ok(ExitCode::SUCCESS)
}
