//! What cannot be true of a plan, seen from the plan alone. Owns contradictions, ranges and keys that are not built yet; what
//! needs the model, the dataset's length or a file is checked where those are opened.

use std::path::Path;

use models::config::encoders::ProjectorKind;
use regex::Regex;

use super::field::Source;
use super::problem::Problem;
use super::sections::{MethodKind, Offload, SchedulerKind, Strategy, TargetModules, TrainPlan};
use super::{Place, Plan};

/// Every problem of the plan, each placed at the key that the message is about.
pub(super) fn problems(plan: &Plan, source: &Source) -> Vec<Problem> {
    let mut findings = Findings { plan, source, problems: Vec::new() };
    findings.not_built();
    findings.model_and_method();
    findings.learning_rates();
    findings.lora();
    findings.length_and_batch();
    findings.profile();
    findings.feature_cache();
    findings.optimizer();
    findings.schedule();
    findings.saving_and_evaluation();
    findings.data();
    findings.problems
}

/// A part of the model, or a pattern over tensor names, as `freeze` and `also_train` take them.
pub(super) const PARTS: [&str; 3] = ["vision", "projector", "llm"];
/// Those of models that hear.
const SPEECH_PARTS: [&str; 2] = ["speech", "speech_projector"];

struct Findings<'a> {
    plan: &'a Plan,
    source: &'a Source,
    problems: Vec<Problem>,
}

