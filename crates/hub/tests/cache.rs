//! Models by hub id: the shared cache layout, and filling it from a scripted hub.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

mod server;

use std::fs;
use std::path::Path;

use hub::{HubEnv, HubError, resolve_model_with};
use server::{Server, answer};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn env(home: &Path, endpoint: &str, offline: bool, token: Option<&str>) -> HubEnv {
    HubEnv::from_lookup(
        |name| match name {
            "HF_HOME" => Some(home.to_string_lossy().into_owned()),
            "HF_ENDPOINT" => Some(endpoint.to_owned()),
            "HF_HUB_OFFLINE" => offline.then(|| "1".to_owned()),
            "HF_TOKEN" => token.map(str::to_owned),
            _ => None,
        },
        |_| None,
    )
    .unwrap()
}

fn resolve(spec: &str, env: &HubEnv) -> Result<std::path::PathBuf, HubError> {
    resolve_model_with(spec, env, &|_, _, _| {})
}

/// A snapshot as another tool leaves it, with files of these names.
fn snapshot(home: &Path, files: &[&str]) {
    let repo = home.join("hub/models--org--tiny");
    let dir = repo.join("snapshots").join(COMMIT);
    fs::create_dir_all(&dir).unwrap();
    fs::create_dir_all(repo.join("refs/pr")).unwrap();
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    fs::write(repo.join("refs/pr/1"), COMMIT).unwrap();
    for file in files {
        fs::write(dir.join(file), r#"{"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors"}}"#).unwrap();
    }
}

#[test]
fn a_cached_snapshot_is_found_without_the_network() {
    let home = tempfile::tempdir().unwrap();
    snapshot(home.path(), &["config.json", "model.safetensors", "tokenizer.json"]);
    // Port 9 discards; a request there would fail.
    let env = env(home.path(), "http://127.0.0.1:9", false, None);
    for spec in
        ["org/tiny".to_owned(), "org/tiny@main".to_owned(), "org/tiny@pr/1".to_owned(), format!("org/tiny@{COMMIT}")]
    {
        assert!(resolve(&spec, &env).unwrap().ends_with(COMMIT), "{spec}");
    }
}

#[test]
fn offline_names_what_is_missing() {
    let cases: [(&[&str], &str); 5] = [
        (&[], "config.json"),
        (&["config.json"], "model.safetensors"),
        (&["config.json", "model.safetensors.index.json", "s1.safetensors"], "s2.safetensors"),
        (&["adapter_config.json"], "adapter_model.safetensors"),
        (&["config.json", "model.safetensors.index.json", "s1.safetensors", "s2.safetensors"], ""),
    ];
    for (files, missing) in cases {
        let home = tempfile::tempdir().unwrap();
        snapshot(home.path(), files);
        match resolve("org/tiny", &env(home.path(), "http://127.0.0.1:9", true, None)) {
            Ok(_) => assert_eq!(missing, "", "{files:?}"),
            Err(HubError::Offline { missing: found, .. }) => assert_eq!(found, missing),
            Err(other) => panic!("{other}"),
        }
    }
    let home = tempfile::tempdir().unwrap();
    let error = resolve("org/none", &env(home.path(), "http://127.0.0.1:9", true, None)).unwrap_err();
    assert!(error.to_string().contains("HF_HUB_OFFLINE is set (no snapshot of this revision)"), "{error}");
}

#[test]
fn specs_are_checked_before_they_become_paths() {
    let home = tempfile::tempdir().unwrap();
    let env = env(home.path(), "http://127.0.0.1:9", true, None);
    for bad in ["tiny", "org/..", "../x", "org/ti ny", "org--x/y", "org/x@../../y", "org/x@", "/none", "a/b/c", ""] {
        let error = resolve(bad, &env).unwrap_err();
        assert!(matches!(error, HubError::BadModelSpec { .. } | HubError::NoSuchFolder { .. }), "{bad}: {error}");
    }
    assert_eq!(resolve(&home.path().to_string_lossy(), &env).unwrap(), home.path());
}

/// A hub with one model: a listing, small files tagged by git's digest, weights tagged by sha256 behind a redirect.
fn hub(listing: &'static str, weights_tag: &'static str) -> Server {
    Server::start(move |_, head| {
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        assert!(head.to_ascii_lowercase().contains("authorization: bearer hf_x\r\n"), "{head}");
        let body = |text: &[u8]| if method == "HEAD" { Vec::new() } else { text.to_vec() };
        let tag = format!("ETag: \"{COMMIT}\"\r\n");
        match path.rsplit('/').next().unwrap() {
            "main" => answer("200 OK", "", listing.as_bytes()),
            "model.safetensors" | "pytorch_model.bin" | "pytorch_model-00001-of-00001.bin" if method == "HEAD" => {
                answer(
                    "302 Found",
                    &format!("X-Linked-ETag: \"{weights_tag}\"\r\nLocation: https://cdn.invalid/w\r\n"),
                    b"",
                )
            }
            "model.safetensors" | "pytorch_model.bin" | "pytorch_model-00001-of-00001.bin" => {
                answer("200 OK", "", b"hello")
            }
            "pytorch_model.bin.index.json" => {
                let index = br#"{"weight_map": {"w": "pytorch_model-00001-of-00001.bin"}}"#;
                answer("200 OK", &tag.replace("\"0", "\"e"), &body(index))
            }
            "config.json" => answer("200 OK", &tag, &body(b"{}")),
            "tokenizer.json" => answer("200 OK", &tag.replace("\"0", "\"f"), &body(b"{ }")),
            other => panic!("`{other}` should not be asked for"),
        }
    })
}

const LISTING: &str = r#"{"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "README.md"},
    {"rfilename": "config.json"}, {"rfilename": "tokenizer.json"}, {"rfilename": "model.safetensors"},
    {"rfilename": "pytorch_model.bin"}, {"rfilename": "onnx/model.json"}, {"rfilename": "../evil.json"}]}"#;
