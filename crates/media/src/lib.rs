//! Files to timed frames and to sound: probe, index, plan, decode, colour, resize, resample, limits.
//!
//! The way of a video: [`index_video`] reads the packets once and gives every frame's presentation time,
//! [`sample_indices`] chooses frames by one of the reference rules, [`decode_frames`] decodes those frames only, and
//! [`resize`] scales them as Pillow or torchvision would, bit for bit. Images come through [`load_image`], sound through
//! [`index_audio`] and [`decode_audio`].
//!
//! The crate owns libav: no type of it leaves the private module `av`, which opens its shared libraries when the first
//! video is touched. It refuses to know about records, prompts or tensors, and it never fills a gap: a frame that cannot
//! be decoded is an error, not a grey picture.

mod audio;
mod av;
mod bench;
mod container;
mod decode;
pub mod encode;
mod error;
mod frames;

mod index;
mod limits;
mod part;
mod picture;
pub mod resize;
mod sample;
mod sheet;
mod sniff;
mod still;
mod timeline;
mod turn;
mod version;

pub use audio::{AUDIO_RATE, AudioIndex, AudioTrack, decode_audio, index_audio};
pub use av::{LibavLibrary, libav_libraries};
pub use bench::{DecodeBench, bench_decode};
pub use decode::decode_frames;
pub use error::MediaError;
pub use frames::{list_frame_folder, load_frame_files};
pub use index::{VideoIndex, Warning, index_video};
pub use limits::Limits;
pub use part::{FilePart, MediaFile, file_of, shown};
pub use picture::{Frame, RgbImage, encode_png, write_png};
pub use sample::{FrameCount, FrameRule, SampleSpec, frames_in_part, sample_indices};
pub use sheet::contact_sheet;
pub use sniff::{is_animated, is_image, is_video};
pub use still::load_image;
pub use version::{picture_version, video_version};
