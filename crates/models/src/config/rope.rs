//! Rotary position embedding parameters: both spellings of the configuration (`rope_parameters` of transformers 5,
//! `rope_theta` + `rope_scaling` before) and the inverse frequencies of each type. Owns no table of angles.
//!
//! Source: `transformers/modeling_rope_utils.py`; Su et al. 2021 (RoPE), Peng et al. 2023 (YaRN), Ding et al. 2024
//! (LongRoPE).

use super::fields::Fields;
use super::text::DecoderFamily;
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
    /// LongRoPE: a divisor for each frequency, of which there are two sets.
    LongRope {
        /// Divisors up to the context length of pre-training.
        short_factor: Vec<f64>,
        /// Divisors of a sequence that is longer.
        long_factor: Vec<f64>,
        /// Scale of cos and sin, the same for both.
        attention_factor: f64,
        /// Context length of pre-training.
        original_max: usize,
    },
}

/// Rotary parameters of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base wavelength.
    pub theta: f64,
    /// Dimensions of each head that the frequencies are made for; of an odd number one more is rotated.
    pub dim: usize,
    /// Scaling type.
    pub kind: RopeKind,
    /// M-RoPE: how many of the frequencies turn with time, height and width, in this order, from the first one on.
    pub sections: Option<[usize; 3]>,
    /// M-RoPE of Qwen3-VL: height and width take every third frequency as long as their sections last, time the others.
    pub is_interleaved: bool,
}

