//! Loading, logits, loss, gradients, features, packing, freezing and greedy continuation of every folder.

use crate::compare::{Tolerance, check_elements, check_tensor, demand, projection_element};
use crate::fixture::{Fixture, Sample, f32s, f64s, pack, root};
use hub::SafeTensors;
use models::{LoadOptions, LossWeights, Model, NamedParam, Part};
use std::collections::BTreeMap;
use tensor::{DType, Gradients, Tape};

/// f32 sums of a few hundred terms in another order differ by some 1e-6 of their scale; the reference's own padded
/// batch differs from its single samples by up to 5e-6 of it. DESIGN.md allows 1e-4.
pub const LOGITS: Tolerance = Tolerance { relative: 0.0, floor: 1e-4, absolute: 0.0, projection: 0.0 };

/// DESIGN.md: 1e-3 relative and a floor from the tensor's scale. An error vector of 3e-4 of the norm is far above
/// rounding (about 1e-5) and far below one wrong element in a thousand.
pub const GRADIENTS: Tolerance = Tolerance { relative: 1e-3, floor: 1e-3, absolute: 0.0, projection: 3e-4 };

/// Every checkpoint folder, found by its `config.json`: a new folder is tested without being named here.
pub fn fixtures() -> Vec<Fixture> {
    let mut dirs: Vec<_> = std::fs::read_dir(root()).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    let found: Vec<_> = dirs.into_iter().filter(|d| d.join("config.json").exists()).map(Fixture::open).collect();
    assert!(found.len() >= 10, "only {} folders found in fixtures/models", found.len());
    found
}

/// A stored f32 tensor that must be there.
pub fn expected(fixture: &Fixture, name: &str) -> Vec<f32> {
    f32s(&fixture.tensors, name).unwrap_or_else(|| panic!("no tensor `{name}` in {}", fixture.dir.display()))
}

/// The rows of logits that a fixture keeps, of those of all tokens.
pub fn kept_rows(fixture: &Fixture, all: Vec<f32>, num_tokens: usize) -> Vec<f32> {
    let stride = fixture.info["logits_stride"].as_u64().unwrap_or(1) as usize;
    all.chunks(all.len() / num_tokens).step_by(stride).flatten().copied().collect()
}

pub fn load(fixture: &Fixture) -> Model {
    let options = LoadOptions { dtype: Some(DType::F32) };
    models::load(&fixture.dir, &options).unwrap_or_else(|e| panic!("{}: {e}", fixture.name())).0
}

/// Logits of samples packed into one input.
pub fn logits(model: &Model, samples: &[&Sample], placeholders: &[u32]) -> Vec<f32> {
    let (input, _) = pack(samples, placeholders);
    model.logits(&Tape::inference(), &input).unwrap().value().to_vec_f32().unwrap()
}

/// Loss of all samples packed, its per-token parts and its gradients by name.
pub fn loss_and_gradients(model: &Model, fixture: &Fixture, recompute: bool) -> (f32, Vec<f32>, Gradients) {
    let samples = fixture.samples();
    let (input, labels) = pack(&samples.iter().collect::<Vec<_>>(), &fixture.placeholders());
    // The first label of a sample is never a target, and none of these is supervised.
    let count = labels.iter().filter(|&&l| l >= 0).count();
    let tape = Tape::record();
    let out = model.loss(&tape, &input, &labels, &LossWeights::Uniform(1.0 / count as f32), recompute).unwrap();
    let loss = out.loss.value().to_vec_f32().unwrap()[0];
    let mut gradients = Gradients::new();
    tape.backward(&out.loss, &mut gradients).unwrap();
    (loss, out.nll, gradients)
}

pub fn train_all(model: &Model) {
    model.params().iter().for_each(|p| p.param.set_trainable(true));
}

pub fn names(fixture: &Fixture, key: &str) -> Vec<String> {
    fixture.info[key].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_folder_loads_whole_under_the_hub_names() {
    for fixture in fixtures() {
        let (model, report) = models::load(&fixture.dir, &LoadOptions::default()).unwrap();
        let expected: BTreeMap<String, usize> = fixture.info["parameters"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(n, s)| (n.clone(), s.as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).product()))
            .collect();
        let ours: BTreeMap<String, usize> =
            model.params().iter().map(|p| (p.name.clone(), p.param.shape().iter().product())).collect();
        assert_eq!(ours, expected, "{}", fixture.name());
        assert_eq!(report.num_loaded, fixture.info["tensors_on_disk"].as_object().unwrap().len(), "{}", fixture.name());
    }
}

#[test]
fn every_family_has_a_fixture() {
    let all = fixtures().into_iter().chain(crate::seq2seq::folders());
    let kinds: Vec<String> = all
        .map(|f| crate::fixture::json(&f.dir.join("config.json"))["model_type"].as_str().unwrap().to_owned())
        .collect();
    for family in models::FAMILIES {
        assert!(kinds.iter().any(|kind| kind == family), "no folder of fixtures is a `{family}`");
    }
}

