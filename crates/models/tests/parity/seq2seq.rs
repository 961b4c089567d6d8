//! Encoder-decoders against the reference: loading, logits, loss, every gradient, dropout, adapters, saving.

use crate::base::{GRADIENTS, LOGITS, expected, names, score_rounding, train_all};
use crate::compare::{Tolerance, check_elements, check_tensor, demand};
use crate::fixture::{Fixture, json};
use crate::saved::out_dir;
use crate::text_pairs::{Pair, load_quiet, pack_pairs, pairs, root};
use hub::Checkpoint;
use models::{LoadOptions, LoraConfig, LossWeights, Model, TargetModules};
use std::collections::{BTreeMap, BTreeSet};
use tensor::{DType, Gradients, Tape};

/// Every checkpoint folder.
pub fn folders() -> Vec<Fixture> {
    let mut dirs: Vec<_> = std::fs::read_dir(root()).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    let found: Vec<_> = dirs.into_iter().filter(|d| d.join("config.json").exists()).map(Fixture::open).collect();
    assert!(found.len() >= 4, "only {} folders found in fixtures/seq2seq", found.len());
    found
}

/// The checkpoint in f32, its dropout as it stands in the file.
fn load_as_is(fixture: &Fixture) -> Model {
    let options = LoadOptions { dtype: Some(DType::F32) };
    models::load(&fixture.dir, &options).unwrap_or_else(|e| panic!("{}: {e}", fixture.name())).0
}

/// Every adapter folder with the checkpoint it belongs to.
fn adapters() -> Vec<(Fixture, Fixture)> {
    let mut out = Vec::new();
    for base in folders() {
        let Ok(entries) = std::fs::read_dir(base.dir.join("adapters")) else { continue };
        out.extend(entries.map(|e| (Fixture::open(base.dir.clone()), Fixture::open(e.unwrap().path()))));
    }
    assert!(out.len() >= 4, "only {} adapters found", out.len());
    out
}

fn logits(model: &Model, pairs: &[&Pair]) -> Vec<f32> {
    let (input, _) = pack_pairs(pairs);
    model.logits(&Tape::inference(), &input).unwrap().value().to_vec_f32().unwrap()
}

fn check_logits(model: &Model, pairs: &[Pair], theirs: &Fixture) -> Vec<Result<(), String>> {
    let check = |(i, pair): (usize, &Pair)| {
        let wanted = expected(theirs, &format!("sample{i}.logits"));
        check_elements(&format!("logits of sample {i}"), &logits(model, &[pair]), &wanted, LOGITS)
    };
    pairs.iter().enumerate().map(check).collect()
}

/// Loss of all samples packed, its per-token parts and its gradients, on a tape with the given random numbers.
fn loss_of(model: &Model, pairs: &[Pair], recompute: bool, seed: u64) -> (f32, Vec<f32>, Gradients) {
    let (input, labels) = pack_pairs(&pairs.iter().collect::<Vec<_>>());
    let tape = Tape::record().with_rng(seed, 0);
    let weights = LossWeights::Uniform(1.0 / labels.len() as f32);
    let out = model.loss(&tape, &input, &labels, &weights, recompute).unwrap();
    let loss = out.loss.value().to_vec_f32().unwrap()[0];
    let mut gradients = Gradients::new();
    tape.backward(&out.loss, &mut gradients).unwrap();
    (loss, out.nll, gradients)
}

#[test]
fn every_folder_loads_whole_and_says_what_it_left() {
    for fixture in folders() {
        let (model, report) = models::load(&fixture.dir, &LoadOptions::default()).unwrap();
        let shape =
            |v: &serde_json::Value| v.as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
        let wanted: BTreeMap<String, Vec<usize>> =
            fixture.info["parameters"].as_object().unwrap().iter().map(|(n, s)| (n.clone(), shape(s))).collect();
        let ours: BTreeMap<String, Vec<usize>> =
            model.params().iter().map(|p| (p.name.clone(), p.disk_shape.clone())).collect();
        assert_eq!(ours, wanted, "{}", fixture.name());
        let on_disk = fixture.info["tensors_on_disk"].as_object().unwrap().len();
        assert_eq!(report.num_loaded + report.tied_duplicates.len() + report.recomputed.len(), on_disk);
        let hub = fixture.name() == "nllb_hub";
        assert_eq!((report.tied_duplicates.len(), report.recomputed.len()), if hub { (3, 2) } else { (0, 0) });
        let unreached: Vec<String> = model.params().iter().filter(|p| !p.reached).map(|p| p.name.clone()).collect();
        assert_eq!(unreached, names(&fixture, "no_gradient"), "{}", fixture.name());
    }
}

