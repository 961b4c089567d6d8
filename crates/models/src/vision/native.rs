//! The tower that takes pictures at their own size: patches as rows, two-dimensional rotary positions, attention within
//! frames or windows, and the mergers that make one token of a square of patches. It refuses to cut pictures into patches.
//!
//! Source: `Qwen2VisionTransformerPretrainedModel`, `Qwen2_5_VisionTransformerPretrainedModel`, `Qwen3VLVisionModel` of
//! `transformers`; Wang et al. 2024 (Qwen2-VL), Bai et al. 2025 (Qwen2.5-VL, Qwen3-VL); for LLaVA-OneVision-1.5 the code published
//! with it (`RiceTransformerPretrainedModel`), An et al. 2025. Shapes: `p` patches of all images and clips one after the other, each
//! in the order `(t, h/m, w/m, m, m)`; `h` hidden; `m` the merger's side.

mod layout;
mod merger;

use crate::config::native::{NativeFamily, NativeInput, NativeVisionConfig};
use crate::error::Result;
use crate::linear::{INIT_STD, Linear, Norm};
use crate::model::Visual;
use crate::names::NATIVE_PREFIX;
use crate::weights::{Builder, Init, Part};
use layout::Layout;
use merger::Merger;
use std::sync::Arc;
use tensor::{Activation, AttentionSpec, DType, LearnedAngles, Mask, Param, RopeTable, Tape, Tensor, Var, memory};

#[derive(Clone)]
enum Mlp {
    Plain { fc1: Linear, fc2: Linear },
    Gated { gate_proj: Linear, up_proj: Linear, down_proj: Linear },
}

/// One pre-norm block.
#[derive(Clone)]
struct Block {
    norm1: Norm,
    qkv: Linear,
    proj: Linear,
    norm2: Norm,
    mlp: Mlp,
    num_heads: usize,
    head_dim: usize,
    activation: Activation,
}

/// How queries and keys turn.
#[derive(Clone)]
struct Turn {
    table: RopeTable,
    /// The class tokens' angles.
    learned: Option<LearnedAngles>,
}

/// What [`NativeInput`] says, with its weights.
enum Input {
    Patches,
    Positions { pos_embed: Param, side: usize },
    ClassToken { class_embedding: Param, class_pos_emb: Param, pre_layernorm: Norm },
}

/// A merger behind a block.
struct Deep {
    merger: Merger,
    /// The block whose output it takes; none where no layer of the decoder takes its own.
    block: Option<usize>,
}

/// Patch embedding, blocks and mergers.
pub struct NativeTower {
    /// The configuration it was built from.
    pub config: NativeVisionConfig,
    patch_embed: Linear,
    input: Input,
    blocks: Vec<Arc<Block>>,
    merger: Merger,
    deepstack: Vec<Deep>,
    compute: DType,
}

/// What the blocks made of a batch of patches.
pub struct NativeStates {
    /// Rows of patches, still in the order of windows.
    states: Var,
    back: Vec<u32>,
    /// Tokens for the decoder's first layers, one `[tokens, decoder's width]` each.
    pub deep: Vec<Var>,
}

