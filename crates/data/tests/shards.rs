//! Datasets of many files: patterns, folders, tar shards beside what `webdataset` reads of them, broken and hostile
//! archives, and the loader across shards.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::{
    Batch, DataPlan, Dataset, EncodeOptions, Format, FrameCache, Loader, LoaderOptions, LoaderState, MediaSource, Part,
    Processor, Sample, open_dataset,
};
use media::{FilePart, MediaFile};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn processor() -> Processor {
    Processor::load(&fixtures().join("data/text/generation_blocks")).unwrap()
}

fn open(path: impl AsRef<Path>) -> Result<Dataset, data::DataError> {
    open_dataset(path.as_ref(), Format::Auto, None)
}

fn ids(dataset: &Dataset) -> Vec<String> {
    (0..dataset.len()).map(|index| dataset.id(index)).collect()
}

fn turns(mark: &str) -> Value {
    json!([{"from": "human", "value": format!("{mark}ask")}, {"from": "gpt", "value": "answer"}])
}

/// A folder with a file of one record for each name.
fn folder(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in names {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, json!({"id": name, "conversations": turns("")}).to_string()).unwrap();
    }
    dir
}

/// The text of an error without the folder.
fn told(result: Result<impl Sized, data::DataError>, dir: &Path) -> String {
    let text = result.err().expect("an error").to_string();
    text.replace(&format!("{}/", dir.display()), "").replace(&dir.display().to_string(), "DIR")
}

#[test]
fn patterns_folders_and_lists_give_their_shards_in_order() {
    let names = ["b/2.jsonl", "a/10.jsonl", "a/9.jsonl", "a/.hidden.jsonl", "a/notes.txt", "a/deep/1.jsonl"];
    let dir = folder(&names);
    let check = |pattern: &str, expected: &[&str]| {
        let dataset = open(dir.path().join(pattern)).unwrap();
        assert_eq!(ids(&dataset), expected, "{pattern}");
        let last = dataset.len() - 1;
        assert_eq!((dataset.get(last).unwrap().id, dataset.get(last).unwrap().origin.index), (dataset.id(last), last));
    };
    check("a/9.jsonl", &["a/9.jsonl"]);
    check("a", &["a/10.jsonl", "a/9.jsonl"]);
    check("*/*.jsonl", &["a/10.jsonl", "a/9.jsonl", "b/2.jsonl"]);
    check("?/[0-2]*.jsonl", &["a/10.jsonl", "b/2.jsonl"]);
    check("a/{9..10}.jsonl", &["a/9.jsonl", "a/10.jsonl"]);
    check("{b,a}/*.jsonl", &["b/2.jsonl", "a/10.jsonl", "a/9.jsonl"]);
    let paths = json!([dir.path().join("b"), dir.path().join("a/1*.jsonl")]);
    let plan = DataPlan::from_json(&json!({"train": [{"path": paths}]})).unwrap();
    assert_eq!(ids(&plan.open_train().unwrap()), ["b/2.jsonl", "a/10.jsonl"]);
}

#[test]
fn a_shard_whose_name_is_no_text_is_not_passed_over() {
    use std::os::unix::ffi::OsStrExt;
    let dir = folder(&["a.jsonl"]);
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9.jsonl");
    std::fs::write(dir.path().join(name), "{}").unwrap();
    for path in [dir.path().to_path_buf(), dir.path().join("*.jsonl")] {
        let expected = "`caf\u{fffd}.jsonl`: the file's name is not UTF-8; hint: rename it";
        assert_eq!(told(open(path), dir.path()), expected);
    }
}

#[test]
fn media_are_looked_for_beside_each_shard() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        let record = json!({"image": "x.png", "conversations": turns("<image>\n")}).to_string();
        std::fs::write(dir.path().join(name).join("r.jsonl"), record).unwrap();
    }
    let dataset = open(dir.path().join("*/r.jsonl")).unwrap();
    let source = |index| dataset.get(index).unwrap().media().next().unwrap().source.clone();
    assert_eq!(source(0), MediaSource::Path(dir.path().join("a/x.png")));
    assert_eq!(source(1), MediaSource::Path(dir.path().join("b/x.png")));
}

