//! Owns growing row storage for key/value caches. Refuses to know attention.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// A growing `[rows, cols]` buffer of f32 rows. Its capacity doubles, so appending is cheap on average.
pub struct RowBuffer {
    data: Option<Tensor>,
    num_rows: usize,
    cols: usize,
}

impl RowBuffer {
    /// An empty buffer of rows of `cols` elements.
    pub fn new(cols: usize) -> RowBuffer {
        RowBuffer { data: None, num_rows: 0, cols }
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

    /// Appends the rows of an f32 tensor `[n, cols]`.
    pub fn append(&mut self, rows: &Tensor) -> Result<()> {
        let [num_new, cols] = *rows.shape() else {
            return Err(Error::shape("append", "rows", format!("[n, {}]", self.cols), rows.shape()));
        };
        if cols != self.cols {
            return Err(Error::shape("append", "rows", format!("[n, {}]", self.cols), rows.shape()));
        }
        let source = rows.f32s()?;
        let needed = self.num_rows + num_new;
        let used = self.num_rows * cols;
        let capacity = self.data.as_ref().map_or(0, |data| data.shape()[0]);
        if needed > capacity {
            let mut grown = Tensor::stale(&[needed.max(2 * capacity).max(16), cols], DType::F32)?;
            if let Some(data) = &self.data {
                grown.f32s_mut()?[..used].copy_from_slice(&data.f32s()?[..used]);
            }
            self.data = Some(grown);
        }
        if let Some(data) = &mut self.data {
            data.f32s_mut()?[used..used + source.len()].copy_from_slice(source);
        }
        self.num_rows = needed;
        Ok(())
    }

    /// Keeps the first `num_rows` rows; does nothing when there are fewer.
    pub fn truncate(&mut self, num_rows: usize) {
        self.num_rows = self.num_rows.min(num_rows);
    }

    /// All rows as a tensor that shares the buffer.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        match &self.data {
            Some(data) => data.rows(0, self.num_rows),
            None => Tensor::zeros(&[0, self.cols], DType::F32),
        }
    }

    /// The elements of all rows.
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
        let mut buffer = RowBuffer::new(2);
        assert!(buffer.is_empty());
        for i in 0..40 {
            buffer.append(&Tensor::from_f32(&[i as f32, -(i as f32)], &[1, 2]).unwrap()).unwrap();
        }
        assert_eq!(buffer.f32s().unwrap()[78..], [39.0, -39.0]);
        buffer.truncate(3);
        buffer.append(&Tensor::from_f32(&[7.0, 8.0, 9.0, 10.0], &[2, 2]).unwrap()).unwrap();
        assert_eq!(buffer.f32s().unwrap(), [0.0, 0.0, 1.0, -1.0, 2.0, -2.0, 7.0, 8.0, 9.0, 10.0]);
        assert!(buffer.append(&Tensor::zeros(&[1, 3], DType::F32).unwrap()).is_err());
    }
}
