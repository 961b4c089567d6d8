"""Training steps of a LLaVA in transformers and peft, to stand beside `vidtune train` on the same folder.

    python tools/oracle/bench_llava.py DIR --model paper --data frames --steps 6 [--checkpointing]
    python tools/oracle/bench_llava.py DIR --model small --data clips --steps 40 --batch 2

DIR is that of `bench_make.py`. bf16 weights, fused attention (sdpa), fused AdamW, LoRA of rank 16 on q, k, v and o of
the decoder, the tower frozen. `frames` reads PNG files in the loop, as a plain script does, and times each step from
reading on. `clips` goes from mp4 files through torchcodec (PyAV where it does not load) in a DataLoader with 2 workers and times the whole loop
after the first steps (`--warm`). Both print one JSON line.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from PIL import Image

NUM_FRAMES = 8


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--model", choices=["paper", "small"], default="paper")
    parser.add_argument("--data", choices=["frames", "clips"], default="frames")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warm", type=int, default=2, help="first steps that are not counted")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true")
    return parser.parse_args()


def decoder_for(path):
    """The function that reads clips: torchcodec's where it can open this one, else PyAV's."""
    try:
        from torchcodec.decoders import VideoDecoder

        # torchcodec loads the system's FFmpeg at its first use; PyAV brings its own.
        VideoDecoder(path)
    except (ImportError, RuntimeError):
        return with_pyav
    return with_torchcodec


def with_torchcodec(path):
    """Evenly spread frames of a clip, one thread, as a list of uint8 tensors (channel, height, width)."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=1)
    total = len(decoder)
    return list(decoder.get_frames_at([i * total // NUM_FRAMES for i in range(NUM_FRAMES)]).data)


def with_pyav(path):
    """The same."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = 1, "NONE"
        wanted = {i * stream.frames // NUM_FRAMES for i in range(NUM_FRAMES)}
        found = [f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(stream)) if i in wanted]
    return [torch.from_numpy(frame).permute(2, 0, 1) for frame in found]


class Records(torch.utils.data.Dataset):
    """Decoded, resized, tokenised and labelled records; item i is record i modulo their number."""

    def __init__(self, folder, data, processor, length):
        self.folder, self.processor, self.length = folder / data, processor, length
        self.rows = [json.loads(line) for line in open(folder / f"{data}.jsonl")]
        first = self.rows[0]["video"]
        self.decode = None if isinstance(first, list) else decoder_for(str(self.folder / first))

    def __len__(self):
        return self.length

    def frames(self, row):
        if isinstance(row["video"], list):
            return [Image.open(self.folder / name).convert("RGB") for name in row["video"]]
        return self.decode(str(self.folder / row["video"]))

    def __getitem__(self, index):
        row = self.rows[index % len(self.rows)]
        frames = self.frames(row)
        question, answer = (turn["value"] for turn in row["conversations"])
        pictures = [{"type": "image"}] * len(frames)
        turns = [
            {"role": "user", "content": [*pictures, {"type": "text", "text": question.removeprefix("<video>\n")}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        render = self.processor.apply_chat_template
        inputs = self.processor(images=frames, text=render(turns), return_tensors="pt")
        # The prompt's tokens are counted without the pictures' work: text with the placeholders expanded.
        prompt = render(turns[:1], add_generation_prompt=True)
        expanded = prompt.replace("<image>", "<image>" * (inputs["input_ids"] == self.image_id()).sum().div(len(frames)).int().item())
        labels = inputs["input_ids"].clone()
        labels[:, : len(self.processor.tokenizer(expanded)["input_ids"])] = -100
        return {**inputs, "labels": labels}

    def image_id(self):
        return self.processor.tokenizer.convert_tokens_to_ids("<image>")


def collate(items):
    """Pads on the right to the longest of the batch."""
    longest = max(item["input_ids"].shape[1] for item in items)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    batch = {
        key: torch.cat([torch.nn.functional.pad(item[key], (0, longest - item[key].shape[1]), value=value) for item in items])
        for key, value in fill.items()
    }
    batch["pixel_values"] = torch.cat([item["pixel_values"] for item in items])
    return batch


def main():
    from peft import LoraConfig, get_peft_model
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    args = arguments()
    torch.set_num_threads(args.threads)
    path = args.folder / args.model
    model = LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa")
    processor = AutoProcessor.from_pretrained(path)
    targets = r".*language_model.*\.(q|k|v|o)_proj"
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets))
    if args.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    train = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(train, lr=1e-4, weight_decay=0.01, fused=True)
    records = Records(args.folder, args.data, processor, args.steps * args.batch)
    if args.data == "clips":
        batches = iter(torch.utils.data.DataLoader(records, args.batch, collate_fn=collate, num_workers=args.workers))
    else:
        batches = (collate([records[s * args.batch + i] for i in range(args.batch)]) for s in range(args.steps))
    marks, losses, tokens = [time.perf_counter()], [], 0
    for batch in batches:
        tokens = int(batch["attention_mask"].sum())
        batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        marks.append(time.perf_counter())
    times = [b - a for a, b in zip(marks, marks[1:])]
    result = {
        "step_s": statistics.median(times[args.warm :]),
        "samples_per_s": (len(times) - args.warm) * args.batch / (marks[-1] - marks[args.warm]),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "input_tokens": tokens,
        "losses": losses,
        "decoder": records.decode.__name__.removeprefix("with_") if records.decode else "pillow",
        "trainable": sum(p.numel() for p in train),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
