"""LLaVA-OneVision-1.5 in plain PyTorch: the reference of fixtures/models/onevision1_5_*.

`transformers` 5.23 has no class for these checkpoints, which bring code of their own. This one is written from the published
description (An et al. 2025, and the names and shapes of the checkpoints), before anything else in this project computed the
same. Its decoder is `Qwen3Model` of `transformers`; its tower is compared with `MLCDVisionModel` of `transformers`, which it
shares everything with but the names, the order of patches and sizes that vary (`check_against_mlcd`).

RICE: patches of single frames, each frame with a class token in front whose rotary angles are learned as they are; angles of
a patch are its row for the first half of the pairs of a head and its column for the second; a norm of everything before the
first block; attention within a frame; class tokens dropped before the merger. The decoder counts tokens of pictures like words.
"""

import os
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel, Qwen3Config, Qwen3Model
from transformers.activations import ACT2FN
from transformers.modeling_outputs import CausalLMOutputWithPast

TEXT_DEFAULTS = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}


class RiceConfig(PreTrainedConfig):
    model_type = "rice_vit"
    base_config_key = "vision_config"

    depth: int = 24
    hidden_size: int = 1024
    hidden_act: str = "gelu"
    intermediate_size: int = 4096
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    layer_norm_eps: float = 1e-5
    text_hidden_size: int = 2560

    temporal_patch_size = 1


def text_config(given):
    given = {k: v for k, v in given.items() if k not in ("model_type", "image_token_id", "video_token_id")}
    if not given.get("rope_parameters") and "rope_theta" not in given:
        given["rope_theta"] = 1000000.0
    return Qwen3Config(**{**TEXT_DEFAULTS, **given}, attn_implementation="eager")


def vision_config(given):
    given = {k: v for k, v in given.items() if k not in ("model_type", "embed_dim", "temporal_patch_size")}
    if "out_hidden_size" in given:
        given["text_hidden_size"] = given.pop("out_hidden_size")
    return RiceConfig(**given)


class OneVision15Config(PreTrainedConfig):
    model_type = "llavaonevision1_5"
    sub_configs = {"text_config": Qwen3Config, "vision_config": RiceConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 151655
    video_token_id: int = 151656

    def __post_init__(self, **kwargs):
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = text_config(self.text_config or {})
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = vision_config(self.vision_config or {})
        super().__post_init__(**kwargs)


class OtherNameConfig(OneVision15Config):
    model_type = "llava_onevision1_5"


for kind in (OneVision15Config, OtherNameConfig):
    AutoConfig.register(kind.model_type, kind)


def rotated(x, angles):
    """Heads `[rows, heads, dim]`, pairs half by half, by `[rows, dim / 2]`."""
    u, v = x.chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([u * cos - v * sin, v * cos + u * sin], dim=-1)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads = c.num_heads
        self.norm1 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.norm2 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(c.hidden_size, 3 * c.hidden_size), "proj": nn.Linear(c.hidden_size, c.hidden_size)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(c.hidden_size, c.intermediate_size), "fc2": nn.Linear(c.intermediate_size, c.hidden_size)})
        self.act = ACT2FN[c.hidden_act]

    def forward(self, x, angles, bounds):
        q, k, v = self.attn["qkv"](self.norm1(x)).view(len(x), 3, self.heads, -1).unbind(1)
        q, k = rotated(q, angles), rotated(k, angles)
        frames = []
        for a, b in zip(bounds, bounds[1:]):
            scores = torch.einsum("qhd,khd->hqk", q[a:b], k[a:b]) * q.shape[-1] ** -0.5
            frames.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[a:b]).flatten(1))
        x = x + self.attn["proj"](torch.cat(frames))
        return x + self.mlp["fc2"](self.act(self.mlp["fc1"](self.norm2(x))))


class Merger(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.joined = c.hidden_size * c.spatial_merge_size**2
        self.ln_q = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.mlp = nn.Sequential(nn.Linear(self.joined, self.joined), nn.GELU(), nn.Linear(self.joined, c.text_hidden_size))

    def forward(self, x):
        return self.mlp(self.ln_q(x).view(-1, self.joined))


class Rice(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        half = c.hidden_size // c.num_heads // 2
        self.inverse = 1.0 / 10000.0 ** (torch.arange(0, half, 2, dtype=torch.float) / half)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(c.in_channels, c.hidden_size, c.patch_size, c.patch_size, bias=False)})
        self.class_embedding = nn.Parameter(torch.randn(c.hidden_size))
        self.class_pos_emb = nn.Parameter(torch.randn(1, half))
        self.pre_layernorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.merger = Merger(c)

    def places(self, h, w):
        """Rows and columns of a frame's patches, squares of merged ones one after the other."""
        m = self.c.spatial_merge_size
        return torch.tensor([(y + i, x + j) for y in range(0, h, m) for x in range(0, w, m) for i in range(m) for j in range(m)])

    def states(self, patches, grid_thw):
        """What the last block gives, class tokens and all, and where each frame begins."""
        c = self.c
        embedded = self.patch_embed["proj"](patches.view(-1, c.in_channels, c.patch_size, c.patch_size)).flatten(1)
        rows, angles, bounds, at = [], [], [0], 0
        for t, h, w in grid_thw.tolist():
            places = self.places(h, w)
            turn = (places[:, :, None] * self.inverse.to(embedded.dtype)).flatten(1)
            for _ in range(t):
                rows += [self.class_embedding[None], embedded[at : at + h * w]]
                angles += [self.class_pos_emb, turn]
                bounds.append(bounds[-1] + h * w + 1)
                at += h * w
        x, angles = self.pre_layernorm(torch.cat(rows)), torch.cat(angles)
        for block in self.blocks:
            x = block(x, angles, bounds)
        return x, bounds

    def forward(self, patches, grid_thw):
        x, bounds = self.states(patches, grid_thw)
        x = torch.cat([x[a + 1 : b] for a, b in zip(bounds, bounds[1:])])
        return SimpleNamespace(pooler_output=self.merger(x))


