//! Owns [`Pictures`]: processors that give every picture and every frame the same treatment, one placeholder for each.
//! It refuses clips that are taken together: a clip is its frames here.

use media::RgbImage;

use super::Placeholder;
use super::settings::ImageSettings;

/// Picture settings with the number of tokens that a picture takes.
#[derive(Debug, Clone)]
pub(crate) struct Pictures {
    pub settings: ImageSettings,
    pub token: Placeholder,
    pub patch: usize,
    /// Tokens beside the patches (a class token), less the one that the `default` strategy drops.
    pub extra: i64,
}

impl Pictures {
    /// Tokens of a picture of this size.
    pub fn count(&self, height: usize, width: usize) -> usize {
        let [_, rows, columns] = self.grid(height, width);
        usize::try_from((rows * columns) as i64 + self.extra).unwrap_or(0)
    }

    /// Patches of a picture of this size.
    pub fn grid(&self, height: usize, width: usize) -> [usize; 3] {
        [1, height / self.patch, width / self.patch]
    }

    /// Writes the values `[3, H, W]` of pictures at the end of `values`.
    pub fn write(&self, pictures: &[RgbImage], values: &mut Vec<f32>) {
        for picture in pictures {
            let start = values.len();
            values.resize(start + picture.data.len(), 0.0);
            self.settings.write_values(picture, &mut values[start..]);
        }
    }

    /// The pictures of values `[n, 3, H, W]`.
    pub fn undo(&self, values: &[f32], height: usize, width: usize) -> Vec<RgbImage> {
        let size = (3 * height * width).max(1);
        values.chunks_exact(size).map(|values| self.settings.undo(values, height, width)).collect()
    }
}
