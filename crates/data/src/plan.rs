//! Owns [`DataPlan`], the `data` section of a plan: its keys, defaults and documentation, and what each asks of datasets
//! and loader. It refuses keys it does not know; other tools' names are translated before the section comes here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use media::{FrameRule, Limits};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cache::FrameCache;
use crate::dataset::{Dataset, open_dataset};
use crate::error::DataError;
use crate::loader::{LoaderOptions, OnBadMedia};
use crate::options::{EncodeOptions, OnLong};
use crate::record::Format;
use crate::vision::ImageBackend;

/// One key of the section, for the parser's messages and the reference page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanField {
    /// Path below `data`, such as `num_frames` or `train[].media_dir`.
    pub name: &'static str,
    /// What may be written.
    pub type_name: &'static str,
    /// The default as JSON.
    pub default: &'static str,
    /// What the key means.
    pub doc: &'static str,
    /// Whether it may differ between a run and its resumption, because it changes no number of the training.
    pub free_on_resume: bool,
}

const fn field(name: &'static str, type_name: &'static str, default: &'static str, doc: &'static str) -> PlanField {
    PlanField { name, type_name, default, doc, free_on_resume: false }
}

const fn free(name: &'static str, type_name: &'static str, default: &'static str, doc: &'static str) -> PlanField {
    PlanField { name, type_name, default, doc, free_on_resume: true }
}

