"""TOFU: questions about 200 fictitious authors, some to be forgotten (Maini et al. 2024): its rows, for training."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru_fast.benchmarks.tofu.alternates import AlternateRows, read_alternates
from gru_fast.data.rows import Row, find_folder, is_unicode, load_rows
from gru_fast.data.templates import Template, encode, encode_rows
from gru_fast.runs.files import read_lines
from gru_fast.runs.messages import nearest

if TYPE_CHECKING:
    from gru_fast.data.pairs import UnlearnDataset
    from gru_fast.data.sequences import Encoded

HUB = "locuslab/TOFU"
SPLITS = ("forget01", "forget05", "forget10")  # what is forgotten, as published; a folder may hold others
SUBSETS = ("full", "retain99", "retain95", "retain90")  # what models are fine-tuned on
MAX_ROWS = 300  # of each set in the evaluation, as in the original code


_SPLIT = re.compile(r"forget(\d\d)")
RETAIN_SETS = ("real_authors", "world_facts")  # beside the retain split, for --retain-sets
_PARTS = ("forget", "retain", "idk", *RETAIN_SETS)
_IDK_FILES = ("idontknow.txt", "idontknow.jsonl")
_IDK_SOURCE = "data/idontknow.jsonl of github.com/locuslab/tofu"


@dataclass
class TofuOptions:
    """Where the rows come from, what is to be forgotten, and how long a row may be."""

    data: str = field(
        default=HUB,
        metadata={"help": "TOFU on the hub, or a folder in its original layout (forget05.json, retain95.json, ...)"},
    )
    split: str = field(
        default="forget05",
        metadata={"help": f"what to forget: {', '.join(SPLITS)}, or another of the folder; the rest is kept"},
    )
    max_length: int = field(
        default=500, metadata={"help": "tokens of a training row, prompt to EOS; longer ones are cut"}
    )
    idk_file: str | None = field(
        default=None,
        metadata={
            "help": '"I don\'t know" answers, one a line; by default idontknow.txt (or .jsonl) of the data folder'
        },
    )
    alternates: str | None = field(
        default=None,
        metadata={
            "help": 'other answers for dpo (AltPO) or idk, a question its own, in place of "I don\'t know": what '
            "gru-fast write-alternates leaves"
        },
    )
    benchmark: str = field(default="tofu", metadata={"help": "what to forget from", "choices": ("tofu",)})

    def __post_init__(self) -> None:
        problems = []
        if problem := split_problem(self.split):
            problems.append(problem)
        if self.alternates is not None and self.idk_file is not None:
            problems.append("alternates: expected without idk_file, which gives other answers too; leave one out")
        if isinstance(self.max_length, bool) or not isinstance(self.max_length, int) or self.max_length < 2:
            problems.append(f"max_length: expected an integer of at least 2, got {self.max_length!r}")
        if problems:
            raise ValueError("; ".join(problems))


def retain_of(split: str) -> str:
    """The split to keep beside a split to forget.

    >>> retain_of("forget05")
    'retain95'
    """
    if problem := split_problem(split):
        raise ValueError(problem)
    return f"retain{100 - _forgotten(split):02d}"


def split_problem(split: str) -> str:
    """What is wrong with the name of a split to forget; nothing if it is one."""
    if _forgotten(split):
        return ""
    return f'split: expected {", ".join(SPLITS)} (or forgetNN of a folder), got "{split}"{nearest(str(split), SPLITS)}'


def eval_sets(split: str) -> dict[str, str]:
    """The four sets a model is evaluated on, and the config that each is read from.

    >>> eval_sets("forget05")["forget"]
    'forget05_perturbed'
    """
    if problem := split_problem(split):
        raise ValueError(problem)
    return {
        "forget": f"{split}_perturbed",
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
    }


def load(name: str, data: str | Path = HUB) -> list[Row]:
    """Rows of a config in their published order, each with ``question`` and ``answer`` (texts).

    Those of ``*_perturbed`` also have ``perturbed_answer`` (a list of wrong answers: 5, or 3 in real_authors and
    world_facts) and, but for these two, ``paraphrased_answer``. Rows are told apart by their place: a question may
    occur twice ("What is the full name of the author?" in retain90).

    Args:
        name: full, retain90, retain95, retain99, forget01, forget05, forget10, forget01_perturbed, forget05_perturbed,
            forget10_perturbed, retain_perturbed, real_authors_perturbed, world_facts_perturbed; and holdout01,
            holdout05, holdout10, questions on authors in none of the others, which the hub alone has.
        data: name on the hub, or a folder with one JSON-lines file ``NAME.json`` for each.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: see :func:`gru_fast.data.rows.load_rows`.
    """
    fields: dict[str, type] = {"question": str, "answer": str}
    even = []
    if name.endswith("_perturbed"):
        fields["perturbed_answer"] = list
        even = ["perturbed_answer"]  # the truth ratio is a mean over them
        if name.startswith(("forget", "retain")):
            fields["paraphrased_answer"] = str
    return load_rows(data, name, fields, even=even)


def load_eval_sets(split: str, data: str | Path = HUB, max_rows: int | None = MAX_ROWS) -> dict[str, list[Row]]:
    """Rows of the four evaluation sets, the first ``max_rows`` of each (None: all).

    Every row has ``question``, ``answer``, ``paraphrased_answer`` and ``perturbed_answer``. Real authors and world
    facts have no paraphrases: there, as in the original code, the answer stands in for one.
    """
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows: expected at least 1, or None for all rows, got {max_rows}")
    sets = {}
    for key, config in eval_sets(split).items():
        rows = load(config, data)[:max_rows]
        if key in {"real_authors", "world_facts"}:
            rows = [{**row, "paraphrased_answer": row["answer"]} for row in rows]
        sets[key] = rows
    return sets


def idk_answers(data: str | Path = HUB, file: str | Path | None = None) -> list[str]:
    """Answers that decline ("I'm not sure."), one a line of ``file``, or of idontknow.txt or .jsonl of the data folder.

    A line is the answer itself, as published, or a JSON text, or a JSON object with one text. Blank lines are skipped.

    Raises:
        FileNotFoundError: no such file, with where to get it. The hub does not hold one.
        ValueError: a file without answers, or with what is no Unicode.
    """
    path = _idk_path(data, file)
    answers = []
    for number, line in enumerate(read_lines(path), start=1):
        answer = _idk_answer(line.strip())
        if not is_unicode(answer):
            raise ValueError(f"{path}, line {number}: expected Unicode, got half of a surrogate pair in {line!r}")
        answers += [answer] if answer else []
    if not answers:
        raise ValueError(f"{path}: expected answers, one a line, got none; get {_IDK_SOURCE}")
    return answers


def unlearning_data(
    tokenizer: Any,
    template: Template,
    split: str,
    data: str | Path = HUB,
    max_length: int = 500,
    seed: int = 0,
    parts: Collection[str] = ("forget", "retain"),
    idk_file: str | Path | None = None,
    alternates: str | Path | None = None,
) -> UnlearnDataset:
    """The paired rows of an unlearning run: each row to forget with one to keep and, where asked for, an IDK answer.

    Args:
        split: what to forget; what is kept is :func:`retain_of` it.
        max_length: tokens of a row, see :func:`gru_fast.data.templates.encode_rows`.
        seed: of the pairing.
        parts: what the run needs: "forget" (always there), "retain" (a method with a retain term, or GRU), "idk", and
            of ``RETAIN_SETS``, whose rows are those that the evaluation asks too. Others are not read.
        idk_file: see :func:`idk_answers`.
        alternates: the "idk" part is made of these in place of IDK answers, see
            :func:`gru_fast.benchmarks.tofu.alternates.read_alternates`.
    """
    from gru_fast.data.pairs import UnlearnDataset

    unknown = [part for part in parts if part not in _PARTS]
    if unknown:
        raise ValueError(f'parts: expected some of {", ".join(_PARTS)}, got "{unknown[0]}"')
    if alternates is not None and "idk" not in parts:
        warnings.warn("alternates: the method learns no other answers, so that these are not used", stacklevel=2)
    retain_split = retain_of(split)
    # Before the rows are tokenized: a missing file is said at once.
    answers = idk_answers(data, idk_file) if "idk" in parts and alternates is None else None
    forget = load(split, data)
    others = read_alternates(alternates, forget) if "idk" in parts and alternates is not None else None
    retain = load(retain_split, data) if "retain" in parts else None
    sets = {part: load(eval_sets(split)[part], data) for part in parts if part in RETAIN_SETS}

    def encoded(rows: list[Row]) -> list[Encoded]:
        return encode_rows(tokenizer, template, [(row["question"], row["answer"]) for row in rows], max_length)

    questions = [row["question"] for row in forget]
    idk: AlternateRows | IdkRows | None = None
    if others is not None:
        idk = AlternateRows(tokenizer, template, questions, others, max_length)
    elif answers is not None:
        idk = IdkRows(tokenizer, template, questions, answers, max_length)
    return UnlearnDataset(
        encoded(forget),
        None if retain is None else encoded(retain),
        idk,
        seed=seed,
        sets={part: encoded(rows) for part, rows in sets.items()},
    )


def finetuning_data(
    tokenizer: Any, template: Template, subset: str = "full", data: str | Path = HUB, max_length: int = 500
) -> list[Encoded]:
    """Rows to fine-tune on.

    Args:
        subset: "full" for the target model, "retain95" for the model retrained without forget05.
    """
    pairs = [(row["question"], row["answer"]) for row in load(subset, data)]
    return encode_rows(tokenizer, template, pairs, max_length)


@dataclass(frozen=True)
class IdkRows:
    """``rows(i, draw)``: question i with "I don't know" answer number ``draw`` modulo their count, tokenized.

    Tokenized when asked for: 400 questions times 100 answers are more than a run reads. Pure and picklable.
    """

    tokenizer: Any
    template: Template
    questions: Sequence[str]
    answers: Sequence[str]
    max_length: int

    def __call__(self, index: int, draw: int) -> Encoded:
        answer = self.answers[draw % len(self.answers)]
        return encode(self.tokenizer, self.template, self.questions[index], answer, self.max_length)


# ---- for gru-fast unlearn --------------------------------------------------------------------------------------------

Options = TofuOptions


def title(options: TofuOptions) -> str:
    """Names what is forgotten, for a run's folder."""
    return f"tofu-{options.split}"


