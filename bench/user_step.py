"""A training step as users feel it: seconds and peak memory of plain GD, and of GD with GRU in four ways.

    python bench/user_step.py --device cuda --dtype bfloat16 --models smollm2-135m llama-3.2-1b
    python bench/user_step.py --models tiny --batch-size 2 --length 16 --rounds 3

A Llama with random weights and AdamW takes a step on a batch to forget and one to keep. All variants share the model
and the optimizer, and take turns in shuffled order. Before any is timed, the gradients of every one with GRU are held
against float64. The batches have three tokens of four in common and forgetting weighs two, so that every step has a
conflict and both passes do their full work.

`rectify ms` is the time of the update of e, projection and clipping, and of adding the retain gradient to g; with
stream() update and adding are part of backward, and show only in `over plain`. `peak` is parameters, optimizer, e and
the most that a step holds besides.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import machine
import memory
import report
import shapes
import torch
from baselines import Foreach, ForeachSync
from timing import no_garbage_collection, quantiles
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import gru_fast

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODELS = {
    "tiny": shapes.Llama(64, 32, 2, 4, 2, 48, tied=True),
    **{name: sizes for name, sizes in shapes.LLAMAS.items() if not sizes.qkv_bias},
}
FORGET_WEIGHT, GAMMA, TAU = 2.0, 0.2, 1.0
# Difference from float64 over |2 f| + |r|: 16-bit gradients are rounded where they add up and once more at the end.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
_LEARNING_RATE = 1e-7  # the model stays where it is
_OTHER_TOKENS = 0.25  # share of the tokens to forget that differ from those to keep


# ---- the work of a step ----------------------------------------------------------------------------------------------


class Stopwatch:
    """Times between marks on the device: CUDA events, or the clock where calls return when they are done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.device.type == "cuda":
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between each mark and the next; starts again."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        self.marks = []
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [start.elapsed_time(end) * 1e-3 for start, end in pairs]
        return [end - start for start, end in pairs]


class Setting:
    """Model, optimizer and batches that all variants share."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        sizes = MODELS[name]
        self.device, self.dtype = torch.device(options.device), DTYPES[options.dtype]
        self.ema_dtype = DTYPES[options.ema_dtype]
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=sizes.vocab,
            hidden_size=sizes.hidden,
            intermediate_size=sizes.intermediate,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads,
            tie_word_embeddings=sizes.tied,
            max_position_embeddings=max(options.length, 16),
        )
        with self.device:
            self.model = LlamaForCausalLM(config).to(self.dtype)
        self.params = list(self.model.parameters())
        found, expected = sorted(tuple(p.shape) for p in self.params), sorted(sizes.shapes())
        if found != expected:
            raise RuntimeError(f"{name}: transformers makes other parameters than bench/shapes.py says")
        self.optimizer = torch.optim.AdamW(self.params, lr=_LEARNING_RATE, fused=self.device.type == "cuda")
        self.watch = Stopwatch(self.device)
        size = (options.batch_size, options.length)
        retain, other = (torch.randint(sizes.vocab, size) for _ in range(2))
        forget = torch.where(torch.rand(size) < _OTHER_TOKENS, other, retain)
        self.forget, self.retain = forget.to(self.device), retain.to(self.device)

    def loss(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, labels=tokens, use_cache=False).loss

    def unlearn_backward(self) -> None:
        (-FORGET_WEIGHT * self.loss(self.forget)).backward()

    def retain_backward(self) -> None:
        self.loss(self.retain).backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def grads(self) -> list[Tensor]:
        return [p.grad for p in self.params if p.grad is not None]

    def fixed_bytes(self) -> int:
        """Of parameters and optimizer."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return bytes_of([*self.params, *states])


