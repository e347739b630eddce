"""What a model writes: continuations of prompts, greedy or drawn. The one place that generates.

Prompts come as they are asked for, and texts go as they are there: rows that have ended leave the batch, and those that
wait take their places, see decoding.py. Not every cache allows that; it is tried out on each model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gru_fast.data.sequences import SequenceCollator
from gru_fast.evaluation.backends import COMPARED, Backend
from gru_fast.evaluation.decoding import Draw, Row, Rows, Run, State
from gru_fast.models.batching import ERRORS, Together, moved, together, tolerance
from gru_fast.models.forward import Autocast, by_length, dtype_of, to_device
from gru_fast.models.frozen import frozen
from gru_fast.models.limits import limits_of, padding_id

Logits = Sequence[Tensor]  # of each step, (B, V)
_AT_ONCE = 512  # prompts that a backend is given together, at least
_ON_CPU = 4  # so many times the prompts at a time: a step of SmolLM2-135M takes 9.7 ms a row with 16, 5.1 with 64
_TRIED = 16  # tokens of a prompt with which it is tried out whether rows may leave and join


class Change(IntEnum):
    """What may change in a batch that is in progress, every row getting what it gets alone."""

    NOTHING = 0
    LEAVE = 1
    JOIN = 2  # and leave


# Model -> how a batch of it may change.
_changes: WeakKeyDictionary[nn.Module, Change] = WeakKeyDictionary()


@dataclass(frozen=True)
class Asked:
    """A prompt to be gone on with.

    Args:
        ids: its tokens, at least one.
        max_new_tokens: most tokens to write; 0 gives "".
        begun: tokens that it is known to be gone on with first; they are not computed again. Not with ``draw``.
        draw: None: greedy.
    """

    ids: Sequence[int]
    max_new_tokens: int
    begun: Sequence[int] = ()
    draw: Draw | None = None


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    *,
    batch_size: int,
    autocast: Autocast = nullcontext,
    draws: Sequence[Draw] | None = None,
    begun: Sequence[Sequence[int]] | None = None,
) -> list[str]:
    """Continuation of each prompt, without special tokens; see :func:`written`.

    Args:
        prompts: token ids, each at least one.
        max_new_tokens: most tokens to write, one number or one per prompt; 0 gives "".
        batch_size: see :func:`written`; prompts are sorted by length.
        draws: one a prompt; None: greedy.
        begun: of each prompt, tokens that are known to be written first; not with ``draws``.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(limits) != len(prompts):
        raise ValueError(f"max_new_tokens: expected one number or {len(prompts)}, got {len(limits)}")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompts[{i}]: expected at least one token, got none")
    if draws is not None and len(draws) != len(prompts):
        raise ValueError(f"draws: expected {len(prompts)}, one a prompt, got {len(draws)}")
    if draws is not None and any(begun or ()):
        raise ValueError("begun: expected none with draws, by which all tokens are drawn")
    known: Sequence[Sequence[int]] = begun or [()] * len(prompts)
    drawn: Sequence[Draw | None] = draws or [None] * len(prompts)
    asked = [Asked(*each) for each in zip(prompts, limits, known, drawn, strict=True)]
    texts = dict(written(model, tokenizer, [asked], batch_size=batch_size, autocast=autocast))
    return [texts[i] for i in range(len(prompts))]


