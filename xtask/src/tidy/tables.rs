//! Who may use whom: the table of our own crates, and the owners of every external dependency with the reason for it.
//! Both are compared with what the manifests say, in both directions.

use crate::workspace::Package;

/// A crate of ours and the crates of ours it may use. The order is from the lowest to the highest.
const ROOMS: [(&str, &[&str]); 9] = [
    ("tensor", &[]),
    ("media", &[]),
    ("hub", &[]),
    ("data", &["media", "hub"]),
    ("models", &["tensor", "hub"]),
    ("infer", &["tensor", "models", "data"]),
    ("train", &["tensor", "hub", "data", "models", "infer"]),
    ("cli", &["tensor", "media", "hub", "data", "models", "infer", "train"]),
    ("xtask", &[]),
];

/// A dependency from a registry: its name, the crates that may name it, why it is there.
struct External {
    name: &'static str,
    users: &'static [&'static str],
    why: &'static str,
}

/// Crates that any room may name because they are small and say nothing about the room.
const ANY: &[&str] = &["tensor", "media", "hub", "data", "models", "infer", "train", "cli"];

/// The same with this crate.
const ALL: &[&str] = &["tensor", "media", "hub", "data", "models", "infer", "train", "cli", "xtask"];

const EXTERNALS: &[External] = &[
    // Heavy ones, one owner each.
    External { name: "ffmpeg-sys-the-third", users: &["media"], why: "libav's types: demuxing and decoding" },
    External { name: "libloading", users: &["media"], why: "libav's functions, opened when a video is touched" },
    External { name: "gif", users: &["media"], why: "still images" },
    External { name: "image-webp", users: &["media"], why: "still images" },
    External { name: "png", users: &["media"], why: "still images in and out" },
    External { name: "clap", users: &["cli"], why: "the command line" },
    External { name: "base64", users: &["cli"], why: "pictures inside of the demo's one-page report" },
    External { name: "signal-hook", users: &["cli"], why: "stop requests" },
    External { name: "saphyr-parser", users: &["train"], why: "YAML with places" },
    External { name: "strsim", users: &["train"], why: "suggestions for misspelt keys" },
    External { name: "tokenizers", users: &["data"], why: "tokenizer.json" },
    External { name: "minijinja", users: &["data"], why: "chat templates" },
    External { name: "minijinja-contrib", users: &["data"], why: "Python methods that chat templates call" },
    External {
        name: "blake3",
        users: &["data", "hub"],
        why: "contents of media files, names and checksums of cached entries",
    },
    External { name: "realfft", users: &["data"], why: "spectrograms of sound" },
    External { name: "csv-core", users: &["data"], why: "tables of records" },
    External { name: "zstd", users: &["data"], why: "cached frames" },
    External { name: "memmap2", users: &["hub"], why: "weights without a copy" },
    External { name: "sha2", users: &["hub", "media"], why: "checksums of what was downloaded" },
    External { name: "ureq", users: &["hub"], why: "https" },
    External { name: "rand", users: &["models", "infer"], why: "random weights, sampling" },
    External { name: "rand_chacha", users: &["models", "infer"], why: "random numbers that no release changes" },
    External { name: "regex", users: &["models", "train"], why: "names as expressions" },
    // Light ones.
    External { name: "anyhow", users: &["cli"], why: "context around typed errors" },
    External { name: "libc", users: &["tensor", "media"], why: "madvise and interrupts" },
    External { name: "parking_lot", users: ANY, why: "locks without poisoning" },
    External { name: "rayon", users: ANY, why: "threads" },
    External { name: "serde", users: ANY, why: "files in and out" },
    External { name: "serde_json", users: ALL, why: "JSON" },
    External { name: "tempfile", users: ANY, why: "folders of tests, temporary names" },
    External { name: "thiserror", users: ANY, why: "typed errors" },
];

/// What the manifests say against the two tables.
pub fn offences(packages: &[Package]) -> Vec<String> {
    let mut offences = Vec::new();
    for package in packages.iter().filter(|package| package.is_member) {
        let Some((_, may_use)) = ROOMS.iter().find(|(name, _)| *name == package.name) else {
            offences.push(format!("crate `{}` is not in the table of rooms (xtask/src/tidy/tables.rs)", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            let (name, user) = (dependency.name.as_str(), package.name.as_str());
            if dependency.is_local {
                if !may_use.contains(&name) {
                    offences.push(format!("`{user}` may not use `{name}`: see the table of rooms in ARCHITECTURE.md"));
                }
                continue;
            }
            match EXTERNALS.iter().find(|external| external.name == name) {
                None => offences.push(format!("`{user}` uses `{name}`, which has no owner (xtask/src/tidy/tables.rs)")),
                Some(external) if !external.users.contains(&user) => offences.push(format!(
                    "`{user}` uses `{name}` ({}), which belongs to `{}`",
                    external.why,
                    external.users.join("`, `")
                )),
                Some(_) => {}
            }
        }
    }
    for (name, _) in ROOMS {
        if !packages.iter().any(|package| package.is_member && package.name == name) {
            offences.push(format!("the table of rooms names `{name}`, which does not exist"));
        }
    }
    for external in EXTERNALS {
        let is_used = |package: &Package| {
            package.is_member && package.dependencies.iter().any(|dependency| dependency.name == external.name)
        };
        if !packages.iter().any(is_used) {
            offences.push(format!("nothing uses `{}` any more: take it out of the table of owners", external.name));
        }
    }
    offences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::{self, Dependency};

    fn package(name: &str, dependencies: &[(&str, bool)]) -> Package {
        let dependencies =
            dependencies.iter().map(|(name, is_local)| Dependency { name: (*name).to_owned(), is_local: *is_local });
        Package {
            name: name.to_owned(),
            version: "0.0.0".to_owned(),
            license: None,
            is_member: true,
            dependencies: dependencies.collect(),
        }
    }

    #[test]
    fn the_manifests_agree_with_both_tables() {
        assert_eq!(offences(&workspace::packages().unwrap()), Vec::<String>::new());
    }

    #[test]
    fn data_cannot_see_the_engine() {
        let found = offences(&[package("data", &[("tensor", true)])]);
        assert!(found.iter().any(|offence| offence.starts_with("`data` may not use `tensor`")), "{found:?}");
    }

    #[test]
    fn a_heavy_dependency_has_one_owner() {
        let found = offences(&[package("train", &[("ffmpeg-sys-the-third", false), ("left-pad", false)])]);
        assert!(found.iter().any(|offence| offence.contains("belongs to `media`")), "{found:?}");
        assert!(found.iter().any(|offence| offence.contains("`left-pad`, which has no owner")), "{found:?}");
    }

    #[test]
    fn a_room_uses_only_rooms_below_it() {
        for (index, (name, may_use)) in ROOMS.iter().enumerate() {
            for used in *may_use {
                let below = ROOMS.iter().position(|(room, _)| room == used).unwrap();
                assert!(below < index, "{name} -> {used}");
            }
        }
    }
}
