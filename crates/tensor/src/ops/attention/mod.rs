//! Attention over ragged packed sequences: o = softmax(scale * q.k^T).v for every head and sequence.
//!
//! q `[tq, nq * d]`, k and v `[tk, nkv * d]`, o `[tq, nq * d]`, all f32 or all bf16; query head h reads key/value head
//! h / (nq / nkv). Products are of the inputs' dtype (probabilities are rounded to bf16 with bf16 inputs), scores, softmax
//! and sums f32. `cu_q` and `cu_k` give where each sequence starts in the rows; a sequence may have different numbers
//! of queries and keys. Causal masks are aligned at the end (the last query sees the last key). A query that sees no
//! key gives 0. A window lets a query see no more than its last keys. Softmax in f32 with the maximum subtracted.
//!
//! With dropout of probability p, o = sum of p_j keep_j / (1 - p) v_j: probabilities are masked after the softmax, with masks
//! that are drawn again in backward. D stays the same: it sums over what o was made of.
//!
//! Kept: q, k, v, o and the log-sum-exp of each query and head; scores live in a tile
//! of a few queries by a few hundred keys and are computed again in backward (Dao et al. 2022): with p = exp(scale q.k - lse),
//! D = sum of do * o, ds = p * (do.v - D): dv = p^T.do, dq = scale ds.k, dk = scale ds^T.q.
//! Tiles that a mask hides wholly are skipped.

mod cpu;
#[cfg(test)]
mod reference;
mod soft;
#[cfg(test)]
mod tests;
mod tile;

use std::sync::Arc;

use crate::dtype::DType;
use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::gemm::{Arithmetic, Mat, with_units};
use crate::ops::dropout::Dropout;
use crate::profile;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::threads::Shared;
use cpu::{Kept, Rows, RowsMut};

/// Which keys a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Aligned at the end of each sequence: the last query sees the last key.
    Causal,
    /// As `Causal`, of which a query sees the last so many keys, its own position included (Mistral, Jiang et al. 2023).
    Window(usize),
    /// Every key of its sequence.
    Full,
}

/// The shape of an attention call.
#[derive(Debug, Clone)]
pub struct AttentionSpec {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Start of each sequence in the query rows, and their number at the end.
    pub cu_q: Arc<[usize]>,
    /// Start of each sequence in the key rows, and their number at the end.
    pub cu_k: Arc<[usize]>,
}

impl AttentionSpec {
    fn widths(&self) -> [usize; 3] {
        [self.num_heads, self.num_kv_heads, self.num_kv_heads].map(|heads| heads * self.head_dim)
    }

    /// Pairs of a query and a key that it sees, over all sequences, times heads and their elements.
    fn work(&self) -> u64 {
        let pairs = self.cu_q.windows(2).zip(self.cu_k.windows(2)).map(|(q, k)| {
            let (q, k) = ((q[1] - q[0]) as u64, (k[1] - k[0]) as u64);
            match self.mask {
                Mask::Full => q * k,
                Mask::Causal => causal_pairs(q, k),
                // Without its oldest keys, which the queries after the window's end see of them, causally as well.
                Mask::Window(n) => causal_pairs(q, k) - causal_pairs(q, k.saturating_sub(n as u64)),
            }
        });
        pairs.sum::<u64>() * (self.num_heads * self.head_dim) as u64
    }

    fn check(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
        let op = "attention";
        self.check_heads()?;
        for ((what, x), width) in [("q", q), ("k", k), ("v", v)].into_iter().zip(self.widths()) {
            if x.shape().len() != 2 || x.shape()[1] != width {
                return Err(Error::shape(op, what, format!("[t, {width}]"), x.shape()));
            }
            with_element!(op, what, q.dtype(), E => { E::of(x)?; });
        }
        if k.shape() != v.shape() {
            return Err(Error::shape(op, "v", format!("{:?}, as k", k.shape()), v.shape()));
        }
        self.check_rows(q.shape()[0], k.shape()[0])
    }

