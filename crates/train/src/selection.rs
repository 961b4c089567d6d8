//! Which tensors train, at which rate, with or without weight decay. Owns the meaning of `method.kind`, `freeze`, `also_train`
//! and `learning_rates` on a real model; the adapter itself is built by `models`.

use models::names::in_memory;
use models::{LoraConfig, Model, NamedParam, Part};
use regex::Regex;
use serde::Serialize;
use tensor::DType;

use crate::error::{Result, TrainError, first_few};
use crate::plan::{LoraPlan, MethodKind, Plan, TargetModules};

/// One tensor that trains.
#[derive(Debug, Clone)]
pub struct TrainedTensor {
    /// The parameter and its name on disk.
    pub named: NamedParam,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

/// What trains in a model.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The tensors that train, in the model's order.
    pub tensors: Vec<TrainedTensor>,
    /// Names that the method selects and that no forward pass reaches by the model's configuration; they stay as they are.
    pub unreached: Vec<String>,
    /// Paths of the modules that carry an adapter.
    pub adapted_modules: Vec<String>,
    /// Counts by part, in the order vision, projector, speech, speech projector (both where the model hears), llm.
    pub parts: Vec<PartCount>,
}

/// What trains in one part of the model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartCount {
    /// `vision`, `projector`, `speech`, `speech_projector` or `llm`.
    pub part: &'static str,
    /// Tensors of the part, adapter included.
    pub tensors: usize,
    /// Elements of the part, adapter included.
    pub parameters: u64,
    /// Tensors that train.
    pub trainable_tensors: usize,
    /// Elements that train.
    pub trainable_parameters: u64,
    /// Peak learning rate, absent where nothing trains.
    pub learning_rate: Option<f64>,
}

/// Prepares a freshly loaded model for the plan's method: adds or loads the adapter and marks what trains.
///
/// # Errors
/// An adapter that contradicts the plan, a name in `freeze` or `also_train` that the model does not have, a learning rate for
/// a part that does not train, or a selection that trains nothing.
pub fn select(plan: &Plan, model: &mut Model) -> Result<Selection> {
    let kind = plan.method.kind.unwrap_or(MethodKind::Full);
    let adapted_modules = match kind {
        MethodKind::Lora | MethodKind::Qlora => adapt(plan, model)?,
        MethodKind::Projector | MethodKind::Full => Vec::new(),
    };
    let params = model.params();
    for name in &plan.method.freeze {
        let pattern = Pattern::new(name)?;
        if !params.iter().any(|p| pattern.matches(p)) {
            return Err(no_such_name("method.freeze", name, &params));
        }
    }
    let frozen = plan.method.freeze.iter().map(|name| Pattern::new(name)).collect::<Result<Vec<_>>>()?;
    let new_tokens = new_token_table(model);
    let mut tensors = Vec::new();
    let mut unreached = Vec::new();
    for named in &params {
        let chosen = match kind {
            MethodKind::Full => true,
            MethodKind::Projector => {
                matches!(named.part, Part::Projector | Part::SpeechProjector) || new_tokens == Some(named.name.as_str())
            }
            MethodKind::Lora | MethodKind::Qlora => named.param.is_trainable(),
        };
        let chosen = chosen && !frozen.iter().any(|pattern| pattern.matches(named));
        named.param.set_trainable(chosen && named.reached);
        if chosen && !named.reached {
            unreached.push(named.name.clone());
        } else if chosen {
            // What trains is f32, whatever its type on disk; operators round it where they compute in bf16.
            named.param.set_value(named.param.value().cast(DType::F32)?)?;
            let learning_rate = part_rate(plan, named.part).unwrap_or(plan.train.learning_rate);
            let weight_decay = if takes_decay(named) { plan.train.weight_decay } else { 0.0 };
            tensors.push(TrainedTensor { named: named.clone(), learning_rate, weight_decay });
        }
    }
    if tensors.is_empty() {
        return Err(TrainError::mismatch(
            format!("`method.kind: {}` trains nothing in this model", kind.word()),
            "look at `method.freeze` and `method.lora.target_modules`",
        ));
    }
    let parts = count_parts(&params, &tensors);
    for part in Part::ALL {
        if part_rate(plan, part).is_some() && !tensors.iter().any(|t| t.named.part == part) {
            let key = format!("method.learning_rates.{}", part.name());
            return Err(TrainError::mismatch(
                format!("`{key}` is given, but no tensor of `{}` trains", part.name()),
                format!("remove `{key}`"),
            ));
        }
    }
    Ok(Selection { tensors, unreached, adapted_modules, parts })
}

