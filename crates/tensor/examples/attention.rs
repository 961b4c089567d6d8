//! Owns the rates of attention by shape, forward and backward. Refuses everything else.
//!
//! usage: attention [threads=2] [f32]

use std::sync::Arc;
use std::time::Instant;

use tensor::{AttentionSpec, DType, Gradients, Mask, Tape, Tensor};

/// Name, sequences, length, query heads, key/value heads, elements of a head, mask.
const SHAPES: [(&str, usize, usize, usize, usize, usize, Mask); 5] = [
    ("decoder 1024", 1, 1024, 14, 2, 64, Mask::Causal),
    ("decoder 1681", 1, 1681, 14, 2, 64, Mask::Causal),
    ("decoder 8192", 1, 8192, 14, 2, 64, Mask::Causal),
    ("tower 8 x 196", 8, 196, 12, 12, 64, Mask::Full),
    ("packed 32 x 100", 32, 100, 28, 4, 128, Mask::Causal),
];

fn main() -> tensor::Result<()> {
    let threads = std::env::args().find_map(|a| a.strip_prefix("threads=")?.parse().ok()).unwrap_or(2);
    let dtype = if std::env::args().any(|a| a == "f32") { DType::F32 } else { DType::BF16 };
    tensor::set_num_threads(threads);
    for (name, sequences, length, num_heads, num_kv_heads, head_dim, mask) in SHAPES {
        let cu: Arc<[usize]> = (0..=sequences).map(|i| i * length).collect();
        let scale = (head_dim as f32).powf(-0.5);
        let spec = AttentionSpec { num_heads, num_kv_heads, head_dim, scale, mask, cu_q: cu.clone(), cu_k: cu.clone() };
        let (t, width) = (sequences * length, (num_heads + 2 * num_kv_heads) * head_dim);
        let values: Vec<f32> = (0..t * width).map(|i| (i as f32 * 0.618).fract() - 0.5).collect();
        let x = Tensor::from_f32(&values, &[t, width])?.cast(dtype)?;
        let g = Tensor::from_f32(&values[..t * num_heads * head_dim], &[t, num_heads * head_dim])?.cast(dtype)?;
        let pairs = if mask == Mask::Causal { length * (length + 1) / 2 } else { length * length };
        let flops = 4.0 * (sequences * pairs * num_heads * head_dim) as f64;
        let (mut forward, mut backward) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..8 {
            let tape = Tape::record();
            let leaf = tape.leaf(x.clone());
            let start = Instant::now();
            let o = tape.self_attention(&leaf, &spec)?;
            forward = forward.min(start.elapsed().as_secs_f64());
            let start = Instant::now();
            tape.backward_with(&[(o, g.clone())], &[leaf], &mut Gradients::new())?;
            backward = backward.min(start.elapsed().as_secs_f64());
        }
        println!(
            "{name:16} forward {:7.2} ms {:5.0} GFLOP/s   backward {:7.2} ms {:5.0} GFLOP/s",
            forward * 1e3,
            flops / forward * 1e-9,
            backward * 1e3,
            2.5 * flops / backward * 1e-9
        );
    }
    Ok(())
}
