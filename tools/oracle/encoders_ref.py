"""Builds the folders of fixtures/models whose images and clips have encoders of their own, and those in the original LLaVA layout.

    python tools/oracle/encoders_ref.py [folder ...]

`transformers` has no class for them. The reference is plain PyTorch, written from the description before the program's own
code: towers and decoders are those of transformers, what joins them is `Joined` below. Layout of the results:
fixtures/models/README.md; the specifications stand in encoders_specs.py.
"""

import copy
import json
import os
import shutil
import sys

import torch
from safetensors.torch import load_file
from torch import nn

import common
from common import IGNORE, make_image, put, save_tensors, write_json
from encoders_specs import SPECS
from models_ref import nll_of

IMAGE, VIDEO = -200, -300
MARKS = {"<image>": IMAGE, "<video>": VIDEO}
KINDS = ("image", "video")


def projector(kind, width, hidden):
    if kind == "linear":
        return nn.Linear(width, hidden)
    depth = int(kind.removeprefix("mlp").removesuffix("x_gelu"))
    layers = [nn.Linear(width, hidden)]
    for _ in range(1, depth):
        layers += [nn.GELU(), nn.Linear(hidden, hidden)]
    return nn.Sequential(*layers)


def encoders_of(config):
    """The encoders of a configuration by kind; the original layout has one for images."""
    if "mm_vision_tower" in config:
        return {"image": config}
    return {kind: config[f"{kind}_encoder"] for kind in KINDS if f"{kind}_encoder" in config}


def module_names(config, kind):
    if "mm_vision_tower" in config:
        return "vision_tower", "mm_projector"
    return f"{kind}_tower", f"{kind}_mm_projector"


class Holder(nn.Module):
    """Puts a tower under the name that checkpoints have for it."""


def tower_of(vision_config):
    from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

    kind = vision_config["model_type"]
    classes = (CLIPVisionConfig, CLIPVisionModel) if kind.startswith("clip") else (SiglipVisionConfig, SiglipVisionModel)
    config = classes[0](**{k: v for k, v in vision_config.items() if k != "model_type"})
    return classes[1]._from_config(config, attn_implementation="eager")


def text_config_of(config):
    """What is left of a joined configuration for the decoder's class."""
    from transformers import AutoConfig

    family = {"llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2", "llava_qwen2": "qwen2",
              "llava_qwen3": "qwen3", "llava_phi3": "phi3"}[config["model_type"]]
    own = {k: v for k, v in config.items() if not k.startswith(("mm_", "image_", "video_", "vision_", "use_mm", "tune_", "freeze_", "unfreeze_"))
           and k not in ("model_type", "architectures", "conversation_version")}
    return AutoConfig.for_model(family, **own)


