//! `parallel.deepspeed`: a DeepSpeed configuration, read with DeepSpeed's meaning. Owns the comparison of its values with the
//! plan's: `"auto"` follows the plan, a value that the plan leaves open is taken, one that contradicts the plan is an error
//! that names both, and a key that means something we do not do is refused by name.
//!
//! One device trains: ZeRO has nothing to divide there, so that its stages, buckets and offload change no number and need
//! nothing. A batch that several ranks would share is made by accumulation, which gives the same steps.

use std::path::Path;

use serde_json::{Map, Value};

use super::sections::SchedulerKind;
use super::{Place, Plan, Problem};

/// Keys of `zero_optimization` that decide where things are kept and moved, never what is computed.
const ZERO_KEYS: [&str; 27] = [
    "stage",
    "allgather_partitions",
    "allgather_bucket_size",
    "overlap_comm",
    "reduce_scatter",
    "reduce_bucket_size",
    "contiguous_gradients",
    "offload_optimizer",
    "offload_param",
    "sub_group_size",
    "round_robin_gradients",
    "cpu_offload",
    "cpu_offload_params",
    "ignore_unused_parameters",
    "elastic_checkpoint",
    "load_from_fp32_weights",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_gather_16bit_weights_on_model_save",
    "stage3_gather_fp16_weights_on_model_save",
    "stage3_use_all_reduce_for_fetch_params",
    "memory_efficient_linear",
    "use_multi_rank_bucket_allreduce",
    "legacy_stage1",
];

/// Steps of warm-up where the file does not say.
const USUAL_WARMUP: u64 = 1000;

/// Keys that say what is printed or measured.
const INERT: [&str; 9] = [
    "steps_per_print",
    "wall_clock_breakdown",
    "dump_state",
    "prescale_gradients",
    "gradient_predivide_factor",
    "communication_data_type",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "disable_allgather",
];

/// Reads the file that the plan names into the plan.
pub(super) fn apply(plan: &mut Plan, path: &Path, place: &Place) -> Vec<Problem> {
    let value: Value = match hub::json::read_json(path) {
        Ok(value) => value,
        Err(error) => {
            let problem = Problem::new(place.clone(), format!("`parallel.deepspeed`: {error}"));
            return vec![problem.hint("give the path of a DeepSpeed configuration, such as `ds_config.json`")];
        }
    };
    apply_value(plan, &value, &path.display().to_string(), place)
}

pub(super) fn apply_value(plan: &mut Plan, value: &Value, file: &str, place: &Place) -> Vec<Problem> {
    let mut reader = Reader { plan, file, place, problems: Vec::new() };
    match value.as_object() {
        Some(root) => reader.root(root),
        None => reader.refuse("(root)", "a JSON object is expected".to_owned(), "look at the file"),
    }
    reader.problems
}

struct Reader<'a> {
    plan: &'a mut Plan,
    file: &'a str,
    place: &'a Place,
    problems: Vec<Problem>,
}

/// A number that is neither absent nor `"auto"`.
fn fixed(object: &Map<String, Value>, key: &str) -> Option<Value> {
    object.get(key).filter(|v| !v.is_null() && v.as_str() != Some("auto")).cloned()
}

