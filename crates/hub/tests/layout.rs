//! Checkpoint folders and written files against what the Python libraries write (fixtures/hub, tools/oracle/hub.py).

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use hub::{Checkpoint, Dtype, HubError, OutTensor, SafeTensors, write_checkpoint, write_safetensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/hub").join(name)
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Tensors of the sharded fixture in the order in which they were handed to the writer.
fn state(checkpoint: &Checkpoint) -> Vec<OutTensor<'_>> {
    ["layer.0.weight", "layer.1.weight", "layer.2.weight", "layer.3.weight", "layer.4.weight", "big", "head"]
        .into_iter()
        .map(|name| {
            let view = checkpoint.get(name).unwrap();
            OutTensor::lazy(name, view.dtype, view.shape, move || Ok(Cow::Borrowed(view.data)))
        })
        .collect()
}

#[test]
fn every_dtype_is_read() {
    let file = SafeTensors::open(fixture("every_dtype.safetensors")).unwrap();
    assert_eq!(file.metadata(), [("format".to_owned(), "pt".to_owned())]);
    let bytes = |name: &str| file.get(name).unwrap().data.to_vec();
    assert_eq!(bytes("z.bool"), [0, 1, 1, 1]);
    assert_eq!(bytes("z.i16"), [0, 0, 1, 0, 2, 0, 3, 0]);
    let f32s: Vec<u8> = [0.0f32, 1.0, 2.0, 3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(bytes("z.f32"), f32s);
    assert_eq!(bytes("z.bf16"), [0, 0, 0x80, 0x3f, 0, 0x40, 0x40, 0x40]);
    assert_eq!(file.get("a.scalar").unwrap().shape, &[] as &[usize]);
    assert_eq!(file.get("a.empty").unwrap().shape, [0, 3]);
    let dtypes: std::collections::BTreeSet<_> = file.iter().map(|t| t.dtype).collect();
    // Block scales have no torch tensor in this corpus.
    assert_eq!(dtypes.len(), Dtype::ALL.len() - 1);
}

#[test]
fn a_written_file_is_byte_equal_to_the_reference_writer() {
    for (name, metadata) in [("every_dtype", &[("format", "pt")][..]), ("no_metadata", &[])] {
        let path = fixture(&format!("{name}.safetensors"));
        let file = SafeTensors::open(&path).unwrap();
        let mut tensors: Vec<_> = file.iter().map(|t| OutTensor::new(t.name, t.dtype, t.shape, t.data)).collect();
        tensors.reverse();
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.safetensors");
        write_safetensors(&out, &tensors, metadata).unwrap();
        assert!(fs::read(&out).unwrap() == fs::read(&path).unwrap(), "{name} differs");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    }
}

#[test]
fn checkpoints_are_written_as_the_reference_writes_them() {
    let source = Checkpoint::open(fixture("sharded")).unwrap();
    for (name, limit) in [("sharded", 400), ("single", 1_000_000_000)] {
        let dir = tempfile::tempdir().unwrap();
        write_checkpoint(dir.path(), &state(&source), limit).unwrap();
        let mut names = Vec::new();
        for entry in fs::read_dir(fixture(name)).unwrap() {
            let expected = entry.unwrap();
            names.push(expected.file_name());
            let found = dir.path().join(expected.file_name());
            if expected.file_name().to_string_lossy().ends_with(".json") {
                // transformers sorts the keys and adds the parameter count; the map and the size are what readers use.
                let json = |path: &Path| hub::json::read_json::<serde_json::Value>(path).unwrap();
                let (expected, found) = (json(&expected.path()), json(&found));
                assert_eq!(found["weight_map"], expected["weight_map"]);
                assert_eq!(found["metadata"]["total_size"], expected["metadata"]["total_size"]);
                assert_eq!(found["metadata"]["total_parameters"], 496);
            } else {
                assert!(fs::read(&found).unwrap() == fs::read(expected.path()).unwrap(), "{found:?} differs");
            }
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), names.len());
    }
}

