"""Who may import whom: rooms in their order, no circles, nothing of the step inside out. Read from the sources by ast.

An import counts wherever it stands: at the top of a file, in a function, under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "gru_fast"

# Each may import those before it, and itself. bench/ may import all of them.
ROOMS = (
    "core", "runs", "data", "models", "unlearn", "metrics", "evaluation", "benchmarks", "attacks", "forget", "options",
    "report", "demo", "jobs", "study", "sweep", "cli",
)  # fmt: skip
COMPILED = "_core"  # of C++; below all
FACES = ("", "reference", "rules", "vectors", "optim", "moved")  # of core: gru_fast itself and modules beside the rooms
RANKS = {COMPILED: 0, "core": 1, **dict.fromkeys(FACES, 2), **{room: at for at, room in enumerate(ROOMS[1:], 3)}}
CORE_BELOW = ("core.backends", "core.sharded")  # these do not import
CORE_ABOVE = ("core.ema", "core.rectify", "core.vectors", "core.step", "core.retain_gradient")  # these

# Arrows that are still to be turned round. One that is gone is to be taken off the list: there is a test.
KNOWN: set[str] = set()


def test_rooms_are_in_order() -> None:
    found = set(problems(ROOT))
    assert sorted(found - KNOWN) == []
    assert sorted(KNOWN - found) == [], "these are gone: take them off KNOWN"


def test_all_that_there_is_was_read() -> None:
    imports = imports_of(ROOT)
    assert len([name for name in imports if name.startswith(f"{PACKAGE}.")]) > 100
    assert "gru_fast.core.rectify" in imports["gru_fast"]  # at the top of a file
    assert "gru_fast.runs.folder" in imports["gru_fast.models.load"]  # in a function
    assert "gru_fast.data.templates" in imports["gru_fast.models.load"]  # under TYPE_CHECKING
    assert "gru_fast.runs.processes" in imports["gru_fast.unlearn.tru"]  # from a package, a module of it
    assert COMPILED in {name.rpartition(".")[2] for name in imports["gru_fast.core.load"]}
    assert any(name.startswith("bench.") for name in imports["bench.scaling"])  # without a package
    assert any(name.startswith(PACKAGE) for name in imports["bench.scaling"])


# ---- it can fail -----------------------------------------------------------------------------------------------------

SOUND = {
    "gru_fast/__init__.py": "from gru_fast import reference\nfrom gru_fast.core.rectify import rectify_\n",
    "gru_fast/_core.pyi": "",
    "gru_fast/reference.py": "from gru_fast.core.backends import native\n",
    "gru_fast/core/__init__.py": "",
    "gru_fast/core/rectify.py": "from gru_fast.core import ema\nfrom gru_fast.core.backends import native\n",
    "gru_fast/core/ema.py": "def f():\n    from gru_fast.core.backends.native import passes\n",
    "gru_fast/core/backends/__init__.py": "",
    "gru_fast/core/backends/native.py": "import gru_fast._core as core\nimport torch\nimport gru_fast_of_others\n",
    "gru_fast/runs/__init__.py": "from gru_fast.runs.files import read_json\n",
    "gru_fast/runs/files.py": "",
    "gru_fast/runs/folder.py": "from gru_fast.runs import files\nimport gru_fast\n",
    "gru_fast/cli/__init__.py": "from gru_fast import runs\nfrom . import commands\n",
    "gru_fast/cli/commands/__init__.py": "",
    "gru_fast/recipes/some.yaml": "",
    "bench/timing.py": "import time\n",
    "bench/speed.py": "from timing import seconds\nimport gru_fast.cli\n",
}


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ({}, []),
        # Against the order: at the top, in a function, under TYPE_CHECKING, relative, of a package, of a face.
        (
            {"gru_fast/runs/files.py": "from gru_fast.data.rows import Row\n", "gru_fast/data/rows.py": ""},
            ["gru_fast.runs.files imports gru_fast.data.rows: runs is below data"],
        ),
        (
            {"gru_fast/runs/files.py": "class A:\n    def f(self):\n        import gru_fast.cli.commands as c\n"},
            ["gru_fast.runs.files imports gru_fast.cli.commands: runs is below cli"],
        ),
        (
            {
                "gru_fast/runs/files.py": "if TYPE_CHECKING:\n    from ..data import x\n",
                "gru_fast/data/__init__.py": "",
            },
            ["gru_fast.runs.files imports gru_fast.data: runs is below data"],
        ),
        (
            {"gru_fast/core/ema.py": "from gru_fast import runs\n"},
            ["gru_fast.core.ema imports gru_fast.runs: core is below runs"],
        ),
        (
            {"gru_fast/reference.py": "import gru_fast.runs.files\n"},
            ["gru_fast.reference imports gru_fast.runs.files: the faces of core are below runs"],
        ),
        (
            {"gru_fast/sweep/a.py": "", "gru_fast/study/a.py": "async def f():\n    from gru_fast.sweep import a\n"},
            ["gru_fast.study.a imports gru_fast.sweep.a: study is below sweep"],
        ),
        (
            {"gru_fast/cli/__init__.py": "from bench import timing\n"},
            ["gru_fast.cli imports bench.timing: cli is below bench"],
        ),
        # Circles: of two, of three, in one folder, through a package, in bench; types count too.
        (
            {
                "gru_fast/metrics/mia.py": "from gru_fast.metrics import extra\n",
                "gru_fast/metrics/extra.py": "def f():\n    from gru_fast.metrics.mia import auc\n",
            },
            ["a circle: gru_fast.metrics.extra, gru_fast.metrics.mia"],
        ),
        (
            {
                "gru_fast/metrics/a.py": "import gru_fast.metrics.b\n",
                "gru_fast/metrics/b.py": "from gru_fast.metrics.c import x\n",
                "gru_fast/metrics/c.py": "if TYPE_CHECKING:\n    from gru_fast.metrics.a import x\n",
                "gru_fast/metrics/d.py": "from gru_fast.metrics import a, b, c\n",
            },
            ["a circle: gru_fast.metrics.a, gru_fast.metrics.b, gru_fast.metrics.c"],
        ),
        (
            {"gru_fast/runs/files.py": "from gru_fast.runs import read_json\n"},
            ["a circle: gru_fast.runs, gru_fast.runs.files"],
        ),
        (
            {"bench/timing.py": "def f():\n    import speed\n"},
            ["a circle: bench.speed, bench.timing"],
        ),
        (
            {"gru_fast/core/ema.py": "import gru_fast\n"},
            [
                "a circle: gru_fast, gru_fast.core.ema, gru_fast.core.rectify",
                "gru_fast.core.ema imports gru_fast: core is below the faces of core",
            ],
        ),
        # Rooms that the order does not know.
        (
            {"gru_fast/attic/__init__.py": "", "gru_fast/loose.py": "", "gru_fast/deep/down/here.py": ""},
            [
                "gru_fast.attic: no room that the order knows",
                "gru_fast.deep: no room that the order knows",
                "gru_fast.loose: no room that the order knows",
            ],
        ),
        # Inside of core.
        (
            {
                "gru_fast/core/backends/native.py": "def f():\n    from gru_fast.core.vectors import x\n",
                "gru_fast/core/vectors.py": "",
            },
            ["gru_fast.core.backends.native imports gru_fast.core.vectors: core.backends is below it"],
        ),
        (
            {"gru_fast/core/sharded/rows.py": "from gru_fast.core import step\n", "gru_fast/core/step.py": ""},
            ["gru_fast.core.sharded.rows imports gru_fast.core.step: core.sharded is below it"],
        ),
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(tmp_path: Path, planted: Mapping[str, str], expected: list[str]) -> None:
    for name, text in {**SOUND, **planted}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert problems(tmp_path) == expected


# ---- the reading -----------------------------------------------------------------------------------------------------


def problems(root: Path) -> list[str]:
    """What is wrong with the imports under ``root``, sorted."""
    imports = imports_of(root)
    found = [f"a circle: {', '.join(circle)}" for circle in circles(imports)]
    known = {*ROOMS, *FACES, COMPILED}
    rooms = {room_of(name) for name in imports if name.partition(".")[0] == PACKAGE}
    found += [f"{PACKAGE}.{room}: no room that the order knows" for room in rooms - known]
    for source, targets in imports.items():
        for target in targets:
            if rank(source) < rank(target):
                found.append(f"{source} imports {target}: {_named(source)} below {_named(target, last=True)}")
            for below in CORE_BELOW:
                if _is_in(source, below) and any(_is_in(target, above) for above in CORE_ABOVE):
                    found.append(f"{source} imports {target}: {below} is below it")
    return sorted(found)


def imports_of(root: Path) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports. ``from package import module`` is an import of the module."""
    files = {_module(path.relative_to(root)): path for path in sorted((root / PACKAGE).rglob("*.py"))}
    files |= {_module(path.relative_to(root)): path for path in sorted((root / PACKAGE).glob("*.pyi"))}
    bench = {_module(path.relative_to(root)): path for path in sorted((root / "bench").glob("*.py"))}
    modules = {**files, **bench}
    return {name: set(_imports(name, path, modules)) - {name} for name, path in modules.items()}


