//! Scaling: y = factor * x, f32 or bf16, any shape. Backward: dx = factor * g. Nothing is kept.

use crate::element::{Element, with_element};
use crate::error::Result;
use crate::simd::multiversion;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::threads;

impl Tape {
    /// factor * x.
    pub fn scale(&self, x: &Var, factor: f32) -> Result<Var> {
        let place = self.place("scale", "x", x)?;
        let y = scaled(x.value().clone(), factor)?;
        let Some(place) = place else { return Ok(self.constant(y)) };
        Ok(self.push_op(y, move |g, sweep| sweep.give(Some(place), scaled(g, factor)?)))
    }
}

/// factor * x, written over x when nobody else refers to it.
pub(crate) fn scaled(x: Tensor, factor: f32) -> Result<Tensor> {
    let mut y = x.into_unique()?;
    with_element!("scale", "x", y.dtype(), E => {
        if factor != 1.0 {
            threads::for_each_rows(E::of_mut(&mut y)?, 1, |_, y| scale_piece(y, factor));
        }
    });
    Ok(y)
}

multiversion! {
    fn scale_piece<E: Element>(y: &mut [E], factor: f32) {
        y.iter_mut().for_each(|y| *y = E::narrow(y.wide() * factor));
    }
}
