//! `vidtune data check`: every record and its media read once, and what would be refused, by cause.

use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;

use anyhow::Result;
use data::{DataError, Dataset, EncodeOptions, MediaKind, MediaRef, MediaSource, OnLong, Processor};
use rayon::prelude::*;
use serde::Serialize;

use crate::args::CheckArgs;
use crate::console::{Console, Counter};
use crate::failure::Exit;
use crate::model_args::{check_languages, encode_options, num_records, open_set, resolve, with_languages};
use crate::output;

/// Refused records listed on the terminal; the report holds all of them.
const SHOWN: usize = 10;

#[derive(Debug, Serialize)]
struct Report {
    data: String,
    format: &'static str,
    records: u64,
    accepted: u64,
    /// Number of refused records by cause.
    by_reason: BTreeMap<String, u64>,
    refused: Vec<Refused>,
    /// Accepted records that would not be used as they were asked for.
    noted: Vec<Noted>,
    /// Ids that stand at more than one record, with the number of records.
    repeated_ids: BTreeMap<String, u64>,
    /// With `--model`: what the accepted records hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Tokens>,
}

#[derive(Debug, Serialize)]
struct Refused {
    id: String,
    index: u64,
    reason: String,
    message: String,
}

#[derive(Debug, Serialize)]
struct Noted {
    id: String,
    index: u64,
    notes: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
struct Tokens {
    input: u64,
    supervised: u64,
    pictures: u64,
    longest: u64,
    longest_id: String,
}

/// What a record that was accepted holds.
#[derive(Default)]
struct Facts {
    input: u64,
    supervised: u64,
    pictures: u64,
    notes: Vec<String>,
}

/// Runs the command; exit code 3 when a record is refused.
///
/// # Errors
/// The dataset cannot be opened at all, or the report cannot be written.
pub fn run(args: &CheckArgs, console: &Console) -> Result<ExitCode> {
    let options = EncodeOptions {
        max_length: args.max_length,
        on_long: if args.max_length.is_some() { OnLong::Refuse } else { OnLong::default() },
        ..encode_options(&args.frames)?
    };
    let options = with_languages(options, &args.languages);
    let dataset = open_set(&args.data, &args.set)?;
    let processor = match &args.model {
        Some(model) => Some(Processor::load(&resolve(model, console)?)?),
        None => None,
    };
    if let Some(processor) = &processor {
        check_languages(processor, &args.languages)?;
    }
    let total = num_records(&dataset, &args.set);
    let mut report = Report {
        data: args.data.to_string_lossy().into_owned(),
        format: dataset.format().name(),
        records: total,
        accepted: 0,
        by_reason: BTreeMap::new(),
        refused: Vec::new(),
        noted: Vec::new(),
        repeated_ids: BTreeMap::new(),
        tokens: processor.is_some().then(Tokens::default),
    };
    let mut seen: HashMap<String, u64> = HashMap::new();
    let mut counter = Counter::new(console, "records");
    const GROUP: usize = 64;
    for start in (0..total).step_by(GROUP) {
        let end = (start + GROUP as u64).min(total);
        let check = |index| check(&dataset, index, processor.as_ref(), &options, !args.no_media);
        let checked: Vec<_> = (start..end).into_par_iter().map(check).collect();
        for (index, result) in (start..end).zip(checked) {
            // A machine that cannot read videos says nothing about the records.
            let result = match result {
                Err(error @ DataError::Media { .. }) if !error.is_one_record() => return Err(error.into()),
                result => result,
            };
            let id = dataset.id(index);
            *seen.entry(id.clone()).or_default() += 1;
            report.add(id, index, result);
        }
        counter.at(end, total);
    }
    report.repeated_ids = seen.into_iter().filter(|(_, count)| *count > 1).collect();
    output::write_json(args.out.as_deref(), &report)?;
    Ok(report.tell(console))
}

fn check(
    dataset: &Dataset,
    index: u64,
    processor: Option<&Processor>,
    options: &EncodeOptions,
    open_media: bool,
) -> Result<Facts, DataError> {
    let sample = dataset.get(index)?;
    if let Some(processor) = processor {
        let encoded = processor.encode(&sample, options)?;
        return Ok(Facts {
            input: encoded.ids.len() as u64,
            supervised: encoded.num_supervised() as u64,
            pictures: encoded.num_images as u64,
            notes: encoded.notes,
        });
    }
    let mut facts = Facts::default();
    if open_media {
        for reference in sample.media() {
            check_source(reference, options, &mut facts.notes).map_err(|source| DataError::media(&sample, source))?;
        }
    }
    Ok(facts)
}

/// Opens a medium, as training would, far enough to know that its frames can be found. Addresses are not fetched.
fn check_source(
    reference: &MediaRef,
    options: &EncodeOptions,
    notes: &mut Vec<String>,
) -> Result<(), media::MediaError> {
    let limits = &options.limits;
    match &reference.source {
        MediaSource::Url(_) => Ok(()),
        MediaSource::Files(files) => files.iter().try_for_each(|file| media::load_image(file, limits).map(|_| ())),
        MediaSource::Path(path) if reference.kind == MediaKind::Image => media::load_image(path, limits).map(|_| ()),
        MediaSource::Path(path) if reference.kind == MediaKind::Audio => {
            let index = media::index_audio(path, limits)?;
            let track = media::decode_audio(&index, (reference.start, reference.end), limits)?;
            notes.extend(track.warnings.iter().map(|warning| format!("`{}`: {}", path.display(), warning.message)));
            Ok(())
        }
        MediaSource::Path(path) if path.is_dir() => {
            let files = media::list_frame_folder(path)?;
            files.iter().try_for_each(|file| media::load_image(file, limits).map(|_| ()))
        }
        MediaSource::Path(path) => {
            let index = media::index_video(path, limits)?;
            notes.extend(index.warnings.iter().map(|warning| format!("`{}`: {}", media::shown(path), warning.message)));
            // The last frame is where a cut file fails.
            let frames = media::decode_frames(&index, &[0, index.num_frames() - 1], limits)?;
            for frame in frames.iter().filter(|frame| frame.damaged) {
                let place = format!("frame {} at {:.3} s", frame.index, frame.seconds);
                notes.push(format!("`{}`: {place} is damaged in the file", media::shown(path)));
            }
            Ok(())
        }
    }
}

impl Report {
    fn add(&mut self, id: String, index: u64, result: Result<Facts, DataError>) {
        match result {
            Ok(facts) => {
                self.accepted += 1;
                if !facts.notes.is_empty() {
                    self.noted.push(Noted { id: id.clone(), index, notes: facts.notes });
                }
                if let Some(tokens) = &mut self.tokens {
                    tokens.input += facts.input;
                    tokens.supervised += facts.supervised;
                    tokens.pictures += facts.pictures;
                    if facts.input > tokens.longest {
                        (tokens.longest, tokens.longest_id) = (facts.input, id);
                    }
                }
            }
            Err(error) => {
                *self.by_reason.entry(error.reason().to_owned()).or_default() += 1;
                self.refused.push(Refused { id, index, reason: error.reason().to_owned(), message: error.to_string() });
            }
        }
    }

    fn tell(&self, console: &Console) -> ExitCode {
        for refused in self.refused.iter().take(SHOWN) {
            console.warning(&refused.message);
        }
        if let Some(more) = self.refused.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            console.warning(&format!("{more} more are in the report"));
        }
        let noted = self.noted.iter().map(|noted| (noted.id.as_str(), noted.notes.as_slice()));
        output::tell_notes(noted, "the report", console);
        if !self.repeated_ids.is_empty() {
            console.warning(&format!("{} ids stand at more than one record", self.repeated_ids.len()));
        }
        let causes: Vec<String> = self.by_reason.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let causes = if causes.is_empty() { String::new() } else { format!(" ({})", causes.join(", ")) };
        let noted = match self.noted.len() {
            0 => String::new(),
            count => format!(", {count} of them with notes"),
        };
        console.info(&format!("{} of {} records accepted{noted}{causes}", self.accepted, self.records));
        if self.refused.is_empty() { ExitCode::SUCCESS } else { Exit::Data.into() }
    }
}
