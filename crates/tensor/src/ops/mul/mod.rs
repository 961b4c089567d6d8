//! Product: y = a * b, element by element, equal shapes, f32. Backward: da = g * b, db = g * a. Kept: the other side of
//! each input that wants a gradient.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::simd::multiversion;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::threads;

impl Tape {
    /// a * b; equal shapes.
    pub fn mul(&self, a: &Var, b: &Var) -> Result<Var> {
        let places = [self.place("mul", "a", a)?, self.place("mul", "b", b)?];
        if a.shape() != b.shape() {
            return Err(Error::shape("mul", "b", format!("{:?}, as a", a.shape()), b.shape()));
        }
        let mut y = Tensor::stale(a.shape(), DType::F32)?;
        product(a.value().f32s()?, b.value().f32s()?, y.f32s_mut()?, Write::Replace);
        if places == [None, None] {
            return Ok(self.constant(y));
        }
        let others = [places[0].map(|_| b.value().clone()), places[1].map(|_| a.value().clone())];
        Ok(self.push_op(y, move |g, sweep| {
            for (place, other) in places.into_iter().zip(others) {
                let (Some(place), Some(other)) = (place, other) else { continue };
                sweep.write(place, other.shape(), |to, write| {
                    product(g.f32s()?, other.f32s()?, to, write);
                    Ok(())
                })?;
            }
            Ok(())
        }))
    }
}

/// to (+)= a * b.
fn product(a: &[f32], b: &[f32], to: &mut [f32], write: Write) {
    threads::for_each_rows(to, 1, |range, to| product_piece(&a[range.clone()], &b[range], to, write));
}

multiversion! {
    fn product_piece(a: &[f32], b: &[f32], to: &mut [f32], write: Write) {
        let parts = to.iter_mut().zip(a).zip(b);
        match write {
            Write::Replace => parts.for_each(|((to, a), b)| *to = a * b),
            Write::Add => parts.for_each(|((to, a), b)| *to += a * b),
        }
    }
}