def default_lengths(options: TofuOptions) -> dict[str, int]:
    """None: rows are shorter by far than the longest that are taken."""
    return {}


def unlearning(
    options: TofuOptions, tokenizer: Any, template: Template, parts: Collection[str], seed: int
) -> UnlearnDataset:
    """The data of a run."""
    how: dict[str, Any] = {"idk_file": options.idk_file, "alternates": options.alternates}
    return unlearning_data(tokenizer, template, options.split, options.data, options.max_length, seed, parts, **how)


def wordings(options: TofuOptions) -> dict[str, list[Row]]:
    """The questions to forget in other words: ``paraphrased_question`` of the perturbed rows, where they have it.

    The published data have it; a folder may lack the field, or the file.
    """
    try:
        rows = load(f"{options.split}_perturbed", options.data)
    except FileNotFoundError:
        return {}
    found = [
        {"question": row["question"], "asked": row["paraphrased_question"]}
        for row in rows
        if isinstance(row.get("paraphrased_question"), str)
    ]
    return {"paraphrase": found} if found else {}


# ---- parts -----------------------------------------------------------------------------------------------------------


def _forgotten(split: str) -> int:
    """Percent of the authors that a split forgets; 0 if it is none."""
    match = _SPLIT.fullmatch(split) if isinstance(split, str) else None
    return int(match[1]) if match else 0


def _idk_path(data: str | Path, file: str | Path | None) -> Path:
    if file is not None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"idk_file: no file {path}; get {_IDK_SOURCE}")
        return path
    folder = find_folder(data)
    if folder is None:
        raise FileNotFoundError(
            f'idk_file: {data} on the hub holds no "I don\'t know" answers; pass the file of them, {_IDK_SOURCE}'
        )
    for name in _IDK_FILES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f'data: {folder} has no {" or ".join(_IDK_FILES)}, the "I don\'t know" answers; get {_IDK_SOURCE} and put it '
        "there, or pass it as idk_file"
    )


def _idk_answer(line: str) -> str:
    """The answer that a line holds; a line that is no JSON is the answer itself."""
    if not line.startswith(("{", '"')):
        return line
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return line
    texts = list(value.values()) if isinstance(value, dict) else [value]
    return texts[0].strip() if len(texts) == 1 and isinstance(texts[0], str) else line
