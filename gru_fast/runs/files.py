"""Files that are there as a whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; a broken one: ValueError with its path."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text, UTF-8, cut at line breaks alone; after the last break, what is left, mostly "".

    Not by splitlines(): JSON does not escape U+2028 and other separators, which generations hold.
    """
    return Path(path).read_text(encoding="utf-8").split("\n")


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON so that the file is there as a whole or not at all; NaN and infinities as Python's json has them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Writes a text, UTF-8, so that the file is there as a whole or not at all, even after a power cut."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else the new name may outlive a power cut, and what is in it not
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp's own would be for the owner alone
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
