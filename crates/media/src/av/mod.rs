//! Owns every contact with libav: opening its libraries, demuxing over our own reader, decoding, colour conversion,
//! resampling, encoding, muxing.
//! It refuses to let a libav type out: what leaves this module is plain Rust, and all of its `unsafe` stands here.

mod color;
mod decoder;
mod input;
mod library;
mod output;
mod resampler;

pub(crate) use color::Converter;
pub(crate) use decoder::{Decoder, Effort, Picture};
pub(crate) use input::{Input, Packet, StreamInfo};
pub(crate) use library::Library;
pub use library::{LibavLibrary, libav_libraries};
pub(crate) use output::{Output, OutputOptions};
pub(crate) use resampler::Resampler;

use ffmpeg_sys_the_third as ffi;
use std::ffi::{CStr, c_char, c_int};

/// A libav error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AvError(c_int);

impl AvError {
    /// Maps a libav return value to a result.
    fn check(code: c_int) -> Result<c_int, AvError> {
        if code < 0 { Err(AvError(code)) } else { Ok(code) }
    }

    /// Whether libav ran into the allocation bound or the system's.
    pub fn is_out_of_memory(self) -> bool {
        self.0 == ffi::AVERROR(libc::ENOMEM)
    }
}

impl std::fmt::Display for AvError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ok(av) = Library::get() else { return write!(f, "libav's error {}", self.0) };
        let mut text = [0 as c_char; 128];
        // SAFETY: the buffer is as long as stated, and libav always ends it with a zero.
        let text = unsafe {
            av.av_strerror(self.0, text.as_mut_ptr(), text.len());
            CStr::from_ptr(text.as_ptr())
        };
        f.write_str(&text.to_string_lossy().to_lowercase())
    }
}

/// The error for an allocation that libav did not give.
const OUT_OF_MEMORY: AvError = AvError(ffi::AVERROR(libc::ENOMEM));

/// A libav name as a string; empty for null.
///
/// # Safety
/// `name` is null or a zero-terminated string that lives until the call returns.
unsafe fn text(name: *const c_char) -> String {
    if name.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promised.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}
