"""Do transformers and peft read what vidtune wrote, and compute the same from it? A manual check.

    VIDTUNE_KEEP_SAVED=/tmp/saved cargo test -p models --test parity saved
    python tools/oracle/check_saved.py /tmp/saved

reads every folder there: `FOLDER-whole` and `FOLDER-shards` (models), `FOLDER+ADAPTER` (adapters), `FOLDER+fresh`
(adapters made by us, B = 0) and `FOLDER+ADAPTER-merged` (models), named after the fixtures they were saved from. One folder by name, whatever it is called:

    python tools/oracle/check_saved.py --fixture llava_siglip_qwen2 [--adapter patterns] DIR
"""

import argparse
import json
import os
import sys
import warnings

import torch
from safetensors.torch import load_file

import common
import seq2seq_ref
from models_adapters import logits_of, samples_of
from models_ref import load_model


# Merged weights that are stored in bf16 are rounded once more than the adapter beside them.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def compare(what, logits, expected, stride=1, tolerance=1e-4):
    worst = 0.0
    for i, mine in enumerate(logits):
        theirs = expected[f"sample{i}.logits"]
        worst = max(worst, float((mine[::stride] - theirs).abs().max() / theirs.std()))
    verdict = "ok" if worst < tolerance else "DIFFERS"
    print(f"{verdict:8} {what}: logits within {worst:.1e} of their scale")
    return verdict == "ok"


def stride_of(folder):
    with open(os.path.join(folder, "expected.json")) as f:
        return json.load(f).get("logits_stride", 1)


def check_model(saved, fixture):
    """Nothing missing or unexpected (load_model asserts it), and the fixture's logits."""
    folder = os.path.join(common.FIXTURES, fixture)
    model = load_model(saved)
    expected = load_file(os.path.join(folder, "expected.safetensors"))
    return compare(os.path.basename(saved), logits_of(model, samples_of(folder)), expected, stride=stride_of(folder))


def check_merged(saved, fixture, adapter):
    """A merged model gives the adapter's logits without peft."""
    folder = os.path.join(common.FIXTURES, fixture)
    stored = next(iter(load_file(os.path.join(saved, "model.safetensors")).values())).dtype
    expected = load_file(os.path.join(folder, "adapters", adapter, "expected.safetensors"))
    logits = logits_of(load_model(saved), samples_of(folder))
    return compare(os.path.basename(saved), logits, expected, stride=5, tolerance=TOLERANCE[stored])


def check_adapter(saved, fixture, adapter):
    """Every tensor of the file is in the model and the other way round, and the fixture's logits."""
    from peft import PeftModel, get_peft_model_state_dict

    folder = os.path.join(common.FIXTURES, fixture)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(load_model(folder), saved).eval()
    about_keys = [str(w.message) for w in caught if "key" in str(w.message).lower() and "adapter" in str(w.message).lower()]
    on_disk = load_file(os.path.join(saved, "adapter_model.safetensors"))
    inside = get_peft_model_state_dict(model, save_embedding_layers=False)
    same = set(on_disk) == set(inside) and all(torch.equal(on_disk[k], inside[k].float()) for k in on_disk)
    if not same or about_keys:
        print(f"DIFFERS  {os.path.basename(saved)}: tensors {sorted(set(on_disk) ^ set(inside))[:4]} {about_keys[:1]}")
        return False
    own = adapter != "fresh"
    expected = load_file(os.path.join(folder, *(["adapters", adapter] if own else []), "expected.safetensors"))
    return compare(os.path.basename(saved), logits_of(model, samples_of(folder)), expected, stride=5 if own else stride_of(folder))


def check_text_pair(saved, name):
    """The same of an encoder-decoder: a model, an adapter of ours or of peft, or a merged one."""
    from peft import PeftModel, get_peft_model_state_dict

    base, _, adapter = name.partition("+")
    folder = os.path.join(seq2seq_ref.ROOT, base)
    with open(os.path.join(folder, "expected.json")) as f:
        samples = json.load(f)["samples"]
    merged = adapter.endswith("-merged")
    adapter = adapter.removesuffix("-merged")
    tolerance = 1e-4
    if adapter and not merged:
        model = PeftModel.from_pretrained(seq2seq_ref.load_model(folder), saved).eval()
        on_disk = load_file(os.path.join(saved, "adapter_model.safetensors"))
        inside = get_peft_model_state_dict(model, save_embedding_layers=False)
        if set(on_disk) != set(inside):
            print(f"DIFFERS  {name}: tensors {sorted(set(on_disk) ^ set(inside))[:4]}")
            return False
    else:
        model = seq2seq_ref.load_model(saved)
        if merged and next(iter(load_file(os.path.join(saved, "model.safetensors")).values())).dtype == torch.bfloat16:
            tolerance = TOLERANCE[torch.bfloat16]
    expected = load_file(os.path.join(folder, *(["adapters", adapter] if adapter else []), "expected.safetensors"))
    return compare(name, [seq2seq_ref.alone(model, s)[0] for s in samples], expected, tolerance=tolerance)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--fixture")
    parser.add_argument("--adapter")
    args = parser.parse_args()
    if args.fixture:
        good = check_adapter(args.folder, args.fixture, args.adapter) if args.adapter else check_model(args.folder, args.fixture)
        sys.exit(not good)
    results = []
    for name in sorted(os.listdir(args.folder)):
        path = os.path.join(args.folder, name)
        base = name.split("+")[0].removesuffix("-whole").removesuffix("-shards")
        if os.path.isdir(os.path.join(seq2seq_ref.ROOT, base)):
            results.append(check_text_pair(path, name if "+" in name else base))
        elif name.endswith("-merged"):
            results.append(check_merged(path, *name.removesuffix("-merged").split("+")))
        elif "+" in name:
            results.append(check_adapter(path, *name.split("+")))
        elif name.endswith(("-whole", "-shards")):
            results.append(check_model(path, name.rsplit("-", 1)[0]))
    print(f"{sum(results)} of {len(results)} folders agree")
    sys.exit(not results or not all(results))


if __name__ == "__main__":
    main()
