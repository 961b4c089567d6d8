//! The HTTP client: retries with back-off, size limits, resumed transfers, checksums of what arrived. Owns no cache names.
//!
//! Retried are 408, 429, every 5xx and everything that fails below HTTP; another status is final at once. A token goes to
//! the host it was meant for and is never repeated to the target of a redirect.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::error::{HubError, Result};

/// How often and how patiently a transfer is tried.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Retry {
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// Wait before the second attempt; doubles from there.
    pub first_wait: Duration,
    /// Greatest wait, also for a server's `Retry-After`.
    pub max_wait: Duration,
}

impl Retry {
    pub(crate) const DEFAULT: Retry =
        Retry { attempts: 5, first_wait: Duration::from_secs(1), max_wait: Duration::from_secs(60) };
}

/// A file that has arrived.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// Its length in bytes.
    pub bytes: u64,
    /// Its digest, lower-case hexadecimal.
    pub sha256: String,
    /// The server's entity tag, if any.
    pub etag: Option<String>,
}

/// What to fetch, and within which limits.
pub(crate) struct Job<'a> {
    pub url: &'a str,
    pub token: Option<&'a str>,
    pub max_bytes: u64,
    /// Called with the bytes so far and the total when known.
    pub progress: &'a dyn Fn(u64, Option<u64>),
}

pub(crate) struct Client {
    agent: Agent,
    retry: Retry,
}

/// Outcome of one attempt that did not succeed.
enum Failure {
    Again { reason: String, status: Option<u16>, wait: Option<Duration> },
    Final(HubError),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Failure {
        Failure::Final(error)
    }
}

