//! A corpus of hostile and broken files: each must be refused with the fault that names what is wrong.

use std::io::Write;

use super::*;

fn file_of(header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(data);
    bytes
}

fn open(bytes: &[u8]) -> Result<SafeTensors> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    SafeTensors::open(file.path())
}

fn fault(bytes: &[u8]) -> HeaderFault {
    match open(bytes) {
        Err(error @ HubError::Safetensors { .. }) => {
            assert!(error.hint().is_some(), "{error}");
            let HubError::Safetensors { fault, .. } = error else { unreachable!() };
            fault
        }
        other => panic!("expected a fault, got {other:?}"),
    }
}

fn refused(header: &str, data: usize, part: &str) {
    let fault = fault(&file_of(header.as_bytes(), &vec![0; data]));
    assert!(fault.to_string().contains(part), "`{fault}` does not say `{part}`");
}

#[test]
fn a_good_file_is_read() {
    let header = r#"{"__metadata__":{"format":"pt","b":"c"},"x":{"dtype":"F32","shape":[2,1],"data_offsets":[2,10]},"a.b":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},"e":{"dtype":"I64","shape":[0,7],"data_offsets":[2,2]}}   "#;
    let data: Vec<u8> = (0..10).collect();
    let file = open(&file_of(header.as_bytes(), &data)).unwrap();
    assert_eq!(file.names(), ["a.b", "e", "x"]);
    assert_eq!(file.metadata(), [("format".to_owned(), "pt".to_owned()), ("b".to_owned(), "c".to_owned())]);
    let x = file.get("x").unwrap();
    assert_eq!((x.dtype, x.shape, x.data, x.num_elements()), (Dtype::F32, &[2, 1][..], &data[2..], 2));
    let scalar = file.get("a.b").unwrap();
    assert_eq!((scalar.shape.len(), scalar.data, scalar.num_elements()), (0, &data[..2], 1));
    assert_eq!(file.get("e").unwrap().data.len(), 0);
    assert!(file.get("y").is_none());
    assert_eq!(file.data_bytes(), 10);
}

/// Resident bytes of the maps of a file, as Linux tells them.
#[cfg(target_os = "linux")]
fn resident(path: &Path) -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let name = path.to_str().unwrap();
    let (mut ours, mut sum) = (false, 0);
    for line in maps.lines() {
        match line.split_once(':') {
            Some(("Rss", size)) if ours => sum += 1024 * size.trim().trim_end_matches(" kB").parse::<usize>().unwrap(),
            Some((field, _)) if !field.contains(' ') => {}
            _ => ours = line.ends_with(name),
        }
    }
    sum
}

#[cfg(target_os = "linux")]
#[test]
fn a_tensor_that_was_read_leaves_memory_with_the_next() {
    // The system maps pages around the one that was touched, up to 2 MiB of them.
    const SIZE: usize = 8 << 20;
    let entry = |name: &str, i: usize| {
        format!(r#""{name}":{{"dtype":"U8","shape":[{SIZE}],"data_offsets":[{},{}]}}"#, i * SIZE, (i + 1) * SIZE)
    };
    let header = format!("{{{},{},{}}}", entry("a", 0), entry("b", 1), entry("c", 2));
    let data: Vec<u8> = (0..3 * SIZE).map(|i| (i / SIZE) as u8).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), file_of(header.as_bytes(), &data)).unwrap();
    let tensors = SafeTensors::open(file.path()).unwrap();
    let holds = |view: &TensorView, value: u8| view.data.iter().all(|&byte| byte == value);
    let first = tensors.get("a").unwrap();
    for (name, value) in ["a", "b", "c"].into_iter().zip(0..) {
        assert!(holds(&tensors.get(name).unwrap(), value));
        let held = resident(file.path());
        assert!((SIZE..2 * SIZE).contains(&held), "{held} bytes are resident after reading `{name}`");
    }
    assert!(holds(&first, 0), "a view that was given back reads other bytes");
}

#[test]
fn an_empty_table_is_read() {
    let file = open(&file_of(b"{}", &[])).unwrap();
    assert!(file.is_empty());
}

#[test]
fn lengths_are_checked() {
    assert_eq!(fault(b""), HeaderFault::TooShort { found: 0 });
    assert_eq!(fault(&[1, 2, 3]), HeaderFault::TooShort { found: 3 });
    let huge = u64::MAX.to_le_bytes();
    assert_eq!(fault(&huge), HeaderFault::HeaderTooLarge { found: u64::MAX, limit: MAX_HEADER_BYTES });
    let mut cut = 100u64.to_le_bytes().to_vec();
    cut.extend_from_slice(b"{}");
    assert_eq!(fault(&cut), HeaderFault::HeaderCut { header: 100, available: 2 });
    // A Git LFS pointer in place of the file.
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
    assert!(matches!(fault(pointer), HeaderFault::HeaderTooLarge { .. }));
}

