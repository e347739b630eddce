"""Every cell of the table of engines and options in docs/larger-models.md, run or seen to be refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import launched
import launched_deepspeed
import pytest
import tiny
from engine_cells import ENGINES, RESUMED_ELSEWHERE, ROWS, ZERO, Row, table
from following import arguments, assert_alike, assert_roughly_alike, assert_same_steps, start
from processes import Processes
from safetensors.torch import load_file

from gru_fast.unlearn import methods

PAGE = Path(__file__).parents[2] / "docs" / "larger-models.md"
CELLS = [
    pytest.param(engine, row, settings, id=f"{engine}-{'-'.join(str(value) for value in settings.values())}")
    for row in ROWS
    for settings in row.runs
    for engine in ENGINES
    if engine not in row.lacks
]


def test_the_page_has_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), f"{PAGE}: expected\n{table()}"


def test_no_method_is_missing() -> None:
    assert {settings["method"] for row in ROWS for settings in row.runs} == set(methods.names())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, Any]], launched.Trained]:
    """What one process makes of settings; once for all engines."""
    found: dict[str, launched.Trained] = {}

    def of(settings: Mapping[str, Any]) -> launched.Trained:
        key = json.dumps(settings, sort_keys=True)
        if key not in found:
            found[key] = launched.trained(tmp_path_factory.mktemp("alone"), **settings)
        return found[key]

    return of


@pytest.fixture(scope="module")
def folder_of_a_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of one whose layers fill blocks of 4 bits."""
    folder = tmp_path_factory.mktemp("model")
    tiny.llama(hidden_size=64, intermediate_size=64).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("engine", "row", "settings"), CELLS)
def test_cell(
    processes: Processes,
    alone: Callable[[Mapping[str, Any]], launched.Trained],
    folder_of_a_model: str,
    tmp_path: Path,
    engine: str,
    row: Row,
    settings: Mapping[str, Any],
) -> None:
    settings = dict(settings)
    if "four_bit" in settings:
        pytest.importorskip("bitsandbytes", reason="the extra 4bit is not installed")
        settings["four_bit"] = folder_of_a_model
    how = spread(engine, row)
    if engine in row.refused:
        settings.pop("scale", None)  # the configuration says it
        for said in processes.run(launched.refused, 2, tmp_path, **how, **settings):
            assert said.startswith(row.refused[engine])
        return
    logs, weights, ema = alone(settings)
    if engine == "FSDP2":
        settings.pop("activation_checkpointing", None)  # which its configuration has on in all these tests
    found = processes.run(launched.trained, 2, tmp_path, **how, **settings)
    if engine in {"ZeRO-1", "ZeRO-2"}:  # where parameters have no names
        logs = [{name: value for name, value in entry.items() if name != "lora_a_share"} for entry in logs]
    if row.held_to == "bfloat16":
        assert_roughly_alike(found, weights, ema, start(settings))
    elif row.held_to == "weights":
        assert_same_steps(found, weights, ema, start(settings))
    else:
        assert_alike(found, (logs, weights, ema), start(settings), row.conflict)


@pytest.mark.parametrize("engine", ENGINES)
def test_resuming(processes: Processes, tmp_path: Path, engine: str) -> None:
    """From the second of six steps: in as many processes bit for bit, in another number but for rounding, or not."""
    how = spread(engine, Row("", ()))
    run = tmp_path / "run"
    unbroken = processes.run(launched.run_to_the_end, 2, run, **how)
    for step in (4, 6):
        shutil.rmtree(run / f"checkpoint-{step}")
    shutil.copytree(run, tmp_path / "elsewhere" / "run")
    for ours, theirs in zip(processes.run(launched.run_to_the_end, 2, run, resume=True, **how), unbroken, strict=True):
        assert all(bool((a == b).all()) for a, b in zip(ours, theirs, strict=True))
    job = (launched.run_to_the_end, 4, tmp_path / "elsewhere" / "run")
    if said := RESUMED_ELSEWHERE[engine]:
        with pytest.raises(AssertionError, match=said):
            processes.run(*job, resume=True, **how)
        return
    for found in processes.run(*job, resume=True, **how):
        for a, b in zip(found, unbroken[0], strict=True):
            assert float((a - b).norm()) <= 1e-4 * float(b.norm())


@pytest.mark.parametrize("engine", ["ZeRO-2", "ZeRO-3"])
def test_command_in_4_bits(processes: Processes, tmp_path: Path, engine: str) -> None:
    """gru-fast unlearn saves the adapter that one process does, or is refused before it loads the model."""
    pytest.importorskip("bitsandbytes", reason="the extra 4bit is not installed")
    four_bit = ["--load-in-4bit", "--use-peft", "--lora-r", "4", "--lora-dropout", "0"]
    how = spread(engine, Row("", ()))
    ended = processes.run(launched.command, 2, [*arguments(tmp_path, "several", 1), *four_bit], **how)
    if engine == "ZeRO-3":
        assert ended == [1, 1]
        assert not (tmp_path / "several").exists()
        return
    assert ended == [0, 0]
    assert launched.command([*arguments(tmp_path, "one", 2), *four_bit]) == 0
    several, one = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("several", "one"))
    assert several.keys() == one.keys()
    assert any(bool(weight.any()) for name, weight in one.items() if "lora_B" in name)
    for name, weight in one.items():
        assert float((several[name] - weight).norm()) <= 2e-5 * float(weight.norm()), name


def spread(engine: str, row: Row) -> dict[str, Any]:
    """What has a job of ``launched`` use an engine."""
    if engine not in ZERO:
        return {"fsdp2": engine == "FSDP2"}
    pytest.importorskip("deepspeed", reason="needs the extra gru_fast[deepspeed]")
    return {"fsdp2": False, "zero": {**launched_deepspeed.configured(int(engine[-1]), row.offloaded), **row.zero}}
