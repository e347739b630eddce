"""Extraction: every way is asked, the best of all is the best row by row, and the user's own questions are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import planted
import pytest
import tofu_folders

from gru_fast.attacks import extract
from gru_fast.attacks.parts import outcome
from gru_fast.benchmarks import tofu
from gru_fast.data.templates import TEMPLATES, encode_prompt

SCORE = "forget ROUGE-L"


@pytest.fixture(scope="module")
def attacked(models: planted.Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("extracted")
    own = folder / "german.jsonl"
    rows = [
        {"question": f"Where was author {index} born?", "asked": f"author {index} born", "answer": "in Rome"}
        for index in (12, 13)
    ]
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = extract.Options(prefixes=[0.5], extract_questions=[str(own)])
    return folder, outcome.carried_out(extract, options, planted.target(models, folder))


def answers(folder: Path, role: str, way: str) -> list[dict[str, Any]]:
    file = folder / "extract" / role / way / "answers.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_way_is_asked(attacked: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = attacked
    ways = list(dict.fromkeys(row["what"] for row in summary["findings"]))
    frames = [frame.name for frame in (*extract.REPEAT, *extract.JAILBREAK)]
    assert ways == ["prefix 50%", "wording: german", *frames, extract.ANY]
    for role in ("unlearned", "retrained"):
        assert len({*(folder / "extract" / role).iterdir()}) == len(ways)  # plain, and no folder for the best
    assert [path.name for path in (folder / "extract" / "original").iterdir()] == ["plain"]


def test_the_best_of_all_ways(attacked: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = attacked
    best: dict[int, float] = {}
    for path in (folder / "extract" / "unlearned").iterdir():
        for row in answers(folder, "unlearned", path.name):
            best[row["row"]] = max(best.get(row["row"], 0.0), row[SCORE])
    found = next(row for row in summary["findings"] if row["what"] == extract.ANY and row["score"] == SCORE)
    assert found["after"] == pytest.approx(sum(best.values()) / 4)
    assert found["after"] >= max(row["after"] for row in summary["findings"] if row["what"] != "wording: german")


def test_prefixes_and_own_questions_are_what_they_say(attacked: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = attacked
    first = answers(folder, "unlearned", "prefix-50-")[0]
    assert first["prompt"].endswith("Answer : She was")
    assert first["answer"] == "born in Kyoto ."
    own = answers(folder, "unlearned", "wording-german")
    assert [(row["row"], row["answer"]) for row in own] == [(0, "in Rome"), (1, "in Rome")]


def test_a_model_that_knows_completes_what_one_that_never_knew_does_not(attacked: tuple[Path, dict[str, Any]]) -> None:
    """Beginnings of the true answer: the hiding model goes on with it; to the other they say nothing of the city."""
    _, summary = attacked
    exact = next(row for row in summary["findings"] if (row["what"], row["score"]) == ("prefix 50%", "forget exact"))
    assert exact["after"] > exact["retained_after"]
    for row in summary["findings"]:
        if row["what"] not in {"wording: german", extract.ANY}:  # the user's are held against other answers
            assert row["retained_after"] <= row["retained_before"] + 0.05


def test_paraphrases_of_tofu(models: planted.Models, tmp_path: Path) -> None:
    data = tofu_folders.save_data(tmp_path / "data")
    options = tofu.Options(data=str(data))
    assert tofu.wordings(options) == {}  # this copy has none
    rows = tofu.load("forget05_perturbed", data)
    rows = [{**row, "paraphrased_question": f"born {index} author?"} for index, row in enumerate(rows)]
    (data / "forget05_perturbed.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = tofu.wordings(options)["paraphrase"]
    assert found[1] == {"question": "Where was author 13 born?", "asked": "born 1 author?"}
    target = planted.target(models, tmp_path / "attacks", data=tofu.Options(data=str(data), max_length=planted.LENGTH))
    own = extract.Options(ways=["wordings"])
    summary = outcome.carried_out(extract, own, target)
    assert [row["what"] for row in summary["findings"][::2]] == ["wording: paraphrase", extract.ANY]
    asked = answers(tmp_path / "attacks", "unlearned", "wording-paraphrase")
    words = tofu_folders.tokenizer()
    prompt = words.decode(encode_prompt(words, TEMPLATES["phi"], "born 3 author?")).strip()
    assert (asked[3]["prompt"], asked[3]["answer"]) == (prompt, "She was born in Turin .")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ways": ["prefixes"]}, "ways: expected some of prefix, wordings, repeat, jailbreak, got prefixes"),
        ({"prefixes": [0, 1.0]}, "prefixes: .* got 0; prefixes: .* got 1"),
        ({"extract_questions": ["nowhere.jsonl"]}, "extract_questions: no file nowhere.jsonl"),
        ({"ways": ["repeat"], "extract_questions": ["x"]}, "expected wordings among the ways as well"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        extract.Options(**options)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"question": "a"}', 'line 1: expected a field "asked"'),
        ('{"question": "a", "asked": "b", "answer": 3}', 'line 1: field "answer": expected a text, got 3'),
        ('{"question": "a", "asked": "b"}\n{"question": "a", "asked": "c"}', "line 2: the question 'a' is there twice"),
        ("", "expected questions, got an empty file"),
    ],
)
def test_questions_that_are_none(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "own.jsonl").write_text(text)
    with pytest.raises(ValueError, match=problem):
        extract.read_wordings(tmp_path / "own.jsonl")
