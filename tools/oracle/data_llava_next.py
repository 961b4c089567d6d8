"""Fixtures of the data crate for LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: ids, labels and pictures of whole records.

`fixtures/data/llava_next/CASE/` is what a processor is loaded from. `records.json` in it holds records (media paths are relative
to `fixtures`), `expected.json` for each of them the text, ids, labels, and of every image and clip its size and a checksum of the
tiles or frames that `AutoProcessor` of transformers makes of the same folder and files, clips decoded by torchcodec. Images reach the
processor as `apply_chat_template` hands them over: those of a record together.
Labels: the answer's text and the token after it that ends the turn, found by a regular expression over the decoded ids.
`sizes.json` holds, for sizes of images, tiles and tokens by the functions of the reference's models and processors.

python tools/oracle/data_llava_next.py (versions and seeds go into the files; nothing here reads our own output).
"""

import json
import os
import re
import shutil
import warnings

import common
import numpy as np
import PIL
import torch
import torchcodec
import torchvision
from data_qwen_vl import CLIP_MEAN, CLIP_STD, EDGE, FRAMES, TALL, WIDE, answer, checksum, clip, for_transformers, frames_of, png, system, user
from transformers import AutoProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

warnings.filterwarnings("ignore")
OUT = os.path.join(common.ROOT, "fixtures", "data", "llava_next")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]

# As on the hub: all images of a turn, then all of its clips, then its words.
SORTED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Clips before images, answers in generation blocks.
BLOCKS = (
    "{% for message in messages %}{{ message['role'] | upper + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'][0]['text'] }}{{ '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)

# Parts where they stand.
IN_PLACE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<' + part['type'] + '>' }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

ANSWERS = {SORTED: r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", IN_PLACE: r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", BLOCKS: r"ASSISTANT: (.*?<\|im_end\|>)"}

IMAGES = [
    {"messages": [user(png(1), "What is moving?"), answer("A red circle.")]},
    {"messages": [user("No picture here."), answer("No.")]},
    {"messages": [user(EDGE, "Which?"), answer("the first \n"), user("And now?"), answer("yes")]},
    {"messages": [system("You answer questions."), user(WIDE, "and", TALL, "Which?"), answer("the first"), user(EDGE), answer("yes")]},
    {"messages": [user(png(3), png(4), png(5), png(6), "Compare."), answer("same")]},
    {"messages": [user(TALL, "Tall?"), answer("yes")]},
    {"messages": [user(png(2), "Small?"), answer("yes")]},
]


def with_clips(*options):
    names = ["h264_gop12.mp4", "vp9_odd.webm", "rotate90.mp4", "gif.gif"]
    records = [{"messages": [user(clip(names[i % 4]), "What happens?"), answer("A circle moves.")], "options": o} for i, o in enumerate(options)]
    both = [user("First", clip("h264_w130.mp4"), "then", png(2), "?"), answer("ok"), user(clip("h264_small.mp4"), "Again?"), answer("yes")]
    many = [user(png(1), "First", clip("h264_w130.mp4"), "then", EDGE, "?"), answer("ok")]
    return records + [{"messages": m, "options": {"num_frames": 3}} for m in (both, many)]


def lists():
    return [{"messages": [user(clip(FRAMES), "What?"), answer("three frames")]},
            {"messages": [user(clip(FRAMES, fps=1.5), png(1), "What?"), answer("three frames")]}]


def pinpoints(side, *sizes):
    return [[side * h, side * w] for h, w in sizes]


SIX = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]


def model(model_type, side, patch, points, **more):
    return {"model_type": model_type, "image_grid_pinpoints": points, "vision_config": {"image_size": side, "patch_size": patch}, **more}


