//! The profile of a run, its files, its trace, and the operations that a step counts. Spans and operations belong to the whole
//! process, so these tests have one of their own and run one after the other. No test looks at how long anything took.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tensor::DType;
use train::plan::{MethodKind, Plan};
use train::{BenchOptions, Event, Resume, StepMetrics, bench_step, read_metrics};

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Eight records, two of them without a picture: four steps of two records in an epoch.
struct Place {
    dir: tempfile::TempDir,
    model: PathBuf,
}

impl Place {
    fn new() -> Place {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/llava_siglip_qwen2");
        let place = Place { dir: tempfile::tempdir().unwrap(), model: model.canonicalize().unwrap() };
        let record = |i: usize| {
            let mut question = vec![json!({"type": "text", "text": "What is moving?"})];
            if i % 4 != 3 {
                question.insert(0, json!({"type": "image", "image": format!("images/{}.png", i % 4)}));
            }
            let answer = "A red circle moves left. ".repeat(1 + i % 3);
            json!({"id": i.to_string(), "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
                .to_string()
        };
        let lines: Vec<String> = (0..8).map(record).collect();
        std::fs::write(place.path("train.jsonl"), lines.join("\n")).unwrap();
        std::fs::write(place.path("eval.jsonl"), record(0)).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn plan(&self, output: &str, more: &str) -> Plan {
        let text = format!(
            "model: {{path: {model}}}\nmethod: {{kind: full}}\n\
             data: {{train: [{{path: {train}, media_dir: {model}}}], eval: [{{path: {eval}, media_dir: {model}}}]}}\n\
             train: {{output_dir: {output}, per_device_train_batch_size: 2, save_strategy: epoch, eval_strategy: epoch, {more}}}\n",
            model = self.model.display(),
            train = self.path("train.jsonl").display(),
            eval = self.path("eval.jsonl").display(),
            output = self.path(output).display(),
        );
        Plan::from_yaml(&text, &[]).unwrap_or_else(|error| panic!("{text}\n{error}"))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap()
    }

    fn metrics(&self, output: &str) -> Vec<StepMetrics> {
        read_metrics(&self.path(output).join("metrics.jsonl")).unwrap()
    }
}

/// Runs a plan, asks it to stop after step `stop_at`, and returns the names of its events.
fn run(plan: &Plan, resume: &Resume, stop_at: Option<u64>) -> Vec<String> {
    let stop = AtomicBool::new(false);
    let mut events = Vec::new();
    let mut watch = |event: &Event<'_>| {
        if let Event::Step { metrics, .. } = event {
            stop.fetch_or(Some(metrics.step) == stop_at, Ordering::SeqCst);
        }
        events.push(format!("{event:?}").split([' ', '(']).next().unwrap_or_default().to_owned());
    };
    train::run(plan, resume, &stop, &mut watch).unwrap_or_else(|error| panic!("{error}"));
    events
}

fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-9 * expected.abs() + 1e-12, "{found} instead of {expected}");
}

