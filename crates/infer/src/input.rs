//! From host batches to model inputs. Owns no batching.

use crate::error::Result;
use data::{Batch, Encoded, collate};
use models::{ModelInput, TargetInput};
use tensor::Tensor;

/// Moves a packed batch to where the model computes.
pub fn upload(batch: &Batch) -> Result<ModelInput> {
    let [c, h, w] = batch.image_shape;
    let pixels = match batch.num_images {
        0 => None,
        n => Some(Tensor::from_f32(&batch.pixels, &[n, c, h, w])?),
    };
    Ok(ModelInput { pixels, ..upload_with_states(batch, None) })
}

/// As [`upload`] with what the tower gave for the batch's pictures in place of their pixels.
pub fn upload_with_states(batch: &Batch, tower_states: Option<Tensor>) -> ModelInput {
    ModelInput {
        ids: batch.ids.clone(),
        positions: batch.positions.clone(),
        cu_seqlens: batch.cu_seqlens.as_slice().into(),
        pixels: None,
        tower_states,
        image_rows: batch.image_rows.clone(),
        target: batch
            .target
            .as_ref()
            .map(|target| TargetInput { ids: target.ids.clone(), cu_seqlens: target.cu_seqlens.as_slice().into() }),
    }
}

/// Packs encoded records and moves them to where the model computes.
pub fn upload_encoded(records: &[Encoded]) -> Result<ModelInput> {
    upload(&collate(records)?)
}
