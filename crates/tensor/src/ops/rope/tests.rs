//! The kernel against the plain reference, and that rotating back undoes it.

use super::{Heads, cpu, reference};
use crate::ops::testing::{agree, random};

#[test]
fn kernel_agrees_with_reference_and_back() {
    for (t, heads, d, half) in [(1, 1, 2, 1), (5, 3, 10, 5), (9, 2, 64, 32), (300, 2, 32, 11)] {
        let x = random(1, t * heads * d);
        let (cos, sin): (Vec<f32>, Vec<f32>) = random(2, t * half).iter().map(|a| (a.cos(), a.sin())).unzip();
        let expected = reference::rotate(&x, heads, d, &cos, &sin, half);
        let mut found = x.clone();
        let which = Heads { num_heads: heads, head_dim: d, half };
        cpu::rotate(&mut found, heads * d, &which, &cos, &sin, 1.0);
        assert!(agree(&found, &expected, 1e-6));
        cpu::rotate(&mut found, heads * d, &which, &cos, &sin, -1.0);
        assert!(agree(&found, &x, 1e-6));
    }
}
