//! What the figures were measured on: processor, memory, versions, date, how fast memory is read and products are made.
//! It measures no work.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::runs;
use crate::process::{self, Result};

/// The machine and the programs on it.
#[derive(Clone)]
pub struct Machine {
    processor: String,
    cores: usize,
    memory_gb: f64,
    system: String,
    date: String,
    revision: String,
    rustc: String,
    /// What `bench_machine.py` says; null without PyTorch.
    torch: Value,
}

impl Machine {
    /// Looks around, and measures bandwidth and products where PyTorch is there to do it.
    pub fn look(python: Option<&Path>, threads: usize) -> Result<Machine> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_once([':', '=']).map(|(_, value)| value.trim().trim_matches('"').to_owned())
        };
        let cpu = read("/proc/cpuinfo");
        let flags = field(&cpu, "flags").unwrap_or_default();
        let has = |name: &&str| flags.split_whitespace().any(|flag| flag == *name);
        let features: Vec<&str> = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"].into_iter().filter(has).collect();
        let model = field(&cpu, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let family = field(&cpu, "cpu family").map_or(String::new(), |family| format!(" family {family}"));
        let number = field(&cpu, "model\t").map_or(String::new(), |number| format!(" model {number}"));
        let kilobytes =
            field(&read("/proc/meminfo"), "MemTotal").and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
        let line = |program: &str, args: &[&str]| {
            let text = process::capture(Command::new(program).args(args).current_dir(process::root()));
            text.map(|text| text.trim().to_owned()).unwrap_or_default()
        };
        // What was built and run: pages of text do not change it, and this command writes one.
        let changed = !line("git", &["status", "--porcelain", "--untracked-files=no", "--", ".", ":!*.md"]).is_empty();
        let torch = match python {
            None => Value::Null,
            Some(python) => {
                let script = process::root().join("tools").join("oracle").join("bench_machine.py");
                let mut command = Command::new(python);
                runs::measure(command.arg(script).args(["--threads", &threads.to_string()]))?
            }
        };
        Ok(Machine {
            processor: format!("{model}{family}{number} ({})", features.join(", ")),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gb: kilobytes.unwrap_or(0.0) * 1024.0 / 1e9,
            system: field(&read("/etc/os-release"), "PRETTY_NAME").unwrap_or_else(|| std::env::consts::OS.to_owned()),
            date: line("date", &["-u", "+%Y-%m-%d"]),
            revision: line("git", &["rev-parse", "--short", "HEAD"]) + if changed { "-dirty" } else { "" },
            rustc: line("rustc", &["--version"]),
            torch,
        })
    }

    /// The best rate at which memory was read, in bytes a second.
    pub fn bandwidth(&self) -> Option<f64> {
        let rates = self.torch.get("read_bytes_per_s")?.as_object()?;
        rates.values().filter_map(Value::as_f64).max_by(f64::total_cmp)
    }

    /// One paragraph for the page.
    pub fn describe(&self, threads: usize) -> String {
        let versions = self.torch.get("versions").and_then(Value::as_object);
        let versions = versions.map(|versions| {
            let known = versions.iter().filter_map(|(name, version)| Some(format!("{name} {}", version.as_str()?)));
            known.collect::<Vec<_>>().join(", ")
        });
        let bandwidth = self.bandwidth().map(|rate| format!(" Memory is read at {:.1} GB/s.", rate / 1e9));
        let product = |dtype| Some(self.torch.get("gemm_flops_per_s")?.get(dtype)?.as_f64()? / 1e9);
        let products = product("f32").zip(product("bf16")).map(|(single, half)| {
            format!(" PyTorch multiplies squares of 2048 at {single:.0} GFLOP/s in f32 and {half:.0} in bf16.")
        });
        format!(
            "{}, {}, {} cores, {:.0} GB, {}; {threads} threads; vidtune {}, {}; {}.{}{}",
            self.date,
            self.processor,
            self.cores,
            self.memory_gb,
            self.system,
            self.revision,
            self.rustc,
            versions.unwrap_or_else(|| "PyTorch was not there, its column is left out".to_owned()),
            bandwidth.unwrap_or_default(),
            products.unwrap_or_default(),
        )
    }

    /// The same for the results file.
    pub fn to_json(&self) -> Value {
        json!({
            "processor": self.processor,
            "cores": self.cores,
            "memory_gb": self.memory_gb,
            "system": self.system,
            "date": self.date,
            "revision": self.revision,
            "rustc": self.rustc,
            "torch": self.torch,
        })
    }
}

/// What else runs on the machine, as its load average says.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .filter(|load| !load.is_empty())
        .map_or(String::new(), |load| format!("Load average before: {load}."))
}
