//! `report.html` of the demo: one page that needs no other file and no network. Owns its looks; every number comes from outside.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use media::{FrameCount, FrameRule, Limits, SampleSpec};
use train::StepMetrics;

use super::questions::verdict;
use super::scene::MOMENTS;

/// A line of the accuracy chart.
pub struct TypeRow {
    /// Name of the question type.
    pub name: &'static str,
    /// Accuracy with random weights.
    pub before: f64,
    /// Accuracy after both stages.
    pub after: f64,
    /// Accuracy after both stages on shuffled frames.
    pub shuffled: f64,
    /// Accuracy of someone who sees no clip.
    pub chance: f64,
    /// Whether only the order of the frames holds the answer.
    pub needs_time: bool,
}

/// The losses of one stage.
pub struct Curve {
    /// What was trained on what.
    pub title: String,
    /// The steps.
    pub steps: Vec<StepMetrics>,
}

/// A held-out clip with its question and answers.
pub struct Example {
    /// Name of the question type.
    pub question_type: &'static str,
    /// The frames that the model sees, as a PNG file.
    pub sheet: Vec<u8>,
    /// File, size and rate.
    pub file: String,
    /// The question.
    pub question: String,
    /// The right answer.
    pub reference: String,
    /// The answer with random weights.
    pub before: String,
    /// The answer after training.
    pub after: String,
    /// The answer on shuffled frames.
    pub shuffled: String,
}

/// Everything that the page shows.
pub struct Report {
    /// Accuracies.
    pub rows: Vec<TypeRow>,
    /// Held-out clips of each type.
    pub num_held_out: usize,
    /// Where chance ends, for the types that need time.
    pub interval: (f64, f64),
    /// Loss curves.
    pub curves: Vec<Curve>,
    /// Clips to look at.
    pub examples: Vec<Example>,
    /// Lines of facts: name and value.
    pub facts: Vec<(String, String)>,
    /// Commands to go on with.
    pub commands: Vec<(String, String)>,
}

/// The frames of a clip as the model sees them, with their times: a PNG file, and a line about the clip's file.
///
/// # Errors
/// The clip cannot be read.
pub fn contact_sheet(video: &Path) -> Result<(Vec<u8>, String)> {
    let limits = Limits::default();
    let index = media::index_video(video, &limits)?;
    let spec = SampleSpec::new(FrameRule::Transformers, FrameCount::Num(MOMENTS));
    let chosen = media::sample_indices(index.num_frames(), index.fps, &index.seconds, &spec)?;
    let frames = media::decode_frames(&index, &chosen, &limits)?;
    let size = frames.first().map(|frame| (frame.image.width, frame.image.height)).unwrap_or_default();
    let name = video.file_name().unwrap_or_default().to_string_lossy();
    let line = format!(
        "{name}: {}, {}x{}, {} frames at {:.0} a second",
        index.codec,
        size.0,
        size.1,
        index.num_frames(),
        index.fps
    );
    let sheet = media::contact_sheet(&frames, MOMENTS as u32, 128);
    Ok((sheet.map(|sheet| media::encode_png(&sheet)).transpose()?.unwrap_or_default(), line))
}

/// The whole page.
pub fn html(report: &Report) -> String {
    let mut page = String::from(HEAD);
    let _ = write!(page, "<header><h1>vidtune demo</h1><p>{}</p></header>", lead(report));
    page.push_str("<section class=\"facts\">");
    for (name, value) in &report.facts {
        let _ = write!(page, "<div><b>{}</b><span>{}</span></div>", escaped(value), escaped(name));
    }
    page.push_str("</section><section><h2>Answers on held-out clips</h2>");
    let _ = write!(
        page,
        "<p>{} clips of each type that no training has seen. The tick is what someone reaches who sees no clip. \
         For <i>direction</i> and <i>order</i>, each clip is also there played backwards with the same question: only the sequence \
         of the frames tells the answers apart, and with the frames shuffled the share of right answers has to fall to chance \
         (99&nbsp;% of demos: {} to {}).</p>",
        report.num_held_out,
        percent(report.interval.0),
        percent(report.interval.1)
    );
    page.push_str(&accuracy_chart(&report.rows));
    page.push_str("</section><section><h2>Loss</h2><div class=\"curves\">");
    for curve in &report.curves {
        let _ = write!(
            page,
            "<figure>{}<figcaption>{}</figcaption></figure>",
            loss_chart(&curve.steps),
            escaped(&curve.title)
        );
    }
    page.push_str("</div></section><section><h2>Clips and answers</h2><div class=\"clips\">");
    for example in &report.examples {
        page.push_str(&card(example));
    }
    page.push_str("</div></section><section><h2>Go on</h2>");
    for (title, command) in &report.commands {
        let _ = write!(page, "<p>{}</p><pre>{}</pre>", escaped(title), escaped(command));
    }
    page.push_str("</section></main></body></html>\n");
    page
}

fn lead(report: &Report) -> String {
    let worst = report.rows.iter().min_by(|a, b| a.after.total_cmp(&b.after));
    let worst =
        worst.map(|row| format!("the hardest type, {}, reached {}", row.name, percent(row.after))).unwrap_or_default();
    format!("A tiny LLaVA with random weights learned to answer questions about videos, on this machine; {worst}.")
}

