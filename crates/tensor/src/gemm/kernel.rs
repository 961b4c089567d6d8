//! Owns the register tiles: rank-1 updates of an MR by NR tile from packed panels. Refuses to know matrices.

use crate::simd::{Level, level};

/// A register tile for one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Rows of the tile, the width of a panel of A.
    pub(super) mr: usize,
    /// Columns of the tile, the width of a panel of B.
    pub(super) nr: usize,
    /// Largest depth of a block: a panel of B of this depth stays in the first-level cache.
    pub(super) max_depth: usize,
    /// Computes one tile.
    pub(super) run: Tile,
}

/// c = alpha a.b or c += alpha a.b for one tile.
///
/// # Safety
/// The processor has the kernel's instruction set; `a` holds `depth * mr` and `b` `depth * nr` packed elements; `c`
/// points to `mr` rows of `nr` elements, `row_stride` apart, that nobody else accesses.
pub(super) type Tile =
    unsafe fn(depth: usize, a: *const f32, b: *const f32, store: Store, c: *mut f32, row_stride: usize);

/// How a tile goes to memory.
#[derive(Clone, Copy)]
pub(super) struct Store {
    pub(super) alpha: f32,
    pub(super) add: bool,
}

/// Elements of the largest tile of all kernels.
pub(super) const LARGEST_TILE: usize = 12 * 32;

/// The kernel for this processor.
pub(super) fn best() -> Kernel {
    of(level())
}

/// The kernel for an instruction set.
pub(super) fn of(level: Level) -> Kernel {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => Kernel { mr: 12, nr: 32, max_depth: 256, run: x86::tile_avx512 },
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => Kernel { mr: 6, nr: 16, max_depth: 256, run: x86::tile_avx2 },
        _ => Kernel { mr: 4, nr: 8, max_depth: 256, run: tile_plain },
    }
}

/// Asks for the cache lines of a part of a panel.
#[inline(always)]
pub(super) fn prefetch(part: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in part.chunks(16) {
        // SAFETY: prefetching has no effect on memory, and the address is valid.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = part;
}

/// The tile in plain Rust, small enough for the registers of SSE2 and NEON.
///
/// # Safety
/// See [`Tile`].
unsafe fn tile_plain(depth: usize, a: *const f32, b: *const f32, store: Store, c: *mut f32, row_stride: usize) {
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
    for (i, sums) in sums.iter().enumerate() {
        // SAFETY: the caller promises rows of 8 elements.
        let c = unsafe { std::slice::from_raw_parts_mut(c.add(i * row_stride), 8) };
        for (c, sum) in c.iter_mut().zip(sums) {
            *c = if store.add { *c + store.alpha * sum } else { store.alpha * sum };
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

    use super::Store;

    /// A tile of $mr rows by two vectors of $lanes elements.
    macro_rules! tile {
        ($name:ident, $features:literal, $mr:literal, $lanes:literal,
         $zero:ident, $load:ident, $set1:ident, $fma:ident, $mul:ident, $add:ident, $store:ident) => {
            /// # Safety
            /// See [`super::Tile`].
            #[target_feature(enable = $features)]
            pub(in crate::gemm) unsafe fn $name(
                depth: usize,
                mut a: *const f32,
                mut b: *const f32,
                store: Store,
                c: *mut f32,
                row_stride: usize,
            ) {
                // SAFETY: the caller promises the sizes of the panels and of the tile.
                unsafe {
                    for i in 0..$mr {
                        _mm_prefetch::<_MM_HINT_T0>(c.add(i * row_stride).cast());
                        _mm_prefetch::<_MM_HINT_T0>(c.add(i * row_stride + 2 * $lanes - 1).cast());
                    }
                    let mut sums = [[$zero(); 2]; $mr];
                    for _ in 0..depth {
                        let (left, right) = ($load(b), $load(b.add($lanes)));
                        for i in 0..$mr {
                            let x = $set1(*a.add(i));
                            sums[i][0] = $fma(x, left, sums[i][0]);
                            sums[i][1] = $fma(x, right, sums[i][1]);
                        }
                        a = a.add($mr);
                        b = b.add(2 * $lanes);
                    }
                    let alpha = $set1(store.alpha);
                    for i in 0..$mr {
                        for j in 0..2 {
                            let at = c.add(i * row_stride + j * $lanes);
                            let scaled = $mul(alpha, sums[i][j]);
                            $store(at, if store.add { $add($load(at), scaled) } else { scaled });
                        }
                    }
                }
            }
        };
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
