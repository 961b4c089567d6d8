//! `vidtune train`: a plan's run, its progress on stderr, an orderly end on a signal.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use train::plan::Plan;
use train::{DataReport, Event, ReportOptions, Resume, RunOutcome, plan_report};

use crate::args::{Common, DeviceChoice, TrainArgs};
use crate::commands::plan::{part_table, text_of};
use crate::commands::profile_table;
use crate::console::{Console, bytes, duration};
use crate::failure::{CliError, Exit};
use crate::output;

/// Runs the command.
///
/// # Errors
/// The plan is refused, or the run fails.
pub fn run(args: &TrainArgs, common: &Common, console: &Console) -> Result<ExitCode> {
    let mut overrides = overrides(&args.overrides, common);
    overrides.extend(args.profile.then(|| "train.profile=true".to_owned()));
    overrides.extend(args.trace_steps.as_ref().map(|steps| format!("train.trace_steps={steps}")));
    let plan = Plan::load(&args.plan, &overrides)?;
    if args.dry_run {
        let report = plan_report(&plan, &ReportOptions::default())?;
        output::write_json(None, &report)?;
        console.info(&text_of(&report));
        return Ok(ExitCode::SUCCESS);
    }
    let resume = match args.resume.as_deref() {
        None => Resume::Never,
        Some("auto") => Resume::Auto,
        Some(dir) if !Path::new(dir).is_dir() => {
            let hint = "give `auto`, or a folder `checkpoint-N` of an earlier run";
            return Err(CliError::usage(format!("`--resume {dir}`: there is no such folder"), hint).into());
        }
        Some(dir) => Resume::From(dir.into()),
    };
    let stop = stop_on_signals()?;
    let outcome = train::run(&plan, &resume, &stop, &mut |event| show(event, console));
    console.clear();
    let outcome = outcome?;
    finish(&outcome, &args.plan, console)
}

/// The plan's overrides with the common flags that a plan also holds.
pub fn overrides(given: &[String], common: &Common) -> Vec<String> {
    let mut overrides = given.to_vec();
    if let Some(dtype) = common.dtype {
        overrides.push(format!("model.dtype={}", dtype.word()));
    }
    if common.device == DeviceChoice::Cpu {
        overrides.push("model.device=cpu".to_owned());
    }
    overrides
}

/// A flag that the first interrupt raises; the second one ends the process at once.
pub fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// Tells an event of a run.
pub fn show(event: &Event<'_>, console: &Console) {
    match event {
        Event::Notice(text) => console.message(crate::console::Level::Warning, text, None),
        Event::Measuring { records } => {
            console.event("measuring", json!({"records": records}), || {
                Some(format!("measuring {records} records, without decoding"))
            });
        }
        Event::Data(report) => {
            let fields = serde_json::to_value(report).unwrap_or_default();
            console.event("data", fields, || Some(data_line(report)));
        }
        Event::Ready { parts, records, num_steps, steps_done, planned_peak_bytes } => {
            let fields = json!({
                "records": records, "num_steps": num_steps, "steps_done": steps_done,
                "planned_peak_bytes": planned_peak_bytes,
            });
            console.event("ready", fields, || {
                let resumed =
                    if *steps_done > 0 { format!(", {steps_done} of them done before") } else { String::new() };
                let planned = bytes(*planned_peak_bytes);
                Some(format!(
                    "{}{records} records, {num_steps} steps{resumed}, {planned} planned at the peak of a step",
                    part_table(parts)
                ))
            });
        }
        Event::Preflight(rehearsal) => {
            let fields = serde_json::to_value(rehearsal).unwrap_or_default();
            console.event("preflight", fields, || {
                Some(format!(
                    "preflight: the largest batch ({} records, {} tokens, {} pictures) went forward and backward in {}, {} at the peak",
                    rehearsal.samples,
                    rehearsal.input_tokens,
                    rehearsal.frames,
                    duration(rehearsal.seconds),
                    bytes(rehearsal.peak_memory_bytes)
                ))
            });
        }
        Event::Step { metrics, num_steps, tokens_per_second, seconds_left, report } => {
            let line = || {
                format!(
                    "step {}/{num_steps}  loss {:.4}  grad {:.3}  lr {:.2e}  {tokens_per_second:.0} tokens/s  {}  {} left",
                    metrics.step,
                    metrics.loss,
                    metrics.grad_norm,
                    metrics.learning_rate,
                    bytes(metrics.peak_memory_bytes),
                    duration(*seconds_left)
                )
            };
            if *report {
                let fields = serde_json::to_value(metrics).unwrap_or_default();
                console.event("step", fields, || Some(line()));
            } else if console.draws() {
                console.progress(&format!("{} {}", bar(metrics.step, *num_steps), line()));
            }
        }
        Event::EvaluationStarted { step, records } => {
            console.progress(&format!("step {step}: evaluating {records} records"));
        }
        Event::Evaluated { step, eval_loss, seconds } => {
            let fields = json!({"step": step, "eval_loss": eval_loss, "seconds": seconds});
            console.event("evaluated", fields, || {
                Some(format!("step {step}  eval_loss {eval_loss:.4}  ({})", duration(*seconds)))
            });
        }
        Event::CheckpointWritten { path } => tell_path("checkpoint", "checkpoint", path, console),
        Event::CheckpointRemoved { path } => tell_path("checkpoint_removed", "removed", path, console),
        Event::Exported { path } => tell_path("exported", "final model", path, console),
        Event::TraceWritten { path } => tell_path("trace", "trace", path, console),
        Event::Profiled { profile, path } => {
            let fields = json!({"path": path, "profile": profile});
            console.event("profile", fields, || Some(profile_table::text_of(profile, path)));
        }
    }
}

