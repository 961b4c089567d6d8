//! `vidtune init`: a plan file to start from, alone or with a dataset made from a folder of videos and their captions.

mod captions;
pub mod preset;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use crate::args::InitArgs;
use crate::console::Console;
use crate::failure::CliError;
use crate::output;
use captions::{find_captions, find_video, read_captions};
use preset::{PlanText, Preset, quoted};

/// Runs the command; files that are there already are never overwritten.
///
/// # Errors
/// A target exists, the captions cannot be read, or they name no video of the folder.
pub fn run(args: &InitArgs, console: &Console) -> Result<ExitCode> {
    match (&args.preset, &args.data) {
        (Some(name), _) => from_preset(Preset::named(name)?, args, console),
        (None, Some(dir)) => from_folder(dir, args, console),
        (None, None) => unreachable!("the parser requires one of the two"),
    }
}

fn from_preset(preset: Preset, args: &InitArgs, console: &Console) -> Result<ExitCode> {
    let plan = args.out.clone().unwrap_or_default().join("plan.yaml");
    let settings = PlanText {
        preset,
        model: args.model.clone(),
        train: "data/train.jsonl".to_owned(),
        eval: None,
        output_dir: "runs/first".to_owned(),
        records: None,
    };
    create(&plan, settings.text().as_bytes())?;
    console.info(&format!("wrote `{}`; put your checkpoint and dataset into it, then:", plan.display()));
    console.info(&format!("  vidtune plan {0}\n  vidtune train {0}", plan.display()));
    output::write(None, format!("{}\n", plan.display()).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn from_folder(dir: &Path, args: &InitArgs, console: &Console) -> Result<ExitCode> {
    if !(0.0..1.0).contains(&args.eval_ratio) {
        let message = format!("`--eval-ratio {}`: expected at least 0 and less than 1", args.eval_ratio);
        return Err(CliError::usage(message, "0.1 keeps a tenth of the records for evaluation").into());
    }
    if !dir.is_dir() {
        return Err(CliError::usage(format!("`{}` is not a folder", dir.display()), "give the folder of videos").into());
    }
    let captions = match &args.captions {
        Some(path) => path.clone(),
        None => find_captions(dir)?,
    };
    let pairs = read_captions(&captions)?;
    let mut records = Vec::new();
    for (number, pair) in pairs.iter().enumerate() {
        let video = find_video(dir, &pair.file).ok_or_else(|| {
            CliError::data(
                format!(
                    "`{}`, {}: there is no video `{}` in `{}`",
                    captions.display(),
                    pair.place,
                    pair.file,
                    dir.display()
                ),
                "correct the name, or take the line out",
            )
        })?;
        if pair.caption.trim().is_empty() {
            let message = format!("`{}`, {}: `{}` has an empty caption", captions.display(), pair.place, pair.file);
            return Err(CliError::data(message, "write a caption, or take the line out").into());
        }
        records.push(json!({
            "id": format!("{number:06}"),
            "video": video,
            "conversations": [
                {"from": "human", "value": format!("<video>\n{}", args.prompt)},
                {"from": "gpt", "value": pair.caption.trim()},
            ],
        }));
    }
    let out = args.out.clone().unwrap_or_else(|| dir.to_path_buf());
    let (train_records, eval_records) = split(records, args.eval_ratio);
    let files = [("train.jsonl", &train_records), ("eval.jsonl", &eval_records)];
    let absolute = std::path::absolute(dir).map_err(|e| CliError::io("resolve", dir, &e))?;
    let plan = out.join("plan.yaml");
    for path in files.iter().map(|(name, _)| out.join(name)).chain([plan.clone()]) {
        refuse_existing(&path)?;
    }
    for (name, records) in files.iter().filter(|(_, records)| !records.is_empty()) {
        let text: String = records.iter().map(|record| format!("{record}\n")).collect();
        create(&out.join(name), text.as_bytes())?;
    }
    let entry = |name: &str| {
        let media =
            if out == dir { String::new() } else { format!(", media_dir: {}", quoted(&absolute.to_string_lossy())) };
        format!("{{path: {}{media}}}", quoted(&out.join(name).to_string_lossy()))
    };
    let settings = PlanText {
        preset: Preset::LORA,
        model: args.model.clone(),
        train: entry("train.jsonl"),
        eval: (!eval_records.is_empty()).then(|| entry("eval.jsonl")),
        output_dir: out.join("run").to_string_lossy().into_owned(),
        records: Some(train_records.len()),
    };
    create(&plan, settings.text().as_bytes())?;
    console.info(&format!(
        "{} records for training, {} for evaluation, plan in `{}`",
        train_records.len(),
        eval_records.len(),
        plan.display()
    ));
    if args.model.is_none() {
        console.info("put your checkpoint into `model.path`, or pass it: vidtune train PLAN model.path=DIR");
    }
    console.info(&format!("next:\n  vidtune plan {0}\n  vidtune train {0}", plan.display()));
    output::write(None, format!("{}\n", plan.display()).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Every n-th record is kept for evaluation, so that a sorted list gives both parts the same mixture.
fn split(records: Vec<Value>, ratio: f64) -> (Vec<Value>, Vec<Value>) {
    let (mut train, mut eval) = (Vec::new(), Vec::new());
    let mut taken = 0.0;
    for (number, record) in records.into_iter().enumerate() {
        let due = (number + 1) as f64 * ratio;
        if due - taken >= 1.0 {
            taken += 1.0;
            eval.push(record);
        } else {
            train.push(record);
        }
    }
    (train, eval)
}

fn refuse_existing(path: &Path) -> Result<()> {
    if path.exists() {
        let message = format!("`{}` exists already", path.display());
        return Err(CliError::usage(message, "move it away, or write elsewhere with `--out DIR`").into());
    }
    Ok(())
}

fn create(path: &Path, bytes: &[u8]) -> Result<()> {
    refuse_existing(path)?;
    output::write(Some(path), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_kept_for_evaluation() {
        let records: Vec<Value> = (0..20).map(Value::from).collect();
        let (train, eval) = split(records.clone(), 0.1);
        assert_eq!((train.len(), eval), (18, vec![Value::from(9), Value::from(19)]));
        assert_eq!(split(records, 0.0).1.len(), 0);
    }
}
