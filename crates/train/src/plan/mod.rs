//! The plan file: one YAML document (or `key=value` arguments) to one checked [`Plan`]. Owns loading, the resolved JSON and
//! the list of keys; the sections' keys are in `sections`, contradictions in `validate`.
//!
//! ```text
//! text -> node (tree with places) -> flatten (our names) -> sections (typed, defaulted) -> validate (contradictions)
//! ```

mod alias;
mod data_section;
mod deepspeed;
mod field;
mod flatten;
mod node;
mod problem;
mod reference;
mod sections;
mod validate;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

pub use data::DataPlan;
pub use field::FieldDoc;
pub use node::Place;
pub use problem::{PlanError, Problem};
pub use reference::reference_page;
pub use sections::{
    ByteSize, DEFAULT_PROJECTOR, HubPlan, LearningRates, LoraPlan, MethodKind, MethodPlan, ModelPlan, Offload,
    OptimizerKind, ParallelPlan, SchedulerKind, SchedulerSettings, StepWindow, Strategy, TargetModules, TrackingPlan,
    TrainPlan, WeightDtype,
};

use field::{Section, Source};
use flatten::{Schema, apply_overrides, flatten_file};

/// Everything that decides a run.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Which model.
    pub model: ModelPlan,
    /// What is trained.
    pub method: MethodPlan,
    /// On what; the data crate's section.
    pub data: DataPlan,
    /// The run.
    pub train: TrainPlan,
    /// Several devices.
    pub parallel: ParallelPlan,
    /// Trackers.
    pub tracking: TrackingPlan,
    /// Upload.
    pub hub: HubPlan,
    /// The keys that were written, under our names.
    given: BTreeSet<String>,
}

impl Plan {
    /// Reads a plan file, applies `key=value` arguments and checks the whole. No model, dataset or device is touched.
    ///
    /// # Errors
    /// [`PlanError`] with every problem found: malformed YAML, unknown keys (with a suggestion), values of the wrong kind,
    /// contradictions, and keys that are not built yet.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Plan, PlanError> {
        let in_file = |error: PlanError| PlanError { file: Some(path.to_owned()), ..error };
        let text = std::fs::read_to_string(path).map_err(|error| {
            let message = format!("cannot read the plan: {error}");
            in_file(PlanError::single(Problem::new(Place::Plan, message).hint("give the path of a YAML file")))
        })?;
        Plan::from_yaml(&text, overrides).map_err(in_file)
    }

    /// As [`Plan::load`], from text.
    ///
    /// # Errors
    /// As [`Plan::load`].
    pub fn from_yaml(text: &str, overrides: &[String]) -> Result<Plan, PlanError> {
        let root = node::parse(text).map_err(PlanError::single)?;
        let schema = Schema::new(&fields());
        let mut problems = Vec::new();
        let mut source = flatten_file(&schema, &root, &mut problems);
        apply_overrides(&schema, &mut source, overrides, &mut problems);
        let mut plan = Plan::from_source(&source, &mut problems);
        if let Some(file) = plan.parallel.deepspeed.clone().filter(|_| problems.is_empty()) {
            let place = source.given.get("parallel.deepspeed").map_or(Place::Plan, |given| given.place.clone());
            problems.extend(deepspeed::apply(&mut plan, &file, &place));
        }
        // Contradictions among values that could not be read would only repeat the first message in other words.
        if problems.is_empty() {
            problems = validate::problems(&plan, &source);
        }
        if problems.is_empty() { Ok(plan) } else { Err(PlanError { file: None, problems }) }
    }

    /// Checks a plan that was built or changed in memory as [`Plan::load`] checks a file.
    ///
    /// # Errors
    /// [`PlanError`] with every contradiction found.
    pub fn check(&self) -> Result<(), PlanError> {
        let mut problems = validate::problems(self, &Source::default());
        problems.extend(data_section::check(&self.data));
        if problems.is_empty() { Ok(()) } else { Err(PlanError { file: None, problems }) }
    }

    fn from_source(source: &Source, problems: &mut Vec<Problem>) -> Plan {
        Plan {
            model: Section::read(source, "model", problems),
            method: Section::read(source, "method", problems),
            data: data_section::read(source, problems),
            train: Section::read(source, "train", problems),
            parallel: Section::read(source, "parallel", problems),
            tracking: Section::read(source, "tracking", problems),
            hub: Section::read(source, "hub", problems),
            given: source.given.keys().cloned().collect(),
        }
    }

    /// Whether the user wrote the key (or an alias of it), whatever its value.
    pub fn is_given(&self, path: &str) -> bool {
        self.given.contains(path)
    }

    /// The resolved plan, every default filled in; what `plan.json` holds.
    pub fn to_json(&self) -> Json {
        let sections = [
            ("model", self.model.write()),
            ("method", self.method.write()),
            ("data", data_section::write(&self.data)),
            ("train", self.train.write()),
            ("parallel", self.parallel.write()),
            ("tracking", self.tracking.write()),
            ("hub", self.hub.write()),
        ];
        Json::Object(sections.into_iter().map(|(name, section)| (name.to_owned(), section)).collect::<Map<_, _>>())
    }

    /// The base model as an adapter names it: `model.path`, or the folder in which parts are joined.
    pub fn base_model(&self) -> String {
        match &self.model.path {
            Some(path) => path.clone(),
            None if self.model.joins_parts() => {
                self.output_dir().join(crate::join::BASE_MODEL).to_string_lossy().into_owned()
            }
            None => String::new(),
        }
    }

    /// The folder that the run writes to.
    pub fn output_dir(&self) -> PathBuf {
        self.train.output_dir.clone().unwrap_or_default()
    }

    /// The keys in which `self` differs from an earlier resolved plan, without those that may change on resume.
    pub fn changed_keys(&self, earlier: &Json) -> Vec<ChangedKey> {
        let now = self.to_json();
        let at = |plan: &Json, path: &str| path.split('.').try_fold(plan, |node, key| node.get(key)).cloned();
        fields()
            .into_iter()
            .filter(|field| !field.free_on_resume)
            .filter_map(|field| {
                let (before, after) = (at(earlier, &field.path), at(&now, &field.path));
                let show = |value: Option<Json>| value.map_or_else(|| "absent".to_owned(), |v| v.to_string());
                (before != after).then(|| ChangedKey { path: field.path, before: show(before), after: show(after) })
            })
            .collect()
    }
}

/// A key whose value differs between a checkpoint's plan and the present one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedKey {
    /// Dotted path.
    pub path: String,
    /// Value in the checkpoint's plan, as JSON.
    pub before: String,
    /// Value now, as JSON.
    pub after: String,
}

/// Every key of the plan, in the order of the reference page.
pub fn fields() -> Vec<FieldDoc> {
    let mut fields = ModelPlan::fields("model");
    fields.extend(MethodPlan::fields("method"));
    fields.extend(data_section::fields());
    fields.extend(TrainPlan::fields("train"));
    fields.extend(ParallelPlan::fields("parallel"));
    fields.extend(TrackingPlan::fields("tracking"));
    fields.extend(HubPlan::fields("hub"));
    fields
}
