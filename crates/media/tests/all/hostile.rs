//! Broken and hostile files: each gives its own error, whose text a user can act on, and none costs memory or time.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use media::{Limits, MediaError, decode_frames, index_video, is_animated, is_image, is_video, load_image};

use crate::common::{fixture, json, sha256};

/// A file in a folder of its own.
struct Temporary {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn file(name: &str, bytes: &[u8]) -> Temporary {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    Temporary { _folder: folder, path }
}

fn clip(name: &str) -> Vec<u8> {
    std::fs::read(fixture("clips").join(name)).unwrap()
}

fn picture(name: &str) -> Vec<u8> {
    std::fs::read(fixture("images").join(name)).unwrap()
}

/// The error's reason and text, with the file's name in place of its path.
fn told(error: &MediaError) -> (&'static str, String) {
    let path = error.path().map(|path| path.display().to_string()).unwrap_or_default();
    let name = Path::new(&path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    (error.reason(), error.to_string().replace(&path, &name))
}

fn check_video(name: &str, bytes: &[u8], reason: &str, text: &str) {
    let file = file(name, bytes);
    let start = Instant::now();
    let error = index_video(&file.path, &Limits::default()).unwrap_err();
    assert_eq!(told(&error), (reason, text.to_string()));
    assert!(start.elapsed() < Duration::from_secs(2));
}

fn check_image(name: &str, bytes: &[u8], reason: &str, text: &str) {
    let file = file(name, bytes);
    let error = load_image(&file.path, &Limits::default()).unwrap_err();
    assert_eq!(told(&error), (reason, text.to_string()));
}

/// An MP4 box.
fn mp4_box(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut out = ((data.len() + 8) as u32).to_be_bytes().to_vec();
    out.extend_from_slice(name);
    out.extend_from_slice(data);
    out
}

/// Numbers, big-endian, one after the other.
fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

#[test]
fn scripts_that_name_other_files_are_text() {
    let playlist = b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n";
    let hint = "hint: convert it to mp4 or webm, or remove the record";
    check_video(
        "clip.mp4",
        playlist,
        "not_allowed_container",
        &format!("`clip.mp4`: an HLS playlist is not an allowed video container; {hint}"),
    );
    check_video(
        "clip.mp4",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "not_allowed_container",
        &format!("`clip.mp4`: an ffconcat script is not an allowed video container; {hint}"),
    );
    check_video(
        "clip.mp4",
        "just some text, kein Video: äöü".as_bytes(),
        "not_allowed_container",
        &format!("`clip.mp4`: a text file is not an allowed video container; {hint}"),
    );
    check_video(
        "clip.webm",
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "not_allowed_container",
        &format!("`clip.webm`: an HTML page is not an allowed video container; {hint}"),
    );
    check_video(
        "clip.mp4",
        b"\0\0\0\x1cftypavif\0\0\0\0",
        "not_allowed_container",
        &format!("`clip.mp4`: an AVIF picture is not an allowed video container; {hint}"),
    );
    check_video(
        "clip.mp4",
        &picture("grey.jpg"),
        "not_allowed_container",
        &format!("`clip.mp4`: a jpeg picture is not an allowed video container; {hint}"),
    );
    check_video(
        "clip.mp4",
        &[0x93; 4000],
        "not_allowed_container",
        &format!("`clip.mp4`: a file of unknown format is not an allowed video container; {hint}"),
    );
}

#[test]
fn things_that_are_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let error = index_video(folder.path(), &Limits::default()).unwrap_err();
    assert_eq!(error.reason(), "not_a_file");
    assert!(
        error.to_string().ends_with(": not a regular file; hint: a folder of frames must be given as frames"),
        "{error}"
    );
    assert_eq!(load_image(folder.path(), &Limits::default()).unwrap_err().reason(), "not_a_file");
    let error = index_video(&folder.path().join("gone.mp4"), &Limits::default()).unwrap_err();
    assert_eq!(
        told(&error),
        ("missing_file", "`gone.mp4`: no such file; hint: check the path and the media folder".into())
    );
    check_video("clip.mp4", b"", "empty_file", "`clip.mp4`: the file is empty; hint: download or copy it again");
    check_image("a.png", b"", "empty_file", "`a.png`: the file is empty; hint: download or copy it again");
    if cfg!(target_os = "linux") {
        assert_eq!(index_video(Path::new("/dev/zero"), &Limits::default()).unwrap_err().reason(), "not_a_file");
    }
}

#[test]
fn declared_samples_cost_nothing() {
    // One track of 80 million samples of one byte, in a few hundred bytes.
    let count = 80_000_000;
    let stsd_entry = {
        let mut entry = words(&[0, 1, 0, 0, 0, 0, 64 << 16 | 64, 0x48_0000, 0x48_0000, 0, 0x1_0000]);
        entry.extend([0; 34]);
        mp4_box(b"mp4v", &entry)
    };
    let stbl = [
        mp4_box(b"stsd", &[words(&[0, 1]), stsd_entry].concat()),
        mp4_box(b"stts", &words(&[0, 1, count, 1])),
        mp4_box(b"stsc", &words(&[0, 1, 1, count, 1])),
        mp4_box(b"stsz", &words(&[0, 1, count])),
        mp4_box(b"stco", &words(&[0, 1, 0])),
    ]
    .concat();
    let minf = mp4_box(b"minf", &mp4_box(b"stbl", &stbl));
    let hdlr = mp4_box(b"hdlr", &[words(&[0, 0]), b"vide".to_vec(), vec![0; 13]].concat());
    let mdhd = mp4_box(b"mdhd", &words(&[0, 0, 0, 30, count, 0]));
    let mdia = mp4_box(b"mdia", &[mdhd, hdlr, minf].concat());
    let moov = mp4_box(b"moov", &mp4_box(b"trak", &mdia));
    let bytes = [mp4_box(b"ftyp", b"isom\0\0\0\0isom"), moov, mp4_box(b"mdat", &[0; 64])].concat();
    assert!(bytes.len() < 1000);
    check_video(
        "clip.mp4",
        &bytes,
        "too_large",
        "`clip.mp4`: too large: max_packets is 80000000 (declared), the limit is 4000000; hint: make the file \
         smaller or shorter, or remove the record",
    );
}

#[test]
fn declared_fragments_cost_nothing() {
    let mut bytes = clip("h264_fragmented.mp4");
    let run = bytes.windows(4).position(|name| name == b"trun").unwrap();
    bytes[run + 8..run + 12].copy_from_slice(&80_000_000u32.to_be_bytes());
    check_video(
        "clip.mp4",
        &bytes,
        "too_large",
        "`clip.mp4`: too large: max_packets is 80000000 (declared), the limit is 4000000; hint: make the file \
         smaller or shorter, or remove the record",
    );
    let many = [mp4_box(b"ftyp", b"isom\0\0\0\0isom"), mp4_box(b"free", b"").repeat(400_001)].concat();
    check_video(
        "clip.mp4",
        &many,
        "broken",
        "`clip.mp4`: broken mp4 file: it has more than 400000 boxes; hint: the file is damaged or incomplete, get it again",
    );
}

#[test]
fn a_gif_of_35_bytes_gets_no_gigabyte() {
    let mut gif = b"GIF89a".to_vec();
    gif.extend(16000u16.to_le_bytes());
    gif.extend(16000u16.to_le_bytes());
    gif.extend([0x80, 0, 0, 0, 0, 0, 255, 255, 255, 0x2c, 0, 0, 0, 0]);
    gif.extend(16000u16.to_le_bytes());
    gif.extend(16000u16.to_le_bytes());
    gif.extend([0, 2, 2, 0x44, 0x01, 0, 0x3b]);
    assert_eq!(gif.len(), 35);
    let text = "`a.gif`: too large: max_pixels is 16000x16000, the limit is 67108864; hint: remove the record, or raise \
                `data.limits.max_pixels` in the plan";
    check_video("a.gif", &gif, "too_large", text);
    check_image("a.gif", &gif, "too_large", text);
}

#[test]
fn decompression_bombs_are_told_by_their_headers() {
    // The size stands in the header; the data behind it need not even be there.
    let mut png = picture("rgb8.png");
    png[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let mut checked = png[12..29].to_vec();
    let sum = crc32(&checked);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    checked.clear();
    let large = |name: &str, size: &str| {
        format!(
            "`{name}`: too large: max_pixels is {size}, the limit is 67108864; hint: remove the record, \
             or raise `data.limits.max_pixels` in the plan"
        )
    };
    check_image("a.png", &png, "too_large", &large("a.png", "60000x60000"));

    let mut jpeg = picture("quality50.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    check_image("a.jpg", &jpeg, "too_large", &large("a.jpg", "65535x65535"));

    let mut bmp = picture("rgb.bmp");
    bmp[18..22].copy_from_slice(&100_000i32.to_le_bytes());
    bmp[22..26].copy_from_slice(&(-100_000i32).to_le_bytes());
    check_image("a.bmp", &bmp, "too_large", &large("a.bmp", "100000x100000"));

    // Inside the pixels' limit, and over the bytes': 16 bits, four channels.
    let mut png = picture("rgba16.png");
    png[16..20].copy_from_slice(&8_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&8_000u32.to_be_bytes());
    let sum = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    check_image(
        "a.png",
        &png,
        "too_large",
        "`a.png`: too large: max_alloc_bytes is 512000000 bytes for the pixels, the limit is 268435456; hint: make the file \
         smaller or shorter, or remove the record",
    );
}

/// The checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ 0xedb8_8320 & (crc & 1).wrapping_neg())
    })
}

