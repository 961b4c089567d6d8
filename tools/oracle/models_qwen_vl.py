"""Tiny Qwen2-VL and Qwen2.5-VL checkpoints of fixtures/models and what transformers computes with them.

    python tools/oracle/models_qwen_vl.py [folder ...]

Ids, patches and grids are made here, so that these folders show the model alone; what the processors make of files
is shown by fixtures/data. Layout: fixtures/models/README.md; every sample also has its `visuals`.

Positions are counted here as the published code counts them (text goes on after the largest position of a clip) and
given to the reference; where transformers 5.23 counts the same, which is noted, its own are checked against ours.
"""

import math
import os
import shutil
import sys

import torch

import common
from common import IGNORE, put, save_tensors, write_json
from models_ref import nll_of
from qwen_inputs import END, EOS, IMAGE, PAD, START, VIDEO, disk_name, inputs_of, is_onevision, model_class, mrope

VOCAB = 320


def text_config(**changes):
    return {
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 48, "intermediate_size": 80, "max_position_embeddings": 4096,
        "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}, "sliding_window": 4096, "max_window_layers": 2,
        "use_sliding_window": False, "tie_word_embeddings": False, "vocab_size": VOCAB, "bos_token_id": PAD, "eos_token_id": EOS, **changes,
    }


def tokens(**changes):
    return {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END, **changes}


def image(h, w):
    return {"is_video": False, "grid": [1, h, w], "seconds_per_grid": 0.0}


def video(t, h, w, seconds):
    return {"is_video": True, "grid": [t, h, w], "seconds_per_grid": seconds}


# Per sample: numbers are so many words, objects are what is seen; the last words are the answer.
SPECS = {}

# Qwen2.5-VL as on the hub: decoder fields at the top level, windows of 2 x 2 tokens, full attention in one of three blocks.
SPECS["qwen2_5_vl_hub"] = {
    "seed": 501,
    "config": {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", **tokens(), **text_config(), "vision_token_id": 316,
        "vision_config": {
            "depth": 3, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 44, "num_heads": 2, "in_chans": 3, "out_hidden_size": 48, "patch_size": 4,
            "spatial_merge_size": 2, "spatial_patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2, "temporal_patch_size": 2,
        },
    },
    "samples": [
        [5, image(6, 10), 9],
        [3, video(4, 4, 6, 1.0), 4, image(2, 2), 8],
        [11, 6],
        [2, image(10, 4), 1, image(4, 4), 2, video(1, 6, 2, 1.0), 7],
    ],
    "sensitivity": [("vision_config.window_size", 24), ("vision_config.fullatt_block_indexes", [2]), ("vision_config.tokens_per_second", 4)],
}

# Files as transformers 5 writes them; three heads, a tied head, merge 3, temporal patch 1, odd windows, times that are no whole numbers.
SPECS["qwen2_5_vl_tied"] = {
    "seed": 502,
    "spelling": "transformers5",
    "config": {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", **tokens(), "tie_word_embeddings": True,
        "text_config": {
            **text_config(num_attention_heads=3, num_key_value_heads=1, hidden_size=60, intermediate_size=56, num_hidden_layers=1, rms_norm_eps=1e-5,
                rope_scaling={"type": "mrope", "mrope_section": [4, 1, 5]}, tie_word_embeddings=True), "model_type": "qwen2_5_vl_text",
        },
        "vision_config": {
            "model_type": "qwen2_5_vl_vision", "depth": 2, "hidden_act": "silu", "hidden_size": 24, "intermediate_size": 30, "num_heads": 3, "in_channels": 3,
            "out_hidden_size": 60, "patch_size": 3, "spatial_merge_size": 3, "window_size": 28, "fullatt_block_indexes": [0], "tokens_per_second": 3, "temporal_patch_size": 1,
        },
    },
    "samples": [[4, video(5, 9, 6, 0.7), 6], [2, image(12, 3), 5, image(3, 15), 6], [9, 4]],
    "sensitivity": [("vision_config.window_size", 9), ("vision_config.tokens_per_second", 1)],
}

# Qwen2-VL as on the hub: LayerNorm, two layers with quick_gelu, no windows; time counts patches.
SPECS["qwen2_vl_hub"] = {
    "seed": 503,
    "config": {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", **tokens(), **text_config(num_key_value_heads=4),
        "vision_config": {
            "depth": 2, "embed_dim": 32, "hidden_act": "quick_gelu", "hidden_size": 48, "in_chans": 3, "mlp_ratio": 2, "num_heads": 4, "patch_size": 4,
            "spatial_merge_size": 2, "spatial_patch_size": 4, "temporal_patch_size": 2,
        },
    },
    "samples": [[5, image(6, 8), 9], [3, video(5, 4, 4, 1.0), 4, image(2, 6), 8], [11, 6]],
    "sensitivity": [("vision_config.hidden_act", "gelu")],
}

