//! The causal decoder that Llama, Mistral, Phi-3, Qwen2 and Qwen3 share; their differences are fields of [`DecoderConfig`].
//!
//! Source: `LlamaModel`, `MistralModel`, `Phi3Model`, `Qwen2Model`, `Qwen3Model`, `Qwen3VLTextModel` of `transformers`; Meng et al. 2024 (DeepStack). Shapes: `t` packed tokens, `h` hidden, `n` query heads,
//! `k` key/value heads, `d` head dimension.

use crate::config::text::DecoderConfig;
use crate::error::Result;
use crate::linear::{INIT_STD, Linear, Norm};
use crate::needed::NeededRows;
use crate::weights::{Builder, Init, Part};
use std::sync::Arc;
use tensor::{Activation, AttentionSpec, DType, LinearWeights, Mask, Param, RopeTable, Tape, Tensor, Var, memory};

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

impl Positions<'_> {
    /// Number of tokens.
    fn len(&self) -> usize {
        match self {
            Positions::One(positions) => positions.len(),
            Positions::Three(positions) => positions.len(),
        }
    }

    /// The largest number of a token's position.
    fn largest(&self, row: usize) -> u32 {
        match self {
            Positions::One(positions) => positions[row],
            Positions::Three(positions) => positions[row].into_iter().max().unwrap_or(0),
        }
    }
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

/// Embedded tokens, and what pictures add to theirs on the way.
pub struct Embedded {
    /// `x_th`.
    pub tokens: Var,
    /// Rows of the tokens of pictures.
    pub rows: Vec<u32>,
    /// Added to these rows behind the first layer, the second and so on, `[rows, h]` each; what is left over at the end
    /// belongs to layers that the decoder does not have.
    pub deep: Vec<Var>,
}

impl Embedded {
    /// Whether the last of so many blocks may compute some rows alone: not where something is added to others behind it.
    pub(crate) fn narrows_last_block(&self, num_layers: usize) -> bool {
        self.deep.len() < num_layers
    }
}

impl From<Var> for Embedded {
    fn from(tokens: Var) -> Embedded {
        Embedded { tokens, rows: Vec::new(), deep: Vec::new() }
    }
}

/// The norms of query and of key heads.
#[derive(Clone)]
struct HeadNorms {
    q_norm: Param,
    k_norm: Param,
    eps: f32,
}

impl HeadNorms {
    fn build(b: &mut Builder<'_>, attn: &str, c: &DecoderConfig) -> Result<HeadNorms> {
        let mut weight =
            |name| b.weight(&format!("{attn}.{name}.weight"), &[c.head_dim], Init::Constant(1.0), Part::Llm);
        Ok(HeadNorms { q_norm: weight("q_norm")?, k_norm: weight("k_norm")?, eps: c.rms_norm_eps })
    }
}

