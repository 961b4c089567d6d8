//! The optimizer step on small real models: what must not change the result, what must stop it, and what trains under each
//! method.

use crate::support::{batch, encoded_samples, plan, prepared, trainer, weight_bits};
use data::Batch;
use tensor::DType;
use train::{ExitClass, TrainError, Trainer, select};

const SIGLIP: &str = "llava_siglip_qwen2";

fn losses(trainer: &mut Trainer, window: &[Batch], steps: usize) -> Vec<f64> {
    (0..steps).map(|_| trainer.train_step(window).unwrap_or_else(|error| panic!("{error}")).loss).collect()
}

/// The division of a window into micro-batches changes only the order of sums: the loss is over all its tokens.
#[test]
fn micro_batches_weigh_every_token_alike() {
    let samples = encoded_samples(SIGLIP);
    let plan = plan(SIGLIP, "kind: full", "learning_rate: 1e-3, max_steps: 4, max_grad_norm: 1.0");
    let whole = [batch(&samples, &[0, 1, 2])];
    let parts: Vec<Batch> = [0, 1, 2].map(|i| batch(&samples, &[i])).into();
    assert_ne!(parts[0].num_supervised(), parts[1].num_supervised(), "equal counts would hide a wrong mean");
    let (mut a, mut b) = (trainer(&plan, None, 4), trainer(&plan, None, 4));
    for step in 0..4 {
        let (whole, parts) = (a.train_step(&whole).unwrap(), b.train_step(&parts).unwrap());
        // f32 sums in another order: 1e-6 relative at the start, doubled at most by each step of training.
        let relative = (whole.loss - parts.loss).abs() / whole.loss;
        assert!(relative < 1e-6 * 4f64.powi(step), "step {step}: {} and {}", whole.loss, parts.loss);
        assert!((whole.grad_norm - parts.grad_norm).abs() / whole.grad_norm < 1e-5 * 4f64.powi(step));
        assert_eq!((whole.supervised_tokens, whole.samples), (parts.supervised_tokens, 3));
    }
}

#[test]
fn recomputation_changes_no_bit() {
    let samples = encoded_samples(SIGLIP);
    let window = [batch(&samples, &[0, 1])];
    for method in ["kind: full", "kind: lora, lora: {lora_dropout: 0.3, target_modules: all-linear}"] {
        let run = |recompute: bool| {
            let plan = plan(
                SIGLIP,
                method,
                &format!("learning_rate: 1e-3, max_steps: 3, gradient_checkpointing: {recompute}"),
            );
            let mut trainer = trainer(&plan, None, 3);
            (losses(&mut trainer, &window, 3), weight_bits(&trainer))
        };
        let (kept, again) = (run(false), run(true));
        assert_eq!(kept.0, again.0, "{method}");
        assert!(kept.1 == again.1, "weights differ under {method}");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let samples = encoded_samples(SIGLIP);
    let window = [batch(&samples, &[0, 1])];
    let plan = plan(SIGLIP, "kind: full", "learning_rate: 1e-3, max_steps: 2");
    let run = |threads: usize| {
        tensor::set_num_threads(threads);
        let mut trainer = trainer(&plan, None, 2);
        (losses(&mut trainer, &window, 2), weight_bits(&trainer))
    };
    assert!(run(1) == run(2));
}

#[test]
fn dropout_follows_seed_step_and_micro_batch() {
    let samples = encoded_samples(SIGLIP);
    let window: Vec<Batch> = vec![batch(&samples, &[0]), batch(&samples, &[0])];
    let run = |seed: u64| {
        let plan = plan(
            SIGLIP,
            "kind: lora, lora: {lora_dropout: 0.5}",
            &format!("learning_rate: 1e-2, max_steps: 4, seed: {seed}"),
        );
        losses(&mut trainer(&plan, None, 4), &window, 4)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1)[2..], run(2)[2..]);
}

#[test]
fn sixteen_bit_weights_learn_through_their_master_copies() {
    let samples = encoded_samples(SIGLIP);
    let window = [batch(&samples, &[0, 1])];
    // The rate is so small that most single updates are below half a unit of bf16 and would be lost without f32 masters.
    let plan = plan(SIGLIP, "kind: full", "learning_rate: 2e-5, max_steps: 40, lr_scheduler_type: constant");
    let (mut wide, mut narrow) = (trainer(&plan, Some(DType::F32), 40), trainer(&plan, Some(DType::BF16), 40));
    let start = weight_bits(&narrow);
    let (wide, narrow_losses) = (losses(&mut wide, &window, 40), losses(&mut narrow, &window, 40));
    let (gained, expected) = (narrow_losses[0] - narrow_losses[39], wide[0] - wide[39]);
    assert!(expected > 0.0 && (gained - expected).abs() < 0.2 * expected, "gained {gained} instead of {expected}");
    assert!(start != weight_bits(&narrow));
    assert!(narrow.tensors().iter().all(|t| t.named.param.dtype() == DType::F32 && t.named.disk_dtype == DType::BF16));
}