impl Findings<'_> {
    fn add(&mut self, key: &str, message: impl Into<String>, hint: impl Into<String>) {
        let place = self.source.given.get(key).map_or(Place::Plan, |given| given.place.clone());
        self.problems.push(Problem::new(place, message).hint(hint));
    }

    fn given(&self, key: &str) -> bool {
        self.plan.is_given(key)
    }

    fn missing(&mut self, key: &str, example: &str) {
        self.add(key, format!("`{key}` is missing"), format!("write `{key}: {example}`"));
    }

    fn not_built(&mut self) {
        let Plan { method, parallel, tracking, hub, .. } = self.plan;
        if method.kind == Some(MethodKind::Qlora) {
            self.add("method.kind", "`method.kind: qlora` is not built yet", "use `lora` with `model.dtype: bf16`");
        }
        if method.lora.use_dora {
            self.add("method.lora.use_dora", "`method.lora.use_dora` is not built yet", "remove it");
        }
        if !method.lora.init_lora_weights {
            let key = "method.lora.init_lora_weights";
            self.add(key, format!("`{key}: false` is not built yet"), "remove it");
        }
        if method.lora.bias != "none" {
            let message = format!("`method.lora.bias: {}` is not built yet", method.lora.bias);
            self.add("method.lora.bias", message, "write `bias: none`");
        }
        if parallel.zero_stage != 0 {
            let message = format!("`parallel.zero_stage: {}` is not built yet", parallel.zero_stage);
            self.add("parallel.zero_stage", message, "write `zero_stage: 0`; one device holds the whole model");
        }
        if parallel.offload != Offload::None {
            let message = format!("`parallel.offload: {}` is not built yet", parallel.offload.word());
            self.add("parallel.offload", message, "write `offload: none`");
        }
        if tracking.report_to.iter().any(|tracker| tracker != "none") {
            let message = format!("`tracking.report_to: [{}]` is not built yet", tracking.report_to.join(", "));
            self.add("tracking.report_to", message, "remove it; `metrics.jsonl` holds every step");
        }
        for (key, set) in [
            ("hub.push_to_hub", hub.push_to_hub),
            ("hub.hub_model_id", hub.hub_model_id.is_some()),
            ("hub.private", self.given("hub.private")),
        ] {
            if set {
                self.add(
                    key,
                    format!("`{key}`: upload to the hub is not built yet"),
                    "remove it; upload `final_model/` by hand",
                );
            }
        }
    }

    fn model_and_method(&mut self) {
        self.parts();
        let Plan { model, method, .. } = self.plan;
        match model.device.as_str() {
            "auto" | "cpu" => {}
            cuda if cuda == "cuda" || cuda.strip_prefix("cuda:").is_some_and(|n| n.parse::<usize>().is_ok()) => {
                self.add("model.device", format!("`model.device: {cuda}` is not built yet"), "write `cpu`");
            }
            other => {
                let message = format!("`model.device` must be `auto`, `cpu` or `cuda:N`, found `{other}`");
                self.add("model.device", message, "write `auto`");
            }
        }
        let Some(kind) = method.kind else {
            self.missing("method.kind", "lora");
            return;
        };
        let word = kind.word();
        let lora = matches!(kind, MethodKind::Lora | MethodKind::Qlora);
        if !lora {
            let lora_keys: Vec<String> =
                self.source.given.keys().filter(|k| k.starts_with("method.lora.")).cloned().collect();
            for key in lora_keys {
                self.add(
                    &key,
                    format!("`{key}` has no effect with `method.kind: {word}`"),
                    "write `kind: lora`, or remove it",
                );
            }
            if model.adapter.is_some() {
                let message = format!("`model.adapter` continues an adapter, but `method.kind` is `{word}`");
                self.add("model.adapter", message, "write `kind: lora`");
            }
            if !method.also_train.is_empty() {
                let message = format!("`method.also_train` has no effect with `method.kind: {word}`");
                self.add("method.also_train", message, "use `method.freeze` to say what does not train");
            }
        }
        for (key, names) in [("method.freeze", &method.freeze), ("method.also_train", &method.also_train)] {
            for name in names {
                if let Err(error) = Regex::new(name) {
                    let reason =
                        error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                    self.add(
                        key,
                        format!("`{name}` in `{key}` is not a regular expression: {reason}"),
                        "write a part, a tensor name or a regular expression",
                    );
                }
            }
        }
        if let Some(name) = method.freeze.iter().find(|name| method.also_train.contains(name)) {
            let message = format!("`{name}` is both in `method.freeze` and in `method.also_train`");
            self.add("method.freeze", message, "keep it in one of them");
        }
        let frozen = |part: &str| method.freeze.iter().any(|name| name == part);
        if kind == MethodKind::Full && PARTS.iter().all(|part| frozen(part)) {
            self.add("method.freeze", "`method.freeze` names every part: nothing would train", "leave a part out");
        }
        if kind == MethodKind::Projector && frozen("projector") {
            self.add(
                "method.freeze",
                "`method.kind: projector` trains the projector, but `method.freeze` names it",
                "remove it",
            );
        }
    }

    fn learning_rates(&mut self) {
        let Plan { method, train, .. } = self.plan;
        let rates = [
            ("vision", method.learning_rates.vision),
            ("projector", method.learning_rates.projector),
            ("llm", method.learning_rates.llm),
            ("speech", method.learning_rates.speech),
            ("speech_projector", method.learning_rates.speech_projector),
        ];
        let mut named = vec![("train.learning_rate".to_owned(), Some(train.learning_rate))];
        named.extend(rates.iter().map(|(part, rate)| (format!("method.learning_rates.{part}"), *rate)));
        for (key, rate) in named {
            if let Some(rate) = rate.filter(|rate| *rate <= 0.0 || *rate > 10.0) {
                self.add(
                    &key,
                    format!("`{key}` must be above 0 and at most 10, found `{rate}`"),
                    "a usual value is `2e-4` for lora, `2e-5` for full",
                );
            }
        }
        let mut trains: Vec<&str> = match method.kind {
            Some(MethodKind::Projector) => vec!["projector", "speech_projector"],
            _ => PARTS.into_iter().chain(SPEECH_PARTS).collect(),
        };
        trains.retain(|part| !method.freeze.iter().any(|name| name == part));
        for (part, rate) in rates {
            if rate.is_some() && !trains.contains(&part) {
                let key = format!("method.learning_rates.{part}");
                self.add(&key, format!("`{key}` is given, but `{part}` does not train"), "remove it");
            }
        }
        trains.retain(|part| !SPEECH_PARTS.contains(part));
        let own = |part: &&str| rates.iter().any(|(name, rate)| *name == *part && rate.is_some());
        if self.given("train.learning_rate") && !trains.is_empty() && trains.iter().all(own) {
            let message =
                "`train.learning_rate` is given, but every part that trains has its own in `method.learning_rates`";
            self.add("train.learning_rate", message, "remove `train.learning_rate`");
        }
    }

    /// Where the model comes from: one checkpoint, or parts to join.
    fn parts(&mut self) {
        let model = &self.plan.model;
        let keys = [
            ("model.language", model.language.is_some()),
            ("model.image_tower", model.image_tower.is_some()),
            ("model.video_tower", model.video_tower.is_some()),
            ("model.projector", model.projector.is_some()),
            ("model.video_projector", model.video_projector.is_some()),
            ("model.pretrained_projector", !model.pretrained_projector.is_empty()),
            ("model.version", model.version.is_some()),
            ("model.mm_vision_select_layer", model.mm_vision_select_layer.is_some()),
            ("model.mm_vision_select_feature", model.mm_vision_select_feature.is_some()),
            ("model.mm_use_start_end", model.mm_use_start_end),
            ("model.mm_use_patch_token", model.mm_use_patch_token),
            ("model.image_aspect_ratio", model.image_aspect_ratio.is_some()),
        ];
        if model.path.is_some() {
            for (key, _) in keys.into_iter().filter(|(_, is_set)| *is_set) {
                let message =
                    format!("`{key}` joins parts, and `model.path` names a whole checkpoint, which decides itself");
                self.add(key, message, "keep one of them");
            }
            return;
        }
        let set: Vec<&str> = keys.iter().filter(|(_, is_set)| *is_set).map(|(key, _)| *key).collect();
        if set.is_empty() {
            self.missing("model.path", "DIR");
            return;
        }
        if model.language.is_none() {
            let message = format!("`{}` joins parts, and `model.language` is missing", set[0]);
            self.add(set[0], message, "write `model.language: DIR`, or `model.path: DIR` for a whole checkpoint");
        }
        if model.image_tower.is_none() && model.video_tower.is_none() {
            let message = "there is no tower to join: `model.image_tower` and `model.video_tower` are both missing";
            self.add(set[0], message, "write one of them or both; a language model alone is `model.path: DIR`");
        }
        if model.video_projector.is_some() && model.video_tower.is_none() {
            let message = "`model.video_projector` has no effect without `model.video_tower`";
            self.add("model.video_projector", message, "write `model.projector`, or name the tower");
        }
        for (key, kind) in [("model.projector", &model.projector), ("model.video_projector", &model.video_projector)] {
            if let Some(Err(what)) = kind.as_ref().map(|kind| kind.parse::<ProjectorKind>()) {
                self.add(key, format!("`{key}`: {what}"), "write `mlp2x_gelu`");
            }
        }
        let versions = ["auto", "plain", "v0", "v0.5", "v1", "chatml", "phi", "llava-1.5"];
        let words: [(&str, &Option<String>, &[&str]); 3] = [
            ("model.version", &model.version, &versions),
            ("model.mm_vision_select_feature", &model.mm_vision_select_feature, &["patch", "cls_patch"]),
            ("model.image_aspect_ratio", &model.image_aspect_ratio, &["square", "pad"]),
        ];
        for (key, word, known) in words {
            if let Some(word) = word.as_ref().filter(|word| !known.contains(&word.as_str())) {
                let message = format!("`{key}` must be one of {}, found `{word}`", known.join(", "));
                self.add(key, message, format!("write `{}`", known[0]));
            }
        }
    }

    fn lora(&mut self) {
        let lora = &self.plan.method.lora;
        if lora.r == 0 || lora.rank_pattern.values().any(|r| *r == 0) {
            self.add("method.lora.r", "a LoRA rank must be at least 1", "write `r: 16`");
        }
        if lora.lora_alpha <= 0.0 || lora.alpha_pattern.values().any(|alpha| *alpha <= 0.0) {
            self.add("method.lora.lora_alpha", "`lora_alpha` must be above 0", "write `lora_alpha: 32`");
        }
        if !(0.0..1.0).contains(&lora.lora_dropout) {
            let message =
                format!("`method.lora.lora_dropout` must be from 0 to below 1, found `{}`", lora.lora_dropout);
            self.add("method.lora.lora_dropout", message, "write `lora_dropout: 0.05`");
        }
        let problem = match &lora.target_modules {
            TargetModules::Names(names) if names.is_empty() => {
                Some("`method.lora.target_modules` is empty: nothing would train".to_owned())
            }
            TargetModules::Text(text) if text != "all-linear" && Regex::new(text).is_err() => {
                Some(format!("`method.lora.target_modules: {text}` is not a regular expression"))
            }
            _ => None,
        };
        if let Some(message) = problem {
            self.add("method.lora.target_modules", message, "write `[q_proj, v_proj]` or `all-linear`");
        }
    }

    fn length_and_batch(&mut self) {
        let train = &self.plan.train;
        if train.output_dir.is_none() {
            self.missing("train.output_dir", "runs/first");
        }
        let model = &self.plan.model;
        let parts = [&model.path, &model.language, &model.image_tower, &model.video_tower];
        for part in parts.into_iter().flatten() {
            if let Some(output) = train.output_dir.as_ref().filter(|output| Path::new(part).starts_with(output)) {
                let message = format!("`train.output_dir: {}` holds the base model `{part}`", output.display());
                self.add("train.output_dir", message, "write to another folder; the base model is never written to");
            }
        }
        if train.max_steps.is_some() && self.given("train.num_train_epochs") {
            let message =
                "`train.max_steps` and `train.num_train_epochs` are both given, and either decides the length";
            self.add("train.max_steps", message, "keep one of them");
        }
        if train.max_steps == Some(0) {
            self.add(
                "train.max_steps",
                "`train.max_steps` must be at least 1",
                "leave it out to train for `num_train_epochs`",
            );
        }
        if train.num_train_epochs <= 0.0 {
            let message = format!("`train.num_train_epochs` must be above 0, found `{}`", train.num_train_epochs);
            self.add("train.num_train_epochs", message, "write `num_train_epochs: 1`");
        }
        for (key, count) in [
            ("train.per_device_train_batch_size", train.per_device_train_batch_size as u64),
            ("train.per_device_eval_batch_size", train.per_device_eval_batch_size as u64),
            ("train.gradient_accumulation_steps", train.gradient_accumulation_steps as u64),
            ("train.logging_steps", train.logging_steps),
            ("train.save_steps", train.save_steps),
            ("train.eval_steps", train.eval_steps.unwrap_or(1)),
            ("train.save_total_limit", train.save_total_limit.unwrap_or(1) as u64),
        ] {
            if count == 0 {
                self.add(key, format!("`{key}` must be at least 1"), "write `1` or more");
            }
        }
    }

    fn profile(&mut self) {
        let train = &self.plan.train;
        // A resolved plan spells the default out.
        if !train.profile && train.trace_steps != TrainPlan::default().trace_steps {
            let message = "`train.trace_steps` has no effect without `train.profile`";
            self.add("train.trace_steps", message, "write `train.profile: true`, or remove it");
        }
    }

    /// Names of tensors can mean the tower as well: those are looked at once the model is there.
    fn feature_cache(&mut self) {
        let Plan { method, train, data, .. } = self.plan;
        let key = "train.feature_cache";
        if train.feature_cache.is_none() {
            if train.feature_cache_size != TrainPlan::default().feature_cache_size {
                let key = "train.feature_cache_size";
                let message = format!("`{key}` has no effect without `train.feature_cache`");
                self.add(key, message, "write `train.feature_cache: DIR`, or remove it");
            }
            return;
        }
        let needs = format!("`{key}` needs a vision tower that stays as it is");
        if method.kind == Some(MethodKind::Full) && method.freeze.is_empty() {
            let hint = format!("write `method.freeze: [vision]`, or remove `{key}`");
            self.add(key, format!("{needs}, but `method.kind: full` without `method.freeze` trains it"), hint);
        } else if method.also_train.iter().any(|name| name == "vision") {
            let hint = format!("take `vision` out of `method.also_train`, or remove `{key}`");
            self.add(key, format!("{needs}, but `method.also_train` names it"), hint);
        } else if method.learning_rates.vision.is_some() {
            let hint = format!("remove `method.learning_rates.vision`, or `{key}`");
            self.add(key, format!("{needs}, but `method.learning_rates.vision` is given"), hint);
        }
        if data.frame_jitter {
            let message =
                format!("`{key}` keeps what comes again, and `data.frame_jitter` takes other frames in every epoch");
            self.add(key, message, format!("remove `data.frame_jitter`, or `{key}`"));
        }
    }

    fn optimizer(&mut self) {
        let train = &self.plan.train;
        for (key, beta) in [("train.adam_beta1", train.adam_beta1), ("train.adam_beta2", train.adam_beta2)] {
            if !(0.0..1.0).contains(&beta) {
                self.add(
                    key,
                    format!("`{key}` must be from 0 to below 1, found `{beta}`"),
                    "the defaults are 0.9 and 0.999",
                );
            }
        }
        if train.adam_epsilon <= 0.0 {
            self.add("train.adam_epsilon", "`train.adam_epsilon` must be above 0", "the default is 1e-8");
        }
        if train.weight_decay < 0.0 {
            self.add("train.weight_decay", "`train.weight_decay` must not be negative", "write `0` for none");
        }
        if train.max_grad_norm.is_some_and(|norm| norm < 0.0) {
            self.add(
                "train.max_grad_norm",
                "`train.max_grad_norm` must not be negative",
                "write `null` for no clipping",
            );
        }
    }

    fn schedule(&mut self) {
        let Plan { method, train, .. } = self.plan;
        if train.warmup_steps.is_some() && train.warmup_ratio.is_some() {
            let message =
                "`train.warmup_steps` and `train.warmup_ratio` are both given, and either decides the warm-up";
            self.add("train.warmup_steps", message, "keep one of them");
        }
        if let Some(ratio) = train.warmup_ratio.filter(|ratio| !(0.0..1.0).contains(ratio)) {
            let message = format!("`train.warmup_ratio` must be from 0 to below 1, found `{ratio}`");
            self.add("train.warmup_ratio", message, "write `warmup_steps` for a number of steps");
        }
        if let (Some(warmup), Some(steps)) = (train.warmup_steps, train.max_steps)
            && warmup > steps
        {
            let message = format!("the warm-up of {warmup} steps is longer than the run of {steps} steps");
            self.add("train.warmup_steps", message, "lower `warmup_steps` or raise `max_steps`");
        }
        let word = train.lr_scheduler_type.word();
        let warms = train.warmup_steps.is_some_and(|n| n > 0) || train.warmup_ratio.is_some_and(|r| r > 0.0);
        if train.lr_scheduler_type == SchedulerKind::Constant && warms {
            let key = if train.warmup_steps.is_some() { "train.warmup_steps" } else { "train.warmup_ratio" };
            self.add(
                key,
                format!("`{key}` has no effect with `lr_scheduler_type: constant`"),
                "write `constant_with_warmup`",
            );
        }
        let settings = [
            ("num_cycles", SchedulerKind::Cosine),
            ("lr_end", SchedulerKind::Polynomial),
            ("power", SchedulerKind::Polynomial),
        ];
        for (name, kind) in settings {
            let key = format!("train.lr_scheduler_kwargs.{name}");
            if self.given(&key) && train.lr_scheduler_type != kind {
                let message = format!("`{key}` has no effect with `lr_scheduler_type: {word}`");
                self.add(&key, message, format!("write `lr_scheduler_type: {}`, or remove it", kind.word()));
            }
        }
        let settings = &train.lr_scheduler_kwargs;
        if settings.num_cycles <= 0.0 {
            self.add("train.lr_scheduler_kwargs.num_cycles", "`num_cycles` must be above 0", "the default is 0.5");
        }
        if train.lr_scheduler_type == SchedulerKind::Polynomial {
            let rates = [
                Some(train.learning_rate),
                method.learning_rates.vision,
                method.learning_rates.projector,
                method.learning_rates.llm,
                method.learning_rates.speech,
                method.learning_rates.speech_projector,
            ];
            if let Some(rate) = rates.into_iter().flatten().find(|rate| *rate <= settings.lr_end) {
                let message = format!("`lr_end` is `{}`, not below the learning rate `{rate}`", settings.lr_end);
                self.add("train.lr_scheduler_kwargs.lr_end", message, "write a smaller `lr_end`");
            }
        }
    }

    fn saving_and_evaluation(&mut self) {
        let train = &self.plan.train;
        if self.given("train.save_strategy") && train.save_strategy != Strategy::Steps && self.given("train.save_steps")
        {
            let message =
                format!("`train.save_steps` has no effect with `save_strategy: {}`", train.save_strategy.word());
            self.add("train.save_steps", message, "keep one of them");
        }
        if self.given("train.eval_strategy") && train.eval_strategy != Strategy::Steps && train.eval_steps.is_some() {
            let message =
                format!("`train.eval_steps` has no effect with `eval_strategy: {}`", train.eval_strategy.word());
            self.add("train.eval_steps", message, "keep one of them");
        }
        if train.eval_strategy == Strategy::Steps && train.eval_steps.is_none() {
            self.missing("train.eval_steps", "100");
        }
        let evaluation = train.evaluation();
        if evaluation != Strategy::No && !self.plan.data.has_eval() {
            let key = if train.eval_steps.is_some() { "train.eval_steps" } else { "train.eval_strategy" };
            let message = format!("`{key}` asks for evaluation, but `data.eval` names no dataset");
            self.add(key, message, "write `data.eval: [{path: FILE}]`, or remove it");
        }
        if let (Some(every), Some(steps)) = (train.eval_steps, train.max_steps)
            && every > steps
        {
            let message =
                format!("`train.eval_steps: {every}` is beyond the run of {steps} steps: it would never evaluate");
            self.add("train.eval_steps", message, "lower it");
        }
        if !matches!(train.metric_for_best_model.as_str(), "eval_loss" | "loss") {
            let message = format!("`train.metric_for_best_model: {}` is not built yet", train.metric_for_best_model);
            self.add("train.metric_for_best_model", message, "write `eval_loss`");
        }
        if !train.load_best_model_at_end {
            return;
        }
        let key = "train.load_best_model_at_end";
        if evaluation == Strategy::No {
            self.add(key, "`train.load_best_model_at_end` needs evaluation during training", "write `eval_steps`");
        } else if evaluation != train.save_strategy {
            let (eval, save) = (evaluation.word(), train.save_strategy.word());
            let message = format!(
                "`train.load_best_model_at_end` needs checkpoints where evaluations are: evaluation by `{eval}`, checkpoints by `{save}`"
            );
            self.add(key, message, format!("write `save_strategy: {eval}`"));
        } else if let Some(every) =
            train.eval_steps.filter(|every| *every > 0 && !train.save_steps.is_multiple_of(*every))
        {
            let message = format!(
                "`train.load_best_model_at_end` needs `save_steps` to be a multiple of `eval_steps`, found {} and {every}",
                train.save_steps
            );
            self.add(key, message, format!("write `save_steps: {}`", train.save_steps.next_multiple_of(every)));
        }
    }

    fn data(&mut self) {
        let Plan { data, train, .. } = self.plan;
        if data.train.is_empty() {
            self.missing("data.train", "[{path: FILE}]");
        }
        if data.pack_tokens.is_some() {
            if self.given("train.per_device_train_batch_size") {
                let message = "`data.pack_tokens` fills batches by tokens, and `train.per_device_train_batch_size` counts records";
                self.add("data.pack_tokens", message, "keep one of them");
            }
            if train.max_steps.is_none() {
                let message = "`data.pack_tokens` needs `train.max_steps`: the number of batches in an epoch is not known in advance";
                self.add("data.pack_tokens", message, "write `train.max_steps`");
            }
        }
    }
}
