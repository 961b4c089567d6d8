//! The element-wise part of attention on a row of scores: the running softmax, and the gradient of scores. Scores and
//! log-sum-exps are in units of ln 2, so that exponentials are powers of two.

use std::ops::Range;

use crate::element::Element;
use crate::simd::{Level, exp2, level, max, multiversion, sum_zip, sum2};

/// The softmax of one query so far: the largest score, and the sum of powers relative to it.
#[derive(Clone, Copy)]
pub(super) struct Running {
    pub(super) max: f32,
    pub(super) sum: f32,
}

impl Running {
    pub(super) const NONE: Running = Running { max: f32::NEG_INFINITY, sum: 0.0 };

    /// log2 of the sum of powers of all scores.
    pub(super) fn log_sum(&self) -> f32 {
        self.max + self.sum.log2()
    }
}

/// Replaces the `visible` scores by their powers of two relative to the largest so far, the others by 0, and rescales what was
/// summed before.
pub(super) fn soften(scores: &mut [f32], visible: Range<usize>, soft: &mut Running, sums: &mut [f32]) {
    let seen = hide_others(scores, visible);
    let largest = largest(seen);
    let new_max = if largest > soft.max { largest } else { soft.max };
    if new_max == f32::NEG_INFINITY {
        seen.fill(0.0);
        return;
    }
    if new_max > soft.max {
        let factor = exp2(soft.max - new_max);
        soft.sum *= factor;
        sums.iter_mut().for_each(|s| *s *= factor);
        soft.max = new_max;
    }
    soft.sum += powers(seen, new_max);
}

/// The visible part of a row, whose other elements become 0.
fn hide_others(row: &mut [f32], visible: Range<usize>) -> &mut [f32] {
    row[visible.end..].fill(0.0);
    row[..visible.start].fill(0.0);
    &mut row[visible]
}

/// p = 2^(p - log_sum) for the `visible` scores, 0 for the others; ds = p * (ds - dot).
pub(super) fn score_gradient(p: &mut [f32], ds: &mut [f32], visible: Range<usize>, log_sum: f32, dot: f32) {
    let p_seen = hide_others(p, visible.clone());
    let ds_seen = hide_others(ds, visible);
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX-512.
        Level::Avx512 => unsafe { x86::score_gradient(p_seen, ds_seen, log_sum, dot) },
        _ => score_gradient_plain(p_seen, ds_seen, log_sum, dot),
    }
}

/// The sum of g * o over the elements of a head.
pub(super) fn dot<E: Element>(g: &[E], o: &[E]) -> f32 {
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX-512.
        Level::Avx512 => unsafe { x86::dot(g, o) },
        _ => dot_plain(g, o),
    }
}

fn largest(seen: &[f32]) -> f32 {
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX-512.
        Level::Avx512 => unsafe { x86::largest(seen) },
        _ => largest_plain(seen),
    }
}

/// Replaces scores by 2^(score - max) and returns their sum.
fn powers(seen: &mut [f32], max: f32) -> f32 {
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX-512.
        Level::Avx512 => unsafe { x86::powers(seen, max) },
        _ => powers_plain(seen, max),
    }
}

multiversion! {
    fn dot_plain<E: Element>(g: &[E], o: &[E]) -> f32 {
        sum_zip(g, o, |g, o| g.wide() * o.wide())
    }
}

multiversion! {
    fn largest_plain(seen: &[f32]) -> f32 {
        max(seen)
    }
}

multiversion! {
    fn powers_plain(seen: &mut [f32], max: f32) -> f32 {
        for s in seen.iter_mut() {
            *s = exp2(*s - max);
        }
        sum2(seen, seen, |s, _| s)
    }
}

