//! Owns the formats `qa` (a question and its answer about a picture or clip) and `caption` (a description of one).
//! It refuses lists of answers: which of them should be learned is the user's to say.

use super::asked::{Asked, names_media, required_words, words};
use super::{Context, Object, list_keys};
use crate::error::RecordError;
use crate::record::Turn;

/// Fields that hold a description, the best first: PE-Video has one that people revised for a part of its clips, and
/// one that a model wrote for all of them.
const CAPTIONS: [&str; 3] = ["caption", "human_caption", "model_caption"];

/// Reads the two turns of a `qa` record.
pub(super) fn parse_qa(context: &Context<'_>, record: &Object) -> Result<Vec<Turn>, RecordError> {
    let asked = Asked::read(context, record)?;
    let question = required_words(context, record, "question")?;
    let answer = required_words(context, record, "answer")?;
    asked.turns(context, &question, &answer)
}

/// Reads the two turns of a `caption` record.
pub(super) fn parse_caption(context: &Context<'_>, record: &Object) -> Result<Vec<Turn>, RecordError> {
    let asked = Asked::read(context, record)?;
    let Some(medium) = asked.medium() else {
        return Err(context
            .error("missing_media", "the record has a caption and nothing that it describes")
            .expected("a field `video` or `image`", list_keys(record))
            .hint("name the file, or remove the record"));
    };
    let caption = match CAPTIONS.iter().find_map(|name| words(record.get(*name)?)) {
        Some(caption) => caption,
        // The message about the field that the record has, or ought to have.
        None => {
            let field = CAPTIONS.iter().find(|name| record.contains_key(**name)).unwrap_or(&CAPTIONS[0]);
            required_words(context, record, field)?
        }
    };
    asked.turns(context, &format!("Describe this {medium}."), &caption)
}

/// Whether a record without a question is a description of something.
pub(super) fn is_caption(record: &Object) -> bool {
    CAPTIONS.iter().any(|name| record.contains_key(*name)) && names_media(record)
}
