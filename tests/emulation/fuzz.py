"""The CUDA kernels, emulated, against those of the CPU on steps drawn at random; needs a build with GRU_FAST_EMULATE.

    python tests/emulation/fuzz.py --seconds 60             # .ci/emulate builds what it needs and runs it
    python tests/emulation/fuzz.py --first 100081 --cases 1  # one that was reported

Each case runs three times: on the CPU's kernels, and twice emulated, in two interleavings. The two must leave the same
bits everywhere. Against the CPU: e bit for bit, flags and counters alike, sums and g within what their order of
addition allows; and nobody writes beside a tensor. Prints what is wrong with the seed of its case, and exits 1 then.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from gru_fast.core.backends.native import NativePasses, NativeSets, NativeUnit
from gru_fast.core.backends.passes import Groups, Rows, StepArgs
from gru_fast.core.load import core
from gru_fast.rules import BLUR, GEM, RULES, PCGrad, Subspace, rule_of

_F32, _BF16, _F16 = torch.float32, torch.bfloat16, torch.float16
_KINDS = [(_F32, _F32), (_BF16, _F32), (_BF16, _BF16), (_F16, _F32), (_F16, _F16)]  # of g and r, of e
# Around units of 4 and 8 elements, steps of a block, chunks and rounding tiles.
_SIZES = [
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 255, 256, 257, 1000, 2047, 2048, 2049, 4095, 4096, 4097, 8191),
    *(16383, 16384, 16385, 32768, 40001, 65535, 65536, 65537, 70000),
]
_SPECIAL = [math.nan, math.inf, -math.inf, 0.0, 1e-30, 1e-42, 6e4, 1e38]
# Without those that jump: of two sums that differ in their last digits hamu may take another branch.
_RULES = [rule_of(name) for name, rule in RULES.items() if not rule.elementwise and name != "hamu"]
_RULES += [PCGrad(form="sum"), PCGrad(form="mean", w_r=0.5), BLUR(below="retain", g0=0.5)]
_CANARY = 7.0
_SUM_ERROR = 3e-6  # of the sums of two backends, relative to |g| |e|: each keeps 1e-6
_FLAGS = ("retain_nonfinite", "vetoed", "conflict", "clipped", "degenerate", "grad_nonfinite")
_STATS = (
    "dot", "ema_norm_sq", "grad_norm_sq", "retain_nonfinite", "vetoed", "written_norm_sq", "alpha", "beta", "rescale",
    "out_norm_sq", "conflict", "clipped", "degenerate", "grad_nonfinite",
)  # fmt: skip


@dataclass
class Held:
    """A tensor that starts ``offset`` elements into a buffer of canaries."""

    buffer: Tensor
    offset: int
    numel: int

    @property
    def values(self) -> Tensor:
        return self.buffer[self.offset : self.offset + self.numel]

    def clone(self) -> Held:
        return Held(self.buffer.clone(), self.offset, self.numel)

    def is_intact(self) -> bool:
        around = torch.cat([self.buffer[: self.offset], self.buffer[self.offset + self.numel :]])
        return bool((around == _CANARY).all())

    def bits(self) -> bytes:
        return self.buffer.view(torch.uint8).numpy().tobytes()


Lists = dict[str, list["Held | None"]]


@dataclass
class Case:
    """One step of GRU (lists grad, retain, ema), against several vectors (grad, x0, x1, ...), or one unit of TRU
    (learned, origin, total, own, mean)."""

    lists: Lists
    how: str  # "step", "parts", "groups", "fold", "sets", "unit"
    args: StepArgs
    rounding_step: int = 0
    current: bool | list[bool] = False
    keys: list[int] | None = None
    groups: tuple[list[int], int] = ([], 0)  # of each row, and how many there are
    unit: tuple[float, bool, bool] = (1.0, True, True)

    def scalars(self) -> str:
        return f"{self.how}, {self.args}, rounding step {self.rounding_step}, ema_is_current {self.current}"


@dataclass
class Outcome:
    lists: Lists
    stats: dict[str, float]
    rounding_step: int = 0
    raw: bytes = field(default=b"", repr=False)
    groups: list[list[float]] = field(default_factory=list)  # of GroupStats


# ---- drawing ---------------------------------------------------------------------------------------------------------


class Drawer:
    """What a case consists of, from its seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.misaligned = self.random.random() < 0.4

    def held(self, values: Tensor, dtype: torch.dtype) -> Held:
        offset = self.random.choice([0, 0, 0, 1, 2, 3, 4, 8]) if self.misaligned else 0
        buffer = torch.full((values.numel() + offset + 24,), _CANARY, dtype=dtype)
        held = Held(buffer, offset, values.numel())
        held.values.copy_(values)
        return held

    def normal(self, numel: int) -> Tensor:
        return torch.randn(numel, generator=self.generator, dtype=torch.float64)

    def spoil(self, held: Held, values: list[float], probability: float) -> None:
        if values and held.numel and self.random.random() < probability:
            for _ in range(self.random.randint(1, 3)):
                held.values[self.random.randrange(held.numel)] = self.random.choice(values)

    def sizes(self) -> list[int]:
        share = self.random.random()
        if share < 0.04:  # beyond one launch
            return [self.random.choice([1, 3, 8, 17]) for _ in range(self.random.randint(816, 2500))]
        return [self.random.choice(_SIZES) for _ in range(self.random.randint(1, 12))]

    def step(self) -> Case:
        rng = self.random
        kinds = rng.sample(_KINDS, rng.randint(1, 5)) if rng.random() < 0.5 else [rng.choice(_KINDS)]
        grad_scale = 10.0 ** rng.choice([0, 0, 0, -3, 2, -15, -22, 15, 18])
        retain_scale = grad_scale if rng.random() < 0.7 else 10.0 ** rng.choice([0, -10, 5])
        special = rng.choice([[]] * 8 + [[value] for value in _SPECIAL] + [_SPECIAL])
        opposed, noise = rng.choice([0, 0.5, 1, 1]), rng.choice([0, 1e-3, 0.5, 1])
        lists: Lists = {"grad": [], "retain": [], "ema": []}
        for numel in self.sizes():
            grad_dtype, ema_dtype = rng.choice(kinds)
            r, e = self.normal(numel), self.normal(numel)
            g = -opposed * (r + e) + noise * self.normal(numel)
            grad = self.held(g * grad_scale, grad_dtype)
            retain, ema = self.held(r * retain_scale, grad_dtype), self.held(e * retain_scale, ema_dtype)
            for held, probability in ((grad, 0.3), (retain, 0.3), (ema, 0.1)):
                self.spoil(held, special, probability)
            lists["grad"].append(grad if rng.random() > 0.05 else None)
            lists["retain"].append(retain if rng.random() > 0.1 else None)
            lists["ema"].append(ema)
        rows = len(lists["ema"])
        args = StepArgs(
            keep=rng.choice([0.5, 0.9, 1.0, 0.0]),
            gain=rng.choice([0.5, 0.1, 1.0, 1 / 65536]),
            tau=rng.choice([math.inf, 1.0, 1e-3, grad_scale]),
            rule=rng.choice(_RULES),
            seed=rng.randrange(2**63),
            all_or_nothing=rng.random() < 0.2,
        )
        count = rng.choice([1, 2, 5, rows, rows + 3])
        return Case(
            lists,
            rng.choice(["step", "step", "parts", "groups", "groups", "fold"]),
            args,
            rng.choice([0, 5, 2**40]),
            rng.choice([False, False, True, [rng.random() < 0.5 for _ in range(rows)]]),
            None if rng.random() < 0.5 else [rng.randrange(2**31) for _ in range(rows)],
            (list(range(rows)) if count == rows else [rng.randrange(count) for _ in range(rows)], count),
        )

    def unit(self) -> Case:
        rng = self.random
        dtype = rng.choice([_F32, _BF16, _F16])
        scale = 10.0 ** rng.choice([0, 0, -2, -20])
        lists: Lists = {name: [] for name in ("learned", "origin", "total", "own", "mean")}
        for numel in self.sizes():
            total, own, origin = self.normal(numel), self.normal(numel), self.normal(numel) * scale
            task = (self.normal(numel) - rng.choice([0, 1, 1]) * (total - own)) * scale
            lists["learned"].append(self.held(origin + task, dtype))
            lists["origin"].append(self.held(origin, dtype))
            for name, values in (("total", total), ("own", own)):
                held = self.held(values, rng.choice([dtype, _F32]))
                lists[name].append(held if rng.random() > 0.1 else None)
            lists["mean"].append(self.held(self.normal(numel), _F32))
        weight = rng.choice([1.0, 0.25, -2.0])
        return Case(lists, "unit", StepArgs(0.0, 0.0), unit=(weight, rng.random() < 0.5, rng.random() < 0.5))

    def sets(self) -> Case:
        rng = self.random
        dtype, count = rng.choice([_F32, _BF16, _F16]), rng.randint(1, 8)
        scales = [10.0 ** rng.choice([0, 0, -3, 2, -15]) for _ in range(count)]
        dtypes = [rng.choice([dtype, _F32]) for _ in range(count)]
        special = rng.choice([[]] * 8 + [[value] for value in _SPECIAL])
        lists: Lists = {name: [] for name in ("grad", *(f"x{j}" for j in range(count)))}
        for numel in self.sizes():
            xs = [self.normal(numel) for _ in range(count)]
            grad = self.held(self.normal(numel) - rng.choice([0.0, 0.5]) * sum(xs), dtype)  # type: ignore[arg-type]
            self.spoil(grad, special, 0.1)
            lists["grad"].append(grad if rng.random() > 0.1 else None)
            for j, x in enumerate(xs):
                lists[f"x{j}"].append(self.held(x * (scales[j] if dtypes[j] == _F32 else 1.0), dtypes[j]))
        tau = rng.choice([math.inf, 1.0, 1e-3])
        return Case(lists, "sets", StepArgs(0.0, 0.0, tau, rng.choice([GEM(), GEM(margin=0.1), Subspace(w_r=0.5)])))

    def case(self) -> Case:
        share = self.random.random()
        return self.unit() if share < 0.2 else self.sets() if share < 0.35 else self.step()