def join(config):
    """A decoder of transformers with encoders beside its embeddings; parameters have the names of checkpoints."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_config(text_config_of(config), attn_implementation="eager").float()

    class Joined(type(base)):
        def features(self, pixels, visuals):
            out, at = [], 0
            for v in visuals:
                kind = "video" if v["is_video"] else "image"
                encoder = encoders_of(self.joined)[kind]
                tower_name, projector_name = module_names(self.joined, kind)
                tower = getattr(self.model, tower_name).vision_tower.whole[0]
                side, channels = tower.config.image_size, tower.config.num_channels
                count = v["grid"][0] * channels * side * side
                frames = pixels[at : at + count].view(v["grid"][0], channels, side, side)
                at += count
                states = tower(frames.to(self.dtype), output_hidden_states=True).hidden_states[encoder["mm_vision_select_layer"]]
                if encoder["mm_vision_select_feature"] == "patch" and tower.config.model_type.startswith("clip"):
                    states = states[:, 1:]
                # One frame after the other, each frame's tokens together: "flat".
                out.append(getattr(self.model, projector_name)(states).flatten(0, 1))
            assert at == len(pixels)
            return out

        def embed(self, ids, pixels, visuals):
            ids = torch.tensor(ids)
            rows = ids < 0
            x = self.get_input_embeddings()(ids.clamp(min=0))
            if visuals:
                features = torch.cat(self.features(pixels, visuals))
                x = x.clone()
                x[rows] = features.to(x.dtype)
            return x[None]

        def forward(self, samples=None, labels=None, num_items_in_batch=None, **kwargs):
            if samples is None:
                return super().forward(**kwargs)
            total, logits = 0.0, []
            for sample in samples:
                out = super().forward(inputs_embeds=self.embed(sample["ids"], sample["pixels"], sample["visuals"]))
                logits.append(out.logits[0])
                total = total + nll_of(out.logits, torch.tensor([sample["labels"]])).sum()
            if num_items_in_batch is None:
                num_items_in_batch = sum(sum(l != IGNORE for l in s["labels"][1:]) for s in samples)
            return {"loss": total / num_items_in_batch, "logits": logits}

    base.__class__ = Joined
    base.joined = config
    for kind, encoder in encoders_of(config).items():
        tower_name, projector_name = module_names(config, kind)
        tower = tower_of(encoder["vision_config"])
        holder, inner = Holder(), Holder()
        # `vision_model` holds the parameters; the whole tower runs, hidden from the list of parameters.
        inner.vision_model = getattr(tower, "vision_model", tower)
        inner.whole = [tower]
        holder.vision_tower = inner
        setattr(base.model, tower_name, holder)
        setattr(base.model, projector_name, projector(encoder["mm_projector_type"], encoder["mm_hidden_size"], config["hidden_size"]))
    return base.eval()


def load(folder):
    """The reference with the weights of a fixture folder."""
    with open(os.path.join(folder, "config.json")) as f:
        model = join(json.load(f))
    state = load_file(os.path.join(folder, "model.safetensors"))
    own = dict(model.named_parameters())
    assert set(own) == set(state), (sorted(set(own) ^ set(state)))
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(state[name].float())
    return model


def build_tokenizer(spec, specials):
    make = common.bytelevel_tokenizer if spec["tokenizer"]["kind"] == "bytelevel" else common.sentencepiece_tokenizer
    return make(spec["tokenizer"]["size"], specials)


def new_tokens(config):
    out = ["<im_patch>"] if config.get("mm_use_patch_token") or config.get("mm_use_im_patch_token") else []
    if config.get("mm_use_start_end") or config.get("mm_use_im_start_end"):
        out += ["<im_start>", "<im_end>"]
        out += [] if "mm_vision_tower" in config else ["<vi_start>", "<vi_end>"]
    return out


def write_tokenizer(spec, folder, specials):
    tok = build_tokenizer(spec, specials)
    tok.save(os.path.join(folder, "tokenizer.json"))
    added = {
        str(i): {"content": t.content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        for i, t in sorted(tok.get_added_tokens_decoder().items())
    }
    names = spec["tokenizer"]["names"]
    config = {"added_tokens_decoder": added, "clean_up_tokenization_spaces": False, **names, "model_max_length": 4096,
              "padding_side": "right", "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(os.path.join(folder, "tokenizer_config.json"), config)
    write_json(os.path.join(folder, "special_tokens_map.json"), names)
    return tok


def split_ids(tok, text, bos):
    """Text around the marks is tokenised piece by piece; the begin token stays at the first piece alone."""
    out, rest, first = [], text, True
    while True:
        found = min(((rest.find(m), m) for m in MARKS if m in rest), default=None)
        piece = rest if found is None else rest[: found[0]]
        ids = tok.encode(piece).ids
        out += ids if first or not ids or ids[0] != bos else ids[1:]
        if found is None:
            return out
        out.append(MARKS[found[1]])
        rest, first = rest[found[0] + len(found[1]) :], False


def in_text(config, kind):
    mark = f"<{kind}>"
    if config.get("mm_use_start_end") or config.get("mm_use_im_start_end"):
        short = "im" if kind == "image" else "vi"
        return f"<{short}_start>{mark}<{short}_end>"
    return mark


def content(config, parts, media_only):
    out, after = "", False
    for part in parts:
        if part["type"] == "text":
            if media_only:
                continue
            out += ("\n" if after and not part["text"].startswith("\n") else "") + part["text"]
            after = False
        else:
            count = 1
            if part["type"] == "video" and "mm_vision_tower" in config:
                count = len(part["video"])  # each frame stands for itself
            kind = "image" if "mm_vision_tower" in config else part["type"]
            out, after = out + in_text(config, kind) * count, True
    return out


V1 = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
      "polite answers to the user's questions.")


def render(config, messages, prompt=False):
    """The conversation as the original's templates write it; for each answer, its range and that of its end."""
    version = config["conversation_version"]
    out, spans = "", []
    if version == "v1":
        system = [m for m in messages if m["role"] == "system"]
        out = (system[0]["content"][0]["text"] if system else V1) + " "
    for m in messages:
        words = content(config, m["content"], version == "plain" and m["role"] == "user")
        if version == "v1" and m["role"] == "system":
            continue
        before, after = {
            "v1": ("USER: ", " ") if m["role"] == "user" else ("ASSISTANT: ", "</s>"),
            "plain": ("", "") if m["role"] == "user" else ("", "\n"),
            "chatml": (f"<|im_start|>{m['role']}\n", "<|im_end|>\n"),
            "phi": (f"<|{m['role']}|>", "<|end|>"),
        }[version]
        out += before
        if m["role"] == "assistant":
            end = after.rstrip("\n") if version == "chatml" else after
            spans.append((len(out), len(out) + len(words) + len(end)))
        out += words + after
    if prompt:
        out += {"v1": "ASSISTANT:", "plain": "", "chatml": "<|im_start|>assistant\n", "phi": "<|assistant|>"}[version]
    return out, spans


