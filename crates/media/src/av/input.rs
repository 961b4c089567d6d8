//! Owns demuxing: a container read through our own file handle, with the demuxer chosen by us.
//! It refuses to open anything else: nested files, network and other demuxers are cut off.

use std::ffi::{CString, c_int, c_void};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::ptr;

use super::{AvError, Library, OUT_OF_MEMORY, ffi, text};
use crate::limits::Clock;
use crate::{Limits, MediaError, MediaFile};

/// Size of the buffer between the file and libav.
const IO_BUFFER: usize = 64 << 10;

/// The open file behind libav's reader.
struct Source {
    file: MediaFile,
    size: u64,
    position: u64,
    clock: Clock,
    /// The deadline ended a read.
    is_over: bool,
    /// The system's error that ended a read.
    error: Option<std::io::Error>,
}

/// What a stream's header says.
#[derive(Debug, Clone)]
pub(crate) struct StreamInfo {
    /// Number in the container.
    pub index: usize,
    /// Whether it is video and not an attached picture.
    pub is_video: bool,
    /// Whether it is sound.
    pub is_audio: bool,
    /// Whether the container marks it as default.
    pub is_default: bool,
    /// libav's codec name.
    pub codec: String,
    /// Coded width, 0 if unknown.
    pub width: i64,
    /// Coded height, 0 if unknown.
    pub height: i64,
    /// Seconds of one tick of its timestamps: numerator, denominator.
    pub time_base: (i64, i64),
    /// Average frames a second, numerator and denominator; denominator 0 if unknown.
    pub frame_rate: (i64, i64),
    /// Frames that the container claims; 0 if it does not say.
    pub num_frames: i64,
    /// The nine numbers of the display matrix (16.16 and 2.30 fixed point), if there is one.
    pub display_matrix: Option<[i32; 9]>,
}

/// A packet of the selected stream. It holds libav's packet, reused from read to read.
pub(crate) struct Packet {
    av: &'static Library,
    pub(super) raw: *mut ffi::AVPacket,
}

// SAFETY: the packet owns its data, and nothing in it is tied to a thread.
unsafe impl Send for Packet {}

impl Packet {
    /// An empty packet.
    pub fn new(av: &'static Library) -> Result<Self, AvError> {
        // SAFETY: plain allocation, checked below.
        let raw = unsafe { av.av_packet_alloc() };
        if raw.is_null() { Err(OUT_OF_MEMORY) } else { Ok(Self { av, raw }) }
    }

    fn raw(&self) -> &ffi::AVPacket {
        // SAFETY: `raw` is a live packet for the life of `self`.
        unsafe { &*self.raw }
    }

    /// Presentation time in ticks.
    pub fn pts(&self) -> Option<i64> {
        Some(self.raw().pts).filter(|&pts| pts != ffi::AV_NOPTS_VALUE)
    }

    /// Decoding time in ticks.
    pub fn dts(&self) -> Option<i64> {
        Some(self.raw().dts).filter(|&dts| dts != ffi::AV_NOPTS_VALUE)
    }

    /// Duration in ticks, 0 if unknown.
    pub fn duration(&self) -> i64 {
        self.raw().duration.max(0)
    }

    /// Whether decoding can start here.
    pub fn is_key(&self) -> bool {
        self.raw().flags & ffi::AV_PKT_FLAG_KEY != 0
    }

    /// Whether an edit list keeps the frame from being shown.
    pub fn is_discard(&self) -> bool {
        self.raw().flags & ffi::AV_PKT_FLAG_DISCARD != 0
    }

    /// Whether the demuxer knows the data to be cut or broken.
    pub fn is_corrupt(&self) -> bool {
        self.raw().flags & ffi::AV_PKT_FLAG_CORRUPT != 0
    }

    /// The stream it belongs to.
    pub fn stream(&self) -> usize {
        self.raw().stream_index.max(0) as usize
    }

    /// The coded bytes.
    pub fn data(&self) -> &[u8] {
        let raw = self.raw();
        if raw.data.is_null() || raw.size <= 0 {
            return &[];
        }
        // SAFETY: libav gives `size` readable bytes at `data`, alive until the packet is reused, which needs `&mut`.
        unsafe { std::slice::from_raw_parts(raw.data, raw.size as usize) }
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        // SAFETY: `raw` came from `av_packet_alloc` and is freed once.
        unsafe { self.av.av_packet_free(&mut self.raw) }
    }
}

