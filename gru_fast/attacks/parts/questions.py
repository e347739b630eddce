"""The rows to forget as questions to a model, of any benchmark, in its own words or in others.

A benchmark gives its rows as tokens (``unlearning``, see :mod:`gru_fast.benchmarks`). Of a question with an answer the
prompt is what is not scored; of a text, which is scored all through, its beginning. Other words around a question come
from the template: the benchmark puts its questions through it, so that any benchmark can be asked otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gru_fast.attacks.parts.target import Target
from gru_fast.data.hashes import hash_of
from gru_fast.data.sequences import IGNORE_INDEX, Encoded
from gru_fast.data.templates import Template, encode_prompt
from gru_fast.evaluation.asking import Prompt
from gru_fast.metrics.leak import exact_answer
from gru_fast.metrics.rouge import rouge

SCORES = ("forget ROUGE-L", "forget exact")  # of an answer: recall of ROUGE-L, and whether it stands there as it is
_TEXT = Template("text")


@dataclass(frozen=True)
class Question(Prompt):
    """A prompt, and what a model that has forgotten should not write.

    Args:
        row: which of the rows to forget.
        shown: the end of the prompt, for its record.
        answer: what it is held against.
        body: the tokens that the benchmark has after the prompt: the answer with its tag, or how the text goes on.
    """

    row: int
    shown: str
    answer: str
    body: tuple[int, ...] = ()

    def begun(self, tokenizer: Any, share: float) -> Question:
        """The same with a share of its body given, at least a token and never all; the rest is the answer."""
        count = min(max(1, round(share * len(self.body))), len(self.body) - 1)
        prompt, rest = [*self.ids, *self.body[:count]], self.body[count:]
        most = max(1, min(self.max_new_tokens, len(rest) + len(rest) // 2))
        return Question(prompt, most, self.row, _text(tokenizer, prompt[-100:]), _text(tokenizer, rest), rest)


@dataclass(frozen=True)
class Frame:
    """Other words to ask in.

    Args:
        name: for tables.
        question: a question in them, ``{question}`` in its place; None: not for questions.
        text: what comes before the beginning of a text; None: not for texts.
        begun: what the answer begins with already.
    """

    name: str
    question: str | None = "{question}"
    text: str | None = None
    begun: str = ""


PLAIN = Frame("plain", text="")


@dataclass(frozen=True)
class _Framed(Template):
    """A template with other words in the place of a question; None: its own."""

    words: Callable[[str], str | None] = field(default=str, compare=False)

    def prompt(self, tokenizer: Any, question: str) -> str:
        other = self.words(question)
        return super().prompt(tokenizer, question if other is None else other)


def rows(target: Target, tokenizer: Any, template: Template, parts: Iterable[str] = ("forget",)) -> Any:
    """The benchmark's rows, as :class:`~gru_fast.data.pairs.UnlearnDataset` has them."""
    return target.benchmark.unlearning(target.data, tokenizer, template, tuple(parts), 0)


def questions(target: Target, tokenizer: Any, template: Template, frame: Frame = PLAIN) -> list[Question]:
    """The rows to forget, the first ``target.max_rows``, asked in the words of a frame; without those it is not for.

    As many tokens may be written as the true answer has and half as many again, at most ``target.max_new_tokens``; of a
    text as many as it goes on, at most that.
    """
    framed = _with_words(template, lambda question: frame.question and frame.question.format(question=question))
    found = _first(rows(target, tokenizer, framed).forget, target.max_rows)
    made = [_question(target, tokenizer, template, frame, index, row) for index, row in enumerate(found)]
    return [one for one in made if one is not None]


def reworded(
    target: Target, tokenizer: Any, template: Template, name: str, wordings: Sequence[Mapping[str, str]]
) -> list[Question]:
    """The rows to forget whose question is given in other words: ``question``, ``asked``, and ``answer`` if it differs.

    Raises:
        ValueError: none of the questions is one of the rows'.
    """
    known = {each["question"]: each for each in wordings}
    seen: list[str] = []

    def note(question: str) -> str | None:
        seen.append(question)
        return known[question]["asked"] if question in known else None

    # In order: the benchmark puts one question after another through the template. Texts are not put through it.
    asked = _first(rows(target, tokenizer, _with_words(template, note)).forget, target.max_rows)
    made = []
    for index, (row, question) in enumerate(zip(asked, seen, strict=False)):
        one = _question(target, tokenizer, template, Frame(name), index, row) if question in known else None
        if one is not None:
            made.append(replace(one, answer=known[question].get("answer") or one.answer))
    if not made:
        raise ValueError(
            f'{name}: none of its {len(wordings)} questions is one of the {len(asked)} rows to forget; "question" is '
            "to be theirs, word for word"
        )
    return made


def content(asked: Sequence[Question]) -> str:
    """Hash of prompts and answers."""
    return hash_of(f"{one.content} {one.max_new_tokens} {one.answer}" for one in asked)


def scored(question: Question, written: str) -> dict[str, Any]:
    """A record, without its index: what was written, and how much of the answer is in it."""
    return {
        "row": question.row,
        "prompt": question.shown,
        "answer": question.answer,
        "generation": written,
        SCORES[0]: rouge(question.answer, written).rougeL_recall,
        SCORES[1]: exact_answer(question.answer, written),
    }


# ---- parts -----------------------------------------------------------------------------------------------------------


def _first(forget: Sequence[Encoded], count: int | None) -> list[Encoded]:
    """The first rows; of those that are tokenized when they are read, no more than these are read."""
    return [forget[index] for index in range(min(len(forget), count or len(forget)))]


def _with_words(template: Template, words: Callable[[str], str | None]) -> Template:
    own = {name: value for name, value in vars(template).items() if name in Template.__dataclass_fields__}
    return _Framed(**own, words=words)


def _question(
    target: Target, tokenizer: Any, template: Template, frame: Frame, index: int, row: Encoded
) -> Question | None:
    """A row as a question; None where the frame is not for its kind."""
    ids, labels = list(row["input_ids"]), row["labels"]
    first = next(at for at, label in enumerate(labels) if label != IGNORE_INDEX)
    body = ids[first:-1] if ids[-1] == tokenizer.eos_token_id else ids[first:]
    if first > 1:  # a question and its answer
        if frame.question is None:
            return None
        prompt = ids[:first]
        answer = _without(template.answer_tag, _text(tokenizer, body))
        most = min(target.max_new_tokens, len(body) + len(body) // 2)
    else:
        if frame.text is None:
            return None
        kept = max(1, min(target.prefix_tokens, len(ids) // 2))
        prompt, body = ids[:kept], [*ids[kept:first], *body[max(kept - first, 0) :]][: target.max_new_tokens]
        if frame.text:
            head = len(encode_prompt(tokenizer, _TEXT, ""))
            prompt = [*encode_prompt(tokenizer, _TEXT, frame.text), *ids[head:kept]]
        answer, most = _text(tokenizer, body), len(body)
    if frame.begun:
        prompt = [*prompt, *tokenizer(template.answer_tag + frame.begun, add_special_tokens=False)["input_ids"]]
    return Question(prompt, most, index, _text(tokenizer, prompt[-100:]), answer, tuple(body))


def _without(tag: str, answer: str) -> str:
    """An answer without the tag before it; some tokenizers put spaces between its signs."""
    signs = r"\s*".join(map(re.escape, "".join(tag.split())))
    return re.sub(rf"^\s*{signs}\s*", "", answer) if signs else answer


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
