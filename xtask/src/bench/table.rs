//! Figures, aims and floors, and the page that shows them. It measures nothing.

use serde_json::{Value, json};

use super::runs::median;

/// What a figure counts. Of seconds and bytes less is better, of the others more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds of a step or a pass.
    Seconds,
    /// Bytes, shown in units of 10^9.
    Bytes,
    /// Samples or tokens a second.
    Rate,
    /// A part of 1, shown in percent.
    Share,
}

/// What a figure shall reach.
#[derive(Clone, Copy)]
pub enum Aim {
    /// Ours over theirs at most this, or at least this for rates; the second number is the better aim.
    Ratio(f64, Option<f64>),
    /// Our own value.
    Value(f64),
}

/// What the work costs at the least on this machine (at the most, for rates).
pub struct Floor {
    /// In the unit of the figure.
    pub value: f64,
    /// How it was computed.
    pub how: String,
}

/// One line of a section's table.
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// Its unit.
    pub unit: Unit,
    /// One value for each round.
    pub ours: Vec<f64>,
    /// The same of the program beside us; empty where there is none.
    pub theirs: Vec<f64>,
    /// What it shall reach.
    pub aim: Option<Aim>,
    /// What it could reach.
    pub floor: Option<Floor>,
    /// Where the rest goes, said when the aim is missed.
    pub cause: String,
}

/// One work with everything that was found.
#[derive(Default)]
pub struct Section {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// What was measured and how, a paragraph each.
    pub text: Vec<String>,
    /// The commands that were run.
    pub commands: Vec<String>,
    /// The compared figures.
    pub figures: Vec<Figure>,
    /// Further tables, in Markdown.
    pub tables: Vec<String>,
    /// Every single measurement.
    pub raw: Value,
}

impl Figure {
    /// Ours over theirs, by medians.
    pub fn ratio(&self) -> Option<f64> {
        Some(median(&self.ours)? / median(&self.theirs)?)
    }

    fn less_is_better(&self) -> bool {
        matches!(self.unit, Unit::Seconds | Unit::Bytes)
    }

    /// Whether the aim is met; `None` without an aim or without the figures it needs.
    pub fn is_met(&self) -> Option<bool> {
        let reaches = |value: f64, limit: f64| if self.less_is_better() { value <= limit } else { value >= limit };
        match self.aim? {
            Aim::Ratio(limit, _) => Some(reaches(self.ratio()?, limit)),
            Aim::Value(limit) => Some(reaches(median(&self.ours)?, limit)),
        }
    }

    fn verdict(&self) -> &'static str {
        match (self.is_met(), self.aim, self.ratio()) {
            (None, ..) => "",
            (Some(false), ..) => "missed",
            (Some(true), Some(Aim::Ratio(_, Some(better))), Some(ratio))
                if (ratio <= better) == self.less_is_better() =>
            {
                "met, the better one too"
            }
            (Some(true), ..) => "met",
        }
    }

    fn shown_aim(&self) -> String {
        let word = if self.less_is_better() { "at most" } else { "at least" };
        match self.aim {
            None => String::new(),
            Some(Aim::Ratio(limit, None)) => format!("{word} {limit}"),
            Some(Aim::Ratio(limit, Some(better))) => format!("{word} {limit} ({better})"),
            Some(Aim::Value(limit)) => format!("{word} {}", shown(limit, self.unit)),
        }
    }

    fn row(&self) -> String {
        let cell = |values: &[f64]| median(values).map_or(String::new(), |value| shown(value, self.unit));
        let ratio = self.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let floor = self.floor.as_ref().map_or(String::new(), |floor| shown(floor.value, self.unit));
        format!(
            "| {} | {} | {} | {ratio} | {} | {} | {floor} |",
            self.what,
            cell(&self.ours),
            cell(&self.theirs),
            self.shown_aim(),
            self.verdict()
        )
    }

    /// Why a missed aim was missed: the floor, where it stands against the aim, and what lies above it.
    fn explanation(&self) -> Option<String> {
        if self.is_met() != Some(false) {
            return None;
        }
        let ours = median(&self.ours)?;
        let mut text = format!("- {}: {} misses the aim of {}.", self.what, self.found(ours), self.shown_aim());
        if let Some(floor) = &self.floor {
            let times = if self.less_is_better() { ours / floor.value } else { floor.value / ours };
            let bound = if self.less_is_better() { "Floor" } else { "Ceiling" };
            text += &format!(
                " {bound}: {} ({}); we are {times:.2} times away from it.",
                shown(floor.value, self.unit),
                floor.how
            );
            if let (Some(Aim::Ratio(limit, _)), Some(theirs)) = (self.aim, median(&self.theirs)) {
                let reachable = floor.value / theirs;
                let above = if self.less_is_better() { reachable > limit } else { reachable < limit };
                text += &format!(" At it the ratio would be {reachable:.2}");
                text += if above { ": the aim lies beyond it on this machine." } else { "." };
            }
        }
        if !self.cause.is_empty() {
            text += " ";
            text += &self.cause;
        }
        Some(text)
    }

    fn found(&self, ours: f64) -> String {
        match (self.aim, self.ratio()) {
            (Some(Aim::Ratio(..)), Some(ratio)) => format!("{ratio:.2}"),
            _ => shown(ours, self.unit),
        }
    }

    fn to_json(&self) -> Value {
        let (aim, better) = match self.aim {
            Some(Aim::Ratio(limit, better)) => (Some(limit), better),
            Some(Aim::Value(limit)) => (Some(limit), None),
            None => (None, None),
        };
        json!({
            "what": self.what,
            "ours": median(&self.ours),
            "theirs": median(&self.theirs),
            "ratio": self.ratio(),
            "aim": aim,
            "better_aim": better,
            "met": self.is_met(),
            "floor": self.floor.as_ref().map(|floor| floor.value),
            "floor_how": self.floor.as_ref().map(|floor| &floor.how),
            "all_ours": self.ours,
            "all_theirs": self.theirs,
        })
    }
}

