//! From a conversation and picture files to ids, labels, pixels, scores and answers: everything a checkpoint folder
//! says, against what `transformers` made of the same folder (`fixtures/models`, see its README).

#![allow(clippy::unwrap_used)] // Helpers of tests are outside `#[test]` functions.

use data::{EncodeOptions, Encoded, MediaKind, MediaRef, MediaSource, Part, Processor, Role, Sample, Turn, collate};
use hub::SafeTensors;
use infer::{GenerateOptions, generate, score_batch, upload_encoded};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tensor::DType;

struct Fixture {
    dir: PathBuf,
    expected: SafeTensors,
    info: Value,
    processor: Processor,
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn fixtures() -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models");
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    let found: Vec<Fixture> = dirs
        .into_iter()
        // Those of the Qwen-VL families show the model alone; the records of what hears are shown by `data` and `cli`.
        .filter(|d| d.join("tokenizer.json").exists() && d.join("samples.json").exists())
        .map(|dir| Fixture {
            expected: SafeTensors::open(dir.join("expected.safetensors")).unwrap(),
            info: json(&dir.join("expected.json")),
            processor: Processor::load(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())),
            dir,
        })
        .collect();
    assert!(found.len() >= 7, "only {} folders in fixtures/models", found.len());
    found
}

impl Fixture {
    fn i64s(&self, name: &str) -> Vec<i64> {
        let view = self.expected.get(name).unwrap_or_else(|| panic!("{name}"));
        view.data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn f32s(&self, name: &str) -> Option<Vec<f32>> {
        let view = self.expected.get(name)?;
        Some(view.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
    }

    /// The conversations of `samples.json`, built in memory.
    fn samples(&self) -> Vec<Sample> {
        let part = |c: &Value| match c["type"].as_str().unwrap() {
            "image" => Part::Media(MediaRef::image(self.dir.join(c["path"].as_str().unwrap()))),
            "video" => {
                let files = c["video"].as_array().unwrap().iter().map(|f| self.dir.join(f.as_str().unwrap())).collect();
                Part::Media(MediaRef::new(MediaKind::Video, MediaSource::Files(files)))
            }
            _ => Part::Text(c["text"].as_str().unwrap().to_owned()),
        };
        let role = |m: &Value| match m["role"].as_str().unwrap() {
            "system" => Role::System,
            "user" => Role::User,
            _ => Role::Assistant,
        };
        let turn =
            |m: &Value| Turn { role: role(m), parts: m["content"].as_array().unwrap().iter().map(part).collect() };
        let sample = |s: &Value| {
            Sample::new(s["id"].as_str().unwrap(), s["messages"].as_array().unwrap().iter().map(turn).collect())
        };
        json(&self.dir.join("samples.json")).as_array().unwrap().iter().map(sample).collect()
    }

    fn encode(&self, sample: &Sample, prompt: bool) -> Encoded {
        let options = EncodeOptions { add_generation_prompt: prompt, ..EncodeOptions::default() };
        self.processor.encode(sample, &options).unwrap_or_else(|e| panic!("{}: {e}", self.dir.display()))
    }

    fn model(&self) -> models::Model {
        models::load(&self.dir, &models::LoadOptions { dtype: Some(DType::F32) }).unwrap().0
    }
}

#[test]
fn ids_labels_and_pixels_are_those_of_the_reference() {
    for f in fixtures() {
        for (i, sample) in f.samples().iter().enumerate() {
            let name = format!("{} sample {i}", f.dir.display());
            let ours = f.encode(sample, false);
            // Placeholders that are no tokens are negative in the reference.
            let ids: Vec<i64> = ours.ids.iter().map(|&v| i64::from(v as i32)).collect();
            assert_eq!(ids, f.i64s(&format!("sample{i}.input_ids")), "{name}: ids of `{}`", ours.text);
            let labels: Vec<i64> = ours.labels.iter().map(|&v| i64::from(v)).collect();
            assert_eq!(labels, f.i64s(&format!("sample{i}.labels")), "{name}: labels of `{}`", ours.text);
            let theirs = f.f32s(&format!("sample{i}.pixel_values")).unwrap_or_default();
            assert_eq!(ours.pixels.len(), theirs.len(), "{name}: pixels");
            // Resized bytes are equal; scaling and normalising may round differently in the last bit of values near 2.
            let worst = ours.pixels.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 5e-7, "{name}: pixels differ by {worst:e}");
        }
    }
}

#[test]
fn scores_of_a_packed_batch() {
    for f in fixtures() {
        let encoded: Vec<Encoded> = f.samples().iter().map(|s| f.encode(s, false)).collect();
        let scores = score_batch(&f.model(), &collate(&encoded).unwrap()).unwrap();
        for (i, score) in scores.iter().enumerate() {
            let nll = f.f32s(&format!("sample{i}.nll")).unwrap();
            let sum: f64 = nll.iter().map(|&v| f64::from(v)).sum();
            assert!(
                (score.loss_sum - sum).abs() <= 2e-5 * sum,
                "{} sample {i}: {score:?} against {sum}",
                f.dir.display()
            );
            assert_eq!(score.num_tokens as u64, f.info["samples"][i]["num_supervised"].as_u64().unwrap());
            assert_eq!(score.input_tokens, nll.len());
        }
    }
}

#[test]
fn greedy_answers_from_conversations() {
    for f in fixtures() {
        let (model, samples) = (f.model(), f.samples());
        for case in f.info["greedy"].as_array().unwrap() {
            let mut sample = samples[case["sample"].as_u64().unwrap() as usize].clone();
            sample.conversation.truncate(case["num_messages"].as_u64().unwrap() as usize);
            let prompt = f.encode(&sample, true);
            let wanted = |key: &str| -> Vec<u32> {
                case[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
            };
            assert_eq!(prompt.ids, wanted("input_ids"), "{}: prompt `{}`", f.dir.display(), prompt.text);
            let input = upload_encoded(&[prompt]).unwrap();
            let run = |eos_ids: Vec<u32>| {
                let options = GenerateOptions { max_new_tokens: 24, eos_ids, ..GenerateOptions::default() };
                generate(&model, &input, &options).unwrap().remove(0)
            };
            assert_eq!(run(vec![]), wanted("new_ids"), "{}", f.dir.display());
            let eos = case["eos_id"].as_u64().unwrap() as u32;
            assert_eq!(run(vec![eos]), wanted("new_ids_with_eos"), "{}", f.dir.display());
        }
    }
}
