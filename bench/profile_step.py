"""A few steps of gru_fast on the shapes of a model, for ncu, and proof that none of them waits for the device.

    python bench/profile_step.py --device cuda --shapes phi-1.5 --dtype bfloat16
    ncu --kernel-name 'regex:(reduce|apply)_kernel' python bench/profile_step.py --device cuda --shapes phi-1.5

Under torch's profiler, every call of the CUDA runtime within `rectify_` is counted; exits 1 if one of them waits.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

import shapes
import torch
from forms import GruFast
from problem import Problem
from torch.profiler import ProfilerActivity, profile, record_function

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_RANGE = "gru_fast step"
_WAITING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaFree")


def waiting_calls(names: Sequence[str]) -> Counter[str]:
    """Calls that hold the host until the device is done. A copy to the host by cudaMemcpyAsync is followed by one."""
    return Counter(name for name in names if name in _WAITING)


def calls_within(events: Sequence[object], label: str) -> list[str]:
    """Names of all events that lie within a range called `label`, on the host's time line."""
    host = [e for e in events if e.device_type == torch.autograd.DeviceType.CPU]
    spans = [e.time_range for e in host if e.name == label]
    if not spans:
        raise SystemExit(f"profile_step: the profiler recorded no range {label!r}")
    within = lambda e: any(span.start <= e.time_range.start and e.time_range.end <= span.end for span in spans)  # noqa: E731
    return [e.name for e in host if e.name != label and within(e)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=list(shapes.MODELS), help="default: eight small tensors")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="of the gradients")
    parser.add_argument("--ema-dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--no-profiler", action="store_true", help="only the steps: ncu and torch's profiler exclude")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    sizes = shapes.shapes_of(options.shapes) if options.shapes else shapes.custom(8, 100_000)
    problem = Problem(sizes, DTYPES[options.dtype], DTYPES[options.ema_dtype], device)
    problem.set_case("full", 1e-3)
    form = GruFast(problem)
    form.step()  # what is asked of the driver once
    if options.no_profiler:
        for _ in range(options.steps):
            form.step()
        return 0
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    if on_cuda:
        torch.cuda.synchronize(device)
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(options.steps):
            with record_function(_RANGE):
                form.step()
    calls = calls_within(profiler.events(), _RANGE)
    runtime, waits = Counter(name for name in calls if name.startswith("cuda")), waiting_calls(calls)
    print(f"{options.steps} steps, CUDA runtime calls within: {dict(runtime) or 'none'}")
    print(f"waits for the device: {dict(waits) or 'none'}")
    if on_cuda and not any("LaunchKernel" in name for name in runtime):
        print("profile_step: no kernel launch was seen, so nothing is shown")
        return 1
    return 1 if waits else 0


if __name__ == "__main__":
    raise SystemExit(main())