/// A container that did not open; only the reader's own error can be asked of it.
pub(crate) struct OpenError {
    pub error: AvError,
    input: Input,
}

impl OpenError {
    /// As [`Input::source_error`].
    pub fn source_error(&mut self, path: &Path) -> Option<MediaError> {
        self.input.source_error(path)
    }
}

/// An open container.
pub(crate) struct Input {
    av: &'static Library,
    pub(super) context: *mut ffi::AVFormatContext,
    io: *mut ffi::AVIOContext,
    source: *mut Source,
}

// SAFETY: the context, its reader and the source are used by one thread at a time, through `&mut self`.
unsafe impl Send for Input {}

impl Input {
    /// Reads a container's header with the demuxer of that name. The error says whether libav gave up, or the reader
    /// behind it (deadline, system).
    pub fn open(
        av: &'static Library,
        file: MediaFile,
        size: u64,
        demuxer: &str,
        limits: &Limits,
        clock: Clock,
    ) -> Result<Self, OpenError> {
        // SAFETY: the call only stores a number.
        unsafe { av.av_max_alloc(limits.max_alloc_bytes) };
        let source = Box::new(Source { file, size, position: 0, clock, is_over: false, error: None });
        let mut input = Self { av, context: ptr::null_mut(), io: ptr::null_mut(), source: Box::into_raw(source) };
        match input.read_header(demuxer, limits) {
            Ok(()) => Ok(input),
            Err(error) => Err(OpenError { error, input }),
        }
    }

    fn read_header(&mut self, demuxer: &str, limits: &Limits) -> Result<(), AvError> {
        let name = CString::new(demuxer).map_err(|_| OUT_OF_MEMORY)?;
        // SAFETY: `name` is zero-terminated; the result is a static description or null.
        let format = unsafe { self.av.av_find_input_format(name.as_ptr()) };
        if format.is_null() {
            return Err(AvError(ffi::AVERROR_DEMUXER_NOT_FOUND));
        }
        // SAFETY: the buffer is given to the reader context, which owns it from then on; the source outlives the
        // reader context because `Drop` frees it last; every pointer is checked before use. On failure
        // `avformat_open_input` frees the context and sets it to null, and leaves our reader to `Drop`.
        unsafe {
            let buffer = self.av.av_malloc(IO_BUFFER).cast::<u8>();
            if buffer.is_null() {
                return Err(OUT_OF_MEMORY);
            }
            self.io = self.av.avio_alloc_context(
                buffer,
                IO_BUFFER as c_int,
                0,
                self.source.cast::<c_void>(),
                Some(read_source),
                None,
                Some(seek_source),
            );
            if self.io.is_null() {
                self.av.av_free(buffer.cast::<c_void>());
                return Err(OUT_OF_MEMORY);
            }
            let mut context = self.av.avformat_alloc_context();
            if context.is_null() {
                return Err(OUT_OF_MEMORY);
            }
            (*context).pb = self.io;
            (*context).flags |= ffi::AVFMT_FLAG_CUSTOM_IO as c_int;
            (*context).io_open = Some(refuse_open);
            (*context).interrupt_callback =
                ffi::AVIOInterruptCB { callback: Some(is_interrupted), opaque: self.source.cast::<c_void>() };
            (*context).max_streams = c_int::try_from(limits.max_streams).unwrap_or(c_int::MAX);
            (*context).probesize = i64::try_from(limits.probe_bytes).unwrap_or(i64::MAX).max(32);
            let code = self.av.avformat_open_input(&mut context, c"".as_ptr(), format, ptr::null_mut());
            AvError::check(code)?;
            self.context = context;
        }
        Ok(())
    }

    /// Reads ahead until every stream's parameters are known, for containers whose headers do not say enough.
    pub fn find_stream_info(&mut self) -> Result<(), AvError> {
        // SAFETY: the context is open; libav accepts null for the options of all streams.
        AvError::check(unsafe { self.av.avformat_find_stream_info(self.context, ptr::null_mut()) })?;
        Ok(())
    }

