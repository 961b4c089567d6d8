//! `vidtune init`: a plan file to start from, alone or with a dataset made from a folder of videos and their captions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use crate::args::{InitArgs, Preset};
use crate::console::Console;
use crate::failure::CliError;
use crate::output;

/// Columns and keys that may name the file, the first found counts.
const FILE_KEYS: [&str; 8] = ["video", "path", "file", "filename", "file_name", "video_path", "clip", "name"];
/// Columns and keys that may hold the caption.
const CAPTION_KEYS: [&str; 8] = ["caption", "text", "description", "label", "answer", "title", "sentence", "value"];

/// Runs the command; files that are there already are never overwritten.
///
/// # Errors
/// A target exists, the captions cannot be read, or they name no video of the folder.
pub fn run(args: &InitArgs, console: &Console) -> Result<ExitCode> {
    match (&args.preset, &args.data) {
        (Some(preset), _) => from_preset(*preset, args, console),
        (None, Some(dir)) => from_folder(dir, args, console),
        (None, None) => unreachable!("the parser requires one of the two"),
    }
}

fn from_preset(preset: Preset, args: &InitArgs, console: &Console) -> Result<ExitCode> {
    let plan = args.out.clone().unwrap_or_default().join("plan.yaml");
    let settings = PlanText {
        preset,
        model: args.model.clone().unwrap_or_else(|| "PATH_OR_HUB_ID_OF_A_CHECKPOINT".to_owned()),
        train: "data/train.jsonl".to_owned(),
        eval: None,
        output_dir: "runs/first".to_owned(),
        records: None,
    };
    create(&plan, settings.text().as_bytes())?;
    console.info(&format!("wrote `{}`; put your checkpoint and dataset into it, then:", plan.display()));
    console.info(&format!("  vidtune plan {0}\n  vidtune train {0}", plan.display()));
    output::write(None, format!("{}\n", plan.display()).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn from_folder(dir: &Path, args: &InitArgs, console: &Console) -> Result<ExitCode> {
    if !(0.0..1.0).contains(&args.eval_ratio) {
        let message = format!("`--eval-ratio {}`: expected at least 0 and less than 1", args.eval_ratio);
        return Err(CliError::usage(message, "0.1 keeps a tenth of the records for evaluation").into());
    }
    if !dir.is_dir() {
        return Err(CliError::usage(format!("`{}` is not a folder", dir.display()), "give the folder of videos").into());
    }
    let captions = match &args.captions {
        Some(path) => path.clone(),
        None => find_captions(dir)?,
    };
    let pairs = read_captions(&captions)?;
    let mut records = Vec::new();
    for (number, pair) in pairs.iter().enumerate() {
        let video = find_video(dir, &pair.file).ok_or_else(|| {
            CliError::data(
                format!(
                    "`{}`, {}: there is no video `{}` in `{}`",
                    captions.display(),
                    pair.place,
                    pair.file,
                    dir.display()
                ),
                "correct the name, or take the line out",
            )
        })?;
        if pair.caption.trim().is_empty() {
            let message = format!("`{}`, {}: `{}` has an empty caption", captions.display(), pair.place, pair.file);
            return Err(CliError::data(message, "write a caption, or take the line out").into());
        }
        records.push(json!({
            "id": format!("{number:06}"),
            "video": video,
            "conversations": [
                {"from": "human", "value": format!("<video>\n{}", args.prompt)},
                {"from": "gpt", "value": pair.caption.trim()},
            ],
        }));
    }
    let out = args.out.clone().unwrap_or_else(|| dir.to_path_buf());
    let (train_records, eval_records) = split(records, args.eval_ratio);
    let files = [("train.jsonl", &train_records), ("eval.jsonl", &eval_records)];
    let absolute = std::path::absolute(dir).map_err(|e| CliError::io("resolve", dir, &e))?;
    let plan = out.join("plan.yaml");
    for path in files.iter().map(|(name, _)| out.join(name)).chain([plan.clone()]) {
        refuse_existing(&path)?;
    }
    for (name, records) in files.iter().filter(|(_, records)| !records.is_empty()) {
        let text: String = records.iter().map(|record| format!("{record}\n")).collect();
        create(&out.join(name), text.as_bytes())?;
    }
    let entry = |name: &str| {
        let media =
            if out == dir { String::new() } else { format!(", media_dir: {}", quoted(&absolute.to_string_lossy())) };
        format!("{{path: {}{media}}}", quoted(&out.join(name).to_string_lossy()))
    };
    let settings = PlanText {
        preset: Preset::Lora,
        model: args.model.clone().unwrap_or_else(|| "PATH_OR_HUB_ID_OF_A_CHECKPOINT".to_owned()),
        train: entry("train.jsonl"),
        eval: (!eval_records.is_empty()).then(|| entry("eval.jsonl")),
        output_dir: out.join("run").to_string_lossy().into_owned(),
        records: Some(train_records.len()),
    };
    create(&plan, settings.text().as_bytes())?;
    console.info(&format!(
        "{} records for training, {} for evaluation, plan in `{}`",
        train_records.len(),
        eval_records.len(),
        plan.display()
    ));
    if args.model.is_none() {
        console.info("put your checkpoint into `model.path`, or pass it: vidtune train PLAN model.path=DIR");
    }
    console.info(&format!("next:\n  vidtune plan {0}\n  vidtune train {0}", plan.display()));
    output::write(None, format!("{}\n", plan.display()).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Every n-th record is kept for evaluation, so that a sorted list gives both parts the same mixture.
fn split(records: Vec<Value>, ratio: f64) -> (Vec<Value>, Vec<Value>) {
    let (mut train, mut eval) = (Vec::new(), Vec::new());
    let mut taken = 0.0;
    for (number, record) in records.into_iter().enumerate() {
        let due = (number + 1) as f64 * ratio;
        if due - taken >= 1.0 {
            taken += 1.0;
            eval.push(record);
        } else {
            train.push(record);
        }
    }
    (train, eval)
}

/// One caption with its video's name and where it stands.
#[derive(Debug, PartialEq)]
struct Pair {
    file: String,
    caption: String,
    place: String,
}

/// The one captions file of a folder.
fn find_captions(dir: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| CliError::io("list", dir, &e))? {
        let path = entry.map_err(|e| CliError::io("list", dir, &e))?.path();
        let end = path.extension().map(|end| end.to_string_lossy().to_lowercase()).unwrap_or_default();
        if path.is_file() && ["csv", "tsv", "json", "jsonl"].contains(&end.as_str()) {
            found.push(path);
        }
    }
    found.sort();
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(CliError::usage(
            format!("`{}` holds no captions file (.csv, .tsv, .json or .jsonl)", dir.display()),
            "write one with the columns `video,caption`, or name it with `--captions FILE`",
        )
        .into()),
        many => {
            let names: Vec<String> = many.iter().map(|path| format!("`{}`", path.display())).collect();
            let message = format!("several files may hold the captions: {}", names.join(", "));
            Err(CliError::usage(message, "name one with `--captions FILE`").into())
        }
    }
}

fn read_captions(path: &Path) -> Result<Vec<Pair>> {
    let end = path.extension().map(|end| end.to_string_lossy().to_lowercase()).unwrap_or_default();
    let text = std::fs::read_to_string(path).map_err(|e| CliError::io("read", path, &e))?;
    let pairs = match end.as_str() {
        "json" => from_json(path, &hub::json::parse_json_with_comments(&text, path)?)?,
        "jsonl" => {
            let mut pairs = Vec::new();
            for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                let place = format!("line {}", number + 1);
                let value: Value = serde_json::from_str(line).map_err(|e| {
                    CliError::data(format!("`{}`, {place}: {e}", path.display()), "one JSON object a line")
                })?;
                pairs.push(pair_of(path, &value, place)?);
            }
            pairs
        }
        "tsv" => from_table(path, &text, '\t')?,
        _ => from_table(path, &text, ',')?,
    };
    if pairs.is_empty() {
        return Err(CliError::data(format!("`{}` holds no caption", path.display()), "add lines to it").into());
    }
    Ok(pairs)
}

/// A list of objects, or an object from file names to captions (or to objects with a caption).
fn from_json(path: &Path, value: &Value) -> Result<Vec<Pair>> {
    match value {
        Value::Array(items) => {
            items.iter().enumerate().map(|(number, item)| pair_of(path, item, format!("record {number}"))).collect()
        }
        Value::Object(map) => map
            .iter()
            .map(|(file, value)| {
                let place = format!("key `{file}`");
                let caption = match value {
                    Value::String(text) => Some(text.clone()),
                    Value::Object(_) => text_at(value, &CAPTION_KEYS),
                    _ => None,
                };
                let caption = caption.ok_or_else(|| no_key(path, &place, "caption", &CAPTION_KEYS))?;
                Ok(Pair { file: file.clone(), caption, place })
            })
            .collect(),
        _ => Err(CliError::data(
            format!("`{}` is neither a list nor an object", path.display()),
            "write a list of {\"video\", \"caption\"}",
        )
        .into()),
    }
}

fn pair_of(path: &Path, value: &Value, place: String) -> Result<Pair> {
    let file = text_at(value, &FILE_KEYS).ok_or_else(|| no_key(path, &place, "video", &FILE_KEYS))?;
    let caption = text_at(value, &CAPTION_KEYS).ok_or_else(|| no_key(path, &place, "caption", &CAPTION_KEYS))?;
    Ok(Pair { file, caption, place })
}

fn text_at(value: &Value, keys: &[&str]) -> Option<String> {
    keys.iter().find_map(|key| value.get(key)?.as_str()).map(str::to_owned)
}

fn no_key(path: &Path, place: &str, what: &str, keys: &[&str]) -> anyhow::Error {
    let message = format!("`{}`, {place}: no {what}; expected one of the keys `{}`", path.display(), keys.join("`, `"));
    CliError::data(message, "rename the key or column").into()
}

/// Lines of `file<separator>caption`, with a header line when its names are known.
fn from_table(path: &Path, text: &str, separator: char) -> Result<Vec<Pair>> {
    let rows = parse_table(text.trim_start_matches('\u{feff}'), separator).map_err(|line| {
        CliError::data(
            format!("`{}`, line {line}: a quote is never closed", path.display()),
            "close it, or double it inside quotes",
        )
    })?;
    let Some((_, first)) = rows.first() else { return Ok(Vec::new()) };
    let names: Vec<String> = first.iter().map(|name| name.trim().to_lowercase()).collect();
    let column = |keys: &[&str]| keys.iter().find_map(|key| names.iter().position(|name| name == key));
    let (file, caption, skip) = match (column(&FILE_KEYS), column(&CAPTION_KEYS)) {
        (Some(file), Some(caption)) => (file, caption, 1),
        _ if first.len() == 2 => (0, 1, 0),
        _ => return Err(no_key(path, "line 1", "video and caption column", &FILE_KEYS)),
    };
    rows.iter()
        .skip(skip)
        .map(|(line, cells)| {
            let cell = |column: usize| cells.get(column).map(|cell| cell.trim().to_owned());
            match (cell(file), cell(caption)) {
                (Some(file), Some(caption)) => Ok(Pair { file, caption, place: format!("line {line}") }),
                _ => {
                    let message =
                        format!("`{}`, line {line}: {} columns, expected {}", path.display(), cells.len(), first.len());
                    Err(CliError::data(message, "quote captions that hold the separator").into())
                }
            }
        })
        .collect()
}

/// Rows of cells with the line each begins on; quotes as in RFC 4180. The error is the line of an open quote.
fn parse_table(text: &str, separator: char) -> Result<Vec<(usize, Vec<String>)>, usize> {
    let mut rows = Vec::new();
    let (mut cells, mut cell) = (Vec::new(), String::new());
    let (mut line, mut begins, mut quote) = (1, 1, None);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        match c {
            '"' if quote.is_some() && chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            '"' if quote.is_some() => quote = None,
            '"' if cell.trim().is_empty() => {
                cell.clear();
                quote = Some(line);
            }
            _ if quote.is_some() => cell.push(c),
            '\r' if chars.peek() == Some(&'\n') => {}
            '\n' => {
                cells.push(std::mem::take(&mut cell));
                let row = std::mem::take(&mut cells);
                if row.iter().any(|cell| !cell.trim().is_empty()) {
                    rows.push((begins, row));
                }
                begins = line;
            }
            c if c == separator => cells.push(std::mem::take(&mut cell)),
            c => cell.push(c),
        }
    }
    if let Some(line) = quote {
        return Err(line);
    }
    cells.push(cell);
    if cells.iter().any(|cell| !cell.trim().is_empty()) {
        rows.push((begins, cells));
    }
    Ok(rows)
}

