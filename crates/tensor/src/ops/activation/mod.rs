//! Activations y = a(x) and gated activations y = a(gate) * up, element by element, f32, any shape.
//!
//! Definitions as `transformers.activations`: `gelu` with the error function, `gelu_pytorch_tanh` = `gelu_new` the tanh
//! approximation, `quick_gelu` x * sigmoid(1.702 x), `silu` x * sigmoid(x), `relu`. Backward: dx = g * a'(x);
//! dgate = g * up * a'(gate), dup = g * a(gate). Kept: x, or gate and up; the gradients overwrite them when nobody
//! else refers to them.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::str::FromStr;

use crate::dtype::DType;
use crate::error::{Error, Result};
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
        let place = self.place("activation", "x", x)?;
        let mut y = Tensor::stale(x.shape(), DType::F32)?;
        cpu::forward(a, x.value().f32s()?, y.f32s_mut()?);
        let Some(place) = place else { return Ok(self.constant(y)) };
        let x = x.value().clone();
        Ok(self.push_op(y, move |g, sweep| {
            let mut dx = x.into_unique()?;
            cpu::backward(a, g.f32s()?, dx.f32s_mut()?);
            sweep.give(Some(place), dx)
        }))
    }

    /// a(gate) * up, element by element; equal shapes.
    pub fn gated(&self, gate: &Var, up: &Var, a: Activation) -> Result<Var> {
        let places = (self.place("gated", "gate", gate)?, self.place("gated", "up", up)?);
        if gate.shape() != up.shape() {
            return Err(Error::shape("gated", "up", format!("{:?}, as gate", gate.shape()), up.shape()));
        }
        let mut y = Tensor::stale(gate.shape(), DType::F32)?;
        cpu::gated_forward(a, gate.value().f32s()?, up.value().f32s()?, y.f32s_mut()?);
        if places == (None, None) {
            return Ok(self.constant(y));
        }
        let (gate, up) = (gate.value().clone(), up.value().clone());
        Ok(self.push_op(y, move |g, sweep| {
            let (mut dgate, mut dup) = (gate.into_unique()?, up.into_unique()?);
            cpu::gated_backward(a, g.f32s()?, dgate.f32s_mut()?, dup.f32s_mut()?);
            sweep.give(places.0, dgate)?;
            sweep.give(places.1, dup)
        }))
    }
}
