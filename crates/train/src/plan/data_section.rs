//! The `data` section as the plan reads it. Owns the bridge between the plan's tree and the data crate, which owns the
//! section's keys, defaults, documentation and contradictions.

use data::{DataError, DataPlan, PLAN_FIELDS};
use serde_json::{Map, Value as Json, json};

use super::field::{FieldDoc, Source};
use super::node::Place;
use super::problem::Problem;

/// The folder that other tools name once for all datasets; ours stands in each dataset.
pub(super) const MEDIA_DIR: &str = "data.media_dir";
/// The same of sound.
pub(super) const AUDIO_DIR: &str = "data.audio_dir";

/// The keys; those inside a list, such as `data.train[].path`, are for the reference page only.
pub(super) fn fields() -> Vec<FieldDoc> {
    let doc = |field: &data::PlanField| FieldDoc {
        path: format!("data.{}", field.name),
        type_name: field.type_name.to_owned(),
        default: serde_json::from_str(field.default).unwrap_or(Json::Null),
        doc: field.doc.to_owned(),
        free_on_resume: field.free_on_resume,
    };
    PLAN_FIELDS.iter().map(doc).collect()
}

pub(super) fn read(source: &Source, problems: &mut Vec<Problem>) -> DataPlan {
    let mut section = Map::new();
    for (path, given) in &source.given {
        if path == MEDIA_DIR || path == AUDIO_DIR {
            continue;
        }
        let Some(key) = path.strip_prefix("data.") else { continue };
        insert(&mut section, key, given.node.to_json());
    }
    for (path, key) in [(MEDIA_DIR, "media_dir"), (AUDIO_DIR, "audio_dir")] {
        let Some(given) = source.given.get(path) else { continue };
        for set in ["train", "eval"] {
            if let Some(datasets) = section.get_mut(set) {
                add_dir(datasets, key, &given.node.to_json());
            }
        }
    }
    match DataPlan::from_json(&Json::Object(section)) {
        Ok(plan) => plan,
        Err(error) => {
            problems.push(placed(source, error));
            DataPlan::default()
        }
    }
}

pub(super) fn write(plan: &DataPlan) -> Json {
    serde_json::to_value(plan).unwrap_or(Json::Null)
}

/// Contradictions of a section that was built in memory.
pub(super) fn check(plan: &DataPlan) -> Option<Problem> {
    plan.check().err().map(|error| placed(&Source::default(), error))
}

/// Puts a value at a path of at most two segments.
fn insert(section: &mut Map<String, Json>, key: &str, value: Json) {
    match key.split_once('.') {
        None => {
            section.insert(key.to_owned(), value);
        }
        Some((outer, inner)) => {
            if let Json::Object(nested) = section.entry(outer).or_insert_with(|| json!({})) {
                nested.insert(inner.to_owned(), value);
            }
        }
    }
}

fn add_dir(datasets: &mut Json, key: &str, dir: &Json) {
    match datasets {
        Json::Array(items) => items.iter_mut().for_each(|item| add_dir(item, key, dir)),
        Json::String(path) => *datasets = json!({"path": path, (key): dir}),
        Json::Object(dataset) => {
            dataset.entry(key).or_insert_with(|| dir.clone());
        }
        _ => {}
    }
}

/// The data crate's complaint at the place of the key that it is about.
fn placed(source: &Source, error: DataError) -> Problem {
    let (key, what, hint) = match error {
        DataError::Plan { key, what, hint } => (key, what, Some(hint)),
        other => ("data".to_owned(), other.to_string(), None),
    };
    // A value of the wrong type is reported for the section as a whole: the key at fault is the one that fails alone.
    let culprit = (key == "data").then(|| source.given.keys().find(|path| fails_alone(source, path))).flatten();
    let key = culprit.cloned().unwrap_or(key);
    let stem = key.split('[').next().unwrap_or_default();
    let given = source.given.get(stem);
    let place = given.map_or(Place::Plan, |given| given.node.place.clone());
    let message = match given {
        Some(given) if given.written != key && stem == key => format!("`{}` (`{key}`): {what}", given.written),
        _ => format!("`{key}`: {what}"),
    };
    Problem { place, message, hint }
}

fn fails_alone(source: &Source, path: &str) -> bool {
    let (Some(key), Some(given)) = (path.strip_prefix("data."), source.given.get(path)) else {
        return false;
    };
    let mut alone = Map::new();
    insert(&mut alone, key, given.node.to_json());
    serde_json::from_value::<DataPlan>(Json::Object(alone)).is_err()
}
