"""Rows that begin with one prompt, run as one: a tree of tokens, each of which sees those on its way from the root.

A question of TOFU has an answer, its paraphrase and five wrong ones that change a few words of it: run apart, its
prompt is read seven times, and so is the beginning of what they say. Here tokens that several rows have in common, all
before them being the same too, are run once: the rows are one row, with positions by depth in the tree and a mask that
keeps branches apart. A model that carries a state from token to token cannot do it: a branch would go on with the state
of the one before. And not every other model reads such a mask; it is tried out on each, as in batching.py. Where a tree
cannot be read, rows are run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
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

# Types of layers, as configurations name them, that carry a state from token to token.
_RECURRENT = {"conv", "hybrid", "hybrid_sliding", "linear_attention", "mamba", "recurrent"}

# Model -> tokens of the longest pack that it was tried with, and whether it reads packs.
_tried: WeakKeyDictionary[nn.Module, dict[int, bool]] = WeakKeyDictionary()


@dataclass
class Pack:
    """Rows with one prompt, as a tree whose nodes are tokens: rows share theirs up to where they differ.

    Args:
        prompt: how many tokens come before the first that is scored; at least one.
        ids: token of each node. The last token of a row predicts nothing and is no node.
        branches: (begin, end, after): nodes of one row alone when it was added, and the node they follow; -1: none.
        rows: where the rows stand in the list they are from.
        paths: of each row its nodes in order.
        places: (node, token), each once, of which log p is wanted.
        labels: of each row the places of its label tokens.
    """

    prompt: int
    ids: list[int] = field(default_factory=list)
    branches: list[tuple[int, int, int]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    places: dict[tuple[int, int], int] = field(default_factory=dict)
    labels: list[list[int]] = field(default_factory=list)
    _after: dict[tuple[int, int], int] = field(default_factory=dict)  # node (-1: none), token -> the node after it

    def __len__(self) -> int:
        """Tokens that are run."""
        return len(self.ids)

    def add(self, row: int, ids: Sequence[int], labels: Sequence[int]) -> None:
        """Adds a row by its number, its tokens and their labels, -100 where nothing is scored."""
        path: list[int] = []
        begin, after = len(self.ids), -1
        for token in ids[:-1]:
            node = path[-1] if path else -1
            found = self._after.setdefault((node, token), len(self.ids))
            if found == len(self.ids):
                if found == begin:
                    after = node
                self.ids.append(token)
            path.append(found)
        if len(self.ids) > begin:
            self.branches.append((begin, len(self.ids), after))
        scored = [(node, label) for node, label in zip(path, labels[1:], strict=True) if label != IGNORE_INDEX]
        self.rows.append(row)
        self.paths.append(path)
        self.labels.append([self.places.setdefault(place, len(self.places)) for place in scored])


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
        found.setdefault(tuple(ids[:first]), Pack(first)).add(index, ids, labels)
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
            with autocast():
                log_probs = log_probs_after(model, _batch(some, pad_token_id, model, autocast), _places(some))
            of_packs = log_probs.float().cpu().split([len(pack.places) for pack in some])
            for pack, values in zip(some, of_packs, strict=True):
                for row, labels in zip(pack.rows, pack.labels, strict=True):
                    found[row] = values[labels]
                advance(len(pack.rows))
    return found


def _batches(packs: Sequence[Pack], batch_size: int) -> Iterator[list[Pack]]:
    """Packs of similar length, longest first, of at most ``batch_size`` rows together, or one pack."""
    some: list[Pack] = []
    for pack in sorted(packs, key=len, reverse=True):
        if some and sum(len(one.rows) for one in some) + len(pack.rows) > batch_size:
            yield some
            some = []
        some.append(pack)
    if some:
        yield some


def _places(packs: Sequence[Pack]) -> Places:
    """Where something is predicted, pack after pack."""
    lines = [line for line, pack in enumerate(packs) for _ in pack.places]
    nodes, tokens = zip(*(place for pack in packs for place in pack.places), strict=True)
    return Places(*map(torch.tensor, (lines, nodes, tokens)))


def _batch(packs: Sequence[Pack], pad_token_id: int, model: nn.Module, autocast: Autocast) -> dict[str, Tensor]:
    """``input_ids``, ``position_ids`` (B, T) and an additive ``attention_mask`` (B, 1, T, T) of some packs."""
    size = max(map(len, packs))
    ids = torch.full((len(packs), size), pad_token_id)
    positions = torch.zeros(len(packs), size, dtype=torch.int64)
    seen = torch.eye(size, dtype=torch.bool).repeat(len(packs), 1, 1)  # padding sees itself: not nothing, which is NaN
    for line, pack in enumerate(packs):
        ids[line, : len(pack)] = torch.tensor(pack.ids)
        for begin, end, after in pack.branches:
            first = 0
            if after >= 0:
                seen[line, begin:end, :begin] = seen[line, after, :begin]
                first = int(positions[line, after]) + 1
            seen[line, begin:end, begin:end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
            positions[line, begin:end] = torch.arange(first, first + end - begin)
    dtype = dtype_of(model, autocast)
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
    return to_device({"input_ids": ids, "position_ids": positions, "attention_mask": mask}, model)


# ---- which models ----------------------------------------------------------------------------------------------------


def _reads_packs(model: nn.Module, longest: Pack, pad_token_id: int, autocast: Autocast) -> bool:
    """Whether every answer of a pack gets what it gets alone; tried when a pack of such a length first comes.

    Of a recurrent model that is known: one whose weights are small yet would give every answer almost the same.
    """
    tried = _tried.setdefault(model, {})
    for length, found in tried.items():
        if (found and length >= len(longest)) or (not found and length <= len(longest)):
            return found
    found = not is_recurrent(model) and _as_alone(model, longest, pad_token_id, autocast)
    tried[len(longest)] = found
    return found


def is_recurrent(model: nn.Module) -> bool:
    """Whether a model of transformers carries a state from token to token, in some of its layers or in all.

    Families say so of themselves (``_is_stateful``), or by the types of their layers.
    """
    if any(getattr(module, "_is_stateful", False) for module in model.modules()):
        return True
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return not _RECURRENT.isdisjoint(getattr(text, "layer_types", None) or ())


def _as_alone(model: nn.Module, pack: Pack, pad_token_id: int, autocast: Autocast) -> bool:
    """The longest row and the same with another token in it, as one pack, against each alone.

    And the second beside that pack, with padding. They part after the prompt, but in the middle at the latest: a pack
    of answers of one token does not branch, and what it got would say nothing of one that does.
    """
    path = max(pack.paths, key=len)
    one = [*(pack.ids[node] for node in path), pad_token_id]  # the last token is not read
    branch = min(pack.prompt, len(path) // 2)
    other = [*one[:branch], 0 if one[branch] else 1, *one[branch + 1 :]]
    both, last = Pack(pack.prompt), Pack(pack.prompt)
    for to, rows in ((both, (one, other)), (last, (other,))):
        for index, ids in enumerate(rows):
            to.add(index, ids, ids)

    def alone(row: Sequence[int]) -> Tensor:
        ids = torch.tensor([row[:-1]])
        with autocast():
            batch: Mapping[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            return logits_of(model, to_device(batch, model))[0, branch:]

    try:
        with frozen(model):
            expected = [alone(one), alone(other)]
            with autocast():
                found = logits_of(model, _batch([both, last], pad_token_id, model, autocast))
            answers = [found[0, both.paths[0]], found[0, both.paths[1]], found[1, last.paths[0]]]
            most = tolerance(dtype_of(model, autocast))
            return all(
                moved(sampled(ours[branch:]), sampled(theirs)) <= most
                for ours, theirs in zip(answers, [*expected, expected[1]], strict=True)
            )
    except torch.OutOfMemoryError:
        raise
    except ERRORS:
        return False
