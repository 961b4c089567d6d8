//! Configuration of M2M100 and NLLB, class defaults included. Every field is read, known to be inert, or refused by name.
//!
//! Source: `M2M100Config` of `transformers`.

use crate::config::fields::Fields;
use crate::error::Result;
use serde_json::Value;
use tensor::Activation;

/// One side of the model.
#[derive(Debug, Clone)]
pub struct SideConfig {
    /// Number of blocks.
    pub num_layers: usize,
    /// Attention heads; divides the width.
    pub num_heads: usize,
    /// Width of the MLP.
    pub ffn_width: usize,
    /// Probability that a block is left out of a training step (Fan et al. 2020).
    pub layerdrop: f32,
}

/// Probabilities of dropout in training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropouts {
    /// `dropout`: of embeddings and of what each sublayer adds to the residual stream.
    pub residual: f32,
    /// `attention_dropout`: of attention probabilities.
    pub attention: f32,
    /// `activation_dropout`: inside of the MLP.
    pub activation: f32,
}

/// A pre-norm encoder-decoder with sinusoidal positions.
#[derive(Debug, Clone)]
pub struct Seq2SeqConfig {
    /// Rows of the embedding tables.
    pub vocab_size: usize,
    /// Width of the residual streams (`d_model`).
    pub width: usize,
    /// The side that reads the source.
    pub encoder: SideConfig,
    /// The side that writes the target.
    pub decoder: SideConfig,
    /// Activation of the MLPs.
    pub activation: Activation,
    /// Dropout in training.
    pub dropout: Dropouts,
    /// Factor of embeddings: the root of the width with `scale_embedding`, else 1.
    pub embed_scale: f32,
    /// Whether both tables and the head are one.
    pub tie_word_embeddings: bool,
    /// Rows of the position table that the model was made for (longer sequences are lawful: positions are computed).
    pub max_positions: usize,
    /// The padding token; positions count from the number after it.
    pub pad_token_id: u32,
    /// The token that every target starts behind.
    pub decoder_start_token_id: u32,
}

impl Seq2SeqConfig {
    /// Reads the configuration; `place` names it in errors.
    pub fn read(place: &str, value: &Value) -> Result<Seq2SeqConfig> {
        let f = Fields::new(place, value)?;
        // Names that the reference takes for another field.
        let named = |name: &str, alias: &str, default: usize| -> Result<usize> {
            let own = f.raw(name).is_some().then(|| f.size_or(name, default)).transpose()?;
            let other = f.raw(alias).is_some().then(|| f.size_or(alias, default)).transpose()?;
            match (own, other) {
                (Some(own), Some(other)) if own != other => {
                    Err(f
                        .error(alias, format!("is another name of `{name}: {own}`, found `{other}`; keep one of them")))
                }
                (own, other) => Ok(own.or(other).unwrap_or(default)),
            }
        };
        let width = named("d_model", "hidden_size", 1024)?;
        if width < 4 {
            return Err(f.error("d_model", format!("sinusoidal positions need a width of at least 4, found `{width}`")));
        }
        let probability = |name: &str, default: f64| -> Result<f32> {
            match f.f64_or(name, default)? {
                p if (0.0..1.0).contains(&p) => Ok(p as f32),
                p => Err(f.error(name, format!("expected a probability in [0, 1), found `{p}`"))),
            }
        };
        let side = |layers: usize, heads: usize, which: &str| -> Result<SideConfig> {
            if !width.is_multiple_of(heads) {
                let field = format!("{which}_attention_heads");
                return Err(f.error(&field, format!("expected a divisor of the width {width}, found `{heads}`")));
            }
            Ok(SideConfig {
                num_layers: layers,
                num_heads: heads,
                ffn_width: f.size_or(&format!("{which}_ffn_dim"), 4096)?,
                layerdrop: probability(&format!("{which}_layerdrop"), 0.05)?,
            })
        };
        let encoder = side(
            named("encoder_layers", "num_hidden_layers", 12)?,
            named("encoder_attention_heads", "num_attention_heads", 16)?,
            "encoder",
        )?;
        let decoder = side(f.size_or("decoder_layers", 12)?, f.size_or("decoder_attention_heads", 16)?, "decoder")?;
        let act = f.str_or("activation_function", "relu")?;
        let activation =
            act.parse().map_err(|_| f.error("activation_function", format!("activation `{act}` is not known")))?;
        let vocab_size = f.size_or("vocab_size", 128_112)?;
        let token = |name: &str, default: usize| -> Result<u32> {
            if value.get(name).is_some_and(Value::is_null) {
                return Err(f.error(name, "expected a token id, found `null`"));
            }
            match f.usize_or(name, default)? {
                id if id < vocab_size => Ok(id as u32),
                id => Err(f.error(name, format!("expected an id below the vocabulary of {vocab_size}, found `{id}`"))),
            }
        };
        if !f.bool_or("is_encoder_decoder", true)? {
            return Err(f.error("is_encoder_decoder", "expected true, found `false`"));
        }
        // The scale of random weights, and a way to train that is the plan's to choose.
        for inert in ["init_std", "gradient_checkpointing"] {
            let _ = f.raw(inert);
        }
        let config = Seq2SeqConfig {
            vocab_size,
            width,
            encoder,
            decoder,
            activation,
            dropout: Dropouts {
                residual: probability("dropout", 0.1)?,
                attention: probability("attention_dropout", 0.1)?,
                activation: probability("activation_dropout", 0.0)?,
            },
            embed_scale: if f.bool_or("scale_embedding", true)? { (width as f64).sqrt() as f32 } else { 1.0 },
            tie_word_embeddings: f.bool_or("tie_word_embeddings", true)?,
            max_positions: f.size_or("max_position_embeddings", 1024)?,
            pad_token_id: token("pad_token_id", 1)?,
            decoder_start_token_id: token("decoder_start_token_id", 2)?,
        };
        f.finish()?;
        Ok(config)
    }

