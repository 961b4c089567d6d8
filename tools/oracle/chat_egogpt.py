"""A tiny EgoGPT with a tokenizer, asked about real clips and sound: fixtures/models/egogpt_chat.

    python tools/oracle/chat_egogpt.py

The records (`records.json`) name files of fixtures/media and fixtures/data. Ids, labels, pixels and spectrograms are made here
by other programs than ours: torchcodec's frames, transformers' SiglipImageProcessor and WhisperFeatureExtractor, the
samples of the ffmpeg program (`fixtures/media/sounds/*.f32`), texts parted at the placeholders and tokenised piece by piece as the published code
does. The model is the one in egogpt.py. Layout: fixtures/models/README.md.
"""

import json
import os
import shutil

import numpy as np
import torch
from PIL import Image
from torchcodec.decoders import VideoDecoder
from transformers import SiglipImageProcessor, WhisperFeatureExtractor

import common
import egogpt
from common import IGNORE, put, save_tensors, write_json
from models_egogpt import config, greedy
from models_ref import nll_of

NAME = "egogpt_chat"
VOCAB = 300
POSITIONS, RATE, MELS, SIDE, PATCH = 10, 5, 12, 30, 7
SIZE = 2 * POSITIONS * 160
NUM_FRAMES = 2

# Records as files of Ego4D have them; media relative to `fixtures`.
RECORDS = [
    {"id": "own_track", "video": "media/sounds/clip_aac.mp4", "conversations": [
        {"from": "human", "value": "<speech>\n<image>\nWhat is moving in the picture?"}, {"from": "gpt", "value": "A red circle is moving to the left."}]},
    {"id": "other_order", "video": "media/sounds/clip_pcm.avi", "audio": "media/sounds/tagged_22k.mp3", "conversations": [
        {"from": "human", "value": "<image>\n<speech>\n\nIs the circle larger?"}, {"from": "gpt", "value": "Yes, it is larger."}]},
    {"id": "two_sounds", "image": "data/images/2.png", "audio": ["media/sounds/aac_44k.m4a", "media/sounds/clip_mp3.mkv"], "conversations": [
        {"from": "human", "value": "First <speech> then <speech>: <image> Compare both."}, {"from": "gpt", "value": "They differ."},
        {"from": "human", "value": "How?"}, {"from": "gpt", "value": "One is longer."}]},
    {"id": "words", "conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Two triangles."}]},
]


def tokenizer():
    return common.bytelevel_tokenizer(VOCAB - 3, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])