impl Section {
    /// The section as it stands on the page, without its markers. `machine` says where and when.
    pub fn to_markdown(&self, machine: &str) -> String {
        let mut text = format!("## {}\n\n{machine}\n", self.title);
        for paragraph in &self.text {
            text += &format!("\n{paragraph}\n");
        }
        if !self.figures.is_empty() {
            text += "\n| | vidtune | PyTorch | ratio | aim | | floor |\n|---|---|---|---|---|---|---|\n";
            for figure in &self.figures {
                text += &figure.row();
                text += "\n";
            }
        }
        let reasons: Vec<String> = self.figures.iter().filter_map(Figure::explanation).collect();
        if !reasons.is_empty() {
            text += &format!("\nMissed:\n\n{}\n", reasons.join("\n"));
        }
        for table in &self.tables {
            text += &format!("\n{}\n", table.trim_end());
        }
        text += &format!("\n```text\n{}\n```\n", self.commands.join("\n"));
        text
    }

    /// Figures and every measurement.
    pub fn to_json(&self) -> Value {
        let figures: Vec<Value> = self.figures.iter().map(Figure::to_json).collect();
        json!({ "name": self.name, "title": self.title, "commands": self.commands, "figures": figures, "runs": self.raw })
    }
}

/// Puts a section between its markers on a page; a page without them gets both at its end.
pub fn replace(page: &str, name: &str, body: &str) -> String {
    let (open, close) = (format!("<!-- bench:{name} -->"), format!("<!-- /bench:{name} -->"));
    let block = format!("{open}\n{}\n{close}", body.trim_end());
    match (page.find(&open), page.find(&close)) {
        (Some(start), Some(end)) if start < end => {
            format!("{}{block}{}", &page[..start], &page[end + close.len()..])
        }
        _ => format!("{}\n\n{block}\n", page.trim_end()),
    }
}

/// A value with its unit.
pub fn shown(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Seconds if value < 1.0 => format!("{value:.3} s"),
        Unit::Seconds => format!("{value:.2} s"),
        Unit::Bytes => format!("{:.2} GB", value / 1e9),
        Unit::Rate if value < 1.0 => format!("{value:.3}/s"),
        Unit::Rate => format!("{value:.1}/s"),
        Unit::Share => format!("{:.0} %", 100.0 * value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(unit: Unit, ours: f64, theirs: f64, aim: Aim) -> Figure {
        Figure {
            what: "step".to_owned(),
            unit,
            ours: vec![ours],
            theirs: vec![theirs],
            aim: Some(aim),
            floor: Some(Floor { value: 0.5, how: "by hand".to_owned() }),
            cause: "The rest waits.".to_owned(),
        }
    }

    #[test]
    fn aims_know_their_direction() {
        assert_eq!(figure(Unit::Seconds, 0.9, 1.0, Aim::Ratio(0.95, Some(0.88))).verdict(), "met");
        assert_eq!(figure(Unit::Seconds, 0.8, 1.0, Aim::Ratio(0.95, Some(0.88))).verdict(), "met, the better one too");
        assert_eq!(figure(Unit::Bytes, 1.0, 1.0, Aim::Ratio(0.95, None)).verdict(), "missed");
        assert_eq!(figure(Unit::Rate, 2.5, 1.0, Aim::Ratio(2.0, None)).verdict(), "met");
        assert_eq!(figure(Unit::Rate, 1.5, 1.0, Aim::Ratio(2.0, None)).verdict(), "missed");
        assert_eq!(figure(Unit::Share, 0.7, 0.0, Aim::Value(0.6)).verdict(), "met");
        let alone = Figure { theirs: Vec::new(), ..figure(Unit::Seconds, 1.0, 1.0, Aim::Ratio(0.9, None)) };
        assert_eq!((alone.is_met(), alone.verdict()), (None, ""));
    }

    #[test]
    fn a_missed_aim_is_explained_by_its_floor() {
        let missed = figure(Unit::Seconds, 1.0, 1.0, Aim::Ratio(0.9, None)).explanation().unwrap();
        assert!(missed.contains("Floor: 0.500 s (by hand); we are 2.00 times away"), "{missed}");
        assert!(missed.contains("the ratio would be 0.50. The rest waits."), "{missed}");
        let beyond = figure(Unit::Seconds, 1.0, 1.0, Aim::Ratio(0.4, None)).explanation().unwrap();
        assert!(beyond.contains("the aim lies beyond it on this machine"), "{beyond}");
        assert_eq!(figure(Unit::Seconds, 0.5, 1.0, Aim::Ratio(0.9, None)).explanation(), None);
    }

    #[test]
    fn a_section_is_replaced_between_its_markers() {
        let page = "# Page\n";
        let first = replace(page, "a", "one\n");
        let both = replace(&first, "b", "two");
        assert_eq!(replace(&both, "a", "three"), both.replace("one", "three"));
        assert!(both.starts_with("# Page\n\n<!-- bench:a -->\none\n<!-- /bench:a -->\n"), "{both}");
        assert!(both.ends_with("<!-- bench:b -->\ntwo\n<!-- /bench:b -->\n"), "{both}");
    }
}
