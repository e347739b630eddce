"""Files that are there as a whole or not at all."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_text(path: str | Path) -> str:
    """A text file, UTF-8 with or without a byte order mark; line ends of other systems become line breaks.

    Raises:
        ValueError: another encoding, with the line and what to do.
    """
    content = Path(path).read_bytes()
    # Before it is decoded: much of UTF-16 is valid UTF-8 with zeros between its letters.
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:4]
    if wide:
        raise ValueError(f"{path}, line 1: expected UTF-8, got UTF-16; convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        content = error.object  # without the mark, which the position does not count
        line = content.count(b"\n", 0, error.start) + 1
        before = content[max(error.start - 20, 0) : error.start].decode("utf-8", errors="replace").split("\n")[-1]
        raise ValueError(
            f"{path}, line {line}: expected UTF-8, got the byte {content[error.start]:#04x} after {before!r}; if it is "
            "Latin-1, convert it: iconv -f LATIN1 -t UTF-8 FILE > NEW"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; a broken one: ValueError with its path."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text (:func:`read_text`), cut at line breaks alone; after the last break, what is left, mostly "".

    Not by splitlines(): JSON does not escape U+2028 and other separators, which generations hold.
    """
    return read_text(path).split("\n")


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


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """``["split forget05, not forget10"]``: where two JSON values differ, old first, by dotted names."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            found
            for key in {**old, **new}
            for found in differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if old == new else [f"{name} {old!r}, not {new!r}"]


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """RuntimeError while another process is in such a block, on this machine or, where the file system can, another.

    However that one ends, it is free then. Who it is stands in ``path``.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        who = path.read_text(encoding="utf-8") if path.is_file() else "another process"
        raise RuntimeError(f"{path.parent.parent}: {who} works here already; wait for it, or stop it") from None
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