#[test]
fn clipping_bounds_the_update_and_null_does_not() {
    let samples = encoded_samples(SIGLIP);
    let window = [batch(&samples, &[0, 1])];
    let run = |norm: &str| {
        let plan = plan(
            SIGLIP,
            "kind: projector",
            &format!(
                "learning_rate: 1e-3, max_steps: 3, lr_scheduler_type: constant, adam_epsilon: 1.0, max_grad_norm: {norm}"
            ),
        );
        let mut trainer = trainer(&plan, None, 3);
        let norm = trainer.train_step(&window).unwrap().grad_norm;
        (norm, weight_bits(&trainer))
    };
    let (free, clipped, loose) = (run("null"), run("0.01"), run("1e6"));
    assert!(free.0 > 0.01);
    assert_eq!(free.0, clipped.0, "the reported norm is the one before clipping");
    assert!(free.1 != clipped.1 && free.1 == loose.1);
}

#[test]
fn tensors_without_gradient_are_left_alone() {
    let samples = encoded_samples("clip_full_llama_bias");
    let text_only = samples.iter().position(|s| s.num_images == 0).unwrap();
    let plan = plan(
        "clip_full_llama_bias",
        "kind: full",
        "learning_rate: 1e-3, max_steps: 2, weight_decay: 0.1, lr_scheduler_type: constant",
    );
    let mut trainer = trainer(&plan, None, 2);
    let before = weight_bits(&trainer);
    trainer.train_step(&[batch(&samples, &[text_only])]).unwrap();
    for (trained, (before, after)) in trainer.tensors().iter().zip(before.iter().zip(weight_bits(&trainer))) {
        let is_llm = trained.named.part == models::Part::Llm;
        assert_eq!(*before != after, is_llm, "`{}`", trained.named.name);
    }
}

fn trained_names(method: &str) -> Vec<String> {
    let plan = plan(SIGLIP, method, "max_steps: 1");
    prepared(&plan, None).1.tensors.iter().map(|t| t.named.name.clone()).collect()
}

#[test]
fn each_method_trains_what_it_says() {
    let projector = trained_names("kind: projector");
    assert_eq!(projector.len(), 4);
    assert!(projector.iter().all(|name| name.starts_with("multi_modal_projector.")));

    let full = trained_names("kind: full");
    assert!(full.iter().any(|n| n.starts_with("vision_tower")) && !full.iter().any(|n| n.contains("post_layernorm")));
    let frozen = trained_names("kind: full, freeze: [vision, lm_head, '.*layers\\.0\\..*']");
    assert!(!frozen.iter().any(|n| n.starts_with("vision_tower") || n.contains("lm_head") || n.contains("layers.0.")));
    assert!(frozen.iter().any(|n| n.contains("language_model.model.layers.1.")));

    let lora = trained_names("kind: lora");
    assert!(
        !lora.is_empty()
            && lora
                .iter()
                .all(|n| n.contains("language_model") && (n.contains(".q_proj.lora_") || n.contains(".v_proj.lora_"))),
        "{lora:?}"
    );
    let with_projector = trained_names("kind: lora, also_train: [projector]");
    assert_eq!(with_projector.len(), lora.len() + 4);
    let one_matrix = trained_names("kind: lora, also_train: ['multi_modal_projector\\.linear_2\\..*']");
    assert_eq!(one_matrix.len(), lora.len() + 2);
    let tower = trained_names("kind: lora, lora: {target_modules: '.*vision_tower.*(q_proj|v_proj)'}");
    assert!(!tower.is_empty() && tower.iter().all(|n| n.contains("vision_tower")));
}

#[test]
fn parts_have_their_own_rates() {
    let plan = plan(
        SIGLIP,
        "kind: full, learning_rates: {vision: 1e-6, projector: 1e-3}",
        "max_steps: 1, learning_rate: 1e-5, weight_decay: 0.1",
    );
    let (_, selection) = prepared(&plan, None);
    for trained in &selection.tensors {
        let expected = match trained.named.part {
            models::Part::Vision => 1e-6,
            models::Part::Projector => 1e-3,
            models::Part::Llm => 1e-5,
            other => unreachable!("the model has no {}", other.name()),
        };
        assert_eq!(trained.learning_rate, expected);
        assert_eq!(
            trained.weight_decay > 0.0,
            trained.named.name.ends_with("weight") && !trained.named.name.contains("norm")
                || trained.named.name.ends_with("class_embedding"),
            "{}",
            trained.named.name
        );
    }
    let rates: Vec<_> =
        selection.parts.iter().map(|part| (part.part, part.learning_rate, part.trainable_tensors > 0)).collect();
    assert_eq!(rates, [("vision", Some(1e-6), true), ("projector", Some(1e-3), true), ("llm", Some(1e-5), true)]);
    assert!(selection.unreached_notice().unwrap().contains("2 tensor(s) take no part in the forward pass"));
}

fn refusal(method: &str) -> String {
    let plan = plan(SIGLIP, method, "max_steps: 1");
    let (mut model, _) = models::load(&crate::support::fixture_dir(SIGLIP), &models::LoadOptions::default()).unwrap();
    match select(&plan, &mut model) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => {
            assert!(matches!(error.class(), ExitClass::BadPlan | ExitClass::Failed));
            error.to_string()
        }
    }
}

