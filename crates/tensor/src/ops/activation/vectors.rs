//! Owns activations of the form x * sigmoid(u(x)) with AVX-512: fused multiplications and `vscalefps` take half the
//! instructions of the plain loops. Refuses other forms and processors: the plain loops are for them.

use super::Activation;
use crate::element::Element;

/// Calls a loop with u known at compile time, where there is one.
macro_rules! run {
    ($a:expr, $f:ident($($arg:expr),*)) => {{
        #[cfg(target_arch = "x86_64")]
        if $crate::simd::level() == $crate::simd::Level::Avx512 {
            // SAFETY: `level` found AVX-512.
            unsafe {
                match $a {
                    Activation::Silu => x86::$f::<E, x86::Silu>($($arg),*),
                    Activation::QuickGelu => x86::$f::<E, x86::QuickGelu>($($arg),*),
                    Activation::GeluTanh => x86::$f::<E, x86::GeluTanh>($($arg),*),
                    Activation::Gelu | Activation::Relu => return false,
                }
            }
            return true;
        }
        // Other processors take the plain loops.
        let _ = ($a, $($arg),*);
        false
    }};
}
/// y = a(x). Whether it was computed.
pub(super) fn forward<E: Element>(a: Activation, x: &[E], y: &mut [E]) -> bool {
    run!(a, forward(x, y))
}

/// x = g * a'(x). Whether it was computed.
pub(super) fn backward<E: Element>(a: Activation, g: &[E], x: &mut [E]) -> bool {
    run!(a, backward(g, x))
}

/// y = a(gate) * up. Whether it was computed.
pub(super) fn gated_forward<E: Element>(a: Activation, gate: &[E], up: &[E], y: &mut [E]) -> bool {
    run!(a, gated_forward(gate, up, y))
}

