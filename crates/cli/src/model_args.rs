//! Models and datasets as commands name them: folder, hub id, adapter, frames. Owns the way from flags to opened things.

use std::path::{Path, PathBuf};

use anyhow::Result;
use data::{Dataset, EncodeOptions, Processor};
use hub::HubEnv;
use infer::Beams;
use models::{LoadOptions, Model};

use crate::args::{Common, FrameArgs, SetArgs};
use crate::console::{Console, bytes};
use crate::failure::CliError;
use crate::text_args::{BeamArgs, LanguageArgs};

/// A model that is ready to be asked.
pub struct Loaded {
    /// The model, its adapter applied.
    pub model: Model,
    /// Its tokenizer, template and image settings.
    pub processor: Processor,
}

/// The folder of a model named by folder or hub id; tells about downloads.
///
/// # Errors
/// There is no such model, or it cannot be fetched.
pub fn resolve(spec: &str, console: &Console) -> Result<PathBuf> {
    if Path::new(spec).is_dir() {
        return Ok(PathBuf::from(spec));
    }
    let progress = |name: &str, done: u64, total: Option<u64>| {
        let of = total.map(|total| format!(" of {}", bytes(total))).unwrap_or_default();
        console.progress(&format!("fetching {name}: {}{of}", bytes(done)));
    };
    let dir = hub::resolve_model_with(spec, &HubEnv::from_env()?, &progress)?;
    console.clear();
    console.debug(&format!("`{spec}` is `{}`", dir.display()));
    Ok(dir)
}

/// Loads processor, model and adapter. A `--model` that is an adapter folder brings its own base model.
///
/// # Errors
/// Any of them cannot be read.
pub fn load(spec: &str, adapter: Option<&Path>, common: &Common, console: &Console) -> Result<Loaded> {
    let mut dir = resolve(spec, console)?;
    let mut adapter = match adapter {
        Some(path) => Some(resolve(&path.to_string_lossy(), console)?),
        None => None,
    };
    if adapter.is_none() && dir.join("adapter_config.json").is_file() && !dir.join("config.json").is_file() {
        let base = base_of(&dir)?;
        console.info(&format!("`{}` is an adapter of `{base}`", dir.display()));
        adapter = Some(dir);
        dir = resolve(&base, console)?;
    }
    let mut processor = Processor::load(&dir)?;
    if let Some(adapter) = &adapter {
        processor = processor.with_languages_of(adapter)?;
    }
    console.debug(&format!("loading `{}`", dir.display()));
    let options = LoadOptions { dtype: common.dtype.map(|choice| choice.dtype()) };
    let (mut model, report) = models::load(&dir, &options)?;
    for head in &report.untied_heads {
        console.warning(&format!(
            "`{head}` differs from the embedding table that `tie_word_embeddings` ties it to; it is kept apart, as the reference does"
        ));
    }
    if let Some(adapter) = adapter {
        model.load_adapter(&adapter)?;
    }
    Ok(Loaded { model, processor })
}

/// The rules of the model's `generation_config.json`; tells once about those that are not carried out. Temperature,
/// top-k and top-p are the command line's, whatever the file says.
///
/// # Errors
/// The file cannot be read, or holds a value that it cannot have.
pub fn generation_rules(loaded: &Loaded, console: &Console) -> Result<infer::Rules> {
    let config = loaded.processor.generation_config()?;
    let place = "generation_config.json";
    let (rules, notes) = match loaded.processor.is_seq2seq() {
        // The first token is given to the decoder, and beams are the command line's.
        true => infer::Rules::read_beside(&config, place, &["num_beams", "forced_bos_token_id"])?,
        false => infer::Rules::read(&config, place)?,
    };
    for note in &notes {
        console.warning(note);
    }
    Ok(rules)
}

