//! Which records belong to a run: lists of ids, limits, splits, and the counts that add up; Something-Something v2's
//! annotations as records.

#![allow(clippy::unwrap_used)] // Helpers of tests are outside `#[test]` functions.

use std::collections::BTreeSet;
use std::path::Path;

use data::{DataError, DataPlan, Dataset, Ssv2Options, convert_ssv2};
use serde_json::{Value, json};

/// Ten records, `r0` to `r9`, each of a clip of its own, and a list of ids.
fn folder(list: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let record =
        |i: usize| json!({"id": format!("r{i}"), "video": format!("clips/c{i}.mp4"), "question": "x", "answer": "y"});
    let records: Vec<Value> = (0..10).map(record).collect();
    std::fs::write(dir.path().join("a.json"), json!(records).to_string()).unwrap();
    std::fs::write(dir.path().join("ids.txt"), list).unwrap();
    dir
}

fn plan(dir: &Path, set: Value, section: Value) -> DataPlan {
    let mut train = json!({"path": dir.join("a.json")});
    train.as_object_mut().unwrap().extend(set.as_object().unwrap().clone());
    let mut all = json!({"train": [train]});
    all.as_object_mut().unwrap().extend(section.as_object().unwrap().clone());
    DataPlan::from_json(&all).unwrap()
}

fn ids(dataset: &Dataset) -> Vec<String> {
    (0..dataset.len()).map(|i| dataset.get(i).unwrap().id).collect()
}

fn told(dataset: &Dataset) -> Vec<String> {
    dataset.selected().map(|s| s.to_string().rsplit_once("/a.json").unwrap().1.to_owned()).collect()
}

#[test]
fn a_list_names_records_or_clips() {
    let dir = folder("\u{feff}r1\r\nc3\n\nc5.mp4 \nclips/c6.mp4\nzz\n");
    let list = dir.path().join("ids.txt");
    for (set, section) in [(json!({"video_ids_file": list}), json!({})), (json!({}), json!({"video_ids_file": list}))] {
        let dataset = plan(dir.path(), set, section).open_train().unwrap();
        assert_eq!(ids(&dataset), ["r1", "r3", "r5", "r6"]);
        assert_eq!(dataset.id(3), "r6");
        assert_eq!(
            told(&dataset),
            [
                "`: 4 of its 10 records are used, 6 are not in `video_ids_file`; ids of `video_ids_file` that no record has: 1"
            ]
        );
        // A list that changes between a run and its resumption is noticed.
        assert_eq!(dataset.fingerprints().len(), 2);
    }
    let all = plan(dir.path(), json!({}), json!({})).open_train().unwrap();
    assert_eq!((all.len(), all.selected().count(), all.fingerprints().len()), (10, 0, 1));
}

#[test]
fn lists_that_choose_nothing() {
    let check = |dir: &Path, expected: &str| {
        let error = plan(dir, json!({"video_ids_file": dir.join("ids.txt")}), json!({})).open_train().unwrap_err();
        let text = error.to_string().replace(&dir.display().to_string(), "");
        assert_eq!(text, expected);
    };
    let dir = folder("x\ny\n");
    check(
        dir.path(),
        "`/ids.txt`: none of its 2 ids is that of a record or clip of `/a.json`; hint: write one id a line, as the records have them",
    );
    let dir = folder(" \n");
    check(dir.path(), "`/ids.txt`: the list of ids is empty; hint: write one id a line");
    std::fs::remove_file(dir.path().join("ids.txt")).unwrap();
    check(dir.path(), "`/ids.txt`: no such file; hint: check `video_ids_file`");
}

#[test]
fn a_split_has_two_parts_and_no_third() {
    let dir = folder("");
    let open = |seed: Option<u64>, set: Value| {
        let plan = plan(dir.path(), set, json!({"split": {"ratio": 0.25, "seed": seed}}));
        assert!(plan.has_eval());
        (plan.open_train().unwrap(), plan.open_eval().unwrap())
    };
    let (train, eval) = open(None, json!({}));
    // As `train_test_split` of `datasets`: a quarter of ten, rounded up.
    assert_eq!((train.len(), eval.len()), (7, 3));
    let both: BTreeSet<String> = ids(&train).into_iter().chain(ids(&eval)).collect();
    assert_eq!(both.len(), 10);
    assert_eq!(told(&eval), ["`: 3 of its 10 records are used, 7 are in the other part of `data.split`"]);
    let same = open(Some(42), json!({}));
    assert_eq!((ids(&same.0), ids(&same.1)), (ids(&train), ids(&eval)));
    let others: BTreeSet<Vec<String>> = (0..8).map(|seed| ids(&open(Some(seed), json!({})).1)).collect();
    assert!(others.len() > 4, "{others:?}");
    // The list first, then the limit, then the split; the counts add up to the file.
    std::fs::write(dir.path().join("ids.txt"), "r0\nr2\nr4\nr6\nr8\n").unwrap();
    let (train, eval) = open(None, json!({"video_ids_file": dir.path().join("ids.txt"), "max_samples": 4}));
    let both: BTreeSet<String> = ids(&train).into_iter().chain(ids(&eval)).collect();
    assert_eq!(both.into_iter().collect::<Vec<_>>(), ["r0", "r2", "r4", "r6"]);
    let counts = train.selected().next().unwrap();
    assert_eq!(
        (counts.in_file, counts.not_in_ids, counts.beyond_max, counts.other_part, counts.used),
        (10, 5, 1, 1, 3)
    );
    let (train, _) = open(None, json!({"max_samples": 2}));
    assert_eq!(train.len(), 1);
    let one = plan(dir.path(), json!({"max_samples": 1}), json!({"split": {"ratio": 0.25}})).open_train().unwrap_err();
    assert!(one.to_string().ends_with("/a.json`: a split of 1 records by 0.25 leaves one part empty; hint: change `data.split.ratio`, or name a file in `data.eval`"), "{one}");
}

