//! Questions with options, pairs and captions, and tables: read as the reference tools read them, and the message for
//! everything that can be wrong with one.

#![allow(clippy::unwrap_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};

use data::{DataError, Dataset, Format, MediaKind, MediaSource, Part, Role, Sample, open_dataset};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/data/formats")
}

fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("expected.json")).unwrap()).unwrap()
}

/// A dataset file of the given name and content; the folder lives as long as the first value.
fn open(name: &str, content: impl AsRef<[u8]>, format: Format) -> Result<(tempfile::TempDir, Dataset), DataError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    open_dataset(&path, format, Some(Path::new("/media"))).map(|dataset| (dir, dataset))
}

/// A message without the folder of its file.
fn short(error: &DataError, name: &str) -> String {
    let text = error.to_string();
    text.rsplit_once(&format!("/{name}`")).map_or(text.clone(), |(_, rest)| rest.to_owned())
}

fn read(record: &Value) -> Result<Sample, DataError> {
    let (_dir, dataset) = open("r.json", json!([record]).to_string(), Format::Auto)?;
    dataset.get(0)
}

fn refused(record: Value, expected: &str) {
    let error = read(&record).unwrap_err();
    assert!(error.is_one_record());
    assert_eq!(short(&error, "r.json"), format!(" line 1, record `q`: {expected}"));
}

fn question(changes: Value) -> Value {
    let mut record =
        json!({"id": "q", "video": "v.mp4", "question": "What?", "options": ["x", "y", "z"], "answer": "B"});
    for (key, value) in changes.as_object().unwrap() {
        record[key] = value.clone();
    }
    record
}

/// The words of the question, and the answer.
fn words(sample: &Sample) -> (String, String) {
    assert_eq!(sample.conversation.iter().map(|turn| turn.role).collect::<Vec<_>>(), [Role::User, Role::Assistant]);
    (sample.conversation[0].joined_text(), sample.conversation[1].joined_text())
}

fn clip(name: &str) -> Vec<(MediaKind, MediaSource)> {
    vec![(MediaKind::Video, MediaSource::Path(Path::new("/media").join(name)))]
}

fn media(sample: &Sample) -> Vec<(MediaKind, MediaSource)> {
    sample.media().map(|m| (m.kind, m.source.clone())).collect()
}

#[test]
fn video_mme_is_asked_as_its_authors_ask_it() {
    let dataset = open_dataset(&fixtures().join("videomme.jsonl"), Format::Auto, Some(Path::new("/media"))).unwrap();
    assert_eq!(dataset.format(), Format::Mcq);
    let expected = expected();
    let expected = expected["videomme"].as_array().unwrap();
    assert_eq!(dataset.len(), expected.len() as u64);
    for (index, wanted) in expected.iter().enumerate() {
        let sample = dataset.get(index as u64).unwrap();
        assert_eq!(sample.id, wanted["id"].as_str().unwrap());
        assert_eq!(media(&sample), clip(wanted["video"].as_str().unwrap()));
        // The clip's placeholder stands on a line of its own before the words.
        assert!(matches!(sample.conversation[0].parts[0], Part::Media(_)));
        let (prompt, answer) = words(&sample);
        assert_eq!(prompt, format!("\n{}", wanted["prompt"].as_str().unwrap()));
        assert_eq!(answer, wanted["answer"].as_str().unwrap());
    }
}

