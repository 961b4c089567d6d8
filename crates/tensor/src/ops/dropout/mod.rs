//! Dropout: y = x * keep / (1 - p), keep in {0, 1} with probability 1 - p, as `torch.nn.functional.dropout`.
//!
//! The mask is a function of seed, step, the operator's ordinal on its tape and the element's index, so that backward
//! and recompute draw it again instead of keeping it. f32 or bf16, the same in and out, any shape. Off on an inference tape.

use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::memory;
use crate::rng::Stream;
use crate::simd::multiversion;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::threads;

/// The mask of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dropout {
    stream: Stream,
    /// A random word below this drops the element.
    threshold: u32,
    /// 1 / (1 - p).
    scale: f32,
}

impl Dropout {
    /// The next mask of a tape; `None` when nothing would be dropped.
    pub(crate) fn next(tape: &Tape, p: f32) -> Result<Option<Dropout>> {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::argument("dropout", format!("probability {p} is not in 0..1")));
        }
        if p == 0.0 || !tape.is_recording() {
            return Ok(None);
        }
        let threshold = (f64::from(p) * 4_294_967_296.0) as u32;
        Ok(Some(Dropout { stream: tape.next_stream(), threshold, scale: 1.0 / (1.0 - p) }))
    }

    /// Masks a part of a row in place: its elements from `first` on, a multiple of 4, in row `row` of a table whose rows take
    /// `blocks` blocks of random words each.
    pub(crate) fn apply_in_row(&self, row: u64, blocks: u64, first: usize, part: &mut [f32]) {
        debug_assert!(first.is_multiple_of(4));
        mask_piece(self, row * blocks + first as u64 / 4, part);
    }

    /// to (+)= mask(from).
    pub(crate) fn apply<E: Element>(&self, from: &[E], to: &mut [E], write: Write) {
        threads::for_each_rows(to, 1, |range, to| apply_piece(self, range.start, &from[range], to, write));
    }
}

multiversion! {
    /// Pieces start at multiples of 4, the width of a random block.
    fn apply_piece<E: Element>(mask: &Dropout, start: usize, from: &[E], to: &mut [E], write: Write) {
        for (i, (to, from)) in to.chunks_mut(4).zip(from.chunks(4)).enumerate() {
            let words = mask.stream.block((start / 4 + i) as u64);
            for ((to, &x), word) in to.iter_mut().zip(from).zip(words) {
                let y = if word < mask.threshold { 0.0 } else { x.wide() * mask.scale };
                *to = E::narrow(if write == Write::Add { to.wide() + y } else { y });
            }
        }
    }
}

multiversion! {
    /// The elements that belong to the random blocks from `block` on.
    fn mask_piece(mask: &Dropout, block: u64, x: &mut [f32]) {
        for (i, x) in x.chunks_mut(4).enumerate() {
            let words = mask.stream.block(block + i as u64);
            for (x, word) in x.iter_mut().zip(words) {
                *x = if word < mask.threshold { 0.0 } else { *x * mask.scale };
            }
        }
    }
}

impl Tape {
    /// Whether something as a whole is left out, with probability `p`: the layer of LayerDrop (Fan et al. 2020). Never on an
    /// inference tape, nor in a plan, which reckons with everything.
    pub fn leaves_out(&self, p: f32) -> Result<bool> {
        let Some(mask) = Dropout::next(self, p)? else { return Ok(false) };
        Ok(!memory::is_planning() && mask.stream.block(0)[0] < mask.threshold)
    }

    /// Zeroes elements with probability `p` and scales the others by 1/(1-p). Off on an inference tape.
    pub fn dropout(&self, x: &Var, p: f32) -> Result<Var> {
        let place = self.place("dropout", "x", x)?;
        let Some(mask) = Dropout::next(self, p)? else { return Ok(x.clone()) };
        let dtype = x.value().dtype();
        let mut y = Tensor::stale(x.shape(), dtype)?;
        with_element!("dropout", "x", dtype, E => mask.apply(E::of(x.value())?, E::of_mut(&mut y)?, Write::Replace));
        let Some(place) = place else { return Ok(self.constant(y)) };
        let shape = x.shape().to_vec();
        Ok(self.push_op(y, move |g, sweep| {
            sweep.write_as(place, &shape, dtype, |dx, write| {
                with_element!("dropout", "x", dtype, E => mask.apply(E::of(&g)?, E::of_mut(dx)?, write));
                Ok(())
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradients::Gradients;

    fn run(seed: u64, step: u64, threads: usize) -> (Vec<f32>, Vec<f32>) {
        crate::set_num_threads(threads);
        let tape = Tape::record().with_rng(seed, step);
        let x = tape.leaf(Tensor::from_f32(&vec![1.0; 70_003], &[70_003]).unwrap());
        let y = tape.dropout(&x, 0.25).unwrap();
        let upstream = Tensor::from_f32(&vec![2.0; 70_003], &[70_003]).unwrap();
        let dx = tape.backward_with(&[(y.clone(), upstream)], &[x], &mut Gradients::new()).unwrap();
        (y.value().to_vec_f32().unwrap(), dx[0].as_ref().unwrap().to_vec_f32().unwrap())
    }

    #[test]
    fn the_mask_is_reproducible_scaled_and_repeated_in_backward() {
        let (y, dx) = run(1, 2, 1);
        assert_eq!((y.clone(), dx.clone()), run(1, 2, 3));
        assert_ne!(y, run(1, 3, 1).0);
        let dropped = y.iter().filter(|&&v| v == 0.0).count() as f64 / y.len() as f64;
        assert!((dropped - 0.25).abs() < 0.008, "five standard deviations: {dropped}");
        assert!(y.iter().all(|&v| v == 0.0 || v == 1.0 / 0.75));
        assert!(y.iter().zip(&dx).all(|(&y, &dx)| dx == 2.0 * y));
    }

    #[test]
    fn a_whole_is_left_out_as_often_as_asked() {
        let tape = Tape::record().with_rng(5, 1);
        let count = (0..10_000).filter(|_| tape.leaves_out(0.3).unwrap()).count() as f64 / 10_000.0;
        assert!((count - 0.3).abs() < 0.023, "five standard deviations: {count}");
        assert!((0..100).all(|_| !Tape::inference().leaves_out(0.9).unwrap() && !tape.leaves_out(0.0).unwrap()));
    }

    #[test]
    fn it_is_off_for_inference_and_refuses_bad_probabilities() {
        let tape = Tape::inference();
        let x = tape.constant(Tensor::from_f32(&[1.0, 2.0], &[2]).unwrap());
        assert_eq!(tape.dropout(&x, 0.9).unwrap().value().f32s().unwrap(), [1.0, 2.0]);
        assert!(tape.dropout(&x, 1.0).is_err());
        assert!(tape.dropout(&x, f32::NAN).is_err());
    }
}