#[test]
fn what_a_path_does_not_name_is_told() {
    let dir =
        folder(&["a/1.jsonl", "a/2.tar", "a/3.parquet", "b/t-0.jsonl", "b/t-2.jsonl", "c/notes.txt", "d/x.json.gz"]);
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let check = |pattern: &str, expected: &str| {
        assert_eq!(told(open(dir.path().join(pattern)), dir.path()), expected, "{pattern}");
    };
    check("b/*.json", "`b/*.json`: no file in `b` matches `*.json`; hint: check the pattern in `data.train.path`");
    check("z*/*.json", "`z*/*.json`: no folder in `DIR` matches `z*`; hint: check the pattern in `data.train.path`");
    check(
        "none/*.json",
        "`none/*.json`: no file in `none` matches `*.json`; hint: the folder does not exist: check `data.train.path`",
    );
    check(
        "b/t-{0..3}.jsonl",
        "`b/t-1.jsonl`: no such file; `b/t-{0..3}.jsonl` names 4 files, 2 of them are missing; hint: fetch the shard, or correct the range",
    );
    check("b/none.jsonl", "`b/none.jsonl`: no such file; hint: check `data.train.path`");
    check(
        "b/{t-0,t-0}.jsonl",
        "`b/{t-0,t-0}.jsonl`: it names `b/t-0.jsonl` twice; hint: write `{000..011}`, `{a,b}`, `*`, `?` or `[a-z]`",
    );
    check(
        "b/t-{0..x}.jsonl",
        "`b/t-{0..x}.jsonl`: `{0..x}` is not a range of numbers; hint: write `{000..011}`, `{a,b}`, `*`, `?` or `[a-z]`",
    );
    check("**/*.jsonl", "`**/*.jsonl`: `**` is not supported; hint: name the folders with `*`, one for each level");
    check(
        "c",
        "`c`: the folder holds no file of records: expected `.jsonl`, `.json` or `.tar`, found `notes.txt`; hint: name the file, or a pattern such as `shards/*.jsonl`",
    );
    check(
        "empty",
        "`empty`: the folder holds no file of records: expected `.jsonl`, `.json` or `.tar`, found nothing; hint: name the file, or a pattern such as `shards/*.jsonl`",
    );
    check(
        "a/[12].*",
        "`a/2.tar`: a tar file among JSON files such as `a/1.jsonl`; hint: name files of one kind in a dataset, and the others in one of their own",
    );
    check(
        "a/3.parquet",
        "`a/3.parquet`: `.parquet` files are not read yet; hint: write the records to `.jsonl`, media as files beside it",
    );
    check(
        "d/*",
        "`d/x.json.gz`: compressed files are not read, as no record of them can be found by its number; hint: unpack it",
    );
    std::fs::write(dir.path().join("b/t-1.jsonl"), json!({"messages": []}).to_string()).unwrap();
    check(
        "b",
        "`b/t-1.jsonl`: its records are of the format `messages`, those of `b/t-0.jsonl` of `llava`; hint: name files of one format in a dataset, and the others in one of their own",
    );
}

/// FNV-1a, 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn paths(sample: &Sample) -> Vec<PathBuf> {
    let path = |source: &MediaSource| match source {
        MediaSource::Path(path) => path.clone(),
        other => panic!("{other:?}"),
    };
    sample.media().map(|reference| path(&reference.source)).collect()
}

