//! Training with bf16 activations beside training in f32: how far losses may be apart over a run, and what must be equal to the
//! bit. On processors that do not multiply bf16 numbers such models are computed in f32, and there is nothing to compare.

use crate::support::{batch, encoded_samples, plan, trainer, weight_bits};
use data::Batch;
use models::LossWeights;
use tensor::{DType, Tape, Tensor};
use train::Trainer;

const FIXTURE: &str = "llava_siglip_qwen2";
const STEPS: usize = 100;

/// bf16 has a significand of 8 bits: rounding moves a number by at most this part of the power of two below it.
const UNIT: f64 = 1.0 / 256.0;
/// Root mean square of a rounding error relative to the number: uniform up to [`UNIT`] (`1 / sqrt(3)`), with the logarithm of
/// significands spread evenly (`sqrt(3 / (8 ln 2))`).
const ROUNDING: f64 = UNIT * 0.577_35 * 0.735_5;
/// Roundings one after the other in the fixture: 11 in each of the tower's 3 and the decoder's 2 blocks (norm, weights and
/// results of the q/k/v products, probabilities, attended values, weights of the output; norm, weights, inner activations,
/// what is made of them, weights), 2 before the tower, 5 in the projector, 2 at the end.
const ROUNDINGS: f64 = 11.0 * 5.0 + 2.0 + 5.0 + 2.0;

/// Relative error of what stands at the end of all these.
fn error() -> f64 {
    ROUNDING * ROUNDINGS.sqrt()
}

/// What a run leaves for the comparison.
struct Course {
    /// Losses of the batches before any training.
    starts: Vec<f64>,
    losses: Vec<f64>,
    /// The learning rates of all steps before each step, added up.
    paths: Vec<f64>,
    /// Standard deviation of a loss by bf16's rounding.
    noise: f64,
    /// How far Adam may carry a weight without its bf16 value moving.
    stuck: f64,
}

/// Batches of two samples, in a circle.
fn windows() -> Vec<Batch> {
    let samples = encoded_samples(FIXTURE);
    (0..samples.len()).map(|i| batch(&samples, &[i, (i + 1) % samples.len()])).collect()
}

fn run(method: &str, rate: &str, dtype: DType, change: &dyn Fn(&Trainer)) -> Course {
    let settings = format!("learning_rate: {rate}, max_steps: {STEPS}, lr_scheduler_type: cosine, warmup_ratio: 0.03");
    let plan = plan(FIXTURE, method, &settings);
    let windows = windows();
    let mut trainer = trainer(&plan, Some(dtype), STEPS as u64);
    let noise = noise(&trainer, &windows);
    let starts = windows.iter().map(|window| start(&trainer, window)).collect();
    let stuck = if method.contains("full") { 2.0 * UNIT * weight_scale(&trainer) } else { 0.0 };
    change(&trainer);
    let (mut losses, mut paths, mut path) = (Vec::new(), Vec::new(), 0.0);
    for step in 0..STEPS {
        let window = std::slice::from_ref(&windows[step % windows.len()]);
        let outcome = trainer.train_step(window).unwrap_or_else(|error| panic!("{error}"));
        losses.push(outcome.loss);
        paths.push(path);
        path += outcome.learning_rate;
    }
    Course { starts, losses, paths, noise, stuck }
}

/// The loss of a batch with the weights as they are.
fn start(trainer: &Trainer, window: &Batch) -> f64 {
    let weights = LossWeights::Uniform(1.0);
    let input = infer::upload(window).unwrap();
    let out = trainer.model.loss(&Tape::inference(), &input, &window.labels, &weights, false).unwrap();
    out.nll.iter().map(|&nll| f64::from(nll)).sum::<f64>() / window.num_supervised() as f64
}

/// Independent relative errors of the terms of a sum are the sum's in root mean square, and those of steps one after the other
/// add in quadrature: logits are off by `e = ROUNDING * sqrt(ROUNDINGS)` of their deviation `s`, at most, since a block adds
/// to the stream and is seldom all of it. The loss of a token is off by that of its own logit and by that of the mean over
/// the others, `sqrt(2) e s`, and the mean of `n` tokens, each with activations of its own, by `sqrt(2 / n) e s`.
fn noise(trainer: &Trainer, windows: &[Batch]) -> f64 {
    let of = |batch: &Batch| {
        let input = infer::upload(batch).unwrap();
        let logits = trainer.model.logits(&Tape::inference(), &input).unwrap().value().to_vec_f32().unwrap();
        let vocab = logits.len() / batch.ids.len();
        let variance = |row: &[f32]| {
            let mean = row.iter().map(|&z| f64::from(z)).sum::<f64>() / vocab as f64;
            row.iter().map(|&z| (f64::from(z) - mean).powi(2)).sum::<f64>() / vocab as f64
        };
        let deviation = (logits.chunks(vocab).map(variance).sum::<f64>() / batch.ids.len() as f64).sqrt();
        error() * deviation * (2.0 / batch.num_supervised() as f64).sqrt()
    };
    windows.iter().map(of).fold(0.0, f64::max)
}

/// Root mean square of the weights of matrices that train.
fn weight_scale(trainer: &Trainer) -> f64 {
    let weights: Vec<f32> = trainer
        .tensors()
        .iter()
        .filter(|t| t.named.param.shape().len() == 2)
        .flat_map(|t| t.named.param.value().to_vec_f32().unwrap())
        .collect();
    (weights.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / weights.len() as f64).sqrt()
}

/// Whether a run stays where bf16 may take it; the message says where it does not.
///
/// - Rounding alone: four deviations of [`noise`], which a hundred steps exceed once in 150 runs of independent errors.
/// - Training: gradients are off by `e` of their length like everything else, and so is what a step gains; Adam divides by
///   another quantity that is off. Were the errors of all steps the same, two times `e` of what was gained so far is missing.
/// - Weights that train are kept in f32 and rounded where they are multiplied. They begin as bf16 numbers, in the middle between
///   two roundings, and Adam moves them by the learning rate a step at most: until it has carried them half a unit in the last
///   place, the product sees the old ones. So a loss may also be that which f32 had, with the same records, up to this path
///   earlier; twice the root mean square stands for the larger weights. Adapters begin at zero, where units are fine.
fn check(wide: &Course, narrow: &Course) -> Result<(), String> {
    let num_windows = windows().len();
    for (step, &loss) in narrow.losses.iter().enumerate() {
        let visits = (step % num_windows..=step).step_by(num_windows);
        let near = visits.clone().filter(|&visit| wide.paths[step] - wide.paths[visit] <= wide.stuck);
        let start = (wide.paths[step] <= wide.stuck).then_some(wide.starts[step % num_windows]);
        let candidates = near.map(|visit| wide.losses[visit]).chain(start);
        let (low, high) = candidates.fold((f64::MAX, f64::MIN), |(low, high), loss| (low.min(loss), high.max(loss)));
        let first = wide.starts[step % num_windows];
        let allowed = 4.0 * wide.noise + 2.0 * error() * (first - wide.losses[step]).max(0.0);
        if !(low - allowed..=high + allowed).contains(&loss) {
            return Err(format!("step {step}: the loss is {loss}, expected {low} to {high} and {allowed:.1e} around"));
        }
    }
    Ok(())
}

/// Multiplies every matrix of the base model whose name holds `part`.
fn scale(trainer: &Trainer, part: &str, factor: f32) {
    let is_chosen = |name: &str, rank: usize| name.contains(part) && rank == 2 && !name.contains("lora_");
    let params = trainer.model.params();
    let chosen: Vec<_> = params.iter().filter(|p| is_chosen(&p.name, p.param.shape().len())).collect();
    assert!(!chosen.is_empty(), "no weight `{part}`");
    for named in chosen {
        let values: Vec<f32> = named.param.value().to_vec_f32().unwrap().iter().map(|x| x * factor).collect();
        let value = Tensor::from_f32(&values, &named.param.shape()).unwrap().cast(named.param.dtype()).unwrap();
        named.param.set_value(value).unwrap();
    }
}

#[test]
fn losses_stay_near_those_of_f32() {
    if !tensor::has_bf16() {
        return;
    }
    // What users take for adapters; for all weights fifteen times less than this is usual, where weights are 0.02 in root mean
    // square. Those of the fixture are 0.3, and a rate is a distance beside them.
    let lora = "kind: lora, lora: {r: 8, lora_alpha: 16, target_modules: all-linear}";
    for (method, rate) in [("kind: full", "2e-4"), (lora, "2e-4")] {
        let wide = run(method, rate, DType::F32, &|_| ());
        let narrow = run(method, rate, DType::BF16, &|_| ());
        // The band is narrow beside the loss: half a hundredth of it before anything is learned.
        assert!(4.0 * wide.noise < 0.005 * wide.losses[0], "{method}: {}", wide.noise);
        assert!(wide.stuck < 0.3 * wide.paths[STEPS - 1], "{method}: all of the run may be one rounding");
        check(&wide, &narrow).unwrap_or_else(|error| panic!("{method}: {error}"));
        assert!(wide.losses != narrow.losses, "{method}: nothing was computed in bf16");
        // And a path that is broken a little is seen.
        let broken = [
            ("all weights 2 % too large", ".weight", 1.02),
            ("no output of an attention", "language_model.model.layers.0.self_attn.o_proj", 0.0),
            ("no output of an MLP", "language_model.model.layers.0.mlp.down_proj", 0.0),
        ];
        for (what, part, factor) in broken {
            let found = check(&wide, &run(method, rate, DType::BF16, &|trainer| scale(trainer, part, factor)));
            assert!(found.is_err(), "{method}: {what} is not seen");
        }
    }
}

const LORA: &str = "kind: lora, also_train: [projector], lora: {r: 4, lora_dropout: 0.2, target_modules: all-linear}";

#[test]
fn the_number_of_threads_changes_no_bit() {
    if !tensor::has_bf16() {
        return;
    }
    let samples = encoded_samples(FIXTURE);
    let window = [batch(&samples, &[0, 1]), batch(&samples, &[2])];
    for method in ["kind: full", LORA] {
        let plan = plan(FIXTURE, method, "learning_rate: 1e-3, max_steps: 5");
        let run = |threads: usize| {
            tensor::set_num_threads(threads);
            let mut trainer = trainer(&plan, Some(DType::BF16), 5);
            assert_eq!(trainer.model.compute(), DType::BF16);
            let outcomes: Vec<(u64, u64)> = (0..5)
                .map(|_| trainer.train_step(&window).unwrap())
                .map(|outcome| (outcome.loss.to_bits(), outcome.grad_norm.to_bits()))
                .collect();
            (outcomes, weight_bits(&trainer))
        };
        let once = run(1);
        assert!(once == run(1), "{method}: a second run");
        assert!(once == run(3), "{method}: three threads");
    }
}
