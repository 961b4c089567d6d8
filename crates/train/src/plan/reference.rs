//! The reference page of the plan, made from the sections' own definitions; a test keeps `docs/plan.md` equal to it.

use std::fmt::Write;

use super::alias::{ALIASES, Meaning};
use super::data_section::{AUDIO_DIR, MEDIA_DIR};
use super::fields;

/// The page as Markdown.
pub fn reference_page() -> String {
    let mut page = String::from(
        "# The plan file\n\n\
         A plan is one YAML file (YAML 1.2: `2e-4` is a number, `yes` is text). Any key can also be given on the command line as\n\
         `section.key=value`; an argument wins over the file. A key that is not listed here is an error. Keys marked *free* may\n\
         change between a run and its resumption.\n\n\
         This page is generated from the definitions in `crates/train/src/plan`; `cargo test -p train` says how to renew it.\n",
    );
    let mut section = String::new();
    for field in fields() {
        let name = field.path.split('.').next().unwrap_or_default().to_owned();
        if name != section {
            let _ = write!(page, "\n## `{name}`\n\n| key | value | default | meaning |\n|---|---|---|---|\n");
            section = name;
        }
        let free = if field.free_on_resume { " *(free)*" } else { "" };
        let cell = |text: &str| text.replace('|', "\\|");
        let _ = writeln!(
            page,
            "| `{}` | {} | `{}` | {}{free} |",
            field.path,
            cell(&field.type_name),
            field.default,
            cell(&field.doc)
        );
    }
    page.push_str(
        "\n## Names of other tools\n\nAccepted in place of ours:\n\n| theirs | tool | ours |\n|---|---|---|\n",
    );
    for alias in ALIASES {
        if let Some(ours) = accepted(alias.meaning) {
            let _ = writeln!(page, "| `{}` | {} | {ours} |", alias.theirs, alias.tool);
        }
    }
    page.push_str("\nRefused, because nothing of ours means the same:\n\n| theirs | tool | instead |\n|---|---|---|\n");
    for alias in ALIASES {
        if let Meaning::Refused(hint) = alias.meaning {
            let _ = writeln!(page, "| `{}` | {} | {hint} |", alias.theirs, alias.tool);
        }
    }
    page
}

fn accepted(meaning: Meaning) -> Option<String> {
    Some(match meaning {
        Meaning::Same(MEDIA_DIR) => "`media_dir` of every dataset that has none".to_owned(),
        Meaning::Same(AUDIO_DIR) => "`audio_dir` of every dataset that has none".to_owned(),
        Meaning::Same(ours) => format!("`{ours}`"),
        Meaning::Section(ours) => format!("section `{ours}`"),
        Meaning::Freeze(part) => format!("`true`: `method.freeze: [{part}]`"),
        Meaning::Tune(part) => format!("`false`: `method.freeze: [{part}]`"),
        Meaning::Switch(ours, word) => format!("`true`: `{ours}: {word}`"),
        Meaning::LoraTarget => "`method.lora.target_modules`".to_owned(),
        Meaning::Moot(why) => format!("changes nothing: {why}"),
        Meaning::Only(word, hint) => format!("only `{word}`; {hint}"),
        Meaning::Refused(_) => return None,
    })
}
