//! From host batches to model inputs. Owns no batching.

use crate::error::Result;
use data::{Batch, Encoded, VisualKind, collate};
use models::{ModelInput, TargetInput, Visual};
use tensor::Tensor;

/// Moves a packed batch to where the model computes.
pub fn upload(batch: &Batch) -> Result<ModelInput> {
    let row: usize = batch.pixel_shape.iter().product();
    let pixels = match batch.pixels.len().checked_div(row) {
        None | Some(0) => None,
        Some(rows) => Some(Tensor::from_f32(&batch.pixels, &[&[rows], batch.pixel_shape.as_slice()].concat())?),
    };
    Ok(ModelInput { pixels, ..upload_with_states(batch, None)? })
}

/// The spectrograms of a batch, `[windows, mels, frames]`.
fn mel(batch: &Batch) -> Result<Option<Tensor>> {
    let window: usize = batch.mel_shape.iter().product();
    match batch.mel.len().checked_div(window) {
        None | Some(0) => Ok(None),
        Some(windows) => Ok(Some(Tensor::from_f32(&batch.mel, &[&[windows], batch.mel_shape.as_slice()].concat())?)),
    }
}

/// As [`upload`] with what the tower gave for the batch's pictures in place of their pixels.
pub fn upload_with_states(batch: &Batch, tower_states: Option<Tensor>) -> Result<ModelInput> {
    Ok(ModelInput {
        ids: batch.ids.clone(),
        positions: batch.positions.clone(),
        cu_seqlens: batch.cu_seqlens.as_slice().into(),
        pixels: None,
        tower_states,
        image_rows: batch.image_rows.clone(),
        mel: mel(batch)?,
        speech_rows: batch.speech_rows.clone(),
        visuals: batch.visuals.iter().map(visual).collect(),
        target: batch
            .target
            .as_ref()
            .map(|target| TargetInput { ids: target.ids.clone(), cu_seqlens: target.cu_seqlens.as_slice().into() }),
    })
}

fn visual(of: &data::Visual) -> Visual {
    Visual {
        is_video: of.kind == VisualKind::Video,
        grid: of.grid,
        source_size: of.source_size,
        seconds_per_grid: of.seconds_per_grid,
    }
}

/// Packs encoded records and moves them to where the model computes.
pub fn upload_encoded(records: &[Encoded]) -> Result<ModelInput> {
    upload(&collate(records)?)
}