#[test]
fn shards_are_read_as_webdataset_reads_them() {
    let dir = fixtures().join("data/shards");
    let expected: Value = serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let shards = expected["shards"].as_object().unwrap();
    assert_eq!(shards.len(), 6);
    for (name, records) in shards {
        let dataset = open(dir.join(name)).unwrap();
        let records = records.as_array().unwrap();
        assert_eq!(dataset.len(), records.len() as u64, "{name}");
        for (index, record) in (0..).zip(records) {
            let sample = dataset.get(index).unwrap();
            assert_eq!(sample.id, record["id"].as_str().unwrap(), "{name}");
            assert_eq!(dataset.id(index), sample.id);
            assert_eq!(sample.conversation.last().unwrap().joined_text(), record["answer"].as_str().unwrap());
            let media: Vec<(&String, &Value)> = record["members"]
                .as_object()
                .unwrap()
                .iter()
                .filter(|(ending, _)| !["json", "txt", "cls"].contains(&ending.as_str()))
                .collect();
            let parts = paths(&sample);
            assert_eq!(parts.len(), media.len(), "{name} {index}");
            for (path, (ending, hash)) in parts.iter().zip(media) {
                let part = FilePart::of_path(path).unwrap();
                let own = format!("{}.{ending}", record["key"].as_str().unwrap());
                assert_eq!(part.name.to_lowercase(), own.to_lowercase());
                let mut bytes = Vec::new();
                MediaFile::open(path).unwrap().read_to_end(&mut bytes).unwrap();
                assert_eq!(fnv(&bytes).to_string(), hash.as_str().unwrap(), "{name} {own}");
            }
        }
    }
    let both = open(dir.join("train-{00000..00001}.tar")).unwrap();
    assert_eq!(ids(&both), ["own-0", "own-1", "own-2", "own-3", "own-4"]);
    assert_eq!(both.fingerprints().len(), 2);
}

/// A header of ustar with everything that a member says of itself.
fn header(name: &str, kind: u8, size: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..124 + size.len()].copy_from_slice(size);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    sum(&mut block);
    block
}

fn sum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, kind, format!("{:011o}\0", content.len()).as_bytes());
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// An archive of regular files.
fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes: Vec<u8> = members.iter().flat_map(|(name, content)| member(name, b'0', content)).collect();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn picture() -> Vec<u8> {
    std::fs::read(fixtures().join("data/images/6.png")).unwrap()
}

fn clip() -> Vec<u8> {
    std::fs::read(fixtures().join("media/clips/h264_small.mp4")).unwrap()
}

/// Opens an archive `s.tar`; the folder lives as long as the first value.
fn archive(bytes: &[u8]) -> (tempfile::TempDir, Result<Dataset, data::DataError>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.tar");
    std::fs::write(&path, bytes).unwrap();
    let dataset = open(&path);
    (dir, dataset)
}

fn check_archive(bytes: &[u8], expected: &str) {
    let (dir, dataset) = archive(bytes);
    assert_eq!(told(dataset, dir.path()), format!("`s.tar`: {expected}"));
}

