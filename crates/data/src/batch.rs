//! Owns [`Encoded`] (one record as the model sees it) and [`Batch`] (several of them packed, block-diagonal).
//! It refuses to pad: records of different lengths stand one after the other, told apart by cumulative lengths.

use std::ops::Range;

use media::RgbImage;
use serde::Serialize;

use crate::error::DataError;
use crate::sound::Heard;

/// Label of a token that is not supervised, as in PyTorch's cross-entropy.
pub const IGNORE: i32 = -100;

/// One chosen frame or picture of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameInfo {
    /// Which media reference of the record it belongs to, counted from 0.
    pub media: usize,
    /// Frame number in its file, in presentation order; 0 for a still picture.
    pub index: usize,
    /// Presentation time in seconds; 0 for a still picture.
    pub seconds: f64,
}

/// What a part of the text stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VisualKind {
    /// One still picture, or one frame of a clip that stands for itself.
    #[default]
    Image,
    /// A clip whose frames the model takes together.
    Video,
    /// Sound.
    Audio,
}

/// One image or clip as the model takes it, in the order of the text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Visual {
    /// Image or clip.
    pub kind: VisualKind,
    /// Patches along time (or pictures, where each passes the tower by itself: frames, or an image with its tiles), height and
    /// width: `[t, h, w]`.
    pub grid: [usize; 3],
    /// Tokens of the text that it takes.
    pub num_tokens: usize,
    /// Height and width before anything was done to it, where the model needs them; else zeros.
    pub source_size: [usize; 2],
    /// Presentation times of its frames in seconds; 0 for a still picture.
    pub seconds: Vec<f64>,
    /// Seconds from one temporal patch to the next, as the family's processor counts them; 0 for a still picture.
    pub seconds_per_grid: f64,
}

impl Visual {
    /// Patches that a vision tower computes on.
    pub fn num_patches(&self) -> usize {
        self.grid.iter().product()
    }
}

/// One record as the model sees it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Encoded {
    /// The record's id.
    pub id: String,
    /// The record's position in its dataset.
    pub index: u64,
    /// Token ids, placeholders expanded; of a sequence-to-sequence record those of its source.
    pub ids: Vec<u32>,
    /// One label a token: the token itself where supervised, [`IGNORE`] elsewhere (not shifted). Of a sequence-to-sequence
    /// record, one a target token.
    pub labels: Vec<i32>,
    /// Ids of a sequence-to-sequence record's target, or of as much of it as is given to a generation.
    pub target: Option<Vec<u32>>,
    /// The rendered conversation, one placeholder a picture (not repeated).
    pub text: String,
    /// Byte ranges of `text` that are supervised, end-of-turn tokens included.
    pub spans: Vec<Range<usize>>,
    /// Normalised values, row-major: rows of `pixel_shape`.
    pub pixels: Vec<f32>,
    /// Number of pictures (frames count one each).
    pub num_images: usize,
    /// Shape of a row of `pixels`: `[C, H, W]` where rows are pictures or tiles, `[values]` where they are patches; empty when there
    /// is none.
    pub pixel_shape: Vec<usize>,
    /// Rows of `ids` that take picture features, in picture order.
    pub image_rows: Vec<u32>,
    /// Images and clips in the order of the text.
    pub visuals: Vec<Visual>,
    /// Log-mel features of sound, row-major: windows of `mel_shape`.
    pub mel: Vec<f32>,
    /// Mels and frames of a window; empty when there is no sound.
    pub mel_shape: Vec<usize>,
    /// Rows of `ids` that take features of sound, window after window.
    pub speech_rows: Vec<u32>,
    /// What is heard, in the order of the text.
    pub heard: Vec<Heard>,
    /// For each picture where it came from.
    pub frames: Vec<FrameInfo>,
    /// What was done to make the record fit, for the ledger and the preview (for example fewer frames).
    pub notes: Vec<String>,
}

impl Encoded {
    /// Supervised targets after the shift: labels at position 1 and later, or all of a target's.
    pub fn num_supervised(&self) -> usize {
        let shift = usize::from(self.target.is_none());
        self.labels.iter().skip(shift).filter(|&&l| l != IGNORE).count()
    }

