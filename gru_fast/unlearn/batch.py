"""What a method sees of a model: log-probabilities of the labels, or hidden states, forwarded when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100  # a label that is not scored


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


def label_scores(logits: Tensor, labels: Tensor, reference: Tensor | None = None) -> Scores:
    """Scores of ``labels`` under a causal model's ``logits``: position t predicts label t + 1.

    Args:
        logits: (B, T, V), any float dtype; the softmax is taken in float32 at least, of labelled positions only.
        labels: (B, T) int64, -100 where nothing is scored. Label 0 has no prediction and never counts.
        reference: (B,), see :class:`Scores`.
    """
    targets = labels[:, 1:]
    scored = targets != IGNORE_INDEX
    if not bool(scored.any()):
        raise ValueError(
            f"labels: no token of the {labels.shape[0]} sequences is scored; are they longer than max_length before "
            "the answer begins?"
        )
    picked = logits[:, :-1][scored]
    picked = picked.to(torch.promote_types(picked.dtype, torch.float32))
    nll = F.cross_entropy(picked, targets[scored], reduction="none")
    return Scores(-nll, scored.nonzero()[:, 0], labels.shape[0], reference)


class Batch:
    """One micro-batch of a step. Each part is forwarded when it is first asked for, and only then.

    Args:
        parts: tokenized parts by name ("forget", "retain", "idk"), each with ``input_ids``, ``attention_mask``,
            ``labels`` of shape (B, T) and, where a method asked for it, ``reference_log_probs`` of shape (B,).
        forward: part -> its :class:`Scores` under the model in training.
        divergence: part -> KL(reference, model), a scalar; None where the method needs none.
        hidden: part -> (B, T, D) hidden states of the model in training; None where the method needs none.
        reference_hidden: part -> those of the model before unlearning, without gradient; None likewise.
    """

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, Tensor]],
        forward: Callable[[Mapping[str, Tensor]], Scores],
        divergence: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
        *,
        hidden: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
        reference_hidden: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
    ) -> None:
        self._parts = parts
        self._forward = forward
        self._divergence = divergence
        self._hidden = hidden
        self._reference_hidden = reference_hidden

    @cached_property
    def forget(self) -> Scores:
        """Questions to forget with their true answers."""
        return self._forward(self._part("forget"))

    @cached_property
    def retain(self) -> Scores:
        """Data to keep."""
        return self._forward(self._part("retain"))

    @cached_property
    def idk(self) -> Scores:
        """Questions to forget, answered "I don't know"."""
        return self._forward(self._part("idk"))

    @cached_property
    def retain_kl(self) -> Tensor:
        """Scalar: KL(p_ref, p) on the retain part."""
        if self._divergence is None:
            raise ValueError("retain_kl: no reference model; the method must set `reference_model = True`")
        return self._divergence(self._part("retain"))

    def hidden_states(self, part: str) -> Tensor:
        """(B, T, D) output of the method's :meth:`~gru_fast.unlearn.methods.Method.hidden_layer`; a forward pass each
        time."""
        if self._hidden is None:
            raise ValueError("hidden_states: none given; the method must set `hidden_states = True`")
        return self._hidden(self._part(part))

    def reference_hidden_states(self, part: str) -> Tensor:
        """As :meth:`hidden_states`, of the model before unlearning; no gradient."""
        if self._reference_hidden is None:
            raise ValueError(
                "reference_hidden_states: none given; the method must set `hidden_states = True` and "
                "`reference_model = True`"
            )
        return self._reference_hidden(self._part(part))

    def labelled(self, part: str) -> Tensor:
        """(B, T) bool: whether the token at a position is a label, at its own position (not that of its prediction)."""
        return self._part(part)["labels"] != IGNORE_INDEX

    def num_labels(self, part: str) -> int:
        """Number of scored label tokens of a part; no forward."""
        return int((self._part(part)["labels"][:, 1:] != IGNORE_INDEX).sum())

    def _part(self, name: str) -> Mapping[str, Tensor]:
        if name not in self._parts:
            raise ValueError(f'batch: no part "{name}" (it has {", ".join(self._parts)})')
        return self._parts[name]
