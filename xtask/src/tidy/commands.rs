//! Commands in the README must exist: every `vidtune` line's subcommand and flags are looked up in the binary's own help,
//! every `cargo xtask` line's command in the table of `main`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::process::{Failure, Result};

/// Commands of the README that the program does not know.
pub fn offences(root: &Path, binary: &Path) -> Result<Vec<String>> {
    let path = root.join("README.md");
    let text = fs::read_to_string(&path)
        .map_err(|error| Failure::new(format!("cannot read `{}`: {error}", path.display())))?;
    let mut offences = Vec::new();
    for line in shell_lines(&text) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["cargo", "xtask", name, ..] if !crate::command_names().contains(name) => {
                offences.push(format!("README.md: `cargo xtask {name}` does not exist"));
            }
            ["vidtune", rest @ ..] => {
                if let Some(offence) = unknown(binary, rest) {
                    offences.push(format!("README.md: `{line}`: {offence}"));
                }
            }
            _ => {}
        }
    }
    Ok(offences)
}

/// Lines of the fenced `sh` blocks, continuation lines joined, comments taken off.
fn shell_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inside = false;
    let mut open: Option<String> = None;
    for line in text.lines() {
        if let Some(fence) = line.trim_start().strip_prefix("```") {
            inside = !inside && fence.trim() == "sh";
            continue;
        }
        if !inside {
            continue;
        }
        let line = line.split(" #").next().unwrap_or_default().trim();
        let joined = match open.take() {
            Some(begin) => format!("{begin} {line}"),
            None => line.to_owned(),
        };
        match joined.strip_suffix('\\') {
            Some(begin) => open = Some(begin.trim_end().to_owned()),
            None if joined.is_empty() || joined.starts_with('#') => {}
            None => lines.push(joined),
        }
    }
    lines
}

/// What the binary does not know about a command line; `None` when it knows everything.
fn unknown(binary: &Path, words: &[&str]) -> Option<String> {
    let is_word = |word: &&&str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-')
    };
    // A second word may be a subcommand of the first, or its argument: the longest path whose help exists counts.
    let path: Vec<&str> = words.iter().take(2).take_while(is_word).copied().collect();
    let help = (1..=path.len()).rev().find_map(|count| help(binary, &path[..count]));
    let Some(help) = help.or_else(|| path.is_empty().then(|| help_text(binary, &[])).flatten()) else {
        return Some(format!("no such command `{}`", path.join(" ")));
    };
    let flags = words.iter().filter(|word| word.starts_with("--")).map(|word| word.split('=').next().unwrap_or(word));
    let known = |flag: &str| help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).any(|word| word == flag);
    let missing: Vec<&str> = flags.filter(|flag| !known(flag)).collect();
    (!missing.is_empty()).then(|| format!("no such flag {}", missing.join(", ")))
}

fn help(binary: &Path, path: &[&str]) -> Option<String> {
    help_text(binary, path)
}

fn help_text(binary: &Path, path: &[&str]) -> Option<String> {
    let output = Command::new(binary).args(path).arg("--help").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_blocks_become_lines() {
        let text = "# Title\n```sh\nvidtune a --b \\\n  --c 1   # why\n# only a comment\ncargo xtask demo\n```\n```yaml\nvidtune: x\n```\n";
        assert_eq!(shell_lines(text), ["vidtune a --b --c 1", "cargo xtask demo"]);
    }

    #[test]
    fn the_readme_names_the_two_commands() {
        let text = fs::read_to_string(crate::process::root().join("README.md")).unwrap();
        let lines = shell_lines(&text);
        for command in ["cargo xtask demo", "cargo xtask test"] {
            assert!(lines.iter().any(|line| line == command), "{command}");
        }
        let gate = fs::read_to_string(crate::process::root().join(".ci/run")).unwrap();
        assert!(gate.trim_end().ends_with("exec cargo xtask test"));
    }
}
