//! Every container and codec: frames, times and pixels equal those of torchcodec, PyAV and the ffmpeg program
//! (`tools/oracle/media_clips.py`).

use std::path::PathBuf;

use media::{Limits, VideoIndex, decode_frames, index_video};
use serde_json::Value;

use crate::common::{fixture, json, sha256};

fn path(name: &str) -> PathBuf {
    fixture("clips").join(name)
}

fn for_each_clip(mut check: impl FnMut(&str, &Value, &VideoIndex) -> Result<(), String>) {
    let expected = json("clips.json");
    let clips = expected["clips"].as_array().unwrap();
    assert!(clips.len() > 50);
    let mut wrong = Vec::new();
    for clip in clips {
        let name = clip["name"].as_str().unwrap();
        let result = match index_video(&path(name), &Limits::default()) {
            Ok(index) => check(name, clip, &index),
            Err(error) => Err(error.to_string()),
        };
        if let Err(detail) = result {
            wrong.push(format!("{name}: {detail}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), clips.len(), wrong.join("\n"));
}

#[test]
fn indices_equal_the_references() {
    for_each_clip(|name, clip, index| {
        let size = (u64::from(index.width), u64::from(index.height));
        if size != (clip["width"].as_u64().unwrap(), clip["height"].as_u64().unwrap()) {
            return Err(format!("size {size:?}"));
        }
        let seconds: Vec<f64> = clip["seconds"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
        // The clock of a transport stream begins anywhere; ours begins with the first frame.
        let origin = if name.ends_with(".ts") { seconds[0] } else { 0.0 };
        let expected: Vec<f64> = seconds.iter().map(|s| s - origin).collect();
        if index.seconds.len() != expected.len()
            || index.seconds.iter().zip(&expected).any(|(a, b)| (a - b).abs() > 1e-6)
        {
            return Err(format!(
                "times {} {:?} for {} {expected:?}",
                index.seconds.len(),
                index.seconds,
                expected.len()
            ));
        }
        // PyAV's rate is what the container states, torchcodec's is counted; they differ where the rate varies.
        let rates: Vec<f64> = clip["rates"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
        if !rates.iter().any(|rate| (rate / index.fps - 1.0).abs() < 1e-9) {
            return Err(format!("rate {} for {rates:?}", index.fps));
        }
        if !index.warnings.is_empty() {
            return Err(format!("warnings {:?}", index.warnings));
        }
        Ok(())
    });
}

#[test]
fn pixels_equal_the_references_in_any_choice_of_frames() {
    for_each_clip(|_, clip, index| {
        let expected: Vec<&str> = clip["sha256"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
        let total = expected.len();
        let mut choices: Vec<Vec<usize>> = vec![
            (0..total).collect(),
            vec![total - 1],
            vec![total / 2],
            (0..4).map(|i| i * total / 4).collect(),
            (0..total).step_by(7).collect(),
            (0..total).rev().step_by(5).collect(),
            vec![total - 1, 0, total / 3, 0],
        ];
        choices.extend((0..total).step_by(3).map(|i| vec![i]));
        for choice in choices {
            let frames = decode_frames(index, &choice, &Limits::default()).map_err(|error| error.to_string())?;
            for (frame, &number) in frames.iter().zip(&choice) {
                if frame.index != number || frame.seconds != index.seconds[number] || frame.damaged {
                    return Err(format!(
                        "frame {number} of {choice:?}: {} {} {}",
                        frame.index, frame.seconds, frame.damaged
                    ));
                }
                if sha256(&frame.image)[..32] != *expected[number] {
                    return Err(format!("pixels of frame {number} of {choice:?}"));
                }
            }
        }
        Ok(())
    });
}
