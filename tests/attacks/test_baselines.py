"""What attacks do to the models beside the one under attack, made once for all that are compared with them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import planted
import pytest

from gru_fast import attacks
from gru_fast.attacks.parts import outcome
from gru_fast.options.attack import AttackOptions
from gru_fast.runs.processes import waiting_for

OPTIONS: dict[str, dict[str, Any]] = {
    "quantize": {"formats": ["int8"]},
    "relearn": {"relearn_on": ["forget"], "relearn_rates": [1e-3], "relearn_steps": [1, 2], "relearn_rows": 2},
    "sample": {"samples": 2, "temperatures": [1.0]},
    "extract": {"ways": ["prefix"], "prefixes": [0.5]},
}


def carried_out(name: str, models: planted.Models, folder: Path, **changes: Any) -> dict[str, Any]:
    attack = attacks.get(name)
    return outcome.carried_out(attack, attack.Options(**OPTIONS[name]), planted.target(models, folder, **changes))


def written(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*.json*") if file.name != "settings.json"}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_second_run_finds_what_the_first_has_made(name: str, models: planted.Models, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    carried_out(name, models, tmp_path / "first", unlearned=models.original, baselines=shared)
    made = written(shared)
    assert made
    second = carried_out(name, models, tmp_path / "second", baselines=shared)
    assert written(shared) == made
    assert not (tmp_path / "second" / name / "retrained").exists()
    alone = carried_out(name, models, tmp_path / "alone")
    assert second["findings"] == alone["findings"]


def test_other_questions_have_their_own(models: planted.Models, tmp_path: Path) -> None:
    for rows in (2, 3):
        carried_out("extract", models, tmp_path / f"{rows}", baselines=tmp_path / "shared", max_rows=rows)
    assert len([*(tmp_path / "shared").glob("retrained-*")]) == 2


def test_one_command_waits_for_the_other(tmp_path: Path) -> None:
    came: list[str] = []

    def another() -> None:
        with waiting_for(tmp_path / "sample"):
            came.append("another")

    thread = threading.Thread(target=another)
    with waiting_for(tmp_path / "sample"):
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        came.append("first")
    thread.join(30)
    assert came == ["first", "another"]


def test_baselines_in_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="baselines: expected a folder, or one that is to be made, got the file"):
        AttackOptions(baselines=str(tmp_path / "file"))
    AttackOptions(baselines=str(tmp_path / "new"))
