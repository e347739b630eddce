"""Run folders become entries: which are found, what they are called, what is missing, which belong together."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from run_folders import evaluated, finetuned, save_run, steps_log, unlearned

from gru_fast.metrics.records import Record, to_json
from gru_fast.report.collect import collect, find_runs, pairs, plane_of, steps
from gru_fast.runs.files import write_json, write_text


def test_runs_are_found_in_folders_and_counted_once(tmp_path: Path) -> None:
    deep = finetuned(tmp_path / "a" / "b" / "full")
    run = unlearned(tmp_path / "a" / "npo", "npo")
    assert find_runs([tmp_path, run, tmp_path / "a"]) == [deep, run]
    (run / "checkpoint-3").mkdir()
    finetuned(run / "inside")  # a run's own folders are not looked through
    assert find_runs([run]) == [run]


def test_a_folder_without_a_run_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; give the --output-dir"):
        collect([tmp_path / "nowhere"])
    finetuned(tmp_path / "1" / "2" / "3" / "too-deep")
    with pytest.raises(FileNotFoundError, match="no run in it; give the --output-dir of gru-fast unlearn or finetune"):
        collect([tmp_path])
    assert [entry.title for entry in collect([tmp_path / "1"])] == ["Original"]


def test_order_and_titles(tmp_path: Path) -> None:
    """Fine-tuned models first, then method by method, each without and with GRU."""
    unlearned(tmp_path / "1", "npo", rectify=True)
    unlearned(tmp_path / "2", "npo")
    unlearned(tmp_path / "3", "ga")
    unlearned(tmp_path / "4", "ga", rectify=True, rectifier="gdr")
    finetuned(tmp_path / "5", "retain95")
    finetuned(tmp_path / "6", "full")
    finetuned(tmp_path / "7", "forget05")
    entries = collect([tmp_path])
    assert [(entry.title, entry.rectified, entry.is_unlearned) for entry in entries] == [
        ("Fine-tuned (forget05)", False, False),
        ("Original", False, False),
        ("Retrained (retain95)", False, False),
        ("GA", False, True),
        ("GA w/ GDR", False, True),
        ("NPO", False, True),
        ("NPO", True, True),
    ]


def test_title_of_a_finished_run_is_its_own(tmp_path: Path) -> None:
    run = unlearned(tmp_path / "run", "npo_gd")
    assert [entry.title for entry in collect([run])] == ["NPO+GD"]
    write_json(run / "run.json", {"title": "NPO+GD (mine)", "steps": 1})
    assert [entry.title for entry in collect([run])] == ["NPO+GD (mine)"]
    gone = unlearned(tmp_path / "gone", "of_a_plugin")  # a method that is not there any more
    assert [entry.title for entry in collect([gone])] == ["of_a_plugin"]


def test_scores_of_an_evaluation(tmp_path: Path) -> None:
    (entry,) = collect([evaluated(unlearned(tmp_path), 0.5, -2.5)])
    assert entry.evaluation == "tofu-forget05"
    assert dict(entry.scores) == {
        "FQ (ln p)": -2.5, "p": 0.5, "MU": 0.5, "forget ROUGE-L": 0.25, "retain ROUGE-L": 0.625, "forget prob": 0.125,
        "retain prob": 0.75,
    }  # fmt: skip
    assert entry.plane == (0.5, -2.5)
    assert (entry.split, entry.benchmark, entry.not_applied, entry.note) == ("forget05", "tofu", 3, "")


def test_an_entry_for_each_evaluation(tmp_path: Path) -> None:
    run = evaluated(evaluated(finetuned(tmp_path), 0.5, None, "forget05"), 0.5, None, "forget10")
    assert [(entry.split, entry.plane) for entry in collect([run])] == [("forget05", None), ("forget10", None)]


def test_what_is_missing_is_said_with_the_command_that_mends_it(tmp_path: Path) -> None:
    plain = unlearned(tmp_path / "a")
    stopped = save_run(tmp_path / "b", {"method": "npo", "split": "forget05"}, None, [{"step": 4, "loss": 1.0}])
    begun = save_run(tmp_path / "c", {"subset": "full"}, None)
    asked = {"forget": ["leak/"], "method": "npo_gd", "rectify": True}
    request = save_run(tmp_path / "d", asked, None)
    save_run(tmp_path / "e", asked, {"benchmark": "own", "title": "forget", "split": "2 documents"})
    notes = {entry.run.folder: entry.note for entry in collect([tmp_path])}
    assert notes == {
        plain: f"not evaluated: gru-fast eval tofu --model {plain}",
        stopped: f"not finished, step 4: gru-fast unlearn --resume --output-dir {stopped}",
        begun: f"not finished: gru-fast finetune --resume --output-dir {begun}",
        request: f"not finished: gru-fast forget --resume --output-dir {request}",
        tmp_path / "e": "",  # its own report says what it came to
    }
    assert all(not entry.scores and entry.plane is None for entry in collect([tmp_path]))


def test_an_evaluation_of_another_program(tmp_path: Path) -> None:
    write_json(unlearned(tmp_path) / "eval" / "mine-1" / "summary.json", {"accuracy": 1})
    expected = r'evaluation mine-1: benchmark: expected one of lume, muse, own, rwku, tofu, wmdp, got "mine"'
    with pytest.raises(ValueError, match=expected):
        collect([tmp_path])


def test_pairs_differ_in_gru_and_in_little_else(tmp_path: Path) -> None:
    near = unlearned(tmp_path / "near", gamma=0.1, learning_rate=1e-5)
    unlearned(tmp_path / "far", gamma=0.5, learning_rate=1e-4)
    unlearned(tmp_path / "other-start", model="another", learning_rate=1e-5)
    unlearned(tmp_path / "other-method", "npo", learning_rate=1e-5)
    unlearned(tmp_path / "gdr", rectify=True, rectifier="gdr", learning_rate=1e-5)
    gru = unlearned(tmp_path / "gru", rectify=True, gamma=0.1, learning_rate=1e-5)
    unlearned(tmp_path / "alone", "gd", rectify=True)
    found = pairs(collect([tmp_path]))
    assert [(plain.run.folder, rectified.run.folder) for plain, rectified in found] == [(near, gru)]


def test_pairs_compare_the_same_evaluation(tmp_path: Path) -> None:
    evaluated(unlearned(tmp_path / "plain"), 0.25, -1.0)
    evaluated(unlearned(tmp_path / "gru", rectify=True), 0.5, -1.0, "forget10")
    assert pairs(collect([tmp_path])) == []


def test_steps_of_a_quantity(tmp_path: Path) -> None:
    log = [*steps_log({"cos": [-0.5, 0.25]}), {"step": 2, "cos": "nan"}, {"cos": 1.0}, {"step": 3, "loss": 1.0}]
    (entry,) = collect([unlearned(tmp_path, log=log)])
    assert steps(entry, "cos") == ([1, 2], [-0.5, 0.25])
    assert steps(entry, "angle_before") == ([], [])


def test_plane_of_every_benchmark() -> None:
    assert list(plane_of("tofu")) == ["MU", "FQ (ln p)"]
    assert list(plane_of("muse")) == ["KnowMem retain", "PrivLeak"]
    assert list(plane_of("wmdp")) == ["MMLU", "WMDP Cyber"]


# ---- against another retrained model ---------------------------------------------------------------------------------


def save_records(run: Path, ratios: list[float], question: str = "Who is {}?", split: str = "forget05") -> Path:
    """An evaluation with forget rows of these truth ratios (wrong over right)."""
    rows = [
        Record(i, question.format(i), "She.", 1.0, 3, paraphrase_loss=math.log(ratio), perturbed_losses=(0.0, 0.0))
        for i, ratio in enumerate(ratios)
    ]
    evaluated(run, 0.5, -9.0, split)
    lines = [json.dumps(to_json(row)) for row in rows]
    write_text(run / "eval" / f"tofu-{split}" / "records" / "forget.jsonl", "\n".join(lines) + "\n")
    return run


def test_forget_quality_taken_anew(tmp_path: Path) -> None:
    run = save_records(unlearned(tmp_path / "run"), [1.0, 2.0, 3.0, 4.0])
    goal = save_records(finetuned(tmp_path / "goal", "retain95"), [11.0, 12.0, 13.0, 14.0])
    (entry,) = collect([run], retain=goal)
    # All of one before all of the other: D = 1, of the 70 orders of 4 + 4 rows 2 are as far apart.
    assert entry.scores["p"] == pytest.approx(2 / 70, rel=1e-12)
    assert entry.scores["FQ (ln p)"] == pytest.approx(math.log(2 / 70), rel=1e-12)
    assert entry.scores["MU"] == 0.5
    (alone,) = collect([run])
    assert alone.scores["FQ (ln p)"] == -9.0  # as its evaluation says


@pytest.mark.parametrize(("question", "split"), [("Where is {}?", "forget05"), ("Who is {}?", "forget10")])
def test_forget_quality_against_other_questions_is_left_out(tmp_path: Path, question: str, split: str) -> None:
    run = save_records(unlearned(tmp_path / "run"), [1.0, 2.0])
    goal = save_records(finetuned(tmp_path / "goal", "retain95"), [1.0, 2.0], question, split)
    (entry,) = collect([run], retain=goal)
    assert entry.scores["FQ (ln p)"] is None
    assert entry.note == f"Forget Quality: not the questions of {goal}"


def test_a_retrained_model_that_is_not_there(tmp_path: Path) -> None:
    run = save_records(unlearned(tmp_path / "run"), [1.0, 2.0])
    with pytest.raises(FileNotFoundError, match="goal: no such file or folder; give the retrained model's run"):
        collect([run], retain=tmp_path / "goal")
