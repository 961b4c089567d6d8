//! Sound on its way to the decoder: Whisper's encoder over log-mel windows, states joined in succession, and two layers.
//! Owns no decoding of sound and no spectrogram.
//!
//! Source: `WhisperEncoder` of `transformers`, `AudioEncoder` of OpenAI's Whisper (whose names its tensors have); the projector as EgoGPT
//! describes it. Shapes: `w` windows, `f` frames and `s = f / 2` states of a window, `h` hidden, `k` states of a row. Windows are
//! packed: one row a state.

use crate::config::egogpt::SpeechSettings;
use crate::config::speech::SpeechConfig;
use crate::error::{ModelError, Result};
use crate::linear::{INIT_STD, Linear, Norm};
use crate::names::{SPEECH_PREFIX, SPEECH_PROJECTOR_PREFIX};
use crate::weights::{Builder, Init, Part};
use std::sync::Arc;
use tensor::{Activation, AttentionSpec, DType, Mask, Param, Tape, Tensor, Var, Window, memory, profile};

/// Every LayerNorm of Whisper has the default of PyTorch.
const EPS: f32 = 1e-5;
/// The first convolution keeps the frames' number.
const CONV_1: Window = Window { width: 3, stride: 1, padding: 1 };
/// The second one halves it.
const CONV_2: Window = Window { width: 3, stride: 2, padding: 1 };

/// One pre-norm block: full attention within a window, MLP.
#[derive(Clone)]
struct SpeechBlock {
    attn_ln: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    mlp_ln: Norm,
    mlp_0: Linear,
    mlp_2: Linear,
    activation: Activation,
}

impl SpeechBlock {
    fn build(b: &mut Builder<'_>, path: &str, c: &SpeechConfig) -> Result<SpeechBlock> {
        let (h, inner, part) = (c.hidden_size, c.intermediate_size, Part::Speech);
        let layer = |b: &mut Builder<'_>, name: &str, from, to, bias| {
            Linear::build(b, &format!("{path}.{name}"), from, to, bias, part)
        };
        Ok(SpeechBlock {
            attn_ln: Norm::layer(b, &format!("{path}.attn_ln"), h, EPS, part)?,
            query: layer(b, "attn.query", h, h, true)?,
            key: layer(b, "attn.key", h, h, false)?,
            value: layer(b, "attn.value", h, h, true)?,
            out: layer(b, "attn.out", h, h, true)?,
            mlp_ln: Norm::layer(b, &format!("{path}.mlp_ln"), h, EPS, part)?,
            mlp_0: layer(b, "mlp.0", h, inner, true)?,
            mlp_2: layer(b, "mlp.2", inner, h, true)?,
            activation: c.activation,
        })
    }

    /// `x_(ws)h -> x_(ws)h`.
    fn forward(&self, t: &Tape, x: Var, spec: &AttentionSpec) -> tensor::Result<Var> {
        let normed = self.attn_ln.forward(t, &x)?;
        let qkv = t.linears(&normed, &[&self.query.weights, &self.key.weights, &self.value.weights])?;
        drop(normed);
        let attended = t.self_attention(&qkv, spec)?;
        drop(qkv);
        let x = self.out.forward_add(t, &attended, x)?;
        drop(attended);
        let normed = self.mlp_ln.forward(t, &x)?;
        let inner = self.mlp_0.forward(t, &normed)?;
        drop(normed);
        let inner = t.activation(&inner, self.activation)?;
        self.mlp_2.forward_add(t, &inner, x)
    }

    fn linears_mut(&mut self) -> [&mut Linear; 6] {
        [&mut self.query, &mut self.key, &mut self.value, &mut self.out, &mut self.mlp_0, &mut self.mlp_2]
    }
}

/// Two convolutions along time, positions and blocks.
pub struct WhisperEncoder {
    config: SpeechConfig,
    conv1: Linear,
    conv2: Linear,
    /// A table of the checkpoint's that never trains, as in both references.
    positions: Param,
    blocks: Vec<Arc<SpeechBlock>>,
    ln_post: Norm,
    /// The dtype of activations; the residual stream is f32.
    compute: DType,
}

