//! `cargo xtask bench`: the release binary beside PyTorch in one run, on as many threads, in alternation; a page of the
//! medians with their aims and floors. It owns options, the list of works and where results go; each work is a file.

mod machine;
mod runs;
mod scaling;
mod steps;
mod table;
mod text;
mod video;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use crate::process::{self, Failure, Result};
use crate::{setup, workspace};
use machine::Machine;
use table::Section;

/// A work: its name, one line about it, what measures it.
struct Work {
    name: &'static str,
    about: &'static str,
    run: fn(&Bench) -> Result<Section>,
}

const WORKS: [Work; 7] = [
    Work { name: "step-bf16", about: "decoder step, full and LoRA, beside bf16 autocast", run: steps::bf16 },
    Work { name: "step-f32", about: "the same in f32", run: steps::f32 },
    Work { name: "llava", about: "LLaVA step on 8 frames beside transformers and peft", run: video::llava },
    Work { name: "clips", about: "from mp4 files to optimizer steps, samples a second", run: video::clips },
    Work { name: "score", about: "32 packed samples of mixed length beside a padded batch", run: text::score },
    Work { name: "generate", about: "greedy generation of 256 tokens", run: text::generate },
    Work { name: "scaling", about: "threads, sequence length, frames (ours alone)", run: scaling::run },
];

/// Everything that a work needs to know.
pub struct Bench {
    binary: PathBuf,
    /// A Python that has torch.
    python: Option<PathBuf>,
    quick: bool,
    threads: usize,
    /// Checkpoints, data and runs.
    dir: PathBuf,
    machine: Machine,
}

struct Options {
    binary: Option<PathBuf>,
    python: Option<PathBuf>,
    only: Vec<String>,
    quick: bool,
    threads: usize,
    dir: Option<PathBuf>,
    out: Option<PathBuf>,
    docs: Option<PathBuf>,
    no_docs: bool,
}

/// Runs the works that were asked for.
pub fn run(args: &[String]) -> Result<()> {
    let (mode, rest) = setup::mode(args);
    if rest.iter().any(|arg| arg == "--help" || arg == "-h") {
        println!("{}", usage());
        return Ok(());
    }
    let options = parse(&rest)?;
    let works: Vec<&Work> = WORKS
        .iter()
        .filter(|work| options.only.is_empty() || options.only.iter().any(|name| name == work.name))
        .collect();
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => {
            setup::run(mode, &setup::NEEDED)?;
            setup::say_build_cost("release", "3 to 8 minutes on 2 cores and 2 GB of disk");
            process::cargo(&["build", "--release", "--package", "cli"])?;
            workspace::target_dir()?.join("release").join("vidtune")
        }
    };
    let dir = match &options.dir {
        Some(dir) => dir.clone(),
        None => workspace::target_dir()?.join("bench"),
    };
    fs::create_dir_all(&dir).map_err(|error| cannot("create", &dir, &error))?;
    let python = find_python(options.python.as_deref());
    let machine = Machine::look(python.as_deref(), options.threads)?;
    // Without PyTorch there is nothing to compare: the page keeps what it has unless it was named.
    let keep = options.quick || (python.is_none() && options.docs.is_none());
    let docs = options.docs.or_else(|| Some(process::root().join("docs").join("bench.md")));
    let docs = docs.filter(|_| !keep && !options.no_docs);
    let bench = Bench { binary, python, quick: options.quick, threads: options.threads, dir, machine };
    let begin = Instant::now();
    let mut sections = Vec::new();
    for work in works {
        eprintln!("{}: {}", work.name, work.about);
        let start = Instant::now();
        let load = machine::load();
        let section = (work.run)(&bench)?;
        let seconds = start.elapsed().as_secs();
        eprintln!("{}: {seconds} s", work.name);
        let place = format!("{} {load} This part took {seconds} s.", bench.machine.describe(bench.threads));
        let body = section.to_markdown(&place);
        eprintln!("\n{body}");
        if let Some(docs) = &docs {
            let page = fs::read_to_string(docs).map_err(|error| cannot("read", docs, &error))?;
            fs::write(docs, table::replace(&page, section.name, &body))
                .map_err(|error| cannot("write", docs, &error))?;
        }
        sections.push(section.to_json());
    }
    eprintln!("all of it: {} s", begin.elapsed().as_secs());
    let results = json!({
        "machine": bench.machine.to_json(),
        "threads": bench.threads,
        "quick": bench.quick,
        "seconds": begin.elapsed().as_secs(),
        "sections": sections,
    });
    write_results(options.out.as_deref(), &results)
}

