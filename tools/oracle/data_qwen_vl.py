"""Fixtures of the data crate for the Qwen-VL families: ids, labels, grids, times and patches of whole records.

`fixtures/data/qwen_vl/CASE/` is what a processor is loaded from. `records.json` in it holds records (media paths are
relative to `fixtures`), `expected.json` for each of them the text, ids, labels, grids, seconds per grid and checksums of
the patches that `AutoProcessor` of transformers makes of the same folder and files, clips decoded by torchcodec.
Labels: the answer's text and the `<|im_end|>` after it, found by a regular expression over the decoded ids.
`sizes.json` holds results of the `smart_resize` functions and of qwen-vl-utils' formula, written here from its source.

LLaVA-OneVision-1.5 has no class in transformers: its frames go through the same processor as single images, which is what
its own code does.

python tools/oracle/data_qwen_vl.py (versions and seeds go into the files; nothing here reads our own output).
"""

import json
import math
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
from transformers import AutoProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as resize_image
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

warnings.filterwarnings("ignore")
OUT = os.path.join(common.ROOT, "fixtures", "data", "qwen_vl")
FIXTURES = os.path.join(common.ROOT, "fixtures")
SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
]

# In the manner of Qwen2-VL: a system turn of its own, media where they stand.
QWEN2 = (
    "{%- if messages[0].role != 'system' %}<|im_start|>system\nYou watch closely.<|im_end|>\n{% endif %}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{ message.content }}{% else %}"
    "{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part.type == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- else %}{{ part.text }}{% endif %}"
    "{%- endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# No system turn of its own; media numbered; answers in generation blocks, trimmed.
NUMBERED = (
    "{%- set ns = namespace(media=0) -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' -%}"
    "{% generation %}{{ message.content[0].text | trim }}{{ '<|im_end|>' }}{% endgeneration %}"
    "{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type in ['image', 'video'] -%}"
    "{%- set ns.media = ns.media + 1 -%}"
    "{{ 'Medium ' ~ ns.media ~ ': <|vision_start|><|' ~ part.type ~ '_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{{ '<|im_end|>' }}"
    "{%- endif -%}{{ '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Placeholders among the words, with nothing around them.
BARE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' %}{{ 'see<|image_pad|>' }}{% elif part.type == 'video' %}{{ 'see <|video_pad|>' }}"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# ---------------------------------------------------------------------------------------------------
# Records.


def image(name):
    return {"type": "image", "image": name}


def clip(name, **more):
    return {"type": "video", "video": name if isinstance(name, list) else f"media/clips/{name}", **more}


def text(words):
    return {"type": "text", "text": words}


def user(*parts):
    return {"role": "user", "content": [text(p) if isinstance(p, str) else p for p in parts]}


def answer(words):
    return {"role": "assistant", "content": [text(words)]}


def system(words):
    return {"role": "system", "content": [text(words)]}


def png(number):
    return image(f"data/images/{number}.png")


WIDE, TALL, EDGE = (image(f"data/qwen_vl/{n}.png") for n in ("wide", "tall", "edge"))
FRAMES = [f"data/qwen_vl/frame{i}.png" for i in range(3)]

PICTURES = [
    {"messages": [user(png(1), "What is moving?"), answer("A red circle.")]},
    {"messages": [system("You answer questions."), user(WIDE, "and", TALL, "Which?"), answer("  the first \n"), user(EDGE), answer("yes")]},
    {"messages": [user("No picture here."), answer("No.")]},
    {"messages": [user(png(3), png(4), png(5), png(6), "Compare."), answer("same")]},
]


def with_clips(*options):
    """Records of clips, images and both; `options` are the ways in which frames are asked for."""
    names = ["h264_gop12.mp4", "vp9_odd.webm", "rotate90.mp4", "gif.gif", "h264_444_odd.mp4"]
    records = []
    for i, given in enumerate(options):
        parts = [clip(names[i % len(names)]), "What happens?"]
        records.append({"messages": [user(*parts), answer("A circle moves.")], "options": given})
    both = [user("First", png(2), "then", clip("h264_w130.mp4"), "and", WIDE, "?"), answer("ok"), user(clip("h264_small.mp4"), "Again?"), answer("yes")]
    records.append({"messages": both, "options": options[0]})
    return records


def lists():
    return [{"messages": [user(clip(FRAMES), "What?"), answer("three frames")]},
            {"messages": [user(clip(FRAMES, fps=1.5), png(1), "What?"), answer("three frames")]}]


CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
QWEN2_VIDEO, QWEN3_VIDEO = "Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor"


def vision(**kwargs):
    return {"vision_config": kwargs}


CASES = {
    # As on the hub before video processors had files: one file for both, budgets as `min_pixels` and `max_pixels`.
    "qwen2_5_one_file": dict(
        config={"model_type": "qwen2_5_vl"} | vision(patch_size=14, spatial_merge_size=2, temporal_patch_size=2),
        files={"preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
            "min_pixels": 3136, "max_pixels": 9408, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
            "image_mean": CLIP_MEAN, "image_std": CLIP_STD}},
        template=QWEN2, place="chat_template.jinja",
        records=PICTURES + with_clips({"num_frames": 5}, {"fps": 1.3}, {"num_frames": 4}, {"fps": 7}, {"num_frames": 3}, {})
        + lists(),
    ),
    # Two files, the video one asking for samples and capping them; sides and normalisation unlike the classes' own.
    "qwen2_two_files": dict(
        config={"model_type": "qwen2_vl"} | vision(patch_size=8, spatial_merge_size=2),
        files={
            "preprocessor_config.json": {
                "image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen2VLProcessor",
                "size": {"shortest_edge": 700, "longest_edge": 2600}, "min_pixels": None, "max_pixels": None, "patch_size": 8,
                "image_mean": [0.1, 0.2, 0.7], "image_std": [0.3, 0.9, 1.1], "resample": 2, "do_convert_rgb": True},
            "video_preprocessor_config.json": {
                "video_processor_type": QWEN2_VIDEO, "size": {"shortest_edge": 256, "longest_edge": 4096},
                "patch_size": 8, "do_sample_frames": True, "fps": 2, "min_frames": 4, "max_frames": 7, "num_frames": None,
                "cap_pixels_per_frame": True, "max_video_tokens": 30, "rescale_factor": 1 / 127.5}},
        template=NUMBERED, place="processor_config",
        records=PICTURES + with_clips({}, {"fps": 4}, {"num_frames": 6}, {"fps": 20}, {"num_frames": 14}),
    ),
    # Everything nested in one file; three frames to a patch.
    "qwen2_5_nested": dict(
        config={"model_type": "qwen2_5_vl"} | vision(patch_size=4, spatial_merge_size=3, temporal_patch_size=3),
        nested={
            "image_processor": {
                "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4, "temporal_patch_size": 3, "merge_size": 3,
                "size": {"shortest_edge": 144, "longest_edge": 1500}, "do_normalize": False},
            "video_processor": {
                "video_processor_type": QWEN2_VIDEO, "patch_size": 4, "temporal_patch_size": 3, "merge_size": 3,
                "size": {"shortest_edge": 144, "longest_edge": 900}, "do_sample_frames": True, "num_frames": 7},
            "processor_class": "Qwen2_5_VLProcessor"},
        template=BARE, place="chat_template.json",
        records=PICTURES + with_clips({}, {"num_frames": 10}, {"fps": 9}, {"num_frames": 4}),
    ),
    # Pictures scaled by Pillow; clips are never. Of shapes for which Pillow 12, which ours repeats, and 13 agree.
    "qwen2_pillow": dict(
        config={"model_type": "qwen2_vl"} | vision(patch_size=6),
        files={
            "preprocessor_config.json": {
                "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor", "patch_size": 6,
                "size": {"shortest_edge": 300, "longest_edge": 2000}},
            "video_preprocessor_config.json": {
                "video_processor_type": QWEN2_VIDEO, "patch_size": 6, "size": {"shortest_edge": 300, "longest_edge": 1000}}},
        template=QWEN2, place="chat_template.jinja",
        records=[r for r in PICTURES if TALL not in r["messages"][1]["content"]]
        + [{"messages": [user(WIDE, EDGE, clip("h264_gop12.mp4")), answer("yes")], "options": {"num_frames": 2}}],
    ),
    # The classes' own settings wherever they are small enough: one small picture, one small clip.
    "qwen2_5_defaults": dict(
        config={"model_type": "qwen2_5_vl"} | vision(depth=2),
        files={
            "preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessor"},
            "video_preprocessor_config.json": {"video_processor_type": QWEN2_VIDEO}},
        template=QWEN2, place="chat_template.jinja",
        records=[PICTURES[0], PICTURES[3], {"messages": [user(clip("h264_small.mp4"), "?"), answer("a")], "options": {"num_frames": 2}}],
    ),
    "qwen3": dict(
        config={"model_type": "qwen3_vl"} | vision(patch_size=8, spatial_merge_size=2, temporal_patch_size=2),
        files={
            "preprocessor_config.json": {
                "image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor", "patch_size": 8,
                "size": {"shortest_edge": 256, "longest_edge": 3000}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            "video_preprocessor_config.json": {
                "video_processor_type": QWEN3_VIDEO, "processor_class": "Qwen3VLProcessor", "patch_size": 8,
                "size": {"shortest_edge": 1024, "longest_edge": 9000}}},
        template=QWEN2, place="chat_template.jinja",
        records=PICTURES + with_clips({}, {"fps": 5}, {"num_frames": 7}, {"fps": 12.5}, {"num_frames": 2}, {"fps": 3}),
    ),
    # The cap of each frame, three frames to a patch, no words around placeholders.
    "qwen3_capped": dict(
        config={"model_type": "qwen3_vl"} | vision(patch_size=4, spatial_merge_size=2, temporal_patch_size=3),
        nested={
            "image_processor": {
                "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4, "temporal_patch_size": 3,
                "size": {"shortest_edge": 64, "longest_edge": 800}},
            "video_processor": {
                "video_processor_type": QWEN3_VIDEO, "patch_size": 4, "temporal_patch_size": 3, "min_frames": 5, "max_frames": 9,
                "size": {"shortest_edge": 200, "longest_edge": 40000}, "cap_pixels_per_frame": True, "max_video_tokens": 6,
                "fps": 3},
            "processor_class": "Qwen3VLProcessor"},
        template=BARE, place="chat_template.jinja",
        records=with_clips({}, {"fps": 5}, {"num_frames": 7}, {"fps": 30}) + lists(),
    ),
    "onevision1_5": dict(
        config={"model_type": "llavaonevision1_5"} | vision(patch_size=14, spatial_merge_size=2),
        files={"preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
            "size": {"shortest_edge": 3136, "longest_edge": 6000}, "temporal_patch_size": 1, "patch_size": 14, "merge_size": 2}},
        template=NUMBERED, place="chat_template.jinja",
        records=PICTURES + [
            {"messages": [user(clip("rotate90.mp4"), "What?"), answer("a")], "options": {"num_frames": 3}},
            {"messages": [user(png(1), clip("h264_w130.mp4"), "What?"), answer("b")], "options": {"num_frames": 2}},
            lists()[1]],
    ),
}

