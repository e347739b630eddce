"""Jobs that processes share: each is done once, a dead worker's job is taken over, the outcome stays.

A job is a waiting trial of an Optuna study; claiming it is Optuna's own atomic change of a trial's state. What Optuna
does not have in every storage is built on trials and their attributes alone, so that any storage serves:

- A worker writes a counter into its trial. A trial whose counter stands still, or whose process is known to have ended,
  is failed and followed by a new waiting trial of the same job, a few times.
- Trials of one job form a chain: each but the first says which one it comes ``after``. Where two processes have added
  the same link at the same time, the trial with the lower number counts and the other is never looked at. So anybody
  may add what is missing, at any time, without a lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gru_fast.jobs.liveness import Owner, Silence
from gru_fast.jobs.status import (
    FAILED,
    MAX_DEATHS,
    Status,
    blocked,
    can_start,
    chains_of,
    deaths_before,
    is_lost,
    status_of,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

_SETTINGS = "settings"  # attribute of a study


@dataclass(frozen=True)
class Job:
    """Something to do.

    Args:
        name: unique in its queue; names the log too.
        spec: what the task needs to know, as JSON.
        needs: names of jobs that must be done before.
        params, distributions: shown by Optuna, and learned from by its samplers; both by name.
    """

    name: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)


class Queue:
    """The jobs of some studies in one storage.

    Args:
        storage: of :func:`gru_fast.jobs.storage.open_storage`.
        name: of the queue; its studies are called NAME/GROUP.
        groups: the studies, in the order in which their jobs are claimed.
        patience: seconds without a sign of life after which a running job is taken over.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        groups: Sequence[str],
        patience: float = 60.0,
    ) -> None:
        self.storage = storage
        self.name = name
        self.patience = patience
        self._groups = groups
        self._silence = Silence()

    # ---- making it ---------------------------------------------------------------------------------------------------

    def check(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuses studies that are there and were made with other settings; changes nothing.

        Args:
            settings: of each group, as JSON.

        Raises:
            ValueError: naming what differs.
        """
        import optuna

        there = optuna.get_all_study_names(self.storage)
        for group, wanted in settings.items():
            if self._study_name(group) in there:
                _check_same(self._study_name(group), self._load(group).user_attrs.get(_SETTINGS), wanted)

    def make(self, settings: Mapping[str, Mapping[str, Any]], jobs: Mapping[str, Sequence[Job]]) -> None:
        """Makes the studies and adds the jobs that they do not have. Several processes may do so at the same time.

        Raises:
            ValueError: see :meth:`check`; nothing has been made then.
        """
        import optuna

        self.check(settings)
        for group, wanted in settings.items():
            study = optuna.create_study(
                storage=self.storage, study_name=self._study_name(group), direction="maximize", load_if_exists=True
            )
            if _SETTINGS not in study.user_attrs:
                study.set_user_attr(_SETTINGS, dict(wanted))
        for group, wanted_jobs in jobs.items():
            there = chains_of(self._trials(group))
            for job in wanted_jobs:
                if job.name not in there:
                    attributes = {"job": job.name, "spec": dict(job.spec), "needs": list(job.needs)}
                    self._add(group, attributes, job.params, job.distributions)

    def retry_failed(self) -> list[str]:
        """Puts the jobs that have failed back into the queue; returns their names."""
        failed = [name for name, status in self.status().items() if status.state == FAILED]
        for group in self._groups:
            for name, chain in chains_of(self._trials(group)).items():
                if name in failed:
                    self._add_again(group, chain[-1], deaths=0)
        return failed

    # ---- looking at it -----------------------------------------------------------------------------------------------

    def is_made(self) -> bool:
        """Whether all of its studies are there; changes nothing."""
        import optuna

        there = optuna.get_all_study_names(self.storage)
        return all(self._study_name(group) in there for group in self._groups)

    def status(self) -> dict[str, Status]:
        """Every job by name, group after group, in the order in which they were added."""
        found = {
            name: status_of(chain)
            for group in self._groups
            for name, chain in chains_of(self._trials(group)).items()
        }  # fmt: skip
        return {name: blocked(status, found) for name, status in found.items()}

    # ---- working on it -----------------------------------------------------------------------------------------------

    def claim(self, owner: Owner) -> Claim | None:
        """A waiting job that needs nothing more, now the caller's; None if there is none."""
        status = self.status()
        for group in self._groups:
            for name, chain in chains_of(self._trials(group)).items():
                if not can_start(status.get(name), status) or not self._take(group, chain[-1]):
                    continue
                return self._claimed(group, name, chain[-1], owner)
        return None

    def take_over(self) -> list[str]:
        """Puts jobs of workers that have died back into the queue; returns their names."""
        found = []
        for group in self._groups:
            for name, chain in chains_of(self._trials(group)).items():
                trial = chain[-1]
                if trial.state.name == "RUNNING" and self._is_dead(group, trial):
                    self._fail(group, trial)
                    trial = next(t for t in self._trials(group) if t.number == trial.number)
                if is_lost(trial) and deaths_before(trial) + 1 < MAX_DEATHS:
                    self._add_again(group, trial, deaths=deaths_before(trial) + 1)
                    found.append(name)
        return found

    def _is_dead(self, group: str, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get("owner")
        if owner is not None and Owner.from_json(owner).is_gone():
            return True
        return self._silence.seconds((group, trial.number), trial.user_attrs.get("beat")) > self.patience

    def _take(self, group: str, trial: FrozenTrial) -> bool:
        """Whether the caller is the one process that has set a waiting trial running."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            return self.storage.set_trial_state_values(self._id(group, trial), TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    def _fail(self, group: str, trial: FrozenTrial) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            self.storage.set_trial_state_values(self._id(group, trial), TrialState.FAIL)
        except UpdateFinishedTrialError:  # somebody else has seen it too, or it was alive and has ended
            return

    def _claimed(self, group: str, name: str, trial: FrozenTrial, owner: Owner) -> Claim:
        from optuna.trial import Trial

        study = self._studies[group]
        running = Trial(study, self._id(group, trial))
        running.set_user_attr("owner", owner.to_json())
        return Claim(self, group, name, trial.user_attrs["spec"], study, running)

    def _add_again(self, group: str, trial: FrozenTrial, deaths: int) -> None:
        attributes = {key: trial.user_attrs[key] for key in ("job", "spec", "needs")}
        again = {**attributes, "after": trial.number, "deaths": deaths}
        self._add(group, again, trial.params, trial.distributions)

    def _add(
        self, group: str, attributes: Mapping[str, Any], params: Mapping[str, Any], distributions: Mapping[str, Any]
    ) -> None:
        from optuna.trial import TrialState, create_trial

        trial = create_trial(
            state=TrialState.WAITING,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs=dict(attributes),
        )
        self._studies[group].add_trial(trial)

    # ---- studies and trials ------------------------------------------------------------------------------------------

    @cached_property
    def _studies(self) -> dict[str, Study]:
        return {group: self._load(group) for group in self._groups}

    def _load(self, group: str) -> Study:
        import optuna

        return optuna.load_study(study_name=self._study_name(group), storage=self.storage)

    def _study_name(self, group: str) -> str:
        return f"{self.name}/{group}"

    def _trials(self, group: str) -> list[FrozenTrial]:
        return self._studies[group].get_trials(deepcopy=False)

    def _id(self, group: str, trial: FrozenTrial) -> int:
        study_id = self.storage.get_study_id_from_name(self._study_name(group))
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)


@dataclass
class Claim:
    """A job that this process does.

    Args:
        queue, group: where it is from.
        name, spec: the job's.
        study, trial: Optuna's, for samplers and intermediate values.
    """

    queue: Queue
    group: str
    name: str
    spec: Mapping[str, Any]
    study: Study
    trial: Trial
    _beats: int = 0

    def beat(self) -> bool:
        """A sign of life. False: the job has been taken over, and this process must let go of it at once."""
        from optuna.exceptions import UpdateFinishedTrialError

        self._beats += 1
        try:
            self.trial.set_user_attr("beat", self._beats)
        except UpdateFinishedTrialError:
            return False
        return True

    def log_to(self, path: str) -> None:
        """Where the job's log is, for whoever asks."""
        self.trial.set_user_attr("log", path)

    def finish(self, value: float, facts: Mapping[str, Any]) -> None:
        """The job is done. ``value``: a finite number, what a sampler maximises; ``facts``: JSON."""
        self.trial.set_user_attr("facts", dict(facts))
        self._tell("COMPLETE", value)

    def fail(self, reason: str) -> None:
        """The job has failed, for a reason that trying again would not mend."""
        self.trial.set_user_attr("reason", reason)
        self._tell("FAIL")

    def prune(self, reason: str) -> None:
        """The job was given up: nothing good could come of it."""
        self.trial.set_user_attr("reason", reason)
        self._tell("PRUNED")

    def release(self) -> None:
        """Puts the job back: this process has been asked to stop."""
        trial = next(t for t in self.queue._trials(self.group) if t.number == self.trial.number)
        self.queue._fail(self.group, trial)
        self.queue._add_again(self.group, trial, deaths=deaths_before(trial))

    def _tell(self, state: str, value: float | None = None) -> None:
        from optuna.trial import TrialState

        self.study.tell(self.trial, value, TrialState[state])


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """``["split forget05, not forget10"]``: where two JSON values differ, old first, by dotted names."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            found
            for key in {**old, **new}
            for found in differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if old == new else [f"{name} {old!r}, not {new!r}"]


def _check_same(study: str, old: Any, new: Mapping[str, Any]) -> None:
    if old is None:  # its maker has not come to that yet
        return
    changed = differences(old, new)
    if changed:
        raise ValueError(
            f'study "{study}" was made with {"; ".join(changed)}: give the same options, or another --study or '
            "--output-dir"
        )
