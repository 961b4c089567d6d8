//! `vidtune export`: a checkpoint in LLaVA's original layout as a folder that `transformers` loads. A thin layer over the
//! translation of weights (`models`) and of processor files (`data`).

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use models::export::{ExportTokens, strategy};
use serde_json::json;

use crate::args::Common;
use crate::console::Console;
use crate::failure::CliError;
use crate::model_args::load;

/// `vidtune export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Checkpoint folder or hub id, in LLaVA's original layout
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// PEFT adapter, which is merged
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// New folder for LlavaForConditionalGeneration
    #[arg(long, value_name = "OUT")]
    pub to_hf: PathBuf,
}

/// Largest file of weights.
const SHARD: u64 = 5_000_000_000;

/// Runs the command.
///
/// # Errors
/// The model has no form in `transformers`, or the folder is there already.
pub fn run(args: &ExportArgs, common: &Common, console: &Console) -> Result<ExitCode> {
    let out = &args.to_hf;
    if out.exists() {
        return Err(CliError::usage(format!("`{}` exists already", out.display()), "name a new folder").into());
    }
    let mut loaded = load(&args.model, args.adapter.as_deref(), common, console)?;
    if loaded.model.adapter().is_some() {
        loaded.model.merge_lora()?;
    }
    let strategy = strategy(loaded.model.exported_encoder()?);
    hub::atomic_dir(out, |dir| {
        let tokens = loaded.processor.export_llava(dir, strategy)?;
        let tokens = ExportTokens { image: tokens.image, pad: tokens.pad };
        Ok::<_, anyhow::Error>(loaded.model.save_as_llava(dir, tokens, SHARD)?)
    })?;
    let fields = json!({"model": args.model, "to": out});
    console.event("exported", fields, || {
        Some(format!("`{}` is `{}` for `transformers` (LlavaForConditionalGeneration)", out.display(), args.model))
    });
    Ok(ExitCode::SUCCESS)
}
