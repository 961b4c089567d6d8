//! Owns the presets of `vidtune init`: a recipe of its own name for any checkpoint, and one for every family. Refuses to read
//! or write files.

use serde_json::Value;

use crate::failure::CliError;

/// Which tensors train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// Adapters on these modules of the language model.
    Lora(&'static [&'static str]),
    /// Everything but the vision tower.
    FullPastVision,
    /// Everything.
    Full,
    /// The projector alone.
    Projector,
}

/// What a plan says of the data beside the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Media {
    /// So many frames of a clip, which have one size.
    Frames,
    /// Frames by time, of any size.
    Rate,
    /// None: conversations of text.
    Text,
    /// Texts of two languages.
    Pairs,
}

/// A plan to start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// What `--preset` calls it: a recipe, or the family's `model_type`.
    pub name: &'static str,
    /// A published checkpoint of the family.
    checkpoint: Option<&'static str>,
    method: Method,
    media: Media,
}

const ATTENTION: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj"];
/// Of decoders whose queries, keys and values are one projection.
const FUSED_ATTENTION: &[&str] = &["qkv_proj", "o_proj"];

const fn family(name: &'static str, checkpoint: &'static str, method: Method, media: Media) -> Preset {
    Preset { name, checkpoint: Some(checkpoint), method, media }
}

/// Every preset: recipes first, then the families.
pub const PRESETS: &[Preset] = &[
    Preset::LORA,
    Preset { name: "full", checkpoint: None, method: Method::FullPastVision, media: Media::Frames },
    Preset { name: "projector", checkpoint: None, method: Method::Projector, media: Media::Frames },
    Preset { name: "seq2seq", checkpoint: None, method: Method::Full, media: Media::Pairs },
    family("llava", "llava-hf/llava-interleave-qwen-7b-hf", Method::Lora(ATTENTION), Media::Frames),
    family("llava_next", "llava-hf/llava-v1.6-mistral-7b-hf", Method::Lora(ATTENTION), Media::Frames),
    family("llava_next_video", "llava-hf/LLaVA-NeXT-Video-7B-hf", Method::Lora(ATTENTION), Media::Frames),
    family("llava_onevision", "llava-hf/llava-onevision-qwen2-7b-ov-hf", Method::Lora(ATTENTION), Media::Frames),
    family("qwen2_vl", "Qwen/Qwen2-VL-7B-Instruct", Method::Lora(ATTENTION), Media::Rate),
    family("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", Method::Lora(ATTENTION), Media::Rate),
    family("qwen3_vl", "Qwen/Qwen3-VL-8B-Instruct", Method::Lora(ATTENTION), Media::Rate),
    family("llavaonevision1_5", "lmms-lab/LLaVA-OneVision-1.5-8B-Instruct", Method::Lora(ATTENTION), Media::Frames),
    family("llava_onevision1_5", "lmms-lab/LLaVA-OneVision-1.5-8B-Instruct", Method::Lora(ATTENTION), Media::Frames),
    family("llava_llama", "liuhaotian/llava-v1.5-7b", Method::Lora(ATTENTION), Media::Frames),
    family("llava_mistral", "liuhaotian/llava-v1.6-mistral-7b", Method::Lora(ATTENTION), Media::Frames),
    family("llava_qwen", "PATH_OF_A_CHECKPOINT", Method::Lora(ATTENTION), Media::Frames),
    family("llava_qwen2", "PATH_OF_A_CHECKPOINT", Method::Lora(ATTENTION), Media::Frames),
    family("llava_qwen3", "PATH_OF_A_CHECKPOINT", Method::Lora(ATTENTION), Media::Frames),
    family("llava_phi3", "PATH_OF_A_CHECKPOINT", Method::Lora(FUSED_ATTENTION), Media::Frames),
    family("egogpt_qwen", "lmms-lab/EgoGPT-7b-EgoIT-EgoLife", Method::Lora(ATTENTION), Media::Frames),
    family("llama", "meta-llama/Llama-3.1-8B-Instruct", Method::Lora(ATTENTION), Media::Text),
    family("mistral", "mistralai/Mistral-7B-Instruct-v0.3", Method::Lora(ATTENTION), Media::Text),
    family("phi3", "microsoft/Phi-4-mini-instruct", Method::Lora(FUSED_ATTENTION), Media::Text),
    family("qwen2", "Qwen/Qwen2.5-1.5B-Instruct", Method::Lora(ATTENTION), Media::Text),
    family("qwen3", "Qwen/Qwen3-4B", Method::Lora(ATTENTION), Media::Text),
    family("m2m_100", "facebook/nllb-200-distilled-600M", Method::Full, Media::Pairs),
];

impl Preset {
    /// The recipe for checkpoints of which nothing is known.
    pub const LORA: Preset =
        Preset { name: "lora", checkpoint: None, method: Method::Lora(ATTENTION), media: Media::Frames };

