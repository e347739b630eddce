"""What errors say: the name that was meant, another's error in short."""

from __future__ import annotations

import pytest

from gru_fast.runs.messages import as_identifier, first_line, in_short, nearest


def test_the_nearest_name() -> None:
    assert nearest("forgte05", ["forget05", "retain95"]) == ', did you mean "forget05"?'
    assert nearest("forgte05", ["forget05"], before="; ") == '; did you mean "forget05"?'
    assert nearest("bleu", ["forget05"]) == ""
    assert nearest("NPO+KL", ["npo_kl", "npo"]) == ""
    assert nearest(as_identifier("NPO+KL"), ["npo_kl", "npo"]) == ', did you mean "npo_kl"?'


@pytest.mark.parametrize(
    ("error", "first", "short"),
    [
        (ValueError("\nwhat is wrong.\nand why"), "what is wrong", "what is wrong. and why"),
        (OSError(), "OSError", "OSError"),
        (ValueError("x" * 300), "x" * 300, "x" * 197 + "..."),
    ],
)
def test_an_error_on_one_line(error: Exception, first: str, short: str) -> None:
    assert first_line(error) == first
    assert in_short(error) == short