def labels_of(tok, text, ids, spans, bos):
    labels = [IGNORE] * len(ids)
    for start, end in spans:
        before, upto = split_ids(tok, text[:start], bos), split_ids(tok, text[:end], bos)
        first = next((i for i, (a, b) in enumerate(zip(before, ids)) if a != b), len(before))
        assert ids[: len(upto)] == upto, (text, start, end)
        for i in range(first, len(upto)):
            labels[i] = ids[i]
    return labels


def expand(config, ids, visuals, tokens):
    out, at = [], iter(visuals)
    for i in ids:
        if i in (IMAGE, VIDEO):
            v = next(at)
            out += [i] * (v["grid"][0] * tokens["video" if v["is_video"] else "image"])
        else:
            out.append(i)
    assert next(at, None) is None
    return out


def square(image, mean):
    from PIL import Image

    side = max(image.size)
    out = Image.new("RGB", (side, side), tuple(int(x * 255) for x in mean))
    out.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return out


def pixels_of(config, processors, folder, kind, files):
    from PIL import Image

    processor = processors[kind]
    images = [Image.open(os.path.join(folder, f)).convert("RGB") for f in files]
    if config.get("image_aspect_ratio") == "pad":
        images = [square(image, processor.image_mean) for image in images]
    return processor(images, return_tensors="pt")["pixel_values"].flatten()


