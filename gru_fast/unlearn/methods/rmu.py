"""RMU: the hidden states of what is to be forgotten, driven to a random direction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods.base import Method, hyper, register

_NUM_TRAINED = 3  # layers: the steered one and the two before it
# The weight that ends a layer's MLP, as the model families call it: Llama and most since, also all experts as one
# tensor; Phi, OPT; GPT-J, CodeGen; GPT-NeoX, Falcon, BLOOM; GPT-2, whose attention has one of that name too; LFM2;
# xLSTM; RWKV.
_MLP_OUTPUT = r"down_proj|fc2|fc_out|dense_4h_to_h|c_proj|w2|proj_down|feed_forward\.value"
_NOT_IN = r"(?!.*(?:attn|attention|mamba|mixer))"
# With adapters, theirs.
_OF_LAYER = re.compile(rf"(?:.*?\.)?(\d+)\.{_NOT_IN}(?:[^.]+\.)*?(?:{_MLP_OUTPUT})(?:\.weight|\.lora_.*)?")


@lru_cache(maxsize=4)
def control_vector(size: int, seed: int) -> Tensor:
    """(size,) float32 on the CPU: uniform in [0, 1) element by element, scaled to norm 1. One draw for one seed."""
    drawn = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn / drawn.norm()).float()


def mean_square(difference: Tensor, counted: Tensor) -> Tensor:
    """Mean over rows of the mean over the ``counted`` positions of the mean over d of ``difference ** 2``, a scalar.

    Args:
        difference: (B, T, d), any float dtype; squared in float32 at least.
        counted: (B, T) bool, in every row at least one.
    """
    dtype = torch.promote_types(difference.dtype, torch.float32)
    per_token = difference.to(dtype).square().mean(dim=-1)
    per_row = torch.where(counted, per_token, 0.0).sum(dim=1) / counted.sum(dim=1)
    return per_row.mean()


@register("rmu", title="RMU")
@dataclass(frozen=True)
class RMU(Method):
    """Representation misdirection: ``mean (h_f - c * u)^2 + alpha * mean (h_r - h_r,ref)^2``.

    h are the hidden states that leave one layer, on the forget and on the retain rows, ``ref`` those of the model
    before unlearning, u a fixed random direction (:func:`control_vector`), c ``steering``; the means are those of
    :func:`mean_square`, over the label tokens at their own positions. Trained are the outputs of the MLPs of that layer
    and the two before it, nothing else; with GRU, g and r (the retain NLL's gradient) are of these alone. Layers above
    are not run for it.

    Where the sources differ. alpha is the paper's 100 (1200 in the authors' code, 1 in the unified framework's
    recipe); the paper gives no c: 6.5 is the authors' for Zephyr-7B (20 and 2 in the unified framework). Positions: the
    authors count padding too, the unified framework the label tokens, as here; it then divides each row by the counts
    of all rows of a batch, here each row is divided by its own. The authors draw one u per topic and alternate the
    topics batch by batch; here, as in the unified framework, there is one u, and topics are mixed.
    """

    parts: ClassVar[tuple[str, ...]] = ("forget", "retain")
    reference_model: ClassVar[bool] = True
    hidden_states: ClassVar[bool] = True
    steering: float = hyper(6.5, "c: norm that the hidden states of the forget rows are driven to", at_least=0.0)
    alpha: float = hyper(100.0, "weight of keeping the hidden states of the retain rows", at_least=0.0)
    layer: int = hyper(
        -1, "layer whose output is steered, from 0; -1: a quarter up, the authors' 7 in a model of 32", at_least=-1
    )
    trained: str = hyper(
        "", "regular expression of the names of all trained parameters; empty: MLP outputs of the layer and two before"
    )
    seed: int = hyper(0, "of the random direction", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.trained)
        except re.error as error:
            raise ValueError(f"rmu.trained: expected a regular expression, got {self.trained!r} ({error})") from None

    def forget_loss(self, batch: Batch) -> Tensor:
        hidden = batch.hidden_states("forget")
        target = self.steering * control_vector(hidden.shape[-1], self.seed).to(hidden.device)
        return mean_square(hidden - target, batch.labelled("forget").to(hidden.device))

    def retain_loss(self, batch: Batch) -> Tensor | None:
        if self.alpha == 0.0:
            return None
        reference = batch.reference_hidden_states("retain")
        moved = batch.hidden_states("retain") - reference
        return self.alpha * mean_square(moved, batch.labelled("retain").to(moved.device))

    def hidden_layer(self, num_layers: int) -> int:
        layer = max(num_layers // 4 - 1, 0) if self.layer == -1 else self.layer
        if layer >= num_layers:
            raise ValueError(f"rmu.layer: expected at most {num_layers - 1}, the model's last layer, got {layer}")
        return layer

    def trains(self, name: str, num_layers: int) -> bool:
        if self.trained:
            return re.fullmatch(self.trained, name) is not None
        match = _OF_LAYER.fullmatch(name)
        return match is not None and int(match[1]) in self._layers(num_layers)

    def _layers(self, num_layers: int) -> range:
        """Those that are trained."""
        layer = self.hidden_layer(num_layers)
        return range(max(0, layer - _NUM_TRAINED + 1), layer + 1)

    def what_to_train(self, names: Sequence[str], num_layers: int) -> str:
        pattern = re.compile(rf"(.*?\b){self.hidden_layer(num_layers)}(\..*weight)")
        matches = [match for name in names if (match := pattern.fullmatch(name)) and "norm" not in name]
        if not matches:
            return "give a regular expression of names as trained"
        before, after = (re.escape(text) for text in matches[-1].groups())
        layers = "|".join(map(str, self._layers(num_layers)))
        return f"no MLP's output has a name that is known; give trained, such as {before}({layers}){after}"
