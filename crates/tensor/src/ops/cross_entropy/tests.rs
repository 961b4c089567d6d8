//! The loss kernel against the plain reference, and the operator's refusals.

use super::{cpu, reference};
use crate::dtype::DType;
use crate::error::Error;
use crate::ops::linear::LinearWeights;
use crate::ops::testing::{agree, random};
use crate::param::Param;
use crate::tape::Tape;
use crate::tensor::Tensor;

#[test]
fn kernel_agrees_with_reference() {
    for (t, vocabulary) in [(1, 1), (3, 17), (70, 1000)] {
        let mut z: Vec<f32> = random(1, t * vocabulary).iter().map(|z| 30.0 * z).collect();
        let rows: Vec<(usize, f32)> = (0..t).map(|i| (i * 7 % vocabulary, 0.25 * i as f32)).collect();
        let (nll, dz) = reference::losses(&z, vocabulary, &rows);
        assert!(agree(&cpu::losses(&mut z.clone(), vocabulary, &rows, false), &nll, 1e-6));
        assert!(agree(&cpu::losses(&mut z, vocabulary, &rows, true), &nll, 1e-6));
        assert!(agree(&z, &dz, 1e-6));
    }
}

#[test]
fn bad_targets_are_refused_by_position() {
    let tape = Tape::inference();
    let hidden = tape.constant(Tensor::zeros(&[3, 2], DType::F32).unwrap());
    let head = LinearWeights::new(Param::new("head", Tensor::zeros(&[5, 2], DType::F32).unwrap()), None);
    for bad in [5, -1, -101] {
        let error = tape.linear_cross_entropy(&hidden, &head, &[0, -100, bad], &[1.0; 3]).unwrap_err();
        assert!(matches!(error, Error::Index { position: 2, index, limit: 5, .. } if index == i64::from(bad)));
    }
    assert!(tape.linear_cross_entropy(&hidden, &head, &[0, 0], &[1.0; 3]).is_err());
    let uniform = tape.linear_cross_entropy(&hidden, &head, &[0, -100, 4], &[1.0; 3]).unwrap();
    assert!((uniform.nll[0] - 5f32.ln()).abs() < 1e-6 && uniform.nll[1] == 0.0);
}
