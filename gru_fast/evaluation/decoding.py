"""Rows that a model goes on with together, token by token, through transformers' `generate`.

A step reads all weights whatever the number of rows. So when a quarter of the rows have ended, `generate` is stopped,
these leave, others that wait take their places, and it is called again with the cache of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., Any]  # a batch, the most tokens to write, and what else transformers' generate takes
Padded = Callable[[Sequence[Sequence[int]]], dict[str, Tensor]]  # tokens of rows -> a batch, padded on the left
_LEAVE_AT = 4  # one of so many rows has ended: then those leave


@dataclass(frozen=True)
class Draw:
    """How the continuation of one prompt is drawn: a pure function of the model, the prompt and this.

    Args:
        seed: of one uniform number a token, by which the token is looked up in the cumulated probabilities.
        temperature: what logits are divided by, above 0.
        top_p: of the most probable tokens, as many as have this share between them; 1 for all.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass
class Row:
    """A row that is gone on with.

    Args:
        number: by which it is known.
        ids: its tokens until now, at least one.
        limit: most tokens to write, at least one.
        draw: None: greedy.
        written: the tokens that were written, maybe with more behind an end or the limit.
    """

    number: int
    ids: list[int]
    limit: int
    draw: Draw | None = None
    written: list[int] = field(default_factory=list)

    def has_ended(self, ends: set[int]) -> bool:
        """Whether it has come to its limit, or to a token that ends it."""
        return len(self.written) >= self.limit or not ends.isdisjoint(self.written)


class Rows:
    """Rows in progress.

    Args:
        run, padded: the model, and how it is given rows.
        ends: tokens that end a row.
        positions: of the model; None: no limit. No row may come to more, the last token that it writes aside.
        can_leave: whether rows may leave the others; else all are gone on with until the last has ended.
        can_join: whether others may join rows in progress; else they begin when the last has ended.
    """

    def __init__(
        self, run: Run, padded: Padded, ends: set[int], positions: int | None, *, can_leave: bool, can_join: bool
    ) -> None:
        self._run, self._padded, self._ends, self._positions = run, padded, ends, positions
        self._can_leave, self.can_join = can_leave, can_join
        self._rows: list[Row] = []
        self._state: State | None = None

    def __len__(self) -> int:
        """Rows that have not ended."""
        return len(self._rows)

    def go_on(self, others: Sequence[Row] = ()) -> list[Row]:
        """Goes on with its rows and ``others`` until some have ended, which leave and are returned."""
        if others:
            state = State.begin(self._padded([row.ids for row in others]))
            if self.can_join:
                self._write(state, others, 1)
                state = state if self._state is None else State.of([self._state, state])
            self._rows, self._state = [*self._rows, *others], state
            if self.can_join and (ended := self._leave()):
                return ended
        if self._state is None:
            return []
        left = [row.limit - len(row.written) for row in self._rows]
        stop = _Stop(left, self._ends, self._positions if self.can_join else None) if self._can_leave else None
        self._write(self._state, self._rows, max(left), stop)
        return self._leave()

    def _write(self, state: State, rows: Sequence[Row], most: int, stop: _Stop | None = None) -> None:
        how: dict[str, Any] = {} if stop is None else {"stopping_criteria": [stop]}
        if rows[0].draw is not None:
            how["logits_processor"] = [_Drawing(rows, most)]
        state.write(self._run, most, **how)
        for row, tokens in zip(rows, state.new, strict=True):
            row.written += tokens

    def _leave(self) -> list[Row]:
        has_ended = [row.has_ended(self._ends) for row in self._rows]
        ended = [row for row, has in zip(self._rows, has_ended, strict=True) if has]
        kept = [place for place, has in enumerate(has_ended) if not has]
        self._rows = [self._rows[place] for place in kept]
        if not kept:
            self._state = None
        elif self._state is not None:
            self._state.keep(kept, narrowed=self.can_join)
        return ended


