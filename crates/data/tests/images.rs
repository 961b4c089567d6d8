//! Image processors of `fixtures/data/images`: values against `transformers`, bit for bit.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::path::{Path, PathBuf};

use data::{EncodeOptions, ImageBackend, MediaRef, Part, Processor, Role, Sample, Turn};
use hub::SafeTensors;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/data")
}

/// A checkpoint folder with the given picture settings.
fn checkpoint(settings: &Value) -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    let from = fixtures().join("text/generation_blocks");
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, temp.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(temp.path().join("preprocessor_config.json"), settings.to_string()).unwrap();
    temp
}

/// Compares every picture; the first three sizes only where the processor keeps the size of the picture.
fn check(name: &str) {
    let all: Value =
        serde_json::from_str(&std::fs::read_to_string(fixtures().join("images/processors.json")).unwrap()).unwrap();
    let processor = &all["processors"][name];
    let expected = SafeTensors::open(fixtures().join("images/expected.safetensors")).unwrap();
    let backend = if processor["backend"] == "pillow" { ImageBackend::Pillow } else { ImageBackend::Torchvision };
    for form in ["saved", "short"] {
        let dir = checkpoint(&processor[form]);
        let loaded = Processor::load(dir.path()).unwrap().with_image_backend(backend);
        for picture in 0..all["sizes"].as_array().unwrap().len() {
            let path = fixtures().join(format!("images/{picture}.png"));
            let question = Turn { role: Role::User, parts: vec![Part::Media(MediaRef::image(path))] };
            let sample = Sample::new("x", vec![question, Turn::text(Role::Assistant, "yes")]);
            let encoded = loaded.encode(&sample, &EncodeOptions::default()).unwrap();
            let want = expected.get(&format!("{name}.{picture}")).unwrap();
            assert_eq!(want.shape.to_vec(), encoded.pixel_shape, "{name} ({form}), picture {picture}");
            let values: Vec<f32> =
                want.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let differing = values.iter().zip(&encoded.pixels).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert_eq!(differing, 0, "values of {name} ({form}), picture {picture}");
            let [height, width] = [encoded.pixel_shape[1], encoded.pixel_shape[2]];
            assert_eq!(encoded.image_rows.len(), (height / 8) * (width / 8));
        }
    }
}

#[test]
fn clip() {
    for name in ["clip_shortest_crop", "clip_crop_larger", "clip_int_size", "clip_bounded", "clip_no_resize"] {
        check(name);
    }
}

#[test]
fn siglip() {
    for name in [
        "siglip",
        "siglip_oblong_bilinear",
        "siglip_no_normalize",
        "siglip_no_rescale",
        "siglip_odd_factor",
        "siglip_bytes",
    ] {
        check(name);
    }
}

#[test]
fn padding_to_a_square() {
    check("llava_pad_square");
    check("pil_llava_pad_square");
}

#[test]
fn pillow_scaling() {
    for name in ["pil_clip", "pil_clip_crop_larger", "pil_siglip_no_normalize", "pil_siglip"] {
        check(name);
    }
}

#[test]
fn settings_that_are_not_supported_are_refused_by_name() {
    let refused = |settings: &str| {
        let dir = checkpoint(&serde_json::from_str(settings).unwrap());
        let text = Processor::load(dir.path()).unwrap_err().to_string();
        text.split_once("preprocessor_config.json`: ").unwrap().1.to_owned()
    };
    assert_eq!(
        refused(r#"{"image_processor_type": "ViTImageProcessor"}"#),
        "image processor `ViTImageProcessor` is not supported; hint: supported are CLIPImageProcessor, SiglipImageProcessor, LlavaImageProcessor, LlavaNextImageProcessor, LlavaOnevisionImageProcessor and Qwen2VLImageProcessor"
    );
    assert_eq!(
        refused(r#"{"image_processor_type": "SiglipImageProcessor", "max_pixels": 4}"#),
        "`SiglipImageProcessor`: setting `max_pixels` is not supported; hint: remove the setting if it has no effect on pixel values"
    );
    assert_eq!(
        refused(r#"{"image_processor_type": "SiglipImageProcessor", "resample": 1}"#),
        "`resample: 1` is not supported; hint: supported are 2 and 3"
    );
    // A null says no to a flag; where a value is needed, a null or another type is no default.
    let with = |setting: &str| refused(&format!(r#"{{"image_processor_type": "SiglipImageProcessor", {setting}}}"#));
    let hint = "; hint: correct the setting, or remove it for the class's own";
    for (setting, expected) in [
        (r#""do_normalize": "true""#, "`do_normalize` must be true or false, found `\"true\"`"),
        (r#""do_rescale": 0"#, "`do_rescale` must be true or false, found `0`"),
        (r#""resample": "bilinear""#, "`resample` must be a filter's number, found `\"bilinear\"`"),
        (r#""resample": null"#, "`resample` must be a filter's number, found `null`"),
        (r#""rescale_factor": null"#, "`rescale_factor` must be a number above 0, found `null`"),
        (r#""image_mean": null"#, "`image_mean` must be three numbers, one a channel, found `null`"),
        (
            r#""image_std": [0.5, "x", 0.5, 0.5]"#,
            "`image_std` must be three numbers, one a channel, found `[0.5,\"x\",0.5,0.5]`",
        ),
    ] {
        assert_eq!(with(setting), format!("{expected}{hint}"));
    }
}

#[test]
fn a_null_flag_says_no() {
    let all: Value =
        serde_json::from_str(&std::fs::read_to_string(fixtures().join("images/processors.json")).unwrap()).unwrap();
    let pixels = |key: &str, value: Value| {
        let mut settings = all["processors"]["siglip"]["saved"].clone();
        settings[key] = value;
        let processor = Processor::load(checkpoint(&settings).path()).unwrap();
        let question =
            Turn { role: Role::User, parts: vec![Part::Media(MediaRef::image(fixtures().join("images/0.png")))] };
        let sample = Sample::new("x", vec![question, Turn::text(Role::Assistant, "yes")]);
        processor.encode(&sample, &EncodeOptions::default()).unwrap().pixels
    };
    for key in ["do_normalize", "do_rescale"] {
        assert_eq!(pixels(key, Value::Null), pixels(key, Value::Bool(false)), "{key}");
        assert_ne!(pixels(key, Value::Null), pixels(key, Value::Bool(true)), "{key}");
    }
}