/// Every key of the section, in the order of the reference page.
pub const FIELDS: &[PlanField] = &[
    field(
        "train",
        "list of datasets",
        "[]",
        "Training datasets, read one after the other; a text is the `path` of one.",
    ),
    field("eval", "list of datasets", "[]", "Evaluation datasets; needed when an evaluation is asked for."),
    field(
        "train[].path",
        "path, or list of paths",
        "null",
        "A `.json`, `.jsonl` or WebDataset `.tar` file, a folder of such shards, or a pattern for them: `shards/*.jsonl`, `train-{00000..00011}.tar`. Shards stand in the order of their names' bytes, those of braces and lists as they are written. Required.",
    ),
    field(
        "train[].format",
        "auto | conversation | llava | messages | seq2seq",
        "\"auto\"",
        "Shape of the records; `auto` tells it from the first records.",
    ),
    field("train[].media_dir", "path", "null", "Folder of relative media paths; the file's own folder otherwise."),
    field("train[].weight", "number", "1.0", "Share of the dataset in an epoch. Only 1 is built yet."),
    field("num_frames", "count", "null", "Frames a clip, where the record does not say; excludes `fps`."),
    field(
        "fps",
        "number",
        "null",
        "Frames a second, where the record does not say; wins over the checkpoint's own count, as `num_frames` does.",
    ),
    field("min_frames", "count", "null", "Fewest frames of a clip when the count follows from `fps`."),
    field("max_frames", "count", "null", "Most frames of a clip."),
    field(
        "frame_rule",
        "transformers | qwen2_vl | qwen3_vl | qwen_vl_utils | stride | segments",
        "null",
        "Which frames; otherwise the rule of the checkpoint's video processor in `transformers`: `qwen2_vl` for Qwen2-VL and Qwen2.5-VL, `qwen3_vl` for Qwen3-VL, `transformers` for the others. How many, where nobody says, that processor's files say too: Qwen3-VL takes 2 frames a second, Qwen2-VL every frame unless `do_sample_frames` is set (at most `max_frames`, 768; longer clips are refused until a count is given). `qwen_vl_utils` repeats the program that Qwen-VL models were trained with: 2 frames a second from 4 to 768, an even count, and its own budget of pixels (128 to 768 tokens a frame, 115200 a clip) in place of the processor's.",
    ),
    field(
        "frame_jitter",
        "true | false",
        "false",
        "Under `frame_rule: segments`: another frame of each segment in every epoch of training.",
    ),
    field(
        "max_length",
        "count",
        "null",
        "Most tokens of a record, pictures included; of source and target each for sequence-to-sequence models.",
    ),
    field(
        "src_lang",
        "text",
        "null",
        "Sequence-to-sequence models: language of the questions, where the record does not say; the checkpoint's own otherwise.",
    ),
    field(
        "tgt_lang",
        "text",
        "null",
        "Sequence-to-sequence models: language of the answers, where the record does not say; the checkpoint's own otherwise, else the question's.",
    ),
    field(
        "on_long",
        "fewer_frames | refuse",
        "\"fewer_frames\"",
        "A record above `max_length` gets fewer frames, or is refused; its text is never cut.",
    ),
    field(
        "packing",
        "true | false",
        "true",
        "Records stand one after the other without padding; the losses are the same either way.",
    ),
    field("pack_tokens", "count", "null", "Fill batches up to this many tokens instead of counting records."),
    field(
        "pack_patches",
        "count",
        "null",
        "With `pack_tokens`: at most this many patches of pictures a batch, which is what the vision tower computes on.",
    ),
    field(
        "pack_window",
        "count",
        "null",
        "With `pack_tokens`: records that are put into batches by best fit at a time; 1 fills them in order. 256 when not given, and 1 with `shuffle: false`.",
    ),
    field(
        "group_by_length",
        "true | false",
        "false",
        "Records of like length side by side, as `LengthGroupedSampler` of `transformers`; all records are measured first, without decoding videos.",
    ),
    field("shuffle", "true | false", "true", "Another order in every epoch of training; otherwise file order."),
    field(
        "on_bad_media",
        "stop | skip",
        "\"stop\"",
        "A bad record stops the run, or is skipped and noted in the ledger.",
    ),
    field(
        "max_skips",
        "count",
        "null",
        "Most records skipped in an epoch; otherwise a tenth of the records, at least 10.",
    ),
    field(
        "image_backend",
        "torchvision | pillow",
        "\"torchvision\"",
        "Whose resize is repeated: `transformers` 5 uses torchvision, version 4 used Pillow for classes without `Fast`.",
    ),
    free(
        "num_workers",
        "count",
        "null",
        "Threads that decode and encode; otherwise one a core (or `--threads`), at most 16.",
    ),
    free("buffer_mb", "count", "512", "Most megabytes of records and batches held ahead."),
    free(
        "frame_cache",
        "path",
        "null",
        "Folder in which the frames of clips are kept, scaled and without loss, so that they are decoded once; several runs may share it. Not used with `frame_jitter`.",
    ),
    free(
        "frame_cache_size",
        "bytes, such as 10GB",
        "\"10GB\"",
        "Most bytes in `frame_cache`. The least recently used frames make room, but none that this run has used itself.",
    ),
    free("cache_dir", "path", "null", "Folder for media that records name by https address."),
    field("limits.max_pixels", "count", "null", "Largest width times height of a picture."),
    field("limits.max_frames", "count", "null", "Most frames that one file may present."),
    field("limits.max_duration_s", "number", "null", "Longest clip in seconds."),
    free("limits.deadline_s", "number", "null", "Longest time for one call on one file in seconds."),
];

/// Records that are packed at a time when the plan does not say: of batches of ten records the last two or three of a
/// window stay open, which is a part in a hundred of its tokens.
const USUAL_WINDOW: u64 = 256;

/// Records beyond which a window takes longer to measure than it can gain.
const MAX_WINDOW: u64 = 1 << 16;

/// Threads beyond which the disk or the step is what a run waits for.
const MAX_WORKERS: usize = 16;

/// One dataset of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetPlan {
    /// A file of records, a folder of shards, or a pattern for them.
    pub path: PathBuf,
    /// Shape of the records.
    #[serde(default)]
    pub format: Format,
    /// Folder of relative media paths.
    #[serde(default)]
    pub media_dir: Option<PathBuf>,
    /// Share of the dataset in an epoch.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

/// A number of bytes, written as a number or as `500MB`, `10GB`, `1GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSize(pub u64);

impl Default for CacheSize {
    fn default() -> Self {
        Self(10_000_000_000)
    }
}

