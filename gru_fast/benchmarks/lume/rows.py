"""LUME's rows: texts and questions to forget and to keep (Ramakrishna et al. 2025, arXiv 2502.15097).

A row has ``id``, ``input``, ``output`` and ``task``: Task1 are invented stories, Task2 invented people with their data,
Task3 real lives. An id ends in sc and a number where ``input`` is a text and ``output`` how it goes on, in qa and a
number where they are question and answer. A folder holds ``forget.jsonl`` and ``retain.jsonl``, as ``data/`` of
github.com/amazon-science/lume-llm-unlearning; on the hub, to which one has to be let in, they are splits.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gru_fast.data.rows import Row, find_folder, load_rows, names_in_folder
from gru_fast.data.templates import Template, encode_rows
from gru_fast.metrics.lume import FORGET, KINDS, RETAIN
from gru_fast.runs.messages import nearest

if TYPE_CHECKING:
    from gru_fast.data.pairs import UnlearnDataset
    from gru_fast.data.sequences import Encoded

HUB = "llmunlearningsemeval2025organization/semeval25-unlearning-dataset-public"
SPLITS = ("forget", "validation")
MAX_LENGTH = 1024
# The rows are no chat: its code gives the model the input as it is. The space belongs to what the model writes.
TEMPLATE = Template("lume", answer_tag=" ")

_FOLDS = {"forget": "train", "validation": "validation"}
_FIELDS: dict[str, type] = {"id": str, "input": str, "output": str, "task": str}
_ID = re.compile(r"(sc|qa)\d+$")
_PARTS = (FORGET, RETAIN)


@dataclass
class LumeOptions:
    """Where the rows come from, and how long one may be."""

    data: str = field(
        default=HUB,
        metadata={"help": "LUME on the hub, or a folder with forget.jsonl and retain.jsonl (data/ of its repository)"},
    )
    split: str = field(
        default="forget",
        metadata={"help": "what to forget: forget, or validation, the smaller set of the hub for tuning"},
    )
    max_length: int = field(
        default=MAX_LENGTH, metadata={"help": "tokens of a training row, text to EOS; longer ones are cut"}
    )
    benchmark: str = field(default="lume", metadata={"help": "what to forget from", "choices": ("lume",)})

    def __post_init__(self) -> None:
        problems = [split_problem(self.split)] if split_problem(self.split) else []
        if isinstance(self.max_length, bool) or not isinstance(self.max_length, int) or self.max_length < 2:
            problems.append(f"max_length: expected an integer of at least 2, got {self.max_length!r}")
        if problems:
            raise ValueError("; ".join(problems))


def split_problem(split: str) -> str:
    """What is wrong with the name of a split; nothing if it is one."""
    if split in SPLITS:
        return ""
    return f'split: expected {" or ".join(SPLITS)}, got "{split}"{nearest(str(split), SPLITS)}'


def load(part: str, data: str | Path = HUB, split: str = "forget") -> list[Row]:
    """Rows of a part in their published order, with ``kind`` beside their own fields: regurgitation or knowledge.

    Args:
        part: forget or retain.
        data: the hub's name, or a folder with ``PART.jsonl``; of the split "validation" ``PART_validation.jsonl``.
        split: one of :data:`SPLITS`.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: see :func:`gru_fast.data.rows.load_rows`; an id of another kind.
    """
    fold, folder = f"{part}_{_FOLDS[split]}", find_folder(data)
    if folder is None:
        rows = load_rows(data, "default", _FIELDS, split=fold)
    else:
        named = split == "validation" or fold in names_in_folder(folder)
        rows = load_rows(folder, fold if named else part, _FIELDS)
    return [{**row, "kind": _kind(row["id"], f"{data}, {part}, row {index}")} for index, row in enumerate(rows)]


def unlearning_data(
    tokenizer: object,
    data: str | Path = HUB,
    split: str = "forget",
    max_length: int = MAX_LENGTH,
    seed: int = 0,
    parts: Collection[str] = _PARTS,
) -> UnlearnDataset:
    """The paired rows of an unlearning run: each row to forget with one to keep, drawn anew in every epoch.

    Of a row what is written after its input is scored: the output and EOS.

    Args:
        split, data: see :func:`load`.
        max_length: tokens of a row, see :func:`gru_fast.data.templates.encode_rows`.
        seed: of the pairing.
        parts: what the run needs: "forget" (always there) and "retain".

    Raises:
        ValueError: parts that LUME does not have, such as "idk".
    """
    from gru_fast.data.pairs import UnlearnDataset

    unknown = [part for part in parts if part not in _PARTS]
    if unknown:
        raise ValueError(
            f'parts: expected some of {", ".join(_PARTS)}, got "{unknown[0]}": LUME has no other answers to be taught; '
            "choose another method"
        )

    def encoded(part: str) -> list[Encoded]:
        pairs = [(row["input"], row["output"]) for row in load(part, data, split)]
        return encode_rows(tokenizer, TEMPLATE, pairs, max_length)

    return UnlearnDataset(encoded(FORGET), encoded(RETAIN) if RETAIN in parts else None, seed=seed)


# ---- for gru-fast unlearn --------------------------------------------------------------------------------------------

Options = LumeOptions


def title(options: LumeOptions) -> str:
    """Names what is forgotten, for a run's folder."""
    return "lume" if options.split == "forget" else f"lume-{options.split}"


def default_lengths(options: LumeOptions) -> dict[str, int]:
    """None: the longest rows are shorter."""
    return {}


def retain_of(split: str) -> str:
    """What is kept beside a split."""
    if problem := split_problem(split):
        raise ValueError(problem)
    return f"{RETAIN}_{_FOLDS[split]}"


def unlearning(
    options: LumeOptions, tokenizer: object, template: Template, parts: Collection[str], seed: int
) -> UnlearnDataset:
    """The data of a run; rows are texts as they are, so the template is not used."""
    return unlearning_data(tokenizer, options.data, options.split, options.max_length, seed, parts)


def _kind(name: str, where: str) -> str:
    found = _ID.search(name)
    if not found:
        raise ValueError(f'{where}: field "id": expected one that ends in sc or qa and a number, got "{name}"')
    return KINDS[found[1]]
