//! RMSNorm: y = x * r * w, r = 1 / sqrt(mean(x^2) + eps), by row (Zhang and Sennrich 2019).
//!
//! x `[t, n]` f32, w `[n]` f32, bf16 or f16, y `[t, n]` f32; sums in f32. Backward with s = g * w:
//! dx = r * (s - x * r^2 * mean(s * x)), dw = sum over rows of g * x * r. Kept: x, and r by row.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::norm_weight;
use crate::param::Param;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::wide::Wide;

impl Tape {
    /// x / sqrt(mean(x^2) + eps) * weight, by row; x `[t, n]`, weight `[n]`.
    pub fn rms_norm(&self, x: &Var, weight: &Param, eps: f32) -> Result<Var> {
        let place = self.place("rms_norm", "x", x)?;
        let [t, n] = *x.shape() else {
            return Err(Error::shape("rms_norm", "x", "[t, n]", x.shape()));
        };
        let w = norm_weight("rms_norm", "weight", weight, n)?;
        let mut y = Tensor::stale(&[t, n], DType::F32)?;
        let mut inverse = Tensor::stale(&[t], DType::F32)?;
        cpu::forward(x.value().f32s()?, Wide::of(&w)?.f32s()?, eps, y.f32s_mut()?, inverse.f32s_mut()?);
        let trained = self.trains(weight).then(|| weight.clone());
        if place.is_none() && trained.is_none() {
            return Ok(self.constant(y));
        }
        let x = x.value().clone();
        Ok(self.push_op(y, move |g, sweep| {
            let (g, x, inverse) = (g.f32s()?, x.f32s()?, inverse.f32s()?);
            if let Some(weight) = trained {
                let (dw, write) = sweep.weight(&weight)?;
                cpu::weight_gradient(g, x, inverse, dw, write)?;
            }
            let Some(place) = place else { return Ok(()) };
            let w = Wide::of(&w)?;
            sweep.write(place, &[t, n], |dx, write| {
                cpu::input_gradient(g, x, w.f32s()?, inverse, dx, write);
                Ok(())
            })
        }))
    }
}
