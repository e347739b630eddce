"""A model run for what it says of labels, its head reading hidden states block by block (see vocabulary.py).

transformers' models call their head themselves, and may do something to its logits (a scale, a soft cap). So the head
is lent another ``forward`` for the call: inside, wrappers have put weights together, and whatever a wrapper hooks to
the model's outputs finds a tensor that depends on all that was used. What happens to the logits is found out once for
each model, from known numbers sent through in their place; a model that does something else gives whole logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gru_fast.core.sharded.shards import is_sharded
from gru_fast.models.batching import ERRORS
from gru_fast.models.forward import logits_of
from gru_fast.models.frozen import frozen
from gru_fast.models.partitioned import has_partitions
from gru_fast.models.scores import Places, Scores, log_probs_of, positions_scored
from gru_fast.models.vocabulary import AfterHead, Head, label_log_probs, mean_divergence

SMALL_LOGITS = 2**24  # elements of logits, at most, that are taken as a whole: 64 MiB in float32
_PROBES = (1.0 + 2.0**-12, -3.0 - 2.0**-12, 50.0 + 2.0**-12)  # no 16-bit numbers, so that a cast shows

# Model -> what it does to its logits; None: nothing that is known here.
_found: WeakKeyDictionary[nn.Module, AfterHead | None] = WeakKeyDictionary()

_Part = Mapping[str, Tensor]
_Read = Callable[[Tensor, Head], Tensor]  # hidden states (B, T, D) and the head -> (B, T), what becomes of them


def label_scores_of(model: nn.Module, part: _Part, params: Mapping[str, Tensor] | None = None) -> Scores:
    """What a model says of labels, see :func:`~gru_fast.models.scores.label_scores`; no whole logits if they are large.

    Args:
        model: a causal LM of transformers, with adapters or wrapped for distributed training or not.
        part: ``input_ids``, ``attention_mask``, ``labels``, (B, T); maybe ``reference_log_probs``, (B,).
        params: by name, instead of the model's own.

    Raises:
        ValueError: no token is scored.
    """
    at = positions_scored(part["labels"])
    log_probs = log_probs_after(model, part, at, params)
    return Scores(log_probs, at.rows.to(log_probs.device), len(part["labels"]), part.get("reference_log_probs"))


def log_probs_after(model: nn.Module, part: _Part, at: Places, params: Mapping[str, Tensor] | None = None) -> Tensor:
    """(N,) log p of the token ``at.tokens[n]`` after position ``at.columns[n]`` of row ``at.rows[n]``.

    Args: as of :func:`label_scores_of`; ``part`` needs no labels.
    """
    after = _after_head(model, part)
    if after is None:
        logits = logits_of(model, part, params)
        at = at.to(logits.device)
        return log_probs_of(logits[at.rows, at.columns], at.tokens)

    def read(hidden: Tensor, head: Head) -> Tensor:
        there = at.to(hidden.device)
        return label_log_probs(hidden[there.rows, there.columns], there.tokens, head)

    return _run(model, part, params, after, read)


@dataclass(frozen=True)
class HiddenStates:
    """What a model's head was given for a batch, (B, T, D), and the head, in place of logits to compare with."""

    hidden: Tensor
    head: Head

    def with_own_head(self) -> HiddenStates:
        """The same with a copy of the head's weights, which may then change."""
        weight, bias = self.head.weight, self.head.bias
        own = replace(self.head, weight=weight.detach().clone(), bias=None if bias is None else bias.detach().clone())
        return HiddenStates(self.hidden, own)


def reference_of(model: nn.Module, part: _Part, params: Mapping[str, Tensor] | None = None) -> HiddenStates | Tensor:
    """What :func:`divergence_of` compares with: hidden states where that is enough, else logits (B, T, V). No gradient.

    Args: as of :func:`label_scores_of`. The head's weights are kept as they are now, not copied.
    """
    after = None if _is_sharded(model) else _after_head(model, part)  # shards: the weights are gone after the call
    if after is None:
        return logits_of(model, part, params)
    found: list[HiddenStates] = []

    def read(hidden: Tensor, head: Head) -> Tensor:
        found.append(HiddenStates(hidden.detach(), head))
        return hidden.new_zeros(1)

    _run(model, part, params, after, read)
    return found[0]


def divergence_of(model: nn.Module, part: _Part, reference: HiddenStates, positions: Tensor | None = None) -> Tensor:
    """KL(p_ref, p), see :func:`gru_fast.unlearn.references.kl_divergence`, against :func:`reference_of` the same part.

    Args:
        positions: (B, T), nonzero where a position counts; None: all.
    """

    def read(hidden: Tensor, head: Head) -> Tensor:
        counted = slice(None) if positions is None else positions.bool().to(hidden.device)
        ours, theirs = hidden[counted], reference.hidden[counted]
        size = ours.shape[-1]
        return mean_divergence(ours.reshape(-1, size), head, theirs.reshape(-1, size), reference.head)[None]

    return _run(model, part, None, reference.head.after, read)[0]


# ---- the call --------------------------------------------------------------------------------------------------------


