//! The vision transformer that SigLIP and CLIP share; their differences are fields of [`VisionConfig`].
//!
//! Source: `SiglipVisionModel`, `CLIPVisionModel` of `transformers`. Shapes: `m` images, `g` patches a side, `s` tokens
//! of an image (class token included), `h` hidden, `p` patch side, `c` channels. Images are packed: one row a token.

use crate::config::vision::VisionConfig;
use crate::error::{ModelError, Result};
use crate::linear::{INIT_STD, Linear, Norm};
use crate::weights::{Builder, Init, Part};
use std::sync::Arc;
use tensor::{Activation, AttentionSpec, DType, Mask, Param, Tape, Tensor, Var, memory};

/// One pre-norm block: full attention within an image, MLP.
#[derive(Clone)]
pub struct VisionLayer {
    layer_norm1: Norm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: Norm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl VisionLayer {
    fn build(b: &mut Builder<'_>, path: &str, c: &VisionConfig) -> Result<VisionLayer> {
        let (h, p) = (c.hidden_size, Part::Vision);
        let attn = format!("{path}.self_attn");
        let mut square = |name: &str| Linear::build(b, &format!("{attn}.{name}"), h, h, true, p);
        let (q_proj, k_proj, v_proj, out_proj) =
            (square("q_proj")?, square("k_proj")?, square("v_proj")?, square("out_proj")?);
        Ok(VisionLayer {
            layer_norm1: Norm::layer(b, &format!("{path}.layer_norm1"), h, c.layer_norm_eps, p)?,
            q_proj,
            k_proj,
            v_proj,
            out_proj,
            layer_norm2: Norm::layer(b, &format!("{path}.layer_norm2"), h, c.layer_norm_eps, p)?,
            fc1: Linear::build(b, &format!("{path}.mlp.fc1"), h, c.intermediate_size, true, p)?,
            fc2: Linear::build(b, &format!("{path}.mlp.fc2"), c.intermediate_size, h, true, p)?,
            activation: c.activation,
        })
    }

    /// `x_(ms)h -> x_(ms)h`.
    fn forward(&self, t: &Tape, x: Var, spec: &AttentionSpec) -> tensor::Result<Var> {
        let normed = self.layer_norm1.forward(t, &x)?;
        let qkv = t.linears(&normed, &[&self.q_proj.weights, &self.k_proj.weights, &self.v_proj.weights])?;
        drop(normed);
        let attended = t.self_attention(&qkv, spec)?;
        drop(qkv);
        let x = self.out_proj.forward_add(t, &attended, x)?;
        drop(attended);
        let normed = self.layer_norm2.forward(t, &x)?;
        let inner = self.fc1.forward(t, &normed)?;
        drop(normed);
        let inner = t.activation(&inner, self.activation)?;
        self.fc2.forward_add(t, &inner, x)
    }

    /// Every projection, in checkpoint order.
    pub fn linears_mut(&mut self) -> [&mut Linear; 6] {
        [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj, &mut self.out_proj, &mut self.fc1, &mut self.fc2]
    }
}

/// Patch embedding, positions and the blocks up to the highest selected hidden state.
pub struct VisionTower {
    /// The configuration it was built from.
    pub config: VisionConfig,
    class_embedding: Option<Param>,
    patch_embedding: Linear,
    position_embedding: Param,
    pre_norm: Option<Norm>,
    /// The blocks; those above the highest selected hidden state never run.
    layers: Vec<Arc<VisionLayer>>,
    /// Projections of SigLIP's pooling head, which never runs.
    head: Vec<Linear>,
    /// The dtype of activations; the residual stream is f32.
    compute: DType,
}

impl VisionTower {
    /// Builds the tower under its canonical prefix, with the first `depth` blocks reachable.
    pub fn build(b: &mut Builder<'_>, prefix: &str, config: &VisionConfig, depth: usize) -> Result<VisionTower> {
        let c = config.clone();
        let (h, part) = (c.hidden_size, Part::Vision);
        let emb = format!("{prefix}embeddings");
        let class_embedding = match c.class_token {
            true => {
                Some(b.weight_as(&format!("{emb}.class_embedding"), &[h], &[1, h], Init::Normal(INIT_STD), part)?)
            }
            false => None,
        };
        let pixels = c.num_channels * c.patch_size * c.patch_size;
        let disk = [h, c.num_channels, c.patch_size, c.patch_size];
        let patch_embedding =
            Linear::build_as(b, &format!("{emb}.patch_embedding"), &disk, &[h, pixels], c.patch_bias, part)?;
        let position_embedding = b.weight(
            &format!("{emb}.position_embedding.weight"),
            &[c.num_positions(), h],
            Init::Normal(INIT_STD),
            part,
        )?;
        let pre_norm = match c.pre_norm {
            true => {
                let norm = Norm::layer(b, &format!("{prefix}pre_layrnorm"), h, c.layer_norm_eps, part)?;
                Some(norm.within_residual())
            }
            false => None,
        };
        let mut layers = Vec::new();
        for i in 0..c.num_layers {
            let path = format!("{prefix}encoder.layers.{i}");
            let layer = match i < depth {
                true => Some(VisionLayer::build(b, &path, &c)?),
                false => b.unreached(&path, "layer_norm1.weight", |b| VisionLayer::build(b, &path, &c))?,
            };
            layers.extend(layer.map(Arc::new));
        }
        let norm = format!("{prefix}post_layernorm");
        b.unreached(&norm, "weight", |b| Norm::layer(b, &norm, h, c.layer_norm_eps, part))?;
        let head = match c.pooling_head {
            true => b.unreached(&format!("{prefix}head"), "probe", |b| pooling_head(b, prefix, &c))?,
            false => None,
        };
        Ok(VisionTower {
            config: c,
            class_embedding,
            patch_embedding,
            position_embedding,
            pre_norm,
            layers,
            head: head.unwrap_or_default(),
            compute: b.compute(),
        })
    }

