//! `vidtune bench generate`: greedy generation timed, beside the rate at which this machine reads memory.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use infer::{GenerateBench, bench_generate};
use models::{LoadOptions, Model, ModelConfig};

use crate::args::{BenchGenerateArgs, Common, DtypeChoice};
use crate::console::{Console, bytes};
use crate::output;

/// Seed of the weights where there is no checkpoint.
const SEED: u64 = 0;

/// Runs the command.
///
/// # Errors
/// The configuration is not one of a model that can be built, or a count is zero.
pub fn run(args: &BenchGenerateArgs, common: &Common, console: &Console) -> Result<ExitCode> {
    let dtype = common.dtype.unwrap_or(DtypeChoice::Bf16);
    let options = GenerateBench { prompt_tokens: args.prompt_tokens, new_tokens: args.new_tokens, batch: args.batch };
    console.debug("building the model");
    let model = build(&args.config, dtype.dtype())?;
    let result = bench_generate(&model, &options)?;
    if args.json {
        output::print_figures(&result, dtype)?;
    } else {
        let text = format!(
            "{:.1} tokens/s ({:.2} ms a step, {} of weights a step), {:.1} GB/s of weights, {:.0} % of the {:.1} GB/s that this machine reads; prompts in {:.3} s ({:.0} tokens/s)\n",
            result.tokens_per_s,
            result.step_s * 1e3,
            bytes(result.weight_bytes_per_step),
            result.weight_gb_per_s,
            100.0 * result.bandwidth_share,
            result.read_gb_per_s,
            result.prefill_s,
            result.prefill_tokens_per_s,
        );
        output::write(None, text.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn build(config: &Path, dtype: tensor::DType) -> Result<Model> {
    if config.is_dir() {
        return Ok(models::load(config, &LoadOptions { dtype: Some(dtype) })?.0);
    }
    let value = hub::json::read_json(config)?;
    let config = ModelConfig::from_json(&config.display().to_string(), value)?;
    Ok(models::random(config, SEED, dtype)?)
}
