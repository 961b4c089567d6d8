//! Parts that were never one checkpoint, joined by a plan: what the reference made of the same parts, errors of parts that do
//! not fit, projectors from one run to the next.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use data::{EncodeOptions, Format, Processor, open_dataset};
use hub::SafeTensors;
use models::LoadOptions;
use tensor::{DType, Tape};
use train::plan::Plan;
use train::{Resume, run};

use crate::support::fixture_dir;

fn parts(folder: &str) -> PathBuf {
    fixture_dir(folder).join("parts").canonicalize().unwrap()
}

/// A plan that joins the parts of a folder; `model` and `method` are the insides of their sections.
fn plan(folder: &str, out: &Path, model: &str, method: &str) -> Plan {
    let (parts, data) = (parts(folder), fixture_dir(folder).join("samples.json").canonicalize().unwrap());
    let text = format!(
        "model: {{language: {0}/language, image_tower: {0}/image_tower, video_tower: {0}/video_tower, {model}}}\n\
         method: {{{method}}}\ndata: {{train: [{{path: {1}}}], shuffle: false}}\n\
         train: {{output_dir: {2}, max_steps: 2, per_device_train_batch_size: 4, learning_rate: 1e-3}}\n",
        parts.display(),
        data.display(),
        out.display()
    );
    Plan::from_yaml(&text, &[]).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

fn train(plan: &Plan) -> train::Result<train::RunOutcome> {
    run(plan, &Resume::Never, &AtomicBool::new(false), &mut |_| {})
}

/// Logits of every sample of a fixture folder, by the processor and the model of `dir`.
fn logits(folder: &str, dir: &Path) -> Vec<Vec<f32>> {
    let dataset = open_dataset(&fixture_dir(folder).join("samples.json"), Format::Auto, None).unwrap();
    let processor = Processor::load(dir).unwrap();
    let (model, _) = models::load(dir, &LoadOptions { dtype: Some(DType::F32) }).unwrap();
    let of = |i: u64| {
        let encoded = processor.encode(&dataset.get(i).unwrap(), &EncodeOptions::default()).unwrap();
        let input = infer::upload_encoded(&[encoded]).unwrap();
        model.logits(&Tape::inference(), &input).unwrap().value().to_vec_f32().unwrap()
    };
    (0..dataset.len()).map(of).collect()
}

fn near_the_reference(folder: &str, ours: &[Vec<f32>]) {
    let file = SafeTensors::open(fixture_dir(folder).join("expected.safetensors")).unwrap();
    let info: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture_dir(folder).join("expected.json")).unwrap()).unwrap();
    let stride = info["logits_stride"].as_u64().unwrap_or(1) as usize;
    for (i, ours) in ours.iter().enumerate() {
        let view = file.get(&format!("sample{i}.logits")).unwrap();
        let theirs: Vec<f32> = view.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let width = view.shape[1];
        let ours: Vec<f32> = ours.chunks(width).step_by(stride).flatten().copied().collect();
        assert_eq!(ours.len(), theirs.len(), "{folder}, sample {i}");
        let square: f64 = theirs.iter().map(|x| f64::from(*x).powi(2)).sum();
        let scale = (square / theirs.len() as f64).sqrt();
        // As the logits of whole checkpoints (crates/models/tests/parity/base.rs).
        let worst = ours.iter().zip(&theirs).map(|(a, b)| f64::from(a - b).abs()).fold(0.0, f64::max);
        assert!(worst <= 1e-4 * scale, "{folder}, sample {i}: off by {:.1e} of the scale", worst / scale);
    }
}

/// Tokens and tables grow as in the reference, which wrote the same parts and the whole.
#[test]
fn joined_parts_give_the_logits_of_the_reference() {
    for (folder, model) in [
        (
            "encoders_llama",
            "projector: linear, video_projector: mlp2x_gelu, mm_use_start_end: true, mm_use_patch_token: true, version: v1",
        ),
        ("encoders_phi3", "mm_use_start_end: true, version: phi"),
    ] {
        let out = tempfile::tempdir().unwrap();
        let projector = parts(folder).join("mm_projector.bin");
        let model = format!("{model}, pretrained_projector: {}", projector.display());
        let plan = plan(folder, out.path(), &model, "kind: lora, lora: {r: 2, target_modules: all-linear}");
        let outcome = train(&plan).unwrap();
        let base = out.path().join("base_model");
        near_the_reference(folder, &logits(folder, &base));
        // The base is small: it holds nothing of its parts but tables that grew.
        let own = hub::Checkpoint::open(&base).unwrap();
        assert!(
            own.names()
                .iter()
                .all(|n| n.contains("mm_projector") || n.contains("embed_tokens") || n.contains("lm_head"))
        );
        // The adapter finds it.
        let adapter: serde_json::Value =
            hub::json::read_json(outcome.final_model.unwrap().join("adapter_config.json")).unwrap();
        assert_eq!(adapter["base_model_name_or_path"], base.to_string_lossy().as_ref());
    }
}

