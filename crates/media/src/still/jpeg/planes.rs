//! Owns the way from component planes to RGB: upsampling as libjpeg's "fancy" triangle filter does it, then colour.
//! It refuses sampling factors that do not divide each other.

use super::super::Fault;
use super::header::{Frame, Header};
use crate::RgbImage;

/// Samples of one component, filled up to whole blocks.
pub(super) struct Plane {
    data: Vec<u8>,
    stride: usize,
    /// Samples that belong to the picture.
    width: usize,
    height: usize,
}

impl Plane {
    /// An empty plane of `size` samples in `blocks` blocks (across, down).
    pub fn new(size: (usize, usize), blocks: (usize, usize)) -> Self {
        Self { data: vec![0; blocks.0 * blocks.1 * 64], stride: blocks.0 * 8, width: size.0, height: size.1 }
    }

    /// The samples from the block's first one on, and the distance of its rows.
    pub fn block_mut(&mut self, x: usize, y: usize) -> (&mut [u8], usize) {
        (&mut self.data[y * 8 * self.stride + x * 8..], self.stride)
    }

    fn row(&self, y: usize) -> &[u8] {
        &self.data[y * self.stride..y * self.stride + self.width]
    }

    /// The row beside `y`, above or below; at the edges the row itself.
    fn beside(&self, y: usize, is_below: bool) -> &[u8] {
        self.row(if is_below { (y + 1).min(self.height - 1) } else { y.saturating_sub(1) })
    }
}

/// How a component's rows become rows of the picture.
#[derive(Clone, Copy)]
enum Upsampling {
    Full,
    /// Twice as wide, triangle filter.
    FancyH2,
    /// Twice as high, triangle filter.
    FancyV2,
    /// Both.
    FancyH2V2,
    /// Repetition: across, down.
    Repeat(usize, usize),
}

impl Upsampling {
    fn choose(frame: &Frame, component: usize, plane: &Plane) -> Result<Self, Fault> {
        let (max_h, max_v) = frame.max_sampling();
        let component = &frame.components[component];
        if max_h % component.h != 0 || max_v % component.v != 0 {
            return Err(Fault::Unsupported("sampling factors that do not divide each other".into()));
        }
        let is_wide = plane.width > 2;
        Ok(match (max_h / component.h, max_v / component.v) {
            (1, 1) => Self::Full,
            (2, 1) if is_wide => Self::FancyH2,
            (2, 2) if is_wide => Self::FancyH2V2,
            (1, 2) => Self::FancyV2,
            (h, v) => Self::Repeat(h, v),
        })
    }

    /// Writes row `y` of the picture.
    fn row(self, plane: &Plane, y: usize, sums: &mut Vec<u16>, out: &mut [u8]) {
        match self {
            Self::Full => out.copy_from_slice(&plane.row(y)[..out.len()]),
            Self::FancyH2 => fancy_h2(plane.row(y), out),
            Self::FancyV2 => {
                let is_below = y % 2 == 1;
                let bias = if is_below { 2 } else { 1 };
                let (near, far) = (plane.row(y / 2), plane.beside(y / 2, is_below));
                for ((out, &near), &far) in out.iter_mut().zip(near).zip(far) {
                    *out = ((u16::from(near) * 3 + u16::from(far) + bias) >> 2) as u8;
                }
            }
            Self::FancyH2V2 => {
                let (near, far) = (plane.row(y / 2), plane.beside(y / 2, y % 2 == 1));
                sums.clear();
                sums.extend(near.iter().zip(far).map(|(&near, &far)| u16::from(near) * 3 + u16::from(far)));
                fancy_h2v2(sums, out);
            }
            Self::Repeat(h, v) => {
                for (out, &sample) in out.chunks_mut(h).zip(plane.row(y / v)) {
                    out.fill(sample);
                }
            }
        }
    }
}

/// Three quarters of the nearer sample and one of the farther; halves are rounded down and up in turn.
fn fancy_h2(row: &[u8], out: &mut [u8]) {
    let at = |x: usize| u16::from(row[x]);
    let last = row.len() - 1;
    let value = |x: usize, is_right: bool| match (x, is_right) {
        (0, false) => at(0),
        (x, true) if x == last => at(last),
        (x, false) => (at(x) * 3 + at(x - 1) + 1) >> 2,
        (x, true) => (at(x) * 3 + at(x + 1) + 2) >> 2,
    };
    for (x, out) in out.chunks_mut(2).enumerate() {
        out[0] = value(x, false) as u8;
        if let Some(right) = out.get_mut(1) {
            *right = value(x, true) as u8;
        }
    }
}

