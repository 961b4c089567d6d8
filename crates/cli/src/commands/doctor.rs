//! `vidtune doctor`: what this machine offers, and whether a checkpoint gives the logits that the reference gives.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use hub::{Dtype, HubEnv, SafeTensors};
use models::{LoadOptions, ModelInput};
use serde_json::{Value, json};
use tensor::{DType, Tape, Tensor};

use crate::args::Common;
use crate::console::Console;
use crate::failure::{CliError, Exit};
use crate::model_args::resolve;
use crate::output;

/// `vidtune doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Checkpoint folder or hub id to compare with --reference
    #[arg(long, value_name = "DIR", requires = "reference")]
    pub model: Option<String>,
    /// File written by the script that --print-script prints
    #[arg(long, value_name = "FILE", requires = "model")]
    pub reference: Option<PathBuf>,
    /// Print the Python script that writes a reference file, and stop
    #[arg(long, conflicts_with_all = ["model", "reference"])]
    pub print_script: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Greatest difference of logits, relative to their scale, that counts as equal. Both sides compute in f32; over the 30 to
/// 60 layers of common models the order of sums alone makes up to a few 1e-4.
const TOLERANCE: f64 = 1e-3;

/// The script that writes a reference file: fixed token ids, fixed pixels, the logits of the reference implementation.
pub const SCRIPT: &str = include_str!("doctor_reference.py");

