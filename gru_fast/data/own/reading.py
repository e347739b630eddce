"""Files and data sets as texts, or as rows of texts: nothing is made of what stands in them."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from gru_fast.data.rows import placed_json_rows
from gru_fast.runs.files import read_text
from gru_fast.runs.messages import first_line


@dataclass(frozen=True)
class Hub:
    """A data set on the hub; ``config`` None: its only one."""

    name: str
    config: str | None
    split: str


@dataclass(frozen=True)
class Source:
    """A file, or a data set on the hub.

    Args:
        id: names it in the ids of documents: the path from the folder that was named on, with slashes.
        name: for messages, the path as it was found.
        place: where it is.
    """

    id: str
    name: str
    place: Path | Hub


@dataclass(frozen=True)
class Row:
    """A row of a file, from 0. ``where``: the file and the line or row, for messages."""

    index: int
    where: str
    value: Any


def read(source: Source) -> str | list[Row]:
    """The text of a file that is one document, or the rows of one that holds many.

    Raises:
        ValueError: an empty file, or one that cannot be read, with the line or row.
        ImportError: a package for the suffix is missing.
    """
    if not isinstance(source.place, Path):
        return _of_table(_from_hub(source.place), source.name)
    suffix = source.place.suffix.lower()
    if suffix in _TEXTS:
        text = _TEXTS[suffix](source.place).strip("\n")
        if not text.strip():
            raise ValueError(f"{source.name}: expected a text, got an empty file; leave it out or fill it")
        return text
    rows = _ROWS[suffix](source.place)
    if not rows:
        raise ValueError(f"{source.name}: expected rows, got none; leave the file out or fill it")
    return rows


# ---- whole texts -----------------------------------------------------------------------------------------------------


def _pdf(path: Path) -> str:
    """The text of the pages, one after another; what is in pictures is not read."""
    _need("pypdf", path)
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError(f"{path}: expected a PDF without password, got one that has one; take it off first")
        pages = [page.extract_text() for page in reader.pages]
    except (PyPdfError, OSError, KeyError, TypeError) as error:  # what broken files raise
        raise ValueError(f"{path}: cannot be read as PDF ({first_line(error)}); save it anew, or as .txt") from None
    if not "".join(pages).strip():
        raise ValueError(
            f"{path}: its {len(pages)} pages have no text in them, perhaps they are scanned; read it by OCR first and "
            "give the text"
        )
    return "\n\n".join(pages)


def _docx(path: Path) -> str:
    """Paragraphs and the cells of tables in their order; headers, footers, notes and comments are left out."""
    _need("docx", path)
    from docx import Document
    from docx.opc.exceptions import OpcError
    from docx.table import Table

    try:
        blocks = list(Document(str(path)).iter_inner_content())
    except (
        OpcError,
        BadZipFile,
        OSError,
        SyntaxError,
        ValueError,
        KeyError,
    ) as error:  # no zip file, or of other things
        raise ValueError(f"{path}: cannot be read as .docx ({first_line(error)}); save it anew, or as .txt") from None
    lines = []
    for block in blocks:
        if isinstance(block, Table):
            lines += ["\t".join(cell.text for cell in row.cells) for row in block.rows]
        else:
            lines.append(block.text)
    return "\n".join(lines)


def _need(package: str, path: Path) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ImportError(f"{path}: {path.suffix} needs a further package: pip install 'gru_fast[documents]'")


# ---- rows ------------------------------------------------------------------------------------------------------------


def _json(path: Path) -> list[Row]:
    """One object a line, or one list. Numbers are the text that stands there; a text alone is a row with ``text``."""
    rows = placed_json_rows(path, literal=True)
    return [
        Row(index, f"{path}, {where}", {"text": value} if type(value) is str else value)
        for index, (where, value) in enumerate(rows)
    ]


def _csv(path: Path) -> list[Row]:
    """Rows below a line of names. The delimiter is the sign of ``,;`` and tab that the line of names has most of."""
    lines = read_text(path).split("\n")
    names_line = next((line for line in lines if line.strip()), "")
    delimiter = max("\t" if path.suffix.lower() == ".tsv" else ",;\t|", key=names_line.count)
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
    names: list[str] = []
    rows: list[Row] = []
    line = 1
    with _any_length():
        try:
            for cells in reader:
                where, line = f"{path}, line {line}", reader.line_num + 1
                if not any(cell.strip() for cell in cells):
                    continue
                if not names:
                    names = _checked_names(cells, where)
                elif len(cells) != len(names):
                    raise ValueError(
                        f"{where}: expected {len(names)} cells ({', '.join(names)}), got {len(cells)}; put a text with "
                        f'"{delimiter}" in it in quotes'
                    )
                else:
                    rows.append(Row(len(rows), where, dict(zip(names, cells, strict=True))))
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {line}: {first_line(error)}; is a quote missing? A quote in a text is written twice"
            ) from None
    return rows


def _checked_names(cells: Sequence[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f'{where}: expected names of columns, each once, got "{twice}" twice')
    return names


@contextmanager
def _any_length() -> Iterator[None]:
    """Cells may be of any length: documents are longer than the 128 KiB that the csv module expects at most."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet ({first_line(error)}); write it anew") from None
    return _of_table(table, str(path))


def _from_hub(hub: Hub) -> Any:
    """The data set as a table of Arrow."""
    import datasets

    name = f'"{hub.name}"' + (f', config "{hub.config}"' if hub.config else "")
    try:
        return datasets.load_dataset(hub.name, hub.config, split=hub.split).with_format("arrow")[:]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: neither here nor a data set on the hub ({first_line(error)})") from None
    except OSError as error:  # every way in which the hub cannot be reached
        raise ConnectionError(
            f"{name}: cannot be had from the hub ({first_line(error)}), and no file has that name; check the "
            "connection, or name a file"
        ) from None
    except ValueError as error:  # no such config, no such split of it
        raise ValueError(f'{name}, split "{hub.split}": {first_line(error)}') from None


def _of_table(table: Any, name: str) -> list[Row]:
    """Rows of a table of Arrow, its numbers, dates and booleans as texts: ``12``, ``2024-05-01``, ``true``."""
    import pyarrow as pa

    columns = {}
    for field in table.schema:
        column, kind = table.column(field.name), field.type
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if not pa.types.is_nested(kind) and not pa.types.is_binary(kind):
            try:
                column = column.cast(pa.string())
            except pa.ArrowInvalid as error:
                raise ValueError(f'{name}: column "{field.name}": {first_line(error)}') from None
        columns[field.name] = column.to_pylist()
    return [
        Row(index, f"{name}, row {index}", {key: values[index] for key, values in columns.items()})
        for index in range(table.num_rows)
    ]


_TEXTS: dict[str, Callable[[Path], str]] = {".txt": read_text, ".md": read_text, ".pdf": _pdf, ".docx": _docx}
_ROWS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _json,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
SUFFIXES = (*_TEXTS, *_ROWS)
