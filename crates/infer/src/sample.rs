//! Choosing the next token from logits. The random sequence of a continuation depends on the seed and its index alone,
//! so that batching does not change an answer.
//!
//! Source: the order of `transformers`' logits processors: temperature, top-k, top-p (Holtzman et al. 2020).

use crate::error::{InferError, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divisor of the logits; 0 takes the best token always.
    pub temperature: f32,
    /// Smallest set of most likely tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Number of most likely tokens kept; none keeps all.
    pub top_k: Option<usize>,
    /// Seed of the random choices.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { temperature: 0.0, top_p: 1.0, top_k: None, seed: 42 }
    }
}

impl Sampling {
    /// Refuses values outside of their range.
    pub fn check(&self) -> Result<()> {
        let bad = |option, expected, found: String| Err(InferError::Option { option, expected, found });
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return bad("temperature", "a number of at least 0", self.temperature.to_string());
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", "a number in (0, 1]", self.top_p.to_string());
        }
        if self.top_k == Some(0) {
            return bad("top_k", "at least 1", "0".into());
        }
        Ok(())
    }
}

/// The sampler of one continuation.
pub struct Sampler {
    options: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// The sampler of continuation `index` of a request.
    pub fn new(options: &Sampling, index: u64) -> Sampler {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        rng.set_stream(index);
        Sampler { options: options.clone(), rng }
    }

    /// The next token's id. Equal logits are ordered by id.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        if self.options.temperature == 0.0 {
            return best(logits);
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        // No two ids are equal in this order, so that an unstable sort has one result.
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if let Some(k) = self.options.top_k.filter(|&k| k < order.len()) {
            order.select_nth_unstable_by(k, by_logit);
            order.truncate(k);
        }
        order.sort_unstable_by(by_logit);
        let top = logits[order[0] as usize];
        let scaled = |id: u32| f64::from((logits[id as usize] - top) / self.options.temperature).exp();
        let mut weights: Vec<f64> = order.iter().map(|&id| scaled(id)).collect();
        if self.options.top_p < 1.0 {
            let limit = f64::from(self.options.top_p) * weights.iter().sum::<f64>();
            let before = weights.iter().scan(0.0, |sum, w| Some(std::mem::replace(sum, *sum + w)));
            let kept = before.take_while(|&sum| sum < limit).count();
            weights.truncate(kept.max(1));
        }
        let mut point = self.rng.random::<f64>() * weights.iter().sum::<f64>();
        for (&id, w) in order.iter().zip(&weights) {
            point -= w;
            if point < 0.0 {
                return id;
            }
        }
        order[weights.len() - 1]
    }
}

/// The first of the largest logits. Two passes, of which the first is one that the compiler makes vectors of.
fn best(logits: &[f32]) -> u32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    for part in logits.chunks(16) {
        lanes.iter_mut().zip(part).for_each(|(lane, &x)| *lane = larger(*lane, x));
    }
    let largest = lanes.into_iter().fold(f32::NEG_INFINITY, larger);
    logits.iter().position(|&x| x == largest).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(options: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut s = Sampler::new(&options, 3);
        (0..n).map(|_| s.next(logits)).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        assert_eq!(draw(Sampling::default(), &[0.0, 2.0, 2.0, 1.0], 1), [1]);
        for (n, place) in [(1, 0), (16, 15), (37, 36), (1000, 500)] {
            let mut logits = vec![-3.0; n];
            logits[place..].fill(-1.0);
            assert_eq!(draw(Sampling::default(), &logits, 1), [place as u32]);
        }
        assert_eq!(draw(Sampling::default(), &[f32::NEG_INFINITY; 20], 1), [0]);
        assert_eq!(draw(Sampling::default(), &[f32::NAN; 20], 1), [0]);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let options = Sampling { temperature: 2.0, ..Sampling::default() };
        let logits = [1.0f32, 0.0, -1.0, 2.0];
        let n = 40_000;
        let drawn = draw(options, &logits, n);
        let sum: f64 = logits.iter().map(|l| f64::from(l / 2.0).exp()).sum();
        for (i, l) in logits.iter().enumerate() {
            let p = f64::from(l / 2.0).exp() / sum;
            let seen = drawn.iter().filter(|&&d| d == i as u32).count() as f64 / n as f64;
            // Five standard deviations of a binomial share.
            assert!((seen - p).abs() < 5.0 * (p * (1.0 - p) / n as f64).sqrt(), "token {i}: {seen} against {p}");
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [3.0f32, 2.0, 1.0, 0.0];
        let k = Sampling { temperature: 5.0, top_k: Some(2), ..Sampling::default() };
        assert!(draw(k, &logits, 500).iter().all(|&t| t < 2));
        // Probabilities are 0.644, 0.237, 0.087, 0.032: two tokens reach 0.7.
        let p = Sampling { temperature: 1.0, top_p: 0.7, ..Sampling::default() };
        let drawn = draw(p, &logits, 500);
        assert!(drawn.iter().all(|&t| t < 2) && drawn.contains(&1));
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let text = |s: Sampling| s.check().unwrap_err().to_string();
        assert_eq!(
            text(Sampling { top_p: 0.0, ..Sampling::default() }),
            "`top_p`: expected a number in (0, 1], found `0`"
        );
        assert_eq!(
            text(Sampling { temperature: -1.0, ..Sampling::default() }),
            "`temperature`: expected a number of at least 0, found `-1`"
        );
        assert_eq!(text(Sampling { top_k: Some(0), ..Sampling::default() }), "`top_k`: expected at least 1, found `0`");
    }
}
