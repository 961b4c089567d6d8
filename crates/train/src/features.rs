//! Owns [`FeatureCache`]: what a frozen tower makes of a picture, kept on disk, so that a picture passes the tower once and
//! not once an epoch. It knows what an entry depends on; files and budget are `hub::store`'s, decoded frames `data`'s.
//!
//! Kept is what the tower hands to the projector, in the dtype of activations, whether the projector trains or not: that is
//! two to eight times smaller than what the projector makes of it, it serves every run over the same tower (the projector
//! first, adapters after it), and the projector costs a few hundredths of the tower. An entry is found by the picture's
//! pixels as they enter the tower, so the frames are still decoded (`data.frame_cache` is for those); by the tower's
//! configuration, weights and dtype; and by what this program on this processor computes for a picture that is always the
//! same, because kernels for other processors add in another order. The cache is never the reason why a run stops or trains
//! on other numbers: what cannot be read is computed again, what cannot be written is told once.

use std::collections::HashMap;
use std::path::Path;

use data::Batch;
use hub::store::{Found, Hash, Kept, KeyHasher, Store, StoreKind};
use models::{Model, ModelInput, Part};
use tensor::{DType, Tape, Tensor, profile};

use crate::error::{Result, TrainError, first_few};
use crate::selection::TrainedTensor;

const KIND: StoreKind = StoreKind {
    mark: "vidtune-features.json",
    format: "vidtune feature cache 1",
    suffix: ".features",
    magic: b"VTFEATR1",
};

/// Messages about damaged entries that are told; the rest is counted.
const MAX_NOTICES: u64 = 3;

/// What a cache did since it was opened. A picture that stands several times in a batch counts once there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FeatureStats {
    /// Pictures whose features were read.
    pub hits: u64,
    /// Pictures that passed the tower.
    pub misses: u64,
    /// Of these, the ones that were written.
    pub stored: u64,
    /// Of these, the ones for which the budget had no room beside those that this process uses itself.
    pub no_room: u64,
    /// Entries that were damaged, and were computed again.
    pub damaged: u64,
}

/// Features of pictures in a folder, shared by every process that names it.
#[derive(Debug)]
pub struct FeatureCache {
    store: Store,
    /// Everything but the picture that features depend on.
    tower: Hash,
    dtype: DType,
    /// Rows of a picture, and their width.
    shape: [usize; 2],
    stats: FeatureStats,
    notices: Vec<String>,
    /// Whether a failure to write has ended the writing.
    is_read_only: bool,
}

impl FeatureCache {
    /// Opens a folder, or makes one, that holds at most `budget` bytes, for the tower of a model whose `trained` tensors
    /// change. A few pictures pass the tower, to see how this machine computes.
    ///
    /// # Errors
    /// The model has no tower, the tower trains, or the folder cannot be made or written to.
    pub fn open(dir: &Path, budget: u64, model: &Model, trained: &[TrainedTensor]) -> Result<FeatureCache> {
        let Some(llava) = model.config().llava() else {
            let what = match model.config() {
                config if config.encoders().is_some() => "is in the original layout, whose towers are not built for it",
                config if config.egogpt().is_some() => "averages its clips behind the projector",
                config if config.vision().is_some() => "takes pictures of any size",
                _ => "has no tower",
            };
            let message = format!("`train.feature_cache` is given, but a `{}` model {what}", model.config().model_type);
            return Err(TrainError::mismatch(message, "remove `train.feature_cache`"));
        };
        let moving: Vec<&str> =
            trained.iter().filter(|t| t.named.part == Part::Vision).map(|t| t.named.name.as_str()).collect();
        if !moving.is_empty() {
            let names = first_few(moving.into_iter());
            return Err(TrainError::mismatch(
                format!(
                    "`train.feature_cache` needs a tower that stays as it is, but these of its tensors train: {names}"
                ),
                "write `method.freeze: [vision]` (under `lora`, take the tower out of `target_modules`), or remove `train.feature_cache`",
            ));
        }
        let adapted = |name: &str| name.contains(".lora_A.");
        if let Some(named) = model.params().iter().find(|p| p.part == Part::Vision && adapted(&p.name)) {
            return Err(TrainError::mismatch(
                format!("`train.feature_cache` needs a tower without an adapter, found `{}`", named.name),
                "remove `train.feature_cache`, or give a base model that the adapter is merged into",
            ));
        }
        let store = Store::open(KIND, dir, budget).map_err(|source| {
            TrainError::mismatch(
                format!("`train.feature_cache`: `{}` cannot be used: {source}", dir.display()),
                "name a folder that can be written to, or leave the key out",
            )
        })?;
        let width = llava.vision.hidden_size * llava.feature_layers.len();
        let mut cache = FeatureCache {
            store,
            tower: [0; 32],
            dtype: model.compute(),
            shape: [llava.tokens_per_image(), width],
            stats: FeatureStats::default(),
            notices: Vec::new(),
            is_read_only: false,
        };
        cache.tower = tower_hash(model, cache.dtype)?;
        Ok(cache)
    }

