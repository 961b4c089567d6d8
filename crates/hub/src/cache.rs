//! Models by folder or by hub id: the hub cache in the layout that Hugging Face tools share (`models--owner--name` with
//! `blobs`, `refs`, `snapshots`), filled from the hub when something is missing. Owns which files of a repository are
//! fetched; never removes anything.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::atomic::atomic_write;
use crate::checkpoint::{INDEX_FILE, PICKLE_FILE, PICKLE_INDEX_FILE, SINGLE_FILE, shard_map};
use crate::env::HubEnv;
use crate::error::{HubError, Result};
use crate::http::{Client, Job, Retry, remove_if_there, sha256_of_file};

/// Greatest answer of the hub's file listing.
const MAX_LISTING: u64 = 64 << 20;
/// Greatest single file of a model.
const MAX_FILE: u64 = 1 << 40;
/// File name of adapter weights.
const ADAPTER_FILE: &str = "adapter_model.safetensors";

/// What a fetch tells while it runs: file name, bytes so far, bytes in all when known.
pub type Progress<'a> = &'a dyn Fn(&str, u64, Option<u64>);

/// The folder of a model: an existing folder as it is, else a hub id `owner/name[@revision]` from the cache, fetched first
/// unless `HF_HUB_OFFLINE` is set. A whole snapshot in the cache is used without asking the hub.
///
/// # Errors
/// See [`resolve_model_with`].
pub fn resolve_model(spec: &str) -> Result<PathBuf> {
    if Path::new(spec).is_dir() {
        return Ok(PathBuf::from(spec));
    }
    resolve_model_with(spec, &HubEnv::from_env()?, &|_, _, _| {})
}

/// As [`resolve_model`] for a name that stands in a file of `dir`: a folder relative to it wins.
///
/// # Errors
/// As [`resolve_model`].
pub fn resolve_beside(dir: &Path, spec: &str) -> Result<PathBuf> {
    let beside = dir.join(spec);
    if beside.is_dir() { Ok(beside) } else { resolve_model(spec) }
}

/// As [`resolve_model`] with explicit settings.
///
/// # Errors
/// A folder that is not there, a malformed id, an incomplete cache while offline, and everything a transfer can meet.
pub fn resolve_model_with(spec: &str, env: &HubEnv, progress: Progress<'_>) -> Result<PathBuf> {
    if Path::new(spec).is_dir() {
        return Ok(PathBuf::from(spec));
    }
    let (id, revision) = match spec.split_once('@') {
        Some((id, revision)) => (id, revision),
        None => (spec, "main"),
    };
    if !is_hub_id(id) || !is_revision(revision) {
        let looks_like_path = spec.starts_with(['.', '/', '~']) || spec.matches('/').count() > 1;
        return Err(match looks_like_path {
            true => HubError::NoSuchFolder { path: PathBuf::from(spec) },
            false => HubError::BadModelSpec { spec: spec.to_owned() },
        });
    }
    let repo = Repo { id, revision, dir: env.hub_cache.join(format!("models--{}", id.replace('/', "--"))), env };
    let cached = repo.cached_snapshot();
    let missing = match &cached {
        Some(snapshot) => missing_from(snapshot)?,
        None => Some("no snapshot of this revision".to_owned()),
    };
    match (cached, missing) {
        (Some(snapshot), None) if env.offline || has_tokenizer(&snapshot) => Ok(snapshot),
        // Another tool may have fetched the weights alone. The rest is asked for, but the hub may be out of reach, and
        // some models have no tokenizer at all.
        (Some(snapshot), None) => match repo.fetch(progress) {
            Err(HubError::Transfer { .. }) => Ok(snapshot),
            fetched => fetched,
        },
        (_, missing) if env.offline => Err(HubError::Offline {
            what: spec.to_owned(),
            cache: env.hub_cache.clone(),
            missing: missing.unwrap_or_default(),
        }),
        _ => repo.fetch(progress),
    }
}

struct Repo<'a> {
    id: &'a str,
    revision: &'a str,
    dir: PathBuf,
    env: &'a HubEnv,
}

