# Writes what the reference implementation computes: python reference.py MODEL_DIR OUT.safetensors
import sys, torch, transformers as hf
from safetensors.torch import save_file
config = hf.AutoConfig.from_pretrained(sys.argv[1])
vision, ids, extra = getattr(config, "vision_config", None), torch.arange(3, 27)[None], {}
model = (hf.AutoModelForImageTextToText if vision else hf.AutoModelForCausalLM).from_pretrained(sys.argv[1]).float().eval()
with torch.no_grad():
    if vision:
        extra["pixel_values"] = torch.randn(1, 3, vision.image_size, vision.image_size, generator=torch.Generator().manual_seed(0))
        features = model.get_image_features(pixel_values=extra["pixel_values"])
        count = getattr(features, "pooler_output", features)[0].shape[0]
        taken = getattr(config, "image_token_id", None) or config.image_token_index
        ids = torch.cat([ids[ids != taken][:4], torch.full((count,), taken), ids[ids != taken][4:]])[None]
    logits = model(input_ids=ids, **extra).logits
save_file({"input_ids": ids, "logits": logits.contiguous(), **extra}, sys.argv[2])
