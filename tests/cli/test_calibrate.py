"""`gru-fast calibrate`: a utility made up here, then a tiny model and the benchmark's own evaluation."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import launched
import pytest
import torch
from processes import Processes
from safetensors.torch import load_file
from tofu_folders import save_data, save_model, teach

from gru_fast import runs
from gru_fast.benchmarks.tofu import evaluate as tofu_eval
from gru_fast.cli import evaluating, main
from gru_fast.cli.commands import calibrate as command


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, and the models before and after an unlearning; no test writes into it."""
    folder = tmp_path_factory.mktemp("places")
    save_data(folder / "data")
    teach(save_model(folder / "original"), folder / "data")
    save_model(folder / "unlearned", seed=1)
    runs.write_text(
        folder / "unlearned" / runs.CONFIG,
        f"benchmark: tofu\nsplit: forget05\ndata: {folder / 'data'}\nmethod: npo\nrectify: true\n"
        f"model: {folder / 'original'}\n",
    )
    runs.write_json(folder / "unlearned" / runs.ENVIRONMENT, {})
    runs.write_json(folder / "unlearned" / runs.RESULT, {"title": "NPO", "method": "npo", "split": "forget05"})
    return folder


def calibrate(places: Path, out: Path, *argv: Any) -> int:
    arguments = ["--model", places / "unlearned", "--output-dir", out, "--device", "cpu", "--max-rows", 2, *argv]
    return main(["calibrate", *(str(text) for text in arguments)])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gru-fast")]
    assert len(lines) == 1, lines
    return lines[0]


