//! Linear: y = x.W^T + b, with an optional low-rank term y += s * dropout(x).A^T.B^T (LoRA, Hu et al. 2021; dropout
//! before A as in `peft`) and an optional residual y += r.
//!
//! x `[t, in]` f32; W `[out, in]`, b `[out]`, A `[r, in]`, B `[out, r]` f32, bf16 or f16; y `[t, out]` f32. Accumulation
//! f32. Backward: dx = g.W + mask(s g.B.A), dW = g^T.x, db = sum of rows of g, dB = s g^T.h with h = dropout(x).A^T,
//! dA = (s g.B)^T.dropout(x), dr = g. The low-rank term is never multiplied out to `[out, in]`. Kept: x when W or A is
//! trainable, h when B is; nothing when only dx is wanted. Weight gradients are f32 and go straight to `Gradients`.

pub(crate) mod kernel;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::ops::dropout::Dropout;
use crate::param::Param;
use crate::tape::{Sweep, Tape, Var};
use crate::tensor::Tensor;
use kernel::{LoraSnapshot, Snapshot, Targets};

/// The weights of a linear layer.
#[derive(Debug, Clone)]
pub struct LinearWeights {
    /// `[out, in]`; f32, bf16 or f16.
    pub weight: Param,
    /// `[out]`.
    pub bias: Option<Param>,
    /// A low-rank term.
    pub lora: Option<LoraWeights>,
}

/// The low-rank term scale * dropout(x).A^T.B^T.
#[derive(Debug, Clone)]
pub struct LoraWeights {
    /// `[r, in]`.
    pub a: Param,
    /// `[out, r]`.
    pub b: Param,
    /// Factor of the term (alpha / r).
    pub scale: f32,
    /// Probability of dropping an element of x before A.
    pub dropout: f32,
}

/// Which weights of a call are trained.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) weight: bool,
    pub(crate) bias: bool,
    pub(crate) a: bool,
    pub(crate) b: bool,
}

impl Wanted {
    pub(crate) fn any(self) -> bool {
        self.weight || self.bias || self.a || self.b
    }
}

impl LinearWeights {
    /// A dense layer.
    pub fn new(weight: Param, bias: Option<Param>) -> LinearWeights {
        LinearWeights { weight, bias, lora: None }
    }

    /// Checks shapes and dtypes against x and takes the weights as they are now.
    pub(crate) fn snapshot(&self, op: &'static str, tape: &Tape, x: &Var) -> Result<Snapshot> {
        let weight = self.weight.value();
        let [outputs, inputs] = *weight.shape() else {
            return Err(Error::shape(op, "weight", "[out, in]", weight.shape()));
        };
        let float = |what, t: &Tensor| match t.dtype() {
            found if !found.is_float() => Err(Error::DType { op, what, expected: "a float", found }),
            _ => Ok(()),
        };
        float("weight", &weight)?;
        if x.shape().len() != 2 || x.shape()[1] != inputs {
            return Err(Error::shape(op, "x", format!("[t, {inputs}]"), x.shape()));
        }
        let bias = self.bias.as_ref().map(Param::value);
        if let Some(bias) = &bias {
            float("bias", bias)?;
            if bias.shape() != [outputs] {
                return Err(Error::shape(op, "bias", format!("[{outputs}]"), bias.shape()));
            }
        }
        let Some(lora) = &self.lora else { return Ok(Snapshot { weight, bias, lora: None }) };
        let (a, b) = (lora.a.value(), lora.b.value());
        float("lora a", &a)?;
        float("lora b", &b)?;
        if a.shape().len() != 2 || a.shape()[1] != inputs {
            return Err(Error::shape(op, "lora a", format!("[r, {inputs}]"), a.shape()));
        }
        if b.shape() != [outputs, a.shape()[0]] {
            return Err(Error::shape(op, "lora b", format!("[{outputs}, {}]", a.shape()[0]), b.shape()));
        }
        let dropout = Dropout::next(tape, lora.dropout)?;
        Ok(Snapshot { weight, bias, lora: Some(LoraSnapshot { a, b, scale: lora.scale, dropout }) })
    }

