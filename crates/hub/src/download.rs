//! Media from https addresses into this program's own cache: one entry per address, its digest beside it and checked before
//! an entry is used again. Owns the entries' names; knows nothing of what the files hold.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::atomic::atomic_write;
use crate::env::HubEnv;
use crate::error::{HubError, Result};
use crate::http::{Client, Job, Retry, hex, sha256_of_file};
use crate::json;

/// How [`download`] fetches and where it keeps what it fetched.
#[derive(Debug, Clone, PartialEq)]
pub struct DownloadOptions {
    /// Folder of the entries.
    pub cache_dir: PathBuf,
    /// Greatest accepted file, in bytes.
    pub max_bytes: u64,
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// Wait before the second attempt; doubles up to `max_wait`.
    pub first_wait: Duration,
    /// Greatest wait between attempts.
    pub max_wait: Duration,
    /// Accept `http://` addresses and redirects to them. Off by default: what arrives could be changed on the way.
    pub allow_http: bool,
    /// Never touch the network: only entries that are there already are used.
    pub offline: bool,
    /// PEM file of root certificates in place of the built-in ones.
    pub root_certificates: Option<PathBuf>,
}

impl DownloadOptions {
    /// Defaults (5 attempts, 1 s to 60 s apart, 8 GiB, https only) with the folder and switches of `env`.
    pub fn new(env: &HubEnv) -> DownloadOptions {
        DownloadOptions {
            cache_dir: env.own_cache.join("downloads"),
            max_bytes: 8 << 30,
            attempts: Retry::DEFAULT.attempts,
            first_wait: Retry::DEFAULT.first_wait,
            max_wait: Retry::DEFAULT.max_wait,
            allow_http: false,
            offline: env.offline,
            root_certificates: env.root_certificates.clone(),
        }
    }
}

/// What is kept beside an entry.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    url: String,
    sha256: String,
    bytes: u64,
    etag: Option<String>,
}

/// Entries whose digest this process has compared already, by path, length and time of change.
static CHECKED: LazyLock<Mutex<HashMap<PathBuf, (u64, SystemTime)>>> = LazyLock::new(Mutex::default);

/// The local copy of `url`, fetched unless a sound one is there. Several threads and processes may ask for the same
/// address; one fetches, the others wait.
///
/// # Errors
/// An address that is not https, a size over the limit, a final status, a transfer that failed every time, an entry that
/// is missing while offline, and [`HubError::Io`].
pub fn download(url: &str, options: &DownloadOptions) -> Result<PathBuf> {
    check_scheme(url, options.allow_http)?;
    let dir = &options.cache_dir;
    let key = hex(&Sha256::digest(url.as_bytes()))[..32].to_owned();
    let entry = dir.join(format!("{key}{}", extension_of(url)));
    let note_path = dir.join(format!("{key}.json"));
    if is_sound(url, &entry, &note_path, options.max_bytes)? {
        return Ok(entry);
    }
    if options.offline {
        let missing = "no sound copy is there".to_owned();
        return Err(HubError::Offline { what: url.to_owned(), cache: dir.clone(), missing });
    }
    fs::create_dir_all(dir).map_err(|e| HubError::io("create", dir, e))?;
    let lock_path = dir.join(format!("{key}.lock"));
    let lock = File::create(&lock_path).map_err(|e| HubError::io("create", &lock_path, e))?;
    lock.lock().map_err(|e| HubError::io("lock", &lock_path, e))?;
    // Another thread or process may have fetched it while this one waited.
    if is_sound(url, &entry, &note_path, options.max_bytes)? {
        return Ok(entry);
    }
    let retry = Retry { attempts: options.attempts, first_wait: options.first_wait, max_wait: options.max_wait };
    let client = Client::new(!options.allow_http, options.root_certificates.as_deref(), retry)?;
    let part = dir.join(format!("{key}.part"));
    let job = Job { url, token: None, max_bytes: options.max_bytes, progress: &|_, _| {} };
    let arrived = client.get_file(&job, &part)?;
    fs::rename(&part, &entry).map_err(|e| HubError::io("rename to", &entry, e))?;
    let note = Note { url: url.to_owned(), sha256: arrived.sha256, bytes: arrived.bytes, etag: arrived.etag };
    let text = serde_json::to_vec_pretty(&note)
        .map_err(|e| HubError::io("write", &note_path, std::io::Error::other(e.to_string())))?;
    atomic_write(&note_path, &text)?;
    remember(&entry)?;
    Ok(entry)
}

/// Whether the entry is the file that its note describes. A damaged entry counts as absent and is fetched again.
fn is_sound(url: &str, entry: &Path, note_path: &Path, max_bytes: u64) -> Result<bool> {
    if !entry.is_file() || !note_path.is_file() {
        return Ok(false);
    }
    let Ok(note) = json::read_json::<Note>(note_path) else { return Ok(false) };
    let stamp = stamp_of(entry)?;
    if note.url != url || note.bytes != stamp.0 {
        return Ok(false);
    }
    if note.bytes > max_bytes {
        return Err(HubError::TooLarge { url: url.to_owned(), limit: max_bytes, found: note.bytes });
    }
    if CHECKED.lock().get(entry) == Some(&stamp) {
        return Ok(true);
    }
    let sound = sha256_of_file(entry)? == note.sha256;
    if sound {
        CHECKED.lock().insert(entry.to_path_buf(), stamp);
    }
    Ok(sound)
}

fn remember(entry: &Path) -> Result<()> {
    let stamp = stamp_of(entry)?;
    CHECKED.lock().insert(entry.to_path_buf(), stamp);
    Ok(())
}

fn stamp_of(path: &Path) -> Result<(u64, SystemTime)> {
    let data = fs::metadata(path).map_err(|e| HubError::io("inspect", path, e))?;
    let modified = data.modified().map_err(|e| HubError::io("inspect", path, e))?;
    Ok((data.len(), modified))
}

fn check_scheme(url: &str, allow_http: bool) -> Result<()> {
    let lower = url.to_ascii_lowercase();
    if lower.starts_with("https://") || (allow_http && lower.starts_with("http://")) {
        return Ok(());
    }
    Err(HubError::BadUrl { url: url.to_owned(), reason: "only https:// addresses are fetched".to_owned() })
}

/// The extension of the address's path when it is plain, with its dot; it only helps people who look into the cache.
fn extension_of(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    match name.rsplit_once('.') {
        Some((_, end)) if (1..=5).contains(&end.len()) && end.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            // These three are the names of what lies beside an entry.
            if ["json", "lock", "part"].contains(&end) { String::new() } else { format!(".{end}") }
        }
        _ => String::new(),
    }
}
