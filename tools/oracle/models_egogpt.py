"""Tiny EgoGPT checkpoints of fixtures/models and what the reference in egogpt.py computes with them.

    python tools/oracle/models_egogpt.py [folder ...]

Ids, pixels and spectrograms are made here, so that these folders show the model alone. Layout: fixtures/models/README.md;
every sample also has its `visuals` and `sample{i}.mel` f32 [windows, mels, frames].
"""

import copy
import os
import shutil
import sys

import torch

import common
import egogpt
from common import IGNORE, put, save_tensors, write_json
from models_ref import nll_of


def config(text, vision, speech, vocab=300, **changes):
    return {
        "architectures": ["EgoGPTQwenForCausalLM"], "model_type": "egogpt_qwen", "vocab_size": vocab, "bos_token_id": vocab - 2, "eos_token_id": vocab - 1,
        "hidden_act": "silu", "max_position_embeddings": 4096, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2, "use_cache": True,
        "attention_dropout": 0.0, "initializer_range": 0.02, "tokenizer_model_max_length": 4096, **text,
        "mm_vision_tower": "google/siglip-so400m-patch14-384", "mm_hidden_size": vision["hidden_size"], "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch", "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "use_mm_proj": True,
        "mm_resampler_type": None, "image_aspect_ratio": "pad", "speech_encoder": "large-v3.pt", "speech_encoder_type": "whisper",
        "speech_projector_type": "linear", "speech_encoder_hidden_size": speech["d_model"], "delay_load_audio": True,
        "unfreeze_mm_speech_encoder": False, "vision_config": {"model_type": "siglip_vision_model", **vision},
        "speech_config": {"model_type": "whisper", **speech}, **changes,
    }


image, video = {"is_video": False}, lambda t: {"is_video": True, "frames": t}
speech = lambda windows: {"windows": windows}

SPECS = {}

# As published: OpenAI's names, one newline behind a clip; an odd grid, states that are left over, placeholders beyond the vocabulary.
SPECS["egogpt_openai"] = {
    "seed": 601,
    "config": config(
        {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "rms_norm_eps": 1e-6,
         "rope_theta": 1000000.0, "tie_word_embeddings": False},
        {"hidden_size": 32, "intermediate_size": 44, "num_attention_heads": 2, "num_hidden_layers": 3, "image_size": 20, "patch_size": 4},
        {"d_model": 24, "encoder_attention_heads": 3, "encoder_ffn_dim": 96, "encoder_layers": 2, "num_mel_bins": 10, "max_source_positions": 12},
        image_token_index=301, speech_token_index=302, mm_projector_type="mlp2x_gelu", mm_patch_merge_type="spatial_unpad",
        speech_encoder_ds_rate=5, speech_projector_hidden_size=20,
    ),
    "samples": [
        [3, speech(1), 2, video(3), 8],
        [2, image, 4, speech(3), 1, speech(1), 9],
        [11, 6],
        [4, video(1), 2, image, 7],
        [1, speech(2), 5],
    ],
    "sensitivity": [("mm_newline_position", "no_token"), ("speech_config.encoder_attention_heads", 2), ("vision_config.num_attention_heads", 4), ("rope_theta", 10000.0)],
}

# Names of transformers inside the encoder, a newline after every row, a tied head, three layers between, another activation; bf16,
# the published width of the speech projector.
SPECS["egogpt_grid"] = {
    "seed": 602,
    "spelling": "transformers",
    "dtype": torch.bfloat16,
    "config": config(
        {"hidden_size": 40, "intermediate_size": 36, "num_attention_heads": 5, "num_key_value_heads": 1, "num_hidden_layers": 1, "rms_norm_eps": 1e-5,
         "rope_theta": 20000.0, "tie_word_embeddings": True},
        {"hidden_size": 24, "intermediate_size": 20, "num_attention_heads": 3, "num_hidden_layers": 2, "image_size": 12, "patch_size": 3, "layer_norm_eps": 1e-3},
        {"d_model": 16, "encoder_attention_heads": 1, "encoder_ffn_dim": 28, "encoder_layers": 1, "num_mel_bins": 7, "max_source_positions": 16, "activation_function": "relu"},
        image_token_index=290, speech_token_index=291, mm_projector_type="mlp3x_gelu", mm_patch_merge_type="spatial_unpad", mm_newline_position="grid",
        speech_encoder_ds_rate=4,
    ),
    "samples": [[2, video(2), 3, speech(2), 6], [5, image, 1, speech(1), 2, image, 7], [9, 4]],
    "sensitivity": [("mm_newline_position", "one_token"), ("speech_config.activation_function", "gelu"), ("rms_norm_eps", 1e-2)],
}

