"""gamma and tau as they are drawn: in range, not twice, the same whatever driver asks."""

from __future__ import annotations

import math

from gru_fast.runs.records import DONE, FAILED, PRUNED, RUNNING, WAITING, Job, Status
from gru_fast.sweep.draw import Draw

JOBS = [Job(f"npo-tpe{i:03d}", {"method": "npo", "number": i}) for i in range(30)]
ORIGINAL = Status("original", {}, state=DONE, facts={"MU": 0.8, "FQ (ln p)": -30.0})


def draw_all(restart_at: tuple[int, ...] = ()) -> list[dict[str, float]]:
    """All points, each run over before the next is drawn; a new driver takes over where it says."""
    status = {"original": ORIGINAL}
    draw, points = Draw((0.1, 0.9), (0.01, 10.0), 0.9, 3), []
    for job in JOBS:
        if len(points) in restart_at:
            draw = Draw((0.1, 0.9), (0.01, 10.0), 0.9, 3)
        drawn = dict(draw(job, status).drawn)
        points.append(drawn)
        spec, number = {**job.spec, **drawn}, job.spec["number"]
        found = {"MU": 0.8 - 0.1 * drawn["gamma"], "FQ (ln p)": -10.0 * drawn["gamma"]}
        status[job.name] = Status(job.name, spec, state=DONE, facts=found)
        if number == 4:
            facts = {"utility_bounds": {"1": 0.2}, "missing_utility": 0.5}
            status[job.name] = Status(job.name, spec, state=PRUNED, facts=facts)
        if number == 5:
            status[job.name] = Status(job.name, spec, state=FAILED)
    return points


def test_points_are_in_range_and_get_better() -> None:
    points = draw_all()
    assert all(0.1 <= point["gamma"] <= 0.9 and 0.01 <= point["tau"] <= 10 for point in points)
    assert len({point["gamma"] for point in points}) == len(JOBS)
    first, last = points[:10], points[-10:]
    assert sum(point["gamma"] for point in last) < sum(point["gamma"] for point in first)  # towards the better FQ


def test_a_driver_that_starts_anew_goes_on_as_the_first_would_have() -> None:
    assert draw_all((7, 20)) == draw_all()


def test_runs_in_progress_are_not_drawn_again() -> None:
    draw, status = Draw((0.1, 0.9), (0.01, 10.0), 0.9, 0), {"original": ORIGINAL}
    points = []
    for job in JOBS[:4]:
        drawn = draw(job, status).drawn
        points.append(drawn["gamma"])
        status[job.name] = Status(job.name, {**job.spec, **drawn}, state=RUNNING)
    assert len(set(points)) == 4


def test_a_run_without_a_score_counts_as_failed() -> None:
    """NaN has no rank: it must not end the sweep, nor be taken for a good one."""
    draw, status = Draw((0.1, 0.9), (0.01, 10.0), 0.9, 0), {"original": ORIGINAL}
    for job, facts in zip(
        JOBS, [{"MU": math.nan, "FQ (ln p)": -1.0}, {"MU": 0.8, "FQ (ln p)": math.nan}, {}], strict=False
    ):
        status[job.name] = Status(job.name, {**job.spec, **draw(job, status).drawn}, state=DONE, facts=facts)
    assert 0.1 <= draw(JOBS[3], status).drawn["gamma"] <= 0.9
    assert [trial.state.name for trial in draw._study("npo").trials] == ["FAIL", "FAIL", "FAIL", "RUNNING"]


def test_a_failed_run_that_is_tried_again_keeps_its_point() -> None:
    """Past the first ten, which are drawn at random, the sampler reads all that have begun, this one too."""
    draw, status, points = Draw((0.1, 0.9), (0.01, 10.0), 0.9, 0), {"original": ORIGINAL}, []
    for number, job in enumerate(JOBS[:15]):
        points.append(dict(draw(job, status).drawn))
        facts = {"MU": 0.8, "FQ (ln p)": -10.0 * points[-1]["gamma"]}
        state = FAILED if number == 12 else DONE
        status[job.name] = Status(job.name, {**job.spec, **points[-1]}, state=state, facts=facts)
    again = status[JOBS[12].name]
    status[again.name] = Status(again.name, again.spec, state=WAITING)
    draw = Draw((0.1, 0.9), (0.01, 10.0), 0.9, 0)
    assert 0.1 <= draw(JOBS[15], status).drawn["gamma"] <= 0.9
    trials = draw._study("npo").trials
    assert [trial.params for trial in trials[:15]] == points
    assert [number for number, trial in enumerate(trials) if trial.state.name == "RUNNING"] == [12, 15]


def test_a_job_with_a_point_of_its_own_keeps_it() -> None:
    job = Job("npo-gamma0.1-tau1", {"method": "npo", "gamma": 0.1, "tau": 1.0})
    assert Draw((0, 1), (1, 2), 0.9, 0)(job, {}) is job