/// How the data kept up, in one line.
fn data_line(report: &DataReport) -> String {
    let mut text = format!("data: waited {} of {} for batches", duration(report.data_time), duration(report.step_time));
    if let Some(fill) = report.fill {
        text.push_str(&format!("; batches {:.1} % full", fill * 100.0));
    }
    if let Some(cache) = &report.frame_cache {
        text.push_str(&format!(
            "; frame cache: {} clips read ({}), {} decoded, {} of them stored ({})",
            cache.hits,
            bytes(cache.bytes_read),
            cache.misses,
            cache.stored,
            bytes(cache.bytes_written)
        ));
        for (count, what) in [(cache.no_room, "without room"), (cache.damaged, "entries damaged")] {
            if count > 0 {
                text.push_str(&format!(", {count} {what}"));
            }
        }
    }
    text
}

fn tell_path(name: &str, word: &str, path: &Path, console: &Console) {
    console.event(name, json!({"path": path}), || Some(format!("{word} `{}`", path.display())));
}

/// `[#####-----]`.
fn bar(done: u64, total: u64) -> String {
    const WIDTH: u64 = 20;
    let filled = (done * WIDTH).checked_div(total).unwrap_or(WIDTH).min(WIDTH) as usize;
    format!("[{}{}]", "#".repeat(filled), "-".repeat(WIDTH as usize - filled))
}

fn finish(outcome: &RunOutcome, plan: &Path, console: &Console) -> Result<ExitCode> {
    if outcome.preempted {
        let place = outcome.checkpoint.as_ref().map(|dir| format!(" at `{}`", dir.display())).unwrap_or_default();
        console.message(
            crate::console::Level::Warning,
            &format!("stopped by a signal after {} steps, checkpointed{place}", outcome.steps),
            Some(&format!("go on with `vidtune train {} --resume auto`", plan.display())),
        );
        return Ok(Exit::Preempted.into());
    }
    let skipped = outcome.ledger.skipped;
    if skipped > 0 {
        console.warning(&format!("{skipped} records were skipped: see `ledger.jsonl`"));
    }
    let noted = outcome.ledger.noted;
    if noted > 0 {
        console
            .warning(&format!("{noted} records were not used as they were asked for: see `notes` in `ledger.jsonl`"));
    }
    if let Some(next) = &outcome.next_steps {
        console.info(&format!("\nAsk it:\n  {}\n\nJudge it:\n  {}\n", next.generate, next.evaluate));
        console.info(&format!("Load it in Python:\n  {}\n", next.python.replace('\n', "\n  ")));
    }
    if let Some(dir) = &outcome.final_model {
        output::write(None, format!("{}\n", dir.display()).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars() {
        assert_eq!(bar(0, 10), "[--------------------]");
        assert_eq!(bar(5, 10), "[##########----------]");
        assert_eq!(bar(10, 10), "[####################]");
        assert_eq!(bar(0, 0), "[####################]");
    }
}
