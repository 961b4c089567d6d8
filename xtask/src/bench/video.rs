//! Training a LLaVA: the step on frames that are there, and the whole way from mp4 files. Owns the plans that are run and
//! what is read from `metrics.jsonl`.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::runs::{self, Contender, Outcomes, median};
use super::table::{Aim, Figure, Floor, Section, Unit};
use super::{Bench, cannot, shown, steps};
use crate::process::{Failure, Result};

/// How many operators an explanation names.
const SHOWN: usize = 7;

/// One training run, ours or theirs.
#[derive(Clone, Copy)]
struct Training {
    /// Folder of the checkpoint: `paper` or `small`.
    model: &'static str,
    /// `frames` or `clips`.
    data: &'static str,
    steps: usize,
    /// Steps at the beginning that are not counted, on both sides.
    warm: usize,
    batch: usize,
    recompute: bool,
}

/// The step on 8 PNG frames, without and with gradient checkpointing.
pub fn llava(bench: &Bench) -> Result<Section> {
    bench.made()?;
    let (rounds, steps) = (bench.rounds(2), 3);
    let plain = Training { model: "paper", data: "frames", steps, warm: 1, batch: 1, recompute: false };
    let saving = Training { recompute: true, steps: 2, ..plain };
    let mut contenders = vec![Contender::new("vidtune", || ours(bench, plain))];
    contenders.extend(theirs(bench, "PyTorch", plain));
    let mut outcomes = runs::alternate(rounds, &contenders)?;
    let mut contenders = vec![Contender::new("vidtune checkpointing", || ours(bench, saving))];
    contenders.extend(theirs(bench, "PyTorch checkpointing", saving));
    outcomes.join(runs::alternate(1, &contenders)?);
    let peak = steps::peak(bench)?;
    let weights = bench.dir.join("paper").join("model.safetensors");
    let weights = fs::metadata(&weights).map_err(|error| cannot("read", &weights, &error))?.len() as f64;
    let figure = |us: &str, them: &str, unit: Unit, aim: Option<Aim>| {
        let field = if unit == Unit::Seconds { "step_s" } else { "resident_peak_bytes" };
        let floor = match unit {
            Unit::Seconds => products(&outcomes, us, peak),
            _ => Some(Floor { value: weights, how: "the weights alone, in bf16".to_owned() }),
        };
        Figure {
            what: format!("{us} beside {them}, {}", if unit == Unit::Seconds { "seconds" } else { "memory" }),
            unit,
            ours: outcomes.all(us, field),
            theirs: outcomes.all(them, field),
            aim,
            floor,
            cause: if unit == Unit::Seconds { phases(&outcomes, us) } else { counted(&outcomes, us) },
        }
    };
    let (checked, theirs_checked) = ("vidtune checkpointing", "PyTorch checkpointing");
    let figures = vec![
        figure("vidtune", "PyTorch", Unit::Seconds, Some(Aim::Ratio(0.65, None))),
        figure("vidtune", "PyTorch", Unit::Bytes, Some(Aim::Ratio(0.4, None))),
        figure("vidtune", theirs_checked, Unit::Seconds, None),
        figure("vidtune", theirs_checked, Unit::Bytes, None),
        figure(checked, theirs_checked, Unit::Seconds, Some(Aim::Ratio(0.65, None))),
        figure(checked, theirs_checked, Unit::Bytes, Some(Aim::Ratio(0.4, None))),
    ];
    let text = format!(
        "SigLIP 12 x 768 (224 px, 196 tokens a frame, frozen), Qwen2 24 x 896 (14 and 2 heads, 4864), vocabulary 32000, bf16, LoRA of rank 16 on \
         the decoder's q, k, v and o, AdamW; one record of 8 PNG frames and about 90 tokens of text a step. PyTorch: transformers and peft with \
         fused attention and AdamW. Medians of {rounds} rounds of {steps} steps without the first (with checkpointing one of 2); memory is the process's largest resident \
         size from start to end. \"checkpointing\": each block computed again in the backward pass."
    );
    Ok(Section {
        name: "llava",
        title: "LLaVA step",
        text: vec![text, agreement(&outcomes, "vidtune", "PyTorch")],
        commands: commands(bench, plain)?,
        figures,
        tables: Vec::new(),
        raw: outcomes.to_json(),
    })
}

