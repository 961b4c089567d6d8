"""Greedy generation with transformers, to stand beside `vidtune bench generate`.

    python tools/oracle/bench_generate.py --config config.json --prompt-tokens 128 --new-tokens 64 --batch 1 --dtype bf16 --json

Takes the `config.json` of a text model; weights are random (speed does not depend on them), prompts are random ids of one
length. `generate` runs with its key/value cache and without an end token. The prefill is timed as the first token alone;
tokens_per_s counts the tokens after it.
"""

import argparse
import json
import os
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    config = AutoConfig.from_pretrained(args.config)
    torch.set_default_dtype(dtype)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    ids = torch.randint(0, config.vocab_size, (args.batch, args.prompt_tokens))

    def seconds(new):
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        assert out.shape[1] == args.prompt_tokens + new
        return time.perf_counter() - start

    seconds(2)
    prefill = seconds(1)
    decode = seconds(args.new_tokens) - prefill
    result = {
        "prefill_s": prefill,
        "step_s": decode / (args.new_tokens - 1),
        "tokens_per_s": args.batch * (args.new_tokens - 1) / decode,
        "threads": args.threads,
        "dtype": args.dtype,
        "torch": torch.__version__,
    }
    print(json.dumps(result) if args.json else result)


main()
