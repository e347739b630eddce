"""Compare runs: a table, and with --output figures, from the folders that finetune, unlearn and eval have left.

  gru-fast report runs
  gru-fast report runs/tofu-* --retain runs/tofu-retain95 --output report

A folder of runs stands for all runs in it. Runs that have not finished or were not evaluated are listed with the
command that mends it. The figures: retain loss and cosine over steps, angles before and after rectification, removal
against retention.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "tables and figures over runs"
FORMATS = ("text", "md", "csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders of them")
    parser.add_argument("--output", metavar="DIR", help="write table.md, table.csv and figures (PNG and SVG) there")
    parser.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0], help="of what is printed; csv has every number, unrounded"
    )
    parser.add_argument(
        "--retain",
        metavar="RUN",
        help="take Forget Quality on TOFU anew against this retrained model's run or log; by default it is what each "
        "evaluation says",
    )


def run(args: argparse.Namespace) -> int:
    from gru_fast.report import figures, table
    from gru_fast.report.collect import collect
    from gru_fast.report.files import write

    if args.output:  # before anything is done
        figures.require()
        if Path(args.output).is_file():
            raise NotADirectoryError(f"--output: expected a folder, got the file {args.output}")
    entries = collect(args.runs, args.retain)
    as_text = {"text": table.text, "md": table.markdown, "csv": table.comma_separated}
    print(as_text[args.format](entries).rstrip("\n"))
    if args.output:
        files = write(entries, Path(args.output))
        if args.format == "text":
            print(f"\nwritten to {args.output}: {', '.join(file.name for file in files)}")
    return 0
