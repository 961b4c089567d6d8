//! Owns [`MelSpectrogram`]: log-mel features of sound as `WhisperFeatureExtractor` of `transformers` computes them.
//! It refuses to decode, and to drop what is longer than a window: that becomes further windows.
//!
//! Source: `WhisperFeatureExtractor._np_extract_fbank_features`, `mel_filter_bank` (scale and norm `slaney`); Radford et al. 2022
//! (Whisper). Everything is computed in f64 and stored in f32. The reference computes in f64 too, or in f32 where torch is there; its
//! own documentation puts the two within 1e-5.

use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

/// Samples of a window of the Fourier transform.
const N_FFT: usize = 400;
/// Samples from one frame to the next.
pub(crate) const HOP: usize = 160;
/// Frequencies of a transform of real numbers.
const BINS: usize = N_FFT / 2 + 1;
/// Highest frequency of the filters, half the rate.
const TOP_HZ: f64 = 8000.0;

/// Log-mel features of windows of one length.
#[derive(Clone)]
pub(crate) struct MelSpectrogram {
    num_mels: usize,
    /// Frames of a window; it holds `HOP` times as many samples.
    num_frames: usize,
    hann: Vec<f64>,
    /// For every filter its first frequency and its weights from there on.
    filters: Vec<(usize, Vec<f64>)>,
    fft: Arc<dyn RealToComplex<f64>>,
}

impl std::fmt::Debug for MelSpectrogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MelSpectrogram")
            .field("num_mels", &self.num_mels)
            .field("num_frames", &self.num_frames)
            .finish()
    }
}

impl MelSpectrogram {
    /// Features of `num_mels` filters over windows of `num_frames` frames.
    pub fn new(num_mels: usize, num_frames: usize) -> Self {
        let hann = |n: usize| 0.5 - 0.5 * (std::f64::consts::TAU * n as f64 / N_FFT as f64).cos();
        Self {
            num_mels,
            num_frames,
            hann: (0..N_FFT).map(hann).collect(),
            filters: filters(num_mels),
            fft: RealFftPlanner::new().plan_fft_forward(N_FFT),
        }
    }

    /// `[mels, frames]` of a window.
    pub fn shape(&self) -> [usize; 2] {
        [self.num_mels, self.num_frames]
    }

    /// Samples of a window.
    pub fn window_samples(&self) -> usize {
        self.num_frames * HOP
    }

    /// Windows of so many samples, at least one; the last is filled up with silence.
    pub fn num_windows(&self, num_samples: usize) -> usize {
        num_samples.div_ceil(self.window_samples()).max(1)
    }

    /// Writes the features `[windows, mels, frames]` of `num_windows` windows at the end of `values`; samples behind the last
    /// window are the caller's fault.
    pub fn write(&self, samples: &[f32], num_windows: usize, values: &mut Vec<f32>) {
        let size = self.window_samples();
        for window in 0..num_windows {
            let start = (window * size).min(samples.len());
            self.write_window(&samples[start..samples.len().min(start + size)], values);
        }
    }

    fn write_window(&self, samples: &[f32], values: &mut Vec<f32>) {
        let (size, half) = (self.window_samples(), N_FFT / 2);
        // The frames are centred on their samples, and the window is mirrored at its ends; it is filled up before.
        let sample = |at: isize| -> f64 {
            let at = at.unsigned_abs();
            let at = if at < size { at } else { 2 * (size - 1) - at };
            samples.get(at).copied().map_or(0.0, f64::from)
        };
        let mut input = vec![0.0; N_FFT];
        let mut spectrum = vec![Complex::default(); BINS];
        let mut scratch = self.fft.make_scratch_vec();
        let mut logs = vec![0.0f64; self.num_mels * self.num_frames];
        let mut highest = f64::NEG_INFINITY;
        for frame in 0..self.num_frames {
            let first = (frame * HOP) as isize - half as isize;
            for (n, (value, hann)) in input.iter_mut().zip(&self.hann).enumerate() {
                *value = hann * sample(first + n as isize);
            }
            // The lengths are those that the plan was made for, which is all that it asks.
            let done = self.fft.process_with_scratch(&mut input, &mut spectrum, &mut scratch);
            debug_assert!(done.is_ok());
            for (mel, (first, weights)) in self.filters.iter().enumerate() {
                let power: f64 = weights.iter().zip(&spectrum[*first..]).map(|(w, bin)| w * bin.norm_sqr()).sum();
                let log = power.max(1e-10).log10();
                highest = highest.max(log);
                logs[mel * self.num_frames + frame] = log;
            }
        }
        values.extend(logs.iter().map(|log| ((log.max(highest - 8.0) + 4.0) / 4.0) as f32));
    }
}

