//! Batches packed by best fit and records grouped by length: full batches, every record once, the same whatever the
//! number of threads, and exact resumption.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::{
    Batch, Dataset, EncodeOptions, Format, Ledger, LedgerEvent, Loader, LoaderOptions, LoaderState, OnBadMedia,
    Processor, Status, estimate_packing, largest_batches, open_dataset,
};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn processor() -> Arc<Processor> {
    Arc::new(Processor::load(&fixtures().join("data/text/generation_blocks")).unwrap())
}

fn has_picture(number: usize) -> bool {
    !number.is_multiple_of(3)
}

/// A record of 1 to 23 words, most of them with a picture.
fn record(number: usize) -> Value {
    let mut record = json!({"id": format!("r{number}"), "conversations": [
        {"from": "human", "value": format!("{}number {}", if has_picture(number) { "<image>\n" } else { "" }, "and ".repeat(number * 7 % 23))},
        {"from": "gpt", "value": format!("{number}")},
    ]});
    if has_picture(number) {
        record["image"] = json!(format!("{}.png", number % 7));
    }
    record
}

/// A dataset in a folder of its own, which lasts as long as the test process: records are read from the file later.
fn dataset(records: &[Value]) -> Arc<Dataset> {
    let dir = tempfile::tempdir().unwrap().keep();
    let path = dir.join("records.jsonl");
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    Arc::new(open_dataset(&path, Format::Auto, Some(&fixtures().join("data/images"))).unwrap())
}

fn good(count: usize) -> Arc<Dataset> {
    dataset(&(0..count).map(record).collect::<Vec<_>>())
}

fn packed(window: u64) -> LoaderOptions {
    LoaderOptions { pack_tokens: Some(100), pack_window: window, shuffle: true, seed: 3, ..Default::default() }
}

fn epoch(loader: &mut Loader) -> Vec<Batch> {
    std::iter::from_fn(|| loader.next_batch().unwrap()).map(|(batch, _)| batch).collect()
}

fn ids(batches: &[Batch]) -> Vec<String> {
    batches.iter().flat_map(|batch| batch.sample_ids.clone()).collect()
}

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

/// The names of records 0 to `count`, sorted.
fn names(count: usize) -> Vec<String> {
    sorted((0..count).map(|n| format!("r{n}")).collect())
}

/// Every sample of a batch as if it were alone.
fn alone(batch: &Batch) -> Vec<(String, Vec<u32>, Vec<i32>)> {
    let part = |(at, range): (usize, &[usize])| {
        let range = range[0]..range[1];
        (batch.sample_ids[at].clone(), batch.ids[range.clone()].to_vec(), batch.labels[range].to_vec())
    };
    batch.cu_seqlens.windows(2).enumerate().map(part).collect()
}

#[test]
fn batches_are_full_and_hold_every_record_once() {
    let dataset = good(60);
    let run = |window| {
        let mut loader = Loader::new(dataset.clone(), processor(), packed(window)).unwrap();
        assert_eq!(loader.batches_per_epoch(), None);
        let batches = [epoch(&mut loader), epoch(&mut loader)];
        let stats = loader.stats();
        assert_eq!((stats.records, stats.batches as usize), (120, batches.iter().map(Vec::len).sum()));
        (batches, stats.fill(100).unwrap())
    };
    let (in_order, plain_fill) = run(1);
    let (windows, fill) = run(60);
    for batches in in_order.iter().chain(&windows) {
        assert!(batches.iter().all(|batch| batch.num_tokens() <= 100));
        assert_eq!(sorted(ids(batches)), names(60));
    }
    let tokens: usize = windows[0].iter().map(Batch::num_tokens).sum();
    assert!(fill > 0.9 && plain_fill < fill, "{plain_fill} {fill}");
    assert!(windows[0].len() <= tokens.div_ceil(100) * 11 / 9 + 1);
    assert_ne!(ids(&windows[0]), ids(&windows[1]));
    // The records are the same, wherever they stand.
    let of = |batches: &[Batch]| {
        let mut all: Vec<_> = batches.iter().flat_map(alone).collect();
        all.sort();
        all
    };
    assert_eq!(of(&in_order[0]), of(&windows[0]));
    // The estimate packs the first window of the run, which here is the whole epoch.
    let estimate = estimate_packing(&dataset, &processor(), &packed(60)).unwrap();
    assert_eq!((estimate.records, estimate.batches as usize), (60, windows[0].len()));
    assert!((estimate.fill - tokens as f64 / (windows[0].len() * 100) as f64).abs() < 1e-12);
    assert_eq!(estimate_packing(&dataset, &processor(), &LoaderOptions::default()), None);
}

