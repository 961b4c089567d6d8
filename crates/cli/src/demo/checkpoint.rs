//! A LLaVA small enough to learn in a minute, with random weights, as a checkpoint folder in the Hugging Face layout. Owns its
//! sizes, its vocabulary and its template; from here on the demo treats it like any checkpoint of a user.

use std::path::Path;

use anyhow::Result;
use models::{ModelConfig, NamedParam};
use serde_json::{Value, json};
use tensor::DType;

use super::questions;
use super::rng::Rng;
use super::scene::GRID;
use crate::output;

/// Sides of a patch of the tower, in pixels.
const PATCH: usize = 8;
/// Sides of the pictures that the tower sees: a patch for each cell of the clips' grid.
const IMAGE: usize = PATCH * GRID;

/// Special tokens, in the order of their ids after the vocabulary.
const SPECIAL: [&str; 6] = ["<|endoftext|>", "<|end|>", "<image>", "<|system|>", "<|user|>", "<|assistant|>"];

/// A sign for the role, then pictures with their numbers, then the text.
const TEMPLATE: &str = "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] if part['type'] == 'image' %}{{ loop.index ~ '<image>' }}{% endfor %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}\
{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// Writes the folder.
///
/// # Errors
/// A file cannot be written.
pub fn write(dir: &Path, seed: u64) -> Result<()> {
    let words = vocabulary();
    let base = words.len();
    let id = |special: usize| base + special;
    let files = [
        ("config.json", config(base)),
        ("generation_config.json", json!({"eos_token_id": id(1), "pad_token_id": id(0)})),
        ("tokenizer.json", tokenizer(&words)),
        ("tokenizer_config.json", tokenizer_config(base)),
        ("preprocessor_config.json", preprocessor_config()),
        ("processor_config.json", processor_config()),
    ];
    for (name, value) in files {
        output::write_json(Some(&dir.join(name)), &value)?;
    }
    output::write(Some(&dir.join("chat_template.jinja")), TEMPLATE.as_bytes())?;
    let model = models::random(ModelConfig::load(dir)?, seed, DType::F32)?;
    for (index, named) in model.params().iter().enumerate() {
        scale(named, &mut Rng::new(seed, &format!("weight {index}")))?;
    }
    Ok(model.save(dir, u64::MAX)?)
}

/// A small model learns fastest when what a patch shows and where it is reach the decoder loud and clear from the first step on,
/// and matrices keep the size of what passes through them.
fn scale(named: &NamedParam, rng: &mut Rng) -> Result<()> {
    let shape = named.param.shape();
    let [_, inputs] = shape.as_slice() else { return Ok(()) };
    let deviation = match named.name.as_str() {
        name if name.ends_with("patch_embedding.weight") => 0.5,
        name if name.ends_with("position_embedding.weight") => 3.0,
        name if name.ends_with("embed_tokens.weight") => 1.0,
        _ => (1.0 / *inputs as f64).sqrt(),
    };
    Ok(named.param.update(|values| values.iter_mut().for_each(|value| *value = (rng.normal() * deviation) as f32))?)
}

fn config(base: usize) -> Value {
    json!({
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": base + 2,
        "image_seq_length": GRID * GRID,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": false,
        "torch_dtype": "float32",
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": base + SPECIAL.len(),
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "max_position_embeddings": 512,
            "rope_theta": 1000.0,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "tie_word_embeddings": false,
            "use_sliding_window": false,
            "bos_token_id": base,
            "eos_token_id": base + 1,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "image_size": IMAGE,
            "patch_size": PATCH,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "vision_use_head": false,
        },
    })
}

/// The 256 signs for bytes, then every word that the demo uses, alone and after a space.
fn vocabulary() -> Vec<String> {
    let mut words: Vec<String> = (0..=255_u8).map(|byte| byte_sign(byte).to_string()).collect();
    for word in questions::words() {
        // A word of one byte is there already.
        for form in [word.clone(), format!("{}{word}", byte_sign(b' '))] {
            if !words.contains(&form) {
                words.push(form);
            }
        }
    }
    words
}

/// The sign that stands for a byte in byte-level vocabularies: itself if it can be printed, else the next free sign from U+0100 on
/// (GPT-2's table).
fn byte_sign(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|earlier| !printable(*earlier)).count() as u32;
    char::from_u32(256 + before).unwrap_or('?')
}

/// Byte-level: whole words of the vocabulary are one token, everything else is spelt in bytes, so that any question can be asked.
fn tokenizer(words: &[String]) -> Value {
    let vocabulary: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(id, word)| (word.clone(), id.into())).collect();
    let added = SPECIAL.iter().enumerate().map(|(index, content)| {
        let mut token = special_token(content);
        token["id"] = (words.len() + index).into();
        token
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": true, "vocab": vocabulary, "merges": [],
        },
    })
}

fn special_token(content: &str) -> Value {
    json!({"content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
}

fn tokenizer_config(base: usize) -> Value {
    let decoder: serde_json::Map<String, Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(index, content)| ((base + index).to_string(), special_token(content)))
        .collect();
    json!({
        "added_tokens_decoder": decoder,
        "clean_up_tokenization_spaces": false,
        "eos_token": SPECIAL[1],
        "pad_token": SPECIAL[0],
        "model_max_length": 512,
        "padding_side": "right",
        "processor_class": "LlavaProcessor",
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}

fn preprocessor_config() -> Value {
    json!({
        "processor_class": "LlavaProcessor",
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": true, "do_rescale": true, "do_normalize": true,
        "resample": 2,
        "rescale_factor": 1.0 / 255.0,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"height": IMAGE, "width": IMAGE},
    })
}

fn processor_config() -> Value {
    json!({
        "processor_class": "LlavaProcessor",
        "image_token": SPECIAL[2],
        "num_additional_image_tokens": 0,
        "patch_size": PATCH,
        "vision_feature_select_strategy": "full",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_signs_are_those_of_gpt2() {
        // From the published table: space, line end, delete, and the first and last printable signs.
        for (byte, sign) in [(b' ', 'Ġ'), (b'\n', 'Ċ'), (0x7f, 'ġ'), (b'!', '!'), (0xff, 'ÿ'), (0xad, 'Ń'), (0, 'Ā')]
        {
            assert_eq!(byte_sign(byte), sign);
        }
        let mut all: Vec<char> = (0..=255).map(byte_sign).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn the_folder_is_a_checkpoint_that_tokenises_the_demo_by_words() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 7).unwrap();
        let processor = data::Processor::load(dir.path()).unwrap();
        assert_eq!(processor.tokens_per_image(), Some(GRID * GRID));
        let (model, _) = models::load(dir.path(), &models::LoadOptions::default()).unwrap();
        let count: usize = model.params().iter().map(|named| named.param.shape().iter().product::<usize>()).sum();
        assert!((100_000..2_000_000).contains(&count), "{count} weights");
        // Every word of every question and answer is one token.
        for word in questions::words() {
            assert!(vocabulary().contains(&word), "{word}");
        }
    }
}
