//! Beam search: the continuation with the best mean log-probability among those that several beams found. Owns the choice
//! of beams; it takes no sampling.
//!
//! Source: `GenerationMixin._beam_search` of `transformers` 5.23, its order of operations and its f32 scores included: what
//! is out of the running has 1e9 taken off its score.

use crate::error::{InferError, Result};
use crate::generate::{Begin, GenerateOptions, begins};
use models::{Model, ModelInput};
use tensor::Tensor;

/// Off the score of what cannot be chosen.
const OUT: f32 = 1e9;

/// When the search for better continuations ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// When the best beam, as long as it is now, is no better than the worst continuation that is kept.
    #[default]
    No,
    /// As soon as there are as many continuations as beams.
    Yes,
    /// When no beam can become better, however long it grows.
    Never,
}

impl std::str::FromStr for EarlyStopping {
    type Err = InferError;

    fn from_str(text: &str) -> Result<EarlyStopping> {
        match text {
            "false" => Ok(EarlyStopping::No),
            "true" => Ok(EarlyStopping::Yes),
            "never" => Ok(EarlyStopping::Never),
            other => Err(InferError::Option {
                option: "early_stopping",
                expected: "true, false or never",
                found: other.to_owned(),
            }),
        }
    }
}

/// How beams are searched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beams {
    /// Beams, and continuations that are kept.
    pub num_beams: usize,
    /// Scores are divided by the length to this power: above 0 longer continuations win.
    pub length_penalty: f64,
    /// When the search ends.
    pub early_stopping: EarlyStopping,
}

/// A continuation on its way or at its end.
#[derive(Clone)]
struct Beam {
    tokens: Vec<u32>,
    score: f32,
    is_finished: bool,
}

/// A continuation by one more token.
struct Candidate {
    /// The beam it continues.
    parent: usize,
    token: u32,
    score: f32,
    ends: bool,
}

/// The search for one prompt.
struct Search<'a> {
    begin: &'a Begin,
    running: Vec<Beam>,
    /// The best so far, best first.
    kept: Vec<Beam>,
    can_improve: bool,
}

