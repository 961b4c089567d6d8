//! RMSNorm: y = x * r * w, r = 1 / sqrt(mean(x^2) + eps), by row (Zhang and Sennrich 2019).
//!
//! x and y `[t, n]` f32 or bf16, each its own, w `[n]` f32, bf16 or f16; sums in f32. Backward with s = g * w:
//! dx = r * (s - x * r^2 * mean(s * x)), dw = sum over rows of g * x * r. Kept: x, in bf16 when y is bf16, and r by row.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dtype::DType;
use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::ops::{kept_input, norm_weight};
use crate::param::Param;
use crate::profile;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::wide::Wide;

impl Tape {
    /// x / sqrt(mean(x^2) + eps) * weight, by row, in x's dtype; x `[t, n]`, weight `[n]`.
    pub fn rms_norm(&self, x: &Var, weight: &Param, eps: f32) -> Result<Var> {
        self.rms_norm_as(x, weight, eps, x.value().dtype())
    }

    /// As [`Tape::rms_norm`] with a result of another dtype.
    pub fn rms_norm_as(&self, x: &Var, weight: &Param, eps: f32, dtype: DType) -> Result<Var> {
        let _span = profile::span("rms_norm");
        let place = self.place("rms_norm", "x", x)?;
        let [t, n] = *x.shape() else {
            return Err(Error::shape("rms_norm", "x", "[t, n]", x.shape()));
        };
        let w = norm_weight("rms_norm", "weight", weight, n)?;
        let mut y = Tensor::stale(&[t, n], dtype)?;
        let mut inverse = Tensor::stale(&[t], DType::F32)?;
        let x_dtype = x.value().dtype();
        with_element!("rms_norm", "x", x_dtype, X => with_element!("rms_norm", "y", dtype, Y => cpu::forward(
            X::of(x.value())?, Wide::of(&w)?.f32s()?, eps, Y::of_mut(&mut y)?, inverse.f32s_mut()?
        )));
        let trained = self.trains(weight).then(|| weight.clone());
        if place.is_none() && trained.is_none() {
            return Ok(self.constant(y));
        }
        let (kept, kept_dtype) = kept_input(self, x, dtype)?;
        Ok(self.push_op(y, move |g, sweep| {
            let inverse = inverse.f32s()?;
            with_element!("rms_norm", "x", kept_dtype, X => with_element!("rms_norm", "y", dtype, Y => {
                let (g, x) = (Y::of(&g)?, X::of(&kept)?);
                if let Some(weight) = trained {
                    let (dw, write) = sweep.weight(&weight)?;
                    cpu::weight_gradient(g, x, inverse, dw, write)?;
                }
                let Some(place) = place else { return Ok(()) };
                let w = Wide::of(&w)?;
                sweep.write_as(place, &[t, n], x_dtype, |dx, write| {
                    with_element!("rms_norm", "x", x_dtype, D => {
                        cpu::input_gradient(g, x, w.f32s()?, inverse, D::of_mut(dx)?, write);
                    });
                    Ok(())
                })
            }))
        }))
    }
}
