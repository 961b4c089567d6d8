//! `vidtune demo`: clips of moving shapes rendered to real files, a tiny LLaVA trained on them in two stages, judged before and
//! after, and judged once more on shuffled frames. Owns the course of these; every step of it is what the other commands do, on
//! files that stay in the folder, so that a user can repeat each with `vidtune train`, `eval` and `generate`.

mod checkpoint;
mod clips;
mod draw;
mod questions;
mod report;
mod rng;
mod scene;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Result;
use data::{EncodeOptions, Format, MediaRef, MediaSource, OnBadMedia, Part, Processor, Role, Sample, Turn};
use infer::GenerateOptions;
use infer::tasks::{EvalOptions, Evaluation, Prediction, Task, evaluate};
use models::{LoadOptions, Model};
use serde::Serialize;
use train::plan::Plan;
use train::{Event, Resume};

use crate::console::{Console, Counter, duration};
use crate::failure::CliError;
use crate::output;
use clips::{Counts, Files};
use questions::QuestionType;
use report::{Curve, Example, Report, TypeRow};
use scene::MOMENTS;

/// Of clips, weights and orders of frames.
const SEED: u64 = 20;

/// Clips of the whole demo.
const COUNTS: Counts = Counts { stage1: 6000, order: 1500, replay: 1000, held_out: 240 };

/// What every type should reach.
const AIM: f64 = 0.95;

/// Accuracy by question type.
type Accuracies = BTreeMap<&'static str, f64>;

/// Every held-out question with its answer, by type.
type Judged = Vec<(QuestionType, Evaluation)>;

/// What `results.json` holds.
#[derive(Debug, Serialize)]
struct Results {
    /// With random weights.
    before: Accuracies,
    /// After both stages.
    after: Accuracies,
    /// After both stages, the frames of each clip in a random order.
    shuffled: Accuracies,
    /// Of someone who sees no clip.
    chance: Accuracies,
    /// Held-out clips of each type.
    num_held_out: usize,
    /// Where the accuracies of `direction` and `order` on shuffled frames lie in 99 of 100 cases if time is all that they rest on.
    chance_interval_99: (f64, f64),
    /// Seconds from the first clip to the end.
    seconds: f64,
    /// The final model's folder.
    model: PathBuf,
}

/// Runs everything into the empty or missing folder `out`.
///
/// # Errors
/// `out` holds something, a file cannot be written, or one of the steps fails.
pub fn run(out: &Path, stop: &AtomicBool, console: &Console) -> Result<()> {
    let begin = Instant::now();
    let dir = empty_folder(out)?;
    console.info(&format!("demo in `{}`", dir.display()));
    let files = make_clips(&dir, console)?;
    let base = dir.join("tiny-llava");
    checkpoint::write(&base, SEED)?;
    console.info(&format!("a LLaVA with random weights: `{}`", base.display()));
    let before = judge("before training", &base, &files, None, console)?;
    let stage1 = train_stage(&dir, "stage1", &stage1_plan(&dir, &base, &files), stop, console)?;
    let stage2 = train_stage(&dir, "stage2", &stage2_plan(&dir, &stage1, &files), stop, console)?;
    let model = dir.join("model");
    merge(&stage1, &stage2, &model)?;
    let after = judge("after training", &model, &files, None, console)?;
    let shuffled = judge("frames shuffled", &model, &files, Some(SEED), console)?;
    let judged = AllJudged { before, after, shuffled };
    let mut results = judged.results(&model);
    let asked = ask(&model, &files, console)?;
    results.seconds = begin.elapsed().as_secs_f64();
    output::write_json(Some(&dir.join("results.json")), &results)?;
    let page = dir.join("report.html");
    output::write(Some(&page), report::html(&report_of(&dir, &files, &judged, &results, &asked)?).as_bytes())?;
    tell(&results, &asked, &page, console);
    output::write_json(None, &results)
}

