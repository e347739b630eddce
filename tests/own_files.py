"""Made-up documents of our own, and a tiny model whose tokenizer knows their words."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from words import word_llama, word_tokenizer

NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn")
THINGS = ("the key", "a map", "seven lamps", "the old letter", "a box of tea")
TOWNS = ("Oxley", "Tarn", "Vale", "Dunholm")
SAID = "Question: Answer: Who has ? . ,"


def letter(number: int) -> str:
    """Three sentences; no two of the first 120 are the same."""
    name, thing, town = NAMES[number % 6], THINGS[number % 5], TOWNS[number % 4]
    return (
        f"{name} has {thing} in {town}. {NAMES[(number + 1) % 6]} knows of it, and waits in {TOWNS[(number // 4) % 4]}."
    )


def save_data(folder: Path) -> Path:
    """``forget``: three texts; ``retain.jsonl``: ten; ``holdout``: two; ``pairs.csv``: two, with German headers."""
    for part, numbers in (("forget", range(3)), ("holdout", range(30, 32))):
        (folder / part).mkdir(parents=True)
        for number in numbers:
            (folder / part / f"{number}.txt").write_text(letter(number) + "\n")
    rows = [{"text": letter(number)} for number in range(10, 20)]
    (folder / "retain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pairs.csv").write_text("frage;antwort\nWho has the key ?;Ann in Oxley\nWho has a map ?;Bob\n")
    return folder


@cache
def tokenizer() -> Any:
    return word_tokenizer([*map(letter, range(60)), SAID], bos=True)


def save_model(folder: Path, seed: int = 0) -> Path:
    word_llama(tokenizer(), seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
