"""Studies of one recipe, done apart, as one: nothing lost, nothing counted twice, no numbers mixed that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from study_results import ENVIRONMENT, study

from gru_fast.cli import main
from gru_fast.runs.records import DONE, FAILED, WAITING
from gru_fast.study import join, load, results
from gru_fast.study.plan import Plan
from gru_fast.study.results import GRU, PLAIN, UNLEARNED, Attacked, Calibrated, StudyResults, StudyRun

SHARED: dict[str, Any] = {
    "device": "cpu",
    "toy": {},
    "model": {"template": "llama2-chat"},
    "finetune": {"learning_rate": 1e-3},
    "splits": {"forget05": {}},
}
CALIBRATED = [Calibrated(0.9, 0.5, {"MU": 0.4, "FQ (ln p)": -3.0})]


def part(seeds: Sequence[int], methods: Sequence[str] = ("ga",), **changes: Any) -> StudyResults:
    """A study of which all is done; every score of a seed is its number, of GA with GRU 0.5 more."""
    content = {**SHARED, "methods": {method: {} for method in methods}, "seeds": list(seeds), **changes}
    recipe = load.to_dict(load.make(content))
    runs = [done(each.run) for each in Plan(load.make(recipe), Path(), is_done=True).runs()]
    command = f"gru-fast study tofu-tiny --seeds {' '.join(map(str, seeds))} --methods {' '.join(methods)}"
    return study(
        runs, splits=["forget05"], seeds=list(seeds), recipe=recipe, command=command, seconds=60.0, name="part"
    )


def done(run: StudyRun) -> StudyRun:
    score = float(run.seed or 0) + (0.5 if run.variant == GRU else 0.0)
    return replace(run, state=DONE, scores={"MU": score, "FQ (ln p)": -score})


def joined(*studies: StudyResults) -> StudyResults:
    return join.join(dict(zip("ABC", studies, strict=False)), "whole")


def by_name(found: StudyResults) -> dict[str, StudyRun]:
    return {run.name: run for run in found.runs}


def test_seeds() -> None:
    found = joined(part([0]), part([3]), part([1]))
    assert found.seeds == [0, 1, 3]
    assert [run.name for run in found.runs] == [
        f"{name}{seed}{end}"
        for seed in (0, 1, 3)
        for name, end in (("retrained-forget05-seed", ""), ("original-forget05-seed", ""))
    ] + [f"forget05-seed{seed}-ga{end}" for seed in (0, 1, 3) for end in ("", "-gru")]
    assert {run.seed: run.scores["MU"] for run in found.find(variant=GRU)} == {0: 0.5, 1: 1.5, 3: 3.5}
    assert (found.name, found.seconds) == ("whole", 180.0)
    assert found.command.splitlines() == [f"gru-fast study tofu-tiny --seeds {seed} --methods ga" for seed in (0, 3, 1)]
    assert load.make(found.recipe).seeds == [0, 1, 3]


def test_methods_and_the_runs_that_nobody_has_done() -> None:
    """NPO of seed 1 is planned by the joined recipe and in none of the two."""
    found = joined(part([0], ["ga", "npo"]), part([1], ["ga"]))
    assert list(found.recipe["methods"]) == ["ga", "npo"]
    lacking = [run.name for run in found.runs if not run.is_done]
    assert lacking == ["forget05-seed1-npo", "forget05-seed1-npo-gru"]
    assert {by_name(found)[name].state for name in lacking} == {WAITING}


def test_a_run_of_both_is_taken_once_with_what_each_has_of_it() -> None:
    """Original and retrained model are in both; GA was calibrated in one, attacked in the other, NPO failed in one."""
    one, two = part([0], ["ga", "npo"]), part([0], ["ga", "npo"])
    back = [Attacked("relearn", None, 0.5, 0.1)]
    change: dict[str, dict[str, Any]] = {
        "forget05-seed0-ga": {"calibrated": CALIBRATED, "commands": ["unlearn", "calibrate"]},
        "forget05-seed0-npo": {"state": FAILED, "scores": {}, "reason": "out of memory"},
    }
    one = changed(one, change)
    two = changed(two, {"forget05-seed0-ga": {"attacked": back, "commands": ["unlearn", "attack"]}})
    found = by_name(joined(one, two))
    assert len(found) == len(one.runs)
    ga = found["forget05-seed0-ga"]
    assert (ga.calibrated, ga.attacked, ga.commands) == (CALIBRATED, back, ["unlearn", "calibrate", "attack"])
    assert found["forget05-seed0-npo"].scores == {"MU": 0.0, "FQ (ln p)": 0.0}
    assert by_name(joined(two, one)) == {
        **found, "forget05-seed0-ga": replace(ga, commands=["unlearn", "attack", "calibrate"])
    }  # fmt: skip


def changed(found: StudyResults, fields: Mapping[str, Mapping[str, Any]]) -> StudyResults:
    return replace(found, runs=[replace(run, **fields.get(run.name, {})) for run in found.runs])


def test_a_part_is_for_all_that_either_has_it_for() -> None:
    shares = {"shares": [0.9]}
    one = part([0], ["ga", "npo"], calibration={"methods": ["ga"], **shares})
    two = part([1], ["ga", "npo"], calibration=shares)
    assert joined(one, two).recipe["calibration"] == shares  # of NPO and seed 1, and of GA and seed 0
    only = joined(one, part([1], ["ga", "npo"]))
    assert only.recipe["calibration"] == {**shares, "methods": ["ga"], "seeds": [0]}


def test_environments_side_by_side() -> None:
    changes = {"commit": "fedcba98" * 5, "threads": 2, "versions": {"torch": "2.14.1"}, "devices": ["cuda"]}
    other = {**ENVIRONMENT, **changes}
    found = joined(part([0]), replace(part([1]), environment=other)).environment
    assert found["commit"] == f"{ENVIRONMENT['commit']}, {'fedcba98' * 5}"
    assert found["versions"] == {"gru_fast": "0.1.0", "torch": "2.13.0, 2.14.1", "peft": None}
    assert (found["threads"], found["devices"], found["python"]) == ("1, 2", "cpu, cuda", "3.12.0")


def test_places_may_differ() -> None:
    found = joined(part([0], data="here"), part([1], data="there"))
    assert found.recipe["data"] == "here"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (part([1], finetune={"learning_rate": 1e-4}), r"^B: its recipe is not that of A: finetune.learning_rate 0.0"),
        (part([1], toy={"layers": 2}), r"toy.layers None, not 2"),
        (part([1], methods=("ga",), unlearn={"gamma": 0.1}), r"unlearn None, not {.gamma.: 0.1}"),
        (replace(part([1]), benchmark="muse"), r"^B: a study of benchmark 'muse', that of A has 'tofu'"),
    ],
)
def test_other_recipes_are_refused(other: StudyResults, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        joined(part([0]), other)


def test_a_method_with_other_options_is_refused() -> None:
    one, two = part([0]), part([1])
    two = replace(two, recipe={**two.recipe, "methods": {"ga": {"gamma": 0.2}}})
    with pytest.raises(ValueError, match=r"methods.ga.gamma None, not 0.2"):
        joined(one, two)


def test_another_part_is_refused() -> None:
    one, two = (part([seed], calibration={"shares": [share]}) for seed, share in ((0, 0.9), (1, 0.8)))
    with pytest.raises(ValueError, match=r"other calibration .*: calibration.shares \[0.9\], not \[0.8\]"):
        joined(one, two)


def test_other_numbers_are_refused() -> None:
    two = changed(part([0]), {"forget05-seed0-ga-gru": {"scores": {"MU": 0.75, "FQ (ln p)": -0.5}}})
    with pytest.raises(ValueError, match=r"^B: forget05-seed0-ga-gru is not .* in A: MU 0.75, not 0.5"):
        joined(part([0]), two)


def test_other_rows_are_refused() -> None:
    with_rows = [
        changed(part([0]), {"forget05-seed0-ga": {"result": {"rows": {"forget": rows}}}}) for rows in ("aa", "bb")
    ]
    with pytest.raises(ValueError, match=r"forget05-seed0-ga is not the run .*: rows.forget 'bb', not 'aa'"):
        joined(*with_rows)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two studies' results."""
    found = tmp_path / "A", tmp_path / "B"
    for seed, folder in enumerate(found):
        folder.mkdir()
        results.write(part([seed]), folder)
    return found