/// The name of a caption's video inside the folder: as it stands, or the one file whose name without extension it is.
fn find_video(dir: &Path, name: &str) -> Option<String> {
    if dir.join(name).exists() {
        return Some(name.to_owned());
    }
    let mut by_stem: BTreeMap<String, String> = BTreeMap::new();
    for entry in std::fs::read_dir(dir).ok()? {
        let path = entry.ok()?.path();
        let (Some(stem), Some(file)) = (path.file_stem(), path.file_name()) else { continue };
        if stem.to_string_lossy() == name && media::is_video(&path) {
            by_stem.insert(stem.to_string_lossy().into_owned(), file.to_string_lossy().into_owned());
        }
    }
    by_stem.remove(name)
}

fn refuse_existing(path: &Path) -> Result<()> {
    if path.exists() {
        let message = format!("`{}` exists already", path.display());
        return Err(CliError::usage(message, "move it away, or write elsewhere with `--out DIR`").into());
    }
    Ok(())
}

fn create(path: &Path, bytes: &[u8]) -> Result<()> {
    refuse_existing(path)?;
    output::write(Some(path), bytes)
}

/// A plan in the making.
struct PlanText {
    preset: Preset,
    model: String,
    /// A path, or an entry `{path: .., media_dir: ..}`.
    train: String,
    eval: Option<String>,
    output_dir: String,
    records: Option<usize>,
}