def seen(record):
    """Pictures in the order of the text, and the visuals."""
    if "image" in record:
        return [Image.open(os.path.join(common.ROOT, "fixtures", record["image"])).convert("RGB")], [False]
    if "video" not in record:
        return [], []
    decoder = VideoDecoder(os.path.join(common.ROOT, "fixtures", record["video"]), dimension_order="NHWC", num_ffmpeg_threads=1)
    frames = decoder.get_frames_in_range(0, len(decoder)).data.numpy()
    return [Image.fromarray(frames[i * len(frames) // NUM_FRAMES]) for i in range(NUM_FRAMES)], [True]


def heard(record):
    """Samples of every piece of sound."""
    named = record.get("audio", record.get("video"))
    named = named if isinstance(named, list) else [named] if named else []
    if not any("<speech>" in turn["value"] for turn in record["conversations"]):
        return []
    return [np.fromfile(os.path.join(common.ROOT, "fixtures", f"{file}.f32"), "<f4") for file in named]


def windows(samples):
    extractor = WhisperFeatureExtractor(feature_size=MELS)
    extractor.n_samples, extractor.nb_max_frames = SIZE, SIZE // 160
    out = []
    for start in range(0, len(samples), SIZE):
        chunk = np.zeros(SIZE, np.float32)
        part = samples[start : start + SIZE]
        chunk[: len(part)] = part
        out.append(torch.from_numpy(extractor._np_extract_fbank_features([chunk], "cpu")[0].astype(np.float32)))
    return torch.stack(out)


def encode(tok, model, processor, record, answer=True):
    """Ids and labels, turn by turn and piece by piece."""
    c = model.raw
    frames, kinds = seen(record)
    visuals = [{"is_video": v, "grid": [len(frames) if v else 1, model.side, model.side], "seconds_per_grid": 0.0} for v in kinds]
    pixels = processor(images=frames, return_tensors="pt")["pixel_values"] if frames else None
    mels = [windows(x) for x in heard(record)]
    ids, labels = [], []
    next_mel, next_visual = iter(mels), iter(visuals)

    def add(text, learn):
        part = tok.encode(text, add_special_tokens=False).ids
        ids.extend(part)
        labels.extend(part if learn else [IGNORE] * len(part))

    for turn in record["conversations"]:
        if turn["from"] == "human":
            add("<|im_start|>user\n", False)
            rest = turn["value"]
            while rest:
                places = [(rest.find(mark), mark) for mark in ("<speech>", "<image>") if mark in rest]
                at, mark = min(places) if places else (len(rest), None)
                if rest[:at]:
                    add(rest[:at], False)
                if mark is None:
                    break
                if mark == "<speech>":
                    token, count = c["speech_token_index"], len(next(next_mel)) * (POSITIONS // RATE)
                else:
                    v = next(next_visual)
                    half = model.side // 2
                    token, count = c["image_token_index"], v["grid"][0] * half * half + 1 if v["is_video"] else model.side**2 + 1
                ids.extend([token] * count)
                labels.extend([IGNORE] * count)
                rest = rest[at + len(mark) :]
            add("<|im_end|>\n", False)
        else:
            add("<|im_start|>assistant\n", False)
            if not answer:
                break
            add(turn["value"] + "<|im_end|>", True)
            add("\n", False)
    return {"ids": ids, "labels": labels, "visuals": visuals, "pixels": pixels, "mel": torch.cat(mels) if mels else None}


def main():
    folder = os.path.join(common.FIXTURES, NAME)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    tok = tokenizer()
    assert tok.get_vocab_size() == VOCAB, tok.get_vocab_size()
    end = tok.token_to_id("<|im_end|>")
    raw = config(
        {"hidden_size": 48, "intermediate_size": 60, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "rms_norm_eps": 1e-6,
         "rope_theta": 1000000.0, "tie_word_embeddings": False},
        {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": PATCH},
        {"d_model": 16, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "encoder_layers": 2, "num_mel_bins": MELS, "max_source_positions": POSITIONS},
        vocab=VOCAB, image_token_index=VOCAB, speech_token_index=VOCAB + 1, mm_projector_type="mlp2x_gelu", mm_patch_merge_type="spatial_unpad",
        mm_newline_position="one_token", image_aspect_ratio="square", speech_encoder_ds_rate=RATE, speech_projector_hidden_size=30,
        bos_token_id=tok.token_to_id("<|endoftext|>"), eos_token_id=end,
    )
    write_json(os.path.join(folder, "config.json"), raw)
    write_json(os.path.join(folder, "generation_config.json"), {"eos_token_id": end, "bos_token_id": raw["bos_token_id"]})
    tok.save(os.path.join(folder, "tokenizer.json"))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write_json(os.path.join(folder, "tokenizer_config.json"), {**names, "model_max_length": 4096, "tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(os.path.join(folder, "records.json"), RECORDS)
    model = egogpt.EgoGPT(raw).float()
    common.fill_weights(model, 611)
    on_disk = {egogpt.disk_name(n): p.detach() for n, p in model.named_parameters()}
    save_tensors(os.path.join(folder, "model.safetensors"), on_disk)
    model = egogpt.load(folder)
    # The published code has the processor's own size; transformers' class does the rest.
    processor = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})

    samples = [encode(tok, model, processor, record) for record in RECORDS]
    out, info = {}, {"samples": []}
    for i, (s, record) in enumerate(zip(samples, RECORDS)):
        with torch.no_grad():
            logits = model(**egogpt.inputs_of(s))["logits"]
        out[f"sample{i}.input_ids"], out[f"sample{i}.labels"] = torch.tensor(s["ids"]), torch.tensor(s["labels"])
        if s["pixels"] is not None:
            out[f"sample{i}.pixel_values"] = s["pixels"]
        if s["mel"] is not None:
            out[f"sample{i}.mel"] = s["mel"]
        out[f"sample{i}.logits"] = logits[0].clone()
        out[f"sample{i}.nll"] = nll_of(logits, torch.tensor([s["labels"]]))[0].clone()
        supervised = sum(l != IGNORE for l in s["labels"][1:])
        info["samples"].append({"id": record["id"], "visuals": s["visuals"], "num_tokens": len(s["ids"]), "num_supervised": supervised,
            "loss_sum": float(out[f"sample{i}.nll"].sum()), "windows": 0 if s["mel"] is None else len(s["mel"])})
    with torch.no_grad():
        out["batch.features"] = torch.cat([f for s in samples if s["pixels"] is not None for f in model.pictures(s["pixels"], s["visuals"])])
        out["batch.speech_features"] = torch.cat([model.speech(s["mel"]) for s in samples if s["mel"] is not None])
    model.zero_grad(set_to_none=True)
    count = sum(l != IGNORE for s in samples for l in s["labels"][1:])
    total = 0.0
    for s in samples:
        loss = nll_of(model(**egogpt.inputs_of(s))["logits"], torch.tensor([s["labels"]])).sum() / count
        loss.backward()
        total += float(loss.detach())
    out["batch.loss"] = torch.tensor([total])
    unreached = [egogpt.disk_name(n) for n, p in model.named_parameters() if p.grad is None]
    for n, p in model.named_parameters():
        if p.grad is not None:
            put(out, "grad", egogpt.disk_name(n), p.grad)
    info["greedy"] = []
    for which in (0, 1):
        prompt = encode(tok, model, processor, RECORDS[which], answer=False)
        new, gap = greedy(model, prompt, len(prompt["ids"]), 12)
        stopped = new[: new.index(end) + 1] if end in new else new
        info["greedy"].append({"sample": which, "text": f"sample {which}", "input_ids": prompt["ids"], "images": [], "new_ids": new,
            "new_ids_with_eos": stopped, "new_text": tok.decode(stopped), "smallest_gap": gap})
    # As `generate` puts a question: video, audio, then the words behind a newline.
    asked = {"id": "asked", "video": "media/sounds/clip_aac.mp4", "conversations": [{"from": "human", "value": "<image><speech>\nWhat is moving?"}, {"from": "gpt", "value": ""}]}
    prompt = encode(tok, model, processor, asked, answer=False)
    new, gap = greedy(model, prompt, len(prompt["ids"]), 12)
    info["asked"] = {"prompt": "What is moving?", "new_ids": new[: new.index(end) + 1] if end in new else new, "smallest_gap": gap}
    silent = {**asked, "conversations": [{"from": "human", "value": "<image>\nWhat is moving?"}, {"from": "gpt", "value": ""}]}
    info["asked_without_sound"] = greedy(model, encode(tok, model, processor, silent, answer=False), len(encode(tok, model, processor, silent, answer=False)["ids"]), 12)[0]
    zero = sorted(egogpt.disk_name(n) for n, p in model.named_parameters() if p.grad is not None and "vision_tower" in n and n.endswith("k_proj.bias"))
    info.update({
        "versions": common.versions(), "seed": 611, "spelling": "hub", "loss": total, "num_supervised": count, "no_gradient": sorted(unreached),
        "zero_gradient": zero, "gradient_noise": {}, "num_frames": NUM_FRAMES,
        "tensors_on_disk": {n: {"shape": list(t.shape), "dtype": "F32", "file": "model.safetensors"} for n, t in on_disk.items()},
        "parameters": {n: list(t.shape) for n, t in on_disk.items()},
    })
    save_tensors(os.path.join(folder, "expected.safetensors"), out)
    write_json(os.path.join(folder, "expected.json"), info)
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(folder) for f in fs)
    print(f"{NAME}: {size / 1e3:.0f} kB, tokens {[len(s['ids']) for s in samples]}, windows {[s['windows'] for s in info['samples']]}, "
          f"losses {[round(s['loss_sum'], 3) for s in info['samples']]}, gaps {[round(g['smallest_gap'], 3) for g in info['greedy']]}, asked {info['asked']} {info['asked_without_sound']}")


if __name__ == "__main__":
    main()
