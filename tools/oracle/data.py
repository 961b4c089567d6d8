"""Fixtures of the data crate: chat templates with their masks, image processors.

`fixtures/data/text/CASE/` is what a processor is loaded from (tokenizer, template, configuration); `expected.json` in it
holds for every conversation of `fixtures/data/text/conversations.json` the rendered text, the ids and the mask of what is
learned. Texts and ids come from `apply_chat_template` of transformers. Masks come from its `return_assistant_tokens_mask`
where the template has generation blocks; otherwise from the pieces of a second renderer, written here by hand for each
template (its text must equal the template's), by the offsets of the tokens. The end-of-turn token directly after an answer
is part of the mask in both.

`fixtures/data/images/` holds image processor configurations, pictures, and the values that transformers makes of them.

Run with Pillow 12, whose order of passes ours repeats: python tools/oracle/data.py (versions and seeds go into the files;
nothing here reads our own output).
"""

import json
import os
import shutil

import common
import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoProcessor, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_llava import LlavaImageProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor

OUT = os.path.join(common.ROOT, "fixtures", "data")


def user(text, images=0, after=None):
    """A user turn: pictures, then text; `after` is more text behind one more picture."""
    parts = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    if after is not None:
        parts += [{"type": "image"}, {"type": "text", "text": after}]
    return {"role": "user", "content": parts}


def turn(role, text):
    return {"role": role, "content": [{"type": "text", "text": text}]}


def answer(text):
    return turn("assistant", text)


CONVERSATIONS = [
    [user("What is moving?", 1), answer("A red circle.")],
    # The user's words are the answer's words, more than once.
    [user("yes"), answer("yes"), user("yes yes", 1), answer("yes")],
    # White space around and inside; newlines; an answer that starts like a role.
    [user("  Compare.  ", 2), answer("  first\n\nsecond  "), user("And?\n"), answer("USER: no\n")],
    [turn("system", "You answer questions."), user("Naïve café 你好 🙂?", 1), answer("Ça va 你好 🙂🙃 e\u0301!")],
    # Many turns.
    [t for i in range(4) for t in (user(f"number {i}?", i % 2), answer(f"{i}"))],
    # Text that looks like parts of templates, and like sentinels.
    [user("{{ x }} {% y %} \ue000\ue001", 1), answer("\ue000 {{ z }} <b>&amp;</b>")],
]

# ---------------------------------------------------------------------------------------------------
# Templates, each with a second renderer that gives (text, learned) pieces.


def text_of(message):
    return "".join(p["text"] for p in message["content"] if p["type"] == "text")


def num_images(message):
    return sum(p["type"] == "image" for p in message["content"])


QWEN = (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
    "{%- else %}\n"
    "    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- for message in messages %}\n"
    "    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or (message.role == 'assistant' and not message.tool_calls) %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)


def as_text(message):
    """Content as one text, for templates that take text: placeholders, then a newline before the words."""
    out, after = "", False
    for part in message["content"]:
        if part["type"] == "image":
            out, after = out + "<image>", True
        else:
            if after and part["text"].strip() and part["text"][0] not in "\r\n":
                out += "\n"
            out, after = out + part["text"], False
    return out


def qwen_pieces(messages):
    if messages[0]["role"] != "system":
        yield "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", False
    for m in messages:
        yield f"<|im_start|>{m['role']}\n", False
        yield as_text(m), m["role"] == "assistant"
        yield "<|im_end|>", m["role"] == "assistant"
        yield "\n", False


# Trims contents; begins with the begin token, which the tokenizer would add as well.
LLAMA3 = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}\n"
    "    {{- content }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
    "{%- endif %}\n"
)


def llama3_pieces(messages):
    yield "<|begin_of_text|>", False
    for m in messages:
        yield f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n", False
        yield as_text(m).strip(), m["role"] == "assistant"
        yield "<|eot_id|>", m["role"] == "assistant"


