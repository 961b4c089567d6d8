//! Owns which records of a file belong to a run: those of a list of ids, the first so many of them, one part of a split.
//! It refuses to pass over what it leaves out: the counts of [`Selected`] add up to the file.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::dataset::Rows;
use crate::error::DataError;
use crate::json_index::{Fingerprint, dataset_error};
use crate::order::Order;
use crate::record::Origin;

/// Fields that hold an id of a record or of its clip.
const IDS: [&str; 7] = ["id", "sample_id", "question_id", "uid", "video_id", "videoID", "video_uid"];

/// Fields that name a file, whose name without its ending is an id as well.
const FILES: [&str; 5] = ["video", "video_path", "video_url", "image", "image_path"];

/// One part of a split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SplitPart {
    /// Share of the records that is held out.
    pub ratio: f64,
    /// Seed of the choice.
    pub seed: u64,
    /// Whether this is the part that is held out.
    pub held_out: bool,
}

/// Which records of a file are used. The list comes first, then the limit, then the split.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Selection<'a> {
    /// A file of ids, one a line.
    pub ids: Option<&'a Path>,
    /// Only the first so many.
    pub max_samples: Option<u64>,
    /// One part of a split.
    pub split: Option<SplitPart>,
}

/// What of a file's records is used, and why the others are not. The four counts beside `in_file` add up to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Selected {
    /// The file.
    pub path: PathBuf,
    /// Its records.
    pub in_file: u64,
    /// Records that the list of ids does not name.
    pub not_in_ids: u64,
    /// Records beyond `max_samples`.
    pub beyond_max: u64,
    /// Records in the other part of the split.
    pub other_part: u64,
    /// Records that are used.
    pub used: u64,
    /// Ids of the list that no record of the file has.
    pub unknown_ids: u64,
}

impl fmt::Display for Selected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {} of its {} records are used", self.path.display(), self.used, self.in_file)?;
        for (count, why) in [
            (self.not_in_ids, "not in `video_ids_file`"),
            (self.beyond_max, "beyond `max_samples`"),
            (self.other_part, "in the other part of `data.split`"),
        ] {
            if count > 0 {
                write!(f, ", {count} are {why}")?;
            }
        }
        if self.unknown_ids > 0 {
            write!(f, "; ids of `video_ids_file` that no record has: {}", self.unknown_ids)?;
        }
        Ok(())
    }
}

/// The records of a file that are used.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// Their places, in file order.
    pub places: Vec<u64>,
    /// The counts.
    pub selected: Selected,
    /// What the list of ids held.
    pub list: Option<(PathBuf, Fingerprint)>,
}

/// What a list of ids finds in a file.
struct Named {
    places: Vec<u64>,
    unknown_ids: u64,
    list: Option<(PathBuf, Fingerprint)>,
}

impl Selection<'_> {
    /// Whether nothing is left out.
    pub fn takes_all(&self) -> bool {
        self.ids.is_none() && self.max_samples.is_none() && self.split.is_none()
    }

    /// The records that are used.
    ///
    /// # Errors
    /// The list of ids cannot be read or names no record; a part of the split is empty.
    pub fn of(&self, path: &Path, rows: &Rows) -> Result<Chosen, DataError> {
        let in_file = rows.len();
        let Named { mut places, unknown_ids, list } = match self.ids {
            None => Named { places: (0..in_file).collect(), unknown_ids: 0, list: None },
            Some(list) => by_ids(list, path, rows)?,
        };
        let not_in_ids = in_file - places.len() as u64;
        let named = places.len() as u64;
        places.truncate(self.max_samples.map_or(places.len(), |most| usize::try_from(most).unwrap_or(usize::MAX)));
        let beyond_max = named - places.len() as u64;
        let before = places.len() as u64;
        if let Some(split) = self.split {
            places = split.part(path, places)?;
        }
        let used = places.len() as u64;
        let other_part = before - used;
        let selected =
            Selected { path: path.to_path_buf(), in_file, not_in_ids, beyond_max, other_part, used, unknown_ids };
        Ok(Chosen { places, selected, list })
    }
}

impl SplitPart {
    /// The places of this part. As many are held out as `train_test_split` of `datasets` would: the share, rounded up.
    fn part(self, path: &Path, places: Vec<u64>) -> Result<Vec<u64>, DataError> {
        let total = places.len() as u64;
        let num_held_out = (self.ratio * total as f64).ceil() as u64;
        if num_held_out == 0 || num_held_out >= total {
            let what = format!("a split of {total} records by {} leaves one part empty", self.ratio);
            let hint = "change `data.split.ratio`, or name a file in `data.eval`";
            return Err(dataset_error(path, "empty_dataset", what, hint));
        }
        let order = Order::new(total, true, self.seed, 0);
        let held_out: HashSet<u64> = (0..num_held_out).map(|position| order.record(position)).collect();
        let is_mine = |(position, _): &(usize, u64)| held_out.contains(&(*position as u64)) == self.held_out;
        Ok(places.into_iter().enumerate().filter(is_mine).map(|(_, place)| place).collect())
    }
}

/// The places of the records that a list names, and how many ids of the list none of them has. A record that cannot be
/// read is kept, so that it is met at its turn, with the reason.
fn by_ids(list: &Path, path: &Path, rows: &Rows) -> Result<Named, DataError> {
    let text = std::fs::read_to_string(list).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => dataset_error(list, "missing_file", "no such file", "check `video_ids_file`"),
        _ => DataError::io(list, e),
    })?;
    let ids: HashSet<&str> =
        text.trim_start_matches('\u{feff}').lines().map(str::trim).filter(|id| !id.is_empty()).collect();
    if ids.is_empty() {
        return Err(dataset_error(list, "empty_dataset", "the list of ids is empty", "write one id a line"));
    }
    let (mut places, mut found) = (Vec::new(), HashSet::<&&str>::new());
    for place in 0..rows.len() {
        let bytes = match rows.read(place, &Origin::default()) {
            Err(error) if !error.is_one_record() => return Err(error),
            read => read,
        };
        let record = bytes.ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let Some(record) = record else {
            places.push(place);
            continue;
        };
        let own = ids_of(&record, rows.key(place));
        let mut named = own.iter().filter_map(|id| ids.get(id.as_str())).peekable();
        if named.peek().is_some() {
            places.push(place);
            found.extend(named);
        }
    }
    if found.is_empty() {
        let what = format!("none of its {} ids is that of a record or clip of `{}`", ids.len(), path.display());
        return Err(dataset_error(list, "empty_dataset", what, "write one id a line, as the records have them"));
    }
    let unknown_ids = (ids.len() - found.len()) as u64;
    Ok(Named { places, unknown_ids, list: Some((list.to_path_buf(), Fingerprint::of(text.as_bytes()))) })
}

/// What a list may call a record by.
fn ids_of(record: &Value, key: Option<&str>) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let mut ids: Vec<String> = IDS.iter().filter_map(|name| text(record.get(*name)?)).collect();
    ids.extend(key.map(str::to_owned));
    for file in FILES.iter().filter_map(|name| record.get(*name)?.as_str()) {
        let name = file.rsplit('/').next().unwrap_or(file);
        ids.extend([file.to_owned(), name.to_owned()]);
        ids.extend(name.rsplit_once('.').map(|(stem, _)| stem.to_owned()));
    }
    ids
}
