//! Owns measurements of matrix products, for utilisation figures and for tuning. Refuses to report what it did not run.

use std::time::Instant;

use crate::dtype::DType;
use crate::error::Result;
use crate::gemm::{Arithmetic, Mat, MatMut, Output, multiply};
use crate::gradients::Write;
use crate::tensor::Tensor;

/// The three products of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// y = x.W^T.
    Forward,
    /// dx = g.W.
    InputGradient,
    /// dW = g^T.x.
    WeightGradient,
}

/// One product of a linear layer with `t` rows, ready to run.
pub struct GemmBench {
    product: Product,
    arithmetic: Arithmetic,
    x: Tensor,
    w: Tensor,
    g: Tensor,
    to: Tensor,
}

impl GemmBench {
    /// Allocates the operands, f32 or bf16; weight gradients are f32 in both.
    pub fn new(product: Product, dtype: DType, t: usize, inputs: usize, outputs: usize) -> Result<GemmBench> {
        let full = |shape: &[usize]| Tensor::from_f32(&vec![0.5; shape.iter().product()], shape)?.cast(dtype);
        let (x, w, g) = (full(&[t, inputs])?, full(&[outputs, inputs])?, full(&[t, outputs])?);
        let shape = match product {
            Product::Forward => [t, outputs],
            Product::InputGradient => [t, inputs],
            Product::WeightGradient => [outputs, inputs],
        };
        let to = if product == Product::WeightGradient { DType::F32 } else { dtype };
        Ok(GemmBench { product, arithmetic: Arithmetic::of(dtype), x, w, g, to: Tensor::zeros(&shape, to)? })
    }

    /// Computes the product once, on all threads.
    pub fn run(&mut self) -> Result<()> {
        let (x, w, g) = (Mat::of(&self.x)?, Mat::of(&self.w)?, Mat::of(&self.g)?);
        let (a, b) = match self.product {
            Product::Forward => (x, w.t()),
            Product::InputGradient => (g, w),
            Product::WeightGradient => (g.t(), x),
        };
        multiply(self.arithmetic, vec![Output::new(MatMut::of(&mut self.to)?, Write::Replace, a, b)])
    }

    /// Floating point operations of one run.
    pub fn flops(&self) -> f64 {
        2.0 * self.g.num_elements() as f64 * self.x.shape()[1] as f64
    }
}

/// The rate of matrix products of f32 or bf16 on all threads, in operations a second: the best of several runs of a large
/// one. It stands for the machine's peak in utilisation figures.
pub fn gemm_peak(dtype: DType) -> Result<f64> {
    let mut bench = GemmBench::new(Product::Forward, dtype, 1536, 1536, 1536)?;
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        let start = Instant::now();
        bench.run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(bench.flops() / best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_product_runs_and_is_counted() {
        for product in [Product::Forward, Product::InputGradient, Product::WeightGradient] {
            let mut bench = GemmBench::new(product, DType::F32, 16, 32, 64).unwrap();
            bench.run().unwrap();
            assert_eq!(bench.flops(), 2.0 * 16.0 * 32.0 * 64.0);
            let inner = match product {
                Product::Forward => 32.0,
                Product::InputGradient => 64.0,
                Product::WeightGradient => 16.0,
            };
            assert!(bench.to.f32s().unwrap().iter().all(|&x| x == 0.25 * inner));
        }
        assert!(gemm_peak(DType::F32).unwrap() > 1e6);
    }
}
