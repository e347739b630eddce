"""What is read of a request: sets that must have nothing in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from gru_fast.forget.options import ForgetOptions
from gru_fast.forget.request import read


def folder(at: Path, *texts: str) -> str:
    at.mkdir()
    for i, text in enumerate(texts):
        (at / f"{i:02}.txt").write_text(text)
    return str(at)


def test_the_holdout_has_no_document_to_forget_and_none_that_is_trained_on(tmp_path: Path) -> None:
    forget = folder(tmp_path / "forget", *(f"secret {i}" for i in range(20)))
    retain = folder(tmp_path / "retain", *(f"ours {i}" for i in range(20)))
    unseen = [f"strange {i}" for i in range(19)]
    fine = folder(tmp_path / "fine", *unseen)
    assert len(read(ForgetOptions([forget], [retain], [fine])).holdout) == 19
    leaky = folder(tmp_path / "leaky", *unseen, "SECRET 3")
    with pytest.raises(ValueError, match=r"holdout: 1 of 20 documents of holdout are in forget too .* and none may be"):
        read(ForgetOptions([forget], [retain], [leaky]))
    taught = folder(tmp_path / "taught", *unseen, "ours  5")
    with pytest.raises(ValueError, match=r"holdout: 1 of 20 documents of holdout are in retain too .* and none may be"):
        read(ForgetOptions([forget], [retain], [taught]))