/// Runs the command; exit code 1 when the checkpoint does not agree with its reference.
///
/// # Errors
/// The checkpoint or the reference file cannot be read.
pub fn run(args: &DoctorArgs, common: &Common, console: &Console) -> Result<ExitCode> {
    if args.print_script {
        output::write(None, SCRIPT.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    match (&args.model, &args.reference) {
        (Some(model), Some(reference)) => compare(model, reference, args.json, common, console),
        _ => environment(args.json),
    }
}

/// Token ids, pixels and logits of a reference file.
struct Reference {
    ids: Vec<u32>,
    /// Values and `[n, c, h, w]`.
    pixels: Option<(Vec<f32>, Vec<usize>)>,
    logits: Vec<f32>,
}

fn compare(model: &str, reference: &Path, as_json: bool, common: &Common, console: &Console) -> Result<ExitCode> {
    let dir = resolve(model, console)?;
    let Reference { ids, pixels, logits } = read_reference(reference)?;
    let dtype = common.dtype.map_or(DType::F32, |choice| choice.dtype());
    let (model, _report) = models::load(&dir, &LoadOptions { dtype: Some(dtype) })?;
    let placeholder = model.config().llava().map(|llava| llava.image_token_id);
    let rows = ids.iter().enumerate().filter(|(_, id)| Some(**id) == placeholder).map(|(row, _)| row as u32);
    let pixels = pixels.map(|(values, shape)| Tensor::from_f32(&values, &shape)).transpose()?;
    let input = ModelInput {
        positions: (0..ids.len() as u32).collect(),
        cu_seqlens: vec![0, ids.len()].into(),
        pixels,
        image_rows: rows.collect(),
        ids: ids.clone(),
        ..ModelInput::default()
    };
    let found = model.logits(&Tape::inference(), &input)?.value().to_vec_f32()?;
    if found.len() != logits.len() {
        return Err(CliError::failed(format!(
            "the model gives {} logits for {} tokens, `{}` holds {}",
            found.len(),
            ids.len(),
            reference.display(),
            logits.len()
        ))
        .into());
    }
    let vocabulary = found.len() / ids.len();
    let scale = logits.iter().fold(0f64, |most, &x| most.max(f64::from(x.abs())));
    let differences = found.iter().zip(&logits).map(|(a, b)| f64::from((a - b).abs()));
    let (at, worst) = differences.enumerate().fold((0, 0f64), |(i, most), (j, d)| {
        // A difference that is not a number is the worst of all.
        if d > most || d.is_nan() { (j, if d.is_nan() { f64::INFINITY } else { d }) } else { (i, most) }
    });
    let same_choice = found
        .chunks(vocabulary)
        .zip(logits.chunks(vocabulary))
        .filter(|(a, b)| position_of_best(a) == position_of_best(b))
        .count();
    let relative = worst / scale.max(f64::MIN_POSITIVE);
    let agrees = relative <= TOLERANCE;
    if as_json {
        output::print_json(&json!({
            "agrees": agrees,
            "tokens": ids.len(),
            "largest_difference": worst,
            "relative_to_scale": relative,
            "tolerance": TOLERANCE,
            "position": at / vocabulary,
            "same_choice": same_choice,
        }))?;
    } else {
        let verdict = if agrees { "agrees with" } else { "DIFFERS from" };
        let text = format!(
            "`{}` {verdict} its reference: largest difference {worst:.3e} at position {} ({relative:.2e} of the scale \
             {scale:.3}, tolerance {TOLERANCE:.0e}); the most likely token is the same at {same_choice} of {} positions\n",
            dir.display(),
            at / vocabulary,
            ids.len()
        );
        output::write(None, text.as_bytes())?;
    }
    Ok(if agrees { ExitCode::SUCCESS } else { Exit::Failed.into() })
}

fn position_of_best(row: &[f32]) -> Option<usize> {
    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i)
}

/// Reads `input_ids`, `pixel_values` (optional) and `logits` from a safetensors or JSON file.
fn read_reference(path: &Path) -> Result<Reference> {
    let is_json = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json"));
    let tensor = |name: &str| -> Result<Option<(Vec<f64>, Vec<usize>)>> {
        if is_json {
            let value: Value = hub::json::read_json(path)?;
            return value.get(name).filter(|v| !v.is_null()).map(|v| flatten(path, name, v)).transpose();
        }
        let file = SafeTensors::open(path)?;
        let Some(view) = file.get(name) else { return Ok(None) };
        let numbers = match view.dtype {
            Dtype::F32 => {
                view.data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
            }
            Dtype::I64 => {
                let number = |b: &[u8]| b.try_into().map(i64::from_le_bytes).unwrap_or_default() as f64;
                view.data.chunks_exact(8).map(number).collect()
            }
            other => return Err(bad(path, &format!("`{name}` has dtype `{other}`, expected F32 or I64"))),
        };
        Ok(Some((numbers, view.shape.to_vec())))
    };
    let missing = |name: &str| bad(path, &format!("there is no `{name}`"));
    let (ids, _) = tensor("input_ids")?.ok_or_else(|| missing("input_ids"))?;
    let (logits, _) = tensor("logits")?.ok_or_else(|| missing("logits"))?;
    if ids.is_empty() || logits.len() % ids.len() != 0 {
        return Err(bad(path, &format!("{} logits for {} tokens", logits.len(), ids.len())));
    }
    let to_f32 = |values: Vec<f64>| values.into_iter().map(|x| x as f32).collect::<Vec<_>>();
    Ok(Reference {
        ids: ids.iter().map(|&id| id as u32).collect(),
        pixels: tensor("pixel_values")?.map(|(values, shape)| (to_f32(values), shape)),
        logits: to_f32(logits),
    })
}

fn bad(path: &Path, what: &str) -> anyhow::Error {
    let hint = "write it with the script that `vidtune doctor --print-script` prints";
    CliError::usage(format!("`{}`: {what}", path.display()), hint).into()
}

/// Nested lists of numbers as values and shape.
fn flatten(path: &Path, name: &str, value: &Value) -> Result<(Vec<f64>, Vec<usize>)> {
    fn walk(value: &Value, depth: usize, shape: &mut Vec<usize>, out: &mut Vec<f64>) -> bool {
        match value {
            Value::Number(number) => {
                out.push(number.as_f64().unwrap_or(f64::NAN));
                depth == shape.len()
            }
            Value::Array(items) => {
                if depth == shape.len() && out.is_empty() {
                    shape.push(items.len());
                }
                shape.get(depth) == Some(&items.len()) && items.iter().all(|item| walk(item, depth + 1, shape, out))
            }
            _ => false,
        }
    }
    let (mut shape, mut out) = (Vec::new(), Vec::new());
    if walk(value, 0, &mut shape, &mut out) {
        Ok((out, shape))
    } else {
        Err(bad(path, &format!("`{name}` is not a regular list of numbers")))
    }
}

fn environment(as_json: bool) -> Result<ExitCode> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let env = HubEnv::from_env();
    let memory = memory_bytes();
    let libav = media::libav_libraries();
    let facts = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "cores": cores,
        "threads": tensor::num_threads(),
        "processor": processor_features(),
        "memory_bytes": memory,
        "devices": ["cpu"],
        "libav": libav.as_ref().ok().map(|libraries| libraries.iter().map(library).collect::<Vec<_>>()),
        "libav_error": libav.as_ref().err().map(ToString::to_string),
        "hub_cache": env.as_ref().ok().map(|env| env.hub_cache.clone()),
        "media_cache": env.as_ref().ok().map(|env| env.own_cache.clone()),
        "hub_endpoint": env.as_ref().ok().map(|env| env.endpoint.clone()),
        "hub_offline": env.as_ref().ok().map(|env| env.offline),
        "hub_token": env.as_ref().ok().map(|env| env.token.is_some()),
    });
    if as_json {
        output::print_json(&facts)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    if let Value::Object(facts) = &facts {
        for (name, value) in facts {
            let shown = match value {
                Value::Null if name == "libav_error" => continue,
                Value::Array(items) if name == "libav" => {
                    items.iter().map(shown_library).collect::<Vec<_>>().join(", ")
                }
                Value::Null if name == "libav" => "none: commands that read or write videos will fail".to_owned(),
                Value::String(text) => text.clone(),
                Value::Null => "unknown".to_owned(),
                Value::Number(n) if name == "memory_bytes" => crate::console::bytes(n.as_u64().unwrap_or_default()),
                Value::Bool(set) if name == "hub_token" => (if *set { "set" } else { "not set" }).to_owned(),
                Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
                other => other.to_string(),
            };
            let _ = writeln!(text, "{:<14} {shown}", name.replace('_', " ").replace(" bytes", ""));
        }
    }
    output::write(None, text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn library(library: &media::LibavLibrary) -> Value {
    json!({ "name": library.name, "version": library.version, "file": library.file })
}

fn shown_library(library: &Value) -> String {
    let text = |key: &str| library.get(key).and_then(Value::as_str).unwrap_or_default();
    format!("{} {}", text("name"), text("version"))
}

/// Instruction sets that the kernels use where they are there.
fn processor_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
        ];
        known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Vec::new()
    }
}

fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_lists_become_tensors() {
        let check = |text: &str| flatten(Path::new("r.json"), "x", &serde_json::from_str(text).unwrap());
        assert_eq!(check("[[1, 2, 3], [4, 5, 6.5]]").unwrap(), (vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.5], vec![2, 3]));
        assert_eq!(check("[]").unwrap(), (vec![], vec![0]));
        for bad in ["[[1, 2], [3]]", "[1, [2]]", "[[1], 2]", "[\"a\"]", "{}", "[[[1]], [2]]"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
