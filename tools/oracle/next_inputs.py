"""What the reference classes of LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision take for the samples of fixtures/models."""

import torch

IMAGE, VIDEO, PAD, EOS = 120, 121, 122, 123
KINDS = ("llava_next", "llava_next_video", "llava_onevision")


def is_anyres(config):
    return config.model_type in KINDS


def parted(sample):
    """A sample as stored, with its pictures parted by image and clip."""
    out, at = [], 0
    for v in sample["visuals"]:
        out.append(sample["pixels"][at : at + v["grid"][0]])
        at += v["grid"][0]
    return {**sample, "patches": out}


def inputs_of(config, sample, ids=None):
    """Images, each padded to the same number of tiles, and clips, which must have one number of frames."""
    out = {"input_ids": torch.tensor([sample["ids"] if ids is None else ids])}
    pairs = list(zip(sample.get("patches", []), sample["visuals"]))
    images = [(p, v) for p, v in pairs if not v["is_video"]]
    clips = [p for p, v in pairs if v["is_video"]]
    if images:
        most = max(len(p) for p, _ in images)
        out["pixel_values"] = torch.stack([torch.cat([p, p.new_zeros(most - len(p), *p.shape[1:])]) for p, _ in images])
        out["image_sizes"] = torch.tensor([v["source_size"] for _, v in images])
        if config.model_type == "llava_onevision":
            # Several images of one record are not cut into tiles; given as many records, they are.
            alone = all(v["grid"][0] > 1 for _, v in images)
            assert alone or all(v["grid"][0] == 1 for _, v in images)
            out["batch_num_images"] = torch.tensor([1] * len(images) if alone else [len(images)])
    if clips:
        out["pixel_values_videos"] = torch.stack(clips)
    return out
