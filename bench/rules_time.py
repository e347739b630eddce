"""Time of one step by each rule against the retain gradient itself, and of the same by other people's code.

    python bench/rules_time.py                                              # SmolLM2-135M, gru_fast alone
    python bench/rules_time.py --torchjd --peers PEERS --json out.json      # beside all peers
    python bench/rules_time.py --tensors 20 --numel 100000 --budget 2       # a look

`--torchjd`: TorchJD, where it is installed with its extra [quadprog_projector]. `--peers`: a folder with those of the
peers' repositories that are to be timed, SAGO (github.com/sustech-nlp/SAGO, read at 2363ee7), HAMU (aoi3142/HAMU,
d841b70) and GRU (tmlr-group/GRU, fbbf93a). Their files are read as they are: of SAGO and GRU one class without its
trainer. What is timed is what each does between two backward passes and the optimizer: from the gradients in lists to
the gradient in `.grad`, copies it makes of them included. GRU's code keeps an average: beside it stands `gru_fast gru`,
which keeps one too.

Every form is held against a float64 oracle first. Then all are sampled in turn, shuffled, each between two runs of a
probe that moves the bytes of a step; the ratio is that of the medians over the probe. By default glibc's malloc is told
to keep freed memory, which favours those that allocate.
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
import numpy as np
import report
import shapes
import torch
from forms import Probe, parameters_with
from problem import Problem
from timing import Samples, clock_for, measure, quantiles
from torch import Tensor, nn

import gru_fast
from gru_fast.rules import BLUR, GRU, GU, HAMU, SAGO, PCGrad, Rule, rule_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of |error| / |exact|
_Q = 1e-3  # of HAMU, in units of |g|^2


@dataclass
class Form:
    """One way to do what one rule says. ``step`` leaves the gradient in ``params``' ``.grad``.

    Args:
        rule: what it computes, a key of the oracle's cases; gru against the average with r, others against r.
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
        "gru": one, "a_gem": one, "gdr": one + two, "upgrad": (one + two) / 2, "blur": off(r, g) + g,
        "gu": off(g, r) + r, "pcgrad": one + (r if rule == PCGrad() else two),
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
    if isinstance(form.rule, GRU):
        gamma = problem.gamma
        retain = [(1 - gamma) * e.double().flatten() + gamma * r for e, r in zip(problem.ema, retain, strict=True)]
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

    def with_average() -> None:
        gru_fast.rectify_(params, problem.ema, problem.gamma, retain_grads=problem.retain)

    average = Form("gru_fast gru", GRU(), False, with_average, lambda: problem.grads, problem.reset_ema)
    whole = [rule_of(name) for name in ("a_gem", "gdr", "upgrad")]
    whole += [PCGrad(), PCGrad(form="sum"), BLUR(), GU(), SAGO(), SAGO(form="prefer_retain"), HAMU(q=q)]
    return [average, *map(form, whole), form(PCGrad(), "tensor"), form(HAMU(), "tensor")]


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


class _On(ast.NodeTransformer):
    """The device "cuda", where a peer's code names one, becomes another."""

    def __init__(self, device: torch.device) -> None:
        self.device = str(device)

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.copy_location(ast.Constant(self.device), node) if node.value == "cuda" else node


def class_of(path: Path, name: str, device: torch.device) -> Any:
    """One class of a peer's file without its bases, whose imports need not be there. It prints nothing."""
    source = ast.parse(path.read_text(encoding="utf-8"))
    kept = [node for node in source.body if isinstance(node, ast.ClassDef) and node.name == name]
    if not kept:
        raise SystemExit(f"{path}: found no class {name} in it")
    kept[0].bases, kept[0].keywords = [], []
    module = ast.Module([ast.parse("from __future__ import annotations").body[0], _On(device).visit(kept[0])], [])
    space: dict[str, Any] = {"torch": torch, "nn": nn, "np": np, "print": lambda *_, **__: None}
    exec(compile(ast.fix_missing_locations(module), str(path), "exec"), space)
    return space[name]