impl RopeConfig {
    /// Reads the rotary fields of a text configuration whose heads have `head_dim` dimensions.
    pub fn read(
        fields: &Fields<'_>,
        family: DecoderFamily,
        head_dim: usize,
        max_positions: usize,
    ) -> Result<RopeConfig> {
        let phi = family == DecoderFamily::Phi3;
        use DecoderFamily::{OneVision15, Qwen2Vl, Qwen3Vl};
        let is_mrope = matches!(family, Qwen2Vl | Qwen3Vl);
        let class_theta = match family {
            Qwen2Vl | OneVision15 => 1e6,
            Qwen3Vl => 5e5,
            _ => 1e4,
        };
        let top_theta = fields.f64_or("rope_theta", class_theta)?;
        let top_partial = fields.f64_or("partial_rotary_factor", 1.0)?;
        let top_original = fields.usize_opt("original_max_position_embeddings")?;
        // Where both spellings are given the reference takes the older one, if it says anything.
        let older = fields.raw("rope_scaling").filter(|v| v.as_object().is_none_or(|o| !o.is_empty()));
        let scaling = match (fields.raw("rope_parameters"), older) {
            (_, Some(s)) => Some(("rope_scaling", s)),
            (Some(p), None) => Some(("rope_parameters", p)),
            (None, None) => None,
        };
        let Some((name, value)) = scaling else {
            let partial = if phi { top_partial } else { 1.0 };
            let plain = RopeConfig::finish(fields, "rope_theta", top_theta, head_dim, partial, RopeKind::Default)?;
            return if is_mrope { plain.with_sections(fields, None, family) } else { Ok(plain) };
        };
        let sub = Fields::new(format!("{}/{name}", fields.place()), value)?;
        let theta = sub.f64_or("rope_theta", top_theta)?;
        let partial = sub.f64_or("partial_rotary_factor", top_partial)?;
        let legacy = sub.str_or("type", "default")?;
        let mut kind_name = sub.str_or("rope_type", &legacy)?;
        if phi && ["su", "yarn"].contains(&kind_name.as_str()) {
            kind_name = "longrope".into();
        }
        if phi && !["default", "longrope"].contains(&kind_name.as_str()) {
            return Err(sub.error("rope_type", format!("expected default or longrope, found `{kind_name}`")));
        }
        // What the configuration itself says wins over its rotary object; Phi's class always says something.
        let top_original = top_original.or(phi.then_some(4096));
        let inner_original = sub.usize_opt("original_max_position_embeddings")?;
        let original_max = top_original.or(inner_original).unwrap_or(max_positions);
        let original = original_max as f64;
        let need = |field: &str| match sub.raw(field) {
            Some(_) => sub.f64_or(field, 0.0),
            None => Err(sub.error(field, format!("is required by rope type `{kind_name}`"))),
        };
        let kind = match kind_name.as_str() {
            "default" => RopeKind::Default,
            "mrope" if matches!(family, Qwen2Vl | OneVision15) => RopeKind::Default,
            "linear" => RopeKind::Linear { factor: need("factor")? },
            "llama3" => RopeKind::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max: original,
            },
            "yarn" => {
                let original_max = original;
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
            // Its longer sequences start again from their words, which pictures are not.
            "longrope" if family != Qwen3Vl => {
                let factor = sub.f64_or("factor", max_positions as f64 / original_max as f64)?;
                let inferred =
                    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original_max as f64).ln()).sqrt() };
                RopeKind::LongRope {
                    short_factor: numbers(&sub, "short_factor")?,
                    long_factor: numbers(&sub, "long_factor")?,
                    attention_factor: sub.f64_or("attention_factor", inferred)?,
                    original_max,
                }
            }
            other => {
                let known = match family {
                    Qwen3Vl => "default, linear, llama3 or yarn",
                    _ => "default, linear, llama3, yarn or longrope",
                };
                return Err(sub.error("rope_type", format!("expected {known}, found `{other}`")));
            }
        };
        let has_sections = is_mrope || family == OneVision15;
        let sections = if has_sections { sub.raw("mrope_section") } else { None };
        if family == Qwen3Vl && !sub.bool_or("mrope_interleaved", true)? {
            return Err(sub.error("mrope_interleaved", "expected true, as the class does it whatever the file says"));
        }
        sub.finish()?;
        // The unscaled rotation of all but Phi turns whole heads, whatever the factor says.
        let partial = if kind == RopeKind::Default && !phi { 1.0 } else { partial };
        let plain = RopeConfig::finish(fields, name, theta, head_dim, partial, kind)?;
        if is_mrope { plain.with_sections(fields, sections, family) } else { Ok(plain) }
    }

    /// Adds the sections of a class that has them, or what the reference takes where the file says nothing.
    fn with_sections(self, fields: &Fields<'_>, found: Option<&Value>, family: DecoderFamily) -> Result<RopeConfig> {
        let is_interleaved = family == DecoderFamily::Qwen3Vl;
        let default = if is_interleaved { [24, 20, 20] } else { [16, 24, 24] };
        let sections = match found {
            None => Some(default),
            Some(list) => list.as_array().and_then(|list| {
                let numbers: Option<Vec<usize>> = list.iter().map(|n| n.as_u64().map(|n| n as usize)).collect();
                numbers?.try_into().ok()
            }),
        };
        let (half, found) = (self.dim / 2, found.map_or(format!("{default:?} by default"), Value::to_string));
        // Interleaved ones end with the frequencies, however long they are.
        let fits = |sections: &[usize; 3]| is_interleaved || sections.iter().sum::<usize>() == half;
        match sections.filter(fits) {
            Some(sections) => Ok(RopeConfig { sections: Some(sections), is_interleaved, ..self }),
            None if is_interleaved => {
                Err(fields.error("mrope_section", format!("expected three numbers, found `{found}`")))
            }
            None => Err(fields.error(
                "mrope_section",
                format!("expected three numbers whose sum is {half} (half of the rotated dimensions), found `{found}`"),
            )),
        }
    }

    /// For each frequency the axis (time, height, width) whose position it turns with.
    pub fn axes(&self) -> Vec<usize> {
        let half = self.dim.div_ceil(2);
        match self.sections {
            None => vec![0; half],
            Some(sections) if self.is_interleaved => {
                (0..half).map(|i| if i < 3 * sections[i % 3] { i % 3 } else { 0 }).collect()
            }
            Some(sections) => (0..3).flat_map(|axis| std::iter::repeat_n(axis, sections[axis])).collect(),
        }
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
        if dim == 0 || 2 * dim.div_ceil(2) > head_dim {
            return Err(fields
                .error(field, format!("expected an even number of rotated dimensions of {head_dim}, found `{dim}`")));
        }
        if let RopeKind::LongRope { short_factor, long_factor, .. } = &kind {
            for (name, factors) in [("short_factor", short_factor), ("long_factor", long_factor)] {
                if factors.len() != dim.div_ceil(2) {
                    let (wanted, found) = (dim.div_ceil(2), factors.len());
                    return Err(fields.error(field, format!("`{name}`: expected {wanted} numbers, found {found}")));
                }
            }
        }
        Ok(RopeConfig { theta, dim, kind, sections: None, is_interleaved: false })
    }

    /// The length beyond which a sequence is turned by other frequencies.
    pub fn switch(&self) -> Option<usize> {
        match self.kind {
            RopeKind::LongRope { original_max, .. } => Some(original_max),
            _ => None,
        }
    }

    /// Inverse frequencies of a sequence within the switch or beyond it, one for two rotated dimensions, in radians a
    /// position.
    pub fn inverse_frequencies(&self, beyond: bool) -> Vec<f32> {
        let dim = self.dim as f64;
        let plain = (0..self.dim.div_ceil(2)).map(|i| 1.0 / self.theta.powf(2.0 * i as f64 / dim));
        match self.kind {
            RopeKind::LongRope { ref short_factor, ref long_factor, .. } => {
                let factors = if beyond { long_factor } else { short_factor };
                plain.zip(factors).map(|(f, factor)| (f / factor) as f32).collect()
            }
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
            RopeKind::Yarn { attention_factor, .. } | RopeKind::LongRope { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        }
    }
}