const UNITS: [(&str, u64); 9] = [
    ("TIB", 1 << 40),
    ("GIB", 1 << 30),
    ("MIB", 1 << 20),
    ("KIB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl<'de> Deserialize<'de> for CacheSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_ascii_uppercase);
        let (number, factor) =
            UNITS.iter().find_map(|(unit, n)| Some((text.strip_suffix(unit)?, *n))).unwrap_or((&text, 1));
        let bytes = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
        bytes.filter(|bytes| *bytes > 0).map(Self).ok_or_else(|| {
            serde::de::Error::custom(format!("expected a size such as `10GB` or `500MB`, found `{text}`"))
        })
    }
}

impl Serialize for CacheSize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let unit = [("GB", 1_000_000_000), ("MB", 1_000_000)].into_iter().find(|(_, n)| self.0.is_multiple_of(*n));
        match unit {
            Some((unit, factor)) => serializer.serialize_str(&format!("{}{unit}", self.0 / factor)),
            None => serializer.serialize_u64(self.0),
        }
    }
}

/// Bounds on media files that differ from the defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsPlan {
    /// Largest width times height of a picture.
    pub max_pixels: Option<u64>,
    /// Most frames that one file may present.
    pub max_frames: Option<usize>,
    /// Longest clip in seconds.
    pub max_duration_s: Option<f64>,
    /// Longest time for one call on one file in seconds.
    pub deadline_s: Option<f64>,
}

/// The `data` section of a plan. The keys are documented in [`FIELDS`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataPlan {
    /// Training datasets.
    #[serde(deserialize_with = "datasets")]
    pub train: Vec<DatasetPlan>,
    /// Evaluation datasets.
    #[serde(deserialize_with = "datasets")]
    pub eval: Vec<DatasetPlan>,
    /// Frames a clip.
    pub num_frames: Option<usize>,
    /// Frames a second.
    pub fps: Option<f64>,
    /// Fewest frames under `fps`.
    pub min_frames: Option<usize>,
    /// Most frames of a clip.
    pub max_frames: Option<usize>,
    /// Which frames.
    pub frame_rule: Option<String>,
    /// Other frames of the segments in every epoch.
    pub frame_jitter: bool,
    /// Most tokens of a record.
    pub max_length: Option<usize>,
    /// Language of questions.
    pub src_lang: Option<String>,
    /// Language of answers.
    pub tgt_lang: Option<String>,
    /// What happens above `max_length`.
    pub on_long: OnLong,
    /// Records stand without padding.
    pub packing: bool,
    /// Fill batches by tokens.
    pub pack_tokens: Option<usize>,
    /// At most so many patches a batch.
    pub pack_patches: Option<usize>,
    /// Records that are packed at a time.
    pub pack_window: Option<u64>,
    /// Records of like length side by side.
    pub group_by_length: bool,
    /// Another order in every epoch.
    pub shuffle: bool,
    /// What a bad record does.
    pub on_bad_media: OnBadMedia,
    /// Most records skipped in an epoch.
    pub max_skips: Option<u64>,
    /// Whose resize is repeated.
    pub image_backend: ImageBackend,
    /// Threads that decode and encode.
    pub num_workers: Option<usize>,
    /// Megabytes held ahead.
    pub buffer_mb: usize,
    /// Folder of cached frames.
    pub frame_cache: Option<PathBuf>,
    /// Most bytes in it.
    pub frame_cache_size: CacheSize,
    /// Folder for fetched media.
    pub cache_dir: Option<PathBuf>,
    /// Bounds on media files.
    pub limits: LimitsPlan,
}

impl Default for DataPlan {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            eval: Vec::new(),
            num_frames: None,
            fps: None,
            min_frames: None,
            max_frames: None,
            frame_rule: None,
            frame_jitter: false,
            max_length: None,
            src_lang: None,
            tgt_lang: None,
            on_long: OnLong::default(),
            packing: true,
            pack_tokens: None,
            pack_patches: None,
            pack_window: None,
            group_by_length: false,
            shuffle: true,
            on_bad_media: OnBadMedia::default(),
            max_skips: None,
            image_backend: ImageBackend::default(),
            num_workers: None,
            buffer_mb: 512,
            frame_cache: None,
            frame_cache_size: CacheSize::default(),
            cache_dir: None,
            limits: LimitsPlan::default(),
        }
    }
}

