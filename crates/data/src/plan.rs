//! Owns [`DataPlan`], the `data` section of a plan: its keys, defaults and documentation, and what each asks of datasets
//! and loader. It refuses keys it does not know; other tools' names are translated before the section comes here.

mod fields;

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
use crate::select::{Selection, SplitPart};
use crate::vision::ImageBackend;
pub use fields::{FIELDS, PlanField};

/// Records that are packed at a time when the plan does not say: of batches of ten records the last two or three of a
/// window stay open, which is a part in a hundred of its tokens.
const USUAL_WINDOW: u64 = 256;

/// Records beyond which a window takes longer to measure than it can gain.
const MAX_WINDOW: u64 = 1 << 16;

/// Weight beyond which a dataset is not mixed with others but drowns them.
const MAX_WEIGHT: f64 = 1000.0;

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
    /// Folder of relative paths of sound.
    #[serde(default)]
    pub audio_dir: Option<PathBuf>,
    /// Share of the dataset in an epoch.
    #[serde(default = "one")]
    pub weight: f64,
    /// Only the first so many records.
    #[serde(default)]
    pub max_samples: Option<u64>,
    /// Only the records that this file names.
    #[serde(default)]
    pub video_ids_file: Option<PathBuf>,
}

/// A part of the training records held out for evaluation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SplitPlan {
    /// Share that is held out.
    pub ratio: Option<f64>,
    /// Seed of the choice.
    pub seed: Option<u64>,
}

/// Seed of a split when the plan does not say.
const SPLIT_SEED: u64 = 42;

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
    /// Only the records that this file names.
    pub video_ids_file: Option<PathBuf>,
    /// Records held out for evaluation.
    pub split: SplitPlan,
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
            video_ids_file: None,
            split: SplitPlan::default(),
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
            if !(set.weight.is_finite() && set.weight > 0.0 && set.weight <= MAX_WEIGHT) {
                let what = format!("`weight: {}`: must be above 0 and at most {MAX_WEIGHT}", set.weight);
                return refuse("train", what, "how many times an epoch takes the dataset, such as 0.5 or 2");
            }
            if set.max_samples == Some(0) {
                let what = "a dataset has `max_samples: 0`";
                return refuse("train", what.into(), "leave it out for all records, or remove the dataset");
            }
        }
        if let Some(set) = self.eval.iter().find(|set| set.weight != 1.0) {
            let what = format!("`weight: {}`: an evaluation takes every record once", set.weight);
            return refuse("eval", what, "remove it, or write `max_samples`");
        }
        if self.group_by_length && self.train.iter().any(|set| set.weight != 1.0) {
            let what = "orders all records once an epoch, beside a `weight` that is not 1";
            return refuse("group_by_length", what.into(), "keep one of them");
        }
        self.check_split()
    }

    fn check_split(&self) -> Result<(), DataError> {
        let refuse = |key: &str, what: String, hint: &str| {
            Err(DataError::Plan { key: format!("data.{key}"), what, hint: hint.to_owned() })
        };
        let Some(ratio) = self.split.ratio else {
            return match self.split.seed {
                None => Ok(()),
                Some(_) => refuse("split.seed", "needs `data.split.ratio`".into(), "add it, or remove this key"),
            };
        };
        if !(ratio > 0.0 && ratio < 1.0) {
            let hint = "the share of the records to hold out, such as 0.05";
            return refuse("split.ratio", format!("must lie between 0 and 1, found {ratio}"), hint);
        }
        if !self.eval.is_empty() {
            let what = "holds out records for evaluation, beside the datasets of `data.eval`";
            return refuse("split.ratio", what.into(), "keep one of them");
        }
        Ok(())
    }

    /// Whether there is anything to evaluate on: datasets, or a part of the training records.
    pub fn has_eval(&self) -> bool {
        !self.eval.is_empty() || self.split.ratio.is_some()
    }

    /// The part of the training records that the split asks for.
    fn split_part(&self, held_out: bool) -> Option<SplitPart> {
        let seed = self.split.seed.unwrap_or(SPLIT_SEED);
        self.split.ratio.map(|ratio| SplitPart { ratio, seed, held_out })
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
        self.open_part(false, |set| set.weight)
    }

    /// Opens the evaluation datasets as one.
    ///
    /// # Errors
    /// As [`DataPlan::open_train`].
    pub fn open_eval(&self) -> Result<Dataset, DataError> {
        if self.eval.is_empty() && self.split.ratio.is_some() {
            return self.open_part(true, |_| 1.0);
        }
        open_all(&self.eval, "data.eval", own_selection, |_| 1.0)
    }

    /// Opens the training records, or those of them that are held out.
    fn open_part(&self, held_out: bool, weight: fn(&DatasetPlan) -> f64) -> Result<Dataset, DataError> {
        let split = self.split_part(held_out);
        let list = self.video_ids_file.as_deref();
        let selection = |set| {
            let own = own_selection(set);
            Selection { ids: own.ids.or(list), split, ..own }
        };
        open_all(&self.train, "data.train", selection, weight)
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

/// What one dataset says about its records.
fn own_selection(set: &DatasetPlan) -> Selection<'_> {
    Selection { ids: set.video_ids_file.as_deref(), max_samples: set.max_samples, split: None }
}

fn open_all<'a>(
    plans: &'a [DatasetPlan],
    key: &str,
    selection: impl Fn(&'a DatasetPlan) -> Selection<'a>,
    weight: fn(&DatasetPlan) -> f64,
) -> Result<Dataset, DataError> {
    if plans.is_empty() {
        return Err(DataError::Plan {
            key: key.into(),
            what: "names no dataset".into(),
            hint: format!("write `{key}: [{{path: FILE}}]`"),
        });
    }
    let sets = plans
        .iter()
        .map(|p| {
            let whole = open_dataset(Path::new(&p.path), p.format, p.media_dir.as_deref())?;
            let whole = whole.with_audio_dir(p.audio_dir.as_deref());
            Ok::<_, DataError>(whole.select(&selection(p))?.weighted(weight(p)))
        })
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
        Value::String(path) => Ok(DatasetPlan {
            path: path.into(),
            format: Format::Auto,
            media_dir: None,
            audio_dir: None,
            weight: 1.0,
            max_samples: None,
            video_ids_file: None,
        }),
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

/// Keys that hold keys.
const NESTED: [&str; 2] = ["limits", "split"];

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
        } else if NESTED.contains(&key.as_str()) {
            let inner = value.as_object().into_iter().flatten();
            found.extend(inner.map(|(k, _)| (format!("{key}.{k}"), format!("{key}.{k}"))));
        }
    }
    for (name, written) in found {
        if NESTED.contains(&name.as_str()) || FIELDS.iter().any(|f| f.name == name) {
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
mod tests;
