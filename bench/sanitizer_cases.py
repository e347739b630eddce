"""Small steps over everything that moves a kernel onto another path, for compute-sanitizer (see gpu_check.sh).

    compute-sanitizer --tool memcheck python bench/sanitizer_cases.py
    python bench/sanitizer_cases.py --device cpu

Sizes around vectors, chunks and rounding tiles, empty tensors first, in the middle and last, views that start off any
vector boundary, missing gradients, all dtype pairs and a mix of them, values whose squares leave float32 (the wide
path), near and exactly opposite gradients (measured clipping, degenerate step), NaN, and a list beyond one launch.
Then the same sizes for task vectors: reduce and add, models between two. Each result is held against float64.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

import gru_fast
from gru_fast.core.vectors import accumulate_task_vector_, interpolate_, subtract_

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
    by_tensor: bool = False  # a decision for each tensor instead of one for all


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
    for sizes, scale in ((_SIZES, 0.01), ((5,) * _MANY, 0.01), (_SIZES, 1e-30)):
        case = make.case(
            f"by tensor, {len(sizes)} tensors, scale {scale:g}",
            sizes,
            half if scale == 0.01 else single,
            single,
            scale=scale,
        )
        case.by_tensor = True
        yield case
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


def projected(grad: torch.Tensor, ema: torch.Tensor) -> torch.Tensor:
    """GRU's rule, in float64."""
    dot, ema_norm_sq = torch.dot(grad, ema), torch.dot(ema, ema)
    return grad - torch.clamp(dot, max=0.0) / ema_norm_sq * ema if ema_norm_sq > 0 else grad


def run(case: Case) -> str | None:
    """One step; what is wrong with it, or None."""
    params = []
    for grad, r in zip(case.grads, case.retain, strict=True):
        param = torch.nn.Parameter(torch.zeros_like(r))
        param.grad = grad
        params.append(param)
    grad = flat([torch.zeros_like(r) if g is None else g for g, r in zip(case.grads, case.retain, strict=True)])
    want_ema = torch.lerp(flat(case.ema), flat(case.retain), _GAMMA)
    granularity = "tensor" if case.by_tensor else "global"
    gru_fast.rectify_(params, case.ema, _GAMMA, case.tau, retain_grads=case.retain, granularity=granularity)
    got_grad = flat([torch.zeros_like(p) if p.grad is None else p.grad for p in params])
    got_ema = flat(case.ema)
    if not case.finite:
        untouched = torch.equal(got_grad, grad)
        clean = bool(got_ema.isfinite().all())
        return None if untouched and clean else f"g untouched: {untouched}, e finite: {clean}"
    sizes = [r.numel() for r in case.retain] if case.by_tensor else [grad.numel()]
    parts = zip(grad.split(sizes), want_ema.split(sizes), strict=True)
    want_grad = torch.cat([projected(g, e) for g, e in parts])
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


# ---- task vectors ----------------------------------------------------------------------------------------------------


def vector_cases(device: torch.device) -> Iterator[tuple[str, str | None]]:
    """Name and complaint of each."""
    make = Maker(device)
    for param_dtype in (torch.float32, torch.bfloat16, torch.float16):
        for grad_dtype in dict.fromkeys((param_dtype, torch.float32)):
            shapes = [(_SIZES, 0, 1.0), (_SIZES, 1, 1.0), ((5,) * _MANY, 0, 1.0), ((0,), 0, 1.0)]
            if param_dtype == torch.float32:
                shapes.append((_SIZES, 0, 1e-30))  # squares vanish in float32
            for sizes, offset, scale in shapes:
                name = f"task vector, {param_dtype} with {grad_dtype} gradients, {len(sizes)} tensors, offset {offset}"
                name = f"{name}, scale {scale:g}".replace("torch.", "")
                yield name, run_unit(make, sizes, param_dtype, grad_dtype, offset, scale)
        yield f"blends of {param_dtype}".replace("torch.", ""), run_blends(make, param_dtype)


def run_unit(
    make: Maker,
    sizes: tuple[int, ...],
    dtype: torch.dtype,
    grad_dtype: torch.dtype,
    offset: int,
    scale: float,
) -> str | None:
    total, own = ([make.random(size, grad_dtype, offset, 1.0) for size in sizes] for _ in range(2))
    origin = [make.random(size, dtype, offset, scale) for size in sizes]
    noise = [make.random(size, torch.float32, offset, scale) for size in sizes]
    params = [
        (o.float() + noise - scale * (a.float() - b.float())).to(dtype)
        for o, noise, a, b in zip(origin, noise, total, own, strict=True)
    ]
    task, rest = flat(params) - flat(origin), flat(total) - flat(own)
    mean = [torch.zeros_like(p, dtype=torch.float32) for p in params]
    step = accumulate_task_vector_(params, origin, mean, total=total, own=own)
    if not task.numel():
        return None if step.degenerate else "an empty unit is not degenerate"
    want = task + torch.clamp(-torch.dot(task, rest), min=0.0) / torch.dot(rest, rest) * rest
    want /= want.norm()
    complaint = difference("mean", flat(mean), want, want.norm(), mean)
    same = torch.equal(flat(params), flat(origin))
    return complaint or (None if same and step.projected else f"restored: {same}, projected: {step.projected}")


def run_blends(make: Maker, dtype: torch.dtype) -> str | None:
    params, first, second = ([make.random(size, dtype, offset=1) for size in _SIZES] for _ in range(3))
    vector = [make.random(size, torch.float32) for size in _SIZES]
    subtract_(params, first, vector, 0.7)
    want = flat(first) - 0.7 * flat(vector)
    found = [difference("subtract_", flat(params), want, want.norm(), params)]
    interpolate_(params, first, second, 0.3)
    want = 0.3 * flat(first) + 0.7 * flat(second)
    found.append(difference("interpolate_", flat(params), want, want.norm(), params))
    return "; ".join(filter(None, found)) or None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args().device)
    failures = 0
    steps = ((case.name, run(case)) for case in cases(device))
    for name, complaint in itertools.chain(steps, vector_cases(device)):
        failures += complaint is not None
        print(f"{'FAIL' if complaint else 'ok  '} {name}{': ' + complaint if complaint else ''}", flush=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
