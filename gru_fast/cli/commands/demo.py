"""See unlearning work, without network and GPU, in a few minutes: every step of it at toy size.

Makes up 40 authors and questions about them, teaches a tiny Llama all of them and a second one all but four, and has
the first unlearn these four by GA, GD and NPO, each without and with GRU. Then questions all models, prints what came
of it and draws figures. Every run is an ordinary run folder, for gru-fast eval, report and unlearn. Started again, it
goes on where it was stopped; once finished, it only prints its results.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "see unlearning work at toy size, in minutes, on a CPU"
OUTPUT = "gru-fast-demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="DIR", default=OUTPUT, help="folder for everything (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the models and the order of training")
    parser.add_argument("--overwrite", action="store_true", help="begin anew in a folder with a demo in it")
    parser.add_argument(
        "--quick", action="store_true", help="hardly train, only see that everything works: the numbers mean nothing"
    )


def run(args: argparse.Namespace) -> int:
    from gru_fast.report import figures

    figures.require()  # before minutes of work
    from gru_fast.demo.show import Show

    Show(Path(args.output), seed=args.seed, quick=args.quick, overwrite=args.overwrite).run()
    return 0