def sago(problem: Problem, path: Path) -> list[Form]:
    """The class GradSurgeryMixin of SAGO's code: clones of both gradients, what it makes of them, and back."""
    made = class_of(path, "GradSurgeryMixin", problem.device)
    own = Own(problem)

    def form(strategy: str, rule: Rule, by_tensor: bool) -> Form:
        surgery = made.__new__(made)
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


def official(problem: Problem, path: Path) -> list[Form]:
    """The paper's own code of GRU: both gradients into stores, flat on the CPU, its average, projected, and back."""
    made = class_of(path, "CustomTrainerForgetting", problem.device)
    own = Own(problem)
    model = _model_of(own.params)
    trainer = made.__new__(made)
    trainer.gru_type, trainer.cos_clip, trainer.gradient_accumulation_steps = "proj", False, 1
    trainer.gradient_accum, trainer.memory_grad, trainer.KL_gradient_accum = {}, {}, {}

    def reset() -> None:
        trainer.flattened_memory_old = problem.flat_ema.to("cpu", copy=True)

    @torch.no_grad()
    def step() -> None:
        own.take(problem.retain)
        trainer.store_grads(model, typ="retain")
        own.take(problem.grads)
        trainer.store_grads(model, typ="objective")
        # Of its training_step, what follows the backward passes.
        trainer.flatten_and_store_grads()
        trainer.gradient_accum, trainer.memory_grad, trainer.KL_gradient_accum = {}, {}, {}
        old, new = trainer.flattened_memory_old, trainer.flattened_memory_accumulation
        trainer.flattened_memory = problem.gamma * new + (1 - problem.gamma) * old
        trainer.flattened_memory_old = trainer.flattened_memory
        trainer.dotp_retain = trainer.compute_total_gradient_dot_product(
            trainer.flattened_gradient, trainer.structure_map, trainer.flattened_memory, trainer.structure_map
        )
        trainer.pipeline(model)
        trainer.restore_gradients_from_flat(model)

    return [Form("GRU's code", GRU(), False, step, own.result, reset)]


def _model_of(params: Sequence[nn.Parameter]) -> nn.Module:
    model = nn.Module()
    model.all = nn.ParameterList(params)
    return model


def hamu(problem: Problem, path: Path) -> list[Form]:
    """HAMU's optimizer without its step: a clone of the retain gradient, then its gradient, tensor by tensor."""
    sys.path.insert(0, str(path))
    try:
        made = importlib.import_module("hamu.methods.hamu")
    except ImportError as error:
        raise SystemExit(f"{path}: expected HAMU's repository, {error}") from None
    own = Own(problem)

    optimizer = made.HAMUOptimizer(_model_of(own.params), lr=1.0, gradient_pairing="sequential")
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


PEERS: dict[str, tuple[str, Callable[[Problem, Path], list[Form]]]] = {
    "SAGO": ("src/trainer/unlearn/grad_surgery.py", sago),
    "HAMU": ("", hamu),
    "GRU": ("dataloader_faster_refactor1.py", official),
}


def of_repositories(problem: Problem, folder: Path) -> list[Form]:
    """The forms of those of `PEERS` that are in `folder`."""
    there = [name for name in PEERS if (folder / name).is_dir()]
    if not there:
        raise SystemExit(f"--peers {folder}: expected one of the repositories {', '.join(PEERS)} in it")
    found = []
    for name in there:
        file, forms_of = PEERS[name]
        found += forms_of(problem, folder / name / file)
    return found


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
    parser.add_argument("--peers", type=Path, help="a folder with the repositories SAGO, HAMU, GRU, or some of them")
    parser.add_argument(
        "--default-malloc", action="store_true", help="with page faults for temporaries, as in a user's process"
    )
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
    keeps_freed_memory = not options.default_malloc and memory.keep_freed_memory()
    about = machine.describe(device, keeps_freed_memory=keeps_freed_memory)
    report.say(machine.header(about) + "\n")
    dtype = DTYPES[options.dtype]
    problem = Problem(sizes, dtype, dtype, device)
    forms = ours(problem)
    if options.torchjd:
        forms += torchjd(problem)
    if options.peers is not None:
        forms += of_repositories(problem, options.peers)
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
