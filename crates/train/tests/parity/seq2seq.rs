//! Ten steps of every run of `fixtures/seq2seq/training`, full and with an adapter, on encoder-decoders.

use crate::compare::{Tolerance, check_elements, check_tensor, demand};
use crate::fixture::{Fixture, f32s, json};
use crate::text_pairs::{Pair, load_quiet, pack_pairs, pairs, root};
use data::{Batch, TargetRows};
use hub::SafeTensors;
use std::collections::BTreeMap;
use train::plan::Plan;
use train::schedule::Schedule;
use train::{Trainer, select};

fn batch(pairs: &[&Pair], numbers: &[usize]) -> Batch {
    let (input, labels) = pack_pairs(pairs);
    let target = input.target.map(|t| TargetRows { ids: t.ids, cu_seqlens: t.cu_seqlens.to_vec() });
    Batch {
        ids: input.ids,
        labels,
        target,
        positions: input.positions,
        cu_seqlens: input.cu_seqlens.to_vec(),
        sample_ids: numbers.iter().map(usize::to_string).collect(),
        sample_index: numbers.iter().map(|n| *n as u64).collect(),
        ..Batch::default()
    }
}

#[test]
fn ten_steps_of_every_run() {
    for name in ["full_nllb", "full_untied", "lora_nllb"] {
        let dir = root().join("training");
        let info = json(&dir.join(format!("{name}.json")));
        let deltas = SafeTensors::open(dir.join(format!("{name}.safetensors"))).unwrap();
        let fixture = Fixture::open(root().join(info["folder"].as_str().unwrap()));
        let settings: String =
            info["arguments"].as_object().unwrap().iter().map(|(k, v)| format!(", {k}: {v}")).collect();
        let (kind, adapter) = match info["adapter"].as_str() {
            Some(adapter) => ("lora", format!(", adapter: {}", fixture.dir.join("adapters").join(adapter).display())),
            None => ("full", String::new()),
        };
        let text = format!(
            "model: {{path: {}{adapter}}}\nmethod: {{kind: {kind}}}\ndata: {{train: [{{path: d.json}}]}}\n\
             train: {{output_dir: o, max_steps: 10, gradient_checkpointing: true{settings}}}\n",
            fixture.dir.display()
        );
        let plan = Plan::from_yaml(&text, &[]).unwrap_or_else(|e| panic!("{name}: {e}\n{text}"));
        let mut model = load_quiet(&fixture);
        let selection = select(&plan, &mut model).unwrap();
        let key = |name: &str| match name.starts_with("base_model.") || adapter.is_empty() {
            true => name.to_owned(),
            false => format!("base_model.model.{name}"),
        };
        let before: BTreeMap<String, Vec<f32>> = selection
            .tensors
            .iter()
            .map(|t| (key(&t.named.name), t.named.param.value().to_vec_f32().unwrap()))
            .collect();
        let mut trainer = Trainer::new(&plan, model, &selection, Schedule::new(&plan, 10).unwrap());
        let samples = pairs(&fixture);
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for step in info["records"].as_array().unwrap() {
            let window: Vec<Batch> = (step.as_array().unwrap().iter())
                .map(|micro| {
                    let numbers: Vec<usize> =
                        micro.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
                    batch(&numbers.iter().map(|&n| &samples[n]).collect::<Vec<_>>(), &numbers)
                })
                .collect();
            let outcome = trainer.train_step(&window).unwrap_or_else(|e| panic!("{name}: {e}"));
            losses.push(outcome.loss as f32);
            norms.push(outcome.grad_norm as f32);
        }
        let floats = |key: &str| -> Vec<f32> {
            info[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
        };
        let within = |relative| Tolerance { relative, floor: 0.0, absolute: 0.0, projection: 0.0 };
        let mut results = vec![
            check_elements("losses", &losses, &floats("losses"), within(2e-5)),
            check_elements("gradient norms", &norms, &floats("grad_norms"), within(1e-3)),
        ];
        for t in &selection.tensors {
            let name = key(&t.named.name);
            // Rounding noise that AdamW turns into whole steps, in the reference as well.
            if name.ends_with("k_proj.bias") {
                continue;
            }
            let after = t.named.param.value().to_vec_f32().unwrap();
            let delta: Vec<f32> = after.iter().zip(&before[&name]).map(|(a, b)| a - b).collect();
            results.push(check_delta(&deltas, &name, &delta));
        }
        demand(name, results);
    }
}

/// By distance: Adam divides by the gradient's size, so that an element whose gradient is nearly zero moves by its rounding.
fn check_delta(file: &SafeTensors, name: &str, ours: &[f32]) -> Result<(), String> {
    let Some(theirs) = f32s(file, &format!("delta.{name}")) else {
        let t = Tolerance { relative: 0.0, floor: 0.0, absolute: 0.0, projection: 5e-3 };
        return check_tensor(file, "delta", name, ours, t);
    };
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut ours.iter().zip(&theirs).map(|(a, b)| f64::from(a - b)));
    let scale = norm(&mut theirs.iter().map(|&b| f64::from(b)));
    if off <= 5e-3 * scale { Ok(()) } else { Err(format!("delta of {name} is off by {:.1e} of its norm", off / scale)) }
}
