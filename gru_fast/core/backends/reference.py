"""The passes in plain PyTorch, for any device: the fallback where no kernels were built, and a reference to read.

Same interface, promises and rounding bits as the compiled passes (:mod:`gru_fast.core.backends.native`); slower, and it
reads the sums back to the host. One tensor is worked on at a time, so the memory beyond the inputs is a few times the
largest parameter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_STATS = 16
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TILE = 65536  # elements that share a rounding key
_BLOCK = 1 << 20  # elements summed at a time
_CANCELLATION = 1.0 / 64  # below this share of |g|^2 the projected norm is measured, not computed
DEGENERATE = 2.0**-20  # a projected g below this share of |g| is rounding noise: cos(g, e) = -1
_READ_ONLY = ("retain_grads", "total", "own", "origin", "x", "y")  # lists that may hold expanded tensors
_CLIP_SLACK = 5e-4  # 16-bit rounding may exceed tau by this before g is scaled once more


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


@dataclass
class Decision:
    """``g <- alpha * g + beta * e``, and what is known of the norm afterwards."""

    alpha: float = 1.0
    beta: float = 0.0
    norm_sq: float = 0.0
    conflict: bool = False
    clipped: bool = False
    measure: bool = False
    nonfinite: bool = False

    @property
    def writes(self) -> bool:
        return self.alpha != 1.0 or self.beta != 0.0


def decide(dot: float, ema_norm_sq: float, grad_norm_sq: float, vetoed: float, tau: float) -> Decision:
    """From sums to coefficients: ``decide`` of csrc/arithmetic.h."""
    out = Decision(norm_sq=grad_norm_sq)
    out.nonfinite = not all(map(math.isfinite, (dot, ema_norm_sq, grad_norm_sq)))
    if out.nonfinite or vetoed:
        return out
    out.conflict = dot < 0.0 < ema_norm_sq
    if out.conflict:
        out.beta = -dot / ema_norm_sq
        residual = grad_norm_sq - dot * (dot / ema_norm_sq)
        out.norm_sq = max(residual, 0.0)
        out.measure = residual < _CANCELLATION * grad_norm_sq
    norm = math.sqrt(out.norm_sq)
    if not out.measure and norm > tau:
        out.clipped = True
        out.alpha = tau / norm
        out.beta *= out.alpha
        out.norm_sq = tau * tau
    return out


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


def _pair_bits(key: int, pairs: Tensor) -> Tensor:
    mask = 0xFFFFFFFF
    x = (pairs * 0x9E3779B9 + (key & mask)) & mask
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & mask
    x = x ^ (key >> 32)
    x = x ^ (x >> 15)
    x = (x * 0x735A2D97) & mask
    return x ^ (x >> 15)


def rounding_bits(numel: int, seed: int, step: int, row: int, device: torch.device | None = None) -> Tensor:
    """The 16 random bits of each element of parameter ``row``: int64, shape ``(numel,)``, values below 2^16."""
    tiles = []
    for tile in range(-(-numel // _TILE)):
        size = min(_TILE, numel - tile * _TILE)
        words = _pair_bits(_tile_key(seed, step, row, tile), torch.arange(-(-size // 2), device=device))
        tiles.append(torch.stack((words & 0xFFFF, words >> 16), dim=1).reshape(-1)[:size])
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
    """One step's tensors on one device. Arguments, methods and errors as
    :class:`gru_fast.core.backends.native.NativePasses`.
    """

    def __init__(
        self,
        grads: Sequence[Tensor | None],
        retain: Sequence[Tensor | None] | None,
        ema: Sequence[Tensor],
        *,
        ema_is_current: bool | Sequence[bool] = False,
        ids: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        rounding_keys: Sequence[int] | None = None,
        stats: Tensor | None = None,
        known_ema: object = None,
    ) -> None:
        count = len(ema)
        self._grads, self._ema = list(grads), list(ema)
        self._retain = [None] * count if retain is None else list(retain)
        self._is_current = [ema_is_current] * count if isinstance(ema_is_current, bool) else list(ema_is_current)
        shown = list(range(count)) if ids is None else list(ids)
        self._rounding_keys = shown if rounding_keys is None else list(rounding_keys)
        check_rows(self._grads, self._retain, self._ema, names, shown)
        self.missing_grads = [row for row, grad in enumerate(self._grads) if grad is None]
        self.stats = torch.zeros(NUM_STATS, dtype=torch.float64) if stats is None else stats

    @torch.no_grad()
    def reduce(
        self, keep: float, gain: float, seed: int, rounding_step: Tensor | None, all_or_nothing: bool = False
    ) -> None:
        self.stats.zero_()
        if all_or_nothing and not all(bool(t.isfinite().all()) for t in self._grads + self._retain if t is not None):
            self.stats[4] = 1.0
            return
        step = 0 if rounding_step is None else int(rounding_step)
        dot = ema_norm_sq = grad_norm_sq = 0.0
        refused = False
        for row, (grad, ema) in enumerate(zip(self._grads, self._ema, strict=True)):
            if not self._is_current[row]:
                refused |= self._update_ema(row, keep, gain, seed, step)
            ema_norm_sq += sum_of_products(ema, ema)
            if grad is not None:
                dot += sum_of_products(grad, ema)
                grad_norm_sq += sum_of_products(grad, grad)
        self.stats[:4] = torch.tensor([dot, ema_norm_sq, grad_norm_sq, float(refused)], dtype=torch.float64)
        if rounding_step is not None:
            rounding_step += 1

    @torch.no_grad()
    def fold(self, keep: float, gain: float, seed: int, rounding_step: Tensor | None) -> None:
        self.stats.zero_()
        step = 0 if rounding_step is None else int(rounding_step)
        refused = [self._update_ema(row, keep, gain, seed, step) for row in range(len(self._ema))]
        self.stats[3] = float(any(refused))
        if rounding_step is not None:
            rounding_step += 1

    def _update_ema(self, row: int, keep: float, gain: float, seed: int, step: int) -> bool:
        """``e <- keep * e + gain * r`` of one parameter; True if an element of r was refused."""
        ema, retain = self._ema[row], self._retain[row]
        exact = ema.to(torch.float32) * keep
        if retain is not None:
            exact.add_(retain.to(torch.float32), alpha=gain)
        new = exact
        if ema.dtype != torch.float32:
            random = rounding_bits(ema.numel(), seed, step, self._rounding_keys[row], ema.device).view(ema.shape)
            new = round_stochastically(exact, ema.dtype, random)
        accepted = exact.isfinite() & new.isfinite()
        ema.copy_(torch.where(accepted, new, ema))
        return not bool(accepted.all())

    @torch.no_grad()
    def apply(self, tau: float) -> None:
        dot, ema_norm_sq, grad_norm_sq, _, vetoed = self.stats[:5].tolist()
        decision = decide(dot, ema_norm_sq, grad_norm_sq, vetoed, tau)
        if not decision.writes:
            return
        wide = widest(self._ema[0].device)
        written = 0.0
        for grad, ema in zip(self._grads, self._ema, strict=True):
            if grad is None:
                continue
            new = grad.to(wide) * decision.alpha
            if decision.beta != 0.0:
                new.add_(ema.to(wide), alpha=decision.beta)
            limit = torch.finfo(grad.dtype).max
            grad.copy_(new.clamp_(-limit, limit))
            written += sum_of_products(grad, grad)
        self.stats[5] = written

    @torch.no_grad()
    def finish(self, tau: float) -> None:
        dot, ema_norm_sq, grad_norm_sq, _, vetoed, written_norm_sq = self.stats[:6].tolist()
        decision = decide(dot, ema_norm_sq, grad_norm_sq, vetoed, tau)
        rescale, out_norm_sq, clipped, degenerate = 1.0, decision.norm_sq, decision.clipped, False
        if decision.writes:
            written = math.sqrt(written_norm_sq)
            out_norm_sq = written_norm_sq
            if decision.measure and written <= DEGENERATE * math.sqrt(grad_norm_sq):
                rescale, degenerate = 0.0, True
            elif written > tau * (1.0 if decision.measure else 1.0 + _CLIP_SLACK):
                rescale, clipped = tau / written, True
            out_norm_sq *= rescale**2
        if rescale != 1.0:
            for grad in self._grads:
                if grad is not None:
                    _scale_towards_zero_(grad, rescale)
        outcome = [decision.alpha, decision.beta, rescale, out_norm_sq]
        flags = [decision.conflict, clipped, degenerate, decision.nonfinite]
        self.stats[6:14] = torch.tensor([*outcome, *map(float, flags)], dtype=torch.float64)

    def step(
        self,
        keep: float,
        gain: float,
        tau: float,
        seed: int,
        rounding_step: Tensor | None,
        all_or_nothing: bool = False,
    ) -> None:
        self.reduce(keep, gain, seed, rounding_step, all_or_nothing)
        self.apply(tau)
        self.finish(tau)


def _scale_towards_zero_(grad: Tensor, factor: float) -> None:
    """``grad *= factor``; 16-bit results are truncated, so that the norm cannot end above what was asked for."""
    exact = grad.to(torch.float32) * factor
    if grad.dtype != torch.float32:
        exact = round_stochastically(exact, grad.dtype, torch.zeros_like(exact, dtype=torch.int64))
    grad.copy_(exact)


def check_rows(
    grads: Sequence[Tensor | None],
    retain: Sequence[Tensor | None],
    ema: Sequence[Tensor],
    names: Sequence[str] | None,
    ids: Sequence[int],
) -> None:
    """Raises what the compiled passes would for lists that do not fit together; messages call the rows by ``ids``."""
    for kind, tensors in (("grads", grads), ("retain_grads", retain)):
        if len(tensors) != len(ema):
            raise ValueError(f"{kind}: expected {len(ema)} entries, one per parameter, got {len(tensors)}")
    for row, e in enumerate(ema):
        suffix = f"[{ids[row]}]" + ("" if names is None else f' "{names[row]}"')
        check_tensor(e, f"ema{suffix}", e, ema[0].device)
        dtypes = []
        for kind, tensor in (("grads", grads[row]), ("retain_grads", retain[row])):
            if tensor is not None:
                check_tensor(tensor, f"{kind}{suffix}", e, ema[0].device)
                dtypes.append(tensor.dtype)
        if len(set(dtypes)) > 1:
            raise TypeError(f"retain_grads{suffix}: expected {dtypes[0]} as grads[{ids[row]}], got {dtypes[1]}")
        if dtypes and e.dtype not in (torch.float32, dtypes[0]):
            raise TypeError(f"ema{suffix}: expected float32 or the gradient's {dtypes[0]}, got {e.dtype}")


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
