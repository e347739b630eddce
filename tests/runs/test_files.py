"""Files: there as a whole or not at all, and read line by line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gru_fast.runs.files import read_json, read_lines, read_text, write_json, write_text


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")  # fails while it writes
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]


def test_what_is_written_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut may leave the name and an empty file."""
    synced: list[int] = []

    def fsync(file: int) -> None:
        assert not (tmp_path / "value.txt").exists()
        synced.append(os.fstat(file).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "value.txt", "abc\n")
    assert synced == [4]
    assert (tmp_path / "value.txt").read_text() == "abc\n"


def test_written_files_are_as_open_as_others(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    write_text(tmp_path / "value.json", "{")
    with pytest.raises(ValueError, match=r"value\.json: not JSON"):
        read_json(tmp_path / "value.json")


def test_lines_end_at_line_breaks_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "rows", "one\u2028still one\x0c\x85\ntwo\n\ncut o")
    assert read_lines(tmp_path / "rows") == ["one\u2028still one\x0c\x85", "two", "", "cut o"]


def test_a_byte_order_mark_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(b"\xef\xbb\xbf[1,\r\n2]\r")
    assert read_json(path) == [1, 2]
    assert read_lines(path) == ["[1,", "2]", ""]


def test_other_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "value.txt"
    path.write_bytes("é, ä".encode("latin-1"))
    with pytest.raises(ValueError, match=r"value\.txt, line 1: expected UTF-8, got the byte 0xe9 after ''; if it is"):
        read_text(path)
    path.write_bytes("é, ä".encode("utf-16"))
    with pytest.raises(ValueError, match=r"value\.txt, line 1: expected UTF-8, got UTF-16"):
        read_json(path)
