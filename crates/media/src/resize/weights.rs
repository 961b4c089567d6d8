//! Owns the filter weights of one direction: which source pixels make an output pixel, and how much of each.
//! It refuses to touch pixels.

use std::f64::consts::PI;

use super::Filter;

/// Weights of one direction, as integers.
pub(super) struct Weights {
    /// For each output pixel the first source pixel and the number of source pixels.
    pub bounds: Vec<(usize, usize)>,
    /// `stride` weights for each output pixel, of which the first ones count.
    pub values: Vec<i32>,
    /// Weights kept for each output pixel.
    pub stride: usize,
    /// Fraction bits of the weights.
    pub precision: u32,
}

/// Fraction bits of Pillow's weights: 8 bits of colour and 2 of headroom leave 22 of 32.
const PILLOW_PRECISION: u32 = 22;

impl Weights {
    /// Pillow's weights from `from` to `to` pixels.
    pub fn pillow(filter: Filter, from: u32, to: u32) -> Self {
        let float = FloatWeights::new(filter, from, to);
        float.quantise(PILLOW_PRECISION)
    }

    /// torch's weights from `from` to `to` pixels: as many fraction bits as keep the largest weight below 2^15.
    pub fn torch(filter: Filter, from: u32, to: u32) -> Self {
        let float = FloatWeights::new(filter, from, to);
        let largest = float.values.iter().copied().fold(0.0, f64::max);
        let mut precision = 0;
        while precision < PILLOW_PRECISION && ((0.5 + largest * f64::from(1u32 << (precision + 1))) as i64) < 1 << 15 {
            precision += 1;
        }
        float.quantise(precision)
    }

    /// The weights of output pixel `i`, and the first source pixel they belong to.
    pub fn of(&self, i: usize) -> (usize, &[i32]) {
        let (first, count) = self.bounds[i];
        (first, &self.values[i * self.stride..i * self.stride + count])
    }
}

/// Weights before rounding.
struct FloatWeights {
    bounds: Vec<(usize, usize)>,
    values: Vec<f64>,
    stride: usize,
}

impl FloatWeights {
    fn new(filter: Filter, from: u32, to: u32) -> Self {
        let scale = f64::from(from) / f64::from(to);
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let inverse = 1.0 / filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let mut bounds = Vec::with_capacity(to as usize);
        let mut values = vec![0.0; to as usize * stride];
        for (i, row) in values.chunks_exact_mut(stride).enumerate() {
            let center = (i as f64 + 0.5) * scale;
            let first = ((center - support + 0.5) as i64).max(0);
            let end = ((center + support + 0.5) as i64).min(i64::from(from));
            let count = (end - first).clamp(0, stride as i64) as usize;
            let mut sum = 0.0;
            for (j, value) in row[..count].iter_mut().enumerate() {
                *value = filter.at(((j as i64 + first) as f64 - center + 0.5) * inverse);
                sum += *value;
            }
            if sum != 0.0 {
                for value in &mut row[..count] {
                    *value /= sum;
                }
            }
            bounds.push((first as usize, count));
        }
        Self { bounds, values, stride }
    }

    fn quantise(self, precision: u32) -> Weights {
        let one = f64::from(1u32 << precision);
        let round = |value: f64| if value < 0.0 { (value * one - 0.5) as i32 } else { (value * one + 0.5) as i32 };
        Weights {
            bounds: self.bounds,
            values: self.values.into_iter().map(round).collect(),
            stride: self.stride,
            precision,
        }
    }
}

impl Filter {
    /// Half the width of the kernel, in source pixels at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The kernel at `x`.
    fn at(self, x: f64) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Hamming => {
                let x = x.abs();
                if x == 0.0 {
                    1.0
                } else if x >= 1.0 {
                    0.0
                } else {
                    let x = x * PI;
                    x.sin() / x * (0.54 + 0.46 * x.cos())
                }
            }
            Self::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos => {
                if (-3.0..3.0).contains(&x) {
                    sinc(x) * sinc(x / 3.0)
                } else {
                    0.0
                }
            }
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * PI;
    x.sin() / x
}
