//! Owns packing for bf16 products: as [`super::pack`], with the bf16 numbers of two neighbouring depths in one unit. Wider
//! elements are rounded to nearest even on the way; a last odd depth is paired with zero.

use std::ops::Range;

use super::kernel::Kernel;
use super::pack::Unit;
use super::{Elements, Mat, kernel_bf16};
use crate::dtype::{f16_to_f32, f32_to_bf16};

/// Two bf16 numbers, the first in the lower half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Pair(u32);

impl Pair {
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) fn bits(self) -> i32 {
        self.0.cast_signed()
    }

    fn new(low: u16, high: u16) -> Pair {
        Pair(u32::from(low) | u32::from(high) << 16)
    }
}

impl Unit for Pair {
    const DEPTHS: usize = 2;

    fn kernel() -> Kernel<Pair> {
        kernel_bf16::best()
    }

    fn pack(mat: &Mat<'_>, rows: Range<usize>, width: usize, stride: usize, to: &mut [Pair]) {
        let units = mat.cols.div_ceil(2);
        assert!(rows.end <= mat.rows && stride >= width * units);
        if units == 0 {
            return;
        }
        for (i, first) in rows.clone().step_by(width).enumerate() {
            let num_rows = width.min(rows.end - first);
            let panel = &mut to[i * stride..][..units * width];
            let done = fast(mat, first, num_rows, width, panel);
            if !done {
                slow(mat, first, num_rows, width, panel);
            }
        }
    }
}

