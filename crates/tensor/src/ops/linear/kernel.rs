//! Owns the arithmetic of linear layers over plain matrices, so that other operators can reuse it chunk by chunk.
//! Refuses to know the tape.
//!
//! Several layers over the same input stand side by side: their results are columns of one matrix, and the products that
//! share an operand run in one call.

use crate::dtype::DType;
use crate::element::{Element, with_element};
use crate::error::Result;
use crate::gemm::{Arithmetic, Mat, MatMut, Output, multiply};
use crate::gradients::Write;
use crate::ops::dropout::Dropout;
use crate::tensor::Tensor;
use crate::wide::Wide;

/// The weights of one layer of a call, as they were when it ran.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    pub(crate) lora: Option<LoraSnapshot>,
}

/// The low-rank term of one layer.
#[derive(Clone)]
pub(crate) struct LoraSnapshot {
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    pub(crate) scale: f32,
    pub(crate) dropout: Option<Dropout>,
}

impl Snapshot {
    pub(crate) fn num_outputs(&self) -> usize {
        self.weight.shape()[0]
    }

    pub(crate) fn num_inputs(&self) -> usize {
        self.weight.shape()[1]
    }
}

/// How products are computed: [`crate::gemm::multiply`], or [`crate::gemm::multiply_few_rows`] while generating.
pub(crate) type Multiply = fn(Arithmetic, Vec<Output<'_>>) -> Result<()>;

/// Columns of a result over all layers.
pub(crate) fn num_columns(layers: &[Snapshot]) -> usize {
    layers.iter().map(Snapshot::num_outputs).sum()
}

/// y (+)= x.W^T + bias + low-rank term, layer after layer in the columns of y. Returns scale * dropout(x).A^T of each
/// adapted layer, in x's dtype, which backward needs.
pub(crate) fn forward(
    layers: &[Snapshot],
    x: &Tensor,
    y: MatMut<'_>,
    write: Write,
    multiply: Multiply,
) -> Result<Vec<Option<Tensor>>> {
    let hidden = low_rank_inputs(layers, x, multiply)?;
    let biases: Vec<Option<Wide<'_>>> =
        layers.iter().map(|layer| layer.bias.as_ref().map(Wide::of).transpose()).collect::<Result<_>>()?;
    let widths: Vec<usize> = layers.iter().map(Snapshot::num_outputs).collect();
    let mut outputs = vec![];
    for (((layer, y), bias), h) in layers.iter().zip(y.split_columns(&widths)).zip(&biases).zip(&hidden) {
        let bias = bias.as_ref().map(Wide::f32s).transpose()?;
        let mut output = Output::new(y, write, Mat::of(x)?, Mat::of(&layer.weight)?.t()).with_bias(bias);
        if let (Some(lora), Some(h)) = (&layer.lora, h) {
            output = output.plus(Mat::of(h)?, Mat::of(&lora.b)?.t());
        }
        outputs.push(output);
    }
    multiply(Arithmetic::of(x.dtype()), outputs)?;
    Ok(hidden)
}

/// scale * dropout(x).A^T of each adapted layer.
fn low_rank_inputs(layers: &[Snapshot], x: &Tensor, multiply: Multiply) -> Result<Vec<Option<Tensor>>> {
    let mut hidden = vec![];
    for layer in layers {
        hidden.push(match &layer.lora {
            Some(lora) => Some(Tensor::stale(&[x.shape()[0], lora.a.shape()[0]], x.dtype())?),
            None => None,
        });
    }
    let dropped: Vec<Option<Tensor>> = layers
        .iter()
        .map(|layer| layer.lora.as_ref().map_or(Ok(None), |lora| lora.dropped(x)))
        .collect::<Result<_>>()?;
    let mut outputs = vec![];
    for ((layer, h), dropped) in layers.iter().zip(&mut hidden).zip(&dropped) {
        if let (Some(lora), Some(h)) = (&layer.lora, h) {
            let x = Mat::of(dropped.as_ref().unwrap_or(x))?;
            outputs.push(Output::new(MatMut::of(h)?, Write::Replace, x, Mat::of(&lora.a)?.t()).scaled(lora.scale));
        }
    }
    multiply(Arithmetic::of(x.dtype()), outputs)?;
    Ok(hidden)
}

/// The gradient of y, and the arithmetic of the call that made it.
#[derive(Clone, Copy)]
pub(crate) struct Upstream<'a> {
    /// `[t, columns over all layers]`.
    pub(crate) g: Mat<'a>,
    /// The dtype of the call's input.
    pub(crate) dtype: DType,
}

