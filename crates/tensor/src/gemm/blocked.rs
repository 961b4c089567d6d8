//! Owns the loops over blocks: both sides are packed, then tasks of a few hundred kilobytes compute their tiles over the
//! whole depth. Refuses instruction sets (kernels know them).
//!
//! The order of every sum is the order of the terms and of their depths, cut into pieces that follow from the depth alone;
//! threads only share out tiles. Each block takes two parallel regions: packing, and tiles. Left sides are packed once
//! for all outputs that share them.

use std::ops::Range;

use super::kernel::{Kernel, LARGEST_TILE, Place};
use super::pack::Unit;
use super::panels::Pooled;
use super::{ElementsMut, Mat, MatMut, Output, span};
use crate::error::Result;
use crate::gradients::Write;
use crate::memory::{self, Buffer};
use crate::threads::{self, Shared};

/// Bytes of packed left sides at a time, and of packed right sides.
const MAX_LEFT: usize = 12 << 20;
const MAX_RIGHT: usize = 8 << 20;
/// Rows of A of one task: a piece of its packed depth stays in the second-level cache.
const TASK_ROWS: usize = 120;
/// Columns of B of one task.
const TASK_COLS: usize = 256;
/// Panels packed by one task.
const PACK_PANELS: usize = 8;
/// Products below which waking workers costs more than it saves.
const SERIAL: usize = 48 * 48 * 48;

/// Computes all outputs, which are not empty and have equally many rows and at least one term each.
pub(super) fn multiply<P: Unit>(kernel: Kernel<P>, outputs: Vec<Output<'_>>) -> Result<()> {
    let job = Job::new(kernel, outputs);
    let parallel = job.num_products() > SERIAL && threads::num_threads() > 1;
    let _scratch = memory::scratch(job.num_tasks(), &[job.scratch_size()])?;
    let (mut left, mut right) = (Pooled::<P>::new(job.left_size())?, Pooled::<P>::new(job.right_size())?);
    let mut run = || -> Result<()> {
        for rows in job.row_blocks() {
            let mut is_left_packed = false;
            for groups in job.group_batches() {
                job.pack(&rows, !is_left_packed, &mut left, groups, &mut right, parallel);
                is_left_packed = true;
                job.tiles(&rows, &left, groups, &right, parallel)?;
            }
        }
        Ok(())
    };
    if parallel { threads::on_pool(run) } else { run() }
}

/// A left side that one or several terms use.
struct Left<'a> {
    mat: Mat<'a>,
    /// Packed elements of its depth.
    units: usize,
    /// Where its panels start in a packed block, in units for each row.
    before: usize,
}

/// A product of a packed left and a packed right side.
struct Product<'a> {
    left: usize,
    b: Mat<'a>,
    units: usize,
    /// Units of the depth in front of this term.
    before: usize,
}

/// Where sums go.
struct Target<'a> {
    c: MatMut<'a>,
    write: Write,
    alpha: f32,
    from: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    products: Vec<Product<'a>>,
    /// Units of the depth over all terms.
    units: usize,
}

/// Some columns of one output, whose right side is packed as a whole and which one task computes for some rows.
struct Group {
    target: usize,
    cols: Range<usize>,
    /// Where its panels start in the packed right side of its batch.
    at: usize,
}

struct Job<'a, P> {
    kernel: Kernel<P>,
    rows: usize,
    lefts: Vec<Left<'a>>,
    targets: Vec<Target<'a>>,
    groups: Vec<Group>,
    /// Ends of the batches of groups that are packed together.
    batches: Vec<usize>,
    /// Packed units for each row over all left sides.
    left_units: usize,
}

