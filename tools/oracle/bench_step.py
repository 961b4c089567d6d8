"""One training step of a decoder in plain PyTorch, to stand beside `vidtune bench step`.

    python tools/oracle/bench_step.py --config config.json --seq 1024 --method full|lora --dtype f32|bf16 --steps 8 --json

Takes the `config.json` of a Qwen2 or Llama checkpoint (or the `text_config` of a LLaVA one). The step is written
with PyTorch's own fused parts (`scaled_dot_product_attention`, `rms_norm`, fused AdamW), which is faster than the
classes of transformers. `--dtype bf16` is autocast over f32 weights. `--recompute`, `--rank`, `--learning-rate` and
`--threads` as in ours. The median leaves out the first third of the steps.

Weights are random. To compare losses, write them once and give both programs the same ones (under LoRA A is random
on both sides, so that only the first loss is equal):

    python tools/oracle/bench_step.py --config config.json --seq 1024 --make DIR
    vidtune bench step --config DIR --tokens DIR/tokens.safetensors --seq 1024 --method full --steps 8 --json
    python tools/oracle/bench_step.py --config DIR/config.json --model DIR --tokens DIR/tokens.safetensors ...
"""

import argparse
import json
import os
import resource
import statistics
import time

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from safetensors.torch import load_file, save_file

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--seq", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--make", help="write random weights and tokens into this folder and end")
    parser.add_argument("--model")
    parser.add_argument("--tokens")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def read_config(path):
    with open(path) as f:
        config = json.load(f)
    config = config.get("text_config", config)
    heads = config["num_attention_heads"]
    config.setdefault("num_key_value_heads", heads)
    config.setdefault("head_dim", config["hidden_size"] // heads)
    config.setdefault("rms_norm_eps", 1e-6)
    theta = config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta", 10000.0)
    assert not config.get("rope_scaling"), "scaled rotary positions are not timed here"
    return config, theta


def shapes(c):
    """HF names and shapes of the decoder's tensors."""
    h, d, i = c["hidden_size"], c["head_dim"], c["intermediate_size"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    bias = c["model_type"] == "qwen2" or c.get("attention_bias", False)
    out = {"model.embed_tokens.weight": (c["vocab_size"], h), "model.norm.weight": (h,)}
    if not c.get("tie_word_embeddings", False):
        out["lm_head.weight"] = (c["vocab_size"], h)
    for n in range(c["num_hidden_layers"]):
        p = f"model.layers.{n}."
        for name, width in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            out[f"{p}self_attn.{name}.weight"] = (width, h)
            if bias:
                out[f"{p}self_attn.{name}.bias"] = (width,)
        out[f"{p}self_attn.o_proj.weight"] = (h, q)
        out[f"{p}mlp.gate_proj.weight"] = out[f"{p}mlp.up_proj.weight"] = (i, h)
        out[f"{p}mlp.down_proj.weight"] = (h, i)
        out[f"{p}input_layernorm.weight"] = out[f"{p}post_attention_layernorm.weight"] = (h,)
    return out


def weights(c, args):
    if args.model:
        found = {}
        for file in sorted(os.listdir(args.model)):
            if file.startswith("model") and file.endswith(".safetensors"):
                found.update(load_file(os.path.join(args.model, file)))
        found = {n.removeprefix("language_model."): t.float() for n, t in found.items()}
        return {n: found[n] for n in shapes(c)}
    torch.manual_seed(0)
    make = lambda n, s: torch.ones(s) if "norm" in n else torch.zeros(s) if n.endswith("bias") else torch.randn(s) * 0.02
    return {n: make(n, s) for n, s in shapes(c).items()}


class Decoder:
    def __init__(self, c, theta, w, lora, seq):
        self.c, self.w, self.lora = c, w, lora
        d = c["head_dim"]
        inverse = theta ** (-torch.arange(0, d, 2).float() / d)
        angles = torch.outer(torch.arange(seq).float(), inverse)
        angles = torch.cat([angles, angles], -1)
        self.cos, self.sin = angles.cos(), angles.sin()

    def linear(self, x, name):
        y = F.linear(x, self.w[name + ".weight"], self.w.get(name + ".bias"))
        if name in self.lora:
            a, b = self.lora[name]
            y = y + F.linear(F.linear(x, a), b) * 2.0
        return y

    def rotate(self, x):
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return (x * self.cos + turned * self.sin).to(x.dtype)

    def norm(self, x, name):
        return F.rms_norm(x, x.shape[-1:], self.w[name], self.c["rms_norm_eps"])

    def block(self, x, p):
        c, (batch, seq, _) = self.c, x.shape
        split = lambda y, heads: y.view(batch, seq, heads, c["head_dim"]).transpose(1, 2)
        h = self.norm(x, p + "input_layernorm.weight")
        q = self.rotate(split(self.linear(h, p + "self_attn.q_proj"), c["num_attention_heads"]))
        k = self.rotate(split(self.linear(h, p + "self_attn.k_proj"), c["num_key_value_heads"]))
        v = split(self.linear(h, p + "self_attn.v_proj"), c["num_key_value_heads"])
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.linear(a.transpose(1, 2).reshape(batch, seq, -1), p + "self_attn.o_proj")
        h = self.norm(x, p + "post_attention_layernorm.weight")
        gated = F.silu(self.linear(h, p + "mlp.gate_proj")) * self.linear(h, p + "mlp.up_proj")
        return x + self.linear(gated, p + "mlp.down_proj")

    def loss(self, tokens, recompute):
        x = F.embedding(tokens, self.w["model.embed_tokens.weight"])
        for n in range(self.c["num_hidden_layers"]):
            p = f"model.layers.{n}."
            if recompute:
                x = torch.utils.checkpoint.checkpoint(self.block, x, p, use_reentrant=False)
            else:
                x = self.block(x, p)
        head = self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])
        logits = F.linear(self.norm(x, "model.norm.weight")[:, :-1], head)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), tokens[:, 1:].reshape(-1))


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    import_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    c, theta = read_config(args.config)
    w = weights(c, args)
    if args.make:
        os.makedirs(args.make, exist_ok=True)
        tokens = torch.randint(0, c["vocab_size"], (args.batch * args.seq,))
        save_file(w, os.path.join(args.make, "model.safetensors"), metadata={"format": "pt"})
        save_file({"tokens": tokens}, os.path.join(args.make, "tokens.safetensors"))
        with open(os.path.join(args.make, "config.json"), "w") as f:
            json.dump(c, f, indent=1)
        return
    lora = {}
    if args.method == "lora":
        for n in [n.removesuffix(".weight") for n in w if n.endswith(tuple(t + ".weight" for t in TARGETS))]:
            out, width = w[n + ".weight"].shape
            lora[n] = (torch.randn(args.rank, width) / width**0.5, torch.zeros(out, args.rank))
    train = [t for pair in lora.values() for t in pair] or list(w.values())
    for t in train:
        t.requires_grad_(True)
    if args.tokens:
        tokens = load_file(args.tokens)["tokens"][: args.batch * args.seq].view(args.batch, args.seq)
    else:
        tokens = torch.randint(0, c["vocab_size"], (args.batch, args.seq))
    rate = args.learning_rate or (1e-3 if args.method == "lora" else 1e-4)
    model = Decoder(c, theta, w, lora, args.seq)
    optimizer = torch.optim.AdamW(train, lr=rate, weight_decay=0.01, fused=True)
    times, losses = [], []
    for _ in range(args.steps):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = model.loss(tokens, args.recompute)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
        losses.append(loss.item())
    step = statistics.median(times[len(times) // 3 :])
    result = {
        "step_s": step,
        "tokens_per_s": tokens.numel() / step,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "losses": losses,
        "engine": f"torch {torch.__version__}",
        "memory_after_import_bytes": import_peak,
        "threads": args.threads,
        "trainable": sum(t.numel() for t in train),
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{result['engine']}: {step:.3f} s a step, {result['tokens_per_s']:.0f} tokens/s, {result['peak_memory_bytes'] / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
