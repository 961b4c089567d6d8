//! Positions of three numbers (time, height, width) of the tokens of Qwen2-VL, Qwen2.5-VL and Qwen3-VL. Owns the counting; how
//! the numbers turn queries and keys is the decoder's.
//!
//! Source: `Qwen2VLModel.get_rope_index`, `Qwen2_5_VLModel.get_rope_index`, `Qwen3VLModel.get_rope_index` of `transformers`, and the
//! published code before them, which goes on after the largest position of a clip ([`MropeResume`]). Time is that of the frames:
//! the position of the temporal patch `i` is `floor(i * seconds between patches * positions a second)`; in Qwen3-VL every
//! temporal patch is a picture by itself, and its time stands in the text before it.

use crate::config::QwenVlConfig;
use crate::config::native::MropeResume;
use crate::config::qwen_vl::VisualPositions;
use crate::error::{ModelError, Result};
use crate::model::{ModelInput, Visual};

/// The positions of all tokens of a packed input; every sample starts at 0.
pub fn positions(input: &ModelInput, config: &QwenVlConfig) -> Result<Vec<[u32; 3]>> {
    let merge = config.vision.merge_size;
    let mut positions = Vec::with_capacity(input.ids.len());
    let by_step = config.positions == VisualPositions::Steps;
    let parts = |visual: &Visual| if by_step { visual.grid[0] } else { 1 };
    let mut rows = input.image_rows.as_slice();
    let mut visuals = input.visuals.iter().flat_map(|visual| std::iter::repeat_n(visual, parts(visual)));
    for bounds in input.cu_seqlens.windows(2) {
        let mut next = 0;
        while positions.len() < bounds[1] {
            let row = positions.len();
            if rows.first() != Some(&(row as u32)) {
                positions.push([next; 3]);
                next += 1;
                continue;
            }
            let Some(visual) = visuals.next() else {
                return Err(ModelError::Input(format!("row {row} takes image features, and no image or clip is left")));
            };
            let [t, h, w] = [visual.grid[0] / parts(visual), visual.grid[1] / merge, visual.grid[2] / merge];
            let count = t * h * w;
            let is_whole = count <= rows.len() && rows[..count].iter().enumerate().all(|(i, &r)| r as usize == row + i);
            if !is_whole || row + count > bounds[1] {
                return Err(ModelError::Input(format!(
                    "an image or clip of {t} x {h} x {w} tokens has no {count} rows in succession from row {row}"
                )));
            }
            rows = &rows[count..];
            for time in (0..t).map(|i| next + temporal(visual, config, i)) {
                for place in 0..h * w {
                    positions.push([time, next + (place / w) as u32, next + (place % w) as u32]);
                }
            }
            let extent = h.max(w) as u32;
            next += match config.positions {
                VisualPositions::Clips(MropeResume::AfterMax) => extent.max(temporal(visual, config, t - 1) + 1),
                _ => extent,
            };
        }
    }
    Ok(positions)
}

/// The position of a temporal patch within its clip; in f32, as the reference counts.
fn temporal(visual: &Visual, config: &QwenVlConfig, patch: usize) -> u32 {
    match config.vision.tokens_per_second {
        Some(rate) if visual.is_video => (patch as f32 * (rate as f32 * visual.seconds_per_grid as f32)) as u32,
        _ => patch as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ModelConfig, VisionKind};
    use serde_json::Value;
    use std::path::Path;

    fn i64s(file: &hub::SafeTensors, name: &str) -> Vec<i64> {
        let data = file.get(name).unwrap().data;
        data.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    /// Those that `transformers` was given or, of Qwen3-VL, counted itself.
    #[test]
    fn positions_of_every_sample() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models");
        let mut num_samples = 0;
        for folder in
            ["qwen2_vl_hub", "qwen2_5_vl_hub", "qwen2_5_vl_tied", "qwen3_vl_hub", "qwen3_vl_odd", "qwen3_vl_defaults"]
        {
            let config = ModelConfig::load(&root.join(folder)).unwrap();
            let Some(VisionKind::QwenVl(qwen)) = config.vision() else { panic!("{folder}") };
            let info: Value = hub::json::read_json(root.join(folder).join("expected.json")).unwrap();
            let tensors = hub::SafeTensors::open(root.join(folder).join("expected.safetensors")).unwrap();
            for (i, sample) in info["samples"].as_array().unwrap().iter().enumerate() {
                let ids: Vec<u32> =
                    i64s(&tensors, &format!("sample{i}.input_ids")).iter().map(|&id| id as u32).collect();
                let is_placeholder = |id: u32| id == qwen.image_token_id || id == qwen.video_token_id;
                let visual = |v: &Value| Visual {
                    is_video: v["is_video"].as_bool().unwrap(),
                    grid: [0, 1, 2].map(|axis| v["grid"][axis].as_u64().unwrap() as usize),
                    seconds_per_grid: v["seconds_per_grid"].as_f64().unwrap(),
                    ..Visual::default()
                };
                let input = ModelInput {
                    cu_seqlens: [0, ids.len()].into(),
                    image_rows: (0..ids.len() as u32).filter(|&row| is_placeholder(ids[row as usize])).collect(),
                    visuals: sample["visuals"].as_array().unwrap().iter().map(visual).collect(),
                    ids,
                    ..ModelInput::default()
                };
                let ours: Vec<i64> = positions(&input, qwen).unwrap().iter().flatten().map(|&p| i64::from(p)).collect();
                assert_eq!(ours, i64s(&tensors, &format!("sample{i}.positions")), "{folder}, sample {i}");
                num_samples += 1;
            }
        }
        assert!(num_samples >= 18);
    }

    #[test]
    fn a_clip_without_its_rows_is_refused() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/qwen3_vl_hub");
        let config = ModelConfig::load(&path).unwrap();
        let Some(VisionKind::QwenVl(qwen)) = config.vision() else { panic!() };
        // Two steps of one token each, the second of which has two rows.
        let input = ModelInput {
            ids: vec![qwen.video_token_id; 4],
            cu_seqlens: [0, 4].into(),
            image_rows: vec![0, 2, 3],
            visuals: vec![Visual { is_video: true, grid: [2, 2, 2], ..Visual::default() }],
            ..ModelInput::default()
        };
        let error = positions(&input, qwen).unwrap_err().to_string();
        assert!(error.contains("row 3 takes image features, and no image or clip is left"), "{error}");
    }
}