# Nothing between what is seen and the words, one linear map, every state a row of its own.
SPECS["egogpt_flat"] = {
    "seed": 603,
    "config": config(
        {"hidden_size": 36, "intermediate_size": 30, "num_attention_heads": 3, "num_key_value_heads": 3, "num_hidden_layers": 1, "rms_norm_eps": 1e-6,
         "rope_theta": 10000.0, "tie_word_embeddings": False},
        {"hidden_size": 20, "intermediate_size": 24, "num_attention_heads": 1, "num_hidden_layers": 2, "image_size": 21, "patch_size": 7, "hidden_act": "gelu"},
        {"d_model": 12, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "encoder_layers": 3, "num_mel_bins": 8, "max_source_positions": 5},
        image_token_index=280, speech_token_index=281, mm_projector_type="linear", mm_patch_merge_type="flat", speech_encoder_ds_rate=1,
        speech_projector_hidden_size=33,
    ),
    "samples": [[2, speech(1), 1, video(2), 6], [3, image, 5], [8, 4]],
    "sensitivity": [("vision_config.hidden_act", "gelu_pytorch_tanh"), ("speech_config.encoder_attention_heads", 4)],
}


def sample_of(spec, model, index, parts):
    rng = torch.Generator().manual_seed(spec["seed"] * 100 + index)
    c = spec["config"]
    side, heard = c["vision_config"]["image_size"], c["speech_config"]
    s = {"ids": [], "visuals": [], "pixels": None, "mel": None}
    pixels, mel = [], []
    for part in parts:
        if isinstance(part, int):
            s["ids"] += torch.randint(0, 280, (part,), generator=rng).tolist()
        elif "windows" in part:
            windows = torch.randn(part["windows"], heard["num_mel_bins"], 2 * heard["max_source_positions"], generator=rng)
            mel.append(windows)
            count = part["windows"] * (heard["max_source_positions"] // model.rate)
            s["ids"] += [c["speech_token_index"]] * count
        else:
            count = part.get("frames", 1)
            visual = {"is_video": part["is_video"], "grid": [count, model.side, model.side], "seconds_per_grid": 0.0}
            frames = torch.randn(count, 3, side, side, generator=rng)
            pixels.append(frames)
            s["visuals"].append(visual)
            with torch.no_grad():
                s["ids"] += [c["image_token_index"]] * len(model.pictures(frames, [visual])[0])
    answer = parts[-1]
    s["labels"] = [IGNORE] * (len(s["ids"]) - answer) + s["ids"][-answer:]
    s["pixels"] = torch.cat(pixels) if pixels else None
    s["mel"] = torch.cat(mel) if mel else None
    return s


def greedy(model, sample, cut, count):
    """Continuation by whole forward passes."""
    ids, gaps = sample["ids"][:cut], []
    for _ in range(count):
        with torch.no_grad():
            logits = model(**egogpt.inputs_of(sample, ids))["logits"][0, -1]
        top = logits.topk(2)
        gaps.append(float(top.values[0] - top.values[1]))
        ids = ids + [int(top.indices[0])]
        assert ids[-1] not in (model.raw["image_token_index"], model.raw["speech_token_index"])
    return ids[cut:], min(gaps)


def make(name):
    spec = SPECS[name]
    folder = os.path.join(common.FIXTURES, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    write_json(os.path.join(folder, "config.json"), spec["config"])
    dtype = spec.get("dtype", torch.float32)
    model = egogpt.EgoGPT(spec["config"]).float()
    common.fill_weights(model, spec["seed"])
    if dtype == torch.bfloat16:
        config = {**spec["config"], "torch_dtype": "bfloat16"}
        write_json(os.path.join(folder, "config.json"), config)
    spell = (lambda n: n) if spec.get("spelling") == "transformers" else egogpt.disk_name
    on_disk = {spell(n): p.detach().to(dtype) for n, p in model.named_parameters()}
    save_tensors(os.path.join(folder, "model.safetensors"), on_disk)
    model = egogpt.load(folder)
    disk_name = egogpt.disk_name

    samples = [sample_of(spec, model, i, parts) for i, parts in enumerate(spec["samples"])]
    out, info, all_logits = {}, {"samples": []}, []
    for i, s in enumerate(samples):
        with torch.no_grad():
            logits = model(**egogpt.inputs_of(s))["logits"]
        out[f"sample{i}.input_ids"] = torch.tensor(s["ids"])
        out[f"sample{i}.labels"] = torch.tensor(s["labels"])
        if s["pixels"] is not None:
            out[f"sample{i}.pixel_values"] = s["pixels"]
        if s["mel"] is not None:
            out[f"sample{i}.mel"] = s["mel"]
        out[f"sample{i}.logits"] = logits[0].clone()
        out[f"sample{i}.nll"] = nll_of(logits, torch.tensor([s["labels"]]))[0].clone()
        all_logits.append(logits[0])
        info["samples"].append({"id": f"sample{i}", "visuals": s["visuals"], "num_tokens": len(s["ids"]),
            "num_supervised": sum(l != IGNORE for l in s["labels"][1:])})

    with torch.no_grad():
        out["batch.features"] = torch.cat([f for s in samples if s["pixels"] is not None for f in model.pictures(s["pixels"], s["visuals"])])
        out["batch.speech_features"] = torch.cat([model.speech(s["mel"]) for s in samples if s["mel"] is not None])
        out["batch.speech_states"] = torch.cat([model.model.speech_encoder.encoder(s["mel"]).last_hidden_state for s in samples if s["mel"] is not None])

    model.zero_grad(set_to_none=True)
    count = sum(l != IGNORE for s in samples for l in s["labels"][1:])
    total = 0.0
    for s in samples:
        loss = nll_of(model(**egogpt.inputs_of(s))["logits"], torch.tensor([s["labels"]])).sum() / count
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

    sensitivity = {}
    for path, value in spec["sensitivity"]:
        wrong_config = copy.deepcopy(spec["config"])
        *section, key = path.split(".")
        (wrong_config[section[0]] if section else wrong_config)[key] = value
        wrong = egogpt.EgoGPT(wrong_config).float()
        wrong.load_state_dict(model.state_dict())
        wrong.eval()
        moved = 0.0
        if key == "mm_newline_position":
            moved = 1.0  # another number of rows
        else:
            for s, logits in zip(samples, all_logits):
                with torch.no_grad():
                    got = wrong(**egogpt.inputs_of(s))["logits"][0]
                moved = max(moved, float((got - logits).abs().max() / logits.std()))
        sensitivity[f"{path} = {value}"] = moved
        assert moved > 5e-4, f"reading `{path}` as {value} would go unseen: {moved:.1e}"

    # Key biases without rotary: a gradient of zero by mathematics.
    zero = sorted(disk_name(n) for n, p in model.named_parameters() if p.grad is not None and "vision_tower" in n and n.endswith("k_proj.bias"))
    kind = "BF16" if dtype == torch.bfloat16 else "F32"
    info.update({
        "versions": common.versions(), "seed": spec["seed"], "spelling": "transformers" if spec.get("spelling") else "hub", "loss": total, "num_supervised": count,
        "logits_std": float(torch.cat(all_logits).std()), "sensitivity": sensitivity, "no_gradient": sorted(unreached), "zero_gradient": zero, "gradient_noise": {},
        "tensors_on_disk": {n: {"shape": list(t.shape), "dtype": kind, "file": "model.safetensors"} for n, t in on_disk.items()},
        "parameters": {disk_name(n): list(p.shape) for n, p in model.named_parameters()},
    })
    save_tensors(os.path.join(folder, "expected.safetensors"), out)
    write_json(os.path.join(folder, "expected.json"), info)
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(folder) for f in fs)
    print(f"{name}: {size / 1e3:.0f} kB, loss {total:.4f} over {count}, logits std {info['logits_std']:.2f}, tokens {[len(s['ids']) for s in samples]}, "
          f"gaps {[round(g['smallest_gap'], 3) for g in info['greedy']]}, unreached {unreached}, {sensitivity}")


if __name__ == "__main__":
    for name in sys.argv[1:] or SPECS:
        make(name)
