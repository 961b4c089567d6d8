"""Builds the tiny LLaVA folders of fixtures/models and what transformers computes with them.

    python tools/oracle/models_ref.py [folder ...]

Each folder is a checkpoint in HF layout with random weights, plus `samples.json`, `images/`,
`expected.safetensors` and `expected.json` (layout: fixtures/models/README.md). The architectures and
their odd settings stand in models_specs.py; adapters and training runs are made by train_ref.py.
"""

import copy
import json
import os
import shutil
import sys
import warnings

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import common
import egogpt
import next_inputs
import qwen_inputs
from common import IGNORE, disk_name, make_image, put, save_tensors, write_json
from models_specs import SPECS, TEXTS
from qwen_inputs import is_qwen_vl


def is_text_only(spec):
    return spec["config"]["model_type"] != "llava"


def build_tokenizer(spec):
    kind = spec["tokenizer"]["kind"]
    if kind == "bytelevel":
        tok = common.bytelevel_tokenizer(spec["tokenizer"]["size"], spec["tokenizer"]["specials"])
    else:
        tok = common.sentencepiece_tokenizer(spec["tokenizer"]["size"], spec["tokenizer"]["specials"])
    return tok


def write_processor_files(spec, folder):
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat template, processor files."""
    tok = build_tokenizer(spec)
    tok.save(os.path.join(folder, "tokenizer.json"))
    added = {
        str(i): {"content": t.content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        for i, t in sorted(tok.get_added_tokens_decoder().items())
    }
    names = spec["tokenizer"]["names"]
    config = {
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        **names,
        "model_max_length": 4096,
        "padding_side": "right",
        **({} if is_text_only(spec) else {"processor_class": "LlavaProcessor"}),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    template = spec["template"]
    place = spec.get("template_file", "chat_template.json")
    if place == "chat_template.json":
        write_json(os.path.join(folder, place), {"chat_template": template})
    elif place == "chat_template.jinja":
        with open(os.path.join(folder, place), "w") as f:
            f.write(template)
    else:
        config["chat_template"] = template
    write_json(os.path.join(folder, "tokenizer_config.json"), config)
    write_json(os.path.join(folder, "special_tokens_map.json"), names)
    if is_text_only(spec):
        return
    write_json(os.path.join(folder, "preprocessor_config.json"), {"processor_class": "LlavaProcessor", **spec["preprocessor"]})
    write_json(os.path.join(folder, "processor_config.json"), {"processor_class": "LlavaProcessor", **spec["processor"]})


def write_weights(spec, folder, model):
    """The weights under the names of hub files, or as save_pretrained writes them."""
    dtype = getattr(torch, spec.get("disk_dtype", "float32"))
    if spec.get("spelling") == "transformers5":
        saved = copy.deepcopy(model).to(dtype)
        saved.save_pretrained(folder, max_shard_size=spec.get("max_shard_size", "10GB"))
        return
    spell = disk_name(model)
    state = {spell(n): p.detach().to(dtype) for n, p in model.named_parameters()}
    shards = spec.get("num_shards", 1)
    if shards == 1:
        save_tensors(os.path.join(folder, "model.safetensors"), state)
        return
    names = sorted(state)
    per = -(-len(names) // shards)
    weight_map = {}
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        part = names[s * per : (s + 1) * per]
        weight_map.update({n: file for n in part})
        save_tensors(os.path.join(folder, file), {n: state[n] for n in part})
    total = sum(t.numel() * t.element_size() for t in state.values())
    write_json(
        os.path.join(folder, "model.safetensors.index.json"),
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


def load_model(folder, **kwargs):
    import onevision1_5_ref  # noqa: F401 (registers its configurations)
    from transformers import AutoConfig, AutoModelForCausalLM, LlavaForConditionalGeneration

    with open(os.path.join(folder, "config.json")) as f:
        if json.load(f)["model_type"] == "egogpt_qwen":
            return egogpt.load(folder)
    config = AutoConfig.from_pretrained(folder)
    kind = config.model_type
    model_class = LlavaForConditionalGeneration if kind == "llava" else AutoModelForCausalLM
    if is_qwen_vl(config):
        model_class = qwen_inputs.model_class(config)
    elif kind in next_inputs.KINDS:
        model_class = getattr(transformers, config.architectures[0])
    model, info = model_class.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True, **kwargs
    )
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[key], (key, info[key])
    return model.eval()


def build_folder(spec, folder):
    from transformers import AutoConfig, AutoModelForCausalLM, LlavaForConditionalGeneration

    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder if is_text_only(spec) else os.path.join(folder, "images"))
    write_json(os.path.join(folder, "config.json"), spec["config"])
    write_json(os.path.join(folder, "generation_config.json"), spec["generation"])
    config = AutoConfig.from_pretrained(folder)
    if is_text_only(spec):
        model = AutoModelForCausalLM.from_config(config).float()
    else:
        model = LlavaForConditionalGeneration(config).float()
    common.fill_weights(model, spec["seed"], **spec.get("fill", {}))
    write_weights(spec, folder, model)
    write_processor_files(spec, folder)
    loaded = load_model(folder)
    dtype = getattr(torch, spec.get("disk_dtype", "float32"))
    want = {n: p.detach().to(dtype).float() for n, p in model.named_parameters()}
    for n, p in loaded.named_parameters():
        assert torch.equal(p, want[n]), n
    return loaded


def conversations(spec):
    """Samples as messages; images are referred to by file name inside the folder."""
    out, number = [], 0
    for index, turns in enumerate(spec["samples"]):
        messages = []
        for role, num_images, text in turns:
            content = []
            for _ in range(num_images):
                content.append({"type": "image", "path": f"images/{number}.png"})
                number += 1
            content.append({"type": "text", "text": TEXTS[text]})
            messages.append({"role": role, "content": content})
        out.append({"id": f"sample{index}", "messages": messages})
    return out


def nudged(config, path, value):
    """A copy of a config with one field changed; `path` is dotted."""
    config = copy.deepcopy(config)
    *sections, key = path.split(".")
    section = config
    for s in sections:
        section = getattr(section, s)
    if isinstance(getattr(section, key), dict):
        value = {**getattr(section, key), **value}
    setattr(section, key, value)
    return config


def sensitivity(spec, model, samples):
    """How far the logits move, relative to their scale, when one setting of the config is read wrongly."""
    out = {}
    for path, value in spec["sensitivity"]:
        wrong = type(model)._from_config(
            nudged(model.config, path, value), attn_implementation="eager", dtype=torch.float32
        )
        wrong.load_state_dict(model.state_dict(), strict=True)
        wrong.eval()
        moved = 0.0
        for ids, pixels, logits in samples:
            kwargs = {} if pixels is None else {"pixel_values": pixels}
            with torch.no_grad():
                got = wrong(input_ids=torch.tensor([ids]), **kwargs).logits[0]
            moved = max(moved, float((got - logits).abs().max() / logits.std()))
        out[f"{path} = {value}"] = moved
        assert moved > 5e-4, f"reading `{path}` as {value} would go unseen: {moved:.1e}"
    return out


def pictures(sample):
    return [p["path"] for m in sample["messages"] for p in m["content"] if p["type"] == "image"]


def encode(spec, processor, folder, messages, add_generation_prompt=False):
    """The processor's ids and pixels; text with placeholders expanded by a plain replacement, checked equal."""
    from PIL import Image

    if is_text_only(spec):
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        text = processor.apply_chat_template(
            plain, chat_template=spec["template"], add_generation_prompt=add_generation_prompt, tokenize=False
        )
        return text, text, processor(text)["input_ids"], None

    files = pictures({"messages": messages})
    images = [Image.open(os.path.join(folder, f)).convert("RGB") for f in files]
    text = processor.apply_chat_template(
        messages, chat_template=spec["template"], add_generation_prompt=add_generation_prompt, tokenize=False
    )
    out = processor(text=[text], images=images or None, return_tensors="pt")
    expanded = text.replace("<image>", "<image>" * spec["tokens_per_image"])
    ids = processor.tokenizer(expanded)["input_ids"]
    assert out["input_ids"][0].tolist() == ids, "placeholder expansion differs"
    return text, expanded, ids, out.get("pixel_values")


