//! Owns encoding and muxing of one video stream from RGB pictures.
//! It refuses audio, several streams, and network targets.

use std::ffi::{CString, c_int};
use std::path::Path;
use std::ptr;

use super::{AvError, Library, OUT_OF_MEMORY, ffi};
use crate::RgbImage;

/// How a file is to be written.
#[derive(Debug, Clone)]
pub(crate) struct OutputOptions<'a> {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Nominal frames a second: numerator, denominator.
    pub fps: (i32, i32),
    /// Seconds of one tick of the times given with the frames: numerator, denominator.
    pub time_base: (i32, i32),
    /// Encoder names, the first that this libav has is taken.
    pub encoders: &'a [&'a str],
    /// Pixel format that the encoder takes: `yuv420p`, `rgb8`, ...
    pub pixel_format: &'a str,
    /// Most frames from keyframe to keyframe.
    pub gop: Option<u32>,
    /// Most B-frames between two others.
    pub b_frames: Option<u32>,
    /// Encoder's own options by name.
    pub options: &'a [(&'a str, String)],
}

/// A file being written.
pub(crate) struct Output {
    av: &'static Library,
    context: *mut ffi::AVFormatContext,
    encoder: *mut ffi::AVCodecContext,
    frame: *mut ffi::AVFrame,
    packet: *mut ffi::AVPacket,
    scaler: *mut ffi::SwsContext,
    is_header_written: bool,
}

// SAFETY: every pointer is owned, and used by one thread at a time, through `&mut self`.
unsafe impl Send for Output {}

