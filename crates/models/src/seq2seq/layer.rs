//! The blocks of an encoder-decoder: pre-norm attention over the own rows, attention over the encoded source, MLP. Owns
//! where dropout stands in them.
//!
//! Source: `M2M100EncoderLayer`, `M2M100DecoderLayer`, `M2M100Attention` of `transformers`.

use super::NORM_EPS;
use super::config::{Dropouts, Seq2SeqConfig, SideConfig};
use crate::error::Result;
use crate::linear::{Linear, Norm};
use crate::weights::{Builder, Part};
use std::sync::Arc;
use tensor::{Activation, AttentionSpec, Mask, Tape, Var};

/// Four projections with biases; keys and values have as many heads as queries.
#[derive(Clone)]
pub struct Attention {
    pub(super) q_proj: Linear,
    pub(super) k_proj: Linear,
    pub(super) v_proj: Linear,
    pub(super) out_proj: Linear,
    num_heads: usize,
    head_dim: usize,
}

impl Attention {
    fn build(b: &mut Builder<'_>, path: &str, width: usize, num_heads: usize) -> Result<Attention> {
        let mut square = |name: &str| Linear::build(b, &format!("{path}.{name}"), width, width, true, Part::Llm);
        Ok(Attention {
            q_proj: square("q_proj")?,
            k_proj: square("k_proj")?,
            v_proj: square("v_proj")?,
            out_proj: square("out_proj")?,
            num_heads,
            head_dim: width / num_heads,
        })
    }

    /// Options for packed queries and keys with the given boundaries.
    pub(super) fn spec(&self, mask: Mask, cu_q: &Arc<[usize]>, cu_k: &Arc<[usize]>) -> AttentionSpec {
        AttentionSpec {
            num_heads: self.num_heads,
            num_kv_heads: self.num_heads,
            head_dim: self.head_dim,
            scale: (self.head_dim as f32).powf(-0.5),
            mask,
            cu_q: cu_q.clone(),
            cu_k: cu_k.clone(),
        }
    }

    /// Queries, keys and values of the same rows side by side.
    pub(super) fn qkv(&self, t: &Tape, x: &Var) -> tensor::Result<Var> {
        t.linears(x, &[&self.q_proj.weights, &self.k_proj.weights, &self.v_proj.weights])
    }

    fn linears_mut(&mut self) -> [&mut Linear; 4] {
        [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj, &mut self.out_proj]
    }
}

/// The MLP that ends a block of either side.
#[derive(Clone)]
struct Mlp {
    final_layer_norm: Norm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
    dropout: Dropouts,
}

impl Mlp {
    fn build(b: &mut Builder<'_>, path: &str, c: &Seq2SeqConfig, side: &SideConfig) -> Result<Mlp> {
        let (width, part) = (c.width, Part::Llm);
        Ok(Mlp {
            fc1: Linear::build(b, &format!("{path}.fc1"), width, side.ffn_width, true, part)?,
            fc2: Linear::build(b, &format!("{path}.fc2"), side.ffn_width, width, true, part)?,
            final_layer_norm: Norm::layer(b, &format!("{path}.final_layer_norm"), width, NORM_EPS, part)?,
            activation: c.activation,
            dropout: c.dropout,
        })
    }

    fn forward(&self, t: &Tape, x: Var) -> tensor::Result<Var> {
        let normed = self.final_layer_norm.forward(t, &x)?;
        let inner = self.fc1.forward(t, &normed)?;
        drop(normed);
        let inner = t.activation(&inner, self.activation)?;
        let inner = t.dropout(&inner, self.dropout.activation)?;
        add_dropped(t, &self.fc2, &inner, x, self.dropout.residual)
    }
}

/// `x + dropout(linear(y))`; without dropout the addition rides on the product's accumulation.
fn add_dropped(t: &Tape, linear: &Linear, y: &Var, x: Var, p: f32) -> tensor::Result<Var> {
    if p == 0.0 || !t.is_recording() {
        return linear.forward_add(t, y, x);
    }
    t.add(&t.dropout(&linear.forward_wide(t, y)?, p)?, &x)
}

/// One block of the encoder.
#[derive(Clone)]
pub struct EncoderLayer {
    pub(super) self_attn: Attention,
    self_attn_layer_norm: Norm,
    mlp: Mlp,
    dropout: Dropouts,
}

impl EncoderLayer {
    pub(super) fn build(b: &mut Builder<'_>, path: &str, c: &Seq2SeqConfig) -> Result<EncoderLayer> {
        let norm = format!("{path}.self_attn_layer_norm");
        Ok(EncoderLayer {
            self_attn: Attention::build(b, &format!("{path}.self_attn"), c.width, c.encoder.num_heads)?,
            self_attn_layer_norm: Norm::layer(b, &norm, c.width, NORM_EPS, Part::Llm)?,
            mlp: Mlp::build(b, path, c, &c.encoder)?,
            dropout: c.dropout,
        })
    }

