"""The inputs of one measurement: g, r and e of a model's shapes, and how to put them back as they were.

Each of the three is one buffer, and the tensors of the lists are consecutive views of it. So every form, list or flat,
and the probe work on the same memory. (Sizes of real models are multiples of 64 elements: the views are aligned as
separately allocated tensors would be. Lists of separate tensors were timed too: no difference.)

The values are correlated normals that repeat with a prime period, so that no chunk, row or thread boundary falls on the
same place of it twice in a row. Restoring a buffer is then a fill from a small tile, without a second copy of a 7B
model, and a float64 oracle over one period knows the exact result of the whole (expected.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod, sqrt

import torch
from shapes import Shape

GAMMA = 0.2
CASES = ("full", "none")  # project and clip: both passes work; nothing to do: the second has nothing to write
_PERIOD = 1_000_003
_STD = 0.01
_OWN = 0.5  # share of r's direction in g and in e


class Problem:
    """g and r (`grad_dtype`), e (`ema_dtype`) on `device`, worked on in place; `gamma` and `tau` of the step."""

    def __init__(
        self, shapes: list[Shape], grad_dtype: torch.dtype, ema_dtype: torch.dtype, device: torch.device, seed: int = 0
    ) -> None:
        self.shapes = shapes
        self.sizes = [prod(shape) for shape in shapes]
        self.numel = sum(self.sizes)
        self.grad_dtype, self.ema_dtype, self.device = grad_dtype, ema_dtype, device
        self.gamma = GAMMA
        self.flat_retain = torch.empty(self.numel, dtype=grad_dtype, device=device)
        self.flat_grad = torch.empty_like(self.flat_retain)
        self.flat_ema = torch.empty(self.numel, dtype=ema_dtype, device=device)
        self.grads, self.retain, self.ema = (self._views(x) for x in (self.flat_grad, self.flat_retain, self.flat_ema))
        self.period = min(_PERIOD, self.numel)
        self._make_tiles(seed)
        self.tau_tensor = torch.empty((), dtype=torch.float64, device=device)
        self.set_case("full", float("inf"))
        fill(self.flat_retain, self.retain_tile)

    def _views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        return [x.view(shape) for x, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]

    def _make_tiles(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        retain, *noise = (torch.randn(self.period, generator=generator) * _STD for _ in range(3))
        grad, ema = (_OWN * retain + sqrt(1 - _OWN**2) * own for own in noise)
        self.retain_tile = retain.to(self.device, self.grad_dtype)
        self._helpful_grad_tile = grad.to(self.device, self.grad_dtype)
        self.ema_tile = ema.to(self.device, self.ema_dtype)

    @property
    def grad_tile(self) -> torch.Tensor:
        """g agrees with r and e, or, in case `full`, is the opposite of that."""
        return -self._helpful_grad_tile if self.case == "full" else self._helpful_grad_tile

    def set_case(self, case: str, tau: float) -> None:
        """Makes g and e those of `case`, with the threshold `tau`."""
        self.case, self.tau = case, tau
        self.tau_tensor.fill_(tau)
        self.reset_grad()
        self.reset_ema()

    def reset_grad(self) -> None:
        fill(self.flat_grad, self.grad_tile)

    def reset_ema(self) -> None:
        fill(self.flat_ema, self.ema_tile)

    def bytes_moved(self) -> int:
        """Bytes a step must read and write: `none` reads g, r, e and writes e; `full` also reads g, e and writes g."""
        grad, ema = self.grad_dtype.itemsize, self.ema_dtype.itemsize
        reduce = 2 * grad + 2 * ema
        return self.numel * (reduce + (2 * grad + ema if self.case == "full" else 0))


def resident_bytes(numel: int, grad_dtype: torch.dtype, ema_dtype: torch.dtype) -> int:
    """Memory a problem occupies: g, r and e."""
    return numel * (2 * grad_dtype.itemsize + ema_dtype.itemsize)


def fill(flat: torch.Tensor, tile: torch.Tensor) -> None:
    """flat[i] <- tile[i mod period], in place."""
    whole = flat.numel() - flat.numel() % tile.numel()
    flat[:whole].view(-1, tile.numel()).copy_(tile.expand(whole // tile.numel(), -1))
    flat[whole:].copy_(tile[: flat.numel() - whole])


def periods(flat: torch.Tensor, tile: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(part of `flat`, part of `tile` that lies under it), a period at a time."""
    for part in flat.split(tile.numel()):
        yield part, tile[: part.numel()]
