//! Owns packing for f32 products: some rows of a matrix become panels, each `width` of them, depth after depth, padded
//! with zeros. 16-bit elements widen on the way. Refuses to know what the panels are for.

use std::ops::Range;

use super::kernel::{self, Kernel};
use super::{Elements, Mat};
use crate::dtype::{bf16_to_f32, f16_to_f32};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Level, level};

/// Depths handled at a time where the rows of a depth are contiguous: neighbouring panels then find in the first-level
/// cache the lines that they share, or read on where the last one stopped.
const PARTIAL_LINES: usize = 64;
const WHOLE_LINES: usize = 16;

/// An element type that widens to f32.
pub(super) trait Element {
    /// What is stored.
    type Bits: Copy;

    fn widen(bits: Self::Bits) -> f32;

    /// Eight elements from `at` on.
    ///
    /// # Safety
    /// The processor has AVX2 and F16C; eight elements can be read.
    #[cfg(target_arch = "x86_64")]
    unsafe fn eight(at: *const Self::Bits) -> std::arch::x86_64::__m256;

    /// Four elements from `at` on.
    ///
    /// # Safety
    /// The processor has AVX2 and F16C; four elements can be read.
    #[cfg(target_arch = "x86_64")]
    unsafe fn four(at: *const Self::Bits) -> std::arch::x86_64::__m128;
}

/// What panels are made of. Every bit pattern is a unit.
pub(crate) trait Unit: Copy + Send + Sync + 'static {
    /// Depths that one unit holds.
    const DEPTHS: usize;

    /// The register tile of this processor.
    fn kernel() -> Kernel<Self>;

    /// Packs rows `rows` of `mat` (a whole number of panels, but for the last) over its whole depth. Panels start `stride`
    /// units apart in `to` and hold `width` units for every unit of the depth.
    fn pack(mat: &Mat<'_>, rows: Range<usize>, width: usize, stride: usize, to: &mut [Self]);
}

impl Unit for f32 {
    const DEPTHS: usize = 1;

    fn kernel() -> Kernel<f32> {
        kernel::best()
    }

    fn pack(mat: &Mat<'_>, rows: Range<usize>, width: usize, stride: usize, to: &mut [f32]) {
        assert!(rows.end <= mat.rows && stride >= width * mat.cols);
        match mat.data {
            Elements::F32(data) => pack_as::<F32>(data, mat, rows, width, stride, to),
            Elements::BF16(data) => pack_as::<Bf16>(data, mat, rows, width, stride, to),
            Elements::F16(data) => pack_as::<F16>(data, mat, rows, width, stride, to),
        }
    }
}

fn pack_as<E: Element>(
    data: &[E::Bits],
    mat: &Mat<'_>,
    rows: Range<usize>,
    width: usize,
    stride: usize,
    to: &mut [f32],
) {
    let depth = 0..mat.cols;
    let step = match (mat.col_stride, width.is_multiple_of(16)) {
        (1, _) => depth.len(),
        (_, true) => WHOLE_LINES,
        (_, false) => PARTIAL_LINES,
    };
    for start in depth.clone().step_by(step) {
        let part = start..(start + step).min(depth.end);
        for (i, first) in rows.clone().step_by(width).enumerate() {
            let num_rows = width.min(rows.end - first);
            let panel = &mut to[i * stride + start * width..][..part.len() * width];
            let from =
                Part::<E> { data, first, num_rows, depth: part.clone(), strides: [mat.row_stride, mat.col_stride] };
            let done = from.fast(width, panel);
            from.slow(done, width, panel);
        }
    }
}

/// Some rows and depths of one panel.
struct Part<'a, E: Element> {
    data: &'a [E::Bits],
    first: usize,
    num_rows: usize,
    depth: Range<usize>,
    strides: [usize; 2],
}

