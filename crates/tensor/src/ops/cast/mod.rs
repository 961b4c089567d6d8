//! Casting: the same numbers in the other dtype of activations, f32 or bf16, rounded to nearest even. Any shape. Backward
//! casts the gradient back. Nothing is kept.

use crate::dtype::DType;
use crate::element::{Element, with_element};
use crate::error::Result;
use crate::profile;
use crate::simd::multiversion;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::threads;

impl Tape {
    /// x in another dtype; the same dtype shares the buffer.
    pub fn cast(&self, x: &Var, dtype: DType) -> Result<Var> {
        let _span = profile::span("cast");
        let place = self.place("cast", "x", x)?;
        let from = x.value().dtype();
        if from == dtype {
            return Ok(x.clone());
        }
        let y = converted(x.value(), dtype)?;
        let Some(place) = place else { return Ok(self.constant(y)) };
        Ok(self.push_op(y, move |g, sweep| sweep.give(Some(place), converted(&g, from)?)))
    }
}

/// The same numbers in another dtype of activations; the same dtype shares the buffer.
pub(crate) fn converted(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    let mut y = Tensor::stale(x.shape(), dtype)?;
    with_element!("cast", "x", x.dtype(), X => with_element!("cast", "target", dtype, Y => {
        let x = X::of(x)?;
        threads::for_each_rows(Y::of_mut(&mut y)?, 1, |range, y| convert_piece(&x[range], y));
    }));
    Ok(y)
}

multiversion! {
    fn convert_piece<X: Element, Y: Element>(x: &[X], y: &mut [Y]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = Y::narrow(x.wide()));
    }
}