impl<'a> Upstream<'a> {
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::of(self.dtype)
    }

    /// The columns of each layer.
    fn columns(&self, layers: &[Snapshot]) -> Vec<Mat<'a>> {
        let mut start = 0;
        let mut columns = vec![];
        for layer in layers {
            columns.push(self.g.columns(start..start + layer.num_outputs()));
            start += layer.num_outputs();
        }
        columns
    }

    /// The columns of one layer.
    pub(crate) fn of_layer(&self, layers: &[Snapshot], index: usize) -> Upstream<'a> {
        Upstream { g: self.columns(layers)[index], dtype: self.dtype }
    }

    /// dW (+)= g^T.x.
    pub(crate) fn weight_gradient(&self, x: &Tensor, to: &mut [f32], write: Write) -> Result<()> {
        let to = MatMut::new(to, self.g.num_cols(), x.shape()[1]);
        multiply(self.arithmetic(), vec![Output::new(to, write, self.g.t(), Mat::of(x)?)])
    }

    /// dB (+)= g^T.h.
    pub(crate) fn b_gradient(&self, h: &Tensor, to: &mut [f32], write: Write) -> Result<()> {
        self.weight_gradient(h, to, write)
    }

    /// scale * g.B of each adapted layer, in the call's dtype.
    pub(crate) fn low_rank(&self, layers: &[Snapshot]) -> Result<Vec<Option<Tensor>>> {
        let mut all = vec![];
        for layer in layers {
            all.push(match &layer.lora {
                Some(lora) => Some(Tensor::stale(&[self.g.num_rows(), lora.a.shape()[0]], self.dtype)?),
                None => None,
            });
        }
        let mut outputs = vec![];
        for ((layer, dh), g) in layers.iter().zip(&mut all).zip(self.columns(layers)) {
            if let (Some(lora), Some(dh)) = (&layer.lora, dh) {
                outputs.push(Output::new(MatMut::of(dh)?, Write::Replace, g, Mat::of(&lora.b)?).scaled(lora.scale));
            }
        }
        multiply(self.arithmetic(), outputs)?;
        Ok(all)
    }

    /// dx (+)= the sum of g.W over the layers, and of dh.A where `low_rank` gives dh.
    pub(crate) fn input_gradient(
        &self,
        layers: &[Snapshot],
        low_rank: &[Option<Tensor>],
        dx: &mut Tensor,
        write: Write,
    ) -> Result<()> {
        let mut output = Output::empty(MatMut::of(dx)?, write);
        for ((layer, g), dh) in layers.iter().zip(self.columns(layers)).zip(low_rank) {
            output = output.plus(g, Mat::of(&layer.weight)?);
            if let (Some(lora), Some(dh)) = (layer.lora.as_ref().filter(|lora| lora.dropout.is_none()), dh) {
                output = output.plus(Mat::of(dh)?, Mat::of(&lora.a)?);
            }
        }
        multiply(self.arithmetic(), vec![output])?;
        // What dropout let through goes back through the same mask.
        for (layer, dh) in layers.iter().zip(low_rank) {
            let Some((lora, dropout)) = layer.lora.as_ref().and_then(|lora| Some((lora, lora.dropout.as_ref()?)))
            else {
                continue;
            };
            let Some(dh) = dh else { continue };
            let mut part = Tensor::stale(dx.shape(), dx.dtype())?;
            let output = Output::new(MatMut::of(&mut part)?, Write::Replace, Mat::of(dh)?, Mat::of(&lora.a)?);
            multiply(self.arithmetic(), vec![output])?;
            with_element!("linear", "x", dx.dtype(), E => dropout.apply(E::of(&part)?, E::of_mut(dx)?, Write::Add));
        }
        Ok(())
    }
}

impl LoraSnapshot {
    /// dA (+)= dh^T.dropout(x).
    pub(crate) fn a_gradient(&self, dh: &Tensor, x: &Tensor, to: &mut [f32], write: Write) -> Result<()> {
        let dropped = self.dropped(x)?;
        Upstream { g: Mat::of(dh)?, dtype: x.dtype() }.weight_gradient(dropped.as_ref().unwrap_or(x), to, write)
    }

    fn dropped(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let Some(dropout) = &self.dropout else { return Ok(None) };
        let mut out = Tensor::stale(x.shape(), x.dtype())?;
        with_element!("linear", "x", x.dtype(), E => dropout.apply(E::of(x)?, E::of_mut(&mut out)?, Write::Replace));
        Ok(Some(out))
    }
}
