//! Owns [`Encoded`] (one record as the model sees it) and [`Batch`] (several of them packed, block-diagonal).
//! It refuses to pad: records of different lengths stand one after the other, told apart by cumulative lengths.

use std::ops::Range;

use media::RgbImage;

use crate::error::DataError;

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
    /// Normalised pictures, `[num_images, C, H, W]` row-major.
    pub pixels: Vec<f32>,
    /// Number of pictures (frames count one each).
    pub num_images: usize,
    /// `[C, H, W]` of every picture; zeros when there is none.
    pub image_shape: [usize; 3],
    /// Rows of `ids` that take picture features, in picture order.
    pub image_rows: Vec<u32>,
    /// For each picture its feature grid `[t, h, w]`.
    pub grids: Vec<[usize; 3]>,
    /// For each picture the presentation times of its frames.
    pub frame_seconds: Vec<Vec<f64>>,
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
        self.grids.iter().map(|grid| grid.iter().product::<usize>()).sum()
    }

    /// Tokens and patches.
    pub fn size(&self) -> RecordSize {
        let tokens = self.ids.len() + self.target.as_ref().map_or(0, Vec::len);
        RecordSize { tokens: tokens as u32, patches: self.num_patches() as u32 }
    }
}

/// What a record takes of a batch's room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordSize {
    /// Input tokens, placeholders expanded, and those of a target.
    pub tokens: u32,
    /// Patches of its pictures.
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
        (ids.len() + num_target) * 8 + image_rows.len() * 4 + text.len() + self.num_values() + 256
    }

    /// Values of its pictures once they are normalised.
    pub fn num_values(&self) -> usize {
        self.pictures.iter().map(|picture| picture.data.len()).sum()
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
    /// Pictures `[num_images, C, H, W]`.
    pub pixels: Vec<f32>,
    /// Number of pictures.
    pub num_images: usize,
    /// `[C, H, W]`, the same for all pictures; zeros when there is none.
    pub image_shape: [usize; 3],
    /// Rows of `ids` that take picture features, in picture order.
    pub image_rows: Vec<u32>,
    /// For each picture its feature grid `[t, h, w]`.
    pub grids: Vec<[usize; 3]>,
    /// For each picture the presentation times of its frames.
    pub frame_seconds: Vec<Vec<f64>>,
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
        self.num_rows() * 16 + self.pixels.len() * 4 + 256
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
    /// Packs prepared records one after the other; `normalise` writes the values of pictures at the end of a list.
    ///
    /// # Errors
    /// As [`collate`].
    pub(crate) fn of_prepared(
        records: Vec<Prepared>,
        normalise: impl Fn(&[RgbImage], &mut Vec<f32>),
    ) -> Result<Self, DataError> {
        let mut batch = Self { cu_seqlens: vec![0], ..Self::default() };
        batch.pixels.reserve_exact(records.iter().map(Prepared::num_values).sum());
        for record in records {
            batch.append(&record.encoded)?;
            normalise(&record.pictures, &mut batch.pixels);
        }
        Ok(batch)
    }

    /// Adds everything of a record but its pixels.
    fn append(&mut self, s: &Encoded) -> Result<(), DataError> {
        let base = self.ids.len() as u32;
        if s.num_images > 0 {
            if self.num_images > 0 && self.image_shape != s.image_shape {
                return Err(DataError::PictureShapes {
                    id: s.id.clone(),
                    expected: self.image_shape,
                    found: s.image_shape,
                });
            }
            self.image_shape = s.image_shape;
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
        self.grids.extend_from_slice(&s.grids);
        self.frame_seconds.extend_from_slice(&s.frame_seconds);
        self.sample_ids.push(s.id.clone());
        self.sample_index.push(s.index);
        Ok(())
    }
}
