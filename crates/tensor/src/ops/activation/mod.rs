//! Activations y = a(x), element by element, any shape, and gated activations y = a(gate) * up, x `[t, 2 n]` with gate in
//! the first n columns and up in the others, y `[t, n]`. f32 or bf16, computed in f32.
//!
//! Definitions as `transformers.activations`: `gelu` with the error function, `gelu_pytorch_tanh` = `gelu_new` the tanh
//! approximation, `quick_gelu` x * sigmoid(1.702 x), `silu` x * sigmoid(x), `relu`. Backward: dx = g * a'(x);
//! dgate = g * up * a'(gate), dup = g * a(gate). Kept: x; its gradient overwrites it when nobody else refers to it.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
mod vectors;

use std::str::FromStr;

use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::profile;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// An element-wise non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x * Phi(x), with the error function.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// x * sigmoid(1.702 x).
    QuickGelu,
    /// x * sigmoid(x).
    Silu,
    /// max(x, 0).
    Relu,
}

/// Names as Hugging Face configurations spell them.
const NAMES: [(&str, Activation); 9] = [
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("quick_gelu", Activation::QuickGelu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("relu", Activation::Relu),
];

impl FromStr for Activation {
    type Err = Error;

    fn from_str(name: &str) -> Result<Activation> {
        let found = NAMES.iter().find(|(known, _)| *known == name);
        found.map(|&(_, activation)| activation).ok_or_else(|| {
            let known = NAMES.map(|(known, _)| format!("`{known}`")).join(", ");
            Error::argument("activation", format!("`{name}` is not known; known are {known}"))
        })
    }
}

impl Tape {
    /// a(x), element by element.
    pub fn activation(&self, x: &Var, a: Activation) -> Result<Var> {
        let _span = profile::span("activation");
        let place = self.place("activation", "x", x)?;
        let dtype = x.value().dtype();
        let mut y = Tensor::stale(x.shape(), dtype)?;
        with_element!("activation", "x", dtype, E => cpu::forward(a, E::of(x.value())?, E::of_mut(&mut y)?));
        let Some(place) = place else { return Ok(self.constant(y)) };
        let x = x.value().clone();
        Ok(self.push_op(y, move |g, sweep| {
            let mut dx = x.into_unique()?;
            with_element!("activation", "x", dtype, E => cpu::backward(a, E::of(&g)?, E::of_mut(&mut dx)?));
            sweep.give(Some(place), dx)
        }))
    }

    /// a(gate) * up; x `[t, 2 n]` holds gate and up side by side, the result is `[t, n]`.
    pub fn gated(&self, x: &Var, a: Activation) -> Result<Var> {
        let _span = profile::span("gated");
        let place = self.place("gated", "x", x)?;
        let (t, n) = match *x.shape() {
            [t, width] if width % 2 == 0 => (t, width / 2),
            _ => return Err(Error::shape("gated", "x", "[t, 2 n]", x.shape())),
        };
        let dtype = x.value().dtype();
        let mut y = Tensor::stale(&[t, n], dtype)?;
        with_element!("gated", "x", dtype, E => cpu::gated_forward(a, n, E::of(x.value())?, E::of_mut(&mut y)?));
        let Some(place) = place else { return Ok(self.constant(y)) };
        let x = x.value().clone();
        Ok(self.push_op(y, move |g, sweep| {
            let mut dx = x.into_unique()?;
            with_element!("gated", "x", dtype, E => cpu::gated_backward(a, n, E::of(&g)?, E::of_mut(&mut dx)?));
            sweep.give(Some(place), dx)
        }))
    }
}
