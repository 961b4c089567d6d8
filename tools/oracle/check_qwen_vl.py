"""Whole checkpoints of Qwen3-VL and LLaVA-OneVision-1.5 through the `vidtune` binary, beside their references. A manual check.

    python tools/oracle/check_qwen_vl.py --vidtune target/debug/vidtune --out /tmp/checked

Makes a tiny checkpoint with the processor files of fixtures/data/qwen_vl, then from records with pictures and clips on: the
loss of every record (`score`), greedy continuations (`generate`), and an adapter after four steps (`train`), which peft
loads and scores again. Decoding, frames, times in the text, patches and positions all take part.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys

import torch
from transformers import AutoConfig, AutoProcessor

import common
from common import IGNORE, write_json
from data_qwen_vl import CASES, FIXTURES, OUT, encode, expect, for_transformers, frames_of
from models_ref import load_model, nll_of
from qwen_inputs import model_class

PROCESSOR_FILES = ("chat_template.jinja", "preprocessor_config.json", "video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
TEXT = {
    "hidden_size": 48, "intermediate_size": 72, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 3, "vocab_size": 352,
}

# The processor's files, and the model that goes with them.
FAMILIES = {
    "qwen3": {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "tie_word_embeddings": True,
        "text_config": {"model_type": "qwen3_vl_text", "rope_theta": 5000000, "rope_scaling": {"mrope_interleaved": True, "mrope_section": [3, 3, 2], "rope_type": "default"}, **TEXT},
        "vision_config": {
            "model_type": "qwen3_vl", "depth": 3, "deepstack_visual_indexes": [0, 1], "hidden_size": 24, "intermediate_size": 40, "num_heads": 2, "num_position_embeddings": 49,
            "out_hidden_size": 48, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
    },
    "onevision1_5": {
        "architectures": ["LLaVAOneVision1_5_ForConditionalGeneration"], "model_type": "llavaonevision1_5",
        "text_config": {"model_type": "LLaVAOneVision1_5_text", "rope_theta": 1000000.0, **TEXT},
        "vision_config": {
            "model_type": "rice_vit", "depth": 2, "hidden_size": 24, "intermediate_size": 40, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "text_hidden_size": 48,
        },
    },
}  # fmt: skip


def checkpoint(family, folder):
    """The checkpoint and its processor."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    source = os.path.join(OUT, family)
    for file in PROCESSOR_FILES:
        if os.path.exists(os.path.join(source, file)):
            shutil.copy(os.path.join(source, file), folder)
    with open(os.path.join(source, "config.json")) as f:
        stored = json.load(f)
    config = FAMILIES[family] | {k: stored[k] for k in ("image_token_id", "video_token_id")}
    # transformers knows the processor of LLaVA-OneVision-1.5 as that of Qwen2.5-VL alone.
    write_json(os.path.join(folder, "config.json"), stored | ({"model_type": "qwen2_5_vl"} if "qwen" not in family else {}))
    processor = AutoProcessor.from_pretrained(folder)
    write_json(os.path.join(folder, "config.json"), config)
    config = AutoConfig.from_pretrained(folder)
    model = model_class(config)(config).float()
    common.fill_weights(model, 900)
    model.save_pretrained(os.path.join(folder, "tmp"))
    shutil.move(os.path.join(folder, "tmp", "model.safetensors"), folder)
    shutil.rmtree(os.path.join(folder, "tmp"))
    return processor


def records_for_us(family, path):
    """The records of the fixture with what is asked of clips beside each clip."""
    records = []
    for i, record in enumerate(CASES[family]["records"]):
        messages = []
        for m in record["messages"]:
            parts = []
            for p in m["content"]:
                if p["type"] == "video" and not isinstance(p["video"], list):
                    given = record.get("options", {})
                    p = p | ({"nframes": given["num_frames"]} if "num_frames" in given else {}) | ({"fps": given["fps"]} if "fps" in given else {})
                parts.append(p)
            messages.append({"role": m["role"], "content": parts})
        records.append({"id": f"r{i}", "messages": messages})
    write_json(path, records)


def inputs(out):
    keep = ("input_ids", "pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw", "mm_token_type_ids")
    return {k: out[k] for k in keep if k in out}


def losses(family, model, processor):
    found, one_by_one = [], "qwen" not in family
    for record in CASES[family]["records"]:
        out, _ = encode(processor, record, one_by_one)
        labels = torch.tensor([expect(processor, record, one_by_one)["labels"]])
        given = inputs(out)
        if one_by_one:
            given.pop("mm_token_type_ids", None)
        with torch.no_grad():
            logits = model(**given).logits
        found.append(float(nll_of(logits, labels).sum() / (labels[:, 1:] != IGNORE).sum()))
    return found


