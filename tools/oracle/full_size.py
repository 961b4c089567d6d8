"""Parameter counts of published model sizes, from their configurations alone: `fixtures/models/full_size.json`.

The configurations hold what the hub's `config.json` files hold of shapes, left-out fields included (the reference class fills
them in); `transformers` builds each on the meta device, where no weight exists, and counts. Seeds play no part.

    python tools/oracle/full_size.py
"""

import json
import os

import torch
import transformers

from common import FIXTURES, versions

SIGLIP_SO400M = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16,
    "num_hidden_layers": 26, "image_size": 384, "patch_size": 14, "vision_use_head": False,
}
CLIP_L_336 = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
    "num_hidden_layers": 24, "image_size": 336, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
}
QWEN2_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152000, "rope_theta": 1000000.0, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
}
QWEN2_VL_VISION = {
    "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "patch_size": 14, "spatial_merge_size": 2,
    "spatial_patch_size": 14, "temporal_patch_size": 2,
}


def qwen2_vl(hidden, inter, layers, heads, kv, vocab=152064, tie=False):
    return {
        "model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"], "hidden_size": hidden,
        "intermediate_size": inter, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "vocab_size": vocab, "tie_word_embeddings": tie, "rope_theta": 1000000.0, "rms_norm_eps": 1e-06,
        "max_position_embeddings": 32768, "hidden_act": "silu", "image_token_id": 151655, "video_token_id": 151656,
        "vision_start_token_id": 151652, "vision_end_token_id": 151653, "torch_dtype": "bfloat16",
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {**QWEN2_VL_VISION, "hidden_size": hidden},
    }


def qwen2_5_vl(hidden, inter, layers, heads, kv, vision_inter, vocab=152064, tie=False):
    config = qwen2_vl(hidden, inter, layers, heads, kv, vocab, tie)
    config["model_type"], config["architectures"] = "qwen2_5_vl", ["Qwen2_5_VLForConditionalGeneration"]
    config["vision_config"] = {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": vision_inter, "num_heads": 16,
        "in_chans": 3, "out_hidden_size": hidden, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
    }
    return config


def vicuna(hidden, inter, layers, heads, vocab=32064):
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": inter, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": vocab, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
    }


def decoder(model_type, hidden, inter, layers, heads, kv, vocab, **more):
    return {
        "model_type": model_type, "hidden_size": hidden, "intermediate_size": inter, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocab, "torch_dtype": "bfloat16", **more,
    }


