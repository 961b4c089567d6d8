//! Branch: y = x, the same buffer, any dtype and shape. Backward: dx = g, once all of g is there.
//!
//! Where several consumers read x, their gradients add up in the order in which they come. Those of a branch add up by
//! themselves first, as those of a recomputed block do, so that sums have the same bits with and without recomputation.

use crate::error::Result;
use crate::tape::{Tape, Var};

impl Tape {
    /// The same value, whose gradient is summed up before it joins that of `x`.
    pub fn branch(&self, x: &Var) -> Result<Var> {
        let Some(place) = self.place("branch", "x", x)? else { return Ok(x.clone()) };
        Ok(self.push_op(x.value().clone(), move |g, sweep| sweep.give(Some(place), g)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradients::Gradients;
    use crate::tensor::Tensor;

    #[test]
    fn gradients_of_a_branch_are_summed_first() {
        // In f32, (1e8 - 1e8) + 1 is 1, and (1 + 1e8) - 1e8 is 0.
        let sum = |with: bool| {
            let tape = Tape::record();
            let x = tape.leaf(Tensor::from_f32(&[1.0], &[1]).unwrap());
            let side = if with { tape.branch(&x).unwrap() } else { x.clone() };
            let (up, down) = (tape.scale(&side, 1e8).unwrap(), tape.scale(&side, -1e8).unwrap());
            let last = tape.scale(&x, 1.0).unwrap();
            let one = || Tensor::from_f32(&[1.0], &[1]).unwrap();
            let outputs = [(up, one()), (down, one()), (last, one())];
            let found = tape.backward_with(&outputs, &[x], &mut Gradients::new()).unwrap();
            found[0].as_ref().unwrap().to_vec_f32().unwrap()[0]
        };
        assert_eq!((sum(false), sum(true)), (0.0, 1.0));
        let tape = Tape::inference();
        let x = tape.constant(Tensor::from_f32(&[2.0], &[1]).unwrap());
        assert!(!tape.branch(&x).unwrap().requires_grad());
    }
}
