"""Which frames the reference programs choose.

Writes fixtures/media/rules.json: for each rule and request the chosen frame numbers (as text where few, as a SHA-256 of
the comma-joined numbers where many), or that the program refuses.

Run: python tools/oracle/media_rules.py
"""

import hashlib
import json
import logging
import pathlib
import random

import numpy
import qwen_vl_utils
import torch
import transformers
from qwen_vl_utils import vision_process
from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

logging.disable(logging.CRITICAL)
ROOT = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "media"
RATES = [1.0, 10.0, 12.5, 15.0, 23.976023976023978, 24.0, 25.0, 29.97002997002997, 30.0, 50.0, 60.0, 17.333]
WANTED = [0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 10.0, 30.0]


def transformers_rule(metadata, num, fps, low, high):
    return default_sample_indices_fn(metadata, num_frames=num, fps=fps)


QWEN2 = Qwen2VLVideoProcessor()
QWEN3 = Qwen3VLVideoProcessor()


def qwen2_vl(metadata, num, fps, low, high):
    return QWEN2.sample_frames(
        metadata, temporal_patch_size=2, min_frames=low or 4, max_frames=high or 768, num_frames=num, fps=fps
    )


def qwen3_vl(metadata, num, fps, low, high):
    QWEN3.min_frames, QWEN3.max_frames = low or 4, high or 768
    return QWEN3.sample_frames(metadata, num_frames=num, fps=fps)


def qwen_vl_utils_rule(metadata, num, fps, low, high, start=None, end=None):
    request = {"nframes": num} if num is not None else {"fps": fps}
    for name, value in (("min_frames", low), ("max_frames", high), ("video_start", start), ("video_end", end)):
        if value is not None:
            request[name] = value
    first, last, total = vision_process.calculate_video_frame_range(request, metadata.total_num_frames, metadata.fps)
    count = vision_process.smart_nframes(request, total_frames=total, video_fps=metadata.fps)
    return torch.linspace(first, last, count).round().long()


def stride(metadata, num, fps, low, high):
    """Every int(rate / fps)-th frame; over the maximum a linspace over the clip, cut to whole numbers."""
    total = metadata.total_num_frames
    if num is not None:
        assert num <= total
        return numpy.linspace(0, total - 1, num, dtype=int)
    indices = list(range(0, total, max(int(metadata.fps / fps), 1)))
    if high is not None and len(indices) > high:
        return numpy.linspace(0, total - 1, high, dtype=int)
    return indices


def segments(metadata, num, fps, low, high):
    """The middle of each of `num` equal parts, in whole numbers."""
    total = metadata.total_num_frames
    if num is None:
        num = min(max(max(1, int(total / metadata.fps * fps)), low or 0), high or 10**9)
    return [(2 * i + 1) * total // (2 * num) for i in range(num)]


RULES = {
    "transformers": transformers_rule, "qwen2_vl": qwen2_vl, "qwen3_vl": qwen3_vl,
    "qwen_vl_utils": qwen_vl_utils_rule, "stride": stride, "segments": segments,
}


def entry(rule, total, rate, num, fps, low, high, start=None, end=None):
    metadata = VideoMetadata(total_num_frames=total, fps=rate)
    more = {} if start is None and end is None else {"start": start, "end": end}
    try:
        indices = [int(i) for i in RULES[rule](metadata, num, fps, low, high, **more)]
        if rule == "qwen2_vl" and indices[-1] == total:
            # `torch.arange(0, T, T / N)` sometimes ends with T itself, which no video has.
            indices.pop()
    except (ValueError, AssertionError, ZeroDivisionError, RuntimeError):
        result = None
    else:
        text = ",".join(map(str, indices))
        result = text if len(text) <= 48 else f"{len(indices)}:{hashlib.sha256(text.encode()).hexdigest()}"
    return [rule, total, rate, num, fps, low, high, start, end, result]


def main():
    rng = random.Random(7)
    cases = []
    totals = list(range(1, 41)) + [rng.randrange(41, 2000) for _ in range(60)] + [2999, 9000, 17999, 30000]
    counts = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 16, 20, 31, 32, 64, 100, 128, 256, 768]
    for rule in RULES:
        for total in totals:
            # Beyond this torch's arange in f32 is off by one in places, depending on the processor's vectors.
            if rule == "qwen2_vl" and total > 18000:
                continue
            for num in rng.sample(counts, 5):
                cases.append(entry(rule, total, rng.choice(RATES), num, None, None, None))
            for _ in range(5):
                low, high = rng.choice([(None, None), (None, None), (2, 16), (4, 8), (8, 64)])
                # The plain rule and the strided one know no lower bound, and the first no upper one.
                if rule == "transformers":
                    low = high = None
                if rule == "stride":
                    low = None
                cases.append(entry(rule, total, rng.choice(RATES), None, rng.choice(WANTED), low, high))
    for _ in range(300):
        total, rate = rng.randrange(1, 1500), rng.choice(RATES)
        start = rng.choice([None, round(rng.uniform(-1, total / rate), 2), 0.0])
        end = rng.choice([None, round(rng.uniform(0, total / rate + 2), 2), 3.0])
        num, fps = rng.choice([(rng.choice(counts), None), (None, rng.choice(WANTED))])
        if start is not None or end is not None:
            cases.append(entry("qwen_vl_utils", total, rate, num, fps, None, None, start, end))
    versions = {
        "transformers": transformers.__version__, "torch": torch.__version__, "numpy": numpy.__version__,
        "qwen_vl_utils": "0.0.14",
    }
    rows = ",\n".join(json.dumps(case) for case in cases)
    (ROOT / "rules.json").write_text("{" + json.dumps(versions)[1:-1] + ',\n"cases": [\n' + rows + "\n]}\n")
    refused = sum(case[-1] is None for case in cases)
    print(len(cases), "cases,", refused, "refused;", qwen_vl_utils.__name__)


if __name__ == "__main__":
    main()
