//! Owns widening of 16-bit weights inside of operators. Refuses to keep anything wide.

use std::borrow::Cow;

use crate::dtype::{DType, bf16_to_f32, f16_to_f32};
use crate::error::{Error, Result};
use crate::gradients::Write;
use crate::simd::multiversion;
use crate::tensor::Tensor;
use crate::threads;

/// A weight as f32 for the duration of one operator: itself, or a widened copy in a pooled buffer.
pub(crate) struct Wide<'a>(Cow<'a, Tensor>);

impl<'a> Wide<'a> {
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Wide<'a>> {
        if tensor.dtype() == DType::F32 {
            return Ok(Wide(Cow::Borrowed(tensor)));
        }
        let mut copy = Tensor::stale(tensor.shape(), DType::F32)?;
        widen(tensor, copy.f32s_mut()?)?;
        Ok(Wide(Cow::Owned(copy)))
    }

    pub(crate) fn f32s(&self) -> Result<&[f32]> {
        self.0.f32s()
    }
}

/// Writes all elements of a float tensor to `to` as f32.
pub(crate) fn widen(from: &Tensor, to: &mut [f32]) -> Result<()> {
    let narrow: fn(&[u16], &mut [f32]) = match from.dtype() {
        DType::F32 => {
            to.copy_from_slice(from.f32s()?);
            return Ok(());
        }
        DType::BF16 => widen_bf16,
        DType::F16 => widen_f16,
        found => return Err(Error::DType { op: "widen", what: "weight", expected: "a float", found }),
    };
    let from = from.halves()?;
    threads::for_each_rows(to, 1, |range, to| narrow(&from[range], to));
    Ok(())
}

/// A function that writes or adds elements from a place of a float tensor to a slice.
pub(crate) fn widen_slice(from: &Tensor) -> Result<impl Fn(usize, &mut [f32], Write) + Sync + Send> {
    enum Source<'a> {
        F32(&'a [f32]),
        Half(&'a [u16], fn(u16) -> f32),
    }
    let source = match from.dtype() {
        DType::F32 => Source::F32(from.f32s()?),
        DType::BF16 => Source::Half(from.halves()?, bf16_to_f32),
        DType::F16 => Source::Half(from.halves()?, f16_to_f32),
        found => return Err(Error::DType { op: "widen", what: "table", expected: "a float", found }),
    };
    Ok(move |start: usize, to: &mut [f32], write: Write| {
        let range = start..start + to.len();
        match (&source, write) {
            (Source::F32(from), Write::Replace) => to.copy_from_slice(&from[range]),
            (Source::F32(from), Write::Add) => to.iter_mut().zip(&from[range]).for_each(|(to, x)| *to += x),
            (Source::Half(from, wide), Write::Replace) => {
                to.iter_mut().zip(&from[range]).for_each(|(to, &x)| *to = wide(x));
            }
            (Source::Half(from, wide), Write::Add) => {
                to.iter_mut().zip(&from[range]).for_each(|(to, &x)| *to += wide(x));
            }
        }
    })
}

multiversion! {
    fn widen_bf16(from: &[u16], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, &bits)| *to = bf16_to_f32(bits));
    }
}

multiversion! {
    fn widen_f16(from: &[u16], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, &bits)| *to = f16_to_f32(bits));
    }
}
