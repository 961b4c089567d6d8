//! Owns the picture types [`RgbImage`] and [`Frame`] and the writing of PNG.
//! It refuses to read files and to scale pictures.

use std::path::Path;

use crate::MediaError;

/// An RGB picture, 8 bits a channel.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `height * width * 3` bytes, row-major, R then G then B.
    pub data: Vec<u8>,
}

impl RgbImage {
    /// A picture filled with one colour.
    pub fn filled(width: u32, height: u32, rgb: [u8; 3]) -> Self {
        Self { width, height, data: rgb.repeat(width as usize * height as usize) }
    }

    /// A picture from its bytes; an error if their number is not `width * height * 3`.
    pub fn from_rgb(width: u32, height: u32, data: Vec<u8>) -> Result<Self, MediaError> {
        let wanted = width as usize * height as usize * 3;
        if data.len() != wanted || wanted == 0 {
            return Err(MediaError::BadRequest {
                detail: format!(
                    "a {width}x{height} RGB picture has {wanted} bytes (not zero), {} were given",
                    data.len()
                ),
            });
        }
        Ok(Self { width, height, data })
    }

    /// The colour at column `x` and row `y`, which must lie inside.
    pub fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        let at = (y as usize * self.width as usize + x as usize) * 3;
        [self.data[at], self.data[at + 1], self.data[at + 2]]
    }

    /// Sets the colour at column `x` and row `y`; outside the picture it does nothing.
    pub fn set_pixel(&mut self, x: u32, y: u32, rgb: [u8; 3]) {
        if x < self.width && y < self.height {
            let at = (y as usize * self.width as usize + x as usize) * 3;
            self.data[at..at + 3].copy_from_slice(&rgb);
        }
    }
}

impl std::fmt::Debug for RgbImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RgbImage({}x{})", self.width, self.height)
    }
}

/// One frame of a video, with its true time.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// The picture, upright (rotation applied), at the source's size.
    pub image: RgbImage,
    /// Number in presentation order, from 0.
    pub index: usize,
    /// Presentation time in seconds from the first frame's clock, as the container gives it.
    pub seconds: f64,
    /// Whether the decoder reported and concealed errors inside this frame. Never true for frames read from images.
    pub damaged: bool,
}

/// The picture as the bytes of a PNG file.
pub fn encode_png(image: &RgbImage) -> Result<Vec<u8>, MediaError> {
    let mut bytes = Vec::new();
    let failed = |error: png::EncodingError| MediaError::BadRequest { detail: format!("cannot encode PNG: {error}") };
    let mut encoder = png::Encoder::new(&mut bytes, image.width, image.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(&image.data).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}

/// Writes the picture as a PNG file, whole or not at all (a temporary name beside it, then a rename).
pub fn write_png(path: &Path, image: &RgbImage) -> Result<(), MediaError> {
    let bytes = encode_png(image)?;
    let failed = |error: std::io::Error| MediaError::Encode { path: path.to_path_buf(), detail: error.to_string() };
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path)).map_err(|error| {
        let _ = std::fs::remove_file(&partial);
        failed(error)
    })
}
