//! Owns the way to libav's functions: the shared libraries are opened when a video is first touched, and every function
//! that this crate calls is looked up once, into one table. It refuses to call any of them but the version queries.
//!
//! libav brings over a hundred shared libraries with it. Linked, they would all be loaded before `main`, also for
//! `--help`. The bindings give the types, and check the table's signatures; no code may call the bindings' functions,
//! because that would link libav again.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

use ffi::{
    AVChannelLayout, AVCodec, AVCodecContext, AVCodecID, AVCodecParameters, AVDictionary, AVFormatContext, AVFrame,
    AVIOContext, AVInputFormat, AVOutputFormat, AVPacket, AVPixelFormat, AVRational, AVStream, SwrContext, SwsContext,
    SwsFilter,
};

use super::ffi;
use crate::MediaError;

/// A library of libav as it was found on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibavLibrary {
    /// `libavutil`, `libavcodec`, `libavformat`, `libswscale` or `libswresample`.
    pub name: &'static str,
    /// Its version: major, minor, micro.
    pub version: String,
    /// The file that the dynamic linker took.
    pub file: PathBuf,
}

/// Opens libav if that has not happened yet, and says what was found.
///
/// # Errors
/// [`MediaError::NoLibav`].
pub fn libav_libraries() -> Result<Vec<LibavLibrary>, MediaError> {
    Library::get().map(|library| library.found.clone())
}

/// The major version of FFmpeg whose headers this crate was built with; libavcodec has counted 54 ahead since FFmpeg 5.
const FFMPEG: c_int = ffi::LIBAVCODEC_VERSION_MAJOR - 54;

/// One of libav's libraries, and the version of the headers that this crate was built with.
struct Part {
    name: &'static str,
    version_query: &'static CStr,
    major: c_int,
    minor: c_int,
}

/// In the order of opening: each needs only those before it.
const PARTS: [Part; 5] = [
    Part {
        name: "libavutil",
        version_query: c"avutil_version",
        major: ffi::LIBAVUTIL_VERSION_MAJOR,
        minor: ffi::LIBAVUTIL_VERSION_MINOR,
    },
    Part {
        name: "libavcodec",
        version_query: c"avcodec_version",
        major: ffi::LIBAVCODEC_VERSION_MAJOR,
        minor: ffi::LIBAVCODEC_VERSION_MINOR,
    },
    Part {
        name: "libavformat",
        version_query: c"avformat_version",
        major: ffi::LIBAVFORMAT_VERSION_MAJOR,
        minor: ffi::LIBAVFORMAT_VERSION_MINOR,
    },
    Part {
        name: "libswscale",
        version_query: c"swscale_version",
        major: ffi::LIBSWSCALE_VERSION_MAJOR,
        minor: ffi::LIBSWSCALE_VERSION_MINOR,
    },
    Part {
        name: "libswresample",
        version_query: c"swresample_version",
        major: ffi::LIBSWRESAMPLE_VERSION_MAJOR,
        minor: ffi::LIBSWRESAMPLE_VERSION_MINOR,
    },
];

/// The parts as the dynamic linker opened them.
struct Opened {
    avutil: libloading::Library,
    avcodec: libloading::Library,
    avformat: libloading::Library,
    swscale: libloading::Library,
    swresample: libloading::Library,
}

/// The type of the functions that tell the version.
type VersionQuery = unsafe extern "C" fn() -> c_uint;
const _: [VersionQuery; 5] =
    [ffi::avutil_version, ffi::avcodec_version, ffi::avformat_version, ffi::swscale_version, ffi::swresample_version];

type ReadCallback = Option<unsafe extern "C" fn(*mut c_void, *mut u8, c_int) -> c_int>;
type SeekCallback = Option<unsafe extern "C" fn(*mut c_void, i64, c_int) -> i64>;
#[cfg(libav_7_0)]
type WriteCallback = Option<unsafe extern "C" fn(*mut c_void, *const u8, c_int) -> c_int>;
#[cfg(not(libav_7_0))]
type WriteCallback = Option<unsafe extern "C" fn(*mut c_void, *mut u8, c_int) -> c_int>;

