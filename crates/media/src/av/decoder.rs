//! Owns decoding: packets in, pictures with their times out, one thread.
//! It refuses to choose packets.

use std::ffi::c_int;
use std::ptr;

use super::{AvError, Input, Library, OUT_OF_MEMORY, Packet, ffi};

/// How much of a packet is worth decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// The picture is wanted.
    Full,
    /// The picture is wanted only as far as others refer to it.
    ReferencesOnly,
}

/// A decoded picture; it holds libav's frame, reused from picture to picture.
pub(crate) struct Picture {
    av: &'static Library,
    pub(super) raw: *mut ffi::AVFrame,
}

// SAFETY: the frame owns references to its buffers, which libav counts atomically.
unsafe impl Send for Picture {}

impl Picture {
    /// An empty picture.
    pub fn new(av: &'static Library) -> Result<Self, AvError> {
        // SAFETY: plain allocation, checked below.
        let raw = unsafe { av.av_frame_alloc() };
        if raw.is_null() { Err(OUT_OF_MEMORY) } else { Ok(Self { av, raw }) }
    }

    pub(super) fn raw(&self) -> &ffi::AVFrame {
        // SAFETY: `raw` is a live frame for the life of `self`.
        unsafe { &*self.raw }
    }

    /// Presentation time in ticks.
    pub fn pts(&self) -> Option<i64> {
        let raw = self.raw();
        [raw.pts, raw.best_effort_timestamp].into_iter().find(|&pts| pts != ffi::AV_NOPTS_VALUE)
    }

    /// Width and height.
    pub fn size(&self) -> (u32, u32) {
        (self.raw().width.max(0) as u32, self.raw().height.max(0) as u32)
    }

    /// Whether the decoder itself calls the picture one that refers to no other before it.
    pub fn is_key(&self) -> bool {
        #[cfg(libav_6_1)]
        let is_key = self.raw().flags & ffi::AV_FRAME_FLAG_KEY as c_int != 0;
        #[cfg(not(libav_6_1))]
        let is_key = self.raw().key_frame != 0;
        is_key
    }

    /// Whether the decoder reported errors inside the picture.
    pub fn is_damaged(&self) -> bool {
        self.raw().decode_error_flags != 0 || self.raw().flags & ffi::AV_FRAME_FLAG_CORRUPT as c_int != 0
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        // SAFETY: `raw` came from `av_frame_alloc` and is freed once.
        unsafe { self.av.av_frame_free(&mut self.raw) }
    }
}

/// An open decoder of one stream.
pub(crate) struct Decoder {
    av: &'static Library,
    context: *mut ffi::AVCodecContext,
}

// SAFETY: the context is used by one thread at a time, through `&mut self`.
unsafe impl Send for Decoder {}

impl Decoder {
    /// Opens the decoder of a stream; `None` if this libav has none for its codec.
    pub fn open(input: &Input, stream: usize, max_pixels: u64) -> Result<Option<Self>, AvError> {
        let (av, stream) = (input.library(), input.stream(stream));
        // SAFETY: the stream and its parameters live as long as the input; every pointer is checked; the decoder is
        // freed by `Drop` on every way out.
        unsafe {
            let parameters = (*stream).codecpar;
            let codec = av.avcodec_find_decoder((*parameters).codec_id);
            if codec.is_null() {
                return Ok(None);
            }
            let context = av.avcodec_alloc_context3(codec);
            if context.is_null() {
                return Err(OUT_OF_MEMORY);
            }
            let decoder = Self { av, context };
            AvError::check(av.avcodec_parameters_to_context(context, parameters))?;
            (*context).pkt_timebase = (*stream).time_base;
            (*context).thread_count = 1;
            (*context).max_pixels = i64::try_from(max_pixels).unwrap_or(i64::MAX);
            AvError::check(av.avcodec_open2(context, codec, ptr::null_mut()))?;
            Ok(Some(decoder))
        }
    }

    /// Gives a packet to the decoder. The decoder must have been emptied with `receive` before.
    pub fn send(&mut self, packet: &Packet, effort: Effort) -> Result<(), AvError> {
        // SAFETY: context and packet are live; libav copies what it keeps.
        unsafe {
            (*self.context).skip_frame = match effort {
                Effort::Full => ffi::AVDiscard::DEFAULT,
                Effort::ReferencesOnly => ffi::AVDiscard::NONREF,
            };
            AvError::check(self.av.avcodec_send_packet(self.context, packet.raw)).map(|_| ())
        }
    }

    /// Tells the decoder that no packet follows, so that it gives out the pictures it still holds.
    pub fn drain(&mut self) -> Result<(), AvError> {
        // SAFETY: the context is live; a null packet is libav's sign for the end.
        let code = unsafe { self.av.avcodec_send_packet(self.context, ptr::null()) };
        if code == ffi::AVERROR_EOF { Ok(()) } else { AvError::check(code).map(|_| ()) }
    }

    /// Takes the next picture; `false` if the decoder wants a packet or has ended.
    pub fn receive(&mut self, picture: &mut Picture) -> Result<bool, AvError> {
        // SAFETY: context and frame are live; libav replaces what the frame held.
        let code = unsafe { self.av.avcodec_receive_frame(self.context, picture.raw) };
        if code == ffi::AVERROR_EOF || code == ffi::AVERROR(libc::EAGAIN) {
            return Ok(false);
        }
        AvError::check(code).map(|_| true)
    }

    /// Forgets everything, for decoding from another place.
    pub fn flush(&mut self) {
        // SAFETY: the context is open.
        unsafe { self.av.avcodec_flush_buffers(self.context) }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: the context came from `avcodec_alloc_context3` and is freed once.
        unsafe { self.av.avcodec_free_context(&mut self.context) }
    }
}
