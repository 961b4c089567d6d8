//! Checkpoints with encoders of their own for images and clips, and in LLaVA's original layout: text, ids with the
//! placeholders -200 and -300, labels, pixel values and grids against the reference of `tools/oracle/encoders_ref.py`.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};

use data::{EncodeOptions, Encoded, Format, Processor, Role, VisualKind, collate, open_dataset};
use hub::SafeTensors;
use serde_json::Value;

const FOLDERS: [&str; 7] = [
    "encoders_llama",
    "encoders_qwen2_tied",
    "encoders_phi3",
    "encoders_qwen3_clips",
    "original_llama",
    "original_qwen",
    "original_mistral",
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn i64s(file: &SafeTensors, name: &str) -> Vec<i64> {
    let view = file.get(name).unwrap();
    view.data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

fn encoded(name: &str, index: u64) -> Encoded {
    let dir = folder(name);
    let dataset = open_dataset(&dir.join("samples.json"), Format::Auto, None).unwrap();
    let processor = Processor::load(&dir).unwrap();
    processor.encode(&dataset.get(index).unwrap(), &EncodeOptions::default()).unwrap()
}

#[test]
fn text_ids_labels_and_pixels_are_those_of_the_reference() {
    for name in FOLDERS {
        let dir = folder(name);
        let info = json(&dir.join("expected.json"));
        let expected = SafeTensors::open(dir.join("expected.safetensors")).unwrap();
        for (index, stored) in info["samples"].as_array().unwrap().iter().enumerate() {
            let place = format!("{name}, sample {index}");
            let ours = encoded(name, index as u64);
            assert_eq!(ours.text, stored["text"].as_str().unwrap(), "text of {place}");
            let ids: Vec<i64> = ours.ids.iter().map(|&id| i64::from(id as i32)).collect();
            assert_eq!(ids, i64s(&expected, &format!("sample{index}.input_ids")), "ids of {place}");
            let labels: Vec<i64> = ours.labels.iter().map(|&l| i64::from(l)).collect();
            assert_eq!(labels, i64s(&expected, &format!("sample{index}.labels")), "labels of {place}");
            let rows: Vec<u32> = (0..ids.len() as u32).filter(|&row| ids[row as usize] < 0).collect();
            assert_eq!(ours.image_rows, rows, "rows of {place}");
            let visuals = stored["visuals"].as_array().unwrap();
            assert_eq!(ours.visuals.len(), visuals.len(), "media of {place}");
            for (ours, theirs) in ours.visuals.iter().zip(visuals) {
                assert_eq!(ours.kind == VisualKind::Video, theirs["is_video"].as_bool().unwrap());
                let grid: Vec<usize> =
                    theirs["grid"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
                assert_eq!(ours.grid.as_slice(), grid, "grid of {place}");
            }
            let view = expected.get(&format!("sample{index}.pixel_values"));
            let values = view.map_or_else(Vec::new, |view| view.data.chunks_exact(4).map(<[u8]>::to_vec).collect());
            assert_eq!(values.len(), ours.pixels.len(), "{place}");
            let off = values.iter().zip(&ours.pixels).filter(|(a, b)| a.as_slice() != b.to_le_bytes()).count();
            assert_eq!(off, 0, "pixel values of {place}");
            let batch = collate(std::slice::from_ref(&ours)).unwrap();
            assert_eq!(batch.num_supervised() as u64, stored["num_supervised"].as_u64().unwrap(), "{place}");
        }
    }
}

#[test]
fn every_folder_of_the_layout_is_tested() {
    let mut found: Vec<String> = std::fs::read_dir(folder(""))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("encoders_") || name.starts_with("original_"))
        .collect();
    found.sort();
    let mut known = FOLDERS.to_vec();
    known.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn a_prompt_ends_where_the_answer_begins() {
    for name in FOLDERS {
        let dir = folder(name);
        let processor = Processor::load(&dir).unwrap();
        let dataset = open_dataset(&dir.join("samples.json"), Format::Auto, None).unwrap();
        for case in json(&dir.join("expected.json"))["greedy"].as_array().unwrap() {
            let mut sample = dataset.get(case["sample"].as_u64().unwrap()).unwrap();
            let first = sample.conversation.iter().position(|t| t.role == Role::Assistant).unwrap();
            sample.conversation.truncate(first);
            let options = EncodeOptions { add_generation_prompt: true, ..EncodeOptions::default() };
            let ours = processor.encode(&sample, &options).unwrap();
            let ids: Vec<u64> = case["input_ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
            assert_eq!(ours.ids.iter().map(|&i| u64::from(i)).collect::<Vec<_>>(), ids, "{name}");
        }
    }
}

/// Images of one size and frames of another in one record and one batch, back to the bytes that were normalised.
#[test]
fn pictures_come_back_by_their_kind_and_change_places() {
    let processor = Processor::load(&folder("encoders_llama")).unwrap();
    let mut ours = encoded("encoders_llama", 0);
    let sizes: Vec<(u32, u32)> = processor.pictures(&ours).iter().map(|p| (p.width, p.height)).collect();
    assert_eq!(sizes, [(20, 20), (20, 20), (20, 20), (28, 28)]);
    let before = processor.pictures(&ours);
    processor.reorder_pictures(&mut ours, &[2, 1, 0, 3]);
    let after = processor.pictures(&ours);
    assert!(before[0] == after[2] && before[3] == after[3] && before[0] != after[0]);
    let batch = collate(&[encoded("encoders_llama", 0), encoded("encoders_llama", 3)]).unwrap();
    assert_eq!((batch.num_images, batch.pixel_shape.as_slice()), (6, [1].as_slice()));
    assert_eq!(batch.pixels.len(), 3 * (3 * 20 * 20 + 3 * 28 * 28));
}

/// A pickled checkpoint beside its tower: settings are the tower's, and go with the processor that is saved.
#[test]
fn a_tower_that_is_named_brings_its_settings() {
    let dir = folder("original_llama");
    let processor = Processor::load(&dir.join("parts/original")).unwrap();
    let dataset = open_dataset(&dir.join("samples.json"), Format::Auto, None).unwrap();
    let sample = dataset.get(0).unwrap();
    let of = |processor: &Processor| processor.encode(&sample, &EncodeOptions::default()).unwrap();
    assert_eq!(of(&processor), encoded("original_llama", 0));
    let out = tempfile::tempdir().unwrap();
    processor.save_to(out.path()).unwrap();
    std::fs::copy(dir.join("config.json"), out.path().join("config.json")).unwrap();
    assert_eq!(of(&Processor::load(out.path()).unwrap()), encoded("original_llama", 0));
}

#[test]
fn what_has_no_encoder_is_refused() {
    let dir = folder("encoders_qwen3_clips");
    let processor = Processor::load(&dir).unwrap();
    let dataset = open_dataset(&folder("encoders_llama").join("samples.json"), Format::Auto, None).unwrap();
    let error = processor.encode(&dataset.get(3).unwrap(), &EncodeOptions::default()).unwrap_err().to_string();
    assert!(error.contains("the record has an image, and the checkpoint has no encoder for it"), "{error}");
    assert!(error.contains("join one with `model.image_tower`"), "{error}");
}

/// A clip is cut into as many segments as the checkpoint says, and gives the middle of each.
#[test]
fn the_number_of_segments_is_the_checkpoints() {
    let clip = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/media/clips/h264_small.mp4");
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("d.json");
    let record = serde_json::json!([{"id": "a", "video": clip, "conversations": [
        {"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "Two."}]}]);
    std::fs::write(&file, record.to_string()).unwrap();
    let dataset = open_dataset(&file, Format::Auto, None).unwrap();
    let processor = Processor::load(&folder("encoders_qwen2_tied")).unwrap();
    let of = |options: EncodeOptions| processor.encode(&dataset.get(0).unwrap(), &options).unwrap();
    let whole = of(EncodeOptions::default());
    assert_eq!(whole.visuals[0].grid, [8, 3, 3]);
    assert_eq!((whole.visuals[0].num_tokens, whole.num_images), (8 * 10, 8));
    assert!(whole.text.contains("<video>\nWhat?"), "{}", whole.text);
    // Fewer frames where the record would be too long: whole frames go.
    let short = of(EncodeOptions { max_length: Some(whole.ids.len() - 1), ..EncodeOptions::default() });
    assert_eq!((short.visuals[0].grid[0], short.ids.len()), (7, whole.ids.len() - 10));
    let asked = of(EncodeOptions { num_frames: Some(2), ..EncodeOptions::default() });
    assert_eq!(asked.visuals[0].grid[0], 2);
}
