//! Files of `torch.save` against the same tensors as safetensors, and files that are hostile or damaged.

use super::*;
use crate::safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/hub/pickle").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

#[test]
fn tensors_are_those_of_torch() {
    let expected = SafeTensors::open(fixture("expected.safetensors")).unwrap();
    for name in ["zip.bin", "legacy.bin", "protocol4.bin"] {
        let file = PickleFile::open(fixture(name)).unwrap();
        assert_eq!(file.names(), expected.names(), "{name}");
        for tensor in expected.iter() {
            let found = file.get(tensor.name).unwrap();
            let what = format!("{name}: {}", tensor.name);
            assert_eq!((found.dtype, found.shape, found.data), (tensor.dtype, tensor.shape, tensor.data), "{what}");
        }
        assert!(file.get("nothing").is_none());
        assert_eq!(file.data_bytes(), expected.data_bytes(), "{name}");
        // What stands in order is not copied, views of one storage share its bytes.
        let within = |name: &str| {
            let data = file.get(name).unwrap().data.as_ptr_range();
            file.map.as_ptr_range().start <= data.start && data.end <= file.map.as_ptr_range().end
        };
        assert!(within("contiguous") && within("shared.whole") && within("shared.rows") && !within("transposed"));
        let at = |name: &str| file.get(name).unwrap().data.as_ptr();
        assert_eq!(at("shared.rows") as usize, at("shared.whole") as usize + 24, "{name}");
    }
}

/// What Python would execute is named with its place, and nothing is.
#[test]
fn anything_but_tensors_is_refused() {
    let check = |name: &str, expected: &str| {
        let error = PickleFile::open(fixture(name)).unwrap_err();
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert!(error.hint().unwrap().contains("save_pretrained"), "{name}");
    };
    let named = "which no tensor needs and which is not executed";
    check("bad_reduce.bin", &format!("its pickle names `__builtin__.print` at byte 13, {named}"));
    check("bad_stack_global.bin", "its pickle names `builtins.print` at byte ");
    check("bad_legacy.bin", "its pickle names `__builtin__.print` at byte ");
    check("bad_setstate.bin", "its pickle names `__main__.Stateful` at byte ");
    check("bad_float8.bin", "its pickle names `torch._utils._rebuild_tensor_v3` at byte ");
    check("bad_sparse.bin", "its pickle names `torch._utils._rebuild_sparse_tensor` at byte ");
    check("bad_expanded.bin", "tensor `w`: its shape [2, 4, 6] has more elements than its storage `0` of 24");
    check("bad_nested.bin", "`state_dict` is a dict, expected a tensor");
    check("bad_number.bin", "`epoch` is an integer, expected a tensor");
    check("bad_list.bin", "it holds a list, expected a dict of tensors by name");
    check("bad_plain.bin", "it was not written by `torch.save`");
}

/// Runs a pickle that never ends well.
fn refused(pickle: &[u8], expected: &str) {
    let error = machine::run(pickle).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(expected), "`{error}` does not contain `{expected}`");
}

