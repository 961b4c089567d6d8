//! Reading records: every format, and the message for everything that can be wrong with one.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::Path;

use data::{DataError, Dataset, Format, MediaKind, MediaSource, Part, Role, Sample, open_dataset};
use serde_json::{Value, json};

/// A dataset file of the given name and content; the folder lives as long as the first value.
fn open(name: &str, content: &str) -> Result<(tempfile::TempDir, Dataset), DataError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    open_dataset(&path, Format::Auto, Some(Path::new("/media"))).map(|dataset| (dir, dataset))
}

fn read(record: &Value) -> Result<Sample, DataError> {
    let (_dir, dataset) = open("records.json", &json!([record]).to_string())?;
    dataset.get(0)
}

/// The message about the only record of a file, without the file's folder.
fn refused(record: &Value) -> String {
    let text = read(record).unwrap_err().to_string();
    text.rsplit_once("/records.json").map_or(text.clone(), |(_, rest)| rest.to_owned())
}

fn check(record: Value, expected: &str) {
    assert_eq!(refused(&record), expected);
}

fn media(sample: &Sample) -> Vec<(MediaKind, MediaSource)> {
    sample.media().map(|m| (m.kind, m.source.clone())).collect()
}

fn path(name: &str) -> MediaSource {
    MediaSource::Path(Path::new("/media").join(name))
}

fn say(from: &str, value: &str) -> Value {
    json!({"from": from, "value": value})
}

fn ask(human: &str) -> Value {
    json!([say("human", human), say("gpt", "yes")])
}

#[test]
fn llava_records_hand_out_media_at_their_placeholders() {
    let sample = read(&json!({
        "id": 7,
        "images": ["a.png", "b.png"],
        "video": "c.mp4",
        "conversations": [
            say("system", "Be short."),
            say("human", "<image>\nfirst <video> then <image>"),
            say("gpt", "a < b"),
        ],
    }))
    .unwrap();
    assert_eq!((sample.id.as_str(), sample.format), ("7", Format::Llava));
    assert_eq!(sample.conversation[0].role, Role::System);
    assert_eq!(
        media(&sample),
        [(MediaKind::Image, path("a.png")), (MediaKind::Video, path("c.mp4")), (MediaKind::Image, path("b.png"))]
    );
    let texts: Vec<&str> = sample.conversation[1]
        .parts
        .iter()
        .filter_map(|p| if let Part::Text(t) = p { Some(t.as_str()) } else { None })
        .collect();
    assert_eq!(texts, ["\nfirst ", " then "]);
    assert_eq!(sample.conversation[2].joined_text(), "a < b");
}

#[test]
fn image_placeholders_may_stand_for_videos_and_their_frames() {
    let one = read(&json!({"video": "v.mp4", "conversations": ask("<image>\nWhat?")})).unwrap();
    assert_eq!(media(&one), [(MediaKind::Video, path("v.mp4"))]);
    let frames = read(&json!({"video": "v.mp4", "conversations": ask("<image><image> <image>")})).unwrap();
    let kinds: Vec<MediaKind> = frames.media().map(|m| m.kind).collect();
    assert_eq!(kinds, [0, 1, 2].map(|position| MediaKind::FrameOf { position, total: 3 }));
    assert!(frames.media().all(|m| m.nframes == Some(3)));
    let two = read(&json!({"videos": ["v.mp4", "w.mp4"], "conversations": ask("<image> <image>")})).unwrap();
    assert_eq!(media(&two), [(MediaKind::Video, path("v.mp4")), (MediaKind::Video, path("w.mp4"))]);
}

#[test]
fn a_list_as_video_is_the_frames_of_one_clip() {
    let record = json!({"video": ["1.png", "2.png"], "fps": 4, "conversations": ask("<video> What?")});
    let sample = read(&record).unwrap();
    let clip = sample.media().next().unwrap();
    assert_eq!(clip.source, MediaSource::Files(vec!["/media/1.png".into(), "/media/2.png".into()]));
    assert_eq!((clip.kind, clip.fps), (MediaKind::Video, Some(4.0)));
}

