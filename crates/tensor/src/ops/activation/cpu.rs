//! Activations on the CPU, one vectorised loop per kind.

use super::Activation;
use crate::simd::{exp, multiversion, normal_cdf, sigmoid};
use crate::threads;

pub(super) fn forward(a: Activation, x: &[f32], y: &mut [f32]) {
    threads::for_each_rows(y, 1, |range, y| forward_piece(a, &x[range], y));
}

/// Overwrites x with g * a'(x).
pub(super) fn backward(a: Activation, g: &[f32], x: &mut [f32]) {
    threads::for_each_rows(x, 1, |range, x| backward_piece(a, &g[range], x));
}

pub(super) fn gated_forward(a: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
    threads::for_each_rows(y, 1, |range, y| gated_forward_piece(a, &gate[range.clone()], &up[range], y));
}

/// Overwrites gate and up with their gradients.
pub(super) fn gated_backward(a: Activation, g: &[f32], gate: &mut [f32], up: &mut [f32]) {
    let up = threads::Shared::new(up);
    threads::for_each_rows(gate, 1, |range, gate| {
        // SAFETY: pieces are disjoint.
        let up = unsafe { up.slice(range.clone()) };
        gated_backward_piece(a, &g[range], gate, up);
    });
}

/// a(x) and a'(x).
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let s = sigmoid(x);
    (x * s, s + x * s * (1.0 - s))
}

#[inline(always)]
fn quick_gelu(x: f32) -> (f32, f32) {
    let s = sigmoid(1.702 * x);
    (x * s, s + 1.702 * x * s * (1.0 - s))
}

/// 0.5 (1 + tanh u) = sigmoid(2 u).
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    const TWICE: f32 = 1.595_769;
    let s = sigmoid(TWICE * (x + 0.044_715 * x * x * x));
    (x * s, s + x * s * (1.0 - s) * TWICE * (1.0 + 3.0 * 0.044_715 * x * x))
}

#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    const INVERSE_ROOT_TWO_PI: f32 = 0.398_942_3;
    let p = normal_cdf(x);
    (x * p, p + x * INVERSE_ROOT_TWO_PI * exp(-0.5 * x * x))
}

#[inline(always)]
fn relu(x: f32) -> (f32, f32) {
    // NaN stays NaN.
    if x <= 0.0 { (0.0, 0.0) } else { (x, 1.0) }
}

/// Runs a loop with the activation known at compile time, so that it vectorises.
macro_rules! with_activation {
    ($a:expr, $f:ident => $body:expr) => {
        match $a {
            Activation::Gelu => {
                let $f = gelu;
                $body
            }
            Activation::GeluTanh => {
                let $f = gelu_tanh;
                $body
            }
            Activation::QuickGelu => {
                let $f = quick_gelu;
                $body
            }
            Activation::Silu => {
                let $f = silu;
                $body
            }
            Activation::Relu => {
                let $f = relu;
                $body
            }
        }
    };
}

multiversion! {
    fn forward_piece(a: Activation, x: &[f32], y: &mut [f32]) {
        with_activation!(a, f => y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x).0));
    }
}

multiversion! {
    fn backward_piece(a: Activation, g: &[f32], x: &mut [f32]) {
        with_activation!(a, f => x.iter_mut().zip(g).for_each(|(x, &g)| *x = g * f(*x).1));
    }
}

multiversion! {
    fn gated_forward_piece(a: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
        with_activation!(a, f => y.iter_mut().zip(gate).zip(up).for_each(|((y, &gate), &up)| *y = f(gate).0 * up));
    }
}

multiversion! {
    fn gated_backward_piece(a: Activation, g: &[f32], gate: &mut [f32], up: &mut [f32]) {
        with_activation!(a, f => gate.iter_mut().zip(up).zip(g).for_each(|((gate, up), &g)| {
            let (value, slope) = f(*gate);
            *gate = g * *up * slope;
            *up = g * value;
        }));
    }
}
