"""Reads with transformers what `vidtune export --to-hf` made of fixtures/models/original_*, and compares with the reference.

    target/debug/vidtune export --model fixtures/models/NAME --to-hf OUT
    python tools/oracle/check_export.py NAME OUT

Ids and pixels come from LlavaProcessor, logits from LlavaForConditionalGeneration; both are compared with what encoders_ref.py
stored: every id but the placeholder's, pixel values to the bit, logits of the rows that the original has to 1e-4 of their scale.
"""

import json
import os
import sys

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

import common


def main(name, out):
    folder = os.path.join(common.FIXTURES, name)
    processor = AutoProcessor.from_pretrained(out)
    model, info = LlavaForConditionalGeneration.from_pretrained(out, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[key], (key, info[key])
    stored = load_file(os.path.join(folder, "expected.safetensors"))
    with open(os.path.join(folder, "expected.json")) as f:
        samples = json.load(f)["samples"]
    with open(os.path.join(folder, "samples.json")) as f:
        messages = json.load(f)
    image = model.config.image_token_id
    with open(os.path.join(folder, "expected.json")) as f:
        stride = json.load(f).get("logits_stride", 1)
    for i, (sample, record) in enumerate(zip(samples, messages)):
        parts = [p for m in record["messages"] for p in m["content"] if p["type"] != "text"]
        files = [f for p in parts for f in ([p["path"]] if p["type"] == "image" else p["video"])]
        images = [Image.open(os.path.join(folder, f)).convert("RGB") for f in files]
        inputs = processor(text=[sample["text"]], images=images or None, return_tensors="pt")
        wanted = stored[f"sample{i}.input_ids"]
        assert torch.equal(inputs["input_ids"][0], torch.where(wanted < 0, image, wanted)), f"ids of sample {i}"
        if files:
            assert torch.equal(inputs["pixel_values"].flatten(), stored[f"sample{i}.pixel_values"].flatten()), f"pixels of sample {i}"
        with torch.no_grad():
            logits = model(**{k: v for k, v in inputs.items() if k in ("input_ids", "pixel_values")}).logits[0]
        theirs = stored[f"sample{i}.logits"]
        off = float((logits[::stride, : theirs.shape[1]] - theirs).abs().max() / theirs.std())
        assert off < 1e-4, (i, off)
        turns = [{"role": m["role"], "content": [p if p["type"] == "text" else {"type": "image"} for p in m["content"]
                                                for _ in range(len(p.get("video", [0])))]} for m in record["messages"]]
        rendered = processor.apply_chat_template(turns) if processor.chat_template else None
        print(f"{name}, sample {i}: {wanted.numel()} ids equal, logits off by {off:.1e}; template {'as ours' if rendered == sample['text'] else 'differs'}")
        if rendered not in (None, sample["text"]):
            print(repr(rendered), repr(sample["text"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
