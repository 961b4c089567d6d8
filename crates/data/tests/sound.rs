//! Records with sound: from files and videos' own tracks to ids, labels, pixels and spectrograms, against what other programs make
//! of the same files (`tools/oracle/chat_egogpt.py`).

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};

use data::{
    DataError, EncodeOptions, Encoded, Format, MediaKind, MediaRef, MediaSource, Part, Processor, Role, Sample, Turn,
    collate, open_dataset,
};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn chat() -> PathBuf {
    fixtures().join("models/egogpt_chat")
}

fn sound(name: &str) -> PathBuf {
    fixtures().join("media/sounds").join(name)
}

fn options() -> EncodeOptions {
    EncodeOptions { num_frames: Some(2), ..EncodeOptions::default() }
}

fn samples() -> Vec<Sample> {
    let set = open_dataset(&chat().join("records.json"), Format::Auto, Some(&fixtures())).unwrap();
    (0..set.len()).map(|i| set.get(i).unwrap()).collect()
}

/// One record of a file in memory.
fn read(record: &Value) -> Result<Sample, DataError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    std::fs::write(&path, json!([record]).to_string()).unwrap();
    open_dataset(&path, Format::Auto, Some(&fixtures()))?.get(0)
}

fn question(parts: Vec<Part>) -> Sample {
    Sample::new("x", vec![Turn { role: Role::User, parts }, Turn::text(Role::Assistant, "yes")])
}