    /// The preset of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Result<Preset, CliError> {
        PRESETS.iter().find(|preset| preset.name == name).copied().ok_or_else(|| {
            let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
            CliError::usage(format!("there is no preset `{name}`"), format!("use one of `{}`", names.join("`, `")))
        })
    }

    fn method(&self) -> String {
        match self.method {
            Method::Lora(targets) => format!(
                "method:\n  kind: lora                 # adapters on the language model; also: full, projector\n  \
                 lora:\n    r: 16\n    lora_alpha: 32\n    lora_dropout: 0.05\n    target_modules: [{}]\n",
                targets.join(", ")
            ),
            Method::FullPastVision => {
                "method:\n  kind: full                 # every tensor trains, but for what `freeze` names\n  freeze: [vision]\n"
                    .to_owned()
            }
            Method::Full => "method:\n  kind: full                 # every tensor trains; also: lora\n".to_owned(),
            Method::Projector => {
                "method:\n  kind: projector            # only the layers between vision tower and language model\n"
                    .to_owned()
            }
        }
    }

    fn learning_rate(&self) -> &'static str {
        match (self.method, self.media) {
            (Method::Lora(_), _) => "2.0e-4",
            (Method::Projector, _) => "1.0e-3",
            (_, Media::Pairs) => "5.0e-5",
            _ => "1.0e-5",
        }
    }

    fn media(&self) -> &'static str {
        match self.media {
            Media::Frames => "  num_frames: 8\n",
            Media::Rate => {
                "  fps: 1                     # frames a second of a clip, which keep their shape\n  \
                 max_frames: 64\n"
            }
            Media::Text => {
                "  max_length: 4096           # longer conversations are refused, or skipped where the plan says so\n"
            }
            Media::Pairs => {
                "  src_lang: eng_Latn         # of the questions, where the record does not say\n  \
                 tgt_lang: eng_Latn         # of the captions, likewise\n"
            }
        }
    }
}

/// A plan in the making.
pub(super) struct PlanText {
    pub(super) preset: Preset,
    /// The preset's own when not given.
    pub(super) model: Option<String>,
    /// A path, or an entry `{path: .., media_dir: ..}`.
    pub(super) train: String,
    pub(super) eval: Option<String>,
    pub(super) output_dir: String,
    pub(super) records: Option<usize>,
}

impl PlanText {
    pub(super) fn text(&self) -> String {
        let model = self.model.as_deref().or(self.preset.checkpoint).unwrap_or("PATH_OR_HUB_ID_OF_A_CHECKPOINT");
        let entry =
            |text: &str| if text.starts_with('{') { text.to_owned() } else { format!("{{path: {}}}", quoted(text)) };
        let eval = self.eval.as_ref().map(|eval| format!("  eval:\n    - {}\n", entry(eval))).unwrap_or_default();
        // Small sets: at least a few dozen updates in an epoch.
        let accumulation = match self.records {
            Some(records) if records < 64 => 1,
            Some(records) if records < 512 => 4,
            _ => 8,
        };
        let steps = if self.eval.is_some() { "  eval_strategy: epoch\n" } else { "" };
        format!(
            "# Every key and its default: the plan's reference page. Check it first with `vidtune plan`.\n\
             model:\n  path: {}\n\
             {}\
             data:\n  train:\n    - {}\n{eval}{}\
             train:\n  output_dir: {}\n  num_train_epochs: 1\n  per_device_train_batch_size: 1\n  \
             gradient_accumulation_steps: {accumulation}\n  learning_rate: {}\n  \
             lr_scheduler_type: cosine\n  warmup_ratio: 0.03\n  gradient_checkpointing: true\n{steps}  \
             save_strategy: epoch\n  save_total_limit: 2\n",
            quoted(model),
            self.preset.method(),
            entry(&self.train),
            self.preset.media(),
            quoted(&self.output_dir),
            self.preset.learning_rate(),
        )
    }
}

/// A text as a double-quoted YAML scalar, which is also JSON.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_plan() {
        for preset in PRESETS {
            for eval in [None, Some("{path: \"e.jsonl\", media_dir: \"/v\"}".to_owned())] {
                let text = PlanText {
                    preset: *preset,
                    model: None,
                    train: "data \"x\"/train.jsonl".to_owned(),
                    eval,
                    output_dir: "runs/a".to_owned(),
                    records: Some(10),
                }
                .text();
                match train::plan::Plan::from_yaml(&text, &[]) {
                    Ok(_) => assert!(preset.checkpoint.is_none_or(|name| text.contains(name)), "{text}"),
                    Err(error) => panic!("{}: {error}\n{text}", preset.name),
                }
            }
        }
    }

    #[test]
    fn a_preset_that_is_not_there_is_refused_with_those_that_are() {
        let error = Preset::named("qwen9").unwrap_err().to_string();
        assert_eq!(error, "there is no preset `qwen9`");
        assert_eq!(Preset::named("phi3").unwrap().method, Method::Lora(FUSED_ATTENTION));
    }
}
