"""How a job stands, read off Optuna's trials of it.

Trials of one job form a chain: each but the first says which one it comes ``after``, and the last one counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gru_fast.jobs.liveness import Owner

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

WAITING, RUNNING, DONE, FAILED, PRUNED, BLOCKED = "waiting", "running", "done", "failed", "pruned", "blocked"
MAX_DEATHS = 3  # of workers at one job, which then has failed


@dataclass(frozen=True)
class Status:
    """How a job stands.

    Args:
        name, spec, needs: the job's.
        state: waiting, running, done, failed, pruned, or blocked: what it needs has failed.
        value: of a job that is done.
        facts: what its task has noted.
        reason: why it has failed or was pruned.
        log: the file that says more.
        owner: who works on it.
        params: by name, also those that a sampler has drawn.
        seconds: how long it took, of a job that has ended.
    """

    name: str
    spec: Mapping[str, Any]
    needs: tuple[str, ...]
    state: str
    value: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    log: str = ""
    owner: Owner | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def is_pending(self) -> bool:
        """Still to be done, or being done."""
        return self.state in {WAITING, RUNNING}


def chains_of(trials: Iterable[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """The trials of each job, each after the one that it follows; the last one counts."""
    first: dict[str, FrozenTrial] = {}
    after: dict[int, FrozenTrial] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if "job" not in trial.user_attrs:
            continue  # somebody's own, added with Optuna's tools
        if "after" in trial.user_attrs:
            after.setdefault(trial.user_attrs["after"], trial)
        else:
            first.setdefault(trial.user_attrs["job"], trial)
    chains = {name: [trial] for name, trial in first.items()}
    for chain in chains.values():
        while chain[-1].number in after:
            chain.append(after[chain[-1].number])
    return chains


def deaths_before(trial: FrozenTrial) -> int:
    """How many workers have died at the job before this trial."""
    return int(trial.user_attrs.get("deaths", 0))


def is_lost(trial: FrozenTrial) -> bool:
    """Failed without a word: its worker has died."""
    return trial.state.name == "FAIL" and "reason" not in trial.user_attrs


def status_of(chain: Sequence[FrozenTrial]) -> Status:
    trial = chain[-1]
    attributes, state = trial.user_attrs, trial.state.name
    reason = str(attributes.get("reason", ""))
    if is_lost(trial):
        dead = deaths_before(trial) + 1
        state = "WAITING" if dead < MAX_DEATHS else "FAIL"
        reason = f"its worker has died, {dead} times" if state == "FAIL" else ""
    owner = attributes.get("owner")
    return Status(
        name=attributes["job"],
        spec=attributes["spec"],
        needs=tuple(attributes["needs"]),
        state={"WAITING": WAITING, "RUNNING": RUNNING, "COMPLETE": DONE, "FAIL": FAILED, "PRUNED": PRUNED}[state],
        value=trial.value if trial.state.name == "COMPLETE" else None,
        facts=attributes.get("facts", {}),
        reason=reason,
        log=attributes.get("log", ""),
        owner=Owner.from_json(owner) if owner and state == "RUNNING" else None,
        params=trial.params,
        seconds=trial.duration.total_seconds() if trial.duration else None,
    )


def blocked(status: Status, found: Mapping[str, Status]) -> Status:
    """The status of a job that waits for one which will not come."""
    missing = [need for need in status.needs if need in found and _is_out(need, found)]
    if status.state != WAITING or not missing:
        return status
    return replace(status, state=BLOCKED, reason=f"needs {missing[0]}, which is not done")


def _is_out(name: str, found: Mapping[str, Status]) -> bool:
    status = found[name]
    return status.state in {FAILED, PRUNED} or (
        status.state == WAITING and any(_is_out(need, found) for need in status.needs if need in found)
    )


def can_start(status: Status | None, found: Mapping[str, Status]) -> bool:
    if status is None or status.state != WAITING:
        return False
    return all(need in found and found[need].state == DONE for need in status.needs)