/// The table of tokens that stand around media and start without a meaning: the original trains it beside the projectors,
/// unless the head shares it.
fn new_token_table(model: &Model) -> Option<&'static str> {
    let config = model.config();
    let is_tied = config.causal().is_some_and(|causal| causal.text.tie_word_embeddings);
    config.encoders().filter(|encoders| encoders.has_start_end && !is_tied).map(|_| "model.embed_tokens.weight")
}

/// Whether weight decay applies to a tensor, as the `Trainer` of `transformers` has it: none to tensors of `nn.LayerNorm`, and none to
/// names with `bias`, `layernorm`, `rmsnorm` or a path segment `norm` or `…_norm`. What neither says so decays, such as the `norm1` of
/// Qwen2.5-VL's tower, which is an RMSNorm.
pub fn takes_decay(named: &NamedParam) -> bool {
    let name = named.name.to_ascii_lowercase();
    let is_norm = |segment: &str| segment == "norm" || segment.ends_with("_norm");
    !named.is_layer_norm
        && !["bias", "layernorm", "rmsnorm"].iter().any(|word| name.contains(word))
        && !name.split('.').any(is_norm)
}

/// Adds a fresh adapter or loads the one to continue; returns the adapted modules.
fn adapt(plan: &Plan, model: &mut Model) -> Result<Vec<String>> {
    let Some(dir) = &plan.model.adapter else {
        let config = lora_config(plan, model)?;
        return Ok(model.add_lora(&config, plan.train.seed)?);
    };
    check_adapter(plan)?;
    model.load_adapter(dir)?;
    Ok(model.params().iter().filter_map(|p| p.name.strip_suffix(".lora_A.weight").map(str::to_owned)).collect())
}

/// Compares the plan with the configuration of the adapter that it continues; no weight is read.
///
/// # Errors
/// A key of `method` that contradicts the adapter's own configuration, or that this configuration decides.
pub fn check_adapter(plan: &Plan) -> Result<()> {
    let Some(dir) = &plan.model.adapter else {
        return Ok(());
    };
    let path = dir.join(models::lora::CONFIG_FILE);
    if !path.is_file() {
        let message = format!("`model.adapter: {}` holds no `{}`", dir.display(), models::lora::CONFIG_FILE);
        return Err(TrainError::mismatch(message, "give the folder of a PEFT adapter"));
    }
    let stored = LoraConfig::from_json(&path.display().to_string(), &hub::json::read_json(&path)?)?;
    let lora = &plan.method.lora;
    let claims = [
        ("r", lora.r.to_string(), stored.r.to_string()),
        ("lora_alpha", lora.lora_alpha.to_string(), stored.lora_alpha.to_string()),
        // The stored one has passed through f32.
        ("lora_dropout", (lora.lora_dropout as f32).to_string(), stored.lora_dropout.to_string()),
        ("use_rslora", lora.use_rslora.to_string(), stored.use_rslora.to_string()),
        ("target_modules", describe_wanted(&lora.target_modules), describe_stored(&stored.target_modules)),
    ];
    for (name, ours, theirs) in claims {
        if plan.is_given(&format!("method.lora.{name}")) && ours != theirs {
            return Err(TrainError::mismatch(
                format!(
                    "`method.lora.{name}` is {ours}, but `adapter_config.json` of `{}` says {theirs}",
                    dir.display()
                ),
                format!("remove `method.lora.{name}`; the adapter's own configuration decides"),
            ));
        }
    }
    for key in ["method.lora.rank_pattern", "method.lora.alpha_pattern", "method.also_train"] {
        if plan.is_given(key) {
            return Err(TrainError::mismatch(
                format!("`{key}` is given beside `model.adapter`, whose `adapter_config.json` decides"),
                format!("remove `{key}`"),
            ));
        }
    }
    Ok(())
}

