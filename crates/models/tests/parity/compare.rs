//! Comparison of a tensor with the reference's, whole or by norm and projections, with a tolerance that says where it
//! comes from. Owns the projection vectors (fixtures/models/README.md), no golden data.

use crate::fixture::{f32s, f64s};
use hub::SafeTensors;

/// How far a tensor may be from the reference's.
#[derive(Clone, Copy)]
pub struct Tolerance {
    /// Of an element, relative to itself.
    pub relative: f64,
    /// Of an element, relative to the root mean square of its tensor: elements near zero are sums that cancel.
    pub floor: f64,
    /// Of an element, absolute: what rounding leaves of larger terms that cancelled.
    pub absolute: f64,
    /// Of the norm and of a projection, relative to the norm. An error spread like noise moves a projection by
    /// `1 / sqrt(3)` of its norm.
    pub projection: f64,
}

/// Element `i` of projection vector `which` for a tensor name.
pub fn projection_element(seed: u64, which: u64, i: u64) -> f64 {
    let counter = (which << 32).wrapping_add(i + 1);
    let mut z = seed.wrapping_add(counter.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 40) as f64 / f64::from(1u32 << 23) - 1.0
}

/// 64-bit FNV-1a of a tensor's name.
pub fn name_seed(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3))
}

/// `[norm, p0, p1, p2, p3]` of a tensor.
fn project(name: &str, values: &[f32]) -> Vec<f64> {
    let seed = name_seed(name);
    let sum = |f: &dyn Fn(u64, f64) -> f64| -> f64 {
        values.iter().enumerate().map(|(i, &x)| f(i as u64, f64::from(x))).sum()
    };
    let mut out = vec![sum(&|_, x| x * x).sqrt()];
    out.extend((0..4).map(|k| sum(&|i, x| x * projection_element(seed, k, i))));
    out
}

/// Compares element by element; the message names the worst element.
pub fn check_elements(what: &str, ours: &[f32], theirs: &[f32], t: Tolerance) -> Result<(), String> {
    if ours.len() != theirs.len() {
        return Err(format!("{what}: {} elements, expected {}", ours.len(), theirs.len()));
    }
    let square: f64 = theirs.iter().map(|&x| f64::from(x).powi(2)).sum();
    let rms = (square / theirs.len().max(1) as f64).sqrt();
    let mut worst = (0.0, 0);
    for (i, (&a, &b)) in ours.iter().zip(theirs).enumerate() {
        let allowed = t.relative * f64::from(b).abs() + t.floor * rms + t.absolute;
        let off = f64::from(a) - f64::from(b);
        let ratio = if off == 0.0 { 0.0 } else { off.abs() / allowed };
        // Not a number compares as nothing and must not pass.
        if ratio.is_nan() || ratio > worst.0 {
            worst = (if ratio.is_nan() { f64::INFINITY } else { ratio }, i);
        }
    }
    let (ratio, i) = worst;
    if ratio <= 1.0 {
        return Ok(());
    }
    Err(format!("{what}: element {i} is {}, expected {} ({ratio:.1} times the tolerance)", ours[i], theirs[i]))
}

/// Compares a tensor with `prefix.name` or `prefix_proj.name` of a fixture.
pub fn check_tensor(file: &SafeTensors, prefix: &str, name: &str, ours: &[f32], t: Tolerance) -> Result<(), String> {
    if let Some(theirs) = f32s(file, &format!("{prefix}.{name}")) {
        return check_elements(&format!("{prefix} {name}"), ours, &theirs, t);
    }
    let Some(theirs) = f64s(file, &format!("{prefix}_proj.{name}")) else {
        return Err(format!("the fixture has no {prefix} of `{name}`"));
    };
    let (mine, norm) = (project(name, ours), theirs[0]);
    if norm == 0.0 && mine[0] == 0.0 {
        return Ok(()); // All of it is zero, which has no direction.
    }
    let allowed = t.projection + t.absolute * (ours.len() as f64).sqrt() / norm;
    for (k, (a, b)) in mine.iter().zip(&theirs).enumerate() {
        let off = (a - b).abs() / norm;
        if off.is_nan() || off > allowed {
            let kind = if k == 0 { "norm".to_owned() } else { format!("projection {}", k - 1) };
            return Err(format!("{prefix} {name}: {kind} is {a:.9e}, expected {b:.9e} ({off:.1e} of the norm)"));
        }
    }
    Ok(())
}

/// Fails with every message of a list of comparisons.
pub fn demand(what: &str, results: impl IntoIterator<Item = Result<(), String>>) {
    let errors: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    assert!(errors.is_empty(), "{what}: {} comparisons failed:\n  {}", errors.len(), errors.join("\n  "));
}
