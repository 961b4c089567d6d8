//! `final_model/` and what to do with it. Owns the folder's content (weights, configuration, tokenizer, processor, template,
//! model card) and the commands that a user runs next; formats of weights are `models`'.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use data::Processor;
use models::Model;

use crate::error::{Result, TrainError};
use crate::plan::{MethodKind, Plan};

/// Name of the exported folder.
pub const FINAL_MODEL: &str = "final_model";

/// Files of the base model that describe how to use it, copied unchanged where they exist.
const COPIED: [&str; 1] = ["generation_config.json"];

/// Which of the reference's classes load a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ModelKind {
    /// A language model that sees.
    #[default]
    Vision,
    /// One in LLaVA's original layout, for which the reference has no class.
    Original,
    /// A language model alone.
    Text,
    /// An encoder-decoder of text.
    Seq2Seq,
}

/// What the card says about the run.
#[derive(Debug, Clone, Default)]
pub(crate) struct CardFacts {
    pub(crate) steps: u64,
    pub(crate) loss: Option<f64>,
    pub(crate) eval_loss: Option<f64>,
    pub(crate) records: u64,
    pub(crate) kind: ModelKind,
}

/// Commands for after the training, each ready to paste.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextSteps {
    /// Ask the model about a video.
    pub generate: String,
    /// Evaluate it on a dataset.
    pub evaluate: String,
    /// Load it in Python with `transformers` (and `peft`).
    pub python: String,
}

/// Writes `final_model/`; it appears whole or not at all, and replaces one of an earlier end of the same run.
pub(crate) fn export(
    plan: &Plan,
    model: &Model,
    processor: &Processor,
    base_dir: &Path,
    facts: &CardFacts,
) -> Result<PathBuf> {
    let target = plan.output_dir().join(FINAL_MODEL);
    hub::replace_dir(&target, |dir| {
        if is_adapter(plan) {
            model.save_adapter(dir, &plan.base_model())?;
        } else {
            model.save(dir, plan.train.max_shard_size.0)?;
            if plan.method.kind == Some(MethodKind::Projector) {
                model.save_projectors(dir)?;
            }
            for name in COPIED {
                copy(&base_dir.join(name), &dir.join(name))?;
            }
        }
        processor.save_to(dir)?;
        processor.save_languages(dir, plan.data.src_lang.as_deref(), plan.data.tgt_lang.as_deref())?;
        Ok::<_, TrainError>(hub::atomic_write(dir.join("README.md"), card(plan, facts).as_bytes())?)
    })?;
    Ok(target)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_file() {
        fs::copy(from, to).map_err(|source| TrainError::io("copy", from, source))?;
    }
    Ok(())
}

fn is_adapter(plan: &Plan) -> bool {
    matches!(plan.method.kind, Some(MethodKind::Lora | MethodKind::Qlora))
}

/// The model card: what it is, from what, on what, how.
fn card(plan: &Plan, facts: &CardFacts) -> String {
    let base = plan.base_model();
    let title = plan.tracking.run_name.clone().unwrap_or_else(|| {
        plan.output_dir().file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
    });
    let kind = plan.method.kind.map_or("full", MethodKind::word);
    let library = if is_adapter(plan) { "peft" } else { "transformers" };
    // A local path means nothing to others; the hub accepts ids only.
    let is_hub_id = base.split('/').count() == 2 && !base.starts_with(['.', '/', '~']) && !Path::new(&base).exists();
    let mut text = String::from("---\n");
    if is_hub_id {
        let _ = writeln!(text, "base_model: {base}");
    }
    let tag = match facts.kind {
        ModelKind::Vision | ModelKind::Original => "video-text-to-text",
        ModelKind::Text => "text-generation",
        ModelKind::Seq2Seq => "translation",
    };
    let _ = write!(text, "library_name: {library}\npipeline_tag: {tag}\ntags:\n- vidtune\n---\n\n# {title}\n\n");
    let _ = writeln!(
        text,
        "Fine-tuned from `{base}` with vidtune {} (`method.kind: {kind}`).\n",
        env!("CARGO_PKG_VERSION")
    );
    let _ = writeln!(text, "| | |\n|---|---|\n| steps | {} |\n| training records | {} |", facts.steps, facts.records);
    let number = |value: f64| format!("{value:.4}");
    let _ = writeln!(text, "| last training loss | {} |", facts.loss.map_or_else(|| "-".to_owned(), number));
    if let Some(eval_loss) = facts.eval_loss {
        let _ = writeln!(text, "| evaluation loss | {} |", number(eval_loss));
    }
    let _ =
        writeln!(text, "| learning rate | {} ({}) |", plan.train.learning_rate, plan.train.lr_scheduler_type.word());
    let _ = writeln!(text, "| seed | {} |\n", plan.train.seed);
    let _ = writeln!(text, "```python\n{}\n```\n", python(plan, Path::new("."), facts.kind));
    let _ = writeln!(text, "The whole plan:\n\n```json\n{:#}\n```", plan.to_json());
    text
}

