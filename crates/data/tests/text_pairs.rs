//! Sources and targets of sequence-to-sequence records against the reference's tokenizers, and what is refused.

#![allow(clippy::unwrap_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};

use data::{EncodeOptions, Encoded, Format, Processor, Role, Sample, Turn, collate, open_dataset};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/seq2seq")
}

fn folders() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|dir| dir.join("records.jsonl").exists());
    found.sort();
    assert!(found.len() >= 4);
    found
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn encode_all(dir: &Path, options: &EncodeOptions) -> Vec<Encoded> {
    let processor = Processor::load(dir).unwrap();
    let dataset = open_dataset(&dir.join("records.jsonl"), Format::Auto, None).unwrap();
    assert_eq!(dataset.format(), Format::Seq2seq);
    (0..dataset.len()).map(|i| processor.encode(&dataset.get(i).unwrap(), options).unwrap()).collect()
}

#[test]
fn ids_are_those_of_the_reference_with_its_language_tags() {
    for dir in folders() {
        let expected = json(&dir.join("expected.json"));
        let samples = expected["samples"].as_array().unwrap();
        let options = EncodeOptions::default();
        let found = encode_all(&dir, &options);
        assert_eq!(found.len(), samples.len());
        let processor = Processor::load(&dir).unwrap();
        let dataset = open_dataset(&dir.join("records.jsonl"), Format::Auto, None).unwrap();
        for (i, (encoded, sample)) in found.iter().zip(samples).enumerate() {
            let place = format!("{} {i}", dir.display());
            assert_eq!(encoded.ids, ids(&sample["ids"]), "{place}");
            let labels = ids(&sample["labels"]);
            assert_eq!(encoded.target.as_deref(), Some(labels.as_slice()), "{place}");
            assert!(encoded.labels.iter().map(|l| *l as u32).eq(labels.iter().copied()), "{place}");
            assert_eq!(encoded.num_supervised(), labels.len(), "{place}");
            let size = processor.measure(&dataset.get(i as u64).unwrap(), &options).unwrap();
            assert_eq!((size, size.tokens as usize), (encoded.size(), encoded.ids.len() + labels.len()), "{place}");
        }
        let batch = collate(&found).unwrap();
        let rows = batch.target.as_ref().unwrap();
        assert_eq!((rows.cu_seqlens.len(), rows.ids.len(), batch.labels.len()), (5, rows.ids.len(), rows.ids.len()));
        assert_eq!(batch.num_tokens(), found.iter().map(|e| e.ids.len()).sum::<usize>());
        assert_eq!(batch.num_supervised(), expected["num_supervised"].as_u64().unwrap() as usize);
    }
}

fn ask(question: &str) -> Sample {
    Sample::new("q", vec![Turn::text(Role::User, question)])
}

/// The language of a record wins over that of the options, and this over the checkpoint's own.
#[test]
fn languages_come_from_the_nearest_place() {
    let processor = Processor::load(&root().join("nllb_hub")).unwrap();
    let first = |sample: &Sample, options: &EncodeOptions| {
        let encoded =
            processor.encode(sample, &EncodeOptions { add_generation_prompt: true, ..options.clone() }).unwrap();
        assert!(encoded.labels.is_empty() && encoded.num_supervised() == 0);
        let target = encoded.target.unwrap();
        let name = |id: u32| processor.decode(&[id], false).unwrap();
        (name(encoded.ids[0]), target.iter().map(|id| name(*id)).collect::<Vec<_>>())
    };
    let options = EncodeOptions::default();
    assert_eq!(first(&ask("Yes."), &options), ("eng_Latn".to_owned(), vec!["deu_Latn".to_owned()]));
    let options = EncodeOptions { src_lang: Some("fra_Latn".into()), tgt_lang: Some("jpn_Jpan".into()), ..options };
    assert_eq!(first(&ask("Yes."), &options), ("fra_Latn".to_owned(), vec!["jpn_Jpan".to_owned()]));
    let own = Sample { tgt_lang: Some("eng_Latn".into()), ..ask("Yes.") };
    assert_eq!(first(&own, &options).1, ["eng_Latn"]);
    // Without any target language the model chooses, as the reference's `generate` does.
    let defaults = Processor::load(&root().join("m2m_defaults")).unwrap();
    let prompt = EncodeOptions { add_generation_prompt: true, ..EncodeOptions::default() };
    assert_eq!(defaults.encode(&ask("Yes."), &prompt).unwrap().target, Some(Vec::new()));
}