#[test]
fn records_are_what_the_reference_makes_of_them() {
    let processor = Processor::load(&chat()).unwrap();
    let tensors = hub::SafeTensors::open(chat().join("expected.safetensors")).unwrap();
    let ints = |name: String| -> Vec<i64> {
        let view = tensors.get(&name).unwrap();
        view.data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let floats = |name: String| -> Vec<f32> {
        let view = tensors.get(&name);
        let data = view.map_or(&[][..], |view| view.data);
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let mut num_windows = 0;
    for (i, sample) in samples().iter().enumerate() {
        let place = &sample.id;
        let encoded = processor.encode(sample, &options()).unwrap_or_else(|e| panic!("{place}: {e}"));
        let ids: Vec<i64> = encoded.ids.iter().map(|&id| i64::from(id)).collect();
        let labels: Vec<i64> = encoded.labels.iter().map(|&label| i64::from(label)).collect();
        assert_eq!(ids, ints(format!("sample{i}.input_ids")), "{place}: {}", encoded.text);
        assert_eq!(labels, ints(format!("sample{i}.labels")), "{place}");
        assert_eq!(encoded.pixels, floats(format!("sample{i}.pixel_values")), "{place}: pixels");
        let mel = floats(format!("sample{i}.mel"));
        assert_eq!(encoded.mel.len(), mel.len(), "{place}");
        // Samples agree to 2e-7, and a quiet frequency of 1e-8 of the loudest shows that of its amplitude: 1e-3 of it, and a
        // quarter of its logarithm.
        let off = encoded.mel.iter().zip(&mel).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off < 1e-4, "{place}: spectrograms are off by {off}");
        let token = processor.audio_token_id().unwrap();
        let rows: Vec<u32> = (0..).zip(&encoded.ids).filter(|(_, id)| **id == token).map(|(row, _)| row).collect();
        assert_eq!(encoded.speech_rows, rows, "{place}");
        assert_eq!(encoded.heard.iter().map(|h| h.num_tokens).sum::<usize>(), rows.len(), "{place}");
        num_windows += encoded.heard.iter().map(|h| h.num_windows).sum::<usize>();
        // What is planned before decoding is what comes out.
        assert_eq!(processor.measure(sample, &options()).unwrap(), encoded.size(), "{place}");
    }
    assert!(num_windows > 6, "{num_windows}");
}

#[test]
fn packed_records_keep_their_sound_in_the_order_of_the_text() {
    let processor = Processor::load(&chat()).unwrap();
    let records: Vec<Encoded> =
        samples().iter().rev().map(|sample| processor.encode(sample, &options()).unwrap()).collect();
    let batch = collate(&records).unwrap();
    assert_eq!(batch.mel_shape, [12, 20]);
    let joined: Vec<f32> = records.iter().flat_map(|record| record.mel.clone()).collect();
    assert_eq!(batch.mel, joined);
    let token = processor.audio_token_id().unwrap();
    assert!(batch.speech_rows.iter().all(|&row| batch.ids[row as usize] == token));
    assert_eq!(batch.speech_rows.len(), batch.ids.iter().filter(|&&id| id == token).count());
}

#[test]
fn one_window_more_or_less_shows_in_the_tokens() {
    let processor = Processor::load(&chat()).unwrap();
    let tokens = |name: &str| {
        let part = Part::Media(MediaRef::audio(sound(name)));
        let encoded = processor.encode(&question(vec![part, Part::Text("What?".into())]), &options()).unwrap();
        (encoded.heard[0].num_windows, encoded.speech_rows.len(), encoded.mel.len())
    };
    // Windows of 3200 samples, two tokens each.
    assert_eq!(tokens("mono_16k.wav"), (1, 2, 240));
    assert_eq!(tokens("clip_aac.mp4"), (3, 6, 720));
    assert_eq!(tokens("tagged_22k.mp3"), (1, 2, 240));
    assert_eq!(tokens("vorbis_44k.ogg"), (1, 2, 240));
}

#[test]
fn every_format_names_sound() {
    let path = |name: &str| MediaSource::Path(fixtures().join("media/sounds").join(name));
    let media = |record: &Value| -> Vec<(MediaKind, MediaSource)> {
        read(record).unwrap().media().map(|m| (m.kind, m.source.clone())).collect()
    };
    let answer = json!({"role": "assistant", "content": "yes"});
    let (wav, mp4) = ("media/sounds/mono_16k.wav", "media/sounds/clip_aac.mp4");
    let parts = json!({"messages": [{"role": "user", "content": [{"type": "audio", "audio": wav}, {"type": "text", "text": "?"},
        {"type": "audio_url", "audio_url": {"url": "https://example.org/a.mp3"}}]}, answer]});
    assert_eq!(
        media(&parts),
        [
            (MediaKind::Audio, path("mono_16k.wav")),
            (MediaKind::Audio, MediaSource::Url("https://example.org/a.mp3".into()))
        ]
    );
    let beside =
        json!({"messages": [{"role": "user", "content": "<audio><video>?"}, answer], "audios": [wav], "videos": [mp4]});
    assert_eq!(media(&beside), [(MediaKind::Audio, path("mono_16k.wav")), (MediaKind::Video, path("clip_aac.mp4"))]);
    let bare = json!({"video": mp4, "num_frames": 2, "video_start": 0.1, "video_end": 0.3, "conversation": [
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "audio"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]});
    let sample = read(&bare).unwrap();
    let last = sample.media().last().unwrap();
    assert_eq!((last.kind, last.start, last.end, last.nframes), (MediaKind::Audio, Some(0.1), Some(0.3), None));
    // A video's own track, over the same part of it.
    let own = json!({"video": mp4, "video_start": 0.1, "video_end": 0.3, "conversations": [
        {"from": "human", "value": "<speech>\n<video>?"}, {"from": "gpt", "value": "yes"}]});
    let sample = read(&own).unwrap();
    let first = sample.media().next().unwrap();
    assert_eq!((first.kind, first.start, first.end), (MediaKind::Audio, Some(0.1), Some(0.3)));
    let processor = Processor::load(&chat()).unwrap();
    let seconds = processor.encode(&sample, &options()).unwrap().heard[0].seconds;
    assert!((seconds - 0.2).abs() < 1e-9, "{seconds}");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let dialogue = |text: &str| json!([{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}]);
    let (wav, mp4) = ("media/sounds/mono_16k.wav", "media/sounds/clip_aac.mp4");
    let refused = |record: Value, expected: &str| {
        let error = read(&record).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(
        json!({"audio": wav, "conversations": dialogue("What?")}),
        "the number of `<speech>` placeholders is not the number of pieces of sound",
    );
    refused(
        json!({"audio": wav, "conversations": dialogue("<speech><speech>What?")}),
        "expected 1 (the pieces of sound of the record)",
    );
    refused(json!({"conversations": dialogue("<speech>What?")}), "is not the number of pieces of sound");
    refused(
        json!({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA=="}}]},
            {"role": "assistant", "content": "yes"}]}),
        "name a file or an address in a part of type `audio`",
    );
    refused(json!({"audio_path": wav, "conversations": dialogue("What?")}), "did you mean `audio`");

    let processor = Processor::load(&chat()).unwrap();
    let encode = |sample: &Sample| processor.encode(sample, &options()).err().unwrap().to_string();
    let heard = |name: PathBuf| question(vec![Part::Media(MediaRef::audio(name)), Part::Text("?".into())]);
    let error = encode(&heard(fixtures().join("media/clips/h264_small.mp4")));
    assert!(error.contains("no audio track"), "{error}");
    let error = encode(&heard(sound("missing.wav")));
    assert!(error.contains("no such file"), "{error}");
    let listed = read(
        &json!({"video": ["data/images/0.png", "data/images/1.png"], "conversations": dialogue("<speech><video>?")}),
    );
    let error = encode(&listed.unwrap());
    assert!(error.contains("a list of frames has no sound"), "{error}");
    // A placeholder in the words is no sound.
    let error = encode(&question(vec![Part::Text("What is `<speech>`?".into())]));
    assert!(error.contains("write `<speech>` nowhere but where a piece of sound stands"), "{error}");
    // Sound for a model that takes none.
    let deaf = Processor::load(&fixtures().join("models/llava_siglip_qwen2")).unwrap();
    let own = read(&json!({"video": mp4, "conversations": dialogue("<speech>\n<image>?")})).unwrap();
    let error = deaf.encode(&own, &options()).err().unwrap().to_string();
    assert!(error.contains("the record has sound, and the checkpoint takes none"), "{error}");
}

#[test]
fn still_pictures_are_refused_where_they_would_be_cut_into_tiles() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(chat().join(file), dir.path().join(file)).unwrap();
    }
    let mut config: Value = hub::json::read_json(chat().join("config.json")).unwrap();
    config["image_aspect_ratio"] = "anyres_max_9".into();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let tiled = Processor::load(dir.path()).unwrap();
    let still = question(vec![Part::Media(MediaRef::image(fixtures().join("data/images/2.png")))]);
    let error = tiled.encode(&still, &options()).err().unwrap().to_string();
    assert!(error.contains("`image_aspect_ratio: anyres_max_9` of this family is not built"), "{error}");
    // Clips are never cut.
    let clip = question(vec![Part::Media(MediaRef::video(sound("clip_aac.mp4")))]);
    assert_eq!(tiled.encode(&clip, &options()).unwrap().image_rows.len(), 2 * 4 + 1);
}

#[test]
fn sound_has_a_folder_of_its_own_where_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    let dialogue = json!([{"from": "human", "value": "<speech><video>?"}, {"from": "gpt", "value": "yes"}]);
    std::fs::write(&path, json!([{"audio": "a.mp3", "video": "v.mp4", "conversations": dialogue}]).to_string())
        .unwrap();
    let set = open_dataset(&path, Format::Auto, Some(Path::new("/videos"))).unwrap();
    let sources = |set: &data::Dataset| -> Vec<MediaSource> {
        set.get(0).unwrap().media().map(|medium| medium.source.clone()).collect()
    };
    let expected = |audio: &str| [MediaSource::Path(audio.into()), MediaSource::Path("/videos/v.mp4".into())];
    assert_eq!(sources(&set), expected("/videos/a.mp3"));
    let set = set.with_audio_dir(Some(Path::new("/sounds")));
    assert_eq!(sources(&set), expected("/sounds/a.mp3"));
}
