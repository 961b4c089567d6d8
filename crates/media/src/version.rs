//! Owns the names of the arithmetic behind pixels, for whoever keeps pixels and must know whether a file would still
//! give the same ones. It refuses to keep anything itself.

use crate::{MediaError, libav_libraries};

/// Goes up with every change after which some file gives other pixels or other times: decoding, colours, turning,
/// scaling.
const REVISION: u32 = 1;

/// What makes the pixels of still pictures and of scaled ones.
pub fn picture_version() -> String {
    format!("vidtune {} revision {REVISION}", env!("CARGO_PKG_VERSION"))
}

/// What makes the frames of videos: libav as it is found when the program runs, on this kind of processor, because the
/// colour conversion of libav has other code, with other roundings, for every generation of them.
///
/// # Errors
/// [`MediaError::NoLibav`].
pub fn video_version() -> Result<String, MediaError> {
    let libraries = libav_libraries()?;
    let libraries: Vec<String> = libraries.iter().map(|found| format!("{} {}", found.name, found.version)).collect();
    let (pictures, arch, features) = (picture_version(), std::env::consts::ARCH, processor_features().join(" "));
    Ok(format!("{pictures}, {}, {arch} {features}", libraries.join(", ")))
}

/// The extensions that libav chooses its code by.
#[cfg(target_arch = "x86_64")]
fn processor_features() -> Vec<&'static str> {
    let known = [
        ("ssse3", std::arch::is_x86_feature_detected!("ssse3")),
        ("sse4.1", std::arch::is_x86_feature_detected!("sse4.1")),
        ("sse4.2", std::arch::is_x86_feature_detected!("sse4.2")),
        ("avx", std::arch::is_x86_feature_detected!("avx")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
    ];
    known.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn processor_features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_videos_names_every_library() {
        let text = video_version().unwrap();
        assert!(text.starts_with(&picture_version()), "{text}");
        for name in ["libavutil", "libavcodec", "libavformat", "libswscale", "libswresample"] {
            assert!(text.contains(name), "{text}");
        }
    }
}