#[test]
fn selections_that_cannot_be_meant() {
    let names =
        "parts are `vision`, `projector` and `llm`; tensor names look like `vision_tower.vision_model.embeddings.";
    let text = refusal("kind: full, freeze: [visoin]");
    assert!(
        text.starts_with("`visoin` in `method.freeze` names no part, module or tensor of the model\n")
            && text.contains(names),
        "{text}"
    );
    let text = refusal("kind: lora, also_train: [nothing]");
    assert!(
        text.starts_with("`nothing` in `method.also_train` names no part, module or tensor of the model\n"),
        "{text}"
    );
    assert_eq!(
        refusal("kind: lora, freeze: [llm]"),
        "`method.kind: lora` trains nothing in this model\n  hint: look at `method.freeze` and `method.lora.target_modules`"
    );
    assert_eq!(
        refusal("kind: lora, also_train: [llm]"),
        "`method.also_train: [llm]` would train the whole language model beside its own adapter\n  hint: write `method.kind: full`"
    );
    // PEFT saves modules: the weight beside this bias would train unasked.
    assert_eq!(
        refusal("kind: lora, also_train: [multi_modal_projector.linear_1.bias]"),
        "`multi_modal_projector.linear_1.bias` in `method.also_train` names a part of the module `model.multi_modal_projector.linear_1`, without its `model.multi_modal_projector.linear_1.weight`\n  hint: PEFT trains whole modules: write `model.multi_modal_projector.linear_1`, or use `method.kind: full` with `freeze`"
    );
    assert_eq!(
        refusal("kind: lora, learning_rates: {vision: 1e-4}"),
        "`method.learning_rates.vision` is given, but no tensor of `vision` trains\n  hint: remove `method.learning_rates.vision`"
    );
}

#[test]
fn a_plan_that_contradicts_its_adapter_is_refused() {
    let adapter = crate::support::fixture_dir(SIGLIP).join("adapters/names");
    let check = |lora: &str, key: &str| {
        let text = format!(
            "model: {{path: {}, adapter: {}}}\nmethod: {{kind: lora, lora: {{{lora}}}}}\ndata: {{train: [{{path: d.json}}]}}\ntrain: {{output_dir: o, max_steps: 1}}\n",
            crate::support::fixture_dir(SIGLIP).display(),
            adapter.display()
        );
        let plan = train::plan::Plan::from_yaml(&text, &[]).unwrap();
        let (mut model, _) =
            models::load(&crate::support::fixture_dir(SIGLIP), &models::LoadOptions::default()).unwrap();
        match select(&plan, &mut model) {
            Ok(selection) => {
                assert!(key.is_empty() && !selection.adapted_modules.is_empty());
            }
            Err(error) => {
                let text = error.to_string();
                assert!(
                    !key.is_empty()
                        && text.starts_with(&format!("`method.lora.{key}` is "))
                        && text.contains("but `adapter_config.json` of `"),
                    "{text}"
                );
                assert_eq!(error.class(), ExitClass::BadPlan);
            }
        }
    };
    check("", "");
    check("r: 99", "r");
    check("lora_alpha: 99", "lora_alpha");
    check("use_rslora: true", "use_rslora");
}

#[test]
fn an_adapter_folder_without_adapter_is_refused_before_loading() {
    let mut plan = plan(SIGLIP, "kind: lora", "max_steps: 1");
    plan.model.adapter = Some("no/such/adapter".into());
    let error = train::check_adapter(&plan).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`model.adapter: no/such/adapter` holds no `adapter_config.json`\n  hint: give the folder of a PEFT adapter"
    );
    assert_eq!(error.class(), ExitClass::BadPlan);
}

#[test]
fn a_window_without_supervision_is_refused_with_its_records() {
    let samples = encoded_samples(SIGLIP);
    let mut window = [batch(&samples, &[0, 1])];
    window[0].labels.fill(data::IGNORE);
    let plan = plan(SIGLIP, "kind: projector", "max_steps: 1");
    let error = trainer(&plan, None, 1).train_step(&window).unwrap_err();
    assert_eq!(
        error.to_string(),
        "step 1 holds no supervised token; records: `sample0`, `sample1`\n  hint: look at these records with `vidtune data preview`"
    );
    assert_eq!(error.class(), ExitClass::DataRefused);
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_update() {
    let samples = encoded_samples(SIGLIP);
    let mut window = [batch(&samples, &[0])];
    window[0].pixels[0] = f32::NAN;
    let plan = plan(SIGLIP, "kind: projector", "max_steps: 1");
    let mut trainer = trainer(&plan, None, 1);
    let before = weight_bits(&trainer);
    let error = trainer.train_step(&window).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { step: 1, what: "the loss", .. }), "{error}");
    assert!(error.to_string().contains("records: `sample0`"));
    assert!(before == weight_bits(&trainer));
    assert_eq!(trainer.step_count(), 0);
}
