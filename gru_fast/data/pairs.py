"""Paired data: each row to forget comes with one row to keep and, where asked for, an "I don't know" answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gru_fast.data.limits import Limits
from gru_fast.data.sequences import Encoded, LazyRows, ScoredEncoded, SequenceCollator, check_row, check_rows

_PARTS = ("forget", "retain", "idk")


class References(Protocol):
    """Log p of sequences under the model before unlearning: :class:`gru_fast.unlearn.ReferenceLogProbs`."""

    parts: tuple[str, ...]

    def __getitem__(self, row: Encoded) -> float: ...


class UnlearnDataset(Dataset[dict[str, Any]]):
    """Rows to forget, each with a row to keep drawn uniformly at random, anew in every epoch.

    ``dataset[i]`` is ``{"forget": ..., "retain": ..., "idk": ...}``, the last two where there is such data. The draw is
    a pure function of (seed, epoch, i): a resumed run, any number of workers and any order of reading see the same
    pairs. An epoch is one pass over the forget rows (the public code, TOFU and the unified framework alike). After
    :meth:`draw_retain` an item's "retain" is a list of several rows.

    Args:
        forget: the rows to forget, with their true answers.
        retain: the rows to keep; None where the method needs none.
        idk: ``idk(i, draw)`` is question i with an "I don't know" answer; ``draw`` is uniform in 0..2**63-1, of which
            it takes the remainder modulo the number of answers. It must be a pure function, and picklable if workers
            are spawned.
        seed: of the draws.
        sets: further rows to keep, by the name of their part: retain sets of their own, for ``retain_sets`` of
            :class:`gru_fast.unlearn.GRUOptions`. Each item has a row of each, drawn as those of ``retain`` are.

    Raises:
        ValueError: an empty part, a set named as another part, a row whose labels do not fit its ids, or a row without
            a scored label.

    >>> row = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    >>> dataset = UnlearnDataset([row], retain=[row, row])
    >>> len(dataset), sorted(dataset[0])
    (1, ['forget', 'retain'])
    """

    def __init__(
        self,
        forget: Sequence[Encoded],
        retain: Sequence[Encoded] | None = None,
        idk: Callable[[int, int], Encoded] | None = None,
        *,
        seed: int = 0,
        sets: Mapping[str, Sequence[Encoded]] | None = None,
    ) -> None:
        check_rows("forget", forget)
        if retain is not None:
            check_rows("retain", retain)
        self.sets = dict(sets or {})
        for name, rows in self.sets.items():
            if name in _PARTS:
                raise ValueError(f'sets: expected other names than {", ".join(_PARTS)}, got "{name}"')
            check_rows(name, rows)
        self.forget = forget
        self.retain = retain
        self.idk = idk
        self.seed = int(seed)
        self.references: References | None = None
        self.limits = Limits()
        self.retain_per_row: int | None = None
        # In shared memory: workers that outlive an epoch (persistent_workers) must see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def parts(self) -> tuple[str, ...]:
        """What an item holds: "forget", "retain" and "idk" where given, and the further sets."""
        optional = {"retain": self.retain, "idk": self.idk}
        return ("forget", *(name for name, source in optional.items() if source is not None), *self.sets)

    @property
    def epoch(self) -> int:
        """The epoch whose pairs are given out, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose pairs are given out; workers that already run see it too."""
        self._epoch.fill_(int(epoch))

    def draw_retain(self, per_row: int | None) -> UnlearnDataset:
        """From now on each item has a list of ``per_row`` rows to keep, its first the one that it has alone (None).

        Returns itself. Call it before workers are started.
        """
        if per_row is not None and per_row < 1:
            raise ValueError(f"per_row: expected at least 1, or None, got {per_row}")
        self.retain_per_row = per_row
        return self

    def draws(self, part: str) -> int:
        """How many rows of a part an item has."""
        return self.retain_per_row or 1 if part == "retain" else 1

    def attach(self, references: References | None) -> UnlearnDataset:
        """From now on the parts that ``references`` covers carry ``reference_log_probs``. Returns itself.

        A row that has a value of its own under that name keeps it.
        """
        self.references = references
        return self

    def fit(self, limits: Limits) -> UnlearnDataset:
        """Refuses rows that a model cannot read, those that are tokenized later when they are read. Returns itself.

        Raises:
            ValueError: naming the row, see :meth:`gru_fast.data.limits.Limits.check`.
        """
        self.limits = limits
        for part, rows in (("forget", self.forget), ("retain", self.retain), *self.sets.items()):
            if isinstance(rows, LazyRows) and rows.max_length is not None:
                # Only if some could be too long are they tokenized for it, up to the first that is.
                if limits.positions is not None and rows.max_length > limits.positions:
                    limits.check_rows(part, rows, rows.option)
            elif rows is not None:
                limits.check_rows(part, rows)
        return self

    def encoded(self, part: str, index: int, epoch: int | None = None, draw: int = 0) -> Encoded:
        """One part of one row as tokens. ``epoch`` None: the current one; ``draw``: which of its rows to keep.

        Of the rows to keep any epoch and index will do, negative ones too: each has draws of its own.
        """
        epoch = self.epoch if epoch is None else epoch
        if part == "forget":
            return self._of(part, self.forget, index)
        if part == "retain" and self.retain is not None:
            # A 64-bit draw times n, shifted down, is uniform to n / 2**64.
            drawn = self._draw(part if draw == 0 else f"{part}+{draw}", index, epoch)
            return self._of(part, self.retain, drawn * len(self.retain) >> 64)
        if part in self.sets:
            return self._of(part, self.sets[part], self._draw(part, index, epoch) * len(self.sets[part]) >> 64)
        if part == "idk" and self.idk is not None:
            row = self.idk(index, self._draw(part, index, epoch) >> 1)
            check_row(f"idk({index}, ...)", row)
            self.limits.check(f"idk({index}, ...)", row["input_ids"])
            return row
        raise ValueError(
            f'part: expected one of {", ".join(self.parts)}, got "{part}"; give UnlearnDataset the data for it'
        )

    def _of(self, part: str, rows: Sequence[Encoded], index: int) -> Encoded:
        row = rows[index]
        if isinstance(rows, LazyRows):  # the others were looked at in fit()
            self.limits.check(f"{part}[{index}]", row["input_ids"], option=rows.option)
        return row

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: expected -{len(self)}..{len(self) - 1}, got {index}")
        index = int(index) % len(self)
        epoch = self.epoch
        item: dict[str, Any] = {part: self._scored(part, self.encoded(part, index, epoch)) for part in self.parts}
        if self.retain_per_row is not None and "retain" in item:
            others = (self.encoded("retain", index, epoch, draw) for draw in range(1, self.retain_per_row))
            item["retain"] = [item["retain"], *(self._scored("retain", row) for row in others)]
        return item

    def _scored(self, part: str, row: Encoded) -> ScoredEncoded:
        item: ScoredEncoded = {"input_ids": row["input_ids"], "labels": row["labels"]}
        if self.references is not None and part in self.references.parts:
            # A row may have one of its own, of a model before this one.
            own = row.get("reference_log_probs")
            item["reference_log_probs"] = self.references[row] if own is None else own  # type: ignore[typeddict-item]
        return item

    def _draw(self, part: str, index: int, epoch: int) -> int:
        """64 random bits that depend on nothing but (seed, epoch, index, part)."""
        text = f"{self.seed}/{epoch}/{index}/{part}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    def __repr__(self) -> str:
        retain = f", {len(self.retain)} to retain" if self.retain is not None else ""
        retain += "".join(f", {len(rows)} of {name}" for name, rows in self.sets.items())
        idk = ", idk answers" if self.idk is not None else ""
        return f"{type(self).__name__}({len(self)} rows to forget{retain}{idk}, seed {self.seed})"


@dataclass(frozen=True)
class PairCollator:
    """Items of an :class:`UnlearnDataset` -> ``{part: batch}``, each part padded on the right by itself.

    Of a part with several rows an item the batch has all, first that of every item, then the second of every item, and
    so on; ``retain_rows``: how many of these at most.

    >>> row = {"input_ids": [5, 6], "labels": [-100, 6]}
    >>> PairCollator(pad_token_id=0)([{"forget": row}])["forget"]["labels"]
    tensor([[-100,    6]])
    """

    pad_token_id: int
    retain_rows: int | None = None

    def __post_init__(self) -> None:
        SequenceCollator(self.pad_token_id)  # its check, when the collator is made and not in a worker

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
        if not items:
            raise ValueError("items: expected at least one item to collate, got none")
        collate = SequenceCollator(self.pad_token_id)
        for index, item in enumerate(items):
            if item.keys() != items[0].keys():
                raise ValueError(f"items[{index}]: expected the parts {', '.join(items[0])}, got {', '.join(item)}")
        return {part: collate(self._rows([item[part] for item in items])) for part in items[0]}

    def _rows(self, found: list[Any]) -> list[Mapping[str, Any]]:
        if isinstance(found[0], Mapping):
            return found
        return [row for rows in zip(*found, strict=True) for row in rows][: self.retain_rows]
