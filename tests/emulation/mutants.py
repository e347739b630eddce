"""Does the emulation find what it is there for? Plants bugs in a copy of the CUDA sources, one at a time, for fuzz.py.

    python tests/emulation/mutants.py                       # some minutes: one build, then a file or two for each bug
    python tests/emulation/mutants.py --only "no barrier"   # those whose name has these words

Every bug is one that compiles, that most tests on a GPU would not see, and that some GPU at some time would. Prints
what was found with which seed, and exits 1 if one was not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE", "cmake", "csrc", "gru_fast", "tests/emulation"]
SANITIZERS = "alignment"  # x86 forgives what CUDA does not


@dataclass
class Mutant:
    """``old`` becomes ``new`` once in ``file`` of csrc/cuda."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant(
        "no barrier between the warps' sums and their total",
        "device.cuh",
        "warps[threadIdx.x / 32] = value;\n  __syncthreads();",
        "warps[threadIdx.x / 32] = value;",
    ),
    Mutant(
        "no barrier between the ticket and whoever asks for it",
        "device.cuh",
        "  __syncthreads();\n  if (!is_last_block) return false;",
        "  if (!is_last_block) return false;",
    ),
    Mutant(
        "e's alignment is not looked at",
        "reduce.cu",
        "is_aligned<G, N>(chunk.retain) && is_aligned<E, N>(chunk.ema);",
        "is_aligned<G, N>(chunk.retain);",
    ),
    Mutant(
        "each launch writes its sums over those of the one before",
        "reduce.cu",
        "kernel_args.slots.first += blocks;",
        "",
    ),
    Mutant(
        "the last block has nothing to wait for",
        "device.cuh",
        "== gridDim.x - 1;",
        "== (gridDim.x > 1 ? gridDim.x - 2 : 0);",
    ),
    Mutant(
        "a chunk is rounded with the key of the tile before",
        "reduce.cu",
        "static_cast<uint64_t>(begin / kRoundingTile));",
        "static_cast<uint64_t>(begin > 0 ? (begin - 1) / kRoundingTile : 0));",
    ),
    Mutant(
        "the slot is written after the ticket",
        "device.cuh",
        """  leave_sum(value, slots);
  if (threadIdx.x == 0) {
    is_last_block = false;
    if (ticket != nullptr) {
      __threadfence();  // the slot is visible before the ticket
      is_last_block = atomicAdd(ticket, 1u) == gridDim.x - 1;
      __threadfence();  // the other slots are read after the ticket
    }
""",
        """  value = sum_block(value);
  if (threadIdx.x == 0) {
    is_last_block = false;
    if (ticket != nullptr) {
      __threadfence();
      is_last_block = atomicAdd(ticket, 1u) == gridDim.x - 1;
      __threadfence();
    }
    slots.values[slots.first + blockIdx.x] = value;
""",
    ),
    Mutant(
        "nobody clears the ticket",
        "reduce.cu",
        "if (threadIdx.x == 0 && blockIdx.x == 0) *args.header = Header{};",
        "",
    ),
    Mutant(
        "the total leaves out the last block",
        "device.cuh",
        "for (uint32_t i = threadIdx.x; i < count; i += kThreads)",
        "for (uint32_t i = threadIdx.x; i + 1 < count; i += kThreads)",
    ),
    Mutant(
        "rows of two blocks share a slot",
        "device.cuh",
        "slots[blockIdx.x + row] = sum;",
        "slots[row] = sum;",
    ),
]


class Workshop:
    """A copy of the sources with a build of it."""

    def __init__(self, folder: Path) -> None:
        self.sources, self.build, self.site = folder / "sources", folder / "build", folder / "site"
        for part in PARTS:
            source, target = ROOT / part, self.sources / part
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, target)
        for built in (self.sources / "gru_fast").glob("_core*.so"):
            built.unlink()
        cmake_dir = _output([sys.executable, "-m", "pybind11", "--cmakedir"])
        _output([
            "cmake", "-S", str(self.sources), "-B", str(self.build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Debug",
            "-DGRU_FAST_EMULATE=ON", f"-DGRU_FAST_SANITIZE={SANITIZERS}", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={cmake_dir.strip()}", "-DSKBUILD_PROJECT_NAME=gru_fast", "-DSKBUILD_PROJECT_VERSION=0",
        ])  # fmt: skip

    def compile(self) -> None:
        _output(["cmake", "--build", str(self.build)])
        for module in self.build.glob("_core*.so"):
            shutil.copy2(module, self.sources / "gru_fast")

    def fuzz(self, seconds: float, first: int) -> tuple[bool, str]:
        """Whether something was found; the first line about it."""
        command = [sys.executable, str(self.sources / "tests/emulation/fuzz.py"), "--until-bad"]
        command += ["--seconds", str(seconds), "--first", str(first)]
        environment = {**os.environ, "PYTHONPATH": str(self.sources), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        told = next((line for line in lines if "emulated CUDA:" in line or "runtime error" in line), None)
        return done.returncode != 0, told or " ".join(lines[:2])

    def mutate(self, mutant: Mutant) -> None:
        file = self.sources / "csrc/cuda" / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            raise SystemExit(
                f"{mutant.name}: csrc/cuda/{mutant.file} has this {text.count(mutant.old)} times, not once: "
                f"{mutant.old!r}; change the mutant with the source"
            )
        file.write_text(text.replace(mutant.old, mutant.new))

    def mend(self, mutant: Mutant) -> None:
        target = self.sources / "csrc/cuda" / mutant.file
        shutil.copy(ROOT / "csrc/cuda" / mutant.file, target)  # with a new time, which the build sees


def _output(command: list[str]) -> str:
    # cmake and ninja of the environment that runs this, where it has them.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to look for each (default: 120)")
    parser.add_argument("--only", default="", metavar="WORDS", help="bugs whose name has these words")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="of the first case (default: 0)")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    if not chosen:
        parser.error(f"--only {options.only!r}: none of " + "; ".join(mutant.name for mutant in MUTANTS))
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        workshop.compile()
        clean = workshop.fuzz(10.0, options.first)
        if clean[0]:
            print(f"without any mutant: {clean[1]}")
            return 1
        for mutant in chosen:
            workshop.mutate(mutant)
            workshop.compile()
            start = time.monotonic()
            found, told = workshop.fuzz(options.seconds, options.first)
            missed += not found
            print(f"{'found' if found else 'MISSED'} after {time.monotonic() - start:.0f} s: {mutant.name}")
            print(f"    {told[:200]}", flush=True)
            workshop.mend(mutant)
    print(f"mutants: {len(chosen) - missed} of {len(chosen)} found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
