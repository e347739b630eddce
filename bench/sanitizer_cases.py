"""Small steps over everything that moves a kernel onto another path, for compute-sanitizer (see gpu_check.sh).

    compute-sanitizer --tool memcheck python bench/sanitizer_cases.py
    python bench/sanitizer_cases.py --device cpu

Sizes around vectors, chunks and rounding tiles, empty tensors first, in the middle and last, views that start off any
vector boundary, missing gradients, all dtype pairs and a mix of them, values whose squares leave float32 (the wide
path), near and exactly opposite gradients (measured clipping, degenerate step), NaN, and a list beyond one launch.
Each result is held against float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch

import gru_fast

_GAMMA = 0.25
_SIZES = (0, 1, 3, 7, 8, 9, 0, 31, 64, 127, 1000, 4095, 4096, 4097, 65535, 65537, 0)
_MANY = 900  # more rows than the table of one launch holds
_DTYPE_PAIRS = (
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.float16, torch.float16),
)
_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}

Tensors = list[torch.Tensor]


@dataclass
class Case:
    """g, r, e as lists (a g may be missing), and the threshold."""

    name: str
    grads: list[torch.Tensor | None]
    retain: Tensors
    ema: Tensors
    tau: float | None = 0.5
    finite: bool = True


class Maker:
    """Random tensors on a device, each starting `offset` elements into its allocation."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(1)

    def random(self, numel: int, dtype: torch.dtype, offset: int = 0, scale: float = 0.01) -> torch.Tensor:
        values = torch.randn(numel + offset, generator=self.generator) * scale
        return values.to(self.device, dtype)[offset:]

    def case(
        self,
        name: str,
        sizes: tuple[int, ...],
        grad_dtype: torch.dtype,
        ema_dtype: torch.dtype,
        offset: int = 0,
        scale: float = 0.01,
    ) -> Case:
        retain = [self.random(size, grad_dtype, offset, scale) for size in sizes]
        ema = [self.random(size, ema_dtype, offset, scale) for size in sizes]
        grads: list[torch.Tensor | None] = []
        for r, size in zip(retain, sizes, strict=True):
            grad = self.random(size, grad_dtype, offset, scale)
            grads.append(grad.sub_(r))  # opposes r: the step projects
        return Case(name, grads, retain, ema)


def cases(device: torch.device) -> Iterator[Case]:
    make = Maker(device)
    for grad_dtype, ema_dtype in _DTYPE_PAIRS:
        name = f"{grad_dtype} gradients, {ema_dtype} EMA".replace("torch.", "")
        yield make.case(name, _SIZES, grad_dtype, ema_dtype)
        for offset in (1, 3):
            yield make.case(f"{name}, views {offset} elements in", _SIZES, grad_dtype, ema_dtype, offset)
    single, half = torch.float32, torch.bfloat16
    mixed = [make.case("", _SIZES, *pair) for pair in _DTYPE_PAIRS]
    yield Case(
        "mixed dtypes",
        [x for case in mixed for x in case.grads],
        [x for case in mixed for x in case.retain],
        [x for case in mixed for x in case.ema],
    )
    yield make.case("beyond one launch", (5,) * _MANY, single, single)
    yield make.case("squares overflow float32", _SIZES, single, single, scale=1e25)
    yield make.case("squares vanish in float32", _SIZES, single, single, scale=1e-30)
    yield make.case("only empty tensors", (0, 0), single, single)
    missing = make.case("missing gradients", _SIZES, half, single)
    missing.grads[::2] = [None] * len(missing.grads[::2])
    yield missing
    opposite = make.case("opposite gradients", _SIZES, single, single)
    for r, e in zip(opposite.retain, opposite.ema, strict=True):
        e.copy_(r)
    opposite.grads = [-2 * r for r in opposite.retain]
    yield opposite
    broken = make.case("NaN in r and g", _SIZES, single, single)
    broken.retain[-2][5] = float("nan")
    assert broken.grads[-3] is not None
    broken.grads[-3][7] = float("inf")
    broken.finite = False
    yield broken
    idle = make.case("nothing to do", _SIZES, half, half)
    idle.grads, idle.tau = [r.clone() for r in idle.retain], None
    for r, e in zip(idle.retain, idle.ema, strict=True):
        e.copy_(r)
    yield idle


def flat(tensors: Tensors) -> torch.Tensor:
    return torch.cat([x.detach().double().view(-1).cpu() for x in tensors])


def run(case: Case) -> str | None:
    """One step; what is wrong with it, or None."""
    params = []
    for grad, r in zip(case.grads, case.retain, strict=True):
        param = torch.nn.Parameter(torch.zeros_like(r))
        param.grad = grad
        params.append(param)
    grad = flat([torch.zeros_like(r) if g is None else g for g, r in zip(case.grads, case.retain, strict=True)])
    want_ema = torch.lerp(flat(case.ema), flat(case.retain), _GAMMA)
    gru_fast.rectify_(params, case.ema, _GAMMA, case.tau, retain_grads=case.retain)
    got_grad = flat([torch.zeros_like(p) if p.grad is None else p.grad for p in params])
    got_ema = flat(case.ema)
    if not case.finite:
        untouched = torch.equal(got_grad, grad)
        clean = bool(got_ema.isfinite().all())
        return None if untouched and clean else f"g untouched: {untouched}, e finite: {clean}"
    dot, ema_norm_sq = torch.dot(grad, want_ema), torch.dot(want_ema, want_ema)
    want_grad = grad - torch.clamp(dot, max=0.0) / ema_norm_sq * want_ema if ema_norm_sq > 0 else grad
    norm = want_grad.norm()
    if case.tau is not None and norm > case.tau:
        want_grad *= case.tau / norm
    found = [difference("e", got_ema, want_ema, want_ema.norm(), case.ema)]
    # After a projection that leaves nothing, what counts is how little that is beside the g it came from.
    scale = torch.minimum(grad.norm(), torch.tensor(case.tau or float("inf"), dtype=torch.float64))
    found.append(difference("g", got_grad, want_grad, scale, case.retain))
    return "; ".join(filter(None, found)) or None


def difference(what: str, got: torch.Tensor, want: torch.Tensor, scale: torch.Tensor, like: Tensors) -> str | None:
    error = (got - want).norm()
    limit = max((_ERROR[x.dtype] for x in like), default=0.0) * scale
    return None if bool(error <= limit) else f"{what} is off by {error:.2e}, at most {limit:.2e} expected"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args().device)
    failures = 0
    for case in cases(device):
        complaint = run(case)
        failures += complaint is not None
        print(f"{'FAIL' if complaint else 'ok  '} {case.name}{': ' + complaint if complaint else ''}", flush=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