    /// Patches of all its pictures: what a vision tower computes on.
    pub fn num_patches(&self) -> usize {
        self.visuals.iter().map(Visual::num_patches).sum()
    }

    /// States of all its sound: what a speech encoder computes on.
    pub fn num_states(&self) -> usize {
        self.heard.iter().map(|heard| heard.num_states).sum()
    }

    /// Tokens and patches.
    pub fn size(&self) -> RecordSize {
        let tokens = self.ids.len() + self.target.as_ref().map_or(0, Vec::len);
        RecordSize { tokens: tokens as u32, patches: (self.num_patches() + self.num_states()) as u32 }
    }
}

/// What a record takes of a batch's room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordSize {
    /// Input tokens, placeholders expanded, and those of a target.
    pub tokens: u32,
    /// Patches of its pictures and states of its sound: what towers compute on.
    pub patches: u32,
}

/// A record with its pictures still in bytes, a quarter of what their values take.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Everything but the pixels.
    pub encoded: Encoded,
    /// The pictures, as many as `encoded.num_images`.
    pub pictures: Vec<RgbImage>,
}

impl Prepared {
    /// Bytes of memory this record holds, for byte budgets.
    pub fn num_bytes(&self) -> usize {
        let Encoded { ids, image_rows, text, .. } = &self.encoded;
        let num_target = self.encoded.target.as_ref().map_or(0, Vec::len);
        let bytes: usize = self.pictures.iter().map(|picture| picture.data.len()).sum();
        let heard = self.encoded.mel.len() * 4 + self.encoded.speech_rows.len() * 4;
        (ids.len() + num_target) * 8 + image_rows.len() * 4 + text.len() + bytes + heard + 256
    }

    /// Values of its pictures once they are normalised.
    pub fn num_values(&self) -> usize {
        let Encoded { pixel_shape, visuals, .. } = &self.encoded;
        match pixel_shape.as_slice() {
            // Values of pictures of several sizes.
            &[1] => self.pictures.iter().map(|picture| picture.data.len()).sum(),
            &[row] => self.encoded.num_patches() * row,
            shape => visuals.iter().map(|visual| visual.grid[0]).sum::<usize>() * shape.iter().product::<usize>(),
        }
    }
}

/// Targets packed one after the other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TargetRows {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Where targets start and end: `n + 1` cumulative lengths.
    pub cu_seqlens: Vec<usize>,
}

/// Several records packed one after the other; plain host vectors.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// Token ids `[t]`.
    pub ids: Vec<u32>,
    /// Labels `[t]`; `labels[i]` belongs to `ids[i]` (the HF convention, not shifted), or to the i-th token of the targets.
    pub labels: Vec<i32>,
    /// Targets of sequence-to-sequence records, one for each.
    pub target: Option<TargetRows>,
    /// Positions `[t]`, starting at 0 in every record.
    pub positions: Vec<u32>,
    /// Where records start and end: `n + 1` cumulative lengths.
    pub cu_seqlens: Vec<usize>,
    /// Normalised values: rows of `pixel_shape`.
    pub pixels: Vec<f32>,
    /// Number of pictures (frames count one each).
    pub num_images: usize,
    /// Shape of a row of `pixels`, the same for all: `[C, H, W]` of a picture, or `[values]` of a patch; empty when there is none.
    pub pixel_shape: Vec<usize>,
    /// Rows of `ids` that take picture features, in picture order.
    pub image_rows: Vec<u32>,
    /// Images and clips in the order of the text.
    pub visuals: Vec<Visual>,
    /// Log-mel features of sound: windows of `mel_shape`.
    pub mel: Vec<f32>,
    /// Mels and frames of a window, the same for all; empty when there is no sound.
    pub mel_shape: Vec<usize>,
    /// Rows of `ids` that take features of sound, window after window.
    pub speech_rows: Vec<u32>,
    /// Ids of the records.
    pub sample_ids: Vec<String>,
    /// Positions of the records in their dataset.
    pub sample_index: Vec<u64>,
}

