//! Records to batches: formats, templates, tokenizer, processors, labels, packing, loader.
//!
//! The way of a record: [`open_dataset`] finds it, `Dataset::get` reads it into a [`Sample`], [`Processor::encode`]
//! decodes its media, renders its dialogue with the checkpoint's chat template and tokenises it once, and
//! [`collate`] packs several records into a [`Batch`] of plain host vectors. [`Loader`] does this ahead in threads.
//!
//! The crate owns the tokenizer library and Jinja. It cannot see tensors or models, so that all of it is tested
//! without a device. It never replaces, cuts or drops anything in silence: what cannot be used is an error or an
//! entry of the [`Ledger`].

mod batch;
mod cache;
mod clips;
mod content;
mod csv_index;
mod dataset;
mod encode;
mod error;
mod export;
mod formats;
mod join;
mod json_index;
mod ledger;
mod loader;
mod mel;
mod options;
mod order;
mod pack;
mod plan;
mod processor;
mod record;
mod select;
mod sentencepiece;
mod shards;
mod sound;
mod ssv2;
mod tar;
mod template;
mod text_pair;
mod tokenizer;
mod vision;

pub use batch::{Batch, Encoded, FrameInfo, IGNORE, RecordSize, TargetRows, Visual, VisualKind, collate};
pub use cache::{CacheStats, CacheSurvey, FrameCache};
pub use dataset::{Dataset, open_dataset};
pub use error::{DataError, RecordError, RecordFault};
pub use export::ExportedTokens;
pub use join::join_tokenizer;
pub use json_index::Fingerprint;
pub use ledger::{Ledger, LedgerEvent, LedgerSummary, Status};
pub use loader::{
    BatchOutline, Loader, LoaderOptions, LoaderState, LoaderStats, OnBadMedia, PackEstimate, estimate_packing,
    largest_batches, measure_records,
};
pub use options::{EncodeOptions, OnLong};
pub use plan::{DataPlan, DatasetPlan, FIELDS as PLAN_FIELDS, LimitsPlan, PlanField, SplitPlan};
pub use processor::{Processor, TemplateChoice};
pub use record::{Format, MediaKind, MediaRef, MediaSource, Origin, Part, Role, Sample, Turn};
pub use select::Selected;
pub use sound::Heard;
pub use ssv2::{SSV2_PROMPT, Ssv2Options, convert_ssv2};
pub use vision::ImageBackend;