    /// What the headers say of every stream.
    pub fn streams(&self) -> Vec<StreamInfo> {
        (0..self.num_streams()).map(|index| self.stream_info(index)).collect()
    }

    /// The libav that it was opened with.
    pub fn library(&self) -> &'static Library {
        self.av
    }

    /// Streams in the container.
    pub fn num_streams(&self) -> usize {
        // SAFETY: the context is open.
        unsafe { (*self.context).nb_streams as usize }
    }

    pub(super) fn stream(&self, index: usize) -> *mut ffi::AVStream {
        assert!(index < self.num_streams(), "stream {index} is not in the container");
        // SAFETY: the context is open and holds that many stream pointers.
        unsafe { *(*self.context).streams.add(index) }
    }

    fn stream_info(&self, index: usize) -> StreamInfo {
        let stream = self.stream(index);
        // SAFETY: libav keeps a stream and its parameters alive as long as the context.
        unsafe {
            let stream = &*stream;
            let parameters = &*stream.codecpar;
            let is_picture = stream.disposition & ffi::AV_DISPOSITION_ATTACHED_PIC as c_int != 0;
            StreamInfo {
                index,
                is_video: parameters.codec_type == ffi::AVMediaType::VIDEO && !is_picture,
                is_audio: parameters.codec_type == ffi::AVMediaType::AUDIO,
                is_default: stream.disposition & ffi::AV_DISPOSITION_DEFAULT as c_int != 0,
                codec: text(self.av.avcodec_get_name(parameters.codec_id)),
                width: parameters.width.into(),
                height: parameters.height.into(),
                time_base: (stream.time_base.num.into(), stream.time_base.den.into()),
                frame_rate: (stream.avg_frame_rate.num.into(), stream.avg_frame_rate.den.into()),
                num_frames: stream.nb_frames,
                display_matrix: display_matrix(stream),
            }
        }
    }

    /// Makes the demuxer skip every stream but one.
    pub fn select(&mut self, index: usize) {
        for other in 0..self.num_streams() {
            let discard = if other == index { ffi::AVDiscard::DEFAULT } else { ffi::AVDiscard::ALL };
            // SAFETY: the stream lives as long as the context, and no other reference to it is held.
            unsafe { (*self.stream(other)).discard = discard }
        }
    }

    /// Reads the next packet of any stream that is not skipped; `false` at the end.
    pub fn read(&mut self, packet: &mut Packet) -> Result<bool, AvError> {
        // SAFETY: the context is open and the packet is live; libav replaces what the packet held.
        let code = unsafe {
            self.av.av_packet_unref(packet.raw);
            self.av.av_read_frame(self.context, packet.raw)
        };
        if code == ffi::AVERROR_EOF {
            return Ok(false);
        }
        AvError::check(code).map(|_| true)
    }

    /// Moves to the last place at or before `timestamp` (ticks of stream `index`) from which decoding can start.
    pub fn seek(&mut self, index: usize, timestamp: i64) -> Result<(), AvError> {
        // SAFETY: the context is open.
        let code = unsafe {
            self.av.av_seek_frame(self.context, index as c_int, timestamp, ffi::AVSEEK_FLAG_BACKWARD as c_int)
        };
        AvError::check(code).map(|_| ())
    }

    /// An error of the reader itself, if one happened: the deadline, or the system.
    pub fn source_error(&mut self, path: &Path) -> Option<MediaError> {
        // SAFETY: the source lives as long as `self`, and libav is not running while we hold `&mut self`.
        let source = unsafe { &mut *self.source };
        if source.is_over {
            return source.clock.check(path).err();
        }
        source.error.take().map(|error| MediaError::Io { path: path.to_path_buf(), source: error })
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        // SAFETY: each pointer is null or owned by `self`; libav is closed before its reader, and the reader before
        // the source that it points to. libav may have replaced the buffer, so it is freed through the reader.
        unsafe {
            if !self.context.is_null() {
                self.av.avformat_close_input(&mut self.context);
            }
            if !self.io.is_null() {
                self.av.av_freep((&raw mut (*self.io).buffer).cast::<c_void>());
                self.av.avio_context_free(&mut self.io);
            }
            drop(Box::from_raw(self.source));
        }
    }
}