/// The folder, made and free of an earlier demo.
fn empty_folder(out: &Path) -> Result<PathBuf> {
    fs::create_dir_all(out).map_err(|error| CliError::io("create", out, &error))?;
    let mut entries = fs::read_dir(out).map_err(|error| CliError::io("read", out, &error))?;
    if entries.next().is_some() {
        let hint = "remove it, or choose another folder with `--out DIR`";
        return Err(CliError::usage(format!("`{}` is not empty", out.display()), hint).into());
    }
    fs::canonicalize(out).map_err(|error| CliError::io("find", out, &error).into())
}

fn make_clips(dir: &Path, console: &Console) -> Result<Files> {
    let begin = Instant::now();
    let files = clips::make(dir, &COUNTS, SEED, &|done, total| {
        if done % 50 == 0 {
            console.progress(&format!("rendering clip {done}/{total}"));
        }
    })?;
    console.clear();
    console.info(&format!("{} clips rendered in {}", files.num_clips, duration(begin.elapsed().as_secs_f64())));
    Ok(files)
}

/// All parts, on captions and simple questions.
fn stage1_plan(dir: &Path, base: &Path, files: &Files) -> String {
    format!(
        "# All parts learn from captions and simple questions.\n\
         model: {{path: {}}}\nmethod: {{kind: full}}\n\
         data:\n  train: [{{path: {}, format: conversation, media_dir: {}}}]\n  num_frames: {MOMENTS}\n\
         train:\n  output_dir: {}\n  num_train_epochs: 7\n  per_device_train_batch_size: 16\n  learning_rate: 3.0e-3\n  \
         lr_scheduler_type: cosine\n  warmup_ratio: 0.05\n  weight_decay: 0.01\n  adam_beta2: 0.98\n  max_grad_norm: 1.0\n  logging_steps: 100\n  \
         save_strategy: no\n  seed: {SEED}\n",
        quoted(base),
        quoted(&files.stage1),
        quoted(dir),
        quoted(&dir.join("stage1")),
    )
}

/// Adapters on the decoder, on a type of question that the first stage has never seen.
fn stage2_plan(dir: &Path, stage1: &Path, files: &Files) -> String {
    format!(
        "# Adapters learn a type of question that the model has never seen.\n\
         model: {{path: {}}}\n\
         method: {{kind: lora, lora: {{r: 32, lora_alpha: 64, target_modules: all-linear}}}}\n\
         data:\n  train: [{{path: {}, format: llava, media_dir: {}}}]\n  num_frames: {MOMENTS}\n\
         train:\n  output_dir: {}\n  num_train_epochs: 3\n  per_device_train_batch_size: 16\n  learning_rate: 1.0e-3\n  \
         lr_scheduler_type: cosine\n  warmup_ratio: 0.05\n  max_grad_norm: 1.0\n  logging_steps: 100\n  save_strategy: no\n  \
         seed: {SEED}\n",
        quoted(stage1),
        quoted(&files.stage2),
        quoted(dir),
        quoted(&dir.join("stage2")),
    )
}

fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

/// Writes the plan, runs it as `vidtune train` does, and gives the folder of what it exported.
fn train_stage(dir: &Path, name: &str, text: &str, stop: &AtomicBool, console: &Console) -> Result<PathBuf> {
    let path = dir.join(format!("{name}.yaml"));
    output::write(Some(&path), text.as_bytes())?;
    console.info(&format!("\n{name}: `vidtune train {}`", path.display()));
    let plan = Plan::load(&path, &[])?;
    let mut show = |event: &Event<'_>| crate::commands::train::show(event, console);
    let outcome = train::run(&plan, &Resume::Never, stop, &mut show)?;
    console.clear();
    match outcome.final_model {
        Some(folder) => Ok(folder),
        None => Err(CliError::failed(format!("the demo was stopped in {name}")).into()),
    }
}

/// Folds the adapter into the model of the first stage: one folder that needs no other.
fn merge(base: &Path, adapter: &Path, target: &Path) -> Result<()> {
    let (mut model, _) = models::load(base, &LoadOptions::default())?;
    model.load_adapter(adapter)?;
    model.merge_lora()?;
    model.save(target, u64::MAX)?;
    Ok(Processor::load(base)?.save_to(target)?)
}