/// Makes the table from C-like declarations: a field with the address, a method that calls it, and a comparison with
/// the bindings' declaration, so that a signature that differs from the headers does not compile. The comparison is a
/// constant that nothing reads; it leaves no reference to the symbol in the binary.
macro_rules! library {
    ($($part:ident { $(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)* })*) => {
        /// libav: the address of every function that this crate calls.
        #[allow(non_snake_case, reason = "the names are libav's")]
        pub(crate) struct Library {
            $($($name: unsafe extern "C" fn($($type),*) $(-> $result)?,)*)*
            found: Vec<LibavLibrary>,
            // The addresses above hold as long as these.
            _opened: Opened,
        }

        $($(const _: unsafe extern "C" fn($($type),*) $(-> $result)? = ffi::$name;)*)*

        impl Library {
            fn resolve(opened: Opened, found: Vec<LibavLibrary>) -> Result<Self, String> {
                Ok(Self {
                    $($(
                        // SAFETY: the type is the one that the headers declare (compared above), and the library has
                        // the headers' major version, whose functions keep their signatures.
                        $name: unsafe { function(&opened.$part, concat!(stringify!($name), "\0")) }?,
                    )*)*
                    found,
                    _opened: opened,
                })
            }

            $($(
                /// libav's function of this name.
                ///
                /// # Safety
                /// What libav's documentation of the function asks for.
                #[allow(non_snake_case, clippy::too_many_arguments, reason = "names and arguments are libav's")]
                pub(super) unsafe fn $name(&self, $($argument: $type),*) $(-> $result)? {
                    // SAFETY: the address is the function's, of this type; the rest the caller promised.
                    unsafe { (self.$name)($($argument),*) }
                }
            )*)*
        }
    };
}

