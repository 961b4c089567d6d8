"""Thins `fixtures/models/*/expected.safetensors`: of each sample's logits every fifth row stays (`logits_stride` in `expected.json`).

The last step of the generators of `fixtures/models`: the negative log-likelihood of every token stays whole, so that no row goes
unseen. A folder that is thin already is left alone.

    python tools/oracle/thin.py [FOLDER ...]
"""

import glob
import json
import os
import re
import sys

from safetensors import safe_open
from safetensors.torch import save_file

from common import FIXTURES, write_json

STRIDE = 5


def thin(folder):
    path, info_path = os.path.join(folder, "expected.safetensors"), os.path.join(folder, "expected.json")
    with open(info_path) as f:
        info = json.load(f)
    if "logits_stride" in info:
        return
    with safe_open(path, "pt") as f:
        metadata, tensors = f.metadata(), {name: f.get_tensor(name) for name in f.keys()}
    for name, tensor in tensors.items():
        if re.fullmatch(r"sample\d+\.logits", name):
            tensors[name] = tensor[::STRIDE].clone()
    save_file(tensors, path, metadata=metadata)
    write_json(info_path, {**info, "logits_stride": STRIDE})


if __name__ == "__main__":
    folders = sys.argv[1:] or sorted(os.path.dirname(p) for p in glob.glob(os.path.join(FIXTURES, "*", "expected.safetensors")))
    for folder in folders:
        thin(folder)
