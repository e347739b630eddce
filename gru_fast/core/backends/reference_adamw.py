"""The passes of AdamW in plain PyTorch, for any device: fallback and reference, as :mod:`gru_fast.reference` is of a
rectified step. One tensor is worked on at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gru_fast.core import stats as fields
from gru_fast.core import update as sums
from gru_fast.core.backends.adamw import (
    BETA1,
    BETA2,
    BIAS1,
    BIAS2_ROOT,
    EPS,
    LR,
    STEP,
    WEIGHT_DECAY,
    AdamWArgs,
    AdamWRows,
    Pass,
)
from gru_fast.core.backends.reference import (
    check_tensor,
    round_stochastically,
    rounding_bits,
    sum_of_products,
    widest,
)
from gru_fast.core.rules import Rule

# Added to the seed: rounding bits of their own for M, V, theta, and what is fed back into M.
_STREAMS = (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89)
_FIRST, _SECOND, _PARAM, _FEED = range(4)


class ReferenceAdamW:
    """See :class:`~gru_fast.core.backends.adamw.AdamWPasses`."""

    def __init__(self, rows: AdamWRows) -> None:
        _check_rows(rows)
        self._rows = rows
        self._ema: list[Tensor | None] = [None] * len(rows.params) if rows.ema is None else rows.ema
        self._keys = list(range(len(rows.params))) if rows.rounding_keys is None else rows.rounding_keys

    def settle(self, args: AdamWArgs, tau: float, rule: Rule | None) -> None:
        """The host settles: these passes read the statistics there anyway."""
        raise NotImplementedError("settle: only kernels that keep the statistics to themselves")

    @torch.no_grad()
    def run(self, which: Pass, args: AdamWArgs) -> None:
        step = None if args.stats is None else args.stats.tolist()
        update = None if args.update is None else args.update.tolist()
        wants_sums = which in {"moments", "sums"}
        skips = step is not None and (step[fields.VETOED] > 0.0 or step[fields.GRAD_NONFINITE] > 0.0)
        if wants_sums and args.update is not None:
            args.update.zero_()
        by_sums = not wants_sums and update is not None
        if skips or (by_sums and not sums.is_finite_update(update or [])):
            return
        total = [0.0] * sums.NUM_UPDATE_STATS
        for row, scalars in enumerate(args.scalars.tolist()):
            tensor = _Row(self._rows, self._ema[row], row, self._keys[row], scalars, step, args)
            if which != "update":
                tensor.take_gradient()
            if wants_sums:
                _add(total, tensor.sums())
            if which in {"step", "moments"}:
                tensor.keep_moments()
            if which in {"step", "update"}:
                tensor.move(sums.update_factor(update) if by_sums and update is not None else 0.0)
        if wants_sums and args.update is not None:
            args.update.copy_(torch.tensor(total, dtype=torch.float64))


class _Row:
    """One parameter in one pass, in float32."""

    def __init__(
        self,
        rows: AdamWRows,
        ema: Tensor | None,
        row: int,
        key: int,
        scalars: list[float],
        step: list[float] | None,
        args: AdamWArgs,
    ) -> None:
        self._key, self._args, self._scalars = key, args, scalars
        self._param, self._grad = rows.params[row], rows.grads[row]
        self._exp_avg, self._exp_avg_sq = rows.exp_avg[row], rows.exp_avg_sq[row]
        self._e = torch.zeros_like(self._param, dtype=torch.float32) if ema is None else ema.float()
        self._m, self._v, self._theta = self._exp_avg.float(), self._exp_avg_sq.float(), self._param.float()
        rescale = 1.0 if step is None else step[fields.RESCALE]
        sign = -1.0 if args.maximize else 1.0
        self._alpha = sign if step is None else sign * step[fields.ALPHA] * rescale
        self._beta = 0.0 if step is None else sign * step[fields.BETA] * rescale

    def take_gradient(self) -> None:
        """g' and, rounded as they will be stored, M and V."""
        first, second = _f32(1.0 - self._scalars[BETA1]), _f32(1.0 - self._scalars[BETA2])
        g = torch.zeros_like(self._theta) if self._grad is None else self._grad.float() * _f32(self._alpha)
        self._g = g = g if self._beta == 0.0 else _multiply_add(_f32(self._beta), self._e, g)
        if first < 0.5:
            m = _multiply_add(first, g - self._m, self._m)
        else:
            m = _multiply_add(_f32(first - 1.0), g - self._m, g)
        v = _multiply_add(second * g, g, _f32(self._scalars[BETA2]) * self._v)
        self._m, self._v = self._rounded(m, self._exp_avg, _FIRST), self._rounded(v, self._exp_avg_sq, _SECOND)

    def keep_moments(self) -> None:
        self._exp_avg.copy_(self._m)
        self._exp_avg_sq.copy_(self._v)
        if self._args.write_grad and self._grad is not None:
            limit = torch.finfo(self._grad.dtype).max
            self._grad.copy_(self._g.clamp(-limit, limit))

    @property
    def _denominator(self) -> Tensor:
        return self._v.sqrt() / _f32(self._scalars[BIAS2_ROOT]) + _f32(self._scalars[EPS])

    def _weighed(self, e: Tensor) -> Tensor:
        """e / W."""
        return e if self._args.floor is None else e / (self._denominator + _f32(float(self._args.floor)))

    def sums(self) -> list[float]:
        """In the order of :mod:`gru_fast.core.update`."""
        lr, d = self._scalars[LR], self._denominator
        u = self._m * _f32(1.0 / self._scalars[BIAS1]) / d
        u = _multiply_add(_f32(self._scalars[WEIGHT_DECAY]), self._theta, u)
        wide = widest(u.device)
        e = self._e.to(wide)
        part = self._weighed(e)
        out = [0.0] * sums.NUM_UPDATE_STATS
        out[sums.DOT] = lr * sum_of_products(u, e)
        out[sums.STEP_NORM_SQ] = lr * lr * sum_of_products(u, u)
        out[sums.EMA_NORM_SQ] = sum_of_products(e, e)
        out[sums.REACH] = lr * sum_of_products(e, part)
        out[sums.CHANGE_SQ] = lr * lr * sum_of_products(part, part)
        out[sums.DENOMINATOR_SQ] = 0.0 if self._args.floor is None else sum_of_products(d, d)
        out[sums.NUMEL] = float(u.numel())
        out[sums.LARGEST] = float(part.abs().max()) if u.numel() else 0.0
        return out

    def move(self, factor: float) -> None:
        """theta <- theta - lr Z with Z = U + factor e / W."""
        lr, bias1, d = self._scalars[LR], self._scalars[BIAS1], self._denominator
        theta = self._theta * _f32(1.0 - lr * self._scalars[WEIGHT_DECAY]) + _f32(-(lr / bias1)) * self._m / d
        if factor != 0.0:
            part = (self._weighed(self._e.to(widest(d.device))) * factor).float()
            theta = _multiply_add(_f32(-lr), part, theta)
            if self._args.feed_back and lr != 0.0:  # a parameter at rest rests
                fed = _multiply_add(d * _f32(bias1), part, self._m)
                self._exp_avg.copy_(self._rounded(fed, self._exp_avg, _FEED))
        self._param.copy_(self._rounded(theta, self._param, _PARAM))

    def _rounded(self, exact: Tensor, like: Tensor, stream: int) -> Tensor:
        """On the grid of ``like``, float32."""
        if like.dtype == torch.float32:
            return exact
        seed, step = self._args.seed + _STREAMS[stream], int(self._scalars[STEP])
        bits = rounding_bits(exact.numel(), seed, step, self._key, exact.device).view(exact.shape)
        return round_stochastically(exact, like.dtype, bits).float()