impl DataPlan {
    /// Reads the section from its JSON form.
    ///
    /// # Errors
    /// An unknown key, with the nearest known one; a value of the wrong type; a contradiction.
    pub fn from_json(section: &Value) -> Result<Self, DataError> {
        check_keys(section)?;
        let plan: Self = serde_json::from_value(section.clone()).map_err(|e| DataError::Plan {
            key: "data".into(),
            what: e.to_string(),
            hint: "see the reference page of the plan's `data` section".into(),
        })?;
        plan.check()?;
        Ok(plan)
    }

    /// Refuses contradictions and what is not built yet.
    ///
    /// # Errors
    /// The first one found.
    pub fn check(&self) -> Result<(), DataError> {
        let refuse = |key: &str, what: String, hint: &str| {
            Err(DataError::Plan { key: format!("data.{key}"), what, hint: hint.to_owned() })
        };
        for (key, value) in [
            ("num_frames", self.num_frames),
            ("min_frames", self.min_frames),
            ("max_frames", self.max_frames),
            ("max_length", self.max_length),
            ("pack_tokens", self.pack_tokens),
            ("pack_patches", self.pack_patches),
            ("pack_window", self.pack_window.map(|window| window as usize)),
            ("num_workers", self.num_workers),
        ] {
            if value == Some(0) {
                return refuse(key, "must be at least 1, found 0".into(), "leave it out for the default");
            }
        }
        if let (Some(n), Some(fps)) = (self.num_frames, self.fps) {
            return refuse("fps", format!("{fps} stands beside `data.num_frames: {n}`"), "keep one of them");
        }
        if let Some(fps) = self.fps.filter(|f| !(f.is_finite() && *f > 0.0)) {
            return refuse("fps", format!("must be above 0, found {fps}"), "leave it out for the default");
        }
        if let (Some(min), Some(max)) = (self.min_frames, self.max_frames)
            && min > max
        {
            return refuse("min_frames", format!("{min} is above `data.max_frames: {max}`"), "lower it");
        }
        if let (Some(length), Some(pack)) = (self.max_length, self.pack_tokens)
            && length > pack
        {
            let what =
                format!("{length} is above `data.pack_tokens: {pack}`, so a record could be larger than a batch");
            return refuse("max_length", what, "lower it, or raise `data.pack_tokens`");
        }
        if self.pack_tokens.is_some() && !self.packing {
            return refuse("pack_tokens", "stands beside `data.packing: false`".into(), "keep one of them");
        }
        for (key, is_given) in
            [("pack_patches", self.pack_patches.is_some()), ("pack_window", self.pack_window.is_some())]
        {
            if is_given && self.pack_tokens.is_none() {
                return refuse(key, "needs `data.pack_tokens`".into(), "add it, or remove this key");
            }
        }
        if self.pack_window.is_some_and(|window| window > MAX_WINDOW) {
            let what =
                format!("must be at most {MAX_WINDOW}: all records of a window are measured before its first batch");
            return refuse("pack_window", what, "a usual value is 256");
        }
        if self.group_by_length && !self.shuffle {
            let what = "puts records into an order of its own, beside `data.shuffle: false`";
            return refuse("group_by_length", what.into(), "keep one of them");
        }
        if self.group_by_length && self.pack_tokens.is_some() {
            let what = "stands beside `data.pack_tokens`, which fills batches better from lengths that differ";
            return refuse("group_by_length", what.into(), "keep one of them");
        }
        let rule = self.rule()?;
        if self.frame_jitter && rule != Some(FrameRule::Segments) {
            return refuse("frame_jitter", "needs `data.frame_rule: segments`".into(), "add the rule, or remove it");
        }
        for set in self.train.iter().chain(&self.eval) {
            if set.path.as_os_str().is_empty() {
                return refuse("train", "a dataset has an empty `path`".into(), "name the file");
            }
            if set.weight != 1.0 {
                let what = format!("`weight: {}` is not built yet", set.weight);
                return refuse("train", what, "remove it; datasets are read whole, one after the other");
            }
        }
        Ok(())
    }

