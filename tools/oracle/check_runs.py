"""Trains every run of fixtures/models/training with the `vidtune` binary and reads the results with transformers. A manual check.

    python tools/oracle/check_runs.py --vidtune target/release/vidtune --out /tmp/runs

From plan, conversations and pictures on: losses, gradient norms and rates of ten steps against the Trainer's; then
`final_model` is loaded by transformers (adapters by peft), its processor files too, and the loss of every record is
compared with `vidtune score` on the same folder.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys

import torch
from transformers import AutoProcessor

import common
from common import IGNORE
from models_adapters import samples_of
from models_ref import load_model, nll_of
from train_ref import RUNS, TRAINING


def plan(run, info, folder, out):
    """The plan that says what the reference was told."""
    adapter = f", adapter: {folder}/adapters/{run['adapter']}" if "adapter" in run else ""
    frozen = [p for p in ("vision", "projector", "llm") if p not in run.get("train", [])]
    kind = "lora" if adapter else "projector" if run["train"] == ["projector"] else f"full, freeze: [{', '.join(frozen)}]"
    # A warm-up beside `constant` is refused.
    given = {k: v for k, v in info["arguments"].items() if not (k == "warmup_steps" and v == 0)}
    arguments = "".join(f", {k}: {v}" for k, v in given.items())
    return (
        f"model: {{path: {folder}, dtype: f32{adapter}}}\n"
        f"method: {{kind: {kind}}}\n"
        f"data: {{train: [{{path: {folder}/samples.json, format: messages, media_dir: {folder}}}], shuffle: false, packing: false}}\n"
        f"train: {{output_dir: {out}, max_steps: {info['steps']}, save_steps: 1000{arguments}}}\n"
    )


def vidtune(binary, *args):
    done = subprocess.run([binary, *args], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"vidtune {' '.join(args)}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def worst(ours, theirs):
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    return max(abs(a - b) / max(abs(b), 1e-30) if a != b else 0.0 for a, b in zip(ours, theirs))


def read_lines(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def record_losses(run, folder, final):
    """Mean loss of every record by transformers, from the files that vidtune wrote."""
    if "adapter" in run:
        from peft import PeftModel

        model = PeftModel.from_pretrained(load_model(folder), final).eval()
    else:
        model = load_model(final)
    AutoProcessor.from_pretrained(final)
    losses = []
    for e in samples_of(folder):
        pixels = {} if e["pixels"] is None else {"pixel_values": e["pixels"]}
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([e["ids"]]), **pixels).logits
        labels = torch.tensor([e["labels"]])
        losses.append(float(nll_of(logits, labels).sum() / (labels[:, 1:] != IGNORE).sum()))
    return losses


def check(name, binary, root):
    run, folder, out = RUNS[name], os.path.join(common.FIXTURES, RUNS[name]["folder"]), os.path.join(root, name)
    with open(os.path.join(TRAINING, f"{name}.json")) as f:
        info = json.load(f)
    shutil.rmtree(out, ignore_errors=True)
    with open(out + ".yaml", "w") as f:
        f.write(plan(run, info, folder, out))
    vidtune(binary, "train", out + ".yaml")
    steps = [line for line in read_lines(os.path.join(out, "metrics.jsonl")) if "grad_norm" in line]
    column = lambda key: [line[key] for line in steps]
    loss, norm = worst(column("loss"), info["losses"]), worst(column("grad_norm"), info["grad_norms"])
    rate = worst(column("learning_rate"), info["rates"])
    final, scores = os.path.join(out, "final_model"), out + ".scores.jsonl"
    model = ["--model", folder, "--adapter", final] if "adapter" in run else ["--model", final]
    data = ["--data", os.path.join(folder, "samples.json"), "--media-dir", folder]
    vidtune(binary, "score", *model, *data, "--dtype", "f32", "--out", scores)
    back = worst([line["loss"] for line in read_lines(scores)], record_losses(run, folder, final))
    good = loss < 2e-5 and norm < 1e-3 and rate < 1e-12 and back < 2e-5
    verdict = "ok" if good else "DIFFERS"
    print(f"{verdict:8} {name}: losses within {loss:.1e}, gradient norms {norm:.1e}, rates {rate:.1e}; read back {back:.1e}")
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vidtune", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("runs", nargs="*")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    results = [check(name, args.vidtune, args.out) for name in args.runs or RUNS]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
