//! Every kernel of this processor, every layout and every element type against a plain triple loop.

use super::kernel::{Kernel, Place};
use super::pack_pairs::Pair;
use super::{Arithmetic, Elements, Mat, MatMut, Output, blocked, kernel, kernel_bf16, multiply, multiply_few_rows};
use crate::dtype::{DType, bf16_to_f32, f32_to_bf16, f32_to_f16};
use crate::gradients::Write;
use crate::ops::testing::{agree, random};
use crate::simd::{Level, level};
use crate::tensor::Tensor;

/// to (+)= alpha a.b, multiplied in f32.
fn gemm(to: MatMut<'_>, write: Write, alpha: f32, a: Mat<'_>, b: Mat<'_>) -> crate::Result<()> {
    multiply_few_rows(Arithmetic::F32, vec![Output::new(to, write, a, b).scaled(alpha)])
}

/// a.b in f64, element by element.
fn plain(a: &Mat<'_>, b: &Mat<'_>) -> Vec<f32> {
    let at = |m: &Mat<'_>, i: usize, j: usize| match m.data {
        Elements::F32(data) => f64::from(data[i * m.row_stride + j * m.col_stride]),
        Elements::BF16(data) => f64::from(bf16_to_f32(data[i * m.row_stride + j * m.col_stride])),
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
                let output = Output::new(MatMut::new(&mut c, m, n), Write::Replace, a, b);
                blocked::multiply(which, vec![output]).unwrap();
                assert!(agree(&c, &product, tolerance(k)), "{} {m} {n} {k}", which.mr);
                let output = Output::new(MatMut::new(&mut c, m, n), Write::Add, a, b).scaled(-0.5);
                blocked::multiply(which, vec![output]).unwrap();
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
                    gemm(MatMut::new(&mut c, m, n), Write::Replace, 1.0, a, b).unwrap();
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
            gemm(MatMut::new(&mut c, m, n), Write::Add, 2.0, a, b).unwrap();
            let expected: Vec<f32> = plain(&a, &b).iter().map(|x| 1.0 + 2.0 * x).collect();
            assert!(agree(&c, &expected, 2.0 * tolerance(k)), "{m} {n} {k}");
        }
    }
}

#[test]
fn no_depth_means_zero() {
    let mut c = vec![5.0; 6];
    let (a, b) = (Mat::new(&[], 2, 0), Mat::new(&[], 0, 3));
    gemm(MatMut::new(&mut c, 2, 3), Write::Add, 1.0, a, b).unwrap();
    assert_eq!(c, [5.0; 6]);
    gemm(MatMut::new(&mut c, 2, 3), Write::Replace, 1.0, a, b).unwrap();
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
        gemm(MatMut::new(&mut c, m, n), Write::Replace, 1.0, a, b).unwrap();
        c
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(3));
}

/// Numbers in bf16 and the same numbers as f32.
fn random_bf16(seed: u64, n: usize) -> (Vec<u16>, Vec<f32>) {
    let bits: Vec<u16> = random(seed, n).into_iter().map(f32_to_bf16).collect();
    let wide = bits.iter().map(|&bits| bf16_to_f32(bits)).collect();
    (bits, wide)
}

/// What the bf16 kernel makes of one product in every layout; the expectation is the plain loop over the same bits.
fn check_bf16(kernel: Kernel<Pair>, [m, n, k]: [usize; 3]) -> bool {
    let ((a, a_wide), (b, b_wide)) = (random_bf16(1, m * k), random_bf16(2, k * n));
    let mut all = true;
    for transposed in [(false, false), (false, true), (true, false), (true, true)] {
        let side = |is_t: bool, bits, wide, rows, cols| -> (Mat<'_>, Mat<'_>, Mat<'_>) {
            match is_t {
                false => (
                    Mat::strided_bf16(bits, rows, cols, cols),
                    Mat::strided(wide, rows, cols, cols),
                    Mat::new(wide, rows, cols),
                ),
                true => (
                    Mat::strided_bf16(bits, cols, rows, rows).t(),
                    Mat::strided(wide, cols, rows, rows).t(),
                    Mat::new(wide, cols, rows).t(),
                ),
            }
        };
        let (a16, a32, a_plain) = side(transposed.0, &a, &a_wide, m, k);
        let (b16, b32, b_plain) = side(transposed.1, &b, &b_wide, k, n);
        let expected = plain(&a_plain, &b_plain);
        for (a, b) in [(a16, b16), (a32, b16), (a16, b32), (a32, b32)] {
            let mut c = vec![f32::NAN; m * n];
            let output = Output::new(MatMut::new(&mut c, m, n), Write::Replace, a, b);
            blocked::multiply(kernel, vec![output]).unwrap();
            all &= agree(&c, &expected, tolerance(k));
            let mut c = vec![0x4000u16; m * n];
            let output = Output::new(MatMut::bf16(&mut c, m, n), Write::Replace, a, b);
            blocked::multiply(kernel, vec![output]).unwrap();
            // One rounding to 8 bits of a sum that is as exact as above.
            all &= c.iter().zip(&expected).all(|(&c, &x)| {
                (bf16_to_f32(c) - x).abs() <= x.abs() * 2f32.powi(-8) + tolerance(k) * (k as f32).sqrt()
            });
        }
    }
    all
}