impl WhisperEncoder {
    fn build(b: &mut Builder<'_>, config: &SpeechConfig) -> Result<WhisperEncoder> {
        let c = config.clone();
        let (h, part) = (c.hidden_size, Part::Speech);
        let conv = |b: &mut Builder<'_>, name: &str, from: usize| {
            Linear::build_as(b, &format!("{SPEECH_PREFIX}{name}"), &[h, from, 3], &[h, from * 3], true, part)
        };
        let (conv1, conv2) = (conv(b, "conv1", c.num_mels)?, conv(b, "conv2", h)?);
        let module = SPEECH_PREFIX.trim_end_matches('.');
        let stored = b.unreached(module, "positional_embedding", |b| {
            b.weight(
                &format!("{SPEECH_PREFIX}positional_embedding"),
                &[c.num_positions, h],
                Init::Normal(INIT_STD),
                part,
            )
        })?;
        let positions = match stored {
            Some(stored) => stored.value(),
            None => Tensor::from_f32(&sinusoids(c.num_positions, h), &[c.num_positions, h])?,
        };
        let blocks = (0..c.num_layers)
            .map(|i| SpeechBlock::build(b, &format!("{SPEECH_PREFIX}blocks.{i}"), &c).map(Arc::new))
            .collect::<Result<_>>()?;
        Ok(WhisperEncoder {
            conv1,
            conv2,
            positions: Param::new("positions of sound", positions),
            blocks,
            ln_post: Norm::layer(b, &format!("{SPEECH_PREFIX}ln_post"), h, EPS, part)?,
            compute: b.compute(),
            config: c,
        })
    }

    /// Log-mel windows `[w, mels, f]` to states `[(w s), h]`, in the dtype of activations.
    fn forward(&self, t: &Tape, mel: &Tensor, recompute: bool) -> Result<Var> {
        let c = &self.config;
        let num_windows = match *mel.shape() {
            [windows, mels, frames] if mels == c.num_mels && frames == c.num_frames() => windows,
            _ => {
                return Err(ModelError::Input(format!(
                    "the spectrogram has shape {:?}, the speech encoder expects [windows, {}, {}]",
                    mel.shape(),
                    c.num_mels,
                    c.num_frames()
                )));
            }
        };
        let x = t.cast(&t.constant(frames_first(mel)?), self.compute)?;
        let x = t.activation(&self.conv1.forward(t, &t.unfold(&x, num_windows, CONV_1)?)?, Activation::Gelu)?;
        let x = t.activation(&self.conv2.forward(t, &t.unfold(&x, num_windows, CONV_2)?)?, Activation::Gelu)?;
        let rows: Vec<u32> = (0..num_windows).flat_map(|_| 0..c.num_positions as u32).collect();
        let mut x = t.add_table(&t.cast(&x, DType::F32)?, &rows, &self.positions)?;
        let cu: Arc<[usize]> = (0..=num_windows).map(|w| w * c.num_positions).collect();
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
        for (i, block) in self.blocks.iter().enumerate() {
            memory::mark("speech.blocks", i);
            x = if recompute {
                let (block, spec) = (block.clone(), spec.clone());
                t.checkpoint(&[x], move |t, inputs| block.forward(t, inputs[0].clone(), &spec))?
            } else {
                block.forward(t, x, &spec)?
            };
        }
        memory::mark("speech.blocks", self.blocks.len());
        Ok(self.ln_post.forward(t, &x)?)
    }
}

/// Encoder and projector.
pub struct SpeechSide {
    settings: SpeechSettings,
    encoder: WhisperEncoder,
    linear1: Linear,
    linear2: Linear,
}