#[test]
fn broken_and_hostile_archives_are_refused_with_their_place() {
    let picture = picture();
    let whole = tar(&[("a.txt", b"a square"), ("a.png", &picture)]);
    let len = whole.len() - 1024;
    check_archive(b"", "the archive ends at byte 0 without its end mark; hint: the file is incomplete, fetch it again");
    check_archive(
        &whole[..100],
        "the archive ends inside a header, at byte 100; hint: the file is incomplete, fetch it again",
    );
    check_archive(
        &whole[..len - 500],
        "`a.png` at byte 1024 has 132 bytes by its header, and the archive ends at 1548; hint: the file is incomplete, fetch it again",
    );
    check_archive(
        &whole[..len],
        "the archive ends at byte 2048 without its end mark; hint: the file is incomplete, fetch it again",
    );
    check_archive(
        &[0; 1024],
        "the archive holds no record: expected members such as `00012.json` and `00012.mp4`; hint: check the file's content",
    );
    check_archive(&[7; 1024], "this is not a tar archive; hint: check the file");
    let mut packed = vec![0; 1024];
    packed[..2].copy_from_slice(b"\x1f\x8b");
    check_archive(
        &packed,
        "the archive is compressed with gzip, so no record of it can be found by its number; hint: unpack it to a `.tar`; media do not get smaller by it",
    );
    let mut flipped = whole.clone();
    flipped[1024] ^= 1;
    check_archive(
        &flipped,
        "byte 1024: a header whose checksum is wrong; hint: fetch the archive again, or write it again",
    );
    let beyond = |size: &[u8]| [member("a.txt", b'0', b"x"), header("a.mp4", b'0', size), vec![0; 1024]].concat();
    check_archive(
        &beyond(b"77777777777\0"),
        "`a.mp4` at byte 1024 has 8589934591 bytes by its header, and the archive ends at 2560; hint: the file is incomplete, fetch it again",
    );
    check_archive(
        &beyond(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"),
        "`a.mp4` at byte 1024 has 9223372036854775807 bytes by its header, and the archive ends at 2560; hint: the file is incomplete, fetch it again",
    );
    for size in [
        &b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..],
        b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
        b"0x10\0",
    ] {
        check_archive(
            &beyond(size),
            "byte 1024: a header whose size is no number; hint: fetch the archive again, or write it again",
        );
    }
    for name in ["/etc/passwd.txt", "../a.txt", "a/../../b.txt"] {
        check_archive(
            &tar(&[(name, b"x")]),
            &format!("byte 0: `{name}` is a name that leads out of the archive; hint: write the archive again"),
        );
    }
    check_archive(&member("a.mp4", b'2', b""), "byte 0: `a.mp4` is a link; hint: store the file itself in its place");
    check_archive(&member("a.mp4", b'3', b""), "byte 0: `a.mp4` is a device or a pipe; hint: leave it out");
    check_archive(
        &member("a.mp4", b'?', b""),
        "byte 0: `a.mp4` is a member of the unknown type `?`; hint: write the archive as ustar, GNU or pax",
    );
    check_archive(
        &tar(&[("a.txt", b"x"), ("a.TXT", b"y")]),
        "byte 1024: `a.TXT` stands twice in its record; hint: write every member once",
    );
    let extended = |kind, content: &[u8]| [member("x", kind, content), tar(&[("a.txt", b"x")])].concat();
    for content in
        [&b"99 path=a\n"[..], b"x path=a\n", b"9 path=a!", b"18446744073709551616 a=b\n", b"3 \n", b"14 size=huge\n "]
    {
        check_archive(
            &extended(b'x', content),
            "byte 0: a pax header that cannot be read; hint: fetch the archive again, or write it again",
        );
    }
    check_archive(
        &extended(b'g', b"14 path=a.txt\n"),
        "byte 0: a pax header that names all members alike; hint: fetch the archive again, or write it again",
    );
    check_archive(
        &extended(b'x', b"22 GNU.sparse.major=1\n"),
        "byte 0: a sparse file, which is not supported; hint: fetch the archive again, or write it again",
    );
    check_archive(
        &extended(b'L', b"\xff\xfe\0"),
        "byte 0: a name that is not UTF-8; hint: fetch the archive again, or write it again",
    );
    check_archive(
        &extended(b'L', &vec![b'a'; (1 << 20) + 1]),
        "byte 0: an extended header of 1048577 bytes, the limit is 1048576; hint: fetch the archive again, or write it again",
    );
    check_archive(
        &[member("x", b'L', b"name.txt\0"), vec![0; 1024]].concat(),
        "byte 1024: an extended header is not followed by its member; hint: fetch the archive again, or write it again",
    );
}

#[test]
fn mutated_archives_give_records_or_errors() {
    let whole = std::fs::read(fixtures().join("data/shards/gnu.tar")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.tar");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        if let Ok(dataset) = open(&path) {
            assert!(dataset.len() <= (bytes.len() / 512) as u64);
            for index in 0..dataset.len() {
                let _ = dataset.get(index);
            }
        }
    };
    for end in (0..whole.len()).step_by(193) {
        read(&whole[..end]);
    }
    // Headers with another byte somewhere and the right sum: what nobody's checksum refuses.
    let mut state = 1u64;
    for _ in 0..1500 {
        let mut bytes = whole.clone();
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let block = (state >> 33) as usize % (bytes.len() / 512) * 512;
        bytes[block + (state >> 20) as usize % 512] = (state >> 50) as u8;
        bytes[block + 124 + (state >> 28) as usize % 34] ^= (state >> 42) as u8;
        sum(&mut bytes[block..block + 512]);
        read(&bytes);
    }
}

