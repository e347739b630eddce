"""Options that are gone, each refused in a line that says what there is instead. For one version."""

from __future__ import annotations

import argparse

_SHARED = "machines share a study or sweep as a Ray cluster, and its state is in --output-dir: see --address"
_GONE = {
    "--storage": _SHARED,
    "--study": _SHARED,
    "--patience": "Ray sees to machines that die",
    "--devices": "give --gpus-per-run, and CUDA_VISIBLE_DEVICES for some of this machine's GPUs",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Takes the flags, so that :func:`refuse` can say more than that they are unknown."""
    for flag in _GONE:
        parser.add_argument(flag, nargs="*", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def refuse(args: argparse.Namespace) -> None:
    """ValueError for the first of them that was given."""
    for flag, instead in _GONE.items():
        if flag[2:] in vars(args):
            raise ValueError(f"{flag}: no option any more; {instead}")