#[test]
fn limits_can_be_set_lower() {
    let path = fixture("clips/h264_gop12.mp4");
    let check = |limits: Limits, text: &str| {
        let error = index_video(&path, &limits).unwrap_err();
        let (reason, found) = told(&error);
        assert_eq!((reason, found.split("; hint").next().unwrap()), ("too_large", text));
    };
    let base = Limits::default();
    let limits = Limits { max_pixels: 6143, ..base.clone() };
    check(limits, "`h264_gop12.mp4`: too large: max_pixels is 96x64, the limit is 6143");
    let limits = Limits { max_frames: 59, ..base.clone() };
    check(limits, "`h264_gop12.mp4`: too large: max_frames is 60, the limit is 59");
    let limits = Limits { max_packets: 59, ..base.clone() };
    check(limits, "`h264_gop12.mp4`: too large: max_packets is 60 (declared), the limit is 59");
    let limits = Limits { max_duration_s: 2.0, ..base.clone() };
    check(limits, "`h264_gop12.mp4`: too large: max_duration_s is 2.4, the limit is 2");
    let limits = Limits { deadline: Duration::ZERO, ..base.clone() };
    let error = index_video(&path, &limits).unwrap_err();
    assert_eq!(
        told(&error),
        (
            "deadline",
            "`h264_gop12.mp4`: not read within the deadline of 0 s; hint: the file may be hostile or the disk slow: remove the record, or \
             raise `data.limits.deadline_s` in the plan"
                .into()
        )
    );
    let index = index_video(&path, &base).unwrap();
    assert_eq!(decode_frames(&index, &[3], &limits).unwrap_err().reason(), "deadline");
    let limits = Limits { max_decoded_bytes: 40_000, ..base.clone() };
    assert_eq!(
        told(&decode_frames(&index, &[3, 3, 4, 5], &limits).unwrap_err()).1.split("; hint").next().unwrap(),
        "`h264_gop12.mp4`: too large: max_decoded_bytes is 73728 (4 frames, 96x64 by the header), the limit is 40000"
    );
    let error = index_video(&fixture("clips/vp9.webm"), &Limits { max_packets: 10, ..base.clone() }).unwrap_err();
    assert_eq!(error.reason(), "too_large");
    let error = index_video(&fixture("clips/two_videos.mkv"), &Limits { max_streams: 2, ..base.clone() }).unwrap_err();
    assert!(matches!(error.reason(), "too_large" | "broken"), "{error}");
    let error = load_image(&fixture("images/grey.jpg"), &Limits { max_pixels: 100, ..base.clone() }).unwrap_err();
    assert_eq!(error.reason(), "too_large");
    let error = load_image(&fixture("images/grey.jpg"), &Limits { deadline: Duration::ZERO, ..base }).unwrap_err();
    assert_eq!(error.reason(), "deadline");
}