#[test]
fn a_profile_is_made_of_the_steps_of_its_run() {
    let _alone = alone();
    let place = Place::new();
    let events = run(&place.plan("out", "num_train_epochs: 3, profile: true"), &Resume::Never, None);
    assert_eq!(&events[events.len() - 2..], ["Exported", "Profiled"]);
    assert_eq!(events.iter().filter(|event| *event == "TraceWritten").count(), 1);
    let (profile, metrics) = (place.json("out/profile.json"), place.metrics("out"));
    assert_eq!(metrics.len(), 12);
    assert_eq!(profile["steps"], json!({"before": 0, "first": 1, "last": 12, "count": 12, "left_out": 2}));

    // Each epoch has six pictures, and a picture stands for as many tokens as the configuration says.
    let config = place.model.join("config.json");
    let value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    let config = models::ModelConfig::from_json("config.json", value).unwrap();
    let per_picture = config.llava().unwrap().tokens_per_image() as u64;
    assert_eq!((&profile["samples_processed"], &profile["frames_processed"]), (&json!(24), &json!(18)));
    assert_eq!(profile["visual_tokens_processed"], 18 * per_picture);
    for m in &metrics {
        assert_eq!(m.visual_tokens, m.frames * per_picture);
        assert_eq!(m.text_tokens + m.visual_tokens, m.input_tokens);
        assert!(m.flops > 0 && m.recomputed_flops == 0 && m.mfu.unwrap() > 0.0);
        assert!(m.step_time + 1e-9 >= m.data_time + m.forward_time + m.backward_time + m.optimizer_time);
        close(m.tokens_per_second, m.input_tokens as f64 / m.step_time);
    }
    let sum = |count: fn(&StepMetrics) -> u64| metrics.iter().map(count).sum::<u64>();
    assert_eq!(profile["tokens_processed"], sum(|m| m.input_tokens));
    assert_eq!(profile["supervised_tokens_processed"], sum(|m| m.supervised_tokens));
    assert_eq!(profile["flops_total"], sum(|m| m.flops));

    // Statistics leave out the first two steps, totals do not.
    let forward: Vec<f64> = metrics.iter().map(|m| m.forward_time).collect();
    let row = &profile["phases"]["forward"];
    assert_eq!((&row["count"], &row["unit"]), (&json!(10), &json!("s")));
    close(row["mean"].as_f64().unwrap(), forward[2..].iter().sum::<f64>() / 10.0);
    close(row["max"].as_f64().unwrap(), forward[2..].iter().copied().fold(0.0, f64::max));
    close(row["total"].as_f64().unwrap(), forward.iter().sum());
    let wall = profile["wall_clock_time_total"].as_f64().unwrap();
    close(row["share"].as_f64().unwrap(), forward.iter().sum::<f64>() / wall);
    let measured: f64 = metrics[2..].iter().map(|m| m.step_time).sum();
    let tokens: u64 = metrics[2..].iter().map(|m| m.input_tokens).sum();
    close(profile["tokens_per_second"].as_f64().unwrap(), tokens as f64 / measured);
    close(profile["step_time_p95"].as_f64().unwrap(), profile["phases"]["step"]["p95"].as_f64().unwrap());
    let flops: u64 = metrics[2..].iter().map(|m| m.flops).sum();
    let peak = profile["peak_flops_per_second"].as_f64().unwrap();
    close(profile["mfu"].as_f64().unwrap(), flops as f64 / measured / peak);
    let epochs = profile["epoch_time_total"].as_f64().unwrap();
    close(profile["epoch_time_mean"].as_f64().unwrap(), epochs / 3.0);
    assert_eq!(profile["phases"]["evaluation"]["count"], 3);
    assert_eq!(profile["phases"]["checkpoint"]["count"], 3);
    assert_eq!(profile["rates"]["mfu"]["total"], Value::Null);

    // Nothing is counted twice: what happens one after the other adds up to at most the whole.
    let shares = ["step", "load", "evaluation", "checkpoint", "export"];
    let shares = shares.map(|name| profile["phases"][name]["share"].as_f64().unwrap());
    assert!(shares.iter().all(|share| *share > 0.0) && shares.iter().sum::<f64>() <= 1.0 + 1e-9, "{shares:?}");
    // Two moments for each weight, four bytes each.
    let weights: f64 = models::load(&place.model, &models::LoadOptions { dtype: Some(DType::F32) })
        .unwrap()
        .0
        .params()
        .iter()
        .map(|p| p.param.value().num_bytes() as f64)
        .sum();
    let optimizer = profile["optimizer_memory_gb"].as_f64().unwrap();
    assert!(optimizer > 0.0 && optimizer <= 2.0 * weights / 1e9, "{optimizer} GB for weights of {weights} bytes");
    assert!(profile["peak_memory_gb"].as_f64().unwrap() >= (weights + optimizer * 1e9) / 1e9);
}

#[test]
fn the_table_says_the_same_as_the_profile() {
    let _alone = alone();
    let place = Place::new();
    run(&place.plan("out", "max_steps: 4, profile: true, trace_steps: null"), &Resume::Never, None);
    assert!(!place.path("out/trace.json").exists());
    let profile = place.json("out/profile.json");
    let text = std::fs::read_to_string(place.path("out/profile.csv")).unwrap();
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let columns = lines.next().unwrap();
    assert_eq!(columns, ["name", "unit", "count", "mean", "median", "p95", "min", "max", "total", "share"]);
    let mut names = Vec::new();
    for cells in lines {
        let row = profile["phases"].get(cells[0]).or_else(|| profile["rates"].get(cells[0])).unwrap();
        for (column, cell) in columns.iter().zip(&cells).skip(2) {
            let expected = row[column].as_f64();
            assert_eq!(cell.parse::<f64>().ok(), expected, "{} {column}", cells[0]);
        }
        names.push(cells[0].to_owned());
    }
    let count = |key: &str| profile[key].as_object().unwrap().len();
    assert_eq!(names.len(), count("phases") + count("rates"));
    for name in ["data", "forward", "backward", "optimizer", "evaluation", "supervised_tokens_per_second", "mfu"] {
        assert!(names.iter().any(|found| found == name), "{name} is not among {names:?}");
    }
    // A third of four steps, rounded down.
    assert_eq!(profile["steps"]["left_out"], 1);
}

