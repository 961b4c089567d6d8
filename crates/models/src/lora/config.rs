//! `adapter_config.json` of PEFT: read strictly (what is not implemented is refused by name), written so that PEFT
//! loads it. Owns the matching of target modules.
//!
//! Source: `peft.LoraConfig` and `peft.tuners.tuners_utils.check_target_module_exists`.

use crate::config::fields::Fields;
use crate::error::{ModelError, Result};
use crate::names;
use crate::weights::Part;
use regex::Regex;
use serde_json::{Map, Value, json};

/// Which projections get an adapter.
#[derive(Debug, Clone, PartialEq)]
pub enum TargetModules {
    /// Module names. A bare name (`q_proj`) means the language model only; a tower's module is named by its full path.
    List(Vec<String>),
    /// A regular expression that must match a whole module path.
    Regex(String),
    /// Every projection of the language model but its head.
    AllLinear,
}

/// LoRA as PEFT configures it (Hu et al. 2021; rank-stabilised scale: Kalajdzievski 2023).
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Dropout on the adapter's input.
    pub lora_dropout: f32,
    /// Which projections.
    pub target_modules: TargetModules,
    /// Modules trained and saved whole beside the adapter.
    pub modules_to_save: Vec<String>,
    /// Scale by `alpha / sqrt(r)` instead of `alpha / r`.
    pub use_rslora: bool,
    /// Ranks of modules whose path ends with (or matches) a pattern, in order.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of modules, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
}

impl Default for LoraConfig {
    fn default() -> LoraConfig {
        LoraConfig {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::AllLinear,
            modules_to_save: Vec::new(),
            use_rslora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
        }
    }
}

/// Fields that say nothing about the function computed.
const INERT: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    // The tensors of the file say which modules are adapted.
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