fn usage() -> String {
    let mut text = "cargo xtask bench [--only NAME,..] [--quick] [--python PATH] [--binary PATH] [--threads N] [--dir DIR] [--out FILE] [--docs FILE|--no-docs]\n".to_owned();
    for work in &WORKS {
        text += &format!("\n  {:<10} {}", work.name, work.about);
    }
    text + "\n\n--python names a Python with torch, transformers, peft, torchcodec and PyAV (python3 otherwise); without one only vidtune is measured,\n\
        and the page stays as it is unless --docs names one.\n\
        --quick takes fewer rounds and leaves the page alone; --binary measures a binary that is there instead of building one.\n\
        Checkpoints and clips are made once in --dir (target/bench); results go to --out or stdout, and to docs/bench.md."
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options {
        binary: None,
        python: None,
        only: Vec::new(),
        quick: false,
        threads: 2,
        dir: None,
        out: None,
        docs: None,
        no_docs: false,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .cloned()
                .ok_or_else(|| Failure::new(format!("`{arg}` needs a value")).hint("`cargo xtask bench --help`"))
        };
        match arg.as_str() {
            "--quick" => options.quick = true,
            "--no-docs" => options.no_docs = true,
            "--binary" => options.binary = Some(value()?.into()),
            "--python" => options.python = Some(value()?.into()),
            "--dir" => options.dir = Some(value()?.into()),
            "--out" => options.out = Some(value()?.into()),
            "--docs" => options.docs = Some(value()?.into()),
            "--threads" => {
                let text = value()?;
                let threads = text.parse().ok().filter(|threads| *threads > 0);
                options.threads =
                    threads.ok_or_else(|| Failure::new(format!("`--threads {text}`: expected a number above 0")))?;
            }
            "--only" => {
                for name in value()?.split(',') {
                    if !WORKS.iter().any(|work| work.name == name) {
                        let known: Vec<&str> = WORKS.iter().map(|work| work.name).collect();
                        return Err(Failure::new(format!("there is no work `{name}`"))
                            .hint(format!("the works are {}", known.join(", "))));
                    }
                    options.only.push(name.to_owned());
                }
            }
            _ => {
                return Err(Failure::new(format!("`cargo xtask bench` does not know `{arg}`"))
                    .hint("`cargo xtask bench --help` lists its options"));
            }
        }
    }
    Ok(options)
}

/// The Python that was named, or the one in PATH, if it has torch; says on stderr when there is none.
fn find_python(named: Option<&Path>) -> Option<PathBuf> {
    let python = named.map_or_else(|| PathBuf::from("python3"), Path::to_path_buf);
    if process::succeeds(&python.to_string_lossy(), &["-c", "import torch"]) {
        return Some(python);
    }
    eprintln!("note: `{}` has no torch: PyTorch is left out; name another with --python", python.display());
    None
}