# Qwen2-VL with what its classes have as defaults left out, and plain gelu.
SPECS["qwen2_vl_defaults"] = {
    "seed": 504,
    "config": {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", **tokens(),
        "text_config": {
            "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": VOCAB,
            "bos_token_id": PAD, "eos_token_id": EOS, "rope_parameters": {"rope_type": "default", "mrope_section": [3, 2, 3]}, "model_type": "qwen2_vl_text",
        },
        "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 1, "hidden_act": "gelu", "patch_size": 5, "model_type": "qwen2_vl"},
    },
    "samples": [[5, image(4, 6), 9], [3, video(2, 6, 4, 1.0), 7], [11, 6]],
    "sensitivity": [("text_config.rms_norm_eps", 1e-2)],
}


def sample_of(spec, config, index, parts):
    rng = torch.Generator().manual_seed(spec["seed"] * 100 + index)
    vision = config.vision_config
    merge = vision.spatial_merge_size
    values = 3 * vision.temporal_patch_size * vision.patch_size**2
    ids, visuals, patches = [], [], []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(0, 300, (part,), generator=rng).tolist()
            continue
        count = math.prod(part["grid"])
        steps = part["grid"][0] if config.model_type == "qwen3_vl" and part["is_video"] else 1
        inner = [VIDEO if part["is_video"] else IMAGE] * (count // merge**2 // steps)
        if part["is_video"] and config.model_type == "qwen3_vl":
            # Each step has its time before it, and all of them the template's own tokens around them.
            clock = lambda: torch.randint(0, 300, (2,), generator=rng).tolist()
            inner = [i for _ in range(steps) for i in [*clock(), START, *inner, END]]
        ids += [START, *inner, END]
        visuals.append(part)
        patches.append(torch.randn(count, values, generator=rng))
    answer = parts[-1]
    labels = [IGNORE] * (len(ids) - answer) + ids[-answer:]
    return {"ids": ids, "labels": labels, "visuals": visuals, "patches": patches}


def check_positions(model, sample, positions):
    """The reference's own counting, where it does the same."""
    if is_onevision(model.config):
        return True  # It counts tokens, whatever they are.
    kinds = torch.tensor([[1 if i == IMAGE else 2 if i == VIDEO else 0 for i in sample["ids"]]])
    videos = [v for v in sample["visuals"] if v["is_video"]]
    images = [v for v in sample["visuals"] if not v["is_video"]]
    kwargs = {}
    if model.config.model_type == "qwen2_5_vl":
        kwargs["second_per_grid_ts"] = torch.tensor([v["seconds_per_grid"] for v in videos]) if videos else None
    own, _ = model.model.get_rope_index(
        torch.tensor([sample["ids"]]), kinds,
        image_grid_thw=torch.tensor([v["grid"] for v in images]) if images else None,
        video_grid_thw=torch.tensor([v["grid"] for v in videos]) if videos else None, **kwargs,
    )
    return torch.equal(own[:, 0], positions)


def greedy(model, sample, cut, count):
    """Continuation by whole forward passes, with positions counted anew each time."""
    ids, gaps = sample["ids"][:cut], []
    start = len(ids)
    for _ in range(count):
        with torch.no_grad():
            logits = model(**inputs_of(model.config, sample, ids)[0]).logits[0, -1]
        top = logits.topk(2)
        gaps.append(float(top.values[0] - top.values[1]))
        ids = ids + [int(top.indices[0])]
        assert ids[-1] not in (IMAGE, VIDEO)
    return ids[start:], min(gaps)


def make(name, spec):
    from transformers import AutoConfig

    folder = os.path.join(common.FIXTURES, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    write_json(os.path.join(folder, "config.json"), spec["config"])
    config = AutoConfig.from_pretrained(folder)
    build = model_class(config)
    model = build(config).float()
    common.fill_weights(model, spec["seed"])
    if spec.get("spelling") == "transformers5":
        model.save_pretrained(folder)
    else:
        model.save_pretrained(os.path.join(folder, "tmp"))
        shutil.move(os.path.join(folder, "tmp", "model.safetensors"), os.path.join(folder, "model.safetensors"))
        shutil.rmtree(os.path.join(folder, "tmp"))
    model, info_load = build.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True)
    assert not info_load["missing_keys"] and not info_load["unexpected_keys"], info_load
    model.eval()

    samples = [sample_of(spec, model.config, i, parts) for i, parts in enumerate(spec["samples"])]
    out, info, agree = {}, {"samples": []}, []
    all_logits = []
    for i, s in enumerate(samples):
        inputs, same = inputs_of(model.config, s)
        positions, _ = mrope(model.config, s["ids"], s["visuals"])
        own = check_positions(model, s, positions)
        assert own == same, (name, i, own, same)
        agree.append(same)
        with torch.no_grad():
            result = model(**inputs)
        out[f"sample{i}.input_ids"] = torch.tensor(s["ids"])
        out[f"sample{i}.labels"] = torch.tensor(s["labels"])
        if s["patches"]:
            out[f"sample{i}.pixel_values"] = torch.cat(s["patches"])
        out[f"sample{i}.positions"] = positions.T.contiguous()
        out[f"sample{i}.logits"] = result.logits[0].clone()
        out[f"sample{i}.nll"] = nll_of(result.logits, torch.tensor([s["labels"]]))[0].clone()
        all_logits.append(result.logits[0])
        info["samples"].append({"id": f"sample{i}", "visuals": s["visuals"], "positions_as_transformers_5": same,
            "num_tokens": len(s["ids"]), "num_supervised": sum(l != IGNORE for l in s["labels"][1:])})

    # The features of every image and clip, sample after sample, each alone.
    features = []
    for s in samples:
        for patches, v in zip(s["patches"], s["visuals"]):
            with torch.no_grad():
                features.append(model.model.visual(patches, grid_thw=torch.tensor([v["grid"]])).pooler_output)
    out["batch.features"] = torch.cat(features)

    # Loss over all samples, each in a pass of its own: no padding takes part.
    model.zero_grad(set_to_none=True)
    count = sum(l != IGNORE for s in samples for l in s["labels"][1:])
    total = 0.0
    for s in samples:
        logits = model(**inputs_of(model.config, s)[0]).logits
        loss = nll_of(logits, torch.tensor([s["labels"]])).sum() / count
        loss.backward()
        total += float(loss.detach())
    out["batch.loss"] = torch.tensor([total])
    unreached = []
    for n, p in model.named_parameters():
        if p.grad is None:
            unreached.append(disk_name(n))
        else:
            put(out, "grad", disk_name(n), p.grad)

    info["greedy"] = []
    for which in (0, len(samples) - 2):
        s = samples[which]
        cut = len(s["ids"]) - spec["samples"][which][-1]
        new, gap = greedy(model, s, cut, 12)
        info["greedy"].append({"sample": which, "text": f"sample {which}", "input_ids": s["ids"][:cut], "images": [], "new_ids": new, "smallest_gap": gap})

    scale = float(torch.cat(all_logits).std())
    sensitivity = {}
    for path, value in spec["sensitivity"]:
        import copy

        section, key = (path.split(".") + [None])[:2]
        wrong_config = copy.deepcopy(model.config)
        setattr(getattr(wrong_config, section), key, value)
        wrong = build(wrong_config).float()
        wrong.load_state_dict(model.state_dict())
        wrong.eval()
        wrong.set_attn_implementation("eager")
        moved = 0.0
        for s, logits in zip(samples, all_logits):
            with torch.no_grad():
                got = wrong(**inputs_of(wrong_config, s)[0]).logits[0]
            moved = max(moved, float((got - logits).abs().max() / logits.std()))
        sensitivity[f"{path} = {value}"] = moved
        assert moved > 5e-4, f"reading `{path}` as {value} would go unseen: {moved:.1e}"

    from safetensors.torch import load_file

    names = {n: {"shape": list(t.shape), "dtype": "F32", "file": "model.safetensors"} for n, t in load_file(os.path.join(folder, "model.safetensors")).items()}
    info.update({
        "versions": common.versions(), "seed": spec["seed"], "spelling": "hub", "loss": total, "num_supervised": count, "logits_std": scale,
        "sensitivity": sensitivity, "no_gradient": sorted(unreached), "zero_gradient": [], "gradient_noise": {}, "tensors_on_disk": names,
        "parameters": {disk_name(n): list(p.shape) for n, p in model.named_parameters()},
    })
    save_tensors(os.path.join(folder, "expected.safetensors"), out)
    write_json(os.path.join(folder, "expected.json"), info)
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(folder) for f in fs)
    print(f"{name}: {size / 1e3:.0f} kB, loss {total:.4f} over {count}, logits std {scale:.2f}, tokens {[len(s['ids']) for s in samples]}, "
          f"as transformers 5: {agree}, gaps {[round(g['smallest_gap'], 3) for g in info['greedy']]}, unreached {len(unreached)}, {sensitivity}")


if __name__ == "__main__":
    for name in sys.argv[1:] or SPECS:
        make(name, SPECS[name])