const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

#[test]
fn a_model_is_fetched_into_the_shared_layout() {
    let home = tempfile::tempdir().unwrap();
    let server = hub(LISTING, HELLO);
    let env = env(home.path(), &server.address, false, Some("hf_x"));
    let dir = resolve("org/tiny", &env).unwrap();
    assert_eq!(dir, home.path().join("hub/models--org--tiny/snapshots").join(COMMIT));
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), b"hello");
    assert_eq!(fs::read(dir.join("tokenizer.json")).unwrap(), b"{ }");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
    assert_eq!(fs::read_to_string(dir.join("../../refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    assert_eq!(fs::read_link(dir.join("model.safetensors")).unwrap(), Path::new("../../blobs").join(HELLO));
    let before = server.requests().len();
    assert_eq!(resolve("org/tiny", &env).unwrap(), dir);
    assert_eq!(server.requests().len(), before);
}

#[test]
fn weights_that_are_not_what_the_hub_promised_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let server = hub(LISTING, "00f24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    let error = resolve("org/tiny", &env(home.path(), &server.address, false, Some("hf_x"))).unwrap_err();
    assert!(matches!(error, HubError::Checksum { .. }), "{error}");
    let repo = home.path().join("hub/models--org--tiny");
    assert!(
        !repo.join("refs/main").exists() && !repo.join("snapshots").join(COMMIT).join("model.safetensors").exists()
    );
}

#[test]
fn weights_of_torch_are_fetched_where_nothing_else_is() {
    let home = tempfile::tempdir().unwrap();
    let listing = r#"{"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "config.json"},
        {"rfilename": "pytorch_model.bin"}]}"#;
    let server = hub(listing, HELLO);
    let env = env(home.path(), &server.address, false, Some("hf_x"));
    let dir = resolve("org/tiny", &env).unwrap();
    assert_eq!(fs::read(dir.join("pytorch_model.bin")).unwrap(), b"hello");
    // The same, by an index.
    let home = tempfile::tempdir().unwrap();
    let listing = r#"{"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "config.json"},
        {"rfilename": "pytorch_model.bin.index.json"}]}"#;
    let server = hub(listing, HELLO);
    let env = self::env(home.path(), &server.address, false, Some("hf_x"));
    let dir = resolve("org/tiny", &env).unwrap();
    assert_eq!(fs::read(dir.join("pytorch_model-00001-of-00001.bin")).unwrap(), b"hello");
}

#[test]
fn a_repository_of_other_pickles_is_refused_before_its_weights_are_fetched() {
    let home = tempfile::tempdir().unwrap();
    let listing = r#"{"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "config.json"},
        {"rfilename": "consolidated.bin"}]}"#;
    let server = hub(listing, HELLO);
    let error = resolve("org/tiny", &env(home.path(), &server.address, false, Some("hf_x"))).unwrap_err();
    assert!(matches!(error, HubError::PickleOnly { .. }), "{error}");
}

#[test]
fn a_listing_that_lies_is_refused() {
    for listing in [r#"{"sha": "../../x", "siblings": []}"#, "[]", r#"{"sha": 3}"#] {
        let home = tempfile::tempdir().unwrap();
        let server = hub(listing, HELLO);
        let error = resolve("org/tiny", &env(home.path(), &server.address, false, Some("hf_x"))).unwrap_err();
        assert!(matches!(error, HubError::BadAnswer { .. }), "{error}");
    }
}