#[test]
fn logits_of_each_sample_alone_and_packed_in_another_order() {
    for fixture in folders() {
        let model = load_as_is(&fixture);
        let pairs = pairs(&fixture);
        demand(&fixture.name(), check_logits(&model, &pairs, &fixture));
        let order: Vec<&Pair> = pairs.iter().rev().collect();
        let packed = logits(&model, &order);
        let vocab = packed.len() / order.iter().map(|p| p.labels.len()).sum::<usize>();
        let mut start = 0;
        for pair in order {
            let end = start + pair.labels.len() * vocab;
            let tight = Tolerance { relative: 0.0, floor: 2e-5, absolute: 0.0, projection: 0.0 };
            let alone = logits(&model, &[pair]);
            demand(&fixture.name(), [check_elements("packed logits", &packed[start..end], &alone, tight)]);
            start = end;
        }
    }
}

#[test]
fn loss_of_every_token_and_every_gradient() {
    for fixture in folders() {
        let (model, pairs) = (load_quiet(&fixture), pairs(&fixture));
        train_all(&model);
        let (unreached, zero) = (names(&fixture, "no_gradient"), names(&fixture, "zero_gradient"));
        for recompute in [false, true] {
            let (loss, nll, gradients) = loss_of(&model, &pairs, recompute, 0);
            let tight = Tolerance { relative: 2e-5, floor: 0.0, absolute: 0.0, projection: 0.0 };
            let mut results = vec![check_elements("loss", &[loss], &expected(&fixture, "batch.loss"), tight)];
            let theirs: Vec<f32> =
                (0..pairs.len()).flat_map(|i| expected(&fixture, &format!("sample{i}.nll"))).collect();
            results.push(check_elements("nll", &nll, &theirs, LOGITS));
            for p in model.params() {
                let ours = gradients.get(&p.param).map(|g| g.to_vec_f32().unwrap());
                results.push(match (ours, unreached.contains(&p.name)) {
                    (None, true) => Ok(()),
                    (Some(_), true) => Err(format!("`{}` has a gradient, expected none", p.name)),
                    (None, false) => Err(format!("`{}` has no gradient", p.name)),
                    (Some(ours), false) => {
                        let absolute = score_rounding(&fixture, &p.name, ours.len());
                        let t = Tolerance { absolute, ..GRADIENTS };
                        let largest = ours.iter().fold(0f32, |m, x| m.max(x.abs()));
                        match zero.contains(&p.name) {
                            // Zero by mathematics: all of it is rounding.
                            true if f64::from(largest) <= t.absolute.max(1e-9) => Ok(()),
                            true => Err(format!("`{}` is {largest:e}, expected 0", p.name)),
                            false => check_tensor(&fixture.tensors, "grad", &p.name, &ours, t),
                        }
                    }
                });
            }
            demand(&format!("{} (recompute: {recompute})", fixture.name()), results);
        }
    }
}

/// Dropout changes what a training step computes, alike with and without recomputation, and nothing else.
#[test]
fn dropout_is_drawn_from_the_tape() {
    for fixture in folders() {
        let (model, pairs) = (load_as_is(&fixture), pairs(&fixture));
        train_all(&model);
        let bits = |gradients: &Gradients| -> Vec<Option<Vec<u32>>> {
            let of = |g: &tensor::Tensor| g.to_vec_f32().unwrap().iter().map(|x| x.to_bits()).collect();
            model.params().iter().map(|p| gradients.get(&p.param).map(of)).collect()
        };
        let plain = expected(&fixture, "batch.loss")[0];
        let seeds: Vec<f32> = (0..12).map(|seed| loss_of(&model, &pairs, false, seed).0).collect();
        let distinct: BTreeSet<u32> = seeds.iter().map(|loss| loss.to_bits()).collect();
        let seq2seq = model.config().seq2seq().unwrap();
        // With LayerDrop alone many steps leave no layer out.
        let least = if seq2seq.dropout.residual > 0.0 { 12 } else { 1 };
        assert!(distinct.len() >= least, "{}: {seeds:?}", fixture.name());
        let mean = seeds.iter().sum::<f32>() / 12.0;
        assert!((mean / plain - 1.0).abs() < 0.2, "{}: {mean} beside {plain}", fixture.name());
        for seed in [3, 8] {
            let (first, again) = (loss_of(&model, &pairs, false, seed), loss_of(&model, &pairs, true, seed));
            assert_eq!(first.0.to_bits(), again.0.to_bits(), "{}", fixture.name());
            assert!(bits(&first.2) == bits(&again.2), "{}: gradients of another recomputation", fixture.name());
        }
    }
}