/// One pre-norm block.
#[derive(Clone)]
pub struct DecoderLayer {
    input_layernorm: Norm,
    /// Queries, keys and values, side by side: three projections or one.
    qkv: Vec<Linear>,
    qk_norm: Option<HeadNorms>,
    o_proj: Linear,
    post_attention_layernorm: Norm,
    /// Gate and up, side by side: two projections or one.
    gate_up: Vec<Linear>,
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
        let mut linears = |module: &str, input, names: &[(&str, usize)], bias| -> Result<Vec<Linear>> {
            let build =
                |(name, rows): &(&str, usize)| Linear::build(b, &format!("{module}.{name}"), input, *rows, bias, p);
            names.iter().map(build).collect()
        };
        let inner = c.intermediate_size;
        let (qkv, gate_up) = match c.fused_projections {
            true => (vec![("qkv_proj", q + 2 * kv)], vec![("gate_up_proj", 2 * inner)]),
            false => {
                (vec![("q_proj", q), ("k_proj", kv), ("v_proj", kv)], vec![("gate_proj", inner), ("up_proj", inner)])
            }
        };
        let (qkv, gate_up) = (linears(&attn, h, &qkv, c.qkv_bias)?, linears(&mlp, h, &gate_up, c.mlp_bias)?);
        Ok(DecoderLayer {
            input_layernorm: Norm::rms(b, &format!("{path}.input_layernorm"), h, c.rms_norm_eps, p)?,
            qkv,
            qk_norm: c.qk_norm.then(|| HeadNorms::build(b, &attn, c)).transpose()?,
            o_proj: Linear::build(b, &format!("{attn}.o_proj"), q, h, c.o_bias, p)?,
            post_attention_layernorm: Norm::rms(b, &format!("{path}.post_attention_layernorm"), h, c.rms_norm_eps, p)?,
            gate_up,
            down_proj: Linear::build(b, &format!("{mlp}.down_proj"), inner, h, c.mlp_bias, p)?,
            num_heads: c.num_heads,
            num_kv_heads: c.num_kv_heads,
            head_dim: c.head_dim,
            activation: c.activation,
        })
    }

    /// `x_th -> x_th`, or of some `rows` alone where `attend` gives no others.
    fn forward(
        &self,
        t: &Tape,
        index: usize,
        x: Var,
        rope: &RopeTable,
        attend: &Attend<'_>,
        rows: Option<&[u32]>,
    ) -> tensor::Result<Var> {
        let normed = self.input_layernorm.forward(t, &x)?;
        let mut qkv = t.linears(&normed, &weights(&self.qkv))?;
        drop(normed);
        if let Some(norms) = &self.qk_norm {
            let groups = [(self.num_heads, &norms.q_norm), (self.num_kv_heads, &norms.k_norm)];
            qkv = t.head_norm(qkv, &groups, self.head_dim, norms.eps)?;
        }
        let qkv = t.rope(qkv, self.num_heads + self.num_kv_heads, self.head_dim, rope)?;
        let attended = attend(t, index, &qkv)?;
        drop(qkv);
        let x = match rows {
            Some(rows) => t.gather_rows(&x, rows)?,
            None => x,
        };
        let x = self.o_proj.forward_add(t, &attended, x)?;
        drop(attended);
        let normed = self.post_attention_layernorm.forward(t, &x)?;
        let gate_up = t.linears(&normed, &weights(&self.gate_up))?;
        drop(normed);
        let gated = t.gated(&gate_up, self.activation)?;
        drop(gate_up);
        self.down_proj.forward_add(t, &gated, x)
    }

    /// Every projection, in checkpoint order.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let attention = self.qkv.iter_mut().chain([&mut self.o_proj]);
        attention.chain(self.gate_up.iter_mut()).chain([&mut self.down_proj])
    }
}

