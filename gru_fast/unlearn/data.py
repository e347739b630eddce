"""Paired data: each row to forget comes with one row to keep and, where asked for, an "I don't know" answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gru_fast.unlearn.batch import IGNORE_INDEX

if TYPE_CHECKING:
    from gru_fast.unlearn.references import ReferenceLogProbs


class Encoded(TypedDict):
    """One tokenized sequence: ids, and labels of the same length, -100 where a token is not scored."""

    input_ids: list[int]
    labels: list[int]


class ScoredEncoded(Encoded, total=False):
    """An :class:`Encoded` as a dataset gives it out, with its log p under the model before unlearning if known."""

    reference_log_probs: float


class LazyRows(Sequence[Encoded]):
    """Rows that are tokenized when they are read, for data of which a run reads a small part.

    Args:
        texts: whatever ``encode`` takes, one a row.
        encode: a text as tokens; picklable if workers are spawned.
        name: of the data, for messages about a row.

    Raises:
        ValueError: on reading a row, what :class:`UnlearnDataset` would say of it.
    """

    def __init__(self, texts: Sequence[Any], encode: Callable[[Any], Encoded], name: str = "rows") -> None:
        self._texts = texts
        self._encode = encode
        self._name = name

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | Sequence[Encoded]:
        if isinstance(index, slice):
            return LazyRows(self._texts[index], self._encode, self._name)
        row = self._encode(self._texts[index])
        _check_row(f"{self._name}[{index}]", row)
        return row


class UnlearnDataset(Dataset[dict[str, ScoredEncoded]]):
    """Rows to forget, each with a row to keep drawn uniformly at random, anew in every epoch.

    ``dataset[i]`` is ``{"forget": ..., "retain": ..., "idk": ...}``, the last two where there is such data. The draw is
    a pure function of (seed, epoch, i): a resumed run, any number of workers and any order of reading see the same
    pairs. An epoch is one pass over the forget rows (the public code, TOFU and the unified framework alike).

    Args:
        forget: the rows to forget, with their true answers.
        retain: the rows to keep; None where the method needs none.
        idk: ``idk(i, draw)`` is question i with an "I don't know" answer; ``draw`` is uniform in 0..2**63-1, of which
            it takes the remainder modulo the number of answers. It must be a pure function, and picklable if workers
            are spawned.
        seed: of the draws.

    Raises:
        ValueError: an empty part, a row whose labels do not fit its ids, or a row without a scored label.

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
    ) -> None:
        _check_rows("forget", forget)
        if retain is not None:
            _check_rows("retain", retain)
        self.forget = forget
        self.retain = retain
        self.idk = idk
        self.seed = int(seed)
        self.references: ReferenceLogProbs | None = None
        # In shared memory: workers that outlive an epoch (persistent_workers) must see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def parts(self) -> tuple[str, ...]:
        """What an item holds: "forget", and "retain" and "idk" where given."""
        optional = {"retain": self.retain, "idk": self.idk}
        return ("forget", *(name for name, source in optional.items() if source is not None))

    @property
    def epoch(self) -> int:
        """The epoch whose pairs are given out, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose pairs are given out; workers that already run see it too."""
        self._epoch.fill_(int(epoch))

    def attach(self, references: ReferenceLogProbs | None) -> UnlearnDataset:
        """From now on the parts that ``references`` covers carry ``reference_log_probs``. Returns itself."""
        self.references = references
        return self

    def encoded(self, part: str, index: int, epoch: int | None = None) -> Encoded:
        """One part of one row as tokens; ``epoch`` None: the current one."""
        epoch = self.epoch if epoch is None else epoch
        if part == "forget":
            return self.forget[index]
        if part == "retain" and self.retain is not None:
            # A 64-bit draw times n, shifted down, is uniform to n / 2**64.
            return self.retain[self._draw(part, index, epoch) * len(self.retain) >> 64]
        if part == "idk" and self.idk is not None:
            row = self.idk(index, self._draw(part, index, epoch) >> 1)
            _check_row(f"idk({index}, ...)", row)
            return row
        raise ValueError(
            f'part: expected one of {", ".join(self.parts)}, got "{part}"; give UnlearnDataset the data for it'
        )

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, index: int) -> dict[str, ScoredEncoded]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: expected -{len(self)}..{len(self) - 1}, got {index}")
        index = int(index) % len(self)
        epoch = self.epoch
        return {part: self._scored(part, self.encoded(part, index, epoch)) for part in self.parts}

    def _scored(self, part: str, row: Encoded) -> ScoredEncoded:
        item: ScoredEncoded = {"input_ids": row["input_ids"], "labels": row["labels"]}
        if self.references is not None and part in self.references.parts:
            item["reference_log_probs"] = self.references[row]
        return item

    def _draw(self, part: str, index: int, epoch: int) -> int:
        """64 random bits that depend on nothing but (seed, epoch, index, part)."""
        text = f"{self.seed}/{epoch}/{index}/{part}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    def __repr__(self) -> str:
        retain = f", {len(self.retain)} to retain" if self.retain is not None else ""
        idk = ", idk answers" if self.idk is not None else ""
        return f"{type(self).__name__}({len(self)} rows to forget{retain}{idk}, seed {self.seed})"


