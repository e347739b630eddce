"""The command line: `gru-fast COMMAND`. One file a command in `gru_fast/cli/commands`, each with

HELP                    one line for the list of commands; the module's docstring is what `COMMAND --help` says
add_arguments(parser)   its own arguments
run(args) -> int        the work; returns the exit status. Heavy imports belong in here.

A new file there is a new command; nothing else needs to know.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module, metadata

from gru_fast.cli import commands

EXIT_FAILURE = 1  # 2 is argparse's, for wrong arguments
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0 done, 1 failed, 2 wrong arguments."""
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()  # a closed pipe shows here, not at exit
    except BrokenPipeError:  # `gru-fast info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        if args.traceback:
            raise
        text = " ".join(str(error).split()) or "no further word"
        print(f"gru-fast {args.command}: {type(error).__name__}: {text}", file=sys.stderr)
        return EXIT_FAILURE
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gru-fast", description="Gradient Rectified Unlearning for PyTorch.")
    parser.add_argument("--version", action="version", version=f"gru-fast {metadata.version('gru_fast')}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module_info in pkgutil.iter_modules(commands.__path__):
        command = import_module(f"{commands.__name__}.{module_info.name}")
        subparser = subparsers.add_parser(
            module_info.name.replace("_", "-"),
            help=command.HELP,
            description=command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        subparser.add_argument("--traceback", action="store_true", help="show where an error came from")
        subparser.set_defaults(run=command.run)
    return parser
