//! Owns the neutral record that every dataset format is read into: [`Sample`], its turns, parts and media references.
//! It refuses to read files or to know any format: that is `formats`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where a record came from, for messages a user can act on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// The dataset file; empty for a record made in memory.
    pub file: PathBuf,
    /// Line at which the record starts, counted from 1; 0 when unknown.
    pub line: u64,
    /// Position of the record in its dataset, counted from 0.
    pub index: u64,
}

/// Shape of the records of a dataset file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Decided from the content of the first records.
    #[default]
    Auto,
    /// `{"conversation": [{"role", "content": [parts]}], "video" | "video_url", "num_frames"}`.
    Conversation,
    /// `{"id", "image(s)" | "video(s)", "conversations": [{"from", "value"}]}` with placeholders in the text.
    #[serde(alias = "sharegpt")]
    Llava,
    /// `{"messages": [{"role", "content": text or parts}]}`, the OpenAI shape.
    #[serde(alias = "openai")]
    Messages,
    /// `{"video", "question", "caption"}`, the video as a reference only; `src_lang` and `tgt_lang` where they are needed.
    Seq2seq,
    /// The `llava` shape with an optional `audio`.
    Ego4d,
    /// `{"video" | "image" | "videoID", "question", "options", "answer"}`: one question, lettered options, the right one.
    Mcq,
    /// `{"video" | "image", "question", "answer"}`.
    Qa,
    /// `{"video" | "image", "caption"}`.
    Caption,
}

impl Format {
    /// Whether a newline right after a picture or clip belongs to its placeholder and not to the text.
    pub(crate) fn has_placeholder_lines(self) -> bool {
        matches!(self, Self::Llava | Self::Ego4d | Self::Mcq | Self::Qa | Self::Caption)
    }

    /// The name used on the command line, in plans and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Conversation => "conversation",
            Self::Llava => "llava",
            Self::Messages => "messages",
            Self::Seq2seq => "seq2seq",
            Self::Ego4d => "ego4d",
            Self::Mcq => "mcq",
            Self::Qa => "qa",
            Self::Caption => "caption",
        }
    }
}

/// Who speaks in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that stand before the dialogue.
    System,
    /// The one who asks.
    User,
    /// The one who answers: the supervised side.
    Assistant,
}

impl Role {
    /// The name that chat templates know.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// What a media reference stands for in the dialogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaKind {
    /// One still picture.
    Image,
    /// A clip: all its chosen frames stand at this place.
    Video,
    /// Sound: of a file of sound, or of a video's own track.
    Audio,
    /// One frame of a clip whose frames stand at several places: the `position`-th of `total` chosen frames.
    FrameOf {
        /// Which of the chosen frames, counted from 0.
        position: usize,
        /// How many frames of the clip the record asks for.
        total: usize,
    },
}

/// Where the media bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediaSource {
    /// A file, or a folder whose images in name order are one clip.
    Path(PathBuf),
    /// An `https` address, downloaded to the cache when the record is encoded.
    Url(String),
    /// Image files that are the frames of one clip, in this order.
    Files(Vec<PathBuf>),
}

/// One picture, clip or sound of a record, with what the record says about its frames.
#[derive(Debug, Clone, PartialEq)]
pub struct MediaRef {
    /// Picture, clip, sound, or one frame of a clip.
    pub kind: MediaKind,
    /// File, folder, list of files or address.
    pub source: MediaSource,
    /// Frames wanted; wins over the plan.
    pub nframes: Option<usize>,
    /// Frames per second wanted; for a list or folder of frames, the rate at which they were taken. Wins over the plan.
    pub fps: Option<f64>,
    /// Fewest frames when the count follows from `fps`.
    pub min_frames: Option<usize>,
    /// Most frames when the count follows from `fps`.
    pub max_frames: Option<usize>,
    /// Start of the part to use, in seconds.
    pub start: Option<f64>,
    /// End of the part to use, in seconds.
    pub end: Option<f64>,
}

impl MediaRef {
    /// A reference without any wish about frames.
    pub fn new(kind: MediaKind, source: MediaSource) -> Self {
        Self { kind, source, nframes: None, fps: None, min_frames: None, max_frames: None, start: None, end: None }
    }

    /// A still picture in a file.
    pub fn image(path: impl Into<PathBuf>) -> Self {
        Self::new(MediaKind::Image, MediaSource::Path(path.into()))
    }

    /// A clip in a file, or a folder of frames.
    pub fn video(path: impl Into<PathBuf>) -> Self {
        Self::new(MediaKind::Video, MediaSource::Path(path.into()))
    }

    /// The sound of a file, which may be a video.
    pub fn audio(path: impl Into<PathBuf>) -> Self {
        Self::new(MediaKind::Audio, MediaSource::Path(path.into()))
    }
}

/// A piece of a turn, in the order in which it stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Words.
    Text(String),
    /// A picture or clip.
    Media(MediaRef),
}

/// One turn of the dialogue.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// Text and media in order.
    pub parts: Vec<Part>,
}

impl Turn {
    /// A turn of text alone.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self { role, parts: vec![Part::Text(text.into())] }
    }

    /// The text parts joined, media left out.
    pub fn joined_text(&self) -> String {
        self.parts.iter().filter_map(|p| if let Part::Text(t) = p { Some(t.as_str()) } else { None }).collect()
    }
}

/// One record of a dataset in the neutral shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The record's own id, or its position as text.
    pub id: String,
    /// The dialogue.
    pub conversation: Vec<Turn>,
    /// The shape it was read from; decides how a newline after a placeholder is taken.
    pub format: Format,
    /// File and line, for messages.
    pub origin: Origin,
    /// Language of the question, where the record names it; sequence-to-sequence models tag their sources with it.
    pub src_lang: Option<String>,
    /// Language of the answer, likewise.
    pub tgt_lang: Option<String>,
}

impl Sample {
    /// A record made in memory, as by `generate` and the server.
    pub fn new(id: impl Into<String>, conversation: Vec<Turn>) -> Self {
        Self {
            id: id.into(),
            conversation,
            format: Format::Messages,
            origin: Origin::default(),
            src_lang: None,
            tgt_lang: None,
        }
    }

    /// All media references in the order in which they stand.
    pub fn media(&self) -> impl Iterator<Item = &MediaRef> {
        self.conversation
            .iter()
            .flat_map(|t| t.parts.iter())
            .filter_map(|p| if let Part::Media(m) = p { Some(m) } else { None })
    }
}