#[test]
fn logits_of_each_sample_alone() {
    for fixture in fixtures() {
        let model = load(&fixture);
        demand(
            &fixture.name(),
            fixture.samples().iter().enumerate().map(|(i, sample)| {
                let ours = logits(&model, &[sample], &fixture.placeholders());
                let ours = kept_rows(&fixture, ours, sample.ids.len());
                check_elements(
                    &format!("logits of sample {i}"),
                    &ours,
                    &expected(&fixture, &format!("sample{i}.logits")),
                    LOGITS,
                )
            }),
        );
    }
}

#[test]
fn a_packed_batch_gives_each_sample_what_it_has_alone() {
    for fixture in fixtures() {
        let model = load(&fixture);
        let samples = fixture.samples();
        // Another order than that of the fixture: nothing may depend on a sample's neighbours.
        let order: Vec<&Sample> = samples.iter().rev().collect();
        let packed = logits(&model, &order, &fixture.placeholders());
        let vocab = packed.len() / order.iter().map(|s| s.ids.len()).sum::<usize>();
        let mut start = 0;
        demand(
            &fixture.name(),
            order.iter().map(|sample| {
                let end = start + sample.ids.len() * vocab;
                let part = &packed[start..end];
                start = end;
                let tight = Tolerance { relative: 0.0, floor: 2e-5, absolute: 0.0, projection: 0.0 };
                check_elements("packed logits", part, &logits(&model, &[sample], &fixture.placeholders()), tight)
            }),
        );
    }
}

#[test]
fn image_features_after_the_projector() {
    for fixture in fixtures() {
        let model = load(&fixture);
        let samples = fixture.samples();
        let (input, _) = pack(&samples.iter().collect::<Vec<_>>(), &fixture.placeholders());
        if input.pixels.is_none() {
            assert!(fixture.name().starts_with("text_"));
            continue;
        }
        let ours = model.image_features(&Tape::inference(), &input).unwrap();
        let theirs = expected(&fixture, "batch.features");
        demand(&fixture.name(), [check_elements("features", &ours.value().to_vec_f32().unwrap(), &theirs, LOGITS)]);
    }
}

#[test]
fn features_of_sound_after_the_projector() {
    let heard = fixtures().into_iter().filter(|fixture| fixture.samples().iter().any(|s| !s.mel.is_empty()));
    let mut num_heard = 0;
    for fixture in heard {
        let (model, samples) = (load(&fixture), fixture.samples());
        let (input, _) = pack(&samples.iter().collect::<Vec<_>>(), &fixture.placeholders());
        let ours = model.speech_features(&Tape::inference(), &input).unwrap().value().to_vec_f32().unwrap();
        let theirs = expected(&fixture, "batch.speech_features");
        demand(&fixture.name(), [check_elements("features of sound", &ours, &theirs, LOGITS)]);
        num_heard += 1;
    }
    assert!(num_heard >= 3, "only {num_heard} folders hear");
}