impl Output {
    /// The first of `names` that this libav can encode with.
    pub fn find_encoder<'a>(av: &Library, names: &[&'a str]) -> Option<&'a str> {
        names.iter().copied().find(|name| {
            // SAFETY: the name is zero-terminated for the length of the call.
            CString::new(*name).is_ok_and(|name| unsafe { !av.avcodec_find_encoder_by_name(name.as_ptr()).is_null() })
        })
    }

    /// Opens the file, whose container follows from its name, and the encoder.
    pub fn open(av: &'static Library, path: &Path, options: &OutputOptions<'_>) -> Result<Self, AvError> {
        // SAFETY: the call only stores a number.
        unsafe { av.av_max_alloc(256 << 20) };
        let invalid = AvError(ffi::AVERROR(libc::EINVAL));
        let name = Self::find_encoder(av, options.encoders).ok_or(AvError(ffi::AVERROR_ENCODER_NOT_FOUND))?;
        let name = CString::new(name).map_err(|_| invalid)?;
        let path = path.to_str().ok_or(invalid)?;
        // `file:` keeps libav from reading a protocol into the name.
        let url = CString::new(format!("file:{path}")).map_err(|_| invalid)?;
        let pixel_format = CString::new(options.pixel_format).map_err(|_| invalid)?;
        let mut output = Self {
            av,
            context: ptr::null_mut(),
            encoder: ptr::null_mut(),
            frame: ptr::null_mut(),
            packet: ptr::null_mut(),
            scaler: ptr::null_mut(),
            is_header_written: false,
        };
        // SAFETY: every pointer is checked before use, strings outlive the calls, and `Drop` frees what was made on
        // every way out.
        unsafe {
            AvError::check(av.avformat_alloc_output_context2(
                &mut output.context,
                ptr::null(),
                ptr::null(),
                url.as_ptr(),
            ))?;
            let codec = av.avcodec_find_encoder_by_name(name.as_ptr());
            output.encoder = av.avcodec_alloc_context3(codec);
            output.frame = av.av_frame_alloc();
            output.packet = av.av_packet_alloc();
            if output.encoder.is_null() || output.frame.is_null() || output.packet.is_null() {
                return Err(OUT_OF_MEMORY);
            }
            let format = av.av_get_pix_fmt(pixel_format.as_ptr());
            let encoder = &mut *output.encoder;
            encoder.width = c_int::try_from(options.width).map_err(|_| invalid)?;
            encoder.height = c_int::try_from(options.height).map_err(|_| invalid)?;
            encoder.pix_fmt = format;
            encoder.time_base = ffi::AVRational { num: options.time_base.0, den: options.time_base.1 };
            encoder.framerate = ffi::AVRational { num: options.fps.0, den: options.fps.1 };
            encoder.thread_count = 1;
            if let Some(gop) = options.gop {
                encoder.gop_size = c_int::try_from(gop).map_err(|_| invalid)?;
            }
            if let Some(b_frames) = options.b_frames {
                encoder.max_b_frames = c_int::try_from(b_frames).map_err(|_| invalid)?;
            }
            let container = &*(*output.context).oformat;
            if container.flags & ffi::AVFMT_GLOBALHEADER as c_int != 0 {
                encoder.flags |= ffi::AV_CODEC_FLAG_GLOBAL_HEADER as c_int;
            }
            let opened = open_encoder(av, output.encoder, codec, options.options);
            AvError::check(opened)?;
            let stream = av.avformat_new_stream(output.context, ptr::null());
            if stream.is_null() {
                return Err(OUT_OF_MEMORY);
            }
            AvError::check(av.avcodec_parameters_from_context((*stream).codecpar, output.encoder))?;
            (*stream).time_base = (*output.encoder).time_base;
            (*stream).avg_frame_rate = (*output.encoder).framerate;
            AvError::check(av.avio_open(&mut (*output.context).pb, url.as_ptr(), ffi::AVIO_FLAG_WRITE as c_int))?;
            AvError::check(av.avformat_write_header(output.context, ptr::null_mut()))?;
            output.is_header_written = true;

            (*output.frame).width = (*output.encoder).width;
            (*output.frame).height = (*output.encoder).height;
            (*output.frame).format = format.0;
            AvError::check(av.av_frame_get_buffer(output.frame, 0))?;
            output.scaler = av.sws_getContext(
                (*output.encoder).width,
                (*output.encoder).height,
                ffi::AVPixelFormat::RGB24,
                (*output.encoder).width,
                (*output.encoder).height,
                format,
                0 as _,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null(),
            );
            if output.scaler.is_null() {
                return Err(OUT_OF_MEMORY);
            }
        }
        Ok(output)
    }

    /// Encodes a picture of the file's size, shown at `pts` ticks.
    pub fn write(&mut self, image: &RgbImage, pts: i64) -> Result<(), AvError> {
        let row = image.width as usize * 3;
        let planes = [image.data.as_ptr(), ptr::null(), ptr::null(), ptr::null()];
        let strides = [row as c_int, 0, 0, 0];
        // SAFETY: the caller checked the picture's size against the encoder's; the frame is made writable before the
        // scaler writes to it.
        unsafe {
            AvError::check(self.av.av_frame_make_writable(self.frame))?;
            AvError::check(self.av.sws_scale(
                self.scaler,
                planes.as_ptr(),
                strides.as_ptr(),
                0,
                image.height as c_int,
                (*self.frame).data.as_ptr(),
                (*self.frame).linesize.as_ptr(),
            ))?;
            (*self.frame).pts = pts;
            AvError::check(self.av.avcodec_send_frame(self.encoder, self.frame))?;
        }
        self.write_packets()
    }

    /// Writes what the encoder holds and the container's end.
    pub fn finish(mut self) -> Result<(), AvError> {
        // SAFETY: the encoder and the container are open; a null frame is libav's sign for the end.
        unsafe { AvError::check(self.av.avcodec_send_frame(self.encoder, ptr::null()))? };
        self.write_packets()?;
        // SAFETY: as above; the writer is closed once here, and `Drop` sees null.
        unsafe {
            AvError::check(self.av.av_write_trailer(self.context))?;
            AvError::check(self.av.avio_closep(&mut (*self.context).pb))?;
        }
        Ok(())
    }

    fn write_packets(&mut self) -> Result<(), AvError> {
        loop {
            // SAFETY: encoder, packet and container are live; the muxer takes over the packet's data.
            unsafe {
                let code = self.av.avcodec_receive_packet(self.encoder, self.packet);
                if code == ffi::AVERROR_EOF || code == ffi::AVERROR(libc::EAGAIN) {
                    return Ok(());
                }
                AvError::check(code)?;
                let stream = *(*self.context).streams;
                self.av.av_packet_rescale_ts(self.packet, (*self.encoder).time_base, (*stream).time_base);
                (*self.packet).stream_index = 0;
                AvError::check(self.av.av_interleaved_write_frame(self.context, self.packet))?;
            }
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // SAFETY: each pointer is null or owned by `self` and freed once.
        unsafe {
            self.av.sws_freeContext(self.scaler);
            self.av.av_packet_free(&mut self.packet);
            self.av.av_frame_free(&mut self.frame);
            self.av.avcodec_free_context(&mut self.encoder);
            if !self.context.is_null() {
                if !(*self.context).pb.is_null() {
                    self.av.avio_closep(&mut (*self.context).pb);
                }
                self.av.avformat_free_context(self.context);
            }
        }
    }
}

/// Opens an encoder with options by name; an option that the encoder does not know is an error.
///
/// # Safety
/// `encoder` is a fresh context for `codec`.
unsafe fn open_encoder(
    av: &Library,
    encoder: *mut ffi::AVCodecContext,
    codec: *const ffi::AVCodec,
    options: &[(&str, String)],
) -> c_int {
    let mut dictionary: *mut ffi::AVDictionary = ptr::null_mut();
    for (name, value) in options {
        let (Ok(name), Ok(value)) = (CString::new(*name), CString::new(value.as_str())) else {
            return ffi::AVERROR(libc::EINVAL);
        };
        // SAFETY: libav copies both strings; a null dictionary is an empty one.
        unsafe { av.av_dict_set(&mut dictionary, name.as_ptr(), value.as_ptr(), 0) };
    }
    // SAFETY: as the caller promised; libav leaves the options that it did not use in the dictionary.
    unsafe {
        let code = av.avcodec_open2(encoder, codec, &mut dictionary);
        let num_unused = av.av_dict_count(dictionary);
        av.av_dict_free(&mut dictionary);
        if code >= 0 && num_unused > 0 { ffi::AVERROR_OPTION_NOT_FOUND } else { code }
    }
}