def tokenizer_of(processor):
    return getattr(processor, "tokenizer", processor)


def labels_of(spec, processor, text, expanded, ids):
    tok = tokenizer_of(processor)
    if spec["labels"] == "chatml":
        return common.labels_chatml(tok, ids)
    if spec["labels"] == "chatml_plain":
        return common.labels_by_prefix(tok, expanded, ids, "<|im_start|>assistant\n", "<|im_end|>")
    if spec["labels"] == "phi":
        return common.labels_by_prefix(tok, expanded, ids, "<|assistant|>", "<|end|>")
    # A generation block that holds the space before the answer makes it part of what is supervised.
    opening = "ASSISTANT:" if spec["labels"] == "vicuna_blocks" else "ASSISTANT: "
    return common.labels_by_prefix(tok, expanded, ids, opening, tok.eos_token)


def batch_of(encoded, pad_id):
    """Right-padded batch of samples: what the data collators of the reference build."""
    longest = max(len(e["ids"]) for e in encoded)
    ids, labels, mask, pixels = [], [], [], []
    for e in encoded:
        gap = longest - len(e["ids"])
        ids.append(e["ids"] + [pad_id] * gap)
        labels.append(e["labels"] + [IGNORE] * gap)
        mask.append([1] * len(e["ids"]) + [0] * gap)
        if e["pixels"] is not None:
            pixels.append(e["pixels"])
    out = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if pixels:
        out["pixel_values"] = torch.cat(pixels)
    return out, torch.tensor(labels)


