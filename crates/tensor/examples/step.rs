//! Owns a training step of a Qwen2-style decoder built straight from tape operators, to profile the engine beside
//! PyTorch. Refuses to be a model library: shapes are constants, weights are random or those of a safetensors file.
//!
//! usage: step full|lora [weights=w.safetensors] [steps=9] [threads=2] [ckpt]
//! prints seconds: whole step [layers, loss with its gradients, backward of the layers, optimizer]
//!        on a busy machine use threads=1: times are then processor times, on Linux

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tensor::{
    Activation, AdamW, AttentionSpec, DType, Gradients, LinearWeights, LoraWeights, Mask, Param, Result, RopeTable,
    Tape, Tensor, Var, adamw_step,
};

const HIDDEN: usize = 896;
const HEADS: usize = 14;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const INNER: usize = 4864;
const LAYERS: usize = 4;
const VOCABULARY: usize = 32000;
const TOKENS: usize = 1024;
const RANK: usize = 16;

struct Layer {
    norm1: Param,
    q: LinearWeights,
    k: LinearWeights,
    v: LinearWeights,
    o: LinearWeights,
    norm2: Param,
    gate: LinearWeights,
    up: LinearWeights,
    down: LinearWeights,
}

impl Layer {
    fn forward(&self, t: &Tape, x: &Var, rope: &RopeTable, spec: &AttentionSpec) -> Result<Var> {
        let h = t.rms_norm(x, &self.norm1, 1e-6)?;
        let q = t.rope(t.linear(&h, &self.q)?, HEADS, HEAD_DIM, rope)?;
        let k = t.rope(t.linear(&h, &self.k)?, KV_HEADS, HEAD_DIM, rope)?;
        let v = t.linear(&h, &self.v)?;
        let a = t.attention(&q, &k, &v, spec)?;
        let x = t.linear_add(&a, &self.o, x.clone())?;
        let h = t.rms_norm(&x, &self.norm2, 1e-6)?;
        let inner = t.gated(&t.linears(&h, &[&self.gate, &self.up])?, Activation::Silu)?;
        t.linear_add(&inner, &self.down, x)
    }
}

/// Weights by name, from a file or drawn at random.
struct Source {
    file: Option<(Vec<u8>, serde_json::Value)>,
    seed: u64,
    params: Vec<Param>,
}

impl Source {
    fn open(path: Option<&str>) -> Source {
        let file = path.map(|path| {
            let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}"));
            let mut length = [0; 8];
            length.copy_from_slice(&bytes[..8]);
            let end = 8 + u64::from_le_bytes(length) as usize;
            let header = serde_json::from_slice(&bytes[8..end]).unwrap_or_else(|e| panic!("{path}: {e}"));
            (bytes[end..].to_vec(), header)
        });
        Source { file, seed: 1, params: vec![] }
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        let (bytes, header) = self.file.as_ref()?;
        let at =
            |i: usize| header[name]["data_offsets"][i].as_u64().unwrap_or_else(|| panic!("no tensor {name}")) as usize;
        Some(&bytes[at(0)..at(1)])
    }

    fn get(&mut self, name: &str, shape: &[usize], trainable: bool) -> Result<Param> {
        let value = match self.bytes(name) {
            Some(bytes) => Tensor::from_bytes(bytes, DType::F32, shape)?,
            None => Tensor::from_f32(&self.random(name, shape.iter().product()), shape)?,
        };
        let param = Param::new(name, value);
        param.set_trainable(trainable);
        self.params.push(param.clone());
        Ok(param)
    }

    fn random(&mut self, name: &str, len: usize) -> Vec<f32> {
        if name.ends_with('1') || name.ends_with('2') || name == "norm" {
            return vec![1.0; len];
        }
        if name.ends_with(".b") {
            return vec![0.0; len];
        }
        let mut uniform = || {
            self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.seed >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..len).map(|_| uniform() * 0.07).collect()
    }

    fn linear(&mut self, name: &str, out: usize, inputs: usize, lora: bool, adapted: bool) -> Result<LinearWeights> {
        let weight = self.get(name, &[out, inputs], !lora)?;
        let lora = match lora && adapted {
            true => Some(LoraWeights {
                a: self.get(&format!("{name}.a"), &[RANK, inputs], true)?,
                b: self.get(&format!("{name}.b"), &[out, RANK], true)?,
                scale: 2.0,
                dropout: 0.0,
            }),
            false => None,
        };
        Ok(LinearWeights { weight, bias: None, lora })
    }
}