# Parts in a list, a macro, a namespace, Python methods, loop controls; strips answers on the right only.
PARTS = (
    "{%- macro say(content) -%}\n"
    "{%- for part in content -%}\n"
    "{%- if part.type == 'image' -%}<image>{%- continue -%}{%- endif -%}\n"
    "{{- part['text'] -}}\n"
    "{%- endfor -%}\n"
    "{%- endmacro -%}\n"
    "{%- set ns = namespace(count=0) -%}\n"
    "{%- for message in messages -%}\n"
    "{%- set ns.count = ns.count + 1 -%}\n"
    "{%- if message.role == 'assistant' -%}\n"
    "{{- '[' ~ ns.count ~ '] ' + message['role'].upper()[:4] + ': ' + say(message.content).rstrip() + '</s>' -}}\n"
    "{%- elif message.role.startswith('sys') -%}\n"
    "{{- '<<' + say(message.content) + '>> ' -}}\n"
    "{%- else -%}\n"
    "{{- '[' ~ ns.count ~ '] ' + message['role'].upper() + ': ' + say(message.content) + ' ' -}}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- 'ASSI:' -}}{%- endif -%}\n"
)


def parts_pieces(messages):
    for number, m in enumerate(messages, 1):
        said = "".join("<image>" if p["type"] == "image" else p["text"] for p in m["content"])
        if m["role"] == "assistant":
            yield f"[{number}] ASSI: ", False
            yield said.rstrip(), True
            yield "</s>", True
        elif m["role"] == "system":
            yield f"<<{said}>> ", False
        else:
            yield f"[{number}] USER: {said} ", False


# Generation blocks inside an indented loop, with whitespace control; pictures first.
BLOCKS = (
    "{% for message in messages %}\n"
    "  {% if message['role'] == 'assistant' %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- generation %}\n"
    "      {{- message['content'] | map(attribute='text') | join | trim }}\n"
    "      {{- '<|im_end|>' }}\n"
    "    {%- endgeneration %}\n"
    "    {{- '\\n' }}\n"
    "  {% else %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' }}\n"
    "    {%- for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}\n"
    "    {%- for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}\n"
    "    {{- '<|im_end|>\\n' }}\n"
    "  {% endif %}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}\n"
    "  {{- '<|im_start|>assistant\\n' }}\n"
    "{% endif %}\n"
)

# Takes reasoning out of answers before the last one, as reasoning models do: marks inside the answer do not survive.
THINK = (
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'assistant' %}\n"
    "        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}\n"
    "        {%- if loop.last %}\n"
    "            {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + content.strip('\\n') + '<|im_end|>\\n' }}\n"
    "        {%- else %}\n"
    "            {{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}\n"
    "        {%- endif %}\n"
    "    {%- else %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)


def think_pieces(messages):
    for i, m in enumerate(messages):
        yield f"<|im_start|>{m['role']}\n", False
        if m["role"] != "assistant":
            yield as_text(m) + "<|im_end|>\n", False
            continue
        said = as_text(m).split("</think>")[-1].lstrip("\n")
        if i + 1 == len(messages):
            yield "<think>\n\n</think>\n\n", False
            said = said.strip("\n")
        yield said, True
        yield "<|im_end|>", True
        yield "\n", False


# ---------------------------------------------------------------------------------------------------
# Tokenizers.

QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
LLAMA3_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>"]


def llama3_tokenizer():
    tok = common.bytelevel_tokenizer(330, LLAMA3_SPECIALS)
    bos = tok.token_to_id("<|begin_of_text|>")
    tok.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                special_tokens=[("<|begin_of_text|>", bos)],
            ),
        ]
    )
    return tok


def metaspace_tokenizer():
    """The layout that newer Llama conversions have: no normalizer, a space mark before the first word only."""
    tok = common.sentencepiece_tokenizer(150, ["<image>", "<pad>"])
    spec = json.loads(tok.to_str())
    spec["normalizer"] = None
    spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    spec["post_processor"] = None
    return Tokenizer.from_str(json.dumps(spec))


CASES = {
    # name: (tokenizer, special tokens, extra tokenizer_config keys, template, pieces, where the template is kept, content)
    "qwen_default_system": (
        lambda: common.bytelevel_tokenizer(330, QWEN_SPECIALS),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, {}, QWEN, qwen_pieces, "tokenizer_config", "text",
    ),
    "llama3_trim_bos": (
        llama3_tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>"},
        {}, LLAMA3, llama3_pieces, "named_list", "text",
    ),
    "parts_metaspace": (
        metaspace_tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        {"add_bos_token": True, "add_eos_token": False}, PARTS, parts_pieces, "jinja", "parts",
    ),
    "generation_blocks": (
        lambda: common.bytelevel_tokenizer(330, QWEN_SPECIALS),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, {}, BLOCKS, None, "json", "parts",
    ),
    "think_removed": (
        lambda: common.bytelevel_tokenizer(330, QWEN_SPECIALS),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, {}, THINK, think_pieces, "processor_config", "text",
    ),
}

