"""What RetainEMA.stream() costs the host for each parameter: a backward pass over many small ones, with it and without.

    python bench/stream_time.py                              # 272 parameters, as SmolLM2-135M has, of 8 elements each
    python bench/stream_time.py --device cuda --ema-dtype bfloat16 --dtype bfloat16
    python bench/stream_time.py --tensors 10 --rounds 3 --json out.json

Rounds take turns, so that a noisy moment meets both. The parameters are too small for the device to matter: what is
left is the hook, the call of the pass and the launch. What counts is the CPU time of the process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import machine
import report
import torch

import gru_fast

_GAMMA = 0.1


def backward_us(params: list[torch.nn.Parameter], ema: gru_fast.RetainEMA | None, device: torch.device) -> float:
    """Microseconds of CPU time, which a busy machine does not stretch, over one backward pass and what ends it."""
    loss = torch.stack([param.float().sum() for param in params]).sum()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.process_time()
    if ema is None:
        loss.backward()
    else:
        with ema.stream(_GAMMA):
            loss.backward()
    end = time.process_time()
    if ema is not None:
        ema.discard()
    for param in params:
        param.grad = None
    return (end - start) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tensors", type=int, default=272, help="parameters (default: 272)")
    parser.add_argument("--numel", type=int, default=8, help="elements of each (default: 8)")
    parser.add_argument("--dtype", default="float32", help="of parameters and gradients (default: float32)")
    parser.add_argument("--ema-dtype", default=None, help="of e (default: float32)")
    parser.add_argument("--rounds", type=int, default=50, help="backward passes of either kind (default: 50)")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    device = torch.device(options.device)
    values = torch.zeros(options.numel, dtype=getattr(torch, options.dtype), device=device)
    params = [torch.nn.Parameter(values.clone()) for _ in range(options.tensors)]
    ema_dtype = None if options.ema_dtype is None else getattr(torch, options.ema_dtype)
    ema = gru_fast.RetainEMA(params, ema_dtype)
    for _ in range(3):
        backward_us(params, None, device)
        backward_us(params, ema, device)
    plain, streamed = [], []
    for _ in range(options.rounds):
        plain.append(backward_us(params, None, device))
        streamed.append(backward_us(params, ema, device))
    cost = [(b - a) / options.tensors for a, b in zip(plain, streamed, strict=True)]
    low, middle, high = (sorted(cost)[int(q * (len(cost) - 1))] for q in (0.2, 0.5, 0.8))
    print(f"### stream(): CPU time for each of {options.tensors} parameters, microseconds, on {device}\n")
    print("| backward alone | with stream() | more | 20% | 80% |\n|--:|--:|--:|--:|--:|")
    each = [statistics.median(times) / options.tensors for times in (plain, streamed)]
    print(f"| {each[0]:.1f} | {each[1]:.1f} | {middle:.1f} | {low:.1f} | {high:.1f} |")
    if options.json is not None:
        about = {
            **machine.describe(device, keeps_freed_memory=False),
            "options": {k: str(v) for k, v in vars(options).items()},
        }
        report.write_json(options.json, about, more_us=cost, plain_us=plain, stream_us=streamed)


if __name__ == "__main__":
    main()