#[test]
fn tables_hold_what_the_reference_reads() {
    let expected = expected();
    let tables = expected["tables"].as_object().unwrap();
    assert!(tables.len() >= 3);
    for (name, rows) in tables {
        let dataset = open_dataset(&fixtures().join(name), Format::Auto, Some(Path::new("/media"))).unwrap();
        let rows = rows.as_array().unwrap();
        assert_eq!(dataset.len(), rows.len() as u64, "{name}");
        for (index, row) in rows.iter().enumerate() {
            let sample = dataset.get(index as u64).unwrap();
            let text = |key: &str| row[key].as_str().unwrap_or_default().trim().to_owned();
            assert_eq!(sample.id, text("id"), "{name}");
            assert_eq!(media(&sample), clip(&text("video")), "{name}");
            let count = sample.media().next().unwrap().nframes;
            assert_eq!(count.map(|n| n as f64), row["num_frames"].as_f64(), "{name}");
            let turns: Vec<String> = sample.conversation.iter().map(|turn| turn.joined_text()).collect();
            let wanted: Vec<String> = match row["conversations"].as_str() {
                None => vec![format!("\n{}", text("question")), text("answer")],
                Some(turns) => serde_json::from_str::<Vec<Value>>(turns)
                    .unwrap()
                    .iter()
                    .map(|turn| turn["value"].as_str().unwrap().replace("<video>", ""))
                    .collect(),
            };
            assert_eq!(turns, wanted, "{name}, row {index}");
        }
    }
}

#[test]
fn an_answer_is_a_letter_a_text_or_a_number() {
    let check = |changes: Value, expected: &str| {
        let mut record = json!({"id": "q", "question": "What?"});
        record.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let sample = read(&record).unwrap();
        let (prompt, answer) = words(&sample);
        assert_eq!(answer, expected, "{record}");
        let lines = "\nWhat?\nA. x\nB. y\nThe best answer is:";
        assert!(prompt.starts_with("Select the best answer to the following multiple-choice question. Respond with only the letter (A or B) of the correct option."), "{prompt}");
        assert!(prompt.ends_with(lines), "{prompt}");
    };
    for answer in [
        json!("B"),
        json!("b"),
        json!("(B)"),
        json!(" B. "),
        json!("B. y"),
        json!("(b) Y"),
        json!("y"),
        json!("Y."),
        json!(1),
        json!("1"),
    ] {
        for options in [json!(["x", "y"]), json!(["A. x", "B. y"]), json!(["(A) x", "(B) y"]), json!(["A.x", "B.y"])] {
            check(json!({"options": options, "answer": answer}), "B");
        }
    }
    let lists = [
        json!({"A": "x", "B": "y"}),
        json!("A. x B. y"),
        json!("A. x\nB. y"),
        json!("(A) x (B) y"),
        json!("[\"x\", \"y\"]"),
    ];
    for options in lists {
        check(json!({"choices": options, "answer": "y"}), "B");
    }
    check(json!({"candidates": ["x", "y"], "answer": "x"}), "A");
    check(json!({"candidates": ["x", "y"], "correct_choice": 1}), "B");
    check(json!({"option_a": "x", "option_b": "y", "option_c": "", "answer": "B"}), "B");
    check(json!({"A": "x", "B": "y", "answer": "A"}), "A");
    check(json!({"options": ["x", "y"], "answer": "y", "answer_idx": "B"}), "B");
    // Numbers name the columns that are numbered so.
    check(json!({"a0": "x", "a1": "y", "answer": 1}), "B");
    check(json!({"option1": "x", "option2": "y", "answer": 1}), "A");
    check(json!({"option 0": "x", "option 1": "y", "answer": "0"}), "A");
}

#[test]
fn the_words_speak_of_what_the_record_has() {
    let start = |changes: Value| words(&read(&question(changes)).unwrap()).0;
    let letters = "Respond with only the letter (A, B, or C) of the correct option.\nWhat?\nA. x\nB. y\nC. z\nThe best answer is:";
    let about =
        |medium: &str| format!("Select the best answer to the following multiple-choice question{medium}. {letters}");
    assert_eq!(start(json!({})), format!("\n{}", about(" based on the video")));
    assert_eq!(start(json!({"video": null})), about(""));
    assert_eq!(start(json!({"video": null, "image": "a.png"})), format!("\n{}", about(" based on the image")));
    let images = json!({"video": null, "images": ["a.png", "b.png"]});
    assert_eq!(start(images), format!("\n\n{}", about(" based on the images")));
    // A question that says where its clip stands is not overruled.
    let placed = read(&question(json!({"question": "Of <video> what?"}))).unwrap();
    assert!(matches!(placed.conversation[0].parts[1], Part::Media(_)));
    // Video-MME's `videoID` names the file, its `video_id` only counts; an id may have its ending.
    for (changes, file) in [
        (json!({"video": null, "videoID": "aB-1", "video_id": "001"}), "aB-1.mp4"),
        (json!({"video": null, "video_id": 7}), "7.mp4"),
        (json!({"video": null, "video_id": "7.webm"}), "7.webm"),
    ] {
        assert_eq!(media(&read(&question(changes)).unwrap()), clip(file));
    }
}

