"""How the step's time grows: with the number of parameters, with the number of tensors, and what a call costs at least.

    python bench/scaling.py                                  # about a minute and a half
    python bench/scaling.py --plot scaling.png --json scaling.json
    python bench/scaling.py --device cuda --dtype bfloat16 --numel 1000000 100000000 1000000000

Times are medians of interleaved samples (timing.py), case `full`, in ms; `probe` is the memory floor. Small problems
stay in the caches from one sample to the next on a CPU: that is where lines dip below proportional.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import expected
import machine
import memory
import plots
import report
import shapes
import torch
from baselines import BASELINES
from forms import Form, GruFast, Probe, parameters_with
from problem import Problem, resident_bytes
from step_time import DTYPES
from timing import Clock, clock_for, measure, no_garbage_collection, quantiles

import gru_fast
from gru_fast import _core

_NUMELS = [10**5, 10**6, 10**7, 10**8, 10**9]
_TENSORS = [1, 10, 100, 1000, 10_000]
_FIXED_TENSORS = 300  # of the sweep over parameters, and of the fixed cost
_TINY_NUMEL = 64  # elements of each tensor where the fixed cost is measured
# Peak bytes beyond the problem itself: malloc, the interpreter, torch.
_HEADROOM = 1.2

Call = Callable[[], object]


@dataclass
class Point:
    """One problem of a sweep: median ms of every form and of the probe."""

    sweep: str
    tensors: int
    numel: int
    ms: dict[str, float]
    samples: dict[str, int]


@dataclass
class Part:
    """A share of the fixed cost, in microseconds."""

    name: str
    us: float


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of the gradients (default: float32)")
    parser.add_argument("--ema-dtype", choices=list(DTYPES), default=None, help="default: that of the gradients")
    parser.add_argument("--numel", nargs="*", type=int, default=_NUMELS, help="sweep over parameters")
    parser.add_argument("--tensors", nargs="*", type=int, default=_TENSORS, help="sweep over tensors")
    parser.add_argument("--total", type=int, default=2 * 10**7, help="parameters of the sweep over tensors")
    parser.add_argument(
        "--baselines", nargs="*", choices=list(BASELINES), default=["eager", "flat-blocked", "flat-compile"]
    )
    parser.add_argument("--no-compile", action="store_true", help="no torch.compile baselines")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--budget", type=float, default=40.0, help="seconds of measuring, all points (default: 40)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args(arguments)


# ---- sweeps ----------------------------------------------------------------------------------------------------------


def measure_point(
    sweep: str, tensors: int, numel: int, options: argparse.Namespace, clock: Clock, budget: float
) -> Point | None:
    """None where the problem does not fit into memory."""
    device, grad_dtype = torch.device(options.device), DTYPES[options.dtype]
    ema_dtype = DTYPES[options.ema_dtype or options.dtype]
    memory.release_freed_memory()
    needed, available = resident_bytes(numel, grad_dtype, ema_dtype) * _HEADROOM, memory.available_bytes(device)
    if available is not None and needed > available:
        report.say(f"{numel:,} parameters left out: {needed / 1e9:.1f} GB needed, {available / 1e9:.1f} GB are free")
        return None
    problem = Problem(shapes.custom(tensors, numel), grad_dtype, ema_dtype, device)
    answer = expected.start(problem, "full")
    forms: list[Form] = [GruFast(problem)]
    baselines = [BASELINES[name] for name in options.baselines]
    forms += [form(problem) for form in baselines if not (form.compiled and options.no_compile)]
    for form in forms:
        report.progress(f"{sweep} {tensors} x {numel:,}: checking {form.name}")
        check(form, answer)
    samples = measure(
        {form.name: form.step for form in forms},
        Probe(problem).step,
        problem.reset_grad,
        clock,
        budget=budget,
        rounds=options.rounds,
        progress=lambda text: report.progress(f"{sweep} {tensors} x {numel:,}: {text}"),
    )
    ms = {name: quantiles(each.seconds)[1] * 1e3 for name, each in samples.items()}
    ms["probe"] = quantiles([floor for each in samples.values() for floor in each.floors])[1] * 1e3
    return Point(sweep, tensors, numel, ms, {name: len(each) for name, each in samples.items()})


def check(form: Form, answer: expected.Answer) -> None:
    """One step against the oracle; a wrong form has no place in a sweep."""
    problem = form.problem
    problem.reset_grad()
    problem.reset_ema()
    form.reset()
    form.step()
    grad, ema = form.result()
    complaint = expected.compare(problem, answer, grad, ema, stochastic=form.stochastic).complaint(problem)
    if complaint:
        raise SystemExit(f"{form.name}, {len(problem.shapes)} tensors, {problem.numel:,} parameters: {complaint}")


def sweep_table(points: list[Point]) -> str:
    names = list(points[0].ms)
    rows = [["tensors x parameters", *names, "n"]]
    for point in points:
        values = [f"{point.ms[name]:.4g}" for name in names]
        counts = sorted(point.samples.values())
        rows.append([f"{point.tensors} x {point.numel:,}", *values, f"{counts[0]}-{counts[-1]}"])
    return report.grid(rows)


# ---- fixed cost ------------------------------------------------------------------------------------------------------


def microseconds(call: Call, before: Call, device: torch.device, repeats: int = 200) -> float:
    """Median time of one call, the device's work included; `before` runs ahead of each, untimed."""
    took = []
    with no_garbage_collection():
        for _ in range(repeats):
            before()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took.append(time.perf_counter() - start)
    return quantiles(took)[1] * 1e6