/// Samples a second from mp4 files.
pub fn clips(bench: &Bench) -> Result<Section> {
    bench.made()?;
    let rounds = bench.rounds(2);
    let small = Training {
        model: "small",
        data: "clips",
        steps: if bench.quick { 8 } else { 10 },
        warm: 2,
        batch: 2,
        recompute: false,
    };
    let paper = Training { model: "paper", steps: 3, warm: 1, batch: 1, ..small };
    let contenders = |training: Training| {
        let ours = Contender::new(format!("vidtune {}", training.model), move || ours(bench, training));
        let theirs = theirs(bench, &format!("PyTorch {}", training.model), training);
        std::iter::once(ours).chain(theirs).collect::<Vec<_>>()
    };
    let mut outcomes = runs::alternate(rounds, &contenders(small))?;
    outcomes.join(runs::alternate(1, &contenders(paper))?);
    let peak = steps::peak(bench)?;
    let clip = bench.path("clips/0.mp4");
    let mut decode = bench.vidtune(&["bench", "decode", "--video", &clip, "--num-frames", "8", "--json"]);
    let decoding = runs::measure(&mut decode)?;
    let decode_s = decoding.get("median_s").and_then(Value::as_f64).unwrap_or(0.0);
    let figures = [small, paper].map(|training| {
        let (us, them) = (format!("vidtune {}", training.model), format!("PyTorch {}", training.model));
        let ceiling = products(&outcomes, &us, peak).map(|floor| {
            let batch = training.batch as f64;
            let decoding = batch * decode_s / bench.threads as f64;
            let how = format!(
                "{}, and {:.1} ms to decode a clip, shared by {} threads",
                floor.how,
                1e3 * decode_s,
                bench.threads
            );
            Floor { value: batch / (floor.value + decoding), how }
        });
        let waiting = outcomes.median(&us, "data_s").unwrap_or(0.0);
        Figure {
            what: format!("{} model, samples a second", training.model),
            unit: Unit::Rate,
            ours: outcomes.all(&us, "samples_per_s"),
            theirs: outcomes.all(&them, "samples_per_s"),
            aim: Some(Aim::Ratio(2.0, None)),
            floor: ceiling,
            cause: format!("Waiting for data takes {:.1} ms of a step. {}", 1e3 * waiting, phases(&outcomes, &us)),
        }
    });
    let reader = outcomes.first("PyTorch small").and_then(|run| run.get("decoder")).and_then(Value::as_str);
    let text = format!(
        "24 clips of 4 s (320 x 240, 30 frames a second, h264), 8 frames each, LoRA as above; the paper's model with one clip a step, and a small one \
         (SigLIP 4 x 192, Qwen2 4 x 256) with 2, whose clips' decoding weighs more. PyTorch: a DataLoader with 2 workers, {}, the processor of \
         transformers. Samples over the time after the first steps; ours is the sum of `step_time`, which includes waiting for data. \
         Medians of {rounds} rounds of {} steps without the first two (small) and one of {} without the first (paper).",
        reader.unwrap_or("torchcodec"),
        small.steps,
        paper.steps
    );
    Ok(Section {
        name: "clips",
        title: "From mp4 files to optimizer steps",
        text: vec![text, agreement(&outcomes, "vidtune small", "PyTorch small")],
        commands: commands(bench, small)?,
        figures: figures.into(),
        tables: Vec::new(),
        raw: outcomes.to_json(),
    })
}

