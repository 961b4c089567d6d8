//! Rules that hold for the whole repository, each enforced here and nowhere else.
//! Every rule reports all of its offences at once; none of them builds anything except the README's.

mod commands;
mod licences;
mod sources;
mod tables;

use crate::process::{self, Failure, Result};

/// `cargo xtask tidy`: every rule.
pub fn run(args: &[String]) -> Result<()> {
    process::refuse_arguments("tidy", args)?;
    sources()?;
    readme()?;
    eprintln!("tidy");
    Ok(())
}

/// The rules that need no build.
pub fn sources() -> Result<()> {
    let mut offences = sources::offences(&process::root())?;
    offences.extend(tables::offences(&crate::workspace::packages()?));
    offences.extend(licences::offences(&crate::workspace::packages()?));
    report(offences)
}

/// The rule that asks the built binary about the README's commands.
pub fn readme() -> Result<()> {
    report(commands::offences(&process::root(), &crate::gate::test_binary()?)?)
}

fn report(offences: Vec<String>) -> Result<()> {
    if offences.is_empty() { Ok(()) } else { Err(Failure::new(format!("not tidy:\n  {}", offences.join("\n  ")))) }
}
