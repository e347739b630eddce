"""One job of a study: its steps, one after another, by the commands that a user would type.

A step is a mapping; ``do`` says which:

    command   argv: a command of gru-fast
    train     argv, run: one that leaves a run folder; goes on where a killed worker has left one, skips a finished one;
              launch, if something starts it: it says how many processes share the rows of a step
    print     argv, file: one whose output is kept in a file
    along     argv, run: one for every checkpoint of a run; "{checkpoint}" in it is its folder, then its name
    moved     run, start: how far the run, and each of its checkpoints, is from the model that it started from
    excerpt   a part of the benchmark's rows
    toy       the same, and the untrained model of a toy
    delete    run: its weights

Commands are run in this process, or as the recipe's ``launch`` says: by a launcher, on several GPUs.
"""

from __future__ import annotations

import contextlib
import gc
import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gru_fast.jobs.command import Parse, command, launched
from gru_fast.runs.folder import delete_weights
from gru_fast.runs.records import Job

CHECKPOINT = "{checkpoint}"
MOVED = "moved.json"  # of a run: distances from its start, its own and those of checkpoints by name
_BESIDE = ("moved", "delete")  # steps that are no commands, and change no number of another

Launch = Mapping[str, str]  # of a recipe: command -> what starts it, in the place of gru-fast


@dataclass(frozen=True)
class StudyTask:
    """Does the jobs of a study; the facts of each are the commands that were run.

    Args:
        parse: reads a command line; picklable.
        launch: of the recipe.
    """

    parse: Parse
    launch: Launch = field(default_factory=dict)

    def __call__(self, job: Job) -> dict[str, Any]:
        runner = _Runner(self.parse, self.launch)
        for step in job.spec["steps"]:
            _STEPS[step["do"]](step, runner)
        return {"commands": runner.said}


class _Runner:
    """Runs commands, and keeps how each would be typed."""

    def __init__(self, parse: Parse, launch: Launch) -> None:
        self.parse = parse
        self.launch = launch
        self.said: list[str] = []

    def run(self, argv: Sequence[str], how: Sequence[str] = ()) -> None:
        """``how``: flags of this time alone, with which it goes on where it was stopped."""
        prefix = launcher_of(argv, self.launch)
        if prefix is not None:
            _free_device_memory()
            launched([*shlex.split(prefix), *argv, *how])
        else:
            with command([*argv, *how], self.parse) as args:
                args.run(args)
        self.said.append(_typed(argv, self.launch))


def launcher_of(argv: Sequence[str], launch: Launch) -> str | None:
    """What starts a command; None: it is run in this process.

    So is a method on hidden states: it trains a few layers, which one device holds, and is refused where a model is
    sharded.
    """
    from gru_fast.unlearn import methods

    if argv[0] == "unlearn" and methods.get(argv[argv.index("--method") + 1]).hidden_states:
        return None
    return launch.get(argv[0])


def _free_device_memory() -> None:
    """Gives back what commands in this process have left in torch's hands: what is launched may need all of it."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _typed(argv: Sequence[str], launch: Launch) -> str:
    return f"{launcher_of(argv, launch) or 'gru-fast'} {shlex.join(argv)}"


def commands_of(steps: Sequence[Mapping[str, Any]], launch: Launch) -> list[str]:
    """The commands of a job that has not been done, as one would type them."""
    return [_shown(step, launch) for step in steps if step["do"] not in _BESIDE]


def _shown(step: Mapping[str, Any], launch: Launch) -> str:
    if step["do"] in {"excerpt", "toy"}:
        made = " and ".join(str(step[what]) for what in ("data", "model") if what in step)
        return f"# {made}: made by gru-fast study"
    if step["do"] == "print":
        return f"{_typed(step['argv'], {})} > {shlex.quote(step['file'])}"
    line = _typed(step["argv"], launch)
    if step["do"] != "along":
        return line
    folder = shlex.quote(f"{step['run']}/along/{CHECKPOINT}")
    line = line.replace(folder, f'{shlex.quote(step["run"])}/along/"$(basename "$checkpoint")"')
    line = line.replace(shlex.quote(CHECKPOINT), '"$checkpoint"')
    return f"for checkpoint in {shlex.quote(step['run'])}/checkpoint-*; do {line}; done"


def settings_of(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the steps of a job are given, by name: the same whatever the order of their options.

    What changes no number of another step is left out.
    """
    found: dict[str, Any] = {}
    for index, step in enumerate(step for step in steps if step["do"] not in _BESIDE):
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


