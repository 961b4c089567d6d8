"""Tiny LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision checkpoints of fixtures/models and what transformers computes with them.

    python tools/oracle/models_llava_next.py [folder ...]

Ids and pictures are made here, so that these folders show the model alone; how many tiles and tokens an image has is asked
of the reference's own functions. What the processors make of files is shown by fixtures/data. Layout: fixtures/models/README.md.
"""

import copy
import os
import shutil
import sys

import torch

import common
from common import IGNORE, put, save_tensors, write_json
from models_ref import nll_of, nudged
from next_inputs import EOS, IMAGE, PAD, VIDEO, inputs_of

VOCAB = 128


def image(height, width):
    """An image cut into tiles."""
    return {"is_video": False, "source_size": [height, width]}


def single(height, width):
    """One of several images of a record of LLaVA-OneVision."""
    return {"is_video": False, "source_size": [height, width], "tiles": 1}


def clip(frames):
    return {"is_video": True, "source_size": [0, 0], "tiles": frames}


def clip_vision(**changes):
    return {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 24,
        "patch_size": 6, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 16, "vocab_size": 32000, **changes,
    }


def siglip_vision(**changes):
    return {
        "model_type": "siglip_vision_model", "hidden_size": 30, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 15,
        "patch_size": 5, "vision_use_head": False, **changes,
    }


def text(model_type, **changes):
    return {
        "model_type": model_type, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": VOCAB, "bos_token_id": PAD, "eos_token_id": EOS, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, **changes,
    }


def tokens(model_type):
    name = {"llava_next": "LlavaNext", "llava_next_video": "LlavaNextVideo", "llava_onevision": "LlavaOnevision"}[model_type]
    both = {"image_token_index": IMAGE, **({} if model_type == "llava_next" else {"video_token_index": VIDEO})}
    return {"architectures": [f"{name}ForConditionalGeneration"], "model_type": model_type, "ignore_index": -100, **both}


# Per sample: numbers are so many words, objects are what is seen; the last words are the answer.
SPECS = {}

# As on the hub: CLIP's layer -2 without its class token, means of 2 x 2, Llama with the linear scaling of later copies.
SPECS["llava_next_video_hub"] = {
    "seed": 601,
    "config": {
        **tokens("llava_next_video"), "image_grid_pinpoints": [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]], "image_seq_length": 16, "video_seq_length": 288,
        "projector_hidden_act": "gelu", "spatial_pool_mode": "average", "spatial_pool_stride": 2, "tie_word_embeddings": False, "use_image_newline_parameter": True,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vision_config": clip_vision(),
        "text_config": text("llama", rope_scaling={"type": "linear", "factor": 2.5}),
    },
    "samples": [[5, image(40, 30), 9], [3, clip(3), 4, image(24, 70), 8], [11, 6], [2, image(90, 20), 1, clip(2), 2, image(17, 17), 1, clip(2), 7]],
    "sensitivity": [("vision_feature_layer", -1), ("spatial_pool_mode", "max"), ("text_config.rope_parameters", {"factor": 2.0})],
}

# Files of transformers 5; SigLIP with two layers side by side, an odd grid whose edge the largest values leave out, tied Mistral
# with a window, the rope scaling of early copies at its wrong place.
SPECS["llava_next_video_max"] = {
    "seed": 602,
    "spelling": "transformers5",
    "config": {
        **tokens("llava_next_video"), "image_grid_pinpoints": [[35, 70], [70, 105], [105, 35]], "rope_scaling": {"type": "linear", "factor": 2.5},
        "projector_hidden_act": "relu", "multimodal_projector_bias": False, "spatial_pool_mode": "max", "vision_feature_layer": [-1, -3],
        "vision_feature_select_strategy": "full", "vision_config": siglip_vision(image_size=35, patch_size=7, num_hidden_layers=2, layer_norm_eps=2e-3),
        "text_config": text("mistral", hidden_size=36, num_attention_heads=3, num_key_value_heads=1, head_dim=10, sliding_window=40, tie_word_embeddings=True),
    },
    "samples": [[4, clip(2), 6], [2, image(50, 61), 5, clip(1), 6], [9, 4], [1, image(200, 33), 5]],
    "sensitivity": [("spatial_pool_mode", "average"), ("vision_feature_layer", [-3, -1])],
}

