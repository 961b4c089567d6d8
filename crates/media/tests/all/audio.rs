//! The sound of every container and codec: samples equal those of the ffmpeg program, averaged over the channels
//! (`tools/oracle/media_audio.py`).

use std::path::{Path, PathBuf};

use media::{AUDIO_RATE, AudioTrack, Limits, MediaError, decode_audio, index_audio};

use crate::common::{fixture, json};

fn path(name: &str) -> PathBuf {
    fixture("sounds").join(name)
}

fn expected(name: &str) -> Vec<f32> {
    let bytes = std::fs::read(path(&format!("{name}.f32"))).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn decode(path: &Path, range: (Option<f64>, Option<f64>)) -> Result<AudioTrack, MediaError> {
    decode_audio(&index_audio(path, &Limits::default())?, range, &Limits::default())
}

/// The largest distance between samples.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()))
}

#[test]
fn samples_equal_the_references() {
    let listed = json("sounds.json");
    let sounds = listed["sounds"].as_array().unwrap();
    assert!(sounds.len() > 15);
    for sound in sounds {
        let name = sound["name"].as_str().unwrap();
        let index = index_audio(&path(name), &Limits::default()).unwrap();
        assert_eq!(index.codec, sound["codec"].as_str().unwrap(), "{name}");
        let track = decode_audio(&index, (None, None), &Limits::default()).unwrap();
        let expected = expected(name);
        assert_eq!(track.samples.len(), expected.len(), "{name}");
        // The same resampler; means of up to six channels in f32 round by a few 1e-8.
        assert!(distance(&track.samples, &expected) < 2e-7, "{name}: {}", distance(&track.samples, &expected));
        assert!(expected.iter().any(|sample| sample.abs() > 0.05), "{name} is silent");
        assert!(track.warnings.is_empty(), "{name}: {:?}", track.warnings);
        // What is planned with: good to a tenth of a second.
        if let Some(duration) = index.duration {
            let seconds = expected.len() as f64 / f64::from(AUDIO_RATE);
            assert!((duration - seconds).abs() < 0.1, "{name}: {duration} s planned, {seconds} s");
        }
    }
    let known = |name: &str| index_audio(&path(name), &Limits::default()).unwrap().duration.is_some();
    for name in ["s16_stereo_44k.wav", "stereo_44k.mp3", "aac_44k.m4a", "clip_aac.mp4", "s24_six_48k.flac"] {
        assert!(known(name), "{name} has no planned duration");
    }
}

#[test]
fn a_range_is_cut_out_on_the_containers_clock() {
    let (whole, name) = (expected("clip_aac.mp4"), "clip_aac.mp4");
    let part = decode(&path(name), (Some(0.1), Some(0.3))).unwrap().samples;
    assert_eq!(part.len(), 3200);
    assert!(distance(&part, &whole[1600..4800]) < 2e-7);
    let tail = decode(&path(name), (Some(0.4), None)).unwrap().samples;
    assert!(distance(&tail, &whole[6400..]) < 2e-7 && tail.len() == whole.len() - 6400);
    let error = decode(&path(name), (Some(5.0), Some(6.0))).unwrap_err();
    assert_eq!(error.reason(), "undecodable_audio");
    assert!(error.to_string().contains("no sample lies between 5 s and the end asked for"), "{error}");
}

#[test]
fn files_without_sound_are_refused() {
    let error = decode(&fixture("clips").join("h264_small.mp4"), (None, None)).unwrap_err();
    assert_eq!(error.reason(), "no_audio_track");
    assert!(
        error.to_string().contains("no audio track; hint: remove the record, or name a file with sound"),
        "{error}"
    );
    let error = decode(&fixture("clips").join("gif.gif"), (None, None)).unwrap_err();
    assert_eq!(error.reason(), "not_allowed_container");

    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let playlist = file("playlist.mp3", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n");
    let error = decode(&playlist, (None, None)).unwrap_err();
    assert!(error.to_string().contains("an HLS playlist is not an allowed container of sound"), "{error}");
    let noise: Vec<u8> = (0..4000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let tagged = file("tagged.mp3", &[b"ID3\x03\0\0\0\0\0\0".as_slice(), &noise].concat());
    let error = decode(&tagged, (None, None)).unwrap_err();
    assert!(
        matches!(error.reason(), "broken" | "no_audio_track" | "undecodable_audio" | "unsupported_codec"),
        "{error}"
    );
}

#[test]
fn limits_hold_and_damage_is_told() {
    let name = path("s16_stereo_44k.wav");
    let index = index_audio(&name, &Limits::default()).unwrap();
    let tight = Limits { max_decoded_bytes: 1000, ..Limits::default() };
    assert_eq!(decode_audio(&index, (None, None), &tight).unwrap_err().reason(), "too_large");
    let short = Limits { max_duration_s: 0.05, ..Limits::default() };
    assert_eq!(index_audio(&name, &short).unwrap_err().reason(), "too_large");
    assert_eq!(decode_audio(&index, (None, None), &short).unwrap_err().reason(), "too_large");

    // Half of a FLAC file: what is there comes out, and the loss is told or refused, never passed over.
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.mp4");
    let whole = std::fs::read(path("clip_aac.mp4")).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    match decode(&cut, (None, None)) {
        Ok(track) => assert!(!track.warnings.is_empty()),
        Err(error) => assert!(matches!(error.reason(), "truncated" | "broken"), "{error}"),
    }
    let changed = folder.path().join("changed.wav");
    std::fs::copy(&name, &changed).unwrap();
    let index = index_audio(&changed, &Limits::default()).unwrap();
    std::fs::copy(path("mono_16k.wav"), &changed).unwrap();
    assert_eq!(decode_audio(&index, (None, None), &Limits::default()).unwrap_err().reason(), "changed");
}
