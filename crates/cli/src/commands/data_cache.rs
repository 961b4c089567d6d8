//! `vidtune data cache`: what a folder of cached frames holds, and its removal.

use std::process::ExitCode;

use anyhow::Result;
use data::FrameCache;
use serde_json::json;

use crate::args::CacheArgs;
use crate::console::bytes;
use crate::output;

/// Runs the command.
///
/// # Errors
/// The folder is no frame cache, or cannot be read or written to.
pub fn run(args: &CacheArgs) -> Result<ExitCode> {
    let (survey, word) = if args.clear {
        (FrameCache::clear(&args.dir)?, "removed from")
    } else {
        (FrameCache::survey(&args.dir)?, "in")
    };
    if args.json {
        output::write_json(None, &json!({"entries": survey.entries, "bytes": survey.bytes, "removed": args.clear}))?;
    } else {
        let text = format!("{} entries, {}, {word} `{}`\n", survey.entries, bytes(survey.bytes), args.dir.display());
        output::write(None, text.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}