multiversion! {
    fn score_gradient_plain(p: &mut [f32], ds: &mut [f32], log_sum: f32, dot: f32) {
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = exp2(*p - log_sum);
            *ds = *p * (*ds - dot);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The same loops with fused multiplications and `vscalefps`, a third of the instructions.

    use std::arch::x86_64::{
        __m512, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_mul_ps, _mm512_reduce_add_ps,
        _mm512_reduce_max_ps, _mm512_roundscale_ps, _mm512_scalef_ps, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_storeu_ps, _mm512_sub_ps,
    };

    use crate::element::{Element, LANES};

    /// 2^x; 0 far below -150, NaN for NaN. Taylor's polynomial of degree 6 on -1/2..1/2: exact to about an ulp.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn exp2(x: __m512) -> __m512 {
        const LN2: f32 = std::f32::consts::LN_2;
        // NaN comes second, so that it stays.
        let x = _mm512_max_ps(_mm512_set1_ps(-200.0), x);
        let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        let r = _mm512_sub_ps(x, n);
        let mut p = _mm512_set1_ps(LN2 * LN2 * LN2 * LN2 * LN2 * LN2 / 720.0);
        for c in [
            LN2 * LN2 * LN2 * LN2 * LN2 / 120.0,
            LN2 * LN2 * LN2 * LN2 / 24.0,
            LN2 * LN2 * LN2 / 6.0,
            LN2 * LN2 / 2.0,
            LN2,
            1.0,
        ] {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
        }
        _mm512_scalef_ps(p, n)
    }

    /// The lanes of the last, partial vector of `n` elements.
    #[inline(always)]
    fn rest(n: usize) -> u16 {
        (1u16 << (n % LANES)) - 1
    }

    /// # Safety
    /// The processor has AVX-512 F, VL and BW.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw")]
    pub(super) unsafe fn dot<E: Element>(g: &[E], o: &[E]) -> f32 {
        let n = g.len().min(o.len());
        let mut sum = _mm512_setzero_ps();
        for at in (0..n).step_by(LANES) {
            let mask = if n - at >= LANES { u16::MAX } else { rest(n) };
            // SAFETY: vectors are read inside of both slices, the last one by its mask.
            let (g, o) = unsafe { (E::load(g.as_ptr().add(at), mask), E::load(o.as_ptr().add(at), mask)) };
            sum = _mm512_fmadd_ps(g, o, sum);
        }
        _mm512_reduce_add_ps(sum)
    }

    /// # Safety
    /// The processor has AVX-512 F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn largest(x: &[f32]) -> f32 {
        let low = _mm512_set1_ps(f32::NEG_INFINITY);
        let mut largest = [low; 4];
        let mut parts = x.chunks_exact(4 * LANES);
        // SAFETY: vectors are read inside of their parts, the last one by its mask.
        unsafe {
            for part in &mut parts {
                for (i, largest) in largest.iter_mut().enumerate() {
                    *largest = _mm512_max_ps(*largest, _mm512_loadu_ps(part[i * LANES..].as_ptr()));
                }
            }
            for part in parts.remainder().chunks(LANES) {
                let mask = if part.len() == LANES { u16::MAX } else { rest(part.len()) };
                let values = std::arch::x86_64::_mm512_mask_loadu_ps(low, mask, part.as_ptr());
                largest[0] = _mm512_max_ps(largest[0], values);
            }
        }
        _mm512_reduce_max_ps(_mm512_max_ps(
            _mm512_max_ps(largest[0], largest[1]),
            _mm512_max_ps(largest[2], largest[3]),
        ))
    }

    /// # Safety
    /// The processor has AVX-512 F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn powers(x: &mut [f32], max: f32) -> f32 {
        let max = _mm512_set1_ps(max);
        let mut sums = [_mm512_setzero_ps(); 2];
        let mut parts = x.chunks_exact_mut(2 * LANES);
        // SAFETY: vectors are read and written inside of their parts, the last one by its mask.
        unsafe {
            for part in &mut parts {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let at = part[i * LANES..].as_mut_ptr();
                    let power = exp2(_mm512_sub_ps(_mm512_loadu_ps(at), max));
                    _mm512_storeu_ps(at, power);
                    *sum = _mm512_add_ps(*sum, power);
                }
            }
            for part in parts.into_remainder().chunks_mut(LANES) {
                let mask = if part.len() == LANES { u16::MAX } else { rest(part.len()) };
                let power = exp2(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, part.as_ptr()), max));
                _mm512_mask_storeu_ps(part.as_mut_ptr(), mask, power);
                sums[0] = std::arch::x86_64::_mm512_mask_add_ps(sums[0], mask, sums[0], power);
            }
        }
        _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
    }

    /// # Safety
    /// The processor has AVX-512 F; both slices have the same length.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn score_gradient(p: &mut [f32], ds: &mut [f32], log_sum: f32, dot: f32) {
        let (log_sum, dot) = (_mm512_set1_ps(log_sum), _mm512_set1_ps(dot));
        let n = p.len().min(ds.len());
        let whole = n - n % LANES;
        // Indices, not iterators: the compiler leaves those outside of the function with the instruction set.
        // SAFETY: whole vectors lie inside of both slices, the last one is read and written by its mask.
        unsafe {
            let (p, ds) = (p.as_mut_ptr(), ds.as_mut_ptr());
            for at in (0..whole).step_by(LANES) {
                let power = exp2(_mm512_sub_ps(_mm512_loadu_ps(p.add(at)), log_sum));
                _mm512_storeu_ps(p.add(at), power);
                let slope = _mm512_sub_ps(_mm512_loadu_ps(ds.add(at)), dot);
                _mm512_storeu_ps(ds.add(at), _mm512_mul_ps(power, slope));
            }
            if whole < n {
                let (mask, p, ds) = (rest(n), p.add(whole), ds.add(whole));
                let power = exp2(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, p), log_sum));
                _mm512_mask_storeu_ps(p, mask, power);
                let slope = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, ds), dot);
                _mm512_mask_storeu_ps(ds, mask, _mm512_mul_ps(power, slope));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{agree, random};

    #[test]
    fn vectors_agree_with_plain_loops() {
        for n in [1, 15, 16, 17, 32, 33, 63, 64, 65, 200] {
            let scores: Vec<f32> = random(n as u64, n).iter().map(|x| 40.0 * x - 7.0).collect();
            let expected: Vec<f64> = scores.iter().map(|&s| f64::from(s - 33.0).exp2()).collect();
            assert_eq!(largest(&scores), scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mut found = scores.clone();
            let sum = powers(&mut found, 33.0);
            assert!(found.iter().zip(&expected).all(|(&f, e)| (f64::from(f) / e - 1.0).abs() < 4e-7), "{n}");
            let whole: f64 = expected.iter().sum();
            assert!((f64::from(sum) / whole - 1.0).abs() < 1e-6, "{n}");
            let (mut p, mut ds) = (scores.clone(), random(5, n));
            let (mut p_plain, mut ds_plain) = (scores, ds.clone());
            score_gradient(&mut p, &mut ds, 0..n, 20.0, 0.25);
            score_gradient_plain(&mut p_plain, &mut ds_plain, 20.0, 0.25);
            assert!(agree(&p, &p_plain, 1e-6) && agree(&ds, &ds_plain, 1e-6), "{n}");
            let (g, o) = (random(6, n), random(7, n));
            let exact: f64 = g.iter().zip(&o).map(|(&g, &o)| f64::from(g) * f64::from(o)).sum();
            assert!(agree(&[dot(&g, &o), dot_plain(&g, &o)], &[exact as f32; 2], 4e-6), "{n}");
        }
    }

    #[test]
    fn hidden_scores_count_for_nothing() {
        let (mut soft, mut sums) = (Running::NONE, [2.0f32; 4]);
        let mut scores = [1.0, 3.0, 100.0, f32::NAN];
        soften(&mut scores, 0..2, &mut soft, &mut sums);
        assert_eq!((scores, soft.max, soft.sum), ([0.25, 1.0, 0.0, 0.0], 3.0, 1.25));
        assert_eq!(sums, [0.0; 4], "what stood before had no score");
        let mut none = [5.0f32; 3];
        soften(&mut none, 0..0, &mut soft, &mut sums);
        assert_eq!((none, soft.sum), ([0.0; 3], 1.25));
        let mut far = [-1e9f32, 3.0];
        soften(&mut far, 0..2, &mut soft, &mut sums);
        assert_eq!(far, [0.0, 1.0]);
        let mut old = [f32::NAN, 2.0, 3.0, f32::NAN];
        soften(&mut old, 1..3, &mut soft, &mut sums);
        assert_eq!(old, [0.0, 0.5, 1.0, 0.0]);
    }
}
