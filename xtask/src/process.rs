//! Running other programs and reporting what went wrong. No knowledge of what they are run for.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What stopped a command, and what the reader can do about it.
#[derive(Debug)]
pub struct Failure {
    /// What happened, in one line.
    pub message: String,
    /// How to get on.
    pub hint: Option<String>,
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure without advice.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), hint: None }
    }

    /// The same with advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }
}

/// Runs a program with this terminal as its own; an exit status other than 0 is a failure.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command.status().map_err(|error| cannot_start(command, &error))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("`{shown}` failed ({status})"))) }
}

/// Runs a program and gives its standard output; its standard error goes to the terminal.
pub fn capture(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| cannot_start(command, &error))?;
    if !output.status.success() {
        return Err(Failure::new(format!("`{shown}` failed ({})", output.status)));
    }
    String::from_utf8(output.stdout).map_err(|_| Failure::new(format!("`{shown}` printed something that is not UTF-8")))
}

/// Whether a program starts and ends well; nothing is printed.
pub fn succeeds(program: &str, args: &[&str]) -> bool {
    let status =
        Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Runs cargo (the one that started us) in the workspace root.
pub fn cargo(args: &[&str]) -> Result<()> {
    cargo_with(args, &[])
}

/// Runs cargo with further environment variables.
pub fn cargo_with(args: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    eprintln!("> cargo {}", args.join(" "));
    run(cargo_command().args(args).envs(variables.iter().copied()))
}

/// The cargo that started us, in the workspace root.
pub fn cargo_command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The workspace root.
pub fn root() -> PathBuf {
    // The manifest of this crate lies one folder below the root.
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

/// Refuses arguments that a command does not know.
pub fn refuse_arguments(command: &str, args: &[String]) -> Result<()> {
    match args.first() {
        None => Ok(()),
        Some(arg) => Err(Failure::new(format!("`cargo xtask {command}` does not know `{arg}`"))),
    }
}

fn shown(command: &Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once(program).chain(args).collect::<Vec<_>>().join(" ")
}

fn cannot_start(command: &Command, error: &std::io::Error) -> Failure {
    let program = command.get_program().to_string_lossy().into_owned();
    match error.kind() {
        ErrorKind::NotFound => Failure::new(format!("`{program}` was not found")),
        _ => Failure::new(format!("`{program}` did not start: {error}")),
    }
}
