//! Scaled pictures equal Pillow's and torchvision's, byte for byte (`tools/oracle/media_resize.py`).

use crate::common::{json, sha256};
use media::RgbImage;
use media::resize::{Filter, PassOrder, pillow, pillow_ordered, torchvision};

/// The generator's pictures.
fn source(width: u32, height: u32, kind: u64) -> RgbImage {
    let num_bytes = u64::from(width) * u64::from(height) * 3;
    let data = (0..num_bytes).map(|index| {
        let noise = (index * 2_654_435_761 + 12_345) % (1 << 32);
        let noise = (noise ^ (noise >> 15)) * 2_246_822_519 % (1 << 32);
        let noise = ((noise ^ (noise >> 13)) >> 16) & 255;
        let (x, y) = (index / 3 % u64::from(width), index / 3 / u64::from(width));
        let is_light = (x / 5 + y / 3) % 2;
        match kind {
            0 => noise as u8,
            1 => u8::from(noise > 127) * 255,
            _ => ((x * 3 + y * 5 + index % 3 * 40) % 256 * (1 - is_light) + is_light * 255) as u8,
        }
    });
    RgbImage { width, height, data: data.collect() }
}

fn filter(name: &str) -> Filter {
    match name {
        "nearest" => Filter::Nearest,
        "bilinear" => Filter::Bilinear,
        "bicubic" => Filter::Bicubic,
        "lanczos" => Filter::Lanczos,
        "box" => Filter::Box,
        "hamming" => Filter::Hamming,
        _ => panic!("{name}"),
    }
}

fn check(name: &str, scale: impl Fn(&RgbImage, u32, u32, Filter) -> RgbImage) {
    let expected = json(name);
    for kind in 0..3 {
        assert_eq!(sha256(&source(19, 7, kind)), expected["source_19x7"][kind.to_string()].as_str().unwrap());
    }
    let cases = expected["cases"].as_array().unwrap();
    assert!(cases.len() > 400);
    let mut wrong = Vec::new();
    for case in cases {
        let number = |i: usize| case[i].as_u64().unwrap();
        let image = source(number(0) as u32, number(1) as u32, number(2));
        let (width, height) = (number(3) as u32, number(4) as u32);
        let out = scale(&image, width, height, filter(case[5].as_str().unwrap()));
        assert_eq!((out.width, out.height), (width, height));
        if sha256(&out) != case[6].as_str().unwrap() {
            wrong.push(case.to_string());
        }
    }
    assert!(
        wrong.is_empty(),
        "{name}: {} of {} differ:\n{}",
        wrong.len(),
        cases.len(),
        wrong[..20.min(wrong.len())].join("\n")
    );
}

#[test]
fn pillow_12_bytes() {
    check("resize_pillow12.json", pillow);
}

#[test]
fn pillow_13_bytes() {
    check("resize_pillow13.json", |image, width, height, filter| {
        pillow_ordered(image, width, height, filter, PassOrder::Pillow13)
    });
}

#[test]
fn torchvision_bytes() {
    check("resize_torchvision.json", torchvision);
}
