"""The architectures with encoders of their own for images and clips, and of the original LLaVA layout."""

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

WHAT, RED = "What is moving?", "A red circle is moving to the left."
MANY, TWO = "How many triangles?", "Two."
LARGER, YES = "Is the circle larger than the square?", "Yes, it is larger."
DESCRIBE, NOTHING = "Describe the last picture.", "There is nothing in it."
ODD = "Zählt 3 Punkte: «ja»?\nNein!"

# Media of both kinds in one record, in both orders; a clip alone; an image alone; text alone.
MIXED = [
    [("user", "VIDEO3", "IMAGE", WHAT), ("assistant", RED)],
    [("system", "You answer questions about clips."), ("user", "IMAGE", DESCRIBE), ("assistant", NOTHING),
     ("user", "Now the clip: ", "VIDEO2"), ("assistant", TWO)],
    [("user", LARGER), ("assistant", YES), ("user", ODD), ("assistant", ODD)],
    [("user", "IMAGE", "IMAGE", MANY), ("assistant", TWO)],
]
CLIPS_PLAIN = [
    [("user", "VIDEO2", WHAT), ("assistant", RED)],
    [("user", "VIDEO1", DESCRIBE), ("assistant", NOTHING)],
    [("user", "VIDEO4", MANY), ("assistant", TWO)],
]
PICTURES = [
    [("user", "IMAGE", WHAT), ("assistant", RED)],
    [("user", "IMAGE", "IMAGE", MANY), ("assistant", TWO), ("user", "VIDEO2", DESCRIBE), ("assistant", NOTHING)],
    [("user", LARGER), ("assistant", YES)],
]

# A system text of their own keeps the samples of Vicuna's template short; one of a folder keeps the template's.
MIXED_V1 = [[("system", "Look."), *turns] if turns[0][0] == "user" else turns for turns in MIXED]
PICTURES_V1 = [[("system", "Look."), *turns] if turns is not PICTURES[0] else turns for turns in PICTURES]
PICTURES_SHORT = [[("system", "Look."), *turns] for turns in PICTURES]

CHATML_TOKENS = {"kind": "bytelevel", "size": 340, "specials": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                 "names": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}}
LLAMA_TOKENS = {"kind": "sentencepiece", "size": 120, "specials": [],
                "names": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}}
PHI_TOKENS = {"kind": "bytelevel", "size": 340, "specials": ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
              "names": {"eos_token": "<|end|>", "pad_token": "<|endoftext|>"}}


def clip(hidden, inner, layers, heads, size, patch, **more):
    return {"model_type": "clip_vision_model", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "image_size": size, "patch_size": patch, **more}


def siglip(hidden, inner, layers, heads, size, patch):
    return {**clip(hidden, inner, layers, heads, size, patch), "model_type": "siglip_vision_model", "vision_use_head": False}


def clip_files(size):
    return {"crop_size": {"height": size, "width": size}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
            "do_rescale": True, "do_resize": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3,
            "rescale_factor": 0.00392156862745098, "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": size}}


def siglip_files(size):
    return {"do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3,
            "rescale_factor": 0.00392156862745098, "image_processor_type": "SiglipImageProcessor", "size": {"height": size, "width": size}}


def encoder(vision, hidden, tower, kind, layer=-2, feature="patch", **more):
    return {"mm_vision_tower": tower, "use_mm_proj": True, "mm_projector_type": kind, "mm_hidden_size": vision["hidden_size"],
            "mm_vision_select_layer": layer, "mm_vision_select_feature": feature, "mm_patch_merge_type": "flat", "hidden_size": hidden,
            "vision_config": vision, **more}


SIZES = [(45, 30), (28, 28), (20, 33), (64, 24)]

