"""MUSE: news articles, or novels, to be forgotten (Shi et al. 2025, arXiv 2407.06460): its texts, for training.

On the hub, or a folder in the layout of the original repository (``data/bbc`` is News, ``data/hp`` Books):

raw/         forget, retain1, retain2, holdout: texts, as .txt (one stream) or .json (a list)
scal/, sust/ forget_1 ... forget_4 (News): forget sets that grow, each with those before; forget sets one after another
verbmem/     forget: "prompt", "gt"
knowmem/     forget_qa, retain_qa: "question", "answer"; forget_qa_icl, retain_qa_icl: ten of them for the prompt
privleak/    forget, holdout: texts
"""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru_fast.data.rows import Row, check_row, find_folder, load_rows, read_json_rows
from gru_fast.data.templates import Template, encode_prompt
from gru_fast.runs.files import read_text
from gru_fast.runs.messages import nearest

if TYPE_CHECKING:
    from gru_fast.data.pairs import UnlearnDataset
    from gru_fast.data.sequences import Encoded

HUB = "muse-bench/MUSE-Books"
CORPORA = {"books": HUB, "news": "muse-bench/MUSE-News"}
SPLITS = ("forget", *(f"{subset}_{fold}" for subset in ("scal", "sust") for fold in range(1, 5)))
RETAIN = "retain1"
MAX_LENGTH = 2048
TEXT = Template("text")  # a text as it is, after what the tokenizer itself puts in front

_FOLDERS = {"hp": "books", "bbc": "news"}  # the original repository's names
_FIELDS: dict[str, dict[str, type]] = {
    "raw": {"text": str},
    "scal": {"text": str},
    "sust": {"text": str},
    "privleak": {"text": str},
    "verbmem": {"prompt": str, "gt": str},
    "knowmem": {"question": str, "answer": str},
}
_OTHER_NAMES = {"retain_qa": "retain2_qa", "retain_qa_icl": "retain2_qa_icl"}
_FOLD = re.compile(r"(scal|sust)_(\d+)")
_PARTS = ("forget", "retain")


@dataclass
class MuseOptions:
    """Where the texts come from, what is to be forgotten, and how long a piece of it is."""

    data: str = field(
        default=HUB,
        metadata={
            "help": f"{' or '.join(CORPORA.values())} on the hub, or a folder in the original layout (raw/, ...)"
        },
    )
    split: str = field(
        default="forget",
        metadata={
            "help": "what to forget: forget; for News also scal_1 to scal_4 (ever larger), and sust_1 to sust_4, each "
            "from the model that has forgotten those before"
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": f"tokens of a piece of text, BOS included; by default {MAX_LENGTH}, or as many as the model has "
            "positions"
        },
    )
    benchmark: str = field(default="muse", metadata={"help": "what to forget from", "choices": ("muse",)})

    def __post_init__(self) -> None:
        problems = []
        if self.split != "forget" and not _FOLD.fullmatch(str(self.split)):
            problems.append(_split_problem(self.split))
        length = MAX_LENGTH if self.max_length is None else self.max_length
        if isinstance(length, bool) or not isinstance(length, int) or length < 2:
            problems.append(f"max_length: expected an integer of at least 2, got {self.max_length!r}")
        if problems:
            raise ValueError("; ".join(problems))


def corpus_of(data: str | Path) -> str:
    """Which corpus: "news" or "books", else the name of the folder.

    >>> corpus_of("muse-bench/MUSE-News"), corpus_of("muse_bench/data/hp")
    ('news', 'books')
    """
    path = Path(data).expanduser()
    name = (path.resolve() if path.is_dir() else path).name.lower().removeprefix("muse-")
    return _FOLDERS.get(name, name)


def load(subset: str, split: str, data: str | Path = HUB) -> list[Row]:
    """Rows of a split in their published order, with their fields (all texts): see the top of this file.

    The knowledge questions on what is kept are called retain_qa, or retain2_qa in the original repository and in some
    copies on the hub: retain_qa finds either.

    Args:
        subset: raw, verbmem, knowmem, privleak, scal or sust.
        split: of the subset.
        data: name on the hub, or a folder with ``SUBSET/SPLIT.json`` (objects, or texts where a row is one text) or
            ``SUBSET/SPLIT.txt`` (one text).

    Raises:
        FileNotFoundError, ConnectionError, ValueError: see :func:`gru_fast.data.rows.load_rows`.
    """
    if subset not in _FIELDS:
        raise ValueError(f'subset: expected one of {", ".join(_FIELDS)}, got "{subset}"{nearest(subset, [*_FIELDS])}')
    other = _OTHER_NAMES.get(split)
    folder = find_folder(data)
    if folder is not None:
        return _load_from_folder(folder, subset, [split, *([other] if other else [])])
    try:
        return load_rows(data, subset, _FIELDS[subset], split=split)
    except ValueError:  # perhaps it has no such split
        if other is not None:
            with suppress(ValueError):
                return load_rows(data, subset, _FIELDS[subset], split=other)
        raise


def load_text(split: str = "forget", data: str | Path = HUB) -> str:
    """The texts of a split as one: a .txt file as it is, rows joined by blank lines (as that file was made).

    Args:
        split: forget, retain1, retain2, holdout; scal_1 ... scal_4, sust_1 ... sust_4.
    """
    fold = _FOLD.fullmatch(split)
    subset, name = (fold[1], f"forget_{fold[2]}") if fold else ("raw", split)
    try:
        rows = load(subset, name, data)
    except FileNotFoundError as error:
        if fold and corpus_of(data) == "books":
            raise FileNotFoundError(f'split: "{split}" is of News; Books has forget alone ({error})') from None
        raise
    return "\n\n".join(row["text"] for row in rows)


