"""Fixtures of shards: `fixtures/data/shards/*.tar`, and in `expected.json` what the reference reads of them.

`train-0000N.tar` and `captions.tar` are written by `webdataset`; the others by Python's `tarfile` in each of its three
formats, with long names, folders and members that belong to no record. What is in them is told by `webdataset` alone: key,
endings, FNV-1a of every content, and the text that answers.

Run with `pip install webdataset`: python tools/oracle/data_shards.py (its version goes into `expected.json`).
"""

import io
import json
import os
import tarfile

import webdataset

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
OUT = os.path.join(ROOT, "fixtures", "data", "shards")
MEDIA = {
    "png": os.path.join(ROOT, "fixtures", "data", "images", "6.png"),
    "mp4": os.path.join(ROOT, "fixtures", "media", "clips", "h264_small.mp4"),
}
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def fnv1a(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def medium(ending):
    with open(MEDIA[ending], "rb") as file:
        return file.read()


def dialogue(number, mark, **more):
    turns = [
        {"from": "human", "value": f"<{mark}>\nWhat is number {number}?"},
        {"from": "gpt", "value": f"Number {number}, naïve café 你好."},
    ]
    return {"id": f"own-{number}", "conversations": turns, **more}


def written_by_webdataset():
    for shard, numbers in enumerate([[0, 1, 2], [3, 4]]):
        with webdataset.TarWriter(os.path.join(OUT, f"train-{shard:05}.tar"), mtime=0) as sink:
            for number in numbers:
                key = f"{number:06}"
                ending = "mp4" if number % 2 else "png"
                mark = "video" if number % 2 else "image"
                # Records name their media, by the member or by the file that it was, or leave that to the key.
                more = [{}, {mark: f"{key}.{ending}"}, {mark: f"before/it/came/{number}.{ending}"}][number % 3]
                sink.write({"__key__": key, "json": dialogue(number, mark, **more), ending: medium(ending)})
    with webdataset.TarWriter(os.path.join(OUT, "captions.tar"), mtime=0) as sink:
        facts = {"key": "a", "url": "https://example.org/a.png", "caption": "not this", "width": 3, "fps": None}
        sink.write({"__key__": "000/a", "png": medium("png"), "json": facts, "txt": "a grey square\n"})
        sink.write({"__key__": "000/b", "mp4": medium("mp4"), "txt": "a moving square"})
        sink.write({"__key__": "000/c", "0.png": medium("png"), "1.png": medium("png"), "cls": 7})


def written_by_tarfile():
    for name, number in FORMATS.items():
        with tarfile.open(os.path.join(OUT, f"{name}.tar"), "w", format=number) as tar:

            def add(path, content, kind=tarfile.REGTYPE):
                info = tarfile.TarInfo(path)
                info.size, info.type = len(content), kind
                tar.addfile(info, io.BytesIO(content))

            # 155 + 100 characters are what ustar can hold.
            folder = "a_folder_with_a_long_name/" * 5 + "another/"
            add(folder.rstrip("/"), b"", tarfile.DIRTYPE)
            add("README", b"belongs to no record")
            for number in range(2):
                key = f"{folder}{'long' * 15}_{number}"
                add(f"{key}.json", json.dumps(dialogue(number, "image")).encode())
                add(f".hidden{number}.json", b"no record either")
                add(f"{key}.PNG", medium("png"))
            if name != "ustar":
                key = "very_long/" * 40 + "naïve_你好"
                add(f"{key}.json", json.dumps(dialogue(9, "video")).encode())
                add(f"{key}.mp4", medium("mp4"))


def read(name):
    records = []
    for sample in webdataset.WebDataset(os.path.join(OUT, name), shardshuffle=False, empty_check=False):
        members = {key: value for key, value in sample.items() if not key.startswith("__")}
        if "txt" in members:
            answer = members["txt"].decode().strip()
        elif "cls" in members:
            answer = members["cls"].decode()
        else:
            answer = json.loads(members["json"])["conversations"][-1]["value"]
        own = json.loads(members["json"]).get("id") if "json" in members else None
        hashes = {ending: str(fnv1a(content)) for ending, content in members.items()}
        records.append({"key": sample["__key__"], "id": own or sample["__key__"], "answer": answer, "members": hashes})
    return records


def main():
    os.makedirs(OUT, exist_ok=True)
    written_by_webdataset()
    written_by_tarfile()
    names = sorted(name for name in os.listdir(OUT) if name.endswith(".tar"))
    expected = {"webdataset": webdataset.__version__, "shards": {name: read(name) for name in names}}
    with open(os.path.join(OUT, "expected.json"), "w", encoding="utf-8") as file:
        json.dump(expected, file, indent=1, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    main()