impl<E: Element> Part<'_, E> {
    /// Packs the depths from the `done`-th on, element by element.
    fn slow(&self, done: usize, width: usize, panel: &mut [f32]) {
        let [row_stride, col_stride] = self.strides;
        for (p, to) in self.depth.clone().zip(panel.chunks_exact_mut(width)).skip(done) {
            for (i, to) in to.iter_mut().enumerate() {
                *to = match i < self.num_rows {
                    true => E::widen(self.data[(self.first + i) * row_stride + p * col_stride]),
                    false => 0.0,
                };
            }
        }
    }

    /// Packs as many depths from the first on as vectors can, and returns how many.
    #[cfg(target_arch = "x86_64")]
    fn fast(&self, width: usize, panel: &mut [f32]) -> usize {
        if level() < Level::Avx2 || self.num_rows < width || !matches!(width, 6 | 12 | 16 | 32) {
            return 0;
        }
        // Vectors read nothing behind the last row and depth of the part: depths that do not fill one are left over.
        let [row_stride, col_stride] = self.strides;
        let last = (self.first + width - 1) * row_stride + (self.depth.end - 1) * col_stride;
        assert!(last < self.data.len() && panel.len() == self.depth.len() * width);
        // SAFETY: `level` found AVX2 and F16C; the assertion bounds every read and write.
        unsafe {
            match (row_stride, col_stride) {
                (_, 1) => x86::transpose::<E>(self, width, panel),
                (1, _) => x86::copy::<E>(self, width, panel),
                _ => 0,
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn fast(&self, _: usize, _: &mut [f32]) -> usize {
        0
    }
}

/// f32 as it is.
struct F32;
/// bfloat16.
struct Bf16;
/// binary16.
struct F16;

impl Element for F32 {
    type Bits = f32;

    #[inline(always)]
    fn widen(bits: f32) -> f32 {
        bits
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn eight(at: *const f32) -> std::arch::x86_64::__m256 {
        // SAFETY: handed on to the caller.
        unsafe { std::arch::x86_64::_mm256_loadu_ps(at) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn four(at: *const f32) -> std::arch::x86_64::__m128 {
        // SAFETY: handed on to the caller.
        unsafe { std::arch::x86_64::_mm_loadu_ps(at) }
    }
}

impl Element for Bf16 {
    type Bits = u16;

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        bf16_to_f32(bits)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn eight(at: *const u16) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::{_mm_loadu_si128, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_slli_epi32};
        // SAFETY: handed on to the caller.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())))) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn four(at: *const u16) -> std::arch::x86_64::__m128 {
        use std::arch::x86_64::{_mm_castsi128_ps, _mm_cvtepu16_epi32, _mm_loadl_epi64, _mm_slli_epi32};
        // SAFETY: handed on to the caller.
        unsafe { _mm_castsi128_ps(_mm_slli_epi32::<16>(_mm_cvtepu16_epi32(_mm_loadl_epi64(at.cast())))) }
    }
}

impl Element for F16 {
    type Bits = u16;

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f16_to_f32(bits)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn eight(at: *const u16) -> std::arch::x86_64::__m256 {
        // SAFETY: handed on to the caller.
        unsafe { std::arch::x86_64::_mm256_cvtph_ps(std::arch::x86_64::_mm_loadu_si128(at.cast())) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn four(at: *const u16) -> std::arch::x86_64::__m128 {
        // SAFETY: handed on to the caller.
        unsafe { std::arch::x86_64::_mm_cvtph_ps(std::arch::x86_64::_mm_loadl_epi64(at.cast())) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Packing with AVX2: whole panels only, so no padding.

    use std::arch::x86_64::{
        __m256, _MM_HINT_T0, _mm_castps_pd, _mm_prefetch, _mm_storel_pd, _mm_storeu_ps, _mm256_castps256_ps128,
        _mm256_extractf128_ps, _mm256_permute2f128_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };

    use super::{Element, Part};

    /// Depths to ask for ahead of their use, where each is a cache line of its own.
    const AHEAD: usize = super::WHOLE_LINES;

    /// Rows whose depths follow each other: blocks of 8 by 8 are transposed in registers.
    ///
    /// # Safety
    /// The processor has AVX2 and F16C; every element of the part is inside of its data; `panel` holds them.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn transpose<E: Element>(from: &Part<'_, E>, width: usize, panel: &mut [f32]) -> usize {
        let whole = from.depth.len() / 8 * 8;
        for p in (0..whole).step_by(8) {
            for group in (0..width).step_by(8) {
                let num_rows = (width - group).min(8);
                // SAFETY: rows below `width` and 8 depths from `p` on lie inside of the part and of the panel.
                unsafe {
                    let start = from.data.as_ptr().add((from.first + group) * from.strides[0] + from.depth.start + p);
                    let mut rows = [_mm256_setzero_ps(); 8];
                    for (i, row) in rows.iter_mut().enumerate().take(num_rows) {
                        *row = E::eight(start.add(i * from.strides[0]));
                        if p % 16 == 0 {
                            // The same depths of the next panel: too many short streams for the processor's own
                            // prefetching.
                            let next = start.wrapping_add((i + width) * from.strides[0]);
                            _mm_prefetch::<_MM_HINT_T0>(next.cast());
                        }
                    }
                    let columns = transposed(rows);
                    for (j, column) in columns.into_iter().enumerate() {
                        let to = panel.as_mut_ptr().add((p + j) * width + group);
                        match num_rows {
                            8 => _mm256_storeu_ps(to, column),
                            6 => {
                                _mm_storeu_ps(to, _mm256_castps256_ps128(column));
                                _mm_storel_pd(to.add(4).cast(), _mm_castps_pd(_mm256_extractf128_ps::<1>(column)));
                            }
                            _ => _mm_storeu_ps(to, _mm256_castps256_ps128(column)),
                        }
                    }
                }
            }
        }
        whole
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn transposed(r: [__m256; 8]) -> [__m256; 8] {
        // Pairs of rows, then quadruples within each half, then the halves.
        let (a0, a1) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
        let (a2, a3) = (_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
        let (a4, a5) = (_mm256_unpacklo_ps(r[4], r[5]), _mm256_unpackhi_ps(r[4], r[5]));
        let (a6, a7) = (_mm256_unpacklo_ps(r[6], r[7]), _mm256_unpackhi_ps(r[6], r[7]));
        let (b0, b1) = (_mm256_shuffle_ps::<0x44>(a0, a2), _mm256_shuffle_ps::<0xee>(a0, a2));
        let (b2, b3) = (_mm256_shuffle_ps::<0x44>(a1, a3), _mm256_shuffle_ps::<0xee>(a1, a3));
        let (b4, b5) = (_mm256_shuffle_ps::<0x44>(a4, a6), _mm256_shuffle_ps::<0xee>(a4, a6));
        let (b6, b7) = (_mm256_shuffle_ps::<0x44>(a5, a7), _mm256_shuffle_ps::<0xee>(a5, a7));
        [
            _mm256_permute2f128_ps::<0x20>(b0, b4),
            _mm256_permute2f128_ps::<0x20>(b1, b5),
            _mm256_permute2f128_ps::<0x20>(b2, b6),
            _mm256_permute2f128_ps::<0x20>(b3, b7),
            _mm256_permute2f128_ps::<0x31>(b0, b4),
            _mm256_permute2f128_ps::<0x31>(b1, b5),
            _mm256_permute2f128_ps::<0x31>(b2, b6),
            _mm256_permute2f128_ps::<0x31>(b3, b7),
        ]
    }

    /// Rows that follow each other within a depth: they are copied.
    ///
    /// # Safety
    /// As [`transpose`].
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn copy<E: Element>(from: &Part<'_, E>, width: usize, panel: &mut [f32]) -> usize {
        for p in 0..from.depth.len() {
            // SAFETY: `width` rows of every depth lie inside of the part and of the panel.
            unsafe {
                let at = from.data.as_ptr().add((from.depth.start + p) * from.strides[1] + from.first);
                let to = panel.as_mut_ptr().add(p * width);
                let ahead = at.wrapping_add(AHEAD * from.strides[1]);
                for line in (0..width).step_by(16) {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line).cast());
                }
                let mut i = 0;
                while i + 8 <= width {
                    _mm256_storeu_ps(to.add(i), E::eight(at.add(i)));
                    i += 8;
                }
                if i + 4 <= width {
                    _mm_storeu_ps(to.add(i), E::four(at.add(i)));
                    i += 4;
                }
                while i < width {
                    *to.add(i) = E::widen(*at.add(i));
                    i += 1;
                }
            }
        }
        from.depth.len()
    }
}