/// The bound on decoded bytes goes by the pictures that come out, not by the size that the header states.
#[test]
fn a_header_that_lies_about_the_size_frees_no_memory() {
    let mut bytes = clip("h264_gop12.mp4");
    // The sample description states the size 24 bytes behind the start of its fields, as two 16-bit numbers.
    let entry = bytes.windows(4).rposition(|name| name == b"avc1").unwrap() + 4;
    let at = (entry..entry + 40).find(|&at| bytes[at..at + 4] == [0, 96, 0, 64]).unwrap();
    bytes[at..at + 4].copy_from_slice(&[0, 2, 0, 2]);
    let file = file("clip.mp4", &bytes);
    let limits = Limits { max_decoded_bytes: 96 * 64 * 3 * 3, ..Limits::default() };
    let index = index_video(&file.path, &limits).unwrap();
    assert_eq!((index.width, index.height), (2, 2));
    assert_eq!(decode_frames(&index, &[0, 1, 2], &limits).unwrap().len(), 3);
    for indices in [&[0, 1, 2, 3][..], &[0, 20, 40, 59], &[7, 7, 7, 7], &[1, 0, 1, 0]] {
        let error = decode_frames(&index, indices, &limits).unwrap_err();
        assert_eq!(
            told(&error).1.split("; hint").next().unwrap(),
            "`clip.mp4`: too large: max_decoded_bytes is 73728 (4 frames, 2x2 by the header), the limit is 55296"
        );
    }
}