/// Packs one panel element by element.
fn slow(mat: &Mat<'_>, first: usize, num_rows: usize, width: usize, panel: &mut [Pair]) {
    let at = |i: usize, p: usize| {
        if i >= num_rows || p >= mat.cols {
            return 0;
        }
        let at = (first + i) * mat.row_stride + p * mat.col_stride;
        match mat.data {
            Elements::F32(data) => f32_to_bf16(data[at]),
            Elements::BF16(data) => data[at],
            Elements::F16(data) => f32_to_bf16(f16_to_f32(data[at])),
        }
    };
    for (p, to) in panel.chunks_exact_mut(width).enumerate() {
        for (i, to) in to.iter_mut().enumerate() {
            *to = Pair::new(at(i, 2 * p), at(i, 2 * p + 1));
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn fast(_: &Mat<'_>, _: usize, _: usize, _: usize, _: &mut [Pair]) -> bool {
    false
}

/// Packs one panel with vectors, where the processor and the element type have them.
#[cfg(target_arch = "x86_64")]
fn fast(mat: &Mat<'_>, first: usize, num_rows: usize, width: usize, panel: &mut [Pair]) -> bool {
    if !crate::simd::has_bf16() || !matches!(width, 14 | 32) {
        return false;
    }
    let last = (first + num_rows - 1) * mat.row_stride + (mat.cols - 1) * mat.col_stride;
    assert!(last < mat.data.len() && panel.len() == mat.cols.div_ceil(2) * width);
    // SAFETY: the processor has AVX-512 with bf16; the assertion bounds every read and write.
    unsafe {
        match (mat.data, mat.col_stride, mat.row_stride) {
            (Elements::F32(data), 1, _) => x86::transpose(data, mat, first, num_rows, width, panel),
            (Elements::BF16(data), 1, _) => x86::transpose(data, mat, first, num_rows, width, panel),
            (Elements::F16(data), 1, _) => x86::transpose(x86::halves(data), mat, first, num_rows, width, panel),
            (Elements::F32(data), _, 1) => x86::interleave(data, mat, first, num_rows, width, panel),
            (Elements::BF16(data), _, 1) => x86::interleave(data, mat, first, num_rows, width, panel),
            (Elements::F16(data), _, 1) => x86::interleave(x86::halves(data), mat, first, num_rows, width, panel),
            _ => return false,
        }
    }
    true
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Packing with AVX-512; masks keep reads inside of the matrix and writes inside of the panel.

    use std::arch::x86_64::{
        __m256i, __m512i, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm256_maskz_loadu_epi16, _mm512_castsi512_si256,
        _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_cvtneps_pbh, _mm512_cvtph_ps, _mm512_extracti64x4_epi64,
        _mm512_mask_storeu_epi32, _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps, _mm512_or_si512,
        _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_storeu_si512, _mm512_unpackhi_epi32,
        _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };

    use super::Pair;
    use crate::gemm::Mat;

    /// An element type that vectors of bf16 numbers are made from.
    pub(super) trait Source: Copy {
        /// The first `n` of 32 elements from `at` on as bf16, the others zero.
        ///
        /// # Safety
        /// AVX-512 with bf16; `n <= 32` elements can be read.
        unsafe fn thirty_two(at: *const Self, n: usize) -> __m512i;

        /// The first `n` of 16 elements from `at` on as bf16, the others zero.
        ///
        /// # Safety
        /// AVX-512 with bf16; `n <= 16` elements can be read.
        unsafe fn sixteen(at: *const Self, n: usize) -> __m256i;
    }

    #[inline(always)]
    fn mask(n: usize) -> u32 {
        if n >= 32 { u32::MAX } else { (1 << n) - 1 }
    }

    impl Source for u16 {
        #[inline(always)]
        unsafe fn thirty_two(at: *const u16, n: usize) -> __m512i {
            // SAFETY: handed on to the caller; masked elements are not read.
            unsafe { _mm512_maskz_loadu_epi16(mask(n), at.cast()) }
        }

        #[inline(always)]
        unsafe fn sixteen(at: *const u16, n: usize) -> __m256i {
            // SAFETY: handed on to the caller; masked elements are not read.
            unsafe { _mm256_maskz_loadu_epi16(mask(n) as u16, at.cast()) }
        }
    }

    impl Source for f32 {
        #[inline(always)]
        unsafe fn thirty_two(at: *const f32, n: usize) -> __m512i {
            let mask = mask(n);
            // SAFETY: handed on to the caller; masked elements are not read. Vectors of bf16 are plain bits.
            unsafe {
                let low = _mm512_maskz_loadu_ps(mask as u16, at);
                let high = _mm512_maskz_loadu_ps((mask >> 16) as u16, at.wrapping_add(16));
                std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
            }
        }

        #[inline(always)]
        unsafe fn sixteen(at: *const f32, n: usize) -> __m256i {
            // SAFETY: as above.
            unsafe { std::mem::transmute(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask(n) as u16, at))) }
        }
    }

    /// The bits of a binary16 number.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub(super) struct Half(u16);

    /// Bits of binary16 numbers as such.
    pub(super) fn halves(bits: &[u16]) -> &[Half] {
        // SAFETY: the layout is that of the bits.
        unsafe { std::slice::from_raw_parts(bits.as_ptr().cast(), bits.len()) }
    }

    impl Source for Half {
        #[inline(always)]
        unsafe fn thirty_two(at: *const Half, n: usize) -> __m512i {
            // SAFETY: as above.
            unsafe {
                let bits = _mm512_maskz_loadu_epi16(mask(n), at.cast());
                let low = _mm512_cvtph_ps(_mm512_castsi512_si256(bits));
                let high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(bits));
                std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
            }
        }

        #[inline(always)]
        unsafe fn sixteen(at: *const Half, n: usize) -> __m256i {
            // SAFETY: as above.
            unsafe {
                let bits = _mm256_maskz_loadu_epi16(mask(n) as u16, at.cast());
                std::mem::transmute(_mm512_cvtneps_pbh(_mm512_cvtph_ps(bits)))
            }
        }
    }

    /// Rows whose depths follow each other: blocks of 16 rows by 16 units are transposed in registers.
    ///
    /// # Safety
    /// AVX-512 with bf16; the rows and the whole depth are inside of `data`; `panel` holds them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn transpose<S: Source>(
        data: &[S],
        mat: &Mat<'_>,
        first: usize,
        num_rows: usize,
        width: usize,
        panel: &mut [Pair],
    ) {
        let units = mat.cols.div_ceil(2);
        for group in (0..width).step_by(16) {
            let present = num_rows.saturating_sub(group).min(16);
            let lanes = mask((width - group).min(16)) as u16;
            for unit in (0..units).step_by(16) {
                // SAFETY: rows below `num_rows` and depths below `cols` lie inside of the matrix; the panel holds `width`
                // units for each of `units`.
                unsafe {
                    let start = data.as_ptr().wrapping_add((first + group) * mat.row_stride + 2 * unit);
                    let left = mat.cols - 2 * unit;
                    let mut rows = [_mm512_setzero_si512(); 16];
                    for (i, row) in rows.iter_mut().enumerate() {
                        if i < present {
                            let at = start.wrapping_add(i * mat.row_stride);
                            *row = S::thirty_two(at, left.min(32));
                            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(128).cast());
                            // The same depths of the next panel's rows: streams as short as rows end before the processor's
                            // own prefetching has begun.
                            _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(width * mat.row_stride).cast());
                        }
                    }
                    // Lines that are written next: stores alone wait for each of them.
                    for j in 16..32 {
                        let to = panel.as_ptr().wrapping_add((unit + j) * width + group);
                        _mm_prefetch::<_MM_HINT_T0>(to.cast());
                    }
                    let columns = transposed(&rows);
                    let to = panel.as_mut_ptr().add(unit * width + group);
                    if group + 16 <= width && unit + 16 <= units {
                        for (j, column) in columns.iter().enumerate() {
                            _mm512_storeu_si512(to.add(j * width).cast(), *column);
                        }
                        continue;
                    }
                    // What a whole vector writes behind its columns the next one overwrites, but for the last.
                    let whole = if group + 16 >= width { (units - unit - 1).min(16) } else { 0 };
                    for (j, column) in columns.iter().enumerate().take(whole) {
                        _mm512_storeu_si512(to.add(j * width).cast(), *column);
                    }
                    for (j, column) in columns.iter().enumerate().take(units - unit).skip(whole) {
                        _mm512_mask_storeu_epi32(to.add(j * width).cast(), lanes, *column);
                    }
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transposed(r: &[__m512i; 16]) -> [__m512i; 16] {
        let mut t = [_mm512_setzero_si512(); 16];
        // Pairs of rows, then quadruples within each quarter, then the quarters.
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        let mut q = [_mm512_setzero_si512(); 16];
        for i in 0..4 {
            q[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
            q[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
            q[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
            q[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
        }
        for i in 0..4 {
            t[i] = _mm512_shuffle_i32x4::<0x88>(q[i], q[4 + i]);
            t[4 + i] = _mm512_shuffle_i32x4::<0xdd>(q[i], q[4 + i]);
            t[8 + i] = _mm512_shuffle_i32x4::<0x88>(q[8 + i], q[12 + i]);
            t[12 + i] = _mm512_shuffle_i32x4::<0xdd>(q[8 + i], q[12 + i]);
        }
        for i in 0..8 {
            q[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[8 + i]);
            q[8 + i] = _mm512_shuffle_i32x4::<0xdd>(t[i], t[8 + i]);
        }
        q
    }

    /// Depths that [`interleave`] asks for ahead, each a line of its own: what memory takes to answer.
    const AHEAD: usize = 64;
    /// Panels whose lines it asks for meanwhile, for the second-level cache.
    const PANELS_AHEAD: usize = 3;

    /// Rows that follow each other within a depth: two depths are interleaved.
    ///
    /// # Safety
    /// As [`transpose`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn interleave<S: Source>(
        data: &[S],
        mat: &Mat<'_>,
        first: usize,
        num_rows: usize,
        width: usize,
        panel: &mut [Pair],
    ) {
        for unit in 0..mat.cols.div_ceil(2) {
            for group in (0..width).step_by(16) {
                let present = num_rows.saturating_sub(group).min(16);
                let lanes = mask((width - group).min(16)) as u16;
                // SAFETY: as in `transpose`; masked elements are not read.
                unsafe {
                    let at = data.as_ptr().wrapping_add(2 * unit * mat.col_stride + first + group);
                    let next = at.wrapping_add(mat.col_stride);
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * mat.col_stride).cast());
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(AHEAD * mat.col_stride).cast());
                    if group == 0 {
                        // The same depths of a later panel.
                        _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(PANELS_AHEAD * width).cast());
                        _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(PANELS_AHEAD * width).cast());
                    }
                    let low = _mm512_cvtepu16_epi32(S::sixteen(at, present));
                    let high = match 2 * unit + 1 < mat.cols {
                        true => _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(S::sixteen(next, present))),
                        false => _mm512_setzero_si512(),
                    };
                    let to = panel.as_mut_ptr().add(unit * width + group);
                    _mm512_mask_storeu_epi32(to.cast(), lanes, _mm512_or_si512(low, high));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_pack_as_loops_do() {
        let data: Vec<f32> = (0..70 * 90).map(|i| (i as f32 * 0.37).sin()).collect();
        let bits: Vec<u16> = data.iter().map(|&x| f32_to_bf16(x)).collect();
        // Of every exponent, subnormal ones among them, but neither infinite nor NaN.
        let halves: Vec<u16> = (0..70 * 90u32).map(|i| (i.wrapping_mul(40503) % 65536) as u16 & 0xbbff).collect();
        for (rows, cols) in [(1, 1), (14, 32), (32, 64), (31, 33), (40, 90), (70, 7), (15, 65)] {
            for width in [14, 32] {
                for mat in [
                    Mat::strided(&data, rows, cols, 90),
                    Mat::strided_bf16(&bits, rows, cols, 90),
                    Mat::strided(&data[..cols * 70], cols, rows, 70).t(),
                    Mat::strided_bf16(&bits[..cols * 70], cols, rows, 70).t(),
                    Mat::checked(Elements::F16(&halves), rows, cols, 90),
                    Mat::checked(Elements::F16(&halves[..cols * 70]), cols, rows, 70).t(),
                ] {
                    let units = cols.div_ceil(2);
                    let mut packed = vec![Pair(7); rows.div_ceil(width) * width * units];
                    Pair::pack(&mat, 0..rows, width, width * units, &mut packed);
                    let mut expected = packed.clone();
                    for (i, first) in (0..rows).step_by(width).enumerate() {
                        let panel = &mut expected[i * width * units..][..width * units];
                        slow(&mat, first, width.min(rows - first), width, panel);
                    }
                    assert_eq!(packed, expected, "{rows} {cols} {width}");
                }
            }
        }
    }
}
