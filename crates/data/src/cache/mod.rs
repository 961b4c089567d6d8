//! Owns [`FrameCache`]: frames of clips on disk, so that the second epoch does not decode them again. It knows what an
//! entry depends on; files and budget are `hub::store`'s, the identity of media `contents`', the bytes `payload`'s.
//!
//! Kept is what the model takes, in bytes: scaled and cropped frames, packed without loss, normalised when they are read.
//! It is never the reason why a run stops or trains on other numbers: what cannot be read is decoded again, what cannot
//! be written is told once.

mod contents;
mod payload;

use std::path::Path;

use hub::store::{self, Found, Hash, Kept, KeyHasher, Store, StoreKind};
use media::Limits;
use parking_lot::Mutex;
use serde::Serialize;

use crate::error::DataError;
use contents::Contents;

pub(crate) use contents::Content;
pub(crate) use payload::{Shot, VideoFacts};

/// How a folder of frames and its entries are told from others.
const KIND: StoreKind =
    StoreKind { mark: "vidtune-frames.json", format: "vidtune frame cache 2", suffix: ".frames", magic: b"VTFRAME2" };

/// Messages of one kind that are told; the rest is counted.
const MAX_NOTICES: u64 = 3;

/// What a cache did since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CacheStats {
    /// Clips whose frames were read from the cache.
    pub hits: u64,
    /// Clips whose frames were decoded.
    pub misses: u64,
    /// Decoded clips that were written.
    pub stored: u64,
    /// Decoded clips for which the budget had no room beside those that this process uses itself.
    pub no_room: u64,
    /// Entries that were damaged, and were decoded again.
    pub damaged: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Media files that were read to find out whether they are known.
    pub hashed: u64,
}

/// What a folder of frames holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CacheSurvey {
    /// Entries: one for the frames of a clip, and one for what is known of a video before decoding.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Frames of clips in a folder, shared by every process that names it.
#[derive(Debug)]
pub struct FrameCache {
    store: Store,
    contents: Contents,
    told: Mutex<Told>,
    stats: Mutex<CacheStats>,
}

#[derive(Debug, Default)]
struct Told {
    notices: Vec<String>,
    /// Whether a failure to write has ended the writing.
    is_read_only: bool,
}

/// What frames depend on, beside the content of their files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Which frames.
    pub indices: &'a [usize],
    /// What is done to them, see `Vision::shape_key`.
    pub shape: &'a str,
    /// Bounds, which may refuse what others let through.
    pub limits: &'a Limits,
    /// Whether libav decodes them; else they are still pictures.
    pub is_video: bool,
}

impl FrameCache {
    /// Opens a folder, or makes one, that holds at most `budget` bytes. Entries beyond that are removed, the least
    /// recently used first.
    ///
    /// # Errors
    /// The folder cannot be made or written to.
    pub fn open(dir: &Path, budget: u64) -> Result<Self, DataError> {
        let store = Store::open(KIND, dir, budget).map_err(|source| DataError::Plan {
            key: "data.frame_cache".into(),
            what: format!("`{}` cannot be used: {source}", dir.display()),
            hint: "name a folder that can be written to, or leave the key out".into(),
        })?;
        Ok(Self { store, contents: Contents::default(), told: Mutex::default(), stats: Mutex::default() })
    }

    /// Counts since the cache was opened.
    pub fn stats(&self) -> CacheStats {
        CacheStats { hashed: self.contents.num_hashed(), ..*self.stats.lock() }
    }

