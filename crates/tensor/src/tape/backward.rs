//! Owns the walk back over a tape and the gradients of intermediate values. Refuses to know any operator.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gradients::{Gradients, Write};
use crate::ops::add;
use crate::param::Param;
use crate::profile;
use crate::tape::{Entry, Mode, Tape, Var};
use crate::tensor::Tensor;

/// The state of one backward pass: gradients of values not yet walked over, and where weight gradients go.
pub(crate) struct Sweep<'a> {
    slots: Vec<Option<Tensor>>,
    grads: &'a mut Gradients,
}

impl Sweep<'_> {
    /// Adds `gradient` to what flows to `place`; moves it there when nothing has yet.
    pub(crate) fn give(&mut self, place: Option<usize>, gradient: Tensor) -> Result<()> {
        let Some(place) = place else { return Ok(()) };
        let total = match self.slots[place].take() {
            None => gradient,
            Some(so_far) => add::accumulate(so_far, gradient)?,
        };
        self.slots[place] = Some(total);
        Ok(())
    }

    /// Lets a kernel write or add the gradient of the value at `place`. A fresh buffer holds arbitrary numbers.
    pub(crate) fn write(
        &mut self,
        place: usize,
        shape: &[usize],
        kernel: impl FnOnce(&mut [f32], Write) -> Result<()>,
    ) -> Result<()> {
        self.write_as(place, shape, DType::F32, |tensor, write| kernel(tensor.f32s_mut()?, write))
    }

    /// As [`Sweep::write`] for the gradient of a value of any dtype.
    pub(crate) fn write_as(
        &mut self,
        place: usize,
        shape: &[usize],
        dtype: DType,
        kernel: impl FnOnce(&mut Tensor, Write) -> Result<()>,
    ) -> Result<()> {
        let (mut tensor, write) = match self.slots[place].take() {
            None => (Tensor::stale(shape, dtype)?, Write::Replace),
            Some(so_far) => (so_far.into_unique()?, Write::Add),
        };
        tensor.expect_dtype(dtype)?;
        kernel(&mut tensor, write)?;
        self.slots[place] = Some(tensor);
        Ok(())
    }

    /// Where the gradient of a weight goes.
    pub(crate) fn weight(&mut self, param: &Param) -> Result<(&mut [f32], Write)> {
        self.grads.place(param)
    }

    /// Adds a finished gradient of a weight; moves it when there is none yet.
    pub(crate) fn add_weight(&mut self, param: &Param, gradient: Tensor) -> Result<()> {
        let total = match self.grads.remove(param) {
            None => gradient,
            Some(so_far) => add::accumulate(so_far, gradient)?,
        };
        self.grads.insert(param, total)
    }

    /// All weight gradients, for an operator that runs a backward pass of its own.
    pub(super) fn gradients(&mut self) -> &mut Gradients {
        self.grads
    }
}

impl Tape {
    /// Accumulates the gradients of a loss of one element into `grads`. Consumes what the tape recorded.
    pub fn backward(&self, loss: &Var, grads: &mut Gradients) -> Result<()> {
        if loss.value().num_elements() != 1 {
            let expected = "one element; use `backward_with` for others";
            return Err(Error::shape("backward", "loss", expected, loss.shape()));
        }
        let one = Tensor::from_f32(&[1.0], loss.shape())?;
        self.backward_with(&[(loss.clone(), one)], &[], grads).map(|_| ())
    }

    /// Accumulates weight gradients into `grads`, given the gradient of each output, and returns the gradient of each
    /// leaf (`None` where nothing reached it). Consumes what the tape recorded up to the last output.
    pub fn backward_with(
        &self,
        outputs: &[(Var, Tensor)],
        leaves: &[Var],
        grads: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>> {
        if self.mode != Mode::Record {
            return Err(Error::Backward { reason: "this tape does not record; use `Tape::record`".into() });
        }
        let leaf_places = self.leaf_places(leaves)?;
        let num_entries = self.entries.borrow().len();
        let mut sweep = Sweep { slots: (0..num_entries).map(|_| None).collect(), grads };
        let mut last = None;
        for (output, upstream) in outputs {
            let Some(place) = self.place("backward", "output", output)? else {
                let reason = "an output depends on no trainable weight and on no leaf".into();
                return Err(Error::Backward { reason });
            };
            if upstream.shape() != output.shape() {
                return Err(Error::shape("backward", "upstream", format!("{:?}", output.shape()), upstream.shape()));
            }
            upstream.expect_dtype(output.value().dtype())?;
            sweep.give(Some(place), upstream.clone())?;
            last = last.max(Some(place));
        }
        let Some(last) = last else { return Ok(vec![None; leaves.len()]) };
        let mut leaf_grads = vec![None; num_entries];
        for index in (0..=last).rev() {
            let entry = std::mem::replace(&mut self.entries.borrow_mut()[index], Entry::Spent);
            let upstream = sweep.slots[index].take();
            match (entry, upstream) {
                (Entry::Op(name, backward), Some(upstream)) => {
                    let _span = profile::backward_span(name);
                    backward(upstream, &mut sweep)?;
                }
                (Entry::Leaf, upstream) => leaf_grads[index] = upstream,
                (Entry::Spent | Entry::Traced, Some(_)) => {
                    return Err(Error::Backward { reason: "this part of the tape was walked over before".into() });
                }
                (_, None) => {}
            }
        }
        Ok(leaf_places.into_iter().map(|place| leaf_grads[place].clone()).collect())
    }

    fn leaf_places(&self, leaves: &[Var]) -> Result<Vec<usize>> {
        let entries = self.entries.borrow();
        leaves
            .iter()
            .map(|leaf| match self.place("backward", "leaf", leaf)? {
                Some(place) if matches!(entries[place], Entry::Leaf) => Ok(place),
                _ => Err(Error::Backward { reason: "a leaf was not made by `Tape::leaf`".into() }),
            })
            .collect()
    }
}