    /// Moves a batch to where the model computes, with the features of its pictures in place of their pixels. Pictures that
    /// are not known pass the tower, all of them at once, and are known then.
    pub(crate) fn upload(&mut self, model: &Model, batch: &Batch) -> Result<ModelInput> {
        if batch.num_images == 0 {
            return Ok(infer::upload(batch)?);
        }
        let _span = profile::span("feature_cache");
        // Tiles of an image are pictures of their own here.
        let size = batch.pixel_shape.iter().product::<usize>().max(1);
        let keys: Vec<Hash> = batch.pixels.chunks_exact(size).map(|picture| self.key_of(batch, picture)).collect();
        let mut known: HashMap<Hash, Vec<u8>> = HashMap::new();
        let mut wanted: Vec<(Hash, &[f32])> = Vec::new();
        for (key, picture) in keys.iter().zip(batch.pixels.chunks_exact(size)) {
            if known.contains_key(key) || wanted.iter().any(|(other, _)| other == key) {
                continue;
            }
            match self.read(key) {
                Some(features) => _ = known.insert(*key, features),
                None => wanted.push((*key, picture)),
            }
        }
        self.stats.hits += known.len() as u64;
        self.stats.misses += wanted.len() as u64;
        if !wanted.is_empty() {
            let pixels: Vec<f32> = wanted.iter().flat_map(|(_, picture)| picture.iter().copied()).collect();
            let pixels = Tensor::from_f32(&pixels, &[&[wanted.len()], batch.pixel_shape.as_slice()].concat())?;
            let states = model.tower_states(&Tape::inference(), &pixels)?.into_value();
            self.check_form(&states, wanted.len())?;
            let bytes = states.to_bytes();
            for ((key, _), features) in wanted.iter().zip(bytes.chunks_exact(self.num_bytes())) {
                self.write(key, features);
                known.insert(*key, features.to_vec());
            }
        }
        let mut bytes = Vec::with_capacity(keys.len() * self.num_bytes());
        keys.iter().filter_map(|key| known.get(key)).for_each(|features| bytes.extend_from_slice(features));
        let [rows, width] = self.shape;
        let states = Tensor::from_bytes(&bytes, self.dtype, &[keys.len() * rows, width])?;
        Ok(infer::upload_with_states(batch, Some(states))?)
    }

    /// Counts since the cache was opened.
    pub fn stats(&self) -> FeatureStats {
        self.stats
    }

    /// What the user should know and has not been told.
    pub(crate) fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// One line about the whole run.
    pub(crate) fn summary(&self) -> String {
        let FeatureStats { hits, misses, stored, .. } = self.stats;
        format!("feature cache: {hits} pictures were read, {misses} passed the tower, and {stored} of these were kept")
    }

    fn key_of(&self, batch: &Batch, picture: &[f32]) -> Hash {
        let bytes: Vec<u8> = picture.iter().flat_map(|value| value.to_le_bytes()).collect();
        let sides = batch.pixel_shape.iter().map(|&side| side as u64);
        sides
            .fold(KeyHasher::new("picture").bytes(&self.tower), |key, side| key.bytes(&side.to_le_bytes()))
            .bytes(&bytes)
            .finish()
    }

