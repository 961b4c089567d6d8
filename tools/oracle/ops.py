"""Writes fixtures/ops/*.json: every engine operator's output and gradients, computed by PyTorch in float64 from float32 inputs.

usage: python tools/oracle/ops.py            (from the repository root; torch 2.15.0)

A case holds `args` (numbers and lists), `inputs` and `params` (float32 tensors), `upstream` (the gradient of the output),
`output` and `grads` (by input or param name). Inputs are exact in float32; results are rounded from float64 once.
"""
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

SEED = 20240
OUT = Path(__file__).resolve().parents[2] / "fixtures" / "ops"
torch.set_num_threads(1)
rng = np.random.default_rng(SEED)


def normal(*shape, scale=1.0):
    return torch.from_numpy((rng.standard_normal(shape) * scale).astype(np.float32))


def dump(t):
    a = t.detach().to(torch.float32).numpy()
    return {"shape": list(a.shape), "data": [float(str(v)) for v in a.ravel()]}


def case(name, f, inputs, params=None, args=None, store=None):
    """Runs f(tensors in float64) and writes its output and the gradient of everything it was given."""
    params = params or {}
    given = {k: v.double().requires_grad_(True) for k, v in {**inputs, **params}.items()}
    out = f(**given)
    upstream = normal(*out.shape) if out.ndim else torch.ones(())
    out.backward(upstream.double())
    grads = {k: v.grad if v.grad is not None else torch.zeros_like(v) for k, v in given.items()}
    return {
        "name": name, "args": args or {}, "inputs": {k: dump(v) for k, v in inputs.items()},
        "params": {k: dump(v) for k, v in params.items()}, "upstream": dump(upstream),
        "output": dump(out), "grads": {k: dump(v) for k, v in grads.items()}, **(store or {}),
    }


def write(op, cases):
    OUT.mkdir(parents=True, exist_ok=True)
    head = {"torch": torch.__version__, "seed": SEED, "generator": "tools/oracle/ops.py"}
    (OUT / f"{op}.json").write_text(json.dumps({**head, "cases": cases}, separators=(",", ":")) + "\n")


def linear_cases():
    cases = []
    shapes = [("single", 1, 1, 1), ("empty", 0, 5, 3), ("vector", 1, 33, 17), ("odd", 7, 19, 23), ("wide", 37, 40, 70), ("tall", 70, 9, 5)]
    for name, t, i, o in shapes:
        for bias in (False, True):
            for rank in (0, 3):
                for residual in (False, True):
                    if name in ("single", "tall") and residual and bias:
                        continue
                    inputs = {"x": normal(t, i)}
                    params = {"weight": normal(o, i, scale=0.3)}
                    if bias:
                        params["bias"] = normal(o)
                    if rank:
                        params["a"], params["b"] = normal(rank, i, scale=0.3), normal(o, rank, scale=0.3)
                    if residual:
                        inputs["residual"] = normal(t, o)

                    def f(x, weight, bias=None, a=None, b=None, residual=None):
                        y = F.linear(x, weight, bias)
                        if a is not None:
                            y = y + F.linear(F.linear(x, a), b) * 1.75
                        return y if residual is None else y + residual

                    label = "_".join([name, *(["bias"] if bias else []), *([f"r{rank}"] if rank else []), *(["residual"] if residual else [])])
                    cases.append(case(label, f, inputs, params, {"scale": 1.75}))
    # The large shape takes most of the file: alone and with everything.
    kept = ("wide", "wide_bias_r3_residual")
    return [case for case in cases if not case["name"].startswith("wide") or case["name"] in kept]


def norm_cases(kind):
    cases = []
    for name, t, n, scale in [("single", 1, 1, 1.0), ("empty", 0, 8, 1.0), ("row", 1, 37, 1.0), ("odd", 5, 19, 2.0), ("rows", 150, 16, 1.0), ("wide", 3, 130, 0.1), ("tiny", 4, 24, 1e-3)]:
        inputs = {"x": normal(t, n, scale=scale) + (3.0 if kind == "layer_norm" and name == "odd" else 0.0)}
        if kind == "rms_norm":
            f = lambda x, weight: F.rms_norm(x, (x.shape[1],), weight, 1e-6)
            params = {"weight": normal(n) + 1}
        else:
            f = lambda x, weight, bias: F.layer_norm(x, (x.shape[1],), weight, bias, 1e-6)
            params = {"weight": normal(n) + 1, "bias": normal(n)}
        cases.append(case(name, f, inputs, params, {"eps": 1e-6}))
    return cases


