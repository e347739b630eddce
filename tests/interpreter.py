"""A Python of its own for what must be seen from the outside: what an import brings in, how a process dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_python(code: str, cwd: Path, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` in a new interpreter in ``cwd``: not in the checkout, which would hide the installed package.

    Modules beside the tests can be imported in it.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        check=False,
    )
