//! `vidtune eval`: a model judged on a dataset, by flags or as a plan's run left it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use data::{Dataset, EncodeOptions, OnBadMedia};
use infer::GenerateOptions;
use infer::tasks::{EvalOptions, Evaluation, Task, evaluate};
use train::plan::Plan;

use crate::args::{Common, EvalArgs};
use crate::console::{Console, Counter};
use crate::failure::CliError;
use crate::model_args::{beams, check_languages, encode_options, generation_rules, load, open_set, with_languages};
use crate::output;

/// What is judged on what.
struct Target {
    model: String,
    adapter: Option<PathBuf>,
    dataset: Dataset,
    encode: EncodeOptions,
}

/// Runs the command.
///
/// # Errors
/// Model or dataset cannot be opened, a record is refused (unless `--skip-bad-media`), a record does not fit the task.
pub fn run(args: &EvalArgs, common: &Common, console: &Console) -> Result<ExitCode> {
    let task: Task = args.task.parse()?;
    if args.batch_size == 0 {
        return Err(CliError::usage("`--batch-size 0`: expected at least 1", "leave it out for 4").into());
    }
    let target = match (&args.plan, &args.model.model) {
        (Some(plan), _) => from_plan(plan, args)?,
        (None, Some(model)) => from_flags(model, args)?,
        (None, None) => unreachable!("the parser requires one of the two"),
    };
    let loaded = load(&target.model, target.adapter.as_deref(), common, console)?;
    check_languages(&loaded.processor, &args.languages)?;
    let options = EvalOptions {
        encode: with_languages(target.encode, &args.languages),
        batch_size: args.batch_size,
        generate: GenerateOptions {
            max_new_tokens: args.max_new_tokens.unwrap_or(match task {
                Task::Summary | Task::Story => 256,
                _ => 64,
            }),
            eos_ids: loaded.processor.eos_ids().to_vec(),
            rules: generation_rules(&loaded, console)?,
            beams: beams(&args.beams, &loaded, console)?,
            ..GenerateOptions::default()
        },
        on_bad_media: if args.skip_bad_media { OnBadMedia::Skip } else { OnBadMedia::Stop },
        shuffle_frames: args.shuffle_frames.then_some(args.seed),
        max_samples: args.set.max_samples,
    };
    let mut counter = Counter::new(console, "records");
    let progress = |done, total| counter.at(done, total);
    let results = evaluate(&loaded.model, &loaded.processor, &target.dataset, task, &options, progress)?;
    output::write_json(args.out.as_deref(), &results)?;
    tell(&results, args.out.as_deref(), console);
    Ok(ExitCode::SUCCESS)
}

fn from_flags(model: &str, args: &EvalArgs) -> Result<Target> {
    let Some(data) = &args.data else {
        unreachable!("the parser requires a dataset where there is no plan");
    };
    Ok(Target {
        model: model.to_owned(),
        adapter: args.model.adapter.clone(),
        dataset: open_set(data, &args.set)?,
        encode: encode_options(&args.frames)?,
    })
}

/// The model that the plan's run exported, on the plan's evaluation set, with the plan's frames; flags win.
fn from_plan(path: &Path, args: &EvalArgs) -> Result<Target> {
    let plan = Plan::load(path, &[])?;
    let folder = plan.output_dir().join("final_model");
    if !folder.is_dir() {
        return Err(CliError::usage(
            format!("`{}` does not exist", folder.display()),
            format!("train first: `vidtune train {}`, or name a model with `--model`", path.display()),
        )
        .into());
    }
    let is_adapter = folder.join("adapter_config.json").is_file();
    let base = plan.base_model();
    let (model, adapter) =
        if is_adapter { (base, Some(folder)) } else { (folder.to_string_lossy().into_owned(), None) };
    let dataset = match &args.data {
        Some(data) => open_set(data, &args.set)?,
        None => plan.data.open_eval()?,
    };
    let (flags, planned) = (encode_options(&args.frames)?, plan.data.encode_options()?);
    let (num_frames, fps) = match (flags.num_frames, flags.fps) {
        (None, None) => (planned.num_frames, planned.fps),
        given => given,
    };
    let max_frames = flags.max_frames.or(planned.max_frames);
    let encode = EncodeOptions { num_frames, fps, max_frames, rule: flags.rule.or(planned.rule), ..planned };
    Ok(Target { model, adapter, dataset, encode })
}

fn tell(results: &Evaluation, out: Option<&Path>, console: &Console) {
    for skipped in &results.skipped {
        console.warning(&format!("left out: {}", skipped.message));
    }
    let noted = results.noted.iter().map(|record| (record.id.as_str(), record.notes.as_slice()));
    output::tell_notes(noted, "the results", console);
    let metrics: Vec<String> = results.metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    let place = out.map(|out| format!("; results in `{}`", out.display())).unwrap_or_default();
    console.info(&format!(
        "{}: {} ({} records, {} answers, {} left out){place}",
        results.task,
        metrics.join(", "),
        results.num_records,
        results.num_answers,
        results.skipped.len()
    ));
}
