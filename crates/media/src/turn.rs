//! Owns turning and mirroring of pictures by right angles.
//! It refuses other angles.

use crate::RgbImage;

/// A turn of a picture before it is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Clockwise: 0, 90, 180, 270.
    pub degrees: u32,
    /// Mirror left and right before turning.
    pub is_mirrored: bool,
}

impl Turn {
    /// The quarter turn nearest to a display matrix, and whether it mirrors.
    pub fn from_matrix(matrix: &[i32; 9]) -> Self {
        let [a, b, c, d] = [matrix[0], matrix[1], matrix[3], matrix[4]].map(f64::from);
        let is_mirrored = a * d - b * c < 0.0;
        // The matrix maps a source point (x, y) to (a x + c y, b x + d y), y downwards. A mirror is taken out first.
        let (a, b) = if is_mirrored { (-a, -b) } else { (a, b) };
        let quarter = (b.atan2(a).to_degrees() / 90.0).round() as i64;
        Self { degrees: (quarter.rem_euclid(4) * 90) as u32, is_mirrored }
    }

    /// Whether width and height change places.
    pub fn swaps_sides(self) -> bool {
        self.degrees % 180 == 90
    }

    /// The picture, mirrored and turned.
    pub fn apply(self, image: RgbImage) -> RgbImage {
        if self == Self::default() {
            return image;
        }
        let (width, height) = (image.width as usize, image.height as usize);
        let (out_width, out_height) = if self.swaps_sides() { (height, width) } else { (width, height) };
        let mut data = Vec::with_capacity(image.data.len());
        for y in 0..out_height {
            for x in 0..out_width {
                // The place in the mirrored picture that comes to (x, y).
                let (source_x, source_y) = match self.degrees {
                    90 => (y, height - 1 - x),
                    180 => (width - 1 - x, height - 1 - y),
                    270 => (width - 1 - y, x),
                    _ => (x, y),
                };
                let source_x = if self.is_mirrored { width - 1 - source_x } else { source_x };
                let at = (source_y * width + source_x) * 3;
                data.extend_from_slice(&image.data[at..at + 3]);
            }
        }
        RgbImage { width: out_width as u32, height: out_height as u32, data }
    }
}
