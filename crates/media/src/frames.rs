//! Owns videos that are given as pictures: a folder of frames or a list of files.
//! It refuses to guess a rate: the caller gives it.

use std::path::{Path, PathBuf};

use crate::{Frame, Limits, MediaError, is_image, load_image};

/// Endings of picture files. A file so named counts as a frame even if it is broken: it must not vanish in silence.
const ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

/// The picture files of a folder, in the order of their names' bytes. Hidden files, folders, and files that are no
/// pictures by name nor by content do not count.
///
/// # Errors
/// [`MediaError::NoFrames`] if there are none, [`MediaError::BadRequest`] if `dir` is a file, and those of reading.
pub fn list_frame_folder(dir: &Path) -> Result<Vec<PathBuf>, MediaError> {
    let io = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotADirectory => MediaError::BadRequest {
            detail: format!("`{}` is a file, and a folder of frames is wanted", dir.display()),
        },
        _ => MediaError::io(dir, error),
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
        let is_named = ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()));
        if !is_hidden && path.is_file() && (is_named || is_image(&path)) {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(MediaError::NoFrames { path: dir.to_path_buf(), detail: "the folder holds no pictures".into() });
    }
    files.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    Ok(files)
}

/// Loads the chosen pictures of a list as frames; the n-th file is shown at `n / fps` seconds.
///
/// # Errors
/// [`MediaError::BadRequest`] for an impossible rate or number, and those of [`load_image`].
pub fn load_frame_files(
    files: &[PathBuf],
    indices: &[usize],
    fps: f64,
    limits: &Limits,
) -> Result<Vec<Frame>, MediaError> {
    if !(fps > 0.0 && fps.is_finite()) {
        return Err(MediaError::BadRequest { detail: format!("frames at {fps} a second") });
    }
    indices
        .iter()
        .map(|&index| {
            let Some(path) = files.get(index) else {
                return Err(MediaError::BadRequest {
                    detail: format!("frame {index} does not exist: the list has {} files", files.len()),
                });
            };
            Ok(Frame { image: load_image(path, limits)?, index, seconds: index as f64 / fps, damaged: false })
        })
        .collect()
}
