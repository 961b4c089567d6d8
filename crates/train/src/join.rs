//! The base model of a run: the checkpoint of `model.path`, or parts that `model.language` and its neighbours name, joined in a
//! folder of the run. Owns where that folder lies and when it is written again; what is joined is `models::join`'s.
//!
//! The folder names its parts and holds what belongs to none of them, so that it is small, and adapters have a base that
//! every command can load.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use data::join_tokenizer;
use hub::store::KeyHasher;
use models::join::{JoinSpec, TowerPart, write_joined};
use serde_json::{Value, json};

use crate::checkpoint::write_json;
use crate::error::{Result, TrainError};
use crate::plan::{MethodKind, Plan};

/// Folder of the joined model in `train.output_dir`.
pub const BASE_MODEL: &str = "base_model";
/// What it was made of.
const RECIPE_FILE: &str = "join.json";

/// The folder of the base model; a temporary one goes with this.
pub(crate) struct BaseModel {
    pub(crate) dir: PathBuf,
    /// The folders that it names, for who looks whether they are still the same.
    pub(crate) parts: Vec<(&'static str, PathBuf)>,
    is_temporary: bool,
}

impl Drop for BaseModel {
    fn drop(&mut self) {
        if self.is_temporary {
            // What cannot be removed stays in the system's folder for temporary things.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

impl BaseModel {
    /// For a run, which keeps what it joins.
    pub(crate) fn for_run(plan: &Plan) -> Result<BaseModel> {
        BaseModel::at(plan, plan.output_dir().join(BASE_MODEL), false)
    }

    /// For a look at a plan, which leaves nothing behind.
    pub(crate) fn for_report(plan: &Plan) -> Result<BaseModel> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let place = std::env::temp_dir().join(format!("vidtune-join-{}-{number}", std::process::id()));
        BaseModel::at(plan, place, true)
    }

    fn at(plan: &Plan, place: PathBuf, is_temporary: bool) -> Result<BaseModel> {
        if !plan.model.joins_parts() {
            let path = plan.model.path.as_deref().unwrap_or_default();
            let dir = hub::resolve_model(path).map_err(|source| TrainError::ModelPath { source })?;
            return Ok(BaseModel { dir, parts: Vec::new(), is_temporary: false });
        }
        let spec = spec_of(plan)?;
        let mut parts = vec![("language", spec.language.clone())];
        parts.extend(spec.image.iter().map(|part| ("image_tower", part.dir.clone())));
        parts.extend(spec.video.iter().map(|part| ("video_tower", part.dir.clone())));
        let base = BaseModel { dir: place, parts, is_temporary };
        let recipe = recipe_of(plan, &spec)?;
        let known: Option<Value> = hub::json::read_json(base.dir.join(RECIPE_FILE)).ok();
        if known.as_ref() == Some(&recipe) {
            return Ok(base);
        }
        if let Some(parent) = base.dir.parent() {
            fs::create_dir_all(parent).map_err(|source| TrainError::io("create", parent, source))?;
        }
        hub::replace_dir(&base.dir, |dir| {
            let (num_rows, num_new) = join_tokenizer(&spec.language, dir, &spec.new_tokens())?;
            let fresh = write_joined(&spec, dir, num_rows, num_new)?;
            check_fresh(plan, &fresh)?;
            write_json(&dir.join(RECIPE_FILE), &recipe)
        })?;
        Ok(base)
    }
}

/// What a plan asks to be joined, every part found.
fn spec_of(plan: &Plan) -> Result<JoinSpec> {
    let model = &plan.model;
    let find = |key: &str, name: &str| {
        hub::resolve_model(name).map_err(|source| {
            TrainError::mismatch(format!("`{key}`: {source}"), "give a folder, or the id of a model on the hub")
        })
    };
    // A folder is named so that it is found from anywhere; an id stays one.
    let stable = |name: &str| match Path::new(name).is_dir() {
        true => fs::canonicalize(name).map_or_else(|_| name.to_owned(), |path| path.to_string_lossy().into_owned()),
        false => name.to_owned(),
    };
    let tower = |key: &str, name: &Option<String>, kind: &str| -> Result<Option<TowerPart>> {
        let Some(name) = name else { return Ok(None) };
        let projector = kind
            .parse()
            .map_err(|what: String| TrainError::mismatch(format!("projector: {what}"), "write `mlp2x_gelu`"))?;
        Ok(Some(TowerPart { name: stable(name), dir: find(key, name)?, projector, projector_type: kind.to_owned() }))
    };
    let language = model.language.as_deref().unwrap_or_default();
    let kind = model.projector.as_deref().unwrap_or(crate::plan::DEFAULT_PROJECTOR);
    Ok(JoinSpec {
        language_name: stable(language),
        language: find("model.language", language)?,
        image: tower("model.image_tower", &model.image_tower, kind)?,
        video: tower("model.video_tower", &model.video_tower, model.video_projector.as_deref().unwrap_or(kind))?,
        num_segment: plan.data.num_frames.unwrap_or(16),
        select_layer: model.mm_vision_select_layer.unwrap_or(-2),
        select_feature: model.mm_vision_select_feature.clone().unwrap_or_else(|| "patch".to_owned()),
        use_start_end: model.mm_use_start_end,
        use_patch_token: model.mm_use_patch_token,
        image_aspect_ratio: model.image_aspect_ratio.clone().unwrap_or_else(|| "square".to_owned()),
        version: model.version.clone().filter(|version| version != "auto"),
        pretrained: model.pretrained_projector.clone(),
        seed: plan.train.seed,
    })
}

/// Everything that the folder depends on.
fn recipe_of(plan: &Plan, spec: &JoinSpec) -> Result<Value> {
    let mut pretrained = Vec::new();
    for path in &spec.pretrained {
        let mut hash = KeyHasher::new("projector");
        for file in models::join::projector_files(path)? {
            let bytes = fs::read(&file).map_err(|source| TrainError::io("read", &file, source))?;
            hash = hash.text(&file.to_string_lossy()).bytes(&bytes);
        }
        let digits: String = hash.finish().iter().map(|byte| format!("{byte:02x}")).collect();
        pretrained.push(json!([path, digits]));
    }
    let keys = [
        "language",
        "image_tower",
        "video_tower",
        "projector",
        "video_projector",
        "version",
        "mm_vision_select_layer",
        "mm_vision_select_feature",
        "mm_use_start_end",
        "mm_use_patch_token",
        "image_aspect_ratio",
    ];
    let all = plan.to_json();
    let chosen: serde_json::Map<String, Value> =
        keys.iter().map(|key| ((*key).to_owned(), all["model"][*key].clone())).collect();
    Ok(json!({"model": chosen, "language": spec.language, "num_segment": spec.num_segment, "seed": spec.seed,
        "pretrained": pretrained, "program": env!("CARGO_PKG_VERSION")}))
}

/// Refuses a run in which a projector that starts at random stays as it is.
fn check_fresh(plan: &Plan, fresh: &[String]) -> Result<()> {
    let method = &plan.method;
    let trains = match method.kind {
        Some(MethodKind::Projector) => true,
        Some(MethodKind::Full) | None => !method.freeze.iter().any(|name| name == "projector"),
        Some(MethodKind::Lora | MethodKind::Qlora) => {
            // The adapter that a run continues brings what it trained whole.
            plan.model.adapter.is_some() || method.also_train.iter().any(|name| name.contains("projector"))
        }
    };
    match fresh.first().filter(|_| !trains) {
        Some(path) => Err(TrainError::mismatch(
            format!("`{path}` starts at random and would stay so: nothing trains it"),
            "train projectors first (`method.kind: projector`) and name them in `model.pretrained_projector`, or write `method.also_train: [projector]`",
        )),
        None => Ok(()),
    }
}