impl PlanText {
    fn text(&self) -> String {
        let method = match self.preset {
            Preset::Lora => {
                "method:\n  kind: lora                 # adapters on the language model; also: full, projector\n  \
                 lora:\n    r: 16\n    lora_alpha: 32\n    lora_dropout: 0.05\n    \
                 target_modules: [q_proj, k_proj, v_proj, o_proj]\n"
            }
            Preset::Full => {
                "method:\n  kind: full                 # every tensor trains, but for what `freeze` names\n  freeze: [vision]\n"
            }
            Preset::Seq2seq => "method:\n  kind: full                 # every tensor trains; also: lora\n",
            Preset::Projector => {
                "method:\n  kind: projector            # only the layers between vision tower and language model\n"
            }
        };
        let learning_rate = match self.preset {
            Preset::Lora => "2.0e-4",
            Preset::Full => "1.0e-5",
            Preset::Projector => "1.0e-3",
            Preset::Seq2seq => "5.0e-5",
        };
        let entry =
            |text: &str| if text.starts_with('{') { text.to_owned() } else { format!("{{path: {}}}", quoted(text)) };
        let eval = self.eval.as_ref().map(|eval| format!("  eval:\n    - {}\n", entry(eval))).unwrap_or_default();
        // Small sets: at least a few dozen updates in an epoch.
        let accumulation = match self.records {
            Some(records) if records < 64 => 1,
            Some(records) if records < 512 => 4,
            _ => 8,
        };
        let media = match self.preset {
            Preset::Seq2seq => {
                "  src_lang: eng_Latn         # of the questions, where the record does not say\n  \
                 tgt_lang: eng_Latn         # of the captions, likewise\n"
            }
            _ => "  num_frames: 8\n",
        };
        let steps = if self.eval.is_some() { "  eval_strategy: epoch\n" } else { "" };
        format!(
            "# Every key and its default: the plan's reference page. Check it first with `vidtune plan`.\n\
             model:\n  path: {}\n\
             {method}\
             data:\n  train:\n    - {}\n{eval}{media}\
             train:\n  output_dir: {}\n  num_train_epochs: 1\n  per_device_train_batch_size: 1\n  \
             gradient_accumulation_steps: {accumulation}\n  learning_rate: {learning_rate}\n  \
             lr_scheduler_type: cosine\n  warmup_ratio: 0.03\n  gradient_checkpointing: true\n{steps}  \
             save_strategy: epoch\n  save_total_limit: 2\n",
            quoted(&self.model),
            entry(&self.train),
            quoted(&self.output_dir),
        )
    }
}

