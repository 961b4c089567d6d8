"""What the PyTorch side runs on, and how fast this machine reads memory: one JSON line.

    python tools/oracle/bench_machine.py --threads 2

Bandwidth is the best of several passes that only read: `torch.sum` of 1 GiB of f32, `torch.mv` of a bf16 and of an
f32 matrix of 0.5 GiB (a generated token is nothing else), and the sum of 1 GiB in numpy in as many Python threads.
The fastest counts, so that a share of it is never flattered by a slow test.
"""

import argparse
import importlib.metadata
import json
import platform
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch


def best(work, num_bytes, repeats=7):
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return num_bytes / min(seconds)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    rates = {}
    flat = torch.ones(1 << 28)
    rates["torch.sum f32"] = best(lambda: flat.sum(), flat.numel() * 4)
    parts = np.array_split(flat.numpy().view(np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        rates["numpy sum i64"] = best(lambda: list(pool.map(np.sum, parts)), flat.numel() * 4)
    del parts, flat
    with torch.no_grad():
        for name, dtype, rows in (("f32", torch.float32, 1 << 15), ("bf16", torch.bfloat16, 1 << 16)):
            matrix, vector = torch.ones(rows, 1 << 12, dtype=dtype), torch.ones(1 << 12, dtype=dtype)
            rates[f"torch.mv {name}"] = best(lambda: torch.mv(matrix, vector), 1 << 29)
        peaks = {}
        for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            a = torch.randn(2048, 2048).to(dtype)
            peaks[name] = best(lambda: a @ a, 2 * 2048**3, 5)
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "peft", "torchcodec", "tokenizers", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    print(json.dumps({"versions": versions, "read_bytes_per_s": rates, "gemm_flops_per_s": peaks}))


if __name__ == "__main__":
    main()
