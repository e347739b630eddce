"""gamma and tau as they are drawn: in range, not twice, the same whatever driver asks."""

from __future__ import annotations

from gru_fast.runs.records import DONE, FAILED, PRUNED, RUNNING, Job, Status
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


def test_a_job_with_a_point_of_its_own_keeps_it() -> None:
    job = Job("npo-gamma0.1-tau1", {"method": "npo", "gamma": 0.1, "tau": 1.0})
    assert Draw((0, 1), (1, 2), 0.9, 0)(job, {}) is job