    fn num_bytes(&self) -> usize {
        self.shape[0] * self.shape[1] * self.dtype.size_bytes()
    }

    /// Entries are cut and put together by this form.
    fn check_form(&self, states: &Tensor, num_pictures: usize) -> Result<()> {
        let [rows, width] = self.shape;
        if states.dtype() == self.dtype && states.shape() == [num_pictures * rows, width] {
            return Ok(());
        }
        let message = format!(
            "the tower gave {:?} numbers of type `{}` for {num_pictures} pictures, expected {rows} x {width} of `{}` each",
            states.shape(),
            states.dtype().name(),
            self.dtype.name()
        );
        Err(TrainError::mismatch(message, "remove `train.feature_cache`"))
    }

    fn read(&mut self, key: &Hash) -> Option<Vec<u8>> {
        let what = match self.store.get(key) {
            Found::Entry(features, _) if features.len() == self.num_bytes() => return Some(features),
            Found::Entry(..) => "an entry has another size than expected".to_owned(),
            Found::Nothing => return None,
            Found::Damaged(what) => what,
        };
        self.stats.damaged += 1;
        if self.stats.damaged <= MAX_NOTICES {
            self.notices.push(format!("feature cache: {what}; the picture passes the tower again"));
        }
        None
    }

    fn write(&mut self, key: &Hash, features: &[u8]) {
        if self.is_read_only {
            return;
        }
        match self.store.put(key, features) {
            Ok(Kept::Stored(_)) => self.stats.stored += 1,
            Ok(Kept::NoRoom) => {
                self.stats.no_room += 1;
                if self.stats.no_room == 1 {
                    let notice = "`train.feature_cache_size` is used up by this run's own pictures: further ones pass the tower in every epoch";
                    self.notices.push(notice.to_owned());
                }
            }
            Err(error) => {
                self.is_read_only = true;
                self.notices.push(format!(
                    "the feature cache cannot be written to: {error}; pictures that it does not hold pass the tower in every epoch"
                ));
            }
        }
    }
}

/// What the features of all pictures depend on: configuration, weights, dtype, and how this machine computes.
fn tower_hash(model: &Model, dtype: DType) -> Result<Hash> {
    let Some(llava) = model.config().llava() else {
        return Ok([0; 32]);
    };
    let mut key = KeyHasher::new("tower")
        .text(env!("CARGO_PKG_VERSION"))
        .text(dtype.name())
        .text(&format!("{:?} {:?} {:?}", llava.vision, llava.feature_layers, llava.select));
    for named in model.params().iter().filter(|p| p.part == Part::Vision && p.reached) {
        let value = named.param.value();
        key = key.text(&named.name).text(value.dtype().name()).bytes(&value.to_bytes());
    }
    let (channels, side) = (llava.vision.num_channels, llava.vision.image_size);
    // Weyl's sequence of the golden ratio: spread evenly over -1 to 1, and the same everywhere.
    let pixel = |i: usize| (i as u32).wrapping_mul(0x9E37_79B9) as i32 as f32 / 2f32.powi(31);
    let size = channels * side * side;
    // As many pictures as make more rows than any kernel for few rows takes.
    let count = 64usize.div_ceil(llava.vision.num_positions()).max(2);
    let pixels: Vec<f32> = (0..count * size).map(pixel).collect();
    let states = |pixels: &[f32]| -> Result<Vec<u8>> {
        let pixels = Tensor::from_f32(pixels, &[pixels.len() / size, channels, side, side])?;
        Ok(model.tower_states(&Tape::inference(), &pixels)?.value().to_bytes())
    };
    let (alone, together) = (states(&pixels[..size])?, states(&pixels)?);
    if !together.starts_with(&alone) {
        let message = format!(
            "`train.feature_cache` would change numbers: for a picture of {} patches this processor adds in another order than for several",
            llava.vision.num_positions()
        );
        return Err(TrainError::mismatch(message, "remove `train.feature_cache`"));
    }
    Ok(key.bytes(&alone).finish())
}