#[test]
fn the_bf16_kernel_agrees_with_plain_loops() {
    if !crate::simd::has_bf16() {
        return;
    }
    for size in SIZES.into_iter().chain([[14, 32, 1024], [15, 33, 1025], [29, 64, 2050], [100, 40, 1]]) {
        assert!(check_bf16(kernel_bf16::best(), size), "{size:?}");
    }
}

#[test]
fn broken_bf16_kernels_would_be_found() {
    if !crate::simd::has_bf16() {
        return;
    }
    /// Forgets the last two depths.
    unsafe fn short(rows: usize, depth: usize, a: *const Pair, b: *const Pair, place: &Place) {
        // SAFETY: fewer depths of the same panels.
        unsafe { (kernel_bf16::best().run)(rows, depth - 1, a, b, place) }
    }
    /// Computes the first row in place of the second.
    unsafe fn shifted(rows: usize, depth: usize, a: *const Pair, b: *const Pair, place: &Place) {
        // SAFETY: the same panels and the same place.
        unsafe {
            (kernel_bf16::best().run)(rows, depth, a, b, place);
            (kernel_bf16::best().run)(1, depth, a.add(1), b, place);
        }
    }
    for run in [short, shifted] {
        assert!(!check_bf16(Kernel { run, ..kernel_bf16::best() }, [29, 33, 65]));
    }
}

#[test]
fn terms_add_up_share_a_side_and_take_a_bias() {
    let (m, k, r) = (37, 70, 5);
    let ((x, _), (h, _)) = (random_bf16(1, m * k), random_bf16(2, m * r));
    let weights: Vec<_> = [(3, 40), (4, 7), (5, 64)].map(|(seed, n)| (random_bf16(seed, n * k).0, n)).into();
    let (low, _) = random_bf16(6, 40 * r);
    let bias = random(7, 40);
    for arithmetic in [Arithmetic::F32, Arithmetic::BF16] {
        let x = Mat::strided_bf16(&x, m, k, k);
        let h = Mat::strided_bf16(&h, m, r, r);
        let mut results: Vec<Vec<f32>> = weights.iter().map(|(_, n)| vec![0.25; m * n]).collect();
        let mut outputs = vec![];
        for (i, (c, (w, n))) in results.iter_mut().zip(&weights).enumerate() {
            let w = Mat::strided_bf16(w, *n, k, k).t();
            let mut output = Output::new(MatMut::new(c, m, *n), Write::Add, x, w).scaled(2.0);
            if i == 0 {
                output = output.plus(h, Mat::strided_bf16(&low, 40, r, r).t()).with_bias(Some(&bias));
            }
            outputs.push(output);
        }
        multiply(arithmetic, outputs).unwrap();
        for (i, (c, (w, n))) in results.iter().zip(&weights).enumerate() {
            let mut expected = plain(&x, &Mat::strided_bf16(w, *n, k, k).t());
            if i == 0 {
                let more = plain(&h, &Mat::strided_bf16(&low, 40, r, r).t());
                expected.iter_mut().zip(more).for_each(|(e, x)| *e += x);
            }
            expected.iter_mut().enumerate().for_each(|(at, e)| {
                *e = 0.25 + 2.0 * *e + if i == 0 { bias[at % n] } else { 0.0 };
            });
            assert!(agree(c, &expected, 4.0 * tolerance(k)), "{arithmetic:?} {i}");
        }
    }
}

#[test]
fn long_sums_take_several_passes() {
    // Beyond what one pass holds: 8 MiB of packed rows, but for depths of 128.
    let (m, n, k) = (1030, 33, 9000);
    let ((a, _), (b, _)) = (random_bf16(1, m * k), random_bf16(2, k * n));
    let (a, b) = (Mat::strided_bf16(&a, m, k, k), Mat::strided_bf16(&b, n, k, k).t());
    let bias = random(3, n);
    let expected: Vec<f32> =
        plain(&a, &b).iter().enumerate().map(|(at, x)| 1.0 + 2.0 * (2.0 * x) + bias[at % n]).collect();
    for arithmetic in [Arithmetic::F32, Arithmetic::BF16] {
        let mut c = vec![1.0; m * n];
        let output = Output::new(MatMut::new(&mut c, m, n), Write::Add, a, b);
        multiply(arithmetic, vec![output.plus(a, b).scaled(2.0).with_bias(Some(&bias))]).unwrap();
        assert!(agree(&c, &expected, 4.0 * tolerance(k)), "{arithmetic:?}");
        let mut c = vec![f32_to_bf16(1.0); m * n];
        let output = Output::new(MatMut::bf16(&mut c, m, n), Write::Add, a, b);
        multiply(arithmetic, vec![output.plus(a, b).scaled(2.0).with_bias(Some(&bias))]).unwrap();
        let close = |c: u16, x: f32| (bf16_to_f32(c) - x).abs() <= x.abs() * 2f32.powi(-8) + 1e-3;
        assert!(c.iter().zip(&expected).all(|(&c, &x)| close(c, x)), "{arithmetic:?}");
    }
}

#[test]
fn bf16_bits_do_not_depend_on_the_number_of_threads() {
    let (m, n, k) = (250, 333, 2700);
    let (a, b) = (random(1, m * k), random(2, k * n));
    let run = |threads: usize| {
        crate::set_num_threads(threads);
        let mut c = vec![0u16; m * n];
        let output =
            Output::new(MatMut::bf16(&mut c, m, n), Write::Replace, Mat::new(&a, m, k), Mat::new(&b, n, k).t());
        multiply(Arithmetic::BF16, vec![output]).unwrap();
        c
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(3));
}