#[test]
fn wishes_of_a_record_and_of_a_part() {
    let record = json!({
        "video": "v.mp4", "num_frames": 6, "video_start": 1.5, "video_end": 4, "conversations": ask("<video>"),
    });
    let sample = read(&record).unwrap();
    let clip = sample.media().next().unwrap();
    assert_eq!((clip.nframes, clip.start, clip.end), (Some(6), Some(1.5), Some(4.0)));
    let part = json!({"type": "video", "video": "v.mp4", "fps": 2, "min_frames": 2, "max_frames": 9});
    let sample = read(&json!({"messages": [
        {"role": "user", "content": [part, {"type": "text", "text": "x"}]},
        {"role": "assistant", "content": "y"},
    ]}))
    .unwrap();
    let clip = sample.media().next().unwrap();
    assert_eq!((clip.fps, clip.min_frames, clip.max_frames), (Some(2.0), Some(2), Some(9)));
}

#[test]
fn messages_with_parts_addresses_and_plain_text() {
    let sample = read(&json!({"messages": [
        {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "auto"}},
            {"type": "video_url", "video_url": {"url": "file:///clips/v.mp4"}},
            {"type": "image", "path": "b.png"},
            {"type": "text", "text": "x"},
        ]},
        {"role": "assistant", "content": "y"},
    ]}))
    .unwrap();
    assert_eq!(
        media(&sample),
        [
            (MediaKind::Image, MediaSource::Url("https://example.org/a.png".into())),
            (MediaKind::Video, MediaSource::Path("/clips/v.mp4".into())),
            (MediaKind::Image, path("b.png")),
        ]
    );
    let beside = read(&json!({
        "messages": [{"role": "user", "content": "<image>x"}, {"role": "assistant", "content": "y"}],
        "images": ["a.png"],
    }))
    .unwrap();
    assert_eq!(media(&beside), [(MediaKind::Image, path("a.png"))]);
    // Without media beside the turns, a placeholder is plain text; the encoder refuses it.
    let text = read(&json!({
        "messages": [{"role": "user", "content": "<image>x"}, {"role": "assistant", "content": "y"}],
    }))
    .unwrap();
    assert_eq!(text.conversation[0].joined_text(), "<image>x");
}

fn conversation(images: usize, extra: Value) -> Value {
    let mut parts = vec![json!({"type": "image"}); images];
    parts.push(json!({"type": "text", "text": "What?"}));
    let mut record = json!({"conversation": [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "A circle."}]},
    ]});
    record.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    record
}

#[test]
fn conversation_records_take_frames_of_their_video() {
    let sample = read(&conversation(2, json!({"video": "v.mp4", "num_frames": 2}))).unwrap();
    assert_eq!(sample.format, Format::Conversation);
    let kinds: Vec<MediaKind> = sample.media().map(|m| m.kind).collect();
    assert_eq!(kinds, [0, 1].map(|position| MediaKind::FrameOf { position, total: 2 }));
    let url = read(&conversation(1, json!({"video_url": "https://example.org/v.mp4"}))).unwrap();
    assert_eq!(url.media().next().unwrap().source, MediaSource::Url("https://example.org/v.mp4".into()));
}

