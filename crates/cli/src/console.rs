//! Everything that is not data: messages and progress on stderr, for people or as JSON lines. Owns verbosity and the
//! terminal line that redraws itself.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::args::{Common, LogFormat};

/// How much a message matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Only with `-v`.
    Debug,
    /// Unless `-q`.
    Info,
    /// Unless `-qq`.
    Warning,
    /// Always.
    Error,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// Where messages go.
pub struct Console {
    format: LogFormat,
    least: Level,
    is_terminal: bool,
    /// A progress line stands on the terminal and has to go before anything else is written.
    line_open: AtomicBool,
}

impl Console {
    /// A console as the common flags ask for it.
    pub fn new(common: &Common) -> Console {
        let least = match i16::from(common.verbose) - i16::from(common.quiet) {
            ..=-2 => Level::Error,
            -1 => Level::Warning,
            0 => Level::Info,
            1.. => Level::Debug,
        };
        Console {
            format: common.log_format,
            least,
            is_terminal: io::stderr().is_terminal(),
            line_open: AtomicBool::new(false),
        }
    }

    /// A line that only `-v` shows.
    pub fn debug(&self, message: &str) {
        self.message(Level::Debug, message, None);
    }

    /// A line about what happens.
    pub fn info(&self, message: &str) {
        self.message(Level::Info, message, None);
    }

    /// A line about something that may need attention.
    pub fn warning(&self, message: &str) {
        self.message(Level::Warning, message, None);
    }

    /// A message of a level with an optional hint.
    pub fn message(&self, level: Level, message: &str, hint: Option<&str>) {
        if level < self.least {
            return;
        }
        if self.format == LogFormat::Json {
            let mut line = json!({"level": level.word(), "message": message});
            if let Some(hint) = hint {
                line["hint"] = json!(hint);
            }
            self.write(&format!("{line}\n"));
            return;
        }
        let mark = match level {
            Level::Info => "",
            Level::Debug => "debug: ",
            Level::Warning => "warning: ",
            Level::Error => "error: ",
        };
        let hint = hint.map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
        self.write(&format!("{mark}{message}\n{hint}"));
    }

    /// A structured event: one JSON line under `--log-format json`, else `text`.
    pub fn event(&self, name: &str, fields: Value, text: impl FnOnce() -> Option<String>) {
        if Level::Info < self.least {
            return;
        }
        if self.format == LogFormat::Json {
            let mut line = json!({"level": "info", "event": name});
            if let (Some(line), Value::Object(fields)) = (line.as_object_mut(), fields) {
                line.extend(fields);
            }
            self.write(&format!("{line}\n"));
        } else if let Some(text) = text() {
            self.write(&format!("{text}\n"));
        }
    }

    /// Redraws the progress line; nothing where there is no terminal or no one reads it.
    pub fn progress(&self, text: &str) {
        if self.is_terminal && self.format == LogFormat::Text && self.least <= Level::Info {
            let mut err = io::stderr().lock();
            // A terminal that is gone is not worth an error.
            let _ = write!(err, "\r\x1b[2K{text}").and_then(|()| err.flush());
            self.line_open.store(true, Ordering::Relaxed);
        }
    }

    /// Takes the progress line away.
    pub fn clear(&self) {
        self.write("");
    }

    /// Whether progress is drawn on a terminal.
    pub fn draws(&self) -> bool {
        self.is_terminal && self.format == LogFormat::Text
    }

    fn write(&self, text: &str) {
        let mut err = io::stderr().lock();
        let clear = if self.line_open.swap(false, Ordering::Relaxed) { "\r\x1b[2K" } else { "" };
        // As above.
        let _ = write!(err, "{clear}{text}").and_then(|()| err.flush());
    }
}

/// A count on its way to a total, drawn at most ten times a second.
pub struct Counter<'a> {
    console: &'a Console,
    what: &'a str,
    started: Instant,
    drawn: Option<Instant>,
}

impl<'a> Counter<'a> {
    /// A counter of `what`, such as `records`.
    pub fn new(console: &'a Console, what: &'a str) -> Counter<'a> {
        Counter { console, what, started: Instant::now(), drawn: None }
    }

    /// Shows `done` of `total`, with the time left at this pace.
    pub fn at(&mut self, done: u64, total: u64) {
        let now = Instant::now();
        if done < total && self.drawn.is_some_and(|drawn| now - drawn < Duration::from_millis(100)) {
            return;
        }
        self.drawn = Some(now);
        if done >= total {
            self.console.clear();
            return;
        }
        let spent = self.started.elapsed().as_secs_f64();
        let left = if done > 0 { duration(spent / done as f64 * (total - done) as f64) } else { "?".to_owned() };
        self.console.progress(&format!("{done}/{total} {} [{} left]", self.what, left));
    }
}

/// Seconds as people read them: `4.2 s`, `3 min 05 s`, `2 h 07 min`.
pub fn duration(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole / 3600 {
        0 => format!("{} min {:02} s", whole / 60, whole % 60),
        hours => format!("{hours} h {:02} min", whole % 3600 / 60),
    }
}

/// Bytes as people read them, in decimal units.
pub fn bytes(count: u64) -> String {
    let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.iter().find(|(_, size)| count as f64 >= *size) {
        Some((unit, size)) => format!("{:.2} {unit}", count as f64 / size),
        None => format!("{count} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(duration(4.21), "4.2 s");
        assert_eq!(duration(185.0), "3 min 05 s");
        assert_eq!(duration(7620.0), "2 h 07 min");
        assert_eq!(bytes(12), "12 B");
        assert_eq!(bytes(2_150_000_000), "2.15 GB");
    }
}
