"""The passes in plain PyTorch, for any device: the fallback where no kernels were built, and a reference to read.

Same interface, promises and rounding bits as the compiled passes (:mod:`gru_fast.core.backends.native`); slower, and it
reads the sums back to the host. One tensor is worked on at a time, so the memory beyond the inputs is a few times the
largest parameter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gru_fast.core import stats as fields
from gru_fast.core.backends.passes import Groups, Rows, StepArgs
from gru_fast.core.rules import decide, decide_groups, is_shut, settle, settled
from gru_fast.core.stats import NUM_STATS

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TILE = 65536  # elements that share a rounding key
_BLOCK = 1 << 20  # elements summed at a time
_READ_ONLY = ("retain_grads", "sets", "total", "own", "origin", "x", "y")  # lists that may hold expanded tensors


def rectified_gradient(grad: Tensor, ema: Tensor, tau: float = math.inf) -> Tensor:
    """The rectified gradient of one flat vector, straight from the formula (paper Eq. 8 and 10).

    ``g - min(<g, e>, 0) / |e|^2 * e``, then scaled to norm ``tau`` if longer. ``grad`` and ``ema``: same shape; float64
    is computed as such. Returns a new tensor.

    >>> rectified_gradient(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0]))
    tensor([1., 0.])
    """
    dot, ema_norm_sq = (grad * ema).sum(), (ema * ema).sum()
    projected = grad - (dot.clamp(max=0.0) / ema_norm_sq) * ema if ema_norm_sq > 0 else grad.clone()
    norm = projected.norm()
    return projected * (tau / norm) if norm > tau else projected


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def sum_of_products(a: Tensor, b: Tensor) -> float:
    """<a, b> in float64 (float32 where the device has no float64), a block at a time."""
    wide = widest(a.device)
    a, b = a.reshape(-1), b.reshape(-1)
    blocks = zip(a.split(_BLOCK), b.split(_BLOCK), strict=True)
    return math.fsum(float((x.to(wide) * y.to(wide)).sum()) for x, y in blocks)


# ---- rounding bits: 64-bit arithmetic on Python ints, 32-bit arithmetic on int64 tensors -----------------------------

_MASK64 = (1 << 64) - 1


def _mix64(x: int) -> int:
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & _MASK64
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & _MASK64
    return x ^ (x >> 31)


def _tile_key(seed: int, step: int, row: int, tile: int) -> int:
    key = _mix64((seed + 0x9E3779B97F4A7C15) & _MASK64)
    key = _mix64(key ^ ((step + 0x632BE59BD9B4E019) & _MASK64))
    key = _mix64(key ^ (((row << 32) + 0xD1B54A32D192ED03) & _MASK64))
    return _mix64((key + tile * 0x9E3779B97F4A7C15) & _MASK64)


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits of ``x * factor``, both below 2^32, without leaving int64."""
    low, high = x * (factor & 0xFFFF), x * (factor >> 16)
    low = low + ((high & 0xFFFF) << 16)
    return low & 0xFFFFFFFF, (high >> 16) + (low >> 32)


def _quad_bits(key: int, quads: Tensor) -> Tensor:
    """The random bits of elements 4q .. 4q+3 of a tile: shape ``(quads, 4)``."""
    walk = (quads * 0x9E3779B9 + (key & 0xFFFFFFFF)) & 0xFFFFFFFF
    first, first_high = _product(walk, 0xD2511F53)
    second, second_high = _product(first_high ^ first ^ (key >> 32), 0xCD9E8D57)
    third, third_high = _product(second_high ^ second ^ first, 0xB5AD4ECF)
    quarters = [bits for word in (second, second_high) for bits in (word & 0xFFFF, word >> 16)]
    last = [bits for word in (third, third_high) for bits in (word & 0xFFFF, word >> 16)]
    return torch.stack([last[i] ^ quarters[(i + 1) % 4] for i in range(4)], dim=1)


