//! Owns `Tensor`: a contiguous row-major array in a counted buffer. Refuses strides, broadcasting and arithmetic.

use std::fmt;
use std::sync::Arc;

use crate::dtype::{DType, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::error::{Error, Result};
use crate::memory::{Buffer, is_planning};

/// Where a tensor lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Device {
    /// Main memory.
    Cpu,
    /// The n-th CUDA device.
    Cuda(usize),
}

impl Device {
    /// An error unless this build can compute on the device.
    pub fn check(self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(_) => Err(Error::NotBuilt("device cuda")),
        }
    }
}

/// A contiguous row-major array. Clones and row views share one counted buffer; nothing writes to a shared buffer.
#[derive(Clone)]
pub struct Tensor {
    storage: Arc<Buffer>,
    /// First element, counted in elements.
    offset: usize,
    dtype: DType,
    shape: Box<[usize]>,
}

/// The number of elements of a shape; an error when it does not fit the address space.
fn count(shape: &[usize]) -> Result<usize> {
    let product = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    match product {
        Some(n) if n <= (isize::MAX as usize) / 8 => Ok(n),
        _ => Err(Error::argument("tensor", format!("shape {shape:?} is too large"))),
    }
}

/// Elements that are cast at a time while a tensor is read.
const CAST_PIECE: usize = 1 << 16;

impl Tensor {
    /// Copies `data` into a pooled buffer.
    pub fn from_f32(data: &[f32], shape: &[usize]) -> Result<Tensor> {
        let mut tensor = Tensor::stale_checked(shape, DType::F32, data.len(), "elements")?;
        if !is_planning() {
            tensor.f32s_mut()?.copy_from_slice(data);
        }
        Ok(tensor)
    }

    /// Copies `data` into a pooled buffer.
    pub fn from_i32(data: &[i32], shape: &[usize]) -> Result<Tensor> {
        let mut tensor = Tensor::stale_checked(shape, DType::I32, data.len(), "elements")?;
        for (to, from) in tensor.bytes_mut()?.chunks_exact_mut(4).zip(data) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        Ok(tensor)
    }

    /// Copies little-endian bytes into a pooled buffer.
    pub fn from_bytes(bytes: &[u8], dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let expected = count(shape)? * dtype.size_bytes();
        if expected != bytes.len() {
            let (shape, found) = (shape.to_vec(), bytes.len());
            return Err(Error::Length { op: "tensor", unit: "bytes", shape, expected, found });
        }
        let mut tensor = Tensor::stale(shape, dtype)?;
        if is_planning() {
            return Ok(tensor);
        }
        let to = tensor.bytes_mut()?;
        to.copy_from_slice(bytes);
        if cfg!(target_endian = "big") {
            to.chunks_exact_mut(dtype.size_bytes()).for_each(<[u8]>::reverse);
        }
        Ok(tensor)
    }

    /// As [`Tensor::from_bytes`] with the numbers as another float type, rounded to nearest even; never holds more than a small part of
    /// them in both types.
    pub fn from_bytes_as(bytes: &[u8], dtype: DType, target: DType, shape: &[usize]) -> Result<Tensor> {
        if dtype == target || !target.is_float() {
            return Tensor::from_bytes(bytes, dtype, shape)?.cast(target);
        }
        let size = dtype.size_bytes();
        let expected = count(shape)? * size;
        if expected != bytes.len() {
            let (shape, found) = (shape.to_vec(), bytes.len());
            return Err(Error::Length { op: "tensor", unit: "bytes", shape, expected, found });
        }
        let mut tensor = Tensor::stale(shape, target)?;
        if is_planning() {
            return Ok(tensor);
        }
        let pieces = tensor.bytes_mut()?.chunks_mut(CAST_PIECE * target.size_bytes());
        for (to, from) in pieces.zip(bytes.chunks(CAST_PIECE * size)) {
            let piece = Tensor::from_bytes(from, dtype, &[from.len() / size])?.cast(target)?;
            to.copy_from_slice(piece.bytes());
        }
        Ok(tensor)
    }

    /// A tensor full of zeros.
    pub fn zeros(shape: &[usize], dtype: DType) -> Result<Tensor> {
        let storage = Arc::new(Buffer::zeroed(count(shape)? * dtype.size_bytes())?);
        Ok(Tensor { storage, offset: 0, dtype, shape: shape.into() })
    }

    /// A tensor with arbitrary content, for kernels that overwrite all of it.
    pub(crate) fn stale(shape: &[usize], dtype: DType) -> Result<Tensor> {
        let storage = Arc::new(Buffer::stale(count(shape)? * dtype.size_bytes())?);
        Ok(Tensor { storage, offset: 0, dtype, shape: shape.into() })
    }

    fn stale_checked(shape: &[usize], dtype: DType, found: usize, unit: &'static str) -> Result<Tensor> {
        let expected = count(shape)?;
        if expected != found {
            return Err(Error::Length { op: "tensor", unit, shape: shape.to_vec(), expected, found });
        }
        Tensor::stale(shape, dtype)
    }