/// The share of answers whose verdict is the right one, whatever the answer says before it.
fn accuracy(result: &Evaluation) -> f64 {
    let is_right = |p: &&Prediction| questions::verdict(&p.prediction) == questions::verdict(&p.reference);
    result.predictions.iter().filter(is_right).count() as f64 / result.predictions.len().max(1) as f64
}

fn judge(title: &str, model: &Path, files: &Files, shuffle: Option<u64>, console: &Console) -> Result<Judged> {
    let begin = Instant::now();
    let processor = Processor::load(model)?;
    let (model, _): (Model, _) = models::load(model, &LoadOptions::default())?;
    let options = EvalOptions {
        encode: EncodeOptions { num_frames: Some(MOMENTS), ..EncodeOptions::default() },
        batch_size: 16,
        generate: GenerateOptions {
            max_new_tokens: 20,
            eos_ids: processor.eos_ids().to_vec(),
            ..GenerateOptions::default()
        },
        on_bad_media: OnBadMedia::Stop,
        shuffle_frames: shuffle,
        max_samples: None,
    };
    let mut judged = Judged::new();
    for (question, path) in &files.held_out {
        let set = data::open_dataset(path, Format::Llava, None)?;
        let mut counter = Counter::new(console, question.name());
        judged.push((
            *question,
            evaluate(&model, &processor, &set, Task::Qa, &options, |done, total| counter.at(done, total))?,
        ));
    }
    let line: Vec<String> = judged
        .iter()
        .map(|(question, result)| format!("{} {:.1} %", question.name(), 100.0 * accuracy(result)))
        .collect();
    console.info(&format!("{title}: {} ({})", line.join(", "), duration(begin.elapsed().as_secs_f64())));
    Ok(judged)
}

/// The three judgements.
struct AllJudged {
    before: Judged,
    after: Judged,
    shuffled: Judged,
}

impl AllJudged {
    fn results(&self, model: &Path) -> Results {
        let accuracies =
            |judged: &Judged| judged.iter().map(|(question, result)| (question.name(), accuracy(result))).collect();
        Results {
            before: accuracies(&self.before),
            after: accuracies(&self.after),
            shuffled: accuracies(&self.shuffled),
            chance: QuestionType::ALL.map(|question| (question.name(), question.chance())).into(),
            num_held_out: COUNTS.held_out,
            chance_interval_99: coin_interval(COUNTS.held_out),
            seconds: 0.0,
            model: model.to_path_buf(),
        }
    }
}

/// Where the share of heads of `count` fair coins lies in at least 99 of 100 cases, half a percent left out at each end.
fn coin_interval(count: usize) -> (f64, f64) {
    let mut probability = 0.5_f64.powi(count as i32);
    let mut below = 0.0;
    let mut heads = 0;
    // From `heads` to `heads + 1`: the binomial coefficient grows by (count - heads) / (heads + 1).
    while below + probability <= 0.005 && heads < count {
        below += probability;
        probability *= (count - heads) as f64 / (heads + 1) as f64;
        heads += 1;
    }
    let low = heads as f64 / count as f64;
    (low, 1.0 - low)
}

/// One question with its answer.
struct Asked {
    video: PathBuf,
    question: String,
    answer: String,
    command: String,
}

/// Asks the trained model about the first held-out clip of the type that the second stage taught.
fn ask(model: &Path, files: &Files, console: &Console) -> Result<Asked> {
    let record = first_record(files.of(QuestionType::Order))?;
    let loaded = Processor::load(model)?;
    let (weights, _) = models::load(model, &LoadOptions::default())?;
    let parts = vec![Part::Media(MediaRef::video(&record.video)), Part::Text(record.question.clone())];
    let sample = Sample::new("prompt", vec![Turn { role: Role::User, parts }]);
    let encode = EncodeOptions { num_frames: Some(MOMENTS), add_generation_prompt: true, ..EncodeOptions::default() };
    let encoded = loaded.encode(&sample, &encode)?;
    let options =
        GenerateOptions { max_new_tokens: 20, eos_ids: loaded.eos_ids().to_vec(), ..GenerateOptions::default() };
    let ids = infer::generate(&weights, &infer::upload_encoded(&[encoded])?, &options)?
        .into_iter()
        .next()
        .unwrap_or_default();
    console.debug(&format!("asked about `{}`", record.video.display()));
    let command = format!(
        "vidtune generate --model {} --video {} --num-frames {MOMENTS} --prompt {}",
        train::export::quoted_path(model),
        train::export::quoted_path(&record.video),
        train::export::quoted(&record.question)
    );
    Ok(Asked {
        video: record.video,
        question: record.question,
        answer: loaded.decode(&ids, true)?.trim().to_owned(),
        command,
    })
}