#[test]
fn the_same_batches_whatever_the_number_of_threads_and_the_budget() {
    let dataset = good(50);
    for window in [7, 16, 64] {
        let run = |workers, byte_budget| {
            let options = LoaderOptions { workers, byte_budget, ..packed(window) };
            let mut loader = Loader::new(dataset.clone(), processor(), options).unwrap();
            [epoch(&mut loader), epoch(&mut loader)].concat()
        };
        let one = run(1, 1 << 30);
        for (workers, budget) in [(2, 1 << 30), (7, 1 << 30), (1, 1), (3, 1), (3, 40_000)] {
            assert!(one == run(workers, budget), "window {window}, {workers} workers, {budget} bytes");
        }
        // A window is the next so many records of the epoch's order, whatever becomes of it inside.
        let mut plain = Loader::new(dataset.clone(), processor(), packed(1)).unwrap();
        let (order, found) = (ids(&epoch(&mut plain)), ids(&one)[..50].to_vec());
        for (expected, found) in order.chunks(window as usize).zip(found.chunks(window as usize)) {
            assert_eq!(sorted(expected.to_vec()), sorted(found.to_vec()));
        }
    }
}

#[test]
fn patches_are_limited_as_well() {
    // Every picture has 4 patches of 8 by 8.
    let options = LoaderOptions { pack_patches: Some(8), ..packed(32) };
    let mut loader = Loader::new(good(40), processor(), options.clone()).unwrap();
    let batches = epoch(&mut loader);
    assert_eq!(sorted(ids(&batches)), names(40));
    assert!(batches.iter().all(|batch| batch.num_images <= 2 && batch.num_tokens() <= 100));
    assert!(batches.iter().any(|batch| batch.num_images == 2));
    let options = LoaderOptions { pack_patches: Some(3), ..options };
    for window in [1, 32] {
        let options = LoaderOptions { pack_window: window, shuffle: false, ..options.clone() };
        let mut loader = Loader::new(good(3), processor(), options).unwrap();
        let error = std::iter::from_fn(|| loader.next_batch().transpose()).find_map(Result::err).unwrap().to_string();
        assert!(
            error.contains("record `r1`: the record is larger than a batch: expected at most 3 patches (`pack_patches`), found 4; hint: raise `data.pack_patches`"),
            "{error}"
        );
    }
}

/// Resumes at every batch of two epochs, each time with another number of threads.
fn check_resumption(dataset: &Arc<Dataset>, options: &LoaderOptions) {
    let mut whole = Loader::new(dataset.clone(), processor(), options.clone()).unwrap();
    let (mut states, mut batches) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        loop {
            states.push(whole.state());
            let next = whole.next_batch().unwrap();
            let is_end = next.is_none();
            batches.push(next);
            if is_end {
                break;
            }
        }
    }
    for (number, state) in states.iter().enumerate() {
        let text = serde_json::to_string(state).unwrap();
        assert!(text.len() < 300, "a position does not grow with the data: {text}");
        let state: LoaderState = serde_json::from_str(&text).unwrap();
        let options = LoaderOptions { workers: 1 + number % 4, ..options.clone() };
        let mut resumed = Loader::from_state(dataset.clone(), processor(), options, state).unwrap();
        for expected in &batches[number..] {
            assert!(resumed.next_batch().unwrap() == *expected, "resumed at {number}");
        }
    }
}

#[test]
fn resumption_in_the_middle_of_a_window() {
    for window in [5, 12, 40] {
        check_resumption(&good(23), &packed(window));
    }
}

#[test]
fn resumption_among_groups_of_like_length() {
    let options =
        LoaderOptions { batch_size: 3, group_by_length: Some(3), shuffle: true, seed: 8, ..Default::default() };
    check_resumption(&good(25), &options);
}

/// What is missing shows when a record is measured, what is broken only when it is made.
fn with_gaps(count: usize) -> Vec<Value> {
    let broken = tempfile::tempdir().unwrap().keep().join("broken.png");
    std::fs::write(&broken, b"\x89PNG\r\n\x1a\nno picture").unwrap();
    let gap = |number: usize| {
        let mut record = record(number);
        if has_picture(number) && number % 10 == 4 {
            record["image"] = json!("gone.png");
        } else if has_picture(number) && number % 10 == 7 {
            record["image"] = json!(broken);
        }
        record
    };
    (0..count).map(gap).collect()
}

