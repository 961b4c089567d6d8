//! Owns the reading of keys of a processor's configuration file: each is read with its type, known to have no effect, or
//! refused by name. It refuses to know what a key means.

use std::path::Path;

use serde_json::Value;

use crate::error::DataError;

/// One object of a configuration file.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub config: &'a Value,
    /// The file, for messages.
    pub path: &'a Path,
}

/// Names and settings of the reference's own bookkeeping, which change no value of any processor.
const BOOKKEEPING: [&str; 16] = [
    "image_processor_type",
    "video_processor_type",
    "feature_extractor_type",
    "processor_class",
    "auto_map",
    "data_format",
    "input_data_format",
    "return_tensors",
    "return_metadata",
    "disable_grouping",
    "device",
    "default_to_square",
    "_valid_processor_keys",
    "do_convert_rgb",
    "use_fast",
    "image_seq_length",
];

impl Fields<'_> {
    /// An error about the file.
    pub fn bad(&self, what: impl Into<String>, hint: impl Into<String>) -> DataError {
        DataError::checkpoint(self.path, what, hint)
    }

    /// An error about the type of a key's value.
    pub fn wrong(&self, key: &str, expected: &str) -> DataError {
        self.bad(
            format!("`{key}` must be {expected}, found `{}`", self.config[key]),
            "correct the setting, or remove it for the class's own",
        )
    }

    /// Refuses keys that are neither in `read` nor in `inert`, unless their value is null.
    pub fn check_known(&self, class: &str, read: &[&str], inert: &[&str]) -> Result<(), DataError> {
        for (key, value) in self.config.as_object().into_iter().flatten() {
            let key = key.as_str();
            if !value.is_null() && ![read, inert, &BOOKKEEPING].iter().any(|list| list.contains(&key)) {
                return Err(self.bad(
                    format!("`{class}`: setting `{key}` is not supported"),
                    "remove the setting if it has no effect on pixel values",
                ));
            }
        }
        // Media are RGB before they come here; a null asks for nothing.
        if !self.flag("do_convert_rgb", true)? && !self.config["do_convert_rgb"].is_null() {
            return Err(self.bad("`do_convert_rgb: false` is not supported", "media are always RGB here"));
        }
        Ok(())
    }

    /// A flag. As in the reference, a null says no and an absent flag leaves it to the class.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, DataError> {
        match self.config.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    /// A whole number above 0.
    pub fn count(&self, key: &str, default: usize) -> Result<usize, DataError> {
        match self.config.get(key) {
            None => Ok(default),
            Some(value) => whole(value).ok_or_else(|| self.wrong(key, "a whole number above 0")),
        }
    }

    /// A whole number above 0 where there is one.
    pub fn count_if_any(&self, key: &str) -> Result<Option<usize>, DataError> {
        match &self.config[key] {
            Value::Null => Ok(None),
            value => whole(value).map(Some).ok_or_else(|| self.wrong(key, "a whole number above 0")),
        }
    }

    /// A number above 0; null and absent leave it to `default`.
    pub fn positive_if_any(&self, key: &str) -> Result<Option<f64>, DataError> {
        match &self.config[key] {
            Value::Null => Ok(None),
            value => value
                .as_f64()
                .filter(|number| *number > 0.0)
                .map(Some)
                .ok_or_else(|| self.wrong(key, "a number above 0")),
        }
    }

    /// The name that stands at a key.
    pub fn name(&self, key: &str) -> Result<Option<&str>, DataError> {
        match &self.config[key] {
            Value::Null => Ok(None),
            value => value.as_str().map(Some).ok_or_else(|| self.wrong(key, "a name")),
        }
    }
}

/// A whole number above 0, also where the file writes it as `28.0`.
fn whole(value: &Value) -> Option<usize> {
    let number = value.as_u64().or_else(|| value.as_f64().filter(|n| n.fract() == 0.0).map(|n| n as u64))?;
    usize::try_from(number).ok().filter(|&n| n > 0)
}
