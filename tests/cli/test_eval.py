"""`gru-fast eval`: published numbers from logs, a run scored once and printed again, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from interpreter import run_python
from words import word_llama, word_tokenizer

from gru_fast import benchmarks
from gru_fast.cli import main
from gru_fast.metrics.logs import read_log

SHARED = Path(os.environ.get("GRU_FAST_SHARED", Path(__file__).parents[2].parent / "shared"))
LOGS = SHARED / "tofu_eval_logs"
needs_logs = pytest.mark.skipif(not LOGS.is_dir(), reason=f"no published logs at {LOGS}")
WORDS = (
    "Question: Where was author born? \n Answer: She was born in Rome Oslo Lima Cairo . 0 1 world real retain forget"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the original layout, two rows a set."""
    folder = tmp_path_factory.mktemp("tofu")
    for name in ("forget05", "forget10", "retain", "real_authors", "world_facts"):
        rows = [
            {
                "question": f"Where was {name} author {i} born?",
                "answer": "She was born in Rome.",
                "paraphrased_answer": "Rome.",
                "perturbed_answer": ["Oslo.", "Lima.", "Cairo."],
            }
            for i in range(2)
        ]
        (folder / f"{name}_perturbed.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def save_model(folder: Path, seed: int = 0) -> None:
    tokenizer = word_tokenizer([WORDS])
    word_llama(tokenizer, seed, hidden_size=8, intermediate_size=8, num_attention_heads=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_run(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    save_model(folder, seed)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text("{}")
    return folder


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Path:
    """The folder of an unlearning run on forget05."""
    config = {"split": "forget05", "data": str(data), "template": "phi", "max_length": 500, "method": "npo"}
    return save_run(tmp_path / "npo", config)


@pytest.fixture
def retained(tmp_path: Path, data: Path) -> Path:
    """The folder of a retrained model, evaluated."""
    folder = save_run(tmp_path / "retain95", {"subset": "retain95", "data": str(data), "template": "phi"}, seed=1)
    assert main(["eval", "tofu", "--model", str(folder), "--max-length", "24"]) == 0
    return folder


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What a failed command said: one line, no traceback. Progress bars of transformers are not the command's."""
    bars = ("Loading weights", "Writing model shards")
    lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith(bars)]
    assert len(lines) == 1, lines
    return lines[0]


# ---- from logs -------------------------------------------------------------------------------------------------------


@needs_logs
def test_published_numbers_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    golden = json.loads((LOGS / "golden.json").read_text())
    logs = ["--from-logs", str(LOGS / "phi_full.json"), "--retain-logs", str(LOGS / "phi_retain90.json")]
    assert main(["eval", "tofu", *logs, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    model, quality = golden["models"]["phi_full"], golden["forget_quality"]["phi_full vs phi_retain90"]
    assert summary["model_utility"] == pytest.approx(model["MU_geo"], abs=1e-9)
    assert summary["components"] == pytest.approx(model["components_geo"], abs=1e-9)
    assert {name: summary["forget"][name] for name in model["forget"]} == pytest.approx(model["forget"], abs=1e-9)
    assert summary["forget_quality"]["log_p"] == pytest.approx(quality["ln_p"], abs=1e-9)
    assert summary["forget_quality"]["p"] == pytest.approx(quality["p"], rel=1e-9)
    assert main(["eval", "tofu", *logs, "--json", "--truth-ratio", "arithmetic"]) == 0
    assert json.loads(capsys.readouterr().out)["model_utility"] == pytest.approx(model["MU_arith"], abs=1e-9)


@needs_logs
def test_published_numbers_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    golden = json.loads((LOGS / "golden.json").read_text())
    model, quality = golden["models"]["phi_full"], golden["forget_quality"]["phi_full vs phi_retain90"]
    logs = ["--from-logs", str(LOGS / "phi_full.json"), "--retain-logs", str(LOGS / "phi_retain90.json")]
    assert main(["eval", "tofu", *logs]) == 0
    printed = capsys.readouterr().out
    numbers = [float(text) for text in re.findall(r"-?\d+\.\d{6}(?!e|\d)", printed)]
    expected = [
        model["MU_geo"],
        quality["ln_p"],
        quality["D"],
        *model["components_geo"].values(),
        *model["forget"].values(),
        0.678136,  # of open-unlearning's own function (prob_mean) on this log
    ]
    assert numbers == pytest.approx(expected, abs=1e-6)
    assert "p 2.194274e-16" in printed


@needs_logs
def test_logs_of_other_questions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    logs = ["--from-logs", str(LOGS / "phi_full.json"), "--retain-logs", str(LOGS / "phi_retain95.json")]
    assert main(["eval", "tofu", *logs]) == 1
    assert re.search(r"gru-fast eval: ValueError: .* 300 rows, .* 200, and 100 questions match", one_line(capsys))
    assert main(["eval", "tofu", *logs, "--matching-rows", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["forget_quality"]
    golden = json.loads((LOGS / "golden.json").read_text())["forget_quality_aligned_rows_only"]
    assert found["log_p"] == pytest.approx(golden["phi_full rows 200-299 vs phi_retain95 rows 0-99"]["ln_p"], abs=1e-9)
    assert found["n"] == 100


@needs_logs
def test_without_a_retained_model_there_is_no_forget_quality(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tofu", "--from-logs", str(LOGS / "phi_full.json")]) == 0
    assert re.search(r"Forget Quality +-  \(give --retain-logs", capsys.readouterr().out)


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_says_what_to_evaluate_and_keeps_the_evaluation(
    run: Path, data: Path, retained: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", "tofu", "--model", str(run), "--max-length", "24", "--json"]
    capsys.readouterr()
    assert main(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    folder = run / "eval" / "tofu-forget05"
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (summary["split"], summary["settings"]["template"]) == ("forget05", "phi")
    assert summary["num_rows"] == dict.fromkeys(("forget", "retain", "real_authors", "world_facts"), 2)
    assert summary["settings"]["data"] == str(data)
    assert read_log(run) == read_log(folder / "eval_log_aggregated.json")
    assert summary["forget_quality"] is None
    assert len(loads) == 1

    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == summary
    assert main([*arguments, "--retain-logs", str(retained)]) == 0
    assert json.loads(capsys.readouterr().out)["forget_quality"]["n"] == 2
    assert len(loads) == 1  # both printed what was there


def test_a_retrained_model_is_evaluated_on_the_split_it_never_saw(retained: Path) -> None:
    assert (retained / "eval" / "tofu-forget05" / "summary.json").is_file()


def test_a_model_of_new_weights_is_not_taken_for_the_old(
    run: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", "tofu", "--model", str(run), "--max-length", "24"]
    assert main(arguments) == 0
    capsys.readouterr()
    later = time.time() + 60
    os.utime(run / "model.safetensors", (later, later))  # looks new: loaded, found to be the same, not run
    assert main(arguments) == 0
    assert len(loads) == 2
    before = (run / "eval/tofu-forget05/summary.json").read_text()
    save_model(run, seed=5)
    capsys.readouterr()
    assert main(arguments) == 1
    assert "--overwrite" in one_line(capsys)
    assert (run / "eval/tofu-forget05/summary.json").read_text() == before
    assert main([*arguments, "--overwrite"]) == 0
    assert (run / "eval/tofu-forget05/summary.json").read_text() != before


def test_other_settings_need_another_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "tofu", "--model", str(run)]
    assert main([*arguments, "--max-length", "24"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--max-length", "26"]) == 1
    assert "max_length 24, this evaluation has 26" in one_line(capsys)
    assert main([*arguments, "--max-length", "26", "--output-dir", str(tmp_path / "other"), "--max-rows", "0"]) == 0
    assert main([*arguments, "--max-length", "24", "--split", "forget10"]) == 0  # a folder of its own
    assert (run / "eval" / "tofu-forget10" / "records" / "forget.jsonl").is_file()


def test_an_explicit_split_beats_the_runs(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tofu", "--model", str(run), "--split", "forget10", "--print-config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["split"], config["data"], config["template"]) == ("forget10", str(data), "phi")
    assert config["max_length"] == 200  # the run's 500 is that of its training


def test_a_checkpoint_belongs_to_its_run(run: Path) -> None:
    save_model(run / "checkpoint-5")
    assert main(["eval", "tofu", "--model", str(run / "checkpoint-5"), "--max-length", "24"]) == 0
    assert (run / "checkpoint-5" / "eval" / "tofu-forget05" / "summary.json").is_file()


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_said(tmp_path: Path, run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tofu"]) == 1
    assert "--model" in one_line(capsys)
    save_model(tmp_path / "bare")
    assert main(["eval", "tofu", "--model", str(tmp_path / "bare"), "--data", str(data)]) == 1
    assert re.search(r"split: the model's folder does not say .* give forget01, forget05, forget10", one_line(capsys))
    arguments = ["eval", "tofu", "--model", str(run), "--max-length", "24"]
    assert main([*arguments, "--retain-logs", str(tmp_path / "bare")]) == 1
    assert "no evaluation on forget05 in it; run `gru-fast eval tofu --model" in one_line(capsys)
    assert not (run / "eval").exists()  # said before the work
    assert main([*arguments, "--split", "forget01"]) == 1
    assert 'no "forget01_perturbed"' in one_line(capsys)


def test_wrong_values_are_said_together(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--max-rows", "-1", "--max-new-tokens", "0", "--batch-size", "0", "--truth-ratio", "harmonic"]
    assert main(["eval", "tofu", "--model", str(run), *wrong]) == 1
    said = one_line(capsys)
    assert "batch_size: expected at least 1, got 0" in said
    assert "--truth-ratio: expected" in said
    assert main(["eval", "tofu", "--model", str(run), *wrong[:4]]) == 1
    assert "max_rows: expected at least 0, got -1; max_new_tokens: expected at least 1, got 0" in one_line(capsys)
    # Before the model is loaded.
    assert main(["eval", "tofu", "--model", str(run), "--split", "forget5", *wrong[:2]]) == 1
    assert re.search(r'max_rows: .*; split: expected forget01, .*, got "forget5", did you mean', one_line(capsys))
    assert main(["eval", "tofu", "--model", str(run), "--matching-rows"]) == 1
    assert "matching_rows: expected retain_logs" in one_line(capsys)


@needs_logs
@pytest.mark.parametrize("flag", ["--model", "--output-dir"])
def test_a_log_needs_neither_model_nor_folder(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path)
    assert main(["eval", "tofu", "--from-logs", str(LOGS / "phi_full.json"), flag, str(tmp_path)]) == 1
    assert f"{flag}: numbers of a log are only printed" in one_line(capsys)


def test_a_hub_model_needs_a_folder_for_its_evaluation(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tofu", "--model", "nobody/nothing", "--split", "forget05", "--data", str(data)]) == 1
    assert "nobody/nothing is no folder that could hold its evaluation; give --output-dir" in one_line(capsys)


def test_an_unknown_benchmark_is_an_argument_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["eval", "tofi"])
    assert error.value.code == 2
    assert "'tofi'" in capsys.readouterr().err


# ---- more benchmarks -------------------------------------------------------------------------------------------------


def test_a_new_folder_is_a_new_benchmark(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "evaluate.py").write_text(
        '"""Fake."""\n'
        "from dataclasses import dataclass\n"
        "HELP = 'how fake a model is'\n"
        "@dataclass\n"
        "class Options:\n"
        "    level: int = 3\n"
        "def defaults_of_run(config): return {}\n"
        "def needs_model(options): return True\n"
        "def title(options): return f'fake-{options.level}'\n"
        "def run(options, subject): return {'fake': options.level, 'where': subject.output_dir.name}\n"
        "def report(summary): return f\"{summary['where']} {summary['fake']}\"\n"
    )
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    try:
        assert main(["eval", "fake", "--model", str(run), "--level", "4"]) == 0
    finally:
        for name in ("gru_fast.benchmarks.fake", "gru_fast.benchmarks.fake.evaluate"):
            sys.modules.pop(name, None)
    assert capsys.readouterr().out == "fake-4 4\n"


def test_printing_a_log_imports_no_transformers(tmp_path: Path) -> None:
    code = (
        "import sys; from gru_fast.cli import main; main(['eval', 'tofu', '--from-logs', 'x.json']); "
        "assert 'transformers' not in sys.modules and 'datasets' not in sys.modules"
    )
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "x.json: no such file or folder" in done.stderr
