//! Evaluation tasks: each answer of a record is asked for again, given the true dialogue before it, and judged. Owns the
//! way from records to judged answers; the measures themselves are `metrics`.

use crate::error::{InferError, Result};
use crate::generate::{GenerateOptions, generate};
use crate::input::upload_encoded;
use crate::metrics::{self, Classification};
use crate::score::{Score, score_batch};
use data::{Dataset, EncodeOptions, Encoded, OnBadMedia, Processor, Role, Sample, collate};
use models::Model;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

/// What is asked of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Mean negative log-likelihood of the supervised tokens.
    Loss,
    /// Exact match after normalisation.
    Qa,
    /// The letter of the chosen option.
    Mcq,
    /// A class name: accuracy over all and by class.
    Classify,
    /// A description of the clip: BLEU, ROUGE-L, CIDEr.
    Caption,
    /// A summary: as a caption.
    Summary,
    /// A story: as a caption.
    Story,
}

impl Task {
    /// Every task with its name on the command line.
    pub const ALL: [(&'static str, Task); 7] = [
        ("loss", Task::Loss),
        ("caption", Task::Caption),
        ("qa", Task::Qa),
        ("mcq", Task::Mcq),
        ("classify", Task::Classify),
        ("summary", Task::Summary),
        ("story", Task::Story),
    ];

    /// The task's name.
    pub fn name(self) -> &'static str {
        Task::ALL.iter().find(|(_, t)| *t == self).map_or("loss", |(n, _)| n)
    }
}

impl std::str::FromStr for Task {
    type Err = InferError;

    fn from_str(s: &str) -> Result<Task> {
        match Task::ALL.iter().find(|(n, _)| *n == s) {
            Some((_, t)) => Ok(*t),
            None => Err(InferError::Option {
                option: "task",
                expected: "loss, caption, qa, mcq, classify, summary or story",
                found: s.into(),
            }),
        }
    }
}

/// Options of [`evaluate`].
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// Frames, lengths and limits.
    pub encode: EncodeOptions,
    /// Answers generated at a time.
    pub batch_size: usize,
    /// How answers are generated.
    pub generate: GenerateOptions,
    /// What happens to a record that cannot be read.
    pub on_bad_media: OnBadMedia,
    /// A control for the use of time: the frames of every clip are put in a random order with this seed.
    pub shuffle_frames: Option<u64>,
    /// At most this many records, from the first.
    pub max_samples: Option<u64>,
}

/// One judged answer.
#[derive(Debug, Clone, Serialize)]
pub struct Prediction {
    /// The record's id.
    pub id: String,
    /// Which of the record's turns, counted from 0.
    pub turn: usize,
    /// The model's answer.
    pub prediction: String,
    /// The record's answer.
    pub reference: String,
    /// Whether it counts as right, where the task has a right and a wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correct: Option<bool>,
}

/// A record that was left out.
#[derive(Debug, Clone, Serialize)]
pub struct SkippedRecord {
    /// The record's id.
    pub id: String,
    /// Short word.
    pub reason: String,
    /// The whole message.
    pub message: String,
}

/// A record that was judged, although not on what was asked for.
#[derive(Debug, Clone, Serialize)]
pub struct NotedRecord {
    /// The record's id.
    pub id: String,
    /// A clip cut short, damaged frames, fewer frames.
    pub notes: Vec<String>,
}

/// The outcome of a task.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// Name of the task.
    pub task: &'static str,
    /// Records judged.
    pub num_records: u64,
    /// Answers judged.
    pub num_answers: usize,
    /// Measures by name; accuracies lie in 0..1.
    pub metrics: BTreeMap<String, f64>,
    /// Scores by class (`classify`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
    /// Each answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub predictions: Vec<Prediction>,
    /// Each record's score (`loss`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<Score>,
    /// Records left out, with the reason.
    pub skipped: Vec<SkippedRecord>,
    /// Records judged on something else than was asked for.
    pub noted: Vec<NotedRecord>,
}

/// A question on its way to the model.
struct Item {
    id: String,
    turn: usize,
    reference: String,
    options: Vec<String>,
    encoded: Encoded,
}

