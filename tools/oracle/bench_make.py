"""What `cargo xtask bench` runs on: random checkpoints in Hugging Face layout, pictures, clips and records.

    python tools/oracle/bench_make.py DIR

writes, where absent:

    DIR/paper    LLaVA: SigLIP 12 x 768 (224 px, patch 16), Qwen2 24 x 896, vocabulary 32000, bf16
    DIR/small    LLaVA: SigLIP 4 x 192 (the same pictures), Qwen2 4 x 256, bf16: decoding weighs as much as arithmetic
    DIR/text     the Qwen2 of `bench_step.py` (4 x 896) with a tokenizer, bf16
    DIR/frames   8 records of 8 PNG frames each, 320 x 240            (frames.jsonl)
    DIR/clips    24 clips of 4 s, 320 x 240, 30 frames a second, h264 (clips.jsonl)
    DIR/texts_N.jsonl   N records whose inputs have 16 to 512 tokens, 32 lengths in a fixed random order, repeated

Needs torch, transformers, tokenizers, PyAV, pillow, numpy.
"""

import json
import os
import pathlib
import sys

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VERSION = "2"
SIDE, PATCH, TOKENS_A_FRAME = 224, 16, 196
SENTENCES = [
    "a red square moves to the left",
    "the blue circle stops and a green triangle comes in from above",
    "two yellow stars pass behind the large grey box",
    "nothing happens until the last frame",
    "what happens in this clip from its first frame to its last?",
]
QUESTION, ANSWERS = SENTENCES[-1], SENTENCES[:-1]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}\n{{ c['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LENGTHS = [16 + 16 * i for i in range(32)]


def make_tokenizer():
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator([s for s in SENTENCES for _ in range(20)], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<image>"},
    )
    fast.chat_template = TEMPLATE
    return fast


def qwen2(layers, hidden, heads, key_heads, intermediate):
    from transformers import Qwen2Config

    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=32000,
        tie_word_embeddings=False,
        max_position_embeddings=16384,
        rope_theta=1e6,
        bos_token_id=0,
        eos_token_id=2,
    )


def save_llava(folder, tokenizer, layers, width, text):
    from transformers import (
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    tower = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=TOKENS_A_FRAME,
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    LlavaProcessor(
        SiglipImageProcessor(size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
        num_additional_image_tokens=0,
    ).save_pretrained(folder)


def picture(clip, seconds, rng):
    """A square on its way over a grey ground with a little noise."""
    image = np.full((240, 320, 3), 30 + 5 * (clip % 8), np.uint8)
    x, y = int(20 + 60 * seconds + 7 * clip) % 270, int(20 + 25 * seconds + 11 * clip) % 190
    image[y : y + 40, x : x + 40] = (60 + 8 * (clip % 20), 200 - 6 * (clip % 20), 90)
    return image + rng.integers(0, 8, image.shape).astype(np.uint8)


def record(name, video, **more):
    turns = [
        {"from": "human", "value": f"<video>\n{QUESTION}"},
        {"from": "gpt", "value": ". ".join(ANSWERS[(name + i) % len(ANSWERS)] for i in range(6))},
    ]
    return {"id": f"r{name}", "video": video, **more, "conversations": turns}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_frames(folder):
    (folder / "frames").mkdir(exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    for clip in range(8):
        names = [f"{clip}_{i}.png" for i in range(8)]
        for i, name in enumerate(names):
            Image.fromarray(picture(clip, i / 2, rng)).save(folder / "frames" / name)
        rows.append(record(clip, names, fps=2))
    write_lines(folder / "frames.jsonl", rows)


def make_clips(folder):
    import av

    (folder / "clips").mkdir(exist_ok=True)
    rng, rows = np.random.default_rng(1), []
    for clip in range(24):
        name = f"{clip}.mp4"
        with av.open(str(folder / "clips" / name), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"preset": "medium", "crf": "23", "threads": "1"})
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for i in range(120):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(clip, i / 30, rng), format="rgb24")))
            container.mux(stream.encode())
        rows.append(record(clip, name))
    write_lines(folder / "clips.jsonl", rows)


def input_length(tokenizer, turns):
    return len(tokenizer(tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"])


def make_texts(folder, tokenizer):
    """Records of known length: the question is `a`, the answer is grown letter by letter until the count is right."""
    order = np.random.default_rng(2).permutation(LENGTHS)
    words, rows = " ".join(ANSWERS * 40), []
    for i, length in enumerate(order):
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]
        low, high = 1, len(words)
        while low < high:
            middle = (low + high) // 2
            turns[1]["content"] = words[:middle]
            low, high = (middle + 1, high) if input_length(tokenizer, turns) < length else (low, middle)
        turns[1]["content"] = words[:low]
        rows.append({"messages": turns, "id": i, "tokens": input_length(tokenizer, turns)})
    for count in (32, 160):
        many = [{"id": f"t{i}", "messages": rows[i % 32]["messages"]} for i in range(count)]
        write_lines(folder / f"texts_{count}.jsonl", many)
    (folder / "texts.json").write_text(json.dumps({"tokens": sum(row["tokens"] for row in rows), "records": 32}))


def main():
    folder = pathlib.Path(sys.argv[1])
    stamp = folder / "made.txt"
    if stamp.exists() and stamp.read_text() == VERSION:
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    tokenizer = make_tokenizer()
    save_llava(folder / "paper", tokenizer, 12, 768, qwen2(24, 896, 14, 2, 4864))
    save_llava(folder / "small", tokenizer, 4, 192, qwen2(4, 256, 4, 2, 768))
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(0)
    Qwen2ForCausalLM(qwen2(4, 896, 14, 2, 4864)).to(torch.bfloat16).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    make_frames(folder)
    make_clips(folder)
    make_texts(folder, tokenizer)
    stamp.write_text(VERSION)


if __name__ == "__main__":
    main()
