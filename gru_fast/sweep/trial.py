"""One job of a sweep, by the commands that a user would type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru_fast.evaluation.judge import TOFU, Judge
from gru_fast.jobs.command import Parse, command
from gru_fast.runs.folder import delete_weights
from gru_fast.runs.records import Job, Records
from gru_fast.sweep.plan import ORIGINAL, RUNS, evaluation_file, training_file

if TYPE_CHECKING:
    from transformers import TrainerCallback


@dataclass(frozen=True)
class SweepTask:
    """Does the jobs of a sweep; picklable.

    Args:
        parse: reads a command line; picklable.
        folder: of the sweep.
        split: what is forgotten.
        original: flags that name the original model.
        share: of the original's utility that the best run must keep.
        prune: give up runs for which that is out of reach.
        keep_models: whether weights stay after the evaluation.
        judge: whose evaluation it is, and what counts.
    """

    parse: Parse
    folder: Path
    split: str
    original: tuple[str, ...]
    share: float
    prune: bool
    keep_models: bool
    judge: Judge = TOFU

    def __call__(self, job: Job) -> dict[str, Any]:
        """The job's scores, with gamma and tau."""
        if job.name == ORIGINAL:
            return self._evaluate([*self.original], self._output(self.folder / ORIGINAL))
        point = {name: {**job.spec, **job.drawn}[name] for name in ("gamma", "tau")}
        run = self.folder / RUNS / job.name
        self._unlearn(job, point, run)
        scores = self._evaluate(["--model", str(run)], self._output(run))
        if not self.keep_models:
            delete_weights(run)
        return {**point, **scores, **_outcome(run)}

    def _unlearn(self, job: Job, point: dict[str, float | None], run: Path) -> None:
        """`gru-fast unlearn`; goes on in a folder that a killed worker has left."""
        tau = "none" if point["tau"] is None else str(point["tau"])
        config = str(training_file(self.folder, job.spec["method"]))
        argv = ["unlearn", "--config", config, "--output-dir", str(run), "--resume", "--rectify"]
        argv += ["--gamma", str(point["gamma"]), "--tau", tau]
        with command(argv, self.parse) as args:
            args.run(args, self._callbacks(run))

    def _callbacks(self, run: Path) -> list[TrainerCallback]:
        if not self.prune:
            return []
        from gru_fast.sweep.prune import Reach

        return [Reach(run, evaluation_file(self.folder), self._least_utility())]

    def _evaluate(self, model: Sequence[str], output: Path) -> dict[str, Any]:
        """`gru-fast eval`; returns the scores by heading."""
        from gru_fast import benchmarks
        from gru_fast.evaluation.summaries import SUMMARY_FILE
        from gru_fast.runs.files import read_json

        name = self.judge.benchmark
        argv = ["eval", name, "--config", str(evaluation_file(self.folder)), *model, "--output-dir", str(output)]
        with command(argv, self.parse) as args:
            args.run(args)
        scores: dict[str, Any] = benchmarks.evaluation(name).columns(read_json(output / SUMMARY_FILE))
        return scores

    def _output(self, folder: Path) -> Path:
        return folder / "eval" / f"{self.judge.benchmark}-{self.split}"

    def _least_utility(self) -> float:
        record = Records(self.folder).read(ORIGINAL)
        if record is None:
            raise FileNotFoundError(f"{self.folder}: no record of the original model's evaluation")
        return self.share * float(record["facts"][self.judge.utility])


def _outcome(run: Path) -> dict[str, Any]:
    from gru_fast.runs.folder import read_run

    result = read_run(run).result or {}
    return {name: result.get(name) for name in ("steps", "seconds", "skipped", "degenerate")}
