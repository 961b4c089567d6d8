//! Owns what the path of a dataset names: a file, a folder of shards, or a pattern for shards, in an order that no
//! machine changes. It refuses to open them.

use std::path::{Path, PathBuf};

use crate::csv_index::is_table;
use crate::error::DataError;
use crate::json_index::dataset_error;

/// Most files that one path may name.
const MAX_FILES: usize = 100_000;

/// What a file of records is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A list or object of records, or one record a line.
    Json,
    /// A table whose header names the fields.
    Csv,
    /// WebDataset: records as members of a tar archive.
    Tar,
}

impl Kind {
    /// The kind of a file; one with an unknown ending is JSON until its content says otherwise.
    ///
    /// # Errors
    /// A kind of file that is known and not read.
    pub fn of(path: &Path) -> Result<Self, DataError> {
        let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let refused = [
            (
                ".parquet",
                "`.parquet` files are not read yet",
                "write the records to `.jsonl`, media as files beside it",
            ),
            (".arrow", "`.arrow` files are not read yet", "write the records to `.jsonl`, media as files beside it"),
            (".zip", "a zip archive holds no records that are read", "unpack it, and name its folder as `media_dir`"),
            (".gz", "compressed files are not read, as no record of them can be found by its number", "unpack it"),
            (".tgz", "compressed files are not read, as no record of them can be found by its number", "unpack it"),
            (".zst", "compressed files are not read, as no record of them can be found by its number", "unpack it"),
        ];
        match refused.into_iter().find(|(ending, ..)| name.ends_with(ending)) {
            Some((_, what, hint)) => Err(dataset_error(path, "not_built", what, hint)),
            None if name.ends_with(".tar") => Ok(Self::Tar),
            None if is_table(path) => Ok(Self::Csv),
            None => Ok(Self::Json),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::Csv => "table",
            Self::Tar => "tar",
        }
    }
}

/// The files that a path names, with their kind: itself, or the shards of a folder or pattern. A pattern's braces
/// (`{000..011}`, `{a,b}`) give names in the order in which they are written; its `*`, `?` and `[a-z]`, and folders, give
/// those that are there, in the order of their bytes.
///
/// # Errors
/// Nothing is there, or shards of several kinds.
pub(crate) fn expand(path: &Path) -> Result<(Kind, Vec<PathBuf>), DataError> {
    let files = if path.is_dir() {
        in_folder(path)?
    } else if path.symlink_metadata().is_ok() {
        vec![path.to_path_buf()]
    } else {
        by_pattern(path)?
    };
    let mut first: Option<(Kind, &PathBuf)> = None;
    for file in &files {
        let kind = Kind::of(file)?;
        match first {
            Some((other, of)) if other != kind => {
                let what = format!("a {} file among {} files such as `{}`", kind.name(), other.name(), of.display());
                let hint = "name files of one kind in a dataset, and the others in one of their own";
                return Err(dataset_error(file, "mixed_shards", what, hint));
            }
            Some(_) => {}
            None => first = Some((kind, file)),
        }
    }
    let kind = first.map_or(Kind::Json, |(kind, _)| kind);
    Ok((kind, files))
}

/// The shards of a folder: files of records by their endings. Folders inside of it and hidden files do not count.
fn in_folder(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let (mut files, mut other) = (Vec::new(), None);
    for name in names_in(dir)? {
        let path = dir.join(&name);
        if is_records(&name) && !name.starts_with('.') && path.is_file() {
            files.push(path);
        } else {
            other = other.or(Some(name));
        }
    }
    if files.is_empty() {
        let found = other.map_or_else(|| "nothing".to_owned(), |name| format!("`{name}`"));
        let what = format!("the folder holds no file of records: expected `.jsonl`, `.json` or `.tar`, found {found}");
        let hint = "name the file, or a pattern such as `shards/*.jsonl`";
        return Err(dataset_error(dir, "empty_dataset", what, hint));
    }
    Ok(files)
}

