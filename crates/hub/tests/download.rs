//! Downloads against a scripted server: retries, limits, resumed transfers, entries that were damaged afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are outside `#[test]` functions.

mod server;

use std::fs;
use std::path::Path;
use std::time::Duration;

use hub::{DownloadOptions, HubEnv, HubError, download};
use server::{Server, answer, answer_of_length};

fn options(dir: &Path) -> DownloadOptions {
    let home = dir.to_string_lossy().into_owned();
    let env = HubEnv::from_lookup(|name| (name == "HOME").then(|| home.clone()), |_| None).unwrap();
    DownloadOptions {
        cache_dir: dir.join("downloads"),
        allow_http: true,
        first_wait: Duration::from_millis(1),
        max_wait: Duration::from_millis(4),
        ..DownloadOptions::new(&env)
    }
}

#[test]
fn a_file_is_fetched_once_and_its_digest_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| answer("200 OK", "ETag: \"v1\"\r\n", b"hello"));
    let url = format!("{}/clips/a.mp4?x=1", server.address);
    let first = download(&url, &options(dir.path())).unwrap();
    assert_eq!(fs::read(&first).unwrap(), b"hello");
    assert_eq!(first.extension().unwrap(), "mp4");
    let note = fs::read_to_string(first.with_extension("json")).unwrap();
    // printf hello | sha256sum
    assert!(note.contains("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"), "{note}");
    assert_eq!(download(&url, &options(dir.path())).unwrap(), first);
    let offline = DownloadOptions { offline: true, ..options(dir.path()) };
    assert_eq!(download(&url, &offline).unwrap(), first);
    assert_eq!(server.requests().len(), 1);
    let error = download(&format!("{url}2"), &offline).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
}

#[test]
fn a_damaged_entry_is_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| answer("200 OK", "", b"hello"));
    let url = format!("{}/a.mp4", server.address);
    let path = download(&url, &options(dir.path())).unwrap();
    for damage in [&b"jello"[..], b"hell"] {
        fs::write(&path, damage).unwrap();
        let offline = DownloadOptions { offline: true, ..options(dir.path()) };
        assert!(matches!(download(&url, &offline), Err(HubError::Offline { .. })));
        assert_eq!(download(&url, &options(dir.path())).unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), b"hello");
    }
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn passing_faults_are_retried() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|number, _| match number {
        0 => answer("503 Service Unavailable", "", b"busy"),
        1 => answer("429 Too Many Requests", "Retry-After: 7200\r\n", b""),
        2 => Vec::new(),
        3 => answer_of_length("200 OK", "", b"hel", 5),
        _ => answer("200 OK", "", b"hello"),
    });
    let path = download(&format!("{}/a", server.address), &options(dir.path())).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"hello");
    assert_eq!(server.requests().len(), 5);
}

#[test]
fn lasting_faults_name_the_last_reason() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| answer("503 Service Unavailable", "", b""));
    let url = format!("{}/a", server.address);
    let error = download(&url, &options(dir.path())).unwrap_err();
    assert_eq!(error.to_string(), format!("`{url}` answered with status 503 after 5 attempt(s)"));
    let server = Server::start(|_, _| answer_of_length("200 OK", "", b"hel", 5));
    let error = download(&format!("{}/a", server.address), &options(dir.path())).unwrap_err();
    assert!(matches!(&error, HubError::Transfer { attempts: 5, .. }), "{error}");
}

#[test]
fn a_final_status_is_not_retried() {
    for (status, hint) in
        [("404 Not Found", "spelling"), ("403 Forbidden", "HF_TOKEN"), ("401 Unauthorized", "HF_TOKEN")]
    {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(move |_, _| answer(status, "", b""));
        let error = download(&format!("{}/a", server.address), &options(dir.path())).unwrap_err();
        assert!(matches!(error, HubError::Status { attempts: 1, .. }), "{error}");
        assert!(error.hint().unwrap().contains(hint));
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn a_cut_transfer_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|number, head| match number {
        0 => answer_of_length("200 OK", "ETag: \"v1\"\r\n", b"hel", 5),
        _ => {
            let head = head.to_ascii_lowercase();
            assert!(head.contains("range: bytes=3-\r\n") && head.contains("if-range: \"v1\"\r\n"), "{head}");
            answer("206 Partial Content", "ETag: \"v1\"\r\nContent-Range: bytes 3-4/5\r\n", b"lo")
        }
    });
    let path = download(&format!("{}/a", server.address), &options(dir.path())).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert!(fs::read_to_string(path.with_extension("json")).unwrap().contains("2cf24dba5fb0a30e26e83b2ac5b9e29e"));
    let left: Vec<_> = fs::read_dir(dir.path().join("downloads")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn a_changed_file_is_not_glued_to_the_old_part() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|number, _| match number {
        0 => answer_of_length("200 OK", "ETag: \"v1\"\r\n", b"old", 5),
        1 => answer_of_length("200 OK", "ETag: \"v2\"\r\n", b"ne", 3),
        2 => answer("206 Partial Content", "Content-Range: bytes 0-2/3\r\n", b"new"),
        _ => answer("200 OK", "ETag: \"v2\"\r\n", b"new"),
    });
    let path = download(&format!("{}/a", server.address), &options(dir.path())).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn the_size_limit_holds_for_announced_and_for_sent_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let small = DownloadOptions { max_bytes: 4, ..options(dir.path()) };
    let server = Server::start(|_, _| answer("200 OK", "", b"hello"));
    let error = download(&format!("{}/a", server.address), &small).unwrap_err();
    assert!(matches!(error, HubError::TooLarge { limit: 4, found: 5, .. }), "{error}");
    let chunked = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let server = Server::start(|_, _| chunked.to_vec());
    let error = download(&format!("{}/a", server.address), &small).unwrap_err();
    assert!(matches!(error, HubError::TooLarge { limit: 4, .. }), "{error}");
    assert_eq!(server.requests().len(), 1);
    // An entry fetched under a larger limit is held to the present one.
    let url = format!("{}/b", server.address);
    download(&url, &options(dir.path())).unwrap();
    assert!(matches!(download(&url, &small), Err(HubError::TooLarge { .. })));
}

#[test]
fn only_https_is_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let strict = DownloadOptions { allow_http: false, ..options(dir.path()) };
    for url in ["http://127.0.0.1/x", "file:///etc/passwd", "ftp://x/y", "x.mp4"] {
        let error = download(url, &strict).unwrap_err();
        assert!(matches!(error, HubError::BadUrl { .. }), "{error}");
    }
    assert!(!dir.path().join("downloads").exists());
}

#[test]
fn many_threads_fetch_one_address_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| answer("200 OK", "", b"hello"));
    let url = format!("{}/a", server.address);
    let options = options(dir.path());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(fs::read(download(&url, &options).unwrap()).unwrap(), b"hello"));
        }
    });
    assert_eq!(server.requests().len(), 1);
}