def continuation(family, model, processor, parts, count):
    """Greedy, by whole forward passes."""
    one_by_one = "qwen" not in family
    given = for_transformers([{"role": "user", "content": parts}], (lambda name: frames_of(name, 3)) if one_by_one else None)
    kwargs, own = {} if one_by_one else {"num_frames": 3}, processor.video_processor.fps
    processor.video_processor.fps = None
    out = processor.apply_chat_template(given, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt", processor_kwargs=kwargs)
    processor.video_processor.fps = own
    given, new = inputs(out), []
    for _ in range(count):
        extra = {}
        if "mm_token_type_ids" in given:
            kinds = given.pop("mm_token_type_ids")
            if not one_by_one:
                extra = {"mm_token_type_ids": torch.cat([kinds, torch.zeros(1, given["input_ids"].shape[1] - kinds.shape[1], dtype=kinds.dtype)], 1)}
        with torch.no_grad():
            new.append(int(model(**given, **extra).logits[0, -1].argmax()))
        given["input_ids"] = torch.cat([given["input_ids"], torch.tensor([[new[-1]]])], 1)
        if extra:
            given["mm_token_type_ids"] = extra["mm_token_type_ids"]
    return new


def vidtune(binary, *args):
    done = subprocess.run([binary, *args], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"vidtune {' '.join(args)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def scores(binary, data, out, *model):
    vidtune(binary, "score", *model, "--data", data, "--media-dir", FIXTURES, "--dtype", "f32", "--out", out)
    with open(out) as f:
        return [json.loads(line)["loss"] for line in f]


def worst(ours, theirs):
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs))


def check(family, binary, root):
    folder, data = os.path.join(root, family), os.path.join(root, f"{family}.json")
    processor = checkpoint(family, folder)
    records_for_us(family, data)
    model = load_model(folder)
    plain = losses(family, model, processor)
    scored = worst(scores(binary, data, os.path.join(root, "scores.jsonl"), "--model", folder), plain)

    clip, picture = "media/clips/h264_gop12.mp4", "data/images/1.png"
    same = []
    for flag, name, part in (("--video", clip, {"type": "video", "video": clip}), ("--image", picture, {"type": "image", "image": picture})):
        frames = ["--num-frames", "3"] if flag == "--video" else []
        ours = json.loads(vidtune(binary, "generate", "--model", folder, flag, os.path.join(FIXTURES, name), *frames, "--prompt", "What is moving?",
                                  "--max-new-tokens", "10", "--temperature", "0", "--dtype", "f32", "--json"))["token_ids"]  # fmt: skip
        theirs = continuation(family, model, processor, [part, {"type": "text", "text": "What is moving?"}], 10)
        same.append(ours == theirs[: len(ours)] and (len(ours) == 10 or ours[-1] == processor.tokenizer.eos_token_id))
        if not same[-1]:
            print(ours, theirs)

    run = os.path.join(root, f"{family}-run")
    shutil.rmtree(run, ignore_errors=True)
    with open(run + ".yaml", "w") as f:
        f.write(
            f"model: {{path: {folder}, dtype: f32}}\n"
            "method: {kind: lora, lora: {r: 4, lora_alpha: 8, target_modules: [q_proj, v_proj, down_proj]}, also_train: [projector]}\n"
            f"data: {{train: [{{path: {data}, format: messages, media_dir: {FIXTURES}}}]}}\n"
            f"train: {{output_dir: {run}, max_steps: 4, per_device_train_batch_size: 2, learning_rate: 0.003}}\n"
        )
    vidtune(binary, "plan", run + ".yaml")
    vidtune(binary, "train", run + ".yaml")
    from peft import PeftModel

    final = os.path.join(run, "final_model")
    tuned = losses(family, PeftModel.from_pretrained(load_model(folder), final).eval(), processor)
    back = worst(scores(binary, data, os.path.join(root, "tuned.jsonl"), "--model", folder, "--adapter", final), tuned)
    with open(os.path.join(run, "metrics.jsonl")) as f:
        steps = [line["loss"] for line in map(json.loads, f) if "grad_norm" in line]
    good = scored < 2e-5 and all(same) and back < 2e-5 and len(steps) == 4 and worst(tuned, plain) > 1e-2
    print(f"{'ok' if good else 'DIFFERS':8} {family}: {len(tuned)} records within {scored:.1e}, continuations the same: {same}, "
          f"steps {[round(s, 3) for s in steps]}, read back by peft within {back:.1e}")  # fmt: skip
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vidtune", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("families", nargs="*")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    results = [check(family, args.vidtune, args.out) for family in args.families or FAMILIES]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