/// Whether a name ends as those of files of records do, read ones and others.
fn is_records(name: &str) -> bool {
    const ENDINGS: [&str; 8] = [".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".tar", ".parquet", ".arrow"];
    let lower = name.to_ascii_lowercase();
    ENDINGS.iter().any(|ending| lower.ends_with(ending))
}

/// The names in a folder in the order of their bytes.
fn names_in(dir: &Path) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|error| DataError::io(dir, error))? {
        let entry = entry.map_err(|error| DataError::io(dir, error))?;
        match entry.file_name().into_string() {
            Ok(name) => names.push(name),
            Err(name) if is_records(&name.to_string_lossy()) => {
                return Err(dataset_error(&dir.join(name), "bad_name", "the file's name is not UTF-8", "rename it"));
            }
            Err(_) => {}
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn by_pattern(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let Some(text) = path.to_str() else { return Ok(vec![path.to_path_buf()]) };
    let bad =
        |what: String| dataset_error(path, "bad_pattern", what, "write `{000..011}`, `{a,b}`, `*`, `?` or `[a-z]`");
    let written = braces(text).map_err(bad)?;
    let has_braces = written.len() > 1;
    let mut files: Vec<PathBuf> = Vec::new();
    for name in &written {
        let found = if is_wild(name) {
            matching(path, Path::new(name))?
        } else if has_braces && !Path::new(name).is_file() {
            let number = written.iter().filter(|name| !Path::new(name).is_file()).count();
            let what = format!("no such file; `{text}` names {} files, {number} of them are missing", written.len());
            return Err(dataset_error(Path::new(name), "missing_file", what, "fetch the shard, or correct the range"));
        } else {
            vec![PathBuf::from(name)]
        };
        files.extend(found);
        if files.len() > MAX_FILES {
            return Err(bad(format!("it names more than {MAX_FILES} files")));
        }
    }
    let mut seen: Vec<&PathBuf> = files.iter().collect();
    seen.sort_unstable();
    match seen.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(bad(format!("it names `{}` twice", pair[0].display()))),
        None => Ok(files),
    }
}

fn is_wild(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// The files that match a pattern without braces, part by part of its path.
fn matching(written: &Path, pattern: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut found = vec![PathBuf::new()];
    let mut parts = pattern.components().peekable();
    while let Some(part) = parts.next() {
        let part = part.as_os_str().to_string_lossy();
        if !is_wild(&part) {
            found.iter_mut().for_each(|path| path.push(part.as_ref()));
            continue;
        }
        if part.contains("**") {
            let hint = "name the folders with `*`, one for each level";
            return Err(dataset_error(written, "bad_pattern", "`**` is not supported", hint));
        }
        let is_last = parts.peek().is_none();
        let mut next = Vec::new();
        for dir in &found {
            let folder = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
            if !folder.is_dir() {
                continue;
            }
            for name in names_in(folder)? {
                // A hidden file is meant only where the pattern says so.
                if (part.starts_with('.') || !name.starts_with('.')) && matches(&part, &name) {
                    let path = dir.join(&name);
                    if if is_last { path.is_file() } else { path.is_dir() } {
                        next.push(path);
                    }
                }
            }
        }
        if next.is_empty() {
            let folders: Vec<String> = found.iter().take(3).map(|dir| format!("`{}`", dir.display())).collect();
            let what =
                format!("no {} in {} matches `{part}`", if is_last { "file" } else { "folder" }, folders.join(", "));
            let hint = if found.iter().any(|dir| dir.as_os_str().is_empty() || dir.is_dir()) {
                "check the pattern in `data.train.path`"
            } else {
                "the folder does not exist: check `data.train.path`"
            };
            return Err(dataset_error(written, "missing_file", what, hint));
        }
        found = next;
    }
    // What stands behind the last pattern may not be there.
    found.retain(|path| path.is_file());
    if found.is_empty() {
        return Err(dataset_error(
            written,
            "missing_file",
            "no file matches",
            "check the pattern in `data.train.path`",
        ));
    }
    Ok(found)
}

/// Whether a name matches a pattern of `*`, `?`, `[a-z]` and `[!a-z]`. An unclosed `[` means itself.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // Where the last `*` stood, and what of the name it has taken: only the last one ever takes more.
    let (mut p, mut n, mut star) = (0, 0, None);
    loop {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, n));
            p += 1;
            continue;
        }
        if n == name.len() && p == pattern.len() {
            return true;
        }
        match name.get(n).and_then(|&c| matches_one(&pattern[p..], c)) {
            Some(taken) => (p, n) = (p + taken, n + 1),
            None => match star {
                Some((at, from)) if from < name.len() => {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                }
                _ => return false,
            },
        }
    }
}