# ---- running ---------------------------------------------------------------------------------------------------------


def run(case: Case, emulated: bool) -> Outcome:
    lists: Lists = {name: [held and held.clone() for held in held_list] for name, held_list in case.lists.items()}
    tensors = {name: [None if held is None else held.values for held in lists[name]] for name in lists}
    core.emulation.use(emulated)
    if case.how == "unit":
        unit = NativeUnit(tensors["learned"], tensors["origin"], tensors["mean"], tensors["total"], tensors["own"])
        unit.reduce()
        unit.measure()
        unit.add(*case.unit)
        return _outcome(lists, unit.stats)
    if case.how == "sets":
        sets = NativeSets(tensors["grad"], [held for name, held in tensors.items() if name != "grad"])  # type: ignore[misc]
        sets.reduce()
        sets.decide(case.args.rule, case.args.tau)  # type: ignore[arg-type]
        sets.apply()
        sets.finish(case.args.tau)
        return _outcome(lists, sets.stats)
    counter = torch.tensor([case.rounding_step])
    of_row, num_groups = case.groups if case.how == "groups" else (None, 0)
    rows = Rows(
        tensors["grad"], tensors["retain"], tensors["ema"], case.current, rounding_keys=case.keys,
        groups=of_row, num_groups=num_groups,
    )  # fmt: skip
    passes = NativePasses(rows)
    if of_row is not None:
        groups = Groups(of_row, num_groups)
        groups.stats.fill_(_CANARY)
        passes.reduce(case.args, counter)
        passes.reduce_groups(groups)
        passes.apply_groups(case.args, groups)
        passes.finish_groups(case.args, groups)
        return _outcome(lists, passes.stats, int(counter), groups.stats)
    if case.how == "step":
        passes.step(case.args, counter)
    elif case.how == "fold":
        passes.fold(case.args, counter)
        passes.stats[[i for i in range(len(passes.stats)) if i != _STATS.index("retain_nonfinite")]] = 0
    else:
        passes.reduce(case.args, counter)
        passes.apply(case.args)
        passes.finish(case.args)
    return _outcome(lists, passes.stats, int(counter))


