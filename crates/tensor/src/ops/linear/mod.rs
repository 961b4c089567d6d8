//! Linear: y = x.W^T + b, with an optional low-rank term y += s * dropout(x).A^T.B^T (LoRA, Hu et al. 2021; dropout
//! before A as in `peft`) and an optional residual y += r; or several such layers of one input side by side.
//!
//! x `[t, in]` f32 or bf16; W `[out, in]`, b `[out]`, A `[r, in]`, B `[out, r]` f32, bf16 or f16; y `[t, out]` f32 or
//! bf16. Products are of x's dtype (operands of other types are rounded or widened on the way), sums f32, rounded once when
//! y is bf16. Backward: dx = g.W + mask(s g.B.A), dW = g^T.x, db = sum of rows of g, dB = g^T.h with h = s dropout(x).A^T,
//! dA = (s g.B)^T.dropout(x), dr = g. The low-rank term is never multiplied out to `[out, in]`. Kept: x when W or A is
//! trainable, h when B is; nothing when only dx is wanted. Weight gradients are f32 and go straight to `Gradients`.

pub(crate) mod kernel;

use crate::dtype::DType;
use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::gemm::{Mat, MatMut};
use crate::gradients::Write;
use crate::ops::dropout::Dropout;
use crate::ops::sum_rows;
use crate::param::Param;
use crate::profile;
use crate::tape::{Sweep, Tape, Var};
use crate::tensor::Tensor;
use kernel::{LoraSnapshot, Snapshot, Upstream};

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
}

/// What backward needs of a call.
struct Call {
    layers: Vec<LinearWeights>,
    weights: Vec<Snapshot>,
    wanted: Vec<Wanted>,
    /// The dtype of x.
    dtype: DType,
    /// Kept when a weight gradient wants it.
    x: Option<Tensor>,
    /// h of the layers whose B trains.
    hidden: Vec<Option<Tensor>>,
}

impl Call {
    fn x(&self) -> &Tensor {
        match &self.x {
            Some(x) => x,
            None => unreachable!("x is kept whenever a weight gradient wants it"),
        }
    }

    /// Gradients of everything but A and x, each straight to its place.
    fn weight_gradients(&self, g: &Tensor, upstream: Upstream<'_>, sweep: &mut Sweep<'_>) -> Result<()> {
        let mut start = 0;
        for (i, (layer, wanted)) in self.layers.iter().zip(&self.wanted).enumerate() {
            let upstream = upstream.of_layer(&self.weights, i);
            if wanted.weight {
                let (to, write) = sweep.weight(&layer.weight)?;
                upstream.weight_gradient(self.x(), to, write)?;
            }
            if let (true, Some(bias)) = (wanted.bias, &layer.bias) {
                let (to, write) = sweep.weight(bias)?;
                let width = g.shape()[1];
                with_element!("linear", "gradient", g.dtype(), E => sum_rows(E::of(g)?, width, start, to, write))?;
            }
            if let (true, Some(lora), Some(h)) = (wanted.b, &layer.lora, &self.hidden[i]) {
                let (to, write) = sweep.weight(&lora.b)?;
                upstream.b_gradient(h, to, write)?;
            }
            start += self.weights[i].num_outputs();
        }
        Ok(())
    }

    fn backward(&self, g: &Tensor, x_place: Option<usize>, sweep: &mut Sweep<'_>) -> Result<()> {
        let upstream = Upstream { g: Mat::of(g)?, dtype: self.dtype };
        self.weight_gradients(g, upstream, sweep)?;
        // A and x share the product g.B.
        let low_rank = match x_place.is_some() || self.wanted.iter().any(|wanted| wanted.a) {
            true => upstream.low_rank(&self.weights)?,
            false => return Ok(()),
        };
        for (i, layer) in self.layers.iter().enumerate().filter(|(i, _)| self.wanted[*i].a) {
            if let (Some(lora), Some(snapshot), Some(dh)) = (&layer.lora, &self.weights[i].lora, &low_rank[i]) {
                let (to, write) = sweep.weight(&lora.a)?;
                snapshot.a_gradient(dh, self.x(), to, write)?;
            }
        }
        let Some(place) = x_place else { return Ok(()) };
        let shape = [g.shape()[0], self.weights[0].num_inputs()];
        sweep.write_as(place, &shape, self.dtype, |dx, write| {
            upstream.input_gradient(&self.weights, &low_rank, dx, write)
        })
    }
}

impl Tape {
    /// x.W^T + bias + low-rank term, in x's dtype; x `[t, in]`, result `[t, out]`.
    pub fn linear(&self, x: &Var, w: &LinearWeights) -> Result<Var> {
        self.linear_as(x, w, x.value().dtype())
    }

    /// As [`Tape::linear`] with a result of another dtype.
    pub fn linear_as(&self, x: &Var, w: &LinearWeights, dtype: DType) -> Result<Var> {
        self.linear_into("linear", x, &[w], dtype, None)
    }

    /// Several layers of one input: `[t, sum of outs]` in x's dtype, layer after layer in the columns.
    pub fn linears(&self, x: &Var, layers: &[&LinearWeights]) -> Result<Var> {
        if layers.is_empty() {
            return Err(Error::argument("linears", "no layers are given"));
        }
        self.linear_into("linears", x, layers, x.value().dtype(), None)
    }

    /// residual + linear(x), in the residual's dtype; residual `[t, out]`. The sum rides on the accumulation of the matrix
    /// product.
    pub fn linear_add(&self, x: &Var, w: &LinearWeights, residual: Var) -> Result<Var> {
        let dtype = residual.value().dtype();
        self.linear_into("linear_add", x, &[w], dtype, Some(residual))
    }

    fn linear_into(
        &self,
        op: &'static str,
        x: &Var,
        layers: &[&LinearWeights],
        dtype: DType,
        residual: Option<Var>,
    ) -> Result<Var> {
        let _span = profile::span(op);
        let x_place = self.place(op, "x", x)?;
        let residual_place = match &residual {
            Some(residual) => self.place(op, "residual", residual)?,
            None => None,
        };
        with_element!(op, "x", x.value().dtype(), E => { E::of(x.value())?; });
        let weights: Vec<Snapshot> = layers.iter().map(|layer| layer.snapshot(op, self, x)).collect::<Result<_>>()?;
        let wanted: Vec<Wanted> = layers.iter().map(|layer| layer.wanted(self)).collect();
        let shape = [x.shape()[0], kernel::num_columns(&weights)];
        let (mut y, write) = match residual {
            None => (Tensor::stale(&shape, dtype)?, Write::Replace),
            Some(residual) if residual.shape() == shape => (residual.into_value().into_unique()?, Write::Add),
            Some(residual) => return Err(Error::shape(op, "residual", format!("{shape:?}"), residual.shape())),
        };
        let hidden = kernel::forward(&weights, x.value(), MatMut::of(&mut y)?, write, self.products())?;
        if x_place.is_none() && residual_place.is_none() && !wanted.iter().any(|wanted| wanted.any()) {
            return Ok(self.constant(y));
        }
        let call = Call {
            layers: layers.iter().map(|&layer| layer.clone()).collect(),
            dtype: x.value().dtype(),
            x: wanted.iter().any(|wanted| wanted.weight || wanted.a).then(|| x.value().clone()),
            hidden: hidden.into_iter().zip(&wanted).map(|(h, wanted)| h.filter(|_| wanted.b)).collect(),
            weights,
            wanted,
        };
        Ok(self.push_op(y, move |g, sweep| {
            call.backward(&g, x_place, sweep)?;
            sweep.give(residual_place, g)
        }))
    }
}
