//! The kernels against definitions in f64 and difference quotients.

use super::{Activation, cpu, reference};
use crate::ops::testing::{agree, random};

const ALL: [Activation; 5] =
    [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Silu, Activation::Relu];

#[test]
fn kernels_agree_with_definitions() {
    for a in ALL {
        for len in [0, 1, 15, 16, 33, 70_001] {
            let x: Vec<f32> = random(1, len).iter().map(|x| 8.0 * x).collect();
            let (up, g) = (random(2, len), random(3, len));
            let (value, slope): (Vec<f32>, Vec<f32>) = x.iter().map(|&x| reference::value_and_slope(a, x)).unzip();
            let product = |a: &[f32], b: &[f32]| -> Vec<f32> { a.iter().zip(b).map(|(a, b)| a * b).collect() };
            let mut y = vec![f32::NAN; len];
            cpu::forward(a, &x, &mut y);
            assert!(agree(&y, &value, 3e-7), "{a:?} {len}");
            let mut dx = x.clone();
            cpu::backward(a, &g, &mut dx);
            assert!(agree(&dx, &product(&g, &slope), 2e-6), "{a:?} {len}");
            if len == 0 {
                continue;
            }
            let mut both = [&x[..], &up].concat();
            cpu::gated_forward(a, len, &both, &mut y);
            assert!(agree(&y, &product(&value, &up), 3e-7), "{a:?} {len}");
            cpu::gated_backward(a, len, &g, &mut both);
            let (dgate, dup) = both.split_at(len);
            assert!(agree(dgate, &product(&product(&g, &up), &slope), 2e-6), "{a:?} {len}");
            assert!(agree(dup, &product(&g, &value), 1e-6), "{a:?} {len}");
        }
    }
}

#[test]
fn nan_stays_and_unknown_names_are_refused() {
    for a in ALL {
        let mut y = [0.0; 2];
        cpu::forward(a, &[f32::NAN, 1.0], &mut y);
        assert!(y[0].is_nan() && y[1].is_finite(), "{a:?}");
    }
    let message = "gelu_10".parse::<Activation>().unwrap_err().to_string();
    assert!(message.starts_with("`activation`: `gelu_10` is not known; known are `gelu`"), "{message}");
}
