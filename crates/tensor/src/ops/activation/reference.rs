//! Activations in f64, straight from their definitions.

use super::Activation;

/// a(x) and a'(x). The derivative is a central difference, so that it shares nothing with the kernel's formula.
pub(super) fn value_and_slope(a: Activation, x: f32) -> (f32, f32) {
    let f = |x: f64| match a {
        Activation::Gelu => x * 0.5 * erfc(-x / std::f64::consts::SQRT_2),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
    };
    let x = f64::from(x);
    let h = 1e-5;
    let slope = if a == Activation::Relu { f64::from(x > 0.0) } else { (f(x + h) - f(x - h)) / (2.0 * h) };
    (f(x) as f32, slope as f32)
}

/// The complementary error function by its series (|x| < 3) or its continued fraction.
fn erfc(x: f64) -> f64 {
    if x.abs() < 3.0 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-18 {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        return 1.0 - 2.0 / std::f64::consts::PI.sqrt() * sum;
    }
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    let mut fraction = x;
    for n in (1..60).rev() {
        fraction = x + 0.5 * f64::from(n) / fraction;
    }
    (-x * x).exp() / (std::f64::consts::PI.sqrt() * fraction)
}