/// A list of positive numbers that must be there.
fn numbers(fields: &Fields<'_>, name: &str) -> Result<Vec<f64>> {
    let wrong = |found: &str| fields.error(name, format!("expected a list of positive numbers, found `{found}`"));
    let value = fields.raw(name).ok_or_else(|| wrong("null"))?;
    let list = value.as_array().map(|list| list.iter().map(|v| v.as_f64().filter(|v| *v > 0.0)).collect());
    list.flatten().ok_or_else(|| wrong(&value.to_string()))
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
            let found = RopeConfig::read(&fields, DecoderFamily::Llama, 16, 2048).unwrap();
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
    /// `rope_parameters` of `Phi3Config`, and what `_compute_longrope_parameters` makes of them.
    #[test]
    fn long_ranges_have_frequencies_of_their_own() {
        let read = |config: Value, family| {
            let fields = Fields::new("config.json", &config).unwrap();
            RopeConfig::read(&fields, family, 16, 131_072)
        };
        let factors = json!({"type": "su", "short_factor": [1.0, 1.0, 2.0], "long_factor": [2, 4, 8]});
        let phi = json!({"partial_rotary_factor": 0.4, "rope_scaling": factors});
        let found = read(phi.clone(), DecoderFamily::Phi3).unwrap();
        assert_eq!((found.dim, found.switch()), (6, Some(4096)));
        // sqrt(1 + ln 32 / ln 4096)
        assert!((found.attention_factor() - 1.190_238_1).abs() < 1e-6);
        let (short, long) = (found.inverse_frequencies(false), found.inverse_frequencies(true));
        assert_eq!((short[0], long[0], short[2] / long[2]), (1.0, 0.5, 4.0));
        // What the configuration itself says wins over the object's own, and a factor over the ratio of lengths.
        let mut both = phi.clone();
        both["original_max_position_embeddings"] = json!(100);
        both["rope_scaling"]["original_max_position_embeddings"] = json!(50);
        both["rope_scaling"]["factor"] = json!(100.0);
        let found = read(both, DecoderFamily::Phi3).unwrap();
        assert_eq!((found.switch(), found.attention_factor()), (Some(100), 2f32.sqrt()));
        let refused = |config, family, expected: &str| {
            let error = read(config, family).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        refused(phi.clone(), DecoderFamily::Llama, "expected default, linear, llama3, yarn or longrope, found `su`");
        refused(
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
            DecoderFamily::Phi3,
            "expected default or longrope",
        );
        let mut short = phi;
        short["rope_scaling"]["long_factor"] = json!([1.0]);
        refused(short, DecoderFamily::Phi3, "`long_factor`: expected 3 numbers, found 1");
    }
}
