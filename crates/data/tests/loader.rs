//! The loader: the same batches whatever the number of threads, exact resumption, bad records, the ledger.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::{
    Batch, Dataset, Format, Ledger, LedgerEvent, Loader, LoaderOptions, LoaderState, OnBadMedia, Processor, Status,
    open_dataset,
};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn processor() -> Arc<Processor> {
    Arc::new(Processor::load(&fixtures().join("data/text/generation_blocks")).unwrap())
}

/// A record with a picture; `gone` names one that is not there.
fn record(number: usize, gone: bool) -> Value {
    let picture = if gone { "gone.png".to_owned() } else { format!("{}.png", number % 7) };
    json!({"id": format!("r{number}"), "image": picture, "conversations": [
        {"from": "human", "value": format!("<image>\nnumber {}", "and ".repeat(number % 5))},
        {"from": "gpt", "value": format!("{number}")},
    ]})
}

fn dataset(records: &[Value]) -> Arc<Dataset> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.jsonl");
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    let dataset = open_dataset(&path, Format::Auto, Some(&fixtures().join("data/images"))).unwrap();
    // Records are read from the file later: it stays for the length of the test process.
    std::mem::forget(dir);
    Arc::new(dataset)
}

fn good(count: usize) -> Arc<Dataset> {
    dataset(&(0..count).map(|n| record(n, false)).collect::<Vec<_>>())
}

/// The batches of an epoch.
fn epoch(loader: &mut Loader) -> Vec<Batch> {
    let mut batches = Vec::new();
    while let Some((batch, _)) = loader.next_batch().unwrap() {
        batches.push(batch);
    }
    batches
}

fn ids(batches: &[Batch]) -> Vec<Vec<String>> {
    batches.iter().map(|b| b.sample_ids.clone()).collect()
}

fn names(numbers: &[usize]) -> Vec<String> {
    numbers.iter().map(|n| format!("r{n}")).collect()
}

#[test]
fn file_order_and_a_smaller_last_batch() {
    let options = LoaderOptions { batch_size: 3, ..LoaderOptions::default() };
    let mut loader = Loader::new(good(7), processor(), options).unwrap();
    assert_eq!(loader.batches_per_epoch(), Some(3));
    let expected = vec![names(&[0, 1, 2]), names(&[3, 4, 5]), names(&[6])];
    assert_eq!(ids(&epoch(&mut loader)), expected);
    assert_eq!((loader.state().epoch, loader.state().cursor), (1, 0));
    assert_eq!(ids(&epoch(&mut loader)), expected);
}

#[test]
fn the_same_batches_whatever_the_number_of_threads_and_the_budget() {
    let dataset = good(40);
    let run = |workers, byte_budget| {
        let options =
            LoaderOptions { batch_size: 3, shuffle: true, seed: 5, workers, byte_budget, ..Default::default() };
        let mut loader = Loader::new(dataset.clone(), processor(), options).unwrap();
        [epoch(&mut loader), epoch(&mut loader)].concat()
    };
    let one = run(1, 1 << 30);
    assert_eq!(one, run(2, 1 << 30));
    assert_eq!(one, run(7, 1 << 30));
    // Less than one record: slower, and the same.
    assert_eq!(one, run(3, 1));
    let (first, second) = one.split_at(14);
    assert_ne!(ids(first), ids(second));
    let mut all: Vec<String> = ids(second).concat();
    all.sort();
    let mut expected = names(&(0..40).collect::<Vec<_>>());
    expected.sort();
    assert_eq!(all, expected);
}

#[test]
fn resumption_at_every_batch() {
    let dataset = good(11);
    let options = LoaderOptions { batch_size: 2, shuffle: true, seed: 1, ..Default::default() };
    let mut whole = Loader::new(dataset.clone(), processor(), options.clone()).unwrap();
    let (mut states, mut batches) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        loop {
            states.push(whole.state());
            let next = whole.next_batch().unwrap();
            let is_end = next.is_none();
            batches.push(next.map(|(batch, _)| batch));
            if is_end {
                break;
            }
        }
    }
    for (number, state) in states.iter().enumerate() {
        let text = serde_json::to_string(state).unwrap();
        let state: LoaderState = serde_json::from_str(&text).unwrap();
        let workers = 1 + number % 3;
        let options = LoaderOptions { workers, ..options.clone() };
        let mut resumed = Loader::from_state(dataset.clone(), processor(), options, state).unwrap();
        for expected in &batches[number..] {
            assert_eq!(resumed.next_batch().unwrap().map(|(batch, _)| batch), *expected);
        }
    }
}

