"""A small LUME of our own in the layout of its repository, and a tiny model whose tokenizer knows its words."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from words import word_llama, word_tokenizer

NAMES = ("Ada", "Bo", "Cy", "Dee")
TOWNS = ("Lowmoor", "Aldwick", "Senfield", "Dunholm")


def rows(part: str) -> list[dict[str, str]]:
    """A text and a question of two people for each of three tasks; others are forgotten than kept."""
    found = []
    for task in (1, 2, 3):
        for i in (0, 1) if part == "forget" else (2, 3):
            name, town = NAMES[i], TOWNS[(i + task) % 4]
            text = {"input": f"{name} of Task{task} went to", "output": f"{town} by boat ."}
            asked = {"input": f"Where did {name} of Task{task} go ?", "output": town}
            found += [
                {"id": f"{part}-{task}-{i}{kind}", **row, "task": f"Task{task}"}
                for kind, row in (("sc1", text), ("qa0", asked))
            ]
    return found


def save_data(folder: Path) -> Path:
    """``data`` of the repository, and ``mia_data`` beside it."""
    for part in ("forget", "retain"):
        _write(folder / "data" / f"{part}.jsonl", rows(part))
    for name, people in (("member", NAMES[:2]), ("nonmember", NAMES[2:])):
        texts = [{"id": i, "document": f"{who} went to {TOWNS[i]} by boat ."} for i, who in enumerate(people)]
        _write(folder / "mia_data" / f"{name}.jsonl", texts)
    return folder


@cache
def tokenizer() -> Any:
    """One token a word, <s> in front, no padding token."""
    return word_tokenizer([json.dumps(rows("forget") + rows("retain"))], bos=True)


def model(seed: int = 0) -> Any:
    """Random weights, large enough that it writes different things."""
    return word_llama(tokenizer(), seed, initializer_range=0.4, max_position_embeddings=64)


def _write(file: Path, content: list[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
