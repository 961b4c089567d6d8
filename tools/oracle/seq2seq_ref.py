"""Encoder-decoder fixtures: tiny M2M100/NLLB checkpoints and what transformers, peft and the Trainer compute with them.

    python tools/oracle/seq2seq_ref.py [folder ...]

Writes `fixtures/seq2seq/NAME/`; the layout is described in `fixtures/seq2seq/README.md`.
"""

import copy
import json
import os
import shutil
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import common
from common import IGNORE, put, save_tensors, write_json
from models_adapters import fill_adapter, modules_of, saved_name, tidy

ROOT = os.path.join(common.ROOT, "fixtures", "seq2seq")
STEPS = 10
LANGUAGES = ["deu_Latn", "eng_Latn", "fra_Latn", "jpn_Jpan", "zho_Hans"]
EXTRA = ["Ein roter Kreis bewegt sich nach links.", "Un cercle rouge se deplace vers la gauche.", "Was passiert dann? Que se passe-t-il?"]

# A record of the dataset format, in the order of the samples; languages where they differ from the folder's own.
RECORDS = [
    {"video": "https://example.com/a.mp4", "question": "What is moving in the picture?", "caption": "Ein roter Kreis bewegt sich."},
    {"video": "b.mp4", "question": "A blue square appears.", "caption": "Un cercle rouge", "src_lang": "eng_Latn", "tgt_lang": "fra_Latn"},
    {"question": "Yes.", "caption": "The square comes first and the circle follows.", "src_lang": "deu_Latn", "tgt_lang": "eng_Latn"},
    {"video": "c.mp4", "question": "  Zwei  Punkte: «ja»?\nNein! 漢字 ", "caption": "two"},
]

HUB = {
    "activation_dropout": 0.0, "activation_function": "relu", "architectures": ["M2M100ForConditionalGeneration"],
    "attention_dropout": 0.1, "bos_token_id": 0, "decoder_start_token_id": 2, "dropout": 0.1, "eos_token_id": 2,
    "init_std": 0.02, "is_encoder_decoder": True, "max_length": 200, "model_type": "m2m_100", "pad_token_id": 1,
    "scale_embedding": True, "tokenizer_class": "NllbTokenizer", "torch_dtype": "float32",
    "transformers_version": "4.21.0.dev0", "use_cache": True,
}  # fmt: skip