def test_on_the_command_line(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both"
    given = ["study", str(folders[0]), "--join", str(folders[1] / "results.json"), "--output-dir", str(out)]
    assert main(given) == 0
    assert "written to" in capsys.readouterr().out
    found = results.read(out)
    assert (found.seeds, found.name, len(list(found.find(kind=UNLEARNED, variant=PLAIN)))) == ([0, 1], "both", 2)
    text = (out / "recipe.yaml").read_text()
    assert text.startswith(f"# {found.title}\n")
    assert yaml.safe_load(text)["seeds"] == [0, 1]
    report = (out / "report.md").read_text()
    for seed in (0, 1):  # both commands as code
        assert f"\n    gru-fast study tofu-tiny --seeds {seed} --methods ga\n" in report
    # The same again, onto itself, then a third: what was joined can be joined.
    assert main(given) == 0
    third = tmp_path / "C"
    third.mkdir()
    results.write(part([2]), third)
    assert main(["study", str(out), "--join", str(third), "--output-dir", str(out), "--check", str(folders[0])]) == 0
    assert results.read(out).seeds == [0, 1, 2]
    assert "4 runs are done here and in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["{A}", "--join", "{B}"], "--join: expected --output-dir"),
        (["{A}", "--join", "{T}/none", "--output-dir", "{T}/out"], "/none: no results.json there"),
        (["tofu-tiny", "--join", "{B}", "--output-dir", "{T}/out"], "tofu-tiny: no results.json there"),
        (["{A}", "--join", "{B}", "--report", "--output-dir", "{T}/out"], "leave --report and --print-commands out"),
        (["{A}", "--join", "{B}", "--output-dir", "{T}"], "is not empty, and no study made it"),
    ],
)
def test_refused(
    folders: tuple[Path, Path],
    tmp_path: Path,
    given: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"A": folders[0], "B": folders[1], "T": tmp_path}
    assert main(["study", *(text.format(**places) for text in given)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
