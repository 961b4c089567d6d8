//! Owns the choice of frames: who says how many are wanted, by which rule, within which bounds.
//! It refuses to open files.

use media::{FrameCount, FrameRule, SampleSpec, sample_indices};

use super::clip::Opened;
use super::{Clips, name_of};
use crate::error::{DataError, RecordError};
use crate::options::EncodeOptions;
use crate::record::{MediaKind, MediaRef, Sample};

/// Rate of the program qwen-vl-utils, for clips about which nobody says anything.
const UTILS_FPS: f64 = 2.0;

/// Frames that are taken at most of a file about which nobody says anything, where the checkpoint names no bound.
const MOST_UNASKED: usize = 768;

/// What a checkpoint takes of clips about which neither record nor plan says anything.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VideoDefaults {
    /// How many frames; `None` where nobody says.
    pub count: Option<FrameCount>,
    /// Whether that means every frame of the file, by no rule.
    pub takes_all: bool,
    pub rule: FrameRule,
    pub min_frames: Option<usize>,
    pub max_frames: Option<usize>,
    /// Frames that make one step in time.
    pub temporal: usize,
    /// Rate of a list of frames that has none, where the model sees times.
    pub list_fps: Option<f64>,
}

impl Default for VideoDefaults {
    fn default() -> Self {
        Self {
            count: None,
            takes_all: false,
            rule: FrameRule::Transformers,
            min_frames: None,
            max_frames: None,
            temporal: 1,
            list_fps: None,
        }
    }
}