library! {
    avutil {
        fn av_channel_layout_copy(to: *mut AVChannelLayout, from: *const AVChannelLayout) -> c_int;
        fn av_channel_layout_default(layout: *mut AVChannelLayout, num_channels: c_int);
        fn av_dict_count(dictionary: *const AVDictionary) -> c_int;
        fn av_dict_free(dictionary: *mut *mut AVDictionary);
        fn av_dict_set(
            dictionary: *mut *mut AVDictionary, key: *const c_char, value: *const c_char, flags: c_int
        ) -> c_int;
        fn av_frame_alloc() -> *mut AVFrame;
        fn av_frame_free(frame: *mut *mut AVFrame);
        fn av_frame_get_buffer(frame: *mut AVFrame, align: c_int) -> c_int;
        fn av_frame_make_writable(frame: *mut AVFrame) -> c_int;
        fn av_frame_unref(frame: *mut AVFrame);
        fn av_free(memory: *mut c_void);
        fn av_freep(memory: *mut c_void);
        fn av_get_pix_fmt(name: *const c_char) -> AVPixelFormat;
        fn av_log_set_level(level: c_int);
        fn av_malloc(size: usize) -> *mut c_void;
        fn av_max_alloc(max: usize);
        fn av_strerror(code: c_int, text: *mut c_char, size: usize) -> c_int;
    }
    avcodec {
        fn av_packet_alloc() -> *mut AVPacket;
        fn av_packet_free(packet: *mut *mut AVPacket);
        fn av_packet_rescale_ts(packet: *mut AVPacket, from: AVRational, to: AVRational);
        fn av_packet_unref(packet: *mut AVPacket);
        fn avcodec_alloc_context3(codec: *const AVCodec) -> *mut AVCodecContext;
        fn avcodec_find_decoder(id: AVCodecID) -> *const AVCodec;
        fn avcodec_find_encoder_by_name(name: *const c_char) -> *const AVCodec;
        fn avcodec_flush_buffers(context: *mut AVCodecContext);
        fn avcodec_free_context(context: *mut *mut AVCodecContext);
        fn avcodec_get_name(id: AVCodecID) -> *const c_char;
        fn avcodec_open2(
            context: *mut AVCodecContext, codec: *const AVCodec, options: *mut *mut AVDictionary
        ) -> c_int;
        fn avcodec_parameters_from_context(to: *mut AVCodecParameters, from: *const AVCodecContext) -> c_int;
        fn avcodec_parameters_to_context(to: *mut AVCodecContext, from: *const AVCodecParameters) -> c_int;
        fn avcodec_receive_frame(context: *mut AVCodecContext, frame: *mut AVFrame) -> c_int;
        fn avcodec_receive_packet(context: *mut AVCodecContext, packet: *mut AVPacket) -> c_int;
        fn avcodec_send_frame(context: *mut AVCodecContext, frame: *const AVFrame) -> c_int;
        fn avcodec_send_packet(context: *mut AVCodecContext, packet: *const AVPacket) -> c_int;
    }
    avformat {
        fn av_find_input_format(name: *const c_char) -> *const AVInputFormat;
        fn av_interleaved_write_frame(context: *mut AVFormatContext, packet: *mut AVPacket) -> c_int;
        fn av_read_frame(context: *mut AVFormatContext, packet: *mut AVPacket) -> c_int;
        fn av_seek_frame(context: *mut AVFormatContext, stream: c_int, timestamp: i64, flags: c_int) -> c_int;
        fn av_write_trailer(context: *mut AVFormatContext) -> c_int;
        fn avformat_alloc_context() -> *mut AVFormatContext;
        fn avformat_alloc_output_context2(
            context: *mut *mut AVFormatContext, format: *const AVOutputFormat, name: *const c_char, url: *const c_char
        ) -> c_int;
        fn avformat_close_input(context: *mut *mut AVFormatContext);
        fn avformat_find_stream_info(context: *mut AVFormatContext, options: *mut *mut AVDictionary) -> c_int;
        fn avformat_free_context(context: *mut AVFormatContext);
        fn avformat_new_stream(context: *mut AVFormatContext, codec: *const AVCodec) -> *mut AVStream;
        fn avformat_open_input(
            context: *mut *mut AVFormatContext,
            url: *const c_char,
            format: *const AVInputFormat,
            options: *mut *mut AVDictionary
        ) -> c_int;
        fn avformat_write_header(context: *mut AVFormatContext, options: *mut *mut AVDictionary) -> c_int;
        fn avio_alloc_context(
            buffer: *mut c_uchar,
            size: c_int,
            write_flag: c_int,
            opaque: *mut c_void,
            read: ReadCallback,
            write: WriteCallback,
            seek: SeekCallback
        ) -> *mut AVIOContext;
        fn avio_closep(context: *mut *mut AVIOContext) -> c_int;
        fn avio_context_free(context: *mut *mut AVIOContext);
        fn avio_open(context: *mut *mut AVIOContext, url: *const c_char, flags: c_int) -> c_int;
    }
    swscale {
        fn sws_freeContext(context: *mut SwsContext);
        fn sws_getCoefficients(matrix: c_int) -> *const c_int;
        fn sws_getColorspaceDetails(
            context: *mut SwsContext,
            from: *mut *mut c_int,
            from_range: *mut c_int,
            to: *mut *mut c_int,
            to_range: *mut c_int,
            brightness: *mut c_int,
            contrast: *mut c_int,
            saturation: *mut c_int
        ) -> c_int;
        fn sws_getContext(
            from_width: c_int,
            from_height: c_int,
            from_format: AVPixelFormat,
            to_width: c_int,
            to_height: c_int,
            to_format: AVPixelFormat,
            flags: c_int,
            from_filter: *mut SwsFilter,
            to_filter: *mut SwsFilter,
            parameters: *const f64
        ) -> *mut SwsContext;
        fn sws_scale(
            context: *mut SwsContext,
            from: *const *const u8,
            from_strides: *const c_int,
            first_row: c_int,
            num_rows: c_int,
            to: *const *mut u8,
            to_strides: *const c_int
        ) -> c_int;
        fn sws_setColorspaceDetails(
            context: *mut SwsContext,
            from: *const c_int,
            from_range: c_int,
            to: *const c_int,
            to_range: c_int,
            brightness: c_int,
            contrast: c_int,
            saturation: c_int
        ) -> c_int;
    }
    swresample {
        fn swr_alloc() -> *mut SwrContext;
        fn swr_convert_frame(context: *mut SwrContext, to: *mut AVFrame, from: *const AVFrame) -> c_int;
        fn swr_free(context: *mut *mut SwrContext);
    }
}

