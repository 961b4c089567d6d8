"""Shared parts of the parity fixture generators: seeds, projections, tokenizers, templates, images, names.

Everything random comes from numpy's PCG64 with the seeds written here, so a generator gives the same
files again with the versions named in each `expected.json`.
"""

import json
import os
import platform
import re

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
FIXTURES = os.path.join(ROOT, "fixtures", "models")
IGNORE = -100
# Tensors of at most this many elements are stored whole; larger ones as norm and projections.
WHOLE = 1024
NUM_PROJECTIONS = 4


def versions():
    import peft
    import safetensors
    import tokenizers
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "tokenizers": tokenizers.__version__,
        "safetensors": safetensors.__version__,
        "numpy": np.__version__,
    }


# ---------------------------------------------------------------------------------------------------
# Projections: a reader in any language rebuilds the vectors from (seed, index) alone.


def fnv1a(text):
    """64-bit FNV-1a of the UTF-8 bytes of a tensor's name: the seed of its projections."""
    h = 0xCBF29CE484222325
    for b in text.encode():
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def projection_vector(seed, which, n):
    """Element i is the top 24 bits of splitmix64's output number (which * 2^32 + i + 1), mapped to [-1, 1)."""
    with np.errstate(over="ignore"):
        counter = np.arange(1, n + 1, dtype=np.uint64) + np.uint64(which << 32)
        z = np.uint64(seed) + counter * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / float(1 << 23) - 1.0


def project(name, tensor):
    """[norm, p0, p1, p2, p3] of a tensor in float64, stored as float64."""
    x = tensor.detach().to(torch.float64).reshape(-1).numpy()
    seed = fnv1a(name)
    out = [float(np.sqrt((x * x).sum()))]
    out += [float((x * projection_vector(seed, k, x.size)).sum()) for k in range(NUM_PROJECTIONS)]
    return torch.tensor(out, dtype=torch.float64)


def put(out, prefix, name, tensor, whole=WHOLE):
    """Stores a tensor under `prefix.name` whole, or under `prefix_proj.name` as norm and projections."""
    if tensor.numel() <= whole:
        out[f"{prefix}.{name}"] = tensor.detach().to(torch.float32).contiguous().clone()
    else:
        out[f"{prefix}_proj.{name}"] = project(name, tensor)


# ---------------------------------------------------------------------------------------------------
# Names: the spelling that checkpoints on the hub use, whatever the class calls its parts in memory.


def hub_name(name):
    """In-memory name of `LlavaForConditionalGeneration` in transformers 5 -> on-disk name of hub files."""
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    if name.startswith("model.language_model."):
        return "language_model.model." + name[len("model.language_model.") :]
    if name.startswith("model.vision_tower."):
        return "vision_tower.vision_model." + name[len("model.vision_tower.") :]
    if name.startswith(("model.multi_modal_projector.", "model.vision_resampler.")) or name == "model.image_newline":
        return name[len("model.") :]
    raise ValueError(f"no on-disk name for `{name}`")


def disk_name(model):
    """The spelling of a model's checkpoints: a decoder alone has the same names in memory and on disk."""
    return hub_name if model.config.model_type.startswith("llava") else lambda name: name


# ---------------------------------------------------------------------------------------------------
# Weights: far from a fresh initialisation, so that a mistake anywhere shows in the logits.


def fill_weights(model, seed, embed_std=0.6, patch_std=None):
    """Random weights: linear N(0, gain/sqrt(fan_in)), norms 1 + 0.3 N, biases 0.2 N, tables N(0, embed_std).

    A small `embed_std` makes the first norms see values near their epsilon, so that a wrong epsilon
    shows; `patch_std` does the same for the vision tower's patches and positions.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            x = rng.standard_normal(p.shape)
            if name.endswith("bias"):
                x = (patch_std if patch_std and "patch_embedding" in name else 0.2) * x
            elif "norm" in name:
                x = 1.0 + 0.3 * x
            elif "position_embedding" in name or "class_embedding" in name:
                x = (patch_std or 0.4) * x
            elif "patch_embedding" in name and patch_std:
                x = patch_std * x / np.sqrt(np.prod(p.shape[1:]))
            elif "embed_tokens" in name:
                x = embed_std * x
            else:
                fan_in = int(np.prod(p.shape[1:]))
                gain = 2.2 if "lm_head" in name else 1.4 if ("q_proj" in name or "k_proj" in name) else 1.1
                x = gain * x / np.sqrt(fan_in)
            p.copy_(torch.from_numpy(np.ascontiguousarray(x)).to(p.dtype))


# ---------------------------------------------------------------------------------------------------
# Tokenizers: trained on a few lines here; the two kinds that the checkpoints use.

CORPUS = [
    "What is moving in the picture? A red circle is moving to the left, then a blue square appears.",
    "How many green triangles cross the yellow line? Two triangles cross it, one after the other.",
    "Which shape comes first, the circle or the square? The square comes first and the circle follows.",
    "Describe the second picture. There is nothing in it but a grey background with small dots.",
    "You answer questions about short clips of coloured shapes. The user shows frames; the assistant answers.",
    "USER: ASSISTANT: system user assistant yes no left right up down before after first last",
    "Is the circle larger than the square? Yes, it is larger. Compare both frames and say what changed.",
]


def bytelevel_tokenizer(vocab_size, specials, extra_letters=True):
    """Byte-level BPE in Qwen2's layout; `specials` get the ids after the vocabulary."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    split = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(CORPUS, trainer)
    tok.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in specials])
    return tok


