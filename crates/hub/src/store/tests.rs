//! Folders of entries: what comes back, what makes room, what is never touched.

use std::time::Duration;

use super::*;

const KIND: StoreKind =
    StoreKind { mark: "vidtune-things.json", format: "vidtune things 1", suffix: ".thing", magic: b"VTTHING1" };

fn key(first: u8) -> Hash {
    let mut key = [7; 32];
    key[0] = first;
    key
}

/// Content.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..1000).map(|_| next()).collect()
}

/// Bytes of an entry of [`noise`].
const EACH: u64 = 1000 + HEADER as u64;

/// Says when an entry was used last, in seconds since 1970.
fn use_at(store: &Store, key: &Hash, seconds: u64) {
    let file = File::open(store.path_of(key)).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
}

fn has(store: &Store, first: u8) -> bool {
    store.path_of(&key(first)).is_file()
}

fn fill(dir: &Path, firsts: &[u8]) -> Store {
    let store = Store::open(KIND, dir, u64::MAX).unwrap();
    for first in firsts {
        assert!(matches!(store.put(&key(*first), &noise(u64::from(*first))).unwrap(), Kept::Stored(_)));
    }
    store
}

#[test]
fn what_is_put_is_got() {
    let dir = tempfile::tempdir().unwrap();
    let store = fill(dir.path(), &[1, 2]);
    for first in [1, 2] {
        assert!(matches!(store.get(&key(first)), Found::Entry(content, _) if content == noise(u64::from(first))));
    }
    assert_eq!(store.get(&key(3)), Found::Nothing);
    let Kept::Stored(size) = store.put(&key(1), b"other").unwrap() else { panic!("no room") };
    assert_eq!(store.get(&key(1)), Found::Entry(b"other".to_vec(), size));
    let on_disk: u64 = [1, 2].map(|first| fs::metadata(store.path_of(&key(first))).unwrap().len()).iter().sum();
    assert_eq!(survey(KIND, dir.path()).unwrap(), Some((2, on_disk)));
    assert_eq!(Ledger::lock(KIND, dir.path()).unwrap().total, Some(on_disk));
}

#[test]
fn the_least_recently_used_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = fill(dir.path(), &[1, 2, 3, 4]);
    for (first, seconds) in [(1, 300), (2, 100), (3, 400), (4, 200)] {
        use_at(&store, &key(first), seconds);
    }
    // Another run, with room for four.
    let store = Store::open(KIND, dir.path(), 4 * EACH).unwrap();
    assert!((1..=4).all(|first| has(&store, first)));
    assert!(matches!(store.put(&key(5), &noise(5)).unwrap(), Kept::Stored(_)));
    assert_eq!([1, 2, 3, 4, 5].map(|first| has(&store, first)), [true, false, true, true, true]);
    // What it reads is used now, by the clock and for this run.
    assert!(matches!(store.get(&key(4)), Found::Entry(..)));
    assert!(matches!(store.put(&key(6), &noise(6)).unwrap(), Kept::Stored(_)));
    assert_eq!([1, 3, 4, 5, 6].map(|first| has(&store, first)), [false, true, true, true, true]);
    assert!(matches!(store.put(&key(7), &noise(7)).unwrap(), Kept::Stored(_)));
    assert_eq!(store.put(&key(8), &noise(8)).unwrap(), Kept::NoRoom, "the four are this run's own");
    assert_eq!([4, 5, 6, 7, 8].map(|first| has(&store, first)), [true, true, true, true, false]);
    // A smaller budget is kept from the start, and what is larger than all of it never fits.
    let store = Store::open(KIND, dir.path(), 2 * EACH).unwrap();
    assert_eq!(survey(KIND, dir.path()).unwrap().unwrap().0, 1, "a part of the budget is left free");
    assert_eq!(Store::open(KIND, dir.path(), 500).unwrap().put(&key(9), &noise(9)).unwrap(), Kept::NoRoom);
    assert_eq!(survey(KIND, dir.path()).unwrap(), Some((0, 0)));
    assert!(matches!(store.put(&key(9), &noise(9)).unwrap(), Kept::Stored(_)), "the folder was emptied meanwhile");
}

