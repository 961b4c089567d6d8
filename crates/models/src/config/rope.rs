//! Rotary position embedding parameters: both spellings of the configuration (`rope_parameters` of transformers 5,
//! `rope_theta` + `rope_scaling` before) and the inverse frequencies of each type. Owns no table of angles.
//!
//! Source: `transformers/modeling_rope_utils.py`; Su et al. 2021 (RoPE), Peng et al. 2023 (YaRN).

use super::fields::Fields;
use crate::error::Result;
use serde_json::Value;
use std::f64::consts::PI;

/// How frequencies are stretched beyond the length of pre-training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeKind {
    /// No scaling.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// Divisor of the frequencies.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a smooth ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Start of the ramp.
        low_freq_factor: f64,
        /// End of the ramp.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max: f64,
    },
    /// YaRN: a ramp over dimensions between interpolation and extrapolation.
    Yarn {
        /// Divisor of the interpolated frequencies.
        factor: f64,
        /// Scale of cos and sin.
        attention_factor: f64,
        /// Rotations above which a dimension is extrapolated.
        beta_fast: f64,
        /// Rotations below which a dimension is interpolated.
        beta_slow: f64,
        /// Context length of pre-training.
        original_max: f64,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
}

/// Rotary parameters of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base wavelength.
    pub theta: f64,
    /// Rotated dimensions of each head (even).
    pub dim: usize,
    /// Scaling type.
    pub kind: RopeKind,
    /// M-RoPE: how many of the frequencies turn with time, height and width, in this order, from the first one on.
    pub sections: Option<[usize; 3]>,
}

/// What a class adds to the rotary fields.
#[derive(Debug, Clone, Copy)]
pub struct RopeClass {
    /// Its base wavelength.
    pub theta: f64,
    /// Whether positions have three numbers (`mrope_section`).
    pub is_mrope: bool,
}

impl RopeClass {
    /// One number a position and a base of 10000.
    pub const PLAIN: RopeClass = RopeClass { theta: 10_000.0, is_mrope: false };
}

