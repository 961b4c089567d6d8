//! Owns growing row storage for key/value caches. Refuses to know attention.

use crate::dtype::DType;
use crate::element::{Element, with_element};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// A growing `[rows, cols]` buffer of f32 or bf16 rows. Its capacity doubles, so appending is cheap on average.
#[derive(Debug)]
pub struct RowBuffer {
    dtype: DType,
    data: Option<Tensor>,
    num_rows: usize,
    cols: usize,
}

impl RowBuffer {
    /// An empty buffer of rows of `cols` elements.
    pub fn new(cols: usize, dtype: DType) -> RowBuffer {
        RowBuffer { dtype, data: None, num_rows: 0, cols }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.num_rows
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.num_rows == 0
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Appends the rows of a tensor `[n, cols]` of the buffer's dtype.
    pub fn append(&mut self, rows: &Tensor) -> Result<()> {
        if rows.shape().len() != 2 || rows.shape()[1] != self.cols {
            return Err(Error::shape("append", "rows", format!("[n, {}]", self.cols), rows.shape()));
        }
        self.append_columns(rows, 0)
    }

    /// Appends the buffer's width of columns, from column `start` on, of the rows of a tensor of the buffer's dtype.
    pub fn append_columns(&mut self, rows: &Tensor, start: usize) -> Result<()> {
        let cols = self.cols;
        let (num_new, width) = match *rows.shape() {
            [num_new, width] if start + cols <= width => (num_new, width),
            _ => return Err(Error::shape("append", "rows", format!("[n, at least {}]", start + cols), rows.shape())),
        };
        rows.expect_dtype(self.dtype)?;
        let needed = self.num_rows + num_new;
        let used = self.num_rows * cols;
        let capacity = self.data.as_ref().map_or(0, |data| data.shape()[0]);
        if needed > capacity {
            let mut grown = Tensor::stale(&[needed.max(2 * capacity).max(16), cols], self.dtype)?;
            if let Some(data) = &self.data {
                with_element!("append", "rows", self.dtype, E => {
                    E::of_mut(&mut grown)?[..used].copy_from_slice(&E::of(data)?[..used]);
                });
            }
            self.data = Some(grown);
        }
        if let Some(data) = &mut self.data {
            with_element!("append", "rows", self.dtype, E => {
                let to = E::of_mut(data)?[used..used + num_new * cols].chunks_exact_mut(cols.max(1));
                for (to, from) in to.zip(E::of(rows)?.chunks_exact(width.max(1))) {
                    to.copy_from_slice(&from[start..start + cols]);
                }
            });
        }
        self.num_rows = needed;
        Ok(())
    }

    /// A buffer of its own with the same rows.
    pub fn copied(&self) -> Result<RowBuffer> {
        let mut copy = RowBuffer::new(self.cols, self.dtype);
        copy.append(&self.tensor()?)?;
        Ok(copy)
    }

    /// Keeps the first `num_rows` rows; does nothing when there are fewer.
    pub fn truncate(&mut self, num_rows: usize) {
        self.num_rows = self.num_rows.min(num_rows);
    }

    /// All rows as a tensor that shares the buffer.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        match &self.data {
            Some(data) => data.rows(0, self.num_rows),
            None => Tensor::zeros(&[0, self.cols], self.dtype),
        }
    }

    /// The elements of all rows of an f32 buffer.
    pub fn f32s(&self) -> Result<&[f32]> {
        match &self.data {
            Some(data) => Ok(&data.f32s()?[..self.num_rows * self.cols]),
            None => Ok(&[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_grow_and_shrink() {
        let mut buffer = RowBuffer::new(2, DType::F32);
        assert!(buffer.is_empty());
        for i in 0..40 {
            buffer.append(&Tensor::from_f32(&[i as f32, -(i as f32)], &[1, 2]).unwrap()).unwrap();
        }
        assert_eq!(buffer.f32s().unwrap()[78..], [39.0, -39.0]);
        buffer.truncate(3);
        let copy = buffer.copied().unwrap();
        buffer.append(&Tensor::from_f32(&[7.0, 8.0, 9.0, 10.0], &[2, 2]).unwrap()).unwrap();
        assert_eq!(buffer.f32s().unwrap(), [0.0, 0.0, 1.0, -1.0, 2.0, -2.0, 7.0, 8.0, 9.0, 10.0]);
        assert_eq!(copy.f32s().unwrap(), [0.0, 0.0, 1.0, -1.0, 2.0, -2.0]);
        assert!(buffer.append(&Tensor::zeros(&[1, 3], DType::F32).unwrap()).is_err());
    }
}
