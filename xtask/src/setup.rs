//! System packages that the build needs: what is missing, how to install it, and asking before it happens.
//! Everything is found by what it provides, so a compiler or an FFmpeg built by hand counts as installed.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::process::{self, Failure, Result};

/// Whether missing packages are installed or only named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Install, after asking where a person can be asked.
    Install,
    /// Print the command and stop.
    Print,
}

/// How a need is recognised as met.
enum Probe {
    /// A program of this name runs with `--version`.
    Program(&'static str),
    /// pkg-config knows this library.
    Library(&'static str),
    /// The shared libclang that bindgen loads.
    LibClang,
}

/// One thing that the build needs, with the package that brings it.
pub struct Need {
    probe: Probe,
    apt: &'static str,
    brew: &'static str,
}

/// What building and testing needs besides Rust.
pub const NEEDED: [Need; 9] = [
    Need { probe: Probe::Program("cc"), apt: "build-essential", brew: "" },
    Need { probe: Probe::Program("pkg-config"), apt: "pkg-config", brew: "pkg-config" },
    Need { probe: Probe::Program("clang"), apt: "clang", brew: "llvm" },
    Need { probe: Probe::LibClang, apt: "libclang-dev", brew: "llvm" },
    Need { probe: Probe::Library("libavcodec"), apt: "libavcodec-dev", brew: "ffmpeg" },
    Need { probe: Probe::Library("libavformat"), apt: "libavformat-dev", brew: "ffmpeg" },
    Need { probe: Probe::Library("libavutil"), apt: "libavutil-dev", brew: "ffmpeg" },
    Need { probe: Probe::Library("libswscale"), apt: "libswscale-dev", brew: "ffmpeg" },
    Need { probe: Probe::Library("libswresample"), apt: "libswresample-dev", brew: "ffmpeg" },
];

/// Takes `--no-install` out of the arguments.
pub fn mode(args: &[String]) -> (Mode, Vec<String>) {
    let rest: Vec<String> = args.iter().filter(|arg| *arg != "--no-install").cloned().collect();
    (if rest.len() == args.len() { Mode::Install } else { Mode::Print }, rest)
}

/// Says what a build costs before it starts; silent once something was built.
pub fn say_build_cost(profile: &str, cost: &str) {
    let built = crate::workspace::target_dir().is_ok_and(|dir| dir.join(profile).join("vidtune").exists());
    if !built {
        eprintln!("first build: {cost}");
    }
}

/// Checks the compiler, then brings in what is missing among `needs`.
pub fn run(mode: Mode, needs: &[Need]) -> Result<()> {
    check_compiler()?;
    let missing: Vec<&Need> = needs.iter().filter(|need| !is_met(&need.probe)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let Some(plan) = Plan::for_this_system(&missing) else {
        let names: Vec<&str> = missing.iter().map(|need| need.apt).collect();
        return Err(Failure::new(format!("missing: {}", names.join(", ")))
            .hint("those are Debian's names; install what provides them here, and run the command again"));
    };
    eprintln!("missing system packages: {}", plan.packages.join(" "));
    eprintln!("they are installed by: {}", plan.shown());
    eprintln!("cost: {}", plan.cost);
    if mode == Mode::Print {
        return Err(Failure::new("packages are missing, and `--no-install` was given")
            .hint(format!("run `{}`, then the same command again", plan.shown())));
    }
    plan.execute()?;
    let still: Vec<&str> = needs.iter().filter(|need| !is_met(&need.probe)).map(|need| need.apt).collect();
    if still.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!("installed, yet still not found: {}", still.join(", ")))
            .hint("is another pkg-config or clang first in PATH?"))
    }
}

/// The commands that install packages on this system, and who may run them.
struct Plan {
    packages: Vec<String>,
    steps: Vec<Vec<String>>,
    elevate: bool,
    cost: &'static str,
}