/// Judges a model on every record of a dataset; `progress(done, total)` counts records.
pub fn evaluate(
    model: &Model,
    processor: &Processor,
    dataset: &Dataset,
    task: Task,
    options: &EvalOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<Evaluation> {
    let total = options.max_samples.map_or(dataset.len(), |m| m.min(dataset.len()));
    let mut out = Evaluation {
        task: task.name(),
        num_records: 0,
        num_answers: 0,
        metrics: BTreeMap::new(),
        classification: None,
        predictions: Vec::new(),
        scores: Vec::new(),
        skipped: Vec::new(),
        noted: Vec::new(),
    };
    let step = options.batch_size.max(1) as u64;
    let mut start = 0;
    while start < total {
        let end = (start + step).min(total);
        let read: Vec<_> =
            (start..end).into_par_iter().map(|i| (i, read_items(processor, dataset, i, task, options))).collect();
        let mut items = Vec::new();
        for (i, result) in read {
            match result {
                Ok(list) => {
                    out.num_records += 1;
                    // The items of a record share its media.
                    if let Some(item) = list.iter().find(|item| !item.encoded.notes.is_empty()) {
                        out.noted.push(NotedRecord { id: item.id.clone(), notes: item.encoded.notes.clone() });
                    }
                    items.extend(list);
                }
                Err(InferError::Data(e)) if options.on_bad_media == OnBadMedia::Skip => {
                    out.skipped.push(SkippedRecord {
                        id: dataset.id(i),
                        reason: e.reason().into(),
                        message: e.to_string(),
                    });
                }
                Err(e) => return Err(e),
            }
        }
        for chunk in items.chunks(step as usize) {
            match task {
                Task::Loss => {
                    let encoded: Vec<Encoded> = chunk.iter().map(|i| i.encoded.clone()).collect();
                    out.scores.extend(score_batch(model, &collate(&encoded)?)?);
                }
                _ => answer(model, processor, task, chunk, options, &mut out)?,
            }
        }
        start = end;
        progress(start, total);
    }
    summarise(task, &mut out)?;
    Ok(out)
}

fn read_items(
    processor: &Processor,
    dataset: &Dataset,
    index: u64,
    task: Task,
    options: &EvalOptions,
) -> Result<Vec<Item>> {
    let sample = dataset.get(index)?;
    let encode = |sample: &Sample, prompt: bool| -> Result<Encoded> {
        let encode = EncodeOptions { add_generation_prompt: prompt, ..options.encode.clone() };
        let mut encoded = processor.encode(sample, &encode)?;
        if let Some(seed) = options.shuffle_frames {
            shuffle_frames(processor, &mut encoded, seed);
        }
        Ok(encoded)
    };
    if task == Task::Loss {
        return Ok(vec![Item {
            id: sample.id.clone(),
            turn: 0,
            reference: String::new(),
            options: Vec::new(),
            encoded: encode(&sample, false)?,
        }]);
    }
    let mut items = Vec::new();
    for (turn, t) in sample.conversation.iter().enumerate().filter(|(_, t)| t.role == Role::Assistant) {
        let prompt = Sample { conversation: sample.conversation[..turn].to_vec(), ..sample.clone() };
        let reference = t.joined_text().trim().to_owned();
        let options = match task {
            Task::Mcq => options_of(&prompt, &reference)?,
            _ => Vec::new(),
        };
        items.push(Item { id: sample.id.clone(), turn, reference, options, encoded: encode(&prompt, true)? });
    }
    if items.is_empty() {
        return Err(InferError::Task {
            task: task.name(),
            id: sample.id,
            reason: "has no assistant turn to judge against".into(),
        });
    }
    Ok(items)
}

fn answer(
    model: &Model,
    processor: &Processor,
    task: Task,
    items: &[Item],
    options: &EvalOptions,
    out: &mut Evaluation,
) -> Result<()> {
    let encoded: Vec<Encoded> = items.iter().map(|i| i.encoded.clone()).collect();
    let answers = generate(model, &upload_encoded(&encoded)?, &options.generate)?;
    for (item, ids) in items.iter().zip(answers) {
        let prediction = processor.decode(&ids, true)?.trim().to_owned();
        let correct = match task {
            Task::Qa => Some(metrics::exact_match(&[&item.reference], &prediction)),
            Task::Mcq => {
                let chosen = metrics::choice_letter(&prediction, &item.options);
                Some(chosen.is_some() && chosen == metrics::choice_letter(&item.reference, &item.options))
            }
            _ => None,
        };
        let reference = item.reference.clone();
        out.predictions.push(Prediction { id: item.id.clone(), turn: item.turn, prediction, reference, correct });
    }
    Ok(())
}

/// Puts the pictures of every clip in a random order that depends on the seed and the record's position.
fn shuffle_frames(processor: &Processor, encoded: &mut Encoded, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(encoded.index);
    let mut order: Vec<usize> = (0..encoded.num_images).collect();
    let mut start = 0;
    for clip in encoded.frames.chunk_by(|a, b| a.media == b.media) {
        order[start..start + clip.len()].shuffle(&mut rng);
        start += clip.len();
    }
    processor.reorder_pictures(encoded, &order);
}

/// The options that a question lists, a line each: `A. …`, `(A) …`, `A) …` or `A: …`, from A without a gap.
fn options_of(prompt: &Sample, reference: &str) -> Result<Vec<String>> {
    let text: String =
        prompt.conversation.iter().rev().find(|t| t.role == Role::User).map(|t| t.joined_text()).unwrap_or_default();
    let mut options = Vec::new();
    for line in text.lines().map(str::trim) {
        let expected = char::from(b'A' + options.len().min(25) as u8);
        let rest = line.strip_prefix('(').unwrap_or(line).strip_prefix(expected);
        if let Some(rest) = rest.and_then(|r| r.strip_prefix(['.', ')', ':'])) {
            options.push(rest.trim().to_owned());
        }
    }
    let fail = |reason: String| InferError::Task { task: "mcq", id: prompt.id.clone(), reason };
    if options.len() < 2 {
        return Err(fail("lists no options; expected lines `A. …`, `B. …` in the question".into()));
    }
    if metrics::choice_letter(reference, &options).is_none() {
        return Err(fail(format!("the answer `{reference}` names none of the {} options", options.len())));
    }
    Ok(options)
}

fn summarise(task: Task, out: &mut Evaluation) -> Result<()> {
    out.num_answers = out.predictions.len().max(out.scores.len());
    if out.num_answers == 0 {
        return Ok(());
    }
    let mut set = |name: &str, value: f64| out.metrics.insert(name.into(), value);
    match task {
        Task::Loss => {
            let sum: f64 = out.scores.iter().map(|s| s.loss_sum).sum();
            let tokens: usize = out.scores.iter().map(|s| s.num_tokens).sum();
            set("num_tokens", tokens as f64);
            if tokens > 0 {
                set("loss", sum / tokens as f64);
                set("perplexity", (sum / tokens as f64).exp());
            }
        }
        Task::Qa | Task::Mcq => {
            let right = out.predictions.iter().filter(|p| p.correct == Some(true)).count();
            set(if task == Task::Qa { "exact_match" } else { "accuracy" }, right as f64 / out.predictions.len() as f64);
        }
        Task::Classify => {
            let mut labels: Vec<String> = out.predictions.iter().map(|p| p.reference.clone()).collect();
            labels.sort();
            labels.dedup();
            let truth: Vec<&str> = out.predictions.iter().map(|p| p.reference.as_str()).collect();
            let named: Vec<Option<&str>> = out
                .predictions
                .iter()
                .map(|p| metrics::match_label(&p.prediction, &labels).map(|i| labels[i].as_str()))
                .collect();
            let scores = metrics::classification(&truth, &named)?;
            set("accuracy", scores.accuracy);
            set("macro_f1", scores.macro_f1);
            let correct: Vec<bool> = truth.iter().zip(&named).map(|(t, n)| Some(*t) == *n).collect();
            for (p, right) in out.predictions.iter_mut().zip(correct) {
                p.correct = Some(right);
            }
            out.classification = Some(scores);
        }
        Task::Caption | Task::Summary | Task::Story => {
            let references: Vec<Vec<&str>> = out.predictions.iter().map(|p| vec![p.reference.as_str()]).collect();
            let answers: Vec<&str> = out.predictions.iter().map(|p| p.prediction.as_str()).collect();
            let scores = metrics::caption_scores(&references, &answers)?;
            let b = &scores.bleu;
            for (name, value) in [("bleu1", b.bleu1), ("bleu2", b.bleu2), ("bleu3", b.bleu3), ("bleu4", b.bleu4)] {
                set(name, value);
            }
            set("rouge_l", scores.rouge_l.mean);
            set("cider", scores.cider.mean);
        }
    }
    Ok(())
}
