"""Time of a rectified step of AdamW: rectify_ and torch's optimizer after it, against both in one, and the update too.

    python bench/optim_time.py                                     # SmolLM2-135M, about a minute
    python bench/optim_time.py --device cuda --shapes llama-3.2-1b

Every form does all of a step: e from a collected retain gradient, g rectified (g and e conflict), AdamW. Each is
checked against float64 before it is timed; samples are interleaved, and what is shown are medians and ratios. `bytes`
is what a form must move per parameter, from which GB/s follows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import memory
import report
import shapes
import torch
from timing import clock_for, measure, quantiles
from torch import Tensor, nn

from gru_fast import RetainEMA, rectify_
from gru_fast.optim import AdamW

LR, BETAS, EPS, DECAY, GAMMA = 1e-3, (0.9, 0.999), 1e-8, 0.01, 0.5
_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # of |error| / |step|


@dataclass(frozen=True)
class Form:
    """One way to make a step.

    Args:
        bytes_moved: a parameter, in float32; half of it in bfloat16.
        options: of gru_fast's AdamW; None: rectify_ and torch's.
    """

    name: str
    dtype: torch.dtype
    bytes_moved: int
    options: dict[str, Any] | None


# Reduce reads g, r, e and writes e: 16. Apply 12, AdamW 28, and 32 where it reads e too. With the update rectified: 28
# for M, V and the sums (e read), 20 for theta.
FORMS = (
    Form("rectify_, AdamW(fused)", torch.float32, 16 + 12 + 28, None),
    Form("gradient", torch.float32, 16 + 32, {}),
    Form("both", torch.float32, 16 + 28 + 20, {"rectify": "both"}),
    Form("both, adam", torch.float32, 16 + 28 + 20, {"rectify": "both", "metric": "adam"}),
    Form("gradient, bf16", torch.bfloat16, 16 + 32, {}),
    Form("both, bf16", torch.bfloat16, 16 + 28 + 20, {"rectify": "both"}),
)
TARGETS = (  # form, against, at most
    ("gradient", "rectify_, AdamW(fused)", 0.87),
    ("both", "rectify_, AdamW(fused)", 1.05),
    ("gradient, bf16", "gradient", 0.60),
)


class Gradients:
    """g and r, which conflict: the same for all forms of a dtype."""

    def __init__(self, dtype: torch.dtype, sizes: list[shapes.Shape], device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def draw() -> list[Tensor]:
            return [torch.randn(size, generator=generator, device=device) for size in sizes]

        self.retain = [r.to(dtype) for r in draw()]
        self.start = [(noise - 0.3 * r).to(dtype) for noise, r in zip(draw(), self.retain, strict=True)]
        self.grads = [value.clone() for value in self.start]

    def reset(self) -> None:
        """g as it was: rectify_ writes it."""
        torch._foreach_copy_(self.grads, self.start)


class Step:
    """The tensors of a form, and its step."""

    def __init__(self, form: Form, gradients: Gradients) -> None:
        self.form = form
        self.retain, self.start, self.grads = gradients.retain, gradients.start, gradients.grads
        self.params = [nn.Parameter(torch.randn_like(r)) for r in self.retain]
        self.ema = RetainEMA(self.params, form.dtype)
        common: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
        if form.options is None:
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.params, fused=True, **common)
        else:
            self.optimizer = AdamW(self.params, ema=self.ema, gamma=GAMMA, **common, **form.options)

    def run(self) -> None:
        with self.ema.collect():
            for param, r in zip(self.params, self.retain, strict=True):
                param.grad = r
        for param, g in zip(self.params, self.grads, strict=True):
            param.grad = g
        if self.form.options is None:
            rectify_(self.params, self.ema, GAMMA)
        self.optimizer.step()


def error_of(step: Step) -> float:
    """|theta - answer| / |answer - theta before| after the first step, against float64, tensor by tensor."""
    before = [param.detach().clone() for param in step.params]
    step.run()
    options = step.form.options or {}
    e = [GAMMA * r.double() for r in step.retain]
    dot = sum(float((g.double() * x).sum()) for g, x in zip(step.start, e, strict=True))
    ema_sq = sum(float((x * x).sum()) for x in e)
    g = [value.double() - min(dot, 0.0) / ema_sq * x for value, x in zip(step.start, e, strict=True)]
    d = [value.abs() + EPS for value in g]  # after one step M^ is g, and V^ g^2
    u = [a / b + DECAY * theta.double() for a, b, theta in zip(g, d, before, strict=True)]
    if options.get("rectify") == "both":
        w = [torch.ones_like(value) for value in d]
        if options.get("metric") == "adam":
            numel = sum(value.numel() for value in d)
            rms = (sum(float((value * value).sum()) for value in d) / numel) ** 0.5
            w = [value + rms for value in d]
        q = sum(float((a * x).sum()) for a, x in zip(u, e, strict=True))
        reach = sum(float((x * x / b).sum()) for x, b in zip(e, w, strict=True))
        u = [a + max(-q, 0.0) / reach * x / b for a, x, b in zip(u, e, w, strict=True)]
    wrong = right = 0.0
    for param, old, value in zip(step.params, before, u, strict=True):
        wrong += float((param.detach().double() - (old.double() - LR * value)).square().sum())
        right += float((LR * value).square().sum())
    if step.form.dtype == torch.bfloat16:  # rounding of theta is larger than the step: it is right on average alone
        moved = sum(float((a.double() - b.detach().double()).sum()) for a, b in zip(before, step.params, strict=True))
        wanted = sum(float((LR * value).sum()) for value in u)
        spread = 2.0**-8 * right**0.5 / LR
        return abs(moved - wanted) / max(spread, 1e-30) * _LIMITS[torch.bfloat16] / 6
    return (wrong / right) ** 0.5


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", choices=list(shapes.MODELS), default="smollm2-135m", help="model to take the parameter shapes of"
    )
    parser.add_argument("--tensors", type=int, help="instead of --shapes: this many tensors ...")
    parser.add_argument("--numel", type=int, help="... with this many elements in all")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds at most (default: 20)")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of measuring in all (default: 60)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--json", type=Path, help="write all results here")
    options = parser.parse_args(arguments)
    if (options.tensors is None) != (options.numel is None):
        parser.error("--tensors and --numel go together")
    return options


def run(sizes: list[shapes.Shape], device: torch.device, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Checks, times and prints; a record a form."""
    torch.manual_seed(0)
    gradients = {dtype: Gradients(dtype, sizes, device) for dtype in dict.fromkeys(form.dtype for form in FORMS)}
    steps = {form.name: Step(form, gradients[form.dtype]) for form in FORMS}
    errors = {}
    for name, step in steps.items():
        errors[name] = error_of(step)
        gradients[step.form.dtype].reset()
    wrong = {name: error for name, error in errors.items() if not error <= _LIMITS[steps[name].form.dtype]}
    if wrong:
        raise SystemExit(f"wrong steps: {wrong}")
    source, target = (torch.zeros(shapes.count(sizes) * 16, dtype=torch.uint8, device=device) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {name: step.run for name, step in steps.items()}
    samples = measure(
        calls,
        lambda: target.copy_(source),
        lambda: [each.reset() for each in gradients.values()],
        clock_for(device),
        budget=options.budget,
        rounds=options.rounds,
        progress=report.progress,
    )
    ratios = {name: quantiles(samples[name].ratios())[1] for name in steps}
    records = []
    for name, step in steps.items():
        moved = step.form.bytes_moved * step.form.dtype.itemsize / 4
        seconds = quantiles(samples[name].seconds)[1]
        records.append({
            "form": name, "bytes": moved, "ms": seconds * 1e3, "error": errors[name], "samples": len(samples[name]),
            "vs_today": ratios[name] / ratios[FORMS[0].name], "gb_per_s": moved * shapes.count(sizes) / seconds * 1e-9,
        })  # fmt: skip
    rows = [["form", "bytes", "ms", "vs rectify_, AdamW", "GB/s", "error", "n"]]
    rows += [
        [r["form"], f"{r['bytes']:g}", f"{r['ms']:.4g}", f"{r['vs_today']:.2f}", f"{r['gb_per_s']:.3g}",
         f"{r['error']:.1e}", str(r["samples"])]
        for r in records
    ]  # fmt: skip
    report.say([report.grid(rows), ""])
    for name, against, most in TARGETS:
        report.say(f"{name} / {against}: {ratios[name] / ratios[against]:.2f} (wanted: {most:.2f} at most)")
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
    named = "custom" if custom else options.shapes
    report.say(f"### {named}: {len(sizes)} tensors, {shapes.count(sizes):,} parameters\n")
    results = run(sizes, device, options)
    if options.json is not None:
        report.write_json(options.json, about, results=results)


if __name__ == "__main__":
    main()
