//! `vidtune bench step`: training steps timed, by the trainer's own bench.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use hub::{Dtype, SafeTensors};
use train::plan::MethodKind;
use train::{BenchOptions, bench_step};

use crate::args::{BenchMethod, BenchStepArgs, Common, DtypeChoice};
use crate::console::{Console, bytes};
use crate::failure::CliError;
use crate::output;

/// Runs the command.
///
/// # Errors
/// The configuration is not one of a model that can be built, or the sequences do not fit it.
pub fn run(args: &BenchStepArgs, common: &Common, console: &Console) -> Result<ExitCode> {
    let best = if tensor::has_bf16() { DtypeChoice::Bf16 } else { DtypeChoice::F32 };
    let dtype = common.dtype.unwrap_or(best);
    let options = BenchOptions {
        config: args.config.clone(),
        seq: args.seq,
        batch: args.batch,
        method: match args.method {
            BenchMethod::Full => MethodKind::Full,
            BenchMethod::Lora => MethodKind::Lora,
            BenchMethod::Projector => MethodKind::Projector,
        },
        dtype: dtype.dtype(),
        steps: args.steps,
        recompute: args.recompute,
        tokens: args.tokens.as_deref().map(|path| read_tokens(path, args.seq * args.batch)).transpose()?,
    };
    console.debug("building the model");
    let result = bench_step(&options)?;
    if args.json {
        output::print_figures(&result, dtype)?;
    } else {
        let text = format!(
            "{:.3} s a step ({:.3} forward, {:.3} backward, {:.3} optimizer), {:.0} tokens/s, {:.1} GFLOP/s (MFU {:.1} % of {:.1}), {} at most, {} trainable parameters\n",
            result.step_s,
            result.forward_s,
            result.backward_s,
            result.optimizer_s,
            result.tokens_per_s,
            result.gflops_per_s,
            100.0 * result.mfu,
            result.peak_gflops_per_s,
            bytes(result.peak_memory_bytes),
            result.trainable_parameters,
        );
        output::write(None, text.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The first `count` ids of the tensor `tokens` (I64) of a safetensors file.
fn read_tokens(path: &Path, count: usize) -> Result<Vec<u32>> {
    let bad = |what: String| CliError::usage(format!("`{}`: {what}", path.display()), "store `tokens` as I64 ids");
    let file = SafeTensors::open(path)?;
    let Some(view) = file.get("tokens").filter(|view| view.dtype == Dtype::I64) else {
        return Err(bad("there is no tensor `tokens` of dtype `I64`".to_owned()).into());
    };
    if view.num_elements() < count {
        return Err(bad(format!("{} tokens, `--seq` times `--batch` is {count}", view.num_elements())).into());
    }
    let ids = view.data.chunks_exact(8).take(count).map(|b| {
        let id = b.try_into().map(i64::from_le_bytes).unwrap_or(-1);
        u32::try_from(id).map_err(|_| bad(format!("`{id}` is not a token id")))
    });
    Ok(ids.collect::<Result<_, _>>()?)
}
