//! The feature cache: the same bits with and without it, whatever happens to its files, and what it refuses.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::support::run::{Place, course, final_weights};
use crate::support::{batch, encoded_samples, fixture_dir, plan, prepared, trainer, weight_bits};
use data::Batch;
use models::Part;
use tensor::{DType, Tensor};
use train::plan::Plan;
use train::{Event, FeatureCache, FeatureStats, Resume, TrainError, Trainer, select};

const FIXTURE: &str = "llava_siglip_qwen2";
const BUDGET: u64 = 1 << 30;
const TRAIN: &str =
    "num_train_epochs: 2, per_device_train_batch_size: 2, learning_rate: 2e-3, weight_decay: 0.1, eval_strategy: epoch";
/// Different pictures among the records of a [`Place`], of both sets.
const NUM_PICTURES: u64 = 4;

/// Runs a plan to its end; returns what it said about the cache.
fn run(plan: &Plan) -> Vec<String> {
    let mut said = Vec::new();
    let mut listen = |event: &Event<'_>| {
        if let Event::Notice(notice) = event
            && (notice.contains("feature cache") || notice.contains("feature_cache"))
        {
            said.push((*notice).to_owned());
        }
    };
    train::run(plan, &Resume::Never, &AtomicBool::new(false), &mut listen).unwrap_or_else(|error| panic!("{error}"));
    said
}

fn summary(hits: u64, misses: u64, stored: u64) -> String {
    format!("feature cache: {hits} pictures were read, {misses} passed the tower, and {stored} of these were kept")
}

/// The files of entries, in the order of their names.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for shelf in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        files.extend(std::fs::read_dir(shelf).unwrap().map(|entry| entry.unwrap().path()));
    }
    files.sort();
    files
}

fn num_bytes(dir: &Path) -> u64 {
    entries(dir).iter().map(|file| std::fs::metadata(file).unwrap().len()).sum()
}

/// A plan with a cache in the folder `cache` of the place.
fn cached(place: &Place, output: &str, method: &str, overrides: &[&str]) -> Plan {
    let cache = format!("train.feature_cache={}", place.path("cache").display());
    place.plan(output, method, TRAIN, &[overrides, &[&cache]].concat())
}

fn dtypes() -> Vec<&'static str> {
    // Elsewhere bf16 weights are computed in f32, which the first of the two shows.
    if tensor::has_bf16() { vec!["f32", "bf16"] } else { vec!["f32"] }
}

#[test]
fn the_same_losses_and_weights_with_and_without() {
    let lora = "kind: lora, also_train: [projector], lora: {r: 4, lora_dropout: 0.2, target_modules: all-linear}";
    for method in ["kind: projector", lora] {
        let place = Place::new(FIXTURE);
        for dtype in dtypes() {
            let dtype_key = format!("model.dtype={dtype}");
            let name = |kind: &str| format!("{kind}_{dtype}");
            run(&place.plan(&name("plain"), method, TRAIN, &[&dtype_key]));
            let cold = run(&cached(&place, &name("cold"), method, &[&dtype_key]));
            let warm = run(&cached(&place, &name("warm"), method, &[&dtype_key, "data.num_workers=3"]));
            for twin in ["cold", "warm"] {
                let (plain, twin) = (place.path(&name("plain")), place.path(&name(twin)));
                assert_eq!(course(&plain), course(&twin), "{method} {dtype}: {}", twin.display());
                assert!(final_weights(&plain) == final_weights(&twin), "{method} {dtype}: {}", twin.display());
            }
            // The number of pictures that are read depends on which share a batch; none passes the tower a second time.
            let ends = |said: &[String], misses: u64| {
                said.len() == 1 && said[0].ends_with(&summary(0, misses, misses)["feature cache: 0".len()..])
            };
            assert!(ends(&cold, NUM_PICTURES) && ends(&warm, 0), "{method} {dtype}: {cold:?} {warm:?}");
        }
        assert_eq!(entries(&place.path("cache")).len() as u64, NUM_PICTURES * dtypes().len() as u64);
    }
}

fn open(dir: &Path, trainer: Trainer) -> Trainer {
    let cache = FeatureCache::open(dir, BUDGET, &trainer.model, trainer.tensors()).unwrap();
    trainer.with_feature_cache(Some(cache))
}

