"""Tokenizers that are a SentencePiece model alone: `fixtures/data/sentencepiece/*`.

A small model of pairs with bytes for unknown characters (the kind that Llama's checkpoints have) is trained by SentencePiece on
the text below; folders with other settings hold the same model. `transformers` reads each folder and says the ids of texts and the
texts of ids. Needs `sentencepiece` and `protobuf` beside the packages of the README.

    python tools/oracle/data_sentencepiece.py
"""

import json
import os
import shutil
import tempfile

import sentencepiece
from transformers import AutoTokenizer

from common import ROOT, versions

OUT = os.path.join(ROOT, "fixtures", "data", "sentencepiece")
CORPUS = """A red circle moves to the left. A blue square moves to the right and stops.
What happens in the video? The circle is larger than the square; the square is smaller than the circle.
USER: Describe the clip. ASSISTANT: Two shapes meet, touch and part again.
Numbers such as 12, 345 and 6789 stand beside words; so do (brackets), "quotes" and dashes - like this.
Ein Kreis bewegt sich nach links, ein Quadrat nach rechts. Un cercle se déplace vers la gauche.
The quick brown fox jumps over the lazy dog while the camera follows it from above.
"""
TEXTS = [
    "", " ", "a", "A red circle", " A red circle", "  two spaces", "ends with space ", "line\nbreak", "\nstarts with a break",
    "tabs\tand\u00a0wide spaces", "USER: What happens? ASSISTANT:", "<s>A red circle</s>", "<s> A red circle </s> and more",
    "before<unk>after", "déplace über naïve", "漢字 and 🙂 are bytes", "x" * 40, "▁ the mark itself", "12 345 6789", "<0x41> is a text",
]
FOLDERS = {
    "plain": {"tokenizer_class": "LlamaTokenizer"},
    "vicuna": {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False, "model_max_length": 4096,
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False},
        "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False},
        "unk_token": {"__type": "AddedToken", "content": "<unk>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False},
        "pad_token": None, "padding_side": "right",
    },
    "legacy": {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_eos_token": True, "pad_token": "<unk>"},
    "no_prefix": {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False, "add_bos_token": False, "legacy": False},
}


def train(folder):
    corpus = os.path.join(folder, "corpus.txt")
    with open(corpus, "w") as f:
        f.write(CORPUS)
    sentencepiece.SentencePieceTrainer.train(
        input=corpus, model_prefix=os.path.join(folder, "tokenizer"), model_type="bpe", vocab_size=420, byte_fallback=True,
        character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, user_defined_symbols=["<mark>"], num_threads=1, minloglevel=2,
    )
    return os.path.join(folder, "tokenizer.model")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        model = train(work)
        for name, config in FOLDERS.items():
            folder = os.path.join(OUT, name)
            os.makedirs(folder)
            shutil.copy(model, os.path.join(folder, "tokenizer.model"))
            with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
                json.dump(config, f, indent=1)
                f.write("\n")
            with open(os.path.join(folder, "config.json"), "w") as f:
                json.dump({"model_type": "llama"}, f)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            texts = TEXTS + ["a <mark> of one's own", "<mark>"]
            cases = []
            for text in texts:
                ids = tokenizer(text)["input_ids"]
                cases.append({"text": text, "ids": ids, "plain": tokenizer(text, add_special_tokens=False)["input_ids"],
                              "decoded": tokenizer.decode(ids), "skipped": tokenizer.decode(ids, skip_special_tokens=True)})
            os.remove(os.path.join(folder, "config.json"))
            with open(os.path.join(folder, "expected.json"), "w") as f:
                json.dump({"versions": {**versions(), "sentencepiece": sentencepiece.__version__}, "cases": cases}, f, ensure_ascii=False, indent=1)
                f.write("\n")
            print(name, type(tokenizer).__name__, len(tokenizer))


if __name__ == "__main__":
    main()