    /// Whether a training step draws random numbers.
    pub fn has_dropout(&self) -> bool {
        let Dropouts { residual, attention, activation } = self.dropout;
        [residual, attention, activation, self.encoder.layerdrop, self.decoder.layerdrop].iter().any(|p| *p > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_are_those_of_the_reference_class() {
        let c = Seq2SeqConfig::read("c", &json!({})).unwrap();
        assert_eq!((c.vocab_size, c.width, c.max_positions, c.embed_scale), (128_112, 1024, 1024, 32.0));
        assert_eq!((c.encoder.num_layers, c.decoder.num_heads, c.encoder.ffn_width), (12, 16, 4096));
        assert_eq!((c.encoder.layerdrop, c.decoder.layerdrop), (0.05, 0.05));
        assert_eq!(c.dropout, Dropouts { residual: 0.1, attention: 0.1, activation: 0.0 });
        assert_eq!((c.pad_token_id, c.decoder_start_token_id), (1, 2));
        assert!(c.tie_word_embeddings && c.activation == Activation::Relu);
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let check = |value: Value, expected: &str| {
            assert_eq!(Seq2SeqConfig::read("c", &value).map(|_| ()).unwrap_err().to_string(), expected);
        };
        check(
            json!({"encoder_layers": 2, "num_hidden_layers": 3}),
            "`c`: field `num_hidden_layers`: is another name of `encoder_layers: 2`, found `3`; keep one of them",
        );
        check(
            json!({"d_model": 30, "decoder_attention_heads": 4, "encoder_attention_heads": 5}),
            "`c`: field `decoder_attention_heads`: expected a divisor of the width 30, found `4`",
        );
        check(json!({"dropout": 1.0}), "`c`: field `dropout`: expected a probability in [0, 1), found `1`");
        check(json!({"pad_token_id": null}), "`c`: field `pad_token_id`: expected a token id, found `null`");
        check(
            json!({"num_experts": 8}),
            "`c`: field `num_experts`: is not supported (found `8`); remove it only if it does not change the model",
        );
        let width = Seq2SeqConfig::read("c", &json!({"hidden_size": 64, "num_hidden_layers": 3})).unwrap();
        assert_eq!((width.width, width.encoder.num_layers, width.decoder.num_layers), (64, 3, 12));
    }
}
