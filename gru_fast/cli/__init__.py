"""The command line: `gru-fast COMMAND`. One file a command in `gru_fast/cli/commands`, each with

HELP                    one line for the list of commands; the module's docstring is what `COMMAND --help` says
add_arguments(parser)   its own arguments
run(args) -> int        the work; returns the exit status. Heavy imports belong in here.

A new file there is a new command; nothing else needs to know. Every command is imported to list it, so what stands at
the top of its file must be light; `add_arguments` is called for the chosen command alone and may import what it needs.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module, metadata

from gru_fast.cli import commands
from gru_fast.cli.logs import keep_off_stdout

EXIT_FAILURE = 1  # 2 is argparse's, for wrong arguments
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0 done, 1 failed, 2 wrong arguments."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = _command(argv)
    keep_off_stdout()
    try:
        args = parse(argv)
        status: int = args.run(args)
        sys.stdout.flush()  # a closed pipe shows here, not at exit
    except BrokenPipeError:  # `gru-fast info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        if "--traceback" in argv:
            raise
        print(f"gru-fast {command}: {type(error).__name__}: {_line(error)}", file=sys.stderr)
        return EXIT_FAILURE
    return status


class _CommandsHelp(argparse.HelpFormatter):
    """With room for the longest command: argparse forgets that the list of commands is indented once more."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command, whose work is then ``args.run(args)``.

    Raises:
        SystemExit: wrong arguments, `--help`, `--version`.
    """
    argv = [_dashed(text) for text in argv]
    parser, subparsers = _parsers(_command(argv))
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        _reject(subparsers[args.command], unknown)
    return args


def _command(argv: Sequence[str]) -> str:
    """Only the first word can be the command: before it there are flags without a value."""
    return next((text for text in argv if not text.startswith("-")), "")


def _parsers(command: str) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of the commands. Only ``command`` has its arguments: some import much to make them."""
    parser = argparse.ArgumentParser(
        prog="gru-fast", description="Gradient Rectified Unlearning for PyTorch.", formatter_class=_CommandsHelp
    )
    parser.add_argument("--version", action="version", version=f"gru-fast {metadata.version('gru_fast')}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    found = {}
    for module_info in pkgutil.iter_modules(commands.__path__):
        name = module_info.name.replace("_", "-")
        module = import_module(f"{commands.__name__}.{module_info.name}")
        found[name] = subparser = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # an option that is added later must not change what a script says
        )
        if name == command:
            module.add_arguments(subparser)
        subparser.add_argument("--traceback", action="store_true", help="show where an error came from")
        subparser.set_defaults(run=module.run)
    return parser, found


def _dashed(text: str) -> str:
    """`--max_length=5` as `--max-length=5`: both spellings of a flag are taken."""
    if not text.startswith("--"):
        return text
    name, equals, value = text.partition("=")
    return name.replace("_", "-") + equals + value


def _reject(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> None:
    """Ends with status 2 and a line on the arguments that nobody knows, each flag with the nearest there is."""
    flags = _flags(parser)
    said = []
    for text in unknown:
        if text.startswith("--local-rank"):
            parser.error(f"{text}: the launcher's, which nothing here needs; start it as deepspeed --no_local_rank")
        near = get_close_matches(text.partition("=")[0], flags, n=1) if text.startswith("-") else []
        said.append(f"{text} (did you mean {near[0]}?)" if near else text)
    parser.error(f"unknown arguments: {', '.join(said)}")


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    """All flags of a parser, and of the parsers under it."""
    found = [flag for action in parser._actions for flag in action.option_strings]
    nested = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found + [flag for parsers in nested for below in parsers.values() for flag in _flags(below)]


# Packages of another extra than [unlearn].
_EXTRAS = {"filelock": "sweep", "optuna": "sweep", "ray": "sweep", "lm_eval": "wmdp"}


def _line(error: BaseException) -> str:
    """What an error says, on one line; a package that is not there, with the way to get it."""
    text = " ".join(str(error).split()) or "no further word"
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("gru_fast"):
        extra = _EXTRAS.get(error.name.partition(".")[0], "unlearn")
        text += f". This command needs extra packages: pip install 'gru_fast[{extra}]'"
    return text