    fn rule(&self) -> Result<Option<FrameRule>, DataError> {
        let parse = |name: &String| {
            name.parse().map_err(|e: media::MediaError| DataError::Plan {
                key: "data.frame_rule".into(),
                what: e.to_string(),
                hint: "leave it out for the rule of the model's family".into(),
            })
        };
        self.frame_rule.as_ref().map(parse).transpose()
    }

    /// Opens the training datasets as one.
    ///
    /// # Errors
    /// A file cannot be read, holds no record, or its format cannot be told.
    pub fn open_train(&self) -> Result<Dataset, DataError> {
        open_all(&self.train, "data.train")
    }

    /// Opens the evaluation datasets as one.
    ///
    /// # Errors
    /// As [`DataPlan::open_train`].
    pub fn open_eval(&self) -> Result<Dataset, DataError> {
        open_all(&self.eval, "data.eval")
    }

    /// What the section asks of every record.
    ///
    /// # Errors
    /// An unknown frame rule.
    pub fn encode_options(&self) -> Result<EncodeOptions, DataError> {
        let defaults = Limits::default();
        let limits = Limits {
            max_pixels: self.limits.max_pixels.unwrap_or(defaults.max_pixels),
            max_frames: self.limits.max_frames.unwrap_or(defaults.max_frames),
            max_duration_s: self.limits.max_duration_s.unwrap_or(defaults.max_duration_s),
            deadline: self
                .limits
                .deadline_s
                .and_then(|s| Duration::try_from_secs_f64(s).ok())
                .unwrap_or(defaults.deadline),
            ..defaults
        };
        Ok(EncodeOptions {
            skip_frame_cache: false,
            num_frames: self.num_frames,
            fps: self.fps,
            min_frames: self.min_frames,
            max_frames: self.max_frames,
            rule: self.rule()?,
            jitter: None,
            max_length: self.max_length,
            on_long: self.on_long,
            src_lang: self.src_lang.clone(),
            tgt_lang: self.tgt_lang.clone(),
            add_generation_prompt: false,
            limits,
            cache_dir: self.cache_dir.clone(),
        })
    }

    /// Opens the cache of frames, if there shall be one.
    ///
    /// # Errors
    /// Its folder cannot be used.
    pub fn open_frame_cache(&self) -> Result<Option<Arc<FrameCache>>, DataError> {
        let open = |dir: &PathBuf| FrameCache::open(dir, self.frame_cache_size.0).map(Arc::new);
        self.frame_cache.as_ref().map(open).transpose()
    }

    /// What the section asks of the training loader, for batches of `batch_size` records, `accumulation` of them a step,
    /// in an order of `seed`.
    ///
    /// # Errors
    /// An unknown frame rule.
    pub fn train_options(&self, batch_size: usize, accumulation: usize, seed: u64) -> Result<LoaderOptions, DataError> {
        let mut encode = self.encode_options()?;
        encode.jitter = self.frame_jitter.then_some(seed);
        Ok(LoaderOptions {
            batch_size,
            pack_tokens: self.pack_tokens,
            pack_patches: self.pack_patches,
            pack_window: self.pack_window.unwrap_or(if self.shuffle { USUAL_WINDOW } else { 1 }),
            group_by_length: self.group_by_length.then_some(batch_size * accumulation),
            shuffle: self.shuffle,
            seed,
            workers: self.num_workers.unwrap_or_else(|| rayon::current_num_threads().clamp(1, MAX_WORKERS)),
            byte_budget: self.buffer_mb.saturating_mul(1 << 20),
            on_bad_media: self.on_bad_media,
            max_skips: self.max_skips,
            encode,
        })
    }

    /// What the section asks of an evaluation loader: file order, no jitter, batches of `batch_size` records.
    ///
    /// # Errors
    /// An unknown frame rule.
    pub fn eval_options(&self, batch_size: usize) -> Result<LoaderOptions, DataError> {
        let train = self.train_options(batch_size, 1, 0)?;
        let encode = EncodeOptions { jitter: None, ..train.encode.clone() };
        Ok(LoaderOptions { shuffle: false, pack_tokens: None, group_by_length: None, encode, ..train })
    }
}

