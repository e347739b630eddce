"""Peak memory and time of a loss over a large vocabulary: whole logits against blocks of the vocabulary.

    python bench/loss_memory.py
    python bench/loss_memory.py --vocabulary 256000 --scored 0.5 --dtype bfloat16 --json loss.json

A Llama of one layer, so that the head is what is measured: B rows of T tokens, forward and backward pass of the mean
loss ("nll"), of NPO, and of the KL divergence against another model ("kl"). First the gradients of both ways are held
against each other. Memory: a process each; what the resident set rose by at most over the model and its gradients
(glibc is told to hand freed memory back). Time: both ways in turn, medians, in one process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gru_fast.models import head
from gru_fast.models.forward import logits_of
from gru_fast.models.head import HiddenStates, divergence_of, label_scores_of, reference_of
from gru_fast.unlearn.methods.npo import npo_loss
from gru_fast.unlearn.references import kl_divergence

LOSSES = ("nll", "npo", "kl")
WAYS = ("whole", "blocks")
_RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def make(args: argparse.Namespace, seed: int = 0) -> nn.Module:
    """The model; its gradients are there already."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": args.features, "intermediate_size": args.features, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=args.vocabulary, num_attention_heads=4, num_key_value_heads=4, **sizes)
    model = LlamaForCausalLM(config).to(getattr(torch, args.dtype))
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    return model


def make_part(args: argparse.Namespace) -> dict[str, Tensor]:
    """Random rows, the last ``scored`` of each with labels."""
    torch.manual_seed(1)
    ids = torch.randint(args.vocabulary, (args.rows, args.tokens))
    labels = ids.clone()
    labels[:, : round(args.tokens * (1.0 - args.scored))] = -100
    # What a model gives that knows nothing, so that NPO's gradient is not 0.
    reference = torch.full((args.rows,), -math.log(args.vocabulary)) * (labels[:, 1:] != -100).sum(dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "reference_log_probs": reference,
    }


@contextmanager
def taken(way: str) -> Iterator[None]:
    """Inside, logits of any size are taken as a whole, or none are."""
    held = head.SMALL_LOGITS
    head.SMALL_LOGITS = 2**62 if way == "whole" else 0
    try:
        yield
    finally:
        head.SMALL_LOGITS = held


def loss_of(name: str, model: nn.Module, other: nn.Module, part: dict[str, Tensor]) -> Tensor:
    """What is run backward. ``other``: what KL compares with."""
    if name == "nll":
        return label_scores_of(model, part).mean_nll
    if name == "npo":
        return npo_loss(label_scores_of(model, part), 0.1)
    with torch.no_grad():
        reference = reference_of(other, part)
    if isinstance(reference, HiddenStates):
        return divergence_of(model, part, reference)
    return kl_divergence(logits_of(model, part), reference)


def check(args: argparse.Namespace) -> None:
    """The gradients of both ways, one against the other."""
    model, other, part = make(args), make(args, seed=2), make_part(args)
    for name in args.losses:
        # NPO's weight hangs on a sum of some 6,000 nats, of which float32 keeps the fourth digit after the point.
        tolerance = (2e-4 if name == "npo" else 1e-5) if args.dtype == "float32" else 2.0**-6
        found = {}
        for way in WAYS:
            model.zero_grad()
            with taken(way):
                loss_of(name, model, other, part).backward()
            found[way] = torch.cat([param.grad.flatten().float() for param in model.parameters()])
        apart = float((found["whole"] - found["blocks"]).norm() / found["whole"].norm())
        assert apart <= tolerance, f"{name}: the gradients of both ways are {apart:.2g} of their norm apart"


def peak(args: argparse.Namespace, name: str, way: str) -> int:
    """Bytes, in this process."""
    model, other, part = make(args), make(args, seed=2) if name == "kl" else nn.Identity(), make_part(args)
    small = {key: value[:1, :4] if value.ndim > 1 else value[:1] for key, value in part.items()}
    small["labels"] = small["input_ids"]
    with taken(way):
        loss_of(name, model, other, small).backward()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        loss_of(name, model, other, part).backward()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def peaks(args: argparse.Namespace, name: str) -> dict[str, int]:
    """Of both ways, a process each."""
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, *args.given, "--inside", name, way]
        done = subprocess.run(
            command, env={**os.environ, **_RETURN_MEMORY}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{name}, {way}: {done.stderr}")
        found[way] = int(done.stdout)
    return found


def seconds(args: argparse.Namespace, name: str) -> dict[str, float]:
    """Medians, both ways in turn."""
    model, other, part = make(args), make(args, seed=2), make_part(args)
    taken_by: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(args.repeats + 1):
        for way in WAYS:
            with taken(way):
                taken_by[way].append(timed(lambda: loss_of(name, model, other, part).backward()))
    return {way: statistics.median(values[1:]) for way, values in taken_by.items()}


def timed(work: Callable[[], Any]) -> float:
    """CPU seconds, which other programs on the machine change little."""
    start = time.process_time()
    work()
    return time.process_time() - start


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4, help="B (4)")
    parser.add_argument("--tokens", type=int, default=512, help="T (512)")
    parser.add_argument("--vocabulary", type=int, default=128_000, help="V (128000)")
    parser.add_argument("--features", type=int, default=256, help="of the model (256)")
    parser.add_argument("--scored", type=float, default=1.0, help="share of the tokens that have a label (1)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES)
    parser.add_argument("--repeats", type=int, default=5, help="of each timing (5); 0: memory alone")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.given = list(argv)
    return args


def main() -> None:
    args = parsed(sys.argv[1:])
    if args.inside:
        print(peak(args, *args.inside))
        return
    check(args)
    print(f"{args.rows} x {args.tokens} tokens, vocabulary {args.vocabulary:,}, {args.features} features, {args.dtype}")
    print(f"{'loss':6}{'whole, MiB':>12}{'blocks, MiB':>13}{'share':>8}{'whole, s':>11}{'blocks, s':>11}{'ratio':>8}")
    rows = []
    for name in args.losses:
        memory = peaks(args, name)
        line = f"{name:6}{memory['whole'] / 2**20:>12.0f}{memory['blocks'] / 2**20:>13.0f}"
        line += f"{memory['blocks'] / memory['whole']:>8.3f}"
        row: dict[str, Any] = {"loss": name, "peak_bytes": memory}
        if args.repeats:
            row["cpu_seconds"] = spent = seconds(args, name)
            line += f"{spent['whole']:>11.2f}{spent['blocks']:>11.2f}{spent['blocks'] / spent['whole']:>8.2f}"
        print(line, flush=True)
        rows.append(row)
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in {"json", "inside", "given"}}
        args.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
