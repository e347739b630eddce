"""Interleaved timing against a probe.

One sample is probe, form, probe. Its `floor ratio` is the form's time over the mean of the two probes around it: a
machine whose speed drifts (they do) changes all three alike. 1.00 is the practical floor. Per round every form is
sampled once, in shuffled order; what is reported is the median over rounds with the 20% and 80% quantiles.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

Call = Callable[[], object]


@dataclass
class Samples:
    """All of one form's samples, in seconds. `host` is the time until the call returned (CUDA: until it was queued)."""

    seconds: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.seconds)

    def spent(self) -> float:
        return sum(self.seconds) + 2 * sum(self.floors)

    def ratios(self) -> list[float]:
        return [t / floor for t, floor in zip(self.seconds, self.floors, strict=True)]


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """20%, 50% and 80%."""
    low, middle, high = np.quantile(np.asarray(values), [0.2, 0.5, 0.8])
    return float(low), float(middle), float(high)


class CpuClock:
    """Wall time. Calls run to their end before they return."""

    def time(self, calls: Sequence[Call]) -> tuple[list[float], list[float]]:
        """Seconds of each call, and seconds until each returned."""
        seconds = []
        for call in calls:
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return seconds, seconds


class CudaClock:
    """CUDA events. Before each call the L2 cache is overwritten, so that none starts on what the one before left there.

    The overwriting takes the GPU `LEAD` seconds, in which the host queues the call: as in training, where backward's
    kernels are still in the queue, time to launch shows only where a form waits for the device or takes longer than
    that to queue. Its `host` time then is above LEAD, and its time has the device's idling in it.
    """

    _FLUSH_BYTES = 1 << 29
    LEAD = 2e-3  # a step on 300 tensors takes 0.1 to 1 ms to queue

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flush = torch.empty(self._FLUSH_BYTES, dtype=torch.uint8, device=device)
        self.overwrites = 1
        self._seconds_of_lead()  # the first time, kernels are loaded
        self.overwrites = math.ceil(self.LEAD / self._seconds_of_lead())

    def time(self, calls: Sequence[Call]) -> tuple[list[float], list[float]]:
        torch.cuda.synchronize(self.device)
        events, host = [], []
        for call in calls:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._overwrite()
            start.record()
            queued = time.perf_counter()
            call()
            host.append(time.perf_counter() - queued)
            end.record()
            events.append((start, end))
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) * 1e-3 for start, end in events], host

    def _overwrite(self) -> None:
        for _ in range(self.overwrites):
            self.flush.zero_()

    def _seconds_of_lead(self) -> float:
        """What the overwriting takes now."""
        # The first call's overwriting keeps the device busy while the second one's is queued.
        return self.time([lambda: None, self._overwrite])[0][1]


Clock = CpuClock | CudaClock


def clock_for(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def measure(
    steps: dict[str, Call],
    probe: Call,
    restore: Call,
    clock: Clock,
    *,
    budget: float,
    rounds: int,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Samples]:
    """Samples of every step. At most `rounds` rounds and about `budget` seconds, restoring included.

    `restore` puts the inputs back before each sample, untimed. Every step gets one sample at least; one that has used
    up its share of the budget sits out, so a slow form cannot starve the others.
    """
    samples = {name: Samples() for name in steps}
    order = list(steps)
    shuffler = random.Random(0)
    share = budget / max(len(steps), 1)
    spent = dict.fromkeys(steps, 0.0)
    start = time.perf_counter()
    with no_garbage_collection():
        for number in range(rounds):
            shuffler.shuffle(order)
            for name in order:
                over = spent[name] > share or time.perf_counter() - start > budget
                if number > 0 and over:
                    continue
                progress(f"round {number + 1}: {name}")
                began = time.perf_counter()
                restore()
                (before, took, after), host = clock.time([probe, steps[name], probe])
                samples[name].seconds.append(took)
                samples[name].floors.append((before + after) / 2)
                samples[name].host.append(host[1])
                spent[name] += time.perf_counter() - began
            if time.perf_counter() - start > budget:
                break
    return samples
