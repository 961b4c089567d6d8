//! PEFT adapters: loading, logits, gradients, merging, saving and loading back.

use crate::base::{GRADIENTS, LOGITS, expected, fixtures, load, logits, loss_and_gradients, names, score_rounding};
use crate::compare::{Tolerance, check_elements, check_tensor, demand};
use crate::fixture::{Fixture, Sample, adapter_key, json, root};
use crate::saved::{out_dir, rewrite};
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
        let all = logits(model, &[sample], &base.placeholders());
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
                Some(g) => {
                    let t = Tolerance { absolute: score_rounding(&base, &p.name, g.len()), ..GRADIENTS };
                    check_tensor(&adapter.tensors, "grad", key, &g, t)
                }
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
        // Copies of base tensors, which peft writes beside an adapted head, are not trained and not written.
        let trained = adapter.info["trainable"].as_object().unwrap();
        let expected: Vec<&str> = theirs.names().into_iter().filter(|n| trained.contains_key(*n)).collect();
        assert_eq!(ours.names(), expected, "{place}");
        check_peft_finds_the_file(&base, &dir);
        for name in ours.names() {
            let (a, b) = (ours.get(name).unwrap(), theirs.get(name).unwrap());
            assert_eq!((a.dtype, a.shape, a.data), (b.dtype, b.shape, b.data), "{place}: {name}");
        }
        let mut again = load(&base);
        let config = again.load_adapter(&dir).unwrap();
        let first = model.adapter().unwrap();
        assert_eq!(config, first.config, "{place}");
        let samples = base.samples();
        let token = &base.placeholders();
        assert_eq!(logits(&model, &[&samples[1]], token), logits(&again, &[&samples[1]], token), "{place}");
    }
}

/// What peft 0.21 does with a configuration before it reads the tensors: `target_modules` name a module by its whole path
/// or an ending after a dot (a text: by a regular expression over the whole path), `modules_to_save` by any ending of its
/// path, and patterns by their whole or an ending after a dot, the first that matches. It then wants exactly the tensors
/// of what it found. Returns rank and alpha of each adapted module.
fn check_peft_finds_the_file(base: &Fixture, dir: &std::path::Path) -> BTreeMap<String, (u64, f64)> {
    let config = json(&dir.join("adapter_config.json"));
    let in_memory = |name: &String| adapter_key(name).replace("base_model.model.", "");
    let tensors: Vec<String> = base.info["parameters"].as_object().unwrap().keys().map(in_memory).collect();
    let list = |key: &str| -> Vec<String> {
        config[key].as_array().into_iter().flatten().map(|v| v.as_str().unwrap().to_owned()).collect()
    };
    let whole = |pattern: &str, path: &str| regex::Regex::new(&format!("^(?:{pattern})$")).unwrap().is_match(path);
    let (targets, saved) = (list("target_modules"), list("modules_to_save"));
    let is_saved = |tensor: &str| {
        let mut modules = tensor.match_indices('.').map(|(end, _)| &tensor[..end]);
        modules.any(|module| saved.iter().any(|name| module.ends_with(name)))
    };
    let mut wanted: BTreeSet<String> = tensors.iter().filter(|t| is_saved(t)).cloned().collect();
    let mut adapted = BTreeMap::new();
    for module in tensors.iter().filter_map(|t| t.strip_suffix(".weight")) {
        let hit = match config["target_modules"].as_str() {
            Some(pattern) => whole(pattern, module),
            None => targets.iter().any(|t| module == t || module.ends_with(&format!(".{t}"))),
        };
        if !hit || is_saved(&format!("{module}.weight")) {
            continue;
        }
        wanted.extend(["A", "B"].map(|letter| format!("{module}.lora_{letter}.weight")));
        let pattern = |key: &str| {
            let mut entries = config[key].as_object().unwrap().iter();
            entries.find(|(p, _)| whole(&format!("(?:.*\\.)?(?:{p})"), module)).map(|(_, v)| v.as_f64().unwrap())
        };
        let rank = pattern("rank_pattern").map_or(config["r"].as_u64().unwrap(), |r| r as u64);
        let alpha = pattern("alpha_pattern").unwrap_or(config["lora_alpha"].as_f64().unwrap());
        adapted.insert(module.to_owned(), (rank, alpha));
    }
    let file = hub::SafeTensors::open(dir.join("adapter_model.safetensors")).unwrap();
    let held: BTreeSet<String> = file.names().iter().map(|n| n.replace("base_model.model.", "")).collect();
    assert_eq!(held, wanted, "{}: {config:#}", dir.display());
    for (module, (rank, _)) in &adapted {
        let a = file.get(&format!("base_model.model.{module}.lora_A.weight")).unwrap();
        assert_eq!(a.shape[0] as u64, *rank, "{module}");
    }
    adapted
}

