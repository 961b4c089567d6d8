//! Running measured programs: one at a time, in alternation, with the largest resident size of each.
//! It knows nothing of what they compute; a program's last line of JSON is its result.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::{Failure, Result};

/// How often a running program's largest size is read.
const POLL: Duration = Duration::from_millis(10);

/// How many lines of a failed program's messages are shown.
const SHOWN_LINES: usize = 12;

/// Runs a program and gives the JSON object of its last line of output, else of its last message, with `wall_s` and
/// `resident_peak_bytes` added. A program that prints no JSON gives an object with those two alone.
pub fn measure(command: &mut Command) -> Result<Value> {
    let shown = super::shown(command);
    let begin = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::new(format!("`{shown}` did not start: {error}")))?;
    let (out, err) = (child.stdout.take().map(drain), child.stderr.take().map(drain));
    let mut peak = None;
    let status = loop {
        peak = resident_peak(child.id()).or(peak);
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => thread::sleep(POLL),
            Err(error) => return Err(Failure::new(format!("cannot wait for `{shown}`: {error}"))),
        }
    };
    let wall_s = begin.elapsed().as_secs_f64();
    let text = |reader: Option<thread::JoinHandle<String>>| reader.and_then(|r| r.join().ok()).unwrap_or_default();
    let (out, err) = (text(out), text(err));
    if !status.success() {
        let lines: Vec<&str> = err.lines().collect();
        let tail = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n  ");
        return Err(Failure::new(format!("`{shown}` failed ({status}):\n  {tail}")));
    }
    let object = |line| serde_json::from_str::<Value>(line).ok().filter(Value::is_object);
    let mut result = out.lines().rev().chain(err.lines().rev()).find_map(object).unwrap_or(json!({}));
    result["wall_s"] = json!(wall_s);
    result["resident_peak_bytes"] = json!(peak);
    Ok(result)
}

/// One program, or one way of running it, with the work that measures it once.
pub struct Contender<'a> {
    name: String,
    run: Box<dyn Fn() -> Result<Value> + 'a>,
}

impl<'a> Contender<'a> {
    /// A contender; `run` measures it once.
    pub fn new(name: impl Into<String>, run: impl Fn() -> Result<Value> + 'a) -> Contender<'a> {
        Contender { name: name.into(), run: Box::new(run) }
    }

    /// A contender that is one command; none where there is no such command.
    pub fn command(name: impl Into<String>, make: impl Fn() -> Option<Command> + 'a) -> Option<Contender<'a>> {
        make()?;
        Some(Contender::new(name, move || make().map_or(Ok(Value::Null), |mut command| measure(&mut command))))
    }
}

/// What every contender gave, by name, in the order of the rounds.
pub struct Outcomes(Vec<(String, Vec<Value>)>);

/// Every contender once a round, one after the other, so that all of them meet the same changes of the machine.
pub fn alternate(rounds: usize, contenders: &[Contender]) -> Result<Outcomes> {
    let mut found: Vec<(String, Vec<Value>)> = contenders.iter().map(|one| (one.name.clone(), Vec::new())).collect();
    for round in 1..=rounds {
        for (contender, (name, values)) in contenders.iter().zip(&mut found) {
            let begin = Instant::now();
            values.push((contender.run)()?);
            eprintln!("  round {round} of {rounds}: {name} ({:.1} s)", begin.elapsed().as_secs_f64());
        }
    }
    Ok(Outcomes(found))
}

impl Outcomes {
    /// A field of every round of a contender; empty where it did not run or has no such field.
    pub fn all(&self, name: &str, field: &str) -> Vec<f64> {
        let runs = self.0.iter().filter(|(known, _)| known == name).flat_map(|(_, values)| values);
        runs.filter_map(|value| value.get(field).and_then(Value::as_f64)).collect()
    }

    /// The median of a field.
    pub fn median(&self, name: &str, field: &str) -> Option<f64> {
        median(&self.all(name, field))
    }

    /// Takes in what other contenders gave in rounds of their own.
    pub fn join(&mut self, other: Outcomes) {
        self.0.extend(other.0);
    }

    /// The first round of a contender.
    pub fn first(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| known == name).and_then(|(_, values)| values.first())
    }

    /// Everything, for the results file.
    pub fn to_json(&self) -> Value {
        Value::Object(self.0.iter().map(|(name, values)| (name.clone(), json!(values))).collect())
    }
}

/// The median; of an even number the mean of the middle two.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks ends the text; the exit status says what happened.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The largest resident size of a running process so far, where the system tells it.
fn resident_peak(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn contenders_take_turns() {
        let order = RefCell::new(String::new());
        let one = |name: &'static str, value: f64| {
            let order = &order;
            Contender::new(name, move || {
                order.borrow_mut().push_str(name);
                Ok(json!({ "s": value }))
            })
        };
        let outcomes = alternate(3, &[one("a", 1.0), one("b", 2.0)]).unwrap();
        assert_eq!(*order.borrow(), "ababab");
        assert_eq!(outcomes.all("b", "s"), [2.0; 3]);
        assert_eq!(outcomes.median("a", "s"), Some(1.0));
        assert_eq!(outcomes.median("c", "s"), None);
        assert!(outcomes.all("a", "other").is_empty());
    }

    #[test]
    fn a_program_gives_its_last_object() {
        let script = "echo noise; echo '{\"x\": 1}'; echo '{\"x\": 2}'; echo more noise";
        let value = measure(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!(value["x"], 2);
        assert!(value["wall_s"].as_f64().is_some_and(|s| s > 0.0));
        let messages = "echo '{\"x\": 3}' >&2; echo more noise >&2; echo 7";
        assert_eq!(measure(Command::new("sh").args(["-c", messages])).unwrap()["x"], 3);
        let failure = measure(Command::new("sh").args(["-c", "echo reason >&2; exit 3"])).unwrap_err();
        assert!(failure.message.contains("reason"), "{}", failure.message);
    }
}
