"""Tokenized sequences: ids and labels, checked, hashed, and collated into batches."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, overload

import torch
from torch import Tensor

from gru_fast.data.hashes import joined_hash

IGNORE_INDEX = -100  # a label that is not scored


class Encoded(TypedDict):
    """One tokenized sequence: ids, and labels of the same length, -100 where a token is not scored."""

    input_ids: list[int]
    labels: list[int]


class ScoredEncoded(Encoded, total=False):
    """An :class:`Encoded` as a dataset gives it out, with its log p under the model before unlearning if known."""

    reference_log_probs: float


class NamedEncoded(Encoded, total=False):
    """An :class:`Encoded` that says which document it is of.

    Args:
        document: its name, and the piece, for people.
        piece_of, index: the document's id, and the number of the piece in it, from 0.
        kind: of the document: "text", "pair", "chat".
        question: what of it was put through the template; not there where nothing was.
    """

    document: str
    piece_of: str
    index: int
    kind: str
    question: str


class LazyRows(Sequence[Encoded]):
    """Rows that are tokenized when they are read, for data of which a run reads a small part.

    Args:
        texts: whatever ``encode`` takes, one a row.
        encode: a text as tokens; picklable if workers are spawned.
        name: of the data, for messages about a row.
        max_length: tokens that a row has at most, and ``option``, the flag that says so; None: not known.

    Raises:
        ValueError: on reading a row, what :class:`~gru_fast.data.pairs.UnlearnDataset` would say of it.
    """

    def __init__(
        self,
        texts: Sequence[Any],
        encode: Callable[[Any], Encoded],
        name: str = "rows",
        max_length: int | None = None,
        option: str = "--max-length",
    ) -> None:
        self._texts = texts
        self._encode = encode
        self._name = name
        self.max_length = max_length
        self.option = option

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | Sequence[Encoded]:
        if isinstance(index, slice):
            return LazyRows(self._texts[index], self._encode, self._name, self.max_length, self.option)
        row = self._encode(self._texts[index])
        check_row(f"{self._name}[{index}]", row)
        return row


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


def _all_have(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    have = sum(key in row for row in rows)
    if have not in {0, len(rows)}:
        index = next(i for i, row in enumerate(rows) if key not in row)
        raise ValueError(
            f'rows[{index}]: expected "{key}" as in the other rows of the batch, got {", ".join(rows[index])}'
        )
    return have > 0


def check_rows(part: str, rows: Sequence[Encoded]) -> None:
    if len(rows) == 0:
        hint = ", or None where the method needs none" if part == "retain" else "; is it the right split?"
        raise ValueError(f"{part}: expected at least one row, got an empty set{hint}")
    if isinstance(rows, LazyRows):
        return  # each is checked when it is read
    for index in range(len(rows)):
        check_row(f"{part}[{index}]", rows[index])


def check_row(label: str, row: Mapping[str, Any]) -> None:
    missing = [key for key in ("input_ids", "labels") if key not in row]
    if missing:
        raise ValueError(
            f"{label}: expected input_ids and labels, got {', '.join(row) or 'nothing'}; tokenize it first"
        )
    _check_lengths(label, row)
    if not num_labels(row):
        raise ValueError(
            f"{label}: none of its {len(row['input_ids'])} tokens is scored; raise max_length (the answer may have "
            "been cut off) or leave the row out"
        )


def num_labels(row: Mapping[str, Any]) -> int:
    """Label tokens of a sequence that are scored; label 0 has no prediction and never counts."""
    return sum(label != IGNORE_INDEX for label in row["labels"][1:])


def _check_lengths(label: str, row: Mapping[str, Any]) -> None:
    if len(row["labels"]) != len(row["input_ids"]):
        raise ValueError(
            f"{label}: expected one label per token, got {len(row['labels'])} labels for {len(row['input_ids'])} tokens"
        )


def rows_hash(rows: Sequence[Encoded]) -> str:
    """128-bit hash of sequences in their order, as 32 hex digits, by which a run says what it was trained on."""
    return joined_hash(map(content_hash, rows), num_bytes=16)


def content_hash(row: Encoded) -> str:
    """128-bit hash of a sequence's ids and labels, as 32 hex digits."""
    ids, labels = array("q", row["input_ids"]), array("q", row["labels"])
    digest = hashlib.blake2b(len(ids).to_bytes(8, "little"), digest_size=16)
    digest.update(ids.tobytes())
    digest.update(labels.tobytes())
    return digest.hexdigest()