    /// The length of each dimension; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the buffer lives.
    pub fn device(&self) -> Device {
        Device::Cpu
    }

    /// The product of the shape.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The size of the elements in bytes (the pooled buffer may be a little larger).
    pub fn num_bytes(&self) -> usize {
        self.num_elements() * self.dtype.size_bytes()
    }

    /// The elements; an error unless the dtype is f32.
    pub fn f32s(&self) -> Result<&[f32]> {
        self.expect_dtype(DType::F32)?;
        let bytes = self.bytes();
        // SAFETY: buffers are aligned to 64 bytes and hold initialised memory; every bit pattern is an f32.
        Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / 4) })
    }

    /// The elements of a 16-bit float tensor as raw bits.
    pub(crate) fn halves(&self) -> Result<&[u16]> {
        if !matches!(self.dtype, DType::BF16 | DType::F16) {
            let expected = "`BF16` or `F16`";
            return Err(Error::DType { op: "tensor", what: "elements", expected, found: self.dtype });
        }
        let bytes = self.bytes();
        // SAFETY: as in `f32s`; offsets are multiples of the element size.
        Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / 2) })
    }

    /// The elements widened to f32; an error unless the dtype is a float.
    pub fn to_vec_f32(&self) -> Result<Vec<f32>> {
        match self.dtype {
            DType::F32 => Ok(self.f32s()?.to_vec()),
            DType::BF16 => Ok(self.halves()?.iter().map(|&bits| bf16_to_f32(bits)).collect()),
            DType::F16 => Ok(self.halves()?.iter().map(|&bits| f16_to_f32(bits)).collect()),
            found => Err(Error::DType { op: "to_vec_f32", what: "self", expected: "a float", found }),
        }
    }

    /// The elements as little-endian bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.bytes().to_vec();
        if cfg!(target_endian = "big") {
            bytes.chunks_exact_mut(self.dtype.size_bytes()).for_each(<[u8]>::reverse);
        }
        bytes
    }

    /// The same numbers as another float type, rounded to nearest even. The same dtype shares the buffer.
    pub fn cast(&self, dtype: DType) -> Result<Tensor> {
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        if !dtype.is_float() {
            return Err(Error::DType { op: "cast", what: "target", expected: "a float", found: dtype });
        }
        if is_planning() {
            return Tensor::stale(&self.shape, dtype);
        }
        if dtype == DType::F32 {
            return Tensor::from_f32(&self.to_vec_f32()?, &self.shape);
        }
        let wide = self.to_vec_f32()?;
        let narrow: fn(f32) -> u16 = if dtype == DType::BF16 { f32_to_bf16 } else { f32_to_f16 };
        let mut tensor = Tensor::stale(&self.shape, dtype)?;
        for (to, &x) in tensor.bytes_mut()?.chunks_exact_mut(2).zip(&wide) {
            to.copy_from_slice(&narrow(x).to_ne_bytes());
        }
        Ok(tensor)
    }

    /// The same elements under another shape; shares the buffer.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        let (expected, found) = (count(shape)?, self.num_elements());
        if expected != found {
            return Err(Error::Length { op: "reshape", unit: "elements", shape: shape.to_vec(), expected, found });
        }
        Ok(Tensor { shape: shape.into(), ..self.clone() })
    }

    /// Rows `start..end` of the first dimension; shares the buffer.
    pub fn rows(&self, start: usize, end: usize) -> Result<Tensor> {
        let Some((&num_rows, rest)) = self.shape.split_first() else {
            return Err(Error::shape("rows", "self", "at least one dimension", &self.shape));
        };
        if start > end || end > num_rows {
            return Err(Error::argument("rows", format!("{start}..{end} is not inside of 0..{num_rows}")));
        }
        let stride: usize = rest.iter().product();
        let mut shape = self.shape.clone();
        shape[0] = end - start;
        Ok(Tensor { storage: self.storage.clone(), offset: self.offset + start * stride, dtype: self.dtype, shape })
    }

    /// The elements for writing; an error unless they are f32 and nobody else refers to the buffer.
    pub(crate) fn f32s_mut(&mut self) -> Result<&mut [f32]> {
        self.expect_dtype(DType::F32)?;
        let bytes = self.bytes_mut()?;
        // SAFETY: as in `f32s`; the exclusive borrow is handed on.
        Ok(unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / 4) })
    }

    /// The bits of a 16-bit float tensor for writing; an error when somebody else refers to the buffer.
    pub(crate) fn halves_mut(&mut self) -> Result<&mut [u16]> {
        self.halves()?;
        let bytes = self.bytes_mut()?;
        // SAFETY: as in `halves`; the exclusive borrow is handed on.
        Ok(unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / 2) })
    }

    /// Whether this is the only reference to the buffer, so that writing to it is seen by nobody else.
    pub(crate) fn is_unique(&mut self) -> bool {
        Arc::get_mut(&mut self.storage).is_some()
    }

    /// This tensor if nobody else refers to its buffer, otherwise a copy that may be written to.
    pub(crate) fn into_unique(mut self) -> Result<Tensor> {
        if self.is_unique() {
            return Ok(self);
        }
        let mut copy = Tensor::stale(&self.shape, self.dtype)?;
        if !is_planning() {
            copy.bytes_mut()?.copy_from_slice(self.bytes());
        }
        Ok(copy)
    }

    /// An error unless the elements have the given type.
    pub(crate) fn expect_dtype(&self, dtype: DType) -> Result<()> {
        if self.dtype == dtype {
            return Ok(());
        }
        let expected = match dtype {
            DType::F32 => "`F32`",
            DType::BF16 => "`BF16`",
            _ => "another type",
        };
        Err(Error::DType { op: "tensor", what: "elements", expected, found: self.dtype })
    }

    fn bytes(&self) -> &[u8] {
        let size = self.dtype.size_bytes();
        // SAFETY: every constructor allocates offset plus elements, and pooled memory is always initialised.
        unsafe { std::slice::from_raw_parts(self.storage.as_ptr().add(self.offset * size), self.num_bytes()) }
    }

    fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        let (offset, len) = (self.offset * self.dtype.size_bytes(), self.num_bytes());
        let Some(buffer) = Arc::get_mut(&mut self.storage) else {
            return Err(Error::argument("tensor", "a shared buffer cannot be written to"));
        };
        // SAFETY: as in `bytes`, and `get_mut` proves that nobody else refers to the buffer.
        Ok(unsafe { std::slice::from_raw_parts_mut(buffer.as_ptr().add(offset), len) })
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_share_and_copies_do_not() {
        let t = Tensor::from_f32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, 2]).unwrap();
        let view = t.rows(1, 3).unwrap();
        assert_eq!(view.f32s().unwrap(), [3.0, 4.0, 5.0, 6.0]);
        assert_eq!(view.shape(), [2, 2]);
        let mut copy = view.into_unique().unwrap();
        copy.f32s_mut().unwrap()[0] = 9.0;
        assert_eq!(t.f32s().unwrap()[2], 3.0);
        assert!(t.rows(2, 4).is_err());
        assert!(t.reshape(&[4]).is_err());
        assert_eq!(t.reshape(&[6]).unwrap().shape(), [6]);
    }

    #[test]
    fn reading_as_another_type_casts_every_piece() {
        let count = 2 * CAST_PIECE + 77;
        let values: Vec<f32> = (0..count).map(|i| (i as f32 - 1000.3) * 1.618).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        for target in [DType::F32, DType::BF16, DType::F16] {
            let whole = Tensor::from_f32(&values, &[count]).unwrap().cast(target).unwrap();
            let read = Tensor::from_bytes_as(&bytes, DType::F32, target, &[count]).unwrap();
            assert!(read.dtype() == target && read.to_bytes() == whole.to_bytes(), "{target:?}");
        }
        assert!(Tensor::from_bytes_as(&bytes[4..], DType::F32, DType::BF16, &[count]).is_err());
        assert!(Tensor::from_bytes_as(&bytes, DType::F32, DType::I64, &[count]).is_err());
    }

    #[test]
    fn a_shared_buffer_refuses_writing() {
        let mut t = Tensor::zeros(&[2], DType::F32).unwrap();
        let other = t.clone();
        assert!(t.f32s_mut().is_err());
        drop(other);
        assert!(t.f32s_mut().is_ok());
    }

    #[test]
    fn casts_round_and_refuse_integers() {
        let t = Tensor::from_f32(&[1.0, 1.0 + 2f32.powi(-9), -3.5], &[3]).unwrap();
        assert_eq!(t.cast(DType::BF16).unwrap().to_vec_f32().unwrap(), [1.0, 1.0, -3.5]);
        assert_eq!(t.cast(DType::F16).unwrap().to_vec_f32().unwrap(), [1.0, 1.0 + 2f32.powi(-9), -3.5]);
        assert!(t.cast(DType::I32).is_err());
        assert!(Tensor::from_i32(&[1], &[1]).unwrap().f32s().is_err());
    }

    #[test]
    fn lengths_are_checked() {
        assert!(matches!(Tensor::from_f32(&[1.0], &[2]), Err(Error::Length { expected: 2, found: 1, .. })));
        assert!(matches!(Tensor::from_bytes(&[0; 3], DType::F32, &[1]), Err(Error::Length { .. })));
        assert!(Tensor::zeros(&[usize::MAX, 3], DType::F32).is_err());
        assert_eq!(Tensor::zeros(&[0, 4], DType::F32).unwrap().f32s().unwrap().len(), 0);
    }
}