def sentencepiece_tokenizer(num_pieces, specials):
    """BPE with byte fallback in Llama's layout: <unk> <s> </s>, 256 bytes, characters, merges."""
    marked = ["▁" + line.replace(" ", "▁") for line in CORPUS]
    trainer_tok = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer_tok.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]*|[^▁]+"), behavior="isolated")
    trainer = trainers.BpeTrainer(vocab_size=num_pieces, show_progress=False)
    trainer_tok.train_from_iterator(marked, trainer)
    trained = json.loads(trainer_tok.to_str())["model"]
    pieces = sorted(trained["vocab"], key=lambda p: trained["vocab"][p])
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for b in range(256):
        vocab[f"<0x{b:02X}>"] = len(vocab)
    for p in pieces:
        if p not in vocab:
            vocab[p] = len(vocab)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in trained["merges"]]
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tok.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in ["<unk>", "<s>", "</s>"]])
    tok.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in specials])
    return tok


# ---------------------------------------------------------------------------------------------------
# Chat templates, written for these fixtures in the manner of the families' own.

# ChatML with image placeholders before the text of a turn; the answer stands in a generation block
# that holds the newline before it.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ ' <image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ '\\n' + part['text'] }}{% endgeneration %}"
    "{% else %}{{ '\\n' + part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)

# Vicuna: roles in capitals, placeholders with a newline, the answer closed by the end-of-text token.
VICUNA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + ' ' }}"
    "{% else %}{{ message['role'] | upper + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

# Plain ChatML: a system turn of its own where the conversation has none, parts in their own order, a
# newline after each turn; no generation blocks.
CHATML_PLAIN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou look at pictures.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# As Vicuna, with generation blocks around the answers and no system text before the first turn.
VICUNA_BLOCKS = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + ' ' }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ 'ASSISTANT:' }}"
    "{% generation %}{{ ' ' + message['content'][0]['text'] + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

# Phi: a mark before each turn and one after it, nothing between them.
PHI = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


# ---------------------------------------------------------------------------------------------------
# Images: smooth colour fields with a few hard edges, of sizes that need resizing and ones that do not.


def make_image(seed, width, height):
    rng = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.zeros((height, width, 3))
    for c in range(3):
        fx, fy, ph = rng.uniform(0.05, 0.6, 3)
        out[:, :, c] = 127 + 90 * np.sin(fx * x + fy * y + 6 * ph) + rng.uniform(-30, 30)
    x0, y0 = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
    out[y0 : y0 + height // 3, x0 : x0 + width // 3] = rng.uniform(0, 255, 3)
    return Image.fromarray(np.clip(np.rint(out), 0, 255).astype(np.uint8), "RGB")


# ---------------------------------------------------------------------------------------------------
# Labels, by walking over tokens and prefixes; no character spans are involved.


def labels_chatml(tok, ids):
    """Supervised: everything after `<|im_start|>assistant` up to and with `<|im_end|>`."""
    start, end = tok.convert_tokens_to_ids("<|im_start|>"), tok.convert_tokens_to_ids("<|im_end|>")
    labels, i = [IGNORE] * len(ids), 0
    while i < len(ids):
        if ids[i] == start:
            j, role = i + 1, ""
            while len(role) < len("assistant") and "assistant".startswith(role) and j < len(ids):
                role += tok.decode([ids[j]])
                j += 1
            if role == "assistant":
                while ids[j] != end:
                    labels[j] = ids[j]
                    j += 1
                labels[j] = ids[j]
            i = j
        else:
            i += 1
    return labels


def labels_by_prefix(tok, text, ids, opening, closing):
    """Supervised: the tokens that overlap the text between `opening` and the next `closing`, and `closing` itself.

    Found by tokenising prefixes: the text after `opening` begins at the first token that the opening alone does not have
    as well. A token that holds nothing but the opening's last space stays unsupervised; one that the space shares with the
    text's first word is supervised.
    """
    labels = [IGNORE] * len(ids)
    for m in re.finditer(re.escape(opening) + r"(.*?)" + re.escape(closing), text, flags=re.S):
        before = tok(text[: m.start() + len(opening)])["input_ids"]
        upto = tok(text[: m.end()])["input_ids"]
        first = next((i for i, (a, b) in enumerate(zip(before, ids)) if a != b), len(before))
        assert first >= len(before) - 1 and ids[: len(upto)] == upto
        for i in range(first, len(upto)):
            labels[i] = ids[i]
    return labels


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=1, ensure_ascii=False)
        f.write("\n")


def save_tensors(path, tensors):
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