    /// What the user should know and has not been told.
    pub fn take_notices(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().notices)
    }

    /// What a folder holds.
    ///
    /// # Errors
    /// It is no frame cache, or cannot be listed.
    pub fn survey(dir: &Path) -> Result<CacheSurvey, DataError> {
        match store::survey(KIND, dir) {
            Ok(Some((entries, bytes))) => Ok(CacheSurvey { entries, bytes }),
            Ok(None) => Err(DataError::Plan {
                key: "DIR".into(),
                what: format!("`{}` is no frame cache: it holds no `{}`", dir.display(), KIND.mark),
                hint: "name the folder of `data.frame_cache`".into(),
            }),
            Err(source) => Err(DataError::io(dir, source)),
        }
    }

    /// Removes every entry of a folder and nothing else; returns what was removed.
    ///
    /// # Errors
    /// It is no frame cache, or cannot be written to.
    pub fn clear(dir: &Path) -> Result<CacheSurvey, DataError> {
        Self::survey(dir)?;
        let (entries, bytes) = store::clear(KIND, dir).map_err(|source| DataError::io(dir, source))?;
        Ok(CacheSurvey { entries, bytes })
    }

    /// What files hold; `None` where they cannot be read, which whoever opens them next will say better.
    pub(crate) fn content(&self, files: &[&Path]) -> Option<Content> {
        self.contents.of(files).ok()
    }

    /// What is known of a video.
    pub(crate) fn facts(&self, content: &Content, limits: &Limits) -> Option<VideoFacts> {
        let key = facts_key(content, limits)?;
        let packed = self.read(&key)?;
        self.sound(payload::unpacked(&packed).and_then(|bytes| VideoFacts::from_bytes(&bytes)))
    }

    /// Keeps what was found out about a video.
    pub(crate) fn keep_facts(&self, content: &Content, limits: &Limits, facts: &VideoFacts) {
        if let Some(key) = facts_key(content, limits) {
            self.write(&key, content, &facts.to_bytes());
        }
    }

    /// The frames of a clip, where they are known.
    pub(crate) fn shots(&self, content: &Content, wanted: &Wanted<'_>) -> Option<Vec<Shot>> {
        let key = shots_key(content, wanted)?;
        let shots = self.read(&key).and_then(|packed| {
            self.sound(payload::unpacked(&packed).and_then(|bytes| payload::shots_from_bytes(&bytes)))
        });
        let shots = shots.filter(|shots| shots.len() == wanted.indices.len());
        let mut stats = self.stats.lock();
        *(if shots.is_some() { &mut stats.hits } else { &mut stats.misses }) += 1;
        shots
    }

    /// Keeps the frames of a clip.
    pub(crate) fn keep_shots(&self, content: &Content, wanted: &Wanted<'_>, shots: &[Shot]) {
        let Some(key) = shots_key(content, wanted) else { return };
        match self.write(&key, content, &payload::shots_to_bytes(shots)) {
            Some(Kept::Stored(_)) => self.stats.lock().stored += 1,
            Some(Kept::NoRoom) => {
                let mut stats = self.stats.lock();
                stats.no_room += 1;
                if stats.no_room == 1 {
                    self.tell(
                        "`data.frame_cache_size` is used up by this run's own frames: further clips are decoded in every epoch"
                            .to_owned(),
                    );
                }
            }
            None => {}
        }
    }

    fn read(&self, key: &Hash) -> Option<Vec<u8>> {
        match self.store.get(key) {
            Found::Entry(content, num_bytes) => {
                self.stats.lock().bytes_read += num_bytes;
                Some(content)
            }
            Found::Nothing => None,
            Found::Damaged(what) => {
                self.damaged(&what);
                None
            }
        }
    }

    /// Counts content that is not of the form that its checksum vouches for.
    fn sound<T>(&self, content: Option<T>) -> Option<T> {
        if content.is_none() {
            self.damaged("an entry has another form than expected");
        }
        content
    }

    fn damaged(&self, what: &str) {
        let count = {
            let mut stats = self.stats.lock();
            stats.damaged += 1;
            stats.damaged
        };
        if count <= MAX_NOTICES {
            self.tell(format!("frame cache: {what}; the clip is decoded again"));
        }
    }

    /// Writes an entry, unless its files changed since they were hashed: then nobody knows which content was decoded.
    fn write(&self, key: &Hash, content: &Content, bytes: &[u8]) -> Option<Kept> {
        if self.told.lock().is_read_only || !content.is_unchanged() {
            return None;
        }
        match payload::packed(bytes).and_then(|packed| self.store.put(key, &packed)) {
            Ok(kept) => {
                if let Kept::Stored(num_bytes) = kept {
                    self.stats.lock().bytes_written += num_bytes;
                }
                Some(kept)
            }
            Err(error) => {
                let mut told = self.told.lock();
                if !std::mem::replace(&mut told.is_read_only, true) {
                    told.notices.push(format!(
                        "the frame cache cannot be written to: {error}; frames that it does not hold are decoded in every epoch"
                    ));
                }
                None
            }
        }
    }

    fn tell(&self, notice: String) {
        self.told.lock().notices.push(notice);
    }
}

fn facts_key(content: &Content, limits: &Limits) -> Option<Hash> {
    // Without libav the file itself is opened next, and that says what is missing.
    let version = media::video_version().ok()?;
    let key = KeyHasher::new("facts 1").text(&version).bytes(&content.hash);
    Some(with_limits(key, limits).finish())
}

fn shots_key(content: &Content, wanted: &Wanted<'_>) -> Option<Hash> {
    let version = if wanted.is_video { media::video_version().ok()? } else { media::picture_version() };
    let key = KeyHasher::new("frames 1").text(&version).bytes(&content.hash);
    let mut key = with_limits(key, wanted.limits).text(wanted.shape);
    for index in wanted.indices {
        key = key.bytes(&(*index as u64).to_le_bytes());
    }
    Some(key.finish())
}

/// A key that also depends on bounds.
fn with_limits(key: KeyHasher, limits: &Limits) -> KeyHasher {
    // A deadline decides whether there are frames, never which.
    let Limits {
        max_pixels,
        max_frames,
        max_packets,
        max_duration_s,
        max_streams,
        max_alloc_bytes,
        max_decoded_bytes,
        probe_bytes,
        deadline: _,
    } = limits;
    let numbers = [
        *max_pixels,
        *max_frames as u64,
        *max_packets as u64,
        max_duration_s.to_bits(),
        *max_streams as u64,
        *max_alloc_bytes as u64,
        *max_decoded_bytes,
        *probe_bytes as u64,
    ];
    numbers.iter().fold(key, |key, number| key.bytes(&number.to_le_bytes()))
}
