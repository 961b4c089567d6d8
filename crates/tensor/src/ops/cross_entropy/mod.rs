//! Linear and cross-entropy together: nll[i] = log sum exp(z[i]) - z[i][target], z = hidden.W^T + bias + low-rank term;
//! loss = sum of weights[i] * nll[i].
//!
//! hidden `[t, n]` f32, W `[vocabulary, n]` f32, bf16 or f16. Only supervised rows (target not -100) are computed, in
//! chunks of [`CHUNK`] rows, so that logits are never whole. On a recording tape the gradient of a chunk overwrites its
//! logits, dz = weights[i] * (softmax(z) - onehot), and the gradients of hidden and of the trained weights are taken
//! there and then (Wijmans et al. 2024, "Cut your losses"); backward only scales them by the gradient of the loss.
//! Log-sum-exp in f32; the loss is summed in f64.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::ops::embedding::look_up;
use crate::ops::linear::kernel::Targets;
use crate::ops::linear::{LinearWeights, Wanted};
use crate::ops::scale::scaled;
use crate::param::Param;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// Supervised rows whose logits exist at a time.
pub(crate) const CHUNK: usize = 256;
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
        let place = self.place(op, "hidden", hidden)?;
        let snapshot = head.snapshot(op, self, hidden)?;
        let (t, n, vocabulary) = (hidden.shape()[0], snapshot.num_inputs(), snapshot.num_outputs());
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
            grads.hidden = Some(Tensor::zeros(&[t, n], DType::F32)?);
        }
        let mut nll = vec![0f32; t];
        let mut loss = 0f64;
        let mut logits = Tensor::stale(&[rows.len().min(CHUNK), vocabulary], DType::F32)?;
        for rows in rows.chunks(CHUNK) {
            let x = chunk_rows(hidden.value(), rows)?;
            let z = &mut logits.f32s_mut()?[..rows.len() * vocabulary];
            let h = snapshot.forward(x.f32s()?, z, Write::Replace)?;
            let chunk: Vec<(usize, f32)> =
                rows.iter().map(|&i| (targets[i as usize] as usize, weights[i as usize])).collect();
            let losses = cpu::losses(z, vocabulary, &chunk, differentiate);
            for (&i, value) in rows.iter().zip(losses) {
                nll[i as usize] = value;
                loss += f64::from(weights[i as usize]) * f64::from(value);
            }
            if differentiate {
                grads.add_chunk(z, rows, &x, h.as_ref(), |to, z, x, h| snapshot.backward(z, Some(x), h, to))?;
            }
        }
        drop(logits);
        let loss = Tensor::from_f32(&[loss as f32], &[1])?;
        if place.is_none() && !wanted.any() {
            return Ok(LossOutput { loss: self.constant(loss), nll });
        }
        let loss = self.push_op(loss, move |g, sweep| {
            let factor = g.f32s()?[0];
            if let Some(hidden) = grads.hidden {
                sweep.give(place, scaled(hidden, factor)?)?;
            }
            for (param, gradient) in grads.weights {
                let gradient = match gradient {
                    Some(gradient) => scaled(gradient, factor)?,
                    // Nothing is supervised, so nothing changes the loss.
                    None => Tensor::zeros(&param.shape(), DType::F32)?,
                };
                sweep.add_weight(&param, gradient)?;
            }
            Ok(())
        });
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
    let mut gathered = Tensor::stale(&[rows.len(), x.shape()[1]], DType::F32)?;
    look_up(x, rows, gathered.f32s_mut()?, Write::Replace)?;
    Ok(gathered)
}

/// Gradients taken during the forward pass.
struct Collected {
    hidden: Option<Tensor>,
    /// In the order weight, bias, a, b; no tensor before the first chunk.
    weights: Vec<(Param, Option<Tensor>)>,
    wanted: Wanted,
}

impl Collected {
    fn new(head: &LinearWeights, wanted: Wanted) -> Collected {
        let lora = head.lora.as_ref();
        let all = [
            wanted.weight.then_some(&head.weight),
            head.bias.as_ref().filter(|_| wanted.bias),
            lora.filter(|_| wanted.a).map(|lora| &lora.a),
            lora.filter(|_| wanted.b).map(|lora| &lora.b),
        ];
        let weights = all.into_iter().flatten().map(|param| (param.clone(), None)).collect();
        Collected { hidden: None, weights, wanted }
    }

    /// Adds the gradients of one chunk, whose logits hold their gradient by now.
    fn add_chunk(
        &mut self,
        z: &[f32],
        rows: &[u32],
        x: &Tensor,
        h: Option<&Tensor>,
        backward: impl Fn(Targets<'_>, &[f32], &[f32], Option<&Tensor>) -> Result<()>,
    ) -> Result<()> {
        let mut dx = match self.hidden {
            Some(_) => Some(Tensor::stale(x.shape(), DType::F32)?),
            None => None,
        };
        let write = match self.weights.first() {
            Some((_, Some(_))) => Write::Add,
            _ => Write::Replace,
        };
        for (param, slot) in &mut self.weights {
            if slot.is_none() {
                *slot = Some(Tensor::stale(&param.shape(), DType::F32)?);
            }
        }
        let mut slots = self.weights.iter_mut().filter_map(|(_, slot)| slot.as_mut());
        let mut next = |wanted: bool| -> Result<Option<(&mut [f32], Write)>> {
            match if wanted { slots.next() } else { None } {
                Some(slot) => Ok(Some((slot.f32s_mut()?, write))),
                None => Ok(None),
            }
        };
        let (weight, bias) = (next(self.wanted.weight)?, next(self.wanted.bias)?);
        let (a, b) = (next(self.wanted.a)?, next(self.wanted.b)?);
        let to_x = dx.as_mut().map(Tensor::f32s_mut).transpose()?.map(|dx| (dx, Write::Replace));
        backward(Targets { x: to_x, weight, bias, a, b }, z, x.f32s()?, h)?;
        if let (Some(hidden), Some(dx)) = (&mut self.hidden, dx) {
            let n = dx.shape()[1];
            let to = hidden.f32s_mut()?;
            for (from, &row) in dx.f32s()?.chunks_exact(n.max(1)).zip(rows) {
                to[row as usize * n..][..n].copy_from_slice(from);
            }
        }
        Ok(())
    }
}
