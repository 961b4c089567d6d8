"""Still pictures and what Pillow makes of them.

Writes fixtures/media/images/* and fixtures/media/images.json: for each file the size and the SHA-256 of the RGB bytes
of `ImageOps.exif_transpose(Image.open(file)).convert("RGB")`, which is what `transformers` loads.

Run: python tools/oracle/media_images.py
"""

import hashlib
import io
import json
import pathlib
import struct
import zlib

import numpy as np
import PIL
import simplejpeg
from PIL import Image, ImageOps, features

ROOT = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "media"
OUT = ROOT / "images"
SEED = 20240


def picture(width, height, seed=0):
    """A picture with smooth parts, edges and noise."""
    rng = np.random.default_rng(SEED + seed)
    y, x = np.mgrid[0:height, 0:width]
    red = 127 + 120 * np.sin(x / 7.0 + seed) * np.cos(y / 5.0)
    green = 255 * ((x // 8 + y // 8) % 2) * 0.7 + 40 * rng.random((height, width))
    blue = 255 * x / max(width - 1, 1) * 0.5 + 255 * y / max(height - 1, 1) * 0.5
    return np.stack([red, green, blue], -1).clip(0, 255).astype(np.uint8)


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def raw_png(width, height, depth, color, rows, interlace=0, extra=b""):
    """A PNG from rows of packed samples (without filter bytes); `rows` is a list of passes for interlaced ones."""
    passes = rows if interlace else [rows]
    data = b"".join(b"\0" + row for rows in passes for row in rows)
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + extra
        + png_chunk(b"IDAT", zlib.compress(data, 9))
        + png_chunk(b"IEND", b"")
    )


def pack(values, depth):
    """Rows of samples of 1, 2, 4, 8 or 16 bits to bytes."""
    rows = []
    for row in values:
        if depth == 16:
            rows.append(b"".join(struct.pack(">H", int(v)) for v in row))
        else:
            bits = "".join(format(int(v), f"0{depth}b") for v in row)
            bits += "0" * (-len(bits) % 8)
            rows.append(bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)))
    return rows


def pngs(files):
    rng = np.random.default_rng(SEED)
    w, h = 19, 13
    for depth in (1, 2, 4, 8, 16):
        grey = rng.integers(0, 1 << depth, (h, w))
        if depth == 16:
            grey[:4] = rng.integers(0, 300, (4, w))
        files[f"grey{depth}.png"] = raw_png(w, h, depth, 0, pack(grey, depth))
    for depth in (1, 2, 4, 8):
        count = 1 << depth
        palette = rng.integers(0, 256, (count, 3)).astype(np.uint8).tobytes()
        index = rng.integers(0, count, (h, w))
        files[f"palette{depth}.png"] = raw_png(w, h, depth, 3, pack(index, depth), extra=png_chunk(b"PLTE", palette))
        alpha = rng.integers(0, 256, min(count, 3)).astype(np.uint8).tobytes()
        files[f"palette{depth}_transparent.png"] = raw_png(
            w, h, depth, 3, pack(index, depth), extra=png_chunk(b"PLTE", palette) + png_chunk(b"tRNS", alpha)
        )
    for depth in (8, 16):
        for color, channels, name in ((4, 2, "grey_alpha"), (2, 3, "rgb"), (6, 4, "rgba")):
            samples = rng.integers(0, 1 << depth, (h, w * channels))
            files[f"{name}{depth}.png"] = raw_png(w, h, depth, color, pack(samples, depth))
    samples = rng.integers(0, 256, (h, w * 3))
    color = struct.pack(">HHH", *samples[0, :3])
    files["rgb8_transparent.png"] = raw_png(w, h, 8, 2, pack(samples, 8), extra=png_chunk(b"tRNS", color))
    # Adam7.
    rgb = picture(w, h, 3)
    starts = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    passes = []
    for x0, y0, dx, dy in starts:
        part = rgb[y0::dy, x0::dx]
        if part.size:
            passes.append([row.tobytes() for row in part])
    files["interlaced.png"] = raw_png(w, h, 8, 2, passes, interlace=1)
    for orientation in (3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        Image.fromarray(picture(21, 14, 4)).save(buffer, "PNG", exif=exif)
        files[f"exif{orientation}.png"] = buffer.getvalue()
    buffer = io.BytesIO()
    frames = [Image.fromarray(picture(16, 12, i)) for i in range(3)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:], duration=100)
    files["animated.png"] = buffer.getvalue()