CASES = {
    # As on the hub: two files, of which the one for clips names the image processor of an older version.
    "next_video_hub": dict(
        config=model("llava_next_video", 24, 6, pinpoints(24, *SIX), spatial_pool_stride=2),
        files={
            "preprocessor_config.json": {
                "aspect_ratio_setting": "anyres", "crop_size": {"height": 24, "width": 24}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
                "do_pad": True, "do_rescale": True, "do_resize": True, "image_grid_pinpoints": pinpoints(24, *SIX), "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
                "image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextVideoProcessor", "resample": 3, "rescale_factor": 1 / 255,
                "size": {"shortest_edge": 24}},
            "video_preprocessor_config.json": {
                "crop_size": {"height": 24, "width": 24}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
                "image_processor_type": "LlavaNextVideoImageProcessor", "processor_class": "LlavaNextVideoProcessor", "resample": 3, "size": {"shortest_edge": 24}},
            "processor_config.json": {
                "processor_class": "LlavaNextVideoProcessor", "patch_size": 6, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default",
                "image_token": "<image>", "video_token": "<video>"}},
        template=SORTED, place="chat_template.json",
        records=IMAGES + with_clips({"num_frames": 5}, {"fps": 1.3}, {"num_frames": 4}, {}) + lists(),
    ),
    # Everything nested as transformers 5 writes it; clips sampled by their file, with a filter, size and colours of their own; the rest by class.
    "next_video_nested": dict(
        config=model("llava_next_video", 28, 7, pinpoints(28, (2, 2), (4, 1), (1, 4)), spatial_pool_stride=2),
        nested={
            "image_processor": {
                "image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": pinpoints(28, (2, 2), (4, 1), (1, 4)), "crop_size": 28,
                "size": {"shortest_edge": 30}, "image_mean": [0.1, 0.2, 0.7], "image_std": [0.3, 0.9, 1.1], "resample": 2},
            "video_processor": {
                "video_processor_type": "LlavaNextVideoVideoProcessor", "size": {"height": 28, "width": 28}, "crop_size": {"height": 28, "width": 28}, "resample": 2,
                "do_center_crop": False, "do_sample_frames": True, "num_frames": 3, "rescale_factor": 1 / 127.5, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            "patch_size": 7, "num_additional_image_tokens": 0, "vision_feature_select_strategy": "full", "processor_class": "LlavaNextVideoProcessor"},
        template=BLOCKS, place="processor_config",
        records=IMAGES + with_clips({}, {"fps": 4}, {"num_frames": 6}, {"fps": 3}),
    ),
    # As on the hub: two files; grids of more than two tiles shrunk; several images of a record padded and not cut.
    "onevision_hub": dict(
        config=model("llava_onevision", 15, 5, pinpoints(15, *[(h, w) for h in range(1, 5) for w in range(1, 5)]), vision_aspect_ratio="anyres_max_2"),
        files={
            "preprocessor_config.json": {
                "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
                "image_grid_pinpoints": pinpoints(15, *[(h, w) for h in range(1, 5) for w in range(1, 5)]), "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
                "image_processor_type": "LlavaOnevisionImageProcessor", "processor_class": "LlavaOnevisionProcessor", "resample": 3, "size": {"height": 15, "width": 15}},
            "video_preprocessor_config.json": {
                "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
                "image_processor_type": "LlavaOnevisionVideoProcessor", "processor_class": "LlavaOnevisionProcessor", "resample": 3, "size": {"height": 15, "width": 15}},
            "processor_config.json": {
                "num_image_tokens": 9, "processor_class": "LlavaOnevisionProcessor", "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_2",
                "image_token": "<image>", "video_token": "<video>"}},
        template=SORTED, place="chat_template.jinja",
        records=IMAGES + with_clips({"num_frames": 5}, {"fps": 1.3}, {"num_frames": 4}, {}) + lists(),
    ),
    # A tower with a class token; tiles scaled up and cropped again; frames by rate; the aspect ratio of the class.
    "onevision_nested": dict(
        config=model("llava_onevision", 24, 6, pinpoints(24, (1, 1), (2, 3), (3, 2), (6, 6)), vision_feature_select_strategy="default"),
        nested={
            "image_processor": {
                "image_processor_type": "LlavaOnevisionImageProcessor", "image_grid_pinpoints": pinpoints(24, (1, 1), (2, 3), (3, 2), (6, 6)),
                "size": {"shortest_edge": 27}, "crop_size": {"height": 24, "width": 24}, "do_center_crop": True},
            "video_processor": {
                "video_processor_type": "LlavaOnevisionVideoProcessor", "size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24},
                "do_center_crop": True, "do_sample_frames": True, "fps": 2},
            "num_image_tokens": 17, "vision_feature_select_strategy": "default", "processor_class": "LlavaOnevisionProcessor"},
        template=IN_PLACE, place="chat_template.json",
        records=IMAGES + with_clips({}, {"fps": 4}, {"num_frames": 6}),
    ),
    # Images scaled by Pillow; clips are never. Of shapes for which Pillow 12, which ours repeats, and 13 agree.
    "onevision_pillow": dict(
        config=model("llava_onevision", 12, 4, pinpoints(12, (1, 2), (2, 2), (3, 3))),
        files={
            "preprocessor_config.json": {"image_processor_type": "LlavaOnevisionImageProcessor", "image_grid_pinpoints": pinpoints(12, (1, 2), (2, 2), (3, 3)), "size": {"height": 12, "width": 12}},
            "video_preprocessor_config.json": {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": {"height": 12, "width": 12}},
            "processor_config.json": {"num_image_tokens": 9, "processor_class": "LlavaOnevisionProcessor", "vision_feature_select_strategy": "full"}},
        template=IN_PLACE, place="chat_template.jinja",
        records=[IMAGES[0], IMAGES[2], IMAGES[4], with_clips({"num_frames": 2})[0], with_clips()[-1]],
    ),
    # Images alone; every frame of a clip is one.
    "next_hub": dict(
        config=model("llava_next", 24, 6, pinpoints(24, (1, 2), (2, 1), (2, 2))),
        files={
            "preprocessor_config.json": {
                "aspect_ratio_setting": "anyres", "crop_size": {"height": 24, "width": 24}, "image_grid_pinpoints": pinpoints(24, (1, 2), (2, 1), (2, 2)),
                "image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextProcessor", "size": {"shortest_edge": 24}},
            "processor_config.json": {
                "processor_class": "LlavaNextProcessor", "patch_size": 6, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}},
        template=BLOCKS, place="chat_template.jinja",
        records=IMAGES + [{"messages": [user(clip("rotate90.mp4"), "What?"), answer("a")], "options": {"num_frames": 3}}],
    ),
    "next_pillow": dict(
        config=model("llava_next", 24, 6, pinpoints(24, (1, 2), (2, 1), (3, 2))),
        files={
            "preprocessor_config.json": {
                "crop_size": {"height": 24, "width": 24}, "image_grid_pinpoints": pinpoints(24, (1, 2), (2, 1), (3, 2)),
                "image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 24}},
            "processor_config.json": {
                "processor_class": "LlavaNextProcessor", "patch_size": 6, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}},
        template=SORTED, place="chat_template.jinja",
        records=[IMAGES[0], IMAGES[2], {"messages": [user(png(4), "Or?", EDGE), answer("same")]}],
    ),
}


def tiles_of(out, index, processor):
    """The tiles of an image without those that only pad it to the largest one."""
    pixels = out["pixel_values"][index]
    many = out.get("batch_num_images")
    if many is not None and int(many.reshape(-1)[0]) != 1:
        return pixels[:1]
    height, width = get_anyres_image_grid_shape(out["image_sizes"][index].tolist(), processor.image_processor.image_grid_pinpoints, pixels.shape[-1])
    return pixels[: 1 + height * width]


def expect(processor, record, spec):
    options = dict(record.get("options", {}))
    messages = record["messages"]
    one_by_one = spec["config"]["model_type"] == "llava_next"
    given = for_transformers(messages, (lambda name: frames_of(name, options.get("num_frames"))) if one_by_one else None)
    kwargs = {} if one_by_one else dict(options)
    video = getattr(processor, "video_processor", None)
    if video is not None and options:
        own = video.fps, video.num_frames
        # What is asked for takes the place of what the file says; transformers refuses the two beside each other.
        video.fps = video.num_frames = None
        kwargs["do_sample_frames"] = True
    if any(isinstance(p.get("video"), list) for m in messages for p in m["content"]):
        kwargs["do_sample_frames"] = False
    out = processor.apply_chat_template(given, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=kwargs)
    if video is not None and options:
        video.fps, video.num_frames = own
    ids = out["input_ids"][0].tolist()
    whole = processor.tokenizer.decode(ids, skip_special_tokens=False)
    again = processor.tokenizer(whole, return_offsets_mapping=True)
    assert again["input_ids"] == ids, whole
    spans = [m.span(1) for m in re.finditer(ANSWERS[spec["template"]], whole, re.S)]
    learned = [any(s < b and e > a for a, b in spans) for s, e in again["offset_mapping"]]
    assert any(learned), whole
    sizes = out["image_sizes"].tolist() if "image_sizes" in out else []
    images = [{"size": size, "pictures": tiles_of(out, i, processor)} for i, size in enumerate(sizes)]
    videos = [{"size": [0, 0], "pictures": pixels} for pixels in out.get("pixel_values_videos", [])]
    shown = lambda m: {"size": m["size"], "shape": list(m["pictures"].shape), "checksum": str(checksum(m["pictures"])), "first": m["pictures"][0, :, 0, 0].tolist()}
    return {
        "text": processor.apply_chat_template(given, tokenize=False),
        "ids": ids,
        "labels": [i if learn else common.IGNORE for i, learn in zip(ids, learned)],
        "prompt": processor.apply_chat_template(given[:-1], add_generation_prompt=True),
        "images": [shown(m) for m in images],
        "videos": [shown(m) for m in videos],
    }


def write_case(name, spec):
    folder = os.path.join(OUT, name)
    os.makedirs(folder)
    tokenizer = common.bytelevel_tokenizer(330, SPECIALS)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
              "clean_up_tokenization_spaces": False, "model_max_length": 4096}
    files = dict(spec.get("files", {}))
    nested = dict(spec.get("nested", {})) | files.pop("processor_config.json", {})
    if spec["place"] == "processor_config":
        nested["chat_template"] = spec["template"]
    elif spec["place"] == "chat_template.json":
        common.write_json(os.path.join(folder, "chat_template.json"), {"chat_template": spec["template"]})
    else:
        with open(os.path.join(folder, spec["place"]), "w") as f:
            f.write(spec["template"])
    common.write_json(os.path.join(folder, "tokenizer_config.json"), tokens)
    common.write_json(os.path.join(folder, "processor_config.json"), nested)
    for file, content in files.items():
        common.write_json(os.path.join(folder, file), content)
    config = spec["config"] | {"image_token_index": tokenizer.token_to_id("<image>")}
    if config["model_type"] != "llava_next":
        config["video_token_index"] = tokenizer.token_to_id("<video>")
    common.write_json(os.path.join(folder, "config.json"), config)
    processor = AutoProcessor.from_pretrained(folder)
    if name.endswith("pillow"):
        kind = LlavaOnevisionImageProcessorPil if "onevision" in name else LlavaNextImageProcessorPil
        settings = {k: v for k, v in files["preprocessor_config.json"].items() if not k.startswith(("image_proc", "proc"))}
        processor.image_processor = kind(**settings)
    expected = [expect(processor, record, spec) for record in spec["records"]]
    common.write_json(os.path.join(folder, "records.json"), spec["records"])
    versions = common.versions() | {"pillow": PIL.__version__, "torchvision": torchvision.__version__, "torchcodec": torchcodec.__version__}
    classes = [type(processor).__name__, type(processor.image_processor).__name__, type(getattr(processor, "video_processor", None)).__name__]
    with open(os.path.join(folder, "expected.json"), "w") as f:
        json.dump({"versions": versions, "classes": classes}, f)
        f.write("\n")
        for result in expected:
            json.dump(result, f, ensure_ascii=False)
            f.write("\n")
    print(name, classes, len(expected), max(len(r["ids"]) for r in expected), flush=True)


# ---------------------------------------------------------------------------------------------------
# Sizes.


class Told(LlavaOnevisionModel):
    """`pack_image_features` alone, with the sizes that it asks of `interpolate`."""

    def __init__(self, side, grid, points):
        from types import SimpleNamespace as Space

        torch.nn.Module.__init__(self)
        self.told = Space(vision_config=Space(image_size=side, patch_size=side // grid), image_grid_pinpoints=points)

    def __getattribute__(self, name):
        return object.__getattribute__(self, "told") if name == "config" else super().__getattribute__(name)


def counted(config, height, width):
    from types import SimpleNamespace as Space

    side, grid, most, points = config["side"], config["grid"], config["max_tiles"], config["pinpoints"]
    tiles = list(get_anyres_image_grid_shape([height, width], points, side))
    size = list(unpad_image(torch.zeros(1, tiles[0] * grid, tiles[1] * grid), [height, width]).shape[1:])
    image_processor = Space(image_grid_pinpoints=points)
    if most is None:
        processor = LlavaNextProcessor.__new__(LlavaNextProcessor)
        processor.image_processor, processor.patch_size, processor.num_additional_image_tokens = image_processor, side // grid, 0
        return tiles, size, None, processor._get_number_of_features(height, width, side, side)
    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    processor.image_processor, processor.num_image_tokens, processor.vision_aspect_ratio = image_processor, grid * grid, f"anyres_max_{most}"
    tokens = processor._get_number_of_features(height, width, side, side)
    asked, own = [], torch.nn.functional.interpolate
    torch.nn.functional.interpolate = lambda x, to, mode: asked.append(list(to)) or (own(x, to, mode=mode) if min(to) > 0 else x)
    try:
        tile = torch.zeros(1 + tiles[0] * tiles[1], grid * grid, 1)
        features, _ = Told(side, grid, points).pack_image_features([tile], [[height, width]], torch.zeros(1), f"anyres_max_{most}")
    finally:
        torch.nn.functional.interpolate = own
    shrunk = asked[0] if asked else None
    if shrunk and min(shrunk) == 0:
        tokens = None  # `interpolate` refuses it
    else:
        assert len(features[0]) == tokens
    return tiles, size, shrunk, tokens


def write_sizes():
    rng = np.random.Generator(np.random.PCG64(20261122))
    configs = [
        {"pinpoints": pinpoints(336, *SIX), "side": 336, "grid": 24, "max_tiles": None},
        {"pinpoints": pinpoints(30, (1, 2), (3, 3), (2, 5), (1, 1)), "side": 30, "grid": 5, "max_tiles": None},
        {"pinpoints": pinpoints(384, *[(h, w) for h in range(1, 7) for w in range(1, 7)]), "side": 384, "grid": 27, "max_tiles": 9},
        {"pinpoints": pinpoints(20, *[(h, w) for h in range(1, 5) for w in range(1, 5)]), "side": 20, "grid": 4, "max_tiles": 1},
        {"pinpoints": pinpoints(12, (4, 4), (2, 7), (7, 2)), "side": 12, "grid": 3, "max_tiles": 4},
    ]
    rows = []
    for i in range(400):
        height, width = (max(1, int(x)) for x in 10 ** rng.uniform(0.3, 3.6, 2))
        if i % 4 == 0:
            height = max(1, int(width * rng.choice([0.5, 0.75, 1, 1.5, 9 / 16, 2 / 3])))
        number = int(rng.integers(len(configs)))
        tiles, size, shrunk, tokens = counted(configs[number], height, width)
        rows.append({"config": number, "source": [height, width], "tiles": tiles, "size": size, "shrunk": shrunk, "tokens": tokens})
    print(sum(r["shrunk"] is not None for r in rows), "shrunk,", sum(r["tokens"] is None for r in rows), "refused")
    with open(os.path.join(OUT, "sizes.json"), "w") as f:
        f.write('{"configs": [\n' + ",\n".join(json.dumps(c) for c in configs) + '\n], "rows": [\n' + ",\n".join(json.dumps(r) for r in rows) + "\n]}\n")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    write_sizes()
    for name, spec in CASES.items():
        write_case(name, spec)


if __name__ == "__main__":
    main()
