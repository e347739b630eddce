"""The passes beside several vectors in plain PyTorch: as :mod:`gru_fast.core.backends.reference`, of csrc/sets.h."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gru_fast.core import stats as fields
from gru_fast.core.backends.reference import check_tensor, scale_towards_zero_, sum_of_products, widest
from gru_fast.core.rules import Decision, SetDots, SeveralRule, decide_sets, settled
from gru_fast.core.stats import MAX_VECTORS, NUM_SET_STATS, pair_at


class ReferenceSets:
    """See :class:`~gru_fast.core.backends.sets.SetPasses`."""

    def __init__(
        self, grads: list[Tensor | None], vectors: list[list[Tensor]], names: Sequence[str] | None = None
    ) -> None:
        _check(grads, vectors, names)
        self._grads, self._vectors = grads, vectors
        self.stats = torch.zeros(NUM_SET_STATS, dtype=torch.float64)

    @torch.no_grad()
    def reduce(self) -> None:
        self.stats.zero_()
        for row, grad in enumerate(self._grads):
            xs = [x[row] for x in self._vectors]
            if grad is not None:
                self.stats[fields.GRAD_NORM_SQ] += sum_of_products(grad, grad)
            for j, x in enumerate(xs):
                if grad is not None:
                    self.stats[fields.SET_DOTS.start + j] += sum_of_products(grad, x)
                for i in range(j + 1):
                    self.stats[fields.SET_GRAM.start + pair_at(i, j)] += sum_of_products(xs[i], x)

    def decide(self, rule: SeveralRule, tau: float) -> None:
        found = self.stats.tolist()
        dots = set_dots(found, len(self._vectors))
        decision, betas = decide_sets(rule, dots, found, tau)
        count = len(betas)
        step = {
            fields.DOT: sum(dots.h) / count,
            fields.EMA_NORM_SQ: sum(map(sum, dots.gram)) / count**2,
            fields.ALPHA: decision.alpha,
            fields.BETA: decision.beta,
            fields.OUT_NORM_SQ: decision.norm_sq,
            fields.CONFLICT: float(decision.conflict),
            fields.CLIPPED: float(decision.clipped),
            fields.GRAD_NONFINITE: float(decision.nonfinite),
            fields.SET_SIZE_SQ: decision.size_sq,
            fields.SET_MEASURES: float(decision.measure),
        }
        for place, value in step.items():
            self.stats[place] = value
        self.stats[fields.SET_BETAS] = torch.tensor(betas + [0.0] * (MAX_VECTORS - count), dtype=torch.float64)

    @torch.no_grad()
    def apply(self) -> None:
        decision, betas = self._decided()
        if not decision.writes:
            return
        written = 0.0
        for row, grad in enumerate(self._grads):
            if grad is None:
                continue
            new = grad.to(widest(grad.device)) * decision.alpha
            for x, beta in zip(self._vectors, betas, strict=False):
                if beta != 0.0:
                    new.add_(x[row].to(new.dtype), alpha=beta)
            limit = torch.finfo(grad.dtype).max
            grad.copy_(new.clamp_(-limit, limit))
            written += sum_of_products(grad, grad)
        self.stats[fields.WRITTEN] = written

    @torch.no_grad()
    def finish(self, tau: float) -> None:
        outcome = settled(self._decided()[0], self.stats.tolist(), tau)
        rescale = outcome[fields.RESCALE - fields.ALPHA]
        if rescale != 1.0:
            for grad in self._grads:
                if grad is not None:
                    scale_towards_zero_(grad, rescale)
        self.stats[fields.ALPHA : fields.GRAD_NONFINITE + 1] = torch.tensor(outcome, dtype=torch.float64)

    def _decided(self) -> tuple[Decision, list[float]]:
        found = self.stats.tolist()
        decision = Decision(
            alpha=found[fields.ALPHA],
            beta=found[fields.BETA],
            norm_sq=found[fields.OUT_NORM_SQ],
            size_sq=found[fields.SET_SIZE_SQ],
            conflict=found[fields.CONFLICT] > 0.0,
            clipped=found[fields.CLIPPED] > 0.0,
            measure=found[fields.SET_MEASURES] > 0.0,
            nonfinite=found[fields.GRAD_NONFINITE] > 0.0,
        )
        return decision, found[fields.SET_BETAS]


def set_dots(stats: Sequence[float], count: int) -> SetDots:
    """The sums of ``count`` vectors out of the statistics."""
    dots, pairs = stats[fields.SET_DOTS], stats[fields.SET_GRAM]
    gram = [[pairs[pair_at(min(i, j), max(i, j))] for i in range(count)] for j in range(count)]
    return SetDots(list(dots[:count]), gram, stats[fields.GRAD_NORM_SQ])


def _check(grads: list[Tensor | None], vectors: list[list[Tensor]], names: Sequence[str] | None) -> None:
    """Raises what the compiled passes would for lists that do not fit together."""
    if not 1 <= len(vectors) <= MAX_VECTORS:
        raise ValueError(f"sets: expected 1 to {MAX_VECTORS} lists, got {len(vectors)}")
    for j, xs in enumerate(vectors):
        if len(xs) != len(grads):
            raise ValueError(f"sets[{j}]: expected {len(grads)} entries, one per parameter, got {len(xs)}")
    for row, grad in enumerate(grads):
        suffix = f"[{row}]" + ("" if names is None else f' "{names[row]}"')
        first = vectors[0][row] if grad is None else grad
        whose = "sets[0]" if grad is None else "its gradient"
        device = (vectors[0][0] if grads[0] is None else grads[0]).device
        check_tensor(first, f"{'sets[0]' if grad is None else 'grads'}{suffix}", first, device)
        for j, xs in enumerate(vectors):
            check_tensor(xs[row], f"sets[{j}]{suffix}", first, first.device, whose)
            if grad is not None and xs[row].dtype not in (torch.float32, grad.dtype):
                wanted = f"float32, or {str(grad.dtype).removeprefix('torch.')} as its gradient"
                got = str(xs[row].dtype).removeprefix("torch.")
                raise TypeError(f"sets[{j}]{suffix}: expected {wanted}, got {got}")