/// A card with the frames of a clip and the answers.
fn card(example: &Example) -> String {
    let answer = |title: &str, text: &str| {
        let mark = if same(text, &example.reference) { "right" } else { "wrong" };
        let text = if text.is_empty() { "(nothing)" } else { text };
        format!("<tr><td>{title}</td><td class=\"{mark}\">{}</td></tr>", escaped(text))
    };
    format!(
        "<article><img alt=\"frames of the clip\" src=\"data:image/png;base64,{}\"><small>{}</small><p><em>{}</em> {}</p>\
         <table><tr><td>right answer</td><td>{}</td></tr>{}{}{}</table></article>",
        STANDARD.encode(&example.sheet),
        escaped(&example.file),
        example.question_type,
        escaped(&example.question),
        escaped(&example.reference),
        answer("before training", &example.before),
        answer("after training", &example.after),
        answer("frames shuffled", &example.shuffled),
    )
}

fn same(a: &str, b: &str) -> bool {
    verdict(a).eq_ignore_ascii_case(verdict(b))
}

/// Three bars for each type, and a tick at chance.
fn accuracy_chart(rows: &[TypeRow]) -> String {
    const LEFT: f64 = 110.0;
    const WIDTH: f64 = 560.0;
    const ROW: f64 = 66.0;
    let height = ROW * rows.len() as f64 + 34.0;
    let mut svg = format!("<svg viewBox=\"0 0 760 {height}\" role=\"img\" aria-label=\"accuracy by question type\">");
    for step in 0..=4 {
        let x = LEFT + WIDTH * f64::from(step) / 4.0;
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{x}\" y1=\"0\" x2=\"{x}\" y2=\"{}\"/><text class=\"axis\" x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{} %</text>",
            height - 28.0,
            height - 10.0,
            step * 25
        );
    }
    for (index, row) in rows.iter().enumerate() {
        let top = ROW * index as f64 + 6.0;
        let _ = write!(
            svg,
            "<text class=\"type\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 12.0,
            top + 30.0,
            row.name
        );
        if row.needs_time {
            let y = top + 45.0;
            let _ = write!(
                svg,
                "<text class=\"axis\" x=\"{}\" y=\"{y}\" text-anchor=\"end\">needs time</text>",
                LEFT - 12.0
            );
        }
        for (place, (class, value)) in
            [("before", row.before), ("after", row.after), ("shuffled", row.shuffled)].into_iter().enumerate()
        {
            let y = top + 18.0 * place as f64;
            let width = (WIDTH * value).max(1.5);
            let _ = write!(
                svg,
                "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"14\" rx=\"2\"/>\
                 <text class=\"value\" x=\"{:.1}\" y=\"{}\">{}</text>",
                LEFT + width + 6.0,
                y + 11.5,
                percent(value)
            );
        }
        let x = LEFT + WIDTH * row.chance;
        let _ =
            write!(svg, "<line class=\"chance\" x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{}\"/>", top - 3.0, top + 53.0);
    }
    svg.push_str("</svg><p class=\"legend\"><i class=\"before\"></i>before training <i class=\"after\"></i>after training <i class=\"shuffled\"></i>after training, frames shuffled</p>");
    svg
}

