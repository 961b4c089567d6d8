//! Owns the way from decoded sound to samples of one channel at one rate, through libswresample.
//! It refuses to decode, and to mix channels by loudness: one channel is the mean of all, as librosa and the programs that
//! train speech models take it.

use std::ffi::c_int;
use std::ptr;

use super::{AvError, Library, OUT_OF_MEMORY, Picture, ffi};

/// A resampler for sound of one shape; what it is follows from the first frame.
pub(crate) struct Resampler {
    av: &'static Library,
    context: *mut ffi::SwrContext,
    /// What comes out of libswresample, reused from call to call.
    out: Picture,
    /// A frame that holds nothing but the layout of the channels.
    shape: Picture,
    rate: u32,
    from: Shape,
}

/// What must stay the same from frame to frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    rate: c_int,
    format: c_int,
    channels: c_int,
}

impl Shape {
    fn of(frame: &Picture) -> Self {
        let raw = frame.raw();
        Self { rate: raw.sample_rate, format: raw.format, channels: raw.ch_layout.nb_channels }
    }
}

// SAFETY: the context is used by one thread at a time, through `&mut self`.
unsafe impl Send for Resampler {}

impl Resampler {
    /// A resampler of libswresample's own settings to `rate` samples a second, for sound like that of `frame`.
    pub fn open(av: &'static Library, frame: &Picture, rate: u32) -> Result<Self, AvError> {
        let (out, shape) = (Picture::new(av)?, Picture::new(av)?);
        // SAFETY: both frames are live, and the copy leaves the one it is made from alone.
        unsafe {
            name_layout(av, frame);
            AvError::check(av.av_channel_layout_copy(&mut (*shape.raw).ch_layout, &frame.raw().ch_layout))?;
        }
        // SAFETY: plain allocation, checked below.
        let context = unsafe { av.swr_alloc() };
        if context.is_null() {
            return Err(OUT_OF_MEMORY);
        }
        Ok(Self { av, context, out, shape, rate, from: Shape::of(frame) })
    }

    /// Whether a frame has the shape that this resampler takes.
    pub fn suits(&self, frame: &Picture) -> bool {
        self.from == Shape::of(frame)
    }

    /// Adds the samples of a frame to `samples`; with `None` those that are still held, after which nothing may follow.
    pub fn push(&mut self, frame: Option<&Picture>, samples: &mut Vec<f32>) -> Result<(), AvError> {
        let from = frame.map_or(ptr::null(), |frame| frame.raw.cast_const());
        let out = self.out.raw;
        // SAFETY: the frames are live; `out` is emptied before its fields are set, and libswresample allocates its data
        // for as many samples as it gives. A null `from` is its sign for the end; it was configured by a frame before.
        // No layout is moved: a value of that type would be freed through a function that must not be linked.
        unsafe {
            if let Some(frame) = frame {
                name_layout(self.av, frame);
            }
            self.av.av_frame_unref(out);
            AvError::check(self.av.av_channel_layout_copy(&mut (*out).ch_layout, &self.shape.raw().ch_layout))?;
            (*out).sample_rate = self.rate as c_int;
            (*out).format = ffi::AVSampleFormat::FLTP.0;
            AvError::check(self.av.swr_convert_frame(self.context, out, from))?;
        }
        self.add_means(samples)
    }

    /// The mean of the channels of what came out.
    fn add_means(&self, samples: &mut Vec<f32>) -> Result<(), AvError> {
        let raw = self.out.raw();
        let (Ok(count), Ok(channels)) = (usize::try_from(raw.nb_samples), usize::try_from(self.from.channels)) else {
            return Err(AvError(ffi::AVERROR(libc::EINVAL)));
        };
        if count == 0 {
            return Ok(());
        }
        let start = samples.len();
        samples.resize(start + count, 0.0);
        for channel in 0..channels {
            // SAFETY: planar sound has one pointer a channel in `extended_data`, each to `nb_samples` floats.
            let plane = unsafe { std::slice::from_raw_parts((*raw.extended_data.add(channel)).cast::<f32>(), count) };
            samples[start..].iter_mut().zip(plane).for_each(|(sum, sample)| *sum += sample);
        }
        if channels > 1 {
            samples[start..].iter_mut().for_each(|sum| *sum /= channels as f32);
        }
        Ok(())
    }
}

/// Where a file names no layout, that of as many channels: libswresample takes no other order of them.
///
/// # Safety
/// The frame is live, and no other reference to it is used meanwhile.
unsafe fn name_layout(av: &Library, frame: &Picture) {
    // SAFETY: as the caller promised; a layout without names owns nothing.
    unsafe {
        let layout = &mut (*frame.raw).ch_layout;
        if layout.order == ffi::AVChannelOrder::UNSPEC {
            let num_channels = layout.nb_channels;
            av.av_channel_layout_default(layout, num_channels);
        }
    }
}

impl Drop for Resampler {
    fn drop(&mut self) {
        // SAFETY: the context came from `swr_alloc` and is freed once.
        unsafe { self.av.swr_free(&mut self.context) }
    }
}