    fn check_heads(&self) -> Result<()> {
        let heads = format!("{} query heads and {} key/value heads", self.num_heads, self.num_kv_heads);
        if self.num_kv_heads == 0 || self.head_dim == 0 || !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let reason = format!("{heads} of {} elements do not fit together", self.head_dim);
            return Err(Error::argument("attention", reason));
        }
        if self.mask == Mask::Window(0) {
            return Err(Error::argument("attention", "a window needs at least one key"));
        }
        Ok(())
    }

    fn check_rows(&self, num_queries: usize, num_keys: usize) -> Result<()> {
        let op = "attention";
        for (what, cu, rows) in [("cu_q", &self.cu_q, num_queries), ("cu_k", &self.cu_k, num_keys)] {
            let ordered = cu.first() == Some(&0) && cu.windows(2).all(|pair| pair[0] <= pair[1]);
            if !ordered || cu.last() != Some(&rows) {
                let reason = format!("`{what}` must rise from 0 to {rows}, found {cu:?}");
                return Err(Error::argument(op, reason));
            }
        }
        if self.cu_q.len() != self.cu_k.len() {
            let (q, k) = (self.cu_q.len() - 1, self.cu_k.len() - 1);
            return Err(Error::argument(op, format!("`cu_q` has {q} sequences, `cu_k` has {k}")));
        }
        Ok(())
    }
}

/// Pairs of a query and a key that it sees under a causal mask: the last of q queries sees k keys, the one before k - 1, down
/// to none.
fn causal_pairs(q: u64, k: u64) -> u64 {
    if q <= k { q * k - q * q.saturating_sub(1) / 2 } else { k * (k + 1) / 2 }
}

/// Where queries, keys and values stand.
enum Layout {
    /// In three tensors.
    Apart([Tensor; 3]),
    /// Side by side in the columns of one.
    Together(Tensor),
}

impl Layout {
    fn dtype(&self) -> DType {
        match self {
            Layout::Apart([q, ..]) => q.dtype(),
            Layout::Together(x) => x.dtype(),
        }
    }

    fn num_queries(&self) -> usize {
        match self {
            Layout::Apart([q, ..]) => q.shape()[0],
            Layout::Together(x) => x.shape()[0],
        }
    }

    fn mats(&self, widths: [usize; 3]) -> Result<[Mat<'_>; 3]> {
        Ok(match self {
            Layout::Apart([q, k, v]) => [Mat::of(q)?, Mat::of(k)?, Mat::of(v)?],
            Layout::Together(x) => {
                let (x, [q, k, _]) = (Mat::of(x)?, widths);
                [x.columns(0..q), x.columns(q..q + k), x.columns(q + k..x.num_cols())]
            }
        })
    }

    /// Tensors for the gradients, laid out in the same way.
    fn gradients(&self) -> Result<Vec<Tensor>> {
        match self {
            Layout::Apart(all) => all.iter().map(|x| Tensor::stale(x.shape(), x.dtype())).collect(),
            Layout::Together(x) => Ok(vec![Tensor::stale(x.shape(), x.dtype())?]),
        }
    }

    fn backward(
        &self,
        spec: &AttentionSpec,
        dropout: Option<Dropout>,
        [o, lse, g]: [&Tensor; 3],
    ) -> Result<Vec<Tensor>> {
        // The scores again, and the products of four gradients.
        profile::add_flops(10 * spec.work());
        let mut gradients = self.gradients()?;
        let widths = spec.widths();
        with_element!("attention", "q", self.dtype(), E => {
            let mut rows = vec![];
            for tensor in &mut gradients {
                let stride = tensor.shape()[1];
                rows.push(RowsMut { data: Shared::new(E::of_mut(tensor)?), start: 0, stride });
            }
            let to = match rows[..] {
                [q, k, v] => [q, k, v],
                _ => [0, widths[0], widths[0] + widths[1]].map(|start| RowsMut { start, ..rows[0] }),
            };
            let kept = Kept {
                o: Rows { data: E::of(o)?, stride: widths[0] },
                lse: lse.f32s()?,
                g: Rows { data: E::of(g)?, stride: widths[0] },
                g_mat: Mat::of(g)?,
            };
            let arithmetic = Arithmetic::of(self.dtype());
            with_units!(arithmetic, P => cpu::backward::<P, E>(spec, dropout.as_ref(), self.mats(widths)?, &kept, to))?;
        });
        Ok(gradients)
    }
}

