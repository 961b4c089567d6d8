//! The causal decoder that Llama and Qwen2 share; their differences are fields of [`DecoderConfig`].
//!
//! Source: `LlamaModel`, `Qwen2Model` of `transformers`. Shapes: `t` packed tokens, `h` hidden, `n` query heads,
//! `k` key/value heads, `d` head dimension.

use crate::config::text::DecoderConfig;
use crate::error::Result;
use crate::linear::{INIT_STD, Linear, Norm};
use crate::weights::{Builder, Init, Part};
use std::sync::Arc;
use tensor::{Activation, AttentionSpec, DType, Mask, Param, RopeTable, Tape, Tensor, Var, memory};

/// How a block's attention is carried out: given `qkv_t(nd+2kd)` of layer `usize`, queries and keys rotated.
pub type Attend<'a> = dyn Fn(&Tape, usize, &Var) -> tensor::Result<Var> + 'a;

/// Positions of the tokens at hand, for the rotation of queries and keys.
#[derive(Debug, Clone, Copy)]
pub enum Positions<'a> {
    /// One number a token.
    One(&'a [u32]),
    /// Time, height and width of each token (M-RoPE).
    Three(&'a [[u32; 3]]),
}

/// The same with its numbers.
#[derive(Debug, Clone)]
pub enum OwnedPositions {
    /// One number a token.
    One(Vec<u32>),
    /// Time, height and width of each token.
    Three(Vec<[u32; 3]>),
}

impl OwnedPositions {
    /// A view of them.
    pub fn view(&self) -> Positions<'_> {
        match self {
            OwnedPositions::One(positions) => Positions::One(positions),
            OwnedPositions::Three(positions) => Positions::Three(positions),
        }
    }

    /// For each sequence the position of the token that comes after it.
    pub fn next(&self, cu_seqlens: &[usize]) -> Vec<u32> {
        let largest = |range: std::ops::Range<usize>| match self {
            OwnedPositions::One(positions) => positions[range].iter().copied().max(),
            OwnedPositions::Three(positions) => positions[range].iter().flatten().copied().max(),
        };
        cu_seqlens.windows(2).map(|bounds| largest(bounds[0]..bounds[1]).map_or(0, |p| p + 1)).collect()
    }
}

/// One pre-norm block.
#[derive(Clone)]
pub struct DecoderLayer {
    input_layernorm: Norm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: Norm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    activation: Activation,
}

impl DecoderLayer {
    fn build(b: &mut Builder<'_>, path: &str, c: &DecoderConfig) -> Result<DecoderLayer> {
        let (h, p) = (c.hidden_size, Part::Llm);
        let (q, kv) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
        let (attn, mlp) = (format!("{path}.self_attn"), format!("{path}.mlp"));
        Ok(DecoderLayer {
            input_layernorm: Norm::rms(b, &format!("{path}.input_layernorm"), h, c.rms_norm_eps, p)?,
            q_proj: Linear::build(b, &format!("{attn}.q_proj"), h, q, c.qkv_bias, p)?,
            k_proj: Linear::build(b, &format!("{attn}.k_proj"), h, kv, c.qkv_bias, p)?,
            v_proj: Linear::build(b, &format!("{attn}.v_proj"), h, kv, c.qkv_bias, p)?,
            o_proj: Linear::build(b, &format!("{attn}.o_proj"), q, h, c.o_bias, p)?,
            post_attention_layernorm: Norm::rms(b, &format!("{path}.post_attention_layernorm"), h, c.rms_norm_eps, p)?,
            gate_proj: Linear::build(b, &format!("{mlp}.gate_proj"), h, c.intermediate_size, c.mlp_bias, p)?,
            up_proj: Linear::build(b, &format!("{mlp}.up_proj"), h, c.intermediate_size, c.mlp_bias, p)?,
            down_proj: Linear::build(b, &format!("{mlp}.down_proj"), c.intermediate_size, h, c.mlp_bias, p)?,
            num_heads: c.num_heads,
            num_kv_heads: c.num_kv_heads,
            head_dim: c.head_dim,
            activation: c.activation,
        })
    }

    /// `x_th -> x_th`.
    fn forward(&self, t: &Tape, index: usize, x: Var, rope: &RopeTable, attend: &Attend<'_>) -> tensor::Result<Var> {
        let normed = self.input_layernorm.forward(t, &x)?;
        let qkv = t.linears(&normed, &[&self.q_proj.weights, &self.k_proj.weights, &self.v_proj.weights])?;
        drop(normed);
        let qkv = t.rope(qkv, self.num_heads + self.num_kv_heads, self.head_dim, rope)?;
        let attended = attend(t, index, &qkv)?;
        drop(qkv);
        let x = self.o_proj.forward_add(t, &attended, x)?;
        drop(attended);
        let normed = self.post_attention_layernorm.forward(t, &x)?;
        let gate_up = t.linears(&normed, &[&self.gate_proj.weights, &self.up_proj.weights])?;
        drop(normed);
        let gated = t.gated(&gate_up, self.activation)?;
        drop(gate_up);
        self.down_proj.forward_add(t, &gated, x)
    }

    /// Every projection, in checkpoint order.
    pub fn linears_mut(&mut self) -> [&mut Linear; 7] {
        [
            &mut self.q_proj,
            &mut self.k_proj,
            &mut self.v_proj,
            &mut self.o_proj,
            &mut self.gate_proj,
            &mut self.up_proj,
            &mut self.down_proj,
        ]
    }
}

