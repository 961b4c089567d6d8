//! Every package of the dependency graph must be offered under a licence that a permissive binary can carry.

use crate::workspace::Package;

/// SPDX names that we accept; `deny.toml` holds the same list.
const ALLOWED: [&str; 16] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "WTFPL",
    "Zlib",
];

/// Packages without an accepted licence.
pub fn offences(packages: &[Package]) -> Vec<String> {
    let refused = packages.iter().filter(|package| !package.license.as_deref().is_some_and(is_allowed));
    refused
        .map(|package| {
            let license = package.license.as_deref().unwrap_or("none stated");
            format!("`{} {}` has a licence that is not on the list: {license}", package.name, package.version)
        })
        .collect()
}

/// Whether an SPDX expression can be satisfied by the list: one side of `OR`, both sides of `AND`.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    either(&words, &mut at) == Some(true) && at == words.len()
}

/// `None` from here on down: not an expression.
fn either(words: &[&str], at: &mut usize) -> Option<bool> {
    let mut result = both(words, at)?;
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        result |= both(words, at)?;
    }
    Some(result)
}

fn both(words: &[&str], at: &mut usize) -> Option<bool> {
    let mut result = one(words, at)?;
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        result &= one(words, at)?;
    }
    Some(result)
}

fn one(words: &[&str], at: &mut usize) -> Option<bool> {
    let word = *words.get(*at)?;
    *at += 1;
    if word == "(" {
        let result = either(words, at)?;
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return closed.then_some(result);
    }
    let mut name = word.to_owned();
    if words.get(*at) == Some(&"WITH") {
        name = format!("{word} WITH {}", words.get(*at + 1)?);
        *at += 2;
    }
    Some(ALLOWED.contains(&name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read_with_their_precedence() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
            "GPL-3.0 AND MIT OR ISC",
        ] {
            assert!(is_allowed(good), "{good}");
        }
        for bad in
            ["GPL-3.0", "MIT AND GPL-3.0", "MIT AND (GPL-3.0 OR AGPL-3.0)", "", "MIT OR", "(MIT", "MIT WITH Strange"]
        {
            assert!(!is_allowed(bad), "{bad}");
        }
    }

    #[test]
    fn every_dependency_is_allowed() {
        assert_eq!(offences(&crate::workspace::packages().unwrap()), Vec::<String>::new());
    }

    #[test]
    fn deny_toml_holds_the_same_list() {
        let text = std::fs::read_to_string(crate::process::root().join("deny.toml")).unwrap();
        let list = text.split("allow = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap();
        let names: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
        assert_eq!(names, ALLOWED);
    }
}