impl Library {
    /// libav, opened by the first call of the process and never closed. A failure is kept as well: every later call
    /// gives the same error.
    pub fn get() -> Result<&'static Self, MediaError> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| {
            let library = Self::load(files)?;
            // SAFETY: the call only stores a number.
            unsafe { library.av_log_set_level(ffi::AV_LOG_QUIET as c_int) };
            Ok(library)
        });
        library.as_ref().map_err(|detail| missing(detail))
    }

    /// Opens every part from the first of its files that opens, and looks every function up.
    fn load(files: impl Fn(&Part) -> Vec<String>) -> Result<Self, String> {
        let mut found = Vec::new();
        let mut open = |part: &Part| {
            let files = files(part);
            let (opened, file) = open(&files)?;
            found.push(check_version(part, &opened, file)?);
            Ok::<_, String>(opened)
        };
        let [avutil, avcodec, avformat, swscale, swresample] = &PARTS;
        let opened = Opened {
            avutil: open(avutil)?,
            avcodec: open(avcodec)?,
            avformat: open(avformat)?,
            swscale: open(swscale)?,
            swresample: open(swresample)?,
        };
        Self::resolve(opened, found)
    }
}

/// Where a part is looked for, in this order. A name without a folder is the dynamic linker's to find, also beside the
/// binary if that says so.
fn files(part: &Part) -> Vec<String> {
    let (name, major) = (part.name, part.major);
    if cfg!(target_os = "macos") {
        let file = format!("{name}.{major}.dylib");
        // Homebrew's folders are not among those that the linker searches; an older FFmpeg has one of its own there.
        let folders = ["/opt/homebrew", "/usr/local"]
            .iter()
            .flat_map(|root| [format!("{root}/lib"), format!("{root}/opt/ffmpeg@{FFMPEG}/lib")])
            .map(|folder| format!("{folder}/{file}"));
        std::iter::once(file.clone()).chain(folders).collect()
    } else {
        vec![format!("{name}.so.{major}")]
    }
}

/// Opens the first of the files that opens. The error says what was looked for and what the linker said.
fn open(files: &[String]) -> Result<(libloading::Library, &str), String> {
    let mut errors = Vec::new();
    for file in files {
        // SAFETY: opening runs the initialisers of libav and of what it needs, all ordinary system libraries whose
        // initialisers ask nothing of the program.
        match unsafe { libloading::Library::new(file) } {
            Ok(opened) => return Ok((opened, file)),
            Err(error) => errors.push(error.to_string()),
        }
    }
    let looked_for = files.iter().map(|file| format!("`{file}`")).collect::<Vec<_>>().join(", ");
    Err(format!("looked for {looked_for}, and the dynamic linker says: {}", errors.join("; ")))
}

/// Refuses a library that is not the headers' own or a later minor version of it: only those are sure to have the
/// structs as we read them and the functions as we call them.
fn check_version(part: &Part, opened: &libloading::Library, file: &str) -> Result<LibavLibrary, String> {
    let name = part.version_query;
    // SAFETY: in every version of libav the query takes nothing and gives an unsigned number.
    let query = unsafe { opened.get::<VersionQuery>(name.to_bytes_with_nul()) };
    let query = *query.map_err(|error| format!("`{file}` has no `{}`: {error}", name.to_string_lossy()))?;
    // SAFETY: as above.
    let version = unsafe { query() };
    let (major, minor, micro) = (version >> 16, version >> 8 & 0xff, version & 0xff);
    let file = origin(query).unwrap_or_else(|| file.into());
    if i64::from(major) != i64::from(part.major) || i64::from(minor) < i64::from(part.minor) {
        return Err(format!(
            "`{}` is version {major}.{minor}, expected {}.{} or a later {}.x, with whose headers this program was built",
            file.display(),
            part.major,
            part.minor,
            part.major
        ));
    }
    Ok(LibavLibrary { name: part.name, version: format!("{major}.{minor}.{micro}"), file })
}

/// The address of a function of an opened part. `name` ends with a zero.
///
/// # Safety
/// `F` is the function's type.
unsafe fn function<F: Copy>(opened: &libloading::Library, name: &'static str) -> Result<F, String> {
    // SAFETY: as the caller promised.
    let symbol = unsafe { opened.get::<F>(name.as_bytes()) };
    symbol.map(|symbol| *symbol).map_err(|error| format!("a function is missing: {error}"))
}

/// The file that a function was loaded from, if the dynamic linker tells.
fn origin(function: VersionQuery) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;

    // SAFETY: all-zero is a valid value of this struct of pointers.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked for, and the struct is ours to be written to.
    let is_known = unsafe { libc::dladdr(function as *const c_void, &mut info) } != 0;
    if !is_known || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the linker gives a zero-terminated name that lives as long as the library is open, and it is.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(std::ffi::OsStr::from_bytes(name.to_bytes()).into())
}

