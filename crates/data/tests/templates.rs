//! Chat templates of `fixtures/data/text`: text, prompt, ids and what is learned, against `transformers`.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};

use data::{EncodeOptions, Format, IGNORE, Processor, open_dataset};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/data")
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The conversations as records whose pictures are files.
fn records(conversations: &Value) -> Value {
    let picture = fixtures().join("images/0.png");
    let mut records = Vec::new();
    for messages in conversations.as_array().unwrap() {
        let mut messages = messages.clone();
        for message in messages.as_array_mut().unwrap() {
            for part in message["content"].as_array_mut().unwrap() {
                if part["type"] == "image" {
                    part["path"] = json!(picture);
                }
            }
        }
        records.push(json!({"messages": messages}));
    }
    Value::Array(records)
}

fn check(case: &str) {
    let dir = fixtures().join("text").join(case);
    let own = dir.join("conversations.json");
    let shared = fixtures().join("text/conversations.json");
    let conversations = read(if own.is_file() { &own } else { &shared });
    let expected = read(&dir.join("expected.json"));
    let processor = Processor::load(&dir).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("records.json");
    std::fs::write(&file, records(&conversations).to_string()).unwrap();
    let dataset = open_dataset(&file, Format::Auto, None).unwrap();
    let expected = expected["conversations"].as_array().unwrap();
    assert_eq!(dataset.len() as usize, expected.len());
    for (index, want) in expected.iter().enumerate() {
        let place = format!("{case}, conversation {index}");
        let mut sample = dataset.get(index as u64).unwrap();
        let encoded = processor.encode(&sample, &EncodeOptions::default()).unwrap();
        assert_eq!(encoded.text, want["text"].as_str().unwrap(), "text of {place}");
        let ids: Vec<u64> = encoded.ids.iter().map(|&i| u64::from(i)).collect();
        assert_eq!(Value::from(ids), want["ids"], "ids of {place}");
        let mask: String = encoded.labels.iter().map(|&l| if l == IGNORE { '0' } else { '1' }).collect();
        assert_eq!(mask, want["mask"].as_str().unwrap(), "what is learned of {place}");
        assert!(encoded.labels.iter().zip(&encoded.ids).all(|(&l, &i)| l == IGNORE || l == i as i32));
        sample.conversation.pop();
        let options = EncodeOptions { add_generation_prompt: true, ..EncodeOptions::default() };
        let prompt = processor.encode(&sample, &options).unwrap();
        assert_eq!(prompt.text, want["prompt"].as_str().unwrap(), "prompt of {place}");
    }
}

#[test]
fn content_as_text_with_a_system_turn_of_the_template() {
    check("qwen_default_system");
}

#[test]
fn contents_trimmed_and_a_begin_token_in_the_template() {
    check("llama3_trim_bos");
}

#[test]
fn macros_methods_and_a_tokenizer_with_a_first_space() {
    check("parts_metaspace");
}

#[test]
fn generation_blocks_with_whitespace_control() {
    check("generation_blocks");
}

#[test]
fn reasoning_taken_out_of_earlier_answers() {
    check("think_removed");
}

#[test]
fn the_decoded_ids_are_the_text() {
    let dir = fixtures().join("text/qwen_default_system");
    let processor = Processor::load(&dir).unwrap();
    let sample = data::Sample::new(
        "x",
        vec![data::Turn::text(data::Role::User, "Naïve 🙂?"), data::Turn::text(data::Role::Assistant, "Ça va.")],
    );
    let encoded = processor.encode(&sample, &EncodeOptions::default()).unwrap();
    assert_eq!(processor.decode(&encoded.ids, false).unwrap(), encoded.text);
    let learned: Vec<u32> = encoded.labels.iter().filter(|&&l| l != IGNORE).map(|&l| l as u32).collect();
    assert_eq!(processor.decode(&learned, true).unwrap(), "Ça va.");
    assert_eq!(encoded.spans.len(), 1);
    assert_eq!(&encoded.text[encoded.spans[0].clone()], "Ça va.<|im_end|>");
    assert_eq!(processor.eos_ids().len(), 1);
}
