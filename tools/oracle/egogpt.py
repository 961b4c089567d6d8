"""A plain PyTorch reference of EgoGPT (Yang et al. 2025, "EgoLife"), which `transformers` lacks.

Written from the published description and the names of its checkpoints, on top of `SiglipVisionModel`, `WhisperEncoder` and
`Qwen2Model`, before the Rust was written and without a look at it:

- the tower is SigLIP with its last layer removed; what the last layer that is left gives, no norm behind it, goes through
  `mm_projector` (`linear` or `mlpNx_gelu`);
- frames of a clip are then averaged 2 x 2 (`avg_pool2d` with stride 2: a last odd row and column are dropped), pictures are
  left whole; `mm_newline_position` says where `image_newline` stands: at the end (`one_token`), after every row (`grid`,
  clips alone) or nowhere (`no_token`); it exists where `mm_patch_merge_type` says `unpad`;
- sound is a log-mel spectrogram through Whisper's encoder; `speech_encoder_ds_rate` states in succession make one row,
  states that are left over are dropped; then linear, ReLU, linear;
- the rows replace placeholders in the order of the text.

Names of parameters are those of the checkpoints, but for the inside of the speech encoder, which has `transformers`' names here
and OpenAI's (`disk_name`) or `transformers`' on disk.
"""

import json
import os

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers.modeling_outputs import CausalLMOutput

QWEN2 = ("attention_dropout", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "vocab_size", "bos_token_id", "eos_token_id")

WHISPER = (("layers.", "blocks."), ("self_attn.q_proj", "attn.query"), ("self_attn.k_proj", "attn.key"), ("self_attn.v_proj", "attn.value"),
    ("self_attn.out_proj", "attn.out"), ("self_attn_layer_norm", "attn_ln"), ("fc1", "mlp.0"), ("fc2", "mlp.2"), ("final_layer_norm", "mlp_ln"),
    ("layer_norm", "ln_post"), ("embed_positions.weight", "positional_embedding"))


