"""bench/gpu_check.sh, as far as it can be run without a GPU."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parent.parent / "bench"


def gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(BENCH / "gpu_check.sh"), *arguments]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=120)


def test_gpu_check_refuses_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = gpu_check()
    assert done.returncode == 2
    assert "torch sees no CUDA device" in done.stderr


def test_gpu_check_refuses_unknown_stages() -> None:
    done = gpu_check("--cpu", "--only", "build,racechek")
    assert done.returncode == 2
    assert "--only racechek: expected stages among build tests" in done.stderr


def test_gpu_check_rehearses_on_the_cpu(tmp_path: Path) -> None:
    done = gpu_check("--cpu", "--only", "step-phi-1.5,ncu", "--results", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (tmp_path / "rehearsal-on-the-cpu.md").read_text()
    assert [line.split()[0] for line in summary.splitlines() if " ok, " in line] == ["build", "step-phi-1.5", "ncu"]
    assert "### custom" in summary
    assert (tmp_path / "rehearsal-on-the-cpu-phi-1.5.json").is_file()


def test_gpu_check_says_what_the_time_did_not_allow(tmp_path: Path) -> None:
    done = gpu_check("--cpu", "--only", "ncu", "--seconds", "1", "--results", str(tmp_path))
    assert done.returncode == 1
    assert "NOT RUN: the 1 s are over" in (tmp_path / "rehearsal-on-the-cpu.md").read_text()


def test_gpu_check_joins_the_pieces_of_a_model(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    for number, piece in enumerate([b"one", b"two"]):
        Path(f"{model}.0{number}").write_bytes(piece)
    Path(f"{model}.sha256").write_text(f"{hashlib.sha256(b'onetwo').hexdigest()}  model.gguf\n")
    options = ["--cpu", "--study", str(model), "--data", str(tmp_path), "--results", str(tmp_path / "out")]
    done = gpu_check(*options, "--", "--seeds", "0", "--splits", "forget05")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model.gguf: OK" in done.stdout
    Path(f"{model}.01").write_bytes(b"two!")
    assert "model.gguf: FAILED" in gpu_check(*options).stdout
