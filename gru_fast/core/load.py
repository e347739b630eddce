"""The compiled module as ``core``, or an ImportError that says what to do about its absence."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path


def _explain(error: ImportError) -> str:
    here = Path(__file__).resolve().parents[1]
    if not isinstance(error, ModuleNotFoundError):
        return (
            f"gru_fast._core was built but does not load: {error}. Build it again for this machine and this Python, "
            "in the checkout: pip install --force-reinstall --no-deps ."
        )
    message = f"gru_fast._core, the compiled part of gru_fast, is missing from {here}."
    if (here.parent / "CMakeLists.txt").exists():
        if any(copy != here for copy in _installed_copies()):
            return (
                f"{message} This is the source tree, and it hides the installed package: start Python from another "
                "folder, or install the tree itself: pip install -e ."
            )
        return f"{message} Build it: pip install . (or pip install -e . to work on the sources)."
    return f"{message} The installation is incomplete; in a checkout of gru_fast: pip install --force-reinstall ."


def _installed_copies() -> list[Path]:
    """Folders of the installed gru_fast that hold a compiled module."""
    return [
        Path(str(distribution.locate_file(file))).resolve().parent
        for distribution in metadata.distributions(name="gru_fast")
        for file in distribution.files or []
        if file.name.startswith("_core.") and file.suffix in {".so", ".pyd"}
    ]


try:
    import gru_fast._core as core  # not "from gru_fast import": that hides which module is missing
except ImportError as error:
    raise ImportError(_explain(error)) from error

__version__: str = core.VERSION

__all__ = ["__version__", "core"]