/// The error of a machine without a libav that suits this binary, with the way to one.
fn missing(detail: &str) -> MediaError {
    let install = if cfg!(target_os = "macos") {
        format!("`brew install ffmpeg` (or `ffmpeg@{FFMPEG}`, if Homebrew's FFmpeg is newer)")
    } else {
        let packages = PARTS.map(|part| format!("{}{}", part.name, part.major)).join(" ");
        format!("`apt-get install {packages}` on Debian and Ubuntu")
    };
    MediaError::NoLibav {
        detail: format!("FFmpeg {FFMPEG} is needed; {detail}"),
        hint: format!("{install}; where FFmpeg is another version, build vidtune anew with its headers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that every program of the system has open, and that is not libav.
    const NOT_LIBAV: &str = if cfg!(target_os = "macos") { "libSystem.B.dylib" } else { "libc.so.6" };

    fn refusal(files: impl Fn(&Part) -> Vec<String>) -> String {
        Library::load(files).err().unwrap()
    }

    #[test]
    fn a_missing_library_is_told_with_the_fix() {
        let detail = refusal(|part| vec![format!("{}.so.0", part.name), format!("/nowhere/{}.so.0", part.name)]);
        let looked_for = "looked for `libavutil.so.0`, `/nowhere/libavutil.so.0`, and the dynamic linker says: ";
        assert!(detail.starts_with(looked_for), "{detail}");

        let error = missing(&detail);
        assert_eq!((error.reason(), error.path()), ("no_libav", None));
        let text = error.to_string();
        let (what, hint) = text.split_once("; hint: ").unwrap();
        assert!(what.starts_with(&format!("libav cannot be used: FFmpeg {FFMPEG} is needed; looked for ")), "{what}");
        let package = format!("libavcodec{}", ffi::LIBAVCODEC_VERSION_MAJOR);
        let command = if cfg!(target_os = "macos") { "brew install ffmpeg" } else { package.as_str() };
        assert!(hint.contains(command), "{hint}");
    }

    #[test]
    fn the_headers_version_is_looked_for() {
        let major = ffi::LIBAVUTIL_VERSION_MAJOR;
        let files = files(&PARTS[0]);
        if cfg!(target_os = "macos") {
            assert_eq!(files[1], format!("/opt/homebrew/lib/libavutil.{major}.dylib"));
        } else {
            assert_eq!(files, [format!("libavutil.so.{major}")]);
        }
    }

    #[test]
    fn another_library_or_version_is_refused() {
        let detail = refusal(|_| vec![NOT_LIBAV.to_owned()]);
        assert!(detail.starts_with(&format!("`{NOT_LIBAV}` has no `avutil_version`: ")), "{detail}");

        let found = libav_libraries().unwrap();
        let [avutil, ..] = &PARTS;
        let candidates = files(avutil);
        let (opened, file) = open(&candidates).unwrap();
        for (major, minor) in [(avutil.major + 1, 0), (avutil.major - 1, 0), (avutil.major, 256)] {
            let other = Part { name: avutil.name, version_query: avutil.version_query, major, minor };
            let detail = check_version(&other, &opened, file).unwrap_err();
            let expected = format!("expected {major}.{minor} or a later {major}.x");
            assert!(detail.contains(&expected) && detail.contains(file), "{detail}");
        }
        assert_eq!(check_version(avutil, &opened, file).unwrap(), found[0]);
    }

    #[test]
    fn every_thread_gets_the_same_table() {
        let addresses = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| Library::get().unwrap() as *const Library as usize)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(addresses.iter().all(|&address| address == addresses[0]), "{addresses:?}");
    }

    #[test]
    fn what_was_found_is_told() {
        let found = libav_libraries().unwrap();
        assert_eq!(found.iter().map(|library| library.name).collect::<Vec<_>>(), PARTS.map(|part| part.name));
        for (library, part) in found.iter().zip(&PARTS) {
            assert!(library.version.starts_with(&format!("{}.", part.major)), "{library:?}");
            assert!(library.file.is_file(), "{library:?}");
        }
    }
}
