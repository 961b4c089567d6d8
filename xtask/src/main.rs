//! Set-up, tests, tidy checks, benches and distribution: the commands behind `cargo xtask`.
//! It knows nothing of the product's inside; it installs what the build needs and calls cargo and the binary.

mod bench;
mod dist;
mod gate;
mod process;
mod setup;
mod tidy;
mod workspace;

use std::process::ExitCode;

use process::{Failure, Result};

/// A command of `cargo xtask`: its name, one line about it, and what it does with its arguments.
struct Command {
    name: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const COMMANDS: [Command; 7] = [
    Command { name: "demo", about: "set up, build the release binary, run `vidtune demo`", run: demo },
    Command {
        name: "test",
        about: "set up, then everything that must be green: the gate of this repository",
        run: gate::run,
    },
    Command { name: "setup", about: "install the system packages that the build needs, and nothing else", run: set_up },
    Command { name: "tidy", about: "rules about the sources, dependencies, licences and the README", run: tidy::run },
    Command { name: "bench", about: "vidtune beside PyTorch in one run; renews docs/bench.md", run: bench::run },
    Command { name: "dist", about: "a folder in dist/ that runs on a machine without FFmpeg", run: dist::run },
    Command { name: "help", about: "this text", run: help },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}", failure.message);
            if let Some(hint) = &failure.hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let Some((name, rest)) = args.split_first() else {
        return help(&[]);
    };
    let name = if name == "--help" || name == "-h" { "help" } else { name };
    match COMMANDS.iter().find(|command| command.name == name) {
        Some(command) if rest.iter().any(|arg| arg == "--help") && !["demo", "bench"].contains(&name) => {
            println!("cargo xtask {}: {}", command.name, command.about);
            Ok(())
        }
        Some(command) => (command.run)(rest),
        None => Err(Failure::new(format!("unknown command `{name}`")).hint("`cargo xtask help` lists the commands")),
    }
}

fn help(_: &[String]) -> Result<()> {
    println!("cargo xtask <command>\n");
    for command in &COMMANDS {
        println!("  {:<7} {}", command.name, command.about);
    }
    println!(
        "\n`demo`, `test`, `setup`, `bench` and `dist` accept `--no-install`: print what is missing instead of installing it."
    );
    Ok(())
}

fn set_up(args: &[String]) -> Result<()> {
    let (mode, rest) = setup::mode(args);
    process::refuse_arguments("setup", &rest)?;
    setup::run(mode, &setup::NEEDED)
}

/// Builds the release binary and hands it everything after `demo`.
fn demo(args: &[String]) -> Result<()> {
    let (mode, rest) = setup::mode(args);
    setup::run(mode, &setup::NEEDED)?;
    setup::say_build_cost("release", "3 to 8 minutes on 2 cores and 2 GB of disk");
    process::cargo(&["build", "--release", "--package", "cli"])?;
    let binary = workspace::target_dir()?.join("release").join("vidtune");
    let mut command = vec!["demo".to_owned()];
    command.extend(rest);
    process::run(std::process::Command::new(binary).args(command))
}

/// Names of the commands, for the README check.
pub fn command_names() -> Vec<&'static str> {
    COMMANDS.iter().map(|command| command.name).collect()
}