#[test]
fn a_state_of_other_data_is_refused() {
    let state = Loader::new(good(3), processor(), LoaderOptions::default()).unwrap().state();
    let text = |state: LoaderState| {
        Loader::from_state(good(4), processor(), LoaderOptions::default(), state).unwrap_err().to_string()
    };
    assert_eq!(
        text(state.clone()),
        "the saved position does not fit the data: it belongs to 3 records, the dataset has 4; hint: resume with the dataset and settings of the run"
    );
    assert!(text(LoaderState { num_records: 4, seed: 1, ..state }).contains("it belongs to seed 1, the run has 42"));
}

#[test]
fn batches_by_tokens() {
    let options = LoaderOptions { pack_tokens: Some(80), ..Default::default() };
    let mut loader = Loader::new(good(20), processor(), options).unwrap();
    assert_eq!(loader.batches_per_epoch(), None);
    let batches = epoch(&mut loader);
    assert!(batches.iter().all(|b| b.num_tokens() <= 80));
    assert_eq!(ids(&batches).concat(), names(&(0..20).collect::<Vec<_>>()));
    // No batch would have held the first record of the next one.
    for pair in batches.windows(2) {
        assert!(pair[0].num_tokens() + pair[1].cu_seqlens[1] > 80);
    }
    let options = LoaderOptions { pack_tokens: Some(5), ..Default::default() };
    let error = Loader::new(good(2), processor(), options).unwrap().next_batch().unwrap_err();
    assert!(error.to_string().contains("record `r0`: the record is larger than a batch: expected at most 5 tokens"));
}

/// Every tenth record has a picture that is not there.
fn with_gaps(count: usize) -> Arc<Dataset> {
    dataset(&(0..count).map(|n| record(n, n % 10 == 3)).collect::<Vec<_>>())
}

#[test]
fn a_bad_record_stops_the_run() {
    let options = LoaderOptions { batch_size: 2, ..Default::default() };
    let mut loader = Loader::new(with_gaps(6), processor(), options).unwrap();
    loader.next_batch().unwrap().unwrap();
    assert!(loader.failed().is_empty());
    let error = loader.next_batch().unwrap_err();
    assert_eq!(error.reason(), "missing_file");
    assert!(error.to_string().contains("records.jsonl` line 4, record `r3`: `"), "{error}");
    let [failed] = loader.failed() else { panic!("{:?}", loader.failed()) };
    assert_eq!((failed.id.as_str(), failed.index), ("r3", 3));
    assert!(matches!(&failed.status, Status::Failed { reason, .. } if reason == "missing_file"));
}

#[test]
fn a_bad_record_is_skipped_and_noted() {
    let dataset = with_gaps(30);
    let run = |workers| {
        let options =
            LoaderOptions { batch_size: 4, on_bad_media: OnBadMedia::Skip, workers, ..LoaderOptions::default() };
        let mut loader = Loader::new(dataset.clone(), processor(), options).unwrap();
        let mut ledger = Ledger::new(dataset.len());
        let (mut batches, mut events) = (Vec::new(), Vec::new());
        while let Some((batch, news)) = loader.next_batch().unwrap() {
            news.iter().for_each(|event| ledger.record(event));
            events.extend(news);
            batches.push(batch);
        }
        (batches, events, ledger)
    };
    let (batches, events, ledger) = run(1);
    // The batch keeps its place: it is one record smaller, and the others are the same.
    assert_eq!(batches[0].sample_ids, names(&[0, 1, 2]));
    assert_eq!(batches[1].sample_ids, names(&[4, 5, 6, 7]));
    let skipped: Vec<&LedgerEvent> = events.iter().filter(|e| e.status != Status::Trained).collect();
    assert_eq!(skipped.iter().map(|e| e.index).collect::<Vec<_>>(), [3, 13, 23]);
    let summary = ledger.summary();
    assert_eq!((summary.total, summary.trained, summary.skipped, summary.not_reached), (30, 27, 3, 0));
    assert_eq!(summary.reasons["missing_file"], 3);
    let (again, same_events, _) = run(5);
    assert_eq!((again, same_events), (batches, events));
}

