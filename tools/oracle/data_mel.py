"""Log-mel features of transformers' WhisperFeatureExtractor: fixtures/data/mel.

    python tools/oracle/data_mel.py

The samples come from a formula that the test repeats; of every window a few frames are stored, and the sum of all. Reference:
`_np_extract_fbank_features` (f64), checked against what the class gives with torch (f32).
"""

import math
import os

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

import common
from common import save_tensors, write_json

OUT = os.path.join(common.ROOT, "fixtures", "data", "mel")

# name: mels, frames of a window, samples, step of the sine, level
CASES = {
    "whole_80": (80, 3000, 480000, 900, 0.9),
    "whole_128": (128, 3000, 480000, 333, 0.5),
    "short_128": (128, 3000, 7001, 2500, 0.7),
    "one_sample": (80, 3000, 1, 700, 0.9),
    "silence": (128, 3000, 4000, 700, 0.0),
    "not_of_hop": (80, 3000, 123457, 4100, 0.2),
    "two_windows": (128, 3000, 480001, 517, 0.6),
    "three_windows": (80, 3000, 1100003, 1234, 0.4),
    "small_window": (7, 32, 9000, 3000, 0.8),
    "tiny_quiet": (10, 24, 3840, 1500, 1e-5),
}


def samples_of(count, step, level):
    i = np.arange(count, dtype=np.uint64)
    slow = ((i * np.uint64(step)) % np.uint64(65536)).astype(np.float64) / 65536.0 * (2 * math.pi)
    with np.errstate(over="ignore"):
        noise = ((i + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(48)
    return (level * (0.8 * np.sin(slow) + 0.2 * (noise.astype(np.float64) / 32768.0 - 1.0))).astype(np.float32)


def main():
    os.makedirs(OUT, exist_ok=True)
    out, cases = {}, []
    for name, (mels, frames, count, step, level) in CASES.items():
        extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=30)
        extractor.n_samples, extractor.nb_max_frames = frames * 160, frames
        x = samples_of(count, step, level)
        kept = sorted({0, 1, 2, frames // 3, frames // 2, frames - 2, frames - 1, *range(5, frames, max(frames // 8, 1))})
        values, sums = [], []
        for start in range(0, count, frames * 160):
            chunk = x[start : start + frames * 160]
            given = extractor(chunk, sampling_rate=16000, return_tensors="np")["input_features"][0]
            padded = np.zeros(frames * 160, np.float32)
            padded[: len(chunk)] = chunk
            exact = extractor._np_extract_fbank_features([padded], "cpu")[0]
            assert exact.shape == given.shape == (mels, frames)
            # Where a window holds next to nothing f32 is all rounding; elsewhere the two agree.
            if level > 1e-3 and count > 100:
                assert np.abs(exact - given).mean() < 2e-4, (name, np.abs(exact - given).max(), np.abs(exact - given).mean())
            values.append(torch.from_numpy(exact[:, kept].T.astype(np.float32).copy()))
            sums.append(float(exact.astype(np.float32).astype(np.float64).sum()))
        out[name] = torch.stack(values)
        cases.append({"name": name, "num_mels": mels, "num_frames": frames, "num_samples": count, "step": step, "level": level, "kept": kept, "sums": sums})
        print(name, out[name].shape, sums, float(np.abs(exact - given).max()))
    save_tensors(os.path.join(OUT, "expected.safetensors"), out)
    write_json(os.path.join(OUT, "expected.json"), {"versions": common.versions(), "cases": cases})


main()