def _outcome(lists: Lists, stats: Tensor, rounding_step: int = 0, groups: Tensor | None = None) -> Outcome:
    named, groups = stats[: len(_STATS)], torch.zeros(0, dtype=torch.float64) if groups is None else groups
    raw = torch.cat([named, groups.flatten()]).view(torch.uint8).numpy().tobytes()
    return Outcome(lists, dict(zip(_STATS, named.tolist(), strict=True)), rounding_step, raw, groups.tolist())


# ---- comparing -------------------------------------------------------------------------------------------------------


def complaints(case: Case, cpu: Outcome, first: Outcome, second: Outcome) -> Iterator[str]:
    """What is wrong; nothing if nothing is."""
    if first.raw != second.raw:
        yield f"two interleavings leave other statistics: {first.stats} and {second.stats}"
    for name, row, held in _each(first.lists):
        if held.bits() != _at(second.lists, name, row).bits():
            yield f"two interleavings leave another {name}[{row}]"
        if not held.is_intact():
            yield f"somebody wrote beside {name}[{row}]"
    if cpu.rounding_step != first.rounding_step:
        yield f"rounding step {first.rounding_step}, not {cpu.rounding_step}"
    written = {"learned", "mean"} if case.how == "unit" else {"grad"}
    for name, row, held in _each(first.lists):
        expected, what = _at(cpu.lists, name, row), f"{name}[{row}], {held.buffer.dtype}, {held.numel} elements"
        if name not in written:
            if _differ(held, expected):
                yield f"{what}: {_differ(held, expected)} differ"
        elif worst := _beyond(held, expected, _limits(cpu, name, row, _group_of(case, cpu, row))):
            yield f"{what}, at {worst[0]}: {worst[1]}, not {worst[2]}"
    yield from _other_stats(cpu.stats, first.stats)
    yield from _other_groups(cpu.groups, first.groups)


