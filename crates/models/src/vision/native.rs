//! The tower that takes pictures at their own size: patches as rows, two-dimensional rotary positions, attention within
//! frames or windows, and the merger that makes one token of a square of patches. It refuses to cut pictures into patches.
//!
//! Source: `Qwen2VisionTransformerPretrainedModel`, `Qwen2_5_VisionTransformerPretrainedModel` of `transformers`;
//! Wang et al. 2024 (Qwen2-VL), Bai et al. 2025 (Qwen2.5-VL). Shapes: `p` patches of all images and clips one after the other, each in
//! the order `(t, h/m, w/m, m, m)`; `h` hidden; `m` the merger's side.

use crate::config::native::{NativeVisionConfig, Windows};
use crate::error::{ModelError, Result};
use crate::linear::{Linear, Norm};
use crate::model::Visual;
use crate::names::NATIVE_PREFIX;
use crate::weights::{Builder, Part};
use std::sync::Arc;
use tensor::{Activation, AttentionSpec, DType, Mask, RopeTable, Tape, Tensor, Var, memory};

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

/// Where the patches of a batch stand, and who sees whom.
struct Layout {
    /// For every row the patch that stands there: the identity without windows.
    order: Vec<u32>,
    /// For every token in its own place the row of the merger's output.
    back: Vec<u32>,
    /// Boundaries of the frames, in rows.
    frames: Arc<[usize]>,
    /// Boundaries of the windows, in rows.
    windows: Arc<[usize]>,
    rope: RopeTable,
}

/// Patch embedding, blocks and merger.
pub struct NativeTower {
    /// The configuration it was built from.
    pub config: NativeVisionConfig,
    patch_embed: Linear,
    blocks: Vec<Arc<Block>>,
    ln_q: Norm,
    mlp_0: Linear,
    mlp_2: Linear,
    compute: DType,
}

/// What the blocks made of a batch of patches, still in the order of windows.
pub struct NativeStates {
    states: Var,
    back: Vec<u32>,
}

