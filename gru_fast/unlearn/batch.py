"""What a method sees of a model: log-probabilities of the labels, logits, hidden states, forwarded when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

from torch import Tensor

from gru_fast.data.sequences import IGNORE_INDEX
from gru_fast.models.scores import LabelLogits, Scores


class Batch:
    """One micro-batch of a step. Each part is forwarded when it is first asked for, and only then.

    Args:
        parts: tokenized parts by name ("forget", "retain", "idk"), each with ``input_ids``, ``attention_mask``,
            ``labels`` of shape (B, T) and, where a method asked for it, ``reference_log_probs`` of shape (B,).
        forward: part -> its :class:`Scores` under the model in training.
        divergence: part -> KL(reference, model), a scalar; None where the method needs none.
        hidden: part -> (B, T, D) hidden states of the model in training; None where the method needs none.
        reference_hidden: part -> those of the model before unlearning, without gradient; None likewise.
        logits: part -> the :class:`LabelLogits` of the model in training; None where the method needs none.
        reference_logits: part -> those of the model before unlearning, without gradient; None likewise.
        dual: the method's weight that follows the retain NLL; None likewise.
    """

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, Tensor]],
        forward: Callable[[Mapping[str, Tensor]], Scores],
        divergence: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
        *,
        hidden: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
        reference_hidden: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
        logits: Callable[[Mapping[str, Tensor]], LabelLogits] | None = None,
        reference_logits: Callable[[Mapping[str, Tensor]], LabelLogits] | None = None,
        dual: float | None = None,
    ) -> None:
        self._parts = parts
        self._forward = forward
        self._divergence = divergence
        self._hidden = hidden
        self._reference_hidden = reference_hidden
        self._logits = logits
        self._reference_logits = reference_logits
        self._dual = dual

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

    def label_logits(self, part: str) -> LabelLogits:
        """Logits over the whole vocabulary where the part's label tokens are predicted; a forward pass each time."""
        if self._logits is None:
            raise ValueError("label_logits: none given; the method must set `logits = True`")
        return self._logits(self._part(part))

    def reference_label_logits(self, part: str) -> LabelLogits:
        """As :meth:`label_logits`, of the model before unlearning; no gradient."""
        if self._reference_logits is None:
            raise ValueError(
                "reference_label_logits: none given; the method must set `logits = True` and `reference_model = True`"
            )
        return self._reference_logits(self._part(part))

    @property
    def dual(self) -> float:
        """The weight that follows the retain NLL, the same in all micro-batches of a step."""
        if self._dual is None:
            raise ValueError("dual: none given; the method must set `has_dual = True`")
        return self._dual

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
