"""PEFT adapters for the folders of fixtures/models and what `peft` computes with them.

    python tools/oracle/models_adapters.py [folder ...] [folder/adapter ...]

Each `FOLDER/adapters/NAME/` holds `adapter_config.json` and `adapter_model.safetensors` as peft saves them,
`expected.safetensors` (logits, loss, gradients, merged weights) and `expected.json`. Run models_ref.py first.
"""

import json
import os
import shutil
import sys

import numpy as np
import torch
from safetensors.torch import load_file

import common
import egogpt
import next_inputs
import qwen_inputs
from common import disk_name, put, save_tensors, write_json
from models_ref import batches_of, load_model, nll_of
from qwen_inputs import inputs_of, is_qwen_vl, parted
from models_specs import SPECS

EVERY_LINEAR = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

# Not the speech encoder, whose modules have other names here than in the published class.
EGO_EVERYWHERE = r"model\.(layers\..*(q_proj|down_proj)|vision_tower.*(q_proj|mlp\.fc1)|mm_projector\.2|speech_projector\.linear1)"

# name -> (LoraConfig arguments, random B)
ADAPTERS = {
    "llava_siglip_qwen2": {
        # Bare names: peft finds them in the vision tower as well.
        "names": ({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}, True),
        # A fresh adapter on every linear map of the decoder: B is zero.
        "fresh_regex": ({"r": 8, "lora_alpha": 16, "target_modules": EVERY_LINEAR}, False),
        # rsLoRA, ranks and alphas by pattern, a module trained whole, dropout (unused in evaluation).
        "patterns": (
            {
                "r": 4,
                "lora_alpha": 6,
                "lora_dropout": 0.1,
                "use_rslora": True,
                "target_modules": ["q_proj", "o_proj", "up_proj", "down_proj"],
                "rank_pattern": {"q_proj": 2, r".*layers\.1\.mlp\.up_proj": 6},
                "alpha_pattern": {r"language_model\.layers\.0\.self_attn\.o_proj": 3},
                "modules_to_save": ["multi_modal_projector"],
            },
            True,
        ),
        # Any ending of a path names a module to save: this one is also `post_layernorm`, `input_layernorm` ...
        "saved_norms": (
            {"r": 2, "lora_alpha": 4, "target_modules": r".*language_model.*\.q_proj", "modules_to_save": ["norm"]},
            True,
        ),
        # Patterns that only the hub's spelling of the paths would match say nothing; neither do fields that have chosen
        # the modules once. The adapted head brings a copy of the base's into the file.
        "inert_fields": (
            {
                "r": 4,
                "lora_alpha": 8,
                "target_modules": ["q_proj", "v_proj", "lm_head"],
                "exclude_modules": r".*(vision_tower.*|layers\.0.*v_proj)",
                "init_lora_weights": "orthogonal",
                "rank_pattern": {r"model\.layers\.1\.self_attn\.q_proj": 2},
                "alpha_pattern": {
                    r"language_model\.model\.layers\.0\.self_attn\.q_proj": 64,
                    r"model\.language_model\.layers\.1\.self_attn\.q_proj": 2,
                },
            },
            True,
        ),
        "one_layer": (
            {
                "r": 2,
                "lora_alpha": 4,
                "target_modules": ["q_proj", "down_proj"],
                "layers_to_transform": [1],
                "layers_pattern": "layers",
            },
            True,
        ),
    },
    "llava_clip_llama": {
        # Every linear map of tower, projector and decoder, the head apart.
        "all_linear": ({"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}, True),
        # Embeddings and head trained whole beside adapters in the decoder.
        "saved_tables": (
            {
                "r": 3,
                "lora_alpha": 3,
                "target_modules": r".*language_model.*\.(k_proj|v_proj)",
                "modules_to_save": ["embed_tokens", "lm_head"],
            },
            True,
        ),
        # The start of a LoRA run: fresh adapters in the decoder, the projector trained whole, rsLoRA.
        "fresh_projector": (
            {
                "r": 4,
                "lora_alpha": 8,
                "use_rslora": True,
                "target_modules": r".*language_model.*\.(q_proj|v_proj|up_proj)",
                "modules_to_save": ["multi_modal_projector"],
            },
            False,
        ),
        # The tower trained whole: its last layer and `post_layernorm`, which no forward pass reaches, are in the file.
        "saved_tower": (
            {
                "r": 2,
                "lora_alpha": 4,
                "target_modules": r".*language_model.*\.v_proj",
                "modules_to_save": ["vision_tower"],
            },
            True,
        ),
    },
    # Tied embeddings, biases in bf16 below the adapter, linear maps without bias in the projector.
    "siglip_odd_qwen2_tied": {
        "tower_and_projector": (
            {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "k_proj", "fc1", "linear_1", "linear_2"]},
            True,
        ),
    },
    # Norms of heads beside adapters; a text-only model, adapted on every linear map.
    "siglip_qwen3_windows": {
        "fresh": ({"r": 4, "lora_alpha": 8, "target_modules": EVERY_LINEAR}, False),
        "heads_saved": (
            {"r": 3, "lora_alpha": 6, "target_modules": ["k_proj", "o_proj"], "modules_to_save": ["q_norm"]},
            True,
        ),
    },
    "text_mistral_defaults": {
        "fresh": ({"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}, False),
        "all_linear": ({"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}, True),
    },
    # Fused maps are one module each, with one A and one B.
    "text_phi3_longrope": {
        "all_linear": ({"r": 3, "lora_alpha": 6, "target_modules": "all-linear"}, True),
    },
    "siglip_phi3_longrope": {
        "fresh_fused": ({"r": 4, "lora_alpha": 8, "target_modules": ["qkv_proj", "gate_up_proj", "down_proj"]}, False),
        "fused": (
            {
                "r": 4,
                "lora_alpha": 8,
                "target_modules": ["qkv_proj", "gate_up_proj"],
                "rank_pattern": {"gate_up_proj": 2},
                "modules_to_save": ["multi_modal_projector"],
            },
            True,
        ),
    },
    # Windows and M-RoPE: the decoder from B = 0 with the merger trained whole; tower, merger and decoder.
    "qwen2_5_vl_hub": {
        "fresh_merger": (
            {"r": 4, "lora_alpha": 8, "target_modules": r".*language_model.*proj", "modules_to_save": ["visual.merger"]},
            False,
        ),
        "everywhere": ({"r": 2, "lora_alpha": 4, "target_modules": ["qkv", "attn.proj", "mlp.0", "q_proj", "v_proj", "gate_proj"]}, True),
    },
    "qwen2_vl_hub": {
        "fresh": ({"r": 4, "lora_alpha": 8, "target_modules": r".*language_model.*proj"}, False),
        "tower": ({"r": 3, "lora_alpha": 6, "target_modules": ["qkv", "fc1", "fc2", "mlp.2", "k_proj"]}, True),
    },
    # Tiles and clips: the decoder from B = 0 with the projector trained whole; tower, projector and decoder.
    "llava_next_video_hub": {
        "fresh_projector": (
            {"r": 4, "lora_alpha": 8, "target_modules": EVERY_LINEAR, "modules_to_save": ["multi_modal_projector"]},
            False,
        ),
        "everywhere": ({"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "fc1", "linear_1", "down_proj"]}, True),
    },
    "llava_onevision_hub": {
        "fresh": ({"r": 4, "lora_alpha": 8, "target_modules": EVERY_LINEAR}, False),
        "all_linear": ({"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}, True),
    },
    # Biases on every linear map and heads wider than hidden / heads.
    "clip_full_llama_bias": {
        "with_biases": ({"r": 5, "lora_alpha": 10, "target_modules": EVERY_LINEAR}, True),
    },
    # Several mergers: all of them trained whole beside the decoder from B = 0; tower, mergers and decoder.
    "qwen3_vl_hub": {
        "fresh_mergers": (
            {
                "r": 4,
                "lora_alpha": 8,
                "target_modules": r".*language_model.*proj",
                "modules_to_save": ["visual.merger", "deepstack_merger_list.0", "deepstack_merger_list.1"],
            },
            False,
        ),
        "everywhere": (
            {"r": 2, "lora_alpha": 4, "target_modules": ["qkv", "attn.proj", "linear_fc1", "linear_fc2", "q_proj", "v_proj"]},
            True,
        ),
    },
    "onevision1_5_hub": {
        "fresh_merger": (
            {"r": 4, "lora_alpha": 8, "target_modules": r".*language_model.*proj", "modules_to_save": ["visual.merger"]},
            False,
        ),
        "everywhere": ({"r": 2, "lora_alpha": 4, "target_modules": ["qkv", "attn.proj", "fc1", "mlp.fc2", "mlp.0", "mlp.2", "k_proj", "up_proj"]}, True),
    },
    # Mergers that are never reached, adapted too.
    "qwen3_vl_odd": {
        "mergers": ({"r": 3, "lora_alpha": 6, "target_modules": r".*(deepstack_merger_list.*fc2|[ko]_proj)"}, True),
    },
    # The decoder from B = 0 with the projector of speech trained whole; decoder, tower and both projectors.
    "egogpt_openai": {
        "fresh_speech": (
            {"r": 4, "lora_alpha": 8, "target_modules": r"model\.layers\..*proj", "modules_to_save": ["speech_projector"]},
            False,
        ),
        "everywhere": ({"r": 2, "lora_alpha": 4, "target_modules": EGO_EVERYWHERE}, True),
    },
}

# Adapters saved as peft does by default: with a copy of the base's weight where the head is adapted.
WITH_COPIES = {"inert_fields"}

# Rows of the logits that are kept: every STRIDE-th position.
STRIDE = 5


def samples_of(folder):
    """The samples stored by models_ref.py, as batch_of wants them."""
    tensors = load_file(os.path.join(folder, "expected.safetensors"))
    out = []
    while f"sample{len(out)}.input_ids" in tensors:
        key = f"sample{len(out)}"
        out.append(
            {
                "ids": tensors[f"{key}.input_ids"].tolist(),
                "labels": tensors[f"{key}.labels"].tolist(),
                "pixels": tensors.get(f"{key}.pixel_values"),
            }
        )
    with open(os.path.join(folder, "expected.json")) as f:
        stored = json.load(f)["samples"]
    if any(f"sample{i}.mel" in tensors for i in range(len(out))):
        return [{**sample, "visuals": s["visuals"], "mel": tensors.get(f"sample{i}.mel")} for i, (sample, s) in enumerate(zip(out, stored))]
    if os.path.basename(folder).startswith(("encoders_", "original_")):
        return [{**sample, "visuals": s["visuals"], "pixels": None if sample["pixels"] is None else sample["pixels"].flatten()}
                for sample, s in zip(out, stored)]
    if "visuals" in stored[0]:
        part = next_inputs.parted if "source_size" in (stored[0]["visuals"] or [{}])[0] else parted
        return [part({**sample, "visuals": s["visuals"]}) for sample, s in zip(out, stored)]
    return out


def pad_id(folder):
    with open(os.path.join(folder, "tokenizer_config.json")) as f:
        token = json.load(f)["pad_token"]
    from tokenizers import Tokenizer

    return Tokenizer.from_file(os.path.join(folder, "tokenizer.json")).token_to_id(token)


def saved_name(name):
    """In-memory name of an adapter's parameter -> its name in adapter_model.safetensors."""
    return name.replace(".modules_to_save.default.", ".").replace(".lora_A.default.", ".lora_A.").replace(
        ".lora_B.default.", ".lora_B."
    )


def fill_adapter(model, seed, random_b):
    """A ~ N(0, 1/sqrt(in)), B ~ N(0, 0.15) or zero, whole modules moved by 0.1 N from the base."""
    rng = np.random.Generator(np.random.PCG64(seed))
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if not p.requires_grad:
                continue
            x = torch.from_numpy(rng.standard_normal(p.shape)).float()
            if "lora_A" in name:
                p.copy_(x / p.shape[1] ** 0.5)
            elif "lora_B" in name:
                p.copy_(0.15 * x if random_b else 0.0 * x)
            elif random_b:
                p.add_(0.1 * x)


def tidy(target, folder_name):
    """A config that is the same on every machine: sorted lists, the base named without its path; no model card."""
    path = os.path.join(target, "adapter_config.json")
    with open(path) as f:
        config = json.load(f)
    config["base_model_name_or_path"] = folder_name
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])
    write_json(path, config)
    card = os.path.join(target, "README.md")
    if os.path.exists(card):
        os.remove(card)


def modules_of(model):
    """Every adapted module: rank, alpha and scale as peft resolved the patterns."""
    return {
        n.removeprefix("base_model.model."): {
            "r": m.r["default"],
            "alpha": m.lora_alpha["default"],
            "scale": m.scaling["default"],
        }
        for n, m in model.named_modules()
        if hasattr(m, "lora_A") and "default" in getattr(m, "lora_A", {})
    }


def inputs_alone(model, e):
    """What the reference takes for one sample."""
    if is_qwen_vl(model.config):
        return inputs_of(model.config, e)[0]
    if next_inputs.is_anyres(model.config):
        return next_inputs.inputs_of(model.config, e)
    if egogpt.is_ego(model.config):
        return egogpt.inputs_of(e)
    kwargs = {"input_ids": torch.tensor([e["ids"]])}
    if e["pixels"] is not None:
        kwargs["pixel_values"] = e["pixels"]
    return kwargs


def logits_of(model, samples):
    out = []
    for e in samples:
        with torch.no_grad():
            out.append(model(**inputs_alone(model, e)).logits[0])
    return out


def make(folder_name, name, seed):
    from peft import LoraConfig, PeftModel, get_peft_model

    arguments, random_b = ADAPTERS[folder_name][name]
    folder = os.path.join(common.FIXTURES, folder_name)
    target = os.path.join(folder, "adapters", name)
    shutil.rmtree(target, ignore_errors=True)
    base = load_model(folder)
    plain = {n: p.detach().clone() for n, p in base.named_parameters()}
    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **arguments))
    fill_adapter(model, seed, random_b)
    model.save_pretrained(target, save_embedding_layers="auto" if name in WITH_COPIES else False)
    tidy(target, folder_name)

    # Everything below is computed from the files, not from the model that wrote them.
    model = PeftModel.from_pretrained(load_model(folder), target, is_trainable=True).eval()
    samples = samples_of(folder)
    out, on_disk = {}, load_file(os.path.join(target, "adapter_model.safetensors"))
    alone = logits_of(model, samples)
    for i, logits in enumerate(alone):
        out[f"sample{i}.logits"] = logits[::STRIDE].clone()
    if is_qwen_vl(model.config) or next_inputs.is_anyres(model.config) or egogpt.is_ego(model.config):
        batches = [(inputs_alone(model, e), torch.tensor([e["labels"]])) for e in samples]
    else:
        batches = batches_of(samples, pad_id(folder), SPECS[folder_name].get("alone", False))
    count = sum(int((labels[:, 1:] != common.IGNORE).sum()) for _, labels in batches)
    loss = 0.0
    for batch, labels in batches:
        part = nll_of(model(**batch).logits, labels).sum() / count
        part.backward()
        loss += part.detach()
    out["batch.loss"] = loss.reshape(1).clone()
    trainable, no_gradient = {}, []
    for n, p in model.named_parameters():
        if not p.requires_grad:
            continue
        key = saved_name(n)
        assert key in on_disk and torch.equal(p.detach(), on_disk[key]), key
        trainable[key] = list(p.shape)
        if p.grad is None:
            no_gradient.append(key)
        else:
            put(out, "grad", key, p.grad)
    copies = sorted(set(on_disk) - set(trainable))
    assert bool(copies) == (name in WITH_COPIES), copies
    modules = modules_of(model)

    merged = model.merge_and_unload().eval()
    spell = qwen_inputs.disk_name if is_qwen_vl(merged.config) else egogpt.disk_name if egogpt.is_ego(merged.config) else disk_name(merged)
    worst = max(float((a - b).abs().max()) for a, b in zip(alone, logits_of(merged, samples)))
    base_logits = logits_of(load_model(folder), samples)
    moved = max(float((a - b).abs().max()) for a, b in zip(alone, base_logits))
    changed = []
    for n, p in merged.named_parameters():
        if not torch.equal(p.detach(), plain[n]):
            changed.append(spell(n))
            put(out, "merged", spell(n), p.detach() - plain[n], whole=0)
    save_tensors(os.path.join(target, "expected.safetensors"), out)
    write_json(
        os.path.join(target, "expected.json"),
        {
            "versions": common.versions(),
            "seed": seed,
            "random_b": random_b,
            "stride": STRIDE,
            "loss": loss.item(),
            "modules": modules,
            "trainable": trainable,
            "no_gradient": sorted(no_gradient),
            "merged_changes": sorted(changed),
            "merged_vs_unmerged_max_abs": worst,
            "adapter_vs_base_max_abs": moved,
        },
    )
    size = sum(os.path.getsize(os.path.join(target, f)) for f in os.listdir(target))
    print(
        f"{folder_name}/{name}: {size / 1e3:.0f} kB, {len(trainable)} tensors, loss {loss.item():.4f}, moves logits by {moved:.2f}, "
        f"merged differs by {worst:.1e}, no gradient {len(no_gradient)}"
    )


if __name__ == "__main__":
    for number, folder_name in enumerate(ADAPTERS):
        for index, name in enumerate(ADAPTERS[folder_name]):
            if sys.argv[1:] and folder_name not in sys.argv[1:] and f"{folder_name}/{name}" not in sys.argv[1:]:
                continue
            make(folder_name, name, 500 + 10 * number + index)
