"""Ten optimizer steps by transformers' Trainer on the folders of fixtures/models, schedules and step counts.

    python tools/oracle/train_ref.py [run ...]

Writes fixtures/models/training/NAME.safetensors and NAME.json for each run, and schedules.json. Records
are taken in file order (no shuffling), nothing is dropped, dropout is zero. Run models_ref.py and
models_adapters.py first.
"""

import os
import shutil
import sys
import tempfile

import torch

import common
import egogpt
import encoders_ref
import next_inputs
import qwen_inputs
from common import IGNORE, disk_name, put, save_tensors, write_json
from models_adapters import pad_id, samples_of, saved_name
from models_ref import batch_of, load_model
from qwen_inputs import inputs_of, is_qwen_vl

TRAINING = os.path.join(common.FIXTURES, "training")
STEPS = 10

# `train`: which parts learn: "all", a list of parts, or an adapter's name.
RUNS = {
    # Everything trains; a text-only sample stands in a step with another one.
    "full_siglip_qwen2": {
        "folder": "llava_siglip_qwen2",
        "train": ["vision", "projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 2e-3,
                 "lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    # Frozen tower below the trained rest; batches of two, two of them a step.
    "frozen_vision_clip_llama": {
        "folder": "llava_clip_llama",
        "train": ["projector", "llm"],
        "args": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 3e-3,
                 "lr_scheduler_type": "cosine", "warmup_steps": 3, "weight_decay": 0.05, "max_grad_norm": 1.0},
    },
    # Three records, two a step: every second step holds only the text-only record, so that tower and
    # projector have no gradient in it and the optimizer must leave them and their moments alone.
    "uneven_clip_llama": {
        "folder": "clip_full_llama_bias",
        "train": ["vision", "projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 2e-3,
                 "lr_scheduler_type": "polynomial", "warmup_steps": 1, "weight_decay": 0.1, "max_grad_norm": 0.5},
    },
    # Tied embeddings learn from both of their uses; batches of two leave one over; no clipping to speak of.
    "tied_siglip_qwen2": {
        "folder": "siglip_odd_qwen2_tied",
        "train": ["vision", "projector", "llm"],
        "args": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
                 "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4, "weight_decay": 0.01,
                 "max_grad_norm": 1e9, "adam_beta2": 0.95, "adam_epsilon": 1e-6},
    },
    "projector_siglip_llama3": {
        "folder": "siglip_llama3_transformers5",
        "train": ["projector"],
        "args": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "learning_rate": 1e-2,
                 "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0},
    },
    # LoRA from B = 0 on every linear map of the decoder.
    "lora_siglip_qwen2": {
        "folder": "llava_siglip_qwen2",
        "adapter": "fresh_regex",
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
                 "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    # LoRA continued from a trained adapter in both towers.
    "lora_continued_siglip_qwen2": {
        "folder": "llava_siglip_qwen2",
        "adapter": "names",
        "args": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 5e-3,
                 "lr_scheduler_type": "linear", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0},
    },
    # The other decoders, whole and by LoRA: norms of heads, a window, fused maps with both ranges of LongRoPE.
    "full_text_qwen3": {
        "folder": "text_qwen3",
        "train": ["llm"],
        "args": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 2e-3,
                 "lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "full_clip_mistral": {
        "folder": "clip_mistral_window",
        "train": ["projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 2e-3,
                 "lr_scheduler_type": "cosine", "warmup_steps": 1, "weight_decay": 0.05, "max_grad_norm": 1.0},
    },
    "full_text_phi3": {
        "folder": "text_phi3_longrope",
        "train": ["llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "learning_rate": 2e-3,
                 "lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "lora_siglip_qwen3": {
        "folder": "siglip_qwen3_windows",
        "adapter": "fresh",
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
                 "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "lora_text_mistral": {
        "folder": "text_mistral_defaults",
        "adapter": "fresh",
        "args": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-2,
                 "lr_scheduler_type": "linear", "warmup_steps": 1, "weight_decay": 0.0, "max_grad_norm": 1.0},
    },
    "lora_siglip_phi3": {
        "folder": "siglip_phi3_longrope",
        "adapter": "fresh_fused",
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
                 "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    # Windows, clips in real time and the merger, whole; LoRA in the decoder with the merger beside it.
    "full_qwen2_5_vl": {
        "folder": "qwen2_5_vl_hub",
        "train": ["vision", "projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 2e-3,
                 "lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "lora_qwen2_5_vl": {
        "folder": "qwen2_5_vl_hub",
        "adapter": "fresh_merger",
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 5e-3,
                 "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "full_qwen2_vl": {
        "folder": "qwen2_vl_hub",
        "train": ["vision", "projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
                 "lr_scheduler_type": "cosine", "warmup_steps": 1, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "lora_qwen2_vl": {
        "folder": "qwen2_vl_hub",
        "adapter": "fresh",
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "learning_rate": 1e-2,
                 "lr_scheduler_type": "linear", "warmup_steps": 1, "weight_decay": 0.0, "max_grad_norm": 1.0},
    },
    # A table of positions, several mergers and a tied head, whole; LoRA in the decoder with the mergers beside it; mergers of
    # which no layer of the decoder takes anything.
    "full_qwen3_vl": {
        "folder": "qwen3_vl_hub",
        "train": ["vision", "projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 2e-3,
                 "lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "lora_qwen3_vl": {
        "folder": "qwen3_vl_hub",
        "adapter": "fresh_mergers",
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 5e-3,
                 "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "full_qwen3_vl_odd": {
        "folder": "qwen3_vl_odd",
        "train": ["vision", "projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
                 "lr_scheduler_type": "cosine", "warmup_steps": 1, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    # Class tokens and their angles learn; LoRA in the decoder with the merger beside it.
    "full_onevision1_5": {
        "folder": "onevision1_5_hub",
        "train": ["vision", "projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 2e-3,
                 "lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "lora_onevision1_5": {
        "folder": "onevision1_5_hub",
        "adapter": "fresh_merger",
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 5e-3,
                 "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    # Tiles, clips and the newline, whole; the projector beside LoRA; steps without an image leave the newline alone.
    "full_llava_next_video": {
        "folder": "llava_next_video_hub",
        "train": ["vision", "projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 2e-3,
                 "lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "lora_llava_next_video": {
        "folder": "llava_next_video_hub",
        "adapter": "fresh_projector",
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 5e-3,
                 "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "uneven_llava_next_video": {
        "folder": "llava_next_video_max",
        "train": ["projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
                 "lr_scheduler_type": "constant", "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "full_llava_onevision": {
        "folder": "llava_onevision_hub",
        "train": ["vision", "projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 2e-3,
                 "lr_scheduler_type": "cosine", "warmup_steps": 1, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "lora_llava_onevision": {
        "folder": "llava_onevision_hub",
        "adapter": "fresh",
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "learning_rate": 1e-2,
                 "lr_scheduler_type": "linear", "warmup_steps": 1, "weight_decay": 0.0, "max_grad_norm": 1.0},
    },
    # Encoders of their own for images and clips: all of it, in batches with both; projectors with the table of the new
    # tokens; one encoder alone; the original layout.
    "full_encoders_llama": {
        "folder": "encoders_llama",
        "train": ["vision", "projector", "llm"],
        "args": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 2e-3,
                 "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "projector_encoders_llama": {
        "folder": "encoders_llama",
        "train": ["projector"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "learning_rate": 5e-3,
                 "lr_scheduler_type": "linear", "warmup_steps": 1, "weight_decay": 0.0, "max_grad_norm": 1.0},
    },
    "projector_encoders_qwen2": {
        "folder": "encoders_qwen2_tied",
        "train": ["projector"],
        "args": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 5e-3,
                 "lr_scheduler_type": "cosine", "warmup_steps": 1, "weight_decay": 0.0, "max_grad_norm": 1.0},
    },
    "frozen_towers_encoders_phi3": {
        "folder": "encoders_phi3",
        "train": ["projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 1e-3,
                 "lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.05, "max_grad_norm": 1.0},
    },
    "full_original_llama": {
        "folder": "original_llama",
        "train": ["vision", "projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 2e-3,
                 "lr_scheduler_type": "linear", "warmup_steps": 1, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    # Everything that hears and sees, whole; LoRA in the decoder with the projector of speech beside it.
    "full_egogpt": {
        "folder": "egogpt_openai",
        "train": ["vision", "projector", "speech", "speech_projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 1e-3,
                 "lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "speech_projector_egogpt": {
        "folder": "egogpt_grid",
        "train": ["speech_projector", "llm"],
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 5e-4,
                 "lr_scheduler_type": "cosine", "warmup_steps": 1, "weight_decay": 0.05, "max_grad_norm": 1.0},
    },
    "lora_egogpt": {
        "folder": "egogpt_openai",
        "adapter": "fresh_speech",
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 5e-3,
                 "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    # rsLoRA from B = 0 and the projector trained whole.
    "lora_projector_clip_llama": {
        "folder": "llava_clip_llama",
        "adapter": "fresh_projector",
        "args": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 5e-3,
                 "lr_scheduler_type": "linear", "warmup_steps": 1, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
}


def part_of(name):
    if "speech_encoder" in name or "speech_projector" in name:
        return "speech" if "speech_encoder" in name else "speech_projector"
    if "mm_projector" in name or "image_newline" in name:
        return "projector"
    if "visual." in name:
        return "projector" if "visual.merger." in name or "deepstack_merger_list." in name else "vision"
    return "vision" if "_tower." in name else "projector" if "multi_modal_projector" in name else "llm"


def is_joined(folder):
    return os.path.basename(folder).startswith(("encoders_", "original_"))


class Records(torch.utils.data.Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return i


def build(run):
    """The model with exactly the run's trainable parameters, and the name each of them has on disk."""
    folder = os.path.join(common.FIXTURES, run["folder"])
    if is_joined(folder):
        model = encoders_ref.load(folder)
        # The original trains the embeddings of its new tokens beside the projectors.
        tables = run["train"] == ["projector"] and bool(model.joined.get("mm_use_start_end") or model.joined.get("mm_use_im_start_end"))
        for n, p in model.named_parameters():
            p.requires_grad_(part_of(n) in run["train"] or (tables and "embed_tokens" in n))
        return folder, model, lambda name: name
    model = load_model(folder)
    if "adapter" in run:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, os.path.join(folder, "adapters", run["adapter"]), is_trainable=True)
        return folder, model, saved_name
    for n, p in model.named_parameters():
        p.requires_grad_(part_of(n) in run["train"] and "embed_positions" not in n)
    if egogpt.is_ego(model.config):
        return folder, model, egogpt.disk_name
    return folder, model, qwen_inputs.disk_name if is_qwen_vl(model.config) else disk_name(model)


def train(run, double=False):
    """Losses, gradient norms and rates of ten steps; the model before and after them."""
    from transformers import Trainer, TrainingArguments

    folder, model, spell = build(run)
    if double:
        model = model.double()
    samples = samples_of(folder)
    is_qwen = is_qwen_vl(model.config)
    is_anyres = next_inputs.is_anyres(model.config)
    is_ego = egogpt.is_ego(model.config)
    pad = None if is_qwen or is_anyres or is_ego or is_joined(folder) else pad_id(folder)
    start = {spell(n): p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    log = {"micro_losses": [], "supervised": [], "grad_norms": [], "rates": [], "records": []}

    def collate(indices):
        if is_joined(folder):
            log["records"].append(list(indices))
            chosen = [samples[i] for i in indices]
            longest = max(len(s["labels"]) for s in chosen)
            padded = [s["labels"] + [IGNORE] * (longest - len(s["labels"])) for s in chosen]
            return {"samples": [{**s, "pixels": s["pixels"].double() if double and s["visuals"] else s["pixels"]} for s in chosen],
                    "labels": torch.tensor(padded)}
        if is_qwen:
            (sample,) = [samples[i] for i in indices]
            batch, labels = inputs_of(model.config, sample)[0], torch.tensor([sample["labels"]])
        elif is_anyres:
            (sample,) = [samples[i] for i in indices]
            batch, labels = next_inputs.inputs_of(model.config, sample), torch.tensor([sample["labels"]])
        elif is_ego:
            (sample,) = [samples[i] for i in indices]
            batch, labels = egogpt.inputs_of(sample), torch.tensor([sample["labels"]])
        else:
            batch, labels = batch_of([samples[i] for i in indices], pad)
        if double:
            batch = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()}
        log["records"].append(list(indices))
        return {**batch, "labels": labels}

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, model, inputs, num_items_in_batch=None):
            model.eval()  # dropout apart, the two modes do not differ
            loss = super().training_step(model, inputs, num_items_in_batch)
            log["micro_losses"].append(float(loss))
            log["supervised"].append(int(num_items_in_batch))
            return loss

        def _clip_grad_norm(self, model):
            norm = super()._clip_grad_norm(model)
            log["grad_norms"].append(float(norm))
            log["rates"].append(float(self.lr_scheduler.get_last_lr()[0]))
            log.setdefault("ends", []).append(len(log["micro_losses"]))
            return norm

    with tempfile.TemporaryDirectory() as out:
        args = TrainingArguments(
            output_dir=out, max_steps=STEPS, optim="adamw_torch", report_to=[], save_strategy="no", logging_strategy="no",
            use_cpu=True, remove_unused_columns=False, seed=1, disable_tqdm=True, dataloader_num_workers=0, **run["args"],
        )
        trainer = InOrder(model=model, args=args, train_dataset=Records(len(samples)), data_collator=collate)
        # Qwen2-VL's classes say no, and would weigh micro-batches alike whatever their tokens; their loss takes the count.
        trainer.model_accepts_loss_kwargs = True
        trainer.train()
        decay = set(trainer.get_decay_parameter_names(model))
    groups = {"decay": [], "no_decay": []}
    for n, p in model.named_parameters():
        if p.requires_grad:
            groups["decay" if n in decay else "no_decay"].append(spell(n))
    end = {spell(n): p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    begins = [0] + log["ends"][:-1]
    log["losses"] = [sum(log["micro_losses"][a:b]) for a, b in zip(begins, log["ends"])]
    log["supervised"] = [log["supervised"][a] for a in begins]
    log["micro_batches"] = [b - a for a, b in zip(begins, log["ends"])]
    # The loader is one batch ahead at an epoch's end; only batches that were trained count.
    log["records"] = [log["records"][a:b] for a, b in zip(begins, log["ends"])]
    return log, groups, start, end


def make(name):
    run = RUNS[name]
    log, groups, start, end = train(run)
    # The same in f64 shows how far rounding alone moves an honest run. (transformers keeps norms and softmax in f32.)
    log64, _, start64, end64 = train(run, double=True)
    drift = max(abs(a - b) / abs(a) for a, b in zip(log["losses"], log64["losses"]))
    out, drifts = {}, {}
    for n in sorted(start):
        delta = end[n].double() - start[n].double()
        norm = float(delta.norm())
        drifts[n] = float((delta - (end64[n].double() - start64[n].double())).norm()) / norm if norm else 0.0
        put(out, "delta", n, delta, whole=256)
    out["losses"] = torch.tensor(log["losses"], dtype=torch.float64)
    out["grad_norms"] = torch.tensor(log["grad_norms"], dtype=torch.float64)
    out["rates"] = torch.tensor(log["rates"], dtype=torch.float64)
    save_tensors(os.path.join(TRAINING, f"{name}.safetensors"), out)
    unmoved = sorted(n for n in start if torch.equal(start[n], end[n]))
    info = {
        "versions": common.versions(),
        "folder": run["folder"],
        "adapter": run.get("adapter"),
        "train": run.get("train"),
        "steps": STEPS,
        "arguments": {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "warmup_steps": 0, **run["args"]},
        "losses": log["losses"],
        "grad_norms": log["grad_norms"],
        "rates": log["rates"],
        "supervised": log["supervised"],
        "micro_batches": log["micro_batches"],
        "records": log["records"],
        "groups": groups,
        "unmoved": unmoved,
        "f64_loss_drift": drift,
        "f64_delta_drift": {n: d for n, d in sorted(drifts.items(), key=lambda x: -x[1])[:12]},
    }
    write_json(os.path.join(TRAINING, f"{name}.json"), info)
    worst = sorted(drifts.items(), key=lambda x: -x[1])
    print(f"{name}: losses {[round(l, 4) for l in log['losses']]}")
    print(f"  norms {[round(l, 3) for l in log['grad_norms']]} rates {[round(r, 6) for r in log['rates']]}")
    print(f"  records {log['records'][:3]} supervised {log['supervised'][:4]} drift {drift:.1e} unmoved {len(unmoved)}")
    print(f"  worst delta drifts {[(n.split('vision_model.')[-1], round(d, 5)) for n, d in worst[:6]]}")


def schedules():
    """Learning rates per step of transformers.get_scheduler, and the step counts of the Trainer."""
    from transformers import Trainer, TrainingArguments, get_scheduler

    cases = []
    for kind in ("linear", "cosine", "constant", "constant_with_warmup", "polynomial"):
        for total in (1, 2, 7, 10, 33, 100):
            for warmup in ({"warmup_steps": 0}, {"warmup_steps": 1}, {"warmup_steps": 3}, {"warmup_ratio": 0.03}, {"warmup_ratio": 0.1}, {"warmup_ratio": 0.5}):
                rate = 2e-4 if total != 33 else 1.7e-3
                args = TrainingArguments(
                    output_dir=tempfile.gettempdir(), learning_rate=rate, lr_scheduler_type=kind, use_cpu=True,
                    warmup_steps=next(iter(warmup.values())), report_to=[],
                )
                resolved = args.get_warmup_steps(total)
                if resolved >= total and warmup != {"warmup_steps": 0} and total > 2:
                    continue
                if kind == "polynomial" and resolved >= total:
                    continue  # divides by zero there
                if total == 100 and (kind, warmup) not in (("cosine", {"warmup_ratio": 0.03}), ("linear", {"warmup_ratio": 0.1}), ("polynomial", {"warmup_steps": 3})):
                    continue
                w = torch.nn.Parameter(torch.zeros(1))
                optimizer = torch.optim.SGD([w], lr=rate)
                scheduler = get_scheduler(kind, optimizer, num_warmup_steps=resolved, num_training_steps=total)
                rates = []
                for _ in range(total):
                    rates.append(float(scheduler.get_last_lr()[0]))
                    optimizer.step()
                    scheduler.step()
                cases.append({"lr_scheduler_type": kind, "learning_rate": rate, "total_steps": total, **warmup, "resolved_warmup_steps": resolved, "rates": rates})

    counts = []
    for records, batch, accumulation, epochs, max_steps in (
        (3, 1, 2, 1, -1), (4, 1, 2, 5, -1), (3, 2, 1, 2, -1), (5, 2, 2, 3, -1), (7, 3, 4, 2, -1), (10, 4, 1, 1.5, -1),
        (10, 4, 2, 0.5, -1), (1, 8, 8, 3, -1), (100, 8, 4, 3, -1), (101, 8, 4, 2.25, -1), (3, 1, 2, 1, 10), (10, 4, 1, 9, 4),
    ):  # fmt: skip
        args = TrainingArguments(
            output_dir=tempfile.gettempdir(), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            num_train_epochs=epochs, max_steps=max_steps, use_cpu=True, report_to=[],
        )
        trainer = Trainer(model=torch.nn.Linear(1, 1), args=args, train_dataset=Records(records))
        values = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
        counts.append(
            {
                "records": records, "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
                "num_train_epochs": epochs, "max_steps": max_steps, "epochs": values[0], "steps_per_epoch": values[1],
                "total_steps": values[-1],
            }
        )
    write_json(os.path.join(TRAINING, "schedules.json"), {"versions": common.versions(), "schedules": cases, "step_counts": counts})
    print(f"schedules: {len(cases)} cases, {len(counts)} step counts")
    for c in counts:
        print("  ", c)


if __name__ == "__main__":
    os.makedirs(TRAINING, exist_ok=True)
    for name in sys.argv[1:] or [*RUNS, "schedules"]:
        schedules() if name == "schedules" else make(name)