#[test]
fn files_without_what_readers_need() {
    // The recording was cut off: `mdat` is there, the index is not.
    let whole = clip("h264_long_gop.mp4");
    let moov = whole.windows(4).position(|name| name == b"moov").unwrap() - 4;
    check_video(
        "clip.mp4",
        &whole[..moov],
        "broken",
        "`clip.mp4`: broken mp4 file: it has no `moov` box, so the recording was not finished or its end is missing; \
         hint: the file is damaged or incomplete, get it again",
    );
    let size = whole.len();
    check_video(
        "clip.mp4",
        &whole[..moov + 1000],
        "truncated",
        &format!(
            "`clip.mp4`: truncated: the `moov` box ends at byte {size}, the file at {}; hint: the file is incomplete, \
             get it again",
            moov + 1000
        ),
    );
    check_video(
        "clip.mp4",
        &clip("no_video.mp4"),
        "no_video_track",
        "`clip.mp4`: no video track; hint: remove the record, or use it as audio",
    );
    check_video(
        "clip.avi",
        &clip("cinepak.avi"),
        "unsupported_codec",
        "`clip.avi`: codec `cinepak` is not supported; hint: convert the file to h264, hevc, vp9 or av1",
    );
    let faststart = clip("h264_gop12.mp4");
    let data = faststart.windows(4).position(|name| name == b"mdat").unwrap() + 4;
    check_video(
        "clip.mp4",
        &faststart[..data + 20],
        "no_frames",
        "`clip.mp4`: no frames: 1 video packets were found and none gives a picture; hint: remove the record",
    );
    for (name, start) in [("clip.webm", &clip("vp9.webm")[..100]), ("clip.avi", &clip("mjpeg.avi")[..200])] {
        let file = file(name, start);
        let error = index_video(&file.path, &Limits::default()).unwrap_err();
        assert!(matches!(error.reason(), "broken" | "no_frames" | "no_video_track"), "{error}");
    }
}

/// A file cut short gives the frames that are whole, says so, and never makes up one.
#[test]
fn truncated_clips_give_the_frames_they_have() {
    let expected = json("clips.json");
    for (name, part) in [
        ("h264_gop12.mp4", 0.5),
        ("h264_gop12.mp4", 0.93),
        ("h264_fragmented.mp4", 0.6),
        ("vp9.webm", 0.5),
        ("vp8.webm", 0.8),
        ("h264_open_gop.mkv", 0.4),
        ("mpeg4.avi", 0.5),
        ("mjpeg.avi", 0.7),
        ("gif.gif", 0.6),
        ("av1.webm", 0.5),
    ] {
        let entry = expected["clips"].as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap();
        let sums = entry["sha256"].as_array().unwrap();
        let bytes = clip(name);
        let file = file(name, &bytes[..(bytes.len() as f64 * part) as usize]);
        let index = index_video(&file.path, &Limits::default()).unwrap();
        let count = index.num_frames();
        assert!(count > 0 && count < sums.len(), "{name}: {count}");
        assert!(index.warnings.iter().any(|warning| warning.reason == "truncated"), "{name}: {:?}", index.warnings);
        // Where a frame refers to one that is missing, it cannot be whole; all others are exact.
        let mut num_exact = 0;
        for number in 0..count {
            match decode_frames(&index, &[number], &Limits::default()) {
                Ok(frames) => {
                    // Frames are told apart by their times, since the cut may take some out of the middle.
                    let seconds = entry["seconds"].as_array().unwrap();
                    let at =
                        seconds.iter().position(|s| (s.as_f64().unwrap() - frames[0].seconds).abs() < 1e-6).unwrap();
                    let is_exact = sha256(&frames[0].image)[..32] == *sums[at].as_str().unwrap();
                    assert!(is_exact || frames[0].damaged, "{name} {part}: frame {number}");
                    num_exact += usize::from(is_exact);
                }
                Err(error) => assert_eq!(error.reason(), "undecodable", "{name}: {error}"),
            }
        }
        assert!(num_exact + 4 >= count, "{name} {part}: {num_exact} of {count}");
    }
}