fn stats(trainer: &Trainer) -> FeatureStats {
    trainer.feature_cache().unwrap().stats()
}

/// A trainer's losses over two steps, and the bits of its weights.
fn steps(trainer: &mut Trainer, window: &[Batch]) -> (Vec<u64>, Vec<Vec<u8>>) {
    let losses = (0..2).map(|_| trainer.train_step(window).unwrap().loss.to_bits()).collect();
    (losses, weight_bits(trainer))
}

#[test]
fn pictures_of_one_batch_are_read_and_computed_side_by_side() {
    let samples = encoded_samples(FIXTURE);
    let plan = plan(FIXTURE, "kind: projector", "learning_rate: 1e-3, max_steps: 2");
    let dir = tempfile::tempdir().unwrap();
    let with_pictures: Vec<usize> = (0..samples.len()).filter(|i| samples[*i].num_images > 0).collect();
    let (first, all) = (batch(&samples, &with_pictures[..1]), batch(&samples, &with_pictures));
    assert!(all.num_images > first.num_images);
    open(dir.path(), trainer(&plan, None, 2)).train_step(&[first]).unwrap();
    let mut half = open(dir.path(), trainer(&plan, None, 2));
    let window = [all];
    assert!(steps(&mut half, &window) == steps(&mut trainer(&plan, None, 2), &window));
    let found = stats(&half);
    assert!(found.hits > 0 && found.misses > 0 && found.stored == found.misses, "{found:?}");
}

/// The tower of another run is another tower, if only by the last bit of one weight that hardly counts.
#[test]
fn other_towers_have_other_entries() {
    let samples = encoded_samples(FIXTURE);
    let window = [batch(&samples, &[0, 1])];
    let plan = plan(FIXTURE, "kind: projector", "learning_rate: 1e-3, max_steps: 1");
    let dir = tempfile::tempdir().unwrap();
    let misses = |change: &dyn Fn(&Trainer)| {
        let trainer = trainer(&plan, Some(DType::F32), 1);
        change(&trainer);
        let mut trainer = open(dir.path(), trainer);
        trainer.train_step(&window).unwrap();
        stats(&trainer).misses
    };
    let nudge = |part: Part, ending: &'static str| {
        move |trainer: &Trainer| {
            let params = trainer.model.params();
            let named = params.iter().find(|p| p.part == part && p.name.ends_with(ending)).unwrap();
            let mut values = named.param.value().to_vec_f32().unwrap();
            values[0] = f32::from_bits(values[0].to_bits() ^ 1);
            named.param.set_value(Tensor::from_f32(&values, &named.param.shape()).unwrap()).unwrap();
        }
    };
    let all = misses(&|_| ());
    assert!(all > 0);
    assert_eq!(misses(&|_| ()), 0);
    assert_eq!(misses(&nudge(Part::Vision, "layers.0.mlp.fc1.bias")), all);
    assert_eq!(misses(&nudge(Part::Vision, "patch_embedding.weight")), all);
    // What stands behind the tower does not count, nor what no picture reaches.
    assert_eq!(misses(&nudge(Part::Projector, "linear_1.weight")), 0);
    assert_eq!(misses(&nudge(Part::Vision, "post_layernorm.weight")), 0);
}

#[test]
fn entries_that_are_not_whole_are_computed_again() {
    let place = Place::new(FIXTURE);
    let method = "kind: projector";
    run(&place.plan("plain", method, TRAIN, &[]));
    run(&cached(&place, "cold", method, &[]));
    let files = entries(&place.path("cache"));
    let whole: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    for (i, (file, bytes)) in files.iter().zip(&whole).enumerate() {
        let mut bytes = bytes.clone();
        match i {
            0 => bytes.clear(),
            1 => bytes.truncate(bytes.len() - 1),
            // An exponent of a feature: the loss would be another one.
            2 => *bytes.last_mut().unwrap() ^= 0x40,
            _ => bytes = whole[0].clone(),
        }
        std::fs::write(file, bytes).unwrap();
    }
    let said = run(&cached(&place, "spoilt", method, &[]));
    assert_eq!(course(&place.path("plain")), course(&place.path("spoilt")));
    assert!(final_weights(&place.path("plain")) == final_weights(&place.path("spoilt")));
    // Three are told, the fourth is counted.
    assert_eq!(said.len(), 4, "{said:?}");
    for notice in &said[..3] {
        assert!(notice.starts_with("feature cache: `") && notice.ends_with("; the picture passes the tower again"));
    }
    assert!(said[3].ends_with(&format!("{NUM_PICTURES} passed the tower, and {NUM_PICTURES} of these were kept")));
    for (file, bytes) in files.iter().zip(&whole) {
        assert!(std::fs::read(file).unwrap() == *bytes, "`{}`", file.display());
    }
}

