//! Scoring packed text and generating it, beside padded batches and `generate` of transformers. Generation is measured by the
//! difference of a long answer and a short one, so that starting, loading and the prompt cancel out on both sides.

use serde_json::{Value, json};

use super::runs::{self, Contender, median};
use super::table::{Aim, Figure, Floor, Section, Unit};
use super::{Bench, cannot, shown, steps};
use crate::process::{Failure, Result};

/// Records of a batch, and tokens of the longest one.
const BATCH: usize = 32;
const LONGEST: usize = 512;

/// Tokens of the two answers whose difference counts.
const SHORT: usize = 16;
const LONG: usize = 256;

const PROMPT: &str = "describe the clip";

/// Elements of the decoder that every token is multiplied with: `layers` blocks of hidden 896 and the head.
fn multiplied(layers: usize) -> f64 {
    let (hidden, keys, intermediate, vocabulary) = (896.0, 128.0, 4864.0, 32000.0);
    layers as f64 * (2.0 * hidden * hidden + 2.0 * hidden * keys + 3.0 * hidden * intermediate) + vocabulary * hidden
}

/// A forward pass with loss over 32 packed records.
pub fn score(bench: &Bench) -> Result<Section> {
    bench.made()?;
    let rounds = bench.rounds(2);
    let folder = bench.dir.to_string_lossy().into_owned();
    let command = || {
        let (model, data, out) = (bench.path("text"), bench.path("texts_160.jsonl"), bench.path("scores.jsonl"));
        let batch = BATCH.to_string();
        bench.vidtune(&[
            "score",
            "--model",
            &model,
            "--data",
            &data,
            "--batch-size",
            &batch,
            "--dtype",
            "bf16",
            "--out",
            &out,
            "--log-format",
            "json",
        ])
    };
    let ours = || {
        let mut run = runs::measure(&mut command())?;
        let field = |name| run.get(name).and_then(Value::as_f64);
        let (Some(seconds), Some(records)) = (field("forward_time"), field("records")) else {
            return Err(Failure::new("`vidtune score` reported no `forward_time`"));
        };
        run["pass_s"] = json!(seconds * BATCH as f64 / records);
        Ok(run)
    };
    let torch = || bench.torch("bench_text.py", &["score", &folder, "--repeats", "1"]);
    let mut contenders = vec![Contender::new("vidtune", ours)];
    contenders.extend(Contender::command("PyTorch", torch));
    let outcomes = runs::alternate(rounds, &contenders)?;
    let path = bench.dir.join("texts.json");
    let text = std::fs::read_to_string(&path).map_err(|error| cannot("read", &path, &error))?;
    let about: Value =
        serde_json::from_str(&text).map_err(|error| Failure::new(format!("`{}`: {error}", path.display())))?;
    let tokens = about.get("tokens").and_then(Value::as_f64).unwrap_or(0.0);
    // The rate of a large product in the same minutes.
    let peak = steps::peak(bench)?;
    let flops = 2.0 * multiplied(4) * tokens;
    let padding = (BATCH * LONGEST) as f64 / tokens;
    let invert = |values: Vec<f64>| values.into_iter().map(|seconds| BATCH as f64 / seconds).collect::<Vec<f64>>();
    let figure = Figure {
        what: "samples a second".to_owned(),
        unit: Unit::Rate,
        ours: invert(outcomes.all("vidtune", "pass_s")),
        theirs: invert(outcomes.all("PyTorch", "pass_s")),
        aim: Some(Aim::Ratio(2.0, None)),
        floor: peak.map(|peak| Floor {
            value: BATCH as f64 / (flops / (peak * 1e9)),
            how: format!("{:.0} GFLOP of products a pass at {peak:.0} GFLOP/s", flops / 1e9),
        }),
        cause: format!("Padding alone makes PyTorch's batch {padding:.2} times as long as ours."),
    };
    let seconds = |name: &str| outcomes.median(name, "pass_s").map_or("-".to_owned(), |s| format!("{s:.2} s"));
    let text = format!(
        "32 records of 16 to {LONGEST} tokens ({tokens:.0} in all, {:.0} when padded to the longest) through the decoder of the step above with \
         its loss, bf16, no gradient: ours in one packed batch, PyTorch's as one padded batch of transformers. A pass takes {} and {}; reading and \
         tokenising count on neither side. Ours is `forward_time` of `vidtune score` over 5 passes, the first one with it; PyTorch's is one pass \
         after one that does not count. Medians of {rounds} rounds.",
        (BATCH * LONGEST) as f64,
        seconds("vidtune"),
        seconds("PyTorch"),
    );
    let mut commands = vec![shown(&command())];
    commands.extend(torch().map(|command| shown(&command)));
    Ok(Section {
        name: "score",
        title: "A forward pass of packed samples",
        text: vec![text],
        commands,
        figures: vec![figure],
        tables: Vec::new(),
        raw: outcomes.to_json(),
    })
}