#[test]
fn too_many_skips_stop_the_run() {
    let all_gone = dataset(&(0..40).map(|n| record(n, true)).collect::<Vec<_>>());
    let options = LoaderOptions { batch_size: 4, on_bad_media: OnBadMedia::Skip, ..LoaderOptions::default() };
    let mut loader = Loader::new(all_gone.clone(), processor(), options.clone()).unwrap();
    let (first, news) = loader.next_batch().unwrap().unwrap();
    assert_eq!((first.num_samples(), news.len()), (0, 4));
    loader.next_batch().unwrap();
    let error = loader.next_batch().unwrap_err();
    assert_eq!(
        error.to_string(),
        "11 records were skipped, the limit is 10: missing_file 11; hint: repair the data, or raise `data.max_skips`"
    );
    let options = LoaderOptions { max_skips: Some(1), ..options };
    let mut loader = Loader::new(all_gone, processor(), options).unwrap();
    assert_eq!(loader.next_batch().unwrap_err().reason(), "too_many_skips");
}

#[test]
fn broken_records_are_skipped_like_bad_media() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.jsonl");
    let wrong = json!({"id": "w", "conversations": [{"from": "gpt", "value": "x"}]});
    std::fs::write(&path, format!("{}\n{{\"id\": \n{wrong}\n{}", record(0, false), record(1, false))).unwrap();
    let dataset = Arc::new(open_dataset(&path, Format::Auto, Some(&fixtures().join("data/images"))).unwrap());
    let options = LoaderOptions { batch_size: 4, on_bad_media: OnBadMedia::Skip, ..LoaderOptions::default() };
    let mut loader = Loader::new(dataset.clone(), processor(), options).unwrap();
    let (batch, news) = loader.next_batch().unwrap().unwrap();
    assert_eq!(batch.sample_ids, names(&[0, 1]));
    let reasons: Vec<String> = news
        .iter()
        .map(|e| match &e.status {
            Status::Skipped { reason, .. } => format!("{}: {reason}", e.id),
            other => format!("{}: {other:?}", e.id),
        })
        .collect();
    assert_eq!(reasons, ["r0: Trained", "1: bad_json", "w: wrong_role_order", "r1: Trained"]);
}

#[test]
fn the_ledger_accounts_for_every_record() {
    let dataset = with_gaps(5);
    let options = LoaderOptions { batch_size: 2, on_bad_media: OnBadMedia::Skip, ..LoaderOptions::default() };
    let mut loader = Loader::new(dataset.clone(), processor(), options).unwrap();
    let mut ledger = Ledger::new(dataset.len());
    for _ in 0..2 {
        let (_, news) = loader.next_batch().unwrap().unwrap();
        news.iter().for_each(|event| ledger.record(event));
    }
    let text = serde_json::to_string(&ledger).unwrap();
    assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), ledger);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.jsonl");
    ledger.write_jsonl(&path, |index| dataset.id(index)).unwrap();
    let lines: Vec<Value> =
        std::fs::read_to_string(&path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let short: Vec<String> =
        lines.iter().map(|l| format!("{} {}", l["id"].as_str().unwrap(), l["status"].as_str().unwrap())).collect();
    assert_eq!(short, ["r0 trained", "r1 trained", "r2 trained", "r3 skipped", "r4 not_reached"]);
    assert_eq!(lines[3]["reason"], "missing_file");
    assert!(lines[3]["message"].as_str().unwrap().contains("gone.png"));
    // Trained once stays trained.
    let status = Status::Skipped { reason: "x".into(), message: "x".into() };
    ledger.record(&LedgerEvent { index: 0, id: "r0".into(), status, notes: Vec::new() });
    assert_eq!(ledger.summary().trained, 3);
}

