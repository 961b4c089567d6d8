//! PEFT adapters: loading, logits, gradients, merging, saving and loading back.

use crate::base::{GRADIENTS, LOGITS, expected, fixtures, load, logits, loss_and_gradients, names};
use crate::compare::{Tolerance, check_elements, check_tensor, demand};
use crate::fixture::{Fixture, Sample, adapter_key, json};
use crate::saved::out_dir;
use models::{LoraConfig, Model, NamedParam, TargetModules};
use std::collections::{BTreeMap, BTreeSet};

/// Every adapter folder with the checkpoint it belongs to.
fn adapters() -> Vec<(Fixture, Fixture)> {
    let mut out = Vec::new();
    for base in fixtures() {
        let Ok(entries) = std::fs::read_dir(base.dir.join("adapters")) else { continue };
        let mut dirs: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
        dirs.sort();
        out.extend(dirs.into_iter().map(|d| (Fixture::open(base.dir.clone()), Fixture::open(d))));
    }
    assert!(out.len() >= 8, "only {} adapters found", out.len());
    out
}

fn loaded(base: &Fixture, adapter: &Fixture) -> Model {
    let mut model = load(base);
    model.load_adapter(&adapter.dir).unwrap_or_else(|e| panic!("{}/{}: {e}", base.name(), adapter.name()));
    model
}

/// The adapter with its dropout set to zero: a recording tape applies it, the reference computed in evaluation mode.
fn without_dropout(base: &Fixture, adapter: &Fixture) -> Model {
    let dir = tempfile::tempdir().unwrap();
    let mut config = json(&adapter.dir.join("adapter_config.json"));
    config["lora_dropout"] = 0.0.into();
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    let file = "adapter_model.safetensors";
    std::fs::copy(adapter.dir.join(file), dir.path().join(file)).unwrap();
    let mut model = load(base);
    model.load_adapter(dir.path()).unwrap();
    model
}

/// What an adapter trains, under the keys of its file: matrices by their own names, whole modules by the base's.
fn trained(model: &Model) -> BTreeMap<String, NamedParam> {
    model.params().into_iter().filter(|p| p.param.is_trainable()).map(|p| (adapter_key(&p.name), p)).collect()
}

/// Comparisons of a model's logits with the kept rows of an adapter's fixture.
fn check_logits(model: &Model, base: &Fixture, adapter: &Fixture) -> Vec<Result<(), String>> {
    let stride = adapter.info["stride"].as_u64().unwrap() as usize;
    let check = |(i, sample): (usize, &Sample)| {
        let all = logits(model, &[sample], base.image_token());
        let rows: Vec<f32> = all.chunks(all.len() / sample.ids.len()).step_by(stride).flatten().copied().collect();
        check_elements(
            &format!("logits of sample {i}"),
            &rows,
            &expected(adapter, &format!("sample{i}.logits")),
            LOGITS,
        )
    };
    base.samples().iter().enumerate().map(check).collect()
}

#[test]
fn loaded_adapters_give_the_logits_of_peft() {
    for (base, adapter) in adapters() {
        let model = loaded(&base, &adapter);
        demand(&format!("{}/{}", base.name(), adapter.name()), check_logits(&model, &base, &adapter));
    }
}

