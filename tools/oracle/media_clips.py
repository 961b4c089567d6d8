"""Small clips of every container and codec, and their frames as PyAV and torchcodec give them.

Writes fixtures/media/clips/* (through the ffmpeg program) and fixtures/media/clips.json: for each clip its size, its
frames' times and the SHA-256 of every frame's RGB bytes, with the readers that agree on them.

Run: python tools/oracle/media_clips.py [name ...]      (with names: only those are made again)
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

import av
import numpy as np
import torch
import torchcodec
from torchcodec.decoders import VideoDecoder

ROOT = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "media"
OUT = ROOT / "clips"
torch.set_num_threads(1)


def frames(width, height, count):
    """A disc and a bar that move over a changing ramp, with a little noise."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:height, 0:width]
    noise = rng.integers(-6, 7, (height, width, 1))
    for i in range(count):
        ramp = np.stack([(x * 255 // width + i * 3) % 256, (y * 255 // height + i * 2) % 256, (x + y + i * 5) % 256], -1)
        cx, cy = (i * 5) % width, height // 2 + int(height / 4 * np.sin(i / 4))
        ramp[(x - cx) ** 2 + (y - cy) ** 2 < (height // 5) ** 2] = (230, 40, 60)
        ramp[:, (i * 3) % max(width - 8, 1) : (i * 3) % max(width - 8, 1) + 8] = (30, 60, 220)
        yield (ramp + noise).clip(0, 255).astype(np.uint8)


X264 = ["-c:v", "libx264", "-preset", "medium", "-crf", "26", "-threads", "1"]
X265 = ["-c:v", "libx265", "-preset", "fast", "-crf", "28", "-tag:v", "hvc1"]
VP9 = ["-c:v", "libvpx-vp9", "-crf", "40", "-b:v", "0", "-threads", "1"]
AV1 = ["-c:v", "libsvtav1", "-crf", "45", "-preset", "8"]


def x265(**params):
    text = ":".join(f"{key.replace('_', '-')}={value}" for key, value in {"pools": 1, "log-level": 1, **params}.items())
    return X265 + ["-x265-params", text]


# name: (width, height, frames, rate, output arguments, notes)
CLIPS = {
    "h264_long_gop.mp4": (128, 96, 120, "30", X264 + ["-g", "250", "-bf", "3", "-pix_fmt", "yuv420p"]),
    "h264_gop12.mp4": (96, 64, 60, "25", X264 + ["-g", "12", "-bf", "2", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]),
    "h264_open_gop.mkv": (96, 64, 60, "30000/1001", X264 + ["-x264-params", "open-gop=1:keyint=15:bframes=3:b-pyramid=normal", "-pix_fmt", "yuv420p"]),
    "h264_open_gop.mp4": (96, 64, 60, "24", X264 + ["-x264-params", "open-gop=1:keyint=15:bframes=3:b-pyramid=normal", "-pix_fmt", "yuv420p"]),
    "h264_no_b.mov": (96, 64, 40, "24000/1001", X264 + ["-bf", "0", "-g", "10", "-pix_fmt", "yuv420p"]),
    "h264_intra_refresh.mp4": (96, 64, 50, "25", X264 + ["-x264-params", "intra-refresh=1:keyint=20", "-pix_fmt", "yuv420p"]),
    "h264_interlaced.mp4": (96, 64, 30, "25", X264 + ["-flags", "+ilme+ildct", "-pix_fmt", "yuv420p"]),
    "h264_full_range.mp4": (96, 64, 20, "25", X264 + ["-pix_fmt", "yuvj420p", "-color_range", "pc"]),
    "h264_bt709.mp4": (96, 64, 20, "25", ["-vf", "scale=out_color_matrix=bt709"] + X264 + ["-pix_fmt", "yuv420p", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]),
    "h264_444_odd.mp4": (65, 49, 20, "25", X264 + ["-pix_fmt", "yuv444p"]),
    "h264_422.mp4": (98, 50, 20, "25", X264 + ["-pix_fmt", "yuv422p"]),
    "h264_10bit.mp4": (96, 64, 20, "25", X264 + ["-pix_fmt", "yuv420p10le"]),
    "h264_gray.mp4": (96, 64, 20, "25", X264 + ["-pix_fmt", "gray"]),
    "h264_small.mp4": (16, 16, 20, "25", X264 + ["-pix_fmt", "yuv420p"]),
    "h264_w130.mp4": (130, 98, 20, "25", X264 + ["-pix_fmt", "yuv420p"]),
    "h264_fragmented.mp4": (96, 64, 60, "30", X264 + ["-g", "15", "-pix_fmt", "yuv420p", "-movflags", "+frag_keyframe+empty_moov+default_base_moof"]),
    "h264.avi": (96, 64, 40, "25", X264 + ["-bf", "2", "-g", "20", "-pix_fmt", "yuv420p"]),
    "h264.ts": (96, 64, 60, "25", X264 + ["-bf", "2", "-g", "15", "-pix_fmt", "yuv420p"]),
    "h264_vfr.mp4": (96, 64, 90, "30", ["-vf", "select='not(mod(n,7))+eq(mod(n,5),1)+lt(n,9)'", "-vsync", "vfr"] + X264 + ["-bf", "2", "-pix_fmt", "yuv420p"]),
    "h264_sar.mp4": (96, 64, 20, "25", ["-vf", "setsar=4/3"] + X264 + ["-pix_fmt", "yuv420p"]),
    "hevc.mp4": (96, 64, 60, "30", x265(keyint=20, bframes=3) + ["-pix_fmt", "yuv420p"]),
    "hevc_closed.mkv": (96, 64, 50, "25", x265(keyint=12, open_gop=0, bframes=2) + ["-pix_fmt", "yuv420p"]),
    "hevc_10bit.mp4": (96, 64, 30, "30", x265(keyint=15) + ["-pix_fmt", "yuv420p10le"]),
    "hevc_odd_444.mp4": (65, 67, 20, "25", x265(keyint=15) + ["-pix_fmt", "yuv444p"]),
    "vp8.webm": (96, 64, 60, "30", ["-c:v", "libvpx", "-crf", "30", "-b:v", "300k", "-g", "20", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-threads", "1"]),
    "vp9.webm": (96, 64, 60, "30", VP9 + ["-g", "20", "-auto-alt-ref", "1", "-lag-in-frames", "25", "-pix_fmt", "yuv420p"]),
    "vp9_odd.webm": (65, 49, 20, "25", VP9 + ["-pix_fmt", "yuv420p"]),
    "vp9_10bit.webm": (96, 64, 20, "25", VP9 + ["-pix_fmt", "yuv420p10le"]),
    "vp9_live.webm": (96, 64, 40, "25", VP9 + ["-g", "10", "-pix_fmt", "yuv420p", "-live", "1"]),
    "vp9.mkv": (96, 64, 40, "30000/1001", VP9 + ["-g", "10", "-pix_fmt", "yuv420p"]),
    "av1.mp4": (96, 64, 40, "30", AV1 + ["-g", "20", "-pix_fmt", "yuv420p"]),
    "av1.webm": (96, 64, 40, "25", AV1 + ["-g", "15", "-pix_fmt", "yuv420p"]),
    "av1_10bit.mp4": (96, 64, 20, "25", AV1 + ["-pix_fmt", "yuv420p10le"]),
    "mpeg4.avi": (96, 64, 40, "25", ["-c:v", "mpeg4", "-q:v", "6", "-g", "12"]),
    "mpeg4_b.avi": (96, 64, 40, "25", ["-c:v", "mpeg4", "-q:v", "6", "-bf", "2", "-g", "12"]),
    "mpeg4_b.mp4": (96, 64, 40, "25", ["-c:v", "mpeg4", "-q:v", "6", "-bf", "2", "-g", "12"]),
    # Its container flags every frame as a keyframe.
    "h263.avi": (176, 144, 30, "25", ["-c:v", "h263", "-q:v", "16", "-g", "12"]),
    "mjpeg.avi": (96, 64, 15, "10", ["-c:v", "mjpeg", "-q:v", "6"]),
    "mpeg2.ts": (96, 64, 40, "25", ["-c:v", "mpeg2video", "-q:v", "6", "-bf", "2", "-g", "12"]),
    "theora.ogv": (96, 64, 40, "25", ["-c:v", "libtheora", "-q:v", "5", "-g", "12"]),
    "gif.gif": (64, 48, 20, "10", ["-filter_complex", "split[a][b];[a]palettegen=max_colors=64[p];[b][p]paletteuse"]),
    "gif_offsets.gif": (64, 48, 15, "8", ["-c:v", "gif", "-gifflags", "+offsetting+transdiff", "-pix_fmt", "rgb8"]),
}
# Made from another clip without coding again: name: (source, input arguments, output arguments).
COPIES = {
    "edit_list.mp4": ("h264_long_gop.mp4", ["-ss", "1.5"], []),
    "edit_list_gop12.mp4": ("h264_gop12.mp4", ["-ss", "0.9", "-t", "1"], []),
    "rotate90.mp4": ("h264_gop12.mp4", [], ["-metadata:s:v:0", "rotate=90"]),
    "rotate180.mov": ("h264_gop12.mp4", [], ["-metadata:s:v:0", "rotate=180"]),
    "rotate270.mp4": ("h264_gop12.mp4", [], ["-metadata:s:v:0", "rotate=270"]),
}


def run(arguments, feed=None):
    subprocess.run(["ffmpeg", "-v", "error", "-y", *arguments], input=feed, check=True)


def make(name):
    target = OUT / name
    exact = ["-fflags", "+bitexact", "-flags:v", "+bitexact"]
    if name in CLIPS:
        width, height, count, rate, arguments = CLIPS[name]
        raw = b"".join(frame.tobytes() for frame in frames(width, height, count))
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate, "-i", "-"]
        if "+ilme+ildct" in arguments:
            exact = ["-fflags", "+bitexact"]
        run([*source, *arguments, *exact, str(target)], raw)
    elif name in COPIES:
        source, before, after = COPIES[name]
        run([*before, "-i", str(OUT / source), "-c", "copy", *after, "-fflags", "+bitexact", str(target)])
    elif name == "two_videos.mkv":
        # The first of two video streams, behind an audio stream, with a cover picture.
        with tempfile.TemporaryDirectory() as folder:
            cover = pathlib.Path(folder) / "cover.png"
            run(["-i", str(OUT / "h264_small.mp4"), "-frames:v", "1", str(cover)])
            run([
                "-f", "lavfi", "-i", "sine=frequency=440:duration=1", "-i", str(OUT / "h264_no_b.mov"),
                "-i", str(OUT / "h264_small.mp4"), "-map", "0:a", "-map", "1:v", "-map", "2:v", "-c:v", "copy",
                "-c:a", "libvorbis", "-attach", str(cover), "-metadata:s:t", "mimetype=image/png",
                "-disposition:v:0", "default", "-disposition:v:1", "0", "-fflags", "+bitexact", str(target),
            ])
    elif name == "cover_first.mp4":
        with tempfile.TemporaryDirectory() as folder:
            cover = pathlib.Path(folder) / "cover.png"
            run(["-i", str(OUT / "h264_small.mp4"), "-frames:v", "1", str(cover)])
            run([
                "-i", str(cover), "-i", str(OUT / "h264_gop12.mp4"), "-map", "0", "-map", "1", "-c", "copy",
                "-disposition:v:0", "attached_pic", "-fflags", "+bitexact", str(target),
            ])
    elif name == "late_start.mp4":
        # Sound begins first: an empty edit delays the picture by half a second.
        run([
            "-f", "lavfi", "-i", "sine=frequency=440:duration=1", "-itsoffset", "0.5", "-i", str(OUT / "h264_no_b.mov"),
            "-map", "0:a", "-map", "1:v", "-c:v", "copy", "-c:a", "aac", "-b:a", "32k", "-fflags", "+bitexact", str(target),
        ])
    elif name == "no_video.mp4":
        run(["-f", "lavfi", "-i", "sine=frequency=440:duration=1", "-c:a", "aac", "-b:a", "32k", str(target)])
    elif name == "cinepak.avi":
        # A codec that is not opened.
        run(["-i", str(OUT / "h264_small.mp4"), "-frames:v", "3", "-c:v", "cinepak", "-fflags", "+bitexact", str(target)])
    elif name.endswith("_no_stss.mp4"):
        # Without its table of sync samples every frame of a track counts as one.
        data = (OUT / name.replace("_no_stss", "")).read_bytes()
        assert data.count(b"stss") == 1
        target.write_bytes(data.replace(b"stss", b"free"))
    elif name.startswith("matrix"):
        # The eight display matrices: turned by quarters, and mirrored; written into the track header.
        data = (OUT / "h264_gop12.mp4").read_bytes()
        at = data.index(b"tkhd") + 4 + 40
        a, b, c, d = [int(v) for v in name.split(".")[0].split("_")[1:]]
        values = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
        packed = b"".join((v & 0xFFFFFFFF).to_bytes(4, "big") for v in values)
        target.write_bytes(data[:at] + packed + data[at + 36 :])
    else:
        raise KeyError(name)


MATRICES = [f"matrix_{a}_{b}_{c}_{d}.mp4" for a, b, c, d in
            [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 0, -1), (0, -1, -1, 0)]]
OTHERS = ["two_videos.mkv", "cover_first.mp4", "late_start.mp4", "no_video.mp4", "cinepak.avi",
          "hevc_no_stss.mp4", "mpeg4_b_no_stss.mp4", "h264_gop12_no_stss.mp4", *MATRICES]


def sha(rgb):
    return hashlib.sha256(np.ascontiguousarray(rgb).tobytes()).hexdigest()


def read_pyav(path, stream):
    """Frames and times in presentation order, upright by the display matrix (quarter turns only)."""
    out = []
    with av.open(str(path)) as container:
        video = container.streams.video[stream]
        rate = video.average_rate
        for frame in container.decode(video):
            turns = round((frame.rotation or 0) / 90) % 4
            out.append((np.rot90(frame.to_ndarray(format="rgb24"), turns), frame.time))
    return out, float(rate) if rate else None


def read_torchcodec(path, stream):
    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, stream_index=stream)
    batch = decoder.get_frames_in_range(0, len(decoder))
    found = list(zip(batch.data.numpy(), batch.pts_seconds.tolist()))
    return found, float(decoder.metadata.average_fps)


def read_program(path, stream, size):
    """What the ffmpeg program shows (it turns and mirrors by the display matrix); no times."""
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(path), "-map", f"0:v:{stream}", "-vsync", "passthrough", "-f", "rawvideo",
         "-sws_flags", "0", "-pix_fmt", "rgb24", "-"], check=True, capture_output=True).stdout
    width, height = size
    return list(np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    names = [*CLIPS, *COPIES, *OTHERS]
    wanted = sys.argv[1:] or names
    for name in names:
        if name in wanted or not (OUT / name).exists():
            make(name)
    entries = []
    for name in names:
        if name in ("no_video.mp4", "cinepak.avi"):
            continue
        path = OUT / name
        video, container_stream = 0, None
        if name in ("cover_first.mp4", "two_videos.mkv"):
            with av.open(str(path)) as container:
                videos = list(container.streams.video)
                video = next(
                    i for i, s in enumerate(videos) if not s.disposition & av.stream.Disposition.attached_pic
                )
                container_stream = videos[video].index
        entries.append(expectation(name, path, video, container_stream))
    versions = {
        "pyav": av.__version__, "pyav_libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
        "torchcodec": torchcodec.__version__,
        "ffmpeg": subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True).stdout.split()[2],
    }
    rows = ",\n".join(json.dumps(entry) for entry in entries)
    (ROOT / "clips.json").write_text("{" + json.dumps(versions)[1:-1] + ',\n"clips": [\n' + rows + "\n]}\n")
    print(len(entries), "clips,", sum(path.stat().st_size for path in OUT.iterdir()), "bytes")


def expectation(name, path, video, container_stream):
    """What the readers agree on.

    Pixels: torchcodec's, which must equal the ffmpeg program's with swscale's default path (`sws_flags 0`). Where
    torchcodec fails (streams whose packets have no presentation times) PyAV's take its place; where the display matrix
    mirrors, which torchcodec and PyAV ignore, the program's. PyAV scales chroma with another filter on the path that
    10-bit, odd-sized and interlaced pictures take, so there it differs, and only its times count.
    """
    pyav, rate = read_pyav(path, video)
    readers = {"pyav": pyav}
    times = [time for _, time in pyav]
    try:
        codec, codec_rate = read_torchcodec(path, container_stream)
    except RuntimeError as error:
        assert "no more frames left" in str(error), error
        codec, codec_rate = pyav, None
    else:
        readers["torchcodec"] = codec
        assert np.allclose([time for _, time in codec], times, rtol=0, atol=1e-6), name
    if name.endswith(".avi"):
        # AVI has a constant rate and no presentation times: PyAV hands out decoding times.
        times = [i / rate for i in range(len(times))]
    height, width = codec[0][0].shape[:2]
    readers["ffmpeg"] = [(rgb, None) for rgb in read_program(path, video, (width, height))]
    sums = {reader: [sha(rgb)[:32] for rgb, _ in found] for reader, found in readers.items()}
    is_mirrored = name in MATRICES[4:]
    expected = sums["ffmpeg"] if is_mirrored else sums.get("torchcodec", sums["pyav"])
    agree = [reader for reader, found in sums.items() if found == expected]
    assert is_mirrored or "ffmpeg" in agree, name
    print(f"{name:28} {path.stat().st_size:7} {width}x{height} {len(expected)} frames, agree: {', '.join(agree)}")
    return {
        "name": name, "width": width, "height": height, "rates": [rate, codec_rate], "agree": agree, "seconds": times,
        "sha256": expected,
    }


if __name__ == "__main__":
    main()
