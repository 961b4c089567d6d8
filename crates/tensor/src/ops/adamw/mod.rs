//! AdamW (Loshchilov and Hutter 2019) in one pass over parameter, gradient and both moments, all f32.
//!
//! As `torch.optim.AdamW`: p -= lr * weight_decay * p; m += (1 - beta1)(g - m); v = beta2 v + (1 - beta2) g^2;
//! p -= lr / c1 * m / (sqrt(v) / sqrt(c2) + eps). Equal to torch's within f32 rounding; g is multiplied by
//! `grad_scale` first.

use crate::error::{Error, Result};
use crate::simd::multiversion;
use crate::threads;

/// The numbers of one AdamW step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// 1 - beta1^step, with step counted from 1.
    pub bias_correction1: f64,
    /// 1 - beta2^step.
    pub bias_correction2: f64,
    /// Factor of the gradient (clipping).
    pub grad_scale: f64,
}

/// One AdamW step over one weight, in place; equally long slices.
pub fn adamw_step(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], o: &AdamW) -> Result<()> {
    for (what, len) in [("g", g.len()), ("m", m.len()), ("v", v.len())] {
        if len != p.len() {
            return Err(Error::argument("adamw_step", format!("`{what}` has {len} elements, `p` has {}", p.len())));
        }
    }
    let (m, v) = (threads::Shared::new(m), threads::Shared::new(v));
    threads::for_each_rows(p, 1, |range, p| {
        // SAFETY: pieces are disjoint.
        let (m, v) = unsafe { (m.slice(range.clone()), v.slice(range.clone())) };
        step_piece(p, &g[range], m, v, o);
    });
    Ok(())
}

multiversion! {
    fn step_piece(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], o: &AdamW) {
        let (keep, step, root) = (1.0 - o.lr * o.weight_decay, o.lr / o.bias_correction1, o.bias_correction2.sqrt());
        let (keep, step, root, eps) = (keep as f32, step as f32, root as f32, o.eps as f32);
        // The complements are taken in f64: in f32, 1 - 0.999 is off by 2e-5.
        let (c1, b2, c2) = ((1.0 - o.beta1) as f32, o.beta2 as f32, (1.0 - o.beta2) as f32);
        let grad_scale = o.grad_scale as f32;
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * grad_scale;
            *m += c1 * (g - *m);
            *v = b2 * *v + c2 * g * g;
            *p = *p * keep - step * *m / (v.sqrt() / root + eps);
        }
    }
}
