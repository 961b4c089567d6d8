"""Writes fixtures/hub: checkpoints as the Python libraries write them (safetensors.torch, huggingface_hub sharding), and
what the script of `vidtune doctor --print-script` writes for checkpoints of fixtures/models.

Run: python tools/oracle/hub.py [pickle]
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
from safetensors.torch import load_file as load_checkpoint, save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "hub"
DTYPES = {
    "bool": torch.bool, "u8": torch.uint8, "i8": torch.int8, "i16": torch.int16, "f16": torch.float16,
    "bf16": torch.bfloat16, "i32": torch.int32, "f32": torch.float32, "f64": torch.float64, "i64": torch.int64,
    "f8e5m2": torch.float8_e5m2, "f8e4m3": torch.float8_e4m3fn, "c64": torch.complex64,
    "u16": torch.uint16, "u32": torch.uint32, "u64": torch.uint64,
}


class Attack:
    """What a hostile file makes its reader do: here, nothing but write a text."""

    def __reduce__(self):
        return (print, ("executed",))


class Stateful:
    def __init__(self):
        self.x = 1

    def __setstate__(self, state):
        print("executed")


def pickles():
    """fixtures/hub/pickle: files of torch.save, the same tensors as safetensors, and files that ask for more."""
    import collections
    import pickle

    out = OUT / "pickle"
    out.mkdir()
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = collections.OrderedDict()
    state["contiguous"] = base.clone()
    state["transposed"] = base.clone().t()
    state["shared.whole"] = base
    state["shared.rows"] = base[1:3]
    state["shared.columns"] = base[:, 2:5]
    state["shared.step"] = base.reshape(-1)[1::5]
    state["permuted"] = torch.arange(30, dtype=torch.float32).reshape(2, 3, 5).permute(2, 0, 1)
    state["scalar"] = torch.tensor(1.5)
    state["empty"] = torch.zeros(0, 3)
    state["parameter"] = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    for name, dtype in DTYPES.items():
        if dtype not in (torch.float8_e5m2, torch.float8_e4m3fn, torch.uint16, torch.uint32, torch.uint64):
            state[f"z.{name}"] = torch.tensor([0.0, 1.0, 2.0, 3.0]).to(dtype)
    state._metadata = collections.OrderedDict({"": {"version": 1}, "layer": {"version": 2}})
    torch.save(state, out / "zip.bin")
    torch.save(state, out / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(dict(state), out / "protocol4.bin", pickle_protocol=4)
    save_file({k: v.detach().contiguous().clone() for k, v in state.items()}, out / "expected.safetensors")
    torch.save({"w": base.expand(2, 4, 6)}, out / "bad_expanded.bin")
    torch.save({"state_dict": {"w": base}}, out / "bad_nested.bin")
    torch.save({"w": base, "epoch": 3}, out / "bad_number.bin")
    torch.save([base], out / "bad_list.bin")
    torch.save({"w": Attack()}, out / "bad_reduce.bin")
    torch.save({"w": Attack()}, out / "bad_stack_global.bin", pickle_protocol=4)
    torch.save({"w": Attack()}, out / "bad_legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"w": Stateful()}, out / "bad_setstate.bin")
    torch.save({"w": torch.zeros(2).to(torch.float8_e4m3fn)}, out / "bad_float8.bin")
    torch.save({"w": torch.zeros(2, 2).to_sparse()}, out / "bad_sparse.bin")
    (out / "bad_plain.bin").write_bytes(pickle.dumps({"w": 1}))
    # A model of fixtures/models as older exporters left it: the format before zip, with the rotary buffers of each layer; an
    # adapter as older versions of peft did.
    models = OUT.parent / "models"
    model = load_checkpoint(models / "text_llama" / "model.safetensors")
    for layer in range(2):
        model[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    torch.save(model, out / "text_llama.bin", _use_new_zipfile_serialization=False)
    adapter = load_checkpoint(models / "siglip_phi3_longrope" / "adapters" / "fused" / "adapter_model.safetensors")
    torch.save(adapter, out / "adapter_model.bin")
    # The same model as one file and in shards of torch.save.
    tensors = load_checkpoint(OUT / "single" / "model.safetensors")
    for name, parts in [("bin_single", [list(tensors)]), ("bin_sharded", [list(tensors)[::2], list(tensors)[1::2]])]:
        folder = OUT / name
        folder.mkdir()
        if len(parts) == 1:
            torch.save(tensors, folder / "pytorch_model.bin")
            continue
        weight_map = {}
        for number, keys in enumerate(parts):
            file = f"pytorch_model-{number + 1:05d}-of-{len(parts):05d}.bin"
            torch.save({k: tensors[k] for k in keys}, folder / file)
            weight_map.update({k: file for k in keys})
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")


def main():
    if sys.argv[1:] == ["pickle"]:
        for folder in ("pickle", "bin_single", "bin_sharded"):
            shutil.rmtree(OUT / folder, ignore_errors=True)
        pickles()
        return
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

    pickles()
    versions = {"torch": torch.__version__, "safetensors": safetensors.__version__,
                "huggingface_hub": huggingface_hub.__version__, "transformers": transformers.__version__, "seed": 7, "order": list(state), "max_shard_size": 400}
    (OUT / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