#[test]
fn sound_that_does_not_fit_is_refused() {
    let fixture = Fixture::open(root().join("egogpt_openai"));
    let model = load(&fixture);
    let samples = fixture.samples();
    let (input, _) = pack(&[&samples[4]], &fixture.placeholders());
    // Numbers that stand in the vocabulary.
    let input = models::ModelInput { ids: vec![0; input.ids.len()], ..input };
    let refused = |change: &dyn Fn(&mut models::ModelInput), expected: &str| {
        let mut input = input.clone();
        change(&mut input);
        let error = model.logits(&Tape::inference(), &input).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(&|i| i.mel = None, "4 tokens of sound but no spectrogram");
    refused(&|i| _ = i.speech_rows.pop(), "features and tokens of sound do not match: 4 features, 3 tokens");
    refused(
        &|i| i.mel = Some(tensor::Tensor::from_f32(&[0.0; 200], &[1, 10, 20]).unwrap()),
        "the spectrogram has shape [1, 10, 20], the speech encoder expects [windows, 10, 24]",
    );
    let deaf = load(&Fixture::open(root().join("llava_siglip_qwen2")));
    let error = deaf.logits(&Tape::inference(), &input).err().unwrap().to_string();
    assert!(error.contains("takes no sound"), "{error}");
}

#[test]
fn loss_of_every_token_and_every_gradient() {
    for fixture in fixtures() {
        let model = load(&fixture);
        train_all(&model);
        for recompute in [false, true] {
            let (loss, nll, gradients) = loss_and_gradients(&model, &fixture, recompute);
            let mut results = vec![check_elements(
                "loss",
                &[loss],
                &expected(&fixture, "batch.loss"),
                Tolerance { relative: 2e-5, floor: 0.0, absolute: 0.0, projection: 0.0 },
            )];
            let theirs: Vec<f32> =
                (0..fixture.samples().len()).flat_map(|i| expected(&fixture, &format!("sample{i}.nll"))).collect();
            results.push(check_elements("nll", &nll, &theirs, LOGITS));
            results.extend(check_gradients(&model.params(), &gradients, &fixture));
            demand(&format!("{} (recompute: {recompute})", fixture.name()), results);
        }
    }
}

/// The gradients of queries and keys are `P (dP - D)`, a difference of terms as large as the values' gradient: where
/// attention is nearly uniform they cancel, and f32 leaves a few 1e-7 of those terms.
pub fn score_rounding(fixture: &Fixture, name: &str, len: usize) -> f64 {
    let values = name.replace(".q_proj.", ".v_proj.").replace(".k_proj.", ".v_proj.");
    if values == name { 0.0 } else { 2e-6 * rms(&fixture.tensors, "grad", &values, len).unwrap_or(0.0) }
}

/// Root mean square of a stored tensor of `len` elements, whole or projected.
fn rms(file: &SafeTensors, prefix: &str, name: &str, len: usize) -> Option<f64> {
    let norm = match f32s(file, &format!("{prefix}.{name}")) {
        Some(whole) => whole.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt(),
        None => f64s(file, &format!("{prefix}_proj.{name}"))?[0],
    };
    Some(norm / (len as f64).sqrt())
}

/// Every parameter has the reference's gradient, or none where the reference has none.
fn check_gradients(params: &[NamedParam], gradients: &Gradients, fixture: &Fixture) -> Vec<Result<(), String>> {
    let (unreached, zero) = (names(fixture, "no_gradient"), names(fixture, "zero_gradient"));
    let check = |p: &NamedParam| {
        let ours = gradients.get(&p.param).map(|g| g.to_vec_f32().unwrap());
        match (ours, unreached.contains(&p.name)) {
            (None, true) => Ok(()),
            (Some(_), true) => Err(format!("`{}` has a gradient, expected none", p.name)),
            (None, false) => Err(format!("`{}` has no gradient", p.name)),
            (Some(ours), false) => {
                let t = Tolerance { absolute: score_rounding(fixture, &p.name, ours.len()), ..GRADIENTS };
                if !zero.contains(&p.name) {
                    return check_tensor(&fixture.tensors, "grad", &p.name, &ours, t);
                }
                // Zero by mathematics: all of it is rounding.
                let largest = ours.iter().fold(0f32, |m, x| m.max(x.abs()));
                if f64::from(largest) < t.absolute { Ok(()) } else { Err(format!("`{}` is {largest:e}", p.name)) }
            }
        }
    };
    params.iter().map(check).collect()
}

#[test]
fn frozen_parts_take_no_gradient_and_leave_the_others_alone() {
    for fixture in fixtures() {
        let model = load(&fixture);
        for part in Part::ALL {
            model.params().iter().for_each(|p| p.param.set_trainable(p.part == part));
            if !model.params().iter().any(|p| p.part == part) {
                continue; // a decoder alone
            }
            let (_, _, gradients) = loss_and_gradients(&model, &fixture, false);
            let trained: Vec<NamedParam> = model.params().into_iter().filter(|p| p.part == part).collect();
            let frozen = model.params().iter().filter(|p| p.part != part && gradients.contains(&p.param)).count();
            assert_eq!(frozen, 0, "{}: gradients of frozen weights while {} trains", fixture.name(), part.name());
            demand(
                &format!("{}, {} alone", fixture.name(), part.name()),
                check_gradients(&trained, &gradients, &fixture),
            );
        }
    }
}

#[test]
fn greedy_continuation_of_two_prompts_at_once() {
    for fixture in fixtures() {
        let model = load(&fixture);
        let cases = fixture.info["greedy"].as_array().unwrap();
        let samples = fixture.samples();
        let ints = |v: &serde_json::Value| -> Vec<u32> {
            v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
        };
        let prompts: Vec<Sample> = cases
            .iter()
            .map(|case| {
                let sample = &samples[case["sample"].as_u64().unwrap() as usize];
                let images = case["images"].as_array().unwrap().len();
                // Of clips and patches the prompt has all, of pictures of one size as many as it names.
                let mut shape = sample.pixels_shape.clone();
                if sample.visuals.is_empty() && !shape.is_empty() {
                    assert!(images <= shape[0]);
                    shape[0] = images;
                }
                let num_values = if shape.is_empty() { 0 } else { shape.iter().product() };
                Sample {
                    ids: ints(&case["input_ids"]),
                    labels: Vec::new(),
                    pixels: sample.pixels[..num_values].to_vec(),
                    pixels_shape: shape,
                    visuals: sample.visuals.clone(),
                    mel: sample.mel.clone(),
                    mel_shape: sample.mel_shape.clone(),
                    speech_token: sample.speech_token,
                }
            })
            .collect();
        let (input, _) = pack(&prompts.iter().collect::<Vec<_>>(), &fixture.placeholders());
        let mut cache = model.new_cache(prompts.len());
        let mut rows = model.prefill(&input, &mut cache).unwrap().to_vec_f32().unwrap();
        let mut new = vec![Vec::new(); prompts.len()];
        for _ in 0..ints(&cases[0]["new_ids"]).len() {
            let vocab = rows.len() / prompts.len();
            let best = |row: &[f32]| (0..vocab).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
            let step: Vec<(usize, u32)> = rows.chunks(vocab).map(best).enumerate().collect();
            step.iter().for_each(|&(s, id)| new[s].push(id));
            rows = model.decode_step(&step, &mut cache).unwrap().to_vec_f32().unwrap();
        }
        for (case, new) in cases.iter().zip(new) {
            assert_eq!(new, ints(&case["new_ids"]), "{}: `{}`", fixture.name(), case["text"]);
        }
    }
}

#[test]
fn the_tolerances_notice_a_small_error() {
    let fixture = Fixture::open(root().join("llava_siglip_qwen2"));
    let model = load(&fixture);
    train_all(&model);
    let (_, _, gradients) = loss_and_gradients(&model, &fixture, false);
    let mut whole = 0;
    for p in model.params() {
        let Some(gradient) = gradients.get(&p.param) else { continue };
        let ours = gradient.to_vec_f32().unwrap();
        if check_tensor(&fixture.tensors, "grad", &p.name, &ours, GRADIENTS).is_err() {
            continue; // the key biases
        }
        // One hundredth of the error vector's direction everywhere is 1 % of the norm; one element off by its own size is
        // seen where the tensor is stored whole.
        let noisy: Vec<f32> = ours
            .iter()
            .enumerate()
            .map(|(i, &x)| x * (1.0 + 0.01 * projection_element(7, 1, i as u64) as f32))
            .collect();
        assert!(check_tensor(&fixture.tensors, "grad", &p.name, &noisy, GRADIENTS).is_err(), "{}", p.name);
        if f32s(&fixture.tensors, &format!("grad.{}", p.name)).is_some() {
            whole += 1;
            let largest = (0..ours.len()).max_by(|&a, &b| ours[a].abs().total_cmp(&ours[b].abs())).unwrap();
            let mut one = ours.clone();
            one[largest] *= 1.01;
            assert!(check_tensor(&fixture.tensors, "grad", &p.name, &one, GRADIENTS).is_err(), "{}", p.name);
        }
    }
    assert!(whole > 20);
}

/// A sequence grows past the switch of LongRoPE while one beside it is past it already and another one stays below: each
/// gets the logits that it gets as a whole, at every length.
#[test]
fn a_cache_that_outgrows_the_switch_starts_again() {
    let fixture = Fixture::open(root().join("text_phi3_longrope"));
    let model = load(&fixture);
    let switch = model.config().causal().unwrap().text.rope.switch().unwrap();
    let ids = fixture.samples()[0].ids.clone();
    let part = |len: usize| Sample { ids: ids[..len].to_vec(), ..Sample::default() };
    let starts = [switch - 2, switch + 1, 3];
    let prompts: Vec<Sample> = starts.map(part).into_iter().collect();
    let (input, _) = pack(&prompts.iter().collect::<Vec<_>>(), &fixture.placeholders());
    let mut cache = model.new_cache(prompts.len());
    let mut rows = model.prefill(&input, &mut cache).unwrap().to_vec_f32().unwrap();
    for step in 0..6 {
        let vocab = rows.len() / starts.len();
        demand(
            &format!("after {step} steps"),
            starts.iter().enumerate().map(|(s, start)| {
                let whole = logits(&model, &[&part(start + step)], &fixture.placeholders());
                let last = &whole[whole.len() - vocab..];
                check_elements(&format!("sequence {s}"), &rows[s * vocab..(s + 1) * vocab], last, LOGITS)
            }),
        );
        // In another order than that of the cache.
        let tokens: Vec<(usize, u32)> = [2, 0, 1].map(|s| (s, ids[starts[s] + step])).to_vec();
        let found = model.decode_step(&tokens, &mut cache).unwrap().to_vec_f32().unwrap();
        for (i, (s, _)) in tokens.iter().enumerate() {
            rows[s * vocab..(s + 1) * vocab].copy_from_slice(&found[i * vocab..(i + 1) * vocab]);
        }
        assert_eq!(cache.lengths(), starts.map(|start| start + step + 1));
    }
}
