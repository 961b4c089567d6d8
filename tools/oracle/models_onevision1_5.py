"""Tiny LLaVA-OneVision-1.5 checkpoints of fixtures/models and what onevision1_5_ref.py computes with them.

    python tools/oracle/models_onevision1_5.py [folder ...]

As models_qwen_vl.py, which does the work. The tower of every folder is compared with MLCD of transformers first.
"""

import os
import sys

import common
from models_qwen_vl import VOCAB, image, make
from onevision1_5_ref import OneVision15ForConditionalGeneration, check_against_mlcd
from qwen_inputs import EOS, IMAGE, PAD, VIDEO

SPECS = {}


def frames(t, h, w):
    """Frames under one grid: each has a class token of its own."""
    return {"is_video": False, "grid": [t, h, w], "seconds_per_grid": 0.0}


# As on the hub: every field written down, another vocabulary at the top level.
SPECS["onevision1_5_hub"] = {
    "seed": 704,
    "config": {
        "architectures": ["LLaVAOneVision1_5_ForConditionalGeneration"], "auto_map": {"AutoConfig": "configuration_llavaonevision1_5.Llavaonevision1_5Config"},
        "model_type": "llavaonevision1_5", "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": 312, "vision_end_token_id": 313, "vocab_size": 152064,
        "text_config": {
            "attention_bias": False, "attention_dropout": 0.0, "head_dim": 16, "hidden_act": "silu", "hidden_size": 48, "image_token_id": None, "initializer_range": 0.02,
            "intermediate_size": 72, "layer_types": ["full_attention", "full_attention"], "max_position_embeddings": 32768, "max_window_layers": 2,
            "model_type": "LLaVAOneVision1_5_text", "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_scaling": None,
            "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False, "use_cache": True, "use_sliding_window": False, "video_token_id": None,
            "vocab_size": VOCAB, "bos_token_id": PAD, "eos_token_id": EOS,
        },
        "vision_config": {
            "depth": 3, "embed_dim": 16, "hidden_act": "gelu", "hidden_size": 16, "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 44, "layer_norm_eps": 1e-05,
            "model_type": "rice_vit", "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 1, "text_hidden_size": 48,
        },
    },
    "samples": [
        [5, image(6, 10), 9],
        [3, image(4, 6), 1, image(4, 6), 1, image(4, 6), 4, image(2, 2), 8],
        [11, 6],
        [2, frames(3, 4, 4), 1, image(14, 2), 7],
    ],
    "sensitivity": [("vision_config.hidden_act", "gelu_pytorch_tanh"), ("text_config.rope_parameters", {"rope_type": "default", "rope_theta": 10000.0})],
}

# The other name of the type, tied, three heads on one with biases, squares of three, large epsilons.
SPECS["onevision1_5_odd"] = {
    "seed": 702,
    "config": {
        "architectures": ["LlavaOnevision1_5ForConditionalGeneration"], "model_type": "llava_onevision1_5", "image_token_id": IMAGE, "video_token_id": VIDEO,
        "tie_word_embeddings": True,
        "text_config": {
            "attention_bias": True, "head_dim": 20, "hidden_act": "gelu", "hidden_size": 44, "intermediate_size": 50, "model_type": "llava_onevision1_5_text",
            "num_attention_heads": 3, "num_hidden_layers": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-3, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}, "vocab_size": VOCAB, "bos_token_id": PAD, "eos_token_id": EOS,
        },
        "vision_config": {
            "depth": 2, "hidden_act": "quick_gelu", "hidden_size": 12, "intermediate_size": 30, "layer_norm_eps": 2e-3, "model_type": "llava_onevision1_5_vision",
            "num_heads": 3, "patch_size": 3, "spatial_merge_size": 3, "out_hidden_size": 44,
        },
    },
    "samples": [[4, frames(2, 3, 9), 6], [2, image(12, 3), 5, image(3, 3), 6], [9, 4]],
    "sensitivity": [("vision_config.layer_norm_eps", 1e-5), ("text_config.rms_norm_eps", 1e-6)],
}

# What the published classes have as defaults left out.
SPECS["onevision1_5_defaults"] = {
    "seed": 703,
    "config": {
        "architectures": ["LLaVAOneVision1_5_ForConditionalGeneration"], "model_type": "llavaonevision1_5", "image_token_id": IMAGE, "video_token_id": VIDEO,
        "text_config": {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 8, "num_hidden_layers": 1, "vocab_size": VOCAB, "bos_token_id": PAD, "eos_token_id": EOS},
        "vision_config": {"depth": 1, "hidden_size": 64, "intermediate_size": 24, "text_hidden_size": 16},
    },
    "samples": [[5, image(4, 2), 9], [3, image(2, 4), 1, image(2, 4), 7], [11, 6]],
    "sensitivity": [("vision_config.layer_norm_eps", 1e-2), ("text_config.rope_parameters", {"rope_type": "default", "rope_theta": 10000.0})],
}

if __name__ == "__main__":
    for name in sys.argv[1:] or SPECS:
        make(name, SPECS[name])
        tower = OneVision15ForConditionalGeneration.from_pretrained(os.path.join(common.FIXTURES, name)).model.visual
        off = check_against_mlcd(tower, 2 * tower.c.spatial_merge_size)
        assert off < 2e-5, off
        print(f"  the tower is within {off:.1e} of MLCD's")
