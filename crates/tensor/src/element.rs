//! Owns the element types of activations: kernels read and write them as f32. Refuses arithmetic in 16 bits.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512, _CMP_UNORD_Q, _mm256_mask_storeu_epi16, _mm256_maskz_loadu_epi16, _mm256_storeu_si256, _mm512_add_epi32,
    _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi16,
    _mm512_cvtepu16_epi32, _mm512_mask_or_epi32, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_epi32,
    _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_ps,
};

use crate::dtype::{DType, bf16_to_f32, f32_to_bf16};
use crate::error::Result;
use crate::tensor::Tensor;

/// Elements of a vector of [`Element::load`].
#[cfg(target_arch = "x86_64")]
pub(crate) const LANES: usize = 16;

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

    /// The elements from `at` on whose bits are set in `mask`, wide; 0 in the other lanes.
    ///
    /// # Safety
    /// AVX-512 F, VL and BW; the elements in the mask can be read.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(at: *const Self, mask: u16) -> __m512;

    /// Writes the lanes whose bits are set in `mask`, with the bits that [`Element::narrow`] gives.
    ///
    /// # Safety
    /// AVX-512 F, VL and BW; the elements in the mask can be written.
    #[cfg(target_arch = "x86_64")]
    unsafe fn store(at: *mut Self, mask: u16, x: __m512);
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

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(at: *const f32, mask: u16) -> __m512 {
        // SAFETY: handed on to the caller; masked elements are not read.
        unsafe { _mm512_maskz_loadu_ps(mask, at) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store(at: *mut f32, mask: u16, x: __m512) {
        // SAFETY: handed on to the caller; masked elements are not written.
        unsafe {
            if mask == u16::MAX {
                _mm512_storeu_ps(at, x);
            } else {
                _mm512_mask_storeu_ps(at, mask, x);
            }
        }
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

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(at: *const Bf16, mask: u16) -> __m512 {
        // SAFETY: handed on to the caller; masked elements are not read.
        unsafe {
            let bits = _mm256_maskz_loadu_epi16(mask, at.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store(at: *mut Bf16, mask: u16, x: __m512) {
        // SAFETY: handed on to the caller; masked elements are not written.
        unsafe {
            let bits = _mm512_castps_si512(x);
            let high = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let rounded = _mm512_mask_or_epi32(_mm512_srli_epi32::<16>(rounded), nan, high, _mm512_set1_epi32(0x40));
            let narrow = _mm512_cvtepi32_epi16(rounded);
            if mask == u16::MAX {
                _mm256_storeu_si256(at.cast(), narrow);
            } else {
                _mm256_mask_storeu_epi16(at.cast(), mask, narrow);
            }
        }
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

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::simd::{Level, level};

    #[test]
    fn vectors_read_and_write_as_single_elements_do() {
        if level() != Level::Avx512 {
            return;
        }
        let mut values =
            [1.0, -1.0 - 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8), f32::MAX, f32::NAN, -f32::NAN, 1e-40, -0.0]
                .repeat(2);
        values[9] = f32::from_bits(0x7f80_0001);
        values[10] = f32::NEG_INFINITY;
        for n in [1, 7, 15, 16] {
            let mask = (u32::MAX >> (32 - n)) as u16;
            let (mut narrow, mut wide) = ([Bf16(7); 16], [7f32; 16]);
            // SAFETY: the processor has AVX-512, and the arrays hold whole vectors.
            unsafe {
                let x = f32::load(values.as_ptr(), mask);
                Bf16::store(narrow.as_mut_ptr(), mask, x);
                f32::store(wide.as_mut_ptr(), mask, Bf16::load(narrow.as_ptr(), mask));
            }
            for i in 0..16 {
                let expected = if i < n { Bf16::narrow(values[i]) } else { Bf16(7) };
                assert_eq!(narrow[i], expected, "{n} {i}");
                let expected = if i < n { expected.wide() } else { 7.0 };
                assert_eq!(wide[i].to_bits(), expected.to_bits(), "{n} {i}");
            }
        }
    }
}
