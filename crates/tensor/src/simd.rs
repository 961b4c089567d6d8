//! Owns the choice of instruction set at run time and the vector-friendly elementary functions.
//! Refuses intrinsics: loops are plain Rust that the compiler vectorises once per instruction set.

use std::sync::OnceLock;

/// The instruction sets that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Whatever the target guarantees.
    Plain,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, VL, BW and DQ beside those of `Avx2`.
    Avx512,
}

/// The best instruction set of this processor.
#[inline]
pub(crate) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq");
    match (avx2, avx512) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        _ => Level::Plain,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Plain
}

/// Whether the processor multiplies bf16 numbers (`avx512_bf16`). Elsewhere products of bf16 numbers are computed in f32,
/// which is slower than f32 itself.
#[inline]
pub fn has_bf16() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(detect_bf16)
}

#[cfg(target_arch = "x86_64")]
fn detect_bf16() -> bool {
    level() == Level::Avx512 && is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn detect_bf16() -> bool {
    false
}

/// Compiles a function once per instruction set and calls the best one. The results are equal bit for bit, because
/// Rust neither reorders nor contracts floating point operations.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$($g:ident: $bound:path),+>($($arg:ident: $ty:ty),* $(,)?)
     $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name<$($g: $bound),+>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn plain<$($g: $bound),+>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2<$($g: $bound),+>($($arg: $ty),*) $(-> $ret)? {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")]
                fn avx512<$($g: $bound),+>($($arg: $ty),*) $(-> $ret)? {
                    plain($($arg),*)
                }
                match $crate::simd::level() {
                    // SAFETY: `level` found these features on this processor.
                    $crate::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: `level` found these features on this processor.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::simd::Level::Plain => {}
                }
            }
            plain($($arg),*)
        }
    };
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn plain($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    plain($($arg),*)
                }
                match $crate::simd::level() {
                    // SAFETY: `level` found these features on this processor.
                    $crate::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: `level` found these features on this processor.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::simd::Level::Plain => {}
                }
            }
            plain($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// Independent partial sums of a reduction; fixes its order.
pub(crate) const LANES: usize = 16;

/// Adds lanes in a fixed tree.
#[inline(always)]
pub(crate) fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    let mut sums = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// The sum of f over the elements of two equally long slices.
#[inline(always)]
pub(crate) fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    sum_zip(a, b, f)
}

/// The sum of f over the elements of two equally long slices of any types.
#[inline(always)]
pub(crate) fn sum_zip<A: Copy, B: Copy>(a: &[A], b: &[B], f: impl Fn(A, B) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_parts, b_parts) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_parts.remainder(), b_parts.remainder());
    for (a, b) in a_parts.zip(b_parts) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for (i, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] += f(a, b);
    }
    sum_lanes(lanes)
}

/// As [`sum_zip`] for three slices.
#[inline(always)]
pub(crate) fn sum_zip3<A: Copy, B: Copy, C: Copy>(a: &[A], b: &[B], c: &[C], f: impl Fn(A, B, C) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_parts, b_parts, c_parts) = (a.chunks_exact(LANES), b.chunks_exact(LANES), c.chunks_exact(LANES));
    let (a_rest, b_rest, c_rest) = (a_parts.remainder(), b_parts.remainder(), c_parts.remainder());
    for ((a, b), c) in a_parts.zip(b_parts).zip(c_parts) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i], c[i]);
        }
    }
    for (i, ((&a, &b), &c)) in a_rest.iter().zip(b_rest).zip(c_rest).enumerate() {
        lanes[i] += f(a, b, c);
    }
    sum_lanes(lanes)
}

/// The largest element; negative infinity for none.
#[inline(always)]
pub(crate) fn max(a: &[f32]) -> f32 {
    let larger = |x: f32, y: f32| if x > y { x } else { y };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let parts = a.chunks_exact(LANES);
    let rest = parts.remainder();
    for part in parts {
        for i in 0..LANES {
            lanes[i] = larger(part[i], lanes[i]);
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        lanes[i] = larger(x, lanes[i]);
    }
    lanes.iter().fold(f32::NEG_INFINITY, |m, &x| larger(x, m))
}

/// e^x within 2 units in the last place; 0 below -87.3, infinite above 88.7, NaN for NaN. Branch-free.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, e^r by its Taylor polynomial of degree 7, which is exact to 1 ulp there.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts; the first has trailing zeros, so that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let low = if x < -87.3 { -87.3 } else { x };
    let bounded = if low > 88.8 { 88.8 } else { low };
    let n = (bounded * LOG2_E + ROUND) - ROUND;
    let r = (bounded - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * (r * r) + r + 1.0;
    // 2^n in two factors, because n may be 128.
    let bits = (n * 0.5 + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
    let half = f32::from_bits(((bits + 127) << 23) as u32);
    let whole = n as i32;
    let other = f32::from_bits(((whole - bits + 127) << 23) as u32);
    let result = p * half * other;
    if x < -87.3 { 0.0 } else { result }
}

/// 2^x within 3 units in the last place; 0 below -126, NaN for NaN; for x up to 0. Branch-free.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    const LN2: f32 = std::f32::consts::LN_2;
    const ROUND: f32 = 12_582_912.0;
    let low = if x < -126.0 { -126.0 } else { x };
    let n = (low + ROUND) - ROUND;
    let r = (low - n) * LN2;
    let mut p = 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * (r * r) + r + 1.0;
    let factor = f32::from_bits(((n as i32 + 127) << 23) as u32);
    if x < -126.0 { 0.0 } else { p * factor }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The standard normal distribution function, within 1e-7.
///
/// erfc(z) = e^(-z^2) t Q(t) with t = 1 / (1 + 0.3275911 z), z >= 0: the form of Abramowitz and Stegun 7.1.26, with
/// a polynomial of degree 7 fitted to relative error 6e-8 (weighted least squares on z in 0..7.5).
#[inline(always)]
pub(crate) fn normal_cdf(x: f32) -> f32 {
    const Q: [f32; 8] = [
        0.185_110_36,
        0.179_936_95,
        0.210_427_88,
        0.011_474_967,
        0.478_171_14,
        -0.431_802_33,
        0.511_193_6,
        -0.144_512_56,
    ];
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut q = Q[7];
    for i in (0..7).rev() {
        q = q * t + Q[i];
    }
    // z^2 rounded would lose digits for large z: x^2 / 2 directly.
    let upper = 0.5 * exp(-0.5 * x * x) * q * t;
    if x < 0.0 { upper } else { 1.0 - upper }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0f64;
        for i in -870_000..887_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2.4e-7, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn normal_cdf_known_values() {
        // From tables of the normal distribution.
        let known = [(0.0, 0.5), (1.0, 0.841_344_8), (-1.0, 0.158_655_26), (2.5, 0.993_790_3), (-4.0, 3.167_124e-5)];
        for (x, p) in known {
            assert!((normal_cdf(x) - p).abs() < 1.2e-7, "{x}");
        }
        assert!((normal_cdf(-4.0) / 3.167_124e-5 - 1.0).abs() < 2e-6);
        assert_eq!(normal_cdf(40.0), 1.0);
        assert_eq!(normal_cdf(-40.0), 0.0);
    }

    #[test]
    fn sums_and_maxima_cover_odd_lengths() {
        for n in [0, 1, 15, 16, 17, 100] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(sum2(&a, &a, |x, _| x), a.iter().sum::<f32>());
            assert_eq!(max(&a), a.last().copied().unwrap_or(f32::NEG_INFINITY));
        }
    }
}