/// As [`fancy_h2`], over sums of two rows that weigh four.
fn fancy_h2v2(sums: &[u16], out: &mut [u8]) {
    let last = sums.len() - 1;
    let value = |x: usize, is_right: bool| match (x, is_right) {
        (0, false) => (sums[0] * 4 + 8) >> 4,
        (x, true) if x == last => (sums[last] * 4 + 7) >> 4,
        (x, false) => (sums[x] * 3 + sums[x - 1] + 8) >> 4,
        (x, true) => (sums[x] * 3 + sums[x + 1] + 7) >> 4,
    };
    for (x, out) in out.chunks_mut(2).enumerate() {
        out[0] = value(x, false) as u8;
        if let Some(right) = out.get_mut(1) {
            *right = value(x, true) as u8;
        }
    }
}

/// What the components are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Colors {
    Grey,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

impl Colors {
    /// libjpeg's guess: JFIF says YCbCr, an Adobe segment says which, then the components' names.
    fn guess(frame: &Frame, header: &Header) -> Self {
        let ids: Vec<u8> = frame.components.iter().map(|component| component.id).collect();
        match (ids.as_slice(), header.adobe_transform) {
            ([_], _) => Self::Grey,
            ([_, _, _, _], Some(2)) => Self::Ycck,
            ([_, _, _, _], _) => Self::Cmyk,
            (_, _) if header.has_jfif => Self::YCbCr,
            (_, Some(0)) => Self::Rgb,
            (_, Some(_)) => Self::YCbCr,
            ([b'R', b'G', b'B'], None) => Self::Rgb,
            _ => Self::YCbCr,
        }
    }
}

/// The picture in RGB.
pub(super) fn to_rgb(frame: &Frame, header: &Header, planes: &[Plane]) -> Result<RgbImage, Fault> {
    let colors = Colors::guess(frame, header);
    let mut upsampling = Vec::new();
    for (i, plane) in planes.iter().enumerate() {
        upsampling.push(Upsampling::choose(frame, i, plane)?);
    }
    let (width, height) = (frame.width, frame.height);
    let mut rows = vec![vec![0u8; width]; planes.len()];
    let mut sums = Vec::new();
    let mut data = vec![0; width * height * 3];
    for (y, out) in data.chunks_exact_mut(width * 3).enumerate() {
        for ((plane, upsampling), row) in planes.iter().zip(&upsampling).zip(&mut rows) {
            upsampling.row(plane, y, &mut sums, row);
        }
        convert_row(colors, &rows, out);
    }
    Ok(RgbImage { width: width as u32, height: height as u32, data })
}

fn convert_row(colors: Colors, rows: &[Vec<u8>], out: &mut [u8]) {
    for (x, out) in out.chunks_exact_mut(3).enumerate() {
        let rgb = match colors {
            Colors::Grey => [rows[0][x]; 3],
            Colors::Rgb => [rows[0][x], rows[1][x], rows[2][x]],
            Colors::YCbCr => from_ycbcr(rows[0][x], rows[1][x], rows[2][x]),
            // Pillow takes every four-colour JPEG for an inverted one, as Adobe writes them.
            Colors::Cmyk => from_cmyk([rows[0][x], rows[1][x], rows[2][x]].map(|c| 255 - c), 255 - rows[3][x]),
            Colors::Ycck => from_cmyk(from_ycbcr(rows[0][x], rows[1][x], rows[2][x]), 255 - rows[3][x]),
        };
        out.copy_from_slice(&rgb);
    }
}

/// ITU-R BT.601 at full range, in integers with 16 fraction bits.
#[inline(always)]
fn from_ycbcr(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let r = y + ((91_881 * cr + HALF) >> 16);
    let g = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let b = y + ((116_130 * cb + HALF) >> 16);
    [r, g, b].map(|value| value.clamp(0, 255) as u8)
}

/// Pillow's conversion of four colours to three.
fn from_cmyk(cmy: [u8; 3], k: u8) -> [u8; 3] {
    let light = i32::from(255 - k);
    cmy.map(|ink| {
        let product = i32::from(ink) * light + 128;
        (light - ((product + (product >> 8)) >> 8)).clamp(0, 255) as u8
    })
}
