"""One job of a study: its steps, one after another, by the commands that a user would type.

A step is a mapping; ``do`` says which:

    command   argv: a command of gru-fast
    train     argv, run: one that leaves a run folder; goes on where a killed worker has left one, skips a finished one
    print     argv, file: one whose output is kept in a file
    along     argv, run: one for every checkpoint of a run; "{checkpoint}" in it is its folder, then its name
    toy       the data and the untrained model of a toy
    delete    run: its weights
"""

from __future__ import annotations

import contextlib
import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gru_fast.jobs.command import command, delete_weights
from gru_fast.jobs.queue import Claim
from gru_fast.jobs.worker import Result

CHECKPOINT = "{checkpoint}"


def do(claim: Claim) -> Result:
    """Does a job; its facts are the commands that were run."""
    said: list[str] = []
    for step in claim.spec["steps"]:
        _STEPS[step["do"]](step, said)
    return Result(facts={"commands": said})


def commands_of(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The commands of a job that has not been done, as one would type them."""
    return [_shown(step) for step in steps if step["do"] != "delete"]


def _shown(step: Mapping[str, Any]) -> str:
    if step["do"] == "toy":
        return f"# {step['data']} and {step['model']}: made by gru-fast study"
    line = shlex.join(["gru-fast", *step["argv"]])
    if step["do"] == "print":
        return f"{line} > {shlex.quote(step['file'])}"
    if step["do"] != "along":
        return line
    folder = shlex.quote(f"{step['run']}/along/{CHECKPOINT}")
    line = line.replace(folder, f'{shlex.quote(step["run"])}/along/"$(basename "$checkpoint")"')
    line = line.replace(shlex.quote(CHECKPOINT), '"$checkpoint"')
    return f"for checkpoint in {shlex.quote(step['run'])}/checkpoint-*; do {line}; done"


def settings_of(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the steps of a job are given, by name: the same whatever the order of their options.

    Whether weights are deleted in the end is left out: it changes no number.
    """
    found: dict[str, Any] = {}
    for index, step in enumerate(step for step in steps if step["do"] != "delete"):
        of = {name: value for name, value in step.items() if name != "argv"}
        name = ""
        for text in step.get("argv", []):
            if text.startswith("--"):
                name = text[2:]
            of[name] = [*of.get(name, []), text]
        found[f"step {index + 1}"] = {
            name: " ".join(value) if isinstance(value, list) else value for name, value in of.items()
        }
    return found


def _run(argv: Sequence[str], said: list[str]) -> None:
    with command(argv) as args:
        args.run(args)
    said.append(shlex.join(["gru-fast", *argv]))


def _command(step: Mapping[str, Any], said: list[str]) -> None:
    _run(step["argv"], said)


def _train(step: Mapping[str, Any], said: list[str]) -> None:
    argv, run = step["argv"], Path(step["run"])
    if not _has_all_strengths(argv, run):
        _run([*argv, *_how(argv, run)], said)
        said.pop()
    said.append(shlex.join(["gru-fast", *argv]))


def _has_all_strengths(argv: Sequence[str], run: Path) -> bool:
    """Whether these are task vectors, and each strength has its whole run: the vector itself may be gone by then."""
    if argv[0] != "tru":
        return False
    from gru_fast import runs
    from gru_fast.cli import parse
    from gru_fast.cli.commands.tru import _run_of

    return all((_run_of(run, float(stg)) / runs.RESULT).is_file() for stg in parse(argv).stg)


def _how(argv: Sequence[str], run: Path) -> list[str]:
    """The flag with which a command goes on in a folder that has been begun."""
    from gru_fast import runs

    if argv[0] == "tru":
        return ["--resume"] if run.is_dir() and any(run.iterdir()) else []
    if not runs.is_run(run):
        return []
    # Checkpoints of weights alone are there to be evaluated: a run cannot go on from them.
    resumable = runs.read_run(run).complete or not runs.read_config(run).get("save_only_model")
    return ["--resume"] if resumable else ["--overwrite-output-dir"]


def _print(step: Mapping[str, Any], said: list[str]) -> None:
    from gru_fast.runs import write_text

    output = io.StringIO()
    with command(step["argv"]) as args, contextlib.redirect_stdout(output):
        args.run(args)
    write_text(step["file"], output.getvalue())
    said.append(shlex.join(["gru-fast", *step["argv"]]))


def _along(step: Mapping[str, Any], said: list[str]) -> None:
    from gru_fast import runs

    run = Path(step["run"])
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    last = (runs.read_run(run).result or {})["steps"]
    for checkpoint in checkpoints:
        if int(checkpoint.name.rpartition("-")[2]) < last:  # the last is the model itself
            argv = [text if text != CHECKPOINT else str(checkpoint) for text in step["argv"]]
            _run([text.replace(CHECKPOINT, checkpoint.name) for text in argv], said)


def _toy(step: Mapping[str, Any], said: list[str]) -> None:
    from gru_fast.study import toy

    how = step["toy"]
    toy.write_data(Path(step["data"]), step["source"], step["splits"], how["retain_rows"], how["world_repeats"])
    toy.write_model(Path(step["model"]), Path(step["data"]), how, step["template"], step["seed"])
    said.append(_shown(step))


def _delete(step: Mapping[str, Any], said: list[str]) -> None:
    delete_weights(Path(step["run"]))


_STEPS: Mapping[str, Callable[[Mapping[str, Any], list[str]], None]] = {
    "command": _command,
    "train": _train,
    "print": _print,
    "along": _along,
    "toy": _toy,
    "delete": _delete,
}