impl Bench {
    /// The binary under test with its number of threads, as a command to add to.
    fn vidtune(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).args(["--threads", &self.threads.to_string()]);
        command
    }

    /// A script of tools/oracle, where there is a Python with torch.
    fn script(&self, name: &str, args: &[&str]) -> Option<Command> {
        let mut command = Command::new(self.python.as_ref()?);
        command.arg(process::root().join("tools").join("oracle").join(name)).args(args);
        Some(command)
    }

    /// The same with the number of threads.
    fn torch(&self, name: &str, args: &[&str]) -> Option<Command> {
        let mut command = self.script(name, args)?;
        command.args(["--threads", &self.threads.to_string()]);
        Some(command)
    }

    /// Checkpoints and data of `bench_make.py`; a failure without Python, unless an earlier run made them.
    fn made(&self) -> Result<()> {
        match self.script("bench_make.py", &[&self.dir.to_string_lossy()]) {
            Some(mut command) => {
                runs::measure(&mut command)?;
                Ok(())
            }
            None if self.dir.join("made.txt").exists() => Ok(()),
            None => Err(Failure::new("the checkpoints and clips of this work are made by tools/oracle/bench_make.py")
                .hint("name a Python with torch and transformers with --python, or measure with --only step-bf16,step-f32,scaling")),
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.dir.join(name);
        fs::write(&path, text).map_err(|error| cannot("write", &path, &error))?;
        Ok(self.path(name))
    }

    /// `full` rounds, or one when it shall be quick.
    fn rounds(&self, full: usize) -> usize {
        if self.quick { 1 } else { full }
    }
}

/// A command as a reader would type it: programs and scripts by their names, folders of this machine left out.
fn shown(command: &Command) -> String {
    let base = |text: &str| text.rsplit('/').next().unwrap_or(text).to_owned();
    let runs_script = command.get_args().any(|arg| arg.to_string_lossy().ends_with(".py"));
    let program = if runs_script { "python".to_owned() } else { base(&command.get_program().to_string_lossy()) };
    let short = |arg: std::borrow::Cow<str>| {
        if let Some(at) = arg.find("tools/oracle/") {
            return arg[at..].to_owned();
        }
        match arg.find("/bench/") {
            Some(at) if arg.starts_with('/') => format!("BENCH/{}", &arg[at + "/bench/".len()..]),
            _ if arg.starts_with('/') => base(&arg).to_uppercase(),
            _ => arg.into_owned(),
        }
    };
    let args = command.get_args().map(|arg| short(arg.to_string_lossy()));
    std::iter::once(program).chain(args).collect::<Vec<_>>().join(" ")
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot {what} `{}`: {error}", path.display()))
}

fn write_results(out: Option<&Path>, results: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(results).map_err(|error| Failure::new(error.to_string()))?;
    match out {
        Some(path) => fs::write(path, text + "\n").map_err(|error| cannot("write", path, &error)),
        None => {
            println!("{text}");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_known_or_refused() {
        let given = options("--only llava,score --only clips --threads 4 --python /p --out o.json --no-docs").unwrap();
        assert_eq!(given.only, ["llava", "score", "clips"]);
        assert_eq!((given.threads, given.no_docs, given.quick), (4, true, false));
        let refused = |line: &str| options(line).err().unwrap().message;
        assert!(refused("--only lava").contains("`lava`"));
        assert!(refused("--threads 0").contains("`--threads 0`"));
        assert!(refused("--python").contains("needs a value"));
        assert!(refused("--fast").contains("`--fast`"));
    }

    #[test]
    fn commands_are_shown_without_folders_of_this_machine() {
        let mut command = Command::new("/a/b/vidtune");
        command.args(["bench", "step", "--config", "/x/target/bench/decoder.json", "--seq", "8"]);
        assert_eq!(shown(&command), "vidtune bench step --config BENCH/decoder.json --seq 8");
        let mut script = Command::new("/venv/bin/python3.11");
        script.args(["/repo/tools/oracle/bench_text.py", "score", "/x/bench"]);
        assert_eq!(shown(&script), "python tools/oracle/bench_text.py score BENCH");
    }

    #[test]
    fn every_work_has_a_place_on_the_page() {
        let page = fs::read_to_string(process::root().join("docs").join("bench.md")).unwrap();
        for work in &WORKS {
            assert!(page.contains(&format!("<!-- bench:{} -->", work.name)), "{}", work.name);
        }
    }
}