#[test]
fn adapters_give_the_logits_and_gradients_of_peft() {
    for (base, adapter) in adapters() {
        let place = format!("{}/{}", base.name(), adapter.name());
        let pairs = pairs(&base);
        let mut model = load_as_is(&base);
        model.load_adapter(&adapter.dir).unwrap_or_else(|e| panic!("{place}: {e}"));
        demand(&place, check_logits(&model, &pairs, &adapter));
        // The adapter's own dropout must not be drawn either.
        let quiet = tempfile::tempdir().unwrap();
        let mut config = json(&adapter.dir.join("adapter_config.json"));
        config["lora_dropout"] = 0.0.into();
        std::fs::write(quiet.path().join("adapter_config.json"), config.to_string()).unwrap();
        let file = "adapter_model.safetensors";
        std::fs::copy(adapter.dir.join(file), quiet.path().join(file)).unwrap();
        let mut model = load_quiet(&base);
        model.load_adapter(quiet.path()).unwrap();
        let (loss, _, gradients) = loss_of(&model, &pairs, true, 0);
        let tight = Tolerance { relative: 2e-5, floor: 0.0, absolute: 0.0, projection: 0.0 };
        let mut results = vec![check_elements("loss", &[loss], &expected(&adapter, "batch.loss"), tight)];
        let mut found = BTreeSet::new();
        for p in model.params().into_iter().filter(|p| p.param.is_trainable()) {
            let key =
                if p.name.starts_with("base_model.") { p.name.clone() } else { format!("base_model.model.{}", p.name) };
            let ours = gradients.get(&p.param).map(|g| g.to_vec_f32().unwrap()).unwrap_or_default();
            let absolute = score_rounding(&base, &p.name, ours.len());
            results.push(check_tensor(&adapter.tensors, "grad", &key, &ours, Tolerance { absolute, ..GRADIENTS }));
            found.insert(key);
        }
        let wanted: BTreeSet<String> = adapter.info["trainable"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(found, wanted, "{place}");
        demand(&place, results);
    }
}

#[test]
fn merged_and_saved_adapters_are_those_of_peft() {
    for (base, adapter) in adapters() {
        let place = format!("{}/{}", base.name(), adapter.name());
        let plain: BTreeMap<String, Vec<f32>> = load_as_is(&base)
            .params()
            .iter()
            .map(|p| (p.name.clone(), p.param.value().to_vec_f32().unwrap()))
            .collect();
        let mut model = load_as_is(&base);
        model.load_adapter(&adapter.dir).unwrap();
        let (dir, _guard) = out_dir(&format!("{}+{}", base.name(), adapter.name()));
        model.save_adapter(&dir, &base.name()).unwrap();
        let open = |dir: &std::path::Path| hub::SafeTensors::open(dir.join("adapter_model.safetensors")).unwrap();
        let (ours, theirs) = (open(&dir), open(&adapter.dir));
        assert_eq!(ours.names(), theirs.names(), "{place}");
        for name in ours.names() {
            let (a, b) = (ours.get(name).unwrap(), theirs.get(name).unwrap());
            assert_eq!((a.shape, a.data), (b.shape, b.data), "{place}: {name}");
        }
        assert_eq!(json(&dir.join("adapter_config.json"))["task_type"], "SEQ_2_SEQ_LM");
        model.merge_lora().unwrap();
        let (dir, _guard) = out_dir(&format!("{}+{}-merged", base.name(), adapter.name()));
        model.save(&dir, u64::MAX).unwrap();
        let changes = names(&adapter, "merged_changes");
        let mut results = check_logits(&model, &pairs(&base), &adapter);
        for p in model.params() {
            let now = p.param.value().to_vec_f32().unwrap();
            let delta: Vec<f32> = now.iter().zip(&plain[&p.name]).map(|(a, b)| a - b).collect();
            results.push(match changes.contains(&p.name) {
                true => {
                    let t = Tolerance { relative: 1e-3, floor: 1e-4, absolute: 1e-6, projection: 1e-5 };
                    check_tensor(&adapter.tensors, "merged", &p.name, &delta, t)
                }
                false if delta.iter().all(|&d| d == 0.0) => Ok(()),
                false => Err(format!("`{}` changed", p.name)),
            });
        }
        demand(&place, results);
    }
}

#[test]
fn saved_folders_hold_each_tensor_once_with_the_same_bytes() {
    for fixture in folders() {
        let (model, _) = models::load(&fixture.dir, &LoadOptions::default()).unwrap();
        for (kind, shard) in [("whole", u64::MAX), ("shards", 40_000)] {
            let (dir, _guard) = out_dir(&format!("{}-{kind}", fixture.name()));
            model.save(&dir, shard).unwrap();
            let (ours, theirs) = (Checkpoint::open(&dir).unwrap(), Checkpoint::open(&fixture.dir).unwrap());
            let wanted: BTreeSet<&str> =
                fixture.info["parameters"].as_object().unwrap().keys().map(String::as_str).collect();
            assert!(ours.names().into_iter().eq(wanted), "{}", fixture.name());
            for name in ours.names() {
                let (a, b) = (ours.get(name).unwrap(), theirs.get(name).unwrap());
                assert_eq!((a.dtype, a.shape, a.data), (b.dtype, b.shape, b.data), "{name}");
            }
            assert_eq!(json(&dir.join("config.json")), json(&fixture.dir.join("config.json")));
        }
    }
}

/// A tied table may stand in a file under any of its names, or once more with values of its own.
#[test]
fn a_tied_table_is_found_under_each_of_its_names() {
    let fixture = Fixture::open(root().join("m2m_odd_legacy"));
    let pairs = pairs(&fixture);
    let wanted = logits(&load_as_is(&fixture), &[&pairs[1]]);
    let source = Checkpoint::open(&fixture.dir).unwrap();
    let (shared, head, side) = ("model.shared.weight", "lm_head.weight", "model.decoder.embed_tokens.weight");
    let load = |names: &[(&str, &str, u8)]| {
        let dir = tempfile::tempdir().unwrap();
        let others = source.names().into_iter().filter(|n| *n != shared).map(|n| (n, n, 0));
        let tensors: Vec<_> = others
            .chain(names.iter().copied())
            .map(|(from, to, flip)| {
                let view = source.get(from).unwrap();
                let bytes: Vec<u8> = view.data.iter().map(|b| b ^ flip).collect();
                hub::OutTensor::new(to, view.dtype, view.shape, bytes)
            })
            .collect();
        hub::write_checkpoint(dir.path(), &tensors, u64::MAX).unwrap();
        std::fs::copy(fixture.dir.join("config.json"), dir.path().join("config.json")).unwrap();
        models::load(dir.path(), &LoadOptions { dtype: Some(DType::F32) }).unwrap()
    };
    for names in [vec![(shared, head, 0)], vec![(shared, side, 0)], vec![(shared, side, 0), (shared, head, 0)]] {
        let (model, _) = load(&names);
        assert_eq!(logits(&model, &[&pairs[1]]), wanted, "{names:?}");
    }
    // Flipped lowest bits of the mantissa: values of its own, which are kept apart.
    let (model, report) = load(&[(shared, shared, 0), (shared, head, 1)]);
    assert_eq!(report.untied_heads, [head]);
    assert!(model.params().iter().any(|p| p.name == head));
}

#[test]
fn fresh_adapters_take_bare_names_on_both_sides_and_leave_what_is_tied() {
    let fixture = Fixture::open(root().join("nllb_hub"));
    let add = |config: &LoraConfig| load_as_is(&fixture).add_lora(config, 1);
    let list = |names: &[&str]| TargetModules::List(names.iter().map(|s| (*s).to_owned()).collect());
    let base = LoraConfig { r: 2, lora_alpha: 4.0, ..LoraConfig::default() };
    let adapted = add(&LoraConfig { target_modules: list(&["q_proj"]), ..base.clone() }).unwrap();
    // Two layers of the encoder, three of the decoder with two attentions each.
    assert_eq!(adapted.len(), 2 + 3 * 2);
    assert_eq!(add(&base).unwrap().len(), 2 * 6 + 3 * 10, "every projection but the head");
    let refused = |config: LoraConfig| add(&config).unwrap_err().to_string();
    let tied = refused(LoraConfig { target_modules: list(&["lm_head"]), ..base.clone() });
    assert!(tied.contains("`lm_head` is tied to the embedding table"), "{tied}");
    for name in ["shared", "embed_tokens", "lm_head", "model.shared"] {
        let saved = refused(LoraConfig {
            target_modules: list(&["q_proj"]),
            modules_to_save: vec![name.into()],
            ..base.clone()
        });
        assert!(saved.contains(&format!("`{name}` is tied")), "{saved}");
    }
    let error = refused(LoraConfig { target_modules: list(&["o_proj"]), ..base });
    assert!(error.contains("it has q_proj, k_proj, v_proj, out_proj, fc1, fc2, lm_head"), "{error}");
}