#[test]
fn answers_that_name_no_single_option() {
    let mut record = question(json!({}));
    record.as_object_mut().unwrap().remove("answer");
    refused(
        record,
        "`answer` is missing: expected the letter, the text or the number of an option, found `id`, `video`, `question`, `options`; hint: add it, or remove the record",
    );
    for empty in [json!(""), Value::Null] {
        refused(
            question(json!({"answer": empty})),
            "`answer` is empty; hint: write the letter of the right option, or remove the record",
        );
    }
    refused(
        question(json!({"answer": "D"})),
        "`answer` names none of the 3 options: expected a letter from `A` to `C`, an option's text, or a number from 0 to 2, found the text `D`; hint: repair the record, or remove it",
    );
    refused(
        question(json!({"answer": 3})),
        "`answer` names none of the 3 options: expected a letter from `A` to `C`, an option's text, or a number from 0 to 2, found the number 3; hint: repair the record, or remove it",
    );
    refused(
        question(json!({"answer": "B. z"})),
        "`answer` names none of the 3 options: expected a letter from `A` to `C`, an option's text, or a number from 0 to 2, found the text `B. z`; hint: repair the record, or remove it",
    );
    refused(
        question(json!({"options": ["1", "2", "3"], "answer": 1})),
        "`answer` can be read as two options: expected one option, found the number 1, which is `A` and `B`; hint: write letter and text, as in `A. text`",
    );
    refused(
        question(json!({"options": ["x", "X."], "answer": "x"})),
        "`answer` can be read as two options: expected one option, found the text `x`, which is `A` and `B`; hint: write letter and text, as in `A. text`",
    );
    refused(
        question(json!({"answer": ["A", "B"]})),
        "`answer` has the wrong type: expected the letter, the text or the number of one option, found a list of 2; hint: questions with several right options are not built",
    );
    refused(
        question(json!({"answer": "A", "answer_idx": 1})),
        "`answer` and `answer_idx` name two options: expected `A`, found `B`; hint: keep the right one",
    );
}

#[test]
fn options_that_cannot_be_told_apart() {
    refused(
        question(json!({"options": ["A. x", "C. y", "B. z"]})),
        "the options of `options` have letters, and not those of their places: expected `A. ..`, `B. ..` in order, or no letters, found `A. x`, `C. y`, `B. z`; hint: repair the record, or remove it",
    );
    refused(
        question(json!({"options": ["x"]})),
        "`options` has the wrong number of options: expected 2 to 26, found 1",
    );
    refused(
        question(json!({"option_a": "x", "option_b": "y"})),
        "the record names its options more than once: `options`, `option_a`; hint: keep one of them",
    );
    refused(
        question(json!({"options": ["x", null]})),
        "option B of `options` is no text: expected a text or a number, found null; hint: repair the record, or remove it",
    );
    refused(
        question(json!({"options": "['x' 'y']"})),
        "`options` begins like a list and is not one in JSON; hint: write it with double quotes and commas, as `json.dumps` of Python does",
    );
    refused(
        question(json!({"options": "A. x B. y B. z"})),
        "`options` does not say where option B begins; hint: write a list",
    );
    refused(
        question(json!({"options": "x or y"})),
        "`options` is no list of options: expected a list, or a text such as `A. one B. two`, found the text `x or y`",
    );
    refused(
        question(json!({"options": {"A": "x", "C": "y"}})),
        "`options` is not a list of letters: expected a key `B`, found `A`, `C`; hint: name the options by letters from A, or write a list",
    );
    let mut columns = question(json!({"option_a": "x", "option_b": "", "option_c": "z"}));
    columns.as_object_mut().unwrap().remove("options");
    refused(columns, "`option_b` is empty and `option_c` is not; hint: repair the record, or remove it");
    refused(
        question(json!({"question": "What?\nA. x\nB. y"})),
        "`question` lists options, which the record names as well; hint: take them out of `question`",
    );
    refused(question(json!({"question": " "})), "`question` is empty; hint: write it, or remove the record");
    refused(
        question(json!({"image": "a.png"})),
        "the record has both `video` and `image`; hint: keep one of them; records with pictures and clips need the `llava` format, which says their order",
    );
    let nested = json!([{"id": "q", "video": "v.mp4", "questions": [{"question": "What?"}]}]).to_string();
    let (_dir, dataset) = open("r.json", nested, Format::Mcq).unwrap();
    assert_eq!(
        short(&dataset.get(0).unwrap_err(), "r.json"),
        " line 1, record `q`: `questions` holds several questions: expected one `question` a record, found a list; hint: write a record for each, as the benchmark asks them"
    );
}

