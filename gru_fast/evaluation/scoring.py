"""What a model says of given sequences: log-probabilities of labels, spread over the vocabulary, gradient norms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gru_fast.data.sequences import IGNORE_INDEX, Encoded, SequenceCollator, num_labels
from gru_fast.metrics.scores import but_last
from gru_fast.models.forward import Autocast, logits_of, of_each_row, to_device
from gru_fast.models.frozen import frozen
from gru_fast.models.head import label_scores_of
from gru_fast.models.packs import log_probs_of_labels

_SURE = math.log(0.51)  # half of the probability, and what rounding may take
_MAX_ELEMENTS = 2**24  # of the vocabulary-wide tensors made at a time, beside the model's logits: 64 MiB in float32


class DivergedError(RuntimeError):
    """A model gives NaN or Inf."""


# ---- log-probabilities -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SequenceLoss:
    """Teacher-forced loss of one sequence: mean of -log p over its ``num_tokens`` label tokens, natural logarithm.

    Args:
        sure: of these, how many from the first on have more than half of the probability: the model would write them.
    """

    loss: float
    num_tokens: int
    sure: int = 0


def label_log_probs(
    model: Any, sequences: Sequence[Encoded], *, batch_size: int, pad_token_id: int, autocast: Autocast = nullcontext
) -> list[Tensor]:
    """log p of every label token given what comes before it, per sequence: float32 on the CPU, of shape (labels,).

    Sequences with one prompt share its work, see :mod:`gru_fast.models.packs`. The arguments are those of
    :func:`gru_fast.models.forward.of_each_row`, here and below.

    Raises:
        ValueError: a sequence without a label token.
    """
    return log_probs_of_labels(model, sequences, batch_size=batch_size, pad_token_id=pad_token_id, autocast=autocast)


def losses(
    model: Any, sequences: Sequence[Encoded], *, batch_size: int, pad_token_id: int, autocast: Autocast = nullcontext
) -> list[SequenceLoss]:
    """Mean loss of each sequence, see :func:`label_log_probs`. The mean is taken in float64.

    Raises:
        ValueError: a sequence without a label token; DivergedError: a loss that is NaN or Inf.
    """
    _check_labels(sequences)
    found = label_log_probs(model, sequences, batch_size=batch_size, pad_token_id=pad_token_id, autocast=autocast)
    result = [SequenceLoss(-float(row.double().mean()), len(row), _sure(row)) for row in found]
    check_finite([row.loss for row in result])
    return result


def _sure(log_probs: Tensor) -> int:
    """How many tokens from the first on are the most probable ones for certain."""
    is_open = (log_probs <= _SURE).nonzero()[:, 0]
    return int(is_open[0]) if len(is_open) else len(log_probs)


def check_finite(values: Sequence[float], what: str = "sequences") -> None:
    """Refuses what a diverged model says. ``what`` the values are of, for the message."""
    broken = sum(not math.isfinite(value) for value in values)
    if broken:
        raise DivergedError(
            f"the model gives NaN or Inf for {broken} of {len(values)} {what}; it has diverged (look at the run's "
            "losses), or its numbers do not fit float16 (use bfloat16 or float32)"
        )


def _check_labels(sequences: Sequence[Encoded]) -> None:
    for i, row in enumerate(sequences):
        if not num_labels(row):
            raise ValueError(f"sequences[{i}]: none of its {len(row['input_ids'])} tokens is scored")


# ---- token by token --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenScores:
    """Of the n label tokens of one sequence, float32 on the CPU, of shape (n,), natural logarithm.

    Args:
        log_probs: log p of the label given all before it.
        correct: bool, whether the label is the most probable token.
        means, variances: of log p over the vocabulary, under p.
    """

    log_probs: Tensor
    correct: Tensor
    means: Tensor
    variances: Tensor


def token_scores(
    model: Any, sequences: Sequence[Encoded], *, batch_size: int, pad_token_id: int, autocast: Autocast = nullcontext
) -> list[TokenScores]:
    """See :class:`TokenScores`. What is kept is four numbers a token; beside the model's own logits, 64 MiB at a time.

    Raises:
        ValueError: a sequence without a label token; DivergedError: NaN or Inf.
    """

    def read(batch: dict[str, Tensor]) -> Iterator[TokenScores]:
        logits = logits_of(model, batch)
        labels = batch["labels"].to(logits.device)  # offloaded shards are elsewhere than what they compute
        counts = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1).tolist()
        for log_probs, correct, means, variances in _scores_of_labels(logits, labels).cpu().split(counts, dim=1):
            yield TokenScores(log_probs, correct > 0, means, variances)

    _check_labels(sequences)
    found = of_each_row(model, sequences, read, batch_size=batch_size, pad_token_id=pad_token_id, autocast=autocast)
    check_finite([float(row.log_probs.sum()) for row in found])
    return found


def _scores_of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """(4, N) float32: log p, whether right, mean and variance over the vocabulary, sequence after sequence."""
    targets = labels[:, 1:]
    rows, columns = (targets != IGNORE_INDEX).nonzero(as_tuple=True)
    step = max(1, _MAX_ELEMENTS // logits.shape[-1])
    parts = []
    for start in range(0, len(rows), step):
        at = rows[start : start + step], columns[start : start + step]
        picked, wanted = logits[at], targets[at]
        correct = picked.argmax(dim=-1) == wanted
        log_probs = picked.to(torch.promote_types(picked.dtype, torch.float32)).log_softmax(dim=-1)
        of_labels = log_probs.gather(1, wanted[:, None])[:, 0]
        probs = log_probs.exp()
        # A token of probability 0 counts nothing, whatever its logarithm; -Inf times 0 would be NaN.
        log_probs.clamp_(min=-1e4)
        means = (probs * log_probs).sum(dim=-1)
        variances = (probs * (log_probs - means[:, None]).square()).sum(dim=-1)
        parts.append(torch.stack([of_labels, correct.to(of_labels.dtype), means, variances]).float())
    return torch.cat(parts, dim=1)


# ---- gradients -------------------------------------------------------------------------------------------------------


def gradient_norms(model: Any, sequences: Sequence[Encoded], *, autocast: Autocast = nullcontext) -> list[float]:
    """Per sequence, the mean over parameter tensors of the L2 norm of the gradient of its mean loss.

    The loss is the mean of -log p over the label tokens but the last (:func:`gru_fast.metrics.scores.but_last`). All
    parameters count, frozen or not. One backward pass a sequence; each gradient is dropped when its norm is known, so
    that there is never more than that of one parameter. Gradients that were there before come back.

    Raises:
        ValueError: a sequence without a label token; DivergedError: NaN or Inf.
    """
    _check_labels(sequences)
    found = []
    collate = SequenceCollator(pad_token_id=0)  # a sequence by itself has no padding
    with frozen(model), _norms_of_gradients(model) as norms, torch.enable_grad():
        for row in sequences:
            batch = to_device(collate([row]), model)
            with autocast():
                loss = -but_last(label_scores_of(model, batch).log_probs).mean()
            loss.backward()
            found.append(float(torch.stack([norm.cpu() for norm in norms]).mean()))
            norms.clear()
    check_finite(found)
    return found


@contextmanager
def _norms_of_gradients(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside: every parameter requires a gradient, whose norm goes to the list and which then is dropped."""
    params = [param for param in model.parameters() if param.is_floating_point()]
    before = [(param.requires_grad, param.grad) for param in params]
    norms: list[Tensor] = []

    def take(param: Tensor) -> None:
        if param.grad is not None:
            # Not norm(), which loses digits on long tensors on the CPU (findings/torch_cpu_norms_of_long_vectors.sh).
            norms.append(param.grad.to(torch.promote_types(param.dtype, torch.float32)).square().sum().sqrt())
        param.grad = None

    hooks = []
    try:
        for param in params:
            param.grad = None
            param.requires_grad_(True)
            hooks.append(param.register_post_accumulate_grad_hook(take))
        yield norms
    finally:
        for hook in hooks:
            hook.remove()
        for param, (requires_grad, grad) in zip(params, before, strict=True):
            param.requires_grad_(requires_grad)
            param.grad = grad