#[test]
fn patterns_of_an_adapter_are_resolved_as_peft_does() {
    for (base, adapter) in adapters() {
        let model = loaded(&base, &adapter);
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter(dir.path(), &base.name()).unwrap();
        let written = check_peft_finds_the_file(&base, dir.path());
        let wanted: BTreeMap<String, (u64, f64)> = adapter.info["modules"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(module, m)| (module.clone(), (m["r"].as_u64().unwrap(), m["alpha"].as_f64().unwrap())))
            .collect();
        assert_eq!(written, wanted, "{}/{}", base.name(), adapter.name());
    }
}

#[test]
fn a_fresh_adapter_is_written_so_that_peft_finds_the_same_modules() {
    let list = |names: &[&str]| names.iter().map(|s| (*s).to_owned()).collect::<Vec<String>>();
    let check = |folder: &str, change: &dyn Fn(&mut LoraConfig), saved: &[&str]| -> BTreeMap<String, (u64, f64)> {
        let base = Fixture::open(root().join(folder));
        let mut model = load(&base);
        let target_modules = TargetModules::List(list(&["q_proj", "v_proj"]));
        let mut config = LoraConfig { r: 4, lora_alpha: 8.0, target_modules, ..LoraConfig::default() };
        change(&mut config);
        model.add_lora(&config, 1).unwrap();
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter(dir.path(), folder).unwrap();
        let written = json(&dir.path().join("adapter_config.json"));
        let modules = written["modules_to_save"].as_array().cloned().unwrap_or_default();
        assert_eq!(modules, saved.iter().map(|s| serde_json::json!(s)).collect::<Vec<_>>());
        check_peft_finds_the_file(&base, dir.path())
    };
    let save = |names: &[&str]| {
        let names = list(names);
        move |c: &mut LoraConfig| c.modules_to_save = names.clone()
    };
    check("llava_clip_llama", &save(&["vision_tower"]), &["model.vision_tower"]);
    check("llava_siglip_qwen2", &save(&["norm"]), &["model.language_model.norm"]);
    check(
        "llava_siglip_qwen2",
        &save(&["multi_modal_projector", "lm_head"]),
        &["lm_head", "model.multi_modal_projector"],
    );
    // The plan may use the hub's spelling, which peft does not know.
    let first = "model.language_model.layers.0.self_attn.q_proj";
    let found = check(
        "llava_siglip_qwen2",
        &|c| {
            c.alpha_pattern = vec![("language_model.model.layers.0.self_attn.q_proj".into(), 64.0)];
            c.rank_pattern = vec![(r"model\.layers\.0\..*".into(), 2)];
        },
        &[],
    );
    assert_eq!(found[first], (2, 64.0));
    assert_eq!(found["model.language_model.layers.1.self_attn.q_proj"], (4, 8.0));
    for regex in [r"language_model\.model\.layers\..*\.(q|k)_proj", r"model\.language_model\.layers\..*\.(q|k)_proj"] {
        let found = check("llava_siglip_qwen2", &|c| c.target_modules = TargetModules::Regex(regex.into()), &[]);
        assert_eq!(found.len(), 4, "{regex}: {found:?}");
    }
}

#[test]
fn a_tower_without_what_no_pass_reaches_is_saved_by_its_parts() {
    // Lawful: the reference builds the missing norm itself; it cannot be written.
    let base = Fixture::open(root().join("llava_clip_llama"));
    let lost = "vision_tower.vision_model.post_layernorm.";
    let dir = tempfile::tempdir().unwrap();
    rewrite(&base.dir, dir.path(), |n| (!n.starts_with(lost)).then(|| n.to_owned()));
    let (mut model, _) = models::load(dir.path(), &models::LoadOptions::default()).unwrap();
    let target_modules = TargetModules::List(vec!["q_proj".into()]);
    let modules_to_save = vec!["vision_tower".to_owned()];
    model.add_lora(&LoraConfig { target_modules, modules_to_save, ..LoraConfig::default() }, 1).unwrap();
    let out = tempfile::tempdir().unwrap();
    model.save_adapter(out.path(), "base").unwrap();
    check_peft_finds_the_file(&base, out.path());
    // And an adapter of the whole tower is read above such a base.
    let (mut model, _) = models::load(dir.path(), &models::LoadOptions::default()).unwrap();
    model.load_adapter(&base.dir.join("adapters/saved_tower")).unwrap();
}

