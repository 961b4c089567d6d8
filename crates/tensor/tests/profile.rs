//! The count of operations and the recording of spans. Both are process-wide, so one test after the other, in a process of
//! their own.

#![allow(clippy::unwrap_used)] // Helpers of tests are outside `#[test]` functions.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tensor::profile::{self, Span, Trace};
use tensor::{Gradients, LinearWeights, Param, Tape, Tensor, Var};

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tensor(shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i % 7) as f32 * 0.1 - 0.3).collect();
    Tensor::from_f32(&values, shape).unwrap()
}

fn linear(outputs: usize, inputs: usize) -> LinearWeights {
    let weight = Param::new("w", tensor(&[outputs, inputs]));
    weight.set_trainable(true);
    LinearWeights { weight, bias: None, lora: None }
}

/// Operations of all products and of recomputed ones while `f` ran.
fn counted<T>(f: impl FnOnce() -> T) -> (T, u64, u64) {
    let before = (profile::flops(), profile::recomputed_flops());
    let result = f();
    (result, profile::flops() - before.0, profile::recomputed_flops() - before.1)
}

fn names(trace: &Trace) -> Vec<&'static str> {
    trace.spans.iter().map(|span| span.name).collect()
}

/// Whether the first span lies inside of the second.
fn inside(inner: &Span, outer: &Span) -> bool {
    inner.thread == outer.thread
        && inner.start_ns >= outer.start_ns
        && inner.start_ns + inner.duration_ns <= outer.start_ns + outer.duration_ns
}

#[test]
fn products_are_counted_from_their_shapes() {
    let _alone = alone();
    let weights = linear(5, 3);
    // y = x.W^T of [7, 3] and [5, 3]: 7 * 5 sums of 3 products.
    let forward = 2 * 7 * 5 * 3;
    let tape = Tape::record();
    let x = tape.leaf(tensor(&[7, 3]));
    let (y, flops, recomputed) = counted(|| tape.linear(&x, &weights).unwrap());
    assert_eq!((flops, recomputed), (forward, 0));
    // dx = g.W and dW = g^T.x are as large each.
    let upstream = tensor(&[7, 5]);
    let (_, flops, recomputed) = counted(|| tape.backward_with(&[(y, upstream)], &[], &mut Gradients::new()).unwrap());
    assert_eq!((flops, recomputed), (2 * forward, 0));
    assert_eq!(counted(|| profile::add_flops(11)).1, 11);
}

#[test]
fn what_is_computed_twice_is_counted_apart() {
    let _alone = alone();
    let (first, second) = (linear(4, 4), linear(4, 4));
    let product = 2 * 3 * 4 * 4;
    let inner = (first, second);
    let tape = Tape::record();
    let x = tape.leaf(tensor(&[3, 4]));
    let block = move |t: &Tape, inputs: &[Var]| t.linear(&t.linear(&inputs[0], &inner.0)?, &inner.1);
    let (y, flops, recomputed) = counted(|| tape.checkpoint(&[x], block).unwrap());
    assert_eq!((flops, recomputed), (2 * product, 0));
    let (_, flops, recomputed) =
        counted(|| tape.backward_with(&[(y, tensor(&[3, 4]))], &[], &mut Gradients::new()).unwrap());
    assert_eq!((flops, recomputed), (6 * product, 2 * product));
}

#[test]
fn spans_nest_and_have_numbers() {
    let _alone = alone();
    let before = profile::span("before the recording");
    let recording = profile::start(100).unwrap();
    assert!(profile::start(100).is_none(), "a second recording began");
    drop(before);
    {
        let _step = profile::span_at("step", 7);
        drop(profile::span("forward"));
        profile::span("nothing").discard();
        let _backward = profile::span("backward");
        std::thread::Builder::new()
            .name("helper".to_owned())
            .spawn(|| drop(profile::span("away")))
            .unwrap()
            .join()
            .unwrap();
    }
    let open = profile::span("open at the end");
    let trace = recording.finish();
    drop(open);
    drop(profile::span("after the recording"));

    assert_eq!(names(&trace), ["step", "forward", "backward", "away"]);
    let [step, forward, backward, away] = trace.spans[..] else { unreachable!() };
    assert_eq!((step.index, forward.index), (Some(7), None));
    assert!(inside(&forward, &step) && inside(&backward, &step) && !inside(&away, &step));
    assert!(forward.start_ns + forward.duration_ns <= backward.start_ns);
    assert_eq!((&*trace.threads[&away.thread], trace.threads.len(), trace.num_dropped), ("helper", 2, 0));
}

#[test]
fn a_full_recording_keeps_the_first_spans_and_counts_the_others() {
    let _alone = alone();
    let recording = profile::start(3).unwrap();
    let outer = profile::span("outer");
    (0..4).for_each(|_| drop(profile::span("inner")));
    drop(outer);
    let trace = recording.finish();
    assert_eq!((names(&trace), trace.num_dropped), (vec!["outer", "inner", "inner"], 2));
    // A recording that nobody finishes ends with its handle, and its open spans do not reach the next one.
    let recording = profile::start(3).unwrap();
    let open = profile::span("open");
    drop(recording);
    let recording = profile::start(3).unwrap();
    drop(profile::span("second"));
    drop(open);
    assert_eq!(names(&recording.finish()), ["second"]);
}

#[test]
fn operators_have_their_names_in_both_passes() {
    let _alone = alone();
    let (weights, norm) = (linear(4, 4), Param::new("norm", tensor(&[4])));
    let recording = profile::start(1000).unwrap();
    let tape = Tape::record();
    let x = tape.leaf(tensor(&[3, 4]));
    let x = tape.rms_norm(&x, &norm, 1e-6).unwrap();
    let again = weights.clone();
    let y = tape.checkpoint(&[x], move |t, inputs| t.linear(&inputs[0], &again)).unwrap();
    let y = tape.linear(&y, &weights).unwrap();
    tape.backward_with(&[(y, tensor(&[3, 4]))], &[], &mut Gradients::new()).unwrap();
    let trace = recording.finish();
    let (forward, backward) = trace.spans.split_at(3);
    let of = |spans: &[Span]| spans.iter().map(|span| span.name).collect::<Vec<_>>();
    assert_eq!(of(forward), ["rms_norm", "linear", "linear"]);
    assert_eq!(of(backward), ["linear", "checkpoint", "recompute", "linear", "linear", "rms_norm"]);
    assert!(backward[2..5].iter().all(|span| inside(span, &backward[1])));
    assert!(inside(&backward[3], &backward[2]) && !inside(&backward[4], &backward[2]));
    assert!(!inside(&backward[5], &backward[1]));
}
