"""What a user names, as files: single ones, folders, globs, data sets on the hub."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gru_fast.data.own.reading import SUFFIXES, Hub, Source
from gru_fast.runs.messages import nearest

_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[^:/]*))?(:(?P<split>[^:/]+))?")
_MANY = 5  # names in a message


def find(named: str | Path | Sequence[str | Path], split: str) -> list[Source]:
    """Files and data sets of what was named, each once, with ids that differ.

    Raises:
        FileNotFoundError, ValueError: see :func:`gru_fast.data.own.load`.
    """
    several: Iterable[str | Path] = [named] if isinstance(named, (str, Path)) else named
    found: dict[Path | Hub, Source] = {}
    for name in several:
        if not str(name).strip():
            raise ValueError("sources: expected a file, a folder, a glob or a data set on the hub, got an empty name")
        for source in _of(str(name), split, is_path=isinstance(name, Path)):
            key = source.place if isinstance(source.place, Hub) else source.place.resolve()
            found.setdefault(key, source)
    if not found:
        raise ValueError("sources: expected at least one file, folder, glob or data set on the hub, got none")
    return _told_apart(list(found.values()))


def _of(name: str, split: str, *, is_path: bool) -> list[Source]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _of_folder(path)
    if path.exists():
        return [_source(path, path.name)]
    if glob.has_magic(name):
        return _of_glob(name)
    match = None if is_path else _HUB.fullmatch(name)
    if match and not _is_meant_as_path(path, match):
        hub = Hub(match["name"], match["config"] or None, match["split"] or split)
        label = ":".join([hub.name, hub.config or "", hub.split])
        return [Source(label, label, hub)]
    there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise FileNotFoundError(f'no file or folder "{name}"{nearest(path.name, there)}')


def _is_meant_as_path(path: Path, match: re.Match[str]) -> bool:
    """Whether a name that is not there was meant to be here: the hub is not asked about people's file names."""
    plain = match["config"] is None
    return plain and (path.suffix.lower() in SUFFIXES or path.parent.is_dir() or str(path).startswith("."))


def _source(path: Path, id_: str) -> Source:
    if path.suffix.lower() not in SUFFIXES:
        kind = f'the suffix "{path.suffix}"' if path.suffix else "no suffix"
        raise ValueError(f"{path}: expected a file of {', '.join(SUFFIXES)}, got {kind}; save it as one of these")
    return Source(id_, str(path), path)


def _of_folder(folder: Path) -> list[Source]:
    """All files under a folder but hidden ones. What cannot be read is refused: nobody should think it was."""
    paths = sorted(_files_under(folder))
    strange = [path.relative_to(folder).as_posix() for path in paths if path.suffix.lower() not in SUFFIXES]
    if strange:
        more = f" and {len(strange) - _MANY} more" if len(strange) > _MANY else ""
        raise ValueError(
            f"{folder}: holds {', '.join(strange[:_MANY])}{more}, which cannot be read ({', '.join(SUFFIXES)} can); "
            f'take what is no document out, or name the files: "{folder}/**/*.txt"'
        )
    if not paths:
        raise FileNotFoundError(f"{folder}: expected files of {', '.join(SUFFIXES)}, got none")
    return [_source(path, _below(folder, path)) for path in paths]


def _files_under(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _of_glob(pattern: str) -> list[Source]:
    expanded = os.path.expanduser(pattern)  # noqa: PTH111 (a Path would take "./" away, and with it what is fixed)
    names = glob.glob(expanded, recursive=True)  # noqa: PTH207 (Path.glob has no absolute patterns)
    paths = sorted(path for path in map(Path, names) if path.is_file())
    if not paths:
        raise FileNotFoundError(f'no file matches "{pattern}"; ** goes through folders: "leak/**/*.txt"')
    # The folder before the first sign of a pattern.
    fixed = Path(re.split(r"[*?[]", expanded, maxsplit=1)[0].rpartition("/")[0] or ("/" if expanded[0] == "/" else "."))
    return [_source(path, _below(fixed, path)) for path in paths]


def _below(folder: Path, path: Path) -> str:
    """The path from a folder on, with the folder's own name in front."""
    return f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}"


def _told_apart(found: list[Source]) -> list[Source]:
    """Sources with ids that differ: files of equal ids have as many of their folders in front as it takes."""
    times = Counter(source.id for source in found)
    paths = {source: _parts(source) for source in found if times[source.id] > 1}
    result = []
    for source in found:
        others = [parts for other, parts in paths.items() if other.id == source.id and other != source]
        parts = paths.get(source, ())
        length = next(
            (n for n in range(1, len(parts)) if all(parts[-n:] != other[-n:] for other in others)), len(parts)
        )
        result.append(replace(source, id="/".join(parts[-length:])) if others else source)
    return result


def _parts(source: Source) -> tuple[str, ...]:
    return source.place.resolve().parts[1:] if isinstance(source.place, Path) else (source.id,)