def _other_groups(cpu: list[list[float]], got: list[list[float]]) -> Iterator[str]:
    for group, (expected, found) in enumerate(zip(cpu, got, strict=True)):
        for complaint in _other_stats(_named(expected), _named(found)):
            yield f"group {group}: {complaint}"


_GROUP_STATS = (
    "dot", "ema_norm_sq", "grad_norm_sq", "alpha", "beta", "conflict", "own_norm_sq", "numel", "wide",
)  # fmt: skip


def _named(group: list[float]) -> dict[str, float]:
    """GroupStats by name. Whether a pass was wide two backends may see differently, at the border."""
    return {name: value for name, value in zip(_GROUP_STATS, group, strict=True) if name != "wide"}


def _group_of(case: Case, cpu: Outcome, row: int) -> dict[str, float] | None:
    return _named(cpu.groups[case.groups[0][row]]) if case.how == "groups" else None


def _each(lists: Lists) -> Iterator[tuple[str, int, Held]]:
    return ((name, row, held) for name, rows in lists.items() for row, held in enumerate(rows) if held is not None)


def _at(lists: Lists, name: str, row: int) -> Held:
    held = lists[name][row]
    assert held is not None
    return held


def _differ(got: Held, expected: Held) -> int:
    """Elements that differ in a bit; any NaN is as good as another."""
    a, b = got.values, expected.values
    same = (a.view(_integer(a)) == b.view(_integer(b))) | (a.isnan() & b.isnan())
    return int((~same).sum())


def _integer(tensor: Tensor) -> torch.dtype:
    return torch.int16 if tensor.element_size() == 2 else torch.int32