impl RopeConfig {
    /// Reads the rotary fields of a text configuration whose heads have `head_dim` dimensions.
    pub fn read(fields: &Fields<'_>, head_dim: usize, max_positions: usize, class: RopeClass) -> Result<RopeConfig> {
        let top_theta = fields.f64_or("rope_theta", class.theta)?;
        let top_partial = fields.f64_or("partial_rotary_factor", 1.0)?;
        // Where both spellings are given the reference takes the older one, if it says anything.
        let older = fields.raw("rope_scaling").filter(|v| v.as_object().is_none_or(|o| !o.is_empty()));
        let scaling = match (fields.raw("rope_parameters"), older) {
            (_, Some(s)) => Some(("rope_scaling", s)),
            (Some(p), None) => Some(("rope_parameters", p)),
            (None, None) => None,
        };
        let Some((name, value)) = scaling else {
            let plain = RopeConfig::finish(fields, "rope_theta", top_theta, head_dim, 1.0, RopeKind::Default)?;
            return plain.with_sections(fields, class, None);
        };
        let sub = Fields::new(format!("{}/{name}", fields.place()), value)?;
        let theta = sub.f64_or("rope_theta", top_theta)?;
        let partial = sub.f64_or("partial_rotary_factor", top_partial)?;
        let legacy = sub.str_or("type", "default")?;
        let kind_name = sub.str_or("rope_type", &legacy)?;
        let original = || sub.f64_or("original_max_position_embeddings", max_positions as f64);
        let need = |field: &str| match sub.raw(field) {
            Some(_) => sub.f64_or(field, 0.0),
            None => Err(sub.error(field, format!("is required by rope type `{kind_name}`"))),
        };
        let kind = match kind_name.as_str() {
            "default" => RopeKind::Default,
            "mrope" if class.is_mrope => RopeKind::Default,
            "linear" => RopeKind::Linear { factor: need("factor")? },
            "llama3" => RopeKind::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max: original()?,
            },
            "yarn" => {
                let original_max = original()?;
                let factor = sub.f64_or("factor", max_positions as f64 / original_max)?;
                let (mscale, mscale_all) = (sub.f64_or("mscale", 0.0)?, sub.f64_or("mscale_all_dim", 0.0)?);
                let mscale_of = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                let inferred = if mscale != 0.0 && mscale_all != 0.0 {
                    mscale_of(mscale) / mscale_of(mscale_all)
                } else {
                    mscale_of(1.0)
                };
                RopeKind::Yarn {
                    factor,
                    attention_factor: sub.f64_or("attention_factor", inferred)?,
                    beta_fast: sub.f64_or("beta_fast", 32.0)?,
                    beta_slow: sub.f64_or("beta_slow", 1.0)?,
                    original_max,
                    truncate: sub.bool_or("truncate", true)?,
                }
            }
            other => {
                return Err(
                    sub.error("rope_type", format!("expected default, linear, llama3 or yarn, found `{other}`"))
                );
            }
        };
        let sections = if class.is_mrope { sub.raw("mrope_section") } else { None };
        sub.finish()?;
        // The unscaled rotation of Llama and Qwen2 turns whole heads, whatever the factor says.
        let partial = if kind == RopeKind::Default { 1.0 } else { partial };
        RopeConfig::finish(fields, name, theta, head_dim, partial, kind)?.with_sections(fields, class, sections)
    }

    /// Adds the sections of a class that has them; the reference takes 16, 24 and 24 where the file says nothing.
    fn with_sections(self, fields: &Fields<'_>, class: RopeClass, found: Option<&Value>) -> Result<RopeConfig> {
        if !class.is_mrope {
            return Ok(self);
        }
        let sections = match found {
            None => Some([16, 24, 24]),
            Some(list) => list.as_array().and_then(|list| {
                let numbers: Option<Vec<usize>> = list.iter().map(|n| n.as_u64().map(|n| n as usize)).collect();
                numbers?.try_into().ok()
            }),
        };
        match sections.filter(|sections: &[usize; 3]| sections.iter().sum::<usize>() == self.dim / 2) {
            Some(sections) => Ok(RopeConfig { sections: Some(sections), ..self }),
            None => Err(fields.error(
                "mrope_section",
                format!(
                    "expected three numbers whose sum is {} (half of the rotated dimensions), found `{}`",
                    self.dim / 2,
                    found.map_or("[16, 24, 24] by default".to_owned(), Value::to_string)
                ),
            )),
        }
    }

    /// For each frequency the axis (time, height, width) whose position it turns with.
    pub fn axes(&self) -> Vec<usize> {
        let sections = self.sections.unwrap_or([self.dim / 2, 0, 0]);
        (0..3).flat_map(|axis| std::iter::repeat_n(axis, sections[axis])).collect()
    }

    fn finish(
        fields: &Fields<'_>,
        field: &str,
        theta: f64,
        head_dim: usize,
        partial: f64,
        kind: RopeKind,
    ) -> Result<RopeConfig> {
        let dim = (head_dim as f64 * partial) as usize;
        if dim == 0 || !dim.is_multiple_of(2) || dim > head_dim {
            return Err(fields
                .error(field, format!("expected an even number of rotated dimensions of {head_dim}, found `{dim}`")));
        }
        Ok(RopeConfig { theta, dim, kind, sections: None })
    }

    /// Inverse frequencies, `dim / 2` values in radians a position.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let dim = self.dim as f64;
        let plain = (0..self.dim / 2).map(|i| 1.0 / self.theta.powf(2.0 * i as f64 / dim));
        match self.kind {
            RopeKind::Default => plain.map(|f| f as f32).collect(),
            RopeKind::Linear { factor } => plain.map(|f| (f / factor) as f32).collect(),
            RopeKind::Llama3 { factor, low_freq_factor, high_freq_factor, original_max } => plain
                .map(|f| {
                    let wavelength = 2.0 * PI / f;
                    let scaled = if wavelength > original_max / low_freq_factor {
                        f / factor
                    } else if wavelength < original_max / high_freq_factor {
                        f
                    } else {
                        let smooth =
                            (original_max / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    };
                    scaled as f32
                })
                .collect(),
            RopeKind::Yarn { factor, beta_fast, beta_slow, original_max, truncate, .. } => {
                let correction =
                    |rotations: f64| (dim * (original_max / (rotations * 2.0 * PI)).ln()) / (2.0 * self.theta.ln());
                let (mut low, mut high) = (correction(beta_fast), correction(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                plain
                    .enumerate()
                    .map(|(i, f)| {
                        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        (f / factor * ramp + f * (1.0 - ramp)) as f32
                    })
                    .collect()
            }
        }
    }

    /// Scale of cos and sin.
    pub fn attention_factor(&self) -> f32 {
        match self.kind {
            RopeKind::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The rotary parameters that `LlamaConfig` of transformers 5.23 ends up with, for heads of 16 dimensions.
    #[test]
    fn both_spellings_and_a_partial_factor_are_taken_as_the_reference_takes_them() {
        let check = |config: Value, theta: f64, kind: RopeKind| {
            let fields = Fields::new("config.json", &config).unwrap();
            let found = RopeConfig::read(&fields, 16, 2048, RopeClass::PLAIN).unwrap();
            assert_eq!((found.theta, found.dim, found.kind), (theta, 16, kind), "{config}");
        };
        let (new, old) = (
            json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}),
            json!({"type": "linear", "factor": 4.0}),
        );
        check(json!({"rope_parameters": new}), 500.0, RopeKind::Linear { factor: 2.0 });
        check(json!({"rope_parameters": new, "rope_scaling": old}), 10_000.0, RopeKind::Linear { factor: 4.0 });
        check(json!({"rope_parameters": new, "rope_scaling": {}}), 500.0, RopeKind::Linear { factor: 2.0 });
        check(json!({"rope_parameters": new, "rope_scaling": null}), 500.0, RopeKind::Linear { factor: 2.0 });
        check(json!({"partial_rotary_factor": 0.5, "rope_theta": 300.0}), 300.0, RopeKind::Default);
        let partial = json!({"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5});
        check(json!({"rope_parameters": partial}), 300.0, RopeKind::Default);
    }
}
