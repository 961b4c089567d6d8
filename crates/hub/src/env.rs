//! What the environment says about caches, the hub's address and the token. Owns the variables' meaning and nothing of the
//! file system; there is no default account and no default token.

use std::path::{Path, PathBuf};

use crate::error::{HubError, Result};

/// Settings taken from the environment variables that Hugging Face tools know.
#[derive(Clone, PartialEq, Eq)]
pub struct HubEnv {
    /// The hub cache: `HF_HUB_CACHE`, else `HF_HOME/hub`, else `XDG_CACHE_HOME/huggingface/hub`, else
    /// `~/.cache/huggingface/hub`.
    pub hub_cache: PathBuf,
    /// This program's own cache for downloaded media: `VIDTUNE_CACHE`, else `XDG_CACHE_HOME/vidtune`, else
    /// `~/.cache/vidtune`.
    pub own_cache: PathBuf,
    /// `HF_ENDPOINT` without a final slash, `https://huggingface.co` when absent.
    pub endpoint: String,
    /// `HF_TOKEN`, else the token file that a login left (`HF_TOKEN_PATH`, else `HF_HOME/token`).
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE` is one of 1, on, yes, true.
    pub offline: bool,
    /// `SSL_CERT_FILE`: a PEM file of root certificates to use in place of the built-in ones.
    pub root_certificates: Option<PathBuf>,
}

impl std::fmt::Debug for HubEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token never reaches a log.
        f.debug_struct("HubEnv")
            .field("hub_cache", &self.hub_cache)
            .field("own_cache", &self.own_cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("offline", &self.offline)
            .field("root_certificates", &self.root_certificates)
            .finish()
    }
}

impl HubEnv {
    /// Reads the process environment.
    ///
    /// # Errors
    /// [`HubError::NoCacheDir`] when no variable leads to a cache folder.
    pub fn from_env() -> Result<HubEnv> {
        HubEnv::from_lookup(|name| std::env::var(name).ok(), |path| std::fs::read_to_string(path).ok())
    }

    /// As [`HubEnv::from_env`] over any source of variables and of the token file's text.
    ///
    /// # Errors
    /// [`HubError::NoCacheDir`].
    pub fn from_lookup(
        variable: impl Fn(&str) -> Option<String>,
        read_file: impl Fn(&Path) -> Option<String>,
    ) -> Result<HubEnv> {
        let get = |name: &str| variable(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let home = get("HOME").or_else(|| get("USERPROFILE")).map(PathBuf::from);
        let path = |name: &str| get(name).map(|p| expand(&p, home.as_deref()));
        let caches = path("XDG_CACHE_HOME").or_else(|| home.as_ref().map(|h| h.join(".cache")));
        let hf_home = path("HF_HOME").or_else(|| caches.as_ref().map(|c| c.join("huggingface")));
        let hub_cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| hf_home.as_ref().map(|h| h.join("hub")))
            .ok_or(HubError::NoCacheDir)?;
        let own_cache = path("VIDTUNE_CACHE")
            .or_else(|| caches.as_ref().map(|c| c.join("vidtune")))
            .or_else(|| hf_home.as_ref().map(|h| h.join("vidtune")))
            .ok_or(HubError::NoCacheDir)?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| hf_home.as_ref().map(|h| h.join("token")));
        let token = get("HF_TOKEN").or_else(|| {
            let text = read_file(&token_file?)?;
            Some(text.trim().to_owned()).filter(|t| !t.is_empty())
        });
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Ok(HubEnv {
            hub_cache,
            own_cache,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            offline: get("HF_HUB_OFFLINE").is_some_and(|v| is_true(&v)),
            root_certificates: path("SSL_CERT_FILE"),
        })
    }
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
}

fn expand(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Result<HubEnv> {
        HubEnv::from_lookup(
            |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()),
            |path| (path == Path::new("/hf/token")).then(|| "hf_file\n".to_owned()),
        )
    }

    #[test]
    fn caches_follow_the_documented_order() {
        let cases: [(&[(&str, &str)], &str); 5] = [
            (&[("HOME", "/h")], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/hf")], "/hf/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")], "/c"),
        ];
        for (pairs, expected) in cases {
            assert_eq!(env(pairs).unwrap().hub_cache, Path::new(expected), "{pairs:?}");
        }
        assert!(matches!(env(&[]), Err(HubError::NoCacheDir)));
        assert_eq!(env(&[("HOME", "/h")]).unwrap().own_cache, Path::new("/h/.cache/vidtune"));
    }

    #[test]
    fn tokens_come_from_the_user_alone() {
        assert_eq!(env(&[("HOME", "/h")]).unwrap().token, None);
        assert_eq!(env(&[("HF_HOME", "/hf")]).unwrap().token.as_deref(), Some("hf_file"));
        let both = env(&[("HF_HOME", "/hf"), ("HF_TOKEN", "hf_variable")]).unwrap();
        assert_eq!(both.token.as_deref(), Some("hf_variable"));
        assert!(!format!("{both:?}").contains("hf_variable"));
    }

    #[test]
    fn switches_and_addresses() {
        let on =
            env(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "True"), ("HF_ENDPOINT", "https://mirror.example/")]).unwrap();
        assert!(on.offline);
        assert_eq!(on.endpoint, "https://mirror.example");
        let off = env(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0")]).unwrap();
        assert!(!off.offline);
        assert_eq!(off.endpoint, "https://huggingface.co");
    }
}
