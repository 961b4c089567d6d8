"""Small files of sound in every container and codec, and their samples as the ffmpeg program gives them.

Writes fixtures/media/sounds/* (through the ffmpeg program), beside each NAME its samples NAME.f32 (16 kHz, one channel,
raw little-endian), and fixtures/media/sounds.json.

Reference: `ffmpeg -ar 16000 -f f32le`, every channel by itself, then numpy's mean over the channels, as librosa makes one
channel. Where soundfile and scipy are there, they are no reference: other resamplers differ at the edges of the band.

Run: python tools/oracle/media_audio.py
"""

import json
import pathlib
import shutil
import subprocess

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "media"
OUT = ROOT / "sounds"


def waves(rate, channels, seconds):
    """Every channel a sweep of its own with a click and a little noise."""
    rng = np.random.default_rng(7)
    t = np.arange(int(rate * seconds)) / rate
    out = []
    for c in range(channels):
        sweep = np.sin(2 * np.pi * (180 * (c + 1) * t + 2200 * (c + 2) * t * t))
        x = 0.4 * sweep + 0.02 * rng.standard_normal(len(t))
        x[len(t) // (c + 2)] += 0.5
        out.append(x)
    return np.stack(out, 1).clip(-1, 1).astype("<f4")


# name: (rate, channels, seconds, output arguments)
SOUNDS = {
    "s16_stereo_44k.wav": (44100, 2, 0.11, ["-c:a", "pcm_s16le"]),
    "f32_mono_48k.wav": (48000, 1, 0.08, ["-c:a", "pcm_f32le"]),
    "u8_mono_8k.wav": (8000, 1, 0.15, ["-c:a", "pcm_u8"]),
    "mono_16k.wav": (16000, 1, 0.1, ["-c:a", "pcm_s16le"]),
    "s24_six_48k.flac": (48000, 6, 0.02, ["-c:a", "flac", "-sample_fmt", "s32", "-bits_per_raw_sample", "24"]),
    "stereo_44k.mp3": (44100, 2, 0.15, ["-c:a", "libmp3lame", "-b:a", "64k"]),
    "tagged_22k.mp3": (22050, 1, 0.2, ["-c:a", "libmp3lame", "-b:a", "32k", "-metadata", "title=tone", "-id3v2_version", "3"]),
    "untagged_24k.mp3": (24000, 1, 0.2, ["-c:a", "libmp3lame", "-b:a", "32k", "-id3v2_version", "0", "-write_xing", "0"]),
    "vorbis_44k.ogg": (44100, 2, 0.15, ["-c:a", "libvorbis", "-b:a", "64k"]),
    "opus_48k.ogg": (48000, 1, 0.15, ["-c:a", "libopus", "-b:a", "24k"]),
    "aac_44k.m4a": (44100, 2, 0.15, ["-c:a", "aac", "-b:a", "48k"]),
    "adts_32k.aac": (32000, 1, 0.2, ["-c:a", "aac", "-b:a", "32k", "-f", "adts"]),
    "opus.webm": (48000, 2, 0.15, ["-c:a", "libopus", "-b:a", "24k"]),
}
VIDEO = ["-f", "lavfi", "-i", "testsrc=size=48x32:rate=10:duration=0.6"]
VIDEOS = {
    "clip_aac.mp4": (44100, 2, 0.5, ["-c:v", "libx264", "-crf", "40", "-pix_fmt", "yuv420p", "-c:a", "aac", "-b:a", "32k"]),
    "clip_mp3.mkv": (22050, 1, 0.4, ["-c:v", "libx264", "-crf", "40", "-pix_fmt", "yuv420p", "-c:a", "libmp3lame", "-b:a", "32k"]),
    "clip_pcm.avi": (8000, 1, 0.3, ["-c:v", "mpeg4", "-q:v", "20", "-c:a", "pcm_s16le"]),
    "clip_aac.ts": (48000, 1, 0.3, ["-c:v", "mpeg2video", "-q:v", "20", "-c:a", "aac", "-b:a", "32k"]),
}


def run(args, data=None):
    return subprocess.run(["ffmpeg", "-v", "error", "-y", *args], input=data, capture_output=True, check=True).stdout


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    listed = []
    for name, (rate, channels, seconds, args) in {**SOUNDS, **VIDEOS}.items():
        raw = ["-f", "f32le", "-ar", str(rate), "-ac", str(channels), "-i", "pipe:0"]
        video = VIDEO if name in VIDEOS else []
        run([*raw, *video, *args, "-fflags", "+bitexact", "-flags:a", "+bitexact", str(OUT / name)], waves(rate, channels, seconds).tobytes())
        probe = subprocess.run(["ffprobe", "-v", "error", "-select_streams", "a:0", "-show_entries", "stream=codec_name,channels,sample_rate", "-of", "json", str(OUT / name)], capture_output=True, check=True)
        stream = json.loads(probe.stdout)["streams"][0]
        got = np.frombuffer(run(["-i", str(OUT / name), "-map", "0:a:0", "-ar", "16000", "-f", "f32le", "-"]), "<f4")
        mono = got.reshape(-1, stream["channels"]).mean(1, dtype=np.float64).astype("<f4")
        (OUT / f"{name}.f32").write_bytes(mono.tobytes())
        listed.append({"name": name, "codec": stream["codec_name"], "channels": stream["channels"], "rate": int(stream["sample_rate"]), "num_samples": len(mono)})
        print(listed[-1], (OUT / name).stat().st_size)
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    with open(ROOT / "sounds.json", "w") as f:
        json.dump({"ffmpeg": version, "sounds": listed}, f, indent=1)
        f.write("\n")


main()
