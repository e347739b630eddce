"""One job of a sweep, by the commands that a user would type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru_fast.jobs.command import command, delete_weights
from gru_fast.jobs.queue import Claim
from gru_fast.jobs.worker import Result
from gru_fast.sweep.plan import ORIGINAL, RUNS, evaluation_file, training_file

if TYPE_CHECKING:
    from transformers import TrainerCallback

UTILITY, QUALITY = "MU", "FQ (ln p)"  # headings of the benchmark's scores


@dataclass(frozen=True)
class SweepTask:
    """Does the jobs of a sweep; picklable.

    Args:
        folder: of the sweep.
        split: what is forgotten.
        original: flags that name the original model.
        share: of the original's Model Utility that the best run must keep.
        prune: give up runs for which that is out of reach.
        gammas, taus: (smallest, largest) value, for runs whose values are drawn.
        seed: of the drawing.
        keep_models: whether weights stay after the evaluation.
    """

    folder: Path
    split: str
    original: tuple[str, ...]
    share: float
    prune: bool
    gammas: tuple[float, float]
    taus: tuple[float, float]
    seed: int
    keep_models: bool

    def __call__(self, claim: Claim) -> Result:
        """The job's scores; its value is Forget Quality."""
        if claim.name == ORIGINAL:
            output = self.folder / ORIGINAL / "eval" / f"tofu-{self.split}"
            scores = self._evaluate([*self.original, "--output-dir", str(output)], output)
            return Result(scores[QUALITY], scores)
        point = self._point(claim)
        run = self.folder / RUNS / claim.name
        self._unlearn(claim, point, run)
        scores = self._evaluate(["--model", str(run)], run / "eval" / f"tofu-{self.split}")
        if "gamma" not in claim.spec:  # drawn: the sampler must know what was too much
            claim.trial.set_constraint(UTILITY, self._least_utility(claim) - scores[UTILITY])
        if not self.keep_models:
            delete_weights(run)
        return Result(scores[QUALITY], {**point, **scores, **_outcome(run)})

    def _point(self, claim: Claim) -> dict[str, float | None]:
        """gamma and tau: the job's own, or drawn."""
        if "gamma" in claim.spec:
            return {"gamma": claim.spec["gamma"], "tau": claim.spec["tau"]}
        from optuna.samplers import TPESampler

        # A sampler of the trial's own: several processes with one seed would all draw the same.
        claim.study.sampler = TPESampler(seed=self.seed + claim.trial.number, constant_liar=True)
        return {
            "gamma": claim.trial.suggest_float("gamma", *self.gammas),
            "tau": claim.trial.suggest_float("tau", *self.taus, log=True),
        }

    def _unlearn(self, claim: Claim, point: dict[str, float | None], run: Path) -> None:
        """`gru-fast unlearn`; goes on in a folder that a killed worker has left."""
        from gru_fast.cli.commands import unlearn

        tau = "none" if point["tau"] is None else str(point["tau"])
        config = str(training_file(self.folder, claim.spec["method"]))
        argv = ["unlearn", "--config", config, "--output-dir", str(run), "--resume", "--rectify"]
        argv += ["--gamma", str(point["gamma"]), "--tau", tau]
        with command(argv) as args:
            unlearn.run(args, self._callbacks(claim, run))

    def _callbacks(self, claim: Claim, run: Path) -> list[TrainerCallback]:
        if not self.prune:
            return []
        from gru_fast.sweep.prune import Reach

        return [Reach(claim, run, evaluation_file(self.folder), self._least_utility(claim))]

    def _evaluate(self, model: Sequence[str], output: Path) -> dict[str, Any]:
        """`gru-fast eval tofu`; returns the scores by heading."""
        from gru_fast.benchmarks.tofu.evaluate import columns
        from gru_fast.evaluation.summaries import SUMMARY_FILE
        from gru_fast.runs.files import read_json

        with command(["eval", "tofu", "--config", str(evaluation_file(self.folder)), *model]) as args:
            args.run(args)
        return columns(read_json(output / SUMMARY_FILE))

    def _least_utility(self, claim: Claim) -> float:
        return self.share * float(claim.queue.status()[ORIGINAL].facts[UTILITY])


def _outcome(run: Path) -> dict[str, Any]:
    from gru_fast.runs.folder import read_run

    result = read_run(run).result or {}
    return {name: result.get(name) for name in ("steps", "seconds", "skipped", "degenerate")}
