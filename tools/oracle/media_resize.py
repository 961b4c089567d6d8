"""What Pillow and torchvision make of scaled pictures.

Writes fixtures/media/resize_<library>.json: for each source size, target size and filter the SHA-256 of the bytes. The
sources are made by `source` below, which the tests repeat, so that no pixels are stored.

Run with each Pillow that is to be recorded (12 and 13 order their passes differently):
    python tools/oracle/media_resize.py pillow        -> resize_pillow<major>.json
    python tools/oracle/media_resize.py torchvision   -> resize_torchvision.json
"""

import hashlib
import json
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "media"

SIZES = [
    (1, 1), (2, 1), (1, 3), (3, 2), (5, 4), (7, 7), (8, 6), (13, 11), (16, 16), (17, 31), (31, 17), (32, 24),
    (48, 64), (64, 48), (65, 3), (3, 65), (97, 61), (100, 100), (128, 20), (150, 90),
]
LARGE = [((640, 360), (384, 384)), ((640, 360), (224, 126)), ((854, 480), (336, 336)), ((320, 240), (448, 336)),
         ((1280, 720), (384, 216)), ((33, 1000), (11, 7)), ((1000, 33), (7, 11)), ((500, 400), (499, 399)),
         ((500, 400), (400, 500)), ((640, 480), (640, 100)), ((640, 480), (100, 480)), ((640, 480), (630, 400))]


def source(width, height, kind):
    """Noise (kind 0), black and white noise (1), or a checkered ramp (2); bytes, row by row."""
    index = np.arange(width * height * 3, dtype=np.uint64)
    noise = (index * 2654435761 + 12345) % 2**32
    noise = (noise ^ (noise >> np.uint64(15))) * 2246822519 % 2**32
    noise = (noise ^ (noise >> np.uint64(13))) >> np.uint64(16) & np.uint64(255)
    if kind == 0:
        values = noise
    elif kind == 1:
        values = np.where(noise > 127, 255, 0)
    else:
        pixel = index // 3
        x, y = pixel % width, pixel // width
        values = (x * 3 + y * 5 + index % 3 * 40) % 256 * (1 - (x // 5 + y // 3) % 2) + (x // 5 + y // 3) % 2 * 255
    return values.astype(np.uint8).reshape(height, width, 3)


def cases():
    """Every pair of the small sizes (thinned), and the large ones, with a source kind each."""
    number = 0
    for i, small in enumerate(SIZES):
        for j, target in enumerate(SIZES):
            if (i * 7 + j * 3) % 4 == 0 or i == j:
                yield small, target, number % 3
                number += 1
    for large, target in LARGE:
        for kind in range(3):
            yield large, target, kind


def main():
    library = sys.argv[1]
    if library == "pillow":
        import PIL
        from PIL import Image

        version = {"pillow": PIL.__version__}
        name = f"resize_pillow{PIL.__version__.split('.')[0]}.json"
        filters = {
            "nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
            "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
            "box": Image.Resampling.BOX, "hamming": Image.Resampling.HAMMING,
        }

        def scale(rgb, target, filter):
            return np.asarray(Image.fromarray(rgb).resize(target, filter))
    else:
        import torch
        import torchvision
        from torchvision.transforms.v2 import functional

        torch.set_num_threads(1)
        version = {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        }
        name = "resize_torchvision.json"
        modes = torchvision.transforms.InterpolationMode
        filters = {
            "nearest": modes.NEAREST, "bilinear": modes.BILINEAR, "bicubic": modes.BICUBIC, "lanczos": modes.LANCZOS,
        }

        def scale(rgb, target, filter):
            chw = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))
            out = functional.resize(chw, [target[1], target[0]], interpolation=filter, antialias=True)
            # The same picture in the other memory layout must give the same bytes.
            last = chw[None].to(memory_format=torch.channels_last)
            other = functional.resize(last, [target[1], target[0]], interpolation=filter, antialias=True)
            assert torch.equal(out, other[0]), (rgb.shape, target, filter)
            return np.ascontiguousarray(out.numpy().transpose(1, 2, 0))

    entries = []
    for (width, height), target, kind in cases():
        rgb = source(width, height, kind)
        for filter_name, filter in filters.items():
            try:
                out = scale(rgb, target, filter)
            except RuntimeError as error:
                # torch 2.15 fails on some pictures of one pixel in its own assertion; there is nothing to equal.
                assert "INTERNAL ASSERT" in str(error) and 1 in (width, height, *target), error
                continue
            assert out.shape == (target[1], target[0], 3) and out.dtype == np.uint8
            entries.append([width, height, kind, *target, filter_name, hashlib.sha256(out.tobytes()).hexdigest()])
    sums = {str(kind): hashlib.sha256(source(19, 7, kind).tobytes()).hexdigest() for kind in range(3)}
    rows = ",\n".join(json.dumps(entry) for entry in entries)
    head = json.dumps({**version, "source_19x7": sums})[1:-1]
    (ROOT / name).write_text("{" + head + ',\n"cases": [\n' + rows + "\n]}\n")
    print(name, len(entries), "cases")


if __name__ == "__main__":
    main()