impl<'a, P: Unit> Job<'a, P> {
    fn new(kernel: Kernel<P>, outputs: Vec<Output<'a>>) -> Job<'a, P> {
        let rows = outputs[0].to.rows;
        let (mut lefts, mut targets): (Vec<Left<'_>>, Vec<Target<'_>>) = (vec![], vec![]);
        let mut left_units = 0;
        for mut output in outputs {
            let (mut products, mut units) = (vec![], 0);
            for term in std::mem::take(&mut output.terms) {
                let depth = term.a.cols.div_ceil(P::DEPTHS);
                let left = lefts.iter().position(|left| left.mat.is_same(&term.a)).unwrap_or_else(|| {
                    lefts.push(Left { mat: term.a, units: depth, before: left_units });
                    left_units += depth;
                    lefts.len() - 1
                });
                products.push(Product { left, b: term.b, units: depth, before: units });
                units += depth;
            }
            let Output { to: c, write, alpha, from, bias, .. } = output;
            targets.push(Target { c, write, alpha, from, bias, products, units });
        }
        let mut job = Job { kernel, rows, lefts, targets, groups: vec![], batches: vec![], left_units };
        job.group_columns();
        job
    }

    /// Cuts the columns of all outputs into groups, and the groups into batches that fit the packed right side.
    fn group_columns(&mut self) {
        let limit = MAX_RIGHT / size_of::<P>();
        let mut at = 0;
        for (index, target) in self.targets.iter().enumerate() {
            // Long depths take narrower groups, so that a batch holds several.
            let cols =
                TASK_COLS.min(limit / 4 / target.units.max(1)).max(self.kernel.nr) / self.kernel.nr * self.kernel.nr;
            for i in 0..target.c.cols.div_ceil(cols) {
                let cols = span(i, cols, target.c.cols);
                let size = cols.len().next_multiple_of(self.kernel.nr) * target.units;
                if at > 0 && at + size > limit {
                    self.batches.push(self.groups.len());
                    at = 0;
                }
                self.groups.push(Group { target: index, cols, at });
                at += size;
            }
        }
        self.batches.push(self.groups.len());
    }

    fn num_products(&self) -> usize {
        self.targets.iter().map(|t| self.rows * t.c.cols * t.units * P::DEPTHS).sum()
    }

    /// Rows whose left sides are packed at a time.
    fn block_rows(&self) -> usize {
        let most = MAX_LEFT / size_of::<P>() / self.left_units.max(1);
        (most.max(TASK_ROWS) / self.kernel.mr * self.kernel.mr).min(self.rows.next_multiple_of(self.kernel.mr))
    }

    fn row_blocks(&self) -> impl Iterator<Item = Range<usize>> + use<P> {
        let (step, rows) = (self.block_rows(), self.rows);
        (0..rows.div_ceil(step)).map(move |i| span(i, step, rows))
    }

    fn group_batches(&self) -> impl Iterator<Item = &[Group]> {
        let starts = std::iter::once(0).chain(self.batches.iter().copied());
        starts.zip(&self.batches).map(|(start, &end)| &self.groups[start..end])
    }

    fn group_size(&self, group: &Group) -> usize {
        group.cols.len().next_multiple_of(self.kernel.nr) * self.targets[group.target].units
    }

    /// Tasks of the largest parallel region.
    fn num_tasks(&self) -> usize {
        self.block_rows().div_ceil(TASK_ROWS) * self.groups.len()
    }

    /// Bytes that a task needs for sums of 16-bit results.
    fn scratch_size(&self) -> usize {
        let needs = |group: &&Group| {
            let target = &self.targets[group.target];
            let pieces: usize = target.products.iter().map(|p| p.units.div_ceil(self.kernel.max_depth)).sum();
            pieces > 1 && matches!(target.c.data, ElementsMut::BF16(_))
        };
        let cols = self.groups.iter().filter(needs).map(|group| group.cols.len()).max().unwrap_or(0);
        let rows = (TASK_ROWS / self.kernel.mr * self.kernel.mr).min(self.rows.next_multiple_of(self.kernel.mr));
        rows * cols.next_multiple_of(self.kernel.nr) * size_of::<f32>()
    }

    fn left_size(&self) -> usize {
        self.block_rows() * self.left_units
    }

    fn right_size(&self) -> usize {
        self.groups.iter().map(|group| group.at + self.group_size(group)).max().unwrap_or(0)
    }

    /// Packs the left sides of a block of rows, if asked, and the right sides of a batch of groups.
    fn pack(
        &self,
        rows: &Range<usize>,
        with_left: bool,
        left: &mut Pooled<P>,
        groups: &[Group],
        right: &mut Pooled<P>,
        parallel: bool,
    ) {
        let Kernel { mr, nr, .. } = self.kernel;
        let (left, right) = (Shared::new(left.get_mut()), Shared::new(right.get_mut()));
        let left_pieces = if with_left { rows.len().div_ceil(PACK_PANELS * mr) } else { 0 };
        let num_left = left_pieces * self.lefts.len();
        let most_cols = groups.iter().map(|group| group.cols.len()).max().unwrap_or(0);
        let right_pieces = most_cols.div_ceil(PACK_PANELS * nr);
        threads::for_each(num_left + groups.len() * right_pieces, parallel, |task| {
            if task < num_left {
                let side = &self.lefts[task / left_pieces];
                let piece = span(task % left_pieces, PACK_PANELS * mr, rows.len());
                // Panels of one left side follow each other over all rows of the block.
                let first = side.before * self.block_rows() + piece.start * side.units;
                let size = piece.len().next_multiple_of(mr) * side.units;
                // SAFETY: tasks pack disjoint panels.
                let to = unsafe { left.slice(first..first + size) };
                P::pack(&side.mat, rows.start + piece.start..rows.start + piece.end, mr, side.units * mr, to);
                return;
            }
            let (group, piece) = (&groups[(task - num_left) / right_pieces], (task - num_left) % right_pieces);
            let piece = span(piece, PACK_PANELS * nr, group.cols.len());
            if piece.is_empty() {
                return;
            }
            let target = &self.targets[group.target];
            let first = group.at + piece.start * target.units;
            let size = piece.len().next_multiple_of(nr) * target.units;
            // SAFETY: tasks pack disjoint panels.
            let to = unsafe { right.slice(first..first + size) };
            let cols = group.cols.start + piece.start..group.cols.start + piece.end;
            for product in &target.products {
                P::pack(&product.b.t(), cols.clone(), nr, target.units * nr, &mut to[product.before * nr..]);
            }
        });
    }

    /// Computes the tiles of a block of rows and a batch of groups.
    fn tiles(
        &self,
        rows: &Range<usize>,
        left: &Pooled<P>,
        groups: &[Group],
        right: &Pooled<P>,
        parallel: bool,
    ) -> Result<()> {
        let task_rows = TASK_ROWS / self.kernel.mr * self.kernel.mr;
        let row_tasks = rows.len().div_ceil(task_rows);
        threads::try_for_each(row_tasks * groups.len(), parallel, |task| {
            let piece = span(task / groups.len(), task_rows, rows.len());
            let group = &groups[task % groups.len()];
            let right = &right.get()[group.at..group.at + self.group_size(group)];
            Task { job: self, rows: rows.clone(), piece, group, left: left.get(), right }.run()
        })
    }
}

/// Some rows of a block and a group of columns.
struct Task<'t, 'a, P> {
    job: &'t Job<'a, P>,
    rows: Range<usize>,
    /// Rows of the task, counted within the block.
    piece: Range<usize>,
    group: &'t Group,
    left: &'t [P],
    right: &'t [P],
}

impl<P: Unit> Task<'_, '_, P> {
    fn run(&self) -> Result<()> {
        let Kernel { mr, nr, max_depth, .. } = self.job.kernel;
        let target = &self.job.targets[self.group.target];
        let pieces: Vec<(&Product<'_>, Range<usize>)> = target
            .products
            .iter()
            .flat_map(|product| {
                let depth = product.units.div_ceil(product.units.div_ceil(max_depth));
                (0..product.units.div_ceil(depth)).map(move |i| (product, span(i, depth, product.units)))
            })
            .collect();
        let stride = self.group.cols.len().next_multiple_of(nr);
        // 16-bit results wait in f32 until their sums are complete.
        let needs_scratch = pieces.len() > 1 && matches!(target.c.data, ElementsMut::BF16(_));
        let scratch = match needs_scratch {
            true => Some(Buffer::stale(self.piece.len().next_multiple_of(mr) * stride * 4)?),
            false => None,
        };
        for (i, (product, depths)) in pieces.iter().enumerate() {
            let side = &self.job.lefts[product.left];
            for col in (0..self.group.cols.len()).step_by(nr) {
                let b = (col * target.units + (product.before + depths.start) * nr)..;
                let b = &self.right[b][..depths.len() * nr];
                let num_cols = nr.min(self.group.cols.len() - col);
                for row in self.piece.clone().step_by(mr) {
                    let a = side.before * self.job.block_rows() + row * side.units + depths.start * mr;
                    let a = &self.left[a..][..depths.len() * mr];
                    let num_rows = mr.min(self.piece.end - row);
                    let (is_first, is_last) = (i == 0, i + 1 == pieces.len());
                    let at_scratch = scratch.as_ref().map(|scratch| {
                        // SAFETY: the scratch holds whole tiles of this task.
                        unsafe { scratch.as_ptr().cast::<f32>().add((row - self.piece.start) * stride + col) }
                    });
                    let mut place = match at_scratch {
                        Some(at) if !is_last => Place { add: !is_first, ..Place::plain(at, stride) },
                        _ => {
                            // Rows of C count from the start of the matrix.
                            let first_row = self.rows.start + row;
                            let mut place = target.place(first_row, self.group.cols.start + col, num_rows, num_cols);
                            if let Some(at) = at_scratch {
                                (place.from, place.from_stride) = (at, stride);
                            } else if !is_first {
                                (place.add, place.bias) = (true, std::ptr::null());
                            }
                            place
                        }
                    };
                    if let (true, Some(from)) = (is_first, target.from) {
                        let (cols, at) = (target.c.cols, self.rows.start + row);
                        let from = &from[at * cols + self.group.cols.start + col..];
                        (place.from, place.from_stride) = (from.as_ptr(), cols);
                    }
                    (place.ahead, place.ahead_step) = self.ahead(b, row - self.piece.start, target.units * nr);
                    self.tile(num_rows, num_cols, a, b, &place);
                }
            }
        }
        Ok(())
    }

    /// Where a part of the next panel of B starts, which is `panel` units away from this one, and how many bytes of it
    /// each unit of the depth asks for, so that the tiles of this panel have asked for all of it at the end.
    #[inline(always)]
    fn ahead(&self, b: &[P], done: usize, panel: usize) -> (*const u8, usize) {
        let Kernel { mr, nr, .. } = self.job.kernel;
        let step = (nr * mr * size_of::<P>()).div_ceil(self.piece.len());
        let start = b.as_ptr().wrapping_add(panel).cast::<u8>();
        (start.wrapping_add(done / mr * (b.len() / nr) * step), step)
    }

    /// One tile; a partial one goes through a buffer.
    #[inline(always)]
    fn tile(&self, num_rows: usize, num_cols: usize, a: &[P], b: &[P], place: &Place) {
        let Kernel { nr, run, .. } = self.job.kernel;
        let depth = b.len() / nr;
        if num_cols == nr {
            // SAFETY: panels hold `depth` times their width; the place was made for these rows and whole columns, and
            // places of different tasks are disjoint.
            unsafe { run(num_rows, depth, a.as_ptr(), b.as_ptr(), place) };
            return;
        }
        let mut sums = [0f32; LARGEST_TILE];
        let plain = Place::plain(sums.as_mut_ptr(), nr);
        // SAFETY: as above, with a buffer of its own that holds the largest tile.
        unsafe { run(num_rows, depth, a.as_ptr(), b.as_ptr(), &plain) };
        for (i, sums) in sums.chunks_exact(nr).take(num_rows).enumerate() {
            for (j, &sum) in sums.iter().take(num_cols).enumerate() {
                // SAFETY: the place was made for these rows and columns.
                unsafe { place.put(i, j, sum) };
            }
        }
    }
}

impl Target<'_> {
    /// The place of some rows and columns of C from one element on.
    fn place(&self, row: usize, col: usize, num_rows: usize, num_cols: usize) -> Place {
        let bias = self.bias.map_or(std::ptr::null(), |bias| bias[col..col + num_cols].as_ptr());
        Place {
            from: std::ptr::null(),
            from_stride: 0,
            alpha: self.alpha,
            bias,
            to: self.c.at(row, col, num_rows, num_cols),
            row_stride: self.c.row_stride,
            add: self.write == Write::Add,
            ahead: std::ptr::null(),
            ahead_step: 0,
        }
    }
}