/// Embeddings, blocks, final norm and head.
pub struct Decoder {
    /// The configuration it was built from.
    pub config: DecoderConfig,
    /// `[vocab, h]`.
    pub embed_tokens: Param,
    /// The blocks.
    pub layers: Vec<Arc<DecoderLayer>>,
    norm: Norm,
    /// The head; shares the embedding table when tied (see [`Decoder::is_tied`]).
    pub lm_head: Linear,
    inverse_frequencies: Vec<f32>,
    /// The dtype of activations, keys and values; the residual stream is f32.
    pub compute: DType,
}

impl Decoder {
    /// Builds the decoder under `prefix` (`language_model.` in a LLaVA checkpoint, empty in a text-only one).
    pub fn build(b: &mut Builder<'_>, prefix: &str, config: &DecoderConfig) -> Result<Decoder> {
        let c = config.clone();
        let (model, head) = (format!("{prefix}model"), format!("{prefix}lm_head"));
        let (table, head_weight) = (format!("{model}.embed_tokens.weight"), format!("{head}.weight"));
        if c.tie_word_embeddings {
            b.swap_tied(&table, &head_weight);
        }
        let embed_tokens = b.weight(&table, &[c.vocab_size, c.hidden_size], Init::Normal(INIT_STD), Part::Llm)?;
        let layers = (0..c.num_layers)
            .map(|i| Ok(Arc::new(DecoderLayer::build(b, &format!("{model}.layers.{i}"), &c)?)))
            .collect::<Result<Vec<_>>>()?;
        let norm = Norm::rms(b, &format!("{model}.norm"), c.hidden_size, c.rms_norm_eps, Part::Llm)?;
        let lm_head = if c.tie_word_embeddings && b.ties(&head_weight, &embed_tokens)? {
            Linear::tied(&head, embed_tokens.clone(), Part::Llm)
        } else {
            Linear::build(b, &head, c.hidden_size, c.vocab_size, false, Part::Llm)?
        };
        let inverse_frequencies = c.rope.inverse_frequencies();
        let compute = b.compute();
        Ok(Decoder { config: c, embed_tokens, layers, norm, lm_head, inverse_frequencies, compute })
    }

    /// Whether the head is the embedding table.
    pub fn is_tied(&self) -> bool {
        self.lm_head.weights.weight.name() == self.embed_tokens.name()
    }

    /// Cos and sin of the given positions.
    pub fn rope_table(&self, positions: &Positions<'_>) -> Result<RopeTable> {
        let frequencies = &self.inverse_frequencies;
        let (count, angles): (usize, Vec<f32>) = match positions {
            Positions::One(positions) => (
                positions.len(),
                positions.iter().flat_map(|&p| frequencies.iter().map(move |f| p as f32 * f)).collect(),
            ),
            Positions::Three(positions) => {
                let axes = self.config.rope.axes();
                let of = |p: &[u32; 3]| {
                    frequencies.iter().zip(&axes).map(|(f, &axis)| p[axis] as f32 * f).collect::<Vec<_>>()
                };
                (positions.len(), positions.iter().flat_map(of).collect())
            }
        };
        Ok(RopeTable::from_angles(
            &Tensor::from_f32(&angles, &[count, frequencies.len()])?,
            self.config.rope.attention_factor(),
        )?)
    }

    /// Columns of the queries, and of the keys or the values.
    pub fn qkv_widths(&self) -> [usize; 2] {
        [self.config.num_heads, self.config.num_kv_heads].map(|heads| heads * self.config.head_dim)
    }

    /// Attention options for packed sequences with the given boundaries.
    pub fn attention_spec(&self, cu_seqlens: Arc<[usize]>) -> AttentionSpec {
        AttentionSpec {
            num_heads: self.config.num_heads,
            num_kv_heads: self.config.num_kv_heads,
            head_dim: self.config.head_dim,
            scale: (self.config.head_dim as f32).powf(-0.5),
            mask: Mask::Causal,
            cu_q: cu_seqlens.clone(),
            cu_k: cu_seqlens,
        }
    }

    /// Embedded tokens through all blocks and the final norm, whole packed sequences: `x_th -> x_th`.
    /// With `recompute`, blocks keep their input only and run again in the backward pass.
    pub fn forward(
        &self,
        t: &Tape,
        x: Var,
        positions: &Positions<'_>,
        cu_seqlens: Arc<[usize]>,
        recompute: bool,
    ) -> Result<Var> {
        let rope = self.rope_table(positions)?;
        let spec = self.attention_spec(cu_seqlens);
        let mut x = x;
        for (i, layer) in self.layers.iter().enumerate() {
            memory::mark("llm.layers", i);
            x = if recompute {
                let (layer, rope, spec) = (layer.clone(), rope.clone(), spec.clone());
                t.checkpoint(&[x], move |t, inputs| {
                    let attend = |t: &Tape, _: usize, qkv: &Var| t.self_attention(qkv, &spec);
                    layer.forward(t, i, inputs[0].clone(), &rope, &attend)
                })?
            } else {
                layer.forward(t, i, x, &rope, &|t: &Tape, _: usize, qkv: &Var| t.self_attention(qkv, &spec))?
            };
        }
        memory::mark("llm.layers", self.layers.len());
        Ok(self.norm.forward(t, &x)?)
    }

    /// As [`Decoder::forward`] with the caller's own attention (a key/value cache).
    pub fn forward_with(&self, t: &Tape, x: Var, positions: &Positions<'_>, attend: &Attend<'_>) -> Result<Var> {
        let rope = self.rope_table(positions)?;
        let mut x = x;
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(t, i, x, &rope, attend)?;
        }
        Ok(self.norm.forward(t, &x)?)
    }
}