impl LoraConfig {
    /// Reads a configuration object; `place` names it in errors.
    pub fn from_json(place: &str, value: &Value) -> Result<LoraConfig> {
        let f = Fields::new(place, value)?;
        let kind = f.str_or("peft_type", "LORA")?;
        if kind != "LORA" {
            return Err(f.error("peft_type", format!("expected `LORA`, found `{kind}`")));
        }
        if let Some(init @ Value::String(s)) = f.raw("init_lora_weights")
            && !["gaussian", "orthogonal", "eva"].contains(&s.as_str())
        {
            return Err(f.error(
                "init_lora_weights",
                format!(
                    "expected true, false, `gaussian`, `orthogonal` or `eva`, found {init}, which may start from changed base weights; convert the adapter with `path_initial_model_for_weight_conversion` of `save_pretrained` in peft"
                ),
            ));
        }
        let bias = f.str_or("bias", "none")?;
        if bias != "none" {
            return Err(f.error("bias", format!("expected `none`, found `{bias}`")));
        }
        let strings = |name: &str| -> Result<Vec<String>> {
            let Some(v) = f.raw(name) else { return Ok(Vec::new()) };
            let list =
                v.as_array().and_then(|a| a.iter().map(|s| s.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>());
            list.ok_or_else(|| f.error(name, format!("expected a list of names, found `{v}`")))
        };
        let target_modules = match f.raw("target_modules") {
            Some(Value::String(s)) if s == "all-linear" => TargetModules::AllLinear,
            Some(Value::String(s)) => TargetModules::Regex(s.clone()),
            Some(_) => TargetModules::List(strings("target_modules")?),
            None => {
                return Err(
                    f.error("target_modules", "is required: a list of names, a regular expression or `all-linear`")
                );
            }
        };
        let patterns = |name: &str| -> Result<Vec<(String, f64)>> {
            let Some(v) = f.raw(name) else { return Ok(Vec::new()) };
            let pairs = v
                .as_object()
                .and_then(|o| o.iter().map(|(k, v)| Some((k.clone(), v.as_f64()?))).collect::<Option<Vec<_>>>());
            pairs.ok_or_else(|| f.error(name, format!("expected an object of numbers by pattern, found `{v}`")))
        };
        let config = LoraConfig {
            r: f.size_or("r", 8)?,
            lora_alpha: f.f64_or("lora_alpha", 8.0)?,
            lora_dropout: f.f64_or("lora_dropout", 0.0)? as f32,
            target_modules,
            modules_to_save: strings("modules_to_save")?,
            use_rslora: f.bool_or("use_rslora", false)?,
            rank_pattern: patterns("rank_pattern")?.into_iter().map(|(k, v)| (k, v as usize)).collect(),
            alpha_pattern: patterns("alpha_pattern")?,
        };
        config.check(place)?;
        let inactive = |v: &Value| match v {
            Value::Null | Value::Bool(false) => true,
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            _ => false,
        };
        for (name, v) in value.as_object().into_iter().flatten() {
            if INERT.contains(&name.as_str()) || inactive(v) {
                let _ = f.raw(name);
            }
        }
        f.finish()?;
        Ok(config)
    }

    /// Refuses values outside of their range.
    pub fn check(&self, place: &str) -> Result<()> {
        let bad =
            |field: &str, reason: String| Err(ModelError::Config { file: place.into(), field: field.into(), reason });
        if self.r == 0 {
            return bad("r", "expected at least 1, found `0`".into());
        }
        if let Some((pattern, _)) = self.rank_pattern.iter().find(|(_, r)| *r == 0) {
            return bad("rank_pattern", format!("expected at least 1 for `{pattern}`, found `0`"));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return bad("lora_dropout", format!("expected a number in [0, 1), found `{}`", self.lora_dropout));
        }
        Ok(())
    }

    /// The object PEFT reads; `task_type` chooses the class that wraps the model there.
    pub fn to_json(&self, base_model: &str, task_type: &str) -> Value {
        let targets = match &self.target_modules {
            TargetModules::List(names) => json!(names),
            TargetModules::Regex(pattern) => json!(pattern),
            TargetModules::AllLinear => json!("all-linear"),
        };
        let object = |pairs: Vec<(String, Value)>| Value::Object(pairs.into_iter().collect::<Map<_, _>>());
        let number = |v: f64| if v.fract() == 0.0 { json!(v as i64) } else { json!(v) };
        json!({
            "alpha_pattern": object(self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect()),
            "auto_mapping": null,
            "base_model_name_or_path": base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": (f64::from(self.lora_dropout) * 1e6).round() / 1e6,
            "modules_to_save": if self.modules_to_save.is_empty() { Value::Null } else { json!(self.modules_to_save) },
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": object(self.rank_pattern.iter().map(|(k, v)| (k.clone(), json!(v))).collect()),
            "revision": null,
            "target_modules": targets,
            "task_type": task_type,
            "use_dora": false,
            "use_rslora": self.use_rslora,
        })
    }

    /// Rank of a module that is known by the given paths: a plan may use either spelling of it, the configuration of
    /// an adapter speaks of the paths in its own file alone.
    pub fn rank_of(&self, paths: &[&str]) -> Result<usize> {
        Ok(pattern_value(&self.rank_pattern, paths)?.unwrap_or(self.r))
    }

    /// Alpha of a module, likewise.
    pub fn alpha_of(&self, paths: &[&str]) -> Result<f64> {
        Ok(pattern_value(&self.alpha_pattern, paths)?.unwrap_or(self.lora_alpha))
    }

    /// Scale of a module with the given alpha and rank.
    pub fn scale(&self, alpha: f64, rank: usize) -> f32 {
        (if self.use_rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }) as f32
    }
}

fn compile(pattern: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|e| {
        ModelError::Adapter(format!("`{pattern}` is not a regular expression this program understands: {e}"))
    })
}