SPECS = {
    # Two CLIP towers unlike each other, two projectors, tokens around media in a table that grew.
    "encoders_llama": {
        "seed": 71, "tokenizer": LLAMA_TOKENS, "samples": MIXED_V1, "text_only": 2, "image_sizes": SIZES, "parts": True,
        "generation": {"bos_token_id": 1, "eos_token_id": 2},
        "preprocessors": {"image": clip_files(28), "video": clip_files(20)},
        "config": {
            "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "hidden_size": 40, "intermediate_size": 72,
            "num_hidden_layers": 2, "num_attention_heads": 5, "num_key_value_heads": 5, "vocab_size": 379 + 5, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 512, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
            "conversation_version": "v1", "mm_use_start_end": True, "mm_use_patch_token": True, "image_aspect_ratio": "square",
            "image_encoder": encoder(clip(24, 40, 3, 2, 28, 7), 40, "image_tower", "linear"),
            "video_encoder": encoder(clip(30, 44, 3, 3, 20, 5), 40, "video_tower", "mlp2x_gelu", num_segment=3),
        },
    },
    # Tied tables, three layers beside two, the class token kept, other layers, pictures padded to a square.
    "encoders_qwen2_tied": {
        "seed": 72, "tokenizer": CHATML_TOKENS, "samples": MIXED, "text_only": 2, "image_sizes": SIZES, "parts": True,
        "generation": {"eos_token_id": [342, 340]},
        "preprocessors": {"image": clip_files(24), "video": clip_files(24)},
        "config": {
            "architectures": ["LlavaQwen2ForCausalLM"], "model_type": "llava_qwen2", "hidden_size": 48, "intermediate_size": 56,
            "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 343, "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0, "max_position_embeddings": 512, "tie_word_embeddings": True, "eos_token_id": 342, "torch_dtype": "float32",
            "conversation_version": "chatml", "mm_use_start_end": False, "mm_use_patch_token": False, "image_aspect_ratio": "pad",
            "image_encoder": encoder(clip(32, 48, 2, 4, 24, 6), 48, "image_tower", "mlp3x_gelu", layer=-1),
            "video_encoder": encoder(clip(20, 36, 3, 2, 24, 8, hidden_act="gelu"), 48, "video_tower", "mlp2x_gelu", layer=-2,
                                     feature="cls_patch", num_segment=8),
        },
    },
    # SigLIP for images, CLIP for clips; fused maps, part of each head rotated; bf16.
    "encoders_phi3": {
        "seed": 73, "tokenizer": PHI_TOKENS, "samples": MIXED, "text_only": 2, "image_sizes": SIZES, "parts": True, "disk_dtype": "bfloat16",
        "generation": {"eos_token_id": [344, 340]},
        "preprocessors": {"image": siglip_files(21), "video": clip_files(24)},
        "config": {
            "architectures": ["LlavaPhiForCausalLM"], "model_type": "llava_phi3", "hidden_size": 48, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 349, "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 0.75, "max_position_embeddings": 512, "original_max_position_embeddings": 512,
            "tie_word_embeddings": False, "pad_token_id": 340, "bos_token_id": 340, "eos_token_id": 344, "torch_dtype": "bfloat16",
            "conversation_version": "phi", "mm_use_start_end": True, "image_aspect_ratio": "square",
            "image_encoder": encoder(siglip(36, 40, 3, 3, 21, 7), 48, "image_tower", "mlp2x_gelu"),
            "video_encoder": encoder(clip(24, 32, 2, 2, 24, 12), 48, "video_tower", "mlp2x_gelu", num_segment=2),
        },
    },
    # A tower for clips alone, one linear map spelled as an MLP, the template of the first stage.
    "encoders_qwen3_clips": {
        "seed": 74, "tokenizer": CHATML_TOKENS, "samples": CLIPS_PLAIN, "text_only": 1, "image_sizes": SIZES,
        "generation": {"eos_token_id": 342}, "preprocessors": {"video": clip_files(16)},
        "config": {
            "architectures": ["LlavaQwen3ForCausalLM"], "model_type": "llava_qwen3", "hidden_size": 36, "intermediate_size": 52,
            "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 350,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 512, "tie_word_embeddings": False, "eos_token_id": 342, "torch_dtype": "float32",
            "conversation_version": "plain",
            "video_encoder": encoder(clip(16, 24, 4, 2, 16, 8), 36, "video_tower", "mlp1x_gelu", layer=-3, num_segment=4),
        },
    },
    # The original layout: one tower, pictures padded, a checkpoint without its tower beside it.
    "original_llama": {
        "seed": 75, "tokenizer": LLAMA_TOKENS, "samples": PICTURES_V1, "text_only": 2, "image_sizes": SIZES, "parts": True, "whole_clip": True,
        "generation": {"bos_token_id": 1, "eos_token_id": 2}, "preprocessors": {"image": clip_files(28)},
        "config": {
            "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "hidden_size": 36, "intermediate_size": 60,
            "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 379, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 512, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
            "torch_dtype": "float32", "conversation_version": "v1", "use_mm_proj": True, "mm_vision_tower": "openai/clip-vit-large-patch14-336",
            "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 24, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
            "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "mm_patch_merge_type": "flat", "image_aspect_ratio": "pad",
            "image_grid_pinpoints": None, "tune_mm_mlp_adapter": False, "freeze_mm_mlp_adapter": False, "unfreeze_mm_vision_tower": False,
            "vision_config": clip(24, 40, 3, 2, 28, 7),
        },
    },
    "original_qwen": {
        "seed": 76, "tokenizer": CHATML_TOKENS, "samples": PICTURES, "text_only": 2, "image_sizes": SIZES, "parts": True,
        "generation": {"eos_token_id": [342, 340]}, "preprocessors": {"image": clip_files(24)},
        "config": {
            "architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen", "hidden_size": 40, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 352, "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0, "max_position_embeddings": 512, "tie_word_embeddings": True, "eos_token_id": 342,
            "torch_dtype": "float32", "conversation_version": "chatml", "mm_vision_tower": "openai/clip-vit-base-patch16",
            "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 20, "mm_vision_select_layer": -1, "mm_vision_select_feature": "cls_patch",
            "image_aspect_ratio": "square", "vision_config": clip(20, 32, 2, 2, 24, 8, hidden_act="gelu"),
        },
    },
    # Tokens around pictures, a window of attention, one linear map.
    "original_mistral": {
        "seed": 77, "tokenizer": LLAMA_TOKENS, "samples": PICTURES_SHORT, "text_only": 2, "image_sizes": SIZES,
        "generation": {"bos_token_id": 1, "eos_token_id": 2}, "preprocessors": {"image": clip_files(24)},
        "config": {
            "architectures": ["LlavaMistralForCausalLM"], "model_type": "llava_mistral", "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 382, "rms_norm_eps": 1e-5,
            "sliding_window": 24, "max_position_embeddings": 512, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
            "torch_dtype": "float32", "conversation_version": "v1", "mm_vision_tower": "openai/clip-vit-base-patch16",
            "mm_projector_type": "linear", "mm_hidden_size": 28, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
            "mm_use_im_start_end": True, "mm_use_im_patch_token": True, "image_aspect_ratio": "square",
            "vision_config": clip(28, 36, 3, 4, 24, 6),
        },
    },
}
