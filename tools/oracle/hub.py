"""Writes fixtures/hub: checkpoints as the Python libraries write them (safetensors.torch, huggingface_hub sharding), and
what the script of `vidtune doctor --print-script` writes for checkpoints of fixtures/models.

Run: python tools/oracle/hub.py
"""

import json
import pathlib
import shutil
import subprocess
import sys

import huggingface_hub
import safetensors
import torch
import transformers
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "hub"
DTYPES = {
    "bool": torch.bool, "u8": torch.uint8, "i8": torch.int8, "i16": torch.int16, "f16": torch.float16,
    "bf16": torch.bfloat16, "i32": torch.int32, "f32": torch.float32, "f64": torch.float64, "i64": torch.int64,
    "f8e5m2": torch.float8_e5m2, "f8e4m3": torch.float8_e4m3fn, "c64": torch.complex64,
    "u16": torch.uint16, "u32": torch.uint32, "u64": torch.uint64,
}


def main():
    torch.manual_seed(7)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    # One tensor of every dtype, values 0 1 2 3 cast to it, names in an order that the writer has to change.
    every = {f"z.{name}": torch.tensor([0.0, 1.0, 2.0, 3.0]).to(dtype) for name, dtype in DTYPES.items()}
    every["a.scalar"] = torch.tensor(1.5)
    every["a.empty"] = torch.zeros(0, 3)
    every["ä \"quoted\""] = torch.tensor([[1.0, 2.0]])
    save_file(every, OUT / "every_dtype.safetensors", metadata={"format": "pt"})
    save_file({"w": torch.arange(3, dtype=torch.float32)}, OUT / "no_metadata.safetensors")

    state = {f"layer.{i}.weight": torch.randn(4 + i, 8) for i in range(5)}
    state["big"] = torch.randn(30, 8).to(torch.bfloat16)
    state["head"] = torch.randn(2, 8)
    for name, limit in [("sharded", 400), ("single", 10**9)]:
        folder = OUT / name
        folder.mkdir()
        save_torch_state_dict(state, str(folder), filename_pattern="model{suffix}.safetensors", max_shard_size=limit)
    doctor = OUT / "doctor"
    doctor.mkdir()
    root = OUT.parents[1]
    for name in ["llava_siglip_qwen2", "clip_full_llama_bias", "text_qwen2_transformers5"]:
        script = root / "crates" / "cli" / "src" / "commands" / "doctor_reference.py"
        model = root / "fixtures" / "models" / name
        subprocess.run([sys.executable, script, model, doctor / f"{name}.safetensors"], check=True)

    versions = {"torch": torch.__version__, "safetensors": safetensors.__version__,
                "huggingface_hub": huggingface_hub.__version__, "transformers": transformers.__version__, "seed": 7, "order": list(state), "max_shard_size": 400}
    (OUT / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