def batches_of(encoded, pad_id, alone):
    """All samples as one padded batch; with `alone` each as a batch of its own: LongRoPE takes its factors for a whole
    batch by the longest row in it, padding included, and no sample may depend on its neighbours."""
    return [batch_of([e], pad_id) for e in encoded] if alone else [batch_of(encoded, pad_id)]


def nll_of(logits, labels):
    """nll[i] belongs to position i, which predicts token i + 1; 0 where that target is not supervised."""
    nll = torch.zeros(labels.shape, dtype=torch.float32)
    target = labels[:, 1:]
    value = F.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), target.reshape(-1), ignore_index=IGNORE, reduction="none"
    )
    nll = torch.cat([value.view(target.shape), torch.zeros(labels.shape[0], 1)], 1)
    return nll


def gradient_noise(model, batches, count):
    """How far rounding moves each gradient: norm of (f32 - f64 gradient) / norm, where above 1e-4.

    The f64 run keeps the reference's own f32 islands (norms, softmax), so this is a lower bound.
    """
    spell = disk_name(model)
    wide = copy.deepcopy(model).double()
    wide.zero_grad(set_to_none=True)
    for batch, labels in batches:
        batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        (nll_of(wide(**batch).logits, labels).sum() / count).backward()
    out = {}
    for (n, p), (_, q) in zip(model.named_parameters(), wide.named_parameters()):
        if p.grad is not None:
            noise = float((p.grad.double() - q.grad).norm() / q.grad.norm())
            if noise > 1e-4:
                out[spell(n)] = noise
    return out