def _run(model: nn.Module, part: _Part, params: Mapping[str, Tensor] | None, after: AfterHead, read: _Read) -> Tensor:
    """What ``read`` makes of the hidden states, tied to the model's outputs."""
    results: list[Tensor] = []

    def instead(hidden: Tensor) -> Tensor:
        result = read(hidden, _head_of(head, hidden, after))
        results.append(result)
        # Of the shape of logits in all but the vocabulary, for whatever the model goes on to do with it. No view, which
        # FSDP2 would warn of.
        return result.sum().expand(*hidden.shape[:-1], 1).clone()

    head = _output_layer(model)
    with _lent(head, instead):
        output = logits_of(model, part, params)
    if len(results) != 1:
        raise RuntimeError(f"{type(model).__name__}: expected one call of its head, saw {len(results)}")
    tied: Tensor = _Tied.apply(results[0], output)
    return tied


class _Tied(torch.autograd.Function):
    """The first of two tensors; in the backward pass the second is passed through too, with a gradient of 0.

    FSDP2 puts weights together again when the gradient of a model's output comes.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, output: Tensor) -> Tensor:
        ctx.like = output.shape, output.dtype, output.device
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype, device = ctx.like
        return grad, torch.zeros(shape, dtype=dtype, device=device)


@contextmanager
def _lent(head: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, a module has another ``forward``."""
    own = vars(head).get("forward")
    head.forward = forward
    try:
        yield
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own


def _head_of(head: nn.Module, hidden: Tensor, after: AfterHead) -> Head:
    """The head as it is in a call: its weights together, or those of a functional call."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    bias = getattr(head, "bias", None)
    return Head(head.weight, bias, after, dtype)  # type: ignore[arg-type]


# ---- which models ----------------------------------------------------------------------------------------------------


def _after_head(model: nn.Module, part: _Part) -> AfterHead | None:
    """What a model does to its logits, where they are to be read in blocks; None where they are taken as a whole."""
    head = _output_layer(model)
    if head is None or not _is_plain(model, head):
        return None
    # Sharded, the processes must do the same, whatever the length of their rows.
    if not _is_sharded(model) and part["input_ids"].numel() * head.out_features <= SMALL_LOGITS:
        return None
    inner = _unwrapped(model)
    if inner not in _found:
        _found[inner] = _try_out(inner, head, part)
    return _found[inner]


def _try_out(model: nn.Module, head: nn.Linear, part: _Part) -> AfterHead | None:
    """Sends known numbers through what follows the head, in a pass over two tokens."""
    ids = part["input_ids"][:1, :2]
    some = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    calls: list[bool] = []

    def instead(hidden: Tensor) -> Tensor:
        calls.append(is_sharded(head.weight) or hidden.shape[:-1] != ids.shape)
        return hidden.new_tensor(_PROBES, dtype=torch.float32).expand(*hidden.shape[:-1], len(_PROBES)).clone()

    try:
        with frozen(model), _lent(head, instead):
            output = logits_of(model, some)
    except torch.OutOfMemoryError:
        raise
    except ERRORS:
        return None
    if calls != [False] or output.shape != (*ids.shape, len(_PROBES)):
        return None
    return _recognised(output[0, 0].tolist())


def _recognised(found: list[float]) -> AfterHead | None:
    """What makes ``found`` of the probes."""
    if found == [float(torch.tensor(probe)) for probe in _PROBES]:
        return AfterHead()
    scale = found[0] / _PROBES[0]
    candidates = [AfterHead(scale=scale)]
    if 0.0 < found[2] < _PROBES[2]:
        candidates.append(AfterHead(cap=_cap_of(found[2])))
    for candidate in candidates:
        expected = candidate(torch.tensor(_PROBES))
        if torch.allclose(expected, torch.tensor(found), rtol=1e-6, atol=0.0):
            return candidate
    return None


def _cap_of(found: float) -> float:
    """The cap under which the largest probe becomes ``found``, by bisection: it grows with the cap."""
    low, high = found, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        value = float(AfterHead(cap=middle)(torch.tensor([_PROBES[2]], dtype=torch.float64)))
        low, high = (middle, high) if value < found else (low, middle)
    return float(f"{low:.4g}")


def _output_layer(model: nn.Module) -> Any:
    """The head of a causal LM of transformers, maybe wrapped; None where there is none."""
    inner = _unwrapped(model)
    ask = getattr(inner, "get_output_embeddings", None)
    return None if ask is None else ask()


def _is_plain(model: nn.Module, head: nn.Module) -> bool:
    """Whether the head is a linear layer and nothing but, in a model that calls whatever forward it has."""
    is_linear = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and "forward" not in vars(head)
    return is_linear and not any(map(_is_fixed, (model, _unwrapped(model))))


def _is_fixed(model: nn.Module) -> bool:
    """Whether a model is called as it was when it was copied to several devices, or compiled."""
    compiled = hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None
    return compiled or isinstance(model, nn.DataParallel)


def _is_sharded(model: nn.Module) -> bool:
    return any(map(is_sharded, model.parameters())) or has_partitions(model)


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model
