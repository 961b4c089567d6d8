//! `vidtune data convert`: published annotations as records that training reads.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use data::{Ssv2Options, convert_ssv2};

use crate::console::Console;
use crate::output;

/// What is converted.
#[derive(Debug, Subcommand)]
pub enum ConvertCommand {
    /// Something-Something v2: annotations and labels to `llava` records, placeholders filled in, brackets removed
    Ssv2(Ssv2Args),
}

/// `vidtune data convert ssv2`.
#[derive(Debug, Args)]
pub struct Ssv2Args {
    /// Published annotations (something-something-v2-train.json), or a file of lines `path label`
    #[arg(long, value_name = "FILE")]
    pub annotations: PathBuf,
    /// What the labels of lines mean: id2label.json or the published labels.json
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// What each record asks
    #[arg(long, value_name = "TEXT", default_value = data::SSV2_PROMPT)]
    pub prompt: String,
    /// Ending of the clips' names, such as mp4; their own when not given, and webm for published annotations
    #[arg(long, value_name = "EXT")]
    pub suffix: Option<String>,
    /// Records: one a line, or a list where the name ends in .json
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// A file cannot be read or written; a clip without a label.
pub fn run(command: &ConvertCommand, console: &Console) -> Result<ExitCode> {
    let ConvertCommand::Ssv2(args) = command;
    let options = Ssv2Options { prompt: Some(args.prompt.clone()), suffix: args.suffix.clone() };
    let is_list = args.out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"));
    let mut text = String::new();
    let count = convert_ssv2(&args.annotations, args.labels.as_deref(), &options, &mut |record| {
        text.push_str(match (is_list, text.is_empty()) {
            (true, true) => "[\n",
            (true, false) => ",\n",
            (false, true) => "",
            (false, false) => "\n",
        });
        text.push_str(&record.to_string());
        Ok(())
    })?;
    text.push_str(if is_list { "\n]\n" } else { "\n" });
    output::write(Some(&args.out), text.as_bytes())?;
    console.info(&format!("{count} records in `{}`", Path::display(&args.out)));
    Ok(ExitCode::SUCCESS)
}