fn convert(annotations: (&str, &str), labels: Option<&str>, options: &Ssv2Options) -> Result<Vec<Value>, DataError> {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    let labels = labels.map(|text| at("labels.json", text));
    let mut records = Vec::new();
    let path = at(annotations.0, annotations.1);
    let count = convert_ssv2(&path, labels.as_deref(), options, &mut |record| {
        records.push(record);
        Ok(())
    })?;
    assert_eq!(count, records.len() as u64);
    Ok(records)
}

fn ssv2_record(id: &str, video: &str, answer: &str) -> Value {
    json!({"id": id, "video": video, "conversations": [
        {"from": "human", "value": "<video>\nDescribe this video."},
        {"from": "gpt", "value": answer},
    ]})
}

#[test]
fn something_something_fills_its_placeholders() {
    // The shape of the published files; the texts are made up.
    let published = json!([
        {"id": "78687", "label": "holding potato next to bottle", "template": "Holding [something] next to [something]", "placeholders": ["potato", "bottle [blue]"]},
        {"id": 42326, "label": "pushing a cup", "template": "Pushing [something]", "placeholders": ["a cup"]},
        {"id": "3", "label": "closing a door"},
    ])
    .to_string();
    let records = convert(("train.json", &published), None, &Ssv2Options::default()).unwrap();
    assert_eq!(
        records,
        [
            ssv2_record("78687", "78687.webm", "Holding potato next to bottle [blue]"),
            ssv2_record("42326", "42326.webm", "Pushing a cup"),
            ssv2_record("3", "3.webm", "closing a door"),
        ]
    );
    // Lines, with either file of labels.
    let lines = "some dir/78687.webm 1\n\nx/3.webm,0\n";
    for labels in [
        r#"{"0": "Closing [something]", "1": "Holding something"}"#,
        r#"{"Closing something": "0", "Holding something": 1}"#,
    ] {
        let options = Ssv2Options { suffix: Some(".mp4".into()), ..Ssv2Options::default() };
        let records = convert(("train.csv", lines), Some(labels), &options).unwrap();
        let expected =
            [ssv2_record("78687", "78687.mp4", "Holding something"), ssv2_record("3", "3.mp4", "Closing something")];
        assert_eq!(records, expected);
    }
}

#[test]
fn annotations_that_say_nothing() {
    let check = |name: &str, text: &str, labels: Option<&str>, expected: &str| {
        let error = convert((name, text), labels, &Ssv2Options::default()).unwrap_err().to_string();
        let (_, end) = error.split_once("`/").unwrap();
        let (path, rest) = end.split_once('`').unwrap();
        assert_eq!(format!("{}{rest}", path.rsplit_once('/').unwrap().1), expected);
    };
    let labels = Some(r#"{"0": "Closing something"}"#);
    check(
        "t.json",
        r#"[{"id": "1"}]"#,
        None,
        "t.json line 1, record `1`: the clip has neither `template` nor `label`; hint: annotations of the test part have none and cannot be learned from",
    );
    check(
        "t.json",
        r#"[{"id": "1", "template": "[a] b [c]", "placeholders": ["x"]}]"#,
        None,
        "t.json line 1, record `1`: the brackets of `template` are not the placeholders: expected 2 in `[a] b [c]`, found 1; hint: repair the annotation, or remove it",
    );
    check(
        "t.json",
        r#"[{"label": "x"}]"#,
        None,
        "t.json line 1, record 0: `id` is missing: expected an annotation with `id`, found an object with `label`",
    );
    check(
        "t.csv",
        "a.webm 0\nb.webm 7\n",
        labels,
        "t.csv line 2, record 1: the label `7` has no meaning: expected one of the 1 labels of the labels file, found `7`; hint: clips of the test part have no label and cannot be learned from; is it the right file?",
    );
    check(
        "t.csv",
        "a.webm\n",
        labels,
        "t.csv line 1, record 0: the line is not a path and a label: expected `path label`, found `a.webm`",
    );
    check(
        "t.csv",
        "a.webm 0\n",
        None,
        "t.csv: lines `path label` need a file that says what the labels mean; hint: name it with `--labels FILE`",
    );
    check(
        "t.csv",
        "a.webm 0\n",
        Some("[1]"),
        "labels.json: expected an object of labels, found a list of 1; hint: give the published `labels.json` or an `id2label.json`",
    );
    check(
        "t.csv",
        "a.webm 0\n",
        Some(r#"{"a": "b"}"#),
        "labels.json: expected a number and its meaning, found `a` and `b`; hint: give the published `labels.json` or an `id2label.json`",
    );
}