@dataclass(frozen=True)
class SequenceCollator:
    """Rows of tokens -> one batch, padded to the longest of them.

    Args:
        pad_token_id: fills ``input_ids``. It may equal the end-of-sequence token: the attention mask comes from the
            lengths, never from the ids, so that a real end-of-sequence token stays attended and scored.
        padding_side: "right" for losses, "left" for generation.

    ``collator(rows)`` takes rows with ``input_ids`` and, all or none of them, ``labels`` and ``reference_log_probs``;
    other keys are left out. It returns ``input_ids`` and ``attention_mask`` (1 attended, 0 padding), int64 (B, T); with
    labels, ``labels``, int64 (B, T), -100 on padding; with references, ``reference_log_probs``, float32 (B,).

    >>> SequenceCollator(0)([{"input_ids": [5, 6]}, {"input_ids": [7]}])["attention_mask"]
    tensor([[1, 1],
            [1, 0]])
    """

    pad_token_id: int
    padding_side: Literal["right", "left"] = "right"

    def __post_init__(self) -> None:
        if isinstance(self.pad_token_id, bool) or not isinstance(self.pad_token_id, int):
            raise TypeError(
                f"pad_token_id: expected an integer, got {self.pad_token_id!r}; give the tokenizer a pad token "
                "(tokenizer.pad_token = tokenizer.eos_token serves)"
            )
        if self.padding_side not in {"right", "left"}:
            raise ValueError(f'padding_side: expected "right" or "left", got {self.padding_side!r}')

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        if not rows:
            raise ValueError("rows: expected at least one sequence to collate, got none")
        ids = [row["input_ids"] for row in rows]
        batch = {
            "input_ids": self._pad(ids, self.pad_token_id),
            "attention_mask": self._pad([[1] * len(row) for row in ids], 0),
        }
        if _all_have(rows, "labels"):
            for index, row in enumerate(rows):
                _check_lengths(f"rows[{index}]", row)
            batch["labels"] = self._pad([row["labels"] for row in rows], IGNORE_INDEX)
        if _all_have(rows, "reference_log_probs"):
            values = [float(row["reference_log_probs"]) for row in rows]
            batch["reference_log_probs"] = torch.tensor(values, dtype=torch.float32)
        return batch

    def _pad(self, rows: Sequence[Sequence[int]], value: int) -> Tensor:
        """(B, longest) int64."""
        width = max(len(row) for row in rows)
        padded = torch.full((len(rows), width), value, dtype=torch.int64)
        for index, row in enumerate(rows):
            start = width - len(row) if self.padding_side == "left" else 0
            padded[index, start : start + len(row)] = torch.as_tensor(row, dtype=torch.int64)
        return padded


@dataclass(frozen=True)
class PairCollator:
    """Items of an :class:`UnlearnDataset` -> ``{part: batch}``, each part padded on the right by itself.

    >>> row = {"input_ids": [5, 6], "labels": [-100, 6]}
    >>> PairCollator(pad_token_id=0)([{"forget": row}])["forget"]["labels"]
    tensor([[-100,    6]])
    """

    pad_token_id: int

    def __post_init__(self) -> None:
        SequenceCollator(self.pad_token_id)  # its check, when the collator is made and not in a worker

    def __call__(self, items: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Tensor]]:
        if not items:
            raise ValueError("items: expected at least one item to collate, got none")
        collate = SequenceCollator(self.pad_token_id)
        for index, item in enumerate(items):
            if item.keys() != items[0].keys():
                raise ValueError(f"items[{index}]: expected the parts {', '.join(items[0])}, got {', '.join(item)}")
        return {part: collate([item[part] for item in items]) for part in items[0]}


def _all_have(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    have = sum(key in row for row in rows)
    if have not in {0, len(rows)}:
        index = next(i for i, row in enumerate(rows) if key not in row)
        raise ValueError(
            f'rows[{index}]: expected "{key}" as in the other rows of the batch, got {", ".join(rows[index])}'
        )
    return have > 0


def _check_rows(part: str, rows: Sequence[Encoded]) -> None:
    if len(rows) == 0:
        hint = ", or None where the method needs none" if part == "retain" else "; is it the right split?"
        raise ValueError(f"{part}: expected at least one row, got an empty set{hint}")
    if isinstance(rows, LazyRows):
        return  # each is checked when it is read
    for index in range(len(rows)):
        _check_row(f"{part}[{index}]", rows[index])


def _check_row(label: str, row: Mapping[str, Any]) -> None:
    missing = [key for key in ("input_ids", "labels") if key not in row]
    if missing:
        raise ValueError(
            f"{label}: expected input_ids and labels, got {', '.join(row) or 'nothing'}; tokenize it first"
        )
    _check_lengths(label, row)
    # Label 0 has no prediction: it never counts.
    if all(token == IGNORE_INDEX for token in row["labels"][1:]):
        raise ValueError(
            f"{label}: none of its {len(row['input_ids'])} tokens is scored; raise max_length (the answer may have "
            "been cut off) or leave the row out"
        )


def _check_lengths(label: str, row: Mapping[str, Any]) -> None:
    if len(row["labels"]) != len(row["input_ids"]):
        raise ValueError(
            f"{label}: expected one label per token, got {len(row['labels'])} labels for {len(row['input_ids'])} tokens"
        )
