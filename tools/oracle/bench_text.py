"""Scoring and generating text with transformers, to stand beside `vidtune score` and `vidtune generate`.

    python tools/oracle/bench_text.py score DIR --repeats 5
    python tools/oracle/bench_text.py generate DIR --tokens 256 --short 16

DIR is that of `bench_make.py`. bf16 weights, fused attention (sdpa), no compilation.

`score`: one forward pass with loss of 32 records of 16 to 512 tokens, padded on the right to the longest; the median of
passes after one that does not count. Tokenising does not count.
`generate`: greedy, no end token, with the dynamic and with the static cache; the rate is that of the tokens between the
short and the long answer, so that the prompt and the start do not count, as ours is measured. `--batch N` continues the
prompt N times at once, as `vidtune bench generate --batch N` does.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

PROMPT = "describe the clip"


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def score(args):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = args.folder / "text"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = [json.loads(line)["messages"] for line in open(args.folder / "texts_32.jsonl")]
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in rows]
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)

    @torch.no_grad()
    def work():
        model(**batch, labels=labels, use_cache=False).loss.item()

    work()
    seconds = [timed(work) for _ in range(args.repeats)]
    return {"pass_s": statistics.median(seconds), "tokens": int(batch["attention_mask"].sum())}


def generate(args):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    path = args.folder / "paper"
    model = LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    processor = AutoProcessor.from_pretrained(path)
    turns = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    inputs = processor(text=processor.apply_chat_template(turns, add_generation_prompt=True), return_tensors="pt")
    inputs = {name: values.repeat(args.batch, 1) for name, values in inputs.items()}
    rates = {}
    for cache in (None, "static"):
        options = {"do_sample": False, "cache_implementation": cache, "disable_compile": True}

        @torch.no_grad()
        def answer(count):
            out = model.generate(**inputs, max_new_tokens=count, min_new_tokens=count, **options)
            assert out.shape[1] == inputs["input_ids"].shape[1] + count

        answer(4)
        short = timed(lambda: answer(args.short))
        long = timed(lambda: answer(args.tokens))
        rates[cache or "dynamic"] = args.batch * (args.tokens - args.short) / (long - short)
    return {"tokens_per_s": max(rates.values()), "by_cache": rates}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=["score", "generate"])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--short", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = {"score": score, "generate": generate}[args.task](args)
    result["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main()