/// What the report and the last question need of a held-out record.
struct HeldOut {
    video: PathBuf,
    question: String,
    answer: String,
}

fn first_record(path: &Path) -> Result<HeldOut> {
    let mut records = held_out_records(path)?;
    match records.is_empty() {
        false => Ok(records.swap_remove(0)),
        true => Err(CliError::failed(format!("`{}` holds no record", path.display())).into()),
    }
}

fn held_out_records(path: &Path) -> Result<Vec<HeldOut>> {
    let set = data::open_dataset(path, Format::Llava, None)?;
    let record = |index: u64| -> Result<HeldOut> {
        let sample = set.get(index)?;
        let video = sample.media().find_map(|medium| match &medium.source {
            MediaSource::Path(path) => Some(path.clone()),
            _ => None,
        });
        let video = video.unwrap_or_default();
        let text = |role: Role| {
            sample.conversation.iter().find(|turn| turn.role == role).map(|turn| turn.joined_text().trim().to_owned())
        };
        Ok(HeldOut {
            video,
            question: text(Role::User).unwrap_or_default(),
            answer: text(Role::Assistant).unwrap_or_default(),
        })
    };
    (0..set.len()).map(record).collect()
}

/// Clips of each type that the report shows.
const SHOWN: usize = 3;

fn report_of(dir: &Path, files: &Files, judged: &AllJudged, results: &Results, asked: &Asked) -> Result<Report> {
    let row = |question: QuestionType| {
        let of = |accuracies: &Accuracies| accuracies.get(question.name()).copied().unwrap_or(0.0);
        TypeRow {
            name: question.name(),
            before: of(&results.before),
            after: of(&results.after),
            shuffled: of(&results.shuffled),
            chance: question.chance(),
            needs_time: question.needs_time(),
        }
    };
    let mut examples = Vec::new();
    for (index, (question, path)) in files.held_out.iter().enumerate() {
        let answer = |judged: &Judged, at: usize| {
            judged[index].1.predictions.get(at).map(|p| p.prediction.clone()).unwrap_or_default()
        };
        for (at, record) in held_out_records(path)?.into_iter().enumerate().take(SHOWN) {
            let (sheet, file) = report::contact_sheet(&record.video)?;
            examples.push(Example {
                question_type: question.name(),
                sheet,
                file,
                question: record.question,
                reference: record.answer,
                before: answer(&judged.before, at),
                after: answer(&judged.after, at),
                shuffled: answer(&judged.shuffled, at),
            });
        }
    }
    let curve = |name: &str, title: &str| -> Result<Curve> {
        Ok(Curve { title: title.to_owned(), steps: train::read_metrics(&dir.join(name).join("metrics.jsonl"))? })
    };
    let curves = vec![
        curve("stage1", "Stage 1: all parts, on captions and simple questions")?,
        curve("stage2", "Stage 2: LoRA on the decoder, on a type of question not seen before")?,
    ];
    let steps = curves.iter().map(|curve| curve.steps.len()).sum::<usize>();
    let facts = [
        ("time from nothing to this page", duration(results.seconds)),
        ("video files rendered", files.num_clips.to_string()),
        ("training steps", steps.to_string()),
        ("processor threads", rayon::current_num_threads().to_string()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    let plan = |name: &str| train::export::quoted_path(&dir.join(name));
    let commands = [
        ("Ask the model about a clip:".to_owned(), asked.command.clone()),
        (
            "Judge it again:".to_owned(),
            format!(
                "vidtune eval --model {} --data {} --num-frames {MOMENTS} --task qa --out results-order.json",
                train::export::quoted_path(&results.model),
                train::export::quoted_path(files.of(QuestionType::Order))
            ),
        ),
        (
            "Train a stage again, with changes:".to_owned(),
            format!("vidtune train {} train.output_dir=again train.seed=1", plan("stage1.yaml")),
        ),
        (
            "Load it in Python:".to_owned(),
            format!(
                "from transformers import AutoModelForImageTextToText, AutoProcessor\nmodel = AutoModelForImageTextToText.from_pretrained({0:?})\nprocessor = AutoProcessor.from_pretrained({0:?})",
                results.model.to_string_lossy()
            ),
        ),
    ];
    Ok(Report {
        rows: QuestionType::ALL.map(row).into(),
        num_held_out: results.num_held_out,
        interval: results.chance_interval_99,
        curves,
        examples,
        facts: facts.map(|(name, value)| (name.to_owned(), value)).into(),
        commands: commands.into(),
    })
}

/// The outcome for people, what falls short included.
fn tell(results: &Results, asked: &Asked, page: &Path, console: &Console) {
    let mut text = format!("\n{:<10} {:>8} {:>8} {:>9} {:>8}\n", "type", "before", "after", "shuffled", "chance");
    for question in QuestionType::ALL {
        let percent = |accuracies: &Accuracies| {
            format!("{:.1} %", 100.0 * accuracies.get(question.name()).copied().unwrap_or(0.0))
        };
        text.push_str(&format!(
            "{:<10} {:>8} {:>8} {:>9} {:>8}\n",
            question.name(),
            percent(&results.before),
            percent(&results.after),
            percent(&results.shuffled),
            percent(&results.chance)
        ));
    }
    console.info(&text);
    for question in QuestionType::ALL {
        let after = results.after.get(question.name()).copied().unwrap_or(0.0);
        if after < AIM {
            console.warning(&format!(
                "`{}` falls short of {:.0} %: {:.1} %",
                question.name(),
                100.0 * AIM,
                100.0 * after
            ));
        }
        let shuffled = results.shuffled.get(question.name()).copied().unwrap_or(0.0);
        let (low, high) = results.chance_interval_99;
        if question.needs_time() && !(low..=high).contains(&shuffled) {
            console.warning(&format!(
                "`{}` on shuffled frames is {:.1} %, outside of {:.1} % to {:.1} %, where chance lies in 99 of 100 cases",
                question.name(),
                100.0 * shuffled,
                100.0 * low,
                100.0 * high
            ));
        }
    }
    console.info(&format!("`{}`\n  {}\n  {}\n", asked.video.display(), asked.question, asked.answer));
    console.info(&format!("Ask it yourself:\n  {}\n", asked.command));
    console.info(&format!(
        "{} in all; look at `{}`; the model is in `{}`",
        duration(results.seconds),
        page.display(),
        results.model.display()
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_coins_is_the_binomial_one() {
        // From scipy.stats.binom: for 240, ppf(0.005) is 100; for 20, it is 4; for 2, nothing can be left out.
        assert_eq!(coin_interval(240), (100.0 / 240.0, 1.0 - 100.0 / 240.0));
        assert_eq!(coin_interval(20), (0.2, 0.8));
        assert_eq!(coin_interval(2), (0.0, 1.0));
    }

    #[test]
    fn the_plans_are_plans() {
        let dir = Path::new("/d");
        let files =
            Files { stage1: dir.join("a.json"), stage2: dir.join("b.jsonl"), held_out: Vec::new(), num_clips: 0 };
        for text in [stage1_plan(dir, &dir.join("m"), &files), stage2_plan(dir, &dir.join("m \"x\""), &files)] {
            if let Err(error) = Plan::from_yaml(&text, &[]) {
                panic!("{error}\n{text}");
            }
        }
    }

    #[test]
    fn a_folder_with_content_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(empty_folder(&dir.path().join("new")).is_ok());
        fs::write(dir.path().join("mine.txt"), "x").unwrap();
        let error = empty_folder(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("is not empty"), "{error}");
    }
}