/// The plan's adapter as PEFT describes it.
fn lora_config(plan: &Plan, model: &Model) -> Result<LoraConfig> {
    let LoraPlan { r, lora_alpha, lora_dropout, target_modules, use_rslora, rank_pattern, alpha_pattern, .. } =
        &plan.method.lora;
    Ok(LoraConfig {
        r: *r,
        lora_alpha: *lora_alpha,
        lora_dropout: *lora_dropout as f32,
        target_modules: match target_modules {
            TargetModules::Names(names) => models::TargetModules::List(names.clone()),
            TargetModules::Text(text) if text == "all-linear" => models::TargetModules::AllLinear,
            TargetModules::Text(pattern) => models::TargetModules::Regex(pattern.clone()),
        },
        modules_to_save: saved_modules(&plan.method.also_train, model)?,
        use_rslora: *use_rslora,
        rank_pattern: rank_pattern.iter().map(|(k, v)| (k.clone(), *v)).collect(),
        alpha_pattern: alpha_pattern.iter().map(|(k, v)| (k.clone(), *v)).collect(),
    })
}

/// `also_train` as module names of PEFT's `modules_to_save`: a part becomes its outermost modules, a pattern the modules
/// whose tensors it matches.
fn saved_modules(also_train: &[String], model: &Model) -> Result<Vec<String>> {
    let params = model.params();
    let mut modules: Vec<String> = Vec::new();
    for name in also_train {
        let found: Vec<String> = match name.as_str() {
            "projector" => model.modules_of(Part::Projector),
            "vision" => model.modules_of(Part::Vision),
            "speech" => model.modules_of(Part::Speech),
            "speech_projector" => model.modules_of(Part::SpeechProjector),
            "llm" => {
                return Err(TrainError::mismatch(
                    "`method.also_train: [llm]` would train the whole language model beside its own adapter",
                    "write `method.kind: full`",
                ));
            }
            _ if model.modules_to_save(std::slice::from_ref(name)).is_ok() => vec![name.clone()],
            _ => {
                let pattern = Pattern::new(name)?;
                let module_of = |p: &NamedParam| in_memory(&p.name).rsplit_once('.').map(|(m, _)| m.to_owned());
                let found: Vec<String> =
                    params.iter().filter(|p| pattern.matches(p) && p.reached).filter_map(module_of).collect();
                // PEFT trains and saves modules, never a tensor of one without the others.
                let holder = |p: &NamedParam| {
                    let name = in_memory(&p.name);
                    let holds =
                        |module: &&String| name.strip_prefix(module.as_str()).is_some_and(|rest| rest.starts_with('.'));
                    found.iter().find(holds).cloned()
                };
                let other = params.iter().find(|p| p.reached && !pattern.matches(p) && holder(p).is_some());
                if let (Some(other), Some(module)) = (other, other.and_then(holder)) {
                    return Err(TrainError::mismatch(
                        format!(
                            "`{name}` in `method.also_train` names a part of the module `{module}`, without its `{}`",
                            in_memory(&other.name)
                        ),
                        format!(
                            "PEFT trains whole modules: write `{module}`, or use `method.kind: full` with `freeze`"
                        ),
                    ));
                }
                found
            }
        };
        if found.is_empty() {
            return Err(no_such_name("method.also_train", name, &params));
        }
        for module in found {
            if !modules.contains(&module) {
                modules.push(module);
            }
        }
    }
    Ok(modules)
}

fn describe_wanted(targets: &TargetModules) -> String {
    match targets {
        TargetModules::Names(names) => describe_names(names),
        TargetModules::Text(text) => format!("`{text}`"),
    }
}

fn describe_stored(targets: &models::TargetModules) -> String {
    match targets {
        models::TargetModules::List(names) => describe_names(names),
        models::TargetModules::Regex(pattern) => format!("`{pattern}`"),
        models::TargetModules::AllLinear => "`all-linear`".to_owned(),
    }
}