/// Begin and end of an event in nanoseconds; the file has them to the last one.
fn bounds(event: &Value) -> (u64, u64) {
    let nanoseconds = |key: &str| (event[key].as_f64().unwrap() * 1000.0).round() as u64;
    (nanoseconds("ts"), nanoseconds("ts") + nanoseconds("dur"))
}

/// Checks that the events of each thread nest, and returns each event's name with its ancestors', as `step 3/forward`.
fn paths(events: &[Value]) -> Vec<String> {
    let mut open: BTreeMap<u64, Vec<(u64, String)>> = BTreeMap::new();
    let mut paths = Vec::new();
    for event in events {
        let (start, end) = bounds(event);
        let above = open.entry(event["tid"].as_u64().unwrap()).or_default();
        while above.last().is_some_and(|(outer_end, _)| *outer_end <= start && *outer_end < end) {
            above.pop();
        }
        let name = event["name"].as_str().unwrap();
        let path = match above.last() {
            None => name.to_owned(),
            Some((outer_end, outer)) => {
                assert!(end <= *outer_end, "`{name}` ends after `{outer}`, in which it began");
                format!("{outer}/{name}")
            }
        };
        paths.push(path.clone());
        above.push((end, path));
    }
    paths
}

#[test]
fn a_trace_shows_the_steps_asked_for() {
    let _alone = alone();
    let place = Place::new();
    let more = "max_steps: 6, profile: true, trace_steps: 3-4, gradient_checkpointing: true";
    run(&place.plan("out", more), &Resume::Never, None);
    let trace = place.json("out/trace.json");
    assert_eq!(trace["otherData"]["dropped_spans"], 0);
    let (named, events): (Vec<Value>, Vec<Value>) =
        trace["traceEvents"].as_array().unwrap().iter().cloned().partition(|event| event["ph"] == "M");
    assert!(events.iter().all(|event| event["ph"] == "X" && event["pid"] == std::process::id()));
    let threads: Vec<&Value> = named.iter().filter(|e| e["name"] == "thread_name").map(|e| &e["tid"]).collect();
    assert!(events.iter().all(|event| threads.contains(&&event["tid"])));
    let paths = paths(&events);
    let count = |path: &str| paths.iter().filter(|found| *found == path).count();
    for step in ["step 3", "step 4"] {
        for part in ["data", "upload", "forward", "backward", "norm", "optimizer"] {
            assert_eq!(count(&format!("{step}/{part}")), 1, "{step}/{part} in {paths:#?}");
        }
        assert!(count(&format!("{step}/backward/checkpoint/recompute")) > 0);
        assert!(count(&format!("{step}/backward/checkpoint/linear")) > 0);
    }
    // Four steps are an epoch, which ends with an evaluation and a checkpoint.
    assert_eq!((count("evaluation"), count("checkpoint")), (1, 1));
    assert!(!paths.iter().any(|path| path.starts_with("step 2") || path.starts_with("step 5")));
}

#[test]
fn a_resumed_run_profiles_its_own_steps() {
    let _alone = alone();
    let place = Place::new();
    let more = "num_train_epochs: 3, profile: true, trace_steps: 1";
    run(&place.plan("whole", more), &Resume::Never, None);
    let plan = place.plan("parts", more);
    let events = run(&plan, &Resume::Never, Some(5));
    assert_eq!(events.last().unwrap(), "Profiled");
    assert_eq!(place.json("parts/profile.json")["steps"]["last"], 5);
    run(&plan, &Resume::Auto, None);
    let (profile, metrics) = (place.json("parts/profile.json"), place.metrics("parts"));
    assert_eq!(profile["steps"], json!({"before": 5, "first": 6, "last": 12, "count": 7, "left_out": 2}));
    assert_eq!(profile["tokens_processed"], metrics[5..].iter().map(|m| m.input_tokens).sum::<u64>());
    let trace = place.json("parts/trace.json");
    let steps: Vec<&Value> = trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["cat"] == "step").collect();
    assert_eq!(steps.len(), 1);
    assert_eq!(steps[0]["name"], "step 6", "the first step of this process");
    // What does not depend on the clock is the same as without the stop.
    let counts = |output: &str| {
        let keys = |m: StepMetrics| {
            [m.input_tokens, m.text_tokens, m.visual_tokens, m.frames, m.samples, m.flops, m.recomputed_flops]
        };
        place.metrics(output).into_iter().map(keys).collect::<Vec<_>>()
    };
    assert_eq!(counts("parts"), counts("whole"));
    // A process that has only the export left to do has no steps to speak of.
    std::fs::remove_dir_all(place.path("parts/final_model")).unwrap();
    std::fs::remove_file(place.path("parts/profile.json")).unwrap();
    let events = run(&plan, &Resume::Auto, None);
    assert_eq!(&events[events.len() - 2..], ["Exported", "Notice"]);
    assert!(!place.path("parts/profile.json").exists());
}

