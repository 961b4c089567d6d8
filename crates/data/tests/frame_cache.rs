//! The frame cache through the loader: the same batches and the same news with and without, whatever happens to its files.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::{
    Batch, CacheStats, DataPlan, Dataset, Format, FrameCache, ImageBackend, LedgerEvent, Loader, LoaderOptions,
    Processor, open_dataset,
};
use media::FrameRule;
use serde_json::{Value, json};

const BUDGET: u64 = 1 << 30;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn clip(name: &str) -> PathBuf {
    fixtures().join("media/clips").join(name)
}

fn processor(cache: Option<&Arc<FrameCache>>) -> Arc<Processor> {
    let processor = Processor::load(&fixtures().join("data/text/generation_blocks")).unwrap();
    Arc::new(processor.with_frame_cache(cache.cloned()))
}

fn open(dir: &Path) -> Arc<FrameCache> {
    Arc::new(FrameCache::open(dir, BUDGET).unwrap())
}

fn record(id: &str, video: &Path) -> Value {
    json!({"id": id, "video": video, "conversations": [
        {"from": "human", "value": "<video>\nwhat?"}, {"from": "gpt", "value": id},
    ]})
}

/// A folder with a dataset of clips that have something to say: whole, cut short, damaged, with odd times, as a folder
/// of pictures; and one record without any.
fn place() -> (tempfile::TempDir, Arc<Dataset>) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let whole = std::fs::read(clip("h264_fragmented.mp4")).unwrap();
    std::fs::write(at("cut.mp4"), &whole[..whole.len() * 3 / 4]).unwrap();
    let mut damaged = std::fs::read(clip("h264.ts")).unwrap();
    for packet in damaged.chunks_mut(188).skip(20).step_by(7) {
        packet.iter_mut().skip(100).take(30).for_each(|byte| *byte ^= 0x5a);
    }
    std::fs::write(at("damaged.ts"), damaged).unwrap();
    std::fs::create_dir(at("list")).unwrap();
    for frame in 0..5 {
        std::fs::copy(fixtures().join(format!("data/images/{frame}.png")), at(&format!("list/{frame}.png"))).unwrap();
    }
    let mut records = vec![
        record("cut", &at("cut.mp4")),
        record("damaged", &at("damaged.ts")),
        record("list", &at("list")),
        json!({"id": "text", "conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "x"}]}),
        json!({"id": "picture", "image": fixtures().join("data/images/0.png"), "conversations": [
            {"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "x"}]}),
    ];
    for name in ["h264_vfr.mp4", "rotate90.mp4", "vp9.webm", "edit_list.mp4", "h264_small.mp4"] {
        records.push(record(name, &clip(name)));
    }
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    std::fs::write(at("records.jsonl"), lines.join("\n")).unwrap();
    let dataset = open_dataset(&at("records.jsonl"), Format::Auto, None).unwrap();
    (dir, Arc::new(dataset))
}

/// Clips of [`place`] that go through the cache.
const NUM_CLIPS: u64 = 8;

fn options() -> LoaderOptions {
    let mut options = LoaderOptions { batch_size: 3, shuffle: true, seed: 4, ..LoaderOptions::default() };
    options.encode.num_frames = Some(30);
    options
}

type News = Vec<(Batch, Vec<LedgerEvent>)>;

fn run(dataset: &Arc<Dataset>, processor: Arc<Processor>, options: LoaderOptions, epochs: usize) -> News {
    let mut loader = Loader::new(dataset.clone(), processor, options).unwrap();
    let mut all = Vec::new();
    for _ in 0..epochs {
        all.extend(std::iter::from_fn(|| loader.next_batch().unwrap()));
    }
    all
}

/// Counts without bytes: clips read, decoded, written, damaged entries.
fn counts(stats: CacheStats) -> [u64; 4] {
    [stats.hits, stats.misses, stats.stored, stats.damaged]
}

/// The files of entries, in the order of their names.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for shelf in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        files.extend(std::fs::read_dir(shelf).unwrap().map(|entry| entry.unwrap().path()));
    }
    files.sort();
    files
}

#[test]
fn the_same_batches_and_news_with_and_without() {
    let (place, dataset) = place();
    let plain = run(&dataset, processor(None), options(), 2);
    let notes: Vec<&String> = plain.iter().flat_map(|(_, news)| news).flat_map(|event| &event.notes).collect();
    let said = |word: &str| notes.iter().any(|note| note.contains(word));
    assert!(said("cut.mp4") && said("frames are damaged in the file") && said("30 were wanted"), "{notes:#?}");
    let dir = place.path().join("cache");
    let cold = open(&dir);
    assert!(plain == run(&dataset, processor(Some(&cold)), options(), 2));
    assert_eq!(counts(cold.stats()), [NUM_CLIPS, NUM_CLIPS, NUM_CLIPS, 0], "the second epoch decodes nothing");
    for workers in [1, 5] {
        let warm = open(&dir);
        assert!(plain == run(&dataset, processor(Some(&warm)), LoaderOptions { workers, ..options() }, 2));
        assert_eq!(counts(warm.stats()), [2 * NUM_CLIPS, 0, 0, 0]);
        assert_eq!((warm.stats().bytes_written, warm.take_notices()), (0, Vec::new()));
    }
    // One entry for the frames of every clip, and one for what is known of every video.
    let survey = FrameCache::survey(&dir).unwrap();
    assert_eq!((survey.entries, survey.bytes), (2 * NUM_CLIPS - 1, cold.stats().bytes_written));
}

#[test]
fn packing_measures_from_the_cache() {
    let (place, dataset) = place();
    let options = || LoaderOptions { pack_tokens: Some(400), pack_window: 8, ..options() };
    let plain = run(&dataset, processor(None), options(), 1);
    let cache = open(&place.path().join("cache"));
    for _ in 0..2 {
        assert!(plain == run(&dataset, processor(Some(&cache)), options(), 1));
    }
    assert_eq!(counts(cache.stats()), [NUM_CLIPS, NUM_CLIPS, NUM_CLIPS, 0]);
}

/// What to write in place of the entry of a number.
type Spoil<'a> = &'a dyn Fn(usize) -> Vec<u8>;

#[test]
fn entries_that_are_not_whole_are_replaced() {
    let (place, dataset) = place();
    let dir = place.path().join("cache");
    let plain = run(&dataset, processor(None), options(), 1);
    run(&dataset, processor(Some(&open(&dir))), options(), 1);
    let files = entries(&dir);
    let bytes: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    let spoil: [(&str, Spoil<'_>); 6] = [
        ("empty", &|_| Vec::new()),
        ("cut", &|at| bytes[at][..bytes[at].len() - 1].to_vec()),
        ("longer", &|at| [&bytes[at][..], b"x"].concat()),
        ("another's", &|at| bytes[(at + 1) % bytes.len()].clone()),
        ("a bit in the frames", &|at| {
            let mut bytes = bytes[at].clone();
            let middle = bytes.len() - 3;
            bytes[middle] ^= 1;
            bytes
        }),
        ("a bit in the head", &|at| {
            let mut bytes = bytes[at].clone();
            bytes[41] ^= 1;
            bytes
        }),
    ];
    for (what, spoil) in spoil {
        for (at, file) in files.iter().enumerate() {
            std::fs::write(file, spoil(at)).unwrap();
        }
        let cache = open(&dir);
        assert!(plain == run(&dataset, processor(Some(&cache)), options(), 1), "{what}");
        assert_eq!(counts(cache.stats()), [0, NUM_CLIPS, NUM_CLIPS, files.len() as u64], "{what}");
        let notices = cache.take_notices();
        assert_eq!(notices.len(), 3, "{what}: {notices:?}");
        assert!(notices[0].starts_with("frame cache: `") && notices[0].ends_with("; the clip is decoded again"));
        for (file, bytes) in files.iter().zip(&bytes) {
            assert!(std::fs::read(file).unwrap() == *bytes, "{what}: `{}`", file.display());
        }
    }
}

/// The name of a clip says nothing about its content.
#[test]
fn a_file_that_changes_is_decoded_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (first, second) = (clip("matrix_0_1_1_0.mp4"), clip("matrix_0_1_-1_0.mp4"));
    let lines = [record("a", &at("a.mp4")), record("b", &at("b.mp4"))].map(|record| record.to_string());
    std::fs::write(at("records.jsonl"), lines.join("\n")).unwrap();
    let dataset = Arc::new(open_dataset(&at("records.jsonl"), Format::Auto, None).unwrap());
    let cache = open(&at("cache"));
    let check = |expected: [u64; 4]| {
        let found = run(&dataset, processor(Some(&cache)), options(), 1);
        assert!(found == run(&dataset, processor(None), options(), 1));
        assert_eq!(counts(cache.stats()), expected);
        found
    };
    std::fs::copy(&first, at("a.mp4")).unwrap();
    std::fs::copy(&first, at("b.mp4")).unwrap();
    run(&dataset, processor(Some(&cache)), LoaderOptions { workers: 1, ..options() }, 1);
    assert_eq!(counts(cache.stats()), [1, 1, 1, 0], "the same content under two names is decoded once");
    let before = check([3, 1, 1, 0]);
    std::fs::copy(&second, at("a.mp4")).unwrap();
    let after = check([4, 2, 2, 0]);
    assert!(before != after);
    std::fs::copy(&first, at("a.mp4")).unwrap();
    assert!(before == check([6, 2, 2, 0]));
}

#[test]
fn other_frames_and_other_sizes_are_other_entries() {
    let (place, dataset) = place();
    let cache = open(&place.path().join("cache"));
    let pillow = |cache: Option<&Arc<FrameCache>>| {
        let processor = Processor::load(&fixtures().join("data/text/generation_blocks")).unwrap();
        Arc::new(processor.with_image_backend(ImageBackend::Pillow).with_frame_cache(cache.cloned()))
    };
    let mut few = options();
    few.encode.num_frames = Some(2);
    // As many frames, and others.
    let mut middles = few.clone();
    middles.encode.rule = Some(FrameRule::Segments);
    let mut bounded = options();
    bounded.encode.limits.max_frames = 1000;
    for _ in 0..2 {
        for options in [options(), few.clone(), middles.clone(), bounded.clone()] {
            assert!(
                run(&dataset, processor(Some(&cache)), options.clone(), 1)
                    == run(&dataset, processor(None), options, 1)
            );
        }
        assert!(run(&dataset, pillow(Some(&cache)), options(), 1) == run(&dataset, pillow(None), options(), 1));
    }
    assert_eq!(counts(cache.stats()), [5 * NUM_CLIPS, 5 * NUM_CLIPS, 5 * NUM_CLIPS, 0]);
}

/// A rule that takes other frames in every epoch would fill the folder with what nobody asks for again.
#[test]
fn jittered_frames_are_not_kept() {
    let (place, dataset) = place();
    let cache = open(&place.path().join("cache"));
    let mut options = options();
    (options.encode.rule, options.encode.jitter) = (Some(FrameRule::Segments), Some(5));
    options.encode.num_frames = Some(3);
    assert!(run(&dataset, processor(Some(&cache)), options.clone(), 2) == run(&dataset, processor(None), options, 2));
    assert_eq!(counts(cache.stats()), [0, 0, 0, 0]);
}

/// Frames that this run uses itself are not driven out by its own: with a folder too small for all of them, those that
/// fit are read in every epoch.
#[test]
fn a_budget_too_small_for_all_serves_some() {
    let (place, dataset) = place();
    let dir = place.path().join("cache");
    let plain = run(&dataset, processor(None), options(), 3);
    run(&dataset, processor(Some(&open(&dir))), options(), 1);
    let all = FrameCache::survey(&dir).unwrap().bytes;
    FrameCache::clear(&dir).unwrap();
    let cache = Arc::new(FrameCache::open(&dir, all / 2).unwrap());
    assert!(plain == run(&dataset, processor(Some(&cache)), LoaderOptions { workers: 1, ..options() }, 3));
    assert!(FrameCache::survey(&dir).unwrap().bytes <= all / 2);
    let stats = cache.stats();
    assert!(stats.stored > 0 && stats.hits == 2 * stats.stored && stats.no_room > 0, "{stats:?}");
    let notices = cache.take_notices();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].starts_with("`data.frame_cache_size` is used up by this run's own frames"));
}

#[test]
fn a_folder_that_cannot_be_written_to_is_told_once() {
    let (place, dataset) = place();
    let dir = place.path().join("cache");
    let cache = open(&dir);
    // A file wherever a folder of entries would have to be: also who may write everywhere cannot write there.
    for shelf in 0..=255 {
        std::fs::write(dir.join(format!("{shelf:02x}")), "").unwrap();
    }
    assert!(run(&dataset, processor(None), options(), 2) == run(&dataset, processor(Some(&cache)), options(), 2));
    let notices = cache.take_notices();
    let [notice] = notices.as_slice() else { panic!("{notices:?}") };
    assert!(notice.starts_with(&format!("the frame cache cannot be written to: `{}/", dir.display())), "{notice}");
    assert_eq!(counts(cache.stats())[2], 0);
    let file = place.path().join("records.jsonl");
    let error = FrameCache::open(&file, BUDGET).unwrap_err().to_string();
    assert!(error.starts_with(&format!("`data.frame_cache`: `{}` cannot be used: ", file.display())), "{error}");
    assert!(error.ends_with("; hint: name a folder that can be written to, or leave the key out"), "{error}");
    let error = FrameCache::survey(place.path()).unwrap_err().to_string();
    assert!(error.contains("is no frame cache: it holds no `vidtune-frames.json`"), "{error}");
    assert!(FrameCache::clear(place.path()).is_err());
}

#[test]
fn several_loaders_share_a_folder() {
    let (place, dataset) = place();
    let dir = place.path().join("cache");
    let plain = run(&dataset, processor(None), options(), 2);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // Small enough for the four to drive out each other's entries.
                let cache = Arc::new(FrameCache::open(&dir, 30_000).unwrap());
                assert!(plain == run(&dataset, processor(Some(&cache)), options(), 2));
                assert_eq!((cache.stats().damaged, cache.take_notices().len() <= 1), (0, true));
            });
        }
    });
    assert!(FrameCache::survey(&dir).unwrap().bytes <= 30_000);
}

#[test]
fn the_plan_names_folder_and_size() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |size: Value| {
        DataPlan::from_json(&json!({"frame_cache": dir.path().join("new/cache"), "frame_cache_size": size}))
    };
    for (text, bytes) in
        [(json!("10GB"), 10_000_000_000), (json!("1 GiB"), 1 << 30), (json!(500), 500), (json!("7"), 7)]
    {
        assert_eq!(plan(text).unwrap().frame_cache_size.0, bytes);
    }
    let error = plan(json!("ten")).unwrap_err().to_string();
    assert!(error.contains("expected a size such as `10GB` or `500MB`, found `TEN`"), "{error}");
    assert!(plan(json!(0)).is_err());
    assert!(plan(json!("1GB")).unwrap().open_frame_cache().unwrap().is_some());
    assert!(dir.path().join("new/cache/vidtune-frames.json").is_file());
    assert!(DataPlan::default().open_frame_cache().unwrap().is_none());
}