/// How much of the pattern's start a character matches.
fn matches_one(pattern: &[char], c: char) -> Option<usize> {
    match pattern.first()? {
        '?' => Some(1),
        '[' => {
            let end = pattern.iter().skip(2).position(|&c| c == ']').map(|at| at + 2);
            let Some(end) = end else { return (c == '[').then_some(1) };
            let (is_not, mut set) = match &pattern[1..end] {
                ['!' | '^', rest @ ..] => (true, rest),
                all => (false, all),
            };
            let mut is_in = false;
            while let [first, rest @ ..] = set {
                if let ['-', last, after @ ..] = rest {
                    is_in |= (*first..=*last).contains(&c);
                    set = after;
                } else {
                    is_in |= *first == c;
                    set = rest;
                }
            }
            (is_in != is_not).then_some(end + 1)
        }
        other => (*other == c).then_some(1),
    }
}

/// The names that a text with braces stands for, in the order of a shell: the last braces change fastest.
fn braces(text: &str) -> Result<Vec<String>, String> {
    let mut names = vec![String::new()];
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (inside, behind) = after.split_once('}').ok_or("a `{` is not closed")?;
        let choices: Vec<String> = match inside.split_once("..") {
            Some((first, last)) => {
                range(first, last).ok_or_else(|| format!("`{{{inside}}}` is not a range of numbers"))?
            }
            None if inside.contains(',') => inside.split(',').map(str::to_owned).collect(),
            None => return Err(format!("`{{{inside}}}` is neither a range nor a list")),
        };
        if names.len().saturating_mul(choices.len()) > MAX_FILES {
            return Err(format!("it names more than {MAX_FILES} files"));
        }
        names = names.iter().flat_map(|name| choices.iter().map(move |c| format!("{name}{before}{c}"))).collect();
        rest = behind;
    }
    names.iter_mut().for_each(|name| name.push_str(rest));
    Ok(names)
}

/// Numbers from `first` to `last`, with zeros in front where either is written so.
fn range(first: &str, last: &str) -> Option<Vec<String>> {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (from, to) = (number(first)?, number(last)?);
    let is_padded = |text: &str| text.len() > 1 && text.starts_with('0');
    let width = if is_padded(first) || is_padded(last) { first.len().max(last.len()) } else { 0 };
    let count = to.checked_sub(from)?;
    // One more than is allowed is enough to be refused.
    Some((from..=from + count.min(MAX_FILES as u64)).map(|n| format!("{n:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_patterns() {
        for (pattern, name, expected) in [
            ("*.jsonl", "a.jsonl", true),
            ("*.jsonl", "a.json", false),
            ("a*b*c", "axxbyybzc", true),
            ("a*b*c", "axxbyybz", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("s[0-2].tar", "s1.tar", true),
            ("s[0-2].tar", "s3.tar", false),
            ("s[!0-2].tar", "s3.tar", true),
            ("s[]a].tar", "s].tar", true),
            ("s[1", "s[1", true),
            ("*", "", true),
            ("\u{e4}*", "\u{e4}rger", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "`{pattern}` and `{name}`");
        }
    }

    #[test]
    fn braces_are_those_of_a_shell() {
        let check = |text: &str, expected: &[&str]| assert_eq!(braces(text).unwrap(), expected);
        check("a.json", &["a.json"]);
        check("t-{08..11}.tar", &["t-08.tar", "t-09.tar", "t-10.tar", "t-11.tar"]);
        check("t-{8..10}", &["t-8", "t-9", "t-10"]);
        check("{a,b}/{0..1}", &["a/0", "a/1", "b/0", "b/1"]);
        let refused = |text: &str, expected: &str| assert_eq!(braces(text).unwrap_err(), expected);
        refused("a{0..x}", "`{0..x}` is not a range of numbers");
        refused("a{3..1}", "`{3..1}` is not a range of numbers");
        refused("a{0..9", "a `{` is not closed");
        refused("a{b}", "`{b}` is neither a range nor a list");
        refused("a{0..18446744073709551615}", "it names more than 100000 files");
        refused("{0..999}{0..999}", "it names more than 100000 files");
    }
}
