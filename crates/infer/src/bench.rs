//! `bench generate`: greedy continuations of random prompts, timed, and the rate at which this machine reads memory. Owns the
//! fixed setting that is timed; it measures the prefill and the decoding steps that answer questions.
//!
//! Decoding is bound by reading every weight once for each step, so its measure is the part of the machine's read rate
//! that it reaches.

use std::time::Instant;

use models::{Model, ModelInput};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tensor::Tensor;

use crate::error::{InferError, Result};
use crate::sample::{Sampler, Sampling};

/// What to time.
#[derive(Debug, Clone, Copy)]
pub struct GenerateBench {
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens generated for each prompt; end tokens are not looked at.
    pub new_tokens: usize,
    /// Prompts continued together.
    pub batch: usize,
}

/// What was timed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GenerateBenchResult {
    /// Seconds until the logits after every prompt stand.
    pub prefill_s: f64,
    /// Tokens of all prompts a second.
    pub prefill_tokens_per_s: f64,
    /// Median seconds of a decoding step, choice of the token included.
    pub step_s: f64,
    /// Generated tokens of all sequences a second, over all decoding steps.
    pub tokens_per_s: f64,
    /// Bytes of the weights that every decoding step reads.
    pub weight_bytes_per_step: u64,
    /// Those bytes by the tokens that a step generates.
    pub weight_bytes_per_token: u64,
    /// Weights read a second, over all decoding steps, in units of 10^9 bytes.
    pub weight_gb_per_s: f64,
    /// What this machine reads with the engine's threads from a buffer far larger than its caches, in units of 10^9 bytes.
    pub read_gb_per_s: f64,
    /// The first as a part of the second.
    pub bandwidth_share: f64,
    /// The first continuation.
    pub token_ids: Vec<u32>,
}

/// Bytes of the buffer that the read rate is measured on.
const BUFFER: usize = 256 << 20;
const SEED: u64 = 0;

/// Times greedy generation.
pub fn bench_generate(model: &Model, options: &GenerateBench) -> Result<GenerateBenchResult> {
    let GenerateBench { prompt_tokens, new_tokens, batch } = *options;
    let at_least = |option, least: usize, found: usize| match found >= least {
        true => Ok(()),
        false if least == 2 => Err(InferError::Option { option, expected: "at least 2", found: found.to_string() }),
        false => Err(InferError::Option { option, expected: "at least 1", found: found.to_string() }),
    };
    at_least("prompt-tokens", 1, prompt_tokens)?;
    at_least("new-tokens", 2, new_tokens)?;
    at_least("batch", 1, batch)?;
    let vocabulary = model.config().vocab_size() as u32;
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let input = ModelInput {
        ids: (0..prompt_tokens * batch).map(|_| rng.random_range(0..vocabulary)).collect(),
        positions: (0..batch).flat_map(|_| 0..prompt_tokens as u32).collect(),
        cu_seqlens: (0..=batch).map(|i| i * prompt_tokens).collect(),
        ..ModelInput::default()
    };
    let mut sampler = Sampler::new(&Sampling::default(), 0);
    let mut choose = |logits: &Tensor| -> Result<Vec<(usize, u32)>> {
        let rows = logits.f32s()?.chunks_exact(logits.shape()[1]);
        Ok(rows.map(|row| sampler.next(row)).enumerate().collect())
    };
    // The first pass finds its buffers and touches the weights.
    model.prefill(&input, &mut model.new_cache(batch))?;
    let mut cache = model.new_cache(batch);
    let start = Instant::now();
    let mut next = choose(&model.prefill(&input, &mut cache)?)?;
    let prefill_s = start.elapsed().as_secs_f64();
    let (mut token_ids, mut times) = (vec![next[0].1], Vec::new());
    for _ in 1..new_tokens {
        let start = Instant::now();
        next = choose(&model.decode_step(&next, &mut cache)?)?;
        times.push(start.elapsed().as_secs_f64());
        token_ids.push(next[0].1);
    }
    let decode_s: f64 = times.iter().sum();
    times.sort_by(f64::total_cmp);
    let weight_bytes_per_step = model.bytes_per_step();
    let weight_gb_per_s = weight_bytes_per_step as f64 * times.len() as f64 / decode_s / 1e9;
    let read_gb_per_s = read_rate()? / 1e9;
    Ok(GenerateBenchResult {
        prefill_s,
        prefill_tokens_per_s: (prompt_tokens * batch) as f64 / prefill_s,
        step_s: times[times.len() / 2],
        tokens_per_s: (batch * times.len()) as f64 / decode_s,
        weight_bytes_per_step,
        weight_bytes_per_token: weight_bytes_per_step / batch as u64,
        weight_gb_per_s,
        read_gb_per_s,
        bandwidth_share: weight_gb_per_s / read_gb_per_s,
        token_ids,
    })
}

/// Bytes a second that the engine's number of threads read from a large buffer: the best of several passes.
fn read_rate() -> Result<f64> {
    let buffer = Tensor::from_f32(&vec![1.0; BUFFER / 4], &[BUFFER / 4])?;
    let data = buffer.f32s()?;
    let part = data.len().div_ceil(tensor::num_threads());
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        let sums: Vec<f32> = std::thread::scope(|scope| {
            let threads: Vec<_> = data.chunks(part).map(|part| scope.spawn(|| sum(part))).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        std::hint::black_box(sums);
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(BUFFER as f64 / best)
}

/// A sum in many lanes, of which the processor loads several vectors at a time.
fn sum(data: &[f32]) -> f32 {
    let mut lanes = [0f32; 64];
    for part in data.chunks_exact(64) {
        lanes.iter_mut().zip(part).for_each(|(lane, x)| *lane += x);
    }
    lanes.iter().sum()
}