#[test]
fn a_budget_too_small_for_all_serves_some() {
    let place = Place::new(FIXTURE);
    let method = "kind: projector";
    run(&place.plan("plain", method, TRAIN, &[]));
    run(&cached(&place, "cold", method, &[]));
    let each = num_bytes(&place.path("cache")) / NUM_PICTURES;
    let budget = 2 * each + each / 2;
    let said = run(&cached(&place, "small", method, &[&format!("train.feature_cache_size={budget}")]));
    assert_eq!(course(&place.path("plain")), course(&place.path("small")));
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with("`train.feature_cache_size` is used up by this run's own pictures"), "{said:?}");
    let left = num_bytes(&place.path("cache"));
    assert!(left > 0 && left <= budget, "{left} bytes");
}

#[test]
fn several_runs_share_a_folder() {
    let place = Place::new(FIXTURE);
    run(&place.plan("plain", "kind: projector", TRAIN, &[]));
    run(&cached(&place, "cold", "kind: projector", &[]));
    let each = num_bytes(&place.path("cache")) / NUM_PICTURES;
    std::thread::scope(|scope| {
        for (i, room) in [1, 2, 3].into_iter().enumerate() {
            let place = &place;
            scope.spawn(move || {
                // Small enough for the three to drive out each other's entries.
                let size = format!("train.feature_cache_size={}", room * each + 1);
                let said = run(&cached(place, &format!("run{i}"), "kind: projector", &[&size]));
                assert!(said.iter().all(|notice| !notice.contains("passes the tower again")), "{said:?}");
            });
        }
    });
    for i in 0..3 {
        assert_eq!(course(&place.path("plain")), course(&place.path(&format!("run{i}"))));
    }
}

#[test]
fn a_folder_that_cannot_be_written_to_is_told_once() {
    let place = Place::new(FIXTURE);
    run(&place.plan("plain", "kind: projector", TRAIN, &[]));
    let dir = place.path("cache");
    std::fs::create_dir(&dir).unwrap();
    // A file wherever a folder of entries would have to be: also who may write everywhere cannot write there.
    for shelf in 0..=255 {
        std::fs::write(dir.join(format!("{shelf:02x}")), "").unwrap();
    }
    let said = run(&cached(&place, "out", "kind: projector", &[]));
    assert_eq!(course(&place.path("plain")), course(&place.path("out")));
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with("the feature cache cannot be written to: `"), "{said:?}");
    let file = place.path("train.jsonl");
    let plan = place.plan("none", "kind: projector", TRAIN, &[&format!("train.feature_cache={}", file.display())]);
    let error = refused(&plan);
    assert!(error.starts_with(&format!("`train.feature_cache`: `{}` cannot be used: ", file.display())), "{error}");
    assert!(error.ends_with("hint: name a folder that can be written to, or leave the key out"), "{error}");
}

