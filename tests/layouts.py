"""The same parameters in many layouts over processes, and jobs that rectify them there; for test_sharding.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement

import gru_fast

# Even, uneven, empty in some processes or in all.
SHAPES: tuple[tuple[int, ...], ...] = ((8, 6), (5, 4), (2,), (1, 3), (7,), (0, 4), (16, 2), (4, 4))
GAMMA = 0.3

Place = tuple[DeviceMesh, tuple[Placement, ...]] | None  # None: a plain tensor
_S0, _S1, _R = Shard(0), Shard(1), Replicate()


def _one_mesh(placements: Callable[[int], tuple[Placement, ...]], shape: tuple[int, ...] | None = None) -> list[Place]:
    sizes = (dist.get_world_size(),) if shape is None else shape
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("a", "b")[: len(sizes)])
    return [(mesh, placements(row)) for row in range(len(SHAPES))]


def _some_plain(places: list[Place]) -> list[Place]:
    return [None if row in (1, 4) else place for row, place in enumerate(places)]


def _two_dims(row: int) -> tuple[Placement, ...]:
    kinds = (
        ((_S0, _S1), (_S0, _R), (_S0, _S0), (_R, _S1), (_R, _R)) if len(SHAPES[row]) == 2 else ((_S0, _R), (_R, _S0))
    )
    return kinds[row % len(kinds)]


def _experts() -> list[Place]:
    """Dense parameters over all four processes, others over two each, whose copies no mesh names."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "experts"))
    both: list[Place] = [(mesh, (_S0, _R)), (mesh["experts"], (_S0,)), (mesh["copies"], (_S0,)), None]
    return [both[row % 4] for row in range(len(SHAPES))]


LAYOUTS: dict[str, Callable[[], list[Place]]] = {
    "fsdp": lambda: _one_mesh(lambda _: (_S0,)),
    "hsdp": lambda: _one_mesh(lambda _: (_R, _S0), (2, 2)),
    "tensor parallel": lambda: _one_mesh(lambda row: (_S1 if row in (0, 3, 7) else _R if row in (2, 4) else _S0,)),
    "fsdp and tensor parallel": lambda: _one_mesh(_two_dims, (2, 2)),
    "replicated": lambda: _one_mesh(lambda _: (_R,)),
    "mixed with plain": lambda: _some_plain(_one_mesh(lambda _: (_S0,))),
    "hsdp with plain": lambda: _some_plain(_one_mesh(lambda _: (_R, _S0), (2, 2))),
    "experts": _experts,
}


def placed(tensor: Tensor, place: Place) -> Tensor:
    """This process' part of a tensor that all processes have."""
    if place is None:
        return tensor.clone()
    return distribute_tensor(tensor.clone(), *place, src_data_rank=None)


def summand(tensor: Tensor, place: Place) -> Tensor:
    """The same, replicated dimensions as sums over the mesh still to be taken, as autograd leaves them."""
    whole = placed(tensor, place)
    if not isinstance(whole, DTensor) or not any(p.is_replicate() for p in whole.placements):
        return whole
    mesh, placements = whole.device_mesh, whole.placements
    share = math.prod(mesh.size(dim) for dim, p in enumerate(placements) if p.is_replicate())
    partial = [Partial() if p.is_replicate() else p for p in placements]
    local = whole.to_local() / share
    return DTensor.from_local(local, mesh, partial, run_check=False, shape=whole.shape, stride=whole.stride())


@dataclass
class Data:
    """Global tensors of some steps, the same in every process."""

    params: list[Tensor]
    grads: list[list[Tensor | None]]
    retain: list[list[Tensor | None]]


def data(steps: int = 3, dtype: torch.dtype = torch.float32, missing: bool = True) -> Data:
    """Gradients that conflict, except in the second step; some missing."""
    generator = torch.Generator().manual_seed(5)

    def normal() -> list[Tensor]:
        return [torch.randn(shape, generator=generator) for shape in SHAPES]

    params, grads, retain = normal(), [], []
    for step in range(steps):
        r, noise = normal(), normal()
        sign = 1.0 if step == 1 else -1.0
        g: list[Tensor | None] = [(sign * a + b).to(dtype) for a, b in zip(r, noise, strict=True)]
        rounded: list[Tensor | None] = [a.to(dtype) for a in r]
        if missing:
            g[6] = None
            rounded[7] = None
        grads.append(g)
        retain.append(rounded)
    return Data([p.to(dtype) for p in params], grads, retain)