#[test]
fn single_and_sharded_hold_the_same_tensors() {
    let single = Checkpoint::open(fixture("single")).unwrap();
    let sharded = Checkpoint::open(fixture("sharded")).unwrap();
    assert_eq!(single.names(), sharded.names());
    assert_eq!(single.data_bytes(), sharded.data_bytes());
    for name in single.names() {
        let (a, b) = (single.get(name).unwrap(), sharded.get(name).unwrap());
        assert_eq!((a.dtype, a.shape, a.data), (b.dtype, b.shape, b.data));
    }
    assert!(single.get("nothing").is_none());
    assert!(sharded.file_of("big").unwrap().ends_with("model-00004-of-00005.safetensors"));
}

/// Opens a changed copy of the sharded fixture and compares the error's text.
fn check_broken(change: impl FnOnce(&Path), expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("m");
    copy_dir(&fixture("sharded"), &copy);
    change(&copy);
    let error = Checkpoint::open(&copy).unwrap_err();
    let text = error.to_string().replace(&*copy.to_string_lossy(), "DIR");
    assert!(text.contains(expected), "`{text}` does not contain `{expected}`");
}

fn edit_index(dir: &Path, from: &str, to: &str) {
    let path = dir.join(hub::INDEX_FILE);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from));
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn broken_folders_are_refused_by_name() {
    let index = "`DIR/model.safetensors.index.json`";
    check_broken(
        |dir| fs::remove_file(dir.join("model-00002-of-00005.safetensors")).unwrap(),
        &format!("{index} names shard `model-00002-of-00005.safetensors`, which is not in the folder"),
    );
    check_broken(
        |dir| edit_index(dir, "\"big\"", "\"bigger\""),
        &format!("{index} puts tensor `bigger` into `model-00004-of-00005.safetensors`, which does not hold it"),
    );
    for bad in [
        "../m/model-00004-of-00005.safetensors",
        "/etc/x.safetensors",
        "a\\\\b.safetensors",
        "..",
        "x.bin",
        ".h.safetensors",
    ] {
        let shown = bad.replace("\\\\", "\\");
        check_broken(
            |dir| edit_index(dir, "model-00004-of-00005.safetensors", bad),
            &format!("{index} names shard `{shown}`; a shard must be a plain"),
        );
    }
    check_broken(
        |dir| fs::write(dir.join(hub::INDEX_FILE), "{\n \"weight_map\": [").unwrap(),
        &format!("{index} line 2 column 15: "),
    );
    check_broken(
        |dir| {
            let path = dir.join("model-00001-of-00005.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
        },
        "`DIR/model-00001-of-00005.safetensors` is not a valid safetensors file: the header describes 288 bytes",
    );
}

#[test]
fn a_tensor_outside_the_index_counts_unless_it_is_ambiguous() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixture("sharded"), dir.path());
    edit_index(dir.path(), "    \"big\": \"model-00004-of-00005.safetensors\",\n", "");
    // The shard of `big` alone is no longer named at all, so the tensor is gone with it.
    assert_eq!(Checkpoint::open(dir.path()).unwrap().len(), 6);
    let extra =
        [OutTensor::new("layer.3.weight", Dtype::U8, &[1], vec![1]), OutTensor::new("extra", Dtype::U8, &[1], vec![2])];
    write_safetensors(dir.path().join("model-00003-of-00005.safetensors"), &extra, &[]).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.get("extra").unwrap().data, [2]);
    let extra =
        [OutTensor::new("layer.2.weight", Dtype::U8, &[1], vec![1]), OutTensor::new("extra", Dtype::U8, &[1], vec![2])];
    write_safetensors(dir.path().join("model-00002-of-00005.safetensors"), &extra, &[]).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(&error, HubError::AmbiguousTensor { tensor, .. } if tensor == "extra"), "{error}");
}

