//! The projection layer of every family. LoRA is a variant of it, so families never mention adapters.

use crate::error::Result;
use crate::weights::{Builder, Init, Part};
use tensor::{DType, LinearWeights, Param, Tape, Var};

/// Deviation of randomly initialised projections, as `initializer_range` of the reference classes.
pub const INIT_STD: f32 = 0.02;

/// A module `y = x W^T + b (+ scale B A x)` with its canonical path.
#[derive(Clone)]
pub struct Linear {
    /// Canonical module path (`…self_attn.q_proj`).
    pub path: String,
    /// Part of the model.
    pub part: Part,
    /// Whether a forward pass can come here.
    pub reached: bool,
    /// The weights; `lora` is set while an adapter is active.
    pub weights: LinearWeights,
}

impl Linear {
    /// Builds `path.weight` `[out, in]` and, if asked, `path.bias` `[out]`.
    pub fn build(
        b: &mut Builder<'_>,
        path: &str,
        input: usize,
        output: usize,
        bias: bool,
        part: Part,
    ) -> Result<Linear> {
        Linear::build_as(b, path, &[output, input], &[output, input], bias, part)
    }

    /// As [`Linear::build`] for a weight with another shape on disk (a convolution over patches).
    pub fn build_as(
        b: &mut Builder<'_>,
        path: &str,
        disk: &[usize],
        shape: &[usize; 2],
        bias: bool,
        part: Part,
    ) -> Result<Linear> {
        let weight = b.weight_as(&format!("{path}.weight"), disk, shape, Init::Normal(INIT_STD), part)?;
        let bias = match bias {
            true => Some(b.weight(&format!("{path}.bias"), &shape[..1], Init::Constant(0.0), part)?),
            false => None,
        };
        Ok(Linear {
            path: path.into(),
            part,
            reached: b.reached(),
            weights: LinearWeights { weight, bias, lora: None },
        })
    }

    /// A projection that shares its weight with another module (a tied head).
    pub fn tied(path: &str, weight: Param, part: Part) -> Linear {
        Linear { path: path.into(), part, reached: true, weights: LinearWeights { weight, bias: None, lora: None } }
    }

    /// `x [t, in] -> [t, out]`, in x's dtype.
    pub fn forward(&self, t: &Tape, x: &Var) -> tensor::Result<Var> {
        t.linear(x, &self.weights)
    }

    /// `x [t, in] -> [t, out]` for the residual stream, in f32.
    pub fn forward_wide(&self, t: &Tape, x: &Var) -> tensor::Result<Var> {
        t.linear_as(x, &self.weights, DType::F32)
    }

    /// `residual + self(x)`, the addition riding on the product's accumulation.
    pub fn forward_add(&self, t: &Tape, x: &Var, residual: Var) -> tensor::Result<Var> {
        t.linear_add(x, &self.weights, residual)
    }
}

/// A normalisation with a weight and, for LayerNorm, a bias.
#[derive(Clone)]
pub struct Norm {
    weight: Param,
    bias: Option<Param>,
    eps: f32,
    /// The dtype of what it gives.
    to: DType,
}

impl Norm {
    /// `RMSNorm(width)` in front of projections: it gives activations of the model's dtype.
    pub fn rms(b: &mut Builder<'_>, path: &str, width: usize, eps: f32, part: Part) -> Result<Norm> {
        let weight = b.weight(&format!("{path}.weight"), &[width], Init::Constant(1.0), part)?;
        Ok(Norm { weight, bias: None, eps, to: b.compute() })
    }

    /// `LayerNorm(width)` in front of projections: it gives activations of the model's dtype.
    pub fn layer(b: &mut Builder<'_>, path: &str, width: usize, eps: f32, part: Part) -> Result<Norm> {
        let [weight, bias] = b.layer_norm(path, width, part)?;
        Ok(Norm { weight, bias: Some(bias), eps, to: b.compute() })
    }

    /// The same norm within the residual stream, which is f32.
    pub fn within_residual(self) -> Norm {
        Norm { to: DType::F32, ..self }
    }

    /// `x [t, width] -> [t, width]`.
    pub fn forward(&self, t: &Tape, x: &Var) -> tensor::Result<Var> {
        match &self.bias {
            Some(bias) => t.layer_norm_as(x, &self.weight, bias, self.eps, self.to),
            None => t.rms_norm_as(x, &self.weight, self.eps, self.to),
        }
    }
}