#[test]
fn skipped_records_are_accounted_for() {
    let dataset = dataset(&with_gaps(40));
    let run = |workers, byte_budget| {
        let options = LoaderOptions { on_bad_media: OnBadMedia::Skip, workers, byte_budget, ..packed(15) };
        let mut loader = Loader::new(dataset.clone(), processor(), options).unwrap();
        let mut all: Vec<(Batch, Vec<LedgerEvent>)> = Vec::new();
        while let Some(next) = loader.next_batch().unwrap() {
            all.push(next);
        }
        all
    };
    let one = run(1, 1 << 30);
    assert!(one == run(4, 1 << 30) && one == run(2, 1));
    let mut ledger = Ledger::new(40);
    let mut told: Vec<u64> = Vec::new();
    for event in one.iter().flat_map(|(_, news)| news) {
        ledger.record(event);
        told.push(event.index);
    }
    told.sort_unstable();
    assert_eq!(told, (0..40).collect::<Vec<_>>(), "every record is told of once");
    let summary = ledger.summary();
    assert_eq!((summary.trained, summary.skipped, summary.not_reached), (34, 6, 0));
    assert_eq!(summary.reasons["missing_file"], 3);
    let options = LoaderOptions { on_bad_media: OnBadMedia::Skip, ..packed(15) };
    check_resumption(&dataset, &options);
    let options = LoaderOptions { on_bad_media: OnBadMedia::Skip, batch_size: 4, shuffle: true, ..Default::default() };
    check_resumption(&dataset, &LoaderOptions { group_by_length: Some(8), ..options });
}

#[test]
fn a_window_of_bad_records_is_an_empty_batch() {
    let gone = |number: usize| {
        let mut record = record(number);
        record["image"] = json!("gone.png");
        record["conversations"][0]["value"] = json!("<image>\nwhat?");
        record
    };
    let records: Vec<Value> = (0..4).map(gone).chain((4..8).map(record)).collect();
    let options = LoaderOptions { on_bad_media: OnBadMedia::Skip, shuffle: false, ..packed(4) };
    let mut loader = Loader::new(dataset(&records), processor(), options.clone()).unwrap();
    let (batch, news) = loader.next_batch().unwrap().unwrap();
    assert_eq!((batch.num_samples(), news.len(), loader.state().cursor), (0, 4, 4));
    assert_eq!(loader.next_batch().unwrap().unwrap().0.sample_ids[0], "r4");
    let options = LoaderOptions { on_bad_media: OnBadMedia::Stop, ..options };
    let mut loader = Loader::new(dataset(&records), processor(), options).unwrap();
    assert_eq!(loader.next_batch().unwrap_err().reason(), "missing_file");
    assert!(matches!(loader.failed(), [LedgerEvent { index: 0, status: Status::Failed { .. }, .. }]));
}

/// A run that was resumed on media of other lengths would go on with other batches: it is refused instead.
#[test]
fn other_sizes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    std::fs::create_dir(&list).unwrap();
    for frame in 0..2 {
        std::fs::copy(fixtures().join("data/images/0.png"), list.join(format!("{frame}.png"))).unwrap();
    }
    let mut records: Vec<Value> = (0..20).map(record).collect();
    records[0] = json!({"id": "r0", "video": list, "conversations": [
        {"from": "human", "value": "<video>\nwhat?"}, {"from": "gpt", "value": "x"},
    ]});
    let dataset = dataset(&records);
    let grouped = LoaderOptions { group_by_length: Some(2), batch_size: 2, shuffle: true, ..Default::default() };
    let states: Vec<LoaderState> = [packed(20), grouped.clone()]
        .into_iter()
        .map(|options| {
            let mut loader = Loader::new(dataset.clone(), processor(), options).unwrap();
            loader.next_batch().unwrap().unwrap();
            loader.state()
        })
        .collect();
    std::fs::copy(fixtures().join("data/images/0.png"), list.join("2.png")).unwrap();
    let expected = "the saved position does not fit the data: the lengths of its records are not those that the run measured; hint: resume with the dataset and settings of the run";
    let mut loader = Loader::from_state(dataset.clone(), processor(), packed(20), states[0].clone()).unwrap();
    assert_eq!(loader.next_batch().unwrap_err().to_string(), expected);
    let error = Loader::from_state(dataset, processor(), grouped, states[1].clone()).unwrap_err();
    assert_eq!(error.to_string(), expected);
}

#[test]
fn records_of_like_length_share_batches() {
    let dataset = good(96);
    let mut plain = LoaderOptions { batch_size: 4, shuffle: true, seed: 2, ..Default::default() };
    let run = |options: &LoaderOptions| {
        let mut loader = Loader::new(dataset.clone(), processor(), options.clone()).unwrap();
        assert_eq!(loader.batches_per_epoch(), Some(24));
        [epoch(&mut loader), epoch(&mut loader)]
    };
    /// Tokens that padding to the longest record of each batch would add.
    fn padding(batches: &[Batch]) -> usize {
        let of = |batch: &Batch| {
            let lengths: Vec<usize> = batch.cu_seqlens.windows(2).map(|ends| ends[1] - ends[0]).collect();
            lengths.iter().max().unwrap() * lengths.len() - batch.num_tokens()
        };
        batches.iter().map(of).sum()
    }
    let random = run(&plain);
    plain.group_by_length = Some(8);
    let grouped = run(&plain);
    for batches in &grouped {
        assert_eq!(sorted(ids(batches)), names(96));
        assert!(padding(batches) * 3 < padding(&random[0]), "{} {}", padding(batches), padding(&random[0]));
        let longest = |batch: &Batch| batch.cu_seqlens.windows(2).map(|ends| ends[1] - ends[0]).max().unwrap();
        assert_eq!(batches[0].cu_seqlens[1], batches.iter().map(longest).max().unwrap(), "the longest comes first");
    }
    assert_ne!(ids(&grouped[0]), ids(&grouped[1]));
    let many = run(&LoaderOptions { workers: 5, byte_budget: 1, ..plain.clone() });
    assert!(grouped == many);
}

