//! Frame numbers equal those of the reference programs (`tools/oracle/media_rules.py`), and bad requests are refused.

use crate::common::json;
use media::{FrameCount, FrameRule, SampleSpec, sample_indices};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The generator's way to write frame numbers.
fn written(indices: &[usize]) -> String {
    let text: Vec<String> = indices.iter().map(usize::to_string).collect();
    let text = text.join(",");
    if text.len() <= 48 {
        return text;
    }
    let sum: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}:{sum}", indices.len())
}

#[test]
fn numbers_equal_the_references() {
    let expected = json("rules.json");
    let cases = expected["cases"].as_array().unwrap();
    assert!(cases.len() > 5000);
    let mut wrong = Vec::new();
    for case in cases {
        let number = |at: usize| case[at].as_u64().map(|value| value as usize);
        let rule: FrameRule = case[0].as_str().unwrap().parse().unwrap();
        let (total, rate) = (number(1).unwrap(), case[2].as_f64().unwrap());
        let count = match (number(3), case[4].as_f64()) {
            (Some(num), None) => FrameCount::Num(num),
            (None, Some(fps)) => FrameCount::Fps(fps),
            other => panic!("{other:?}"),
        };
        let mut spec = SampleSpec::new(rule, count);
        (spec.min_frames, spec.max_frames) = (number(5), number(6));
        (spec.start, spec.end) = (case[7].as_f64(), case[8].as_f64());
        let found = sample_indices(total, rate, &[], &spec);
        let found = found.ok().map_or(Value::Null, |indices| Value::String(written(&indices)));
        if found != case[9] {
            wrong.push(format!("{case} found {found}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong[..20.min(wrong.len())].join("\n"));
}