def chunks(tokenizer: Any, text: str, max_length: int = MAX_LENGTH) -> list[Encoded]:
    """A text as pieces of ``max_length`` tokens, every token a label: one stream cut, as the original code does.

    Each piece begins with BOS if the tokenizer puts one before a text, then come the next ``max_length - 1`` tokens.
    The last piece is filled up from the first (its BOS included), unless the two are one. The unified framework cuts
    2048 tokens without BOS, makes text of them and tokenizes that anew.

    Raises:
        ValueError: a text without tokens.
    """
    # verbose: no warning that the text is longer than the model's context; it is cut.
    stream = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    if not stream:
        raise ValueError("text: expected words to cut into pieces, got none; is it the right file?")
    head = encode_prompt(tokenizer, TEXT, "")
    step = max_length - len(head)
    if step < 1:
        raise ValueError(f"max_length: expected more than the {len(head)} tokens before a text, got {max_length}")
    pieces = [[*head, *stream[start : start + step]] for start in range(0, len(stream), step)]
    if len(pieces) > 1:
        pieces[-1] = [*pieces[-1], *pieces[0]][:max_length]
    return [{"input_ids": piece, "labels": list(piece)} for piece in pieces]


def unlearning_data(
    tokenizer: Any,
    split: str = "forget",
    data: str | Path = HUB,
    max_length: int = MAX_LENGTH,
    seed: int = 0,
    parts: Collection[str] = _PARTS,
) -> UnlearnDataset:
    """The paired pieces of an unlearning run: each piece to forget with one to keep, of raw/retain1.

    The original code pairs piece i with piece i modulo their count; here, as for TOFU, the piece to keep is drawn at
    random, anew in every epoch.

    Args:
        split: forget, scal_1 ... scal_4, sust_1 ... sust_4.
        max_length: see :func:`chunks`.
        seed: of the pairing.
        parts: what the run needs: "forget" (always there) and "retain". Others are not read.

    Raises:
        ValueError: parts that MUSE does not have, such as "idk".
    """
    from gru_fast.data.pairs import UnlearnDataset

    unknown = [part for part in parts if part not in _PARTS]
    if unknown:
        raise ValueError(
            f'parts: expected some of {", ".join(_PARTS)}, got "{unknown[0]}": MUSE is texts, not questions that could '
            "be answered otherwise; choose another method"
        )
    MuseOptions(str(data), split, max_length)  # its checks
    texts = {"forget": load_text(split, data)}
    if "retain" in parts:
        texts["retain"] = load_text(RETAIN, data)
    found = {part: chunks(tokenizer, text, max_length) for part, text in texts.items()}
    return UnlearnDataset(found["forget"], found.get("retain"), seed=seed)


# ---- for gru-fast unlearn --------------------------------------------------------------------------------------------

Options = MuseOptions


def title(options: MuseOptions) -> str:
    """Names what is forgotten, for a run's folder."""
    fold = "" if options.split == "forget" else f"-{options.split}"
    return f"muse-{corpus_of(options.data)}{fold}"


def default_lengths(options: MuseOptions) -> dict[str, int]:
    """The length, if it was not chosen."""
    return {"max_length": MAX_LENGTH} if options.max_length is None else {}


def retain_of(split: str) -> str:
    """What is kept beside any split: a text of its own, which the evaluation does not ask about."""
    return RETAIN


def unlearning(
    options: MuseOptions, tokenizer: Any, template: Template, parts: Collection[str], seed: int
) -> UnlearnDataset:
    """The data of a run; texts have no prompts, so the template is not used."""
    length = options.max_length or MAX_LENGTH
    return unlearning_data(tokenizer, options.split, options.data, length, seed, parts)


# ---- parts -----------------------------------------------------------------------------------------------------------


def _load_from_folder(folder: Path, subset: str, names: list[str]) -> list[Row]:
    inner, fields = folder / subset, _FIELDS[subset]
    is_text = fields.keys() == {"text"}
    if not inner.is_dir():
        there = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "no folders"
        raise FileNotFoundError(f'data: {folder} has {there}, but no "{subset}"{nearest(subset, there.split(", "))}')
    # A .txt first, which the original code trains on where both are there.
    suffixes = (*([".txt"] if is_text else []), ".json", ".jsonl")
    path = next((file for name in names for suffix in suffixes if (file := inner / f"{name}{suffix}").is_file()), None)
    if path is None:
        known = sorted({file.stem for file in inner.iterdir() if file.suffix in suffixes})
        raise FileNotFoundError(
            f'data: {inner} has {", ".join(known) or "no files"}, but no "{names[0]}"{nearest(names[0], known)}'
        )
    if path.suffix == ".txt":
        rows: list[Any] = [read_text(path)]
    else:
        rows = read_json_rows(path)
    if not rows:
        raise ValueError(f"{path}: expected rows, got an empty file; write or download it again")
    if is_text:
        rows = [{"text": row} if isinstance(row, str) else row for row in rows]
    for index, row in enumerate(rows):
        check_row(row, fields, f"{path}, row {index}")
    return rows


def _split_problem(split: str) -> str:
    return f'split: expected one of {", ".join(SPLITS)}, got "{split}"{nearest(str(split), SPLITS)}'
