//! Owns the loops over blocks: both matrices are packed a block of depth at a time, then tiles are computed.
//! Refuses instruction sets (kernels know them).
//!
//! The order of every sum is the order of depths, cut into blocks that follow from k alone; threads only share out
//! tiles. Each block of depth takes two parallel regions: packing, and tiles in tasks of a few hundred kilobytes.

use super::kernel::{self, Kernel, LARGEST_TILE, Store};
use super::pack::pack;
use super::{Mat, MatMut, Threads, span};
use crate::dtype::DType;
use crate::error::Result;
use crate::gradients::Write;
use crate::tensor::Tensor;
use crate::threads::{self, Shared};

/// Rows of A, and columns of B, that are packed at a time; bounds the packed buffers to a few megabytes.
const MAX_ROWS: usize = 3840;
const MAX_COLS: usize = 4096;
/// Rows of A of one task: its packed block stays in the second-level cache.
const TASK_ROWS: usize = 120;
/// Columns of B of one task.
const TASK_COLS: usize = 256;
/// Panels packed by one task.
const PACK_PANELS: usize = 16;
/// Products below which waking workers costs more than it saves.
const SERIAL: usize = 48 * 48 * 48;

pub(super) fn multiply(
    kernel: Kernel,
    to: MatMut<'_>,
    write: Write,
    alpha: f32,
    a: Mat<'_>,
    b: Mat<'_>,
    threads: Threads,
) -> Result<()> {
    let (m, n, k) = (to.rows, to.cols, a.cols);
    let (mr, nr) = (kernel.mr, kernel.nr);
    // Blocks of depth of equal size, so that no thin block pays for a whole pass over the result.
    let depth = k.div_ceil(k.div_ceil(kernel.max_depth));
    let (most_rows, most_cols) = (m.min(MAX_ROWS).next_multiple_of(mr), n.min(MAX_COLS).next_multiple_of(nr));
    let mut packed = Tensor::stale(&[(most_rows + most_cols) * depth], DType::F32)?;
    let (packed_a, packed_b) = packed.f32s_mut()?.split_at_mut(most_rows * depth);
    let parallel = threads == Threads::All && m * n * k > SERIAL && threads::num_threads() > 1;
    let c = Shared::new(to.data);
    let mut run = || {
        for col_block in 0..n.div_ceil(MAX_COLS) {
            let cols = span(col_block, MAX_COLS, n);
            for depth_block in 0..k.div_ceil(depth) {
                let depths = span(depth_block, depth, k);
                let store = Store { alpha, add: write == Write::Add || depth_block > 0 };
                pack_side(&b.t(), cols.start, cols.len(), &depths, nr, packed_b, parallel);
                for row_block in 0..m.div_ceil(MAX_ROWS) {
                    let rows = span(row_block, MAX_ROWS, m);
                    pack_side(&a, rows.start, rows.len(), &depths, mr, packed_a, parallel);
                    let block = Block {
                        kernel,
                        store,
                        depth: depths.len(),
                        a: packed_a,
                        b: packed_b,
                        c: &c,
                        stride: to.row_stride,
                        first: [rows.start, cols.start],
                        size: [rows.len(), cols.len()],
                    };
                    block.run(parallel);
                }
            }
        }
    };
    if parallel {
        threads::on_pool(run)
    } else {
        run()
    }
    Ok(())
}

/// Packs `len` rows from `first` on into panels.
fn pack_side(
    mat: &Mat<'_>,
    first: usize,
    len: usize,
    depths: &std::ops::Range<usize>,
    width: usize,
    to: &mut [f32],
    parallel: bool,
) {
    let rows = PACK_PANELS * width;
    let to = Shared::new(to);
    threads::for_each(len.div_ceil(rows), parallel, |i| {
        let rows = span(i, rows, len);
        let range =
            rows.start * depths.len()..rows.len().next_multiple_of(width) * depths.len() + rows.start * depths.len();
        // SAFETY: tasks pack disjoint panels.
        let to = unsafe { to.slice(range) };
        pack(mat, first + rows.start..first + rows.end, depths.clone(), width, to);
    });
}

/// A packed block of A times a packed block of B.
struct Block<'a> {
    kernel: Kernel,
    store: Store,
    depth: usize,
    a: &'a [f32],
    b: &'a [f32],
    c: &'a Shared<'a>,
    stride: usize,
    /// Row and column of C where the block starts.
    first: [usize; 2],
    size: [usize; 2],
}

impl Block<'_> {
    fn run(&self, parallel: bool) {
        let task_rows = TASK_ROWS / self.kernel.mr * self.kernel.mr;
        let task_cols = TASK_COLS / self.kernel.nr * self.kernel.nr;
        let tasks = [self.size[0].div_ceil(task_rows), self.size[1].div_ceil(task_cols)];
        threads::for_each(tasks[0] * tasks[1], parallel, |task| {
            let rows = span(task / tasks[1], task_rows, self.size[0]);
            for col in span(task % tasks[1], task_cols, self.size[1]).step_by(self.kernel.nr) {
                for row in rows.clone().step_by(self.kernel.mr) {
                    self.prefetch(col + self.kernel.nr, row - rows.start, rows.len());
                    self.tile(row, col);
                }
            }
        });
    }

    /// Asks for a part of the next panel of B while this one is in use: `done` of `all` rows are behind.
    #[inline(always)]
    fn prefetch(&self, next_col: usize, done: usize, all: usize) {
        let panel = self.kernel.nr * self.depth;
        let start = next_col * self.depth;
        let end = (start + (done + self.kernel.mr) * panel / all).min(self.b.len());
        if let Some(part) = self.b.get(start + done * panel / all..end) {
            kernel::prefetch(part);
        }
    }

    /// The tile at a row and column of the block; the edges of C go through a buffer.
    fn tile(&self, row: usize, col: usize) {
        let Kernel { mr, nr, run, .. } = self.kernel;
        let (num_rows, num_cols) = (mr.min(self.size[0] - row), nr.min(self.size[1] - col));
        let a = &self.a[row * self.depth..(row + mr) * self.depth];
        let b = &self.b[col * self.depth..(col + nr) * self.depth];
        let at = (self.first[0] + row) * self.stride + self.first[1] + col;
        if num_rows == mr && num_cols == nr {
            let c = self.c.at(at..at + (mr - 1) * self.stride + nr);
            // SAFETY: panels hold `depth` times their width; `c` is the start of a whole tile inside of the result, and
            // tiles of different tasks are disjoint.
            unsafe { run(self.depth, a.as_ptr(), b.as_ptr(), self.store, c, self.stride) };
            return;
        }
        let mut tile = [0f32; LARGEST_TILE];
        let store = Store { add: false, ..self.store };
        // SAFETY: as above, with a buffer of its own that holds the largest tile.
        unsafe { run(self.depth, a.as_ptr(), b.as_ptr(), store, tile.as_mut_ptr(), nr) };
        for (i, tile) in tile.chunks_exact(nr).take(num_rows).enumerate() {
            let start = at + i * self.stride;
            // SAFETY: these elements belong to this tile alone.
            let c = unsafe { self.c.slice(start..start + num_cols) };
            for (c, x) in c.iter_mut().zip(tile) {
                *c = if self.store.add { *c + x } else { *x };
            }
        }
    }
}