/// A run of `vidtune train` in a folder of its own, and what its metrics say after the first steps.
fn ours(bench: &Bench, training: Training) -> Result<Value> {
    let out = bench.dir.join("run");
    if out.exists() {
        fs::remove_dir_all(&out).map_err(|error| cannot("remove", &out, &error))?;
    }
    let mut result = runs::measure(&mut train(bench, training)?)?;
    let path = out.join("metrics.jsonl");
    let text = fs::read_to_string(&path).map_err(|error| cannot("read", &path, &error))?;
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let field =
        |name: &str| lines.iter().skip(training.warm).filter_map(|line| line.get(name)?.as_f64()).collect::<Vec<f64>>();
    let steps = field("step_time");
    if lines.len() != training.steps || steps.is_empty() {
        return Err(Failure::new(format!("`{}`: {} steps instead of {}", path.display(), lines.len(), training.steps)));
    }
    result["step_s"] = json!(median(&steps));
    result["samples_per_s"] = json!(steps.len() as f64 * training.batch as f64 / steps.iter().sum::<f64>());
    for (name, field_name) in [
        ("data_s", "data_time"),
        ("forward_s", "forward_time"),
        ("backward_s", "backward_time"),
        ("optimizer_s", "optimizer_time"),
        ("flops", "flops"),
        ("peak_memory_bytes", "peak_memory_bytes"),
    ] {
        result[name] = json!(median(&field(field_name)));
    }
    // Of the last step, as the script beside it tells them.
    result["input_tokens"] = json!(field("input_tokens").last());
    let trace = out.join("trace.json");
    let text = fs::read_to_string(&trace).map_err(|error| cannot("read", &trace, &error))?;
    let spans = serde_json::from_str(&text).map_err(|error| Failure::new(format!("`{}`: {error}", trace.display())))?;
    let seconds = own_seconds(&spans);
    let counted = (training.steps - training.warm) as f64;
    result["operators"] = seconds.iter().map(|(name, total)| (name.clone(), json!(total / counted))).collect();
    result["losses"] = json!(lines.iter().filter_map(|line| line.get("loss")?.as_f64()).collect::<Vec<f64>>());
    Ok(result)
}

/// Seconds of the spans of a trace by name, without those of the spans inside of them; the longest first.
fn own_seconds(trace: &Value) -> Vec<(String, f64)> {
    let events = trace.get("traceEvents").and_then(Value::as_array).into_iter().flatten();
    let mut spans: Vec<(u64, f64, f64, &str)> = events
        .filter_map(|event| {
            let number = |field: &str| event.get(field).and_then(Value::as_f64);
            let thread = event.get("tid")?.as_u64()?;
            Some((thread, number("ts")?, number("dur")?, event.get("name")?.as_str()?))
        })
        .collect();
    spans.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(b.2.total_cmp(&a.2)));
    let mut own: BTreeMap<&str, f64> = BTreeMap::new();
    let mut open: Vec<(u64, f64, &str)> = Vec::new();
    for (thread, start, length, name) in spans {
        while open.last().is_some_and(|(other, end, _)| *other != thread || *end <= start) {
            open.pop();
        }
        if let Some((.., outer)) = open.last() {
            *own.entry(outer).or_default() -= length / 1e6;
        }
        *own.entry(name).or_default() += length / 1e6;
        open.push((thread, start + length, name));
    }
    let mut named: Vec<(String, f64)> = own.into_iter().map(|(name, seconds)| (name.to_owned(), seconds)).collect();
    named.sort_by(|a, b| b.1.total_cmp(&a.1));
    named
}

fn train(bench: &Bench, training: Training) -> Result<Command> {
    let Training { model, data, steps, batch, recompute, warm } = training;
    // JSON is YAML: paths need no quoting rules of our own.
    let plan = json!({
        "model": { "path": bench.path(model), "dtype": "bf16" },
        "method": { "kind": "lora", "lora": {
            "r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        } },
        "data": {
            "train": [{ "path": bench.path(&format!("{data}.jsonl")), "media_dir": bench.path(data), "format": "llava" }],
            "num_frames": 8, "shuffle": false,
        },
        "train": {
            "output_dir": bench.path("run"), "max_steps": steps, "per_device_train_batch_size": batch, "learning_rate": 1e-4,
            "lr_scheduler_type": "constant", "weight_decay": 0.01, "max_grad_norm": null, "save_strategy": "no",
            "gradient_checkpointing": recompute,
        },
    });
    let name = format!("{model}-{data}{}.yaml", if recompute { "-checkpointing" } else { "" });
    let path = bench.write(&name, &format!("{plan:#}\n"))?;
    // The trace says which operators the counted steps spend their time in.
    Ok(bench.vidtune(&["train", &path, "--profile", "--trace-steps", &format!("{}-{steps}", warm + 1)]))
}

fn torch(bench: &Bench, training: Training) -> Option<Command> {
    let [steps, batch, warm] = [training.steps, training.batch, training.warm].map(|count| count.to_string());
    let folder = bench.dir.to_string_lossy();
    let mut args = vec![&*folder, "--model", training.model, "--data", training.data];
    args.extend(["--steps", &steps, "--batch", &batch, "--warm", &warm]);
    if training.recompute {
        args.push("--checkpointing");
    }
    bench.torch("bench_llava.py", &args)
}

fn theirs<'a>(bench: &'a Bench, name: &str, training: Training) -> Option<Contender<'a>> {
    Contender::command(name, move || torch(bench, training))
}

