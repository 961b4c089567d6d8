//! Every kernel of this processor, every layout and every weight type against a plain triple loop.

use super::{Elements, Mat, MatMut, Threads, blocked, gemm, kernel};
use crate::dtype::{DType, f32_to_bf16, f32_to_f16};
use crate::gradients::Write;
use crate::ops::testing::{agree, random};
use crate::simd::{Level, level};
use crate::tensor::Tensor;

/// a.b in f64, element by element.
fn plain(a: &Mat<'_>, b: &Mat<'_>) -> Vec<f32> {
    let at = |m: &Mat<'_>, i: usize, j: usize| match m.data {
        Elements::F32(data) => f64::from(data[i * m.row_stride + j * m.col_stride]),
        Elements::BF16(data) => f64::from(crate::bf16_to_f32(data[i * m.row_stride + j * m.col_stride])),
        Elements::F16(data) => f64::from(crate::f16_to_f32(data[i * m.row_stride + j * m.col_stride])),
    };
    let mut c = vec![];
    for i in 0..a.rows {
        for j in 0..b.cols {
            c.push((0..a.cols).map(|p| at(a, i, p) * at(b, p, j)).sum::<f64>() as f32);
        }
    }
    c
}

/// Sums of k products of numbers up to 1, in f32: far below k roundings of 6e-8.
fn tolerance(k: usize) -> f32 {
    1e-6 + 1e-7 * (k as f32).sqrt()
}

const SIZES: [[usize; 3]; 9] = [
    [1, 1, 1],
    [9, 1, 7],
    [12, 32, 8],
    [13, 33, 65],
    [61, 70, 449],
    [130, 300, 17],
    [7, 5, 1300],
    [127, 33, 320],
    [250, 16, 900],
];

#[test]
fn every_kernel_and_layout_agrees_with_plain_loops() {
    let levels = [Level::Plain, Level::Avx2, Level::Avx512].into_iter().filter(|&l| l <= level());
    for which in levels.map(kernel::of) {
        for [m, n, k] in SIZES {
            let (a, b) = (random(1, m * k), random(2, k * n));
            for (a, b) in [
                (Mat::new(&a, m, k), Mat::new(&b, k, n)),
                (Mat::new(&a, m, k), Mat::new(&b, n, k).t()),
                (Mat::new(&a, k, m).t(), Mat::new(&b, k, n)),
                (Mat::new(&a, k, m).t(), Mat::new(&b, n, k).t()),
            ] {
                let product = plain(&a, &b);
                let mut c = vec![f32::NAN; m * n];
                blocked::multiply(which, MatMut::new(&mut c, m, n), Write::Replace, 1.0, a, b, Threads::One).unwrap();
                assert!(agree(&c, &product, tolerance(k)), "{} {m} {n} {k}", which.mr);
                blocked::multiply(which, MatMut::new(&mut c, m, n), Write::Add, -0.5, a, b, Threads::All).unwrap();
                let half: Vec<f32> = product.iter().map(|x| 0.5 * x).collect();
                assert!(agree(&c, &half, 2.0 * tolerance(k)), "{} {m} {n} {k}: adding", which.mr);
            }
        }
    }
}

#[test]
fn a_dropped_depth_would_be_found() {
    let (m, n, k) = (61, 70, 449);
    let (a, b) = (random(1, m * k), random(2, k * n));
    let product = plain(&Mat::new(&a, m, k), &Mat::new(&b, k, n));
    let short = plain(&Mat::strided(&a, m, k - 1, k), &Mat::new(&b[..(k - 1) * n], k - 1, n));
    assert!(!agree(&short, &product, tolerance(k)));
}

#[test]
fn sixteen_bit_weights_agree_with_their_wide_copies() {
    for [m, n, k] in SIZES.into_iter().chain([[3, 50, 70], [8, 200, 33]]) {
        let a = random(1, m * k);
        for (dtype, narrow) in [(DType::BF16, f32_to_bf16 as fn(f32) -> u16), (DType::F16, f32_to_f16)] {
            let bytes: Vec<u8> = random(2, k * n).into_iter().flat_map(|x| narrow(x).to_le_bytes()).collect();
            for (shape, transposed) in [([k, n], false), ([n, k], true)] {
                let weight = Tensor::from_bytes(&bytes, dtype, &shape).unwrap();
                let wide = weight.cast(DType::F32).unwrap();
                let run = |weight: &Tensor| {
                    let b = Mat::of(weight).unwrap();
                    let mut c = vec![f32::NAN; m * n];
                    let b = if transposed { b.t() } else { b };
                    let a = Mat::new(&a, m, k);
                    gemm(MatMut::new(&mut c, m, n), Write::Replace, 1.0, a, b, Threads::One).unwrap();
                    c
                };
                assert_eq!(run(&weight), run(&wide), "{dtype} {m} {n} {k}");
            }
        }
    }
}

#[test]
fn few_rows_agree_with_plain_loops() {
    for m in [1, 2, 8] {
        for (n, k) in [(1, 1), (70, 33), (65, 512), (300, 1000)] {
            let (a, b) = (random(1, m * k), random(2, k * n));
            let (a, b) = (Mat::new(&a, m, k), Mat::new(&b, n, k).t());
            let mut c = vec![1.0; m * n];
            gemm(MatMut::new(&mut c, m, n), Write::Add, 2.0, a, b, Threads::All).unwrap();
            let expected: Vec<f32> = plain(&a, &b).iter().map(|x| 1.0 + 2.0 * x).collect();
            assert!(agree(&c, &expected, 2.0 * tolerance(k)), "{m} {n} {k}");
        }
    }
}

#[test]
fn no_depth_means_zero() {
    let mut c = vec![5.0; 6];
    let (a, b) = (Mat::new(&[], 2, 0), Mat::new(&[], 0, 3));
    gemm(MatMut::new(&mut c, 2, 3), Write::Add, 1.0, a, b, Threads::One).unwrap();
    assert_eq!(c, [5.0; 6]);
    gemm(MatMut::new(&mut c, 2, 3), Write::Replace, 1.0, a, b, Threads::One).unwrap();
    assert_eq!(c, [0.0; 6]);
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let (m, n, k) = (250, 333, 700);
    let (a, b) = (random(1, m * k), random(2, k * n));
    let run = |threads: usize| {
        crate::set_num_threads(threads);
        let mut c = vec![f32::NAN; m * n];
        let (a, b) = (Mat::new(&a, m, k), Mat::new(&b, n, k).t());
        gemm(MatMut::new(&mut c, m, n), Write::Replace, 1.0, a, b, Threads::All).unwrap();
        c
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(3));
}