impl Reader<'_> {
    fn refuse(&mut self, key: &str, what: String, hint: &str) {
        let message = format!("`{key}` of `{}`: {what}", self.file);
        self.problems.push(Problem::new(self.place.clone(), message).hint(hint));
    }

    fn root(&mut self, root: &Map<String, Value>) {
        for (key, value) in root {
            let empty = Map::new();
            let inner = value.as_object().unwrap_or(&empty);
            match key.as_str() {
                "train_batch_size" | "train_micro_batch_size_per_gpu" | "gradient_accumulation_steps" => {}
                "gradient_clipping" => self.clipping(value),
                "optimizer" => self.optimizer(inner),
                "scheduler" => self.scheduler(inner),
                "zero_optimization" => self.known(key, inner, &ZERO_KEYS),
                "bf16" | "fp16" => self.number_format(key, inner),
                name if INERT.contains(&name) => {}
                _ if matches!(value, Value::Null | Value::Bool(false))
                    || inner.get("enabled") == Some(&false.into()) => {}
                _ => self.refuse(key, "is not built".to_owned(), "remove it from the file"),
            }
        }
        self.batch(root);
    }

    /// Refuses keys that are not among those that change no number.
    fn known(&mut self, section: &str, inner: &Map<String, Value>, keys: &[&str]) {
        for (key, value) in inner.iter().filter(|(key, _)| !keys.contains(&key.as_str())) {
            if !matches!(value, Value::Null | Value::Bool(false)) {
                self.refuse(&format!("{section}.{key}"), "is not built".to_owned(), "remove it from the file");
            }
        }
    }

    /// A value of the file against the plan's: taken where the plan leaves it open. Returns what the plan holds then.
    fn number(&mut self, key: &str, value: Option<Value>, ours: &str, read: fn(&mut Plan) -> &mut f64) {
        let Some(value) = value else { return };
        let Some(found) = value.as_f64() else {
            return self.refuse(key, format!("expected a number or \"auto\", found `{value}`"), "repair the file");
        };
        let is_given = self.plan.is_given(ours);
        let slot = read(self.plan);
        if !is_given {
            *slot = found;
        } else if *slot != found {
            let own = *slot;
            let what = format!("is {found}, but `{ours}` of the plan is {own}");
            self.refuse(key, what, "make them equal, or write \"auto\" in the file");
        }
    }

    fn clipping(&mut self, value: &Value) {
        if value.as_str() == Some("auto") || value.is_null() {
            return;
        }
        let Some(found) = value.as_f64().filter(|norm| *norm >= 0.0) else {
            return self.refuse("gradient_clipping", format!("expected a norm, found `{value}`"), "repair the file");
        };
        let theirs = Some(found).filter(|norm| *norm > 0.0);
        let ours = self.plan.train.clip_norm();
        if !self.plan.is_given("train.max_grad_norm") {
            self.plan.train.max_grad_norm = theirs;
        } else if ours != theirs {
            let word = |norm: Option<f64>| norm.map_or("none".to_owned(), |norm| norm.to_string());
            let what = format!("is {}, but `train.max_grad_norm` of the plan is {}", word(theirs), word(ours));
            self.refuse("gradient_clipping", what, "make them equal, or write \"auto\" in the file");
        }
    }

    fn optimizer(&mut self, inner: &Map<String, Value>) {
        let name = inner.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !["adam", "adamw"].contains(&name.to_ascii_lowercase().as_str()) {
            return self.refuse("optimizer.type", format!("`{name}` is not built"), "write `AdamW`");
        }
        let empty = Map::new();
        let params = inner.get("params").and_then(Value::as_object).unwrap_or(&empty);
        if params.get("adam_w_mode") == Some(&Value::Bool(false)) {
            let hint = "remove it; weight decay is decoupled";
            self.refuse("optimizer.params.adam_w_mode", "`false` is not built".to_owned(), hint);
        }
        self.number("optimizer.params.lr", fixed(params, "lr"), "train.learning_rate", |p| &mut p.train.learning_rate);
        let decay = fixed(params, "weight_decay");
        self.number("optimizer.params.weight_decay", decay, "train.weight_decay", |p| &mut p.train.weight_decay);
        self.number("optimizer.params.eps", fixed(params, "eps"), "train.adam_epsilon", |p| &mut p.train.adam_epsilon);
        if let Some(betas) = fixed(params, "betas") {
            let key = "optimizer.params.betas";
            match betas.as_array().map(Vec::as_slice) {
                Some([first, second]) => {
                    self.number(key, Some(first.clone()), "train.adam_beta1", |p| &mut p.train.adam_beta1);
                    self.number(key, Some(second.clone()), "train.adam_beta2", |p| &mut p.train.adam_beta2);
                }
                _ => self.refuse(key, format!("expected two numbers, found `{betas}`"), "write `[0.9, 0.999]`"),
            }
        }
        let known = ["lr", "betas", "eps", "weight_decay", "adam_w_mode", "torch_adam", "fused"];
        self.known("optimizer.params", params, &known);
    }

    fn scheduler(&mut self, inner: &Map<String, Value>) {
        let empty = Map::new();
        let params = inner.get("params").and_then(Value::as_object).unwrap_or(&empty);
        let name = inner.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let is_linear = params.get("warmup_type").and_then(Value::as_str) == Some("linear");
        let kind = match (name.as_str(), is_linear) {
            ("WarmupLR", true) => SchedulerKind::ConstantWithWarmup,
            ("WarmupLR", false) => SchedulerKind::ConstantWithLogWarmup,
            ("WarmupDecayLR", true) => SchedulerKind::Linear,
            ("WarmupDecayLR", false) => {
                let what = "`WarmupDecayLR` with a logarithmic warm-up is not built".to_owned();
                return self.refuse("scheduler", what, "add `\"warmup_type\": \"linear\"` to its params");
            }
            _ => {
                let what = format!("`{name}` is not built");
                return self.refuse("scheduler.type", what, "write `WarmupLR`, or remove `scheduler`");
            }
        };
        if !self.plan.is_given("train.lr_scheduler_type") {
            self.plan.train.lr_scheduler_type = kind;
        } else if self.plan.train.lr_scheduler_type != kind {
            let own = self.plan.train.lr_scheduler_type.word();
            let what = format!("`{name}` is `{}`, but `train.lr_scheduler_type` of the plan is `{own}`", kind.word());
            self.refuse("scheduler.type", what, "make them equal, or remove `scheduler` from the file");
        }
        if fixed(params, "warmup_min_lr").is_some_and(|lr| lr.as_f64() != Some(0.0)) {
            let what = "another start than 0 is not built".to_owned();
            self.refuse("scheduler.params.warmup_min_lr", what, "write 0");
        }
        let most = fixed(params, "warmup_max_lr");
        self.number("scheduler.params.warmup_max_lr", most, "train.learning_rate", |p| &mut p.train.learning_rate);
        if let (Some(rate), Some(own)) = (fixed(params, "warmup_max_lr"), Some(self.plan.train.learning_rate))
            && rate.as_f64().is_some_and(|rate| rate != own)
            && !self.plan.is_given("train.learning_rate")
        {
            let what = format!("is {rate}, but the optimizer's `lr` is {own}");
            self.refuse("scheduler.params.warmup_max_lr", what, "make them equal");
        }
        self.warmup(params);
        if let Some(total) = fixed(params, "total_num_steps") {
            match self.plan.train.max_steps {
                Some(steps) if total.as_u64() != Some(steps) => {
                    let what = format!("is {total}, but `train.max_steps` of the plan is {steps}");
                    self.refuse("scheduler.params.total_num_steps", what, "make them equal, or write \"auto\"");
                }
                None => {
                    let what = format!("is {total}, but the plan counts epochs (`train.num_train_epochs`)");
                    self.refuse("scheduler.params.total_num_steps", what, "write \"auto\", or `train.max_steps`");
                }
                Some(_) => {}
            }
        }
        let known = ["warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type", "total_num_steps"];
        self.known("scheduler.params", params, &known);
    }

    fn warmup(&mut self, params: &Map<String, Value>) {
        let key = "scheduler.params.warmup_num_steps";
        let usual = || (!params.contains_key("warmup_num_steps")).then(|| Value::from(USUAL_WARMUP));
        // "auto" follows the plan; without any value DeepSpeed has one of its own.
        let open = self.plan.train.warmup_steps.is_none() && self.plan.train.warmup_ratio.is_none();
        let Some(value) = fixed(params, "warmup_num_steps")
            .or_else(usual)
            .filter(|_| open || params.contains_key("warmup_num_steps"))
        else {
            return;
        };
        let Some(steps) = value.as_u64() else {
            return self.refuse(key, format!("expected a count, found `{value}`"), "repair the file");
        };
        let train = &mut self.plan.train;
        match (train.warmup_steps, train.warmup_ratio) {
            (None, None) => train.warmup_steps = Some(steps),
            (Some(own), _) if own != steps => {
                let what = format!("is {steps}, but `train.warmup_steps` of the plan is {own}");
                self.refuse(key, what, "make them equal, or write \"auto\" in the file");
            }
            (None, Some(ratio)) => {
                let what = format!("is {steps}, but `train.warmup_ratio` of the plan is {ratio}");
                self.refuse(key, what, "keep one of them");
            }
            _ => {}
        }
    }

    fn number_format(&mut self, key: &str, inner: &Map<String, Value>) {
        if inner.get("enabled") != Some(&Value::Bool(true)) {
            return;
        }
        if key == "fp16" {
            let what = "half-precision training with loss scaling is not built".to_owned();
            return self.refuse("fp16.enabled", what, "use `bf16`");
        }
        use super::WeightDtype::{Auto, Bf16};
        if !self.plan.is_given("model.dtype") {
            self.plan.model.dtype = Bf16;
        } else if !matches!(self.plan.model.dtype, Bf16 | Auto) {
            let own = self.plan.model.dtype.word();
            let what = format!("is true, but `model.dtype` of the plan is `{own}`");
            self.refuse("bf16.enabled", what, "make them agree, or write \"auto\" in the file");
        }
    }

    /// Any two of the three numbers give the third; ranks that are not there become accumulation.
    fn batch(&mut self, root: &Map<String, Value>) {
        let mut count = |key: &str| {
            let value = fixed(root, key)?;
            let count = value.as_u64().filter(|count| *count > 0);
            if count.is_none() {
                self.refuse(key, format!("expected a count or \"auto\", found `{value}`"), "repair the file");
            }
            count
        };
        let (total, micro, steps) =
            (count("train_batch_size"), count("train_micro_batch_size_per_gpu"), count("gradient_accumulation_steps"));
        if let Some(micro) = micro {
            let own = self.plan.train.per_device_train_batch_size as u64;
            if !self.plan.is_given("train.per_device_train_batch_size") {
                self.plan.train.per_device_train_batch_size = micro as usize;
            } else if own != micro {
                let what = format!("is {micro}, but `train.per_device_train_batch_size` of the plan is {own}");
                self.refuse("train_micro_batch_size_per_gpu", what, "make them equal, or write \"auto\" in the file");
                return;
            }
        }
        let micro = self.plan.train.per_device_train_batch_size as u64;
        let is_given = self.plan.is_given("train.gradient_accumulation_steps");
        let own = self.plan.train.gradient_accumulation_steps as u64;
        let needed = match (total, steps) {
            (None, None) => return,
            (None, Some(steps)) => steps,
            (Some(total), steps) => {
                let each = micro * steps.unwrap_or(1);
                if total % each != 0 {
                    let what =
                        format!("is {total}, which {micro} records x {} steps do not divide", steps.unwrap_or(1));
                    self.refuse("train_batch_size", what, "DeepSpeed wants micro batch x accumulation x ranks");
                    return;
                }
                total / micro
            }
        };
        if !is_given {
            self.plan.train.gradient_accumulation_steps = needed as usize;
        } else if own != needed {
            let whole = total.unwrap_or(micro * needed);
            let ranks = total.map_or(1, |total| total / (micro * steps.unwrap_or(1)));
            let from =
                if ranks > 1 { format!(" on {ranks} ranks, or {needed} micro-batches on one") } else { String::new() };
            let what = format!(
                "asks for {whole} records a step{from}, but the plan makes {micro} x {own} = {} (`train.gradient_accumulation_steps: {own}`)",
                micro * own
            );
            let key = if total.is_some() { "train_batch_size" } else { "gradient_accumulation_steps" };
            self.refuse(
                key,
                what,
                &format!("write `train.gradient_accumulation_steps: {needed}`, which gives the same steps"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plan(train: &str) -> Plan {
        let text = format!(
            "model: {{path: m}}\nmethod: {{kind: full}}\ndata: {{train: [{{path: d.jsonl}}]}}\ntrain: {{output_dir: o{train}}}\n"
        );
        Plan::from_yaml(&text, &[]).unwrap()
    }

    fn read(train: &str, config: &Value) -> (Plan, Vec<String>) {
        let mut plan = plan(train);
        let problems = apply_value(&mut plan, config, "ds.json", &Place::Plan);
        (plan, problems.into_iter().map(|problem| problem.message).collect())
    }

    /// The external file of the sequence-to-sequence trainer that this program replaces.
    fn fixed_file() -> Value {
        json!({
            "train_batch_size": 4, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
            "optimizer": {"type": "AdamW", "params": {"lr": 5e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}},
            "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": 5e-5, "warmup_num_steps": 100}},
            "zero_optimization": {"stage": 2, "overlap_comm": true, "reduce_bucket_size": 2e8, "contiguous_gradients": true},
            "wall_clock_breakdown": false
        })
    }

    #[test]
    fn what_the_plan_leaves_open_is_taken_and_ranks_become_accumulation() {
        let (plan, problems) = read("", &fixed_file());
        assert_eq!(problems, Vec::<String>::new());
        let train = &plan.train;
        assert_eq!((train.per_device_train_batch_size, train.gradient_accumulation_steps), (1, 4));
        assert_eq!((train.learning_rate, train.weight_decay, train.warmup_steps), (5e-5, 0.01, Some(100)));
        assert_eq!(train.lr_scheduler_type, SchedulerKind::ConstantWithLogWarmup);
        let same = ", per_device_train_batch_size: 1, gradient_accumulation_steps: 4, learning_rate: 5.0e-5, weight_decay: 0.01";
        assert_eq!(read(same, &fixed_file()).1, Vec::<String>::new());
    }

    #[test]
    fn a_file_is_read_with_the_plan_and_one_that_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ds.json");
        let text = format!(
            "model: {{path: m}}\nmethod: {{kind: full}}\ndata: {{train: [{{path: d.jsonl}}]}}\ntrain: {{output_dir: o}}\nparallel: {{deepspeed: {:?}}}\n",
            path.display().to_string()
        );
        let error = Plan::from_yaml(&text, &[]).unwrap_err().to_string();
        assert!(error.contains("`parallel.deepspeed`: ") && error.contains("ds.json"), "{error}");
        std::fs::write(&path, fixed_file().to_string()).unwrap();
        let plan = Plan::from_yaml(&text, &["train.max_steps=200".to_owned()]).unwrap();
        assert_eq!(plan.train.gradient_accumulation_steps, 4);
        // The resolved values agree with the file when they are written out.
        let resolved = ["train.gradient_accumulation_steps=4", "train.lr_scheduler_type=constant_with_log_warmup"];
        let overrides: Vec<String> = resolved.iter().chain(&["train.max_steps=200"]).map(|s| (*s).to_owned()).collect();
        assert_eq!(Plan::from_yaml(&text, &overrides).unwrap().to_json(), plan.to_json());
    }

    #[test]
    fn contradictions_name_both_values() {
        let check = |train: &str, expected: &str| {
            let (_, problems) = read(train, &fixed_file());
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(expected), "{}", problems[0]);
        };
        check(
            ", weight_decay: 0.1",
            "`optimizer.params.weight_decay` of `ds.json`: is 0.01, but `train.weight_decay` of the plan is 0.1",
        );
        check(
            ", max_grad_norm: 0.5",
            "`gradient_clipping` of `ds.json`: is 1, but `train.max_grad_norm` of the plan is 0.5",
        );
        check(", warmup_steps: 7", "is 100, but `train.warmup_steps` of the plan is 7");
        check(", per_device_train_batch_size: 2", "is 1, but `train.per_device_train_batch_size` of the plan is 2");
        check(
            ", gradient_accumulation_steps: 1",
            "asks for 4 records a step on 4 ranks, or 4 micro-batches on one, but the plan makes 1 x 1 = 1",
        );
        check(", lr_scheduler_type: cosine", "but `train.lr_scheduler_type` of the plan is `cosine`");
    }

    #[test]
    fn auto_follows_the_plan_and_what_is_not_built_is_refused() {
        let auto = json!({
            "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto", "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"},
            "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
            "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto",
                "warmup_num_steps": "auto", "warmup_type": "linear"}},
            "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": "auto"}
        });
        let train =
            ", per_device_train_batch_size: 3, gradient_accumulation_steps: 5, learning_rate: 1.0e-3, warmup_steps: 4";
        let (plan, problems) = read(train, &auto);
        assert_eq!(problems, Vec::<String>::new());
        let found =
            (plan.train.per_device_train_batch_size, plan.train.gradient_accumulation_steps, plan.train.learning_rate);
        assert_eq!(found, (3, 5, 1e-3));
        let refused = |config: Value, expected: &str| {
            let (_, problems) = read("", &config);
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{problems:?}");
        };
        refused(json!({"fp16": {"enabled": true}}), "`fp16.enabled` of `ds.json`");
        refused(json!({"flops_profiler": {"enabled": true}}), "`flops_profiler` of `ds.json`: is not built");
        refused(
            json!({"zero_optimization": {"zero_quantized_weights": true}}),
            "`zero_optimization.zero_quantized_weights`",
        );
        refused(json!({"optimizer": {"type": "Lamb"}}), "`Lamb` is not built");
        refused(
            json!({"train_batch_size": 5, "train_micro_batch_size_per_gpu": 2}),
            "which 2 records x 1 steps do not divide",
        );
    }
}