fn commands(bench: &Bench, training: Training) -> Result<Vec<String>> {
    let ours = train(bench, training)?;
    Ok([Some(ours), torch(bench, training)].iter().flatten().map(shown).collect())
}

/// The seconds of a step's products, those of recomputed blocks among them, at the measured rate of a large one.
fn products(outcomes: &Outcomes, name: &str, peak: Option<f64>) -> Option<Floor> {
    let (flops, peak) = (outcomes.median(name, "flops")?, peak?);
    let how = format!("{:.0} GFLOP of products a step at {peak:.0} GFLOP/s", flops / 1e9);
    Some(Floor { value: flops / (peak * 1e9), how })
}

fn phases(outcomes: &Outcomes, name: &str) -> String {
    let part = |field: &str| Some(format!("{} {:.3} s", field.trim_end_matches("_s"), outcomes.median(name, field)?));
    let parts: Vec<String> =
        ["data_s", "forward_s", "backward_s", "optimizer_s"].into_iter().filter_map(part).collect();
    let operators = outcomes.first(name).and_then(|run| run.get("operators")?.as_object());
    let mut operators: Vec<(&str, f64)> = operators
        .into_iter()
        .flatten()
        .filter_map(|(name, seconds)| Some((name.as_str(), seconds.as_f64()?)))
        .collect();
    operators.sort_by(|a, b| b.1.total_cmp(&a.1));
    let longest: Vec<String> =
        operators.iter().take(SHOWN).map(|(name, seconds)| format!("{name} {seconds:.3} s")).collect();
    format!(
        "Ours by phase: {}; by operator, forward and backward (of the first round): {}.",
        parts.join(", "),
        longest.join(", ")
    )
}

fn counted(outcomes: &Outcomes, name: &str) -> String {
    outcomes.median(name, "peak_memory_bytes").map_or(String::new(), |bytes| {
        format!("The engine's own buffers, weights included, took {:.2} GB at most.", bytes / 1e9)
    })
}

/// The first step's loss and the last one's tokens on both sides: the same work was done.
fn agreement(outcomes: &Outcomes, us: &str, them: &str) -> String {
    let first = |name: &str| {
        let run = outcomes.first(name)?;
        Some((run.get("losses")?.as_array()?.first()?.as_f64()?, run.get("input_tokens")?.as_f64()?))
    };
    match (first(us), first(them)) {
        (Some((loss, tokens)), Some((their_loss, their_tokens))) => format!(
            "First loss {loss:.3} beside {their_loss:.3}; {tokens:.0} input tokens in the last step beside {their_tokens:.0}."
        ),
        _ => "PyTorch was not there to compare losses with.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_counts_without_those_inside_of_it() {
        let span = |name: &str, thread: u64, start: f64, seconds: f64| json!({ "name": name, "ph": "X", "tid": thread, "ts": start * 1e6, "dur": seconds * 1e6 });
        let trace = json!({ "traceEvents": [
            { "name": "process_name", "ph": "M", "pid": 1 },
            span("linear", 1, 1.0, 2.0),
            span("step", 1, 0.0, 10.0),
            span("linear", 1, 4.0, 1.0),
            span("tower", 1, 3.0, 5.0),
            span("data", 2, 0.5, 0.25),
        ] });
        let found = own_seconds(&trace);
        let expected = [("tower", 4.0), ("linear", 3.0), ("step", 3.0), ("data", 0.25)];
        assert_eq!(found.len(), expected.len());
        for ((name, seconds), (other, wanted)) in found.iter().zip(expected) {
            assert!(name == other && (seconds - wanted).abs() < 1e-9, "{found:?}");
        }
    }
}
