//! The kernel against the plain reference, over sizes that fill, straddle and miss vectors and pieces.

use super::{cpu, reference};
use crate::gradients::Write;
use crate::ops::testing::{agree, random};

#[test]
fn kernel_agrees_with_reference() {
    for (t, n) in [(0, 5), (1, 1), (3, 16), (5, 17), (130, 33), (3, 5000)] {
        let (x, w, g) = (random(1, t * n), random(2, n), random(3, t * n));
        let (y, inverse) = reference::forward(&x, &w, 1e-5);
        let (mut y_found, mut inverse_found) = (vec![f32::NAN; t * n], vec![f32::NAN; t]);
        cpu::forward(&x, &w, 1e-5, &mut y_found, &mut inverse_found);
        assert!(agree(&y_found, &y, 2e-6) && agree(&inverse_found, &inverse, 2e-6), "{t} {n}");
        let (dx, dw) = reference::backward(&g, &x, &w, &inverse);
        let (mut dx_found, mut dw_found) = (vec![f32::NAN; t * n], vec![f32::NAN; n]);
        cpu::input_gradient(&g, &x, &w, &inverse, &mut dx_found, Write::Replace);
        cpu::weight_gradient(&g, &x, &inverse, &mut dw_found, Write::Replace).unwrap();
        assert!(agree(&dx_found, &dx, 5e-6) && agree(&dw_found, &dw, 5e-6), "{t} {n}");
        cpu::input_gradient(&g, &x, &w, &inverse, &mut dx_found, Write::Add);
        let twice: Vec<f32> = dx.iter().map(|x| 2.0 * x).collect();
        assert!(agree(&dx_found, &twice, 5e-6), "{t} {n}: adding");
    }
}