#[test]
fn folders_without_safetensors_say_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(error, HubError::NoWeights { .. }), "{error}");
    fs::write(dir.path().join("training_args.bin"), b"").unwrap();
    assert!(matches!(Checkpoint::open(dir.path()).unwrap_err(), HubError::NoWeights { .. }));
    fs::write(dir.path().join("consolidated.00.pth"), b"").unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("only as `consolidated.00.pth` (Python pickle)"), "{error}");
    assert!(error.hint().unwrap().contains("save_pretrained"));
    let error = Checkpoint::open(dir.path().join("none")).unwrap_err();
    assert!(matches!(error, HubError::NoSuchFolder { .. }), "{error}");
}

#[test]
fn writing_refuses_what_cannot_be_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.safetensors");
    let check = |tensors: &[OutTensor<'_>], expected: &str| {
        let error = write_safetensors(&out, tensors, &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something was left behind");
    };
    let one = || OutTensor::new("a", Dtype::F32, &[1], vec![0; 4]);
    check(&[one(), one()], "another tensor has the same name");
    check(&[OutTensor::new("__metadata__", Dtype::U8, &[1], vec![0])], "reserves this name");
    check(&[OutTensor::new("a", Dtype::F32, &[2], vec![0; 4])], "needs 8 bytes, got 4");
    check(&[OutTensor::new("a", Dtype::F32, &[usize::MAX, 2], vec![0; 4])], "overflows");
    check(
        &[one(), OutTensor::lazy("b", Dtype::U8, &[1], || Err(std::io::Error::other("gone")))],
        "cannot produce the bytes of tensor `b`: gone",
    );
}

#[test]
fn weights_of_another_checkpoint_are_never_mixed() {
    let source = Checkpoint::open(fixture("sharded")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), &state(&source), 400).unwrap();
    let error = write_checkpoint(dir.path(), &state(&source), 1 << 30).unwrap_err();
    assert!(matches!(error, HubError::Exists { .. }), "{error}");
    assert!(!dir.path().join(hub::SINGLE_FILE).exists());
}

#[test]
fn checkpoints_of_torch_hold_the_same_tensors() {
    let expected = Checkpoint::open(fixture("single")).unwrap();
    for name in ["bin_single", "bin_sharded"] {
        let found = Checkpoint::open(fixture(name)).unwrap();
        assert_eq!(found.names(), expected.names());
        for tensor in expected.names() {
            let (a, b) = (found.get(tensor).unwrap(), expected.get(tensor).unwrap());
            assert_eq!((a.dtype, a.shape, a.data), (b.dtype, b.shape, b.data), "{name}: {tensor}");
        }
        assert_eq!(found.data_bytes(), expected.data_bytes());
    }
    let sharded = Checkpoint::open(fixture("bin_sharded")).unwrap();
    assert!(sharded.file_of("layer.0.weight").unwrap().to_string_lossy().ends_with("-of-00002.bin"));
    // Where both kinds stand, safetensors is read, as by transformers.
    for (name, wins) in [("single", hub::SINGLE_FILE), ("sharded", "model-00004-of-00005.safetensors")] {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&fixture("bin_single"), dir.path());
        fs::write(dir.path().join("pytorch_model.bin"), b"never opened").unwrap();
        copy_dir(&fixture(name), dir.path());
        assert!(Checkpoint::open(dir.path()).unwrap().file_of("big").unwrap().ends_with(wins), "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixture("bin_sharded"), dir.path());
    let index = dir.path().join("pytorch_model.bin.index.json");
    let text = fs::read_to_string(&index).unwrap();
    for (from, to, expected) in [
        ("pytorch_model-00002-of-00002.bin", "../m.bin", "names shard `../m.bin`; a shard must be a plain file name"),
        ("pytorch_model-00002-of-00002.bin", "m.safetensors", "names shard `m.safetensors`"),
        ("pytorch_model-00002-of-00002.bin", "m.bin", "names shard `m.bin`, which is not in the folder"),
    ] {
        fs::write(&index, text.replace(from, to)).unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
