//! Flags that several commands or few models have: languages and beams, folders of frames and sound. Owns their
//! documentation; what they do is in `model_args` and in the commands.

use std::path::PathBuf;

use clap::Args;

use crate::args::at_least_one;

/// Media of a question beside videos and images.
#[derive(Debug, Clone, Default, Args)]
pub struct MoreMedia {
    /// A folder whose images in name order are one video; may be given several times
    #[arg(long, value_name = "DIR")]
    pub frames: Vec<PathBuf>,
    /// A file with sound, such as a video with a track of its own; may be given several times
    #[arg(long, value_name = "FILE")]
    pub audio: Vec<PathBuf>,
}

/// The languages of a sequence-to-sequence model.
#[derive(Debug, Clone, Default, Args)]
pub struct LanguageArgs {
    /// Language of the question, such as eng_Latn; the record's or the checkpoint's own when not given
    #[arg(long, value_name = "LANG")]
    pub src_lang: Option<String>,
    /// Language of the answer, such as fra_Latn; likewise
    #[arg(long, value_name = "LANG")]
    pub tgt_lang: Option<String>,
}

/// How beams are searched; sequence-to-sequence models only.
#[derive(Debug, Clone, Default, Args)]
pub struct BeamArgs {
    /// Search this many beams; 1 when not given, whatever `generation_config.json` says
    #[arg(long, value_name = "N", value_parser = at_least_one::<usize>)]
    pub num_beams: Option<usize>,
    /// Above 0 longer answers win, below 0 shorter ones; `generation_config.json`'s, else 1
    #[arg(long, value_name = "P", requires = "num_beams", allow_hyphen_values = true)]
    pub length_penalty: Option<f64>,
    /// When the search ends: true, false or never; `generation_config.json`'s, else false
    #[arg(long, value_name = "WHEN", requires = "num_beams")]
    pub early_stopping: Option<String>,
}
