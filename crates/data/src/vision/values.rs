//! Owns [`Values`]: the way from a picture's bytes to what the model takes, and back.
//! It refuses to know shapes: it maps one byte of one channel.
//!
//! Source: `transformers` 5.23 `image_processing_backends.py`. Values equal the reference bit for bit: they are the same
//! f32 operations in the same order, looked up in a table of 256 values a channel.

use super::fields::Fields;
use super::settings::ImageBackend;
use crate::error::DataError;

/// Keys that [`Values::read`] reads.
pub(crate) const KEYS: [&str; 5] = ["do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"];

/// The values of bytes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Values {
    rescale: Option<f64>,
    normalize: Option<([f64; 3], [f64; 3])>,
    /// `table[channel][byte]`: the value of a byte.
    table: Box<[[f32; 256]; 3]>,
}

impl Values {
    /// Reads how values are scaled and normalised; `mean` and `std` are the class's own.
    ///
    /// # Errors
    /// A setting of another type than expected.
    pub fn read(fields: &Fields<'_>, backend: ImageBackend, mean: [f64; 3], std: [f64; 3]) -> Result<Self, DataError> {
        let config = fields.config;
        let rescale = match (fields.flag("do_rescale", true)?, config.get("rescale_factor")) {
            (false, _) => None,
            (true, None) => Some(1.0 / 255.0),
            (true, Some(value)) => {
                let factor = value.as_f64().filter(|f| *f > 0.0);
                Some(factor.ok_or_else(|| fields.wrong("rescale_factor", "a number above 0"))?)
            }
        };
        let normalizes = fields.flag("do_normalize", true)?;
        let channels = |key: &str, default: [f64; 3]| match config.get(key) {
            None => Ok(default),
            Some(serde_json::Value::Null) if !normalizes => Ok(default),
            Some(serde_json::Value::Number(n)) => Ok([n.as_f64().unwrap_or_default(); 3]),
            Some(value) => {
                let list =
                    value.as_array().and_then(|l| l.iter().map(serde_json::Value::as_f64).collect::<Option<Vec<_>>>());
                list.and_then(|l| <[f64; 3]>::try_from(l).ok())
                    .ok_or_else(|| fields.wrong(key, "three numbers, one a channel"))
            }
        };
        let (mean, std) = (channels("image_mean", mean)?, channels("image_std", std)?);
        if std.iter().any(|s| *s <= 0.0) {
            return Err(fields.bad("`image_std` must be above 0", "use 1 for a channel that is not scaled"));
        }
        let normalize = normalizes.then_some((mean, std));
        Ok(Self { rescale, normalize, table: table(backend, rescale, normalize) })
    }

    /// The same settings in the arithmetic of another library.
    pub fn with_backend(self, backend: ImageBackend) -> Self {
        Self { table: table(backend, self.rescale, self.normalize), ..self }
    }

    /// The mean of each channel, where values are normalised.
    pub fn mean(&self) -> Option<[f64; 3]> {
        self.normalize.map(|(mean, _)| mean)
    }

    /// The value of every byte of a channel.
    pub fn of_channel(&self, channel: usize) -> &[f32; 256] {
        &self.table[channel]
    }

    /// The byte that has this value.
    pub fn byte(&self, channel: usize, value: f32) -> u8 {
        // The table rises with the byte.
        self.table[channel].partition_point(|known| *known < value).min(255) as u8
    }
}

/// The value of every byte of every channel, in the reference's order of operations.
fn table(backend: ImageBackend, rescale: Option<f64>, normalize: Option<([f64; 3], [f64; 3])>) -> Box<[[f32; 256]; 3]> {
    let mut table = Box::new([[0.0f32; 256]; 3]);
    for (channel, row) in table.iter_mut().enumerate() {
        for (byte, value) in row.iter_mut().enumerate() {
            let byte = byte as f32;
            *value = match (backend, rescale, normalize) {
                // Mean and deviation are scaled up instead of the picture down.
                (ImageBackend::Torchvision, Some(factor), Some((mean, std))) => {
                    let up = (1.0 / factor) as f32;
                    (byte - mean[channel] as f32 * up) / (std[channel] as f32 * up)
                }
                (ImageBackend::Torchvision, Some(factor), None) => byte * factor as f32,
                (ImageBackend::Pillow, Some(factor), None) => (f64::from(byte) * factor) as f32,
                (ImageBackend::Pillow, Some(factor), Some((mean, std))) => {
                    ((f64::from(byte) * factor) as f32 - mean[channel] as f32) / std[channel] as f32
                }
                (_, None, Some((mean, std))) => (byte - mean[channel] as f32) / std[channel] as f32,
                (_, None, None) => byte,
            };
        }
    }
    table
}
