//! Reshaping: the same elements in the same order under another shape; any dtype. Backward gives the gradient x's shape.
//! Nothing is copied or kept.

use crate::error::Result;
use crate::tape::{Tape, Var};

impl Tape {
    /// x under another shape of as many elements.
    pub fn reshape(&self, x: Var, shape: &[usize]) -> Result<Var> {
        let place = self.place("reshape", "x", &x)?;
        let from = x.shape().to_vec();
        let y = x.into_value().reshape(shape)?;
        let Some(place) = place else { return Ok(self.constant(y)) };
        Ok(self.push_op(y, move |g, sweep| sweep.give(Some(place), g.reshape(&from)?)))
    }
}

#[cfg(test)]
mod tests {
    use crate::{Gradients, Param, Tape, Tensor};

    #[test]
    fn rows_are_joined_and_parted_again() {
        let w = Param::new("w", Tensor::from_f32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], &[4, 2]).unwrap());
        w.set_trainable(true);
        let t = Tape::record();
        let x = t.embedding(&[3, 0, 1, 1], &w).unwrap();
        let joined = t.reshape(x, &[2, 4]).unwrap();
        assert_eq!(joined.value().to_vec_f32().unwrap(), [7.0, 8.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
        assert!(t.reshape(joined.clone(), &[3, 3]).is_err());
        let weights = t.constant(Tensor::from_f32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], &[2, 4]).unwrap());
        let product = t.mul(&joined, &weights).unwrap();
        let ones = Param::new("ones", Tensor::from_f32(&[1.0; 8], &[1, 8]).unwrap());
        let flat = t.reshape(product, &[1, 8]).unwrap();
        let sum = t.linear(&flat, &crate::LinearWeights { weight: ones, bias: None, lora: None }).unwrap();
        let mut gradients = Gradients::new();
        t.backward(&sum, &mut gradients).unwrap();
        // Row 3 took the first two weights, row 0 the next two, row 1 the sum of the others.
        let found = gradients.get(&w).unwrap().to_vec_f32().unwrap();
        assert_eq!(found, [3.0, 4.0, 5.0 + 7.0, 6.0 + 8.0, 0.0, 0.0, 1.0, 2.0]);
    }
}
