"""Time of one rectified step: gru_fast, the PyTorch forms of it, and the memory floor.

    python bench/step_time.py                                        # under two minutes
    python bench/step_time.py --all --budget 600 --json out.json     # the forms that take minutes to compile as well
    python bench/step_time.py --device cuda --shapes llama2-7b --dtype bfloat16 --ema-dtype grad float32

Every form is checked against a float64 oracle before it is timed. README.md says how to read the table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import expected
import machine
import memory
import plots
import report
import shapes
import torch
from baselines import BASELINES
from forms import Form, GruFast, Probe
from problem import CASES, Problem, resident_bytes
from timing import Clock, clock_for, measure, quantiles

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SLACK = 1.1  # of the memory a problem is known to need


# ---- what to run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One problem, to be measured in every case."""

    model: str
    shapes: list[shapes.Shape]
    grad_dtype: torch.dtype
    ema_dtype: torch.dtype

    @property
    def numel(self) -> int:
        return shapes.count(self.shapes)

    @property
    def title(self) -> str:
        return f"{self.model} {short(self.grad_dtype)} gradients, {short(self.ema_dtype)} EMA"


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes",
        nargs="+",
        choices=list(shapes.MODELS),
        default=None,
        help="models to take the parameter shapes of (default: smollm2-135m)",
    )
    parser.add_argument("--tensors", type=int, help="instead of --shapes: this many tensors ...")
    parser.add_argument("--numel", type=int, help="... with this many elements in all")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=list(DTYPES),
        default=["float32", "bfloat16"],
        help="of the gradients (default: float32 bfloat16)",
    )
    parser.add_argument(
        "--ema-dtype",
        nargs="+",
        choices=["grad", *DTYPES],
        default=["grad"],
        help="of the EMA; grad: that of the gradients (default: grad)",
    )
    parser.add_argument(
        "--case",
        nargs="+",
        choices=CASES,
        default=list(CASES),
        help="full: project and clip; none: nothing to do (default: both)",
    )
    parser.add_argument("--baselines", nargs="*", choices=list(BASELINES), default=None, help="only these")
    parser.add_argument("--without", nargs="*", choices=list(BASELINES), default=[], help="all but these")
    parser.add_argument(
        "--all", action="store_true", help="also what takes minutes: compile-lists*, flat-autotune, reference"
    )
    parser.add_argument("--no-compile", action="store_true", help="no torch.compile baselines")
    parser.add_argument("--rounds", type=int, default=50, help="rounds at most (default: 50)")
    parser.add_argument(
        "--budget",
        type=float,
        default=40.0,
        help="seconds of measuring, over all tables; checks and compiling come on top (default: 40)",
    )
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=30.0,
        help="a baseline whose checked step took longer is not timed (default: 30)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--json", type=Path, help="write all results here, after every table")
    parser.add_argument("--plot", type=Path, help="write a figure here (needs matplotlib)")
    options = parser.parse_args(arguments)
    if (options.tensors is None) != (options.numel is None):
        parser.error("--tensors and --numel go together")
    if options.tensors is not None and options.shapes:
        parser.error("--tensors/--numel and --shapes exclude each other")
    return options


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    if options.tensors is not None:
        models = {"custom": shapes.custom(options.tensors, options.numel)}
    else:
        models = {name: shapes.shapes_of(name) for name in options.shapes or ["smollm2-135m"]}
    for name, model_shapes in models.items():
        for grad in options.dtype:
            for ema in options.ema_dtype:
                grad_dtype, ema_dtype = DTYPES[grad], DTYPES[grad if ema == "grad" else ema]
                if ema_dtype in (torch.float32, grad_dtype):
                    yield Job(name, model_shapes, grad_dtype, ema_dtype)


def chosen_baselines(options: argparse.Namespace) -> tuple[list[type[Form]], dict[str, str]]:
    """The baselines to run, and why the others are left out."""
    chosen, left_out = [], {}
    for name, form in BASELINES.items():
        if options.baselines is not None:
            if name in options.baselines:
                chosen.append(form)
        elif name in options.without:
            left_out[name] = "--without"
        elif form.compiled and options.no_compile:
            left_out[name] = "--no-compile"
        elif not form.by_default and not options.all:
            left_out[name] = ("takes minutes to compile" if form.compiled else "slow") + "; --all includes it"
        else:
            chosen.append(form)
    return chosen, left_out


# ---- one problem -----------------------------------------------------------------------------------------------------


@dataclass
class Checked:
    """What was found out about a form before it was timed."""

    accuracy: expected.Accuracy
    complaint: str | None
    peak_extra: int | None


@dataclass
class Bench:
    """The forms of one problem, checked and timed case by case."""

    job: Job
    problem: Problem
    clock: Clock
    probe: Probe
    max_seconds: float
    forms: dict[str, Form] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    peaks: dict[str, int | None] = field(default_factory=dict)

    def add(self, form: type[Form]) -> None:
        """Builds a form, unless the host has too little memory for it."""
        available, needed = memory.host_bytes(), int(form.working_bytes(self.problem) * _SLACK)
        if available is not None and needed > available:
            self.left_out[form.name] = f"needs {needed / 1e9:.0f} GB of host memory, {available / 1e9:.0f} GB are free"
        else:
            self.forms[form.name] = form(self.problem)

    def check(self, name: str, answer: expected.Answer) -> Checked | None:
        """One step from the start against the oracle. None: too little memory or too slow; the form is dropped."""
        form, problem = self.forms[name], self.problem
        report.progress(f"{self.job.title}, case {problem.case}: checking {name}")
        try:
            if form.compiled:  # so that compiling is not counted as the step's memory
                form.step()
            self.restore(form)
            began = time.perf_counter()
            if name not in self.peaks:
                self.peaks[name] = memory.peak_extra(form.step, problem.device)
            else:
                form.step()
            grad, ema = form.result()
            took = time.perf_counter() - began
        except (torch.OutOfMemoryError, MemoryError):
            self.drop(name, "out of memory")
            return None
        if took > self.max_seconds:
            self.drop(name, f"one step took {took:.0f} s; --max-seconds allows {self.max_seconds:g} s")
            return None
        accuracy = expected.compare(problem, answer, grad, ema, stochastic=form.stochastic)
        return Checked(accuracy, accuracy.complaint(problem), self.peaks[name])

    def drop(self, name: str, reason: str) -> None:
        self.left_out[name] = reason
        del self.forms[name]
        if self.problem.device.type == "cuda":
            torch.cuda.empty_cache()

    def restore(self, form: Form) -> None:
        self.problem.reset_grad()
        self.problem.reset_ema()
        form.reset()

    def check_all(self, answer: expected.Answer) -> dict[str, Checked]:
        """Everything checked; what is ours must be right. The greediest form comes last: see `memory.peak_extra`, which
        hands freed memory back; after it malloc keeps enough for all."""
        by_memory = sorted(self.forms, key=lambda name: self.forms[name].working_bytes(self.problem))
        found = {name: self.check(name, answer) for name in by_memory}
        checked = {name: result for name, result in found.items() if result is not None}
        ours = checked.get(GruFast.name)
        if ours is None or ours.complaint:
            raise SystemExit(f"{self.job.title}: gru_fast is wrong: {ours.complaint if ours else 'out of memory'}")
        return checked

    def run(self, case: str, budget: float, rounds: int) -> report.Cell:
        problem, job = self.problem, self.job
        checked = self.check_all(expected.start(problem, case))
        bytes_moved = problem.bytes_moved()
        copy = self.copy_seconds()
        start = time.perf_counter()
        samples = measure(
            {name: form.step for name, form in self.forms.items()},
            self.probe.step,
            problem.reset_grad,
            self.clock,
            budget=budget,
            rounds=rounds,
            progress=lambda text: report.progress(f"{job.title}, case {case}: {text}"),
        )
        seconds = time.perf_counter() - start
        floors = [floor for each in samples.values() for floor in each.floors]
        return report.Cell(
            model=job.model,
            tensors=len(job.shapes),
            numel=problem.numel,
            grad_dtype=short(job.grad_dtype),
            ema_dtype=short(job.ema_dtype),
            case=case,
            bytes_moved=bytes_moved,
            rounds=max(len(each) for each in samples.values()),
            seconds=seconds,
            probe_ms=quantiles(floors)[1] * 1e3,
            copy_gb_per_s=2 * problem.numel * problem.grad_dtype.itemsize / copy * 1e-9,
            forms=[
                report.FormResult.of(name, each, bytes_moved, found.peak_extra, found.accuracy, found.complaint)
                for name, each in samples.items()
                for found in [checked[name]]
            ],
            left_out=dict(self.left_out),
        )

    def copy_seconds(self) -> float:
        """torch's own copy of g's size, for orientation: the median of 3."""
        seconds = []
        for _ in range(3):
            (took,), _ = self.clock.time([lambda: self.problem.flat_grad.copy_(self.problem.flat_retain)])
            seconds.append(took)
        return quantiles(seconds)[1]


def run_job(job: Job, options: argparse.Namespace, budget: float) -> list[report.Cell]:
    device = torch.device(options.device)
    memory.release_freed_memory()
    needed = int(resident_bytes(job.numel, job.grad_dtype, job.ema_dtype) * _SLACK)
    available = memory.available_bytes(device)
    if available is not None and needed > available:
        report.say(f"### {job.title}: skipped, needs {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are free\n")
        return []
    report.progress(f"{job.title}: making gradients")
    problem = Problem(job.shapes, job.grad_dtype, job.ema_dtype, device)
    forms, left_out = chosen_baselines(options)
    bench = Bench(job, problem, clock_for(device), Probe(problem), options.max_seconds, left_out=left_out)
    bench.add(GruFast)
    for form in forms:
        bench.add(form)
    cells = []
    for case in options.case:
        cells.append(bench.run(case, budget / len(options.case), options.rounds))
        report.say(report.describe(cells[-1]) + "\n")
    return cells


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.plot is not None:
        plots.pyplot()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"--device {options.device}: torch {torch.__version__} sees no CUDA device")
    about = machine.describe(device, keeps_freed_memory=memory.keep_freed_memory())
    report.say(machine.header(about) + "\n")
    todo = list(jobs(options))
    cells: list[report.Cell] = []
    for job in todo:
        cells += run_job(job, options, options.budget / len(todo))
        if options.json is not None:  # after each, for whoever has no time for all
            report.write_json(options.json, about, cells=cells)
    report.say([report.verdict(cell) for cell in cells])
    if options.plot is not None and cells:
        plots.plot_cells(options.plot, cells, machine.device_name(device))


if __name__ == "__main__":
    main()
