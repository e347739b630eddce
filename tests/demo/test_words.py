"""What the demo says of its numbers: tables, the comparison at the same removal, the verdict, the answers it shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from run_folders import evaluated, finetuned, unlearned

from gru_fast.demo import words
from gru_fast.demo.settings import QUICK, Settings
from gru_fast.demo.stages import Places
from gru_fast.metrics.records import Record, to_json
from gru_fast.report.collect import Entry, collect
from gru_fast.report.figures import FORGET_PROBABILITY, RETAIN_PROBABILITY
from gru_fast.runs.files import write_text


def walked(folder: Path, rectify: bool, forget: Sequence[float], retain: Sequence[float], utility: float = 0.5) -> Path:
    """A run that has logged its way: forget and retain Probability."""
    looks = zip(forget, retain, strict=True)
    log = [
        {"step": 5 * i, FORGET_PROBABILITY: f, RETAIN_PROBABILITY: r, "cos": 0.1 - i} for i, (f, r) in enumerate(looks)
    ]
    return evaluated(unlearned(folder, rectify=rectify, log=log, split="forget10"), utility, -1.0, "forget10")


def entry(folder: Path, forget: Sequence[float], retain: Sequence[float], rectify: bool = False) -> Entry:
    (found,) = collect([walked(folder, rectify, forget, retain)])
    return found


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_retain_probability_where_the_forget_probability_comes_down(tmp_path: Path) -> None:
    run = entry(tmp_path, [0.9, 0.5, 0.1, 0.3, 0.0], [1.0, 0.8, 0.4, 0.6, 0.2])
    assert words.kept_at(run, 0.5) == 0.8
    assert words.kept_at(run, 0.7) == pytest.approx(0.9)  # halfway from 0.9 to 0.5
    assert words.kept_at(run, 0.2) == pytest.approx(0.5)  # three quarters from 0.5 to 0.1, the first time
    assert words.kept_at(run, 0.95) == 1.0  # there from the beginning


def test_runs_are_compared_where_both_have_been(tmp_path: Path) -> None:
    deep = entry(tmp_path / "a", [0.9, 0.0], [0.9, 0.1])
    half = entry(tmp_path / "b", [0.9, 0.4, 0.5], [0.9, 0.7, 0.6])
    assert words.removal_of_both(deep, deep) == 0.1
    assert words.removal_of_both(deep, half) == words.removal_of_both(half, deep) == 0.4


def test_comparison(tmp_path: Path) -> None:
    walked(tmp_path / "plain", False, [0.9, 0.5, 0.1], [1.0, 0.6, 0.2], utility=0.25)
    walked(tmp_path / "gru", True, [0.9, 0.5, 0.3], [1.0, 0.8, 0.7], utility=0.75)
    *_, row, blank, verdict = words.comparison(collect([tmp_path])).splitlines()
    assert row.split() == ["GA", "0.25", "0.75", "0.40", "0.70", "0.30"]
    assert (blank, verdict) == ("", "GA: more is kept with GRU, by both.")


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ([("GA", True, True)], "GA: more is kept with GRU, by both."),
        ([("GA", True, False)], "GA: more is kept with GRU, at the end only."),
        ([("GA", False, True)], "GA: more is kept with GRU, at the same removal only."),
        ([("GA", False, False)], "GA: GRU kept no more here."),
        (
            [("GA", True, True), ("GD", False, False), ("NPO", True, True), ("WGA", True, False)],
            (
                "GA and NPO: more is kept with GRU, by both. WGA: more is kept with GRU, at the end only. "
                "GD: GRU kept no more here."
            ),
        ),
        ([(name, True, True) for name in "ABC"], "A, B and C: more is kept with GRU, by both."),
    ],
)
def test_verdict_tells_it_as_it_is(said: list[tuple[str, bool, bool]], text: str) -> None:
    assert words.verdict(said) == text


def test_results(tmp_path: Path) -> None:
    evaluated(finetuned(tmp_path / "1"), 0.84321, -22.34, "forget10")
    evaluated(finetuned(tmp_path / "2", "retain90_and_knowledge"), 0.85, -0.04, "forget10")
    walked(tmp_path / "3", False, [1.0], [1.0])
    walked(tmp_path / "4", True, [1.0], [1.0])
    entries = collect([tmp_path])
    assert [line.split() for line in words.results(entries).splitlines()[2:]] == [
        ["before", "-22.3", "0.84", "0.25", "0.62", "1.000"],
        ["retrained", "0.0", "0.85", "0.25", "0.62", "1.000"],
        ["GA", "-1.0", "0.50", "0.25", "0.62", "0.500"],
        ["GA", "+", "GRU", "-1.0", "0.50", "0.25", "0.62", "0.500"],
    ]
    text = " ".join(words.reading(entries).split())
    assert "it still knows them (before: -22.3), or is broken" in text
    assert "0 to 1 (before: 0.84)" in text
    assert "guesses and comes to 0.25" in text


def test_conflicts_are_counted_of_the_runs_without_gru(tmp_path: Path) -> None:
    walked(tmp_path / "a", False, [1.0] * 4, [1.0] * 4)  # cos 0.1, -0.9, -1.9, -2.9
    walked(tmp_path / "b", True, [1.0], [1.0])
    assert "(without GRU: GA 3 of 4 steps)" in " ".join(words.figures(collect([tmp_path])).split())


# ---- answers ---------------------------------------------------------------------------------------------------------


def save_answers(run: Path, forget: list[tuple[str, float]], retain: list[tuple[str, float]]) -> None:
    """Records with (what the model writes, its recall)."""
    for name, written in (("forget", forget), ("retain", retain)):
        rows = [
            Record(i, f"{name} question {i}?", f"Answer {i}.", generation=text, rougeL_recall=recall)
            for i, (text, recall) in enumerate(written)
        ]
        lines = [json.dumps(to_json(row)) + "\n" for row in rows]
        write_text(run / "eval" / "tofu-forget10" / "records" / f"{name}.jsonl", "".join(lines))


def test_questions_that_are_shown_tell_the_models_apart(tmp_path: Path) -> None:
    before = evaluated(finetuned(tmp_path / "1"), 0.5, -1.0, "forget10")
    goal = evaluated(finetuned(tmp_path / "2", "retain90"), 0.5, 0.0, "forget10")
    gone = walked(tmp_path / "3", False, [1.0], [1.0])
    # The first row is not known before, the second is guessed by the retrained model.
    save_answers(before, [("no", 0.0), ("yes", 1.0), ("right", 1.0)], [("bad", 0.5), ("kept", 1.0)])
    save_answers(goal, [("no", 0.0), ("lucky", 0.9), ("wrong", 0.3)], [("a", 1.0), ("b", 1.0)])
    save_answers(gone, [("x", 0.0), ("y", 0.0), (f"Answer: {'la ' * 40}", 0.0)], [("p", 0.0), ("two\n\nlines", 0.0)])
    assert words.answers(collect([tmp_path])).splitlines() == [
        "To forget: forget question 2?  Answer 2.",
        "  before           right",
        "  retrained        wrong",
        f"  GA               {('la ' * 40)[:61]}...",
        "",
        "To keep: retain question 1?  Answer 1.",
        "  before           kept",
        "  retrained        b",
        "  GA               two lines",
    ]


# ---- the console -----------------------------------------------------------------------------------------------------


def test_lines_of_a_piece_of_work(capsys: pytest.CaptureFixture[str]) -> None:
    console = words.Console()
    with console.work("GA", 3) as advance:  # not a terminal: no bar
        advance(3)
    console.done("GA", "60 steps", 1.25, "retain loss 0.1 -> 2.0")
    console.done("evaluation", "8 models", None)
    console.section("TITLE", "one\n\ntwo")
    found = capsys.readouterr()
    assert found.err == ""
    assert found.out == (
        "   GA                 60 steps          1.2 s   retain loss 0.1 -> 2.0\n"
        "   evaluation         8 models  there already\n"
        "\nTITLE\n\n  one\n\n  two\n"
    )


def test_commands_to_go_on_with_can_be_pasted(tmp_path: Path) -> None:
    assert words.next_steps(Places(Path("a b")), Settings()).splitlines() == [
        "gru-fast unlearn --config 'a b/runs/ga-gru/config.yaml' --gamma 0.8 --output-dir 'a b/runs/ga-gru-0.8'",
        "gru-fast eval tofu --model 'a b/runs/ga-gru-0.8' --retain-logs 'a b/runs/retrained'",
        "gru-fast report 'a b/runs'",
    ]
    evaluate = words.next_steps(Places(Path("demo")), QUICK).splitlines()[1]
    assert evaluate.endswith(" --max-rows 8 --max-new-tokens 4")