/// Continues every sequence of a packed prompt by its best beam.
pub(crate) fn search(
    model: &Model,
    prompt: &ModelInput,
    options: &GenerateOptions,
    beams: &Beams,
) -> Result<Vec<Vec<u32>>> {
    check(model, options, beams)?;
    let begins = begins(model, prompt);
    let mut done: Vec<Vec<u32>> = begins.iter().map(|begin| begin.given.clone()).collect();
    if begins.iter().any(|begin| begin.given.len() >= options.max_new_tokens) {
        done.iter_mut().for_each(|tokens| tokens.truncate(options.max_new_tokens));
        return Ok(done);
    }
    let mut cache = model.new_cache(begins.len());
    let mut logits = model.prefill(prompt, &mut cache)?;
    let num_beams = beams.num_beams;
    let mut searches: Vec<(usize, Search<'_>)> =
        begins.iter().map(|begin| Search::new(begin, num_beams)).enumerate().collect();
    // All beams of a prompt begin alike; the first step reads one row for all of them.
    let mut row_of: Vec<usize> = (0..begins.len()).flat_map(|i| std::iter::repeat_n(i, num_beams)).collect();
    loop {
        let (mut parents, mut next) = (Vec::new(), Vec::new());
        for (slot, (_, search)) in searches.iter_mut().enumerate() {
            let rows = &row_of[slot * num_beams..(slot + 1) * num_beams];
            let goes_on = search.step(&logits, rows, options, beams)?;
            if goes_on.is_empty() {
                continue;
            }
            for (parent, beam) in goes_on.iter().zip(&search.running) {
                next.push((parents.len(), beam.tokens.last().copied().unwrap_or_default()));
                parents.push(rows[*parent]);
            }
        }
        let ended = |search: &Search<'_>| search.is_over(beams);
        for (i, search) in searches.iter().filter(|(_, search)| ended(search)) {
            done[*i] = search.kept.first().map(|best| best.tokens.clone()).unwrap_or_default();
        }
        searches.retain(|(_, search)| !ended(search));
        if searches.is_empty() {
            return Ok(done);
        }
        cache.reorder(&parents)?;
        logits = model.decode_step(&next, &mut cache)?;
        row_of = (0..parents.len()).collect();
    }
}

fn check(model: &Model, options: &GenerateOptions, beams: &Beams) -> Result<()> {
    let bad = |option, expected, found: String| Err(InferError::Option { option, expected, found });
    if options.sampling.temperature != 0.0 {
        return bad(
            "temperature",
            "0 beside beams, which take the most likely",
            options.sampling.temperature.to_string(),
        );
    }
    if model.config().seq2seq().is_none() {
        return bad("num_beams", "1: beams are built for sequence-to-sequence models", beams.num_beams.to_string());
    }
    if !beams.length_penalty.is_finite() {
        return bad("length_penalty", "a finite number", beams.length_penalty.to_string());
    }
    Ok(())
}

impl<'a> Search<'a> {
    fn new(begin: &'a Begin, num_beams: usize) -> Search<'a> {
        let beam = |score: f32| Beam { tokens: begin.given.clone(), score, is_finished: false };
        // Only the first is in the running, or all beams would take the same token.
        let running = (0..num_beams).map(|i| beam(if i == 0 { 0.0 } else { -OUT })).collect();
        Search { begin, running, kept: vec![beam(-OUT); num_beams], can_improve: true }
    }

    fn is_over(&self, beams: &Beams) -> bool {
        let is_full = self.kept.iter().all(|beam| beam.is_finished);
        !self.can_improve || self.running.is_empty() || (is_full && beams.early_stopping == EarlyStopping::Yes)
    }

    /// One more token; returns the beam that each beam in the running continues, nothing where the search is over.
    fn step(
        &mut self,
        logits: &Tensor,
        rows: &[usize],
        options: &GenerateOptions,
        beams: &Beams,
    ) -> Result<Vec<usize>> {
        let (num_beams, num_ends) = (beams.num_beams, options.eos_ids.len());
        let candidates = self.candidates(logits, rows, options, (1 + num_ends).max(2) * num_beams)?;
        let length = self.running.first().map_or(0, |beam| beam.tokens.len()) + 1;
        let is_full = self.kept.iter().all(|beam| beam.is_finished) && beams.early_stopping == EarlyStopping::Yes;
        let extended = |candidate: &Candidate, score: f32, is_finished: bool| {
            let mut tokens = self.running[candidate.parent].tokens.clone();
            tokens.push(candidate.token);
            Beam { tokens, score, is_finished }
        };
        let mut kept = self.kept.clone();
        for (place, candidate) in candidates.iter().enumerate() {
            let just_finished = candidate.ends && place < num_beams;
            let mut score = candidate.score / (length as f64).powf(beams.length_penalty) as f32;
            for is_out in [is_full, !self.can_improve, !just_finished] {
                score -= if is_out { OUT } else { 0.0 };
            }
            kept.push(extended(candidate, score, just_finished));
        }
        // Stable, so that of equal scores the first stays first.
        kept.sort_by(|a, b| b.score.total_cmp(&a.score));
        kept.truncate(num_beams);
        let mut going: Vec<(f32, &Candidate)> =
            candidates.iter().map(|c| (if c.ends { c.score - OUT } else { c.score }, c)).collect();
        going.sort_by(|a, b| b.0.total_cmp(&a.0));
        going.truncate(num_beams);
        let all_end = candidates.iter().all(|candidate| candidate.ends);
        let running: Vec<Beam> = going.iter().map(|(score, candidate)| extended(candidate, *score, false)).collect();
        let parents: Vec<usize> = going.iter().map(|(_, candidate)| candidate.parent).collect();
        (self.kept, self.running) = (kept, running);
        let best_length = match beams.early_stopping {
            EarlyStopping::Never if beams.length_penalty > 0.0 => options.max_new_tokens,
            _ => length,
        };
        let best = self.running.first().map_or(-OUT, |beam| beam.score);
        let best = best / (best_length as f64).powf(beams.length_penalty) as f32;
        let worst = self.kept.iter().map(|beam| beam.score).fold(f32::INFINITY, f32::min);
        self.can_improve &= self.kept.iter().any(|beam| best > if beam.is_finished { worst } else { -OUT });
        if all_end {
            self.running.clear();
        }
        Ok(if self.is_over(beams) { Vec::new() } else { parents })
    }

    /// The best continuations of all beams by one token, best first.
    fn candidates(
        &self,
        logits: &Tensor,
        rows: &[usize],
        options: &GenerateOptions,
        count: usize,
    ) -> Result<Vec<Candidate>> {
        let width = logits.shape()[1];
        let mut scores = Vec::with_capacity(self.running.len() * width);
        for (beam, &row) in self.running.iter().zip(rows) {
            let mut scored = log_softmax(&logits.f32s()?[row * width..(row + 1) * width]);
            if !options.rules.is_empty() {
                let Begin { sequence, given } = self.begin;
                options.rules.apply(sequence, &beam.tokens, given.len(), &options.eos_ids, &mut scored);
            }
            scores.extend(scored.iter().map(|score| score + beam.score));
        }
        let mut order: Vec<usize> = (0..scores.len()).collect();
        let by_score = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
        if count < order.len() {
            order.select_nth_unstable_by(count, by_score);
            order.truncate(count);
        }
        order.sort_unstable_by(by_score);
        let candidate = |at: usize| {
            let (parent, token) = (at / width, (at % width) as u32);
            let is_long = self.running[parent].tokens.len() + 1 >= options.max_new_tokens;
            Candidate { parent, token, score: scores[at], ends: is_long || options.eos_ids.contains(&token) }
        };
        Ok(order.into_iter().map(candidate).collect())
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    let log = sum.ln() as f32;
    logits.iter().map(|x| x - largest - log).collect()
}
