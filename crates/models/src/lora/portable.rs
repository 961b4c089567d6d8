//! What PEFT must read in `adapter_config.json` to find the same modules as we do: paths as `transformers` has them in
//! memory, written whole, since PEFT matches `modules_to_save` by any ending of a path and patterns by their order.
//!
//! Source: `peft.utils.other._set_trainable`, `get_pattern_key`, `peft.tuners.tuners_utils.check_target_module_exists`.

use super::config::{LoraConfig, TargetModules, matches_whole};
use crate::error::Result;
use crate::names;
use std::collections::BTreeSet;

/// The outermost modules (in-memory paths, sorted) that together hold the tensors `saved` and nothing else.
///
/// `all` are the tensors of the model and `absent` the modules that the reference has and this model lacks, so that no
/// module is named whose tensors could not all be written. A list of blocks is no module to PEFT; its blocks are.
pub fn outermost_modules(saved: &[String], all: &[String], absent: &[String]) -> Vec<String> {
    let memory = |names: &[String]| -> BTreeSet<String> { names.iter().map(|n| names::in_memory(n)).collect() };
    let (saved, all, absent) = (memory(saved), memory(all), memory(absent));
    // Names with one prefix stand together in a sorted set.
    let below = |set: &BTreeSet<String>, path: &str| -> Vec<String> {
        let prefix = format!("{path}.");
        set.range(prefix.clone()..).take_while(|n| n.starts_with(&prefix)).cloned().collect()
    };
    let is_list = |path: &str| {
        let inner = |name: &String| name[path.len() + 1..].starts_with(|c: char| c.is_ascii_digit());
        below(&all, path).iter().any(inner)
    };
    let complete = |path: &str| {
        !is_list(path)
            && !absent.contains(path)
            && below(&absent, path).is_empty()
            && below(&all, path).iter().all(|name| saved.contains(name))
    };
    let mut modules: Vec<String> = Vec::new();
    for name in &saved {
        if modules.last().is_some_and(|module| name.starts_with(&format!("{module}."))) {
            continue;
        }
        let mut prefixes = name.match_indices('.').map(|(end, _)| &name[..end]);
        if let Some(path) = prefixes.find(|path| complete(path)) {
            modules.push(path.to_owned());
        }
    }
    modules
}

/// The configuration with everything that names modules resolved: `adapted` are the modules' canonical paths with their
/// rank and alpha, `saved` is what [`outermost_modules`] gave.
pub fn resolved(config: &LoraConfig, adapted: &[(String, usize, f64)], saved: Vec<String>) -> Result<LoraConfig> {
    let mut paths: Vec<String> = adapted.iter().map(|(path, ..)| names::in_memory(path)).collect();
    paths.sort();
    let mut ranks: Vec<(String, usize)> = Vec::new();
    let mut alphas: Vec<(String, f64)> = Vec::new();
    for (path, rank, alpha) in adapted {
        if *rank != config.r {
            ranks.push((names::in_memory(path), *rank));
        }
        if *alpha != config.lora_alpha {
            alphas.push((names::in_memory(path), *alpha));
        }
    }
    Ok(LoraConfig {
        target_modules: TargetModules::List(paths),
        modules_to_save: saved,
        rank_pattern: ranks,
        alpha_pattern: alphas,
        ..config.clone()
    })
}

/// Whether a regular expression means the same modules to PEFT, which knows paths in memory alone.
pub fn is_portable(pattern: &str, modules: &[String], matched: &[String]) -> Result<bool> {
    for path in modules {
        if matches_whole(pattern, &names::in_memory(path))? != matched.contains(path) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    const TOWER: &str = "vision_tower.vision_model";

    fn tower() -> Vec<String> {
        ["embeddings.class_embedding", "encoder.layers.0.mlp.fc1.weight", "encoder.layers.0.mlp.fc1.bias"]
            .into_iter()
            .chain(["encoder.layers.1.mlp.fc1.weight", "encoder.layers.1.mlp.fc1.bias", "post_layernorm.weight"])
            .map(|n| format!("{TOWER}.{n}"))
            .collect()
    }

    fn all() -> Vec<String> {
        let mut all = tower();
        all.extend(strings(&["language_model.model.norm.weight", "language_model.model.layers.0.norm.weight"]));
        all
    }

    #[test]
    fn modules_are_named_as_far_out_as_they_are_whole() {
        let check = |saved: &[String], absent: &[&str], expected: &[&str]| {
            assert_eq!(outermost_modules(saved, &all(), &strings(absent)), expected);
        };
        check(&tower(), &[], &["model.vision_tower"]);
        // PEFT copies the reference's module, which has what the checkpoint lacks: such a module is not named whole.
        let layer = format!("{TOWER}.encoder.layers.2");
        let parts = ["embeddings", "encoder.layers.0", "encoder.layers.1", "post_layernorm"];
        let parts = parts.map(|p| format!("model.vision_tower.{p}"));
        check(&tower(), &[&layer], &parts.each_ref().map(String::as_str));
        check(&tower()[1..3], &[], &["model.vision_tower.encoder.layers.0"]);
        // A list of blocks is a container without a forward pass, which PEFT refuses.
        check(&tower()[1..5], &[], &["model.vision_tower.encoder"]);
        check(&strings(&["language_model.model.norm.weight"]), &[], &["model.language_model.norm"]);
    }
}