/// The commands that use what the plan's run has exported to `final_model`.
pub fn next_steps(plan: &Plan, final_model: &Path, kind: ModelKind) -> NextSteps {
    let model = if is_adapter(plan) {
        format!("--model {} --adapter {}", quoted(&plan.base_model()), quoted_path(final_model))
    } else {
        format!("--model {}", quoted_path(final_model))
    };
    // The frames of the training, where the plan and not the checkpoint chose them.
    let frames = match (plan.data.num_frames, plan.data.fps) {
        (Some(count), _) => format!(" --num-frames {count}"),
        (None, Some(fps)) => format!(" --fps {fps}"),
        (None, None) => String::new(),
    };
    let question = match kind {
        ModelKind::Vision | ModelKind::Original => {
            format!("--video VIDEO.mp4{frames} --prompt 'What happens in this video?'")
        }
        ModelKind::Text | ModelKind::Seq2Seq => "--prompt 'What is in this video?'".to_owned(),
    };
    NextSteps {
        generate: format!("vidtune generate {model} {question}"),
        evaluate: format!("vidtune eval {model} --data DATA.json{frames} --task loss --out results.json"),
        python: python(plan, final_model, kind),
    }
}

fn python(plan: &Plan, folder: &Path, kind: ModelKind) -> String {
    let (model_class, processor_class) = match kind {
        ModelKind::Original => {
            return "# `transformers` has no class for this layout: `vidtune generate` and `vidtune eval` read it"
                .to_owned();
        }
        ModelKind::Vision => ("AutoModelForImageTextToText", "AutoProcessor"),
        ModelKind::Text => ("AutoModelForCausalLM", "AutoTokenizer"),
        ModelKind::Seq2Seq => ("AutoModelForSeq2SeqLM", "AutoTokenizer"),
    };
    let folder = folder.display();
    let base = plan.base_model();
    let (import, model) = match is_adapter(plan) {
        true => (
            "from peft import PeftModel\n",
            format!("PeftModel.from_pretrained({model_class}.from_pretrained({base:?}), \"{folder}\")"),
        ),
        false => ("", format!("{model_class}.from_pretrained(\"{folder}\")")),
    };
    format!(
        "{import}from transformers import {model_class}, {processor_class}\nmodel = {model}\n\
         processor = {processor_class}.from_pretrained(\"{folder}\")"
    )
}

/// A path as a POSIX shell takes it.
pub fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// A word as a POSIX shell takes it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(kind: &str) -> Plan {
        let text = format!(
            "model: {{path: org/base}}\nmethod: {{kind: {kind}}}\ndata: {{train: [{{path: d.json}}]}}\ntrain: {{output_dir: 'my runs/one'}}\n"
        );
        Plan::from_yaml(&text, &[]).unwrap()
    }

    #[test]
    fn commands_are_quoted_for_a_shell() {
        let steps = next_steps(&plan("lora"), Path::new("my runs/one/final_model"), ModelKind::Vision);
        assert_eq!(
            steps.generate,
            "vidtune generate --model org/base --adapter 'my runs/one/final_model' --video VIDEO.mp4 --prompt 'What happens in this video?'"
        );
        assert!(steps.python.contains("PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(\"org/base\"), \"my runs/one/final_model\")"));
        let mut framed = plan("lora");
        framed.data.num_frames = Some(8);
        let steps = next_steps(&framed, Path::new("m"), ModelKind::Vision);
        assert!(steps.generate.contains(" --video VIDEO.mp4 --num-frames 8 --prompt "), "{}", steps.generate);
        assert!(steps.evaluate.contains(" --data DATA.json --num-frames 8 --task "), "{}", steps.evaluate);
        let steps = next_steps(&plan("full"), Path::new("x"), ModelKind::Text);
        assert_eq!(steps.evaluate, "vidtune eval --model x --data DATA.json --task loss --out results.json");
        assert!(steps.python.contains("AutoModelForCausalLM.from_pretrained(\"x\")"), "{}", steps.python);
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn the_card_names_base_method_and_plan() {
        let facts = CardFacts { steps: 12, loss: Some(0.5), eval_loss: None, records: 3, kind: ModelKind::Vision };
        let text = card(&plan("lora"), &facts);
        for part in [
            "base_model: org/base\n",
            "library_name: peft\n",
            "# one\n",
            "| steps | 12 |",
            "| last training loss | 0.5000 |",
            "\"kind\": \"lora\"",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(!text.contains("evaluation loss"));
    }
}