impl Plan {
    fn for_this_system(missing: &[&Need]) -> Option<Plan> {
        let collect = |name: fn(&Need) -> &'static str| {
            let mut packages: Vec<String> = Vec::new();
            for package in missing.iter().map(|need| name(need)).filter(|package| !package.is_empty()) {
                if !packages.iter().any(|known| known == package) {
                    packages.push(package.to_owned());
                }
            }
            packages
        };
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<String>>();
        if cfg!(target_os = "macos") {
            let packages = collect(|need| need.brew);
            if packages.is_empty() || !process::succeeds("brew", &["--version"]) {
                return None;
            }
            let mut install = words("brew install");
            install.extend(packages.iter().cloned());
            return Some(Plan {
                packages,
                steps: vec![install],
                elevate: false,
                cost: "a few minutes, about 2 GB of disk",
            });
        }
        if !process::succeeds("apt-get", &["--version"]) {
            return None;
        }
        let packages = collect(|need| need.apt);
        let mut install = words("apt-get install --yes --no-install-recommends");
        install.extend(packages.iter().cloned());
        Some(Plan {
            packages,
            steps: vec![words("apt-get update"), install],
            elevate: !is_root(),
            cost: "about 2 minutes, 300 MB to fetch, 1 GB of disk",
        })
    }

    fn shown(&self) -> String {
        let sudo = if self.elevate { "sudo " } else { "" };
        self.steps.iter().map(|step| format!("{sudo}{}", step.join(" "))).collect::<Vec<_>>().join(" && ")
    }

    fn execute(&self) -> Result<()> {
        let in_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
        let must_ask = self.elevate && !in_ci;
        if must_ask && !ask("install them now with sudo?", &self.shown())? {
            return Err(Failure::new("nothing was installed").hint(format!("run `{}` yourself", self.shown())));
        }
        for step in &self.steps {
            let mut words = step.clone();
            if self.elevate {
                let mut sudo = vec!["sudo".to_owned()];
                if in_ci {
                    // Without a person there is nobody to type a password.
                    sudo.push("-n".to_owned());
                }
                sudo.push("DEBIAN_FRONTEND=noninteractive".to_owned());
                sudo.append(&mut words);
                words = sudo;
            }
            let Some((program, args)) = words.split_first() else { continue };
            eprintln!("> {}", words.join(" "));
            let mut command = Command::new(program);
            // What a package manager prints is not this command's result.
            command.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
            process::run(&mut command).map_err(|failure| failure.hint(format!("run `{}` yourself", self.shown())))?;
        }
        Ok(())
    }
}

/// Asks a person; without a terminal this is a failure that names the command to run.
fn ask(question: &str, command: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new("packages are missing, and there is no terminal to ask for permission to use sudo")
            .hint(format!("run `{command}`, or set CI=1 where sudo needs no password")));
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush().map_err(|error| Failure::new(format!("cannot write to the terminal: {error}")))?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::new(format!("cannot read from the terminal: {error}")))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn is_met(probe: &Probe) -> bool {
    match probe {
        Probe::Program(name) => process::succeeds(name, &["--version"]),
        Probe::Library(name) => process::succeeds("pkg-config", &["--exists", name]),
        Probe::LibClang => has_libclang(),
    }
}

/// Looks where bindgen's loader looks: `LIBCLANG_PATH`, then the usual library folders.
fn has_libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some_and(|path| !path.is_empty()) {
        return true;
    }
    let holds = |dir: &Path| {
        std::fs::read_dir(dir).is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                name.starts_with("libclang.") || name.starts_with("libclang-")
            })
        })
    };
    let fixed = [
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/opt/homebrew/opt/llvm/lib",
        "/usr/local/opt/llvm/lib",
        "/Library/Developer/CommandLineTools/usr/lib",
    ];
    if fixed.iter().any(|dir| holds(Path::new(dir))) {
        return true;
    }
    std::fs::read_dir("/usr/lib").is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("llvm-") && holds(&entry.path().join("lib")))
    })
}

/// A compiler older than the workspace's `rust-version` is named before anything is built.
fn check_compiler() -> Result<()> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let text = process::capture(Command::new(rustc).arg("--version"))?;
    let wanted = env!("CARGO_PKG_RUST_VERSION");
    if is_at_least(&text, wanted) {
        return Ok(());
    }
    Err(Failure::new(format!("vidtune needs Rust {wanted} or newer, and this is `{}`", text.trim())).hint(
        "`rustup update stable`; a distribution's own Rust is often too old: https://rustup.rs brings the current one",
    ))
}

/// Whether `rustc 1.95.0 (..)` is at least `1.95`.
fn is_at_least(version_line: &str, wanted: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        text.split('.')
            .map(|part| part.chars().take_while(char::is_ascii_digit).collect::<String>())
            .map_while(|digits| digits.parse().ok())
            .collect()
    };
    let found = version_line.split_whitespace().nth(1).map(numbers).unwrap_or_default();
    found >= numbers(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiler_versions_are_compared_by_number() {
        assert!(is_at_least("rustc 1.95.0 (59807616e 2026-04-14)", "1.95"));
        assert!(is_at_least("rustc 1.100.2-nightly (abc 2026-10-01)", "1.95"));
        assert!(is_at_least("rustc 2.0.0", "1.95"));
        assert!(!is_at_least("rustc 1.63.0 (Debian)", "1.95"));
        assert!(!is_at_least("rustc 1.9.0", "1.95"));
        assert!(!is_at_least("garbage", "1.95"));
    }

    #[test]
    fn no_install_is_taken_out_of_the_arguments() {
        let args = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(mode(&args(&["--no-install", "--out", "x"])), (Mode::Print, args(&["--out", "x"])));
        assert_eq!(mode(&args(&["--out", "x"])), (Mode::Install, args(&["--out", "x"])));
    }

    #[test]
    fn every_need_names_its_debian_package_once_in_the_plan() {
        let all: Vec<&Need> = NEEDED.iter().collect();
        if let Some(plan) = Plan::for_this_system(&all) {
            let mut unique = plan.packages.clone();
            unique.dedup();
            assert_eq!(unique, plan.packages);
            assert!(plan.shown().contains(&plan.packages.join(" ")));
        }
    }
}
