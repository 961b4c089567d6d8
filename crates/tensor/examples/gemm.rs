//! Owns the rates of the matrix products of a decoder's training step, by shape and direction. Refuses everything else.
//!
//! usage: gemm [threads=2] [bf16]      on a busy machine use threads=1: the rate is then by processor time, on Linux

use std::time::Instant;

use tensor::DType;
use tensor::bench::{GemmBench, Product};

/// Rows, inputs and outputs.
const SHAPES: [(&str, usize, usize, usize); 6] = [
    ("q, o", 1024, 896, 896),
    ("k, v", 1024, 896, 128),
    ("gate, up", 1024, 896, 4864),
    ("down", 1024, 4864, 896),
    ("head", 256, 896, 32000),
    ("lora a", 1024, 896, 16),
];

/// Processor time of this thread; wall time where there is no such clock.
#[cfg(target_os = "linux")]
fn seconds(_: Instant) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(target_os = "linux"))]
fn seconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}

fn main() -> tensor::Result<()> {
    let threads = std::env::args().find_map(|a| a.strip_prefix("threads=")?.parse().ok()).unwrap_or(2);
    tensor::set_num_threads(threads);
    let dtype = if std::env::args().any(|a| a == "bf16") { DType::BF16 } else { DType::F32 };
    let start = Instant::now();
    let clock = || if threads == 1 { seconds(start) } else { start.elapsed().as_secs_f64() };
    println!("peak {:.1} GFLOP/s on {threads} threads (wall)", tensor::bench::gemm_peak(dtype)? * 1e-9);
    for (name, t, inputs, outputs) in SHAPES {
        for product in [Product::Forward, Product::InputGradient, Product::WeightGradient] {
            let mut bench = GemmBench::new(product, dtype, t, inputs, outputs)?;
            let mut best = f64::INFINITY;
            for _ in 0..8 {
                let before = clock();
                bench.run()?;
                best = best.min(clock() - before);
            }
            println!("{name:10} {product:?}: {:.1} GFLOP/s", bench.flops() / best * 1e-9);
        }
    }
    Ok(())
}
