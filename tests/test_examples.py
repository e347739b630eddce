"""The programs in examples/: they run as they stand, and show what they are there to show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", ["own_loop.py", "trainer.py"])
def test_example(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra [unlearn]")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    losses = {line[:10].strip(): [float(text) for text in line[10:].split()] for line in done.stdout.splitlines()[-3:]}
    forgotten, kept = zip(*(losses[run] for run in ("before", "plain", "with GRU")), strict=True)
    assert max(forgotten[0], kept[0]) < 0.1  # it knew all of it
    assert min(forgotten[1:]) > 4.2  # worse than a guess among 64 tokens
    assert kept[2] < kept[1]
    assert list(tmp_path.iterdir()) == []


def test_every_program_is_tested() -> None:
    programs = {path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert programs == {"own_loop.py", "trainer.py"}
