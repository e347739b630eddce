"""Requests before, whose documents can no longer be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gru_fast.forget import earlier


@pytest.mark.parametrize(
    ("options", "keep_text", "quoted"), [({}, True, True), ({}, False, False), ({"text": False}, True, False)]
)
def test_without_text_no_message_quotes_the_documents(
    tmp_path: Path, options: dict[str, Any], keep_text: bool, quoted: bool
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"secret name": "of a person"}\n')
    request = {"run": "first", "options": {"forget": [str(file)], "max_length": 64, **options}}
    (found,) = earlier.measured(None, None, [request], keep_text=keep_text)  # type: ignore[arg-type]
    assert found["now"].startswith("not measured: its documents are not at hand")
    assert ("secret name" in found["now"]) == quoted
