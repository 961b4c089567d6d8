//! Owns [`EncodeOptions`]: what a run wants of every record, where the record itself does not say.
//! It refuses to hold anything about order, batches or workers: those are the loader's.

use std::path::PathBuf;

use media::{FrameRule, Limits};
use serde::{Deserialize, Serialize};

/// What to do with a record of more tokens than `max_length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLong {
    /// Refuse the record.
    Refuse,
    /// Give its clips fewer frames, noted in the result; refuse it when one frame a clip is still too long.
    #[default]
    FewerFrames,
}

/// What a run wants of every record. What a record says about its own media wins.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EncodeOptions {
    /// Frames a clip; `None` with `fps: None` leaves it to the checkpoint's processor settings.
    pub num_frames: Option<usize>,
    /// Frames a second; excludes `num_frames`.
    pub fps: Option<f64>,
    /// Fewest frames when the count follows from `fps`.
    pub min_frames: Option<usize>,
    /// Most frames a clip.
    pub max_frames: Option<usize>,
    /// Which frames; `None` for the rule of the model's family.
    pub rule: Option<FrameRule>,
    /// Seed that moves frames inside their segments (rule `segments`, training only).
    pub jitter: Option<u64>,
    /// Most tokens a record; `None` for no limit.
    pub max_length: Option<usize>,
    /// What happens above `max_length`.
    pub on_long: OnLong,
    /// Language of sources, where the record does not name it; `None` for the checkpoint's own.
    pub src_lang: Option<String>,
    /// Language of targets, likewise.
    pub tgt_lang: Option<String>,
    /// Ends the text where the assistant would begin, for generation; then nothing is supervised.
    pub add_generation_prompt: bool,
    /// Bounds on media files.
    pub limits: Limits,
    /// Whether the frame cache is left alone, for a look at a record that is no part of a run.
    pub skip_frame_cache: bool,
    /// Folder for media that records name by `https` address; `None` for the default cache.
    pub cache_dir: Option<PathBuf>,
}