#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Repo<'_> {
    fn cached_snapshot(&self) -> Option<PathBuf> {
        let commit = match fs::read_to_string(self.dir.join("refs").join(self.revision)) {
            Ok(text) => text.trim().to_owned(),
            Err(_) => self.revision.to_owned(),
        };
        if !is_commit(&commit) {
            return None;
        }
        Some(self.dir.join("snapshots").join(commit)).filter(|dir| dir.is_dir())
    }

    fn fetch(&self, progress: Progress<'_>) -> Result<PathBuf> {
        let client = Client::new(
            self.env.endpoint.starts_with("https://"),
            self.env.root_certificates.as_deref(),
            Retry::DEFAULT,
        )?;
        let token = self.env.token.as_deref();
        let revision = self.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.env.endpoint, self.id);
        let answer = client.get_bytes(&url, token, MAX_LISTING)?;
        let listing: Listing = serde_json::from_slice(&answer)
            .map_err(|e| HubError::BadAnswer { what: self.id.to_owned(), reason: e.to_string() })?;
        if !is_commit(&listing.sha) {
            let reason = format!("`{}` is not a commit", listing.sha);
            return Err(HubError::BadAnswer { what: self.id.to_owned(), reason });
        }
        let blobs = self.dir.join("blobs");
        let snapshot = self.dir.join("snapshots").join(&listing.sha);
        for dir in [&blobs, &snapshot] {
            fs::create_dir_all(dir).map_err(|e| HubError::io("create", dir, e))?;
        }
        let lock_path = self.dir.join(".vidtune.lock");
        let lock = File::create(&lock_path).map_err(|e| HubError::io("create", &lock_path, e))?;
        lock.lock().map_err(|e| HubError::io("lock", &lock_path, e))?;
        let has = |name: &str| listing.siblings.iter().any(|s| s.rfilename == name);
        for sibling in listing.siblings.iter().filter(|s| is_wanted(&s.rfilename)) {
            self.fetch_file(&client, &listing.sha, &sibling.rfilename, &snapshot, progress)?;
        }
        let layouts = [(SINGLE_FILE, INDEX_FILE), (PICKLE_FILE, PICKLE_INDEX_FILE)];
        if let Some((single, index)) = layouts.into_iter().find(|(single, index)| has(single) || has(index)) {
            let mut files = std::collections::BTreeSet::from([single.to_owned()]);
            if !has(single) {
                self.fetch_file(&client, &listing.sha, index, &snapshot, progress)?;
                files = shard_map(&snapshot.join(index))?.into_values().collect();
            }
            for file in files {
                self.fetch_file(&client, &listing.sha, &file, &snapshot, progress)?;
            }
        } else if !has(ADAPTER_FILE) {
            let pickle =
                listing.siblings.iter().map(|s| &s.rfilename).find(|n| n.ends_with(".bin") && !n.contains('/'));
            return Err(match pickle {
                Some(file) => HubError::PickleOnly { dir: PathBuf::from(self.id), file: file.clone() },
                None => HubError::NoWeights { dir: PathBuf::from(self.id) },
            });
        }
        // The name of the revision comes last: whoever finds it finds the files as well.
        if !is_commit(self.revision) {
            let reference = self.dir.join("refs").join(self.revision);
            if let Some(parent) = reference.parent() {
                fs::create_dir_all(parent).map_err(|e| HubError::io("create", parent, e))?;
            }
            atomic_write(&reference, listing.sha.as_bytes())?;
        }
        Ok(snapshot)
    }

    fn fetch_file(
        &self,
        client: &Client,
        commit: &str,
        name: &str,
        snapshot: &Path,
        progress: Progress<'_>,
    ) -> Result<()> {
        let target = snapshot.join(name);
        if target.is_file() {
            return Ok(());
        }
        let url = format!("{}/{}/resolve/{commit}/{name}", self.env.endpoint, self.id);
        let token = self.env.token.as_deref();
        let headers = client.head(&url, token)?;
        let header = |key: &str| headers.get(key).and_then(|v| v.to_str().ok());
        let etag =
            header("x-linked-etag").or_else(|| header("etag")).map(|t| t.trim_start_matches("W/").trim_matches('"'));
        let Some(etag) = etag.filter(|t| t.len() >= 32 && t.bytes().all(|b| b.is_ascii_hexdigit())) else {
            let reason = "it carries no usable entity tag".to_owned();
            return Err(HubError::BadAnswer { what: url, reason });
        };
        let blob = self.dir.join("blobs").join(etag);
        if !blob.is_file() {
            let part = self.dir.join("blobs").join(format!("{etag}.vidtune-part"));
            let job =
                Job { url: &url, token, max_bytes: MAX_FILE, progress: &|done, total| progress(name, done, total) };
            let arrived = client.get_file(&job, &part)?;
            // The tag of a large file is the digest of its content.
            if etag.len() == 64 && arrived.sha256 != etag {
                remove_if_there(&part)?;
                return Err(HubError::Checksum { url, expected: etag.to_owned(), found: arrived.sha256 });
            }
            fs::rename(&part, &blob).map_err(|e| HubError::io("rename to", &blob, e))?;
        } else if etag.len() == 64 && sha256_of_file(&blob)? != etag {
            let found = sha256_of_file(&blob)?;
            return Err(HubError::Checksum { url, expected: etag.to_owned(), found });
        }
        link(&blob, &target, etag)
    }
}