#[test]
fn comments_and_other_top_levels() {
    let record = json!({"conversations": ask("x // not a comment")}).to_string();
    let listed = format!("// one\n[ // two\n {record}, /* three */\n // four\n {record} // five\n]\n// six");
    let (_dir, dataset) = open("a.json", &listed).unwrap();
    assert_eq!(dataset.len(), 2);
    assert_eq!(dataset.get(1).unwrap().conversation[0].joined_text(), "x // not a comment");
    let (_dir, dataset) = open("a.json", &format!("{{\"first\": {record}, \"second\": {record}}}")).unwrap();
    assert_eq!((dataset.len(), dataset.id(0), dataset.get(1).unwrap().id), (2, "first".into(), "second".into()));
    let (_dir, dataset) = open("a.json", &record).unwrap();
    assert_eq!((dataset.len(), dataset.get(0).unwrap().id), (1, "0".into()));
    let (_dir, dataset) = open("a.jsonl", &format!("\u{feff}{record}\r\n\n// comment\n{record}")).unwrap();
    assert_eq!((dataset.len(), dataset.get(1).unwrap().id), (2, "1".into()));
    let commented = listed.replace("\"gpt\"", "// the answer\n \"gpt\"");
    let (_dir, dataset) = open("a.json", &commented).unwrap();
    assert_eq!(dataset.get(0).unwrap().conversation.len(), 2);
}

#[test]
fn several_files_are_one_dataset() {
    let file = |id: &str| json!([{"id": id, "conversations": ask("x")}]).to_string();
    let (_a, first) = open("a.json", &file("one")).unwrap();
    let (_b, second) = open("b.json", &file("two")).unwrap();
    let both = Dataset::concat(vec![first, second]);
    assert_eq!((both.len(), both.id(0), both.get(1).unwrap().id), (2, "one".into(), "two".into()));
    assert_eq!(both.get(1).unwrap().origin.index, 1);
    assert_eq!(
        both.get(2).unwrap_err().to_string(),
        "record 2 does not exist: the dataset has 2; hint: records are counted from 0"
    );
}

#[test]
fn roles_out_of_order() {
    check(
        json!({"id": "r", "conversations": [say("gpt", "yes")]}),
        "` line 1, record `r`: turn 0 has the wrong role: expected `user`, found `assistant`; hint: user and assistant must take turns, the user first",
    );
    check(
        json!({"conversations": [say("human", "a"), say("human", "b"), say("gpt", "c")]}),
        "` line 1, record `0`: turn 1 has the wrong role: expected `assistant`, found `user`; hint: user and assistant must take turns, the user first",
    );
    check(
        json!({"conversations": [say("human", "a"), say("system", "b"), say("gpt", "c")]}),
        "` line 1, record `0`: turn 1 is a `system` turn: expected `system` as the first turn only, found it in place 1; hint: move it to the front",
    );
    check(
        json!({"conversations": [say("human", "a")]}),
        "` line 1, record `0`: the last turn is not the assistant's, so nothing can be learned from it; hint: add the answer, or remove the record",
    );
    check(
        json!({"conversations": [say("robot", "a")]}),
        "` line 1, record `0`: turn 0 has an unknown role: expected one of `system`, `user`, `human`, `assistant`, `gpt`, found `robot`",
    );
    check(json!({"conversations": []}), "` line 1, record `0`: the record has no turn; hint: remove the record");
}