/// A text as a double-quoted YAML scalar, which is also JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_is_a_plan() {
        for preset in [Preset::Lora, Preset::Full, Preset::Projector, Preset::Seq2seq] {
            for eval in [None, Some("{path: \"e.jsonl\", media_dir: \"/v\"}".to_owned())] {
                let text = PlanText {
                    preset,
                    model: "org/model".to_owned(),
                    train: "data \"x\"/train.jsonl".to_owned(),
                    eval,
                    output_dir: "runs/a".to_owned(),
                    records: Some(10),
                }
                .text();
                if let Err(error) = train::plan::Plan::from_yaml(&text, &[]) {
                    panic!("{preset:?}: {error}\n{text}");
                }
            }
        }
    }

    fn table(text: &str) -> Vec<(String, String)> {
        let pairs = from_table(Path::new("c.csv"), text, ',').unwrap();
        pairs.into_iter().map(|pair| (pair.file, pair.caption)).collect()
    }

    #[test]
    fn tables_are_read_with_and_without_a_header() {
        let expected =
            [("a.mp4".to_owned(), "a dog, running".to_owned()), ("b.mp4".to_owned(), "x \"y\"\nz".to_owned())];
        assert_eq!(table("video,caption\na.mp4,\"a dog, running\"\r\nb.mp4,\"x \"\"y\"\"\nz\"\n"), expected);
        assert_eq!(table("a.mp4, \"a dog, running\"\n\nb.mp4,\"x \"\"y\"\"\nz\""), expected);
        assert_eq!(table("id,Caption,Path\n1,hi,c.mp4\n"), [("c.mp4".to_owned(), "hi".to_owned())]);
        assert_eq!(table(""), []);
        let fails = |text: &str| from_table(Path::new("c.csv"), text, ',').unwrap_err().to_string();
        assert_eq!(fails("a.mp4,\"open\n"), "`c.csv`, line 1: a quote is never closed");
        assert_eq!(fails("video,caption\na.mp4\n"), "`c.csv`, line 2: 1 columns, expected 2");
        assert!(fails("a,b,c\n").contains("no video and caption column"));
    }

    #[test]
    fn json_captions_are_read_in_both_shapes() {
        let read = |text: &str| from_json(Path::new("c.json"), &serde_json::from_str(text).unwrap());
        let pairs =
            read(r#"[{"video": "a.mp4", "caption": "x"}, {"file_name": "b.mp4", "text": "y", "id": 3}]"#).unwrap();
        assert_eq!(pairs.iter().map(|p| (&*p.file, &*p.caption)).collect::<Vec<_>>(), [("a.mp4", "x"), ("b.mp4", "y")]);
        let pairs = read(r#"{"a.mp4": "x", "b": {"caption": "y"}}"#).unwrap();
        assert_eq!(pairs.iter().map(|p| (&*p.file, &*p.caption)).collect::<Vec<_>>(), [("a.mp4", "x"), ("b", "y")]);
        let error = read(r#"[{"video": "a.mp4"}]"#).unwrap_err().to_string();
        assert!(error.starts_with("`c.json`, record 0: no caption; expected one of"), "{error}");
    }

    #[test]
    fn a_part_is_kept_for_evaluation() {
        let records: Vec<Value> = (0..20).map(Value::from).collect();
        let (train, eval) = split(records.clone(), 0.1);
        assert_eq!((train.len(), eval), (18, vec![Value::from(9), Value::from(19)]));
        assert_eq!(split(records, 0.0).1.len(), 0);
    }
}