    pub(crate) fn wanted(&self, tape: &Tape) -> Wanted {
        let trains = |param: Option<&Param>| param.is_some_and(|param| tape.trains(param));
        Wanted {
            weight: tape.trains(&self.weight),
            bias: trains(self.bias.as_ref()),
            a: trains(self.lora.as_ref().map(|lora| &lora.a)),
            b: trains(self.lora.as_ref().map(|lora| &lora.b)),
        }
    }

    /// Runs one backward kernel per weight, so that each borrows its gradient alone.
    fn weight_gradients(&self, wanted: Wanted, sweep: &mut Sweep<'_>, call: &Call<'_>) -> Result<()> {
        if wanted.weight {
            call.run(Targets { weight: Some(sweep.weight(&self.weight)?), ..Targets::default() })?;
        }
        if let (true, Some(bias)) = (wanted.bias, &self.bias) {
            call.run(Targets { bias: Some(sweep.weight(bias)?), ..Targets::default() })?;
        }
        if let (true, Some(lora)) = (wanted.b, &self.lora) {
            call.run(Targets { b: Some(sweep.weight(&lora.b)?), ..Targets::default() })?;
        }
        Ok(())
    }
}

/// The values of one backward call.
struct Call<'a> {
    weights: &'a Snapshot,
    g: &'a Tensor,
    x: Option<&'a Tensor>,
    h: Option<&'a Tensor>,
}

impl Call<'_> {
    fn run(&self, to: Targets<'_>) -> Result<()> {
        let x = self.x.map(Tensor::f32s).transpose()?;
        self.weights.backward(self.g.f32s()?, x, self.h, to)
    }
}

impl Tape {
    /// x.W^T + bias + low-rank term; x `[t, in]`, result `[t, out]`.
    pub fn linear(&self, x: &Var, w: &LinearWeights) -> Result<Var> {
        self.linear_into("linear", x, w, None)
    }

    /// residual + linear(x); residual `[t, out]`. The sum rides on the accumulation of the matrix product.
    pub fn linear_add(&self, x: &Var, w: &LinearWeights, residual: Var) -> Result<Var> {
        self.linear_into("linear_add", x, w, Some(residual))
    }

    fn linear_into(&self, op: &'static str, x: &Var, w: &LinearWeights, residual: Option<Var>) -> Result<Var> {
        let x_place = self.place(op, "x", x)?;
        let residual_place = match &residual {
            Some(residual) => self.place(op, "residual", residual)?,
            None => None,
        };
        let weights = w.snapshot(op, self, x)?;
        let wanted = w.wanted(self);
        let shape = [x.shape()[0], weights.num_outputs()];
        let (mut y, write) = match residual {
            None => (Tensor::stale(&shape, DType::F32)?, Write::Replace),
            Some(residual) if residual.shape() == shape => (residual.into_value().into_unique()?, Write::Add),
            Some(residual) => return Err(Error::shape(op, "residual", format!("{shape:?}"), residual.shape())),
        };
        let h = weights.forward(x.value().f32s()?, y.f32s_mut()?, write)?;
        if x_place.is_none() && residual_place.is_none() && !wanted.any() {
            return Ok(self.constant(y));
        }
        let x_shape = x.shape().to_vec();
        let x = (wanted.weight || wanted.a).then(|| x.value().clone());
        let h = h.filter(|_| wanted.b);
        let w = w.clone();
        Ok(self.push_op(y, move |g, sweep| {
            let call = Call { weights: &weights, g: &g, x: x.as_ref(), h: h.as_ref() };
            w.weight_gradients(wanted, sweep, &call)?;
            // A and x share the product g.B, so their gradients are taken in one call.
            let mut from_a = match (wanted.a, &w.lora) {
                (true, Some(lora)) => Some((Tensor::stale(&lora.a.shape(), DType::F32)?, &lora.a)),
                _ => None,
            };
            let a = from_a.as_mut().map(|(a, _)| a.f32s_mut()).transpose()?.map(|a| (a, Write::Replace));
            match x_place {
                Some(place) => sweep.write(place, &x_shape, |dx, write| {
                    call.run(Targets { x: Some((dx, write)), a, ..Targets::default() })
                })?,
                None => call.run(Targets { a, ..Targets::default() })?,
            }
            if let Some((gradient, a)) = from_a {
                sweep.add_weight(a, gradient)?;
            }
            sweep.give(residual_place, g)
        }))
    }
}