THINK_CONVERSATIONS = [
    [user("Why?", 1), answer("<think>\nbecause\n</think>\n\nSo."), user("And?"), answer("Yes.")],
    [user("a"), answer("b"), user("b"), answer("<think>\nb\n</think>\n\nc")],
]

IMAGE_PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor", "do_resize": True, "size": {"height": 16, "width": 16}, "resample": 3,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}


def write_case(name, spec):
    make, specials, extra, template, pieces, place, content = spec
    folder = os.path.join(OUT, "text", name)
    os.makedirs(folder)
    make().save(os.path.join(folder, "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": 4096}
    config |= specials | extra
    processor_config = {
        "processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": 8,
        "num_additional_image_tokens": 0, "vision_feature_select_strategy": "full",
    }
    if place == "tokenizer_config":
        config["chat_template"] = template
    elif place == "named_list":
        config["chat_template"] = [{"name": "tool_use", "template": "unused"}, {"name": "default", "template": template}]
    elif place == "jinja":
        with open(os.path.join(folder, "chat_template.jinja"), "w") as f:
            f.write(template)
    elif place == "json":
        common.write_json(os.path.join(folder, "chat_template.json"), {"chat_template": template})
    elif place == "processor_config":
        processor_config["chat_template"] = template
    common.write_json(os.path.join(folder, "tokenizer_config.json"), config)
    common.write_json(os.path.join(folder, "processor_config.json"), processor_config)
    common.write_json(os.path.join(folder, "preprocessor_config.json"), IMAGE_PROCESSOR)
    common.write_json(os.path.join(folder, "config.json"), {"model_type": "llava", "image_token_index": make().token_to_id("<image>")})

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    processor = LlavaProcessor(
        SiglipImageProcessor(**{k: v for k, v in IMAGE_PROCESSOR.items() if k != "image_processor_type"}), tokenizer,
        patch_size=8, vision_feature_select_strategy="full", num_additional_image_tokens=0, chat_template=template,
    )
    conversations = THINK_CONVERSATIONS if name == "think_removed" else CONVERSATIONS
    picture = common.make_image(5, 20, 20)
    expected = []
    for messages in conversations:
        given = messages
        if content == "text":
            given = [{"role": m["role"], "content": as_text(m)} for m in messages]
        images = [picture] * sum(num_images(m) for m in messages)
        text = processor.apply_chat_template(given)
        prompt = processor.apply_chat_template(given[:-1], add_generation_prompt=True)
        out = processor.apply_chat_template(
            given, tokenize=True, return_dict=True, return_assistant_tokens_mask=pieces is None,
            processor_kwargs={"images": images} if images and content == "text" else {},
        ) if not images or content == "text" else processor.apply_chat_template(
            with_images(given, picture), tokenize=True, return_dict=True, return_assistant_tokens_mask=pieces is None
        )
        ids = np.asarray(out["input_ids"]).reshape(-1).tolist()
        if pieces is None:
            mask = np.asarray(out["assistant_masks"]).reshape(-1).tolist()
        else:
            mask = mask_by_pieces(tokenizer, text, list(pieces(messages)), ids)
        expected.append({"text": text, "prompt": prompt, "ids": ids, "mask": "".join(map(str, mask))})
        assert sum(mask) > 0, (name, messages)
    common.write_json(
        os.path.join(folder, "expected.json"),
        {"versions": common.versions(), "content": content, "conversations": expected},
    )
    if name == "think_removed":
        common.write_json(os.path.join(folder, "conversations.json"), conversations)


def with_images(messages, picture):
    return [
        {"role": m["role"], "content": [{"type": "image", "image": picture} if p["type"] == "image" else p for p in m["content"]]}
        for m in messages
    ]


def mask_by_pieces(tokenizer, text, pieces, ids):
    """1 for tokens that overlap a learned piece, by the offsets of the whole text with placeholders expanded."""
    assert "".join(t for t, _ in pieces) == text, ("".join(t for t, _ in pieces), text)
    repeated = "<image>" * 4
    expanded, learned = "", []
    for piece, learn in pieces:
        piece = piece if learn else piece.replace("<image>", repeated)
        if learn and piece:
            learned.append((len(expanded), len(expanded) + len(piece)))
        expanded += piece
    has_bos = tokenizer.bos_token is not None and expanded.startswith(tokenizer.bos_token)
    out = tokenizer(expanded, return_offsets_mapping=True, add_special_tokens=not has_bos)
    assert out["input_ids"] == ids, (out["input_ids"], ids)
    return [int(any(s < b and e > a for a, b in learned)) for s, e in out["offset_mapping"]]


# ---------------------------------------------------------------------------------------------------
# Image processors.

SIZES = [(20, 20), (37, 23), (23, 37), (9, 31), (64, 18), (16, 16), (5, 4)]

PROCESSORS = {
    "clip_shortest_crop": (CLIPImageProcessor, {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}),
    "clip_crop_larger": (CLIPImageProcessor, {"size": {"shortest_edge": 14}, "crop_size": {"height": 17, "width": 24}}),
    "clip_int_size": (CLIPImageProcessor, {"size": 16, "crop_size": 16}),
    "clip_bounded": (
        CLIPImageProcessor, {"size": {"shortest_edge": 20, "longest_edge": 30}, "crop_size": {"height": 18, "width": 18}},
    ),
    "clip_no_resize": (CLIPImageProcessor, {"do_resize": False, "crop_size": {"height": 15, "width": 12}}),
    "siglip": (SiglipImageProcessor, {"size": {"height": 16, "width": 16}}),
    "siglip_oblong_bilinear": (
        SiglipImageProcessor,
        {"size": {"height": 12, "width": 21}, "resample": 2, "image_mean": [0.1, 0.2, 0.7], "image_std": [0.3, 0.9, 1.1]},
    ),
    "siglip_no_normalize": (SiglipImageProcessor, {"size": {"height": 8, "width": 8}, "do_normalize": False}),
    "siglip_no_rescale": (SiglipImageProcessor, {"size": {"height": 8, "width": 8}, "do_rescale": False}),
    "siglip_odd_factor": (SiglipImageProcessor, {"size": {"height": 8, "width": 8}, "rescale_factor": 1 / 127.5}),
    "siglip_bytes": (SiglipImageProcessor, {"size": {"height": 8, "width": 8}, "do_rescale": False, "do_normalize": False}),
    "llava_pad_square": (
        LlavaImageProcessor, {"do_pad": True, "size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
    ),
    "pil_clip": (CLIPImageProcessorPil, {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}),
    "pil_clip_crop_larger": (
        CLIPImageProcessorPil, {"size": {"shortest_edge": 14}, "crop_size": {"height": 17, "width": 24}},
    ),
    "pil_siglip_no_normalize": (SiglipImageProcessorPil, {"size": {"height": 9, "width": 13}, "do_normalize": False}),
    "pil_siglip": (SiglipImageProcessorPil, {"size": {"height": 9, "width": 13}, "resample": 2}),
    "pil_llava_pad_square": (
        LlavaImageProcessorPil, {"do_pad": True, "size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
    ),
}


def write_images():
    folder = os.path.join(OUT, "images")
    os.makedirs(folder)
    pictures = []
    for i, (width, height) in enumerate(SIZES):
        picture = common.make_image(100 + i, width, height)
        picture.save(os.path.join(folder, f"{i}.png"))
        pictures.append(picture)
    configs, tensors = {}, {}
    for name, (cls, kwargs) in PROCESSORS.items():
        processor = cls(**kwargs)
        saved = json.loads(processor.to_json_string())
        # Keys that only say what the class says by itself are left out of every other file: defaults must be known.
        written = dict(kwargs, image_processor_type=saved["image_processor_type"])
        configs[name] = {"backend": "pillow" if name.startswith("pil_") else "torchvision", "saved": saved, "short": written}
        for i, picture in enumerate(pictures):
            values = processor(picture, return_tensors="pt")["pixel_values"][0]
            tensors[f"{name}.{i}"] = values.to(torch.float32)
    versions = common.versions() | {"torchvision": torchvision.__version__, "pillow": PIL.__version__}
    common.write_json(os.path.join(folder, "processors.json"), {"versions": versions, "sizes": SIZES, "processors": configs})
    common.save_tensors(os.path.join(folder, "expected.safetensors"), tensors)


def main():
    assert PIL.__version__.startswith("12."), PIL.__version__
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(os.path.join(OUT, "text"))
    common.write_json(os.path.join(OUT, "text", "conversations.json"), CONVERSATIONS)
    for name, spec in CASES.items():
        write_case(name, spec)
    write_images()


if __name__ == "__main__":
    main()