def _f32(value: float) -> float:
    """``value`` as float32 holds it."""
    return float(torch.tensor(value, dtype=torch.float32))


def _multiply_add(a: Tensor | float, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c, float32, in one rounding: float64 holds the product as it is."""
    wide = widest(b.device)
    product = b.to(wide) * (a.to(wide) if isinstance(a, Tensor) else a)
    return (product + c.to(wide)).float()


def _add(total: list[float], one: list[float]) -> None:
    largest = max(total[sums.LARGEST], one[sums.LARGEST]) if not math.isnan(one[sums.LARGEST]) else math.nan
    total[:] = [a + b for a, b in zip(total, one, strict=True)]
    total[sums.LARGEST] = largest


def _check_rows(rows: AdamWRows) -> None:
    """Raises what the compiled passes would for lists that do not fit together."""
    count = len(rows.params)
    lists: dict[str, Sequence[Tensor | None] | None] = {
        "exp_avg": rows.exp_avg,
        "exp_avg_sq": rows.exp_avg_sq,
        "grads": rows.grads,
        "ema": rows.ema,
    }
    for name, tensors in lists.items():
        if tensors is not None and len(tensors) != count:
            raise ValueError(f"{name}: expected {count} entries, one per parameter, got {len(tensors)}")
    for row, param in enumerate(rows.params):
        suffix = f"[{row}]" + ("" if rows.names is None else f' "{rows.names[row]}"')
        check_tensor(param, f"params{suffix}", param, rows.params[0].device, "itself")
        moments = (torch.float32,) if param.dtype == torch.float16 else (torch.float32, param.dtype)
        for name, tensors, dtypes in (
            ("exp_avg", rows.exp_avg, moments),
            ("exp_avg_sq", rows.exp_avg_sq, (rows.exp_avg[row].dtype,)),
            ("grads", rows.grads, (param.dtype,)),
            ("ema", rows.ema or [None] * count, (torch.float32, param.dtype)),
        ):
            tensor = tensors[row]
            if tensor is None:
                continue
            check_tensor(tensor, f"{name}{suffix}", param, param.device, "its parameter")
            if tensor.dtype not in dtypes:
                wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dict.fromkeys(dtypes))
                raise TypeError(f"{name}{suffix}: expected {wanted}, got {tensor.dtype}")
