"""Writes fixtures/data/formats: tables as the csv module and pandas write them with what `datasets` reads of them, and
records of the columns that Video-MME publishes with the prompt that its authors ask.

The prompt is that of the README of github.com/BradyFU/Video-MME ("Evaluation Pipeline", without subtitles). The records
are made up.

Run: python tools/oracle/data_formats.py (needs `datasets` and `pandas`)
"""

import csv
import json
import os
import platform
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import pandas

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
OUT = os.path.join(ROOT, "fixtures", "data", "formats")

# Commas, quotes, line ends inside of cells, blanks around them, other alphabets, placeholders' brackets.
PAIRS = [
    ("p0", "a.mp4", "What happens?", "Nothing."),
    ("p1", "b/c d.mp4", 'He says "stop, now", and then?', 'She says "no".'),
    ("p2", "ü/ж.webm", "Two\nlines", "First,\r\nsecond"),
    ("p3", "d.mp4", "  blanks around  ", "tab\tinside"),
    ("p4", "e.mp4", "日本語、です?", "はい"),
    ("p5", "f.mp4", '"', "a < b, c > d"),
    ("p6", "g.mp4", "quote at the end\"", "3"),
]

QUESTIONS = [
    ("001", "short", "Knowledge", "aB3-x_9kLmN", "001-1", "What is the color of the coat?", ["Black.", "Gray.", "Green.", "Brown."], "B"),
    ("001", "short", "Knowledge", "aB3-x_9kLmN", "001-2", "How many people, in all, are seen?", ["1.", "2.", "3.", "4."], "D"),
    ("002", "long", "Film & Television", "-startsDash", "002-1", 'Who says "A. is right"?', ["Nobody.", "The man.", "B and C.", "D."], "A"),
]


def write_pairs(path, **options):
    with open(path, "w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.writer(file, **options)
        writer.writerow(["id", "video", "question", "answer"])
        writer.writerows(PAIRS)


def write_conversations(path):
    """A table with a column of row numbers, lists as JSON, and counts that pandas turns into floats."""
    rows = []
    for number, (name, video, question, answer) in enumerate(PAIRS):
        turns = [{"from": "human", "value": "<video>" + question}, {"from": "gpt", "value": answer}]
        rows.append({
            "id": name, "video": video, "num_frames": 4 if number % 2 else None, "conversations": json.dumps(turns, ensure_ascii=number > 3),
        })
    pandas.DataFrame(rows).to_csv(path)


def read_rows(path, delimiter):
    with tempfile.TemporaryDirectory() as cache:
        table = datasets.load_dataset("csv", data_files=path, delimiter=delimiter, cache_dir=cache, split="train")
        return [dict(row) for row in table]


def prompt_of(question, options):
    lines = [f"{letter}. {option}" for letter, option in zip("ABCD", options)]
    return "\n".join([
        "Select the best answer to the following multiple-choice question based on the video."
        " Respond with only the letter (A, B, C, or D) of the correct option.",
        question, *lines, "The best answer is:",
    ])


def main():
    os.makedirs(OUT, exist_ok=True)
    at = lambda name: os.path.join(OUT, name)
    write_pairs(at("pairs.csv"), encoding="utf-8-sig")
    write_pairs(at("pairs.tsv"), delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL)
    write_conversations(at("conversations.csv"))
    tables = {name: read_rows(at(name), "\t" if name.endswith("tsv") else ",") for name in ["pairs.csv", "pairs.tsv", "conversations.csv"]}
    videomme = []
    with open(at("videomme.jsonl"), "w", encoding="utf-8") as file:
        for video, duration, domain, youtube, name, question, options, answer in QUESTIONS:
            record = {
                "video_id": video, "duration": duration, "domain": domain, "sub_category": "Other",
                "url": "https://www.youtube.com/watch?v=" + youtube, "videoID": youtube, "question_id": name,
                "task_type": "Attribute Perception", "question": question,
                "options": [f"{letter}. {option}" for letter, option in zip("ABCD", options)], "answer": answer,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            videomme.append({"id": name, "video": youtube + ".mp4", "prompt": prompt_of(question, options), "answer": answer})
    versions = {"python": platform.python_version(), "pandas": pandas.__version__, "datasets": datasets.__version__}
    with open(at("expected.json"), "w", encoding="utf-8") as file:
        json.dump({"versions": versions, "seed": None, "tables": tables, "videomme": videomme}, file, indent=1, ensure_ascii=False)
        file.write("\n")


main()
