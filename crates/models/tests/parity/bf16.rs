//! Logits of a model that computes in bf16 against those of the reference in f32.

use crate::base::{expected, fixtures, kept_rows, logits};
use crate::fixture::Fixture;
use models::{LoadOptions, Model, ModelConfig, VisionKind};
use tensor::{DType, Tensor};

/// Root mean square of the relative error of rounding to bf16, whose significand has 8 bits: an error is uniform within half
/// a unit in the last place, that is 2^-8 of the power of two below the number, so its root mean square is `2^-8 / sqrt(3)`
/// of that power; with the logarithm of significands spread evenly, `sqrt(3 / (8 ln 2))` of this is left relative to the number.
const ROUNDING: f64 = 0.003_906_25 * 0.577_35 * 0.735_5;

/// How far bf16 logits may be from f32 logits, relative to their root mean square, over all of them.
///
/// Independent relative errors of the operands of a sum are those of the sum, in root mean square. So each rounding on the way
/// adds [`ROUNDING`], in quadrature. A block of a tower or a decoder rounds 11 times one after the other: norm, q/k/v weights,
/// q/k/v, probabilities, attended values, output weights; norm, weights, inner activations, their product or function, weights.
/// In front of the tower stand pixels and patch weights, behind it its states, two weights and two activations of the
/// projector; behind the decoder a norm and the head's weights. That a block adds its error to the stream at the stream's own
/// scale is the worst case, but norms and the softmax may make an error larger than it was: a factor of 2 on the whole covers
/// gains of that size.
fn bound(config: &ModelConfig) -> f64 {
    let tower = match config.vision() {
        None => 0,
        Some(VisionKind::Llava(llava)) => 2 + 11 * llava.feature_layers.iter().copied().max().unwrap_or(0) + 5,
        // Behind the blocks a norm, and two weights and two activations of the merger.
        Some(VisionKind::QwenVl(qwen)) => 2 + 11 * qwen.vision.num_layers + 5,
        // A projector of `n` maps has as many weights and activations.
        Some(VisionKind::Encoders(encoders)) => {
            encoders.all().map(|e| 3 + 11 * e.feature_layer + 2 * e.projector.layers().len()).max().unwrap_or(0)
        }
        // Two rounds a map of the projector; of the speech encoder two rounds more a convolution, its last norm and two maps.
        Some(VisionKind::EgoGpt(ego)) => {
            let speech = ego.speech.as_ref().map_or(0, |speech| 6 + 11 * speech.encoder.num_layers + 5);
            (2 + 11 * (ego.vision.num_layers - 1) + 1 + 2 * ego.projector_depth).max(speech)
        }
    };
    let roundings = tower + 11 * config.causal().unwrap().text.num_layers + 2;
    2.0 * ROUNDING * (roundings as f64).sqrt()
}

fn load(fixture: &Fixture) -> Model {
    load_as(fixture, DType::BF16)
}

fn load_as(fixture: &Fixture, dtype: DType) -> Model {
    models::load(&fixture.dir, &LoadOptions { dtype: Some(dtype) }).unwrap().0
}

/// The error of all samples' logits, and its largest element, relative to the logits' root mean square.
fn error(model: &Model, fixture: &Fixture) -> (f64, f64) {
    let (mut square, mut scale, mut largest, mut count) = (0.0, 0.0, 0f64, 0);
    for (i, sample) in fixture.samples().iter().enumerate() {
        let ours = kept_rows(fixture, logits(model, &[sample], &fixture.placeholders()), sample.ids.len());
        let theirs = expected(fixture, &format!("sample{i}.logits"));
        assert_eq!(ours.len(), theirs.len());
        for (a, b) in ours.iter().zip(&theirs) {
            let off = f64::from(a - b);
            // Not a number compares as nothing and must not pass.
            largest = if off.is_nan() { f64::INFINITY } else { largest.max(off.abs()) };
            square += off * off;
            scale += f64::from(*b).powi(2);
        }
        count += ours.len();
    }
    ((square / scale).sqrt(), largest / (scale / count as f64).sqrt())
}

/// Nearly all of so many normal errors are within five deviations; sums of errors that share a factor (one token's norm) have
/// somewhat longer tails, so eight are let through.
const LARGEST: f64 = 8.0;

#[test]
fn logits_are_within_the_rounding_of_bf16() {
    // Elsewhere bf16 weights are computed in f32, and `base` shows what that gives.
    if !tensor::has_bf16() {
        return;
    }
    for (fixture, dtype) in
        fixtures().iter().flat_map(|fixture| [DType::BF16, DType::F16].map(|dtype| (fixture, dtype)))
    {
        let model = load_as(fixture, dtype);
        assert_eq!(model.compute(), DType::BF16);
        let is_kept = |p: &models::NamedParam| p.param.value().dtype() == dtype;
        assert!(model.params().iter().all(is_kept), "{}: weights are not kept as {dtype:?}", fixture.name());
        let (all, largest) = error(&model, fixture);
        let bound = bound(model.config());
        assert!(all <= bound, "{}: logits are off by {all:.1e}, at most {bound:.1e} expected", fixture.name());
        assert!(largest <= LARGEST * bound, "{}: a logit is off by {largest:.1e}", fixture.name());
        // And it is bf16: f32 would be a hundred times nearer.
        assert!(all > ROUNDING, "{}: {all:e}", fixture.name());
    }
}

/// Multiplies every element of the weights whose names hold `part`.
fn scale(model: &Model, part: &str, factor: f32) {
    let params = model.params();
    let chosen: Vec<_> = params.iter().filter(|p| p.name.contains(part) && p.param.shape().len() == 2).collect();
    assert!(!chosen.is_empty(), "no weight `{part}`");
    for named in chosen {
        let values: Vec<f32> = named.param.value().to_vec_f32().unwrap().iter().map(|x| x * factor).collect();
        let value = Tensor::from_f32(&values, &named.param.shape()).unwrap().cast(named.param.dtype()).unwrap();
        named.param.set_value(value).unwrap();
    }
}

#[test]
fn the_bound_notices_a_broken_path() {
    if !tensor::has_bf16() {
        return;
    }
    for fixture in fixtures() {
        for (part, factor) in [
            (".weight", 1.02),
            ("layers.0.self_attn.o_proj", 0.0),
            ("layers.0.mlp.down_proj", 0.0),
            ("layers.0.self_attn.v_proj", 1.2),
        ] {
            let model = load(&fixture);
            let fused = model.config().causal().unwrap().text.fused_projections && part.ends_with(".v_proj");
            let part = if fused { "layers.0.self_attn.qkv_proj" } else { part };
            scale(&model, part, factor);
            let (all, _) = error(&model, &fixture);
            let bound = bound(model.config());
            assert!(all > bound, "{}: `{part}` times {factor} is off by {all:.1e}, within {bound:.1e}", fixture.name());
        }
    }
}