@dataclass
class State:
    """What a model has read of some rows.

    Args:
        ids, mask: the rows' tokens and which of them count, (B, T), padded on the left.
        cache: the model's own of all tokens but the last; None: nothing is read yet, or there is none.
        name: by which the model takes it.
        left: the rows that are gone on with, by their places; None: all. The others are still in the cache.
        new: of each row the tokens that were written last.
        logits: of each of these a tensor (B, V), where they were asked for.
    """

    ids: Tensor
    mask: Tensor
    cache: Any = None
    name: str = ""
    left: list[int] | None = None
    new: list[list[int]] = field(default_factory=list)
    logits: Any = None

    @classmethod
    def begin(cls, batch: Mapping[str, Tensor]) -> State:
        """Nothing is read of these ``input_ids`` and ``attention_mask``."""
        return cls(batch["input_ids"], batch["attention_mask"])

    @classmethod
    def of(cls, parts: Sequence[State]) -> State:
        """All rows that are left of some, which are used up; without columns that none of the rows has."""
        from gru_fast.models.caches import joined

        chosen = [(part, [*range(len(part.ids))] if part.left is None else part.left) for part in parts]
        columns = max(int(part.mask[rows].sum(dim=1).max()) for part, rows in chosen)
        ids = torch.cat([_last(part.ids[rows], columns) for part, rows in chosen])
        mask = torch.cat([_last(part.mask[rows], columns) for part, rows in chosen])
        cache = joined([(part.cache, rows) for part, rows in chosen], columns - 1)
        return cls(ids, mask, cache, parts[0].name)

    def write(self, run: Run, most: int, *returned: str, **how: Any) -> None:
        """Adds the tokens that are written next, at most ``most`` to each row."""
        if self.left is not None:
            vars(self).update(vars(State.of([self])))
        given = {} if self.cache is None else {self.name: self.cache}
        batch = {"input_ids": self.ids, "attention_mask": self.mask}
        output = run(batch, most, "return_dict_in_generate", *returned, **how, **given)
        self.name = "cache" if "cache" in output else "past_key_values"  # the first from transformers 5.24 on
        self.cache, self.logits = output.get(self.name), output.get("logits")
        new = output.sequences[:, self.ids.shape[1] :]
        self.ids, self.new = output.sequences, new.tolist()
        self.mask = torch.cat([self.mask, self.mask.new_ones(new.shape)], dim=1)

    def keep(self, rows: Sequence[int], *, narrowed: bool) -> None:
        """Goes on with some of the rows, by their places among those that are left.

        ``narrowed``: without columns that none of them has; that is done later, in one copy with those that join them.
        """
        if narrowed:
            self.left = list(rows) if self.left is None else [self.left[place] for place in rows]
            return
        index = torch.tensor(rows, device=self.ids.device)
        self.ids, self.mask = self.ids[index], self.mask[index]
        self.cache.reorder_cache(index)  # not batch_select_indices, which caches of recurrent layers have not


def _last(values: Tensor, columns: int) -> Tensor:
    """(B, T) -> (B, columns): the last, or with zeros before them."""
    return torch.nn.functional.pad(values, (max(columns - values.shape[1], 0), 0))[:, -columns:]


class _Stop:
    """Stops a batch when a quarter of its rows has ended; for transformers' generate.

    Args:
        limits: of each row, tokens that it may still write.
        ends: tokens that end a row.
        positions: of the model; it is stopped before one more is read. None: no limit.
    """

    def __init__(self, limits: Sequence[int], ends: set[int], positions: int | None) -> None:
        self._limits, self._ends = torch.tensor(limits), torch.tensor(sorted(ends), dtype=torch.int64)
        self._ended = torch.zeros(len(limits), dtype=torch.bool)
        self._positions = positions
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self._step += 1
        self._ended |= torch.isin(input_ids[:, -1].cpu(), self._ends) | (self._limits <= self._step)
        enough = int(self._ended.sum()) * _LEAVE_AT >= len(self._ended)
        enough |= self._positions is not None and input_ids.shape[1] > self._positions
        return torch.full_like(self._ended, enough, device=input_ids.device) | self._ended.to(input_ids.device)


class _Drawing:
    """Leaves of the logits (B, V) of a step one token a row, the one that is drawn; for transformers' generate.

    Args:
        rows: each with its draw; what it has written says which of its numbers come next.
        steps: that are made at most.
    """

    def __init__(self, rows: Sequence[Row], steps: int) -> None:
        draws = [row.draw for row in rows if row.draw is not None]
        counts = [len(row.written) for row in rows]
        numbers = [_uniform(draw.seed, count + steps)[count:] for draw, count in zip(draws, counts, strict=True)]
        self._numbers = torch.stack(numbers)
        self._temperatures = torch.tensor([[draw.temperature] for draw in draws], dtype=torch.float64)
        self._shares = torch.tensor([[draw.top_p] for draw in draws], dtype=torch.float64)
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        device = scores.device
        number = self._numbers[:, self._step : self._step + 1].to(device)
        self._step += 1
        probs = (scores.double() / self._temperatures.to(device)).softmax(dim=-1)
        probs, tokens = probs.sort(dim=-1, descending=True, stable=True)
        sums = probs.cumsum(dim=-1)
        # Up to the token with which the share is reached, that one included.
        shares = self._shares.to(device).clamp(max=1)
        kept = (sums - probs < shares).sum(dim=-1, keepdim=True)
        whole = sums.gather(1, kept - 1)
        at = torch.searchsorted(sums, number * whole, right=True).minimum(kept - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens.gather(1, at), 0.0)


def _uniform(seed: int, count: int) -> Tensor:
    """(count,) float64 in [0, 1); the first of them are the same for any count."""
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor([float(torch.rand((), generator=generator, dtype=torch.float64)) for _ in range(count)])