def bytes_of(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# ---- variants --------------------------------------------------------------------------------------------------------


class Plain:
    """GD alone. The other variants replace what they do differently: gradients, then what is made of them."""

    name = "plain"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.ema: list[Tensor] = []

    def backward(self) -> None:
        self.setting.retain_backward()
        self.setting.unlearn_backward()

    def rectify(self) -> None:
        """Nothing to do."""

    def step(self) -> None:
        watch = self.setting.watch
        watch.mark()
        self.backward()
        watch.mark()
        self.rectify()
        watch.mark()
        self.setting.update()
        watch.mark()


class Collect(Plain):
    name = "collect"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.averages = gru_fast.RetainEMA(setting.model.named_parameters(), dtype=setting.ema_dtype)
        self.ema = self.averages.tensors

    def backward(self) -> None:
        with self.averages.collect(share=1.0):
            self.setting.retain_backward()
        self.setting.unlearn_backward()

    def rectify(self) -> None:
        gru_fast.rectify_(self.setting.params, self.averages, GAMMA, TAU)


class Stream(Collect):
    name = "stream"

    def backward(self) -> None:
        with self.averages.stream(GAMMA, share=1.0):
            self.setting.retain_backward()
        self.setting.unlearn_backward()


class ForeachGru(Plain):
    """With `torch._foreach_*`: the retain gradients are put aside and added back."""

    name = "foreach"
    form = Foreach

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.ema = [torch.zeros_like(p, dtype=setting.ema_dtype, requires_grad=False) for p in setting.params]
        self.tau_tensor = torch.tensor(TAU, dtype=torch.float64, device=setting.device)

    def backward(self) -> None:
        self.setting.retain_backward()
        self.retain = self.setting.grads()
        self.setting.optimizer.zero_grad()
        self.setting.unlearn_backward()

    def rectify(self) -> None:
        setting, grads = self.setting, self.setting.grads()
        torch._foreach_add_(grads, self.retain)
        problem: Any = SimpleNamespace(
            grads=grads, retain=self.retain, ema=self.ema, gamma=GAMMA, tau=TAU, tau_tensor=self.tau_tensor,
            device=setting.device, grad_dtype=setting.dtype, ema_dtype=setting.ema_dtype,
        )  # fmt: skip
        self.form(problem).step()
        del self.retain


class ForeachSyncGru(ForeachGru):
    name = "foreach-sync"
    form = ForeachSync


VARIANTS: tuple[type[Plain], ...] = (Plain, Collect, Stream, ForeachGru, ForeachSyncGru)


# ---- correct first ---------------------------------------------------------------------------------------------------


def exact_gradient(setting: Setting) -> tuple[list[Tensor], float]:
    """The rectified gradient of the first step in float64, from the model's own two gradients; what errors are over."""
    own = []
    for backward in (setting.unlearn_backward, setting.retain_backward):
        backward()
        own.append([grad.double() for grad in setting.grads()])
        setting.optimizer.zero_grad()
    forget, retain = own
    scale = norm(forget) + norm(retain)
    grad = [f.add_(r) for f, r in zip(forget, retain, strict=True)]
    ema = torch._foreach_mul(retain, GAMMA)
    dot = sum(float((g * e).sum()) for g, e in zip(grad, ema, strict=True))
    if dot >= 0:
        raise SystemExit(f"user_step: expected a conflict, found <g, e> = {dot:.1e}; more tokens bring one")
    torch._foreach_add_(grad, ema, alpha=-dot / norm(ema) ** 2)
    clip = min(1.0, TAU / norm(grad))
    torch._foreach_mul_(grad, clip)
    return grad, scale * clip


def norm(tensors: list[Tensor]) -> float:
    return sum(float(x.double().square().sum()) for x in tensors) ** 0.5


def error_of(variant: Plain, exact: list[Tensor], scale: float) -> float:
    """Of the gradient after the first step of a variant, which is then undone."""
    variant.backward()
    variant.rectify()
    off = norm([grad.double() - wanted for grad, wanted in zip(variant.setting.grads(), exact, strict=True)])
    variant.setting.optimizer.zero_grad()
    variant.setting.watch.seconds()
    return off / scale


def check(variants: list[Plain], setting: Setting) -> dict[str, float]:
    """Errors by name; ends the run if gru_fast is off."""
    exact, scale = exact_gradient(setting)
    errors = {v.name: error_of(v, exact, scale) for v in variants if v.ema}
    limit = TOLERANCE[setting.dtype]
    for variant in variants:
        if isinstance(variant, Collect) and not errors[variant.name] <= limit:
            raise SystemExit(f"user_step: {variant.name} is off by {errors[variant.name]:.1e}, tolerance {limit:.0e}")
    return errors


# ---- measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Times:
    step: list[float]
    rectify: list[float]


def measure(variants: list[Plain], setting: Setting, *, rounds: int, budget: float) -> dict[str, Times]:
    """Every variant once a round, in shuffled order; the first round warms up. Ends after `budget` seconds."""
    times = {variant.name: Times([], []) for variant in variants}
    order, shuffler, start = list(variants), random.Random(0), time.perf_counter()
    with no_garbage_collection():
        for number in range(rounds + 1):
            shuffler.shuffle(order)
            for variant in order:
                variant.step()
                parts = setting.watch.seconds()
                if number > 0:
                    times[variant.name].step.append(sum(parts))
                    times[variant.name].rectify.append(parts[1])
            if number > 0 and time.perf_counter() - start > budget:
                break
    return times


def record(variant: Plain, setting: Setting, times: Times, error: float | None) -> dict[str, Any]:
    extra = memory.peak_extra(variant.step, setting.device)
    setting.watch.seconds()
    low, middle, high = quantiles(times.step)
    return {
        "variant": variant.name,
        "samples": len(times.step),
        "seconds": middle,
        "seconds_20": low,
        "seconds_80": high,
        "rectify_seconds": quantiles(times.rectify)[1],
        "peak_bytes": None if extra is None else setting.fixed_bytes() + bytes_of(variant.ema) + extra,
        "ema_bytes": bytes_of(variant.ema),
        "error": error,
    }


def run(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    setting = Setting(name, options)
    report.say(f"### {name}, {options.dtype}, {options.ema_dtype} EMA: "
               f"twice {options.batch_size} rows of {options.length} tokens\n")  # fmt: skip
    variants = [variant(setting) for variant in VARIANTS if variant is Plain or variant.name in options.variants]
    errors = check(variants, setting)
    times = measure(variants, setting, rounds=options.rounds, budget=options.budget / len(options.models))
    records = [record(v, setting, times[v.name], errors.get(v.name)) for v in variants]
    print_table(records)
    return records


def print_table(records: list[dict[str, Any]]) -> None:
    plain = records[0]["seconds"]
    report.say(f"{'variant':13} {'ms':>9} {'20-80%':>17} {'n':>4} {'over plain':>11} {'rectify ms':>11} {'of step':>8} "
               f"{'peak GB':>8} {'error':>8}")  # fmt: skip
    for row in records:
        ms, low, high, own = (row[key] * 1e3 for key in ("seconds", "seconds_20", "seconds_80", "rectify_seconds"))
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
        error = "" if row["error"] is None else f"{row['error']:.0e}"
        report.say(f"{row['variant']:13} {ms:9.2f} {low:8.2f}-{high:8.2f} {row['samples']:4} "
                   f"{row['seconds'] / plain - 1:+11.1%} {own:11.3f} {own / ms:8.1%} {peak:>8} {error:>8}")  # fmt: skip
    report.say("")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["smollm2-135m"])
    parser.add_argument("--variants", nargs="+", choices=names, default=names, help="besides plain (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of parameters and gradients")
    parser.add_argument("--ema-dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--batch-size", type=int, default=8, help="rows of each of the two batches (default 8)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row (default 512)")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of measuring, over all models (default 60)")
    parser.add_argument("--json", type=Path, help="write the figures there, after every model")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"--device {options.device}: torch {torch.__version__} sees no CUDA device")
    about = machine.describe(device, keeps_freed_memory=False)
    report.say(machine.header(about) + "\n")
    results: dict[str, Any] = {}
    for name in options.models:
        results[name] = run(name, options)
        if options.json is not None:
            report.write_json(options.json, about, results=results)


if __name__ == "__main__":
    main()
