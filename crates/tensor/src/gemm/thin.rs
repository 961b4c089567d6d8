//! Owns products of a few rows with a large matrix, as in generating one token at a time: the matrix is read once, as it
//! lies, nothing of it is packed. Refuses many rows.
//!
//! All outputs of a call run in one parallel region. A task owns consecutive columns of one output and walks them in groups:
//! for one or two rows column after column, for more rows four columns at once, while the next group is asked for. An
//! element's sum has one order whatever the number of rows beside it, so that a sequence's bits do not depend on the
//! sequences it is decoded with.

use super::kernel::Place;
use super::{Arithmetic, Elements, Mat, Output, Term, span};
use crate::dtype::{DType, bf16_to_f32, f16_to_f32, f32_to_bf16};
use crate::error::Result;
use crate::gradients::Write;
use crate::simd::{LANES, has_bf16, multiversion, sum_lanes};
use crate::tensor::Tensor;
use crate::threads;

/// Rows up to which reading B once beats packing it, where B or the arithmetic is wider than bf16.
const MAX_ROWS: usize = 8;
/// The same for products of bf16 numbers.
const MAX_ROWS_BF16: usize = 32;
/// Rows that are multiplied at a time.
const TILE_ROWS: usize = 6;
/// Columns that are multiplied at a time.
const COLS: usize = 4;
/// Bytes of B that one task reads, about.
const TASK_BYTES: usize = 32 * 1024;
/// Bytes of B up to which one thread is faster.
const MIN_BYTES: usize = 256 * 1024;

/// Sums of a group of columns for some rows.
type Sums = [[f32; COLS]; TILE_ROWS];

/// Adds the dot products of `rows` rows of bf16 numbers, which begin with the first of `a`, with a group of columns.
///
/// # Safety
/// The processor has bf16 products; every row and every column holds `depth` elements; `1 <= rows <= TILE_ROWS`.
type Tile = unsafe fn(rows: usize, a: Halves<'_>, b: [*const u16; COLS], ahead: Ahead, sums: &mut Sums);

/// Rows of bf16 numbers.
#[derive(Clone, Copy)]
struct Halves<'a> {
    data: &'a [u16],
    stride: usize,
    depth: usize,
}

/// Which part of the next columns is to be asked for meanwhile.
#[derive(Clone, Copy)]
struct Ahead {
    /// Elements from a column to the one in the next group.
    distance: usize,
    /// Steps of 32 elements from and to which.
    from: usize,
    to: usize,
}

/// One product with the rows as its kernel wants them.
enum Part<'a> {
    Halves { a: Halves<'a>, b: &'a [u16], col_stride: usize },
    Wide { rows: &'a [f32], b: Mat<'a> },
}

/// Rows of A that had to be converted.
enum Rows {
    AsTheyAre,
    Halves(Tensor),
    Wide(Tensor),
}

/// Whether this module is the right one: few rows, and contiguous columns of B.
pub(super) fn fits(arithmetic: Arithmetic, output: &Output<'_>) -> bool {
    let wide = output.terms.iter().filter(|term| !is_bf16(arithmetic, &term.b));
    let elements = |term: &Term<'_>| term.b.rows * term.b.cols;
    // The low-rank term of an adapter beside 16-bit weights counts for little.
    let mostly_bf16 = 4 * wide.map(elements).sum::<usize>() <= output.terms.iter().map(elements).sum();
    let limit = if mostly_bf16 { MAX_ROWS_BF16 } else { MAX_ROWS };
    output.to.rows <= limit && output.terms.iter().all(|term| term.b.row_stride == 1)
}

fn is_bf16(arithmetic: Arithmetic, b: &Mat<'_>) -> bool {
    arithmetic == Arithmetic::BF16 && has_bf16() && matches!(b.data, Elements::BF16(_))
}

/// Outputs whose terms all have contiguous columns of B. Rows of A are rounded as the arithmetic says; B is used as it
/// is, so that f32 weights keep their digits.
pub(super) fn multiply(arithmetic: Arithmetic, outputs: Vec<Output<'_>>) -> Result<()> {
    multiply_with(arithmetic, &outputs, best_tile())
}