/// Whether a regular expression matches a whole path.
pub(super) fn matches_whole(pattern: &str, path: &str) -> Result<bool> {
    Ok(compile(pattern)?.is_match(path))
}

/// The first pattern that matches one of the paths, or the end of one after a dot, as PEFT's `get_pattern_key`.
fn pattern_value<T: Copy>(patterns: &[(String, T)], paths: &[&str]) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        let hit = match is_plain(pattern) {
            true => paths.iter().any(|path| ends_plainly(path, pattern)),
            false => {
                let regex = compile(&format!("(.*\\.)?({pattern})"))?;
                paths.iter().any(|path| regex.is_match(path))
            }
        };
        if hit {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Whether a pattern is a path like those we write, one for each module: no regular expression has to be built for it.
fn is_plain(pattern: &str) -> bool {
    pattern.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// Whether a plain pattern, where a dot stands for any character, is the path or its end after a dot.
fn ends_plainly(path: &str, pattern: &str) -> bool {
    let (path, pattern) = (path.as_bytes(), pattern.as_bytes());
    let Some(start) = path.len().checked_sub(pattern.len()) else { return false };
    (start == 0 || path[start - 1] == b'.') && path[start..].iter().zip(pattern).all(|(c, p)| *p == b'.' || c == p)
}

/// The canonical paths among `modules` that the targets name; a target that names none is an error.
pub fn match_targets(targets: &TargetModules, modules: &[(String, Part)]) -> Result<Vec<String>> {
    let is_head = |path: &str| path.ends_with("lm_head");
    let available = || -> String {
        let mut kinds: Vec<&str> = Vec::new();
        for (path, _) in modules.iter().filter(|(_, part)| *part == Part::Llm) {
            let kind = path.rsplit('.').next().unwrap_or(path);
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        kinds.join(", ")
    };
    match targets {
        TargetModules::AllLinear => Ok(modules
            .iter()
            .filter(|(path, part)| *part == Part::Llm && !is_head(path))
            .map(|(path, _)| path.clone())
            .collect()),
        TargetModules::Regex(pattern) => {
            let regex = compile(pattern)?;
            let hit = |path: &str| regex.is_match(path) || regex.is_match(&names::in_memory(path));
            let matched: Vec<String> = modules.iter().filter(|(p, _)| hit(p)).map(|(p, _)| p.clone()).collect();
            if matched.is_empty() {
                return Err(ModelError::Adapter(format!(
                    "target_modules `{pattern}` matches no module whole; paths look like `{}`",
                    modules.first().map(|(p, _)| names::in_memory(p)).unwrap_or_default()
                )));
            }
            Ok(matched)
        }
        TargetModules::List(list) => {
            let hit = |target: &str, path: &str, part: Part| {
                let memory = names::in_memory(path);
                path == target
                    || memory == target
                    || (part == Part::Llm
                        && (path.ends_with(&format!(".{target}")) || memory.ends_with(&format!(".{target}"))))
            };
            for target in list {
                if !modules.iter().any(|(p, part)| hit(target, p, *part)) {
                    return Err(ModelError::Adapter(format!(
                        "target_modules: `{target}` names no module of the language model; it has {}; a tower's module is named by its full path or a regular expression",
                        available()
                    )));
                }
            }
            Ok(modules
                .iter()
                .filter(|(p, part)| list.iter().any(|t| hit(t, p, *part)))
                .map(|(p, _)| p.clone())
                .collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Vec<(String, Part)> {
        let llm = ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"]
            .map(|m| (format!("language_model.model.layers.0.{m}"), Part::Llm));
        let mut all = vec![("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj".to_owned(), Part::Vision)];
        all.push(("multi_modal_projector.linear_1".into(), Part::Projector));
        all.extend(llm);
        all.push(("language_model.lm_head".into(), Part::Llm));
        all
    }

    fn matched(targets: TargetModules) -> Vec<String> {
        let paths = match_targets(&targets, &modules()).unwrap();
        paths.iter().map(|p| p.rsplit('.').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn bare_names_stay_in_the_language_model() {
        let list = |names: &[&str]| TargetModules::List(names.iter().map(|s| s.to_string()).collect());
        assert_eq!(
            match_targets(&list(&["q_proj"]), &modules()).unwrap(),
            ["language_model.model.layers.0.self_attn.q_proj"]
        );
        assert_eq!(matched(list(&["self_attn.v_proj", "lm_head"])), ["v_proj", "lm_head"]);
        assert_eq!(
            match_targets(&list(&["model.vision_tower.encoder.layers.0.self_attn.q_proj"]), &modules()).unwrap(),
            ["vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"]
        );
        let error = match_targets(&list(&["q_proj", "fc1"]), &modules()).unwrap_err().to_string();
        assert!(
            error.contains("`fc1` names no module of the language model; it has q_proj, v_proj, up_proj, lm_head"),
            "{error}"
        );
    }

    #[test]
    fn all_linear_leaves_the_head_and_the_tower() {
        assert_eq!(matched(TargetModules::AllLinear), ["q_proj", "v_proj", "up_proj"]);
    }

    #[test]
    fn a_regular_expression_matches_whole_paths_under_either_spelling() {
        assert_eq!(matched(TargetModules::Regex(r".*language_model.*\.(q|v)_proj".into())), ["q_proj", "v_proj"]);
        assert_eq!(matched(TargetModules::Regex(r"model\.vision_tower\..*q_proj".into())), ["q_proj"]);
        assert!(match_targets(&TargetModules::Regex("q_proj".into()), &modules()).is_err());
    }

    #[test]
    fn ranks_and_scales_follow_the_patterns() {
        let config = LoraConfig {
            r: 8,
            lora_alpha: 16.0,
            rank_pattern: vec![("q_proj".into(), 4)],
            alpha_pattern: vec![(r"layers\.0\.self_attn\.v_proj".into(), 2.0)],
            ..LoraConfig::default()
        };
        let path = |m: &str| format!("language_model.model.layers.0.self_attn.{m}");
        let (q, v) = (path("q_proj"), path("v_proj"));
        assert_eq!(config.rank_of(&[&q]).unwrap(), 4);
        assert_eq!(config.rank_of(&[&v]).unwrap(), 8);
        let scale = |c: &LoraConfig, path: &str, rank| c.scale(c.alpha_of(&[path]).unwrap(), rank);
        assert_eq!(scale(&config, &q, 4), 4.0);
        assert_eq!(scale(&config, &v, 8), 0.25);
        let stable = LoraConfig { use_rslora: true, ..config };
        assert_eq!(scale(&stable, &q, 4), 8.0);
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        let check = |change: Value, expected: &str| {
            let mut value = json!({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "use_dora": false, "layer_replication": null});
            for (k, v) in change.as_object().unwrap() {
                value[k] = v.clone();
            }
            let found = LoraConfig::from_json("adapter_config.json", &value).map(|_| ()).unwrap_err().to_string();
            assert!(found.contains(expected), "{found}");
        };
        check(json!({"use_dora": true}), "field `use_dora`: is not supported (found `true`)");
        check(json!({"bias": "all"}), "field `bias`: expected `none`, found `all`");
        check(json!({"peft_type": "IA3"}), "field `peft_type`: expected `LORA`, found `IA3`");
        check(
            json!({"init_lora_weights": "pissa"}),
            "field `init_lora_weights`: expected true, false, `gaussian`, `orthogonal` or `eva`, found \"pissa\"",
        );
        check(json!({"trainable_token_indices": [1]}), "field `trainable_token_indices`: is not supported");
        check(json!({"r": 0}), "field `r`: expected at least 1, found `0`");
        check(json!({"lora_dropout": 1.0}), "field `lora_dropout`: expected a number in [0, 1), found `1`");
    }
}
