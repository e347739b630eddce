"""Answers that models write, kept row by row: a stopped attack goes on where it was, and processes share the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gru_fast.attacks.parts.questions import Question, content, scored
from gru_fast.attacks.parts.target import Target
from gru_fast.data.hashes import hash_of
from gru_fast.evaluation.asking import Scorer, unwritten
from gru_fast.evaluation.decoding import Draw
from gru_fast.evaluation.record_folder import RecordFolder, RowSet, Unwritten, score_sets
from gru_fast.evaluation.subject import check_whole, settings_of
from gru_fast.models.limits import limits_of, padding_id
from gru_fast.runs.processes import on_first

Record = dict[str, Any]  # see gru_fast.attacks.parts.questions.scored


def scorer_of(target: Target, model: Any, tokenizer: Any) -> Scorer:
    """How the models are asked."""
    check_whole(model)
    return Scorer(model, tokenizer, padding_id(model, tokenizer), target.unlearned.batch_size)


def greedy(target: Target, scorer: Scorer, folder: Path, asked: Sequence[Question], label: str) -> list[Record]:
    """The greedy answers to some questions, of those in ``folder`` what is missing; in the order of the questions."""
    return _written(target, scorer, folder, asked, None, {}, label)


def drawn(
    target: Target,
    scorer: Scorer,
    folder: Path,
    asked: Sequence[Question],
    *,
    samples: int,
    temperature: float,
    top_p: float,
    seed: int,
    label: str,
) -> list[list[Record]]:
    """For each question its answers at a temperature. More samples than are there are added to them.

    A sample is a function of the model, the question, the seed and its own number: not of the batch, of the processes,
    or of how many samples there are.
    """
    how = {"temperature": temperature, "top_p": top_p, "seed": seed}
    repeated = [question for _ in range(samples) for question in asked]
    numbers = [number for number in range(samples) for _ in asked]
    draws = [
        Draw(int(hash_of([question.content, f"{seed} {temperature!r} {number}"]), 16) >> 1, temperature, top_p)
        for question, number in zip(repeated, numbers, strict=True)
    ]
    found = _written(target, scorer, folder, repeated, draws, how, label, of=asked)
    return [found[index :: len(asked)] for index in range(len(asked))]


def _written(
    target: Target,
    scorer: Scorer,
    folder: Path,
    asked: Sequence[Question],
    draws: Sequence[Draw] | None,
    how: Mapping[str, Any],
    label: str,
    of: Sequence[Question] | None = None,
) -> list[Record]:
    limits = limits_of(scorer.model)
    for question in of or asked:
        limits.check(
            f"row {question.row}, its prompt", question.ids, question.max_new_tokens,
            option=None, more_option="--max-new-tokens",
        )  # fmt: skip
    settings = settings_of(scorer.model, {"questions": content(of or asked), **how})
    records = RecordFolder(folder, settings, overwrite=target.unlearned.overwrite)
    work = RowSet(
        "answers",
        list(zip(asked, [None] * len(asked) if draws is None else draws, strict=True)),
        _answers,
        [len(question.ids) for question in asked],
        label,
    )
    score_sets(records, [work], batch_size=scorer.batch_size, write=scorer.writing, progress=target.unlearned.progress)
    found = on_first(lambda: records.read("answers"))
    return [found[index] for index in range(len(asked))]


def _answers(some: Sequence[tuple[Question, Draw | None]]) -> list[Unwritten]:
    """The records of some questions, without the index."""
    return [unwritten(question, partial(scored, question), draw=draw) for question, draw in some]
