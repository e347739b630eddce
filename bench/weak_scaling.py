"""A rectified step on 1, 2 and 4 processes of this machine, as many elements in each: does the model's shape hold?

The model of scaling_model.py says of a sharded step: the passes over the local shard, as if there were no others, and
a few all-reduces of some bytes. So three things are timed in turn, in the same processes: the step on plain tensors
(no exchange), the all-reduce of a step's sums alone, and the step on DTensors. Predicted is the first plus as many of
the second as the step makes. Processes beyond the cores share them, which the first sees as well.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import report
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import gru_fast

_NUMEL, _TENSORS, _ROUNDS = 4_000_000, 40, 15
_SUMS = 14
_GAMMA, _TAU = 0.8, 1.0


@dataclass(frozen=True)
class Point:
    """Medians in seconds; ``collectives`` as counted in a step."""

    processes: int
    numel: int
    local: float
    all_reduce: float
    collectives: int
    sharded: float

    @property
    def predicted(self) -> float:
        return self.local + self.collectives * self.all_reduce


def run(worlds: tuple[int, ...] = (1, 2, 4), numel: int = _NUMEL, rounds: int = _ROUNDS) -> list[Point]:
    """A point for each number of processes, ``numel`` elements in each of them."""
    points = []
    for world in worlds:
        report.progress(f"weak scaling: {world} processes")
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_work, (world, folder, numel, rounds), nprocs=world)
            values = torch.load(Path(folder) / "point", weights_only=True)
        points.append(Point(world, numel, **values))
    return points


def describe(points: list[Point]) -> str:
    """A table, and what to look for."""
    rows = [["processes", "local ms", "all-reduce us", "collectives", "predicted ms", "measured ms", "ratio"]]
    rows += [
        [
            str(p.processes), f"{p.local * 1e3:.3g}", f"{p.all_reduce * 1e6:.3g}", str(p.collectives),
            f"{p.predicted * 1e3:.3g}", f"{p.sharded * 1e3:.3g}", f"{p.sharded / p.predicted:.2f}",
        ]
        for p in points
    ]  # fmt: skip
    cores = os.cpu_count()
    return "\n".join([
        f"Weak scaling, {points[0].numel:,} float32 elements a process, gloo, one thread each, {cores} cores here:", "",
        report.grid(rows), "",
        "ratio: measured over predicted; what is above 1 is DTensor's own bookkeeping and waiting.",
    ])  # fmt: skip


def _work(rank: int, world: int, folder: str, numel: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        values = _measure(rank, world, numel, rounds)
        if rank == 0:
            torch.save(values, Path(folder) / "point")
    finally:
        dist.destroy_process_group()


def _measure(rank: int, world: int, numel: int, rounds: int) -> dict[str, float | int]:
    mesh = init_device_mesh("cpu", (world,))
    generator = torch.Generator().manual_seed(rank)
    size = numel // _TENSORS
    retain = [torch.randn(size, generator=generator) for _ in range(_TENSORS)]
    start = [torch.randn(size, generator=generator) - 2.0 * r for r in retain]
    grads = [g.clone() for g in start]

    def sharded(values: list[Tensor]) -> list[Tensor]:
        return [DTensor.from_local(value, mesh, [Shard(0)], run_check=False) for value in values]

    def stepper(place: Callable[[list[Tensor]], list[Tensor]]) -> Callable[[], object]:
        params = [nn.Parameter(p) for p in place([torch.zeros(size) for _ in range(_TENSORS)])]
        ema = gru_fast.RetainEMA(params)
        for param, grad in zip(params, place(grads), strict=True):
            param.grad = grad
        kept = place(retain)
        return lambda: gru_fast.rectify_(params, ema, _GAMMA, _TAU, retain_grads=kept)

    sums = torch.zeros(_SUMS, dtype=torch.float64)
    calls: dict[str, Callable[[], object]] = {
        "local": stepper(lambda values: values),
        "all_reduce": lambda: dist.all_reduce(sums),
        "sharded": stepper(sharded),
    }

    def restore() -> None:
        for grad, value in zip(grads, start, strict=True):
            grad.copy_(value)

    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):  # the first is thrown away
        for name, call in calls.items():
            restore()
            dist.barrier()
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    medians: dict[str, float | int] = {name: float(np.median(values[1:])) for name, values in times.items()}
    restore()
    return {**medians, "collectives": _count_all_reduces(calls["sharded"])}


def _count_all_reduces(step: Callable[[], object]) -> int:
    found, real = 0, dist.all_reduce

    def counted(*args: object, **settings: object) -> object:
        nonlocal found
        found += 1
        return real(*args, **settings)

    dist.all_reduce = counted
    try:
        step()
    finally:
        dist.all_reduce = real
    return found
