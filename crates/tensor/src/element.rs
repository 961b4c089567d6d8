//! Owns the element types of activations: kernels read and write them as f32. Refuses arithmetic in 16 bits.

use crate::dtype::{DType, bf16_to_f32, f32_to_bf16};
use crate::error::Result;
use crate::tensor::Tensor;

/// What an activation is made of.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// As f32; exact.
    fn wide(self) -> f32;

    /// Rounded to nearest even.
    fn narrow(x: f32) -> Self;

    /// The elements of a tensor; an error for another dtype.
    fn of(tensor: &Tensor) -> Result<&[Self]>;

    /// The elements for writing; an error for another dtype, or when somebody else refers to the buffer.
    fn of_mut(tensor: &mut Tensor) -> Result<&mut [Self]>;
}

impl Element for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }

    fn of(tensor: &Tensor) -> Result<&[f32]> {
        tensor.f32s()
    }

    fn of_mut(tensor: &mut Tensor) -> Result<&mut [f32]> {
        tensor.f32s_mut()
    }
}

/// The bits of a bf16 number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Bf16(pub(crate) u16);

impl Element for Bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        bf16_to_f32(self.0)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Bf16 {
        Bf16(f32_to_bf16(x))
    }

    fn of(tensor: &Tensor) -> Result<&[Bf16]> {
        tensor.expect_dtype(DType::BF16)?;
        let bits = tensor.halves()?;
        // SAFETY: `Bf16` is a transparent wrapper of its bits.
        Ok(unsafe { std::slice::from_raw_parts(bits.as_ptr().cast(), bits.len()) })
    }

    fn of_mut(tensor: &mut Tensor) -> Result<&mut [Bf16]> {
        tensor.expect_dtype(DType::BF16)?;
        let bits = tensor.halves_mut()?;
        // SAFETY: as above.
        Ok(unsafe { std::slice::from_raw_parts_mut(bits.as_mut_ptr().cast(), bits.len()) })
    }
}

/// Runs a body with `$E` as the element type of a dtype; returns an error for one that no activation has.
macro_rules! with_element {
    ($op:expr, $what:expr, $dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::DType::F32 => {
                type $E = f32;
                $body
            }
            $crate::dtype::DType::BF16 => {
                type $E = $crate::element::Bf16;
                $body
            }
            found => {
                return Err($crate::error::Error::DType { op: $op, what: $what, expected: "`F32` or `BF16`", found })
            }
        }
    };
}
pub(crate) use with_element;
