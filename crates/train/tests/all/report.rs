//! The plan report and the step benchmark.

use crate::support::fixture_dir;
use crate::support::run::{NUM_RECORDS, Place};
use tensor::DType;
use train::plan::MethodKind;
use train::{BenchOptions, ReportOptions, bench_step, plan_report};

const FIXTURE: &str = "llava_siglip_qwen2";

#[test]
fn a_report_counts_what_a_run_would_do() {
    let place = Place::new(FIXTURE);
    let train = "num_train_epochs: 2, per_device_train_batch_size: 2, gradient_accumulation_steps: 4, warmup_ratio: 0.3, eval_strategy: epoch, learning_rate: 1e-4, weight_decay: 0.1";
    let plan = place.plan(
        "out",
        "kind: lora, also_train: [projector], learning_rates: {projector: 1e-3}, lora: {r: 4}",
        train,
        &[],
    );
    let report = plan_report(&plan, &ReportOptions { measure: true }).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((report.records, report.eval_records), (NUM_RECORDS as u64, Some(3)));
    assert_eq!((report.steps_per_epoch, report.num_steps, report.num_warmup_steps), (Some(2), 4, 2));
    let projector = report.parts.iter().find(|part| part.part == "projector").unwrap();
    assert_eq!((projector.trainable_tensors, projector.trainable_parameters), (4, projector.parameters));
    assert_eq!(projector.learning_rate, Some(1e-3));
    assert!(
        report
            .parts
            .iter()
            .any(|part| part.part == "vision" && part.trainable_tensors == 0 && part.learning_rate.is_none())
    );
    let trainable: u64 = report.parts.iter().map(|part| part.trainable_parameters).sum();
    let listed: u64 = report.trainable.iter().map(|row| row.shape.iter().product::<usize>() as u64).sum();
    assert_eq!(trainable, listed);
    // f32 gradients and two f32 moments; each buffer is rounded up to a power of two while it is small.
    let near = |found: u64, exact: u64| (exact..=2 * exact).contains(&found);
    assert!(near(report.memory.gradients, 4 * trainable) && near(report.memory.optimizer, 8 * trainable));
    assert!(report.memory.resident > report.memory.total && report.memory.total > report.memory.weights);
    assert!(report.trainable.iter().all(|row| (row.weight_decay > 0.0) != row.name.ends_with("bias")));
    assert!(report.adapted_modules.iter().all(|module| module.contains("language_model")));
    assert_eq!(report.tokens.sampled_records, NUM_RECORDS as u64);
    assert!(
        (report.tokens.total_input_tokens - 2.0 * NUM_RECORDS as f64 * report.tokens.mean_input_tokens).abs() < 1e-6
    );
    let measured = report.measured.as_ref().unwrap();
    assert!(
        measured.input_tokens >= 2 * report.tokens.mean_input_tokens as u64
            && measured.backward_time > 0.0
            && measured.loss > 1.0
    );
    assert!(!place.path("out").exists(), "a report writes nothing");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["plan"]["train"]["warmup_ratio"], 0.3);
}

#[test]
fn a_report_says_how_full_batches_are() {
    let place = Place::new(FIXTURE);
    let report = |overrides: &[&str]| {
        let cache = format!("data.frame_cache={}", place.path("cache").display());
        let overrides: Vec<&str> = overrides.iter().copied().chain([cache.as_str()]).collect();
        let plan = place.plan("out", "kind: projector", "max_steps: 4, gradient_accumulation_steps: 2", &overrides);
        plan_report(&plan, &ReportOptions::default()).unwrap_or_else(|error| panic!("{error}"))
    };
    assert_eq!(report(&[]).packing, None);
    let plain = report(&["data.pack_tokens=90", "data.pack_window=1"]);
    let packed = report(&["data.pack_tokens=90"]);
    let (before, after) = (plain.packing.unwrap(), packed.packing.unwrap());
    assert_eq!((before.records, after.records), (NUM_RECORDS as u64, NUM_RECORDS as u64));
    assert!(before.fill > 0.3 && before.fill < after.fill && after.fill <= 1.0, "{before:?} {after:?}");
    assert!((packed.tokens.total_input_tokens - 4.0 * 2.0 * 90.0 * after.fill).abs() < 1e-6);
    assert!(!place.path("cache").exists(), "a report writes nothing");
}

