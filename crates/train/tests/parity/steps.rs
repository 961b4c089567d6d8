//! Ten steps of every run of `fixtures/models/training`.

use crate::compare::{Tolerance, check_elements, check_tensor, demand};
use crate::fixture::{Fixture, Sample, adapter_key, f32s, json, pack, root};
use data::{Batch, Visual, VisualKind};
use hub::SafeTensors;
use models::{LoadOptions, Model};
use serde_json::Value;
use std::collections::BTreeMap;
use tensor::DType;
use train::plan::Plan;
use train::schedule::Schedule;
use train::{StepOutcome, Trainer, select};

/// Every tensor by name.
type Values = BTreeMap<String, Vec<f32>>;

/// A run of the reference.
struct Run {
    name: String,
    info: Value,
    tensors: SafeTensors,
    fixture: Fixture,
}

fn runs() -> Vec<Run> {
    let mut files: Vec<_> = std::fs::read_dir(root().join("training")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files.retain(|f| f.extension().is_some_and(|e| e == "safetensors"));
    assert!(files.len() >= 8, "only {} runs found", files.len());
    files.iter().map(|f| open(&f.file_stem().unwrap().to_string_lossy())).collect()
}

fn open(name: &str) -> Run {
    let dir = root().join("training");
    let info = json(&dir.join(format!("{name}.json")));
    let tensors = SafeTensors::open(dir.join(format!("{name}.safetensors"))).unwrap();
    let fixture = Fixture::open(root().join(info["folder"].as_str().unwrap()));
    assert_eq!(info["folder"], fixture.name());
    Run { name: name.to_owned(), info, tensors, fixture }
}

/// The plan that says what the reference was told.
fn plan(run: &Run, recompute: bool) -> Plan {
    let arguments = &run.info["arguments"];
    let parts: Vec<&str> =
        run.info["train"].as_array().map_or_else(Vec::new, |a| a.iter().map(|p| p.as_str().unwrap()).collect());
    let (method, adapter) = match run.info["adapter"].as_str() {
        Some(name) => {
            let dir = run.fixture.dir.join("adapters").join(name);
            ("{kind: lora}".to_owned(), format!(", adapter: {}", dir.display()))
        }
        // A decoder alone has no other part that could be frozen.
        None if parts == ["llm"] && run.fixture.name().starts_with("text_") => {
            ("{kind: full}".to_owned(), String::new())
        }
        None if parts == ["projector"] => ("{kind: projector}".to_owned(), String::new()),
        None => {
            let hears =
                ["speech", "speech_projector"].into_iter().filter(|_| run.fixture.name().starts_with("egogpt_"));
            let all = ["vision", "projector", "llm"].into_iter().chain(hears);
            let frozen: Vec<&str> = all.filter(|p| !parts.contains(p)).collect();
            (format!("{{kind: full, freeze: [{}]}}", frozen.join(", ")), String::new())
        }
    };
    let settings: String = arguments.as_object().unwrap().iter().map(|(k, v)| format!(", {k}: {v}")).collect();
    let text = format!(
        "model: {{path: {}{adapter}}}\nmethod: {method}\ndata: {{train: [{{path: d.json}}]}}\n\
         train: {{output_dir: o, max_steps: 10, gradient_checkpointing: {recompute}{settings}}}\n",
        run.fixture.dir.display()
    );
    Plan::from_yaml(&text, &[]).unwrap_or_else(|e| panic!("{}: {e}\n{text}", run.name))
}

fn batch(samples: &[&Sample], numbers: &[u64], placeholders: &[u32]) -> Batch {
    let (input, labels) = pack(samples, placeholders);
    let shape = input.pixels.as_ref().map_or(vec![0], |p| p.shape().to_vec());
    let visuals = input.visuals.iter().map(|v| Visual {
        kind: if v.is_video { VisualKind::Video } else { VisualKind::Image },
        grid: v.grid,
        source_size: v.source_size,
        seconds_per_grid: v.seconds_per_grid,
        ..Visual::default()
    });
    Batch {
        ids: input.ids,
        labels,
        positions: input.positions,
        cu_seqlens: input.cu_seqlens.to_vec(),
        pixels: input.pixels.map_or_else(Vec::new, |p| p.to_vec_f32().unwrap()),
        num_images: shape[0],
        pixel_shape: shape[1..].to_vec(),
        image_rows: input.image_rows,
        visuals: visuals.collect(),
        sample_ids: numbers.iter().map(|n| format!("sample{n}")).collect(),
        sample_index: numbers.to_vec(),
        mel_shape: input.mel.as_ref().map_or_else(Vec::new, |mel| mel.shape()[1..].to_vec()),
        mel: input.mel.map_or_else(Vec::new, |mel| mel.to_vec_f32().unwrap()),
        speech_rows: input.speech_rows,
        target: None,
    }
}

/// Values of every tensor under the names of the run's fixture.
fn values(run: &Run, model: &Model) -> Values {
    let key = |name: &str| if run.info["adapter"].is_null() { name.to_owned() } else { adapter_key(name) };
    model.params().iter().map(|p| (key(&p.name), p.param.value().to_vec_f32().unwrap())).collect()
}

/// Trains as the reference did; returns the outcomes, the weights before and after, and the names that trained.
fn train(run: &Run, recompute: bool) -> (Vec<StepOutcome>, [Values; 2], Vec<String>) {
    let plan = plan(run, recompute);
    let (mut model, _) = models::load(&run.fixture.dir, &LoadOptions { dtype: Some(DType::F32) }).unwrap();
    let selection = select(&plan, &mut model).unwrap_or_else(|e| panic!("{}: {e}", run.name));
    let before = values(run, &model);
    let key = |name: &str| if run.info["adapter"].is_null() { name.to_owned() } else { adapter_key(name) };
    let trained = selection.tensors.iter().map(|t| key(&t.named.name)).collect();
    let schedule = Schedule::new(&plan, 10).unwrap();
    let mut trainer = Trainer::new(&plan, model, &selection, schedule);
    let (samples, placeholders) = (run.fixture.samples(), run.fixture.placeholders());
    let outcomes = run.info["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| {
            let window: Vec<Batch> = step
                .as_array()
                .unwrap()
                .iter()
                .map(|micro| {
                    let numbers: Vec<u64> = micro.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
                    let chosen: Vec<&Sample> = numbers.iter().map(|&n| &samples[n as usize]).collect();
                    batch(&chosen, &numbers, &placeholders)
                })
                .collect();
            trainer.train_step(&window).unwrap_or_else(|e| panic!("{}: {e}", run.name))
        })
        .collect();
    let after = values(run, &trainer.model);
    (outcomes, [before, after], trained)
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn near(what: &str, ours: impl IntoIterator<Item = f64>, theirs: &Value, relative: f64) -> Vec<Result<(), String>> {
    let (ours, theirs): (Vec<f64>, Vec<f64>) = (ours.into_iter().collect(), floats(theirs));
    assert_eq!(ours.len(), theirs.len());
    let check = |(step, (a, b)): (usize, (&f64, &f64))| {
        let off = (a - b).abs() / b.abs().max(1e-30);
        if a == b || off <= relative {
            Ok(())
        } else {
            Err(format!("{what} of step {step} is {a}, expected {b} ({off:.1e} of it)"))
        }
    };
    ours.iter().zip(&theirs).enumerate().map(check).collect()
}

#[test]
fn losses_norms_and_rates_of_ten_steps() {
    for run in runs() {
        let (outcomes, _, _) = train(&run, false);
        // The reference in f64 differs by at most 3e-6 (`f64_loss_drift`).
        let mut results = near("loss", outcomes.iter().map(|o| o.loss), &run.info["losses"], 2e-5);
        results.extend(near("gradient norm", outcomes.iter().map(|o| o.grad_norm), &run.info["grad_norms"], 1e-3));
        results.extend(near("rate", outcomes.iter().map(|o| o.learning_rate), &run.info["rates"], 1e-12));
        let supervised = outcomes.iter().map(|o| o.supervised_tokens as f64);
        results.extend(near("supervised tokens", supervised, &run.info["supervised"], 0.0));
        demand(&run.name, results);
    }
}

#[test]
fn weights_after_ten_steps() {
    for run in runs() {
        let (_, [before, after], trained) = train(&run, true);
        let names = |info: &Value, key: &str| -> Vec<String> {
            info[key].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect()
        };
        let (unmoved, zero) = (names(&run.info, "unmoved"), names(&run.fixture.info, "zero_gradient"));
        let mut results = Vec::new();
        let mut moved = 0;
        for (name, start) in &before {
            let delta: Vec<f32> = after[name].iter().zip(start).map(|(a, b)| a - b).collect();
            let still = delta.iter().all(|&d| d == 0.0);
            if !trained.contains(name) || unmoved.contains(name) {
                results.push(if still { Ok(()) } else { Err(format!("`{name}` moved")) });
            } else if zero.contains(name) {
                // Rounding noise that AdamW turns into whole steps, in the reference as well.
                moved += 1;
            } else {
                moved += 1;
                results.push(check_delta(&run, name, &delta));
            }
        }
        let theirs = run.info["groups"]["decay"].as_array().unwrap().len()
            + run.info["groups"]["no_decay"].as_array().unwrap().len();
        assert_eq!(moved + unmoved.len(), theirs, "{}", run.name);
        demand(&run.name, results);
    }
}

/// Adam divides by the gradient's size: an element whose gradient is nearly zero moves by its rounding. So whole tensors
/// are compared by distance; where the reference's own f64 run is further from its f32 run than that, three times as far.
fn check_delta(run: &Run, name: &str, ours: &[f32]) -> Result<(), String> {
    let file = &run.tensors;
    let drift = 3.0 * run.info["f64_delta_drift"][name].as_f64().unwrap_or(0.0);
    let t = Tolerance { relative: 0.0, floor: 0.0, absolute: 0.0, projection: drift.max(3e-3) };
    let Some(theirs) = f32s(file, &format!("delta.{name}")) else {
        return check_tensor(file, "delta", name, ours, t);
    };
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut ours.iter().zip(&theirs).map(|(a, b)| f64::from(a - b)));
    let scale = norm(&mut theirs.iter().map(|&b| f64::from(b)));
    if off <= drift.max(5e-3) * scale {
        Ok(())
    } else {
        Err(format!("delta of {name} is off by {:.1e} of its norm", off / scale))
    }
}

