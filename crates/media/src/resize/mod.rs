//! Owns scaling of RGB pictures, equal to Pillow and torchvision to the last bit.
//! It refuses other pixel formats, and every filter that neither library has.

mod nearest;
mod passes;
mod weights;

use crate::RgbImage;
use weights::Weights;

/// Filters, by Pillow's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// Nearest neighbour.
    Nearest,
    /// Triangle, support 1.
    Bilinear,
    /// Cubic convolution with a = -0.5, support 2.
    Bicubic,
    /// Sinc windowed by its centre lobe, support 3.
    Lanczos,
    /// Box, support 0.5.
    Box,
    /// Sinc windowed by a Hamming window, support 1.
    Hamming,
}

/// Which direction is scaled first; the bits of the result depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PassOrder {
    /// Pillow up to 12, and torch: rows first, always.
    HorizontalFirst,
    /// Pillow 13: columns first where the height shrinks by more than twice what the width shrinks.
    Pillow13,
}

/// Scales as `PIL.Image.resize((width, height), filter)` of Pillow 12 does.
///
/// Filter weights are computed in f64 and kept as integers with 22 fraction bits; each pass rounds and clips to 8 bits.
/// `width` and `height` must not be 0.
pub fn pillow(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    pillow_ordered(image, width, height, filter, PassOrder::HorizontalFirst)
}

/// [`pillow`] with the pass order of another release.
pub fn pillow_ordered(image: &RgbImage, width: u32, height: u32, filter: Filter, order: PassOrder) -> RgbImage {
    assert!(width > 0 && height > 0, "a picture cannot be scaled to {width}x{height}");
    if filter == Filter::Nearest {
        return nearest::pillow(image, width, height);
    }
    let is_vertical_first = order == PassOrder::Pillow13
        && height < image.height
        && i64::from(image.height - height) > 2 * (i64::from(image.width) - i64::from(width));
    let horizontal = || Weights::pillow(filter, image.width, width);
    let vertical = || Weights::pillow(filter, image.height, height);
    two_passes(image, width, height, horizontal, vertical, is_vertical_first)
}

/// Scales as torchvision's uint8 `resize(..., antialias=True)` does on the CPU: `Bilinear`, `Bicubic`, `Lanczos`, and
/// `Nearest` (which knows no antialiasing).
///
/// Filter weights are 16-bit integers whose number of fraction bits follows from the largest weight; rows first.
/// torch has neither `Box` nor `Hamming`: they give Pillow's kernel in torch's arithmetic, which no reference checks.
/// `width` and `height` must not be 0.
pub fn torchvision(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    assert!(width > 0 && height > 0, "a picture cannot be scaled to {width}x{height}");
    if filter == Filter::Nearest {
        return nearest::torch(image, width, height);
    }
    let horizontal = || Weights::torch(filter, image.width, width);
    let vertical = || Weights::torch(filter, image.height, height);
    two_passes(image, width, height, horizontal, vertical, false)
}

/// Scales the directions whose size changes.
fn two_passes(
    image: &RgbImage,
    width: u32,
    height: u32,
    horizontal: impl Fn() -> Weights,
    vertical: impl Fn() -> Weights,
    is_vertical_first: bool,
) -> RgbImage {
    let rows = |image: &RgbImage| RgbImage {
        width,
        height: image.height,
        data: passes::horizontal(&image.data, image.width as usize, image.height as usize, &horizontal()),
    };
    let columns = |image: &RgbImage| RgbImage {
        width: image.width,
        height,
        data: passes::vertical(&image.data, image.width as usize, &vertical()),
    };
    match (width != image.width, height != image.height) {
        (false, false) => image.clone(),
        (true, false) => rows(image),
        (false, true) => columns(image),
        (true, true) if is_vertical_first => rows(&columns(image)),
        (true, true) => columns(&rows(image)),
    }
}