impl Clips {
    /// Chooses the frames of the clip opened last.
    pub(super) fn choose(
        &mut self,
        sample: &Sample,
        options: &EncodeOptions,
        defaults: &VideoDefaults,
    ) -> Result<(), DataError> {
        let Some(clip) = self.clips.last_mut() else { return Ok(()) };
        let media_error = |e| DataError::media(sample, e);
        let reference = &clip.reference;
        let (total, fps, seconds, is_list): (usize, f64, &[f64], bool) = match &clip.opened {
            Opened::Picture(_) => return Ok(()),
            Opened::Sound(_) => {
                clip.indices.clear();
                return Ok(());
            }
            Opened::Video(video) => {
                for warning in &video.facts.warnings {
                    self.notes.push(format!("`{}`: {warning}", media::shown(&video.path)));
                }
                (video.facts.seconds.len(), video.facts.fps, &video.facts.seconds, false)
            }
            Opened::Frames(list) => (list.files.len(), list.fps, &[], true),
        };
        let list_seconds: Vec<f64>;
        let seconds = if is_list {
            list_seconds = (0..total).map(|i| i as f64 / fps).collect();
            &list_seconds
        } else {
            seconds
        };
        if !is_list && reference.nframes.is_some() && reference.fps.is_some() {
            return Err(RecordError::new(
                "contradiction",
                &sample.origin,
                Some(&sample.id),
                format!("`{}` has both a number of frames and `fps`", name_of(reference)),
            )
            .hint("keep one of them")
            .into());
        }
        if is_list && reference.fps.is_none() && defaults.list_fps.is_some() {
            self.notes.push(format!(
                "`{}` has no `fps`: its frames are timed at {fps} a second, as the model's own programs do",
                name_of(reference)
            ));
        }
        let wish = Wish::of(reference, is_list, options, defaults);
        let Some(wish) = wish else {
            return Err(no_count(sample, reference));
        };
        let mut rule = options.rule.unwrap_or(defaults.rule);
        let is_qwen = matches!(rule, FrameRule::Qwen2Vl | FrameRule::Qwen3Vl | FrameRule::QwenVlUtils);
        if is_qwen && wish.count == FrameCount::All && (is_list || wish.takes_all) {
            rule = FrameRule::Transformers;
        }
        let mut spec = SampleSpec::new(rule, wish.count);
        // The checkpoint's bounds are those of the checkpoint's rule.
        let (least, most) =
            if rule == defaults.rule { (defaults.min_frames, defaults.max_frames) } else { (None, None) };
        spec.max_frames = reference.max_frames.or(options.max_frames).or(most);
        let least = least.map(|least| least.min(spec.max_frames.unwrap_or(least)));
        spec.min_frames = reference.min_frames.or(options.min_frames).or(least);
        spec.temporal_patch = defaults.temporal;
        spec.jitter = options.jitter.map(|seed| seed ^ sample.origin.index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        spec.start = reference.start;
        spec.end = reference.end;
        let available = media::frames_in_part(total, fps, seconds, &spec).map_err(media_error)?;
        if let FrameCount::Num(wanted) = wish.count
            && wanted > available
        {
            if wish.from_record {
                return Err(RecordError::new(
                    "too_few_frames",
                    &sample.origin,
                    Some(&sample.id),
                    format!("`{}` is too short", name_of(reference)),
                )
                .expected(format!("at least {wanted} frames"), format!("{available} in the wanted range"))
                .hint("lower the record's number of frames, or remove the record")
                .into());
            }
            self.notes.push(format!("`{}` has {available} frames, {wanted} were wanted", name_of(reference)));
            spec.count = FrameCount::Num(available);
        }
        if wish.takes_all
            && !is_list
            && let most = defaults.max_frames.unwrap_or(MOST_UNASKED)
            && available > most
        {
            let what = format!(
                "`{}` has {available} frames, and the checkpoint's processor takes them all",
                name_of(reference)
            );
            return Err(RecordError::new("no_frame_count", &sample.origin, Some(&sample.id), what)
                .expected(format!("at most {most} frames (`max_frames`) where nobody says how many"), available.to_string())
                .hint("set `data.fps` (2 is usual) or `data.num_frames` (`--fps`, `--num-frames`), or `fps` in the record")
                .into());
        }
        within_patches(&mut spec, available);
        clip.available = available;
        clip.indices = sample_indices(total, fps, seconds, &spec).map_err(media_error)?;
        if let MediaKind::FrameOf { total: places, .. } = reference.kind
            && clip.indices.len() != places
        {
            return Err(RecordError::new(
                "placeholder_count",
                &sample.origin,
                Some(&sample.id),
                format!(
                    "the frame rule `{rule}` does not give one frame of `{}` for each placeholder",
                    name_of(reference)
                ),
            )
            .expected(format!("{places} frames"), clip.indices.len().to_string())
            .hint("write one `video` part in place of the frames, or choose another `data.frame_rule`")
            .into());
        }
        clip.may_shrink = matches!(reference.kind, MediaKind::Video);
        Ok(())
    }
}

/// Where a rule would round a number of frames to whole patches that are none or more than there are, and its own
/// program fails, the frames are taken as they are; the last one is repeated to fill its patch.
fn within_patches(spec: &mut SampleSpec, available: usize) {
    let patch = match spec.rule {
        FrameRule::Qwen2Vl => spec.temporal_patch,
        FrameRule::QwenVlUtils => 2,
        _ => return,
    };
    match spec.count {
        FrameCount::Num(wanted) => {
            let rounded = (wanted as f64 / patch as f64).round_ties_even() as usize * patch;
            if rounded == 0 || rounded > available {
                spec.rule = FrameRule::Transformers;
            }
        }
        _ if available < patch => {
            (spec.rule, spec.count) = (FrameRule::Transformers, FrameCount::All);
        }
        _ => {}
    }
}

/// How many frames are wanted, and who says so.
struct Wish {
    count: FrameCount,
    from_record: bool,
    /// Whether the checkpoint's processor takes every frame of a file.
    takes_all: bool,
}

impl Wish {
    /// The record's wish, else the plan's, else the checkpoint's; all frames of a list that nobody asks to thin out.
    fn of(reference: &MediaRef, is_list: bool, options: &EncodeOptions, defaults: &VideoDefaults) -> Option<Self> {
        let most = |n: usize| n.min(options.max_frames.unwrap_or(usize::MAX));
        let says = |count, from_record| Some(Self { count, from_record, takes_all: false });
        if let Some(n) = reference.nframes {
            return says(FrameCount::Num(n), true);
        }
        // For a list of frames, `fps` says how they were taken, not how many are wanted.
        if let Some(fps) = reference.fps.filter(|_| !is_list) {
            return says(FrameCount::Fps(fps), true);
        }
        match (options.num_frames, options.fps) {
            (Some(n), _) => says(FrameCount::Num(most(n)), false),
            (None, Some(fps)) if !is_list || reference.fps.is_some() => says(FrameCount::Fps(fps), false),
            _ if is_list => says(FrameCount::All, false),
            _ if options.rule == Some(FrameRule::QwenVlUtils) => says(FrameCount::Fps(UTILS_FPS), false),
            _ => match defaults.count? {
                FrameCount::Num(n) => says(FrameCount::Num(most(n)), false),
                count => Some(Self { count, from_record: false, takes_all: defaults.takes_all }),
            },
        }
    }
}

fn no_count(sample: &Sample, reference: &MediaRef) -> DataError {
    RecordError::new(
        "no_frame_count",
        &sample.origin,
        Some(&sample.id),
        format!("how many frames of `{}` to take is not said", name_of(reference)),
    )
    .hint("set `data.num_frames` or `data.fps` (`--num-frames`, `--fps`), or `nframes` in the record")
    .into()
}

/// The rate of a list of frames that has none; one a second where it only shows in times.
pub(super) fn usual_rate(options: &EncodeOptions, defaults: &VideoDefaults) -> f64 {
    match defaults.list_fps {
        Some(_) if options.rule == Some(FrameRule::QwenVlUtils) => UTILS_FPS,
        Some(fps) => fps,
        None => 1.0,
    }
}
