//! Cached attention against plain loops in f64, for odd heads and sequences of different lengths.

use super::*;
use crate::dtype::DType;
use crate::ops::testing::random;

struct Case {
    dtype: DType,
    num_heads: usize,
    num_kv_heads: usize,
    d: usize,
    /// New rows and all keys of each sequence.
    sequences: Vec<[usize; 2]>,
    mask: Mask,
}

/// qkv, and keys and values of each sequence.
struct Data {
    qkv: Tensor,
    caches: Vec<[Tensor; 2]>,
}

impl Case {
    fn data(&self) -> Data {
        let tensor = |seed, rows: usize, cols: usize| {
            Tensor::from_f32(&random(seed, rows * cols), &[rows, cols]).unwrap().cast(self.dtype).unwrap()
        };
        let rows = self.sequences.iter().map(|s| s[0]).sum();
        let caches = self
            .sequences
            .iter()
            .enumerate()
            .map(|(i, s)| [0, 1].map(|side| tensor(2 * i as u64 + side + 2, s[1], self.num_kv_heads * self.d)));
        Data { qkv: tensor(1, rows, (self.num_heads + 2 * self.num_kv_heads) * self.d), caches: caches.collect() }
    }

    fn spec(&self) -> AttentionSpec {
        AttentionSpec {
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.d,
            scale: 0.7,
            mask: self.mask,
            cu_q: [0].into(),
            cu_k: [0].into(),
        }
    }

    /// What the operator gives for some of the sequences.
    fn found(&self, data: &Data, which: &[usize]) -> Vec<f32> {
        let (mut rows, mut ranges) = (vec![], vec![]);
        for &s in which {
            let start: usize = self.sequences[..s].iter().map(|s| s[0]).sum();
            rows.extend(data.qkv.rows(start, start + self.sequences[s][0]).unwrap().to_vec_f32().unwrap());
            let from = ranges.last().map_or(0, |r: &Range<usize>| r.end);
            ranges.push(from..from + self.sequences[s][0]);
        }
        let width = data.qkv.shape()[1];
        let qkv = Tensor::from_f32(&rows, &[rows.len() / width, width]).unwrap().cast(self.dtype).unwrap();
        let buffers: Vec<[RowBuffer; 2]> = which
            .iter()
            .map(|&s| {
                [0, 1].map(|side| {
                    let mut buffer = RowBuffer::new(self.num_kv_heads * self.d, self.dtype);
                    buffer.append(&data.caches[s][side]).unwrap();
                    buffer
                })
            })
            .collect();
        let sequences: Vec<CachedRows<'_>> =
            ranges.into_iter().zip(&buffers).map(|(rows, [keys, values])| CachedRows { rows, keys, values }).collect();
        let found = attention_cached(&qkv, &sequences, &self.spec()).unwrap().to_vec_f32().unwrap();
        let queries = self.num_heads * self.d;
        let alone: Vec<f32> = rows.chunks_exact(width).flat_map(|row| &row[..queries]).copied().collect();
        let alone = Tensor::from_f32(&alone, &[rows.len() / width, queries]).unwrap().cast(self.dtype).unwrap();
        let again = attention_cached(&alone, &sequences, &self.spec()).unwrap().to_vec_f32().unwrap();
        assert_eq!(again, found, "queries without keys and values beside them");
        found
    }

    /// Whether every element is right, the oldest `forgotten` keys being left out of the expectation.
    fn check(&self, forgotten: usize) -> bool {
        let data = self.data();
        let found = self.found(&data, &(0..self.sequences.len()).collect::<Vec<_>>());
        let Case { num_heads, num_kv_heads, d, .. } = *self;
        let (width, kv_width) = ((num_heads + 2 * num_kv_heads) * d, num_kv_heads * d);
        let qkv = data.qkv.to_vec_f32().unwrap();
        let (mut row, mut all) = (0, true);
        for (s, [new, total]) in self.sequences.iter().enumerate() {
            let [keys, values] = [0, 1].map(|side| data.caches[s][side].to_vec_f32().unwrap());
            for i in 0..*new {
                for h in 0..num_heads {
                    let q = &qkv[row * width + h * d..][..d];
                    let first = h / (num_heads / num_kv_heads) * d;
                    let end = total - new + i + 1;
                    let oldest = if let Mask::Window(n) = self.mask { end.saturating_sub(n) } else { 0 };
                    let forgotten = oldest + forgotten.min(end - oldest);
                    let weights: Vec<f64> = (forgotten..end)
                        .map(|j| {
                            let key = &keys[j * kv_width + first..][..d];
                            (0.7 * q.iter().zip(key).map(|(a, b)| f64::from(a * b)).sum::<f64>()).exp()
                        })
                        .collect();
                    let sum: f64 = weights.iter().sum();
                    for c in 0..d {
                        let of = |j: usize| f64::from(values[(j + forgotten) * kv_width + first + c]);
                        let exact: f64 = weights.iter().enumerate().map(|(j, w)| w / sum * of(j)).sum();
                        let found = f64::from(found[(row * num_heads + h) * d + c]);
                        // A score adds at most 64 products of up to 0.7, in lanes and a tree of fewer than 8 additions
                        // each: below 64 * 0.7 * 8 * 2^-24 = 2.2e-5 of error, which moves a weight and the sum of
                        // weights by as much, relatively; values are up to 1. Then one rounding to the result's dtype.
                        let rounding = if self.dtype == DType::BF16 { 2f64.powi(-8) } else { 0.0 };
                        all &= (found - exact).abs() <= 6e-5 + rounding * exact.abs();
                    }
                }
                row += 1;
            }
        }
        all
    }
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for dtype in [DType::F32, DType::BF16] {
        for (num_heads, num_kv_heads, d) in [(14, 2, 64), (5, 5, 24), (9, 1, 7), (6, 2, 33), (20, 2, 16)] {
            for mask in [Mask::Causal, Mask::Window(33)] {
                let sequences = vec![[1, 1], [1, 37], [3, 200], [1, 64]];
                cases.push(Case { dtype, num_heads, num_kv_heads, d, sequences, mask });
            }
        }
    }
    cases
}

#[test]
fn it_agrees_with_plain_loops() {
    for case in cases() {
        assert!(case.check(0), "{} {} {} {}", case.dtype, case.num_heads, case.num_kv_heads, case.d);
    }
}

#[test]
fn a_forgotten_key_would_be_found() {
    for mut case in cases() {
        case.sequences.remove(0);
        assert!(!case.check(1), "{} {} {} {}", case.dtype, case.num_heads, case.num_kv_heads, case.d);
    }
}

#[test]
fn bits_depend_on_neither_threads_nor_neighbours() {
    for mut case in cases() {
        case.sequences.push([1, 3000]);
        let data = case.data();
        let run = |threads, which: &[usize]| {
            crate::set_num_threads(threads);
            case.found(&data, which)
        };
        let all = run(1, &[0, 1, 2, 3, 4]);
        assert_eq!(all, run(3, &[0, 1, 2, 3, 4]));
        let width = case.num_heads * case.d;
        assert_eq!(all[width..2 * width], run(2, &[1]));
        assert_eq!(all[6 * width..], run(2, &[4]));
    }
}