def rounding_bits(numel: int, seed: int, step: int, row: int, device: torch.device | None = None) -> Tensor:
    """The 16 random bits of each element of parameter ``row``: int64, shape ``(numel,)``, values below 2^16."""
    tiles = []
    for tile in range(-(-numel // _TILE)):
        size = min(_TILE, numel - tile * _TILE)
        quads = torch.arange(-(-size // 4), device=device)
        tiles.append(_quad_bits(_tile_key(seed, step, row, tile), quads).reshape(-1)[:size])
    return torch.cat(tiles) if tiles else torch.empty(0, dtype=torch.int64, device=device)


def round_stochastically(exact: Tensor, dtype: torch.dtype, random: Tensor) -> Tensor:
    """``exact`` (float32) on the grid of a 16-bit dtype: up with the probability of the part cut off."""
    magnitude, sign = exact.abs(), torch.signbit(exact)
    bits = magnitude.view(torch.int32).to(torch.int64)
    if dtype == torch.bfloat16:
        rounded = ((bits + random) & 0xFFFF0000).to(torch.int32).view(torch.float32)
    else:
        normal = ((bits + (random >> 3)) & 0xFFFFE000).to(torch.int32).view(torch.float32)
        steps = torch.where(magnitude < 2.0**-14, magnitude, 0.0) * 2.0**24 + (random >> 3).to(torch.float32) / 8192
        rounded = torch.where(magnitude < 2.0**-14, steps.floor() * 2.0**-24, normal).clamp(max=65504.0)
    return torch.where(sign, -rounded, rounded).to(dtype)


class ReferencePasses:
    """A step's rows on one device; see :class:`~gru_fast.core.backends.passes.Passes`."""

    def __init__(self, rows: Rows, stats: Tensor | None = None) -> None:
        count, current = len(rows), rows.ema_is_current
        self._grads, self._ema = rows.grads, rows.ema
        self._retain: list[Tensor | None] = [None] * count if rows.retain is None else rows.retain
        self._is_current = [current] * count if isinstance(current, bool) else current
        ids = list(range(count)) if rows.ids is None else rows.ids
        self._rounding_keys = ids if rows.rounding_keys is None else rows.rounding_keys
        _check_rows(rows, self._retain, ids)
        self.missing_grads = [row for row, grad in enumerate(self._grads) if grad is None]
        self.stats = torch.zeros(NUM_STATS, dtype=torch.float64) if stats is None else stats
        self._sums = [[0.0] * 3 for _ in range(count)]  # d, m, u of each row

    @torch.no_grad()
    def reduce(self, args: StepArgs, rounding_step: Tensor | None) -> None:
        self.stats.zero_()
        given = (t for t in (*self._grads, *self._retain) if t is not None)
        if args.all_or_nothing and not all(bool(t.isfinite().all()) for t in given):
            self.stats[fields.VETOED] = 1.0
            return
        dot = ema_norm_sq = grad_norm_sq = 0.0
        refused = False
        step = _count(rounding_step)
        for row, (grad, ema) in enumerate(zip(self._grads, self._ema, strict=True)):
            if not self._is_current[row]:
                refused |= self._update_ema(row, args, step)
            of_row = [0.0, sum_of_products(ema, ema), 0.0]
            if grad is not None:
                of_row[0], of_row[2] = sum_of_products(grad, ema), sum_of_products(grad, grad)
            self._sums[row] = of_row
            dot, ema_norm_sq, grad_norm_sq = dot + of_row[0], ema_norm_sq + of_row[1], grad_norm_sq + of_row[2]
        sums = [dot, ema_norm_sq, grad_norm_sq, float(refused), 0.0]
        self.stats[fields.SUMS] = torch.tensor(sums, dtype=torch.float64)
        _count_on(rounding_step)

    @torch.no_grad()
    def fold(self, args: StepArgs, rounding_step: Tensor | None) -> None:
        self.stats.zero_()
        step = _count(rounding_step)
        behind = [row for row, current in enumerate(self._is_current) if not current]
        refused = [self._update_ema(row, args, step) for row in behind]
        self.stats[fields.RETAIN_NONFINITE] = float(any(refused))
        _count_on(rounding_step)

    def _update_ema(self, row: int, args: StepArgs, step: int) -> bool:
        """``e <- keep * e + gain * r`` of one parameter; True if an element of r was refused."""
        ema, retain = self._ema[row], self._retain[row]
        exact = ema.to(torch.float32) * args.keep
        if retain is not None:
            exact.add_(retain.to(torch.float32), alpha=args.gain)
        new = exact
        if ema.dtype != torch.float32:
            key = self._rounding_keys[row]
            random = rounding_bits(ema.numel(), args.seed, step, key, ema.device).view(ema.shape)
            new = round_stochastically(exact, ema.dtype, random)
        accepted = exact.isfinite() & new.isfinite()
        ema.copy_(torch.where(accepted, new, ema))
        return not bool(accepted.all())

    @torch.no_grad()
    def apply(self, args: StepArgs) -> None:
        decision = decide(args.rule, self.stats.tolist(), args.tau)
        if decision.writes:
            self._write([(decision.alpha, decision.beta)] * len(self._grads))

    def _write(self, coefficients: Sequence[tuple[float, float]]) -> None:
        """``g <- alpha * g + beta * e`` of each row, and what all of it comes to."""
        wide = widest(self._ema[0].device)
        written = 0.0
        for grad, ema, (alpha, beta) in zip(self._grads, self._ema, coefficients, strict=True):
            if grad is None:
                continue
            if alpha != 1.0 or beta != 0.0:
                new = grad.to(wide) * alpha
                if beta != 0.0:
                    new.add_(ema.to(wide), alpha=beta)
                limit = torch.finfo(grad.dtype).max
                grad.copy_(new.clamp_(-limit, limit))
            written += sum_of_products(grad, grad)
        self.stats[fields.WRITTEN] = written

    @torch.no_grad()
    def gate(self, args: StepArgs, *, is_first: bool) -> None:
        if is_first:
            self.stats.zero_()
        elif is_shut(args.rule, self.stats.tolist()):
            return
        both, w_f, w_r, _ = args.rule.options
        sums = torch.zeros(6, dtype=torch.float64)  # d, m, u, |out|^2, <out, x>, signs that differ
        for grad, ema in zip(self._grads, self._ema, strict=True):
            sums[1] += sum_of_products(ema, ema)
            if grad is None:
                continue
            g, x = grad.to(torch.float32), ema.to(torch.float32)
            opposed = ((g < 0) & (x > 0)) | ((g > 0) & (x < 0))
            kept = w_f * g + w_r * x if both else w_f * g
            new = torch.where(opposed, w_r * x, kept).masked_fill_(~(g.isfinite() & x.isfinite()), math.nan)
            sums[0] += sum_of_products(grad, ema)
            sums[2] += sum_of_products(grad, grad)
            limit = torch.finfo(grad.dtype).max
            grad.copy_(new.clamp_(-limit, limit))
            sums[3] += sum_of_products(grad, grad)
            sums[4] += sum_of_products(grad, ema)
            sums[5] += int(opposed.sum())
        if is_first:
            self.stats[: fields.RETAIN_NONFINITE] = sums[:3]
        self.stats[fields.WRITTEN : fields.BETA + 1] = sums[3:]

    @torch.no_grad()
    def reduce_groups(self, groups: Groups) -> None:
        groups.stats.zero_()
        sums = groups.stats.tolist()
        for row, group in enumerate(groups.of_row):
            for at, value in enumerate(self._sums[row]):
                sums[group][at] += value
        groups.stats.copy_(torch.tensor(sums, dtype=torch.float64).view(groups.stats.shape))

    @torch.no_grad()
    def apply_groups(self, args: StepArgs, groups: Groups) -> None:
        decision, found = decide_groups(args.rule, self.stats.tolist(), groups.stats.tolist(), args.tau)
        told = [[group.alpha, group.beta, float(group.conflict)] for group in found]
        groups.stats[:, fields.GROUP_ALPHA : fields.GROUP_CONFLICT + 1] = torch.tensor(told, dtype=torch.float64)
        if decision.writes:
            self._write([(found[group].alpha, found[group].beta) for group in groups.of_row])

    @torch.no_grad()
    def finish_groups(self, args: StepArgs, groups: Groups) -> None:
        decision, _ = decide_groups(args.rule, self.stats.tolist(), groups.stats.tolist(), args.tau)
        self._settle(settled(decision, self.stats.tolist(), args.tau))

    @torch.no_grad()
    def finish(self, args: StepArgs) -> None:
        self._settle(settle(args.rule, self.stats.tolist(), args.tau))

    def _settle(self, outcome: list[float]) -> None:
        rescale = outcome[fields.RESCALE - fields.ALPHA]
        if rescale != 1.0:
            for grad in self._grads:
                if grad is not None:
                    scale_towards_zero_(grad, rescale)
        self.stats[fields.ALPHA : fields.GRAD_NONFINITE + 1] = torch.tensor(outcome, dtype=torch.float64)

    def step(self, args: StepArgs, rounding_step: Tensor | None) -> None:
        self.reduce(args, rounding_step)
        self.apply(args)
        self.finish(args)


def _count(rounding_step: Tensor | None) -> int:
    return 0 if rounding_step is None else int(rounding_step)


def _count_on(rounding_step: Tensor | None) -> None:
    if rounding_step is not None:
        rounding_step += 1


def scale_towards_zero_(grad: Tensor, factor: float) -> None:
    """``grad *= factor``; 16-bit results are truncated, so that the norm cannot end above what was asked for."""
    exact = grad.to(torch.float32) * factor
    if grad.dtype != torch.float32:
        exact = round_stochastically(exact, grad.dtype, torch.zeros_like(exact, dtype=torch.int64))
    grad.copy_(exact)


def _check_rows(rows: Rows, retain: list[Tensor | None], ids: list[int]) -> None:
    """Raises what the compiled passes would for lists that do not fit together; messages call the rows by ``ids``."""
    for kind, tensors in (("grads", rows.grads), ("retain_grads", retain)):
        if len(tensors) != len(rows):
            raise ValueError(f"{kind}: expected {len(rows)} entries, one per parameter, got {len(tensors)}")
    which, whose = ("retain_grads", "its retain gradient") if rows.is_direct else ("ema", "its EMA")
    for row, e in enumerate(rows.ema):
        suffix = f"[{ids[row]}]" + ("" if rows.names is None else f' "{rows.names[row]}"')
        check_tensor(e, f"{which}{suffix}", e, rows.ema[0].device)
        dtypes = []
        for kind, tensor in (("grads", rows.grads[row]), ("retain_grads", retain[row])):
            if tensor is not None:
                check_tensor(tensor, f"{kind}{suffix}", e, rows.ema[0].device, whose)
                dtypes.append(tensor.dtype)
        if len(set(dtypes)) > 1:
            raise TypeError(f"retain_grads{suffix}: expected {dtypes[0]} as grads[{ids[row]}], got {dtypes[1]}")
        if dtypes and e.dtype not in (torch.float32, dtypes[0]):
            raise TypeError(f"{which}{suffix}: expected float32 or the gradient's {dtypes[0]}, got {e.dtype}")


def check_tensor(tensor: Tensor, label: str, like: Tensor, device: torch.device, what: str = "its EMA") -> None:
    """Raises what the compiled passes would for a tensor that does not fit ``like``, which messages call ``what``."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{label}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{label}: expected a dense (torch.strided) tensor, got {tensor.layout}")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{label}: expected float32, bfloat16 or float16, got {tensor.dtype}")
    if tensor.shape != like.shape:
        raise ValueError(f"{label}: expected shape {tuple(like.shape)} as {what}, got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{label}: expected {device}, got {tensor.device}")
    if not label.startswith(_READ_ONLY) and any(
        s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)
    ):
        raise ValueError(f"{label}: expected one element for each place, got an expanded tensor; make it .contiguous()")
