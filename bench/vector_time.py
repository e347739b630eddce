"""Time of one unit of TRU in the space of parameters: rectify its task vector, normalise it, add it to the mean.

    python bench/vector_time.py                                     # SmolLM2-135M, under a minute
    python bench/vector_time.py --device cuda --shapes llama2-7b --dtype bfloat16

`gru_fast.vectors.accumulate_task_vector_` against PyTorch's forms of it. Each is checked against float64 before it is
timed. `x floor` is a form's time over that of a copy that moves as many bytes, taken before and after it; a copy writes
half of them and a unit a quarter, so it can come out below 1.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import memory
import report
import shapes
import torch
from timing import clock_for, measure, quantiles
from torch import Tensor

from gru_fast.core.vectors import accumulate_task_vector_

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LIMIT = 1e-4  # of |error| / |mean|: what is added is float32 whatever the parameters are
_PIECE = 1 << 24  # elements that the oracle takes at a time


class Problem:
    """theta_s, theta_org, two gradients and the mean, one buffer each; lists are views of it. T and r conflict."""

    def __init__(self, sizes: list[shapes.Shape], dtype: torch.dtype, device: torch.device) -> None:
        self.sizes, self.device, self.dtype = sizes, device, dtype
        self.numel = shapes.count(sizes)
        generator = torch.Generator(device).manual_seed(0)

        def draw(scale: float) -> Tensor:
            return scale * torch.randn(self.numel, generator=generator, device=device)

        total, own = draw(1.0), draw(0.3)
        self.total, self.own, self.origin = total.to(dtype), own.to(dtype), draw(1.0).to(dtype)
        self.learned = (self.origin.float() - 0.05 * total + draw(0.05)).to(dtype)
        self.params, self.mean = self.learned.clone(), torch.zeros(self.numel, device=device)

    def views(self, flat: Tensor) -> list[Tensor]:
        """One tensor a parameter."""
        parts = flat.split([shapes.count([size]) for size in self.sizes])
        return [part.view(size) for part, size in zip(parts, self.sizes, strict=True)]

    def reset(self) -> None:
        self.params.copy_(self.learned)
        self.mean.zero_()

    def bytes_moved(self) -> int:
        """Both passes read theta_s, theta_org and the gradients; add reads the mean too, writes it and theta."""
        return self.numel * (9 * self.dtype.itemsize + 2 * 4)

    def expected(self) -> Tensor:
        """The mean afterwards, float64 on the CPU."""
        dot = rest_sq = task_sq = 0.0
        for task, rest in self._pieces():
            dot += float(task @ rest)
            rest_sq += float(rest @ rest)
            task_sq += float(task @ task)
        factor = max(-dot, 0.0) / rest_sq
        norm = (task_sq + 2 * factor * dot + factor**2 * rest_sq) ** 0.5
        return torch.cat([((task + factor * rest) / norm).float().cpu() for task, rest in self._pieces()])

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self.numel, _PIECE):
            part = slice(start, start + _PIECE)
            task = self.learned[part].double() - self.origin[part].double()
            yield task, self.total[part].double() - self.own[part].double()


# ---- forms -----------------------------------------------------------------------------------------------------------


class Form(ABC):
    """``step`` does one unit; nothing else is timed."""

    name: str

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.params, self.origin, self.mean, self.total, self.own = (
            problem.views(flat) for flat in (problem.params, problem.origin, problem.mean, problem.total, problem.own)
        )

    @abstractmethod
    def step(self) -> None: ...


class GruFast(Form):
    name = report.OURS

    def step(self) -> None:
        accumulate_task_vector_(self.params, self.origin, self.mean, total=self.total, own=self.own)


class Lists(Form):
    """Multi-tensor calls over lists; T and r in float32, as large as the model each."""

    name = "foreach"

    def step(self) -> None:
        task, rest = (self._difference(a, b) for a, b in ((self.params, self.origin), (self.total, self.own)))
        dot = torch.stack([torch.dot(t.view(-1), r.view(-1)) for t, r in zip(task, rest, strict=True)]).sum()
        rest_sq = torch.stack(torch._foreach_norm(rest)).square().sum()
        factor = torch.clamp(-dot, min=0.0) / rest_sq
        torch._foreach_mul_(rest, factor)
        torch._foreach_add_(task, rest)
        norm = torch.stack(torch._foreach_norm(task)).square().sum().sqrt()
        torch._foreach_div_(task, norm)
        torch._foreach_add_(self.mean, task)
        torch._foreach_copy_(self.params, self.origin)

    @staticmethod
    def _difference(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
        return list(torch._foreach_sub([x.float() for x in a], [x.float() for x in b]))


class Loop(Form):
    """A loop over the parameters, T and r formed where they are needed."""

    name = "loop"

    def step(self) -> None:
        quads = list(zip(self.params, self.origin, self.total, self.own, strict=True))
        device = self.problem.device
        dot, rest_sq, task_sq = (torch.zeros((), device=device) for _ in range(3))
        for param, origin, total, own in quads:
            task, rest = param.float() - origin, total.float() - own
            dot += torch.sum(task * rest)
            rest_sq += torch.sum(rest * rest)
            task_sq += torch.sum(task * task)
        factor = torch.clamp(-dot, min=0.0) / rest_sq
        scale = (task_sq + 2 * factor * dot + factor**2 * rest_sq).rsqrt()
        for (param, origin, total, own), mean in zip(quads, self.mean, strict=True):
            mean.add_(scale * ((param.float() - origin) + factor * (total.float() - own)))
            param.copy_(origin)


def _flat(params: Tensor, origin: Tensor, mean: Tensor, total: Tensor, own: Tensor) -> None:
    task, rest = params.float() - origin, total.float() - own
    dot, rest_sq = torch.sum(task * rest), torch.sum(rest * rest)
    rectified = task + torch.clamp(-dot, min=0.0) / rest_sq * rest
    mean += rectified / torch.linalg.vector_norm(rectified)
    params.copy_(origin)


class FlatCompile(Form):
    """torch.compile over one buffer a list, which no model has: what fusion alone comes to."""

    name = "flat-compile"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.call: Any = torch.compile(_flat, dynamic=False)

    def step(self) -> None:
        p = self.problem
        self.call(p.params, p.origin, p.mean, p.total, p.own)


BASELINES: tuple[type[Form], ...] = (Lists, Loop, FlatCompile)


# ---- run -------------------------------------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", choices=list(shapes.MODELS), default="smollm2-135m", help="model to take the parameter shapes of"
    )
    parser.add_argument("--tensors", type=int, help="instead of --shapes: this many tensors ...")
    parser.add_argument("--numel", type=int, help="... with this many elements in all")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument(
        "--dtype", nargs="+", choices=list(DTYPES), default=["float32", "bfloat16"], help="of parameters and gradients"
    )
    parser.add_argument("--no-compile", action="store_true", help="no torch.compile")
    parser.add_argument("--rounds", type=int, default=30, help="rounds at most (default: 30)")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of measuring in all (default: 30)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--json", type=Path, help="write all results here")
    options = parser.parse_args(arguments)
    if (options.tensors is None) != (options.numel is None):
        parser.error("--tensors and --numel go together")
    return options


def error_of(form: Form, answer: Tensor) -> float:
    """|mean - answer| / |answer| after one step, which must also have put theta back."""
    problem = form.problem
    problem.reset()
    form.step()
    if not torch.equal(problem.params, problem.origin):
        raise SystemExit(f"{form.name}: the parameters are not theta_org again")
    return float((problem.mean.cpu() - answer).norm() / answer.norm())


def run(problem: Problem, options: argparse.Namespace, budget: float) -> list[dict[str, Any]]:
    """Checks, times and prints; a record a form."""
    forms = [form(problem) for form in (GruFast, *BASELINES) if not (options.no_compile and form is FlatCompile)]
    answer = problem.expected()
    errors = {form.name: error_of(form, answer) for form in forms}
    wrong = {name: error for name, error in errors.items() if not error <= _LIMIT}
    if wrong:
        raise SystemExit(f"off by more than {_LIMIT:g}: {wrong}")
    size = problem.bytes_moved() // 2
    source, target = (torch.zeros(size, dtype=torch.uint8, device=problem.device) for _ in range(2))
    samples = measure(
        {form.name: form.step for form in forms},
        lambda: target.copy_(source),
        problem.reset,
        clock_for(problem.device),
        budget=budget,
        rounds=options.rounds,
        progress=report.progress,
    )
    ours = quantiles(samples[report.OURS].ratios())[1]
    records = []
    for form in forms:
        each = samples[form.name]
        low, ratio, high = quantiles(each.ratios())
        seconds = quantiles(each.seconds)[1]
        records.append({
            "form": form.name, "floor_ratio": (low, ratio, high), "vs_gru_fast": ratio / ours, "ms": seconds * 1e3,
            "gb_per_s": problem.bytes_moved() / seconds * 1e-9, "error": errors[form.name], "samples": len(each),
        })  # fmt: skip
    rows = [["form", "x floor (20-80%)", "vs gru_fast", "ms", "GB/s", "error", "n"]]
    for r in sorted(records, key=lambda r: r["floor_ratio"][1]):
        low, ratio, high = r["floor_ratio"]
        rows.append([
            r["form"], f"{ratio:.2f} ({low:.2f}-{high:.2f})", f"{r['vs_gru_fast']:.2f}", f"{r['ms']:.4g}",
            f"{r['gb_per_s']:.3g}", f"{r['error']:.1e}", str(r["samples"]),
        ])  # fmt: skip
    report.say([report.grid(rows), ""])
    return records


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"--device {options.device}: torch {torch.__version__} sees no CUDA device")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    about = machine.describe(device, keeps_freed_memory=memory.keep_freed_memory())
    report.say(machine.header(about) + "\n")
    custom = options.tensors is not None
    sizes = shapes.custom(options.tensors, options.numel) if custom else shapes.shapes_of(options.shapes)
    results = {}
    for dtype in options.dtype:
        problem = Problem(sizes, DTYPES[dtype], device)
        report.say(f"### {'custom' if custom else options.shapes}, {dtype}: {len(sizes)} tensors, "
                   f"{problem.numel:,} parameters\n")  # fmt: skip
        results[dtype] = run(problem, options, options.budget / len(options.dtype))
    if options.json is not None:
        report.write_json(options.json, about, results=results)


if __name__ == "__main__":
    main()