#[test]
fn text_and_json_are_checked() {
    assert_eq!(fault(&file_of(b"{\"\xff\":1}", &[])), HeaderFault::NotUtf8 { at: 2 });
    refused("", 0, "does not start with `{`");
    refused(" {}", 0, "does not start with `{`");
    refused("[]", 0, "does not start with `{`");
    refused("{", 0, "not valid");
    refused("{} x", 0, "not valid");
    refused(r#"{"x":3}"#, 0, "tensor `x`");
    refused(r#"{"x":{"dtype":"F32","shape":[1]}}"#, 4, "data_offsets");
    refused(r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#, 4, "tensor `x`");
    refused(r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#, 8, "tensor `x`");
    refused(r#"{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, "tensor `x`");
    refused(r#"{"x":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#, 4, "tensor `x`");
    refused(r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1}}"#, 4, "more");
    refused(r#"{"x":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}"#, 4, "duplicate");
    refused(r#"{"__metadata__":{"a":1}}"#, 0, "not valid");
    refused(r#"{"__metadata__":[]}"#, 0, "not valid");
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let deep = format!("{{\"x\":{}", "[".repeat(200_000));
    refused(&deep, 0, "not valid");
}

#[test]
fn names_and_types_are_checked() {
    let twice =
        r#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert_eq!(fault(&file_of(twice.as_bytes(), &[0; 2])), HeaderFault::Duplicate { name: "x".to_owned() });
    refused(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "twice");
    refused(r#"{"x":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#, 1, "`F4`, which is not supported");
    refused(r#"{"x":{"dtype":"f32","shape":[1],"data_offsets":[0,4]}}"#, 4, "`f32`, which is not supported");
}

#[test]
fn sizes_are_checked() {
    refused(r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4, "needs 8 bytes, its offsets hold 4");
    refused(r#"{"x":{"dtype":"F32","shape":[],"data_offsets":[0,0]}}"#, 0, "needs 4 bytes");
    refused(
        r#"{"x":{"dtype":"F32","shape":[9223372036854775807,9223372036854775807],"data_offsets":[0,4]}}"#,
        4,
        "overflows",
    );
    // The product wraps around to the claimed length in 64 bits.
    refused(r#"{"x":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}}"#, 4, "overflows");
    // A zero does not excuse an overflow before it.
    refused(r#"{"x":{"dtype":"F32","shape":[18446744073709551615,2,0],"data_offsets":[0,0]}}"#, 0, "overflows");
}

#[test]
fn offsets_are_checked() {
    refused(r#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}"#, 1, "no overlap, no hole");
    refused(r#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#, 2, "expected them to start at 0");
    let overlap =
        r#"{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"y":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    refused(overlap, 6, "tensor `y` has data offsets [2, 6], expected them to start at 4");
    let same =
        r#"{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"y":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    refused(same, 4, "no overlap");
    let hole =
        r#"{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}"#;
    refused(hole, 6, "no hole");
    let one = r#"{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    refused(one, 3, "describes 4 bytes of data, the file holds 3");
    refused(one, 5, "describes 4 bytes of data, the file holds 5");
    refused(
        r#"{"x":{"dtype":"U8","shape":[4],"data_offsets":[18446744073709551612,18446744073709551616]}}"#,
        4,
        "not valid",
    );
    refused(
        r#"{"x":{"dtype":"U8","shape":[4],"data_offsets":[18446744073709551611,18446744073709551615]}}"#,
        4,
        "expected them to start at 0",
    );
}

#[test]
fn every_cut_and_every_flipped_byte_is_an_error_or_a_lawful_file() {
    let header =
        r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[3],"data_offsets":[4,7]}}"#;
    let good = file_of(header.as_bytes(), &[7; 7]);
    for length in 0..good.len() {
        assert!(parse(&good[..length]).is_err(), "a file cut to {length} bytes was accepted");
    }
    for at in 0..good.len() {
        for flip in [0x01, 0x20, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            // Must not panic; when it parses, every view must lie inside the file.
            if let Ok((entries, _, start)) = parse(&bytes) {
                assert!(entries.iter().all(|e| start + e.end <= bytes.len()));
            }
        }
    }
}

#[test]
fn a_missing_file_names_its_path() {
    let error = SafeTensors::open("/nonexistent/model.safetensors").unwrap_err();
    assert!(error.to_string().starts_with("cannot open `/nonexistent/model.safetensors`: "), "{error}");
}
