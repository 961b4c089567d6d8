"""What the reference classes of Qwen2-VL, Qwen2.5-VL and Qwen3-VL take for the samples of fixtures/models: positions and grids."""

import torch

IMAGE, VIDEO, START, END, PAD, EOS = 310, 311, 312, 313, 314, 315


def mrope(config, ids, visuals):
    """Positions [3, tokens] as the published code counts them, and whether transformers 5.23 would count the same."""
    if is_onevision(config):
        return torch.arange(len(ids)).expand(3, -1), True
    vision = config.vision_config
    merge, rate = vision.spatial_merge_size, getattr(vision, "tokens_per_second", None)
    if config.model_type == "qwen3_vl":
        # Every step of a clip stands by itself.
        visuals = [{**v, "is_video": False, "grid": [1, *v["grid"][1:]]} for v in visuals for _ in range(v["grid"][0])]
    out, at, seen, same = [[], [], []], 0, iter(visuals), True
    i = 0
    while i < len(ids):
        if ids[i] not in (IMAGE, VIDEO):
            for axis in out:
                axis.append(at)
            at, i = at + 1, i + 1
            continue
        v = next(seen)
        t, h, w = v["grid"][0], v["grid"][1] // merge, v["grid"][2] // merge
        largest = at
        for k in range(t):
            if v["is_video"] and rate is not None:
                step = int((torch.tensor(k) * (rate * torch.tensor(v["seconds_per_grid"]))).long())
            else:
                step = k
            for y in range(h):
                for x in range(w):
                    out[0].append(at + step)
                    out[1].append(at + y)
                    out[2].append(at + x)
            largest = max(largest, at + step)
        largest = max(largest, at + h - 1, at + w - 1)
        same &= largest + 1 == at + max(h, w)
        at, i = largest + 1, i + t * h * w
    return torch.tensor(out), same


def inputs_of(config, sample, ids=None):
    """What the reference takes: images and clips apart, positions as counted here."""
    ids = sample["ids"] if ids is None else ids
    positions, same = mrope(config, ids, sample["visuals"])
    out = {"input_ids": torch.tensor([ids])}
    if not is_onevision(config):
        out["position_ids"] = positions[:, None]
    for name, grid, is_video in (("pixel_values", "image_grid_thw", False), ("pixel_values_videos", "video_grid_thw", True)):
        mine = [(p, v) for p, v in zip(sample.get("patches", []), sample["visuals"]) if v["is_video"] == is_video]
        if mine:
            out[name] = torch.cat([p for p, _ in mine])
            out[grid] = torch.tensor([v["grid"] for _, v in mine])
    return out, same


def disk_name(name):
    return name.replace("model.language_model.", "language_model.model.") if name.startswith("model.language") else (
        "language_model.lm_head.weight" if name == "lm_head.weight" else name.removeprefix("model."))


def is_qwen_vl(config):
    """Whether samples come with grids and patches: LLaVA-OneVision-1.5 takes the same."""
    return config.model_type in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl") or is_onevision(config)


def is_onevision(config):
    return config.model_type in ("llavaonevision1_5", "llava_onevision1_5")


def model_class(config):
    import transformers

    if is_onevision(config):
        from onevision1_5_ref import OneVision15ForConditionalGeneration

        return OneVision15ForConditionalGeneration
    return getattr(transformers, config.architectures[0])


def parted(sample):
    """A sample as stored, with its patches parted by image and clip."""
    out, at = [], 0
    for v in sample["visuals"]:
        count = v["grid"][0] * v["grid"][1] * v["grid"][2]
        out.append(sample["pixels"][at : at + count])
        at += count
    return {**sample, "patches": out}
