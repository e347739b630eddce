"""What the built package is linked to, what importing it brings in, and what it says about itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from interpreter import run_python

import gru_fast
from gru_fast.cli import main
from gru_fast.core.load import core

PACKAGE = Path(gru_fast.__file__).parent


def binutil(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


needs_elf = pytest.mark.skipif(sys.platform != "linux", reason="looks into an ELF file")


@needs_elf
def test_links_no_torch_and_no_cuda() -> None:
    """One build serves every torch, with or without a GPU: only the C++ runtime may be needed at load."""
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", binutil("readelf", "-d", core.__file__))
    runtime = re.compile(r"(libstdc\+\+|libm|libgcc_s|libc|libdl|libpthread|librt|ld-linux.*|libasan|libubsan)\.so.*")
    assert needed
    assert [library for library in needed if not runtime.fullmatch(library)] == []


@needs_elf
@pytest.mark.skipif("address" in core.build_info()["build_type"], reason="sanitizers export symbols of their own")
def test_exports_its_init_function_only() -> None:
    exported = re.findall(r" [TDBR] (\S+)", binutil("nm", "-D", "--defined-only", core.__file__))
    assert exported == ["PyInit__core"]


def test_import_brings_in_torch_only(tmp_path: Path) -> None:
    """Nor does the command line, with every command that it lists."""
    code = """
import pkgutil, sys
from importlib import import_module
import torch
packages = lambda: {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
before = packages()
import gru_fast
print(sorted(packages() - before))
import gru_fast.cli
for module in pkgutil.iter_modules(gru_fast.cli.commands.__path__):
    import_module(f"gru_fast.cli.commands.{module.name}")
print(sorted(packages() - before))
"""
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["['gru_fast']"] * 2


def test_import_is_silent(tmp_path: Path) -> None:
    result = run_python("import gru_fast", tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_import_leaves_cuda_alone(tmp_path: Path) -> None:
    """No driver is loaded and no context made, so that a process may fork after the import."""
    code = """
import pathlib, sys, torch
maps = pathlib.Path("/proc/self/maps")
drivers = lambda: {line.split()[-1] for line in maps.read_text().splitlines() if "libcuda.so" in line}
before = drivers() if maps.exists() else set()
import gru_fast
assert not torch.cuda.is_initialized()
assert (drivers() if maps.exists() else set()) == before
"""
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_works_after_import_and_fork(tmp_path: Path) -> None:
    code = """
import os, gru_fast, torch
child = os.fork()
if child == 0:
    torch.ones(1, device="cuda").item()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr


def test_version_is_one() -> None:
    assert metadata.version("gru_fast") == core.build_info()["version"] == gru_fast.__version__


def test_build_info() -> None:
    info = gru_fast.build_info()
    assert info["torch"] == torch.__version__
    assert info["cpu"]["vector_level"] in info["cpu"]["available_levels"]
    assert info["cpu"]["available_levels"][-1] == "baseline"
    assert info["cpu"]["threads"] == torch.get_num_threads()
    assert info["devices"][0] == {"device": "cpu", "name": "CPU", "backend": "native"}
    cuda = info["cuda"]
    assert core.HAS_CUDA == bool(cuda["version"]) == bool(cuda["architectures"]) == (cuda["reason"] is None)


def test_cli_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"gru_fast  {gru_fast.__version__}" in text
    assert f"torch     {torch.__version__}" in text
    assert "native" in text

    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == gru_fast.build_info()


def test_cli_report_names_the_reason_for_no_cuda() -> None:
    from gru_fast.cli.commands.info import report

    info = gru_fast.build_info()
    info["cuda"] = {
        "version": None,
        "architectures": [],
        "reason": "nvcc was not found at build",
        "device_count": 0,
        "problem": None,
    }
    info["devices"].append({"device": "cuda:0", "name": "Some GPU", "backend": "reference"})
    text = report(info)
    assert "no kernels: nvcc was not found at build" in text
    assert "GRU_FAST_CUDA=pip pip install" in text
    assert "cuda:0  reference  Some GPU" in text


def test_cli_report_names_the_reason_why_kernels_cannot_run() -> None:
    from gru_fast.cli.commands.info import report

    info = gru_fast.build_info()
    reason = "the driver knows CUDA up to 12.6, the kernels are of 13.0"
    info["cuda"] = {"version": "13.0", "architectures": ["90"], "reason": None, "device_count": 0, "problem": reason}
    info["devices"].append({"device": "cuda:0", "name": "Some GPU", "backend": "reference"})
    text = report(info)
    assert f"CUDA      13.0 for 90\n          they run on no device here: {reason}\n" in text
    assert "To build the CUDA kernels, in a checkout: " in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_kernels_say_why_they_run_on_no_device() -> None:
    assert core.cuda_problem()
    assert gru_fast.build_info()["cuda"]["problem"] == (core.cuda_problem() if core.HAS_CUDA else None)


def test_cli_version_and_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"gru-fast {gru_fast.__version__}\n"
    with pytest.raises(SystemExit, match="2"):
        main(["no-such-command"])
    assert "info" in capsys.readouterr().err


def test_cli_error_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict[str, object]:
        raise ValueError("first line\n  second line")

    monkeypatch.setattr("gru_fast.core.info.build_info", fail)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == "gru-fast info: ValueError: first line second line\n"
    with pytest.raises(ValueError, match="first line"):
        main(["info", "--traceback"])


def test_cli_into_closed_pipe(tmp_path: Path) -> None:
    code = "import sys; from gru_fast.cli import main; sys.exit(main(['info']))"
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as pipe:
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with a package gru_fast that has no compiled module."""
    (tmp_path / "gru_fast" / "core").mkdir(parents=True)
    (tmp_path / "gru_fast" / "__init__.py").write_text("from gru_fast.core.load import core\n")
    (tmp_path / "gru_fast" / "core" / "__init__.py").touch()
    shutil.copy(PACKAGE / "core" / "load.py", tmp_path / "gru_fast" / "core")
    return tmp_path


@pytest.mark.parametrize(
    ("is_checkout", "flags", "expected"),
    [
        (True, ["-S"], "Build it: pip install ."),  # -S: nothing is installed
        (False, ["-S"], "The installation is incomplete"),
    ],
)
def test_missing_core_says_how_to_build(tree: Path, is_checkout: bool, flags: list[str], expected: str) -> None:
    if is_checkout:
        (tree / "CMakeLists.txt").touch()
    result = run_python("import gru_fast", tree, *flags, PYTHONPATH="")
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ImportError: gru_fast._core, the compiled part of gru_fast, is missing from ")
    assert expected in message


def test_checkout_that_hides_the_installed_package(tree: Path) -> None:
    (tree / "CMakeLists.txt").touch()
    result = run_python("import gru_fast", tree)
    assert "hides the installed package" in result.stderr.splitlines()[-1]


def test_core_that_does_not_load(tree: Path) -> None:
    (tree / "gru_fast" / "_core.so").write_bytes(b"not a library")
    result = run_python("import gru_fast", tree, "-S", PYTHONPATH="")
    assert "was built but does not load" in result.stderr.splitlines()[-1]