/// The error of a run that must not begin.
fn refused(plan: &Plan) -> String {
    let error = train::run(plan, &Resume::Never, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
    assert!(matches!(error, TrainError::Mismatch { .. }), "{error}");
    error.to_string()
}

#[test]
fn a_tower_that_trains_is_refused() {
    let place = Place::new(FIXTURE);
    // The plan alone does not say what these patterns mean.
    for method in [
        "kind: full, freeze: [llm]",
        "kind: lora, lora: {target_modules: '.*vision_tower.*q_proj'}",
        "kind: lora, also_train: [vision_tower.encoder.layers.0.mlp.fc1]",
    ] {
        let plan = cached(&place, "out", method, &[]);
        let error = refused(&plan);
        let start = "`train.feature_cache` needs a tower that stays as it is, but these of its tensors train: `";
        assert!(error.starts_with(start), "{method}: {error}");
        assert!(error.contains("hint: write `method.freeze: [vision]`"), "{method}: {error}");
        assert!(!place.path("cache").exists(), "{method}");
    }
    let plan = plan("text_llama", "kind: full", "max_steps: 1");
    let (model, selection) = prepared(&plan, None);
    let error = FeatureCache::open(&place.path("cache"), 1, &model, &selection.tensors).unwrap_err().to_string();
    assert!(error.starts_with("`train.feature_cache` is given, but a `llama` model has no tower"), "{error}");
}

/// An adapter in the tower may drop out: no two passes need be the same.
#[test]
fn a_frozen_adapter_in_the_tower_is_refused() {
    let method = "kind: lora, freeze: [vision], lora: {target_modules: '.*(vision_tower|language_model).*q_proj'}";
    let plan = plan(FIXTURE, method, "max_steps: 1");
    let (mut model, _) = models::load(&fixture_dir(FIXTURE), &models::LoadOptions::default()).unwrap();
    let selection = select(&plan, &mut model).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = FeatureCache::open(dir.path(), BUDGET, &model, &selection.tensors).unwrap_err().to_string();
    assert!(error.starts_with("`train.feature_cache` needs a tower without an adapter, found `"), "{error}");
}

/// What the plan says by itself.
#[test]
fn the_plan_refuses_what_cannot_be_kept() {
    let check = |method: &str, more: &str, expected: &str| {
        let text = format!(
            "model: {{path: m}}\nmethod: {{{method}}}\ndata: {{train: [{{path: d.json}}], num_frames: 2{more}}}\n\
             train: {{output_dir: o, feature_cache: c}}\n"
        );
        let found = Plan::from_yaml(&text, &[]).map_or_else(|error| error.to_string(), |_| "accepted".to_owned());
        assert_eq!(found, expected);
    };
    check("kind: projector", "", "accepted");
    check("kind: lora", "", "accepted");
    check("kind: full, freeze: [vision]", "", "accepted");
    check(
        "kind: full",
        "",
        "line 4, column 24: `train.feature_cache` needs a vision tower that stays as it is, but `method.kind: full` without `method.freeze` trains it\n  hint: write `method.freeze: [vision]`, or remove `train.feature_cache`",
    );
    check(
        "kind: lora, also_train: [vision]",
        "",
        "line 4, column 24: `train.feature_cache` needs a vision tower that stays as it is, but `method.also_train` names it\n  hint: take `vision` out of `method.also_train`, or remove `train.feature_cache`",
    );
    check(
        "kind: lora, learning_rates: {vision: 1e-5}",
        "",
        "line 4, column 24: `train.feature_cache` needs a vision tower that stays as it is, but `method.learning_rates.vision` is given\n  hint: remove `method.learning_rates.vision`, or `train.feature_cache`",
    );
    check(
        "kind: projector",
        ", frame_rule: segments, frame_jitter: true",
        "line 4, column 24: `train.feature_cache` keeps what comes again, and `data.frame_jitter` takes other frames in every epoch\n  hint: remove `data.frame_jitter`, or `train.feature_cache`",
    );
    let text = "model: {path: m}\nmethod: {kind: projector}\ndata: {train: [{path: d.json}]}\ntrain: {output_dir: o, feature_cache_size: 1GB}\n";
    let error = Plan::from_yaml(text, &[]).unwrap_err().to_string();
    assert!(error.contains("`train.feature_cache_size` has no effect without `train.feature_cache`"), "{error}");
}

/// Products of few rows add in the same order as those of many, so that a picture of four patches gives the same bits alone and
/// beside others; a tower for which that does not hold is refused when the cache opens.
#[test]
fn a_tower_of_tiny_pictures_keeps_its_bits() {
    let value = serde_json::json!({
        "model_type": "llava", "image_token_index": 1, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 28, "patch_size": 14, "vision_use_head": false},
        "text_config": {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": false}
    });
    let model = models::random(models::ModelConfig::from_json("config.json", value).unwrap(), 1, DType::F32).unwrap();
    let dir = tempfile::tempdir().unwrap();
    assert!(FeatureCache::open(dir.path(), BUDGET, &model, &[]).is_ok());
}
