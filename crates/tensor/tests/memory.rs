//! Owns what stays alive on a tape, by the pool's counters. Refuses anything else: other tests of this process would
//! disturb the counters, so every test here holds the lock.

#![allow(clippy::unwrap_used)] // A test helper that fails is a failed test.

mod decoder;

use std::sync::{Arc, Mutex, MutexGuard};

use decoder::{DIM, HEADS, HIDDEN, KV_HEADS, Model, numbers};
use tensor::{AttentionSpec, Error, Gradients, Mask, RopeTable, Tape};

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[test]
fn frozen_parts_record_nothing_and_trained_ones_below_the_limit() {
    let _alone = alone();
    let model = Model::new(true);
    for lora in [&model.q, &model.k, &model.v, &model.o, &model.gate, &model.up, &model.down] {
        let lora = lora.lora.as_ref().unwrap();
        lora.a.set_trainable(false);
        lora.b.set_trainable(false);
    }
    let rope = RopeTable::from_angles(&numbers(20, &[64, DIM / 2]), 1.0).unwrap();
    let cu: Arc<[usize]> = Arc::from([0, 64]);
    let (num_heads, num_kv_heads, head_dim) = (HEADS, KV_HEADS, DIM);
    let spec =
        AttentionSpec { num_heads, num_kv_heads, head_dim, scale: 0.3, mask: Mask::Full, cu_q: cu.clone(), cu_k: cu };
    let t = Tape::record();
    let x = t.constant(numbers(1, &[64, HIDDEN]));
    let before = tensor::memory::stats().current_bytes;
    let y = model.block(&t, &x, &rope, &spec).unwrap();
    assert!(!y.requires_grad());
    let kept = tensor::memory::stats().current_bytes - before;
    assert_eq!(kept, tensor::memory::rounded_bytes(y.value().num_bytes()), "only the output is alive");
    assert!(matches!(
        t.backward_with(&[(y, x.value().clone())], &[], &mut Gradients::new()),
        Err(Error::Backward { .. })
    ));
}

#[test]
fn recompute_keeps_inputs_only_and_backward_frees_everything() {
    let _alone = alone();
    let model = Model::new(true);
    let rope = RopeTable::from_angles(&numbers(20, &[256, DIM / 2]), 1.0).unwrap();
    let cu: Arc<[usize]> = Arc::from([0, 256]);
    let (num_heads, num_kv_heads, head_dim) = (HEADS, KV_HEADS, DIM);
    let spec =
        AttentionSpec { num_heads, num_kv_heads, head_dim, scale: 0.3, mask: Mask::Causal, cu_q: cu.clone(), cu_k: cu };
    let bytes = |recompute: bool| {
        let before = tensor::memory::stats().current_bytes;
        let t = Tape::record();
        let x = t.leaf(numbers(1, &[256, HIDDEN]));
        let y = match recompute {
            true => {
                let (model, rope, spec) = (model.clone(), rope.clone(), spec.clone());
                t.checkpoint(std::slice::from_ref(&x), move |t, x| model.block(t, &x[0], &rope, &spec)).unwrap()
            }
            false => model.block(&t, &x, &rope, &spec).unwrap(),
        };
        let kept = tensor::memory::stats().current_bytes - before;
        let upstream = numbers(2, &[256, HIDDEN]);
        let mut grads = Gradients::new();
        let found = t.backward_with(&[(y.clone(), upstream)], std::slice::from_ref(&x), &mut grads).unwrap();
        assert_eq!(found[0].as_ref().unwrap().shape(), [256, HIDDEN]);
        drop((found, x, y, t));
        let (current, of_weights): (usize, usize) = (
            tensor::memory::stats().current_bytes - before,
            grads.iter().map(|(_, g)| tensor::memory::rounded_bytes(g.num_bytes())).sum(),
        );
        assert_eq!(current, of_weights, "nothing but weight gradients is alive");
        grads.clear();
        assert_eq!(tensor::memory::stats().current_bytes, before);
        kept
    };
    let (kept, recomputed) = (bytes(false), bytes(true));
    let one = tensor::memory::rounded_bytes(256 * HIDDEN * 4);
    assert_eq!(recomputed, 2 * one, "input and output");
    assert!(kept > 6 * one);
}

#[test]
fn equal_steps_ask_the_system_for_no_memory() {
    let _alone = alone();
    // Workers take scratch buffers as they come; one thread takes the same ones every time.
    tensor::set_num_threads(1);
    let model = Model::new(false);
    model.step(false, 700);
    let held = tensor::memory::stats().held_bytes;
    for _ in 0..3 {
        model.step(false, 700);
    }
    assert_eq!(tensor::memory::stats().held_bytes, held);
}