#[test]
fn what_an_adapter_brings_without_a_place_is_refused() {
    let base = Fixture::open(root().join("llava_siglip_qwen2"));
    let from = base.dir.join("adapters/inert_fields");
    let write = |change: &dyn Fn(&str, &mut Vec<u8>)| {
        let file = hub::SafeTensors::open(from.join("adapter_model.safetensors")).unwrap();
        let tensors: Vec<hub::OutTensor<'_>> = file
            .iter()
            .map(|view| {
                let mut data = view.data.to_vec();
                change(view.name, &mut data);
                hub::OutTensor::new(view.name, view.dtype, view.shape, data)
            })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        hub::write_safetensors(dir.path().join("adapter_model.safetensors"), &tensors, &[]).unwrap();
        std::fs::copy(from.join("adapter_config.json"), dir.path().join("adapter_config.json")).unwrap();
        dir
    };
    let same = write(&|_, _| {});
    load(&base).load_adapter(same.path()).unwrap();
    let copy = "lm_head.base_layer.weight";
    let other = write(&|name, data| {
        if name.ends_with(copy) {
            data[3] ^= 1;
        }
    });
    let error = load(&base).load_adapter(other.path()).unwrap_err().to_string();
    assert!(error.contains(copy) && error.contains("differs from the base model's"), "{error}");
    // A file of torch must be one.
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("adapter_config.json"), dir.path().join("adapter_config.json")).unwrap();
    std::fs::write(dir.path().join("adapter_model.bin"), b"x").unwrap();
    let error = load(&base).load_adapter(dir.path()).unwrap_err().to_string();
    assert!(error.contains("adapter_model.bin` is not read: it was not written by `torch.save`"), "{error}");
}

/// Older versions of peft wrote the adapter by `torch.save`.
#[test]
fn an_adapter_of_torch_is_the_same() {
    let base = Fixture::open(root().join("siglip_phi3_longrope"));
    let from = base.dir.join("adapters/fused");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("adapter_config.json"), dir.path().join("adapter_config.json")).unwrap();
    let old = root().join("../hub/pickle/adapter_model.bin");
    std::fs::copy(old, dir.path().join("adapter_model.bin")).unwrap();
    let (mut model, mut other) = (load(&base), load(&base));
    model.load_adapter(dir.path()).unwrap();
    other.load_adapter(&from).unwrap();
    let values = |model: &Model| -> Vec<(String, Vec<u8>)> {
        model.params().iter().map(|p| (p.name.clone(), p.param.value().to_bytes())).collect()
    };
    assert!(values(&model) == values(&other));
}

/// The name of the module that makes the queries.
fn queries(model: &Model) -> &'static str {
    if model.config().causal().unwrap().text.fused_projections { "qkv_proj" } else { "q_proj" }
}

#[test]
fn a_bare_name_adapts_the_decoder_alone_and_says_so_to_peft() {
    for base in fixtures() {
        let mut model = load(&base);
        let config = LoraConfig {
            r: 2,
            lora_alpha: 4.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::List(vec![queries(&model).into(), "down_proj".into()]),
            modules_to_save: Vec::new(),
            use_rslora: false,
            rank_pattern: Vec::new().into_iter().collect(),
            alpha_pattern: Vec::new().into_iter().collect(),
        };
        let adapted = model.add_lora(&config, 3).unwrap();
        let layers = model.config().causal().unwrap().text.num_layers;
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
            logits(&model, &[sample], &base.placeholders()),
            logits(&load(&base), &[sample], &base.placeholders()),
            "{}",
            base.name()
        );
    }
}

/// `all-linear` covers the fused projections of Phi as one module each, as peft's does.
#[test]
fn all_linear_takes_fused_projections_as_they_are() {
    let base = Fixture::open(root().join("text_phi3_longrope"));
    let mut model = load(&base);
    let config = LoraConfig { target_modules: TargetModules::AllLinear, ..LoraConfig::default() };
    let ours: BTreeSet<String> = model.add_lora(&config, 1).unwrap().into_iter().collect();
    let theirs = json(&base.dir.join("adapters/all_linear/expected.json"));
    assert_eq!(ours, theirs["modules"].as_object().unwrap().keys().cloned().collect());
}
