//! LayerNorm: y = (x - m) * r * w + b, r = 1 / sqrt(var(x) + eps), biased variance, by row (Ba et al. 2016).
//!
//! x and y `[t, n]` f32 or bf16, each its own, w and b `[n]` f32, bf16 or f16; sums in f32, the variance from centred
//! values.
//! Backward with s = g * w and z = (x - m) * r: dx = r * (s - mean(s) - z * mean(s * z)), dw = sum of g * z over rows,
//! db = sum of g. Kept: x, in bf16 when y is bf16, and m
//! and r by row.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dtype::DType;
use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::ops::{kept_input, norm_weight, sum_rows};
use crate::param::Param;
use crate::profile;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::wide::Wide;

impl Tape {
    /// (x - mean) / sqrt(var + eps) * weight + bias, by row, in x's dtype; x `[t, n]`, weight and bias `[n]`.
    pub fn layer_norm(&self, x: &Var, weight: &Param, bias: &Param, eps: f32) -> Result<Var> {
        self.layer_norm_as(x, weight, bias, eps, x.value().dtype())
    }

    /// As [`Tape::layer_norm`] with a result of another dtype.
    pub fn layer_norm_as(&self, x: &Var, weight: &Param, bias: &Param, eps: f32, dtype: DType) -> Result<Var> {
        let _span = profile::span("layer_norm");
        let place = self.place("layer_norm", "x", x)?;
        let [t, n] = *x.shape() else {
            return Err(Error::shape("layer_norm", "x", "[t, n]", x.shape()));
        };
        let w = norm_weight("layer_norm", "weight", weight, n)?;
        let b = norm_weight("layer_norm", "bias", bias, n)?;
        let mut y = Tensor::stale(&[t, n], dtype)?;
        // Mean and inverse deviation of each row, side by side.
        let mut moments = Tensor::stale(&[t, 2], DType::F32)?;
        let (w_wide, b_wide) = (Wide::of(&w)?, Wide::of(&b)?);
        let x_dtype = x.value().dtype();
        with_element!("layer_norm", "x", x_dtype, X => with_element!("layer_norm", "y", dtype, Y => cpu::forward(
            X::of(x.value())?, w_wide.f32s()?, b_wide.f32s()?, eps, Y::of_mut(&mut y)?, moments.f32s_mut()?
        )));
        let trained_weight = self.trains(weight).then(|| weight.clone());
        let trained_bias = self.trains(bias).then(|| bias.clone());
        if place.is_none() && trained_weight.is_none() && trained_bias.is_none() {
            return Ok(self.constant(y));
        }
        drop(w_wide);
        let (kept, kept_dtype) = kept_input(self, x, dtype)?;
        Ok(self.push_op(y, move |g, sweep| {
            let moments = moments.f32s()?;
            with_element!("layer_norm", "x", kept_dtype, X => with_element!("layer_norm", "y", dtype, Y => {
                let (g, x) = (Y::of(&g)?, X::of(&kept)?);
                if let Some(weight) = trained_weight {
                    let (dw, write) = sweep.weight(&weight)?;
                    cpu::weight_gradient(g, x, moments, dw, write)?;
                }
                if let Some(bias) = trained_bias {
                    let (db, write) = sweep.weight(&bias)?;
                    sum_rows(g, n, 0, db, write)?;
                }
                let Some(place) = place else { return Ok(()) };
                let w = Wide::of(&w)?;
                sweep.write_as(place, &[t, n], x_dtype, |dx, write| {
                    with_element!("layer_norm", "x", x_dtype, D => {
                        cpu::input_gradient(g, x, w.f32s()?, moments, D::of_mut(dx)?, write);
                    });
                    Ok(())
                })
            }))
        }))
    }
}
