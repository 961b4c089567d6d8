//! Owns the behaviour of the tape: recompute, frozen parts, threads and refusals. Refuses operators' numbers (see
//! `pytorch.rs`) and memory (see `memory.rs`).

#![allow(clippy::unwrap_used)] // A test helper that fails is a failed test.

mod decoder;

use std::sync::Arc;

use decoder::{Model, numbers};
use tensor::{
    AttentionSpec, CachedRows, DType, Error, Gradients, LinearWeights, Mask, Param, RowBuffer, Tape, Tensor,
    attention_cached,
};

#[test]
fn recompute_changes_no_bit() {
    let model = Model::new(false);
    let kept = model.step(false, 70);
    assert_eq!(kept.1.len(), 3 + 8 + 14);
    assert_eq!(kept, model.step(true, 70));
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let model = Model::new(false);
    let mut results = vec![];
    for threads in [1, 2, 3] {
        tensor::set_num_threads(threads);
        assert_eq!(tensor::num_threads(), threads);
        results.push(model.step(false, 700));
    }
    assert!(results[0] == results[1] && results[0] == results[2]);
}

#[test]
fn frozen_weights_get_no_gradient_and_adapters_all_do() {
    let model = Model::new(true);
    let (_, grads) = model.step(false, 40);
    assert_eq!(grads.len(), 14);
    assert!(grads.iter().all(|(name, g)| name.contains('.') && g.iter().any(|&x| x != 0.0)));
}

#[test]
fn misuse_is_an_error() {
    let (t, other) = (Tape::record(), Tape::record());
    let x = t.leaf(numbers(1, &[2, 3]));
    let y = t.scale(&x, 2.0).unwrap();
    let mut grads = Gradients::new();
    assert!(matches!(other.scale(&x, 1.0), Err(Error::ForeignVar { op: "scale", what: "x" })));
    assert!(matches!(t.backward(&y, &mut grads), Err(Error::Shape { .. })));
    let g = numbers(2, &[2, 3]);
    assert!(matches!(
        t.backward_with(&[(y.clone(), g.rows(0, 1).unwrap())], &[], &mut grads),
        Err(Error::Shape { .. })
    ));
    let not_a_leaf = t.backward_with(&[(y.clone(), g.clone())], std::slice::from_ref(&y), &mut grads);
    assert!(matches!(not_a_leaf, Err(Error::Backward { .. })));
    t.backward_with(&[(y.clone(), g.clone())], &[x], &mut grads).unwrap();
    assert!(matches!(t.backward_with(&[(y, g)], &[], &mut grads), Err(Error::Backward { .. })), "only once");

    let quiet = Tape::inference();
    let z = quiet.leaf(numbers(1, &[1]));
    assert!(matches!(quiet.backward(&z, &mut grads), Err(Error::Backward { .. })));
}

#[test]
fn shapes_and_indices_are_checked() {
    let t = Tape::inference();
    let x = t.constant(numbers(1, &[2, 3]));
    let table = Param::new("table", numbers(2, &[5, 3]));
    let w = |shape: &[usize]| LinearWeights::new(Param::new("w", numbers(3, shape)), None);
    assert!(matches!(t.embedding(&[0, 5], &table), Err(Error::Index { index: 5, position: 1, limit: 5, .. })));
    assert!(t.linear(&x, &w(&[4, 2])).is_err());
    assert!(t.linear_add(&x, &w(&[4, 3]), x.clone()).is_err());
    assert!(t.rms_norm(&x, &table, 1e-5).is_err());
    assert!(t.add(&x, &t.constant(numbers(1, &[3, 2]))).is_err());
    assert!(t.scatter_rows(&x, &[1, 1], &x).is_err());
    assert!(t.concat_rows(&[]).is_err());
    assert!(t.slice_rows(&x, 1..4).is_err());
    assert!(t.avg_pool_grid(&x, 1, [2, 2], [1, 1]).is_err());
    let ints = t.constant(Tensor::from_i32(&[1, 2], &[1, 2]).unwrap());
    assert!(matches!(t.scale(&ints, 1.0), Err(Error::DType { .. })));
    let spec = |cu: &[usize], heads: usize| AttentionSpec {
        num_heads: heads,
        num_kv_heads: 1,
        head_dim: 3,
        scale: 1.0,
        mask: Mask::Full,
        cu_q: Arc::from(cu),
        cu_k: Arc::from(cu),
    };
    for (cu, heads) in [(&[0, 3][..], 1), (&[1, 2], 1), (&[], 1), (&[0, 2, 1, 2], 1), (&[0, 2], 2)] {
        assert!(t.attention(&x, &x, &x, &spec(cu, heads)).is_err(), "{cu:?}");
    }
    assert!(t.attention(&x, &x, &x, &spec(&[0, 2], 1)).is_ok());
}