impl Tape {
    /// softmax(scale * q.k^T).v by head and sequence; q `[tq, nq * d]`, k and v `[tk, nkv * d]`.
    pub fn attention(&self, q: &Var, k: &Var, v: &Var, spec: &AttentionSpec) -> Result<Var> {
        self.attention_with_dropout([q, k, v], spec, 0.0)
    }

    /// As [`Tape::attention`] of queries, keys and values, with dropout of probabilities. Off on an inference tape.
    pub fn attention_with_dropout(&self, [q, k, v]: [&Var; 3], spec: &AttentionSpec, dropout: f32) -> Result<Var> {
        let places =
            vec![self.place("attention", "q", q)?, self.place("attention", "k", k)?, self.place("attention", "v", v)?];
        spec.check(q.value(), k.value(), v.value())?;
        let layout = Layout::Apart([q.value().clone(), k.value().clone(), v.value().clone()]);
        self.attend(layout, places, spec, dropout)
    }

    /// As [`Tape::attention`] of one tensor `[t, (nq + 2 nkv) * d]` that holds queries, keys and values side by side.
    pub fn self_attention(&self, qkv: &Var, spec: &AttentionSpec) -> Result<Var> {
        self.self_attention_with_dropout(qkv, spec, 0.0)
    }

    /// As [`Tape::self_attention`] with dropout of probabilities. Off on an inference tape.
    pub fn self_attention_with_dropout(&self, qkv: &Var, spec: &AttentionSpec, dropout: f32) -> Result<Var> {
        let op = "attention";
        let places = vec![self.place(op, "qkv", qkv)?];
        spec.check_heads()?;
        let width = spec.widths().iter().sum::<usize>();
        let [t, found] = *qkv.shape() else {
            return Err(Error::shape(op, "qkv", format!("[t, {width}]"), qkv.shape()));
        };
        if found != width {
            return Err(Error::shape(op, "qkv", format!("[t, {width}]"), qkv.shape()));
        }
        with_element!(op, "qkv", qkv.value().dtype(), E => { E::of(qkv.value())?; });
        spec.check_rows(t, t)?;
        self.attend(Layout::Together(qkv.value().clone()), places, spec, dropout)
    }

    fn attend(&self, layout: Layout, places: Vec<Option<usize>>, spec: &AttentionSpec, dropout: f32) -> Result<Var> {
        let _span = profile::span("attention");
        let dropout = Dropout::next(self, dropout)?;
        let (o, lse) = run(spec, dropout, &layout)?;
        if places.iter().all(Option::is_none) {
            return Ok(self.constant(o));
        }
        let (spec, kept) = (spec.clone(), o.clone());
        Ok(self.push_op(o, move |g, sweep| {
            let gradients = layout.backward(&spec, dropout, [&kept, &lse, &g])?;
            drop((layout, kept, g));
            for (place, gradient) in places.into_iter().zip(gradients) {
                sweep.give(place, gradient)?;
            }
            Ok(())
        }))
    }
}

/// o and the log-sum-exp `[heads, tq]` of checked inputs.
fn run(spec: &AttentionSpec, dropout: Option<Dropout>, inputs: &Layout) -> Result<(Tensor, Tensor)> {
    let (num_queries, widths) = (inputs.num_queries(), spec.widths());
    profile::add_flops(4 * spec.work());
    let mut o = Tensor::stale(&[num_queries, widths[0]], inputs.dtype())?;
    let mut lse = Tensor::stale(&[spec.num_heads, num_queries], DType::F32)?;
    with_element!("attention", "q", inputs.dtype(), E => {
        let rows = RowsMut { data: Shared::new(E::of_mut(&mut o)?), start: 0, stride: widths[0] };
        let arithmetic = Arithmetic::of(inputs.dtype());
        with_units!(arithmetic, P => cpu::forward::<P, E>(spec, dropout.as_ref(), inputs.mats(widths)?, rows, lse.f32s_mut()?))?;
    });
    Ok((o, lse))
}
