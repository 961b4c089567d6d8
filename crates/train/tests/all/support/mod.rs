//! Models and batches from fixtures/models for the tests of the step.

pub mod run;

use std::path::PathBuf;

use data::{Batch, Encoded, collate};
use hub::SafeTensors;
use models::{LoadOptions, Model};
use tensor::DType;
use train::plan::Plan;
use train::schedule::Schedule;
use train::{Selection, Trainer, select};

pub fn fixture_dir(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(folder)
}

/// The samples of a fixture folder as the data crate would encode them.
pub fn encoded_samples(folder: &str) -> Vec<Encoded> {
    let file = SafeTensors::open(fixture_dir(folder).join("expected.safetensors")).unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture_dir(folder).join("config.json")).unwrap()).unwrap();
    let image_token = config
        .get("image_token_index")
        .or_else(|| config.get("image_token_id"))
        .and_then(|id| id.as_u64())
        .unwrap_or(32000);
    let mut samples = Vec::new();
    while let Some(ids) = file.get(&format!("sample{}.input_ids", samples.len())) {
        let i = samples.len();
        let integers =
            |data: &[u8]| data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>();
        let ids = integers(ids.data);
        let labels = integers(file.get(&format!("sample{i}.labels")).unwrap().data);
        let rows =
            ids.iter().enumerate().filter(|(_, id)| **id == image_token as i64).map(|(row, _)| row as u32).collect();
        let mut sample = Encoded {
            id: format!("sample{i}"),
            index: i as u64,
            ids: ids.iter().map(|id| *id as u32).collect(),
            labels: labels.iter().map(|label| *label as i32).collect(),
            image_rows: rows,
            ..Encoded::default()
        };
        if let Some(pixels) = file.get(&format!("sample{i}.pixel_values")) {
            sample.num_images = pixels.shape[0];
            sample.pixel_shape = pixels.shape[1..].to_vec();
            sample.pixels = pixels.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        }
        samples.push(sample);
    }
    assert!(!samples.is_empty(), "no samples in {folder}");
    samples
}

/// One batch of the given samples.
pub fn batch(samples: &[Encoded], indices: &[usize]) -> Batch {
    collate(&indices.iter().map(|i| samples[*i].clone()).collect::<Vec<_>>()).unwrap()
}

/// A plan on a fixture folder; `method` and `train` are the insides of their sections.
pub fn plan(folder: &str, method: &str, train: &str) -> Plan {
    let path = fixture_dir(folder);
    let text = format!(
        "model: {{path: {}}}\nmethod: {{{method}}}\ndata: {{train: [{{path: d.json}}]}}\ntrain: {{output_dir: o, {train}}}\n",
        path.display()
    );
    Plan::from_yaml(&text, &[]).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

/// A model of a fixture folder prepared for a plan.
pub fn prepared(plan: &Plan, dtype: Option<DType>) -> (Model, Selection) {
    let dir = PathBuf::from(plan.model.path.clone().unwrap());
    let (mut model, _) = models::load(&dir, &LoadOptions { dtype }).unwrap();
    let selection = select(plan, &mut model).unwrap_or_else(|error| panic!("{error}"));
    (model, selection)
}

/// A trainer at step 0 of a run of `num_steps`.
pub fn trainer(plan: &Plan, dtype: Option<DType>, num_steps: u64) -> Trainer {
    let (model, selection) = prepared(plan, dtype);
    let schedule = Schedule::new(plan, num_steps).unwrap();
    Trainer::new(plan, model, &selection, schedule)
}

/// Every trained tensor's bits, in order.
pub fn weight_bits(trainer: &Trainer) -> Vec<Vec<u8>> {
    trainer.tensors().iter().map(|t| t.named.param.value().to_bytes()).collect()
}