/// Weights in 16 bits give the results of their wide copies, and their gradients are f32.
#[test]
fn sixteen_bit_weights_are_widened_inside() {
    for dtype in [DType::BF16, DType::F16] {
        let run = |wide: bool| {
            let param = |seed: u64, shape: &[usize]| {
                let narrow = numbers(seed, shape).cast(dtype).unwrap();
                let p = Param::new("p", if wide { narrow.cast(DType::F32).unwrap() } else { narrow });
                p.set_trainable(true);
                p
            };
            let (table, norm, shift, weight, bias) =
                (param(1, &[9, 20]), param(2, &[20]), param(3, &[20]), param(4, &[30, 20]), param(5, &[30]));
            let t = Tape::record();
            let x = t.add_table(&t.embedding(&[3, 1, 8], &table).unwrap(), &[0, 2, 2], &table).unwrap();
            let x = t.layer_norm(&t.rms_norm(&x, &norm, 1e-5).unwrap(), &norm, &shift, 1e-5).unwrap();
            let w = LinearWeights::new(weight.clone(), Some(bias.clone()));
            let loss = t.linear_cross_entropy(&x, &w, &[0, 29, 4], &[1.0; 3]).unwrap().loss;
            let mut grads = Gradients::new();
            t.backward(&loss, &mut grads).unwrap();
            let all = [table, norm, shift, weight, bias];
            (loss.value().to_vec_f32().unwrap(), all.map(|p| grads.get(&p).unwrap().f32s().unwrap().to_vec()))
        };
        assert_eq!(run(false), run(true), "{dtype}");
    }
}

#[test]
fn cached_attention_continues_a_sequence() {
    let (heads, kv_heads, dim, scale) = (4, 2, 6, 0.4);
    let (q, k, v) = (numbers(1, &[9, heads * dim]), numbers(2, &[9, kv_heads * dim]), numbers(3, &[9, kv_heads * dim]));
    let cu: Arc<[usize]> = Arc::from([0, 9]);
    let (num_heads, num_kv_heads, head_dim) = (heads, kv_heads, dim);
    let spec =
        AttentionSpec { num_heads, num_kv_heads, head_dim, scale, mask: Mask::Causal, cu_q: cu.clone(), cu_k: cu };
    let t = Tape::inference();
    let [q_var, k_var, v_var] = [&q, &k, &v].map(|x| t.constant(x.clone()));
    let whole = t.attention(&q_var, &k_var, &v_var, &spec).unwrap();
    let (mut keys, mut values) =
        (RowBuffer::new(kv_heads * dim, DType::F32), RowBuffer::new(kv_heads * dim, DType::F32));
    let qkv = t.concat_cols(&[q_var, k_var, v_var]).unwrap().into_value();
    let cached = |rows: &Tensor, keys: &RowBuffer, values: &RowBuffer| {
        let num_rows = rows.shape()[0];
        attention_cached(rows, &[CachedRows { rows: 0..num_rows, keys, values }], &spec)
    };
    let mut found = vec![];
    for rows in [0..4, 4..5, 5..9] {
        let rows = qkv.rows(rows.start, rows.end).unwrap();
        keys.append_columns(&rows, heads * dim).unwrap();
        values.append_columns(&rows, (heads + kv_heads) * dim).unwrap();
        found.extend(cached(&rows, &keys, &values).unwrap().to_vec_f32().unwrap());
    }
    for (found, expected) in found.iter().zip(whole.value().f32s().unwrap()) {
        assert!((found - expected).abs() < 1e-6);
    }
    keys.truncate(2);
    values.truncate(2);
    assert!(cached(&qkv, &keys, &values).is_err());
}

#[test]
fn rows_of_bf16_give_gradients_of_bf16() {
    let t = Tape::record();
    let x = t.leaf(Tensor::zeros(&[4, 2], DType::BF16).unwrap());
    let y = t.gather_rows(&x, &[3, 1, 3]).unwrap();
    let g = Tensor::from_f32(&[1.0, 2.0, 4.0, 8.0, 0.5, -2.0], &[3, 2]).unwrap().cast(DType::BF16).unwrap();
    let found = t.backward_with(&[(y, g)], &[x], &mut Gradients::new()).unwrap();
    let dx = found[0].as_ref().unwrap();
    assert_eq!(dx.dtype(), DType::BF16);
    assert_eq!(dx.to_vec_f32().unwrap(), [0.0, 0.0, 4.0, 8.0, 0.0, 0.0, 1.5, 0.0]);
}
