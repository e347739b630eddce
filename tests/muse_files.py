"""A small MUSE of our own in the layout of the original repository, and a tiny model whose tokenizer knows its words.

The texts are made up by rule: reports from towns that do not exist.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from words import word_llama, word_tokenizer

TOWNS = ("Lowmoor", "Aldwick", "Senfield", "Brackwater", "Oxley", "Tarn", "Dunholm", "Vale")
GOODS = ("plums", "rope", "salt", "clocks", "wool", "lamps")
DAYS = ("Monday", "Tuesday", "Friday")
NUM_ROWS = 4  # of each evaluation set
NUM_SHOTS = 10  # questions with answers in a prompt
ASKED = "Question: Answer: What did the ferry of bring ?"


def report(number: int) -> str:
    """One article of two paragraphs; no two of the first 144 are the same."""
    town, goods, day = _facts(number)
    return f"The ferry of {town} came on {day}.\n\nIt brought {goods} to {town}, and left with {GOODS[number % 6]}."


def articles(first: int, count: int) -> list[str]:
    return [report(number) for number in range(first, first + count)]


def save_data(folder: Path) -> Path:
    """What the repository has in ``bbc``: raw, scal, sust, verbmem, knowmem, privleak, as .txt or .json as there."""
    forget, retain = articles(0, 12), articles(48, 18)
    _write(folder / "raw/forget.txt", "\n\n".join(forget))
    _write(folder / "raw/forget.json", [{"text": text} for text in forget])
    _write(folder / "raw/retain1.txt", "\n\n".join(retain))
    _write(folder / "raw/retain2.json", articles(66, 6))
    _write(folder / "raw/holdout.txt", "\n\n".join(articles(96, 6)))
    for fold in range(1, 5):
        _write(folder / f"scal/forget_{fold}.txt", "\n\n".join(articles(0, 3 * fold)))
        texts = articles(3 * (fold - 1), 3)
        if fold <= 2:
            _write(folder / f"sust/forget_{fold}.json", [{"text": text} for text in texts])
        else:
            _write(folder / f"sust/forget_{fold}.txt", "\n\n".join(texts))
    halves = [text.split("\n\n") for text in forget[:NUM_ROWS]]
    _write(folder / "verbmem/forget.json", [{"prompt": start, "gt": end} for start, end in halves])
    for name, first in (("forget", 0), ("retain2", 48)):
        _write(folder / f"knowmem/{name}_qa.json", [_question(first + i) for i in range(NUM_ROWS)])
        _write(folder / f"knowmem/{name}_qa_icl.json", [_question(first + 4 + i) for i in range(NUM_SHOTS)])
    for name, first in (("forget", 0), ("retain2", 66), ("holdout", 96)):
        _write(folder / f"privleak/{name}.json", [" ".join(articles(first + i, 2)) for i in range(NUM_ROWS)])
    return folder


@cache
def tokenizer() -> Any:
    """One token a word, <s> in front, no padding token. The same every time."""
    return word_tokenizer([ASKED, *articles(0, 144)], bos=True)


def model(seed: int = 0, **config: Any) -> Any:
    """A Llama of some four thousand parameters; ``config`` goes to LlamaConfig."""
    return word_llama(tokenizer(), seed, **{"initializer_range": 0.4, "max_position_embeddings": 256, **config})


def save_model(folder: Path, seed: int = 0) -> Path:
    """Model and tokenizer as save_pretrained makes them."""
    model(seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def _facts(number: int) -> tuple[str, str, str]:
    """Town, goods and day, each of them as frequent in one part of the texts as in another."""
    mixed = number * 89 % 144  # 89 and 144 have no common divisor
    return TOWNS[mixed % 8], GOODS[mixed // 8 % 6], DAYS[mixed // 48]


def _question(number: int) -> dict[str, str]:
    town, goods, day = _facts(number)
    return {"question": f"What did the ferry of {town} bring on {day}?", "answer": goods}


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
