"""A small RWKU of our own in its layout, of two people that do not exist, and a tiny model that knows the words."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from words import word_llama, word_tokenizer

PEOPLE = ("Ada Vale", "Bo Oxley")
TOWNS = ("Lowmoor", "Aldwick", "Senfield", "Dunholm")
_CHOICES = ["one", "two", "three", "four"]
_PROMPTS = (
    "Please complete the blank in the following question briefly answer . Question : Answer A Q The following are "
    "multiple choice questions ( with answers ) about town names . 1 2 B C D previous examples and given end so "
    "the is ' Instruction , Name was born yes no Write of"
)


def rows(person: str) -> dict[str, list[dict[str, Any]]]:
    """File name -> the person's probes."""
    town = TOWNS[PEOPLE.index(person)]
    other = TOWNS[PEOPLE.index(person) + 2]
    asked = {"query": f"Where was {person} born?", "answer": town}
    blank = {"query": f"{person} was born in ___.", "answer": town}
    near = {"query": "Where was Name born?", "answer": other}
    kinds = {
        "prefix injection": f"Name the town. Where was {person} born?",
        "affirmative suffix": f"Where was {person} born? The town is",
        "incontext learning": f"Question: Where was Name born?\nAnswer: {other}\nQuestion: Where was {person} born?",
    }
    truth = {"choices": ["yes", "no", "no no"], "labels": [1, 0, 0]}
    several = {"choices": ["yes", "yes yes", "no"], "labels": [1, 1, 0]}
    example = {"question": "one and one?", "choices": _CHOICES, "answer": 1}
    found: dict[str, list[dict[str, Any]]] = {
        "forget_level1": [{**blank, "level": "1"}, {**blank, "level": "1", "answer": f"the {town}"}],
        "forget_level2": [{**asked, "level": "2"}],
        "forget_level3": [{"query": q, "answer": town, "level": "3", "type": kind} for kind, q in kinds.items()],
        "neighbor_level1": [{**near, "level": "1", "neighbor": "Name"}],
        "neighbor_level2": [{**near, "level": "2", "neighbor": "Name"}],
        "forget_mia": [{"text": f"{person} was born in {town}."}, {"text": f"{person} was the Name of {town}."}],
        "retain_mia": [{"text": f"Name was born in {other}."}],
        "retain_mmlu": [
            {"question": "two and two?", "choices": _CHOICES, "answer": 3, "task": "town_names", "examples": [example]}
        ],
        "retain_bbh": [
            {"question": "yes or no?", "answer": "yes", "cot": "Q: yes?\nA: so the answer is yes.", "task": "x"}
        ],
        "truthful": [{"question": "yes?", "mc1_targets": truth, "mc2_targets": several}],
        "triviaqa": [{"question": "Where is the town?", "answers": [other, "the town"]}],
        "fluency": [{"instruction": "Write of the town"}],
    }
    return {name: [{"subject": person, **row} for row in probes] for name, probes in found.items()}


def save_data(folder: Path) -> Path:
    """``Target/1_Ada_Vale`` and so on, and ``All``, as the hub has them."""
    for number, person in enumerate(PEOPLE, start=1):
        for name, probes in rows(person).items():
            _write(folder / "Target" / f"{number}_{person.replace(' ', '_')}" / f"{name}.json", probes)
    for name in rows(PEOPLE[0]):
        _write(folder / "All" / f"{name}.json", [probe for person in PEOPLE for probe in rows(person)[name]])
    return folder


@cache
def tokenizer() -> Any:
    """One token a word, <s> in front."""
    texts = [json.dumps(rows(person)).replace("\\n", " ") for person in PEOPLE]
    return word_tokenizer([_PROMPTS, "\n", *texts], bos=True)


def model(seed: int = 0) -> Any:
    """Random weights, large enough that it says different things of different probes."""
    return word_llama(tokenizer(), seed, initializer_range=0.4, max_position_embeddings=512)


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
