"""TOFU's evaluation rows: as tokens, and, scored by a model, as records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gru_fast.data.hashes import joined_hash
from gru_fast.data.limits import Limits
from gru_fast.data.sequences import IGNORE_INDEX, Encoded, content_hash
from gru_fast.data.templates import Template, encode_prompt, encode_rows
from gru_fast.evaluation.asking import Prompt, Scorer, unwritten
from gru_fast.evaluation.record_folder import Unwritten
from gru_fast.evaluation.scoring import SequenceLoss
from gru_fast.metrics.rouge import rouge


@dataclass(frozen=True)
class Example:
    """A row as tokens. ``sequences``: the answer, the paraphrase unless it is the answer, the wrong answers."""

    question: str
    answer: str
    sequences: list[Encoded]
    has_paraphrase: bool
    prompt: Prompt

    @property
    def length(self) -> int:
        """Tokens of its longest sequence."""
        return max(len(row["input_ids"]) for row in self.sequences)


def encode(
    tokenizer: Any,
    template: Template,
    rows: Sequence[Mapping[str, Any]],
    max_length: int,
    max_new_tokens: int | None,
    where: str,
) -> list[Example]:
    """Rows of one set as tokens; the lengths are those of :mod:`gru_fast.benchmarks.tofu.evaluate`.

    Args:
        rows: with question, answer, paraphrased_answer and perturbed_answer.
        where: name of the set, for messages.

    Raises:
        ValueError: a question that leaves no room for an answer, with its row.
    """

    def encoded(pairs: list[tuple[str, str]]) -> list[Encoded]:
        try:
            return encode_rows(tokenizer, template, pairs, max_length)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    # Answers first: a question that leaves no room shows there, with its row.
    answers = encoded([(row["question"], row["answer"]) for row in rows])
    others = [
        [*([row["paraphrased_answer"]] if row["paraphrased_answer"] != row["answer"] else []), *row["perturbed_answer"]]
        for row in rows
    ]
    found = iter(encoded([(row["question"], text) for row, texts in zip(rows, others, strict=True) for text in texts]))
    examples = []
    for row, answer, texts in zip(rows, answers, others, strict=True):
        prompt = encode_prompt(tokenizer, template, row["question"])
        room = max(max_length - len(prompt), 0)
        examples.append(
            Example(
                question=row["question"],
                answer=row["answer"],
                sequences=[answer, *(next(found) for _ in texts)],
                has_paraphrase=len(texts) > len(row["perturbed_answer"]),
                prompt=Prompt(prompt, room if max_new_tokens is None else max_new_tokens),
            )
        )
    return examples


def check(limits: Limits, examples: Sequence[Example], where: str, max_new_tokens: int | None) -> None:
    """Refuses rows that a model cannot read, with what it is to write; ``where``: name of the set."""
    for index, example in enumerate(examples):
        row = f"{where}, row {index}"
        for sequence in example.sequences:
            limits.check(row, sequence["input_ids"])
        written = example.prompt.max_new_tokens
        if written:
            options = {} if max_new_tokens is None else {"option": None, "more_option": "--max-new-tokens"}
            limits.check(f"{row}, its prompt", example.prompt.ids, written, **options)


def content(examples: Sequence[Example]) -> str:
    """Hash of all that is scored: the rows, the tokenizer and the template at once."""
    return joined_hash(" ".join([*map(content_hash, one.sequences), one.prompt.content]) for one in examples)


def score(scorer: Scorer, examples: Sequence[Example]) -> list[Unwritten]:
    """The records of some rows, without the index, but for what the model writes."""
    losses = iter(scorer.losses([sequence for example in examples for sequence in example.sequences]))
    found = [[next(losses) for _ in example.sequences] for example in examples]
    return [
        unwritten(example.prompt, partial(_record, example, of), begun=_begun(example, of[0].sure))
        for example, of in zip(examples, found, strict=True)
    ]


def _begun(example: Example, sure: int) -> list[int]:
    """Of the answer what the model is sure of: what it knows by heart is not written token by token."""
    ids, start = example.sequences[0]["input_ids"], len(example.prompt.ids)
    labels = example.sequences[0]["labels"]
    if ids[:start] != example.prompt.ids or any(label != IGNORE_INDEX for label in labels[:start]):
        return []  # where prompt and answer are cut into other tokens together
    return [] if IGNORE_INDEX in labels[start:] else ids[start : start + sure]


def deviation(scorer: Scorer, examples: Sequence[Example]) -> dict[str, Any]:
    """How far the losses of some rows are from those without the scorer's autocast: mean and max of |l - l32|."""
    rows = [sequence for example in examples for sequence in example.sequences]
    plain = replace(scorer, autocast=nullcontext)
    apart = [abs(a.loss - b.loss) for a, b in zip(scorer.losses(rows), plain.losses(rows), strict=True)]
    return {"rows": len(examples), "count": len(apart), "mean": sum(apart) / len(apart), "max": max(apart)}


def _record(example: Example, found: list[SequenceLoss], generation: str) -> dict[str, Any]:
    answer, rest = found[0], found[1:]
    paraphrase, wrong = (rest[0], rest[1:]) if example.has_paraphrase else (answer, rest)
    overlap = rouge(example.answer, generation)
    return {
        "question": example.question,
        "answer": example.answer,
        "answer_loss": answer.loss,
        "num_tokens": answer.num_tokens,
        "paraphrase_loss": paraphrase.loss,
        "perturbed_losses": [one.loss for one in wrong],
        "generation": generation,
        "rouge1_recall": overlap.rouge1_recall,
        "rougeL_recall": overlap.rougeL_recall,
        "paraphrase_num_tokens": paraphrase.num_tokens,
        "perturbed_num_tokens": [one.num_tokens for one in wrong],
    }