#[test]
fn calls_in_any_dress_are_refused() {
    refused(b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", "names `os.system` at byte 2");
    refused(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.", "names `os.system` at byte 14");
    // A name that is allowed, and an end of it that is not.
    refused(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "names `torch._utils._rebuild_tensor_v2.__gl");
    refused(b"\x80\x02ctorch\nload\n.", "names `torch.load`");
    refused(b"\x80\x02ctorch\nFloatStorage\n)R.", "calls a storage class at byte 23");
    refused(b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ (0x81) at byte 28");
    refused(b"\x80\x02ccollections\nOrderedDict\n}b.", "gives a state to a class or function");
    refused(b"\x80\x02}}b.", "gives a state to a dict");
    refused(b"\x80\x02ccollections\nOrderedDict\n)RX\x01\0\0\0xb.", "gives a state to a dict");
    refused(b"(ios\nsystem\n.", "opcode INST (0x69) at byte 1");
    refused(b"(S'ls'\nios\nsystem\n.", "an opcode of protocol 0");
    refused(b"\x80\x02K\x01)R.", "calls an integer");
    refused(b"\x80\x04\x96\x01\0\0\0\0\0\0\0a.", "opcode BYTEARRAY8");
    refused(b"\x80\x02\x82\x01.", "opcode EXT");
    refused(b"\x80\x02K\x01Q.", "not described as torch describes one");
}

#[test]
fn stacks_memos_and_lengths_that_lie_are_refused() {
    refused(b"", "ends inside of what starts at byte 0");
    refused(b"\x80\x02", "ends inside of what starts at byte 2");
    refused(b"\x80\x06.", "its protocol is not one of 2 to 5");
    refused(b"\x80\x02.", "its stack is empty");
    refused(b"\x80\x02t.", "its stack has no mark");
    refused(b"\x80\x02K\x01(0.", "its stack is empty");
    refused(b"\x80\x02h\x07.", "recalls what it did not store");
    refused(b"\x80\x02X\xff\xff\xff\xffab.", "ends inside");
    refused(b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffab.", "ends inside");
    refused(b"\x80\x02X\x01\0\0\0\xff.", "is not UTF-8");
    refused(b"\x80\x02\x8b\xff\xff\xff\x7f.", "ends inside");
    refused(b"\x80\x02\x8a\x20aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.", "more than 16 bytes");
    refused(b"\x80\x02]K\x01K\x02s.", "pairs are added to what is no dict");
    refused(b"\x80\x02}(K\x01u.", "a key in it has no value");
    refused(b"\x80\x02}K\x01a.", "items are added to what is no list");
}

/// Depth costs no stack: containers a million deep, in themselves, and marks without an end.
#[test]
fn depth_does_not_recurse() {
    let deep = [&b"\x80\x02)"[..], &[0x85; 1_000_000], b"."].concat();
    let found = machine::run(&deep).unwrap();
    assert_eq!(found.value.kind(), "a tuple");
    drop(found);
    let own = b"\x80\x02]q\x00h\x00a.";
    assert_eq!(machine::run(own).unwrap().value.kind(), "a list");
    let own = b"\x80\x02}q\x00(X\x01\0\0\0ah\x00u.";
    assert_eq!(machine::run(own).unwrap().value.kind(), "a dict");
    let marks = [&b"\x80\x02"[..], &[b'('; 1_000_000], b"."].concat();
    refused(&marks, "its stack is empty");
    // A memo as sparse as its numbers allow holds what it was given, not what lies between.
    let sparse = b"\x80\x02K\x01r\xff\xff\xff\xffj\xff\xff\xff\xff.";
    assert_eq!(machine::run(sparse).unwrap().value, Value::Int(1));
    let endless = vec![b'N'; 8_000_001];
    refused(&endless, "more than 8000000 opcodes");
}

/// A zip archive of stored entries, as small as the format allows.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let at = file.len() as u32;
        let sizes = [(data.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
        let names = [(name.len() as u16).to_le_bytes(), [0, 0]].concat();
        file.extend([&b"PK\x03\x04"[..], &[0; 14], &sizes, &names, name.as_bytes(), data].concat());
        let rest = [&[0u8; 10][..], &at.to_le_bytes(), name.as_bytes()].concat();
        directory.extend([&b"PK\x01\x02"[..], &[0; 16], &sizes, &names, &rest].concat());
    }
    let (start, size) = (file.len() as u32, directory.len() as u32);
    file.extend(directory);
    let count = (entries.len() as u16).to_le_bytes();
    file.extend(
        [&b"PK\x05\x06"[..], &[0; 4], &count, &count, &size.to_le_bytes(), &start.to_le_bytes(), &[0; 2]].concat(),
    );
    file
}

/// The pickle of `{"w": tensor}` with a storage of `count` floats, and an offset, sizes and strides of one byte each.
fn described(count: u8, offset: u8, size: &[u8], stride: &[u8]) -> Vec<u8> {
    let text = |text: &str| [&[b'X', text.len() as u8, 0, 0, 0], text.as_bytes()].concat();
    let tuple = |items: &[u8]| [&b"("[..], &items.iter().flat_map(|n| [b'K', *n]).collect::<Vec<u8>>(), b"t"].concat();
    let storage =
        [&b"("[..], &text("storage"), b"ctorch\nFloatStorage\n", &text("0"), &text("cpu"), &[b'K', count], b"tQ"];
    let arguments = [&storage.concat(), &[b'K', offset][..], &tuple(size), &tuple(stride), b"\x89N"].concat();
    let tensor = [&b"ctorch._utils\n_rebuild_tensor_v2\n("[..], &arguments, b"tR"].concat();
    [&b"\x80\x02}"[..], &text("w"), &tensor, b"s."].concat()
}

fn parsed(pickle: &[u8], data: &[u8]) -> Result<BTreeMap<String, Entry>, PickleFault> {
    parse(&archive(&[("m/data.pkl", pickle), ("m/data/0", data)]))
}

#[test]
fn tensors_that_leave_their_storage_are_refused() {
    let data: Vec<u8> = (0..24).collect();
    let check = |offset, size: &[u8], stride: &[u8], expected: &str| {
        let error = parsed(&described(6, offset, size, stride), &data).unwrap_err().to_string();
        assert_eq!(error, format!("tensor `w`: {expected}"));
    };
    assert!(parsed(&described(6, 0, &[2, 3], &[3, 1]), &data).is_ok());
    assert!(parsed(&described(6, 5, &[1, 1], &[200, 200]), &data).is_ok());
    assert!(parsed(&described(6, 99, &[0, 3], &[3, 1]), &data).is_ok());
    check(1, &[2, 3], &[3, 1], "it reaches element 6 of its storage `0` of 6");
    check(0, &[2, 3], &[4, 1], "it reaches element 6 of its storage `0` of 6");
    check(6, &[], &[], "it reaches element 6 of its storage `0` of 6");
    check(0, &[255, 255], &[0, 0], "its shape [255, 255] has more elements than its storage `0` of 6");
    check(0, &[2], &[1, 1], "it has 1 dimensions and 2 strides");
    check(0, &[255; 12], &[0; 12], &format!("its shape {:?} overflows", [255; 12]));
    for count in [5, 7, 0] {
        let error = parsed(&described(count, 0, &[0], &[1]), &data).unwrap_err().to_string();
        assert!(error.contains(&format!("storage `0` of {count} elements has 24 bytes")), "{error}");
    }
    let alone = archive(&[("m/data.pkl", &described(6, 0, &[6], &[1]))]);
    assert!(parse(&alone).unwrap_err().to_string().contains("its storage `0` is not in the file"));
}

#[test]
fn archives_that_lie_are_refused() {
    let good = archive(&[("m/data.pkl", &described(6, 0, &[6], &[1])), ("m/data/0", &[7; 24])]);
    assert!(parse(&good).is_ok());
    let check = |file: &[u8], expected: &str| {
        let error = parse(file).unwrap_err().to_string();
        assert!(error.contains(expected), "`{error}` does not contain `{expected}`");
    };
    let find = |what: &[u8], number: usize| {
        let hits = (0..good.len()).filter(|&at| good[at..].starts_with(what));
        hits.collect::<Vec<_>>()[number]
    };
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let (first, second, end) = (find(b"PK\x01\x02", 0), find(b"PK\x01\x02", 1), find(b"PK\x05\x06", 0));
    check(&with(second + 10, &[8]), "entry `m/data/0` is compressed or encrypted");
    check(&with(second + 8, &[1]), "entry `m/data/0` is compressed or encrypted");
    check(&with(second + 24, &[25]), "is stored and has two sizes, 24 and 25");
    check(&with(second + 20, &[255, 255, 255, 0, 255, 255, 255, 0]), "of 16777215 bytes leaves the file");
    check(&with(second + 42, &[1]), "entry `m/data/0` has no header at byte 1");
    // The second entry's data within the first one's, under headers of its own.
    let inner = archive(&[("m/data/0", &[7; 24])]);
    let pickle = [described(6, 0, &[6], &[1]), inner[..30 + 8 + 24].to_vec()].concat();
    let mut overlapping = archive(&[("m/data.pkl", &pickle), ("m/data/0", &[7; 24])]);
    let inside = 30 + 10 + described(6, 0, &[6], &[1]).len();
    let entry = (0..overlapping.len()).filter(|&at| overlapping[at..].starts_with(b"PK\x01\x02")).nth(1).unwrap();
    overlapping[entry + 42..entry + 46].copy_from_slice(&(inside as u32).to_le_bytes());
    check(&overlapping, "two of its entries overlap");
    check(&with(end + 10, &[255, 255]), "cannot hold 65535 entries");
    check(&with(end + 16, &[255, 255, 255, 127]), "its directory is not inside of the file");
    check(&with(first + 46, b"m/data/0xx"), "entry `m/data/0xx` has no header");
    check(&archive(&[("m/data.pkl", b"."), ("n/data.pkl", b".")]), "it does not hold one `data.pkl`");
    check(&archive(&[("m/data.pkl", b"."), ("m/data.pkl", b".")]), "entry `m/data.pkl` appears twice");
    check(&archive(&[("m/data.pkl", b"."), ("m/byteorder", b"big")]), "its numbers are big-endian");
}

/// Reads every tensor of what can be parsed.
fn read_all(file: &[u8]) -> bool {
    let Ok(entries) = parse(file) else { return false };
    entries.values().for_each(|entry| assert_eq!(entry.data(file).len(), entry.num_bytes()));
    true
}

/// Cut at every byte: an error, never a panic. A file of torch ends in what the reader needs first.
#[test]
fn every_cut_is_an_error() {
    for name in ["zip.bin", "legacy.bin", "protocol4.bin", "bad_stack_global.bin"] {
        let whole = bytes(name);
        for len in 0..whole.len() {
            assert!(!read_all(&whole[..len]), "{name} cut to {len} of {}", whole.len());
        }
    }
}

/// Every byte changed in several ways: an error or tensors inside of the file.
#[test]
fn no_changed_byte_panics() {
    for name in ["zip.bin", "legacy.bin"] {
        let mut file = bytes(name);
        let mut num_read = 0;
        for at in 0..file.len() {
            let before = file[at];
            for change in [before ^ 1, before ^ 0x80, 0, 0xff, before.wrapping_add(1), b'.'] {
                file[at] = change;
                num_read += usize::from(read_all(&file));
            }
            file[at] = before;
        }
        // Most bytes are padding and data.
        assert!(num_read > file.len(), "{name}: {num_read}");
    }
}
