//! Video files and record files of the demo: scenes to encoded clips of several sizes, rates and codecs, questions to records in
//! the `conversation` and `llava` formats. Owns the counts and the split; every scene belongs to one split only.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use media::encode::{Codec, EncodeOptions, VideoWriter};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::draw::draw;
use super::questions::{self, Exchange, QuestionType};
use super::rng::Rng;
use super::scene::{Direction, GRID, MOMENTS, Scene};
use crate::failure::CliError;
use crate::output;

/// Most questions about one clip, its caption not counted.
const NUM_TURNS: usize = 6;

/// How many clips of each kind are made.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Clips of the first stage: captions and questions of every type but `order`.
    pub stage1: usize,
    /// Clips of the second stage with a question about order.
    pub order: usize,
    /// Clips of the second stage that ask what the first one asked, so that it is not forgotten.
    pub replay: usize,
    /// Held-out clips of each question type; even.
    pub held_out: usize,
}

/// Where everything was written.
#[derive(Debug, Clone)]
pub struct Files {
    /// Records of the first stage (`conversation`).
    pub stage1: PathBuf,
    /// Records of the second stage (`llava`).
    pub stage2: PathBuf,
    /// Held-out records by type (`llava`).
    pub held_out: Vec<(QuestionType, PathBuf)>,
    /// Clips that were encoded.
    pub num_clips: usize,
}

impl Files {
    /// The held-out records of a type.
    pub fn of(&self, question: QuestionType) -> &Path {
        let found = self.held_out.iter().find(|(one, _)| *one == question);
        found.map_or(Path::new(""), |(_, path)| path)
    }
}

/// A clip with what is said about it.
struct Clip {
    name: String,
    scene: Scene,
    turns: Vec<Exchange>,
}

/// How a file is encoded.
struct Look {
    width: u32,
    height: u32,
    fps: i32,
    /// Frames of the file for each moment.
    hold: usize,
    codec: Codec,
    ending: &'static str,
}

impl Look {
    fn pick(rng: &mut Rng) -> Look {
        let (width, height) = rng.pick(&[(64, 64), (80, 64), (64, 96), (96, 96), (128, 96)]);
        let (fps, hold) = rng.pick(&[(4, 2), (8, 3), (12, 4), (25, 6), (30, 6)]);
        let (codec, ending) =
            rng.pick(&[(Codec::H264, "mp4"), (Codec::H264, "mp4"), (Codec::H264, "mkv"), (Codec::Mpeg4, "avi")]);
        Look { width, height, fps, hold, codec, ending }
    }
}

/// Renders every clip and writes the record files; `progress(done, total)` counts clips, from several threads.
///
/// # Errors
/// A file cannot be written.
pub fn make(dir: &Path, counts: &Counts, seed: u64, progress: &(impl Fn(usize, usize) + Sync)) -> Result<Files> {
    let stage1 = stage1_clips(counts.stage1, seed);
    let stage2 = stage2_clips(counts, seed);
    let held_out: Vec<(QuestionType, Vec<Clip>)> = QuestionType::ALL
        .into_iter()
        .map(|question| (question, held_out_clips(question, counts.held_out, seed)))
        .collect();
    let all: Vec<&Clip> = stage1.iter().chain(&stage2).chain(held_out.iter().flat_map(|(_, clips)| clips)).collect();
    let folder = dir.join("clips");
    fs::create_dir_all(&folder).map_err(|error| CliError::io("create", &folder, &error))?;
    let done = std::sync::atomic::AtomicUsize::new(0);
    let names = all.par_iter().map(|clip| {
        let name = render(&folder, clip, seed)?;
        progress(1 + done.fetch_add(1, std::sync::atomic::Ordering::Relaxed), all.len());
        Ok(name)
    });
    let names: Vec<String> = names.collect::<Result<_>>()?;
    let mut names = names.iter();
    let mut records = |clips: &[Clip], record: fn(&Clip, &str) -> Value| -> Vec<Value> {
        clips.iter().zip(names.by_ref()).map(|(clip, file)| record(clip, &format!("clips/{file}"))).collect()
    };
    let (stage1, stage2) = (records(&stage1, conversation_record), records(&stage2, llava_record));
    let mut files = Files {
        stage1: dir.join("stage1.json"),
        stage2: dir.join("stage2.jsonl"),
        held_out: Vec::new(),
        num_clips: all.len(),
    };
    output::write_json(Some(&files.stage1), &stage1)?;
    write_lines(&files.stage2, &stage2)?;
    for (question, clips) in &held_out {
        let path = dir.join(format!("held_out_{}.jsonl", question.name()));
        write_lines(&path, &records(clips, llava_record))?;
        files.held_out.push((*question, path));
    }
    Ok(files)
}