fn weights(linears: &[Linear]) -> Vec<&LinearWeights> {
    linears.iter().map(|linear| &linear.weights).collect()
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
    /// Of sequences up to the rotation's switch and of longer ones; the same where there is none.
    inverse_frequencies: [Vec<f32>; 2],
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
        let inverse_frequencies = [false, true].map(|beyond| c.rope.inverse_frequencies(beyond));
        let compute = b.compute();
        Ok(Decoder { config: c, embed_tokens, layers, norm, lm_head, inverse_frequencies, compute })
    }

    /// Whether the head is the embedding table.
    pub fn is_tied(&self) -> bool {
        self.lm_head.weights.weight.name() == self.embed_tokens.name()
    }

    /// Cos and sin of the given positions of packed sequences. A sequence beyond the switch of LongRoPE is turned by other
    /// frequencies from its first token on, whatever stands beside it (the reference asks for the longest of a batch).
    pub fn rope_table(&self, positions: &Positions<'_>, cu_seqlens: &[usize]) -> Result<RopeTable> {
        let half = self.inverse_frequencies[0].len();
        let axes = self.config.rope.axes();
        let count = positions.len();
        let mut angles: Vec<f32> = Vec::with_capacity(count * half);
        for bounds in cu_seqlens.windows(2) {
            let rows = bounds[0]..bounds[1].min(count);
            let last = rows.clone().map(|row| positions.largest(row)).max().map_or(0, |p| p as usize);
            let beyond = self.config.rope.switch().is_some_and(|switch| last >= switch);
            let frequencies = &self.inverse_frequencies[usize::from(beyond)];
            for row in rows {
                match positions {
                    Positions::One(positions) => angles.extend(frequencies.iter().map(|f| positions[row] as f32 * f)),
                    Positions::Three(positions) => {
                        let position = &positions[row];
                        angles.extend(frequencies.iter().zip(&axes).map(|(f, &axis)| position[axis] as f32 * f));
                    }
                }
            }
        }
        Ok(RopeTable::from_angles(&Tensor::from_f32(&angles, &[count, half])?, self.config.rope.attention_factor())?)
    }

    /// Columns of the queries, and of the keys or the values.
    pub fn qkv_widths(&self) -> [usize; 2] {
        [self.config.num_heads, self.config.num_kv_heads].map(|heads| heads * self.config.head_dim)
    }

    /// Attention options of a layer for packed sequences with the given boundaries.
    pub fn attention_spec(&self, layer: usize, cu_seqlens: Arc<[usize]>) -> AttentionSpec {
        AttentionSpec {
            num_heads: self.config.num_heads,
            num_kv_heads: self.config.num_kv_heads,
            head_dim: self.config.head_dim,
            scale: (self.config.head_dim as f32).powf(-0.5),
            mask: self.config.windows.get(layer).copied().flatten().map_or(Mask::Causal, Mask::Window),
            cu_q: cu_seqlens.clone(),
            cu_k: cu_seqlens,
        }
    }

    /// Embedded tokens through all blocks and the final norm, whole packed sequences: `x_th -> x_th`, or the `needed` rows
    /// of it. With `recompute`, blocks keep their input only and run again in the backward pass.
    pub(crate) fn forward(
        &self,
        t: &Tape,
        x: Embedded,
        positions: &Positions<'_>,
        cu_seqlens: Arc<[usize]>,
        needed: Option<NeededRows>,
        recompute: bool,
    ) -> Result<Var> {
        let rope = self.rope_table(positions, &cu_seqlens)?;
        let narrows = x.narrows_last_block(self.layers.len());
        let Embedded { tokens: mut x, rows, deep } = x;
        let mut deep = deep.into_iter();
        let mut needed = needed;
        for (i, layer) in self.layers.iter().enumerate() {
            memory::mark("llm.layers", i);
            let spec = self.attention_spec(i, cu_seqlens.clone());
            let needed = if narrows && i + 1 == self.layers.len() { needed.take() } else { None };
            let (layer, rope) = (layer.clone(), rope.clone());
            let run = move |t: &Tape, x: Var| {
                let attend = |t: &Tape, _: usize, qkv: &Var| match &needed {
                    Some(needed) => needed.attend(t, qkv, &spec),
                    None => t.self_attention(qkv, &spec),
                };
                layer.forward(t, i, x, &rope, &attend, needed.as_ref().map(NeededRows::rows))
            };
            x = if recompute { t.checkpoint(&[x], move |t, inputs| run(t, inputs[0].clone()))? } else { run(t, x)? };
            if let Some(features) = deep.next() {
                x = t.add_rows(x, &rows, &features)?;
            }
        }
        memory::mark("llm.layers", self.layers.len());
        if let Some(needed) = needed {
            x = t.gather_rows(&x, needed.rows())?;
        }
        Ok(self.norm.forward(t, &x)?)
    }

    /// As [`Decoder::forward`] with the caller's own attention (a key/value cache); `cu_seqlens` tells the rows of one
    /// sequence from those of another. Of a last block that is narrowed
    /// ([`Embedded::narrows_last_block`]) the caller's attention gives the `needed` rows alone.
    pub(crate) fn forward_with(
        &self,
        t: &Tape,
        x: Embedded,
        positions: &Positions<'_>,
        cu_seqlens: &[usize],
        attend: &Attend<'_>,
        needed: Option<&NeededRows>,
    ) -> Result<Var> {
        let rope = self.rope_table(positions, cu_seqlens)?;
        let narrows = x.narrows_last_block(self.layers.len());
        let Embedded { tokens: mut x, rows, deep } = x;
        let mut deep = deep.into_iter();
        for (i, layer) in self.layers.iter().enumerate() {
            let needed = needed.filter(|_| narrows && i + 1 == self.layers.len());
            x = layer.forward(t, i, x, &rope, attend, needed.map(NeededRows::rows))?;
            if let Some(features) = deep.next() {
                x = t.add_rows(x, &rows, &features)?;
            }
        }
        if let Some(needed) = needed.filter(|_| !narrows) {
            x = t.gather_rows(&x, needed.rows())?;
        }
        Ok(self.norm.forward(t, &x)?)
    }
}
