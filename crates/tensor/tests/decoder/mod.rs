//! Owns a small decoder with every weight, LoRA and dropout, for tests of the tape. Refuses assertions.

use std::sync::Arc;

use tensor::{
    Activation, AttentionSpec, Gradients, LinearWeights, LoraWeights, Mask, Param, Result, RopeTable, Tape, Tensor, Var,
};

/// Numbers between -1 and 1 that look random.
pub fn numbers(seed: u64, shape: &[usize]) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_f32(&data, shape).unwrap()
}

pub const HIDDEN: usize = 48;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const DIM: usize = 12;
const INNER: usize = 80;
const VOCABULARY: usize = 301;

/// A decoder block with LoRA and dropout, an embedding and a head.
#[derive(Clone)]
pub struct Model {
    embed: Param,
    norm1: Param,
    pub q: LinearWeights,
    pub k: LinearWeights,
    pub v: LinearWeights,
    pub o: LinearWeights,
    norm2: Param,
    pub gate: LinearWeights,
    pub up: LinearWeights,
    pub down: LinearWeights,
    head: LinearWeights,
}

impl Model {
    pub fn new(lora_only: bool) -> Model {
        let weight = |name: &str, seed: u64, shape: &[usize]| {
            let param = Param::new(name, numbers(seed, shape));
            param.set_trainable(!lora_only);
            param
        };
        let linear = |name: &str, seed: u64, out: usize, inputs: usize| {
            let value: Vec<f32> = numbers(seed, &[out, inputs]).f32s().unwrap().iter().map(|x| 0.2 * x).collect();
            let w = Param::new(name, Tensor::from_f32(&value, &[out, inputs]).unwrap());
            w.set_trainable(!lora_only);
            let adapter = |part: &str, seed: u64, shape: &[usize]| {
                let param = Param::new(format!("{name}.{part}"), numbers(seed, shape));
                param.set_trainable(true);
                param
            };
            let (a, b) = (adapter("a", seed + 50, &[3, inputs]), adapter("b", seed + 90, &[out, 3]));
            LinearWeights { weight: w, bias: None, lora: Some(LoraWeights { a, b, scale: 0.1, dropout: 0.2 }) }
        };
        Model {
            embed: weight("embed", 1, &[VOCABULARY, HIDDEN]),
            norm1: weight("norm1", 2, &[HIDDEN]),
            q: linear("q", 3, HEADS * DIM, HIDDEN),
            k: linear("k", 4, KV_HEADS * DIM, HIDDEN),
            v: linear("v", 5, KV_HEADS * DIM, HIDDEN),
            o: linear("o", 6, HIDDEN, HEADS * DIM),
            norm2: weight("norm2", 7, &[HIDDEN]),
            gate: linear("gate", 8, INNER, HIDDEN),
            up: linear("up", 9, INNER, HIDDEN),
            down: linear("down", 10, HIDDEN, INNER),
            head: LinearWeights { lora: None, ..linear("head", 11, VOCABULARY, HIDDEN) },
        }
    }

    fn params(&self) -> Vec<Param> {
        let mut all = vec![self.embed.clone(), self.norm1.clone(), self.norm2.clone()];
        for w in [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down, &self.head] {
            all.push(w.weight.clone());
            if let Some(lora) = &w.lora {
                all.extend([lora.a.clone(), lora.b.clone()]);
            }
        }
        all
    }

    pub fn block(&self, t: &Tape, x: &Var, rope: &RopeTable, spec: &AttentionSpec) -> Result<Var> {
        let h = t.rms_norm(x, &self.norm1, 1e-5)?;
        let q = t.rope(t.linear(&h, &self.q)?, HEADS, DIM, rope)?;
        let k = t.rope(t.linear(&h, &self.k)?, KV_HEADS, DIM, rope)?;
        let a = t.attention(&q, &k, &t.linear(&h, &self.v)?, spec)?;
        let x = t.linear_add(&a, &self.o, x.clone())?;
        let h = t.dropout(&t.rms_norm(&x, &self.norm2, 1e-5)?, 0.1)?;
        let inner = t.gated(&t.linears(&h, &[&self.gate, &self.up])?, Activation::Silu)?;
        t.linear_add(&inner, &self.down, x)
    }

    /// One step over two packed sequences: the loss and the gradient of every trained weight.
    pub fn step(&self, recompute: bool, num_tokens: usize) -> (f32, Vec<(String, Vec<f32>)>) {
        let t = Tape::record().with_rng(7, 3);
        let ids: Vec<u32> = (0..num_tokens as u32).map(|i| i * 37 % VOCABULARY as u32).collect();
        let rope = RopeTable::from_angles(&numbers(20, &[num_tokens, DIM / 2]), 1.0).unwrap();
        let cu: Arc<[usize]> = Arc::from([0, num_tokens / 3, num_tokens]);
        let spec = AttentionSpec {
            num_heads: HEADS,
            num_kv_heads: KV_HEADS,
            head_dim: DIM,
            scale: 0.3,
            mask: Mask::Causal,
            cu_q: cu.clone(),
            cu_k: cu,
        };
        let mut x = t.embedding(&ids, &self.embed).unwrap();
        for _ in 0..2 {
            x = if recompute {
                let (model, rope, spec) = (self.clone(), rope.clone(), spec.clone());
                t.checkpoint(&[x], move |t, x| model.block(t, &x[0], &rope, &spec)).unwrap()
            } else {
                self.block(&t, &x, &rope, &spec).unwrap()
            };
        }
        let targets: Vec<i32> =
            ids.iter().enumerate().map(|(i, &id)| if i % 5 == 0 { -100 } else { id as i32 }).collect();
        let output = t.linear_cross_entropy(&x, &self.head, &targets, &vec![0.01; num_tokens]).unwrap();
        let mut grads = Gradients::new();
        t.backward(&output.loss, &mut grads).unwrap();
        let found = self
            .params()
            .into_iter()
            .filter_map(|p| Some((p.name().to_string(), grads.get(&p)?.to_vec_f32().unwrap())));
        (output.loss.value().f32s().unwrap()[0], found.collect())
    }
}