#[test]
fn a_report_refuses_what_cannot_work() {
    let place = Place::new(FIXTURE);
    let refusal = |train: &str, overrides: &[&str]| {
        let plan = place.plan("out", "kind: projector", train, overrides);
        plan_report(&plan, &ReportOptions::default()).unwrap_err().to_string()
    };
    assert_eq!(
        refusal("num_train_epochs: 1, per_device_train_batch_size: 8, warmup_steps: 100", &[]),
        "the warm-up of 100 steps is longer than the run of 2 steps; hint: lower `train.warmup_steps` or train longer"
    );
    assert_eq!(
        refusal("num_train_epochs: 1, eval_steps: 50", &[]),
        "`train.eval_steps: 50` is beyond the run of 2 steps: it would never evaluate\n  hint: lower it"
    );
    let text = refusal("max_steps: 1", &["data.train=none.json"]);
    assert!(text.contains("none.json"), "{text}");
    let text = refusal("max_steps: 1", &["model.path=/no/such/model"]);
    assert!(text.contains("/no/such/model"), "{text}");
}

#[test]
fn the_step_benchmark_learns_and_repeats() {
    let config = fixture_dir(FIXTURE).join("config.json");
    let run = |method, dtype| {
        let options = BenchOptions {
            config: config.clone(),
            seq: 64,
            batch: 2,
            method,
            dtype,
            steps: 4,
            recompute: false,
            tokens: None,
        };
        bench_step(&options).unwrap_or_else(|error| panic!("{error}"))
    };
    for method in [MethodKind::Full, MethodKind::Lora] {
        for dtype in [DType::F32, DType::BF16] {
            let (first, second) = (run(method, dtype), run(method, dtype));
            assert_eq!(first.losses, second.losses);
            assert_eq!((first.losses.len(), first.step_times.len()), (4, 4));
            assert!(first.losses[3] < first.losses[0], "{:?}", first.losses);
            assert!(first.images > 0 && first.tokens_per_s > 0.0 && first.peak_memory_bytes > 0);
            assert_eq!(method == MethodKind::Full, first.trainable_parameters * 2 > first.parameters);
        }
    }
}

#[test]
fn the_step_benchmark_takes_text_models_and_given_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    std::fs::write(&config, r#"{"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 512}"#).unwrap();
    let options = BenchOptions {
        config,
        seq: 16,
        batch: 1,
        method: MethodKind::Full,
        dtype: DType::F32,
        steps: 3,
        recompute: true,
        tokens: Some((0..16).map(|i| i * 3 % 50).collect()),
    };
    let result = bench_step(&options).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(result.images, 0);
    // 50 words, weights near zero: the first loss is that of a uniform guess.
    assert!((result.losses[0] - 50f64.ln()).abs() < 0.1, "{:?}", result.losses);
    let error = bench_step(&BenchOptions { tokens: Some(vec![1, 2]), ..options.clone() }).unwrap_err();
    assert_eq!(error.to_string(), "2 token ids are given for 1 x 16 tokens\n  hint: give one id for each token");
    assert!(bench_step(&BenchOptions { seq: 1, ..options.clone() }).is_err());
    assert!(bench_step(&BenchOptions { tokens: Some(vec![99; 16]), ..options }).is_err());
}

#[test]
fn a_plan_beyond_the_memory_is_refused_with_a_change_that_fits() {
    let place = Place::new(FIXTURE);
    let plan = |limit: &str, batch: &str| {
        place.plan("out", "kind: full", "max_steps: 4", &[limit, batch, "train.gradient_checkpointing=false"])
    };
    let need = |batch: &str| {
        plan_report(&plan("train.memory_limit=64GB", batch), &ReportOptions::default()).unwrap().memory.resident
    };
    let (large, small) = (need("train.per_device_train_batch_size=8"), need("train.per_device_train_batch_size=1"));
    assert!(small < large);
    let limit = format!("train.memory_limit={}", (small + large) / 2);
    let refused = plan(&limit, "train.per_device_train_batch_size=8");
    for error in [
        plan_report(&refused, &ReportOptions::default()).map(|_| ()).unwrap_err(),
        train::run(&refused, &train::Resume::Never, &false.into(), &mut |_| ()).map(|_| ()).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.starts_with("this plan needs about ") && text.contains(" are available"), "{text}");
        let hint = "add `train.per_device_train_batch_size=1 train.gradient_accumulation_steps=8` (about";
        assert!(text.contains(hint), "{text}");
    }
    let nothing_fits = plan("train.memory_limit=1MB", "train.per_device_train_batch_size=8");
    let text = plan_report(&nothing_fits, &ReportOptions::default()).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("take a smaller model"), "{text}");
    assert!(!place.path("out").join("metrics.jsonl").exists());
}
