//! Rules about the text of the sources: length, first line, tests that run, unsafe code that says why, no Python in tests.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::{Failure, Result};

/// A longer file holds more than one concept.
const MAX_LINES: usize = 800;

/// How many lines above an `unsafe` its reason may begin (attributes and a wrapped statement lie between).
const SAFETY_REACH: usize = 12;

/// Every offence in every Rust file of `crates/` and `xtask/`.
pub fn offences(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in ["crates", "xtask"] {
        collect(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut offences = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)
            .map_err(|error| Failure::new(format!("cannot read `{}`: {error}", file.display())))?;
        let shown = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        offences.extend(check(&text).into_iter().map(|offence| format!("{shown}: {offence}")));
    }
    Ok(offences)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let cannot = |error| Failure::new(format!("cannot list `{}`: {error}", folder.display()));
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// What one file does wrong.
fn check(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut offences = Vec::new();
    if !lines.first().is_some_and(|line| line.starts_with("//! ")) {
        offences.push("the first line must be `//! ` and say what the file owns".to_owned());
    }
    if lines.len() > MAX_LINES {
        offences.push(format!("{} lines; at most {MAX_LINES}", lines.len()));
    }
    // The patterns are put together here so that this file does not offend itself.
    let ignored = ["#[", "ignore"].concat();
    let dead = ["allow(", "dead_code"].concat();
    let python = ["Command::new(\"", "python"].concat();
    for (index, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        let number = index + 1;
        if code.starts_with(&ignored) {
            offences.push(format!("line {number}: a test that does not run"));
        }
        if code.contains(&dead) {
            offences.push(format!("line {number}: code that nothing uses"));
        }
        if code.contains(&python) {
            offences.push(format!("line {number}: nothing here may run Python"));
        }
        if opens_unsafe(code) && !has_reason(&lines, index) {
            offences.push(format!("line {number}: `unsafe` without a `SAFETY:` comment above it"));
        }
    }
    offences
}

/// Whether a line of code opens an unsafe block or implements an unsafe trait.
fn opens_unsafe(code: &str) -> bool {
    let mut rest = code;
    while let Some(at) = rest.find("unsafe") {
        let before = rest[..at].chars().next_back();
        let after = rest[at + "unsafe".len()..].trim_start();
        let is_word = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '"' || c == '`');
        if is_word && (after.starts_with('{') || after.starts_with("impl")) {
            return true;
        }
        rest = &rest[at + "unsafe".len()..];
    }
    false
}

fn has_reason(lines: &[&str], index: usize) -> bool {
    let first = index.saturating_sub(SAFETY_REACH);
    lines[first..=index].iter().any(|line| line.contains("SAFETY:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(text: &str, expected: &[&str]) {
        assert_eq!(check(text), expected, "{text}");
    }

    #[test]
    fn a_file_says_what_it_owns() {
        check_one("//! Owns nothing.\n", &[]);
        check_one("fn main() {}\n", &["the first line must be `//! ` and say what the file owns"]);
        check_one("", &["the first line must be `//! ` and say what the file owns"]);
    }

    #[test]
    fn a_file_ends_before_it_is_too_long() {
        check_one(&format!("//! Long.\n{}", "\n".repeat(MAX_LINES - 1)), &[]);
        check_one(&format!("//! Long.\n{}", "\n".repeat(MAX_LINES)), &["801 lines; at most 800"]);
    }

    #[test]
    fn unsafe_code_says_why() {
        check_one("//! A.\n// SAFETY: the pointer is ours.\nlet x = unsafe { *p };\n", &[]);
        check_one("//! A.\nlet x = unsafe { *p };\n", &["line 2: `unsafe` without a `SAFETY:` comment above it"]);
        check_one("//! A.\nunsafe impl Send for A {}\n", &["line 2: `unsafe` without a `SAFETY:` comment above it"]);
        check_one("//! A.\n// an unsafe { in a comment\npub unsafe fn f() {}\n", &[]);
    }

    #[test]
    fn tests_run_and_run_no_python() {
        let ignored = ["#[", "ignore]"].concat();
        check_one(&format!("//! A.\n{ignored}\nfn a() {{}}\n"), &["line 2: a test that does not run"]);
        let python = ["Command::new(\"", "python3\")"].concat();
        check_one(&format!("//! A.\n{python};\n"), &["line 2: nothing here may run Python"]);
    }

    #[test]
    fn this_repository_is_tidy() {
        assert_eq!(offences(&crate::process::root()).unwrap(), Vec::<String>::new());
    }
}