SPECS = {
    # As the hub's NLLB file: every duplicate of the shared table and both position tables are in the checkpoint.
    "nllb_hub": {
        "seed": 301, "dtype": torch.float32, "layout": "hub", "pieces": 150,
        "tokenizer": {"src_lang": "eng_Latn", "tgt_lang": "deu_Latn"},
        "config": {
            **HUB, "d_model": 32, "encoder_layers": 2, "num_hidden_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "encoder_layerdrop": 0,
            "decoder_layerdrop": 0, "max_position_embeddings": 64, "vocab_size": 176,
        },
        "sensitivity": [("scale_embedding", False), ("activation_function", "gelu"), ("encoder_attention_heads", 2),
                        ("decoder_attention_heads", 4), ("decoder_start_token_id", 0), ("pad_token_id", 0)],
        "adapters": {
            "names": ({"r": 3, "lora_alpha": 6, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}, True),
            "fresh": ({"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]}, False),
        },
    },
    # An odd width and head counts that only it allows, another start token, no scale, gelu, bf16, suffix language tags.
    "m2m_odd_legacy": {
        "seed": 302, "dtype": torch.bfloat16, "layout": "one", "pieces": 120,
        "tokenizer": {"src_lang": "fra_Latn", "tgt_lang": "eng_Latn", "legacy_behaviour": True},
        "config": {
            **HUB, "d_model": 33, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 11, "decoder_attention_heads": 3,
            "encoder_ffn_dim": 17, "decoder_ffn_dim": 51, "encoder_layerdrop": 0.05, "decoder_layerdrop": 0.0, "dropout": 0.0,
            "attention_dropout": 0.0, "scale_embedding": False, "activation_function": "gelu", "decoder_start_token_id": 0,
            "max_position_embeddings": 8, "torch_dtype": "bfloat16", "vocab_size": 150,
        },
        "sensitivity": [("scale_embedding", True), ("activation_function", "relu"), ("encoder_attention_heads", 3),
                        ("decoder_attention_heads", 11), ("decoder_start_token_id", 2)],
        "adapters": {
            "all_linear": ({"r": 2, "lora_alpha": 5, "target_modules": "all-linear"}, True),
        },
    },
    # As transformers 5 writes it: untied, four tables of which the shared one is never read, two shards.
    "m2m_untied_transformers5": {
        "seed": 303, "dtype": torch.float32, "layout": "transformers5", "pieces": 130, "shard": "60KB",
        "tokenizer": {"src_lang": "zho_Hans", "tgt_lang": None},
        "config": {
            "model_type": "m2m_100", "d_model": 24, "encoder_layers": 3, "decoder_layers": 1, "encoder_attention_heads": 6,
            "decoder_attention_heads": 1, "encoder_ffn_dim": 12, "decoder_ffn_dim": 64, "activation_function": "silu",
            "activation_dropout": 0.2, "max_position_embeddings": 40, "tie_word_embeddings": False, "vocab_size": 160,
        },
        "sensitivity": [("scale_embedding", False), ("activation_function", "relu"), ("encoder_attention_heads", 3)],
        "adapters": {
            "saved_head": (
                {"r": 4, "lora_alpha": 4, "target_modules": r".*decoder.*(fc1|encoder_attn\.k_proj|self_attn\.out_proj)", "modules_to_save": ["lm_head"]},
                True,
            ),
        },
    },
    # Every field with a class default left out: 12 + 12 layers of 16 heads, relu, scaled, tied, start token 2.
    "m2m_defaults": {
        "seed": 304, "dtype": torch.bfloat16, "layout": "one", "pieces": 100,
        "tokenizer": {"src_lang": None, "tgt_lang": None},
        "config": {"model_type": "m2m_100", "d_model": 16, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "vocab_size": 128},
        "sensitivity": [("scale_embedding", False), ("activation_function", "gelu"), ("encoder_attention_heads", 8),
                        ("decoder_attention_heads", 8), ("decoder_start_token_id", 0)],
        "adapters": {},
    },
}  # fmt: skip

# name -> folder, adapter, Trainer arguments. Every one is run without dropout, which has random numbers of its own.
RUNS = {
    "full_nllb": ("nllb_hub", None, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 5e-3,
                  "lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.01, "max_grad_norm": 1.0}),
    "full_untied": ("m2m_untied_transformers5", None, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3,
                    "learning_rate": 3e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0, "weight_decay": 0.1, "max_grad_norm": 0.5}),
    "lora_nllb": ("nllb_hub", "fresh", {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
                  "lr_scheduler_type": "linear", "warmup_steps": 1, "weight_decay": 0.0, "max_grad_norm": 1.0}),
}  # fmt: skip


def write_tokenizer(spec, folder):
    """NLLB's tokenizer over a BPE trained here: <s> <pad> </s> <unk>, pieces, then the languages and <mask>."""
    from transformers import NllbTokenizer

    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=spec["pieces"], show_progress=False, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    trained.train_from_iterator(common.CORPUS + EXTRA, trainer)
    state = json.loads(trained.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in state["merges"]]
    given = {k: v for k, v in spec["tokenizer"].items() if v is not None}
    tok = NllbTokenizer(vocab=state["vocab"], merges=merges, extra_special_tokens=LANGUAGES, **given)
    tok.save_pretrained(folder)
    if spec["layout"] == "hub":
        # The files of earlier versions: names of special tokens apart, the languages under their old key.
        path = os.path.join(folder, "tokenizer_config.json")
        with open(path) as f:
            config = json.load(f)
        kept = {k: config[k] for k in ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "pad_token", "mask_token")}
        old = {**kept, **spec["tokenizer"], "additional_special_tokens": LANGUAGES, "legacy_behaviour": False,
               "model_max_length": 1024, "sp_model_kwargs": {}, "tokenizer_class": "NllbTokenizer"}
        write_json(path, old)
        write_json(os.path.join(folder, "special_tokens_map.json"), {**kept, "additional_special_tokens": LANGUAGES})


def build_folder(spec, folder):
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    config = M2M100Config.from_dict(spec["config"])
    model = M2M100ForConditionalGeneration._from_config(config, attn_implementation="eager", dtype=torch.float32)
    common.fill_weights(model, spec["seed"])
    rng = np.random.Generator(np.random.PCG64(spec["seed"] + 1))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "shared" in name or "embed_tokens" in name:
                p.copy_(torch.from_numpy(0.5 * rng.standard_normal(p.shape)))
    model = model.to(spec["dtype"])
    if spec["layout"] == "transformers5":
        model.save_pretrained(folder, max_shard_size=spec["shard"])
    else:
        state = {n: p.detach().contiguous().clone() for n, p in model.named_parameters()}
        if spec["layout"] == "hub":
            for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
                state[name] = state["model.shared.weight"].clone()
            for side in ("encoder", "decoder"):
                state[f"model.{side}.embed_positions.weights"] = getattr(model.model, side).embed_positions.weights.clone()
        save_tensors(os.path.join(folder, "model.safetensors"), state)
        write_json(os.path.join(folder, "config.json"), spec["config"])
        write_json(os.path.join(folder, "generation_config.json"),
                   {"_from_model_config": True, "bos_token_id": 0, "decoder_start_token_id": config.decoder_start_token_id,
                    "eos_token_id": 2, "max_length": 200, "pad_token_id": 1, "transformers_version": "4.21.0"})
    write_tokenizer(spec, folder)


def load_model(folder):
    """From the files, in f32 and evaluation mode; nothing may be missing or unexpected."""
    from transformers import AutoModelForSeq2SeqLM

    model, report = AutoModelForSeq2SeqLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    unexpected -= {f"model.{side}.embed_positions.weights" for side in ("encoder", "decoder")}
    assert not missing and not unexpected, (folder, missing, unexpected)
    return model.eval()


def encode(tok, record):
    """Ids with the tags that the tokenizer puts there; a language it was not told is the folder's own."""
    tok = copy.deepcopy(tok)
    if "src_lang" in record:
        tok.src_lang = record["src_lang"]
    if "tgt_lang" in record:
        tok.tgt_lang = record["tgt_lang"]
    out = tok(record["question"], text_target=record["caption"])
    target = tok.tgt_lang
    return {"ids": out["input_ids"], "labels": out["labels"], "target_lang": tok.convert_tokens_to_ids(target)}


def batch_of(samples, config):
    """Right-padded, as `DataCollatorForSeq2Seq` does: -100 behind the labels, the decoder's inputs shifted from them."""
    from transformers.models.m2m_100.modeling_m2m_100 import shift_tokens_right

    pad = lambda rows, fill: torch.tensor([r + [fill] * (max(map(len, rows)) - len(r)) for r in rows])  # noqa: E731
    ids = [s["ids"] for s in samples]
    labels = pad([s["labels"] for s in samples], IGNORE)
    return {
        "input_ids": pad(ids, config.pad_token_id),
        "attention_mask": pad([[1] * len(i) for i in ids], 0),
        "decoder_input_ids": shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id),
    }, labels