def check_assistant_mask(spec, processor, messages, folder, labels, ids):
    """Where the template has generation blocks, transformers' own mask must name the same tokens but the end."""
    if "{% generation %}" not in spec["template"] or pictures({"messages": messages}):
        return False
    tok = tokenizer_of(processor)
    out = tok.apply_chat_template(
        messages, chat_template=spec["template"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    # The tokenizer's own chat call adds no start token; the processor's does.
    first = int(ids[0] == tok.bos_token_id)
    assert out["input_ids"] == ids[first:]
    # The end of turn stands outside the block of ChatML and inside that of the Vicuna template.
    end = tok.convert_tokens_to_ids("<|im_end|>")
    want = [int(l != IGNORE and l != end) for l in labels[first:]]
    assert out["assistant_masks"] == want, "assistant mask differs"
    return True


def greedy(model, inputs, count, eos=None):
    """Continuation by generate() and the smallest gap between the two best logits on the way."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=count, do_sample=False, eos_token_id=eos, pad_token_id=0, return_dict_in_generate=True, output_logits=True
    )
    model.generation_config = config
    with torch.no_grad():
        out = model.generate(**inputs, generation_config=config)
    new = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    gaps = []
    for step in out.logits:
        top = step[0].topk(2).values
        gaps.append(float(top[0] - top[1]))
    return new, min(gaps)


def make(name):
    from transformers import AutoProcessor, AutoTokenizer

    spec = SPECS[name]
    folder = os.path.join(common.FIXTURES, name)
    model = build_folder(spec, folder)
    samples = conversations(spec)
    for sample in samples:
        for path in pictures(sample):
            number = int(os.path.basename(path)[:-4])
            w, h = spec["image_sizes"][number % len(spec["image_sizes"])]
            make_image(spec["seed"] * 1000 + number, w, h).save(os.path.join(folder, path), optimize=True)
    spell = disk_name(model)
    processor = (AutoTokenizer if is_text_only(spec) else AutoProcessor).from_pretrained(folder)
    if spec.get("spelling") == "transformers5" and not is_text_only(spec):
        for file in ("preprocessor_config.json", "processor_config.json", "special_tokens_map.json"):
            os.remove(os.path.join(folder, file))
        processor.save_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)

    out, info = {}, {"samples": []}
    encoded = []
    masks_checked = 0
    for index, sample in enumerate(samples):
        text, expanded, ids, pixels = encode(spec, processor, folder, sample["messages"])
        labels = labels_of(spec, processor, text, expanded, ids)
        masks_checked += check_assistant_mask(spec, processor, sample["messages"], folder, labels, ids)
        encoded.append({"ids": ids, "labels": labels, "pixels": pixels})
        out[f"sample{index}.input_ids"] = torch.tensor(ids)
        out[f"sample{index}.labels"] = torch.tensor(labels)
        if pixels is not None:
            out[f"sample{index}.pixel_values"] = pixels
        with torch.no_grad():
            kwargs = {"input_ids": torch.tensor([ids])}
            if pixels is not None:
                kwargs["pixel_values"] = pixels
            result = model(**kwargs)
        out[f"sample{index}.logits"] = result.logits[0].clone()
        out[f"sample{index}.nll"] = nll_of(result.logits, torch.tensor([labels]))[0].clone()
        info["samples"].append(
            {
                "id": sample["id"],
                "text": text,
                "num_tokens": len(ids),
                "num_supervised": sum(l != IGNORE for l in labels[1:]),
                "images": pictures(sample),
            }
        )
    write_json(os.path.join(folder, "samples.json"), samples)

    # The whole batch, padded: features, logits at the samples' own positions, loss, gradients.
    batches = batches_of(encoded, tokenizer_of(processor).pad_token_id, spec.get("alone", False))
    model.zero_grad(set_to_none=True)
    count = sum(int((labels[:, 1:] != IGNORE).sum()) for _, labels in batches)
    loss, own, worst, features, padded = 0.0, 0.0, 0.0, [], []
    for batch, labels in batches:
        result = model(**batch)
        part = nll_of(result.logits, labels).sum() / count
        part.backward()
        loss += part.detach()
        own += model(**batch, labels=labels, num_items_in_batch=count).loss.item()
        padded.extend(result.logits.detach())
        if getattr(result, "image_hidden_states", None) is not None:
            features.append(result.image_hidden_states.detach().reshape(-1, result.image_hidden_states.shape[-1]))
    assert abs(own - loss.item()) < 1e-5 * loss.item()
    if not is_text_only(spec):
        features = torch.cat(features)
        out["batch.features"] = features.reshape(-1, spec["tokens_per_image"], features.shape[-1]).clone()
    for index, e in enumerate(encoded):
        worst = max(worst, float((out[f"sample{index}.logits"] - padded[index][: len(e["ids"])]).abs().max()))
    scale = float(torch.cat([out[f"sample{i}.logits"].reshape(-1) for i in range(len(encoded))]).std())
    out["batch.loss"] = loss.reshape(1).clone()
    unreached, zero = [], []
    for n, p in model.named_parameters():
        if p.grad is None:
            unreached.append(spell(n))
            continue
        # Mathematically zero: a key bias shifts all scores of a query alike where nothing rotates.
        if n.endswith("k_proj.bias") and "vision_tower" in n:
            zero.append(spell(n))
        put(out, "grad", spell(n), p.grad)
    noise = gradient_noise(model, batches, count)

    # Continuations of a prompt with images and of one without.
    info["greedy"] = []
    for which in (0, spec.get("text_only", 2)):
        prompt = samples[which]["messages"]
        cut = next(i for i, m in enumerate(prompt) if m["role"] == "assistant")
        text, _, ids, pixels = encode(spec, processor, folder, prompt[:cut], add_generation_prompt=True)
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if pixels is not None:
            inputs["pixel_values"] = pixels
        new, gap = greedy(model, inputs, 24)
        eos = next((t for i, t in enumerate(new) if i >= 5 and t not in new[:i]), new[0])
        stopped, _ = greedy(model, inputs, 24, eos)
        # The reference mixes the keys of both ranges where a LLaVA grows past LongRoPE's switch: none does so here.
        switch = getattr(model.config.get_text_config(), "rope_parameters", {}).get("long_factor") and (
            model.config.get_text_config().rope_parameters["original_max_position_embeddings"]
        )
        crosses = bool(switch) and len(ids) <= switch < len(ids) + 24
        assert is_text_only(spec) or not crosses, (len(ids), switch)
        info["greedy"].append(
            {
                "sample": which, "num_messages": cut, "text": text, "input_ids": ids, "images": pictures({"messages": prompt[:cut]}),
                "new_ids": new, "smallest_gap": gap, "eos_id": eos, "new_ids_with_eos": stopped,
            }
        )

    names = {}
    for file in sorted(os.listdir(folder)):
        if file.startswith("model") and file.endswith(".safetensors"):
            for n, t in load_file(os.path.join(folder, file)).items():
                names[n] = {"shape": list(t.shape), "dtype": {torch.float32: "F32", torch.bfloat16: "BF16"}[t.dtype], "file": file}
    info.update(
        {
            "versions": common.versions(),
            "seed": spec["seed"],
            "spelling": spec.get("spelling", "hub"),
            "tokens_per_image": spec.get("tokens_per_image", 0),
            "loss": float(loss),
            "num_supervised": count,
            "logits_std": scale,
            "sensitivity": sensitivity(
                spec, model, [(e["ids"], e["pixels"], out[f"sample{i}.logits"]) for i, e in enumerate(encoded)]
            ),
            "padded_vs_alone_max_abs": worst,
            "assistant_masks_checked": masks_checked,
            "image_backend": type(getattr(processor, "image_processor", None)).__name__,
            "no_gradient": sorted(unreached),
            "zero_gradient": sorted(zero),
            "gradient_noise": {n: x for n, x in sorted(noise.items()) if n not in zero},
            "tensors_on_disk": names,
            "parameters": {spell(n): list(p.shape) for n, p in model.named_parameters()},
        }
    )
    save_tensors(os.path.join(folder, "expected.safetensors"), out)
    write_json(os.path.join(folder, "expected.json"), info)
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(folder) for f in fs)
    print(
        f"{name}: {size / 1e3:.0f} kB, loss {float(loss):.4f} over {count}, logits std {scale:.2f}, padded-alone {worst:.1e}, "
        f"tokens {[len(e['ids']) for e in encoded]}, prompts {[len(g['input_ids']) for g in info['greedy']]}, gaps {[round(g['smallest_gap'], 3) for g in info['greedy']]}, "
        f"masks checked {masks_checked}, unreached {len(unreached)}, "
        f"least sensitive {min(info['sensitivity'].items(), key=lambda kv: kv[1])}"
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or SPECS:
        make(name)