class FakeTofu:
    """Model Utility 0.52 - 0.2 alpha^2, forget quality -20 + 18 alpha; says which alphas were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[float] = []
        monkeypatch.setattr(tofu_eval, "run", self.run)

    def run(self, options: Any, subject: Any) -> dict[str, Any]:
        alpha = subject.asked["alpha"]
        self.asked.append(alpha)
        return {
            "model_utility": 0.52 - 0.2 * alpha * alpha,
            "forget_quality": {"log_p": -20 + 18 * alpha, "p": 0.1},
            "forget": None,
            "components": None,
        }


# ---- a utility that is known -----------------------------------------------------------------------------------------


def test_table_of_a_known_utility(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeTofu(monkeypatch)
    assert calibrate(places, tmp_path, "--resolution", 0.001) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["target", "alpha", "FQ", "(ln", "p)", "p", "MU"]
    assert [line.split()[0] for line in shown[2:]] == ["original", "0.95", "0.9", "0.85", "unlearned"]
    result = json.loads((tmp_path / command.RESULT).read_text())
    for row in result["targets"]:
        exact = ((1 - row["target"]) * 0.52 / 0.2) ** 0.5
        assert exact - 0.001 <= row["alpha"] <= exact
        assert row["MU"] >= row["target"] * 0.52
        assert row["FQ (ln p)"] == pytest.approx(-20 + 18 * row["alpha"])
    assert len(fake.asked) == len(set(fake.asked)) == len(result["points"])  # none twice
    assert (result["original_row"]["MU"], result["unlearned_row"]["MU"]) == pytest.approx((0.52, 0.32))
    assert (tmp_path / "calibration.md").read_text().startswith("| target | alpha | FQ (ln p) | p | MU |\n|---|---:|")


def test_unlearned_model_that_keeps_enough(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeTofu(monkeypatch)
    assert calibrate(places, tmp_path, "--target", 0.5, "--json") == 0
    assert json.loads(capsys.readouterr().out)["targets"][0]["alpha"] == 1.0
    assert fake.asked == [0.0, 1.0]


# ---- a model and its evaluation --------------------------------------------------------------------------------------


def test_a_tiny_model(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--target", 0.9, "--resolution", 0.25, "--save-models", "--json"]
    assert calibrate(places, tmp_path / "out", *arguments) == 0
    result = json.loads(capsys.readouterr().out)
    (row,) = result["targets"]
    assert row["MU"] >= 0.9 * result["original_row"]["MU"] > 0
    for point in result["points"]:
        summary = runs.read_json(tmp_path / "out" / f"alpha-{point['alpha']!r}" / "summary.json")
        assert summary["model_utility"] == point["MU"]
        assert summary["settings"]["model_options"]["alpha"] == point["alpha"]
    saved = runs.read_run(tmp_path / "out" / "target-0.9")
    assert saved.result is not None
    assert (saved.result["title"], saved.result["alpha"]) == ("NPO + UWC 90%", row["alpha"])
    assert saved.evaluations["tofu-forget05"]["model_utility"] == row["MU"]
    ends = [load_file(places / name / "model.safetensors") for name in ("unlearned", "original")]
    for name, tensor in load_file(tmp_path / "out" / "target-0.9" / "model.safetensors").items():
        mixed = row["alpha"] * ends[0][name] + (1 - row["alpha"]) * ends[1][name]
        torch.testing.assert_close(tensor, mixed)

    # Everything is there: no model is loaded.
    monkeypatch.setattr(evaluating, "load", None)
    assert calibrate(places, tmp_path / "out", *arguments[:4], "--json") == 0
    assert json.loads(capsys.readouterr().out) == result


def test_ends_are_the_two_models(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate(places, tmp_path / "out", "--target", 0.01, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    for name, row in (("original", result["original_row"]), ("unlearned", result["unlearned_row"])):
        flags = ["--split", "forget05", "--data", places / "data", "--max-rows", 2, "--device", "cpu", "--json"]
        folder = ["--model", places / name, "--output-dir", tmp_path / name]
        assert main(["eval", "tofu", *(str(text) for text in [*folder, *flags])]) == 0
        assert json.loads(capsys.readouterr().out)["model_utility"] == row["MU"]


def test_what_eval_has_left_is_not_scored_again(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("original", "unlearned"):
        shutil.copytree(places / name, tmp_path / name)
    original = str(tmp_path / "original")
    arguments = ["--original", original, "--target", 0.9, "--resolution", 0.25, "--save-models", "--json"]
    assert calibrate(tmp_path, tmp_path / "alone", *arguments) == 0
    expected = json.loads(capsys.readouterr().out)

    retained = ["--retain-logs", original]
    flags = ["--split", "forget05", "--data", places / "data", "--max-rows", 2, "--device", "cpu"]
    assert main(["eval", "tofu", "--model", original, *map(str, flags)]) == 0
    assert main(["eval", "tofu", "--model", str(tmp_path / "unlearned"), *map(str, flags)]) == 0
    left = tree(tmp_path / "original"), tree(tmp_path / "unlearned")
    asked = alphas_scored(monkeypatch)
    capsys.readouterr()
    assert calibrate(tmp_path, tmp_path / "out", *arguments) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert {*asked} == {point["alpha"] for point in expected["points"]} - {0.0, 1.0}
    assert (tree(tmp_path / "original"), tree(tmp_path / "unlearned")) == left
    for alpha in (0.0, 1.0):
        summaries = [runs.read_json(tmp_path / out / f"alpha-{alpha!r}" / "summary.json") for out in ("alone", "out")]
        assert [summary.pop("seconds") > 0 for summary in summaries] == [True, True]
        assert [summary["settings"].pop("batch_size") for summary in summaries] == [16, 16]
        assert summaries[0] == summaries[1]

    # Of other rows, of a model that has changed, compared with a retrained one, or not wanted: scored.
    asked.clear()
    assert calibrate(tmp_path, tmp_path / "rows", "--max-rows", 1, *arguments) == 0
    assert {0.0, 1.0} <= {*asked}
    asked.clear()
    assert calibrate(tmp_path, tmp_path / "anew", "--overwrite", *arguments) == 0
    assert {0.0, 1.0} <= {*asked}
    asked.clear()
    assert main(["eval", "tofu", "--model", original, *map(str, [*flags, *retained])]) == 0
    os.utime(tmp_path / "unlearned" / "model.safetensors")
    assert calibrate(tmp_path, tmp_path / "changed", *arguments) == 0
    assert {0.0, 1.0} <= {*asked}
    asked.clear()
    assert calibrate(tmp_path, tmp_path / "compared", *arguments, *retained) == 0
    assert (0.0 in asked, 1.0 in asked) == (False, True)


def alphas_scored(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The alphas of the models that are scored from now on."""
    found: list[float] = []
    evaluate = tofu_eval.evaluate

    def noting(*args: Any, model_options: Any, **kwargs: Any) -> Any:
        if "alpha" in model_options:
            found.append(model_options["alpha"])
        return evaluate(*args, model_options=model_options, **kwargs)

    monkeypatch.setattr(tofu_eval, "evaluate", noting)
    return found


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_processes_share_the_evaluations(
    processes: Processes, places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--target", 0.9, "--resolution", 0.25, "--save-models", "--batch-size", 1, "--json"]
    assert calibrate(places, tmp_path / "alone", *arguments) == 0
    expected = json.loads(capsys.readouterr().out)
    flags = ["--model", places / "unlearned", "--output-dir", tmp_path / "shared", "--device", "cpu", "--max-rows", 2]
    first, second = processes.run(launched.spoken, 2, ["calibrate", *map(str, [*flags, *arguments])])
    assert (first[0], json.loads(first[1])) == (0, expected)
    assert second == (0, "", "")
    places_of = [{str(file.relative_to(out)): file for file in out.rglob("*.*")} for out in tmp_path.iterdir()]
    assert places_of[0].keys() == places_of[1].keys()
    for name, file in places_of[0].items():
        if file.suffix in (".jsonl", ".safetensors", ".md") or file.name == command.RESULT:
            assert file.read_bytes() == places_of[1][name].read_bytes()


# ---- wrong uses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--target", "1.5"], "ValueError: target: expected shares in (0, 1], such as 0.9, got 1.5"),
        (["--resolution", "0"], "ValueError: resolution: expected a number in (0, 1], got 0"),
        (["--benchmark", "toufu"], "ValueError: benchmark: expected one of "),
        (["--stemmer"], "ValueError: --stemmer: no option of --benchmark tofu; leave it out"),
        (["--device", "gpu"], "ValueError: device: expected one that is here, such as cpu"),
        (["--original", "/nowhere"], "FileNotFoundError: model: no folder or file /nowhere"),
    ],
)
def test_wrong_uses(
    places: Path, tmp_path: Path, argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(places, tmp_path, *argv) == 1
    assert said(capsys).startswith(f"gru-fast calibrate: {line}")


def test_model_that_is_no_run(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--split", "forget05", "--data", str(places / "data")]
    assert main(["calibrate", "--model", str(places / "original"), *flags]) == 1
    assert "is no run that says what it started from; give --original" in said(capsys)
    same = str(places / "original")
    assert main(["calibrate", "--model", same, "--original", same, *flags]) == 1
    assert "original: it is --model itself" in said(capsys)


def test_models_of_two_kinds(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "deeper", num_hidden_layers=2)
    assert calibrate(places, tmp_path / "out", "--original", tmp_path / "deeper") == 1
    assert 'expected the parameters of the unlearned model, but the original model alone has "model.' in said(capsys)