#[test]
fn pairs_and_captions() {
    let pair = read(&json!({"id": "q", "image": "a.png", "question": "Who?", "answer": 3})).unwrap();
    assert_eq!((pair.format, words(&pair)), (Format::Qa, ("\nWho?".into(), "3".into())));
    let text = read(&json!({"question": "Who?", "answer": "I"})).unwrap();
    assert_eq!((text.media().count(), words(&text)), (0, ("Who?".into(), "I".into())));
    // PE-Video by its columns: the revised description where there is one.
    for (human, expected) in [(json!("a man"), "a man"), (Value::Null, "one man")] {
        let record = json!({"video_id": 42, "human_caption": human, "model_caption": "one man", "category": "x"});
        let sample = read(&record).unwrap();
        assert_eq!((sample.format, media(&sample)), (Format::Caption, clip("42.mp4")));
        assert_eq!(words(&sample), ("\nDescribe this video.".into(), expected.into()));
    }
    let picture = read(&json!({"image": "a.png", "caption": "a tree"})).unwrap();
    assert_eq!(words(&picture), ("\nDescribe this image.".into(), "a tree".into()));
    refused(
        json!({"id": "q", "image": "a.png", "question": "Who?", "answer": ["x"]}),
        "`answer` has the wrong type: expected a text, found a list of 1",
    );
    refused(
        json!({"id": "q", "video": "a.mp4", "caption": ""}),
        "`caption` is empty; hint: write it, or remove the record",
    );
    refused(
        json!({"id": "q", "vidoe": "a.mp4", "question": "Who?", "answer": "I"}),
        "`vidoe` seems to name media, and no such field is read; hint: did you mean `video`? rename it, or remove it",
    );
}

#[test]
fn published_datasets_by_their_columns() {
    // LLaVA-Video-178K: `<image>` stands for the clip. LLaVA-Pretrain and LLaVA-Instruct-150K: pictures.
    let turns = |human: &str| json!([{"from": "human", "value": human}, {"from": "gpt", "value": "A kitchen."}]);
    let video = json!({"id": "OgKFqS", "conversations": turns("<image>\nWhere?"), "data_source": "0_30_s_academic_v0_1", "video": "academic_source/Charades/OgKFqS.mp4"});
    let sample = read(&video).unwrap();
    assert_eq!((sample.format, media(&sample)), (Format::Llava, clip("academic_source/Charades/OgKFqS.mp4")));
    let image = json!({"id": "000000033471", "image": "000000033471.jpg", "conversations": turns("Where?\n<image>")});
    assert_eq!(read(&image).unwrap().media().count(), 1);
    // Ego4D: the shape of LLaVA.
    let record =
        json!([{"id": "52fb-1", "video": "52fb-1.mp4", "conversations": turns("<image>\nWhere?")}]).to_string();
    let (_dir, dataset) = open("r.json", record, Format::Ego4d).unwrap();
    let sample = dataset.get(0).unwrap();
    assert_eq!((sample.format, media(&sample)), (Format::Ego4d, clip("52fb-1.mp4")));
}