/// gate = g * up * a'(gate), up = g * a(gate). Whether it was computed.
pub(super) fn gated_backward<E: Element>(a: Activation, g: &[E], gate: &mut [E], up: &mut [E]) -> bool {
    run!(a, gated_backward(g, gate, up))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The loops; the last vector of a row is partial, by its mask.

    use std::arch::x86_64::{
        __m512, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm512_add_ps, _mm512_div_ps, _mm512_fmadd_ps,
        _mm512_fnmadd_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_roundscale_ps, _mm512_scalef_ps,
        _mm512_set1_ps, _mm512_sub_ps,
    };

    use crate::element::{Element, LANES};

    /// u of x * sigmoid(u(x)).
    pub(super) trait Inner {
        /// u(x).
        ///
        /// # Safety
        /// AVX-512 F.
        unsafe fn at(x: __m512) -> __m512;

        /// u'(x).
        ///
        /// # Safety
        /// AVX-512 F.
        unsafe fn slope(x: __m512) -> __m512;
    }

    /// u = x.
    pub(super) struct Silu;

    impl Inner for Silu {
        #[inline(always)]
        unsafe fn at(x: __m512) -> __m512 {
            x
        }

        #[inline(always)]
        unsafe fn slope(_: __m512) -> __m512 {
            // SAFETY: handed on to the caller.
            unsafe { _mm512_set1_ps(1.0) }
        }
    }

    /// u = 1.702 x.
    pub(super) struct QuickGelu;

    impl Inner for QuickGelu {
        #[inline(always)]
        unsafe fn at(x: __m512) -> __m512 {
            // SAFETY: handed on to the caller.
            unsafe { _mm512_mul_ps(_mm512_set1_ps(1.702), x) }
        }

        #[inline(always)]
        unsafe fn slope(_: __m512) -> __m512 {
            // SAFETY: handed on to the caller.
            unsafe { _mm512_set1_ps(1.702) }
        }
    }

    /// u = 2 sqrt(2 / pi) (x + 0.044715 x^3), because 0.5 (1 + tanh v) = sigmoid(2 v).
    pub(super) struct GeluTanh;

    const TWICE: f32 = 1.595_769;

    impl Inner for GeluTanh {
        #[inline(always)]
        unsafe fn at(x: __m512) -> __m512 {
            // SAFETY: handed on to the caller.
            unsafe {
                let cubic = _mm512_set1_ps(TWICE * 0.044_715);
                _mm512_mul_ps(x, _mm512_fmadd_ps(_mm512_mul_ps(cubic, x), x, _mm512_set1_ps(TWICE)))
            }
        }

        #[inline(always)]
        unsafe fn slope(x: __m512) -> __m512 {
            // SAFETY: handed on to the caller.
            unsafe {
                let cubic = _mm512_set1_ps(3.0 * TWICE * 0.044_715);
                _mm512_fmadd_ps(_mm512_mul_ps(cubic, x), x, _mm512_set1_ps(TWICE))
            }
        }
    }

    /// 1 / (1 + e^-u); NaN for NaN. e^z = 2^n e^r with |r| <= ln 2 / 2, e^r by Taylor's polynomial of degree 6: exact to
    /// about an ulp.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn sigmoid(u: __m512) -> __m512 {
        // ln 2 in two parts; the first has trailing zeros, so that n times it is exact.
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        // NaN comes second, so that it stays. Beyond 100 the result is 0 or 1 in f32.
        let bounded = _mm512_min_ps(_mm512_set1_ps(100.0), _mm512_max_ps(_mm512_set1_ps(-100.0), u));
        let scaled = _mm512_mul_ps(_mm512_set1_ps(-std::f32::consts::LOG2_E), bounded);
        let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(scaled);
        let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), _mm512_sub_ps(_mm512_set1_ps(0.0), bounded));
        let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
        let mut p = _mm512_set1_ps(1.0 / 720.0);
        for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
        }
        let one = _mm512_set1_ps(1.0);
        _mm512_div_ps(one, _mm512_add_ps(one, _mm512_scalef_ps(p, n)))
    }

    /// a(x).
    ///
    /// # Safety
    /// AVX-512 F.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn value<U: Inner>(x: __m512) -> __m512 {
        // SAFETY: handed on to the caller.
        _mm512_mul_ps(x, sigmoid(unsafe { U::at(x) }))
    }

    /// a(x) and a'(x) = s + x s (1 - s) u'(x).
    ///
    /// # Safety
    /// AVX-512 F.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn value_and_slope<U: Inner>(x: __m512) -> (__m512, __m512) {
        // SAFETY: handed on to the caller.
        let (s, slope) = unsafe { (sigmoid(U::at(x)), U::slope(x)) };
        let value = _mm512_mul_ps(x, s);
        let rest = _mm512_mul_ps(_mm512_sub_ps(_mm512_set1_ps(1.0), s), slope);
        (value, _mm512_fmadd_ps(value, rest, s))
    }

    /// The lanes of the vector from `at` on of `n` elements.
    #[inline(always)]
    fn mask(n: usize, at: usize) -> u16 {
        if n - at >= LANES { u16::MAX } else { (1 << (n - at)) - 1 }
    }

    /// # Safety
    /// AVX-512 F, VL and BW.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw")]
    pub(super) unsafe fn forward<E: Element, U: Inner>(x: &[E], y: &mut [E]) {
        let n = x.len().min(y.len());
        for at in (0..n).step_by(LANES) {
            let mask = mask(n, at);
            // SAFETY: the mask keeps reads and writes inside of the slices.
            unsafe { E::store(y.as_mut_ptr().add(at), mask, value::<U>(E::load(x.as_ptr().add(at), mask))) };
        }
    }

    /// # Safety
    /// AVX-512 F, VL and BW.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw")]
    pub(super) unsafe fn backward<E: Element, U: Inner>(g: &[E], x: &mut [E]) {
        let n = x.len().min(g.len());
        for at in (0..n).step_by(LANES) {
            let mask = mask(n, at);
            // SAFETY: the mask keeps reads and writes inside of the slices.
            unsafe {
                let x = x.as_mut_ptr().add(at);
                let (_, slope) = value_and_slope::<U>(E::load(x, mask));
                E::store(x, mask, _mm512_mul_ps(E::load(g.as_ptr().add(at), mask), slope));
            }
        }
    }

    /// # Safety
    /// AVX-512 F, VL and BW.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw")]
    pub(super) unsafe fn gated_forward<E: Element, U: Inner>(gate: &[E], up: &[E], y: &mut [E]) {
        let n = gate.len().min(up.len()).min(y.len());
        for at in (0..n).step_by(LANES) {
            let mask = mask(n, at);
            // SAFETY: the mask keeps reads and writes inside of the slices.
            unsafe {
                let value = value::<U>(E::load(gate.as_ptr().add(at), mask));
                E::store(y.as_mut_ptr().add(at), mask, _mm512_mul_ps(value, E::load(up.as_ptr().add(at), mask)));
            }
        }
    }

    /// # Safety
    /// AVX-512 F, VL and BW.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw")]
    pub(super) unsafe fn gated_backward<E: Element, U: Inner>(g: &[E], gate: &mut [E], up: &mut [E]) {
        let n = g.len().min(gate.len()).min(up.len());
        for at in (0..n).step_by(LANES) {
            let mask = mask(n, at);
            // SAFETY: the mask keeps reads and writes inside of the slices.
            unsafe {
                let (gate, up) = (gate.as_mut_ptr().add(at), up.as_mut_ptr().add(at));
                let g = E::load(g.as_ptr().add(at), mask);
                let (value, slope) = value_and_slope::<U>(E::load(gate, mask));
                E::store(gate, mask, _mm512_mul_ps(_mm512_mul_ps(g, E::load(up, mask)), slope));
                E::store(up, mask, _mm512_mul_ps(g, value));
            }
        }
    }
}
