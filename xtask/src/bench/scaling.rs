//! How our own step grows with threads, with the length of the sequence and with the number of frames: tables without a
//! second column. Owns the straight line that memory is held against.

use serde_json::{Value, json};

use super::table::{Section, Unit, shown as with_unit};
use super::{Bench, shown, steps};
use crate::bench::runs;
use crate::process::Result;

const LENGTHS: [usize; 5] = [512, 1024, 2048, 4096, 8192];
const FRAMES: [usize; 5] = [1, 4, 8, 16, 64];
const TOKENS_A_FRAME: usize = 196;

/// All three tables.
pub fn run(bench: &Bench) -> Result<Section> {
    let config = bench.write("decoder.json", &steps::decoder().to_string())?;
    let llava = bench.write("llava.json", &llava_config().to_string())?;
    let (threads, thread_runs) = threads(bench, &config)?;
    let (lengths, length_runs) = lengths(bench, &config)?;
    let (frames, frame_runs) = frames(bench, &llava)?;
    let commands = [
        steps::ours(bench, &config, "lora", "bf16", 2048, steps_for("lora", 2048)),
        steps::ours(bench, &llava, "lora", "bf16", sequence(8), steps_for("lora", sequence(8))),
    ];
    Ok(Section {
        name: "scaling",
        title: "Threads, sequence length, frames",
        text: vec![
            "vidtune alone, bf16, random weights, the decoder of the step above. Memory is the process's largest resident size until the end of \
             the steps, buffers what the engine counted of it; \"recomputing\" computes each block again in the backward pass. Single runs of 3 steps \
             without the first, above 2048 tokens of 2 steps with it, above 4096 of one (2 under full)."
                .to_owned(),
        ],
        commands: commands.iter().map(shown).collect(),
        figures: Vec::new(),
        tables: vec![threads, lengths, frames],
        raw: json!({ "threads": thread_runs, "lengths": length_runs, "frames": frame_runs }),
    })
}

/// 1, 2, 4 .. and all cores.
fn threads(bench: &Bench, config: &str) -> Result<(String, Vec<Value>)> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut counts: Vec<usize> =
        std::iter::successors(Some(1), |count| Some(count * 2)).take_while(|count| *count <= cores).collect();
    if !counts.contains(&cores) {
        counts.push(cores);
    }
    let mut table =
        "| threads | full step | times faster | LoRA step | times faster |\n|---|---|---|---|---|\n".to_owned();
    let mut runs_made = Vec::new();
    let mut alone: Option<[f64; 2]> = None;
    for count in counts {
        let mut seconds = [0.0; 2];
        for (slot, method) in seconds.iter_mut().zip(["full", "lora"]) {
            let one = Bench {
                threads: count,
                python: None,
                binary: bench.binary.clone(),
                dir: bench.dir.clone(),
                machine: bench.machine.clone(),
                quick: bench.quick,
            };
            let result = runs::measure(&mut steps::ours(&one, config, method, "bf16", 1024, 5))?;
            *slot = number(&result, "step_s");
            runs_made.push(json!({ "threads": count, "method": method, "run": result }));
        }
        let first = *alone.get_or_insert(seconds);
        let cell = |i: usize| format!("{} | {:.2}", with_unit(seconds[i], Unit::Seconds), first[i] / seconds[i]);
        table += &format!("| {count} | {} | {} |\n", cell(0), cell(1));
        eprintln!("  {count} threads: {:.2} and {:.2} s", seconds[0], seconds[1]);
    }
    Ok((table, runs_made))
}

/// A way of training whose growth with the sequence is measured.
const WAYS: [(&str, &str, bool); 3] =
    [("LoRA", "lora", false), ("LoRA, recomputing", "lora", true), ("full", "full", false)];

fn lengths(bench: &Bench, config: &str) -> Result<(String, Vec<Value>)> {
    let lengths = if bench.quick { &LENGTHS[..3] } else { &LENGTHS[..] };
    let mut table = "| tokens |".to_owned();
    for (name, ..) in WAYS {
        table += &format!(" {name}: step | memory | buffers |");
    }
    table += &format!("\n|---|{}\n", "---|".repeat(3 * WAYS.len()));
    let mut runs_made = Vec::new();
    let mut points = [const { Vec::new() }; WAYS.len()];
    for length in lengths {
        table += &format!("| {length} |");
        for ((name, method, recompute), points) in WAYS.into_iter().zip(&mut points) {
            let mut command = steps::ours(bench, config, method, "bf16", *length, steps_for(method, *length));
            if recompute {
                command.arg("--recompute");
            }
            let result = runs::measure(&mut command)?;
            let (resident, counted) = (number(&result, "process_peak_bytes"), number(&result, "peak_memory_bytes"));
            points.push((*length as f64, resident, counted));
            let cells = [
                with_unit(number(&result, "step_s"), Unit::Seconds),
                with_unit(resident, Unit::Bytes),
                with_unit(counted, Unit::Bytes),
            ];
            table += &format!(" {} |", cells.join(" | "));
            runs_made.push(json!({ "tokens": length, "way": name, "run": result }));
        }
        table.push('\n');
        eprintln!("  {length} tokens");
    }
    table += "\nMemory against tokens, by least squares:\n\n";
    for (points, (name, ..)) in points.iter().zip(WAYS) {
        table += &format!("- {name}: {}.\n", growth(points, "token", 1e3, "kB"));
    }
    Ok((table, runs_made))
}