#[test]
fn truncation_is_told_in_numbers() {
    let bytes = clip("h264_gop12.mp4");
    let half = file("clip.mp4", &bytes[..bytes.len() / 2]);
    let index = index_video(&half.path, &Limits::default()).unwrap();
    let messages: Vec<&str> = index.warnings.iter().map(|warning| warning.message.as_str()).collect();
    assert_eq!(messages, ["the data of the last frame is cut", "the container lists 60 frames, the file holds 28"]);
}

#[test]
fn truncated_pictures_are_refused() {
    for name in ["base_64x48_420.jpg", "prog_64x48_444.jpg", "rgb8.png", "lossy_48x36_75.webp", "rgb.bmp", "plain.gif"]
    {
        let bytes = picture(name);
        for part in [0.3, 0.6, 0.9] {
            let file = file(name, &bytes[..(bytes.len() as f64 * part) as usize]);
            let error = load_image(&file.path, &Limits::default()).unwrap_err();
            assert!(matches!(error.reason(), "truncated" | "broken"), "{name} {part}: {error}");
        }
    }
    let bytes = picture("base_64x48_420.jpg");
    check_image(
        "a.jpg",
        &bytes[..bytes.len() - 40],
        "truncated",
        "`a.jpg`: truncated: the picture data ends too soon; hint: the file is incomplete, get it again",
    );
    check_image(
        "a.jpg",
        b"#EXTM3U\n",
        "not_allowed_container",
        "`a.jpg`: an HLS playlist is not an allowed image format; hint: convert it to jpeg or png, or remove the record",
    );
    check_image(
        "a.jpg",
        &clip("h264_small.mp4"),
        "not_allowed_container",
        "`a.jpg`: mp4 video is not an allowed image format; hint: convert it to jpeg or png, or remove the record",
    );
}

#[test]
fn a_file_that_changes_is_noticed() {
    let file = file("clip.mp4", &clip("h264_gop12.mp4"));
    let index = index_video(&file.path, &Limits::default()).unwrap();
    std::fs::write(&file.path, clip("h264_no_b.mov")).unwrap();
    let error = decode_frames(&index, &[0], &Limits::default()).unwrap_err();
    assert_eq!(
        told(&error),
        (
            "changed",
            "`clip.mp4`: the file changed while it was being used; hint: keep media files unchanged during a run"
                .into()
        )
    );
    let path = fixture("clips/h264_gop12.mp4");
    let index = index_video(&path, &Limits::default()).unwrap();
    let error = decode_frames(&index, &[0, 60], &Limits::default()).unwrap_err();
    assert_eq!(
        told(&error),
        ("frame_out_of_range", "`h264_gop12.mp4`: frame 60 does not exist: the file has 60 frames".into())
    );
}