impl Client {
    /// A client; `https_only` also refuses redirects to plain http.
    pub(crate) fn new(https_only: bool, root_certificates: Option<&Path>, retry: Retry) -> Result<Client> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = root_certificates {
            let pem = fs::read(path).map_err(|e| HubError::io("read", path, e))?;
            let mut certificates = Vec::new();
            for item in parse_pem(&pem) {
                let item = item.map_err(|e| HubError::io("parse", path, io::Error::other(e.to_string())))?;
                if let PemItem::Certificate(certificate) = item {
                    certificates.push(certificate);
                }
            }
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
        }
        let agent = Agent::config_builder()
            .https_only(https_only)
            .http_status_as_error(false)
            .user_agent(concat!("vidtune/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build())
            .timeout_resolve(Some(Duration::from_secs(30)))
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build()
            .new_agent();
        Ok(Client { agent, retry })
    }

    /// The body of `url` in memory, at most `max_bytes`.
    pub(crate) fn get_bytes(&self, url: &str, token: Option<&str>, max_bytes: u64) -> Result<Vec<u8>> {
        self.with_retries(url, |_| {
            let mut response = self.send(url, token, &[])?;
            check_status(url, &response)?;
            let mut body = Vec::new();
            let mut reader = response.body_mut().as_reader().take(max_bytes + 1);
            reader.read_to_end(&mut body).map_err(again)?;
            if body.len() as u64 > max_bytes {
                return Err(too_large(url, max_bytes, body.len() as u64).into());
            }
            Ok(body)
        })
    }

    /// The headers of `url` itself: a redirect to another host is not followed (the hub puts the digest of a large file on
    /// the redirect), one within the host is.
    pub(crate) fn head(&self, url: &str, token: Option<&str>) -> Result<HeaderMap> {
        self.with_retries(url, |_| {
            let mut at = url.to_owned();
            for _ in 0..5 {
                let request = self.agent.head(&at).config().max_redirects(0).max_redirects_will_error(false).build();
                let request = match token {
                    Some(token) => request.header("authorization", format!("Bearer {token}")),
                    None => request,
                };
                let response = request.header("accept-encoding", "identity").call().map_err(|e| classify(url, e))?;
                let location = response.headers().get("location").and_then(|l| l.to_str().ok());
                match (response.status().is_redirection(), location) {
                    (true, Some(path)) if path.starts_with('/') && !path.starts_with("//") => {
                        at = format!("{}{path}", origin_of(&at));
                    }
                    (true, Some(_)) => return Ok(response.headers().clone()),
                    _ => {
                        check_status(url, &response)?;
                        return Ok(response.headers().clone());
                    }
                }
            }
            Err(Failure::Final(HubError::BadAnswer { what: url.to_owned(), reason: "too many redirects".to_owned() }))
        })
    }

    /// Fetches into `part`, going on where an earlier attempt (or an earlier run) stopped when the server can prove that
    /// the content is still the same. On success `part` is whole and flushed.
    pub(crate) fn get_file(&self, job: &Job<'_>, part: &Path) -> Result<Arrived> {
        let arrived = self.with_retries(job.url, |_| self.try_file(job, part))?;
        remove_if_there(&tag_path(part))?;
        Ok(arrived)
    }

    fn try_file(&self, job: &Job<'_>, part: &Path) -> Result<Arrived, Failure> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(part)
            .map_err(|e| HubError::io("open", part, e))?;
        let held = file.metadata().map_err(|e| HubError::io("read the size of", part, e))?.len();
        let tag = fs::read_to_string(tag_path(part)).ok().filter(|tag| is_strong(tag));
        let mut headers = vec![("accept-encoding", "identity".to_owned())];
        if let (true, Some(tag)) = (held > 0, &tag) {
            headers.push(("range", format!("bytes={held}-")));
            headers.push(("if-range", tag.clone()));
        }
        let mut response = self.send(job.url, job.token, &headers)?;
        if response.status() == 416 {
            restart(&file, part)?;
            return Err(Failure::Again { reason: "the server refused to continue".into(), status: None, wait: None });
        }
        check_status(job.url, &response)?;
        let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (etag, encoding) = (text("etag"), text("content-encoding"));
        if encoding.is_some_and(|e| e != "identity") {
            let reason = "the server compresses although it was asked not to".to_owned();
            return Err(HubError::BadAnswer { what: job.url.to_owned(), reason }.into());
        }
        let mut hasher = Sha256::new();
        let continued = response.status() == 206;
        let start = if continued {
            let range = text("content-range").unwrap_or_default();
            if !range.starts_with(&format!("bytes {held}-")) {
                restart(&file, part)?;
                return Err(Failure::Again { reason: format!("unexpected range `{range}`"), status: None, wait: None });
            }
            file.seek(SeekFrom::Start(0)).map_err(|e| HubError::io("read", part, e))?;
            io::copy(&mut (&file).take(held), &mut hasher).map_err(|e| HubError::io("read", part, e))?;
            held
        } else {
            restart(&file, part)?;
            file.seek(SeekFrom::Start(0)).map_err(|e| HubError::io("write", part, e))?;
            if let Some(tag) = etag.as_deref().filter(|tag| is_strong(tag)) {
                let path = tag_path(part);
                fs::write(&path, tag).map_err(|e| HubError::io("write", &path, e))?;
            }
            0
        };
        let total = text("content-length").and_then(|l| l.parse::<u64>().ok()).map(|l| l.saturating_add(start));
        if let Some(total) = total.filter(|&total| total > job.max_bytes) {
            return Err(too_large(job.url, job.max_bytes, total).into());
        }
        let bytes = copy(job, &mut response, &mut file, part, &mut hasher, start, total)?;
        if let Some(total) = total.filter(|&total| total != bytes) {
            let reason = format!("the connection ended after {bytes} of {total} bytes");
            return Err(Failure::Again { reason, status: None, wait: None });
        }
        file.sync_all().map_err(|e| HubError::io("flush", part, e))?;
        Ok(Arrived { bytes, sha256: hex(&hasher.finalize()), etag })
    }

    fn send(&self, url: &str, token: Option<&str>, headers: &[(&str, String)]) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        request.call().map_err(|e| classify(url, e))
    }