/// The loss of each step, thin, and its mean over the steps around, thick.
fn loss_chart(steps: &[StepMetrics]) -> String {
    const WIDTH: f64 = 520.0;
    const HEIGHT: f64 = 220.0;
    const LEFT: f64 = 40.0;
    const BOTTOM: f64 = 24.0;
    let most = steps.iter().map(|step| step.loss).fold(0.0_f64, f64::max).max(1e-9);
    let last = steps.last().map_or(1, |step| step.step).max(2);
    let x = |step: u64| LEFT + (WIDTH - LEFT - 8.0) * (step - 1) as f64 / (last - 1) as f64;
    let y = |loss: f64| 8.0 + (HEIGHT - BOTTOM - 8.0) * (1.0 - loss / most);
    let path = |losses: &mut dyn Iterator<Item = (u64, f64)>| {
        let mut text = String::new();
        for (step, loss) in losses {
            let letter = if text.is_empty() { 'M' } else { 'L' };
            let _ = write!(text, "{letter}{:.1} {:.1}", x(step), y(loss));
        }
        text
    };
    let around = (steps.len() / 40).max(1);
    let mean = |at: usize| {
        let window = &steps[at.saturating_sub(around)..(at + around + 1).min(steps.len())];
        window.iter().map(|step| step.loss).sum::<f64>() / window.len() as f64
    };
    let thin = path(&mut steps.iter().map(|step| (step.step, step.loss)));
    let thick = path(&mut steps.iter().enumerate().map(|(at, step)| (step.step, mean(at))));
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"loss by step\">");
    for part in 0..=3 {
        let loss = most * f64::from(part) / 3.0;
        let at = y(loss);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{WIDTH}\" y2=\"{at:.1}\"/><text class=\"axis\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.2}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    let _ = write!(
        svg,
        "<text class=\"axis\" x=\"{}\" y=\"{}\" text-anchor=\"end\">step {last}</text><path class=\"thin\" d=\"{thin}\"/><path class=\"thick\" d=\"{thick}\"/></svg>",
        WIDTH - 4.0,
        HEIGHT - 6.0
    );
    svg
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>vidtune demo</title><style>
:root { color-scheme: light dark; --ink: #1c2330; --dim: #667085; --paper: #f6f7f9; --card: #fff; --line: #dfe3ea;
        --before: #b6bdc9; --after: #2563eb; --shuffled: #f59e0b; --right: #15803d; --wrong: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --dim: #98a2b3; --paper: #12151b; --card: #1b1f27; --line: #303642;
        --before: #565e6d; --after: #5b8cff; --shuffled: #d98e1b; --right: #4ade80; --wrong: #f97066; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { margin: 0; font-size: 32px; } h2 { margin: 0 0 8px; font-size: 20px; } header p { color: var(--dim); margin: 4px 0 20px; font-size: 18px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px; margin-top: 18px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px; }
.facts div { display: flex; flex-direction: column; } .facts b { font-size: 22px; } .facts span { color: var(--dim); font-size: 13px; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .axis { fill: var(--dim); font-size: 11px; } svg .type { font-size: 15px; font-weight: 600; }
.grid { stroke: var(--line); } .chance { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 3 3; }
rect.before { fill: var(--before); } rect.after { fill: var(--after); } rect.shuffled { fill: var(--shuffled); }
.legend { color: var(--dim); margin: 6px 0 0; } .legend i { display: inline-block; width: 14px; height: 10px; border-radius: 2px; margin: 0 4px 0 14px; }
.legend .before { background: var(--before); } .legend .after { background: var(--after); } .legend .shuffled { background: var(--shuffled); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 20px; } figure { margin: 0; } figcaption { color: var(--dim); font-size: 14px; }
.thin { fill: none; stroke: var(--before); stroke-width: 1; } .thick { fill: none; stroke: var(--after); stroke-width: 2.2; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 16px; }
article { border: 1px solid var(--line); border-radius: 8px; padding: 12px; } article img { width: 100%; border-radius: 4px; display: block; image-rendering: auto; }
article small { color: var(--dim); } article p { margin: 6px 0; font-weight: 600; } article em { font-style: normal; font-weight: 500; font-size: 12px; color: var(--dim); border: 1px solid var(--line); border-radius: 9px; padding: 1px 8px; margin-right: 4px; }
table { width: 100%; table-layout: fixed; border-collapse: collapse; font-size: 14px; } td { padding: 2px 0; overflow-wrap: anywhere; vertical-align: top; border-top: 1px solid var(--line); } td:first-child { color: var(--dim); width: 45%; }
.right { color: var(--right); font-weight: 600; } .wrong { color: var(--wrong); }
pre { background: var(--paper); border: 1px solid var(--line); border-radius: 6px; padding: 10px; overflow-x: auto; font-size: 13px; white-space: pre-wrap; overflow-wrap: anywhere; }
</style></head><body><main>
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let step = |step, loss| StepMetrics { step, loss, ..StepMetrics::default() };
        Report {
            rows: vec![TypeRow {
                name: "order",
                before: 0.0,
                after: 0.975,
                shuffled: 0.5,
                chance: 0.5,
                needs_time: true,
            }],
            num_held_out: 240,
            interval: (0.417, 0.583),
            curves: vec![Curve {
                title: "stage <1>".to_owned(),
                steps: vec![step(1, 4.0), step(2, 2.0), step(3, 1.0)],
            }],
            examples: vec![Example {
                question_type: "order",
                sheet: b"PNG".to_vec(),
                file: "a.mp4".to_owned(),
                question: "Do the colours come in rainbow order?".to_owned(),
                reference: "red, blue: yes".to_owned(),
                before: String::new(),
                after: "x: Yes".to_owned(),
                shuffled: "<green>".to_owned(),
            }],
            facts: vec![("seconds".to_owned(), "150".to_owned())],
            commands: vec![("ask".to_owned(), "vidtune generate --prompt \"x\"".to_owned())],
        }
    }

    #[test]
    fn the_page_stands_alone_and_shows_every_part() {
        let page = html(&report());
        for part in [
            "97.5 %",
            "41.7 % to 58.3 %",
            "stage &lt;1&gt;",
            "data:image/png;base64,UE5H",
            "class=\"right\">x: Yes",
            "&lt;green&gt;",
            "(nothing)",
        ] {
            assert!(page.contains(part), "{part} is missing");
        }
        for absent in ["http://", "https://", "<script", "<link", "<green>", "NaN"] {
            assert!(!page.contains(absent), "{absent}");
        }
    }

    #[test]
    fn a_curve_falls_from_left_to_right() {
        let chart = loss_chart(&report().curves[0].steps);
        assert!(chart.contains("class=\"thin\" d=\"M40.0 8.0L276.0 102.0L512.0 149.0\""), "{chart}");
        assert!(!loss_chart(&[]).contains("NaN"));
    }
}