def fixed_cost(options: argparse.Namespace) -> list[Part]:
    """What a step of many tiny tensors spends, where memory traffic is next to nothing."""
    device, grad_dtype = torch.device(options.device), DTYPES[options.dtype]
    ema_dtype = DTYPES[options.ema_dtype or options.dtype]
    model_shapes = shapes.custom(_FIXED_TENSORS, _FIXED_TENSORS * _TINY_NUMEL)
    problem = Problem(model_shapes, grad_dtype, ema_dtype, device)
    expected.start(problem, "full")
    params = parameters_with(problem.grads)
    retain_ema = gru_fast.RetainEMA(params, dtype=ema_dtype)
    table = _core.Table(problem.grads, problem.retain, problem.ema)
    stats = torch.zeros(_core.NUM_STATS, dtype=torch.float64, device=device)
    scratch = torch.empty(table.scratch_bytes, dtype=torch.uint8, device=device)
    rounding = torch.zeros(1, dtype=torch.int64, device=device)
    threads = torch.get_num_threads()
    gamma, tau = problem.gamma, problem.tau

    def rectify(ema: gru_fast.RetainEMA | list[torch.Tensor]) -> None:
        gru_fast.rectify_(params, ema, gamma, tau, retain_grads=problem.retain)

    def reduce() -> None:
        table.reduce(stats, scratch, rounding, 1 - gamma, gamma, 0, False, threads)

    def restore() -> None:  # so that every call has a conflict to deal with, `apply` and `finish` included
        problem.reset_grad()
        reduce()

    no_options = (0.0, 0.0, 0.0, 0.0)  # GRU has none
    calls: dict[str, Call] = {
        "rectify_ with a RetainEMA": lambda: rectify(retain_ema),
        "rectify_ with lists": lambda: rectify(problem.ema),
        "  of it: gathering .grad": lambda: [param.grad for param in params],
        "  of it: table of pointers": lambda: _core.Table(problem.grads, problem.retain, problem.ema),
        "  of it: reduce": reduce,
        "  of it: apply": lambda: table.apply(stats, scratch, tau, "gru", no_options, threads),
        "  of it: finish": lambda: table.finish(stats, scratch, tau, "gru", no_options, threads),
    }
    parts = []
    for name, call in calls.items():
        call()  # warm-up
        parts.append(Part(name, microseconds(call, restore, device)))
    rest = parts[1].us - sum(part.us for part in parts[2:])
    return [*parts, Part("  of it: the rest (checks, statistics, Python)", rest)]


# ---- everything ------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.plot is not None:
        plots.pyplot()
    device = torch.device(options.device)
    about = machine.describe(device, keeps_freed_memory=memory.keep_freed_memory())
    report.say(machine.header(about) + "\n")
    problems = [("numel", min(_FIXED_TENSORS, numel), numel) for numel in options.numel]
    problems += [("tensors", tensors, options.total) for tensors in options.tensors]
    clock, budget = clock_for(device), options.budget / max(len(problems), 1)
    points = []
    for sweep, tensors, numel in problems:
        point = measure_point(sweep, tensors, numel, options, clock, budget)
        points += [point] if point else []
    for sweep, title in (("numel", f"{_FIXED_TENSORS} tensors"), ("tensors", f"{options.total:,} parameters")):
        found = [point for point in points if point.sweep == sweep]
        if found:
            report.say(f"### {title}, {options.dtype} gradients: ms\n\n{sweep_table(found)}\n")
    parts = fixed_cost(options)
    rows = [[f"{_FIXED_TENSORS} tensors of {_TINY_NUMEL}", "us"], *([part.name, f"{part.us:.1f}"] for part in parts)]
    report.say(f"### Fixed cost of a step\n\n{report.grid(rows)}")
    if options.json is not None:
        report.write_json(options.json, about, points=points, fixed_cost=parts)
    if options.plot is not None and points:
        plots.plot_sweeps(options.plot, lines(points), machine.device_name(device))


def lines(points: list[Point]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Sweep -> form -> (swept number, ms)."""
    out: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for point in points:
        swept = point.numel if point.sweep == "numel" else point.tensors
        for name, ms in point.ms.items():
            out.setdefault(point.sweep, {}).setdefault(name, []).append((swept, ms))
    return out


if __name__ == "__main__":
    main()