impl Batch {
    /// Number of records.
    pub fn num_samples(&self) -> usize {
        self.sample_ids.len()
    }

    /// Bytes of memory this batch holds, for byte budgets.
    pub fn num_bytes(&self) -> usize {
        self.num_rows() * 16 + (self.pixels.len() + self.mel.len()) * 4 + 256
    }

    /// Number of input tokens; there is no padding. Those of targets are not among them.
    pub fn num_tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of tokens of inputs and targets.
    pub fn num_rows(&self) -> usize {
        self.ids.len() + self.target.as_ref().map_or(0, |target| target.ids.len())
    }

    /// Supervised targets after the shift inside each record.
    pub fn num_supervised(&self) -> usize {
        if self.target.is_some() {
            return self.labels.iter().filter(|&&l| l != IGNORE).count();
        }
        self.cu_seqlens
            .windows(2)
            .map(|w| self.labels[w[0]..w[1]].iter().skip(1).filter(|&&l| l != IGNORE).count())
            .sum()
    }
}

/// Packs records one after the other.
///
/// # Errors
/// Pictures of different shapes, which one model input cannot hold; records with targets beside others without.
pub fn collate(samples: &[Encoded]) -> Result<Batch, DataError> {
    let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
    for sample in samples {
        batch.append(sample)?;
        batch.pixels.extend_from_slice(&sample.pixels);
    }
    Ok(batch)
}

impl Batch {
    /// Packs prepared records one after the other; `normalise` writes the values of media, given with their pictures, at the
    /// end of a list.
    ///
    /// # Errors
    /// As [`collate`].
    pub(crate) fn of_prepared(
        records: Vec<Prepared>,
        normalise: impl Fn(&[Visual], &[RgbImage], &mut Vec<f32>),
    ) -> Result<Self, DataError> {
        let mut batch = Self { cu_seqlens: vec![0], ..Self::default() };
        batch.pixels.reserve_exact(records.iter().map(Prepared::num_values).sum());
        for record in records {
            batch.append(&record.encoded)?;
            normalise(&record.encoded.visuals, &record.pictures, &mut batch.pixels);
        }
        Ok(batch)
    }

    /// Adds everything of a record but its pixels.
    fn append(&mut self, s: &Encoded) -> Result<(), DataError> {
        let base = self.ids.len() as u32;
        if s.num_images > 0 {
            if self.num_images > 0 && self.pixel_shape != s.pixel_shape {
                return Err(DataError::PictureShapes {
                    id: s.id.clone(),
                    expected: self.pixel_shape.clone(),
                    found: s.pixel_shape.clone(),
                });
            }
            self.pixel_shape.clone_from(&s.pixel_shape);
        }
        if s.target.is_some() != self.target.is_some() && !self.sample_ids.is_empty() {
            return Err(DataError::Fault { what: format!("record `{}` has a target and others have none", s.id) });
        }
        if let Some(target) = &s.target {
            let rows = self.target.get_or_insert_with(|| TargetRows { ids: Vec::new(), cu_seqlens: vec![0] });
            rows.ids.extend_from_slice(target);
            rows.cu_seqlens.push(rows.ids.len());
        }
        self.ids.extend_from_slice(&s.ids);
        self.labels.extend_from_slice(&s.labels);
        self.positions.extend(0..s.ids.len() as u32);
        self.cu_seqlens.push(self.ids.len());
        self.num_images += s.num_images;
        self.image_rows.extend(s.image_rows.iter().map(|r| r + base));
        self.visuals.extend_from_slice(&s.visuals);
        // One checkpoint makes windows of one shape.
        if !s.mel.is_empty() {
            self.mel_shape.clone_from(&s.mel_shape);
            self.mel.extend_from_slice(&s.mel);
            self.speech_rows.extend(s.speech_rows.iter().map(|r| r + base));
        }
        self.sample_ids.push(s.id.clone());
        self.sample_index.push(s.index);
        Ok(())
    }
}