/// The stream's display matrix, from wherever this libav keeps it.
fn display_matrix(stream: &ffi::AVStream) -> Option<[i32; 9]> {
    // SAFETY: libav keeps `nb` entries at the pointer, each with `size` readable bytes, as long as the stream lives.
    unsafe {
        #[cfg(libav_6_1)]
        let (first, count) = ((*stream.codecpar).coded_side_data, (*stream.codecpar).nb_coded_side_data);
        #[cfg(not(libav_6_1))]
        let (first, count) = (stream.side_data, stream.nb_side_data);
        if first.is_null() || count <= 0 {
            return None;
        }
        let entries = std::slice::from_raw_parts(first, count as usize);
        let entry = entries.iter().find(|entry| entry.type_ == ffi::AVPacketSideDataType::DISPLAYMATRIX)?;
        if entry.data.is_null() || entry.size < 36 {
            return None;
        }
        let bytes = std::slice::from_raw_parts(entry.data, 36);
        let mut matrix = [0; 9];
        for (value, bytes) in matrix.iter_mut().zip(bytes.chunks_exact(4)) {
            *value = i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Some(matrix)
    }
}

/// libav's reader callback.
unsafe extern "C" fn read_source(opaque: *mut c_void, buffer: *mut u8, size: c_int) -> c_int {
    // SAFETY: `opaque` is the live `Source` given to the reader, and libav gives `size` writable bytes.
    let (source, buffer) = unsafe {
        (&mut *opaque.cast::<Source>(), std::slice::from_raw_parts_mut(buffer, usize::try_from(size).unwrap_or(0)))
    };
    if source.clock.is_over() {
        source.is_over = true;
        return ffi::AVERROR_EXIT;
    }
    loop {
        match source.file.read(buffer) {
            Ok(0) => return ffi::AVERROR_EOF,
            Ok(count) => {
                source.position += count as u64;
                return count as c_int;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                source.error = Some(error);
                return ffi::AVERROR(libc::EIO);
            }
        }
    }
}

/// libav's seek callback.
unsafe extern "C" fn seek_source(opaque: *mut c_void, offset: i64, whence: c_int) -> i64 {
    // SAFETY: `opaque` is the live `Source` given to the reader.
    let source = unsafe { &mut *opaque.cast::<Source>() };
    let size = i64::try_from(source.size).unwrap_or(i64::MAX);
    let whence = whence & !(ffi::AVSEEK_FORCE as c_int);
    let target = match whence {
        w if w == ffi::AVSEEK_SIZE as c_int => return size,
        libc::SEEK_SET => Some(offset),
        libc::SEEK_CUR => i64::try_from(source.position).ok().and_then(|at| at.checked_add(offset)),
        libc::SEEK_END => size.checked_add(offset),
        _ => None,
    };
    let Some(target) = target.and_then(|target| u64::try_from(target).ok()) else {
        return ffi::AVERROR(libc::EINVAL).into();
    };
    match source.file.seek(SeekFrom::Start(target)) {
        Ok(at) => {
            source.position = at;
            at as i64
        }
        Err(error) => {
            source.error = Some(error);
            ffi::AVERROR(libc::EIO).into()
        }
    }
}

/// libav asks this between steps whether it should stop.
unsafe extern "C" fn is_interrupted(opaque: *mut c_void) -> c_int {
    // SAFETY: `opaque` is the live `Source`; only its clock is read and its flag set, and libav runs on this thread.
    let source = unsafe { &mut *opaque.cast::<Source>() };
    if source.clock.is_over() {
        source.is_over = true;
    }
    c_int::from(source.is_over)
}

/// libav asks this to open a further file that a container names. No container may.
unsafe extern "C" fn refuse_open(
    _: *mut ffi::AVFormatContext,
    _: *mut *mut ffi::AVIOContext,
    _: *const std::ffi::c_char,
    _: c_int,
    _: *mut *mut ffi::AVDictionary,
) -> c_int {
    ffi::AVERROR(libc::EPERM)
}