# A learned pooling of 3 x 3, a grid of 7 from pictures that leave a remainder, Qwen2 with biases, a positive layer; bf16.
SPECS["llava_next_video_conv"] = {
    "seed": 603,
    "disk_dtype": "bfloat16",
    "config": {
        **tokens("llava_next_video"), "image_grid_pinpoints": [[30, 60], [60, 30]], "spatial_pool_mode": "conv", "spatial_pool_stride": 3,
        "vision_feature_layer": 1, "vision_config": clip_vision(image_size=30, patch_size=4, hidden_size=24, num_attention_heads=3, num_hidden_layers=2),
        "text_config": text("qwen2", num_hidden_layers=1, num_attention_heads=6, num_key_value_heads=3, hidden_size=60),
    },
    "samples": [[4, clip(3), 6], [2, image(31, 50), 3, clip(2), 5], [7, 4]],
    "sensitivity": [("text_config.rope_parameters", {"rope_theta": 5000.0})],
}

# As on the hub: SigLIP's last layer whole, Qwen2; grids shrunk to two tiles, and some just below; halves of an odd grid; records of several images.
SPECS["llava_onevision_hub"] = {
    "seed": 604,
    "config": {
        **tokens("llava_onevision"), "image_grid_pinpoints": [[15 * h, 15 * w] for h in range(1, 4) for w in range(1, 5)], "projector_hidden_act": "gelu",
        "tie_word_embeddings": False, "use_image_newline_parameter": True, "vision_aspect_ratio": "anyres_max_2", "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full", "vision_config": siglip_vision(), "text_config": text("qwen2", rope_theta=1000000.0),
    },
    "samples": [
        [5, image(44, 58), 9],
        [3, clip(3), 4, image(30, 14), 8],
        [11, 6],
        [2, single(40, 20), 1, single(15, 15), 2, clip(2), 1, clip(2), 3, single(9, 50), 7],
        [2, image(29, 29), 3, image(10, 90), 6],
    ],
    "sensitivity": [("vision_feature_layer", -2), ("text_config.rope_parameters", {"rope_theta": 10000.0})],
}

# Files of transformers 5; CLIP without its class token, an even grid, tied Llama with three heads of 14, one tile at most.
SPECS["llava_onevision_clip_tied"] = {
    "seed": 605,
    "spelling": "transformers5",
    "config": {
        **tokens("llava_onevision"), "image_grid_pinpoints": [[24, 24], [24, 72], [48, 48], [72, 24]], "vision_aspect_ratio": "anyres_max_1",
        "multimodal_projector_bias": False, "projector_hidden_act": "gelu_pytorch_tanh", "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "vision_config": clip_vision(num_hidden_layers=2, hidden_act="gelu"),
        "text_config": text("llama", hidden_size=42, num_attention_heads=3, num_key_value_heads=3, head_dim=10, attention_bias=True, tie_word_embeddings=True),
    },
    "samples": [[4, image(33, 60), 6], [2, single(21, 40), 3, single(24, 24), 5], [3, clip(2), 6], [9, 4]],
    "sensitivity": [("projector_hidden_act", "relu")],
}

