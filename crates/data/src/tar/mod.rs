//! Owns [`TarIndex`]: a WebDataset shard as records. Members that share a key, one after the other, are a record; where
//! each record begins is all that is kept. It refuses to unpack: media are read where they lie.

mod members;
mod sample;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::DataError;
use crate::formats;
use crate::json_index::{Fingerprint, dataset_error};
use crate::record::{Format, Sample};
use members::{Member, Walk};
use sample::TarRecord;

/// Largest text of a record. Media belong into members of their own.
const MAX_TEXT: u64 = 64 << 20;

/// Most members of one record: more are a sign of an attack, or of a shard without keys.
const MAX_PARTS: usize = 4096;

/// Where the records of a shard lie.
#[derive(Debug)]
pub(crate) struct TarIndex {
    path: PathBuf,
    /// First header of each record: eight bytes a record, whatever its members are called.
    starts: Vec<u64>,
    fingerprint: Fingerprint,
}

impl TarIndex {
    /// Finds the records of a shard in one walk over its headers; of the contents only texts are read.
    ///
    /// # Errors
    /// The archive is cut, broken, or holds what is refused ([`Walk::next`]); a record has a member twice, or too many;
    /// there is no record.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_file() => {}
            Ok(_) => {
                let hint = "records are read in any order and more than once: write them to a file first";
                return Err(dataset_error(path, "not_a_file", "this is not a regular file", hint));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(dataset_error(path, "missing_file", "no such file", "check `data.train.path`"));
            }
            Err(error) => return Err(DataError::io(path, error)),
        }
        let mut walk = Walk::open(path, 0)?;
        let mut index = Self { path: path.to_path_buf(), starts: Vec::new(), fingerprint: Fingerprint::EMPTY };
        let (mut key, mut endings) = (String::new(), Vec::new());
        while let Some(member) = walk.next()? {
            let Some((own, ending)) = member.key() else { continue };
            if own != key || index.starts.is_empty() {
                index.starts.push(member.at);
                own.clone_into(&mut key);
                endings.clear();
            }
            if endings.contains(&ending) {
                let what = format!("byte {}: `{}` stands twice in its record", member.at, member.name);
                return Err(dataset_error(path, "bad_tar", what, "write every member once"));
            }
            endings.push(ending);
            if endings.len() > MAX_PARTS {
                let what = format!("byte {}: the record `{key}` has more than {MAX_PARTS} members", member.at);
                let hint = "give every record a key of its own: the name up to its first dot";
                return Err(dataset_error(path, "bad_tar", what, hint));
            }
            // What tells one content from another: as for other files of records, all but the media.
            index.fingerprint.add(member.name.as_bytes());
            index.fingerprint.add(&member.len.to_le_bytes());
            if endings.last().is_some_and(|ending| sample::is_text(ending)) {
                index.fingerprint.add(&walk.read(&member, MAX_TEXT)?);
            }
        }
        index.fingerprint.num_bytes = walk.size();
        index.starts.shrink_to_fit();
        if index.starts.is_empty() {
            let what = "the archive holds no record: expected members such as `00012.json` and `00012.mp4`";
            return Err(dataset_error(path, "empty_dataset", what, "check the file's content"));
        }
        Ok(index)
    }

    /// What the shard held when it was opened.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Number of records.
    pub fn len(&self) -> u64 {
        self.starts.len() as u64
    }

    /// The members of a record and its texts.
    fn record(&self, place: u64) -> Result<TarRecord, DataError> {
        let Some(&start) = self.starts.get(place as usize) else {
            return Err(DataError::NoRecord { index: place, total: self.len() });
        };
        let end = self.starts.get(place as usize + 1).copied().unwrap_or(self.fingerprint.num_bytes);
        let mut walk = Walk::open(&self.path, start)?;
        let mut members: Vec<(String, Member)> = Vec::new();
        let mut key = String::new();
        while members.len() <= MAX_PARTS
            && let Some(member) = walk.next()?
            && member.at < end
        {
            let Some((own, ending)) = member.key() else { continue };
            if members.is_empty() {
                own.clone_into(&mut key);
            }
            members.push((ending, member));
        }
        TarRecord::read(&self.path, key, members, |member| walk.read(member, MAX_TEXT))
    }

    /// Reads and validates a record; `index` is its number in the whole dataset.
    ///
    /// # Errors
    /// What is wrong with it, with shard and member.
    pub fn sample(&self, place: u64, index: u64, format: Format, dirs: [&Path; 2]) -> Result<Sample, DataError> {
        self.record(place)?.sample(index, format, dirs)
    }

    /// The record as JSON, for whoever asks for its format.
    pub fn value(&self, place: u64) -> Result<Value, DataError> {
        self.record(place)?.value(place)
    }

    /// The record's id: its own, or its key.
    pub fn id(&self, place: u64, index: u64) -> String {
        let Ok(record) = self.record(place) else { return index.to_string() };
        let value = record.value(index).unwrap_or(Value::Null);
        formats::id_of(&value, Some(record.key()), index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of a member as ustar writes it.
    fn header(name: &str, len: usize) -> [u8; 512] {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..108].copy_from_slice(b"0000644\0");
        block[124..136].copy_from_slice(format!("{len:011o}\0").as_bytes());
        block[148..156].fill(b' ');
        block[156] = b'0';
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    #[test]
    fn a_large_shard_costs_eight_bytes_a_record() {
        const NUM_RECORDS: usize = 30_000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.tar");
        let mut bytes = Vec::new();
        for number in 0..NUM_RECORDS {
            for (ending, text) in [("txt", "a dog"), ("jpg", "")] {
                let mut content = text.as_bytes().to_vec();
                bytes.extend_from_slice(&header(
                    &format!("a/rather/long/key/of/a/record/{number:09}.{ending}"),
                    content.len(),
                ));
                content.resize(content.len().next_multiple_of(512), 0);
                bytes.extend_from_slice(&content);
            }
        }
        bytes.resize(bytes.len() + 1024, 0);
        std::fs::write(&path, &bytes).unwrap();
        let index = TarIndex::open(&path).unwrap();
        assert_eq!(index.len(), NUM_RECORDS as u64);
        assert_eq!(index.starts.capacity() * size_of::<u64>(), NUM_RECORDS * 8);
        assert_eq!(index.id(29_999, 29_999), "a/rather/long/key/of/a/record/000029999");
        assert_eq!(
            index.sample(17, 17, Format::Llava, [dir.path(); 2]).unwrap().id,
            "a/rather/long/key/of/a/record/000000017"
        );
    }

    #[test]
    fn a_record_of_too_many_members_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.tar");
        let mut bytes: Vec<u8> = (0..=MAX_PARTS).flat_map(|number| header(&format!("a.{number}.jpg"), 0)).collect();
        bytes.resize(bytes.len() + 1024, 0);
        std::fs::write(&path, &bytes).unwrap();
        let error = TarIndex::open(&path).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "`{}`: byte 2097152: the record `a` has more than 4096 members; hint: give every record a key of its own: the name up to its first dot",
                path.display()
            )
        );
    }
}