def written(
    model: Any,
    tokenizer: Any,
    asked: Iterable[Sequence[Asked]],
    *,
    batch_size: int,
    autocast: Autocast = nullcontext,
    backend: Backend | None = None,
) -> Iterator[tuple[int, str]]:
    """Continuations as they are there: the number of a prompt, counted through all groups, and its text.

    The text is without special tokens and ends before the first end-of-sequence. Pure greedy decoding, or the pure
    probabilities of a draw: sampling and penalties of the model's own generation config are not applied. In exact
    arithmetic the text does not depend on the batch: padding is on the left, each row has its own limit and its own
    numbers to draw with, and a model that does not leave padding, or the rows beside a row, out of account is given
    prompts that it can run together (see :func:`gru_fast.models.batching.together`, which tries that with two tokens
    written after a prompt).

    Args:
        model: a causal LM with ``generate``; eval mode and no gradients meanwhile.
        tokenizer: for decoding, its end-of-sequence and its padding token (end-of-sequence where it has none).
        asked: prompts in groups, all of them greedy or all drawn. The next group is asked for when there is room for
            it in the batch.
        batch_size: prompts at a time; of more than one, on a CPU four times as many, with which its matrix products
            are faster.
        backend: writes in place of the model, many prompts at a time; greedy ones alone.
    """
    writer = _Writer(model, tokenizer, batch_size, autocast)
    return writer.written(iter(asked)) if backend is None else writer.written_by(backend, iter(asked))