/// Projectors first; then an adapter over what they became; a resumption finds the same base.
#[test]
fn projectors_go_from_one_run_to_the_next() {
    let folder = "encoders_llama";
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let joins = "mm_use_start_end: true, version: plain, projector: mlp3x_gelu";
    // `plain` wants a picture in every question.
    let file = first.path().join("d.json");
    let records = serde_json::json!([
        {"id": "a", "image": fixture_dir(folder).join("images/3.png").canonicalize().unwrap(),
         "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Two."}]},
        {"id": "b", "video": [fixture_dir(folder).join("images/0.png").canonicalize().unwrap(), fixture_dir(folder).join("images/1.png").canonicalize().unwrap()],
         "conversations": [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A red circle."}]}]);
    std::fs::write(&file, records.to_string()).unwrap();
    let mut projectors = plan(folder, &first.path().join("run"), joins, "kind: projector");
    projectors.data.train[0].path = file;
    let outcome = train(&projectors).unwrap();
    let final_model = outcome.final_model.unwrap();
    let names = |file: &str| -> Vec<String> {
        SafeTensors::open(final_model.join(file)).unwrap().names().into_iter().map(str::to_owned).collect()
    };
    let layers = [0, 2, 4].map(|i| format!("model.image_mm_projector.{i}"));
    let mut expected: Vec<String> =
        layers.iter().flat_map(|layer| [format!("{layer}.bias"), format!("{layer}.weight")]).collect();
    expected.insert(0, "model.embed_tokens.weight".into());
    assert_eq!(names("image_mm_projector.safetensors"), expected);
    assert_eq!(names("video_mm_projector.safetensors").len(), 7);
    // Whole and alone: it loads without its parts' names.
    let config: serde_json::Value = hub::json::read_json(final_model.join("config.json")).unwrap();
    assert!(config.get("mm_language_model").is_none() && config["image_encoder"]["vision_config"].is_object());
    assert_eq!(
        (&config["conversation_version"], &config["video_encoder"]["num_segment"]),
        (&"plain".into(), &16.into())
    );
    let (whole, _) = models::load(&final_model, &LoadOptions::default()).unwrap();

    let joins = format!("{joins}, pretrained_projector: {}", final_model.display());
    let lora = plan(
        folder,
        second.path(),
        &joins.replace("plain", "v1"),
        "kind: lora, lora: {r: 2, target_modules: all-linear}",
    );
    train(&lora).unwrap();
    let (base, _) = models::load(&second.path().join("base_model"), &LoadOptions::default()).unwrap();
    for p in whole.params().iter().filter(|p| p.name.contains("mm_projector")) {
        let base = base.params().into_iter().find(|q| q.name == p.name).unwrap();
        assert_eq!(p.param.value().to_bytes(), base.param.value().to_bytes(), "{}", p.name);
    }
    // Of the table only the new rows come along, as in the original.
    let rows = |model: &models::Model| {
        let params = model.params();
        let table = params.iter().find(|p| p.name == "model.embed_tokens.weight").unwrap();
        table.param.value().to_vec_f32().unwrap()
    };
    let (ours, theirs) = (rows(&base), rows(&whole));
    let split = ours.len() - 4 * 40;
    assert_eq!(ours[split..], theirs[split..]);
    assert_ne!(ours[..split], theirs[..split]);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_trains() {
    let folder = "encoders_llama";
    let error = |model: &str, method: &str| {
        let out = tempfile::tempdir().unwrap();
        let found = train(&plan(folder, out.path(), model, method)).unwrap_err().to_string();
        assert!(!out.path().join("base_model").exists(), "{found}");
        found
    };
    let projector = parts(folder).join("mm_projector.bin");
    let given = format!("mm_use_start_end: true, pretrained_projector: {}", projector.display());
    let check = |model: &str, method: &str, expected: &str| {
        let found = error(model, method);
        assert!(found.contains(expected), "{found}");
    };
    check(
        "version: v1",
        "kind: lora",
        "`model.image_mm_projector` starts at random and would stay so: nothing trains it",
    );
    check(
        &given,
        "kind: projector",
        "it lacks `model.image_mm_projector.0.weight` of a projector of kind `mlp2x_gelu`",
    );
    let other = format!(
        "projector: linear, pretrained_projector: {}",
        parts("encoders_qwen2_tied").join("mm_projector.bin").display()
    );
    check(&other, "kind: projector", "it lacks `model.image_mm_projector.weight` of a projector of kind `linear`");
    let other = format!(
        "projector: mlp3x_gelu, pretrained_projector: {}",
        parts("encoders_qwen2_tied").join("mm_projector.bin").display()
    );
    check(
        &other,
        "kind: projector",
        "its `model.image_mm_projector.0.weight` has shape [48, 32], the tower and the decoder need [40, 24]",
    );
    check(
        "pretrained_projector: /no/such.bin",
        "kind: projector",
        "`/no/such.bin`: as `model.pretrained_projector`: no such file or folder",
    );
    check(
        "mm_vision_select_layer: -9",
        "kind: projector",
        "field `mm_vision_select_layer`: expected an index within 4 hidden states, found `-9`",
    );
}

/// A look at a plan leaves nothing behind.
#[test]
fn a_report_writes_nothing() {
    let out = tempfile::tempdir().unwrap();
    let place = out.path().join("run");
    let plan = plan("encoders_qwen2_tied", &place, "version: chatml", "kind: projector");
    let report = train::plan_report(&plan, &train::ReportOptions::default()).unwrap();
    assert_eq!(report.model_dir, place.join("base_model"));
    assert_eq!((report.parts[0].trainable_tensors, report.parts[1].trainable_tensors), (0, 8));
    assert!(!place.exists());
}