/// Triangles on Slaney's scale from 0 to 8000 Hz, each of area 2 over its width, as weights of the frequencies.
fn filters(num_mels: usize) -> Vec<(usize, Vec<f64>)> {
    let (lowest, highest) = (0.0, mel_of(TOP_HZ));
    let edge = |i: usize| hz_of(lowest + (highest - lowest) * i as f64 / (num_mels + 1) as f64);
    let edges: Vec<f64> = (0..num_mels + 2).map(edge).collect();
    let hz = |bin: usize| TOP_HZ * bin as f64 / (BINS - 1) as f64;
    let filter = |mel: usize| {
        let (left, centre, right) = (edges[mel], edges[mel + 1], edges[mel + 2]);
        let weight = |bin: usize| {
            let rising = (hz(bin) - left) / (centre - left);
            let falling = (right - hz(bin)) / (right - centre);
            rising.min(falling).max(0.0) * 2.0 / (right - left)
        };
        let inside: Vec<usize> = (0..BINS).filter(|&bin| weight(bin) > 0.0).collect();
        let first = inside.first().copied().unwrap_or(0);
        (first, inside.into_iter().map(weight).collect())
    };
    (0..num_mels).map(filter).collect()
}

/// Slaney's scale: linear to 1000 Hz, logarithmic above.
fn mel_of(hz: f64) -> f64 {
    if hz >= 1000.0 { 15.0 + (hz / 1000.0).ln() * 27.0 / 6.4f64.ln() } else { 3.0 * hz / 200.0 }
}

fn hz_of(mel: f64) -> f64 {
    if mel >= 15.0 { 1000.0 * (6.4f64.ln() / 27.0 * (mel - 15.0)).exp() } else { 200.0 * mel / 3.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        name: String,
        num_mels: usize,
        num_frames: usize,
        samples: Vec<f32>,
        /// Windows, then for the kept frames of each their mels.
        kept: Vec<usize>,
        values: Vec<f32>,
        sums: Vec<f64>,
    }

    fn cases() -> Vec<Case> {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/data/mel");
        let info: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
        let tensors = hub::SafeTensors::open(dir.join("expected.safetensors")).unwrap();
        let f32s = |name: &str| -> Vec<f32> {
            let view = tensors.get(name).unwrap();
            view.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let number = |v: &serde_json::Value| v.as_u64().unwrap() as usize;
        (info["cases"].as_array().unwrap().iter())
            .map(|case| {
                let name = case["name"].as_str().unwrap().to_owned();
                // The same formula as in the generator, in whole numbers until the last step.
                let sample = |i: usize| {
                    let slow = ((i * number(&case["step"])) % 65_536) as f64 / 65_536.0 * std::f64::consts::TAU;
                    let noise = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48;
                    (case["level"].as_f64().unwrap() * (0.8 * slow.sin() + 0.2 * (noise as f64 / 32_768.0 - 1.0)))
                        as f32
                };
                Case {
                    num_mels: number(&case["num_mels"]),
                    num_frames: number(&case["num_frames"]),
                    samples: (0..number(&case["num_samples"])).map(sample).collect(),
                    kept: case["kept"].as_array().unwrap().iter().map(number).collect(),
                    values: f32s(&name),
                    sums: case["sums"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect(),
                    name,
                }
            })
            .collect()
    }

    #[test]
    fn features_equal_the_references() {
        let cases = cases();
        assert!(cases.len() >= 8);
        for case in cases {
            let mel = MelSpectrogram::new(case.num_mels, case.num_frames);
            let num_windows = mel.num_windows(case.samples.len());
            let mut found = Vec::new();
            mel.write(&case.samples, num_windows, &mut found);
            let window = case.num_mels * case.num_frames;
            assert_eq!(found.len(), num_windows * window, "{}", case.name);
            assert_eq!(num_windows, case.sums.len(), "{}: nothing is dropped", case.name);
            let kept: Vec<f32> = (0..num_windows)
                .flat_map(|w| case.kept.iter().map(move |&frame| (w, frame)))
                .flat_map(|(w, frame)| (0..case.num_mels).map(move |m| w * window + m * case.num_frames + frame))
                .map(|at| found[at])
                .collect();
            // Both in f64 and stored as f32, whose spacing at 2 is 2.4e-7.
            let off = kept.iter().zip(&case.values).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            assert_eq!(kept.len(), case.values.len());
            assert!(off < 1e-6, "{}: {off}", case.name);
            for (w, expected) in case.sums.iter().enumerate() {
                let sum: f64 = found[w * window..(w + 1) * window].iter().map(|&v| f64::from(v)).sum();
                assert!((sum - expected).abs() < 1e-6 * window as f64, "{}: {sum} {expected}", case.name);
            }
        }
    }

    #[test]
    fn one_sample_changes_the_features() {
        let mel = MelSpectrogram::new(80, 50);
        let samples: Vec<f32> = (0..8000).map(|i| ((i * 13) % 101) as f32 / 101.0 - 0.5).collect();
        let (mut before, mut after) = (Vec::new(), Vec::new());
        mel.write(&samples, 1, &mut before);
        let mut changed = samples;
        changed[4321] += 0.1;
        mel.write(&changed, 1, &mut after);
        assert_ne!(before, after);
    }
}
