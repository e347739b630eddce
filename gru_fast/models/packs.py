"""Rows that begin with one prompt, run as one: the prompt once, after it every answer, each of which sees it alone.

A question of TOFU has an answer, its paraphrase and five wrong ones: run apart, its prompt is read seven times. Here
the tokens of a prompt and of all its answers are one row, with positions that begin anew after the prompt for each
answer and a mask that keeps answers apart. Not every model reads such a mask; it is tried out on each, as in
batching.py, and a model that does not has its rows run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gru_fast.data.sequences import IGNORE_INDEX, Encoded
from gru_fast.models.batching import ERRORS, moved, tolerance
from gru_fast.models.forward import Autocast, dtype_of, logits_of, of_each_row, sampled, to_device
from gru_fast.models.frozen import frozen
from gru_fast.models.head import label_scores_of, log_probs_after
from gru_fast.models.scores import Places

# Model -> tokens of the longest pack that it was tried with, and whether it reads packs.
_tried: WeakKeyDictionary[nn.Module, dict[int, bool]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Pack:
    """Rows with one prompt.

    Args:
        prompt: the tokens before the first that is scored; at least one.
        answers: of each row the tokens after the prompt.
        labels: of each row theirs, -100 where nothing is scored.
        rows: where the rows stand in the list they are from.
    """

    prompt: tuple[int, ...]
    answers: list[Sequence[int]]
    labels: list[Sequence[int]]
    rows: list[int]

    def __len__(self) -> int:
        """Tokens that are run: the last of an answer predicts nothing."""
        return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)

    @property
    def starts(self) -> list[int]:
        """Where each answer begins."""
        found, at = [], len(self.prompt)
        for answer in self.answers:
            found.append(at)
            at += len(answer) - 1
        return found


def log_probs_of_labels(
    model: nn.Module,
    rows: Sequence[Encoded],
    *,
    batch_size: int,
    pad_token_id: int,
    autocast: Autocast = nullcontext,
    advance: Callable[[int], Any] = lambda count: None,
) -> list[Tensor]:
    """log p of every label token given what comes before it, per row: float32 on the CPU, of shape (labels,).

    The arguments are those of :func:`gru_fast.models.forward.of_each_row`.

    Raises:
        ValueError: a row without a label token.
    """
    how: dict[str, Any] = {"batch_size": batch_size, "pad_token_id": pad_token_id, "autocast": autocast}
    packs = packed(rows)
    if len(packs) < len(rows) and _reads_packs(model, max(packs, key=len), pad_token_id, autocast):
        return _of_packs(model, packs, len(rows), advance=advance, **how)

    def read(batch: dict[str, Tensor]) -> Sequence[Tensor]:
        scores = label_scores_of(model, batch)
        return scores.log_probs.float().cpu().split(scores.counts.tolist())

    return of_each_row(model, rows, read, advance=advance, **how)


def packed(rows: Sequence[Encoded]) -> list[Pack]:
    """The rows by prompt, in the order in which prompts come first."""
    found: dict[tuple[int, ...], Pack] = {}
    for index, row in enumerate(rows):
        ids, labels = row["input_ids"], row["labels"]
        first = next((i for i in range(1, len(ids)) if labels[i] != IGNORE_INDEX), None)
        if first is None:
            raise ValueError(f"rows[{index}]: none of its {len(ids)} tokens is scored")
        pack = found.setdefault(prompt := tuple(ids[:first]), Pack(prompt, [], [], []))
        pack.answers.append(ids[first:])
        pack.labels.append(labels[first:])
        pack.rows.append(index)
    return list(found.values())


def _of_packs(
    model: nn.Module,
    packs: Sequence[Pack],
    count: int,
    *,
    batch_size: int,
    pad_token_id: int,
    autocast: Autocast,
    advance: Callable[[int], Any],
) -> list[Tensor]:
    found: list[Tensor] = [torch.empty(0)] * count
    with frozen(model):
        for some in _batches(packs, batch_size):
            places = [_places(pack, line) for line, pack in enumerate(some)]
            at = Places(*(torch.cat([getattr(one, name) for one in places]) for name in ("rows", "columns", "tokens")))
            with autocast():
                log_probs = log_probs_after(model, _batch(some, pad_token_id, model, autocast), at).float().cpu()
            rows = [row for pack in some for row in pack.rows]
            sizes = [sum(label != IGNORE_INDEX for label in labels) for pack in some for labels in pack.labels]
            for row, values in zip(rows, log_probs.split(sizes), strict=True):
                found[row] = values
            advance(len(rows))
    return found


def _batches(packs: Sequence[Pack], batch_size: int) -> Iterator[list[Pack]]:
    """Packs of similar length, longest first, of at most ``batch_size`` answers together, or one pack."""
    some: list[Pack] = []
    for pack in sorted(packs, key=len, reverse=True):
        if some and sum(len(one.rows) for one in some) + len(pack.rows) > batch_size:
            yield some
            some = []
        some.append(pack)
    if some:
        yield some


def _places(pack: Pack, line: int) -> Places:
    """Where the label tokens of a pack are predicted: the first of each answer at the prompt's last token."""
    columns, tokens = [], []
    for start, labels in zip(pack.starts, pack.labels, strict=True):
        for place, label in enumerate(labels):
            if label != IGNORE_INDEX:
                columns.append(start + place - 1 if place else len(pack.prompt) - 1)
                tokens.append(label)
    return Places(torch.full((len(columns),), line), torch.tensor(columns), torch.tensor(tokens))