class EgoGPT(nn.Module):
    base_model_prefix = "model"  # peft looks for it

    def __init__(self, config):
        from transformers import PreTrainedConfig, Qwen2Config, Qwen2Model, SiglipVisionConfig, SiglipVisionModel, WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        super().__init__()
        self.raw = config
        self.config = PreTrainedConfig()
        self.config.model_type = "egogpt_qwen"
        text = Qwen2Config(**{k: config[k] for k in QWEN2 if k in config})
        text._attn_implementation = "eager"
        self.model = Qwen2Model(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        if text.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

        vision = SiglipVisionConfig(**{"vision_use_head": False, **config["vision_config"]})
        vision._attn_implementation = "eager"
        tower = SiglipVisionModel(vision)
        del tower.encoder.layers[-1:]
        wrapper = nn.Module()
        wrapper.vision_tower = nn.Module()
        wrapper.vision_tower.vision_model = tower
        self.model.vision_tower = wrapper
        self.side = vision.image_size // vision.patch_size
        kind = config.get("mm_projector_type", "linear")
        depth = 1 if kind == "linear" else int(kind.removeprefix("mlp").removesuffix("x_gelu"))
        layers = [nn.Linear(vision.hidden_size, text.hidden_size)]
        for _ in range(1, depth):
            layers += [nn.GELU(), nn.Linear(text.hidden_size, text.hidden_size)]
        self.model.mm_projector = layers[0] if kind == "linear" else nn.Sequential(*layers)
        if "unpad" in config.get("mm_patch_merge_type", "flat"):
            self.model.image_newline = nn.Parameter(torch.zeros(text.hidden_size))

        speech = WhisperConfig(**config["speech_config"])
        speech._attn_implementation = "eager"
        self.model.speech_encoder = nn.Module()
        self.model.speech_encoder.encoder = WhisperEncoder(speech)
        self.rate = config.get("speech_encoder_ds_rate", 5)
        inner = config.get("speech_projector_hidden_size", 2048)
        self.model.speech_projector = nn.Module()
        self.model.speech_projector.linear1 = nn.Linear(config.get("speech_encoder_hidden_size", 1280) * self.rate, inner)
        self.model.speech_projector.linear2 = nn.Linear(inner, text.hidden_size)

    def pictures(self, pixels, visuals):
        """Rows of every picture and clip, each alone."""
        tower = self.model.vision_tower.vision_tower.vision_model
        states = tower.encoder(inputs_embeds=tower.embeddings(pixels)).last_hidden_state
        projected = self.model.mm_projector(states)
        merge = self.raw.get("mm_patch_merge_type", "flat")
        where = self.raw.get("mm_newline_position", "one_token")
        newline = getattr(self.model, "image_newline", None)
        out, at = [], 0
        for visual in visuals:
            count = visual["grid"][0]
            rows = projected[at : at + count]
            at += count
            if visual["is_video"]:
                grid = rows.view(count, self.side, self.side, -1).permute(0, 3, 1, 2)
                grid = F.avg_pool2d(grid, 2).permute(0, 2, 3, 1)
                if merge != "flat" and where == "grid":
                    shape = (*grid.shape[:2], 1, grid.shape[3])
                    grid = torch.cat((grid, newline.expand(shape)), 2)
                rows = grid.reshape(-1, grid.shape[-1])
                if "unpad" in merge and where == "one_token":
                    rows = torch.cat((rows, newline[None]))
            else:
                rows = rows.reshape(-1, rows.shape[-1])
                if "unpad" in merge:
                    rows = torch.cat((rows, newline[None]))
            out.append(rows)
        return out

    def speech(self, mel):
        """Rows of every window `[w, mels, frames]`, window after window."""
        states = self.model.speech_encoder.encoder(mel).last_hidden_state
        count = states.shape[1] // self.rate
        joined = states[:, : count * self.rate].reshape(-1, states.shape[2] * self.rate)
        own = self.model.speech_projector
        return own.linear2(F.relu(own.linear1(joined)))

    def prepare_inputs_for_generation(self, *_, **__):
        raise NotImplementedError  # peft looks for it

    def forward(self, input_ids, labels=None, pixels=None, visuals=(), mel=None, num_items_in_batch=None, **_):
        (ids,) = input_ids.tolist()
        image, speech = self.raw["image_token_index"], self.raw["speech_token_index"]
        seen = torch.cat(self.pictures(pixels, visuals)) if pixels is not None else None
        heard = self.speech(mel) if mel is not None else None
        words = torch.tensor([0 if i in (image, speech) else i for i in ids])
        rows, next_seen, next_heard = list(self.model.embed_tokens(words)), 0, 0
        for place, i in enumerate(ids):
            if i == image:
                rows[place], next_seen = seen[next_seen], next_seen + 1
            elif i == speech:
                rows[place], next_heard = heard[next_heard], next_heard + 1
        assert seen is None or next_seen == len(seen)
        assert heard is None or next_heard == len(heard)
        hidden = self.model(inputs_embeds=torch.stack(rows)[None], use_cache=False).last_hidden_state
        out = CausalLMOutput(logits=self.lm_head(hidden))
        if labels is not None:
            nll = F.cross_entropy(out["logits"][0, :-1].float(), labels[0, 1:], ignore_index=-100, reduction="sum")
            out["loss"] = nll / (num_items_in_batch if num_items_in_batch is not None else (labels[0, 1:] != -100).sum())
        return out


def is_ego(config):
    return config.model_type == "egogpt_qwen"


def disk_name(name):
    """OpenAI's names inside the speech encoder, the class's elsewhere."""
    start = "model.speech_encoder.encoder."
    if not name.startswith(start):
        return name
    inner = name[len(start) :]
    for ours, theirs in WHISPER:
        if ours == "layer_norm" and not inner.startswith("layer_norm"):
            continue
        if ours == "layers." and not inner.startswith(ours):
            continue
        inner = inner.replace(ours, theirs)
    return start + inner


def load(folder):
    from safetensors.torch import load_file

    with open(os.path.join(folder, "config.json")) as f:
        model = EgoGPT(json.load(f)).float()
    state = load_file(os.path.join(folder, "model.safetensors"))
    for name, p in model.named_parameters():
        found = state.pop(disk_name(name), None)
        found = state.pop(name, None) if found is None else found
        with torch.no_grad():
            p.copy_(found.float())
    assert not state, list(state)
    return model.eval()


def inputs_of(sample, ids=None):
    """What the class takes for a sample of the fixtures."""
    out = {"input_ids": torch.tensor([sample["ids"] if ids is None else ids])}
    if sample.get("pixels") is not None:
        out.update(pixels=sample["pixels"], visuals=sample["visuals"])
    if sample.get("mel") is not None:
        out["mel"] = sample["mel"]
    return out
