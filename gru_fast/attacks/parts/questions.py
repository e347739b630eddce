"""The rows to forget as questions to a model, of any benchmark, in its own words or in others.

A benchmark gives its rows as tokens (``unlearning``, see :mod:`gru_fast.benchmarks`). Of a question with an answer the
prompt is what is not scored; of a text, which is scored all through, its beginning. Other words around a question come
from the template: the benchmark puts its questions through it, so that any benchmark can be asked otherwise.

Rows of documents say themselves what they are (:class:`gru_fast.data.sequences.NamedEncoded`). Of other benchmarks all
rows are put through the template, in order, or none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
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
_AS_IT_IS = "{question}"  # of a frame: the question without other words


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
    question: str | None = _AS_IT_IS
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
    """The rows to forget, the first ``target.max_rows``, asked in the words of a frame.

    Without those it is not for, and without those that it does not change: a conversation that the tokenizer's chat
    template writes, a prompt that has no template around it. Later pieces of a document are texts.

    As many tokens may be written as the true answer has and half as many again, at most ``target.max_new_tokens``; of a
    text as many as it goes on, at most that.
    """

    def words(question: str) -> str | None:
        return frame.question and frame.question.format(question=question)

    is_plain = frame.question in {None, _AS_IT_IS}
    found = _rows(target, tokenizer, template, None if is_plain else words)
    made = [_question(target, tokenizer, template, frame, row) for row in found]
    return [one for one in made if one is not None]


def reworded(
    target: Target, tokenizer: Any, template: Template, name: str, wordings: Sequence[Mapping[str, str]]
) -> list[Question]:
    """The rows to forget whose question is given in other words: ``question``, ``asked``, and ``answer`` if it differs.

    Raises:
        ValueError: none of the questions is one of the rows'.
    """
    known = {each["question"]: each for each in wordings}
    found = _rows(target, tokenizer, template, lambda question: known[question]["asked"] if question in known else None)
    made = []
    for row in found:
        given = known.get(row.question or "")
        one = _question(target, tokenizer, template, Frame(name, "{asked}"), row) if given else None
        if given and one:
            made.append(replace(one, answer=given.get("answer") or one.answer))
    if not made:
        raise ValueError(
            f'{name}: none of its {len(wordings)} questions is one of the {len(found)} rows to forget; "question" is '
            'to be theirs, word for word, and "asked" another'
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
        SCORES[0]: rouge(question.answer, written, any_script=True).rougeL_recall,
        SCORES[1]: exact_answer(question.answer, written),
    }


# ---- parts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A row to forget, and as it is with other words around or in place of its question.

    Args:
        index: among the rows to forget.
        plain: in the benchmark's words; ``other``: in others, None where there is no such row.
        question: what was put through the template; None: nothing.
    """

    index: int
    plain: Encoded
    other: Encoded | None
    question: str | None

    @property
    def is_text(self) -> bool:
        """Whether it is asked how it goes on. So is a later piece, of whatever kind of document: it has no question."""
        kind = self.plain.get("kind")
        return _prompt_length(self.plain) <= 1 if kind is None else kind == "text" or bool(self.plain["index"])  # type: ignore[typeddict-item]

    @property
    def other_prompt(self) -> list[int] | None:
        """The prompt in other words; None where the words did not get into it."""
        if self.other is None:
            return None
        prompt = list(self.other["input_ids"][: _prompt_length(self.other)])
        return None if prompt == list(self.plain["input_ids"][: _prompt_length(self.plain)]) else prompt

    def tag(self, template: Template) -> str:
        """What stands before the answer: nothing where the template was not used."""
        return "" if "kind" in self.plain and self.question is None else template.answer_tag


def _rows(target: Target, tokenizer: Any, template: Template, words: Callable[[str], str | None] | None) -> list[_Row]:
    """The rows to forget, the first ``target.max_rows``, in the benchmark's words and, where they are given, others."""
    seen: list[str] = []

    def noted(question: str) -> str | None:
        seen.append(question)
        return words(question) if words else None

    plain = _first(rows(target, tokenizer, template).forget, target.max_rows)
    alone = [_Row(index, row, None, row.get("question")) for index, row in enumerate(plain)]  # type: ignore[arg-type]
    if words is None or all(row.is_text for row in alone):
        return alone
    others = rows(target, tokenizer, _with_words(template, noted)).forget
    if "kind" in plain[0]:  # rows that say what they are: a longer prompt can make more pieces of a document
        places = {_place(row): row for row in others}
        return [replace(row, other=places.get(_place(row.plain))) for row in alone]
    # In order: the benchmark puts one question after another through the template. Texts are not put through it.
    found = zip_longest(plain, _first(others, target.max_rows), seen[: len(plain)])
    return [_Row(index, row, other, question) for index, (row, other, question) in enumerate(found)]


def _place(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["piece_of"], row["index"]


def _prompt_length(row: Encoded) -> int:
    return next(at for at, label in enumerate(row["labels"]) if label != IGNORE_INDEX)


def _first(forget: Sequence[Encoded], count: int | None) -> list[Encoded]:
    """The first rows; of those that are tokenized when they are read, no more than these are read."""
    return [forget[index] for index in range(min(len(forget), count or len(forget)))]


def _with_words(template: Template, words: Callable[[str], str | None]) -> Template:
    own = {name: value for name, value in vars(template).items() if name in Template.__dataclass_fields__}
    return _Framed(**own, words=words)


def _question(target: Target, tokenizer: Any, template: Template, frame: Frame, row: _Row) -> Question | None:
    """A row as a question; None where the frame is not for its kind, or its words do not get into the prompt."""
    ids, labels = list(row.plain["input_ids"]), row.plain["labels"]
    first = _prompt_length(row.plain)
    tag = row.tag(template)
    # Of a conversation one turn is what it is held against.
    end = next((at for at in range(first, len(labels)) if labels[at] == IGNORE_INDEX), len(labels))
    if row.is_text:
        if frame.text is None:
            return None
        kept = max(1, min(target.prefix_tokens, len(ids) // 2), first)
        kept = kept if kept < end else max(1, first)
        prompt, body = ids[:kept], _without_end(tokenizer, ids[kept:end])[: target.max_new_tokens]
        if not body:
            return None
        if frame.text:
            head = encode_prompt(tokenizer, _TEXT, "")
            own = len(head) if ids[: len(head)] == head else 0  # a later piece of an answer has none
            prompt = [*encode_prompt(tokenizer, _TEXT, frame.text), *ids[own:kept]]
        answer, most = _text(tokenizer, body), len(body)
    else:
        prompt = ids[:first] if frame.question == _AS_IT_IS else row.other_prompt or []
        if frame.question is None or not prompt:
            return None
        body = _without_end(tokenizer, ids[first:end])
        answer = _without(tag, _text(tokenizer, body))
        most = min(target.max_new_tokens, len(body) + len(body) // 2)
    if frame.begun:
        prompt = [*prompt, *tokenizer(tag + frame.begun, add_special_tokens=False)["input_ids"]]
    return Question(prompt, most, row.index, _text(tokenizer, prompt[-100:]), answer, tuple(body))


def _without_end(tokenizer: Any, ids: list[int]) -> list[int]:
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _without(tag: str, answer: str) -> str:
    """An answer without the tag before it; some tokenizers put spaces between its signs."""
    signs = r"\s*".join(map(re.escape, "".join(tag.split())))
    return re.sub(rf"^\s*{signs}\s*", "", answer) if signs else answer


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