# ---------------------------------------------------------------------------------------------------
# Expected values.


def checksum(values):
    """Sum of the bits of f32 values, each times its odd number, modulo 2^64: changes with any bit and any order."""
    bits = np.ascontiguousarray(values.to(torch.float32).numpy()).reshape(-1).view(np.uint32).astype(np.uint64)
    with np.errstate(over="ignore"):
        return int((bits * (2 * np.arange(bits.size, dtype=np.uint64) + 1)).sum(dtype=np.uint64))


def path_of(name):
    return os.path.join(FIXTURES, name)


def for_transformers(messages, frames_each=None):
    """The messages with absolute paths; clips as single images where the family takes frames one by one."""
    out = []
    for m in messages:
        parts = []
        for p in m["content"]:
            if p["type"] == "image":
                parts.append({"type": "image", "path": path_of(p["image"])})
            elif p["type"] == "video" and frames_each is not None:
                parts += [{"type": "image", "image": frame} for frame in frames_each(p["video"])]
            elif p["type"] == "video" and isinstance(p["video"], list):
                parts.append({"type": "video", "path": [path_of(f) for f in p["video"]]})
            elif p["type"] == "video":
                parts.append({"type": "video", "path": path_of(p["video"])})
            else:
                parts.append(p)
        out.append({"role": m["role"], "content": parts})
    return out