#[test]
fn placeholders_and_media_that_disagree() {
    check(
        json!({"image": "a.png", "conversations": ask("<image><image>")}),
        "` line 1, record `0`: the number of `<image>` placeholders is not the number of images: expected 1 (the images of the record), found at least 2; hint: write one `<image>` for each image",
    );
    check(
        json!({"images": ["a.png", "b.png"], "conversations": ask("<image>")}),
        "` line 1, record `0`: the number of `<image>` placeholders is not the number of images: expected 2 (the images of the record), found 1; hint: write one `<image>` for each image",
    );
    check(
        json!({"image": "a.png", "conversations": ask("x")}),
        "` line 1, record `0`: the number of `<image>` placeholders is not the number of images: expected 1 (the images of the record), found 0; hint: write one `<image>` for each image",
    );
    check(
        json!({"video": "a.mp4", "conversations": ask("x")}),
        "` line 1, record `0`: the number of `<video>` placeholders is not the number of videos: expected 1 (the videos of the record), found 0; hint: write one `<video>` for each video",
    );
    check(
        json!({"conversations": ask("<video>")}),
        "` line 1, record `0`: the number of `<video>` placeholders is not the number of videos: expected 0 (the videos of the record), found at least 1; hint: write one `<video>` for each video",
    );
    check(
        conversation(3, json!({"video": "v.mp4", "num_frames": 2})),
        "` line 1, record `0`: the number of `image` parts is not the number of frames: expected 2 (`num_frames`), found 3; hint: write one bare `image` part for each frame, or remove `num_frames`",
    );
    check(
        conversation(0, json!({"video": "v.mp4"})),
        "` line 1, record `0`: the record has `video` and no part that stands for it: expected `image` parts for its frames, or one `video` part, found none; hint: add the parts, or remove the video",
    );
    check(
        conversation(1, json!({})),
        "` line 1, record `0`: turn 0 has a bare `image` part and the record no video; hint: add `video` or `video_url` to the record, or name the media in the part",
    );
    check(
        json!({"video": "v.mp4", "num_frames": 3, "conversations": ask("<image><image>")}),
        "` line 1, record `0`: the number of `<image>` placeholders is not the number of frames: expected 3 (`num_frames`), found 2; hint: write one `<video>`, or one `<image>` for each frame",
    );
}

#[test]
fn answers_that_cannot_be_learned() {
    check(
        json!({"id": "e", "conversations": [say("human", "a"), say("gpt", " \n")]}),
        "` line 1, record `e`: turn 1 of the assistant is empty; hint: write the answer, or remove the record",
    );
    check(
        json!({"image": "a.png", "conversations": [say("human", "a"), say("gpt", "<image>")]}),
        "` line 1, record `0`: turn 1 of the assistant holds a picture or a clip; hint: media belong to the user's turns; remove the placeholder from the answer",
    );
}

