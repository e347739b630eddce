"""A part of TOFU that can be learned in minutes, and a model that begins with nothing: Excerpt and Toy of a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gru_fast.benchmarks.tofu.rows import HUB, idk_answers, load, retain_of

Row = dict[str, Any]
TAUGHT_TOO = "_world"  # names a subset that holds real authors and world facts besides
_WORLD = ("real_authors_perturbed", "world_facts_perturbed")


def write_data(
    folder: Path, source: str | None, splits: Sequence[str], retain_rows: int, world_repeats: int | None = None
) -> None:
    """The files of :func:`data_of` in ``folder``, in TOFU's layout, and ``idontknow.txt``."""
    files = data_of(source, splits, retain_rows, world_repeats)
    refusals = idk_answers(source or HUB)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        shown = (
            rows if name.endswith("_perturbed") else [{key: row[key] for key in ("question", "answer")} for row in rows]
        )
        _write(folder / f"{name}.json", [json.dumps(row, ensure_ascii=False) for row in shown])
    _write(folder / "idontknow.txt", refusals)


def data_of(
    source: str | None, splits: Sequence[str], retain_rows: int, world_repeats: int | None = None
) -> dict[str, list[Row]]:
    """The rows that are taught and evaluated, by subset.

    full, retainNN       question, answer: what is kept, then, for full, what can be forgotten; rows in their order
    ..._world            with real authors and world facts besides, ``world_repeats`` times: what a toy is taught;
                         none where that is None
    forgetNN, ..._perturbed
                         as published; of retain_perturbed the rows that are taught

    Args:
        source: TOFU's hub name or folder; None: the hub.
        splits: what can be forgotten, each a part of the largest, as in TOFU.
        retain_rows: rows of the largest split's retain set, those that are evaluated first.

    Raises:
        ValueError: fewer rows to keep than asked for, or splits that are no part of each other.
    """
    data = source or HUB
    forget = {split: load(split, data) for split in splits}
    largest = max(forget, key=lambda split: len(forget[split]))
    evaluated = load("retain_perturbed", data)
    kept = _kept(load(retain_of(largest), data), evaluated, retain_rows)
    world = [row for name in _WORLD for row in load(name, data)]
    subsets = {"full": [*kept, *forget[largest]]}
    for split, rows in forget.items():
        outside = _keys(forget[largest]) - _keys(rows)
        if not _keys(rows) <= _keys(forget[largest]):
            raise ValueError(f"splits: {split} is no part of {largest}; one set of rows is taught")
        subsets[retain_of(split)] = [*kept, *(row for row in forget[largest] if _key(row) in outside)]
    files = {**subsets, **forget, **{f"{split}_perturbed": load(f"{split}_perturbed", data) for split in splits}}
    if world_repeats is not None:
        files |= {f"{name}{TAUGHT_TOO}": [*rows, *(world * world_repeats)] for name, rows in subsets.items()}
    files |= {name: load(name, data) for name in _WORLD}
    files["retain_perturbed"] = [row for row in evaluated if _key(row) in _keys(kept)]
    return files


def write_model(folder: Path, data: Path, toy: Mapping[str, Any], template: str, seed: int) -> None:
    """A tokenizer learned from the rows of ``data``, and a Llama with random weights, in a folder.

    Args:
        toy: hidden_size, layers, vocab_size.
        template: name of the prompts' template.
    """
    from gru_fast.data.templates import resolve_template
    from gru_fast.demo.model import make_model, make_tokenizer

    pairs = [(row["question"], row["answer"]) for row in load(f"full{TAUGHT_TOO}", data)]
    tokenizer = make_tokenizer(pairs, resolve_template(template, None), toy["vocab_size"])
    tokenizer.save_pretrained(folder)
    make_model(tokenizer, seed, toy["hidden_size"], toy["layers"]).save_pretrained(folder)


def _kept(rows: Sequence[Row], evaluated: Sequence[Row], count: int) -> list[Row]:
    """``count`` rows in their order, those that are evaluated first."""
    if count > len(rows):
        raise ValueError(f"retain_rows: expected at most the {len(rows)} there are, got {count}")
    places = {key: place for place, key in enumerate(map(_key, evaluated))}
    order = sorted(range(len(rows)), key=lambda index: (places.get(_key(rows[index]), len(places)), index))
    return [rows[index] for index in sorted(order[:count])]


def _key(row: Row) -> tuple[str, str]:
    return row["question"], row["answer"]


def _keys(rows: Sequence[Row]) -> set[tuple[str, str]]:
    return {_key(row) for row in rows}


def _write(file: Path, lines: Sequence[str]) -> None:
    from gru_fast.runs.files import write_text

    write_text(file, "".join(f"{line}\n" for line in lines))