#[test]
fn only_its_own_files_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = fill(dir.path(), &[1, 2]);
    let shelf = store.path_of(&key(1)).parent().unwrap().to_path_buf();
    let foreign = ["notes.txt", "short.thing", ".hidden.thing.part", &"A".repeat(62)];
    let mut kept = vec![dir.path().join("video.mp4"), dir.path().join("zz"), dir.path().join("ab.thing")];
    kept.extend(foreign.iter().map(|name| shelf.join(name)));
    kept.iter().for_each(|path| fs::write(path, "mine").unwrap());
    let link = shelf.join(format!("{}.thing", "b".repeat(62)));
    std::os::unix::fs::symlink(&kept[0], &link).unwrap();
    let name = store.path_of(&key(3)).file_name().unwrap().to_string_lossy().into_owned();
    let partial = shelf.join(format!(".{name}.part"));
    fs::write(&partial, "half").unwrap();
    Store::open(KIND, dir.path(), 1).unwrap();
    assert!(!partial.exists() && !has(&store, 1) && !has(&store, 2), "half-written ones go as well");
    fill(dir.path(), &[1, 2]);
    fs::write(&partial, "half").unwrap();
    assert_eq!(clear(KIND, dir.path()).unwrap().0, 2);
    assert!(!partial.exists() && !has(&store, 1));
    assert!(kept.iter().all(|path| fs::read(path).unwrap() == b"mine"));
    assert!(link.symlink_metadata().is_ok() && dir.path().join(KIND.mark).is_file());
    assert!(!store.path_of(&key(2)).parent().unwrap().exists(), "an empty folder of its own goes");
    assert_eq!(survey(KIND, &shelf).unwrap(), None);
}

/// A mark that is lost or wrong is made anew from the folder.
#[test]
fn the_sum_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = fill(dir.path(), &[1, 2]);
    for text in ["", "{\"format\":\"vidtune things 1\",\"by", "{\"format\":\"other\",\"bytes\":0}"] {
        fs::write(dir.path().join(KIND.mark), text).unwrap();
        store.put(&key(2), &noise(2)).unwrap();
        assert_eq!(Ledger::lock(KIND, dir.path()).unwrap().total, Some(survey(KIND, dir.path()).unwrap().unwrap().1));
    }
    // A sum that is too large costs a listing and no entry.
    let text = serde_json::to_string(&Mark { format: KIND.format.to_owned(), bytes: u64::MAX / 2 }).unwrap();
    fs::write(dir.path().join(KIND.mark), text).unwrap();
    let store = Store { budget: 10 * EACH, ..store };
    assert!(matches!(store.put(&key(3), &noise(3)).unwrap(), Kept::Stored(_)));
    assert_eq!(survey(KIND, dir.path()).unwrap().unwrap().0, 3);
}

#[test]
fn what_is_not_whole_is_told_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = fill(dir.path(), &[1, 2]);
    let path = store.path_of(&key(1));
    let (whole, other) = (fs::read(&path).unwrap(), fs::read(store.path_of(&key(2))).unwrap());
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let spoilt = [
        (Vec::new(), "it ends after 0 bytes"),
        (whole[..whole.len() - 1].to_vec(), "expected 1000 bytes after its head, found 999"),
        ([&whole[..], b"x"].concat(), "expected 1000 bytes after its head, found 1001"),
        (other, "it belongs to another key"),
        (flipped(0), "it does not begin as an entry does"),
        (flipped(60), "its checksum is wrong"),
        (flipped(500), "its checksum is wrong"),
    ];
    for (bytes, reason) in spoilt {
        fs::write(&path, bytes).unwrap();
        assert_eq!(store.get(&key(1)), Found::Damaged(format!("`{}`: {reason}", path.display())));
        store.put(&key(1), &noise(1)).unwrap();
        assert!(matches!(store.get(&key(1)), Found::Entry(content, _) if content == noise(1)));
        assert_eq!(survey(KIND, dir.path()).unwrap(), Some((2, 2 * EACH)));
    }
}

#[test]
fn parts_of_a_key_do_not_run_together() {
    let key = |parts: &[&str]| parts.iter().fold(KeyHasher::new("a"), |key, part| key.text(part)).finish();
    assert_eq!(key(&["bc", "d"]), key(&["bc", "d"]));
    assert_ne!(key(&["bc", "d"]), key(&["b", "cd"]));
    assert_ne!(key(&["bc"]), KeyHasher::new("ab").text("c").finish());
}
