//! `vidtune plan`: what a plan would run, and the errors that it would die of, before anything is written.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Result;
use train::forecast::{BlockMemory, MemoryEstimate};
use train::plan::Plan;
use train::{Assumed, AssumedReport, PartCount, PlanReport, ReportOptions, assumed_report, plan_report};

use crate::args::{Common, PlanArgs};
use crate::commands::train::overrides;
use crate::console::{Console, bytes, duration};
use crate::output;

/// Runs the command.
///
/// # Errors
/// The plan cannot work.
pub fn run(args: &PlanArgs, common: &Common, _console: &Console) -> Result<ExitCode> {
    let plan = Plan::load(&args.plan, &overrides(&args.overrides, common))?;
    if let Some(tokens) = args.tokens {
        let report = assumed_report(&plan, Assumed { tokens, pictures: args.pictures })?;
        match args.json {
            true => output::write_json(None, &report)?,
            false => output::write(None, text_of_assumed(&report).as_bytes())?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let report = plan_report(&plan, &ReportOptions { measure: args.measure })?;
    if args.json {
        output::write_json(None, &report)?;
    } else {
        output::write(None, text_of(&report).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The report for people.
pub fn text_of(report: &PlanReport) -> String {
    let mut text = format!("model `{}`\n\n{}\n", report.model_dir.display(), part_table(&report.parts));
    if !report.adapted_modules.is_empty() {
        let _ = writeln!(text, "adapters on {} modules", report.adapted_modules.len());
    }
    let eval = report.eval_records.map(|count| format!(", {count} for evaluation")).unwrap_or_default();
    let _ = writeln!(text, "{} records{eval}", report.records);
    let each = report.steps_per_epoch.map(|steps| format!(", {steps} an epoch")).unwrap_or_default();
    let _ = writeln!(text, "{} steps{each}, {} of them warm-up", report.num_steps, report.num_warmup_steps);
    let tokens = &report.tokens;
    let _ = writeln!(
        text,
        "{:.0} input tokens a record ({} at most, {:.0} supervised, {:.1} pictures; {} records sampled), about {:.3e} in all",
        tokens.mean_input_tokens,
        tokens.max_input_tokens,
        tokens.mean_supervised_tokens,
        tokens.mean_images,
        tokens.sampled_records,
        tokens.total_input_tokens,
    );
    if let Some(packing) = &report.packing {
        let _ = writeln!(
            text,
            "batches {:.1} % full ({} batches of {} records measured)",
            packing.fill * 100.0,
            packing.batches,
            packing.records
        );
    }
    write_memory(&mut text, &report.memory);
    let time = &report.time;
    let _ = writeln!(
        text,
        "about {} a step, {} in all (decoding not counted)",
        duration(time.seconds_per_step),
        duration(time.seconds)
    );
    if let Some(measured) = &report.measured {
        let _ = writeln!(
            text,
            "measured on {} input tokens: {} at the peak (the optimizer's state comes on top), {} forward, {} backward, loss {:.4}",
            measured.input_tokens,
            bytes(measured.peak_memory_bytes),
            duration(measured.forward_time),
            duration(measured.backward_time),
            measured.loss,
        );
    }
    if !report.unreached.is_empty() {
        let _ = writeln!(text, "take no part in the forward pass: `{}`", report.unreached.join("`, `"));
    }
    text
}

/// The report on assumed records for people.
fn text_of_assumed(report: &AssumedReport) -> String {
    let mut text = format!("model `{}`\n", report.model_dir.display());
    if report.without_weights {
        text.push_str("the folder holds no weights; everything here follows from its configuration\n");
    }
    let _ = writeln!(
        text,
        "\n{}\n{} parameters, {} of them train\n{} assumed records of {} tokens and {} pictures a micro-batch, {:.3e} operations",
        part_table(&report.parts),
        report.parameters,
        report.trainable_parameters,
        report.records,
        report.tokens,
        report.pictures,
        report.flops_per_micro_batch as f64,
    );
    write_memory(&mut text, &report.memory);
    if !report.memory.fits() {
        text.push_str("this machine has no room for it\n");
    }
    text
}

/// Memory of a step, and of the process.
fn write_memory(text: &mut String, memory: &MemoryEstimate) {
    let _ = writeln!(
        text,
        "{} at the peak of a step, planned from its shapes: weights {}, gradients {}, optimizer {}, activations {}, workspace {}",
        bytes(memory.total),
        bytes(memory.weights),
        bytes(memory.gradients),
        bytes(memory.optimizer),
        bytes(memory.activations),
        bytes(memory.workspace),
    );
    let _ = writeln!(text, "{}", blocks_line(&memory.blocks));
    let available = memory.available.map(|available| format!(", {} available", bytes(available))).unwrap_or_default();
    let _ = writeln!(
        text,
        "about {} for the whole process, {} of it for records ahead and decoding{available}",
        bytes(memory.resident),
        bytes(memory.data)
    );
}

/// What blocks keep for the backward pass, equal neighbours together.
fn blocks_line(blocks: &[BlockMemory]) -> String {
    let mut parts: Vec<(&'static str, usize, usize, u64)> = Vec::new();
    for block in blocks {
        match parts.last_mut() {
            Some((name, _, last, each)) if *name == block.name && *each == block.bytes => *last = block.index,
            _ => parts.push((block.name, block.index, block.index, block.bytes)),
        }
    }
    let texts: Vec<String> = parts
        .iter()
        .map(|(name, first, last, each)| match first == last {
            true => format!("{name}.{first} {}", bytes(*each)),
            false => format!("{name}.{first} to {last} {} each", bytes(*each)),
        })
        .collect();
    format!("kept for the backward pass: {}", if texts.is_empty() { "nothing".to_owned() } else { texts.join(", ") })
}

/// Tensors and parameters by part, one line each.
pub fn part_table(parts: &[PartCount]) -> String {
    let width = parts.iter().map(|part| part.part.len()).max().unwrap_or(0).max(10);
    let mut text =
        format!("{:<width$} {:>14} {:>14} {:>9}  learning rate\n", "part", "parameters", "trainable", "tensors");
    for part in parts {
        let rate = part.learning_rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2e}"));
        let _ = writeln!(
            text,
            "{:<width$} {:>14} {:>14} {:>9}  {rate}",
            part.part, part.parameters, part.trainable_parameters, part.trainable_tensors
        );
    }
    text
}
