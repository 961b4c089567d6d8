//! Folders and lists of frames, PNG writing, requests that make no sense.

use media::{
    FrameCount, FrameRule, Limits, RgbImage, SampleSpec, encode_png, list_frame_folder, load_frame_files, load_image,
    sample_indices, write_png,
};

use crate::common::fixture;

fn noise(width: u32, height: u32) -> RgbImage {
    let data = (0..width * height * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    RgbImage::from_rgb(width, height, data).unwrap()
}

#[test]
fn written_pngs_come_back() {
    let folder = tempfile::tempdir().unwrap();
    for (width, height) in [(1, 1), (7, 3), (64, 48), (301, 2)] {
        let path = folder.path().join(format!("{width}x{height}.png"));
        let image = noise(width, height);
        write_png(&path, &image).unwrap();
        assert!(load_image(&path, &Limits::default()).unwrap() == image);
        assert_eq!(std::fs::read(&path).unwrap(), encode_png(&image).unwrap());
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4, "no temporary file is left");
    let error = write_png(&folder.path().join("none/a.png"), &noise(2, 2)).unwrap_err();
    assert_eq!(error.reason(), "encode");
    assert!(RgbImage::from_rgb(2, 2, vec![0; 11]).is_err() && RgbImage::from_rgb(0, 2, vec![]).is_err());
}

#[test]
fn a_folder_is_its_pictures_in_name_order() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        std::fs::copy(fixture("images").join(from), folder.path().join(to)).unwrap();
    };
    copy("rgb8.png", "b.png");
    copy("grey.jpg", "a10.JPG");
    copy("grey.jpg", "a2.jpg");
    copy("rgb.bmp", "c");
    copy("rgb.bmp", ".hidden.bmp");
    std::fs::write(folder.path().join("notes.txt"), "no picture").unwrap();
    std::fs::create_dir(folder.path().join("sub.png")).unwrap();
    let files = list_frame_folder(folder.path()).unwrap();
    let names: Vec<_> = files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["a10.JPG", "a2.jpg", "b.png", "c"]);
    let frames = load_frame_files(&files, &[3, 0, 3], 4.0, &Limits::default()).unwrap();
    let found: Vec<_> = frames.iter().map(|frame| (frame.index, frame.seconds, frame.image.width)).collect();
    assert_eq!(found, [(3, 0.75, 13), (0, 0.0, 50), (3, 0.75, 13)]);

    // A broken picture stays in the list, and is an error when it is wanted.
    std::fs::write(folder.path().join("a3.jpg"), "").unwrap();
    let files = list_frame_folder(folder.path()).unwrap();
    assert_eq!(files.len(), 5);
    let error = load_frame_files(&files, &[0, 1, 2], 4.0, &Limits::default()).unwrap_err();
    assert_eq!(error.reason(), "empty_file");
    for (indices, fps) in [(&[5usize][..], 4.0), (&[0], 0.0), (&[0], f64::NAN)] {
        assert_eq!(load_frame_files(&files, indices, fps, &Limits::default()).unwrap_err().reason(), "bad_request");
    }
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(list_frame_folder(empty.path()).unwrap_err().reason(), "no_frames");
    assert_eq!(list_frame_folder(&fixture("images.json")).unwrap_err().reason(), "bad_request");
    assert_eq!(list_frame_folder(&empty.path().join("gone")).unwrap_err().reason(), "missing_file");
}

