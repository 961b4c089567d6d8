//! Owns the conversion of decoded pictures to RGB at their own size.
//! It refuses to scale: swscale's scalers are not those that models were trained with.

use std::ffi::c_int;
use std::ptr;

use super::{AvError, Library, OUT_OF_MEMORY, Picture, ffi};
use crate::RgbImage;

/// Pixels that swscale's vector code may handle at once.
const GROUP: u32 = 32;

/// What a conversion depends on; when it changes, the tables are built anew.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    width: c_int,
    height: c_int,
    format: c_int,
    matrix: ffi::AVColorSpace,
    range: ffi::AVColorRange,
}

/// A converter that keeps its tables from picture to picture.
pub(crate) struct Converter {
    av: &'static Library,
    context: *mut ffi::SwsContext,
    key: Option<Key>,
}

// SAFETY: the context is used by one thread at a time, through `&mut self`.
unsafe impl Send for Converter {}

impl Converter {
    /// A converter without tables.
    pub fn new(av: &'static Library) -> Self {
        Self { av, context: ptr::null_mut(), key: None }
    }

    /// The picture in RGB, as swscale's default path gives it for the picture's matrix and range.
    pub fn convert(&mut self, picture: &Picture) -> Result<RgbImage, AvError> {
        let raw = picture.raw();
        let key = Key {
            width: raw.width,
            height: raw.height,
            format: raw.format,
            matrix: raw.colorspace,
            range: raw.color_range,
        };
        if self.key != Some(key) {
            self.build(key)?;
        }
        let (width, height) = picture.size();
        let (row, rows) = (width as usize * 3, height as usize);
        // swscale's vector code works on whole groups of pixels: where the rows have no room for the last group, it
        // leaves that group out. So rows get room, and lose it afterwards.
        let stride = if width.is_multiple_of(GROUP) { row } else { (width.next_multiple_of(GROUP) as usize) * 3 };
        let mut data = vec![0u8; stride * rows + 64];
        let planes = [data.as_mut_ptr(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut()];
        let strides = [stride as c_int, 0, 0, 0];
        // SAFETY: the source planes belong to a live frame of the size and format that the tables were built for; the
        // destination has `height` rows of `stride` bytes and spare bytes behind them.
        let converted = unsafe {
            self.av.sws_scale(
                self.context,
                raw.data.as_ptr().cast::<*const u8>(),
                raw.linesize.as_ptr(),
                0,
                raw.height,
                planes.as_ptr(),
                strides.as_ptr(),
            )
        };
        AvError::check(converted)?;
        if stride != row {
            for y in 1..rows {
                data.copy_within(y * stride..y * stride + row, y * row);
            }
        }
        data.truncate(row * rows);
        Ok(RgbImage { width, height, data })
    }

    fn build(&mut self, key: Key) -> Result<(), AvError> {
        self.key = None;
        // SAFETY: the context is ours to free; the new one is checked; the coefficient tables are static.
        unsafe {
            self.av.sws_freeContext(self.context);
            self.context = self.av.sws_getContext(
                key.width,
                key.height,
                ffi::AVPixelFormat(key.format),
                key.width,
                key.height,
                ffi::AVPixelFormat::RGB24,
                0 as _,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null(),
            );
            if self.context.is_null() {
                return Err(OUT_OF_MEMORY);
            }
            let (mut from, mut to) = (ptr::null_mut(), ptr::null_mut());
            let (mut from_range, mut to_range, mut brightness, mut contrast, mut saturation) = (0, 0, 0, 0, 0);
            let known = self.av.sws_getColorspaceDetails(
                self.context,
                &mut from,
                &mut from_range,
                &mut to,
                &mut to_range,
                &mut brightness,
                &mut contrast,
                &mut saturation,
            );
            if known >= 0 {
                if key.range == ffi::AVColorRange::JPEG {
                    from_range = 1;
                }
                let table = self.av.sws_getCoefficients(key.matrix.0 as c_int);
                self.av.sws_setColorspaceDetails(
                    self.context,
                    table,
                    from_range,
                    table,
                    to_range,
                    brightness,
                    contrast,
                    saturation,
                );
            }
        }
        self.key = Some(key);
        Ok(())
    }
}

impl Drop for Converter {
    fn drop(&mut self) {
        // SAFETY: the context is null or ours.
        unsafe { self.av.sws_freeContext(self.context) }
    }
}
