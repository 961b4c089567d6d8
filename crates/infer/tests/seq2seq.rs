//! Continuations and scores of sequence-to-sequence models: those of `generate`, greedy and by beams, alone and in a batch.

#![allow(clippy::unwrap_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};

use data::{EncodeOptions, Encoded, Format, Processor, collate, open_dataset};
use infer::{Beams, EarlyStopping, GenerateOptions, Rules, generate, score_batch, upload_encoded};
use models::{LoadOptions, Model};
use serde_json::{Value, json};
use tensor::DType;

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/seq2seq");
    let mut found: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|dir| dir.join("records.jsonl").exists());
    found.sort();
    assert!(found.len() >= 4);
    found
}

fn expected(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn load(dir: &Path) -> Model {
    models::load(dir, &LoadOptions { dtype: Some(DType::F32) }).unwrap().0
}

/// The prompt of a case: the source's ids, and the token that is given.
fn prompt(samples: &Value, case: &Value) -> Encoded {
    let sample = &samples[case["sample"].as_u64().unwrap() as usize];
    let target = case["forced"].as_u64().map(|id| id as u32).into_iter().collect();
    Encoded { ids: ids(&sample["ids"]), target: Some(target), ..Encoded::default() }
}

fn options(case: &Value) -> GenerateOptions {
    let (rules, notes) = Rules::read_beside(case, "case", &["num_beams"]).unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    let early_stopping = match &case["early_stopping"] {
        Value::Bool(true) => EarlyStopping::Yes,
        Value::String(never) if never == "never" => EarlyStopping::Never,
        _ => EarlyStopping::No,
    };
    let num_beams = case["num_beams"].as_u64().unwrap() as usize;
    let length_penalty = case["length_penalty"].as_f64().unwrap_or(1.0);
    GenerateOptions {
        max_new_tokens: case["max_new_tokens"].as_u64().unwrap() as usize,
        eos_ids: ids(&case["eos_ids"]),
        rules,
        beams: Some(Beams { num_beams, length_penalty, early_stopping }),
        ..GenerateOptions::default()
    }
}

#[test]
fn continuations_are_those_of_the_reference() {
    for dir in folders() {
        let (model, info) = (load(&dir), expected(&dir));
        let processor = Processor::load(&dir).unwrap();
        let cases = info["continuations"].as_array().unwrap();
        assert!(cases.iter().any(|case| case["num_beams"] == 5));
        for case in cases {
            let input = upload_encoded(&[prompt(&info["samples"], case)]).unwrap();
            let found = generate(&model, &input, &options(case)).unwrap().remove(0);
            assert_eq!(found, ids(&case["new_ids"]), "{} {case}", dir.display());
            let text = processor.decode(&found, true).unwrap();
            assert_eq!(text.trim(), case["text"].as_str().unwrap().trim(), "{}", dir.display());
        }
    }
}

/// Prompts of a batch end at different steps and have lengths of their own, also where a token is given to some of them
/// alone; none may notice the others.
#[test]
fn prompts_of_a_batch_do_not_notice_each_other() {
    for dir in folders() {
        let (model, info) = (load(&dir), expected(&dir));
        let given = |i: i32| if i % 2 == 0 { json!(7) } else { Value::Null };
        let prompts: Vec<Encoded> =
            (0..4).map(|i| prompt(&info["samples"], &json!({"sample": i, "forced": given(i)}))).collect();
        for (num_beams, early_stopping) in
            [(1, EarlyStopping::No), (3, EarlyStopping::No), (4, EarlyStopping::Yes), (2, EarlyStopping::Never)]
        {
            let options = GenerateOptions {
                max_new_tokens: 10,
                eos_ids: ids(&info["continuations"][3]["eos_ids"]),
                beams: Some(Beams { num_beams, length_penalty: 1.0, early_stopping }),
                ..GenerateOptions::default()
            };
            let run = |prompts: &[Encoded]| generate(&model, &upload_encoded(prompts).unwrap(), &options).unwrap();
            let alone: Vec<Vec<u32>> = prompts.chunks(1).map(|one| run(one).remove(0)).collect();
            assert_eq!(run(&prompts), alone, "{} {num_beams}", dir.display());
        }
    }
}

#[test]
fn given_tokens_count_and_beams_need_what_they_are_built_for() {
    let dir = &folders()[0];
    let (model, info) = (load(dir), expected(dir));
    let prompt = prompt(&info["samples"], &json!({"sample": 1, "forced": 9}));
    let run = |num_beams: usize, max_new_tokens: usize, temperature: f32| {
        let mut options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
        options.sampling.temperature = temperature;
        options.beams = Some(Beams { num_beams, length_penalty: 1.0, early_stopping: EarlyStopping::No });
        generate(&model, &upload_encoded(std::slice::from_ref(&prompt)).unwrap(), &options)
    };
    for num_beams in [1, 3] {
        assert_eq!(run(num_beams, 1, 0.0).unwrap(), [[9]]);
        let two = run(num_beams, 2, 0.0).unwrap().remove(0);
        assert_eq!((two.len(), two[0]), (2, 9));
    }
    assert_eq!(
        run(2, 4, 0.5).unwrap_err().to_string(),
        "`temperature`: expected 0 beside beams, which take the most likely, found `0.5`"
    );
}

#[test]
fn scores_are_means_over_all_target_tokens() {
    for dir in folders() {
        let (model, processor, info) = (load(&dir), Processor::load(&dir).unwrap(), expected(&dir));
        let dataset = open_dataset(&dir.join("records.jsonl"), Format::Auto, None).unwrap();
        let encode = |i| processor.encode(&dataset.get(i).unwrap(), &EncodeOptions::default()).unwrap();
        let records: Vec<Encoded> = (0..dataset.len()).map(encode).collect();
        let scores = score_batch(&model, &collate(&records).unwrap()).unwrap();
        for (score, record) in scores.iter().zip(&records) {
            assert_eq!((score.input_tokens, score.num_tokens), (record.ids.len(), record.labels.len()));
        }
        let sum: f64 = scores.iter().map(|score| score.loss_sum).sum();
        let loss = sum / info["num_supervised"].as_f64().unwrap();
        assert!((loss / info["loss"].as_f64().unwrap() - 1.0).abs() < 2e-5, "{}: {loss}", dir.display());
    }
}