fn tokens(source: &Source) -> Vec<u32> {
    match source.bytes("tokens") {
        Some(bytes) => bytes.chunks_exact(8).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        None => (0..=TOKENS as u32).map(|i| i.wrapping_mul(2654435761) % VOCABULARY as u32).collect(),
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| args.iter().find_map(|a| a.strip_prefix(name)?.strip_prefix('='));
    let number = |name: &str, default: usize| option(name).map_or(default, |v| v.parse().unwrap_or(default));
    let lora = args.first().is_some_and(|mode| mode == "lora");
    let recompute = args.iter().any(|a| a == "ckpt");
    let steps = number("steps", 9);
    let threads = number("threads", 2);
    tensor::set_num_threads(threads);
    let origin = Instant::now();
    let clock = || if threads == 1 { processor_seconds(origin) } else { origin.elapsed().as_secs_f64() };

    let mut source = Source::open(option("weights"));
    let ids = tokens(&source);
    let embed = source.get("embed", &[VOCABULARY, HIDDEN], !lora)?;
    let mut layers = vec![];
    for i in 0..LAYERS {
        let p = format!("l{i}.");
        let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        layers.push(Arc::new(Layer {
            norm1: source.get(&format!("{p}n1"), &[HIDDEN], !lora)?,
            q: source.linear(&format!("{p}q"), q, HIDDEN, lora, true)?,
            k: source.linear(&format!("{p}k"), kv, HIDDEN, lora, true)?,
            v: source.linear(&format!("{p}v"), kv, HIDDEN, lora, true)?,
            o: source.linear(&format!("{p}o"), HIDDEN, q, lora, true)?,
            norm2: source.get(&format!("{p}n2"), &[HIDDEN], !lora)?,
            gate: source.linear(&format!("{p}gate"), INNER, HIDDEN, lora, false)?,
            up: source.linear(&format!("{p}up"), INNER, HIDDEN, lora, false)?,
            down: source.linear(&format!("{p}down"), HIDDEN, INNER, lora, false)?,
        }));
    }
    let norm = source.get("norm", &[HIDDEN], !lora)?;
    let head = source.linear("head", VOCABULARY, HIDDEN, lora, false)?;
    source.file = None;

    let angles: Vec<f32> = (0..TOKENS)
        .flat_map(|t| (0..HEAD_DIM / 2).map(move |i| t as f32 / 1e6f32.powf(2.0 * i as f32 / HEAD_DIM as f32)))
        .collect();
    let rope = RopeTable::from_angles(&Tensor::from_f32(&angles, &[TOKENS, HEAD_DIM / 2])?, 1.0)?;
    let cu: Arc<[usize]> = Arc::from([0, TOKENS]);
    let spec = AttentionSpec {
        num_heads: HEADS,
        num_kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        scale: (HEAD_DIM as f32).powf(-0.5),
        mask: Mask::Causal,
        cu_q: cu.clone(),
        cu_k: cu,
    };
    let targets: Vec<i32> = ids[1..=TOKENS].iter().map(|&id| id as i32).collect();
    let weights = vec![1.0 / TOKENS as f32; TOKENS];

    let trained: Vec<Param> = source.params.iter().filter(|p| p.is_trainable()).cloned().collect();
    let mut moments: BTreeMap<u64, (Vec<f32>, Vec<f32>)> = BTreeMap::new();
    let mut times = vec![];
    let mut grads = Gradients::new();
    for step in 0..steps {
        let start = clock();
        let t = Tape::record().with_rng(0, step as u64);
        let mut x = t.embedding(&ids[..TOKENS], &embed)?;
        for layer in &layers {
            x = if recompute {
                let (layer, rope, spec) = (layer.clone(), rope.clone(), spec.clone());
                t.checkpoint(&[x], move |t, x| layer.forward(t, &x[0], &rope, &spec))?
            } else {
                layer.forward(&t, &x, &rope, &spec)?
            };
        }
        let x = t.rms_norm(&x, &norm, 1e-6)?;
        let layers_done = clock() - start;
        let output = t.linear_cross_entropy(&x, &head, &targets, &weights)?;
        let forward = clock() - start;
        drop(x);
        t.backward(&output.loss, &mut grads)?;
        drop(t);
        let backward = clock() - start - forward;
        let n = step as i32 + 1;
        let o = AdamW {
            lr: if lora { 1e-3 } else { 1e-4 },
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            bias_correction1: 1.0 - 0.9f64.powi(n),
            bias_correction2: 1.0 - 0.999f64.powi(n),
            grad_scale: 1.0,
        };
        for param in &trained {
            let Some(gradient) = grads.get(param) else { panic!("{} has no gradient", param.name()) };
            let len = gradient.num_elements();
            let (m, v) = moments.entry(param.id()).or_insert_with(|| (vec![0.0; len], vec![0.0; len]));
            let gradient = gradient.f32s()?;
            let mut result = Ok(());
            param.update(|p| result = adamw_step(p, gradient, m, v, &o))?;
            result?;
        }
        grads.clear();
        let all = clock() - start;
        times.push(all);
        let loss = output.loss.value().f32s()?[0];
        let held = tensor::memory::stats().held_bytes >> 20;
        println!(
            "{step} {loss:.5} held {held}MB {all:.3} [{layers_done:.3}, {:.3}, {backward:.3}, {:.3}]",
            forward - layers_done,
            all - forward - backward
        );
    }
    let mut sorted = times.split_off(times.len().min(3));
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
    let stats = tensor::memory::stats();
    println!(
        "RESULT ours {} median {median:.3}s tok/s {:.0} rss {} counted {}MB",
        args.join(" "),
        TOKENS as f64 / median,
        peak_rss(),
        stats.peak_bytes >> 20
    );
    Ok(())
}

/// Processor time of this thread; wall time where there is no such clock.
#[cfg(target_os = "linux")]
fn processor_seconds(_: Instant) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(target_os = "linux"))]
fn processor_seconds(origin: Instant) -> f64 {
    origin.elapsed().as_secs_f64()
}

/// The largest resident memory so far, as Linux tells it.
fn peak_rss() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("?").trim().into()
}