def encode(spec, folder, tok, processors, messages, prompt=False):
    config = spec["config"]
    bos = tok.token_to_id(spec["tokenizer"]["names"].get("bos_token", "")) if "bos_token" in spec["tokenizer"]["names"] else None
    text, spans = render(config, messages, prompt)
    visuals, pixels, tokens = [], [], {}
    for kind, encoder in encoders_of(config).items():
        vision = encoder["vision_config"]
        has_class = vision["model_type"].startswith("clip") and encoder["mm_vision_select_feature"] == "cls_patch"
        tokens[kind] = (vision["image_size"] // vision["patch_size"]) ** 2 + int(has_class)
    for part in (p for m in messages for p in m["content"] if p["type"] != "text"):
        files = [part["path"]] if part["type"] == "image" else part["video"]
        kind = "image" if "mm_vision_tower" in config else part["type"]
        vision = encoders_of(config)[kind]["vision_config"]
        side = vision["image_size"] // vision["patch_size"]
        pixels.append(pixels_of(config, processors, folder, kind, files))
        if kind == "video":
            visuals.append({"is_video": True, "grid": [len(files), side, side], "seconds_per_grid": 0.0})
        else:
            visuals += [{"is_video": False, "grid": [1, side, side], "seconds_per_grid": 0.0} for _ in files]
    short = split_ids(tok, text, bos)
    labels = labels_of(tok, text, short, spans, bos)
    ids = expand(config, short, visuals, tokens)
    wide = []
    at = iter(visuals)
    for i, l in zip(short, labels):
        if i in (IMAGE, VIDEO):
            v = next(at)
            wide += [IGNORE] * (v["grid"][0] * tokens["video" if v["is_video"] else "image"])
        else:
            wide.append(l)
    return {"text": text, "ids": ids, "labels": wide, "visuals": visuals, "pixels": torch.cat(pixels) if pixels else None}


def conversations(spec, folder):
    out, number = [], 0

    def picture():
        nonlocal number
        w, h = spec["image_sizes"][number % len(spec["image_sizes"])]
        make_image(spec["seed"] * 1000 + number, w, h).save(os.path.join(folder, f"images/{number}.png"), optimize=True)
        number += 1
        return f"images/{number - 1}.png"

    for index, turns in enumerate(spec["samples"]):
        messages = []
        for role, *parts in turns:
            made = []
            for part in parts:
                if part == "IMAGE":
                    made.append({"type": "image", "path": picture()})
                elif part.startswith("VIDEO"):
                    made.append({"type": "video", "video": [picture() for _ in range(int(part[5:]))], "fps": 1})
                else:
                    made.append({"type": "text", "text": part})
            messages.append({"role": role, "content": made})
        out.append({"id": f"sample{index}", "messages": messages})
    return out


def write_parts(spec, folder, model):
    """The same model as the parts that it was joined of: decoder without the new tokens, towers, projectors as torch saves them."""
    config = spec["config"]
    parts = os.path.join(folder, "parts")
    dtype = getattr(torch, spec.get("disk_dtype", "float32"))
    state = {n: p.detach().to(dtype) for n, p in model.named_parameters()}
    rows = config["vocab_size"] - len(new_tokens(config))
    text = {n: t for n, t in state.items() if not any(w in n for w in ("_tower.", "mm_projector"))}
    language = {n: t[:rows] if n.split(".")[-2] in ("embed_tokens", "lm_head") else t for n, t in text.items()}
    os.makedirs(os.path.join(parts, "language"))
    save_tensors(os.path.join(parts, "language", "model.safetensors"), language)
    own = json.loads(text_config_of(config).to_json_string())
    own.update({"vocab_size": rows, "architectures": [type(model).__mro__[1].__name__]})
    write_json(os.path.join(parts, "language", "config.json"), own)
    write_tokenizer(spec, os.path.join(parts, "language"), spec["tokenizer"]["specials"])
    write_json(os.path.join(parts, "language", "generation_config.json"), spec["generation"])
    weights = {}
    for kind, encoder in encoders_of(config).items():
        tower_name, projector_name = module_names(config, kind)
        place = os.path.join(parts, f"{kind}_tower")
        os.makedirs(place)
        prefix = f"model.{tower_name}.vision_tower."
        tower = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        vision = encoder["vision_config"]
        if spec.get("whole_clip"):
            # The whole of CLIP, as the hub has it: the text tower is nobody's here.
            tower["text_model.embeddings.token_embedding.weight"] = torch.zeros(4, 4)
            tower["visual_projection.weight"] = torch.zeros(4, vision["hidden_size"])
            tower["logit_scale"] = torch.tensor(2.6)
            tower["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
            outer = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 4, "text_config": {"model_type": "clip_text_model"},
                     "vision_config": vision}
            write_json(os.path.join(place, "config.json"), outer)
        else:
            write_json(os.path.join(place, "config.json"), vision)
        save_tensors(os.path.join(place, "model.safetensors"), tower)
        write_json(os.path.join(place, "preprocessor_config.json"), spec["preprocessors"][kind])
        weights.update({n: t for n, t in state.items() if projector_name in n})
    torch.save(weights, os.path.join(parts, "mm_projector.bin"))
    if "mm_vision_tower" in config:
        # As the original saves it: everything but the tower, pickled, the tower named by its folder.
        own = {k: v for k, v in config.items() if k not in ("vision_config", "conversation_version")}
        place = os.path.join(parts, "original")
        os.makedirs(place)
        write_json(os.path.join(place, "config.json"), {**own, "mm_vision_tower": "../image_tower"})
        torch.save({n: t for n, t in state.items() if "vision_tower" not in n}, os.path.join(place, "pytorch_model.bin"))
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
            shutil.copy(os.path.join(folder, name), place)


def greedy(model, encoded, count, eos=None):
    ids, new, gaps = list(encoded["ids"]), [], []
    for _ in range(count):
        with torch.no_grad():
            out = model(samples=[{**encoded, "ids": ids, "labels": [IGNORE] * len(ids)}])
        top = out["logits"][0][-1].topk(2)
        gaps.append(float(top.values[0] - top.values[1]))
        new.append(int(top.indices[0]))
        ids.append(new[-1])
        if new[-1] == eos:
            break
    return new, min(gaps)


def unsigned(ids):
    return [i % (1 << 32) for i in ids]


def make(name):
    from transformers import AutoImageProcessor

    spec = SPECS[name]
    config = spec["config"]
    folder = os.path.join(common.FIXTURES, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(os.path.join(folder, "images"))
    write_json(os.path.join(folder, "config.json"), config)
    write_json(os.path.join(folder, "generation_config.json"), spec["generation"])
    tok = write_tokenizer(spec, folder, spec["tokenizer"]["specials"] + new_tokens(config))
    assert tok.get_vocab_size() <= config["vocab_size"], (tok.get_vocab_size(), config["vocab_size"])
    model = join(config)
    common.fill_weights(model, spec["seed"])
    added = len(new_tokens(config))
    if added:
        # As the original starts them: the mean of the rows before.
        with torch.no_grad():
            tables = [model.get_input_embeddings().weight] + ([] if config.get("tie_word_embeddings") else [model.lm_head.weight])
            for table in tables:
                dtype = getattr(torch, spec.get("disk_dtype", "float32"))
                rows = table[:-added].to(dtype).double()
                table[-added:] = rows.mean(0, keepdim=True).to(table.dtype)
    dtype = getattr(torch, spec.get("disk_dtype", "float32"))
    state = {n: p.detach().to(dtype) for n, p in model.named_parameters()}
    save_tensors(os.path.join(folder, "model.safetensors"), state)
    places = {"image": "preprocessor_config.json"} if "mm_vision_tower" in config else {
        kind: f"{kind}_encoder/preprocessor_config.json" for kind in encoders_of(config)}
    processors = {}
    for kind, place in places.items():
        os.makedirs(os.path.dirname(os.path.join(folder, place)), exist_ok=True)
        write_json(os.path.join(folder, place), spec["preprocessors"][kind])
        processors[kind] = AutoImageProcessor.from_pretrained(os.path.dirname(os.path.join(folder, place)))
    model = load(folder)
    if spec.get("parts"):
        write_parts(spec, folder, model)

    samples = conversations(spec, folder)
    write_json(os.path.join(folder, "samples.json"), samples)
    out, info, encoded = {}, {"samples": []}, []
    for index, sample in enumerate(samples):
        e = encode(spec, folder, tok, processors, sample["messages"])
        encoded.append(e)
        out[f"sample{index}.input_ids"] = torch.tensor(e["ids"])
        out[f"sample{index}.labels"] = torch.tensor(e["labels"])
        if e["pixels"] is not None:
            out[f"sample{index}.pixel_values"] = e["pixels"][:, None].clone()
        with torch.no_grad():
            logits = model(samples=[e])["logits"][0]
        out[f"sample{index}.logits"] = logits.clone()
        out[f"sample{index}.nll"] = nll_of(logits[None], torch.tensor([e["labels"]]))[0].clone()
        info["samples"].append({"id": sample["id"], "text": e["text"], "num_tokens": len(e["ids"]), "visuals": e["visuals"],
                                "num_supervised": sum(l != IGNORE for l in e["labels"][1:])})
    model.zero_grad(set_to_none=True)
    for p in model.parameters():
        p.requires_grad_(True)
    loss = model(samples=encoded)["loss"]
    loss.backward()
    out["batch.loss"] = loss.detach().reshape(1)
    with torch.no_grad():
        features = [f for e in encoded if e["visuals"] for f in model.features(e["pixels"], e["visuals"])]
    out["batch.features"] = torch.cat(features).clone()
    unreached, zero = [], []
    for n, p in model.named_parameters():
        if p.grad is None:
            unreached.append(n)
            continue
        if n.endswith("k_proj.bias") and "_tower" in n:
            zero.append(n)
        put(out, "grad", n, p.grad)
    info["greedy"] = []
    for which in (0, spec["text_only"]):
        messages = samples[which]["messages"]
        cut = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
        prompt = encode(spec, folder, tok, processors, messages[:cut], prompt=True)
        new, gap = greedy(model, prompt, 24)
        eos = next((t for i, t in enumerate(new) if i >= 5 and t not in new[:i]), new[0])
        stopped, _ = greedy(model, prompt, 24, eos)
        info["greedy"].append({"sample": which, "num_messages": cut, "text": prompt["text"], "input_ids": unsigned(prompt["ids"]),
                               "images": [], "new_ids": new, "smallest_gap": gap, "eos_id": eos, "new_ids_with_eos": stopped})
    kinds = {torch.float32: "F32", torch.bfloat16: "BF16"}
    info.update({
        "versions": common.versions(), "seed": spec["seed"], "spelling": "hub", "no_gradient": sorted(unreached), "zero_gradient": sorted(zero),
        "tensors_on_disk": {n: {"shape": list(t.shape), "dtype": kinds[t.dtype], "file": "model.safetensors"} for n, t in sorted(state.items())},
        "parameters": {n: list(p.shape) for n, p in model.named_parameters()},
        "image_backend": {k: type(p).__name__ for k, p in processors.items()}, "reference": "tools/oracle/encoders_ref.py: Joined",
    })
    save_tensors(os.path.join(folder, "expected.safetensors"), out)
    write_json(os.path.join(folder, "expected.json"), info)
    print(f"{name}: loss {float(loss):.4f}, {sum(p.numel() for p in model.parameters())} parameters, gaps "
          f"{[round(g['smallest_gap'], 4) for g in info['greedy']]}, tokens {[s['num_tokens'] for s in info['samples']]}")


if __name__ == "__main__":
    for folder_name in sys.argv[1:] or SPECS:
        make(folder_name)