def rotate(x, heads, cos, sin):
    """rotate_half on the first 2 * half elements of each head, as transformers' apply_rotary_pos_emb."""
    t, half = cos.shape
    x = x.view(t, heads, x.shape[1] // heads)
    rot, rest = x[..., : 2 * half], x[..., 2 * half :]
    c, s = torch.cat([cos, cos], -1)[:, None], torch.cat([sin, sin], -1)[:, None]
    turned = torch.cat([-rot[..., half:], rot[..., :half]], -1)
    return torch.cat([rot * c + turned * s, rest], -1).flatten(1)


def rope_cases():
    cases = []
    for name, t, heads, d, half in [("single", 1, 1, 2, 1), ("empty", 0, 2, 4, 2), ("odd", 5, 3, 10, 5), ("partial", 7, 2, 16, 3), ("rows", 33, 4, 8, 4)]:
        positions = torch.from_numpy(rng.integers(0, 50, t)).float()
        angles = positions[:, None] * 100.0 ** -(torch.arange(half).float() / half)
        cos, sin = angles.cos(), angles.sin()
        f = lambda x, heads=heads, cos=cos.double(), sin=sin.double(): rotate(x, heads, cos, sin)
        cases.append(case(name, f, {"x": normal(t, heads * d)}, None, {"heads": heads}, {"tables": {"cos": dump(cos), "sin": dump(sin)}}))
    return cases


def attention_cases():
    cases = []
    shapes = [
        ("single", 1, 1, 1, [0, 1], [0, 1]), ("empty", 2, 1, 4, [0, 0], [0, 0]), ("none", 2, 1, 4, [0], [0]),
        ("grouped", 4, 2, 8, [0, 5, 12], [0, 5, 12]), ("ragged", 3, 3, 5, [0, 1, 1, 8, 20], [0, 1, 1, 8, 20]),
        ("cross", 2, 2, 6, [0, 3, 7], [0, 9, 14]), ("fewer_keys", 2, 1, 3, [0, 6, 8], [0, 2, 2]), ("tiles", 2, 1, 4, [0, 70, 75], [0, 70, 75]),
        ("long", 1, 1, 2, [0, 66], [0, 600]),
    ]
    for name, nq, nkv, d, cu_q, cu_k in shapes:
        for mask in ("causal", "full"):
            def f(q, k, v, nq=nq, nkv=nkv, d=d, cu_q=cu_q, cu_k=cu_k, mask=mask):
                parts = [q[:0]]
                for q0, q1, k0, k1 in zip(cu_q, cu_q[1:], cu_k, cu_k[1:]):
                    lq, lk = q1 - q0, k1 - k0
                    qs = q[q0:q1].view(lq, nq, d).transpose(0, 1)
                    ks = k[k0:k1].view(lk, nkv, d).transpose(0, 1).repeat_interleave(nq // nkv, 0)
                    vs = v[k0:k1].view(lk, nkv, d).transpose(0, 1).repeat_interleave(nq // nkv, 0)
                    # A query that sees no key gives 0.
                    blind = lq if lk == 0 else max(0, lq - lk) if mask == "causal" else 0
                    o = qs * 0
                    if blind < lq:
                        seen = torch.ones(lq, lk, dtype=torch.bool)
                        if mask == "causal":
                            seen = seen.tril(lk - lq)
                        o = torch.cat([o[:, :blind], F.scaled_dot_product_attention(qs[:, blind:], ks, vs, attn_mask=seen[blind:], scale=0.4)], 1)
                    parts.append(o.transpose(0, 1).reshape(lq, nq * d))
                return torch.cat(parts)

            inputs = {"q": normal(cu_q[-1], nq * d, scale=1.5), "k": normal(cu_k[-1], nkv * d, scale=1.5), "v": normal(cu_k[-1], nkv * d)}
            args = {"heads": nq, "kv_heads": nkv, "head_dim": d, "scale": 0.4, "mask": mask, "cu_q": cu_q, "cu_k": cu_k}
            cases.append(case(f"{name}_{mask}", f, inputs, None, args))
    return cases


ACTIVATIONS = {
    "gelu": F.gelu, "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "silu": F.silu, "relu": F.relu,
}


def activation_cases():
    cases = []
    for name, f in ACTIVATIONS.items():
        edge = torch.tensor([[-100.0, -20.0, -6.0, -1.0, -1e-3, 0.5, 1e-3, 1.0, 6.0, 20.0, 100.0]])
        for label, x in [("edges", edge), ("odd", normal(7, 13, scale=3.0)), ("empty", normal(0, 4)), ("single", normal(1, 1))]:
            cases.append(case(f"{name}_{label}", lambda x, f=f: f(x), {"x": x}, None, {"activation": name}))
            cases.append(case(f"{name}_{label}_gated", lambda gate, up, f=f: f(gate) * up, {"gate": x, "up": normal(*x.shape)}, None, {"activation": name}))
    return cases


def simple_cases():
    """Operators that move or combine elements."""
    cases = []
    for name, t, n in [("single", 1, 1), ("empty", 0, 3), ("odd", 5, 7)]:
        a, b = normal(t, n), normal(t, n)
        cases.append(case(f"add_{name}", lambda a, b: a + b, {"a": a, "b": b}, None, {"op": "add"}))
        cases.append(case(f"mul_{name}", lambda a, b: a * b, {"a": a, "b": b}, None, {"op": "mul"}))
        cases.append(case(f"scale_{name}", lambda x: x * -1.5, {"x": a}, None, {"op": "scale", "factor": -1.5}))
        cases.append(case(f"square_{name}", lambda x: x * x, {"x": a}, None, {"op": "square"}))
        cases.append(case(f"concat_rows_{name}", lambda a, b, c: torch.cat([a, b, c]), {"a": a, "b": normal(2, n), "c": normal(0, n)}, None, {"op": "concat_rows"}))
        cases.append(case(f"concat_cols_{name}", lambda a, b, c: torch.cat([a, b, c], 1), {"a": a, "b": normal(t, 4), "c": normal(t, 0)}, None, {"op": "concat_cols"}))
    for start, end in [(0, 6), (2, 3), (1, 5), (4, 4)]:
        cases.append(case(f"slice_rows_{start}_{end}", lambda x, s=start, e=end: x[s:e], {"x": normal(6, 5)}, None, {"op": "slice_rows", "start": start, "end": end}))
        cases.append(case(f"slice_cols_{start}_{end}", lambda x, s=start, e=end: x[:, s:e], {"x": normal(5, 6)}, None, {"op": "slice_cols", "start": start, "end": end}))
    for name, t, n, rows in [("repeat", 6, 5, [3, 0, 3, 5, 3]), ("single", 1, 1, [0]), ("empty", 4, 3, []), ("wide", 3, 300, [2, 2, 1])]:
        index = torch.tensor(rows, dtype=torch.long)
        cases.append(case(f"gather_rows_{name}", lambda x, i=index: x[i], {"x": normal(t, n)}, None, {"op": "gather_rows", "rows": rows}))
        cases.append(case(f"embedding_{name}", lambda table, i=index: F.embedding(i, table), {}, {"table": normal(t, n)}, {"op": "embedding", "rows": rows}))
        cases.append(case(f"add_table_{name}", lambda x, table, i=index: x + table[i], {"x": normal(len(rows), n)}, {"table": normal(t, n)}, {"op": "add_table", "rows": rows}))
    for name, t, n, rows in [("odd", 6, 5, [3, 0, 5]), ("all", 2, 3, [1, 0]), ("single", 1, 1, [0]), ("none", 3, 2, [])]:
        index = torch.tensor(rows, dtype=torch.long)
        f = lambda base, src, i=index: base.index_copy(0, i, src)
        cases.append(case(f"scatter_rows_{name}", f, {"base": normal(t, n), "src": normal(len(rows), n)}, None, {"op": "scatter_rows", "rows": rows}))
    return cases


def pool_cases():
    cases = []
    for name, n, c, size, to in [("single", 1, 1, (1, 1), (1, 1)), ("even", 2, 3, (4, 6), (2, 3)), ("odd", 3, 5, (7, 5), (3, 2)), ("same", 1, 2, (3, 3), (3, 3)), ("grow", 1, 4, (3, 2), (5, 7)), ("empty", 0, 4, (3, 2), (2, 2)), ("to_one", 2, 3, (5, 3), (1, 1))]:
        def grid(x, g, n=n, c=c, size=size):
            y = g(x.view(n, *size, c).permute(0, 3, 1, 2)) if n else x.new_zeros(0, c, *to) + x.sum()
            return y.permute(0, 2, 3, 1).reshape(-1, c)

        args = {"n": n, "from": list(size), "to": list(to)}
        x = {"x": normal(n * size[0] * size[1], c)}
        cases.append(case(f"avg_{name}", lambda x, to=to, g=grid: g(x, lambda v: F.adaptive_avg_pool2d(v, to)), x, None, {"op": "avg", **args}))
        cases.append(case(f"bilinear_{name}", lambda x, to=to, g=grid: g(x, lambda v: F.interpolate(v, to, mode="bilinear", align_corners=False)), x, None, {"op": "bilinear", **args}))
    return cases


def squares_cases():
    global rng
    rng = np.random.default_rng(20)  # a sequence of its own: the other files stay as they are
    cases = []
    for name, n, c, size, stride in [("single", 1, 1, (1, 1), 1), ("even", 2, 3, (4, 6), 2), ("odd", 3, 5, (7, 5), 2), ("three", 2, 4, (7, 8), 3), ("empty", 0, 4, (4, 2), 2), ("whole", 2, 2, (3, 3), 3)]:
        def grid(x, n=n, c=c, size=size):
            return x.view(n, *size, c).permute(0, 3, 1, 2)

        def highest(x, grid=grid, c=c, n=n, s=stride):
            y = F.max_pool2d(grid(x), s) if n else x.new_zeros(0, c, 1, 1) + x.sum()
            return y.permute(0, 2, 3, 1).reshape(-1, c)

        def unfolded(x, grid=grid, c=c, n=n, s=stride):
            y = F.unfold(grid(x), s, stride=s) if n else x.new_zeros(0, c * s * s, 1) + x.sum()
            return y.permute(0, 2, 1).reshape(-1, c * s * s)

        args = {"n": n, "from": list(size), "stride": stride}
        x = {"x": normal(n * size[0] * size[1], c)}
        if name == "even":
            x["x"][::2] = x["x"][1::2]  # of equal values the first one takes the gradient
        cases.append(case(f"max_{name}", highest, x, None, {"op": "max", **args}))
        cases.append(case(f"unfold_{name}", unfolded, x, None, {"op": "unfold", **args}))
    return cases


def cross_entropy_cases():
    cases = []
    for name, t, n, v, bias, rank in [("single", 1, 1, 1, False, 0), ("odd", 9, 7, 13, False, 0), ("bias", 6, 5, 33, True, 0), ("lora", 6, 5, 20, True, 2), ("chunks", 300, 4, 19, False, 0), ("none", 4, 3, 5, False, 0), ("empty", 0, 3, 5, False, 0)]:
        targets = rng.integers(0, v, t)
        if name in ("odd", "bias", "lora", "chunks"):
            targets[rng.random(t) < 0.15] = -100
        if name == "none":
            targets[:] = -100
        weights = torch.from_numpy(rng.random(t).astype(np.float32))
        params = {"weight": normal(v, n)}
        if bias:
            params["bias"] = normal(v)
        if rank:
            params["a"], params["b"] = normal(rank, n), normal(v, rank)
        nll_out = {}

        def f(hidden, weight, bias=None, a=None, b=None):
            logits = F.linear(hidden, weight, bias)
            if a is not None:
                logits = logits + F.linear(F.linear(hidden, a), b) * 1.75
            nll = F.cross_entropy(logits, torch.from_numpy(targets), reduction="none", ignore_index=-100)
            nll_out["nll"] = nll
            return (nll * weights.double()).sum()

        args = {"targets": [int(v) for v in targets], "weights": dump(weights)["data"], "scale": 1.75}
        c = case(name, f, {"hidden": normal(t, n)}, params, args)
        c["nll"] = dump(nll_out["nll"])
        cases.append(c)
    return cases


def blend_cases():
    """Rows added, tables mixed, and rotations whose angles are learned in some rows."""
    cases = []
    for name, t, n, rows in [("odd", 6, 5, [3, 0, 5]), ("twice", 4, 3, [1, 2, 1]), ("single", 1, 1, [0]), ("none", 3, 2, []), ("wide", 5, 300, [4, 2])]:
        index = torch.tensor(rows, dtype=torch.long)
        f = lambda base, src, i=index: base.index_add(0, i, src)
        cases.append(case(f"add_rows_{name}", f, {"base": normal(t, n), "src": normal(len(rows), n)}, None, {"op": "add_rows", "rows": rows}))
    for name, t, n, limit, taps in [("odd", 5, 7, 9, 4), ("single", 1, 1, 1, 1), ("empty", 0, 3, 2, 4), ("wide", 3, 300, 4, 2)]:
        rows = rng.integers(0, limit, (t, taps))
        weights = torch.from_numpy(rng.random((t, taps)).astype(np.float32))
        index = torch.from_numpy(rows)
        f = lambda x, table, i=index, w=weights: x + (table[i] * w.double()[:, :, None]).sum(1)
        args = {"op": "blend_table", "rows": rows.ravel().tolist(), "weights": dump(weights)}
        cases.append(case(f"blend_table_{name}", f, {"x": normal(t, n)}, {"table": normal(limit, n)}, args))
    for name, t, heads, half, rest, rows in [("odd", 7, 3, 5, 4, [0, 3, 6]), ("single", 1, 1, 1, 0, [0]), ("all", 3, 2, 2, 1, [2, 0, 1])]:
        fixed = normal(t, half)
        index = torch.tensor(rows, dtype=torch.long)

        def f(x, angles, fixed=fixed, index=index, heads=heads, half=half):
            table = fixed.double().index_copy(0, index, angles.expand(len(index), -1))[:, None]
            head = x[:, : heads * 2 * half].view(len(x), heads, 2 * half)
            u, v = head[..., :half], head[..., half:]
            turned = torch.cat([u * table.cos() - v * table.sin(), v * table.cos() + u * table.sin()], -1)
            return torch.cat([turned.reshape(len(x), -1), x[:, heads * 2 * half :]], 1)

        args = {"op": "rope_learned", "rows": rows, "heads": heads, "angles": dump(fixed)}
        cases.append(case(f"rope_learned_{name}", f, {"x": normal(t, heads * 2 * half + rest)}, {"angles": normal(1, half)}, args))
    return cases


def adamw_cases():
    cases = []
    for name, n, wd, eps in [("plain", 17, 0.0, 1e-8), ("decay", 33, 0.1, 1e-8), ("single", 1, 0.01, 1e-6), ("empty", 0, 0.01, 1e-8)]:
        p = normal(n)
        grads = [normal(n, scale=0.1) for _ in range(5)]
        w = p.clone().requires_grad_(True)
        opt = torch.optim.AdamW([w], lr=3e-3, betas=(0.9, 0.98), eps=eps, weight_decay=wd)
        steps = []
        for g in grads:
            w.grad = g.clone()
            opt.step()
            state = opt.state[w]
            steps.append({"p": dump(w), "m": dump(state["exp_avg"]), "v": dump(state["exp_avg_sq"])})
        cases.append({"name": name, "args": {"lr": 3e-3, "beta1": 0.9, "beta2": 0.98, "eps": eps, "weight_decay": wd}, "p": dump(p), "grads": [dump(g) for g in grads], "steps": steps})
    return cases


if __name__ == "__main__":
    write("linear", linear_cases())
    write("rms_norm", norm_cases("rms_norm"))
    write("layer_norm", norm_cases("layer_norm"))
    write("rope", rope_cases())
    write("attention", attention_cases())
    write("activation", activation_cases())
    write("simple", simple_cases())
    write("pool", pool_cases())
    write("cross_entropy", cross_entropy_cases())
    write("adamw", adamw_cases())
    write("blend", blend_cases())
    write("squares", squares_cases())
