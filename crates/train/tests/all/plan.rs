//! The plan file as users meet it: what is accepted, what the defaults are, and the text of every refusal.

use train::plan::{MethodKind, Plan, SchedulerKind, Strategy, TargetModules, WeightDtype, fields, reference_page};

const GOOD: &str = "\
model: {path: m}
method: {kind: full}
data:
  train: [{path: d.json}]
train:
  output_dir: out
";

/// The whole error text for the good plan with `lines` appended to its last section and `overrides` applied.
fn refusal(lines: &str, overrides: &[&str]) -> String {
    let text = format!("{GOOD}{lines}");
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    match Plan::from_yaml(&text, &overrides) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn check(lines: &str, overrides: &[&str], expected: &str) {
    assert_eq!(refusal(lines, overrides), expected, "for {lines:?} {overrides:?}");
}

fn plan(text: &str) -> Plan {
    Plan::from_yaml(text, &[]).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn defaults_are_those_of_the_reference() {
    let plan = plan(GOOD);
    assert_eq!(plan.train.learning_rate, 5e-5);
    assert_eq!(plan.train.num_train_epochs, 3.0);
    assert_eq!(plan.train.per_device_train_batch_size, 8);
    assert_eq!(plan.train.lr_scheduler_type, SchedulerKind::Linear);
    assert_eq!(plan.train.max_grad_norm, Some(1.0));
    assert_eq!((plan.train.adam_beta1, plan.train.adam_beta2, plan.train.adam_epsilon), (0.9, 0.999, 1e-8));
    assert_eq!((plan.train.save_steps, plan.train.seed), (500, 42));
    assert_eq!((plan.method.lora.r, plan.method.lora.lora_alpha, plan.method.lora.lora_dropout), (8, 8.0, 0.0));
    assert_eq!(plan.train.evaluation(), Strategy::No);
    assert_eq!(plan.model.dtype, WeightDtype::Auto);
}

#[test]
fn the_resolved_plan_reads_back_as_itself() {
    let first = plan(&format!(
        "{GOOD}  max_grad_norm: null\n  max_shard_size: 500MB\n  lr_scheduler_type: polynomial\n  save_total_limit: 2\n"
    ));
    let json = first.to_json();
    // JSON is YAML; keys at their defaults may be given, except those that only make sense beside another choice.
    let mut trimmed = json.clone();
    let object = trimmed.as_object_mut().unwrap();
    object["method"].as_object_mut().unwrap().remove("lora");
    object["hub"].as_object_mut().unwrap().remove("private");
    object["train"].as_object_mut().unwrap()["lr_scheduler_kwargs"].as_object_mut().unwrap().remove("num_cycles");
    let second = plan(&trimmed.to_string());
    assert_eq!(second.to_json(), json);
    assert!(second.changed_keys(&json).is_empty());
}

#[test]
fn overrides_win_over_the_file_and_later_ones_over_earlier_ones() {
    let overrides =
        ["train.learning_rate=2e-4", "train.learning_rate=3e-4", "method={kind: lora, lora: {r: 4}}", "seed=7"];
    let plan = Plan::from_yaml(GOOD, &overrides.map(str::to_owned)).unwrap();
    assert_eq!(
        (plan.train.learning_rate, plan.method.kind, plan.method.lora.r, plan.train.seed),
        (3e-4, Some(MethodKind::Lora), 4, 7)
    );
    assert_eq!(plan.method.lora.lora_alpha, 8.0);
}

#[test]
fn files_of_other_tools() {
    let factory = plan(
        "model_name_or_path: m\nstage: sft\ndo_train: true\nfinetuning_type: lora\nlora_rank: 8\nlora_target: all\nfreeze_vision_tower: true\n\
         output_dir: out\nper_device_train_batch_size: 1\ngradient_accumulation_steps: 8\nlearning_rate: 1.0e-4\nnum_train_epochs: 3.0\n\
         lr_scheduler_type: cosine\nwarmup_ratio: 0.1\nreport_to: none\ndata: {train: [{path: d.json}]}\n",
    );
    assert_eq!(factory.method.kind, Some(MethodKind::Lora));
    assert_eq!(factory.method.lora.target_modules, TargetModules::Text("all-linear".to_owned()));
    assert_eq!(factory.method.freeze, ["vision"]);
    assert_eq!(factory.train.gradient_accumulation_steps, 8);

    let ego4d = plan(
        "model: {model_name: m, torch_dtype: bfloat16}\nmethod: {kind: lora}\nlora: {lora_r: 16, lora_alpha: 32, lora_dropout: 0.05, target_modules: [q_proj, k_proj]}\n\
         training: {epochs: 10, batch_size: 2, log_interval: 10, optimizer: adamw_torch, lr_scheduler: cosine, save_total_limit: 3}\n\
         output: {output_dir: out}\ndata: {train: [{path: d.json}], max_frames: 8, fps: 1}\n",
    );
    assert_eq!((ego4d.method.lora.r, ego4d.method.lora.lora_alpha), (16, 32.0));
    assert_eq!((ego4d.train.num_train_epochs, ego4d.train.per_device_train_batch_size), (10.0, 2));
    assert_eq!(ego4d.model.dtype, WeightDtype::Bf16);
    assert!(ego4d.is_given("train.num_train_epochs") && !ego4d.is_given("train.seed"));

    let llava = plan(
        "model: {path: m}\ntune_mm_mlp_adapter: true\ndata: {train: [{path: d.json}]}\ntrain: {output_dir: out, mm_projector_lr: 1e-3}\n",
    );
    assert_eq!(llava.method.kind, Some(MethodKind::Projector));
    assert_eq!(llava.method.learning_rates.projector, Some(1e-3));
}

#[test]
fn unknown_keys_are_placed_and_corrected() {
    check(
        "  learning_rat: 1\n",
        &[],
        "line 7, column 3: unknown key `train.learning_rat`\n  hint: did you mean `train.learning_rate`?",
    );
    check("  r: 1\n", &[], "line 7, column 3: unknown key `train.r`\n  hint: did you mean `method.lora.r`?");
    check("  zzzzzzzzz: 1\n", &[], "line 7, column 3: unknown key `train.zzzzzzzzz`");
    check("trian:\n  seed: 1\n", &[], "line 7, column 1: unknown key `trian`\n  hint: did you mean `train`?");
    check("", &["train.sed=1"], "argument `train.sed=1`: unknown key `train.sed`\n  hint: did you mean `train.seed`?");
    check("  lora_rnk: 4\n", &[], "line 7, column 3: unknown key `train.lora_rnk`\n  hint: did you mean `lora_rank`?");
    check(
        "defaults: [model/x]\n",
        &[],
        "line 7, column 1: `defaults` (composing several files) is not built yet\n  hint: write the groups into one file",
    );
    check("", &["oops"], "argument `oops`: expected `key=value`\n  hint: for example `train.learning_rate=2e-4`");
    check("parallel: 3\n", &[], "line 7, column 11: `parallel` must be a mapping, found `3`");
}

#[test]
fn values_of_the_wrong_kind() {
    check("  seed: abc\n", &[], "line 7, column 9: `train.seed` must be a whole number, 0 or more, found `abc`");
    check(
        "  max_steps: -1\n",
        &[],
        "line 7, column 14: `train.max_steps` must be a whole number, 0 or more, found `-1`",
    );
    check(
        "  gradient_checkpointing: yes\n",
        &[],
        "line 7, column 27: `train.gradient_checkpointing` must be `true` or `false`, found `yes`",
    );
    check(
        "  learning_rate: '1e-4'\n",
        &[],
        "line 7, column 18: `train.learning_rate` must be a number, found the text `\"1e-4\"`",
    );
    check(
        "  epochs: many\n",
        &[],
        "line 7, column 11: `train.epochs` (`train.num_train_epochs`) must be a number, found `many`",
    );
    check(
        "  lr_scheduler_type: step\n",
        &[],
        "line 7, column 22: `train.lr_scheduler_type` must be one of `constant`, `constant_with_warmup`, `constant_with_log_warmup`, `linear`, `cosine`, `polynomial`, found `step`",
    );
    check(
        "  max_shard_size: 5XB\n",
        &[],
        "line 7, column 19: `train.max_shard_size` must be a size such as `5GB` or `500MB`, found `5XB`",
    );
    check(
        "",
        &["train.seed="],
        "argument `train.seed=`: `train.seed` must be a whole number, 0 or more, found nothing",
    );
}

#[test]
fn the_data_section_is_placed_as_well() {
    check(
        "",
        &["data.num_frames=8", "data.fps=1"],
        "argument `data.fps=1`: `data.fps`: 1 stands beside `data.num_frames: 8`\n  hint: keep one of them",
    );
    check(
        "",
        &["data.num_frames=many"],
        "argument `data.num_frames=many`: `data.num_frames`: invalid type: string \"many\", expected usize\n  hint: see the reference page of the plan's `data` section",
    );
    check(
        "",
        &["data.train=[{path: d.json, meda_dir: x}]"],
        "argument `data.train=[{path: d.json, meda_dir: x}]`: `data.train[].meda_dir`: is not a key\n  hint: did you mean `data.train[].media_dir`?",
    );
    check(
        "",
        &["data.num_frame=8"],
        "argument `data.num_frame=8`: unknown key `data.num_frame`\n  hint: did you mean `data.num_frames`?",
    );
    check(
        "  nframes: 0\n",
        &[],
        "line 7, column 12: `train.nframes` (`data.num_frames`): must be at least 1, found 0\n  hint: leave it out for the default",
    );
    let plan = plan(
        "model: {path: m}\nmethod: {kind: full}\noutput_dir: o\ndata: {data_path: a.json, video_folder: v, eval: [b.json, {path: c.json, media_dir: w}]}\n",
    );
    let dirs: Vec<_> = plan
        .data
        .train
        .iter()
        .chain(&plan.data.eval)
        .map(|set| (set.path.to_str().unwrap(), set.media_dir.as_ref().unwrap().to_str().unwrap()))
        .collect();
    assert_eq!(dirs, [("a.json", "v"), ("b.json", "v"), ("c.json", "w")]);
}

#[test]
fn a_key_given_twice_is_refused() {
    check(
        "  learning_rate: 1e-4\nlearning_rate: 2e-4\n",
        &[],
        "line 8, column 1: `train.learning_rate` is given twice: as `train.learning_rate` (line 7, column 3) and as `learning_rate` (line 8, column 1)\n  hint: keep one of them",
    );
    check("  seed: 1\n  seed: 2\n", &[], "line 8, column 3: the key `seed` is given twice, first at line 7, column 3");
}

#[test]
fn names_with_another_meaning_are_refused_with_ours() {
    check(
        "cutoff_len: 2048\n",
        &[],
        "line 7, column 1: `cutoff_len` of LLaMA-Factory has no counterpart of the same meaning\n  hint: write `data.max_length`; a longer record gets fewer frames or is refused, and is never cut",
    );
    check(
        "bf16: true\n",
        &[],
        "line 7, column 1: `bf16` of HF TrainingArguments has no counterpart of the same meaning\n  hint: write `model.dtype: bf16` (weights in bf16, f32 master copies of what trains)",
    );
    check(
        "stage: dpo\n",
        &[],
        "line 7, column 1: `stage: dpo` of LLaMA-Factory is not supported\n  hint: only supervised fine-tuning (`sft`) is built",
    );
    check("freeze_llm: maybe\n", &[], "line 7, column 13: `freeze_llm` must be `true` or `false`, found `maybe`");
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    check(
        "parallel: {zero_stage: 2}\n",
        &[],
        "line 7, column 12: `parallel.zero_stage: 2` is not built yet\n  hint: write `zero_stage: 0`; one device holds the whole model",
    );
    check(
        "parallel: {offload: optimizer}\n",
        &[],
        "line 7, column 12: `parallel.offload: optimizer` is not built yet\n  hint: write `offload: none`",
    );
    check(
        "report_to: [wandb]\n",
        &[],
        "line 7, column 1: `tracking.report_to: [wandb]` is not built yet\n  hint: remove it; `metrics.jsonl` holds every step",
    );
    check(
        "push_to_hub: true\n",
        &[],
        "line 7, column 1: `hub.push_to_hub`: upload to the hub is not built yet\n  hint: remove it; upload `final_model/` by hand",
    );
    check(
        "",
        &["method.kind=qlora"],
        "argument `method.kind=qlora`: `method.kind: qlora` is not built yet\n  hint: use `lora` with `model.dtype: bf16`",
    );
    check(
        "",
        &["model.language=x"],
        "argument `model.language=x`: `model.language` joins parts, and `model.path` names a whole checkpoint, which decides itself\n  hint: keep one of them",
    );
    check(
        "",
        &["model.device=cuda:1"],
        "argument `model.device=cuda:1`: `model.device: cuda:1` is not built yet\n  hint: write `cpu`",
    );
    check(
        "",
        &["model.device=tpu"],
        "argument `model.device=tpu`: `model.device` must be `auto`, `cpu` or `cuda:N`, found `tpu`\n  hint: write `auto`",
    );
    check(
        "",
        &["method.kind=lora", "method.lora.use_dora=true"],
        "argument `method.lora.use_dora=true`: `method.lora.use_dora` is not built yet\n  hint: remove it",
    );
    check(
        "",
        &["method.kind=lora", "method.lora.bias=all"],
        "argument `method.lora.bias=all`: `method.lora.bias: all` is not built yet\n  hint: write `bias: none`",
    );
}

#[test]
fn what_is_missing_is_named() {
    let text = Plan::from_yaml("", &[]).unwrap_err().to_string();
    assert_eq!(
        text,
        "plan: `model.path` is missing\n  hint: write `model.path: DIR`\n\
         plan: `method.kind` is missing\n  hint: write `method.kind: lora`\n\
         plan: `train.output_dir` is missing\n  hint: write `train.output_dir: runs/first`\n\
         plan: `data.train` is missing\n  hint: write `data.train: [{path: FILE}]`"
    );
}

#[test]
fn contradictions_of_length_and_schedule() {
    check(
        "  max_steps: 10\n  num_train_epochs: 1\n",
        &[],
        "line 7, column 3: `train.max_steps` and `train.num_train_epochs` are both given, and either decides the length\n  hint: keep one of them",
    );
    check(
        "  max_steps: 0\n",
        &[],
        "line 7, column 3: `train.max_steps` must be at least 1\n  hint: leave it out to train for `num_train_epochs`",
    );
    check(
        "  num_train_epochs: 0\n",
        &[],
        "line 7, column 3: `train.num_train_epochs` must be above 0, found `0`\n  hint: write `num_train_epochs: 1`",
    );
    check(
        "  per_device_train_batch_size: 0\n",
        &[],
        "line 7, column 3: `train.per_device_train_batch_size` must be at least 1\n  hint: write `1` or more",
    );
    check(
        "  max_steps: 10\n  warmup_steps: 11\n",
        &[],
        "line 8, column 3: the warm-up of 11 steps is longer than the run of 10 steps\n  hint: lower `warmup_steps` or raise `max_steps`",
    );
    check(
        "  warmup_steps: 1\n  warmup_ratio: 0.1\n",
        &[],
        "line 7, column 3: `train.warmup_steps` and `train.warmup_ratio` are both given, and either decides the warm-up\n  hint: keep one of them",
    );
    check(
        "  warmup_ratio: 1.5\n",
        &[],
        "line 7, column 3: `train.warmup_ratio` must be from 0 to below 1, found `1.5`\n  hint: write `warmup_steps` for a number of steps",
    );
    check(
        "  lr_scheduler_type: constant\n  warmup_steps: 5\n",
        &[],
        "line 8, column 3: `train.warmup_steps` has no effect with `lr_scheduler_type: constant`\n  hint: write `constant_with_warmup`",
    );
    check(
        "  lr_scheduler_kwargs: {power: 2}\n",
        &[],
        "line 7, column 25: `train.lr_scheduler_kwargs.power` has no effect with `lr_scheduler_type: linear`\n  hint: write `lr_scheduler_type: polynomial`, or remove it",
    );
    check(
        "  lr_scheduler_type: polynomial\n  learning_rate: 1e-8\n",
        &[],
        "plan: `lr_end` is `0.0000001`, not below the learning rate `0.00000001`\n  hint: write a smaller `lr_end`",
    );
    check(
        "",
        &["data.pack_tokens=1024"],
        "argument `data.pack_tokens=1024`: `data.pack_tokens` needs `train.max_steps`: the number of batches in an epoch is not known in advance\n  hint: write `train.max_steps`",
    );
    check(
        "  max_steps: 3\n  per_device_train_batch_size: 2\n",
        &["data.pack_tokens=1024"],
        "argument `data.pack_tokens=1024`: `data.pack_tokens` fills batches by tokens, and `train.per_device_train_batch_size` counts records\n  hint: keep one of them",
    );
}

#[test]
fn the_base_model_is_not_written_to() {
    for (model, output) in [("runs/a", "runs/a"), ("runs/a/final_model", "runs/a"), ("./runs/a", "./runs")] {
        let expected = format!(
            "argument `output_dir={output}`: `train.output_dir: {output}` holds the base model `{model}`\n  hint: write to another folder; the base model is never written to"
        );
        check("", &[&format!("model.path={model}"), &format!("output_dir={output}")], &expected);
    }
}

#[test]
fn contradictions_of_the_method() {
    check(
        "",
        &["method.lora.r=4"],
        "argument `method.lora.r=4`: `method.lora.r` has no effect with `method.kind: full`\n  hint: write `kind: lora`, or remove it",
    );
    check(
        "",
        &["model.adapter=a"],
        "argument `model.adapter=a`: `model.adapter` continues an adapter, but `method.kind` is `full`\n  hint: write `kind: lora`",
    );
    check(
        "",
        &["method.also_train=[projector]"],
        "argument `method.also_train=[projector]`: `method.also_train` has no effect with `method.kind: full`\n  hint: use `method.freeze` to say what does not train",
    );
    check(
        "",
        &["method.freeze=[vision, projector, llm]"],
        "argument `method.freeze=[vision, projector, llm]`: `method.freeze` names every part: nothing would train\n  hint: leave a part out",
    );
    check(
        "",
        &["method.kind=projector", "method.freeze=[projector]"],
        "argument `method.freeze=[projector]`: `method.kind: projector` trains the projector, but `method.freeze` names it\n  hint: remove it",
    );
    check(
        "",
        &["method.freeze=['layers.(']"],
        "argument `method.freeze=['layers.(']`: `layers.(` in `method.freeze` is not a regular expression: unclosed group\n  hint: write a part, a tensor name or a regular expression",
    );
    check(
        "",
        &["method.kind=lora", "method.freeze=[projector]", "method.also_train=[projector]"],
        "argument `method.freeze=[projector]`: `projector` is both in `method.freeze` and in `method.also_train`\n  hint: keep it in one of them",
    );
    check(
        "",
        &["method.kind=lora", "method.lora.r=0"],
        "argument `method.lora.r=0`: a LoRA rank must be at least 1\n  hint: write `r: 16`",
    );
    check(
        "",
        &["method.kind=lora", "method.lora.lora_alpha=0"],
        "argument `method.lora.lora_alpha=0`: `lora_alpha` must be above 0\n  hint: write `lora_alpha: 32`",
    );
    check(
        "",
        &["method.kind=lora", "method.lora.lora_dropout=1"],
        "argument `method.lora.lora_dropout=1`: `method.lora.lora_dropout` must be from 0 to below 1, found `1`\n  hint: write `lora_dropout: 0.05`",
    );
    check(
        "",
        &["method.kind=lora", "method.lora.target_modules=[]"],
        "argument `method.lora.target_modules=[]`: `method.lora.target_modules` is empty: nothing would train\n  hint: write `[q_proj, v_proj]` or `all-linear`",
    );
    check(
        "",
        &["method.kind=lora", "method.lora.target_modules='('"],
        "argument `method.lora.target_modules='('`: `method.lora.target_modules: (` is not a regular expression\n  hint: write `[q_proj, v_proj]` or `all-linear`",
    );
}

#[test]
fn contradictions_of_rates_and_optimizer() {
    check(
        "  learning_rate: 0\n",
        &[],
        "line 7, column 3: `train.learning_rate` must be above 0 and at most 10, found `0`\n  hint: a usual value is `2e-4` for lora, `2e-5` for full",
    );
    check(
        "",
        &["method.kind=projector", "vision_lr=1e-5"],
        "argument `vision_lr=1e-5`: `method.learning_rates.vision` is given, but `vision` does not train\n  hint: remove it",
    );
    check(
        "",
        &["method.kind=projector", "mm_projector_lr=1e-3", "train.learning_rate=1e-4"],
        "argument `train.learning_rate=1e-4`: `train.learning_rate` is given, but every part that trains has its own in `method.learning_rates`\n  hint: remove `train.learning_rate`",
    );
    check(
        "  adam_beta2: 1\n",
        &[],
        "line 7, column 3: `train.adam_beta2` must be from 0 to below 1, found `1`\n  hint: the defaults are 0.9 and 0.999",
    );
    check(
        "  adam_epsilon: 0\n",
        &[],
        "line 7, column 3: `train.adam_epsilon` must be above 0\n  hint: the default is 1e-8",
    );
    check(
        "  weight_decay: -0.1\n",
        &[],
        "line 7, column 3: `train.weight_decay` must not be negative\n  hint: write `0` for none",
    );
    check(
        "  max_grad_norm: -1\n",
        &[],
        "line 7, column 3: `train.max_grad_norm` must not be negative\n  hint: write `null` for no clipping",
    );
    assert_eq!(plan(&format!("{GOOD}  max_grad_norm: 0\n")).train.clip_norm(), None);
}

#[test]
fn steps_to_trace() {
    let window = |overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
        let train = Plan::from_yaml(GOOD, &overrides).unwrap_or_else(|error| panic!("{error}")).train;
        (train.profile, train.trace_steps.map(|window| (window.first, window.last)))
    };
    assert_eq!(window(&[]), (false, Some((3, 8))));
    assert_eq!(window(&["train.profile=true"]), (true, Some((3, 8))));
    assert_eq!(window(&["train.profile=true", "train.trace_steps=5"]), (true, Some((5, 5))));
    assert_eq!(window(&["train.profile=true", "train.trace_steps=10 - 12"]), (true, Some((10, 12))));
    assert_eq!(window(&["train.profile=true", "train.trace_steps=null"]), (true, None));
    for bad in ["0", "0-4", "8-3", "3-", "-3", "3-8-9", "all"] {
        check(
            "  profile: true\n",
            &[&format!("train.trace_steps={bad}")],
            &format!(
                "argument `train.trace_steps={bad}`: `train.trace_steps` must be a step or a range of steps from 1, such as `3-8`, found `{bad}`"
            ),
        );
    }
    check(
        "  trace_steps: 1-2\n",
        &[],
        "line 7, column 3: `train.trace_steps` has no effect without `train.profile`\n  hint: write `train.profile: true`, or remove it",
    );
}

#[test]
fn contradictions_of_saving_and_evaluation() {
    let eval = "data.eval=[{path: e.json}]";
    check(
        "  eval_steps: 5\n",
        &[],
        "line 7, column 3: `train.eval_steps` asks for evaluation, but `data.eval` names no dataset\n  hint: write `data.eval: [{path: FILE}]`, or remove it",
    );
    check(
        "  eval_strategy: epoch\n",
        &[],
        "line 7, column 3: `train.eval_strategy` asks for evaluation, but `data.eval` names no dataset\n  hint: write `data.eval: [{path: FILE}]`, or remove it",
    );
    check(
        "  eval_strategy: steps\n",
        &[eval],
        "plan: `train.eval_steps` is missing\n  hint: write `train.eval_steps: 100`",
    );
    check(
        "  eval_strategy: epoch\n  eval_steps: 5\n",
        &[eval],
        "line 8, column 3: `train.eval_steps` has no effect with `eval_strategy: epoch`\n  hint: keep one of them",
    );
    check(
        "  max_steps: 4\n  eval_steps: 5\n",
        &[eval],
        "line 8, column 3: `train.eval_steps: 5` is beyond the run of 4 steps: it would never evaluate\n  hint: lower it",
    );
    check(
        "  save_strategy: epoch\n  save_steps: 5\n",
        &[],
        "line 8, column 3: `train.save_steps` has no effect with `save_strategy: epoch`\n  hint: keep one of them",
    );
    check(
        "  load_best_model_at_end: true\n",
        &[],
        "line 7, column 3: `train.load_best_model_at_end` needs evaluation during training\n  hint: write `eval_steps`",
    );
    check(
        "  load_best_model_at_end: true\n  eval_strategy: epoch\n",
        &[eval],
        "line 7, column 3: `train.load_best_model_at_end` needs checkpoints where evaluations are: evaluation by `epoch`, checkpoints by `steps`\n  hint: write `save_strategy: epoch`",
    );
    check(
        "  load_best_model_at_end: true\n  eval_steps: 30\n  save_steps: 50\n",
        &[eval],
        "line 7, column 3: `train.load_best_model_at_end` needs `save_steps` to be a multiple of `eval_steps`, found 50 and 30\n  hint: write `save_steps: 60`",
    );
    check(
        "  metric_for_best_model: bleu\n",
        &[],
        "line 7, column 3: `train.metric_for_best_model: bleu` is not built yet\n  hint: write `eval_loss`",
    );
    check(
        "  save_total_limit: 0\n",
        &[],
        "line 7, column 3: `train.save_total_limit` must be at least 1\n  hint: write `1` or more",
    );
}

#[test]
fn every_problem_is_reported_at_once() {
    let text = refusal("  seed: x\n  sed: 1\n", &["train.save_steps=0"]);
    assert_eq!(text.matches("train.").count(), 3, "{text}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Plan::load(std::path::Path::new("no/such.yaml"), &[]).unwrap_err().to_string();
    assert!(error.starts_with("`no/such.yaml`, plan: cannot read the plan: "), "{error}");
}

#[test]
fn changed_keys_leave_out_what_may_change() {
    let earlier = plan(GOOD).to_json();
    let now = plan(&format!("{GOOD}  learning_rate: 1e-3\n  logging_steps: 3\n  gradient_checkpointing: true\n"));
    let changed = now.changed_keys(&earlier);
    assert_eq!(changed.len(), 1);
    assert_eq!(
        (changed[0].path.as_str(), changed[0].before.as_str(), changed[0].after.as_str()),
        ("train.learning_rate", "0.00005", "0.001")
    );
}

#[test]
fn every_key_is_documented_once() {
    let fields = fields();
    for field in &fields {
        assert!(field.doc.ends_with('.') || field.doc.contains(". "), "`{}`: {}", field.path, field.doc);
        assert_eq!(fields.iter().filter(|other| other.path == field.path).count(), 1, "{}", field.path);
    }
}

/// Renew with `VIDTUNE_WRITE_DOCS=1 cargo test -p train --test all`.
#[test]
fn the_reference_page_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/plan.md");
    let page = reference_page();
    if std::env::var_os("VIDTUNE_WRITE_DOCS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    assert!(stored == page, "docs/plan.md is stale: run `VIDTUNE_WRITE_DOCS=1 cargo test -p train --test all`");
}