#[test]
fn loss_and_every_gradient_of_an_adapter() {
    for (base, adapter) in adapters() {
        let place = format!("{}/{}", base.name(), adapter.name());
        let model = without_dropout(&base, &adapter);
        let params = trained(&model);
        let wanted: BTreeSet<String> = adapter.info["trainable"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(params.keys().cloned().collect::<BTreeSet<_>>(), wanted, "{place}");
        let (loss, _, gradients) = loss_and_gradients(&model, &base, true);
        let tight = Tolerance { relative: 2e-5, floor: 0.0, absolute: 0.0, projection: 0.0 };
        let mut results = vec![check_elements("loss", &[loss], &expected(&adapter, "batch.loss"), tight)];
        let unreached = names(&adapter, "no_gradient");
        for (key, p) in &params {
            let ours = gradients.get(&p.param).map(|g| g.to_vec_f32().unwrap());
            results.push(match ours {
                None if unreached.contains(key) => Ok(()),
                None => Err(format!("`{key}` has no gradient")),
                Some(_) if unreached.contains(key) => Err(format!("`{key}` has a gradient, expected none")),
                // While B is zero the gradient of A is zero, exactly.
                Some(g) if key.contains("lora_A") && adapter.info["random_b"] == false => {
                    if g.iter().all(|&x| x == 0.0) {
                        Ok(())
                    } else {
                        Err(format!("`{key}` has a gradient beside B = 0"))
                    }
                }
                Some(g) => check_tensor(&adapter.tensors, "grad", key, &g, GRADIENTS),
            });
        }
        let others = model.params().iter().filter(|p| !p.param.is_trainable() && gradients.contains(&p.param)).count();
        assert_eq!(others, 0, "{place}: gradients of frozen weights");
        demand(&place, results);
    }
}

#[test]
fn merged_weights_and_their_logits() {
    for (base, adapter) in adapters() {
        let place = format!("{}/{}", base.name(), adapter.name());
        let plain: BTreeMap<String, Vec<f32>> =
            load(&base).params().iter().map(|p| (p.name.clone(), p.param.value().to_vec_f32().unwrap())).collect();
        let mut model = loaded(&base, &adapter);
        model.merge_lora().unwrap();
        assert!(model.adapter().is_none(), "{place}");
        // A merged model is a checkpoint like any other; bf16 ones round the merged weights to their storage.
        let (dir, _guard) = out_dir(&format!("{}+{}-merged", base.name(), adapter.name()));
        model.save(&dir, u64::MAX).unwrap();
        let changes = names(&adapter, "merged_changes");
        let mut results = check_logits(&model, &base, &adapter);
        assert_eq!(model.params().len(), plain.len(), "{place}");
        for p in model.params() {
            let (now, before) = (p.param.value().to_vec_f32().unwrap(), &plain[&p.name]);
            let delta: Vec<f32> = now.iter().zip(before).map(|(a, b)| a - b).collect();
            results.push(if changes.contains(&p.name) {
                // The difference of f32 weights of size 1 carries their rounding, about 1e-7.
                let t = Tolerance { relative: 1e-3, floor: 1e-4, absolute: 1e-6, projection: 1e-5 };
                check_tensor(&adapter.tensors, "merged", &p.name, &delta, t)
            } else if delta.iter().all(|&d| d == 0.0) {
                Ok(())
            } else {
                Err(format!("`{}` changed", p.name))
            });
        }
        demand(&place, results);
    }
}

#[test]
fn saved_adapters_hold_the_keys_of_peft_and_load_back() {
    for (base, adapter) in adapters() {
        let place = format!("{}/{}", base.name(), adapter.name());
        let model = loaded(&base, &adapter);
        let (dir, _guard) = out_dir(&format!("{}+{}", base.name(), adapter.name()));
        model.save_adapter(&dir, &base.name()).unwrap();
        let (ours, theirs) = (
            hub::SafeTensors::open(dir.join("adapter_model.safetensors")).unwrap(),
            hub::SafeTensors::open(adapter.dir.join("adapter_model.safetensors")).unwrap(),
        );
        assert_eq!(ours.names(), theirs.names(), "{place}");
        for name in ours.names() {
            let (a, b) = (ours.get(name).unwrap(), theirs.get(name).unwrap());
            assert_eq!((a.dtype, a.shape, a.data), (b.dtype, b.shape, b.data), "{place}: {name}");
        }
        let mut again = load(&base);
        let config = again.load_adapter(&dir).unwrap();
        let first = model.adapter().unwrap();
        assert_eq!(config, first.config, "{place}");
        let samples = base.samples();
        let token = base.image_token();
        assert_eq!(logits(&model, &[&samples[1]], token), logits(&again, &[&samples[1]], token), "{place}");
    }
}

#[test]
fn a_bare_name_adapts_the_decoder_alone_and_says_so_to_peft() {
    for base in fixtures() {
        let mut model = load(&base);
        let config = LoraConfig {
            r: 2,
            lora_alpha: 4.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::List(vec!["q_proj".into(), "down_proj".into()]),
            modules_to_save: Vec::new(),
            use_rslora: false,
            rank_pattern: Vec::new().into_iter().collect(),
            alpha_pattern: Vec::new().into_iter().collect(),
        };
        let adapted = model.add_lora(&config, 3).unwrap();
        let layers = model.config().text.num_layers;
        assert_eq!(adapted.len(), 2 * layers, "{}", base.name());
        let (dir, _guard) = out_dir(&format!("{}+fresh", base.name()));
        model.save_adapter(&dir, &base.name()).unwrap();
        let file = hub::SafeTensors::open(dir.join("adapter_model.safetensors")).unwrap();
        assert_eq!(file.len(), 4 * layers, "{}", base.name());
        assert!(file.names().iter().all(|n| !n.contains("vision_tower")), "{:?}", file.names());
        // Names that the reference matches by their ends must not reach into the tower: paths are written whole.
        let written = json(&dir.join("adapter_config.json"));
        for target in written["target_modules"].as_array().unwrap() {
            assert!(target.as_str().unwrap().contains("layers."), "{}: {target}", base.name());
        }
        // B is zero: nothing changes yet.
        let sample = &base.samples()[0];
        assert_eq!(
            logits(&model, &[sample], base.image_token()),
            logits(&load(&base), &[sample], base.image_token()),
            "{}",
            base.name()
        );
    }
}