def _batch(packs: Sequence[Pack], pad_token_id: int, model: nn.Module, autocast: Autocast) -> dict[str, Tensor]:
    """``input_ids``, ``position_ids`` (B, T) and an additive ``attention_mask`` (B, 1, T, T) of some packs."""
    size = max(map(len, packs))
    ids = torch.full((len(packs), size), pad_token_id)
    positions = torch.zeros(len(packs), size, dtype=torch.int64)
    owners = torch.full((len(packs), size), -1)  # 0: the prompt, 1, 2, ...: an answer, -1: padding
    for line, pack in enumerate(packs):
        prompt = len(pack.prompt)
        ids[line, :prompt] = torch.tensor(pack.prompt)
        positions[line, :prompt] = torch.arange(prompt)
        owners[line, :prompt] = 0
        for owner, (start, answer) in enumerate(zip(pack.starts, pack.answers, strict=True), start=1):
            end = start + len(answer) - 1
            ids[line, start:end] = torch.tensor(answer[:-1], dtype=torch.int64)
            positions[line, start:end] = torch.arange(prompt, prompt + end - start)
            owners[line, start:end] = owner
    seen = (owners[:, None, :] == 0) | (owners[:, None, :] == owners[:, :, None])
    seen &= torch.ones(size, size, dtype=torch.bool).tril()
    dtype = dtype_of(model, autocast)
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
    return to_device({"input_ids": ids, "position_ids": positions, "attention_mask": mask}, model)


# ---- which models ----------------------------------------------------------------------------------------------------


def _reads_packs(model: nn.Module, longest: Pack, pad_token_id: int, autocast: Autocast) -> bool:
    """Whether every answer of a pack gets what it gets alone; tried when a pack of such a length first comes."""
    tried = _tried.setdefault(model, {})
    for length, found in tried.items():
        if (found and length >= len(longest)) or (not found and length <= len(longest)):
            return found
    tried[len(longest)] = found = _as_alone(model, longest, pad_token_id, autocast)
    return found


def _as_alone(model: nn.Module, pack: Pack, pad_token_id: int, autocast: Autocast) -> bool:
    """A pack of two answers, the longest and another, against each alone; and beside a shorter pack, with padding."""
    order = sorted(range(len(pack.rows)), key=lambda i: len(pack.answers[i]), reverse=True)
    some = [order[0], order[-1]] if len(order) > 1 else [order[0]] * 2
    both = Pack(pack.prompt, [pack.answers[i] for i in some], [pack.labels[i] for i in some], some)
    last = Pack(both.prompt, both.answers[1:], both.labels[1:], some[1:])

    def run(packs: Sequence[Pack]) -> Tensor:
        with autocast():
            return logits_of(model, _batch(packs, pad_token_id, model, autocast))

    def alone(answer: Sequence[int]) -> Tensor:
        ids = torch.tensor([[*pack.prompt, *answer[:-1]]])
        with autocast():
            batch: Mapping[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            return logits_of(model, to_device(batch, model))[0, len(pack.prompt) - 1 :]

    def of(logits: Tensor, one: Pack, answer: int) -> Tensor:
        start = one.starts[answer]
        return logits[[len(one.prompt) - 1, *range(start, start + len(one.answers[answer]) - 1)]]

    try:
        with frozen(model):
            expected = [alone(answer) for answer in both.answers]
            found = run([both, last])
            pairs = [(of(found[0], both, 0), expected[0]), (of(found[0], both, 1), expected[1])]
            pairs.append((of(found[1], last, 0), expected[1]))
            most = tolerance(dtype_of(model, autocast))
            return all(moved(sampled(ours), sampled(theirs)) <= most for ours, theirs in pairs)
    except torch.OutOfMemoryError:
        raise
    except ERRORS:
        return False