fn multiply_with(arithmetic: Arithmetic, outputs: &[Output<'_>], tile: Tile) -> Result<()> {
    let mut rows: Vec<Vec<Rows>> = Vec::with_capacity(outputs.len());
    for output in outputs {
        rows.push(output.terms.iter().map(|term| rows_of(arithmetic, term)).collect::<Result<_>>()?);
    }
    let mut works = Vec::with_capacity(outputs.len());
    let (mut num_tasks, mut bytes) = (0, 0);
    for (output, rows) in outputs.iter().zip(&rows) {
        let parts: Vec<Part<'_>> =
            output.terms.iter().zip(rows).map(|(term, rows)| part_of(term, rows)).collect::<Result<_>>()?;
        let column: usize = output.terms.iter().map(|term| term.b.rows * term.b.data.element_bytes()).sum();
        let task_cols = (TASK_BYTES / column / COLS * COLS).clamp(COLS, 1024);
        works.push(Work { output, parts, task_cols, first_task: num_tasks });
        num_tasks += output.to.cols.div_ceil(task_cols);
        bytes += output.to.cols * column;
    }
    threads::for_each(num_tasks, bytes > MIN_BYTES, |task| {
        let of = works.partition_point(|work| work.first_task <= task) - 1;
        works[of].run(task - works[of].first_task, tile);
    });
    Ok(())
}

/// One output on its way.
struct Work<'a> {
    output: &'a Output<'a>,
    parts: Vec<Part<'a>>,
    task_cols: usize,
    first_task: usize,
}

impl Work<'_> {
    fn run(&self, task: usize, tile: Tile) {
        let (m, n) = (self.output.to.rows, self.output.to.cols);
        let columns = span(task, self.task_cols, n);
        let num_blocks = m.div_ceil(TILE_ROWS);
        for j in columns.clone().step_by(COLS) {
            let num_cols = COLS.min(columns.end - j);
            for block in 0..num_blocks {
                let rows = block * m / num_blocks..(block + 1) * m / num_blocks;
                let mut sums: Sums = [[0.0; COLS]; TILE_ROWS];
                for part in &self.parts {
                    match part {
                        Part::Halves { a, b, col_stride } => {
                            let data = &a.data[rows.start * a.stride..];
                            // A group that is cut repeats its last column, so that every sum has the same order.
                            let at = |c: usize| (j + c.min(num_cols - 1)) * col_stride;
                            assert!((rows.len() - 1) * a.stride + a.depth <= data.len());
                            assert!(at(COLS - 1) + a.depth <= b.len());
                            let b = std::array::from_fn(|c| b[at(c)..].as_ptr());
                            let steps = a.depth / 32;
                            let ahead = Ahead {
                                distance: COLS * col_stride,
                                from: block * steps / num_blocks,
                                to: (block + 1) * steps / num_blocks,
                            };
                            // SAFETY: rows and columns are inside of their slices, as asserted, and parts of halves
                            // are made where the processor has bf16 products.
                            unsafe { tile(rows.len(), Halves { data, ..*a }, b, ahead, &mut sums) };
                        }
                        Part::Wide { rows: a, b } => {
                            let a = &a[rows.start * b.rows..rows.end * b.rows];
                            for c in 0..num_cols {
                                wide_column(a, b, j + c, c, &mut sums);
                            }
                        }
                    }
                }
                let output = self.output;
                let place = Place {
                    from: std::ptr::null(),
                    from_stride: 0,
                    alpha: output.alpha,
                    bias: output.bias.map_or(std::ptr::null(), |bias| bias[j..].as_ptr()),
                    to: output.to.at(rows.start, j, rows.len(), num_cols),
                    row_stride: output.to.row_stride,
                    add: output.write == Write::Add,
                    ahead: std::ptr::null(),
                    ahead_step: 0,
                };
                for (i, sums) in sums.iter().take(rows.len()).enumerate() {
                    for (c, &sum) in sums.iter().take(num_cols).enumerate() {
                        // SAFETY: every column of C belongs to one task, and these are inside of the place.
                        unsafe { place.put(i, c, sum) };
                    }
                }
            }
        }
    }
}

