//! Continuing prompts: one packed prefill, then one token a sequence and step until its end token or the limit.

use crate::beams::{self, Beams};
use crate::error::Result;
use crate::rules::Rules;
use crate::sample::{Sampler, Sampling};
use models::{Model, ModelInput};

/// Options of [`generate`].
#[derive(Debug, Clone, Default)]
pub struct GenerateOptions {
    /// Most tokens generated for a prompt.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end a continuation; the end token is part of it.
    pub eos_ids: Vec<u32>,
    /// Rules of the checkpoint that change logits before a token is chosen.
    pub rules: Rules,
    /// How beams are searched; none takes the best token, or draws one, at a time.
    pub beams: Option<Beams>,
}

/// What stands before the first token that is chosen.
pub(crate) struct Begin {
    /// The tokens that rules look back on: the prompt, or what the decoder starts with.
    pub sequence: Vec<u32>,
    /// Tokens of the continuation that are given; they are part of it.
    pub given: Vec<u32>,
}

/// The beginning of each sequence of a packed prompt.
pub(crate) fn begins(model: &Model, prompt: &ModelInput) -> Vec<Begin> {
    let start = model.config().seq2seq().map(|config| config.decoder_start_token_id);
    // Placeholders that are no tokens say nothing to a rule.
    let num_tokens = model.config().vocab_size();
    let words = |ids: &[u32]| ids.iter().copied().filter(|id| (*id as usize) < num_tokens).collect();
    let each = |(i, bounds): (usize, &[usize])| {
        let given = prompt.target.as_ref().map(|target| &target.ids[target.cu_seqlens[i]..target.cu_seqlens[i + 1]]);
        let sequence = start.map_or_else(|| words(&prompt.ids[bounds[0]..bounds[1]]), |start| vec![start]);
        Begin { sequence, given: given.unwrap_or_default().to_vec() }
    };
    prompt.cu_seqlens.windows(2).enumerate().map(each).collect()
}

/// Continues every sequence of a packed prompt; `on_token(sequence, id)` hears of each token as it is chosen.
pub fn generate_with(
    model: &Model,
    prompt: &ModelInput,
    options: &GenerateOptions,
    mut on_token: impl FnMut(usize, u32),
) -> Result<Vec<Vec<u32>>> {
    options.sampling.check()?;
    if let Some(beams) = options.beams.as_ref().filter(|beams| beams.num_beams > 1) {
        let done = beams::search(model, prompt, options, beams)?;
        done.iter().enumerate().for_each(|(s, tokens)| tokens.iter().for_each(|id| on_token(s, *id)));
        return Ok(done);
    }
    let batch = prompt.cu_seqlens.len() - 1;
    let begins = begins(model, prompt);
    let mut done: Vec<Vec<u32>> = begins.iter().map(|begin| begin.given.clone()).collect();
    for (s, given) in done.iter_mut().enumerate() {
        given.truncate(options.max_new_tokens);
        given.iter().for_each(|id| on_token(s, *id));
    }
    if done.iter().any(|given| given.len() == options.max_new_tokens) {
        return Ok(done);
    }
    let mut samplers: Vec<Sampler> = (0..batch).map(|i| Sampler::new(&options.sampling, i as u64)).collect();
    let mut cache = model.new_cache(batch);
    let mut logits = model.prefill(prompt, &mut cache)?;
    let mut active: Vec<usize> = (0..batch).collect();
    loop {
        let width = logits.shape()[1];
        let mut next = Vec::with_capacity(active.len());
        for (&s, row) in active.iter().zip(logits.f32s()?.chunks_exact(width)) {
            let id = if options.rules.is_empty() {
                samplers[s].next(row)
            } else {
                let mut row = row.to_vec();
                let Begin { sequence, given } = &begins[s];
                options.rules.apply(sequence, &done[s], given.len(), &options.eos_ids, &mut row);
                samplers[s].next(&row)
            };
            done[s].push(id);
            on_token(s, id);
            if !options.eos_ids.contains(&id) && done[s].len() < options.max_new_tokens {
                next.push((s, id));
            }
        }
        if next.is_empty() {
            return Ok(done);
        }
        logits = model.decode_step(&next, &mut cache)?;
        active = next.into_iter().map(|(s, _)| s).collect();
    }
}

/// Continues every sequence of a packed prompt.
pub fn generate(model: &Model, prompt: &ModelInput, options: &GenerateOptions) -> Result<Vec<Vec<u32>>> {
    generate_with(model, prompt, options, |_, _| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(lengths: &[usize]) -> ModelInput {
        let mut cu_seqlens = vec![0];
        cu_seqlens.extend(lengths.iter().scan(0, |end, n| {
            *end += n;
            Some(*end)
        }));
        ModelInput {
            // Ids that depend on the place within a prompt and its length alone.
            ids: lengths.iter().flat_map(|&n| (0..n).map(move |i| (3 + 7 * i + n) as u32 % 60)).collect(),
            positions: lengths.iter().flat_map(|&n| 0..n as u32).collect(),
            cu_seqlens: cu_seqlens.into(),
            ..ModelInput::default()
        }
    }

    /// What each prompt gives alone decides what the batch must give, for prompts of many lengths that end at different
    /// steps; the sequences that go on must not notice.
    #[test]
    fn a_batch_of_mixed_lengths_answers_as_each_prompt_alone() {
        let folder = std::path::Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../fixtures/models/text_qwen2_transformers5"
        ));
        let load = models::LoadOptions { dtype: Some(tensor::DType::F32) };
        let (model, _) = models::load(folder, &load).unwrap();
        let lengths = [1, 3, 40, 2, 17, 9, 5, 1, 12, 33, 8];
        let mut options = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
        let mut alone: Vec<Vec<u32>> =
            lengths.iter().map(|&n| generate(&model, &prompts(&[n]), &options).unwrap().remove(0)).collect();
        assert!(alone.iter().all(|ids| ids.len() == 12));
        assert_eq!(generate(&model, &prompts(&lengths), &options).unwrap(), alone);
        options.eos_ids = vec![alone[2][2], alone[5][6]];
        for ids in &mut alone {
            let end = ids.iter().position(|id| options.eos_ids.contains(id)).map_or(ids.len(), |at| at + 1);
            ids.truncate(end);
        }
        assert!(alone.iter().any(|ids| ids.len() < 12), "{alone:?}");
        assert_eq!(generate(&model, &prompts(&lengths), &options).unwrap(), alone);
    }
}
