"""gamma and tau of a run, drawn by what has come of those before: by Optuna's TPE.

The driver asks it, and tells it what records say; nothing else is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gru_fast.evaluation.judge import TOFU, Judge
from gru_fast.runs.records import DONE, PRUNED, Job, Status

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial


@dataclass
class Draw:
    """Draws gamma and tau of a sweep's jobs; ``draw(job, status)`` is the job with its own.

    Args:
        gammas, taus: (smallest, largest) value; tau is drawn on a logarithmic scale.
        share: of the original's utility that a run must keep: the sampler's constraint.
        seed: with a job's number, of its draw.
        judge: what quality and utility are.
    """

    gammas: tuple[float, float]
    taus: tuple[float, float]
    share: float
    seed: int
    judge: Judge = TOFU
    _studies: dict[str, Study] = field(default_factory=dict)
    _trials: dict[str, Trial] = field(default_factory=dict)  # by job
    _told: set[str] = field(default_factory=set)

    def __call__(self, job: Job, status: Mapping[str, Status]) -> Job:
        """The job, with gamma and tau drawn unless it has its own."""
        if "number" not in job.spec:
            return job
        from optuna.samplers import TPESampler

        method = job.spec["method"]
        self._catch_up(method, status)
        study = self._study(method)
        # A sampler of the job's own: one that starts anew with the same seed would draw the same again.
        study.sampler = TPESampler(seed=self.seed + job.spec["number"], constant_liar=True)
        self._trials[job.name] = trial = study.ask()
        return Job(job.name, job.spec, job.needs, self._point(trial))

    def _point(self, trial: Trial) -> dict[str, float]:
        return {
            "gamma": trial.suggest_float("gamma", *self.gammas),
            "tau": trial.suggest_float("tau", *self.taus, log=True),
        }

    def _catch_up(self, method: str, status: Mapping[str, Status]) -> None:
        """Tells the study what jobs have begun, and what has come of those that are over."""
        for name, job in status.items():
            if job.spec.get("method") != method or "gamma" not in job.spec:
                continue
            if name not in self._trials:  # of a driver before this one
                self._study(method).enqueue_trial({key: job.spec[key] for key in ("gamma", "tau")})
                self._trials[name] = trial = self._study(method).ask()
                self._point(trial)
            if not job.is_pending and name not in self._told:
                self._told.add(name)
                self._tell(self._study(method), self._trials[name], job, status)

    def _tell(self, study: Study, trial: Trial, job: Status, status: Mapping[str, Status]) -> None:
        from optuna.trial import TrialState

        known = [job.facts.get(name) for name in (self.judge.utility, self.judge.quality)]
        if job.state == DONE and all(value is not None and math.isfinite(value) for value in known):
            least = self.share * next(s.facts[self.judge.utility] for s in status.values() if "method" not in s.spec)
            trial.set_constraint("utility", least - job.facts[self.judge.utility])
            study.tell(trial, self.judge.better(job.facts[self.judge.quality]))
        elif job.state == PRUNED:
            for epoch, most in job.facts["utility_bounds"].items():
                trial.report(most, int(epoch))
            trial.set_constraint("utility", job.facts["missing_utility"])
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, state=TrialState.FAIL)

    def _study(self, method: str) -> Study:
        import optuna

        if method not in self._studies:
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            self._studies[method] = optuna.create_study(direction="maximize")
        return self._studies[method]
