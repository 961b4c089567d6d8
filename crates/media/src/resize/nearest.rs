//! Owns nearest-neighbour scaling; Pillow and torch choose different pixels.
//! It refuses to filter.

use crate::RgbImage;

/// Pillow: the centre of each output pixel, stepped by repeated addition in f64.
pub(super) fn pillow(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let table = |from: u32, to: u32| -> Vec<usize> {
        let step = f64::from(from) / f64::from(to);
        let mut at = step * 0.5;
        (0..to)
            .map(|_| {
                let index = (at as usize).min(from as usize - 1);
                at += step;
                index
            })
            .collect()
    };
    gather(image, &table(image.width, width), &table(image.height, height))
}

/// torch: `floor(i * scale)` in f32.
pub(super) fn torch(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let table = |from: u32, to: u32| -> Vec<usize> {
        let scale = from as f32 / to as f32;
        (0..to).map(|i| ((i as f32 * scale) as usize).min(from as usize - 1)).collect()
    };
    gather(image, &table(image.width, width), &table(image.height, height))
}

fn gather(image: &RgbImage, columns: &[usize], rows: &[usize]) -> RgbImage {
    let stride = image.width as usize * 3;
    let mut data = Vec::with_capacity(columns.len() * rows.len() * 3);
    for &row in rows {
        let row = &image.data[row * stride..(row + 1) * stride];
        for &column in columns {
            data.extend_from_slice(&row[column * 3..column * 3 + 3]);
        }
    }
    RgbImage { width: columns.len() as u32, height: rows.len() as u32, data }
}