def _imports(name: str, path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            asked = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            whence = ".".join(filter(None, [above, node.module]))
            asked = [f"{whence}.{alias.name}" for alias in node.names]
        else:
            continue
        for one in asked:
            # Files of bench/ name each other without it.
            found = _nearest(one, modules) or (_nearest(f"bench.{one}", modules) if package == "bench" else None)
            if found is not None:
                yield found


def _nearest(name: str, modules: Mapping[str, Path]) -> str | None:
    """The module that a dotted name is in: itself, or the longest beginning of it that is one."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """The sets of modules of which each leads to each other, sorted (strongly connected, two and more)."""
    reached = {name: _reached(name, imports) for name in imports}
    found = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in imports}
    return [list(circle) for circle in sorted(found) if len(circle) > 1]


def _reached(start: str, imports: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = imports[left.pop()] - found
        found |= new
        left += new
    return found


def room_of(module: str) -> str:
    """``gru_fast.ROOM...``; "" for gru_fast itself."""
    return module.split(".")[1] if "." in module else ""


def rank(module: str) -> int:
    """Lower may not import higher."""
    is_ours = module.partition(".")[0] == PACKAGE
    return RANKS.get(room_of(module), len(RANKS)) if is_ours else len(RANKS) + 1


def _named(module: str, *, last: bool = False) -> str:
    if module.partition(".")[0] != PACKAGE:
        return "bench" if last else "bench is"
    name, are = (room_of(module), "is") if room_of(module) not in FACES else ("the faces of core", "are")
    return name if last else f"{name} {are}"


def _is_in(module: str, part: str) -> bool:
    return f"{module}.".startswith(f"{PACKAGE}.{part}.")