    /// Pixels `[m, c, side, side]` to the selected hidden states `[(m s), h]`, one for each index in `select`
    /// (0 = the input of the first block), in that order.
    pub fn forward(&self, t: &Tape, pixels: &Tensor, select: &[usize], recompute: bool) -> Result<Vec<Var>> {
        let c = &self.config;
        let expected = [c.num_channels, c.image_size, c.image_size];
        if pixels.shape().len() != 4 || pixels.shape()[1..] != expected {
            return Err(ModelError::Input(format!(
                "pixels have shape {:?}, the vision tower expects [images, {}, {}, {}]; check `size` and `crop_size` in the processor's files",
                pixels.shape(),
                expected[0],
                expected[1],
                expected[2]
            )));
        }
        let num_images = pixels.shape()[0];
        let (patches_per_image, tokens) = (c.grid() * c.grid(), c.num_positions());
        let patches = t.constant(extract_patches(pixels.f32s()?, num_images, c)?);
        let mut x = self.patch_embedding.forward_wide(t, &t.cast(&patches, self.compute)?)?;
        drop(patches);
        if let Some(class) = &self.class_embedding {
            let class = t.embedding(&vec![0; num_images], class)?;
            let joined = t.concat_rows(&[class, x])?;
            let rows: Vec<u32> = (0..num_images)
                .flat_map(|m| {
                    let first = num_images + m * patches_per_image;
                    std::iter::once(m).chain(first..first + patches_per_image).map(|r| r as u32)
                })
                .collect();
            x = t.gather_rows(&joined, &rows)?;
        }
        let positions: Vec<u32> = (0..num_images).flat_map(|_| 0..tokens as u32).collect();
        x = t.add_table(&x, &positions, &self.position_embedding)?;
        if let Some(norm) = &self.pre_norm {
            x = norm.forward(t, &x)?;
        }
        let cu: Arc<[usize]> = (0..=num_images).map(|m| m * tokens).collect();
        let head_dim = c.hidden_size / c.num_heads;
        let spec = AttentionSpec {
            num_heads: c.num_heads,
            num_kv_heads: c.num_heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            mask: Mask::Full,
            cu_q: cu.clone(),
            cu_k: cu,
        };
        let depth = select.iter().copied().max().unwrap_or(0);
        // Only the selected states outlive their block.
        let mut states = vec![None; depth + 1];
        let mut keep = |i: usize, x: &Var| states[i] = select.contains(&i).then(|| x.clone());
        keep(0, &x);
        for (i, layer) in self.layers[..depth].iter().enumerate() {
            memory::mark("vision.layers", i);
            x = if recompute {
                let (layer, spec) = (layer.clone(), spec.clone());
                t.checkpoint(&[x], move |t, inputs| layer.forward(t, inputs[0].clone(), &spec))?
            } else {
                layer.forward(t, x, &spec)?
            };
            keep(i + 1, &x);
        }
        memory::mark("vision.layers", depth);
        Ok(select.iter().filter_map(|&i| states[i].clone()).collect())
    }

    /// Every projection; the patch embedding is a convolution and takes no adapter.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = Vec::new();
        for layer in &mut self.layers {
            all.extend(Arc::make_mut(layer).linears_mut());
        }
        all.extend(&mut self.head);
        all
    }
}

/// The weights of `SiglipMultiheadAttentionPoolingHead`; returns its projections.
fn pooling_head(b: &mut Builder<'_>, prefix: &str, c: &VisionConfig) -> Result<Vec<Linear>> {
    let (h, inner, part) = (c.hidden_size, c.intermediate_size, Part::Vision);
    let head = format!("{prefix}head");
    b.weight(&format!("{head}.probe"), &[1, 1, h], Init::Normal(INIT_STD), part)?;
    b.weight(&format!("{head}.attention.in_proj_weight"), &[3 * h, h], Init::Normal(INIT_STD), part)?;
    b.weight(&format!("{head}.attention.in_proj_bias"), &[3 * h], Init::Constant(0.0), part)?;
    Norm::layer(b, &format!("{head}.layernorm"), h, c.layer_norm_eps, part)?;
    Ok(vec![
        Linear::build(b, &format!("{head}.attention.out_proj"), h, h, true, part)?,
        Linear::build(b, &format!("{head}.mlp.fc1"), h, inner, true, part)?,
        Linear::build(b, &format!("{head}.mlp.fc2"), inner, h, true, part)?,
    ])
}

/// Pixels `[m, c, side, side]` to patch rows `[(m g g), (c p p)]`: the convolution with stride = kernel as a product.
fn extract_patches(pixels: &[f32], num_images: usize, c: &VisionConfig) -> Result<Tensor> {
    let (p, g, side) = (c.patch_size, c.grid(), c.image_size);
    let width = c.num_channels * p * p;
    let mut rows = Vec::with_capacity(num_images * g * g * width);
    for image in pixels.chunks_exact(c.num_channels * side * side) {
        for (gy, gx) in (0..g).flat_map(|y| (0..g).map(move |x| (y, x))) {
            for channel in image.chunks_exact(side * side) {
                for y in gy * p..(gy + 1) * p {
                    let start = y * side + gx * p;
                    rows.extend_from_slice(&channel[start..start + p]);
                }
            }
        }
    }
    Ok(Tensor::from_f32(&rows, &[num_images * g * g, width])?)
}
