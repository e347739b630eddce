"""MUSE's evaluation rows: as tokens, and, scored by a model, as records.

The original code (M) is followed, to the token:

- prompts with BOS where the tokenizer puts one, greedy decoding;
- verbatim memorization: the text to go on with, 128 new tokens, against the first 128 tokens of how it went on, BOS
  counted;
- knowledge memorization: ten questions with answers, then the question, "Answer: " with the space; 32 new tokens, cut
  where the model begins a next question;
- privacy leakage: whole texts, every token but the first scored.

Left out: M runs the first two in 8 bits (here: in the dtype the model was loaded in), and undoes spaces before signs
when it decodes, which ROUGE does not see. The unified framework joins prompt and gold text by a space, has a stemmer in
ROUGE, and does not score the last token of a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gru_fast.benchmarks.muse.rows import HUB, TEXT, load
from gru_fast.data.hashes import joined_hash
from gru_fast.data.limits import Limits
from gru_fast.data.sequences import Encoded, content_hash, num_labels
from gru_fast.data.templates import encode_prompt
from gru_fast.evaluation.asking import Prompt, Scorer, unwritten
from gru_fast.evaluation.record_folder import Unwritten
from gru_fast.evaluation.scoring import check_finite
from gru_fast.metrics import mia
from gru_fast.metrics.muse import MIN_KS

_ENDS = ("\n\n", "\nQuestion", "Question:")  # of an answer; cut at each in this order
_QUESTIONS = {"knowmem_f": "forget_qa", "knowmem_r": "retain_qa"}
_TEXTS = {"privleak_forget": "forget", "privleak_holdout": "holdout"}


@dataclass(frozen=True)
class Question(Prompt):
    """A row whose continuation is asked for. ``shown``: of the prompt, what its record keeps."""

    shown: str
    reference: str


def load_prompts(
    tokenizer: Any,
    data: str | Path = HUB,
    *,
    verbmem_tokens: int = 128,
    knowmem_tokens: int = 32,
    max_rows: int | None = None,
) -> dict[str, list[Question]]:
    """The prompts of verbmem_f, knowmem_f and knowmem_r, the first ``max_rows`` of each (None: all).

    Args:
        tokenizer: for prompts and for the length of the gold texts.
        data: hub name or folder, see :func:`gru_fast.benchmarks.muse.load`.
        verbmem_tokens, knowmem_tokens: tokens to be written.
    """
    found = {
        "verbmem_f": [
            Question(
                encode_prompt(tokenizer, TEXT, row["prompt"]),
                verbmem_tokens,
                shown=row["prompt"],
                reference=first_tokens(tokenizer, row["gt"], verbmem_tokens),
            )
            for row in load("verbmem", "forget", data)[:max_rows]
        ]
    }
    for name, split in _QUESTIONS.items():
        shots = "".join(question_text(**_pair(row)) + "\n\n" for row in load("knowmem", f"{split}_icl", data))
        found[name] = [
            Question(
                encode_prompt(tokenizer, TEXT, shots + question_text(row["question"])),
                knowmem_tokens,
                shown=row["question"],
                reference=row["answer"],
            )
            for row in load("knowmem", split, data)[:max_rows]
        ]
    return found


def load_texts(tokenizer: Any, data: str | Path = HUB, *, max_rows: int | None = None) -> dict[str, list[Encoded]]:
    """The texts of privleak_forget and privleak_holdout as tokens, every one a label."""
    found: dict[str, list[Encoded]] = {}
    for name, split in _TEXTS.items():
        found[name] = []
        for index, row in enumerate(load("privleak", split, data)[:max_rows]):
            ids = encode_prompt(tokenizer, TEXT, row["text"])
            if len(ids) < 2:
                raise ValueError(f"privleak/{split}, row {index}: expected a text of two tokens and more, got {row!r}")
            found[name].append({"input_ids": ids, "labels": list(ids)})
    return found


def question_text(question: str, answer: str = "") -> str:
    """A question as the model sees it; without an answer it ends with the space before one."""
    return f"Question: {question}\nAnswer: {answer}"


def first_tokens(tokenizer: Any, text: str, count: int) -> str:
    """The text that the first ``count`` tokens of a text are, BOS counted and not shown."""
    return tokenizer.decode(encode_prompt(tokenizer, TEXT, text)[:count], skip_special_tokens=True)


def cut_answer(text: str) -> str:
    """What a model wrote, up to where it begins a next question."""
    for end in _ENDS:
        text = text.split(end, maxsplit=1)[0]
    return text


def check(limits: Limits, sets: Mapping[str, Sequence[Question] | Sequence[Encoded]]) -> None:
    """Refuses rows that a model cannot read, with what it is to write, by set and row."""
    for name, rows in sets.items():
        for index in range(len(rows)):
            row, where = rows[index], f"{name}, row {index}"
            if isinstance(row, Question):
                flag = f"--{name.partition('_')[0]}-tokens"
                limits.check(where, row.ids, row.max_new_tokens, option=None, more_option=flag)
            else:
                limits.check(where, row["input_ids"], option=None)


def content(rows: Sequence[Question] | Sequence[Encoded]) -> str:
    """Hash of all that is scored: texts and tokenizer at once."""
    return joined_hash(row.content + row.reference if isinstance(row, Question) else content_hash(row) for row in rows)


def score_text(questions: Sequence[Question]) -> list[Unwritten]:
    """The records of verbmem: what the model writes after each text."""
    return [unwritten(question, partial(_generation, question)) for question in questions]


def score_answer(questions: Sequence[Question]) -> list[Unwritten]:
    """The records of knowmem: what the model answers to each question."""
    return [unwritten(question, partial(_answer, question)) for question in questions]


def score_surprise(scorer: Scorer, texts: Sequence[Encoded]) -> list[dict[str, Any]]:
    """The records of privleak: how well the model knows each text."""
    rows = [log_probs.double().numpy() for log_probs in scorer.log_probs(texts)]
    check_finite([float(row.mean()) for row in rows], "texts")
    return [_surprise(text, row) for text, row in zip(texts, rows, strict=True)]


def _generation(question: Question, text: str) -> dict[str, Any]:
    return {"prompt": question.shown, "reference": question.reference, "generation": text}


def _answer(question: Question, text: str) -> dict[str, Any]:
    return _generation(question, cut_answer(text))


def _surprise(text: Encoded, log_probs: mia.Floats) -> dict[str, Any]:
    return {
        "text": content_hash(text),
        "num_tokens": num_labels(text),
        "loss": -float(np.mean(log_probs)),
        "min_k": {str(k): mia.min_k(log_probs, k) for k in MIN_KS},
    }


def _pair(row: dict[str, Any]) -> dict[str, str]:
    return {"question": row["question"], "answer": row["answer"]}
