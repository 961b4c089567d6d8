//! Files written by this crate come back with the right frames and times.

use std::path::Path;

use media::encode::{Codec, EncodeOptions, VideoWriter};
use media::{Limits, RgbImage, decode_frames, index_video};

/// A picture whose colour tells its number.
fn numbered(number: usize, width: u32, height: u32) -> RgbImage {
    RgbImage::filled(width, height, [(number * 8 % 256) as u8, (255 - number * 8 % 256) as u8, 128])
}

fn check(path: &Path, codec: Codec, fps: (i32, i32), num_frames: usize) {
    let mut writer = VideoWriter::new(path, 64, 48, fps, codec).unwrap();
    for number in 0..num_frames {
        writer.push(&numbered(number, 64, 48)).unwrap();
    }
    writer.finish().unwrap();
    let limits = Limits::default();
    let index = index_video(path, &limits).unwrap();
    assert_eq!((index.width, index.height, index.num_frames()), (64, 48, num_frames), "{}", path.display());
    let rate = f64::from(fps.0) / f64::from(fps.1);
    assert!((index.fps / rate - 1.0).abs() < 1e-3, "{}: {}", path.display(), index.fps);
    let wanted = [num_frames - 1, 0, num_frames / 2, 0];
    let frames = decode_frames(&index, &wanted, &limits).unwrap();
    for (frame, number) in frames.iter().zip(wanted) {
        assert_eq!(frame.index, number);
        assert!((frame.seconds - index.seconds[0] - number as f64 / rate).abs() < 2e-2, "{} {number}", frame.seconds);
        let expected = numbered(number, 1, 1).pixel(0, 0);
        let found = frame.image.pixel(30, 20);
        for channel in 0..3 {
            let (e, f) = (i32::from(expected[channel]), i32::from(found[channel]));
            let tolerance = if codec == Codec::Gif { 64 } else { 32 };
            assert!((e - f).abs() < tolerance, "{} frame {number}: {expected:?} {found:?}", path.display());
        }
    }
}

#[test]
fn written_files_come_back() {
    let dir = tempfile::tempdir().unwrap();
    for (name, codec, fps) in [
        ("a.mp4", Codec::H264, (30, 1)),
        ("b.mov", Codec::H264, (30000, 1001)),
        ("c.mkv", Codec::H264, (25, 1)),
        ("d.avi", Codec::Mpeg4, (10, 1)),
        ("e.webm", Codec::Vp8, (15, 1)),
        ("f.webm", Codec::Vp9, (24, 1)),
        ("g.gif", Codec::Gif, (10, 1)),
        ("h.avi", Codec::H264, (12, 1)),
        ("i.ts", Codec::H264, (30, 1)),
    ] {
        check(&dir.path().join(name), codec, fps, 29);
    }
}

#[test]
fn times_of_variable_rate_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["v.mp4", "v.mkv"] {
        let path = dir.path().join(name);
        let times = [0.0, 0.1, 0.5, 0.52, 1.75, 2.0, 4.0];
        let options = EncodeOptions::default();
        let mut writer = VideoWriter::variable(&path, 32, 32, (30, 1), Codec::H264, &options).unwrap();
        for (number, &time) in times.iter().enumerate() {
            writer.push_at(&numbered(number, 32, 32), time).unwrap();
        }
        writer.finish().unwrap();
        let index = index_video(&path, &Limits::default()).unwrap();
        assert_eq!(index.num_frames(), times.len(), "{name}");
        for (found, time) in index.seconds.iter().zip(times) {
            assert!((found - index.seconds[0] - time).abs() < 1e-3, "{name}: {:?}", index.seconds);
        }
    }
}
