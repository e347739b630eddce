"""bench/gpu_check.sh, as far as it can be run without a GPU."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from interpreter import run_python

TESTS = Path(__file__).parent
BENCH = TESTS.parent / "bench"
# Packages of gru_fast[dev] that a machine with a GPU and torch need not have.
NOT_THERE = (
    *("accelerate", "datasets", "gguf", "lm_eval", "matplotlib", "optuna", "peft", "psutil"),
    *("rouge_score", "scipy", "transformers"),
)


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


def test_gpu_check_refuses_unknown_parts() -> None:
    done = gpu_check("--cpu", "--part", "4")
    assert done.returncode == 2
    assert "--part: expected 1, 2 or 3, got 4" in done.stderr


def test_parts_of_gpu_check_leave_out_what_the_others_do(tmp_path: Path) -> None:
    done = gpu_check("--cpu", "--part", "3", "--only", "memcheck", "--results", str(tmp_path))
    assert done.returncode == 2
    assert "--only memcheck: expected stages among build racecheck" in done.stderr


def test_gpu_check_rehearses_on_the_cpu(tmp_path: Path) -> None:
    done = gpu_check("--cpu", "--only", "step-phi-1.5,ncu", "--results", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (tmp_path / "rehearsal-on-the-cpu.md").read_text()
    assert [line.split()[0] for line in summary.splitlines() if " ok, " in line] == ["build", "step-phi-1.5", "ncu"]
    assert "### custom" in summary
    written = tmp_path / "rehearsal-on-the-cpu-phi-1.5.json"
    assert "--without" in json.loads(written.read_text())["cells"][0]["left_out"]["official"]
    with tarfile.open(tmp_path / "rehearsal-on-the-cpu.tar.gz") as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
    assert {written.name, "rehearsal-on-the-cpu.md", "build.log", "step-phi-1.5.log", "ncu.log"} <= names


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


# ---- the files of the stage "tests" ----------------------------------------------------------------------------------


def named_files() -> list[Path]:
    """The files that the stage runs."""
    names = re.search(r"local files=\((.*?)\)", (BENCH / "gpu_check.sh").read_text())
    assert names is not None
    return [TESTS / f"{name}.py" for name in names[1].split()]


def functions(file: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]


def decorators(function: ast.FunctionDef) -> str:
    return "\n".join(map(ast.unparse, function.decorator_list))


def asked_for(function: ast.FunctionDef) -> set[str]:
    """The fixtures it takes: its arguments but for those that parametrize or given names."""
    given = decorators(function)

    def is_given(name: str) -> bool:
        return re.search(rf"parametrize\([^\n]*'{name}'|given\([^\n]*\b{name}=", given) is not None

    return {arg.arg for arg in function.args.args if not is_given(arg.arg)}


def runs_on_cuda(file: Path) -> bool:
    """Whether it holds a test marked `cuda`: by the mark, or by a fixture that stands on `device`."""
    if "pytest.mark.cuda" in file.read_text():
        return True
    here = functions(file)
    fixtures = [f for f in (*functions(TESTS / "conftest.py"), *here) if "pytest.fixture" in decorators(f)]
    on_device = {"device"}
    for _ in fixtures:  # one that stands on one that stands on it, and so on
        on_device |= {f.name for f in fixtures if asked_for(f) & on_device}
    return any(f.name.startswith("test_") and asked_for(f) & on_device for f in here)


def test_gpu_check_runs_every_file_with_cuda_tests() -> None:
    files = [file for file in TESTS.rglob("test_*.py") if file != Path(__file__) and runs_on_cuda(file)]
    assert sorted(named_files()) == sorted(files)
    assert TESTS / "core" / "test_vectors.py" in files  # by the fixture alone
    assert TESTS / "core" / "test_errors.py" not in files  # `passes` is a parameter there


def test_gpu_check_needs_few_packages_to_collect(tmp_path: Path) -> None:
    """One import that fails while pytest collects, and no test runs."""
    options = ["--collect-only", "-q", "-c", str(TESTS.parent / "pyproject.toml"), "-p", "no:cacheprovider"]
    code = f"import sys; sys.modules |= dict.fromkeys({NOT_THERE}); import pytest; "
    code += f"sys.exit(pytest.main({[*options, *map(str, named_files())]}))"
    done = run_python(code, tmp_path, PYTEST_ADDOPTS="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_scales" in done.stdout


# ---- the clock of the stages that measure ----------------------------------------------------------------------------


class Device:
    """A GPU as CudaClock sees one: work begins when it has been queued and what came before it is done. Seconds."""

    def __init__(self) -> None:
        self.host = self.free = 0.0

    def queue(self, seconds: float) -> None:
        self.free = max(self.free, self.host) + seconds

    def synchronize(self, _: object) -> None:
        self.host = max(self.host, self.free)

    def event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        event = SimpleNamespace(at=0.0)
        event.record = lambda: setattr(event, "at", max(self.free, self.host))
        event.elapsed_time = lambda later: (later.at - event.at) * 1e3
        return event


@pytest.mark.parametrize(("queueing", "idle"), [(1e-3, 0.0), (1.9e-3, 0.0), (3e-3, 1e-3)])
def test_queueing_shows_where_it_takes_longer_than_the_lead(
    queueing: float, idle: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that keeps the device busy for 1 ms, with the flush of an H100: 0.18 ms."""
    monkeypatch.syspath_prepend(BENCH)
    timing, device = importlib.import_module("timing"), Device()
    cuda = SimpleNamespace(Event=device.event, synchronize=device.synchronize)
    flush = SimpleNamespace(zero_=lambda: device.queue(0.18e-3))
    monkeypatch.setattr(timing, "torch", SimpleNamespace(cuda=cuda, uint8=None, empty=lambda *_, **__: flush))
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: device.host))
    clock = timing.CudaClock("cuda")

    def call() -> None:
        device.host += queueing
        device.queue(1e-3)

    seconds, host = clock.time([call, call])
    lead = clock.overwrites * 0.18e-3
    assert clock.LEAD <= lead < clock.LEAD + 0.18e-3
    assert host == pytest.approx([queueing] * 2)
    assert seconds[0] == pytest.approx(1e-3 + max(0.0, queueing - lead))
    assert seconds[0] == pytest.approx(1e-3 + idle, abs=0.2e-3)