    /// `x_sd -> x_sd`.
    pub(super) fn forward(&self, t: &Tape, x: Var, spec: &AttentionSpec) -> tensor::Result<Var> {
        let qkv = self.self_attn.qkv(t, &self.self_attn_layer_norm.forward(t, &x)?)?;
        let attended = t.self_attention_with_dropout(&qkv, spec, self.dropout.attention)?;
        drop(qkv);
        let x = add_dropped(t, &self.self_attn.out_proj, &attended, x, self.dropout.residual)?;
        drop(attended);
        self.mlp.forward(t, x)
    }

    /// Every projection, in checkpoint order.
    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.self_attn.linears_mut().into_iter().chain([&mut self.mlp.fc1, &mut self.mlp.fc2]).collect()
    }
}

/// One block of the decoder.
#[derive(Clone)]
pub struct DecoderLayer {
    pub(super) self_attn: Attention,
    self_attn_layer_norm: Norm,
    pub(super) encoder_attn: Attention,
    encoder_attn_layer_norm: Norm,
    mlp: Mlp,
    dropout: Dropouts,
}

/// How a block attends: given queries, keys and values side by side, or queries alone.
pub(super) type Attend<'a> = dyn Fn(&Tape, &Var) -> tensor::Result<Var> + 'a;

impl DecoderLayer {
    pub(super) fn build(b: &mut Builder<'_>, path: &str, c: &Seq2SeqConfig) -> Result<DecoderLayer> {
        let heads = c.decoder.num_heads;
        let norm = |b: &mut Builder<'_>, name: &str| {
            Norm::layer(b, &format!("{path}.{name}_layer_norm"), c.width, NORM_EPS, Part::Llm)
        };
        Ok(DecoderLayer {
            self_attn: Attention::build(b, &format!("{path}.self_attn"), c.width, heads)?,
            self_attn_layer_norm: norm(b, "self_attn")?,
            encoder_attn: Attention::build(b, &format!("{path}.encoder_attn"), c.width, heads)?,
            encoder_attn_layer_norm: norm(b, "encoder_attn")?,
            mlp: Mlp::build(b, path, c, &c.decoder)?,
            dropout: c.dropout,
        })
    }

    /// `x_td -> x_td` over the encoded source `encoded_sd`, whole packed sequences.
    pub(super) fn forward(
        &self,
        t: &Tape,
        x: Var,
        encoded: &Var,
        own: &AttentionSpec,
        cross: &AttentionSpec,
    ) -> tensor::Result<Var> {
        let p = self.dropout.attention;
        let source = |t: &Tape, q: &Var| {
            let [k, v] = self.source_keys(t, encoded)?;
            t.attention_with_dropout([q, &k, &v], cross, p)
        };
        self.forward_with(t, x, &|t, qkv| t.self_attention_with_dropout(qkv, own, p), &source)
    }

    /// Keys and values of the encoded source.
    pub(super) fn source_keys(&self, t: &Tape, encoded: &Var) -> tensor::Result<[Var; 2]> {
        Ok([self.encoder_attn.k_proj.forward(t, encoded)?, self.encoder_attn.v_proj.forward(t, encoded)?])
    }

    /// As [`DecoderLayer::forward`] with the caller's own attention.
    pub(super) fn forward_with(
        &self,
        t: &Tape,
        x: Var,
        attend_own: &Attend<'_>,
        attend_source: &Attend<'_>,
    ) -> tensor::Result<Var> {
        let residual = self.dropout.residual;
        let qkv = self.self_attn.qkv(t, &self.self_attn_layer_norm.forward(t, &x)?)?;
        let attended = attend_own(t, &qkv)?;
        drop(qkv);
        let x = add_dropped(t, &self.self_attn.out_proj, &attended, x, residual)?;
        drop(attended);
        let q = self.encoder_attn.q_proj.forward(t, &self.encoder_attn_layer_norm.forward(t, &x)?)?;
        let attended = attend_source(t, &q)?;
        drop(q);
        let x = add_dropped(t, &self.encoder_attn.out_proj, &attended, x, residual)?;
        drop(attended);
        self.mlp.forward(t, x)
    }

    /// Every projection, in checkpoint order.
    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let attentions = self.self_attn.linears_mut().into_iter().chain(self.encoder_attn.linears_mut());
        attentions.chain([&mut self.mlp.fc1, &mut self.mlp.fc2]).collect()
    }
}
