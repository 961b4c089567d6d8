//! Owns the gradients of weights, accumulated in f32 over any number of backward passes.
//! Refuses to know about optimizers and about who asked.

use std::collections::BTreeMap;

use crate::dtype::DType;
use crate::error::Result;
use crate::param::Param;
use crate::tensor::Tensor;
use crate::threads;

/// Gradients by weight id, always f32, whatever the dtype of the weight.
#[derive(Default)]
pub struct Gradients {
    by_id: BTreeMap<u64, Tensor>,
}

impl Gradients {
    /// No gradients.
    pub fn new() -> Gradients {
        Gradients::default()
    }

    /// The gradient of a weight, if any backward pass reached it.
    pub fn get(&self, param: &Param) -> Option<&Tensor> {
        self.by_id.get(&param.id())
    }

    /// The gradient for writing. A clone of the tensor that somebody kept is left as it is.
    pub fn get_mut_f32(&mut self, param: &Param) -> Option<&mut [f32]> {
        let slot = self.by_id.get_mut(&param.id())?;
        writable(slot).ok()
    }

    /// Whether a backward pass reached the weight.
    pub fn contains(&self, param: &Param) -> bool {
        self.by_id.contains_key(&param.id())
    }

    /// Number of weights with a gradient.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is no gradient at all.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Weight ids and gradients, ordered by id.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Tensor)> {
        self.by_id.iter().map(|(&id, tensor)| (id, tensor))
    }

    /// Forgets every gradient; the buffers go back to the pool.
    pub fn clear(&mut self) {
        self.by_id.clear();
    }

    /// Takes one gradient out.
    pub fn remove(&mut self, param: &Param) -> Option<Tensor> {
        self.by_id.remove(&param.id())
    }

    /// Puts in or replaces the gradient of a weight. The shape must be the weight's, the dtype f32.
    pub fn insert(&mut self, param: &Param, gradient: Tensor) -> Result<()> {
        gradient.f32s()?;
        if gradient.shape() != param.shape() {
            let expected = format!("{:?}, as `{}`", param.shape(), param.name());
            return Err(crate::Error::shape("insert", "gradient", expected, gradient.shape()));
        }
        self.by_id.insert(param.id(), gradient);
        Ok(())
    }

    /// The Euclidean norm over all gradients, summed in f64 in a fixed order.
    pub fn global_norm(&self) -> f64 {
        self.by_id.values().map(|t| t.f32s().map_or(0.0, threads::sum_of_squares)).sum::<f64>().sqrt()
    }

    /// Multiplies every gradient by `factor`.
    pub fn scale(&mut self, factor: f32) -> Result<()> {
        for slot in self.by_id.values_mut() {
            threads::for_each_chunk(writable(slot)?, |chunk| chunk.iter_mut().for_each(|x| *x *= factor));
        }
        Ok(())
    }

    /// The place where a kernel puts the gradient of `param`: what is there, and whether to add to it.
    /// A fresh place holds arbitrary numbers that the kernel must overwrite.
    pub(crate) fn place(&mut self, param: &Param) -> Result<(&mut [f32], Write)> {
        use std::collections::btree_map::Entry;
        match self.by_id.entry(param.id()) {
            Entry::Occupied(slot) => Ok((writable(slot.into_mut())?, Write::Add)),
            Entry::Vacant(slot) => {
                let fresh = slot.insert(Tensor::stale(&param.shape(), DType::F32)?);
                Ok((fresh.f32s_mut()?, Write::Replace))
            }
        }
    }
}

/// Whether a kernel overwrites its destination or adds to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Replace,
    Add,
}

fn writable(slot: &mut Tensor) -> Result<&mut [f32]> {
    if !slot.is_unique() {
        *slot = slot.clone().into_unique()?;
    }
    slot.f32s_mut()
}