class _Writer:
    """See :func:`written`."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, autocast: Autocast) -> None:
        self._model, self._tokenizer, self._autocast = model, tokenizer, autocast
        is_on_cpu = next(model.parameters()).device.type == "cpu"
        self._batch_size = batch_size * (_ON_CPU if is_on_cpu and batch_size > 1 else 1)
        self._ends, self._positions = _end_tokens(model, tokenizer), limits_of(model).positions
        self._pad = padding_id(model, tokenizer)
        self._collate = SequenceCollator(self._pad, padding_side="left")
        self._begun: list[list[int]] = []  # of each prompt

    def written(self, groups: Iterator[Sequence[Asked]]) -> Iterator[tuple[int, str]]:
        """Each number and text."""
        rows, waiting, is_there_more = self._rows(Change.JOIN), deque[Row](), True
        while is_there_more or waiting or rows:
            fresh: list[Row] = []
            while is_there_more and len(rows) + len(waiting) + len(fresh) < self._batch_size:
                group = next(groups, None)
                is_there_more = group is not None
                new = [self._row(each) for each in group or ()]
                yield from self._finished([row for row in new if row.limit == 0])
                fresh += [row for row in new if row.limit > 0]
            choice, change = self._outcome(fresh) if fresh else (Together.ANY, Change.NOTHING)
            if change is Change.JOIN:
                waiting += sorted(fresh, key=lambda row: (-len(row.ids), row.number))
            else:
                for some in self._batches(fresh, choice):
                    yield from self._finished(self._go_on(self._rows(change), some))
            others = [waiting.popleft() for _ in range(min(len(waiting), self._batch_size - len(rows)))]
            yield from self._finished(self._go_on(rows, others))

    def written_by(self, backend: Backend, groups: Iterator[Sequence[Asked]]) -> Iterator[tuple[int, str]]:
        """The same by a backend, whose first texts are compared with the model's own."""
        waiting: list[Row] = []
        for group in chain(groups, [None]):
            new = [self._row(each) for each in group or ()]
            if any(row.draw is not None for row in new):
                raise ValueError(f"draw: {backend.name} writes greedily; texts that are drawn are not asked of it")
            yield from self._finished([row for row in new if row.limit == 0])
            waiting += [row for row in new if row.limit > 0]
            if waiting and (group is None or len(waiting) >= _AT_ONCE):
                prompts, limits = [row.ids for row in waiting], [row.limit for row in waiting]
                for row, ids in zip(waiting, backend.continue_(prompts, limits, sorted(self._ends)), strict=True):
                    row.written = ids
                self._compare(backend, waiting)
                yield from self._finished(waiting)
                waiting = []

    def _compare(self, backend: Backend, rows: Sequence[Row]) -> None:
        some = rows[: COMPARED - backend.compared]
        asked = [Asked(row.ids, row.limit) for row in some]
        own = dict(written(self._model, self._tokenizer, [asked], batch_size=self._batch_size, autocast=self._autocast))
        for number, row in enumerate(some):
            text = [token for token in _until_end(row.written, self._ends, row.limit) if token not in self._ends]
            backend.compared += 1
            backend.same += self._tokenizer.decode(text, skip_special_tokens=True) == own[number]

    # ---- rows --------------------------------------------------------------------------------------------------------

    def _row(self, asked: Asked) -> Row:
        """A row that goes on from what it is known to begin with; with limit 0 where that is all of it."""
        known, number = _until_end(asked.begun, self._ends, asked.max_new_tokens), len(self._begun)
        limit = 0 if not self._ends.isdisjoint(known) else asked.max_new_tokens - len(known)
        self._begun.append(known)
        return Row(number, [*asked.ids, *known], limit, asked.draw)

    def _finished(self, rows: Iterable[Row]) -> Iterator[tuple[int, str]]:
        for row in rows:
            ids = [*self._begun[row.number], *_until_end(row.written, self._ends, row.limit)]
            text = [token for token in ids if token not in self._ends]
            yield row.number, self._tokenizer.decode(text, skip_special_tokens=True)

    def _rows(self, change: Change) -> Rows:
        can = {"can_leave": change >= Change.LEAVE, "can_join": change >= Change.JOIN}
        return Rows(self._run, self._padded, self._ends, self._positions, **can)

    def _go_on(self, rows: Rows, others: Sequence[Row]) -> list[Row]:
        """The rows that end next; of those that no other may join, all."""
        if not (rows or others):
            return []
        with frozen(self._model):
            ended = rows.go_on(others)
            while rows and not rows.can_join:
                ended += rows.go_on()
        return ended

    def _batches(self, rows: Sequence[Row], choice: Together) -> Iterator[list[Row]]:
        """Rows in batches, in which rows of several lengths stay within the model's positions.

        A batch goes on until the last of its rows has written all that it may; of rows of one length, none then has
        more than its own.
        """
        longest = max((len(row.ids) for row in rows), default=0)
        most = longest + max((row.limit for row in rows), default=0) - 1
        if self._positions is not None and most > self._positions:
            choice = min(choice, Together.EQUAL_LENGTH)
        for some in by_length([len(row.ids) for row in rows], self._batch_size, choice):
            yield [rows[place] for place in some]

    # ---- the model ---------------------------------------------------------------------------------------------------

    def _run(self, batch: Mapping[str, Tensor], most: int, *returned: str, **how: Any) -> Any:
        config = _greedy(most, sorted(self._ends), self._pad, **dict.fromkeys(returned, True))
        with self._autocast():
            return self._model.generate(**batch, generation_config=config, **how)

    def _padded(self, some: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        return to_device(self._collate([{"input_ids": ids} for ids in some]), self._model)

    def _outcome(self, rows: Sequence[Row]) -> tuple[Together, Change]:
        """Which rows may share a batch, and how it may change; tried out where it is not known.

        With one token that is written everywhere: where two tokens are as probable, the batch would decide by its
        rounding.
        """
        prompts, limit = [row.ids for row in rows], max(row.limit for row in rows)
        if len(prompts) == 1 and self._model in _changes:  # it may come to stand beside others
            prompts *= 2
        token = next(token for token in (*prompts[0], *range(len(self._ends) + 1)) if token not in self._ends)
        dtype = dtype_of(self._model, self._autocast)
        trial = _Trial(self._model, self._run, self._padded, token, dtype)
        with frozen(self._model):
            choice = trial.together(prompts, limit, self._batch_size)
            if limit < 2 or min(self._batch_size, len(prompts)) < 2 or choice is Together.NONE:
                return choice, Change.NOTHING
            if self._model not in _changes:
                tried = min(_TRIED, max(1, (self._positions or _TRIED) - 2))  # with two more that are read
                _changes[self._model] = trial.change(max(prompts, key=len)[-tried:], choice)
        return choice, min(_changes[self._model], Change.JOIN if choice is Together.ANY else Change.LEAVE)


def _until_end(ids: Sequence[int], ends: set[int], limit: int) -> list[int]:
    """What is written of some tokens: up to the first that ends it, that one too, and to the limit."""
    end = next((at + 1 for at, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[: min(end, limit)])


# ---- which rows, and whether they may leave and join -----------------------------------------------------------------


class _Trial:
    """What a model is tried out for, with one ``token`` that is written everywhere."""

    def __init__(
        self, model: Any, run: Run, padded: Callable[..., dict[str, Tensor]], token: int, dtype: torch.dtype
    ) -> None:
        self._model, self._run, self._padded, self._dtype = model, run, padded, dtype
        self._token = token

    def together(self, prompts: Sequence[Sequence[int]], limit: int, batch_size: int) -> Together:
        """By the logits of the first token written and of one that reads the cache."""
        # A prompt may be as long as the model can read, if one token is all that is to be written.
        most, what = (2, "continued") if limit > 1 else (1, "continued by one token")

        def sample(some: list[Sequence[int]]) -> list[Tensor]:
            return list(torch.stack(list(self._write(State.begin(self._padded(some)), most)), dim=1))

        return together(self._model, what, prompts, sample, batch_size=batch_size, dtype=self._dtype)

    def change(self, one: Sequence[int], choice: Together) -> Change:
        """Whether two rows get what they get alone when one joins the other, and when one has left.

        ``choice``: of the rows that may share a batch; with ANY, the other is a quarter of ``one``.
        """
        joins = choice is Together.ANY
        prompts = [one, one[-max(1, len(one) // 4) :] if joins else one[::-1]]
        alone = [self._write(State.begin(self._padded([prompt])), 3) for prompt in prompts]
        if joins and self._is_as(self._joining(prompts, alone)):
            return Change.JOIN
        return Change.LEAVE if self._is_as(self._leaving(prompts, alone)) else Change.NOTHING

    def _is_as(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> bool:
        try:
            return all(moved(found, alone) <= tolerance(self._dtype) for found, alone in pairs)
        except torch.OutOfMemoryError:
            raise
        except ERRORS:
            return False

    def _joining(self, prompts: Sequence[Sequence[int]], alone: Sequence[Logits]) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits, and those of the same row alone: the second row comes to the first, which then leaves."""
        from gru_fast.models.caches import can_be_joined

        first, second = (State.begin(self._padded([prompt])) for prompt in prompts)
        self._write(first, 1)
        self._write(first, 1)
        self._write(second, 1)
        if not (can_be_joined(first.cache) and can_be_joined(second.cache)):
            raise ValueError("a cache that has more than the keys and values of all tokens")
        both = State.of([first, second])
        (found,) = self._write(both, 1)
        yield found[:1], alone[0][2]
        yield found[1:], alone[1][1]
        both.keep([1], narrowed=True)
        yield self._write(both, 1)[0], alone[1][2]

    def _leaving(self, prompts: Sequence[Sequence[int]], alone: Sequence[Logits]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same of each of two rows when the other has left."""
        for row in range(2):
            both = State.begin(self._padded(prompts))
            self._write(both, 1)
            both.keep([row], narrowed=False)
            # By its length generate knows which tokens are new; caches of recurrent layers alone have none.
            if both.cache.get_seq_length() != both.ids.shape[1] - 1:
                raise ValueError("a cache that does not say how much it has read")
            yield self._write(both, 1)[0], alone[row][1]

    def _write(self, state: State, most: int) -> Logits:
        state.write(self._run, most, "output_logits", prefix_allowed_tokens_fn=lambda row, ids: [self._token])
        found: Logits = state.logits
        return found


def _greedy(max_new_tokens: int, ends: list[int], pad: int, **returned: bool) -> Any:
    from transformers import GenerationConfig

    # Given explicitly, since what is left out comes from the model's own config: chat models ship penalties.
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=0,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=pad,
        **returned,
    )


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokenizer's and the model's: chat models end their turn with another token than a text."""
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])}
    return {token for token in found if token is not None}
