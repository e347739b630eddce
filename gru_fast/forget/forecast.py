"""Before anything is trained: what is known at all, what would conflict, and what it would cost (`--dry-run`).

    cos(g, r) = <g, r> / (|g| |r|)       g: gradient of the loss of a document to forget, r: of text to keep

Forgetting goes against g. Where g and r point the same way, it works against what is to stay: GRU takes that out.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gru_fast.data.own import Piece
from gru_fast.data.sequences import SequenceCollator
from gru_fast.evaluation.asking import Scorer
from gru_fast.forget import measures
from gru_fast.forget.level import Level
from gru_fast.forget.measures import Known
from gru_fast.forget.options import ForgetConfig, ForgetOptions
from gru_fast.forget.request import Request
from gru_fast.models.forward import logits_of, to_device
from gru_fast.models.scores import label_scores
from gru_fast.runs.memory import resident_peak_bytes

_PIECES = 4  # of a document whose gradient is taken, at most
_DOCUMENTS = 16  # whose gradients are taken, at most: the best known
_KEPT = 16  # pieces to keep
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Conflict:
    """Cosines with the gradient of what is to be kept.

    Args:
        of_documents: by document, over all parameters.
        of_layers: by layer, of all these documents together; "other": embeddings, head, norms outside of layers.
    """

    of_documents: Mapping[str, float]
    of_layers: Mapping[str, float]


@dataclass(frozen=True)
class Forecast:
    """What there is to say before a request.

    Args:
        known: documents by how well they are known; ``level``: of text never seen.
        conflict: None where there is nothing to keep.
        seconds_per_step: of a step of this training, without looks; None where nothing is kept, and there are no such
            steps. ``most_steps``: there can be.
        bytes_needed: weights, gradients, the moving average and AdamW's moments; activations come to it.
    """

    known: Sequence[Known]
    level: Level
    conflict: Conflict | None
    seconds_per_step: float | None
    most_steps: int
    bytes_needed: int
    peak_bytes: int

    def __str__(self) -> str:
        lines = [self.level.rule(), "", *self._documents(), "", *self._layers(), *self._cost()]
        return "\n".join(lines)

    def _documents(self) -> list[str]:
        above = {each.document: self.level.above(each) for each in self.known}
        count = sum(bool(found) for found in above.values())
        width = min(48, max(len(each.document) for each in self.known))
        head = f"{'document':<{width}}  known  probability  exact  strength  cosine with kept"
        lines = [f"known: {count} of {len(self.known)} documents", "", head]
        cosines = self.conflict.of_documents if self.conflict else {}
        for each in sorted(self.known, key=lambda each: -each.exact_memorization):
            cosine = f"{cosines[each.document]:+.3f}" if each.document in cosines else "-"
            lines.append(
                f"{each.document[-width:]:<{width}}  {'yes' if above[each.document] else 'no':>5}  "
                f"{each.probability:>11.3g}  {each.exact_memorization:>5.2f}  {each.extraction_strength:>8.2f}  "
                f"{cosine:>16}"
            )
        unknown = [name for name, found in above.items() if not found]
        if unknown:
            lines += [
                "",
                f"{self.level.says_unknown}: {len(unknown)}: {', '.join(unknown[:5])}{' ...' * (len(unknown) > 5)}",
            ]
        return lines

    def _layers(self) -> list[str]:
        if self.conflict is None:
            return []
        shown = [f"{name} {value:+.3f}" for name, value in self.conflict.of_layers.items()]
        return ["cosine by layer: " + ", ".join(shown), ""]

    def _cost(self) -> list[str]:
        cost = "cost: not estimated for --retain none"
        if self.seconds_per_step is not None:
            minutes = self.seconds_per_step * self.most_steps / 60
            cost = (
                f"cost: {self.seconds_per_step:.2g} s a step, {self.most_steps} steps at most ({minutes:.1f} min), "
                "without the looks at the model"
            )
        return [
            cost,
            (
                f"memory: {self.bytes_needed / 2**30:.2f} GiB for weights, gradients, the moving average and AdamW, "
                f"beside activations (this process has had {self.peak_bytes / 2**30:.2f} GiB at most so far)"
            ),
        ]


def forecast(scorer: Scorer, request: Request, options: ForgetOptions, config: ForgetConfig) -> Forecast:
    """Looks at the model and takes some gradients; the model is what it was."""
    forget = measures.by_document(request.forget, measures.records(scorer, request.forget))
    unseen = measures.by_document(request.texts.unseen, measures.records(scorer, request.texts.unseen))
    level = Level.of(request.texts.unseen_source, unseen)
    conflict, seconds = None, None
    began = time.monotonic()
    if request.retain:
        best = [each.document for each in sorted(forget, key=lambda each: -each.exact_memorization)[:_DOCUMENTS]]
        chosen = [[p for p in request.forget if p.document == name][:_PIECES] for name in best]
        conflict = conflicts(scorer, chosen, list(request.retain[:_KEPT]), best)
        rows = sum(map(len, chosen)) + len(request.retain[:_KEPT])
        per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
        # A row to keep comes with every row to forget.
        seconds = (time.monotonic() - began) / rows * 2 * per_step
    return Forecast(
        known=forget,
        level=level,
        conflict=conflict,
        seconds_per_step=seconds,
        most_steps=config.max_steps,
        bytes_needed=bytes_needed(scorer.model, config),
        peak_bytes=resident_peak_bytes(),
    )


def conflicts(
    scorer: Scorer, documents: Sequence[Sequence[Piece]], kept: Sequence[Piece], names: Sequence[str]
) -> Conflict:
    """Cosines of the gradients of documents with that of what is kept, each the mean over its pieces.

    Beside the model there are two gradients in memory at a time, and the sum of those of the documents.
    """
    model = scorer.model
    params = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    r = _gradient(scorer, params, kept)
    total = [torch.zeros_like(value) for value in r]
    found: dict[str, float] = {}
    for name, pieces in zip(names, documents, strict=True):
        g = _gradient(scorer, params, pieces)
        found[name] = _cosine(g, r)
        for sum_, value in zip(total, g, strict=True):
            sum_.add_(value)
        del g
    groups: dict[str, list[int]] = {}
    for at, (name, _) in enumerate(params):
        layer = _LAYER.search(name)
        groups.setdefault(layer[1] if layer else "other", []).append(at)
    order = sorted(groups, key=lambda name: (name == "other", int(name) if name != "other" else 0))
    return Conflict(
        found, {name: _cosine([total[i] for i in groups[name]], [r[i] for i in groups[name]]) for name in order}
    )


def _gradient(scorer: Scorer, params: Sequence[tuple[str, nn.Parameter]], pieces: Sequence[Piece]) -> list[Tensor]:
    """Of the mean loss over pieces, one batch after another; the model has none left afterwards."""
    model, collate = scorer.model, SequenceCollator(scorer.pad_token_id)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(pieces), scorer.batch_size):
            some = pieces[start : start + scorer.batch_size]
            batch = to_device(collate([piece.row for piece in some]), model)
            loss = label_scores(logits_of(model, batch), batch["labels"]).mean_nll
            (loss * len(some) / len(pieces)).backward()
        return [torch.zeros_like(param) if param.grad is None else param.grad for _, param in params]
    finally:
        model.train(was_training)
        for _, param in params:
            param.grad = None


def _cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Summed in float64; 0 where a gradient is."""
    dot, ours, theirs = (
        math.fsum(float(torch.sum(x.double() * y.double())) for x, y in zip(one, other, strict=True))
        for one, other in ((a, b), (a, a), (b, b))
    )
    norm = math.sqrt(ours * theirs)
    return dot / norm if norm > 0 else 0.0


def bytes_needed(model: nn.Module, config: ForgetConfig) -> int:
    """Of the weights; of what is trained the gradient, AdamW's two moments, and with GRU the retain gradient and e."""
    sizes = {param: param.numel() * param.element_size() for param in model.parameters()}
    trained = sum(size for param, size in sizes.items() if param.requires_grad)
    return sum(sizes.values()) + (5 if config.rectify else 3) * trained