#[test]
fn lines_of_rows_are_the_files_own() {
    let table = "id,question,answer\r\n\r\n1,\"two\r\nlines\",yes\r\n\r\n2,who\r\n3,\"5\"\" disk\",5\" too\r\n";
    let (_dir, dataset) = open("t.csv", table, Format::Auto).unwrap();
    assert_eq!((dataset.len(), dataset.format()), (3, Format::Qa));
    assert_eq!(words(&dataset.get(0).unwrap()), ("two\r\nlines".into(), "yes".into()));
    assert_eq!(words(&dataset.get(2).unwrap()), ("5\" disk".into(), "5\" too".into()));
    assert_eq!((dataset.id(2), dataset.get(2).unwrap().origin.line), ("3".into(), 7));
    let error = dataset.get(1).unwrap_err();
    assert_eq!((error.reason(), error.is_one_record()), ("bad_csv", true));
    assert_eq!(
        short(&error, "t.csv"),
        " line 6, record 1: the row has the wrong number of cells: expected 3 as in the header, found 2; hint: put cells that hold the delimiter into quotes, or set `data.on_bad_media: skip`"
    );
}

#[test]
fn rows_that_cannot_be_read() {
    let check = |row: &[u8], expected: &str| {
        let table = [b"id,video,question,answer,num_frames,options\n0,v.mp4,q,a,8.0,\n", row].concat();
        let (_dir, dataset) = open("t.csv", table, Format::Auto).unwrap();
        assert_eq!(dataset.get(0).unwrap().media().next().unwrap().nframes, Some(8));
        let error = dataset.get(1).unwrap_err();
        assert!(error.is_one_record());
        assert_eq!(short(&error, "t.csv"), expected);
    };
    check(
        b"1,v.mp4,\"who\"x,a,,\n",
        " line 3, record 1: text stands behind the quote that closes a cell; hint: double the quotes inside of a quoted cell, and close it; or set `data.on_bad_media: skip`",
    );
    check(
        b"1,v.mp4,who,a,many,",
        " line 3, record 1: column `num_frames` has a cell that cannot be read: expected a number, found `many`; hint: repair the row, or set `data.on_bad_media: skip`",
    );
    check(
        b"1,v.mp4,who,a,,\"['x', 'y']\"",
        " line 3, record 1: column `options` has a cell that cannot be read: expected JSON with double quotes, as `json.dumps` of Python writes it, found `['x', 'y']`; hint: repair the row, or set `data.on_bad_media: skip`",
    );
    check(
        b"1,v.mp4,\"a\nb\xff\",a,,",
        " line 4, record 1: the text is not UTF-8; hint: save the file in UTF-8, or set `data.on_bad_media: skip`",
    );
}

#[test]
fn tables_that_are_none() {
    let check = |table: &str, expected: &str| {
        assert_eq!(short(&open("t.csv", table, Format::Auto).unwrap_err(), "t.csv"), format!(": {expected}"));
    };
    check("", "the file is empty; hint: check the file's content");
    check(
        "\n\nid,question\n",
        "the file holds no row below its header `id`, `question`; hint: check the file's content",
    );
    check("id,a,a\n1,2,3\n", "columns 2 and 3 have the same name `a`; hint: rename one of them");
    check("id,,a\n1,2,3\n", "column 2 has no name; hint: the first line must name the columns");
    check(
        "id,question,answer\n1,what,yes\n2,\"who,no\n3,a,b\n",
        "line 3: a quoted cell is not closed, number of whole rows before: 1; hint: repair the row that starts on line 3",
    );
    check(
        "path;label\na.mp4;3\n",
        "the format cannot be told: expected records with `conversations`, `messages` or `conversation`; `question` with `options`, `answer` or `caption`; or `caption` with a picture or clip, found `path;label`; hint: name the format with `data.train.format`, or convert the file",
    );
}
