//! What cargo knows about the workspace: packages, their dependencies and licences, the target folder.

use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::Value;

use crate::process::{self, Failure, Result};

/// One package of the dependency graph.
pub struct Package {
    /// Its name in the registry or in the workspace.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its SPDX licence expression.
    pub license: Option<String>,
    /// Whether it belongs to this workspace.
    pub is_member: bool,
    /// What it names in its manifest, of every kind and for every platform.
    pub dependencies: Vec<Dependency>,
}

/// A line in a manifest's dependency table.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct Dependency {
    /// The package's name, not the name it is renamed to.
    pub name: String,
    /// Whether it is a path inside the workspace.
    pub is_local: bool,
}

/// `cargo metadata` of the host platform, read once.
pub fn packages() -> Result<Vec<Package>> {
    let metadata = metadata()?;
    let members: Vec<&str> = list(metadata, "workspace_members").iter().filter_map(Value::as_str).collect();
    Ok(list(metadata, "packages").iter().map(|package| read_package(package, &members)).collect())
}

/// Where cargo builds.
pub fn target_dir() -> Result<PathBuf> {
    let metadata = metadata()?;
    let dir = metadata.get("target_directory").and_then(Value::as_str);
    dir.map(PathBuf::from).ok_or_else(|| Failure::new("`cargo metadata` names no target folder"))
}

fn metadata() -> Result<&'static Value> {
    static METADATA: OnceLock<Value> = OnceLock::new();
    if let Some(value) = METADATA.get() {
        return Ok(value);
    }
    let mut command = process::cargo_command();
    command.args(["metadata", "--format-version", "1", "--filter-platform", &host()?]);
    let text = process::capture(&mut command)?;
    let value = serde_json::from_str(&text)
        .map_err(|error| Failure::new(format!("`cargo metadata` printed something that is not JSON: {error}")))?;
    Ok(METADATA.get_or_init(|| value))
}

/// The platform that the compiler builds for.
pub fn host() -> Result<String> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let text = process::capture(std::process::Command::new(rustc).arg("-vV"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| Failure::new("`rustc -vV` names no host"))
}

fn read_package(package: &Value, members: &[&str]) -> Package {
    let text = |key: &str| package.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let dependencies = list(package, "dependencies").iter().map(|dependency| Dependency {
        name: dependency.get("name").and_then(Value::as_str).unwrap_or_default().to_owned(),
        is_local: dependency.get("path").is_some_and(Value::is_string),
    });
    let mut dependencies: Vec<Dependency> = dependencies.collect();
    dependencies.sort();
    dependencies.dedup();
    Package {
        name: text("name"),
        version: text("version"),
        license: package.get("license").and_then(Value::as_str).map(str::to_owned),
        is_member: members.contains(&text("id").as_str()),
        dependencies,
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}
