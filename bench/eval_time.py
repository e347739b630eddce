"""CPU time of a TOFU evaluation as a whole process, against another checkout and any other command, in turn.

    python bench/eval_time.py --model SmolLM2-135M-Instruct.Q4_1.gguf --data ../shared/tofu --against ../before
    python bench/eval_time.py --model MODEL --data ../shared/tofu --other framework="python run_its_evaluator.py"

``--against``: a checkout of gru_fast with its compiled core in it, run by the same Python. ``--other NAME=COMMAND``:
run by the shell in the folder it is started from; that it does the same work is for you to see to. Every round runs
each once, in turn; what counts is user and system time of the process and its children, which other work on the machine
changes little, and of that the median. Records of both checkouts are compared, losses to 1e-5, written texts exactly;
the exit status is 1 if one is another.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OURS = "gru_fast"
HERE = Path(__file__).resolve().parents[1]
_ALLOWED = 1e-5  # between two losses, of the second
_LOSSES = ("answer_loss", "paraphrase_loss", "perturbed_losses")


def evaluation(args: argparse.Namespace, folder: Path) -> list[str]:
    """The command of one evaluation, whose records go to ``folder``."""
    options = {
        "--model": args.model,
        "--data": args.data,
        "--split": args.split,
        "--max-rows": args.max_rows,
        "--output-dir": folder,
    }
    flags = [str(part) for pair in options.items() for part in pair]
    return [sys.executable, "-m", "gru_fast.cli", "eval", "tofu", *flags, *args.more]


def cpu_seconds(command: str | Sequence[str], checkout: Path | None) -> float:
    """User and system time of a command. ``checkout``: whose gru_fast it imports."""
    environment = dict(os.environ)
    if checkout is not None:
        environment["PYTHONPATH"] = str(checkout)  # after the folder that `python -m` is started in: that is the same
    before = _spent()
    shell = isinstance(command, str)
    done = subprocess.run(
        command, shell=shell, env=environment, cwd=checkout, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return _spent() - before


def _spent() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compare(ours: Path, theirs: Path) -> dict[str, float]:
    """Records of two evaluations: the largest relative difference of a loss, how many of them are further apart than is
    allowed, and how many texts differ.
    """
    apart, further, texts, count = 0.0, 0, 0, 0
    for path in sorted((ours / "records").glob("*.jsonl")):
        other = theirs / "records" / path.name
        for line, its in zip(path.read_text().splitlines(), other.read_text().splitlines(), strict=True):
            one, another = json.loads(line), json.loads(its)
            count += 1
            texts += one["generation"] != another["generation"]
            for name in _LOSSES:
                for a, b in zip(_list(one[name]), _list(another[name]), strict=True):
                    difference = abs(a - b) / abs(b)
                    apart, further = max(apart, difference), further + (difference > _ALLOWED)
    return {"rows": count, "loss_difference": apart, "losses_apart": further, "texts_apart": texts}


def _list(value: Any) -> list[float]:
    return value if isinstance(value, list) else [value]


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as for gru-fast eval")
    parser.add_argument("--data", required=True, help="as for gru-fast eval: TOFU's folder")
    parser.add_argument("--split", default="forget05", help="(forget05)")
    parser.add_argument("--max-rows", type=int, default=40, help="of each of the four sets (40)")
    parser.add_argument("--against", type=Path, help="another checkout of gru_fast, compiled")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=COMMAND", help="see above; repeatable")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("more", nargs="*", help="after --: further options of gru-fast eval tofu")
    args = parser.parse_args(argv)
    args.model, args.data = str(Path(args.model).resolve()), str(Path(args.data).resolve())
    for other in args.other:
        if "=" not in other:
            parser.error(f"--other: expected NAME=COMMAND, got {other!r}")
    if args.against is not None and not (args.against / "gru_fast").is_dir():
        parser.error(f"--against: expected a checkout with a folder gru_fast, got {args.against}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parsed(sys.argv[1:] if argv is None else argv)
    checkouts = {OURS: HERE} | ({} if args.against is None else {"against": args.against.resolve()})
    others = dict(other.split("=", 1) for other in args.other)
    spent: dict[str, list[float]] = {name: [] for name in (*checkouts, *others)}
    agreement: dict[str, float] = {}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as temporary:
            folders = {name: Path(temporary) / name for name in checkouts}
            for name, checkout in checkouts.items():
                spent[name].append(cpu_seconds(evaluation(args, folders[name]), checkout))
            if args.against is not None:
                agreement = compare(folders[OURS], folders["against"])
        for name, command in others.items():
            spent[name].append(cpu_seconds(command, None))
    medians = {name: statistics.median(values) for name, values in spent.items()}
    if agreement:
        print(
            f"{agreement['rows']} rows: losses up to {agreement['loss_difference']:.1e} apart, "
            f"{agreement['losses_apart']} of them more than {_ALLOWED:g}; {agreement['texts_apart']} texts differ"
        )
    print(f"{'':16}{'CPU s':>8}{'least':>8}{'most':>8}{'gru_fast / it':>15}")
    for name, values in spent.items():
        ratio = medians[OURS] / medians[name]
        print(f"{name:16}{medians[name]:>8.1f}{min(values):>8.1f}{max(values):>8.1f}{ratio:>15.2f}")
    if args.json:
        args.json.write_text(json.dumps({"cpu_seconds": spent, "medians": medians, **agreement}, indent=1) + "\n")
    return int(any(agreement.get(name) for name in ("losses_apart", "texts_apart")))


if __name__ == "__main__":
    sys.exit(main())
