"""`gru-fast eval` in several processes: what it leaves is what one process leaves, to the byte; one of them speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import launched
import muse_files
import pytest
import tofu_folders
import wmdp_files
from processes import Processes

TESTS = Path(__file__).parents[1]
METRICS = ["mia_loss", "mia_gradnorm", "mia_reference", "extraction_strength", "fluency"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a model for each benchmark; no test writes into it."""
    folder = tmp_path_factory.mktemp("places")
    tofu_folders.save_data(folder / "tofu/data")
    tofu_folders.save_model(folder / "tofu/model")
    muse_files.save_data(folder / "muse/bbc")
    muse_files.save_model(folder / "muse/model")
    muse_files.save_model(folder / "muse/reference", seed=1)
    wmdp_files.save_questions(folder / "wmdp/questions")
    wmdp_files.save_model(folder / "wmdp/model")
    return folder


def argv(places: Path, benchmark: str, out: Path, *more: str) -> list[str]:
    """Batches of which no number of processes makes equal shares."""
    options = {
        "tofu": ["--data", str(places / "tofu/data"), "--split", "forget05", "--max-length", "40", "--batch-size", "3"],
        "muse": ["--data", str(places / "muse/bbc"), "--verbmem-tokens", "8", "--knowmem-tokens", "6",
                 "--batch-size", "3", "--metrics", *METRICS, "--reference-model", str(places / "muse/reference")],
        "wmdp": ["--questions", str(places / "wmdp/questions"), "--batch-size", "3"],
    }  # fmt: skip
    fixed = ["--model", str(places / benchmark / "model"), "--output-dir", str(out), "--device", "cpu", "--json"]
    return ["eval", benchmark, *fixed, *options[benchmark], *more]


def files(folder: Path) -> dict[str, Any]:
    """All that an evaluation leaves: bytes, or JSON without the times, which are nobody's."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        found[str(file.relative_to(folder))] = (
            timeless(file.read_text()) if file.suffix == ".json" else file.read_bytes()
        )
    return found


def timeless(text: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(text).items() if key != "seconds"}


@pytest.fixture(scope="module", params=["tofu", "muse", "wmdp"])
def alone(request: pytest.FixtureRequest, places: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A benchmark, and what one process leaves of it."""
    folder = tmp_path_factory.mktemp("alone")
    status, *_ = launched.spoken(argv(places, request.param, folder))
    assert status == 0
    expected = {
        "tofu": "records/world_facts.jsonl",
        "muse": "extra/privleak_holdout/reference/reference.jsonl",
        "wmdp": "tasks/mmlu.json",
    }
    assert expected[request.param] in files(folder)
    return request.param, folder


@pytest.mark.parametrize("world", [2, 3])
def test_records_and_numbers_are_those_of_one_process(
    processes: Processes, places: Path, tmp_path: Path, alone: tuple[str, Path], world: int
) -> None:
    benchmark, expected = alone
    (status, out, _), *others = processes.run(launched.spoken, world, argv(places, benchmark, tmp_path))
    assert status == 0
    assert timeless(out) == files(expected)["summary.json"]
    assert others == [(0, "", "")] * (world - 1)
    assert files(tmp_path) == files(expected)
    # Finished, it is printed; and no number of processes changes the files.
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json*")}
    again = processes.run(launched.spoken, world, argv(places, benchmark, tmp_path))
    assert [(status, bool(out)) for status, out, _ in again] == [(0, True), *[(0, False)] * (world - 1)]
    assert again[0][1] == out
    records = [file for file in before if "summary" not in file.name and file.suffix == ".jsonl"]
    assert all(file.stat().st_mtime_ns == before[file] for file in records)


@pytest.mark.parametrize("benchmark", ["tofu", "wmdp"])
def test_other_settings_are_refused_by_all_in_the_same_words(
    processes: Processes, places: Path, tmp_path: Path, benchmark: str
) -> None:
    limit = ["--max-rows" if benchmark == "tofu" else "--limit"]
    assert launched.spoken(argv(places, benchmark, tmp_path, *limit, "2"))[0] == 0
    before = files(tmp_path)
    found = processes.run(launched.spoken, 3, argv(places, benchmark, tmp_path, *limit, "3"))
    said = [err.strip().splitlines()[-1] for _, _, err in found]
    assert [(status, out) for status, out, _ in found] == [(1, "")] * 3
    assert len(set(said)) == 1
    assert " 2, this evaluation has 3; give another output folder, or --overwrite to " in said[0]
    assert files(tmp_path) == before
    anew = processes.run(launched.spoken, 3, argv(places, benchmark, tmp_path, *limit, "3", "--overwrite"))
    assert [status for status, *_ in anew] == [0, 0, 0]
    assert set(json.loads(anew[0][1])["num_rows"].values()) <= {2, 3}


def test_what_a_retrained_model_lacks_is_said_by_all(processes: Processes, places: Path, tmp_path: Path) -> None:
    wrong = argv(places, "tofu", tmp_path / "out", "--retain-logs", str(tmp_path))
    found = processes.run(launched.spoken, 2, wrong)
    assert [status for status, *_ in found] == [1, 1]
    assert all("no evaluation on forget05 in it" in err for _, _, err in found)
    assert not (tmp_path / "out").exists()


def test_a_sharded_model_is_refused(processes: Processes) -> None:
    said = "model: it is sharded over 2 processes (FSDP2, tensor parallel, ZeRO-3), which run every batch together"
    assert all(found.startswith(said) for found in processes.run(launched.sharded_refused, 2))


# ---- under torchrun --------------------------------------------------------------------------------------------------


def torchrun(world: int, arguments: list[str], cwd: Path, *, script: Path | None = None) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of all processes together."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world),
         *(["-m", "gru_fast.cli"] if script is None else [str(script)]), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_process_is_killed_and_fewer_go_on(places: Path, tmp_path: Path) -> None:
    """Nobody waits for it, and what any of them has kept is not done again."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    small = ["--batch-size", "1"]
    assert launched.spoken(argv(places, "tofu", whole, *small))[0] == 0
    status, printed, _ = torchrun(3, argv(places, "tofu", out, *small), tmp_path, script=TESTS / "killed.py")
    assert (status, printed) == (1, "")
    assert not (out / "summary.json").exists()
    parts = sorted(out.glob("records/*.part*.jsonl"))
    assert sum(len(file.read_text().splitlines()) for file in parts if ".part1." in file.name) == 2
    kept = {file: json.loads(file.read_text().splitlines()[0]) for file in parts}
    for file, row in kept.items():  # told apart from what would be scored anew
        rows = file.read_text().splitlines(keepends=True)
        file.write_text("".join([json.dumps({**row, "question": "kept"}) + "\n", *rows[1:]]))
    status, printed, said = torchrun(2, argv(places, "tofu", out, *small), tmp_path)
    assert status == 0, said
    assert timeless(printed) == files(whole)["summary.json"]
    found, expected = files(out), files(whole)
    assert found.keys() == expected.keys()
    for name in ("forget", "retain", "real_authors", "world_facts"):
        file = f"records/{name}.jsonl"
        ours, theirs = ([json.loads(line) for line in each[file].decode().splitlines()] for each in (found, expected))
        marked = {row["index"] for part, row in kept.items() if part.name.startswith(f"{name}.")}
        assert {row["index"] for row in ours if row["question"] == "kept"} == marked
        assert [{**row, "question": ""} for row in ours] == [{**row, "question": ""} for row in theirs]
