#!/usr/bin/env python3
"""Compiles the CUDA kernels and fails on register spills, local memory or any warning of the compiler.

Needs nvcc (12.8 or newer for all default architectures), no GPU:

    .ci/check_ptxas.py              every .cu file of csrc/cuda for sm_80, sm_90, sm_100, sm_120
    .ci/check_ptxas.py --arch 90    one architecture (repeatable): quick

Prints one row per kernel and architecture; exits 1 if a row is bad or nvcc had anything else to say.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
DEFAULT_ARCHS = ["80", "90", "100", "120"]
FLAGS = ["-std=c++20", "-O3", "-Xcompiler=-Wall,-Wextra,-fPIC", "--Werror=all-warnings", "-Xptxas=-v"]

OF_ONE_THREAD = ("decide_kernel",)  # whose small matrices may lie in local memory: nobody waits for bandwidth there

ENTRY = re.compile(r"ptxas info\s*: Compiling entry function '(\S+)' for 'sm_(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"ptxas info\s*: Used (\d+) registers(.*)")
SHARED = re.compile(r"(\d+) bytes smem")
# What a clean compilation says besides: ptxas info lines, names of functions without properties, blanks.
HARMLESS = re.compile(r"ptxas info\s*:|\s*$")


@dataclass
class Kernel:
    """One kernel for one architecture, as ptxas reports it; sizes in bytes."""

    file: str
    name: str
    arch: str
    registers: int
    shared: int
    spills: int
    stack: int

    @property
    def is_bad(self) -> bool:
        return self.spills > 0 or (self.stack > 0 and not any(name in self.name for name in OF_ONE_THREAD))


def compile_report(source: Path, archs: list[str]) -> tuple[int, str]:
    """Compiles `source`; returns nvcc's exit code and all that it printed."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *FLAGS, *targets, "-c", str(source), "-o", f"{folder}/out.o"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


def parse(file: str, report: str) -> tuple[list[Kernel], list[str]]:
    """Splits a report into kernels and the lines that a clean compilation does not print."""
    kernels, complaints = [], []
    name = arch = ""
    stack = spills = 0
    for line in report.splitlines():
        if match := ENTRY.search(line):
            name, arch = match.groups()
            stack = spills = 0
        elif match := STACK.search(line):
            stack = int(match[1])
            spills = int(match[2]) + int(match[3])
        elif match := USED.search(line):
            shared = SHARED.search(match[2])
            kernels.append(Kernel(file, name, arch, int(match[1]), int(shared[1]) if shared else 0, spills, stack))
        elif not HARMLESS.match(line):
            complaints.append(line)
    return kernels, complaints


def demangle(names: list[str]) -> dict[str, str]:
    """C++ names, without namespaces and parameters; as they are if no demangler is there."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if not tool or not names:
        return {name: name for name in names}
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, map(shorten, done.stdout.splitlines()), strict=True))


def shorten(name: str) -> str:
    """`void a::(anonymous namespace)::f<(a::DType)1>(a::T)` -> `f<bf16>`."""
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::", "", name)
    for number, dtype in enumerate(["f32", "bf16", "f16"]):  # the order of DType
        name = name.replace(f"(gru_fast::DType){number}", dtype)
    for number, size in enumerate(["small", "medium", "large"]):  # of TableSize
        name = name.replace(f"(gru_fast::cuda::TableSize){number}", size)
    name = re.sub(r"\b\w+::", "", name).removeprefix("void ")
    return name.partition("(")[0]


def rows(kernels: list[Kernel]) -> Iterator[tuple[str, ...]]:
    names = demangle(sorted({kernel.name for kernel in kernels}))
    yield "file", "kernel", "sm", "regs", "smem", "spills", "stack", ""
    for kernel in sorted(kernels, key=lambda k: (k.file, names[k.name], int(re.sub(r"\D", "", k.arch)))):
        numbers = (kernel.registers, kernel.shared, kernel.spills, kernel.stack)
        yield kernel.file, names[kernel.name], kernel.arch, *map(str, numbers), "BAD" if kernel.is_bad else ""


def print_table(table: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False))
        right = "  ".join(cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))
        print(f"{left}  {right}".rstrip())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", action="append", metavar="SM", help="compute capability without the dot, e.g. 90")
    archs = [arch.removeprefix("sm_") for arch in parser.parse_args().arch or DEFAULT_ARCHS]
    if not shutil.which("nvcc"):
        print("check_ptxas: nvcc is not on PATH", file=sys.stderr)
        return 1
    kernels: list[Kernel] = []
    failures = []
    sources = sorted(SOURCES.glob("*.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(lambda source: compile_report(source, archs), sources))
    for source, (code, report) in zip(sources, reports, strict=True):
        found, complaints = parse(source.name, report)
        kernels += found
        if code != 0 or complaints:
            failures.append(f"{source.name}: nvcc exited with {code} and said:\n" + "\n".join(complaints))
    print_table(list(rows(kernels)))
    bad = sum(kernel.is_bad for kernel in kernels)
    if bad:
        failures.append(f"{bad} kernels spill registers or use local memory")
    if not sources or (not kernels and not failures):
        failures.append("no kernels found")
    print("\n".join(failures) if failures else f"check_ptxas: {len(kernels)} kernels, no spills, no stack, no warnings")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
