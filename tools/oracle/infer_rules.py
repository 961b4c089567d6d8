"""What `generate` of transformers answers under the rules of a generation_config.json: fixtures/infer/rules.json.

    python tools/oracle/infer_rules.py

Greedy continuations of one prompt by a checkpoint of fixtures/models, once for each file; models_ref.py comes first.
"""

import os

import torch

import common
from common import write_json
from models_ref import load_model

FOLDER = "text_qwen2_transformers5"
COUNT = 24
SEED = 7


def main():
    from transformers import GenerationConfig

    model = load_model(os.path.join(common.FIXTURES, FOLDER))
    torch.manual_seed(SEED)
    prompt = torch.randint(5, 300, (1, 12))
    plain = {"eos_token_id": None}

    def run(rules):
        model.generation_config = GenerationConfig(pad_token_id=0, **rules)
        with torch.no_grad():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=COUNT, do_sample=False,
                return_dict_in_generate=True, output_scores=True,
            )
        gaps = [float(-(s[0].topk(2).values.diff())) for s in out.scores]
        return out.sequences[0, prompt.shape[1] :].tolist(), min(gaps)

    first, _ = run(plain)
    end = first[4]
    files = [
        plain,
        {"eos_token_id": end},
        {"repetition_penalty": 1.05},
        {"repetition_penalty": 2.0},
        {"repetition_penalty": 0.5},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": first[:2]},
        {"begin_suppress_tokens": [first[0]]},
        {"eos_token_id": end, "min_new_tokens": 10},
        {"eos_token_id": [end], "min_length": 20},
        {"bad_words_ids": [[first[0]], first[1:3]]},
        {"eos_token_id": end, "bad_words_ids": [[end], [first[2]]]},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "suppress_tokens": [first[0]], "eos_token_id": end},
    ]
    cases = []
    for rules in files:
        new, gap = run(rules)
        assert gap > 1e-3, (rules, gap)
        cases.append({"generation_config": rules, "new_ids": new, "smallest_gap": gap})
    changed = sum(case["new_ids"] != first for case in cases)
    print(f"{len(cases)} files, {changed} change the continuation")
    target = os.path.join(common.ROOT, "fixtures", "infer")
    os.makedirs(target, exist_ok=True)
    write_json(
        os.path.join(target, "rules.json"),
        {"versions": common.versions(), "seed": SEED, "folder": FOLDER, "count": COUNT,
         "prompt": prompt[0].tolist(), "cases": cases},
    )


if __name__ == "__main__":
    main()