@dataclass
class Found:
    """What one process has after each step: statistics, whole tensors, and the bits of its parts."""

    stats: list[list[float]]
    grads: list[list[Tensor]]
    ema: list[list[Tensor]]
    parts: list[dict[tuple[str, int], Tensor]]  # by what and row
    places: list[Any]


def whole(tensor: Tensor | None, like: Tensor) -> Tensor:
    if tensor is None:
        return torch.zeros(like.shape)
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def part(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().clone()


def _coordinates(place: Place) -> tuple[int, ...]:
    """Which shard this process has."""
    if place is None:
        return ()
    mesh, placements = place
    at = mesh.get_coordinate() or []
    return tuple(-1 if p.is_replicate() else c for c, p in zip(at, placements, strict=True))


def collect_halves(
    ema: gru_fast.RetainEMA, params: Sequence[Tensor], retain: Sequence[Tensor | None], **where: int
) -> None:
    """Two micro-batches that share r."""
    with ema.collect(**where):
        for param, r in zip(params, retain, strict=True):
            param.grad = None if r is None else 0.5 * r
    with ema.collect(**where):
        for param, r in zip(params, retain, strict=True):
            if r is not None:
                param.grad += 0.5 * r


def rectified(
    layout: str | None,
    dtype: torch.dtype = torch.float32,
    ema_dtype: torch.dtype | None = None,
    tau: float | None = 2.0,
    how: str = "object",
    partial: bool = False,
) -> Found:
    """Three steps over a layout (None: plain tensors in one process).

    ``how``: with a RetainEMA that is given r ("object"), or collects it in two parts, the second added in place as
    autograd does ("collect"); with a list; to measure; by GDR against r itself, which it collects
    ("direct"); each tensor for itself ("tensors"); against two retain sets ("sets"); or by SAGO, with an average or
    without.
    """
    given = data(dtype=dtype)
    places: list[Place] = [None] * len(SHAPES) if layout is None else LAYOUTS[layout]()
    make = summand if partial else placed
    params = [torch.nn.Parameter(placed(p, place)) for p, place in zip(given.params, places, strict=True)]
    plain = [torch.zeros_like(p, dtype=torch.float32, requires_grad=False) for p in params]
    ema: Any = plain if how == "list" else gru_fast.RetainEMA(params, ema_dtype, seed=11)
    ema = gru_fast.RetainGradient(params) if how == "direct" else ema
    ema = gru_fast.RetainEMA(params, ema_dtype, seed=11, sets=2) if how == "sets" else ema
    found = Found([], [], [], [], 2 * [_coordinates(place) for place in places])
    for grads, retain in zip(given.grads, given.retain, strict=True):
        for param, grad, place in zip(params, grads, places, strict=True):
            param.grad = None if grad is None else make(grad, place)
        r = [None if t is None else make(t, place) for t, place in zip(retain, places, strict=True)]
        if how == "collect":
            collect_halves(ema, params, r)
            step = gru_fast.rectify_(params, ema, GAMMA, tau)
        elif how == "direct":
            collect_halves(ema, params, r)
            step = gru_fast.rectify_(params, ema, tau=tau, rule="gdr")
        elif how == "sets":
            collect_halves(ema, params, r, set=0)
            other = [None if t is None else make(t.flip(0), place) for t, place in zip(retain, places, strict=True)]
            collect_halves(ema, params, other, set=1)
            step = gru_fast.rectify_(params, ema, GAMMA, tau, rule="gem")
        elif how in {"sago", "sago direct"}:
            kept = ema if how == "sago" else None
            gamma = GAMMA if how == "sago" else None
            step = gru_fast.rectify_(params, kept, gamma, tau, retain_grads=r, rule="sago")
        elif how == "tensors":
            step = gru_fast.rectify_(params, ema, GAMMA, tau, retain_grads=r, granularity="tensor")
        elif how == "measure":
            step = gru_fast.measure(params, ema, GAMMA, retain_grads=r)
        else:
            step = gru_fast.rectify_(params, ema, GAMMA, tau, retain_grads=r)
        tensors = ema if how == "list" else [] if how == "direct" else ema.tensors
        found.stats.append(step.stats[:14].tolist())
        found.grads.append([whole(p.grad, q) for p, q in zip(params, given.params, strict=True)])
        found.ema.append([whole(e, q) for e, q in zip(tensors, 2 * given.params, strict=False)])
        named = {("e", row): e for row, e in enumerate(tensors)}
        named |= {("g", row): p.grad for row, p in enumerate(params) if p.grad is not None}
        found.parts.append({key: part(tensor) for key, tensor in named.items()})
    return found


# ---- single questions ------------------------------------------------------------------------------------------------


def fsdp_params(values: Sequence[Tensor]) -> list[Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return [torch.nn.Parameter(placed(value, (mesh, (_S0,)))) for value in values]


def spoil(tensor: Any, process: int, value: float) -> None:
    """Makes one element of one process' part NaN or infinite."""
    if dist.get_rank() == process:
        tensor.to_local()[0] = value


def nonfinite(where: str, how: str) -> dict[str, Any]:
    """A step with NaN in one process. ``how``: with a loss scale, raising, streaming or nothing of these."""
    params = fsdp_params([torch.arange(6.0), torch.ones(5)])
    ema = gru_fast.RetainEMA([("first", params[0]), ("second", params[1])])
    mesh = params[0].device_mesh
    g, r = (fsdp_params([torch.arange(6.0) - 2.0, torch.linspace(-1, 1, 5)]) for _ in range(2))
    grads, retain = [t.detach() for t in g], [t.detach() for t in r]
    spoil((grads if where == "grad" else retain)[1], 1, math.nan)
    before = [part(t).tolist() for t in grads]

    def backward(gradients: list[Tensor]) -> None:
        sum((p * q).sum() for p, q in zip(params, gradients, strict=True)).full_tensor().backward()

    with ema.stream(0.5) if how == "stream" else ema.collect(scale=1.0 if how == "scale" else None):
        backward(retain)
    for p, q in zip(params, grads, strict=True):
        p.grad = q
    said = ""
    try:
        step = gru_fast.rectify_(params, ema, 0.5, 1.0, error_if_nonfinite=how == "raise")
    except RuntimeError as error:
        said = str(error)
        step = None
    assert mesh == params[0].device_mesh
    return {
        "said": said,
        "flags": None if step is None else (step.skipped, step.nonfinite, step.retain_nonfinite),
        "moved": any(bool((e.to_local() != 0).any()) for e in ema.tensors),
        "grad changed": [repr(part(p.grad).tolist()) for p in params] != [repr(b) for b in before],
        "steps": ema.step,
    }


def kept_nan() -> tuple[str, int]:
    """What each of two processes says of a gradient to keep with NaN in the part of the second, and how many it has."""
    params = fsdp_params([torch.arange(6.0), torch.ones(5)])
    ema = gru_fast.RetainEMA(params)
    said = ""
    try:
        with ema.keep():
            for param in params:
                param.grad = torch.zeros_like(param)
                spoil(param.grad, 1, math.nan)
    except ValueError as error:
        said = str(error)
    return said, len(ema.kept)


def kept(folder: Path, action: str, dtype: torch.dtype) -> tuple[list[Tensor], list[bool], list[int]]:
    """A RetainEMA after two steps, saved by torch.distributed.checkpoint; or one that loads it: e, seen and steps."""
    values = [torch.arange(24.0).view(8, 3), torch.ones(5), torch.zeros(1)]  # uneven, empty in some processes
    params = fsdp_params(values) if dist.is_initialized() else [torch.nn.Parameter(value) for value in values]
    params = [torch.nn.Parameter(p.detach().to(dtype)) for p in params]
    ema = gru_fast.RetainEMA(zip("abc", params, strict=True), dtype, seed=3 if action == "save" else 4)
    if action == "save":
        for _ in range(2):
            with ema.collect():
                losses = [(p.square() / 3.0).sum() for p in params[:2]]  # the last has no gradient
                sum(loss.full_tensor() for loss in losses).backward()
            gru_fast.rectify_(params, ema, 0.3, 1.0)
        dcp.save({"ema": ema}, checkpoint_id=folder)
    else:
        dcp.load({"ema": ema}, checkpoint_id=folder)
    state = ema.state_dict()
    numbers = [state["step"], state["seed"], *state["rounding_steps"]]
    return [whole(e, p) for e, p in zip(ema.tensors, params, strict=True)], state["seen"], numbers


def degenerate() -> tuple[bool, bool, float]:
    params = fsdp_params([torch.arange(6.0) + 1.0, torch.ones(5)])
    ema = [p.detach().clone() for p in params]
    for p in params:
        p.grad = -p.detach()
    step = gru_fast.rectify_(params, ema, 0.5, 1.0)
    return step.degenerate, step.clipped, sum(float(p.grad.full_tensor().abs().sum()) for p in params)


def near_opposite(tau: float) -> tuple[float, float]:
    """|g| said and found, where the projection leaves a ten-thousandth of g and float32 sums cannot tell how much."""
    generator = torch.Generator().manual_seed(1)
    e, rest = (torch.randn(2000, generator=generator) for _ in range(2))
    params = fsdp_params([e])
    params[0].grad = fsdp_params([-e + 1e-4 * rest])[0].detach()
    step = gru_fast.rectify_(params, [p.detach().clone() for p in params], 0.5, tau)
    return step.norm_after, float(params[0].grad.full_tensor().double().norm())


def collectives(layout: str, conflict: bool, tau: float | None) -> int:
    """How many all-reduces one step of float32 gradients takes, and that they carry a handful of numbers."""
    given = data(missing=False)
    places = LAYOUTS[layout]()
    params = [torch.nn.Parameter(placed(p, place)) for p, place in zip(given.params, places, strict=True)]
    ema = gru_fast.RetainEMA(params)
    sizes: list[int] = []
    original = dist.all_reduce

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    step = 0 if conflict else 1
    for param, grad, place in zip(params, given.grads[step], places, strict=True):
        param.grad = placed(grad, place)
    retain = [placed(t, place) for t, place in zip(given.retain[step], places, strict=True)]
    dist.all_reduce = counted
    try:
        found = gru_fast.rectify_(params, ema, GAMMA, tau, retain_grads=retain)
    finally:
        dist.all_reduce = original
    assert found.conflict == conflict
    assert all(size <= 5 for size in sizes)
    return len(sizes)


def refusals() -> list[str]:
    """What the core says of layouts that it cannot work on; process 2 is in no mesh."""
    said = []

    def note(action: Callable[[], Any]) -> None:
        try:
            action()
            said.append("fine")
        except (TypeError, ValueError, RuntimeError) as error:
            said.append(f"{type(error).__name__}: {error}")

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    local = torch.ones(4)
    partial = torch.nn.Parameter(DTensor.from_local(local, mesh, [Partial()], run_check=False))
    note(lambda: gru_fast.RetainEMA([("layer.weight", partial)]))
    two = DeviceMesh("cpu", [0, 1])
    inside = torch.nn.Parameter(DTensor.from_local(local, two, [_S0], run_check=False))
    note(lambda: gru_fast.RetainEMA([inside]))
    sharded = fsdp_params([torch.ones(6)])[0]
    sharded.grad = placed(torch.ones(6), (mesh, (_S0,)))
    note(lambda: gru_fast.rectify_([sharded], [torch.zeros(6)], 0.5))
    note(lambda: gru_fast.rectify_([sharded], [placed(torch.zeros(6), (mesh, (_R,)))], 0.5))
    note(lambda: gru_fast.rectify_([sharded], gru_fast.RetainEMA([sharded]), 0.5, retain_grads=[torch.ones(6)]))
    with_nothing = gru_fast.RetainEMA([sharded])

    def collect_nothing() -> None:
        with with_nothing.collect():
            pass

    note(collect_nothing)
    both = fsdp_params([torch.ones(6), torch.ones(6)])
    for param in both:
        param.grad = placed(torch.ones(6), (mesh, (_S0,)))
    narrow = [placed(torch.zeros(6, dtype=dtype), (mesh, (_S0,))) for dtype in (torch.float32, torch.bfloat16)]
    note(lambda: gru_fast.rectify_(both, narrow, 0.5))
    return said