impl Block {
    fn build(b: &mut Builder<'_>, path: &str, c: &NativeVisionConfig) -> Result<Block> {
        let (h, inner, part) = (c.hidden_size, c.intermediate_size, Part::Vision);
        let norm = |b: &mut Builder<'_>, name: &str| build_norm(b, &format!("{path}.{name}"), c, part);
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
            false => Mlp::Plain { fc1: layer("fc1", h, inner)?, fc2: layer("fc2", inner, h)? },
        };
        let (num_heads, head_dim) = (c.num_heads, c.head_dim());
        Ok(Block { norm1, qkv, proj, norm2, mlp, num_heads, head_dim, activation: c.activation })
    }

    /// `x_ph -> x_ph`; attention within the given boundaries.
    fn forward(&self, t: &Tape, x: Var, rope: &RopeTable, bounds: &Arc<[usize]>) -> tensor::Result<Var> {
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
        let qkv = t.rope(qkv, 2 * self.num_heads, self.head_dim, rope)?;
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

fn build_norm(b: &mut Builder<'_>, path: &str, c: &NativeVisionConfig, part: Part) -> Result<Norm> {
    // Both classes write this epsilon down in their code.
    match c.is_gated {
        true => Norm::rms(b, path, c.hidden_size, 1e-6, part),
        false => Norm::layer(b, path, c.hidden_size, 1e-6, part),
    }
}

impl NativeTower {
    /// Builds the tower and its merger.
    pub fn build(b: &mut Builder<'_>, config: &NativeVisionConfig) -> Result<NativeTower> {
        let c = config.clone();
        let (h, p, t) = (c.hidden_size, c.patch_size, c.temporal_patch_size);
        let disk = [h, c.num_channels, t, p, p];
        let path = format!("{NATIVE_PREFIX}patch_embed.proj");
        let patch_embed = Linear::build_as(b, &path, &disk, &[h, c.patch_values()], false, Part::Vision)?;
        let blocks = (0..c.num_layers)
            .map(|i| Ok(Arc::new(Block::build(b, &format!("{NATIVE_PREFIX}blocks.{i}"), &c)?)))
            .collect::<Result<Vec<_>>>()?;
        let (merger, part) = (format!("{NATIVE_PREFIX}merger"), Part::Projector);
        let ln_q = build_norm(b, &format!("{merger}.ln_q"), &c, part)?;
        let joined = h * c.merge_size * c.merge_size;
        let mlp_0 = Linear::build(b, &format!("{merger}.mlp.0"), joined, joined, true, part)?;
        let mlp_2 = Linear::build(b, &format!("{merger}.mlp.2"), joined, c.out_hidden_size, true, part)?;
        Ok(NativeTower { config: c, patch_embed, blocks, ln_q, mlp_0, mlp_2, compute: b.compute() })
    }

    /// Patches `[p, values]` through all blocks.
    pub fn states(&self, t: &Tape, pixels: &Tensor, visuals: &[Visual], recompute: bool) -> Result<NativeStates> {
        let layout = self.layout(pixels, visuals)?;
        let mut patches = t.constant(pixels.clone());
        if self.config.windows.is_some() {
            patches = t.gather_rows(&patches, &layout.order)?;
        }
        let mut x = self.patch_embed.forward_wide(t, &t.cast(&patches, self.compute)?)?;
        drop(patches);
        for (i, block) in self.blocks.iter().enumerate() {
            memory::mark("vision.layers", i);
            let is_full = self.config.windows.as_ref().is_none_or(|windows| windows.full_blocks.contains(&i));
            let bounds = if is_full { &layout.frames } else { &layout.windows };
            x = if recompute {
                let (block, rope, bounds) = (block.clone(), layout.rope.clone(), bounds.clone());
                t.checkpoint(&[x], move |t, inputs| block.forward(t, inputs[0].clone(), &rope, &bounds))?
            } else {
                block.forward(t, x, &layout.rope, bounds)?
            };
        }
        memory::mark("vision.layers", self.blocks.len());
        Ok(NativeStates { states: x, back: layout.back })
    }

    /// One row a token, `[tokens, decoder's width]`, in the order of the images and clips.
    pub fn merge(&self, t: &Tape, of: NativeStates) -> Result<Var> {
        let joined = self.config.hidden_size * self.config.merge_size * self.config.merge_size;
        let normed = self.ln_q.forward(t, &of.states)?;
        let groups = t.reshape(normed, &[of.back.len(), joined])?;
        let inner = t.activation(&self.mlp_0.forward(t, &groups)?, Activation::Gelu)?;
        let merged = self.mlp_2.forward_wide(t, &inner)?;
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
        all.extend([&mut self.mlp_0, &mut self.mlp_2]);
        all
    }

    /// Tokens of an image or clip.
    pub fn num_tokens(&self, visual: &Visual) -> usize {
        visual.grid.iter().product::<usize>() / (self.config.merge_size * self.config.merge_size)
    }

    fn layout(&self, pixels: &Tensor, visuals: &[Visual]) -> Result<Layout> {
        let c = &self.config;
        let m = c.merge_size;
        let num_patches: usize = visuals.iter().map(|v| v.grid.iter().product::<usize>()).sum();
        if pixels.shape() != [num_patches, c.patch_values()] {
            return Err(ModelError::Input(format!(
                "patches have shape {:?}, the vision tower expects [{num_patches}, {}] for the grids of {} images and clips; check `patch_size`, `temporal_patch_size` and `merge_size` in the processor's files",
                pixels.shape(),
                c.patch_values(),
                visuals.len()
            )));
        }
        if let Some(v) = visuals.iter().find(|v| v.grid[1] % m != 0 || v.grid[2] % m != 0 || v.grid.contains(&0)) {
            return Err(ModelError::Input(format!(
                "a grid of {:?} patches is not made of squares of {m} x {m}; check `merge_size` in the processor's files",
                v.grid
            )));
        }
        let unit = m * m;
        let (mut groups, mut frames, mut windows) = (Vec::new(), vec![0], vec![0]);
        for visual in visuals {
            let [t, h, w] = [visual.grid[0], visual.grid[1] / m, visual.grid[2] / m];
            for _ in 0..t {
                let first = groups.len() as u32;
                match &c.windows {
                    None => groups.extend(first..first + (h * w) as u32),
                    Some(Windows { side, .. }) => {
                        for (top, left) in
                            (0..h).step_by(*side).flat_map(|y| (0..w).step_by(*side).map(move |x| (y, x)))
                        {
                            for y in top..h.min(top + side) {
                                groups.extend((left..w.min(left + side)).map(|x| first + (y * w + x) as u32));
                            }
                            windows.push(groups.len() * unit);
                        }
                    }
                }
                frames.push(groups.len() * unit);
            }
        }
        let order: Vec<u32> = groups.iter().flat_map(|&g| (0..unit).map(move |i| g * unit as u32 + i as u32)).collect();
        let mut back = vec![0; groups.len()];
        for (row, &group) in groups.iter().enumerate() {
            back[group as usize] = row as u32;
        }
        let rope = self.rope(visuals, &order)?;
        Ok(Layout { order, back, frames: frames.into(), windows: windows.into(), rope })
    }

    /// The angles of each row: the first half of a head's pairs turns by the patch's row, the second by its column.
    fn rope(&self, visuals: &[Visual], order: &[u32]) -> Result<RopeTable> {
        let (m, axis) = (self.config.merge_size, self.config.head_dim() / 2);
        let inverse: Vec<f32> =
            (0..axis / 2).map(|i| (1.0 / self.config.rope_theta.powf(2.0 * i as f64 / axis as f64)) as f32).collect();
        let mut places = Vec::with_capacity(order.len());
        for visual in visuals {
            let [t, h, w] = visual.grid;
            for _ in 0..t {
                for (top, left) in (0..h).step_by(m).flat_map(|y| (0..w).step_by(m).map(move |x| (y, x))) {
                    places.extend((0..m * m).map(|i| [(top + i / m) as f32, (left + i % m) as f32]));
                }
            }
        }
        let mut angles = Vec::with_capacity(order.len() * axis);
        for &patch in order {
            for place in places[patch as usize] {
                angles.extend(inverse.iter().map(|f| place * f));
            }
        }
        Ok(RopeTable::from_angles(&Tensor::from_f32(&angles, &[order.len(), axis])?, 1.0)?)
    }
}
