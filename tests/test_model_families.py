"""bench/model_families.py: its trials notice what does not work, a family that dies or hangs ends nothing, the page."""

from __future__ import annotations

import faulthandler
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
_MODULES = ("families", "family_trials", "model_families")


@pytest.fixture(scope="module")
def bench() -> Any:
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        modules = {name: importlib.import_module(name) for name in _MODULES}
    finally:
        sys.path[:] = before
    return type("Bench", (), modules)


# ---- the trials ------------------------------------------------------------------------------------------------------


def test_a_family_that_works(bench: Any, tmp_path: Path) -> None:
    about = bench.family_trials.prepare("llama", tmp_path)
    assert about["model"] == "LlamaForCausalLM"
    assert about["parameters"] > 10_000
    assert {name: trial(tmp_path) for name, trial in bench.family_trials.TRIALS.items()} == dict.fromkeys(
        ("unlearn", "eval", "batch", "LoRA", "RMU"), ""
    )


def test_answers_that_depend_on_the_batch_are_noticed(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gru_fast.evaluation import generation
    from gru_fast.models.batching import Together

    trials = bench.family_trials.TRIALS
    bench.family_trials.prepare("rwkv", tmp_path)
    with pytest.raises(bench.family_trials.TrialError, match="no evaluation by batches to compare with"):
        trials["batch"](tmp_path)
    assert trials["eval"](tmp_path) == ""
    assert trials["batch"](tmp_path) == "rows are run one at a time"
    with monkeypatch.context() as patched:
        patched.setattr(generation, "together", lambda *_, **__: Together.ANY)
        trials["eval"](tmp_path)
    with pytest.raises(bench.family_trials.TrialError, match=r"^[1-9]\d* of 40 answers depend on the batch"):
        trials["batch"](tmp_path)


def test_what_a_command_says_is_the_reason(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gru_fast import cli

    error = bench.family_trials.TrialError
    with pytest.raises(error, match=r"^FileNotFoundError: model: no folder or file /nowhere"):
        bench.family_trials.command("unlearn", "--model", "/nowhere/at/all")
    monkeypatch.setattr(cli, "main", lambda words: {}[1].real / 0)
    with pytest.raises(error, match=r"^a traceback: KeyError: 1 \(.*tests/test_model_families.py\)$"):
        bench.family_trials.command("unlearn")
    monkeypatch.setattr(cli, "main", lambda words: 3)
    with pytest.raises(error, match=r"^status 3, and no word$"):
        bench.family_trials.command("unlearn")


# ---- running ---------------------------------------------------------------------------------------------------------


def refuse(folder: Path) -> str:
    raise ValueError("not\nthis")


def die(folder: Path) -> str:
    faulthandler.disable()  # its report is meant for crashes of the tests
    os.kill(os.getpid(), signal.SIGSEGV)
    return ""


def hang(folder: Path) -> str:
    time.sleep(60)
    return ""


@pytest.fixture
def trials(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the trials, of which one process is forked from this one."""
    monkeypatch.setattr(bench.model_families, "_context", multiprocessing.get_context("fork"))
    monkeypatch.setattr(bench.family_trials, "prepare", lambda family, folder: {"model": family, "parameters": 1})
    return lambda **named: monkeypatch.setattr(bench.family_trials, "TRIALS", named)


def test_a_family_that_dies_or_hangs_ends_neither_its_other_trials_nor_the_rest(
    bench: Any, trials: Callable[..., None]
) -> None:
    trials(one=lambda folder: "fine", two=refuse, three=die, four=hang, five=lambda folder: "")
    found = bench.model_families.run_family("x", 3.0)
    said = {name: (outcome["works"], outcome["says"]) for name, outcome in found.pop("trials").items()}
    assert found == {"model": "x", "parameters": 1}
    assert said == {
        "one": (True, "fine"),
        "two": (False, "ValueError: not this"),
        "three": (False, "it crashed (segmentation fault)"),
        "four": (False, "it takes longer than 3 s"),
        "five": (True, ""),
    }


def test_a_model_that_cannot_be_made_fails_all_trials(
    bench: Any, trials: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    trials(one=lambda folder: "", two=lambda folder: "")
    monkeypatch.setattr(bench.family_trials, "prepare", lambda family, folder: {}[family])
    found = bench.model_families.run_family("x", 10.0)["trials"]
    assert [outcome["says"] for outcome in found.values()] == ["no tiny model: KeyError: 'x'"] * 2
    monkeypatch.setattr(bench.family_trials, "prepare", lambda family, folder: die(folder))
    found = bench.model_families.run_family("x", 10.0)["trials"]
    assert [outcome["works"] for outcome in found.values()] == [False, False]


def test_results_are_kept_family_by_family(bench: Any, trials: Callable[..., None], tmp_path: Path) -> None:
    trials(one=lambda folder: "", two=refuse)
    results = tmp_path / "results" / "families.json"
    bench.model_families.run_all(["rwkv"], results, 10.0, 1)
    bench.model_families.run_all(["gpt2", "llama"], results, 10.0, 2)
    found = json.loads(results.read_text())
    assert list(found["families"]) == ["llama", "gpt2", "rwkv"]  # as they are listed
    assert {"torch", "transformers", "peft"} == set(found["versions"])
    assert [found["families"]["rwkv"]["trials"][name]["works"] for name in ("one", "two")] == [True, False]


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_is_that_of_the_results(bench: Any) -> None:
    results = json.loads(bench.model_families.RESULTS.read_text(encoding="utf-8"))
    assert bench.model_families.PAGE.read_text(encoding="utf-8") == bench.model_families.page(results)
    assert set(results["families"]) == set(bench.families.FAMILIES)
    assert len(results["families"]) >= 60
    for family, found in results["families"].items():
        assert set(found["trials"]) == set(bench.family_trials.TRIALS), family


def test_what_does_not_work_is_marked_and_explained(bench: Any) -> None:
    def outcome(works: bool, says: str) -> dict[str, Any]:
        return {"works": works, "says": says, "seconds": 0.1}

    tried = {
        "unlearn": outcome(True, ""),
        "eval": outcome(False, "no <think> here"),
        "batch": outcome(True, "rows are run one at a time"),
        "LoRA": outcome(False, "no <think> here"),
        "RMU": outcome(False, "it crashed"),
    }
    found = {"model": "RwkvForCausalLM", "parameters": 1, "trials": tried}
    other = {**found, "trials": {**tried, "eval": outcome(False, "no <think> there, and 7")}}
    text = bench.model_families.page({"versions": {"torch": "2.13"}, "families": {"rwkv": found, "mamba": other}})
    assert "| rwkv | RwkvForCausalLM | yes | no | yes * | no | no |" in text
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- **eval**, rwkv: `` no <think> here ``",
        "- **eval**, mamba: `` no <think> there, and 7 ``",
        "- **batch**, rwkv, mamba: rows are run one at a time",
        "- **LoRA**, rwkv, mamba: `` no <think> here ``",
        "- **RMU**, rwkv, mamba: it crashed",
    ]