/// What is measured is what is made, for every checkpoint and every way to choose frames.
#[test]
fn measured_and_made_sizes_agree() {
    let clip = |name: &str| fixtures().join("media/clips").join(name);
    let question = |media: Value| json!({"id": "x", "messages": [{"role": "user", "content": media}, {"role": "assistant", "content": "yes"}]});
    let video = |extra: Value| {
        let mut part = json!({"type": "video", "video": clip("h264_long_gop.mp4")});
        part.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        question(json!([part, {"type": "text", "text": "What moves here?"}]))
    };
    let image = |n: usize| json!({"type": "image", "image": format!("{n}.png")});
    let records = [
        video(json!({})),
        video(json!({"nframes": 3})),
        video(json!({"fps": 2})),
        question(json!([image(0), image(0), {"type": "text", "text": "The same?"}])),
        question(json!([{"type": "text", "text": "Nothing to see."}])),
    ];
    let dataset = dataset(&records);
    let folders = [
        "data/text/generation_blocks",
        "data/text/qwen_default_system",
        "models/llava_siglip_qwen2",
        "models/llava_clip_llama",
    ];
    let mut num_checked = 0;
    for folder in folders {
        let Ok(processor) = Processor::load(&fixtures().join(folder)) else { continue };
        for max_length in [None, Some(40)] {
            let options = EncodeOptions { num_frames: Some(5), max_length, ..EncodeOptions::default() };
            for index in 0..dataset.len() {
                let sample = dataset.get(index).unwrap();
                match (processor.measure(&sample, &options), processor.encode(&sample, &options)) {
                    (Ok(size), Ok(encoded)) => {
                        assert_eq!(size, encoded.size(), "{folder}, record {index}");
                        num_checked += 1;
                    }
                    (Err(a), Err(b)) => assert_eq!(a.reason(), b.reason(), "{folder}, record {index}"),
                    (measured, made) => panic!("{folder}, record {index}: {measured:?}, {:?}", made.err()),
                }
            }
        }
    }
    assert!(num_checked >= 20, "{num_checked}");
}

#[test]
fn the_largest_batches_are_those_that_a_loader_hands_out() {
    let dataset = good(41);
    let grouped =
        LoaderOptions { batch_size: 3, shuffle: true, seed: 5, group_by_length: Some(6), ..Default::default() };
    let plain = LoaderOptions { batch_size: 4, shuffle: true, seed: 5, ..Default::default() };
    let filed = LoaderOptions { batch_size: 4, ..Default::default() };
    // Record 21 has a picture and most words.
    let per_picture = largest_batches(&dataset, &processor(), &LoaderOptions::default(), 0..1).unwrap()[0].patches;
    assert!(per_picture > 0);
    for (case, options) in [plain, filed, grouped, packed(1), packed(16)].into_iter().enumerate() {
        let mut loader = Loader::new(dataset.clone(), processor(), options.clone()).unwrap();
        let handed: Vec<Batch> = [epoch(&mut loader), epoch(&mut loader)].concat();
        let outlines = largest_batches(&dataset, &processor(), &options, 0..2).unwrap();
        let patches = |batch: &Batch| batch.num_images as u64 * per_picture;
        for outline in &outlines {
            let twin = handed.iter().find(|batch| batch.sample_index == outline.records);
            let twin = twin.unwrap_or_else(|| panic!("case {case}: no batch {:?}", outline.records));
            assert_eq!(twin.num_tokens() as u64, outline.tokens);
        }
        assert_eq!(outlines[0].tokens, handed.iter().map(|batch| batch.num_tokens() as u64).max().unwrap());
        // Whatever a patch costs beside a token.
        for price in [0, 1, 3, 100] {
            let cost = |tokens: u64, patches: u64| tokens + price * patches;
            let expected = handed.iter().map(|b| cost(b.num_tokens() as u64, patches(b))).max().unwrap();
            assert_eq!(outlines.iter().map(|o| cost(o.tokens, o.patches)).max().unwrap(), expected, "case {case}");
        }
    }
}