#[test]
fn impossible_requests_are_refused_in_words() {
    let refused =
        |total: usize, fps: f64, spec: SampleSpec| sample_indices(total, fps, &[], &spec).unwrap_err().to_string();
    let plain = |count| SampleSpec::new(FrameRule::Transformers, count);
    assert_eq!(
        refused(5, 30.0, plain(FrameCount::Num(6))),
        "bad request: 6 frames are wanted and the clip has 5; hint: lower `num_frames` or `fps`"
    );
    assert_eq!(refused(5, 30.0, plain(FrameCount::Num(0))), "bad request: 0 frames are wanted");
    assert_eq!(refused(0, 30.0, plain(FrameCount::All)), "bad request: the clip has no frames");
    assert_eq!(refused(5, 30.0, plain(FrameCount::Fps(-1.0))), "bad request: -1 frames a second are wanted");
    assert_eq!(
        refused(5, 0.0, plain(FrameCount::Fps(1.0))),
        "bad request: the clip's rate is 0; hint: ask for a number of frames instead"
    );
    // Rules that repeat frames have no bound in the clip.
    for rule in ["transformers", "qwen2_vl", "qwen3_vl", "qwen_vl_utils", "stride", "segments"] {
        let rule: FrameRule = rule.parse().unwrap();
        for wanted in [99_999_999_999, usize::MAX] {
            assert_eq!(
                refused(5, 30.0, SampleSpec::new(rule, FrameCount::Num(wanted))),
                format!("bad request: {wanted} frames are wanted and at most 1048576 are given; hint: ask for fewer")
            );
            let spec = SampleSpec { min_frames: Some(wanted), ..SampleSpec::new(rule, FrameCount::Fps(1.0)) };
            assert!(refused(5, 30.0, spec).contains("at most 1048576"));
        }
    }
    assert!(refused(5, 30.0, SampleSpec::new(FrameRule::Segments, FrameCount::Fps(1e18))).contains("at most 1048576"));
    let spec = SampleSpec { start: Some(f64::NAN), ..plain(FrameCount::Num(2)) };
    assert_eq!(refused(5, 30.0, spec), "bad request: the part of the clip has the start NaN; hint: give it in seconds");
    let spec = SampleSpec { start: Some(2.0), ..SampleSpec::new(FrameRule::QwenVlUtils, FrameCount::Num(2)) };
    assert_eq!(
        refused(30, 30.0, spec),
        "bad request: no frames from 2 s to its end: the clip has 30 frames at 30 a second"
    );
    assert_eq!(
        "uniform".parse::<FrameRule>().unwrap_err().to_string(),
        "bad request: frame rule `uniform` is not known; hint: one of transformers, qwen2_vl, qwen3_vl, qwen_vl_utils, \
         stride, segments"
    );
}

#[test]
fn ranges_go_by_real_times() {
    let seconds = [0.0, 0.1, 0.5, 0.52, 1.75, 2.0, 4.0];
    let spec = |start, end| SampleSpec { start, end, ..SampleSpec::new(FrameRule::Stride, FrameCount::All) };
    let chosen = |start, end| sample_indices(7, 1.75, &seconds, &spec(start, end));
    assert_eq!(chosen(Some(0.5), None).unwrap(), [2, 3, 4, 5, 6]);
    assert_eq!(chosen(Some(0.11), Some(1.75)).unwrap(), [2, 3, 4]);
    assert_eq!(chosen(None, Some(0.0)).unwrap(), [0]);
    assert!(chosen(Some(2.1), Some(3.9)).is_err());
    let three = SampleSpec { count: FrameCount::Num(3), ..spec(Some(0.1), Some(2.0)) };
    assert_eq!(sample_indices(7, 1.75, &seconds, &three).unwrap(), [1, 3, 5]);
}

#[test]
fn jitter_stays_in_its_segment_and_repeats() {
    let spec = |jitter| SampleSpec { jitter, ..SampleSpec::new(FrameRule::Segments, FrameCount::Num(16)) };
    let chosen = |total: usize, jitter| sample_indices(total, 30.0, &[], &spec(jitter)).unwrap();
    let mut distinct = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let indices = chosen(301, Some(seed));
        assert_eq!(indices, chosen(301, Some(seed)));
        for (i, &index) in indices.iter().enumerate() {
            assert!((i * 301 / 16..(i + 1) * 301 / 16).contains(&index), "{i} {index}");
        }
        distinct.insert(indices);
    }
    assert_eq!(distinct.len(), 50);
    // Fewer frames than segments: the middles, which repeat in order.
    assert_eq!(chosen(4, Some(3)), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]);
}