#[test]
fn threads_and_recomputation_change_no_bit() {
    for name in ["full_siglip_qwen2", "lora_projector_clip_llama"] {
        let run = open(name);
        let losses = |threads: usize, recompute: bool| -> (Vec<u64>, [Values; 2]) {
            tensor::set_num_threads(threads);
            let (outcomes, weights, _) = train(&run, recompute);
            (outcomes.iter().map(|o| o.loss.to_bits()).collect(), weights)
        };
        let first = losses(1, false);
        assert!(first == losses(3, false), "{name}: three threads");
        assert!(first == losses(2, true), "{name}: recomputation");
    }
}

#[test]
fn the_tolerances_notice_another_optimizer() {
    // Ten times the weight decay, and decay at all where there was none: both must be seen.
    let run = open("full_siglip_qwen2");
    let mut changed = open("full_siglip_qwen2");
    changed.info["arguments"]["weight_decay"] = 1.0.into();
    let (outcomes, [before, after], _) = train(&changed, false);
    let losses = near("loss", outcomes.iter().map(|o| o.loss), &run.info["losses"], 2e-5);
    assert!(losses.iter().any(Result::is_err));
    let name = "language_model.model.layers.0.mlp.up_proj.weight";
    let delta: Vec<f32> = after[name].iter().zip(&before[name]).map(|(a, b)| a - b).collect();
    assert!(check_delta(&run, name, &delta).is_err());
    let ours = [outcomes[9].loss as f32];
    let tight = Tolerance { relative: 2e-4, floor: 0.0, absolute: 0.0, projection: 0.0 };
    assert!(check_elements("loss", &ours, &[floats(&run.info["losses"])[9] as f32], tight).is_err());
}