impl Block {
    fn build(b: &mut Builder<'_>, path: &str, c: &NativeVisionConfig) -> Result<Block> {
        let (h, inner, part) = (c.hidden_size, c.intermediate_size, Part::Vision);
        let norm = |b: &mut Builder<'_>, name: &str| match c.is_gated {
            true => Norm::rms(b, &format!("{path}.{name}"), h, c.norm_eps, part),
            false => Norm::layer(b, &format!("{path}.{name}"), h, c.norm_eps, part),
        };
        let norm1 = norm(b, "norm1")?;
        let norm2 = norm(b, "norm2")?;
        let qkv = Linear::build(b, &format!("{path}.attn.qkv"), h, 3 * h, true, part)?;
        let proj = Linear::build(b, &format!("{path}.attn.proj"), h, h, true, part)?;
        let mut layer = |name: &str, from, to| Linear::build(b, &format!("{path}.mlp.{name}"), from, to, true, part);
        let mlp = match c.is_gated {
            true => Mlp::Gated {
                gate_proj: layer("gate_proj", h, inner)?,
                up_proj: layer("up_proj", h, inner)?,
                down_proj: layer("down_proj", inner, h)?,
            },
            false => {
                let [fc1, fc2] = match c.family {
                    NativeFamily::Qwen3Vl => ["linear_fc1", "linear_fc2"],
                    _ => ["fc1", "fc2"],
                };
                Mlp::Plain { fc1: layer(fc1, h, inner)?, fc2: layer(fc2, inner, h)? }
            }
        };
        let (num_heads, head_dim) = (c.num_heads, c.head_dim());
        Ok(Block { norm1, qkv, proj, norm2, mlp, num_heads, head_dim, activation: c.activation })
    }

    /// `x_ph -> x_ph`; attention within the given boundaries.
    fn forward(&self, t: &Tape, x: Var, turn: &Turn, bounds: &Arc<[usize]>) -> tensor::Result<Var> {
        let spec = AttentionSpec {
            num_heads: self.num_heads,
            num_kv_heads: self.num_heads,
            head_dim: self.head_dim,
            scale: (self.head_dim as f32).powf(-0.5),
            mask: Mask::Full,
            cu_q: bounds.clone(),
            cu_k: bounds.clone(),
        };
        let normed = self.norm1.forward(t, &x)?;
        let qkv = self.qkv.forward(t, &normed)?;
        drop(normed);
        let qkv = match &turn.learned {
            Some(learned) => t.rope_learned(qkv, 2 * self.num_heads, self.head_dim, &turn.table, learned)?,
            None => t.rope(qkv, 2 * self.num_heads, self.head_dim, &turn.table)?,
        };
        let attended = t.self_attention(&qkv, &spec)?;
        drop(qkv);
        let x = self.proj.forward_add(t, &attended, x)?;
        drop(attended);
        let normed = self.norm2.forward(t, &x)?;
        match &self.mlp {
            Mlp::Plain { fc1, fc2 } => {
                let inner = fc1.forward(t, &normed)?;
                drop(normed);
                let inner = t.activation(&inner, self.activation)?;
                fc2.forward_add(t, &inner, x)
            }
            Mlp::Gated { gate_proj, up_proj, down_proj } => {
                let gate_up = t.linears(&normed, &[&gate_proj.weights, &up_proj.weights])?;
                drop(normed);
                let gated = t.gated(&gate_up, self.activation)?;
                drop(gate_up);
                down_proj.forward_add(t, &gated, x)
            }
        }
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = vec![&mut self.qkv, &mut self.proj];
        match &mut self.mlp {
            Mlp::Plain { fc1, fc2 } => all.extend([fc1, fc2]),
            Mlp::Gated { gate_proj, up_proj, down_proj } => all.extend([gate_proj, up_proj, down_proj]),
        }
        all
    }
}

impl Input {
    fn build(b: &mut Builder<'_>, c: &NativeVisionConfig) -> Result<Input> {
        let (h, part) = (c.hidden_size, Part::Vision);
        let name = |name: &str| format!("{NATIVE_PREFIX}{name}");
        let normal = Init::Normal(INIT_STD);
        Ok(match c.input {
            NativeInput::Patches => Input::Patches,
            NativeInput::Positions(rows) => Input::Positions {
                pos_embed: b.weight(&name("pos_embed.weight"), &[rows, h], normal, part)?,
                side: rows.isqrt(),
            },
            NativeInput::ClassToken => Input::ClassToken {
                class_embedding: b.weight_as(&name("class_embedding"), &[h], &[1, h], normal, part)?,
                class_pos_emb: b.weight(&name("class_pos_emb"), &[1, c.head_dim() / 2], normal, part)?,
                pre_layernorm: Norm::layer(b, &name("pre_layernorm"), h, c.norm_eps, part)?.within_residual(),
            },
        })
    }

    /// Rows of embedded patches to what the first block takes, and how it turns.
    fn apply(&self, t: &Tape, x: Var, layout: &Layout, c: &NativeVisionConfig) -> Result<(Var, Turn)> {
        let half = c.head_dim() / 2;
        let table = |angles: &[f32]| -> Result<RopeTable> {
            Ok(RopeTable::from_angles(&Tensor::from_f32(angles, &[angles.len() / half, half])?, 1.0)?)
        };
        let angles = layout.angles(c);
        Ok(match self {
            Input::Patches => (x, Turn { table: table(&angles)?, learned: None }),
            Input::Positions { pos_embed, side } => {
                let x = t.blend_table(x, &layout.taps(*side), pos_embed)?;
                (x, Turn { table: table(&angles)?, learned: None })
            }
            Input::ClassToken { class_embedding, class_pos_emb, pre_layernorm } => {
                let class = t.embedding(&vec![0; layout.num_frames()], class_embedding)?;
                let rows = layout.joined_rows();
                let x = t.gather_rows(&t.concat_rows(&[class, x])?, &rows)?;
                let class = class_pos_emb.value().to_vec_f32()?;
                let mut all = class.repeat(layout.num_frames());
                all.extend(&angles);
                let angles: Vec<f32> =
                    rows.iter().flat_map(|&row| &all[row as usize * half..][..half]).copied().collect();
                let learned = LearnedAngles { rows: layout.class_rows(), angles: class_pos_emb.clone() };
                (pre_layernorm.forward(t, &x)?, Turn { table: table(&angles)?, learned: Some(learned) })
            }
        })
    }
}