    fn with_retries<T>(&self, url: &str, mut attempt: impl FnMut(u32) -> Result<T, Failure>) -> Result<T> {
        let mut wait = self.retry.first_wait;
        let mut number = 1;
        loop {
            match attempt(number) {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again { reason, status, wait: asked }) => {
                    if number >= self.retry.attempts {
                        return Err(match status {
                            Some(status) => HubError::Status { url: url.to_owned(), status, attempts: number },
                            None => HubError::Transfer { url: url.to_owned(), attempts: number, reason },
                        });
                    }
                    std::thread::sleep(asked.unwrap_or(wait).min(self.retry.max_wait));
                    wait = (wait * 2).min(self.retry.max_wait);
                    number += 1;
                }
            }
        }
    }
}

fn copy(
    job: &Job<'_>,
    response: &mut Response<Body>,
    file: &mut File,
    part: &Path,
    hasher: &mut Sha256,
    start: u64,
    total: Option<u64>,
) -> Result<u64, Failure> {
    let mut reader = response.body_mut().as_reader();
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = start;
    loop {
        let count = reader.read(&mut buffer).map_err(again)?;
        if count == 0 {
            return Ok(bytes);
        }
        bytes += count as u64;
        if bytes > job.max_bytes {
            return Err(too_large(job.url, job.max_bytes, bytes).into());
        }
        file.write_all(&buffer[..count]).map_err(|e| HubError::io("write", part, e))?;
        hasher.update(&buffer[..count]);
        (job.progress)(bytes, total);
    }
}

/// Digest of a file's content, lower-case hexadecimal.
pub(crate) fn sha256_of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| HubError::io("open", path, e))?;
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut hasher).map_err(|e| HubError::io("read", path, e))?;
    Ok(hex(&hasher.finalize()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(HubError::io("remove", path, e)),
        _ => Ok(()),
    }
}

fn restart(file: &File, part: &Path) -> Result<()> {
    file.set_len(0).map_err(|e| HubError::io("truncate", part, e))?;
    remove_if_there(&tag_path(part))
}

fn tag_path(part: &Path) -> PathBuf {
    let mut name = part.as_os_str().to_owned();
    name.push(".etag");
    PathBuf::from(name)
}

fn is_strong(tag: &str) -> bool {
    tag.len() > 2 && tag.starts_with('"') && tag.ends_with('"')
}

fn origin_of(url: &str) -> &str {
    let host = url.find("://").map_or(0, |n| n + 3);
    &url[..url[host..].find(['/', '?', '#']).map_or(url.len(), |n| host + n)]
}

fn too_large(url: &str, limit: u64, found: u64) -> HubError {
    HubError::TooLarge { url: url.to_owned(), limit, found }
}

fn again(error: io::Error) -> Failure {
    Failure::Again { reason: error.to_string(), status: None, wait: None }
}

fn check_status(url: &str, response: &Response<Body>) -> Result<(), Failure> {
    let status = response.status().as_u16();
    match status {
        200 | 206 => Ok(()),
        408 | 429 | 500..=599 => {
            let wait = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
            Err(Failure::Again { reason: String::new(), status: Some(status), wait: wait.map(Duration::from_secs) })
        }
        _ => Err(HubError::Status { url: url.to_owned(), status, attempts: 1 }.into()),
    }
}

fn classify(url: &str, error: ureq::Error) -> Failure {
    let reason = error.to_string();
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::RequireHttpsOnly(_) => {
            HubError::BadUrl { url: url.to_owned(), reason }.into()
        }
        ureq::Error::TooManyRedirects | ureq::Error::RedirectFailed | ureq::Error::InvalidProxyUrl => {
            HubError::Transfer { url: url.to_owned(), attempts: 1, reason }.into()
        }
        _ => Failure::Again { reason, status: None, wait: None },
    }
}
