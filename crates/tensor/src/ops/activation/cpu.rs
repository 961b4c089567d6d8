//! Activations on the CPU: loops in [`super::vectors`] where there are any, else one plain loop per kind that the compiler vectorises.

use super::{Activation, vectors};
use crate::element::Element;
use crate::simd::{exp, multiversion, normal_cdf, sigmoid};
use crate::threads;

pub(super) fn forward<E: Element>(a: Activation, x: &[E], y: &mut [E]) {
    threads::for_each_rows(y, 1, |range, y| {
        if !vectors::forward(a, &x[range.clone()], y) {
            forward_piece(a, &x[range], y);
        }
    });
}

/// Overwrites x with g * a'(x).
pub(super) fn backward<E: Element>(a: Activation, g: &[E], x: &mut [E]) {
    threads::for_each_rows(x, 1, |range, x| {
        if !vectors::backward(a, &g[range.clone()], x) {
            backward_piece(a, &g[range], x);
        }
    });
}

/// x `[t, 2 n]`, y `[t, n]`.
pub(super) fn gated_forward<E: Element>(a: Activation, n: usize, x: &[E], y: &mut [E]) {
    threads::for_each_rows(y, n, |rows, y| {
        for (x, y) in x[2 * n * rows.start..2 * n * rows.end].chunks_exact(2 * n).zip(y.chunks_exact_mut(n)) {
            if !vectors::gated_forward(a, &x[..n], &x[n..], y) {
                gated_forward_row(a, &x[..n], &x[n..], y);
            }
        }
    });
}

/// Overwrites x with its gradient.
pub(super) fn gated_backward<E: Element>(a: Activation, n: usize, g: &[E], x: &mut [E]) {
    threads::for_each_rows(x, 2 * n, |rows, x| {
        for (x, g) in x.chunks_exact_mut(2 * n).zip(g[n * rows.start..n * rows.end].chunks_exact(n)) {
            let (gate, up) = x.split_at_mut(n);
            if !vectors::gated_backward(a, g, gate, up) {
                gated_backward_row(a, g, gate, up);
            }
        }
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

// Loops, not closures: the compiler may leave a closure of this size outside of the function with the instruction set.

multiversion! {
    fn forward_piece<E: Element>(a: Activation, x: &[E], y: &mut [E]) {
        with_activation!(a, f => for (y, &x) in y.iter_mut().zip(x) {
            *y = E::narrow(f(x.wide()).0);
        });
    }
}

multiversion! {
    fn backward_piece<E: Element>(a: Activation, g: &[E], x: &mut [E]) {
        with_activation!(a, f => for (x, &g) in x.iter_mut().zip(g) {
            *x = E::narrow(g.wide() * f(x.wide()).1);
        });
    }
}

multiversion! {
    fn gated_forward_row<E: Element>(a: Activation, gate: &[E], up: &[E], y: &mut [E]) {
        with_activation!(a, f => for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = E::narrow(f(gate.wide()).0 * up.wide());
        });
    }
}

multiversion! {
    fn gated_backward_row<E: Element>(a: Activation, g: &[E], gate: &mut [E], up: &mut [E]) {
        with_activation!(a, f => for ((gate, up), &g) in gate.iter_mut().zip(up).zip(g) {
            let (value, slope) = f(gate.wide());
            *gate = E::narrow(g.wide() * up.wide() * slope);
            *up = E::narrow(g.wide() * value);
        });
    }
}
