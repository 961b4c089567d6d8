//! One training step of a decoder, full and LoRA, beside the same step in plain PyTorch. Owns the decoder's shape and its floors.

use std::process::Command;

use serde_json::{Value, json};

use super::Bench;
use super::runs::{self, Contender, Outcomes};
use super::table::{Aim, Figure, Floor, Section, Unit};
use crate::process::Result;

/// Tokens of the step.
const SEQ: usize = 1024;
const LAYERS: usize = 4;
const HIDDEN: usize = 896;
const INTERMEDIATE: usize = 4864;
/// Widths of q, of k and v together.
const HEADS: usize = 896 + 256;

/// The `config.json` of the decoder.
pub fn decoder() -> Value {
    json!({
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": HIDDEN, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "vocab_size": 32000,
        "tie_word_embeddings": false, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
        "max_position_embeddings": 16384,
    })
}

/// What one dtype is judged by: (time, memory) of full and of LoRA.
struct Aims {
    full: [Option<Aim>; 2],
    lora: [Option<Aim>; 2],
}

/// bf16 beside autocast.
pub fn bf16(bench: &Bench) -> Result<Section> {
    let aims = Aims {
        full: [Some(Aim::Ratio(0.95, Some(0.88))), Some(Aim::Ratio(0.65, None))],
        lora: [Some(Aim::Ratio(0.9, Some(0.85))), Some(Aim::Ratio(0.3, None))],
    };
    section(bench, "bf16", "step-bf16", "Decoder step in bf16", &aims, bench.rounds(2))
}

/// f32 beside f32.
pub fn f32(bench: &Bench) -> Result<Section> {
    let aims = Aims { full: [Some(Aim::Ratio(0.6, None)), None], lora: [Some(Aim::Ratio(0.5, None)), None] };
    section(bench, "f32", "step-f32", "Decoder step in f32", &aims, 1)
}

/// A run of `vidtune bench step`.
pub fn ours(bench: &Bench, config: &str, method: &str, dtype: &str, seq: usize, steps: usize) -> Command {
    let (seq, steps) = (seq.to_string(), steps.to_string());
    bench.vidtune(&[
        "bench", "step", "--config", config, "--seq", &seq, "--method", method, "--dtype", dtype, "--steps", &steps,
        "--json",
    ])
}

/// The rate of a large bf16 product now, in units of 10^9 operations a second, for works whose own runs do not tell it.
pub fn peak(bench: &Bench) -> Result<Option<f64>> {
    let config = bench.write("decoder.json", &decoder().to_string())?;
    let probe = runs::measure(&mut ours(bench, &config, "lora", "bf16", 256, 3))?;
    Ok(probe.get("peak_gflops_per_s").and_then(Value::as_f64))
}

fn section(
    bench: &Bench,
    dtype: &'static str,
    name: &'static str,
    title: &'static str,
    aims: &Aims,
    rounds: usize,
) -> Result<Section> {
    let steps = if bench.quick || dtype == "f32" { 5 } else { 8 };
    let config = bench.write("decoder.json", &decoder().to_string())?;
    let seq = SEQ.to_string();
    let folder = bench.path("decoder");
    let from_file = match bench.script("bench_step.py", &["--config", &config, "--seq", &seq, "--make", &folder]) {
        Some(mut make) if !bench.dir.join("decoder").join("tokens.safetensors").exists() => {
            runs::measure(&mut make)?;
            true
        }
        made => made.is_some(),
    };
    let tokens = format!("{folder}/tokens.safetensors");
    let source = if from_file { &folder } else { &config };
    let vidtune = |method: &str, source: &str| {
        let mut command = ours(bench, source, method, dtype, SEQ, steps);
        if from_file {
            command.args(["--tokens", &tokens]);
        }
        command
    };
    let torch = |method: &str| {
        let (file, steps) = (format!("{folder}/config.json"), steps.to_string());
        let args = [
            "--config", &file, "--model", &folder, "--tokens", &tokens, "--seq", &seq, "--method", method, "--dtype",
            dtype, "--steps", &steps, "--json",
        ];
        bench.torch("bench_step.py", &args)
    };
    let mut contenders = Vec::new();
    for method in ["full", "lora"] {
        contenders.extend(Contender::command(format!("vidtune {method}"), move || Some(vidtune(method, source))));
        contenders.extend(Contender::command(format!("PyTorch {method}"), move || torch(method)));
    }
    let mut outcomes = runs::alternate(rounds, &contenders)?;
    if from_file {
        // For its memory alone, which does not change from run to run.
        let random = Contender::command("vidtune lora random", || Some(ours(bench, &config, "lora", dtype, SEQ, 2)));
        outcomes.join(runs::alternate(1, random.as_slice())?);
    }
    let mut figures = Vec::new();
    for (method, aims) in [("full", &aims.full), ("lora", &aims.lora)] {
        let (us, them) = (format!("vidtune {method}"), format!("PyTorch {method}"));
        figures.push(time_figure(bench, &outcomes, method, &us, &them, aims[0]));
        figures.push(memory_figure(&outcomes, dtype, format!("{method}, memory"), &us, &them, aims[1]));
    }
    if from_file {
        let what = "lora, memory, random weights".to_owned();
        figures.push(memory_figure(&outcomes, dtype, what, "vidtune lora random", "PyTorch lora", aims.lora[1]));
    }
    let mut commands = vec![super::shown(&vidtune("full", source))];
    commands.extend(torch("full").map(|command| super::shown(&command)));
    Ok(Section {
        name,
        title,
        text: vec![what(dtype, steps, rounds), peaks(&outcomes), losses(&outcomes)],
        commands,
        figures,
        tables: Vec::new(),
        raw: outcomes.to_json(),
    })
}

