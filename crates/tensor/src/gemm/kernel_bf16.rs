//! Owns the register tiles of bf16 products: every step multiplies two depths. Refuses processors without such products.

use super::kernel::{Kernel, Place};
use super::pack_pairs::Pair;

/// Rows of a tile, and columns.
const MR: usize = 14;
const NR: usize = 32;

/// The kernel for this processor, which must have bf16 products (see [`crate::simd::has_bf16`]).
pub(super) fn best() -> Kernel<Pair> {
    Kernel { mr: MR, nr: NR, max_depth: 512, run: tile }
}

/// # Safety
/// Never called: other processors have no bf16 products.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn tile(_: usize, _: usize, _: *const Pair, _: *const Pair, _: &Place) {
    unreachable!("no bf16 kernel is chosen on this processor")
}

/// # Safety
/// See [`super::kernel::Tile`].
#[cfg(target_arch = "x86_64")]
unsafe fn tile(rows: usize, depth: usize, a: *const Pair, b: *const Pair, place: &Place) {
    macro_rules! by_rows {
        ($($n:literal)*) => {
            match rows {
                // SAFETY: handed on to the caller.
                $($n => unsafe { x86::tile::<$n>(depth, a, b, place) },)*
                _ => unreachable!("a tile has 1 to {MR} rows"),
            }
        };
    }
    by_rows!(14 13 12 11 10 9 8 7 6 5 4 3 2 1);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The tile with `vdpbf16ps`.

    use std::arch::x86_64::{
        __m512, __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256, _mm512_add_ps, _mm512_castsi512_ps,
        _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
        _mm512_storeu_si512,
    };

    use super::{MR, NR, Pair};
    use crate::gemm::kernel::{Place, To};

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn pairs(bits: __m512i) -> __m512bh {
        // SAFETY: both are 64 bytes of plain bits.
        unsafe { std::mem::transmute(bits) }
    }

    /// Sixteen bf16 numbers from `at` on, widened.
    ///
    /// # Safety
    /// They can be read.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn wide(at: *const u16) -> __m512 {
        // SAFETY: the caller promises 32 bytes.
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(at.cast()) })))
    }

    /// # Safety
    /// See [`crate::gemm::kernel::Tile`]; at most `ROWS` rows of the result are touched.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    // Indices name registers.
    #[allow(clippy::needless_range_loop)]
    pub(super) unsafe fn tile<const ROWS: usize>(depth: usize, mut a: *const Pair, mut b: *const Pair, place: &Place) {
        // SAFETY: the caller promises the sizes of the panels and of the tile.
        unsafe {
            if let To::F32(c) = place.to {
                for i in 0..ROWS {
                    let row = c.add(i * place.row_stride);
                    _mm_prefetch::<_MM_HINT_T0>(row.cast());
                    _mm_prefetch::<_MM_HINT_T0>(row.add(NR - 1).cast());
                }
            }
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            let mut ahead = place.ahead;
            for _ in 0..depth {
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                ahead = ahead.wrapping_add(place.ahead_step);
                let left = pairs(_mm512_loadu_si512(b.cast()));
                let right = pairs(_mm512_loadu_si512(b.add(16).cast()));
                for i in 0..ROWS {
                    let x = pairs(_mm512_set1_epi32((*a.add(i)).bits()));
                    sums[i][0] = _mm512_dpbf16_ps(sums[i][0], x, left);
                    sums[i][1] = _mm512_dpbf16_ps(sums[i][1], x, right);
                }
                a = a.add(MR);
                b = b.add(NR);
            }
            if !place.from.is_null() {
                for i in 0..ROWS {
                    for j in 0..2 {
                        let at = place.from.add(i * place.from_stride + j * 16);
                        sums[i][j] = _mm512_add_ps(_mm512_loadu_ps(at), sums[i][j]);
                    }
                }
            }
            if place.alpha != 1.0 {
                let alpha = _mm512_set1_ps(place.alpha);
                for row in &mut sums {
                    *row = [_mm512_mul_ps(alpha, row[0]), _mm512_mul_ps(alpha, row[1])];
                }
            }
            if !place.bias.is_null() {
                let bias = [_mm512_loadu_ps(place.bias), _mm512_loadu_ps(place.bias.add(16))];
                for row in &mut sums {
                    *row = [_mm512_add_ps(bias[0], row[0]), _mm512_add_ps(bias[1], row[1])];
                }
            }
            match place.to {
                To::F32(c) => {
                    for i in 0..ROWS {
                        for j in 0..2 {
                            let at = c.add(i * place.row_stride + j * 16);
                            let sum =
                                if place.add { _mm512_add_ps(_mm512_loadu_ps(at), sums[i][j]) } else { sums[i][j] };
                            _mm512_storeu_ps(at, sum);
                        }
                    }
                }
                To::BF16(c) => {
                    for i in 0..ROWS {
                        let at = c.add(i * place.row_stride);
                        let [mut low, mut high] = sums[i];
                        if place.add {
                            low = _mm512_add_ps(wide(at), low);
                            high = _mm512_add_ps(wide(at.add(16)), high);
                        }
                        let bits: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
                        _mm512_storeu_si512(at.cast(), bits);
                    }
                }
            }
        }
    }
}