/// A list of names whose order does not matter.
fn describe_names(names: &[String]) -> String {
    let mut names = names.to_vec();
    names.sort();
    format!("[{}]", names.join(", "))
}

/// A name in `freeze` or `also_train`: a part, a module or tensor (by path, or by the end of its path), or a regular
/// expression over whole names.
struct Pattern<'a> {
    name: &'a str,
    regex: Regex,
}

impl<'a> Pattern<'a> {
    fn new(name: &'a str) -> Result<Pattern<'a>> {
        let regex = Regex::new(&format!("^(?:{name})$")).map_err(|error| {
            TrainError::mismatch(
                format!("`{name}` is not a regular expression: {error}"),
                "write a part, a tensor name or a regular expression",
            )
        })?;
        Ok(Pattern { name, regex })
    }

    fn matches(&self, named: &NamedParam) -> bool {
        let adapter_free = named.name.strip_prefix("base_model.model.").unwrap_or(&named.name);
        let memory = in_memory(adapter_free);
        self.name == named.part.name()
            || [named.name.as_str(), adapter_free, &memory].iter().any(|path| self.matches_path(path))
    }

    fn matches_path(&self, path: &str) -> bool {
        let is_end_of = |module: &str| {
            module == self.name || module.strip_suffix(self.name).is_some_and(|head| head.ends_with('.'))
        };
        self.regex.is_match(path) || is_end_of(path) || path.match_indices('.').any(|(end, _)| is_end_of(&path[..end]))
    }
}

fn no_such_name(key: &str, name: &str, params: &[NamedParam]) -> TrainError {
    let example = params.first().map(|p| p.name.as_str()).unwrap_or_default();
    let parts = match params.iter().any(|p| p.part == Part::Speech) {
        true => "`vision`, `projector`, `speech`, `speech_projector` and `llm`",
        false => "`vision`, `projector` and `llm`",
    };
    TrainError::mismatch(
        format!("`{name}` in `{key}` names no part, module or tensor of the model"),
        format!("parts are {parts}; tensor names look like `{example}`"),
    )
}

fn part_rate(plan: &Plan, part: Part) -> Option<f64> {
    let rates = &plan.method.learning_rates;
    match part {
        Part::Vision => rates.vision,
        Part::Projector => rates.projector,
        Part::Llm => rates.llm,
        Part::Speech => rates.speech,
        Part::SpeechProjector => rates.speech_projector,
    }
}

fn count_parts(params: &[NamedParam], trained: &[TrainedTensor]) -> Vec<PartCount> {
    let elements = |p: &NamedParam| p.disk_shape.iter().product::<usize>() as u64;
    // Few models hear.
    let is_listed =
        |part: &Part| !matches!(part, Part::Speech | Part::SpeechProjector) || params.iter().any(|p| p.part == *part);
    Part::ALL
        .into_iter()
        .filter(is_listed)
        .map(|part| {
            let all: Vec<&NamedParam> = params.iter().filter(|p| p.part == part).collect();
            let ours: Vec<&TrainedTensor> = trained.iter().filter(|t| t.named.part == part).collect();
            PartCount {
                part: part.name(),
                tensors: all.len(),
                parameters: all.iter().map(|p| elements(p)).sum(),
                trainable_tensors: ours.len(),
                trainable_parameters: ours.iter().map(|t| elements(&t.named)).sum(),
                learning_rate: ours.first().map(|t| t.learning_rate),
            }
        })
        .collect()
}

impl Selection {
    /// One line for people about tensors that are selected and can never learn; absent when there are none.
    pub fn unreached_notice(&self) -> Option<String> {
        (!self.unreached.is_empty()).then(|| {
            let names = first_few(self.unreached.iter().map(String::as_str));
            format!("{} tensor(s) take no part in the forward pass and stay as they are: {names}", self.unreached.len())
        })
    }

    /// Elements that train.
    pub fn num_trainable(&self) -> u64 {
        self.parts.iter().map(|part| part.trainable_parameters).sum()
    }
}