def save(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpegs(files):
    for w, h in ((64, 48), (37, 29), (1, 1), (2, 3), (3, 2), (5, 17), (16, 9), (130, 7)):
        image = Image.fromarray(picture(w, h, w))
        for sampling in ("4:4:4", "4:2:2", "4:2:0"):
            name = sampling.replace(":", "")
            files[f"base_{w}x{h}_{name}.jpg"] = save(image, "JPEG", quality=80, subsampling=sampling)
            files[f"prog_{w}x{h}_{name}.jpg"] = save(image, "JPEG", quality=60, subsampling=sampling, progressive=True)
    image = Image.fromarray(picture(50, 41, 9))
    for quality in (1, 10, 35, 50, 90, 100):
        files[f"quality{quality}.jpg"] = save(image, "JPEG", quality=quality)
        files[f"quality{quality}_prog.jpg"] = save(image, "JPEG", quality=quality, progressive=True)
    files["optimised.jpg"] = save(image, "JPEG", quality=85, optimize=True)
    files["restart.jpg"] = save(image, "JPEG", quality=85, restart_marker_blocks=2)
    files["restart_rows_prog.jpg"] = save(image, "JPEG", quality=85, restart_marker_rows=1, progressive=True)
    files["grey.jpg"] = save(image.convert("L"), "JPEG", quality=85)
    files["grey_prog.jpg"] = save(image.convert("L"), "JPEG", quality=85, progressive=True)
    files["cmyk.jpg"] = save(image.convert("CMYK"), "JPEG", quality=85)
    files["kept_rgb.jpg"] = save(image, "JPEG", quality=85, keep_rgb=True)
    files["trailing.jpg"] = save(image, "JPEG", quality=85) + b"\0\xff\x00more"
    # Sampling factors that Pillow does not write.
    for w, h in ((33, 31), (64, 40), (3, 9)):
        for sampling in ("440", "411", "422", "420"):
            files[f"turbo_{w}x{h}_{sampling}.jpg"] = simplejpeg.encode_jpeg(
                picture(w, h, 5), quality=88, colorspace="RGB", colorsubsampling=sampling
            )
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = save(Image.fromarray(picture(24, 16, 6)), "JPEG", quality=90, exif=exif)
        files[f"exif{orientation}.jpg"] = data
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    files["xmp8.jpg"] = save(Image.fromarray(picture(24, 16, 6)), "JPEG", quality=90, xmp=xmp)


def webps(files):
    for w, h in ((48, 36), (31, 17), (1, 1), (2, 5)):
        image = Image.fromarray(picture(w, h, w))
        for quality in (20, 75, 100):
            files[f"lossy_{w}x{h}_{quality}.webp"] = save(image, "WEBP", quality=quality)
        files[f"lossless_{w}x{h}.webp"] = save(image, "WEBP", lossless=True)
    rgba = np.dstack([picture(30, 22, 2), np.random.default_rng(SEED).integers(0, 256, (22, 30), dtype=np.uint8)])
    files["alpha.webp"] = save(Image.fromarray(rgba), "WEBP", quality=80)
    files["alpha_lossless.webp"] = save(Image.fromarray(rgba), "WEBP", lossless=True, exact=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    files["exif6.webp"] = save(Image.fromarray(picture(30, 22, 2)), "WEBP", quality=80, exif=exif)
    frames = [Image.fromarray(picture(24, 18, i)) for i in range(3)]
    files["animated.webp"] = save(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=100)


def bmp(width, height, bits, pixels, compression=0, palette=b"", masks=b"", top_down=False, header=40):
    offset = 14 + header + len(masks) + len(palette)
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        info = struct.pack(
            "<IiiHHIIiiII", header, width, -height if top_down else height, 1, bits, compression, len(pixels), 0, 0,
            len(palette) // 4, 0,
        )
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + info + masks + palette + pixels


def bmps(files):
    rng = np.random.default_rng(SEED + 1)
    w, h = 13, 9
    image = Image.fromarray(picture(w, h, 8))
    files["rgb.bmp"] = save(image, "BMP")
    files["grey.bmp"] = save(image.convert("L"), "BMP")
    files["bilevel.bmp"] = save(image.convert("1"), "BMP")
    files["palette.bmp"] = save(image.quantize(17), "BMP")
    files["rgba.bmp"] = save(image.convert("RGBA"), "BMP")

    def rows(values, bits):
        return b"".join(row + b"\0" * (-len(row) % 4) for row in pack(values, bits))

    palette = rng.integers(0, 256, (16, 4)).astype(np.uint8)
    palette[:, 3] = 0
    files["palette4.bmp"] = bmp(w, h, 4, rows(rng.integers(0, 16, (h, w)), 4), palette=palette.tobytes())
    files["palette1.bmp"] = bmp(w, h, 1, rows(rng.integers(0, 2, (h, w)), 1), palette=palette[:2].tobytes())
    files["topdown24.bmp"] = bmp(w, h, 24, rows(rng.integers(0, 256, (h, w * 3)), 8), top_down=True)
    old = np.ascontiguousarray(palette[:, :3]).tobytes()
    files["os2_4.bmp"] = bmp(w, h, 4, rows(rng.integers(0, 16, (h, w)), 4), palette=old, header=12)
    words = rng.integers(0, 1 << 16, (h, w)).astype("<u2")
    body = b"".join(row.tobytes() + b"\0" * (-len(row.tobytes()) % 4) for row in words)
    files["rgb555.bmp"] = bmp(w, h, 16, body)
    files["rgb565.bmp"] = bmp(w, h, 16, body, 3, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F))
    longs = rng.integers(0, 1 << 32, (h, w), dtype=np.uint64).astype("<u4")
    files["rgbx.bmp"] = bmp(w, h, 32, longs.tobytes())
    files["masks32.bmp"] = bmp(w, h, 32, longs.tobytes(), 3, masks=struct.pack("<III", 0xFF000000, 0xFF0000, 0xFF00))
    # Run lengths: encoded and literal runs, an odd literal run with its filler, a jump, early row ends.
    eight = rng.integers(0, 256, (256, 4)).astype(np.uint8)
    eight[:, 3] = 0
    rle8 = (
        bytes([13, 7, 0, 0]) + bytes([0, 5, 1, 2, 3, 4, 5, 0, 8, 9, 0, 0]) + bytes([4, 200, 0, 0])
        + bytes([0, 2, 3, 1, 6, 77, 0, 0]) + b"".join(bytes([13, i, 0, 0]) for i in range(4)) + bytes([0, 1])
    )
    files["rle8.bmp"] = bmp(w, h, 8, rle8, 1, palette=eight.tobytes())
    rle4 = (
        bytes([13, 0x1F, 0, 0]) + bytes([0, 6, 0x12, 0x34, 0x56, 0, 7, 0xA5, 0, 0])
        + b"".join(bytes([13, i * 17, 0, 0]) for i in range(7)) + bytes([0, 1])
    )
    files["rle4.bmp"] = bmp(w, h, 4, rle4, 2, palette=palette.tobytes())


def lzw(indices, bits):
    """GIF data that never grows its codes: a clear code before every few indices."""
    clear, end, out, acc, count = 1 << bits, (1 << bits) + 1, bytearray(), 0, 0
    def put(code):
        nonlocal acc, count
        acc |= code << count
        count += bits + 1
        while count >= 8:
            out.append(acc & 255)
            acc >>= 8
            count -= 8
    for i, index in enumerate(indices):
        if i % ((1 << bits) - 2) == 0:
            put(clear)
        put(int(index))
    put(end)
    if count:
        out.append(acc & 255)
    data = b"".join(bytes([len(out[i : i + 255])]) + bytes(out[i : i + 255]) for i in range(0, len(out), 255))
    return bytes([bits]) + data + b"\0"


def gifs(files):
    rng = np.random.default_rng(SEED + 2)
    image = Image.fromarray(picture(22, 17, 8))
    files["plain.gif"] = save(image, "GIF")
    files["interlaced.gif"] = save(image.quantize(40), "GIF", interlace=True)
    frames = [Image.fromarray(picture(22, 17, i)) for i in range(4)]
    files["animated.gif"] = save(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=80)
    palette = rng.integers(0, 256, (8, 3)).astype(np.uint8).tobytes()
    local = rng.integers(0, 256, (8, 3)).astype(np.uint8).tobytes()
    index = rng.integers(0, 8, 6 * 5)
    screen = b"GIF89a" + struct.pack("<HHBBB", 14, 11, 0x82, 5, 0)
    body = b"\x2c" + struct.pack("<HHHHB", 3, 2, 6, 5, 0) + lzw(index, 3) + b";"
    files["part.gif"] = screen + palette + body
    control = b"\x21\xf9\x04" + struct.pack("<BHB", 1, 10, 2) + b"\0"
    files["part_transparent.gif"] = screen + palette + control + body
    body = b"\x2c" + struct.pack("<HHHHB", 3, 2, 6, 5, 0x82) + local + lzw(index, 3) + b";"
    files["part_local.gif"] = screen + palette + body


def main():
    files = {}
    for make in (jpegs, pngs, webps, bmps, gifs):
        make(files)
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    entries = []
    for name, data in sorted(files.items()):
        (OUT / name).write_bytes(data)
        image = ImageOps.exif_transpose(Image.open(OUT / name)).convert("RGB")
        rgb = np.asarray(image)
        entries.append({
            "file": name,
            "width": image.width,
            "height": image.height,
            "sha256": hashlib.sha256(rgb.tobytes()).hexdigest(),
        })
    note = {
        "source": "ImageOps.exif_transpose(Image.open(file)).convert('RGB')",
        "pillow": PIL.__version__,
        "libjpeg_turbo": features.version("libjpeg_turbo"),
        "webp": features.version("webp"),
        "seed": SEED,
        "images": entries,
    }
    (ROOT / "images.json").write_text(json.dumps(note, indent=0) + "\n")
    print(len(entries), "pictures,", sum(len(d) for d in files.values()), "bytes")


if __name__ == "__main__":
    main()
