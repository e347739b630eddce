"""What a causal language model says of sequences: log-probabilities of their label tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from gru_fast.data.sequences import IGNORE_INDEX


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of the labels of B sequences, natural logarithm, float32 (float64 under a float64 model).

    Args:
        log_probs: (N,) log p of every label token of the batch, sequence after sequence.
        rows: (N,) int64, the sequence each belongs to, in 0..B-1.
        num_rows: B.
        reference: (B,) sum of log p per sequence under the model before unlearning, or None. No gradient.
    """

    log_probs: Tensor
    rows: Tensor
    num_rows: int
    reference: Tensor | None = None

    @cached_property
    def counts(self) -> Tensor:
        """(B,) number of label tokens per sequence."""
        return self._members.sum(dim=1)

    @cached_property
    def sequence_log_probs(self) -> Tensor:
        """(B,) sum of log p over the label tokens of each sequence (-NLL_i)."""
        # Not index_add: on CUDA its sum differs from run to run, and a resumed run must not.
        return torch.where(self._members, self.log_probs, 0.0).sum(dim=1)

    @cached_property
    def _members(self) -> Tensor:
        """(B, N) whether a label token belongs to a sequence."""
        return self.rows == torch.arange(self.num_rows, device=self.rows.device)[:, None]

    @property
    def mean_nll(self) -> Tensor:
        """Scalar: mean of -log p over all label tokens of the batch (a model's own loss)."""
        return -self.log_probs.mean()

    @property
    def log_ratios(self) -> Tensor:
        """(B,) log p(sequence) - log p_ref(sequence)."""
        if self.reference is None:
            raise ValueError(
                "log_ratios: this batch has no reference log-probabilities; the method must name the part in "
                "`reference_log_probs`, and the data must hold them (see gru_fast.unlearn.references)"
            )
        return self.sequence_log_probs - self.reference


@dataclass(frozen=True)
class Places:
    """N places in a batch, and a token that may come after each. All (N,), int64: row, column, token."""

    rows: Tensor
    columns: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> Places:
        """The same on a device."""
        return Places(self.rows.to(device), self.columns.to(device), self.tokens.to(device))


def positions_scored(labels: Tensor) -> Places:
    """The places whose next token is a label, row after row.

    Args:
        labels: (B, T) int64, -100 where nothing is scored. Label 0 has no prediction and never counts.

    Raises:
        ValueError: no token is scored.
    """
    targets = labels[:, 1:]
    rows, columns = (targets != IGNORE_INDEX).nonzero(as_tuple=True)
    if not len(rows):
        raise ValueError(
            f"labels: no token of the {labels.shape[0]} sequences is scored; are they longer than max_length before "
            "the answer begins?"
        )
    return Places(rows, columns, targets[rows, columns])


def log_probs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """(N,) log p of one token under each of N rows of logits, (N, V); the softmax is taken in float32 at least."""
    return -F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), tokens, reduction="none")


@dataclass(frozen=True)
class LabelLogits:
    """What a causal language model says where it predicts label tokens, sequence after sequence.

    Args:
        logits: (N, V), float32 at least.
        labels: (N,) int64, the token that is there.
        rows: (N,) int64, the sequence each belongs to.
    """

    logits: Tensor
    labels: Tensor
    rows: Tensor

    @property
    def places(self) -> Tensor:
        """(N,) int64: which label token of its sequence each is, from 0."""
        before = torch.searchsorted(self.rows, self.rows)  # how many tokens earlier sequences have: rows are sorted
        return torch.arange(len(self.rows), device=self.rows.device) - before


def label_logits(logits: Tensor, labels: Tensor) -> LabelLogits:
    """The logits that predict the ``labels``; arguments as of :func:`label_scores`."""
    at = positions_scored(labels)
    picked = logits[at.rows, at.columns]
    return LabelLogits(picked.to(torch.promote_types(picked.dtype, torch.float32)), at.tokens, at.rows)


def label_scores(logits: Tensor, labels: Tensor, reference: Tensor | None = None) -> Scores:
    """Scores of ``labels`` under a causal model's ``logits``: position t predicts label t + 1.

    Args:
        logits: (B, T, V), any float dtype; the softmax is taken in float32 at least, of labelled positions only.
        labels: (B, T) int64, -100 where nothing is scored. Label 0 has no prediction and never counts.
        reference: (B,), see :class:`Scores`.
    """
    at = positions_scored(labels)
    return Scores(log_probs_of(logits[at.rows, at.columns], at.tokens), at.rows, labels.shape[0], reference)