class Both(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.visual = Rice(config.vision_config)
        self.language_model = Qwen3Model(config.text_config)


class OneVision15ForConditionalGeneration(PreTrainedModel, GenerationMixin):
    config_class = OneVision15Config
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = Both(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        if config.text_config.tie_word_embeddings:
            self.lm_head.weight = self.model.language_model.embed_tokens.weight
        self.loss_type = "ForCausalLM"

    def get_input_embeddings(self):
        return self.model.language_model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids, **kwargs}

    def forward(self, input_ids=None, attention_mask=None, pixel_values=None, image_grid_thw=None, labels=None, **kwargs):
        x = self.model.language_model.embed_tokens(input_ids)
        if pixel_values is not None:
            features = self.model.visual(pixel_values, image_grid_thw).pooler_output
            is_picture = input_ids == self.config.image_token_id
            assert int(is_picture.sum()) == len(features)
            x = x.masked_scatter(is_picture[..., None], features.to(x.dtype))
        hidden = self.model.language_model(inputs_embeds=x, attention_mask=attention_mask, use_cache=False).last_hidden_state
        logits, loss = self.lm_head(hidden), None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def save_pretrained(self, folder, **_):
        os.makedirs(folder, exist_ok=True)
        tied = self.config.text_config.tie_word_embeddings
        tensors = {disk_spelling(n): p.detach().contiguous() for n, p in self.named_parameters() if not (tied and n == "lm_head.weight")}
        save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, folder, output_loading_info=False, **_):
        from glob import glob

        model = cls(AutoConfig.from_pretrained(folder)).float()
        found = {}
        for file in sorted(glob(os.path.join(folder, "model*.safetensors"))):
            found.update({memory_spelling(n): t.float() for n, t in load_file(file).items()})
        wanted = {n for n, _ in model.named_parameters()}
        info = {"missing_keys": sorted(wanted - set(found)), "unexpected_keys": sorted(set(found) - wanted), "mismatched_keys": []}
        model.load_state_dict(found, strict=False)
        return (model.eval(), info) if output_loading_info else model.eval()


def disk_spelling(name):
    """In-memory name -> what the published files call it."""
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name.removeprefix("model.") if name.startswith("model.visual.") else name


def memory_spelling(name):
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def check_against_mlcd(rice, side, seed=1):
    """The tower against `MLCDVisionModel` with the same weights, on a square picture; the largest difference of states."""
    from transformers import MLCDVisionConfig, MLCDVisionModel

    c = rice.c
    mlcd = MLCDVisionModel(MLCDVisionConfig(
        hidden_size=c.hidden_size, intermediate_size=c.intermediate_size, num_hidden_layers=c.depth, num_attention_heads=c.num_heads, num_channels=c.in_channels,
        image_size=side * c.patch_size, patch_size=c.patch_size, hidden_act=c.hidden_act, layer_norm_eps=c.layer_norm_eps, attn_implementation="eager",
    )).eval()  # fmt: skip
    pairs = {
        "class_pos_emb": rice.class_pos_emb, "embeddings.class_embedding": rice.class_embedding, "embeddings.patch_embedding.weight": rice.patch_embed["proj"].weight,
        "pre_layrnorm.weight": rice.pre_layernorm.weight, "pre_layrnorm.bias": rice.pre_layernorm.bias,
    }
    for i, block in enumerate(rice.blocks):
        at = f"encoder.layers.{i}."
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", getattr(block.attn["qkv"], kind).chunk(3)):
                pairs[f"{at}self_attn.{name}_proj.{kind}"] = part
            pairs[f"{at}self_attn.out_proj.{kind}"] = getattr(block.attn["proj"], kind)
            pairs[f"{at}layer_norm1.{kind}"], pairs[f"{at}layer_norm2.{kind}"] = getattr(block.norm1, kind), getattr(block.norm2, kind)
            pairs[f"{at}mlp.fc1.{kind}"], pairs[f"{at}mlp.fc2.{kind}"] = getattr(block.mlp["fc1"], kind), getattr(block.mlp["fc2"], kind)
    missing, unexpected = mlcd.load_state_dict({n: p.detach() for n, p in pairs.items()}, strict=False)
    assert not unexpected and all("post_layernorm" in n or "position_ids" in n for n in missing), (missing, unexpected)
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randn(1, c.in_channels, side * c.patch_size, side * c.patch_size, generator=rng)
    places = rice.places(side, side)
    p = c.patch_size
    patches = torch.stack([pixels[0, :, y * p : (y + 1) * p, x * p : (x + 1) * p].flatten() for y, x in places.tolist()])
    with torch.no_grad():
        ours, _ = rice.states(patches, torch.tensor([[1, side, side]]))
        theirs = mlcd(pixels).last_hidden_state[0]
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + places[:, 0] * side + places[:, 1]])
    return float((ours - theirs[order]).abs().max() / theirs.std())