impl NativeTower {
    /// Builds the tower and its mergers for a decoder of so many layers.
    pub fn build(b: &mut Builder<'_>, config: &NativeVisionConfig, decoder_layers: usize) -> Result<NativeTower> {
        let c = config.clone();
        let (h, p, t) = (c.hidden_size, c.patch_size, c.temporal_patch_size);
        // A convolution over time as well, but where frames go in one by one.
        let disk = match c.family {
            NativeFamily::OneVision15 => vec![h, c.num_channels, p, p],
            _ => vec![h, c.num_channels, t, p, p],
        };
        let path = format!("{NATIVE_PREFIX}patch_embed.proj");
        let has_bias = c.family == NativeFamily::Qwen3Vl;
        let patch_embed = Linear::build_as(b, &path, &disk, &[h, c.patch_values()], has_bias, Part::Vision)?;
        let input = Input::build(b, &c)?;
        let blocks = (0..c.num_layers)
            .map(|i| Ok(Arc::new(Block::build(b, &format!("{NATIVE_PREFIX}blocks.{i}"), &c)?)))
            .collect::<Result<Vec<_>>>()?;
        let merger = Merger::build(b, &format!("{NATIVE_PREFIX}merger"), &c, false)?;
        let mut deepstack = Vec::new();
        for (i, block) in c.deepstack_blocks(decoder_layers).into_iter().enumerate() {
            let path = format!("{NATIVE_PREFIX}deepstack_merger_list.{i}");
            let merger = match block {
                Some(_) => Some(Merger::build(b, &path, &c, true)?),
                None => b.unreached(&path, "norm.weight", |b| Merger::build(b, &path, &c, true))?,
            };
            deepstack.extend(merger.map(|merger| Deep { merger, block }));
        }
        Ok(NativeTower { config: c, patch_embed, input, blocks, merger, deepstack, compute: b.compute() })
    }

    /// Patches `[p, values]` through all blocks, and through the mergers behind some of them.
    pub fn states(&self, t: &Tape, pixels: &Tensor, visuals: &[Visual], recompute: bool) -> Result<NativeStates> {
        let layout = Layout::new(&self.config, pixels, visuals)?;
        let mut patches = t.constant(pixels.clone());
        if self.config.windows.is_some() {
            patches = t.gather_rows(&patches, &layout.order)?;
        }
        let x = self.patch_embed.forward_wide(t, &t.cast(&patches, self.compute)?)?;
        drop(patches);
        let (mut x, turn) = self.input.apply(t, x, &layout, &self.config)?;
        let mut deep = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            memory::mark("vision.layers", i);
            let is_full = self.config.windows.as_ref().is_none_or(|windows| windows.full_blocks.contains(&i));
            let bounds = if is_full { &layout.frames } else { &layout.windows };
            x = if recompute {
                let (block, turn, bounds) = (block.clone(), turn.clone(), bounds.clone());
                t.checkpoint(&[x], move |t, inputs| block.forward(t, inputs[0].clone(), &turn, &bounds))?
            } else {
                block.forward(t, x, &turn, bounds)?
            };
            if let Some(behind) = self.deepstack.iter().find(|deep| deep.block == Some(i)) {
                deep.push(behind.merger.forward(t, &x)?);
            }
        }
        memory::mark("vision.layers", self.blocks.len());
        if self.config.input == NativeInput::ClassToken {
            x = t.gather_rows(&x, &layout.patch_rows())?;
        }
        Ok(NativeStates { states: x, back: layout.back, deep })
    }

    /// One row a token, `[tokens, decoder's width]`, in the order of the images and clips.
    pub fn merge(&self, t: &Tape, of: &NativeStates) -> Result<Var> {
        let merged = self.merger.forward(t, &of.states)?;
        match self.config.windows {
            Some(_) => Ok(t.gather_rows(&merged, &of.back)?),
            None => Ok(merged),
        }
    }

    /// Every projection; the patch embedding is a convolution and takes no adapter.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = Vec::new();
        for block in &mut self.blocks {
            all.extend(Arc::make_mut(block).linears_mut());
        }
        all.extend(self.merger.linears_mut());
        all.extend(self.deepstack.iter_mut().flat_map(|deep| deep.merger.linears_mut()));
        all
    }

    /// Tokens of an image or clip.
    pub fn num_tokens(&self, visual: &Visual) -> usize {
        visual.grid.iter().product::<usize>() / (self.config.merge_size * self.config.merge_size)
    }
}
