"""GRU in a training loop of your own: the model forgets four facts of forty, without and with ``gru_fast.rectify_``.

    python examples/own_loop.py

Prints the loss on what is to be forgotten (higher: forgotten) and on what is kept (lower: kept). Some seconds on a CPU.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import torch
import toy

import gru_fast


def forget(model: Any, forget_rows: list[Any], retain_rows: list[Any], args: argparse.Namespace, *, gru: bool) -> None:
    """Gradient ascent on the rows to forget, rectified where ``gru``."""
    optimizer = torch.optim.SGD(model.parameters(), lr=args.learning_rate)
    ema = gru_fast.RetainEMA(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    for _ in range(args.steps):
        kept = [retain_rows[int(i)] for i in torch.randint(len(retain_rows), (8,), generator=generator)]
        with ema.collect():  # the gradient of what is to be kept
            model(**toy.batch(kept)).loss.backward()
        (-model(**toy.batch(forget_rows)).loss).backward()  # the gradient that forgets
        if gru:
            step = gru_fast.rectify_(model.parameters(), ema, gamma=args.gamma, tau=args.tau)
        else:
            step = gru_fast.measure(model.parameters(), ema, gamma=args.gamma)
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.tau)
        if not (step.skipped or step.degenerate):
            optimizer.step()
        optimizer.zero_grad()


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """The losses on rows to forget and rows to keep, by run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=25, help="of unlearning")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--gamma", type=float, default=0.8, help="weight of the newest gradient in the average")
    parser.add_argument("--tau", type=float, default=1.0, help="largest norm of the gradient")
    args = parser.parse_args(argv)

    taught, forget_rows, retain_rows = toy.taught()

    found = {"before": (toy.loss(taught, forget_rows), toy.loss(taught, retain_rows))}
    for name, gru in (("plain", False), ("with GRU", True)):
        model = copy.deepcopy(taught)
        forget(model, forget_rows, retain_rows, args, gru=gru)
        found[name] = toy.loss(model, forget_rows), toy.loss(model, retain_rows)
    toy.show(found)
    return found


if __name__ == "__main__":
    main()