/// The error of the first record of an archive.
fn check_record(members: &[(&str, &[u8])], expected: &str) {
    let (dir, dataset) = archive(&tar(members));
    let error = dataset.and_then(|dataset| dataset.get(0));
    assert_eq!(told(error, dir.path()), expected);
}

#[test]
fn records_whose_members_do_not_fit_are_refused() {
    let (picture, clip) = (picture(), clip());
    let dialogue = |mark: &str, more: &str| format!("{{\"conversations\": {}{more}}}", turns(mark)).into_bytes();
    check_record(
        &[("k.json", b"{\"conversations\": [\n  {]}"), ("k.png", &picture)],
        "`s.tar!k.json` line 2, record `k`: column 4: key must be a string, near `  {]}`; hint: repair the JSON, or set `data.on_bad_media: skip`",
    );
    check_record(
        &[("k.json", &dialogue("<image>\n", "")), ("k.png", &picture), ("k.npy", b"1")],
        "`s.tar!k.json` line 1, record `k`: nothing is known of members such as `k.npy`; hint: known are `json`, `txt`, `cls`, and pictures, clips and sounds by their endings; leave others out of the shard",
    );
    check_record(
        &[("k.json", &dialogue("<image>\n", "")), ("k.txt", b"words"), ("k.png", &picture)],
        "`s.tar!k.json` line 1, record `k`: both `k.json` and `k.txt` say what is answered; hint: leave one of them out of the shard",
    );
    check_record(
        &[("k.txt", b"words"), ("k.cls", b"3"), ("k.png", &picture)],
        "`s.tar!k.txt`, record `k`: both `k.txt` and `k.cls` say what is answered; hint: leave one of them out of the shard",
    );
    check_record(
        &[("k.txt", b"words")],
        "`s.tar!k.txt`, record `k`: a text answers a picture or a clip, and none stands beside it; hint: write the dialogue as a `json` member",
    );
    check_record(
        &[("k.mp4", &clip)],
        "`s.tar!k.mp4`, record `k`: the record has media and no text; hint: add a `json` member with the dialogue, or a `txt` member with the answer",
    );
    check_record(
        &[("k.txt", b"caf\xe9"), ("k.png", &picture)],
        "`s.tar!k.txt`, record `k`: `k.txt`, byte 3: the text is not UTF-8; hint: save the text in UTF-8, or set `data.on_bad_media: skip`",
    );
    check_record(
        &[("k.json", &dialogue("<image>\n", ", \"image\": \"k.a.png\"")), ("k.a.png", &picture), ("k.b.png", &picture)],
        "`s.tar!k.json` line 1, record `k`: nothing in the record takes `k.b.png`; hint: name it in the record, or leave it out of the shard",
    );
    check_record(
        &[("k.json", &dialogue("", "")), ("k.png", &picture)],
        "`s.tar!k.json` line 1, record `k`: the number of `<image>` placeholders is not the number of images: expected 1 (the images of the record), found 0; hint: write one `<image>` for each image",
    );
    // The first record tells the format, the second is broken.
    let (dir, dataset) = archive(&tar(&[
        ("a.json", &dialogue("<image>\n", "")),
        ("a.png", &picture),
        ("b.json", b"{\"conversations\": [\n  {]}"),
        ("b.png", &picture),
    ]));
    assert_eq!(
        told(dataset.unwrap().get(1), dir.path()),
        "`s.tar!b.json` line 2, record `b`: column 4: key must be a string, near `  {]}`; hint: repair the JSON, or set `data.on_bad_media: skip`"
    );
}