fn write_lines(path: &Path, records: &[Value]) -> Result<()> {
    let text: String = records.iter().map(|record| format!("{record}\n")).collect();
    output::write(Some(path), text.as_bytes())
}

/// Still, moving and alternating shapes in turn; a third of the clips is described, the others are talked about.
fn stage1_clips(count: usize, seed: u64) -> Vec<Clip> {
    let mut rng = Rng::new(seed, "stage 1");
    (0..count)
        .map(|index| {
            let scene = talked_scene(&mut rng, index);
            let mut turns = questions::dialogue(&mut rng, &scene, NUM_TURNS);
            if rng.below(4) == 0 {
                turns.insert(rng.below(turns.len() + 1), questions::describe(&scene));
            }
            Clip { name: format!("a{index:05}"), scene, turns }
        })
        .collect()
}

fn talked_scene(rng: &mut Rng, index: usize) -> Scene {
    match index % 4 {
        0 => {
            let count = 1 + rng.below(questions::MAX_COUNT);
            Scene::still(rng, count)
        }
        1 => Scene::turns(rng),
        _ => {
            let (direction, count) = (rng.pick(&Direction::ALL), 1 + rng.below(GRID));
            Scene::motion(rng, direction, count)
        }
    }
}

fn stage2_clips(counts: &Counts, seed: u64) -> Vec<Clip> {
    let mut rng = Rng::new(seed, "stage 2");
    let asked = (0..counts.order).map(|index| {
        let scene = Scene::turns(&mut rng);
        let turns = vec![questions::ask_order(&scene)];
        Clip { name: format!("b{index:05}"), scene, turns }
    });
    let mut clips: Vec<Clip> = asked.collect();
    clips.extend((0..counts.replay).map(|index| {
        let scene = talked_scene(&mut rng, index);
        let turns = questions::dialogue(&mut rng, &scene, NUM_TURNS);
        Clip { name: format!("c{index:05}"), scene, turns }
    }));
    clips
}

/// Under the types that need time, clips come in pairs: the second is the first one played backwards, with the same words.
fn held_out_clips(question: QuestionType, count: usize, seed: u64) -> Vec<Clip> {
    let mut rng = Rng::new(seed, &format!("held out {}", question.name()));
    let mut clips: Vec<Clip> = Vec::with_capacity(count);
    let mut index = 0;
    while clips.len() < count {
        let (scene, exchange) = questions::scene_for(question, &mut rng, index);
        let twin = questions::backwards(question, &scene, &exchange);
        for (scene, exchange) in std::iter::once((scene, exchange)).chain(twin) {
            let name = format!("{}{:04}", question.name(), clips.len());
            clips.push(Clip { name, scene, turns: vec![exchange] });
        }
        index += 1;
    }
    clips
}

/// Encodes a clip and gives the name of its file.
fn render(folder: &Path, clip: &Clip, seed: u64) -> Result<String> {
    let look = Look::pick(&mut Rng::new(seed, &format!("look of {}", clip.name)));
    let name = format!("{}.{}", clip.name, look.ending);
    let options = EncodeOptions::default();
    let mut writer =
        VideoWriter::with_options(&folder.join(&name), look.width, look.height, (look.fps, 1), look.codec, &options)?;
    for moment in 0..MOMENTS {
        let image = draw(&clip.scene, moment, look.width, look.height);
        for _ in 0..look.hold {
            writer.push(&image)?;
        }
    }
    writer.finish()?;
    Ok(name)
}

fn conversation_record(clip: &Clip, file: &str) -> Value {
    let turns = clip.turns.iter().enumerate().flat_map(|(index, exchange)| {
        let text = json!({"type": "text", "text": exchange.question});
        let content = if index == 0 { vec![json!({"type": "video"}), text] } else { vec![text] };
        let answer = json!([{"type": "text", "text": exchange.answer}]);
        [json!({"role": "user", "content": content}), json!({"role": "assistant", "content": answer})]
    });
    json!({"id": clip.name, "video": file, "num_frames": MOMENTS, "conversation": turns.collect::<Vec<_>>()})
}

fn llava_record(clip: &Clip, file: &str) -> Value {
    let turns = clip.turns.iter().enumerate().flat_map(|(index, exchange)| {
        let mark = if index == 0 { "<video>\n" } else { "" };
        let question = format!("{mark}{}", exchange.question);
        [json!({"from": "human", "value": question}), json!({"from": "gpt", "value": exchange.answer})]
    });
    json!({"id": clip.name, "video": file, "conversations": turns.collect::<Vec<_>>()})
}