def frames_of(name, count):
    """Frames as `default_sample_indices_fn` of transformers chooses them."""
    from PIL import Image

    if isinstance(name, list):
        return [Image.open(path_of(f)).convert("RGB") for f in name]
    decoder = torchcodec.decoders.VideoDecoder(path_of(name), seek_mode="exact", dimension_order="NHWC")
    total = decoder.metadata.num_frames
    indices = [i * total // count for i in range(count)]
    return [Image.fromarray(f.numpy()) for f in decoder.get_frames_at(indices=indices).data]


def encode(processor, record, one_by_one):
    """What the processor makes of a record, and the messages it was given."""
    options = dict(record.get("options", {}))
    messages = record["messages"]
    given = for_transformers(messages, (lambda name: frames_of(name, options.get("num_frames"))) if one_by_one else None)
    kwargs = {} if one_by_one else dict(options)
    # What is asked for takes the place of what the file says; transformers refuses the two beside each other.
    own = processor.video_processor.fps, processor.video_processor.num_frames
    if options:
        processor.video_processor.fps = processor.video_processor.num_frames = None
    listed = [p for m in messages for p in m["content"] if isinstance(p.get("video"), list)]
    if listed and not one_by_one:
        kwargs["do_sample_frames"] = False
        if "fps" in listed[0]:
            count = len(listed[0]["video"])
            kwargs["video_metadata"] = [{"total_num_frames": count, "fps": listed[0]["fps"], "frames_indices": list(range(count))}]
    out = processor.apply_chat_template(given, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=kwargs)
    processor.video_processor.fps, processor.video_processor.num_frames = own
    return out, given


def expect(processor, record, one_by_one):
    out, given = encode(processor, record, one_by_one)
    ids = out["input_ids"][0].tolist()
    whole = processor.tokenizer.decode(ids, skip_special_tokens=False)
    again = processor.tokenizer(whole, return_offsets_mapping=True)
    assert again["input_ids"] == ids, whole
    spans = [m.span(1) for m in re.finditer(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", whole, re.S)]
    learned = [any(s < b and e > a for a, b in spans) for s, e in again["offset_mapping"]]
    assert any(learned), whole
    result = {
        "text": re.sub(r"(<\|image_pad\|>|<\|video_pad\|>)\1+", r"\1", whole),
        "ids": ids,
        "labels": [i if learn else common.IGNORE for i, learn in zip(ids, learned)],
        "prompt": processor.apply_chat_template(given[:-1], add_generation_prompt=True),
        "images": [], "videos": [], "seconds_per_grid": [float(s) for s in out.get("second_per_grid_ts", [])],
    }
    for medium, pixels, grids in [("images", "pixel_values", "image_grid_thw"), ("videos", "pixel_values_videos", "video_grid_thw")]:
        at = 0
        for grid in out[grids].tolist() if grids in out else []:
            rows = out[pixels][at : at + math.prod(grid)]
            at += math.prod(grid)
            result[medium].append({"grid": grid, "row": rows.shape[1], "checksum": str(checksum(rows)), "first": rows[0, :3].tolist()})
    return result


def write_case(name, spec):
    folder = os.path.join(OUT, name)
    os.makedirs(folder)
    tokenizer = common.bytelevel_tokenizer(330, SPECIALS)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
              "clean_up_tokenization_spaces": False, "model_max_length": 4096}
    nested = dict(spec.get("nested", {}))
    if spec["place"] == "processor_config":
        nested["chat_template"] = spec["template"]
    elif spec["place"] == "chat_template.json":
        common.write_json(os.path.join(folder, "chat_template.json"), {"chat_template": spec["template"]})
    else:
        with open(os.path.join(folder, spec["place"]), "w") as f:
            f.write(spec["template"])
    common.write_json(os.path.join(folder, "tokenizer_config.json"), tokens)
    if nested:
        common.write_json(os.path.join(folder, "processor_config.json"), nested)
    for file, content in spec.get("files", {}).items():
        common.write_json(os.path.join(folder, file), content)
    config = spec["config"] | {
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"), "video_token_id": tokenizer.token_to_id("<|video_pad|>")}
    one_by_one = name.startswith("onevision")
    # transformers does not know the model: for it the folder is one of Qwen2.5-VL, whose processor the checkpoint names.
    common.write_json(os.path.join(folder, "config.json"), config | ({"model_type": "qwen2_5_vl"} if one_by_one else {}))
    processor = AutoProcessor.from_pretrained(folder)
    if name.endswith("pillow"):
        settings = {k: v for k, v in spec["files"]["preprocessor_config.json"].items() if not k.startswith(("image_proc", "proc"))}
        processor.image_processor = Qwen2VLImageProcessorPil(**settings)
    expected = [expect(processor, record, one_by_one) for record in spec["records"]]
    common.write_json(os.path.join(folder, "config.json"), config)
    common.write_json(os.path.join(folder, "records.json"), spec["records"])
    versions = common.versions() | {"pillow": PIL.__version__, "torchvision": torchvision.__version__, "torchcodec": torchcodec.__version__}
    with open(os.path.join(folder, "expected.json"), "w") as f:
        json.dump({"versions": versions, "classes": [type(processor).__name__, type(processor.video_processor).__name__]}, f)
        f.write("\n")
        for result in expected:
            json.dump(result, f, ensure_ascii=False)
            f.write("\n")
    print(name, type(processor).__name__, type(processor.video_processor).__name__, len(expected), max(len(r["ids"]) for r in expected))


# ---------------------------------------------------------------------------------------------------
# Sizes.


def utils_size(height, width, factor, frames):
    """`fetch_video` of qwen-vl-utils 0.0.14 with its own limits, for a factor of patch times merge."""
    if max(height, width) / min(height, width) > 200:
        return None
    low, total = 128 * factor * factor, 128000 * factor * factor * 0.9
    high = max(min(768 * factor * factor, total / frames * 2), int(low * 1.05))
    h, w = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    if h * w > high:
        beta = math.sqrt((height * width) / high)
        h = max(factor, math.floor(height / beta / factor) * factor)
        w = max(factor, math.floor(width / beta / factor) * factor)
    elif h * w < low:
        beta = math.sqrt(low / (height * width))
        h = math.ceil(height * beta / factor) * factor
        w = math.ceil(width * beta / factor) * factor
    return [h, w]


class Recorder:
    """Takes the place of a tensor whose shape alone matters."""

    def __init__(self, shape):
        self.shape = shape


def video_size(cls, frames, height, width, patch, merge, temporal, low, high, cap):
    """The size that a video processor's own `resize` asks the library for."""
    processor = cls(
        patch_size=patch, merge_size=merge, temporal_patch_size=temporal, size={"shortest_edge": low, "longest_edge": high},
        **({"max_video_tokens": cap} if cap else {}),
    )
    asked = []
    import transformers.image_processing_backends as backends

    own = backends.TorchvisionBackend.resize
    backends.TorchvisionBackend.resize = lambda self, image, size, **_: asked.append([size.height, size.width])
    try:
        processor.resize(
            Recorder((1, frames, 3, height, width)), processor.size, 3, factor=patch * merge, temporal_factor=temporal,
            cap_pixels_per_frame=cap is not None,
        )
    except ValueError:
        return None
    finally:
        backends.TorchvisionBackend.resize = own
    return asked[0]


def write_sizes():
    rng = np.random.Generator(np.random.PCG64(20261121))
    out = []
    for i in range(400):
        patch, merge, temporal = int(rng.choice([4, 8, 14, 16])), int(rng.choice([1, 2, 3])), int(rng.choice([1, 2, 3]))
        factor = patch * merge
        wild = 10 ** rng.uniform(0, 4, 2) if i % 3 else rng.integers(1, 40, 2) * factor / 2
        height, width = (max(1, int(x)) for x in wild)
        frames = int(rng.integers(temporal, 40)) if i % 5 else int(rng.integers(1, 2000))
        frames = max(frames, temporal)
        low = int(10 ** rng.uniform(1, 5))
        high = int(low * 10 ** rng.uniform(0.1, 3))
        cap = None if i % 2 else int(10 ** rng.uniform(0, 5))
        try:
            single = list(resize_image(height, width, factor, low, high))
        except ValueError:
            single = None
        args = (frames, height, width, patch, merge, temporal, low, high, cap)
        out.append({
            "args": list(args), "image": single,
            "qwen2": video_size(Qwen2VLVideoProcessor, *args), "qwen3": video_size(Qwen3VLVideoProcessor, *args),
            "utils": utils_size(height, width, factor, frames),
        })
    with open(os.path.join(OUT, "sizes.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(row) for row in out) + "\n]\n")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    for seed, (name, width, height) in enumerate([("wide", 400, 2), ("tall", 5, 200), ("edge", 150, 97), ("oblong", 401, 2)]):
        common.make_image(300 + seed, width, height).save(os.path.join(OUT, f"{name}.png"))
    for i in range(3):
        common.make_image(310 + i, 61, 47).save(os.path.join(OUT, f"frame{i}.png"))
    for name, spec in CASES.items():
        write_case(name, spec)
    write_sizes()


if __name__ == "__main__":
    main()