#[test]
fn media_of_a_shard_are_named_in_errors() {
    let (picture, clip) = (picture(), clip());
    let check = |members: &[(&str, &[u8])], expected: &str| {
        let (dir, dataset) = archive(&tar(members));
        let sample = dataset.unwrap().get(0).unwrap();
        assert_eq!(told(processor().encode(&sample, &EncodeOptions::default()), dir.path()), expected);
    };
    let place = "`s.tar!000/k.txt`, record `000/k`: ";
    check(
        &[("000/k.txt", b"x"), ("000/k.png", &picture[..60])],
        &format!(
            "{place}`s.tar!000/k.png`: truncated: the picture data ends too soon; hint: the file is incomplete, get it again"
        ),
    );
    check(
        &[("000/k.txt", b"x"), ("000/k.mp4", b"")],
        &format!("{place}`s.tar!000/k.mp4`: the file is empty; hint: download or copy it again"),
    );
    // What follows in the archive is out of reach: the clip ends where its member does.
    check(
        &[("000/k.txt", b"x"), ("000/k.mp4", &clip[..40]), ("000/l.mp4", &clip), ("000/l.txt", b"x")],
        &format!(
            "{place}`s.tar!000/k.mp4`: broken mp4 file: it has no `moov` box, so the recording was not finished or its end is missing; hint: the file is damaged or incomplete, get it again"
        ),
    );
}

#[test]
fn parts_lists_and_frames_take_members() {
    let (picture, clip) = (picture(), clip());
    let names = |record: Value, members: &[&str]| -> Vec<String> {
        let text = record.to_string();
        let mut all: Vec<(&str, &[u8])> = vec![("d/k.json", text.as_bytes())];
        all.extend(members.iter().map(|name| (*name, if name.ends_with("mp4") { &clip[..] } else { &picture[..] })));
        let (_dir, dataset) = archive(&tar(&all));
        let sample = dataset.unwrap().get(0).unwrap();
        paths(&sample).iter().map(|path| FilePart::of_path(path).unwrap().name).collect()
    };
    let say = |parts: Value| json!([{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "y"}]}]);
    let text = json!({"type": "text", "text": "x"});
    let bare = json!([{"type": "image"}, {"type": "video"}, text.clone()]);
    assert_eq!(names(json!({"messages": say(bare)}), &["d/k.mp4", "d/k.png"]), ["d/k.png", "d/k.mp4"]);
    let named = json!([{"type": "image", "image": "k.b.png"}, {"type": "image", "image": "d/k.a.png"}, text.clone()]);
    assert_eq!(names(json!({"messages": say(named)}), &["d/k.a.png", "d/k.b.png"]), ["d/k.b.png", "d/k.a.png"]);
    let frames = json!([{"type": "image"}, {"type": "image"}, text]);
    assert_eq!(names(json!({"conversation": say(frames)}), &["d/k.mp4"]), ["d/k.mp4", "d/k.mp4"]);
    let two = json!({"conversations": turns("<image><image>\n")});
    assert_eq!(names(two, &["d/k.0.png", "d/k.1.png"]), ["d/k.0.png", "d/k.1.png"]);
    let list = json!({"video": ["k.1.png", "k.0.png"], "fps": 1, "conversations": turns("<video>\n")});
    let record = list.to_string();
    let (_dir, dataset) = archive(&tar(&[("k.json", record.as_bytes()), ("k.0.png", &picture), ("k.1.png", &picture)]));
    let sample = dataset.unwrap().get(0).unwrap();
    let MediaSource::Files(files) = &sample.media().next().unwrap().source else { panic!("a list") };
    let files: Vec<String> = files.iter().map(|path| FilePart::of_path(path).unwrap().name).collect();
    assert_eq!(files, ["k.1.png", "k.0.png"]);
    assert!(processor().encode(&sample, &EncodeOptions::default()).is_ok());
}

/// The same records outside of the shards.
fn unpacked(dir: &Path) -> Dataset {
    let mut lines = Vec::new();
    for number in 0..5 {
        let (mark, ending, bytes) =
            if number % 2 == 1 { ("video", "mp4", clip()) } else { ("image", "png", picture()) };
        let name = format!("{number}.{ending}");
        std::fs::write(dir.join(&name), bytes).unwrap();
        let shard = open(fixtures().join("data/shards/train-{00000..00001}.tar")).unwrap();
        let answer = shard.get(number).unwrap().conversation.last().unwrap().joined_text();
        lines.push(
            json!({"id": format!("own-{number}"), mark: name, "conversations": [
                {"from": "human", "value": format!("<{mark}>\nWhat is number {number}?")},
                {"from": "gpt", "value": answer},
            ]})
            .to_string(),
        );
    }
    std::fs::write(dir.join("records.jsonl"), lines.join("\n")).unwrap();
    open(dir.join("records.jsonl")).unwrap()
}

