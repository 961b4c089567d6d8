//! Owns what a register tile is and the tiles of f32 products: rank-1 updates of an MR by NR tile from packed panels.
//! Refuses to know matrices.

use crate::dtype::{bf16_to_f32, f32_to_bf16};
use crate::simd::{Level, level};

/// A register tile for one instruction set, over panels of `P`.
#[derive(Clone, Copy)]
pub(crate) struct Kernel<P> {
    /// Rows of the tile, the width of a panel of A.
    pub(super) mr: usize,
    /// Columns of the tile, the width of a panel of B.
    pub(super) nr: usize,
    /// Most packed elements of a panel's depth that one call takes: a panel then stays in the first-level cache.
    pub(super) max_depth: usize,
    /// Computes one tile.
    pub(super) run: Tile<P>,
}

/// Computes the first `rows` rows of one tile.
///
/// # Safety
/// The processor has the kernel's instruction set; `a` holds `depth * mr` and `b` `depth * nr` packed elements; the place
/// fits `rows` rows of `nr` elements that nobody else accesses; `1 <= rows <= mr`.
pub(crate) type Tile<P> = unsafe fn(rows: usize, depth: usize, a: *const P, b: *const P, place: &Place);

/// Where a tile goes.
#[derive(Clone, Copy)]
pub(crate) enum To {
    F32(*mut f32),
    BF16(*mut u16),
}

/// What becomes of the sums of a tile: to (+)= alpha * (from + sums) + bias.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Sums over other depths; null for none.
    pub(super) from: *const f32,
    pub(super) from_stride: usize,
    pub(super) alpha: f32,
    /// One for each column; null for none.
    pub(super) bias: *const f32,
    pub(super) to: To,
    pub(super) row_stride: usize,
    /// Whether to add to what is there.
    pub(super) add: bool,
    /// What the caller reads next: while sums are computed, `ahead_step` bytes from here on are asked for with each packed
    /// unit of the depth. It need not be valid.
    pub(super) ahead: *const u8,
    pub(super) ahead_step: usize,
}

impl Place {
    /// The sums as they are.
    pub(super) fn plain(to: *mut f32, row_stride: usize) -> Place {
        let (from, bias) = (std::ptr::null(), std::ptr::null());
        let ahead = to.cast_const().cast();
        Place { from, from_stride: 0, alpha: 1.0, bias, to: To::F32(to), row_stride, add: false, ahead, ahead_step: 0 }
    }

    /// Puts one sum in its place.
    ///
    /// # Safety
    /// Row and column are inside of the place, which nobody else accesses.
    #[inline(always)]
    pub(super) unsafe fn put(&self, row: usize, col: usize, sum: f32) {
        // SAFETY: the caller promises that the element exists.
        unsafe {
            let before = if self.from.is_null() { 0.0 } else { *self.from.add(row * self.from_stride + col) };
            let bias = if self.bias.is_null() { 0.0 } else { *self.bias.add(col) };
            let value = self.alpha * (before + sum) + bias;
            let at = row * self.row_stride + col;
            match self.to {
                To::F32(c) => *c.add(at) = if self.add { *c.add(at) + value } else { value },
                To::BF16(c) => {
                    let value = if self.add { bf16_to_f32(*c.add(at)) + value } else { value };
                    *c.add(at) = f32_to_bf16(value);
                }
            }
        }
    }
}

/// Elements of the largest tile of all kernels.
pub(super) const LARGEST_TILE: usize = 14 * 32;

/// The f32 kernel for this processor.
pub(super) fn best() -> Kernel<f32> {
    of(level())
}

/// The f32 kernel for an instruction set.
pub(super) fn of(level: Level) -> Kernel<f32> {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => Kernel { mr: 12, nr: 32, max_depth: 256, run: x86::tile_avx512 },
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => Kernel { mr: 6, nr: 16, max_depth: 256, run: x86::tile_avx2 },
        _ => Kernel { mr: 4, nr: 8, max_depth: 256, run: tile_plain },
    }
}

