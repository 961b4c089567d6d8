//! The profile of a run as a table for people. The figures and their meaning are `train::profile`'s.

use std::fmt::Write;
use std::path::Path;

use train::profile::{PROFILE_JSON, Profile, Row};

/// What stands inside of a step.
const PARTS: [&str; 5] = ["data", "forward", "backward", "optimizer", "other"];

/// The table, the rates and the memory of a profile whose files stand in `dir`.
pub fn text_of(profile: &Profile, dir: &Path) -> String {
    let steps = &profile.steps;
    let left_out = match steps.left_out {
        0 => String::new(),
        count => format!(", the first {count} left out as warm-up"),
    };
    let before = match steps.before {
        0 => String::new(),
        count => format!(" (the {count} before it were another process's)"),
    };
    let mut text = format!("\nprofile of steps {} to {}{before}{left_out}\n", steps.first, steps.last);
    let _ = writeln!(
        text,
        "{:<14} {:>6} {:>10} {:>10} {:>10} {:>10} {:>7}",
        "", "count", "mean", "median", "p95", "total", "share"
    );
    for row in &profile.phases {
        let _ = writeln!(text, "{}", line(row));
    }
    let _ = writeln!(
        text,
        "{:.0} tokens/s ({:.0} text, {:.0} visual; {:.0} supervised), {:.2} samples/s, {:.2} frames/s",
        profile.tokens_per_second,
        profile.text_tokens_per_second,
        profile.visual_tokens_per_second,
        profile.supervised_tokens_per_second,
        profile.samples_per_second,
        profile.frames_per_second
    );
    let recomputed = match profile.recomputed_flops_total {
        0 => String::new(),
        _ => format!(", {:.1} % with recomputation", 100.0 * profile.hfu),
    };
    let _ = writeln!(
        text,
        "{:.1} GFLOP/s; MFU {:.1} % of the {:.1} GFLOP/s of a large product here{recomputed}",
        profile.flops_per_second / 1e9,
        100.0 * profile.mfu,
        profile.peak_flops_per_second / 1e9
    );
    let resident = profile.resident_peak_gb.map(|gb| format!(", {gb:.2} GB resident")).unwrap_or_default();
    let _ = writeln!(
        text,
        "at most {:.2} GB in buffers ({:.2} GB of the optimizer's){resident}",
        profile.peak_memory_gb, profile.optimizer_memory_gb
    );
    let _ = write!(text, "all figures in `{}`", dir.join(PROFILE_JSON).display());
    text
}

fn line(row: &Row) -> String {
    let indent = if PARTS.contains(&row.name) { "  " } else { "" };
    let [mean, median, p95] = [row.summary.mean, row.summary.median, row.summary.p95].map(seconds);
    format!(
        "{:<14} {:>6} {mean:>10} {median:>10} {p95:>10} {:>10} {:>7}",
        format!("{indent}{}", row.name),
        row.summary.count,
        row.total.map(seconds).unwrap_or_default(),
        row.share.map(|share| format!("{:.1} %", 100.0 * share)).unwrap_or_default()
    )
}

/// Seconds of anything between a tiny step and a long run, in four or five digits.
fn seconds(value: f64) -> String {
    match value {
        _ if value < 1.0 => format!("{:.2} ms", value * 1e3),
        _ if value < 1000.0 => format!("{value:.2} s"),
        _ => format!("{value:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use train::profile::Summary;

    #[test]
    fn parts_of_a_step_are_indented() {
        let summary = Summary { count: 4, mean: 0.0125, median: 1.5, p95: 2000.0, min: 0.0, max: 0.0 };
        let row = |name| Row { name, unit: "s", summary, total: Some(0.05), share: Some(0.125) };
        assert_eq!(line(&row("forward")), "  forward           4   12.50 ms     1.50 s     2000 s   50.00 ms  12.5 %");
        assert!(line(&row("step")).starts_with("step "));
    }
}
