"""Decoding a few frames of a clip: ours beside torchcodec, decord and PyAV, one thread each.

Each measurement goes from the path to RGB frames in memory: opening, index, decoding, colour. Processor time is the
figure that counts, because other programs on the machine do not change it; wall time stands beside it.

Run: cargo build --release -p media --example bench_decode
     python tools/oracle/bench_decode.py target/release/examples/bench_decode [--repeats 7] [--clips FOLDER]
Needs the ffmpeg program, torchcodec, PyAV; decord where it installs.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch

torch.set_num_threads(1)

SOURCE = (
    "testsrc2=size={size}:rate=30:duration={seconds}[a];mandelbrot=size={size}:rate=30[b];"
    "[a][b]blend=all_mode=average,noise=alls=8:allf=t[out0]"
)
X264 = ["-c:v", "libx264", "-preset", "medium", "-crf", "23", "-bf", "3", "-pix_fmt", "yuv420p"]
CLIPS = [
    ("10 s 360p h264 GOP 250", "a.mp4", "640x360", 10, [*X264, "-g", "250"], 8),
    ("10 s 360p h264 GOP 250", "a.mp4", "640x360", 10, [*X264, "-g", "250"], 32),
    ("10 s 360p h264 GOP 30", "b.mp4", "640x360", 10, [*X264, "-g", "30"], 8),
    ("20 s 720p h264 GOP 250", "c.mp4", "1280x720", 20, [*X264, "-g", "250"], 16),
    ("20 s 720p h264 GOP 12", "d.mp4", "1280x720", 20, [*X264, "-g", "12"], 16),
    ("10 s 360p hevc", "e.mp4", "640x360", 10, ["-c:v", "libx265", "-preset", "fast", "-x265-params", "log-level=1", "-pix_fmt", "yuv420p"], 8),
    ("10 s 360p vp9", "f.webm", "640x360", 10, ["-c:v", "libvpx-vp9", "-b:v", "1M", "-deadline", "realtime", "-cpu-used", "6", "-pix_fmt", "yuv420p"], 8),
    ("10 s 360p av1", "g.mp4", "640x360", 10, ["-c:v", "libsvtav1", "-preset", "10", "-crf", "40", "-pix_fmt", "yuv420p"], 8),
]


def torchcodec_frames(path, count):
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=1)
    total = len(decoder)
    return decoder.get_frames_at([i * total // count for i in range(count)]).data


def decord_frames(path, count):
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    total = len(reader)
    return reader.get_batch([i * total // count for i in range(count)]).asnumpy()


def pyav_frames(path, count):
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = 1, "NONE"
        total = stream.frames or 300
        wanted = {i * total // count for i in range(count)}
        return [f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(stream)) if i in wanted]


def ours(program, path, count):
    """Processor and wall seconds of one run, measured inside the program (its start does not count)."""
    out = subprocess.run([program, path, str(count), "1"], check=True, capture_output=True, text=True).stdout
    figures = json.loads(out)
    return figures["cpu_s"], figures["median_s"]


def theirs(read, path, count):
    start, cpu_start = time.perf_counter(), time.process_time()
    read(path, count)
    return time.process_time() - cpu_start, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clips", default=None)
    options = parser.parse_args()
    folder = pathlib.Path(options.clips or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    readers = {"torchcodec": torchcodec_frames, "decord": decord_frames, "pyav": pyav_frames}
    print("CPU ms a clip (wall ms); one thread each; medians of", options.repeats)
    print(f"{'clip':26} {'frames':>6} {'ours':>14}", *(f"{name:>15} {'ratio':>6}" for name in readers))
    for name, file, size, seconds, arguments, count in CLIPS:
        path = folder / file
        if not path.exists():
            source = SOURCE.format(size=size, seconds=seconds)
            subprocess.run(
                ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", source, "-t", str(seconds), *arguments, str(path)],
                check=True, stderr=subprocess.DEVNULL,
            )
        # Each round runs every reader once, so that all meet the same load of the machine.
        runs = {"ours": lambda: ours(options.program, str(path), count)}
        failed = {}
        for reader, read in readers.items():
            try:
                theirs(read, str(path), count)
                runs[reader] = lambda read=read: theirs(read, str(path), count)
            except Exception as error:  # noqa: BLE001 - whatever a reader throws, the table says that it failed
                failed[reader] = type(error).__name__
        found = {reader: [] for reader in runs}
        for _ in range(options.repeats):
            for reader, run in runs.items():
                found[reader].append(run())
        medians = {reader: [statistics.median(kind) for kind in zip(*times)] for reader, times in found.items()}
        cpu, wall = medians["ours"]
        line = f"{name:26} {count:6} {cpu * 1e3:7.0f} ({wall * 1e3:.0f})"
        for reader in readers:
            if reader in failed:
                line += f" {failed[reader]:>15} {'':>6}"
            else:
                other, wall = medians[reader]
                line += f" {other * 1e3:7.0f} ({wall * 1e3:.0f}) {other / cpu:6.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