LLAVA = {
    "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 32000,
    "projector_hidden_act": "gelu", "torch_dtype": "float16", "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
CONFIGS = {
    "llava-interleave-qwen-7b": {
        **LLAVA, "image_token_index": 151646, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "text_config": {
            "model_type": "qwen2", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 32768, "rope_theta": 1000000.0, "rms_norm_eps": 1e-06,
            "vocab_size": 152000, "tie_word_embeddings": False,
        },
        "vision_config": SIGLIP_SO400M,
    },
    "llava-1.5-7b": {**LLAVA, "text_config": vicuna(4096, 11008, 32, 32), "vision_config": CLIP_L_336},
    "llava-1.5-13b": {**LLAVA, "text_config": vicuna(5120, 13824, 40, 40), "vision_config": CLIP_L_336},
    "qwen2-vl-2b": qwen2_vl(1536, 8960, 28, 12, 2, vocab=151936, tie=True),
    "qwen2-vl-7b": qwen2_vl(3584, 18944, 28, 28, 4),
    "qwen2-vl-72b": qwen2_vl(8192, 29568, 80, 64, 8),
    "qwen2.5-vl-3b": qwen2_5_vl(2048, 11008, 36, 16, 2, 3420, vocab=151936, tie=True),
    "qwen2.5-vl-7b": qwen2_5_vl(3584, 18944, 28, 28, 4, 3420),
    "qwen2.5-vl-72b": qwen2_5_vl(8192, 29568, 80, 64, 8, 3456),
    "qwen3-vl-8b": {
        "model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"], "image_token_id": 151655,
        "video_token_id": 151656, "vision_start_token_id": 151652, "vision_end_token_id": 151653, "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen3_vl_text", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "rope_theta": 5000000,
            "rms_norm_eps": 1e-06, "max_position_embeddings": 262144, "dtype": "bfloat16",
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        },
        "vision_config": {
            "model_type": "qwen3_vl", "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
            "in_channels": 3, "out_hidden_size": 4096, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24], "hidden_act": "gelu_pytorch_tanh",
        },
    },
    "llava-v1.6-mistral-7b": {
        "model_type": "llava_next", "architectures": ["LlavaNextForConditionalGeneration"], "image_token_index": 32000,
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]], "projector_hidden_act": "gelu",
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "torch_dtype": "float16",
        "text_config": decoder("mistral", 4096, 14336, 32, 32, 8, 32064, rope_theta=1000000.0, sliding_window=None),
        "vision_config": CLIP_L_336,
    },
    "llava-next-video-7b": {
        "model_type": "llava_next_video", "architectures": ["LlavaNextVideoForConditionalGeneration"],
        "image_token_index": 32001, "video_token_index": 32000, "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        "projector_hidden_act": "gelu", "spatial_pool_mode": "average", "spatial_pool_stride": 2,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "torch_dtype": "bfloat16",
        "text_config": vicuna(4096, 11008, 32, 32), "vision_config": CLIP_L_336,
    },
    "llava-onevision-qwen2-7b": {
        "model_type": "llava_onevision", "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "image_token_index": 151646, "video_token_index": 151647, "projector_hidden_act": "gelu",
        "image_grid_pinpoints": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
        "vision_aspect_ratio": "anyres_max_9", "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "torch_dtype": "float16", "text_config": {**QWEN2_7B, "vocab_size": 152000}, "vision_config": SIGLIP_SO400M,
    },
    "llama-3.1-8b": decoder(
        "llama", 4096, 14336, 32, 32, 8, 128256, rope_theta=500000.0, max_position_embeddings=131072, rms_norm_eps=1e-05,
        rope_scaling={"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    ),
    "mistral-7b": decoder("mistral", 4096, 14336, 32, 32, 8, 32768, rope_theta=1000000.0, sliding_window=None),
    "qwen2.5-1.5b": decoder("qwen2", 1536, 8960, 28, 12, 2, 151936, tie_word_embeddings=True, rope_theta=1000000.0),
    "qwen3-8b": decoder("qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128, rope_theta=1000000),
    "phi-4-mini": decoder(
        "phi3", 3072, 8192, 32, 24, 8, 200064, tie_word_embeddings=True, partial_rotary_factor=0.75, pad_token_id=199999,
        max_position_embeddings=131072, original_max_position_embeddings=4096, rms_norm_eps=1e-05, sliding_window=262144,
        bos_token_id=199999, eos_token_id=199999,
        rope_scaling={"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48},
    ),
    "nllb-200-distilled-600m": {
        "model_type": "m2m_100", "architectures": ["M2M100ForConditionalGeneration"], "d_model": 1024, "encoder_layers": 12,
        "decoder_layers": 12, "encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_ffn_dim": 4096,
        "decoder_ffn_dim": 4096, "vocab_size": 256206, "scale_embedding": True, "activation_function": "relu",
        "max_position_embeddings": 1024, "decoder_start_token_id": 2, "dropout": 0.1,
    },
}


def count(name, config):
    raw = json.loads(json.dumps(config))
    kind = raw.pop("model_type")
    reference = transformers.AutoConfig.for_model(kind, **raw)
    architecture = (config.get("architectures") or [None])[0]
    cls = getattr(transformers, architecture) if architecture else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = cls(reference) if architecture else cls.from_config(reference)
    model.tie_weights()
    vision = [p for n, p in model.named_parameters() if any(part in n for part in ("vision_tower", "visual."))]
    total = sum(p.numel() for p in model.parameters())
    print(f"{name:28} {total:>15,}")
    return {"total": total, "vision": sum(p.numel() for p in vision)}


def main():
    models = {name: {"config": config, "parameters": count(name, config)} for name, config in CONFIGS.items()}
    with open(os.path.join(FIXTURES, "full_size.json"), "w") as f:
        json.dump({"versions": versions(), "models": models}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