fn open_all(plans: &[DatasetPlan], key: &str) -> Result<Dataset, DataError> {
    if plans.is_empty() {
        return Err(DataError::Plan {
            key: key.into(),
            what: "names no dataset".into(),
            hint: format!("write `{key}: [{{path: FILE}}]`"),
        });
    }
    let sets = plans
        .iter()
        .map(|p| open_dataset(Path::new(&p.path), p.format, p.media_dir.as_deref()))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Dataset::concat(sets))
}

/// A list of datasets; also one alone, and a text in place of `{path: text}`.
fn datasets<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<DatasetPlan>, D::Error> {
    use serde::de::Error;
    let items = match Value::deserialize(deserializer)? {
        Value::Null => Vec::new(),
        Value::Array(items) => items,
        one => vec![one],
    };
    let read = |item: Value| match item {
        Value::String(path) => {
            Ok(DatasetPlan { path: path.into(), format: Format::Auto, media_dir: None, weight: 1.0 })
        }
        other => serde_json::from_value(other).map_err(D::Error::custom),
    };
    items.into_iter().flat_map(one_each).map(read).collect()
}

/// A dataset whose `path` is a list as one dataset for each of them.
fn one_each(item: Value) -> Vec<Value> {
    match item.get("path") {
        Some(Value::Array(paths)) if !paths.is_empty() => paths
            .iter()
            .map(|path| {
                let mut one = item.clone();
                one["path"] = path.clone();
                one
            })
            .collect(),
        _ => vec![item],
    }
}

