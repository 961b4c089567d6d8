//! Owns the arithmetic of a linear layer over plain slices, so that other operators can reuse it chunk by chunk.
//! Refuses to know the tape.

use crate::dtype::DType;
use crate::error::Result;
use crate::gemm::{Mat, MatMut, Threads, gemm};
use crate::gradients::Write;
use crate::ops::dropout::Dropout;
use crate::ops::sum_rows;
use crate::tensor::Tensor;
use crate::threads;
use crate::wide::Wide;

/// The weights of one call, as they were when it ran.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    pub(crate) lora: Option<LoraSnapshot>,
}

/// The low-rank term of one call.
#[derive(Clone)]
pub(crate) struct LoraSnapshot {
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    pub(crate) scale: f32,
    pub(crate) dropout: Option<Dropout>,
}

/// Where gradients go; what is absent is not computed.
#[derive(Default)]
pub(crate) struct Targets<'a> {
    pub(crate) x: Option<(&'a mut [f32], Write)>,
    pub(crate) weight: Option<(&'a mut [f32], Write)>,
    pub(crate) bias: Option<(&'a mut [f32], Write)>,
    pub(crate) a: Option<(&'a mut [f32], Write)>,
    pub(crate) b: Option<(&'a mut [f32], Write)>,
}

impl Snapshot {
    pub(crate) fn num_outputs(&self) -> usize {
        self.weight.shape()[0]
    }

    pub(crate) fn num_inputs(&self) -> usize {
        self.weight.shape()[1]
    }

    /// y (+)= x.W^T + bias + low-rank term. Returns dropout(x).A^T, which backward needs.
    pub(crate) fn forward(&self, x: &[f32], y: &mut [f32], write: Write) -> Result<Option<Tensor>> {
        let (inputs, outputs) = (self.num_inputs(), self.num_outputs());
        let t = y.len() / outputs.max(1);
        let mut write = write;
        if let Some(bias) = &self.bias {
            let bias = Wide::of(bias)?;
            put_bias(y, bias.f32s()?, write);
            write = Write::Add;
        }
        let x_ti = Mat::new(x, t, inputs);
        gemm(MatMut::new(y, t, outputs), write, 1.0, x_ti, Mat::of(&self.weight)?.t(), Threads::All)?;
        let Some(lora) = &self.lora else { return Ok(None) };
        let rank = lora.a.shape()[0];
        let mut h = Tensor::stale(&[t, rank], DType::F32)?;
        let dropped = lora.dropped(x)?;
        let x_ti = Mat::new(dropped.as_ref().map_or(Ok(x), Tensor::f32s)?, t, inputs);
        gemm(MatMut::new(h.f32s_mut()?, t, rank), Write::Replace, 1.0, x_ti, Mat::of(&lora.a)?.t(), Threads::All)?;
        let h_tr = Mat::new(h.f32s()?, t, rank);
        gemm(MatMut::new(y, t, outputs), Write::Add, lora.scale, h_tr, Mat::of(&lora.b)?.t(), Threads::All)?;
        Ok(Some(h))
    }

    /// The gradients of every target from the gradient `g` of y.
    pub(crate) fn backward(&self, g: &[f32], x: Option<&[f32]>, h: Option<&Tensor>, mut to: Targets<'_>) -> Result<()> {
        let (inputs, outputs) = (self.num_inputs(), self.num_outputs());
        let t = g.len() / outputs.max(1);
        let g_to = Mat::new(g, t, outputs);
        let x_slice = || match x {
            Some(x) => x,
            None => unreachable!("x is kept whenever a weight gradient wants it"),
        };
        if let Some((bias, write)) = to.bias.take() {
            sum_rows(g, bias, write)?;
        }
        if let Some((weight, write)) = to.weight.take() {
            gemm(
                MatMut::new(weight, outputs, inputs),
                write,
                1.0,
                g_to.t(),
                Mat::new(x_slice(), t, inputs),
                Threads::All,
            )?;
        }
        if let Some((x, write)) = &mut to.x {
            gemm(MatMut::new(x, t, inputs), *write, 1.0, g_to, Mat::of(&self.weight)?, Threads::All)?;
            *write = Write::Add;
        }
        let Some(lora) = &self.lora else { return Ok(()) };
        let rank = lora.a.shape()[0];
        if let (Some((b, write)), Some(h)) = (to.b, h) {
            let h_tr = Mat::new(h.f32s()?, t, rank);
            gemm(MatMut::new(b, outputs, rank), write, lora.scale, g_to.t(), h_tr, Threads::All)?;
        }
        if to.a.is_none() && to.x.is_none() {
            return Ok(());
        }
        let mut dh = Tensor::stale(&[t, rank], DType::F32)?;
        let b_or = Mat::of(&lora.b)?;
        gemm(MatMut::new(dh.f32s_mut()?, t, rank), Write::Replace, lora.scale, g_to, b_or, Threads::All)?;
        let dh_tr = Mat::new(dh.f32s()?, t, rank);
        if let Some((to_a, write)) = to.a {
            let dropped = lora.dropped(x_slice())?;
            let x_ti = Mat::new(dropped.as_ref().map_or(Ok(x_slice()), Tensor::f32s)?, t, inputs);
            gemm(MatMut::new(to_a, rank, inputs), write, 1.0, dh_tr.t(), x_ti, Threads::All)?;
        }
        if let Some((to_x, write)) = to.x {
            let a_ri = Mat::of(&lora.a)?;
            match &lora.dropout {
                None => gemm(MatMut::new(to_x, t, inputs), write, 1.0, dh_tr, a_ri, Threads::All)?,
                Some(dropout) => {
                    let mut dx = Tensor::stale(&[t, inputs], DType::F32)?;
                    let dx = dx.f32s_mut()?;
                    gemm(MatMut::new(dx, t, inputs), Write::Replace, 1.0, dh_tr, a_ri, Threads::All)?;
                    dropout.apply(dx, to_x, write);
                }
            }
        }
        Ok(())
    }
}

impl LoraSnapshot {
    fn dropped(&self, x: &[f32]) -> Result<Option<Tensor>> {
        let Some(dropout) = &self.dropout else { return Ok(None) };
        let mut out = Tensor::stale(&[x.len()], DType::F32)?;
        dropout.apply(x, out.f32s_mut()?, Write::Replace);
        Ok(Some(out))
    }
}

/// y (+)= bias, by row.
fn put_bias(y: &mut [f32], bias: &[f32], write: Write) {
    let width = bias.len().max(1);
    threads::for_each_rows(y, width, |_, y| {
        for row in y.chunks_exact_mut(width) {
            match write {
                Write::Replace => row.copy_from_slice(bias),
                Write::Add => row.iter_mut().zip(bias).for_each(|(y, b)| *y += b),
            }
        }
    });
}
