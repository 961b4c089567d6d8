//! Owns the time of gated activations, forward and backward. Refuses everything else.
//!
//! usage: gated [threads=2]

use std::time::Instant;

use tensor::{Activation, DType, Gradients, Tape, Tensor};

fn main() -> tensor::Result<()> {
    let threads = std::env::args().find_map(|a| a.strip_prefix("threads=")?.parse().ok()).unwrap_or(2);
    tensor::set_num_threads(threads);
    for (name, a) in [("silu", Activation::Silu), ("gelu_tanh", Activation::GeluTanh)] {
        let (t, n) = (1657, 4864);
        let values: Vec<f32> = (0..t * 2 * n).map(|i| 8.0 * ((i as f32 * 0.618).fract() - 0.5)).collect();
        let x = Tensor::from_f32(&values, &[t, 2 * n])?.cast(DType::BF16)?;
        let g = Tensor::from_f32(&values[..t * n], &[t, n])?.cast(DType::BF16)?;
        let (mut forward, mut backward) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..8 {
            let tape = Tape::record();
            let leaf = tape.leaf(x.rows(0, t)?);
            let start = Instant::now();
            let y = tape.gated(&leaf, a)?;
            forward = forward.min(start.elapsed().as_secs_f64());
            let start = Instant::now();
            tape.backward_with(&[(y, g.clone())], &[leaf], &mut Gradients::new())?;
            backward = backward.min(start.elapsed().as_secs_f64());
        }
        println!("{name:10} forward {:6.2} ms   backward {:6.2} ms", forward * 1e3, backward * 1e3);
    }
    Ok(())
}