/// Refuses keys that are not in [`FIELDS`], with the nearest one that is.
fn check_keys(section: &Value) -> Result<(), DataError> {
    let mut found: Vec<(String, String)> = Vec::new();
    for (key, value) in section.as_object().into_iter().flatten() {
        found.push((key.clone(), key.clone()));
        if matches!(key.as_str(), "train" | "eval") {
            for item in value.as_array().into_iter().flatten().chain(value.is_object().then_some(value)) {
                found.extend(
                    item.as_object()
                        .into_iter()
                        .flatten()
                        .map(|(k, _)| (format!("train[].{k}"), format!("{key}[].{k}"))),
                );
            }
        } else if key == "limits" {
            found.extend(
                value.as_object().into_iter().flatten().map(|(k, _)| (format!("limits.{k}"), format!("limits.{k}"))),
            );
        }
    }
    for (name, written) in found {
        if name == "limits" || FIELDS.iter().any(|f| f.name == name) {
            continue;
        }
        let nearest = FIELDS.iter().map(|f| (distance(f.name, &name), f.name)).min();
        let hint = match nearest {
            Some((d, known)) if d <= name.len() / 3 + 1 => format!("did you mean `data.{known}`?"),
            _ => "see the reference page of the plan's `data` section".to_owned(),
        };
        return Err(DataError::Plan { key: format!("data.{written}"), what: "is not a key".into(), hint });
    }
    Ok(())
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(section: Value, expected: &str) {
        assert_eq!(DataPlan::from_json(&section).unwrap_err().to_string(), expected);
    }

    #[test]
    fn unknown_keys_are_errors_with_a_suggestion() {
        check(json!({"num_frame": 8}), "`data.num_frame`: is not a key; hint: did you mean `data.num_frames`?");
        check(
            json!({"train": [{"path": "a.json", "media_dirs": "m"}]}),
            "`data.train[].media_dirs`: is not a key; hint: did you mean `data.train[].media_dir`?",
        );
        check(
            json!({"colour_jitter_strength": 1}),
            "`data.colour_jitter_strength`: is not a key; hint: see the reference page of the plan's `data` section",
        );
    }

    #[test]
    fn contradictions_are_errors() {
        check(
            json!({"num_frames": 8, "fps": 1}),
            "`data.fps`: 1 stands beside `data.num_frames: 8`; hint: keep one of them",
        );
        check(
            json!({"train": [{"path": "a.json", "weight": 2}]}),
            "`data.train`: `weight: 2` is not built yet; hint: remove it; datasets are read whole, one after the other",
        );
        check(
            json!({"pack_window": 4}),
            "`data.pack_window`: needs `data.pack_tokens`; hint: add it, or remove this key",
        );
        check(
            json!({"pack_patches": 400}),
            "`data.pack_patches`: needs `data.pack_tokens`; hint: add it, or remove this key",
        );
        check(
            json!({"pack_tokens": 9, "pack_window": 0}),
            "`data.pack_window`: must be at least 1, found 0; hint: leave it out for the default",
        );
        check(
            json!({"pack_tokens": 9, "pack_window": 100_000}),
            "`data.pack_window`: must be at most 65536: all records of a window are measured before its first batch; hint: a usual value is 256",
        );
        check(
            json!({"group_by_length": true, "shuffle": false}),
            "`data.group_by_length`: puts records into an order of its own, beside `data.shuffle: false`; hint: keep one of them",
        );
        check(
            json!({"group_by_length": true, "pack_tokens": 9}),
            "`data.group_by_length`: stands beside `data.pack_tokens`, which fills batches better from lengths that differ; hint: keep one of them",
        );
        check(
            json!({"frame_jitter": true}),
            "`data.frame_jitter`: needs `data.frame_rule: segments`; hint: add the rule, or remove it",
        );
    }

    #[test]
    fn the_table_holds_every_key_with_its_default() {
        let plan =
            DataPlan { train: vec![serde_json::from_value(json!({"path": "x"})).unwrap()], ..DataPlan::default() };
        let written = serde_json::to_value(&plan).unwrap();
        let mut names: Vec<String> = Vec::new();
        for (key, value) in written.as_object().unwrap() {
            match key.as_str() {
                "limits" => names.extend(value.as_object().unwrap().keys().map(|k| format!("limits.{k}"))),
                "train" => {
                    names.push(key.clone());
                    names.extend(value[0].as_object().unwrap().keys().map(|k| format!("train[].{k}")));
                }
                _ => names.push(key.clone()),
            }
        }
        names.sort();
        let mut known: Vec<String> = FIELDS.iter().map(|f| f.name.to_owned()).collect();
        known.sort();
        assert_eq!(names, known);
        let defaults = serde_json::to_value(DataPlan::default()).unwrap();
        for f in FIELDS.iter().filter(|f| !f.name.contains(['[', '.'])) {
            let default: Value = serde_json::from_str(f.default).unwrap();
            assert_eq!(default, defaults[f.name], "default of `{}`", f.name);
        }
    }

    #[test]
    fn the_window_follows_the_order() {
        let window =
            |section: Value| DataPlan::from_json(&section).unwrap().train_options(1, 1, 0).unwrap().pack_window;
        assert_eq!(window(json!({"pack_tokens": 9})), 256);
        assert_eq!(window(json!({"pack_tokens": 9, "shuffle": false})), 1);
        assert_eq!(window(json!({"pack_tokens": 9, "shuffle": false, "pack_window": 8})), 8);
        let grouped = DataPlan::from_json(&json!({"group_by_length": true})).unwrap();
        assert_eq!(grouped.train_options(3, 4, 0).unwrap().group_by_length, Some(12));
        assert_eq!(grouped.eval_options(3).unwrap().group_by_length, None);
    }

    #[test]
    fn a_list_of_paths_is_so_many_datasets() {
        let plan =
            DataPlan::from_json(&json!({"train": [{"path": ["a.json", "b.json"], "media_dir": "m"}, "c"]})).unwrap();
        let sets: Vec<_> = plan.train.iter().map(|set| (set.path.to_str().unwrap(), set.media_dir.is_some())).collect();
        assert_eq!(sets, [("a.json", true), ("b.json", true), ("c", false)]);
        assert!(DataPlan::from_json(&json!({"train": {"path": []}})).is_err());
    }

    #[test]
    fn one_dataset_may_stand_alone() {
        let plan = DataPlan::from_json(&json!({"train": "a.json", "eval": {"path": "b.json"}})).unwrap();
        assert_eq!(plan.train[0].path, Path::new("a.json"));
        assert_eq!(plan.eval[0].path, Path::new("b.json"));
    }
}