fn epoch(loader: &mut Loader) -> Vec<Batch> {
    std::iter::from_fn(|| loader.next_batch().unwrap().map(|(batch, _)| batch)).collect()
}

#[test]
fn the_loader_reads_shards_as_it_reads_files() {
    let dir = tempfile::tempdir().unwrap();
    let files = Arc::new(unpacked(dir.path()));
    let shards = Arc::new(open(fixtures().join("data/shards/train-*.tar")).unwrap());
    let processor = Arc::new(processor());
    let encode = EncodeOptions { num_frames: Some(2), ..EncodeOptions::default() };
    let options = LoaderOptions { batch_size: 2, shuffle: true, seed: 3, encode, ..Default::default() };
    let run = |dataset: &Arc<Dataset>, workers| {
        let options = LoaderOptions { workers, ..options.clone() };
        let mut loader = Loader::new(dataset.clone(), processor.clone(), options).unwrap();
        [epoch(&mut loader), epoch(&mut loader)].concat()
    };
    let expected = run(&files, 1);
    assert_eq!(expected.len(), 6);
    assert_eq!(run(&shards, 1), expected);
    assert_eq!(run(&shards, 3), expected);
    // Resumption at every batch of the first epoch, with another number of threads.
    let mut whole = Loader::new(shards.clone(), processor.clone(), options.clone()).unwrap();
    for number in 0..3 {
        let state: LoaderState = serde_json::from_str(&serde_json::to_string(&whole.state()).unwrap()).unwrap();
        let options = LoaderOptions { workers: 1 + number, ..options.clone() };
        let mut resumed = Loader::from_state(shards.clone(), processor.clone(), options, state).unwrap();
        assert_eq!(epoch(&mut resumed), expected[number..3]);
        whole.next_batch().unwrap();
    }
}

#[test]
fn a_clip_in_a_shard_is_in_the_cache_what_its_file_is() {
    let dir = tempfile::tempdir().unwrap();
    let files = unpacked(dir.path());
    let shards = open(fixtures().join("data/shards/train-*.tar")).unwrap();
    let cache = Arc::new(FrameCache::open(&dir.path().join("cache"), 1 << 30).unwrap());
    let processor = processor().with_frame_cache(Some(cache.clone()));
    let options = EncodeOptions { num_frames: Some(2), ..EncodeOptions::default() };
    let plain = processor.encode(&files.get(1).unwrap(), &options).unwrap();
    let before = cache.stats();
    let packed = processor.encode(&shards.get(1).unwrap(), &options).unwrap();
    assert_eq!(packed.pixels, plain.pixels);
    let after = cache.stats();
    assert!(after.hits > before.hits && after.misses == before.misses, "{before:?} {after:?}");
}

#[test]
fn fingerprints_tell_texts_apart() {
    let of = |text: &str| {
        let (_dir, dataset) = archive(&tar(&[("a.txt", text.as_bytes()), ("a.png", &picture())]));
        dataset.unwrap().fingerprints()[0].1
    };
    assert_eq!(of("one"), of("one"));
    assert_ne!(of("one"), of("two"));
}

#[test]
fn turns_of_captions_show_all_media() {
    let dataset = open(fixtures().join("data/shards/captions.tar")).unwrap();
    let shape = |index: u64| -> String {
        let sample = dataset.get(index).unwrap();
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Media(reference) => format!("<{:?}>", reference.kind),
        };
        sample.conversation.iter().map(|turn| turn.parts.iter().map(part).collect::<String>() + "|").collect()
    };
    assert_eq!(shape(0), "<Image>|a grey square|");
    assert_eq!(shape(1), "<Video>|a moving square|");
    assert_eq!(shape(2), "<Image><Image>|7|");
}