def _command(step: Mapping[str, Any], runner: _Runner) -> None:
    runner.run(step["argv"])


def _train(step: Mapping[str, Any], runner: _Runner) -> None:
    argv, run = step["argv"], Path(step["run"])
    if _has_all_strengths(argv, run, runner.parse):
        runner.said.append(_typed(argv, runner.launch))
    else:
        runner.run(argv, _how(argv, run))


def _has_all_strengths(argv: Sequence[str], run: Path, parse: Parse) -> bool:
    """Whether these are task vectors, and each strength has its whole run: the vector itself may be gone by then."""
    if argv[0] != "tru":
        return False
    from gru_fast import runs
    from gru_fast.unlearn.task_vector_options import run_of

    return all((run_of(run, float(stg)) / runs.RESULT).is_file() for stg in parse(argv).stg)


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


def _print(step: Mapping[str, Any], runner: _Runner) -> None:
    from gru_fast.runs.files import write_text

    output = io.StringIO()
    with command(step["argv"], runner.parse) as args, contextlib.redirect_stdout(output):
        args.run(args)
    write_text(step["file"], output.getvalue())
    runner.said.append(_typed(step["argv"], {}))


def _along(step: Mapping[str, Any], runner: _Runner) -> None:
    from gru_fast import runs

    run = Path(step["run"])
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    last = (runs.read_run(run).result or {})["steps"]
    for checkpoint in checkpoints:
        if int(checkpoint.name.rpartition("-")[2]) < last:  # the last is the model itself
            argv = [text if text != CHECKPOINT else str(checkpoint) for text in step["argv"]]
            runner.run([text.replace(CHECKPOINT, checkpoint.name) for text in argv])


def _moved(step: Mapping[str, Any], runner: _Runner) -> None:
    from gru_fast.models.distance import distance
    from gru_fast.runs.files import write_json

    run, start = Path(step["run"]), Path(step["start"])
    if not (run / MOVED).is_file():  # a job that goes on may have deleted the weights
        folders = {"end": run, **{path.name: path for path in sorted(run.glob("checkpoint-*"))}}
        write_json(run / MOVED, {name: distance(start, path) for name, path in folders.items()})


def _excerpt(step: Mapping[str, Any], runner: _Runner) -> None:
    from gru_fast.study import toy

    toy.write_data(Path(step["data"]), step["source"], step["splits"], step["retain_rows"])
    runner.said.append(_shown(step, {}))


def _toy(step: Mapping[str, Any], runner: _Runner) -> None:
    from gru_fast.study import toy

    how = step["toy"]
    toy.write_data(Path(step["data"]), step["source"], step["splits"], how["retain_rows"], how["world_repeats"])
    toy.write_model(Path(step["model"]), Path(step["data"]), how, step["template"], step["seed"])
    runner.said.append(_shown(step, {}))


def _delete(step: Mapping[str, Any], runner: _Runner) -> None:
    delete_weights(Path(step["run"]))


_STEPS: Mapping[str, Callable[[Mapping[str, Any], _Runner], None]] = {
    "command": _command,
    "train": _train,
    "print": _print,
    "along": _along,
    "moved": _moved,
    "excerpt": _excerpt,
    "toy": _toy,
    "delete": _delete,
}