/// The tile in plain Rust, small enough for the registers of SSE2 and NEON.
///
/// # Safety
/// See [`Tile`].
unsafe fn tile_plain(rows: usize, depth: usize, a: *const f32, b: *const f32, place: &Place) {
    let mut sums = [[0f32; 8]; 4];
    // SAFETY: the caller promises this many packed elements.
    let (a, b) = unsafe { (std::slice::from_raw_parts(a, depth * 4), std::slice::from_raw_parts(b, depth * 8)) };
    for (a, b) in a.chunks_exact(4).zip(b.chunks_exact(8)) {
        for i in 0..4 {
            for j in 0..8 {
                sums[i][j] += a[i] * b[j];
            }
        }
    }
    for (i, sums) in sums.iter().enumerate().take(rows) {
        for (j, &sum) in sums.iter().enumerate() {
            // SAFETY: the caller promises rows of 8 elements.
            unsafe { place.put(i, j, sum) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The two x86 tiles, one text for both widths of vectors.

    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps,
        _mm256_setzero_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mul_ps,
        _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{LARGEST_TILE, Place, To};

    /// A tile of $mr rows by two vectors of $lanes elements.
    macro_rules! tile {
        ($name:ident, $features:literal, $mr:literal, $lanes:literal,
         $zero:ident, $load:ident, $set1:ident, $fma:ident, $mul:ident, $add:ident, $store:ident) => {
            /// # Safety
            /// See [`super::Tile`].
            #[target_feature(enable = $features)]
            pub(in crate::gemm) unsafe fn $name(
                rows: usize,
                depth: usize,
                mut a: *const f32,
                mut b: *const f32,
                place: &Place,
            ) {
                // SAFETY: the caller promises the sizes of the panels and of the tile.
                unsafe {
                    if let To::F32(c) = place.to {
                        for i in 0..rows {
                            let row = c.add(i * place.row_stride);
                            _mm_prefetch::<_MM_HINT_T0>(row.cast());
                            _mm_prefetch::<_MM_HINT_T0>(row.add(2 * $lanes - 1).cast());
                        }
                    }
                    let mut sums = [[$zero(); 2]; $mr];
                    let mut ahead = place.ahead;
                    for _ in 0..depth {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        ahead = ahead.wrapping_add(place.ahead_step);
                        let (left, right) = ($load(b), $load(b.add($lanes)));
                        for i in 0..$mr {
                            let x = $set1(*a.add(i));
                            sums[i][0] = $fma(x, left, sums[i][0]);
                            sums[i][1] = $fma(x, right, sums[i][1]);
                        }
                        a = a.add($mr);
                        b = b.add(2 * $lanes);
                    }
                    let To::F32(c) = place.to else {
                        return put_all::<{ 2 * $lanes }>(rows, sums.as_ptr().cast(), place);
                    };
                    if rows < $mr || !place.from.is_null() {
                        return put_all::<{ 2 * $lanes }>(rows, sums.as_ptr().cast(), place);
                    }
                    let alpha = $set1(place.alpha);
                    for i in 0..$mr {
                        for j in 0..2 {
                            let at = c.add(i * place.row_stride + j * $lanes);
                            let mut sum = $mul(alpha, sums[i][j]);
                            if !place.bias.is_null() {
                                sum = $add($load(place.bias.add(j * $lanes)), sum);
                            }
                            $store(at, if place.add { $add($load(at), sum) } else { sum });
                        }
                    }
                }
            }
        };
    }

    /// Sums one by one, for the rarer places.
    ///
    /// # Safety
    /// `sums` holds `rows * COLS` numbers; the place fits them.
    #[inline(never)]
    unsafe fn put_all<const COLS: usize>(rows: usize, sums: *const f32, place: &Place) {
        assert!(rows * COLS <= LARGEST_TILE);
        for i in 0..rows {
            for j in 0..COLS {
                // SAFETY: handed on to the caller.
                unsafe { place.put(i, j, *sums.add(i * COLS + j)) };
            }
        }
    }

    tile!(
        tile_avx2,
        "avx2,fma",
        6,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm256_mul_ps,
        _mm256_add_ps,
        _mm256_storeu_ps
    );
    tile!(
        tile_avx512,
        "avx512f",
        12,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_mul_ps,
        _mm512_add_ps,
        _mm512_storeu_ps
    );
}