/// The rows of A in another form, where the kernel does not take them as they are.
fn rows_of(arithmetic: Arithmetic, term: &Term<'_>) -> Result<Rows> {
    let Term { a, b } = term;
    if is_bf16(arithmetic, b) {
        if matches!(a.data, Elements::BF16(_)) && a.col_stride == 1 {
            return Ok(Rows::AsTheyAre);
        }
        let mut rows = Tensor::stale(&[a.rows, a.cols], DType::BF16)?;
        fill(a, rows.halves_mut()?, f32_to_bf16);
        return Ok(Rows::Halves(rows));
    }
    if matches!(a.data, Elements::F32(_))
        && a.col_stride == 1
        && a.row_stride == a.cols
        && arithmetic == Arithmetic::F32
    {
        return Ok(Rows::AsTheyAre);
    }
    let mut rows = Tensor::stale(&[a.rows, a.cols], DType::F32)?;
    match arithmetic {
        Arithmetic::F32 => fill(a, rows.f32s_mut()?, |x| x),
        Arithmetic::BF16 => fill(a, rows.f32s_mut()?, |x| bf16_to_f32(f32_to_bf16(x))),
    }
    Ok(Rows::Wide(rows))
}

/// Row after row of A.
fn fill<T>(a: &Mat<'_>, to: &mut [T], narrow: impl Fn(f32) -> T) {
    for (i, to) in to.chunks_exact_mut(a.cols).enumerate() {
        for (p, to) in to.iter_mut().enumerate() {
            let at = i * a.row_stride + p * a.col_stride;
            *to = narrow(match a.data {
                Elements::F32(data) => data[at],
                Elements::BF16(data) => bf16_to_f32(data[at]),
                Elements::F16(data) => f16_to_f32(data[at]),
            });
        }
    }
}

fn part_of<'a>(term: &Term<'a>, rows: &'a Rows) -> Result<Part<'a>> {
    let (a, b) = (term.a, term.b);
    let halves =
        |data, stride, b, col_stride| Part::Halves { a: Halves { data, stride, depth: a.cols }, b, col_stride };
    Ok(match (rows, a.data, b.data) {
        (Rows::AsTheyAre, Elements::BF16(data), Elements::BF16(elements)) => {
            halves(data, a.row_stride, elements, b.col_stride)
        }
        (Rows::Halves(rows), _, Elements::BF16(elements)) => halves(rows.halves()?, a.cols, elements, b.col_stride),
        (Rows::AsTheyAre, Elements::F32(data), _) => Part::Wide { rows: data, b },
        (Rows::Wide(rows), _, _) => Part::Wide { rows: rows.f32s()?, b },
        _ => unreachable!("`rows_of` converts what no kernel takes"),
    })
}

/// Adds the dot products of f32 rows with column `j` of B to column `c` of the sums.
fn wide_column(rows: &[f32], b: &Mat<'_>, j: usize, c: usize, sums: &mut Sums) {
    let column = j * b.col_stride..j * b.col_stride + b.rows;
    match b.data {
        Elements::F32(b) => dots_f32(rows, &b[column], c, sums),
        Elements::BF16(b) => dots_bf16(rows, &b[column], c, sums),
        Elements::F16(b) => dots_f16(rows, &b[column], c, sums),
    }
}

/// Adds the dot product of each row with a column.
#[inline(always)]
fn dots<T: Copy>(rows: &[f32], column: &[T], c: usize, sums: &mut Sums, widen: impl Fn(T) -> f32) {
    let k = column.len();
    for (row, sum) in rows.chunks_exact(k).zip(sums) {
        // Two vectors of sums hide the latency of additions.
        let mut lanes = [[0f32; LANES]; 2];
        let (row_parts, parts) = (row.chunks_exact(2 * LANES), column.chunks_exact(2 * LANES));
        let (row_rest, rest) = (row_parts.remainder(), parts.remainder());
        for (x, y) in row_parts.zip(parts) {
            for half in 0..2 {
                for i in 0..LANES {
                    lanes[half][i] += x[half * LANES + i] * widen(y[half * LANES + i]);
                }
            }
        }
        for (i, (&x, &y)) in row_rest.iter().zip(rest).enumerate() {
            lanes[i / LANES][i % LANES] += x * widen(y);
        }
        sum[c] += sum_lanes(lanes[0]) + sum_lanes(lanes[1]);
    }
}

multiversion! {
    fn dots_f32(rows: &[f32], column: &[f32], c: usize, sums: &mut Sums) {
        dots(rows, column, c, sums, |x| x);
    }
}

multiversion! {
    fn dots_bf16(rows: &[f32], column: &[u16], c: usize, sums: &mut Sums) {
        dots(rows, column, c, sums, bf16_to_f32);
    }
}