def _limits(cpu: Outcome, name: str, row: int, group: dict[str, float] | None = None) -> Tensor:
    """How far two backends may differ: one place of rounding, and what the sums' error does to the coefficients."""
    values = _at(cpu.lists, name, row).values.double()
    rounding = 2.5 * torch.finfo(_at(cpu.lists, name, row).buffer.dtype).eps * values.abs()
    largest = values[values.isfinite()].abs().max() if values.isfinite().any() else torch.tensor(0.0)
    tiny = 6e-8 if _at(cpu.lists, name, row).buffer.dtype == _F16 else 1e-38
    limits = rounding + _SUM_ERROR * largest + tiny
    told = cpu.stats if group is None else group
    size, size_e = told["grad_norm_sq"], told["ema_norm_sq"]
    if name == "grad" and "ema" in cpu.lists and 0 < size < math.inf and 0 < size_e < math.inf:
        # beta is off by _SUM_ERROR |g| / |e|
        limits += _SUM_ERROR * math.sqrt(size) / math.sqrt(size_e) * _at(cpu.lists, "ema", row).values.double().abs()
    if name == "mean" and 0 < size < math.inf and 0 < size_e < math.inf:  # likewise the weight of r, of at most 2 units
        for held in (cpu.lists["total"][row], cpu.lists["own"][row]):
            if held is not None:
                limits += 2 * _SUM_ERROR * math.sqrt(size) / math.sqrt(size_e) * held.values.double().abs()
    return limits


def _beyond(got: Held, expected: Held, limits: Tensor) -> tuple[int, float, float] | None:
    """The worst element that is further off than its limit: where, got, expected."""
    a, b = got.values.double(), expected.values.double()
    same = (a == b) | (a.isnan() & b.isnan())
    excess = torch.where(same, 0.0, (a - b).abs().nan_to_num(math.inf, math.inf) - limits.nan_to_num(0.0))
    if not excess.numel() or excess.max() <= 0:
        return None
    worst = int(excess.argmax())
    return worst, float(a[worst]), float(b[worst])


def _other_stats(cpu: dict[str, float], got: dict[str, float]) -> Iterator[str]:
    scale = math.sqrt(max(cpu["grad_norm_sq"], 0.0)) * math.sqrt(max(cpu["ema_norm_sq"], 0.0))
    at_the_border = abs(cpu["dot"]) <= _SUM_ERROR * scale
    slack = {"dot": _SUM_ERROR * scale, **dict.fromkeys(("written_norm_sq", "out_norm_sq"), 1e-9 * cpu["grad_norm_sq"])}
    for name, expected in cpu.items():
        value = got[name]
        if name in _FLAGS:
            if (value > 0) != (expected > 0) and not (name == "conflict" and at_the_border):
                yield f"{name} is {value}, not {expected}"
            continue
        same = value == expected or (math.isnan(value) and math.isnan(expected))
        close = abs(value - expected) <= 1e-5 * max(abs(value), abs(expected)) + slack.get(name, 0.0)
        if not same and not close and not (at_the_border and name in {"alpha", "beta"}):
            yield f"{name} is {value}, not {expected}"


# ---- the command -----------------------------------------------------------------------------------------------------


def check(seed: int) -> list[str]:
    case = Drawer(seed).case()
    cpu = run(case, emulated=False)
    found = list(complaints(case, cpu, run(case, emulated=True), run(case, emulated=True)))
    return found and [*found[:5], f"of {len(found)} complaints: {case.scalars()}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--cases", type=int, default=None, help="stop after so many (default: no limit but --seconds)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="seed of the first case (default: 0)")
    parser.add_argument("--multiprocessors", type=int, default=2, help="of the device; four blocks each (default: 2)")
    parser.add_argument("--until-bad", action="store_true", help="stop at the first case that is bad")
    options = parser.parse_args()
    if not hasattr(core, "emulation"):
        parser.error(f"{core.__file__} has no emulation; build with -D GRU_FAST_EMULATE=ON, as .ci/emulate does")
    if options.cases is None and options.seconds == math.inf:
        parser.error("--seconds or --cases must say when to stop")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # torch.empty is NaN and 0xff: passes find scratch as it comes
    core.emulation.configure(multiprocessors=options.multiprocessors, seed=options.first + 1)
    end, bad, done = time.monotonic() + options.seconds, 0, 0
    for seed in count(options.first):
        if time.monotonic() >= end or done == options.cases:
            break
        found = check(seed)
        done += 1
        bad += bool(found)
        if found:
            print(f"seed {seed}:", *found, sep="\n  ", flush=True)
        if bad and options.until_bad:
            break
    print(f"fuzz: {done} cases from seed {options.first}, {bad} bad")
    return 1 if bad or not done else 0


if __name__ == "__main__":
    sys.exit(main())