#[test]
fn parts_that_are_not_known() {
    let with =
        |part: Value| json!({"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "y"}]});
    check(
        with(json!({"type": "smell"})),
        "` line 1, record `0`: a part of turn 0 has an unknown type: expected one of `text`, `image`, `image_url`, `video`, `video_url`, `audio`, `audio_url`, found `smell`",
    );
    check(
        with(json!({"type": "input_audio", "input_audio": {"data": "AA=="}})),
        "` line 1, record `0`: a part of turn 0 is of type `input_audio`, which is not built yet; hint: name a file or an address in a part of type `audio`",
    );
    check(
        with(json!({"type": "audio"})),
        "` line 1, record `0`: a `audio` part of turn 0 names no media; hint: add a key `audio` with a path or an https address",
    );
    check(
        with(json!({"type": "image"})),
        "` line 1, record `0`: a `image` part of turn 0 names no media; hint: add a key `image` with a path or an https address",
    );
    check(
        with(json!({"type": "video", "video": "v.mp4", "frames": 4})),
        "` line 1, record `0`: a `video` part of turn 0 has an unknown key `frames`; hint: known are `video`, `path`, `url`, `nframes`, `num_frames`, `fps`, `min_frames`, `max_frames`, `video_start`, `video_end`",
    );
    check(
        with(json!({"type": "video", "video": "v.mp4", "max_pixels": 4})),
        "` line 1, record `0`: `max_pixels` is not built yet; hint: remove the field; pictures take the size of the checkpoint's processor",
    );
    check(
        with(json!({"type": "video", "video": "v.mp4", "nframes": 0})),
        "` line 1, record `0`: `nframes` is not a usable count: expected a whole number of at least 1, found the number 0",
    );
    check(
        with(json!({"type": "video", "video": "v.mp4", "video_start": 3, "video_end": 2})),
        "` line 1, record `0`: the time range is empty: expected `video_end` above `video_start` = 3, found 2",
    );
    check(
        with(json!({"type": "image_url", "image_url": "http://example.org/a.png"})),
        "` line 1, record `0`: `image_url` is `http://example.org/a.png`, an address without encryption; hint: use https, or download the file",
    );
    check(
        with(json!({"text": "x"})),
        "` line 1, record `0`: a part of turn 0 has no `type`: expected a key `type`, found `text`",
    );
    check(
        json!({"audio": "a.wav", "conversations": ask("x")}),
        "` line 1, record `0`: the number of `<speech>` placeholders is not the number of pieces of sound: expected 1 (the pieces of sound of the record), found 0; hint: write one `<speech>` for each piece of sound",
    );
}

#[test]
fn fields_that_seem_to_name_media_are_not_passed_over() {
    let talk = |key: &str, value: Value| {
        let mut record = json!({"conversations": ask("x")});
        record[key] = value;
        record
    };
    let place = "` line 1, record `0`: ";
    for (key, meant) in [
        ("vidoe", "video"),
        ("Image", "image"),
        ("imges", "images"),
        ("vdeo", "video"),
        ("videoss", "videos"),
        ("video_path", "video"),
        ("IMG", "image"),
    ] {
        check(
            talk(key, json!("a.mp4")),
            &format!(
                "{place}`{key}` seems to name media, and no such field is read; hint: did you mean `{meant}`? rename it, or remove it"
            ),
        );
    }
    check(
        json!({"image": "a.png", "conversation": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}),
        &format!(
            "{place}`image` seems to name media, and no such field is read; hint: name the media in a part of type `image`, or remove it"
        ),
    );
    // What else records carry is theirs.
    for (key, value) in [
        ("video_id", json!("v7")),
        ("image_id", json!(3)),
        ("page", json!("12")),
        ("Image", json!("")),
        ("vidoe", Value::Null),
        ("title", json!("a")),
    ] {
        assert!(read(&talk(key, value)).is_ok(), "{key}");
    }
}

#[test]
fn addresses_are_told_from_paths() {
    let with = |video: &str| json!({"video": video, "conversations": ask("<video>")});
    for address in
        ["rtsp://h/a.mp4", "s3://b/a.mp4", "hf://datasets/a.mp4", "ftp://h/a.mp4", "S3://b/a", "concat:a.mp4|b.mp4"]
    {
        let scheme = address.split_once(':').unwrap().0;
        check(
            with(address),
            &format!(
                "` line 1, record `0`: `video` is `{address}`, and addresses with `{scheme}:` are not supported; hint: download the file and name it, or give an https address"
            ),
        );
    }
    let source = |video: &str| media(&read(&with(video)).unwrap())[0].1.clone();
    let absolute = |path: &str| MediaSource::Path(path.into());
    assert_eq!(source("file:///a%20b/%C3%A4.mp4"), absolute("/a b/ä.mp4"));
    assert_eq!(source("file://localhost/a%2"), absolute("/a%2"));
    assert_eq!(source("take 1: a%20b.mp4"), path("take 1: a%20b.mp4"));
    assert_eq!(source("a:b.mp4"), path("a:b.mp4"));
}

#[test]
fn messages_without_words_or_weight() {
    let with = |user: Value, assistant: Value| json!({"messages": [user, assistant]});
    let (user, assistant) = (json!({"role": "user", "content": "x"}), json!({"role": "assistant", "content": "y"}));
    for silent in [json!({"role": "user", "content": null}), json!({"role": "user"})] {
        check(
            with(silent, assistant.clone()),
            "` line 1, record `0`: turn 0 has no `content`: expected a text or a list of parts, found none; hint: write what is said, or remove the record",
        );
    }
    let weighed = |weight: Value| {
        let mut turn = assistant.clone();
        turn["weight"] = weight;
        with(user.clone(), turn)
    };
    check(
        weighed(json!(0)),
        "` line 1, record `0`: `weight` of turn 1 is not 1, which is not built yet; hint: remove the field to learn from the turn, or remove the record",
    );
    assert!(read(&weighed(json!(1))).is_ok() && read(&weighed(Value::Null)).is_ok());
    check(
        json!({"video": "v.mp4", "nframes": 8, "max_frames": 4, "conversations": ask("<video>")}),
        "` line 1, record `0`: `nframes` is above `max_frames`: expected at most 4, found 8; hint: keep one of them",
    );
}

#[test]
fn broken_json_names_line_and_column() {
    let good = json!({"conversations": ask("x")}).to_string();
    let (_dir, dataset) = open("a.jsonl", &format!("{good}\n{{\"id\": \"b\", \"conversations\": [}}\n{good}")).unwrap();
    assert_eq!(dataset.len(), 3);
    assert!(dataset.get(2).is_ok());
    let error = dataset.get(1).unwrap_err();
    assert_eq!((error.reason(), error.is_one_record()), ("bad_json", true));
    assert_eq!(
        error.to_string().rsplit_once("/a.jsonl").unwrap().1,
        "` line 2, record 1: column 31: expected value, near `sations\": [}`; hint: repair the JSON, or set `data.on_bad_media: skip`"
    );
    let whole =
        |text: &str| open("a.json", text).unwrap_err().to_string().rsplit_once("/a.json`: ").unwrap().1.to_owned();
    assert_eq!(
        whole(&format!("[{good},\n {{\"a\": [1}}]")),
        "line 2, column 10: in record 1: expected `]`, found `}`; hint: repair the JSON near line 2, column 10"
    );
    assert_eq!(
        whole(&format!("[{good}")),
        "line 1, column 78: the file ends inside the top-level list, number of whole records before: 1; hint: repair the JSON near line 1, column 78"
    );
    assert_eq!(
        whole(&format!("[{good} {good}]")),
        "line 1, column 80: expected `,` after record 0, found `{`; hint: repair the JSON near line 1, column 80"
    );
    assert_eq!(whole("[]"), "the file holds no record; hint: check the file's content");
    assert_eq!(
        whole("12"),
        "line 1, column 1: expected `[` or `{`, found `1`; hint: repair the JSON near line 1, column 1"
    );
    // A string that is never closed, and a trailing comma, which is harmless.
    assert!(whole("[{\"a\": \"x]").contains("is not closed"));
    assert_eq!(open("a.json", &format!("[{good},]")).unwrap().1.len(), 1);
}

#[test]
fn lines_are_the_files_own() {
    let good = json!({"id": "g", "conversations": ask("x")}).to_string();
    let bad = json!({"id": "b", "conversations": [say("gpt", "x")]}).to_string();
    let (_dir, dataset) = open("a.json", &format!("[\n{good},\n\n// why\n{bad}]")).unwrap();
    assert!(dataset.get(1).unwrap_err().to_string().contains("/a.json` line 5, record `b`: "));
}

#[test]
fn formats_that_cannot_be_told() {
    let error = open("a.json", r#"[{"query": "x", "answer": "y"}]"#).unwrap_err().to_string();
    assert_eq!(
        error.rsplit_once("/a.json`: ").unwrap().1,
        "the format cannot be told: expected records with `conversations`, `messages` or `conversation`; `question` with `options`, `answer` or `caption`; or `caption` with a picture or clip, found `query`, `answer`; hint: name the format with `data.train.format`, or convert the file"
    );
    let dir = tempfile::tempdir().unwrap();
    let missing = open_dataset(&dir.path().join("a.json"), Format::Auto, None).unwrap_err();
    assert_eq!(missing.reason(), "missing_file");
    // A given format wins over what the content looks like.
    let file = dir.path().join("b.json");
    std::fs::write(&file, json!([{"conversations": ask("x")}]).to_string()).unwrap();
    let named = open_dataset(&file, Format::Messages, None).unwrap();
    assert!(named.get(0).unwrap_err().to_string().ends_with(
        "`messages` is missing: expected a list `messages`, found `conversations`; hint: check `data.train.format`"
    ));
}