/// Makes the snapshot's name for a blob: a relative link where the system has links, else the blob itself moves.
fn link(blob: &Path, target: &Path, etag: &str) -> Result<()> {
    // A dangling link may be left from a cache that lost its blob.
    remove_if_there(target)?;
    #[cfg(unix)]
    let made = {
        let _ = blob;
        std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), target)
    };
    #[cfg(not(unix))]
    let made = {
        let _ = etag;
        fs::rename(blob, target)
    };
    made.map_err(|e| HubError::io("link", target, e))
}

fn has_tokenizer(snapshot: &Path) -> bool {
    ["tokenizer.json", "tokenizer_config.json", "adapter_config.json"].iter().any(|name| snapshot.join(name).is_file())
}

/// What a snapshot lacks of a model that can be loaded; `None` when it is whole.
fn missing_from(snapshot: &Path) -> Result<Option<String>> {
    let has = |name: &str| snapshot.join(name).is_file();
    if has("adapter_config.json") {
        return Ok((!has(ADAPTER_FILE)).then(|| ADAPTER_FILE.to_owned()));
    }
    if !has("config.json") {
        return Ok(Some("config.json".to_owned()));
    }
    for (single, index) in [(SINGLE_FILE, INDEX_FILE), (PICKLE_FILE, PICKLE_INDEX_FILE)] {
        if has(single) {
            return Ok(None);
        }
        if has(index) {
            return Ok(shard_map(&snapshot.join(index))?.into_values().find(|shard| !has(shard)));
        }
    }
    Ok(Some(SINGLE_FILE.to_owned()))
}

/// Files of a repository's top level that describe the model; weights are chosen apart.
fn is_wanted(name: &str) -> bool {
    let plain = !name.contains(['/', '\\', ':', '\0']) && !name.starts_with('.');
    let text = [".json", ".txt", ".jinja", ".model", ".tiktoken"].iter().any(|end| name.ends_with(end));
    let foreign = name.ends_with(".bin.index.json") || name.ends_with(".h5.index.json");
    plain && (name == ADAPTER_FILE || (text && !foreign))
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_hub_id(id: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && !p.starts_with(['.', '-'])
            && !p.ends_with(['.', '-'])
            && !p.contains("--")
            && !p.contains("..")
    };
    match id.split_once('/') {
        Some((owner, name)) => id.len() <= 96 && part(owner) && part(name),
        None => false,
    }
}

fn is_revision(revision: &str) -> bool {
    !revision.is_empty()
        && revision.split('/').all(|p| !p.is_empty() && !p.starts_with('.'))
        && revision.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
}