def nll_of(logits, labels):
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORE, reduction="none").view(labels.shape)


def alone(model, sample):
    batch, labels = batch_of([sample], model.config)
    with torch.no_grad():
        logits = model(**batch).logits
    own = model(input_ids=batch["input_ids"], labels=labels)
    assert torch.allclose(own.logits, logits, atol=1e-5) and abs(own.loss.item() - nll_of(logits, labels).mean().item()) < 1e-5
    return logits[0], nll_of(logits, labels)[0]


def sensitivity(spec, model, samples, logits):
    """How far the logits move when a field is read wrongly."""
    out = {}
    for field, value in spec["sensitivity"]:
        config = copy.deepcopy(model.config)
        setattr(config, field, value)
        wrong = type(model)._from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
        wrong.load_state_dict(model.state_dict(), strict=True)
        moved = max(float((alone(wrong, s)[0] - l).abs().max() / l.std()) for s, l in zip(samples, logits))
        out[f"{field} = {value}"] = moved
        assert moved > 5e-4, f"reading `{field}` as {value} would go unseen: {moved:.1e}"
    return out


def continuations(model, samples):
    """`generate` with and without a forced first token, with one beam and with several; the margin of each choice."""
    cases = []
    settings = [
        ({"num_beams": 1}, True, [2], 14), ({"num_beams": 1}, False, [2], 10),
        ({"num_beams": 2}, True, [2], 12), ({"num_beams": 3, "length_penalty": 2.0}, True, "often", 14),
        ({"num_beams": 4, "length_penalty": -1.0, "early_stopping": True}, True, "often", 12),
        ({"num_beams": 5, "length_penalty": 0.6, "early_stopping": "never"}, False, "often", 11),
        ({"num_beams": 3, "early_stopping": True}, False, "two", 13),
        ({"num_beams": 4}, True, "two", 9),
        ({"num_beams": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_length": 6}, True, "often", 12),
    ]  # fmt: skip
    for which, sample in enumerate(samples):
        ids = torch.tensor([sample["ids"]])
        common_args = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}
        # End tokens that really come: from a continuation that nothing ends.
        with torch.no_grad():
            free = model.generate(**common_args, max_new_tokens=12, num_beams=3, eos_token_id=None, pad_token_id=1)[0, 1:].tolist()
        often = max(set(free), key=lambda t: (free.count(t), t))
        other = next((t for t in reversed(free) if t != often), 2)
        for arguments, forced, eos, count in settings:
            ends = [often] if eos == "often" else [often, other] if eos == "two" else eos
            forced_id = sample["target_lang"] if forced else None
            with torch.no_grad():
                out = model.generate(
                    **common_args, **arguments, max_new_tokens=count, forced_bos_token_id=forced_id, eos_token_id=ends,
                    pad_token_id=1, return_dict_in_generate=True, output_scores=True, output_logits=True,
                    num_return_sequences=min(2, arguments["num_beams"]),
                )
            new = out.sequences[0, 1:].tolist()
            end = next((i + 1 for i, t in enumerate(new) if t in ends), len(new))
            if arguments["num_beams"] > 1:
                gap = float(out.sequences_scores[0] - out.sequences_scores[1])
            else:
                # A forced token is no choice.
                tops = [s[0].topk(2).values for s in out.logits[int(forced) :]]
                gap = min(float(t[0] - t[1]) for t in tops)
            case = {"sample": which, "forced": forced_id, "eos_ids": ends, "max_new_tokens": count, **arguments, "new_ids": new[:end], "gap": gap}
            cases.append(case)
    return cases


def disk(folder):
    names = {}
    for file in sorted(os.listdir(folder)):
        if file.startswith("model") and file.endswith(".safetensors"):
            names |= {n: list(t.shape) for n, t in load_file(os.path.join(folder, file)).items()}
    return names


def expectations(model, samples, out, spell=lambda n: n):
    """Logits of each sample alone; loss and gradients of all of them as one padded batch."""
    for i, sample in enumerate(samples):
        logits, nll = alone(model, sample)
        out[f"sample{i}.logits"], out[f"sample{i}.nll"] = logits.clone(), nll.detach().clone()
    model.zero_grad(set_to_none=True)
    batch, labels = batch_of(samples, model.config)
    count = int((labels != IGNORE).sum())
    loss = nll_of(model(**batch).logits, labels).sum() / count
    loss.backward()
    out["batch.loss"] = loss.detach().reshape(1).clone()
    unreached, zero = [], []
    for n, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if p.grad is None:
            unreached.append(spell(n))
            continue
        if n.endswith("k_proj.bias"):
            zero.append(spell(n))
        put(out, "grad", spell(n), p.grad)
    return float(loss.detach()), count, sorted(unreached), sorted(zero)


def make_adapter(folder, name, spec, samples, seed):
    from peft import LoraConfig, PeftModel, get_peft_model

    arguments, random_b = spec["adapters"][name]
    target = os.path.join(folder, "adapters", name)
    base = load_model(folder)
    plain = {n: p.detach().clone() for n, p in base.named_parameters()}
    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_2_SEQ_LM", **arguments))
    fill_adapter(model, seed, random_b)
    model.save_pretrained(target, save_embedding_layers=False)
    tidy(target, os.path.basename(folder))
    model = PeftModel.from_pretrained(load_model(folder), target, is_trainable=True).eval()
    out = {}
    loss, count, unreached, _ = expectations(model, samples, out, saved_name)
    trainable = {saved_name(n): list(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    modules = modules_of(model)
    merged = model.merge_and_unload()
    changes = []
    for n, p in merged.named_parameters():
        delta = p.detach() - plain[n]
        if delta.abs().max() > 0:
            changes.append(n)
            put(out, "merged", n, delta)
    save_tensors(os.path.join(target, "expected.safetensors"), out)
    write_json(os.path.join(target, "expected.json"), {
        "versions": common.versions(), "seed": seed, "random_b": random_b, "trainable": trainable, "no_gradient": unreached,
        "modules": modules, "merged_changes": sorted(changes), "loss": loss,
    })  # fmt: skip
    print(f"  {name}: loss {loss:.4f}, {len(trainable)} tensors, {len(changes)} merged")


def train(name):
    """Ten Trainer steps over the folder's samples, and the change of every trained tensor."""
    from peft import PeftModel
    from transformers import Trainer, TrainingArguments

    folder_name, adapter, arguments = RUNS[name]
    folder = os.path.join(ROOT, folder_name)
    with open(os.path.join(folder, "expected.json")) as f:
        samples = json.load(f)["samples"]
    model = load_model(folder)
    if adapter:
        model = PeftModel.from_pretrained(model, os.path.join(folder, "adapters", adapter), is_trainable=True)
    # The Trainer puts the model into training mode, whose dropout has random numbers of its own.
    for module in model.modules():
        for field in ("dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, field, None), (int, float)):
                setattr(module, field, 0.0)
    start = {saved_name(n): p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    log = {"micro": [], "ends": [], "norms": [], "records": []}

    def collate(indices):
        batch, labels = batch_of([samples[i] for i in indices], model.config)
        log["records"].append(list(indices))
        return {**batch, "labels": labels}

    def loss_of(outputs, labels, num_items_in_batch=None):
        return nll_of(outputs.logits, labels).sum() / num_items_in_batch

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            log["micro"].append(float(loss))
            return loss

        def _clip_grad_norm(self, model):
            norm = super()._clip_grad_norm(model)
            log["norms"].append(float(norm))
            log["ends"].append(len(log["micro"]))
            return norm

    with tempfile.TemporaryDirectory() as out:
        args = TrainingArguments(
            output_dir=out, max_steps=STEPS, optim="adamw_torch", report_to=[], save_strategy="no", logging_strategy="no",
            use_cpu=True, remove_unused_columns=False, seed=1, disable_tqdm=True, dataloader_num_workers=0, **arguments,
        )
        trainer = InOrder(model=model, args=args, train_dataset=list(range(len(samples))), data_collator=collate, compute_loss_func=loss_of)
        trainer.train()
    begins = [0] + log["ends"][:-1]
    losses = [sum(log["micro"][a:b]) for a, b in zip(begins, log["ends"])]
    tensors = {}
    for n, p in sorted(model.named_parameters()):
        if p.requires_grad:
            put(tensors, "delta", saved_name(n), (p.detach() - start[saved_name(n)]).double(), whole=256)
    os.makedirs(os.path.join(ROOT, "training"), exist_ok=True)
    save_tensors(os.path.join(ROOT, "training", f"{name}.safetensors"), tensors)
    write_json(os.path.join(ROOT, "training", f"{name}.json"), {
        "versions": common.versions(), "folder": folder_name, "adapter": adapter, "steps": STEPS, "arguments": arguments,
        "losses": losses, "grad_norms": log["norms"], "records": [log["records"][a:b] for a, b in zip(begins, log["ends"])],
    })  # fmt: skip
    print(f"{name}: losses {[round(l, 4) for l in losses]} norms {[round(n, 3) for n in log['norms']]}")


def make(name):
    from transformers import AutoTokenizer

    spec = SPECS[name]
    folder = os.path.join(ROOT, name)
    build_folder(spec, folder)
    model = load_model(folder)
    tok = AutoTokenizer.from_pretrained(folder)
    samples = [encode(tok, record) for record in RECORDS]
    with open(os.path.join(folder, "records.jsonl"), "w") as f:
        f.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
    out = {}
    loss, count, unreached, zero = expectations(model, samples, out)
    logits = [out[f"sample{i}.logits"] for i in range(len(samples))]
    batch, _ = batch_of(samples, model.config)
    with torch.no_grad():
        padded = model(**batch).logits
    worst = max(float((padded[i, : len(l)] - l).abs().max()) for i, l in enumerate(logits))
    cases = continuations(model, samples)
    texts = [tok.decode(case["new_ids"], skip_special_tokens=True) for case in cases]
    info = {
        "versions": common.versions(), "seed": spec["seed"], "samples": samples, "loss": loss, "num_supervised": count,
        "no_gradient": unreached, "zero_gradient": zero, "padded_vs_alone_max_abs": worst,
        "parameters": {n: list(p.shape) for n, p in model.named_parameters()}, "tensors_on_disk": disk(folder),
        "sensitivity": sensitivity(spec, model, samples, logits),
        "continuations": [{**case, "text": text} for case, text in zip(cases, texts)],
    }  # fmt: skip
    save_tensors(os.path.join(folder, "expected.safetensors"), out)
    write_json(os.path.join(folder, "expected.json"), info)
    print(f"{name}: loss {loss:.4f} over {count}, logits std {float(torch.cat(logits).std()):.2f}, padded-alone {worst:.1e}, "
          f"unreached {unreached}, tokens {[(len(s['ids']), len(s['labels'])) for s in samples]}, least gap {min(c['gap'] for c in cases):.1e}, "
          f"ended {sum(c['new_ids'][-1] in c['eos_ids'] for c in cases)} of {len(cases)}, least sensitive {min(info['sensitivity'].items(), key=lambda kv: kv[1])}")
    for i, adapter in enumerate(spec["adapters"]):
        make_adapter(folder, adapter, spec, samples, spec["seed"] + 10 * i + 5)


if __name__ == "__main__":
    for name in sys.argv[1:] or [*SPECS, *RUNS]:
        train(name) if name in RUNS else make(name)
