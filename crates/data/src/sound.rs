//! Owns the way of a record's sound to features: windows of log-mel values in the order of the text. It refuses to place them.

use crate::batch::Encoded;
use crate::clips::{Clips, name_of};
use crate::encode::record_error;
use crate::error::DataError;
use crate::options::EncodeOptions;
use crate::record::Sample;
use crate::vision::{Layout, Speech};

/// One medium that is heard, as the model takes it, in the order of the text.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Heard {
    /// Windows of the spectrogram.
    pub num_windows: usize,
    /// States that the encoder makes of all of them.
    pub num_states: usize,
    /// Tokens of the text that it takes.
    pub num_tokens: usize,
    /// Seconds of sound; what is left of the last window is silence.
    pub seconds: f64,
}

/// Decodes the sound of a record and adds its features.
///
/// # Errors
/// A file that cannot be decoded, or whose sound is not as long as its packets say.
pub(crate) fn hear(
    sample: &Sample,
    clips: &mut Clips,
    layout: &Layout,
    speech: &Speech,
    options: &EncodeOptions,
    encoded: &mut Encoded,
) -> Result<(), DataError> {
    let mut notes = Vec::new();
    for (place, visuals) in clips.places().zip(&layout.of_reference) {
        let Some(sound) = place.clip.sound() else { continue };
        let track = sound.take(&options.limits).map_err(|error| DataError::media(sample, error))?;
        let name = name_of(place.clip.reference());
        notes.extend(track.warnings.iter().map(|warning| format!("`{name}`: {}", warning.message)));
        let planned = &layout.visuals[visuals.start].visual;
        let [num_windows, states, _] = planned.grid;
        let found = speech.mel.num_windows(track.samples.len());
        if found != num_windows {
            let what = format!("the sound of `{name}` is not as long as its packets say");
            return Err(record_error(sample, "changed", what)
                .expected(format!("{num_windows} windows"), found.to_string())
                .hint("convert the file to wav or flac, or remove the record")
                .into());
        }
        let [mels, frames] = speech.mel.shape();
        encoded.mel_shape = vec![mels, frames];
        speech.mel.write(&track.samples, num_windows, &mut encoded.mel);
        encoded.heard.push(Heard {
            num_windows,
            num_states: num_windows * states,
            num_tokens: planned.num_tokens,
            seconds: track.samples.len() as f64 / f64::from(media::AUDIO_RATE),
        });
    }
    clips.notes.extend(notes);
    Ok(())
}