/// Recordings joined end to end keep their order, although the second one's clock begins again.
#[test]
fn joined_recordings_follow_one_another() {
    let expected = json("clips.json");
    let once = expected["clips"].as_array().unwrap().iter().find(|entry| entry["name"] == "h264.ts").unwrap();
    let sums: Vec<&str> = once["sha256"].as_array().unwrap().iter().map(|sum| sum.as_str().unwrap()).collect();
    let file = file("joined.ts", &clip("h264.ts").repeat(2));
    let index = index_video(&file.path, &Limits::default()).unwrap();
    assert_eq!(index.num_frames(), 2 * sums.len());
    for (number, seconds) in index.seconds.iter().enumerate() {
        assert!((seconds - number as f64 / 25.0).abs() < 1e-6, "{number}: {seconds}");
    }
    assert_eq!((index.warnings.len(), index.warnings[0].reason), (1, "joined"));
    let all: Vec<usize> = (0..index.num_frames()).collect();
    for choice in [&all[..], &[119, 0, 60, 61], &[75]] {
        for frame in decode_frames(&index, choice, &Limits::default()).unwrap() {
            assert_eq!(sha256(&frame.image)[..32], *sums[frame.index % sums.len()], "frame {}", frame.index);
        }
    }
}

/// Flipped bits anywhere give an error or pictures, within the time, and never a panic.
#[test]
fn flipped_bits_never_panic() {
    let mut state = 0x1234_5678_9abc_def0u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let limits = Limits { max_pixels: 1 << 20, deadline: Duration::from_secs(5), ..Limits::default() };
    let (mut num_errors, mut num_whole) = (0, 0);
    let clips =
        ["h264_gop12.mp4", "h264_open_gop.mkv", "vp8.webm", "mpeg4.avi", "gif.gif", "h264.ts", "av1.mp4", "hevc.mp4"];
    for name in clips {
        let bytes = clip(name);
        for round in 0..24 {
            let mut bytes = bytes.clone();
            let head = if round % 2 == 0 { bytes.len() } else { 600 };
            for _ in 0..1 + round / 4 {
                let at = random(head.min(bytes.len()));
                bytes[at] ^= 1 << random(8);
            }
            let file = file(name, &bytes);
            let result = index_video(&file.path, &limits).and_then(|index| {
                let last = index.num_frames() - 1;
                decode_frames(&index, &[0, last / 2, last], &limits)
            });
            match result {
                Ok(_) => num_whole += 1,
                Err(_) => num_errors += 1,
            }
        }
    }
    assert!(num_errors > 10 && num_whole > 10, "{num_errors} errors, {num_whole} whole");
    let pictures = [
        "base_64x48_420.jpg",
        "prog_64x48_422.jpg",
        "restart.jpg",
        "rgb8.png",
        "interlaced.png",
        "lossy_48x36_75.webp",
        "lossless_48x36.webp",
        "rle8.bmp",
        "rle4.bmp",
        "masks32.bmp",
        "plain.gif",
        "part_local.gif",
    ];
    for name in pictures {
        let bytes = picture(name);
        for round in 0..120 {
            let mut bytes = bytes.clone();
            for _ in 0..1 + round % 5 {
                let at = random(bytes.len());
                bytes[at] ^= 1 << random(8);
            }
            let file = file(name, &bytes);
            match load_image(&file.path, &limits) {
                Ok(image) => assert_eq!(image.data.len(), image.width as usize * image.height as usize * 3),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
}

#[test]
fn files_are_told_by_content() {
    let is = |path: PathBuf| (is_video(&path), is_image(&path), is_animated(&path));
    assert_eq!(is(fixture("clips/h264_gop12.mp4")), (true, false, false));
    assert_eq!(is(fixture("clips/h264.ts")), (true, false, false));
    assert_eq!(is(fixture("clips/theora.ogv")), (true, false, false));
    assert_eq!(is(fixture("clips/gif.gif")), (true, true, true));
    assert_eq!(is(fixture("images/plain.gif")), (true, true, false));
    assert_eq!(is(fixture("images/animated.gif")), (true, true, true));
    assert_eq!(is(fixture("images/animated.png")), (false, true, true));
    assert_eq!(is(fixture("images/rgb8.png")), (false, true, false));
    assert_eq!(is(fixture("images/animated.webp")), (false, true, true));
    assert_eq!(is(fixture("images/alpha.webp")), (false, true, false));
    assert_eq!(is(fixture("images/grey.jpg")), (false, true, false));
    assert_eq!(is(fixture("images/rle8.bmp")), (false, true, false));
    assert_eq!(is(fixture("clips.json")), (false, false, false));
    assert_eq!(is(fixture("clips")), (false, false, false));
}
