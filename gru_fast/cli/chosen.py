"""The benchmark that a command was given, which decides what other flags it has."""

from __future__ import annotations

import argparse
import dataclasses
from types import ModuleType

from gru_fast.options import commands
from gru_fast.options import flags as options


def benchmark(args: argparse.Namespace) -> ModuleType:
    """Its module: of a flag, else of the config file, else the default's.

    Raises:
        ValueError: no such benchmark, or a flag that is another one's and would do nothing.
    """
    from gru_fast import benchmarks

    content = options.read_config(args.config)[0] if args.config else {}
    name = str(getattr(args, "benchmark", content.get("benchmark", commands.DEFAULT_BENCHMARK)))
    found: ModuleType = benchmarks.get(name)
    refuse_others(args, name, found.Options, commands.data_of_all())
    return found


def refuse_others(args: argparse.Namespace, name: str, own: type, every: type) -> None:
    """Refuses a flag of ``every`` benchmark's options that this one's ``own`` do not have: it would do nothing."""
    from gru_fast import benchmarks

    names = {field.name for field in dataclasses.fields(own)}
    unused = [field.name for field in dataclasses.fields(every) if field.name not in names]
    given = [unknown for unknown in unused if unknown in vars(args)]
    if given:
        have = [other for other in benchmarks.names() if _has(benchmarks.get(other).Options, given[0])]
        whose = f", or give --benchmark {' or '.join(have)}, which has it" if have else ""
        raise ValueError(f"{options.flag(given[0])}: no option of --benchmark {name}; leave it out{whose}")


def _has(cls: type, name: str) -> bool:
    return name in {field.name for field in dataclasses.fields(cls)}