#[test]
fn a_runs_languages_are_saved_with_the_model() {
    let dir = root().join("m2m_defaults");
    let processor = Processor::load(&dir).unwrap();
    let out = tempfile::tempdir().unwrap();
    std::fs::copy(dir.join("config.json"), out.path().join("config.json")).unwrap();
    processor.save_to(out.path()).unwrap();
    processor.save_languages(out.path(), Some("fra_Latn"), Some("zho_Hans")).unwrap();
    let generation = json(&out.path().join("generation_config.json"));
    let again = Processor::load(out.path()).unwrap();
    let prompt = EncodeOptions { add_generation_prompt: true, ..EncodeOptions::default() };
    for processor in [again, processor.with_languages_of(out.path()).unwrap()] {
        let encoded = processor.encode(&ask("Yes."), &prompt).unwrap();
        let target = encoded.target.unwrap();
        assert_eq!(generation["forced_bos_token_id"], target[0]);
        assert_eq!(processor.decode(&[encoded.ids[0], target[0]], false).unwrap(), "fra_Latnzho_Hans");
    }
}

#[test]
fn what_is_no_pair_is_refused_with_its_reason() {
    let processor = Processor::load(&root().join("nllb_hub")).unwrap();
    let check = |sample: &Sample, options: &EncodeOptions, expected: &str| {
        let error = processor.encode(sample, options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let usual = EncodeOptions::default();
    let pair = |extra: Vec<Turn>| {
        let turns = [Turn::text(Role::User, "Yes."), Turn::text(Role::Assistant, "two")];
        Sample::new("r", turns.into_iter().chain(extra).collect())
    };
    assert!(processor.encode(&pair(Vec::new()), &usual).is_ok());
    check(&pair(vec![Turn::text(Role::User, "a"), Turn::text(Role::Assistant, "b")]), &usual, "found 4 turns");
    check(&ask("Yes."), &usual, "expected one question and one answer, found 1 turns");
    let english = EncodeOptions { src_lang: Some("eng_Latin".into()), ..usual.clone() };
    check(&pair(Vec::new()), &english, "`eng_Latin` is not a language of this tokenizer");
    check(&pair(Vec::new()), &english, "one of its 5 languages, such as `eng_Latn`");
    let word = EncodeOptions { tgt_lang: Some("the".into()), ..usual.clone() };
    check(&pair(Vec::new()), &word, "`the` is not a language");
    check(&pair(Vec::new()), &EncodeOptions { max_length: Some(4), ..usual }, "the source is too long");
}

#[test]
fn records_of_the_format_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.jsonl");
    let check = |record: &str, expected: &str| {
        std::fs::write(&path, record).unwrap();
        let error = open_dataset(&path, Format::Seq2seq, None).unwrap().get(0).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(r#"{"question": "a"}"#, "`caption` is missing");
    check(r#"{"question": 3, "caption": "b"}"#, "`question` has the wrong type");
    check(r#"{"question": " ", "caption": "b"}"#, "`question` is empty");
    check(r#"{"question": "a", "caption": ""}"#, "turn 1 of the assistant is empty");
    check(r#"{"question": "a", "caption": "b", "src_lang": 3}"#, "`src_lang` has the wrong type");
    check(r#"{"question": "a", "caption": "b", "videos": ["x.mp4"], "viedo": "y.mp4"}"#, "seems to name media");
    std::fs::write(&path, r#"{"id": 7, "video": "gone.mp4", "question": "a", "caption": "b"}"#).unwrap();
    let sample = open_dataset(&path, Format::Auto, None).unwrap().get(0).unwrap();
    assert_eq!((sample.id.as_str(), sample.media().count()), ("7", 0));
}