#[test]
fn without_the_key_nothing_more_is_written() {
    let _alone = alone();
    let place = Place::new();
    run(&place.plan("out", "max_steps: 3"), &Resume::Never, None);
    for name in ["profile.json", "profile.csv", "trace.json"] {
        assert!(!place.path("out").join(name).exists(), "{name}");
    }
    let metrics = place.metrics("out");
    assert!(metrics.iter().all(|m| m.mfu.is_none() && m.flops > 0 && m.tokens_per_second > 0.0));
}

/// The operations of a step of a decoder, by hand.
#[test]
fn operations_are_those_of_the_shapes() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    std::fs::write(&config, r#"{"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 512}"#).unwrap();
    let step = |method, recompute| {
        let config = config.clone();
        let options =
            BenchOptions { config, seq: 16, batch: 1, method, dtype: DType::F32, steps: 2, recompute, tokens: None };
        bench_step(&options).unwrap_or_else(|error| panic!("{error}"))
    };
    let full = step(MethodKind::Full, false);
    // One layer: q and o of 32 x 32, k and v of 16 x 32, three matrices of 32 x 64. Each of 16 tokens meets each weight in three
    // products (forward, for the input, for the weight), two operations each. The head works on the 15 tokens that have a next,
    // and so do the o and the MLP of the last layer.
    let (qkv, others) = (32 * 32 + 2 * 16 * 32, 32 * 32 + 3 * 32 * 64);
    let layers = 2 * 16 * qkv + (16 + 15) * others;
    let linear = 2 * 3 * (layers + 15 * 32 * 50);
    // Attention: scores and their use forward, five products of that size backward (one of them the scores again), in two
    // layers of four heads of 8. A query and a key make a pair where the key is not later, up to all of them in a tile.
    let attention = |pairs: u64| 2 * 7 * 2 * 4 * 8 * pairs;
    let (least, most) = (linear + attention(16 * 17 / 2), linear + attention(16 * 16));
    assert!((least..=most).contains(&full.flops), "{} is not from {least} to {most}", full.flops);
    assert_eq!(full.recomputed_flops, 0);

    // Recomputation runs the forward products of both layers again, and is no part of the model's own operations.
    let again = step(MethodKind::Full, true);
    let forward = |pairs: u64| 2 * layers + 2 * 2 * 2 * 4 * 8 * pairs;
    let (least, most) = (forward(16 * 17 / 2), forward(16 * 16));
    assert!((least..=most).contains(&again.recomputed_flops), "{}", again.recomputed_flops);
    assert_eq!(again.flops - again.recomputed_flops, full.flops);

    let lora = step(MethodKind::Lora, false);
    assert!(lora.flops > 0 && lora.mfu > 0.0 && lora.peak_gflops_per_s > 0.0);
    assert!(lora.gflops_per_s > 0.0 && lora.losses == step(MethodKind::Lora, false).losses);
}

/// With every picture in the cache, no step computes the tower: no span of it, and fewer operations by the tower's.
#[test]
fn known_pictures_do_not_pass_the_tower() {
    let _alone = alone();
    let place = Place::new();
    let projector = |output: &str, is_cached: bool| {
        let mut plan = place.plan(output, "num_train_epochs: 1, profile: true, trace_steps: 1-4");
        plan.method.kind = Some(MethodKind::Projector);
        plan.train.feature_cache = is_cached.then(|| place.path("cache"));
        plan
    };
    let spans = |output: &str| -> BTreeMap<String, usize> {
        let trace = place.json(&format!("{output}/trace.json"));
        let mut counts = BTreeMap::new();
        for event in trace["traceEvents"].as_array().unwrap() {
            *counts.entry(event["name"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        counts
    };
    let mut found = Vec::new();
    for (output, is_cached) in [("plain", false), ("cold", true), ("warm", true)] {
        run(&projector(output, is_cached), &Resume::Never, None);
        let flops: u64 = place.metrics(output).iter().map(|m| m.flops).sum();
        found.push((spans(output).get("tower").copied().unwrap_or(0), flops));
    }
    let [plain, cold, warm] = found[..] else { unreachable!() };
    assert!(plain.0 > 0 && cold.0 > 0 && warm.0 == 0, "{found:?}");
    assert!(plain.1 > cold.1 && cold.1 > warm.1 && warm.1 > 0, "{found:?}");
    assert!(spans("warm")["feature_cache"] > 0);
}