/// Greedy generation with the 0.5B-shaped decoder.
pub fn generate(bench: &Bench) -> Result<Section> {
    bench.made()?;
    let rounds = bench.rounds(2);
    let folder = bench.dir.to_string_lossy().into_owned();
    let command = |tokens: usize| {
        let (model, tokens) = (bench.path("paper"), tokens.to_string());
        bench.vidtune(&[
            "generate",
            "--model",
            &model,
            "--prompt",
            PROMPT,
            "--max-new-tokens",
            &tokens,
            "--dtype",
            "bf16",
            "--json",
        ])
    };
    let ours = || {
        // As above: the files are read once before anything counts.
        runs::measure(&mut command(SHORT))?;
        let (short, long) = (runs::measure(&mut command(SHORT))?, runs::measure(&mut command(LONG))?);
        let count = |run: &Value| run.get("token_ids").and_then(Value::as_array).map_or(0, Vec::len) as f64;
        let between = count(&long) - count(&short);
        if between < (LONG - SHORT) as f64 / 2.0 {
            return Err(Failure::new(format!("the random model ended its answer after {} tokens", count(&long))));
        }
        let rate = between / (wall(&long) - wall(&short));
        Ok(json!({ "tokens_per_s": rate, "short": short, "long": long, "tokens": between }))
    };
    let (long, short) = (LONG.to_string(), SHORT.to_string());
    let torch = || bench.torch("bench_text.py", &["generate", &folder, "--tokens", &long, "--short", &short]);
    let mut contenders = vec![Contender::new("vidtune", ours)];
    contenders.extend(Contender::command("PyTorch", torch));
    let outcomes = runs::alternate(rounds, &contenders)?;
    let weights = 2.0 * multiplied(24);
    // Keys and values of two heads of 64 in 24 layers, over the answer's mean length.
    let cache = 2.0 * 24.0 * 2.0 * 128.0 * (LONG + SHORT) as f64 / 2.0;
    let bytes = weights + cache;
    let rates = outcomes.all("vidtune", "tokens_per_s");
    let bandwidth = bench.machine.bandwidth();
    let ceiling = bandwidth.map(|rate| Floor {
        value: rate / bytes,
        how: format!("{:.2} GB of weights and cache a token at {:.1} GB/s", bytes / 1e9, rate / 1e9),
    });
    let mut figures = vec![Figure {
        what: "tokens a second".to_owned(),
        unit: Unit::Rate,
        ours: rates.clone(),
        theirs: outcomes.all("PyTorch", "tokens_per_s"),
        aim: Some(Aim::Ratio(1.5, None)),
        floor: ceiling,
        cause: String::new(),
    }];
    if let Some(bandwidth) = bandwidth {
        let share = |rates: Vec<f64>| rates.into_iter().map(|rate| rate * bytes / bandwidth).collect::<Vec<f64>>();
        figures.push(Figure {
            what: "share of the memory's bandwidth".to_owned(),
            unit: Unit::Share,
            ours: share(rates.clone()),
            theirs: share(outcomes.all("PyTorch", "tokens_per_s")),
            aim: Some(Aim::Value(0.6)),
            floor: Some(Floor { value: 1.0, how: "all of it".to_owned() }),
            cause: median(&rates).map_or(String::new(), |rate| {
                format!(
                    "A token takes {:.1} ms, reading its {:.2} GB alone would take {:.1} ms; the rest is everything that reading does not \
                     hide.",
                    1e3 / rate,
                    bytes / 1e9,
                    1e3 * bytes / bandwidth
                )
            }),
        });
    }
    let by_cache = |cache: &str| outcomes.first("PyTorch")?.get("by_cache")?.get(cache)?.as_f64();
    let caches = match (by_cache("dynamic"), by_cache("static")) {
        (Some(dynamic), Some(fixed)) => format!(
            " transformers: the faster of its dynamic cache ({dynamic:.1} tokens/s in the first round) and its static one ({fixed:.1}), not compiled."
        ),
        _ => String::new(),
    };
    let text = format!(
        "The decoder of the LLaVA above (24 x 896, vocabulary 32000, bf16), one prompt, greedy, {LONG} tokens.{caches} Both rates are those of the \
         {} tokens between an answer of {SHORT} and one of {LONG}, so that start, loading and prompt do not count. Bandwidth is the best of four \
         reading tests (`bench_machine.py`). Medians of {rounds} rounds.",
        LONG - SHORT
    );
    let mut commands = vec![shown(&command(SHORT)), shown(&command(LONG))];
    commands.extend(torch().map(|command| shown(&command)));
    Ok(Section {
        name: "generate",
        title: "Greedy generation",
        text: vec![text],
        commands,
        figures,
        tables: Vec::new(),
        raw: outcomes.to_json(),
    })
}

fn wall(run: &Value) -> f64 {
    run.get("wall_s").and_then(Value::as_f64).unwrap_or(f64::NAN)
}