/// The lines through resident size and counted buffers, in words.
fn growth(points: &[(f64, f64, f64)], each: &str, scale: f64, unit: &str) -> String {
    let say = |value: fn(&(f64, f64, f64)) -> f64| {
        let (start, slope, worst) = line(&points.iter().map(|point| (point.0, value(point))).collect::<Vec<_>>());
        let percent = 100.0 * worst;
        format!(
            "{:.2} GB and {:.0} {unit} a {each} (no point more than {percent:.1} % off)",
            start / 1e9,
            slope / scale
        )
    };
    format!("{} resident, {} in buffers", say(|point| point.1), say(|point| point.2))
}

fn frames(bench: &Bench, config: &str) -> Result<(String, Vec<Value>)> {
    let counts = if bench.quick { &FRAMES[..4] } else { &FRAMES[..] };
    let mut table =
        "| frames (LLaVA, LoRA) | tokens | step | memory | buffers | GFLOP/s |\n|---|---|---|---|---|---|\n".to_owned();
    let (mut runs_made, mut points) = (Vec::new(), Vec::new());
    for count in counts {
        let length = sequence(*count);
        let result = runs::measure(&mut steps::ours(bench, config, "lora", "bf16", length, steps_for("lora", length)))?;
        let (resident, counted) = (number(&result, "process_peak_bytes"), number(&result, "peak_memory_bytes"));
        points.push((*count as f64, resident, counted));
        table += &format!(
            "| {} | {length} | {} | {} | {} | {:.0} |\n",
            number(&result, "images"),
            with_unit(number(&result, "step_s"), Unit::Seconds),
            with_unit(resident, Unit::Bytes),
            with_unit(counted, Unit::Bytes),
            number(&result, "gflops_per_s"),
        );
        eprintln!("  {count} frames");
        runs_made.push(json!({ "frames": count, "run": result }));
    }
    table += &format!(
        "\nThe tower of the LLaVA above (12 x 768, frozen) before the 4 layers of the decoder; one eighth of the tokens is text. Memory against \
         frames: {}.\n",
        growth(&points, "frame", 1e6, "MB")
    );
    Ok((table, runs_made))
}

/// The longer the step, the less its first one differs from the others. Under `full` it lacks the optimizer's state, which
/// is made at its end and belongs to the largest size.
fn steps_for(method: &str, tokens: usize) -> usize {
    match tokens {
        0..=2048 => 3,
        2049..=4096 => 2,
        _ if method == "full" => 2,
        _ => 1,
    }
}

/// The shortest sequence in which `bench step` finds room for so many frames: it leaves an eighth to text.
fn sequence(frames: usize) -> usize {
    let images = frames * TOKENS_A_FRAME;
    (images..).find(|length| length - length.div_ceil(8) >= images).unwrap_or(images)
}

/// Least squares: value at 0, slope, and the largest distance of a point as a part of its value.
fn line(points: &[(f64, f64)]) -> (f64, f64, f64) {
    let n = points.len() as f64;
    let (mean_x, mean_y) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let above: f64 = points.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum();
    let below: f64 = points.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
    let slope = above / below;
    let start = mean_y - slope * mean_x;
    let worst = points.iter().map(|p| ((start + slope * p.0) - p.1).abs() / p.1).fold(0.0, f64::max);
    (start, slope, worst)
}

fn number(result: &Value, field: &str) -> f64 {
    result.get(field).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

fn llava_config() -> Value {
    json!({
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 3, "image_seq_length": TOKENS_A_FRAME,
        "projector_hidden_act": "gelu", "multimodal_projector_bias": true, "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full", "tie_word_embeddings": false, "text_config": steps::decoder(),
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6, "attention_dropout": 0.0, "vision_use_head": false,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_and_its_distance_told() {
        let (start, slope, worst) = line(&[(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)]);
        assert!((start - 3.0).abs() < 1e-9 && (slope - 2.0).abs() < 1e-9 && worst < 1e-9);
        assert!(line(&[(1.0, 1.0), (2.0, 4.0), (3.0, 9.0)]).2 > 0.05);
    }

    #[test]
    fn frames_leave_an_eighth_to_text() {
        for frames in FRAMES {
            let length = sequence(frames);
            assert_eq!((length - length.div_ceil(8)) / TOKENS_A_FRAME, frames);
        }
    }
}
