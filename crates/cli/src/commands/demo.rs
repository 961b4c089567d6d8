//! `vidtune demo`: the whole way on generated videos.

use std::process::ExitCode;

use anyhow::Result;

use crate::args::DemoArgs;
use crate::console::Console;
use crate::demo;

/// Runs the command.
///
/// # Errors
/// As [`demo::run`].
pub fn run(args: &DemoArgs, console: &Console) -> Result<ExitCode> {
    let stop = super::train::stop_on_signals()?;
    demo::run(&args.out, &stop, console)?;
    Ok(ExitCode::SUCCESS)
}