# Class defaults where these are small: the aspect ratio, the layer, the strategy, families of tower and decoder; the tower keeps its head.
SPECS["llava_onevision_defaults"] = {
    "seed": 606,
    "config": {
        **tokens("llava_onevision"), "image_grid_pinpoints": [[12 * h, 12 * w] for h in range(1, 7) for w in range(1, 7)],
        "vision_config": {"hidden_size": 24, "intermediate_size": 28, "num_hidden_layers": 1, "image_size": 12, "patch_size": 6},
        "text_config": {"hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 1, "vocab_size": VOCAB},
    },
    "samples": [[4, image(70, 71), 6], [2, clip(4), 5], [9, 4]],
    "sensitivity": [("text_config.rms_norm_eps", 1e-2)],
}

# Images alone, before Mistral.
SPECS["llava_next_mistral"] = {
    "seed": 607,
    "config": {
        **tokens("llava_next"), "image_grid_pinpoints": [[24, 48], [48, 24], [48, 48]], "image_seq_length": 16, "vision_config": clip_vision(num_hidden_layers=2),
        "text_config": text("mistral", num_hidden_layers=1, tie_word_embeddings=True, rope_theta=1000000.0, sliding_window=None),
    },
    "samples": [[5, image(40, 60), 9], [3, image(24, 70), 4, image(60, 10), 8], [11, 6]],
    "sensitivity": [("text_config.rope_parameters", {"rope_theta": 10000.0})],
}


def model_class(config):
    import transformers

    return getattr(transformers, config.architectures[0])


def num_pictures(model, part):
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    if "tiles" in part:
        return part["tiles"]
    return image_size_to_num_patches(part["source_size"], model.config.image_grid_pinpoints, model.config.vision_config.image_size)


def features_of(model, pictures, visual):
    """What the reference makes of one image or clip alone."""
    with torch.no_grad():
        if visual["is_video"]:
            return model.model.get_video_features(pictures[None]).pooler_output.reshape(-1, model.config.text_config.hidden_size)
        more = {}
        if visual["grid"][0] == 1:
            # Two of them, so that neither is cut into tiles.
            more, pictures, sizes = {"batch_num_images": torch.tensor([2])}, torch.stack([pictures, pictures]), [visual["source_size"]] * 2
        else:
            pictures, sizes = pictures[None], [visual["source_size"]]
        return model.model.get_image_features(pictures, torch.tensor(sizes), **more).pooler_output[0]


def sample_of(spec, model, index, parts):
    rng = torch.Generator().manual_seed(spec["seed"] * 100 + index)
    vision = model.config.vision_config
    grid = vision.image_size // vision.patch_size
    ids, visuals, patches, features = [], [], [], []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(0, 115, (part,), generator=rng).tolist()
            continue
        count = num_pictures(model, part)
        visual = {"is_video": part["is_video"], "grid": [count, grid, grid], "source_size": part["source_size"], "seconds_per_grid": 0.0}
        pictures = torch.randn(count, 3, vision.image_size, vision.image_size, generator=rng)
        features.append(features_of(model, pictures, visual))
        ids += [VIDEO if part["is_video"] else IMAGE] * len(features[-1])
        visuals.append(visual)
        patches.append(pictures)
    answer = parts[-1]
    labels = [IGNORE] * (len(ids) - answer) + ids[-answer:]
    return {"ids": ids, "labels": labels, "visuals": visuals, "patches": patches, "features": features}


class BadLuck(Exception):
    """A continuation with a placeholder in it, or one that rounding decides."""


def greedy(model, sample, cut, count):
    """Continuation by whole forward passes."""
    ids, gaps = sample["ids"][:cut], []
    for _ in range(count):
        with torch.no_grad():
            logits = model(**inputs_of(model.config, sample, ids)).logits[0, -1]
        top = logits.topk(2)
        gaps.append(float(top.values[0] - top.values[1]))
        ids = ids + [int(top.indices[0])]
        if ids[-1] in (IMAGE, VIDEO) or gaps[-1] < 2e-3:
            raise BadLuck
    return ids[cut:], min(gaps)


def write_weights(spec, folder, model):
    dtype = getattr(torch, spec.get("disk_dtype", "float32"))
    if spec.get("spelling") == "transformers5":
        model.save_pretrained(folder)
        return
    spell = common.disk_name(model)
    save_tensors(os.path.join(folder, "model.safetensors"), {spell(n): p.detach().to(dtype) for n, p in model.named_parameters()})


def sensitivity(spec, model, samples, all_logits):
    out = {}
    for path, value in spec["sensitivity"]:
        wrong = type(model)._from_config(nudged(model.config, path, value), attn_implementation="eager", dtype=torch.float32)
        wrong.load_state_dict(model.state_dict(), strict=True)
        wrong.eval()
        moved = 0.0
        for s, logits in zip(samples, all_logits):
            with torch.no_grad():
                got = wrong(**inputs_of(wrong.config, s)).logits[0]
            moved = max(moved, float((got - logits).abs().max() / logits.std()))
        out[f"{path} = {value}"] = moved
        assert moved > 5e-4, f"reading `{path}` as {value} would go unseen: {moved:.1e}"
    return out


def make(name):
    from safetensors.torch import load_file
    from transformers import AutoConfig

    spec = SPECS[name]
    folder = os.path.join(common.FIXTURES, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    write_json(os.path.join(folder, "config.json"), spec["config"])
    config = AutoConfig.from_pretrained(folder)
    build = model_class(config)
    model = build(config).float()
    common.fill_weights(model, spec["seed"])
    write_weights(spec, folder, model)
    model, loading = build.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
    model.eval()
    spell = common.disk_name(model)

    samples = [sample_of(spec, model, i, parts) for i, parts in enumerate(spec["samples"])]
    out, info, all_logits = {}, {"samples": []}, []
    for i, s in enumerate(samples):
        with torch.no_grad():
            logits = model(**inputs_of(model.config, s)).logits
        out[f"sample{i}.input_ids"] = torch.tensor(s["ids"])
        out[f"sample{i}.labels"] = torch.tensor(s["labels"])
        if s["patches"]:
            out[f"sample{i}.pixel_values"] = torch.cat(s["patches"])
        out[f"sample{i}.logits"] = logits[0].clone()
        out[f"sample{i}.nll"] = nll_of(logits, torch.tensor([s["labels"]]))[0].clone()
        all_logits.append(logits[0])
        info["samples"].append({"id": f"sample{i}", "visuals": s["visuals"], "num_tokens": len(s["ids"]), "num_supervised": sum(l != IGNORE for l in s["labels"][1:])})
    out["batch.features"] = torch.cat([f for s in samples for f in s["features"]])

    # Loss over all samples, each in a pass of its own: no padding takes part.
    model.zero_grad(set_to_none=True)
    count = sum(l != IGNORE for s in samples for l in s["labels"][1:])
    total = 0.0
    for s in samples:
        loss = nll_of(model(**inputs_of(model.config, s)).logits, torch.tensor([s["labels"]])).sum() / count
        loss.backward()
        total += float(loss.detach())
    out["batch.loss"] = torch.tensor([total])
    unreached = []
    for n, p in model.named_parameters():
        if p.grad is None:
            unreached.append(spell(n))
        else:
            put(out, "grad", spell(n), p.grad)

    info["greedy"] = []
    for which in (0, len(samples) - 2):
        s = samples[which]
        cut = len(s["ids"]) - spec["samples"][which][-1]
        new, gap = greedy(model, s, cut, 12)
        info["greedy"].append({"sample": which, "text": f"sample {which}", "input_ids": s["ids"][:cut], "images": [], "new_ids": new, "smallest_gap": gap})

    moved = sensitivity(spec, model, samples, all_logits)
    on_disk = load_file(os.path.join(folder, "model.safetensors"))
    names = {n: {"shape": list(t.shape), "dtype": "BF16" if t.dtype == torch.bfloat16 else "F32", "file": "model.safetensors"} for n, t in on_disk.items()}
    info.update({
        "versions": common.versions(), "seed": spec["seed"], "spelling": spec.get("spelling", "hub"), "loss": total, "num_supervised": count,
        "logits_std": float(torch.cat(all_logits).std()), "sensitivity": moved, "no_gradient": sorted(unreached), "zero_gradient": zero_gradient(model, spell),
        "gradient_noise": {}, "tensors_on_disk": names, "parameters": {spell(n): list(p.shape) for n, p in model.named_parameters()},
    })
    save_tensors(os.path.join(folder, "expected.safetensors"), out)
    write_json(os.path.join(folder, "expected.json"), info)
    generated = os.path.join(folder, "generation_config.json")
    if os.path.exists(generated):
        os.remove(generated)
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(folder) for f in fs)
    print(f"{name}: {size / 1e3:.0f} kB, loss {total:.4f} over {count}, logits std {info['logits_std']:.2f}, tokens {[len(s['ids']) for s in samples]}, "
          f"gaps {[round(g['smallest_gap'], 3) for g in info['greedy']]}, unreached {len(unreached)}, {moved}", flush=True)


def zero_gradient(model, spell):
    """Key biases without rotary positions: zero by mathematics."""
    return sorted(spell(n) for n, p in model.named_parameters() if "vision_tower" in n and n.endswith("k_proj.bias") and p.grad is not None)


if __name__ == "__main__":
    for name in sys.argv[1:] or SPECS:
        while True:
            try:
                make(name)
                break
            except BadLuck:
                SPECS[name]["seed"] += 10
