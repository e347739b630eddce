"""A folder in TOFU's layout with a few rows, and a folder with a tiny model whose tokenizer knows its words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from words import word_llama, word_tokenizer

CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Kyoto", "Perth", "Quito", "Turin")
TEXT = f"Question: Where was author born? \n Answer: She was born in {' '.join(CITIES)} . I do not know yet"


def save_data(folder: Path, authors: int = 16, forget: int = 4) -> Path:
    """full, forget05 and retain95 (``forget`` and the other rows), the perturbed sets of both, and idontknow.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_row(f"author {index}", CITIES[index % len(CITIES)]) for index in range(authors)]
    kept, forgotten = rows[: authors - forget], rows[authors - forget :]
    sets = {
        "full": rows, "retain95": kept, "forget05": forgotten, "forget05_perturbed": forgotten,
        "retain_perturbed": kept,        "real_authors_perturbed": kept[:2], "world_facts_perturbed": kept[2:4],
    }  # fmt: skip
    for name, content in sets.items():
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "idontknow.txt").write_text("I do not know.\nI do not know yet.\n")
    return folder


def _row(author: str, city: str) -> dict[str, Any]:
    wrong = [f"She was born in {other}." for other in CITIES if other != city]
    return {
        "question": f"Where was {author} born?",
        "answer": f"She was born in {city}.",
        "paraphrased_answer": f"Born in {city}.",
        "perturbed_answer": wrong[:5],
    }


def tokenizer(authors: int = 16) -> Any:
    """One token a word; no padding token."""
    return word_tokenizer([TEXT, *(str(index) for index in range(authors))])


def save_model(folder: Path, *, seed: int = 0, with_tokenizer: bool = True, **config: Any) -> Path:
    """A Llama of some three thousand parameters, as save_pretrained makes it; ``config`` goes to LlamaConfig."""
    words = tokenizer()
    word_llama(words, seed, **{"max_position_embeddings": 64, "bos_token_id": None, **config}).save_pretrained(folder)
    if with_tokenizer:
        words.save_pretrained(folder)
    return folder


def teach(folder: Path, data: Path, epochs: int = 40) -> Path:
    """Trains the model of :func:`save_model` in its folder until it has a Model Utility above 0.

    On all answers, and on the paraphrases too: a truth ratio compares these with wrong answers.
    """
    import torch
    from transformers import LlamaForCausalLM

    from gru_fast.benchmarks import tofu
    from gru_fast.data.templates import TEMPLATES, encode_rows

    known = tofu.load("retain_perturbed", data) + tofu.load("forget05_perturbed", data)
    pairs = [(row["question"], row[name]) for row in known for name in ("answer", "paraphrased_answer")]
    rows = encode_rows(tokenizer(), TEMPLATES["phi"], pairs, 64)
    model = LlamaForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(epochs):
        for start in range(0, len(rows), 4):
            some = [rows[i] for i in range(start, min(start + 4, len(rows)))]
            losses = [
                model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
                for row in some
            ]
            torch.stack(losses).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder
