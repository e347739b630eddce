"""Time of one step by each rule against the retain gradient itself, and of the same by other people's code.

    python bench/rules_time.py                                              # SmolLM2-135M, gru_fast alone
    python bench/rules_time.py --torchjd --sago SAGO/src/trainer/unlearn/grad_surgery.py --hamu HAMU --json out.json
    python bench/rules_time.py --tensors 20 --numel 100000 --budget 2       # a look

`--torchjd`: TorchJD, where it is installed with its extra [quadprog_projector]. `--sago`, `--hamu`: files of the peers'
own repositories, which are read as they are (of the first, one class without its trainer). What is timed is what each
does between two backward passes and the optimizer: from the gradients in lists to the gradient in `.grad`, copies it
makes of them included.

Every form is held against a float64 oracle first. Then all are sampled in turn, shuffled, each between two runs of a
probe that moves the bytes of a step; the ratio is that of the medians over the probe.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import machine
import memory
import report
import shapes
import torch
from forms import Probe, parameters_with
from problem import Problem
from timing import Samples, clock_for, measure, quantiles
from torch import Tensor, nn

import gru_fast
from gru_fast.rules import BLUR, GU, HAMU, SAGO, PCGrad, Rule, rule_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of |error| / |exact|
_Q = 1e-3  # of HAMU, in units of |g|^2


@dataclass
class Form:
    """One way to do what one rule says. ``step`` leaves the gradient in ``params``' ``.grad``.

    Args:
        rule: what it computes, a key of the oracle's cases.
        by_tensor: for each tensor by itself.
        reset: puts the gradients of ``params`` back, untimed.
    """

    name: str
    rule: Rule
    by_tensor: bool
    step: Callable[[], object]
    result: Callable[[], Sequence[Tensor]]
    reset: Callable[[], object] = lambda: None


# ---- the oracle ------------------------------------------------------------------------------------------------------


def off(a: Tensor, b: Tensor) -> Tensor:
    """a without its component along b."""
    return a - (a @ b) / (b @ b) * b


def expected(rule: Rule, g: Tensor, r: Tensor) -> Tensor:
    """What a rule makes of two float64 vectors, from its definition."""
    conflict = bool(g @ r < 0)
    one, two = (off(g, r), off(r, g)) if conflict else (g, r)
    if isinstance(rule, SAGO):
        return torch.where(g * r < 0, r, g + r if rule.form == "prefer_retain" else g)
    if isinstance(rule, HAMU):
        return expected_step(rule.q, g, r)
    sums = {
        "a_gem": one, "gdr": one + two, "upgrad": (one + two) / 2, "blur": off(r, g) + g, "gu": off(g, r) + r,
        "pcgrad": one + (r if rule == PCGrad() else two),
    }  # fmt: skip
    return sums[rule.name]


def expected_step(q: float, g: Tensor, r: Tensor) -> Tensor:
    """HAMU's: of the vectors as long as r along which forgetting is at least q, the one nearest to r."""
    if bool((g @ r) >= q):
        return r
    must, across = q / (g @ g) * g, off(r, g)
    return must + (r @ r - must @ must).clamp(min=0).sqrt() * across / across.norm()


def check(form: Form, problem: Problem) -> str | None:
    """What is wrong with a form; None: nothing."""
    grads, retain = ([x.double().flatten() for x in xs] for xs in (problem.grads, problem.retain))
    if form.by_tensor:
        exact = torch.cat([expected(form.rule, g, r) for g, r in zip(grads, retain, strict=True)])
    else:
        exact = expected(form.rule, torch.cat(grads), torch.cat(retain))
    form.step()
    found = torch.cat([x.double().flatten() for x in form.result()])
    error = float((found - exact).norm() / exact.norm())
    limit = LIMITS[problem.grad_dtype]
    return None if error <= limit else f"off by {error:.2g} of its norm"


# ---- gru_fast --------------------------------------------------------------------------------------------------------


def ours(problem: Problem) -> list[Form]:
    """Every rule whose peers are timed, and SAGO's in both forms."""
    params = parameters_with(problem.grads)
    q = _Q * float(sum(g.double().square().sum() for g in problem.grads))

    def form(rule: Rule, granularity: Any = "global") -> Form:
        def step() -> None:
            gru_fast.rectify_(params, None, rule=rule, retain_grads=problem.retain, granularity=granularity)

        title = f"gru_fast {rule.name}" + (f" {rule.form}" if hasattr(rule, "form") else "")
        by_tensor = granularity == "tensor"
        return Form(title + (" by tensor" if by_tensor else ""), rule, by_tensor, step, lambda: problem.grads)

    whole = [rule_of(name) for name in ("a_gem", "gdr", "upgrad")]
    whole += [PCGrad(), PCGrad(form="sum"), BLUR(), GU(), SAGO(), SAGO(form="prefer_retain"), HAMU(q=q)]
    return [form(rule) for rule in whole] + [form(PCGrad(), "tensor"), form(HAMU(), "tensor")]


# ---- peers -----------------------------------------------------------------------------------------------------------


class Own:
    """Parameters whose `.grad` a peer replaces; the problem's gradients stay as they are."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.params = parameters_with(problem.grads)

    def take(self, grads: Sequence[Tensor]) -> None:
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad

    def reset(self) -> None:
        self.take(self.problem.grads)

    def result(self) -> list[Tensor]:
        return [param.grad for param in self.params if param.grad is not None]


def sago(problem: Problem, path: Path) -> list[Form]:
    """The class GradSurgeryMixin of SAGO's code: clones of both gradients, what it makes of them, and back."""
    source = ast.parse(path.read_text(encoding="utf-8"))
    kept = [node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "GradSurgeryMixin"]
    if not kept:
        raise SystemExit(f"--sago {path}: expected SAGO's grad_surgery.py, found no class GradSurgeryMixin in it")
    module = ast.Module([ast.parse("from __future__ import annotations").body[0], *kept], [])
    space: dict[str, Any] = {"torch": torch, "nn": nn}
    exec(compile(ast.fix_missing_locations(module), str(path), "exec"), space)
    own = Own(problem)

    def form(strategy: str, rule: Rule, by_tensor: bool) -> Form:
        surgery = space["GradSurgeryMixin"].__new__(space["GradSurgeryMixin"])
        surgery.surgery_strategy, surgery.alpha, surgery.gamma = strategy, 1.0, 1.0

        @torch.no_grad()
        def step() -> None:
            forget = [param.grad.clone().detach() for param in own.params if param.grad is not None]
            retain = [r.clone().detach() for r in problem.retain]
            own.take(surgery._combine_grads(forget, retain))  # noqa: SLF001 - what its trainer calls

        return Form(f"SAGO's code {strategy}", rule, by_tensor, step, own.result, own.reset)

    return [
        form("pcgrad_global", PCGrad(), False), form("pcgrad", PCGrad(), True), form("blur", BLUR(), False),
        form("sago", SAGO(), False), form("sago_prefer_retain", SAGO(form="prefer_retain"), False),
    ]  # fmt: skip


def hamu(problem: Problem, path: Path) -> list[Form]:
    """HAMU's optimizer without its step: a clone of the retain gradient, then its gradient, tensor by tensor."""
    sys.path.insert(0, str(path))
    try:
        made = importlib.import_module("hamu.methods.hamu")
    except ImportError as error:
        raise SystemExit(f"--hamu {path}: expected HAMU's repository, {error}") from None
    own = Own(problem)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all = nn.ParameterList(own.params)

    optimizer = made.HAMUOptimizer(Model(), lr=1.0, gradient_pairing="sequential")
    own.params = [param for group in optimizer.param_groups for param in group["params"]]
    optimizer.set_accelerator(SimpleNamespace(device=problem.device, num_processes=1))  # all it asks of accelerate's

    forget = [-g for g in problem.grads]  # its forget gradient is that of the forget loss

    def step() -> None:
        own.take(problem.retain)
        optimizer.store_retain_gradients()
        own.take(forget)
        with torch.no_grad():
            optimizer._step()  # noqa: SLF001 - what its step calls
        optimizer.logs.clear()

    return [Form("HAMU's code, q = 0", HAMU(), True, step, own.result)]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]).sum()


def torchjd(problem: Problem) -> list[Form]:
    """TorchJD's aggregators: of the Jacobian, and of its Gram matrix."""
    try:
        made = importlib.import_module("torchjd.aggregation")
    except ImportError:
        raise SystemExit("--torchjd: expected TorchJD: pip install torchjd[quadprog_projector]") from None
    own = Own(problem)

    def of_jacobian(name: str, rule: Rule) -> Form:
        aggregator = getattr(made, name)()

        @torch.no_grad()
        def step() -> None:
            rows = [torch.cat([x.flatten() for x in xs]) for xs in (problem.grads, problem.retain)]
            parts = aggregator(torch.stack(rows)).split(problem.sizes)
            own.take([part.view(shape) for part, shape in zip(parts, problem.shapes, strict=True)])

        return Form(f"TorchJD {name}", rule, False, step, own.result)

    def of_gramian(name: str, rule: Rule) -> Form:
        weighting = getattr(made, name)()

        @torch.no_grad()
        def step() -> None:
            lists = (problem.grads, problem.retain)
            products = [[_dot(a, b) for b in lists] for a in lists]
            gramian = torch.stack([torch.stack(row) for row in products])
            a, b = weighting(gramian).tolist()
            out = torch._foreach_mul(problem.grads, a)
            torch._foreach_add_(out, problem.retain, alpha=b)
            own.take(out)

        return Form(f"TorchJD {name}, Gramian", rule, False, step, own.result)

    return [
        of_jacobian("PCGrad", PCGrad(form="sum")), of_jacobian("UPGrad", rule_of("upgrad")),
        of_gramian("PCGradWeighting", PCGrad(form="sum")), of_gramian("UPGradWeighting", rule_of("upgrad")),
    ]  # fmt: skip


# ---- measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One form: ms (20%, 50%, 80%), the same over the probe, samples, and how many times gru_fast's time that is."""

    name: str
    rule: str
    by_tensor: bool
    samples: int
    ms: tuple[float, float, float]
    over_probe: tuple[float, float, float]
    times_ours: float | None
    complaint: str | None


def rows_of(forms: Sequence[Form], samples: dict[str, Samples], complaints: dict[str, str | None]) -> list[Row]:
    def typed(rule: Rule) -> str:
        return f"{rule.name} {getattr(rule, 'form', '')}".strip()

    mine = [form for form in forms if form.name.startswith("gru_fast")]
    best = {(typed(form.rule), form.by_tensor): quantiles(samples[form.name].ratios())[1] for form in mine}
    out = []
    for form in forms:
        found, key = samples[form.name], (typed(form.rule), form.by_tensor)
        low, middle, high = quantiles(found.seconds)
        ratio = quantiles(found.ratios())
        times = ratio[1] / best[key] if key in best else None
        ms = (low * 1e3, middle * 1e3, high * 1e3)
        out.append(Row(form.name, key[0], form.by_tensor, len(found), ms, ratio, times, complaints[form.name]))
    return out


def table(rows: Sequence[Row]) -> str:
    lines = ["| form | ms | x probe | x gru_fast | n |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        times = "" if row.times_ours is None else f"{row.times_ours:.2f}"
        mark = "" if row.complaint is None else " *"
        lines.append(f"| {row.name}{mark} | {row.ms[1]:.2f} | {row.over_probe[1]:.2f} | {times} | {row.samples} |")
    return "\n".join([*lines, *(f"\n\\* {row.name}: {row.complaint}" for row in rows if row.complaint)])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=list(shapes.MODELS), default="smollm2-135m", help="whose parameters")
    parser.add_argument("--tensors", type=int, help="instead of --shapes: this many tensors ...")
    parser.add_argument("--numel", type=int, help="... with this many elements in all")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of the gradients (default: float32)")
    parser.add_argument("--torchjd", action="store_true", help="time TorchJD too, which must be installed")
    parser.add_argument("--sago", type=Path, help="grad_surgery.py of SAGO's repository")
    parser.add_argument("--hamu", type=Path, help="HAMU's repository")
    parser.add_argument("--rounds", type=int, default=30, help="rounds at most (default: 30)")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of measuring (default: 60)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--json", type=Path, help="write all results here")
    options = parser.parse_args(arguments)
    if (options.tensors is None) != (options.numel is None):
        parser.error("--tensors and --numel go together")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    custom = options.tensors is not None
    sizes = shapes.custom(options.tensors, options.numel) if custom else shapes.shapes_of(options.shapes)
    about = machine.describe(device, keeps_freed_memory=memory.keep_freed_memory())
    report.say(machine.header(about) + "\n")
    dtype = DTYPES[options.dtype]
    problem = Problem(sizes, dtype, dtype, device)
    forms = ours(problem)
    if options.torchjd:
        forms += torchjd(problem)
    if options.sago is not None:
        forms += sago(problem, options.sago)
    if options.hamu is not None:
        forms += hamu(problem, options.hamu)
    complaints: dict[str, str | None] = {}

    def restore() -> None:
        problem.reset_grad()
        for form in forms:
            form.reset()

    for form in forms:
        restore()
        complaints[form.name] = check(form, problem)
        if complaints[form.name] and form.name.startswith("gru_fast"):
            raise SystemExit(f"{form.name} is wrong: {complaints[form.name]}")
    samples = measure(
        {form.name: form.step for form in forms},
        Probe(problem).step,
        restore,
        clock_for(device),
        budget=options.budget,
        rounds=options.rounds,
        progress=report.progress,
    )
    rows = rows_of(forms, samples, complaints)
    report.say(table(rows))
    if options.json is not None:
        found = {"about": about, "numel": problem.numel, "tensors": len(sizes), "dtype": options.dtype}
        options.json.write_text(json.dumps(found | {"forms": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