fn what(dtype: &str, steps: usize, rounds: usize) -> String {
    let theirs = if dtype == "bf16" { "bf16 autocast over f32 weights" } else { "f32" };
    format!(
        "Forward, loss, backward and AdamW of a Qwen2-style decoder ({LAYERS} layers, hidden {HIDDEN}, 14 and 2 heads of 64, {INTERMEDIATE}, \
         vocabulary 32000), one sequence of {SEQ} tokens; LoRA of rank 16 on q, k, v and o. PyTorch: {theirs}, fused attention, norm and AdamW. \
         Medians of {rounds} rounds in alternation, each the median of the last two thirds of {steps} steps; memory is the process's largest \
         resident size until the end of the steps."
    )
}

/// The product rate of the machine in the same minutes, and how much of it the steps reach.
fn peaks(outcomes: &Outcomes) -> String {
    let mut text = "Rate of a large product, measured by the binary after its steps: ".to_owned();
    let said: Vec<String> = ["full", "lora"]
        .iter()
        .filter_map(|method| {
            let name = format!("vidtune {method}");
            let (peak, mfu) = (outcomes.median(&name, "peak_gflops_per_s")?, outcomes.median(&name, "mfu")?);
            Some(format!("{peak:.0} GFLOP/s beside {method} (MFU {:.0} %)", 100.0 * mfu))
        })
        .collect();
    text += &said.join(", ");
    text + "."
}

fn losses(outcomes: &Outcomes) -> String {
    let last = |name: &str| outcomes.first(name)?.get("losses")?.as_array()?.last()?.as_f64();
    match (last("vidtune full"), last("PyTorch full")) {
        (Some(ours), Some(theirs)) => {
            let difference = (ours - theirs).abs() / theirs;
            format!("Last loss of the full run: {ours:.5} and {theirs:.5}, {difference:.1e} apart.")
        }
        _ => "No losses to compare.".to_owned(),
    }
}

/// Seconds, with the floor of the step's products and of AdamW's way through memory.
fn time_figure(bench: &Bench, outcomes: &Outcomes, method: &str, us: &str, them: &str, aim: Option<Aim>) -> Figure {
    let median = |field| outcomes.median(us, field);
    let floor = || {
        let (flops, peak) = (median("flops")?, median("peak_gflops_per_s")?);
        let mut value = flops / (peak * 1e9);
        let mut how = format!("{:.0} GFLOP of products at {peak:.0} GFLOP/s", flops / 1e9);
        // Weight, both moments read and written, gradient read: 28 bytes for each f32 that trains.
        if let (Some(trainable), Some(bandwidth)) = (median("trainable_parameters"), bench.machine.bandwidth()) {
            let seconds = 28.0 * trainable / bandwidth;
            value += seconds;
            how += &format!(
                ", {seconds:.3} s for AdamW's {:.2} GB at {:.1} GB/s",
                28.0 * trainable / 1e9,
                bandwidth / 1e9
            );
        }
        Some(Floor { value, how })
    };
    let phases: Vec<String> = ["forward_s", "backward_s", "optimizer_s"]
        .iter()
        .filter_map(|field| Some(format!("{} {:.3} s", field.trim_end_matches("_s"), median(field)?)))
        .collect();
    Figure {
        what: format!("{method}, seconds"),
        unit: Unit::Seconds,
        ours: outcomes.all(us, "step_s"),
        theirs: outcomes.all(them, "step_s"),
        aim,
        floor: floor(),
        cause: format!(
            "Ours by phase: {}. Above the floor is all that is not a product, and the products' own distance from the rate of a large one.",
            phases.join(", ")
        ),
    }
}

/// Resident bytes, with the floor of what must live at once: weights, their gradients and moments, inputs kept for the backward pass.
fn memory_figure(outcomes: &Outcomes, dtype: &str, what: String, us: &str, them: &str, aim: Option<Aim>) -> Figure {
    let width = if dtype == "bf16" { 2.0 } else { 4.0 };
    let median = |field| outcomes.median(us, field);
    let floor = || {
        let (parameters, trainable) = (median("parameters")?, median("trainable_parameters")?);
        let frozen = if trainable < parameters / 2.0 { parameters } else { 0.0 };
        let state = 16.0 * trainable + width * frozen;
        // A block keeps three rows of the hidden width, q, k and v, and both halves of SwiGLU.
        let kept = (SEQ * LAYERS * (3 * HIDDEN + HEADS + 2 * INTERMEDIATE)) as f64 * width;
        let how = format!(
            "{:.2} GB of weights, gradients and moments, {:.2} GB of inputs that the backward pass needs without recomputing",
            state / 1e9,
            kept / 1e9
        );
        Some(Floor { value: state + kept, how })
    };
    let counted = median("peak_memory_bytes").map_or(String::new(), |bytes| {
        format!(
            "The engine's own buffers took {:.2} GB at most; the rest it does not count: the program, its threads, and pages of the file that \
             weights are read from.",
            bytes / 1e9
        )
    });
    let own = outcomes.all(us, "process_peak_bytes");
    Figure {
        what,
        unit: Unit::Bytes,
        ours: if own.is_empty() { outcomes.all(us, "resident_peak_bytes") } else { own },
        theirs: outcomes.all(them, "peak_memory_bytes"),
        aim,
        floor: floor(),
        cause: counted,
    }
}
