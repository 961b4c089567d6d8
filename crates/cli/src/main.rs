//! The vidtune binary: from arguments to one command, its errors rendered, its exit code. Owns no work of its own: every
//! command is a thin layer over the crates below.

mod args;
mod commands;
mod console;
mod demo;
mod failure;
mod model_args;
mod output;
mod text_args;

use std::process::ExitCode;

use clap::Parser;

use args::{BenchCommand, Cli, Command, DataCommand};
use console::Console;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::report_parse(&error),
    };
    let console = Console::new(&cli.common);
    let result = cli.common.apply().and_then(|()| run(&cli, &console));
    match result {
        Ok(code) => code,
        Err(error) => failure::report(&error, &console),
    }
}

fn run(cli: &Cli, console: &Console) -> anyhow::Result<ExitCode> {
    let common = &cli.common;
    match &cli.command {
        Command::Demo(args) => commands::demo::run(args, console),
        Command::Train(args) => commands::train::run(args, common, console),
        Command::Plan(args) => commands::plan::run(args, common, console),
        Command::Eval(args) => commands::eval::run(args, common, console),
        Command::Score(args) => commands::score::run(args, common, console),
        Command::Generate(args) => commands::generate::run(args, common, console),
        Command::Data(DataCommand::Frames(args)) => commands::data_frames::run(args, console),
        Command::Data(DataCommand::Cache(args)) => commands::data_cache::run(args),
        Command::Data(DataCommand::Check(args)) => commands::data_check::run(args, console),
        Command::Data(DataCommand::Convert(command)) => commands::data_convert::run(command, console),
        Command::Data(DataCommand::Preview(args)) => commands::data_preview::run(args, console),
        Command::Bench(BenchCommand::Step(args)) => commands::bench_step::run(args, common, console),
        Command::Bench(BenchCommand::Decode(args)) => commands::bench_decode::run(args, console),
        Command::Bench(BenchCommand::Generate(args)) => commands::bench_generate::run(args, common, console),
        Command::Export(args) => commands::export::run(args, common, console),
        Command::Init(args) => commands::init::run(args, console),
        Command::Doctor(args) => commands::doctor::run(args, common, console),
    }
}
