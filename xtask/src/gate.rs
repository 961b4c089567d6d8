//! `cargo xtask test`: everything that must be green before a change lands, cheapest first.

use std::time::Instant;

use crate::process::{self, Failure, Result};
use crate::{setup, tidy, workspace};

/// Sets up, then runs every check; `--quick` leaves out what only finds style.
pub fn run(args: &[String]) -> Result<()> {
    let (mode, rest) = setup::mode(args);
    process::refuse_arguments("test", &rest)?;
    let begin = Instant::now();
    setup::run(mode, &setup::NEEDED)?;
    setup::say_build_cost("debug", "6 to 15 minutes on 2 cores and 4 GB of disk, tests included");
    step("format", || process::cargo(&["fmt", "--all", "--check"]))?;
    step("tidy", tidy::sources)?;
    step("lints", lints)?;
    step("documentation", || {
        process::cargo_with(&["doc", "--workspace", "--no-deps", "--quiet"], &[("RUSTDOCFLAGS", "-D warnings")])
    })?;
    step("tests", || process::cargo(&["test", "--workspace"]))?;
    step("readme", tidy::readme)?;
    eprintln!("everything is green after {} s", begin.elapsed().as_secs());
    Ok(())
}

/// Warnings fail with the compiler that the workspace names; a newer one may know lints that we have not met.
fn lints() -> Result<()> {
    let text = process::capture(std::process::Command::new("rustc").arg("--version"))?;
    let named = format!("rustc {}.", env!("CARGO_PKG_RUST_VERSION"));
    let mut args = vec!["clippy", "--workspace", "--all-targets", "--quiet"];
    if text.starts_with(&named) {
        args.extend(["--", "-D", "warnings"]);
    } else {
        eprintln!(
            "note: `{}` is newer than the workspace's {}: warnings are shown, not failed",
            text.trim(),
            env!("CARGO_PKG_RUST_VERSION")
        );
    }
    process::cargo(&args)
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let begin = Instant::now();
    work().map_err(|failure| Failure { message: format!("{name}: {}", failure.message), hint: failure.hint })?;
    eprintln!("{name}: ok ({} s)", begin.elapsed().as_secs());
    Ok(())
}

/// The binary that the tests built.
pub fn test_binary() -> Result<std::path::PathBuf> {
    let binary = workspace::target_dir()?.join("debug").join("vidtune");
    if !binary.exists() {
        process::cargo(&["build", "--package", "cli"])?;
    }
    Ok(binary)
}