impl SpeechSide {
    /// Builds both in front of a decoder of width `hidden`.
    pub(crate) fn build(b: &mut Builder<'_>, settings: &SpeechSettings, hidden: usize) -> Result<SpeechSide> {
        let encoder = WhisperEncoder::build(b, &settings.encoder)?;
        let mut layer = |name: &str, from, to| {
            Linear::build(b, &format!("{SPEECH_PROJECTOR_PREFIX}{name}"), from, to, true, Part::SpeechProjector)
        };
        Ok(SpeechSide {
            linear1: layer("linear1", settings.encoder.hidden_size * settings.rate, settings.inner)?,
            linear2: layer("linear2", settings.inner, hidden)?,
            encoder,
            settings: settings.clone(),
        })
    }

    /// Log-mel windows `[w, mels, f]` to rows for the decoder, `[(w s/k), hidden]` in f32. States that are left over at a window's
    /// end are dropped, as in the published code.
    pub(crate) fn features(&self, t: &Tape, mel: &Tensor, recompute: bool) -> Result<Var> {
        let span = profile::span("speech");
        let mut states = self.encoder.forward(t, mel, recompute)?;
        drop(span);
        let (num_windows, states_per_window) = (mel.shape()[0], self.settings.encoder.num_positions);
        let (rate, rows) = (self.settings.rate, self.settings.rows_per_window());
        if rows * rate < states_per_window {
            let kept = (0..num_windows).flat_map(|w| (0..rows * rate).map(move |s| (w * states_per_window + s) as u32));
            let gathered = t.gather_rows(&t.cast(&states, DType::F32)?, &kept.collect::<Vec<u32>>())?;
            states = t.cast(&gathered, self.encoder.compute)?;
        }
        let joined = t.reshape(states, &[num_windows * rows, self.settings.encoder.hidden_size * rate])?;
        let inner = t.activation(&self.linear1.forward(t, &joined)?, Activation::Relu)?;
        Ok(self.linear2.forward_wide(t, &inner)?)
    }

    /// Every projection; the convolutions take no adapter.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = Vec::new();
        for block in &mut self.encoder.blocks {
            all.extend(Arc::make_mut(block).linears_mut());
        }
        all.extend([&mut self.linear1, &mut self.linear2]);
        all
    }
}

/// `[w, mels, f]` to rows `[(w f), mels]`.
fn frames_first(mel: &Tensor) -> Result<Tensor> {
    let [windows, mels, frames] = [mel.shape()[0], mel.shape()[1], mel.shape()[2]];
    let mut rows = vec![0.0; windows * mels * frames];
    for (window, rows) in mel.f32s()?.chunks_exact(mels * frames).zip(rows.chunks_exact_mut(mels * frames)) {
        for (m, values) in window.chunks_exact(frames).enumerate() {
            values.iter().enumerate().for_each(|(frame, value)| rows[frame * mels + m] = *value);
        }
    }
    Ok(Tensor::from_f32(&rows, &[windows * frames, mels])?)
}

/// Whisper's positions where a checkpoint leaves them out: sines, then cosines, of frequencies from 1 to 1/10000.
fn sinusoids(len: usize, width: usize) -> Vec<f32> {
    let half = width / 2;
    let step = 10_000f64.ln() / (half.max(2) - 1) as f64;
    let angle = |at: usize, i: usize| at as f64 * (-step * i as f64).exp();
    let row = |at: usize| {
        let sines = (0..half).map(move |i| angle(at, i).sin() as f32);
        sines.chain((0..width - half).map(move |i| angle(at, i).cos() as f32))
    };
    (0..len).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::sinusoids;

    #[test]
    fn positions_are_sines_then_cosines() {
        let table = sinusoids(3, 4);
        let expected =
            [0.0, 0.0, 1.0, 1.0, 1f64.sin() as f32, 1e-4f64.sin() as f32, 1f64.cos() as f32, 1e-4f64.cos() as f32];
        assert_eq!(table.len(), 12);
        table.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-7, "{a} {b}"));
    }
}
