//! Names that users of other tools know. Owns the table from their names to ours and what each one's value becomes; names
//! with another meaning stand in it as well, with the reason why they are refused.

use super::data_section::{AUDIO_DIR, MEDIA_DIR};
use super::field::join;
use super::node::{Node, Place};
use super::problem::Problem;

/// What becomes of a foreign key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Meaning {
    /// The same as our key; the value moves unchanged.
    Same(&'static str),
    /// A section of ours under another name.
    Section(&'static str),
    /// `true` adds the part to `method.freeze`, `false` does nothing.
    Freeze(&'static str),
    /// `false` adds the part to `method.freeze`, `true` does nothing.
    Tune(&'static str),
    /// `true` sets our key to the word, `false` does nothing.
    Switch(&'static str, &'static str),
    /// Module names as a list or joined by commas; `all` is PEFT's `all-linear`.
    LoraTarget,
    /// Accepted when it says this and changes nothing; refused otherwise with the hint.
    Only(&'static str, &'static str),
    /// Asks for what is always so here, or chooses between ways that give the same numbers: accepted, and why it changes nothing.
    Moot(&'static str),
    /// Means something else than any key of ours: what to write instead.
    Refused(&'static str),
}

/// One foreign name: dotted as in the tool's own file, or bare where the tool's file is flat.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Alias {
    pub(crate) theirs: &'static str,
    pub(crate) meaning: Meaning,
    pub(crate) tool: &'static str,
}

const fn alias(theirs: &'static str, meaning: Meaning, tool: &'static str) -> Alias {
    Alias { theirs, meaning, tool }
}

const HF: &str = "HF TrainingArguments";
const PEFT: &str = "PEFT";
const FACTORY: &str = "LLaMA-Factory";
const SWIFT: &str = "ms-swift";
const QWEN: &str = "qwen-vl-finetune";
const QWEN_SERIES: &str = "Qwen-VL-Series-Finetune";
const NEXT: &str = "LLaVA-NeXT";
const LMMS: &str = "lmms-engine";
const LLAVA: &str = "LLaVA";
const EGO: &str = "EgoGPT";
const EGO4D: &str = "Ego4D trainer";

/// Every foreign name that the plan answers to.
pub(crate) const ALIASES: &[Alias] = {
    use Meaning::*;
    &[
        // Sections
        alias("training", Section("train"), EGO4D),
        alias("training_args", Section("train"), LLAVA),
        alias("model_args", Section("model"), LLAVA),
        alias("data_args", Section("data"), LLAVA),
        alias("lora", Section("method.lora"), EGO4D),
        alias("output", Section("train"), EGO4D),
        // Model
        alias("model_name_or_path", Same("model.path"), FACTORY),
        alias("model_name", Same("model.path"), EGO4D),
        alias("adapter_name_or_path", Same("model.adapter"), FACTORY),
        alias("torch_dtype", Same("model.dtype"), EGO4D),
        alias(
            "device_map",
            Only("auto", "write `model.device: auto` or `cpu`; one device holds the whole model"),
            EGO4D,
        ),
        alias("trust_remote_code", Only("false", "code from a checkpoint is never executed"), FACTORY),
        alias("flash_attn", Moot("attention never stores scores"), FACTORY),
        alias("use_flash_attn", Moot("attention never stores scores"), EGO4D),
        alias("use_rmpad", Refused("write `data.packing: true`"), LMMS),
        alias("quantization_bit", Refused("4-bit weights are `method.kind: qlora`, which is not built yet"), FACTORY),
        alias("quantization_type", Refused("4-bit weights are `method.kind: qlora`, which is not built yet"), FACTORY),
        alias(
            "double_quantization",
            Refused("4-bit weights are `method.kind: qlora`, which is not built yet"),
            FACTORY,
        ),
        alias("bf16", Refused("write `model.dtype: bf16` (weights in bf16, f32 master copies of what trains)"), HF),
        alias("fp16", Refused("write `model.dtype: f16` (weights in f16, f32 master copies of what trains)"), HF),
        alias("pure_bf16", Refused("write `model.dtype: bf16`; trained weights keep an f32 master copy"), FACTORY),
        alias("tf32", Refused("remove it; f32 is computed in f32"), HF),
        // Method
        alias("stage", Only("sft", "only supervised fine-tuning (`sft`) is built"), FACTORY),
        alias("do_train", Only("true", "remove it; `vidtune eval` evaluates without training"), FACTORY),
        alias("finetuning_type", Same("method.kind"), FACTORY),
        alias("lora_rank", Same("method.lora.r"), FACTORY),
        alias("lora_r", Same("method.lora.r"), EGO4D),
        alias("lora_target", LoraTarget, FACTORY),
        alias("modules_to_save", Same("method.also_train"), PEFT),
        alias("freeze_vision_tower", Freeze("vision"), FACTORY),
        alias("freeze_multi_modal_projector", Freeze("projector"), FACTORY),
        alias("freeze_language_model", Freeze("llm"), FACTORY),
        alias("freeze_vit", Freeze("vision"), SWIFT),
        alias("freeze_aligner", Freeze("projector"), SWIFT),
        alias("freeze_llm", Freeze("llm"), SWIFT),
        alias("freeze_backbone", Freeze("llm"), LLAVA),
        alias("tune_mm_vision", Tune("vision"), QWEN),
        alias("tune_mm_mlp", Tune("projector"), QWEN),
        alias("tune_mm_llm", Tune("llm"), QWEN),
        alias("tune_mm_mlp_adapter", Switch("method.kind", "projector"), LLAVA),
        alias(
            "mm_tunable_parts",
            Refused("write `method.kind: full` with `method.freeze: [..]` for the parts that stay"),
            NEXT,
        ),
        alias("vit_lr", Same("method.learning_rates.vision"), SWIFT),
        alias("vision_lr", Same("method.learning_rates.vision"), QWEN_SERIES),
        alias("vision_tower_lr", Same("method.learning_rates.vision"), QWEN),
        alias("mm_vision_tower_lr", Same("method.learning_rates.vision"), NEXT),
        alias("mm_speech_encoder_lr", Same("method.learning_rates.speech"), EGO),
        alias("speech_projector_lr", Same("method.learning_rates.speech_projector"), EGO),
        alias("aligner_lr", Same("method.learning_rates.projector"), SWIFT),
        alias("merger_lr", Same("method.learning_rates.projector"), QWEN_SERIES),
        alias("mm_projector_lr", Same("method.learning_rates.projector"), QWEN),
        // Joining parts
        alias("vision_tower", Same("model.image_tower"), LLAVA),
        alias("mm_projector_type", Same("model.projector"), LLAVA),
        alias("pretrain_mm_mlp_adapter", Same("model.pretrained_projector"), LLAVA),
        alias("mm_vision_select_layer", Same("model.mm_vision_select_layer"), LLAVA),
        alias("mm_vision_select_feature", Same("model.mm_vision_select_feature"), LLAVA),
        alias("mm_patch_merge_type", Only("flat", "only `flat` is built"), LLAVA),
        alias("mm_use_start_end", Same("model.mm_use_start_end"), LLAVA),
        alias("mm_use_im_start_end", Same("model.mm_use_start_end"), LLAVA),
        alias("mm_use_patch_token", Same("model.mm_use_patch_token"), LLAVA),
        alias("mm_use_im_patch_token", Same("model.mm_use_patch_token"), LLAVA),
        alias("mm_newline_position", Refused("the checkpoint's configuration decides"), NEXT),
        alias("mm_spatial_pool_stride", Refused("the checkpoint's configuration decides"), NEXT),
        alias("add_time_instruction", Refused("not built yet; write the times into the records' text"), NEXT),
        alias("image_aspect_ratio", Same("model.image_aspect_ratio"), LLAVA),
        // Data
        alias("data_path", Same("data.train"), EGO4D),
        alias("video_folder", Same(MEDIA_DIR), EGO4D),
        alias("audio_folder", Same(AUDIO_DIR), EGO4D),
        alias("image_folder", Same(MEDIA_DIR), LLAVA),
        alias("dataset", Refused("write `data.train: [{path: FILE, media_dir: DIR}]`"), FACTORY),
        alias("eval_dataset", Refused("write `data.eval: [{path: FILE, media_dir: DIR}]`"), FACTORY),
        alias("dataset_dir", Refused("write the file's path in `data.train: [{path: FILE}]`"), FACTORY),
        alias("media_dir", Same(MEDIA_DIR), FACTORY),
        alias("data_dir", Same(MEDIA_DIR), LLAVA),
        alias("template", Refused("the checkpoint's own chat template decides"), FACTORY),
        alias("video_fps", Same("data.fps"), FACTORY),
        alias("FPS", Same("data.fps"), SWIFT),
        alias("video_maxlen", Same("data.max_frames"), FACTORY),
        alias("FPS_MAX_FRAMES", Same("data.max_frames"), SWIFT),
        alias("video_max_frames", Same("data.max_frames"), QWEN),
        alias("frames_upbound", Same("data.max_frames"), NEXT),
        alias("nframes", Same("data.num_frames"), QWEN_SERIES),
        alias("num_segment", Same("data.num_frames"), LLAVA),
        alias(
            "cutoff_len",
            Refused("write `data.max_length`; a longer record gets fewer frames or is refused, and is never cut"),
            FACTORY,
        ),
        alias(
            "model_max_length",
            Refused("write `data.max_length`; a longer record gets fewer frames or is refused, and is never cut"),
            LLAVA,
        ),
        alias(
            "truncation_strategy",
            Refused("remove it; a record is never cut inside media (`data.max_length`)"),
            SWIFT,
        ),
        alias("packing_length", Same("data.pack_tokens"), LMMS),
        alias("packing_strategy", Refused("write `data.packing: true` or `data.pack_tokens: N`"), LMMS),
        alias("data_flatten", Same("data.packing"), QWEN),
        alias("data_packing", Same("data.packing"), QWEN),
        alias("neat_packing", Same("data.packing"), FACTORY),
        alias("mask_history", Refused("not built yet; every assistant turn is supervised"), FACTORY),
        alias("train_on_prompt", Only("false", "only the assistant's turns are supervised"), FACTORY),
        alias("streaming", Moot("data is always streamed"), FACTORY),
        alias("buffer_size", Moot("shuffling is exact and needs no buffer"), FACTORY),
        alias("mix_strategy", Refused("write `weight` in the entries of `data.train`"), FACTORY),
        alias("interleave_probs", Refused("write `weight` in the entries of `data.train`"), FACTORY),
        alias("preprocessing_num_workers", Same("data.num_workers"), FACTORY),
        alias("dataloader_num_workers", Same("data.num_workers"), HF),
        alias("tokenized_path", Refused("remove it; nothing is tokenised in advance"), FACTORY),
        alias("overwrite_cache", Moot("nothing is tokenised in advance"), FACTORY),
        alias("group_by_length", Same("data.group_by_length"), HF),
        alias("video_ids_file", Same("data.video_ids_file"), EGO4D),
        alias("max_samples", Refused("write `max_samples` in the entries of `data.train`"), FACTORY),
        alias("val_size", Same("data.split.ratio"), FACTORY),
        alias("hf_dataset_name", Refused("not built yet; download it and write `data.train: [{path: FILE}]`"), EGO4D),
        alias(
            "hf_dataset_config",
            Refused("not built yet; download the dataset and write `data.train: [{path: FILE}]`"),
            EGO4D,
        ),
        alias("image_max_pixels", Refused("the checkpoint's processor decides the size of pictures"), FACTORY),
        alias("image_min_pixels", Refused("the checkpoint's processor decides the size of pictures"), FACTORY),
        alias("video_max_pixels", Refused("the checkpoint's processor decides the size of frames"), FACTORY),
        alias("video_min_pixels", Refused("the checkpoint's processor decides the size of frames"), FACTORY),
        // Train
        alias("epochs", Same("train.num_train_epochs"), EGO4D),
        alias("batch_size", Same("train.per_device_train_batch_size"), EGO4D),
        alias("log_interval", Same("train.logging_steps"), EGO4D),
        alias("optimizer", Same("train.optim"), EGO4D),
        alias("lr_scheduler", Same("train.lr_scheduler_type"), EGO4D),
        alias("evaluation_strategy", Same("train.eval_strategy"), HF),
        alias("save_only_model", Only("false", "checkpoints always hold what an exact resume needs"), HF),
        alias("resume_from_checkpoint", Refused("pass `--resume auto` or `--resume DIR`"), HF),
        alias("overwrite_output_dir", Only("false", "an earlier run is never overwritten"), HF),
        alias("use_cpu", Switch("model.device", "cpu"), HF),
        alias(
            "profiling_dir",
            Refused("write `train.profile: true`; `profile.json` stands in `train.output_dir`"),
            EGO4D,
        ),
        // Parallel
        alias("deepspeed_config", Same("parallel.deepspeed"), EGO4D),
        alias("sp_ulysses_degree", Refused("not built yet; one device only"), LMMS),
    ]
};

/// The alias for a key written at `section` (empty at the top): the dotted form first, then the bare name.
pub(crate) fn find(section: &str, key: &str) -> Option<&'static Alias> {
    let dotted = join(section, key);
    ALIASES.iter().find(|alias| alias.theirs == dotted).or_else(|| {
        ALIASES.iter().find(|a| a.theirs == key && (section.is_empty() || !matches!(a.meaning, Meaning::Section(_))))
    })
}

/// What an alias asks to be written.
#[derive(Debug, PartialEq)]
pub(crate) enum Rewrite {
    /// Nothing: the value changes nothing.
    Nothing,
    /// This value under our key.
    Set(&'static str, Node),
    /// One more item in our list.
    Add(&'static str, Node),
    /// The children belong to this section of ours.
    Section(&'static str),
}

/// Applies an alias to the value written under it.
///
/// # Errors
/// A [`Problem`] with the name of ours where the meaning differs or the value is not one that the other tool knows.
pub(crate) fn rewrite(alias: &Alias, written: &str, place: &Place, node: &Node) -> Result<Rewrite, Problem> {
    let truth = || {
        let problem = || format!("`{written}` must be `true` or `false`, found {}", node.describe());
        node.bool().ok_or_else(|| Problem::new(node.place.clone(), problem()))
    };
    let part = |part: &str| Rewrite::Add("method.freeze", Node::scalar(&node.place, part));
    Ok(match alias.meaning {
        Meaning::Same(ours) => Rewrite::Set(ours, node.clone()),
        Meaning::Section(ours) => Rewrite::Section(ours),
        Meaning::Freeze(name) => {
            if truth()? {
                part(name)
            } else {
                Rewrite::Nothing
            }
        }
        Meaning::Tune(name) => {
            if truth()? {
                Rewrite::Nothing
            } else {
                part(name)
            }
        }
        Meaning::Switch(ours, word) => {
            if truth()? {
                Rewrite::Set(ours, Node::scalar(&node.place, word))
            } else {
                Rewrite::Nothing
            }
        }
        Meaning::LoraTarget => Rewrite::Set("method.lora.target_modules", lora_target(node)),
        Meaning::Only(word, _) if node.text() == Some(word) => Rewrite::Nothing,
        Meaning::Moot(_) => Rewrite::Nothing,
        Meaning::Only(_, hint) => {
            let message = format!("`{written}: {}` of {} is not supported", node.text().unwrap_or("…"), alias.tool);
            return Err(Problem::new(place.clone(), message).hint(hint));
        }
        Meaning::Refused(hint) => {
            let message = format!("`{written}` of {} has no counterpart of the same meaning", alias.tool);
            return Err(Problem::new(place.clone(), message).hint(hint));
        }
    })
}

fn lora_target(node: &Node) -> Node {
    match node.text() {
        Some("all") => Node::scalar(&node.place, "all-linear"),
        Some(names) if !names.contains(['(', '*', '|', '^', '\\', '[']) => {
            Node::list(&node.place, &names.split(',').map(str::trim).collect::<Vec<_>>())
        }
        _ => node.clone(),
    }
}
