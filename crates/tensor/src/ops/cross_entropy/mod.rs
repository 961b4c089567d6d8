//! Linear and cross-entropy together: nll[i] = log sum exp(z[i]) - z[i][target], z = hidden.W^T + bias + low-rank term;
//! loss = sum of weights[i] * nll[i].
//!
//! hidden `[t, n]` f32 or bf16, W `[vocabulary, n]` f32, bf16 or f16; logits are f32 sums of products of hidden's dtype.
//! Only supervised rows (target not -100) are computed, in chunks of [`chunk_size`] rows, so that logits are never whole. On a recording tape the gradient of a chunk overwrites its
//! logits, dz = weights[i] * (softmax(z) - onehot), and the gradients of hidden and of the trained weights are taken
//! there and then (Wijmans et al. 2024, "Cut your losses"); backward only scales them by the gradient of the loss.
//! Log-sum-exp in f32; the loss is summed in f64.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dtype::DType;
use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::gemm::{Mat, MatMut, multiply};
use crate::gradients::Write;
use crate::ops::linear::kernel::{self, Snapshot, Upstream};
use crate::ops::linear::{LinearWeights, Wanted};
use crate::ops::rows::gather;
use crate::ops::scale::scaled;
use crate::ops::sum_rows;
use crate::param::Param;
use crate::profile;
use crate::tape::{Sweep, Tape, Var};
use crate::tensor::Tensor;
use crate::threads;

/// Bytes of logits that exist at a time.
const LOGITS: usize = 128 << 20;

/// Supervised rows whose logits exist at a time; the head's weights are packed once for each such chunk.
pub(crate) fn chunk_size(vocabulary: usize) -> usize {
    (LOGITS / 4 / vocabulary.max(1) / 128 * 128).clamp(128, 4096)
}

/// The target of a token that is not supervised.
const IGNORE: i32 = -100;

/// What [`Tape::linear_cross_entropy`] returns.
#[derive(Debug)]
pub struct LossOutput {
    /// `[1]`: the sum of `weights[i] * nll[i]`.
    pub loss: Var,
    /// Negative log-likelihood of each token, 0 where not supervised.
    pub nll: Vec<f32>,
}

impl Tape {
    /// Cross-entropy of `hidden.W^T` against `targets` (-100: not supervised), with an upstream weight for each token;
    /// hidden `[t, n]`, as many targets and weights as rows.
    pub fn linear_cross_entropy(
        &self,
        hidden: &Var,
        head: &LinearWeights,
        targets: &[i32],
        weights: &[f32],
    ) -> Result<LossOutput> {
        let op = "linear_cross_entropy";
        let _span = profile::span(op);
        let place = self.place(op, "hidden", hidden)?;
        let layer = [head.snapshot(op, self, hidden)?];
        let (t, n, vocabulary) = (hidden.shape()[0], layer[0].num_inputs(), layer[0].num_outputs());
        for (what, len) in [("targets", targets.len()), ("weights", weights.len())] {
            if len != t {
                return Err(Error::argument(op, format!("`{what}` has {len} elements, `hidden` has {t} rows")));
            }
        }
        let rows = supervised_rows(targets, vocabulary)?;
        let wanted = head.wanted(self);
        let differentiate = self.keeps() && (place.is_some() || wanted.any());
        let mut grads = Collected::new(head, wanted);
        if differentiate && place.is_some() {
            grads.hidden = Some(Tensor::zeros(&[t, n], hidden.value().dtype())?);
        }
        let mut nll = vec![0f32; t];
        let mut loss = 0f64;
        let chunk_size = chunk_size(vocabulary);
        let mut logits = Tensor::stale(&[rows.len().min(chunk_size), vocabulary], DType::F32)?;
        for rows in rows.chunks(chunk_size) {
            let x = chunk_rows(hidden.value(), rows)?;
            let z = &mut logits.f32s_mut()?[..rows.len() * vocabulary];
            let h = kernel::forward(&layer, &x, MatMut::new(z, rows.len(), vocabulary), Write::Replace, multiply)?;
            let chunk: Vec<(usize, f32)> =
                rows.iter().map(|&i| (targets[i as usize] as usize, weights[i as usize])).collect();
            let losses = cpu::losses(z, vocabulary, &chunk, differentiate);
            for (&i, value) in rows.iter().zip(losses) {
                nll[i as usize] = value;
                loss += f64::from(weights[i as usize]) * f64::from(value);
            }
            if differentiate {
                grads.add_chunk(&layer, z, rows, &x, &h[0])?;
            }
        }
        drop(logits);
        let loss = Tensor::from_f32(&[loss as f32], &[1])?;
        if place.is_none() && !wanted.any() {
            return Ok(LossOutput { loss: self.constant(loss), nll });
        }
        let loss = self.push_op(loss, move |g, sweep| grads.finish(g.f32s()?[0], place, sweep));
        Ok(LossOutput { loss, nll })
    }
}