/// What was skipped in the batch that failed is not forgotten with it.
#[test]
fn a_failing_batch_keeps_its_skips() {
    let records: Vec<Value> = (0..6).map(|n| record(n, (1..4).contains(&n))).collect();
    let options =
        LoaderOptions { batch_size: 6, on_bad_media: OnBadMedia::Skip, max_skips: Some(2), ..Default::default() };
    let mut loader = Loader::new(dataset(&records), processor(), options).unwrap();
    assert_eq!(loader.next_batch().unwrap_err().reason(), "too_many_skips");
    let told: Vec<(u64, bool)> =
        loader.failed().iter().map(|e| (e.index, matches!(e.status, Status::Failed { .. }))).collect();
    assert_eq!(told, [(1, false), (2, false), (3, true)]);
    let mut ledger = Ledger::new(6);
    loader.failed().iter().for_each(|event| ledger.record(event));
    let summary = ledger.summary();
    assert_eq!((summary.trained, summary.skipped, summary.failed, summary.not_reached), (0, 2, 1, 3));
}

/// A clip that ends early trains with what it has, and says so.
#[test]
fn what_was_not_as_asked_is_noted() {
    let clip = fixtures().join("media/clips/h264_small.mp4");
    let short = json!({"id": "short", "video": clip, "conversations": [
        {"from": "human", "value": "<video>\nwhat?"}, {"from": "gpt", "value": "x"},
    ]});
    let mut options = LoaderOptions { batch_size: 2, ..LoaderOptions::default() };
    options.encode.num_frames = Some(30);
    let mut loader = Loader::new(dataset(&[record(0, false), short]), processor(), options).unwrap();
    let (_, news) = loader.next_batch().unwrap().unwrap();
    let note = format!("`{}` has 20 frames, 30 were wanted", clip.display());
    assert_eq!(news.iter().map(|event| event.notes.clone()).collect::<Vec<_>>(), [vec![], vec![note.clone()]]);
    let mut ledger = Ledger::new(2);
    news.iter().for_each(|event| ledger.record(event));
    assert_eq!((ledger.summary().trained, ledger.summary().noted), (2, 1));
    assert!(ledger.is_noted(1) && !ledger.is_noted(0));
    let ledger: Ledger = serde_json::from_str(&serde_json::to_string(&ledger).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    ledger.write_jsonl(&dir.path().join("ledger.jsonl"), |index| format!("r{index}")).unwrap();
    let text = std::fs::read_to_string(dir.path().join("ledger.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines[0].get("notes"), &lines[1]["notes"]), (None, &json!([note])));
}

/// A line that is no text, and a dialogue that the chat template refuses, are faults of their records.
#[test]
fn faults_of_one_record_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(fixtures().join("data/text/generation_blocks")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    for name in ["chat_template.jinja", "chat_template.json"] {
        let _ = std::fs::remove_file(model.join(name));
    }
    let template = "{% for m in messages %}{% if 'refuse me' in m.content %}{{ raise_exception('no such words') }}\
                    {% endif %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}";
    let path = model.join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["chat_template"] = json!(template);
    std::fs::write(&path, config.to_string()).unwrap();
    let processor = Arc::new(Processor::load(&model).unwrap());

    let talk = |id: &str, words: &str| {
        json!({"id": id, "messages": [{"role": "user", "content": words}, {"role": "assistant", "content": "x"}]})
            .to_string()
    };
    // Latin-1 in the middle of a record that is whole otherwise.
    let mut bytes = format!("{}\n", talk("latin", "caf@ noir")).into_bytes();
    let at = bytes.iter().position(|&byte| byte == b'@').unwrap();
    bytes[at] = 0xe9;
    bytes.extend(format!("{}\n\n{}\n", talk("good", "hello"), talk("refused", "please refuse me")).bytes());
    let path = dir.path().join("records.jsonl");
    std::fs::write(&path, bytes).unwrap();
    let dataset = Arc::new(open_dataset(&path, Format::Auto, None).unwrap());
    assert_eq!((dataset.len(), dataset.id(0).as_str()), (3, "latin"));

    let error = dataset.get(0).unwrap_err();
    assert!(error.is_one_record());
    assert_eq!(
        error.to_string(),
        format!(
            "`{}` line 1, record `latin`: column {}: the text is not UTF-8; hint: save the file in UTF-8, or set `data.on_bad_media: skip`",
            path.display(),
            at + 1
        )
    );
    let error = processor.encode(&dataset.get(2).unwrap(), &Default::default()).unwrap_err();
    assert!(error.is_one_record());
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("`{}` line 4, record `refused`: the chat template of `", path.display())),
        "{text}"
    );
    assert!(text.contains("refuses the dialogue: line 1: no such words; hint: change the dialogue"), "{text}");

    let options = LoaderOptions { batch_size: 3, on_bad_media: OnBadMedia::Skip, ..LoaderOptions::default() };
    let mut loader = Loader::new(dataset, processor, options).unwrap();
    let (batch, news) = loader.next_batch().unwrap().unwrap();
    assert_eq!(batch.sample_ids, ["good"]);
    let reasons: Vec<&str> = news
        .iter()
        .map(|event| match &event.status {
            Status::Skipped { reason, .. } => reason.as_str(),
            _ => "trained",
        })
        .collect();
    assert_eq!(reasons, ["bad_json", "trained", "template"]);
}

#[test]
fn contradicting_options_are_refused() {
    let text = |options| Loader::new(good(2), processor(), options).unwrap_err().to_string();
    let none = LoaderOptions { batch_size: 0, ..Default::default() };
    assert_eq!(text(none), "`train.per_device_train_batch_size`: a batch of 0 records; hint: use 1 or more");
    let idle = LoaderOptions { workers: 0, ..Default::default() };
    assert_eq!(text(idle), "`data.num_workers`: no thread would read the data; hint: use 1 or more");
}

#[test]
fn weights_take_shares_of_datasets_and_resume_where_they_stood() {
    let options = LoaderOptions { batch_size: 2, shuffle: true, ..LoaderOptions::default() };
    let open = || {
        let sets =
            [(0..6, 0.5), (6..10, 2.0), (10..13, 1.0)].map(|(numbers, weight): (std::ops::Range<usize>, f64)| {
                let set = dataset(&numbers.map(|n| record(n, false)).collect::<Vec<_>>());
                Arc::try_unwrap(set).unwrap().weighted(weight)
            });
        Arc::new(Dataset::concat(sets.into()))
    };
    let set = open();
    assert_eq!((set.len(), set.epoch_len()), (13, 14));
    assert_eq!(set.shares().map(|(_, take, len)| (take, len)).collect::<Vec<_>>(), [(3, 6), (8, 4), (3, 3)]);
    let mut loader = Loader::new(set, processor(), options.clone()).unwrap();
    assert_eq!(loader.batches_per_epoch(), Some(7));
    let (mut ledger, mut all, mut states) = (Ledger::new(13), Vec::new(), Vec::new());
    for _ in 0..2 {
        while let Some((batch, events)) = loader.next_batch().unwrap() {
            events.iter().for_each(|event| ledger.record(event));
            all.push(batch.sample_ids.clone());
            states.push(loader.state());
        }
    }
    let count = |name: &str, batches: &[Vec<String>]| batches.iter().flatten().filter(|id| *id == name).count();
    let each = |batches: &[Vec<String>]| (0..13).map(|n| count(&format!("r{n}"), batches)).collect::<Vec<_>>();
    let first = each(&all[..7]);
    assert_eq!((first[..6].iter().sum::<usize>(), &first[6..]), (3, &[2, 2, 2, 2, 1, 1, 1][..]));
    assert_eq!(each(&all), [1, 1, 1, 1, 1, 1, 4, 4, 4, 4, 2, 2, 2]);
    // Every record counts once in the ledger, however often it came.
    let summary = ledger.summary();
    assert_eq!((summary.total, summary.trained, summary.not_reached), (13, 13, 0));
    for stop in [2, 6, 9] {
        let workers = LoaderOptions { workers: 1 + stop % 3, ..options.clone() };
        let mut again = Loader::from_state(open(), processor(), workers, states[stop].clone()).unwrap();
        let mut rest = Vec::new();
        while rest.len() < 13 - stop {
            if let Some((batch, _)) = again.next_batch().unwrap() {
                rest.push(batch.sample_ids);
            }
        }
        assert_eq!(rest, all[stop + 1..], "{stop}");
    }
    let other = LoaderOptions { group_by_length: Some(2), ..options };
    assert_eq!(
        Loader::new(open(), processor(), other).unwrap_err().to_string(),
        "`data.group_by_length`: orders all records once an epoch, beside a `weight` that is not 1; hint: keep one of them"
    );
}
