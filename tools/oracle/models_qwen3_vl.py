"""Tiny Qwen3-VL checkpoints of fixtures/models and what transformers computes with them.

    python tools/oracle/models_qwen3_vl.py [folder ...]

As models_qwen_vl.py, which does the work. Every step of a clip has two words before it, its time, and its own tokens of
start and end, within those of the template around the whole clip, as the processor of transformers 5.23 writes it.
"""

import sys

from models_qwen_vl import VOCAB, image, make, tokens, video
from qwen_inputs import EOS, PAD

SPECS = {}

# Qwen3-VL as on the hub: grouped heads wider than hidden / heads, tied (the outer configuration says so), interleaved sections.
SPECS["qwen3_vl_hub"] = {
    "seed": 601,
    "config": {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", **tokens(), "tie_word_embeddings": True,
        "text_config": {
            "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": PAD, "dtype": "float32", "eos_token_id": EOS, "head_dim": 16, "hidden_act": "silu",
            "hidden_size": 48, "initializer_range": 0.02, "intermediate_size": 72, "max_position_embeddings": 262144, "model_type": "qwen3_vl_text",
            "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [3, 2, 2], "rope_type": "default"}, "rope_theta": 5000000, "tie_word_embeddings": True,
            "use_cache": True, "vocab_size": VOCAB,
        },
        "vision_config": {
            "deepstack_visual_indexes": [0, 2], "depth": 4, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 16, "in_channels": 3, "initializer_range": 0.02,
            "intermediate_size": 44, "model_type": "qwen3_vl", "num_heads": 2, "num_position_embeddings": 36, "out_hidden_size": 48, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
    },
    "samples": [
        [5, image(6, 10), 9],
        [3, video(3, 4, 6, 1.0), 4, image(2, 2), 8],
        [11, 6],
        [2, image(14, 4), 1, image(4, 4), 2, video(1, 6, 2, 1.0), 7],
    ],
    "sensitivity": [
        ("vision_config.deepstack_visual_indexes", [1, 2]), ("vision_config.hidden_act", "gelu"),
        ("text_config.rope_parameters", {"rope_type": "default", "rope_theta": 5000000, "mrope_section": [3, 0, 2]}),
    ],
}

# Three heads on one, biases, one patch a token, one frame a patch, a table whose last row is left over; mergers out of order: the
# third feature finds no layer, an entry stands twice and another names no block, so that three mergers are never reached.
SPECS["qwen3_vl_odd"] = {
    "seed": 602,
    "config": {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", **tokens(), "tie_word_embeddings": False,
        "text_config": {
            "attention_bias": True, "head_dim": 20, "hidden_act": "gelu", "hidden_size": 44, "intermediate_size": 50, "max_position_embeddings": 1024,
            "model_type": "qwen3_vl_text", "num_attention_heads": 3, "num_hidden_layers": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 300.0, "mrope_section": [1, 2, 4], "mrope_interleaved": True},
            "vocab_size": VOCAB, "bos_token_id": PAD, "eos_token_id": EOS,
        },
        "vision_config": {
            "deepstack_visual_indexes": [2, 0, 3, 0, 7], "depth": 4, "hidden_act": "silu", "hidden_size": 36, "in_channels": 3, "intermediate_size": 30,
            "model_type": "qwen3_vl_vision", "num_heads": 3, "num_position_embeddings": 50, "out_hidden_size": 44, "patch_size": 3, "spatial_merge_size": 1,
            "temporal_patch_size": 1, "rope_parameters": {"rope_type": "axial", "rope_theta": 200.0},
        },
    },
    "samples": [[4, video(2, 3, 5, 0.7), 6], [2, image(1, 9), 5, image(7, 2), 6], [9, 4]],
    "sensitivity": [
        ("vision_config.deepstack_visual_indexes", [0, 2, 3, 0, 7]), ("vision_config.rope_parameters", {"rope_type": "axial", "rope_theta": 10000.0}),
        ("text_config.rope_parameters", {"rope_type": "linear", "factor": 2.5, "rope_theta": 300.0, "mrope_section": [4, 3, 3]}),
    ],
}

# What its classes have as defaults left out; the text configuration alone says tied, which the reference does not look at.
SPECS["qwen3_vl_defaults"] = {
    "seed": 603,
    "config": {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "image_token_id": tokens()["image_token_id"], "video_token_id": tokens()["video_token_id"],
        "text_config": {
            "hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": VOCAB,
            "tie_word_embeddings": True, "bos_token_id": PAD, "eos_token_id": EOS,
        },
        "vision_config": {"depth": 10, "hidden_size": 8, "intermediate_size": 12, "num_heads": 1, "out_hidden_size": 24},
    },
    "samples": [[5, image(4, 2), 9], [3, video(2, 2, 4, 1.0), 7], [11, 6]],
    "sensitivity": [
        ("vision_config.deepstack_visual_indexes", [7, 16, 24]),
        ("text_config.rope_parameters", {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [24, 20, 20]}),
    ],
}

if __name__ == "__main__":
    for name in sys.argv[1:] or SPECS:
        make(name, SPECS[name])