/// The rows whose target is a token; an error for a target that is neither a token nor -100.
fn supervised_rows(targets: &[i32], vocabulary: usize) -> Result<Vec<u32>> {
    let mut rows = vec![];
    for (position, &target) in targets.iter().enumerate() {
        if target == IGNORE {
            continue;
        }
        if target < 0 || target as usize >= vocabulary {
            let (op, what) = ("linear_cross_entropy", "target");
            return Err(Error::Index { op, what, index: i64::from(target), position, limit: vocabulary });
        }
        rows.push(position as u32);
    }
    Ok(rows)
}

/// The given rows of x: a view when they follow each other, a copy otherwise.
fn chunk_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let (first, last) = (rows[0] as usize, rows[rows.len() - 1] as usize);
    if last - first + 1 == rows.len() {
        return x.rows(first, last + 1);
    }
    gather(x, rows)
}

/// Gradients taken during the forward pass.
struct Collected {
    hidden: Option<Tensor>,
    wanted: Wanted,
    weight: Slot,
    bias: Slot,
    a: Slot,
    b: Slot,
}

/// The gradient of one weight of the head, made when the first chunk arrives.
struct Slot {
    param: Option<Param>,
    gradient: Option<Tensor>,
}

impl Slot {
    fn new(param: Option<&Param>, wanted: bool) -> Slot {
        Slot { param: param.filter(|_| wanted).cloned(), gradient: None }
    }

    /// Where the kernel puts the gradient of a chunk; `None` when the weight does not train.
    fn place(&mut self) -> Result<Option<(&mut [f32], Write)>> {
        let Some(param) = &self.param else { return Ok(None) };
        let write = if self.gradient.is_some() { Write::Add } else { Write::Replace };
        if self.gradient.is_none() {
            self.gradient = Some(Tensor::stale(&param.shape(), DType::F32)?);
        }
        self.gradient.as_mut().map(|tensor| Ok((tensor.f32s_mut()?, write))).transpose()
    }

    /// Hands the gradient on, multiplied by `factor`.
    fn finish(self, factor: f32, sweep: &mut Sweep<'_>) -> Result<()> {
        let Some(param) = self.param else { return Ok(()) };
        let gradient = match self.gradient {
            Some(gradient) => scaled(gradient, factor)?,
            // Nothing is supervised, so nothing changes the loss.
            None => Tensor::zeros(&param.shape(), DType::F32)?,
        };
        sweep.add_weight(&param, gradient)
    }
}

impl Collected {
    fn new(head: &LinearWeights, wanted: Wanted) -> Collected {
        let lora = head.lora.as_ref();
        Collected {
            hidden: None,
            wanted,
            weight: Slot::new(Some(&head.weight), wanted.weight),
            bias: Slot::new(head.bias.as_ref(), wanted.bias),
            a: Slot::new(lora.map(|lora| &lora.a), wanted.a),
            b: Slot::new(lora.map(|lora| &lora.b), wanted.b),
        }
    }

    /// Adds the gradients of one chunk, whose logits hold their gradient by now.
    fn add_chunk(&mut self, layer: &[Snapshot], z: &[f32], rows: &[u32], x: &Tensor, h: &Option<Tensor>) -> Result<()> {
        let vocabulary = z.len() / rows.len().max(1);
        let upstream = Upstream { g: Mat::new(z, rows.len(), vocabulary), dtype: x.dtype() };
        if let Some((to, write)) = self.weight.place()? {
            upstream.weight_gradient(x, to, write)?;
        }
        if let Some((to, write)) = self.bias.place()? {
            sum_rows(z, vocabulary, 0, to, write)?;
        }
        if let (Some((to, write)), Some(h)) = (self.b.place()?, h) {
            upstream.b_gradient(h, to, write)?;
        }
        if self.hidden.is_none() && !self.wanted.a {
            return Ok(());
        }
        let low_rank = upstream.low_rank(layer)?;
        if let (Some((to, write)), Some(lora), Some(dh)) = (self.a.place()?, &layer[0].lora, &low_rank[0]) {
            lora.a_gradient(dh, x, to, write)?;
        }
        let Some(hidden) = &mut self.hidden else { return Ok(()) };
        let mut dx = Tensor::stale(x.shape(), x.dtype())?;
        upstream.input_gradient(layer, &low_rank, &mut dx, Write::Replace)?;
        let n = x.shape()[1];
        with_element!("linear_cross_entropy", "hidden", x.dtype(), E => {
            let (to, from) = (E::of_mut(hidden)?, E::of(&dx)?);
            threads::here(|| {
                for (from, &row) in from.chunks_exact(n.max(1)).zip(rows) {
                    to[row as usize * n..][..n].copy_from_slice(from);
                }
            });
        });
        Ok(())
    }

    fn finish(self, factor: f32, place: Option<usize>, sweep: &mut Sweep<'_>) -> Result<()> {
        if let Some(hidden) = self.hidden {
            sweep.give(place, scaled(hidden, factor)?)?;
        }
        for slot in [self.weight, self.bias, self.a, self.b] {
            slot.finish(factor, sweep)?;
        }
        Ok(())
    }
}