multiversion! {
    fn dots_f16(rows: &[f32], column: &[u16], c: usize, sums: &mut Sums) {
        dots(rows, column, c, sums, f16_to_f32);
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn best_tile() -> Tile {
    |_, _, _, _, _| unreachable!("no part of halves is made on this processor")
}

#[cfg(target_arch = "x86_64")]
fn best_tile() -> Tile {
    x86::tile
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Dot products with `vdpbf16ps`.

    use std::arch::x86_64::{
        __m128, __m512, __m512bh, __m512i, _MM_HINT_T1, _mm_add_ps, _mm_prefetch, _mm_storeu_ps, _mm256_add_ps,
        _mm256_castps256_ps128, _mm256_extractf128_ps, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd,
        _mm512_castps512_ps256, _mm512_dpbf16_ps, _mm512_extractf32x8_ps, _mm512_loadu_si512, _mm512_maskz_loadu_epi16,
        _mm512_setzero_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };

    use super::{Ahead, COLS, Halves, Sums};

    /// Up to so many rows the columns of a group are read one after the other: then memory is one stream, which the
    /// processor fetches ahead by itself at its full rate. Columns side by side are short streams that it does not follow;
    /// more rows have arithmetic enough to want them, since a row's numbers are then read once for four columns.
    const APART: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn pairs(bits: __m512i) -> __m512bh {
        // SAFETY: both are 64 bytes of plain bits.
        unsafe { std::mem::transmute(bits) }
    }

    /// # Safety
    /// See [`super::Tile`].
    pub(super) unsafe fn tile(rows: usize, a: Halves<'_>, b: [*const u16; COLS], ahead: Ahead, sums: &mut Sums) {
        macro_rules! by_rows {
            ($($n:literal)*) => {
                match rows {
                    // SAFETY: handed on to the caller.
                    $($n => unsafe { tile_of::<$n>(a, b, ahead, sums) },)*
                    _ => unreachable!("a tile has 1 to {} rows", super::TILE_ROWS),
                }
            };
        }
        by_rows!(1 2 3 4 5 6);
    }

    /// # Safety
    /// See [`super::Tile`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    // Indices name registers.
    #[allow(clippy::needless_range_loop)]
    unsafe fn tile_of<const ROWS: usize>(a: Halves<'_>, b: [*const u16; COLS], ahead: Ahead, sums: &mut Sums) {
        // SAFETY: the caller promises `depth` elements of every row and column; prefetching touches no memory.
        unsafe {
            let rows: [*const u16; ROWS] = std::array::from_fn(|i| a.data.as_ptr().add(i * a.stride));
            let mut lanes = [[_mm512_setzero_ps(); COLS]; ROWS];
            if ROWS <= APART {
                for c in 0..COLS {
                    let alone = columns_of::<ROWS, 1>(rows, [b[c]], a.depth, Ahead { from: 0, to: 0, ..ahead });
                    for i in 0..ROWS {
                        lanes[i][c] = alone[i][0];
                    }
                }
            } else {
                lanes = columns_of(rows, b, a.depth, ahead);
            }
            for i in 0..ROWS {
                let mut new = [0f32; COLS];
                _mm_storeu_ps(new.as_mut_ptr(), sums_of(lanes[i]));
                sums[i].iter_mut().zip(new).for_each(|(sum, x)| *sum += x);
            }
        }
    }

    /// Lanes of the dot products of rows with columns, which are read side by side.
    ///
    /// # Safety
    /// Every row and every column holds `depth` elements.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    // Indices name registers.
    #[allow(clippy::needless_range_loop)]
    unsafe fn columns_of<const ROWS: usize, const WIDTH: usize>(
        rows: [*const u16; ROWS],
        b: [*const u16; WIDTH],
        depth: usize,
        ahead: Ahead,
    ) -> [[__m512; WIDTH]; ROWS] {
        // SAFETY: the caller promises `depth` elements of every row and column; prefetching touches no memory.
        unsafe {
            let mut lanes = [[_mm512_setzero_ps(); WIDTH]; ROWS];
            for step in 0..depth / 32 {
                let at = 32 * step;
                if step >= ahead.from && step < ahead.to {
                    for column in b {
                        // To the second level: as many lines on their way to the first would hold up its own misses.
                        _mm_prefetch::<_MM_HINT_T1>(column.wrapping_add(ahead.distance + at).cast());
                    }
                }
                let columns: [__m512bh; WIDTH] =
                    std::array::from_fn(|c| pairs(_mm512_loadu_si512(b[c].add(at).cast())));
                for i in 0..ROWS {
                    let x = pairs(_mm512_loadu_si512(rows[i].add(at).cast()));
                    for c in 0..WIDTH {
                        lanes[i][c] = _mm512_dpbf16_ps(lanes[i][c], x, columns[c]);
                    }
                }
            }
            if !depth.is_multiple_of(32) {
                let at = depth / 32 * 32;
                let rest = (1u32 << (depth % 32)) - 1;
                let columns: [__m512bh; WIDTH] =
                    std::array::from_fn(|c| pairs(_mm512_maskz_loadu_epi16(rest, b[c].add(at).cast())));
                for i in 0..ROWS {
                    let x = pairs(_mm512_maskz_loadu_epi16(rest, rows[i].add(at).cast()));
                    for c in 0..WIDTH {
                        lanes[i][c] = _mm512_dpbf16_ps(lanes[i][c], x, columns[c]);
                    }
                }
            }
            lanes
        }
    }

    /// The sums of four vectors, in a fixed tree.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512vl")]
    fn sums_of([a, b, c, d]: [__m512; COLS]) -> __m128 {
        let ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        let cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
        let four =
            _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
        let two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps::<1>(four));
        _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps::<1>(two))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::MatMut;
    use crate::ops::testing::random;
    use crate::team::StayAwake;

    /// Rows, columns, depth: more rows than a tile, columns that no group divides, depths beside multiples of 32.
    const SIZES: [[usize; 3]; 10] = [
        [1, 1, 1],
        [1, 70, 33],
        [2, 3, 31],
        [3, 129, 64],
        [5, 66, 95],
        [6, 9, 1000],
        [7, 301, 449],
        [13, 30, 896],
        [29, 37, 130],
        [32, 5, 2050],
    ];

    fn halves(seed: u64, n: usize) -> Vec<u16> {
        random(seed, n).into_iter().map(f32_to_bf16).collect()
    }

    fn wide(bits: &[u16]) -> Vec<f32> {
        bits.iter().map(|&bits| bf16_to_f32(bits)).collect()
    }

    /// Products of rows of a with rows of b, in f64, and the sums of their absolute values.
    fn plain(a: &[f32], b: &[f32], k: usize) -> Vec<(f64, f64)> {
        let dot = |x: &[f32], y: &[f32]| {
            let products = x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y));
            products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
        };
        a.chunks_exact(k).flat_map(|x| b.chunks_exact(k).map(move |y| dot(x, y))).collect()
    }

    /// Whether a tile gives 1 + 2 (x.w + h.u) + bias for weights of bf16 with a low-rank term, x being bf16 or f32.
    fn check(tile: Tile, [m, n, k]: [usize; 3]) -> bool {
        let r = 3;
        let (x, w, h, u, bias) = (halves(1, m * k), halves(2, n * k), halves(3, m * r), random(4, n * r), random(5, n));
        let (x_wide, h_wide) = (wide(&x), wide(&h));
        let low = plain(&h_wide, &u, r);
        let expected = plain(&x_wide, &wide(&w), k);
        let mut all = true;
        for x in [Mat::strided_bf16(&x, m, k, k), Mat::new(&x_wide, m, k)] {
            let mut c = vec![1.0; m * n];
            let output = Output::new(MatMut::new(&mut c, m, n), Write::Add, x, Mat::strided_bf16(&w, n, k, k).t())
                .plus(Mat::strided_bf16(&h, m, r, r), Mat::new(&u, n, r).t())
                .scaled(2.0)
                .with_bias(Some(&bias));
            multiply_with(Arithmetic::BF16, &[output], tile).unwrap();
            for (at, &c) in c.iter().enumerate() {
                let exact = 1.0 + 2.0 * (expected[at].0 + low[at].0) + f64::from(bias[at % n]);
                // Products are exact in f32; each lane adds k / 16 of them and a tree adds the lanes, each addition with
                // half a unit of 2^-23 of at most the sum of sizes. A few more for the terms around.
                let roundings = (k as f64 / 16.0 + 12.0) * 2f64.powi(-24);
                let sizes = 2.0 * (expected[at].1 + low[at].1) + f64::from(bias[at % n].abs()) + 1.0;
                all &= (f64::from(c) - exact).abs() <= roundings * sizes;
            }
        }
        all
    }

    #[test]
    fn few_rows_of_bf16_agree_with_plain_loops() {
        if has_bf16() {
            for size in SIZES {
                assert!(check(best_tile(), size), "{size:?}");
            }
        }
    }

    #[test]
    fn broken_tiles_would_be_found() {
        if !has_bf16() {
            return;
        }
        /// Forgets the last depth.
        unsafe fn short(rows: usize, a: Halves<'_>, b: [*const u16; COLS], ahead: Ahead, sums: &mut Sums) {
            // SAFETY: one depth less of the same rows and columns.
            unsafe { best_tile()(rows, Halves { depth: a.depth - 1, ..a }, b, ahead, sums) }
        }
        /// Takes the first column twice.
        unsafe fn repeated(rows: usize, a: Halves<'_>, b: [*const u16; COLS], ahead: Ahead, sums: &mut Sums) {
            // SAFETY: the same rows and some of the columns.
            unsafe { best_tile()(rows, a, [b[0], b[0], b[2], b[3]], ahead, sums) }
        }
        /// Takes the second row from the place of the first.
        unsafe fn stuck(rows: usize, a: Halves<'_>, b: [*const u16; COLS], ahead: Ahead, sums: &mut Sums) {
            // SAFETY: a smaller stride stays inside of the rows.
            unsafe { best_tile()(rows, Halves { stride: 0, ..a }, b, ahead, sums) }
        }
        for tile in [short as Tile, repeated, stuck] {
            assert!(!check(tile, [7, 301, 449]));
        }
    }

    #[test]
    fn a_row_has_the_same_bits_beside_any_others_and_on_any_threads() {
        let (m, n, k) = (32, 1030, 450);
        let (x, w) = (halves(1, m * k), halves(2, n * k));
        let run = |rows: std::ops::Range<usize>, threads: usize| {
            crate::set_num_threads(threads);
            let mut c = vec![f32::NAN; rows.len() * n];
            let to = MatMut::new(&mut c, rows.len(), n);
            let x = Mat::strided_bf16(&x, m, k, k).rows(rows);
            let output = Output::new(to, Write::Replace, x, Mat::strided_bf16(&w, n, k, k).t());
            multiply(Arithmetic::BF16, vec![output]).unwrap();
            c
        };
        let whole = run(0..m, 1);
        assert_eq!(whole, run(0..m, 2));
        assert_eq!(whole, run(0..m, 3));
        {
            let _awake = StayAwake::new();
            assert_eq!(whole, run(0..m, 2));
            assert_eq!(whole, run(0..m, 5));
        }
        for rows in [0..1, 4..6, 7..10, 9..22] {
            assert_eq!(whole[rows.start * n..rows.end * n], run(rows, 2));
        }
    }

    #[test]
    fn outputs_of_one_call_do_not_mix() {
        let (m, k) = (3, 100);
        let x = halves(1, m * k);
        let weights: Vec<(Vec<u16>, usize)> = [(2, 300), (3, 7), (4, 64)].map(|(s, n)| (halves(s, n * k), n)).into();
        let widths: Vec<usize> = weights.iter().map(|(_, n)| *n).collect();
        let total: usize = widths.iter().sum();
        for arithmetic in [Arithmetic::F32, Arithmetic::BF16] {
            let mut c = vec![0u16; m * total];
            let places = MatMut::bf16(&mut c, m, total).split_columns(&widths);
            let outputs = places.into_iter().zip(&weights).map(|(to, (w, n))| {
                Output::new(to, Write::Replace, Mat::strided_bf16(&x, m, k, k), Mat::strided_bf16(w, *n, k, k).t())
            });
            multiply(arithmetic, outputs.collect()).unwrap();
            let mut start = 0;
            for (w, n) in &weights {
                for (at, (exact, sizes)) in plain(&wide(&x), &wide(w), k).into_iter().enumerate() {
                    let found = f64::from(bf16_to_f32(c[at / n * total + start + at % n]));
                    // One rounding to 8 bits, and those of the sum as above.
                    assert!((found - exact).abs() <= exact.abs() * 2f64.powi(-8) + sizes * 2f64.powi(-19));
                }
                start += n;
            }
        }
    }
}