/// The beams that the flags ask for, with the checkpoint's own length penalty and end of the search where they do not say.
///
/// # Errors
/// A value out of range, or a model that beams are not built for.
pub fn beams(args: &BeamArgs, loaded: &Loaded, console: &Console) -> Result<Option<Beams>> {
    let config = loaded.processor.generation_config()?;
    let Some(num_beams) = args.num_beams else {
        if let Some(own) = config["num_beams"].as_u64().filter(|own| *own > 1 && loaded.processor.is_seq2seq()) {
            console.info(&format!(
                "`num_beams: {own}` of `generation_config.json` is not taken; pass `--num-beams {own}`"
            ));
        }
        return Ok(None);
    };
    if !loaded.processor.is_seq2seq() {
        let hint = "leave it out; the most likely token is taken at each step";
        return Err(CliError::usage("`--num-beams` is built for sequence-to-sequence models only", hint).into());
    }
    let early_stopping = match (&args.early_stopping, &config["early_stopping"]) {
        (Some(given), _) => given.parse()?,
        (None, serde_json::Value::Bool(own)) => own.to_string().parse()?,
        (None, serde_json::Value::String(own)) => own.parse()?,
        (None, _) => infer::EarlyStopping::default(),
    };
    let length_penalty = args.length_penalty.or(config["length_penalty"].as_f64()).unwrap_or(1.0);
    Ok(Some(Beams { num_beams, length_penalty, early_stopping }))
}

/// The options with the languages of the flags.
pub fn with_languages(options: EncodeOptions, args: &LanguageArgs) -> EncodeOptions {
    let LanguageArgs { src_lang, tgt_lang } = args.clone();
    EncodeOptions { src_lang: src_lang.or(options.src_lang), tgt_lang: tgt_lang.or(options.tgt_lang), ..options }
}

/// Refuses languages for a model that has no use for them.
///
/// # Errors
/// Bad usage.
pub fn check_languages(processor: &Processor, args: &LanguageArgs) -> Result<()> {
    let given = [("--src-lang", &args.src_lang), ("--tgt-lang", &args.tgt_lang)];
    match given.iter().find(|(_, language)| language.is_some() && !processor.is_seq2seq()) {
        Some((flag, _)) => {
            let message = format!("`{flag}`: the model writes no targets from sources");
            Err(CliError::usage(message, format!("leave `{flag}` out")).into())
        }
        None => Ok(()),
    }
}

/// The base model that an adapter folder names.
fn base_of(dir: &Path) -> Result<String> {
    let path = dir.join("adapter_config.json");
    let config: serde_json::Value = hub::json::read_json(&path)?;
    match config["base_model_name_or_path"].as_str() {
        Some(base) if !base.is_empty() => Ok(base.to_owned()),
        _ => Err(CliError::usage(
            format!("`{}` names no base model", path.display()),
            "give the base with `--model` and this folder with `--adapter`",
        )
        .into()),
    }
}

/// Opens a dataset; `--max-samples` is the caller's.
///
/// # Errors
/// The file cannot be read, or its format cannot be told.
pub fn open_set(path: &Path, set: &SetArgs) -> Result<Dataset> {
    Ok(data::open_dataset(path, set.format.into(), set.media_dir.as_deref())?)
}

/// Records that `--max-samples` leaves.
pub fn num_records(dataset: &Dataset, set: &SetArgs) -> u64 {
    set.max_samples.map_or(dataset.len(), |most| most.min(dataset.len()))
}

/// What the frame flags ask of every record.
///
/// # Errors
/// A count of 0 or a rate that is not positive.
pub fn encode_options(frames: &FrameArgs) -> Result<EncodeOptions> {
    let zero = [("--num-frames", frames.num_frames), ("--max-frames", frames.max_frames)];
    if let Some((flag, _)) = zero.iter().find(|(_, count)| *count == Some(0)) {
        return Err(
            CliError::usage(format!("`{flag} 0`: expected at least 1"), "leave it out for the model's own").into()
        );
    }
    if let Some(fps) = frames.fps.filter(|fps| !(*fps > 0.0 && fps.is_finite())) {
        return Err(
            CliError::usage(format!("`--fps {fps}`: expected more than 0"), "frames a second, such as 1").into()
        );
    }
    let rule = frames.frame_rule.as_deref().map(str::parse).transpose();
    let rule = rule.map_err(|error: media::MediaError| {
        CliError::usage(format!("`--frame-rule`: {error}"), "leave it out for the model's own")
    })?;
    Ok(EncodeOptions {
        num_frames: frames.num_frames,
        fps: frames.fps,
        max_frames: frames.max_frames,
        rule,
        ..EncodeOptions::default()
    })
}
